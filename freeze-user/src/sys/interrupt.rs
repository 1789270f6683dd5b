//! SIGINT, SIGTERM and SIGHUP as a question that is asked between two steps, so that undo always runs.
#![allow(unsafe_code, reason = "signal handlers have their address here")]

use crate::error::{Blocker, Result};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Mutex, PoisonError};

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

/// As long as one lives, neither its terminal's ^Z nor what it prints to one stops freeze, which would leave those stopped
/// that it holds. A ^Z that came meanwhile takes effect afterwards.
#[derive(Debug)]
#[must_use = "dropping it lets freeze be stopped"]
pub struct Unstoppable(());

/// How many there are, and what the signals did before.
static UNSTOPPABLE: Mutex<(usize, Vec<(Signal, SigAction)>)> = Mutex::new((0, Vec::new()));

static ASKED_TO_STOP: AtomicBool = AtomicBool::new(false);

extern "C" fn note_stop(_: i32) {
    ASKED_TO_STOP.store(true, Ordering::Relaxed);
}

impl Unstoppable {
    /// Begins it.
    pub fn begin() -> Unstoppable {
        let mut held = UNSTOPPABLE.lock().unwrap_or_else(PoisonError::into_inner);
        held.0 += 1;
        if held.0 > 1 {
            return Unstoppable(());
        }
        // Who ignores the others may write to its terminal from the background.
        let how = [
            (Signal::SIGTSTP, SigHandler::Handler(note_stop)),
            (Signal::SIGTTOU, SigHandler::SigIgn),
            (Signal::SIGTTIN, SigHandler::SigIgn),
        ];
        for (signal, handler) in how {
            let action = SigAction::new(handler, SaFlags::SA_RESTART, SigSet::empty());
            // SAFETY: the handler stores one atomic word, which is all a handler may do.
            if let Ok(before) = unsafe { sigaction(signal, &action) } {
                held.1.push((signal, before));
            }
        }
        Unstoppable(())
    }
}

impl Drop for Unstoppable {
    fn drop(&mut self) {
        let mut held = UNSTOPPABLE.lock().unwrap_or_else(PoisonError::into_inner);
        held.0 -= 1;
        if held.0 > 0 {
            return;
        }
        for (signal, before) in std::mem::take(&mut held.1) {
            // SAFETY: what was there before is as good as it was.
            let _ = unsafe { sigaction(signal, &before) };
        }
        drop(held);
        if ASKED_TO_STOP.swap(false, Ordering::Relaxed) {
            let _ = nix::sys::signal::raise(Signal::SIGTSTP);
        }
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
