//! Pidfds of processes that are in the checkpoint themselves.

use super::{FdKind, Placed, Source};
use crate::error::{Blocker, Context, Result};
use crate::ids::{FileId, Pid};
use crate::nest::{Nest, Options};
use crate::observe::view::{FdView, View};
use crate::sys;
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;

#[derive(Debug)]
pub struct PidFd;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub pid: Pid,
    /// Whether it stands for the thread instead of the process (PIDFD_THREAD).
    pub thread: bool,
}

impl FdKind for PidFd {
    const TAG: &'static str = "pidfd";
    const VERSION: u16 = 1;
    const ABOUT: &'static str = "pidfds of processes in the checkpoint";
    type Record = Record;

    fn claims(fd: &FdView) -> bool {
        // Since pidfs (Linux 6.9) the link may be `pidfd:[…]`.
        fd.anon_inode() == Some("pidfd") || fd.link.starts_with(b"pidfd:[")
    }

    fn verdict(fd: &FdView, view: &View, out: &mut Vec<Blocker>) {
        let at = || fd.blocker();
        match target(fd) {
            None => out.push(
                at().why("the kernel does not show whose it is")
                    .remedy("close it before the checkpoint"),
            ),
            Some(Pid(..=0)) => out.push(
                at().why("its process has ended or is in another pid namespace")
                    .remedy("let the program close it"),
            ),
            Some(pid) if view.get(pid).is_none() => out.push(
                at().why(format!("it stands for {pid:?}, which is not in the checkpoint"))
                    .remedy("checkpoint a common ancestor, or let the program close it"),
            ),
            Some(_) => {}
        }
    }

    fn collect(fd: &FdView, _: &mut Source<'_>) -> Result<Record> {
        let pid = target(fd).ok_or_else(|| fd.blocker().why("it is nobody's").refuse())?;
        Ok(Record {
            pid,
            thread: fd.flags() & libc::O_EXCL != 0,
        })
    }

    fn precheck(_: &Record, _: &Options, _: &mut Vec<Blocker>) {}

    fn members(_: &Record) -> Vec<FileId> {
        Vec::new()
    }

    fn restore(record: &Record, _: &mut Nest) -> Result<OwnedFd> {
        // The processes exist since the nest was made.
        sys::events::pidfd_open_with(record.pid, record.thread)
            .on("pidfd_open", || format!("pid {}", record.pid))
    }

    fn finish(_: &Record, _: Placed, _: &mut Nest) -> Result<()> {
        Ok(())
    }
}

fn target(fd: &FdView) -> Option<Pid> {
    fd.info.get("Pid")?.parse().ok().map(Pid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn it_tells_whose_it_is() {
        let own = Pid(std::process::id() as i32);
        let fd = sys::pidfd_open(own).unwrap();
        let seen = crate::observe::view::read_fd(own, fd.as_raw_fd()).unwrap();
        assert!(PidFd::claims(&seen));
        assert_eq!(target(&seen), Some(own));
        let mut out = Vec::new();
        PidFd::verdict(&seen, &View::default(), &mut out);
        assert!(out[0].why.contains("not in the checkpoint"), "{out:?}");
    }
}
