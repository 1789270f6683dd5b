//! O_PATH descriptors of what is neither file nor directory: symbolic links, fifos, sockets, devices.

use super::pipe::Bytes;
use super::regular::found::{DELETED, Lost, Way, way};
use super::regular::ghost::{Attributes, Ghosts};
use super::{FdKind, Placed, Source};
use crate::error::{Blocker, Context, Result};
use crate::ids::FileId;
use crate::nest::{Nest, Options};
use crate::observe::tree::Tree;
use crate::observe::view::{FdView, FileStat, View};
use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, SFlag};
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

#[derive(Debug)]
pub struct Node;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    #[serde(with = "crate::ospath")]
    pub path: PathBuf,
    pub flags: i32,
    pub node: NodeRef,
    /// The number of the tree of files it is in.
    #[serde(default)]
    pub tree: u32,
}

/// A node of a file system, and how it is found or made again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRef {
    pub stat: FileStat,
    pub lost: Option<Lost>,
    /// Of one that was unlinked.
    pub gone: Option<Attributes>,
    /// Where an unlinked symbolic link leads.
    pub target: Option<Bytes>,
}

impl NodeRef {
    /// Records the node at `link`, to which `at` leads; tells its path too.
    pub fn collect(link: &[u8], stat: &FileStat, at: &str, tree: &Tree) -> Result<(PathBuf, NodeRef)> {
        let name = || String::from_utf8_lossy(link).into_owned();
        let found = way(link, stat, at, tree)
            .map_err(|(why, remedy)| Blocker::at(name(), "").why(why).remedy(remedy).refuse())?;
        let mut out = NodeRef {
            stat: *stat,
            lost: None,
            gone: None,
            target: None,
        };
        let mut path = link;
        match found {
            Way::Path => {}
            Way::Kernel => path = link.strip_suffix(DELETED).unwrap_or(link),
            Way::Lost(lost) => {
                if matches!(lost, Lost::Elsewhere { .. } | Lost::Dead { .. }) {
                    path = link.strip_suffix(DELETED).unwrap_or(link);
                }
                out.lost = Some(lost);
            }
            Way::Gone => {
                path = link.strip_suffix(DELETED).unwrap_or(link);
                if stat.kind() == libc::S_IFLNK {
                    // What a descriptor of a link leads to is the link itself: nothing follows it here.
                    let how = OFlag::O_PATH | OFlag::O_CLOEXEC;
                    let fd = nix::fcntl::open(at, how, Mode::empty()).on("open", name)?;
                    let target = nix::fcntl::readlinkat(&fd, "").on("readlink", name)?;
                    out.target = Some(Bytes(target.into_vec()));
                }
                out.gone = Some(Attributes {
                    mode: stat.mode,
                    uid: stat.uid,
                    gid: stat.gid,
                    mtime: stat.mtime,
                    atime: stat.mtime,
                    xattrs: Vec::new(),
                });
            }
        }
        Ok((OsStr::from_bytes(path).into(), out))
    }

    /// Adds what speaks against restoring it.
    pub fn precheck(&self, path: &Path, out: &mut Vec<Blocker>) {
        if let Some(lost) = &self.lost {
            lost.precheck(path, out);
        }
        if self.gone.is_some() || self.lost.is_some() {
            return;
        }
        let found = match std::fs::symlink_metadata(path).map(|m| FileStat::from(&m)) {
            Ok(stat) if stat.kind() == self.stat.kind() => return,
            Ok(_) => "something else".to_owned(),
            Err(e) => e.to_string(),
        };
        let what = match self.stat.kind() {
            libc::S_IFIFO => "a fifo",
            libc::S_IFLNK => "a symbolic link",
            libc::S_IFSOCK => "a socket",
            _ => "a device",
        };
        out.push(
            Blocker::at(path.display().to_string(), "")
                .why(format!("expected {what}, found {found}"))
                .remedy("put it back where it was"),
        );
    }

