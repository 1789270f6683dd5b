//! The map of one group of processes for people and machines: the tree, and what joins whom.

use crate::error::{Error, Result};
use crate::ids::{Pid, Range};
use crate::observe::audit::Snapshot;
use crate::observe::sockets::{self, Socket};
use crate::observe::view::{self, Depth};
use nix::errno::Errno;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

/// Where the processes and fds of a map are known from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// Kept current by kernel events.
    Events,
    /// Read from /proc once.
    Proc,
}

/// One fd.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FdEntry {
    pub fd: i32,
    /// Its open file description, numbered within this map.
    pub file: u32,
    /// What it stands for, as /proc names it now.
    pub target: String,
}

/// One process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ProcessEntry {
    pub pid: Pid,
    pub ppid: Pid,
    pub pgid: Pid,
    pub sid: Pid,
    pub comm: String,
    /// Ended, and not yet waited for.
    pub dead: bool,
    pub threads: Vec<Pid>,
    pub fds: Vec<FdEntry>,
}

/// An fd of a process, as `pid:fd`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Holder {
    pub pid: Pid,
    pub fd: i32,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.pid, self.fd)
    }
}

/// An open file description that more than one fd stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Shared {
    pub file: u32,
    pub target: String,
    pub holders: Vec<Holder>,
}

/// A pipe, or two sockets that are joined, with those who hold each end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Joint {
    /// `pipe:[…]`, a FIFO's path, or the addresses of a connection.
    pub object: String,
    /// Who can write to it (a pipe), or holds the one socket.
    pub from: Vec<Holder>,
    /// Who can read from it (a pipe), or holds the other socket.
    pub to: Vec<Holder>,
}

/// A mapping of a shared memory object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mapping {
    pub pid: Pid,
    pub range: Range,
    pub writable: bool,
}

/// Memory that more than one mapping shows, or may show.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SharedMemory {
    /// A path, `/memfd:…`, `/SYSV…`, `/dev/zero` for anonymous shared memory.
    pub object: String,
    pub inode: u64,
    pub mappings: Vec<Mapping>,
}

/// A group of processes and what joins them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MapView {
    pub root: Pid,
    pub source: Source,
    pub processes: Vec<ProcessEntry>,
    pub shared: Vec<Shared>,
    pub joints: Vec<Joint>,
    pub memory: Vec<SharedMemory>,
}

impl MapView {
    /// The map of a process and its descendants, read from /proc alone.
    pub fn from_proc(root: Pid) -> Result<MapView> {
        let snapshot = Snapshot::read(root, &[])?;
        if !snapshot.processes.contains_key(&root) {
            return Err(Error::kernel("read", format!("pid {root}"), Errno::ESRCH));
        }
        Ok(MapView::of(root, Source::Proc, &snapshot))
    }

    /// What joins the processes of a snapshot. Names, mappings and addresses are those /proc has now.
    pub(super) fn of(root: Pid, source: Source, snapshot: &Snapshot) -> MapView {
        let mut numbers: HashMap<(u64, u64), u32> = HashMap::new();
        let mut processes = Vec::new();
        for (&pid, entry) in &snapshot.processes {
            let mut fds = Vec::new();
            for (&fd, handle) in &entry.fds {
                let next = numbers.len() as u32;
                let file = *numbers.entry((handle.file, handle.inode)).or_insert(next);
                fds.push(FdEntry {
                    fd,
                    file,
                    target: target(pid, &entry.threads, fd, handle.inode),
                });
            }
            processes.push(ProcessEntry {
                pid,
                ppid: entry.ppid,
                pgid: entry.pgid,
                sid: entry.sid,
                comm: entry.comm.clone(),
                dead: entry.dead,
                threads: entry.threads.iter().copied().collect(),
                fds,
            });
        }
        let shared = shared(&processes);
        let joints = joints(&processes);
        let memory = memory(&processes);
        MapView {
            root,
            source,
            processes,
            shared,
            joints,
            memory,
        }
    }
}

