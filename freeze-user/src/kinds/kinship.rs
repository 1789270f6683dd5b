//! Kinship: pids, parents, sessions and process groups, from which the nest forks the processes.

use super::{ProcessKind, Source, Stage};
use crate::error::{Blocker, Result};
use crate::ids::Pid;
use crate::nest::family::{Family, Remains, Shares};
use crate::nest::space::{Kind, Membership};
use crate::nest::{Nest, Options};
use crate::observe::sharing::TABLES;
use crate::observe::view::{ProcessView, View};
use crate::store::Draft;
use crate::sys;
use std::cmp::Ordering;
use std::collections::BTreeMap;

#[derive(Debug)]
pub struct Kinship;

/// The place that a refusal for memory shared between processes names; a vfork is over in a moment.
const SHARED_MEMORY: &str = "its memory (vfork)";

impl ProcessKind for Kinship {
    const TAG: &'static str = "kinship";
    const VERSION: u16 = 1;
    const ABOUT: &'static str = "process and thread ids, parent and children, session and process group, \
        exit signal, zombies, tables shared between processes (CLONE_VM, CLONE_FILES, CLONE_FS, CLONE_SIGHAND)";
    const STAGE: Stage = Stage::Birth;
    type Record = Family;

    fn verdict(p: &ProcessView, view: &View, out: &mut Vec<Blocker>) {
        if p.speaker != p.pid && !crate::sys::has_thread_pidfds() {
            out.push(
                p.blocker("", "a process whose first thread has ended")
                    .why("this kernel gives no way to its descriptors (PIDFD_THREAD, Linux 6.9)")
                    .remedy("checkpoint it under a newer kernel"),
            );
        }
        if p.is_dead() && view.get(Pid(p.stat.ppid)).is_none() {
            let why =
                "it is a zombie whose parent is not part of the checkpoint: there is nothing of it to carry";
            out.push(
                p.blocker("", "a zombie")
                    .why(why)
                    .remedy("let its parent reap it (wait)"),
            );
        }
        if !p.is_dead() {
            shared_tables(p, view, out);
        }
    }

    fn collect(from: &mut Source<'_>) -> Result<Family> {
        let mut family = family(&from.process.view, from.view);
        family.continued = continued(from)?;
        Ok(family)
    }

    fn precheck(_: &Family, _: Pid, _: &Options, _: &mut Vec<Blocker>) {}

    fn restore(_: &Family, _: Pid, _: &mut Nest) -> Result<()> {
        // The nest was made from these records before any stage began.
        Ok(())
    }
}

fn family(p: &ProcessView, view: &View) -> Family {
    Family {
        pid: p.pid,
        parent: Pid(p.stat.ppid),
        pgid: Pid(p.stat.pgrp),
        sid: Pid(p.stat.session),
        root: roots(p, view),
        tids: p.threads.iter().map(|t| t.tid).filter(|t| *t != p.pid).collect(),
        ended: p.is_dead().then_some(p.stat.exit_code),
        exit_signal: match roots(p, view) {
            // Its parent will be whoever restores it.
            true => libc::SIGCHLD,
            false => p.stat.exit_signal,
        },
        shares: view.sharing.get(&p.pid).and_then(|s| {
            Some(Shares {
                with: s.with?,
                tables: s.tables,
            })
        }),
        remains: p.is_dead().then(|| Remains {
            uid: p.status.uid,
            gid: p.status.gid,
            name: p.stat.comm.clone(),
        }),
        continued: Vec::new(),
        spaces: membership(p, view),
        ids: nested(&p.status.ns_pid),
        tid_ids: p
            .threads
            .iter()
            .filter(|t| t.tid != p.pid)
            .map(|t| nested(&t.status.ns_pid))
            .collect(),
        sid_ids: nested(&p.status.ns_sid),
        pgid_ids: nested(&p.status.ns_pgid),
        time_for_children: {
            let (own, children) = (view.namespace(p, "time"), view.namespace(p, "time_for_children"));
            (own != children && p.namespaces.contains_key("time_for_children")).then_some(children)
        },
    }
}

