//! Which pages of another process are populated and which were written: `PAGEMAP_SCAN`, or /proc/PID/pagemap where
//! the kernel is older than 6.7.
//!
//! See Documentation/admin-guide/mm/pagemap.rst. Three things that it does not say, and that cost pages:
//! - A page-table entry that is only a *marker* (a write-protect mark that outlived its page, a guard page) is shown
//!   as swapped. `MADV_DONTNEED` on a protected page of a private file mapping leaves one: what is read there is the
//!   file again. [`Pagemap::populated`] looks at the entry's type to tell the two apart.
//! - `PM_SCAN_WP_MATCHING` also marks mappings that no userfaultfd owns, where the mark means nothing and is never
//!   taken off again. [`Ask::protect`] therefore goes only together with [`WPALLOWED`] in the mask.
//! - With the mask exactly `WRITTEN` the kernel marks holes too, and the markers left in them look swapped for ever.
#![allow(unsafe_code, reason = "an ioctl with a structure has its address here")]

use crate::error::{Context, Error, Result};
use crate::ids::{PAGE, Pid, Range, intersect, normalize};
use nix::errno::Errno;
use std::cell::Cell;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

/// The mapping is registered with an asynchronous userfaultfd.
pub const WPALLOWED: u64 = 1 << 0;
/// The page was written since it was protected, or never was protected.
pub const WRITTEN: u64 = 1 << 1;
/// The page belongs to a file or shared memory object. Asking costs a look at every page's `struct page`.
pub const FILE: u64 = 1 << 2;
pub const PRESENT: u64 = 1 << 3;
/// Swapped out, or moving, or a mere marker.
pub const SWAPPED: u64 = 1 << 4;
/// The shared page of zeros.
pub const PFNZERO: u64 = 1 << 5;
/// Mapped as one huge page.
pub const HUGE: u64 = 1 << 6;
/// `MADV_GUARD_INSTALL`, known to Linux 6.15 and later.
pub const GUARD: u64 = 1 << 8;

const PM_SCAN_WP_MATCHING: u64 = 1 << 0;

/// `struct pm_scan_arg` of linux/fs.h.
#[repr(C)]
#[derive(Default)]
struct PmScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `struct page_region` of linux/fs.h.
#[repr(C)]
#[derive(Clone, Copy)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

const _: () = assert!(size_of::<PmScanArg>() == 96);
const _: () = assert!(size_of::<PageRegion>() == 24);

/// `_IOWR('f', 16, struct pm_scan_arg)`
const PAGEMAP_SCAN: u64 = 3 << 30 | (size_of::<PmScanArg>() as u64) << 16 | (b'f' as u64) << 8 | 16;
const _: () = assert!(PAGEMAP_SCAN == 0xc060_6610);

/// Regions asked for in one call: 96 KiB, of which only what the kernel fills is ever touched.
const REGIONS: usize = 4096;
/// Entries of /proc/PID/pagemap read in one call: 64 KiB.
const ENTRIES: usize = 8192;
/// Addresses from here on belong to the kernel (and `[vsyscall]`), and have no pages of the process.
const USER_END: u64 = 1 << 63;

/// Which pages count as populated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contents {
    /// Pages of a private mapping that differ from its file: anonymous pages, in memory or swapped out. Neither pages
    /// that are still the file's nor the shared page of zeros.
    Private,
    /// Every page in memory or swapped out. Of a *shared* object this is only what this process has mapped in:
    /// pages that were swapped out or that only others touched are not in its page table.
    Any,
}

/// What a scan selects: `(categories ^ inverted)` must contain all of `mask` and, unless 0, one of `anyof`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ask {
    pub mask: u64,
    pub inverted: u64,
    pub anyof: u64,
    /// Which categories are told of each region (and split it).
    pub tell: u64,
    /// Write-protect the selected pages that were written, in the same step; `mask` must contain [`WPALLOWED`].
    pub protect: bool,
}

/// One entry of /proc/PID/pagemap.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Entry(pub u64);

impl Entry {
    fn bit(self, n: u32) -> bool {
        self.0 >> n & 1 != 0
    }

    /// Written since /proc/PID/clear_refs was last written to, or in a mapping made since then.
    pub fn soft_dirty(self) -> bool {
        self.bit(55)
    }

