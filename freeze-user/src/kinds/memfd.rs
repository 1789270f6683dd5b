//! memfd_create(2): files without a path, by descriptor or only mapped, with contents, name, seals and attributes.

use super::memory::huge_flags;
use super::pipe::Bytes;
use super::regular::ghost::Attributes;
use super::regular::{fill_from, store_contents};
use super::{FdKind, Placed, Shared, Source, object_space};
use crate::error::{Blocker, Context, Error, Result};
use crate::ids::{FileId, SpaceId};
use crate::nest::{Nest, Options};
use crate::observe::view::{FdView, FileStat, View};
use crate::store::Draft;
use crate::sys;
use crate::sys::quiet::{self, Reading};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::unistd::Whence;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

#[derive(Debug)]
pub struct Memfd;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub file: MemFile,
    pub flags: i32,
    pub position: i64,
}

/// A file in memory, however many descriptors and mappings it has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemFile {
    /// Where its contents are in the image.
    pub space: SpaceId,
    /// As given to memfd_create(2).
    pub name: Bytes,
    pub size: u64,
    /// F_SEAL_* bits.
    pub seals: u32,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Bytes per page where they are huge ones; else 0.
    #[serde(default)]
    pub huge: u64,
    /// Times and extended attributes, in images that have them.
    #[serde(default)]
    pub attributes: Option<Box<Attributes>>,
}

const PREFIX: &[u8] = b"/memfd:";
const DELETED: &[u8] = b" (deleted)";
const F_SEAL_SEAL: u32 = 1;
const MFD_ALLOW_SEALING: u32 = 2;
const MFD_HUGETLB: u32 = 4;

/// Whether a link or mapping of this name is a memfd's.
pub fn is_memfd(name: &[u8]) -> bool {
    name.starts_with(PREFIX) && name.ends_with(DELETED)
}

impl MemFile {
    /// Records it, with its contents if it is met for the first time.
    pub fn collect(
        link: &[u8],
        stat: &FileStat,
        file: &Reading,
        shared: &mut Shared,
        draft: &mut Draft,
    ) -> Result<MemFile> {
        let text = || String::from_utf8_lossy(link).into_owned();
        let space = object_space(stat.dev, stat.ino);
        let attributes = Attributes::of(&format!("/proc/self/fd/{}", file.as_raw_fd()), stat)?;
        if shared.first_sight(stat.dev, stat.ino) {
            store_contents(file, stat.size, space, draft, &text)?;
        }
        let seals = sys::fcntl(file.as_fd(), libc::F_GET_SEALS, 0).on("fcntl(F_GET_SEALS)", text)? as u32;
        let name = link
            .strip_prefix(PREFIX)
            .and_then(|n| n.strip_suffix(DELETED))
            .unwrap_or(link);
        let (name, mode) = (Bytes(name.to_vec()), stat.mode & 0o7777);
        Ok(MemFile {
            space,
            name,
            size: stat.size,
            seals,
            mode,
            uid: stat.uid,
            gid: stat.gid,
            huge: sys::huge_page_of(file.as_fd()),
            attributes: Some(Box::new(attributes)),
        })
    }

    /// Opens it, making it first if need be; its seals come later, by [`MemFile::seal`].
    pub fn open(&self, flags: i32, nest: &mut Nest) -> Result<OwnedFd> {
        let name = || format!("memfd {}", String::from_utf8_lossy(&self.name.0));
        if !nest.state::<Made>().files.contains_key(&self.space) {
            let made = self.make(nest)?;
            nest.state::<Made>().files.insert(self.space, made);
        }
        let Some(made) = nest.state::<Made>().files.get(&self.space) else {
            unreachable!("made just above")
        };
        let path = format!("/proc/self/fd/{}", made.as_raw_fd());
        let flags = OFlag::from_bits_retain(
            flags & !(libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC | libc::O_NOFOLLOW) | libc::O_CLOEXEC,
        );
        let opened = nix::fcntl::open(path.as_str(), flags, Mode::empty());
        if opened.as_ref().err() == Some(&Errno::ETXTBSY)
            && let Some(first) = nest.state::<Made>().first.remove(&self.space)
        {
            nix::unistd::lseek64(&first, 0, Whence::SeekSet).on("lseek", name)?;
            return Ok(first.into());
        }
        opened.on("open", name)
    }

    /// Opens one that a process is to run, which the kernel lets be done while nobody has it open for writing.
    pub fn open_to_execute(&self, nest: &mut Nest) -> Result<OwnedFd> {
        let fd = self.open(libc::O_RDONLY, nest)?;
        self.seal(nest)?;
        let kept = fd.try_clone().on("dup", || "a memfd")?;
        let made = nest.state::<Made>();
        if let Some(first) = made.files.insert(self.space, kept.into()) {
            made.first.entry(self.space).or_insert(first);
        }
        Ok(fd)
    }

