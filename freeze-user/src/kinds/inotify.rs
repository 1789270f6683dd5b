//! inotify(7): watches by number, path and mask.

pub mod again;

use super::marks::{Found, Spot, Target, find_all};
use super::{FdKind, Placed, Source};
use crate::error::{Blocker, Context, Error, Result};
use crate::ids::FileId;
use crate::nest::{Nest, Options};
use crate::observe::tree::Tree;
use crate::observe::view::{FdView, View};
use crate::sys::{
    self,
    events::{inotify_add, inotify_new, inotify_remove},
};
use again::{Event, Reach, StandIns, Watch, hopeless, hush, repeat, unhush, waiting};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

#[derive(Debug)]
pub struct Inotify;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// In ascending order of their numbers.
    pub watches: Vec<Watched>,
    /// What waits to be read, the oldest first.
    #[serde(default)]
    pub events: Vec<Event>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Flat", into = "Flat")]
pub struct Watched {
    pub wd: i32,
    pub spot: Spot,
    /// IN_* bits.
    pub mask: u32,
}

/// A watch as it is in the image. Not by serde's `flatten`, which drops fields that it does not know.
#[derive(Serialize, Deserialize)]
struct Flat {
    wd: i32,
    #[serde(with = "crate::ospath")]
    path: PathBuf,
    #[serde(default)]
    tree: u32,
    #[serde(default)]
    held: Option<FileId>,
    mask: u32,
}

impl From<Flat> for Watched {
    fn from(flat: Flat) -> Watched {
        let Flat {
            wd,
            path,
            tree,
            held,
            mask,
        } = flat;
        let spot = Spot { path, tree, held };
        Watched { wd, spot, mask }
    }
}

impl From<Watched> for Flat {
    fn from(watched: Watched) -> Flat {
        let Watched { wd, spot, mask } = watched;
        let Spot { path, tree, held } = spot;
        Flat {
            wd,
            path,
            tree,
            held,
            mask,
        }
    }
}

/// A line `inotify` of fdinfo.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    wd: i32,
    mask: u32,
    target: Target,
}

/// What a program can ask for; the rest of a mask is the kernel's.
const ASKED: u32 = 0xfff | libc::IN_EXCL_UNLINK | libc::IN_ONESHOT;

impl FdKind for Inotify {
    const TAG: &'static str = "inotify";
    const VERSION: u16 = 1;
    const ABOUT: &'static str = "inotify: watches with their numbers and masks, of files that were renamed or unlinked, and of terminals and pipes that are held open, too; \
        events that wait to be read where the kernel lets freeze look at them and the same can be done again (open, close, \
        access, modify, attributes; create, move and delete of names that nothing has now; all of watches that are gone) and \
        there is no fanotify group in the checkpoint; else refused while events wait";
    type Record = Record;

    fn claims(fd: &FdView) -> bool {
        fd.anon_inode() == Some("inotify")
    }

    fn verdict(fd: &FdView, view: &View, out: &mut Vec<Blocker>) {
        let Some(list) = entries(fd) else {
            return out.push(unreadable(fd));
        };
        let targets: Vec<Target> = list.iter().map(|e| e.target.clone()).collect();
        let all = find_all(&targets, view);
        for (entry, found) in list.iter().zip(&all) {
            if let Err(why) = found {
                out.push(
                    fd.blocker()
                        .why(format!("watch {}: {why}", entry.wd))
                        .remedy("let the program remove the watch (inotify_rm_watch)"),
                );
            }
        }
        let Ok(here) = fd.duplicate() else {
            return;
        };
        if sys::ioctl_int(here.as_fd(), libc::FIONREAD).is_ok_and(|n| n == 0) {
            return;
        }
        let refuse = |why: String| {
            fd.blocker()
                .why(why)
                .remedy("try again once the program has read them")
        };
        let Some(events) = waiting(here.as_fd()) else {
            return out.push(refuse("events wait to be read, which cannot be put back".into()));
        };
        let reach = |wd: i32| {
            let Some(at) = list.iter().position(|e| e.wd == wd) else {
                return Reach::Gone;
            };
            let Ok(Found::Path(path, number)) = &all[at] else {
                return Reach::Nowhere;
            };
            let trees = view.trees.all().cloned().chain([Tree::default()]);
            let tree = trees.into_iter().find(|t| t.number == *number);
            tree.map_or(Reach::Nowhere, |t| {
                Reach::Path(t.path(path.as_os_str().as_bytes()))
            })
        };
        if let Some(event) = hopeless(&events, reach) {
            out.push(refuse(format!(
                "an event ({:#x} of watch {}) waits to be read that cannot be brought about again",
                event.mask, event.wd
            )));
        }
        if view.fds().any(super::fanotify::Fanotify::claims) {
            out.push(refuse(
                "events wait to be read, and bringing them about again would tell a fanotify group too"
                    .into(),
            ));
        }
    }

