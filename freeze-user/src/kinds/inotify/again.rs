//! Events that waited to be read: the same things are done again, so that the kernel tells of them again.
//!
//! Nothing but the event asked for is told meanwhile: a watch's mask is changed without an event. What is done leaves files as
//! they are, with their names all the while; only times of change (ctime) tell. That a file was made can therefore be
//! brought about again only where none is now, and its removal likewise.

use super::super::pipe::Bytes;
use crate::error::{Context, Error, Result, errno};
use crate::observe::peek::Peek;
use crate::sys::events::inotify_add;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag};
use nix::sys::stat::{Mode, UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::fs::Metadata;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// An event in the queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    pub wd: i32,
    /// IN_* bits of what happened, and IN_ISDIR.
    pub mask: u32,
    /// Of an entry of a watched directory; empty for the watched file itself.
    pub name: Bytes,
}

/// A bit that nothing done here brings about.
const SILENT: u32 = libc::IN_MOVE_SELF;

/// The events of a queue.
pub fn waiting(fd: BorrowedFd<'_>) -> Option<Vec<Event>> {
    let all = Peek::get()?.events(fd)?;
    // What is told: the rest are the kernel's notes.
    let shown =
        libc::IN_ALL_EVENTS | libc::IN_UNMOUNT | libc::IN_Q_OVERFLOW | libc::IN_IGNORED | libc::IN_ISDIR;
    let event = |(wd, mask, name)| Event {
        wd,
        mask: mask & shown,
        name: Bytes(name),
    };
    Some(all.into_iter().map(event).collect())
}

/// How an event can be brought about once more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    Open,
    CloseAfterReading,
    CloseAfterWriting,
    /// utimensat(2) with the times there are: of access, of modification, or both.
    Times(bool, bool),
    /// Of an entry that is not there now.
    Create,
    Delete,
}

fn deed(event: &Event, at: &Path) -> Option<Deed> {
    let now = std::fs::symlink_metadata(at).ok();
    let is_dir = event.mask & libc::IN_ISDIR != 0;
    let fits = |m: &Metadata| (m.is_file() && !is_dir) || (m.is_dir() && is_dir);
    let free = !event.name.0.is_empty() && now.is_none();
    let file = now.as_ref().is_some_and(fits);
    match event.mask & !libc::IN_ISDIR {
        libc::IN_OPEN if file => Some(Deed::Open),
        libc::IN_CLOSE_NOWRITE if file => Some(Deed::CloseAfterReading),
        libc::IN_CLOSE_WRITE if file && !is_dir => Some(Deed::CloseAfterWriting),
        libc::IN_ACCESS if file => Some(Deed::Times(true, false)),
        libc::IN_MODIFY if file => Some(Deed::Times(false, true)),
        libc::IN_ATTRIB if file => Some(Deed::Times(true, true)),
        libc::IN_CREATE if free => Some(Deed::Create),
        libc::IN_DELETE if free => Some(Deed::Delete),
        _ => None,
    }
}

/// The first event that cannot be brought about once more; `reach` leads to the watched file by its watch.
pub fn hopeless(events: &[Event], reach: impl Fn(i32) -> Option<PathBuf>) -> Option<&Event> {
    events.iter().find(|e| {
        let at = reach(e.wd).map(|watched| place(e, &watched));
        at.is_none_or(|at| deed(e, &at).is_none())
    })
}

fn place(event: &Event, watched: &Path) -> PathBuf {
    match event.name.0.is_empty() {
        true => watched.to_owned(),
        false => watched.join(OsStr::from_bytes(&event.name.0)),
    }
}

/// A watch: its number, how it is reached, whether that is a link to be followed, and its mask.
pub type Watch = (i32, PathBuf, bool, u32);

/// Makes the events wait again in the instance `fd`, whose watches are all there.
pub fn repeat(fd: BorrowedFd<'_>, events: &[Event], watches: &[Watch]) -> Result<()> {
    let set = |(_, at, follow, _): &Watch, mask| {
        inotify_add(fd, at, mask, *follow)
            .on("inotify_add_watch", || at.display().to_string())
            .map(drop)
    };
    watches.iter().try_for_each(|w| set(w, SILENT))?;
    for event in events {
        let name = || format!("event {:#x} of watch {}", event.mask, event.wd);
        let lost = || Error::kernel("inotify", name(), Errno::ENOENT);
        let watch = watches.iter().find(|w| w.0 == event.wd).ok_or_else(lost)?;
        let at = place(event, &watch.1);
        let deed = deed(event, &at).ok_or_else(lost)?;
        let told = || {
            set(watch, event.mask & 0xfff).map_err(|e| match e {
                Error::Kernel { errno, .. } => errno,
                _ => Errno::EIO,
            })
        };
        let hushed = || set(watch, SILENT);
        perform(deed, event, &at, &watch.1, &told, &|| {
            hushed().map_err(|_| Errno::EIO)
        })
        .on("repeat", name)?;
        hushed()?;
    }
    watches.iter().try_for_each(|w| set(w, w.3))?;
    match waiting(fd) {
        Some(now) if now == events => Ok(()),
        _ => Err(Error::kernel("inotify", "the events that waited", Errno::EIO)),
    }
}

