//! A whole process at a halt: all its threads, its scratch mapping, and the way to run tapes in it.

use super::arrive::was_late;
use super::tape::{Call, Mark, Ran, Scratch, Started, Tape};
use super::{SUSPEND_SECCOMP, Stopped, play_all, release_all};
use crate::error::{Context, Error, Result};
use crate::ids::{Pid, Range};
use crate::observe::view::ProcessView;
use crate::sys;
use crate::sys::wire::{self, Held};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

/// How many pages of calls and data a scratch mapping has for a checkpoint.
const SCRATCH_PAGES: u64 = 16;

/// How many of them one of many threads has, when all play at the same time; and how many threads do.
const LANE_PAGES: u64 = 16;
const LANES: u64 = 64;

/// What a kind asks a process, or each of its threads: the calls it puts on a tape.
#[derive(Clone, Copy, Debug)]
pub struct Question {
    pub tag: &'static str,
    /// Each thread, or the first alone.
    pub each: bool,
    pub put: fn(&mut Tape<'_>, &ProcessView),
}

/// What one thread answered, and where on its tape each question begins.
#[derive(Debug)]
struct Answered {
    ran: Ran,
    marks: Vec<(&'static str, Mark)>,
    /// What its tape held.
    calls: Vec<Call>,
    /// Where that lay.
    lane: Scratch,
}

/// What the threads of a process answered, with nothing said of how long it holds.
#[derive(Debug)]
pub struct Answers {
    answered: Vec<Answered>,
    whose: Whose,
}

/// Of whom answers are.
#[derive(Debug, Default, PartialEq, Eq)]
struct Whose {
    /// Who answered, by id and start time.
    threads: Vec<(Pid, u64)>,
    /// What was mapped then: the policy of a mapping comes and goes with it.
    mapped: Vec<Mapped>,
}

/// Where a mapping lies, and of which file.
type Mapped = (Range, (u32, u32), u64);

/// A process whose threads all stand still. Dropping it removes the scratch mapping and lets every thread go on as found.
#[derive(Debug)]
pub struct StoppedProcess {
    pub view: Arc<ProcessView>,
    /// The leader first, if it has not ended.
    threads: Vec<Stopped>,
    scratch: Option<Scratch>,
    /// Which thread stands at the end of the last tape.
    played: usize,
    /// The parts of the scratch mapping in which threads can play at the same time.
    lanes: Vec<Scratch>,
    /// By thread, once they were asked.
    answered: Vec<Answered>,
    /// Whose answers they are.
    whose: Whose,
    /// Whether the answers may be others at the next stop, whatever the process does meanwhile.
    passing: bool,
    /// Tapes with questions, under way.
    asking: Vec<(Started, Answered)>,
    pidfd: OwnedFd,
    /// Of the thread that has the descriptors, if the first has ended.
    speaker: Option<OwnedFd>,
    /// Connections that must end without a word if the process is ended: they go on elsewhere.
    silent: Vec<OwnedFd>,
    /// Wires that are held shut, in each network namespace.
    wires: Vec<Wires>,
    /// Descriptors of freeze's own that are looked at as if they were its.
    lent: Vec<OwnedFd>,
}

/// Wires of one network namespace that are held shut.
#[derive(Debug)]
struct Wires {
    held: Held,
    /// By which name they are for good, if the process is ended.
    name: String,
    /// Whether the namespace ends with the set.
    dying: bool,
}

/// A tape in a lane with what thread number `n` is asked, and where each question begins.
fn put<'a>(
    questions: &[Question],
    n: usize,
    lane: &'a Scratch,
    view: &ProcessView,
) -> (Tape<'a>, Vec<(&'static str, Mark)>) {
    let mut tape = lane.long_tape();
    let mut marks = Vec::with_capacity(questions.len());
    for question in questions.iter().filter(|q| q.each || n == 0) {
        marks.push((question.tag, tape.mark()));
        (question.put)(&mut tape, view);
    }
    (tape, marks)
}

