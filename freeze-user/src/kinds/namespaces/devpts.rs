//! File systems of pseudo terminals that are made before the tree they belong to: a session gets its controlling terminal
//! when its leader is born, long before anything is mounted.

use super::mounts::Origin;
use super::{Namespace, What, living};
use crate::error::{Context, Result};
use crate::nest::space::Kind;
use crate::sys::ns;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Those that are made and attached nowhere yet, by the number of their tree and their index there.
#[derive(Debug, Default)]
pub struct Prepared(BTreeMap<(u32, usize), OwnedFd>);

impl Prepared {
    /// The multiplexer of the devpts that is to be mounted at `dir` in the tree `tree` of the image; `None` if it is not one
    /// that is made anew there, or one of freeze's own tree.
    pub fn multiplexer(&mut self, all: &[Namespace], tree: u32, dir: &Path) -> Result<Option<PathBuf>> {
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
                        self.multiplexer(all, *tree, &whole.at)
                    }
                    _ => Ok(None),
                }
            }
            Origin::New(..) => {
                let held = match self.0.entry((tree, index)) {
                    Entry::Occupied(held) => held.into_mut(),
                    Entry::Vacant(free) => {
                        let plain = |o: &&str| !matches!(*o, "rw" | "ro" | "seclabel" | "");
                        let options: Vec<&str> = m.super_options.split(',').filter(plain).collect();
                        let made = ns::new_mount(&m.fs, Path::new(&m.source), &options);
                        free.insert(made.on("fsmount", || format!("mount {}", m.at.display()))?)
                    }
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
