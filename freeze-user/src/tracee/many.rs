//! Many stopped threads at once: all are set going before the first is waited for.

use super::tape::{Ran, Scratch, Tape};
use super::{Pending, Stopped};
use crate::error::Result;
use crate::ids::Pid;
use nix::errno::Errno;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use std::time::{Duration, Instant};

/// Parks many threads: all are set on their way before the first is waited for.
pub fn park_all(threads: &mut [Stopped]) -> Result<()> {
    let begun = threads
        .iter_mut()
        .map(Stopped::begin_park)
        .fold(Ok(()), Result::and);
    let ended = threads
        .iter_mut()
        .map(Stopped::end_park)
        .fold(Ok(()), Result::and);
    begun.and(ended)
}

/// Plays a tape on each of some threads, all at the same time, each in a lane of its own.
pub fn play_all<R>(
    threads: &mut [Stopped],
    lanes: &[Scratch],
    fill: &mut dyn FnMut(usize, &mut Tape<'_>) -> R,
) -> Result<Vec<(Ran, R)>> {
    let mut started = Vec::with_capacity(threads.len());
    let mut failed = Ok(());
    for (n, (thread, lane)) in threads.iter_mut().zip(lanes).enumerate() {
        let mut tape = lane.tape();
        let filled = fill(n, &mut tape);
        match tape.start(thread).and_then(|s| s.go(thread).map(|()| s)) {
            Ok(s) => started.push((s, filled)),
            Err(e) => {
                failed = Err(e);
                break;
            }
        }
    }
    // Also after an error: only a thread at a halt can be let go.
    let mut out = Vec::with_capacity(started.len());
    for (thread, (started, filled)) in threads.iter_mut().zip(started) {
        match started.finish(thread) {
            Ok(ran) => out.push((ran, filled)),
            Err(e) => failed = failed.and(Err(e)),
        }
    }
    failed.map(|()| out)
}

/// Lets the threads of a process go on; the first comes ahead of the others where a signal waits that any may take.
///
/// The kernel hands what is for the whole process to its first thread as long as that runs, and some programs count on it:
/// an interpreter of Perl ends if another thread is given a signal that it has no handler for. Once all have stood still,
/// it would be whoever is quicker.
pub fn release_all(threads: Vec<Stopped>) -> Result<()> {
    const STEP: Duration = Duration::from_micros(50);
    const STEPS: usize = 200;
    let mut others = threads.into_iter();
    let Some(first) = others.next() else {
        return Ok(());
    };
    let (mask, stays) = (first.mask(), first.group_stop() != 0);
    let released = first.release();
    if let Some(second) = others.as_slice().first().filter(|_| !stays && released.is_ok()) {
        let takes = |signal: &Pending| signal.number().is_some_and(|n| mask >> (n - 1) & 1 == 0);
        let waits = || second.pending(true).is_ok_and(|all| all.iter().any(takes));
        for _ in 0..STEPS {
            if !waits() {
                break;
            }
            std::thread::sleep(STEP);
        }
    }
    others.fold(released, |released, thread| released.and(thread.release()))
}

/// For how long killed threads are waited for while none of them ends: one with much memory takes its time.
pub const LINGER: Duration = Duration::from_secs(30);

/// Waits for the end of all of these, which were killed, in whatever order they end: the last thread of the init of a
/// pid namespace ends only when everybody else in it has been waited for, by whoever has to. Those that have not ended
/// although none has for so `long` are given back.
pub fn reap(mut tids: Vec<Pid>, long: Duration) -> Vec<Pid> {
    let flags = WaitPidFlag::WNOHANG | WaitPidFlag::__WALL;
    let mut since = Instant::now();
    while !tids.is_empty() && since.elapsed() < long {
        let before = tids.len();
        tids.retain(|tid| {
            match waitpid(tid.nix(), Some(flags)) {
                Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) => false,
                // It is also what a tracer hears of a first thread that waits for the others of its process.
                Err(Errno::ECHILD) => is_traced_here(*tid),
                _ => true,
            }
        });
        if tids.len() == before {
            std::thread::sleep(Duration::from_micros(100));
        } else {
            since = Instant::now();
        }
    }
    tids
}

/// Whether the calling thread traces this one.
fn is_traced_here(tid: Pid) -> bool {
    let text = std::fs::read(format!("/proc/{tid}/status")).unwrap_or_default();
    let status = crate::proc::status::Status::parse(&text);
    status.is_some_and(|s| s.tracer == nix::unistd::gettid().as_raw())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn who_does_not_end_is_told() {
        let mut children: Vec<_> = (0..2)
            .map(|_| Command::new("sleep").arg("1000").spawn().expect("sleep(1)"))
            .collect();
        let pids: Vec<Pid> = children.iter().map(|c| Pid(c.id() as i32)).collect();
        children[0].kill().expect("our own child");
        assert_eq!(reap(pids.clone(), Duration::from_millis(300)), pids[1..]);
        children[1].kill().expect("our own child");
        assert_eq!(reap(pids[1..].to_vec(), LINGER), []);
    }
}
