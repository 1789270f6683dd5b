//! The page file: pages one after the other ("slots"), checksummed and compressed in chunks.
//!
//! ```text
//! slot   0 1 2 …            31 | 32 …             63 | 64 … 70
//! hot    raw pages              raw pages              raw pages       slot n is at n × 4096
//! cold   one zstd frame         one zstd frame         one zstd frame  found by the chunk table
//! ```
//! The chunk table (in the index file) has each chunk's place and the checksum of its stored bytes,
//! which is compared before they are decompressed or handed out.

use super::frame::array;
use super::manifest::Sum;
use super::{create, damaged};
use crate::error::{Context, Error, Result};
use crate::ids::PAGE;
use crate::sys;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// How many pages a chunk has; the last one of a file may have fewer.
pub(crate) const CHUNK_PAGES: u32 = 32;
const CHUNK: usize = CHUNK_PAGES as usize * PAGE as usize;
/// Full chunks that may wait for the writing thread: what is copied in a pause need not wait for the disk.
const QUEUE: usize = 256;
/// The largest chunk a foreign image may ask a reader to hold, in pages.
const MAX_CHUNK_PAGES: u32 = 4096;

/// How pages lie in the page file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// Raw, so that they can be mapped straight into a process.
    #[default]
    Hot,
    /// Compressed by zstd.
    Cold { level: i32 },
}

/// One entry of the chunk table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub(crate) offset: u64,
    pub(crate) len: u32,
    pub(crate) pages: u32,
    /// Of the stored bytes.
    pub(crate) sum: Sum,
}

/// The size of an entry of every table of the index file.
pub(crate) const ENTRY: usize = 24;

impl Chunk {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.offset.to_le_bytes());
        out.extend_from_slice(&self.len.to_le_bytes());
        out.extend_from_slice(&self.pages.to_le_bytes());
        out.extend_from_slice(&self.sum.0.to_le_bytes());
    }

    pub(crate) fn decode(entry: &[u8]) -> Chunk {
        Chunk {
            offset: u64::from_le_bytes(array(&entry[..8])),
            len: u32::from_le_bytes(array(&entry[8..12])),
            pages: u32::from_le_bytes(array(&entry[12..16])),
            sum: Sum(u64::from_le_bytes(array(&entry[16..]))),
        }
    }
}

/// Whether a page holds nothing but zeros.
pub(crate) fn is_zero(page: &[u8]) -> bool {
    // Most other pages betray themselves early; the blocks are wide enough to be compared by vectors.
    page.chunks(256)
        .all(|block| block.iter().fold(0, |a, b| a | b) == 0)
}

/// What the writing thread has done when it ends.
struct Written {
    file: File,
    bytes: u64,
    chunks: Vec<Chunk>,
}

/// How far the copying may be ahead of the writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Not far: so few chunks are still in the caches of the processor when they are written.
    Calm,
    /// What is copied is being written to by a program that runs: the longer it takes, the more of it there is again.
    Brisk,
    /// A program stands still: nothing waits for the disk while there is memory.
    Hurry,
}

impl Pace {
    /// How many full chunks may wait for the writing thread, or be with it.
    fn chunks(self) -> usize {
        match self {
            Pace::Calm => 8,
            Pace::Brisk => QUEUE / 2,
            Pace::Hurry => usize::MAX,
        }
    }
}

/// Chunks that no writer has any more, for the next: fresh memory has to be found and cleared by the kernel first, in a
/// virtual machine by its host too, which can take longer than copying the pages. At most [`QUEUE`].
static SPARE: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

/// Whoever panicked with the spare chunks left a list of some.
fn spare() -> MutexGuard<'static, Vec<Vec<u8>>> {
    SPARE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gives back the memory that is kept for the next checkpoint.
pub fn free_buffers() {
    *spare() = Vec::new();
    sys::bpf::trim();
}

/// One that was used, or a new one, in its full length: a writer's last may be shorter.
fn whole(used: Option<Vec<u8>>) -> Vec<u8> {
    let mut chunk = used.unwrap_or_default();
    chunk.resize(CHUNK, 0);
    chunk
}

/// The thread that checksums, compresses and writes full chunks, while more are being copied.
#[derive(Debug)]
struct Lane {
    full: SyncSender<Vec<u8>>,
    empty: Receiver<Vec<u8>>,
    thread: JoinHandle<Result<Written>>,
}

/// Writes the page file.
#[derive(Debug)]
pub(crate) struct PageWriter {
    path: PathBuf,
    /// Always a whole one, of which so many bytes are filled.
    chunk: Vec<u8>,
    filled: usize,
    slots: u64,
    /// Chunks that the thread has not given back.
    away: usize,
    pace: Pace,
    /// Gone once the thread has failed.
    lane: Option<Lane>,
}

