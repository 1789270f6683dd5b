//! Filling memory while its program runs: one thread answers who waits for a page, others bring in all the rest.
//!
//! ```text
//!   program touches a missing page ─► fault ──┐
//!   program forks, moves, unmaps, discards ───┤ gate: exclusive
//!                                             ▼
//!                                      what is missing ◄── gate: shared ── workers: look, UFFDIO_COPY, strike off
//! ```
//! A message about a change is read only while no worker stands between its look at what is missing and its copy; and
//! while one is unread the kernel takes no copy. So no page comes to where it does not belong any more.

use super::missing::{Missing, Part};
use crate::error::{Error, Result};
use crate::ids::{PAGE, Pid, Range, SpaceId};
use crate::store::{Content, Opened, Reader};
use crate::sys;
use crate::sys::keeper::Keeper;
use crate::sys::missing::{Filler, Message};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What a worker brings in at a time, in bytes.
const SHARE: u64 = 1 << 20;
/// What comes with a page that somebody waits for.
const AROUND: u64 = 64 << 10;
const WORKERS: usize = 2;

/// An address space with missing pages.
#[derive(Debug)]
struct Space {
    /// Whose pages of the image they are.
    of: Pid,
    filler: Arc<Filler>,
    missing: Mutex<Missing>,
    /// The source in the image that most pages of it come from, if there are others.
    bulk: Option<u32>,
    /// How far the workers have brought in what is not of the bulk: [`u64::MAX`] when all of it is there.
    warm: AtomicU64,
    /// Where the next worker looks on for all the rest.
    cursor: AtomicU64,
    /// Where the last fault's neighbourhood ended.
    fault: AtomicU64,
}

impl Space {
    fn new(of: Pid, filler: Filler, missing: Missing, bulk: Option<u32>) -> Space {
        Space {
            of,
            filler: Arc::new(filler),
            missing: Mutex::new(missing),
            bulk,
            warm: AtomicU64::new(if bulk.is_some() { 0 } else { u64::MAX }),
            cursor: AtomicU64::new(0),
            fault: AtomicU64::new(0),
        }
    }

    /// What a worker brings in next of what was written lately.
    fn next_warm(&self) -> Option<Vec<Part>> {
        let missing = lock(&self.missing);
        let share = missing.next(self.warm.load(Ordering::Relaxed), SHARE);
        self.warm
            .store(share.map_or(u64::MAX, |s| s.end), Ordering::Relaxed);
        Some(missing.within(share?))
    }

    /// What a worker brings in next of whatever there is.
    fn next(&self) -> Option<Vec<Part>> {
        let missing = lock(&self.missing);
        let cursor = self.cursor.load(Ordering::Relaxed);
        let share = missing.next(cursor, SHARE).or_else(|| missing.next(0, SHARE))?;
        self.cursor.store(share.end, Ordering::Relaxed);
        Some(missing.within(share))
    }

    /// The program has touched a page: if it goes through its memory in order, the workers go ahead of it. They do not
    /// follow one that jumps about, since they would read the image in as many jumps.
    fn touched(&self, around: Range) {
        let last = self.fault.swap(around.end, Ordering::Relaxed);
        if (last..last.saturating_add(SHARE)).contains(&around.start) {
            self.cursor.store(around.end, Ordering::Relaxed);
        }
    }
}

#[derive(Debug)]
struct Shared {
    image: Opened,
    /// After each share.
    rest: Duration,
    /// The gate: held shared for each copy, exclusively to read messages.
    spaces: RwLock<Vec<Space>>,
    /// Rings when there is another space, or an end.
    bell: OwnedFd,
    ended: AtomicBool,
    failed: Mutex<Option<Error>>,
    /// Whom to end when it fails.
    processes: Mutex<Vec<OwnedFd>>,
    keeper: Mutex<Option<Keeper>>,
}

/// Everything that is still to come of one restore. Dropping it before all is in ends the processes.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    answering: Option<JoinHandle<()>>,
    workers: Vec<JoinHandle<()>>,
}

