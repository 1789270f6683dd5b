//! Copying memory: most of it while the program runs, the rest at the cut, and nothing that the parent has.

mod logged;
mod twins;

pub use logged::SharedLog;

use crate::dirty::{AsyncWp, Pages, Tier, Tracker};
use crate::error::{Blocker, Context, Error, Result};
use crate::ids::{PAGE, Pid, Range, SpaceId, TASK_SIZE, intersect, normalize, subtract};
use crate::kinds::io_uring::users;
use crate::kinds::{PageSource, Remembered};
use crate::nest::is_vdso;
use crate::observe::looks::Habit;
use crate::observe::view::{Depth, FdView, ProcessView, View, read_vmas, speaker};
use crate::proc::maps::Vma;
use crate::stop::{Threads, halt_threads};
use crate::store::{CheckpointId, Draft, Opened, Pace};
use crate::sys::interrupt::Unstoppable;
use crate::sys::pagemap::{self, Contents};
use crate::sys::{fault, laps, limit, uffd};
use crate::tracee::process::StoppedProcess;
use logged::{Cut, Logged};
use nix::errno::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;
use std::time::Duration;
use twins::Twins;

/// What is remembered of a process between two checkpoints.
#[derive(Debug)]
pub struct Tracking {
    tracker: Box<dyn Tracker>,
    /// The checkpoint since which `taken` counts; `None` before the first that was committed.
    basis: Option<CheckpointId>,
    /// Pages whose being written the tracker has told, and that no committed checkpoint contains.
    taken: Vec<Range>,
    /// When the process started: a later one with the same pid is another.
    start_time: u64,
}

impl Tracking {
    /// Takes everything over from the draft's parent, if what was written since it is known; tells whether.
    fn inherit(&self, pid: Pid, draft: &mut Draft) -> Result<bool> {
        let space = SpaceId::private(pid);
        let parent = draft.parent();
        let inherits = parent.is_some_and(|p| Some(p.id()) == self.basis && p.has_space(space));
        if inherits {
            draft.inherit(space, &[Range::new(0, TASK_SIZE)])?;
        }
        Ok(inherits)
    }

    /// Whether what it tells is all that a draft needs: everything, or what changed since the draft's parent.
    fn leads_to(&self, draft: &Draft) -> bool {
        self.basis.is_none() || self.basis == draft.parent().map(Opened::id)
    }
}

/// What is remembered of a set of processes between two checkpoints.
#[derive(Debug, Default)]
pub struct Trackings {
    by_pid: BTreeMap<Pid, Tracking>,
    /// What of the processes hardly ever changes.
    pub looks: Habit,
    /// What they answered.
    pub answers: Remembered,
    /// The fault log, where the kernel grants one.
    pub log: Option<SharedLog>,
    /// How often written pages were found at the cut by which means, and why not by better ones.
    pub means: BTreeMap<&'static str, u64>,
}

impl Trackings {
    /// Nothing is known, and nothing logged.
    pub fn new() -> Trackings {
        Trackings::default()
    }

    /// Gives up every tracking: nothing is known of what was written.
    pub fn clear(&mut self) {
        self.by_pid.clear();
    }

    /// How many processes are tracked.
    pub fn len(&self) -> usize {
        self.by_pid.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.by_pid.is_empty()
    }

    /// Gives up the trackings of all processes but these.
    pub fn keep(&mut self, mut which: impl FnMut(Pid) -> bool) {
        self.by_pid.retain(|pid, _| which(*pid));
        self.answers.retain(which);
    }

    fn count(&mut self, means: &'static str) {
        *self.means.entry(means).or_default() += 1;
    }
}

/// Below this many bytes of anonymous memory a process is copied at the cut, without tracking: that takes about a millisecond.
pub const SMALL: u64 = 4 << 20;

/// From how many bytes of anonymous memory on the log is worth its proof: below, looking at everything takes about as long.
const LARGE: u64 = 32 << 20;

