//! O_PATH descriptors of what is neither file nor directory: symbolic links, fifos, sockets, devices; and of what has no
//! path but is open, sockets and memfds.

use super::memfd::is_memfd;
use super::pipe::Bytes;
use super::regular::beneath::{covered_mount, place_of};
use super::regular::found::{DELETED, Lost, Way, is_proc, open_covered, open_dead, way};
use super::regular::ghost::{Attributes, Ghosts};
use super::regular::{descriptor_in_proc, lend_descriptor, thread_of_proc};
use super::{FdKind, Placed, Source, terminal};
use crate::error::{Blocker, Context, Result};
use crate::ids::FileId;
use crate::nest::{Nest, Options};
use crate::observe::tree::Tree;
use crate::observe::view::{FdView, FileStat, View};
use crate::sys::socket::bound_file;
use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, SFlag};
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
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
    /// Of what has no path: the description through which it is open.
    #[serde(default)]
    pub held: Option<FileId>,
    /// The unix socket that is bound to it, or the master of the terminal: who restores that makes it anew.
    #[serde(default)]
    pub bound: Option<FileId>,
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
    /// A link of /proc: there as soon as the process is that it tells of.
    #[serde(default)]
    pub proc: bool,
}

impl NodeRef {
    /// Of something that lies nowhere.
    fn bare(stat: &FileStat) -> NodeRef {
        NodeRef {
            stat: *stat,
            lost: None,
            gone: None,
            target: None,
            proc: false,
        }
    }

