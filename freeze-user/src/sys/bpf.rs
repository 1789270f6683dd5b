//! What aya does not wrap: iterators over one process, and trying out what bpf(2) grants.
#![allow(unsafe_code, reason = "raw system calls have their address here")]

use super::raw;
use crate::ids::Pid;

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

type Sys<T> = nix::Result<T>;

fn owned(fd: i64) -> OwnedFd {
    // SAFETY: the kernel just made this descriptor for us and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd as RawFd) }
}

/// Starts an iterator program over the threads (and their files) of one process; reading runs it.
///
/// `BPF_LINK_CREATE` with `bpf_iter_link_info.task.pid` (Linux 6.1), then `BPF_ITER_CREATE`.
pub fn iterate_process(program: BorrowedFd<'_>, process: Pid) -> Sys<OwnedFd> {
    const BPF_LINK_CREATE: u64 = 28;
    const BPF_ITER_CREATE: u64 = 33;
    const BPF_TRACE_ITER: u32 = 28;
    // struct bpf_iter_link_info, task member: tid, pid (a thread group), pid_fd.
    let info: [u32; 4] = [0, process.0 as u32, 0, 0];
    // union bpf_attr, link_create member: prog_fd, target_fd, attach_type, flags, iter_info, its length.
    let mut attr = [0u64; 6];
    attr[0] = u64::from(program.as_raw_fd() as u32);
    attr[1] = u64::from(BPF_TRACE_ITER);
    attr[2] = info.as_ptr() as u64;
    attr[3] = size_of_val(&info) as u64;
    // SAFETY: `attr` and `info` live through the call and have the lengths given.
    let link = unsafe {
        raw(
            libc::SYS_bpf,
            [
                BPF_LINK_CREATE,
                attr.as_ptr() as u64,
                size_of_val(&attr) as u64,
                0,
                0,
                0,
            ],
        )
    }
    .map(owned)?;
    // iter_create member: link_fd, flags.
    let attr: [u32; 2] = [link.as_raw_fd() as u32, 0];
    // SAFETY: as above.
    unsafe {
        raw(
            libc::SYS_bpf,
            [
                BPF_ITER_CREATE,
                attr.as_ptr() as u64,
                size_of_val(&attr) as u64,
                0,
                0,
                0,
            ],
        )
    }
    .map(owned)
}

/// Gives memory that was freed back to the system (the kernel's BTF is large and read once).
pub fn trim() {
    // SAFETY: no requirements.
    unsafe { libc::malloc_trim(0) };
}

/// Loads a program of `kind` that only returns 0, to learn whether the kernel grants that kind.
///
/// `attach` is the expected attach type, `btf_id` what it would attach to in the kernel's BTF, 0 for none.
pub fn try_program(kind: u32, attach: u32, btf_id: u32) -> Sys<OwnedFd> {
    const BPF_PROG_LOAD: u64 = 5;
    // r0 = 0; exit
    let code: [u64; 2] = [0xb7, 0x95];
    let license = c"GPL";
    // union bpf_attr, the part for BPF_PROG_LOAD, as 32-bit words.
    let mut attr = [0u32; 32];
    attr[0] = kind;
    attr[1] = code.len() as u32;
    attr[2] = code.as_ptr() as u64 as u32;
    attr[3] = (code.as_ptr() as u64 >> 32) as u32;
    attr[4] = license.as_ptr() as u64 as u32;
    attr[5] = (license.as_ptr() as u64 >> 32) as u32;
    attr[17] = attach;
    attr[27] = btf_id;
    // SAFETY: `attr`, `code` and `license` live through the call and have the lengths given.
    unsafe {
        raw(
            libc::SYS_bpf,
            [
                BPF_PROG_LOAD,
                attr.as_ptr() as u64,
                size_of_val(&attr) as u64,
                0,
                0,
                0,
            ],
        )
    }
    .map(owned)
}

/// Attaches a raw-tracepoint program (also a BTF one, with an empty name) until the fd is closed.
pub fn attach_raw(program: BorrowedFd<'_>, name: Option<&CStr>) -> Sys<OwnedFd> {
    const BPF_RAW_TRACEPOINT_OPEN: u64 = 17;
    let attr: [u64; 2] = [name.map_or(0, |n| n.as_ptr() as u64), program.as_raw_fd() as u64];
    // SAFETY: `attr` and the name live through the call.
    unsafe {
        raw(
            libc::SYS_bpf,
            [
                BPF_RAW_TRACEPOINT_OPEN,
                attr.as_ptr() as u64,
                size_of_val(&attr) as u64,
                0,
                0,
                0,
            ],
        )
    }
    .map(owned)
}

/// Makes a map, to learn whether the kernel grants its kind.
pub fn try_map(kind: u32, key: u32, value: u32, entries: u32) -> Sys<OwnedFd> {
    let attr: [u32; 5] = [kind, key, value, entries, 0];
    // SAFETY: `attr` lives through the call.
    unsafe {
        raw(
            libc::SYS_bpf,
            [0, attr.as_ptr() as u64, size_of_val(&attr) as u64, 0, 0, 0],
        )
    }
    .map(owned)
}
