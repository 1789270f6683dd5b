//! Files, directories and nodes without a name, which get one for as long as they are opened again.

use super::found::{Handle, above, is_own};
use crate::error::{Context, Result, errno};
use crate::kinds::pipe::Bytes;
use crate::observe::view::FileStat;
use crate::sys::files;
use crate::sys::quiet;
use nix::errno::Errno;
use nix::fcntl::FallocateFlags;
use nix::sys::stat::UtimensatFlags;
use nix::sys::time::TimeSpec;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs::{File, Permissions};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// What a file is besides its contents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds and nanoseconds.
    pub mtime: (i64, i64),
    pub atime: (i64, i64),
    /// Names and values, access control lists among them.
    pub xattrs: Vec<(Bytes, Bytes)>,
    /// Flags of the inode (chattr(1)), where the file system has them.
    #[serde(default)]
    pub flags: Option<u32>,
    /// How many bytes it takes on its file system, written or not (fallocate(2)).
    #[serde(default)]
    pub room: u64,
    /// Where the mount is mounted on which it lies, if another is mounted over the directory it was in.
    #[serde(default, with = "crate::ospath::option")]
    pub mount: Option<PathBuf>,
}

impl Attributes {
    /// Of the file to which the link `at` of /proc leads.
    pub fn of(at: &str, stat: &FileStat) -> Result<Attributes> {
        let now = std::fs::metadata(at).on("stat", || at.to_owned())?;
        let xattrs = files::xattrs(at.as_ref()).on("listxattr", || at.to_owned())?;
        // Nothing else is opened: a fifo could wait for somebody, and a device begin to do something.
        let opened = match stat.kind() {
            libc::S_IFREG | libc::S_IFDIR => match quiet::open(at.as_ref()) {
                // It could be opened, by who is not kept waiting: its flags are not to be lost.
                Err(e) if errno(&e) == Errno::ETIMEDOUT => return Err(e).on("open", || at.to_owned()),
                opened => opened.ok(),
            },
            _ => None,
        };
        Ok(Attributes {
            mode: stat.mode,
            uid: stat.uid,
            gid: stat.gid,
            mtime: stat.mtime,
            atime: (now.atime(), now.atime_nsec()),
            xattrs: xattrs.into_iter().map(|(n, v)| (Bytes(n), Bytes(v))).collect(),
            flags: opened.and_then(|fd| files::inode_flags(fd.as_fd())),
            room: now.blocks() * 512,
            mount: None,
        })
    }

    /// Lets a file of this size that has its contents again take the room that it took, if there were no holes in it.
    pub fn keep_room(&self, file: &File, size: u64) -> Result<()> {
        let name = || "a file that had room to itself";
        let now = file.metadata().on("fstat", name)?.blocks() * 512;
        if self.room <= now || self.room < size {
            return Ok(());
        }
        let keep = FallocateFlags::FALLOC_FL_KEEP_SIZE;
        match nix::fcntl::fallocate(file, keep, 0, self.room as i64) {
            Err(Errno::ENOSPC) => Err(Errno::ENOSPC).on("fallocate", name),
            // A file system that does not know it has none to give back.
            _ => Ok(()),
        }
    }

    /// Gives them to what lies at `path`; a link there is not followed, and has no mode of its own.
    pub fn give(&self, path: &Path) -> Result<()> {
        let name = || path.display().to_string();
        std::os::unix::fs::lchown(path, Some(self.uid), Some(self.gid)).on("chown", name)?;
        if self.mode & libc::S_IFMT != libc::S_IFLNK {
            self.give_to_target(path)?;
        }
        set_times(path, self.atime, self.mtime, UtimensatFlags::NoFollowSymlink).on("utimensat", name)
    }

