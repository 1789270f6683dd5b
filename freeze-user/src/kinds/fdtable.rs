//! The descriptor table: which number is which open file description, close-on-exec, and the process's own locks.

use super::{ProcessKind, Source, Stage, kind_of};
use crate::error::{Blocker, Result};
use crate::ids::{FileId, Pid};
use crate::nest::{Nest, Options};
use crate::observe::looks;
use crate::observe::view::{ProcessView, View};
use crate::sys;
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

#[derive(Debug)]
pub struct FdTable;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// In ascending order.
    pub slots: Vec<Slot>,
    /// Locks of the process on files it has open (fcntl F_SETLK), each through one of its descriptors.
    pub locks: Vec<PosixLock>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    pub fd: i32,
    pub file: FileId,
    pub cloexec: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PosixLock {
    pub fd: i32,
    pub write: bool,
    pub start: u64,
    /// Last byte, or `None` for the end of the file.
    pub end: Option<u64>,
}

impl ProcessKind for FdTable {
    const TAG: &'static str = "fd-table";
    const VERSION: u16 = 1;
    const ABOUT: &'static str =
        "descriptors by number, shared descriptions kept shared, close-on-exec, POSIX record locks";
    const STAGE: Stage = Stage::Files;
    type Record = Record;

    fn verdict(p: &ProcessView, view: &View, out: &mut Vec<Blocker>) {
        let here = p
            .fds
            .iter()
            .filter(|f| f.tree.number == 0 && f.link.starts_with(b"/"));
        looks::foresee_identities(here.map(|f| Path::new(OsStr::from_bytes(&f.link))));
        let bound = view.each().any(|q| view.namespace(q, "user") != 0);
        for fd in &p.fds {
            let before = out.len();
            if bound && is_of_thread(&fd.link) {
                out.push(
                    fd.blocker()
                        .why("it tells of a thread, and those of processes in a user namespace can be made only after all descriptors")
                        .remedy("let the program close it"),
                );
            }
            match kind_of(fd) {
                Some(kind) => (kind.verdict)(fd, view, out),
                None => out.push(unknown(fd)),
            }
            // Whoever keeps making and renaming files would be refused for another one at each look. What is there once it
            // stands still is judged then, and for good: what others do to it meanwhile must not hide what is in its way.
            if out.len() > before && !view.stands_still() && !fd.is_as_seen() {
                out.truncate(before);
            }
        }
    }

    fn collect(from: &mut Source<'_>) -> Result<Record> {
        let p = &from.process.view;
        let mut slots = Vec::with_capacity(p.fds.len());
        let mut locks = Vec::new();
        let mut locked = std::collections::BTreeSet::new();
        for fd in &p.fds {
            let Some(&file) = from.shared.files.get(&(p.pid, fd.fd)) else {
                continue;
            };
            slots.push(Slot {
                fd: fd.fd,
                file,
                cloexec: fd.cloexec(),
            });
            // Only the description by which a lock was taken shows it, under each of its numbers: take it once.
            if !locked.insert(file) {
                continue;
            }
            let posix = fd.info.locks.iter().filter(|l| l.class == "POSIX");
            locks.extend(posix.map(|l| PosixLock {
                fd: fd.fd,
                write: l.kind == "WRITE",
                start: l.start,
                end: l.end,
            }));
        }
        Ok(Record { slots, locks })
    }

    fn precheck(_: &Record, _: Pid, _: &Options, _: &mut Vec<Blocker>) {}

    fn restore(record: &Record, pid: Pid, nest: &mut Nest) -> Result<()> {
        let door = nest.door();
        let mut calls = Vec::with_capacity(record.slots.len() * 3);
        let mut next = 0u64; // the lowest free number: all below are taken, since slots ascend
        for slot in &record.slots {
            let fd = slot.fd as u64;
            let from = nest.file(slot.file)?.as_raw_fd() as u64;
            calls.push(("pidfd_getfd", libc::SYS_pidfd_getfd, [door, from, 0, 0, 0, 0]));
            let flags = if slot.cloexec { libc::O_CLOEXEC as u64 } else { 0 };
            if next == fd {
                let flag = if slot.cloexec { libc::FD_CLOEXEC as u64 } else { 0 };
                calls.push((
                    "fcntl(F_SETFD)",
                    libc::SYS_fcntl,
                    [fd, libc::F_SETFD as u64, flag, 0, 0, 0],
                ));
                next += 1;
            } else {
                calls.push(("dup3", libc::SYS_dup3, [next, fd, flags, 0, 0, 0]));
                calls.push(("close", libc::SYS_close, [next, 0, 0, 0, 0, 0]));
            }
            let taken = |n: u64| {
                n == door || n <= fd && record.slots.binary_search_by_key(&(n as i32), |s| s.fd).is_ok()
            };
            while taken(next) {
                next += 1;
            }
        }
        let building = nest.process(pid)?;
        building.play(&calls)?;
        if !record.locks.is_empty() {
            nest.state::<Owed>().0.push((pid, record.locks.clone()));
        }
        Ok(())
    }
}

/// Locks that are still to be taken, by process.
#[derive(Debug, Default)]
struct Owed(Vec<(Pid, Vec<PosixLock>)>);

/// Takes the locks of all processes, once no descriptor will be put out of the way any more: each that a process closes takes
/// its locks on that file along.
pub fn lock(nest: &mut Nest) -> Result<()> {
    for (pid, locks) in std::mem::take(&mut nest.state::<Owed>().0) {
        let building = nest.process(pid)?;
        for some in locks.chunks(64) {
            building.tape(|t| {
                for lock in some {
                    let arg = t.bytes(&sys::flock64(lock.write, lock.start, lock.end));
                    t.call(
                        "fcntl(F_SETLK)",
                        libc::SYS_fcntl,
                        &[lock.fd as u64, libc::F_SETLK as u64, arg],
                    );
                }
            })?;
        }
    }
    Ok(())
}

/// Whether a path is one of /proc that tells of a thread other than the first.
fn is_of_thread(link: &[u8]) -> bool {
    let words: Vec<&[u8]> = link.split(|c| *c == b'/').collect();
    matches!(words[..], [_, b"proc", pid, b"task", tid, ..] if pid != tid)
}

/// The refusal of a descriptor that no kind claims, with the best word for what it is.
fn unknown(fd: &crate::observe::view::FdView) -> Blocker {
    let what = match (fd.stat.kind(), fd.anon_inode()) {
        (_, Some("[fanotify]" | "fanotify")) => "a fanotify group",
        (_, Some("[userfaultfd]" | "userfaultfd")) => "a userfaultfd",
        (_, Some("[perf_event]" | "perf_event")) => "a perf event",
        (_, Some(name)) if name.starts_with("bpf") => "an eBPF object",
        (_, Some(_)) => "a kernel object of a kind freeze does not know",
        (libc::S_IFSOCK, _) => "a socket of a kind freeze does not carry",
        (libc::S_IFCHR, _) => "a device with state of its own",
        (libc::S_IFBLK, _) => "a block device",
        _ if fd.link.starts_with(b"/secretmem") => "memory of memfd_secret(2), which cannot be read,",
        _ => "a kind of file freeze does not know",
    };
    fd.blocker()
        .why(format!("{what} is not carried"))
        .remedy("let the program close it before the checkpoint")
}
