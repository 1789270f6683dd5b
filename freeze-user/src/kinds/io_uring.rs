//! io_uring(7) instances that have nothing in flight: rings with what is in them, counters, files and eventfd registered.
//!
//! The kernel tells of little of this, and of requests in flight hardly at all: it is looked at in place
//! ([`crate::observe::peek::uring`]), and where that is not granted an instance is refused.

pub mod count;
mod place;
pub mod users;

use super::pipe::Bytes;
use super::socket::fetch;
use super::{FdKind, Placed, Source};
use crate::error::{Blocker, Context, Error, Result};
use crate::ids::{FileId, Pid, Range};
use crate::nest::{Nest, Options};
use crate::observe::peek::uring::{Ring, Rings};
use crate::observe::view::{FdView, ProcessView, View, command_of};
use crate::sys;
use crate::sys::uring::{self, Area, ENTRIES_AT, Layout, Params, RINGS_AT, entry_size, setup};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

#[derive(Debug)]
pub struct IoUring;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The process in which it is made.
    pub owner: Pid,
    /// `IORING_SETUP_*`.
    pub flags: u32,
    pub entries: u32,
    pub completions: u32,
    /// How many entries were taken and how many completions given, modulo 2³².
    pub taken: u32,
    pub given: u32,
    pub layout: Layout,
    /// Both rings and the entries for submission, byte for byte.
    pub rings: Bytes,
    pub slots: Bytes,
    /// What counts completions, and whether only those that come later.
    pub eventfd: Option<(FileId, bool)>,
    /// Registered files by their places, with their tags.
    pub files: Vec<(Option<FileId>, u64)>,
    /// Where in that table the kernel may choose, if not everywhere: first place, how many.
    pub choice: Option<(u32, u32)>,
    /// Registered buffers by their places, with their tags; of no length where there is none.
    #[serde(default)]
    pub buffers: Vec<(Range, u64)>,
    /// Most bounded and unbounded workers; 0 where nothing was asked for.
    pub workers: [u32; 2],
    /// Threads whose workers are bound to CPUs, and to which (a bit each).
    pub bound: Vec<(Pid, Bytes)>,
    /// The only thread that may submit.
    pub submitter: Option<Pid>,
    pub mappings: Vec<Mapping>,
}

/// One mapping of a part of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mapping {
    pub pid: Pid,
    pub range: Range,
    /// `PROT_*`.
    pub protection: i32,
    pub offset: u64,
    /// `MADV_*` that were given.
    pub advice: Vec<i32>,
}

/// What can be carried.
const CARRIED: u32 = setup::IOPOLL
    | setup::CQSIZE
    | setup::CLAMP
    | setup::ATTACH_WQ
    | setup::R_DISABLED
    | setup::SUBMIT_ALL
    | setup::COOP_TASKRUN
    | setup::TASKRUN_FLAG
    | setup::SQE128
    | setup::CQE32
    | setup::SINGLE_ISSUER
    | setup::DEFER_TASKRUN
    | setup::NO_SQARRAY
    | setup::HYBRID_IOPOLL;

/// What cannot, with why.
const REFUSED: [(u32, &str); 3] = [
    (
        setup::SQPOLL,
        "a thread of the kernel submits for it (IORING_SETUP_SQPOLL)",
    ),
    (
        setup::NO_MMAP,
        "its rings lie in memory of the program's own (IORING_SETUP_NO_MMAP)",
    ),
    (!CARRIED, "it was set up in a way that freeze does not know"),
];

const NAME: &[u8] = b"anon_inode:[io_uring]";

/// Whether a mapping is a part of an instance.
pub fn is_part(name: &[u8]) -> bool {
    name == NAME
}

/// Linux 6.6 has moved what is in the rings, which a program is told of when it makes them.
const OTHER_LAYOUT: &str = "this kernel lays its rings out differently";

const CLOSE: &str = "let the program close it before the checkpoint";

impl FdKind for IoUring {
    const TAG: &'static str = "io-uring";
    const VERSION: u16 = 1;
    const ABOUT: &'static str = "io_uring instances with nothing in flight: sizes, setup flags, mappings, entries not submitted and \
        completions not read, counters, registered files, buffers and eventfd, limits and CPUs of workers, who alone may submit; refused with \
        requests in flight, completions that overflowed, SQPOLL, rings in memory of the program's own, provided buffers, registered \
        ones where the kernel does not show them (before Linux 6.15) or that several processes could use, personalities, restrictions, busy polling, and without eBPF to see all that; a new instance counts up to \
        where the old one was, in 0.1 µs for each request it ever took";
    type Record = Record;

