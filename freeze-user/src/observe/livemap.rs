//! The map of watched processes: pure state, moved by records and by readings, asking for readings it needs.
//!
//! Two rules keep it true without any order between records and readings:
//! - A record about an fd tells what the fd *is*, so replaying an old one does harm only until the newer
//!   one behind it is replayed.
//! - A child's fd table is a copy of its parent's only if the parent's was exactly as it is here when the
//!   fork happened. If it was read later than that, or other threads could change it meanwhile, or it is
//!   itself in doubt, the child's is put in doubt too and read.

use crate::ids::Pid;
use crate::observe::events::{self, Event, How, Record};
use freeze_common::{Exec, Exit, Fd, Fork};
use std::collections::{BTreeMap, BTreeSet};

/// What an fd stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handle {
    /// The open file description: equal for two fds that share one, and of no other meaning.
    pub file: u64,
    pub inode: u64,
}

/// An fd table; processes made with `CLONE_FILES` share one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    pub fds: BTreeMap<i32, Handle>,
    /// When its last reading as a whole was finished, in the records' time; 0 if it is a copy.
    as_of: u64,
}

/// One watched process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    pub ppid: Pid,
    pub pgid: Pid,
    pub sid: Pid,
    pub comm: String,
    pub threads: BTreeSet<Pid>,
    /// The fd table it uses; 0 once it is dead.
    pub table: u64,
    /// Ended, and not yet waited for.
    pub dead: bool,
    /// The roots for which it is watched.
    pub roots: BTreeSet<Pid>,
    /// When it was made, or its reading began, in the records' time.
    as_of: u64,
}

/// A process as it was read from the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    pub ppid: Pid,
    pub pgid: Pid,
    pub sid: Pid,
    pub comm: String,
    pub threads: BTreeSet<Pid>,
    pub table: u64,
    pub fds: BTreeMap<i32, Handle>,
    /// When the reading began: what is older than this is in it.
    pub from: u64,
    /// When it was finished: what is newer than this is not in it.
    pub to: u64,
}

/// The watched processes, their tables, and what is in doubt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LiveMap {
    processes: BTreeMap<Pid, Process>,
    tables: BTreeMap<u64, Table>,
    /// Processes that must be read anew.
    doubtful: BTreeSet<Pid>,
    /// Processes whose parent, group or session must be read anew.
    moved: BTreeSet<Pid>,
    /// A record came that makes no sense without one that is missing: everything must be read anew.
    torn: bool,
}

impl LiveMap {
    /// The watched processes, dead ones that nobody has waited for among them.
    pub fn processes(&self) -> &BTreeMap<Pid, Process> {
        &self.processes
    }

    /// The fds of a process.
    pub fn fds(&self, process: &Process) -> impl Iterator<Item = (i32, Handle)> {
        self.tables
            .get(&process.table)
            .into_iter()
            .flat_map(|t| t.fds.iter().map(|(&fd, &h)| (fd, h)))
    }

    /// The processes that must be read anew; the list is empty afterwards.
    pub fn take_doubtful(&mut self) -> BTreeSet<Pid> {
        std::mem::take(&mut self.doubtful)
    }

    /// The processes whose parent, group or session must be read anew; the list is empty afterwards.
    pub fn take_moved(&mut self) -> BTreeSet<Pid> {
        std::mem::take(&mut self.moved)
    }

    /// Whether everything must be read anew; answers `false` until it is so again.
    pub fn take_torn(&mut self) -> bool {
        std::mem::take(&mut self.torn)
    }

    /// Puts a process in doubt.
    pub fn doubt(&mut self, pid: Pid) {
        self.doubtful.insert(pid);
    }

    /// Watches a process that is to be read at once, or adds a root to one that is known.
    pub fn add(&mut self, pid: Pid, roots: BTreeSet<Pid>) {
        let process = self.processes.entry(pid).or_insert_with(|| Process {
            ppid: Pid(0),
            pgid: Pid(0),
            sid: Pid(0),
            comm: String::new(),
            threads: BTreeSet::from([pid]),
            table: 0,
            dead: false,
            roots: BTreeSet::new(),
            as_of: 0,
        });
        process.roots.extend(roots);
        self.doubtful.insert(pid);
    }

