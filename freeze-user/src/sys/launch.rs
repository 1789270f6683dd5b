//! Starting a program so that nothing leads from it to whoever started it: own session, no inherited descriptors.
#![allow(
    unsafe_code,
    reason = "what runs between fork(2) and execve(2) is marked unsafe by the standard library"
)]

use std::os::unix::process::CommandExt;
use std::process::Command;

/// Makes `command` lead a session of its own and close every descriptor above standard error.
pub fn apart(command: &mut Command) -> &mut Command {
    const CLOSE_RANGE_CLOEXEC: u32 = 4;
    // SAFETY: both calls are async-signal-safe, touch no memory and no lock of this process.
    unsafe {
        command.pre_exec(|| {
            nix::unistd::setsid()?;
            // Not closed but marked: the standard library reports a failing execve(2) through one of them.
            match libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, CLOSE_RANGE_CLOEXEC) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        })
    }
}
