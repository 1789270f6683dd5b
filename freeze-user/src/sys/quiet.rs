//! Reading files whose watchers are not to be told of it.
//!
//! To open a file is an event (inotify(7), fanotify(7), F_NOTIFY), to read from it is one too, and a lease for writing is
//! broken by it (fcntl(2)). Only what fanotify hands to its listener is opened without events. So a listener of freeze's
//! own has itself asked before the file is opened (FAN_OPEN_PERM), a thread of freeze's own sets about to open it, and is
//! denied that as soon as the listener has its descriptor: before anybody else is told.

use crate::error::errno;
use crate::ids::Pid;
use crate::sys::{pidfd_getfd, pidfd_open};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::fanotify::{
    EventFFlags, Fanotify, FanotifyResponse, InitFlags, MarkFlags, MaskFlags, Response,
};
use nix::unistd::{gettid, pipe2};
use std::cell::{OnceCell, RefCell};
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

thread_local! {
    static NOW: RefCell<Option<Listener>> = const { RefCell::new(None) };
}

/// A file, by device and inode.
pub type Id = (u64, u64);

/// Files with a lease that opening them would break, with a descriptor that can be read.
pub type Leased = HashMap<Id, (Pid, RawFd)>;

/// What somebody may watch, with what is in it.
#[derive(Debug)]
pub enum Watched {
    Everything,
    These(HashSet<Id>),
}

/// A file open for reading.
#[derive(Debug)]
pub struct Reading {
    file: File,
    /// Whether the description is freeze's own; the position of somebody else's must stay where it is.
    pub own: bool,
}

impl Deref for Reading {
    type Target = File;

    fn deref(&self) -> &File {
        &self.file
    }
}

impl AsFd for Reading {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl From<File> for Reading {
    fn from(file: File) -> Reading {
        Reading { file, own: true }
    }
}

/// As long as it lives, [`open`] in its thread is told to nobody. Where the kernel has no such means, watchers are told.
#[derive(Debug)]
#[must_use = "dropping it ends the silence"]
pub struct Silence(());

impl Silence {
    /// Begins it.
    pub fn begin(leased: Leased, watched: Watched) -> Silence {
        let group = OnceCell::new();
        NOW.set(Some(Listener {
            group,
            leased,
            watched,
        }));
        Silence(())
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        let listener = NOW.take();
        if listener.as_ref().is_some_and(|l| l.group.get().is_some()) {
            // A listener's end takes milliseconds, and waits for every opener that somebody else was asked about before and has
            // not answered: one of those that are about to be let go. Here nothing may wait for that.
            let kept = Arc::new(Mutex::new(listener));
            let theirs = kept.clone();
            let take =
                |slot: &Mutex<Option<Listener>>| slot.lock().unwrap_or_else(PoisonError::into_inner).take();
            let ender = std::thread::Builder::new().spawn(move || drop(take(&theirs)));
            if ender.is_err() {
                std::mem::forget(take(&kept));
            }
        }
    }
}

/// Opens a file for reading, which is not to show in its time of access where that can be had.
pub fn open(path: &Path) -> std::io::Result<Reading> {
    NOW.with_borrow(|now| match now {
        None => open_aloud(path),
        Some(listener) => listener.open(path),
    })
}

/// The same of one of many files, of which is known which it is and in which directory it lies (itself, if in none).
pub fn open_one(path: &Path, file: Id, directory: Id) -> std::io::Result<Reading> {
    NOW.with_borrow(|now| match now {
        Some(listener) if listener.heeds(file, directory) => listener.open(path),
        _ => open_aloud(path),
    })
}

fn open_aloud(path: &Path) -> std::io::Result<Reading> {
    // Neither for who is to open the other end of a fifo, nor until a lease is given up.
    let open = |flags| {
        let mut options = File::options();
        options.read(true).custom_flags(libc::O_NONBLOCK | flags);
        options.open(path)
    };
    open(libc::O_NOATIME).or_else(|_| open(0)).map(Reading::from)
}

#[derive(Debug)]
struct Listener {
    /// Made when it is first needed, if the kernel has it.
    group: OnceCell<Option<Fanotify>>,
    leased: Leased,
    watched: Watched,
}

fn listener() -> Option<Fanotify> {
    // Who comes first is asked first: a listener of the set stands still, and would never answer.
    let how = InitFlags::FAN_CLASS_PRE_CONTENT
        | InitFlags::FAN_CLOEXEC
        | InitFlags::FAN_NONBLOCK
        | InitFlags::FAN_REPORT_TID;
    let events = EventFFlags::O_RDONLY
        | EventFFlags::O_LARGEFILE
        | EventFFlags::O_CLOEXEC
        | EventFFlags::O_NOATIME
        | EventFFlags::O_NONBLOCK;
    Fanotify::init(how, events).ok()
}

impl Listener {
    /// Whether somebody may be told of this file.
    fn heeds(&self, file: Id, directory: Id) -> bool {
        let watched = match &self.watched {
            Watched::Everything => true,
            Watched::These(these) => these.contains(&file) || these.contains(&directory),
        };
        watched || self.leased.contains_key(&file)
    }

