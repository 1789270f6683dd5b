//! Pages that processes of a set still share since one was forked off the other: stored once for all of them.

use crate::error::Result;
use crate::ids::{PAGE, Pid, Range, SpaceId, normalize, subtract};
use crate::observe::view::speaker;
use crate::store::Draft;
use crate::sys::pagemap::{self, Entry, Pagemap, push};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Pages looked at in one go: 64 MiB, half a megabyte of entries.
const WINDOW: u64 = 64 << 20;

/// Pages compared by their contents in one go.
const PIECE: u64 = 1 << 20;

/// The processes that have been stored so far, all of which stand still.
#[derive(Debug, Default)]
pub(crate) struct Twins {
    stored: Vec<Pid>,
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
        let mut taken = Vec::new();
        if !self.stored.is_empty() {
            let candidates = match changed.filter(|_| !self.fresh) {
                Some(changed) => changed.clone(),
                None => all()?,
            };
            let mut open = candidates.clone();
            let mine = pagemap::open(speaker(pid))?;
            for other in &self.stored {
                if open.is_empty() {
                    break;
                }
                let same = same_pages(&mine, &pagemap::open(speaker(*other))?, &open)?;
                let shared = draft.share(SpaceId::private(pid), SpaceId::private(*other), &same);
                open = subtract(&open, &shared);
            }
            taken = subtract(&candidates, &open);
        }
        self.stored.push(pid);
        Ok(taken)
    }
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
