//! A whole process at a halt: all its threads, its scratch mapping, and the way to run tapes in it.

use super::tape::{Ran, Scratch, Tape};
use super::{SUSPEND_SECCOMP, Stopped, park_all, play_all};
use crate::error::{Context, Error, Result};
use crate::ids::{Pid, Range};
use crate::observe::view::ProcessView;
use crate::sys;
use crate::sys::wire::{self, Held};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// How many pages of calls and data a scratch mapping has for a checkpoint.
const SCRATCH_PAGES: u64 = 16;

/// How many of them one of many threads has, when all play at the same time; and how many threads do.
const LANE_PAGES: u64 = 8;
const LANES: u64 = 64;

/// A process whose threads all stand still. Dropping it removes the scratch mapping and lets every thread go on as found.
#[derive(Debug)]
pub struct StoppedProcess {
    pub view: ProcessView,
    /// The leader first, if it has not ended.
    threads: Vec<Stopped>,
    scratch: Option<Scratch>,
    /// Which thread stands at the end of the last tape.
    played: usize,
    pidfd: OwnedFd,
    /// Of the thread that has the descriptors, if the first has ended.
    speaker: Option<OwnedFd>,
    /// Connections that must end without a word if the process is ended: they go on elsewhere.
    silent: Vec<OwnedFd>,
    /// Wires that are held shut, and by which name for good if the process is ended.
    wires: Option<(Held, String)>,
    /// Descriptors of freeze's own that are looked at as if they were its.
    lent: Vec<OwnedFd>,
}

impl StoppedProcess {
    /// Takes charge of a process whose live threads are `threads`, as `view` was read while they stood still.
    pub fn new(view: ProcessView, threads: Vec<Stopped>) -> Result<StoppedProcess> {
        let pid = view.pid;
        let pidfd = sys::pidfd_open(pid).on("pidfd_open", || format!("pid {pid}"))?;
        let speaker = match view.speaker {
            by if by == pid => None,
            by => Some(sys::pidfd_open_thread(by).on("pidfd_open(PIDFD_THREAD)", || format!("thread {by}"))?),
        };
        Ok(StoppedProcess {
            view,
            threads,
            scratch: None,
            played: 0,
            pidfd,
            speaker,
            silent: Vec::new(),
            wires: None,
            lent: Vec::new(),
        })
    }

    /// Its process id.
    pub fn pid(&self) -> Pid {
        self.view.pid
    }

    /// Its threads.
    pub fn threads(&self) -> &[Stopped] {
        &self.threads
    }

    /// Where its scratch mapping lies, if it has one by now.
    pub fn scratch(&self) -> Option<Range> {
        self.scratch.as_ref().map(Scratch::range)
    }

    /// Its threads, to be amended.
    pub fn threads_mut(&mut self) -> &mut [Stopped] {
        &mut self.threads
    }

    /// A duplicate of one of its descriptors.
    pub fn fd(&self, fd: i32) -> Result<OwnedFd> {
        if let Some(lent) = self.lent.iter().find(|l| l.as_raw_fd() == fd) {
            return lent
                .try_clone()
                .on("fcntl(F_DUPFD)", || format!("fd {fd} of freeze"));
        }
        let pidfd = self.speaker.as_ref().unwrap_or(&self.pidfd);
        sys::pidfd_getfd(pidfd.as_fd(), fd).on("pidfd_getfd", || format!("fd {fd} of {}", self.pid()))
    }

    /// Lets a description that no process holds be collected with this one; its number must be none of this process's.
    pub fn lend(&mut self, own: OwnedFd) {
        self.lent.push(own);
    }

    /// Makes sure that a TCP connection ends without a word if the process is ended by [`StoppedProcess::kill`].
    pub fn silence(&mut self, connection: OwnedFd) {
        self.silent.push(connection);
    }

    /// Holds the wire of a connection shut: until the process is let go, or, by the name `name`, until it is restored if
    /// it is ended by [`StoppedProcess::kill`].
    pub fn hold(&mut self, name: &str, ends: wire::Ends) -> Result<()> {
        let what = || format!("the connection from {} to {}", ends.local, ends.remote);
        let (held, _) = match &mut self.wires {
            Some(wires) => wires,
            none => {
                let own = format!("freeze-now-{}-{}", std::process::id(), self.view.pid);
                let held = Held::new(own).on("socket(NETLINK_NETFILTER)", what)?;
                none.insert((held, name.to_owned()))
            }
        };
        held.add(ends).on("holding the wire shut (nf_tables)", what)
    }

