//! The image on disk: a checkpoint is a directory that appears by rename, and this is its writer and reader.
//!
//! ```text
//! ID/manifest.json   what it is: sizes and checksums of the rest, and the checkpoints whose pages it needs
//! ID/records         frames: tag, version, checksum, MessagePack
//! ID/index           chunk table of the page file; per space the runs of pages and where they lie
//! ID/pages           the pages themselves, raw ("hot") or compressed ("cold")
//! ```
//! `docs/format.md` has every byte. A checksum is compared before what it covers is decoded or handed out.
//! Locks are flocks on directories: a writer holds its own exclusively, a reader every one whose pages it may
//! read in common with others, so that nothing is swept or pruned from under either.

mod draft;
mod frame;
mod id;
mod index;
mod manifest;
mod opened;
mod pages;
mod retention;
mod show;

pub use draft::{Committed, Draft, Options};
pub(crate) use frame::unpack;
pub use frame::{Frame, Record};
pub use id::CheckpointId;
pub use manifest::{About, Ancestor, Counts, FORMAT, Files, Manifest, Sum, utc};
pub use opened::{Content, Opened, Reader, Run, Verified, Where};
pub use pages::{Form, Pace, free_buffers};
pub use retention::{Kept, Pruned, Removed, Why};
pub use show::{Shown, ShownRecord, ShownSpace};

use crate::error::{Context, Error, Result};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::Serialize;
use std::fmt;
use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where checkpoints are kept unless something else is asked for.
pub const DEFAULT_DIR: &str = "/var/lib/freeze";

pub(crate) const MANIFEST: &str = "manifest.json";
pub(crate) const RECORDS: &str = "records";
pub(crate) const INDEX: &str = "index";
pub(crate) const PAGES: &str = "pages";
/// Marks what prune kept for the sake of later checkpoints only: its own ancestors may be gone.
pub(crate) const PAGES_ONLY: &str = "pages-only";
/// What an unfinished checkpoint is called until its rename.
pub(crate) const INCOMPLETE: &str = ".incomplete-";
/// What a pruned checkpoint is called while it is being removed.
pub(crate) const REMOVED: &str = ".removed-";

/// A directory of checkpoints.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
}

/// A checkpoint as far as its manifest tells.
#[derive(Clone, Debug, Serialize)]
pub struct Listed {
    pub id: CheckpointId,
    pub path: PathBuf,
    /// Absent if it cannot be read.
    pub manifest: Option<Arc<Manifest>>,
    /// Why not.
    pub damage: Option<String>,
    /// Kept by `prune` for its pages only: it cannot be restored itself.
    pub pages_only: bool,
}

impl fmt::Display for Listed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(m) = &self.manifest else {
            return write!(
                f,
                "{}  damaged: {}",
                self.id,
                self.damage.as_deref().unwrap_or("no manifest")
            );
        };
        let (c, a) = (&m.counts, &m.about);
        let mib = |bytes: u64| bytes as f64 / (1 << 20) as f64;
        write!(f, "{}  {}  {:>3} proc", self.id, utc(m.created_ms), a.processes)?;
        write!(
            f,
            "  {:>9.1} MiB in memory  {:>9.1} MiB here",
            mib(c.pages * 4096),
            mib(m.bytes())
        )?;
        write!(
            f,
            "  depth {:>2}  pause {:.1} ms",
            m.depth(),
            a.pause_us as f64 / 1000.0
        )?;
        if let Some(group) = &a.group {
            write!(f, "  [{group}]")?;
        }
        write!(f, "  {}", a.command.join(" "))?;
        if self.pages_only {
            f.write_str("  (kept for its pages only)")?;
        }
        Ok(())
    }
}