/// Pre-copy ends when a round leaves less than this to copy …
const ENOUGH: u64 = 64 * 1024;
/// … or after so many, or when they do not shrink any more.
const ROUNDS: usize = 12;
/// How many rounds may copy more than three quarters of what the one before did, by the most that they copy: programs write
/// in bursts, and machines are busy for a moment, all the more within a short round; a long one is no accident.
const PATIENCE: [(u64, usize); 3] = [(SHORT, 5), (64 << 20, 3), (u64::MAX, 1)];
const SHORT: u64 = 4 << 20;

/// Written pages at the cut were found by the log, or by looking at everything.
const BY_LOG: &str = "fault log";
const BY_SCAN: &str = "scan";

/// Bytes that are copied at the cut in a second, cautiously.
const SPEED: u64 = 1 << 30;

/// Bytes read from a process at a time.
const PIECE: u64 = 1 << 20;

/// Copies the private memory of processes into a draft.
#[derive(Debug)]
pub struct Copier<'a> {
    pub trackings: &'a mut Trackings,
    /// Pages to be copied at the cut although no tracker will tell: they could not be read before.
    carry: BTreeMap<Pid, Vec<Range>>,
    /// Processes whose tracker was asked since this checkpoint began.
    begun: BTreeSet<Pid>,
    /// Those of them that were copied while they ran.
    copied: BTreeSet<Pid>,
    /// Those of them of which the draft has what its parent has, but for what was written since.
    inherited: BTreeSet<Pid>,
    /// Processes of which no tracker can tell what they have written.
    distrusted: BTreeSet<Pid>,
    /// Bytes copied while the processes ran, and at the cut.
    pub copied_before: u64,
    pub copied_at_cut: u64,
    /// Bytes that were written during the last round, of all processes.
    left: u64,
    /// Compare with the parent page by page where no tracker tells what changed.
    compare: Option<Opened>,
    /// The processes stored at the cut so far: later ones may share pages with them.
    twins: Twins,
    buffer: Vec<u8>,
    /// The memory of those that were copied while they ran.
    mems: BTreeMap<Pid, File>,
    /// Use the log, and prove afterwards that it missed nothing.
    trust: bool,
    logged: BTreeMap<Pid, Logged>,
    /// Whose pages were found by the log at the cut.
    unproven: Vec<(Pid, Cut)>,
}

