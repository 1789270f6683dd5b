//! Conformance of eventfds: counter, semaphore mode, flags, sharing.

use freeze_tests::{Here, conformance};
use nix::sys::eventfd::{EfdFlags, EventFd};

/// A semaphore gives one at a time, before and after.
fn semaphore(here: &Here) {
    let fd = EventFd::from_value_and_flags(5, EfdFlags::EFD_SEMAPHORE).unwrap();
    here.freeze_here();
    assert_eq!(fd.read().unwrap(), 1);
    assert_eq!(fd.read().unwrap(), 1);
}

/// A counter keeps its value to the last bit and gives it all at once.
fn counter(here: &Here) {
    let full = EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC).unwrap();
    full.write(u64::MAX - 1).unwrap();
    let empty = EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK).unwrap();
    here.freeze_here();
    assert_eq!(full.write(1), Err(nix::errno::Errno::EAGAIN), "it is full");
    assert_eq!(full.read().unwrap(), u64::MAX - 1);
    assert_eq!(empty.read(), Err(nix::errno::Errno::EAGAIN), "it is empty");
}

conformance!(semaphores, semaphore);
conformance!(counters, counter);
