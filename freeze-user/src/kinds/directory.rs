//! Open directories: path, position, flags; removed ones are made again and removed again.

use super::regular::beneath::{covered_mount, place_of};
use super::regular::found::{DELETED, Lost, Obstacle, Way, leads_to, open_covered, open_dead, way};
use super::regular::ghost::{Attributes, Ghosts};
use super::regular::thread_of_proc;
use super::{FdKind, Placed, Source};
use crate::error::{Blocker, Context, Result};
use crate::ids::FileId;
use crate::nest::{Nest, Options};
use crate::observe::peek::Peek;
use crate::observe::tree::Tree;
use crate::observe::view::{FdView, FileStat, View};
use crate::sys;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

#[derive(Debug)]
pub struct Directory;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    #[serde(with = "crate::ospath")]
    pub path: PathBuf,
    pub flags: i32,
    pub position: i64,
    /// The number of the tree of files (mount namespace) it is in.
    #[serde(default)]
    pub tree: u32,
    #[serde(default)]
    pub off_path: Option<OffPath>,
    /// What signals were asked for (F_NOTIFY, `DN_*`), and through which descriptor.
    #[serde(default)]
    pub notify: Option<(u64, i32)>,
}

/// A directory to which its path does not lead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OffPath {
    Removed(Removed),
    Lost(Lost),
}

/// A directory that was removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    /// Device and inode, which tell it from others of its name.
    pub node: (u64, u64),
    pub attributes: Attributes,
    /// The directory it was in, if that was removed too.
    pub within: Option<Box<Removed>>,
}

impl Removed {
    /// Of the directory at `path`, to which `at` leads.
    fn collect(path: &Path, stat: &FileStat, at: &str, tree: &Tree) -> Result<Removed> {
        let up = format!("{at}/..");
        let above = FileStat::of(&up).on("stat", || up.clone())?;
        let within = match path
            .parent()
            .filter(|p| !leads_to(p.as_os_str().as_bytes(), &above, tree))
        {
            // Its link shows a path with all that was removed in it; at the root of another mount it ends.
            Some(parent) if path.parent() != Some(Path::new("/")) && above != *stat => {
                Some(Box::new(Removed::collect(parent, &above, &up, tree)?))
            }
            _ => None,
        };
        Ok(Removed {
            node: (stat.dev, stat.ino),
            attributes: Attributes {
                mount: covered_mount(path, at, tree),
                ..Attributes::of(at, stat)?
            },
            within,
        })
    }

    /// Of the one to which `at` leads, if nothing that it was in was removed too.
    pub fn alone(at: &str) -> Result<Removed> {
        let stat = FileStat::of(at).on("stat", || at.to_owned())?;
        Ok(Removed {
            node: (stat.dev, stat.ino),
            attributes: Attributes::of(at, &stat)?,
            within: None,
        })
    }

    /// Makes it again at `path`, or nearby; tells where it lies.
    pub fn make(&self, path: &Path, nest: &mut Nest) -> Result<PathBuf> {
        let inside = match (&self.within, path.parent(), path.file_name()) {
            (Some(within), Some(parent), Some(name)) => within.make(parent, nest)?.join(name),
            _ => path.to_owned(),
        };
        nest.state::<Ghosts>()
            .directory(self.node, &inside, &self.attributes)
    }
}

/// How a directory is found again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirRef {
    /// The number of the tree of files it is in.
    pub tree: u32,
    pub path: PathBuf,
    pub off_path: Option<OffPath>,
}

impl DirRef {
    /// What speaks against carrying the directory at `link`, to which `at` leads.
    pub fn obstacle(link: &[u8], stat: &FileStat, at: &str, tree: &Tree) -> Option<Obstacle> {
        way(link, stat, at, tree).err()
    }

