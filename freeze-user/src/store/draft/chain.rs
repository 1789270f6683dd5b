//! Which ancestors a checkpoint goes on needing, and the copying of pages by which it needs one less.
//!
//! Each ancestor costs what is needed of it no more ("dead" pages) on the disk, and a few descriptors to whoever reads.
//! Copying costs time. A chain is a log with cleaning: what is copied, and how much of it at once, decides how often the
//! same page is written again (Rosenblum and Ousterhout, The Design and Implementation of a Log-Structured File System,
//! 1992). Two rules, independent of each other:
//!
//! - *Too many.* When there are more ancestors than allowed, the smaller half of them is copied at once, so that half as many
//!   checkpoints as the chain is long copy nothing. Copying one of them each time would write all that was written since the
//!   base again and again.
//! - *Too much.* When what is dead is more than what is needed, the one of which most is dead is copied: no more at a time than
//!   is written anyway. It goes when nothing in it is needed any more.
//!
//! A checkpoint for which a program stands still until it is stored leaves both to the next.

use super::Draft;
use crate::error::{Context, Result};
use crate::ids::{Range, normalize};
use crate::store::index::{Entry, Index, OWN, ZERO};
use crate::store::manifest::{Ancestor, Counts};
use crate::store::pages::Cache;
use crate::sys::{interrupt, limit};
use nix::errno::Errno;
use std::collections::BTreeMap;

/// So many dead pages are no reason to copy anything: 16 MiB.
const SLACK: u64 = 4096;

/// How much of an ancestor is needed, and how much of it there is. Units: pages.
#[derive(Clone, Copy, Debug)]
struct Use {
    source: u32,
    needed: u64,
    stored: u64,
}

impl Use {
    fn dead(&self) -> u64 {
        self.stored.saturating_sub(self.needed)
    }
}

/// What to copy, by source: at most so many pages of each.
fn to_copy(mut of: Vec<Use>, own: Use, room: usize) -> BTreeMap<u32, u64> {
    let mut copied = BTreeMap::new();
    of.sort_by_key(|u| u.needed);
    if of.len() > room {
        let many = of
            .drain(..of.len() - room.div_ceil(2))
            .map(|u| (u.source, u64::MAX));
        copied.extend(many);
    }
    let all = || of.iter().chain([&own]);
    let (needed, dead): (u64, u64) = (all().map(|u| u.needed).sum(), all().map(Use::dead).sum());
    if dead > needed + SLACK {
        // By cross-multiplication: a/b > c/d.
        let worst = of.iter().max_by(|a, b| {
            (u128::from(a.dead()) * u128::from(b.stored)).cmp(&(u128::from(b.dead()) * u128::from(a.stored)))
        });
        copied.extend(worst.map(|u| (u.source, own.needed + SLACK)));
    }
    copied
}

impl Draft {
    /// Copies pages of ancestors until the chain is no longer than it may be, and numbers those that are
    /// left by their place in the chain, which it returns.
    pub(super) fn shorten(&mut self, index: &mut Index, counts: &mut Counts) -> Result<Vec<Ancestor>> {
        let Some(parent) = self.parent.clone() else {
            return Ok(Vec::new());
        };
        let mut used = vec![0u64; parent.sources().len() + 1];
        for run in index.runs.iter().filter(|r| r.source != ZERO) {
            used[run.source as usize] += u64::from(run.pages);
        }
        let each = (1u32..).zip(parent.sources()).zip(&used[1..]);
        let ancestors: Vec<Use> = each
            .map(|((source, file), &needed)| Use {
                source,
                needed,
                stored: file.slots,
            })
            .filter(|u| u.needed > 0)
            .collect();
        let to_copy = match self.options.squash {
            true => ancestors.iter().map(|u| (u.source, u64::MAX)).collect(),
            false if self.leaves_chain => BTreeMap::new(),
            false => {
                let own = Use {
                    source: OWN,
                    needed: used[OWN as usize],
                    stored: self.pages.as_ref().map_or(0, |pages| pages.slots()),
                };
                to_copy(ancestors, own, self.options.chain_limit.max(1) as usize - 1)
            }
        };
        let mut moved = BTreeMap::new();
        for (source, most) in to_copy {
            let places = self.copy(source, most, index)?;
            let pages: u64 = places.iter().map(|(slots, _)| slots.len()).sum();
            counts.copied += pages;
            moved.insert(source, places);
        }
        relocate(index, &moved);

        let mut number = vec![OWN; used.len()];
        let mut needed = vec![false; used.len()];
        for run in index.runs.iter().filter(|r| r.source != ZERO) {
            needed[run.source as usize] = true;
        }
        let mut chain = Vec::new();
        for source in (1..used.len()).filter(|&s| needed[s]) {
            let (id, sum, path) = parent.source(source - 1);
            chain.push(self.ancestor(id, sum, path)?);
            number[source] = chain.len() as u32;
        }
        for run in index.runs.iter_mut().filter(|r| r.source != ZERO) {
            run.source = number[run.source as usize];
        }
        Ok(chain)
    }

    /// Copies what is needed of a source, but not more than so many pages; tells which slots, in order, and where the first of
    /// each is now. Pages that several spaces share are copied once.
    fn copy(&mut self, source: u32, mut most: u64, index: &Index) -> Result<Vec<(Range, u64)>> {
        let object = || "pages of an ancestor".to_string();
        let parent = self.parent.clone().ok_or(Errno::EINVAL).on("copy", object)?;
        let writer = self.pages.as_mut().ok_or(Errno::EBADF).on("copy", object)?;
        let runs = index.runs.iter().filter(|r| r.source == source);
        let needed = normalize(runs.map(slots).collect());
        let from = &parent.sources()[source as usize - 1];
        let mut cache = Cache::default();
        let mut places = Vec::new();
        for mut part in needed {
            part.end = part.end.min(part.start.saturating_add(most));
            if part.is_empty() {
                break;
            }
            most -= part.len();
            let mut to = None;
            cache.read(source, from, part.start..part.end, |_, bytes| {
                limit::check()?;
                interrupt::check()?;
                let slot = writer.push(bytes)?;
                to.get_or_insert(slot);
                Ok(())
            })?;
            // One after the other, as they came.
            places.extend(to.map(|to| (part, to)));
        }
        Ok(places)
    }
}

/// The slots of a run, as a range of numbers.
fn slots(run: &Entry) -> Range {
    Range::new(run.slot, run.slot + u64::from(run.pages))
}

/// Has the index say where pages are that were moved into the draft.
fn relocate(index: &mut Index, moved: &BTreeMap<u32, Vec<(Range, u64)>>) {
    let before = std::mem::take(index);
    for s in &before.spaces {
        index.open_space(s.space);
        for run in before.runs(s.space).unwrap_or_default() {
            let all = slots(run);
            let places = moved.get(&run.source).map_or(&[][..], Vec::as_slice);
            let first = places.partition_point(|(slots, _)| slots.end <= all.start);
            let mut at = all.start;
            let mut piece = |from: u64, to: u64, slot: u64, source: u32| {
                if from < to {
                    index.push(run.start + (from - all.start), to - from, slot, source);
                }
            };
            for &(part, to) in places[first..]
                .iter()
                .take_while(|(slots, _)| slots.start < all.end)
            {
                let (start, end) = (part.start.max(all.start), part.end.min(all.end));
                piece(at, start, at, run.source);
                piece(start, end, to + (start - part.start), OWN);
                at = end;
            }
            piece(at, all.end, at, run.source);
        }
    }
}
