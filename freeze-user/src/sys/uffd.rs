//! userfaultfd(2) as freeze uses it: asynchronous write-protection of another process's memory, from outside.
//!
//! The descriptor is made *in* the target (it belongs to the address space that made it) and taken over with
//! pidfd_getfd(2); everything else is done here. With `WP_ASYNC` (Linux 6.7) nobody waits for anybody: the
//! first write to a protected page clears its mark inside the kernel's own fault. Closing the last duplicate
//! of the descriptor clears all registrations and marks, so a tracker that dies leaves nothing behind.
//!
//! Registering, unregistering, lifting protection and closing cost tens of milliseconds per GiB: never in a pause.
//!
//! See Documentation/admin-guide/mm/userfaultfd.rst.
#![allow(unsafe_code, reason = "ioctls with structures have their address here")]

use crate::error::errno;
use crate::ids::Range;
use nix::errno::Errno;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

/// The flags for the `userfaultfd` call that runs in the target.
///
/// User-mode-only is what an unprivileged target is allowed, and it is enough: the restriction is about who may
/// be *made to wait* in a kernel-mode fault, and asynchronous protection lets nobody wait. Writes by the kernel
/// (`read(2)` into a buffer) are tracked just the same.
pub const FLAGS: u64 = (libc::O_CLOEXEC | libc::O_NONBLOCK) as u64 | USER_MODE_ONLY;

const USER_MODE_ONLY: u64 = 1;

const API: u64 = 0xaa;
const FEATURE_WP: u64 = 1 << 0;
const FEATURE_WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
const FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
const FEATURE_WP_ASYNC: u64 = 1 << 15;

const REGISTER_MODE_WP: u64 = 1 << 1;

#[repr(C)]
struct UffdioApi {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct UffdioRange {
    start: u64,
    len: u64,
}

#[repr(C)]
struct UffdioRegister {
    range: UffdioRange,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct UffdioWriteprotect {
    range: UffdioRange,
    mode: u64,
}

const _: () = {
    assert!(size_of::<UffdioApi>() == 24);
    assert!(size_of::<UffdioRange>() == 16);
    assert!(size_of::<UffdioRegister>() == 32);
    assert!(size_of::<UffdioWriteprotect>() == 24);
};

/// `_IOC(direction, 0xaa, number, size)`; direction 2 reads, 3 reads and writes.
const fn request(direction: u64, number: u64, size: usize) -> u64 {
    direction << 30 | (size as u64) << 16 | 0xaa << 8 | number
}

const UFFDIO_API: u64 = request(3, 0x3f, size_of::<UffdioApi>());
const UFFDIO_REGISTER: u64 = request(3, 0x00, size_of::<UffdioRegister>());
const UFFDIO_UNREGISTER: u64 = request(2, 0x01, size_of::<UffdioRange>());
const UFFDIO_WRITEPROTECT: u64 = request(3, 0x06, size_of::<UffdioWriteprotect>());

const _: () = {
    assert!(UFFDIO_API == 0xc018_aa3f);
    assert!(UFFDIO_REGISTER == 0xc020_aa00);
    assert!(UFFDIO_UNREGISTER == 0x8010_aa01);
    assert!(UFFDIO_WRITEPROTECT == 0xc018_aa06);
};

/// A userfaultfd of another process, in asynchronous write-protect mode.
#[derive(Debug)]
pub struct Uffd {
    fd: OwnedFd,
    features: u64,
}

impl Uffd {
    /// Takes over a fresh descriptor (no `UFFDIO_API` done on it yet).
    ///
    /// `EINVAL`: this kernel has no asynchronous write-protection (it is older than 6.7), or the descriptor was in use.
    pub fn start(fd: OwnedFd) -> nix::Result<Uffd> {
        // What is asked for beside WP_ASYNC only widens which memory can be registered.
        let wanted = FEATURE_WP | FEATURE_WP_ASYNC;
        let offers = [
            wanted | FEATURE_WP_UNPOPULATED | FEATURE_WP_HUGETLBFS_SHMEM,
            wanted | FEATURE_WP_UNPOPULATED,
            wanted,
        ];
        let mut last = Errno::EINVAL;
        for features in offers {
            let mut api = UffdioApi {
                api: API,
                features,
                ioctls: 0,
            };
            // SAFETY: the request's structure, alive during the call.
            match unsafe { ioctl(&fd, UFFDIO_API, &raw mut api as u64) } {
                Ok(()) => return Ok(Uffd { fd, features }),
                Err(e) => last = e,
            }
        }
        Err(last)
    }

    /// The features that were granted, as `UFFD_FEATURE_*` bits.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// Registers the mappings in `range`, which stay writable and unmarked; nothing is protected yet.
    ///
    /// `EINVAL`: a kind of mapping that cannot be tracked, or none there. `EBUSY`: another userfaultfd owns it.
    /// `EPERM`: a shared mapping of a file that the target may not write.
    pub fn register(&self, range: Range) -> nix::Result<()> {
        let mut arg = UffdioRegister {
            range: plain(range),
            mode: REGISTER_MODE_WP,
            ioctls: 0,
        };
        // SAFETY: the request's structure, alive during the call.
        unsafe { ioctl(&self.fd, UFFDIO_REGISTER, &raw mut arg as u64) }
    }

