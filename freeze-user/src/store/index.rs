//! The page index: which pages of which space lie where, as runs sorted by address.

use super::damaged;
use super::frame::array;
use super::pages::ENTRY;
use crate::error::Result;
use crate::ids::{PAGE, SpaceId};
use std::collections::BTreeMap;
use std::path::Path;

/// The source number that stands for pages of zeros, which are stored nowhere.
pub(crate) const ZERO: u32 = u32::MAX;
/// The source number of the checkpoint's own page file; ancestors count from 1 in the order of the chain.
pub(crate) const OWN: u32 = 0;

/// Pages that follow each other in a space and in a page file. Units: pages, but for `source`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) start: u64,
    pub(crate) slot: u64,
    pub(crate) pages: u32,
    pub(crate) source: u32,
}

impl Entry {
    pub(crate) fn end(&self) -> u64 {
        self.start + u64::from(self.pages)
    }

    /// The part of it in `[start, end)`, which must not be empty.
    pub(crate) fn cut(&self, start: u64, end: u64) -> Entry {
        let from = self.start.max(start);
        let slot = if self.source == ZERO {
            0
        } else {
            self.slot + (from - self.start)
        };
        Entry {
            start: from,
            slot,
            pages: (self.end().min(end) - from) as u32,
            source: self.source,
        }
    }
}

/// A space and where its runs are in the run table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SpaceEntry {
    pub(crate) space: SpaceId,
    pub(crate) first: u64,
    pub(crate) runs: u64,
}

/// The space table and the run table.
#[derive(Debug, Default)]
pub(crate) struct Index {
    pub(crate) spaces: Vec<SpaceEntry>,
    pub(crate) runs: Vec<Entry>,
}

/// The bytes of the space table and the run table, and what the manifest says of them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tables<'a> {
    pub(crate) bytes: &'a [u8],
    /// The version of the image format.
    pub(crate) format: u32,
    pub(crate) spaces: usize,
    pub(crate) runs: usize,
    /// Where they are: the file, and the offset in it.
    pub(crate) file: &'a Path,
    pub(crate) base: u64,
}

/// The fewest bytes that a run takes.
pub(crate) const SHORTEST_RUN: u64 = 3;

/// For each source, the slot behind the run of it that was named last: where the next is most likely to be.
#[derive(Debug)]
struct Expected(Vec<u64>);

impl Expected {
    fn new(sources: usize) -> Expected {
        Expected(vec![0; sources])
    }

    fn slot(&self, source: u32) -> u64 {
        self.0.get(source as usize).copied().unwrap_or(0)
    }

    fn after(&mut self, run: &Entry) {
        if let Some(slot) = self.0.get_mut(run.source as usize) {
            *slot = run.slot.wrapping_add(run.pages.into());
        }
    }
}

