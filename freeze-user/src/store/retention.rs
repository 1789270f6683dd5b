//! What stays and what goes: pruning old checkpoints, sweeping up after dead writers, verifying all.

use super::draft::UNFINISHED_MANIFEST;
use super::opened::{Opened, Verified};
use super::{
    CheckpointId, INCOMPLETE, INDEX, Listed, MANIFEST, PAGES, PAGES_ONLY, RECORDS, REMOVED, Store, create,
    entries, lock, sync_dir,
};
use crate::error::{Context, Result};
use nix::fcntl::FlockArg;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

/// Why a checkpoint that was not asked for stays all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// One that stays has pages in it.
    NeededBy(CheckpointId),
    /// Somebody reads it, or makes another on top of it.
    InUse,
    /// Its manifest cannot be read: a human must decide.
    Damaged,
}

/// A checkpoint that stays although it is not among the newest.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Kept {
    pub id: CheckpointId,
    pub why: Why,
}

/// A checkpoint that is gone.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Removed {
    pub id: CheckpointId,
    pub bytes: u64,
}

/// What `prune` did.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Pruned {
    pub removed: Vec<Removed>,
    /// The older ones that stay, with the reason; the newest are not listed.
    pub kept: Vec<Kept>,
    pub freed_bytes: u64,
}

impl fmt::Display for Pruned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for r in &self.removed {
            writeln!(f, "{}  removed, {} bytes", r.id, r.bytes)?;
        }
        for k in &self.kept {
            match k.why {
                Why::NeededBy(by) => writeln!(f, "{}  kept: {by} has pages in it", k.id)?,
                Why::InUse => writeln!(f, "{}  kept: in use", k.id)?,
                Why::Damaged => writeln!(f, "{}  kept: damaged", k.id)?,
            }
        }
        write!(
            f,
            "{} removed, {} bytes freed",
            self.removed.len(),
            self.freed_bytes
        )
    }
}

impl Store {
    /// Removes all but the newest `keep` of a group (of each group by itself, if none is named; those
    /// without a group count as one), and but those whose pages the remaining ones need. Of the latter, those
    /// that lose ancestors of their own are marked as no longer restorable.
    pub fn prune(&self, keep: usize, group: Option<&str>) -> Result<Pruned> {
        let mut out = Pruned::default();
        // No checkpoint appears between the list and the renames; what is being made on top of a listed
        // one has that and its ancestors locked.
        let store = lock(&self.dir, FlockArg::LockExclusive)?;
        let list = self.list()?;
        let mut seen: BTreeMap<Option<&str>, usize> = BTreeMap::new();
        let mut stays: BTreeSet<CheckpointId> = BTreeSet::new();
        let mut needed: BTreeMap<CheckpointId, CheckpointId> = BTreeMap::new();
        for l in list.iter().rev() {
            let Some(m) = &l.manifest else { continue };
            let own = m.about.group.as_deref();
            let asked = group.is_none() || own == group;
            if l.pages_only && asked {
                continue;
            }
            let newer = seen.entry(own).or_default();
            if !asked || *newer < keep {
                stays.insert(l.id);
                for ancestor in &m.chain {
                    needed.entry(ancestor.id).or_insert(l.id);
                }
            }
            *newer += 1;
        }
        let mut goes: Vec<(&Listed, _)> = Vec::new();
        for l in list.iter().rev().filter(|l| !stays.contains(&l.id)) {
            let why = match (&l.manifest, needed.get(&l.id)) {
                (_, Some(&by)) => Why::NeededBy(by),
                (None, None) => Why::Damaged,
                (Some(_), None) => match lock(&l.path, FlockArg::LockExclusiveNonblock)? {
                    Some(lock) => {
                        goes.push((l, lock));
                        continue;
                    }
                    None => Why::InUse,
                },
            };
            out.kept.push(Kept { id: l.id, why });
        }
        let going: BTreeSet<CheckpointId> = goes.iter().map(|(l, _)| l.id).collect();
        for l in &list {
            let Some(m) = &l.manifest else { continue };
            let loses = !going.contains(&l.id) && m.chain.iter().any(|a| going.contains(&a.id));
            if loses && !l.pages_only {
                create(&l.path.join(PAGES_ONLY))?;
                sync_dir(&l.path)?;
            }
        }
        let mut doomed = Vec::new();
        for (l, lock) in goes {
            let to = self.dir.join(format!("{REMOVED}{}", l.id));
            std::fs::rename(&l.path, &to).on("rename", || l.path.display().to_string())?;
            let bytes = l.manifest.as_ref().map_or(0, |m| m.bytes());
            out.removed.push(Removed { id: l.id, bytes });
            out.freed_bytes += bytes;
            doomed.push((to, lock));
        }
        sync_dir(&self.dir)?;
        drop(store);
        for (path, lock) in doomed {
            remove(&path)?;
            drop(lock);
        }
        Ok(out)
    }

    /// Removes what writers that died have left unfinished, and what a prune that died has left.
    pub fn sweep(&self) -> Vec<PathBuf> {
        sweep(&self.dir)
    }

    /// Reads everything in the store, each file once; the newest last.
    pub fn verify_all(&self) -> Result<Vec<(Listed, Result<Verified>)>> {
        let list = self.list()?;
        Ok(list
            .into_iter()
            .map(|l| {
                // What prune kept for its pages is read as far as it is still whole.
                let elsewhere = |ancestor: &Path| ancestor.parent() != Some(self.dir());
                let result = Opened::open_as(&l.path, l.pages_only).and_then(|o| o.verify_where(elsewhere));
                (l, result)
            })
            .collect())
    }
}

/// Removes unfinished checkpoints in `dir` whose writer holds no lock any more, and half-removed ones.
pub(crate) fn sweep(dir: &Path) -> Vec<PathBuf> {
    let mut gone = Vec::new();
    for (name, path) in entries(dir).unwrap_or_default() {
        let id = name
            .strip_prefix(INCOMPLETE)
            .or_else(|| name.strip_prefix(REMOVED));
        if id.is_none_or(|id| id.parse::<CheckpointId>().is_err()) {
            continue;
        }
        let Ok(Some(lock)) = lock(&path, FlockArg::LockExclusiveNonblock) else {
            continue;
        };
        if remove(&path).is_ok() {
            gone.push(path);
        }
        drop(lock);
    }
    gone
}

/// Removes a directory of freeze's, but nothing in it that is not freeze's.
fn remove(dir: &Path) -> Result<()> {
    for name in [MANIFEST, UNFINISHED_MANIFEST, PAGES_ONLY, INDEX, RECORDS, PAGES] {
        match std::fs::remove_file(dir.join(name)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(e).on("unlink", || dir.join(name).display().to_string());
            }
            _ => {}
        }
    }
    std::fs::remove_dir(dir).on("rmdir", || dir.display().to_string())
}
