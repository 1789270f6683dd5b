//! The nest: blank processes with the right pids and kinship, and the files that will be handed to them.
//!
//! Dropping a nest takes down every process that was built so far; the image is never touched.

pub mod actor;
pub mod family;

use crate::error::{Blocker, Context, Error, Fate, Result};
use crate::ids::{FileId, PAGE, Pid, Range};
use crate::observe::view::{Depth, command_of, read_vmas};
use crate::proc::stat::Stat;
use crate::store::Opened;
use crate::sys::{self, CloneArgs, fault};
use crate::tracee::tape::{Ran, Scratch, Tape, find_syscall};
use crate::tracee::{EXITKILL, Seized, Stopped};
use family::Family;
use std::any::{Any, TypeId};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How many pages of calls and data a scratch mapping has while a process is built.
const SCRATCH_PAGES: u64 = 64;

/// How long a zombie that holds a pid we need may take to be reaped by its parent.
const REAPING: Duration = Duration::from_secs(10);

/// What the user decided about things that differ from the time of the checkpoint.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Cut files back to their recorded size, keeping the tail beside the image.
    pub rewind_files: bool,
    /// Paths whose change is accepted.
    pub accept_changed: BTreeSet<PathBuf>,
    /// Give standard input, output and error on a terminal of their own the terminal of the restorer.
    pub reattach_terminal: bool,
}

/// One process under construction.
#[derive(Debug)]
pub struct Building {
    pub pid: Pid,
    /// The leader first.
    pub threads: Vec<Stopped>,
    /// The job-control signal it was stopped by when recorded; 0 for none.
    pub stopped_by: i32,
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

    /// From now on tapes must end by a signal that is none of these, which are about to be queued.
    pub fn avoid_signals(&mut self, queued: impl Iterator<Item = i32>) {
        self.scratch.avoid(&queued.collect::<Vec<_>>());
    }

    /// Where its scratch mapping lies.
    pub fn scratch(&self) -> Range {
        self.scratch.range()
    }

    /// Removes the scratch mapping and sets every thread going with the registers it was amended with.
    fn finish(self) -> Result<()> {
        let Building {
            pid,
            mut threads,
            stopped_by,
            scratch,
        } = self;
        scratch.unmap(&mut threads[0])?;
        threads.iter_mut().try_for_each(Stopped::park)?;
        if stopped_by != 0 {
            threads.remove(0).release_stopped(pid, stopped_by)?;
        }
        // EXITKILL must not outlive the building: detaching ends it.
        threads.into_iter().try_for_each(Stopped::release)
    }
}

/// The processes and files of a restore that is under way.
#[derive(Debug)]
pub struct Nest {
    pub image: Opened,
    pub options: Options,
    /// Lines for the user about what is not as it was.
    pub warnings: Vec<String>,
    processes: BTreeMap<Pid, Building>,
    files: BTreeMap<FileId, OwnedFd>,
    holders: BTreeMap<FileId, Vec<(Pid, RawFd)>>,
    roots: Vec<Pid>,
    /// All pids made so far, children after parents; taken down in reverse if the nest is dropped.
    made: Vec<Pid>,
    /// The controlling terminals of sessions, by leader.
    terminals: BTreeMap<Pid, OwnedFd>,
    /// A pidfd of freeze itself, at the same number in every blank process: the door through which files come.
    door: OwnedFd,
    states: HashMap<TypeId, Box<dyn Any>>,
}