    /// A guard page (Linux 6.15 and later say so; before, only the marker does).
    pub fn guard(self) -> bool {
        self.bit(58) || self.marker().is_some_and(|m| m & 4 != 0)
    }

    /// The page is a file's, or shared memory.
    pub fn file(self) -> bool {
        self.bit(61)
    }

    /// Whether only this one page table has it.
    pub fn exclusive(self) -> bool {
        self.bit(56)
    }

    /// Whether another page table may have its page too.
    pub fn may_be_shared(self) -> bool {
        (self.present() || self.swapped()) && !self.exclusive()
    }

    /// Whether another entry leads to the same page, of memory or swap; `None` if the reader was not shown enough.
    pub fn same_page(self, other: Entry) -> Option<bool> {
        let both = self.may_be_shared() && other.may_be_shared();
        if !both || self.present() != other.present() {
            return Some(false);
        }
        match (self.frame(), other.frame()) {
            (0, _) | (_, 0) => None,
            (a, b) => Some(a == b),
        }
    }

    pub fn swapped(self) -> bool {
        self.bit(62)
    }

    pub fn present(self) -> bool {
        self.bit(63)
    }

    /// The frame number of a present page; 0 is what a reader without CAP_SYS_ADMIN sees.
    pub fn frame(self) -> u64 {
        self.0 & ((1 << 55) - 1)
    }

    /// Whether the entry is no page at all but a note of the kernel's, and which.
    ///
    /// Swap entries carry a type in five bits; the last one is kept for markers: 1 write-protected, 2 poisoned, 4 guard.
    fn marker(self) -> Option<u64> {
        (self.swapped() && !self.present() && self.frame() & 0x1f == 0x1f).then_some(self.frame() >> 5)
    }

    /// A swapped entry of which the reader was not shown what it is.
    fn veiled(self) -> bool {
        self.swapped() && !self.present() && self.frame() == 0
    }

    /// Whether there is a page behind it. A poisoned page counts, so that reading it fails loudly.
    fn holds(self, which: Contents, zero: Option<u64>) -> bool {
        if self.guard() || self.marker() == Some(1) || !(self.present() || self.swapped()) {
            return false;
        }
        match which {
            Contents::Any => true,
            Contents::Private if self.file() => false,
            Contents::Private => !self.present() || Some(self.frame()) != zero,
        }
    }
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Entry({:#018x})", self.0)
    }
}

/// The page table of one address space, to be looked at from outside.
///
/// It stays with the address space that the process had when it was opened: after an execve(2) it is empty, and
/// every question is answered by [`Error::Died`].
#[derive(Debug)]
pub struct Pagemap {
    pid: Pid,
    file: File,
    /// The ioctl exists.
    scans: bool,
    /// [`GUARD`], where the ioctl knows it.
    guard: u64,
    /// The frame of the page of zeros, where frames are shown.
    zero: Option<u64>,
    /// Room for answers, kept from one scan to the next.
    regions: Regions,
}

#[derive(Default)]
struct Regions(Cell<Vec<PageRegion>>);

impl Regions {
    fn take(&self) -> Vec<PageRegion> {
        self.0.take()
    }

    fn set(&self, regions: Vec<PageRegion>) {
        self.0.set(regions);
    }
}

impl std::fmt::Debug for Regions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Regions")
    }
}

/// Opens /proc/PID/pagemap and finds out what this kernel can answer.
pub fn open(pid: Pid) -> Result<Pagemap> {
    let path = format!("/proc/{pid}/pagemap");
    let file = match File::open(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::Died {
                pid,
                how: "is gone".to_owned(),
            });
        }
        other => other.on("open", || path)?,
    };
    let mut map = Pagemap {
        pid,
        file,
        scans: true,
        guard: GUARD,
        zero: None,
        regions: Regions::default(),
    };
    // An empty range: the arguments are looked at, the memory is not.
    let nothing = Range::new(0, 0);
    if map.call(
        nothing,
        &Ask {
            tell: GUARD,
            ..Ask::default()
        },
        &mut Vec::new(),
    ) == Err(Errno::EINVAL)
    {
        map.guard = 0;
    }
    match map.call(
        nothing,
        &Ask {
            tell: PRESENT,
            ..Ask::default()
        },
        &mut Vec::new(),
    ) {
        Err(Errno::ENOTTY | Errno::EINVAL) => map = map.without_scan(),
        other => drop(other.on("PAGEMAP_SCAN", || format!("pid {pid}"))?),
    }
    Ok(map)
}