    /// Records the node at `link`, to which `at` leads; tells its path too.
    pub fn collect(link: &[u8], stat: &FileStat, at: &str, tree: &Tree) -> Result<(PathBuf, NodeRef)> {
        let name = || String::from_utf8_lossy(link).into_owned();
        let found = way(link, stat, at, tree)
            .map_err(|(why, remedy)| Blocker::at(name(), "").why(why).remedy(remedy).refuse())?;
        let mut out = NodeRef {
            proc: found == Way::Kernel || stat.kind() == libc::S_IFLNK && is_proc(at),
            ..NodeRef::bare(stat)
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
                    mount: covered_mount(OsStr::from_bytes(path).as_ref(), at, tree),
                    ..Attributes::of(at, stat)?
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
        if self.gone.is_some() || self.lost.is_some() || self.proc {
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

    /// Where freeze finds its path in its tree, or found it if it has no name any more.
    pub fn reach(&self, path: &Path, tree: u32, nest: &mut Nest) -> Result<PathBuf> {
        let mount = self.gone.as_ref().and_then(|a| a.mount.as_deref());
        place_of(path, mount, tree, nest)
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

    /// Opens it with `flags`, recorded as `path` in the tree `tree`.
    pub fn open(&self, path: &Path, tree: u32, flags: i32, nest: &mut Nest) -> Result<OwnedFd> {
        let name = || path.display().to_string();
        if let Some(Lost::Covered { mount, handle }) = &self.lost {
            let flags = flags & !super::NOT_AT_OPEN | libc::O_CLOEXEC | libc::O_NOCTTY;
            return open_covered(path, mount, handle, flags, tree, nest);
        }
        let here = self.reach(path, tree, nest)?;
        if let Some(Lost::Dead { pid, inside }) = &self.lost {
            return open_dead(*pid, inside.as_ref(), &here, flags, nest);
        }
        let at = self.place(&here, nest)?;
        let flags = OFlag::from_bits_retain(flags & !super::NOT_AT_OPEN | libc::O_CLOEXEC | libc::O_NOCTTY);
        nix::fcntl::open(&at, flags, Mode::empty()).on("open", name)
    }
}

impl FdKind for Node {
    const TAG: &'static str = "path";
    const VERSION: u16 = 1;
    const ABOUT: &'static str = "O_PATH descriptors of symbolic links (of /proc too), fifos, sockets and devices, unlinked ones too, and of sockets \
        and memfds without a path that a process of the checkpoint has open";
    type Record = Record;

    fn claims(fd: &FdView) -> bool {
        let own = [
            libc::S_IFLNK,
            libc::S_IFIFO,
            libc::S_IFSOCK,
            libc::S_IFCHR,
            libc::S_IFBLK,
        ];
        let named = fd.link.starts_with(b"/") && own.contains(&fd.stat.kind());
        fd.flags() & libc::O_PATH != 0 && (named || is_nameless(fd))
    }

    fn verdict(fd: &FdView, view: &View, out: &mut Vec<Blocker>) {
        if is_nameless(fd) {
            return out.extend(holder(fd, view).is_none().then(|| nobodys(fd)));
        }
        if let Err((why, remedy)) = way(&fd.link, &fd.stat, &fd.at(), &fd.tree) {
            out.push(fd.blocker().why(why).remedy(remedy));
        }
    }

    fn collect(fd: &FdView, from: &mut Source<'_>) -> Result<Record> {
        if is_nameless(fd) {
            let at = holder(fd, from.view).map(|f| (f.pid, f.fd));
            let held = at.and_then(|at| from.shared.files.get(&at).copied());
            return Ok(Record {
                path: PathBuf::new(),
                flags: fd.flags(),
                node: NodeRef::bare(&fd.stat),
                tree: 0,
                held: Some(held.ok_or_else(|| nobodys(fd).refuse())?),
                bound: None,
            });
        }
        let (path, node) = NodeRef::collect(&fd.link, &fd.stat, &fd.at(), &fd.tree)?;
        Ok(Record {
            path,
            flags: fd.flags(),
            node,
            tree: fd.tree.number,
            held: None,
            bound: maker(fd, from.view).and_then(|f| from.shared.files.get(&(f.pid, f.fd)).copied()),
        })
    }

    fn precheck(record: &Record, options: &Options, out: &mut Vec<Blocker>) {
        if let Some(here) = options.place(record.tree, &record.path)
            && record.held.is_none()
            && record.bound.is_none()
        {
            record.node.precheck(&here, out);
        }
    }

    fn members(record: &Record) -> Vec<FileId> {
        record.held.into_iter().chain(record.bound).collect()
    }

    fn restore(record: &Record, nest: &mut Nest) -> Result<OwnedFd> {
        if let Some(held) = record.held {
            let at = format!("/proc/self/fd/{}", nest.file(held)?.as_raw_fd());
            let how = OFlag::O_PATH | OFlag::O_CLOEXEC;
            return nix::fcntl::open(at.as_str(), how, Mode::empty()).on("open", || held.to_string());
        }
        if let Some(bound) = record.bound.filter(|_| record.node.gone.is_some()) {
            return bound_file(nest.file(bound)?).on("ioctl(SIOCUNIXFILE)", || bound.to_string());
        }
        let here = record.node.reach(&record.path, record.tree, nest)?;
        if record.node.proc {
            thread_of_proc(&record.path, record.tree, nest)?;
        }
        if record.node.proc
            && let Some((pid, fd)) = descriptor_in_proc(&record.path, "/fd/", record.tree, nest)
        {
            // Its table is still empty, and the link is there only as long as the descriptor is.
            let how = OFlag::from_bits_retain(record.flags | libc::O_CLOEXEC);
            return lend_descriptor(pid, fd, nest, || {
                nix::fcntl::open(&here, how, Mode::empty()).on("open", || here.display().to_string())
            });
        }
        record.node.open(&record.path, record.tree, record.flags, nest)
    }

    fn finish(_: &Record, _: Placed, _: &mut Nest) -> Result<()> {
        Ok(())
    }
}

/// Whether it stands for something that is open and lies nowhere.
fn is_nameless(fd: &FdView) -> bool {
    fd.link.starts_with(b"socket:[") || is_memfd(&fd.link)
}

/// A description of the set through which the same is open.
fn holder<'a>(fd: &FdView, view: &'a View) -> Option<&'a FdView> {
    let same = |f: &&FdView| (f.stat.dev, f.stat.ino) == (fd.stat.dev, fd.stat.ino);
    view.fds().find(|f| same(f) && f.flags() & libc::O_PATH == 0)
}

/// The description of the set with which it comes.
fn maker<'a>(fd: &FdView, view: &'a View) -> Option<&'a FdView> {
    bound(fd, view).or_else(|| terminal::master_behind(fd, view))
}

/// The socket of the set that is bound to it. One that was accepted shows the file of who listens.
fn bound<'a>(fd: &FdView, view: &'a View) -> Option<&'a FdView> {
    if fd.stat.kind() != libc::S_IFSOCK {
        return None;
    }
    let dev = nix::sys::stat::major(fd.stat.dev) << 20 | nix::sys::stat::minor(fd.stat.dev);
    let file = Some((fd.stat.ino & u64::from(u32::MAX), dev));
    let of_it = |f: &&FdView| view.unix.get(&f.stat.ino).is_some_and(|u| u.file == file);
    let listens = |f: &&FdView| {
        let socket = view.unix.get(&f.stat.ino);
        socket.is_some_and(|u| u.listening || u.peer.is_none() || u.kind == libc::SOCK_DGRAM)
    };
    view.fds().find(|f| of_it(f) && listens(f))
}

fn nobodys(fd: &FdView) -> Blocker {
    fd.blocker()
        .why("it stands for something that no process of the checkpoint has open")
        .remedy("let the program close it")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Pid;
    use crate::observe::view::read_fd;

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
