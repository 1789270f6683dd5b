//! Into namespaces: a process of the nest when it has been forked, and this thread for a moment.

use super::family::Birth;
use super::space::{Kind, Membership};
use super::{Nest, Patience, pid_refused};
use crate::error::{Blocker, Context, Error, Result};
use crate::ids::Pid;
use crate::sys::sched::Realtime;
use crate::sys::{self, CloneArgs, fault};
use crate::tracee::{Seized, Stopped};
use std::collections::{HashMap, HashSet, VecDeque};
use std::os::fd::{AsFd, BorrowedFd};

/// How a child comes into its pid namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WayIn {
    /// It is its parent's.
    Same,
    /// It is its init.
    New,
    /// It is there already, under this number.
    Join(u32),
}

impl Nest {
    /// The id by which the process `who` knows the process (or thread) `of`, both by their recorded ids; 0 for one that
    /// it cannot see.
    pub fn known_as(&self, who: Pid, of: Pid) -> i32 {
        let depth = self.births.get(&who).map_or(1, |b| b.ids.len());
        if let Some(other) = self.births.get(&of) {
            return other.ids.get(depth - 1).copied().unwrap_or(0);
        }
        let thread = self.families.values().find(|f| f.tids.contains(&of));
        match thread {
            Some(f) => f.thread_ids(of).get(depth - 1).copied().unwrap_or(0),
            None if depth == 1 => of.0,
            None => 0,
        }
    }

    /// The namespaces a process is in now.
    pub fn membership(&self, pid: Pid) -> Membership {
        self.births
            .get(&pid)
            .map(|b| b.spaces.clone())
            .unwrap_or_default()
    }

    /// Whether a process had ended when it was recorded, and will again.
    pub fn has_ended(&self, pid: Pid) -> bool {
        self.families.get(&pid).is_some_and(|f| f.ended.is_some())
    }

    /// Notes that a process is in another namespace now.
    pub fn entered(&mut self, pid: Pid, kind: Kind, number: u32) {
        if let Some(birth) = self.births.get_mut(&pid) {
            birth.spaces.0.insert(kind, number);
        }
    }

    /// Moves a process into namespaces, given by kind and number; of a pid namespace only its children to come.
    pub fn enter(&mut self, pid: Pid, into: &[(Kind, u32)]) -> Result<()> {
        let mut fds = Vec::new();
        for (kind, number) in into {
            fds.push(self.spaces.descriptor(*kind, *number)?);
        }
        let at = self.hand_over(pid, &fds)?;
        let mut calls = Vec::new();
        for ((kind, number), fd) in into.iter().zip(at) {
            calls.push(("setns", libc::SYS_setns, [fd, kind.flag() as u64, 0, 0, 0, 0]));
            calls.push(("close", libc::SYS_close, [fd, 0, 0, 0, 0, 0]));
            if *kind != Kind::Pid {
                self.entered(pid, *kind, *number);
            }
        }
        self.process(pid)?.play(&calls)?;
        Ok(())
    }

    /// Does something with this thread in other namespaces, of the kinds that one can enter for a moment.
    pub fn within<T>(
        &mut self,
        spaces: &[(Kind, u32)],
        work: impl FnOnce(&mut Nest) -> Result<T>,
    ) -> Result<T> {
        let mut open = Vec::new();
        for (kind, number) in spaces.iter().filter(|(_, number)| *number != 0) {
            let name = || format!("{} namespace {number} of the image", kind.name());
            let fd = self.spaces.get(*kind, *number);
            let fd = fd.ok_or(nix::errno::Errno::ENOENT).on("setns", name)?;
            open.push(fd.try_clone_to_owned().on("dup", name)?);
        }
        let inside: Vec<BorrowedFd<'_>> = open.iter().map(AsFd::as_fd).collect();
        sys::ns::within(&inside, || work(self)).on("setns", || "a namespace of the image")?
    }

