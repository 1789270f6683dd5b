//! Names of unix sockets: paths as they were bound, paths that are gone, abstract ones.

use super::super::pipe::Bytes;
use super::super::socket::{bind, holder_of};
use crate::error::{Blocker, Context, Error, Result, errno};
use crate::kinds::regular::found::{open_under, walled};
use crate::kinds::regular::ghost::{Attributes, Ghosts, set_times};
use crate::nest::{Nest, Options};
use crate::observe::peers::unix_sockets;
use crate::observe::tree::{Tree, Trees, below};
use crate::observe::view::{FdView, FileStat, socket_link};
use crate::sys::ns;
use crate::sys::unixname::{self, address_of, directory_of, is_path, name_of};
use crate::sys::{self, files, socket};
use nix::errno::Errno;
use nix::sys::stat::{Mode, UtimensatFlags};
use serde::{Deserialize, Serialize};
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// What a socket was bound to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Name {
    /// `struct sockaddr_un` as getsockname(2) shows it.
    pub address: Bytes,
    /// The file, unless the name is abstract.
    pub file: Option<NameFile>,
}

/// The file that bind(2) made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameFile {
    /// Its full path.
    #[serde(with = "crate::ospath")]
    pub path: PathBuf,
    /// Whether that leads to it no more.
    pub unlinked: bool,
    /// Where a relative name was bound.
    #[serde(default, with = "crate::ospath::option")]
    pub directory: Option<PathBuf>,
    /// Whether it was given another path after it was bound.
    #[serde(default)]
    pub renamed: bool,
    /// The mount that it lies on, if another is mounted over its directory.
    #[serde(default, with = "crate::ospath::option")]
    pub covered: Option<PathBuf>,
    /// Its other names (link(2)), in the same directory.
    #[serde(default)]
    pub links: Vec<Bytes>,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Extended attributes, access control lists among them.
    #[serde(default)]
    pub xattrs: Vec<(Bytes, Bytes)>,
    /// When it was last looked at, and changed: seconds and nanoseconds.
    #[serde(default)]
    pub times: Option<[(i64, i64); 2]>,
    /// The number of the tree of files (mount namespace) it is in.
    #[serde(default)]
    pub tree: u32,
}

