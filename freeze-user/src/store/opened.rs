//! A checkpoint being read: nothing of it is handed out before its checksum was compared.

use super::draft::UNFINISHED_MANIFEST;
use super::frame::{self, Frame, Record};
use super::index::{Entry, Index, OWN, SHORTEST_RUN, Tables, ZERO};
use super::manifest::{Ancestor, Manifest, Sum};
use super::pages::{Cache, Chunk, ENTRY, Form, PageFile, Unpack};
use super::{CheckpointId, INDEX, MANIFEST, PAGES, PAGES_ONLY, RECORDS, damaged, entries, lock};
use crate::error::{Error, Result};
use crate::ids::{EVERYWHERE, PAGE, Range, SpaceId};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::Serialize;
use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A checkpoint whose manifest, records and index were found right, and whose ancestors are all there.
/// Clones are cheap and share it. While one lives, `prune` leaves it and its ancestors alone.
#[derive(Clone, Debug)]
pub struct Opened(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    manifest: Arc<Manifest>,
    manifest_sum: Sum,
    frames: Vec<Frame>,
    index: Index,
    /// Its own page file, then those of the chain in the manifest's order.
    sources: Vec<PageFile>,
    /// Directory and manifest checksum of each ancestor in the chain.
    chain: Vec<(CheckpointId, Sum, PathBuf)>,
    _locks: Vec<Flock<File>>,
}

/// Pages that follow each other in memory and in the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    pub range: Range,
    pub at: Where,
}

/// Where the pages of a run are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Where {
    /// They are zero.
    Zero,
    /// In the page file number `source` (0: this checkpoint's, from 1: the chain's) from page `slot` on.
    Stored { source: u32, slot: u64 },
}

/// What pages hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content<'a> {
    Zero,
    Bytes(&'a [u8]),
}

/// What `verify` has read and found right.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Verified {
    pub records: u64,
    pub chunks: u64,
    /// Of page files, its own and its ancestors'.
    pub bytes: u64,
}

impl fmt::Display for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "intact: {} records, {} chunks of pages, {} bytes",
            self.records, self.chunks, self.bytes
        )
    }
}

/// Reads and checks a manifest alone.
pub(crate) fn read_manifest(dir: &Path) -> Result<(Arc<Manifest>, Sum)> {
    let path = dir.join(MANIFEST);
    let bytes = std::fs::read(&path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => missing(&path, "the manifest of a checkpoint"),
        _ => Error::io("read", path.display().to_string(), &e),
    })?;
    Manifest::unseal(&bytes, &path)
}

fn missing(path: &Path, expected: impl Into<String>) -> Error {
    let found = "no such file or directory".into();
    Error::Image {
        file: path.into(),
        offset: None,
        expected: expected.into(),
        found,
    }
}

/// Opens a file of an image and makes sure that it is as long as the manifest says.
fn open_sized(path: &Path, bytes: u64) -> Result<File> {
    let file = File::open(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => missing(path, format!("a file of {bytes} bytes")),
        _ => Error::io("open", path.display().to_string(), &e),
    })?;
    let len = file
        .metadata()
        .map_err(|e| Error::io("stat", path.display().to_string(), &e))?
        .len();
    match len == bytes {
        true => Ok(file),
        false => Err(damaged(
            path,
            len.min(bytes),
            format!("a file of {bytes} bytes"),
            format!("{len} bytes"),
        )),
    }
}

/// Reads a part of an image's file whose bounds were compared with the file's size.
fn read_part(file: &File, path: &Path, offset: u64, len: u64, sum: Sum, what: &str) -> Result<Vec<u8>> {
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(&mut bytes, offset)
        .map_err(|e| Error::io("read", path.display().to_string(), &e))?;
    let found = Sum::of(&bytes);
    match found == sum {
        true => Ok(bytes),
        false => Err(damaged(
            path,
            offset,
            format!("{what} with checksum {sum}"),
            found.to_string(),
        )),
    }
}

