//! What epoll, timer, terminal and watch descriptors need of the kernel that nix does not wrap.
#![allow(unsafe_code, reason = "raw system calls have their address here")]

use super::{Sys, plain, raw};
use crate::ids::Pid;
use nix::errno::Errno;
use std::ffi::CString;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Whether descriptor `fd` of `pid` is the file that an epoll instance watches under the number `number`.
///
/// The instance is descriptor `epoll` of `holder`; `nth` counts its entries with the same number, in the order of
/// fdinfo. [`Errno::ENOENT`] if there is no such entry (any more).
pub fn epoll_watches(holder: Pid, epoll: RawFd, number: RawFd, nth: u32, pid: Pid, fd: RawFd) -> Sys<bool> {
    const KCMP_EPOLL_TFD: u64 = 7;
    let slot = [epoll as u32, number as u32, nth];
    // SAFETY: `slot` is a struct kcmp_epoll_slot.
    let order = unsafe {
        raw(
            libc::SYS_kcmp,
            [
                pid.0 as u64,
                holder.0 as u64,
                KCMP_EPOLL_TFD,
                fd as u64,
                slot.as_ptr() as u64,
                0,
            ],
        )?
    };
    Ok(order == 0)
}

/// One file to be watched.
#[derive(Debug)]
pub struct Watch<'a> {
    pub file: BorrowedFd<'a>,
    /// The descriptor number the watch goes by.
    pub number: RawFd,
    pub events: u32,
    pub data: u64,
    /// A writer to the pipe that `file` reads, where that is empty.
    pub nudge: Option<OwnedFd>,
}

/// The bits of `events` that are left of an EPOLLONESHOT entry that has fired.
const SPENT: u32 = (libc::EPOLLONESHOT | libc::EPOLLET | libc::EPOLLWAKEUP | libc::EPOLLEXCLUSIVE) as u32;

impl Watch<'_> {
    /// Whether it is an EPOLLONESHOT entry that has fired; the kernel adds EPOLLERR and EPOLLHUP to all others.
    pub fn is_spent(&self) -> bool {
        self.events & !SPENT == 0
    }
}

/// Makes an epoll instance watch files, each under its own descriptor number.
///
/// The kernel ties an entry to the file and to its number in the table of the caller. So this is done by a thread
/// with a table of its own, in which every number can be had. Returns the numbers of spent entries that could not be
/// brought to fire, since their files are ready for nothing; those are armed for errors and hang-up.
pub fn epoll_watch(epoll: BorrowedFd<'_>, watches: &[Watch<'_>]) -> Sys<Vec<RawFd>> {
    let own_table = || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_FILES)?;
        fill_epoll(epoll.as_raw_fd(), watches)
    };
    // No state of the thread but its table differs, and that ends with it.
    std::thread::scope(|s| s.spawn(own_table).join()).map_err(|_| Errno::ECANCELED)?
}