    /// Where it lies, which it does again from now on, until what has no name loses it once more.
    pub fn place(&self, path: &Path, nest: &mut Nest) -> Result<PathBuf> {
        let name = || path.display().to_string();
        let key = (self.stat.dev, self.stat.ino);
        let ghosts = nest.state::<Ghosts>();
        if self.gone.is_none() && self.lost.is_none() {
            return Ok(path.to_owned());
        }
        match ghosts.find(key, path) {
            Some((at, true)) => return Ok(at.to_owned()),
            Some((other, false)) => {
                let other = other.to_owned();
                return ghosts.also(key, path, &other).on("link", name);
            }
            None => {}
        }
        if let Some(lost) = &self.lost {
            let fd = lost
                .open(path, libc::O_PATH | libc::O_NOFOLLOW)
                .on("open", name)?;
            if matches!(lost, Lost::Covered { .. }) {
                return Ok(path.to_owned());
            }
            let link = |p: &Path| Ok(crate::sys::files::link_fd(fd.as_fd(), p)?);
            let (at, ()) = ghosts.make(key, path, link).on("linkat", name)?;
            return Ok(at);
        }
        let make = |p: &Path| -> io::Result<()> {
            if let Some(target) = &self.target {
                return std::os::unix::fs::symlink(OsStr::from_bytes(&target.0), p);
            }
            let kind = SFlag::from_bits_truncate(self.stat.kind());
            Ok(nix::sys::stat::mknod(
                p,
                kind,
                Mode::S_IRUSR | Mode::S_IWUSR,
                self.stat.rdev,
            )?)
        };
        let (at, ()) = ghosts.make(key, path, make).on("mknod", name)?;
        if let Some(attributes) = &self.gone {
            attributes.give(&at)?;
        }
        Ok(at)
    }

    /// Opens it with `flags`.
    pub fn open(&self, path: &Path, flags: i32, nest: &mut Nest) -> Result<OwnedFd> {
        let name = || path.display().to_string();
        if let Some(Lost::Covered { mount, handle }) = &self.lost {
            return handle.open(mount, flags).on("open_by_handle_at", name);
        }
        if let Some(lost @ Lost::Dead { .. }) = &self.lost {
            return lost.open(path, flags).on("open", name);
        }
        let at = self.place(path, nest)?;
        let mask = libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC;
        let flags = OFlag::from_bits_retain(flags & !mask | libc::O_CLOEXEC | libc::O_NOCTTY);
        nix::fcntl::open(&at, flags, Mode::empty()).on("open", name)
    }
}

impl FdKind for Node {
    const TAG: &'static str = "path";
    const VERSION: u16 = 1;
    const ABOUT: &'static str =
        "O_PATH descriptors of symbolic links, fifos, sockets and devices, unlinked ones too";
    type Record = Record;

    fn claims(fd: &FdView) -> bool {
        let own = [
            libc::S_IFLNK,
            libc::S_IFIFO,
            libc::S_IFSOCK,
            libc::S_IFCHR,
            libc::S_IFBLK,
        ];
        fd.flags() & libc::O_PATH != 0 && fd.link.starts_with(b"/") && own.contains(&fd.stat.kind())
    }

    fn verdict(fd: &FdView, _: &View, out: &mut Vec<Blocker>) {
        if let Err((why, remedy)) = way(&fd.link, &fd.stat, &fd.at(), &fd.tree) {
            out.push(fd.blocker().why(why).remedy(remedy));
        }
    }

    fn collect(fd: &FdView, _: &mut Source<'_>) -> Result<Record> {
        let (path, node) = NodeRef::collect(&fd.link, &fd.stat, &fd.at(), &fd.tree)?;
        Ok(Record {
            path,
            flags: fd.flags(),
            node,
            tree: fd.tree.number,
        })
    }

    fn precheck(record: &Record, options: &Options, out: &mut Vec<Blocker>) {
        if let Some(here) = options.place(record.tree, &record.path) {
            record.node.precheck(&here, out);
        }
    }

    fn members(_: &Record) -> Vec<FileId> {
        Vec::new()
    }

    fn restore(record: &Record, nest: &mut Nest) -> Result<OwnedFd> {
        let here = nest.options.reach(record.tree, &record.path)?;
        record.node.open(&here, record.flags, nest)
    }

    fn finish(_: &Record, _: Placed, _: &mut Nest) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Pid;
    use crate::observe::view::read_fd;
    use std::os::fd::AsRawFd;

    #[test]
    fn an_unlinked_link_still_says_where_it_leads() {
        let path = std::env::temp_dir().join(format!("freeze-link-{}", std::process::id()));
        std::os::unix::fs::symlink("some where", &path).unwrap();
        let how = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = nix::fcntl::open(&path, how, Mode::empty()).unwrap();
        std::fs::remove_file(&path).unwrap();
        let seen = read_fd(Pid(std::process::id() as i32), fd.as_raw_fd()).unwrap();
        assert!(Node::claims(&seen));
        let (_, node) = NodeRef::collect(&seen.link, &seen.stat, &seen.at(), &seen.tree).unwrap();
        assert_eq!(node.target, Some(Bytes(b"some where".to_vec())));
        assert!(node.gone.is_some() && node.lost.is_none());
    }
}