impl Server {
    /// Begins to answer; there is nothing to be asked yet.
    pub fn start(image: Opened, rest: Duration) -> Result<Server> {
        let bell = sys::eventfd(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK);
        let bell = bell.map_err(|e| Error::kernel("eventfd", "for missing pages", e))?;
        let shared = Arc::new(Shared {
            image,
            rest,
            spaces: RwLock::default(),
            bell,
            ended: AtomicBool::new(false),
            failed: Mutex::default(),
            processes: Mutex::default(),
            keeper: Mutex::default(),
        });
        let answering = Some(thread("freeze-faults", &shared, Shared::answer)?);
        Ok(Server {
            shared,
            answering,
            workers: Vec::new(),
        })
    }

    /// Takes in an address space, registered with `filler`; from now on who touches a missing page is answered.
    pub fn add(&self, of: Pid, filler: Filler, missing: &[Range]) -> Result<()> {
        let pidfd = sys::pidfd_open(of).map_err(|e| Error::kernel("pidfd_open", format!("pid {of}"), e))?;
        lock(&self.shared.processes).push(pidfd);
        let bulk = self.shared.image.bulk(SpaceId::private(of));
        let space = Space::new(of, filler, Missing::new(missing), bulk);
        self.shared.write().push(space);
        self.shared.ring();
        Ok(())
    }

    /// How many bytes are missing.
    pub fn missing(&self) -> u64 {
        let spaces = self.shared.read();
        spaces.iter().map(|s| lock(&s.missing).bytes()).sum()
    }

    /// The processes are about to run: from now on they do not outlive this server with pages missing. The keeper's pid.
    pub fn keep(&mut self, processes: &[Pid]) -> Result<Pid> {
        let keeper = Keeper::start(processes).map_err(|e| Error::kernel("clone3", "the keeper", e))?;
        let pid = keeper.pid();
        *lock(&self.shared.keeper) = Some(keeper);
        Ok(pid)
    }

    /// Brings in all the rest.
    pub fn stream(&mut self) -> Result<()> {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        for _ in 0..processors.min(WORKERS) {
            self.workers
                .push(thread("freeze-stream", &self.shared, Shared::stream)?);
        }
        Ok(())
    }

    /// Waits until all is in. After an error its processes are being ended.
    pub fn finish(mut self) -> Result<()> {
        for worker in std::mem::take(&mut self.workers) {
            if worker.join().is_err() {
                self.shared
                    .fail(Error::kernel("thread", "filling memory", Errno::EIO));
            }
        }
        self.failure().map_or(Ok(()), Err)
    }

    /// What has gone wrong, once.
    pub fn failure(&self) -> Option<Error> {
        lock(&self.shared.failed).take()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let unfinished = self.missing() > 0;
        self.shared.ended.store(true, Ordering::Relaxed);
        self.shared.ring();
        let all = self.workers.drain(..).chain(self.answering.take());
        all.for_each(|t| drop(t.join()));
        if unfinished {
            self.shared.end_processes();
            // A child that was not told of may live on, and touch a page it misses in a year: no userfaultfd is closed
            // here. The keeper has them until nobody misses anything.
            for space in self.shared.read().iter() {
                std::mem::forget(space.filler.clone());
            }
        }
        let keeper = lock(&self.shared.keeper).take();
        // Dismissed when all is in; after an alarm waited for a while, so that who is told of the end finds it done.
        drop(keeper);
    }
}

fn thread(name: &str, shared: &Arc<Shared>, work: fn(&Shared)) -> Result<JoinHandle<()>> {
    let shared = shared.clone();
    let made = std::thread::Builder::new()
        .name(name.into())
        .spawn(move || work(&shared));
    made.map_err(|e| Error::io("clone", name, &e))
}

/// What a panicking thread leaves is no worse than a failure, which it is made by who joins it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What came of an attempt to put pages in.
#[derive(PartialEq, Eq)]
enum Put {
    Done,
    /// There are messages to be read first.
    Later,
}

/// Which pages of a part are brought in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pages {
    All,
    /// All, and somebody waits for them: what cannot be put in at once is left for later.
    Awaited,
    /// Those that do not come from this source of the image.
    NotOf(u32),
}

impl Shared {
    fn read(&self) -> RwLockReadGuard<'_, Vec<Space>> {
        self.spaces.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Vec<Space>> {
        self.spaces.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn ring(&self) {
        let _ = nix::unistd::write(&self.bell, &1u64.to_ne_bytes());
    }

    fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// Pages cannot be had: nobody may go on without them.
    fn fail(&self, e: Error) {
        lock(&self.failed).get_or_insert(e);
        self.ended.store(true, Ordering::Relaxed);
        self.end_processes();
        self.ring();
    }

    fn end_processes(&self) {
        if let Some(keeper) = &mut *lock(&self.keeper) {
            keeper.alarm();
        }
        for pidfd in lock(&self.processes).iter() {
            let _ = sys::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL);
        }
    }

