//! Regular files: position, flags, locks; unlinked ones travel in the image, changed ones are told apart.

pub mod beneath;
pub mod found;
pub mod ghost;
pub mod locks;

use super::{FdKind, Placed, Source, object_space};
use crate::error::{Blocker, Context, Error, Result};
use crate::ids::{FileId, PAGE, Pid, SpaceId};
use crate::nest::space::Kind;
use crate::nest::{Nest, Options};
use crate::observe::tree::Tree;
use crate::observe::view::{FdView, FileStat, View};
use crate::store::{Content, Draft};
use crate::sys;
use crate::sys::files;
use crate::sys::quiet::{self, Reading};
use beneath::{covered_mount, place_of};
use found::{DELETED, Lost, Obstacle, Way, above, open_covered, open_dead, way};
use ghost::{Attributes, Ghosts};
use locks::Locks;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::unistd::Whence;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

#[derive(Debug)]
pub struct Regular;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub file: FileRef,
    /// Access mode and the flags open(2) takes.
    pub flags: i32,
    pub position: i64,
    /// As older images have it: `READ` or `WRITE` where this description holds a flock(2) lock.
    #[serde(default)]
    pub flock: Option<String>,
    /// As older images have them: locks of the description itself.
    #[serde(default)]
    pub ofd_locks: Vec<(String, u64, Option<u64>)>,
}

/// How a file is found again, and what it was like.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRef {
    #[serde(with = "crate::ospath")]
    pub path: PathBuf,
    pub stat: FileStat,
    /// Whether the program could write to it, so that it may lawfully have grown since.
    pub written: bool,
    /// Where its contents are in the image, if no path leads to it any more.
    pub unlinked: Option<SpaceId>,
    /// A file of the kernel's (/proc, /sys), which has no size or time of change to compare.
    pub virtual_file: bool,
    /// The number of the tree of files (mount namespace) it is in; 0 for that of freeze.
    #[serde(default)]
    pub tree: u32,
    /// If it is still there, and its path does not lead to it.
    #[serde(default)]
    pub lost: Option<Lost>,
    /// Of a file whose contents are in the image.
    #[serde(default)]
    pub attributes: Option<Attributes>,
}

/// Does something while a process that has no descriptors yet has one of this number.
pub(super) fn lend_descriptor<T>(
    pid: Pid,
    fd: i32,
    nest: &mut Nest,
    work: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let (door, fd) = (nest.door(), fd as u64);
    let process = nest.process(pid)?;
    process.call("dup2", libc::SYS_dup2, &[door, fd])?;
    let done = work();
    process.call("close", libc::SYS_close, &[fd])?;
    done
}

/// The process of the nest that has this number where this /proc is mounted.
fn process_in_proc(number: &str, tree: u32, nest: &Nest) -> Option<Pid> {
    let named: i32 = number.parse().ok()?;
    let is_it = |p: &Pid| {
        nest.membership(*p).of(Kind::Mount) == Tree::namespace_of(tree) && nest.known_as(*p, *p) == named
    };
    nest.pids().into_iter().find(is_it)
}

/// Has the thread made of which a file of /proc tells, if that is one of the nest.
pub(super) fn thread_of_proc(path: &Path, tree: u32, nest: &mut Nest) -> Result<()> {
    let thread = || {
        let (pid, rest) = path.strip_prefix("/proc").ok()?.to_str()?.split_once("/task/")?;
        let named: i32 = rest.split('/').next()?.parse().ok()?;
        let pid = process_in_proc(pid, tree, nest)?;
        let mut tids = nest.tids(pid).iter();
        let tid = tids.find(|t| nest.known_as(pid, **t) == named)?;
        Some((pid, *tid))
    };
    if let Some((pid, tid)) = thread() {
        nest.thread_ahead(pid, tid)?;
    }
    Ok(())
}

/// The descriptor of a process of the nest that a file of /proc is about, in a directory of this name.
pub(super) fn descriptor_in_proc(path: &Path, directory: &str, tree: u32, nest: &Nest) -> Option<(Pid, i32)> {
    let rest = path.strip_prefix("/proc").ok()?.to_str()?;
    let (pid, fd) = rest.split_once(directory)?;
    let pid = process_in_proc(pid, tree, nest)?;
    // The door's number is none of the program's.
    let fd: i32 = fd.parse().ok()?;
    (fd as u64 != nest.door()).then_some((pid, fd))
}

