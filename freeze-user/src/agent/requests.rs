//! What the engine does for its callers, and for which of them.

use crate::agent::engine::Engine;
use crate::agent::group::{self, Root, Watched, read_stat};
use crate::agent::message::{Answer, Message, Request, WatchRequest};
use crate::agent::policy::{Caller, Interval, Policy, group_name};
use crate::agent::wire::{Failure, Group, State, What};
use crate::checkpoint::{survey, verdict};
use crate::error::Blocker;
use crate::ids::Pid;
use crate::observe::ends::Ends;
use crate::observe::view::{View, parents};
use crate::observe::{Difference, MapView};
use serde_json::json;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use tracing::{debug, info};

impl Engine {
    /// Does what it is told.
    pub(super) fn heed(&mut self, message: Message) {
        match message {
            Message::Job {
                caller,
                request,
                reply,
            } => {
                let done = catch_unwind(AssertUnwindSafe(|| self.serve(caller, request)));
                let bug = |_| Err(Failure::own("Internal", "a bug: see the agent's log"));
                let _ = reply.send(done.unwrap_or_else(bug));
            }
            Message::Restored {
                name,
                since_ms,
                outcome,
            } => {
                // A group of the same name may have taken its place meanwhile.
                if self
                    .groups
                    .get(&name)
                    .is_some_and(|g| g.shown.since_ms == since_ms)
                {
                    self.restored(&name, outcome);
                }
            }
            Message::Stop => {}
        }
    }

    fn serve(&mut self, caller: Caller, request: Request) -> Answer {
        match request {
            Request::Watch(asked) => {
                let shown = self.watch(caller, asked)?;
                Ok(json!({ "group": shown }))
            }
            Request::Unwatch(t) => {
                let name = self.target(caller, &t.target)?;
                self.tell(What::Unwatched, &name, None, None);
                let Some(g) = self.forget(&name) else {
                    return Err(not_watched(&name));
                };
                if let Some((observer, _)) = &mut self.observer {
                    observer.unwatch(Pid(g.shown.root));
                }
                info!(group = name, "no longer watched");
                Ok(json!({ "group": g.shown }))
            }
            Request::Map(t) => {
                let root = self.living(caller, &t.target)?;
                let seen = self
                    .observer
                    .as_mut()
                    .filter(|(o, _)| o.roots().any(|r| r == root));
                let map = match seen {
                    Some((observer, _)) => observer.map(root)?,
                    None => MapView::from_proc(root)?,
                };
                for p in map.processes.iter().filter(|p| !p.dead) {
                    permitted(caller, p.pid)?;
                }
                Ok(json!({ "map": map, "text": map.to_string() }))
            }
            Request::Audit(t) => {
                let root = self.living(caller, &t.target)?;
                let Some((observer, _)) = self
                    .observer
                    .as_mut()
                    .filter(|(o, _)| o.roots().any(|r| r == root))
                else {
                    let why = "kernel events are not granted here, so there is no map to compare with /proc";
                    return Err(Blocker::of(root, "", "")
                        .why(why)
                        .remedy("freeze doctor says what is missing")
                        .refuse()
                        .into());
                };
                for pid in observer
                    .members(root)
                    .filter(|p| read_stat(*p).is_some_and(|s| !s.is_zombie()))
                {
                    permitted(caller, pid)?;
                }
                let found: Vec<Difference> = observer.audit(root)?;
                let text = match found.as_slice() {
                    [] => "no difference between the map and /proc".to_owned(),
                    list => list
                        .iter()
                        .map(Difference::to_string)
                        .collect::<Vec<_>>()
                        .join("\n"),
                };
                Ok(json!({ "differences": found, "text": text }))
            }
            Request::Checkpoint(t) => {
                self.living(caller, &t.target)?;
                let name = self.target(caller, &t.target)?;
                Ok(json!({ "checkpoint": self.checkpoint(&name)? }))
            }
        }
    }