/// A finished page file.
#[derive(Debug)]
pub(crate) struct PageTable {
    pub(crate) file: File,
    pub(crate) bytes: u64,
    pub(crate) slots: u64,
    pub(crate) chunks: Vec<Chunk>,
}

impl PageWriter {
    pub(crate) fn create(path: PathBuf, form: Form) -> Result<PageWriter> {
        let (full, todo) = sync_channel(QUEUE);
        let (done, empty) = channel();
        let (file, to) = (create(&path)?, path.clone());
        let thread = std::thread::Builder::new()
            .name("freeze-pages".into())
            .spawn(move || write(file, &to, form, &todo, &done))
            .on("clone", || "the writing thread")?;
        let lane = Some(Lane { full, empty, thread });
        Ok(PageWriter {
            path,
            chunk: whole(spare().pop()),
            filled: 0,
            slots: 0,
            away: 0,
            pace: Pace::Calm,
            lane,
        })
    }

    pub(crate) fn set_pace(&mut self, pace: Pace) {
        self.pace = pace;
    }

    /// Sees to it that so many bytes can be put anywhere without fresh memory, as far as the queue holds them.
    pub(crate) fn reserve(&mut self, bytes: u64) {
        let chunks = usize::try_from(bytes).unwrap_or(usize::MAX).div_ceil(CHUNK);
        let mut spare = spare();
        while spare.len() < chunks.min(QUEUE) {
            // Any byte but zero: those the allocator gets without touching the memory.
            spare.push(vec![1; CHUNK]);
        }
    }

    /// How many pages it was given.
    pub(crate) fn slots(&self) -> u64 {
        self.slots
    }

    /// Where the next pages may be put, at least one; they count once they are [kept](PageWriter::keep).
    pub(crate) fn room(&mut self) -> &mut [u8] {
        &mut self.chunk[self.filled..]
    }

    /// Appends the first `len` bytes of the room, and tells the slot of the first page.
    pub(crate) fn keep(&mut self, len: usize) -> Result<u64> {
        let slot = self.slots;
        self.slots += len as u64 / PAGE;
        self.filled += len;
        if self.filled == CHUNK {
            self.flush()?;
        }
        Ok(slot)
    }

    /// Appends whole pages, and tells the slot of the first.
    pub(crate) fn push(&mut self, mut bytes: &[u8]) -> Result<u64> {
        let slot = self.slots;
        while !bytes.is_empty() {
            let room = self.room();
            let (now, later) = bytes.split_at(bytes.len().min(room.len()));
            room[..now.len()].copy_from_slice(now);
            self.keep(now.len())?;
            bytes = later;
        }
        Ok(slot)
    }

    fn flush(&mut self) -> Result<()> {
        let broken = || Error::kernel("write", self.path.display().to_string(), Errno::EIO);
        let lane = self.lane.as_ref().ok_or_else(broken)?;
        let back = match self.away < self.pace.chunks() {
            true => lane.empty.try_recv().ok(),
            false => lane.empty.recv().ok(),
        };
        self.away -= usize::from(back.is_some());
        let fresh = whole(back.or_else(|| spare().pop()));
        let mut full = std::mem::replace(&mut self.chunk, fresh);
        full.truncate(std::mem::take(&mut self.filled));
        if lane.full.send(full).is_ok() {
            self.away += 1;
            return Ok(());
        }
        // The thread gave up: it ends with the reason.
        self.join().map(|_| ())
    }

    fn join(&mut self) -> Result<Written> {
        let broken = || Error::kernel("write", self.path.display().to_string(), Errno::EIO);
        let Lane { full, thread, empty } = self.lane.take().ok_or_else(broken)?;
        drop(full);
        let done = thread.join().unwrap_or_else(|_| Err(broken()));
        let mut spare = spare();
        let room = QUEUE.saturating_sub(spare.len());
        spare.extend(empty.try_iter().take(room));
        done
    }

    pub(crate) fn finish(mut self) -> Result<PageTable> {
        if self.filled > 0 {
            self.flush()?;
        }
        let Written { file, bytes, chunks } = self.join()?;
        Ok(PageTable {
            file,
            bytes,
            slots: self.slots,
            chunks,
        })
    }
}

impl Drop for PageWriter {
    fn drop(&mut self) {
        if self.lane.is_some() {
            // What it says no longer matters, but the file must not be written after it was removed.
            let _ = self.join();
        }
    }
}

