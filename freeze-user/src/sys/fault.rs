//! Faults on demand: named points between the engine's steps, at any of which a test can make it fail.
//!
//! In ordinary use nothing is armed, and a point costs one read of a thread-local number.

use crate::error::{Error, Result};
use nix::errno::Errno;
use nix::sys::signal::{Signal, raise};
use std::cell::Cell;

thread_local! {
    /// How many points are still to be passed; 0 when nothing is armed.
    static LEFT: Cell<usize> = const { Cell::new(0) };
    static ACT: Cell<Act> = const { Cell::new(Act::Fail) };
    static FIRED: Cell<Option<&'static str>> = const { Cell::new(None) };
    static MEDDLE: Cell<Option<Meddling>> = const { Cell::new(None) };
}

/// The name of a point, and what is to be done whenever it is passed.
type Meddling = (&'static str, fn());

/// What happens at the chosen point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// The step fails with EIO.
    Fail,
    /// The process sends itself this signal and goes on, if it still can.
    Raise(Signal),
}

/// An armed fault of this thread; dropping it disarms.
#[derive(Debug)]
#[must_use = "dropping it disarms the fault"]
pub struct Armed(());

/// Arms the `n`th point (from 1) that this thread passes from now on.
pub fn arm(n: usize, act: Act) -> Armed {
    assert!(n > 0, "points are counted from 1");
    LEFT.set(n);
    ACT.set(act);
    FIRED.set(None);
    Armed(())
}

/// Has something done whenever this thread passes the point of this name from now on.
pub fn meddle(name: &'static str, what: fn()) -> Armed {
    LEFT.set(usize::MAX);
    MEDDLE.set(Some((name, what)));
    Armed(())
}

impl Armed {
    /// The point at which it happened, if it did.
    pub fn fired(&self) -> Option<&'static str> {
        FIRED.get()
    }
}

impl Drop for Armed {
    fn drop(&mut self) {
        LEFT.set(0);
        FIRED.set(None);
        MEDDLE.set(None);
    }
}

/// Arms what `FREEZE_FAULT` asks for (`fail:3`, `SIGINT:3`), for this thread and for good.
pub fn arm_from_env() {
    let Ok(wish) = std::env::var("FREEZE_FAULT") else {
        return;
    };
    let Some((act, n)) = wish.split_once(':') else {
        return;
    };
    let act = match act {
        "fail" => Act::Fail,
        name => match name.parse() {
            Ok(signal) => Act::Raise(signal),
            Err(_) => return,
        },
    };
    if let Ok(n) = n.parse()
        && n > 0
    {
        std::mem::forget(arm(n, act));
    }
}

/// Does work in a thread of its own, which passes the points that this one was armed for.
pub fn in_own_thread<T: Send>(work: impl FnOnce() -> T + Send) -> std::thread::Result<T> {
    let (left, act, meddle) = (LEFT.get(), ACT.get(), MEDDLE.get());
    let armed = || {
        MEDDLE.set(meddle);
        LEFT.set(left);
        ACT.set(act);
        let done = work();
        (done, LEFT.get(), FIRED.get())
    };
    let (done, left, fired) = std::thread::scope(|scope| scope.spawn(armed).join())?;
    LEFT.set(left);
    FIRED.set(fired.or(FIRED.get()));
    Ok(done)
}

/// A step of the engine begins here; fails if a test has armed this one.
pub fn point(name: &'static str) -> Result<()> {
    match LEFT.get() {
        0 => Ok(()),
        left => reached(name, left - 1),
    }
}

fn reached(name: &'static str, left: usize) -> Result<()> {
    if let Some((at, what)) = MEDDLE.get() {
        if at == name {
            what();
        }
        return Ok(());
    }
    LEFT.set(left);
    if left > 0 {
        return Ok(());
    }
    FIRED.set(Some(name));
    match ACT.get() {
        Act::Fail => Err(Error::kernel("fault on demand", name, Errno::EIO)),
        Act::Raise(signal) => raise(signal).map_err(|e| Error::kernel("raise", name, e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_thread_passes_the_points() {
        let armed = arm(2, Act::Fail);
        point("first").unwrap();
        assert!(in_own_thread(|| point("second").is_err()).unwrap());
        assert_eq!(armed.fired(), Some("second"));
    }

    #[test]
    fn the_third_point_fails_and_only_that() {
        let armed = arm(3, Act::Fail);
        assert!(point("a").is_ok());
        assert!(point("b").is_ok());
        assert_eq!(armed.fired(), None);
        assert!(point("c").is_err());
        assert_eq!(armed.fired(), Some("c"));
        assert!(point("d").is_ok());
        drop(armed);
        assert!(point("e").is_ok());
    }
}
