//! `Plan → Frozen`: every thread of the set at a halt, proven closed, and put back if it is dropped.

pub mod waits;

use crate::error::{Blocker, Context, Error, Fate, Result};
use crate::ids::{Pid, Range};
use crate::kinds::threads::restart::shortened;
use crate::kinds::threads::{is_64_bit, undisturbed};
use crate::kinds::{Recalling, Remembered};
use crate::observe::procfile::read_record;
use crate::observe::view::{Depth, Lasting, ProcessView, View, read_vmas, tasks, threads};
use crate::plan::{Host, Plan, plan};
use crate::proc::maps::Vma;
use crate::proc::stat::Stat;
use crate::proc::status::Status;
use crate::store::Committed;
use crate::sys::deadline::Deadline;
use crate::sys::sched::Realtime;
use crate::sys::{self, fault, laps, limit, pagemap};
use crate::tracee::process::StoppedProcess;
use crate::tracee::{Halting, LINGER, Seized, Stopped, reap, release_all};
use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};
use waits::Waits;

/// A set of processes at a halt. Dropping it lets every thread go on as it was found.
#[derive(Debug)]
pub struct Frozen {
    pub processes: Vec<StoppedProcess>,
    /// As /proc shows the set while it stands still.
    pub view: View,
    /// When the first thread was asked to halt.
    pub since: Instant,
    /// What was read before the stop, and must be found the same after it.
    pub trusted: Vec<Trusted>,
    /// By what it is known at the next stop whether its answers still hold; set when it is asked.
    pub recalling: Option<Recalling>,
    _ahead: Realtime,
}

/// What was read of a process before the stop and holds for it.
#[derive(Debug)]
pub struct Trusted {
    /// The thread by which it is looked at.
    by: Pid,
    lasting: Lasting,
    /// With their VmFlags, which smaps tells, walking the page tables; empty if they were read in the pause.
    vmas: Vec<Vma>,
    guards: Option<Vec<Range>>,
}

/// How often the whole stop is tried when threads end in the midst of it.
const ATTEMPTS: usize = 50;

/// How long the threads that stand still wait for those that do not yet: one may wait for another that has stopped.
const PATIENCE: Duration = Duration::from_millis(40);

/// How long a thread may take to halt while the others run: one that waits for a slow disk cannot be hurried.
const LIMIT: Duration = Duration::from_secs(5);

/// For how much of that one of several is waited for at a time.
const TURN: Duration = Duration::from_millis(5);

/// How often the set is looked over again for threads and children that came while it was being stopped.
const LOOKS: usize = 100;

/// Stops everything that the plan holds, and what has been forked since; refuses what came and can't be carried.
///
/// With `trust`, what hardly ever changes is taken from the plan; the caller then has to compare [`Frozen::trusted`] after
/// the resume.
pub fn stop(planned: Plan, host: &Host, trust: bool) -> Result<Frozen> {
    for _ in 1..ATTEMPTS {
        if let Some(frozen) = attempt(&planned, host, trust)? {
            return Ok(frozen);
        }
        // A thread was on its way out; everything runs again for a moment.
        std::thread::sleep(Duration::from_millis(1));
    }
    attempt(&planned, host, trust)?.ok_or_else(|| {
        let pid = planned.view.roots.first().copied().unwrap_or(Pid(0));
        Blocker::of(pid, "", "")
            .why("its threads come and go faster than they can be stopped")
            .remedy("try again")
            .refuse()
    })
}

/// One attempt; `None` if a thread ended in the midst of it.
fn attempt(planned: &Plan, host: &Host, trust: bool) -> Result<Option<Frozen>> {
    let waits = Waits::look(&planned.view.roots);
    if trust {
        rehearse(&planned.view, host);
    }
    let ahead = Realtime::enter();
    let mut since = None;
    let mut stopped: BTreeMap<Pid, Vec<Stopped>> = BTreeMap::new();
    let gathered = gather(planned, host, trust, &waits, &mut stopped, &mut since);
    // Whoever is let go at once must not see that it was stopped either.
    for thread in stopped.values_mut().flatten() {
        let _ = smooth_alone(thread, &waits);
    }
    Ok(gathered?.map(|(processes, view, trusted)| Frozen {
        processes,
        view,
        since: since.unwrap_or_else(Instant::now),
        trusted,
        recalling: None,
        _ahead: ahead,
    }))
}

