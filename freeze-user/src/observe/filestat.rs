//! An inode as stat(2) shows it, as far as it tells one file from another and what has become of it.

use serde::{Deserialize, Serialize};
use std::os::unix::fs::MetadataExt;

/// The inode behind an fd, a mapping or a path, as stat(2) shows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileStat {
    pub dev: u64,
    pub ino: u64,
    pub mode: u32,
    pub nlink: u64,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u64,
    pub size: u64,
    /// Seconds and nanoseconds.
    pub mtime: (i64, i64),
}

impl FileStat {
    /// Of a path, following links (also the magic ones of /proc).
    pub fn of(path: &str) -> std::io::Result<FileStat> {
        std::fs::metadata(path).map(|m| FileStat::from(&m))
    }

    /// A number by which it differs from others, also from a file that had its inode number before.
    pub fn which(&self) -> u64 {
        use std::hash::{DefaultHasher, Hash, Hasher};
        // Of pipes and sockets no number is given out again soon, and their times change with what goes through them.
        let file = matches!(self.kind(), libc::S_IFREG | libc::S_IFDIR | libc::S_IFLNK);
        let mut hash = DefaultHasher::new();
        (self.dev, self.ino, file.then_some(self.mtime)).hash(&mut hash);
        hash.finish()
    }

    /// The file type bits (`S_IFMT`) of its mode.
    pub fn kind(&self) -> u32 {
        self.mode & libc::S_IFMT
    }
}

impl From<&std::fs::Metadata> for FileStat {
    fn from(m: &std::fs::Metadata) -> FileStat {
        FileStat {
            dev: m.dev(),
            ino: m.ino(),
            mode: m.mode(),
            nlink: m.nlink(),
            uid: m.uid(),
            gid: m.gid(),
            rdev: m.rdev(),
            size: m.size(),
            mtime: (m.mtime(), m.mtime_nsec()),
        }
    }
}

impl From<&libc::statx> for FileStat {
    fn from(s: &libc::statx) -> FileStat {
        FileStat {
            dev: libc::makedev(s.stx_dev_major, s.stx_dev_minor),
            ino: s.stx_ino,
            mode: u32::from(s.stx_mode),
            nlink: u64::from(s.stx_nlink),
            uid: s.stx_uid,
            gid: s.stx_gid,
            rdev: libc::makedev(s.stx_rdev_major, s.stx_rdev_minor),
            size: s.stx_size,
            mtime: (s.stx_mtime.tv_sec, i64::from(s.stx_mtime.tv_nsec)),
        }
    }
}

impl From<&nix::sys::stat::FileStat> for FileStat {
    fn from(s: &nix::sys::stat::FileStat) -> FileStat {
        FileStat {
            dev: s.st_dev,
            ino: s.st_ino,
            mode: s.st_mode,
            nlink: s.st_nlink,
            uid: s.st_uid,
            gid: s.st_gid,
            rdev: s.st_rdev,
            size: s.st_size as u64,
            mtime: (s.st_mtime, s.st_mtime_nsec),
        }
    }
}
