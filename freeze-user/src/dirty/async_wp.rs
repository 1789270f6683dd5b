//! Asynchronous write-protection: registered once from outside, read and re-armed by `PAGEMAP_SCAN` in one step.
//!
//! A page counts as written when its mark is missing. So a page that never had one (populated after the
//! registration, swapped in elsewhere, moved, in a mapping of its own that replaced ours) is written by definition,
//! and only pages that a take returned carry a mark. Holes are never marked: that would allocate page tables, keep huge
//! pages away, and leave markers that look like swapped pages.

use super::{Pages, Tier, Tracker, Untracked};
use crate::error::{Error, Result};
use crate::ids::{Pid, Range, TASK_SIZE, intersect, normalize, subtract};
use crate::proc::maps::Vma;
use crate::sys::fault;
use crate::sys::pagemap::{
    self, Ask, Contents, FILE, HUGE, PRESENT, Pagemap, SWAPPED, WPALLOWED, WRITTEN, push,
};
use crate::sys::uffd::{self, Uffd};
use nix::errno::Errno;
use std::os::fd::OwnedFd;
use std::sync::LazyLock;

#[derive(Debug)]
pub struct AsyncWp {
    map: Pagemap,
    uffd: Uffd,
    /// What was registered, as far as nobody unmapped it since.
    ours: Vec<Range>,
    /// The part of it that maps files: there, pages that are still the file's must be told from the process's own.
    files: Vec<Range>,
    /// What could not be registered.
    refused: Vec<Range>,
    /// Where something was registered since somebody asked.
    fresh: Vec<Range>,
}

impl AsyncWp {
    /// For the process `pid` as it is now and a userfaultfd that was made in it with [`uffd::FLAGS`] and taken from it;
    /// after an execve(2) make a new one.
    ///
    /// A target that uses userfaultfd on mappings of its own is returned these by `track` as [`Untracked::Owned`]. One that
    /// re-registers, in asynchronous mode, a mapping that was tracked cannot be told from us: use another tier
    /// for processes that hold a userfaultfd.
    pub fn new(pid: Pid, fd: OwnedFd) -> Result<AsyncWp> {
        let map = pagemap::open(pid)?;
        if !map.scans() {
            return Err(Error::kernel("PAGEMAP_SCAN", format!("pid {pid}"), Errno::ENOTTY));
        }
        let uffd = Uffd::start(fd).map_err(|e| Error::kernel("UFFDIO_API", format!("pid {pid}"), e))?;
        Ok(AsyncWp {
            map,
            uffd,
            ours: Vec::new(),
            files: Vec::new(),
            refused: Vec::new(),
            fresh: Vec::new(),
        })
    }

    /// Whether this kernel has what is needed; not every process need grant a userfaultfd.
    pub fn works() -> bool {
        let me = Pid(std::process::id() as i32);
        pagemap::open(me).is_ok_and(|map| map.scans()) && uffd::own().and_then(Uffd::start).is_ok()
    }

    /// What selects populated pages of registered mappings; `files`: tell the file's own pages apart.
    fn ask(&self, files: bool) -> Ask {
        let not = self.map.empties() | if files { FILE } else { 0 };
        let (anyof, tell) = (PRESENT | SWAPPED, PRESENT | WRITTEN);
        Ask {
            mask: WPALLOWED | not,
            inverted: not,
            anyof,
            tell,
            protect: false,
        }
    }

    /// Walks over `within`, re-protecting with `protect`; with `all` false only the written pages are looked for.
    ///
    /// The order is what makes it whole: a mapping replaced after the first walk is not registered in the second.
    fn look(&self, within: &[Range], protect: bool, all: bool) -> Result<Pages> {
        self.map.alive()?;
        let mut found = Pages::default();
        for (part, files) in self.by_kind(within) {
            let mut ask = Ask {
                protect,
                ..self.ask(files)
            };
            if !all && !files {
                ask.mask |= WRITTEN;
            }
            self.map.scan(part, &ask, |region, is| {
                let written = is & WRITTEN != 0;
                if is & PRESENT != 0 {
                    found.add(region, written);
                    return Ok(());
                }
                // In file mappings a mark can outlive its page, and then looks like a swapped page not written to.
                self.map
                    .swapped(region, |page, sure| found.add(page, written || !sure))
            })?;
        }
        let foreign = self
            .map
            .populated_in(&self.unregistered(within)?, Contents::Private)?;
        foreign.iter().for_each(|&r| found.add(r, true));
        Ok(Pages {
            populated: normalize(found.populated),
            written: normalize(found.written),
        })
    }

