//! Putting an address space together: what was inherited is sorted out, the rest mapped, filled, protected, advised.

use super::super::regular::fill_from;
use super::super::sysv::Segment;
use super::{
    ADVICE, Backing, Mapping, Record, fill, heritage, huge_flags, keys, lazy, occupied, policy, rings, vdso,
};
use crate::error::{Blocker, Context, Error, Result};
use crate::ids::{PAGE, Pid, Range, SpaceId, TASK_SIZE, normalize, subtract};
use crate::nest::{Nest, free_place};
use crate::observe::view::{Depth, read_vmas};
use crate::sys::pagemap::MADV_GUARD_INSTALL;
use crate::sys::{self, SharedAnon};
use nix::errno::Errno;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

const SYS_PKEY_MPROTECT: i64 = 329;
const MAP_DROPPABLE: i32 = 8;

const SYS_MSEAL: i64 = 462;

type Step = (&'static str, i64, [u64; 6]);

/// Adds that this kernel cannot seal memory.
pub fn precheck(record: &Record, pid: Pid, out: &mut Vec<Blocker>) {
    let sealed = record.vmas.iter().find(|m| m.has("sl"));
    if let Some(m) = sealed.filter(|_| !sys::trial::seal()) {
        out.push(
            Blocker::of(pid, m.range.to_string(), "")
                .why("it is sealed (mseal), which this kernel cannot do")
                .remedy("use Linux 6.10 or newer"),
        );
    }
}

/// Gives a blank process its address space.
pub fn restore(record: &Record, pid: Pid, nest: &mut Nest) -> Result<()> {
    let kept = heritage::settle(record, pid, nest);
    let there = normalize(kept.mappings.iter().map(|i| record.vmas[*i].range).collect());
    let unmap = subtract(&kept.mapped, &there);
    let unmap: Vec<Step> = unmap
        .iter()
        .map(|r| ("munmap", libc::SYS_munmap, [r.start, r.len(), 0, 0, 0, 0]))
        .collect();
    nest.process(pid)?.play(&unmap)?;
    vdso::place(record, pid, &there, nest)?;
    set_layout(record, pid, nest)?;
    keys::restore(record, pid, nest)?;
    let handed = hand_over_backings(record, pid, nest)?;
    let mut calls = attach(record, pid)?;
    let mut after = Vec::new();
    let mut populated = Vec::new();
    for (i, m) in record.vmas.iter().enumerate() {
        let (at, len) = (m.range.start, m.range.len());
        // Contents can be written while it is writable only.
        let has_contents = kept.mappings.contains(&i) || !m.shared && intersects(&kept.todo, m.range);
        let interim = if has_contents {
            libc::PROT_READ | libc::PROT_WRITE
        } else {
            m.prot
        };
        let fd = match m.backing {
            Backing::Anonymous | Backing::Segment(_) => !0,
            Backing::File(_) | Backing::Memfd(_) => handed.files[&(m.backing, needs_write(m))],
            Backing::Object(i) => handed.objects[i],
        };
        let segment = matches!(m.backing, Backing::Segment(_));
        if !segment && !kept.mappings.contains(&i) {
            calls.extend(pieces(m, m.range).map(|piece| map(m, piece, interim, fd)));
        }
        if keys::given(record, m) {
            let args = [at, len, m.prot as u64, u64::from(m.key), 0, 0];
            after.push(("pkey_mprotect", SYS_PKEY_MPROTECT, args));
        } else if segment || interim != m.prot {
            after.push(("mprotect", libc::SYS_mprotect, [at, len, m.prot as u64, 0, 0, 0]));
        }
        let implied = |flag: &str| m.has("dp") && (flag == "wf" || flag == "dd");
        for (flag, advice) in ADVICE.iter().filter(|(flag, _)| m.has(flag) && !implied(flag)) {
            let step = ("madvise", libc::SYS_madvise, [at, len, *advice as u64, 0, 0, 0]);
            // Huge pages are formed when memory is filled, or not at all.
            let before = matches!(*flag, "hg" | "nh") && !segment;
            if before {
                calls.push(step)
            } else {
                after.push(step)
            }
        }
        if m.has("lo") {
            after.push((
                "mlock2",
                libc::SYS_mlock2,
                [at, len, libc::MLOCK_ONFAULT.into(), 0, 0, 0],
            ));
            if !m.has("lf") {
                populated.push(("mlock2", libc::SYS_mlock2, [at, len, 0, 0, 0, 0]));
            }
        }
    }
    for r in &kept.stale {
        let args = [r.start, r.len(), libc::MADV_DONTNEED as u64, 0, 0, 0];
        calls.push(("madvise", libc::SYS_madvise, args));
    }
    let building = nest.process(pid)?;
    building.play(&calls)?;
    let closes: Vec<Step> = handed
        .all
        .iter()
        .map(|fd| ("close", libc::SYS_close, [*fd, 0, 0, 0, 0, 0]))
        .collect();
    building.play(&closes)?;
    policy::restore(record, pid, nest)?;
    let now = match nest.options.lazy {
        true => lazy::put_off(record, pid, &kept, nest)?,
        false => kept.todo.clone(),
    };
    fill::fill(record, pid, &now, &kept.mappings, nest)?;
    let guards: Vec<Step> = record
        .guards
        .iter()
        .map(|r| {
            (
                "madvise(MADV_GUARD_INSTALL)",
                libc::SYS_madvise,
                [r.start, r.len(), MADV_GUARD_INSTALL as u64, 0, 0, 0],
            )
        })
        .collect();
    let building = nest.process(pid)?;
    building.play(&guards)?;
    building.play(&after)?;
    // What is locked already fails only where there can be no page: without access, behind the end of a file, at a guard.
    building.try_play(&populated)?;
    name(record, pid, nest)?;
    rings::restore(record, pid, nest)?;
    if record.lock_future != 0 {
        let args = [record.lock_future as u64];
        nest.process(pid)?.call("mlockall", libc::SYS_mlockall, &args)?;
    }
    // Last of all: nothing about it can be changed any more.
    let sealed = record.vmas.iter().filter(|m| m.has("sl"));
    let seals: Vec<Step> = sealed
        .map(|m| ("mseal", SYS_MSEAL, [m.range.start, m.range.len(), 0, 0, 0, 0]))
        .collect();
    nest.process(pid)?.play(&seals).map(drop)
}

/// Maps a part of a recorded private mapping ahead, to be filled for those who inherit it.
pub fn map_private(record: &Record, m: &Mapping, part: Range, pid: Pid, nest: &mut Nest) -> Result<()> {
    let file = match m.backing {
        Backing::File(i) => Some(record.files[i].open_to_map(libc::O_RDONLY, nest)?),
        Backing::Memfd(i) => Some(record.memfds[i].open(libc::O_RDONLY, nest)?),
        _ => None,
    };
    let fds = match &file {
        Some(file) => nest.hand_over(pid, &[file.as_raw_fd()])?,
        None => Vec::new(),
    };
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let fd = fds.first().copied().unwrap_or(!0);
    let mut calls: Vec<Step> = pieces(m, part).map(|piece| map(m, piece, prot, fd)).collect();
    // As it will be filled.
    for (flag, advice) in ADVICE
        .iter()
        .filter(|(f, _)| matches!(*f, "hg" | "nh") && m.has(f))
    {
        let _ = flag;
        calls.push((
            "madvise",
            libc::SYS_madvise,
            [part.start, part.len(), *advice as u64, 0, 0, 0],
        ));
    }
    calls.extend(
        fds.iter()
            .map(|fd| ("close", libc::SYS_close, [*fd, 0, 0, 0, 0, 0])),
    );
    nest.process(pid)?.play(&calls)?;
    Ok(())
}

/// Everything that is mapped in a process by now.
pub fn mapped_now(pid: Pid) -> Result<Vec<Range>> {
    let vmas = read_vmas(pid, Depth::Maps)?;
    Ok(vmas
        .iter()
        .filter(|v| v.name != b"[vsyscall]")
        .map(|v| v.range())
        .collect())
}

/// The parts in which `part` of a recorded mapping is mapped.
///
/// What has grown by and by may be larger than all memory, which the kernel does not grant at once; pieces that follow each
/// other become one mapping again.
fn pieces(m: &Mapping, part: Range) -> impl Iterator<Item = Range> + use<> {
    const PIECE: u64 = 1 << 30;
    let grows = !m.shared && m.huge == 0 && !m.has("gd") && !m.has("dp");
    let piece = if grows { PIECE } else { u64::MAX };
    let next = move |r: &Range| {
        (r.end < part.end).then(|| Range::new(r.end, part.end.min(r.end.saturating_add(piece))))
    };
    let first = Range::new(part.start, part.end.min(part.start.saturating_add(piece)));
    std::iter::successors(Some(first), next)
}

/// The call that maps `part` of a recorded mapping.
fn map(m: &Mapping, part: Range, prot: i32, fd: u64) -> Step {
    let offset = match m.backing {
        Backing::Anonymous => 0,
        _ => m.offset + (part.start - m.range.start),
    };
    let mut flags = libc::MAP_FIXED_NOREPLACE
        | match (m.shared, m.has("dp")) {
            (true, _) => libc::MAP_SHARED,
            (false, true) => MAP_DROPPABLE,
            (false, false) => libc::MAP_PRIVATE,
        };
    let anonymous = matches!(m.backing, Backing::Anonymous);
    for (on, flag) in [
        (anonymous, libc::MAP_ANONYMOUS),
        (anonymous && m.huge != 0, libc::MAP_HUGETLB),
        (m.has("gd"), libc::MAP_GROWSDOWN),
        (m.has("nr") && !m.has("dp"), libc::MAP_NORESERVE),
    ] {
        flags |= if on { flag } else { 0 };
    }
    let flags = flags as u64 | if anonymous { huge_flags(m.huge) } else { 0 };
    (
        "mmap",
        libc::SYS_mmap,
        [part.start, part.len(), prot as u64, flags, fd, offset],
    )
}

fn intersects(sorted: &[Range], r: Range) -> bool {
    let i = sorted.partition_point(|f| f.end <= r.start);
    sorted.get(i).is_some_and(|f| f.overlaps(r))
}

fn needs_write(m: &Mapping) -> bool {
    m.shared && m.has("mw")
}

/// A System V segment as it was attached once, with what is left of it.
#[derive(Clone, Debug)]
pub struct Attachment<'a> {
    segment: &'a Segment,
    /// Where all of it was, or would have been.
    pub whole: Range,
    parts: Vec<Range>,
    flags: u64,
}

