//! The fault log between a full look and the cut: where pages may have been written since, and that it was nowhere else.
//!
//! ```text
//! follow ─► look at everything, copy ─► look where the log says, copy ─► … ─► stop, look where it says, copy
//!                                                                     resume ─► look at everything: all that is
//!                                                                               written now was logged since?
//! ```
//! A record precedes the change of the page table that it tells of, so each look also goes where every thread had faulted
//! last before the look before. What no record tells of (io_uring, other processes, a full ring) is a gap: then
//! everything is looked at.
//!
//! The proof takes nothing for granted. A page that was tracked, was not looked at in the pause and counts as written
//! must have faulted itself since the cut, or lie in a huge page that one fault has filled since; and what the draft
//! has a page for must have one. What was emptied or unmapped since can no longer be proven.

use crate::dirty::Tracker;
use crate::error::Result;
use crate::ids::{PAGE, Pid, Range, SpaceId, intersect, normalize, subtract};
use crate::observe::FaultLog;
use crate::observe::view::{Depth, read_vmas, speaker};
use crate::proc::maps::Vma;
use crate::store::Draft;
use std::sync::{Arc, Mutex, PoisonError};

/// The log, which those who checkpoint different groups share; its programs are loaded when a process is large enough
/// to need it.
#[derive(Clone, Debug)]
pub struct SharedLog(Arc<Mutex<State>>);

#[derive(Debug)]
enum State {
    NotYet,
    Here(Box<FaultLog>),
    /// The kernel does not grant one, which has been said.
    Never,
}

/// How many bytes of faults the log holds: as many as occur while a checkpoint is made, not in all the time between two.
const RING: u32 = 8 << 20;

impl Default for SharedLog {
    fn default() -> SharedLog {
        SharedLog(Arc::new(Mutex::new(State::NotYet)))
    }
}

impl SharedLog {
    /// Does something with the log; `None` where there is none.
    fn with<T>(&self, work: impl FnOnce(&mut FaultLog) -> Result<T>) -> Option<Result<T>> {
        // Whoever panicked with it left a map of what is followed, which is whole at every moment.
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let State::NotYet = *state {
            *state = match FaultLog::start(RING) {
                Ok(log) => State::Here(Box::new(log)),
                Err(e) => {
                    tracing::warn!(
                        "no fault log: {e}; written pages are scanned for in the pause, which grows by 1 ms per GiB"
                    );
                    State::Never
                }
            };
        }
        match &mut *state {
            State::Here(log) => Some(work(log)),
            _ => None,
        }
    }
}

/// Logged pages nearer to each other than this are looked at in one go.
const NEAR: u64 = 64 * PAGE;

/// A process that is being logged; dropping it ends that.
#[derive(Debug)]
pub(super) struct Logged {
    pid: Pid,
    log: SharedLog,
    /// Why the log did not serve at the cut, if it did not.
    pub(super) gap: Option<&'static str>,
}

impl Logged {
    /// Begins to log a process, if it can be; everything must be looked at afterwards.
    pub(super) fn follow(log: &SharedLog, pid: Pid) -> Option<Logged> {
        log.with(|l| l.follow(pid))?.ok()?;
        Some(Logged {
            pid,
            log: log.clone(),
            gap: None,
        })
    }

    /// Where pages may have been written since the last look; `None` if that can be anywhere.
    pub(super) fn places(&mut self) -> Option<Vec<Range>> {
        let seen = match self.log.with(|l| l.take(self.pid)) {
            Some(Ok(seen)) => seen,
            _ => {
                self.gap = Some("the log could not be read");
                return None;
            }
        };
        self.gap = seen.gap;
        self.gap.is_none().then(|| joined(seen.places()))
    }

    /// Whether the log has told of everything that was written up to the cut: called after the resume; the error says
    /// why that is not known.
    pub(super) fn prove(
        &self,
        tracker: &dyn Tracker,
        cut: &Cut,
        draft: &Draft,
    ) -> std::result::Result<(), &'static str> {
        const GONE: &str = "the process was gone before the log was proven";
        const UNMAPPED: &str = "memory was unmapped or emptied before the log was proven";
        // First the page tables and then the log: what is written in between must not look missed.
        let pages = tracker.peek(&cut.open).map_err(|_| GONE)?;
        let mut lost = tracker.unregistered(&cut.open).map_err(|_| GONE)?;
        let maps = read_vmas(speaker(self.pid), Depth::Maps).map_err(|_| GONE)?;
        let mapped = normalize(maps.iter().filter(|v| !v.shared).map(Vma::range).collect());
        let seen = match self.log.with(|l| l.take(self.pid)) {
            Some(Ok(seen)) => seen,
            _ => return Err("the log could not be read for the proof"),
        };
        if seen.gap.is_some() {
            return Err("the log had a gap before it was proven");
        }
        lost.extend(subtract(&cut.open, &mapped));
        lost.extend(intersect(&cut.open, &seen.changed));
        if !lost.is_empty() {
            return Err(UNMAPPED);
        }
        let mut missed = subtract(&pages.written, &seen.pages);
        if !missed.is_empty() {
            let filled = intersect(&cut.open, &seen.filled);
            let huge = tracker.huge(&filled).map_err(|_| GONE)?;
            missed = subtract(&missed, &huge);
        }
        // Nothing was emptied since: what the draft has a page for and is a hole now was one at the cut.
        let stored = draft.stored(SpaceId::private(self.pid), &cut.open);
        missed.extend(subtract(&stored, &pages.populated));
        if missed.is_empty() {
            return Ok(());
        }
        tracing::debug!(pid = %self.pid, ?missed, "the fault log missed pages");
        Err("the log missed pages")
    }
}

/// What must be known of the cut to prove the log.
#[derive(Debug, Default)]
pub(super) struct Cut {
    /// The private mappings that were tracked, but for what was looked at in the pause.
    pub(super) open: Vec<Range>,
}

impl Drop for Logged {
    fn drop(&mut self) {
        let pid = self.pid;
        self.log.with(|l| {
            l.unfollow(pid);
            Ok(())
        });
    }
}

/// Joins ranges that are near to each other.
fn joined(ranges: Vec<Range>) -> Vec<Range> {
    let mut out: Vec<Range> = Vec::with_capacity(ranges.len());
    for r in ranges {
        match out.last_mut() {
            Some(last) if r.start - last.end <= NEAR => last.end = r.end,
            _ => out.push(r),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_near_is_joined() {
        let r = |pages: &[(u64, u64)]| -> Vec<Range> {
            let range = |&(a, b): &(u64, u64)| Range::new(a * PAGE, b * PAGE);
            pages.iter().map(range).collect()
        };
        assert_eq!(
            joined(r(&[(0, 1), (65, 66), (131, 132)])),
            r(&[(0, 66), (131, 132)])
        );
    }
}