fn fill_epoll(epoll: RawFd, watches: &[Watch<'_>]) -> Sys<Vec<RawFd>> {
    let above = watches.iter().map(|w| w.number).max().unwrap_or(0) + 1;
    let numbers: std::collections::BTreeSet<RawFd> = watches.iter().map(|w| w.number).collect();
    // What lies at a number that is about to be taken moves out of the way first.
    let aside = |fd: RawFd| match numbers.contains(&fd) {
        true => plain(
            libc::SYS_fcntl,
            [fd as u64, libc::F_DUPFD_CLOEXEC as u64, above as u64, 0, 0, 0],
        )
        .map(|n| n as RawFd),
        false => Ok(fd),
    };
    let epoll = aside(epoll)?;
    let mut moved = Vec::with_capacity(watches.len());
    for w in watches {
        let nudge = w.nudge.as_ref().map(|n| aside(n.as_raw_fd())).transpose()?;
        moved.push((w, aside(w.file.as_raw_fd())?, nudge));
    }
    let mut stuck = Vec::new();
    // Spent ones first: while nothing else is watched, whatever is reported is one of them.
    for (w, file, nudge) in moved.iter().filter(|(w, ..)| w.is_spent()) {
        let all = (libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLPRI | libc::EPOLLRDHUP) as u32;
        add(epoll, *file, w.number, w.events | all, w.data)?;
        if !take_one(epoll)? {
            let nudged = nudge.is_some_and(|to| {
                let byte = [0u8; 1];
                let args = [to as u64, byte.as_ptr() as u64, 1, 0, 0, 0];
                // SAFETY: one byte from a live buffer.
                unsafe { raw(libc::SYS_write, args) }.is_ok()
            });
            if nudged {
                let fired = take_one(epoll);
                let mut back = [0u8; 1];
                // SAFETY: one byte, just written, into a live buffer.
                unsafe {
                    raw(
                        libc::SYS_read,
                        [*file as u64, back.as_mut_ptr() as u64, 1, 0, 0, 0],
                    )?
                };
                if fired? {
                    continue;
                }
            }
            stuck.push(w.number);
            set(epoll, libc::EPOLL_CTL_MOD, w.number, w.events, w.data)?;
        }
    }
    for (w, file, _) in moved.iter().filter(|(w, ..)| !w.is_spent()) {
        add(epoll, *file, w.number, w.events, w.data)?;
    }
    Ok(stuck)
}

fn add(epoll: RawFd, file: RawFd, number: RawFd, events: u32, data: u64) -> Sys<()> {
    if file != number {
        plain(
            libc::SYS_dup3,
            [file as u64, number as u64, libc::O_CLOEXEC as u64, 0, 0, 0],
        )?;
    }
    set(epoll, libc::EPOLL_CTL_ADD, number, events, data)
}

fn set(epoll: RawFd, how: i32, number: RawFd, events: u32, data: u64) -> Sys<()> {
    let event = libc::epoll_event { events, u64: data };
    // SAFETY: the call reads one struct epoll_event.
    unsafe {
        raw(
            libc::SYS_epoll_ctl,
            [
                epoll as u64,
                how as u64,
                number as u64,
                &raw const event as u64,
                0,
                0,
            ],
        )
        .map(drop)
    }
}

fn take_one(epoll: RawFd) -> Sys<bool> {
    let mut event = libc::epoll_event { events: 0, u64: 0 };
    // SAFETY: room for the one event that is asked for.
    let n = unsafe {
        raw(
            libc::SYS_epoll_wait,
            [epoll as u64, &raw mut event as u64, 1, 0, 0, 0],
        )?
    };
    Ok(n == 1)
}

/// ioctl(2) with a number behind a pointer.
pub fn ioctl_word(fd: BorrowedFd<'_>, request: u64, word: u64) -> Sys<()> {
    // SAFETY: used with requests documented to read at most eight bytes.
    unsafe {
        raw(
            libc::SYS_ioctl,
            [fd.as_raw_fd() as u64, request, &raw const word as u64, 0, 0, 0],
        )
        .map(drop)
    }
}

/// The settings of a terminal, `struct termios` of the kernel: 36 bytes, or 44 with both speeds.
pub type Termios = [u8; 44];

/// TCGETS2.
pub fn termios(fd: BorrowedFd<'_>) -> Sys<Termios> {
    let mut out = [0; 44];
    // SAFETY: the call writes a struct termios2, which has 44 bytes.
    unsafe {
        raw(
            libc::SYS_ioctl,
            [
                fd.as_raw_fd() as u64,
                libc::TCGETS2,
                out.as_mut_ptr() as u64,
                0,
                0,
                0,
            ],
        )?
    };
    Ok(out)
}

/// TCSETS2: at once, with nothing drained or flushed.
pub fn set_termios(fd: BorrowedFd<'_>, termios: &Termios) -> Sys<()> {
    // SAFETY: the call reads a struct termios2, which has 44 bytes.
    unsafe {
        raw(
            libc::SYS_ioctl,
            [
                fd.as_raw_fd() as u64,
                libc::TCSETS2,
                termios.as_ptr() as u64,
                0,
                0,
                0,
            ],
        )
        .map(drop)
    }
}

/// Which settings of a terminal cannot be changed, in the shape of `struct termios`: TIOCGLCKTRMIOS.
pub fn locked_termios(fd: BorrowedFd<'_>) -> Sys<[u8; 36]> {
    const TIOCGLCKTRMIOS: u64 = 0x5456;
    let mut out = [0; 36];
    let at = out.as_mut_ptr() as u64;
    // SAFETY: the call writes a struct termios, which has 36 bytes.
    unsafe {
        raw(
            libc::SYS_ioctl,
            [fd.as_raw_fd() as u64, TIOCGLCKTRMIOS, at, 0, 0, 0],
        )?
    };
    Ok(out)
}

/// TIOCSLCKTRMIOS.
pub fn lock_termios(fd: BorrowedFd<'_>, locked: &[u8; 36]) -> Sys<()> {
    const TIOCSLCKTRMIOS: u64 = 0x5457;
    let at = locked.as_ptr() as u64;
    // SAFETY: the call reads a struct termios, which has 36 bytes.
    unsafe {
        raw(
            libc::SYS_ioctl,
            [fd.as_raw_fd() as u64, TIOCSLCKTRMIOS, at, 0, 0, 0],
        )
        .map(drop)
    }
}

/// ioctl(2) that writes eight bytes.
pub fn ioctl_eight(fd: BorrowedFd<'_>, request: u64, into: &mut [u8; 8]) -> Sys<()> {
    // SAFETY: used with requests documented to write at most eight bytes.
    unsafe {
        raw(
            libc::SYS_ioctl,
            [fd.as_raw_fd() as u64, request, into.as_mut_ptr() as u64, 0, 0, 0],
        )
        .map(drop)
    }
}

/// ioctl(2) with a number as argument that makes a new descriptor.
pub fn ioctl_fd(fd: BorrowedFd<'_>, request: u64, arg: u64) -> Sys<OwnedFd> {
    plain(libc::SYS_ioctl, [fd.as_raw_fd() as u64, request, arg, 0, 0, 0]).map(super::owned)
}

/// pidfd_open(2) of a process, or of the thread (PIDFD_THREAD).
pub fn pidfd_open_with(pid: Pid, thread: bool) -> Sys<OwnedFd> {
    let flags = if thread { libc::O_EXCL } else { 0 };
    plain(libc::SYS_pidfd_open, [pid.0 as u64, flags as u64, 0, 0, 0, 0]).map(super::owned)
}

/// inotify_init1(2), non-blocking.
pub fn inotify_new() -> Sys<OwnedFd> {
    let flags = libc::IN_CLOEXEC | libc::IN_NONBLOCK;
    plain(libc::SYS_inotify_init1, [flags as u64, 0, 0, 0, 0, 0]).map(super::owned)
}

/// inotify_add_watch(2) of exactly this path, also where it is a symbolic link, or of what it leads to.
pub fn inotify_add(fd: BorrowedFd<'_>, path: &Path, mask: u32, follow: bool) -> Sys<i32> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)?;
    let mask = if follow { mask } else { mask | libc::IN_DONT_FOLLOW };
    // SAFETY: a terminated string.
    let wd = unsafe {
        raw(
            libc::SYS_inotify_add_watch,
            [
                fd.as_raw_fd() as u64,
                path.as_ptr() as u64,
                u64::from(mask),
                0,
                0,
                0,
            ],
        )?
    };
    Ok(wd as i32)
}

/// inotify_rm_watch(2).
pub fn inotify_remove(fd: BorrowedFd<'_>, wd: i32) -> Sys<()> {
    plain(
        libc::SYS_inotify_rm_watch,
        [fd.as_raw_fd() as u64, wd as u64, 0, 0, 0, 0],
    )
    .map(drop)
}