/// The guard pages of a process in these ranges.
pub fn guards_of(pid: Pid, ranges: impl Iterator<Item = Range>) -> Result<Vec<Range>> {
    let map = open(pid)?;
    let mut out = Vec::new();
    for range in normalize(ranges.collect()) {
        out.extend(map.guards(range)?);
    }
    Ok(normalize(out))
}

impl Pagemap {
    /// The same, but reading entries one by one as on a kernel without `PAGEMAP_SCAN`.
    pub fn without_scan(mut self) -> Pagemap {
        self.scans = false;
        self.zero = zero_frame();
        self
    }

    /// Whether the kernel has `PAGEMAP_SCAN`.
    pub fn scans(&self) -> bool {
        self.scans
    }

    /// The process that was opened.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// The pages in `range` that have contents, in order and joined.
    ///
    /// 1–2 ms per GiB of 4 KiB pages for [`Contents::Any`]; 6 ms for [`Contents::Private`], which looks at every page's
    /// `struct page` (a tracker's `survey` knows where it need not, and takes 1–2 ms); 7–9 ms without `PAGEMAP_SCAN`,
    /// where holes cost as much as pages.
    pub fn populated(&self, range: Range, which: Contents) -> Result<Vec<Range>> {
        self.populated_in(&[range], which)
    }

    /// [`Pagemap::populated`] of several ranges, normalized.
    pub fn populated_in(&self, ranges: &[Range], which: Contents) -> Result<Vec<Range>> {
        self.alive()?;
        let mut out = Vec::new();
        if !self.scans {
            for part in self.inhabited(ranges)? {
                self.entries(part, |page, entry| {
                    if entry.holds(which, self.zero) {
                        push(&mut out, page);
                    }
                })?;
            }
            return Ok(normalize(out));
        }
        let not = match which {
            Contents::Private => FILE | PFNZERO | self.guard,
            Contents::Any => self.guard,
        };
        let ask = Ask {
            mask: not,
            inverted: not,
            anyof: PRESENT | SWAPPED,
            tell: PRESENT,
            protect: false,
        };
        for &range in ranges {
            self.scan(range, &ask, |part, is| {
                if is & PRESENT != 0 {
                    push(&mut out, part);
                    return Ok(());
                }
                self.swapped(part, |page, _sure| push(&mut out, page))
            })?;
        }
        Ok(normalize(out))
    }

    /// The parts of some ranges that [`Pagemap::entries`] can tell of pages in: there a hole takes as long as pages do, and
    /// terabytes that are only reserved would take seconds each time. smaps knows of them at once.
    fn inhabited(&self, ranges: &[Range]) -> Result<Vec<Range>> {
        const VAST: u64 = 16 << 30;
        let ranges = normalize(ranges.to_vec());
        if ranges.iter().map(|r| r.len()).sum::<u64>() < VAST {
            return Ok(ranges);
        }
        let path = || format!("/proc/{}/smaps", self.pid);
        let text = std::fs::read(path()).on("read", path)?;
        Ok(match inhabited_in(&String::from_utf8_lossy(&text)) {
            Some(all) => intersect(&ranges, &normalize(all)),
            None => ranges,
        })
    }

    /// The guard pages in `range` (`MADV_GUARD_INSTALL`, Linux 6.13; shown to root only before 6.15).
    pub fn guards(&self, range: Range) -> Result<Vec<Range>> {
        self.alive()?;
        let mut out = Vec::new();
        if self.scans && self.guard != 0 {
            let ask = Ask {
                mask: GUARD,
                ..Ask::default()
            };
            self.scan(range, &ask, |part, _| {
                push(&mut out, part);
                Ok(())
            })?;
            return Ok(normalize(out));
        }
        let mut look = |page, entry: Entry| {
            if entry.guard() {
                push(&mut out, page);
            }
        };
        if !self.scans {
            if knows_guards() {
                self.entries(range, look)?;
            }
            return Ok(normalize(out));
        }
        let mut swapped = Vec::new();
        let ask = Ask {
            mask: SWAPPED,
            ..Ask::default()
        };
        self.scan(range, &ask, |part, _| {
            swapped.push(part);
            Ok(())
        })?;
        for part in swapped {
            self.entries(part, &mut look)?;
        }
        Ok(normalize(out))
    }