impl StoppedProcess {
    /// Takes charge of a process whose live threads are `threads`, as `view` was read while they stood still.
    pub fn new(view: Arc<ProcessView>, threads: Vec<Stopped>) -> Result<StoppedProcess> {
        let pid = view.pid;
        let pidfd = sys::pidfd_open(pid).on("pidfd_open", || format!("pid {pid}"))?;
        let speaker = match view.speaker {
            by if by == pid => None,
            by => Some(sys::pidfd_open_thread(by).on("pidfd_open(PIDFD_THREAD)", || format!("thread {by}"))?),
        };
        Ok(StoppedProcess {
            view,
            threads,
            scratch: None,
            played: 0,
            lanes: Vec::new(),
            answered: Vec::new(),
            whose: Whose::default(),
            passing: false,
            asking: Vec::new(),
            pidfd,
            speaker,
            silent: Vec::new(),
            wires: Vec::new(),
            lent: Vec::new(),
        })
    }

    /// Its process id.
    pub fn pid(&self) -> Pid {
        self.view.pid
    }

    /// Its threads.
    pub fn threads(&self) -> &[Stopped] {
        &self.threads
    }

    /// Where its scratch mapping lies, if it has one by now.
    pub fn scratch(&self) -> Option<Range> {
        self.scratch.as_ref().map(Scratch::range)
    }

    /// Its threads, to be amended.
    pub fn threads_mut(&mut self) -> &mut [Stopped] {
        &mut self.threads
    }

    /// A duplicate of one of its descriptors.
    pub fn fd(&self, fd: i32) -> Result<OwnedFd> {
        if let Some(lent) = self.lent.iter().find(|l| l.as_raw_fd() == fd) {
            return lent
                .try_clone()
                .on("fcntl(F_DUPFD)", || format!("fd {fd} of freeze"));
        }
        let pidfd = self.speaker.as_ref().unwrap_or(&self.pidfd);
        sys::pidfd_getfd(pidfd.as_fd(), fd).on("pidfd_getfd", || format!("fd {fd} of {}", self.pid()))
    }

    /// Lets a description that no process holds be collected with this one; its number must be none of this process's.
    pub fn lend(&mut self, own: OwnedFd) {
        self.lent.push(own);
    }

    /// Makes sure that a TCP connection ends without a word if the process is ended by [`StoppedProcess::kill`].
    pub fn silence(&mut self, connection: OwnedFd) {
        self.silent.push(connection);
    }

    /// Holds the wire of a connection of the caller's network namespace shut: until the process is let go, or, by the
    /// name `name`, until it is restored if it is ended by [`StoppedProcess::kill`]. `dying` tells whether that namespace
    /// ends with the set.
    pub fn hold(&mut self, name: &str, ends: wire::Ends, dying: impl FnOnce() -> bool) -> Result<()> {
        let what = || format!("the connection from {} to {}", ends.local, ends.remote);
        let at = match self.wires.iter().position(|w| w.held.is_here()) {
            Some(at) => at,
            None => {
                let own = format!("freeze-now-{}-{}", std::process::id(), self.view.pid);
                self.wires.push(Wires {
                    held: Held::new(own).on("socket(NETLINK_NETFILTER)", what)?,
                    name: name.to_owned(),
                    dying: dying(),
                });
                self.wires.len() - 1
            }
        };
        let held = &mut self.wires[at].held;
        held.add(ends).on("holding the wire shut (nf_tables)", what)
    }

