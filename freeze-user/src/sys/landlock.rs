//! landlock(7), for which no crate is needed to enter a domain of our own.

use super::{Sys, owned, plain, raw};
use std::os::fd::AsRawFd;

/// Has the calling thread, and it alone, enter a domain in which nothing that it does is forbidden but to make sockets.
pub fn restrict_thread() -> Sys<()> {
    const MAKE_SOCK: u64 = 1 << 9;
    // Who has no CAP_SYS_ADMIN may enter one only so; it is of the thread, too.
    plain(libc::SYS_prctl, [libc::PR_SET_NO_NEW_PRIVS as u64, 1, 0, 0, 0, 0])?;
    let handled = MAKE_SOCK.to_ne_bytes();
    // SAFETY: the call reads as many bytes as it is told.
    let rules = unsafe {
        let args = [handled.as_ptr() as u64, handled.len() as u64, 0, 0, 0, 0];
        owned(raw(libc::SYS_landlock_create_ruleset, args)?)
    };
    plain(
        libc::SYS_landlock_restrict_self,
        [rules.as_raw_fd() as u64, 0, 0, 0, 0, 0],
    )
    .map(drop)
}
