//! A checkpoint being written: gone again when dropped, there for good when committed.

mod chain;

use super::frame::{FrameWriter, Record};
use super::index::{Entry, Index, Layer, OWN, What, ZERO};
use super::manifest::{About, Ancestor, Counts, Files, IndexFile, Manifest, PagesFile, RecordsFile, Sum};
use super::opened::Opened;
use super::pages::{CHUNK_PAGES, ENTRY, Form, Pace, PageWriter, is_zero};
use super::{CheckpointId, INCOMPLETE, INDEX, MANIFEST, PAGES, RECORDS, create, lock, retention, sync_dir};
use crate::error::{Context, Error, Result};
use crate::ids::{EVERYWHERE, PAGE, Range, SpaceId, intersect, normalize};
use crate::sys::fault;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::fs::{DirBuilder, File};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

/// How a checkpoint is written.
#[derive(Clone, Debug)]
pub struct Options {
    /// How the pages lie in the file.
    pub form: Form,
    /// How many checkpoints, itself included, reading this one may take; at least 1. When there would be
    /// more, what is needed of the smaller half of its ancestors is copied at commit.
    pub chain_limit: u32,
    /// Copy every inherited page, so that the checkpoint stands alone.
    pub squash: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            form: Form::default(),
            chain_limit: 64,
            squash: false,
        }
    }
}

/// Where the draft is, and how it becomes a checkpoint.
#[derive(Debug)]
enum Place {
    /// In a directory of another name, renamed at the end.
    Beside {
        now: PathBuf,
        then: PathBuf,
        in_store: bool,
    },
    /// In the directory itself, which was there already (it may be a mount point, that no rename
    /// reaches): it is a checkpoint when its manifest gets its name.
    Inside { dir: PathBuf },
}

impl Place {
    fn now(&self) -> &Path {
        match self {
            Place::Beside { now, .. } => now,
            Place::Inside { dir } => dir,
        }
    }

    fn then(&self) -> &Path {
        match self {
            Place::Beside { then, .. } => then,
            Place::Inside { dir } => dir,
        }
    }
}

/// The manifest's name until the directory is complete, if the directory cannot be renamed.
pub(crate) const UNFINISHED_MANIFEST: &str = "manifest.json.incomplete";

/// An unfinished checkpoint. Dropping it removes every trace.
#[derive(Debug)]
pub struct Draft {
    id: CheckpointId,
    created_ms: u64,
    options: Options,
    place: Place,
    parent: Option<Opened>,
    spaces: BTreeMap<SpaceId, Layer>,
    records: Option<FrameWriter>,
    /// Records that are still to be encoded.
    later: Vec<Later>,
    pages: Option<PageWriter>,
    committed: bool,
    /// Whether no page of an ancestor is copied for the sake of a shorter chain.
    leaves_chain: bool,
    /// Tells `sweep` that the writer lives.
    _lock: Flock<File>,
}

/// Encodes a record.
pub(crate) type Payload = Box<dyn FnOnce() -> Result<Vec<u8>>>;

/// How many records may wait to be encoded; what is in them, such as the contents of pipes, is held in memory.
const LATER: usize = 256;

struct Later {
    tag: &'static str,
    version: u16,
    payload: Payload,
}

impl fmt::Debug for Later {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.tag, self.version)
    }
}

/// Proof that a checkpoint is on disk, whole and durable.
#[derive(Clone, Debug, Serialize)]
pub struct Committed {
    pub id: CheckpointId,
    pub path: PathBuf,
    pub counts: Counts,
    /// The size of all its files.
    pub bytes: u64,
    /// How many checkpoints reading it takes, itself included.
    pub depth: u32,
    #[serde(skip)]
    _proof: Proof,
}

/// What only a commit can make.
#[derive(Clone, Debug)]
struct Proof;

impl fmt::Display for Committed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts { pages, own, .. } = self.counts;
        write!(
            f,
            "{}: {pages} pages, {own} of them stored here, {} bytes",
            self.id, self.bytes
        )
    }
}

impl Draft {
    /// In a store, under a new name.
    pub(crate) fn in_store(dir: &Path, parent: Option<&Opened>, options: &Options) -> Result<Draft> {
        let id = CheckpointId::fresh(parent.map(|p| p.id()));
        Draft::beside(id, id.millis(), dir, &dir.join(id.as_str()), parent, options)
    }

