//! File descriptors as /proc shows them.

use crate::crew;
use crate::error::{Blocker, Context, Error, Result};
use crate::ids::Pid;
use crate::observe::filestat::FileStat;
use crate::observe::foreign::namespace_of;
use crate::observe::procfile::read_record_of;
use crate::observe::tree::Tree;
use crate::observe::view::{SAME_LOOKS, malformed, speaker, unreadable_link};
use crate::proc::fdinfo::FdInfo;
use crate::sys;
use crate::sys::files::Guarded;
use crate::sys::socket::protocol_of;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::Mode;
use std::collections::HashMap;
use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::sync::LazyLock;

/// One file descriptor of one process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FdView {
    pub pid: Pid,
    /// The thread by which it was found: a first thread that has ended shows none.
    by: Pid,
    pub fd: i32,
    /// What /proc/PID/fd/N points to: a path, `pipe:[…]`, `anon_inode:[…]`.
    pub link: Vec<u8>,
    pub stat: FileStat,
    /// Whether something keeps its inode from being opened for writing.
    pub guarded: Option<Guarded>,
    pub info: FdInfo,
    /// Of a socket, the name of its protocol (`TCP`, `UNIX-STREAM`); else empty.
    pub protocol: String,
    /// The tree of files the link leads through.
    pub tree: Tree,
    /// What sort of file system a file or device without a disk below it is on (statfs(2), `f_type`); else 0.
    pub filesystem: i64,
    /// Of a socket, the inode of the network namespace that it was made in, which it never leaves; `None` where that was
    /// not to be learned.
    pub net: Option<u64>,
}

impl FdView {
    /// The link for people.
    pub fn label(&self) -> String {
        String::from_utf8_lossy(&self.link).into_owned()
    }

    /// The link of /proc that leads to it.
    pub fn at(&self) -> String {
        format!("/proc/{}/fd/{}", self.by, self.fd)
    }

    /// Whether under its number there is still what was seen. In a process that runs, it may have been closed or renamed since,
    /// and what was found out about it by its path is worth nothing then.
    pub fn is_as_seen(&self) -> bool {
        let which = |s: &FileStat| (s.dev, s.ino, s.nlink);
        let at = self.at();
        let link = std::fs::read_link(&at).map(|l| l.into_os_string().into_vec());
        link.is_ok_and(|link| link == self.link)
            && FileStat::of(&at).is_ok_and(|now| which(&now) == which(&self.stat))
    }

    /// A duplicate of it in freeze. A first thread that has ended has none to give: another's are the process's too.
    pub fn duplicate(&self) -> nix::Result<OwnedFd> {
        let holder = match self.by == self.pid {
            true => sys::pidfd_open(self.pid)?,
            false => sys::pidfd_open_thread(self.by)?,
        };
        sys::pidfd_getfd(holder.as_fd(), self.fd)
    }

    /// `O_ACCMODE`, status and creation flags, without the fd's own close-on-exec.
    pub fn flags(&self) -> i32 {
        self.info.flags & !libc::O_CLOEXEC
    }

    /// Whether the fd is closed on exec.
    pub fn cloexec(&self) -> bool {
        self.info.flags & libc::O_CLOEXEC != 0
    }

    /// The `x` of `anon_inode:[x]` or `anon_inode:x`.
    pub fn anon_inode(&self) -> Option<&str> {
        let rest = self.link.strip_prefix(b"anon_inode:")?;
        let rest = rest
            .strip_prefix(b"[")
            .and_then(|r| r.strip_suffix(b"]"))
            .unwrap_or(rest);
        std::str::from_utf8(rest).ok()
    }

    /// Whether it is a socket that can be asked something: what only stands for one cannot.
    pub fn is_socket(&self) -> bool {
        !self.protocol.is_empty() && self.flags() & libc::O_PATH == 0
    }

    /// Whether it is on a file system of a sort that says something: device numbers without a disk have a major of 0.
    fn has_filesystem(&self) -> bool {
        matches!(self.stat.kind(), libc::S_IFREG | libc::S_IFCHR) && nix::sys::stat::major(self.stat.dev) == 0
    }

