//! Copying memory: most of it while the program runs, the rest at the cut, and nothing that the parent has.

mod twins;

use crate::dirty::{AsyncWp, Tier, Tracker};
use crate::error::{Blocker, Context, Error, Result};
use crate::ids::{PAGE, Pid, Range, SpaceId, normalize, subtract};
use crate::kinds::PageSource;
use crate::kinds::io_uring::users;
use crate::nest::{TASK_SIZE, is_vdso};
use crate::observe::view::{Depth, ProcessView, read_vmas, speaker};
use crate::proc::maps::Vma;
use crate::stop::smooth_thread;
use crate::stop::waits::Waits;
use crate::store::{CheckpointId, Draft, Opened};
use crate::sys::pagemap::{self, Contents};
use crate::sys::{fault, uffd};
use crate::tracee::Seized;
use crate::tracee::process::StoppedProcess;
use nix::errno::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
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
    /// Whether what it tells is all that a draft needs: everything, or what changed since the draft's parent.
    fn leads_to(&self, draft: &Draft) -> bool {
        self.basis.is_none() || self.basis == draft.parent().map(Opened::id)
    }
}

/// The trackers of all processes that are watched, by pid.
pub type Trackings = BTreeMap<Pid, Tracking>;

/// Below this many resident bytes a process is copied at the cut, without tracking: that takes about a millisecond.
pub const SMALL: u64 = 4 << 20;

/// Pre-copy ends when a round leaves less than this to copy …
const ENOUGH: u64 = 512 * 1024;
/// … or when it does not shrink any more, or after this many rounds.
const ROUNDS: usize = 6;

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
    /// Processes of which no tracker can tell what they have written.
    distrusted: BTreeSet<Pid>,
    /// Bytes copied while the processes ran, and at the cut.
    pub copied_before: u64,
    pub copied_at_cut: u64,
    /// Compare with the parent page by page where no tracker tells what changed.
    compare: Option<Opened>,
    /// The processes stored at the cut so far: later ones may share pages with them.
    twins: Twins,
    buffer: Vec<u8>,
}