    /// Runs a tape on its first thread.
    pub fn tape<R>(&mut self, fill: impl FnOnce(&mut Tape<'_>) -> R) -> Result<(Ran, R)> {
        self.tape_on(0, fill)
    }

    /// Runs a tape on each of its threads, many at the same time.
    pub fn tape_each<R>(&mut self, mut fill: impl FnMut(usize, &mut Tape<'_>) -> R) -> Result<Vec<(Ran, R)>> {
        if self.threads.len() == 1 {
            return Ok(vec![self.tape(|t| fill(0, t))?]);
        }
        self.map_scratch()?;
        self.finish_asking()?;
        for n in 0..self.threads.len() {
            self.suspend_seccomp(n)?;
        }
        self.threads[self.played].settle()?;
        let mut out = Vec::with_capacity(self.threads.len());
        for some in self.threads.chunks_mut(self.lanes.len()) {
            let before = out.len();
            out.extend(play_all(some, &self.lanes, &mut |n, t| fill(before + n, t))?);
            // The frames by which they would return without us lie where the next ones will have theirs.
            some.iter_mut().try_for_each(Stopped::settle)?;
        }
        Ok(out)
    }

    /// Sets its threads going on tapes with all the questions: one tape for each, since each costs some 40 µs.
    pub fn ask(&mut self, questions: &[Question]) -> Result<()> {
        self.map_scratch()?;
        self.answered.clear();
        for n in 0..self.threads.len() {
            // Those that find no free lane have to wait.
            if n > 0 && n % self.lanes.len() == 0 {
                self.finish_asking()?;
            }
            self.suspend_seccomp(n)?;
            let lane = self.lanes[n % self.lanes.len()].clone();
            let (tape, marks) = put(questions, n, &lane, &self.view);
            let calls = tape.calls().to_vec();
            let thread = &mut self.threads[n];
            let started = tape.start(thread)?;
            started.go(thread)?;
            let answered = Answered {
                ran: Ran::default(),
                marks,
                calls,
                lane,
            };
            self.asking.push((started, answered));
        }
        self.whose = self.whose();
        Ok(())
    }

    /// Takes what was answered at an earlier stop for what would be answered now: the caller knows that nothing has
    /// changed it. Refused, and nothing done, if others would be asked or other questions.
    pub fn recall(&mut self, earlier: Answers, questions: &[Question]) -> bool {
        let asked = |(n, a): (usize, &Answered)| put(questions, n, &a.lane, &self.view).0.calls() == a.calls;
        if earlier.whose != self.whose() || !earlier.answered.iter().enumerate().all(asked) {
            return false;
        }
        (self.answered, self.whose) = (earlier.answered, earlier.whose);
        true
    }

    /// What it answered will be different at the next stop, even if the process does nothing.
    pub fn answers_pass(&mut self) {
        self.passing = true;
    }

    fn whose(&self) -> Whose {
        let start = |tid: Pid| self.view.thread(tid).map_or(0, |t| t.stat.start_time);
        let mapped = self.view.vmas.iter().map(|v| (v.range(), v.dev, v.inode));
        Whose {
            threads: self.threads.iter().map(|t| (t.tid(), start(t.tid()))).collect(),
            mapped: mapped.collect(),
        }
    }

    /// Waits for the tapes with questions. All of them, whatever becomes of one: nothing else may be done to their threads.
    pub fn finish_asking(&mut self) -> Result<()> {
        let mut first = Ok(());
        for (started, mut answered) in std::mem::take(&mut self.asking) {
            let thread = &mut self.threads[self.answered.len()];
            // Its lane may be needed for another.
            let ran = started
                .finish(thread)
                .and_then(|ran| thread.settle().map(|()| ran));
            match ran {
                Ok(ran) => answered.ran = ran,
                Err(e) => {
                    answered.marks.clear();
                    first = first.and(Err(e));
                }
            }
            self.answered.push(answered);
        }
        first
    }

    /// What thread number `n` answered to the question `tag`, and what `put` makes of the places it put it in; once
    /// [`StoppedProcess::finish_asking`] has been called.
    pub fn answers<R>(
        &self,
        n: usize,
        tag: &'static str,
        put: impl FnOnce(&mut Tape<'_>, &ProcessView) -> R,
    ) -> Result<(&Ran, R)> {
        let found = self.answered.get(n).and_then(|answered| {
            let (_, mark) = answered.marks.iter().find(|(known, _)| *known == tag)?;
            Some((&answered.ran, answered.lane.tape().again(*mark)))
        });
        let Some((ran, mut tape)) = found else {
            return Err(Error::kernel(
                "ask",
                format!("thread {n} of {}: {tag}", self.view.pid),
                nix::errno::Errno::ENODATA,
            ));
        };
        Ok((ran, put(&mut tape, &self.view)))
    }

    fn map_scratch(&mut self) -> Result<()> {
        if self.scratch.is_none() {
            let pid = self.pid();
            self.suspend_seccomp(0)?;
            let many = self.threads.len() as u64;
            let Some(first) = self.threads.first_mut() else {
                return Err(Error::Died {
                    pid,
                    how: "has no thread left".into(),
                });
            };
            let pages = SCRATCH_PAGES.max(LANES.min(many) * LANE_PAGES);
            let scratch = Scratch::map(first, pid, &self.view.vmas, &self.view.status, pages)?;
            self.lanes = scratch.lanes(LANE_PAGES);
            self.scratch = Some(scratch);
        }
        Ok(())
    }

    /// Runs a tape on its thread number `index`.
    pub fn tape_on<R>(&mut self, index: usize, fill: impl FnOnce(&mut Tape<'_>) -> R) -> Result<(Ran, R)> {
        self.map_scratch()?;
        self.finish_asking()?;
        // The frame by which a thread would return without us lies in the mapping that all share.
        if self.played != index {
            self.threads[self.played].settle()?;
            self.played = index;
        }
        self.suspend_seccomp(index)?;
        let scratch = self.scratch.as_ref().expect("mapped just above");
        let thread = &mut self.threads[index];
        let mut tape = scratch.tape();
        let filled = fill(&mut tape);
        let ran = tape.run(thread)?;
        Ok((ran, filled))
    }

    /// Lets our calls pass whatever filters a thread has; they bite again once it is let go.
    fn suspend_seccomp(&self, index: usize) -> Result<()> {
        let Some(thread) = self.threads.get(index) else {
            return Ok(());
        };
        match self.view.thread(thread.tid()) {
            Some(view) if view.status.seccomp != 0 => thread.options(SUSPEND_SECCOMP),
            _ => Ok(()),
        }
    }

    /// Removes the scratch mapping and puts every thread's registers back.
    fn clear(&mut self) -> Result<()> {
        self.finish_asking()?;
        // Nobody may stand on the mapping when it goes.
        self.threads.iter_mut().skip(1).try_for_each(Stopped::settle)?;
        if was_late() {
            // Who does not run cannot unmap: what is left is a mapping that nothing in the process knows of.
            self.scratch = None;
            return self.threads.iter_mut().try_for_each(Stopped::settle);
        }
        if let (Some(scratch), Some(first)) = (self.scratch.take(), self.threads.first_mut()) {
            scratch.unmap(first)?;
            // It stands at the end of a single step, of which it would die without us: not for long.
            first.settle()?;
        }
        Ok(())
    }

    /// Lets every thread go on. `last` is called before, once it will be made to do nothing more; what comes of that is
    /// returned, with what the threads have answered.
    pub fn release<T>(mut self, last: impl FnOnce(&ProcessView) -> T) -> Result<(Option<Answers>, T)> {
        self.clear()?;
        let told = last(&self.view);
        let answers = Answers {
            whose: std::mem::take(&mut self.whose),
            answered: std::mem::take(&mut self.answered),
        };
        let released = release_all(std::mem::take(&mut self.threads));
        let asked = answers.answered.len();
        let whole = !self.passing && asked > 0 && answers.whose.threads.len() == asked;
        released.map(|()| (whole.then_some(answers), told))
    }

    /// Ends it with SIGKILL; only `stop` calls this, with a proof that its image is committed.
    pub fn kill(&self) -> Result<()> {
        for Wires { held, name, dying } in &self.wires {
            held.keep(name, *dying)
                .on("holding the wire shut (nf_tables)", || name.clone())?;
        }
        for connection in &self.silent {
            sys::tcp::silence(connection.as_fd()).on("setsockopt(TCP_REPAIR)", || {
                format!("a connection of {}", self.pid())
            })?;
        }
        sys::pidfd_send_signal(self.pidfd.as_fd(), libc::SIGKILL).on("kill", || format!("pid {}", self.pid()))
    }
}

impl Drop for StoppedProcess {
    fn drop(&mut self) {
        // The threads' own destructors let them go; what fails here failed because the process has ended.
        let _ = self.clear();
    }
}
