//! The engine thread: the only one that touches watched processes; it sleeps until something is due, asked or dead.

use crate::agent::board::Board;
use crate::agent::crash::newest;
use crate::agent::group::{self, Root, Watched, read_stat};
use crate::agent::message::{Message, Post};
use crate::agent::policy::{after_failure, next_beat};
use crate::agent::requests::not_watched;
use crate::agent::wire::{Checkpoint, Event, Failure, State, What, now_ms};
use crate::checkpoint::{Place, Request as Order, checkpoint};
use crate::error::{Error, Result};
use crate::ids::Pid;
use crate::observe::Observer;
use crate::observe::ends::Ends;
use crate::observe::view::command_of;
use crate::plan::Host;
use crate::precopy::SharedLog;
use crate::store::{self, Options, Store};
use crate::sys;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::time::Instant;
use tokio::sync::oneshot;
use tracing::{debug, info, warn};

/// The engine. Dropping it gives up every tracking, which leaves the processes as they are.
#[derive(Debug)]
pub(super) struct Engine {
    pub(super) store: Store,
    pub(super) host: Host,
    pub(super) board: Arc<Board>,
    messages: mpsc::Receiver<Message>,
    pub(super) post: Post,
    pub(super) observer: Option<(Observer, Epoll)>,
    /// The fault log of all groups.
    log: SharedLog,
    pub(super) groups: BTreeMap<String, Watched>,
    /// The command that brings processes back.
    pub(super) freeze: PathBuf,
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
            log: SharedLog::default(),
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
    pub(super) fn checkpoint(&mut self, name: &str) -> Result<Checkpoint, Failure> {
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
            options: Options::default(),
            track: true,
            ends: Ends::watched(),
            bounds: g.policy.bounds(),
        };
        g.trackings.log = Some(self.log.clone());
        g.trackings.answers.changes = self.observer.as_ref().map(|(o, _)| o.changes());
        let (host, trackings) = (&self.host, &mut g.trackings);
        let outcome = match catch_unwind(AssertUnwindSafe(|| checkpoint(&order, host, trackings))) {
            Ok(Ok(report)) => {
                g.shown.pauses.add(&report, &g.trackings.means);
                Ok(Checkpoint::from(&report))
            }
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
            Err(e)
                if sys::interrupt::check().is_err()
                    || e.kind() == "died"
                    || g.root.as_ref().is_some_and(Root::has_ended) =>
            {
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
    pub(super) fn tidy_up(&mut self, name: &str, processes: usize) {
        let Some(g) = self.groups.get_mut(name) else {
            return;
        };
        if g.trackings.len() > processes {
            g.trackings.keep(|pid| read_stat(pid).is_some());
        }
        match self.store.prune(g.policy.keep, Some(name)) {
            Ok(pruned) => debug!(group = name, "{} removed", pruned.removed.len()),
            Err(e) => warn!(group = name, "old checkpoints could not be removed: {e}"),
        }
    }

    /// Has kernel events of a group reported, where they are granted.
    pub(super) fn observe(&mut self, name: &str, pid: Pid) {
        if let Some((observer, _)) = &mut self.observer
            && let Err(e) = observer.watch(pid)
        {
            warn!(
                group = name,
                "no kernel events of it, only its end is noticed: {e}"
            );
        }
    }

    /// Goes on with what the agent before this one watched.
    fn resume(&mut self) {
        let (groups, rebooted) = match group::recall(self.store.dir()) {
            Ok(recalled) => recalled,
            Err(e) => return warn!("earlier watches are forgotten: {e}"),
        };
        for mut r in groups {
            let name = r.group.name.clone();
            // What was written down is as old as the last change of state.
            r.group.last = newest(&self.store, &r.group, None);
            let last = r.group.last.as_ref().map_or("none".to_owned(), |c| c.id.clone());
            let root = Root::find(Pid(r.group.root)).filter(|_| !rebooted);
            let root = root.filter(|root| match r.start_time {
                Some(start) => root.start_time == start,
                // It was being restored: whether it has been, its command tells.
                None => command_of(root.pid) == r.group.command,
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

    pub(super) fn persist(&self) {
        if let Err(e) = group::remember(self.store.dir(), self.groups.values()) {
            warn!("the watches could not be written down: {e}");
        }
    }

    /// Ends a watch; nothing is kept ready when it was the last.
    pub(super) fn forget(&mut self, name: &str) -> Option<Watched> {
        let watched = self.groups.remove(name)?;
        self.board.lock().remove(name);
        if self.groups.is_empty() {
            store::free_buffers();
        }
        self.persist();
        Some(watched)
    }

    /// Shows a group as it is now.
    pub(super) fn show(&self, name: &str) {
        if let Some(g) = self.groups.get(name) {
            self.board.lock().insert(name.to_owned(), g.shown.clone());
        }
    }

    /// Shows a group as it is now, and tells those who listen what happened to it.
    pub(super) fn tell(
        &self,
        event: What,
        name: &str,
        message: Option<String>,
        checkpoint: Option<Checkpoint>,
    ) {
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
