//! System V shared memory: segments by id, made, attached and removed.
#![allow(unsafe_code, reason = "raw system calls have their address here")]

use super::{Sys, plain, raw};
use nix::errno::Errno;

/// What shmctl(IPC_STAT) says of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShmStat {
    pub key: i32,
    pub uid: u32,
    pub gid: u32,
    /// Permissions, SHM_DEST (01000) and SHM_LOCKED (02000).
    pub mode: u32,
    pub size: u64,
    /// Seconds of the last change.
    pub changed: i64,
    pub creator: i32,
    /// Who attached or detached it last.
    pub last: i32,
    pub cuid: u32,
    pub cgid: u32,
    pub attached: u64,
}

/// shmctl(IPC_STAT).
pub fn shm_stat(id: i32) -> Sys<ShmStat> {
    // SAFETY: all zeros are a valid shmid_ds, which the call fills.
    let ds = unsafe {
        let mut ds: libc::shmid_ds = std::mem::zeroed();
        raw(
            libc::SYS_shmctl,
            [id as u64, libc::IPC_STAT as u64, &raw mut ds as u64, 0, 0, 0],
        )?;
        ds
    };
    Ok(ShmStat {
        key: ds.shm_perm.__key,
        uid: ds.shm_perm.uid,
        gid: ds.shm_perm.gid,
        mode: u32::from(ds.shm_perm.mode),
        size: ds.shm_segsz as u64,
        changed: ds.shm_ctime,
        creator: ds.shm_cpid,
        last: ds.shm_lpid,
        cuid: ds.shm_perm.cuid,
        cgid: ds.shm_perm.cgid,
        attached: ds.shm_nattch,
    })
}

/// shmctl(IPC_SET): owner and permissions.
pub fn shm_set(id: i32, uid: u32, gid: u32, mode: u32) -> Sys<()> {
    // SAFETY: all zeros are a valid shmid_ds, of which the call reads three fields.
    unsafe {
        let mut ds: libc::shmid_ds = std::mem::zeroed();
        (ds.shm_perm.uid, ds.shm_perm.gid) = (uid, gid);
        ds.shm_perm.mode = (mode & 0o777) as _;
        raw(
            libc::SYS_shmctl,
            [id as u64, libc::IPC_SET as u64, &raw const ds as u64, 0, 0, 0],
        )
        .map(drop)
    }
}

/// shmctl(IPC_RMID): gone with its last attachment.
pub fn shm_remove(id: i32) -> Sys<()> {
    plain(libc::SYS_shmctl, [id as u64, libc::IPC_RMID as u64, 0, 0, 0, 0]).map(drop)
}

/// shmctl(SHM_LOCK).
pub fn shm_lock(id: i32) -> Sys<()> {
    const SHM_LOCK: u64 = 11;
    plain(libc::SYS_shmctl, [id as u64, SHM_LOCK, 0, 0, 0, 0]).map(drop)
}

/// A segment attached to this process, detached when dropped.
#[derive(Debug)]
pub struct ShmAttached {
    at: usize,
    len: u64,
}

impl ShmAttached {
    /// shmat(2) of the whole segment, whose size is `len`.
    pub fn new(id: i32, len: u64) -> Sys<ShmAttached> {
        let at = plain(libc::SYS_shmat, [id as u64, 0, 0, 0, 0, 0])? as usize;
        let attached = ShmAttached { at, len };
        // A child that another thread forks meanwhile would be the one that detached it last, whenever it ends.
        let advice = [at as u64, len, libc::MADV_DONTFORK as u64, 0, 0, 0];
        plain(libc::SYS_madvise, advice)?;
        Ok(attached)
    }

    /// The memory as a file, by /proc/self/map_files.
    pub fn open(&self) -> std::io::Result<std::fs::File> {
        let end = self.at as u64 + self.len;
        std::fs::File::options()
            .read(true)
            .write(true)
            .open(format!("/proc/self/map_files/{:x}-{end:x}", self.at))
    }

    /// Writes into it.
    pub fn write(&self, at: u64, bytes: &[u8]) -> Sys<()> {
        if at
            .checked_add(bytes.len() as u64)
            .is_none_or(|end| end > self.len)
        {
            return Err(Errno::EFAULT);
        }
        // SAFETY: inside a mapping of ours, checked just above, to which no reference exists.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), (self.at as *mut u8).add(at as usize), bytes.len())
        };
        Ok(())
    }
}

impl Drop for ShmAttached {
    fn drop(&mut self) {
        let _ = plain(libc::SYS_shmdt, [self.at as u64, 0, 0, 0, 0, 0]);
    }
}