    /// Takes the registration and all marks away again (22–36 ms per GiB).
    pub fn unregister(&self, range: Range) -> nix::Result<()> {
        let mut arg = plain(range);
        // SAFETY: the request's structure, alive during the call.
        unsafe { ioctl(&self.fd, UFFDIO_UNREGISTER, &raw mut arg as u64) }
    }

    /// Clears the marks in `range`, so that every page in it counts as written (20–33 ms per GiB).
    pub fn unprotect(&self, range: Range) -> nix::Result<()> {
        loop {
            let mut arg = UffdioWriteprotect {
                range: plain(range),
                mode: 0,
            };
            // SAFETY: the request's structure, alive during the call.
            match unsafe { ioctl(&self.fd, UFFDIO_WRITEPROTECT, &raw mut arg as u64) } {
                // The target is changing its mappings at this moment.
                Err(Errno::EAGAIN) => std::thread::yield_now(),
                done => return done,
            }
        }
    }
}

fn plain(range: Range) -> UffdioRange {
    UffdioRange {
        start: range.start,
        len: range.len(),
    }
}

/// # Safety
/// `arg` must be the address of the structure that `request` names.
unsafe fn ioctl(fd: &OwnedFd, request: u64, arg: u64) -> nix::Result<()> {
    // SAFETY: passed on to the caller.
    unsafe { super::raw(libc::SYS_ioctl, [fd.as_raw_fd() as u64, request, arg, 0, 0, 0]).map(drop) }
}

/// A userfaultfd of this process's own memory, to try what the kernel can do.
pub fn own() -> nix::Result<OwnedFd> {
    use std::os::fd::FromRawFd;
    // SAFETY: no pointers, and the descriptor is new and ours.
    unsafe {
        let fd = super::raw(libc::SYS_userfaultfd, [FLAGS, 0, 0, 0, 0, 0])?;
        Ok(OwnedFd::from_raw_fd(fd as i32))
    }
}

/// Whether a page that mremap(2) moves keeps its mark although its new mapping is registered no more; tried on a page of
/// this process.
pub fn moves_keep_marks() -> nix::Result<bool> {
    const PAGE: usize = crate::ids::PAGE as usize;
    const MARK: u64 = 1 << 57;
    let uffd = Uffd::start(own()?)?;
    let map = |at: *mut libc::c_void, protection, flags| {
        // SAFETY: fixed addresses are only given for a mapping made here.
        let at = unsafe {
            libc::mmap(
                at,
                2 * PAGE,
                protection,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | flags,
                -1,
                0,
            )
        };
        Errno::result(at as isize).map(|_| at)
    };
    let area = map(std::ptr::null_mut(), libc::PROT_READ | libc::PROT_WRITE, 0)?;
    let (from, to) = (area, area.wrapping_byte_add(PAGE));
    let page = Range::new(from as u64, from as u64 + PAGE as u64);
    let moved = (|| {
        // SAFETY: the first page of a mapping of our own that nothing else knows of.
        unsafe { from.cast::<u8>().write_volatile(1) };
        uffd.register(page)?;
        let mut arg = UffdioWriteprotect {
            range: plain(page),
            mode: 1,
        };
        // SAFETY: the request's structure, alive during the call.
        unsafe { ioctl(&uffd.fd, UFFDIO_WRITEPROTECT, &raw mut arg as u64) }?;
        // SAFETY: from the one page of that mapping to the other.
        let at = unsafe { libc::mremap(from, PAGE, PAGE, libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED, to) };
        Errno::result(at as isize)
    })();
    let mut entry = [0; 8];
    let read = File::open("/proc/self/pagemap")
        .and_then(|map| map.read_exact_at(&mut entry, to as u64 / crate::ids::PAGE * 8));
    let (rest, pages) = if moved.is_ok() { (to, 1) } else { (from, 2) };
    // SAFETY: what is left of that mapping; where its first page was after the move may be another mapping by now.
    Errno::result(unsafe { libc::munmap(rest, pages * PAGE) })?;
    moved?;
    read.map_err(errno)?;
    Ok(u64::from_ne_bytes(entry) & MARK != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_in_use_is_refused() {
        let fd = own().unwrap();
        let twice = fd.try_clone().unwrap();
        let first = Uffd::start(fd).unwrap();
        assert!(first.features() & FEATURE_WP_ASYNC != 0);
        assert_eq!(Uffd::start(twice).unwrap_err(), Errno::EINVAL);
    }

    #[test]
    fn what_is_not_mapped_cannot_be_registered() {
        let uffd = Uffd::start(own().unwrap()).unwrap();
        assert_eq!(uffd.register(Range::new(0x1000, 0x2000)), Err(Errno::EINVAL));
    }
}