    /// Ends the watch for a root; answers the processes no other root is watched for.
    pub fn remove_root(&mut self, root: Pid) -> Vec<Pid> {
        let mut gone = Vec::new();
        for (&pid, process) in &mut self.processes {
            process.roots.remove(&root);
            if process.roots.is_empty() {
                gone.push(pid);
            }
        }
        for pid in &gone {
            self.forget(*pid);
        }
        gone
    }

    /// Takes over what was read of a process.
    pub fn set(&mut self, pid: Pid, reading: Reading) {
        let Some(process) = self.processes.get_mut(&pid) else {
            return;
        };
        let old = process.table;
        process.ppid = reading.ppid;
        process.pgid = reading.pgid;
        process.sid = reading.sid;
        process.comm = reading.comm;
        process.threads = reading.threads;
        process.table = reading.table;
        process.as_of = reading.from;
        process.dead = false;
        if reading.table != 0 {
            self.tables.insert(
                reading.table,
                Table {
                    fds: reading.fds,
                    as_of: reading.to,
                },
            );
        }
        if old != reading.table {
            self.drop_table(old);
        }
    }

    /// Takes over parent, group and session of a process.
    pub fn set_ids(&mut self, pid: Pid, ppid: Pid, pgid: Pid, sid: Pid) {
        // The kernel gives orphans away only after the exit is reported: ask again until it has.
        if self.processes.get(&ppid).is_some_and(|parent| parent.dead) {
            self.moved.insert(pid);
        }
        if let Some(process) = self.processes.get_mut(&pid) {
            (process.ppid, process.pgid, process.sid) = (ppid, pgid, sid);
        }
    }

    /// Notes that a process ended, with the status if that is known.
    pub fn end(&mut self, pid: Pid, status: Option<u32>, out: &mut Vec<Event>) {
        let Some(process) = self.processes.get_mut(&pid).filter(|p| !p.dead) else {
            return;
        };
        process.dead = true;
        process.threads = BTreeSet::from([pid]);
        let table = std::mem::take(&mut process.table);
        let (code, signal) = status.map_or((None, None), events::status);
        for &watched_root in &process.roots {
            out.push(Event::Death {
                pid,
                code,
                signal,
                watched_root,
            });
        }
        self.drop_table(table);
        self.doubtful.remove(&pid);
        self.orphan(pid);
    }

    /// Notes that nothing is left of a process.
    pub fn forget(&mut self, pid: Pid) {
        if let Some(process) = self.processes.remove(&pid) {
            self.drop_table(process.table);
            self.orphan(pid);
        }
        self.doubtful.remove(&pid);
        self.moved.remove(&pid);
    }

    /// Moves the map by one record.
    pub fn apply(&mut self, record: &Record, out: &mut Vec<Event>) {
        match record {
            Record::Fork(fork) => self.forked(fork, out),
            Record::Exec(exec) => self.executed(exec, out),
            Record::Exit(exit) => self.exited(exit, out),
            Record::Freed(head) => {
                let pid = Pid(head.tgid as i32);
                if self.processes.get(&pid).is_some_and(|p| p.dead) {
                    self.forget(pid);
                }
            }
            Record::Rename(rename) => {
                if rename.head.tid == rename.head.tgid
                    && let Some(process) = self.processes.get_mut(&Pid(rename.head.tgid as i32))
                {
                    process.comm = events::comm(&rename.comm);
                }
            }
            Record::Ids(head) => {
                self.moved.insert(Pid(head.tgid as i32));
            }
            Record::Fd(fd) => self.fd(fd, out),
            Record::Table(head) => {
                self.doubtful.insert(Pid(head.tgid as i32));
            }
            // Only iterators write these, and what iterators write is read elsewhere.
            Record::Task(_) => {}
        }
    }

