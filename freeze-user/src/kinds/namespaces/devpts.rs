//! File systems of pseudo terminals that are made before the tree they belong to: a session gets its controlling terminal
//! when its leader is born, long before anything is mounted.

use super::mounts::{Mount, Origin};
use super::{Namespace, What, living};
use crate::error::{Blocker, Context, Result};
use crate::nest::space::{Kind, Spaces};
use crate::observe::tree::MountLine;
use crate::sys::ns;
use nix::sys::stat::fstat;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Where the slave side of a terminal of freeze's own tree lies that `m` shows by another name, as a container's console.
pub(super) fn shown(m: &Mount) -> Option<&Path> {
    match &m.from {
        Origin::Own(path) if m.fs == "devpts" && m.root != Path::new("/") => Some(path),
        _ => None,
    }
}

/// Refuses mounts of terminals that are not there, once those of the image that are shown so have been made.
pub fn check_shown(all: &[Namespace]) -> Result<()> {
    for namespace in all.iter().filter(|n| living(n).is_none()) {
        let What::Mount(mounts) = &namespace.what else {
            continue;
        };
        for m in mounts {
            if let Some(path) = shown(m)
                && let Err(e) = std::fs::symlink_metadata(path)
            {
                return Err(absent(namespace.number, m, path, &e).refuse());
            }
        }
    }
    Ok(())
}

/// The refusal of a mount of something in freeze's own tree that is not there.
pub(super) fn absent(tree: u32, m: &Mount, path: &Path, e: &std::io::Error) -> Blocker {
    let at = format!("mount {} of mount namespace {tree}", m.at.display());
    Blocker::at(at, m.source.clone())
        .why(format!("it shows {}, which is not there: {e}", path.display()))
        .remedy("mount what holds it")
}

/// Whether it belongs to another user namespace than freeze's, that of its tree: its root is root's there.
pub(super) fn is_apart(line: &MountLine, at: &Path) -> bool {
    line.kind == "devpts"
        && line.root == b"/"
        && ns::mount_id(at) == Ok(line.id)
        && std::fs::metadata(at).is_ok_and(|m| m.uid() != 0)
}

/// A new one for the tree `number`, attached nowhere, of the user namespace that it belonged to: there root may open a
/// multiplexer that nobody else may, and change its options.
pub(super) fn made(m: &Mount, number: u32, spaces: &Spaces) -> Result<OwnedFd> {
    let name = || format!("mount {}", m.at.display());
    let plain = |o: &&str| !matches!(*o, "rw" | "ro" | "seclabel" | "");
    let options: Vec<&str> = m.super_options.split(',').filter(plain).collect();
    let tree = match m.apart {
        true => spaces.get(Kind::Mount, number),
        false => None,
    };
    let Some(tree) = tree else {
        return ns::new_mount(&m.fs, Path::new(&m.source), &options).on("fsmount", name);
    };
    let user = ns::owner(tree).on("ioctl(NS_GET_USERNS)", name)?;
    let made = ns::new_mount_by(&[user.as_raw_fd(), tree.as_raw_fd()], &m.fs, &m.source);
    let made = made.on("fsmount", name)?;
    ns::set_super_options(made.as_fd(), &options).on("fsconfig", name)?;
    // The directory is root's there, the multiplexer whose who made it.
    let root = fstat(&made).on("fstat", name)?;
    let ptmx = format!("/proc/self/fd/{}/ptmx", made.as_raw_fd());
    std::os::unix::fs::chown(&ptmx, Some(root.st_uid), Some(root.st_gid)).on("chown", || ptmx.clone())?;
    Ok(made)
}

/// Those that are made and attached nowhere yet, by the number of their tree and their index there.
#[derive(Debug, Default)]
pub struct Prepared(BTreeMap<(u32, usize), OwnedFd>);

impl Prepared {
    /// The multiplexer of the devpts that is to be mounted at `dir` in the tree `tree` of the image; `None` if it is not one
    /// that is made anew there, or one of freeze's own tree.
    pub fn multiplexer(
        &mut self,
        all: &[Namespace],
        spaces: &Spaces,
        tree: u32,
        dir: &Path,
    ) -> Result<Option<PathBuf>> {
        let Some(namespace) = all.iter().find(|n| n.kind == Kind::Mount && n.number == tree) else {
            return Ok(None);
        };
        let What::Mount(mounts) = &namespace.what else {
            return Ok(None);
        };
        // One that others have kept alive has its terminals still.
        if living(namespace).is_some() {
            return Ok(None);
        }
        let Some(index) = mounts.iter().rposition(|m| m.at == dir) else {
            return Ok(None);
        };
        let m = &mounts[index];
        match &m.from {
            _ if m.fs != "devpts" => Ok(None),
            Origin::Own(path) => Ok(Some(path.join("ptmx"))),
            Origin::Other(tree, index, _) => {
                let mut others = all.iter().filter(|n| n.kind == Kind::Mount);
                let whole = others.find_map(|n| match &n.what {
                    What::Mount(mounts) if n.number == *tree => mounts.get(*index),
                    _ => None,
                });
                match whole {
                    Some(whole) if whole.at != dir || tree != &namespace.number => {
                        self.multiplexer(all, spaces, *tree, &whole.at)
                    }
                    _ => Ok(None),
                }
            }
            Origin::New(..) => {
                let held = match self.0.entry((tree, index)) {
                    Entry::Occupied(held) => held.into_mut(),
                    Entry::Vacant(free) => free.insert(made(m, tree, spaces)?),
                };
                let ptmx = format!("/proc/self/fd/{}/ptmx", held.as_raw_fd());
                Ok(Some(ptmx.into()))
            }
            Origin::Space(..) => Ok(None),
        }
    }

    /// The one that is to be mounted there, if it is made already.
    pub(super) fn taken(&self, tree: u32, index: usize) -> Option<std::io::Result<OwnedFd>> {
        self.0.get(&(tree, index)).map(OwnedFd::try_clone)
    }
}
