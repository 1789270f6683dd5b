//! The keeper: a process that sees to it that missing pages are never read as zeros, whatever becomes of who fills them.
//!
//! What a userfaultfd holds back reads as zeros once its last descriptor is closed, as it is when its process dies. The
//! keeper is a process of its own that shares its maker's *table* of descriptors (`CLONE_FILES`): the table outlives
//! the maker, and with it every userfaultfd, those of children forked meanwhile included. If the maker dies, or says that
//! it cannot go on, the keeper ends all processes it was told of. A child that it was not told of finds each page that it
//! still misses poisoned (SIGBUS), or waits for it for ever where the kernel knows no poison (before Linux 6.6). That may
//! be long after the maker has ended: after an alarm the maker must leave the userfaultfds open.
//!
//! It stands in a session of its own, takes no signals but SIGKILL, and makes system calls only.
#![allow(unsafe_code, reason = "a process that shares descriptors is made here")]

use super::{CloneArgs, Sys, missing, pidfd_open, plain, raw};
use crate::ids::Pid;
use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// Its name in /proc/PID/comm.
const NAME: &[u8; 16] = b"freeze-keeper\0\0\0";

/// A keeper at work. Dropping it dismisses it.
#[derive(Debug)]
pub struct Keeper {
    pid: Pid,
    pidfd: OwnedFd,
    alarm: OwnedFd,
    /// The keeper's copies of the numbers are in use as long as it lives.
    _kept: Vec<OwnedFd>,
    raised: bool,
}

impl Keeper {
    /// Sets a keeper on these processes.
    pub fn start(processes: &[Pid]) -> Sys<Keeper> {
        let kept: Vec<OwnedFd> = processes.iter().map(|p| pidfd_open(*p)).collect::<Sys<_>>()?;
        let maker = pidfd_open(Pid(std::process::id() as i32))?;
        let alarm = super::eventfd(libc::EFD_CLOEXEC)?;
        let numbers: Vec<RawFd> = kept.iter().map(AsRawFd::as_raw_fd).collect();
        let args = CloneArgs {
            flags: libc::CLONE_FILES as u64,
            ..CloneArgs::default()
        };
        let clone = [&raw const args as u64, size_of::<CloneArgs>() as u64, 0, 0, 0, 0];
        // SAFETY: without CLONE_VM the child has memory of its own and goes on here as after fork(2).
        let pid = unsafe { raw(libc::SYS_clone3, clone) }?;
        if pid == 0 {
            keep(maker.as_raw_fd(), alarm.as_raw_fd(), &numbers);
        }
        let pid = Pid(pid as i32);
        let pidfd = pidfd_open(pid)?;
        Ok(Keeper {
            pid,
            pidfd,
            alarm,
            _kept: kept.into_iter().chain([maker]).collect(),
            raised: false,
        })
    }

    /// Its pid.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Has it do what it would do if its maker died.
    pub fn alarm(&mut self) {
        self.raised = true;
        let _ = nix::unistd::write(&self.alarm, &1u64.to_ne_bytes());
    }

    /// Waits, after an alarm, until all that misses pages is gone, but for no longer than this.
    fn leave(&self) {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        use std::os::fd::AsFd;
        let mut fds = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut fds, PollTimeout::from(2000u16));
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        use nix::sys::wait::{WaitPidFlag, waitpid};
        use std::os::fd::AsFd;
        let flags = if self.raised {
            // It goes by itself when nobody misses anything any more.
            self.leave();
            WaitPidFlag::__WALL | WaitPidFlag::WNOHANG
        } else {
            let _ = super::pidfd_send_signal(self.pidfd.as_fd(), libc::SIGKILL);
            WaitPidFlag::__WALL
        };
        let _ = waitpid(self.pid.nix(), Some(flags));
    }
}

/// The keeper's life; system calls only, since locks of its maker's other threads may be held for ever here.
fn keep(maker: RawFd, alarm: RawFd, processes: &[RawFd]) -> ! {
    let all = u64::MAX;
    // SAFETY: a signal set of eight bytes and a name of sixteen.
    unsafe {
        let mask = [libc::SIG_SETMASK as u64, &raw const all as u64, 0, 8, 0, 0];
        let _ = raw(libc::SYS_rt_sigprocmask, mask);
        let name = [libc::PR_SET_NAME as u64, NAME.as_ptr() as u64, 0, 0, 0, 0];
        let _ = raw(libc::SYS_prctl, name);
    }
    let _ = plain(libc::SYS_setsid, [0; 6]);
    let mut fds = [maker, alarm].map(|fd| libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    });
    while fds.iter().all(|f| f.revents == 0) {
        wait_for(&mut fds, -1);
    }
    for fd in processes {
        let args = [*fd as u64, libc::SIGKILL as u64, 0, 0, 0, 0];
        let _ = plain(libc::SYS_pidfd_send_signal, args);
    }
    let mut maker = &mut fds[..1];
    while poison_all() {
        if maker.iter().any(|f| f.revents != 0) {
            // The table is ours alone: who waits for the end of the maker's output shall see it.
            for fd in 0..3 {
                let _ = plain(libc::SYS_close, [fd, 0, 0, 0, 0, 0]);
            }
            maker = &mut [];
        }
        wait_for(maker, 20);
    }
    let _ = plain(libc::SYS_exit_group, [0; 6]);
    loop {
        std::hint::spin_loop();
    }
}