/// What an fd stands for, as /proc names it; a placeholder if it is closed by now.
fn target(pid: Pid, threads: &BTreeSet<Pid>, fd: i32, inode: u64) -> String {
    // The last thread has the fd table even if the first has ended.
    let tid = threads.last().copied().unwrap_or(pid);
    match std::fs::read_link(format!("/proc/{pid}/task/{tid}/fd/{fd}")) {
        Ok(path) => path.to_string_lossy().into_owned(),
        Err(_) => format!("inode:[{inode}]"),
    }
}

fn all_fds(processes: &[ProcessEntry]) -> impl Iterator<Item = (Holder, &FdEntry)> {
    processes.iter().flat_map(|p| {
        p.fds.iter().map(|fd| {
            (
                Holder {
                    pid: p.pid,
                    fd: fd.fd,
                },
                fd,
            )
        })
    })
}

fn shared(processes: &[ProcessEntry]) -> Vec<Shared> {
    let mut by_file: BTreeMap<u32, Shared> = BTreeMap::new();
    for (holder, fd) in all_fds(processes) {
        by_file
            .entry(fd.file)
            .or_insert_with(|| Shared {
                file: fd.file,
                target: fd.target.clone(),
                holders: Vec::new(),
            })
            .holders
            .push(holder);
    }
    by_file.into_values().filter(|s| s.holders.len() > 1).collect()
}

/// `N` of `kind:[N]`.
fn number(target: &str, kind: &str) -> Option<u64> {
    target
        .strip_prefix(kind)?
        .strip_prefix(":[")?
        .strip_suffix(']')?
        .parse()
        .ok()
}

fn joints(processes: &[ProcessEntry]) -> Vec<Joint> {
    let mut pipes: BTreeMap<&str, Joint> = BTreeMap::new();
    let mut sockets: BTreeMap<u64, Vec<Holder>> = BTreeMap::new();
    for (holder, fd) in all_fds(processes) {
        if let Some(inode) = number(&fd.target, "socket") {
            sockets.entry(inode).or_default().push(holder);
        } else if number(&fd.target, "pipe").is_some() {
            let new = || Joint {
                object: fd.target.clone(),
                from: Vec::new(),
                to: Vec::new(),
            };
            let joint = pipes.entry(&fd.target).or_insert_with(new);
            match access(holder) {
                Some(libc::O_RDONLY) => joint.to.push(holder),
                Some(libc::O_WRONLY) => joint.from.push(holder),
                _ => {
                    joint.from.push(holder);
                    joint.to.push(holder);
                }
            }
        }
    }
    let mut out: Vec<Joint> = pipes.into_values().collect();
    let Some(first) = processes.iter().find(|p| !p.dead).filter(|_| !sockets.is_empty()) else {
        return out;
    };
    let known = sockets::read(first.pid);
    let by_addresses: HashMap<_, u64> = sockets
        .keys()
        .filter_map(|inode| match known.get(inode)? {
            Socket::Inet {
                protocol,
                local,
                remote,
                ..
            } => Some(((*protocol, *local, *remote), *inode)),
            Socket::Unix { .. } => None,
        })
        .collect();
    for (&inode, holders) in &sockets {
        let (object, peer) = match known.get(&inode) {
            Some(Socket::Unix { name, peer }) => {
                (format!("unix {}", name.as_deref().unwrap_or("(unnamed)")), *peer)
            }
            Some(Socket::Inet {
                protocol,
                local,
                remote,
                ..
            }) => {
                let peer = by_addresses.get(&(*protocol, *remote, *local)).copied();
                let connected = remote.port() != 0;
                let object = if connected {
                    format!("{protocol} {local} → {remote}")
                } else {
                    format!("{protocol} {local}")
                };
                (object, peer.filter(|_| connected))
            }
            None => (format!("socket:[{inode}]"), None),
        };
        let other = peer
            .filter(|&p| p != inode)
            .and_then(|p| sockets.get(&p).map(|h| (p, h)));
        // A pair is told once.
        if other.is_some_and(|(p, _)| p < inode) {
            continue;
        }
        let to = other.map(|(_, h)| h.clone()).unwrap_or_default();
        out.push(Joint {
            object,
            from: holders.clone(),
            to,
        });
    }
    out
}