/// Opens the page file of the checkpoint in `dir`, checking its chunk table.
fn open_pages(dir: &Path, manifest: &Manifest) -> Result<(PageFile, File)> {
    let (path, about) = (dir.join(INDEX), &manifest.files.index);
    let fixed = about.chunks.checked_add(about.spaces);
    let fixed = fixed.and_then(|n| n.checked_mul(ENTRY as u64));
    let runs = fixed.and_then(|n| about.bytes.checked_sub(n));
    let right = |bytes: u64| match manifest.format {
        1 => about.runs.checked_mul(ENTRY as u64) == Some(bytes),
        _ => about.runs <= bytes / SHORTEST_RUN,
    };
    if !runs.is_some_and(right) {
        let found = format!(
            "{} chunks, {} spaces, {} runs",
            about.chunks, about.spaces, about.runs
        );
        return Err(damaged(
            &dir.join(MANIFEST),
            0,
            format!("counts for an index of {} bytes", about.bytes),
            found,
        ));
    }
    let index = open_sized(&path, about.bytes)?;
    let len = about.chunks * ENTRY as u64;
    let bytes = read_part(&index, &path, 0, len, about.chunks_checksum, "a chunk table")?;
    let chunks = bytes.chunks_exact(ENTRY).map(Chunk::decode).collect();
    let pages = dir.join(PAGES);
    let file = open_sized(&pages, manifest.files.pages.bytes)?;
    Ok((
        PageFile::new(pages, file, &manifest.files.pages, chunks, &path)?,
        index,
    ))
}

impl Opened {
    /// Opens the checkpoint in the directory `dir`.
    pub fn open(dir: &Path) -> Result<Opened> {
        Opened::open_as(dir, false)
    }

