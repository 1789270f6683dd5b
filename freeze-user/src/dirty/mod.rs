//! Which pages of a process were written since the last look, by the best means that the kernel has.
//!
//! ```text
//! track(new mappings) ──► take_written ──► take_written ──► … ──► survey, with the target stopped
//!                         the first take over a mapping             written: copy these
//!                         returns all its populated pages           populated: what the parent has outside
//!                                                                   of it is now a hole (or the file again)
//! ```
//!
//! What a tracker promises: a page whose contents changed between two takes is in the second one's answer, whoever in
//! the process or on its behalf wrote it. It may answer with more pages, never with fewer, except where nobody
//! looking at one page table can know:
//! - **Shared memory and shared file mappings**: writes through another mapping or an fd leave no trace here. They
//!   are not tracked but returned as [`Untracked::Shared`]: copy or compare them whole, with all their writers stopped.
//! - **Buffers registered with io_uring** (`READ_FIXED`): the kernel writes into pinned pages behind every page
//!   table. To register them counts as a write; what is written later does not. The caller tracks no process that has
//!   an io_uring instance, and compares its memory at the cut.
//!
//! A page that *vanishes* (`MADV_DONTNEED`, a hole where memory was) was not written and is not reported as such:
//! it is missing from [`Pages::populated`].
//!
//! An answer once given is not given again: keep it in a [`History`] until a checkpoint that contains it is committed.

mod async_wp;
mod everything;
mod soft_dirty;
#[cfg(test)]
mod truth;

pub use async_wp::AsyncWp;
pub use everything::Everything;
pub use soft_dirty::SoftDirty;

use crate::error::{Context, Error, Result};
use crate::ids::{Pid, Range, intersect, normalize};
use crate::proc::maps::{Vma, parse_maps};
use crate::sys::pagemap::push;
use nix::errno::Errno;
use serde::Serialize;
use std::fmt;
use std::io::ErrorKind;

/// By which means pages are known to be written, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Tier {
    /// userfaultfd's asynchronous write-protection and `PAGEMAP_SCAN` (Linux 6.7).
    AsyncWp,
    /// Soft-dirty bits and /proc/PID/clear_refs (where the kernel was built with them).
    SoftDirty,
    /// None: every populated page counts as written.
    Everything,
}

impl Tier {
    /// Whether looking and re-protecting is one step per page, so that [`Tracker::take_written`] loses nothing
    /// while the target runs. Where it is not, take only from a stopped target, and pre-copy by
    /// [`Tracker::peek`], whose pages must then be looked at again.
    pub fn takes_while_running(self) -> bool {
        match self {
            Tier::AsyncWp | Tier::Everything => true,
            Tier::SoftDirty => false,
        }
    }

    /// The best that this kernel has, found by trying it on this process.
    pub fn best() -> Tier {
        if AsyncWp::works() {
            Tier::AsyncWp
        } else if SoftDirty::works() {
            Tier::SoftDirty
        } else {
            Tier::Everything
        }
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Tier::AsyncWp => "asynchronous write-protect",
            Tier::SoftDirty => "soft-dirty",
            Tier::Everything => "everything",
        })
    }
}

/// Why a mapping is not tracked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Untracked {
    /// It is shared: writes through other mappings or through an fd cannot be seen from here.
    Shared,
    /// A userfaultfd of the target's own is on it.
    Owned,
    /// The kernel does not register this kind of mapping (`[vdso]`, `[vvar]`, `MAP_DROPPABLE`), or it is gone again.
    Refused(Errno),
}

impl fmt::Display for Untracked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Untracked::Shared => f.write_str("shared memory may be written through other mappings"),
            Untracked::Owned => f.write_str("the program watches it with a userfaultfd of its own"),
            Untracked::Refused(e) => write!(f, "the kernel does not track this kind of mapping ({e:?})"),
        }
    }
}

/// What one walk over the page table found; both in order, normalized.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pages {
    /// Pages that have contents of their own ([`Contents::Private`](crate::sys::pagemap::Contents::Private)).
    pub populated: Vec<Range>,
    /// Those of them that were written since they were last taken; always a part of `populated`.
    pub written: Vec<Range>,
}

impl Pages {
    /// Appends a region, in the order of addresses.
    fn add(&mut self, region: Range, written: bool) {
        push(&mut self.populated, region);
        if written {
            push(&mut self.written, region);
        }
    }
}

/// Knows which pages of one process's private memory were written. Ranges given to it are page-aligned, in order
/// and apart (normalized).
///
/// After an error it is not known which pages were taken: drop the tracker, and take all pages for written.
///
/// Dropping a tracker ends the tracking; with [`AsyncWp`] that costs tens of milliseconds per GiB: not in a pause.
pub trait Tracker: Send + fmt::Debug {
    fn tier(&self) -> Tier;