/// Looks as the pause will: the processor has copied memory since the last time, and would find nothing in its caches.
fn rehearse(planned: &View, host: &Host) {
    const LARGE: usize = 100;
    let size = |p: &ProcessView| p.fds.len() + p.threads.len();
    if planned.each().map(size).sum::<usize>() < LARGE {
        // What comes of it does not matter.
        let _ = tasks(&planned.roots)
            .and_then(|all| View::read_after(&planned.roots, Depth::Maps, Some(planned), true, all))
            .and_then(|view| plan(view, host));
    }
}

type Gathered = (Vec<StoppedProcess>, View, Vec<Trusted>);

/// Stops and smooths the set; what it leaves in `stopped` stands still and is not smoothed.
fn gather(
    planned: &Plan,
    host: &Host,
    trust: bool,
    waits: &Waits,
    stopped: &mut BTreeMap<Pid, Vec<Stopped>>,
    since: &mut Option<Instant>,
) -> Result<Option<Gathered>> {
    let roots = planned.view.roots.clone();
    let seen = planned.view.each().flat_map(|p| &p.threads);
    let own: BTreeSet<Pid> = seen.map(|t| t.tid).collect();
    let Some(standing) = halt_all(&roots, waits, &own, stopped, since)? else {
        return Ok(None);
    };
    laps::lap("look for more");
    let mut view = View::read_after(&roots, Depth::Maps, Some(&planned.view), trust, standing)?;
    laps::lap("look at /proc");
    for p in view.each_mut() {
        p.threads.retain(|t| !t.stat.is_zombie());
    }
    let halted = |p: &ProcessView| stopped.get(&p.pid).map_or(0, Vec::len);
    if view.each().any(|p| !p.is_dead() && halted(p) != p.threads.len()) {
        return Ok(None);
    }
    // What dies of a signal the moment it runs would do the same after every restore: let it, and look again.
    let held = |p: &ProcessView| {
        let threads = stopped.get(&p.pid).map_or(&[][..], Vec::as_slice);
        threads.iter().any(|t| t.group_stop() != 0)
    };
    let doomed = |p: &ProcessView| p.threads.iter().any(|t| t.status.is_doomed()) && !held(p);
    if view.each().any(|p| !p.is_dead() && doomed(p)) {
        return Ok(None);
    }
    let trusted = fill_flags(&mut view, &planned.view, trust)?;
    laps::lap("mapping flags");
    limit::check()?;
    fault::point("view")?;
    // The same verdict once more, on what is there now: a change for the worse lets everything go again.
    let Plan { view } = plan(view, host)?;
    laps::lap("verdict");
    let mut processes = Vec::with_capacity(view.processes.len());
    for p in view.processes.iter().filter(|p| !p.is_dead()) {
        let mut threads = stopped.remove(&p.pid).unwrap_or_default();
        threads.sort_by_key(|t| (t.tid() != p.pid, t.tid()));
        for thread in &mut threads {
            let status = p.thread(thread.tid()).map(|t| &t.status);
            smooth_thread(thread, status, waits)?;
        }
        processes.push(StoppedProcess::new(Arc::clone(p), threads)?);
        fault::point("smooth")?;
    }
    laps::lap("smooth");
    Ok(Some((processes, view, trusted)))
}