impl FileRef {
    /// What speaks against carrying the file at `link`, with what remedy; `None` if nothing does.
    ///
    /// `at` is a link of /proc that leads to it.
    pub fn obstacle(link: &[u8], stat: &FileStat, at: &str, tree: &Tree) -> Option<Obstacle> {
        way(link, stat, at, tree).err()
    }

    /// Records the file behind `link`, to which `at` leads; the contents of an unlinked one go into the image.
    pub fn collect(
        link: &[u8],
        stat: &FileStat,
        tree: &Tree,
        written: bool,
        at: &str,
        shared: &mut super::Shared,
        draft: &mut Draft,
    ) -> Result<FileRef> {
        let name = || String::from_utf8_lossy(link).into_owned();
        let found = way(link, stat, at, tree)
            .map_err(|(why, remedy)| Blocker::at(name(), "").why(why).remedy(remedy).refuse())?;
        let gone = match &found {
            Way::Path | Way::Lost(Lost::Covered { .. } | Lost::Unmounted { .. }) => false,
            Way::Kernel | Way::Gone | Way::Lost(Lost::Elsewhere { .. } | Lost::Dead { .. }) => true,
        };
        let path = match link.strip_suffix(DELETED).filter(|_| gone) {
            Some(path) => path,
            None => link,
        };
        let unlinked = (found == Way::Gone).then(|| object_space(stat.dev, stat.ino));
        let mut attributes = None;
        if let Some(space) = unlinked {
            attributes = Some(Attributes {
                mount: covered_mount(OsStr::from_bytes(path).as_ref(), at, tree),
                ..Attributes::of(at, stat)?
            });
            if shared.first_sight(stat.dev, stat.ino) {
                let file = quiet::open(at.as_ref()).on("open", name)?;
                store_contents(&file, stat.size, space, draft, &name)?;
            }
        }
        let virtual_file = found == Way::Kernel || found::is_kernels(stat, at, &mut shared.kernels);
        Ok(FileRef {
            path: OsStr::from_bytes(path).into(),
            stat: *stat,
            written,
            unlinked,
            virtual_file,
            tree: tree.number,
            lost: match found {
                Way::Lost(lost) => Some(lost),
                _ => None,
            },
            attributes,
        })
    }

    /// Adds what has become of the file since: missing, replaced, shortened, changed.
    pub fn precheck(&self, options: &Options, out: &mut Vec<Blocker>) {
        if let Some(lost) = &self.lost {
            lost.precheck(&self.path, out);
        }
        if self.virtual_file || options.accept_changed.contains(&self.path) {
            return;
        }
        if matches!(self.lost, Some(Lost::Unmounted { .. })) {
            return;
        }
        // It is opened by what the tree shows once it is built.
        if self.tree != 0 && matches!(self.lost, Some(Lost::Covered { .. })) {
            return;
        }
        // In a tree that is yet to be built nothing can be looked for; once it is there, this is asked again.
        let Some(here) = options.place(self.tree, &self.path) else {
            return;
        };
        let at = || Blocker::at(self.path.display().to_string(), "");
        if self.unlinked.is_some() {
            // Where its directory is gone too, that is made again for a moment.
            return;
        }
        let accept = format!(
            "put it back, or accept it as it is with --accept-changed {}",
            self.path.display()
        );
        let now = match self.look(&here) {
            Ok(stat) => stat,
            Err(e) => {
                return out.push(
                    at().why(format!("the file is missing: {e}"))
                        .remedy("put it back where it was"),
                );
            }
        };
        // Device numbers of file systems without a disk of their own change with every boot.
        let same_file = now.ino == self.stat.ino;
        let same_bytes = now.size == self.stat.size && now.mtime == self.stat.mtime;
        if now.kind() != self.stat.kind() {
            out.push(
                at().why("expected a regular file, found something else")
                    .remedy(accept),
            );
        } else if same_bytes {
        } else if !self.written {
            out.push(
                at().why(format!(
                    "the file was only read or mapped and has changed: expected {} bytes of {}, found {} bytes of {}",
                    self.stat.size,
                    time(self.stat.mtime),
                    now.size,
                    time(now.mtime)
                ))
                .remedy(accept),
            );
        } else if !same_file {
            out.push(
                at().why(format!(
                    "another file lies there: expected inode {}, found {} of {} bytes",
                    self.stat.ino, now.ino, now.size
                ))
                .remedy(accept),
            );
        } else if now.size < self.stat.size {
            out.push(
                at().why(format!(
                    "the file was shortened: expected {} bytes or more, found {}",
                    self.stat.size, now.size
                ))
                .remedy(accept),
            );
        }
    }

