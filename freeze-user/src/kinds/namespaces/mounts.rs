//! The mounts of a mount namespace: what each of them shows and where that is to be had from, and building them anew.
//!
//! A tree is not patched but built from nothing: its root is put on a directory of the copy of freeze's tree the namespace
//! begins with, becomes the root (pivot_root), and everything else of the copy goes.

use super::autofs::{self, Autofs};
use super::binfmt::{self, Binfmt};
use super::contents::{self, Contents};
use super::described;
use super::devpts::{self, Prepared};
use super::disk::{self, Disk};
use super::moves::{become_root, drop_old_root, make, narrow, shown_part, terminated};
use super::options::{ALL_ATTRIBUTES, READ_ONLY, attributes, flags};
use super::propagation::{OwnGroup, Sharing};
use super::removed::{self, removed_root};
use crate::error::{Blocker, Context, Error, Result};
use crate::ids::Pid;
use crate::kinds::Shared;
use crate::kinds::directory::Removed;
use crate::nest::Nest;
use crate::nest::space::Kind;
use crate::observe::foreign::namespace_bound;
use crate::observe::tree::{MountLine, below, covers, parse_mounts};
use crate::observe::view::{ProcessView, View};
use crate::store::Draft;
use crate::sys::ns::{self, MountAttr};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// One mount of a tree, in an order in which each can be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    #[serde(with = "crate::ospath")]
    pub at: PathBuf,
    /// `ro`, `nosuid` … of the mount.
    pub options: String,
    pub propagation: Vec<String>,
    /// Which directory of its file system it shows.
    #[serde(default, with = "crate::ospath")]
    pub root: PathBuf,
    /// The directory it shows, if that was removed.
    #[serde(default)]
    pub removed: Option<Removed>,
    /// The file it shows, if that was removed.
    #[serde(default)]
    pub removed_file: Contents,
    /// A mount of freeze's own tree by which it spreads, or from which it takes over.
    #[serde(default)]
    pub own_group: Option<OwnGroup>,
    /// The type of its file system, what it was mounted from, and its options.
    pub fs: String,
    pub source: String,
    pub super_options: String,
    pub from: Origin,
    /// The block device on which it is mounted anew.
    #[serde(default)]
    pub disk: Option<Disk>,
    #[serde(default)]
    pub binfmt: Option<Binfmt>,
    #[serde(default)]
    pub autofs: Option<Autofs>,
    /// Whether its file system belongs to the user namespace of its tree; only of pseudo terminals.
    #[serde(default)]
    pub apart: bool,
}