    fn make(&self, nest: &Nest) -> Result<File> {
        let name = || format!("memfd {}", String::from_utf8_lossy(&self.name.0));
        // Without this flag it comes with F_SEAL_SEAL, and nothing else can be sealed.
        let flags = if self.seals == F_SEAL_SEAL {
            0
        } else {
            MFD_ALLOW_SEALING
        };
        let huge = if self.huge == 0 {
            0
        } else {
            MFD_HUGETLB | huge_flags(self.huge) as u32
        };
        let file: File = sys::memfd_create(&self.name.0, flags | huge)
            .on("memfd_create", name)?
            .into();
        file.set_len(self.size).on("ftruncate", name)?;
        fill_from(&file, self.space, self.size, nest)?;
        if let Some(attributes) = &self.attributes {
            attributes.keep_room(&file, self.size)?;
            attributes.give_file(&file)?;
            return Ok(file);
        }
        nix::unistd::fchown(file.as_fd(), Some(self.uid.into()), Some(self.gid.into())).on("fchown", name)?;
        nix::sys::stat::fchmod(file.as_fd(), Mode::from_bits_truncate(self.mode)).on("fchmod", name)?;
        Ok(file)
    }

    /// Seals it, once everything that maps it for writing does so.
    pub fn seal(&self, nest: &mut Nest) -> Result<()> {
        let Some(file) = nest.state::<Made>().files.get(&self.space) else {
            return Ok(());
        };
        let name = || format!("memfd {}", String::from_utf8_lossy(&self.name.0));
        let now = sys::fcntl(file.as_fd(), libc::F_GET_SEALS, 0).on("fcntl(F_GET_SEALS)", name)? as u32;
        if now == self.seals {
            return Ok(());
        }
        if now & !self.seals != 0 {
            return Err(Error::kernel("fcntl(F_ADD_SEALS)", name(), Errno::EPERM));
        }
        sys::fcntl(file.as_fd(), libc::F_ADD_SEALS, u64::from(self.seals))
            .on("fcntl(F_ADD_SEALS)", name)
            .map(drop)
    }
}

/// Files made so far, each kept open until the nest is done.
#[derive(Debug, Default)]
struct Made {
    files: BTreeMap<SpaceId, File>,
    /// What memfd_create(2) gave, of those that a process runs: the one description that can write and does not count as
    /// doing so. The program may have kept it.
    first: BTreeMap<SpaceId, File>,
}

impl FdKind for Memfd {
    const TAG: &'static str = "memfd";
    const VERSION: u16 = 1;
    const ABOUT: &'static str = "memfds: name, contents with their holes, seals, owner, times, extended attributes, position; shared by descriptor and \
        by mapping; of huge pages too";
    type Record = Record;

    fn claims(fd: &FdView) -> bool {
        is_memfd(&fd.link) && fd.stat.kind() == libc::S_IFREG && fd.stat.nlink == 0
    }

    fn verdict(_: &FdView, _: &View, _: &mut Vec<Blocker>) {}

    fn collect(fd: &FdView, from: &mut Source<'_>) -> Result<Record> {
        // A descriptor of any access mode leads to one that can be read.
        let path = format!("/proc/{}/fd/{}", fd.pid, fd.fd);
        let id = (fd.stat.dev, fd.stat.ino);
        let file = quiet::open_one(Path::new(&path), id, id).on("open", || fd.label())?;
        let file = MemFile::collect(&fd.link, &fd.stat, &file, from.shared, from.draft)?;
        Ok(Record {
            file,
            flags: fd.flags(),
            position: fd.info.pos,
        })
    }

    fn precheck(_: &Record, _: &Options, _: &mut Vec<Blocker>) {}

    fn members(_: &Record) -> Vec<FileId> {
        Vec::new()
    }

    fn restore(record: &Record, nest: &mut Nest) -> Result<OwnedFd> {
        let fd = record.file.open(record.flags, nest)?;
        if record.position != 0 && record.flags & libc::O_PATH == 0 {
            nix::unistd::lseek64(fd.as_fd(), record.position, Whence::SeekSet).on("lseek", || "a memfd")?;
        }
        Ok(fd)
    }

    fn finish(record: &Record, _: Placed, nest: &mut Nest) -> Result<()> {
        record.file.seal(nest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_from_paths() {
        assert!(is_memfd(b"/memfd:a (deleted)") && is_memfd(b"/memfd: (deleted)"));
        assert!(!is_memfd(b"/memfd:a") && !is_memfd(b"/dev/shm/memfd:a (deleted)"));
    }
}
