//! Events that waited to be read: the same things are done again, so that the kernel tells of them again.
//!
//! Nothing but the event asked for is told meanwhile: a watch's mask is changed without an event. What is done leaves files as
//! they are, with their names all the while; only times of change (ctime) tell. What is told of a name that nothing has now is
//! done to something that is made under it for that moment. That a file was made, moved or removed can be brought about
//! again only where none is now: a file that is there would have to lose its name, and others could see that. Of a watch
//! that is gone the events come from a file or directory of freeze's own, which ends as the watched one did.

use super::super::pipe::Bytes;
use crate::error::{Context, Error, Result, errno};
use crate::observe::peek::Peek;
use crate::sys::events::{inotify_add, inotify_remove};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag};
use nix::sys::stat::{Mode, UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::Metadata;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

/// An event in the queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    pub wd: i32,
    /// IN_* bits of what happened, and IN_ISDIR.
    pub mask: u32,
    /// Of an entry of a watched directory; empty for the watched file itself.
    pub name: Bytes,
    /// What the two events of a move have in common; 0 for others.
    #[serde(default)]
    pub cookie: u32,
}

/// A bit that nothing done here brings about.
pub const SILENT: u32 = libc::IN_MOVE_SELF;

/// The events of a queue.
pub fn waiting(fd: BorrowedFd<'_>) -> Option<Vec<Event>> {
    let all = Peek::get()?.events(fd)?;
    // What is told: the rest are the kernel's notes.
    let shown =
        libc::IN_ALL_EVENTS | libc::IN_UNMOUNT | libc::IN_Q_OVERFLOW | libc::IN_IGNORED | libc::IN_ISDIR;
    let event = |(wd, mask, cookie, name)| Event {
        wd,
        mask: mask & shown,
        name: Bytes(name),
        cookie,
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
    /// From a name that nothing has now, to where nobody is told.
    MoveAway,
    /// The same the other way round.
    MoveHere,
    /// Both at once: this event and the next.
    Move,
    /// The watched file ends, and its watch with it: this event and the next.
    End,
    /// The watch is removed.
    Unwatch,
}

/// What is at the place of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    /// A file or a directory, as the event has it.
    There,
    Other,
}

/// What an event can be brought about by: where the watched file is, or that the watch is gone.
#[derive(Clone, Debug)]
pub enum Reach {
    Path(PathBuf),
    Gone,
    /// It is there, and no path leads to it.
    Nowhere,
}

fn state(event: &Event, reach: &Reach) -> State {
    let named = !event.name.0.is_empty();
    let is_dir = event.mask & libc::IN_ISDIR != 0;
    let at = match reach {
        Reach::Nowhere => return State::Other,
        Reach::Gone if named => return State::Free,
        Reach::Gone => return State::There,
        Reach::Path(watched) => place(event, watched),
    };
    match std::fs::symlink_metadata(at) {
        Ok(m) if (m.is_file() && !is_dir) || (m.is_dir() && is_dir) => State::There,
        Ok(_) => State::Other,
        Err(_) if named => State::Free,
        Err(_) => State::Other,
    }
}