impl<'a> Copier<'a> {
    /// A copier for one checkpoint; with `compare`, equal pages of that parent are taken over. With `trust`, the caller
    /// asks [`Copier::proven`] after the resume.
    pub fn new(trackings: &'a mut Trackings, compare: Option<Opened>, trust: bool) -> Copier<'a> {
        // Faulted in here and not in the pause.
        let buffer = vec![1; PIECE as usize];
        Copier {
            trackings,
            carry: BTreeMap::new(),
            begun: BTreeSet::new(),
            copied: BTreeSet::new(),
            inherited: BTreeSet::new(),
            distrusted: BTreeSet::new(),
            copied_before: 0,
            copied_at_cut: 0,
            left: 0,
            compare,
            twins: Twins::default(),
            buffer,
            mems: BTreeMap::new(),
            trust,
            logged: BTreeMap::new(),
            unproven: Vec::new(),
        }
    }

    /// Copies what can be copied while the process runs; starts to track it if nobody does yet.
    pub fn precopy(&mut self, p: &ProcessView, draft: &mut Draft) -> Result<()> {
        let done = self.ahead(p, draft);
        if done.is_err() {
            // It is not known which pages were told: all count as written, at the cut.
            self.trackings.by_pid.remove(&p.pid);
            self.inherited.remove(&p.pid);
            draft.forget(SpaceId::private(p.pid), &[Range::new(0, TASK_SIZE)])?;
        }
        match done {
            // It has executed another program, or ended; the stop will see which.
            Err(
                Error::Died { .. }
                | Error::Kernel {
                    errno: Errno::ENOENT | Errno::ESRCH,
                    ..
                },
            ) => Ok(()),
            other => other,
        }
    }

    fn ahead(&mut self, p: &ProcessView, draft: &mut Draft) -> Result<()> {
        let pid = p.pid;
        if self
            .trackings
            .by_pid
            .get(&pid)
            .is_some_and(|t| t.start_time != p.stat.start_time || !t.leads_to(draft))
        {
            self.trackings.by_pid.remove(&pid);
        }
        self.begun.insert(pid);
        if users::shows_one(p) {
            // What the kernel writes into pinned pages for it no tracker sees: all is compared at the cut.
            self.distrust(pid);
            return Ok(());
        }
        if let std::collections::btree_map::Entry::Vacant(vacant) = self.trackings.by_pid.entry(pid) {
            let Some(tracker) = start_tracking(p)? else {
                return Ok(());
            };
            let fresh = Tracking {
                tracker,
                basis: None,
                taken: Vec::new(),
                start_time: p.stat.start_time,
            };
            vacant.insert(fresh);
        }
        if direct_io(p) {
            // What a disk writes into a page while we re-protect and copy it leaves no mark. When all its threads stand
            // still, nothing is under way.
            if let Some(tracking) = self.trackings.by_pid.get_mut(&pid) {
                tracking.tracker.track(&private_ranges(&p.vmas))?;
                if tracking.inherit(pid, draft)? {
                    self.inherited.insert(pid);
                }
            }
            return Ok(());
        }
        self.rounds(p, draft)
    }

    fn rounds(&mut self, p: &ProcessView, draft: &mut Draft) -> Result<()> {
        let pid = p.pid;
        let resident = (p.status.anon_kib + p.status.swap_kib) << 10;
        let space = SpaceId::private(pid);
        let Some(tracking) = self.trackings.by_pid.get_mut(&pid) else {
            return Ok(());
        };
        let inherits = tracking.inherit(pid, draft)?;
        self.copied.insert(pid);
        if inherits {
            self.inherited.insert(pid);
        }
        let mem = open_mem(pid)?;
        let mut settling = Settling::default();
        let log = self
            .trackings
            .log
            .clone()
            .filter(|_| self.trust && resident >= LARGE && !p.vmas.iter().any(is_huge_private));
        // Before the look at everything: what is written after that must be in the log.
        let mut logged = log.and_then(|log| Logged::follow(&log, pid));
        for round in 0usize.. {
            fault::point("pre-copy")?;
            draft.pace(if round == 0 { Pace::Calm } else { Pace::Brisk });
            let Some(tracking) = self.trackings.by_pid.get_mut(&pid) else {
                break;
            };
            let began = std::time::Instant::now();
            let ranges = private_ranges(&read_vmas(speaker(pid), Depth::Maps)?);
            tracking.tracker.track(&ranges)?;
            let (written, populated) = match &mut logged {
                None => (tracking.tracker.take_written(&ranges)?, None),
                Some(logged) => {
                    // Of what is registered only now nobody knows who filled it.
                    let fresh = tracking.tracker.fresh();
                    let places = logged.places().filter(|_| round > 0);
                    let places = places.map(|places| normalize([places, fresh].concat()));
                    let (pages, _) = look(&mut *tracking.tracker, &ranges, places, draft, space)?;
                    (pages.written, Some(pages.populated))
                }
            };
            tracking.taken = normalize([std::mem::take(&mut tracking.taken), written.clone()].concat());
            // The first round makes up for checkpoints that failed after their pages were told.
            let todo = match populated {
                _ if round > 0 => written,
                Some(populated) => intersect(&tracking.taken, &populated),
                None => tracking.taken.clone(),
            };
            let bytes: u64 = todo.iter().map(|r| r.len()).sum();
            let compare = self.compare.clone().filter(|_| !inherits && round == 0);
            let mut missed = Vec::new();
            let looked = began.elapsed();
            copy(
                pid,
                &mem,
                &todo,
                &mut self.buffer,
                compare.as_ref(),
                draft,
                &mut |r| {
                    missed.push(r);
                    Ok(())
                },
            )?;
            self.copied_before += bytes;
            tracing::debug!(%pid, round, kib = bytes >> 10, ?looked, took = ?began.elapsed(), "pre-copy");
            let carry = self.carry.entry(pid).or_default();
            *carry = normalize([std::mem::take(carry), missed].concat());
            if settling.ends(bytes) {
                break;
            }
        }
        self.left += settling.last.unwrap_or_default();
        self.mems.insert(pid, mem);
        self.logged.extend(logged.map(|l| (pid, l)));
        Ok(())
    }

    /// Heeds what came between the last look and the cut: called when the set stands still.
    pub fn cut(&mut self, view: &View) {
        for p in &view.processes {
            if direct_io(p) && self.copied.contains(&p.pid) {
                // A disk may have written into pages after they were copied.
                self.trackings.by_pid.remove(&p.pid);
                self.logged.remove(&p.pid);
            }
            if p.vmas.iter().any(is_huge_private) {
                self.logged.remove(&p.pid);
            }
        }
    }

    /// How long the copying at the cut will take, if the processes write on as they did during the last round.
    pub fn expected(&self) -> Duration {
        Duration::from_nanos(self.left.saturating_mul(1_000_000_000) / SPEED)
    }

    /// Bytes that memory should be ready for at the cut: some more than expected.
    pub fn reserve(&self) -> u64 {
        self.left * 2 + SHORT / 2
    }

    /// Why the pause would be longer than allowed.
    pub fn restless(&self, bound: Duration, roots: &[Pid]) -> Error {
        let root = roots.first().copied().unwrap_or(Pid(0));
        Blocker::of(root, "memory", "")
            .why(format!(
                "it writes faster than it is copied: {} KiB were left after the last round, for a pause of about {:?} instead of {bound:?}",
                self.left >> 10,
                self.expected()
            ))
            .remedy("allow a longer pause (--max-pause), or let it go on when it gets longer (--when-longer go-on)")
            .refuse()
    }

    /// Whether all that was written up to the cut is in the draft: called right after the resume.
    pub fn proven(&mut self, draft: &Draft) -> bool {
        let mut all = true;
        for (pid, cut) in std::mem::take(&mut self.unproven) {
            let tracker = self.trackings.by_pid.get(&pid).map(|t| &*t.tracker);
            let proof = match tracker.zip(self.logged.get(&pid)) {
                Some((tracker, logged)) => logged.prove(tracker, &cut, draft),
                None => Err("the log was gone before it was proven"),
            };
            if let Err(why) = proof {
                self.trackings.count(why);
                all = false;
            }
        }
        self.logged.clear();
        all
    }

    /// Notes that the draft became the checkpoint `id`: later ones may build on it.
    pub fn committed(self, id: CheckpointId, pids: &[Pid]) {
        for pid in pids {
            if let Some(t) = self.trackings.by_pid.get_mut(pid) {
                t.basis = Some(id);
                t.taken.clear();
            }
        }
    }
}

impl PageSource for Copier<'_> {
    fn distrust(&mut self, pid: Pid) {
        self.trackings.by_pid.remove(&pid);
        self.logged.remove(&pid);
        self.distrusted.insert(pid);
    }

