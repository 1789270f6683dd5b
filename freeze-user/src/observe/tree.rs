//! Trees of files: the mount namespaces of a set other than freeze's own, and how a path in one is reached from here.
//!
//! ```text
//!   /proc/PID/fd/3 → /etc/passwd   on mount 812, which is in the mount namespace numbered 1
//!   reached as        /proc/self/fd/ROOT/etc/passwd, ROOT being a descriptor of that namespace's root
//! ```

use crate::error::{Context, Result};
use crate::ids::Pid;
use crate::observe::filestat::FileStat;
use crate::sys::ns;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// One tree of files: freeze's own (number 0), or another mount namespace of the set.
///
/// What others are mounted over is in none for whoever goes by paths. So a mount that is covered is a tree by itself,
/// whose number tells that of the namespace too.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    pub number: u32,
    root: Option<Arc<OwnedFd>>,
    /// Where its root is mounted, if it is a covered mount.
    base: Vec<u8>,
    /// A process that lives in it, whose mountinfo tells of it: who has a file of it open may live elsewhere.
    dweller: Option<Pid>,
}

/// What the kernel adds to the path of a file whose name is gone.
pub const DELETED: &[u8] = b" (deleted)";

/// Above this bit of a tree's number stands which mount of its namespace it is, counted from one.
const MOUNT: u32 = 16;

impl PartialEq for Tree {
    fn eq(&self, other: &Tree) -> bool {
        self.number == other.number
    }
}

impl Eq for Tree {}

impl Tree {
    /// The tree with this number whose root is open at `root`.
    pub fn new(number: u32, root: OwnedFd) -> Tree {
        Tree {
            number,
            root: Some(Arc::new(root)),
            base: Vec::new(),
            dweller: None,
        }
    }

    /// One mount of a tree by itself: the `index`th of its mountinfo, which is mounted at `base` and open at `root`.
    pub fn of_mount(namespace: u32, index: usize, base: &Path, root: OwnedFd) -> Tree {
        Tree {
            base: if base == Path::new("/") {
                Vec::new()
            } else {
                base.as_os_str().as_bytes().to_vec()
            },
            ..Tree::new(namespace | (index as u32 + 1) << MOUNT, root)
        }
    }

    /// A process that lives in it, where that is known.
    pub fn dweller(&self) -> Option<Pid> {
        self.dweller
    }

    /// Whether it is a covered mount by itself.
    pub fn is_one_mount(&self) -> bool {
        self.number >> MOUNT != 0
    }

    /// Whose mountinfo tells of it, by the name of its directory in /proc; `at` is a link of /proc of who has a file of it.
    pub fn looked_at_by(&self, at: &str) -> Option<String> {
        Some(match (self.number, self.dweller()) {
            (0, _) => "self".to_owned(),
            (_, Some(pid)) => pid.to_string(),
            (_, None) => at.strip_prefix("/proc/")?.split('/').next()?.to_owned(),
        })
    }

    /// The number of the mount namespace in which the tree with this number is.
    pub fn namespace_of(number: u32) -> u32 {
        number & ((1 << MOUNT) - 1)
    }

    /// How freeze reaches what lies at `path` in this tree.
    pub fn path(&self, path: &[u8]) -> PathBuf {
        let Some(root) = &self.root else {
            return OsStr::from_bytes(path).into();
        };
        let mut here = format!("/proc/self/fd/{}", root.as_raw_fd()).into_bytes();
        let path = below(&self.base, path).unwrap_or(path);
        // The root itself by its own name: the link of /proc would be taken for what it is.
        here.extend_from_slice(if matches!(path, b"" | b"/") { b"/." } else { path });
        OsStr::from_bytes(&here).into()
    }
}

/// One line of mountinfo (proc_pid_mountinfo(5)), its escapes undone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountLine {
    pub id: i64,
    pub parent: i64,
    pub device: String,
    /// Which directory of its file system is mounted.
    pub root: Vec<u8>,
    pub at: Vec<u8>,
    /// Options of the mount.
    pub options: String,
    /// `shared:N`, `master:N`, `unbindable` …
    pub propagation: Vec<String>,
    pub kind: String,
    pub source: Vec<u8>,
    /// Options of the file system.
    pub super_options: String,
}

/// Parses mountinfo.
pub fn parse_mounts(text: &[u8]) -> Vec<MountLine> {
    text.split(|b| *b == b'\n').filter_map(mount_line).collect()
}