    /// The parts of `range` that are mapped but belong to no asynchronous userfaultfd. Looks at mappings, not at pages,
    /// except inside what it returns.
    pub fn unregistered(&self, range: Range) -> Result<Vec<Range>> {
        let mut out = Vec::new();
        let ask = Ask {
            mask: WPALLOWED,
            inverted: WPALLOWED,
            tell: WPALLOWED,
            ..Ask::default()
        };
        self.scan(range, &ask, |part, _| {
            push(&mut out, part);
            Ok(())
        })?;
        Ok(normalize(out))
    }

    /// `PAGEMAP_SCAN` over all of `range`: each region with the categories that were asked to be told.
    ///
    /// Mostly in order, but a kernel whose buffer fills may tell a region twice (seen on 6.18): normalize what is
    /// collected. When an error is returned, some pages may have been protected and not told.
    pub fn scan(
        &self,
        range: Range,
        ask: &Ask,
        mut each: impl FnMut(Range, u64) -> Result<()>,
    ) -> Result<()> {
        assert!(
            !ask.protect || ask.mask & !ask.inverted & WPALLOWED != 0,
            "protecting what is not registered"
        );
        let Some(mut rest) = range.intersect(Range::new(0, USER_END)) else {
            return Ok(());
        };
        let mut regions = self.regions.take();
        regions.reserve(REGIONS);
        while !rest.is_empty() {
            let walked = match self.call(rest, ask, &mut regions) {
                Err(Errno::ESRCH) => return Err(self.died()),
                done => done.on("PAGEMAP_SCAN", || self.place(rest))?,
            };
            for r in &regions {
                each(Range::new(r.start, r.end), r.categories)?;
            }
            // A call that gets nowhere must not be repeated for ever.
            if walked <= rest.start || walked > rest.end {
                return Err(Error::kernel("PAGEMAP_SCAN", self.place(rest), Errno::EIO));
            }
            rest.start = walked;
        }
        self.regions.set(regions);
        Ok(())
    }

    /// Every entry of /proc/PID/pagemap for the pages of `range`.
    pub fn entries(&self, range: Range, mut each: impl FnMut(Range, Entry)) -> Result<()> {
        let Some(range) = range.intersect(Range::new(0, USER_END)) else {
            return Ok(());
        };
        let mut buf = vec![0u8; 8 * range.pages().min(ENTRIES as u64) as usize];
        let mut at = range.start;
        while at < range.end {
            let want = buf.len().min(8 * Range::new(at, range.end).pages() as usize);
            let got = self
                .file
                .read_at(&mut buf[..want], at / PAGE * 8)
                .on("read pagemap", || self.place(range))?;
            if got < 8 {
                // Past the end of what a process can map, or the address space is gone.
                return self.alive();
            }
            for word in buf[..got].chunks_exact(8) {
                let entry = Entry(u64::from_ne_bytes(word.try_into().expect("eight bytes")));
                each(Range::new(at, at + PAGE), entry);
                at += PAGE;
            }
        }
        Ok(())
    }

    /// Goes through a region that a scan called swapped and not present, and tells its real pages; `false` with
    /// those that may as well be markers, because this reader is not shown which.
    pub fn swapped(&self, region: Range, mut each: impl FnMut(Range, bool)) -> Result<()> {
        self.entries(region, |page, entry| {
            // It may have become anything meanwhile; whatever is there now counts unless it is surely nothing.
            if entry.holds(Contents::Any, None) {
                each(page, !entry.veiled());
            }
        })
    }

    /// Tells an address space that has ended from one that is empty.
    pub fn alive(&self) -> Result<()> {
        let mut entry = [0; 8];
        match self.file.read_at(&mut entry, 0) {
            Ok(8) => Ok(()),
            Ok(_) => Err(self.died()),
            Err(e) => Err(Error::io("read pagemap", format!("pid {}", self.pid), &e)),
        }
    }

    /// The categories in which a page that holds nothing of the process shows itself, [`FILE`] left aside.
    pub fn empties(&self) -> u64 {
        PFNZERO | self.guard
    }

    fn died(&self) -> Error {
        Error::Died {
            pid: self.pid,
            how: "ended, or began another program".to_owned(),
        }
    }

    fn place(&self, range: Range) -> String {
        format!("pid {}, {range}", self.pid)
    }

