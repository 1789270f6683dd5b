//! io_uring(7) as freeze makes it anew: its parameters, what is registered with it, its rings as memory.
#![allow(
    unsafe_code,
    reason = "raw system calls and mapped memory have their address here"
)]

use super::raw;
use crate::ids::PAGE;
use serde::{Deserialize, Serialize};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU32, Ordering};

type Sys<T> = nix::Result<T>;

/// `IORING_SETUP_*` of include/uapi/linux/io_uring.h.
pub mod setup {
    pub const IOPOLL: u32 = 1 << 0;
    pub const SQPOLL: u32 = 1 << 1;
    pub const SQ_AFF: u32 = 1 << 2;
    pub const CQSIZE: u32 = 1 << 3;
    pub const CLAMP: u32 = 1 << 4;
    pub const ATTACH_WQ: u32 = 1 << 5;
    pub const R_DISABLED: u32 = 1 << 6;
    pub const SUBMIT_ALL: u32 = 1 << 7;
    pub const COOP_TASKRUN: u32 = 1 << 8;
    pub const TASKRUN_FLAG: u32 = 1 << 9;
    pub const SQE128: u32 = 1 << 10;
    pub const CQE32: u32 = 1 << 11;
    pub const SINGLE_ISSUER: u32 = 1 << 12;
    pub const DEFER_TASKRUN: u32 = 1 << 13;
    pub const NO_MMAP: u32 = 1 << 14;
    pub const REGISTERED_FD_ONLY: u32 = 1 << 15;
    pub const NO_SQARRAY: u32 = 1 << 16;
    pub const HYBRID_IOPOLL: u32 = 1 << 17;
}

/// `IORING_REGISTER_*`.
pub mod register {
    pub const EVENTFD: u32 = 4;
    pub const EVENTFD_ASYNC: u32 = 7;
    pub const ENABLE_RINGS: u32 = 12;
    pub const FILES2: u32 = 13;
    pub const IOWQ_AFF: u32 = 17;
    pub const IOWQ_MAX_WORKERS: u32 = 19;
    pub const RING_FDS: u32 = 20;
    pub const FILE_ALLOC_RANGE: u32 = 25;
}

/// Offsets at which the parts of an instance are mapped.
pub const RINGS_AT: u64 = 0;
/// The same memory, since Linux 5.4.
pub const COMPLETIONS_AT: u64 = 0x800_0000;
pub const ENTRIES_AT: u64 = 0x1000_0000;

/// `IORING_ENTER_REGISTERED_RING`.
pub const ENTER_REGISTERED_RING: u64 = 1 << 4;
/// `IORING_CQ_EVENTFD_DISABLED` of the word of flags of completions.
pub const CQ_EVENTFD_DISABLED: u32 = 1;
/// `IOSQE_CQE_SKIP_SUCCESS`.
pub const SKIP_SUCCESS: u8 = 1 << 6;

/// `struct io_uring_params`, as words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Params(pub [u32; 30]);

const _: () = assert!(size_of::<Params>() == 120);

impl Params {
    /// What is to be asked for: exactly these sizes.
    pub fn new(entries: u32, completions: u32, flags: u32) -> Params {
        let mut words = [0; 30];
        (words[0], words[1], words[2]) = (entries, completions, flags);
        Params(words)
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|w| w.to_ne_bytes()).collect()
    }

    /// What the kernel has told of where everything is.
    pub fn layout(&self) -> Layout {
        let w = &self.0;
        Layout {
            features: w[5],
            sq: [w[10], w[11], w[12], w[13], w[14], w[15], w[16]],
            cq: [w[20], w[21], w[22], w[23], w[24], w[25], w[26]],
        }
    }
}

/// Where things are in the rings: what a program was told once, and goes by from then on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// `IORING_FEAT_*`.
    pub features: u32,
    /// head, tail, mask, entries, flags, dropped, array.
    pub sq: [u32; 7],
    /// head, tail, mask, entries, overflow, cqes, flags.
    pub cq: [u32; 7],
}