    fn claims(fd: &FdView) -> bool {
        fd.anon_inode() == Some("io_uring")
    }

    fn verdict(fd: &FdView, view: &View, out: &mut Vec<Blocker>) {
        match look(fd) {
            Ok(ring) => obstacles(fd, &ring, view, out),
            Err(blocker) => out.push(blocker),
        }
    }

    fn collect(fd: &FdView, from: &mut Source<'_>) -> Result<Record> {
        let name = || fd.label();
        let ring = look(fd).map_err(Blocker::refuse)?;
        let mut out = Vec::new();
        obstacles(fd, &ring, from.view, &mut out);
        if !out.is_empty() {
            return Err(Error::Refused(out));
        }
        // Whoever can use it may have had buffers registered while written pages were looked for.
        for p in from.view.each().filter(|p| users::shows_one(p)) {
            from.pages.distrust(p.pid);
        }
        let held = from.process.fd(fd.fd)?;
        let layout = trial(&ring).on("io_uring_setup", name)?;
        let size = layout.rings(ring.flags, ring.entries, ring.completions);
        let slots = entry_size(ring.flags) * u64::from(ring.entries);
        let map = |offset, len| {
            let area = Area::map(held.as_fd(), offset, len).on("mmap", name)?;
            Ok(Bytes(area.read(len)))
        };
        let known = Known::of(from.view);
        let id = |place: Option<(Pid, i32)>| place.and_then(|p| from.shared.files.get(&p).copied());
        let (first, end) = ring.choice;
        Ok(Record {
            owner: fd.pid,
            flags: ring.flags,
            entries: ring.entries,
            completions: ring.completions,
            taken: ring.taken,
            given: ring.given,
            layout,
            rings: map(RINGS_AT, size)?,
            slots: map(ENTRIES_AT, slots)?,
            eventfd: ring
                .eventfd
                .and_then(|(context, later)| Some((id(known.eventfd(context))?, later))),
            files: ring
                .files
                .iter()
                .map(|(f, tag)| (id(known.file(*f)), *tag))
                .collect(),
            choice: ((first, end) != (0, ring.files.len() as u32)).then_some((first, end - first)),
            buffers: ring
                .registered
                .unwrap_or_default()
                .into_iter()
                .map(|(at, len, tag)| (Range::new(at, at + len), tag))
                .collect(),
            workers: ring.workers,
            bound: ring
                .bound
                .into_iter()
                .map(|(tid, mask)| (tid, Bytes(mask)))
                .collect(),
            submitter: ring.submitter,
            mappings: mappings(fd, from.view),
        })
    }

    fn precheck(record: &Record, _: &Options, out: &mut Vec<Blocker>) {
        let mut params = record.params();
        let made = uring::make(&mut params).map(|_| params.layout());
        let why = match made {
            Err(e) => format!("none of its kind can be made here: {}", e.desc()),
            Ok(here) if (here.sq, here.cq) != (record.layout.sq, record.layout.cq) => OTHER_LAYOUT.into(),
            Ok(here) if record.layout.features & !here.features != 0 => {
                "this kernel lacks features that it told the program of".into()
            }
            Ok(_) => return,
        };
        out.push(
            Blocker::at(format!("io_uring of {}", record.owner), "an io_uring instance")
                .why(why)
                .remedy("restore under a kernel with the io_uring of the first one (and kernel.io_uring_disabled = 0)"),
        );
    }

    /// None: what it refers to is registered when all is there.
    fn members(_: &Record) -> Vec<FileId> {
        Vec::new()
    }

    fn restore(record: &Record, nest: &mut Nest) -> Result<OwnedFd> {
        let name = || format!("io_uring of {}", record.owner);
        let params = record.params().bytes();
        // In the process itself, which is charged for it; freeze would be otherwise.
        let building = nest.process(record.owner)?;
        let (ran, call) = building.tape(|t| {
            let at = t.bytes(&params);
            t.call(
                "io_uring_setup",
                libc::SYS_io_uring_setup,
                &[u64::from(record.entries), at],
            )
        })?;
        let number = ran.value(call);
        let pidfd = sys::pidfd_open(building.threads[0].tid()).on("pidfd_open", name)?;
        let ring = sys::pidfd_getfd(pidfd.as_fd(), number as i32).on("pidfd_getfd", name)?;
        building.call("close", libc::SYS_close, &[number as u64])?;
        Ok(ring)
    }

