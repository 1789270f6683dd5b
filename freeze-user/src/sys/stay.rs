//! A command that is done for who called it, while a process of its own stays behind and finishes the work.
#![allow(unsafe_code, reason = "a process that stays behind is forked here")]

use super::{Sys, raw};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::RawFd;
use std::process::ExitCode;

/// Who this process is after [`split`].
#[derive(Debug)]
pub enum Side {
    /// The process that was called: it ends with this status.
    Front(ExitCode),
    /// The process that does the work.
    Back(Back),
}

/// The process that does the work. As long as it has not said that it is done, it is told to stop when the front ends.
#[derive(Debug)]
pub struct Back {
    front: File,
    /// Descriptors that were open when the work began.
    inherited: Vec<RawFd>,
}

/// Forks. The front waits here until the back is done or has ended. To be called while there is one thread only.
pub fn split() -> Sys<Side> {
    let inherited = open_descriptors();
    let (told, tell) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    let parent = nix::unistd::getpid();
    // SAFETY: there is one thread, so nothing is locked in the child that nobody would unlock.
    let pid = unsafe { libc::fork() };
    let pid = nix::errno::Errno::result(pid)?;
    if pid == 0 {
        drop(told);
        die_with_parent(libc::SIGTERM);
        if nix::unistd::getppid() != parent {
            // It ended before the signal was asked for.
            super::interrupt::raise(libc::SIGTERM);
        }
        return Ok(Side::Back(Back {
            front: File::from(tell),
            inherited,
        }));
    }
    drop(tell);
    let mut code = [0];
    if File::from(told).read_exact(&mut code).is_ok() {
        return Ok(Side::Front(ExitCode::from(code[0])));
    }
    use nix::sys::wait::{WaitStatus, waitpid};
    let status = waitpid(nix::unistd::Pid::from_raw(pid), None)?;
    Ok(Side::Front(match status {
        WaitStatus::Exited(_, code) => ExitCode::from(code as u8),
        WaitStatus::Signaled(_, signal, _) => ExitCode::from(128 + signal as u8),
        _ => ExitCode::from(70),
    }))
}

impl Back {
    /// Lets the front end with status 0, and holds nothing any more of what it was started with. What it had as its
    /// standard error is given back if nobody waits for the end of it, as the reader of a pipe does.
    pub fn done(mut self) -> Option<File> {
        use std::os::fd::AsFd;
        use std::os::unix::fs::FileTypeExt;
        die_with_parent(0);
        let stderr = std::io::stderr().as_fd().try_clone_to_owned().map(File::from);
        let stderr = stderr.ok().filter(|f| {
            let kind = f.metadata().map(|m| m.file_type());
            kind.is_ok_and(|k| !k.is_fifo() && !k.is_socket())
        });
        for fd in self.inherited.iter().filter(|fd| **fd > 2) {
            let _ = super::plain(libc::SYS_close, [*fd as u64, 0, 0, 0, 0, 0]);
        }
        if let Ok(null) = File::options().read(true).write(true).open("/dev/null") {
            let _ = nix::unistd::dup2_stdin(&null);
            let _ = nix::unistd::dup2_stdout(&null);
            let _ = nix::unistd::dup2_stderr(&null);
        }
        let name = b"freeze-lazy\0";
        // SAFETY: a name that ends in a zero byte.
        let _ = unsafe {
            raw(
                libc::SYS_prctl,
                [libc::PR_SET_NAME as u64, name.as_ptr() as u64, 0, 0, 0, 0],
            )
        };
        let _ = self.front.write_all(&[0]);
        stderr
    }
}

fn die_with_parent(signal: i32) {
    let args = [libc::PR_SET_PDEATHSIG as u64, signal as u64, 0, 0, 0, 0];
    let _ = super::plain(libc::SYS_prctl, args);
}

fn open_descriptors() -> Vec<RawFd> {
    let all = std::fs::read_dir("/proc/self/fd").into_iter().flatten();
    let mut all: Vec<RawFd> = all
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.parse().ok())
        .collect();
    // The directory's own is closed by now. It had the lowest free number, which another file will have next, and which
    // must not be closed along with what was inherited.
    all.retain(|fd| super::plain(libc::SYS_fcntl, [*fd as u64, libc::F_GETFD as u64, 0, 0, 0, 0]).is_ok());
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

    #[test]
    fn what_is_open_is_told_and_not_the_number_that_was_used_to_look() {
        // With a number far above the lowest free one.
        let file = File::open("/dev/null").unwrap();
        let high = super::super::fcntl(file.as_fd(), libc::F_DUPFD_CLOEXEC, 900).unwrap() as RawFd;
        // SAFETY: fcntl(2) has just made it, and nobody else has it.
        let high = unsafe { OwnedFd::from_raw_fd(high) };
        let open = open_descriptors();
        assert!(open.contains(&high.as_raw_fd()) && open.contains(&file.as_raw_fd()));
    }
}
