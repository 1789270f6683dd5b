//! A whole process at a halt: all its threads, its scratch mapping, and the way to run tapes in it.

use super::tape::{Ran, Scratch, Tape};
use super::{SUSPEND_SECCOMP, Stopped};
use crate::error::{Context, Error, Result};
use crate::ids::Pid;
use crate::observe::view::ProcessView;
use crate::sys;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// How many pages of calls and data a scratch mapping has for a checkpoint.
const SCRATCH_PAGES: u64 = 16;

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
    /// Connections that must end without a word if the process is ended: they go on elsewhere.
    silent: Vec<OwnedFd>,
    /// Descriptors of freeze's own that are looked at as if they were its.
    lent: Vec<OwnedFd>,
}

impl StoppedProcess {
    /// Takes charge of a process whose live threads are `threads`, as `view` was read while they stood still.
    pub fn new(view: ProcessView, threads: Vec<Stopped>) -> Result<StoppedProcess> {
        let pid = view.pid;
        let pidfd = sys::pidfd_open(pid).on("pidfd_open", || format!("pid {pid}"))?;
        Ok(StoppedProcess {
            view,
            threads,
            scratch: None,
            played: 0,
            pidfd,
            silent: Vec::new(),
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

    /// Its threads, to be amended.
    pub fn threads_mut(&mut self) -> &mut [Stopped] {
        &mut self.threads
    }

    /// A duplicate of one of its descriptors.
    pub fn fd(&self, fd: i32) -> Result<OwnedFd> {
        if let Some(lent) = self.lent.iter().find(|l| l.as_raw_fd() == fd) {
            return lent.try_clone().on("fcntl(F_DUPFD)", || format!("fd {fd} of freeze"));
        }
        sys::pidfd_getfd(self.pidfd.as_fd(), fd).on("pidfd_getfd", || format!("fd {fd} of {}", self.pid()))
    }

    /// Lets a description that no process holds be collected with this one; its number must be none of this process's.
    pub fn lend(&mut self, own: OwnedFd) {
        self.lent.push(own);
    }

    /// Makes sure that a TCP connection ends without a word if the process is ended by [`StoppedProcess::kill`].
    pub fn silence(&mut self, connection: OwnedFd) {
        self.silent.push(connection);
    }

    /// Runs a tape on its first thread.
    pub fn tape<R>(&mut self, fill: impl FnOnce(&mut Tape<'_>) -> R) -> Result<(Ran, R)> {
        self.tape_on(0, fill)
    }

    /// Runs a tape on its thread number `index`.
    pub fn tape_on<R>(&mut self, index: usize, fill: impl FnOnce(&mut Tape<'_>) -> R) -> Result<(Ran, R)> {
        if self.scratch.is_none() {
            let pid = self.pid();
            let Some(first) = self.threads.first_mut() else {
                return Err(Error::Died {
                    pid,
                    how: "has no thread left".into(),
                });
            };
            let scratch = Scratch::map(first, pid, &self.view.vmas, &self.view.status, SCRATCH_PAGES)?;
            self.scratch = Some(scratch);
        }
        // The frame by which a thread would return without us lies in the mapping that all share.
        if self.played != index {
            self.threads[self.played].park()?;
            self.played = index;
        }
        let scratch = self.scratch.as_ref().expect("mapped just above");
        let thread = &mut self.threads[index];
        if self
            .view
            .threads
            .iter()
            .any(|t| t.tid == thread.tid() && t.status.seccomp != 0)
        {
            thread.options(SUSPEND_SECCOMP)?;
        }
        let mut tape = scratch.tape();
        let filled = fill(&mut tape);
        let ran = tape.run(thread)?;
        Ok((ran, filled))
    }

    /// Removes the scratch mapping and brings every thread into a stop from which it would go on by itself.
    pub fn park(&mut self) -> Result<()> {
        // Nobody may stand on the mapping when it goes.
        self.threads.iter_mut().skip(1).try_for_each(Stopped::park)?;
        if let (Some(scratch), Some(first)) = (self.scratch.take(), self.threads.first_mut()) {
            scratch.unmap(first)?;
        }
        self.threads.iter_mut().try_for_each(Stopped::park)
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
