//! fanotify_init(2) and fanotify_mark(2), which no crate has with all their flags.

use super::capabilities::{SYS_ADMIN, give_up};
use super::{Sys, owned, plain, raw};
use nix::errno::Errno;
use std::ffi::CString;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// FAN_EVENT_ON_CHILD: what happens to the files in a directory.
pub const EVENT_ON_CHILD: u64 = 0x0800_0000;
/// FAN_MARK_IGNORED_MASK: the mask says what is ignored.
pub const IGNORED_MASK: u32 = 0x20;
/// FAN_MARK_IGNORED_SURV_MODIFY: and goes on to be when the file changes.
pub const IGNORED_SURVIVES: u32 = 0x40;
/// FAN_MARK_IGNORE: the same with regard to directories and children.
pub const IGNORE: u32 = 0x400;

/// fanotify_init(2) with exactly these flags, which the group shows for ever; without the right to see everything if
/// that is asked for.
pub fn fanotify_new(flags: u32, event_flags: u32, unprivileged: bool) -> Sys<OwnedFd> {
    let make = || {
        let args = [u64::from(flags), u64::from(event_flags), 0, 0, 0, 0];
        let group = plain(libc::SYS_fanotify_init, args).map(owned)?;
        let cloexec = nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC);
        nix::fcntl::fcntl(&group, cloexec)?;
        Ok(group)
    };
    if !unprivileged {
        return make();
    }
    // Rights are a thread's own.
    let without = || -> Sys<OwnedFd> {
        give_up(SYS_ADMIN)?;
        make()
    };
    std::thread::scope(|s| s.spawn(without).join()).unwrap_or(Err(Errno::ECANCELED))
}

/// fanotify_mark(2) with FAN_MARK_ADD of exactly this path, or of what it leads to.
pub fn fanotify_mark(group: BorrowedFd<'_>, flags: u32, mask: u64, path: &Path, follow: bool) -> Sys<()> {
    const ADD: u32 = 1;
    const DONT_FOLLOW: u32 = 4;
    let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)?;
    let flags = flags | ADD | if follow { 0 } else { DONT_FOLLOW };
    // SAFETY: a terminated string.
    unsafe {
        raw(
            libc::SYS_fanotify_mark,
            [
                group.as_raw_fd() as u64,
                u64::from(flags),
                mask,
                libc::AT_FDCWD as u64,
                path.as_ptr() as u64,
                0,
            ],
        )
        .map(drop)
    }
}