    fn forked(&mut self, fork: &Fork, out: &mut Vec<Event>) {
        let (parent, child) = (Pid(fork.head.tgid as i32), Pid(fork.child_tgid as i32));
        let Some(maker) = self.processes.get_mut(&parent) else {
            // It was watched, or there would be no record: what told of it was lost.
            self.torn = true;
            return;
        };
        if child == parent {
            let tid = Pid(fork.child_tid as i32);
            maker.threads.insert(tid);
            out.push(Event::Thread { pid: parent, tid });
            return;
        }
        let (pgid, sid, roots) = (maker.pgid, maker.sid, maker.roots.clone());
        out.push(Event::Forked { parent, child });
        if let Some(known) = self.processes.get_mut(&child) {
            if known.as_of > fork.head.time {
                // It was read since; only the roots can be news.
                known.roots.extend(roots);
                return;
            }
            // An earlier process with this pid.
            self.forget(child);
        }
        let process = Process {
            ppid: Pid(fork.ppid as i32),
            pgid,
            sid,
            comm: events::comm(&fork.comm),
            threads: BTreeSet::from([Pid(fork.child_tid as i32)]),
            table: fork.files,
            dead: false,
            roots,
            as_of: fork.head.time,
        };
        if self.moved.contains(&parent) {
            self.moved.insert(child);
        }
        if fork.files != fork.parent_files {
            let theirs = self.tables.get(&fork.parent_files);
            let exact = fork.threads <= 1
                && !self.doubtful.contains(&parent)
                && theirs.is_some_and(|t| t.as_of < fork.head.time);
            let fds = theirs.map(|t| t.fds.clone()).unwrap_or_default();
            self.tables.insert(fork.files, Table { fds, as_of: 0 });
            if !exact {
                self.doubtful.insert(child);
            }
        } else if self.doubtful.contains(&parent) {
            self.doubtful.insert(child);
        }
        self.processes.insert(child, process);
    }

    fn executed(&mut self, exec: &Exec, out: &mut Vec<Event>) {
        let pid = Pid(exec.head.tgid as i32);
        let Some(process) = self.processes.get_mut(&pid) else {
            return;
        };
        process.comm = events::comm(&exec.comm);
        process.threads = BTreeSet::from([pid]);
        out.push(Event::Executed {
            pid,
            comm: process.comm.clone(),
        });
        // The table may be a new one, and lost what is closed on exec.
        self.doubtful.insert(pid);
    }

    fn exited(&mut self, exit: &Exit, out: &mut Vec<Event>) {
        let (pid, tid) = (Pid(exit.head.tgid as i32), Pid(exit.head.tid as i32));
        if exit.last != 0 {
            // A record of an earlier process with this pid must not end a newer one.
            if self
                .processes
                .get(&pid)
                .is_some_and(|p| p.as_of <= exit.head.time)
            {
                self.end(pid, Some(exit.status), out);
            }
        } else if tid != pid
            && let Some(process) = self.processes.get_mut(&pid)
        {
            // The first thread stays listed until the process ends.
            process.threads.remove(&tid);
        }
    }

    fn fd(&mut self, record: &Fd, out: &mut Vec<Event>) {
        let pid = Pid(record.head.tgid as i32);
        let Some(process) = self.processes.get(&pid).filter(|p| !p.dead) else {
            return;
        };
        if process.table != record.files {
            self.doubtful.insert(pid);
            return;
        }
        let fd = record.fd as i32;
        let table = self.tables.entry(record.files).or_default();
        let before = table.fds.get(&fd).copied();
        let after = (record.file != 0).then_some(Handle {
            file: record.file,
            inode: record.inode,
        });
        match after {
            Some(handle) => table.fds.insert(fd, handle),
            None => table.fds.remove(&fd),
        };
        if before != after {
            out.push(Event::Fd {
                pid,
                fd,
                how: How::of(record.head.call, after.is_some()),
            });
        }
    }

    /// The children of a process that ended get another parent.
    fn orphan(&mut self, parent: Pid) {
        let children = self.processes.iter().filter(|(_, p)| p.ppid == parent);
        self.moved.extend(children.map(|(&pid, _)| pid));
    }

