//! inotify(7): watches by number, path and mask.

use super::regular::found::unescape;
use super::{FdKind, Placed, Source};
use crate::error::{Blocker, Context, Error, Result};
use crate::ids::FileId;
use crate::nest::{Nest, Options};
use crate::observe::tree::{Tree, Trees};
use crate::observe::view::{FdView, View};
use crate::sys::{
    self,
    events::{inotify_add, inotify_new, inotify_remove},
    files::open_by_handle,
};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

#[derive(Debug)]
pub struct Inotify;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// In ascending order of their numbers.
    pub watches: Vec<Watched>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watched {
    pub wd: i32,
    pub path: PathBuf,
    /// IN_* bits.
    pub mask: u32,
    /// The number of the tree of files (mount namespace) it is in.
    #[serde(default)]
    pub tree: u32,
}

/// A line `inotify` of fdinfo.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    wd: i32,
    ino: u64,
    /// The kernel's form of the device number: 12 bits of major, 20 of minor.
    sdev: u32,
    mask: u32,
    /// Type and bytes of the file handle, where the file system has them.
    handle: Option<(i32, Vec<u8>)>,
}

/// What a program can ask for; the rest of a mask is the kernel's.
const ASKED: u32 = 0xfff | libc::IN_EXCL_UNLINK | libc::IN_ONESHOT;

impl FdKind for Inotify {
    const TAG: &'static str = "inotify";
    const VERSION: u16 = 1;
    const ABOUT: &'static str =
        "inotify: watches with their numbers, paths and masks; refused while events wait to be read";
    type Record = Record;

    fn claims(fd: &FdView) -> bool {
        fd.anon_inode() == Some("inotify")
    }

    fn verdict(fd: &FdView, view: &View, out: &mut Vec<Blocker>) {
        let Some(list) = entries(fd) else {
            return out.push(unreadable(fd));
        };
        let mut mounts = Mounts::new(&view.trees);
        for entry in &list {
            if let Err(why) = path_of(entry, &mut mounts) {
                out.push(
                    fd.blocker()
                        .why(format!("watch {}: {why}", entry.wd))
                        .remedy("let the program remove the watch (inotify_rm_watch)"),
                );
            }
        }
        let waiting = sys::pidfd_open(fd.pid)
            .and_then(|p| sys::pidfd_getfd(p.as_fd(), fd.fd))
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
        let mut mounts = Mounts::new(&from.view.trees);
        let mut watches = Vec::new();
        for entry in entries(fd).ok_or_else(|| unreadable(fd).refuse())? {
            let (path, tree) = path_of(&entry, &mut mounts).map_err(|why| fd.blocker().why(why).refuse())?;
            watches.push(Watched {
                wd: entry.wd,
                path,
                tree,
                mask: entry.mask & ASKED,
            });
        }
        watches.sort_by_key(|w| w.wd);
        Ok(Record { watches })
    }

    fn precheck(record: &Record, options: &Options, out: &mut Vec<Blocker>) {
        for watch in &record.watches {
            let Some(here) = options.place(watch.tree, &watch.path) else {
                continue;
            };
            if let Err(e) = std::fs::symlink_metadata(here) {
                out.push(
                    Blocker::at(watch.path.display().to_string(), "")
                        .why(format!("the program watched it, and it is missing: {e}"))
                        .remedy("put it back where it was"),
                );
            }
        }
    }

    fn members(_: &Record) -> Vec<FileId> {
        Vec::new()
    }

    fn restore(_: &Record, _: &mut Nest) -> Result<OwnedFd> {
        inotify_new().on("inotify_init1", || "an inotify instance")
    }

    fn finish(record: &Record, placed: Placed, nest: &mut Nest) -> Result<()> {
        // Only now, so that it tells nothing of the files that were opened for the restore.
        watch_all(nest.file(placed.id)?, &record.watches, &nest.options)
    }
}

