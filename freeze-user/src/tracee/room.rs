//! Room for the few pages of a scratch mapping in a process that has used up what its limits grant.

use crate::error::{Blocker, Error};
use crate::ids::Pid;
use crate::sys;
use nix::errno::Errno;

/// The limits that a mapping can meet (setrlimit(2)).
const MET: [u32; 2] = [libc::RLIMIT_MEMLOCK, libc::RLIMIT_AS];

/// Raised limits of a process; dropping it puts them back.
///
/// Like the single steps that it is held for, some microseconds during which freeze must not be killed.
pub(super) struct Room {
    pid: Pid,
    /// Resource, soft and hard limit, as they were.
    was: Vec<(u32, u64, u64)>,
}

/// Whether a mapping failed for a limit of the process.
pub(super) fn is_scarce(e: &Error) -> bool {
    matches!(
        e,
        Error::Kernel {
            errno: Errno::ENOMEM | Errno::EAGAIN,
            ..
        }
    )
}

/// What is said where there is none, and none could be made.
pub(super) fn none(pid: Pid) -> Error {
    Blocker::of(pid, "limits", "")
        .why(
            "its limits on memory (as, memlock, or the number of mappings) have no room for the few pages that a \
             checkpoint needs, and freeze may not raise them",
        )
        .remedy("raise them (prlimit --as, --memlock, sysctl vm.max_map_count), or run freeze with CAP_SYS_RESOURCE")
        .refuse()
}

impl Room {
    /// As much as can be had.
    pub(super) fn make(pid: Pid) -> Room {
        let mut was = Vec::new();
        for resource in MET {
            let Ok((soft, hard)) = sys::rlimit(pid, resource) else {
                continue;
            };
            // Beyond the hard limit only CAP_SYS_RESOURCE leads.
            let most = [libc::RLIM_INFINITY, hard];
            let raised = |most: &u64| sys::set_rlimit(pid, resource, *most, *most).is_ok();
            if soft != libc::RLIM_INFINITY && most.iter().any(raised) {
                was.push((resource, soft, hard));
            }
        }
        Room { pid, was }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        for (resource, soft, hard) in &self.was {
            // It cannot fail while the process is there: no limit becomes higher.
            let _ = sys::set_rlimit(self.pid, *resource, *soft, *hard);
        }
    }
}
