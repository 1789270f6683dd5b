//! POSIX message queues by their system calls: names without the slash that mq_open(3) takes off.

use super::{Sys, owned, plain, raw};
use crate::error::errno;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::ffi::CString;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

/// How many messages a queue takes, and how long each may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    pub messages: i64,
    pub size: i64,
}

/// `struct mq_attr`: flags, how many, how long, how many there are; reserved words.
type Attr = [i64; 8];

fn call(name: &[u8], flags: i32, mode: u32, attr: Option<&Attr>) -> Sys<OwnedFd> {
    let name = CString::new(name).map_err(|_| Errno::EINVAL)?;
    let attr = attr.map_or(0, |a| a.as_ptr() as u64);
    // Its descriptors are closed on exec without being asked to; to ask would show in the flags of the file.
    let flags = flags as u64;
    // SAFETY: a terminated string, and a struct mq_attr or none.
    unsafe {
        raw(
            libc::SYS_mq_open,
            [name.as_ptr() as u64, flags, u64::from(mode), attr, 0, 0],
        )
    }
    .map(owned)
}

/// Opens a queue that is there.
pub fn open(name: &[u8], flags: i32) -> Sys<OwnedFd> {
    call(name, flags & (libc::O_ACCMODE | libc::O_NONBLOCK), 0, None)
}

/// Makes a queue, which must not be there; open for both, without waiting.
///
/// It is made by its owner, user and group: in the IPC namespace of a user namespace others may be nobody.
pub fn create(name: &[u8], owner: (u32, u32), shape: Shape) -> Sys<OwnedFd> {
    let attr = [0, shape.messages, shape.size, 0, 0, 0, 0, 0];
    let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL | libc::O_NONBLOCK;
    let become_owner = |(uid, gid): (u32, u32)| -> Sys<(u32, u32)> {
        let gid = plain(libc::SYS_setfsgid, [u64::from(gid), 0, 0, 0, 0, 0])?;
        let uid = plain(libc::SYS_setfsuid, [u64::from(uid), 0, 0, 0, 0, 0])?;
        Ok((uid as u32, gid as u32))
    };
    let before = become_owner(owner)?;
    let made = call(name, flags, 0o600, Some(&attr));
    become_owner(before)?;
    made
}

/// How a queue is made, and how many messages are in it.
pub fn shape(fd: BorrowedFd<'_>) -> Sys<(Shape, i64)> {
    let mut attr: Attr = [0; 8];
    // SAFETY: the call writes one struct mq_attr.
    unsafe {
        let args = [fd.as_raw_fd() as u64, 0, attr.as_mut_ptr() as u64, 0, 0, 0];
        raw(libc::SYS_mq_getsetattr, args)?;
    }
    let [_, messages, size, now, ..] = attr;
    Ok((Shape { messages, size }, now))
}

/// mq_send(3).
pub fn send(fd: BorrowedFd<'_>, text: &[u8], priority: u32) -> Sys<()> {
    // SAFETY: a buffer with its length, and no timeout.
    unsafe {
        let (at, len) = (text.as_ptr() as u64, text.len() as u64);
        let args = [fd.as_raw_fd() as u64, at, len, u64::from(priority), 0, 0];
        raw(libc::SYS_mq_timedsend, args).map(drop)
    }
}

/// mq_unlink(3).
pub fn unlink(name: &[u8]) -> Sys<()> {
    let name = CString::new(name).map_err(|_| Errno::EINVAL)?;
    // SAFETY: a terminated string.
    unsafe { raw(libc::SYS_mq_unlink, [name.as_ptr() as u64, 0, 0, 0, 0, 0]).map(drop) }
}

/// The names of all queues in the IPC namespace of the caller, by a mount of its own that is attached nowhere.
pub fn names() -> Sys<Vec<Vec<u8>>> {
    const FSOPEN_CLOEXEC: u64 = 1;
    const FSCONFIG_CMD_CREATE: u64 = 6;
    const FSMOUNT_CLOEXEC: u64 = 1;
    // SAFETY: a terminated string.
    let context = unsafe {
        let name = c"mqueue".as_ptr() as u64;
        raw(libc::SYS_fsopen, [name, FSOPEN_CLOEXEC, 0, 0, 0, 0])
    }
    .map(owned)?;
    let fd = context.as_raw_fd() as u64;
    plain(libc::SYS_fsconfig, [fd, FSCONFIG_CMD_CREATE, 0, 0, 0, 0])?;
    let mount = plain(libc::SYS_fsmount, [fd, FSMOUNT_CLOEXEC, 0, 0, 0, 0]).map(owned)?;
    let entries = std::fs::read_dir(format!("/proc/thread-self/fd/{}", mount.as_raw_fd())).map_err(errno)?;
    entries
        .map(|e| Ok(e.map_err(errno)?.file_name().into_vec()))
        .collect()
}
