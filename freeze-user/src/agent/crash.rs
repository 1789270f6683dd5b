//! What the engine does when a watched group dies: finds out how, and brings it back if that is wanted.

use crate::agent::engine::Engine;
use crate::agent::group::{Root, Watched, read_stat};
use crate::agent::message::{Message, Outcome};
use crate::agent::policy::{Ending, OnCrash};
use crate::agent::wire::{Checkpoint, Group, State, What};
use crate::ids::Pid;
use crate::nest::family::Family;
use crate::observe;
use crate::store::{Listed, Opened, Store};
use crate::sys;
use nix::sys::epoll::{EpollEvent, EpollTimeout};
use serde_json::Value;
use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tracing::{debug, error, info, warn};

impl Engine {
    /// Finds out who of the groups has died, and deals with it.
    pub(super) fn bury(&mut self, dead: Vec<String>) {
        let mut endings: BTreeMap<String, Ending> =
            dead.into_iter().map(|name| (name, Ending::Unknown)).collect();
        for event in self.drain() {
            match event {
                observe::Event::Death {
                    pid, code, signal, ..
                } => {
                    let ending = match (code, signal) {
                        (Some(code), _) => Ending::Code(code),
                        (_, Some(signal)) => Ending::Signal(signal),
                        _ => Ending::Unknown,
                    };
                    let of_root =
                        |g: &&Watched| g.root.as_ref().is_some_and(|r| r.pid == pid && has_ended(r));
                    match self.groups.values().find(of_root) {
                        Some(g) => drop(endings.insert(g.shown.name.clone(), ending)),
                        None => debug!("pid {pid} {ending}"),
                    }
                }
                observe::Event::Resynced { lost } => {
                    info!("{lost} kernel events were lost: read everything anew")
                }
                _ => {}
            }
        }
        for (name, ending) in endings {
            self.ended(&name, ending);
        }
    }

    /// What the kernel programs have reported since the last look.
    fn drain(&mut self) -> Vec<observe::Event> {
        let Some((observer, epoll)) = &mut self.observer else {
            return Vec::new();
        };
        let mut event = [EpollEvent::empty()];
        // Edge-triggered: to ask is to forget that the bell rang.
        let _ = epoll.wait(&mut event, EpollTimeout::ZERO);
        match observer.drain() {
            Ok(events) => events,
            Err(e) => {
                warn!("kernel events are lost from now on, ends of processes are still noticed: {e}");
                self.observer = None;
                Vec::new()
            }
        }
    }

    /// A group's root has ended.
    fn ended(&mut self, name: &str, seen: Ending) {
        let leftovers = self.members(name);
        let Some(g) = self.groups.get_mut(name) else {
            return;
        };
        let Some(root) = &g.root else { return };
        let ending = if seen == Ending::Unknown {
            root.ending()
        } else {
            seen
        };
        let lived = g.lived();
        let pid = root.pid;
        g.root = None;
        g.trackings.clear();
        g.continues = false;
        g.due = None;
        if let Some((observer, _)) = &mut self.observer {
            observer.unwatch(pid);
        }
        if !ending.is_crash() {
            info!(group = name, "pid {pid} {ending}: no longer watched");
            self.tell(What::Ended, name, Some(format!("pid {pid} {ending}")), None);
            self.forget(name);
            return;
        }
        g.leftovers = leftovers;
        let last = g.shown.last.as_ref().map(|c| c.id.clone());
        warn!(
            group = name,
            "pid {pid} {ending}; last checkpoint: {}",
            last.as_deref().unwrap_or("none")
        );
        let text = format!("pid {pid} {ending}");
        g.shown.problem = Some(text.clone());
        g.shown.state = State::Crashed;
        let (restorable, leave) = (g.restorable(), g.policy.on_crash == OnCrash::Leave);
        self.tell(What::Crashed, name, Some(text), None);
        if restorable {
            self.plan_restore(name, lived);
            self.show(name);
        } else if let (Some(id), true) = (last, leave) {
            info!(group = name, "left as it is; freeze restore {id} brings it back");
        }
        self.persist();
    }

