//! How the blank processes are born: parents, sessions and groups come out right by who forks whom, and when.

use super::enter::WayIn;
use super::family::{self, Birth, Family, Shares};
use super::space::{Kind, Membership};
use super::{Building, Nest, Patience, SCRATCH_PAGES, free_place, is_vdso, kill, pid_refused, wait_end};
use crate::error::{Error, Result};
use crate::ids::{PAGE, Pid, Range, TASK_SIZE};
use crate::observe::view::{Depth, read_vmas};
use crate::sys::{self, CloneArgs, fault};
use crate::tracee::tape::{Scratch, find_syscall};
use crate::tracee::{EXITKILL, Seized};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsRawFd;

const BY_PARENT: u64 = libc::CLONE_PARENT as u64;

impl Nest {
    /// Makes all blank processes.
    pub(super) fn hatch(&mut self, families: &[Family], occupied: &[Range]) -> Result<()> {
        let own = Pid(std::process::id() as i32);
        let here = read_vmas(own, Depth::Maps)?;
        let mut taken: Vec<Range> = here.iter().map(|v| v.range()).collect();
        taken.extend_from_slice(occupied);
        let place = free_place(crate::ids::normalize(taken), (SCRATCH_PAGES + 1) * PAGE);
        for root in families.iter().filter(|f| f.root) {
            self.root(families, root, own, place)?;
        }
        // Whoever belongs to a session in which the parent never was.
        while !self.late.is_empty() {
            let mut waiting = Vec::new();
            let mut born = false;
            for (parent, child) in std::mem::take(&mut self.late) {
                let there = self.sessions.values().any(|s| *s == child.sid);
                if !there && families.iter().any(|f| f.pid == child.sid) {
                    waiting.push((parent, child));
                    continue;
                }
                self.adopt(families, parent, &child)?;
                born = true;
            }
            if !born {
                // A session whose leader is to be born in it: no history leads there. A warning will tell.
                for (parent, child) in waiting.drain(..) {
                    self.bear(families, parent, &child)?;
                }
            }
            self.late.append(&mut waiting);
        }
        self.group(families)?;
        for child in families.iter().flat_map(|f| &f.continued) {
            self.process(*child)?.threads[0].stop_and_go(*child)?;
        }
        Ok(())
    }

    fn root(&mut self, families: &[Family], root: &Family, own: Pid, place: Range) -> Result<()> {
        let sid = root.sid;
        let member = |(pid, session): (&Pid, &Pid)| {
            (*session == sid && self.parents.get(pid) == Some(&own)).then_some(*pid)
        };
        if sid == root.pid || sid == family::own_session() {
            self.spawn_root(&root.birth(), place)?;
        } else if let Some(member) = self.sessions.iter().find_map(member) {
            self.fork(member, &root.birth(), BY_PARENT, 0)?;
        } else if family::free(sid) && !families.iter().any(|f| f.pid == sid) {
            // Its session's leader is gone: an interim process with that pid leads it just long enough.
            let interim = root.interim(sid, &root.sid_ids, &Membership::default());
            self.spawn_root(&interim, place)?;
            self.lead(sid)?;
            self.fork(sid, &root.birth(), BY_PARENT, 0)?;
            self.dismiss(sid, None)?;
        } else {
            self.spawn_root(&root.birth(), place)?;
        }
        self.grow(families, root)
    }

