//! signalfd(2): a mask of signals; what is pending is the process's, not the descriptor's.

use super::{FdKind, Placed, Source};
use crate::error::{Blocker, Context, Result};
use crate::ids::FileId;
use crate::nest::{Nest, Options};
use crate::observe::view::{FdView, View};
use crate::sys;
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;

#[derive(Debug)]
pub struct SignalFd;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Bit N-1 for signal N.
    pub mask: u64,
}

impl FdKind for SignalFd {
    const TAG: &'static str = "signalfd";
    const VERSION: u16 = 1;
    const ABOUT: &'static str = "signalfd: the mask";
    type Record = Record;

    fn claims(fd: &FdView) -> bool {
        fd.anon_inode() == Some("signalfd")
    }

    fn verdict(fd: &FdView, _: &View, out: &mut Vec<Blocker>) {
        if mask(fd).is_none() {
            out.push(unseen(fd));
        }
    }

    fn collect(fd: &FdView, _: &mut Source<'_>) -> Result<Record> {
        Ok(Record {
            mask: mask(fd).ok_or_else(|| unseen(fd).refuse())?,
        })
    }

    fn precheck(_: &Record, _: &Options, _: &mut Vec<Blocker>) {}

    fn members(_: &Record) -> Vec<FileId> {
        Vec::new()
    }

    fn restore(record: &Record, _: &mut Nest) -> Result<OwnedFd> {
        sys::signalfd(record.mask, libc::SFD_CLOEXEC).on("signalfd4", || format!("mask {:#x}", record.mask))
    }

    fn finish(_: &Record, _: Placed, _: &mut Nest) -> Result<()> {
        Ok(())
    }
}

fn mask(fd: &FdView) -> Option<u64> {
    u64::from_str_radix(fd.info.get("sigmask")?, 16).ok()
}

fn unseen(fd: &FdView) -> Blocker {
    fd.blocker()
        .why("the kernel does not show its mask")
        .remedy("close it before the checkpoint")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn what_is_read_makes_the_same_again() {
        for wanted in [0, 1 << 9, 1 << 13 | 1, 1 << 63 | 1 << 33] {
            let fd = sys::signalfd(wanted, libc::SFD_NONBLOCK).unwrap();
            let own = crate::ids::Pid(std::process::id() as i32);
            let seen = crate::observe::view::read_fd(own, fd.as_raw_fd()).unwrap();
            assert!(SignalFd::claims(&seen));
            assert_eq!(mask(&seen), Some(wanted));
        }
    }
}
