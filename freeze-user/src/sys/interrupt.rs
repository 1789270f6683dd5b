//! SIGINT, SIGTERM and SIGHUP as a question that is asked between two steps, so that undo always runs.
#![allow(unsafe_code, reason = "signal handlers have their address here")]

use crate::error::{Blocker, Result};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use std::sync::atomic::{AtomicI32, Ordering};

static CAUGHT: AtomicI32 = AtomicI32::new(0);

extern "C" fn note(signal: i32) {
    CAUGHT.store(signal, Ordering::Relaxed);
}

/// From now on these signals are only noted.
pub fn install() {
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let action = SigAction::new(SigHandler::Handler(note), SaFlags::SA_RESTART, SigSet::empty());
        // SAFETY: the handler stores one atomic number, which is all a handler may do.
        let _ = unsafe { sigaction(signal, &action) };
    }
}

/// Has the next question answered as if this signal had come.
pub fn raise(signal: i32) {
    note(signal);
}

/// Gives the signals their default actions back.
pub fn uninstall() {
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let action = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
        // SAFETY: the default action is no code of ours.
        let _ = unsafe { sigaction(signal, &action) };
    }
}

/// The signal that came, if one did; it is forgotten by this.
pub fn take() -> Option<i32> {
    match CAUGHT.swap(0, Ordering::Relaxed) {
        0 => None,
        signal => Some(signal),
    }
}

/// An error if one of the signals came since the last question.
pub fn check() -> Result<()> {
    match CAUGHT.load(Ordering::Relaxed) {
        0 => Ok(()),
        signal => {
            let name = Signal::try_from(signal).map_or("a signal", Signal::as_str);
            Err(Blocker::at("freeze", "")
                .why(format!("it was interrupted by {name}"))
                .refuse())
        }
    }
}
