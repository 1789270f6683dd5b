//! Starting a program for `freeze watch -- COMMAND`: detached, in a session of its own, holding nothing of freeze's.

use crate::error::{Blocker, Context, Result};
use crate::ids::Pid;
use crate::sys;
use clap::Args;
use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// A program that was started. Dropping it ends it: what is not watched is not left behind.
#[derive(Debug)]
pub(super) struct Started(Option<Child>);

/// What freeze calls itself with to become the program.
pub(super) const BECOME: &str = "__become";

/// The program to become; used by freeze itself.
#[derive(Args, Debug)]
pub(super) struct BecomeArgs {
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

impl Started {
    /// Starts a program. Its input is /dev/null, its output appended to `log` or thrown away.
    ///
    /// freeze starts itself, and that, being no leader of a group yet, begins a session and becomes the program
    /// under the same pid. Until it does it has a pipe as its input, into which it says what went wrong.
    pub(super) fn start(command: &[OsString], log: Option<&Path>) -> Result<Started> {
        let name = || command[0].to_string_lossy().into_owned();
        let output = match log {
            Some(path) => File::options()
                .append(true)
                .create(true)
                .open(path)
                .on("open", || path.display().to_string())?,
            None => File::options()
                .write(true)
                .open("/dev/null")
                .on("open", || "/dev/null")?,
        };
        let (mut said, say) = std::io::pipe().on("pipe", name)?;
        let mut itself = Command::new("/proc/self/exe");
        itself.arg0("freeze").arg(BECOME).arg("--").args(command);
        itself
            .stdin(Stdio::from(say))
            .stdout(output.try_clone().on("dup", name)?)
            .stderr(output);
        let child = itself.spawn().on("spawn", name)?;
        // The other end of the pipe went with the command.
        drop(itself);
        let started = Started(Some(child));
        let mut trouble = String::new();
        said.read_to_string(&mut trouble).on("read", name)?;
        match trouble.is_empty() {
            true => {
                started.settle();
                Ok(started)
            }
            false => Err(Blocker::at(name(), "")
                .why(trouble)
                .remedy("check the command")
                .refuse()),
        }
    }

    /// Waits until the kernel has set the new program up: it closes the pipe a moment before.
    fn settle(&self) {
        let path = format!("/proc/{}/cmdline", self.pid());
        let end = Instant::now() + Duration::from_secs(1);
        while std::fs::read(&path).is_ok_and(|line| line.is_empty()) && Instant::now() < end {
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Its pid.
    pub(super) fn pid(&self) -> Pid {
        Pid(self.0.as_ref().map_or(0, |c| c.id() as i32))
    }

    /// Leaves it running.
    pub(super) fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Becomes the program; comes back only with the status to end with.
pub(super) fn run_become(args: &BecomeArgs) -> ExitCode {
    // Closed by the exec, which tells freeze that all went well.
    let Ok(say) = std::io::stdin().as_fd().try_clone_to_owned() else {
        return ExitCode::from(126);
    };
    let trouble = become_it(args);
    let _ = write!(File::from(say), "{trouble}");
    ExitCode::from(127)
}

fn become_it(args: &BecomeArgs) -> String {
    let prepared = File::open("/dev/null")
        .map_err(|e| e.to_string())
        .and_then(|null| {
            nix::unistd::dup2_stdin(&null).map_err(|e| format!("dup2: {}", e.desc()))?;
            nix::unistd::setsid().map_err(|e| format!("setsid: {}", e.desc()))?;
            // Whoever started freeze may have left descriptors open that lead out of what is to be watched.
            sys::cloexec_from(3).map_err(|e| format!("close_range: {}", e.desc()))
        });
    match prepared {
        Err(text) => text,
        Ok(()) => Command::new(&args.command[0])
            .args(&args.command[1..])
            .exec()
            .to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_not_kept_is_ended() {
        let child = Command::new("sleep").arg("300").spawn().unwrap();
        let started = Started(Some(child));
        let pid = started.pid();
        assert!(Path::new(&format!("/proc/{pid}")).exists());
        drop(started);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }
}