/// Where what a mount shows is to be had from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Origin {
    /// It lies here in freeze's own tree.
    Own(#[serde(with = "crate::ospath")] PathBuf),
    /// It is at this path in the file system of another mount of the image: number of the tree, index in its list.
    Other(u32, usize, #[serde(with = "crate::ospath")] PathBuf),
    /// It is a namespace (`ip netns add`): its kind and number, 0 for freeze's own.
    Space(Kind, u32),
    /// A file system of its own: what was in it, and whose pids or sockets it shows.
    New(Option<Contents>, u32),
}

/// Types of file systems that hold nothing of their own, or whose contents travel in the image.
const MADE_ANEW: [&str; 21] = [
    "tmpfs",
    "ramfs",
    "proc",
    "sysfs",
    "devpts",
    "mqueue",
    "cgroup",
    "cgroup2",
    "overlay",
    "hugetlbfs",
    // The kernel has one of each, however often it is mounted.
    "debugfs",
    "tracefs",
    "securityfs",
    "configfs",
    "fusectl",
    "pstore",
    "efivarfs",
    "devtmpfs",
    // With what was registered in it, or with its daemon.
    "binfmt_misc",
    "autofs",
    // As long as nothing was put into it.
    "bpf",
];

/// Where each mount of all trees of a set comes from; in place of an origin, why it cannot be had.
struct Survey {
    own: Vec<MountLine>,
    /// The first mount that shows a whole file system, by device: tree, index and `/`; where there is none, the first that
    /// shows a part of it, and which.
    whole: BTreeMap<String, (u32, usize, Vec<u8>)>,
}

impl Survey {
    fn new(view: &View) -> Survey {
        let text = std::fs::read("/proc/thread-self/mountinfo").unwrap_or_default();
        let mut whole = BTreeMap::new();
        for number in 1..=view.trees.count() {
            for (i, line) in view.trees.mounts(number).iter().enumerate() {
                let known = whole.entry(line.device.clone());
                let found = known.or_insert((number, i, line.root.clone()));
                if line.root == b"/" && found.2 != b"/" {
                    *found = (number, i, line.root.clone());
                }
            }
        }
        Survey {
            own: parse_mounts(&text),
            whole,
        }
    }

    /// Where a mount comes from, without contents.
    fn origin(
        &self,
        tree: u32,
        index: usize,
        line: &MountLine,
        view: &View,
    ) -> std::result::Result<Origin, String> {
        let path = |bytes: &[u8]| -> PathBuf { OsStr::from_bytes(bytes).into() };
        if line.options.split(',').any(|o| o == "idmapped") {
            return Err("it maps ids (mount_setattr), and the kernel does not tell how".into());
        }
        let removed = removed_root(line);
        if removed.is_some()
            && !shows_directory(tree, line, view)
            && removed::file(tree, index, view).is_none()
        {
            return Err(
                "what is mounted there was removed, and is no file or directory that can be looked at".into(),
            );
        }
        let root = removed.unwrap_or(&line.root);
        for own in self.own.iter().filter(|own| own.device == line.device) {
            let Some(rest) = below(&own.root, root) else {
                continue;
            };
            let here = path(&join(&own.at, rest));
            let there = match removed {
                Some(_) => here.parent().unwrap_or(Path::new("/")),
                None => &here,
            };
            // Not where something else is mounted on top.
            if ns::mount_id(there) == Ok(own.id) {
                return Ok(Origin::Own(here));
            }
        }
        if let Some((kind, inode)) = namespace_bound(line) {
            return space_of(&kind, inode, view).ok_or_else(|| {
                format!(
                    "nobody of the checkpoint lives in the {kind} namespace, which cannot be made again empty"
                )
            });
        }
        match self.whole.get(&line.device) {
            // A part of a file system in memory is made anew with nothing beside it, if nothing else of it is to be seen.
            Some((t, i, part))
                if (*t, *i) == (tree, index)
                    && (part == b"/" || can_be_part(line) && shows_directory(tree, line, view)) => {}
            Some((t, i, part)) if (*t, *i) != (tree, index) && below(part, root).is_some() => {
                let rest = below(part, root).unwrap_or_default();
                // That of a process goes with it.
                let whole = &view.trees.mounts(*t)[*i];
                let seen = ns::mount_id(&reached(*t, &whole.at, view)) == Ok(whole.id);
                if line.kind == "proc" && seen && !reached(*t, &join(&whole.at, rest), view).exists() {
                    return Err("it shows a process that has ended".into());
                }
                return Ok(Origin::Other(*t, *i, path(&join(b"/", rest))));
            }
            _ => {
                return Err(format!(
                    "it shows only {} of a file system that is mounted nowhere as a whole",
                    String::from_utf8_lossy(&line.root)
                ));
            }
        }
        let block = lies_on_disk(line);
        if block {
            Disk::of(line)?;
        }
        // U+FFFD stands for what was no text.
        if line.super_options.contains('\u{fffd}') {
            return Err("its options hold bytes that are no text".into());
        }
        if !MADE_ANEW.contains(&line.kind.as_str()) && !block {
            return Err(format!("a file system of type {} cannot be made anew", line.kind));
        }
        // Relative to what directory they were, nobody tells.
        if line.kind == "overlay" && !layers(&line.super_options).all(|layer| layer.starts_with('/')) {
            return Err("its layers are named by relative paths".into());
        }
        if line.kind == "bpf" && !is_bare(tree, line, view) {
            return Err("what is pinned in it is not carried".into());
        }
        registered(tree, line, view)?;
        if line.kind == "autofs" {
            Autofs::of(line, view)?;
        }
        Ok(Origin::New(None, self.shown(tree, line, view)))
    }

    /// What of freeze's own tree is in a group that a mount spreads by or takes over from.
    fn own_group(&self, line: &MountLine) -> Option<OwnGroup> {
        let place = Sharing::of(&line.propagation);
        let at = |own: &MountLine| PathBuf::from(OsStr::from_bytes(&own.at));
        let find = |group: u32| {
            let shown =
                |own: &&MountLine| own.device == line.device && below(&own.root, &line.root).is_some();
            let mut own = self.own.iter().filter(shown);
            own.find(|own| {
                Sharing::of(&own.propagation).group == Some(group) && ns::mount_id(&at(own)) == Ok(own.id)
            })
        };
        let (own, peer) = match place.group.and_then(find) {
            Some(own) => (own, true),
            None => (place.master.and_then(find)?, false),
        };
        Some(OwnGroup { at: at(own), peer })
    }

    /// Whether the contents of a new file system go along; `None` if they would have to, and cannot be looked at.
    fn contents(&self, tree: u32, index: usize, view: &View) -> Option<bool> {
        let lines = view.trees.mounts(tree);
        let line = &lines[index];
        if !holds_files(line) {
            return Some(false);
        }
        if covers(lines, index).is_empty() {
            return Some(true);
        }
        let in_tree = |p: &&ProcessView| view.namespace(p, "mnt") == tree;
        let member = view.each().find(in_tree);
        let locked = member.is_some_and(|p| view.namespace(p, "user") != 0);
        // What a user namespace has got with its tree stays covered for whoever lives in it (mount_namespaces(7)).
        if locked && self.own.iter().any(|own| own.device == line.device) {
            return Some(false);
        }
        view.trees.copy(tree, index).is_ok().then_some(true)
    }

    /// The number of the pid namespace that a proc file system shows.
    fn shown(&self, tree: u32, line: &MountLine, view: &View) -> u32 {
        if line.kind != "proc" {
            return 0;
        }
        let member = view.each().find(|p| view.namespace(p, "mnt") == tree);
        let Some(p) = member else { return 0 };
        let there = view
            .trees
            .of_namespace(p.namespaces.get("mnt").copied().unwrap_or(0));
        let init = there.path(&join(&line.at, b"/1/ns/pid"));
        let shown = std::fs::metadata(init).map_or(0, |m| m.ino());
        match view.foreign.get(&("pid".to_owned(), shown)) {
            Some(number) => *number,
            None => view.namespace(p, "pid"),
        }
    }
}

/// A namespace that is mounted on a file, if it is one of the image or freeze's own.
fn space_of(kind: &str, inode: u64, view: &View) -> Option<Origin> {
    let found = Kind::ALL.into_iter().find(|k| k.name() == kind)?;
    if let Some(number) = view.foreign.get(&(kind.to_owned(), inode)) {
        return Some(Origin::Space(found, *number));
    }
    let own = std::fs::metadata(format!("/proc/thread-self/ns/{kind}")).ok()?;
    (own.ino() == inode).then_some(Origin::Space(found, 0))
}

/// The directories of which an overlay consists.
fn layers(options: &str) -> impl Iterator<Item = &str> {
    let named = options.split(',').filter_map(|o| o.split_once('='));
    let directories = named.filter(|(name, _)| {
        matches!(
            *name,
            "lowerdir" | "upperdir" | "workdir" | "lowerdir+" | "datadir+"
        )
    });
    directories.flat_map(|(_, paths)| paths.split(':').filter(|p| !p.is_empty()))
}

/// Whether a file system that is made anew is mounted from a block device.
fn lies_on_disk(line: &MountLine) -> bool {
    !MADE_ANEW.contains(&line.kind.as_str())
        && line.source.starts_with(b"/dev/")
        && !line.kind.starts_with("fuse")
}

/// Whether a file system lies in memory, so that its files travel in the image.
fn holds_files(line: &MountLine) -> bool {
    matches!(line.kind.as_str(), "tmpfs" | "ramfs" | "hugetlbfs")
}

/// Whether a mount can be made anew that shows only a part of its file system.
fn can_be_part(line: &MountLine) -> bool {
    holds_files(line) && removed_root(line).is_none()
}

/// How freeze reaches what lies at a path of a tree.
fn reached(tree: u32, path: &[u8], view: &View) -> PathBuf {
    let member = view.each().find(|p| view.namespace(p, "mnt") == tree);
    let there = member.and_then(|p| p.namespaces.get("mnt"));
    view.trees.of_namespace(there.copied().unwrap_or(0)).path(path)
}

fn shows_directory(tree: u32, line: &MountLine, view: &View) -> bool {
    let at = reached(tree, &line.at, view);
    std::fs::metadata(&at).is_ok_and(|m| m.is_dir()) && ns::mount_id(&at) == Ok(line.id)
}

/// Whether a mount holds only what the kernel puts into each.
fn is_bare(tree: u32, line: &MountLine, view: &View) -> bool {
    let here = reached(tree, &line.at, view);
    let added = |e: std::fs::DirEntry| !matches!(e.file_name().to_str(), Some("maps.debug" | "progs.debug"));
    std::fs::read_dir(here).is_ok_and(|all| !all.flatten().any(added))
}

/// What is registered in a mount, if it is one in which something can be; or why that cannot be told.
fn registered(tree: u32, line: &MountLine, view: &View) -> std::result::Result<Option<Binfmt>, String> {
    if line.kind != "binfmt_misc" {
        return Ok(None);
    }
    let here = reached(tree, &line.at, view);
    if ns::mount_id(&here) != Ok(line.id) {
        return Err("what is mounted over it keeps freeze from looking into it".into());
    }
    Binfmt::read(&here, binfmt::owner(tree, view)).map(Some)
}

fn join(base: &[u8], rest: &[u8]) -> Vec<u8> {
    if base == b"/" && !rest.is_empty() {
        return rest.to_vec();
    }
    [base, rest].concat()
}

/// Adds what speaks against carrying the mounts of the tree that `p` lives in.
pub(super) fn verdict(p: &ProcessView, view: &View, out: &mut Vec<Blocker>) {
    let survey = Survey::new(view);
    let tree = view.namespace(p, "mnt");
    for p in view.each().filter(|p| view.namespace(p, "mnt") == tree) {
        let root = ns::mount_id(Path::new(&format!("/proc/{}/root", p.speaker)));
        let mut seen = view.trees.mounts(tree).iter().chain(&survey.own);
        if let Ok(root) = root
            && !seen.any(|line| line.id == root)
        {
            out.push(
                p.blocker("root", String::from_utf8_lossy(&p.root.path).into_owned())
                    .why("it is on a mount that another one was mounted over, and so is all that the program sees")
                    .remedy("let it go to what is mounted there (chroot, pivot_root)"),
            );
        }
    }
    for (i, line) in view.trees.mounts(tree).iter().enumerate() {
        let origin = match survey.origin(tree, i, line, view) {
            Ok(Origin::New(..)) if survey.contents(tree, i, view).is_none() => {
                Err("what is mounted over it keeps freeze from looking into it".into())
            }
            found => found,
        };
        if let (Ok(Origin::Space(kind, 1..)), Some((_, inode))) = (&origin, namespace_bound(line)) {
            let holder = p.blocker(format!("mount {}", String::from_utf8_lossy(&line.at)), "");
            super::held_verdict(*kind, inode, &holder, view, out);
        }
        if let Err(why) = origin {
            out.push(
                p.blocker(
                    format!("mount {}", String::from_utf8_lossy(&line.at)),
                    format!("{} of type {}", String::from_utf8_lossy(&line.source), line.kind),
                )
                .why(why)
                .remedy("mount it in freeze's own tree too, or unmount it"),
            );
        }
    }
}

/// Records the mounts of a tree, with what is in those of its file systems that go with it.
pub(super) fn collect(
    number: u32,
    view: &View,
    shared: &mut Shared,
    draft: &mut Draft,
) -> Result<Vec<Mount>> {
    let survey = Survey::new(view);
    let mut out = Vec::new();
    for (i, line) in view.trees.mounts(number).iter().enumerate() {
        let name = || format!("mount {}", String::from_utf8_lossy(&line.at));
        let mut from = survey.origin(number, i, line, view).map_err(|why| {
            Blocker::at(name(), line.kind.clone())
                .why(why)
                .remedy("unmount it")
                .refuse()
        })?;
        if let Origin::New(inside, _) = &mut from
            && survey.contents(number, i, view) == Some(true)
        {
            let copy = view.trees.copy(number, i).on("open_tree", name)?;
            *inside = Some(contents::collect(&copy, shared, draft)?);
        }
        // It was looked at when this was found to be carried, but others may use it while the set stands still.
        let changed = |why: String| {
            Blocker::at(name(), &line.kind)
                .why(why)
                .remedy("try again")
                .refuse()
        };
        let removed_file = match removed_root(line).and_then(|_| removed::file(number, i, view)) {
            Some(file) => removed::collect(&file, shared, draft)?,
            None => Vec::new(),
        };
        out.push(Mount {
            at: OsStr::from_bytes(&line.at).into(),
            options: line.options.clone(),
            propagation: line.propagation.clone(),
            root: OsStr::from_bytes(&line.root).into(),
            removed: match removed_root(line).filter(|_| removed_file.is_empty()) {
                Some(_) => {
                    let opened = OFlag::O_PATH | OFlag::O_CLOEXEC;
                    let path = reached(number, &line.at, view);
                    let root = nix::fcntl::open(&path, opened, Mode::empty()).on("open", name)?;
                    Some(Removed::alone(&format!("/proc/self/fd/{}", root.as_raw_fd()))?)
                }
                None => None,
            },
            removed_file,
            own_group: survey.own_group(line),
            fs: line.kind.clone(),
            source: String::from_utf8_lossy(&line.source).into_owned(),
            super_options: line.super_options.clone(),
            disk: match &from {
                Origin::New(..) if lies_on_disk(line) => Disk::of(line).ok(),
                _ => None,
            },
            binfmt: match &from {
                Origin::New(..) => registered(number, line, view).map_err(&changed)?,
                _ => None,
            },
            autofs: match &from {
                Origin::New(..) if line.kind == "autofs" => {
                    let mut found = Autofs::of(line, view).map_err(&changed)?;
                    found.look(line, || view.trees.copy(number, i))?;
                    Some(found)
                }
                _ => None,
            },
            apart: matches!(from, Origin::New(..))
                && devpts::is_apart(line, &reached(number, &line.at, view)),
            from,
        });
    }
    Ok(out)
}

/// Adds what of freeze's own tree a recorded tree needs and does not find.
pub(super) fn precheck(tree: u32, mounts: &[Mount], out: &mut Vec<Blocker>) {
    for m in mounts {
        autofs::precheck(m, tree, out);
        if let Some(disk) = &m.disk {
            disk.precheck(
                &format!("mount {} of mount namespace {tree}", m.at.display()),
                out,
            );
        }
        if let Origin::Own(path) = &m.from
            && m.removed.is_none()
            && m.removed_file.is_empty()
            && devpts::shown(m).is_none()
            && let Err(e) = std::fs::symlink_metadata(path)
        {
            out.push(devpts::absent(tree, m, path, &e));
        }
    }
}

/// What of the trees has been built.
#[derive(Debug, Default)]
pub(super) struct Built<'a> {
    /// Every mount, with its tree, and held by its root.
    pub(super) mounts: Vec<(u32, &'a Mount, OwnedFd)>,
}

impl Built<'_> {
    /// Every mount with its tree, its index there, and its place, open anew.
    pub(super) fn by_itself(&self) -> Result<Vec<(u32, usize, PathBuf, OwnedFd)>> {
        let mut next: BTreeMap<u32, usize> = BTreeMap::new();
        let held = self.mounts.iter().map(|(tree, mount, held)| {
            let index = next.entry(*tree).or_default();
            *index += 1;
            let root = held.try_clone().map_err(|_| Errno::EMFILE);
            Ok((*tree, *index - 1, mount.at.clone(), root.on("dup", || "a mount")?))
        });
        held.collect()
    }
}