    /// Drops a table that no process uses any more.
    fn drop_table(&mut self, table: u64) {
        if !self.processes.values().any(|p| p.table == table) {
            self.tables.remove(&table);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use freeze_common::{Head, kind};

    const SHELL: u64 = 0x100;
    const OTHER: u64 = 0x200;

    fn head(kind: u32, tgid: u32, tid: u32, time: u64) -> Head {
        Head {
            kind,
            tgid,
            tid,
            call: 0,
            time,
        }
    }

    fn fork(time: u64, threads: u32, child_tgid: u32, child_tid: u32, files: u64) -> Record {
        let head = head(kind::FORK, 1, 1, time);
        Record::Fork(Fork {
            head,
            child_tgid,
            child_tid,
            ppid: 1,
            threads,
            parent_files: SHELL,
            files,
            comm: *b"sh\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
        })
    }

    fn fd(time: u64, tgid: u32, files: u64, fd: u32, file: u64, call: u32) -> Record {
        let head = Head {
            call,
            ..head(kind::FD, tgid, tgid, time)
        };
        Record::Fd(Fd {
            head,
            files,
            file,
            inode: file + 1,
            fd,
            mode: 0,
            flags: 0,
            _pad: 0,
        })
    }

    fn exit(time: u64, tgid: u32, tid: u32, status: u32, last: u32) -> Record {
        Record::Exit(Exit {
            head: head(kind::EXIT, tgid, tid, time),
            status,
            last,
        })
    }

    /// A shell, pid 1, read at time 10 with fd 0.
    fn shell() -> LiveMap {
        let mut map = LiveMap::default();
        map.add(Pid(1), BTreeSet::from([Pid(1)]));
        assert_eq!(map.take_doubtful(), BTreeSet::from([Pid(1)]));
        map.set(
            Pid(1),
            Reading {
                ppid: Pid(0),
                pgid: Pid(1),
                sid: Pid(1),
                comm: "sh".into(),
                threads: BTreeSet::from([Pid(1)]),
                table: SHELL,
                fds: BTreeMap::from([(0, Handle { file: 7, inode: 8 })]),
                from: 10,
                to: 10,
            },
        );
        map
    }

    fn play(map: &mut LiveMap, records: &[Record]) -> Vec<Event> {
        let mut out = Vec::new();
        for record in records {
            map.apply(record, &mut out);
        }
        out
    }

    fn fds(map: &LiveMap, pid: i32) -> Vec<(i32, u64)> {
        map.fds(&map.processes()[&Pid(pid)])
            .map(|(fd, h)| (fd, h.file))
            .collect()
    }

    #[test]
    fn a_child_gets_a_copy_and_goes_its_own_way() {
        let mut map = shell();
        let events = play(
            &mut map,
            &[
                fd(11, 1, SHELL, 3, 30, 22),
                fork(12, 1, 2, 2, OTHER),
                fd(13, 1, SHELL, 3, 0, 3),
                fd(14, 2, OTHER, 0, 30, 33),
            ],
        );
        assert_eq!(fds(&map, 1), [(0, 7)]);
        assert_eq!(fds(&map, 2), [(0, 30), (3, 30)]);
        assert!(map.take_doubtful().is_empty());
        assert_eq!(
            events,
            [
                Event::Fd {
                    pid: Pid(1),
                    fd: 3,
                    how: How::Pipe
                },
                Event::Forked {
                    parent: Pid(1),
                    child: Pid(2)
                },
                Event::Fd {
                    pid: Pid(1),
                    fd: 3,
                    how: How::Closed
                },
                Event::Fd {
                    pid: Pid(2),
                    fd: 0,
                    how: How::Duplicated
                },
            ]
        );
    }

    #[test]
    fn a_copy_that_may_be_wrong_is_read() {
        for (name, time, threads) in [("table read after the fork", 9, 1), ("other threads", 12, 2)] {
            let mut map = shell();
            play(&mut map, &[fork(time, threads, 2, 2, OTHER)]);
            assert_eq!(map.take_doubtful(), BTreeSet::from([Pid(2)]), "{name}");
        }
        let mut map = shell();
        map.doubt(Pid(1));
        play(&mut map, &[fork(12, 1, 2, 2, OTHER)]);
        assert_eq!(map.take_doubtful(), BTreeSet::from([Pid(1), Pid(2)]));
    }

    #[test]
    fn a_shared_table_is_one() {
        let mut map = shell();
        play(
            &mut map,
            &[fork(12, 1, 2, 2, SHELL), fd(13, 2, SHELL, 5, 50, 257)],
        );
        assert_eq!(fds(&map, 1), [(0, 7), (5, 50)]);
        play(&mut map, &[exit(14, 2, 2, 0, 1)]);
        assert_eq!(fds(&map, 1), [(0, 7), (5, 50)]);
        assert!(fds(&map, 2).is_empty());
    }

    #[test]
    fn an_unknown_table_or_maker_is_looked_into() {
        let mut map = shell();
        play(&mut map, &[fd(12, 1, OTHER, 3, 30, 2)]);
        assert_eq!(map.take_doubtful(), BTreeSet::from([Pid(1)]));
        assert!(!map.take_torn());
        let mut stranger = fork(13, 1, 3, 3, OTHER);
        let Record::Fork(f) = &mut stranger else {
            unreachable!()
        };
        f.head.tgid = 2;
        play(&mut map, &[stranger]);
        assert!(map.take_torn());
    }

    #[test]
    fn threads_come_and_go_and_the_last_is_the_death() {
        let mut map = shell();
        play(
            &mut map,
            &[
                fork(11, 1, 1, 5, SHELL),
                fork(12, 2, 1, 6, SHELL),
                exit(13, 1, 5, 0, 0),
            ],
        );
        assert_eq!(map.processes()[&Pid(1)].threads, BTreeSet::from([Pid(1), Pid(6)]));
        let events = play(
            &mut map,
            &[exit(14, 1, 1, 9, 0), exit(15, 1, 6, 9, 1), exit(15, 1, 6, 9, 1)],
        );
        let death = Event::Death {
            pid: Pid(1),
            code: None,
            signal: Some(9),
            watched_root: Pid(1),
        };
        assert!(death.is_abnormal_death());
        assert_eq!(
            events,
            [death],
            "once, though two threads saw themselves as the last"
        );
        play(&mut map, &[Record::Freed(head(kind::FREED, 1, 1, 16))]);
        assert_eq!(map, LiveMap::default());
    }

    #[test]
    fn a_reused_pid_is_a_new_process() {
        let mut map = shell();
        play(
            &mut map,
            &[
                fork(11, 1, 2, 2, OTHER),
                exit(12, 2, 2, 0, 1),
                fork(20, 1, 2, 2, 0x300),
            ],
        );
        // Late news of the first.
        let events = play(
            &mut map,
            &[exit(12, 2, 2, 0, 1), Record::Freed(head(kind::FREED, 2, 2, 12))],
        );
        assert!(events.is_empty());
        assert_eq!(fds(&map, 2), [(0, 7)]);
    }

    #[test]
    fn orphans_are_asked_for_until_they_have_a_living_parent() {
        let mut map = shell();
        play(&mut map, &[fork(11, 1, 2, 2, OTHER), exit(12, 1, 1, 0, 1)]);
        assert_eq!(map.take_moved(), BTreeSet::from([Pid(2)]));
        map.set_ids(Pid(2), Pid(1), Pid(1), Pid(1));
        assert_eq!(map.take_moved(), BTreeSet::from([Pid(2)]));
        map.set_ids(Pid(2), Pid(99), Pid(1), Pid(1));
        assert!(map.take_moved().is_empty());
        assert_eq!(map.processes()[&Pid(2)].ppid, Pid(99));
    }

    #[test]
    fn a_process_is_kept_as_long_as_a_root_wants_it() {
        let mut map = shell();
        play(&mut map, &[fork(11, 1, 2, 2, OTHER)]);
        map.add(Pid(2), BTreeSet::from([Pid(2)]));
        assert_eq!(map.remove_root(Pid(1)), [Pid(1)]);
        assert_eq!(map.remove_root(Pid(2)), [Pid(2)]);
        assert!(map.processes().is_empty() && map.tables.is_empty());
    }

    #[test]
    fn racing_records_end_at_the_truth() {
        // Two threads: close(3) by one, then open() = 3 by the other; both were reserved after both changes.
        let mut map = shell();
        play(
            &mut map,
            &[fd(12, 1, SHELL, 3, 33, 257), fd(11, 1, SHELL, 3, 33, 3)],
        );
        assert_eq!(fds(&map, 1), [(0, 7), (3, 33)]);
    }
}