/// A number in as few bytes as it needs, seven bits in each, the lowest first (LEB128).
fn put(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

#[inline]
fn take(left: &mut &[u8]) -> Option<u64> {
    // Most are small.
    match left.split_first() {
        Some((&byte, rest)) if byte < 0x80 => {
            *left = rest;
            Some(byte.into())
        }
        _ => take_long(left),
    }
}

fn take_long(left: &mut &[u8]) -> Option<u64> {
    let mut n = 0;
    for shift in (0..u64::BITS).step_by(7) {
        let (&byte, rest) = left.split_first()?;
        *left = rest;
        let bits = u64::from(byte & 0x7f);
        if bits << shift >> shift != bits {
            return None;
        }
        n |= bits << shift;
        if byte < 0x80 {
            return Some(n);
        }
    }
    None
}

/// The next run of a space whose last one ended at page `end`; none if the numbers are no such thing.
fn take_run(left: &mut &[u8], end: u64, expected: &mut Expected) -> Option<Entry> {
    let start = end.checked_add(take(left)?)?;
    let pages = u32::try_from(take(left)?).ok()?;
    // As it was written: zero pages are 0, and all others one further.
    let source = u32::try_from(take(left)?).ok()?.wrapping_sub(1);
    let mut run = Entry {
        start,
        slot: 0,
        pages,
        source,
    };
    if source != ZERO {
        let ahead = take(left)?;
        let ahead = (ahead >> 1) ^ (ahead & 1).wrapping_neg();
        run.slot = expected.slot(source).wrapping_add(ahead);
        expected.after(&run);
    }
    start.checked_add(pages.into()).map(|_| run)
}

impl Index {
    /// Begins the next space; spaces must come in order.
    pub(crate) fn open_space(&mut self, space: SpaceId) {
        self.spaces.push(SpaceEntry {
            space,
            first: self.runs.len() as u64,
            runs: 0,
        });
    }

    /// Adds pages to the last space, in order of address, joining what continues the run before.
    pub(crate) fn push(&mut self, start: u64, pages: u64, slot: u64, source: u32) {
        let Some(space) = self.spaces.last_mut() else {
            return;
        };
        let (mut start, mut left, mut slot) = (start, pages, slot);
        if space.runs > 0
            && let Some(last) = self.runs.last_mut()
        {
            let goes_on = source == ZERO || last.slot + u64::from(last.pages) == slot;
            if last.source == source && last.end() == start && goes_on {
                let more = left.min(u64::from(u32::MAX - last.pages));
                last.pages += more as u32;
                start += more;
                left -= more;
                slot += if source == ZERO { 0 } else { more };
            }
        }
        while left > 0 {
            let pages = left.min(u64::from(u32::MAX));
            self.runs.push(Entry {
                start,
                slot,
                pages: pages as u32,
                source,
            });
            space.runs += 1;
            start += pages;
            left -= pages;
            slot += if source == ZERO { 0 } else { pages };
        }
    }

    /// The runs of a space, sorted by address; nothing if the space is unknown.
    pub(crate) fn runs(&self, space: SpaceId) -> Option<&[Entry]> {
        let i = self.spaces.binary_search_by_key(&space, |s| s.space).ok()?;
        let s = &self.spaces[i];
        self.runs.get(s.first as usize..(s.first + s.runs) as usize)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity((self.spaces.len() + self.runs.len()) * ENTRY);
        for s in &self.spaces {
            out.extend_from_slice(&s.space.0.to_le_bytes());
            out.extend_from_slice(&s.first.to_le_bytes());
            out.extend_from_slice(&s.runs.to_le_bytes());
        }
        let sources = self.runs.iter().filter(|r| r.source != ZERO).map(|r| r.source);
        let mut expected = Expected::new(sources.max().map_or(0, |last| last as usize + 1));
        for s in &self.spaces {
            let mut end = 0;
            for r in &self.runs[s.first as usize..(s.first + s.runs) as usize] {
                put(&mut out, r.start - end);
                put(&mut out, r.pages.into());
                // Zero pages become 0, the shortest number.
                put(&mut out, r.source.wrapping_add(1).into());
                if r.source != ZERO {
                    let ahead = r.slot.wrapping_sub(expected.slot(r.source));
                    put(&mut out, (ahead << 1) ^ ((ahead as i64 >> 63) as u64));
                    expected.after(r);
                }
                end = r.end();
            }
        }
        out
    }

    /// Reads the two tables, whose checksum was right, and makes sure that they make sense; `slots` tells how many pages
    /// each source has.
    pub(crate) fn decode(tables: &Tables<'_>, slots: &[u64]) -> Result<Index> {
        let (space_part, mut left) = tables.bytes.split_at(tables.spaces * ENTRY);
        let place = |left: &[u8]| tables.base + (tables.bytes.len() - left.len()) as u64;
        let mut index = Index {
            spaces: Vec::with_capacity(tables.spaces),
            runs: Vec::with_capacity(tables.runs),
        };
        let mut expected = Expected::new(slots.len());
        for (i, e) in space_part.chunks_exact(ENTRY).enumerate() {
            let s = SpaceEntry {
                space: SpaceId(word(e, 0)),
                first: word(e, 8),
                runs: word(e, 16),
            };
            let ordered = index.spaces.last().is_none_or(|last| last.space < s.space);
            let first = index.runs.len();
            if !ordered || s.first != first as u64 || s.runs > (tables.runs - first) as u64 {
                return Err(damaged(
                    tables.file,
                    tables.base + (i * ENTRY) as u64,
                    "a space that follows the one before",
                    format!("{s:?}"),
                ));
            }
            let mut end = 0;
            for _ in 0..s.runs {
                let at = place(left);
                let run = match tables.format {
                    1 => take_whole(&mut left),
                    _ => take_run(&mut left, end, &mut expected),
                };
                match run.filter(|r| fits(r, end, slots)) {
                    Some(run) => {
                        end = run.end();
                        index.runs.push(run);
                    }
                    None => {
                        let found = run.map_or_else(|| "no run".into(), |r| format!("{r:?}"));
                        return Err(damaged(
                            tables.file,
                            at,
                            "a run after the one before, of pages that exist",
                            format!("{found} with {} sources", slots.len()),
                        ));
                    }
                }
            }
            index.spaces.push(s);
        }
        if !left.is_empty() || index.runs.len() != tables.runs {
            return Err(damaged(
                tables.file,
                place(left),
                format!("the end of the run table after {} runs", tables.runs),
                format!("{} bytes after {} runs", left.len(), index.runs.len()),
            ));
        }
        Ok(index)
    }
}

/// Whether a run can come after one that ends at page `end`, and its pages are there.
fn fits(r: &Entry, end: u64, slots: &[u64]) -> bool {
    let (room, need) = match r.source {
        ZERO => (Some(0), 0),
        source => (slots.get(source as usize).copied(), u64::from(r.pages)),
    };
    let stored = room.is_some_and(|room| r.slot <= room && room - r.slot >= need);
    let follows = r.start >= end && r.start <= u64::MAX / PAGE - u64::from(r.pages);
    stored && follows && r.pages > 0
}

fn word(e: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(&e[at..at + 8]))
}