    fn collect(fd: &FdView, from: &mut Source<'_>) -> Result<Record> {
        let list = entries(fd).ok_or_else(|| unreadable(fd).refuse())?;
        let targets: Vec<Target> = list.iter().map(|e| e.target.clone()).collect();
        let mut watches = Vec::new();
        for (entry, found) in list.iter().zip(find_all(&targets, from.view)) {
            let found = found.map_err(|why| fd.blocker().why(why).refuse())?;
            let spot = Spot::new(found, &from.shared.files).ok_or_else(|| unreadable(fd).refuse())?;
            watches.push(Watched {
                wd: entry.wd,
                spot,
                mask: entry.mask & ASKED,
            });
        }
        watches.sort_by_key(|w| w.wd);
        let here = from.process.fd(fd.fd)?;
        let events =
            match sys::ioctl_int(here.as_fd(), libc::FIONREAD).on("ioctl(FIONREAD)", || fd.label())? {
                0 => Vec::new(),
                _ => waiting(here.as_fd()).ok_or_else(|| unreadable(fd).refuse())?,
            };
        Ok(Record { watches, events })
    }

    fn precheck(record: &Record, options: &Options, out: &mut Vec<Blocker>) {
        record.watches.iter().for_each(|w| w.spot.precheck(options, out));
        let spot = |wd: i32| record.watches.iter().find(|w| w.wd == wd).map(|w| &w.spot);
        let trees_there = record
            .watches
            .iter()
            .all(|w| options.place(w.spot.tree, &w.spot.path).is_some());
        let reach = |wd: i32| match spot(wd) {
            None => Reach::Gone,
            Some(s) => options.place(s.tree, &s.path).map_or(Reach::Nowhere, Reach::Path),
        };
        if let Some(event) = hopeless(&record.events, reach).filter(|_| trees_there) {
            let at = spot(event.wd).map_or_else(String::new, |s| s.path.display().to_string());
            out.push(
                Blocker::at(at, String::from_utf8_lossy(&event.name.0).into_owned())
                    .why(format!(
                        "the event {:#x} was waiting to be read, and cannot be brought about any more",
                        event.mask
                    ))
                    .remedy("put the file back where it was"),
            );
        }
    }

    fn members(record: &Record) -> Vec<FileId> {
        record.watches.iter().filter_map(|w| w.spot.held).collect()
    }

    fn restore(_: &Record, _: &mut Nest) -> Result<OwnedFd> {
        inotify_new().on("inotify_init1", || "an inotify instance")
    }

    fn finish(record: &Record, placed: Placed, nest: &mut Nest) -> Result<()> {
        // Only now, so that it tells nothing of the files that were opened for the restore.
        let mut watches = Vec::with_capacity(record.watches.len());
        for w in &record.watches {
            let (at, follow) = w.spot.reach(nest)?;
            watches.push((w.wd, at, follow, w.mask));
        }
        let finished = match record.events.is_empty() {
            true => Vec::new(),
            false => nest.state::<Finished>().0.clone(),
        };
        let fd = nest.file(placed.id)?;
        let there = |wd: i32| record.watches.iter().any(|w| w.wd == wd);
        let gone = StandIns::new(&record.events, there)?;
        let mut all: Vec<Watch> = watches.iter().cloned().chain(gone.watches()).collect();
        all.sort_by_key(|w| w.0);
        watch_all(fd, &all)?;
        if !record.events.is_empty() {
            for (other, watches) in &finished {
                hush(nest.file(*other)?, watches)?;
            }
            repeat(fd, &record.events, &watches, &gone)?;
            for (other, watches) in &finished {
                unhush(nest.file(*other)?, watches)?;
            }
        }
        nest.state::<Finished>().0.push((placed.id, watches));
        Ok(())
    }
}

/// Instances with their watches, which are told nothing of what is done for the next ones.
#[derive(Debug, Default)]
struct Finished(Vec<(FileId, Vec<Watch>)>);

/// Adds the watches with their numbers, which are given out in turn and never twice.
fn watch_all(fd: BorrowedFd<'_>, watches: &[Watch]) -> Result<()> {
    let mut skipped = false;
    for (number, here, follow, mask) in watches {
        let name = || here.display().to_string();
        loop {
            let wd = inotify_add(fd, here, *mask, *follow).on("inotify_add_watch", name)?;
            if wd == *number {
                break;
            }
            if wd > *number {
                return Err(Error::kernel(
                    "inotify_add_watch",
                    format!("{}: watch {number}", name()),
                    Errno::EEXIST,
                ));
            }
            inotify_remove(fd, wd).on("inotify_rm_watch", name)?;
            skipped = true;
            // Each removal leaves an event, and there is a limit to how many may wait.
            if wd % 1024 == 0 {
                drain(fd)?;
            }
        }
    }
    if skipped { drain(fd) } else { Ok(()) }
}

