//! Soft-dirty bits: /proc/PID/clear_refs clears them all, a write sets a page's again.
//!
//! Reading the bits and clearing them are two steps, and what is written in between is lost: take only from a
//! stopped target. Clearing is for the whole process, so what a take was not asked about is kept for a later one.
//! Whoever else clears the bits of the target (another checkpointer) blinds this tracker, and cannot be noticed.
//!
//! See Documentation/admin-guide/mm/soft-dirty.rst.

use super::{Pages, Tier, Tracker, Untracked};
use crate::error::{Context, Error, Result};
use crate::ids::{Pid, Range, intersect, normalize, subtract};
use crate::sys::pagemap::{self, Contents, Entry, Pagemap, push};
use nix::errno::Errno;
use std::fs::File;
use std::io::Write;

#[derive(Debug)]
pub struct SoftDirty {
    map: Pagemap,
    clear: File,
    /// All that was given to `track` and is private.
    tracked: Vec<Range>,
    /// Written according to bits that were since cleared, or never taken at all, and not yet told.
    owed: Vec<Range>,
}

impl SoftDirty {
    /// For the process `pid` as it is now; after an execve(2) make a new one.
    pub fn new(pid: Pid) -> Result<SoftDirty> {
        if !SoftDirty::works() {
            return Err(Error::kernel(
                "soft-dirty",
                format!("pid {pid}"),
                Errno::EOPNOTSUPP,
            ));
        }
        let path = format!("/proc/{pid}/clear_refs");
        let clear = File::options().write(true).open(&path).on("open", || path)?;
        // The bit is read entry by entry; one way of looking at the pages is enough here.
        let map = pagemap::open(pid)?.without_scan();
        Ok(SoftDirty {
            map,
            clear,
            tracked: Vec::new(),
            owed: Vec::new(),
        })
    }

    /// Whether this kernel has the bits.
    pub fn works() -> bool {
        pagemap::has_soft_dirty()
    }

    /// Populated pages of `within`, and those of them with the bit or owed.
    fn look(&self, within: &[Range]) -> Result<Pages> {
        self.map.alive()?;
        let populated = self.map.populated_in(within, Contents::Private)?;
        let mut marked = Vec::new();
        for &range in &populated {
            // The mapping of a page that was read first as populated may be gone by now: a hole is not written.
            self.map
                .entries(range, |page, entry| mark(&mut marked, page, entry))?;
        }
        let owed = intersect(&populated, &self.owed);
        let foreign = subtract(&populated, &self.tracked);
        marked.extend(owed.into_iter().chain(foreign));
        Ok(Pages {
            populated,
            written: normalize(marked),
        })
    }
}

/// Adds the page if it was written.
fn mark(to: &mut Vec<Range>, page: Range, entry: Entry) {
    if entry.soft_dirty() && (entry.present() || entry.swapped()) {
        push(to, page);
    }
}

impl Tracker for SoftDirty {
    fn tier(&self) -> Tier {
        Tier::SoftDirty
    }

    fn track(&mut self, vmas: &[Range]) -> Result<Vec<(Range, Untracked)>> {
        let shared = super::shared(self.map.pid(), vmas)?;
        // The bits may have been cleared by others before: all of it is owed once.
        let fresh = subtract(&subtract(vmas, &shared), &self.tracked);
        self.owed = normalize([std::mem::take(&mut self.owed), fresh.clone()].concat());
        self.tracked = normalize([std::mem::take(&mut self.tracked), fresh].concat());
        Ok(shared.into_iter().map(|r| (r, Untracked::Shared)).collect())
    }

    fn take_written(&mut self, within: &[Range]) -> Result<Vec<Range>> {
        Ok(self.survey(within)?.written)
    }

    fn peek(&self, within: &[Range]) -> Result<Pages> {
        self.look(within)
    }

    fn survey(&mut self, within: &[Range]) -> Result<Pages> {
        let found = self.look(within)?;
        let elsewhere = self.look(&subtract(&self.tracked, within))?.written;
        self.owed = normalize([subtract(&self.owed, within), elsewhere].concat());
        if let Err(e) = self
            .clear
            .write_all(b"4\n")
            .on("write clear_refs", || format!("pid {}", self.map.pid()))
        {
            // Nothing was cleared, so nothing was taken but what was owed.
            self.owed = normalize([std::mem::take(&mut self.owed), found.written].concat());
            return Err(e);
        }
        Ok(found)
    }

    fn unregistered(&self, within: &[Range]) -> Result<Vec<Range>> {
        // New and replaced mappings show the bit by themselves; only what was never given is unknown.
        Ok(subtract(within, &self.tracked))
    }

    fn fresh(&mut self) -> Vec<Range> {
        Vec::new()
    }

    fn huge(&self, _within: &[Range]) -> Result<Vec<Range>> {
        Ok(Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_populated_pages_are_marked() {
        let soft = 1 << 55;
        let mut marked = Vec::new();
        let entries = [
            soft,
            soft | 1 << 63 | 5,
            1 << 63 | 5,
            soft | 1 << 62 | 3 << 5,
            1 << 62 | 3 << 5,
            soft | 1 << 63,
        ];
        for (n, entry) in (0u64..).zip(entries) {
            mark(&mut marked, Range::new(n << 12, (n + 1) << 12), Entry(entry));
        }
        assert_eq!(
            marked,
            [
                Range::new(1 << 12, 2 << 12),
                Range::new(3 << 12, 4 << 12),
                Range::new(5 << 12, 6 << 12)
            ]
        );
    }

    #[test]
    fn a_kernel_without_the_bits_is_told() {
        let made = SoftDirty::new(Pid(std::process::id() as i32));
        assert_eq!(made.is_ok(), SoftDirty::works());
    }
}
