//! System calls made only to see whether the kernel grants them; nothing of them stays.
#![allow(unsafe_code, reason = "raw system calls have their address here")]

use super::{CloneArgs, raw};
use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

type Sys<T> = nix::Result<T>;

/// mseal(2) of nothing.
pub fn seal() -> bool {
    const SYS_MSEAL: i64 = 462;
    // SAFETY: it seals no page.
    unsafe { raw(SYS_MSEAL, [0; 6]) != Err(Errno::ENOSYS) }
}

/// clone3(2) with a chosen pid. The pid asked for is taken (it is ours), so no process is ever made: the
/// kernel answers `EEXIST` only to those who may choose.
pub fn choose_pid() -> Sys<()> {
    let own = std::process::id() as i32;
    let args = CloneArgs {
        exit_signal: libc::SIGCHLD as u64,
        set_tid: &raw const own as u64,
        set_tid_size: 1,
        ..CloneArgs::default()
    };
    // SAFETY: the arguments live through the call, which cannot succeed.
    match unsafe {
        raw(
            libc::SYS_clone3,
            [&raw const args as u64, size_of::<CloneArgs>() as u64, 0, 0, 0, 0],
        )
    } {
        Err(Errno::EEXIST) => Ok(()),
        // SAFETY: a child made against all reason must not run on in here.
        Ok(0) => unsafe { libc::_exit(1) },
        Ok(_) => Err(Errno::EIO),
        Err(errno) => Err(errno),
    }
}

/// `PTRACE_O_SUSPEND_SECCOMP`, on a child of its own that is gone afterwards.
pub fn suspend_seccomp() -> Sys<()> {
    let args = CloneArgs {
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    let size = size_of::<CloneArgs>() as u64;
    // SAFETY: without CLONE_VM the child has its own copy of everything; in it only system calls follow.
    let child = unsafe { raw(libc::SYS_clone3, [&raw const args as u64, size, 0, 0, 0, 0]) }?;
    if child == 0 {
        // SAFETY: raw system calls with plain numbers.
        unsafe {
            libc::syscall(libc::SYS_prctl, libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
            loop {
                libc::syscall(libc::SYS_pause);
            }
        }
    }
    let pid = Pid::from_raw(child as i32);
    let options = libc::PTRACE_O_SUSPEND_SECCOMP as u64;
    // SAFETY: no pointers.
    let seized = unsafe {
        raw(
            libc::SYS_ptrace,
            [u64::from(libc::PTRACE_SEIZE), child as u64, 0, options, 0, 0],
        )
    };
    let _ = nix::sys::signal::kill(pid, Signal::SIGKILL);
    let _ = waitpid(pid, None);
    seized.map(drop)
}

/// unshare(2) of the time namespace, in a thread that ends with it.
pub fn time_namespace() -> Sys<()> {
    const CLONE_NEWTIME: u64 = 0x80;
    std::thread::scope(|scope| {
        // SAFETY: no pointers; only what this thread would fork is concerned, and it forks nothing.
        let tried = scope.spawn(|| unsafe { raw(libc::SYS_unshare, [CLONE_NEWTIME, 0, 0, 0, 0, 0]) });
        tried.join().unwrap_or(Err(Errno::EIO)).map(drop)
    })
}

/// prctl(2) `PR_SET_MM_MAP_SIZE`: the size of the structure that `PR_SET_MM_MAP` takes, in bytes.
pub fn set_mm_map_size() -> Sys<u32> {
    const PR_SET_MM: u64 = 35;
    const PR_SET_MM_MAP_SIZE: u64 = 15;
    let mut size = 0u32;
    // SAFETY: the call writes 4 bytes to `size`.
    unsafe {
        raw(
            libc::SYS_prctl,
            [PR_SET_MM, PR_SET_MM_MAP_SIZE, &raw mut size as u64, 0, 0, 0],
        )
    }?;
    Ok(size)
}