/// The writing thread.
fn write(
    mut file: File,
    path: &Path,
    form: Form,
    full: &Receiver<Vec<u8>>,
    empty: &Sender<Vec<u8>>,
) -> Result<Written> {
    let name = || path.display().to_string();
    let mut zstd = match form {
        Form::Hot => None,
        Form::Cold { level } => Some(zstd::bulk::Compressor::new(level).on("compress", name)?),
    };
    let mut packed = Vec::new();
    let (mut bytes, mut chunks) = (0, Vec::new());
    while let Ok(chunk) = full.recv() {
        let stored = match &mut zstd {
            None => &chunk,
            Some(zstd) => {
                packed.clear();
                packed.reserve(zstd::zstd_safe::compress_bound(chunk.len()));
                zstd.compress_to_buffer(&chunk, &mut packed)
                    .on("compress", name)?;
                &packed
            }
        };
        file.write_all(stored).on("write", name)?;
        let pages = (chunk.len() / PAGE as usize) as u32;
        chunks.push(Chunk {
            offset: bytes,
            len: stored.len() as u32,
            pages,
            sum: Sum::of(stored),
        });
        bytes += stored.len() as u64;
        // Nobody takes it back any more when this was the last.
        let _ = empty.send(chunk);
    }
    Ok(Written { file, bytes, chunks })
}

/// The page file of a finished checkpoint, with its chunk table.
#[derive(Debug)]
pub(crate) struct PageFile {
    pub(crate) path: PathBuf,
    pub(crate) file: File,
    pub(crate) form: Form,
    pub(crate) slots: u64,
    chunk_pages: u32,
    chunks: Vec<Chunk>,
}

impl PageFile {
    /// Joins a file with the chunk table that was read from `index`; the table must describe all of the file.
    pub(crate) fn new(
        path: PathBuf,
        file: File,
        about: &super::manifest::PagesFile,
        chunks: Vec<Chunk>,
        index: &Path,
    ) -> Result<PageFile> {
        let chunk_pages = about.chunk_pages;
        let (mut at, mut slots) = (0u64, 0u64);
        for (i, c) in chunks.iter().enumerate() {
            let full = i + 1 == chunks.len() || c.pages == chunk_pages;
            let raw = about.form != Form::Hot || u64::from(c.len) == u64::from(c.pages) * PAGE;
            let sane = c.pages > 0 && c.pages <= chunk_pages && chunk_pages <= MAX_CHUNK_PAGES;
            if c.offset != at || !full || !raw || !sane {
                let at = (i * ENTRY) as u64;
                return Err(damaged(
                    index,
                    at,
                    "a chunk that follows the one before",
                    format!("{c:?}"),
                ));
            }
            at = at.saturating_add(u64::from(c.len));
            slots += u64::from(c.pages);
        }
        if at != about.bytes || slots != about.slots || chunk_pages == 0 {
            let expected = format!("chunks for {} bytes and {} pages", about.bytes, about.slots);
            return Err(damaged(
                index,
                0,
                expected,
                format!("{at} bytes and {slots} pages"),
            ));
        }
        Ok(PageFile {
            path,
            file,
            form: about.form,
            slots,
            chunk_pages,
            chunks,
        })
    }

    /// How many chunks there are.
    pub(crate) fn chunk_count(&self) -> u64 {
        self.chunks.len() as u64
    }

    /// The chunk of a slot, and which page of it the slot is.
    pub(crate) fn locate(&self, slot: u64) -> (u64, u64) {
        (
            slot / u64::from(self.chunk_pages),
            slot % u64::from(self.chunk_pages),
        )
    }

    /// How many pages chunk `n` has.
    fn pages_of(&self, n: u64) -> u64 {
        self.chunks.get(n as usize).map_or(0, |c| u64::from(c.pages))
    }

