//! Calls that are made and interrupted once more, so that the kernel restarts them from a memory of its own.

use super::raw::{get_regs, set_mask, set_regs};
use super::regs::Regs;
use super::{Halt, Stopped, ptrace, wait};
use crate::error::Result;
use crate::ids::Range;
use crate::sys;
use nix::errno::Errno;
use std::time::Duration;

/// A call to be made and interrupted at once, so that the kernel has a memory of it again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replay {
    pub regs: Regs,
    /// Where in the thread's memory a time lies for as long as that takes, and which.
    pub time: Option<(u64, [u8; 16])>,
}

impl Stopped {
    /// Has a call made and interrupted before the thread is let go: it goes on with the registers it was amended to,
    /// which tell of a call that the kernel restarts from a memory of its own.
    pub fn set_replay(&mut self, replay: Replay) {
        self.replay = Some(replay);
    }

    /// Notes how long it had been asleep in the call it was found in.
    pub fn set_asleep(&mut self, asleep: Duration) {
        self.asleep = asleep;
    }

    /// How long it had been asleep in the call it was found in; zero where that is not known.
    pub fn asleep(&self) -> Duration {
        self.asleep
    }

    /// Makes that call and interrupts it at once; the thread is parked, before and after.
    ///
    /// A call that does not wait after all is made anew.
    pub fn replay(&mut self) -> Result<()> {
        // Where the program catches its calls itself, it is told of an interruption, as after a signal.
        let Some(Replay { regs, time }) = self.replay.take().filter(|_| self.dispatch[0] == 0) else {
            return Ok(());
        };
        let mut covered = [0; 16];
        if let Some((at, bytes)) = &time {
            let there = [Range::new(*at, at + 16)];
            sys::vm_read(self.tid, &there, &mut covered).map_err(|e| self.lost("process_vm_readv", e))?;
            sys::vm_write(self.tid, *at, bytes).map_err(|e| self.lost("process_vm_writev", e))?;
        }
        set_mask(self.tid, !0).map_err(|e| self.lost("ptrace(SETSIGMASK)", e))?;
        set_regs(self.tid, &regs).map_err(|e| self.lost("ptrace(SETREGSET)", e))?;
        let until = |request: u32, end: Halt| -> Result<()> {
            loop {
                ptrace(request, self.tid, 0, 0).map_err(|e| self.lost("ptrace(CONT)", e))?;
                match wait(self.tid)? {
                    halt if halt == end => return Ok(()),
                    Halt::Gone(_) => return Err(self.lost("wait", Errno::ESRCH)),
                    _ => {}
                }
            }
        };
        until(libc::PTRACE_SYSCALL, Halt::Signal(libc::SIGTRAP))?;
        ptrace(libc::PTRACE_INTERRUPT, self.tid, 0, 0).map_err(|e| self.lost("ptrace(INTERRUPT)", e))?;
        until(libc::PTRACE_CONT, Halt::Interrupted)?;
        let waited = get_regs(self.tid).map_err(|e| self.lost("ptrace(GETREGSET)", e))?;
        if !waited.restarts_by_block() {
            self.found = self.found.rewound();
        }
        if let Some((at, _)) = time {
            sys::vm_write(self.tid, at, &covered).map_err(|e| self.lost("process_vm_writev", e))?;
        }
        set_regs(self.tid, &self.found).map_err(|e| self.lost("ptrace(SETREGSET)", e))?;
        set_mask(self.tid, self.mask).map_err(|e| self.lost("ptrace(SETSIGMASK)", e))
    }
}