    /// Gives them to an open file.
    pub fn give_file(&self, file: &File) -> Result<()> {
        let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        let name = || path.display().to_string();
        std::os::unix::fs::chown(&path, Some(self.uid), Some(self.gid)).on("chown", name)?;
        self.give_to_target(&path)?;
        set_times(&path, self.atime, self.mtime, UtimensatFlags::FollowSymlink).on("utimensat", name)
    }

    fn give_to_target(&self, path: &Path) -> Result<()> {
        let name = || path.display().to_string();
        std::fs::set_permissions(path, Permissions::from_mode(self.mode & 0o7777)).on("chmod", name)?;
        for (attribute, value) in &self.xattrs {
            files::set_xattr(path, &attribute.0, &value.0).on("setxattr", || {
                format!("{} of {}", String::from_utf8_lossy(&attribute.0), name())
            })?;
        }
        Ok(())
    }
}

/// The times of last access and of last change, as seconds and nanoseconds.
pub fn set_times(
    path: &Path,
    atime: (i64, i64),
    mtime: (i64, i64),
    flags: UtimensatFlags,
) -> nix::Result<()> {
    let spec = |(sec, nsec)| TimeSpec::new(sec, nsec);
    nix::sys::stat::utimensat(nix::fcntl::AT_FDCWD, path, &spec(atime), &spec(mtime), flags)
}

/// What has been given a name for the time of the restore; the names go when it is dropped.
#[derive(Debug, Default)]
pub struct Ghosts {
    /// By device and inode as recorded, and by the name that was asked for: where it lies.
    made: HashMap<(u64, u64), BTreeMap<PathBuf, PathBuf>>,
    /// Directories that were made on the way to something and may yet turn out to be recorded themselves.
    unclaimed: BTreeSet<PathBuf>,
    /// In the order in which they were made.
    names: Vec<(PathBuf, bool)>,
    /// Directories that were there before: what is made and removed in them must not show.
    touched: BTreeMap<PathBuf, [(i64, i64); 2]>,
    /// Directories that something is mounted over, by tree, mount and path: where they are reached.
    beneath: HashMap<(u32, PathBuf, PathBuf), PathBuf>,
    /// What lies at a path of a descriptor of freeze's own.
    held: Vec<OwnedFd>,
    /// Removed directories, whose times are set once they are empty again.
    times: Vec<(File, [(i64, i64); 2])>,
    /// Directories that were made under another name, since something else has theirs by now.
    instead: BTreeMap<PathBuf, PathBuf>,
    /// Flags of inodes, some of which would keep the name from being taken away again.
    flags: Vec<(File, u32)>,
}

impl Ghosts {
    /// Where the file with this device and inode lies under the name `path`, or under any other if it has not that one.
    pub fn find(&self, key: (u64, u64), path: &Path) -> Option<(&Path, bool)> {
        let names = self.made.get(&key)?;
        names
            .get(path)
            .map(|p| (p.as_path(), true))
            .or_else(|| names.values().next().map(|p| (p.as_path(), false)))
    }

    /// Makes it under the name `path`, or under another if somebody else's file has that by now.
    pub fn make<T>(
        &mut self,
        key: (u64, u64),
        path: &Path,
        mut make: impl FnMut(&Path) -> io::Result<T>,
    ) -> io::Result<(PathBuf, T)> {
        let place = self.lead_to(path)?;
        let (at, made) = self.free_name(&place, &mut make)?;
        self.names.push((at.clone(), false));
        self.made
            .entry(key)
            .or_default()
            .insert(path.to_owned(), at.clone());
        Ok((at, made))
    }