/// Mounts by which directories were made that are to be removed again.
#[derive(Debug, Default)]
struct Ways(Vec<OwnedFd>);

impl Ways {
    fn keep(&mut self, mount: OwnedFd) -> i32 {
        let number = mount.as_raw_fd();
        self.0.push(mount);
        number
    }
}

/// Mounts that are to be read-only, each with the number of its tree: once no more files are made in them again.
#[derive(Debug, Default)]
struct Sealed(Vec<(u32, OwnedFd)>);

/// Makes mounts read-only where they were, now that everything in them is there, and what had no name has none again.
pub(super) fn seal(nest: &mut Nest) -> Result<()> {
    contents::flag(nest);
    for (number, mount) in std::mem::take(&mut nest.state::<Sealed>().0) {
        let name = || format!("a read-only mount of mount namespace {number} of the image");
        let tree = nest.spaces.get(Kind::Mount, number).ok_or(Errno::ENOENT);
        let attr = MountAttr {
            set: READ_ONLY,
            ..MountAttr::default()
        };
        ns::set_mount_in(tree.on("setns", name)?, mount.as_fd(), attr).on("mount_setattr", name)?;
    }
    Ok(())
}

fn is_read_only(options: &str) -> bool {
    options.split(',').any(|o| o == "ro")
}

