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
        for r in &self.runs {
            out.extend_from_slice(&r.start.to_le_bytes());
            out.extend_from_slice(&r.slot.to_le_bytes());
            out.extend_from_slice(&r.pages.to_le_bytes());
            out.extend_from_slice(&r.source.to_le_bytes());
        }
        out
    }

    /// Reads the two tables, whose checksum was right, and makes sure that they make sense; `base` is where
    /// they begin in the file, `slots` how many pages each source has.
    pub(crate) fn decode(
        bytes: &[u8],
        spaces: usize,
        slots: &[u64],
        file: &Path,
        base: u64,
    ) -> Result<Index> {
        let wrong = |entry: usize, expected: &str, found: String| {
            damaged(file, base + (entry * ENTRY) as u64, expected, found)
        };
        let word = |e: &[u8], at: usize| u64::from_le_bytes(array(&e[at..at + 8]));
        let half = |e: &[u8], at: usize| u32::from_le_bytes(array(&e[at..at + 4]));
        let (space_part, run_part) = bytes.split_at(spaces * ENTRY);
        let runs: Vec<Entry> = run_part
            .chunks_exact(ENTRY)
            .map(|e| Entry {
                start: word(e, 0),
                slot: word(e, 8),
                pages: half(e, 16),
                source: half(e, 20),
            })
            .collect();
        let mut index = Index {
            spaces: Vec::with_capacity(spaces),
            runs,
        };
        let mut first = 0;
        for (i, e) in space_part.chunks_exact(ENTRY).enumerate() {
            let s = SpaceEntry {
                space: SpaceId(word(e, 0)),
                first: word(e, 8),
                runs: word(e, 16),
            };
            let ordered = index.spaces.last().is_none_or(|last| last.space < s.space);
            if !ordered || s.first != first || s.runs > index.runs.len() as u64 - first {
                return Err(wrong(i, "a space that follows the one before", format!("{s:?}")));
            }
            first += s.runs;
            let mut end = 0;
            for (j, r) in index.runs[s.first as usize..first as usize].iter().enumerate() {
                let room = if r.source == ZERO {
                    Some(0)
                } else {
                    slots.get(r.source as usize).copied()
                };
                let need = if r.source == ZERO { 0 } else { u64::from(r.pages) };
                let stored = room.is_some_and(|room| r.slot <= room && room - r.slot >= need);
                let fits = r.start >= end && r.start <= u64::MAX / PAGE - u64::from(r.pages);
                if !stored || !fits || r.pages == 0 {
                    let found = format!("{r:?} with {} sources", slots.len());
                    return Err(wrong(
                        spaces + s.first as usize + j,
                        "a run after the one before, of pages that exist",
                        found,
                    ));
                }
                end = r.end();
            }
            index.spaces.push(s);
        }
        if first != index.runs.len() as u64 {
            return Err(wrong(
                spaces + first as usize,
                "the end of the run table",
                "runs of no space".into(),
            ));
        }
        Ok(index)
    }
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
        let back = Index::decode(&bytes, 3, &[4], Path::new("i"), 0).unwrap();
        assert_eq!((&back.spaces, &back.runs), (&index.spaces, &index.runs));
        let e = Index::decode(&bytes, 3, &[3], Path::new("i"), 24)
            .unwrap_err()
            .to_string();
        assert!(e.starts_with("i, offset 192: expected a run"), "{e}");
    }

    /// Whatever the bytes, the answer is an index or an error.
    #[test]
    fn nonsense_is_refused_without_a_panic() {
        let mut random = Random(3);
        for _ in 0..2000 {
            let bytes: Vec<u8> = (0..ENTRY * 4)
                .map(|_| (random.next() & 0x8f) as u8 & random.next() as u8)
                .collect();
            let _ = Index::decode(&bytes, random.below(5) as usize, &[9, 1], Path::new("i"), 0);
        }
    }
}