    /// Gives the file that lies at `other` the name `path` too.
    ///
    /// One file system may be mounted in several places: then it has that name there already, or can be had there by its
    /// handle only.
    pub fn also(&mut self, key: (u64, u64), path: &Path, other: &Path) -> io::Result<PathBuf> {
        let there = std::fs::symlink_metadata(other)?;
        let same = |p: &Path| {
            std::fs::symlink_metadata(p).is_ok_and(|m| (m.dev(), m.ino()) == (there.dev(), there.ino()))
        };
        let as_it_is_called = other.file_name().map(|name| path.with_file_name(name));
        let found = [Some(path.to_owned()), as_it_is_called]
            .into_iter()
            .flatten()
            .find(|p| p != other && same(p));
        let at = match found {
            Some(at) => at,
            None => match self.make(key, path, |p| std::fs::hard_link(other, p)) {
                Err(e) if matches!(e.raw_os_error(), Some(libc::EXDEV | libc::EROFS)) => {
                    let (kind, bytes, _) = files::handle_of(other)?;
                    let handle = Handle {
                        kind,
                        bytes: Bytes(bytes),
                    };
                    let fd = handle.open(above(path), libc::O_PATH | libc::O_NOFOLLOW)?;
                    let at = PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
                    self.held.push(fd);
                    at
                }
                made => return made.map(|(at, ())| at),
            },
        };
        self.made
            .entry(key)
            .or_default()
            .insert(path.to_owned(), at.clone());
        Ok(at)
    }

    /// Where a directory is reached that something is mounted over, if that is known or it was made in one of which it is.
    pub fn beneath(&self, tree: u32, mount: &Path, dir: &Path) -> Option<PathBuf> {
        dir.ancestors().find_map(|up| {
            let known = self.beneath.get(&(tree, mount.to_owned(), up.to_owned()))?;
            let at = known.join(dir.strip_prefix(up).ok()?);
            (up == dir || self.names.iter().any(|(made, _)| *made == at)).then_some(at)
        })
    }

    /// Keeps the descriptor by whose path it is reached from now on; tells that path.
    pub fn hold_beneath(&mut self, tree: u32, mount: &Path, dir: PathBuf, held: OwnedFd) -> PathBuf {
        let at = PathBuf::from(format!("/proc/self/fd/{}", held.as_raw_fd()));
        self.beneath.insert((tree, mount.to_owned(), dir), at.clone());
        self.held.push(held);
        at
    }

    /// Makes the directory again that was removed from `path`.
    pub fn directory(&mut self, key: (u64, u64), path: &Path, attributes: &Attributes) -> Result<PathBuf> {
        if let Some((at, _)) = self.find(key, path) {
            return Ok(at.to_owned());
        }
        let name = || path.display().to_string();
        let place = self.lead_to(path).on("mkdir", name)?;
        let at = if self.unclaimed.remove(path) {
            self.instead.get(path).cloned().unwrap_or_else(|| path.to_owned())
        } else {
            self.make_dir(path, &place).on("mkdir", name)?
        };
        attributes.give(&at)?;
        let held = File::open(&at).on("open", name)?;
        self.flag(&held, attributes).on("dup", name)?;
        self.times.push((held, [attributes.atime, attributes.mtime]));
        self.made
            .entry(key)
            .or_default()
            .insert(path.to_owned(), at.clone());
        Ok(at)
    }

    fn free_name<T>(
        &mut self,
        path: &Path,
        make: &mut impl FnMut(&Path) -> io::Result<T>,
    ) -> io::Result<(PathBuf, T)> {
        let mut short = false;
        for n in 0u64.. {
            let at = match n {
                0 => path.to_owned(),
                n => nearby(path, n - 1, short),
            };
            match make(&at) {
                Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
                Err(e) if e.raw_os_error() == Some(libc::ENAMETOOLONG) && n > 0 && !short => short = true,
                other => return other.map(|made| (at, made)),
            }
        }
        Err(ErrorKind::AlreadyExists.into())
    }

    /// Keeps a descriptor by whose path something is reached, until the names go.
    pub fn hold(&mut self, held: OwnedFd) {
        self.held.push(held);
    }