    fn finish(record: &Record, placed: Placed, nest: &mut Nest) -> Result<()> {
        map(record, placed, nest)?;
        register(record, nest.file(placed.id)?, nest)?;
        register_buffers(record, placed, nest)?;
        // It begins when its thread is there: see `users`.
        let begins = nest.state::<users::Beginnings>();
        begins.rings.push((placed, record.clone()));
        let bound = record.bound.iter();
        begins
            .bound
            .extend(bound.map(|(tid, mask)| (*tid, placed.id, mask.0.clone())));
        Ok(())
    }
}

/// The instance behind a descriptor, as the kernel has it.
fn look(fd: &FdView) -> std::result::Result<Ring, Blocker> {
    let untold = "the kernel tells nobody what is registered with it and what is in flight, and freeze cannot look into it here (eBPF)";
    let Some(rings) = Rings::get() else {
        let remedy = "run freeze with CAP_BPF and CAP_PERFMON on a kernel with BTF, or let the program close it before the checkpoint";
        return Err(fd.blocker().why(untold).remedy(remedy));
    };
    let own = fetch(fd).map_err(|e| fd.blocker().why(e.to_string()).remedy(CLOSE))?;
    let seen = rings.look(own.as_fd());
    seen.ok_or_else(|| {
        fd.blocker()
            .why("it changes while it is looked at")
            .remedy("try again when it is at rest")
    })
}

/// Everything that speaks against carrying it.
fn obstacles(fd: &FdView, ring: &Ring, view: &View, out: &mut Vec<Blocker>) {
    let mut add = |why: String, remedy: &str| out.push(fd.blocker().why(why).remedy(remedy));
    if ring.in_flight != 0 {
        let why = match ring.in_flight {
            1 => "a request of its threads is in flight".to_owned(),
            n => format!("{n} requests of its threads are in flight"),
        };
        add(
            why,
            "let all complete, or let the program cancel them before the checkpoint",
        );
    }
    if ring.overflow {
        let why = "completions wait for room in the ring, or were lost";
        add(why.into(), "let the program take out completions first");
    }
    let mut peculiar = ring.peculiar.clone();
    peculiar.dedup();
    for what in peculiar {
        add(
            format!("it has {what}, which cannot be made again as it was"),
            CLOSE,
        );
    }
    if let Some((_, why)) = REFUSED.iter().find(|(flags, _)| ring.flags & flags != 0) {
        add((*why).into(), CLOSE);
    }
    if let Some(why) = (ring.buffers != 0)
        .then(|| buffers_obstacle(fd, ring, view))
        .flatten()
    {
        add(
            why,
            "let the program unregister them, or close it, before the checkpoint",
        );
    }
    let known = Known::of(view);
    if ring
        .eventfd
        .is_some_and(|(context, _)| known.eventfd(context).is_none())
    {
        let why = "its completions are counted by an eventfd that no process of the checkpoint has open";
        add(why.into(), "let the program unregister it before closing it");
    }
    let lost = |(file, _): &&(u64, u64)| *file != 0 && known.file(*file).is_none();
    if let Some(n) = ring.files.iter().position(|f| lost(&f)) {
        let why = format!("no process of the checkpoint has the file open that is registered as number {n}");
        add(
            why,
            "let the program keep registered files open, or unregister them",
        );
    }
    if let Some(tid) = ring.submitter {
        let its = |p: &&ProcessView| p.threads.iter().any(|t| t.tid == tid && !t.stat.is_zombie());
        let holds = |p: &ProcessView| fds_like(fd, p).any(|f| same(fd, f));
        if !view.each().find(its).is_some_and(holds) {
            let why = format!("only thread {tid} may submit, which is none of a process that has it open");
            add(why, CLOSE);
        }
    }
    for v in mappings(fd, view) {
        if ![RINGS_AT, uring::COMPLETIONS_AT, ENTRIES_AT].contains(&v.offset) {
            let why = format!("only the rest of a part of it is mapped, at {}", v.range);
            add(why, "let the program map and unmap its parts as a whole");
        }
    }
    if view.get(fd.pid).is_none() {
        add("it waits in a queue".into(), "let the program receive it first");
    }
    if let Some((pid, at)) = holder_outside(fd, view) {
        let why = format!(
            "it is also held outside the checkpoint, by pid {pid} ({}) as fd {at}",
            command_of(pid)
        );
        let remedy = format!("freeze that process too (--also-freeze {pid})");
        out.push(fd.blocker().why(why).remedy(remedy).held_by(pid));
    }
}