    /// A blocker at this fd.
    pub fn blocker(&self) -> Blocker {
        Blocker {
            which: self.stat.which(),
            ..Blocker::of(self.pid, format!("fd {}", self.fd), self.label())
        }
    }
}

/// Reads all of a process; `by`: the thread by which they are found; `before`: those of an earlier look, if the process
/// cannot change them meanwhile.
pub(super) fn read_fds(pid: Pid, by: Pid, before: Option<&[FdView]>) -> Result<Vec<FdView>> {
    let at = Shelf::open(by)?;
    let path = || format!("/proc/{by}/fd");
    let mut fds: Vec<i32> = std::fs::read_dir(path())
        .on("readdir", path)?
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.parse().ok())
        .collect();
    fds.sort_unstable();
    let known = |fd: i32| {
        let all = before.unwrap_or_default();
        all.binary_search_by_key(&fd, |f| f.fd).ok().map(|i| &all[i])
    };
    let one = |fd: i32| -> Result<FdView> {
        let mut view = at.read(pid, fd, known(fd))?;
        for _ in 0..SAME_LOOKS {
            // It may be closed, and another opened, between two parts of the look.
            if before.is_some() || at.named(fd, at.link(fd)?, view.stat.dev, view.stat.ino) == view.link {
                break;
            }
            view = at.read(pid, fd, None)?;
        }
        Ok(view)
    };
    let read = |fd: &i32| match one(*fd) {
        Ok(view) => Ok(Some(view)),
        // Closed since the directory was read.
        Err(Error::Kernel {
            errno: Errno::ENOENT, ..
        }) => Ok(None),
        Err(e) => Err(e),
    };
    let found: Result<Vec<FdView>> = crew::each(&fds, read)
        .into_iter()
        .filter_map(Result::transpose)
        .collect();
    let mut found = found?;
    // Whoever is asked, a device number is that of one file system.
    let mut known: HashMap<u64, i64> = HashMap::new();
    for view in found.iter_mut().filter(|v| v.has_filesystem()) {
        view.filesystem = match known.get(&view.stat.dev) {
            Some(kind) => *kind,
            None => {
                let kind = filesystem_at(&view.at());
                known.insert(view.stat.dev, kind);
                kind
            }
        };
    }
    Ok(found)
}

/// What sort of file system `path` leads into; 0 where the kernel does not tell.
fn filesystem_at(path: &str) -> i64 {
    nix::sys::statfs::statfs(path).map_or(0, |s| s.filesystem_type().0)
}

/// Reads one fd of a process.
pub fn read_fd(pid: Pid, fd: i32) -> Result<FdView> {
    let mut view = Shelf::open(speaker(pid))?.read(pid, fd, None)?;
    if view.has_filesystem() {
        view.filesystem = filesystem_at(&view.at());
    }
    Ok(view)
}

/// The directories of /proc that show the descriptors of a process: kept open, a look at each of thousands is shorter.
struct Shelf {
    by: Pid,
    links: OwnedFd,
    infos: OwnedFd,
}

impl Shelf {
    /// `by`: the thread by which they are found.
    fn open(by: Pid) -> Result<Shelf> {
        let open = |name: &str| {
            let path = format!("/proc/{by}/{name}");
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            nix::fcntl::open(path.as_str(), flags, Mode::empty()).on("open", || path.clone())
        };
        Ok(Shelf {
            by,
            links: open("fd")?,
            infos: open("fdinfo")?,
        })
    }

    fn path(&self, fd: i32) -> String {
        format!("/proc/{}/fd/{fd}", self.by)
    }

    fn link(&self, fd: i32) -> Result<Vec<u8>> {
        let link = nix::fcntl::readlinkat(&self.links, fd.to_string().as_str())
            .map_err(|e| unreadable_link(e, &self.path(fd)))?;
        Ok(link.into_vec())
    }