impl Name {
    /// The name of a socket, if it is bound to one of its own.
    ///
    /// `number`: the tree of the process that has it.
    pub fn collect(fd: &FdView, held: BorrowedFd<'_>, trees: &Trees, number: u32) -> Result<Option<Name>> {
        let label = || fd.label();
        let address = sys::socket_name(held, false).on("getsockname", label)?;
        let name = name_of(&address);
        if name.is_empty() {
            return Ok(None);
        }
        if !is_path(&address) {
            return Ok(Some(Name {
                address: Bytes(address),
                file: None,
            }));
        }
        let file = socket::bound_file(held).on("ioctl(SIOCUNIXFILE)", label)?;
        let seen =
            crate::observe::view::read_fd(crate::ids::Pid(std::process::id() as i32), file.as_raw_fd())?;
        let adopted = trees.adopt(number, seen.info.mnt_id, &seen.link, &seen.stat);
        let (tree, link) = adopted.unwrap_or_else(|| (trees.of_mount(seen.info.mnt_id), seen.link.clone()));
        let path: PathBuf = OsString::from_vec(link.clone()).into();
        let there = std::fs::symlink_metadata(tree.path(&link)).map(|m| FileStat::from(&m));
        let mut unlinked = !there.is_ok_and(|t| (t.dev, t.ino) == (seen.stat.dev, seen.stat.ino));
        let covered = unlinked.then(|| covered(trees, &seen)).flatten();
        unlinked &= covered.is_none();
        // A new one is to get its name, which what is mounted on it would not outlast.
        let here = tree.path(&link);
        let on = |path: &Path| ns::mount_id(path).ok();
        let id = Some(seen.info.mnt_id);
        if covered.is_some() && here.parent().and_then(on) == id && on(&here) != id {
            let why = "something is mounted over the file that it is bound to";
            return Err(fd.blocker().why(why).remedy("unmount that").refuse());
        }
        if let Some((why, remedy)) = (!unlinked && covered.is_none())
            .then(|| walled(&link, &tree))
            .flatten()
        {
            let why = format!("a new one is to get its name, and {why}");
            return Err(fd.blocker().why(why).remedy(remedy).refuse());
        }
        let (mut path, mut links) = (path, Vec::new());
        if seen.stat.nlink > u64::from(!unlinked) {
            links = beside(&tree, &path, &seen.stat);
            links.retain(|name| unlinked || path.file_name().map(OsStr::as_bytes) != Some(&name.0));
            if links.len() as u64 != seen.stat.nlink - u64::from(!unlinked) {
                return Err(fd
                    .blocker()
                    .why("the file that it is bound to has another name in another directory (link(2)), which would lead to it no more")
                    .remedy("remove that name")
                    .refuse());
            }
            if unlinked {
                path = path.with_file_name(OsStr::from_bytes(&links.remove(0).0));
                unlinked = false;
            }
        }
        let directory = match name.first() {
            Some(b'/') => None,
            // Where an unlinked one was bound nobody can tell any more, and need not.
            _ if unlinked => None,
            _ => directory_of(name, &path),
        };
        let elsewhere = || {
            let there = std::fs::metadata(tree.path(name)).map(|m| FileStat::from(&m));
            !there.is_ok_and(|t| (t.dev, t.ino) == (seen.stat.dev, seen.stat.ino))
        };
        let renamed = !unlinked && directory.is_none() && (name.first() != Some(&b'/') || elsewhere());
        let (mode, uid, gid) = (seen.stat.mode & 0o7777, seen.stat.uid, seen.stat.gid);
        let beside = Attributes::of(&format!("/proc/self/fd/{}", file.as_raw_fd()), &seen.stat)?;
        Ok(Some(Name {
            address: Bytes(address),
            file: Some(NameFile {
                path,
                unlinked,
                directory,
                renamed: renamed || covered.is_some(),
                covered,
                links,
                mode,
                uid,
                gid,
                xattrs: beside.xattrs,
                times: Some([beside.atime, beside.mtime]),
                tree: tree.number,
            }),
        }))
    }

    /// Adds what is in the name's way.
    pub fn precheck(&self, kind: i32, options: &Options, out: &mut Vec<Blocker>) {
        let Some(file) = &self.file else {
            let probe = sys::socket(libc::AF_UNIX, kind, 0).and_then(|s| bind(s.as_fd(), &self.address.0));
            if probe == Err(Errno::EADDRINUSE) {
                let by = holder(|u| u.kind == kind && u.name == name_of(&self.address.0));
                let at = Blocker::at(readable(&self.address.0), "a socket's abstract name");
                out.push(
                    at.why(format!("it is in use{by}"))
                        .remedy("end the program that uses it"),
                );
            }
            return;
        };
        let Some(here) = options
            .place(file.tree, &file.path)
            .filter(|_| !file.unlinked && file.covered.is_none())
        else {
            return;
        };
        let at = || Blocker::at(file.path.display().to_string(), "a socket's name");
        match std::fs::symlink_metadata(&here).map(|m| FileStat::from(&m)) {
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {
                let parent = here.parent().map(std::fs::metadata);
                if !parent.is_some_and(|p| p.is_ok_and(|m| m.is_dir())) {
                    out.push(at().why("its directory is gone").remedy("create the directory"));
                }
            }
            Err(e) => out.push(
                at().why(format!("it cannot be looked at: {e}"))
                    .remedy("make it accessible"),
            ),
            Ok(now) if now.kind() != libc::S_IFSOCK => {
                out.push(
                    at().why("something else lies there, which is no socket")
                        .remedy("move it away"),
                );
            }
            Ok(now) => {
                let dev = nix::sys::stat::major(now.dev) << 20 | nix::sys::stat::minor(now.dev);
                let bound = |u: &crate::observe::peers::UnixSocket| {
                    u.peer.is_none() && u.file == Some((now.ino & u64::from(u32::MAX), dev))
                };
                let by = patiently(|| holder(bound));
                if !by.is_empty() {
                    out.push(
                        at().why(format!("it is in use{by}"))
                            .remedy("end the program that uses it"),
                    );
                }
            }
        }
    }

