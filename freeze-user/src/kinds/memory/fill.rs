//! Writing recorded pages into a process: by several workers, and into huge pages where all of one is there.
//!
//! Much fresh memory is registered with a userfaultfd for the time of it, whose UFFDIO_COPY takes new pages, copies into them
//! and maps them in one go, where process_vm_writev(2) has each filled with zeros first.

use super::{Backing, Record};
use crate::error::{Context, Error, Result};
use crate::ids::{PAGE, Pid, Range, SpaceId, intersect, normalize, subtract};
use crate::nest::Nest;
use crate::store::{Content, Opened};
use crate::sys;
use crate::sys::missing::{FLAGS_STILL, Filler};
use nix::errno::Errno;
use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes of a huge page that the kernel forms by itself (THP).
const HUGE: u64 = 2 << 20;
/// What one worker takes at a time; a multiple of [`HUGE`].
const SHARE: u64 = 8 << 20;
/// From here on more than one worker is worth it.
const LARGE: u64 = 32 << 20;
const WORKERS: usize = 4;

/// From here on a userfaultfd is worth what it takes to set it up.
const MUCH: u64 = 2 << 20;

/// Writes the pages `todo` of a process's own memory into it; all of them are mapped and writable. The mappings with the
/// numbers `inherited` are not fresh.
pub fn fill(
    record: &Record,
    pid: Pid,
    todo: &[Range],
    inherited: &BTreeSet<usize>,
    nest: &mut Nest,
) -> Result<()> {
    let anonymous = normalize(
        record
            .vmas
            .iter()
            .filter(|m| !m.shared && matches!(m.backing, Backing::Anonymous))
            .map(|m| m.range)
            .collect(),
    );
    let whole = whole_huge_pages(record, todo);
    let image = nest.image.clone();
    let by_call = |at: Range, bytes: &[u8]| write_pages(pid, at.start, bytes);
    write_all(&image, pid, &whole, &anonymous, &by_call)?;
    let rest = subtract(todo, &whole);
    let rest = match fresh(record, &rest, inherited) {
        areas if areas.iter().map(|(_, bytes)| bytes).sum::<u64>() >= MUCH => {
            copy_in(&image, pid, &areas, rest, nest)?
        }
        _ => rest,
    };
    // A single page must not become a huge one of which the rest was never there.
    let hold = !rest.is_empty() && (always_huge() || record.vmas.iter().any(|m| m.has("hg")));
    let disable = |on: u64| [libc::PR_SET_THP_DISABLE as u64, on, 0, 0, 0];
    if hold {
        nest.process(pid)?
            .call("prctl(PR_SET_THP_DISABLE)", libc::SYS_prctl, &disable(1))?;
    }
    write_all(&image, pid, &rest, &anonymous, &by_call)?;
    if hold {
        nest.process(pid)?
            .call("prctl(PR_SET_THP_DISABLE)", libc::SYS_prctl, &disable(0))?;
    }
    Ok(())
}

/// Fresh mappings of ordinary pages, each with how many bytes of `todo` it has; not those with hardly any.
fn fresh(record: &Record, todo: &[Range], inherited: &BTreeSet<usize>) -> Vec<(Range, u64)> {
    const HARDLY_ANY: u64 = 128 << 10;
    let mappings = record.vmas.iter().enumerate();
    let fresh =
        mappings.filter(|(i, m)| !inherited.contains(i) && m.is_plain() && !m.has("gd") && !m.has("dp"));
    let bytes = |r| intersect(todo, &[r]).iter().map(|part| part.len()).sum();
    let areas = fresh.map(|(_, m)| (m.range, bytes(m.range)));
    areas.filter(|(_, bytes)| *bytes >= HARDLY_ANY).collect()
}

