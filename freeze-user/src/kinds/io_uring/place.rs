//! Mapping a part of an io_uring instance at a given address.
//!
//! Since Linux 6.4 the kernel refuses to be told where (io_uring_get_unmapped_area), also to move one there. But it has to
//! take the only room there is: for the moment everything else that would be great enough is taken up by mappings that
//! nobody can touch.

use super::Mapping;
use crate::error::{Error, Result};
use crate::ids::{PAGE, Pid, Range};
use crate::nest::Nest;
use crate::observe::view::{Depth, read_vmas};
use crate::proc::maps::Vma;
use nix::errno::Errno;

/// The end of addresses that are given out unless asked for.
const END: u64 = 0x7fff_ffff_f000;
/// Below it nothing is mapped (`vm.mmap_min_addr` by default); the kernel looks from above.
const BEGIN: u64 = 0x1_0000;

/// Passes over the room at the very bottom, which cannot be taken up (x86, Linux 6.6).
const MAP_ABOVE4G: u64 = 0x80;

/// Maps a part through descriptor `fd` of its process, which is closed.
pub(super) fn map(m: &Mapping, fd: u64, nest: &mut Nest) -> Result<()> {
    let (at, len) = (m.range.start, m.range.len());
    let building = nest.process(m.pid)?;
    let (protection, offset) = (m.protection as u64, m.offset);
    let there = (libc::MAP_SHARED | libc::MAP_FIXED_NOREPLACE) as u64;
    let args = [at, len, protection, there, fd, offset];
    let (ran, told) = building.tape(|t| t.try_call("mmap", libc::SYS_mmap, &args))?;
    match ran.result(told) {
        Ok(_) => return advise(m, fd, nest),
        Err(Errno::EINVAL) => {}
        Err(e) => return Err(failed(m.pid, m.range, e)),
    }
    let by = building.threads[0].tid();
    let taken: Vec<Range> = read_vmas(by, Depth::Maps)?.iter().map(Vma::range).collect();
    let filling = filling(&taken, m.range).ok_or_else(|| failed(m.pid, m.range, Errno::EEXIST))?;
    let nothing =
        (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE) as u64;
    let fill = |r: &Range| ("mmap", libc::SYS_mmap, [r.start, r.len(), 0, nothing, !0, 0]);
    let above = if at >> 32 == 0 { 0 } else { MAP_ABOVE4G };
    let own = [0, len, protection, libc::MAP_SHARED as u64 | above, fd, offset];
    let empty = |r: &Range| ("munmap", libc::SYS_munmap, [r.start, r.len(), 0, 0, 0, 0]);
    let mut calls: Vec<_> = filling.iter().map(fill).collect();
    let mapped = calls.len();
    calls.push(("mmap", libc::SYS_mmap, own));
    calls.extend(filling.iter().map(empty));
    // The room at the very bottom may be taken by some only, and older kernels know no other way to pass it over.
    let bottom = Range::new(PAGE, BEGIN);
    let (name, nr, args) = fill(&bottom);
    let (ran, taken) = building.tape(|t| t.try_call(name, nr, &args))?;
    calls.extend(ran.result(taken).is_ok().then(|| empty(&bottom)));
    match building.play(&calls)?[mapped] as u64 == at {
        true => advise(m, fd, nest),
        false => Err(failed(m.pid, m.range, Errno::EADDRNOTAVAIL)),
    }
}

/// Gives the advice that was given for it, and closes the descriptor.
fn advise(m: &Mapping, fd: u64, nest: &mut Nest) -> Result<()> {
    let (at, len) = (m.range.start, m.range.len());
    let one = |advice: &i32| ("madvise", libc::SYS_madvise, [at, len, *advice as u64, 0, 0, 0]);
    let mut calls: Vec<_> = m.advice.iter().map(one).collect();
    calls.push(("close", libc::SYS_close, [fd, 0, 0, 0, 0, 0]));
    nest.process(m.pid)?.play(&calls).map(drop)
}

fn failed(pid: Pid, range: Range, errno: Errno) -> Error {
    Error::kernel("mmap", format!("io_uring at {range} of {pid}"), errno)
}

/// What must be taken so that nothing but `place` is left for something of its length; `None` if it is taken itself.
fn filling(taken: &[Range], place: Range) -> Option<Vec<Range>> {
    let mut out = Vec::new();
    let mut from = BEGIN;
    let mut found = false;
    let end = Range::new(END, END);
    for next in taken.iter().chain([&end]).filter(|r| r.start <= END) {
        let gap = from..next.start;
        from = from.max(next.end);
        if gap.start <= place.start && place.end <= gap.end {
            found = true;
            let around = [Range::new(gap.start, place.start), Range::new(place.end, gap.end)];
            out.extend(around.into_iter().filter(|r| !r.is_empty()));
        } else if gap.start < gap.end && gap.end - gap.start >= place.len() {
            out.push(Range::new(gap.start, gap.end));
        }
    }
    found.then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_place_is_left() {
        let r = Range::new;
        let taken = [
            r(0x40_0000, 0x50_0000),
            r(0x50_1000, 0x60_0000),
            r(0x70_0000, 0x80_0000),
        ];
        let place = r(0x68_0000, 0x68_2000);
        let around = vec![
            r(BEGIN, 0x40_0000),
            r(0x60_0000, 0x68_0000),
            r(0x68_2000, 0x70_0000),
            r(0x80_0000, END),
        ];
        assert_eq!(filling(&taken, place), Some(around));
        assert_eq!(filling(&taken, r(0x4f_f000, 0x50_1000)), None);
        assert_eq!(filling(&taken, r(0x50_0000, 0x50_1000)).map(|f| f.len()), Some(3));
    }
}