fn wait_for(fds: &mut [libc::pollfd], timeout: i32) {
    let args = [fds.as_mut_ptr() as u64, fds.len() as u64, timeout as u64, 0, 0, 0];
    // SAFETY: the array is as long as is said.
    let _ = unsafe { raw(libc::SYS_poll, args) };
}

/// Poisons every page that somebody waits for; `false` once there is nobody left who misses any.
fn poison_all() -> bool {
    let path = c"/proc/self/fd";
    let flags = (libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC) as u64;
    let open = [libc::AT_FDCWD as u64, path.as_ptr() as u64, flags, 0, 0, 0];
    // SAFETY: a path that ends in a zero byte.
    let Ok(directory) = (unsafe { raw(libc::SYS_openat, open) }) else {
        // Who cannot look must not go: what is still missing would read as zeros.
        return true;
    };
    let directory = directory as u64;
    let mut left = false;
    let mut entries = [0u64; 512];
    loop {
        let size = size_of_val(&entries) as u64;
        let args = [directory, entries.as_mut_ptr() as u64, size, 0, 0, 0];
        // SAFETY: the buffer is as large as is said.
        let n = match unsafe { raw(libc::SYS_getdents64, args) } {
            Ok(0) => break,
            Ok(n) => n as usize,
            Err(_) => {
                left = true;
                break;
            }
        };
        let words = entries.map(u64::to_ne_bytes);
        for name in Names(&words.as_flattened()[..n]) {
            // Not a number: "." and "..".
            let number = std::str::from_utf8(name).ok().and_then(|n| n.parse().ok());
            left |= number.is_some_and(|n| is_uffd(name) && poison_waited_for(n));
        }
    }
    let _ = plain(libc::SYS_close, [directory, 0, 0, 0, 0, 0]);
    left
}

/// The same for one userfaultfd.
fn poison_waited_for(number: RawFd) -> bool {
    // SAFETY: it was open a moment ago, and what became of it since does no harm to what is asked below.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    let mut left = false;
    while let Ok(fault) = missing::read_fault(fd) {
        let Some(at) = fault else {
            // A fork, perhaps: the child's descriptor is found by the next look.
            left = true;
            continue;
        };
        if let Err(Errno::EAGAIN | Errno::EEXIST) = missing::poison(fd, at) {
            // It is there, or another message must be read first: who waits looks again, and asks again.
            missing::wake(fd, at);
        }
    }
    // The maker may have read of some and answered nobody. Only after what was still unread: who is woken takes a while
    // to ask again, and before that moment there is nothing to be read.
    missing::wake_all(fd);
    left || missing::is_alive(fd)
}

/// The names in a buffer of `struct linux_dirent64`.
struct Names<'a>(&'a [u8]);

impl<'a> Iterator for Names<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        /// Of the inode and the position before the length of an entry; of these and its type before its name.
        const LEN: usize = 16;
        const NAME: usize = 19;
        let len = usize::from(u16::from_ne_bytes(self.0.get(LEN..LEN + 2)?.try_into().ok()?));
        let (entry, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        entry.get(NAME..)?.split(|b| *b == 0).next()
    }
}

/// Whether a descriptor is a userfaultfd, found without allocating.
fn is_uffd(number: &[u8]) -> bool {
    const PREFIX: &[u8] = b"/proc/self/fd/";
    const LINK: &[u8] = b"anon_inode:[userfaultfd]";
    let mut path = [0u8; 32];
    let end = PREFIX.len() + number.len();
    if end >= path.len() {
        return false;
    }
    path[..PREFIX.len()].copy_from_slice(PREFIX);
    path[PREFIX.len()..end].copy_from_slice(number);
    let mut link = [0u8; 64];
    let args = [
        path.as_ptr() as u64,
        link.as_mut_ptr() as u64,
        link.len() as u64,
        0,
        0,
        0,
    ];
    // SAFETY: a path that ends in a zero byte, and a buffer as large as is said.
    unsafe { raw(libc::SYS_readlink, args) }.is_ok_and(|n| &link[..n as usize] == LINK)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;
    use std::time::Duration;

    #[test]
    fn an_alarm_ends_who_is_kept() {
        let mut kept = Command::new("sleep").arg("300").spawn().unwrap();
        let mut keeper = Keeper::start(&[Pid(kept.id() as i32)]).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        assert!(kept.try_wait().unwrap().is_none());
        keeper.alarm();
        assert!(!kept.wait().unwrap().success());
    }

    #[test]
    fn dismissed_it_leaves_them_alone() {
        let mut kept = Command::new("sleep").arg("300").spawn().unwrap();
        drop(Keeper::start(&[Pid(kept.id() as i32)]).unwrap());
        assert!(kept.try_wait().unwrap().is_none());
        kept.kill().unwrap();
        kept.wait().unwrap();
    }

    #[test]
    fn a_userfaultfd_is_known_by_its_link() {
        assert!(!is_uffd(b"0") && !is_uffd(b".") && !is_uffd(&[b'1'; 40]));
        if let Ok(fd) = missing::own() {
            assert!(is_uffd(fd.as_raw_fd().to_string().as_bytes()));
        }
    }
}