    /// As a directory of its own.
    pub(crate) fn at(dir: &Path, parent: Option<&Opened>, options: &Options) -> Result<Draft> {
        let id = CheckpointId::fresh(parent.map(|p| p.id()));
        let name = || dir.display().to_string();
        if dir.exists() {
            let dir = dir.canonicalize().on("realpath", name)?;
            let there = std::fs::read_dir(&dir)
                .on("readdir", name)?
                .filter_map(|e| e.ok());
            let there = there.map(|e| e.file_name()).filter(|n| n != "lost+found");
            let there: Vec<_> = there.map(|n| n.to_string_lossy().into_owned()).take(3).collect();
            if !there.is_empty() {
                let what = format!("{} (not empty: {} …)", dir.display(), there.join(", "));
                return Err(Error::kernel("checkpoint into", what, Errno::ENOTEMPTY));
            }
            let lock = lock(&dir, FlockArg::LockExclusiveNonblock)?;
            let lock = lock.ok_or(Errno::EBUSY).on("flock", name)?;
            return Draft::new(id, id.millis(), Place::Inside { dir }, lock, parent, options);
        }
        let above = match dir.parent() {
            Some(above) if above != Path::new("") => above,
            _ => Path::new("."),
        };
        let above = above
            .canonicalize()
            .on("realpath", || above.display().to_string())?;
        let last = dir.file_name().ok_or(Errno::EINVAL).on("mkdir", name)?;
        // Only leftovers of freeze's own with nobody writing: sweep looks closely.
        retention::sweep(&above);
        Draft::beside(id, id.millis(), &above, &above.join(last), parent, options)
    }

    /// Under a temporary name in `dir`, to be renamed to `then`.
    pub(crate) fn beside(
        id: CheckpointId,
        created_ms: u64,
        dir: &Path,
        then: &Path,
        parent: Option<&Opened>,
        options: &Options,
    ) -> Result<Draft> {
        let now = dir.join(format!("{INCOMPLETE}{id}"));
        let name = || now.display().to_string();
        // A sweep may take the directory for a leftover before it is locked; nobody does afterwards.
        for _ in 0..100 {
            DirBuilder::new().mode(0o700).create(&now).on("mkdir", name)?;
            let Ok(Some(lock)) = lock(&now, FlockArg::LockExclusiveNonblock) else {
                let _ = std::fs::remove_dir(&now);
                continue;
            };
            let locked = lock.metadata().on("stat", name)?;
            match now.metadata() {
                Ok(m) if m.ino() == locked.ino() => {
                    let in_store = then.file_name().is_some_and(|n| n == id.as_str());
                    let place = Place::Beside {
                        now,
                        then: then.into(),
                        in_store,
                    };
                    return Draft::new(id, created_ms, place, lock, parent, options);
                }
                _ => continue,
            }
        }
        Err(Error::kernel("flock", name(), Errno::EBUSY))
    }

    fn new(
        id: CheckpointId,
        created_ms: u64,
        place: Place,
        lock: Flock<File>,
        parent: Option<&Opened>,
        options: &Options,
    ) -> Result<Draft> {
        // From here on dropping it removes what was made.
        let mut draft = Draft {
            id,
            created_ms,
            options: options.clone(),
            place,
            parent: parent.cloned(),
            spaces: BTreeMap::new(),
            records: None,
            later: Vec::with_capacity(LATER),
            pages: None,
            committed: false,
            leaves_chain: false,
            _lock: lock,
        };
        draft.records = Some(FrameWriter::create(draft.file(RECORDS))?);
        draft.pages = Some(PageWriter::create(draft.file(PAGES), options.form)?);
        Ok(draft)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.place.now().join(name)
    }

    /// The name it will have.
    pub fn id(&self) -> &CheckpointId {
        &self.id
    }

    /// The checkpoint that pages can be inherited from.
    pub fn parent(&self) -> Option<&Opened> {
        self.parent.as_ref()
    }

    /// Appends a record. After an error the draft can no longer be committed.
    pub fn record<T: Record>(&mut self, record: &T) -> Result<()> {
        self.append(|records| records.record(record))
    }