    fn store_private(&mut self, pid: Pid, private: &[Range], draft: &mut Draft) -> Result<()> {
        laps::lap("mappings");
        fault::point("memory")?;
        let space = SpaceId::private(pid);
        draft.space(space);
        let private = normalize(private.to_vec());
        if !self.begun.contains(&pid) {
            // What was told before this checkpoint is in none of its parents for sure.
            self.trackings.by_pid.remove(&pid);
        }
        let places = self.logged.get_mut(&pid).and_then(Logged::places);
        let by_log = places.is_some();
        let gap = self.logged.get(&pid).and_then(|l| l.gap);
        laps::lap("read the log");
        let surveyed = match self.trackings.by_pid.get_mut(&pid) {
            None => None,
            Some(tracking) => match look(&mut *tracking.tracker, &private, places, draft, space) {
                Ok((pages, looked)) => {
                    let mut written = pages.written;
                    // In no order: it may be long, and this is the pause.
                    tracking.taken.extend_from_slice(&written);
                    if !self.copied.contains(&pid) {
                        // Nothing made up yet for checkpoints that failed after their pages were told.
                        tracking.taken = normalize(std::mem::take(&mut tracking.taken));
                        written = intersect(&tracking.taken, &pages.populated);
                    }
                    if by_log {
                        let open = subtract(&private, &looked);
                        self.unproven.push((pid, Cut { open }));
                    }
                    Some(written)
                }
                // After exec(2) the tracker watches an address space that is gone.
                Err(_) => None,
            },
        };
        let carried = self.carry.remove(&pid).unwrap_or_default();
        let mut todo = match surveyed {
            Some(written) => {
                self.trackings
                    .count(gap.unwrap_or(if by_log { BY_LOG } else { BY_SCAN }));
                written
            }
            None => {
                // It may have another address space by now.
                self.mems.remove(&pid);
                self.trackings.by_pid.remove(&pid);
                self.inherited.remove(&pid);
                draft.forget(space, &[Range::new(0, TASK_SIZE)])?;
                pagemap::open(speaker(pid))?.populated_in(&private, Contents::Private)?
            }
        };
        if !carried.is_empty() {
            let populated = pagemap::open(speaker(pid))?.populated_in(&carried, Contents::Private)?;
            todo = normalize([todo, intersect(&populated, &private)].concat());
        }
        laps::lap("find pages");
        // What is as in the parent is shared as it was there.
        let known = self.inherited.contains(&pid);
        let all = || pagemap::open(speaker(pid))?.populated_in(&private, Contents::Private);
        let shared = self.twins.share(pid, known.then_some(&todo), all, draft)?;
        let todo = subtract(&todo, &shared);
        laps::lap("shared pages");
        self.copied_at_cut += todo.iter().map(|r| r.len()).sum::<u64>();
        let compare = match self.distrusted.contains(&pid) {
            true => draft.parent().cloned(),
            false => self
                .compare
                .clone()
                .filter(|_| !self.trackings.by_pid.contains_key(&pid)),
        };
        let mem = match self.mems.remove(&pid) {
            Some(mem) => mem,
            None => open_mem(pid)?,
        };
        copy(
            pid,
            &mem,
            &todo,
            &mut self.buffer,
            compare.as_ref(),
            draft,
            &mut |r| {
                Err(Error::kernel(
                    "read",
                    format!("memory of {pid} at {r}"),
                    Errno::EFAULT,
                ))
            },
        )
    }
}