    /// Sets the time of the next restore of a group that lived for `lived`, or gives up.
    fn plan_restore(&mut self, name: &str, lived: Duration) {
        let Some(g) = self.groups.get_mut(name) else {
            return;
        };
        match g.backoff.next(lived) {
            Some(wait) => {
                g.shown.state = State::Restoring;
                g.due = Some(Instant::now() + wait);
                if !wait.is_zero() {
                    info!(group = name, "restored again in {} s", wait.as_secs());
                }
            }
            None => {
                g.shown.state = State::Crashed;
                g.due = None;
                let text = format!(
                    "given up after {} restores in a row that did not last: {}",
                    g.backoff.attempts() - 1,
                    g.shown.problem.as_deref().unwrap_or("")
                );
                error!(group = name, "{text}");
                g.shown.problem = Some(text.clone());
                self.tell(What::GaveUp, name, Some(text), None);
            }
        }
    }

    /// Starts the restore of a group from its last checkpoint.
    ///
    /// By a process of its own: what it restores has nothing to do with the agent, and outlives it.
    pub(super) fn bring_back(&mut self, name: &str) {
        let Some(g) = self.groups.get_mut(name) else {
            return;
        };
        g.due = None;
        let Some(last) = &g.shown.last else { return };
        let path = self.store.dir().join(&last.id);
        end_leftovers(name, &std::mem::take(&mut g.leftovers), Opened::open(&path).ok());
        let mut command = Command::new(&self.freeze);
        command
            .arg("restore")
            .arg(&path)
            .args(["--detach", "--rewind-files", "--json"]);
        command.stdin(Stdio::null());
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let (post, name, since_ms) = (self.post.clone(), name.to_owned(), g.shown.since_ms);
        let started = std::thread::Builder::new().name("restore".into()).spawn(move || {
            let began = Instant::now();
            let outcome = outcome(command.output(), began);
            post.send(Message::Restored {
                name,
                since_ms,
                outcome,
            });
        });
        if let Err(e) = started {
            error!("no thread for a restore: {e}");
        }
    }

    /// A restore has come to its end.
    pub(super) fn restored(&mut self, name: &str, outcome: Outcome) {
        let Some(g) = self.groups.get_mut(name) else {
            return;
        };
        let pid = Pid(g.shown.root);
        match outcome {
            Outcome::Runs { warnings, took } => {
                for warning in warnings {
                    warn!(group = name, "{warning}");
                }
                info!(
                    group = name,
                    "pid {pid} restored in {:.1} ms",
                    took.as_secs_f64() * 1000.0
                );
                g.shown.restores += 1;
                g.root = Root::find(pid);
                if g.root.is_none() {
                    g.shown.problem = Some(format!("pid {pid} ended as soon as it was restored"));
                    self.plan_restore(name, Duration::ZERO);
                    return self.persist();
                }
                g.shown.state = State::Watching;
                g.shown.problem = None;
                g.due = Some(Instant::now() + g.policy.every());
                self.observe(name, pid);
                self.tell(What::Restored, name, None, None);
            }
            Outcome::Damaged(text) => {
                warn!(group = name, "not restored: {text}");
                let bad = g.shown.last.take().map(|c| c.id).unwrap_or_default();
                g.shown.problem = Some(text);
                g.shown.last = newest(&self.store, &g.shown, Some(&bad));
                match &g.shown.last {
                    Some(c) => {
                        info!(group = name, "the checkpoint before it is tried: {}", c.id);
                        g.due = Some(Instant::now());
                    }
                    None => {
                        g.shown.state = State::Crashed;
                        error!(group = name, "there is no other checkpoint");
                    }
                }
            }
            Outcome::Failed(text) => {
                warn!(group = name, "not restored: {text}");
                g.shown.problem = Some(text);
                self.plan_restore(name, Duration::ZERO);
            }
        }
        self.show(name);
        self.persist();
    }