    fn open(&self, path: &Path) -> std::io::Result<Reading> {
        if !self.leased.is_empty() {
            let stat = std::fs::metadata(path)?;
            if let Some((pid, fd)) = self.leased.get(&(stat.dev(), stat.ino())) {
                let file = pidfd_open(*pid).and_then(|pidfd| pidfd_getfd(pidfd.as_fd(), *fd))?;
                let own = false;
                return Ok(Reading {
                    file: file.into(),
                    own,
                });
            }
        }
        let group = self.group.get_or_init(listener);
        match group.as_ref().map(|group| open_by(group, path)) {
            Some(Ok(file)) => Ok(file.into()),
            Some(Err(e @ Errno::ETIMEDOUT)) => Err(e.into()),
            _ => open_aloud(path),
        }
    }
}

/// How long it may take until the listener is asked. Somebody else may be asked before, who stands still with the set.
const PATIENCE: Duration = Duration::from_secs(1);

/// Opens a file by way of a listener.
fn open_by(group: &Fanotify, path: &Path) -> nix::Result<File> {
    let mask = MaskFlags::FAN_OPEN_PERM | MaskFlags::FAN_ONDIR;
    group.mark(MarkFlags::FAN_MARK_ADD, mask, nix::fcntl::AT_FDCWD, Some(path))?;
    let opened = open_marked(group, path);
    // Whatever lies at the path by now: whoever opened what is still marked would wait.
    let _ = group.mark(
        MarkFlags::FAN_MARK_FLUSH,
        mask,
        nix::fcntl::AT_FDCWD,
        None::<&Path>,
    );
    opened
}

/// The same once it is marked.
fn open_marked(group: &Fanotify, path: &Path) -> nix::Result<File> {
    let (done, ended) = pipe2(OFlag::O_CLOEXEC)?;
    let opener = Arc::new(AtomicI32::new(0));
    let (by, to_open) = (opener.clone(), path.to_owned());
    // Nothing but an answer ends its waiting: it is not waited for in its turn.
    let thread = std::thread::Builder::new().spawn(move || {
        let _ended: OwnedFd = ended;
        by.store(gettid().as_raw(), Ordering::SeqCst);
        open_aloud(&to_open)
    });
    let thread = thread.map_err(errno)?;
    match listen(group, done.as_fd(), &opener)? {
        Some(file) => Ok(file),
        None => match thread.join() {
            Ok(Ok(opened)) => Ok(opened.file),
            Ok(Err(e)) => Err(errno(e)),
            Err(_) => Err(Errno::ECANCELED),
        },
    }
}

/// Answers until the opener is done; what it wanted to open, if it was denied that. `ETIMEDOUT` if nobody asks.
fn listen(group: &Fanotify, done: BorrowedFd<'_>, opener: &AtomicI32) -> nix::Result<Option<File>> {
    let mut found = None;
    let end = Instant::now() + PATIENCE;
    loop {
        let mut fds = [
            PollFd::new(group.as_fd(), PollFlags::POLLIN),
            PollFd::new(done, PollFlags::POLLIN),
        ];
        let left = end.saturating_duration_since(Instant::now());
        match poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO)) {
            Ok(0) if left.is_zero() => return Err(Errno::ETIMEDOUT),
            Ok(0) | Err(_) => continue,
            Ok(_) => {}
        }
        let [asked, ended] = fds.map(|fd| fd.any().unwrap_or(true));
        // Where no descriptor could be made, the kernel has said no in our place.
        let events = if asked {
            group.read_events()
        } else {
            Ok(Vec::new())
        };
        for event in events.unwrap_or_default() {
            let Some(fd) = event.fd() else { continue };
            // Whoever else opens it meanwhile may.
            let own = event.pid() == opener.load(Ordering::SeqCst);
            let mut response = Response::FAN_ALLOW;
            if own && let Ok(file) = fd.try_clone_to_owned() {
                found = Some(file.into());
                response = Response::FAN_DENY;
            }
            let _ = group.write_response(FanotifyResponse::new(fd, response));
        }
        if ended && !asked {
            return Ok(found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::inotify::{AddWatchFlags, InitFlags as Init, Inotify};
    use std::io::Read;

    #[test]
    fn who_watches_is_not_told() {
        if !nix::unistd::geteuid().is_root() {
            return eprintln!("skipped: needs root");
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "contents").unwrap();
        let watcher = Inotify::init(Init::IN_NONBLOCK).unwrap();
        for path in [dir.path(), &path] {
            watcher.add_watch(path, AddWatchFlags::IN_ALL_EVENTS).unwrap();
        }
        {
            let _silence = Silence::begin(Leased::new(), Watched::Everything);
            for n in 0..3 {
                let mut text = String::new();
                (&*open(&path).unwrap()).read_to_string(&mut text).unwrap();
                assert_eq!(text, "contents", "{n}");
                assert!(open(dir.path()).unwrap().metadata().unwrap().is_dir());
            }
            let gone = open(&dir.path().join("gone")).unwrap_err();
            assert_eq!(gone.kind(), std::io::ErrorKind::NotFound);
        }
        assert_eq!(watcher.read_events().unwrap_err(), Errno::EAGAIN);
        open(&path).unwrap();
        assert!(!watcher.read_events().unwrap().is_empty());
    }
}