    /// The thread that reads all messages.
    fn answer(&self) {
        let mut reader = self.image.reader();
        let mut waiting: Vec<(usize, u64)> = Vec::new();
        while !self.has_ended() {
            self.wait(!waiting.is_empty());
            if let Err(e) = self.hear(&mut waiting) {
                return self.fail(Error::kernel("read", "a userfaultfd", e));
            }
            waiting.sort_unstable();
            waiting.dedup();
            let mut later = Vec::new();
            for (n, at) in waiting.drain(..) {
                match self.serve(n, at, &mut reader) {
                    Ok(Put::Done) => {}
                    Ok(Put::Later) => later.push((n, at)),
                    Err(e) => return self.fail(e),
                }
            }
            waiting = later;
        }
    }

    /// Until there is a message, or for a moment only.
    fn wait(&self, moment: bool) {
        // Not at the gate: whoever adds a space must get in, to ring the bell.
        let fillers: Vec<Arc<Filler>> = self.read().iter().map(|s| s.filler.clone()).collect();
        let mut fds: Vec<PollFd<'_>> = fillers
            .iter()
            .map(|f| PollFd::new((**f).as_fd(), PollFlags::POLLIN))
            .collect();
        fds.push(PollFd::new(self.bell.as_fd(), PollFlags::POLLIN));
        let timeout = if moment {
            PollTimeout::from(1u8)
        } else {
            PollTimeout::NONE
        };
        let _ = poll(&mut fds, timeout);
        let mut count = [0; 8];
        let _ = nix::unistd::read(&self.bell, &mut count);
    }

    /// Reads all messages, does at once what changes of mappings ask for, and notes who waits for which page.
    fn hear(&self, waiting: &mut Vec<(usize, u64)>) -> nix::Result<()> {
        let mut spaces = self.write();
        let mut messages = Vec::new();
        let mut n = 0;
        // Those that are added on the way may have something to tell already.
        while n < spaces.len() {
            spaces[n].filler.read(&mut messages)?;
            for message in messages.drain(..) {
                let space = &mut spaces[n];
                let missing = space.missing.get_mut().unwrap_or_else(PoisonError::into_inner);
                match message {
                    Message::Fault(at) => waiting.push((n, at)),
                    Message::Gone(range) => drop(missing.cut(range)),
                    Message::Moved { from, to } => missing.moved(from, to),
                    Message::Fork(filler) => {
                        let child = Space::new(space.of, filler, missing.clone(), space.bulk);
                        spaces.push(child);
                    }
                }
            }
            n += 1;
        }
        Ok(())
    }

    /// Gives somebody the page they wait for, and what lies around it.
    fn serve(&self, n: usize, at: u64, reader: &mut Reader<'_>) -> Result<Put> {
        let around = Range::new(at / AROUND * AROUND, at / AROUND * AROUND + AROUND);
        let part = {
            let spaces = self.read();
            let missing = lock(&spaces[n].missing);
            let parts = missing.within(around);
            spaces[n].touched(around);
            parts.into_iter().find(|p| p.at.contains(at))
        };
        let Some(part) = part else {
            // Nothing was there at the checkpoint, or it is there by now, or the program has given it up.
            let spaces = self.read();
            return match spaces[n].filler.zero(at) {
                Err(Errno::EAGAIN) => Ok(Put::Later),
                Err(Errno::ENOMEM) => Err(Error::kernel(
                    "UFFDIO_ZEROPAGE",
                    format!("{at:#x}"),
                    Errno::ENOMEM,
                )),
                _ => {
                    spaces[n].filler.wake(at);
                    Ok(Put::Done)
                }
            };
        };
        let (done, _) = self.bring(n, part, reader, Pages::Awaited)?;
        if done == Put::Done {
            self.read()[n].filler.wake(at);
        }
        Ok(done)
    }

