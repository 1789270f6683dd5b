//! Waiting for a thread that was let go on for a tape or a step; not for ever, since somebody may freeze its control group.

use super::raw::{get_regs, get_siginfo, set_mask, set_siginfo};
use super::regs::Regs;
use super::{Halt, Pending, Stopped, ptrace, stuck, wait, wait_asleep, wait_awake};
use crate::error::{Context, Error, Result};
use crate::ids::Pid;
use crate::sys::deadline::Deadline;
use nix::errno::Errno;
use std::cell::Cell;
use std::time::Duration;

/// How long what has been let go on may take for some system calls, on a machine that is busy; not as long as somebody likes
/// to keep its control group frozen.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long it may take to halt when it is called back, or when another was late before.
const CALLED_BACK: Duration = Duration::from_millis(200);

thread_local! {
    /// Whether something was late that this thread traces.
    static LATE: Cell<bool> = const { Cell::new(false) };
}

/// Whether something was late that this thread traces: then nothing may be begun that needs an end.
pub(super) fn was_late() -> bool {
    LATE.get()
}

/// How long it may take to arrive.
pub(super) fn patience() -> Duration {
    if was_late() { CALLED_BACK } else { PATIENCE }
}

/// What a fault raises. The kernel hands these out in the order in which they came, blocked or not, as soon as one of them
/// is not (dequeue_synchronous_signal): a fault that was about to be told when the thread was halted comes before our step.
const FAULTS: [i32; 6] = [
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGILL,
    libc::SIGFPE,
    libc::SIGSYS,
    libc::SIGTRAP,
];

impl Stopped {
    /// Lets it run, or make one step.
    pub(super) fn resume(&self, step: bool) -> Result<()> {
        self.resume_with(step, 0)
    }

    /// The same with the signal before whose delivery it stands: one that is blocked goes back into its queue.
    fn resume_with(&self, step: bool, signal: i32) -> Result<()> {
        let request = if step {
            libc::PTRACE_SINGLESTEP
        } else {
            libc::PTRACE_CONT
        };
        ptrace(request, self.tid, 0, signal as u64)
            .map_err(|e| self.lost("ptrace(CONT)", e))
            .map(drop)
    }

    /// Queues a signal anew that was taken from the queue, in place of the one before whose delivery it stands. It halts where
    /// it is.
    fn queue_again(&self, signal: i32, info: &[u64; 16]) -> Result<()> {
        set_siginfo(self.tid, info).map_err(|e| self.lost("ptrace(SETSIGINFO)", e))?;
        set_mask(self.tid, !0).map_err(|e| self.lost("ptrace(SETSIGMASK)", e))?;
        ptrace(libc::PTRACE_INTERRUPT, self.tid, 0, 0).map_err(|e| self.lost("ptrace(INTERRUPT)", e))?;
        self.resume_with(false, signal)?;
        wait(self.tid).map(drop)
    }

    /// The stop signal that a tape has taken from the queue, where nothing blocks it, and that is still to take effect; 0 for none.
    /// A SIGCONT in the queue came later, or it would have been thrown away.
    pub(super) fn due(&self) -> Result<i32> {
        let ends = |p: Pending| p.0.starts_with(&libc::SIGCONT.to_ne_bytes());
        let ended = || -> Result<bool> {
            let all = [self.queued(true)?, self.queued(false)?];
            Ok(all.into_iter().flatten().any(ends))
        };
        Ok(match self.withheld != 0 && !ended()? {
            true => self.withheld,
            false => 0,
        })
    }

    /// The signals that wait for it (`shared` false) or for its whole process, in order.
    pub fn pending(&self, shared: bool) -> Result<Vec<Pending>> {
        let mut all = self.queued(shared)?;
        let due = if shared { 0 } else { self.due()? };
        if due != 0 {
            let mut info = vec![0; 128];
            info[..4].copy_from_slice(&due.to_ne_bytes());
            all.push(Pending(info));
        }
        Ok(all)
    }

    /// Puts a stop signal that was met on a tape back into the queue of a parked thread of process `pid`: from an event stop
    /// nothing is delivered when it is let go.
    pub fn give_back(&mut self, pid: Pid) -> Result<()> {
        let due = self.due()?;
        self.withheld = 0;
        match due {
            0 => Ok(()),
            signal => crate::sys::tgkill(pid, self.tid, signal).map_err(|e| self.lost("tgkill", e)),
        }
    }

