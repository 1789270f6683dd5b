//! How a file is found again: by its path, by another name of it, by its handle, or only in the image.

use super::beneath::covered_mount;
use crate::error::{Blocker, Context, Result as Restored, errno};
use crate::ids::Pid;
use crate::kinds::memfd::is_memfd;
use crate::kinds::pipe::Bytes;
use crate::nest::Nest;
use crate::nest::space::Kind;
use crate::observe::looks;
use crate::observe::tree::{Tree, parse_mounts};
use crate::observe::view::FileStat;
use crate::sys::ended::StandIn;
use crate::sys::files::{self, Guarded};
use crate::sys::ns;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, major, minor};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use nix::sys::statvfs::{FsFlags, statvfs};
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, VecDeque};
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

pub use crate::observe::tree::DELETED;

/// How long the other name of an unlinked file may be looked for, where the file system has no handles.
const SEARCH: Duration = Duration::from_millis(300);

/// What a file system knows a file by, whatever it is called (name_to_handle_at(2)).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handle {
    pub kind: i32,
    pub bytes: Bytes,
}

/// A file that is still there, though its recorded path does not lead to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Lost {
    /// The name it was opened by is gone, and it has others: found by its handle, or else by one of these, which in a tree
    /// other than freeze's own is told from the directory of the old one.
    Elsewhere {
        handle: Option<Handle>,
        #[serde(default, with = "crate::ospath::option")]
        name: Option<PathBuf>,
    },
    /// Something else lies or is mounted over its path: found by its handle on the mount it was opened on.
    Covered {
        #[serde(with = "crate::ospath")]
        mount: PathBuf,
        handle: Handle,
    },
    /// A file of /proc that tells of a process that has ended.
    Dead {
        pid: Pid,
        #[serde(default)]
        inside: Option<Inside>,
    },
    /// It is on a mount that was taken off while it was in use, which showed this directory of freeze's own tree.
    Unmounted {
        #[serde(with = "crate::ospath")]
        root: PathBuf,
    },
}

/// A /proc in a tree of the image's own, whose pid namespace gave out the numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inside {
    pub tree: u32,
    #[serde(with = "crate::ospath")]
    pub at: PathBuf,
}

/// How a file can be found again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    Path,
    /// A file of the kernel's: whatever lies at its path, without ` (deleted)`, is it.
    Kernel,
    /// It has no name any more: it must travel in the image.
    Gone,
    Lost(Lost),
}

