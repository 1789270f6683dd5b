//! Pages that processes of a set still share since one was forked off the other: stored once for all of them.

use crate::error::Result;
use crate::ids::{PAGE, Pid, Range, SpaceId, normalize, subtract};
use crate::observe::view::speaker;
use crate::store::Draft;
use crate::sys::pagemap::{self, Entry, Pagemap, push};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Pages looked at in one go: 64 MiB, half a megabyte of entries.
const WINDOW: u64 = 64 << 20;

/// Pages compared by their contents in one go.
const PIECE: u64 = 1 << 20;

/// So many processes are looked at one after the other: as a rule who was there first has what a relative shares.
const FEW: usize = 4;

/// Pages that are remembered by their frames, of all processes together: some 80 MiB of memory.
const MOST: usize = 4 << 20;

/// The processes that have been stored so far, all of which stand still.
#[derive(Debug, Default)]
pub(crate) struct Twins {
    /// Those that are looked at one after the other.
    singly: Vec<Pid>,
    /// Who has the page behind a [`key`], of all others: a thousand relatives would be half a million pairs.
    owners: HashMap<u64, Pid>,
    /// The parent of the draft does not tell which pages one of them shares.
    fresh: bool,
}

impl Twins {
    /// Makes the draft take those pages of `pid` that are pages of a process stored before from that one, and returns
    /// them: they need not be copied. Relatives share at equal addresses only.
    ///
    /// `changed`: the pages that may be shared otherwise than in the draft's parent, if that tells of the others.
    /// `all`: those that there are.
    pub(crate) fn share(
        &mut self,
        pid: Pid,
        changed: Option<&Vec<Range>>,
        all: impl FnOnce() -> Result<Vec<Range>>,
        draft: &mut Draft,
    ) -> Result<Vec<Range>> {
        self.fresh |= changed.is_none();
        if self.singly.is_empty() {
            self.singly.push(pid);
            return Ok(Vec::new());
        }
        let candidates = match changed.filter(|_| !self.fresh) {
            Some(changed) => changed.clone(),
            None => all()?,
        };
        let mine = pagemap::open(speaker(pid))?;
        let mut open = shareable(&mine, &candidates)?;
        let mut taken = Vec::new();
        let mut take = |from: Pid, open: &mut Vec<Range>, within: &[Range]| -> Result<()> {
            let same = same_pages(&mine, &pagemap::open(speaker(from))?, within)?;
            let shared = draft.share(SpaceId::private(pid), SpaceId::private(from), &same);
            *open = subtract(open, &shared);
            taken.extend(shared);
            Ok(())
        };
        for other in &self.singly {
            if open.is_empty() {
                break;
            }
            let within = open.clone();
            take(*other, &mut open, &within)?;
        }
        for (owner, within) in self.owned(&mine, &open)? {
            take(owner, &mut open, &within)?;
        }
        if !self.fresh || self.singly.len() < FEW || !self.note(pid, &mine, &open)? {
            self.singly.push(pid);
        }
        Ok(normalize(taken))
    }

    /// Who is known to have a page of these too, if it is at the same address there.
    fn owned(&self, mine: &Pagemap, open: &[Range]) -> Result<BTreeMap<Pid, Vec<Range>>> {
        let mut owned = BTreeMap::<Pid, Vec<Range>>::new();
        if self.owners.is_empty() {
            return Ok(owned);
        }
        for r in open {
            mine.entries(*r, |page, entry| {
                if let Some(owner) = self.owners.get(&key(page, entry)) {
                    push(owned.entry(*owner).or_default(), page);
                }
            })?;
        }
        Ok(owned)
    }

    /// Remembers whose these pages are; not if they are too many, or their frames are not shown.
    fn note(&mut self, pid: Pid, mine: &Pagemap, pages: &[Range]) -> Result<bool> {
        let count: u64 = pages.iter().map(|r| r.pages()).sum();
        if self.owners.len() as u64 + count > MOST as u64 {
            return Ok(false);
        }
        let mut shown = true;
        for r in pages {
            mine.entries(*r, |page, entry| {
                shown &= entry.frame() != 0;
                self.owners.entry(key(page, entry)).or_insert(pid);
            })?;
        }
        Ok(shown)
    }
}

/// Equal for the same page at the same address, and hardly ever for others.
fn key(page: Range, entry: Entry) -> u64 {
    let at = (page.start / PAGE).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    entry.frame().rotate_left(1) ^ u64::from(entry.present()) ^ at
}

/// The pages of `ranges` that somebody else may have too.
fn shareable(mine: &Pagemap, ranges: &[Range]) -> Result<Vec<Range>> {
    let mut shareable = Vec::new();
    for r in ranges {
        mine.entries(*r, |page, entry| {
            if entry.may_be_shared() {
                push(&mut shareable, page);
            }
        })?;
    }
    Ok(shareable)
}

/// The pages of `common` that two processes have in one.
fn same_pages(mine: &Pagemap, theirs: &Pagemap, common: &[Range]) -> Result<Vec<Range>> {
    let mut same = Vec::new();
    let mut veiled = Vec::new();
    for r in common {
        let mut at = r.start;
        while at < r.end {
            let window = Range::new(at, r.end.min(at + WINDOW));
            let list = |map: &Pagemap| -> Result<Vec<Entry>> {
                let mut out = Vec::with_capacity(window.pages() as usize);
                map.entries(window, |_, entry| out.push(entry))?;
                Ok(out)
            };
            for (i, (a, b)) in list(mine)?.into_iter().zip(list(theirs)?).enumerate() {
                let page = Range::new(at + i as u64 * PAGE, at + (i as u64 + 1) * PAGE);
                match a.same_page(b) {
                    Some(true) => push(&mut same, page),
                    Some(false) => {}
                    // Frames are shown to CAP_SYS_ADMIN only: what both have in common with somebody may be equal.
                    None => push(&mut veiled, page),
                }
            }
            at = window.end;
        }
    }
    same.extend(equal_pages(mine.pid(), theirs.pid(), &veiled)?);
    Ok(normalize(same))
}

/// The pages of `ranges` that have the same contents in both processes.
fn equal_pages(a: Pid, b: Pid, ranges: &[Range]) -> Result<Vec<Range>> {
    let mut equal = Vec::new();
    if ranges.is_empty() {
        return Ok(equal);
    }
    let mems = [super::open_mem(a)?, super::open_mem(b)?];
    let mut buffers = [vec![0; PIECE as usize], vec![0; PIECE as usize]];
    for r in ranges {
        let mut at = r.start;
        while at < r.end {
            let piece = Range::new(at, r.end.min(at + PIECE));
            let [mine, theirs] = &mut buffers;
            // What cannot be read is stored for each of them. See `super::read` for why it is read this way.
            let read = |mem: &File, into: &mut Vec<u8>| {
                let into = &mut into[..piece.len() as usize];
                mem.read_at(into, piece.start).unwrap_or(0)
            };
            let whole = read(&mems[0], mine).min(read(&mems[1], theirs)) / PAGE as usize;
            let pages = mine
                .chunks_exact(PAGE as usize)
                .zip(theirs.chunks_exact(PAGE as usize));
            for (i, _) in pages.take(whole).enumerate().filter(|(_, (m, t))| m == t) {
                push(
                    &mut equal,
                    Range::new(at + i as u64 * PAGE, at + (i as u64 + 1) * PAGE),
                );
            }
            at = piece.end;
        }
    }
    Ok(equal)
}