    /// Appends a record whose payload (MessagePack with field names) is encoded already.
    pub fn raw_record(&mut self, tag: &str, version: u16, payload: &[u8]) -> Result<()> {
        self.append(|records| records.raw(tag, version, payload))
    }

    /// Appends a record whose payload is made when there is time: at the commit, or when too many of them wait.
    pub(crate) fn later(&mut self, tag: &'static str, version: u16, payload: Payload) -> Result<()> {
        if self.later.len() == LATER {
            self.encode()?;
        }
        self.later.push(Later {
            tag,
            version,
            payload,
        });
        Ok(())
    }

    /// Appends what waits to be encoded.
    fn encode(&mut self) -> Result<()> {
        for later in std::mem::take(&mut self.later) {
            let payload = (later.payload)()?;
            self.write(|records| records.raw(later.tag, later.version, &payload))?;
        }
        Ok(())
    }

    fn append(&mut self, write: impl FnOnce(&mut FrameWriter) -> Result<()>) -> Result<()> {
        self.encode()?;
        self.write(write)
    }

    fn write(&mut self, write: impl FnOnce(&mut FrameWriter) -> Result<()>) -> Result<()> {
        let object = || self.place.now().display().to_string();
        let mut records = self.records.take().ok_or(Errno::EBADF).on("write", object)?;
        // Half a frame may be in the file now: without the writer there is no commit.
        write(&mut records)?;
        self.records = Some(records);
        Ok(())
    }

    /// Names a space, so that it is in the checkpoint even if it has no pages.
    pub fn space(&mut self, space: SpaceId) {
        self.spaces.entry(space).or_default();
    }

    /// Stores pages of `space` from address `addr` on; both ends must be page-aligned. Pages of zeros are
    /// noted and not stored. A later word on the same page counts more than an earlier one.
    pub fn pages(&mut self, space: SpaceId, addr: u64, bytes: &[u8]) -> Result<()> {
        let end = addr.checked_add(bytes.len() as u64);
        let range = end
            .filter(|&end| addr.is_multiple_of(PAGE) && end % PAGE == 0)
            .map(|end| Range::new(addr, end));
        let object = || format!("{space}, {} bytes at {addr:x} (not whole pages)", bytes.len());
        range.ok_or(Errno::EINVAL).on("store", object)?;
        let layer = self.spaces.entry(space).or_default();
        let writer = writer(&mut self.pages, space)?;
        for (from, to, zero) in alike(bytes) {
            let what = match zero {
                true => What::Zero,
                false => What::Own(writer.push(&bytes[from * PAGE as usize..to * PAGE as usize])?),
            };
            let first = addr / PAGE;
            layer.set(first + from as u64, first + to as u64, Some(what));
        }
        Ok(())
    }

    /// The same of pages that `read` puts where they are written from, so that nobody has to copy them; of `range` so many as
    /// find room at once, which is returned. What it fails to read is not stored.
    pub fn fill<E>(
        &mut self,
        space: SpaceId,
        range: Range,
        read: impl FnOnce(Range, &mut [u8]) -> std::result::Result<(), E>,
    ) -> Result<(Range, std::result::Result<(), E>)> {
        let layer = self.spaces.entry(space).or_default();
        let writer = writer(&mut self.pages, space)?;
        let room = writer.room();
        let len = range.len().min(room.len() as u64);
        let part = Range::new(range.start, range.start + len);
        let piece = &mut room[..len as usize];
        if let Err(e) = read(part, piece) {
            return Ok((part, Err(e)));
        }
        let runs = alike(piece);
        // What is not zero moves together.
        let mut kept = 0;
        for (from, to, _) in runs.iter().filter(|(.., zero)| !zero) {
            let pages = from * PAGE as usize..to * PAGE as usize;
            let size = pages.len();
            if pages.start != kept {
                piece.copy_within(pages, kept);
            }
            kept += size;
        }
        let mut slot = writer.keep(kept)?;
        let first = part.start / PAGE;
        for (from, to, zero) in runs {
            let what = match zero {
                true => What::Zero,
                false => What::Own(slot),
            };
            layer.set(first + from as u64, first + to as u64, Some(what));
            slot += if zero { 0 } else { (to - from) as u64 };
        }
        Ok((part, Ok(())))
    }