    /// One call: fills `regions` up to its capacity and returns where the walk ended.
    fn call(&self, range: Range, ask: &Ask, regions: &mut Vec<PageRegion>) -> nix::Result<u64> {
        regions.clear();
        let mut arg = PmScanArg {
            size: size_of::<PmScanArg>() as u64,
            flags: if ask.protect { PM_SCAN_WP_MATCHING } else { 0 },
            start: range.start,
            end: range.end,
            vec: if regions.capacity() == 0 {
                0
            } else {
                regions.as_mut_ptr() as u64
            },
            vec_len: regions.capacity() as u64,
            category_inverted: ask.inverted,
            category_mask: ask.mask,
            category_anyof_mask: ask.anyof,
            return_mask: ask.tell,
            ..PmScanArg::default()
        };
        // SAFETY: `arg` is the request's structure, and `vec` has room for `vec_len` regions.
        unsafe {
            let args = [
                self.file.as_raw_fd() as u64,
                PAGEMAP_SCAN,
                &raw mut arg as u64,
                0,
                0,
                0,
            ];
            let filled = super::raw(libc::SYS_ioctl, args)? as usize;
            assert!(filled <= regions.capacity());
            regions.set_len(filled);
        }
        Ok(arg.walk_end)
    }
}

/// Of /proc/PID/smaps the mappings in which anything is present, swapped or of huge pages: in no other is a page of the
/// process's own.
fn inhabited_in(smaps: &str) -> Option<Vec<Range>> {
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    let mut out: Vec<(Range, bool)> = Vec::new();
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        match words.next()? {
            "Rss:" | "Swap:" | "Shared_Hugetlb:" | "Private_Hugetlb:" => {
                out.last_mut()?.1 |= words.next()? != "0"
            }
            // Every other line begins with a capital letter.
            word if word.starts_with(|c: char| c.is_ascii_digit() || c.is_ascii_lowercase()) => {
                let (start, end) = word.split_once('-')?;
                out.push((Range::new(hex(start)?, hex(end)?), false));
            }
            _ => {}
        }
    }
    Some(
        out.into_iter()
            .filter(|(_, some)| *some)
            .map(|(range, _)| range)
            .collect(),
    )
}

/// Makes pages guard pages (madvise(2), Linux 6.13).
pub const MADV_GUARD_INSTALL: i32 = 102;

/// Whether this kernel has guard pages: an advice that it does not know is refused even for no memory at all.
fn knows_guards() -> bool {
    // SAFETY: advice for no memory changes none.
    unsafe { libc::madvise(std::ptr::null_mut(), 0, MADV_GUARD_INSTALL) == 0 }
}

/// Appends a range to ordered ones, joining neighbours.
pub fn push(to: &mut Vec<Range>, r: Range) {
    match to.last_mut() {
        Some(last) if last.end == r.start => last.end = r.end,
        _ => to.push(r),
    }
}

/// The frame of the page of zeros: what a fresh page of our own shows when it was only read.
fn zero_frame() -> Option<u64> {
    let page = FreshPage::new()?;
    page.read();
    page.entry()
        .filter(|e| e.present())
        .map(Entry::frame)
        .filter(|&frame| frame != 0)
}

/// Whether this kernel has soft-dirty bits: a page of our own that was just written must show it.
pub fn has_soft_dirty() -> bool {
    FreshPage::new().is_some_and(|page| {
        page.write();
        page.entry().is_some_and(|e| e.present() && e.soft_dirty())
    })
}

/// One anonymous page of this process, to look at in its own pagemap.
struct FreshPage(*mut u8);

impl FreshPage {
    fn new() -> Option<FreshPage> {
        let (prot, flags) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
        );
        // SAFETY: a new mapping at a place of the kernel's choice.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), PAGE as usize, prot, flags, -1, 0) };
        (at != libc::MAP_FAILED).then_some(FreshPage(at.cast()))
    }

    fn read(&self) {
        // SAFETY: our own readable page.
        unsafe { self.0.read_volatile() };
    }

    fn write(&self) {
        // SAFETY: our own writable page.
        unsafe { self.0.write_volatile(1) };
    }

    fn entry(&self) -> Option<Entry> {
        let mut word = [0; 8];
        let file = File::open("/proc/self/pagemap").ok()?;
        file.read_exact_at(&mut word, self.0 as u64 / PAGE * 8).ok()?;
        Some(Entry(u64::from_ne_bytes(word)))
    }
}