    /// As `open`; with `pages_only` also what `prune` kept for others, and then without its ancestors.
    pub(crate) fn open_as(dir: &Path, pages_only: bool) -> Result<Opened> {
        let path = dir.canonicalize().map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => missing(dir, "the directory of a checkpoint"),
            _ => Error::io("realpath", dir.display().to_string(), &e),
        })?;
        // Not before there is a manifest: a directory that is being written is locked for as long as that takes.
        let (manifest, manifest_sum) = read_manifest(&path)?;
        let mut locks = vec![];
        locks.extend(shared(&path)?);
        for (name, file) in entries(&path)? {
            match name.as_str() {
                MANIFEST | RECORDS | INDEX | PAGES | "lost+found" => {}
                PAGES_ONLY if pages_only => {}
                PAGES_ONLY => {
                    let expected = "a whole checkpoint".into();
                    let found = "only its pages, kept by prune for the checkpoints that need them".into();
                    return Err(Error::Image {
                        file: path,
                        offset: None,
                        expected,
                        found,
                    });
                }
                _ => {
                    let expected = "nothing but the files of a checkpoint".into();
                    let found = match name.as_str() {
                        UNFINISHED_MANIFEST => "the manifest of an unfinished one".into(),
                        _ => "a file of another kind".into(),
                    };
                    return Err(Error::Image {
                        file,
                        offset: None,
                        expected,
                        found,
                    });
                }
            }
        }
        let (own, index_file) = open_pages(&path, &manifest)?;

        let about = &manifest.files.records;
        let records = path.join(RECORDS);
        let file = open_sized(&records, about.bytes)?;
        let mut bytes = vec![0; about.bytes as usize];
        file.read_exact_at(&mut bytes, 0)
            .map_err(|e| Error::io("read", records.display().to_string(), &e))?;
        // The frames' own checksums come first: they know better where the damage is.
        let frames = frame::parse(&bytes, &records)?;
        let found = Sum::of(&bytes);
        if found != about.checksum || frames.len() as u64 != about.frames {
            let expected = format!("{} frames with checksum {}", about.frames, about.checksum);
            return Err(damaged(
                &records,
                0,
                expected,
                format!("{} frames with {found}", frames.len()),
            ));
        }

        let mut sources = vec![own];
        let mut chain = Vec::new();
        for ancestor in &manifest.chain {
            if pages_only {
                break;
            }
            let (dir, manifest) = resolve(&path, ancestor)?;
            locks.extend(shared(&dir)?);
            sources.push(open_pages(&dir, &manifest)?.0);
            chain.push((ancestor.id, ancestor.manifest, dir));
        }
        let about = &manifest.files.index;
        let base = about.chunks * ENTRY as u64;
        let file = path.join(INDEX);
        let bytes = read_part(
            &index_file,
            &file,
            base,
            about.bytes - base,
            about.runs_checksum,
            "space and run tables",
        )?;
        let slots: Vec<u64> = match pages_only {
            true => Vec::new(),
            false => sources.iter().map(|s| s.slots).collect(),
        };
        let index = match pages_only {
            true => Index::default(),
            false => {
                let tables = Tables {
                    bytes: &bytes,
                    format: manifest.format,
                    spaces: about.spaces as usize,
                    runs: about.runs as usize,
                    file: &file,
                    base,
                };
                Index::decode(&tables, &slots)?
            }
        };
        Ok(Opened(Arc::new(Inner {
            path,
            manifest,
            manifest_sum,
            frames,
            index,
            sources,
            chain,
            _locks: locks,
        })))
    }

    /// Its name.
    pub fn id(&self) -> CheckpointId {
        self.0.manifest.id
    }

    /// Its directory, absolute.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// What it says of itself.
    pub fn manifest(&self) -> &Manifest {
        &self.0.manifest
    }

    pub(crate) fn manifest_sum(&self) -> Sum {
        self.0.manifest_sum
    }

    /// How many checkpoints reading it takes, itself included.
    pub fn depth(&self) -> u32 {
        self.0.manifest.depth()
    }

    /// Every record, in the order of writing.
    pub fn records(&self) -> &[Frame] {
        &self.0.frames
    }

    /// The record in a frame.
    pub fn decode<T: Record>(&self, frame: &Frame) -> Result<T> {
        frame.decode(&self.0.path.join(RECORDS))
    }

    /// Every record of one kind, in the order of writing.
    pub fn all<T: Record>(&self) -> Result<Vec<T>> {
        self.0
            .frames
            .iter()
            .filter(|f| f.tag == T::TAG)
            .map(|f| self.decode(f))
            .collect()
    }

    /// The record of a kind of which there is exactly one.
    pub fn one<T: Record>(&self) -> Result<T> {
        let mut all = self.all::<T>()?;
        match (all.pop(), all.len()) {
            (Some(only), 0) => Ok(only),
            (last, more) => Err(Error::Image {
                file: self.0.path.join(RECORDS),
                offset: None,
                expected: format!("one record {:?}", T::TAG),
                found: format!("{}", more + usize::from(last.is_some())),
            }),
        }
    }

    /// An error if there is a record that nobody has decoded: to restore without it would lose state.
    pub fn leftovers(&self) -> Result<()> {
        match self.0.frames.iter().find(|f| !f.is_taken()) {
            None => Ok(()),
            Some(f) => Err(damaged(
                &self.0.path.join(RECORDS),
                f.offset,
                "only records that this freeze knows",
                format!("a record {:?} of version {}", f.tag, f.version),
            )),
        }
    }

    /// The spaces in it, in order.
    pub fn spaces(&self) -> impl Iterator<Item = SpaceId> + '_ {
        self.0.index.spaces.iter().map(|s| s.space)
    }

    /// Whether it has pages of `space`, or at least says that there are none.
    pub fn has_space(&self, space: SpaceId) -> bool {
        self.0.index.runs(space).is_some()
    }

    pub(crate) fn entries(&self, space: SpaceId) -> Option<&[Entry]> {
        self.0.index.runs(space)
    }

    pub(crate) fn sources(&self) -> &[PageFile] {
        &self.0.sources
    }

    /// Name, manifest checksum and directory of source `n`: 0 is the checkpoint itself.
    pub(crate) fn source(&self, n: usize) -> (CheckpointId, Sum, &Path) {
        match n.checked_sub(1) {
            None => (self.id(), self.0.manifest_sum, &self.0.path),
            Some(i) => {
                let (id, sum, path) = &self.0.chain[i];
                (*id, *sum, path)
            }
        }
    }

    /// The runs of a space, sorted by address; none if the space is not there.
    pub fn runs(&self, space: SpaceId) -> impl Iterator<Item = Run> + '_ {
        self.entries(space).unwrap_or_default().iter().map(run)
    }

    /// The pages of a space in `within` that it has, neighbours joined wherever they lie; without `zero`, only those that
    /// are not zero.
    pub fn ranges(&self, space: SpaceId, within: Range, zero: bool) -> Vec<Range> {
        let entries = self.entries(space).unwrap_or_default();
        let first = entries.partition_point(|e| e.end() * PAGE <= within.start);
        let inside = entries[first..]
            .iter()
            .take_while(|e| e.start * PAGE < within.end)
            .filter(|e| zero || e.source != ZERO);
        let mut out: Vec<Range> = Vec::new();
        for r in inside.filter_map(|e| run(e).range.intersect(within)) {
            match out.last_mut() {
                Some(last) if last.end == r.start => last.end = r.end,
                _ => out.push(r),
            }
        }
        out
    }

    /// The source that most pages of a space come from, if there are others.
    pub(crate) fn bulk(&self, space: SpaceId) -> Option<u32> {
        let mut pages = vec![0u64; self.0.sources.len()];
        for e in self.entries(space).unwrap_or_default() {
            if let Some(count) = pages.get_mut(e.source as usize) {
                *count += u64::from(e.pages);
            }
        }
        let most = (0u32..).zip(&pages).max_by_key(|(_, count)| **count)?.0;
        (pages.iter().filter(|count| **count > 0).count() > 1).then_some(most)
    }

    /// The file and the offset in it from which a run can be mapped; only once the checksums of all of it
    /// were found right. `None` for zero pages and for cold ones.
    pub fn mappable(&self, run: &Run) -> Result<Option<(&File, u64)>> {
        let Where::Stored { source, slot } = run.at else {
            return Ok(None);
        };
        let Some(from) = self.0.sources.get(source as usize) else {
            return Ok(None);
        };
        if from.form != Form::Hot {
            return Ok(None);
        }
        Cache::default().read(source, from, slot..slot + run.range.pages(), |_, _| Ok(()))?;
        Ok(Some((&from.file, slot * PAGE)))
    }

    /// Reads pages over and over; keeps some of them.
    pub fn reader(&self) -> Reader<'_> {
        Reader {
            image: self,
            cache: Cache::default(),
        }
    }

    /// Reads `range` of a space; a page that the checkpoint does not have is an error.
    pub fn read(&self, space: SpaceId, range: Range, out: &mut [u8]) -> Result<()> {
        self.reader().read(space, range, out)
    }

    /// Hands out every page of a space in order of address.
    pub fn for_each_run(
        &self,
        space: SpaceId,
        f: impl FnMut(Range, Content<'_>) -> Result<()>,
    ) -> Result<()> {
        self.reader().for_each_in(space, EVERYWHERE, f)
    }

    /// Reads all of it and of what it needs of its ancestors.
    pub fn verify(&self) -> Result<Verified> {
        self.verify_where(|_| true)
    }

    /// Reads all of it, and what it needs of those ancestors whose directory is `wanted`.
    pub(crate) fn verify_where(&self, wanted: impl Fn(&Path) -> bool) -> Result<Verified> {
        let mut chunks: Vec<BTreeSet<u64>> = vec![BTreeSet::new(); self.0.sources.len()];
        chunks[0].extend(0..self.0.sources[0].chunk_count());
        for e in self
            .0
            .index
            .runs
            .iter()
            .filter(|e| e.source != ZERO && e.source != OWN)
        {
            let source = e.source as usize;
            let from = &self.0.sources[source];
            let last = e.slot + u64::from(e.pages) - 1;
            chunks[source].extend(from.locate(e.slot).0..=from.locate(last).0);
        }
        let mut done = Verified {
            records: self.0.frames.len() as u64,
            ..Verified::default()
        };
        let (mut buffer, mut unpack) = (Vec::new(), Unpack::default());
        for (source, chunks) in chunks.iter().enumerate() {
            if source > 0 && !wanted(self.source(source).2) {
                continue;
            }
            for &n in chunks {
                self.0.sources[source].read_chunk(n, &mut buffer, &mut unpack)?;
                done.chunks += 1;
                done.bytes += buffer.len() as u64;
            }
        }
        Ok(done)
    }
}

