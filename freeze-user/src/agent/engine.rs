//! The engine thread: the only one that touches watched processes; it sleeps until something is due, asked or dead.

use crate::agent::group::{self, Root, Watched, read_stat};
use crate::agent::policy::{Caller, Ending, OnCrash, Policy, after_failure, next_beat};
use crate::agent::wire::{Checkpoint, Event, Failure, Group, State, What, now_ms};
use crate::checkpoint::{Place, Request as Order, checkpoint};
use crate::error::{Blocker, Error, Result};
use crate::ids::Pid;
use crate::nest::family::Family;
use crate::observe::view::{Depth, View, parents};
use crate::observe::{self, Difference, MapView, Observer};
use crate::plan::{Host, plan};
use crate::store::{Opened, Options, Store};
use crate::sys;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};
use tokio::sync::{broadcast, oneshot};
use tracing::{debug, error, info, warn};

/// What the engine is asked for by a caller.
#[derive(Clone, Debug)]
pub(super) enum Request {
    Watch(WatchRequest),
    Unwatch(Target),
    Map(Target),
    Audit(Target),
    Checkpoint(Target),
}

/// Parameters of `Watch`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WatchRequest {
    pid: i32,
    name: Option<String>,
    every_ms: Option<u64>,
    keep: Option<usize>,
    on_crash: Option<OnCrash>,
}

/// A group, by name or by the pid of its root.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Target {
    target: String,
}

pub(super) type Answer = Result<Value, Failure>;

/// What the engine is told.
#[derive(Debug)]
pub(super) enum Message {
    Job {
        caller: Caller,
        request: Request,
        reply: oneshot::Sender<Answer>,
    },
    Restored {
        name: String,
        since_ms: u64,
        outcome: Outcome,
    },
    Stop,
}

/// What came of a restore.
#[derive(Debug)]
pub(super) enum Outcome {
    Runs {
        warnings: Vec<String>,
        took: Duration,
    },
    /// The image is damaged.
    Damaged(String),
    Failed(String),
}

/// Where messages to the engine are put.
#[derive(Clone, Debug)]
pub(super) struct Post {
    messages: mpsc::Sender<Message>,
    bell: Arc<EventFd>,
}

impl Post {
    /// Puts a message in and wakes the engine; `false` if it is gone.
    pub(super) fn send(&self, message: Message) -> bool {
        // A full counter is as good as a rung bell.
        self.messages.send(message).is_ok() && {
            let _ = self.bell.write(1);
            true
        }
    }
}

/// What everybody may look at without waiting for the engine.
#[derive(Debug)]
pub(super) struct Board {
    groups: Mutex<BTreeMap<String, Group>>,
    pub(super) events: broadcast::Sender<Event>,
}

impl Board {
    pub(super) fn new() -> Board {
        Board {
            groups: Mutex::default(),
            events: broadcast::Sender::new(256),
        }
    }

