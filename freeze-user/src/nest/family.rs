//! Who is whose child, in which session and group: what decides how processes are forked.

use crate::ids::Pid;
use serde::{Deserialize, Serialize};

/// The kinship of one process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Family {
    pub pid: Pid,
    /// Its parent; for a root that is whoever restores it.
    pub parent: Pid,
    pub pgid: Pid,
    pub sid: Pid,
    /// Whether its parent lies outside the checkpoint.
    pub root: bool,
    /// Its threads other than the leader.
    pub tids: Vec<Pid>,
    /// For a zombie, the status its parent will get from wait(2).
    pub ended: Option<i32>,
    /// The signal its parent gets when it ends; 0 for none.
    #[serde(default = "sigchld")]
    pub exit_signal: i32,
    /// Tables it shares with another process.
    #[serde(default)]
    pub shares: Option<Shares>,
    /// What is still to be seen of a zombie.
    #[serde(default)]
    pub remains: Option<Remains>,
    /// Children that were continued after a stop, which it has not asked for yet (wait(2), WCONTINUED).
    #[serde(default)]
    pub continued: Vec<Pid>,
}

/// Tables that a process got by clone(2) and has kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shares {
    /// Whose they are: its parent's, or those of an elder child of the same parent.
    pub with: Pid,
    /// Flags of clone(2).
    pub tables: u64,
}

/// What a process that has ended leaves for others to see.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remains {
    pub uid: [u32; 4],
    pub gid: [u32; 4],
    pub name: Vec<u8>,
}

fn sigchld() -> i32 {
    libc::SIGCHLD
}

impl Family {
    /// The session it must be forked in, or `None` where any will do; `open` are those in which its parent once was.
    ///
    /// A session leader can be forked anywhere, unless a child of its own was forked before it called setsid(2). A
    /// child in a session that is not open has come to it otherwise.
    pub fn born_in(&self, families: &[Family], open: &[Pid]) -> Option<Pid> {
        if self.sid != self.pid {
            return Some(self.sid);
        }
        families
            .iter()
            .filter(|f| !f.root && f.parent == self.pid)
            .find_map(|f| f.born_in(families, open).filter(|s| open.contains(s)))
    }
}

/// The session of freeze itself.
pub fn own_session() -> Pid {
    Pid(nix::unistd::getsid(None).map_or(0, |p| p.as_raw()))
}

/// Whether no process has this number, so that it can be had for an interim leader.
pub fn free(pid: Pid) -> bool {
    pid.0 > 1
        && !std::path::Path::new(&format!("/proc/{pid}")).exists()
        && !group_exists(pid)
        && !session_exists(pid)
}

/// Whether some process is in the group `pgid`.
pub fn group_exists(pgid: Pid) -> bool {
    nix::sys::signal::killpg(pgid.nix(), None) != Err(nix::errno::Errno::ESRCH)
}

/// Whether some process is in the session `sid`.
fn session_exists(sid: Pid) -> bool {
    crate::observe::view::all_pids()
        .unwrap_or_default()
        .iter()
        .any(|p| nix::unistd::getsid(Some(p.nix())).is_ok_and(|s| s.as_raw() == sid.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(pid: i32, parent: i32, sid: i32) -> Family {
        Family {
            pid: Pid(pid),
            parent: Pid(parent),
            pgid: Pid(sid),
            sid: Pid(sid),
            root: false,
            tids: vec![],
            ended: None,
            exit_signal: libc::SIGCHLD,
            shares: None,
            remains: None,
            continued: vec![],
        }
    }

    #[test]
    fn a_leader_is_born_where_its_eldest_was() {
        let all = [one(10, 1, 10), one(11, 10, 10), one(12, 10, 12), one(13, 12, 10)];
        assert_eq!(all[0].born_in(&all, &[Pid(1)]), None);
        assert_eq!(all[1].born_in(&all, &[Pid(10)]), Some(Pid(10)));
        assert_eq!(
            all[2].born_in(&all, &[Pid(10)]),
            Some(Pid(10)),
            "13 was forked before 12 made its session"
        );
        let orphan = [one(10, 1, 10), one(11, 10, 9)];
        assert_eq!(
            orphan[0].born_in(&orphan, &[Pid(1)]),
            None,
            "11 was given to 10 when its parent in session 9 had ended"
        );
    }
}