/// Why a file cannot be found again, and what to do about it.
pub type Obstacle = (String, &'static str);

/// How the file to which the link `at` of /proc leads, shown as `link` in `tree`, can be found again.
pub fn way(link: &[u8], stat: &FileStat, at: &str, tree: &Tree) -> Result<Way, Obstacle> {
    let gone = link.strip_suffix(DELETED).filter(|_| !leads_to(link, stat, tree));
    // Files of /proc are made whenever somebody looks, and look deleted when nobody has for a while.
    if !leads_to(link, stat, tree) && is_proc(at) {
        let path = OsStr::from_bytes(gone.unwrap_or(link));
        return match FileStat::of(&tree.path(path.as_bytes()).to_string_lossy()) {
            Ok(now) if now.kind() == stat.kind() => Ok(Way::Kernel),
            _ => dead_process(Path::new(path), tree).map(Way::Lost).ok_or((
                "it tells of a thread that has ended".into(),
                "let the program close it",
            )),
        };
    }
    if let Some(path) = gone {
        if stat.nlink == 0 || stat.kind() == libc::S_IFDIR {
            // Its path leads from that mount, and anywhere else in a tree of files. That of memfds is the kernel's own.
            let id = |path: &Path| ns::mount_id(path).ok();
            let there = || id(above(&tree.path(path))) == id(at.as_ref());
            if !is_memfd(link) && !there() && is_unmounted(at, tree) {
                return Err(unmounted_for_good());
            }
            return homeless(path, at, tree).map_or(Ok(Way::Gone), Err);
        }
        let other = elsewhere(&tree.path(path), stat, at, tree).map(Way::Lost);
        // A union of directories hides a name that lies in its lower part, and does not count it off.
        if other.is_none() && stat.nlink == 1 && is_overlay(at) {
            return Ok(Way::Gone);
        }
        return other.ok_or_else(|| {
            (
                format!(
                    "{} was unlinked, but the file has {} other name(s) that the kernel does not tell",
                    String::from_utf8_lossy(path),
                    stat.nlink
                ),
                "link it to its old name again (ln), or let the program open it under a name that stays",
            )
        });
    }
    if !link.starts_with(b"/") || link.starts_with(b"(unreachable)") {
        return Err((
            "its path lies outside the file system tree that freeze sees".into(),
            "run freeze where the program sees its files (nsenter, chroot)",
        ));
    }
    let why = match lies_at(link, tree) {
        Ok(now) if now == (stat.dev, stat.ino) => return Ok(Way::Path),
        Ok(_) => (
            "another file or mount lies at its path now".into(),
            "unmount what covers it, or move the file back",
        ),
        Err(e) => (
            format!("its path cannot be followed: {e}"),
            "put the file back where it was opened",
        ),
    };
    covered(link, stat, at, tree)
        .or_else(|| unmounted(link, stat, at, tree))
        .map(Way::Lost)
        .ok_or_else(|| match is_unmounted(at, tree) {
            true => unmounted_for_good(),
            false => why,
        })
}

fn unmounted_for_good() -> Obstacle {
    (
        "it lies on a mount that is in no tree of files (umount -l, open_tree, fsmount)".into(),
        "mount it somewhere, or let the program close it",
    )
}

/// What keeps names from being made and taken away again in the directory above a path, and what to do about it.
pub fn walled(path: &[u8], tree: &Tree) -> Option<(&'static str, &'static str)> {
    let reached = tree.path(path);
    let dir = above(&reached);
    let device = || dir.metadata().map_or(0, |m| m.dev());
    if files::guarded(dir).is_some() && !comes_along(device(), dir, tree) {
        return Some((
            "in its directory no name can be made and taken away again (chattr +i or +a)",
            "take the flag off the directory (chattr -i -a)",
        ));
    }
    // Trees that are built anew become read-only last.
    let read_only = || statvfs(dir).is_ok_and(|s| s.flags().contains(FsFlags::ST_RDONLY));
    (tree.number == 0 && read_only()).then_some((
        "where it was is mounted read-only by now",
        "mount it for writing again, or let the program close it",
    ))
}

/// What keeps a file that has no name from being made again where its name was.
fn homeless(path: &[u8], at: &str, tree: &Tree) -> Option<Obstacle> {
    if covered_mount(OsStr::from_bytes(path).as_ref(), at, tree).is_some() {
        return files::handle_of(at.as_ref()).is_err().then(|| {
            (
                "it was unlinked, and something else is mounted over its directory by now".into(),
                "unmount what covers it, or let the program close it",
            )
        });
    }
    walled(path, tree).map(|(why, remedy)| (format!("it was unlinked, and {why}"), remedy))
}

/// Whether it is on a file system in memory that is made anew from the image, where flags are set when everything is open.
fn comes_along(device: u64, at: &Path, tree: &Tree) -> bool {
    let number = format!("{}:{}", major(device), minor(device));
    let ours = || {
        let text = std::fs::read("/proc/thread-self/mountinfo").unwrap_or_default();
        parse_mounts(&text).iter().any(|line| line.device == number)
    };
    tree.number != 0 && statfs(at).is_ok_and(|s| s.filesystem_type() == TMPFS_MAGIC) && !ours()
}

/// What keeps a file that is still there, and may be guarded, from being opened anew with these flags.
pub fn shut(
    stat: &FileStat,
    guarded: impl FnOnce() -> Option<Guarded>,
    at: &str,
    flags: i32,
    tree: &Tree,
) -> Option<Obstacle> {
    let writes = flags & libc::O_ACCMODE != libc::O_RDONLY && flags & libc::O_PATH == 0;
    if !writes || stat.nlink == 0 {
        return None;
    }
    let why = match guarded()? {
        Guarded::Immutable => "it became immutable (chattr +i) after it was opened for writing",
        Guarded::AppendOnly if flags & libc::O_APPEND == 0 => {
            "it became append-only (chattr +a) after it was opened for writing without O_APPEND"
        }
        Guarded::AppendOnly => return None,
    };
    if comes_along(stat.dev, at.as_ref(), tree) {
        return None;
    }
    Some((
        format!("{why}, and nobody can open it so any more"),
        "take the flag off it (chattr -i -a) until the program is restored",
    ))
}

/// Why a file cannot be had again though it can be opened: what was asked for through it, which nobody tells.
pub fn asked_for(link: &[u8], at: &str, flags: i32) -> Option<Obstacle> {
    let writes = flags & libc::O_ACCMODE != libc::O_RDONLY && flags & libc::O_PATH == 0;
    let told = link.starts_with(b"/proc/pressure/") || link.ends_with(b".pressure") && is_kernels_own(at);
    (writes && told).then(|| {
        (
            "it was opened to be told of pressure (PSI), and what was asked for cannot be read".into(),
            "let the program close it",
        )
    })
}

/// The process that has ended of which the file at this path of /proc told.
fn dead_process(path: &Path, tree: &Tree) -> Option<Lost> {
    let reach = |p: &Path| tree.path(p.as_os_str().as_bytes());
    let shown = |p: &&Path| reach(p).to_str().is_some_and(is_proc);
    // The shortest path that is one of /proc is where it is mounted.
    let at = path.ancestors().filter(shown).last()?;
    let mut parts = path.strip_prefix(at).ok()?.to_str()?.split('/');
    let pid: i32 = parts.next()?.parse().ok()?;
    let of_another_thread = match (parts.next(), parts.next()) {
        (Some("task"), Some(tid)) => tid.parse() != Ok(pid),
        _ => false,
    };
    let free = !reach(&at.join(pid.to_string())).exists();
    (!of_another_thread && free).then(|| Lost::Dead {
        pid: Pid(pid),
        inside: (tree.number != 0).then(|| Inside {
            tree: tree.number,
            at: at.to_owned(),
        }),
    })
}

/// Somebody who has the number of a process that has ended, in whichever pid namespace it had it.
pub fn stand_in(pid: Pid, inside: Option<&Inside>, nest: &Nest) -> Restored<StandIn> {
    let name = || format!("a process numbered {pid}");
    let Some(inside) = inside else {
        return StandIn::new(pid).on("fork", name);
    };
    let init = nest.options.reach(inside.tree, &inside.at.join("1/ns/pid"))?;
    let space = File::open(&init).on("open", || format!("{}/1/ns/pid", inside.at.display()))?;
    StandIn::within(space.as_fd(), pid).on("fork", name)
}

/// Opens what tells of a process that has ended: somebody has its number for as long as that takes.
pub fn open_dead(
    pid: Pid,
    inside: Option<&Inside>,
    path: &Path,
    flags: i32,
    nest: &Nest,
) -> Restored<OwnedFd> {
    let _stand_in = stand_in(pid, inside, nest)?;
    let flags = OFlag::from_bits_retain(flags | libc::O_CLOEXEC);
    nix::fcntl::open(path, flags, Mode::empty()).on("open", || path.display().to_string())
}

fn free(pid: Pid) -> bool {
    !Path::new(&format!("/proc/{pid}")).exists()
}

/// Whether a file is one of /proc.
pub fn is_proc(at: &str) -> bool {
    nix::sys::statfs::statfs(at).is_ok_and(|s| s.filesystem_type() == nix::sys::statfs::PROC_SUPER_MAGIC)
}

/// Whether a file is made up by the kernel, with times and sizes that say nothing.
///
/// `known` has the answer for file systems that were asked about, by their device numbers: nothing is mounted meanwhile.
pub fn is_kernels(stat: &FileStat, at: &str, known: &mut HashMap<u64, bool>) -> bool {
    // File systems without a device have numbers of this one.
    if nix::sys::stat::major(stat.dev) != 0 {
        return false;
    }
    *known.entry(stat.dev).or_insert_with(|| is_kernels_own(at))
}

fn is_kernels_own(at: &str) -> bool {
    use nix::sys::statfs::*;
    const BINFMTFS_MAGIC: FsType = FsType(0x4249_4e4d);
    const CONFIGFS_MAGIC: FsType = FsType(0x6265_6570);
    const PSTOREFS_MAGIC: FsType = FsType(0x6165_676c);
    const EFIVARFS_MAGIC: FsType = FsType(0xde5e_81e4);
    const FUSE_CTL_MAGIC: FsType = FsType(0x6573_5543);
    const NFSD_MAGIC: FsType = FsType(0x6e66_7364);
    const RPC_PIPEFS_MAGIC: FsType = FsType(0x6759_6969);
    statfs(at).is_ok_and(|s| {
        matches!(
            s.filesystem_type(),
            PROC_SUPER_MAGIC
                | SYSFS_MAGIC
                | CGROUP_SUPER_MAGIC
                | CGROUP2_SUPER_MAGIC
                | DEBUGFS_MAGIC
                | TRACEFS_MAGIC
                | SECURITYFS_MAGIC
                | SELINUX_MAGIC
                | SMACK_MAGIC
                | RDTGROUP_SUPER_MAGIC
                | BINFMTFS_MAGIC
                | CONFIGFS_MAGIC
                | PSTOREFS_MAGIC
                | EFIVARFS_MAGIC
                | FUSE_CTL_MAGIC
                | NFSD_MAGIC
                | RPC_PIPEFS_MAGIC
        )
    })
}

fn is_overlay(at: &str) -> bool {
    nix::sys::statfs::statfs(at).is_ok_and(|s| s.filesystem_type() == nix::sys::statfs::OVERLAYFS_SUPER_MAGIC)
}

/// Whether the path `link`, taken literally, leads to this very file (a name may end in " (deleted)").
pub fn leads_to(link: &[u8], stat: &FileStat, tree: &Tree) -> bool {
    lies_at(link, tree).is_ok_and(|now| now == (stat.dev, stat.ino))
}

/// Device and inode of what lies at a path now.
fn lies_at(link: &[u8], tree: &Tree) -> std::io::Result<(u64, u64)> {
    let path = tree.path(link);
    match tree.number {
        0 => looks::identity(path),
        // Other trees are reached by descriptors of ours, whose numbers mean something else the next time.
        // And not as std asks, which would have something mounted there (autofs).
        _ => nix::sys::stat::lstat(&path)
            .map(|s| (s.st_dev, s.st_ino))
            .map_err(std::io::Error::from),
    }
}

impl Handle {
    /// Opens the file on the mount to which the path `on` belongs.
    pub fn open(&self, on: &Path, flags: i32) -> nix::Result<OwnedFd> {
        let by = || files::open_by_handle_here(self.kind, &self.bytes.0, flags);
        let there = nix::fcntl::open(on, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
        // To open a directory is an event for who watches it (inotify(7)).
        match files::standing_in(there.as_fd(), by) {
            Err(Errno::ENOTDIR) => {
                let mount = File::open(on).map_err(errno)?;
                files::open_by_handle(mount.as_fd(), self.kind, &self.bytes.0, flags)
            }
            opened => opened?,
        }
    }

    fn leads_to(&self, on: &Path, stat: &FileStat) -> bool {
        self.open(on, libc::O_PATH).is_ok_and(|fd| same(&fd, stat))
    }
}

impl Lost {
    /// Adds what speaks against opening it.
    pub fn precheck(&self, path: &Path, out: &mut Vec<Blocker>) {
        if let Lost::Unmounted { root } = self
            && let Err(e) = std::fs::metadata(root)
        {
            out.push(
                Blocker::at(path.display().to_string(), "")
                    .why(format!("it lies in {}, which is not there: {e}", root.display()))
                    .remedy("put that back"),
            );
        }
        if let Lost::Dead { pid, inside: None } = self
            && !free(*pid)
        {
            out.push(
                Blocker::at(path.display().to_string(), "")
                    .why(format!(
                        "it told of a process that had ended, and another one has the pid {pid} now"
                    ))
                    .remedy("end that one, or restore inside a pid namespace of its own"),
            );
        }
    }

    /// Opens it, whose old name was `path`.
    pub fn open(&self, path: &Path, flags: i32) -> nix::Result<OwnedFd> {
        match self {
            Lost::Covered { mount, handle } => handle.open(mount, flags),
            // Only while somebody has its number: see `open_dead`.
            Lost::Dead { .. } => Err(Errno::ESRCH),
            Lost::Unmounted { root } => {
                // As it was: the mount is gone as soon as nobody has anything on it open.
                let copy = ns::mount_copy(None, root.as_os_str().as_bytes())?;
                let below = path.strip_prefix("/").unwrap_or(path);
                let flags = OFlag::from_bits_retain(flags | libc::O_CLOEXEC);
                nix::fcntl::openat(&copy, below, flags, Mode::empty())
            }
            Lost::Elsewhere {
                handle: Some(handle), ..
            } => handle.open(above(path), flags),
            Lost::Elsewhere { handle: None, name } => {
                let name = name.as_deref().map(|name| from_directory_of(path, name));
                let flags = OFlag::from_bits_retain(flags | libc::O_CLOEXEC);
                nix::fcntl::open(name.as_deref().unwrap_or(path), flags, Mode::empty())
            }
        }
    }
}

/// Whether it is a link of /proc by which freeze reaches another tree.
pub(super) fn is_own(path: &Path) -> bool {
    path == Path::new("/proc/self") || path.parent() == Some(Path::new("/proc/self/fd"))
}

fn same(fd: &OwnedFd, stat: &FileStat) -> bool {
    nix::sys::stat::fstat(fd).is_ok_and(|s| (s.st_dev, s.st_ino) == (stat.dev, stat.ino))
}

/// The nearest directory above `path` that is there.
///
/// Paths of the kernel hold no links: one that lies there now has taken a directory's place, and may lead anywhere. Only
/// those of /proc are ours, by which trees are reached.
pub fn above(path: &Path) -> &Path {
    let is_there = |p: &&Path| match is_own(p) {
        true => p.is_dir(),
        false => std::fs::symlink_metadata(p).is_ok_and(|m| m.is_dir()),
    };
    let mut down: Vec<&Path> = path.ancestors().skip(1).collect();
    down.reverse();
    down.into_iter()
        .take_while(is_there)
        .last()
        .unwrap_or(Path::new("/"))
}

/// The way to `name` from the directory in which `path` lies, which may be gone.
fn to_name(path: &Path, name: &Path) -> PathBuf {
    let from = path.parent().unwrap_or(path);
    let shared = from
        .components()
        .zip(name.components())
        .take_while(|(a, b)| a == b)
        .count();
    let up = from.components().skip(shared).map(|_| Component::ParentDir);
    up.chain(name.components().skip(shared)).collect()
}

/// What [`to_name`] leads to from another place; a whole path is itself.
fn from_directory_of(path: &Path, name: &Path) -> PathBuf {
    let mut out = path.parent().unwrap_or(path).to_owned();
    for part in name.components() {
        match part {
            Component::ParentDir => _ = out.pop(),
            part => out.push(part),
        }
    }
    out
}

fn elsewhere(path: &Path, stat: &FileStat, at: &str, tree: &Tree) -> Option<Lost> {
    let dir = above(path);
    let handle = files::handle_of(at.as_ref()).ok().map(|(kind, bytes, _)| Handle {
        kind,
        bytes: Bytes(bytes),
    });
    // One of a file system that is made anew leads nowhere then.
    let handle = handle.filter(|h| h.leads_to(dir, stat) && !comes_along(stat.dev, dir, tree));
    let name = match handle {
        Some(_) => None,
        // A path by which freeze reaches another tree is none to record: from the old name it leads to the other in any.
        None if tree.number != 0 => Some(to_name(path, &other_name(dir, stat)?)),
        None => Some(other_name(dir, stat)?),
    };
    Some(Lost::Elsewhere { handle, name })
}

/// Looks for a name of the file: in the directory first, then around it, for as long as is bearable.
fn other_name(dir: &Path, stat: &FileStat) -> Option<PathBuf> {
    let until = Instant::now() + SEARCH;
    let mut queue: VecDeque<PathBuf> = dir.ancestors().map(Path::to_owned).collect();
    let mut seen = std::collections::HashSet::new();
    while let Some(dir) = queue.pop_front() {
        // The root of another tree is reached by a link of /proc.
        let here = match is_own(&dir) {
            true => std::fs::metadata(&dir).ok(),
            false => std::fs::symlink_metadata(&dir).ok(),
        };
        // Names of one file are all on one device.
        if !here.is_some_and(|m| m.is_dir() && m.dev() == stat.dev && seen.insert(m.ino())) {
            continue;
        }
        for entry in std::fs::read_dir(&dir).ok()?.flatten() {
            let path = entry.path();
            let is_it =
                || nix::sys::stat::lstat(&path).is_ok_and(|s| (s.st_dev, s.st_ino) == (stat.dev, stat.ino));
            if entry.ino() == stat.ino && is_it() {
                return Some(path);
            }
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                queue.push_back(path);
            }
        }
        if Instant::now() > until {
            return None;
        }
    }
    None
}

fn covered(link: &[u8], stat: &FileStat, at: &str, tree: &Tree) -> Option<Lost> {
    let (kind, bytes, id) = files::handle_of(at.as_ref()).ok()?;
    let handle = Handle {
        kind,
        bytes: Bytes(bytes),
    };
    let of = tree.looked_at_by(at)?;
    let mount = mount_point(&of, id)?;
    let here = tree.path(mount.as_os_str().as_bytes());
    if tree.number != 0 && ns::mount_id(&here).ok()? != i64::from(id) {
        return None;
    }
    let fd = handle
        .open(&here, libc::O_PATH)
        .ok()
        .filter(|fd| same(fd, stat))?;
    let shown = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).ok()?;
    // Of another tree the kernel shows no path here.
    (tree.number != 0 || shown.as_os_str().as_bytes() == link).then_some(Lost::Covered { mount, handle })
}