    /// Leaves to the next checkpoint what only makes the chain better: a program stands still until this one is stored.
    pub fn leave_chain(&mut self) {
        self.leaves_chain = true;
    }

    /// How far the copying may be ahead of the writing from now on.
    pub fn pace(&mut self, pace: Pace) {
        if let Some(writer) = &mut self.pages {
            writer.set_pace(pace);
        }
    }

    /// Has memory made ready for about so many bytes.
    pub fn reserve(&mut self, bytes: u64) {
        if let Some(writer) = &mut self.pages {
            writer.reserve(bytes);
        }
    }

    /// Notes pages that are known to be zero, without looking at them.
    pub fn zero(&mut self, space: SpaceId, ranges: &[Range]) -> Result<()> {
        self.set(space, ranges, Some(What::Zero))
    }

    /// These pages are as in the parent; what the parent has no page for stays without one.
    pub fn inherit(&mut self, space: SpaceId, ranges: &[Range]) -> Result<()> {
        let missing = |found: &str| Error::Image {
            file: self.parent.as_ref().map_or(self.place.now(), |p| p.path()).into(),
            offset: None,
            expected: format!("a parent with the {space}"),
            found: found.into(),
        };
        let parent = self.parent.as_ref().ok_or_else(|| missing("no parent"))?;
        if !parent.has_space(space) {
            return Err(missing("a parent without it"));
        }
        self.set(space, ranges, Some(What::Parent))
    }

    /// These pages of `space` are what the draft says by now of the same pages of `of`: stored once for both. Returns
    /// those of which it says something.
    pub fn share(&mut self, space: SpaceId, of: SpaceId, ranges: &[Range]) -> Vec<Range> {
        let mut shared = Vec::new();
        let theirs = self.spaces.remove(&of).unwrap_or_default();
        let layer = self.spaces.entry(space).or_default();
        for r in ranges {
            for (start, end, what) in theirs.within(r.start / PAGE, r.end / PAGE) {
                let what = match what {
                    What::Parent => What::ParentOf(of),
                    what => what,
                };
                layer.set(start, end, Some(what));
                shared.push(Range::new(start * PAGE, end * PAGE));
            }
        }
        self.spaces.insert(of, theirs);
        normalize(shared)
    }

    /// The pages of `within` that it has contents for, its own or the parent's.
    pub fn stored(&self, space: SpaceId, within: &[Range]) -> Vec<Range> {
        let Some(layer) = self.spaces.get(&space) else {
            return Vec::new();
        };
        let mut stored = Vec::new();
        let mut inherited = BTreeMap::<SpaceId, Vec<Range>>::new();
        for r in within {
            for (start, end, what) in layer.within(r.start / PAGE, r.end / PAGE) {
                let run = Range::new(start * PAGE, end * PAGE);
                match what {
                    What::Parent => inherited.entry(space).or_default().push(run),
                    What::ParentOf(of) => inherited.entry(of).or_default().push(run),
                    _ => stored.push(run),
                }
            }
        }
        for (of, runs) in inherited {
            let theirs = self
                .parent
                .as_ref()
                .map(|parent| parent.ranges(of, EVERYWHERE, true));
            let theirs = theirs.unwrap_or_default();
            stored.extend(intersect(&normalize(runs), &theirs));
        }
        normalize(stored)
    }

    /// These pages are gone again.
    pub fn forget(&mut self, space: SpaceId, ranges: &[Range]) -> Result<()> {
        self.set(space, ranges, None)
    }

    fn set(&mut self, space: SpaceId, ranges: &[Range], what: Option<What>) -> Result<()> {
        let layer = self.spaces.entry(space).or_default();
        for r in ranges {
            if r.start % PAGE != 0 || r.end % PAGE != 0 {
                return Err(Error::kernel(
                    "store",
                    format!("{space}, {r} (not whole pages)"),
                    Errno::EINVAL,
                ));
            }
            layer.set(r.start / PAGE, r.end / PAGE, what);
        }
        Ok(())
    }