/// Puts each mount after the one that it is mounted on: the kernel tells of them in the order in which they were made, and one
/// can have been moved since (mount --move, move_mount(2)).
fn in_order(lines: Vec<MountLine>) -> Vec<MountLine> {
    let all: HashSet<i64> = lines.iter().map(|l| l.id).collect();
    let (mut told, mut out, mut held) = (HashSet::new(), Vec::new(), Vec::new());
    for line in lines {
        let waits = line.parent != line.id && all.contains(&line.parent) && !told.contains(&line.parent);
        if waits {
            held.push(line);
            continue;
        }
        told.insert(line.id);
        out.push(line);
        while let Some(n) = held.iter().position(|h: &MountLine| told.contains(&h.parent)) {
            let next = held.remove(n);
            told.insert(next.id);
            out.push(next);
        }
    }
    out.extend(held);
    out
}

fn mount_line(line: &[u8]) -> Option<MountLine> {
    let words: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
    let dash = words.iter().position(|w| *w == b"-")?;
    let text = |i: usize| Some(String::from_utf8_lossy(words.get(i)?).into_owned());
    Some(MountLine {
        id: text(0)?.parse().ok()?,
        parent: text(1)?.parse().ok()?,
        device: text(2)?,
        root: unescape(words.get(3)?),
        at: unescape(words.get(4)?),
        options: text(5)?,
        propagation: (6..dash).filter_map(text).collect(),
        kind: text(dash + 1)?,
        source: unescape(words.get(dash + 2)?),
        super_options: String::from_utf8_lossy(&unescape(words.get(dash + 3)?)).into_owned(),
    })
}

/// What lies over a mount, in the order in which it can be taken off: from which places, and how many mounts there.
///
/// What covers it is mounted on it or on one of those it is mounted on, at a place on the way to it; whatever is mounted on
/// top of that at the same place comes off before.
pub fn covers(lines: &[MountLine], index: usize) -> Vec<(PathBuf, usize)> {
    let line = &lines[index];
    let by_id = |id: i64| lines.iter().find(|l| l.id == id);
    let own: Vec<i64> = std::iter::successors(Some(line), |l| by_id(l.parent).filter(|p| p.id != l.id))
        .map(|l| l.id)
        .collect();
    let on_the_way =
        |l: &&MountLine| own.contains(&l.parent) && !own.contains(&l.id) && below(&l.at, &line.at).is_some();
    let height = |l: &MountLine| {
        let above = |l: &&MountLine| {
            lines
                .iter()
                .find(|u| u.parent == l.id && u.at == l.at && u.id != l.id)
        };
        std::iter::successors(Some(l), above).count()
    };
    let place = |l: &MountLine| PathBuf::from(OsStr::from_bytes(&l.at));
    let mut out: Vec<_> = lines
        .iter()
        .filter(on_the_way)
        .map(|l| (place(l), height(l)))
        .collect();
    out.sort();
    out
}