/// How the rounds go.
#[derive(Debug, Default)]
struct Settling {
    /// Bytes that the last round copied: about what it left, if it took as long.
    last: Option<u64>,
    rounds: usize,
    /// Rounds that did not shrink.
    stalls: usize,
}

impl Settling {
    /// Whether another round that copied so many bytes is the last.
    fn ends(&mut self, bytes: u64) -> bool {
        self.rounds += 1;
        let shrinks = self.last.is_none_or(|last| bytes <= last / 4 * 3);
        self.last = Some(bytes);
        self.stalls += usize::from(!shrinks);
        let patience = PATIENCE
            .iter()
            .find(|(most, _)| bytes <= *most)
            .map_or(1, |(_, n)| *n);
        bytes <= ENOUGH || (!shrinks && self.stalls >= patience) || self.rounds == ROUNDS
    }
}

/// Finds the written pages and re-protects them, and has the draft forget what is a hole; tells where it looked.
///
/// With `places`, only these and what is not tracked are looked at: all else is as it was at the last look.
fn look(
    tracker: &mut dyn Tracker,
    private: &[Range],
    places: Option<Vec<Range>>,
    draft: &mut Draft,
    space: SpaceId,
) -> Result<(Pages, Vec<Range>)> {
    let Some(places) = places else {
        let pages = tracker.survey(private)?;
        // Pages that the parent or an earlier round had, and that are holes now.
        draft.forget(space, &subtract(&[Range::new(0, TASK_SIZE)], &pages.populated))?;
        return Ok((pages, private.to_vec()));
    };
    let untracked = tracker.unregistered(private)?;
    let within = intersect(&normalize([&places[..], &untracked[..]].concat()), private);
    let pages = tracker.survey(&within)?;
    draft.forget(space, &subtract(&[Range::new(0, TASK_SIZE)], private))?;
    draft.forget(space, &subtract(&within, &pages.populated))?;
    Ok((pages, within))
}

/// Whether a process may have files read into its memory without the kernel's writing there itself.
fn direct_io(p: &ProcessView) -> bool {
    // Of a pipe the flag says something else.
    let file = |f: &FdView| f.stat.kind() == libc::S_IFREG || f.stat.kind() == libc::S_IFBLK;
    p.fds.iter().any(|f| f.flags() & libc::O_DIRECT != 0 && file(f))
}