    /// A worker's life.
    fn stream(&self) {
        let mut reader = self.image.reader();
        while !self.has_ended() {
            let Some((n, parts, pages)) = self.next() else {
                return;
            };
            let mut read = 0;
            for part in parts {
                match self.bring(n, part, &mut reader, pages) {
                    Ok((_, bytes)) => read += bytes,
                    Err(e) => return self.fail(e),
                }
            }
            if read == 0 {
                continue;
            }
            let end = Instant::now() + self.rest;
            let more = || !self.has_ended() && !lock(&self.read()[n].missing).is_empty();
            while !self.rest.is_zero() && Instant::now() < end && more() {
                std::thread::sleep(self.rest.min(Duration::from_millis(10)));
            }
        }
    }

    /// What is brought in next; `None` once nothing is missing anywhere.
    ///
    /// First what was written between the last checkpoints, which will be wanted again soonest. It lies in their page
    /// files in order of address, and so does all the rest in its own: each chunk of either is read once.
    fn next(&self) -> Option<(usize, Vec<Part>, Pages)> {
        let spaces = self.read();
        let all = || spaces.iter().enumerate();
        let warm = |(n, space): (usize, &Space)| Some((n, space.next_warm()?, Pages::NotOf(space.bulk?)));
        let any = |(n, space): (usize, &Space)| Some((n, space.next()?, Pages::All));
        all().find_map(warm).or_else(|| all().find_map(any))
    }

    /// Reads a part from the image and puts it in; tells how many bytes that were.
    fn bring(&self, n: usize, part: Part, reader: &mut Reader<'_>, pages: Pages) -> Result<(Put, u64)> {
        let of = SpaceId::private(self.read()[n].of);
        let (mut all, mut read) = (Put::Done, 0);
        let bulk = match pages {
            Pages::NotOf(bulk) => Some(bulk),
            Pages::All | Pages::Awaited => None,
        };
        reader.for_each_of(
            of,
            part.source(),
            |source| Some(source) != bulk,
            |from, content| {
                let at = part.at.start + (from.start - part.from);
                let here = Part {
                    at: Range::new(at, at + from.len()),
                    from: from.start,
                };
                if let Content::Bytes(bytes) = content {
                    read += from.len();
                    loop {
                        match self.put(n, here, bytes)? {
                            Put::Later if pages != Pages::Awaited && !self.has_ended() => {
                                std::thread::sleep(Duration::from_micros(50))
                            }
                            Put::Later => {
                                all = Put::Later;
                                break;
                            }
                            Put::Done => break,
                        }
                    }
                }
                Ok(())
            },
        )?;
        Ok((all, read))
    }

    /// Puts pages in, as far as they are still missing and belong where they did when they were read.
    fn put(&self, n: usize, part: Part, bytes: &[u8]) -> Result<Put> {
        let spaces = self.read();
        let space = &spaces[n];
        let shift = part.at.start.wrapping_sub(part.from);
        let parts = lock(&space.missing).within(part.at);
        for p in parts
            .into_iter()
            .filter(|p| p.at.start.wrapping_sub(p.from) == shift)
        {
            let mut at = p.at.start;
            // At a seam of two mappings page by page.
            let mut most = u64::MAX;
            while at < p.at.end {
                let len = (p.at.end - at).min(most);
                let offset = (at - part.at.start) as usize;
                let (done, trouble) = space.filler.copy(at, &bytes[offset..offset + len as usize]);
                let mut end = at + done as u64;
                match trouble {
                    None => {}
                    // It is there already: another worker was faster.
                    Some(Errno::EEXIST) => end += PAGE,
                    Some(Errno::ENOENT) if len > PAGE => most = PAGE,
                    // Not mapped (MADV_DONTFORK, in a child), and whatever is mapped there later is new.
                    Some(Errno::ENOENT) => end += PAGE,
                    Some(Errno::EAGAIN) => {
                        lock(&space.missing).cut(Range::new(at, end));
                        return Ok(Put::Later);
                    }
                    // The process has ended, or executes another program.
                    Some(Errno::ESRCH) => {
                        *lock(&space.missing) = Missing::default();
                        return Ok(Put::Done);
                    }
                    Some(errno) => {
                        let what = format!("memory of pid {} at {end:#x}", space.of);
                        return Err(Error::kernel("UFFDIO_COPY", what, errno));
                    }
                }
                lock(&space.missing).cut(Range::new(at, end));
                at = end;
            }
        }
        Ok(Put::Done)
    }
}
