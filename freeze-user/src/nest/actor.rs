//! Calls made in the name of a process of the nest: what the kernel remembers of a caller must be right.

use super::Nest;
use crate::error::{Context, Result};
use crate::ids::Pid;
use crate::sys;
use crate::tracee::tape::{Ran, Tape};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, OwnedFd, RawFd};

/// Whom a call is seen to come from: SO_PEERCRED's pid, effective uid and gid, and SO_PEERGROUPS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Who {
    pub pid: Pid,
    pub uid: u32,
    pub gid: u32,
    #[serde(default)]
    pub groups: Option<Vec<u32>>,
}

/// `SECBIT_NO_SETUID_FIXUP`.
const NO_SETUID_FIXUP: u32 = 1 << 2;

impl Nest {
    /// Plays calls in the process `who`, under its effective ids, with `hand` (descriptors of freeze) at hand: `fill`
    /// is told their numbers there. If the process is none of the nest's, its eldest stands in, and the user is told.
    pub fn act<R>(
        &mut self,
        who: &Who,
        hand: &[RawFd],
        fill: impl FnOnce(&mut Tape<'_>, &[u64]) -> R,
    ) -> Result<(Ran, R)> {
        let actor = match self.processes.contains_key(&who.pid) {
            true => who.pid,
            false => {
                let stand_in = self.roots.first().copied().unwrap_or(who.pid);
                self.warnings.push(format!(
                    "pid {} of the credentials of a socket is not part of the checkpoint; they now show pid {stand_in}",
                    who.pid
                ));
                stand_in
            }
        };
        let there = self.hand_over(actor, hand)?;
        let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        let other = (who.uid, who.gid) != (uid, gid);
        let keep = u64::from(u32::MAX);
        let own: Vec<u32> = nix::unistd::getgroups()
            .on("getgroups", || "freeze")?
            .iter()
            .map(|g| g.as_raw())
            .collect();
        let groups = who.groups.as_ref().filter(|g| **g != own);
        let set_groups = |t: &mut Tape<'_>, groups: &[u32]| {
            let bytes: Vec<u8> = groups.iter().flat_map(|g| g.to_ne_bytes()).collect();
            let at = t.bytes(&bytes);
            // Where the machine lets nobody do that (setgroups), it was not done by who connected either.
            t.try_call("setgroups", libc::SYS_setgroups, &[groups.len() as u64, at]);
        };
        self.process(actor)?.tape(|t| {
            if let Some(groups) = groups {
                set_groups(t, groups);
            }
            if other {
                // It keeps its rights: what it may reach was settled long ago. Its own bits come with its credentials.
                let bits = u64::from(NO_SETUID_FIXUP);
                let args = [libc::PR_SET_SECUREBITS as u64, bits, 0, 0, 0];
                t.call("prctl(PR_SET_SECUREBITS)", libc::SYS_prctl, &args);
                // The saved ids stay, and with them the way back.
                t.call(
                    "setresgid",
                    libc::SYS_setresgid,
                    &[keep, u64::from(who.gid), keep],
                );
                t.call(
                    "setresuid",
                    libc::SYS_setresuid,
                    &[keep, u64::from(who.uid), keep],
                );
            }
            let filled = fill(t, &there);
            if other {
                t.call("setresuid", libc::SYS_setresuid, &[keep, u64::from(uid), keep]);
                t.call("setresgid", libc::SYS_setresgid, &[keep, u64::from(gid), keep]);
            }
            if groups.is_some() {
                set_groups(t, &own);
            }
            for fd in &there {
                t.call("close", libc::SYS_close, &[*fd]);
            }
            filled
        })
    }

    /// A pair of sockets made by the process `who`.
    pub fn pair_by(&mut self, who: Option<&Who>, domain: i32, kind: i32) -> Result<(OwnedFd, OwnedFd)> {
        let Some(who) = who else {
            return sys::socket::pair(domain, kind, 0).on("socketpair", || "a pair of sockets");
        };
        let (ran, at) = self.act(who, &[], |t, _| {
            let at = t.space(8);
            t.call(
                "socketpair",
                libc::SYS_socketpair,
                &[domain as u64, kind as u64, 0, at],
            );
            at
        })?;
        let both = ran.word(at);
        let actor = if self.processes.contains_key(&who.pid) {
            who.pid
        } else {
            self.roots[0]
        };
        let (a, b) = (both as u32 as RawFd, (both >> 32) as u32 as RawFd);
        let pidfd = sys::pidfd_open(actor).on("pidfd_open", || format!("pid {actor}"))?;
        let take =
            |fd| sys::pidfd_getfd(pidfd.as_fd(), fd).on("pidfd_getfd", || format!("fd {fd} of {actor}"));
        let pair = (take(a)?, take(b)?);
        let close = |fd: RawFd| ("close", libc::SYS_close, [fd as u64, 0, 0, 0, 0, 0]);
        self.process(actor)?.play(&[close(a), close(b)])?;
        Ok(pair)
    }
}