/// What of `path` comes after `base`, or nothing if it does not lie below.
pub fn below<'a>(base: &[u8], path: &'a [u8]) -> Option<&'a [u8]> {
    if base == b"/" {
        return Some(if path == b"/" { b"" } else { path });
    }
    path.strip_prefix(base)
        .filter(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

/// The path `path` below the place `at`.
fn beneath(at: &[u8], path: &[u8]) -> Vec<u8> {
    match (at, path) {
        (b"/", path) => path.to_vec(),
        (at, b"/") => at.to_vec(),
        (at, path) => [at, path].concat(),
    }
}

/// Undoes the octal escapes of blanks, tabs, newlines, backslashes and hashes.
fn unescape(word: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(word.len());
    let mut i = 0;
    while i < word.len() {
        let octal = word
            .get(i + 1..i + 4)
            .and_then(|d| std::str::from_utf8(d).ok())
            .and_then(|d| u8::from_str_radix(d, 8).ok());
        match octal {
            Some(byte) if word[i] == b'\\' => {
                out.push(byte);
                i += 4;
            }
            _ => {
                out.push(word[i]);
                i += 1;
            }
        }
    }
    out
}

/// The trees of a set, beside freeze's own.
#[derive(Clone, Debug, Default)]
pub struct Trees {
    /// By the inode of the mount namespace.
    by_namespace: BTreeMap<u64, Tree>,
    /// The mounts of each tree by its number.
    mounts: BTreeMap<u32, Vec<MountLine>>,
    by_mount: HashMap<i64, u32>,
    /// The mount namespaces themselves.
    spaces: BTreeMap<u32, Arc<File>>,
    /// Covered mounts that were asked for.
    covered: Arc<Mutex<HashMap<i64, Option<Tree>>>>,
    /// The mounts of freeze's own tree, once somebody asks.
    own: OnceLock<Vec<MountLine>>,
}

impl Trees {
    /// Looks into the mount namespaces of the processes given, as far as they are not freeze's own.
    pub fn look(processes: impl Iterator<Item = (Pid, u64)>) -> Result<Trees> {
        let own = std::fs::metadata("/proc/thread-self/ns/mnt").map_or(0, |s| s.ino());
        let mut trees = Trees::default();
        for (pid, inode) in processes {
            if inode == own || trees.by_namespace.contains_key(&inode) {
                continue;
            }
            let name = || format!("/proc/{pid}/ns/mnt");
            let fd = File::open(name()).on("open", name)?;
            let (root, text) = ns::look_into(fd.as_fd()).on("setns", name)?;
            let number = trees.by_namespace.len() as u32 + 1;
            let mounts = in_order(parse_mounts(&text));
            trees.by_mount.extend(mounts.iter().map(|m| (m.id, number)));
            trees.mounts.insert(number, mounts);
            trees.spaces.insert(number, Arc::new(fd));
            let tree = Tree {
                dweller: Some(pid),
                ..Tree::new(number, root)
            };
            trees.by_namespace.insert(inode, tree);
        }
        Ok(trees)
    }

    /// Whether there is none but freeze's own.
    pub fn is_empty(&self) -> bool {
        self.by_namespace.is_empty()
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &Tree> {
        self.by_namespace.values()
    }

    /// How many there are; they are numbered from 1.
    pub fn count(&self) -> u32 {
        self.by_namespace.len() as u32
    }

    /// The tree of a mount namespace by its inode.
    pub fn of_namespace(&self, inode: u64) -> Tree {
        self.by_namespace.get(&inode).cloned().unwrap_or_default()
    }

    /// The tree in which the mount with this id is.
    pub fn of_mount(&self, id: i64) -> Tree {
        let Some(number) = self.by_mount.get(&id) else {
            return Tree::default();
        };
        let tree = self.by_namespace.values().find(|t| t.number == *number);
        let mut covered = self.covered.lock().unwrap_or_else(PoisonError::into_inner);
        let covered = covered.entry(id).or_insert_with(|| self.uncover(*number, id));
        covered.clone().or(tree.cloned()).unwrap_or_default()
    }

    /// What the mount with this index in its tree shows, if it can be looked at: to read, which the program must not see.
    pub fn copy(&self, number: u32, index: usize) -> nix::Result<OwnedFd> {
        let lines = self.mounts(number);
        let space = self.spaces.get(&number).zip(lines.get(index));
        let (space, line) = space.ok_or(nix::errno::Errno::ENOENT)?;
        let covers = covers(lines, index);
        // Of an unbindable mount no copy can be had, but in a copy of the namespace in which it is private.
        let unbindable = line.propagation.iter().any(|w| w == "unbindable");
        let copy = match covers.is_empty() && !unbindable {
            true => ns::mount_copy(Some(space.as_fd()), &line.at),
            false => ns::covered_mount_copy(space.as_fd(), &line.at, &covers),
        }?;
        ns::leave_access_times(copy.as_fd());
        Ok(copy)
    }

    /// Where the mount with this id is mounted, and what it shows without those that are mounted on it.
    pub fn bare(&self, id: i64) -> Option<(PathBuf, OwnedFd)> {
        let place = |lines: &[MountLine]| {
            let index = lines.iter().position(|l| l.id == id)?;
            Some((index, PathBuf::from(OsStr::from_bytes(&lines[index].at))))
        };
        if let Some(number) = self.by_mount.get(&id) {
            let (index, at) = place(self.mounts(*number))?;
            return Some((at, self.copy(*number, index).ok()?));
        }
        let (_, at) = place(&parse_mounts(&std::fs::read("/proc/thread-self/mountinfo").ok()?))?;
        let copy = ns::mount_copy(None, at.as_os_str().as_bytes()).ok()?;
        Some((at, copy))
    }

    /// A mount as a tree by itself, if others are mounted over it and it can be reached.
    fn uncover(&self, number: u32, id: i64) -> Option<Tree> {
        let lines = self.mounts(number);
        let index = lines.iter().position(|l| l.id == id)?;
        let line = &lines[index];
        if covers(lines, index).is_empty() {
            return None;
        }
        let root = self.copy(number, index).ok()?;
        let stat = nix::sys::stat::fstat(&root).ok()?;
        let device = format!(
            "{}:{}",
            nix::sys::stat::major(stat.st_dev),
            nix::sys::stat::minor(stat.st_dev)
        );
        let is_it = device == line.device && stat.st_mode & libc::S_IFMT == libc::S_IFDIR;
        is_it.then(|| Tree::of_mount(number, index, OsStr::from_bytes(&line.at).as_ref(), root))
    }

    /// The tree in which a link of /proc leads to something.
    pub fn at(&self, link: impl AsRef<Path>) -> Tree {
        if self.is_empty() {
            return Tree::default();
        }
        ns::mount_id(link.as_ref()).map_or_else(|_| Tree::default(), |id| self.of_mount(id))
    }

    /// The tree in which a link of /proc leads to something, and the path there; `number` is the tree of who has it.
    pub fn place(&self, number: u32, at: &str, path: &[u8], stat: &FileStat) -> (Tree, Vec<u8>) {
        if self.is_empty() {
            return (Tree::default(), path.to_vec());
        }
        let id = ns::mount_id(at.as_ref());
        let adopted = id.ok().and_then(|id| self.adopt(number, id, path, stat));
        adopted.unwrap_or_else(|| {
            (
                id.map_or_else(|_| Tree::default(), |id| self.of_mount(id)),
                path.to_vec(),
            )
        })
    }

    /// Where in the tree `number` something lies that was opened on a mount which is in no tree any more.
    ///
    /// The mounts of a namespace go when the last who lived in it has gone into a copy of it (unshare(2)): there the same
    /// files are, and what was opened before is shown by its path below the mount it was opened on.
    pub fn adopt(&self, number: u32, id: i64, link: &[u8], stat: &FileStat) -> Option<(Tree, Vec<u8>)> {
        let lines = self.mounts(number);
        let device = format!(
            "{}:{}",
            nix::sys::stat::major(stat.dev),
            nix::sys::stat::minor(stat.dev)
        );
        let ours = |lines: &[MountLine]| lines.iter().any(|l| l.device == device);
        if self.by_mount.contains_key(&id) || !link.starts_with(b"/") || !ours(lines) {
            return None;
        }
        let read = || parse_mounts(&std::fs::read("/proc/thread-self/mountinfo").unwrap_or_default());
        let own = self.own.get_or_init(read);
        let named = link.strip_suffix(DELETED);
        // What freeze's own tree shows too is opened on a mount that is attached nowhere, as it was; but for what tells of
        // processes, whose files have no handles.
        let proc = lines.iter().any(|l| l.device == device && l.kind == "proc");
        let plain = matches!(stat.kind(), libc::S_IFREG | libc::S_IFDIR) && named.is_none() && !proc;
        if own.iter().any(|l| l.id == id) || plain && ours(own) {
            return None;
        }
        let tree = self.by_namespace.values().find(|t| t.number == number)?;
        let is_it = |path: &[u8]| {
            nix::sys::stat::lstat(&tree.path(path))
                .is_ok_and(|s| (s.st_dev, s.st_ino) == (stat.dev, stat.ino))
        };
        let lines = lines.iter().enumerate().filter(|(_, l)| l.device == device);
        let shown = lines.filter(|(i, _)| covers(self.mounts(number), *i).is_empty());
        let places: Vec<Vec<u8>> = shown.map(|(_, l)| beneath(&l.at, link)).collect();
        let found = places.iter().find(|path| is_it(path));
        // Of a name that is gone there is the directory that it was in.
        let directory = |path: &&Vec<u8>| {
            let above = path.iter().rposition(|b| *b == b'/').map_or(0, |at| at.max(1));
            let there = nix::sys::stat::lstat(&tree.path(&path[..above]));
            there.is_ok_and(|s| s.st_dev == stat.dev && s.st_mode & libc::S_IFMT == libc::S_IFDIR)
        };
        let found = found.or_else(|| places.iter().find(directory).filter(|_| named.is_some()));
        Some((tree.clone(), found?.clone()))
    }

    /// The mounts of the tree with this number.
    pub fn mounts(&self, number: u32) -> &[MountLine] {
        self.mounts.get(&number).map_or(&[], Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_with_a_blank_in_its_name_is_read() {
        let text = b"36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n";
        let all = parse_mounts(text);
        assert_eq!(all.len(), 1);
        assert_eq!(
            (all[0].id, all[0].parent, &all[0].at[..]),
            (36, 35, &b"/mnt 2"[..])
        );
        assert_eq!(all[0].propagation, ["master:1"]);
        assert_eq!(
            (&all[0].kind[..], &all[0].super_options[..]),
            ("ext3", "rw,errors=continue")
        );
    }

    #[test]
    fn a_mount_comes_after_the_one_it_is_on() {
        let line = |id: i32, parent: i32| format!("{id} {parent} 0:1 / /m{id} rw - tmpfs none rw\n");
        let text = [
            line(5, 9),
            line(6, 5),
            line(7, 1),
            line(8, 7),
            line(9, 7),
            line(10, 8),
        ]
        .concat();
        let ids: Vec<i64> = in_order(parse_mounts(text.as_bytes()))
            .iter()
            .map(|l| l.id)
            .collect();
        assert_eq!(ids, [7, 8, 9, 5, 6, 10]);
    }

    #[test]
    fn a_path_in_our_own_tree_is_itself() {
        assert_eq!(Tree::default().path(b"/etc/passwd"), Path::new("/etc/passwd"));
        let root = File::open("/").unwrap();
        let tree = Tree::new(1, root.into());
        assert!(tree.path(b"/proc/self").exists() && tree.path(b"/").is_dir());
    }
}
