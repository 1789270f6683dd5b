//! The ptrace(2) requests that read or set one thing of a stopped thread: registers, signals, syscall dispatch.

use super::regs::Regs;
use super::{NT_PRSTATUS, ptrace};
use crate::ids::Pid;

pub(super) fn get_regs(tid: Pid) -> nix::Result<Regs> {
    let mut regs = Regs::default();
    let mut iov = libc::iovec {
        iov_base: (&raw mut regs).cast(),
        iov_len: size_of::<Regs>(),
    };
    ptrace(libc::PTRACE_GETREGSET, tid, NT_PRSTATUS, &raw mut iov as u64)?;
    Ok(regs)
}

pub(super) fn set_regs(tid: Pid, regs: &Regs) -> nix::Result<()> {
    let iov = libc::iovec {
        iov_base: std::ptr::from_ref(regs).cast_mut().cast(),
        iov_len: size_of::<Regs>(),
    };
    ptrace(libc::PTRACE_SETREGSET, tid, NT_PRSTATUS, &raw const iov as u64).map(drop)
}

/// Syscall user dispatch (Linux 5.11, by ptrace 6.4); all zero where it is off or not known.
pub(super) fn get_dispatch(tid: Pid) -> [u64; 4] {
    const PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG: u32 = 0x4211;
    let mut config = [0u64; 4];
    let got = ptrace(
        PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG,
        tid,
        32,
        config.as_mut_ptr() as u64,
    );
    got.map_or([0; 4], |_| config)
}

pub(super) fn set_dispatch(tid: Pid, config: [u64; 4]) -> nix::Result<()> {
    const PTRACE_SET_SYSCALL_USER_DISPATCH_CONFIG: u32 = 0x4210;
    ptrace(
        PTRACE_SET_SYSCALL_USER_DISPATCH_CONFIG,
        tid,
        32,
        config.as_ptr() as u64,
    )
    .map(drop)
}

pub(super) fn get_mask(tid: Pid) -> nix::Result<u64> {
    let mut mask = 0u64;
    ptrace(libc::PTRACE_GETSIGMASK, tid, 8, &raw mut mask as u64)?;
    Ok(mask)
}

pub(super) fn set_mask(tid: Pid, mask: u64) -> nix::Result<()> {
    ptrace(libc::PTRACE_SETSIGMASK, tid, 8, &raw const mask as u64).map(drop)
}

/// What is told of the signal before whose delivery it stands (siginfo_t).
pub(super) fn get_siginfo(tid: Pid) -> nix::Result<[u64; 16]> {
    let mut info = [0u64; 16];
    ptrace(libc::PTRACE_GETSIGINFO, tid, 0, info.as_mut_ptr() as u64)?;
    Ok(info)
}

pub(super) fn set_siginfo(tid: Pid, info: &[u64; 16]) -> nix::Result<()> {
    ptrace(libc::PTRACE_SETSIGINFO, tid, 0, info.as_ptr() as u64).map(drop)
}