/// Builds a tree by tapes in the processes that live in it.
pub(super) fn build<'a>(
    number: u32,
    mounts: &'a [Mount],
    nest: &mut Nest,
    built: &mut Built<'a>,
) -> Result<()> {
    let members: Vec<Pid> = nest
        .pids()
        .into_iter()
        .filter(|p| nest.membership(*p).of(Kind::Mount) == number)
        .collect();
    let Some(&first) = members.first() else {
        return Ok(());
    };
    // What it shows is needed until the end: who is not root may mount only what can be seen already (mount_namespaces(7)).
    // Where others are mounted over the new root it would lie among them.
    let keep = mounts.iter().skip(1).all(|m| m.at != Path::new("/"));
    for (i, m) in mounts.iter().enumerate() {
        let name = || format!("mount {} of {}", m.at.display(), described(first));
        // The root is put aside first: there is no root yet to put it at.
        const ASIDE: &str = "/proc";
        let at = if i == 0 { Path::new(ASIDE) } else { &m.at };
        let made = match (&m.from, &m.disk) {
            (Origin::New(..), Some(disk)) => attach(disk.mount(m)?, number, at, m, first, nest),
            (Origin::Own(path), _) => {
                let file = removed::Made::again(path, &m.removed_file, nest)?;
                let path = match (&m.removed, &file) {
                    (Some(removed), _) => removed.make(path, nest)?,
                    (None, Some(file)) => file.path.clone(),
                    (None, None) => path.clone(),
                };
                let copy = ns::mount_copy(None, path.as_os_str().as_bytes()).on("open_tree", name)?;
                attach(copy, number, at, m, first, nest)
            }
            (Origin::Space(kind, which), _) => {
                let space = format!("/proc/self/fd/{}", nest.spaces.descriptor(*kind, *which)?);
                let copy = ns::mount_copy(None, space.as_bytes()).on("open_tree", name)?;
                attach(copy, number, at, m, first, nest)
            }
            (Origin::Other(tree, index, path), _) => {
                let mut whole = built.mounts.iter().filter(|(t, ..)| t == tree);
                let whole = whole.nth(*index).zip(nest.spaces.get(Kind::Mount, *tree));
                let ((.., whole), tree) = whole.ok_or(Errno::ENOENT).on("open_tree", name)?;
                let tree = tree.try_clone_to_owned();
                let tree = tree.map_err(|_| Errno::EMFILE).on("dup", name)?;
                let mut below = path.strip_prefix("/").unwrap_or(path).to_owned();
                let file;
                if m.removed.is_some() || !m.removed_file.is_empty() {
                    let root = whole.try_clone().map_err(|_| Errno::EMFILE).on("dup", name)?;
                    let held = nest.state::<Ways>();
                    let root = PathBuf::from(format!("/proc/self/fd/{}", held.keep(root)));
                    let was = root.join(&below);
                    file = removed::Made::again(&was, &m.removed_file, nest)?;
                    let made = match (&m.removed, &file) {
                        (Some(removed), _) => removed.make(&was, nest)?,
                        (None, Some(file)) => file.path.clone(),
                        (None, None) => was,
                    };
                    below = made.strip_prefix(&root).unwrap_or(&below).to_owned();
                }
                let copy = ns::mount_copy_of(tree.as_fd(), whole.as_fd(), below.as_os_str().as_bytes())
                    .on("open_tree", name)?;
                attach(copy, number, at, m, first, nest)
            }
            (Origin::New(..), None) if nest.state::<Prepared>().taken(number, i).is_some() => {
                let made = nest.state::<Prepared>().taken(number, i).and_then(|m| m.ok());
                attach(
                    made.ok_or(Errno::EMFILE).on("dup", name)?,
                    number,
                    at,
                    m,
                    first,
                    nest,
                )
            }
            (Origin::New(..), None) if m.autofs.is_some() || m.binfmt.is_some() || m.apart => {
                special(at, m, number, first, &members, nest)
            }
            (Origin::New(inside, shown), None) => {
                disk::forgive_volatile(Path::new(&format!("/proc/{first}/root")), m)?;
                let shows = |p: &Pid| m.fs != "proc" || nest.membership(*p).of(Kind::Pid) == *shown;
                let by = members.iter().copied().find(|p| shows(p)).unwrap_or(first);
                make(at, m, by, nest).and_then(|()| {
                    let part = shown_part(m);
                    // A part becomes the root once it is a mount by itself.
                    let at = if i == 0 && part.is_none() {
                        become_root(ASIDE, first, nest)?;
                        m.at.as_path()
                    } else {
                        at
                    };
                    let root = inside_of(first, at).join(part.unwrap_or(Path::new("")));
                    if part.is_some() {
                        std::fs::create_dir_all(&root).on("mkdir", name)?;
                    }
                    if let Some(inside) = inside {
                        contents::fill(&root, inside, nest)?;
                    }
                    if let Some(part) = part {
                        narrow(at, part, first, nest)?;
                        if i == 0 {
                            become_root(ASIDE, first, nest)?;
                        }
                    }
                    if i == 0 && !keep {
                        drop_old_root(first, nest)?;
                    }
                    seal_new(m, number, first, nest)
                })
            }
        };
        let mount = made.map_err(|e| match e {
            Error::Kernel { call, errno, .. } => Error::kernel(call, name(), errno),
            e => e,
        })?;
        built.mounts.push((number, m, mount));
        if i == 0 && (m.disk.is_some() || !matches!(m.from, Origin::New(..))) {
            become_root(ASIDE, first, nest)?;
            if !keep {
                drop_old_root(first, nest)?;
            }
        }
    }
    if keep && !mounts.is_empty() {
        drop_old_root(first, nest)?;
    }
    Ok(())
}