    /// The members of a group other than its root that are alive, with their start times.
    fn members(&self, name: &str) -> Vec<(Pid, u64)> {
        let root = self.groups.get(name).and_then(|g| g.root.as_ref()).map(|r| r.pid);
        let (Some((observer, _)), Some(root)) = (&self.observer, root) else {
            return Vec::new();
        };
        let members = observer.members(root).filter(|pid| *pid != root);
        members
            .filter_map(|pid| Some((pid, read_stat(pid)?.start_time)))
            .collect()
    }
}

/// Whether a root has ended: an event may be late, of one before it that had its pid.
fn has_ended(root: &Root) -> bool {
    match read_stat(root.pid) {
        Some(stat) => stat.start_time != root.start_time || (stat.is_zombie() && stat.threads <= 1),
        None => true,
    }
}

/// Ends what is left of a group whose root has died, since its pids are needed: those that were in it then, and those
/// that the checkpoint has and that are still of the same session.
fn end_leftovers(name: &str, leftovers: &[(Pid, u64)], image: Option<Opened>) {
    let mut left: Vec<(Pid, u64)> = leftovers.to_vec();
    let families = image.and_then(|image| families(&image)).unwrap_or_default();
    for family in families.iter().filter(|f| !f.root) {
        if let Some(stat) = read_stat(family.pid)
            && (stat.session, stat.pgrp) == (family.sid.0, family.pgid.0)
        {
            left.push((family.pid, stat.start_time));
        }
    }
    left.sort_unstable();
    left.dedup();
    for (pid, start) in left {
        let Ok(pidfd) = sys::pidfd_open(pid) else { continue };
        if read_stat(pid).is_some_and(|s| s.start_time == start && !s.is_zombie())
            && sys::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL).is_ok()
        {
            info!(group = name, "pid {pid}, left over of the group, was ended");
        }
    }
}

fn families(image: &Opened) -> Option<Vec<Family>> {
    let frames = image.records().iter().filter(|f| f.tag == "kinship");
    frames.map(|f| rmp_serde::from_slice(&f.payload).ok()).collect()
}

/// The newest checkpoint of a group since its watch began, of those older than `before` if that is given.
pub(super) fn newest(store: &Store, group: &Group, before: Option<&str>) -> Option<Checkpoint> {
    let list = store.list().ok()?;
    let older = |l: &Listed| before.is_none_or(|id| l.id.as_str() < id) && !l.pages_only;
    let mut manifests = list.into_iter().rev().filter(older).filter_map(|l| l.manifest);
    let m = manifests.find(|m| {
        // The name alone may have been another's before.
        m.about.group.as_ref() == Some(&group.name)
            && m.about.roots == [Pid(group.root)]
            && m.created_ms >= group.since_ms
    })?;
    Some(Checkpoint {
        id: m.id.to_string(),
        at_ms: m.created_ms,
        processes: m.about.processes as usize,
        threads: 0,
        pages: m.counts.pages,
        own_pages: m.counts.own,
        bytes: m.bytes(),
        pause_us: m.about.pause_us,
        total_us: m.about.total_us,
    })
}

/// What `freeze restore --json` said.
fn outcome(output: std::io::Result<std::process::Output>, began: Instant) -> Outcome {
    let output = match output {
        Ok(output) => output,
        Err(e) => return Outcome::Failed(format!("freeze could not be started: {e}")),
    };
    let said: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let lines = |v: &Value| {
        v.as_array()
            .into_iter()
            .flatten()
            .filter_map(|w| w.as_str().map(str::to_owned))
            .collect()
    };
    if output.status.success() {
        return Outcome::Runs {
            warnings: lines(&said["warnings"]),
            took: began.elapsed(),
        };
    }
    let text = match said["message"].as_str() {
        Some(message) => message.to_owned(),
        None => format!(
            "{}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim_end()
        ),
    };
    match output.status.code() {
        Some(6) => Outcome::Damaged(text),
        _ => Outcome::Failed(text),
    }
}