/// The most registered buffers that are carried.
const BUFFERS: usize = 1024;

/// What keeps registered buffers from being carried.
fn buffers_obstacle(fd: &FdView, ring: &Ring, view: &View) -> Option<String> {
    let Some(buffers) = &ring.registered else {
        return Some("buffers are registered with it, which the kernel does not show".into());
    };
    if buffers.len() > BUFFERS {
        return Some(format!("more than {BUFFERS} buffers are registered with it"));
    }
    // They are in the memory of whoever registered them.
    let holds = |p: &&ProcessView| !p.is_dead() && fds_like(fd, p).any(|f| same(fd, f));
    if view.each().filter(holds).count() > 1 {
        return Some("buffers are registered with it, and several processes have it open".into());
    }
    let own = view.get(fd.pid)?;
    let mut lost = buffers.iter().filter(|(at, len, _)| {
        let mapped = own.vmas.iter().filter(|v| v.prot() & libc::PROT_WRITE != 0);
        let mapped = crate::ids::normalize(mapped.map(|v| v.range()).collect());
        !crate::ids::subtract(&[Range::new(*at, at + len)], &mapped).is_empty()
    });
    let (at, ..) = lost.next()?;
    Some(format!(
        "a buffer is registered with it that is not mapped any more, at {at:x}"
    ))
}

fn fds_like<'v>(fd: &FdView, p: &'v ProcessView) -> impl Iterator<Item = &'v FdView> {
    let key = (fd.stat.dev, fd.stat.ino);
    p.fds
        .iter()
        .filter(move |f| IoUring::claims(f) && (f.stat.dev, f.stat.ino) == key)
}

fn same(a: &FdView, b: &FdView) -> bool {
    sys::same_file(a.pid, a.fd, b.pid, b.fd) == Ok(true)
}

/// Who else on the machine has a descriptor of it.
fn holder_outside(fd: &FdView, view: &View) -> Option<(Pid, i32)> {
    let mut others = view.others(|other| is_part(&other.link));
    let other = others.find(|o| sys::same_file(fd.pid, fd.fd, o.pid, o.fd) == Ok(true))?;
    Some((other.pid, other.fd))
}

/// Adds mappings of instances that no descriptor of the set leads to any more.
pub fn mapped(p: &ProcessView, view: &View, out: &mut Vec<Blocker>) {
    for v in p.vmas.iter().filter(|v| is_part(&v.name)) {
        if !view.fds().any(|f| IoUring::claims(f) && f.stat.ino == v.inode) {
            out.push(
                p.blocker(v.range().to_string(), v.label())
                    .why("an io_uring instance is mapped that no process of the checkpoint has open")
                    .remedy("let the program keep it open, or unmap it"),
            );
        }
    }
}

/// Its mappings in the set.
fn mappings(fd: &FdView, view: &View) -> Vec<Mapping> {
    const ADVICE: [(&[u8; 2], i32); 2] = [(b"dc", libc::MADV_DONTFORK), (b"dd", libc::MADV_DONTDUMP)];
    let of = |p: &ProcessView| {
        let pid = p.pid;
        let own = p
            .vmas
            .iter()
            .filter(|v| is_part(&v.name) && v.inode == fd.stat.ino);
        let given = |v: &crate::proc::maps::Vma| {
            let given = ADVICE.iter().filter(|(flag, _)| v.has(flag));
            given.map(|(_, advice)| *advice).collect()
        };
        own.map(|v| Mapping {
            pid,
            range: v.range(),
            protection: v.prot(),
            offset: v.offset,
            advice: given(v),
        })
        .collect::<Vec<_>>()
    };
    view.each().flat_map(of).collect()
}

/// The files that the set has open, by the kernel's own names for them.
struct Known {
    files: std::collections::HashMap<u64, (Pid, i32)>,
    eventfds: std::collections::HashMap<u64, (Pid, i32)>,
}

impl Known {
    fn of(view: &View) -> Known {
        Known::of_some(view.each())
    }

    fn of_some<'a>(processes: impl Iterator<Item = &'a ProcessView>) -> Known {
        let mut known = Known {
            files: Default::default(),
            eventfds: Default::default(),
        };
        let Some(rings) = Rings::get() else { return known };
        for p in processes {
            let numbers: Vec<i32> = p.fds.iter().map(|f| f.fd).collect();
            let files = rings.files_of(p.pid, &numbers).unwrap_or_default();
            for (fd, file) in p.fds.iter().zip(files) {
                known.files.entry(file).or_insert((fd.pid, fd.fd));
                if fd.anon_inode() == Some("eventfd")
                    && let Some(context) = rings.eventfd_of(file)
                {
                    known.eventfds.entry(context).or_insert((fd.pid, fd.fd));
                }
            }
        }
        known
    }

    fn file(&self, file: u64) -> Option<(Pid, i32)> {
        self.files.get(&file).copied()
    }

    fn eventfd(&self, context: u64) -> Option<(Pid, i32)> {
        self.eventfds.get(&context).copied()
    }
}