    /// The file as it is now.
    fn look(&self, here: &Path) -> std::io::Result<FileStat> {
        let Some(lost) = &self.lost else {
            return std::fs::symlink_metadata(here).map(|m| FileStat::from(&m));
        };
        let fd = lost.open(here, libc::O_PATH | libc::O_NOFOLLOW)?;
        let found = FileStat::of(&format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
        // A handle or a name may be another file's by now. In a tree that was made anew all files have other numbers, and none
        // is found by its handle.
        let made_anew = self.tree != 0 && matches!(lost, Lost::Elsewhere { handle: None, .. });
        let is_it = made_anew || (found.dev, found.ino) == (self.stat.dev, self.stat.ino);
        match is_it && found.nlink > 0 {
            true => Ok(found),
            false => Err(std::io::ErrorKind::NotFound.into()),
        }
    }

    /// Opens it for a mapping, which is not to show in its time of access where that can be had.
    pub fn open_to_map(&self, flags: i32, nest: &mut Nest) -> Result<OwnedFd> {
        match self.open(flags | libc::O_NOATIME, nest) {
            // It is somebody else's (and freeze has no CAP_FOWNER).
            Err(Error::Kernel {
                errno: Errno::EPERM, ..
            }) => self.open(flags, nest),
            done => done,
        }
    }

    /// Opens it to be what a process executes, which nothing may be that somebody has open for writing.
    pub fn open_to_execute(&self, nest: &mut Nest) -> Result<OwnedFd> {
        let opened = self.open_to_map(libc::O_RDONLY, nest)?;
        if let Some(space) = self.unlinked
            && let Some((_, first)) = nest.state::<Nameless>().files.get_mut(&space)
        {
            *first = None;
        }
        Ok(opened)
    }

    /// Opens it anew, with a description of its own.
    pub fn open(&self, flags: i32, nest: &mut Nest) -> Result<OwnedFd> {
        let mask = libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC | libc::O_TMPFILE & !libc::O_DIRECTORY;
        let mask = match flags & libc::O_TMPFILE == libc::O_TMPFILE {
            true => mask | libc::O_DIRECTORY,
            false => mask,
        };
        let plain = flags & !mask | libc::O_CLOEXEC | libc::O_NOCTTY | libc::O_NONBLOCK;
        let name = || self.path.display().to_string();
        let open = |path: &Path| {
            // Somebody who is about to end may still have a lease on it; the attempt asks for it.
            const PATIENCE: Duration = Duration::from_secs(2);
            let began = Instant::now();
            loop {
                match nix::fcntl::open(path, OFlag::from_bits_retain(plain), Mode::empty()) {
                    Err(Errno::EAGAIN) if began.elapsed() < PATIENCE => {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    done => return done.on("open", name),
                }
            }
        };
        if let Some(space) = self.unlinked {
            if self.is_tmpfile() {
                return self.open_tmpfile(space, flags, plain, nest);
            }
            return open(&self.revive(space, nest)?);
        }
        match &self.lost {
            None => {
                let here = nest.options.reach(self.tree, &self.path)?;
                match self.of_descriptor(nest) {
                    Some((pid, fd)) => lend_descriptor(pid, fd, nest, || open(&here)),
                    None => open(&here),
                }
            }
            Some(Lost::Covered { mount, handle }) if self.tree != 0 => {
                open_covered(&self.path, mount, handle, plain, self.tree, nest)
            }
            Some(Lost::Dead { pid, inside }) => {
                let here = nest.options.reach(self.tree, &self.path)?;
                open_dead(*pid, inside.as_ref(), &here, plain, nest)
            }
            Some(lost @ (Lost::Covered { .. } | Lost::Unmounted { .. })) => {
                lost.open(&self.path, plain).on("open", name)
            }
            Some(lost) => match self.link_again(lost, nest) {
                Ok(at) => open(&at),
                // What is immutable, or lies on a mount for reading only, gets no second name, and needs none.
                Err(Error::Kernel {
                    errno: Errno::EPERM | Errno::EROFS | Errno::EMLINK,
                    ..
                }) => {
                    let here = nest.options.reach(self.tree, &self.path)?;
                    lost.open(&here, plain).on("open", name)
                }
                Err(e) => Err(e),
            },
        }
    }

    /// The descriptor of a process of the nest that this file of /proc is about.
    fn of_descriptor(&self, nest: &Nest) -> Option<(Pid, i32)> {
        let told = || descriptor_in_proc(&self.path, "/fdinfo/", self.tree, nest);
        self.virtual_file.then(told).flatten()
    }

    fn key(&self) -> (u64, u64) {
        (self.stat.dev, self.stat.ino)
    }

    /// Gives a file its old name again for a moment; it still has others.
    fn link_again(&self, lost: &Lost, nest: &mut Nest) -> Result<PathBuf> {
        let name = || self.path.display().to_string();
        let here = nest.options.reach(self.tree, &self.path)?;
        let ghosts = nest.state::<Ghosts>();
        if let Some((at, true)) = ghosts.find(self.key(), &here) {
            return Ok(at.to_owned());
        }
        let fd = lost
            .open(&here, libc::O_PATH | libc::O_NOFOLLOW)
            .on("open", name)?;
        let (at, ()) = ghosts
            .make(self.key(), &here, |p| Ok(files::link_fd(fd.as_fd(), p)?))
            .on("linkat", name)?;
        Ok(at)
    }

    /// Makes an unlinked file again under its old name, with its contents; tells where it lies.
    fn revive(&self, space: SpaceId, nest: &mut Nest) -> Result<PathBuf> {
        let name = || self.path.display().to_string();
        let here = self.former_place(nest)?;
        match nest.state::<Ghosts>().find(self.key(), &here) {
            Some((at, true)) => return Ok(at.to_owned()),
            Some((other, false)) => {
                // One file that was opened under several names.
                let other = other.to_owned();
                return nest
                    .state::<Ghosts>()
                    .also(self.key(), &here, &other)
                    .on("link", name);
            }
            None => {}
        }
        let create = |path: &Path| {
            File::options()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(0o600)
                .custom_flags(libc::O_NOFOLLOW)
                .open(path)
        };
        let (at, file) = nest
            .state::<Ghosts>()
            .make(self.key(), &here, create)
            .on("open(O_CREAT)", name)?;
        self.fill(&file, space, nest)?;
        let attributes = self.attributes();
        nest.state::<Ghosts>().flag(&file, &attributes).on("dup", name)?;
        drop(file);
        attributes.give(&at)?;
        Ok(at)
    }

    /// Where its name was.
    fn former_place(&self, nest: &mut Nest) -> Result<PathBuf> {
        let mount = self.attributes.as_ref().and_then(|a| a.mount.as_deref());
        place_of(&self.path, mount, self.tree, nest)
    }

    /// What it was like; images from before this was recorded have what stat(2) shows.
    fn attributes(&self) -> Attributes {
        self.attributes.clone().unwrap_or_else(|| Attributes {
            mode: self.stat.mode,
            uid: self.stat.uid,
            gid: self.stat.gid,
            mtime: self.stat.mtime,
            atime: self.stat.mtime,
            xattrs: Vec::new(),
            flags: None,
            room: 0,
            mount: None,
        })
    }

    fn fill(&self, file: &File, space: SpaceId, nest: &Nest) -> Result<()> {
        let name = || self.path.display().to_string();
        file.set_len(self.stat.size).on("ftruncate", name)?;
        fill_from(file, space, self.stat.size, nest).map_err(|e| match e {
            Error::Kernel { call, errno, .. } => Error::kernel(call, name(), errno),
            e => e,
        })?;
        self.attributes().keep_room(file, self.stat.size)
    }

    /// Whether it never had a name (O_TMPFILE), which shows as `#` and its inode.
    fn is_tmpfile(&self) -> bool {
        let own = format!("#{}", self.stat.ino);
        self.unlinked.is_some() && self.path.file_name().is_some_and(|n| n == own.as_str())
    }

    /// Opens a file that has no name but may be given one, and makes it first if need be.
    fn open_tmpfile(&self, space: SpaceId, flags: i32, plain: i32, nest: &mut Nest) -> Result<OwnedFd> {
        let name = || self.path.display().to_string();
        let own = flags & libc::O_TMPFILE == libc::O_TMPFILE;
        if !nest.state::<Nameless>().files.contains_key(&space) {
            let how = match own {
                true => OFlag::from_bits_retain(plain | libc::O_TMPFILE),
                false => OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC,
            };
            let here = self.former_place(nest)?;
            let made = nix::fcntl::open(above(&here), how, Mode::S_IRUSR | Mode::S_IWUSR);
            let made = match made {
                Err(Errno::EOPNOTSUPP | Errno::EISDIR) => {
                    return nix::fcntl::open(
                        &self.revive(space, nest)?,
                        OFlag::from_bits_retain(plain),
                        Mode::empty(),
                    )
                    .on("open", name);
                }
                made => OwnedFd::from(File::from(made.on("open(O_TMPFILE)", name)?)),
            };
            let path = format!("/proc/self/fd/{}", made.as_raw_fd());
            let file = File::options()
                .read(true)
                .write(true)
                .open(&path)
                .on("open", name)?;
            self.fill(&file, space, nest)?;
            let attributes = self.attributes();
            attributes.give_file(&file)?;
            nest.state::<Ghosts>().flag(&file, &attributes).on("dup", name)?;
            let held = File::open(path).on("open", name)?;
            nest.state::<Nameless>().files.insert(space, (held, Some(made)));
        }
        let Some((held, first)) = nest.state::<Nameless>().files.get_mut(&space) else {
            unreachable!("made just above")
        };
        // The flag stays with the description that made it.
        const FOR_GOOD: i32 = libc::O_ACCMODE | libc::O_SYNC;
        if let Some(made) = first.take_if(|made| {
            let as_made = sys::fcntl(made.as_fd(), libc::F_GETFL, 0).unwrap_or(0) as i32;
            own && (as_made ^ flags) & FOR_GOOD == 0
        }) {
            return Ok(made);
        }
        let path = format!("/proc/self/fd/{}", held.as_raw_fd());
        nix::fcntl::open(path.as_str(), OFlag::from_bits_retain(plain), Mode::empty()).on("open", name)
    }

    /// Deals with what was appended since: kept with a warning, or cut back with its tail kept beside the image.
    pub fn settle(&self, nest: &mut Nest) -> Result<()> {
        if self.unlinked.is_some() || self.virtual_file || !self.written || self.lost.is_some() {
            return Ok(());
        }
        let name = || self.path.display().to_string();
        let here = nest.options.reach(self.tree, &self.path)?;
        let now = FileStat::from(&std::fs::metadata(&here).on("stat", name)?);
        let settled = nest.state::<Settled>().0.insert((now.dev, now.ino), ());
        if settled.is_some() || (now.size == self.stat.size && now.mtime == self.stat.mtime) {
            return Ok(());
        }
        let grown = now.size.saturating_sub(self.stat.size);
        if grown == 0 {
            nest.warnings.push(format!(
                "{}: written since the checkpoint; its contents are newer than the program",
                name()
            ));
        } else if nest.options.rewind_files {
            let tail = nest
                .image
                .path()
                .with_extension(format!("tail-{}-{}", self.stat.ino, self.stat.size));
            copy_tail(&here, self.stat.size, &tail).on("copy", || tail.display().to_string())?;
            let file = File::options().write(true).open(&here).on("open", name)?;
            file.set_len(self.stat.size).on("ftruncate", name)?;
            nest.warnings.push(format!(
                "{}: cut back by {grown} bytes to the recorded {}; the tail is kept in {}",
                name(),
                self.stat.size,
                tail.display()
            ));
        } else {
            nest.warnings.push(format!(
                "{}: has grown by {grown} bytes since the checkpoint and is kept (--rewind-files cuts it back to {})",
                name(),
                self.stat.size
            ));
        }
        Ok(())
    }
}

/// Files without a name that have been made: one descriptor to open others from, and the one that made it.
#[derive(Debug, Default)]
struct Nameless {
    files: HashMap<SpaceId, (File, Option<OwnedFd>)>,
}

/// Files whose growth has been dealt with.
#[derive(Debug, Default)]
struct Settled(HashMap<(u64, u64), ()>);

fn time((sec, nsec): (i64, i64)) -> String {
    format!("{sec}.{nsec:09}")
}

/// Copies the file's data (not its holes) into the image, each page at its offset.
pub fn store_contents(
    file: &Reading,
    size: u64,
    space: SpaceId,
    draft: &mut Draft,
    name: &dyn Fn() -> String,
) -> Result<()> {
    if !file.own {
        return store_written(file, size, space, draft, name);
    }
    let mut buf = vec![0u8; 1 << 20];
    let mut at = 0u64;
    // Huge pages that are reserved show no holes. But they are counted, so that what comes after the last one need not be read.
    let huge = sys::huge_page_of(file.as_fd());
    let taken = |bytes: u64| {
        huge != 0
            && file
                .metadata()
                .is_ok_and(|m| std::os::unix::fs::MetadataExt::blocks(&m) * 512 <= bytes)
    };
    let (mut found, mut last) = (0, None);
    if taken(0) {
        return Ok(());
    }
    while at < size {
        // lseek(2): ENXIO when there is no data up to the end.
        let from = match nix::unistd::lseek64(file, at as i64, Whence::SeekData) {
            Ok(n) => n as u64 / PAGE * PAGE,
            Err(Errno::ENXIO) => return Ok(()),
            Err(e) => return Err(e).on("lseek(SEEK_DATA)", name),
        };
        let end =
            nix::unistd::lseek64(file, from as i64, Whence::SeekHole).on("lseek(SEEK_HOLE)", name)? as u64;
        let mut here = from.max(at / PAGE * PAGE);
        while here < end {
            let want = (end - here).min(buf.len() as u64) as usize;
            let got = file.read_at(&mut buf[..want], here).on("read", name)?;
            if got == 0 {
                return Err(Error::kernel("read", name(), Errno::EIO));
            }
            let whole = got.next_multiple_of(PAGE as usize);
            buf[got..whole].fill(0);
            // A short read inside a page would misalign the rest.
            draft.pages(space, here, &buf[..whole])?;
            if huge != 0 && last != Some(here / huge) && buf[..whole].iter().any(|b| *b != 0) {
                (found, last) = (found + huge, Some(here / huge));
            }
            here += if got % PAGE as usize == 0 {
                got as u64
            } else {
                whole as u64
            };
            if huge != 0 && here % huge == 0 && last == Some(here / huge - 1) && taken(found) {
                return Ok(());
            }
        }
        at = end.max(at + 1);
    }
    Ok(())
}

/// The same of a file whose position must not move, so that it cannot be asked for its holes: all pages that are not empty.
fn store_written(
    file: &File,
    size: u64,
    space: SpaceId,
    draft: &mut Draft,
    name: &dyn Fn() -> String,
) -> Result<()> {
    let mut page = vec![0; PAGE as usize];
    for at in (0..size).step_by(PAGE as usize) {
        page.fill(0);
        let mut got = 0;
        while at + got < size && got < PAGE {
            let more = file
                .read_at(&mut page[got as usize..], at + got)
                .on("read", name)?;
            if more == 0 {
                return Err(Error::kernel("read", name(), Errno::EIO));
            }
            got += more as u64;
        }
        if page.iter().any(|b| *b != 0) {
            draft.pages(space, at, &page)?;
        }
    }
    Ok(())
}

/// Writes the pages of a space into a file of `size` bytes.
pub fn fill_from(file: &File, space: SpaceId, size: u64, nest: &Nest) -> Result<()> {
    // Huge pages can be written to by way of a mapping only, which takes as many as it has room for: of a file with holes
    // there need not be so many.
    let huge = sys::huge_page_of(file.as_fd());
    let mut mapped: Option<(u64, u64, sys::SharedAnon)> = None;
    nest.image.for_each_run(space, |at, content| {
        // Zeros need no writing: the file was made by growing it.
        let Content::Bytes(bytes) = content else {
            return Ok(());
        };
        let len = (bytes.len() as u64).min(size.saturating_sub(at.start)) as usize;
        if huge != 0 && len > 0 {
            let name = || "a file from the image";
            let end = at.start + len as u64;
            if !mapped
                .as_ref()
                .is_some_and(|(from, to, _)| *from <= at.start && end <= *to)
            {
                let (from, to) = (at.start / huge * huge, end.next_multiple_of(huge));
                let window = sys::SharedAnon::of(file.as_fd(), from, to - from).on("mmap", name)?;
                mapped = Some((from, to, window));
            }
            if let Some((from, _, window)) = &mapped {
                return window.write(at.start - from, &bytes[..len]).on("write", name);
            }
        }
        file.write_all_at(&bytes[..len], at.start)
            .on("write", || "a file from the image")
    })
}

fn copy_tail(path: &Path, from: u64, to: &Path) -> std::io::Result<()> {
    use std::io::{Seek, SeekFrom};
    let mut source = File::open(path)?;
    source.seek(SeekFrom::Start(from))?;
    let mut tail = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(to)?;
    std::io::copy(&mut source, &mut tail)?;
    tail.sync_all()
}

impl FdKind for Regular {
    const TAG: &'static str = "regular-file";
    const VERSION: u16 = 1;
    const ABOUT: &'static str = "regular files: position, flags; unlinked ones travel in the image, with their attributes, and are made again on the file system they \
        were on, also where something is mounted over their directory by now; those that have other names, or that something is mounted over, are found by their handles";
    type Record = Record;

    fn claims(fd: &FdView) -> bool {
        fd.stat.kind() == libc::S_IFREG
            && !super::memfd::is_memfd(&fd.link)
            && !fd.link.starts_with(b"/secretmem")
            && fd.anon_inode().is_none()
    }

    fn verdict(fd: &FdView, _: &View, out: &mut Vec<Blocker>) {
        if let Some((why, remedy)) = FileRef::obstacle(&fd.link, &fd.stat, &fd.at(), &fd.tree) {
            out.push(fd.blocker().why(why).remedy(remedy));
        } else if let Some((why, remedy)) =
            found::shut(&fd.stat, || fd.guarded, &fd.at(), fd.flags(), &fd.tree)
                .or_else(|| found::asked_for(&fd.link, &fd.at(), fd.flags()))
                .or_else(|| Locks::obstacle(fd))
        {
            out.push(fd.blocker().why(why).remedy(remedy));
        }
    }

    fn collect(fd: &FdView, from: &mut Source<'_>) -> Result<Record> {
        // What one of the set reads another may write: a log, and who follows it.
        let written = from.shared.written.contains(&(fd.stat.dev, fd.stat.ino));
        let file = FileRef::collect(
            &fd.link,
            &fd.stat,
            &fd.tree,
            written,
            &fd.at(),
            from.shared,
            from.draft,
        )?;
        Ok(Record {
            file,
            flags: fd.flags(),
            position: fd.info.pos,
            flock: None,
            ofd_locks: Vec::new(),
        })
    }

    fn precheck(record: &Record, options: &Options, out: &mut Vec<Blocker>) {
        record.file.precheck(options, out);
    }

    fn members(_: &Record) -> Vec<FileId> {
        Vec::new()
    }

    fn restore(record: &Record, nest: &mut Nest) -> Result<OwnedFd> {
        if record.file.virtual_file {
            thread_of_proc(&record.file.path, record.file.tree, nest)?;
        }
        let name = || record.file.path.display().to_string();
        let fd = record.file.open(record.flags, nest)?;
        if record.flags & libc::O_PATH != 0 {
            return Ok(fd);
        }
        // The kernel makes the text of its own files up to the position: when all that they tell of is there.
        if record.position != 0 && !record.file.virtual_file {
            nix::unistd::lseek64(fd.as_fd(), record.position, Whence::SeekSet).on("lseek", name)?;
        }
        record.older_locks().restore(fd.as_fd())?;
        Ok(fd)
    }

    fn finish(record: &Record, placed: Placed, nest: &mut Nest) -> Result<()> {
        let settable = record.file.virtual_file && record.flags & libc::O_PATH == 0;
        if record.position != 0 && settable {
            let name = || record.file.path.display().to_string();
            nix::unistd::lseek64(nest.file(placed.id)?, record.position, Whence::SeekSet)
                .on("lseek", name)?;
        }
        record.older_locks().restore_flock(placed, nest)?;
        record.file.settle(nest)
    }
}

impl Record {
    fn older_locks(&self) -> Locks {
        Locks {
            flock: self.flock.clone(),
            ofd: self.ofd_locks.clone(),
            ..Locks::default()
        }
    }
}