/// Gives the vmas of a stopped set their VmFlags: those of `before` if they are trusted, or read anew.
fn fill_flags(view: &mut View, before: &View, trust: bool) -> Result<Vec<Trusted>> {
    let mut trusted = Vec::new();
    for p in view.each_mut().filter(|p| !p.is_dead()) {
        let known = before.get(p.pid);
        let known = known.filter(|b| trust && b.stat.start_time == p.stat.start_time);
        let same = known.is_some_and(|b| take_flags(&mut p.vmas, &b.vmas));
        match same {
            true => p.guards = known.and_then(|b| b.guards.clone()),
            false => p.vmas = read_vmas(p.speaker, Depth::Smaps)?,
        }
        if known.is_some() {
            trusted.push(Trusted {
                by: p.speaker,
                lasting: p.lasting(),
                vmas: if same { p.vmas.clone() } else { Vec::new() },
                guards: p.guards.clone(),
            });
        }
    }
    Ok(trusted)
}

/// Copies the flags of mappings that are the same in `before`; tells whether all are. Both are in order of address.
fn take_flags(vmas: &mut [Vma], before: &[Vma]) -> bool {
    vmas.iter_mut().all(|vma| {
        let found = before
            .binary_search_by_key(&vma.start, |o| o.start)
            .map(|i| &before[i]);
        let Ok(old) = found else { return false };
        vma.flags = old.flags.clone();
        (vma.page, vma.key) = (old.page, old.key);
        *vma == *old
    })
}

/// Whether everything is as it was trusted to be.
///
/// The same before the stop and after the resume is the same in between, short of being changed twice within the
/// milliseconds of a checkpoint.
pub fn trust_was_right(trusted: &[Trusted]) -> bool {
    trusted.iter().all(|t| {
        let lasting = Lasting::of(t.by);
        let flags = (!t.vmas.is_empty()).then(|| read_vmas(t.by, Depth::Smaps));
        if t.guards.is_some() {
            let now = pagemap::guards_of(t.by, t.vmas.iter().map(Vma::range)).ok();
            if now.is_some() && now != t.guards {
                tracing::debug!(pid = %t.by, "guard pages changed while they were trusted not to");
                return false;
            }
        }
        // A process that has ended since tells nothing.
        let lasts = lasting.ok().is_none_or(|now| now.agrees(&t.lasting));
        let flagged = flags.and_then(Result::ok);
        let flagged = flagged.is_none_or(|now| same_flags(&t.vmas, &now));
        if !lasts || !flagged {
            tracing::debug!(pid = %t.by, lasts, flagged, "changed while it was trusted not to");
        }
        lasts && flagged
    })
}

/// Whether mappings that are still there have the same flags; both in order of address.
fn same_flags(then: &[Vma], now: &[Vma]) -> bool {
    then.iter().all(|v| {
        let found = now.binary_search_by_key(&v.start, |n| n.start);
        let same_place = found.map(|i| &now[i]).ok().filter(|n| n.end == v.end);
        same_place.is_none_or(|n| n.key == v.key && kept(n).eq(kept(v)))
    })
}

/// The flags that are the program's own doing: `uw` is the tracking of written pages, `sd` a page's soft-dirty bit.
fn kept(v: &Vma) -> impl Iterator<Item = &[u8; 2]> {
    v.flags.iter().filter(|f| *f != b"uw" && *f != b"sd")
}

