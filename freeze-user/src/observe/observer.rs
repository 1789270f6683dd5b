//! The observer: keeps the live map by kernel events, reads what is in doubt, and starts over after a loss.

use crate::error::{Context, Error, Result};
use crate::ids::Pid;
use crate::observe::audit::{Difference, Entry, Snapshot, difference};
use crate::observe::changes::Changes;
use crate::observe::events::{self, Event, Record};
use crate::observe::livemap::{Handle, LiveMap, Reading};
use crate::observe::load::Programs;
use crate::observe::mapview::{MapView, Source};
use crate::observe::view;
use crate::proc::stat::Stat;
use nix::errno::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd};

/// Size of the ring, in bytes: room for sixteen thousand records between two drains.
const RING: u32 = 1 << 20;
/// Records taken in one drain at most, so that it ends even while a program floods the ring.
const AT_ONCE: usize = 1 << 17;
/// The number of the initial pid namespace's inode, fixed by the kernel.
const INITIAL_PID_NAMESPACE: &str = "pid:[4026531836]";

/// Watches processes by kernel events.
///
/// Nothing runs by itself: `drain` does all the work. The fd that [`AsFd`] gives becomes readable when a
/// watched process died, or when the ring is half full; everything else waits in the ring until somebody
/// looks, once a second being often enough.
#[derive(Debug)]
pub struct Observer {
    programs: Programs,
    map: LiveMap,
    roots: BTreeSet<Pid>,
    lost: u64,
    /// Told at the next drain.
    pending: Vec<Event>,
}

impl Observer {
    /// Loads the kernel programs and attaches those that watch processes; system calls are seen only while
    /// something is watched.
    pub fn start() -> Result<Observer> {
        Observer::with_ring(RING)
    }

    /// The same with a ring of another size: a power of two of bytes, at least a page.
    pub fn with_ring(bytes: u32) -> Result<Observer> {
        // The programs know pids as the initial namespace does.
        let here = std::fs::read_link("/proc/self/ns/pid").on("readlink", || "/proc/self/ns/pid")?;
        if here.as_os_str() != INITIAL_PID_NAMESPACE {
            let object = format!("pid namespace {}", here.display());
            return Err(Error::kernel(
                "watch from outside the initial pid namespace",
                object,
                Errno::EPERM,
            ));
        }
        let programs = Programs::load(bytes)?;
        let lost = programs.lost();
        Ok(Observer {
            programs,
            map: LiveMap::default(),
            roots: BTreeSet::new(),
            lost,
            pending: Vec::new(),
        })
    }

    /// Watches a process and all its descendants, also those to come.
    pub fn watch(&mut self, root: Pid) -> Result<()> {
        if !exists(root) {
            return Err(Error::kernel("watch", format!("pid {root}"), Errno::ESRCH));
        }
        self.programs.attach()?;
        self.roots.insert(root);
        let seeded = self.enlist(root).and_then(|()| self.settle());
        if seeded.is_err() {
            self.unwatch(root);
        }
        seeded
    }

    /// Watches it no more.
    pub fn unwatch(&mut self, root: Pid) {
        self.roots.remove(&root);
        for pid in self.map.remove_root(root) {
            self.programs.unwatch(pid);
        }
        if self.roots.is_empty() {
            self.programs.detach();
            for (pid, _) in self.programs.watched() {
                self.programs.unwatch(pid);
            }
        }
    }

    /// The roots that are watched.
    pub fn roots(&self) -> impl Iterator<Item = Pid> {
        self.roots.iter().copied()
    }

    /// The processes watched for a root, also those that no longer descend from it.
    pub fn members(&self, root: Pid) -> impl Iterator<Item = Pid> {
        let of_root = self
            .map
            .processes()
            .iter()
            .filter(move |(_, p)| p.roots.contains(&root));
        of_root.map(|(&pid, _)| pid)
    }

    /// The map as it is.
    pub fn live(&self) -> &LiveMap {
        &self.map
    }

    /// The counts of what may have changed what only a process itself can tell.
    pub fn changes(&self) -> Changes {
        self.programs.changes()
    }

    /// How many records were lost so far; each loss was answered by reading everything anew.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// Brings the map up to date and tells what happened since the last time.
    pub fn drain(&mut self) -> Result<Vec<Event>> {
        self.update()?;
        Ok(std::mem::take(&mut self.pending))
    }

    fn update(&mut self) -> Result<()> {
        self.programs.flush_log();
        self.replay();
        let lost = self.programs.lost();
        if lost != self.lost || self.map.take_torn() {
            self.pending.push(Event::Resynced {
                lost: lost - self.lost,
            });
            self.lost = lost;
            self.resync()?;
        }
        self.settle()
    }