    /// Records it.
    pub fn collect(link: &[u8], stat: &FileStat, at: &str, tree: &Tree) -> Result<DirRef> {
        let name = || String::from_utf8_lossy(link).into_owned();
        let found = way(link, stat, at, tree)
            .map_err(|(why, remedy)| Blocker::at(name(), "").why(why).remedy(remedy).refuse())?;
        let (path, off_path) = match found {
            Way::Path => (link, None),
            Way::Kernel => (link.strip_suffix(DELETED).unwrap_or(link), None),
            Way::Lost(lost @ Lost::Dead { .. }) => (
                link.strip_suffix(DELETED).unwrap_or(link),
                Some(OffPath::Lost(lost)),
            ),
            Way::Lost(lost) => (link, Some(OffPath::Lost(lost))),
            Way::Gone => (
                link.strip_suffix(DELETED).unwrap_or(link),
                Some(OffPath::Removed(Removed::collect(
                    OsStr::from_bytes(link.strip_suffix(DELETED).unwrap_or(link)).as_ref(),
                    stat,
                    at,
                    tree,
                )?)),
            ),
        };
        Ok(DirRef {
            tree: tree.number,
            path: OsStr::from_bytes(path).into(),
            off_path,
        })
    }

    /// Refuses one that is not there.
    pub fn precheck(&self, options: &Options, out: &mut Vec<Blocker>) {
        match &self.off_path {
            None => must_be_there(self.tree, &self.path, options, out),
            Some(OffPath::Lost(lost)) => lost.precheck(&self.path, out),
            Some(OffPath::Removed(_)) => {}
        }
    }

    /// Opens it.
    pub fn open(&self, flags: i32, nest: &mut Nest) -> Result<OwnedFd> {
        let name = || self.path.display().to_string();
        // O_DIRECTORY would show in the flags of an O_PATH descriptor that was opened without.
        let flags = flags | libc::O_CLOEXEC;
        let open = |path: &Path| {
            nix::fcntl::open(path, OFlag::from_bits_retain(flags), Mode::empty()).on("open", name)
        };
        let mount = match &self.off_path {
            Some(OffPath::Removed(removed)) => removed.attributes.mount.as_deref(),
            _ => None,
        };
        let path = place_of(&self.path, mount, self.tree, nest)?;
        match &self.off_path {
            None => open(&path),
            Some(OffPath::Removed(removed)) => open(&removed.make(&path, nest)?),
            Some(OffPath::Lost(Lost::Covered { mount, handle })) if self.tree != 0 => {
                open_covered(&self.path, mount, handle, flags, self.tree, nest)
            }
            Some(OffPath::Lost(Lost::Dead { pid, inside })) => {
                open_dead(*pid, inside.as_ref(), &path, flags, nest)
            }
            Some(OffPath::Lost(lost)) => lost.open(&path, flags).on("open", name),
        }
    }
}

impl FdKind for Directory {
    const TAG: &'static str = "directory";
    const VERSION: u16 = 1;
    const ABOUT: &'static str = "open directories: flags and position; removed ones, and those something is mounted over; notification by \
         signal (F_NOTIFY) where the kernel lets freeze look at it";
    type Record = Record;

    fn claims(fd: &FdView) -> bool {
        fd.stat.kind() == libc::S_IFDIR
    }

    fn verdict(fd: &FdView, _: &View, out: &mut Vec<Blocker>) {
        if let Some((why, remedy)) = DirRef::obstacle(&fd.link, &fd.stat, &fd.at(), &fd.tree) {
            out.push(fd.blocker().why(why).remedy(remedy));
        }
        // Whoever asks for notification becomes the owner of the file; else a directory has none.
        let owned = || {
            fd.duplicate()
                .and_then(|here| sys::owner_ex(here.as_fd()))
                .is_ok_and(|(_, id)| id != 0)
        };
        if fd.flags() & libc::O_PATH == 0 && owned() && Peek::get().is_none() {
            out.push(unseen(fd));
        }
    }

    fn collect(fd: &FdView, from: &mut Source<'_>) -> Result<Record> {
        let DirRef { path, off_path, tree } = DirRef::collect(&fd.link, &fd.stat, &fd.at(), &fd.tree)?;
        Ok(Record {
            path,
            flags: fd.flags(),
            position: fd.info.pos,
            off_path,
            tree,
            notify: notify(fd, from)?,
        })
    }