    /// How a child comes into its pid namespace from where its parent's children are born.
    pub(super) fn way_in(&self, around: &Membership, birth: &Birth) -> Result<WayIn> {
        let wanted = birth.spaces.of(Kind::Pid);
        if wanted == around.of(Kind::Pid) {
            return Ok(WayIn::Same);
        }
        if self.spaces.has(Kind::Pid, wanted) {
            return Ok(WayIn::Join(wanted));
        }
        match birth.ids.last() {
            Some(1) => Ok(WayIn::New),
            _ => Err(
                Blocker::of(birth.pid, "pid namespace", format!("number {wanted}"))
                    .why("its init was not part of the checkpoint, and has ended since")
                    .remedy("checkpoint the init of the namespace, or a parent of it")
                    .refuse(),
            ),
        }
    }

    /// Forks a blank process off freeze, in the pid namespace it belongs to.
    pub(super) fn spawn(&mut self, birth: &Birth) -> Result<()> {
        let ids: Vec<i32> = birth.ids.iter().rev().copied().collect();
        let spawn = |flags: i32| {
            let mut patience = Patience::default();
            loop {
                match sys::spawn_blank(&ids, flags as u64) {
                    Err(e) if patience.lasts(e) => patience.wait(),
                    done => return done.map(drop).map_err(|e| pid_refused(birth.pid, e)),
                }
            }
        };
        match self.way_in(&Membership::default(), birth)? {
            WayIn::Same => spawn(0),
            WayIn::New => spawn(libc::CLONE_NEWPID),
            WayIn::Join(number) => self.born_in(number, || spawn(0)),
        }
    }

    /// Does something by which this thread's children are born in a pid namespace of the image, and comes back.
    pub fn born_in<T>(&mut self, number: u32, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.spaces.descriptor(Kind::Pid, 0)?;
        let enter = |number: u32| match self.spaces.get(Kind::Pid, number) {
            Some(fd) => sys::ns::setns(fd, libc::CLONE_NEWPID)
                .on("setns", || format!("pid namespace {number} of the image")),
            None => Ok(()),
        };
        enter(number)?;
        let done = work();
        enter(0)?;
        done
    }

    /// Notes where a new process is, and moves it into the namespaces that it did not inherit.
    pub(super) fn settle(&mut self, birth: &Birth, around: Membership, from: Option<Pid>) -> Result<()> {
        let pid = birth.pid;
        let number = birth.spaces.of(Kind::Pid);
        if !self.spaces.has(Kind::Pid, number) {
            let path = format!("/proc/{pid}/ns/pid");
            let fd = std::fs::File::open(&path).on("open", || path)?;
            self.spaces.put(Kind::Pid, number, fd.into());
        }
        let mut now = Birth {
            spaces: around.clone(),
            ..birth.clone()
        };
        now.spaces.0.insert(Kind::Pid, number);
        self.births.insert(pid, now);
        // Children inherit what their parent has set apart for them.
        let mut around = around;
        if let Some(time) = from.and_then(|p| self.births.get(&p)?.time_for_children) {
            around.0.insert(Kind::Time, time);
        }
        // The user namespace comes last of all (see the kind `namespaces`): what is yet to be done takes its rights away.
        let others = Kind::ALL.iter().filter(|k| !matches!(k, Kind::User | Kind::Pid));
        let into: Vec<(Kind, u32)> = others
            .map(|k| (*k, birth.spaces.of(*k)))
            .filter(|(k, n)| around.of(*k) != *n)
            .collect();
        if !into.is_empty() {
            self.enter(pid, &into)?;
            fault::point("entered")?;
        }
        match birth.time_for_children {
            Some(number) if number != 0 && !self.spaces.has(Kind::Time, number) => {
                self.set_time_apart(pid, number)
            }
            _ => Ok(()),
        }
    }

    /// Makes the time namespace into which a process has its children born, and does not go itself.
    fn set_time_apart(&mut self, pid: Pid, number: u32) -> Result<()> {
        let flag = Kind::Time.flag() as u64;
        self.process(pid)?.call("unshare", libc::SYS_unshare, &[flag])?;
        for (clock, seconds, nanoseconds) in self.spaces.offsets.remove(&number).unwrap_or_default() {
            let path = format!("/proc/{pid}/timens_offsets");
            std::fs::write(&path, format!("{clock} {seconds} {nanoseconds}\n")).on("write", || path)?;
        }
        let path = format!("/proc/{pid}/ns/time_for_children");
        let fd = std::fs::File::open(&path).on("open", || path)?;
        self.spaces.put(Kind::Time, number, fd.into());
        Ok(())
    }