    /// Makes it a checkpoint: when this returns it is whole, durable and can be found.
    pub fn commit(mut self, about: About) -> Result<Committed> {
        fault::point("commit")?;
        self.encode()?;
        let mut manifest = Manifest::new(self.id, self.created_ms);
        manifest.about = about;
        manifest.parent = match &self.parent {
            Some(p) => Some(self.ancestor(p.id(), p.manifest_sum(), p.path())?),
            None => None,
        };
        let mut index = self.resolve()?;
        manifest.chain = self.shorten(&mut index, &mut manifest.counts)?;
        let mut own = Vec::new();
        for run in &index.runs {
            let pages = u64::from(run.pages);
            manifest.counts.pages += pages;
            *match run.source {
                ZERO => &mut manifest.counts.zero,
                OWN => &mut manifest.counts.own,
                _ => &mut manifest.counts.inherited,
            } += pages;
            if run.source == OWN {
                own.push(Range::new(run.slot, run.slot + pages));
            }
        }
        // Pages that several spaces share are in the file once.
        let stored: u64 = normalize(own).iter().map(|r| r.len()).sum();

        let object = self.place.now().display().to_string();
        let writer = self
            .pages
            .take()
            .ok_or(Errno::EBADF)
            .on("commit", || object.clone())?;
        let table = writer.finish()?;
        manifest.counts.dead = table.slots.saturating_sub(stored);
        let mut tables = Vec::with_capacity(table.chunks.len() * ENTRY);
        table.chunks.iter().for_each(|c| c.encode(&mut tables));
        let runs = index.encode();
        let index_path = self.file(INDEX);
        let mut index_file = create(&index_path)?;
        let name = || index_path.display().to_string();
        index_file.write_all(&tables).on("write", name)?;
        index_file.write_all(&runs).on("write", name)?;

        let records = self
            .records
            .take()
            .ok_or(Errno::EBADF)
            .on("commit", || object.clone())?;
        let (records_bytes, frames) = (records.bytes, records.frames);
        let (records_file, records_sum) = records.finish()?;
        manifest.files = Files {
            records: RecordsFile {
                bytes: records_bytes,
                frames,
                checksum: records_sum,
            },
            index: IndexFile {
                bytes: (tables.len() + runs.len()) as u64,
                chunks: table.chunks.len() as u64,
                spaces: index.spaces.len() as u64,
                runs: index.runs.len() as u64,
                chunks_checksum: Sum::of(&tables),
                runs_checksum: Sum::of(&runs),
            },
            pages: PagesFile {
                bytes: table.bytes,
                slots: table.slots,
                chunk_pages: CHUNK_PAGES,
                form: self.options.form,
            },
        };
        let inside = matches!(self.place, Place::Inside { .. });
        let manifest_path = self.file(if inside { UNFINISHED_MANIFEST } else { MANIFEST });
        let mut manifest_file = create(&manifest_path)?;
        manifest_file
            .write_all(&manifest.seal()?.0)
            .on("write", || manifest_path.display().to_string())?;

        for (file, name) in [
            (&table.file, PAGES),
            (&index_file, INDEX),
            (&records_file, RECORDS),
            (&manifest_file, MANIFEST),
        ] {
            file.sync_all()
                .on("fsync", || self.file(name).display().to_string())?;
        }
        sync_dir(self.place.now())?;
        fault::point("publish")?;
        self.publish()?;
        self.committed = true;
        Ok(Committed {
            id: self.id,
            path: self.place.then().into(),
            counts: manifest.counts,
            bytes: manifest.bytes(),
            depth: manifest.depth(),
            _proof: Proof,
        })
    }

    /// Gives it its name, durably.
    fn publish(&mut self) -> Result<()> {
        match &mut self.place {
            Place::Inside { dir } => {
                let to = dir.join(MANIFEST);
                std::fs::rename(dir.join(UNFINISHED_MANIFEST), &to)
                    .on("rename", || to.display().to_string())?;
                sync_dir(dir)
            }
            Place::Beside { now, then, in_store } => {
                let above = then.parent().unwrap_or(Path::new("/")).to_path_buf();
                // Not while somebody prunes by a list in which this one is missing.
                let store = if *in_store {
                    lock(&above, FlockArg::LockShared)?
                } else {
                    None
                };
                std::fs::rename(&now, &then).on("rename", || then.display().to_string())?;
                drop(store);
                // If it cannot be made durable, it is removed under its new name.
                *now = then.clone();
                sync_dir(&above)
            }
        }
    }