    /// A link as it is to be read: a namespace that was opened where it is mounted (`ip netns`) is shown by that path.
    fn named(&self, fd: i32, link: Vec<u8>, dev: u64, ino: u64) -> Vec<u8> {
        let elsewhere = dev == *NAMESPACES && namespace_of(&link).is_none();
        match elsewhere.then(|| name_of_namespace(&self.path(fd))).flatten() {
            Some(name) => format!("{name}:[{ino}]").into_bytes(),
            None => link,
        }
    }

    fn stat(&self, number: &str) -> nix::Result<(FileStat, Option<Guarded>)> {
        let name = CString::new(number).map_err(|_| Errno::EINVAL)?;
        match sys::files::stat_guarded(self.links.as_fd(), &name) {
            Ok((stat, guarded)) => Ok((FileStat::from(&stat), guarded)),
            // Where a filter lets nobody make that call.
            Err(Errno::ENOSYS | Errno::EPERM) => {
                let stat = nix::sys::stat::fstatat(&self.links, number, AtFlags::empty())?;
                Ok((FileStat::from(&stat), None))
            }
            Err(e) => Err(e),
        }
    }

    /// All but the sort of its file system. A socket that was there a moment ago, as `known`, has its protocol still.
    fn read(&self, pid: Pid, fd: i32, known: Option<&FdView>) -> Result<FdView> {
        let number = fd.to_string();
        let link = self.link(fd)?;
        let (stat, guarded) = self.stat(&number).on("stat", || self.path(fd))?;
        let link = self.named(fd, link, stat.dev, stat.ino);
        let info_path = || format!("/proc/{}/fdinfo/{fd}", self.by);
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let info =
            nix::fcntl::openat(&self.infos, number.as_str(), flags, Mode::empty()).on("open", info_path)?;
        let text = read_record_of(info.into()).on("read", info_path)?;
        let info = FdInfo::parse(&String::from_utf8_lossy(&text)).ok_or_else(|| malformed(&info_path()))?;
        // A kernel that does not tell leaves it empty, and no kind claims the socket.
        let protocol = match link.starts_with(b"socket:[") {
            true => match known.filter(|k| k.link == link && !k.protocol.is_empty()) {
                Some(known) => known.protocol.clone(),
                None => protocol_of(&self.path(fd)).unwrap_or_default(),
            },
            false => String::new(),
        };
        let mut view = FdView {
            pid,
            by: self.by,
            fd,
            link,
            stat,
            guarded,
            info,
            protocol,
            tree: Tree::default(),
            filesystem: 0,
            net: None,
        };
        if let Some(name) = view.protocol.strip_prefix("MP")
            && name.starts_with("TCP")
            && speaks_tcp(&view)
        {
            view.protocol = name.to_owned();
        }
        Ok(view)
    }
}

/// The device number of the file system of namespaces, of which there is one.
static NAMESPACES: LazyLock<u64> =
    LazyLock::new(|| nix::sys::stat::stat("/proc/self/ns/mnt").map_or(u64::MAX, |s| s.st_dev));

/// The kind of the namespace that a link of /proc leads to, as that is named in /proc/PID/ns.
fn name_of_namespace(at: &str) -> Option<&'static str> {
    const CLONE_NEWTIME: i32 = 0x80;
    let kind = sys::ns::kind(File::open(at).ok()?.as_fd()).ok()?;
    Some(match kind {
        libc::CLONE_NEWCGROUP => "cgroup",
        libc::CLONE_NEWIPC => "ipc",
        libc::CLONE_NEWNS => "mnt",
        libc::CLONE_NEWNET => "net",
        libc::CLONE_NEWPID => "pid",
        CLONE_NEWTIME => "time",
        libc::CLONE_NEWUSER => "user",
        libc::CLONE_NEWUTS => "uts",
        _ => return None,
    })
}

/// Whether a connection that came to a socket of MPTCP is one of plain TCP, as all are whose other side knows no other.
fn speaks_tcp(socket: &FdView) -> bool {
    let protocol = socket
        .duplicate()
        .and_then(|s| sys::socket::option(s.as_fd(), libc::SOL_SOCKET, libc::SO_PROTOCOL));
    protocol == Ok(libc::IPPROTO_TCP)
}