/// Mounts what is more than its options tell.
fn special(
    at: &Path,
    m: &Mount,
    number: u32,
    first: Pid,
    members: &[Pid],
    nest: &mut Nest,
) -> Result<OwnedFd> {
    if let Some(autofs) = &m.autofs {
        autofs.mount(at, m, members, nest)?;
    } else if let Some(copy) = m.binfmt.as_ref().map_or(Ok(None), |b| b.mount(m, number, nest))? {
        return attach(copy, number, at, m, first, nest);
    } else if m.apart {
        return attach(devpts::made(m, number, &nest.spaces)?, number, at, m, first, nest);
    } else {
        make(at, m, first, nest)?;
    }
    let mount = seal_new(m, number, first, nest)?;
    if let Some(autofs) = &m.autofs {
        autofs.await_pipe(&mount, nest)?;
    }
    Ok(mount)
}

/// Attaches a copy of a mount, with the options recorded.
fn attach(copy: OwnedFd, number: u32, at: &Path, m: &Mount, by: Pid, nest: &mut Nest) -> Result<OwnedFd> {
    let attr = MountAttr {
        set: attributes(&m.options) & !READ_ONLY,
        clear: ALL_ATTRIBUTES,
        propagation: libc::MS_PRIVATE,
        userns: 0,
    };
    ns::set_mount(copy.as_fd(), attr).on("mount_setattr", || m.at.display().to_string())?;
    let fd = nest.hand_over(by, &[copy.as_raw_fd()])?[0];
    nest.process(by)?.tape(|t| {
        const MOVE_MOUNT_F_EMPTY_PATH: u64 = 4;
        let none = t.bytes(b"\0");
        let to = t.bytes(&terminated(at.as_os_str().as_bytes()));
        t.call(
            "move_mount",
            libc::SYS_move_mount,
            &[fd, none, libc::AT_FDCWD as u64, to, MOVE_MOUNT_F_EMPTY_PATH],
        );
        t.call("close", libc::SYS_close, &[fd]);
    })?;
    if is_read_only(&m.options) {
        seal_later(number, &copy, nest)?;
    }
    Ok(copy)
}