/// A file on a mount that is in no tree any more, found on another mount of its file system in freeze's own tree.
///
/// Not the root of such a mount: who has it open may want to put the mount somewhere (open_tree(2), fsmount(2)).
fn unmounted(link: &[u8], stat: &FileStat, at: &str, tree: &Tree) -> Option<Lost> {
    let (kind, bytes, id) = files::handle_of(at.as_ref()).ok()?;
    let handle = Handle {
        kind,
        bytes: Bytes(bytes),
    };
    let device = format!("{}:{}", major(stat.dev), minor(stat.dev));
    let own = parse_mounts(&std::fs::read("/proc/thread-self/mountinfo").ok()?);
    let carried = matches!(stat.kind(), libc::S_IFREG | libc::S_IFDIR);
    if link == b"/" || !carried || tree.number != 0 || own.iter().any(|line| line.id == i64::from(id)) {
        return None;
    }
    own.iter().filter(|line| line.device == device).find_map(|line| {
        let mount = PathBuf::from(OsStr::from_bytes(&line.at));
        if ns::mount_id(&mount) != Ok(line.id) {
            return None;
        }
        let fd = handle
            .open(&mount, libc::O_PATH)
            .ok()
            .filter(|fd| same(fd, stat))?;
        let shown = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).ok()?;
        let root = shown.as_os_str().as_bytes().strip_suffix(link)?;
        let root = match root {
            b"" => b"/",
            root => root,
        };
        Some(Lost::Unmounted {
            root: OsStr::from_bytes(root).into(),
        })
    })
}

