//! Which namespaces a process lives in, by numbers in the image, and those that a restore has made or joined.

use crate::error::{Error, Result, errno};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;

/// The kinds of namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    User,
    Pid,
    Mount,
    Net,
    Ipc,
    Uts,
    Cgroup,
    Time,
}

impl Kind {
    /// User namespaces first: they own the others.
    pub const ALL: [Kind; 8] = [
        Kind::User,
        Kind::Pid,
        Kind::Mount,
        Kind::Net,
        Kind::Ipc,
        Kind::Uts,
        Kind::Cgroup,
        Kind::Time,
    ];

    /// Its name in /proc/PID/ns.
    pub fn name(self) -> &'static str {
        match self {
            Kind::User => "user",
            Kind::Pid => "pid",
            Kind::Mount => "mnt",
            Kind::Net => "net",
            Kind::Ipc => "ipc",
            Kind::Uts => "uts",
            Kind::Cgroup => "cgroup",
            Kind::Time => "time",
        }
    }

    /// Its flag of clone(2) and setns(2).
    pub fn flag(self) -> i32 {
        const CLONE_NEWTIME: i32 = 0x80;
        match self {
            Kind::User => libc::CLONE_NEWUSER,
            Kind::Pid => libc::CLONE_NEWPID,
            Kind::Mount => libc::CLONE_NEWNS,
            Kind::Net => libc::CLONE_NEWNET,
            Kind::Ipc => libc::CLONE_NEWIPC,
            Kind::Uts => libc::CLONE_NEWUTS,
            Kind::Cgroup => libc::CLONE_NEWCGROUP,
            Kind::Time => CLONE_NEWTIME,
        }
    }
}

/// The namespaces of one process by their numbers; what is not named is that of freeze (number 0).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership(pub BTreeMap<Kind, u32>);

impl Membership {
    /// The number of its namespace of one kind.
    pub fn of(&self, kind: Kind) -> u32 {
        self.0.get(&kind).copied().unwrap_or(0)
    }
}

/// The namespaces of a restore: freeze's own as number 0, and all others by kind and number.
#[derive(Debug, Default)]
pub struct Spaces {
    open: BTreeMap<(Kind, u32), OwnedFd>,
    /// Of time namespaces that can only be made by a process for its children: clock, seconds, nanoseconds.
    pub offsets: BTreeMap<u32, Vec<(String, i64, i64)>>,
    /// Control groups that were made for the sake of a namespace which has them for its root.
    pub groups: Groups,
}

/// Control groups that are removed again unless somebody takes them over.
#[derive(Debug, Default)]
pub struct Groups(pub Vec<PathBuf>);

impl Drop for Groups {
    fn drop(&mut self) {
        for dir in self.0.iter().rev() {
            let _ = std::fs::remove_dir(dir);
        }
    }
}

impl Spaces {
    /// Takes in a namespace.
    pub fn put(&mut self, kind: Kind, number: u32, fd: OwnedFd) {
        self.open.insert((kind, number), fd);
    }

    /// Whether a namespace is there; freeze's own always are.
    pub fn has(&self, kind: Kind, number: u32) -> bool {
        number == 0 || self.open.contains_key(&(kind, number))
    }

    /// A descriptor of a namespace; for number 0 only what [`Spaces::own`] has opened.
    pub fn get(&self, kind: Kind, number: u32) -> Option<BorrowedFd<'_>> {
        self.open.get(&(kind, number)).map(AsFd::as_fd)
    }

    /// Its number in freeze's descriptor table, opening freeze's own where that is meant.
    pub fn descriptor(&mut self, kind: Kind, number: u32) -> Result<RawFd> {
        if number == 0 && !self.open.contains_key(&(kind, 0)) {
            let path = format!("/proc/thread-self/ns/{}", kind.name());
            let file = File::open(&path).map_err(|e| {
                let errno = errno(e);
                Error::kernel("open", path, errno)
            })?;
            self.open.insert((kind, 0), file.into());
        }
        self.open
            .get(&(kind, number))
            .map(AsRawFd::as_raw_fd)
            .ok_or_else(|| {
                Error::kernel(
                    "setns",
                    format!("{} namespace {number} of the image", kind.name()),
                    nix::errno::Errno::ENOENT,
                )
            })
    }
}