    /// Starts to track these mappings, and returns those that cannot be, which count as always written. What is
    /// tracked already stays as it is. Costs a few milliseconds per GiB of new mappings: not in a pause.
    fn track(&mut self, vmas: &[Range]) -> Result<Vec<(Range, Untracked)>>;

    /// The populated pages of `within` that were written since they were last taken, or that never were; re-protects
    /// them in the same step. Pages of `within` that are not tracked are all returned.
    ///
    /// Copy *after* it: what is written during the copy is in the next answer.
    fn take_written(&mut self, within: &[Range]) -> Result<Vec<Range>>;

    /// Written and populated pages, without re-protecting any.
    fn peek(&self, within: &[Range]) -> Result<Pages>;

    /// Written and populated pages from one walk, re-protecting the written ones: what a checkpoint needs in its pause.
    fn survey(&mut self, within: &[Range]) -> Result<Pages>;

    /// The parts of `within` that are not tracked: mappings that are new, moved, replaced, or were refused.
    fn unregistered(&self, within: &[Range]) -> Result<Vec<Range>>;

    /// Where [`Tracker::track`] took in mappings since this was asked last: what is there may be another mapping than the
    /// one that was asked for, and its pages may have come before that.
    fn fresh(&mut self) -> Vec<Range>;

    /// The huge pages in `within`.
    fn huge(&self, within: &[Range]) -> Result<Vec<Range>>;
}

/// The number of a take, counted from 1 over the life of a [`History`]; 0 is before the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

/// The answers of a tracker that no committed checkpoint contains yet.
///
/// A checkpoint on a parent of epoch N stores the pages `since(N)`; once it is committed, `settle` with its own epoch
/// forgets them. When it fails instead, nothing is forgotten and the next one stores them.
#[derive(Clone, Debug, Default)]
pub struct History {
    now: Epoch,
    taken: Vec<(Epoch, Vec<Range>)>,
}

impl History {
    /// The epoch of the last answer.
    pub fn now(&self) -> Epoch {
        self.now
    }

    /// Adds the answer of a take and returns its epoch.
    pub fn add(&mut self, written: Vec<Range>) -> Epoch {
        self.now.0 += 1;
        self.taken.push((self.now, written));
        self.now
    }

    /// Everything written after `epoch`, normalized; `None` when that is no longer known.
    pub fn since(&self, epoch: Epoch) -> Option<Vec<Range>> {
        let first = self.taken.first().map_or(self.now.0 + 1, |(e, _)| e.0);
        if epoch.0 + 1 < first {
            return None;
        }
        let after = self.taken.iter().filter(|(e, _)| *e > epoch);
        Some(normalize(
            after.flat_map(|(_, ranges)| ranges.iter().copied()).collect(),
        ))
    }

    /// Forgets what was written up to `epoch`: a checkpoint with it is committed.
    pub fn settle(&mut self, epoch: Epoch) {
        self.taken.retain(|(e, _)| *e > epoch);
    }
}

/// The mappings of a process as they are now.
fn maps(pid: Pid) -> Result<Vec<Vma>> {
    let path = format!("/proc/{pid}/maps");
    let text = match std::fs::read(&path) {
        // ESRCH while reading: the process ended after the open.
        Err(e) if e.kind() == ErrorKind::NotFound || e.raw_os_error() == Some(libc::ESRCH) => {
            return Err(Error::Died {
                pid,
                how: "is gone".to_owned(),
            });
        }
        other => other.on("read", || path.clone())?,
    };
    parse_maps(&text).ok_or_else(|| Error::kernel("parse", path, Errno::EBADMSG))
}

/// What of `vmas` is shared memory.
fn shared(pid: Pid, vmas: &[Range]) -> Result<Vec<Range>> {
    let shared = maps(pid)?.iter().filter(|v| v.shared).map(Vma::range).collect();
    Ok(intersect(vmas, &normalize(shared)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn r(list: &[(u64, u64)]) -> Vec<Range> {
        list.iter().map(|&(a, b)| Range::new(a, b)).collect()
    }

    #[test]
    fn a_failed_checkpoint_forgets_nothing() {
        let mut h = History::default();
        let first = h.add(r(&[(0, 100)]));
        h.settle(first);
        h.add(r(&[(10, 20)]));
        // The checkpoint of that take failed; the next one stores its pages as well.
        let third = h.add(r(&[(15, 30), (50, 60)]));
        assert_eq!(h.since(first), Some(r(&[(10, 30), (50, 60)])));
        h.settle(third);
        assert_eq!(h.since(third), Some(vec![]));
        assert_eq!(
            h.since(first),
            None,
            "pages that were forgotten must not be taken for unwritten"
        );
    }
}
