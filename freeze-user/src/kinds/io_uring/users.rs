//! Threads and io_uring: which instances each has registered for itself, and the beginning of those that it may use.

use super::{IoUring, Known, Record as Instance, count, is_part};
use crate::error::{Blocker, Result};
use crate::ids::{FileId, Pid};
use crate::kinds::{FdKind, Placed, ProcessKind, Source, Stage};
use crate::nest::{Nest, Options};
use crate::observe::peek::uring::{REGISTERED, Rings};
use crate::observe::view::{ProcessView, View};
use crate::sys::uring::{ENTER_REGISTERED_RING, register};
use crate::tracee::tape::{Ran, Tape};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};

#[derive(Debug)]
pub struct Users;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Thread, place, instance (IORING_REGISTER_RING_FDS).
    pub registered: Vec<(Pid, u32, FileId)>,
}

/// Instances that are made and have not begun yet.
#[derive(Debug, Default)]
pub struct Beginnings {
    pub rings: Vec<(Placed, Instance)>,
    /// Thread, instance, and the CPUs that the thread's workers are bound to.
    pub bound: Vec<(Pid, FileId, Vec<u8>)>,
}

/// Whether a process has an instance open or mapped: most have not, and need not be looked into.
pub fn shows_one(p: &ProcessView) -> bool {
    let look = || p.fds.iter().any(IoUring::claims) || p.vmas.iter().any(|v| is_part(&v.name));
    *p.shows_ring.get_or_init(look)
}

/// In how many places the threads of a process must be asked for instances that nothing tells of.
pub fn hidden_places(p: &ProcessView) -> u64 {
    if shows_one(p) { 0 } else { REGISTERED as u64 }
}

/// Asks a thread whether it has registered an instance: a submission of nothing says so.
pub fn ask(places: u64, t: &mut Tape<'_>) -> Vec<usize> {
    let enter = |n| {
        let args = [n, 0, 0, ENTER_REGISTERED_RING, 0, 0];
        t.try_call("io_uring_enter", libc::SYS_io_uring_enter, &args)
    };
    (0..places).map(enter).collect()
}

/// Refuses a thread that has one which is open in no other way, as an instance can be from the beginning.
pub fn told(pid: Pid, tid: Pid, ran: &Ran, asked: &[usize]) -> Result<()> {
    let none = |call: &usize| {
        matches!(
            ran.result(*call),
            Err(Errno::EBADF | Errno::EINVAL | Errno::ENOSYS)
        )
    };
    match asked.iter().position(|call| !none(call)) {
        None => Ok(()),
        Some(place) => Err(only_registered(pid, tid, place).refuse()),
    }
}

fn only_registered(pid: Pid, tid: Pid, place: usize) -> Blocker {
    let object = format!("io_uring registered as number {place}");
    Blocker::of(pid, format!("thread {tid}"), object)
        .why("the process has it open in no other way (IORING_REGISTER_RING_FDS)")
        .remedy("let the program keep the descriptor of its io_uring open")
}

/// What the threads of a process have registered, with the descriptors by which it has the same open.
fn registered(p: &ProcessView) -> Vec<(Pid, usize, Option<i32>)> {
    let Some(rings) = shows_one(p).then(Rings::get).flatten() else {
        return Vec::new();
    };
    let found = rings.registered(p.pid).unwrap_or_default();
    if found.is_empty() {
        return Vec::new();
    }
    let own = Known::of_some(std::iter::once(p));
    let one = |(tid, place, file)| (tid, place, own.file(file).map(|(_, fd)| fd));
    found.into_iter().map(one).collect()
}

impl ProcessKind for Users {
    const TAG: &'static str = "io-uring-users";
    const VERSION: u16 = 1;
    const ABOUT: &'static str =
        "io_uring instances that a thread has registered for itself, if its process has them open too";
    /// When its threads are there, of which perhaps only one may begin an instance.
    const STAGE: Stage = Stage::Signals;
    type Record = Record;

    fn verdict(p: &ProcessView, _: &View, out: &mut Vec<Blocker>) {
        for (tid, place, fd) in registered(p) {
            if fd.is_none() {
                out.push(only_registered(p.pid, tid, place));
            }
        }
    }

    fn collect(from: &mut Source<'_>) -> Result<Record> {
        let p = &from.process.view;
        let id = |(tid, place, fd): (Pid, usize, Option<i32>)| {
            let id = from.shared.files.get(&(p.pid, fd?))?;
            Some((tid, place as u32, *id))
        };
        let registered = registered(p).into_iter().filter_map(id).collect();
        Ok(Record { registered })
    }

    fn precheck(_: &Record, _: Pid, _: &Options, _: &mut Vec<Blocker>) {}

    fn restore(record: &Record, pid: Pid, nest: &mut Nest) -> Result<()> {
        let all = std::mem::take(&mut nest.state::<Beginnings>().rings);
        for (placed, instance) in all {
            let user = instance.submitter.map_or(Some((pid, 0)), |tid| {
                let thread = nest.process(pid).ok()?.thread(tid)?;
                Some((pid, thread))
            });
            let holds = nest.holders(placed.id).iter().find(|(p, _)| *p == pid).copied();
            match (user, holds) {
                (Some((_, thread)), Some((_, fd))) => {
                    count::begin(&instance, Placed { pid, fd, ..placed }, thread, nest)?;
                }
                _ => nest.state::<Beginnings>().rings.push((placed, instance)),
            }
        }
        for (tid, id, mask) in std::mem::take(&mut nest.state::<Beginnings>().bound) {
            let Some(thread) = nest.process(pid)?.thread(tid) else {
                nest.state::<Beginnings>().bound.push((tid, id, mask));
                continue;
            };
            let holder = nest.holders(id).iter().find(|(p, _)| *p == pid).copied();
            let Some((_, fd)) = holder else { continue };
            nest.process(pid)?.tape_on(thread, |t| {
                let args = [
                    fd as u64,
                    u64::from(register::IOWQ_AFF),
                    t.bytes(&mask),
                    mask.len() as u64,
                ];
                // None of its CPUs may be here: then they may run on all that are.
                t.try_call("io_uring_register(IOWQ_AFF)", libc::SYS_io_uring_register, &args)
            })?;
        }
        for (tid, place, id) in &record.registered {
            let holder = nest.holders(*id).iter().find(|(p, _)| *p == pid).copied();
            let Some((_, fd)) = holder else { continue };
            let building = nest.process(pid)?;
            let thread = building.thread(*tid).unwrap_or(0);
            building.tape_on(thread, |t| {
                // struct io_uring_rsrc_update: offset, reserved, data.
                let words = [u64::from(*place), fd as u64];
                let at = t.bytes(&words.map(u64::to_ne_bytes).concat());
                let args = [fd as u64, u64::from(register::RING_FDS), at, 1];
                t.call("io_uring_register(RING_FDS)", libc::SYS_io_uring_register, &args)
            })?;
        }
        Ok(())
    }
}