    /// The process that has a thread with this recorded id besides its first.
    pub fn owner_of_thread(&self, tid: Pid) -> Option<Pid> {
        let owner = self.families.values().find(|f| f.tids.contains(&tid))?;
        Some(owner.pid)
    }

    /// The recorded ids of the threads of a process besides its first.
    pub fn tids(&self, pid: Pid) -> &[Pid] {
        self.families.get(&pid).map_or(&[], |f| &f.tids)
    }

    /// Has a thread of a process made with all the others, ahead of their stage; tells the id freeze knows it by.
    pub fn thread_ahead(&mut self, owner: Pid, tid: Pid) -> Result<Pid> {
        let all = self
            .families
            .get(&owner)
            .map_or_else(Vec::new, |f| f.tids.clone());
        self.spawn_threads(owner, &all)?;
        Ok(self.process(owner)?.live_tid(tid))
    }

    /// Gives a process its other threads, in this order, with their recorded ids as far as they can be chosen; those
    /// that are there already stay.
    pub fn spawn_threads(&mut self, pid: Pid, wanted: &[Pid]) -> Result<()> {
        let building = self.process(pid)?;
        let tids: Vec<Pid> = wanted
            .iter()
            .copied()
            .filter(|t| building.thread(*t).is_none())
            .collect();
        let tids = &tids[..];
        let family = self.families.get(&pid);
        let ids: Vec<Vec<i32>> = tids
            .iter()
            .map(|t| family.map_or_else(|| vec![t.0], |f| f.thread_ids(*t)))
            .collect();
        // In a user namespace of its own it has no say in the pid namespace of freeze.
        let bound = self.membership(pid).of(Kind::User) != 0;
        let number = self.membership(pid).of(Kind::Pid);
        let inside = match self
            .spaces
            .get(Kind::Pid, number)
            .filter(|_| number != 0 && bound)
        {
            Some(fd) => Some(fd.try_clone_to_owned().on("dup", || "a pid namespace")?),
            None => None,
        };
        let building = self.process(pid)?;
        let step = if bound { 1 } else { 128 };
        // Those that are yet to be made.
        let mut left: VecDeque<usize> = (0..tids.len()).collect();
        let (mut missed, mut patience) = (0, Patience::default());
        while !left.is_empty() {
            let some: Vec<usize> = left.drain(..step.min(left.len())).collect();
            // The next id that is given out is the one after this, unless somebody else is quicker.
            let turned_back = match (&inside, ids[some[0]].last()) {
                _ if !bound => None,
                // Its number further out nobody inside can see, and others count on theirs out there.
                (Some(ns), Some(inner)) => {
                    sys::ns::set_last_pid(ns.as_fd(), inner - 1).on("write", || "ns_last_pid")?;
                    None
                }
                _ => TurnedBack::to(tids[some[0]].0 - 1),
            };
            let (ran, calls) = building.tape(|t| {
                let mut calls = Vec::new();
                for n in &some {
                    let chosen = if bound { &[][..] } else { &ids[*n][..] };
                    let set: Vec<u8> = chosen.iter().rev().flat_map(|id| id.to_ne_bytes()).collect();
                    let flags = libc::CLONE_VM
                        | libc::CLONE_FS
                        | libc::CLONE_FILES
                        | libc::CLONE_SIGHAND
                        | libc::CLONE_THREAD
                        | libc::CLONE_SYSVSEM
                        | libc::CLONE_PTRACE;
                    let args = CloneArgs {
                        flags: flags as u64,
                        set_tid: if set.is_empty() { 0 } else { t.bytes(&set) },
                        set_tid_size: chosen.len() as u64,
                        ..CloneArgs::default()
                    };
                    let args = t.bytes(&args.bytes());
                    calls.push(t.try_call("clone3(CLONE_THREAD)", libc::SYS_clone3, &[args, 88]));
                }
                calls
            })?;
            drop(turned_back);
            let outer = match bound {
                true => outer_tids(pid, &building.threads)?,
                false => HashMap::new(),
            };
            for (n, call) in some.into_iter().zip(calls) {
                let recorded = tids[n];
                let inner = match ran.result(call) {
                    Ok(inner) => inner as i32,
                    Err(e) if patience.lasts(e) => {
                        left.push_back(n);
                        continue;
                    }
                    Err(e) => return Err(pid_refused(recorded, e)),
                };
                let live = match bound {
                    true => outer.get(&inner).copied().ok_or_else(|| {
                        Error::kernel("readdir", format!("/proc/{pid}/task"), nix::errno::Errno::ESRCH)
                    })?,
                    false => recorded,
                };
                let died = || Error::Died {
                    pid: live,
                    how: "ended while it was built".into(),
                };
                let thread = Seized::inherited(live).halted()?.ok_or_else(died)?;
                if inner != ids[n].last().copied().unwrap_or(recorded.0) {
                    missed += 1;
                    if missed > MISSES {
                        return Err(pid_refused(recorded, nix::errno::Errno::EEXIST));
                    }
                    thread.exit(0, building.scratch.syscall_insn())?;
                    left.push_front(n);
                    continue;
                }
                missed = 0;
                building.threads.push(thread);
                building.names.push((recorded, inner));
            }
            if !left.is_empty() {
                patience.wait();
            }
        }
        // In their order, whichever could be made first; the leader stays ahead of them.
        let threads = building.threads.drain(..).zip(building.names.drain(..));
        let mut all: Vec<_> = threads.collect();
        all.sort_by_cached_key(|(_, (recorded, _))| wanted.iter().position(|t| t == recorded));
        (building.threads, building.names) = all.into_iter().unzip();
        Ok(())
    }
}

