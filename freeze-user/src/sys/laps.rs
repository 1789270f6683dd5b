//! Laps: how long the named parts of a pause took, noted by the thread that makes it.
//!
//! Nothing is noted between pauses, and a lap then costs one read of a thread-local.

use std::cell::RefCell;
use std::time::Instant;

/// Parts in the order in which they first occurred, each with all the nanoseconds it took.
pub type Parts = Vec<(&'static str, u64)>;

thread_local! {
    static LAPS: RefCell<Option<(Instant, Parts)>> = const { RefCell::new(None) };
}

/// A pause begins: what was noted before is forgotten.
pub fn begin() {
    // Room for what a few processes take, so that hardly anything is allocated in the pause.
    LAPS.set(Some((Instant::now(), Vec::with_capacity(256))));
}

/// What was done since the last lap belongs to `part`.
pub fn lap(part: &'static str) {
    LAPS.with_borrow_mut(|laps| {
        let Some((last, parts)) = laps else { return };
        let now = Instant::now();
        let took = (now - *last).as_nanos() as u64;
        *last = now;
        // The same part again and again, as with descriptors; others are summed up when it is over.
        match parts.last_mut() {
            Some((name, sum)) if std::ptr::eq(*name, part) => *sum += took,
            _ => parts.push((part, took)),
        }
    });
}

/// The pause is over.
pub fn end() -> Parts {
    let (_, noted) = LAPS.take().unwrap_or((Instant::now(), Parts::new()));
    let mut parts = Parts::new();
    for (part, took) in noted {
        match parts.iter_mut().find(|(name, _)| *name == part) {
            Some((_, sum)) => *sum += took,
            None => parts.push((part, took)),
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_one_name_are_one() {
        lap("before");
        begin();
        lap("a");
        lap("b");
        lap("a");
        let names: Vec<_> = end().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["a", "b"]);
        assert!(end().is_empty());
    }
}
