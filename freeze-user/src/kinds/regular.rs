//! Regular files: position, flags, locks; unlinked ones travel in the image, changed ones are told apart.

use super::{FdKind, Placed, Source, object_space};
use crate::error::{Blocker, Context, Error, Result};
use crate::ids::{FileId, PAGE, SpaceId};
use crate::nest::{Nest, Options};
use crate::observe::tree::Tree;
use crate::observe::view::{FdView, FileStat, View};
use crate::proc::fdinfo::Lock;
use crate::store::{Content, Draft};
use crate::sys;
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

#[derive(Debug)]
pub struct Regular;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub file: FileRef,
    /// Access mode and the flags open(2) takes.
    pub flags: i32,
    pub position: i64,
    /// `READ` or `WRITE` where this description holds a flock(2) lock.
    pub flock: Option<String>,
    /// Locks of the description itself (F_OFD_SETLK): kind, start, last byte or `None` for the end of the file.
    pub ofd_locks: Vec<(String, u64, Option<u64>)>,
}

/// How a file is found again, and what it was like.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRef {
    /// Its path, as bytes turned into text where they are not UTF-8: see `raw`.
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
}

const DELETED: &[u8] = b" (deleted)";

impl FileRef {
    /// What speaks against carrying the file at `link`, with what remedy; `None` if nothing does.
    pub fn obstacle(link: &[u8], stat: &FileStat, tree: &Tree) -> Option<(String, &'static str)> {
        if let Some(path) = link.strip_suffix(DELETED).filter(|_| !leads_to(link, stat, tree)) {
            let name = String::from_utf8_lossy(path).into_owned();
            if stat.nlink > 0 {
                return Some((
                    format!(
                        "{name} was unlinked, but the file has {} other name(s) that the kernel does not tell",
                        stat.nlink
                    ),
                    "link it to its old name again (ln), or let the program open it under a name that stays",
                ));
            }
            return None;
        }
        if !link.starts_with(b"/") || link.starts_with(b"(unreachable)") {
            return Some((
                "its path lies outside the file system tree that freeze sees".into(),
                "run freeze where the program sees its files (nsenter, chroot)",
            ));
        }
        match std::fs::symlink_metadata(tree.path(link)).map(|m| FileStat::from(&m)) {
            Ok(now) if (now.dev, now.ino) == (stat.dev, stat.ino) => None,
            Ok(_) => Some((
                "another file or mount lies at its path now".into(),
                "unmount what covers it, or move the file back",
            )),
            Err(e) => Some((
                format!("its path cannot be followed: {e}"),
                "put the file back where it was opened",
            )),
        }
    }

    /// Records the file behind `link`; the contents of an unlinked one go into the image, read through `open`.
    pub fn collect(
        link: &[u8],
        stat: &FileStat,
        tree: &Tree,
        written: bool,
        open: impl FnOnce() -> Result<File>,
        shared: &mut super::Shared,
        draft: &mut Draft,
    ) -> Result<FileRef> {
        let name = || String::from_utf8_lossy(link).into_owned();
        let gone = link.ends_with(DELETED) && !leads_to(link, stat, tree);
        let path = if gone {
            &link[..link.len() - DELETED.len()]
        } else {
            link
        };
        let unlinked = gone.then(|| object_space(stat.dev, stat.ino));
        if let Some(space) = unlinked
            && shared.first_sight(stat.dev, stat.ino)
        {
            store_contents(&open()?, stat.size, space, draft, &name)?;
        }
        let virtual_file = path.starts_with(b"/proc/") || path.starts_with(b"/sys/");
        Ok(FileRef {
            path: OsStr::from_bytes(path).into(),
            stat: *stat,
            written,
            unlinked,
            virtual_file,
            tree: tree.number,
        })
    }