/// Copies the pages of `todo` that lie in these areas; returns the rest of it.
fn copy_in(
    image: &Opened,
    pid: Pid,
    areas: &[(Range, u64)],
    todo: Vec<Range>,
    nest: &mut Nest,
) -> Result<Vec<Range>> {
    let Ok(filler) = nest.userfaultfd(pid, FLAGS_STILL)?.and_then(Filler::start_still) else {
        return Ok(todo);
    };
    let areas: Vec<Range> = areas.iter().map(|(r, _)| *r).collect();
    for area in &areas {
        filler
            .register(*area)
            .on("UFFDIO_REGISTER", || format!("{area} of {pid}"))?;
    }
    // Not joined: a copy must lie in one mapping.
    let parts: Vec<Range> = areas.iter().flat_map(|a| intersect(&todo, &[*a])).collect();
    write_all(image, pid, &parts, &areas, &|at, mut bytes| {
        let mut start = at.start;
        loop {
            let (done, trouble) = filler.copy(start, bytes);
            (start, bytes) = (start + done as u64, &bytes[done..]);
            match trouble {
                None => return Ok(()),
                // Something has touched it before.
                Some(Errno::EEXIST) => write_pages(pid, start, &bytes[..PAGE as usize])?,
                Some(e) => return Err(e).on("UFFDIO_COPY", || format!("memory of {pid} at {start:#x}")),
            }
            (start, bytes) = (start + PAGE, &bytes[PAGE as usize..]);
        }
    })?;
    Ok(subtract(&todo, &normalize(areas)))
}

/// Huge pages of anonymous memory that allows them, all of whose small pages are to be written.
fn whole_huge_pages(record: &Record, todo: &[Range]) -> Vec<Range> {
    let always = always_huge();
    let allows = |m: &&super::Mapping| {
        !m.shared
            && m.huge == 0
            && matches!(m.backing, Backing::Anonymous)
            && (m.has("hg") || always && !m.has("nh"))
    };
    let mut out = Vec::new();
    for m in record.vmas.iter().filter(allows) {
        let first = todo.partition_point(|r| r.end <= m.range.start);
        let inside = todo[first..].iter().take_while(|r| r.start < m.range.end);
        for part in inside.filter_map(|r| r.intersect(m.range)) {
            let (start, end) = (part.start.next_multiple_of(HUGE), part.end / HUGE * HUGE);
            if start < end {
                out.push(Range::new(start, end));
            }
        }
    }
    normalize(out)
}

fn always_huge() -> bool {
    std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled")
        .is_ok_and(|t| t.contains("[always]"))
}

/// Writes pages by `put`, in several threads where it is much.
fn write_all(
    image: &Opened,
    pid: Pid,
    todo: &[Range],
    anonymous: &[Range],
    put: &(dyn Fn(Range, &[u8]) -> Result<()> + Sync),
) -> Result<()> {
    let mut shares = Vec::new();
    for r in todo {
        let mut at = r.start;
        while at < r.end {
            let end = (at / SHARE * SHARE + SHARE).min(r.end);
            shares.push(Range::new(at, end));
            at = end;
        }
    }
    let bytes: u64 = todo.iter().map(|r| r.len()).sum();
    let workers = match std::thread::available_parallelism() {
        Ok(n) if bytes >= LARGE => n.get().min(WORKERS),
        _ => 1,
    };
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(None));
    let work = || {
        let mut reader = image.reader();
        while let Some(share) = shares.get(next.fetch_add(1, Ordering::Relaxed)) {
            let done = reader.for_each_in(SpaceId::private(pid), *share, |at, content| match content {
                Content::Bytes(bytes) => put(at, bytes),
                // Fresh anonymous memory reads as zeros; only over a file they must be written.
                Content::Zero => subtract(&[at], anonymous)
                    .iter()
                    .try_for_each(|r| write_pages(pid, r.start, &vec![0; r.len() as usize])),
            });
            if let Err(e) = done {
                next.store(shares.len(), Ordering::Relaxed);
                failed.lock().expect("nobody panics with it").get_or_insert(e);
            }
        }
    };
    if workers == 1 {
        work();
    } else {
        std::thread::scope(|s| {
            for _ in 0..workers {
                s.spawn(work);
            }
        });
    }
    match failed.into_inner().expect("nobody panics with it") {
        None => Ok(()),
        Some(e) => Err(e),
    }
}

/// Writes bytes into a process, at memory it may write to itself.
pub fn write_pages(pid: Pid, at: u64, bytes: &[u8]) -> Result<()> {
    let name = |done: usize| format!("memory of {pid} at {:#x}", at + done as u64);
    let mut done = 0;
    while done < bytes.len() {
        let n =
            sys::vm_write(pid, at + done as u64, &bytes[done..]).on("process_vm_writev", || name(done))?;
        if n == 0 {
            return Err(Error::kernel("process_vm_writev", name(done), Errno::EFAULT));
        }
        done += n;
    }
    Ok(())
}