    /// Forks a blank process off freeze, takes it over and empties it.
    fn spawn_root(&mut self, birth: &Birth, place: Range) -> Result<()> {
        let (pid, inner) = (birth.pid, birth.inner());
        self.spawn(birth)?;
        self.made.push(pid);
        self.sessions.insert(pid, family::own_session());
        self.parents.insert(pid, Pid(std::process::id() as i32));
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
        let scratch = Scratch::map_at(&mut leader, pid, inner, insn, place)?;
        let mut building = Building {
            pid,
            inner,
            threads: vec![leader],
            names: vec![(pid, inner)],
            stopped_by: 0,
            stop_told: false,
            continued: false,
            leader_ended: None,
            death_signals: Vec::new(),
            shares: 0,
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
        fault::point("blank")?;
        self.settle(birth, Membership::default(), None)
    }

    /// Forks a blank child off a blank process; with CLONE_PARENT its exit signal is that of the other.
    fn fork(&mut self, from: Pid, birth: &Birth, flags: u64, exit_signal: i32) -> Result<()> {
        if let Some(mut bequest) = self.bequest.take() {
            let done = bequest.before_fork(from, birth.pid, self);
            self.bequest = Some(bequest);
            done?;
        }
        let (parent, pid, inner) = (from, birth.pid, birth.inner());
        let around = self.membership(from);
        let entry = self.way_in(&around, birth)?;
        let space = if entry == WayIn::New {
            libc::CLONE_NEWPID as u64
        } else {
            0
        };
        if let WayIn::Join(number) = entry {
            self.enter(from, &[(Kind::Pid, number)])?;
        }
        let building = self.process(parent)?;
        if flags & libc::CLONE_IO as u32 as u64 != 0 {
            // Who has an I/O context shares it; it gets one with a priority, which is given later.
            const IOPRIO_WHO_PROCESS: u64 = 1;
            building.call("ioprio_set", libc::SYS_ioprio_set, &[IOPRIO_WHO_PROCESS, 0, 0])?;
        }
        let mut patience = Patience::default();
        loop {
            let (ran, call) = building.tape(|t| {
                let tid = t.bytes(&birth.set_tid());
                let exit_signal = if flags & libc::CLONE_PARENT as u64 == 0 {
                    exit_signal as u64
                } else {
                    0
                };
                let args = CloneArgs {
                    flags: flags | space | libc::CLONE_PTRACE as u64,
                    exit_signal,
                    set_tid: tid,
                    set_tid_size: birth.ids.len() as u64,
                    ..CloneArgs::default()
                };
                let args = t.bytes(&args.bytes());
                t.try_call("clone3", libc::SYS_clone3, &[args, 88])
            })?;
            match ran.result(call) {
                Ok(_) => break,
                Err(e) if patience.lasts(e) => patience.wait(),
                Err(e) => return Err(pid_refused(pid, e)),
            }
        }
        let scratch = building.scratch.inherited(pid, inner);
        self.made.push(pid);
        let session = self.sessions.get(&parent).copied().unwrap_or(parent);
        self.sessions.insert(pid, session);
        let by_parent = flags & libc::CLONE_PARENT as u64 != 0;
        let parent = match self.parents.get(&parent) {
            Some(above) if by_parent => *above,
            _ => parent,
        };
        self.parents.insert(pid, parent);
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
                inner,
                threads: vec![child],
                names: vec![(pid, inner)],
                stopped_by: 0,
                stop_told: false,
                continued: false,
                leader_ended: None,
                death_signals: Vec::new(),
                shares: flags & !(libc::CLONE_PARENT as u64),
                scratch,
            },
        );
        if let WayIn::Join(_) = entry {
            // Back to where its other children are born.
            self.enter(from, &[(Kind::Pid, around.of(Kind::Pid))])?;
        }
        self.settle(birth, around, Some(from))
    }

    /// Ends an interim process and has it reaped by its parent: a process of the nest, or freeze.
    fn dismiss(&mut self, pid: Pid, parent: Option<Pid>) -> Result<()> {
        // Ended before it is let go: blank as it is, it must not run an instruction.
        kill(pid);
        self.processes.remove(&pid);
        wait_end(pid);
        if let Some(parent) = parent {
            let known = self.known_as(parent, pid) as u64;
            let reap = [known, 0, libc::__WALL as u64, 0];
            self.process(parent)?.call("wait4", libc::SYS_wait4, &reap)?;
        }
        self.made.retain(|p| *p != pid);
        self.births.remove(&pid);
        self.sessions.remove(&pid);
        self.parents.remove(&pid);
        Ok(())
    }

    /// Lets a process make its session.
    fn lead(&mut self, pid: Pid) -> Result<()> {
        self.process(pid)?.call("setsid", libc::SYS_setsid, &[])?;
        self.sessions.insert(pid, pid);
        self.control(pid)
    }

    /// Forks the descendants of `me`, and makes the sessions they lead.
    fn grow(&mut self, families: &[Family], me: &Family) -> Result<()> {
        let before = self.sessions.get(&me.pid).copied().unwrap_or(me.sid);
        let leads = me.sid == me.pid;
        let open = [before, me.sid];
        let mut later = Vec::new();
        let mut children: Vec<&Family> = families
            .iter()
            .filter(|f| !f.root && f.parent == me.pid)
            .collect();
        // The init of a pid namespace comes before whoever else lives there.
        children.sort_by_key(|c| c.ids.last() != Some(&1));
        for child in children {
            match child.born_in(families, &open) {
                // A session leader's children that are in its session come after setsid(2), all others before.
                Some(session) if leads && session == me.pid => later.push(child),
                None if leads => later.push(child),
                Some(session) if session != before => self.late.push((me.pid, child.clone())),
                _ => self.bear(families, me.pid, child)?,
            }
        }
        if leads {
            self.lead(me.pid)?;
        }
        for child in later {
            self.bear(families, me.pid, child)?;
        }
        Ok(())
    }

    /// Forks a child off its parent, or off an elder child whose tables it shares.
    fn bear(&mut self, families: &[Family], parent: Pid, child: &Family) -> Result<()> {
        match child.shares {
            Some(Shares { with, tables }) if with != parent => {
                self.fork(with, &child.birth(), tables | BY_PARENT, 0)?;
            }
            shares => {
                let tables = shares.map_or(0, |s| s.tables);
                self.fork(parent, &child.birth(), tables, child.exit_signal)?;
            }
        }
        self.grow(families, child)
    }

    /// Makes a child in a session in which its parent is not: as a rule an orphan that the parent was given.
    fn adopt(&mut self, families: &[Family], parent: Pid, child: &Family) -> Result<()> {
        let sid = child.sid;
        let members: Vec<Pid> = self
            .sessions
            .iter()
            .filter_map(|(pid, session)| (*session == sid).then_some(*pid))
            .collect();
        let sibling = members.iter().find(|m| self.parents.get(m) == Some(&parent));
        let sharer = child.shares.map(|s| s.with).filter(|w| members.contains(w));
        let below = members.iter().find(|m| self.descends(**m, parent));
        if sharer.is_some() {
            return self.bear(families, parent, child);
        } else if let Some(sibling) = sibling.copied() {
            self.fork(sibling, &child.birth(), BY_PARENT, 0)?;
        } else if let Some(member) = below.copied() {
            self.orphan(families, member, parent, child)?;
        } else if family::free(sid) && !families.iter().any(|f| f.pid == sid) {
            // The session's leader is gone: an interim process leads it while its member is forked.
            let from = child.shares.map_or(parent, |s| s.with);
            let tables = child.shares.map_or(0, |s| s.tables);
            let how = if from == parent {
                tables
            } else {
                tables | BY_PARENT
            };
            let interim = child.interim(sid, &child.sid_ids, &self.membership(from));
            self.fork(from, &interim, how, child.exit_signal)?;
            self.lead(sid)?;
            self.fork(sid, &child.birth(), tables | BY_PARENT, 0)?;
            self.dismiss(sid, Some(parent))?;
        } else {
            return self.bear(families, parent, child);
        }
        self.grow(families, child)
    }

    fn descends(&self, pid: Pid, from: Pid) -> bool {
        let above = |p: &Pid| self.parents.get(p).copied();
        std::iter::successors(above(&pid), above).any(|p| p == from)
    }

    /// Makes a child of `parent` as it once came to be: its own parent, a child of `member`, ends, and it is taken in.
    fn orphan(&mut self, families: &[Family], member: Pid, parent: Pid, child: &Family) -> Result<()> {
        let interim = spare(families)?;
        let spaces = self.membership(member);
        let depth = self.births.get(&member).map_or(1, |b| b.ids.len());
        // As high a number further in: nobody has come that far there.
        let birth = Birth {
            pid: interim,
            ids: vec![interim.0; depth],
            spaces,
            time_for_children: None,
        };
        let reaper = |on: u64| [libc::PR_SET_CHILD_SUBREAPER as u64, on, 0, 0, 0];
        self.process(parent)?
            .call("prctl(PR_SET_CHILD_SUBREAPER)", libc::SYS_prctl, &reaper(1))?;
        self.fork(member, &birth, 0, libc::SIGCHLD)?;
        self.fork(interim, &child.birth(), 0, libc::SIGCHLD)?;
        self.dismiss(interim, Some(member))?;
        self.parents.insert(child.pid, parent);
        self.process(parent)?
            .call("prctl(PR_SET_CHILD_SUBREAPER)", libc::SYS_prctl, &reaper(0))?;
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

    /// Puts everybody into their process group.
    fn group(&mut self, families: &[Family]) -> Result<()> {
        // Who made a group may have gone to another since.
        let groups: BTreeSet<Pid> = families.iter().map(|f| f.pgid).collect();
        let makes = |f: &&Family| groups.contains(&f.pid) && f.sid != f.pid;
        for f in families.iter().filter(makes) {
            self.process(f.pid)?.call("setpgid", libc::SYS_setpgid, &[0, 0])?;
        }
        // A group outside the pid namespace has no number here.
        let moves = |f: &&Family| f.pgid != f.pid && f.pgid.0 != 0;
        let (makers, others): (Vec<_>, Vec<_>) = families.iter().filter(moves).partition(makes);
        for f in others.into_iter().chain(makers) {
            let interim = !families.iter().any(|l| l.pid == f.pgid) && family::free(f.pgid);
            if interim && !family::group_exists(f.pgid) {
                let stand_in = f.interim(f.pgid, &f.pgid_ids, &self.membership(f.pid));
                self.fork(f.pid, &stand_in, 0, libc::SIGCHLD)?;
                self.process(f.pgid)?
                    .call("setpgid", libc::SYS_setpgid, &[0, 0])?;
            }
            let group = match families.iter().find(|l| l.pid == f.pgid) {
                Some(_) => self.known_as(f.pid, f.pgid),
                None => f.pgid_ids.last().copied().unwrap_or(f.pgid.0),
            };
            // A group that cannot be seen from inside was joined before the process came there.
            let joined = match (group, sys::getpgid(f.pid)) {
                (0, Ok(now)) if now == f.pgid => Ok(0),
                (0, _) => self.join_from_outside(f),
                _ => self
                    .process(f.pid)?
                    .call("setpgid", libc::SYS_setpgid, &[0, group as u64]),
            };
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

    /// Puts a process into a group of a pid namespace further out, which its parent can do as long as it is blank.
    fn join_from_outside(&mut self, f: &Family) -> Result<i64> {
        if f.root {
            return match sys::setpgid(f.pid, f.pgid) {
                Ok(()) => Ok(0),
                Err(e) => Err(Error::kernel("setpgid", format!("pid {}", f.pid), e)),
            };
        }
        let (child, group) = (self.known_as(f.parent, f.pid), self.known_as(f.parent, f.pgid));
        self.process(f.parent)?
            .call("setpgid", libc::SYS_setpgid, &[child as u64, group as u64])
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

/// A pid that nobody has and nobody will want; the highest, which the kernel gives out last.
fn spare(families: &[Family]) -> Result<Pid> {
    let max = std::fs::read_to_string("/proc/sys/kernel/pid_max").unwrap_or_default();
    let max: i32 = max.trim().parse().unwrap_or(32768);
    let wanted = |p: Pid| {
        let of = |f: &Family| f.pid == p || f.sid == p || f.pgid == p || f.tids.contains(&p);
        families.iter().any(of)
    };
    let mut all = (300..max).rev().map(Pid);
    all.find(|p| !wanted(*p) && family::free(*p)).ok_or_else(|| {
        Error::kernel(
            "clone3",
            "a pid for an interim process",
            nix::errno::Errno::EAGAIN,
        )
    })
}
