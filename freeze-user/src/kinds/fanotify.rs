//! fanotify(7): groups with their class and flags, and marks on files, mounts and file systems.

use super::marks::{Spot, Target, find_all, mount_by_id, mount_of_device, stat_device};
use super::{FdKind, Placed, Source};
use crate::error::{Blocker, Context, Result};
use crate::ids::FileId;
use crate::nest::{Nest, Options};
use crate::observe::view::{FdView, View};
use crate::sys;
use crate::sys::fanotify::{
    EVENT_ON_CHILD, IGNORE, IGNORED_MASK, IGNORED_SURVIVES, fanotify_mark, fanotify_new,
};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

#[derive(Debug)]
pub struct Fanotify;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Flags of fanotify_init(2), and those of the descriptors that come with events.
    pub flags: u32,
    pub event_flags: u32,
    /// Whether it was made without the right to see everything, so that it tells less.
    pub unprivileged: bool,
    pub marks: Vec<Marked>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marked {
    pub on: On,
    pub spot: Spot,
    pub mask: u64,
    pub ignored: u64,
    /// FAN_MARK_* of the mark itself: whether what is ignored survives a change, whether it may be evicted.
    pub flags: u32,
}

/// What is marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum On {
    File,
    Mount,
    FileSystem,
}

/// A line of fdinfo.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    place: Place,
    mask: u64,
    ignored: u64,
    flags: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    File(Target),
    Mount(i64),
    FileSystem(u32),
}

impl FdKind for Fanotify {
    const TAG: &'static str = "fanotify";
    const VERSION: u16 = 1;
    const ABOUT: &'static str = "fanotify groups: class, flags, marks on files (renamed and unlinked ones too), mounts and \
        file systems with what they ask for and ignore; refused while events wait to be read";
    type Record = Record;

    fn claims(fd: &FdView) -> bool {
        matches!(fd.anon_inode(), Some("fanotify" | "[fanotify]"))
    }

    fn verdict(fd: &FdView, view: &View, out: &mut Vec<Blocker>) {
        let (Some(list), Some(_)) = (entries(fd), group(fd)) else {
            return out.push(unreadable(fd));
        };
        for found in spots(&list, view) {
            if let Err(why) = found {
                out.push(
                    fd.blocker()
                        .why(format!("a mark: {why}"))
                        .remedy("let the program remove the mark (FAN_MARK_REMOVE)"),
                );
            }
        }
        let waiting = fd
            .duplicate()
            .and_then(|here| sys::ioctl_int(here.as_fd(), libc::FIONREAD));
        if waiting.is_ok_and(|n| n > 0) {
            out.push(
                fd.blocker()
                    .why("events wait to be read, which cannot be put back")
                    .remedy("try again once the program has read them"),
            );
        }
    }

    fn collect(fd: &FdView, from: &mut Source<'_>) -> Result<Record> {
        let (Some(list), Some((flags, event_flags))) = (entries(fd), group(fd)) else {
            return Err(unreadable(fd).refuse());
        };
        let mut marks = Vec::new();
        for (entry, found) in list.iter().zip(spots(&list, from.view)) {
            let found = found.map_err(|why| fd.blocker().why(why).refuse())?;
            marks.push(Marked {
                on: match entry.place {
                    Place::File(_) => On::File,
                    Place::Mount(_) => On::Mount,
                    Place::FileSystem(_) => On::FileSystem,
                },
                spot: Spot::new(found, &from.shared.files).ok_or_else(|| unreadable(fd).refuse())?,
                mask: entry.mask,
                ignored: entry.ignored,
                flags: entry.flags,
            });
        }
        const CAP_SYS_ADMIN: u64 = 1 << 21;
        let p = &from.process.view;
        let rights = from.view.namespace(p, "user") == 0 && p.status.cap_eff & CAP_SYS_ADMIN != 0;
        Ok(Record {
            flags,
            event_flags,
            unprivileged: !rights,
            marks,
        })
    }