    fn precheck(record: &Record, options: &Options, out: &mut Vec<Blocker>) {
        record.place().precheck(options, out);
    }

    fn members(_: &Record) -> Vec<FileId> {
        Vec::new()
    }

    fn restore(record: &Record, nest: &mut Nest) -> Result<OwnedFd> {
        thread_of_proc(&record.path, record.tree, nest)?;
        let fd = record.place().open(record.flags, nest)?;
        if record.position != 0 && record.flags & libc::O_PATH == 0 {
            nix::unistd::lseek64(fd.as_fd(), record.position, nix::unistd::Whence::SeekSet)
                .on("lseek", || record.path.display().to_string())?;
        }
        Ok(fd)
    }

    fn finish(record: &Record, placed: Placed, nest: &mut Nest) -> Result<()> {
        let Some((wanted, through)) = record.notify else {
            return Ok(());
        };
        // By the process itself, through the descriptor that its signal tells: the kernel notes both.
        let fd = match nest.holders(placed.id).contains(&(placed.pid, through)) {
            true => through,
            false => placed.fd,
        };
        let args = [fd as u64, libc::F_NOTIFY as u64, wanted];
        nest.process(placed.pid)?
            .call("fcntl(F_NOTIFY)", libc::SYS_fcntl, &args)
            .map(drop)
    }
}

/// What the program asked for with F_NOTIFY.
fn notify(fd: &FdView, from: &mut Source<'_>) -> Result<Option<(u64, i32)>> {
    if fd.flags() & libc::O_PATH != 0 {
        return Ok(None);
    }
    let here = from.process.fd(fd.fd)?;
    let (_, owner) = sys::owner_ex(here.as_fd()).on("fcntl(F_GETOWN_EX)", || fd.label())?;
    if owner == 0 {
        return Ok(None);
    }
    let found = Peek::get().and_then(|peek| peek.notify(here.as_fd()));
    let found = found.ok_or_else(|| unseen(fd).refuse())?;
    Ok(found.map(|n| (asked_for(n.mask), n.fd)))
}

fn unseen(fd: &FdView) -> Blocker {
    fd.blocker()
        .why("it may be watched (F_NOTIFY), and the kernel does not let freeze see for what")
        .remedy("run freeze with CAP_BPF and CAP_PERFMON, or let the program use inotify")
}

/// The `DN_*` bits by the kernel's own of fsnotify_backend.h.
fn asked_for(mask: u32) -> u64 {
    // Access, modify, attributes, create, delete, rename, and more than once.
    const BITS: [(u32, u64); 7] = [
        (0x1, 0x1),
        (0x2, 0x2),
        (0x4, 0x20),
        (0x100, 0x4),
        (0x200, 0x8),
        (0x1000_0000, 0x10),
        (0x2000_0000, 0x8000_0000),
    ];
    let set = BITS.iter().filter(|(bit, _)| mask & bit != 0);
    set.fold(0, |all, (_, wish)| all | wish)
}

impl Record {
    fn place(&self) -> DirRef {
        DirRef {
            tree: self.tree,
            path: self.path.clone(),
            off_path: self.off_path.clone(),
        }
    }
}

/// Refuses a directory that is not there.
pub fn must_be_there(tree: u32, path: &Path, options: &Options, out: &mut Vec<Blocker>) {
    // Those of processes are there once the processes are.
    if path.starts_with("/proc") {
        return;
    }
    let Some(here) = options.place(tree, path) else {
        return;
    };
    let found = match std::fs::metadata(here) {
        Ok(m) if m.is_dir() => return,
        // Made again with the processes that are in it.
        Err(_) if super::cgroup::is_group(path) => return,
        Ok(_) => "something else lies there".to_owned(),
        Err(e) => e.to_string(),
    };
    out.push(
        Blocker::at(path.display().to_string(), "")
            .why(format!("expected a directory: {found}"))
            .remedy("create it, or mount what holds it"),
    );
}