fn drain(fd: BorrowedFd<'_>) -> Result<()> {
    let mut buf = [0; 65536];
    loop {
        match nix::unistd::read(fd, &mut buf) {
            Ok(_) => {}
            Err(Errno::EAGAIN) => return Ok(()),
            Err(e) => return Err(e).on("read", || "an inotify instance"),
        }
    }
}

fn unreadable(fd: &FdView) -> Blocker {
    fd.blocker()
        .why("the kernel does not show what it watches")
        .remedy("close it before the checkpoint")
}

/// What an instance watches, by device and inode.
pub fn watched(fd: &FdView) -> Vec<(u64, u64)> {
    let list = entries(fd).unwrap_or_default();
    list.iter().map(|e| e.target.id()).collect()
}

fn entries(fd: &FdView) -> Option<Vec<Entry>> {
    fd.info.all("inotify wd").map(entry).collect()
}

/// `1 ino:3c4a7 sdev:fe00000 mask:fff ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:a7c4030000000000`.
fn entry(line: &str) -> Option<Entry> {
    let mut words = line.split_ascii_whitespace();
    let wd = i32::from_str_radix(words.next()?, 16).ok()?;
    let fields: HashMap<&str, &str> = words.filter_map(|w| w.split_once(':')).collect();
    Some(Entry {
        wd,
        mask: u32::from_str_radix(fields.get("mask")?, 16).ok()?,
        target: Target::parse(&fields)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Pid;
    use crate::observe::view::read_fd;
    use std::os::fd::AsRawFd;

    #[test]
    fn lines_are_read() {
        let line = "a ino:3c4a7 sdev:fe00000 mask:80000fff ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:a7c4030000000000";
        let e = entry(line).unwrap();
        assert_eq!(
            (e.wd, e.target.ino, e.target.sdev, e.mask),
            (10, 0x3c4a7, 0xfe00000, 0x8000_0fff)
        );
        assert_eq!(e.target.handle, Some((1, vec![0xa7, 0xc4, 3, 0, 0, 0, 0, 0])));
        assert_eq!(entry("1 ino:1 sdev:1"), None);
        assert_eq!(entry("1 ino:1 sdev:1 mask:1 fhandle-type:1 f_handle:abc"), None);
    }

    #[test]
    fn nothing_of_a_watch_is_dropped() {
        #[derive(Serialize)]
        struct Newer {
            wd: i32,
            #[serde(with = "crate::ospath")]
            path: PathBuf,
            mask: u32,
            wings: u8,
        }
        let newer = Newer {
            wd: 1,
            path: "/".into(),
            mask: 2,
            wings: 2,
        };
        let payload = rmp_serde::to_vec_named(&newer).unwrap();
        let e = crate::store::unpack::<Watched>(&payload).unwrap_err();
        assert_eq!(e, "unknown field wings");
    }

    #[test]
    fn watches_come_back_with_their_numbers() {
        let dir = std::env::temp_dir().join(format!("freeze inotify {}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let list: Vec<Watched> = [
            (3, "a", 0x100),
            (4, "b", libc::IN_ONESHOT | 2),
            (2000, "c", 0xfff),
        ]
        .map(|(wd, name, mask)| Watched {
            wd,
            spot: Spot {
                path: dir.join(name),
                tree: 0,
                held: None,
            },
            mask,
        })
        .into();
        list.iter()
            .for_each(|w| std::fs::write(&w.spot.path, "").unwrap());
        let watches: Vec<Watch> = list
            .iter()
            .map(|w| (w.wd, w.spot.path.clone(), false, w.mask))
            .collect();
        let fd = inotify_new().unwrap();
        watch_all(fd.as_fd(), &watches).unwrap();
        let seen = read_fd(Pid(std::process::id() as i32), fd.as_raw_fd()).unwrap();
        let entries = entries(&seen).unwrap();
        let targets: Vec<Target> = entries.iter().map(|e| e.target.clone()).collect();
        let mut got: Vec<Watched> = entries
            .iter()
            .zip(find_all(&targets, &View::default()))
            .map(|(e, found)| Watched {
                wd: e.wd,
                spot: Spot::new(found.unwrap(), &Default::default()).unwrap(),
                mask: e.mask & ASKED,
            })
            .collect();
        got.sort_by_key(|w| w.wd);
        assert_eq!(got, list);
        assert_eq!(
            sys::ioctl_int(fd.as_fd(), libc::FIONREAD),
            Ok(0),
            "what was skipped shows"
        );
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