impl Drop for FreshPage {
    fn drop(&mut self) {
        // SAFETY: our own mapping, and nobody else knows it.
        unsafe { libc::munmap(self.0.cast(), PAGE as usize) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRESENT_BIT: u64 = 1 << 63;
    const SWAP_BIT: u64 = 1 << 62;
    const FILE_BIT: u64 = 1 << 61;

    #[test]
    fn entries_are_told_apart() {
        use Contents::{Any, Private};
        let zero = Some(7);
        let cases = [
            // entry, counts as Private, counts as Any
            (0, false, false),
            (PRESENT_BIT | 42, true, true),
            (PRESENT_BIT, true, true),
            (PRESENT_BIT | 7, false, true),
            (PRESENT_BIT | FILE_BIT | 42, false, true),
            // type 0, offset 3; frames hidden; a moving file page
            (SWAP_BIT | 3 << 5, true, true),
            (SWAP_BIT, true, true),
            (SWAP_BIT | FILE_BIT | 9 << 5 | 29, false, true),
            // markers: write-protected, poisoned, guard, guard as told by bit 58
            (SWAP_BIT | 1 << 5 | 31, false, false),
            (SWAP_BIT | 2 << 5 | 31, true, true),
            (SWAP_BIT | 4 << 5 | 31, false, false),
            (SWAP_BIT | 1 << 58, false, false),
            // soft-dirty alone (a hole in a new mapping) is no contents
            (1 << 55, false, false),
        ];
        for (entry, private, any) in cases {
            assert_eq!(Entry(entry).holds(Private, zero), private, "{entry:#x}");
            assert_eq!(Entry(entry).holds(Any, zero), any, "{entry:#x}");
        }
        assert!(
            Entry(SWAP_BIT).veiled() && !Entry(SWAP_BIT | 3 << 5).veiled() && !Entry(PRESENT_BIT).veiled()
        );
        assert!(Entry(1 << 55).soft_dirty() && !Entry(!(1 << 55)).soft_dirty());
    }

    #[test]
    fn what_is_only_reserved_is_uninhabited() {
        let text = "1000-2000 rw-p 00000000 00:00 0\nRss: 0 kB\nSwap: 0 kB\n\
            2000-3000 rw-p 00000000 00:00 0\nRss: 4 kB\nSwap: 0 kB\n\
            4000-5000 rw-p 00000000 00:00 0\nRss: 0 kB\nSwap: 4 kB\n\
            5000-6000 rw-p 00000000 00:00 0\nRss: 0 kB\nPrivate_Hugetlb: 4 kB\nSwap: 0 kB\n";
        let all = [(0x2000, 0x3000), (0x4000, 0x5000), (0x5000, 0x6000)];
        let all = all.map(|(start, end)| Range::new(start, end));
        assert_eq!(inhabited_in(text), Some(all.to_vec()));
        let own = inhabited_in(&std::fs::read_to_string("/proc/thread-self/smaps").unwrap()).unwrap();
        let here = &raw const text as u64;
        assert!(own.iter().any(|r| r.start <= here && here < r.end));
    }

    #[test]
    fn both_ways_agree_on_ourselves() {
        let me = Pid(std::process::id() as i32);
        let page = FreshPage::new().unwrap();
        let range = Range::new(page.0 as u64, page.0 as u64 + PAGE);
        let (scan, read) = (open(me).unwrap(), open(me).unwrap().without_scan());
        let both = |which| {
            let found = [
                scan.populated(range, which).unwrap(),
                read.populated(range, which).unwrap(),
            ];
            assert_eq!(found[0], found[1]);
            found[0].clone()
        };
        assert_eq!(both(Contents::Any), []);
        page.read();
        assert_eq!(
            (both(Contents::Private), both(Contents::Any)),
            (vec![], vec![range])
        );
        page.write();
        assert_eq!(
            (both(Contents::Private), both(Contents::Any)),
            (vec![range], vec![range])
        );
    }

    #[test]
    fn kernel_addresses_hold_nothing() {
        let map = open(Pid(std::process::id() as i32)).unwrap();
        let vsyscall = Range::new(0xffff_ffff_ff60_0000, 0xffff_ffff_ff60_1000);
        for map in [map, open(Pid(std::process::id() as i32)).unwrap().without_scan()] {
            assert_eq!(map.populated(vsyscall, Contents::Any).unwrap(), []);
        }
    }
}