/// Halts rounds of threads until a look at /proc finds none that is not halted.
///
/// Returns all threads, each with its process. None if some thread did not halt while the others stood still, and did once
/// they ran again: the parent of a vfork waits uninterruptibly for the very child that we have stopped.
///
/// `since` becomes the moment at which the first was asked to halt. Threads of `own` are known to be the program's; others
/// may be the kernel's, which do not halt for us.
fn halt_all(
    roots: &[Pid],
    waits: &Waits,
    own: &BTreeSet<Pid>,
    stopped: &mut BTreeMap<Pid, Vec<Stopped>>,
    since: &mut Option<Instant>,
) -> Result<Option<Vec<(Pid, Pid)>>> {
    let mut last: BTreeSet<Pid> = BTreeSet::new();
    for _ in 0..LOOKS {
        let mut fresh = Vec::new();
        let mut failed = Ok(());
        let all = tasks(roots)?;
        let halted: HashSet<Pid> = stopped.values().flatten().map(Stopped::tid).collect();
        for &(pid, tid) in &all {
            if halted.contains(&tid) || !own.contains(&tid) && is_io_worker(pid, tid) {
                continue;
            }
            match Seized::seize(tid, 0) {
                // It runs on until all are seized, which takes longer than to halt them.
                Ok(Some(seized)) => fresh.push((pid, seized)),
                Ok(None) => {}
                Err(e) => {
                    failed = Err(already_traced(pid, tid, e));
                    break;
                }
            }
        }
        if since.is_none() {
            *since = Some(Instant::now());
            laps::begin();
        }
        // The first of a process comes last: as long as it runs, the kernel gives it what is for all (see `release_all`).
        fresh.iter().rev().for_each(|(_, seized)| seized.interrupt());
        // Who ended since the last look may have left a child to one that had been looked at.
        let is_known = |tid: &Pid| last.contains(tid) || halted.contains(tid);
        let whole = fresh.is_empty() && all.iter().all(|(_, tid)| is_known(tid));
        last = all.iter().map(|(_, tid)| *tid).collect();
        if whole && failed.is_ok() {
            return match roots.iter().find(|r| !stopped.contains_key(r)) {
                Some(gone) => Err(Error::Died {
                    pid: *gone,
                    how: "ended while it was being stopped".into(),
                }),
                None => Ok(Some(all)),
            };
        }
        failed = failed.and_then(|()| fault::point("seized"));
        let (late, halted) = halt_together(fresh, |pid, thread| {
            stopped.entry(pid).or_default().push(thread);
        })?;
        failed = failed.and(halted);
        laps::lap("halt");
        if !late.is_empty() {
            for mut threads in std::mem::take(stopped).into_values() {
                threads.iter_mut().for_each(|t| drop(smooth_alone(t, waits)));
                // Whoever has ended meanwhile is told of by the next look.
                let _ = release_all(threads);
            }
            wait_for_late(late, waits)?;
            return failed.map(|()| None);
        }
        failed?;
    }
    Err(Blocker::at("the set", "")
        .why("it makes threads or processes faster than they can be stopped")
        .remedy("try again")
        .refuse())
}

/// Which threads of a process are to stand still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Threads {
    All,
    /// The one that speaks for it.
    Speaker,
}

/// Halts threads of a process, first of them the one that speaks for it; nothing, and all go on, if one does not halt:
/// it may wait in the kernel for what another of them is to do first, or a child that it has made by vfork(2).
pub(crate) fn halt_threads(pid: Pid, by: Pid, which: Threads) -> Result<Option<Vec<Stopped>>> {
    let all = || {
        let threads = match which {
            Threads::All => threads(pid),
            Threads::Speaker => vec![by],
        };
        threads.into_iter().filter(|tid| !is_io_worker(pid, *tid))
    };
    let waits = Waits::of(all());
    let mut stopped: Vec<Stopped> = Vec::new();
    for _ in 0..LOOKS {
        let halted: HashSet<Pid> = stopped.iter().map(Stopped::tid).collect();
        let mut fresh = Vec::new();
        for tid in all().filter(|tid| !halted.contains(tid)) {
            let seized = Seized::seize(tid, 0).map_err(|e| already_traced(pid, tid, e))?;
            fresh.extend(seized.map(|seized| (pid, seized)));
        }
        if fresh.is_empty() {
            stopped.sort_by_key(|thread| thread.tid() != by);
            let speaks = stopped.first().is_some_and(|thread| thread.tid() == by);
            return Ok(speaks.then_some(stopped));
        }
        fresh.iter().rev().for_each(|(_, seized)| seized.interrupt());
        let (late, mut failed) = halt_together(fresh, |_, thread| stopped.push(thread))?;
        for thread in stopped.iter_mut().filter(|t| !halted.contains(&t.tid())) {
            failed = failed.and(smooth_alone(thread, &waits));
        }
        if !late.is_empty() {
            let _ = release_all(stopped);
            wait_for_late(late, &waits)?;
            return failed.map(|()| None);
        }
        failed?;
    }
    Ok(None)
}