    /// `within` cut into ranges that lie in file mappings (`true`) and ranges that do not.
    fn by_kind(&self, within: &[Range]) -> Vec<(Range, bool)> {
        let files = intersect(within, &self.files).into_iter().map(|r| (r, true));
        let mut parts: Vec<_> = subtract(within, &self.files)
            .into_iter()
            .map(|r| (r, false))
            .chain(files)
            .collect();
        parts.sort_unstable();
        parts
    }
}

/// Whether mremap(2) carries marks along (up to Linux 6.12).
fn moves_keep_marks() -> bool {
    static KEEP: LazyLock<bool> = LazyLock::new(|| uffd::moves_keep_marks().unwrap_or(true));
    *KEEP
}

/// What to register in one step each: private mappings that follow each other, with what is unmapped before, between and
/// behind them.
///
/// A mapping that grows, or comes at the place of another, just now must not become two by having the part registered that
/// was there before: mremap(2) of the whole would fail with `EFAULT`. `maps` is in order of address.
fn spans(maps: &[Vma]) -> Vec<Range> {
    /// The kernel refuses what begins below vm.mmap_min_addr, which is far lower; there is hardly ever anything below this.
    const LOWEST: u64 = 1 << 20;
    let mut out = Vec::new();
    let mut start = LOWEST;
    let mut open: Option<Range> = None;
    for vma in maps {
        // The kernel's own ([vdso], [vvar], [vsyscall]) are not the program's to write to.
        if vma.shared || vma.name.starts_with(b"[v") {
            // [vsyscall] lies where nobody can register anything.
            let end = |span: Range| vma.start.min(TASK_SIZE.max(span.end));
            out.extend(open.take().map(|span| Range::new(span.start, end(span))));
            start = vma.end;
        } else {
            let start = open.map_or(start.min(vma.start), |span| span.start);
            open = Some(Range::new(start, vma.end));
        }
    }
    out.extend(open);
    out
}

impl Tracker for AsyncWp {
    fn tier(&self) -> Tier {
        Tier::AsyncWp
    }

    fn track(&mut self, vmas: &[Range]) -> Result<Vec<(Range, Untracked)>> {
        self.map.alive()?;
        // What is tracked keeps its marks: registering again is for new and replaced mappings only.
        let fresh = self.unregistered(vmas)?;
        let mut untracked = Vec::new();
        if fresh.is_empty() {
            return Ok(untracked);
        }
        let maps = super::maps(self.map.pid())?;
        let mut whole = spans(&maps);
        whole.retain(|&span| !intersect(&fresh, &[span]).is_empty());
        // What was tracked may be replaced in this very moment, and what replaces it is then registered too: all of it
        // must be looked at again, and what the caller does not know of is no part of what is tracked.
        let touched = normalize([&fresh[..], &whole[..]].concat());
        self.fresh.extend_from_slice(&touched);
        self.ours = subtract(
            &self.ours,
            &normalize([fresh.clone(), subtract(&touched, vmas)].concat()),
        );
        self.files = intersect(&self.files, &self.ours);
        self.refused = subtract(&self.refused, &fresh);
        fault::point("registration")?;
        whole.retain(|&span| self.uffd.register(span).is_ok());
        for (i, vma) in maps.iter().enumerate() {
            // Where one in a span belongs to somebody else, each by itself: with what is unmapped behind it, for it may be growing
            // into that.
            let end = maps.get(i + 1).map_or(vma.end, |next| next.start);
            for part in intersect(&fresh, &[vma.range()]) {
                if vma.shared {
                    untracked.push((part, Untracked::Shared));
                    continue;
                }
                let done = match subtract(&[part], &whole).is_empty() {
                    true => Ok(()),
                    false => self
                        .uffd
                        .register(Range::new(vma.start, end.min(TASK_SIZE.max(vma.end)))),
                };
                match done {
                    Ok(()) => {
                        self.ours.push(part);
                        if vma.has_file() {
                            self.files.push(part);
                        }
                    }
                    Err(Errno::EBUSY) => untracked.push((part, Untracked::Owned)),
                    Err(e) => untracked.push((part, Untracked::Refused(e))),
                }
            }
        }
        let refused = untracked.iter().map(|u| u.0);
        self.refused = normalize(self.refused.iter().copied().chain(refused).collect());
        self.ours = normalize(std::mem::take(&mut self.ours));
        self.files = normalize(std::mem::take(&mut self.files));
        // Some kernels' mremap(2) carries marks along into a mapping that is no longer registered, where writes
        // do not take them off. Nothing fresh may have a mark.
        let suspect = match moves_keep_marks() && super::maps(self.map.pid())? != maps {
            true => touched,
            false => fresh,
        };
        let mut stale = Vec::new();
        let mut all = self.ask(false);
        all.tell = WRITTEN;
        for part in intersect(&suspect, &self.ours) {
            self.map.scan(part, &all, |region, is| {
                if is & WRITTEN == 0 {
                    push(&mut stale, region);
                }
                Ok(())
            })?;
        }
        for part in stale {
            self.uffd.unprotect(part).map_err(|e| {
                Error::kernel(
                    "UFFDIO_WRITEPROTECT",
                    format!("pid {}, {part}", self.map.pid()),
                    e,
                )
            })?;
        }
        Ok(untracked)
    }