    fn precheck(record: &Record, options: &Options, out: &mut Vec<Blocker>) {
        record.marks.iter().for_each(|m| m.spot.precheck(options, out));
    }

    fn members(record: &Record) -> Vec<FileId> {
        record.marks.iter().filter_map(|m| m.spot.held).collect()
    }

    fn restore(record: &Record, _: &mut Nest) -> Result<OwnedFd> {
        fanotify_new(record.flags, record.event_flags, record.unprivileged)
            .on("fanotify_init", || "a fanotify group")
    }

    fn finish(record: &Record, placed: Placed, nest: &mut Nest) -> Result<()> {
        // Only now, so that it tells nothing of the files that were opened for the restore.
        // They are told of with the newest first.
        for mark in record.marks.iter().rev() {
            let (here, follow) = mark.spot.reach(nest)?;
            let name = || here.display().to_string();
            // Of files the kernel shows it where it was never asked for, and may not be.
            let found = if follow {
                here.metadata()
            } else {
                here.symlink_metadata()
            };
            let is_directory = found.is_ok_and(|m| m.is_dir());
            let asked = if is_directory { !0 } else { !EVENT_ON_CHILD };
            let add = |kind: u32, mask: u64| {
                fanotify_mark(nest.file(placed.id)?, mark.kind() | kind, mask, &here, follow)
                    .on("fanotify_mark", name)
            };
            if mark.mask & asked != 0 {
                add(mark.flags & !(IGNORE | IGNORED_SURVIVES), mark.mask & asked)?;
            }
            if mark.ignored != 0 {
                let how = if mark.flags & IGNORE != 0 { 0 } else { IGNORED_MASK };
                add(mark.flags | how, mark.ignored)?;
            }
        }
        Ok(())
    }
}

impl Marked {
    /// FAN_MARK_MOUNT or FAN_MARK_FILESYSTEM.
    fn kind(&self) -> u32 {
        match self.on {
            On::File => 0,
            On::Mount => 0x10,
            On::FileSystem => 0x100,
        }
    }
}

fn unreadable(fd: &FdView) -> Blocker {
    fd.blocker()
        .why("the kernel does not show what it marks")
        .remedy("close it before the checkpoint")
}

/// The flags of the group and of the descriptors of its events.
fn group(fd: &FdView) -> Option<(u32, u32)> {
    let line = fd.info.get("fanotify flags")?;
    let (flags, rest) = line.trim().split_once(' ')?;
    let event_flags = rest.trim().strip_prefix("event-flags:")?;
    let hex = |text: &str| u32::from_str_radix(text, 16).ok();
    Some((hex(flags)?, hex(event_flags)?))
}

/// Who of the set decides what may be opened where the image is to go: it stands still, and would never answer.
pub fn in_the_way(view: &View, image: &Path) -> Vec<Blocker> {
    let image = std::path::absolute(image).unwrap_or_else(|_| image.to_owned());
    let image = image.ancestors().find(|at| at.exists()).unwrap_or(Path::new("/"));
    let groups = view.fds().filter(|fd| Fanotify::claims(fd));
    groups
        .filter(|fd| entries(fd).is_some_and(|list| list.iter().any(|e| e.decides_at(image))))
        .map(|fd| {
            let why = format!(
                "it decides what may be opened where the image would go ({})",
                image.display()
            );
            fd.blocker()
                .why(why)
                .remedy("let the image go to another file system")
        })
        .collect()
}

impl Entry {
    /// Whether its group is asked before something is opened at `at`, on its mount or in its file system.
    fn decides_at(&self, at: &Path) -> bool {
        // FAN_OPEN_PERM, FAN_ACCESS_PERM, FAN_PRE_ACCESS.
        const DECIDES: u64 = 0x10000 | 0x20000 | 0x10_0000;
        let covers = match &self.place {
            // A directory can be marked with what is in it.
            Place::File(target) => std::fs::metadata(at).is_ok_and(|m| (m.dev(), m.ino()) == target.id()),
            Place::Mount(id) => sys::ns::mount_id(at) == Ok(*id),
            Place::FileSystem(sdev) => std::fs::metadata(at).is_ok_and(|m| m.dev() == stat_device(*sdev)),
        };
        self.mask & DECIDES != 0 && covers
    }
}