    /// Binds a new socket to it.
    pub fn bind(&self, fd: BorrowedFd<'_>, nest: &mut Nest) -> Result<()> {
        let address = &self.address.0;
        let label = || readable(address);
        let Some(file) = &self.file else {
            return bind(fd, address).on("bind", label);
        };
        if file.unlinked {
            return unixname::bind_hidden(fd, address, file.mode).on("bind", label);
        }
        let mut here = nest.options.reach(file.tree, &file.path)?;
        let directory = file.covered.as_ref().map(|mount| {
            let directory = file.path.parent().unwrap_or(Path::new("/"));
            open_under(directory, mount, libc::O_DIRECTORY, file.tree, nest)
        });
        let directory = directory.transpose()?;
        if let (Some(directory), Some(name)) = (&directory, file.path.file_name()) {
            here = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name);
        }
        let root = (file.tree != 0)
            .then(|| nest.options.reach(file.tree, Path::new("/")))
            .transpose()?;
        if let Some(parent) = here.parent() {
            nest.state::<Ghosts>().touch(parent);
        }
        // A socket's file outlives it; `precheck` saw that nobody uses this one.
        if std::fs::symlink_metadata(&here).is_ok_and(|m| FileStat::from(&m).kind() == libc::S_IFSOCK) {
            nix::unistd::unlink(&here).on("unlink", label)?;
        }
        match file.renamed {
            true => unixname::bind_renamed(fd, address, &here, file.mode),
            false => unixname::bind(fd, address, root.as_deref(), file.directory.as_deref(), file.mode),
        }
        .on("bind", label)?;
        let (uid, gid) = (Some(file.uid.into()), Some(file.gid.into()));
        let no_follow = nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW;
        nix::unistd::fchownat(nix::fcntl::AT_FDCWD, &here, uid, gid, no_follow).on("chown", label)?;
        if file.mode & !0o777 != 0 {
            let mode = Mode::from_bits_truncate(file.mode);
            let follow = nix::sys::stat::FchmodatFlags::FollowSymlink;
            nix::sys::stat::fchmodat(nix::fcntl::AT_FDCWD, &here, mode, follow).on("chmod", label)?;
        }
        for link in &file.links {
            let link = here.with_file_name(OsStr::from_bytes(&link.0));
            if std::fs::symlink_metadata(&link).is_ok_and(|m| FileStat::from(&m).kind() == libc::S_IFSOCK) {
                nix::unistd::unlink(&link).on("unlink", label)?;
            }
            std::fs::hard_link(&here, &link)
                .map_err(errno)
                .on("link", label)?;
        }
        for (name, value) in &file.xattrs {
            if let Err(e) = files::set_xattr(&here, &name.0, &value.0) {
                let name = String::from_utf8_lossy(&name.0);
                let warning = format!("{}: its attribute {name} cannot be set: {}", label(), e.desc());
                nest.warnings.push(warning);
            }
        }
        if let Some([atime, mtime]) = file.times {
            set_times(&here, atime, mtime, UtimensatFlags::NoFollowSymlink).on("utimensat", label)?;
        }
        if let Some(directory) = directory {
            nest.state::<Ghosts>().hold(directory);
        }
        Ok(())
    }
}

/// The mount on which the file of a socket lies that another one is mounted over.
fn covered(trees: &Trees, file: &FdView) -> Option<PathBuf> {
    if file.stat.nlink != 1 {
        return None;
    }
    let (at, copy) = trees.bare(file.info.mnt_id)?;
    let below = below(at.as_os_str().as_bytes(), &file.link)?;
    let path = [format!("/proc/self/fd/{}", copy.as_raw_fd()).as_bytes(), below].concat();
    let there = std::fs::symlink_metadata(OsStr::from_bytes(&path)).ok()?;
    (FileStat::from(&there).dev, FileStat::from(&there).ino)
        .eq(&(file.stat.dev, file.stat.ino))
        .then_some(at)
}