fn run(e: &Entry) -> Run {
    let at = match e.source {
        ZERO => Where::Zero,
        source => Where::Stored { source, slot: e.slot },
    };
    Run {
        range: Range::new(e.start * PAGE, e.end() * PAGE),
        at,
    }
}

/// A lock that keeps a checkpoint from being pruned; none where the file system has no locks.
fn shared(dir: &Path) -> Result<Option<Flock<File>>> {
    match lock(dir, FlockArg::LockShared) {
        Err(Error::Kernel {
            errno: Errno::EBADF | Errno::ENOLCK | Errno::EOPNOTSUPP,
            ..
        }) => Ok(None),
        other => other,
    }
}

/// Finds an ancestor: beside the checkpoint under its own name, or where it was when the child was made.
fn resolve(dir: &Path, ancestor: &Ancestor) -> Result<(PathBuf, Arc<Manifest>)> {
    let above = dir.parent().unwrap_or(dir);
    let beside = above.join(ancestor.id.as_str());
    let mut trouble = None;
    for place in [beside.clone(), dir.join(&ancestor.path)] {
        if !place.join(MANIFEST).exists() {
            continue;
        }
        let place = place
            .canonicalize()
            .map_err(|e| Error::io("realpath", place.display().to_string(), &e))?;
        match read_manifest(&place) {
            Ok((m, sum)) if m.id == ancestor.id && sum == ancestor.manifest => return Ok((place, m)),
            Ok((m, sum)) => {
                let expected = format!(
                    "checkpoint {} with manifest checksum {}",
                    ancestor.id, ancestor.manifest
                );
                let found = format!("checkpoint {} with {sum}", m.id);
                trouble.get_or_insert(damaged(&place.join(MANIFEST), 0, expected, found));
            }
            Err(e) => {
                trouble.get_or_insert(e);
            }
        }
    }
    Err(trouble.unwrap_or_else(|| Error::Image {
        file: beside,
        offset: None,
        expected: format!(
            "checkpoint {}, whose pages {} needs, here or in {}",
            ancestor.id,
            dir.display(),
            ancestor.path
        ),
        found: "no checkpoint in either place".into(),
    }))
}

