//! `View → Plan`, or every reason against it at once; pure: nothing is touched, nothing is asked of the kernel but comparisons.

use crate::error::{Blocker, Error, Result};
use crate::ids::Pid;
use crate::kinds::kinship::Kinship;
use crate::kinds::{PROCESS_KINDS, ProcessKind};
use crate::observe::view::{ProcessView, View};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A set of processes that can be checkpointed as far as can be told from outside.
#[derive(Debug)]
pub struct Plan {
    pub view: View,
}

/// What of freeze itself decides about others.
#[derive(Clone, Debug)]
pub struct Host {
    pub own_pid: Pid,
    /// The agent, if another process than this one: it cannot be part of a checkpoint.
    pub agent: Option<Pid>,
    pub namespaces: Arc<BTreeMap<String, u64>>,
}

impl Host {
    /// As this process is.
    pub fn here() -> Result<Host> {
        let own_pid = Pid(std::process::id() as i32);
        let own = ProcessView::read(own_pid, crate::observe::view::Depth::Maps)?;
        Ok(Host {
            own_pid,
            agent: None,
            namespaces: own.namespaces,
        })
    }
}

/// Plans the checkpoint of a set, or refuses it with all reasons.
pub fn plan(view: View, host: &Host) -> Result<Plan> {
    let mut out = Vec::new();
    for p in &view.processes {
        verdict(p, &view, host, &mut out);
    }
    match out.is_empty() {
        true => Ok(Plan { view }),
        false => Err(Error::Refused(out)),
    }
}

/// Why a process is refused whatever it is like: known before it is looked at, which may not even be allowed.
pub fn never(pid: Pid, command: &str, host: &Host) -> Option<Blocker> {
    let blocker = || Blocker::of(pid, "", command);
    if pid == Pid(1) {
        return Some(
            blocker()
                .why("it is the init of this pid namespace")
                .remedy("name one of its children"),
        );
    }
    let what = match pid {
        pid if pid == host.own_pid => "freeze itself",
        pid if Some(pid) == host.agent => "the agent of freeze",
        _ => return None,
    };
    Some(
        blocker()
            .why(format!("it is {what}, which cannot stop itself"))
            .remedy("start freeze from outside the process tree that is to be frozen"),
    )
}

fn verdict(p: &ProcessView, view: &View, host: &Host, out: &mut Vec<Blocker>) {
    if p.stat.is_kernel_thread() {
        out.push(
            p.blocker("", p.command())
                .why("it is a kernel thread")
                .remedy("name a process"),
        );
        return;
    }
    if let Some(blocker) = never(p.pid, &p.command(), host) {
        out.push(blocker);
        return;
    }
    if p.is_dead() {
        Kinship::verdict(p, view, out);
        return;
    }
    thirty_two_bit(p, out);
    for kind in PROCESS_KINDS {
        (kind.verdict)(p, view, out);
    }
}

/// A 32-bit program has its code below 4 GiB and no 64-bit vDSO; its registers and calls are other ones.
fn thirty_two_bit(p: &ProcessView, out: &mut Vec<Blocker>) {
    if !p.vmas.is_empty() && p.exe_is_32_bit {
        out.push(
            p.blocker("", p.command())
                .why("it is a 32-bit program, and only 64-bit ones are carried")
                .remedy("use its 64-bit build"),
        );
    }
}