    /// Adds what has become of the file since: missing, replaced, shortened, changed.
    pub fn precheck(&self, options: &Options, out: &mut Vec<Blocker>) {
        if self.virtual_file || options.accept_changed.contains(&self.path) {
            return;
        }
        // In a tree that is yet to be built nothing can be looked for; once it is there, this is asked again.
        let Some(here) = options.place(self.tree, &self.path) else {
            return;
        };
        let at = || Blocker::at(self.path.display().to_string(), "");
        if self.unlinked.is_some() {
            match here.parent().map(std::fs::metadata) {
                Some(Ok(m)) if m.is_dir() => {}
                _ => out.push(
                    at().why("the directory of this unlinked file is gone")
                        .remedy("create the directory"),
                ),
            }
            return;
        }
        let accept = format!(
            "put it back, or accept it as it is with --accept-changed {}",
            self.path.display()
        );
        let now = match std::fs::symlink_metadata(&here) {
            Ok(m) => FileStat::from(&m),
            Err(e) => {
                return out.push(
                    at().why(format!("the file is missing: {e}"))
                        .remedy("put it back where it was"),
                );
            }
        };
        let same_file = (now.dev, now.ino) == (self.stat.dev, self.stat.ino);
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

    /// Opens it anew, with a description of its own.
    pub fn open(&self, flags: i32, nest: &mut Nest) -> Result<OwnedFd> {
        let mask = libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC;
        let flags =
            OFlag::from_bits_retain(flags & !mask | libc::O_CLOEXEC | libc::O_NOCTTY | libc::O_NONBLOCK);
        let open = |path: &Path| {
            nix::fcntl::open(path, flags, Mode::empty()).on("open", || self.path.display().to_string())
        };
        let Some(space) = self.unlinked else {
            return open(&nest.options.reach(self.tree, &self.path)?);
        };
        if !nest.state::<Ghosts>().files.contains_key(&space) {
            let file = self.revive(space, nest)?;
            nest.state::<Ghosts>().files.insert(space, file);
        }
        let file = nest
            .state::<Ghosts>()
            .files
            .get(&space)
            .map_or(-1, |g| g.1.as_raw_fd());
        open(Path::new(&format!("/proc/self/fd/{file}")))
    }

    /// Makes an unlinked file again under its old name, with its contents; the name goes when the ghost is dropped.
    fn revive(&self, space: SpaceId, nest: &mut Nest) -> Result<(Name, File)> {
        let name = || self.path.display().to_string();
        let create = |path: &Path| {
            File::options()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(0o600)
                .custom_flags(libc::O_NOFOLLOW)
                .open(path)
        };
        // Somebody else's file may have that name by now; then any other will do.
        let here = nest.options.reach(self.tree, &self.path)?;
        let mut path = here.clone();
        let mut made = create(&path);
        for n in 0.. {
            match &made {
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists && n < 1000 => {
                    let mut other = here.clone().into_os_string();
                    other.push(format!(".freeze-{}-{n}", std::process::id()));
                    path = other.into();
                    made = create(&path);
                }
                _ => break,
            }
        }
        let file = made.on("open(O_CREAT)", name)?;
        let link = Name(path);
        file.set_len(self.stat.size).on("ftruncate", name)?;
        fill_from(&file, space, self.stat.size, nest).map_err(|e| match e {
            Error::Kernel { call, errno, .. } => Error::kernel(call, name(), errno),
            e => e,
        })?;
        nix::unistd::fchown(
            file.as_fd(),
            Some(self.stat.uid.into()),
            Some(self.stat.gid.into()),
        )
        .on("fchown", name)?;
        nix::sys::stat::fchmod(file.as_fd(), Mode::from_bits_truncate(self.stat.mode & 0o7777))
            .on("fchmod", name)?;
        let at = nix::sys::time::TimeSpec::new(self.stat.mtime.0, self.stat.mtime.1);
        nix::sys::stat::futimens(file.as_fd(), &at, &at).on("futimens", name)?;
        // Held for reading only: a program that is open for writing can be nobody's executable (ETXTBSY).
        let held = File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).on("open", name)?;
        Ok((link, held))
    }