/// The attachments of a process: mappings of one segment, with the same rights, that fit one place of it.
pub fn attachments(record: &Record) -> impl Iterator<Item = Attachment<'_>> {
    let mut found: BTreeMap<(usize, u64, bool), Attachment<'_>> = BTreeMap::new();
    for m in &record.vmas {
        let Backing::Segment(i) = m.backing else { continue };
        let segment = &record.segments[i];
        let base = m.range.start.saturating_sub(m.offset);
        let page = segment.huge.max(PAGE);
        let writes = needs_write(m);
        let read_only = if writes { 0 } else { libc::SHM_RDONLY };
        let attached = found.entry((i, base, writes)).or_insert_with(|| Attachment {
            segment,
            whole: Range::new(base, base + segment.size.next_multiple_of(page)),
            parts: Vec::new(),
            flags: read_only as u64,
        });
        attached.parts.push(m.range);
        if m.prot & libc::PROT_EXEC != 0 {
            attached.flags |= libc::SHM_EXEC as u64;
        }
    }
    found.into_values()
}

/// The calls that attach segments, which can only be had as a whole: what the program has detached goes again, and
/// where something else lies now they are attached elsewhere and moved.
fn attach(record: &Record, pid: Pid) -> Result<Vec<Step>> {
    let mut calls: Vec<Step> = Vec::new();
    let all: Vec<Attachment<'_>> = attachments(record).collect();
    if all.is_empty() {
        return Ok(calls);
    }
    let mut now = mapped_now(pid)?;
    for attached in &all {
        let id = attached.segment.id as u64;
        let holes = subtract(&[attached.whole], &normalize(attached.parts.clone()));
        let base = attached.parts[0].start.checked_sub(attached.whole.start);
        let in_place = base.is_some() && !now.iter().any(|r| r.overlaps(attached.whole));
        let unmap = |r: &Range| ("munmap", libc::SYS_munmap, [r.start, r.len(), 0, 0, 0, 0]);
        if in_place {
            calls.push((
                "shmat",
                libc::SYS_shmat,
                [id, attached.whole.start, attached.flags, 0, 0, 0],
            ));
            calls.extend(holes.iter().map(unmap));
        } else {
            let len = attached.whole.len();
            let align = attached.segment.huge.max(PAGE);
            let mut taken: Vec<Range> = occupied(record).chain(now.iter().copied()).collect();
            taken.push(Range::new(TASK_SIZE, TASK_SIZE));
            let spare = free_place(normalize(taken), len + align)
                .start
                .next_multiple_of(align);
            calls.push(("shmat", libc::SYS_shmat, [id, spare, attached.flags, 0, 0, 0]));
            calls.extend(holes.iter().map(|r| {
                let at = r.start - attached.whole.start + spare;
                unmap(&Range::new(at, at + r.len()))
            }));
            for r in normalize(attached.parts.clone()) {
                let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
                let from = r.start - attached.whole.start + spare;
                calls.push((
                    "mremap",
                    libc::SYS_mremap,
                    [from, r.len(), r.len(), flags, r.start, 0],
                ));
            }
        }
        now.extend(attached.parts.iter().copied());
    }
    Ok(calls)
}