/// The access mode of an fd, which never changes.
fn access(holder: Holder) -> Option<i32> {
    let fd = view::read_fd(holder.pid, holder.fd).ok()?;
    Some(fd.flags() & libc::O_ACCMODE)
}

fn memory(processes: &[ProcessEntry]) -> Vec<SharedMemory> {
    let mut objects: BTreeMap<((u32, u32), u64), SharedMemory> = BTreeMap::new();
    for process in processes.iter().filter(|p| !p.dead) {
        for vma in view::read_vmas(process.pid, Depth::Maps).unwrap_or_default() {
            if vma.shared && vma.inode != 0 {
                let new = || SharedMemory {
                    object: vma.label(),
                    inode: vma.inode,
                    mappings: Vec::new(),
                };
                let object = objects.entry((vma.dev, vma.inode)).or_insert_with(new);
                object.mappings.push(Mapping {
                    pid: process.pid,
                    range: vma.range(),
                    writable: vma.write,
                });
            }
        }
    }
    objects.into_values().collect()
}

impl fmt::Display for MapView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known: BTreeSet<Pid> = self.processes.iter().map(|p| p.pid).collect();
        for process in self.processes.iter().filter(|p| !known.contains(&p.ppid)) {
            self.branch(f, process, 0)?;
        }
        section(f, "shared open files", &self.shared, |f, s| {
            write!(f, "{}: {}", s.target, join(&s.holders, " = "))
        })?;
        section(f, "pipes and sockets", &self.joints, |f, j| {
            let end = |h: &[Holder]| {
                if h.is_empty() {
                    "(outside)".to_owned()
                } else {
                    join(h, ", ")
                }
            };
            write!(f, "{}: {} → {}", j.object, end(&j.from), end(&j.to))
        })?;
        section(f, "shared memory", &self.memory, |f, m| {
            write!(f, "{} (inode {}):", m.object, m.inode)?;
            for mapping in &m.mappings {
                let mode = if mapping.writable { "rw" } else { "ro" };
                write!(f, "\n    {} at {} {mode}", mapping.pid, mapping.range)?;
            }
            Ok(())
        })
    }
}

impl MapView {
    /// A process and below it, one step further in, its children.
    fn branch(&self, f: &mut fmt::Formatter<'_>, process: &ProcessEntry, depth: usize) -> fmt::Result {
        let indent = "  ".repeat(depth);
        write!(f, "{indent}{} {}", process.pid, process.comm)?;
        if process.dead {
            return writeln!(f, " (ended, not waited for)");
        }
        write!(f, "  group {} session {}", process.pgid, process.sid)?;
        if process.threads.len() > 1 {
            let others: Vec<Pid> = process
                .threads
                .iter()
                .copied()
                .filter(|&t| t != process.pid)
                .collect();
            write!(f, "  {} threads: +{}", process.threads.len(), join(&others, " +"))?;
        }
        writeln!(f)?;
        for fd in &process.fds {
            writeln!(f, "{indent}  fd {:<3} {}", fd.fd, fd.target)?;
        }
        // A process is not its own ancestor, and the depth is bounded by their number.
        for child in self
            .processes
            .iter()
            .filter(|c| c.ppid == process.pid && c.pid != process.pid)
        {
            self.branch(f, child, depth + 1)?;
        }
        Ok(())
    }
}

/// A heading and its lines, if there are any.
fn section<T>(
    f: &mut fmt::Formatter<'_>,
    name: &str,
    items: &[T],
    line: impl Fn(&mut fmt::Formatter<'_>, &T) -> fmt::Result,
) -> fmt::Result {
    if !items.is_empty() {
        writeln!(f, "{name}:")?;
    }
    for item in items {
        f.write_str("  ")?;
        line(f, item)?;
        writeln!(f)?;
    }
    Ok(())
}

fn join<T: fmt::Display>(items: &[T], between: &str) -> String {
    items.iter().map(T::to_string).collect::<Vec<_>>().join(between)
}
