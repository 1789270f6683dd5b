//! The whole way from a running set to a committed checkpoint: plan, pre-copy, stop, collect, resume, commit.

use crate::collect::collect;
use crate::error::{Blocker, Error, Fate, Result};
use crate::ids::Pid;
use crate::kinds::fanotify;
use crate::observe::ends::Ends;
use crate::observe::looks::{self, Kept};
use crate::observe::view::{Depth, ProcessView, View, command_of};
use crate::plan::{Host, Plan, never, plan};
use crate::precopy::{Copier, SMALL, Trackings};
use crate::stop::{Trusted, stop, trust_was_right};
use crate::store::{About, Committed, Draft, Opened, Options, Pace, Store};
use crate::sys::interrupt::{self, Unstoppable};
use crate::sys::{self, fault, laps, limit};
use nix::errno::Errno;
use serde::Serialize;
use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Where a checkpoint goes.
#[derive(Clone, Debug)]
pub enum Place {
    /// Under a name of its own in a store.
    Store(Store),
    /// This directory becomes the checkpoint.
    Directory(PathBuf),
}

/// What is to be checkpointed, and how.
#[derive(Clone, Debug)]
pub struct Request {
    pub roots: Vec<Pid>,
    pub place: Place,
    pub parent: Option<Opened>,
    /// End the processes once the checkpoint is committed.
    pub kill: bool,
    /// The watched group it belongs to.
    pub group: Option<String>,
    pub options: Options,
    /// Track what is written even in small processes: worth it when there will be another checkpoint.
    pub track: bool,
    /// What is done about ends outside; that they will be ended is added.
    pub ends: Ends,
    pub bounds: Bounds,
}

/// How long a checkpoint may take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// The whole operation: after that it is given up, and everything put back.
    pub within: Option<Duration>,
    /// The pause; it does not count where the processes are ended anyway.
    pub pause: Option<Duration>,
    /// A pause that gets longer goes on, and is told; else the checkpoint is given up and the program left alone.
    pub go_on: bool,
}

/// What came of it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    pub id: String,
    pub path: PathBuf,
    pub processes: usize,
    pub threads: usize,
    /// Pages the checkpoint consists of, wherever they are stored.
    pub pages: u64,
    /// Pages stored in this checkpoint itself.
    pub own_pages: u64,
    /// Size of its files.
    pub bytes: u64,
    /// How long the processes stood still, in microseconds; with `killed`, until they were ended.
    pub pause_us: u64,
    /// The whole operation, in microseconds.
    pub total_us: u64,
    pub killed: bool,
    /// With `killed`: threads that have not ended all the same, as the first process of a pid namespace while somebody
    /// outside has yet to wait for another one in there.
    pub lingering: Vec<Pid>,
    /// The pause took longer than it was allowed to.
    pub too_long: bool,
    /// The parts of the pause and of the rest, in microseconds, in order.
    pub parts: Vec<(&'static str, u64)>,
    /// The parts of the pause alone, in nanoseconds, in order of their first occurrence.
    pub pause_parts: Vec<(&'static str, u64)>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {} process{}, {} pages ({} new), {} bytes, pause {:.2} ms, {:.1} ms in all",
            self.id,
            self.processes,
            if self.processes == 1 { "" } else { "es" },
            self.pages,
            self.own_pages,
            self.bytes,
            self.pause_us as f64 / 1000.0,
            self.total_us as f64 / 1000.0
        )?;
        if self.too_long {
            f.write_str("; the pause was longer than allowed")?;
        }
        match &self.lingering[..] {
            _ if !self.killed => Ok(()),
            [] => f.write_str("; the processes were ended"),
            left => {
                let left: Vec<_> = left.iter().map(Pid::to_string).collect();
                write!(
                    f,
                    "; the processes were killed, but {} had not ended half a minute later",
                    left.join(", ")
                )
            }
        }
    }
}