/// The last id that was given out in freeze's own pid namespace, while it says another one; dropping it says it again.
/// If it stayed, whoever is born next would get ids that have just become free, and others may want those back: a program
/// that is being restored somewhere else.
struct TurnedBack {
    before: String,
    /// Meanwhile others get such ids; so it is to be short, on a busy machine too.
    _ahead: Realtime,
}

impl TurnedBack {
    const LAST: &str = "/proc/sys/kernel/ns_last_pid";

    /// `None` where it cannot be said: then the id is missed, and that is told.
    fn to(last: i32) -> Option<TurnedBack> {
        let _ahead = Realtime::enter();
        let before = std::fs::read_to_string(TurnedBack::LAST).ok()?;
        std::fs::write(TurnedBack::LAST, last.to_string()).ok()?;
        Some(TurnedBack { before, _ahead })
    }
}

impl Drop for TurnedBack {
    fn drop(&mut self) {
        let _ = std::fs::write(TurnedBack::LAST, self.before.trim());
    }
}

/// How often an id that cannot be chosen is tried for.
const MISSES: usize = 100;

/// The ids freeze knows the threads by that were not `known` yet, by what they call themselves.
fn outer_tids(pid: Pid, known: &[Stopped]) -> Result<HashMap<i32, Pid>> {
    let known: HashSet<i32> = known.iter().map(|t| t.tid().0).collect();
    let path = format!("/proc/{pid}/task");
    let mut out = HashMap::new();
    for entry in std::fs::read_dir(&path).on("readdir", || path.clone())?.flatten() {
        let tid: Option<i32> = entry.file_name().to_str().and_then(|t| t.parse().ok());
        let Some(tid) = tid.filter(|tid| !known.contains(tid)) else {
            continue;
        };
        let text = std::fs::read(entry.path().join("status")).unwrap_or_default();
        let status = crate::proc::status::Status::parse(&text);
        if let Some(inner) = status.and_then(|s| s.ns_pid.last().copied()) {
            out.insert(inner, Pid(tid));
        }
    }
    Ok(out)
}