    /// The groups as they are.
    pub(super) fn groups(&self) -> Vec<Group> {
        self.lock().values().cloned().collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Group>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The engine. Dropping it gives up every tracking, which leaves the processes as they are.
#[derive(Debug)]
pub(super) struct Engine {
    store: Store,
    host: Host,
    board: Arc<Board>,
    messages: mpsc::Receiver<Message>,
    post: Post,
    observer: Option<(Observer, Epoll)>,
    groups: BTreeMap<String, Watched>,
    /// The command that brings processes back.
    freeze: PathBuf,
}

impl Engine {
    /// An engine, to be run in a thread of its own, and where its messages are put.
    pub(super) fn new(store: Store, board: Arc<Board>, freeze: PathBuf) -> Result<(Engine, Post)> {
        let kernel = |errno| Error::kernel("eventfd", "the engine", errno);
        let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).map_err(kernel)?;
        let (sender, messages) = mpsc::channel();
        let post = Post {
            messages: sender,
            bell: Arc::new(bell),
        };
        let engine = Engine {
            store,
            host: Host::here()?,
            board,
            messages,
            post: post.clone(),
            observer: None,
            groups: BTreeMap::new(),
            freeze,
        };
        Ok((engine, post))
    }

    /// Starts what must be started in the thread itself, resumes the watches of the agent before, says so, and
    /// works until it is stopped.
    pub(super) fn run(mut self, ready: oneshot::Sender<()>) {
        self.observer = start_observer();
        self.resume();
        let _ = ready.send(());
        loop {
            let next = self.next_due();
            let awake = self.sleep(next.as_ref().map(|(due, _)| *due));
            if awake.bell {
                let _ = self.post.bell.read();
                while let Ok(message) = self.messages.try_recv() {
                    match message {
                        Message::Stop => return self.persist(),
                        other => self.heed(other),
                    }
                }
            }
            if awake.observer || !awake.dead.is_empty() {
                self.bury(awake.dead);
            }
            match next {
                Some((due, name)) if due <= Instant::now() => self.act(&name),
                _ => {}
            }
        }
    }

    /// The first thing that is due, and the group it is due for.
    fn next_due(&self) -> Option<(Instant, String)> {
        let due = self.groups.iter().filter_map(|(name, g)| Some((g.due?, name)));
        due.min().map(|(due, name)| (due, name.clone()))
    }

    /// Sleeps until something happens, or is due.
    fn sleep(&self, until: Option<Instant>) -> Awake {
        let mut fds = vec![PollFd::new(self.post.bell.as_fd(), PollFlags::POLLIN)];
        if let Some((_, epoll)) = &self.observer {
            fds.push(PollFd::new(epoll.0.as_fd(), PollFlags::POLLIN));
        }
        let first = fds.len();
        let living: Vec<&String> = self
            .groups
            .iter()
            .filter(|(_, g)| g.root.is_some())
            .map(|(n, _)| n)
            .collect();
        let roots = self.groups.values().filter_map(|g| g.root.as_ref());
        fds.extend(roots.map(|r| PollFd::new(r.pidfd.as_fd(), PollFlags::POLLIN)));
        let timeout = match until.map(|t| t.saturating_duration_since(Instant::now())) {
            None => PollTimeout::NONE,
            // Rounded up: to wake too early would be to wake twice.
            Some(d) => PollTimeout::try_from(d.as_micros().div_ceil(1000)).unwrap_or(PollTimeout::MAX),
        };
        if poll(&mut fds, timeout).is_err() {
            return Awake::default();
        }
        let ready = |fd: &PollFd<'_>| fd.any().unwrap_or(false);
        Awake {
            bell: ready(&fds[0]),
            observer: first > 1 && ready(&fds[1]),
            dead: living
                .iter()
                .zip(&fds[first..])
                .filter(|(_, fd)| ready(fd))
                .map(|(n, _)| (*n).clone())
                .collect(),
        }
    }

    /// Does what is due for a group.
    fn act(&mut self, name: &str) {
        let Some(g) = self.groups.get_mut(name) else {
            return;
        };
        match g.shown.state {
            State::Watching => {
                let every = g.policy.every();
                let due = g.due.unwrap_or_else(Instant::now);
                let outcome = self.checkpoint(name);
                let Some(g) = self.groups.get_mut(name) else {
                    return;
                };
                let now = Instant::now();
                g.due = Some(match outcome {
                    Ok(_) => next_beat(due, every, now),
                    Err(_) => now + after_failure(every, g.shown.failures),
                });
            }
            State::Restoring => self.bring_back(name),
            State::Crashed => g.due = None,
        }
    }

    /// Makes a checkpoint of a group, on top of its last one.
    fn checkpoint(&mut self, name: &str) -> Result<Checkpoint, Failure> {
        let Some(g) = self.groups.get_mut(name) else {
            return Err(not_watched(name));
        };
        let parent = g
            .shown
            .last
            .as_ref()
            .filter(|_| g.continues)
            .and_then(|c| self.store.find(&c.id).ok());
        if parent.is_none() {
            // The trackings tell what was written since the last checkpoint, which counts for nothing without it.
            g.trackings.clear();
        }
        let order = Order {
            roots: vec![Pid(g.shown.root)],
            place: Place::Store(self.store.clone()),
            parent,
            kill: false,
            group: Some(name.to_owned()),
            options: Options {
                chain_limit: g.policy.chain_limit(),
                ..Options::default()
            },
            track: true,
        };
        let (host, trackings) = (&self.host, &mut g.trackings);
        let outcome = match catch_unwind(AssertUnwindSafe(|| checkpoint(&order, host, trackings))) {
            Ok(Ok(report)) => Ok(Checkpoint::from(&report)),
            Ok(Err(e)) => Err(Failure::from(e)),
            Err(_) => {
                g.trackings.clear();
                Err(Failure::own(
                    "Internal",
                    "a bug: see the agent's log; the target runs on as it was found",
                ))
            }
        };
        match &outcome {
            Ok(made) => {
                let pause = made.pause_us as f64 / 1000.0;
                debug!(group = name, id = %made.id, pages = made.pages, own = made.own_pages, "checkpoint, pause {pause:.2} ms");
                g.shown.checkpoints += 1;
                g.shown.failures = 0;
                g.shown.problem = None;
                g.shown.last = Some(made.clone());
                if !g.continues {
                    g.continues = true;
                    // From now on there is something to come back to.
                    self.persist();
                }
                self.tidy_up(name, made.processes);
                self.tell(What::Checkpoint, name, None, Some(made.clone()));
            }
            // Stopping, or its death will be noticed in a moment.
            Err(e) if sys::interrupt::check().is_err() || e.kind() == "died" => {
                debug!(group = name, "no checkpoint: {e}");
            }
            Err(e) => {
                let text = e.to_string();
                if g.shown.problem.as_ref() != Some(&text) {
                    warn!(group = name, "no checkpoint: {text}");
                }
                g.shown.failures += 1;
                g.shown.problem = Some(text.clone());
                self.tell(What::Failed, name, Some(text), None);
            }
        }
        outcome
    }

    /// Removes what the policy keeps no longer, and trackings of processes that are gone.
    fn tidy_up(&mut self, name: &str, processes: usize) {
        let Some(g) = self.groups.get_mut(name) else {
            return;
        };
        if g.trackings.len() > processes {
            g.trackings.retain(|pid, _| read_stat(*pid).is_some());
        }
        match self.store.prune(g.policy.keep, Some(name)) {
            Ok(pruned) => debug!(group = name, "{} removed", pruned.removed.len()),
            Err(e) => warn!(group = name, "old checkpoints could not be removed: {e}"),
        }
    }

    /// Finds out who of the groups has died, and deals with it.
    fn bury(&mut self, dead: Vec<String>) {
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
            self.groups.remove(name);
            self.board.lock().remove(name);
            return self.persist();
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
        if g.restorable() {
            self.plan_restore(name, lived);
        } else if let (Some(id), OnCrash::Leave) = (last, g.policy.on_crash) {
            info!(group = name, "left as it is; freeze restore {id} brings it back");
        }
        self.tell(What::Crashed, name, Some(text), None);
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
    fn bring_back(&mut self, name: &str) {
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
    fn restored(&mut self, name: &str, outcome: Outcome) {
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
                g.shown.last = older(&self.store, name, &bad);
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

    /// Does what it is told.
    fn heed(&mut self, message: Message) {
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
                let Some(g) = self.groups.remove(&name) else {
                    return Err(not_watched(&name));
                };
                self.board.lock().remove(&name);
                if let Some((observer, _)) = &mut self.observer {
                    observer.unwatch(Pid(g.shown.root));
                }
                info!(group = name, "no longer watched");
                self.persist();
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
        // Who is refused a checkpoint is refused a watch: with all reasons, now, and not in the log, every second.
        let view = View::read(&[pid], Depth::Smaps).map_err(|e| match e {
            Error::Died { .. } => no_such(),
            e => e.into(),
        })?;
        for p in &view.processes {
            permitted(caller, p.pid)?;
        }
        let overlap = self.overlap(&view);
        plan(view, &self.host)?;
        if let Some(other) = overlap {
            return Err(refused(
                pid,
                format!("it is watched already, as {other}"),
                format!("freeze unwatch {other}"),
            ));
        }
        let name = self.free_name(asked.name, pid)?;
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
            super::policy::Interval(policy.every()),
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
        let mut watched: Vec<Pid> = view.processes.iter().map(|p| p.pid).collect();
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
    fn free_name(&self, asked: Option<String>, pid: Pid) -> Result<String, Failure> {
        let taken = |name: &str| {
            self.groups
                .get(name)
                .is_some_and(|g| g.shown.state != State::Crashed)
        };
        if let Some(name) = asked {
            let plain = |c: char| c.is_ascii_alphanumeric() || "._-+@:".contains(c);
            // A name of digits would be taken for a pid.
            if name.is_empty()
                || name.len() > 64
                || !name.chars().all(plain)
                || name.chars().all(|c| c.is_ascii_digit())
            {
                let why = format!("{name:?} is no name for a group");
                return Err(refused(
                    pid,
                    why,
                    "use up to 64 letters, digits and . _ - + @ :, not digits alone",
                ));
            }
            if taken(&name) {
                return Err(refused(
                    pid,
                    format!("another group has the name {name}"),
                    "choose another with --name",
                ));
            }
            return Ok(name);
        }
        let comm = read_stat(pid)
            .map(|s| String::from_utf8_lossy(&s.comm).into_owned())
            .unwrap_or_default();
        let letter = |c: char| {
            if c.is_ascii_alphanumeric() || "._-+".contains(c) {
                c
            } else {
                '_'
            }
        };
        let name: String = comm.chars().map(letter).collect();
        // The pid tells apart what has no name of its own, and keeps one program's checkpoints from being another's.
        Ok(format!("{name}-{pid}"))
    }

    /// Has kernel events of a group reported, where they are granted.
    fn observe(&mut self, name: &str, pid: Pid) {
        if let Some((observer, _)) = &mut self.observer
            && let Err(e) = observer.watch(pid)
        {
            warn!(
                group = name,
                "no kernel events of it, only its end is noticed: {e}"
            );
        }
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

    /// The name of the group that a caller means, if the caller may use it.
    fn target(&self, caller: Caller, target: &str) -> Result<String, Failure> {
        let by_pid = |g: &&Watched| target.parse() == Ok(g.shown.root);
        let Some(g) = self
            .groups
            .get(target)
            .or_else(|| self.groups.values().find(by_pid))
        else {
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

    /// Goes on with what the agent before this one watched.
    fn resume(&mut self) {
        let (groups, rebooted) = match group::recall(self.store.dir()) {
            Ok(recalled) => recalled,
            Err(e) => return warn!("earlier watches are forgotten: {e}"),
        };
        for r in groups {
            let name = r.group.name.clone();
            let last = r.group.last.as_ref().map_or("none".to_owned(), |c| c.id.clone());
            let root = Root::find(Pid(r.group.root)).filter(|_| !rebooted);
            let root = root.filter(|root| match r.start_time {
                Some(start) => root.start_time == start,
                // It was being restored: whether it has been, its command tells.
                None => crate::observe::view::command_of(root.pid) == r.group.command,
            });
            let restoring = r.group.state == State::Restoring && !rebooted;
            match root {
                None if restoring => {
                    info!(group = name, "its restore is taken up again");
                    self.groups.insert(name, Watched::resumed(r.group, None));
                }
                None => warn!(
                    group = name,
                    "pid {} ended while no agent ran; last checkpoint: {last}", r.group.root
                ),
                Some(_) if r.group.state == State::Crashed => {}
                Some(root) => {
                    let pid = root.pid;
                    info!(
                        group = name,
                        "pid {pid} is watched again; last checkpoint: {last}"
                    );
                    self.groups
                        .insert(name.clone(), Watched::resumed(r.group, Some(root)));
                    self.observe(&name, pid);
                }
            }
        }
        let names: Vec<String> = self.groups.keys().cloned().collect();
        for name in names {
            self.show(&name);
        }
        self.persist();
    }

    fn persist(&self) {
        if let Err(e) = group::remember(self.store.dir(), self.groups.values()) {
            warn!("the watches could not be written down: {e}");
        }
    }

    /// Shows a group as it is now.
    fn show(&self, name: &str) {
        if let Some(g) = self.groups.get(name) {
            self.board.lock().insert(name.to_owned(), g.shown.clone());
        }
    }

    /// Shows a group as it is now, and tells those who listen what happened to it.
    fn tell(&self, event: What, name: &str, message: Option<String>, checkpoint: Option<Checkpoint>) {
        self.show(name);
        let root = self.groups.get(name).map_or(0, |g| g.shown.root);
        let event = Event {
            event,
            group: name.to_owned(),
            root,
            at_ms: now_ms(),
            message,
            checkpoint,
        };
        // Nobody listening is no error.
        let _ = self.board.events.send(event);
    }
}

/// What woke the engine.
#[derive(Debug, Default)]
struct Awake {
    bell: bool,
    observer: bool,
    /// Groups whose root has ended.
    dead: Vec<String>,
}

fn start_observer() -> Option<(Observer, Epoll)> {
    let without = |e: &dyn std::fmt::Display| {
        warn!("no kernel events: {e}; ends of processes are noticed all the same, freeze map reads /proc");
    };
    let observer = Observer::start().inspect_err(|e| without(e)).ok()?;
    let rung = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).and_then(|epoll| {
        // Edge-triggered: the ring is readable whenever it holds anything, and rings when it is time.
        epoll.add(
            observer.as_fd(),
            EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 0),
        )?;
        Ok(epoll)
    });
    let epoll = rung.inspect_err(|e| without(e)).ok()?;
    info!("kernel events are granted");
    Some((observer, epoll))
}

/// Whether a root has ended: an event may be late, of one before it that had its pid.
fn has_ended(root: &Root) -> bool {
    match read_stat(root.pid) {
        Some(stat) => stat.start_time != root.start_time || (stat.is_zombie() && stat.threads <= 1),
        None => true,
    }
}

fn not_watched(target: &str) -> Failure {
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

/// The newest checkpoint of a group that is older than `id`.
fn older(store: &Store, group: &str, id: &str) -> Option<Checkpoint> {
    let list = store.list().ok()?;
    let fits = list
        .into_iter()
        .rev()
        .filter(|l| l.id.as_str() < id && !l.pages_only);
    let m = fits
        .filter_map(|l| l.manifest)
        .find(|m| m.about.group.as_deref() == Some(group))?;
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