/// Whether it is private memory of huge pages by reservation, which faults as a whole: the log tells of one page.
fn is_huge_private(v: &Vma) -> bool {
    !v.shared && v.has(b"ht")
}

/// The private mappings, in order and joined.
fn private_ranges(vmas: &[Vma]) -> Vec<Range> {
    let private = vmas
        .iter()
        .filter(|v| !v.shared && !is_vdso(&v.name) && v.name != b"[vsyscall]");
    normalize(private.map(|v| v.range()).collect())
}

/// With more threads than this, only one stands still while tracking begins: each takes some 0.1 ms to be stopped and let go.
const MANY_THREADS: usize = 32;

/// Starts to track a running process; `None` if the kernel has no tracking, or the process is in no state for it.
fn start_tracking(p: &ProcessView) -> Result<Option<Box<dyn Tracker>>> {
    let owns = p
        .fds
        .iter()
        .any(|f| f.anon_inode().is_some_and(|n| n.contains("userfaultfd")));
    if owns || Tier::best() != Tier::AsyncWp {
        // Soft-dirty bits can be taken from a stopped process only, and everything needs no tracker at all.
        return Ok(None);
    }
    let _unstoppable = Unstoppable::begin();
    let pid = p.pid;
    let by = speaker(pid);
    // A process that is forked while the descriptor exists has it too, and keeps its parent's memory registered. Where there
    // are very many threads, to stop them all takes a thousand times as long as the descriptor exists.
    let mut threads = match p.threads.len() {
        0..=MANY_THREADS => halt_threads(pid, by, Threads::All)?,
        _ => None,
    };
    if threads.is_none() {
        // Nor is the pause to copy everything because one of them waits for a disk.
        threads = halt_threads(pid, by, Threads::Speaker)?;
    }
    let Some(threads) = threads else {
        return Ok(None);
    };
    let view = ProcessView {
        speaker: by,
        vmas: read_vmas(by, Depth::Maps)?,
        shows_ring: OnceLock::new(),
        ..ProcessView::clone(p)
    };
    fault::point("tracker")?;
    let mut process = StoppedProcess::new(view.into(), threads)?;
    let (ran, at) = process.tape(|t| t.try_call("userfaultfd", libc::SYS_userfaultfd, &[uffd::FLAGS]))?;
    let Ok(number) = ran.result(at) else {
        process.release(|_| ())?;
        return Ok(None);
    };
    let fd = process
        .fd(number as i32)
        .and_then(|fd| fault::point("tracker's descriptor").map(|()| fd));
    process.tape(|t| t.call("close", libc::SYS_close, &[number as u64]))?;
    process.release(|_| ())?;
    Ok(match AsyncWp::new(by, fd?) {
        Ok(tracker) => Some(Box::new(tracker)),
        Err(_) => None,
    })
}

fn open_mem(pid: Pid) -> Result<File> {
    let path = format!("/proc/{}/mem", speaker(pid));
    File::open(&path).on("open", || path)
}

/// Copies pages into the draft; what cannot be read is told to `missed`.
fn copy(
    pid: Pid,
    mem: &File,
    todo: &[Range],
    buffer: &mut [u8],
    compare: Option<&Opened>,
    draft: &mut Draft,
    missed: &mut dyn FnMut(Range) -> Result<()>,
) -> Result<()> {
    let space = SpaceId::private(pid);
    for r in todo {
        let mut at = r.start;
        while at < r.end {
            limit::check()?;
            if compare.is_none() {
                let rest = Range::new(at, r.end);
                let (part, read) = draft.fill(space, rest, |part, piece| read(mem, part, piece))?;
                if read.is_ok() {
                    at = part.end;
                    continue;
                }
            }
            let part = Range::new(at, r.end.min(at + buffer.len() as u64));
            let piece = &mut buffer[..part.len() as usize];
            match (read(mem, part, piece), compare) {
                (Ok(()), None) => draft.pages(space, part.start, piece)?,
                (Ok(()), Some(parent)) => store_changed(space, part, piece, parent, draft)?,
                (Err(holes), _) if holes == [part] && is_gone(pid) => {
                    return Err(Error::Died {
                        pid,
                        how: "ended while its memory was copied".into(),
                    });
                }
                (Err(holes), _) => store_readable(space, part, holes, piece, draft, missed)?,
            }
            at = part.end;
        }
    }
    Ok(())
}

