//! Extended attributes, file handles and links by descriptor, for which no crate has a safe function.

use super::{Sys, owned, plain, raw};
use nix::errno::Errno;
use std::ffi::{CStr, CString};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

fn text(path: &Path) -> Sys<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)
}

/// All extended attributes of the file at `path`, links (the magic ones of /proc too) followed; none where there are none.
pub fn xattrs(path: &Path) -> Sys<Vec<(Vec<u8>, Vec<u8>)>> {
    let at = text(path)?;
    let names = match grown(|buf| {
        // SAFETY: a terminated path and a buffer with its length.
        unsafe {
            let args = [
                at.as_ptr() as u64,
                buf.as_mut_ptr() as u64,
                buf.len() as u64,
                0,
                0,
                0,
            ];
            raw(libc::SYS_listxattr, args)
        }
    }) {
        Err(Errno::EOPNOTSUPP) => return Ok(Vec::new()),
        other => other?,
    };
    let mut out = Vec::new();
    for name in names.split(|b| *b == 0).filter(|n| !n.is_empty()) {
        let c = CString::new(name).map_err(|_| Errno::EINVAL)?;
        let value = grown(|buf| {
            // SAFETY: a terminated path and name, and a buffer with its length.
            unsafe {
                let args = [
                    at.as_ptr() as u64,
                    c.as_ptr() as u64,
                    buf.as_mut_ptr() as u64,
                    buf.len() as u64,
                    0,
                    0,
                ];
                raw(libc::SYS_getxattr, args)
            }
        });
        match value {
            Ok(value) => out.push((name.to_vec(), value)),
            // Gone between the two calls, or one that a security module lists and does not show.
            Err(Errno::ENODATA | Errno::EOPNOTSUPP) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(out)
}

/// Calls with a buffer that is made larger while it is too small.
fn grown(mut call: impl FnMut(&mut [u8]) -> Sys<i64>) -> Sys<Vec<u8>> {
    let mut buf = vec![0; 256];
    loop {
        match call(&mut buf) {
            Ok(n) => {
                buf.truncate(n as usize);
                return Ok(buf);
            }
            Err(Errno::ERANGE) => buf = vec![0; buf.len() * 4],
            Err(e) => return Err(e),
        }
    }
}

/// setxattr(2), links followed.
pub fn set_xattr(path: &Path, name: &[u8], value: &[u8]) -> Sys<()> {
    let (at, name) = (text(path)?, CString::new(name).map_err(|_| Errno::EINVAL)?);
    // SAFETY: a terminated path and name, and a value with its length.
    unsafe {
        let args = [
            at.as_ptr() as u64,
            name.as_ptr() as u64,
            value.as_ptr() as u64,
            value.len() as u64,
            0,
            0,
        ];
        raw(libc::SYS_setxattr, args).map(drop)
    }
}

/// What keeps a file from being opened for writing, or a name in a directory from being taken away (chattr(1)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guarded {
    Immutable,
    AppendOnly,
}

/// Whether what `path` leads to is guarded so.
pub fn guarded(path: &Path) -> Option<Guarded> {
    let attributes = super::ns::statx(path, 0).ok()?[1];
    guard_of(attributes)
}

fn guard_of(attributes: u64) -> Option<Guarded> {
    match attributes {
        a if a & libc::STATX_ATTR_IMMUTABLE as u64 != 0 => Some(Guarded::Immutable),
        a if a & libc::STATX_ATTR_APPEND as u64 != 0 => Some(Guarded::AppendOnly),
        _ => None,
    }
}

/// What a link in a directory leads to, as stat(2) shows it, and whether that is guarded so, in one call.
pub fn stat_guarded(dir: BorrowedFd<'_>, name: &CStr) -> Sys<(libc::statx, Option<Guarded>)> {
    let mut out = MaybeUninit::<libc::statx>::zeroed();
    let args = [
        dir.as_raw_fd() as u64,
        name.as_ptr() as u64,
        libc::AT_NO_AUTOMOUNT as u64,
        u64::from(libc::STATX_BASIC_STATS),
        out.as_mut_ptr() as u64,
        0,
    ];
    // SAFETY: a terminated string, and room for one struct statx.
    unsafe { raw(libc::SYS_statx, args)? };
    // SAFETY: plain numbers, all zero where the kernel has written none.
    let stat = unsafe { out.assume_init() };
    Ok((stat, guard_of(stat.stx_attributes)))
}

/// Those flags of an inode that chattr(1) sets and that can be set on any file: S, i, a, d, A, D.
const INODE_FLAGS: u32 = 0x1_00f8;
const FS_IOC_GETFLAGS: u64 = 0x8008_6601;
const FS_IOC_SETFLAGS: u64 = 0x4008_6602;

/// The flags of an inode; `None` where the file system has none.
pub fn inode_flags(fd: BorrowedFd<'_>) -> Option<u32> {
    let all = super::ioctl_int(fd, FS_IOC_GETFLAGS).ok()?;
    Some(all as u32 & INODE_FLAGS)
}

/// Gives an inode these flags.
pub fn set_inode_flags(fd: BorrowedFd<'_>, flags: u32) -> Sys<()> {
    let all = super::ioctl_int(fd, FS_IOC_GETFLAGS)? as u32;
    let wanted = all & !INODE_FLAGS | flags;
    if wanted == all {
        return Ok(());
    }
    super::ioctl_bytes(fd, FS_IOC_SETFLAGS, &mut u64::from(wanted).to_ne_bytes()).map(drop)
}

/// name_to_handle_at(2) of the file at `path`, links followed: type, bytes, and the number of its mount.
pub fn handle_of(path: &Path) -> Sys<(i32, Vec<u8>, i32)> {
    const MAX: usize = 128;
    let at = text(path)?;
    let mut buf = [0u8; 8 + MAX];
    buf[..4].copy_from_slice(&(MAX as u32).to_ne_bytes());
    let mut mount = 0i32;
    // SAFETY: a terminated path, a struct file_handle with as much room as it says, an int for the mount's number.
    unsafe {
        let args = [
            libc::AT_FDCWD as u64,
            at.as_ptr() as u64,
            buf.as_mut_ptr() as u64,
            &raw mut mount as u64,
            libc::AT_SYMLINK_FOLLOW as u64,
            0,
        ];
        raw(libc::SYS_name_to_handle_at, args)?;
    }
    let word = |at: usize| u32::from_ne_bytes([buf[at], buf[at + 1], buf[at + 2], buf[at + 3]]);
    let len = (word(0) as usize).min(MAX);
    Ok((word(4) as i32, buf[8..8 + len].to_vec(), mount))
}

/// open_by_handle_at(2) with `flags`, on the file system and mount of `mount`.
pub fn open_by_handle(mount: BorrowedFd<'_>, kind: i32, handle: &[u8], flags: i32) -> Sys<OwnedFd> {
    by_handle(mount.as_raw_fd(), kind, handle, flags)
}

/// The same, on the file system and mount of the working directory: see [`standing_in`].
pub fn open_by_handle_here(kind: i32, handle: &[u8], flags: i32) -> Sys<OwnedFd> {
    by_handle(libc::AT_FDCWD, kind, handle, flags)
}

/// Does something with `dir` for a working directory, in a thread of its own; nobody who watches it notices.
pub fn standing_in<T: Send>(dir: BorrowedFd<'_>, work: impl FnOnce() -> T + Send) -> Sys<T> {
    let stand = || -> Sys<T> {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS)?;
        nix::unistd::fchdir(dir)?;
        Ok(work())
    };
    std::thread::scope(|s| s.spawn(stand).join()).unwrap_or(Err(Errno::ECANCELED))
}

