//! Limits on how long an operation and its pause may take, asked for between two steps, so that undo always runs.

use crate::error::{Blocker, Result};
use std::cell::Cell;
use std::time::{Duration, Instant};

/// When something ends, and how long that was.
type End = Option<(Instant, Duration)>;

thread_local! {
    static WHOLE: Cell<End> = const { Cell::new(None) };
    static PAUSE: Cell<End> = const { Cell::new(None) };
}

/// A limit of this thread; dropping it lifts it.
#[derive(Debug)]
#[must_use = "dropping it lifts the limit"]
pub struct Limit(&'static std::thread::LocalKey<Cell<End>>);

/// The whole operation of this thread must end within this time.
pub fn whole(within: Option<Duration>) -> Limit {
    set(&WHOLE, within)
}

/// The pause that begins now must end within this time.
pub fn pause(within: Option<Duration>) -> Limit {
    set(&PAUSE, within)
}

fn set(which: &'static std::thread::LocalKey<Cell<End>>, within: Option<Duration>) -> Limit {
    which.set(within.map(|w| (Instant::now() + w, w)));
    Limit(which)
}

impl Drop for Limit {
    fn drop(&mut self) {
        self.0.set(None);
    }
}

/// Whether the pause may still take as long as this, as far as it is limited.
pub fn leaves(estimate: Duration) -> bool {
    PAUSE
        .get()
        .is_none_or(|(end, _)| Instant::now() + estimate <= end)
}

/// An error once a limit has passed.
pub fn check() -> Result<()> {
    let passed = |end: End| end.is_some_and(|(end, _)| Instant::now() > end);
    let too_long = |what: &str, end: End, remedy: &str| {
        let text = end.map(|(_, w)| format!("{w:?}")).unwrap_or_default();
        Err(Blocker::at(what, "")
            .why(format!("it would take longer than {text}, and was given up"))
            .remedy(remedy)
            .refuse())
    };
    if passed(PAUSE.get()) {
        let remedy =
            "allow a longer pause (--max-pause), or let it go on when it gets longer (--when-longer go-on)";
        return too_long("the pause", PAUSE.get(), remedy);
    }
    if passed(WHOLE.get()) {
        return too_long("the operation", WHOLE.get(), "allow more time (--within)");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_that_has_passed_is_a_refusal_until_it_is_lifted() {
        let limit = pause(Some(Duration::ZERO));
        std::thread::sleep(Duration::from_millis(1));
        assert_eq!(check().unwrap_err().kind(), "refused");
        assert!(!leaves(Duration::ZERO));
        drop(limit);
        assert!(check().is_ok() && leaves(Duration::from_secs(1000)));
    }
}