/// Waits for the halt of these, for as long as who stands still may wait; tells who is late, and what failed.
///
/// Also after an error: only a thread at a halt can be let go so that it sees nothing of it.
fn halt_together(
    fresh: Vec<(Pid, Seized)>,
    mut halted: impl FnMut(Pid, Stopped),
) -> Result<(VecDeque<Seized>, Result<()>)> {
    let _patience = deadline(PATIENCE)?;
    let (mut late, mut outcome) = (VecDeque::new(), Ok(()));
    for (pid, seized) in fresh {
        match seized.halting() {
            Ok(Halting::Stopped(thread)) => halted(pid, thread),
            Ok(Halting::Gone) => {}
            Ok(Halting::Late(seized)) => late.push_back(seized),
            Err(e) => outcome = outcome.and(Err(e)),
        }
        outcome = outcome.and_then(|()| fault::point("halt"));
    }
    Ok((late, outcome))
}

fn deadline(after: Duration) -> Result<Deadline> {
    Deadline::new(after).on("timer_create", || "freeze itself")
}

/// Waits until these have halted while everybody else runs, and lets each go on at once.
///
/// In turns: one of them may wait for another that has come to its halt by now.
fn wait_for_late(mut late: VecDeque<Seized>, waits: &Waits) -> Result<()> {
    let end = Instant::now() + LIMIT;
    let mut outcome = Ok(());
    while outcome.is_ok()
        && let Some(seized) = late.pop_front()
    {
        let left = end.saturating_duration_since(Instant::now());
        let _turn = deadline(if late.is_empty() { left } else { TURN }.max(TURN))?;
        let halted = match seized.halting() {
            Ok(Halting::Stopped(thread)) => Ok(Some(thread)),
            Ok(Halting::Gone) => Ok(None),
            Ok(Halting::Late(seized)) if Instant::now() < end => {
                late.push_back(seized);
                Ok(None)
            }
            Ok(Halting::Late(seized)) => seized.halted().map_err(never_halts),
            Err(e) => Err(e),
        };
        outcome = halted.map(|thread| {
            if let Some(mut thread) = thread {
                let _ = smooth_alone(&mut thread, waits);
            }
        });
    }
    // After an error the others are not waited for any longer, which dropping them would do for ever without a limit.
    let _short = deadline(TURN);
    drop(late);
    outcome
}

/// What is said of a thread that did not halt within [`LIMIT`]. It stays an error of lateness: this thread traces it still, so
/// that another attempt would only find it traced.
fn never_halts(e: Error) -> Error {
    match e {
        Error::Kernel {
            call,
            object,
            errno: nix::errno::Errno::ETIMEDOUT,
            ..
        } => {
            let why = match object.contains("kernel_clone") {
                true => {
                    "it waits in vfork(2) until its child executes another program or ends; try again then"
                }
                false => {
                    "it is at work in the kernel, or waits for a device: see /proc/PID/stack, and try again later"
                }
            };
            Error::kernel(call, format!("{object}: {why}"), nix::errno::Errno::ETIMEDOUT)
        }
        e => e,
    }
}

/// Whether a thread is one that the kernel has made to work for io_uring.
fn is_io_worker(pid: Pid, tid: Pid) -> bool {
    let text = std::fs::read(format!("/proc/{pid}/task/{tid}/stat")).unwrap_or_default();
    Stat::parse(&text).is_some_and(|stat| stat.is_io_worker())
}

fn already_traced(pid: Pid, tid: Pid, e: Error) -> Error {
    match e {
        Error::Kernel {
            errno: nix::errno::Errno::EPERM,
            ..
        } => Blocker::of(pid, format!("thread {tid}"), "")
            .why("it is being traced already, or the kernel forbids tracing it")
            .remedy("end the debugger, or run freeze as root with CAP_SYS_PTRACE")
            .refuse(),
        e => e,
    }
}

