//! The same of processes as the live map keeps, read from /proc alone, and the differences between the two.

use crate::error::Result;
use crate::ids::Pid;
use crate::observe::livemap::Handle;
use crate::observe::observer::is_dead;
use crate::observe::view;
use crate::proc::fdinfo::FdInfo;
use crate::proc::stat::Stat;
use crate::sys::{self, Kcmp};
use serde::Serialize;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// What is compared of one process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub ppid: Pid,
    pub pgid: Pid,
    pub sid: Pid,
    pub comm: String,
    pub threads: BTreeSet<Pid>,
    pub dead: bool,
    pub fds: BTreeMap<i32, Handle>,
}

/// A set of processes at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    pub processes: BTreeMap<Pid, Entry>,
}

/// One thing that the live map and /proc do not agree on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    pub pid: Pid,
    /// What it is about: `process`, `parent`, `threads`, `fd 7`.
    pub what: String,
    pub map: String,
    pub proc: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "pid {}, {}: the map says {}, /proc says {}",
            self.pid, self.what, self.map, self.proc
        )
    }
}

impl Snapshot {
    /// Reads a process, its descendants and `others` from /proc; who ends meanwhile is left out.
    pub fn read(root: Pid, others: &[Pid]) -> Result<Snapshot> {
        let parents = view::parents()?;
        let mut group: BTreeSet<Pid> = others.iter().copied().chain([root]).collect();
        while let Some(&(child, _)) = parents
            .iter()
            .find(|(child, parent)| group.contains(parent) && !group.contains(child))
        {
            group.insert(child);
        }
        let mut out = Snapshot::default();
        let mut speakers = BTreeMap::new();
        for pid in group {
            if let Some((entry, speaker)) = read_process(pid) {
                out.processes.insert(pid, entry);
                speakers.insert(pid, speaker);
            }
        }
        out.number_files(&speakers);
        Ok(out)
    }

    /// Gives equal numbers to the fds that share an open file description, by kcmp(2).
    fn number_files(&mut self, speakers: &BTreeMap<Pid, Pid>) {
        // Only fds of one inode can share; most inodes are open once.
        let mut by_inode: BTreeMap<u64, Vec<(Pid, i32)>> = BTreeMap::new();
        for (&pid, entry) in &self.processes {
            for (&fd, handle) in &entry.fds {
                by_inode.entry(handle.inode).or_default().push((pid, fd));
            }
        }
        let order = |a: (Pid, i32), b: (Pid, i32)| {
            sys::kcmp(speakers[&a.0], speakers[&b.0], Kcmp::File, a.1 as u64, b.1 as u64)
        };
        let mut next = 0;
        for fds in by_inode.into_values() {
            // One fd of each description with its number, in the kernel's own order.
            let mut known: Vec<((Pid, i32), u64)> = Vec::new();
            for fd in fds {
                // Where kcmp is not granted, or the fd was closed meanwhile, it stands alone.
                let place = known.binary_search_by(|&(other, _)| order(other, fd).unwrap_or(Ordering::Less));
                let number = place.map(|at| known[at].1).unwrap_or_else(|at| {
                    next += 1;
                    known.insert(at, (fd, next));
                    next
                });
                if let Some(handle) = self.processes.get_mut(&fd.0).and_then(|e| e.fds.get_mut(&fd.1)) {
                    handle.file = number;
                }
            }
        }
    }

    /// For each fd the first one, by process and number, that shares its description.
    fn first_sharers(&self) -> BTreeMap<(Pid, i32), (Pid, i32)> {
        let mut first: BTreeMap<(u64, u64), (Pid, i32)> = BTreeMap::new();
        let mut out = BTreeMap::new();
        for (&pid, entry) in &self.processes {
            for (&fd, handle) in &entry.fds {
                out.insert(
                    (pid, fd),
                    *first.entry((handle.file, handle.inode)).or_insert((pid, fd)),
                );
            }
        }
        out
    }
}

/// A process from /proc, and the thread that can be asked about its fds.
fn read_process(pid: Pid) -> Option<(Entry, Pid)> {
    let stat = Stat::parse(&std::fs::read(format!("/proc/{pid}/stat")).ok()?)?;
    let dead = is_dead(&stat);
    let threads = numbers(&format!("/proc/{pid}/task"))?
        .into_iter()
        .map(Pid)
        .collect::<BTreeSet<Pid>>();
    // A first thread that ended before the others has no fd table any more.
    let other = threads.iter().copied().find(|&tid| tid != pid);
    let speaker = if stat.is_zombie() {
        other.unwrap_or(pid)
    } else {
        pid
    };
    let mut fds = BTreeMap::new();
    if !dead {
        for fd in numbers(&format!("/proc/{pid}/task/{speaker}/fd"))? {
            let text = std::fs::read_to_string(format!("/proc/{pid}/task/{speaker}/fdinfo/{fd}"));
            if let Some(info) = text.ok().and_then(|t| FdInfo::parse(&t)) {
                fds.insert(
                    fd,
                    Handle {
                        file: 0,
                        inode: info.ino,
                    },
                );
            }
        }
    }
    let entry = Entry {
        ppid: Pid(stat.ppid),
        pgid: Pid(stat.pgrp),
        sid: Pid(stat.session),
        comm: String::from_utf8_lossy(&stat.comm).into_owned(),
        threads,
        dead,
        fds,
    };
    Some((entry, speaker))
}