    /// Runs a tape on its first thread.
    pub fn tape<R>(&mut self, fill: impl FnOnce(&mut Tape<'_>) -> R) -> Result<(Ran, R)> {
        self.tape_on(0, fill)
    }

    /// Runs a tape on each of its threads, many at the same time.
    pub fn tape_each<R>(&mut self, mut fill: impl FnMut(usize, &mut Tape<'_>) -> R) -> Result<Vec<(Ran, R)>> {
        if self.threads.len() == 1 {
            return Ok(vec![self.tape(|t| fill(0, t))?]);
        }
        self.map_scratch()?;
        for n in 0..self.threads.len() {
            self.suspend_seccomp(n)?;
        }
        self.threads[self.played].park()?;
        let lanes = self
            .scratch
            .as_ref()
            .map(|s| s.lanes(LANE_PAGES))
            .unwrap_or_default();
        let mut out = Vec::with_capacity(self.threads.len());
        for some in self.threads.chunks_mut(lanes.len()) {
            let before = out.len();
            out.extend(play_all(some, &lanes, &mut |n, t| fill(before + n, t))?);
            // The frames by which they would return without us lie where the next ones will have theirs.
            park_all(some)?;
        }
        Ok(out)
    }

    fn map_scratch(&mut self) -> Result<()> {
        if self.scratch.is_none() {
            let pid = self.pid();
            self.suspend_seccomp(0)?;
            let many = self.threads.len() as u64;
            let Some(first) = self.threads.first_mut() else {
                return Err(Error::Died {
                    pid,
                    how: "has no thread left".into(),
                });
            };
            let pages = SCRATCH_PAGES.max(LANES.min(many) * LANE_PAGES);
            let scratch = Scratch::map(first, pid, &self.view.vmas, &self.view.status, pages)?;
            self.scratch = Some(scratch);
        }
        Ok(())
    }

    /// Runs a tape on its thread number `index`.
    pub fn tape_on<R>(&mut self, index: usize, fill: impl FnOnce(&mut Tape<'_>) -> R) -> Result<(Ran, R)> {
        self.map_scratch()?;
        // The frame by which a thread would return without us lies in the mapping that all share.
        if self.played != index {
            self.threads[self.played].park()?;
            self.played = index;
        }
        self.suspend_seccomp(index)?;
        let scratch = self.scratch.as_ref().expect("mapped just above");
        let thread = &mut self.threads[index];
        let mut tape = scratch.tape();
        let filled = fill(&mut tape);
        let ran = tape.run(thread)?;
        Ok((ran, filled))
    }

    /// Lets our calls pass whatever filters a thread has; they bite again once it is let go.
    fn suspend_seccomp(&self, index: usize) -> Result<()> {
        let Some(thread) = self.threads.get(index) else {
            return Ok(());
        };
        let mut views = self.view.threads.iter();
        match views.any(|t| t.tid == thread.tid() && t.status.seccomp != 0) {
            true => thread.options(SUSPEND_SECCOMP),
            false => Ok(()),
        }
    }

    /// Removes the scratch mapping and brings every thread into a stop from which it would go on by itself.
    pub fn park(&mut self) -> Result<()> {
        // Nobody may stand on the mapping when it goes.
        if let Some((_, others)) = self.threads.split_first_mut() {
            park_all(others)?;
        }
        if let (Some(scratch), Some(first)) = (self.scratch.take(), self.threads.first_mut()) {
            scratch.unmap(first)?;
        }
        park_all(&mut self.threads)
    }

    /// Lets every thread go on.
    pub fn release(mut self) -> Result<()> {
        self.park()?;
        let mut first = Ok(());
        for thread in std::mem::take(&mut self.threads) {
            first = first.and(thread.release());
        }
        first
    }

    /// Ends it with SIGKILL; only `stop` calls this, with a proof that its image is committed.
    pub fn kill(&self) -> Result<()> {
        if let Some((held, name)) = &self.wires {
            held.keep(name)
                .on("holding the wire shut (nf_tables)", || name.clone())?;
        }
        for connection in &self.silent {
            sys::tcp::silence(connection.as_fd()).on("setsockopt(TCP_REPAIR)", || {
                format!("a connection of {}", self.pid())
            })?;
        }
        sys::pidfd_send_signal(self.pidfd.as_fd(), libc::SIGKILL).on("kill", || format!("pid {}", self.pid()))
    }
}

impl Drop for StoppedProcess {
    fn drop(&mut self) {
        // The threads' own destructors let them go; what fails here failed because the process has ended.
        let _ = self.park();
    }
}
