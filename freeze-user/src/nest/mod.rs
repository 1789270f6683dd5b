//! The nest: blank processes with the right pids and kinship, and the files that will be handed to them.
//!
//! Dropping a nest takes down every process that was built so far; the image is never touched.

pub mod actor;
pub mod attach;
mod birth;
mod ends;
mod enter;
pub mod family;
pub mod space;

use crate::error::{Blocker, Context, Error, Fate, Result};
use crate::ids::{FileId, PAGE, Pid, Range, TASK_SIZE};
use crate::observe::tree::Tree;
use crate::observe::view::command_of;
use crate::proc::stat::Stat;
use crate::store::Opened;
use crate::sys;
use crate::tracee::tape::{Ran, Scratch, Tape};
use crate::tracee::{LINGER, Stopped};
use family::{Birth, Family};
use space::Spaces;
use std::any::{Any, TypeId};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How many pages of calls and data a scratch mapping has while a process is built.
const SCRATCH_PAGES: u64 = 256;

/// How many of them one of many threads has, when they play at the same time.
const LANE_PAGES: u64 = 16;

/// How long a zombie that holds a pid we need may take to be reaped by its parent.
const REAPING: Duration = Duration::from_secs(10);

/// How long somebody with a pid we need may take to begin to end, having been killed; whoever really has it is told of
/// so much later.
const KILLED: Duration = Duration::from_millis(200);

/// How long somebody else may still be in a group whose number we need.
const GROUPS: Duration = Duration::from_secs(2);

/// What the user decided about things that differ from the time of the checkpoint.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Cut files back to their recorded size, keeping the tail beside the image.
    pub rewind_files: bool,
    /// Paths whose change is accepted.
    pub accept_changed: BTreeSet<PathBuf>,
    /// Give standard input, output and error on a terminal of their own the terminal of the restorer.
    pub reattach_terminal: bool,
    /// The restorer, which is the parent of the first processes, may end before they do.
    pub leaves: bool,
    /// Let the program run while its memory comes in.
    pub lazy: bool,
    /// How long a thread that brings in memory rests after each MiB, so that the program has the disk to itself.
    pub rest: Duration,
    /// Where the processes go among the control groups.
    pub cgroup: CgroupChoice,
    /// Ends that the restorer supplies.
    pub attach: Vec<attach::Attach>,
    /// The trees of files (mount namespaces) that have been built, by their number in the image.
    pub trees: BTreeMap<u32, Tree>,
}

impl Options {
    /// Where freeze finds what was at `path` in the tree number `tree`; `None` as long as that tree is not built.
    pub fn place(&self, tree: u32, path: &Path) -> Option<PathBuf> {
        match tree {
            0 => Some(path.to_owned()),
            n => self.trees.get(&n).map(|t| t.path(path.as_os_str().as_bytes())),
        }
    }

    /// The same, once all trees are built.
    pub fn reach(&self, tree: u32, path: &Path) -> Result<PathBuf> {
        self.place(tree, path).ok_or_else(|| {
            Error::kernel(
                "open",
                format!("{} in mount namespace {tree} of the image", path.display()),
                nix::errno::Errno::ENOENT,
            )
        })
    }
}

/// Into which control groups restored processes are put.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum CgroupChoice {
    /// Those they were in, made again where they are gone.
    #[default]
    Keep,
    /// The restorer's.
    Ignore,
    /// This one, in every hierarchy.
    Path(String),
}

impl CgroupChoice {
    /// As the command line has it: `keep`, `ignore`, or a path from the top of the hierarchies.
    pub fn parse(text: &str) -> std::result::Result<CgroupChoice, String> {
        match text {
            "keep" => Ok(CgroupChoice::Keep),
            "ignore" => Ok(CgroupChoice::Ignore),
            path if path.starts_with('/') => Ok(CgroupChoice::Path(path.to_owned())),
            _ => Err("expected keep, ignore, or a path that begins with /".into()),
        }
    }
}

