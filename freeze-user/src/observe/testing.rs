//! Processes for the tests of this module: started, spoken to by lines, killed with their group when dropped.

use crate::ids::Pid;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdout, Command, Stdio};

/// Whether the kernel will let these tests load programs; if not they say so and prove nothing.
pub(super) fn privileged() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("skipped: needs root");
    }
    root
}

/// A child with a line-wise conversation.
pub(super) struct Subject {
    child: Child,
    ended: bool,
    said: BufReader<ChildStdout>,
}

impl Subject {
    pub(super) fn start(program: &str, args: &[&str]) -> Subject {
        let mut command = Command::new(program);
        command
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0);
        let mut child = command.spawn().unwrap_or_else(|e| panic!("{program}: {e}"));
        let said = BufReader::new(child.stdout.take().unwrap());
        Subject {
            child,
            ended: false,
            said,
        }
    }

    pub(super) fn pid(&self) -> Pid {
        Pid(self.child.id() as i32)
    }

    pub(super) fn say(&mut self, line: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    pub(super) fn line(&mut self) -> String {
        let mut line = String::new();
        self.said.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Has it end, and waits until nothing is left of it.
    pub(super) fn kill(&mut self) {
        // Once only: afterwards its number may be that of others.
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let _ = nix::sys::signal::killpg(self.pid().nix(), nix::sys::signal::Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        self.kill();
    }
}
