//! Scheduling attributes and limits of a thread, by sched_getattr(2), ioprio_get(2) and prlimit(2).
#![allow(unsafe_code, reason = "raw system calls have their address here")]

use super::raw;
use crate::ids::Pid;
use serde::{Deserialize, Serialize};

/// `struct sched_attr` (sched_setattr(2)), all eleven fields, 56 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchedAttr {
    pub size: u32,
    pub policy: u32,
    pub flags: u64,
    pub nice: i32,
    pub priority: u32,
    pub runtime: u64,
    pub deadline: u64,
    pub period: u64,
    pub util_min: u32,
    pub util_max: u32,
}
const _: () = assert!(size_of::<SchedAttr>() == 56);

/// `SCHED_FLAG_UTIL_CLAMP`: that `util_min` and `util_max` are meant too.
pub const UTIL_CLAMP: u64 = 0x20 | 0x40;

/// sched_getattr(2).
pub fn getattr(tid: Pid) -> nix::Result<SchedAttr> {
    let mut attr = SchedAttr::default();
    // SAFETY: the buffer is as large as the call is told.
    unsafe {
        raw(
            libc::SYS_sched_getattr,
            [
                tid.0 as u64,
                &raw mut attr as u64,
                size_of::<SchedAttr>() as u64,
                0,
                0,
                0,
            ],
        )?;
    }
    Ok(attr)
}

/// The core-scheduling cookie of one thread (prctl(2), PR_SCHED_CORE_GET); 0 for none.
pub fn core_cookie(tid: Pid) -> nix::Result<u64> {
    const PR_SCHED_CORE: u64 = 62;
    let mut cookie = 0u64;
    // SAFETY: the pointer is to a live u64.
    unsafe {
        let args = [PR_SCHED_CORE, 0, tid.0 as u64, 0, &raw mut cookie as u64, 0];
        raw(libc::SYS_prctl, args)?;
    }
    Ok(cookie)
}

/// sched_setattr(2).
pub fn setattr(tid: Pid, attr: &SchedAttr) -> nix::Result<()> {
    // SAFETY: `attr` carries its own size.
    unsafe {
        raw(
            libc::SYS_sched_setattr,
            [tid.0 as u64, std::ptr::from_ref(attr) as u64, 0, 0, 0, 0],
        )
        .map(drop)
    }
}

/// sched_getaffinity(2): the mask as bytes, as long as the kernel makes it.
pub fn affinity(tid: Pid) -> nix::Result<Vec<u8>> {
    let mut mask = vec![0u8; 1024];
    // SAFETY: the buffer is as large as the call is told.
    let n = unsafe {
        raw(
            libc::SYS_sched_getaffinity,
            [tid.0 as u64, mask.len() as u64, mask.as_mut_ptr() as u64, 0, 0, 0],
        )?
    };
    mask.truncate(n as usize);
    Ok(mask)
}

/// sched_setaffinity(2).
pub fn set_affinity(tid: Pid, mask: &[u8]) -> nix::Result<()> {
    // SAFETY: pointer and length belong together.
    unsafe {
        raw(
            libc::SYS_sched_setaffinity,
            [tid.0 as u64, mask.len() as u64, mask.as_ptr() as u64, 0, 0, 0],
        )
        .map(drop)
    }
}

/// ioprio_get(2) of one thread.
pub fn ioprio(tid: Pid) -> nix::Result<i32> {
    // SAFETY: no pointers.
    unsafe { raw(libc::SYS_ioprio_get, [1, tid.0 as u64, 0, 0, 0, 0]).map(|n| n as i32) }
}

/// ioprio_set(2) of one thread.
pub fn set_ioprio(tid: Pid, value: i32) -> nix::Result<()> {
    // SAFETY: no pointers.
    unsafe { raw(libc::SYS_ioprio_set, [1, tid.0 as u64, value as u64, 0, 0, 0]).map(drop) }
}

/// While this lives, the calling thread runs in a real-time class, ahead of everything ordinary.
///
/// For the time in which somebody else's program stands still: waiting for a CPU would be part of its pause. Where
/// it is not allowed (CAP_SYS_NICE) nothing changes. Not inherited over fork(2).
#[derive(Debug)]
pub struct Realtime {
    before: Option<SchedAttr>,
}

impl Realtime {
    /// Enters the class SCHED_FIFO at its lowest priority.
    pub fn enter() -> Realtime {
        const SCHED_FLAG_RESET_ON_FORK: u64 = 1;
        let before = getattr(Pid(0)).ok();
        let fifo = SchedAttr {
            size: size_of::<SchedAttr>() as u32,
            policy: libc::SCHED_FIFO as u32,
            flags: SCHED_FLAG_RESET_ON_FORK,
            priority: 1,
            ..SchedAttr::default()
        };
        let entered =
            before.is_some_and(|b| b.policy == libc::SCHED_OTHER as u32) && setattr(Pid(0), &fifo).is_ok();
        Realtime {
            before: before.filter(|_| entered),
        }
    }
}

impl Drop for Realtime {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = setattr(Pid(0), before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_attributes_can_be_set_to_what_they_are() {
        let attr = getattr(Pid(0)).unwrap();
        setattr(Pid(0), &attr).unwrap();
        assert_eq!(getattr(Pid(0)).unwrap(), attr);
        let mask = affinity(Pid(0)).unwrap();
        assert!(mask.iter().any(|b| *b != 0));
    }
}