    /// Deals with what was appended since: kept with a warning, or cut back with its tail kept beside the image.
    pub fn settle(&self, nest: &mut Nest) -> Result<()> {
        if self.unlinked.is_some() || self.virtual_file || !self.written {
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

/// Unlinked files that live again while the nest is built.
#[derive(Debug, Default)]
struct Ghosts {
    files: HashMap<SpaceId, (Name, File)>,
}

/// Files whose growth has been dealt with.
#[derive(Debug, Default)]
struct Settled(HashMap<(u64, u64), ()>);

/// A name that is unlinked when dropped.
#[derive(Debug)]
struct Name(PathBuf);

impl Drop for Name {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Whether the path `link`, taken literally, leads to this very file (a name may end in " (deleted)").
fn leads_to(link: &[u8], stat: &FileStat, tree: &Tree) -> bool {
    std::fs::symlink_metadata(tree.path(link))
        .is_ok_and(|m| (FileStat::from(&m).dev, FileStat::from(&m).ino) == (stat.dev, stat.ino))
}

fn time((sec, nsec): (i64, i64)) -> String {
    format!("{sec}.{nsec:09}")
}

/// Copies the file's data (not its holes) into the image, each page at its offset.
pub fn store_contents(
    file: &File,
    size: u64,
    space: SpaceId,
    draft: &mut Draft,
    name: &dyn Fn() -> String,
) -> Result<()> {
    let mut buf = vec![0u8; 1 << 20];
    let mut at = 0u64;
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
            here += if got % PAGE as usize == 0 {
                got as u64
            } else {
                whole as u64
            };
        }
        at = end.max(at + 1);
    }
    Ok(())
}

/// Writes the pages of a space into a file of `size` bytes.
pub fn fill_from(file: &File, space: SpaceId, size: u64, nest: &Nest) -> Result<()> {
    nest.image.for_each_run(space, |at, content| {
        // Zeros need no writing: the file was made by growing it.
        let Content::Bytes(bytes) = content else {
            return Ok(());
        };
        let len = (bytes.len() as u64).min(size.saturating_sub(at.start)) as usize;
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
    const ABOUT: &'static str =
        "regular files: position, flags, flock and OFD locks; unlinked ones travel in the image";
    type Record = Record;

    fn claims(fd: &FdView) -> bool {
        fd.stat.kind() == libc::S_IFREG
            && !super::memfd::is_memfd(&fd.link)
            && !fd.link.starts_with(b"/secretmem")
            && fd.anon_inode().is_none()
    }

    fn verdict(fd: &FdView, _: &View, out: &mut Vec<Blocker>) {
        if let Some((why, remedy)) = FileRef::obstacle(&fd.link, &fd.stat, &fd.tree) {
            out.push(fd.blocker().why(why).remedy(remedy));
        }
        for lock in fd
            .info
            .locks
            .iter()
            .filter(|l| matches!(l.class.as_str(), "LEASE" | "DELEG"))
        {
            out.push(
                fd.blocker()
                    .why(format!("a {} is held on it", lock.class.to_lowercase()))
                    .remedy("release it first"),
            );
        }
    }

    fn collect(fd: &FdView, from: &mut Source<'_>) -> Result<Record> {
        let held = from.process.fd(fd.fd)?;
        let open = || {
            let path = format!("/proc/self/fd/{}", held.as_raw_fd());
            File::open(path).on("open", || fd.label())
        };
        let written = fd.flags() & libc::O_ACCMODE != libc::O_RDONLY && fd.flags() & libc::O_PATH == 0;
        let file = FileRef::collect(
            &fd.link,
            &fd.stat,
            &fd.tree,
            written,
            open,
            from.shared,
            from.draft,
        )?;
        let of = |class: &str| {
            fd.info
                .locks
                .iter()
                .filter(move |l| l.class == class)
                .cloned()
                .collect::<Vec<Lock>>()
        };
        Ok(Record {
            file,
            flags: fd.flags(),
            position: fd.info.pos,
            flock: of("FLOCK").first().map(|l| l.kind.clone()),
            ofd_locks: of("OFDLCK")
                .into_iter()
                .map(|l| (l.kind, l.start, l.end))
                .collect(),
        })
    }

    fn precheck(record: &Record, options: &Options, out: &mut Vec<Blocker>) {
        record.file.precheck(options, out);
    }

    fn members(_: &Record) -> Vec<FileId> {
        Vec::new()
    }

    fn restore(record: &Record, nest: &mut Nest) -> Result<OwnedFd> {
        let name = || record.file.path.display().to_string();
        let fd = record.file.open(record.flags, nest)?;
        if record.flags & libc::O_PATH != 0 {
            return Ok(fd);
        }
        if record.position != 0 {
            nix::unistd::lseek64(fd.as_fd(), record.position, Whence::SeekSet).on("lseek", name)?;
        }
        if let Some(kind) = &record.flock {
            let how = if kind == "WRITE" {
                libc::LOCK_EX
            } else {
                libc::LOCK_SH
            };
            sys::flock(fd.as_fd(), how | libc::LOCK_NB).on("flock", name)?;
        }
        const F_OFD_SETLK: i32 = 37;
        for (kind, start, end) in &record.ofd_locks {
            let lock = sys::flock64(kind == "WRITE", *start, *end);
            sys::fcntl_bytes(fd.as_fd(), F_OFD_SETLK, &lock).on("fcntl(F_OFD_SETLK)", name)?;
        }
        Ok(fd)
    }

    fn finish(record: &Record, _: Placed, nest: &mut Nest) -> Result<()> {
        record.file.settle(nest)
    }
}