/// Reads pages of a checkpoint; bounded memory.
#[derive(Debug)]
pub struct Reader<'a> {
    image: &'a Opened,
    cache: Cache,
}

impl Reader<'_> {
    /// Hands out the pages of a space that lie in `within`, in order of address, in pieces of any size.
    pub fn for_each_in(
        &mut self,
        space: SpaceId,
        within: Range,
        f: impl FnMut(Range, Content<'_>) -> Result<()>,
    ) -> Result<()> {
        self.for_each_of(space, within, |_| true, f)
    }

    /// As [`Reader::for_each_in`], of those sources only that are `wanted`.
    pub(crate) fn for_each_of(
        &mut self,
        space: SpaceId,
        within: Range,
        wanted: impl Fn(u32) -> bool,
        mut f: impl FnMut(Range, Content<'_>) -> Result<()>,
    ) -> Result<()> {
        let entries = self.image.entries(space).unwrap_or_default();
        let (start, end) = (within.start / PAGE, within.end.div_ceil(PAGE));
        let first = entries.partition_point(|e| e.end() <= start);
        let inside = entries[first..].iter().take_while(|e| e.start < end);
        for e in inside.filter(|e| wanted(e.source)) {
            let part = e.cut(start, end);
            if part.source == ZERO {
                f(run(&part).range, Content::Zero)?;
                continue;
            }
            let from = &self.image.0.sources[part.source as usize];
            self.cache.read(
                part.source,
                from,
                part.slot..part.slot + u64::from(part.pages),
                |slot, bytes| {
                    let at = (part.start + (slot - part.slot)) * PAGE;
                    f(Range::new(at, at + bytes.len() as u64), Content::Bytes(bytes))
                },
            )?;
        }
        Ok(())
    }

    /// Reads `range` (whole pages) of a space into `out`, which must be as long.
    pub fn read(&mut self, space: SpaceId, range: Range, out: &mut [u8]) -> Result<()> {
        let whole = range.start.is_multiple_of(PAGE)
            && range.end.is_multiple_of(PAGE)
            && range.len() == out.len() as u64;
        if !whole {
            return Err(Error::kernel(
                "read",
                format!("{space}, {range} (not whole pages)"),
                Errno::EINVAL,
            ));
        }
        let mut next = range.start;
        let absent = |at: u64| Error::Image {
            file: self.image.0.path.join(INDEX),
            offset: None,
            expected: format!("the page at {at:x} of the {space}"),
            found: "no such page".into(),
        };
        self.for_each_in(space, range, |piece, content| {
            if piece.start != next {
                return Err(absent(next));
            }
            let to = &mut out[(piece.start - range.start) as usize..(piece.end - range.start) as usize];
            match content {
                Content::Zero => to.fill(0),
                Content::Bytes(bytes) => to.copy_from_slice(bytes),
            }
            next = piece.end;
            Ok(())
        })?;
        if next == range.end {
            Ok(())
        } else {
            Err(absent(next))
        }
    }
}