/// PR_SET_MM_MAP: all eleven fields, auxv and the exe link in one call.
fn set_layout(record: &Record, pid: Pid, nest: &mut Nest) -> Result<()> {
    const PR_SET_MM_MAP: u64 = 14;
    let exe = match record.exe_memfd.and_then(|i| record.memfds.get(i)) {
        Some(memfd) => memfd.open_to_execute(nest)?,
        None => record.exe.open_to_execute(nest)?,
    };
    let at = nest.hand_over(pid, &[exe.as_raw_fd()])?;
    let set = |nest: &mut Nest| {
        nest.process(pid)?.tape(|t| {
            let auxv = t.bytes(&record.auxv.0);
            let mut map: Vec<u8> = record.layout.iter().flat_map(|w| w.to_ne_bytes()).collect();
            map.extend_from_slice(&auxv.to_ne_bytes());
            map.extend_from_slice(&(record.auxv.0.len() as u32).to_ne_bytes());
            map.extend_from_slice(&(at[0] as u32).to_ne_bytes());
            let len = map.len() as u64;
            let map = t.bytes(&map);
            t.call(
                "prctl(PR_SET_MM_MAP)",
                libc::SYS_prctl,
                &[libc::PR_SET_MM as u64, PR_SET_MM_MAP, map, len, 0],
            );
        })
    };
    // Nobody may have it open for writing. What was unlinked has just been written by us, and a child that another thread
    // forked meanwhile has that descriptor until it executes something.
    const PATIENCE: Duration = Duration::from_secs(2);
    let began = Instant::now();
    loop {
        match set(nest) {
            Err(Error::Kernel {
                errno: Errno::EACCES, ..
            }) if began.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(1)),
            done => break done.map(drop)?,
        };
    }
    nest.process(pid)?.call("close", libc::SYS_close, &[at[0]])?;
    Ok(())
}