fn by_handle(mount: RawFd, kind: i32, handle: &[u8], flags: i32) -> Sys<OwnedFd> {
    let mut arg = (handle.len() as u32).to_ne_bytes().to_vec();
    arg.extend_from_slice(&kind.to_ne_bytes());
    arg.extend_from_slice(handle);
    let flags = flags | libc::O_CLOEXEC;
    // SAFETY: a struct file_handle: length, type, and as many bytes.
    unsafe {
        let args = [mount as u64, arg.as_ptr() as u64, flags as u64, 0, 0, 0];
        raw(libc::SYS_open_by_handle_at, args).map(owned)
    }
}

/// linkat(2): one more name for the file behind `fd`.
pub fn link_fd(fd: BorrowedFd<'_>, path: &Path) -> Sys<()> {
    let (from, to) = (
        text(Path::new(&format!("/proc/self/fd/{}", fd.as_raw_fd())))?,
        text(path)?,
    );
    // SAFETY: two terminated paths.
    unsafe {
        let args = [
            libc::AT_FDCWD as u64,
            from.as_ptr() as u64,
            libc::AT_FDCWD as u64,
            to.as_ptr() as u64,
            libc::AT_SYMLINK_FOLLOW as u64,
            0,
        ];
        raw(libc::SYS_linkat, args).map(drop)
    }
}

/// fcntl(F_GETLEASE), for the description behind `fd`.
pub fn lease(fd: BorrowedFd<'_>) -> Sys<i32> {
    plain(
        libc::SYS_fcntl,
        [fd.as_raw_fd() as u64, libc::F_GETLEASE as u64, 0, 0, 0, 0],
    )
    .map(|n| n as i32)
}

/// How long what is written to a file is expected to live (F_GET_RW_HINT); EINVAL where it knows no hints.
pub fn write_hint(fd: BorrowedFd<'_>) -> Sys<u64> {
    const F_GET_RW_HINT: u64 = 1035;
    let mut hint = 0u64;
    // SAFETY: the call writes one u64.
    unsafe {
        let args = [
            fd.as_raw_fd() as u64,
            F_GET_RW_HINT,
            &raw mut hint as u64,
            0,
            0,
            0,
        ];
        raw(libc::SYS_fcntl, args)?;
    }
    Ok(hint)
}

/// F_SET_RW_HINT.
pub fn set_write_hint(fd: BorrowedFd<'_>, hint: u64) -> Sys<()> {
    const F_SET_RW_HINT: u64 = 1036;
    // SAFETY: the call reads one u64.
    unsafe {
        let args = [
            fd.as_raw_fd() as u64,
            F_SET_RW_HINT,
            &raw const hint as u64,
            0,
            0,
            0,
        ];
        raw(libc::SYS_fcntl, args).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_file_is_found_by_its_handle_and_linked_again() {
        let dir = std::env::temp_dir().join(format!("freeze-files-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let (a, b) = (dir.join("a"), dir.join("b"));
        std::fs::write(&a, "x").unwrap();
        let long = vec![7; 1000];
        set_xattr(&a, b"user.long", &long).unwrap();
        let all = xattrs(&a).unwrap();
        assert!(all.contains(&(b"user.long".to_vec(), long)), "{all:?}");
        let (kind, bytes, _) = handle_of(&a).unwrap();
        let root = std::fs::File::open(&dir).unwrap();
        if let Ok(fd) = open_by_handle(root.as_fd(), kind, &bytes, libc::O_PATH) {
            link_fd(fd.as_fd(), &b).unwrap();
            assert_eq!(std::fs::metadata(&b).unwrap().nlink(), 2);
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