/// The layout of such an instance on this kernel, which it tells only when one is made.
fn trial(ring: &Ring) -> nix::Result<Layout> {
    let mut params = params(ring.flags, ring.entries, ring.completions);
    uring::make(&mut params)?;
    Ok(params.layout())
}

/// What to ask for: exactly these sizes, and nothing to begin before it is told to.
fn params(flags: u32, entries: u32, completions: u32) -> Params {
    // Whose workers it shares is of no consequence where no thread polls.
    let flags = flags & !setup::ATTACH_WQ | setup::CQSIZE | setup::R_DISABLED;
    Params::new(entries, completions, flags)
}

impl Record {
    fn params(&self) -> Params {
        params(self.flags, self.entries, self.completions)
    }
}

/// Maps its parts where they were.
fn map(record: &Record, placed: Placed, nest: &mut Nest) -> Result<()> {
    for m in &record.mappings {
        let own = nest.file(placed.id)?.as_raw_fd();
        let there = nest.hand_over(m.pid, &[own])?[0];
        place::map(m, there, nest)?;
    }
    Ok(())
}

/// Registers what was registered, as anybody may as long as it has not begun.
fn register(record: &Record, ring: BorrowedFd<'_>, nest: &Nest) -> Result<()> {
    let name = || format!("io_uring of {}", record.owner);
    if let Some((id, later)) = record.eventfd {
        uring::register_eventfd(ring, nest.file(id)?, later).on("io_uring_register(EVENTFD)", name)?;
    }
    if !record.files.is_empty() {
        let number = |(id, _): &(Option<FileId>, u64)| match id {
            Some(id) => Ok(nest.file(*id)?.as_raw_fd()),
            None => Ok(-1),
        };
        let files = record.files.iter().map(number).collect::<Result<Vec<i32>>>()?;
        let tags: Vec<u64> = record.files.iter().map(|(_, tag)| *tag).collect();
        uring::register_files(ring, &files, &tags).on("io_uring_register(FILES2)", name)?;
    }
    if let Some((first, number)) = record.choice {
        uring::register_alloc_range(ring, first, number).on("io_uring_register(FILE_ALLOC_RANGE)", name)?;
    }
    if record.workers != [0; 2] {
        uring::register_workers(ring, record.workers).on("io_uring_register(IOWQ_MAX_WORKERS)", name)?;
    }
    Ok(())
}

/// Registers buffers, by the process itself: they are in its memory, which is in place by now.
fn register_buffers(record: &Record, placed: Placed, nest: &mut Nest) -> Result<()> {
    const IORING_REGISTER_BUFFERS2: u64 = 15;
    if record.buffers.is_empty() {
        return Ok(());
    }
    let own = nest.file(placed.id)?.as_raw_fd();
    let there = nest.hand_over(record.owner, &[own])?[0];
    let places = record.buffers.iter().flat_map(|(range, _)| {
        let address = if range.is_empty() { 0 } else { range.start };
        [address, range.len()]
    });
    let places: Vec<u8> = places.flat_map(u64::to_ne_bytes).collect();
    let tags: Vec<u8> = record
        .buffers
        .iter()
        .flat_map(|(_, tag)| tag.to_ne_bytes())
        .collect();
    nest.process(record.owner)?.tape(|t| {
        let (places, tags) = (t.bytes(&places), t.bytes(&tags));
        // struct io_uring_rsrc_register: how many, flags, reserved, buffers, tags.
        let what = [record.buffers.len() as u64, 0, places, tags];
        let what = t.bytes(&what.map(u64::to_ne_bytes).concat());
        let args = [there, IORING_REGISTER_BUFFERS2, what, 32];
        t.call("io_uring_register(BUFFERS2)", libc::SYS_io_uring_register, &args);
        t.call("close", libc::SYS_close, &[there]);
    })?;
    Ok(())
}

/// What freeze itself found wrong with an instance it has made.
fn wrong(record: &Record, call: &'static str, errno: Errno) -> Error {
    Error::kernel(call, format!("io_uring of {}", record.owner), errno)
}