/// The names of a file in the directory that one of them is or was in.
fn beside(tree: &Tree, path: &Path, file: &FileStat) -> Vec<Bytes> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let Ok(entries) = std::fs::read_dir(tree.path(directory.as_os_str().as_bytes())) else {
        return Vec::new();
    };
    let same = |entry: &std::fs::DirEntry| {
        let there = entry.metadata().map(|m| FileStat::from(&m));
        there.is_ok_and(|t| (t.dev, t.ino) == (file.dev, file.ino))
    };
    let found = entries.flatten().filter(same);
    found.map(|entry| Bytes(entry.file_name().into_vec())).collect()
}

/// Gives a name to a socket that is there for a moment only, so that others see it as their peer's.
pub(super) fn bind_ghost(fd: BorrowedFd<'_>, address: &[u8], nest: &mut Nest) -> Result<()> {
    let done = match is_path(address) {
        true => unixname::bind_hidden(fd, address, 0o777),
        false => bind(fd, address),
    };
    match done {
        // Its owner outside lives on or came back: a name of the kernel's choice does for the connection.
        Err(Errno::EADDRINUSE) => {
            let unix = (libc::AF_UNIX as u16).to_ne_bytes();
            sys::socket_to(fd, false, &unix).on("bind", || readable(address))?;
            let now = sys::socket_name(fd, false)
                .map(|a| readable(&a))
                .unwrap_or_default();
            nest.warnings.push(format!(
                "{} is in use by another program; a peer's name now shows as {now}",
                readable(address)
            ));
            Ok(())
        }
        done => done.on("bind", || readable(address)),
    }
}

/// An address by which a socket can be reached whatever has become of its name.
#[derive(Debug)]
pub(super) struct Way {
    pub address: Vec<u8>,
    /// The file that the address leads through, to be kept open as long.
    pub file: Option<OwnedFd>,
}

/// The way to a socket that is bound.
pub(super) fn way_to(fd: BorrowedFd<'_>) -> nix::Result<Way> {
    let address = sys::socket_name(fd, false)?;
    if !is_path(&address) {
        return Ok(Way { address, file: None });
    }
    let file = socket::bound_file(fd)?;
    Ok(Way {
        address: address_of(&format!("/proc/self/fd/{}", file.as_raw_fd())),
        file: Some(file),
    })
}

/// A name for people: `@` stands for the zero byte of an abstract one.
pub(super) fn readable(address: &[u8]) -> String {
    String::from_utf8_lossy(name_of(address)).replace('\0', "@")
}

/// Asks again for a moment while the answer is not empty: see [`bind`].
fn patiently(who: impl Fn() -> String) -> String {
    for _ in 0..30 {
        if who().is_empty() {
            return String::new();
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    who()
}

/// ` by pid 5 (command)`, of who holds a socket that fits; empty if none does.
fn holder(fits: impl Fn(&crate::observe::peers::UnixSocket) -> bool) -> String {
    let all = unix_sockets().unwrap_or_default();
    let links: Vec<Vec<u8>> = all
        .iter()
        .filter(|(_, u)| fits(u))
        .map(|(inode, _)| socket_link(*inode))
        .collect();
    match holder_of(&links) {
        Some((pid, command)) => format!(" by pid {pid} ({command})"),
        None if links.is_empty() => String::new(),
        None => " by a process that cannot be seen".into(),
    }
}

/// Turns a failed look into a refusal that names the socket.
pub(super) fn unreadable(fd: &FdView, e: Errno) -> Error {
    let why = match e {
        Errno::ENODATA => {
            "out-of-band data waits in its queue beside descriptors or credentials, and its place cannot be read without taking \
             it out"
                .to_owned()
        }
        Errno::EAGAIN => {
            "a look at its queue would take the error that it has yet to tell, and freeze cannot read it in place".to_owned()
        }
        e => format!("its queue cannot be read: {}", e.desc()),
    };
    fd.blocker()
        .why(why)
        .remedy("let the program read it first")
        .refuse()
}