/// The names in a directory that are numbers.
fn numbers(path: &str) -> Option<Vec<i32>> {
    let names = std::fs::read_dir(path).ok()?;
    Some(
        names
            .flatten()
            .filter_map(|e| e.file_name().to_str()?.parse().ok())
            .collect(),
    )
}

/// Everything in which the map and /proc differ.
pub fn difference(map: &Snapshot, proc: &Snapshot) -> Vec<Difference> {
    let mut out = Vec::new();
    let (map_sharers, proc_sharers) = (map.first_sharers(), proc.first_sharers());
    let all: BTreeSet<Pid> = map
        .processes
        .keys()
        .chain(proc.processes.keys())
        .copied()
        .collect();
    for pid in all {
        let mut note = |what: &str, map: String, proc: String| {
            if map != proc {
                out.push(Difference {
                    pid,
                    what: what.to_owned(),
                    map,
                    proc,
                });
            }
        };
        let (m, p) = match (map.processes.get(&pid), proc.processes.get(&pid)) {
            (Some(m), Some(p)) => (m, p),
            (m, p) => {
                let there = |e: Option<&Entry>| if e.is_some() { "there" } else { "none" }.to_owned();
                note("process", there(m), there(p));
                continue;
            }
        };
        let state = |e: &Entry| if e.dead { "dead" } else { "alive" }.to_owned();
        note("state", state(m), state(p));
        // A parent outside the set can change without a record, and matters to nobody here.
        let inside = |s: &Snapshot, e: &Entry| s.processes.contains_key(&e.ppid);
        if inside(map, m) || inside(proc, p) {
            note("parent", m.ppid.to_string(), p.ppid.to_string());
        }
        note("process group", m.pgid.to_string(), p.pgid.to_string());
        note("session", m.sid.to_string(), p.sid.to_string());
        note("name", m.comm.clone(), p.comm.clone());
        note("threads", list(&m.threads), list(&p.threads));
        let fds: BTreeSet<i32> = m.fds.keys().chain(p.fds.keys()).copied().collect();
        for fd in fds {
            let say = |e: &Entry, sharers: &BTreeMap<(Pid, i32), (Pid, i32)>| match e.fds.get(&fd) {
                None => "closed".to_owned(),
                Some(handle) => {
                    let (pid, first) = sharers[&(pid, fd)];
                    format!("inode {} as fd {first} of {pid}", handle.inode)
                }
            };
            note(&format!("fd {fd}"), say(m, &map_sharers), say(p, &proc_sharers));
        }
    }
    out
}

fn list(pids: &BTreeSet<Pid>) -> String {
    pids.iter()
        .map(|pid| pid.to_string())
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(ppid: i32, fds: &[(i32, u64, u64)]) -> Entry {
        Entry {
            ppid: Pid(ppid),
            pgid: Pid(1),
            sid: Pid(1),
            comm: "x".into(),
            threads: BTreeSet::from([Pid(1)]),
            dead: false,
            fds: fds
                .iter()
                .map(|&(fd, file, inode)| (fd, Handle { file, inode }))
                .collect(),
        }
    }

    fn set(list: &[(i32, Entry)]) -> Snapshot {
        Snapshot {
            processes: list.iter().map(|(pid, e)| (Pid(*pid), e.clone())).collect(),
        }
    }

    #[test]
    fn numbers_of_descriptions_do_not_matter_but_sharing_does() {
        let map = set(&[
            (1, entry(0, &[(0, 700, 5), (1, 700, 5)])),
            (2, entry(1, &[(0, 800, 5)])),
        ]);
        let same = set(&[
            (1, entry(9, &[(0, 1, 5), (1, 1, 5)])),
            (2, entry(1, &[(0, 2, 5)])),
        ]);
        assert_eq!(difference(&map, &same), []);
        let apart = set(&[
            (1, entry(0, &[(0, 1, 5), (1, 2, 5)])),
            (2, entry(1, &[(0, 2, 5)])),
        ]);
        let said: Vec<String> = difference(&map, &apart).iter().map(|d| d.to_string()).collect();
        assert_eq!(
            said,
            [
                "pid 1, fd 1: the map says inode 5 as fd 0 of 1, /proc says inode 5 as fd 1 of 1",
                "pid 2, fd 0: the map says inode 5 as fd 0 of 2, /proc says inode 5 as fd 1 of 1",
            ]
        );
    }

    #[test]
    fn every_field_is_compared() {
        let map = set(&[(1, entry(0, &[])), (2, entry(1, &[]))]);
        let changes: [fn(&mut Entry); 7] = [
            |e| e.ppid = Pid(7),
            |e| e.pgid = Pid(7),
            |e| e.sid = Pid(7),
            |e| e.comm.push('y'),
            |e| e.threads = BTreeSet::new(),
            |e| e.dead = true,
            |e| e.fds = BTreeMap::from([(3, Handle { file: 1, inode: 1 })]),
        ];
        for change in changes {
            let mut other = map.clone();
            change(other.processes.get_mut(&Pid(2)).unwrap());
            assert_eq!(difference(&map, &other).len(), 1);
        }
        assert_eq!(difference(&map, &set(&[(1, entry(0, &[]))])).len(), 1);
    }
}
