//! How mounts spread (mount_namespaces(7), "shared subtrees"): groups of peers, and mounts that take over from a group.
//!
//! A group has no name to ask for it by. Its first mount makes it, and the others are put beside one that is in it already
//! and shows all that they show: so those that show more come first, and groups before what takes over from them.

use super::mounts::{Built, Mount};
use crate::error::{Context, Result};
use crate::nest::Nest;
use crate::nest::space::Kind;
use crate::sys::ns::{self, MountAttr};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

/// A mount of freeze's own tree that is in the group of one of the set, or in that which it takes over from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnGroup {
    #[serde(with = "crate::ospath")]
    pub at: PathBuf,
    /// They are peers; else it takes over from this one.
    pub peer: bool,
}

/// What mountinfo says of how a mount spreads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sharing {
    /// The group in which it spreads.
    pub(super) group: Option<u32>,
    /// The group from which it takes over.
    pub(super) master: Option<u32>,
    unbindable: bool,
}

impl Sharing {
    pub(super) fn of(words: &[String]) -> Sharing {
        let number = |what: &str| words.iter().find_map(|w| w.strip_prefix(what)?.parse().ok());
        Sharing {
            group: number("shared:"),
            master: number("master:"),
            unbindable: words.iter().any(|w| w == "unbindable"),
        }
    }

    fn is_private(self) -> bool {
        self.group.is_none() && self.master.is_none()
    }
}

/// Joins the mounts of all trees to their groups, when nothing is mounted any more.
pub(super) fn restore(built: &Built<'_>, nest: &mut Nest) -> Result<()> {
    let mut waiting: Vec<Joining<'_>> = Vec::new();
    for (tree, mount, held) in &built.mounts {
        let sharing = Sharing::of(&mount.propagation);
        if sharing.unbindable {
            set(*tree, held.as_fd(), libc::MS_UNBINDABLE, nest)?;
        }
        if !sharing.is_private() {
            waiting.push(Joining {
                tree: *tree,
                mount,
                held,
                sharing,
            });
        }
    }
    // Those that show more before those that show less of the same.
    waiting.sort_by_key(|j| j.mount.root.components().count());
    let mut groups: BTreeMap<u32, Vec<&OwnedFd>> = BTreeMap::new();
    while !waiting.is_empty() {
        let comes = |group: u32| waiting.iter().any(|j| j.sharing.group == Some(group));
        let ready = |j: &Joining<'_>| {
            let known = |g: Option<u32>| g.is_some_and(|g| groups.contains_key(&g));
            known(j.sharing.group) || known(j.sharing.master) || !j.sharing.master.is_some_and(comes)
        };
        // Groups cannot take over from each other in a circle.
        let next = waiting.iter().position(ready).unwrap_or(0);
        let joining = waiting.remove(next);
        joining.join(&groups, nest)?;
        if let Some(group) = joining.sharing.group {
            groups.entry(group).or_default().push(joining.held);
        }
    }
    Ok(())
}

/// A mount that is private yet, and is to spread.
struct Joining<'a> {
    tree: u32,
    mount: &'a Mount,
    held: &'a OwnedFd,
    sharing: Sharing,
}

impl Joining<'_> {
    fn join(&self, groups: &BTreeMap<u32, Vec<&OwnedFd>>, nest: &mut Nest) -> Result<()> {
        let own = self.mount.own_group.as_ref();
        let beside = |group: Option<u32>| {
            let mut peers = group.and_then(|g| groups.get(&g)).into_iter().flatten();
            peers.any(|p| ns::join_group(p.as_fd(), self.held.as_fd()).is_ok())
        };
        let beside_own = |peer: bool| own.is_some_and(|o| o.peer == peer && self.join_own(o).is_ok());
        if beside(self.sharing.group) || beside_own(true) {
            return Ok(());
        }
        let mut lost = |what: &str| {
            let at = self.mount.at.display();
            nest.warnings.push(format!("mount {at}: {what}"));
        };
        let follows = self.sharing.master.is_some() && (beside(self.sharing.master) || beside_own(false));
        if self.sharing.master.is_some() && !follows {
            lost("it no longer takes over what is mounted where it was copied from");
        }
        if let Some(group) = self.sharing.group
            && (groups.contains_key(&group) || own.is_some_and(|o| o.peer))
        {
            lost("what is mounted in it no longer spreads to where it was copied from, nor the other way");
        }
        if follows {
            set(self.tree, self.held.as_fd(), libc::MS_SLAVE, nest)?;
        }
        if self.sharing.group.is_some() {
            set(self.tree, self.held.as_fd(), libc::MS_SHARED, nest)?;
        }
        Ok(())
    }

    /// Makes it a peer of a mount of freeze's own tree, if that spreads.
    fn join_own(&self, own: &OwnGroup) -> nix::Result<()> {
        let there = nix::fcntl::open(&own.at, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
        ns::join_group(there.as_fd(), self.held.as_fd())
    }
}

fn set(tree: u32, mount: BorrowedFd<'_>, propagation: u64, nest: &Nest) -> Result<()> {
    let name = || format!("a mount of mount namespace {tree} of the image");
    let tree = nest.spaces.get(Kind::Mount, tree).ok_or(Errno::ENOENT);
    let attr = MountAttr {
        propagation,
        ..MountAttr::default()
    };
    ns::set_mount_in(tree.on("setns", name)?, mount, attr).on("mount_setattr", name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_mountinfo_are_understood() {
        let of = |words: &[&str]| Sharing::of(&words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>());
        assert!(of(&[]).is_private());
        let both = of(&["shared:7", "master:3", "propagate_from:1"]);
        assert_eq!((both.group, both.master), (Some(7), Some(3)));
        assert!(of(&["unbindable"]).unbindable);
    }
}
