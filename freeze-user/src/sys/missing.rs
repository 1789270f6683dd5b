//! userfaultfd(2) for memory that is still to come: who touches a missing page waits until it is put there.
//!
//! The descriptor is made in the process whose memory it is, as that of [`super::uffd`]. Beside faults it tells of what
//! the process does to its mappings, and as long as it was not read what it tells, nothing can be put in (`EAGAIN`):
//! so whoever reads knows of a change before a page could come to the wrong place.
//!
//! Closing the last duplicate ends it all, and **what is still missing then reads as zeros**: see [`super::keeper`].
#![allow(unsafe_code, reason = "ioctls with structures have their address here")]

use crate::ids::{PAGE, Range};
use nix::errno::Errno;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// The flags for the `userfaultfd` call that runs in the target: not for its own accesses only, since what the kernel
/// does in its name (`read(2)` into a buffer) must wait as well. That takes CAP_SYS_PTRACE there.
pub const FLAGS: u64 = (libc::O_CLOEXEC | libc::O_NONBLOCK) as u64;

/// The same for memory of a process that stands still until all is in: nobody waits, so anybody may.
pub const FLAGS_STILL: u64 = FLAGS | 1;

const API: u64 = 0xaa;
/// FORK, REMAP, REMOVE and UNMAP: without them there is no way to know where a page belongs.
const EVENTS: u64 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 6;
const POISON: u64 = 1 << 14;
const REGISTER_MODE_MISSING: u64 = 1;

/// The last page that a program could map (with four-level page tables).
const LAST: u64 = 0x7fff_ffff_e000;

/// `struct uffd_msg`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct UffdMsg {
    event: u8,
    reserved: [u8; 7],
    arg: [u64; 3],
}

#[repr(C)]
struct UffdioCopy {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copy: i64,
}

/// `struct uffdio_zeropage` and `struct uffdio_poison`.
#[repr(C)]
struct UffdioRange {
    start: u64,
    len: u64,
    mode: u64,
    done: i64,
}

const _: () = {
    assert!(size_of::<UffdMsg>() == 32);
    assert!(size_of::<UffdioCopy>() == 40);
    assert!(size_of::<UffdioRange>() == 32);
};

const UFFDIO_API: u64 = 0xc018_aa3f;
const UFFDIO_REGISTER: u64 = 0xc020_aa00;
const UFFDIO_WAKE: u64 = 0x8010_aa02;
const UFFDIO_COPY: u64 = 0xc028_aa03;
const UFFDIO_ZEROPAGE: u64 = 0xc020_aa04;
const UFFDIO_POISON: u64 = 0xc020_aa08;

/// What a process has done to its memory, or what it waits for.
#[derive(Debug)]
pub enum Message {
    /// It waits for the page at this address.
    Fault(u64),
    /// It has forked: the child's memory, with the same pages missing.
    Fork(Filler),
    /// Mappings were moved, with what is missing in them.
    Moved { from: Range, to: u64 },
    /// Pages were given up (`MADV_DONTNEED`) or unmapped: from here on zeros belong there.
    Gone(Range),
}

/// The missing pages of one address space.
#[derive(Debug)]
pub struct Filler(OwnedFd);

impl Filler {
    /// Takes over a fresh descriptor.
    ///
    /// `EINVAL`: this kernel does not tell of changed mappings; `EPERM`: not without CAP_SYS_PTRACE.
    pub fn start(fd: OwnedFd) -> nix::Result<Filler> {
        Filler::negotiate(fd, &[EVENTS | POISON, EVENTS])
    }

    /// The same for a process that stands still: it tells of nothing.
    pub fn start_still(fd: OwnedFd) -> nix::Result<Filler> {
        Filler::negotiate(fd, &[0])
    }

    fn negotiate(fd: OwnedFd, offers: &[u64]) -> nix::Result<Filler> {
        let mut last = Errno::EINVAL;
        for features in offers.iter().copied() {
            let mut api = [API, features, 0];
            // SAFETY: the request's structure of three words, alive during the call.
            match unsafe { ioctl(fd.as_fd(), UFFDIO_API, api.as_mut_ptr() as u64) } {
                Ok(()) => return Ok(Filler(fd)),
                Err(e) => last = e,
            }
        }
        Err(last)
    }

    /// From now on whoever touches a page of `range` that is not there waits.
    pub fn register(&self, range: Range) -> nix::Result<()> {
        let mut arg = [range.start, range.len(), REGISTER_MODE_MISSING, 0];
        // SAFETY: the request's structure of four words, alive during the call.
        unsafe { ioctl(self.as_fd(), UFFDIO_REGISTER, arg.as_mut_ptr() as u64) }
    }

    /// Puts whole pages in and wakes who waits for them; says how many bytes are in, and what was in the way of more.
    ///
    /// `EAGAIN`: there is a message to be read first. `EEXIST`: the next page is there. `ENOENT`: it is not in one
    /// mapping that was registered. `ESRCH`: the process is gone.
    pub fn copy(&self, at: u64, bytes: &[u8]) -> (usize, Option<Errno>) {
        let mut done = 0;
        while done < bytes.len() {
            let mut arg = UffdioCopy {
                dst: at + done as u64,
                src: bytes[done..].as_ptr() as u64,
                len: (bytes.len() - done) as u64,
                mode: 0,
                copy: 0,
            };
            // SAFETY: the request's structure and the bytes it names, alive during the call.
            let result = unsafe { ioctl(self.as_fd(), UFFDIO_COPY, &raw mut arg as u64) };
            done += usize::try_from(arg.copy).unwrap_or(0);
            match result {
                Ok(()) => {}
                // Some were copied; the next call says what is in the way.
                Err(Errno::EAGAIN) if arg.copy > 0 => {}
                Err(e) => return (done, Some(e)),
            }
        }
        (done, None)
    }

