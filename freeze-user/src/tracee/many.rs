//! Many stopped threads at once: all are set going before the first is waited for.

use super::tape::{Ran, Scratch, Tape};
use super::{Pending, Stopped};
use crate::error::Result;
use std::time::Duration;

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
