//! Processes that have ended: what their pidfds still tell, and stand-ins for them.

use super::{Sys, ioctl_bytes};
use crate::error::errno;
use crate::ids::Pid;
use nix::errno::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The status, as wait(2) tells it, of a process that has ended (PIDFD_GET_INFO with PIDFD_INFO_EXIT, Linux 6.15).
pub fn status(pidfd: &OwnedFd) -> Sys<i32> {
    const PIDFD_INFO_EXIT: u64 = 1 << 3;
    // struct pidfd_info: mask, cgroup, then 32-bit words, of which the last of the first 64 bytes is the status.
    let mut info = [0u8; 64];
    info[..8].copy_from_slice(&PIDFD_INFO_EXIT.to_ne_bytes());
    // _IOWR(0xff, 11, struct pidfd_info), whose first published size is 64 bytes.
    const PIDFD_GET_INFO: u64 = 3 << 30 | 64 << 16 | 0xff << 8 | 11;
    ioctl_bytes(pidfd.as_fd(), PIDFD_GET_INFO, &mut info)?;
    let [mask, .., last] =
        std::array::from_fn::<u64, 8, _>(|n| u64::from_ne_bytes(std::array::from_fn(|b| info[8 * n + b])));
    if mask & PIDFD_INFO_EXIT == 0 {
        return Err(Errno::ENODATA);
    }
    Ok((last >> 32) as i32)
}

/// A child that has a certain pid, told by the number that it has for us, and does nothing; it ends when this is dropped.
#[derive(Debug)]
pub struct StandIn(Pid);

impl StandIn {
    /// EEXIST if somebody has the pid.
    pub fn new(pid: Pid) -> Sys<StandIn> {
        super::spawn_blank(&[pid.0], 0).map(StandIn)
    }

    /// The same with a pid of another pid namespace, ours or one below.
    pub fn within(space: BorrowedFd<'_>, pid: Pid) -> Sys<StandIn> {
        let own = std::fs::File::open("/proc/self/ns/pid").map_err(errno)?;
        super::ns::setns(space, libc::CLONE_NEWPID)?;
        let made = StandIn::new(pid);
        // Whose children are born elsewhere must not go on.
        if super::ns::setns(own.as_fd(), libc::CLONE_NEWPID).is_err() {
            std::process::abort();
        }
        made
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        // SAFETY: our own child, not yet waited for.
        unsafe {
            libc::kill(self.0.0, libc::SIGKILL);
            libc::waitpid(self.0.0, std::ptr::null_mut(), 0);
        }
    }
}

/// A child that has ended with a certain status, and is waited for when this is dropped.
#[derive(Debug)]
pub struct Ended {
    pid: libc::pid_t,
}

impl Ended {
    /// Makes one and sees it end.
    pub fn new(status: i32) -> Sys<Ended> {
        // SAFETY: in the child only system calls follow, none of which needs a lock another thread may hold.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            // SAFETY: plain numbers.
            unsafe {
                let signal = libc::WTERMSIG(status);
                if signal != 0 {
                    // Without a core of what is a copy of freeze, whatever the signal.
                    libc::syscall(libc::SYS_prctl, libc::PR_SET_DUMPABLE, 0, 0, 0, 0);
                    libc::signal(signal, libc::SIG_DFL);
                    let none = 0u64;
                    libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const none, 0, 8);
                    libc::kill(libc::getpid(), signal);
                }
                libc::_exit(libc::WEXITSTATUS(status));
            }
        }
        if pid < 0 {
            return Err(Errno::last());
        }
        let ended = Ended { pid };
        // SAFETY: an all-zero siginfo_t is a valid one, and the call writes one.
        unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            let flags = libc::WEXITED | libc::WNOWAIT;
            Errno::result(libc::waitid(libc::P_PID, pid as libc::id_t, &raw mut info, flags))?;
        }
        Ok(ended)
    }

    /// Its pid, which nobody else gets before this is dropped.
    pub fn pid(&self) -> Pid {
        Pid(self.pid)
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        // SAFETY: our own child, not yet waited for.
        unsafe { libc::waitpid(self.pid, std::ptr::null_mut(), 0) };
    }
}
