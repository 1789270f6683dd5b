//! Whether a watched process may have changed what only it can tell: its handlers, limits, securebits and the like.
//!
//! The kernel programs count the calls and signals that can do so (`freeze-ebpf/src/changes.rs`). A process that stood still
//! twice, with the same count, would give the same answers: it need not be asked again. Nor need its sockets be asked for
//! their options, of which another count tells.

use crate::error::{Context, Result};
use crate::ids::Pid;
use crate::sys::bpf;
use aya::maps::{Map, MapData};
use nix::errno::Errno;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// Reads the counts.
#[derive(Clone, Debug)]
pub struct Changes(Arc<[OwnedFd; 2]>);

/// A state of the counts: of a process, and of what processes have changed of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count(u64, u64);

impl Changes {
    pub(super) fn new(watched: &Map, counts: &Map) -> Result<Changes> {
        let (Map::HashMap(watched), Map::Array(counts)) = (watched, counts) else {
            return Err(Errno::EINVAL).on("find map", || "eBPF maps of changes");
        };
        let own = |data: &MapData| data.fd().as_fd().try_clone_to_owned().on("dup", || "an eBPF map");
        Ok(Changes(Arc::new([own(watched)?, own(counts)?])))
    }

    /// How much processes have changed of others, whichever. To be read before it is asked what may have been changed.
    pub fn of_others(&self) -> Option<u64> {
        self.count(0)
    }

    /// How often watched processes may have changed options of sockets, whichever.
    pub fn of_options(&self) -> Option<u64> {
        self.count(1)
    }

    fn count(&self, which: u32) -> Option<u64> {
        let [count] = bpf::lookup(self.0[1].as_fd(), which).ok()?;
        Some(count)
    }

    /// How much a process may have changed of itself; `None` if it is not watched.
    ///
    /// To be read while it stands still, after it was asked: what freeze has it do counts too.
    pub fn of(&self, pid: Pid, others: u64) -> Option<Count> {
        let [_, own] = bpf::lookup(self.0[0].as_fd(), pid.0 as u32).ok()?;
        Some(Count(own, others))
    }
}