    /// Every page of the draft with its place; sources count as in the parent, one further: 0 is the draft,
    /// 1 the parent itself, 2 the first of the parent's chain. Linear in the runs of both.
    fn resolve(&self) -> Result<Index> {
        let mut index = Index::default();
        for (&space, layer) in &self.spaces {
            index.open_space(space);
            let above = self
                .parent
                .as_ref()
                .and_then(|p| p.entries(space))
                .unwrap_or_default();
            let mut next = 0;
            for (start, end, what) in layer.iter() {
                match what {
                    What::Zero => index.push(start, end - start, 0, ZERO),
                    What::Own(slot) => index.push(start, end - start, slot, OWN),
                    What::Parent => {
                        while next < above.len() && above[next].end() <= start {
                            next += 1;
                        }
                        // The last of these may reach into the next range of the draft too.
                        inherit(&mut index, &above[next..], start, end);
                    }
                    What::ParentOf(other) => {
                        let theirs = self.parent.as_ref().and_then(|p| p.entries(other));
                        let theirs = theirs.unwrap_or_default();
                        let first = theirs.partition_point(|r| r.end() <= start);
                        inherit(&mut index, &theirs[first..], start, end);
                    }
                }
            }
        }
        Ok(index)
    }

    /// How this checkpoint names another.
    fn ancestor(&self, id: CheckpointId, manifest: Sum, path: &Path) -> Result<Ancestor> {
        let hint = relative(self.place.then(), path);
        let hint = hint
            .to_str()
            .ok_or(Errno::EILSEQ)
            .on("name", || format!("{} (not UTF-8)", path.display()))?;
        Ok(Ancestor {
            id,
            manifest,
            path: hint.into(),
        })
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if self.committed {
            return;
        }
        // The writing thread ends before its file goes.
        self.pages = None;
        self.records = None;
        let dir = self.place.now();
        for name in [MANIFEST, UNFINISHED_MANIFEST, INDEX, PAGES, RECORDS] {
            let _ = std::fs::remove_file(dir.join(name));
        }
        if let Place::Beside { now, .. } = &self.place {
            let _ = std::fs::remove_dir(now);
        }
    }
}

/// Adds what the parent has in `[start, end)`; `above` are its runs from there on.
fn inherit(index: &mut Index, above: &[Entry], start: u64, end: u64) {
    for run in above.iter().take_while(|r| r.start < end) {
        let part = run.cut(start, end);
        let source = if part.source == ZERO {
            ZERO
        } else {
            part.source + 1
        };
        index.push(part.start, u64::from(part.pages), part.slot, source);
    }
}

/// The way from one absolute path to another.
fn relative(from: &Path, to: &Path) -> PathBuf {
    let (a, b): (Vec<Component<'_>>, Vec<Component<'_>>) =
        (from.components().collect(), to.components().collect());
    let common = a.iter().zip(&b).take_while(|(a, b)| a == b).count();
    let up = a[common..].iter().map(|_| Component::ParentDir);
    up.chain(b[common..].iter().copied()).collect()
}

fn writer(pages: &mut Option<PageWriter>, space: SpaceId) -> Result<&mut PageWriter> {
    pages
        .as_mut()
        .ok_or(Errno::EBADF)
        .on("store", || space.to_string())
}

/// The pages of `bytes` in runs that are all zero or all not: first page, the one after the last, and which.
fn alike(bytes: &[u8]) -> Vec<(usize, usize, bool)> {
    let mut runs: Vec<(usize, usize, bool)> = Vec::new();
    for (n, page) in bytes.chunks_exact(PAGE as usize).enumerate() {
        let zero = is_zero(page);
        match runs.last_mut() {
            Some((_, to, same)) if *same == zero => *to = n + 1,
            _ => runs.push((n, n + 1, zero)),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hint_leads_from_one_directory_to_another() {
        assert_eq!(
            relative(Path::new("/a/b/c"), Path::new("/a/b/d")),
            Path::new("../d")
        );
        assert_eq!(
            relative(Path::new("/a/b"), Path::new("/x/y/z")),
            Path::new("../../x/y/z")
        );
        assert_eq!(relative(Path::new("/a"), Path::new("/a/b")), Path::new("b"));
    }
}