    /// Begins to watch a process.
    fn watch(&mut self, caller: Caller, asked: WatchRequest) -> Result<Group, Failure> {
        let pid = Pid(asked.pid);
        let policy = Policy {
            every_ms: asked.every_ms.unwrap_or(Policy::DEFAULT.every_ms),
            keep: asked.keep.unwrap_or(Policy::DEFAULT.keep),
            on_crash: asked.on_crash.unwrap_or(Policy::DEFAULT.on_crash),
        };
        if let Some(fault) = policy.fault() {
            return Err(refused(pid, fault, "choose another value"));
        }
        let no_such = || {
            refused(
                pid,
                "there is no such process",
                "check the pid; it is looked up in freezed's own pid namespace",
            )
        };
        let root = Root::find(pid).ok_or_else(no_such)?;
        permitted(caller, pid)?;
        let view = survey(&[pid], &self.host, &Ends::watched())?;
        for p in &view.processes {
            permitted(caller, p.pid)?;
        }
        let overlap = self.overlap(&view);
        // Who is refused a checkpoint is refused a watch: with all reasons, now, and not in the log, every second.
        verdict(&[pid], &self.host, &Ends::watched())?;
        if let Some(other) = overlap {
            return Err(refused(
                pid,
                format!("it is watched already, as {other}"),
                format!("freeze unwatch {other}"),
            ));
        }
        let name = self.free_name(caller, asked.name, pid)?;
        let mut watched = Watched::new(name.clone(), root, policy);
        // A name that lives on in the store must not be told apart by it: retention counts by name.
        if self.groups.remove(&name).is_some() {
            debug!(group = name, "takes the place of one that had crashed");
        }
        watched.shown.last = None;
        self.groups.insert(name.clone(), watched);
        self.observe(&name, pid);
        info!(
            group = name,
            "pid {pid} is watched: a checkpoint every {}, {} kept, on a crash: {}",
            Interval(policy.every()),
            policy.keep,
            policy.on_crash
        );
        self.tell(What::Watched, &name, None, None);
        self.persist();
        self.groups
            .get(&name)
            .map(|g| g.shown.clone())
            .ok_or_else(|| not_watched(&name))
    }

    /// The group that has a process in common with a tree.
    fn overlap(&self, view: &View) -> Option<String> {
        let mut watched: Vec<Pid> = view.each().map(|p| p.pid).collect();
        // Its ancestors: a watched one among them has it already.
        let parents: BTreeMap<Pid, Pid> = parents().ok()?.into_iter().collect();
        let mut at = view.roots.first().copied();
        while let Some(parent) = at.and_then(|pid| parents.get(&pid)).copied().filter(|p| p.0 > 0) {
            if watched.contains(&parent) {
                break;
            }
            watched.push(parent);
            at = Some(parent);
        }
        let root = |g: &&Watched| g.root.as_ref().is_some_and(|r| watched.contains(&r.pid));
        self.groups.values().find(root).map(|g| g.shown.name.clone())
    }

    /// The name for a new group: the one that is asked for, or one made of the process's.
    fn free_name(&self, caller: Caller, asked: Option<String>, pid: Pid) -> Result<String, Failure> {
        let stat = read_stat(pid);
        let comm = stat.as_ref().map_or(&b""[..], |s| &s.comm);
        let name = group_name(caller, asked.as_deref(), comm, pid).map_err(|why| {
            let remedy = "use up to 64 letters, digits and . _ - + @ :, not digits alone";
            refused(pid, why, remedy)
        })?;
        let taken = |g: &Watched| g.shown.state != State::Crashed;
        if self.groups.get(&name).is_some_and(taken) {
            let why = format!("another group has the name {name}");
            return Err(refused(pid, why, "choose another with --name"));
        }
        Ok(name)
    }

    /// The name of the group that a caller means, if the caller may use it.
    fn target(&self, caller: Caller, target: &str) -> Result<String, Failure> {
        let own = format!("{}:{target}", caller.uid);
        let by_pid = |alive: bool| {
            let mut all = self.groups.values();
            all.find(|g| target.parse() == Ok(g.shown.root) && g.root.is_some() == alive)
        };
        let by_name = self.groups.get(target).or_else(|| self.groups.get(&own));
        let Some(g) = by_name.or_else(|| by_pid(true)).or_else(|| by_pid(false)) else {
            return Err(not_watched(target));
        };
        // What is not one's own is not there, but for root.
        if !caller.may_use(g.shown.uid) {
            return Err(not_watched(target));
        }
        if let Some(root) = &g.root {
            permitted(caller, root.pid)?;
        }
        Ok(g.shown.name.clone())
    }

    /// The root of the group that a caller means, which must be alive.
    fn living(&self, caller: Caller, target: &str) -> Result<Pid, Failure> {
        let name = self.target(caller, target)?;
        match self.groups.get(&name).and_then(|g| g.root.as_ref()) {
            Some(root) => Ok(root.pid),
            None => Err(Failure::own("Died", format!("{name} does not run"))),
        }
    }
}

pub(super) fn not_watched(target: &str) -> Failure {
    Failure::own(
        "NotWatched",
        format!("{target} is not watched; freeze status lists what is"),
    )
}

fn refused(pid: Pid, why: impl Into<String>, remedy: impl Into<String>) -> Failure {
    Blocker::of(pid, "", "").why(why).remedy(remedy).refuse().into()
}

/// An error unless the caller is root or the process belongs to it.
fn permitted(caller: Caller, pid: Pid) -> Result<(), Failure> {
    match caller.may_use(group::owner_of(pid)) {
        true => Ok(()),
        false => {
            let text = format!(
                "pid {pid} does not belong to uid {}; its owner and root may do this",
                caller.uid
            );
            Err(Failure::own("NotPermitted", text))
        }
    }
}