/// Adds the watches with their numbers, which are given out in turn and never twice.
fn watch_all(fd: BorrowedFd<'_>, watches: &[Watched], options: &Options) -> Result<()> {
    let mut skipped = false;
    for watch in watches {
        let name = || watch.path.display().to_string();
        let here = options.reach(watch.tree, &watch.path)?;
        loop {
            let wd = inotify_add(fd, &here, watch.mask).on("inotify_add_watch", name)?;
            if wd == watch.wd {
                break;
            }
            if wd > watch.wd {
                return Err(Error::kernel(
                    "inotify_add_watch",
                    format!("{}: watch {}", name(), watch.wd),
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

fn entries(fd: &FdView) -> Option<Vec<Entry>> {
    fd.info.all("inotify wd").map(entry).collect()
}

/// `1 ino:3c4a7 sdev:fe00000 mask:fff ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:a7c4030000000000`.
fn entry(line: &str) -> Option<Entry> {
    let mut words = line.split_ascii_whitespace();
    let wd = i32::from_str_radix(words.next()?, 16).ok()?;
    let fields: HashMap<&str, &str> = words.filter_map(|w| w.split_once(':')).collect();
    let hex = |key: &str| u64::from_str_radix(fields.get(key)?, 16).ok();
    let handle = match (hex("fhandle-type"), fields.get("f_handle")) {
        (Some(kind), Some(text)) => Some((kind as u8 as i32, unhex(text)?)),
        _ => None,
    };
    Some(Entry {
        wd,
        ino: hex("ino")?,
        sdev: hex("sdev")? as u32,
        mask: hex("mask")? as u32,
        handle,
    })
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = text.chars().map(|c| c.to_digit(16).map(|d| d as u8)).collect();
    let digits = digits.filter(|d| d.len() % 2 == 0)?;
    Some(digits.chunks(2).map(|two| two[0] << 4 | two[1]).collect())
}

/// A descriptor on each file system that was asked for, by its device number in the kernel's form.
#[derive(Default)]
struct Mounts {
    open: HashMap<u32, Vec<(Tree, File)>>,
    trees: Trees,
}

impl Mounts {
    fn new(trees: &Trees) -> Mounts {
        Mounts {
            trees: trees.clone(),
            ..Mounts::default()
        }
    }

    /// Every mount of the device that can be opened: a handle leads to a path below the one it is opened through.
    fn on(&mut self, sdev: u32) -> &[(Tree, File)] {
        let trees = &self.trees;
        self.open.entry(sdev).or_insert_with(|| {
            let wanted = format!("{}:{}", sdev >> 20, sdev & 0xfffff);
            let text = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
            let own = text
                .split(|b| *b == b'\n')
                .filter_map(|line| mount_point(line, &wanted))
                .filter_map(|p| Some((Tree::default(), File::open(p).ok()?)));
            let others = trees.all().flat_map(|tree| {
                let there = trees.mounts(tree.number).iter().filter(|m| m.device == wanted);
                there.filter_map(|m| Some((tree.clone(), File::open(tree.path(&m.at)).ok()?)))
            });
            own.chain(others).collect()
        })
    }
}

/// The mount point in a line of mountinfo, if it is a mount of the device.
fn mount_point(line: &[u8], device: &str) -> Option<PathBuf> {
    let words: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
    (*words.get(2)? == device.as_bytes()).then(|| {
        let path = unescape(words.get(4).copied().unwrap_or_default());
        PathBuf::from(std::ffi::OsStr::from_bytes(&path))
    })
}

/// The path of a watched file, or why there is none.
fn path_of(entry: &Entry, mounts: &mut Mounts) -> Result<(PathBuf, u32), String> {
    let Some((kind, handle)) = &entry.handle else {
        return Err("its file system has no file handles by which the file could be found".into());
    };
    let mut why = "no mount of its file system is in sight".to_owned();
    for (tree, mount) in mounts.on(entry.sdev) {
        let file = match open_by_handle(mount.as_fd(), *kind, handle, libc::O_PATH) {
            Ok(file) => file,
            Err(e) => {
                why = format!("its file cannot be found by its handle: {e}");
                continue;
            }
        };
        let Ok(path) = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())) else {
            continue;
        };
        match std::fs::symlink_metadata(tree.path(path.as_os_str().as_bytes())) {
            Ok(m) if m.ino() == entry.ino => return Ok((path, tree.number)),
            _ => why = format!("no path leads to its file any more ({})", path.display()),
        }
    }
    Err(why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Pid;
    use crate::observe::view::read_fd;

    #[test]
    fn lines_are_read() {
        let line = "a ino:3c4a7 sdev:fe00000 mask:80000fff ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:a7c4030000000000";
        let e = entry(line).unwrap();
        assert_eq!(
            (e.wd, e.ino, e.sdev, e.mask),
            (10, 0x3c4a7, 0xfe00000, 0x8000_0fff)
        );
        assert_eq!(e.handle, Some((1, vec![0xa7, 0xc4, 3, 0, 0, 0, 0, 0])));
        assert_eq!(entry("1 ino:1 sdev:1"), None);
        assert_eq!(entry("1 ino:1 sdev:1 mask:1 fhandle-type:1 f_handle:abc"), None);
        assert_eq!(unescape(b"/a\\040b\\\\"), b"/a b\\\\");
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
            path: dir.join(name),
            mask,
            tree: 0,
        })
        .into();
        list.iter().for_each(|w| std::fs::write(&w.path, "").unwrap());
        let fd = inotify_new().unwrap();
        watch_all(fd.as_fd(), &list, &Options::default()).unwrap();
        let seen = read_fd(Pid(std::process::id() as i32), fd.as_raw_fd()).unwrap();
        let mut got: Vec<Watched> = entries(&seen)
            .unwrap()
            .iter()
            .map(|e| Watched {
                wd: e.wd,
                path: path_of(e, &mut Mounts::default()).unwrap().0,
                mask: e.mask & ASKED,
                tree: 0,
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