/// How many events each deed brings about, and which deeds those are; or the number of an event that none does.
fn plan(events: &[Event], reach: impl Fn(i32) -> Reach) -> std::result::Result<Vec<(usize, Deed)>, usize> {
    let mut out = Vec::new();
    let mut n = 0;
    while let Some(event) = events.get(n) {
        let of = reach(event.wd);
        let is_dir = event.mask & libc::IN_ISDIR != 0;
        let at = state(event, &of);
        let (free, usable) = (at == State::Free, at != State::Other);
        let gone = matches!(of, Reach::Gone);
        let next = events.get(n + 1);
        let ends = |e: &Event| e.wd == event.wd && e.mask & libc::IN_IGNORED != 0;
        let cookie = event.cookie;
        let others = || {
            events
                .iter()
                .filter(|e| cookie != 0 && e.cookie == cookie)
                .count()
                - 1
        };
        let moved_to = |e: &Event| {
            e.mask == event.mask ^ (libc::IN_MOVED_FROM | libc::IN_MOVED_TO)
                && e.cookie == cookie
                && state(e, &reach(e.wd)) == State::Free
        };
        let deed = match event.mask & !libc::IN_ISDIR {
            libc::IN_OPEN if usable => Deed::Open,
            libc::IN_CLOSE_NOWRITE if usable => Deed::CloseAfterReading,
            libc::IN_CLOSE_WRITE if usable && !is_dir => Deed::CloseAfterWriting,
            libc::IN_ACCESS if usable => Deed::Times(true, false),
            libc::IN_MODIFY if usable => Deed::Times(false, true),
            libc::IN_ATTRIB if usable => Deed::Times(true, true),
            libc::IN_CREATE if free => Deed::Create,
            libc::IN_DELETE if free => Deed::Delete,
            libc::IN_MOVED_FROM if free && cookie != 0 && others() == 1 && next.is_some_and(moved_to) => {
                Deed::Move
            }
            libc::IN_MOVED_FROM if free && cookie != 0 && others() == 0 => Deed::MoveAway,
            // The other half may have been read before the first of the queue, and its cookie is known then.
            libc::IN_MOVED_TO if free && cookie != 0 && others() == 0 && n > 0 => Deed::MoveHere,
            libc::IN_DELETE_SELF if gone && next.is_some_and(ends) => Deed::End,
            libc::IN_IGNORED if gone => Deed::Unwatch,
            _ => return Err(n),
        };
        let last = matches!(deed, Deed::End | Deed::Unwatch);
        let takes = if matches!(deed, Deed::Move | Deed::End) {
            2
        } else {
            1
        };
        n += takes;
        // A watch that is gone has told of nothing since.
        if last != (gone && !events[n..].iter().any(|e| e.wd == event.wd)) {
            return Err(n - takes);
        }
        out.push((takes, deed));
    }
    Ok(out)
}

/// The first event that cannot be brought about once more.
pub fn hopeless(events: &[Event], reach: impl Fn(i32) -> Reach) -> Option<&Event> {
    plan(events, reach).err().map(|n| &events[n])
}

/// A name that nothing else has: no process has had this number at this time, and each is given out once.
fn own_name(kind: &str) -> String {
    static GIVEN: AtomicU64 = AtomicU64::new(0);
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let n = GIVEN.fetch_add(1, Ordering::Relaxed);
    format!(
        "{kind}-{}-{}-{n}",
        std::process::id(),
        since.map_or(0, |t| t.as_millis())
    )
}

fn place(event: &Event, watched: &Path) -> PathBuf {
    match event.name.0.is_empty() {
        true => watched.to_owned(),
        false => watched.join(OsStr::from_bytes(&event.name.0)),
    }
}

/// A watch: its number, how it is reached, whether that is a link to be followed, and its mask.
pub type Watch = (i32, PathBuf, bool, u32);

/// Files and directories in place of those whose watches are gone; they go with it.
#[derive(Debug, Default)]
pub struct StandIns(BTreeMap<i32, PathBuf>);

impl StandIns {
    /// Makes one for each watch of which only events are left.
    pub fn new(events: &[Event], there: impl Fn(i32) -> bool) -> Result<StandIns> {
        let mut out = StandIns::default();
        let gone: BTreeSet<i32> = events.iter().map(|e| e.wd).filter(|wd| !there(*wd)).collect();
        for wd in gone {
            let at = std::env::temp_dir().join(own_name("freeze-watched"));
            let directory = |e: &Event| !e.name.0.is_empty() || e.mask & libc::IN_ISDIR != 0;
            let made = match events.iter().filter(|e| e.wd == wd).any(directory) {
                true => std::fs::create_dir(&at),
                false => std::fs::File::create_new(&at).map(drop),
            };
            made.on("open", || at.display().to_string())?;
            out.0.insert(wd, at);
        }
        Ok(out)
    }

    /// The watches that they are to have.
    pub fn watches(&self) -> impl Iterator<Item = Watch> {
        self.0.iter().map(|(wd, at)| (*wd, at.clone(), false, SILENT))
    }
}

