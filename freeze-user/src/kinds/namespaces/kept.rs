//! What outside the set keeps a namespace alive: processes that live in it, or a file that it is mounted on.

use super::Namespace;
use crate::ids::Pid;
use crate::nest::space::Kind;
use crate::observe::foreign::namespace_bound;
use crate::observe::tree::{MountLine, parse_mounts};
use crate::observe::view::{View, all_pids, speaker};
use crate::proc::stat::Stat;
use crate::sys::ns;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// A process by its pid and when it started, and the namespace's inode while it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outsider {
    pub pid: Pid,
    pub started: u64,
    pub inode: u64,
}

/// A file that a namespace is mounted on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    #[serde(with = "crate::ospath")]
    pub at: PathBuf,
}

/// What outside the checkpoint keeps a namespace alive: a process, or a file that it is mounted on.
pub(super) fn living(namespace: &Namespace) -> Option<PathBuf> {
    let name = namespace.kind.name();
    if let Some(pid) = still_kept(namespace.kind, &namespace.outside) {
        return Some(format!("/proc/{}/ns/{name}", speaker(pid)).into());
    }
    let lines = parse_mounts(&std::fs::read("/proc/thread-self/mountinfo").ok()?);
    let at = &namespace.bound.as_ref()?.at;
    let is_one = |line: &MountLine| namespace_bound(line).is_some_and(|(kind, _)| kind == name);
    let here = |line: &MountLine| at.as_os_str().as_bytes() == line.at && ns::mount_id(at) == Ok(line.id);
    lines
        .iter()
        .any(|line| is_one(line) && here(line))
        .then(|| at.clone())
}

/// The processes outside the set that keep a namespace alive, by which it is found again.
pub(in crate::kinds) fn keepers(view: &View, kind: Kind, inode: u64) -> Vec<Outsider> {
    outsiders(view, kind, inode)
}

/// Where freeze's own tree has a namespace mounted, by which it outlives the set. What others do in it is theirs alone
/// where that is a network or a name; objects of System V would be there twice.
pub(super) fn bound(kind: Kind, inode: u64) -> Option<Bound> {
    if !matches!(kind, Kind::Net | Kind::Uts) {
        return None;
    }
    let lines = parse_mounts(&std::fs::read("/proc/thread-self/mountinfo").ok()?);
    let mut here = lines
        .iter()
        .filter(|line| namespace_bound(line) == Some((kind.name().to_owned(), inode)));
    here.find_map(|line| {
        let at = PathBuf::from(OsStr::from_bytes(&line.at));
        (ns::mount_id(&at) == Ok(line.id)).then_some(Bound { at })
    })
}

/// Whether a namespace lives on without the set.
pub(super) fn is_kept(kind: Kind, inode: u64, view: &View) -> bool {
    bound(kind, inode).is_some() || !outsiders(view, kind, inode).is_empty()
}

/// Whether a namespace of the set goes when the set does.
pub(in crate::kinds) fn ends_with(kind: Kind, namespace: &OwnedFd, view: &View) -> bool {
    let Ok((_, inode)) = crate::sys::dev_ino(namespace) else {
        return false;
    };
    view.foreign.contains_key(&(kind.name().to_owned(), inode)) && !is_kept(kind, inode, view)
}

/// All namespaces of a kind other than freeze's that somebody lives in or that are mounted somewhere in freeze's tree.
pub(in crate::kinds) fn visible(kind: Kind) -> Vec<OwnedFd> {
    let lived_in = all_pids().unwrap_or_default().into_iter();
    let lived_in = lived_in.map(|pid| PathBuf::from(format!("/proc/{}/ns/{}", speaker(pid), kind.name())));
    let lines = parse_mounts(&std::fs::read("/proc/thread-self/mountinfo").unwrap_or_default());
    let is_one = |l: &&MountLine| namespace_bound(l).is_some_and(|(k, _)| k == kind.name());
    let mounted = lines.iter().filter(is_one);
    let mounted = mounted.map(|l| PathBuf::from(OsStr::from_bytes(&l.at)));
    let own = std::fs::metadata(format!("/proc/thread-self/ns/{}", kind.name())).map(|m| m.ino());
    let mut seen: BTreeSet<u64> = own.into_iter().collect();
    let found = lived_in.chain(mounted).filter_map(|path| {
        let inode = std::fs::metadata(&path).ok()?.ino();
        seen.insert(inode).then(|| File::open(&path).ok())?
    });
    found.map(OwnedFd::from).collect()
}

/// One of the processes that kept a namespace alive, if it still does.
pub(in crate::kinds) fn still_kept(kind: Kind, keepers: &[Outsider]) -> Option<Pid> {
    let alive = keepers
        .iter()
        .find(|o| started(o.pid) == Some(o.started) && space_of(o.pid, kind) == Some(o.inode));
    alive.map(|o| o.pid)
}

/// Who outside the set lives in a namespace.
pub(super) fn outsiders(view: &View, kind: Kind, inode: u64) -> Vec<Outsider> {
    let own = Pid(std::process::id() as i32);
    let pids = all_pids().unwrap_or_default();
    let outside = pids
        .into_iter()
        .filter(|pid| *pid != own && view.get(*pid).is_none());
    outside
        .filter(|pid| space_of(*pid, kind) == Some(inode))
        .filter_map(|pid| {
            Some(Outsider {
                pid,
                started: started(pid)?,
                inode,
            })
        })
        .collect()
}

fn space_of(pid: Pid, kind: Kind) -> Option<u64> {
    let told_by = |pid: Pid| std::fs::metadata(format!("/proc/{pid}/ns/{}", kind.name()));
    // A first thread that has ended is in none, and others may live on.
    let told = told_by(pid).or_else(|_| told_by(speaker(pid))).ok()?;
    Some(told.ino())
}

fn started(pid: Pid) -> Option<u64> {
    Some(Stat::parse(&std::fs::read(format!("/proc/{pid}/stat")).ok()?)?.start_time)
}