    /// Reads chunk `n` into `out` as plain pages, once its checksum is found right.
    pub(crate) fn read_chunk(&self, n: u64, out: &mut Vec<u8>, unpack: &mut Unpack) -> Result<()> {
        let Some(chunk) = self.chunks.get(n as usize) else {
            return Err(damaged(
                &self.path,
                0,
                format!("chunk {n}"),
                format!("{} chunks", self.chunks.len()),
            ));
        };
        let stored = if self.form == Form::Hot {
            &mut *out
        } else {
            &mut unpack.packed
        };
        stored.resize(chunk.len as usize, 0);
        self.file
            .read_exact_at(stored, chunk.offset)
            .map_err(|e| match e.kind() {
                std::io::ErrorKind::UnexpectedEof => {
                    let expected = format!("a chunk of {} bytes", chunk.len);
                    damaged(&self.path, chunk.offset, expected, "the end of the file")
                }
                _ => Error::io("read", self.path.display().to_string(), &e),
            })?;
        let found = Sum::of(stored);
        if found != chunk.sum {
            let expected = format!("a chunk of {} bytes with checksum {}", chunk.len, chunk.sum);
            return Err(damaged(&self.path, chunk.offset, expected, found.to_string()));
        }
        if self.form == Form::Hot {
            return Ok(());
        }
        let size = chunk.pages as usize * PAGE as usize;
        out.resize(size, 0);
        let mut zstd = match unpack.zstd.take() {
            Some(zstd) => zstd,
            None => zstd::bulk::Decompressor::new().on("decompress", || self.path.display().to_string())?,
        };
        let len = zstd.decompress_to_buffer(&unpack.packed, &mut out[..]);
        unpack.zstd = Some(zstd);
        match len {
            Ok(len) if len == size => Ok(()),
            Ok(len) => Err(damaged(
                &self.path,
                chunk.offset,
                format!("{size} bytes in a chunk"),
                len.to_string(),
            )),
            Err(e) => Err(damaged(&self.path, chunk.offset, "a zstd frame", e.to_string())),
        }
    }
}

/// What decompressing takes, kept from one chunk to the next.
#[derive(Default)]
pub(crate) struct Unpack {
    packed: Vec<u8>,
    zstd: Option<zstd::bulk::Decompressor<'static>>,
}

impl std::fmt::Debug for Unpack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Unpack")
    }
}

/// Chunks that were read and checked lately, of any number of page files: bounded memory.
#[derive(Debug, Default)]
pub(crate) struct Cache {
    chunks: HashMap<(u32, u64), (u64, Vec<u8>)>,
    clock: u64,
    whole: Vec<u8>,
    unpack: Unpack,
}

/// 16 MiB of chunks of the size that freeze writes.
const CACHED_BYTES: usize = 128 * CHUNK;

impl Cache {
    /// Hands out the pages of `slots` in pieces within one chunk each, with the number of the piece's first slot.
    pub(crate) fn read(
        &mut self,
        source: u32,
        from: &PageFile,
        slots: std::ops::Range<u64>,
        mut f: impl FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut at = slots.start;
        while at < slots.end {
            let (n, first) = from.locate(at);
            let pages = from.pages_of(n).saturating_sub(first).min(slots.end - at);
            let bytes = if first == 0 && pages == from.pages_of(n) {
                // Nobody else wants a part of it: not worth a place.
                from.read_chunk(n, &mut self.whole, &mut self.unpack)?;
                &self.whole
            } else {
                self.chunk(source, from, n)?
            };
            let start = (first * PAGE) as usize;
            let piece = bytes
                .get(start..start + (pages * PAGE) as usize)
                .filter(|p| !p.is_empty());
            let piece = piece.ok_or_else(|| damaged(&from.path, 0, format!("page {at}"), "no such page"))?;
            f(at, piece)?;
            at += pages;
        }
        Ok(())
    }

    fn chunk(&mut self, source: u32, from: &PageFile, n: u64) -> Result<&Vec<u8>> {
        self.clock += 1;
        let key = (source, n);
        if !self.chunks.contains_key(&key) {
            let room = (CACHED_BYTES / (from.chunk_pages as usize * PAGE as usize)).max(1);
            let mut buffer = Vec::new();
            if self.chunks.len() >= room {
                let oldest = self
                    .chunks
                    .iter()
                    .min_by_key(|(_, (used, _))| *used)
                    .map(|(key, _)| *key);
                buffer = oldest
                    .and_then(|key| self.chunks.remove(&key))
                    .map(|(_, b)| b)
                    .unwrap_or_default();
            }
            from.read_chunk(n, &mut buffer, &mut self.unpack)?;
            self.chunks.insert(key, (0, buffer));
        }
        let entry = self.chunks.entry(key).or_default();
        entry.0 = self.clock;
        Ok(&entry.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_zero_only_if_all_of_it_is() {
        let mut page = vec![0; PAGE as usize];
        assert!(is_zero(&page));
        for at in [0, 255, 256, 4095] {
            page[at] = 1;
            assert!(!is_zero(&page));
            page[at] = 0;
        }
    }

    #[test]
    fn a_chunk_entry_reads_back() {
        let chunk = Chunk {
            offset: 1 << 40,
            len: 77,
            pages: 3,
            sum: Sum(0xfeed),
        };
        let mut out = Vec::new();
        chunk.encode(&mut out);
        assert_eq!(out.len(), ENTRY);
        assert_eq!(Chunk::decode(&out), chunk);
    }
}