    /// Waits, once it runs, until the signal `end` arrives at an instruction pointer of `at`.
    pub(super) fn arrive(&mut self, step: bool, end: i32, at: u64, within: Option<Duration>) -> Result<Regs> {
        self.arrive_where(step, end, |rip| rip == at, within)
    }

    /// Waits, once it runs, until the signal `end` arrives at an instruction pointer that is `there`.
    ///
    /// What is not there in time is called back. One that is frozen with a control group of version 2 halts for that. With one
    /// of version 1 it does not: amid a tape it is left to the frame by which that returns without us; amid a step, of which
    /// it would die without us, it is waited for all the same.
    pub(super) fn arrive_where(
        &mut self,
        step: bool,
        end: i32,
        there: impl Fn(u64) -> bool,
        within: Option<Duration>,
    ) -> Result<Regs> {
        let limit = |after| Deadline::new(after).on("timer_create", || "freeze itself");
        let mut limited = None;
        let mut called_back = false;
        // A trap of the program's own, which had to be taken from the queue to make room for that of our step.
        let mut own_trap = None;
        loop {
            let mut halt = wait_awake(self.tid)?;
            if halt.is_none() {
                // Most are there by now, and a limit takes three system calls of the pause.
                if limited.is_none() && !called_back {
                    limited = within.map(limit).transpose()?;
                }
                halt = wait_asleep(self.tid)?;
            }
            let halt = match halt {
                Some(halt) => halt,
                None if called_back => {
                    self.away = true;
                    return Err(self.late());
                }
                None => {
                    called_back = true;
                    LATE.set(true);
                    let _ = ptrace(libc::PTRACE_INTERRUPT, self.tid, 0, 0);
                    // The old one first: dropping it lifts the limit.
                    drop(limited.take());
                    limited = (!step).then(|| limit(CALLED_BACK)).transpose()?;
                    continue;
                }
            };
            let mut again = 0;
            match halt {
                Halt::Gone(status) => {
                    let how = match libc::WIFSIGNALED(status) {
                        true => format!(
                            "was ended by signal {} while it was stopped",
                            libc::WTERMSIG(status)
                        ),
                        false => "ended while it was stopped".into(),
                    };
                    return Err(Error::Died { pid: self.tid, how });
                }
                Halt::Signal(signal) if signal == end => {
                    let now = get_regs(self.tid).map_err(|e| self.lost("ptrace(GETREGSET)", e))?;
                    if there(now.rip) {
                        if let Some(info) = own_trap {
                            self.queue_again(signal, &info)?;
                        }
                        return Ok(now);
                    }
                    let info = get_siginfo(self.tid).map_err(|e| self.lost("ptrace(GETSIGINFO)", e))?;
                    if signal == libc::SIGTRAP && !is_of_a_step(&info, now.rip) {
                        own_trap = Some(info);
                    }
                }
                Halt::Signal(signal) if FAULTS.contains(&signal) && self.is_at(&there)? => again = signal,
                // SIGSTOP can't be blocked: it takes effect when the thread is let go.
                Halt::Signal(signal @ (libc::SIGSTOP | libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU)) => {
                    self.withheld = signal;
                }
                Halt::Signal(signal) => {
                    return Err(Error::Died {
                        pid: self.tid,
                        how: format!("met signal {signal} in the midst of a remote system call"),
                    });
                }
                Halt::Interrupted | Halt::Group(_) => {}
            }
            if called_back {
                return Err(self.late());
            }
            self.resume_with(step, again)?;
        }
    }

    fn is_at(&self, there: impl Fn(u64) -> bool) -> Result<bool> {
        let now = get_regs(self.tid).map_err(|e| self.lost("ptrace(GETREGSET)", e))?;
        Ok(there(now.rip))
    }

    /// It was let go on and did not.
    fn late(&self) -> Error {
        let object = format!(
            "thread {}{}: it does not run, as if it were frozen with its control group; thaw it and try again",
            self.tid,
            stuck(self.tid)
        );
        Error::kernel("waiting for a remote system call", object, Errno::ETIMEDOUT)
    }
}

/// Whether a SIGTRAP is that of a single step: TRAP_BRKPT after a system call, else TRAP_TRACE, and it tells where. What
/// was queued by sigqueue(3) under such a code has its sender there.
fn is_of_a_step(info: &[u64; 16], rip: u64) -> bool {
    matches!(info[1] as u32, 1 | 2) && info[2] == rip
}