    fn take_written(&mut self, within: &[Range]) -> Result<Vec<Range>> {
        Ok(self.look(within, true, false)?.written)
    }

    fn peek(&self, within: &[Range]) -> Result<Pages> {
        self.look(within, false, true)
    }

    fn survey(&mut self, within: &[Range]) -> Result<Pages> {
        self.look(within, true, true)
    }

    fn unregistered(&self, within: &[Range]) -> Result<Vec<Range>> {
        // One call over many neighbours costs as much as one over one; what was refused is left out of it, since
        // the kernel would walk its pages.
        let mut out = subtract(within, &self.ours);
        let known = intersect(within, &self.ours);
        let mut at = 0;
        while at < known.len() {
            let mut span = known[at];
            at += 1;
            while at < known.len() {
                let gap = [Range::new(span.end, known[at].start)];
                if !intersect(&gap, &self.refused).is_empty() {
                    break;
                }
                span.end = known[at].end;
                at += 1;
            }
            out.extend(intersect(&self.map.unregistered(span)?, &known));
        }
        Ok(normalize(out))
    }

    fn fresh(&mut self) -> Vec<Range> {
        normalize(std::mem::take(&mut self.fresh))
    }

    fn huge(&self, within: &[Range]) -> Result<Vec<Range>> {
        let ask = Ask {
            mask: HUGE,
            ..Ask::default()
        };
        let mut out = Vec::new();
        for &part in within {
            self.map.scan(part, &ask, |region, _| {
                push(&mut out, region);
                Ok(())
            })?;
        }
        Ok(normalize(out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_and_what_lies_between_them_are_registered_in_one_step() {
        let text = b"201000-203000 rw-p 0 00:00 0\n205000-206000 r--p 0 00:00 0\n208000-209000 rw-s 0 00:01 7 /x\n\
            20b000-20c000 rw-p 0 00:00 0\n20d000-20e000 r-xp 0 00:00 0 [vdso]\n210000-212000 rw-p 0 00:00 0\n";
        let maps = crate::proc::maps::parse_maps(text).unwrap();
        let expected = [
            (0x10_0000, 0x20_8000),
            (0x20_9000, 0x20_d000),
            (0x20_e000, 0x21_2000),
        ];
        assert_eq!(spans(&maps), expected.map(|(s, e)| Range::new(s, e)));
        let low = crate::proc::maps::parse_maps(b"10000-11000 rw-p 0 00:00 0\n").unwrap();
        assert_eq!(spans(&low), [Range::new(0x1_0000, 0x1_1000)]);
        // After a restore what is mapped anew may lie above [vdso].
        let high =
            b"7f0000000000-7f0000001000 r-xp 0 00:00 0 [vdso]\n7f0000002000-7f0000003000 rw-p 0 00:00 0\n\
            ffffffffff600000-ffffffffff601000 --xp 0 00:00 0 [vsyscall]\n";
        let high = crate::proc::maps::parse_maps(high).unwrap();
        assert_eq!(spans(&high), [Range::new(0x7f00_0000_1000, TASK_SIZE)]);
        assert_eq!(spans(&[]), []);
    }
}
