//! Where a file without a name had it, if something else is mounted over its directory by now.
//!
//! ```text
//!   / ─┬─ a ── f (deleted), open          a copy of the mount / alone shows the a that f was in; its handle,
//!      └─ a ⇐ another file system         opened on the mount / itself, is where f can be made again
//! ```

use super::found::above;
use super::ghost::Ghosts;
use crate::error::{Context, Result};
use crate::nest::Nest;
use crate::nest::space::Kind;
use crate::observe::tree::{MountLine, Tree, parse_mounts};
use crate::sys::{files, ns};
use nix::errno::Errno;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Where the mount is mounted that has the file to which `at` leads, if the way to its former name `path`, as far as it is
/// there, leads onto another mount by now.
///
/// Nothing if the former name cannot be reached on its own mount either.
pub fn covered_mount(path: &Path, at: &str, tree: &Tree) -> Option<PathBuf> {
    let id = ns::mount_id(at.as_ref()).ok()?;
    if !tree.is_one_mount() && ns::mount_id(above(&tree.path(path.as_os_str().as_bytes()))).ok()? == id {
        return None;
    }
    let text = std::fs::read(format!("/proc/{}/mountinfo", tree.looked_at_by(at)?)).ok()?;
    let lines = parse_mounts(&text);
    let mount = PathBuf::from(OsStr::from_bytes(&lines.iter().find(|l| l.id == id)?.at));
    let on_the_way = |l: &MountLine| {
        let over = Path::new(OsStr::from_bytes(&l.at));
        l.parent == id && over != mount && path.starts_with(over)
    };
    // A covered mount is looked at in a copy, where it has another number, and without those that are on it.
    let is_it = path.starts_with(&mount)
        && match tree.is_one_mount() {
            true => lines.iter().any(on_the_way),
            false => ns::mount_id(&tree.path(mount.as_os_str().as_bytes())) == Ok(id),
        };
    is_it.then_some(mount)
}

/// Where freeze finds the former name `path` on the mount at `mount`, or in the tree if that is not told.
pub fn place_of(path: &Path, mount: Option<&Path>, tree: u32, nest: &mut Nest) -> Result<PathBuf> {
    let Some(mount) = mount else {
        return nest.options.reach(tree, path);
    };
    let name = || path.display().to_string();
    let on = nest.options.reach(tree, mount)?;
    let on = File::open(&on).on("open", name)?;
    let own = File::open("/proc/thread-self/ns/mnt").on("open", || "/proc/thread-self/ns/mnt")?;
    let space = match tree {
        0 => Some(own.as_fd()),
        _ => nest.spaces.get(Kind::Mount, Tree::namespace_of(tree)),
    };
    let space = space.ok_or(Errno::ENOENT).on("setns", name)?;
    let copy = ns::mount_copy_of(space, on.as_fd(), b"").on("open_tree", name)?;
    let shown = PathBuf::from(format!("/proc/self/fd/{}", copy.as_raw_fd()));
    let shown = shown.join(path.strip_prefix(mount).unwrap_or(path));
    // As far as it is still there: the rest is made again.
    let there = above(&shown);
    let rest = shown.strip_prefix(there).unwrap_or(Path::new(""));
    let dir: PathBuf = path
        .iter()
        .take(path.iter().count() - rest.iter().count())
        .collect();
    if let Some(known) = nest.state::<Ghosts>().beneath(tree, mount, &dir) {
        return Ok(known.join(rest));
    }
    let (kind, bytes, _) = files::handle_of(there).on("name_to_handle_at", name)?;
    let how = libc::O_PATH | libc::O_DIRECTORY;
    let held = files::open_by_handle(on.as_fd(), kind, &bytes, how).on("open_by_handle_at", name)?;
    let at = nest.state::<Ghosts>().hold_beneath(tree, mount, dir, held);
    Ok(at.join(rest))
}