impl<'a> Copier<'a> {
    /// A copier for one checkpoint; with `compare`, equal pages of that parent are taken over.
    pub fn new(trackings: &'a mut Trackings, compare: Option<Opened>) -> Copier<'a> {
        // Faulted in here and not in the pause.
        let buffer = vec![1; PIECE as usize];
        Copier {
            trackings,
            carry: BTreeMap::new(),
            begun: BTreeSet::new(),
            distrusted: BTreeSet::new(),
            copied_before: 0,
            copied_at_cut: 0,
            compare,
            twins: Twins::default(),
            buffer,
        }
    }

    /// Copies what can be copied while the process runs; starts to track it if nobody does yet.
    pub fn precopy(&mut self, p: &ProcessView, draft: &mut Draft) -> Result<()> {
        let pid = p.pid;
        if self
            .trackings
            .get(&pid)
            .is_some_and(|t| t.start_time != p.stat.start_time || !t.leads_to(draft))
        {
            self.trackings.remove(&pid);
        }
        self.begun.insert(pid);
        if users::shows_one(p) {
            // What the kernel writes into pinned pages for it no tracker sees: all is compared at the cut.
            self.distrust(pid);
            return Ok(());
        }
        if let std::collections::btree_map::Entry::Vacant(vacant) = self.trackings.entry(pid) {
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
        let done = self.rounds(pid, draft);
        if done.is_err() {
            // It is not known which pages were told: all count as written, at the cut.
            self.trackings.remove(&pid);
            draft.forget(SpaceId::private(pid), &[Range::new(0, TASK_SIZE)])?;
        }
        match done {
            // It has executed another program, or ended; the stop will see which.
            Err(Error::Died { .. }) => Ok(()),
            other => other,
        }
    }

    fn rounds(&mut self, pid: Pid, draft: &mut Draft) -> Result<()> {
        let space = SpaceId::private(pid);
        let Some(tracking) = self.trackings.get_mut(&pid) else {
            return Ok(());
        };
        let inherits = draft
            .parent()
            .is_some_and(|p| Some(p.id()) == tracking.basis && p.has_space(space));
        if inherits {
            draft.inherit(space, &[Range::new(0, TASK_SIZE)])?;
        }
        let mem = open_mem(pid)?;
        let mut last = u64::MAX;
        for round in 0..ROUNDS {
            fault::point("pre-copy")?;
            let Some(tracking) = self.trackings.get_mut(&pid) else {
                break;
            };
            let ranges = private_ranges(&read_vmas(speaker(pid), Depth::Maps)?);
            tracking.tracker.track(&ranges)?;
            let written = tracking.tracker.take_written(&ranges)?;
            let bytes: u64 = written.iter().map(|r| r.len()).sum();
            tracking.taken = normalize([std::mem::take(&mut tracking.taken), written.clone()].concat());
            // The first round makes up for checkpoints that failed after their pages were told.
            let todo = if round == 0 {
                tracking.taken.clone()
            } else {
                written
            };
            let compare = self.compare.clone().filter(|_| !inherits && round == 0);
            let mut missed = Vec::new();
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
            let carry = self.carry.entry(pid).or_default();
            *carry = normalize([std::mem::take(carry), missed].concat());
            if bytes <= ENOUGH || bytes > last / 4 * 3 {
                break;
            }
            last = bytes;
        }
        Ok(())
    }

    /// Notes that the draft became the checkpoint `id`: later ones may build on it.
    pub fn committed(self, id: CheckpointId, pids: &[Pid]) {
        for pid in pids {
            if let Some(t) = self.trackings.get_mut(pid) {
                t.basis = Some(id);
                t.taken.clear();
            }
        }
    }
}

impl PageSource for Copier<'_> {
    fn distrust(&mut self, pid: Pid) {
        self.trackings.remove(&pid);
        self.distrusted.insert(pid);
    }

    fn store_private(&mut self, pid: Pid, private: &[Range], draft: &mut Draft) -> Result<()> {
        fault::point("memory")?;
        let space = SpaceId::private(pid);
        draft.space(space);
        let private = normalize(private.to_vec());
        if !self.begun.contains(&pid) {
            // What was told before this checkpoint is in none of its parents for sure.
            self.trackings.remove(&pid);
        }
        let surveyed = match self.trackings.get_mut(&pid) {
            None => None,
            Some(tracking) => match tracking.tracker.survey(&private) {
                Ok(pages) => {
                    tracking.taken =
                        normalize([std::mem::take(&mut tracking.taken), pages.written.clone()].concat());
                    Some(pages)
                }
                // After exec(2) the tracker watches an address space that is gone.
                Err(_) => None,
            },
        };
        let (populated, mut todo) = match surveyed {
            Some(pages) => (pages.populated, pages.written),
            None => {
                self.trackings.remove(&pid);
                draft.forget(space, &[Range::new(0, TASK_SIZE)])?;
                let populated = pagemap::open(speaker(pid))?.populated_in(&private, Contents::Private)?;
                (populated.clone(), populated)
            }
        };
        let carried = self.carry.remove(&pid).unwrap_or_default();
        if !carried.is_empty() {
            let gone = subtract(&carried, &populated);
            todo = normalize([todo, subtract(&carried, &gone)].concat());
        }
        // Pages that the parent or an earlier round had, and that are holes now.
        draft.forget(space, &subtract(&[Range::new(0, TASK_SIZE)], &populated))?;
        let shared = self.twins.share(pid, &populated, draft)?;
        let todo = subtract(&todo, &shared);
        self.copied_at_cut += todo.iter().map(|r| r.len()).sum::<u64>();
        let compare = match self.distrusted.contains(&pid) {
            true => draft.parent().cloned(),
            false => self
                .compare
                .clone()
                .filter(|_| !self.trackings.contains_key(&pid)),
        };
        let mem = open_mem(pid)?;
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

/// The private mappings, in order and joined.
fn private_ranges(vmas: &[Vma]) -> Vec<Range> {
    let private = vmas
        .iter()
        .filter(|v| !v.shared && !is_vdso(&v.name) && v.name != b"[vsyscall]");
    normalize(private.map(|v| v.range()).collect())
}

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
    let pid = p.pid;
    let by = speaker(pid);
    let waits = Waits::of(std::iter::once(by));
    let Some(seized) = Seized::seize(by, 0).map_err(|e| traced(pid, e))? else {
        return Ok(None);
    };
    seized.interrupt();
    let Some(mut leader) = seized.halted()? else {
        return Ok(None);
    };
    smooth_thread(&mut leader, Some(&p.status), &waits)?;
    let view = ProcessView {
        speaker: by,
        vmas: read_vmas(by, Depth::Maps)?,
        ..p.clone()
    };
    fault::point("tracker")?;
    let mut process = StoppedProcess::new(view, vec![leader])?;
    let (ran, at) = process.tape(|t| t.try_call("userfaultfd", libc::SYS_userfaultfd, &[uffd::FLAGS]))?;
    let Ok(number) = ran.result(at) else {
        process.release()?;
        return Ok(None);
    };
    let fd = process
        .fd(number as i32)
        .and_then(|fd| fault::point("tracker's descriptor").map(|()| fd));
    process.tape(|t| t.call("close", libc::SYS_close, &[number as u64]))?;
    process.release()?;
    Ok(match AsyncWp::new(by, fd?) {
        Ok(tracker) => Some(Box::new(tracker)),
        Err(_) => None,
    })
}

fn traced(pid: Pid, e: Error) -> Error {
    match e {
        Error::Kernel {
            errno: Errno::EPERM, ..
        } => Blocker::of(pid, "", "")
            .why("it is being traced already, or the kernel forbids tracing it")
            .remedy("end the debugger or the other checkpoint, or run freeze as root")
            .refuse(),
        e => e,
    }
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
    let stored: Vec<Range> = normalize(
        parent
            .runs(space)
            .filter_map(|run| run.range.intersect(r))
            .collect(),
    );
    for part in &stored {
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