/// Whether a restore has come to its end: what outlives processes is taken down by whoever made it if it has not.
#[derive(Clone, Debug, Default)]
pub struct Landed(Arc<AtomicBool>);

impl Landed {
    /// From here on nothing is taken back.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether nothing may be taken back any more.
    pub fn is(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// One process under construction.
#[derive(Debug)]
pub struct Building {
    pub pid: Pid,
    /// What it calls itself: its id in its own pid namespace.
    pub inner: i32,
    /// The leader first.
    pub threads: Vec<Stopped>,
    /// The recorded and the inner id of each of them.
    names: Vec<(Pid, i32)>,
    /// The job-control signal it was stopped by when recorded; 0 for none.
    pub stopped_by: i32,
    /// Whether its parent has been told of that stop and has asked (wait(2), WUNTRACED).
    pub stop_told: bool,
    /// Whether it was continued when it stood still for freeze already, and has done nothing since.
    pub continued: bool,
    /// The status with which its first thread has ended before the others.
    pub leader_ended: Option<i32>,
    /// The signal that each of its threads wants at its parent's death, where it may only be asked for at the end.
    pub death_signals: Vec<u32>,
    /// Tables it shares with a process that was made before it: flags of clone(2).
    shares: u64,
    scratch: Scratch,
}

impl Building {
    /// Runs a tape on its leader.
    pub fn tape<R>(&mut self, fill: impl FnOnce(&mut Tape<'_>) -> R) -> Result<(Ran, R)> {
        self.tape_on(0, fill)
    }

    /// Runs a tape on thread number `index`.
    pub fn tape_on<R>(&mut self, index: usize, fill: impl FnOnce(&mut Tape<'_>) -> R) -> Result<(Ran, R)> {
        let mut tape = self.scratch.tape();
        let filled = fill(&mut tape);
        Ok((tape.run(&mut self.threads[index])?, filled))
    }

    /// Runs a tape on each of its threads from number `first` on, many at the same time.
    pub fn tape_each<R>(
        &mut self,
        first: usize,
        mut fill: impl FnMut(usize, &mut Tape<'_>) -> R,
    ) -> Result<Vec<(Ran, R)>> {
        let threads = &mut self.threads[first..];
        let pages = if threads.len() > 1 {
            LANE_PAGES
        } else {
            SCRATCH_PAGES
        };
        let lanes = self.scratch.lanes(pages);
        let mut out = Vec::with_capacity(threads.len());
        for some in threads.chunks_mut(lanes.len()) {
            let before = first + out.len();
            out.extend(crate::tracee::play_all(some, &lanes, &mut |n, t| {
                fill(before + n, t)
            })?);
        }
        Ok(out)
    }

    /// Makes one remote call.
    pub fn call(&mut self, name: &'static str, nr: i64, args: &[u64]) -> Result<i64> {
        let (ran, at) = self.tape(|t| t.call(name, nr, args))?;
        Ok(ran.value(at))
    }

    /// Plays any number of calls that point to no data, in as many tapes as they need.
    pub fn play(&mut self, calls: &[(&'static str, i64, [u64; 6])]) -> Result<Vec<i64>> {
        let mut out = Vec::with_capacity(calls.len());
        let room = self.scratch.tape().room() / 64;
        for some in calls.chunks(room.max(1)) {
            let (ran, n) = self.tape(|t| {
                some.iter()
                    .map(|(name, nr, args)| t.call(name, *nr, args))
                    .count()
            })?;
            out.extend((0..n).map(|i| ran.value(i)));
        }
        Ok(out)
    }

    /// The same, whatever becomes of each of the calls.
    pub fn try_play(&mut self, calls: &[(&'static str, i64, [u64; 6])]) -> Result<()> {
        let room = self.scratch.tape().room() / 64;
        for some in calls.chunks(room.max(1)) {
            self.tape(|t| {
                for (name, nr, args) in some {
                    t.try_call(name, *nr, args);
                }
            })?;
        }
        Ok(())
    }

    /// From now on tapes must end by a signal that is none of these, which are about to be queued.
    pub fn avoid_signals(&mut self, queued: impl Iterator<Item = i32>) {
        self.scratch.avoid(&queued.collect::<Vec<_>>());
    }

    /// The number (in [`Building::threads`]) of the thread with this recorded id.
    pub fn thread(&self, recorded: Pid) -> Option<usize> {
        self.names.iter().position(|(tid, _)| *tid == recorded)
    }

    /// The recorded id of thread number `index`.
    pub fn recorded_tid(&self, index: usize) -> Pid {
        self.names.get(index).map_or(self.pid, |(recorded, _)| *recorded)
    }

    /// The id freeze knows a thread by now: in a user namespace of its own a process has no say in that.
    pub fn live_tid(&self, recorded: Pid) -> Pid {
        let thread = self.thread(recorded).and_then(|n| self.threads.get(n));
        thread.map_or(recorded, Stopped::tid)
    }

    /// What thread number `index` calls itself.
    pub fn inner_tid(&self, index: usize) -> i32 {
        self.names.get(index).map_or(self.inner, |(_, inner)| *inner)
    }

    /// Where its scratch mapping lies.
    pub fn scratch(&self) -> Range {
        self.scratch.range()
    }

    /// Ends its first thread, if that had ended before the others.
    fn end_leader(&mut self) -> Result<()> {
        let Some(status) = self.leader_ended.take() else {
            return Ok(());
        };
        let leader = self.threads.remove(0);
        leader.exit(libc::WEXITSTATUS(status), self.scratch.syscall_insn())
    }

    /// Has its threads ask for the signals that were put off.
    fn ask_for_death_signals(&mut self) -> Result<()> {
        for (n, signal) in std::mem::take(&mut self.death_signals).into_iter().enumerate() {
            let args = [libc::PR_SET_PDEATHSIG as u64, u64::from(signal), 0, 0, 0];
            if signal != 0 && n < self.threads.len() {
                self.tape_on(n, |t| t.call("prctl(PR_SET_PDEATHSIG)", libc::SYS_prctl, &args))?;
            }
        }
        Ok(())
    }

    /// Removes the scratch mapping and sets every thread going with the registers it was amended with.
    fn finish(self) -> Result<()> {
        let Building {
            pid,
            mut threads,
            stopped_by,
            shares,
            scratch,
            ..
        } = self;
        if shares & libc::CLONE_VM as u64 == 0 {
            scratch.unmap(&mut threads[0])?;
        }
        crate::tracee::park_all(&mut threads)?;
        threads.iter_mut().try_for_each(Stopped::replay)?;
        threads.iter_mut().try_for_each(|thread| thread.give_back(pid))?;
        if stopped_by != 0 {
            threads.remove(0).release_stopped(pid, stopped_by)?;
        }
        // EXITKILL must not outlive the building: detaching ends it.
        crate::tracee::release_all(threads)
    }
}

/// What parents leave in their memory for the children they are about to fork.
pub trait Bequest: std::fmt::Debug {
    /// Called before each fork of the nest.
    fn before_fork(&mut self, parent: Pid, child: Pid, nest: &mut Nest) -> Result<()>;
}

/// The processes and files of a restore that is under way.
#[derive(Debug)]
pub struct Nest {
    pub image: Opened,
    pub options: Options,
    /// Lines for the user about what is not as it was.
    pub warnings: Vec<String>,
    /// The namespaces that its processes live in.
    pub spaces: Spaces,
    /// All that were forked, with the namespaces each is in now.
    births: BTreeMap<Pid, Birth>,
    families: BTreeMap<Pid, Family>,
    processes: BTreeMap<Pid, Building>,
    files: BTreeMap<FileId, OwnedFd>,
    holders: BTreeMap<FileId, Vec<(Pid, RawFd)>>,
    roots: Vec<Pid>,
    /// All pids made so far, children after parents; taken down in reverse if the nest is dropped.
    made: Vec<Pid>,
    /// The session in which each process stands by now, and its parent.
    sessions: BTreeMap<Pid, Pid>,
    parents: BTreeMap<Pid, Pid>,
    /// Who cannot be forked by the parent, and the parent.
    late: Vec<(Pid, Family)>,
    /// The controlling terminals of sessions, by leader.
    terminals: BTreeMap<Pid, OwnedFd>,
    /// A pidfd of freeze itself, at the same number in every blank process: the door through which files come.
    door: OwnedFd,
    states: HashMap<TypeId, Box<dyn Any>>,
    landed: Landed,
    bequest: Option<Box<dyn Bequest>>,
}

impl Nest {
    /// Makes the blank processes of `families` (parents before children).
    ///
    /// `occupied` are all addresses that any of them will map; `held` are the numbers of descriptors any of them holds;
    /// `terminals` are those that control a session, by its leader; `spaces` the namespaces, but for those of pids,
    /// which come with the processes.
    #[allow(
        clippy::too_many_arguments,
        reason = "each is another thing that the records say, and all are needed before the first fork"
    )]
    pub fn new(
        image: Opened,
        options: Options,
        families: &[Family],
        occupied: &[Range],
        held: &BTreeSet<RawFd>,
        terminals: BTreeMap<Pid, OwnedFd>,
        spaces: Spaces,
        bequest: Box<dyn Bequest>,
    ) -> Result<Nest> {
        check_pids(families)?;
        let own = Pid(std::process::id() as i32);
        let door = sys::pidfd_open(own).on("pidfd_open", || "freeze itself")?;
        let door = free_number(&door, held)?;
        let mut nest = Nest {
            image,
            options,
            warnings: Vec::new(),
            spaces,
            births: BTreeMap::new(),
            families: families.iter().map(|f| (f.pid, f.clone())).collect(),
            processes: BTreeMap::new(),
            files: BTreeMap::new(),
            holders: BTreeMap::new(),
            roots: families.iter().filter(|f| f.root).map(|f| f.pid).collect(),
            made: Vec::new(),
            sessions: BTreeMap::new(),
            parents: BTreeMap::new(),
            late: Vec::new(),
            terminals,
            door,
            states: HashMap::new(),
            landed: Landed::default(),
            bequest: Some(bequest),
        };
        nest.hatch(families, occupied)
            .map_err(|e| e.fate(Fate::TakenDown))?;
        nest.bequest = None;
        Ok(nest)
    }

    /// The pids that have no parent in the nest.
    pub fn roots(&self) -> &[Pid] {
        &self.roots
    }

    /// All pids, parents before children.
    pub fn pids(&self) -> Vec<Pid> {
        self.processes.keys().copied().collect()
    }

    /// A process under construction.
    pub fn process(&mut self, pid: Pid) -> Result<&mut Building> {
        self.processes.get_mut(&pid).ok_or_else(|| Error::Died {
            pid,
            how: "is not part of the image".into(),
        })
    }

    /// A kind's own state for the time of the restore.
    pub fn state<T: Any + Default>(&mut self) -> &mut T {
        let any = self
            .states
            .entry(TypeId::of::<T>())
            .or_insert_with(|| Box::<T>::default());
        any.downcast_mut().expect("the map is keyed by the type")
    }

    /// Tells those whose work outlives the processes whether it must be taken back.
    pub fn landed(&self) -> Landed {
        self.landed.clone()
    }

    /// Notes who will hold a file, before any file is made.
    pub fn note_holder(&mut self, file: FileId, pid: Pid, fd: RawFd) {
        self.holders.entry(file).or_default().push((pid, fd));
    }

    /// Who holds a file: process and descriptor, the first that was recorded first.
    pub fn holders(&self, file: FileId) -> &[(Pid, RawFd)] {
        self.holders.get(&file).map_or(&[], Vec::as_slice)
    }

    /// Takes in a file that a kind has made.
    pub fn put_file(&mut self, id: FileId, fd: OwnedFd) {
        self.files.insert(id, fd);
    }

    /// A file made before, by its id.
    pub fn file(&self, id: FileId) -> Result<BorrowedFd<'_>> {
        self.files.get(&id).map(AsFd::as_fd).ok_or_else(|| Error::Image {
            file: self.image.path().to_owned(),
            offset: None,
            expected: format!("{id} to be recorded"),
            found: "no record of it".into(),
        })
    }

    /// The number at which every blank process has the pidfd of freeze.
    pub fn door(&self) -> u64 {
        self.door.as_raw_fd() as u64
    }

    /// Hands descriptors of freeze to a process; tells the numbers they got there.
    pub fn hand_over(&mut self, pid: Pid, fds: &[RawFd]) -> Result<Vec<u64>> {
        let door = self.door();
        let calls: Vec<_> = fds
            .iter()
            .map(|fd| {
                (
                    "pidfd_getfd",
                    libc::SYS_pidfd_getfd,
                    [door, *fd as u64, 0, 0, 0, 0],
                )
            })
            .collect();
        Ok(self
            .process(pid)?
            .play(&calls)?
            .into_iter()
            .map(|n| n as u64)
            .collect())
    }

    /// Has a process make a userfaultfd for its memory, and takes it over; the inner error is the kernel's refusal.
    pub fn userfaultfd(&mut self, pid: Pid, flags: u64) -> Result<nix::Result<OwnedFd>> {
        let building = self.process(pid)?;
        let (ran, at) = building.tape(|t| t.try_call("userfaultfd", libc::SYS_userfaultfd, &[flags]))?;
        let number = match ran.result(at) {
            Ok(number) => number,
            Err(errno) => return Ok(Err(errno)),
        };
        let fd = sys::pidfd_open(pid).and_then(|p| sys::pidfd_getfd(p.as_fd(), number as i32));
        let fd = fd.on("pidfd_getfd", || format!("a userfaultfd of {pid}"));
        self.process(pid)?
            .call("close", libc::SYS_close, &[number as u64])?;
        fd.map(Ok)
    }

    /// Sets everything going: the end of a restore. From here on nothing can be taken back.
    pub fn fly(mut self) -> Result<Vec<Pid>> {
        let door = self.door();
        // Nothing of freeze's may keep a pipe or socket open once its owners run.
        self.files.clear();
        self.landed.set();
        self.states.clear();
        // All doors first: a process that runs must not find one open in a relative.
        for pid in self.pids() {
            let building = self.process(pid)?;
            if building.shares & libc::CLONE_FILES as u64 == 0 {
                building.call("close", libc::SYS_close, &[door])?;
            }
        }
        // A first thread that had ended is the one that forked the children here: they must not take its end for their parent's.
        for pid in self.pids() {
            self.process(pid)?.end_leader()?;
        }
        for pid in self.pids() {
            self.process(pid)?.ask_for_death_signals()?;
        }
        // The youngest first: whoever shares another's memory must be off its tape when that one removes it.
        let mut order: Vec<Pid> = self.made.clone();
        order.reverse();
        for pid in order {
            let Some(building) = self.processes.remove(&pid) else {
                continue;
            };
            let (stopped, told) = (building.stopped_by != 0, building.stop_told);
            let continued = building.continued;
            let parent = if stopped { self.parent_within(pid) } else { None };
            let expects = parent.map(|p| self.expects_sigchld(p)).transpose()?;
            building.finish()?;
            if let (Some(parent), Some(false)) = (parent, expects) {
                self.hush_stop(parent, pid, told)?;
            }
            if continued {
                // One that has ended meanwhile was killed, which nothing that waits for it would be.
                let _ = nix::sys::signal::kill(pid.nix(), nix::sys::signal::Signal::SIGCONT);
            }
        }
        self.made.clear();
        Ok(std::mem::take(&mut self.roots))
    }
}

impl Drop for Nest {
    fn drop(&mut self) {
        if self.made.is_empty() {
            return;
        }
        // While we tear down, orphans of what we built come to us and not to init, so that all can be reaped here.
        let reaper = nix::sys::prctl::get_child_subreaper().unwrap_or(false);
        let _ = nix::sys::prctl::set_child_subreaper(true);
        for pid in self.made.iter().rev() {
            kill(*pid);
        }
        let mut threads: Vec<Pid> = self.made.iter().flat_map(|p| threads_of(*p)).collect();
        threads.retain(|t| !self.made.contains(t));
        self.processes.clear();
        // As their tracer we hear of each end first.
        threads.extend(&self.made);
        crate::tracee::reap(threads, LINGER);
        // Then as their parent, eldest first: what had another parent is ours once that one is reaped.
        self.made.iter().for_each(|p| wait_end(*p));
        let _ = nix::sys::prctl::set_child_subreaper(reaper);
    }
}

/// Moves a descriptor to a number that nobody of the nest needs: above all of them, or else in a gap.
fn free_number(fd: &OwnedFd, held: &BTreeSet<RawFd>) -> Result<OwnedFd> {
    let above = held.last().map_or(3, |n| n + 1).max(3);
    let mut errno = match sys::dup_above(fd.as_fd(), above) {
        Ok(moved) => return Ok(moved),
        Err(e) => e,
    };
    let mut least = 3;
    while least < above {
        // The first number from here on that is free in this process; it may be needed in another.
        match sys::dup_above(fd.as_fd(), least) {
            Ok(moved) if !held.contains(&moved.as_raw_fd()) => return Ok(moved),
            Ok(moved) => least = moved.as_raw_fd() + 1,
            Err(e) => {
                errno = e;
                break;
            }
        }
    }
    Err(errno).on("fcntl(F_DUPFD)", || {
        format!("descriptor {above} (is RLIMIT_NOFILE too low?)")
    })
}

/// Ends a process of the nest: made by it, traced by this thread, and reaped by nobody else yet.
fn kill(pid: Pid) {
    let _ = nix::sys::signal::kill(pid.nix(), nix::sys::signal::Signal::SIGKILL);
}

/// Waits for the end of a thread or process that was killed; returns at once if it is not ours to wait for.
fn wait_end(tid: Pid) {
    while crate::tracee::wait(tid).is_ok_and(|halt| !matches!(halt, crate::tracee::Halt::Gone(_))) {}
}

/// The threads of a process, leader included, those that have ended and wait for their tracer too.
fn threads_of(pid: Pid) -> Vec<Pid> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten();
    tasks
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.parse().ok().map(Pid))
        .collect()
}

/// Whether this is one of the mappings that belong to the vDSO.
pub fn is_vdso(name: &[u8]) -> bool {
    matches!(name, b"[vdso]" | b"[vvar]" | b"[vvar_vclock]")
}

/// A free range of `len` bytes outside all of `taken` (normalized).
pub fn free_place(taken: Vec<Range>, len: u64) -> Range {
    // Away from zero, where mmap_min_addr reigns, and with a page of air on both sides.
    let all = [Range::new(0x1000_0000, TASK_SIZE - PAGE)];
    let gap = crate::ids::subtract(&all, &taken)
        .into_iter()
        .filter(|g| g.len() >= len + 2 * PAGE)
        .max_by_key(|g| g.len());
    let start = gap.map_or(0x1000_0000, |g| g.start + (g.len() - len) / 2 / PAGE * PAGE);
    Range::new(start, start + len)
}

fn pid_refused(pid: Pid, errno: nix::errno::Errno) -> Error {
    use nix::errno::Errno;
    match errno {
        Errno::EEXIST => taken(pid).refuse(),
        Errno::EPERM => Blocker::at(format!("pid {pid}"), "")
            .why("pids can only be chosen with CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN in the pid namespace")
            .remedy("run freeze as root")
            .refuse(),
        // Beyond pid_max, or in a pid namespace whose init is gone.
        e => Error::kernel("clone3", format!("pid {pid}"), e),
    }
}

fn taken(pid: Pid) -> Blocker {
    let who = std::fs::read(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|t| Stat::parse(&t));
    let (object, why) = match who {
        Some(s) if s.is_zombie() => (
            format!("a zombie of {}", String::from_utf8_lossy(&s.comm)),
            format!(
                "the pid is still taken: its parent {} ({}) has not reaped it",
                s.ppid,
                command_of(Pid(s.ppid))
            ),
        ),
        Some(_) => (command_of(pid), "the pid is taken".to_owned()),
        None => (in_use_as(pid), "the pid is taken".to_owned()),
    };
    Blocker::at(format!("pid {pid}"), object)
        .why(why)
        .remedy("end it, or restore inside a pid namespace of its own (unshare --pid --fork --mount-proc)")
}

/// Which group or session has a number that is no process's.
fn in_use_as(pid: Pid) -> String {
    let members = crate::observe::view::all_pids().unwrap_or_default().into_iter();
    let stats = members.filter_map(|p| Stat::parse(&std::fs::read(format!("/proc/{p}/stat")).ok()?));
    let member = stats.into_iter().find(|s| [s.pgrp, s.session].contains(&pid.0));
    match member {
        Some(s) if s.pgrp == pid.0 => format!("the process group of {} ({})", s.pid, command_of(s.pid())),
        Some(s) => format!("the session of {} ({})", s.pid, command_of(s.pid())),
        None => "held by somebody who has just ended, or whom /proc does not show".to_owned(),
    }
}

/// Whether a process or thread has this number.
fn is_there(pid: Pid) -> bool {
    std::path::Path::new(&format!("/proc/{pid}")).exists()
}

/// For whoever takes a pid: the kernel lets go of a number a little after it has hidden who had it, so it is tried again
/// for a moment while it is taken.
#[derive(Debug, Default)]
struct Patience {
    since: Option<Instant>,
    met: bool,
}

impl Patience {
    const LONG: Duration = Duration::from_secs(1);

    /// Whether what failed so is worth another try.
    fn lasts(&mut self, e: nix::errno::Errno) -> bool {
        self.met = true;
        let since = *self.since.get_or_insert_with(Instant::now);
        e == nix::errno::Errno::EEXIST && since.elapsed() < Patience::LONG
    }

    /// Before another try, if one has failed since the last.
    fn wait(&mut self) {
        if std::mem::take(&mut self.met) {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Refuses, all at once, the pids that somebody else has; waits a moment for those who end.
fn check_pids(families: &[Family]) -> Result<()> {
    let began = Instant::now();
    let wanted: BTreeSet<Pid> = families
        .iter()
        .flat_map(|f| std::iter::once(f.pid).chain(f.tids.iter().copied()))
        .collect();
    // Leaders that are gone: where their number is free, an interim process makes their session or group again.
    let gone: BTreeSet<Pid> = families
        .iter()
        .flat_map(|f| [f.sid, f.pgid])
        .filter(|p| !wanted.contains(p))
        .collect();
    let dying = |p: &Pid| {
        let stat = std::fs::read(format!("/proc/{p}/stat"))
            .ok()
            .and_then(|t| Stat::parse(&t));
        // Who was just killed may not have begun to end; else only a group is left of it, perhaps of some who have ended too.
        let ends = |s: Stat| s.is_zombie() || s.is_exiting() || began.elapsed() < KILLED;
        stat.map_or(began.elapsed() < GROUPS, ends)
    };
    // Freeze is in the one it was started in, whatever its leader is like by now.
    let joined = [family::own_session(), Pid(nix::unistd::getpgrp().as_raw())];
    loop {
        // A group keeps a number from being given to a process.
        let busy = |p: &Pid| is_there(*p) || family::group_exists(*p);
        let busy: BTreeSet<Pid> = wanted.iter().copied().filter(busy).collect();
        let leaving = |p: &Pid| !joined.contains(p) && is_there(*p) && dying(p);
        let leaving: BTreeSet<Pid> = gone.iter().copied().filter(leaving).collect();
        if busy.is_empty() && leaving.is_empty() {
            return Ok(());
        }
        if began.elapsed() > REAPING || !busy.iter().all(dying) {
            return Err(Error::Refused(busy.union(&leaving).copied().map(taken).collect()));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}