    /// What is known of the processes watched for a root, for people and machines.
    pub fn map(&mut self, root: Pid) -> Result<MapView> {
        self.update()?;
        Ok(MapView::of(root, Source::Events, &self.snapshot(root)))
    }

    /// Compares with /proc what is known of the processes watched for a root, and corrects it.
    ///
    /// While they are busy, /proc and the map are never of the same instant: a difference counts only if
    /// it is found twice, with the map brought up to date in between.
    pub fn audit(&mut self, root: Pid) -> Result<Vec<Difference>> {
        let mut differences: Option<Vec<Difference>> = None;
        for _ in 0..2 {
            let known: Vec<Pid> = self.members(root).collect();
            let truth = Snapshot::read(root, &known)?;
            self.update()?;
            let mut now = difference(&self.snapshot(root), &truth);
            if let Some(before) = &differences {
                now.retain(|d| before.contains(d));
            }
            let done = now.is_empty();
            differences = Some(now);
            if done {
                break;
            }
        }
        let differences = differences.unwrap_or_default();
        if !differences.is_empty() {
            self.enlist(root)?;
            for d in &differences {
                self.map.doubt(d.pid);
            }
            self.settle()?;
            for d in &differences {
                self.bury(d.pid);
            }
        }
        Ok(differences)
    }

    /// The map's state of the processes watched for a root.
    fn snapshot(&self, root: Pid) -> Snapshot {
        let mut out = Snapshot::default();
        for (&pid, p) in self
            .map
            .processes()
            .iter()
            .filter(|(_, p)| p.roots.contains(&root))
        {
            out.processes.insert(
                pid,
                Entry {
                    ppid: p.ppid,
                    pgid: p.pgid,
                    sid: p.sid,
                    comm: p.comm.clone(),
                    threads: p.threads.clone(),
                    dead: p.dead,
                    fds: self.map.fds(p).collect(),
                },
            );
        }
        out
    }

    /// Replays what is in the ring.
    fn replay(&mut self) {
        for _ in 0..AT_ONCE {
            let Some(record) = self.programs.next() else {
                return;
            };
            self.map.apply(&record, &mut self.pending);
        }
    }

    /// Adds a root and its descendants, in the kernel first, so that none is born unseen.
    fn enlist(&mut self, root: Pid) -> Result<()> {
        let mut group = BTreeSet::from([root]);
        self.report(root, root)?;
        loop {
            let parents = view::parents()?;
            let mut grown = false;
            // A child may come before its parent in the list.
            while let Some(&(child, _)) = parents
                .iter()
                .find(|(child, parent)| group.contains(parent) && !group.contains(child))
            {
                self.report(child, root)?;
                group.insert(child);
                grown = true;
            }
            // What was forked before its maker was enlisted shows in the next look at /proc.
            if !grown {
                break;
            }
        }
        for pid in group {
            self.map.add(pid, BTreeSet::from([root]));
        }
        Ok(())
    }

    /// Has the kernel report a process, and know whether it is dead: its end may have come before.
    fn report(&mut self, pid: Pid, root: Pid) -> Result<()> {
        self.programs.watch(pid, root)?;
        loop {
            match read_stat(pid) {
                None => {
                    self.programs.unwatch(pid);
                    return Ok(());
                }
                Some(stat) if self.programs.is_dead(pid) == Some(is_dead(&stat)) => return Ok(()),
                Some(stat) => self.programs.set_dead(pid, root, is_dead(&stat))?,
            }
        }
    }

    /// Starts over: everything is read anew, and who vanished meanwhile is reported dead.
    fn resync(&mut self) -> Result<()> {
        let roots: Vec<Pid> = self.roots.iter().copied().collect();
        for root in roots {
            if exists(root) {
                self.enlist(root)?;
            }
        }
        // Orphans whose birth was lost: only the kernel's own list has them.
        for (pid, root) in self.programs.watched() {
            if !self.map.processes().contains_key(&pid) && self.roots.contains(&root) {
                let known = self.map.processes().get(&root);
                let roots = known.map(|p| p.roots.clone()).unwrap_or_default();
                self.map.add(pid, roots.into_iter().chain([root]).collect());
            }
        }
        let all: Vec<Pid> = self.map.processes().keys().copied().collect();
        for pid in all {
            self.map.doubt(pid);
        }
        self.settle()?;
        // Whose end was not lost, but came after the replay, is still told with its status.
        self.replay();
        let all: Vec<Pid> = self.map.processes().keys().copied().collect();
        for pid in all {
            self.bury(pid);
        }
        Ok(())
    }

