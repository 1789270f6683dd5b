//! eventfd(2): a 64-bit counter, plain or as a semaphore.

use super::{FdKind, Placed, Source};
use crate::error::{Blocker, Context, Result};
use crate::ids::FileId;
use crate::nest::{Nest, Options};
use crate::observe::view::{FdView, View};
use crate::sys;
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

#[derive(Debug)]
pub struct EventFd;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// All 64 bits.
    pub count: u64,
    pub semaphore: bool,
}

impl FdKind for EventFd {
    const TAG: &'static str = "eventfd";
    const VERSION: u16 = 1;
    const ABOUT: &'static str = "eventfd: counter (64 bits) and semaphore mode";
    type Record = Record;

    fn claims(fd: &FdView) -> bool {
        fd.anon_inode() == Some("eventfd")
    }

    fn verdict(fd: &FdView, _: &View, out: &mut Vec<Blocker>) {
        if count(fd).is_none() {
            out.push(unseen(fd));
        }
    }

    fn collect(fd: &FdView, from: &mut Source<'_>) -> Result<Record> {
        let count = count(fd).ok_or_else(|| unseen(fd).refuse())?;
        let semaphore = match fd.info.get("eventfd-semaphore") {
            Some(mode) => mode != "0",
            None => try_semaphore(from.process.fd(fd.fd)?.as_fd(), count).on("read", || "an eventfd")?,
        };
        Ok(Record { count, semaphore })
    }

    fn precheck(_: &Record, _: &Options, _: &mut Vec<Blocker>) {}

    fn members(_: &Record) -> Vec<FileId> {
        Vec::new()
    }

    fn restore(record: &Record, _: &mut Nest) -> Result<OwnedFd> {
        let mode = if record.semaphore { libc::EFD_SEMAPHORE } else { 0 };
        let fd = sys::eventfd(mode | libc::EFD_NONBLOCK).on("eventfd2", || "an eventfd")?;
        if record.count != 0 {
            nix::unistd::write(fd.as_fd(), &record.count.to_ne_bytes()).on("write", || "an eventfd")?;
        }
        Ok(fd)
    }

    fn finish(_: &Record, _: Placed, _: &mut Nest) -> Result<()> {
        Ok(())
    }
}

fn unseen(fd: &FdView) -> Blocker {
    fd.blocker()
        .why("the kernel does not show its counter")
        .remedy("close it before the checkpoint")
}

/// Hexadecimal in fdinfo, padded with blanks.
fn count(fd: &FdView) -> Option<u64> {
    u64::from_str_radix(fd.info.get("eventfd-count")?, 16).ok()
}

/// Finds the mode on kernels before 6.5, whose fdinfo does not tell it: at a count of two or more a read
/// takes one from a semaphore and all from a counter. The count is put back; the process stands still meanwhile.
fn try_semaphore(fd: BorrowedFd<'_>, count: u64) -> nix::Result<bool> {
    let raise = |by: u64| {
        if by == 0 {
            Ok(0)
        } else {
            nix::unistd::write(fd, &by.to_ne_bytes())
        }
    };
    let added = 2u64.saturating_sub(count);
    raise(added)?;
    let mut got = [0; 8];
    nix::unistd::read(fd, &mut got)?;
    let semaphore = u64::from_ne_bytes(got) == 1;
    if semaphore {
        // One was taken; take what else was added.
        for _ in 1..added {
            nix::unistd::read(fd, &mut got)?;
        }
        raise(1u64.saturating_sub(added))?;
    } else {
        raise(count)?;
    }
    Ok(semaphore)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mode_is_found_and_the_count_kept() {
        for semaphore in [false, true] {
            for count in [0u64, 1, 2, 3, 77, u64::MAX - 2] {
                let mode = if semaphore { libc::EFD_SEMAPHORE } else { 0 };
                let fd = sys::eventfd(mode | libc::EFD_NONBLOCK).unwrap();
                if count > 0 {
                    nix::unistd::write(&fd, &count.to_ne_bytes()).unwrap();
                }
                assert_eq!(try_semaphore(fd.as_fd(), count), Ok(semaphore));
                let seen = crate::observe::view::read_fd(
                    crate::ids::Pid(std::process::id() as i32),
                    std::os::fd::AsRawFd::as_raw_fd(&fd),
                );
                assert_eq!(super::count(&seen.unwrap()), Some(count));
            }
        }
    }
}