impl Layout {
    pub fn sq_head(&self) -> u64 {
        u64::from(self.sq[0])
    }
    pub fn sq_tail(&self) -> u64 {
        u64::from(self.sq[1])
    }
    pub fn array(&self) -> u64 {
        u64::from(self.sq[6])
    }
    pub fn cq_head(&self) -> u64 {
        u64::from(self.cq[0])
    }
    pub fn cq_tail(&self) -> u64 {
        u64::from(self.cq[1])
    }
    pub fn cq_flags(&self) -> u64 {
        u64::from(self.cq[6])
    }

    /// Bytes of both rings with this many entries.
    pub fn rings(&self, flags: u32, entries: u32, completions: u32) -> u64 {
        let size = if flags & setup::CQE32 != 0 { 32 } else { 16 };
        let completions = u64::from(self.cq[5]) + u64::from(completions) * size;
        let array = match flags & setup::NO_SQARRAY {
            0 => self.array() + u64::from(entries) * 4,
            _ => 0,
        };
        completions.max(array)
    }
}

/// Bytes of one entry for submission.
pub fn entry_size(flags: u32) -> u64 {
    if flags & setup::SQE128 != 0 { 128 } else { 64 }
}

/// Makes an instance in freeze itself.
pub fn make(params: &mut Params) -> Sys<OwnedFd> {
    let entries = u64::from(params.0[0]);
    let at = params.0.as_mut_ptr() as u64;
    // SAFETY: `params` is the structure the call reads and fills, and lives through it.
    let fd = unsafe { raw(libc::SYS_io_uring_setup, [entries, at, 0, 0, 0, 0])? };
    // SAFETY: the kernel just made this descriptor for us and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Submits, from freeze itself; tells how many entries were taken.
pub fn enter(ring: BorrowedFd<'_>, submit: u32, flags: u32) -> Sys<u32> {
    let args = [
        ring.as_raw_fd() as u64,
        u64::from(submit),
        0,
        u64::from(flags),
        0,
        0,
    ];
    // SAFETY: no pointers; entries that freeze itself submits point to nothing or to what outlives them.
    unsafe { raw(libc::SYS_io_uring_enter, args) }.map(|n| n as u32)
}

fn registers(ring: BorrowedFd<'_>, what: u32, at: u64, number: u64) -> Sys<i64> {
    let args = [ring.as_raw_fd() as u64, u64::from(what), at, number, 0, 0];
    // SAFETY: private; each caller says what `at` points to.
    unsafe { raw(libc::SYS_io_uring_register, args) }
}

/// Has completions counted by an eventfd; with `only_async`, only those that come later.
pub fn register_eventfd(ring: BorrowedFd<'_>, eventfd: BorrowedFd<'_>, only_async: bool) -> Sys<()> {
    let what = match only_async {
        true => register::EVENTFD_ASYNC,
        false => register::EVENTFD,
    };
    let fd = eventfd.as_raw_fd();
    registers(ring, what, &raw const fd as u64, 1).map(drop)
}

/// Registers files by freeze's own numbers, -1 for an empty place, each with its tag.
pub fn register_files(ring: BorrowedFd<'_>, files: &[i32], tags: &[u64]) -> Sys<()> {
    assert_eq!(files.len(), tags.len(), "a tag for each file");
    // struct io_uring_rsrc_register: number and flags, reserved, addresses of data and of tags.
    let request = [files.len() as u64, 0, files.as_ptr() as u64, tags.as_ptr() as u64];
    let at = request.as_ptr() as u64;
    registers(ring, register::FILES2, at, size_of_val(&request) as u64).map(drop)
}

/// Which places of the file table the kernel may choose by itself.
pub fn register_alloc_range(ring: BorrowedFd<'_>, start: u32, length: u32) -> Sys<()> {
    // struct io_uring_file_index_range: offset, length, reserved.
    let range = [start, length, 0, 0];
    registers(ring, register::FILE_ALLOC_RANGE, range.as_ptr() as u64, 0).map(drop)
}

/// The most bounded and unbounded workers; 0 leaves it as it is.
pub fn register_workers(ring: BorrowedFd<'_>, mut most: [u32; 2]) -> Sys<()> {
    registers(ring, register::IOWQ_MAX_WORKERS, most.as_mut_ptr() as u64, 2).map(drop)
}

/// Binds the workers of the calling thread to CPUs, a bit each.
pub fn bind_workers(ring: BorrowedFd<'_>, mask: &[u8]) -> Sys<()> {
    registers(ring, register::IOWQ_AFF, mask.as_ptr() as u64, mask.len() as u64).map(drop)
}

/// A part of an instance, mapped into freeze; the kernel and the program may have it too.
#[derive(Debug)]
pub struct Area {
    at: *mut u8,
    len: usize,
}

impl Area {
    /// Maps `len` bytes from one of the offsets above.
    pub fn map(ring: BorrowedFd<'_>, offset: u64, len: u64) -> Sys<Area> {
        let len = len.next_multiple_of(PAGE) as usize;
        let prot = (libc::PROT_READ | libc::PROT_WRITE) as u64;
        let flags = (libc::MAP_SHARED | libc::MAP_POPULATE) as u64;
        let args = [0, len as u64, prot, flags, ring.as_raw_fd() as u64, offset];
        // SAFETY: a mapping of its own, at an address the kernel chooses.
        let at = unsafe { raw(libc::SYS_mmap, args)? };
        Ok(Area {
            at: at as *mut u8,
            len,
        })
    }

    /// A copy of the first `len` bytes.
    pub fn read(&self, len: u64) -> Vec<u8> {
        let len = (len as usize).min(self.len);
        let mut out = vec![0; len];
        // SAFETY: inside of the mapping, which lives as long as we do; who else could write stands still.
        unsafe { std::ptr::copy_nonoverlapping(self.at, out.as_mut_ptr(), len) };
        out
    }

    /// Writes bytes at `at`, which must fit.
    pub fn write(&self, at: u64, bytes: &[u8]) {
        assert!(at as usize + bytes.len() <= self.len, "inside of the mapping");
        // SAFETY: just checked; who else could look stands still.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.at.add(at as usize), bytes.len()) };
    }

    fn atomic(&self, at: u64) -> &AtomicU32 {
        assert!(
            at as usize + 4 <= self.len && at & 3 == 0,
            "inside of the mapping"
        );
        // SAFETY: just checked, aligned since mappings are; all who share these words use them atomically.
        unsafe { AtomicU32::from_ptr(self.at.add(at as usize).cast()) }
    }

    /// A word that others may change at any time.
    pub fn word(&self, at: u64) -> u32 {
        self.atomic(at).load(Ordering::Acquire)
    }

    pub fn set_word(&self, at: u64, value: u32) {
        self.atomic(at).store(value, Ordering::Release);
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        let args = [self.at as u64, self.len as u64, 0, 0, 0, 0];
        // SAFETY: it is ours, and references into it do not outlive us.
        let _ = unsafe { raw(libc::SYS_munmap, args) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn nothing_is_done_and_told() {
        let mut params = Params::new(8, 0, 0);
        let Ok(ring) = make(&mut params) else { return };
        let layout = params.layout();
        let rings = Area::map(ring.as_fd(), RINGS_AT, layout.rings(0, 8, 16)).unwrap();
        let entries = Area::map(ring.as_fd(), ENTRIES_AT, 8 * entry_size(0)).unwrap();
        assert_eq!(
            (rings.word(u64::from(layout.sq[3])), entries.read(64)),
            (8, vec![0; 64])
        );
        rings.set_word(layout.sq_tail(), 3);
        assert_eq!(enter(ring.as_fd(), 3, 0), Ok(3));
        assert_eq!(
            (rings.word(layout.sq_head()), rings.word(layout.cq_tail())),
            (3, 3)
        );
    }
}