/// Checkpoints a set. Whatever fails, the processes run on as they were.
///
/// The work is done by a thread of its own: the kernel lets go of whatever that thread traces when it ends, so that
/// not even an error in undoing leaves a process stopped.
pub fn checkpoint(request: &Request, host: &Host, trackings: &mut Trackings) -> Result<Report> {
    let work = || attempts(request, host, trackings);
    match fault::in_own_thread(work) {
        Ok(outcome) => outcome,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// The verdict alone, with the same patience and without stopping anything: whether a checkpoint would be refused.
pub fn verdict(roots: &[Pid], host: &Host, ends: &Ends) -> Result<Plan> {
    patiently(roots, || plan(survey(roots, host, ends)?, host).map(Some))
}

/// So many processes may be named that would have to be frozen too.
const COMPANY: usize = 16;

/// Who would have to be frozen too for nothing to be held outside any more: those who hold an end of what is refused, those
/// who hold an end of theirs, and so on. Nobody if that does not end, or leads to what is never frozen.
pub fn company(roots: &[Pid], host: &Host, ends: &Ends, refused: &Error) -> Vec<Pid> {
    let mut all = roots.to_vec();
    let mut found = match refused {
        Error::Refused(list) => holders(list),
        _ => BTreeSet::new(),
    };
    while !found.is_empty() && all.len() + found.len() <= roots.len() + COMPANY {
        all.extend(found);
        let freeze = |b: &Blocker| b.pid == Some(host.own_pid) || b.pid.is_some() && b.pid == host.agent;
        found = match survey(&all, host, ends).map(|view| plan(view, host)) {
            Ok(Ok(_)) => BTreeSet::new(),
            Ok(Err(Error::Refused(list))) if !list.iter().any(freeze) => holders(&list),
            _ => return Vec::new(),
        };
        found.retain(|pid| !all.contains(pid));
    }
    match found.is_empty() {
        true => all.split_off(roots.len()),
        false => Vec::new(),
    }
}

/// Who holds outside what a checkpoint was refused for.
fn holders(refused: &[Blocker]) -> BTreeSet<Pid> {
    let holders = refused.iter().map(|b| b.holder);
    holders.filter(|pid| pid.0 != 0).collect()
}

fn attempts(request: &Request, host: &Host, trackings: &mut Trackings) -> Result<Report> {
    let mut trust = Trust {
        looks: !request.kill,
        log: !request.kill,
    };
    let _whole = limit::whole(request.bounds.within);
    patiently(&request.roots, || attempt(request, host, trackings, &mut trust))
}

/// What a checkpoint may rely on that is proven only after the resume. What has failed once is done in the pause.
#[derive(Clone, Copy, Debug)]
struct Trust {
    /// What was read before the stop and hardly ever changes.
    looks: bool,
    /// The fault log.
    log: bool,
}

/// Tries until the outcome is one of the program and not of the moment at which it was looked at.
///
/// A program that forks, executes and ends children while it is looked at shows things that are no reason to refuse it:
/// half-dead children, a vfork under way, a pipe in a child not seen yet, a file renamed just now. What several looks in a
/// row find is refused, but not other objects of the same name each time; what passes by itself is waited for a
/// little longer.
fn patiently<T>(roots: &[Pid], mut work: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    // On a busy machine a single attempt may take longer than all patience.
    const ATTEMPTS: u32 = 8;
    const LOOKS: u32 = 3;
    const LONG: Duration = Duration::from_secs(5);
    let began = Instant::now();
    // What has been in the way all the time, for how many looks, and since when.
    let mut lasting: Vec<Blocker> = Vec::new();
    let (mut looks, mut since) = (0, began);
    for attempt in 1.. {
        let error = match work() {
            Ok(Some(done)) => return Ok(done),
            Ok(None) => continue,
            Err(e) => e,
        };
        interrupt::check()?;
        let found = match &error {
            Error::Refused(list) => &list[..],
            _ => &[],
        };
        lasting.retain(|b| found.contains(b));
        looks += 1;
        if lasting.is_empty() {
            (lasting, looks, since) = (found.to_vec(), 1, Instant::now());
        }
        let patience = match &error {
            Error::Refused(_) if looks < LOOKS => LONG,
            // Whatever came before: other things pass in their time.
            Error::Refused(list) if list.iter().any(|b| b.passing) => {
                LONG.min(since - began + Duration::from_secs(1))
            }
            // Somebody who has ended since: a look at the others never came to its end.
            Error::Refused(list) if list.iter().all(|b| has_ended(b, roots)) => LONG,
            Error::Kernel {
                errno: Errno::ENOENT | Errno::ESRCH,
                ..
            } => Duration::from_millis(500),
            Error::Died { pid, .. } if !roots.contains(pid) => LONG,
            _ => return Err(error),
        };
        if began.elapsed() >= patience && attempt >= ATTEMPTS {
            return Err(error);
        }
        std::thread::sleep(Duration::from_millis(3));
    }
    unreachable!("the loop has no end of its own")
}

/// Whether a blocker belongs to a descendant that is gone, or that only waits to be reaped.
fn has_ended(blocker: &Blocker, roots: &[Pid]) -> bool {
    let ended = |pid: Pid| View::read(&[pid], Depth::Maps).map_or(true, |v| v.processes[0].stat.is_zombie());
    blocker.pid.is_some_and(|pid| !roots.contains(&pid) && ended(pid))
}

/// One attempt; `None` if what was trusted turned out to be wrong, and the checkpoint was thrown away.
fn attempt(
    request: &Request,
    host: &Host,
    trackings: &mut Trackings,
    trust: &mut Trust,
) -> Result<Option<Report>> {
    let began = Instant::now();
    let mut clock = Clock {
        last: began,
        parts: Vec::new(),
    };
    let ends = Ends {
        kill: request.kill,
        first: request.roots.first().copied(),
        ..request.ends.clone()
    };
    // Read for the first time here, it need not be while a program stands still.
    sys::boot_id();
    let kept = trust.looks.then(|| looks::begin(&trackings.looks));
    let view = survey(&request.roots, host, &ends)?;
    fault::point("seen")?;
    let planned = plan(view, host)?;
    let place = match &request.place {
        Place::Store(store) => store.dir(),
        Place::Directory(dir) => dir,
    };
    let in_the_way = fanotify::in_the_way(&planned.view, place);
    if !in_the_way.is_empty() {
        return Err(Error::Refused(in_the_way));
    }
    clock.note("plan");
    fault::point("begin")?;
    let mut draft = match &request.place {
        Place::Store(store) => store.begin(request.parent.as_ref(), &request.options)?,
        Place::Directory(dir) => Store::begin_at(dir, request.parent.as_ref(), &request.options)?,
    };
    if request.kill {
        draft.leave_chain();
    }
    let compare = request.parent.clone().filter(|_| !request.track);
    let mut copier = Copier::new(trackings, compare, trust.log);
    // Not after the last round: the program writes on meanwhile.
    draft.reserve(copier.reserve());
    let shares = |p: &ProcessView| planned.view.sharing.get(&p.pid).map_or(0, |s| s.tables);
    // Who is ended gains nothing by a pause that is shorter than the whole.
    let least = if request.kill { 4 * SMALL } else { SMALL };
    // Each mapping costs more to be tracked than 16 KiB to be copied; the pause may grow by some 3 ms for that.
    let small = |p: &ProcessView| least + (p.vmas.len() as u64 * (16 << 10)).min(3 * SMALL);
    // Memory that several processes share is copied once.
    let own = |p: &&ProcessView| !p.is_dead() && shares(p) & libc::CLONE_VM as u64 == 0;
    for p in planned.view.each().filter(own) {
        if request.track || (p.status.anon_kib + p.status.swap_kib) << 10 > small(p) {
            copier.precopy(p, &mut draft)?;
        }
        interrupt::check()?;
    }
    clock.note("pre-copy");
    fault::point("stop")?;
    let bound = request.bounds.pause.filter(|_| !request.kill);
    let strict = bound.filter(|_| !request.bounds.go_on);
    if let Some(bound) = strict.filter(|bound| copier.expected() > *bound) {
        return Err(copier.restless(bound, &request.roots));
    }
    if let Some(kept) = &kept {
        kept.still();
    }
    draft.reserve(copier.reserve());
    draft.pace(Pace::Hurry);
    let limited = limit::pause(strict);
    let unstoppable = Unstoppable::begin();
    let mut trusted = Vec::new();
    let mut answers = std::mem::take(&mut copier.trackings.answers);
    let collected = stop(planned, host, trust.looks).and_then(|mut frozen| {
        trusted = std::mem::take(&mut frozen.trusted);
        copier.cut(&frozen.view);
        clock.note("stop");
        collect(&mut frozen, &mut draft, &mut copier, &mut answers)?;
        fault::point("collected")?;
        Ok(frozen)
    });
    copier.trackings.answers = answers;
    let frozen = match collected {
        Ok(frozen) => frozen,
        Err(e) if e.is_late() => return Err(e.fate(Fate::PutBack)),
        // What was seen before the stop and did not hold in the pause may be all that was wrong: a timer deleted since.
        Err(_) if kept.is_some_and(|kept| !held(kept, &trusted, copier.trackings)) => {
            trust.looks = false;
            return Ok(None);
        }
        Err(e) => return Err(e.fate(Fate::PutBack)),
    };
    interrupt::check()?;
    clock.note("collect");
    let processes = frozen.view.processes.len();
    let threads = frozen.processes.iter().map(|p| p.threads().len()).sum();
    let pids: Vec<Pid> = frozen.processes.iter().map(|p| p.pid()).collect();
    let command = frozen
        .view
        .processes
        .first()
        .map(|p| p.cmdline.clone())
        .unwrap_or_default();
    let about = |pause_us: u64| About {
        roots: request.roots.clone(),
        group: request.group.clone(),
        processes: processes as u32,
        command: command
            .split(|b| *b == 0)
            .filter(|w| !w.is_empty())
            .map(|w| String::from_utf8_lossy(w).into_owned())
            .collect(),
        pause_us,
        total_us: began.elapsed().as_micros() as u64,
        notes: Default::default(),
    };
    laps::lap("other");
    let (committed, (pause, lingering)) = if request.kill {
        // Stored before killed.
        let committed = commit(
            draft,
            about(frozen.since.elapsed().as_micros() as u64),
            Fate::PutBack,
        )?;
        clock.note("commit");
        laps::lap("commit");
        let pause = frozen.kill(&committed)?;
        laps::lap("kill");
        clock.note("kill");
        (committed, pause)
    } else {
        let pause = frozen.release(&mut copier.trackings.answers)?;
        drop(limited);
        drop(unstoppable);
        clock.note("resume");
        // The log first: the sooner, the less has been unmapped since.
        let log = copier.proven(&draft);
        let looks = kept.is_none_or(|kept| held(kept, &trusted, copier.trackings));
        if !log || !looks {
            (trust.log, trust.looks) = (trust.log && log, trust.looks && looks);
            return Ok(None);
        }
        clock.note("verify");
        let committed = commit(draft, about(pause / 1000), Fate::PutBack)?;
        clock.note("commit");
        (committed, (pause, Vec::new()))
    };
    let (ahead, at_cut) = (copier.copied_before >> 10, copier.copied_at_cut >> 10);
    copier.committed(committed.id, &pids);
    let pause_parts = laps::end();
    tracing::debug!(id = %committed.id, "{ahead} KiB copied ahead, {at_cut} KiB in the pause; {}", told(&pause_parts));
    Ok(Some(Report {
        id: committed.id.to_string(),
        path: committed.path.clone(),
        processes,
        threads,
        pages: committed.counts.pages,
        own_pages: committed.counts.own,
        bytes: committed.bytes,
        pause_us: pause / 1000,
        total_us: began.elapsed().as_micros() as u64,
        killed: request.kill,
        lingering,
        too_long: bound.is_some_and(|bound| pause > bound.as_nanos() as u64),
        parts: clock.parts,
        pause_parts,
    }))
}

/// The parts of a pause that took longer than 50 microseconds.
fn told(parts: &[(&'static str, u64)]) -> String {
    let long = parts.iter().filter(|(_, ns)| *ns > 50_000);
    long.map(|(name, ns)| format!("{name} {} µs", ns / 1000))
        .collect::<Vec<_>>()
        .join(", ")
}

/// After the resume: whether all that was seen before the stop, and counted in the pause, held.
fn held(kept: Kept, trusted: &[Trusted], trackings: &mut Trackings) -> bool {
    let lasting = trust_was_right(trusted);
    let (same, habit) = kept.confirm();
    trackings.looks = habit;
    lasting && same
}

fn commit(draft: Draft, about: About, fate: Fate) -> Result<Committed> {
    draft.commit(about).map_err(|e| e.fate(fate))
}

/// Looks at the trees below `roots`; refused if one of them is not there, or is none that can be asked for.
pub fn survey(roots: &[Pid], host: &Host, ends: &Ends) -> Result<View> {
    match roots
        .iter()
        .find_map(|root| never(*root, &command_of(*root), host))
    {
        Some(blocker) => Err(blocker.refuse()),
        None => {
            let mut view = View::read(roots, Depth::Smaps).map_err(|e| no_such(roots, e))?;
            view.ends = ends.clone();
            Ok(view)
        }
    }
}

/// A root that is not there is a refusal, not a death under our hands.
fn no_such(roots: &[Pid], e: Error) -> Error {
    match e {
        Error::Died { pid, how } if roots.contains(&pid) => Blocker::of(pid, "", "")
            .why(if how == "does not exist" {
                "there is no such process".to_owned()
            } else {
                how
            })
            .remedy("check the pid; it is looked up in freeze's own pid namespace")
            .refuse(),
        e => e,
    }
}

struct Clock {
    last: Instant,
    parts: Vec<(&'static str, u64)>,
}

impl Clock {
    fn note(&mut self, part: &'static str) {
        let now = Instant::now();
        self.parts.push((part, (now - self.last).as_micros() as u64));
        self.last = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many looks, each of which takes so long, it takes until files of this name, each with its number, are refused.
    fn looks(took: Duration, which: impl Fn(u64) -> u64) -> (u64, Result<u64>) {
        let mut looks = 0;
        let done = patiently(&[Pid(1)], || {
            looks += 1;
            std::thread::sleep(took);
            let blocker = Blocker {
                which: which(looks),
                passing: !took.is_zero(),
                ..Blocker::of(Pid(1), "fd 3", "/tmp/log")
            };
            match looks {
                20 => Ok(Some(looks)),
                _ => Err(blocker.why("its path cannot be followed").refuse()),
            }
        });
        (looks, done)
    }

    #[test]
    fn what_is_in_the_way_all_the_time_is_refused() {
        let (looks, done) = looks(Duration::ZERO, |_| 7);
        assert!(looks < 10 && done.is_err_and(|e| e.kind() == "refused"));
    }

    #[test]
    fn what_only_has_the_same_name_each_time_is_not() {
        let (_, done) = looks(Duration::ZERO, |n| n);
        assert!(matches!(done, Ok(20)), "{done:?}");
    }

    #[test]
    fn what_passes_has_its_time_whatever_was_in_the_way_before() {
        let slow = Duration::from_millis(70);
        let (_, done) = looks(slow, |n| n.min(14));
        assert!(matches!(done, Ok(20)), "{done:?}");
        let (looks, done) = looks(slow, |_| 7);
        assert!(
            (8..20).contains(&looks) && done.is_err_and(|e| e.kind() == "refused"),
            "{looks}"
        );
    }
}