/// The children of which the process would still be told that they go on after a stop.
fn continued(from: &mut Source<'_>) -> Result<Vec<Pid>> {
    let pid = from.process.pid();
    let runs = |p: &&ProcessView| p.stat.ppid == pid.0 && !p.is_dead();
    let children: Vec<(Pid, i32)> = from
        .view
        .each()
        .filter(runs)
        .map(|p| (p.pid, p.status.ns_tgid.last().copied().unwrap_or(p.pid.0)))
        .collect();
    let mut out = Vec::new();
    for some in children.chunks(64) {
        let (ran, slots) = from.process.tape(|t| {
            let how = libc::WCONTINUED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
            let mut ask = |inner: i32| {
                let at = t.space(128);
                let args = [u64::from(libc::P_PID), inner as u64, at, how as u64, 0];
                t.try_call("waitid", libc::SYS_waitid, &args);
                at
            };
            some.iter().map(|(_, inner)| ask(*inner)).collect::<Vec<u64>>()
        })?;
        // siginfo: the signal is left 0 if there is nothing to tell.
        let told = some.iter().zip(slots).filter(|(_, at)| ran.word(*at) != 0);
        out.extend(told.map(|((pid, _), _)| *pid));
    }
    Ok(out)
}

fn roots(p: &ProcessView, view: &View) -> bool {
    view.get(Pid(p.stat.ppid)).is_none()
}

/// Two processes that share a table must get it back shared, which clone(2) grants to a child or a younger sibling.
fn shared_tables(p: &ProcessView, view: &View, out: &mut Vec<Blocker>) {
    let parent = Pid(p.stat.ppid);
    let words = |tables: u64| {
        let named = TABLES.iter().filter(|(_, flag, _)| tables & flag != 0);
        named.map(|(.., name)| *name).collect::<Vec<_>>().join(", ")
    };
    if view.get(parent).is_none() {
        // Init has no tables that a process could have.
        let with = |what| parent.0 > 1 && sys::kcmp(p.speaker, parent, what, 0, 0).is_ok_and(Ordering::is_eq);
        for (_, flag, name) in TABLES.iter().filter(|(what, ..)| with(*what)) {
            let blocker = match *flag == libc::CLONE_VM as u64 {
                true => p.blocker("", SHARED_MEMORY).passing(),
                false => p.blocker("", *name),
            };
            out.push(
                blocker
                    .why(format!(
                        "it is shared with its parent {parent}, which is not part of the checkpoint"
                    ))
                    .remedy("checkpoint the parent, or try again when the program has executed another"),
            );
        }
        return;
    }
    let Some(sharing) = view.sharing.get(&p.pid) else {
        return;
    };
    let waits = |q: &ProcessView| q.threads.iter().any(|t| t.stat.state == 'D');
    if sharing.tables & libc::CLONE_VM as u64 != 0 && view.get(parent).is_some_and(waits) {
        out.push(
            p.blocker("", SHARED_MEMORY)
                .passing()
                .why(format!(
                    "its parent {parent} waits in vfork(2) until it executes another program or ends"
                ))
                .remedy("try again when it has"),
        );
    }
    if sharing.tables & libc::CLONE_FS as u64 != 0 && view.namespace(p, "user") != 0 {
        out.push(
            p.blocker("", words(libc::CLONE_FS as u64))
                .why("who shares it cannot enter a user namespace (setns(2)), and so cannot be made again there")
                .remedy("checkpoint it when it has stopped sharing"),
        );
    }
    if sharing.with.is_none() {
        out.push(
            p.blocker("", words(sharing.tables))
                .why("it is shared with processes that are neither its parent nor another child of that")
                .remedy("checkpoint it when it has stopped sharing"),
        );
    }
}

/// The ids of a process in several pid namespaces; nothing where there is but one.
fn nested(ids: &[i32]) -> Vec<i32> {
    if ids.len() > 1 { ids.to_vec() } else { Vec::new() }
}

/// In which namespaces a process lives.
pub fn membership(p: &ProcessView, view: &View) -> Membership {
    let mut out = BTreeMap::new();
    let mut put = |kind: Kind, number: u32| {
        if number != 0 {
            out.insert(kind, number);
        }
    };
    if p.is_dead() {
        // Of its namespaces only that of its ids is left, and the depth of those tells which it was.
        if let Some(parent) = view.get(Pid(p.stat.ppid)) {
            let same = parent.status.ns_pid.len() == p.status.ns_pid.len();
            let name = if same { "pid" } else { "pid_for_children" };
            put(Kind::Pid, view.namespace(parent, name));
        }
    } else {
        Kind::ALL
            .iter()
            .for_each(|kind| put(*kind, view.namespace(p, kind.name())));
    }
    Membership(out)
}

/// Records the processes that have ended and wait for their parents: of them there is kinship and nothing else.
pub fn collect_zombies(view: &View, draft: &mut Draft) -> Result<()> {
    for p in view.each().filter(|p| p.is_dead()) {
        super::put_process::<Kinship>(p.pid, family(p, view), draft)?;
    }
    Ok(())
}