/// How freeze reaches a path of the tree that a process of the nest lives in.
fn inside_of(pid: Pid, path: &Path) -> PathBuf {
    let path = path.strip_prefix("/").unwrap_or(path);
    PathBuf::from(format!("/proc/{pid}/root")).join(path)
}

fn seal_later(number: u32, mount: &OwnedFd, nest: &mut Nest) -> Result<()> {
    let held = mount
        .try_clone()
        .map_err(|_| Errno::EMFILE)
        .on("dup", || "a mount")?;
    nest.state::<Sealed>().0.push((number, held));
    Ok(())
}

/// Makes a new file system read-only where it was as a whole, now that its contents are there: it can hold no file then
/// that has no name. One mount of it becomes so later.
fn seal_new(m: &Mount, number: u32, by: Pid, nest: &mut Nest) -> Result<OwnedFd> {
    let path = inside_of(by, &m.at);
    let opened = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let mount = nix::fcntl::open(&path, opened, Mode::empty()).on("open", || path.display().to_string())?;
    if is_read_only(&m.super_options) {
        nest.process(by)?.tape(|t| {
            let none = t.bytes(b"none\0");
            let at = t.bytes(&terminated(m.at.as_os_str().as_bytes()));
            let own = flags(&m.options);
            let whole = own | libc::MS_REMOUNT | libc::MS_RDONLY;
            t.call("mount(MS_REMOUNT)", libc::SYS_mount, &[none, at, 0, whole, 0]);
            // The mount by itself need not say so.
            let alone = own | libc::MS_REMOUNT | libc::MS_BIND;
            t.call("mount(MS_REMOUNT)", libc::SYS_mount, &[none, at, 0, alone, 0]);
        })?;
    } else if is_read_only(&m.options) {
        seal_later(number, &mount, nest)?;
    }
    Ok(mount)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_below_is_told_by_whole_names() {
        assert_eq!(below(b"/", b"/a"), Some(&b"/a"[..]));
        assert_eq!(below(b"/", b"/"), Some(&b""[..]));
        assert_eq!(below(b"/a", b"/a/b"), Some(&b"/b"[..]));
        assert_eq!(below(b"/a", b"/ab"), None);
        assert_eq!(join(b"/", b"/x"), b"/x");
        assert_eq!(join(b"/mnt", b""), b"/mnt");
    }
}