/// Whether a process has no memory any more.
fn is_gone(pid: Pid) -> bool {
    read_vmas(speaker(pid), Depth::Maps).map_or(true, |vmas| vmas.is_empty())
}

/// Reads through /proc/PID/mem, which passes over protections; the error is the set of unreadable pages.
///
/// Never by process_vm_readv(2): it pins what it reads, for which the kernel gives a process its own copy of every page
/// that it still shares with a relative (FAULT_FLAG_UNSHARE). A forked tree would grow by being looked at.
fn read(mem: &File, r: Range, into: &mut [u8]) -> std::result::Result<(), Vec<Range>> {
    if mem.read_exact_at(into, r.start).is_ok() {
        return Ok(());
    }
    let mut holes = Vec::new();
    for (i, page) in into.chunks_exact_mut(PAGE as usize).enumerate() {
        let at = r.start + i as u64 * PAGE;
        if mem.read_exact_at(page, at).is_err() {
            holes.push(Range::new(at, at + PAGE));
        }
    }
    if holes.is_empty() {
        Ok(())
    } else {
        Err(normalize(holes))
    }
}

fn store_readable(
    space: SpaceId,
    r: Range,
    holes: Vec<Range>,
    bytes: &[u8],
    draft: &mut Draft,
    missed: &mut dyn FnMut(Range) -> Result<()>,
) -> Result<()> {
    for part in subtract(&[r], &holes) {
        let from = (part.start - r.start) as usize;
        draft.pages(space, part.start, &bytes[from..from + part.len() as usize])?;
    }
    holes.into_iter().try_for_each(missed)
}

/// Stores the pages that differ from the parent's and takes over the others.
fn store_changed(space: SpaceId, r: Range, bytes: &[u8], parent: &Opened, draft: &mut Draft) -> Result<()> {
    let mut reader = parent.reader();
    let mut theirs = vec![0; PAGE as usize];
    let mut same: Vec<Range> = Vec::new();
    for part in parent.ranges(space, r, true) {
        let mut at = part.start;
        while at < part.end {
            let page = Range::new(at, at + PAGE);
            reader.read(space, page, &mut theirs)?;
            let from = (at - r.start) as usize;
            if bytes[from..from + PAGE as usize] == theirs[..] {
                same.push(page);
            }
            at += PAGE;
        }
    }
    let same = normalize(same);
    if !same.is_empty() {
        draft.inherit(space, &same)?;
    }
    for part in subtract(&[r], &same) {
        let from = (part.start - r.start) as usize;
        draft.pages(space, part.start, &bytes[from..from + part.len() as usize])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many rounds there are when they copy these.
    fn rounds(kib: impl IntoIterator<Item = u64>) -> usize {
        let mut settling = Settling::default();
        let mut kib = kib.into_iter();
        while kib.next().is_some_and(|n| !settling.ends(n << 10)) {}
        settling.rounds
    }

    #[test]
    fn rounds_end_when_nothing_is_gained() {
        assert_eq!(rounds([80_000, 9000, 1200, 140, 12, 8]), 5);
        // A first round of little says nothing of the second.
        assert_eq!(rounds([5000, 13_000, 3000, 60]), 4);
        // Bursts of 900 KiB, and a moment between two.
        assert_eq!(rounds([80_000, 9000, 900, 900, 920, 890, 12]), 7);
        assert_eq!(rounds([900; 20]), 6);
        // One that writes as fast as it is copied, and one that writes nearly as fast.
        assert_eq!(rounds([80_000; 20]), 2);
        let by_tenths = |left: u64| (0..20).map(move |n| 80_000 * left.pow(n) / 10u64.pow(n));
        assert_eq!((rounds(by_tenths(8)), rounds(by_tenths(7))), (4, ROUNDS));
    }
}