/// Whether a file lies on a mount that neither freeze's tree has nor that of who has it open.
fn is_unmounted(at: &str, tree: &Tree) -> bool {
    let id = files::handle_of(at.as_ref()).map(|(.., id)| id);
    let holder = at.strip_prefix("/proc/").and_then(|rest| rest.split('/').next());
    tree.number == 0
        && id.is_ok_and(|id| {
            ["self", holder.unwrap_or("self")]
                .iter()
                .all(|who| mount_point(who, id).is_none())
        })
}

/// Opens what lies at `path` on the mount at `mount` of a tree that was built, under others that are mounted there.
///
/// By its handle; on a file system that was made anew that is another one, which a copy of the mount without those on it
/// shows.
pub fn open_covered(
    path: &Path,
    mount: &Path,
    handle: &Handle,
    flags: i32,
    tree: u32,
    nest: &Nest,
) -> Restored<OwnedFd> {
    let here = nest.options.reach(tree, mount)?;
    if let Ok(fd) = handle.open(&here, flags) {
        return Ok(fd);
    }
    open_under(path, mount, flags, tree, nest)
}

/// The same by its path on the mount alone.
pub fn open_under(path: &Path, mount: &Path, flags: i32, tree: u32, nest: &Nest) -> Restored<OwnedFd> {
    let name = || path.display().to_string();
    let here = nest.options.reach(tree, mount)?;
    let own = File::open("/proc/thread-self/ns/mnt").on("open", || "/proc/thread-self/ns/mnt")?;
    let space = match tree {
        0 => Some(own.as_fd()),
        _ => nest.spaces.get(Kind::Mount, Tree::namespace_of(tree)),
    };
    let space = space.ok_or(Errno::ENOENT).on("setns", name)?;
    let on = File::open(&here).on("open", name)?;
    let copy = ns::mount_copy_of(space, on.as_fd(), b"").on("open_tree", name)?;
    // The mount's own directory, where something is mounted over a name in it.
    let below = match path.strip_prefix(mount).unwrap_or(path) {
        below if below == Path::new("") => Path::new("."),
        below => below,
    };
    let how = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let there = nix::fcntl::openat(&copy, below, how, Mode::empty()).on("open", name)?;
    let shown = PathBuf::from(format!("/proc/self/fd/{}", there.as_raw_fd()));
    let (kind, bytes, _) = files::handle_of(&shown).on("name_to_handle_at", name)?;
    files::open_by_handle(on.as_fd(), kind, &bytes, flags).on("open_by_handle_at", name)
}

/// Where the mount with this number is mounted, as the process `of` sees it.
fn mount_point(of: &str, id: i32) -> Option<PathBuf> {
    let text = std::fs::read(format!("/proc/{of}/mountinfo")).ok()?;
    let line = parse_mounts(&text)
        .into_iter()
        .find(|line| line.id == i64::from(id))?;
    Some(OsStr::from_bytes(&line.at).into())
}