    /// Puts a page of zeros in, and wakes who waits for it; errors as for [`Filler::copy`].
    pub fn zero(&self, at: u64) -> nix::Result<()> {
        page_request(self.as_fd(), UFFDIO_ZEROPAGE, at)
    }

    /// Wakes who waits for a page, to look again.
    pub fn wake(&self, at: u64) {
        wake(self.as_fd(), at);
    }

    /// All that there is to be told by now.
    pub fn read(&self, into: &mut Vec<Message>) -> nix::Result<()> {
        let mut some = [UffdMsg::default(); 16];
        loop {
            let size = size_of_val(&some) as u64;
            let args = [self.0.as_raw_fd() as u64, some.as_mut_ptr() as u64, size, 0, 0, 0];
            // SAFETY: the buffer is as large as is said, and any bytes make a message.
            let n = match unsafe { super::raw(libc::SYS_read, args) } {
                Ok(n) => n as usize / size_of::<UffdMsg>(),
                Err(Errno::EAGAIN) => return Ok(()),
                Err(Errno::EINTR) => continue,
                Err(e) => return Err(e),
            };
            for m in &some[..n] {
                let [a, b, c] = m.arg;
                into.push(match m.event {
                    0x12 => Message::Fault(b / PAGE * PAGE),
                    // SAFETY: the kernel has just made it for us.
                    0x13 => Message::Fork(Filler(unsafe { OwnedFd::from_raw_fd(a as u32 as i32) })),
                    0x14 => Message::Moved {
                        from: Range::new(a, a + c),
                        to: b,
                    },
                    0x15 | 0x16 => Message::Gone(Range::new(a, b)),
                    _ => continue,
                });
            }
        }
    }
}

impl AsFd for Filler {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// As [`Filler::wake`].
pub(super) fn wake(fd: BorrowedFd<'_>, at: u64) {
    let mut arg = [at, PAGE];
    // SAFETY: the request's structure of two words, alive during the call.
    let _ = unsafe { ioctl(fd, UFFDIO_WAKE, arg.as_mut_ptr() as u64) };
}

/// Wakes all who wait, whoever was told of them: they ask again.
pub(super) fn wake_all(fd: BorrowedFd<'_>) {
    let mut arg = [0x10_0000, LAST - 0x10_0000];
    // SAFETY: the request's structure of two words, alive during the call.
    let _ = unsafe { ioctl(fd, UFFDIO_WAKE, arg.as_mut_ptr() as u64) };
}

/// Makes a page poisonous, so that touching it is SIGBUS, and wakes who waits for it.
pub(super) fn poison(fd: BorrowedFd<'_>, at: u64) -> nix::Result<()> {
    page_request(fd, UFFDIO_POISON, at)
}

/// Whether the memory behind a userfaultfd is that of a living process.
pub(super) fn is_alive(fd: BorrowedFd<'_>) -> bool {
    // The last page that a program could map is in no mapping that was registered: ENOENT.
    page_request(fd, UFFDIO_ZEROPAGE, LAST) != Err(Errno::ESRCH)
}

/// Reads one message: the address of a fault, or `None` for anything else.
pub(super) fn read_fault(fd: BorrowedFd<'_>) -> nix::Result<Option<u64>> {
    let mut m = UffdMsg::default();
    let args = [
        fd.as_raw_fd() as u64,
        &raw mut m as u64,
        size_of_val(&m) as u64,
        0,
        0,
        0,
    ];
    // SAFETY: the buffer is as large as is said, and any bytes make a message.
    unsafe { super::raw(libc::SYS_read, args) }?;
    Ok((m.event == 0x12).then_some(m.arg[1] / PAGE * PAGE))
}

fn page_request(fd: BorrowedFd<'_>, request: u64, at: u64) -> nix::Result<()> {
    let mut arg = UffdioRange {
        start: at,
        len: PAGE,
        mode: 0,
        done: 0,
    };
    // SAFETY: the request's structure, alive during the call.
    unsafe { ioctl(fd, request, &raw mut arg as u64) }
}

/// # Safety
/// `arg` must be the address of the structure that `request` names.
unsafe fn ioctl(fd: BorrowedFd<'_>, request: u64, arg: u64) -> nix::Result<()> {
    // SAFETY: passed on to the caller.
    unsafe { super::raw(libc::SYS_ioctl, [fd.as_raw_fd() as u64, request, arg, 0, 0, 0]).map(drop) }
}

/// A descriptor for this process's own memory, to try what the kernel grants.
pub fn own() -> nix::Result<OwnedFd> {
    super::plain(libc::SYS_userfaultfd, [FLAGS, 0, 0, 0, 0, 0]).map(super::owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_mapped_is_not_filled() {
        let Ok(filler) = own().and_then(Filler::start) else {
            return;
        };
        assert!(is_alive(filler.as_fd()));
        assert_eq!(filler.copy(0x10_0000, &[0; 4096]), (0, Some(Errno::ENOENT)));
        assert_eq!(filler.zero(0x10_0000), Err(Errno::ENOENT));
        let mut none = Vec::new();
        filler.read(&mut none).unwrap();
        assert!(none.is_empty());
    }
}
