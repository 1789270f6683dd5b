//! A time limit on the blocking calls of one thread: from then on they are interrupted, again and again.
#![allow(unsafe_code, reason = "timers and signal handlers have their address here")]

use super::raw;
use std::cell::Cell;
use std::sync::Once;
use std::time::{Duration, Instant};

thread_local! {
    static LIMIT: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// The signal that interrupts; nothing else in freeze uses it.
fn signal() -> i32 {
    libc::SIGRTMIN() + 3
}

extern "C" fn nothing(_: i32) {}

/// While this lives, calls of this thread that block past the limit end with EINTR, and [`passed`] says so.
#[derive(Debug)]
pub struct Deadline {
    timer: i32,
}

impl Deadline {
    /// A limit `after` from now.
    pub fn new(after: Duration) -> nix::Result<Deadline> {
        static HANDLER: Once = Once::new();
        HANDLER.call_once(|| {
            // Without SA_RESTART, so that the call it interrupts comes back.
            // SAFETY: the handler does nothing, and a zeroed sigaction is a valid one.
            unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = nothing as *const () as usize;
                libc::sigaction(signal(), &raw const action, std::ptr::null_mut());
            }
        });
        // struct sigevent: value, signal, SIGEV_THREAD_ID, thread.
        let tid = nix::unistd::gettid().as_raw();
        let mut event = [0u32; 16];
        event[2] = signal() as u32;
        event[3] = libc::SIGEV_THREAD_ID as u32;
        event[4] = tid as u32;
        let mut timer = 0i32;
        let clock = libc::CLOCK_MONOTONIC as u64;
        // SAFETY: `event` is a struct sigevent (64 bytes), `timer` the int it writes.
        unsafe {
            raw(
                libc::SYS_timer_create,
                [clock, event.as_ptr() as u64, &raw mut timer as u64, 0, 0, 0],
            )?
        };
        // Again every 100 ms: a first signal may fall just before the call that blocks.
        let spec = [
            0,
            100_000_000,
            after.as_secs() as i64,
            i64::from(after.subsec_nanos()),
        ];
        // SAFETY: `spec` is a struct itimerspec.
        unsafe {
            raw(
                libc::SYS_timer_settime,
                [timer as u64, 0, spec.as_ptr() as u64, 0, 0, 0],
            )?
        };
        LIMIT.set(Some(Instant::now() + after));
        Ok(Deadline { timer })
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        LIMIT.set(None);
        // SAFETY: no pointers.
        let _ = unsafe { raw(libc::SYS_timer_delete, [self.timer as u64, 0, 0, 0, 0, 0]) };
    }
}

/// Whether this thread has a limit that has passed.
pub fn passed() -> bool {
    LIMIT.get().is_some_and(|limit| Instant::now() >= limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blocking_call_comes_back() {
        let limit = Deadline::new(Duration::from_millis(30)).unwrap();
        let (read, _write) = nix::unistd::pipe().unwrap();
        assert!(!passed());
        assert_eq!(nix::unistd::read(&read, &mut [0]), Err(nix::errno::Errno::EINTR));
        assert!(passed());
        drop(limit);
        assert!(!passed());
    }
}