impl Store {
    /// The store in `dir`, which is created (mode 0700) if there is none.
    pub fn open(dir: &Path) -> Result<Store> {
        match DirBuilder::new().recursive(true).mode(0o700).create(dir) {
            Ok(()) => {}
            // A store on a read-only mount can still be read.
            Err(_) if dir.is_dir() => {}
            Err(e) => return Err(Error::io("mkdir", dir.display().to_string(), &e)),
        }
        let dir = dir.canonicalize().on("realpath", || dir.display().to_string())?;
        Ok(Store { dir })
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Begins a checkpoint, on top of `parent` if there is one.
    pub fn begin(&self, parent: Option<&Opened>, options: &Options) -> Result<Draft> {
        Draft::in_store(&self.dir, parent, options)
    }

    /// Begins a checkpoint that will be the directory `dir` itself, which must be empty or not exist.
    pub fn begin_at(dir: &Path, parent: Option<&Opened>, options: &Options) -> Result<Draft> {
        Draft::at(dir, parent, options)
    }

    /// Every committed checkpoint, damaged ones too, the newest last. Only manifests are read.
    pub fn list(&self) -> Result<Vec<Listed>> {
        let mut out = Vec::new();
        for (name, path) in entries(&self.dir)? {
            let Ok(id) = name.parse::<CheckpointId>() else {
                continue;
            };
            let read = opened::read_manifest(&path).and_then(|(m, _)| match m.id == id {
                true => Ok(m),
                false => Err(damaged(
                    &path.join(MANIFEST),
                    0,
                    format!("id {id}"),
                    m.id.to_string(),
                )),
            });
            let pages_only = path.join(PAGES_ONLY).exists();
            let (manifest, damage) = match read {
                Ok(m) => (Some(m), None),
                // Pruned since the directory was read.
                Err(_) if !path.exists() => continue,
                Err(e) => (None, Some(e.to_string())),
            };
            out.push(Listed {
                id,
                path,
                manifest,
                damage,
                pages_only,
            });
        }
        out.sort_by_key(|l| l.id);
        Ok(out)
    }

    /// Opens a checkpoint by its id, the beginning of its id, or the path of its directory.
    pub fn find(&self, name: &str) -> Result<Opened> {
        if name.contains('/') || name == "." || name == ".." {
            return Opened::open(Path::new(name));
        }
        let ids = entries(&self.dir)?
            .into_iter()
            .filter(|(n, _)| n.parse::<CheckpointId>().is_ok());
        let mut found: Vec<_> = ids
            .filter(|(n, _)| !name.is_empty() && n.starts_with(name))
            .collect();
        found.sort();
        match &found[..] {
            [(_, path)] => Opened::open(path),
            [] if Path::new(name).is_dir() => Opened::open(Path::new(name)),
            [] => Err(Error::Image {
                file: self.dir.join(name),
                offset: None,
                expected: "a checkpoint of this name".into(),
                found: "none".into(),
            }),
            several => Err(Error::Image {
                file: self.dir.join(name),
                offset: None,
                expected: "one checkpoint whose name begins like this".into(),
                found: several
                    .iter()
                    .map(|(n, _)| n.as_str())
                    .collect::<Vec<_>>()
                    .join(", "),
            }),
        }
    }

    /// The newest checkpoint of a group that can be opened, if there is one.
    pub fn newest(&self, group: &str) -> Result<Option<Opened>> {
        for l in self.list()?.iter().rev().filter(|l| !l.pages_only) {
            if l.manifest
                .as_ref()
                .is_some_and(|m| m.about.group.as_deref() == Some(group))
                && let Ok(opened) = Opened::open(&l.path)
            {
                return Ok(Some(opened));
            }
        }
        Ok(None)
    }
}

/// What is wrong in an image, and where.
pub(crate) fn damaged(
    file: &Path,
    offset: u64,
    expected: impl Into<String>,
    found: impl Into<String>,
) -> Error {
    Error::Image {
        file: file.into(),
        offset: Some(offset),
        expected: expected.into(),
        found: found.into(),
    }
}

/// Creates a file of an image, which must not exist, mode 0600.
pub(crate) fn create(path: &Path) -> Result<File> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .on("open", || path.display().to_string())
}

/// The names in a directory with their paths; a name that is not UTF-8 is shown as well as it goes.
pub(crate) fn entries(dir: &Path) -> Result<Vec<(String, PathBuf)>> {
    let name = || dir.display().to_string();
    let mut out = Vec::new();
    for entry in std::fs::read_dir(dir).on("readdir", name)? {
        let entry = entry.on("readdir", name)?;
        out.push((entry.file_name().to_string_lossy().into_owned(), entry.path()));
    }
    Ok(out)
}

/// Locks a directory; `None` if somebody else has it and `how` does not wait.
pub(crate) fn lock(dir: &Path, how: FlockArg) -> Result<Option<Flock<File>>> {
    let file = File::open(dir).on("open", || dir.display().to_string())?;
    match Flock::lock(file, how) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => Err(Error::kernel("flock", dir.display().to_string(), errno)),
    }
}

/// Makes the names in a directory durable.
pub(crate) fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir)
        .and_then(|f| f.sync_all())
        .on("fsync", || dir.display().to_string())
}

#[cfg(test)]
mod tests;
