//! Character devices without state of their own: null, zero, full, random, urandom.

use super::{FdKind, Placed, Source};
use crate::error::{Blocker, Context, Result};
use crate::ids::FileId;
use crate::nest::{Nest, Options};
use crate::observe::view::{FdView, FileStat, View};
use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, major, minor};
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

#[derive(Debug)]
pub struct Device;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub path: PathBuf,
    /// Major and minor number.
    pub number: (u64, u64),
    pub flags: i32,
    /// The number of the tree of files (mount namespace) it is in.
    #[serde(default)]
    pub tree: u32,
}

/// Minor numbers of the memory devices (major 1) that keep nothing between two calls.
const STATELESS: [u64; 5] = [3, 5, 7, 8, 9];

impl FdKind for Device {
    const TAG: &'static str = "device";
    const VERSION: u16 = 1;
    const ABOUT: &'static str = "/dev/null, zero, full, random and urandom";
    type Record = Record;

    fn claims(fd: &FdView) -> bool {
        fd.stat.kind() == libc::S_IFCHR && is_stateless(fd.stat.rdev)
    }

    fn verdict(fd: &FdView, _: &View, out: &mut Vec<Blocker>) {
        if let Some((why, remedy)) = super::regular::FileRef::obstacle(&fd.link, &fd.stat, &fd.at(), &fd.tree)
        {
            out.push(fd.blocker().why(why).remedy(remedy));
        }
    }

    fn collect(fd: &FdView, _: &mut Source<'_>) -> Result<Record> {
        let number = (major(fd.stat.rdev), minor(fd.stat.rdev));
        Ok(Record {
            path: OsStr::from_bytes(&fd.link).into(),
            number,
            flags: fd.flags(),
            tree: fd.tree.number,
        })
    }

    fn precheck(record: &Record, options: &Options, out: &mut Vec<Blocker>) {
        let Some(here) = options.place(record.tree, &record.path) else {
            return;
        };
        let found = match std::fs::metadata(here).map(|m| FileStat::from(&m)) {
            Ok(s) if s.kind() == libc::S_IFCHR && (major(s.rdev), minor(s.rdev)) == record.number => return,
            Ok(_) => "something else".to_owned(),
            Err(e) => e.to_string(),
        };
        out.push(
            Blocker::at(record.path.display().to_string(), "")
                .why(format!(
                    "expected the device {}:{}, found {found}",
                    record.number.0, record.number.1
                ))
                .remedy("create the device node"),
        );
    }

    fn members(_: &Record) -> Vec<FileId> {
        Vec::new()
    }

    fn restore(record: &Record, nest: &mut Nest) -> Result<OwnedFd> {
        open(&nest.options.reach(record.tree, &record.path)?, record.flags)
    }

    fn finish(_: &Record, _: Placed, _: &mut Nest) -> Result<()> {
        Ok(())
    }
}

/// Whether a device number is one of the stateless memory devices.
pub fn is_stateless(rdev: u64) -> bool {
    major(rdev) == 1 && STATELESS.contains(&minor(rdev))
}

fn open(path: &Path, flags: i32) -> Result<OwnedFd> {
    let flags = OFlag::from_bits_retain(flags & !(libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC));
    let flags = flags | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
    nix::fcntl::open(path, flags, Mode::empty()).on("open", || path.display().to_string())
}