    /// Notes the end of a process that is gone, or dead, without a record of it.
    fn bury(&mut self, pid: Pid) {
        match read_stat(pid) {
            None => {
                self.map.end(pid, None, &mut self.pending);
                self.map.forget(pid);
                self.programs.unwatch(pid);
            }
            Some(stat) if is_dead(&stat) => {
                self.map.end(pid, Some(stat.exit_code as u32), &mut self.pending);
            }
            Some(_) => {}
        }
    }

    /// Reads what is in doubt.
    fn settle(&mut self) -> Result<()> {
        for pid in self.map.take_doubtful() {
            match self.read(pid)? {
                Found::Alive(reading) => self.map.set(pid, reading),
                // Its end is in the ring, or is found by the next resync.
                Found::Gone => {}
                // Dead before it was watched: there will be no record.
                Found::Dead(stat) => {
                    let seen = self.map.processes().get(&pid).is_some_and(|p| !p.comm.is_empty());
                    if !seen {
                        self.map.end(pid, Some(stat.exit_code as u32), &mut self.pending);
                    }
                    self.map
                        .set_ids(pid, Pid(stat.ppid), Pid(stat.pgrp), Pid(stat.session));
                }
            }
        }
        // That a dead process was waited for is told too, but late: after a grace period of the kernel's.
        let waited_for: Vec<Pid> = self
            .map
            .processes()
            .iter()
            .filter(|(pid, p)| p.dead && !exists(**pid))
            .map(|(&pid, _)| pid)
            .collect();
        for pid in waited_for {
            self.map.forget(pid);
        }
        for pid in self.map.take_moved() {
            if let Some(stat) = read_stat(pid) {
                self.map
                    .set_ids(pid, Pid(stat.ppid), Pid(stat.pgrp), Pid(stat.session));
            }
        }
        Ok(())
    }

    /// Reads one process: its threads and fds by iterators, group and session from /proc.
    fn read(&self, pid: Pid) -> Result<Found> {
        let tasks = self.programs.tasks(pid)?;
        let Some(stat) = read_stat(pid) else {
            return Ok(Found::Gone);
        };
        let mut threads = BTreeSet::new();
        let mut first = None;
        for record in &tasks {
            let Record::Task(task) = record else { continue };
            threads.insert(Pid(task.head.tid as i32));
            // The first thread may have ended before the others and has no table then.
            if first.is_none_or(|f: freeze_common::Task| f.files == 0 && task.files != 0) {
                first = Some(*task);
            }
        }
        let Some(task) = first else { return Ok(Found::Gone) };
        if task.dead != 0 {
            return Ok(Found::Dead(stat));
        }
        let mut fds = BTreeMap::new();
        let mut to = task.head.time;
        for record in self.programs.files(pid)? {
            let Record::Fd(fd) = record else { continue };
            to = to.max(fd.head.time);
            if fd.files == task.files {
                fds.insert(
                    fd.fd as i32,
                    Handle {
                        file: fd.file,
                        inode: fd.inode,
                    },
                );
            }
        }
        // The leader's name is the process's.
        let leader = tasks.iter().find_map(|r| match r {
            Record::Task(t) if t.head.tid == t.head.tgid => Some(events::comm(&t.comm)),
            _ => None,
        });
        Ok(Found::Alive(Reading {
            ppid: Pid(task.ppid as i32),
            pgid: Pid(stat.pgrp),
            sid: Pid(stat.session),
            comm: leader.unwrap_or_else(|| events::comm(&task.comm)),
            threads,
            table: task.files,
            fds,
            from: tasks.iter().map(time).min().unwrap_or(to),
            to,
        }))
    }
}

impl AsFd for Observer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.programs.as_fd()
    }
}

/// What reading a process found.
enum Found {
    Alive(Reading),
    Dead(Stat),
    Gone,
}

fn time(record: &Record) -> u64 {
    match record {
        Record::Task(task) => task.head.time,
        Record::Fd(fd) => fd.head.time,
        _ => 0,
    }
}

fn exists(pid: Pid) -> bool {
    std::path::Path::new(&format!("/proc/{pid}")).exists()
}

fn read_stat(pid: Pid) -> Option<Stat> {
    Stat::parse(&std::fs::read(format!("/proc/{pid}/stat")).ok()?)
}

/// A zombie; a first thread that ended before the others looks like one but for their number.
pub(super) fn is_dead(stat: &Stat) -> bool {
    stat.is_zombie() && stat.threads <= 1
}
