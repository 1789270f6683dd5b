//! Many stopped threads at once: all are set going before the first is waited for.

use super::Stopped;
use super::tape::{Ran, Scratch, Tape};
use crate::error::Result;

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