/// The same for a thread of which nothing is known but that it stands still.
fn smooth_alone(thread: &mut Stopped, waits: &Waits) -> Result<()> {
    let text = read_record(&format!("/proc/{}/status", thread.tid())).unwrap_or_default();
    let status = Status::parse(&text);
    smooth_thread(thread, status.as_ref(), waits)
}

/// Amends the registers so that the thread does not see that it was stopped; refuses 32-bit code.
fn smooth_thread(thread: &mut Stopped, status: Option<&Status>, waits: &Waits) -> Result<()> {
    if !is_64_bit(thread.regs()) {
        return Err(Blocker::at(format!("thread {}", thread.tid()), "")
            .why("it runs 32-bit code")
            .remedy("use the 64-bit build of the program")
            .refuse());
    }
    let pending = status.map_or(0, |s| (s.sig_pnd | s.shd_pnd) & (s.sig_cgt | !s.sig_ign));
    let (regs, mask) = (*thread.regs(), thread.mask());
    let asleep = waits.asleep(thread.tid()).unwrap_or_default();
    thread.set_asleep(asleep);
    let mut smooth = undisturbed(&regs, mask, pending, critical_section(thread)?);
    if smooth.rip != regs.rip && smooth.syscall().is_none() {
        smooth = shortened(thread.tid(), &smooth, asleep);
    }
    if smooth != regs {
        thread.amend(smooth, mask);
    }
    Ok(())
}

/// Start, length and abort address of the rseq critical section the thread has announced (rseq(2)), if any.
fn critical_section(thread: &Stopped) -> Result<Option<(u64, u64, u64)>> {
    let (area, ..) = thread.rseq()?;
    if area == 0 {
        return Ok(None);
    }
    let word = |at: u64| -> u64 {
        let mut bytes = [0; 8];
        match sys::vm_read(thread.tid(), &[Range::new(at, at + 8)], &mut bytes) {
            Ok(8) => u64::from_ne_bytes(bytes),
            // An unreadable area would be a SIGSEGV for the program, not for us.
            _ => 0,
        }
    };
    // struct rseq { u32 cpu_id_start, cpu_id; u64 rseq_cs; … }; struct rseq_cs { u32 version, flags; u64 start, len, abort }.
    let section = word(area + 8);
    if section == 0 {
        return Ok(None);
    }
    Ok(Some((word(section + 8), word(section + 16), word(section + 24))))
}

impl Frozen {
    /// Lets every thread go on as it was found, and tells how long they stood, in nanoseconds. What they have answered is
    /// remembered.
    pub fn release(self, remembered: &mut Remembered) -> Result<u64> {
        let Frozen {
            processes,
            since,
            mut recalling,
            ..
        } = self;
        let mut first = Ok(());
        let mut answered = Vec::new();
        for process in processes {
            let count = |p: &ProcessView| (p.pid, recalling.as_ref().and_then(|now| now.count(p.pid)));
            match process.release(count) {
                Ok((answers, (pid, count))) => answered.push((pid, answers, count)),
                Err(e) => first = first.and(Err(e.fate(Fate::PutBack))),
            }
        }
        let pause = since.elapsed().as_nanos() as u64;
        laps::lap("resume");
        for (pid, answers, count) in answered {
            if let (Some(answers), Some(count), Some(now)) = (answers, count, &mut recalling) {
                remembered.keep(pid, answers, count, now);
            }
        }
        first.map(|()| pause)
    }

    /// Ends the whole set; the proof is that it is stored. Gives the pause, and those who were killed and do not end.
    pub fn kill(self, _stored: &Committed) -> Result<(u64, Vec<Pid>)> {
        for process in &self.processes {
            process.kill()?;
        }
        let pause = self.since.elapsed().as_nanos() as u64;
        let pids: Vec<Pid> = self
            .processes
            .iter()
            .flat_map(|p| p.threads().iter().map(Stopped::tid))
            .collect();
        drop(self);
        // As their tracer we hear of their end first; waiting makes sure that none of them is left when we return.
        Ok((pause, reap(pids, LINGER)))
    }
}