impl Drop for StandIns {
    fn drop(&mut self) {
        for at in self.0.values() {
            let _ = std::fs::remove_file(at).or_else(|_| std::fs::remove_dir_all(at));
        }
    }
}

/// Has an instance told of nothing that is done here.
pub fn hush(fd: BorrowedFd<'_>, watches: &[Watch]) -> Result<()> {
    set_masks(fd, watches, |_| SILENT)
}

/// Has it told of what it asked for.
pub fn unhush(fd: BorrowedFd<'_>, watches: &[Watch]) -> Result<()> {
    set_masks(fd, watches, |w| w.3)
}

fn set_masks(fd: BorrowedFd<'_>, watches: &[Watch], mask: impl Fn(&Watch) -> u32) -> Result<()> {
    watches.iter().try_for_each(|w| {
        let set = inotify_add(fd, &w.1, mask(w), w.2).map(drop);
        set.on("inotify_add_watch", || w.1.display().to_string())
    })
}

/// Makes the events wait again in the instance `fd`, whose watches are all there, those of `gone` too.
pub fn repeat(fd: BorrowedFd<'_>, events: &[Event], watches: &[Watch], gone: &StandIns) -> Result<()> {
    let set = |(_, at, follow, _): &Watch, mask| inotify_add(fd, at, mask, *follow).map(drop);
    let lost = |e: &Event| {
        let name = format!("event {:#x} of watch {}", e.mask, e.wd);
        Error::kernel("inotify", name, Errno::ENOENT)
    };
    let reach = |wd: i32| match watches.iter().find(|w| w.0 == wd) {
        _ if gone.0.contains_key(&wd) => Reach::Gone,
        Some(w) => Reach::Path(w.1.clone()),
        None => Reach::Nowhere,
    };
    let deeds = plan(events, reach).map_err(|n| lost(&events[n]))?;
    hush(fd, watches)?;
    let standing: Vec<Watch> = gone.watches().collect();
    let mut left = events;
    for (takes, deed) in deeds {
        let (now, later) = left.split_at(takes);
        left = later;
        let event = &now[0];
        let of = |e: &Event| {
            let mut both = watches.iter().chain(&standing);
            both.find(|w| w.0 == e.wd).ok_or_else(|| lost(e))
        };
        let places: Vec<PathBuf> = now
            .iter()
            .map(|e| Ok(place(e, &of(e)?.1)))
            .collect::<Result<_>>()?;
        let watch = of(event)?;
        let of_last = of(&now[takes - 1])?;
        let told = || {
            // One watch may tell of both halves of a move.
            let mask = now.iter().filter(|e| e.wd == event.wd).fold(0, |m, e| m | e.mask);
            set(watch, mask & libc::IN_ALL_EVENTS)?;
            match of_last.0 == watch.0 {
                true => Ok(()),
                false => set(of_last, now[takes - 1].mask & libc::IN_ALL_EVENTS),
            }
        };
        let hushed = || set(watch, SILENT).and_then(|()| set(of_last, SILENT));
        let done = match deed {
            Deed::Unwatch => inotify_remove(fd, event.wd).map(drop),
            // The event does not tell which of the two it is.
            Deed::End => told().and_then(|()| match watch.1.is_dir() {
                false => std::fs::remove_file(&watch.1).map_err(errno),
                true => std::fs::remove_dir(&watch.1).map_err(errno),
            }),
            _ => {
                let around = [watch, of_last].map(|w| std::fs::symlink_metadata(&w.1));
                let done = perform(deed, event, &places, &watch.1, &told, &hushed).and_then(|()| hushed());
                for (w, was) in [watch, of_last].into_iter().zip(around) {
                    if let (false, Ok(was)) = (event.name.0.is_empty(), was) {
                        let _ = times(&w.1, &was, true, true);
                    }
                }
                done
            }
        };
        done.on("repeat", || {
            format!("event {:#x} of watch {}", event.mask, event.wd)
        })?;
    }
    unhush(fd, watches)?;
    match waiting(fd) {
        Some(now) if alike(&now) == alike(events) => Ok(()),
        _ => Err(Error::kernel("inotify", "the events that waited", Errno::EIO)),
    }
}