fn name(record: &Record, pid: Pid, nest: &mut Nest) -> Result<()> {
    let building = nest.process(pid)?;
    for m in &record.vmas {
        let Some(name) = &m.name else { continue };
        building.tape(|t| {
            const PR_SET_VMA: u64 = 0x5356_4d41;
            let text = t.bytes(&[&name.0[..], b"\0"].concat());
            // A kernel without CONFIG_ANON_VMA_NAME shows no names either.
            t.try_call(
                "prctl(PR_SET_VMA)",
                libc::SYS_prctl,
                &[PR_SET_VMA, 0, m.range.start, m.range.len(), text],
            );
        })?;
    }
    Ok(())
}

/// Shared memory objects of the whole checkpoint, made once and handed to whoever maps them.
#[derive(Default)]
struct Objects {
    made: BTreeMap<SpaceId, File>,
}

struct Handed {
    /// By file and whether it was opened for writing.
    files: BTreeMap<(Backing, bool), u64>,
    objects: Vec<u64>,
    all: Vec<u64>,
}

fn hand_over_backings(record: &Record, pid: Pid, nest: &mut Nest) -> Result<Handed> {
    let mut open: Vec<OwnedFd> = Vec::new();
    let mut keys: Vec<(Backing, bool)> = Vec::new();
    for m in &record.vmas {
        let key = (m.backing, needs_write(m));
        if keys.contains(&key) {
            continue;
        }
        let flags = if key.1 { libc::O_RDWR } else { libc::O_RDONLY };
        match m.backing {
            Backing::File(i) => open.push(record.files[i].open_to_map(flags, nest)?),
            Backing::Memfd(i) => open.push(record.memfds[i].open(flags, nest)?),
            _ => continue,
        }
        keys.push(key);
    }
    for segment in &record.segments {
        segment.prepare(pid, nest)?;
    }
    for file in record.files.iter().filter(|f| f.written) {
        file.settle(nest)?;
    }
    for object in &record.objects {
        if !nest.state::<Objects>().made.contains_key(&object.space) {
            let anon =
                SharedAnon::new(object.size, object.noreserve, object.huge).on("mmap", || "shared memory")?;
            let file = anon.open().on("open", || "/proc/self/map_files")?;
            fill_from(&file, object.space, object.size, nest)?;
            nest.state::<Objects>().made.insert(object.space, file);
        }
    }
    // Not as copies: there may be as many of them as descriptors are granted.
    let made = &nest.state::<Objects>().made;
    let objects = record
        .objects
        .iter()
        .map(|object| made[&object.space].as_raw_fd());
    let raw: Vec<i32> = open.iter().map(AsRawFd::as_raw_fd).chain(objects).collect();
    let at = nest.hand_over(pid, &raw)?;
    Ok(Handed {
        files: keys.iter().copied().zip(at.iter().copied()).collect(),
        objects: at[keys.len()..].to_vec(),
        all: at,
    })
}
