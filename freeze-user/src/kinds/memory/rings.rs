//! Linux AIO contexts: a ring of events mapped into the process, whose address is the context's name.

use super::super::pipe::Bytes;
use super::Record;
use crate::error::{Context, Error, Result};
use crate::ids::{PAGE, Pid, Range};
use crate::nest::Nest;
use crate::observe::view::ProcessView;
use crate::proc::maps::Vma;
use crate::sys;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::time::Duration;

/// One context.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ring {
    pub range: Range,
    /// How many events the ring has room for.
    pub slots: u32,
    /// Events that io_getevents(2) has not handed out yet, 32 bytes each, the oldest first.
    pub events: Bytes,
}

/// `struct aio_ring` of fs/aio.c: id, nr, head, tail, magic, compat, incompat, length of the header.
const HEADER: u64 = 32;
const MAGIC: u32 = 0xa10a_10a1;
const EVENT: u64 = 32;
/// Requests submitted in one call.
const BATCH: u64 = 4096;

/// Whether the mapping is the ring of a context.
pub fn is_ring(v: &Vma) -> bool {
    v.name.starts_with(b"/[aio]")
}

/// Records the contexts of a process that stands still.
pub fn collect(view: &ProcessView) -> Result<Vec<Ring>> {
    let all: Vec<Range> = view.vmas.iter().filter(|v| is_ring(v)).map(Vma::range).collect();
    // What is in flight completes meanwhile, or waits for something that only the program itself can bring about.
    for pause in [2, 3, 5, 10].iter().filter(|_| !all.is_empty()) {
        let before = tails(view.speaker, &all)?;
        std::thread::sleep(Duration::from_millis(*pause));
        if tails(view.speaker, &all)? == before && *pause >= 5 {
            break;
        }
    }
    all.into_iter().map(|range| look(view.speaker, range)).collect()
}

fn tails(pid: Pid, rings: &[Range]) -> Result<Vec<u32>> {
    rings.iter().map(|r| Ok(header(pid, *r)?[3])).collect()
}

fn header(pid: Pid, ring: Range) -> Result<[u32; 8]> {
    let name = || format!("AIO context {:#x} of {pid}", ring.start);
    let mut bytes = [0; HEADER as usize];
    sys::vm_read(pid, &[Range::new(ring.start, ring.start + HEADER)], &mut bytes)
        .on("process_vm_readv", name)?;
    let mut words = [0; 8];
    for (word, b) in words.iter_mut().zip(bytes.chunks_exact(4)) {
        *word = u32::from_ne_bytes(b.try_into().expect("four bytes"));
    }
    let room = ring.len().saturating_sub(HEADER) / EVENT;
    let [_, slots, head, tail, magic, ..] = words;
    let sound = magic == MAGIC && u64::from(slots) <= room && head < slots && tail < slots;
    if sound {
        Ok(words)
    } else {
        Err(Error::kernel("read", name(), Errno::EBADMSG))
    }
}

fn look(pid: Pid, range: Range) -> Result<Ring> {
    let [_, slots, head, tail, ..] = header(pid, range)?;
    let at = |slot: u32| range.start + HEADER + u64::from(slot) * EVENT;
    let parts = match head <= tail {
        true => vec![Range::new(at(head), at(tail))],
        false => vec![Range::new(at(head), at(slots)), Range::new(at(0), at(tail))],
    };
    let parts: Vec<Range> = parts.into_iter().filter(|r| !r.is_empty()).collect();
    let mut events = vec![0; parts.iter().map(|r| r.len()).sum::<u64>() as usize];
    if !events.is_empty() {
        sys::vm_read(pid, &parts, &mut events).on("process_vm_readv", || format!("AIO events of {pid}"))?;
    }
    Ok(Ring {
        range,
        slots,
        events: Bytes(events),
    })
}

/// Makes the contexts again, once everything else is mapped: each at its place, with its events.
///
/// The kernel keeps its own count of what has completed, so as many empty requests are made as events were waiting; what
/// they left in the ring is then replaced.
pub fn restore(record: &Record, pid: Pid, nest: &mut Nest) -> Result<()> {
    if record.rings.is_empty() {
        return Ok(());
    }
    let path = "/dev/null";
    let null = File::open(path).on("open", || path)?;
    let fd = nest.hand_over(pid, &[null.as_raw_fd()])?[0];
    for ring in &record.rings {
        let name = || format!("AIO context {:#x} of {pid}", ring.range.start);
        let building = nest.process(pid)?;
        // The kernel makes room for twice as many as it is asked for, and two, and fills the last page.
        let wanted = u64::from(ring.slots).saturating_sub(2) / 2;
        let (ran, at) = building.tape(|t| {
            let context = t.space(8);
            t.call("io_setup", libc::SYS_io_setup, &[wanted, context]);
            context
        })?;
        let context = ran.word(at);
        let made = Range::new(context, context + ring.range.len());
        if header(pid, made)?[1] != ring.slots {
            return Err(Error::kernel("io_setup", name(), Errno::ENOSPC));
        }
        let mut left = ring.events.0.len() as u64 / EVENT;
        while left > 0 {
            let some = left.min(BATCH);
            let (ran, at) = building.tape(|t| {
                // struct iocb: a read (0) of no bytes.
                let mut request = [0; 64];
                request[20..24].copy_from_slice(&(fd as u32).to_ne_bytes());
                let request = t.bytes(&request);
                let list: Vec<u8> = (0..some).flat_map(|_| request.to_ne_bytes()).collect();
                let list = t.bytes(&list);
                t.call("io_submit", libc::SYS_io_submit, &[context, some, list])
            })?;
            let taken = ran.value(at) as u64;
            if taken == 0 {
                return Err(Error::kernel("io_submit", name(), Errno::EAGAIN));
            }
            left -= taken.min(left);
        }
        let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
        let len = ring.range.len();
        building.call(
            "mremap",
            libc::SYS_mremap,
            &[context, len, len, flags, ring.range.start],
        )?;
        if !ring.events.0.is_empty() {
            super::fill::write_pages(pid, ring.range.start + HEADER, &ring.events.0)?;
        }
    }
    nest.process(pid)?.call("close", libc::SYS_close, &[fd])?;
    const { assert!(HEADER + EVENT < PAGE) };
    Ok(())
}