impl Nest {
    /// Makes the blank processes of `families` (parents before children).
    ///
    /// `occupied` are all addresses that any of them will map; `max_fd` is the highest descriptor any of them holds;
    /// `terminals` are those that control a session, by its leader.
    pub fn new(
        image: Opened,
        options: Options,
        families: &[Family],
        occupied: &[Range],
        max_fd: RawFd,
        terminals: BTreeMap<Pid, OwnedFd>,
    ) -> Result<Nest> {
        check_pids(families)?;
        let own = Pid(std::process::id() as i32);
        let door = sys::pidfd_open(own).on("pidfd_open", || "freeze itself")?;
        let door = sys::dup_above(door.as_fd(), max_fd + 1).on("fcntl(F_DUPFD)", || {
            format!("descriptor {} (is RLIMIT_NOFILE too low?)", max_fd + 1)
        })?;
        let mut nest = Nest {
            image,
            options,
            warnings: Vec::new(),
            processes: BTreeMap::new(),
            files: BTreeMap::new(),
            holders: BTreeMap::new(),
            roots: families.iter().filter(|f| f.root).map(|f| f.pid).collect(),
            made: Vec::new(),
            terminals,
            door,
            states: HashMap::new(),
        };
        nest.hatch(families, occupied)
            .map_err(|e| e.fate(Fate::TakenDown))?;
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

    /// Sets everything going: the end of a restore. From here on nothing can be taken back.
    pub fn fly(mut self) -> Result<Vec<Pid>> {
        let door = self.door();
        // Nothing of freeze's may keep a pipe or socket open once its owners run.
        self.files.clear();
        self.states.clear();
        // All doors first: a process that runs must not find one open in a relative.
        for pid in self.pids() {
            self.process(pid)?.call("close", libc::SYS_close, &[door])?;
        }
        let mut order: Vec<Pid> = self.made.clone();
        order.reverse();
        for pid in order {
            if let Some(building) = self.processes.remove(&pid) {
                building.finish()?;
            }
        }
        self.made.clear();
        Ok(std::mem::take(&mut self.roots))
    }

    /// Ends the processes that had ended when they were recorded, and leaves them to their parents.
    pub fn end_zombies(&mut self, families: &[Family]) -> Result<()> {
        for f in families {
            let Some(status) = f.ended else { continue };
            let building = self.process(f.pid)?;
            building.tape(|t| {
                let no_core = t.bytes(&[0; 16]);
                t.call(
                    "prlimit64",
                    libc::SYS_prlimit64,
                    &[0, u64::from(libc::RLIMIT_CORE), no_core, 0],
                );
                // Handlers that freeze itself has must not run in its place.
                let default = t.bytes(&[0; 32]);
                for signal in (1..=31).filter(|s| *s != libc::SIGKILL && *s != libc::SIGSTOP) {
                    t.call(
                        "rt_sigaction",
                        libc::SYS_rt_sigaction,
                        &[signal as u64, default, 0, 8],
                    );
                }
            })?;
            if let Some(mut building) = self.processes.remove(&f.pid) {
                let insn = building.scratch.syscall_insn();
                building.threads.remove(0).end(status, insn)?;
            }
        }
        Ok(())
    }

    fn hatch(&mut self, families: &[Family], occupied: &[Range]) -> Result<()> {
        let own = Pid(std::process::id() as i32);
        let here = read_vmas(own, Depth::Maps)?;
        let mut taken: Vec<Range> = here.iter().map(|v| v.range()).collect();
        taken.extend_from_slice(occupied);
        let place = free_place(crate::ids::normalize(taken), (SCRATCH_PAGES + 1) * PAGE);
        for root in families.iter().filter(|f| f.root) {
            let session = family::own_session();
            if root
                .born_in(families)
                .is_some_and(|s| s != session && family::free(s))
            {
                // Its session's leader is gone: an interim process with that pid leads it just long enough.
                let sid = root.born_in(families).unwrap_or(root.pid);
                self.spawn_root(sid, place)?;
                let interim = self.process(sid)?;
                interim.call("setsid", libc::SYS_setsid, &[])?;
                self.fork(sid, root.pid, libc::CLONE_PARENT as u64)?;
                self.dismiss(sid, None)?;
                self.grow(families, root, sid)?;
            } else {
                self.spawn_root(root.pid, place)?;
                self.grow(families, root, session)?;
            }
        }
        self.group(families)
    }

    /// Forks a blank process off freeze, takes it over and empties it.
    fn spawn_root(&mut self, pid: Pid, place: Range) -> Result<()> {
        sys::spawn_blank(pid).map_err(|e| pid_refused(pid, e))?;
        self.made.push(pid);
        fault::point("spawned")?;
        let dead = || Error::Died {
            pid,
            how: "ended while it was built".into(),
        };
        let seized = Seized::seize(pid, EXITKILL)?.ok_or_else(dead)?;
        seized.interrupt();
        let mut leader = seized.halted()?.ok_or_else(dead)?;
        let vmas = read_vmas(pid, Depth::Maps)?;
        let insn = find_syscall(pid, &vmas)?;
        let (rseq, rseq_len, rseq_sig) = leader.rseq()?;
        let scratch = Scratch::map_at(&mut leader, pid, pid.0, insn, place)?;
        let mut building = Building {
            pid,
            threads: vec![leader],
            stopped_by: 0,
            scratch,
        };
        let door = self.door();
        let mut keep: Vec<Range> = vmas
            .iter()
            .filter(|v| is_vdso(&v.name))
            .map(|v| v.range())
            .collect();
        keep.push(place);
        let keep = crate::ids::normalize(keep);
        let everything = [Range::new(0, TASK_SIZE)];
        building.tape(|t| {
            // Before anything is unmapped: the kernel writes to a registered area on every way back from it.
            if rseq != 0 {
                let args = [rseq, u64::from(rseq_len), 1, u64::from(rseq_sig)];
                t.call("rseq", libc::SYS_rseq, &args);
            }
            if door > 0 {
                t.call("close_range", libc::SYS_close_range, &[0, door - 1, 0]);
            }
            t.call(
                "close_range",
                libc::SYS_close_range,
                &[door + 1, u64::from(u32::MAX), 0],
            );
            for gap in crate::ids::subtract(&everything, &keep) {
                t.call("munmap", libc::SYS_munmap, &[gap.start, gap.len()]);
            }
        })?;
        self.processes.insert(pid, building);
        fault::point("blank")
    }

    /// Forks a blank child off a blank process.
    fn fork(&mut self, parent: Pid, pid: Pid, flags: u64) -> Result<()> {
        let building = self.process(parent)?;
        let made = building.tape(|t| {
            let tid = t.bytes(&pid.0.to_ne_bytes());
            let exit_signal = if flags & libc::CLONE_PARENT as u64 == 0 {
                libc::SIGCHLD as u64
            } else {
                0
            };
            let args = CloneArgs {
                flags: flags | libc::CLONE_PTRACE as u64,
                exit_signal,
                set_tid: tid,
                set_tid_size: 1,
                ..CloneArgs::default()
            };
            let args = t.bytes(&args.bytes());
            t.call("clone3", libc::SYS_clone3, &[args, 88]);
        });
        let scratch = building.scratch.inherited(pid.0);
        match made {
            Ok(_) => {}
            Err(Error::Kernel { errno, .. }) => return Err(pid_refused(pid, errno)),
            Err(e) => return Err(e),
        }
        self.made.push(pid);
        fault::point("forked")?;
        let child = Seized::inherited(pid).halted()?;
        let child = child.ok_or_else(|| Error::Died {
            pid,
            how: "ended while it was built".into(),
        })?;
        self.processes.insert(
            pid,
            Building {
                pid,
                threads: vec![child],
                stopped_by: 0,
                scratch,
            },
        );
        Ok(())
    }

    /// Ends an interim process and has it reaped by its parent: a process of the nest, or freeze.
    fn dismiss(&mut self, pid: Pid, parent: Option<Pid>) -> Result<()> {
        // Ended before it is let go: blank as it is, it must not run an instruction.
        kill(pid);
        self.processes.remove(&pid);
        wait_end(pid);
        if let Some(parent) = parent {
            let reap = [pid.0 as u64, 0, libc::__WALL as u64, 0];
            self.process(parent)?.call("wait4", libc::SYS_wait4, &reap)?;
        }
        self.made.retain(|p| *p != pid);
        Ok(())
    }

    /// Forks the descendants of `me`, which stands in session `session`, and makes the sessions they lead.
    fn grow(&mut self, families: &[Family], me: &Family, session: Pid) -> Result<()> {
        let children: Vec<&Family> = families
            .iter()
            .filter(|f| !f.root && f.parent == me.pid)
            .collect();
        let leads = me.sid == me.pid;
        // A session leader's children that are in its session come after setsid(2), all others before.
        let (later, first): (Vec<&Family>, Vec<&Family>) = children
            .into_iter()
            .partition(|c| leads && c.born_in(families).is_none_or(|s| s == me.pid));
        for child in first {
            self.bear(families, me.pid, child, session)?;
        }
        if leads {
            self.process(me.pid)?.call("setsid", libc::SYS_setsid, &[])?;
            self.control(me.pid)?;
        }
        for child in later {
            self.bear(families, me.pid, child, me.pid)?;
        }
        Ok(())
    }

    /// Gives a session that has just been made its controlling terminal, which its members get by fork.
    fn control(&mut self, leader: Pid) -> Result<()> {
        let Some(terminal) = self.terminals.get(&leader).map(AsRawFd::as_raw_fd) else {
            return Ok(());
        };
        let at = self.hand_over(leader, &[terminal])?[0];
        self.process(leader)?.play(&[
            (
                "ioctl(TIOCSCTTY)",
                libc::SYS_ioctl,
                [at, libc::TIOCSCTTY, 0, 0, 0, 0],
            ),
            ("close", libc::SYS_close, [at, 0, 0, 0, 0, 0]),
        ])?;
        self.terminals.remove(&leader);
        Ok(())
    }

    fn bear(&mut self, families: &[Family], parent: Pid, child: &Family, session: Pid) -> Result<()> {
        match child.born_in(families) {
            Some(sid) if sid != session && family::free(sid) && !families.iter().any(|f| f.pid == sid) => {
                // The session's leader is gone: an interim process leads it while its member is forked.
                self.fork(parent, sid, 0)?;
                self.process(sid)?.call("setsid", libc::SYS_setsid, &[])?;
                self.fork(sid, child.pid, libc::CLONE_PARENT as u64)?;
                self.dismiss(sid, Some(parent))?;
                self.grow(families, child, sid)
            }
            _ => {
                self.fork(parent, child.pid, 0)?;
                self.grow(families, child, session)
            }
        }
    }

    /// Puts everybody into their process group.
    fn group(&mut self, families: &[Family]) -> Result<()> {
        let leaders = families.iter().filter(|f| f.pgid == f.pid && f.sid != f.pid);
        for f in leaders {
            self.process(f.pid)?.call("setpgid", libc::SYS_setpgid, &[0, 0])?;
        }
        for f in families.iter().filter(|f| f.pgid != f.pid) {
            let interim = !families.iter().any(|l| l.pid == f.pgid) && family::free(f.pgid);
            if interim && !family::group_exists(f.pgid) {
                self.fork(f.pid, f.pgid, 0)?;
                self.process(f.pgid)?
                    .call("setpgid", libc::SYS_setpgid, &[0, 0])?;
            }
            let joined = self
                .process(f.pid)?
                .call("setpgid", libc::SYS_setpgid, &[0, f.pgid.0 as u64]);
            if interim && self.processes.contains_key(&f.pgid) {
                self.dismiss(f.pgid, Some(f.pid))?;
            }
            match joined {
                Ok(_) => {}
                // The group belongs to a session we cannot enter: that of the shell it was started from.
                Err(Error::Kernel { errno: nix::errno::Errno::EPERM | nix::errno::Errno::ESRCH, .. }) => self.warnings.push(format!(
                    "pid {}: its process group {} lies outside the checkpoint and cannot be joined; it is in the restorer's",
                    f.pid, f.pgid
                )),
                Err(e) => return Err(e),
            }
        }
        self.warn_of_sessions(families);
        Ok(())
    }

    /// Names every process that is not in the session it was in.
    fn warn_of_sessions(&mut self, families: &[Family]) {
        let mut elsewhere: BTreeMap<Pid, Vec<String>> = BTreeMap::new();
        for f in families {
            let now = nix::unistd::getsid(Some(f.pid.nix())).map(|p| p.as_raw());
            if now != Ok(f.sid.0) {
                elsewhere.entry(f.sid).or_default().push(f.pid.to_string());
            }
        }
        for (sid, pids) in elsewhere {
            let one = pids.len() == 1;
            self.warnings.push(format!(
                "pid{} {}: {} session {sid} is led by a process outside the checkpoint; {} in the restorer's",
                if one { "" } else { "s" },
                pids.join(", "),
                if one { "its" } else { "their" },
                if one { "it is" } else { "they are" },
            ));
        }
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
        // Leaders last: the kernel reports their end only once no other thread of theirs is left to be reaped.
        let mut threads: Vec<Pid> = self.made.iter().flat_map(|p| threads_of(*p)).collect();
        threads.retain(|t| !self.made.contains(t));
        self.processes.clear();
        // As their tracer we hear of each end first.
        threads.iter().chain(&self.made).for_each(|t| wait_end(*t));
        // Then as their parent, eldest first: what had another parent is ours once that one is reaped.
        self.made.iter().for_each(|p| wait_end(*p));
        let _ = nix::sys::prctl::set_child_subreaper(reaper);
    }
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

/// End of the addresses a process may map (TASK_SIZE with four-level page tables).
pub const TASK_SIZE: u64 = 0x7fff_ffff_f000;

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
        None => (
            "in use as a thread, process group or session".to_owned(),
            "the pid is taken".to_owned(),
        ),
    };
    Blocker::at(format!("pid {pid}"), object)
        .why(why)
        .remedy("end it, or restore inside a pid namespace of its own (unshare --pid --fork --mount-proc)")
}

/// Whether anything at all goes by this number: a process, a thread, a group or a session.
fn in_use(pid: Pid) -> bool {
    std::path::Path::new(&format!("/proc/{pid}")).exists()
}

/// Refuses, all at once, the pids that somebody else has; waits a moment for zombies.
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
        stat.is_none_or(|s| s.is_zombie())
    };
    // Freeze is in the one it was started in, whatever its leader is like by now.
    let joined = [family::own_session(), Pid(nix::unistd::getpgrp().as_raw())];
    loop {
        let busy: BTreeSet<Pid> = wanted.iter().copied().filter(|p| in_use(*p)).collect();
        let leaving = |p: &Pid| !joined.contains(p) && in_use(*p) && dying(p);
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