/// The next run of a table of format 1.
fn take_whole(left: &mut &[u8]) -> Option<Entry> {
    let (e, rest) = left.split_at_checked(ENTRY)?;
    *left = rest;
    Some(Entry {
        start: word(e, 0),
        slot: word(e, 8),
        pages: u32::from_le_bytes(array(&e[16..20])),
        source: u32::from_le_bytes(array(&e[20..24])),
    })
}

/// Where a page of an unfinished checkpoint comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Zero,
    /// Written into the draft's own page file, from this slot on.
    Own(u64),
    /// As in the parent, whatever that has there.
    Parent,
    /// As another space is in the parent at the same addresses.
    ParentOf(SpaceId),
}

impl What {
    fn skip(self, pages: u64) -> What {
        match self {
            What::Own(slot) => What::Own(slot + pages),
            other => other,
        }
    }
}

/// What is known so far of the pages of one space of a draft; what comes later supersedes.
#[derive(Debug, Default)]
pub(crate) struct Layer(BTreeMap<u64, (u64, What)>);

impl Layer {
    /// Says what `[start, end)` is, in pages; `None`: not there.
    pub(crate) fn set(&mut self, start: u64, end: u64, what: Option<What>) {
        if start >= end {
            return;
        }
        if let Some((&s, run)) = self.0.range_mut(..start).next_back() {
            let (old_end, old) = *run;
            if old_end > start {
                run.0 = start;
                if old_end > end {
                    self.0.insert(end, (old_end, old.skip(end - s)));
                }
            }
        }
        while let Some((&s, &(old_end, old))) = self.0.range(start..end).next() {
            self.0.remove(&s);
            if old_end > end {
                self.0.insert(end, (old_end, old.skip(end - s)));
            }
        }
        let Some(what) = what else { return };
        if let Some((&s, run)) = self.0.range_mut(..start).next_back()
            && run.0 == start
            && run.1.skip(start - s) == what
        {
            run.0 = end;
            return;
        }
        self.0.insert(start, (end, what));
    }

    /// The runs in `[start, end)`, in order of address, cut to it.
    pub(crate) fn within(&self, start: u64, end: u64) -> Vec<(u64, u64, What)> {
        let first = self.0.range(..start).next_back().map_or(start, |(&s, _)| s);
        self.0
            .range(first..end.max(first))
            .filter(|(_, (e, _))| *e > start)
            .map(|(&s, &(e, what))| {
                let from = s.max(start);
                (from, e.min(end), what.skip(from - s))
            })
            .collect()
    }