/// Events with numbers of their own for what belongs together: the kernel gives out each cookie once.
fn alike(events: &[Event]) -> Vec<Event> {
    let first = |cookie| events.iter().position(|e| e.cookie == cookie);
    let numbered = |e: &Event| Event {
        cookie: match e.cookie {
            0 => 0,
            cookie => first(cookie).map_or(0, |n| n as u32 + 1),
        },
        ..e.clone()
    };
    events.iter().map(numbered).collect()
}

type Switch<'a> = &'a dyn Fn() -> nix::Result<()>;

/// Does it; `places` are those of the events it brings about, `watched` is the watched file of the first.
fn perform(
    deed: Deed,
    event: &Event,
    places: &[PathBuf],
    watched: &Path,
    told: Switch<'_>,
    hushed: Switch<'_>,
) -> nix::Result<()> {
    let at = &places[0];
    let rename = |from: &Path, to: &Path| std::fs::rename(from, to).map_err(errno);
    // Where it is told of to nobody.
    let aside = || watched.join(own_name(".freeze-moved"));
    match deed {
        Deed::Create => {
            told()?;
            make(event, at)?;
            // It goes again whatever happens: it is nobody's.
            let quiet = hushed();
            remove(event, at)?;
            quiet
        }
        Deed::Delete => {
            make(event, at)?;
            let heard = told();
            remove(event, at)?;
            heard
        }
        Deed::MoveAway | Deed::MoveHere | Deed::Move => {
            let (from, to) = match deed {
                Deed::MoveAway => (at.clone(), aside()),
                Deed::MoveHere => (aside(), at.clone()),
                _ => (at.clone(), places[1].clone()),
            };
            make(event, &from)?;
            let moved = told().and_then(|()| rename(&from, &to));
            let quiet = hushed();
            remove(event, if moved.is_ok() { &to } else { &from })?;
            moved.and(quiet)
        }
        _ => {
            let made = std::fs::symlink_metadata(at).is_err();
            if made {
                make(event, at)?;
            }
            let done = touch(deed, at, told, hushed);
            if made {
                let quiet = hushed();
                remove(event, at)?;
                quiet?;
            }
            done
        }
    }
}

/// Does what leaves a file as it is.
fn touch(deed: Deed, at: &Path, told: Switch<'_>, hushed: Switch<'_>) -> nix::Result<()> {
    let open = |how: OFlag| -> nix::Result<OwnedFd> {
        let how = how | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOCTTY | OFlag::O_NOATIME;
        nix::fcntl::open(at, how, Mode::empty())
    };
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
        _ => return Err(Errno::EINVAL),
    }
    hushed()
}

fn make(event: &Event, at: &Path) -> nix::Result<()> {
    let mode = Mode::S_IRUSR | Mode::S_IWUSR;
    match event.mask & libc::IN_ISDIR {
        0 => nix::sys::stat::mknod(at, nix::sys::stat::SFlag::S_IFREG, mode, 0),
        _ => nix::unistd::mkdir(at, mode),
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
        let reach = |_| Reach::Path(dir.clone());
        // A file that is there keeps its name.
        let (can, cannot): (Vec<Event>, Vec<Event>) = events
            .into_iter()
            .partition(|e| hopeless(std::slice::from_ref(e), reach).is_none());
        let made = |e: &Event| e.mask == libc::IN_CREATE;
        assert!(
            cannot.iter().all(|e| e.name.0 == b"kept" && made(e)),
            "{cannot:?}"
        );
        assert!(!cannot.is_empty());
        let before = std::fs::metadata(&dir).unwrap();
        let second = inotify_new().unwrap();
        assert_eq!(inotify_add(second.as_fd(), &dir, all, false), Ok(1));
        let watches = [(1, dir.clone(), false, all)];
        repeat(second.as_fd(), &can, &watches, &StandIns::default()).unwrap();
        assert_eq!(waiting(second.as_fd()).unwrap(), can);
        let after = std::fs::metadata(&dir).unwrap();
        assert_eq!(before.modified().unwrap(), after.modified().unwrap());
        assert_eq!(std::fs::read(dir.join("kept")).unwrap(), b"x");
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