fn entries(fd: &FdView) -> Option<Vec<Entry>> {
    let mut out = Vec::new();
    for first in ["ino", "mnt_id", "sdev"] {
        for line in fd.info.all(&format!("fanotify {first}")) {
            out.push(entry(first, line)?);
        }
    }
    Some(out)
}

/// `fanotify mnt_id:12 mflags:0 mask:3b ignored_mask:40000000`, after its first key.
fn entry(first: &str, line: &str) -> Option<Entry> {
    let line = format!("{first}:{}", line.trim());
    let fields: HashMap<&str, &str> = line
        .split_ascii_whitespace()
        .filter_map(|w| w.split_once(':'))
        .collect();
    let hex = |key: &str| u64::from_str_radix(fields.get(key)?, 16).ok();
    Some(Entry {
        place: match first {
            "ino" => Place::File(Target::parse(&fields)?),
            "mnt_id" => Place::Mount(hex("mnt_id")? as i64),
            _ => Place::FileSystem(hex("sdev")? as u32),
        },
        mask: hex("mask")?,
        ignored: hex("ignored_mask")?,
        flags: hex("mflags")? as u32,
    })
}

/// Where each mark is, or why it is not found.
fn spots(list: &[Entry], view: &View) -> Vec<Result<super::marks::Found, String>> {
    use super::marks::Found;
    let targets: Vec<Target> = list
        .iter()
        .filter_map(|e| match &e.place {
            Place::File(target) => Some(target.clone()),
            _ => None,
        })
        .collect();
    let mut files = find_all(&targets, view).into_iter();
    let mount = |found: Option<(PathBuf, u32)>| {
        let found = found.map(|(path, tree)| Found::Path(path, tree));
        found.ok_or_else(|| "its mount is not in sight".to_owned())
    };
    list.iter()
        .map(|e| match e.place {
            Place::File(_) => files.next().unwrap_or_else(|| Err("it is not found".into())),
            Place::Mount(id) => mount(mount_by_id(id, view)),
            Place::FileSystem(sdev) => mount(mount_of_device(sdev, view)),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Pid;
    use crate::observe::view::read_fd;
    use std::os::fd::AsRawFd;

    #[test]
    fn lines_are_read() {
        let e = entry("mnt_id", "12 mflags:40 mask:3b ignored_mask:40000000").unwrap();
        assert_eq!(
            (e.place, e.mask, e.ignored, e.flags),
            (Place::Mount(0x12), 0x3b, 0x4000_0000, 0x40)
        );
        let e = entry("sdev", "800013 mflags:0 mask:3b ignored_mask:0").unwrap();
        assert_eq!(e.place, Place::FileSystem(0x800013));
        assert_eq!(entry("ino", "5 sdev:1"), None);
    }

    #[test]
    fn a_group_is_shown_as_it_was_made() {
        // FAN_CLASS_NOTIF with FAN_REPORT_FID, which needs no rights.
        let Ok(fd) = fanotify_new(0x202, 0, true) else {
            return;
        };
        let path = std::env::temp_dir();
        let modify = 2;
        if fanotify_mark(fd.as_fd(), 0, modify, &path, false).is_err() {
            return;
        }
        let seen = read_fd(Pid(std::process::id() as i32), fd.as_raw_fd()).unwrap();
        assert!(Fanotify::claims(&seen));
        assert_eq!(group(&seen).map(|(flags, _)| flags), Some(0x202));
        let list = entries(&seen).unwrap();
        assert_eq!((list.len(), list[0].mask, list[0].ignored), (1, modify, 0));
        let found = spots(&list, &View::default());
        assert_eq!(found, [Ok(super::super::marks::Found::Path(path, 0))]);
    }
}