    /// The runs `(start, end, what)` in order of address.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, u64, What)> + '_ {
        self.0.iter().map(|(&start, &(end, what))| (start, end, what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::Random;

    /// A layer says of every page what was said last of it.
    #[test]
    fn the_last_word_counts() {
        let mut random = Random(7);
        for _ in 0..200 {
            let (mut layer, mut model) = (Layer::default(), [None; 40]);
            let mut slot = 100;
            for _ in 0..30 {
                let start = random.below(40);
                let end = start + random.below(41 - start);
                let what = match random.below(4) {
                    0 => None,
                    1 => Some(What::Zero),
                    2 => Some(What::Parent),
                    _ => Some(What::Own(slot)),
                };
                slot += 40;
                layer.set(start, end, what);
                for page in start..end {
                    model[page as usize] = what.map(|w| w.skip(page - start));
                }
                let mut seen = [None; 40];
                let mut last = 0;
                for (start, end, what) in layer.iter() {
                    assert!(start >= last && end > start);
                    last = end;
                    for page in start..end {
                        seen[page as usize] = Some(what.skip(page - start));
                    }
                }
                assert_eq!(seen, model);
                let (from, to) = (random.below(40), random.below(41));
                let mut part = [None; 40];
                for (start, end, what) in layer.within(from, to.max(from)) {
                    for page in start..end {
                        part[page as usize] = Some(what.skip(page - start));
                    }
                }
                for page in 0..40 {
                    let inside = from <= page && page < to;
                    assert_eq!(part[page as usize], model[page as usize].filter(|_| inside));
                }
            }
        }
    }

    #[test]
    fn an_index_joins_neighbours_and_reads_back() {
        let mut index = Index::default();
        index.open_space(SpaceId(1));
        index.push(10, 2, 0, OWN);
        index.push(12, 1, 2, OWN);
        index.push(13, 1, 0, ZERO);
        index.push(14, 1 << 33, 0, ZERO);
        index.open_space(SpaceId(2));
        index.open_space(SpaceId(3));
        index.push(0, 1, 3, OWN);
        assert_eq!(index.runs.len(), 5);
        assert_eq!(index.runs(SpaceId(2)), Some(&[][..]));
        assert_eq!(index.runs(SpaceId(4)), None);
        let bytes = index.encode();
        let tables = Tables {
            bytes: &bytes,
            format: 2,
            spaces: 3,
            runs: 5,
            file: Path::new("i"),
            base: 24,
        };
        let back = Index::decode(&tables, &[4]).unwrap();
        assert_eq!((&back.spaces, &back.runs), (&index.spaces, &index.runs));
        let e = Index::decode(&tables, &[3]).unwrap_err().to_string();
        assert!(
            e.starts_with("i, offset ") && e.contains("expected a run after"),
            "{e}"
        );
        let short = Tables {
            bytes: &bytes[..bytes.len() - 1],
            ..tables
        };
        assert!(Index::decode(&short, &[4]).is_err());
        let long = [&bytes[..], &[0]].concat();
        let long = Tables {
            bytes: &long,
            ..tables
        };
        let e = Index::decode(&long, &[4]).unwrap_err().to_string();
        assert!(e.ends_with("found 1 bytes after 5 runs"), "{e}");
    }

    /// Pages that were written here and there since, which is what a long chain comes to: a few bytes each.
    #[test]
    fn scattered_runs_take_few_bytes() {
        let mut random = Random(5);
        let mut index = Index::default();
        index.open_space(SpaceId(1));
        let mut next = [0; 20];
        let first = 0x7f00_0000_0000 / PAGE;
        for page in 0..100_000 {
            let at = first + page;
            let source = random.below(200) as u32;
            match source {
                0..20 => {
                    index.push(at, 1, next[source as usize], source);
                    next[source as usize] += 1;
                }
                _ => index.push(at, 1, page, 20),
            }
        }
        let bytes = index.encode();
        assert!(
            bytes.len() < index.runs.len() * 5,
            "{} of {}",
            bytes.len(),
            index.runs.len()
        );
        let tables = Tables {
            bytes: &bytes,
            format: 2,
            spaces: 1,
            runs: index.runs.len(),
            file: Path::new("i"),
            base: 0,
        };
        let back = Index::decode(&tables, &[100_000; 21]).unwrap();
        assert_eq!(back.runs, index.runs);
    }

    #[test]
    fn numbers_read_back_and_too_large_ones_are_none() {
        for n in [0, 1, 127, 128, 300, u64::MAX - 1, u64::MAX] {
            let mut bytes = Vec::new();
            put(&mut bytes, n);
            let mut left = &bytes[..];
            assert_eq!((take(&mut left), left.len()), (Some(n), 0));
        }
        assert_eq!(take(&mut &[0xff; 9][..]), None);
        assert_eq!(take(&mut &[[0xff; 9].as_slice(), &[2]].concat()[..]), None);
    }

    /// Whatever the bytes, the answer is an index or an error.
    #[test]
    fn nonsense_is_refused_without_a_panic() {
        let mut random = Random(3);
        for _ in 0..2000 {
            let bytes: Vec<u8> = (0..ENTRY * 4)
                .map(|_| (random.next() & 0x8f) as u8 & random.next() as u8)
                .collect();
            let tables = Tables {
                bytes: &bytes,
                format: 1 + random.below(2) as u32,
                spaces: random.below(5) as usize,
                runs: random.below(5) as usize,
                file: Path::new("i"),
                base: 0,
            };
            let _ = Index::decode(&tables, &[9, 1]);
        }
    }
}