type Switch<'a> = &'a dyn Fn() -> nix::Result<()>;

fn perform(
    deed: Deed,
    event: &Event,
    at: &Path,
    watched: &Path,
    told: Switch<'_>,
    hushed: Switch<'_>,
) -> nix::Result<()> {
    let open = |how: OFlag| -> nix::Result<OwnedFd> {
        let how = how | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOCTTY | OFlag::O_NOATIME;
        nix::fcntl::open(at, how, Mode::empty())
    };
    let around = std::fs::symlink_metadata(watched).map_err(errno)?;
    match deed {
        Deed::Open => {
            told()?;
            let opened = open(OFlag::O_RDONLY)?;
            hushed()?;
            drop(opened);
        }
        Deed::CloseAfterReading | Deed::CloseAfterWriting => {
            let writing = deed == Deed::CloseAfterWriting;
            let opened = open(if writing { OFlag::O_WRONLY } else { OFlag::O_RDONLY })?;
            told()?;
            drop(opened);
        }
        Deed::Times(access, modification) => {
            let now = std::fs::symlink_metadata(at).map_err(errno)?;
            told()?;
            times(at, &now, access, modification)?;
        }
        Deed::Create => {
            told()?;
            make(event, at)?;
            // It goes again whatever happens: it is nobody's.
            let quiet = hushed();
            remove(event, at)?;
            quiet?;
        }
        Deed::Delete => {
            make(event, at)?;
            let heard = told();
            remove(event, at)?;
            heard?;
        }
    }
    hushed()?;
    if !event.name.0.is_empty() {
        times(watched, &around, true, true)?;
    }
    Ok(())
}

fn make(event: &Event, at: &Path) -> nix::Result<()> {
    match event.mask & libc::IN_ISDIR {
        0 => nix::sys::stat::mknod(at, nix::sys::stat::SFlag::S_IFREG, Mode::S_IRUSR, 0),
        _ => nix::unistd::mkdir(at, Mode::S_IRUSR),
    }
}

fn remove(event: &Event, at: &Path) -> nix::Result<()> {
    match event.mask & libc::IN_ISDIR {
        0 => std::fs::remove_file(at).map_err(errno),
        _ => std::fs::remove_dir(at).map_err(errno),
    }
}

/// Sets the times a file has, as far as they are to be set.
fn times(at: &Path, now: &Metadata, access: bool, modification: bool) -> nix::Result<()> {
    let time = |set: bool, seconds, nanoseconds| match set {
        true => TimeSpec::new(seconds, nanoseconds),
        false => TimeSpec::UTIME_OMIT,
    };
    let (a, m) = (
        time(access, now.atime(), now.atime_nsec()),
        time(modification, now.mtime(), now.mtime_nsec()),
    );
    utimensat(AT_FDCWD, at, &a, &m, UtimensatFlags::NoFollowSymlink)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::events::inotify_new;
    use std::os::fd::AsFd;

    #[test]
    fn events_wait_again() {
        if Peek::get().is_none() {
            return;
        }
        let dir = std::env::temp_dir().join(format!("freeze-again-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let first = inotify_new().unwrap();
        let all = 0xfff;
        assert_eq!(inotify_add(first.as_fd(), &dir, all, false), Ok(1));
        std::fs::write(dir.join("kept"), "x").unwrap();
        std::fs::write(dir.join("gone"), "x").unwrap();
        std::fs::remove_file(dir.join("gone")).unwrap();
        std::fs::create_dir(dir.join("sub")).unwrap();
        std::fs::remove_dir(dir.join("sub")).unwrap();
        let events = waiting(first.as_fd()).unwrap();
        assert!(events.len() >= 8, "{events:?}");
        drop(first);
        let reach = |_| Some(dir.clone());
        // Who closed a file that is gone by now cannot do so once more; one that is there keeps its name.
        let (can, cannot): (Vec<Event>, Vec<Event>) = events
            .into_iter()
            .partition(|e| hopeless(std::slice::from_ref(e), reach).is_none());
        let made = |e: &Event| e.mask == libc::IN_CREATE;
        assert!(
            cannot
                .iter()
                .all(|e| e.name.0 == b"gone" || (e.name.0 == b"kept" && made(e))),
            "{cannot:?}"
        );
        assert!(cannot.iter().any(|e| e.name.0 == b"kept"), "{cannot:?}");
        let before = std::fs::metadata(&dir).unwrap();
        let second = inotify_new().unwrap();
        assert_eq!(inotify_add(second.as_fd(), &dir, all, false), Ok(1));
        repeat(second.as_fd(), &can, &[(1, dir.clone(), false, all)]).unwrap();
        assert_eq!(waiting(second.as_fd()).unwrap(), can);
        let after = std::fs::metadata(&dir).unwrap();
        assert_eq!(before.modified().unwrap(), after.modified().unwrap());
        assert_eq!(std::fs::read(dir.join("kept")).unwrap(), b"x");
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