    /// Something is to be made or removed in a directory, which must not show by its times.
    pub fn touch(&mut self, directory: &Path) {
        if let Ok(m) = std::fs::metadata(directory)
            && !self.names.iter().any(|(p, _)| p == directory)
        {
            let times = [(m.atime(), m.atime_nsec()), (m.mtime(), m.mtime_nsec())];
            self.touched.entry(directory.to_owned()).or_insert(times);
        }
    }

    /// Makes the directories that lead to `path`, as far as they are gone; tells where `path` comes to lie.
    fn lead_to(&mut self, path: &Path) -> io::Result<PathBuf> {
        let there = above(path);
        self.touch(there);
        let mut at = there.to_owned();
        let mut gone: Vec<&Path> = path.ancestors().take_while(|p| *p != there).collect();
        gone.reverse();
        for dir in gone {
            at.push(dir.file_name().unwrap_or_default());
            if dir == path {
                break;
            }
            at = match self.instead.get(dir) {
                Some(known) => known.clone(),
                None => {
                    self.unclaimed.insert(dir.to_owned());
                    self.make_dir(dir, &at)?
                }
            };
        }
        Ok(at)
    }

    /// Makes the directory that was called `path`, if it can be had at `place`.
    fn make_dir(&mut self, path: &Path, place: &Path) -> io::Result<PathBuf> {
        let (at, ()) = self.free_name(place, &mut |p: &Path| std::fs::create_dir(p))?;
        self.names.push((at.clone(), true));
        if at != path {
            self.instead.insert(path.to_owned(), at.clone());
        }
        Ok(at)
    }

    /// Gives the flags of its inode to an open file once it has no name any more.
    pub fn flag(&mut self, file: &File, attributes: &Attributes) -> io::Result<()> {
        if let Some(flags) = attributes.flags
            && files::inode_flags(file.as_fd()).is_some_and(|now| now != flags)
        {
            // Not by one for writing: it may be a program to be run.
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            self.flags.push((File::open(path)?, flags));
        }
        Ok(())
    }

    /// Takes the names away again, once everything that was looked for by them is open; tells what is not as it was.
    pub fn bury(&mut self) -> Vec<String> {
        for (path, is_dir) in self.names.drain(..).rev() {
            let _ = match is_dir {
                true => std::fs::remove_dir(path),
                false => std::fs::remove_file(path),
            };
        }
        for (path, [atime, mtime]) in std::mem::take(&mut self.touched) {
            let how = match is_own(&path) {
                true => UtimensatFlags::FollowSymlink,
                false => UtimensatFlags::NoFollowSymlink,
            };
            let _ = set_times(&path, atime, mtime, how);
        }
        for (dir, [atime, mtime]) in self.times.drain(..) {
            let spec = |(sec, nsec)| TimeSpec::new(sec, nsec);
            let _ = nix::sys::stat::futimens(&dir, &spec(atime), &spec(mtime));
        }
        self.made.clear();
        self.beneath.clear();
        self.held.clear();
        self.instead.clear();
        let mut warnings = Vec::new();
        for (file, flags) in self.flags.drain(..) {
            if let Err(e) = files::set_inode_flags(file.as_fd(), flags) {
                let shown = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()));
                warnings.push(format!(
                    "{}: its flags (chattr) could not be set: {e}",
                    shown.unwrap_or_default().display()
                ));
            }
        }
        warnings
    }
}

/// Another name beside `path`; the beginning of the old one where it cannot be longer.
fn nearby(path: &Path, n: u64, short: bool) -> PathBuf {
    // The shortest limit of names in use leaves room for what is added (ecryptfs has 143).
    const BEGINNING: usize = 100;
    let old = path.file_name().unwrap_or_default().as_bytes();
    let kept = if short {
        old.len().min(BEGINNING)
    } else {
        old.len()
    };
    let mut name = OsStr::from_bytes(&old[..kept]).to_owned();
    name.push(format!(".freeze-{}-{n}", std::process::id()));
    path.with_file_name(name)
}

impl Drop for Ghosts {
    fn drop(&mut self) {
        self.bury();
    }
}
