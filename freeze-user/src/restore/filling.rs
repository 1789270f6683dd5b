//! What is left of a lazy restore when its program runs: bringing the rest of its memory in, and who sees to it.

use crate::error::{Error, Result};
use crate::ids::Pid;
use crate::kinds::memory::lazy::serve::Server;
use crate::nest::Nest;
use crate::proc::cgroup;
use crate::sys::fault;
use std::fs;

/// Memory that is still coming in. Dropped before all is in, it ends the processes it belongs to.
#[derive(Debug)]
#[must_use = "the processes are ended if it is dropped before all is in"]
pub struct Filling(pub(super) Option<Server>);

impl Filling {
    /// Whether there is anything to come.
    pub fn is_none(&self) -> bool {
        self.0.is_none()
    }

    /// How many bytes are missing.
    pub fn missing(&self) -> u64 {
        self.0.as_ref().map_or(0, Server::missing)
    }

    /// Waits until all is in; on an error the processes have been ended.
    pub fn finish(self) -> Result<()> {
        self.0.map_or(Ok(()), Server::finish)
    }

    pub(super) fn failure(&self) -> Option<Error> {
        self.0.as_ref().and_then(Server::failure)
    }

    /// Sets a keeper on the processes of a nest, before any of them runs.
    pub(super) fn guard(&mut self, nest: &mut Nest) -> Result<()> {
        let Some(server) = &mut self.0 else {
            return Ok(());
        };
        let pids = nest.pids();
        let keeper = server.keep(&pids)?;
        fault::point("keeper")?;
        settle(keeper, pids.first().copied());
        Ok(())
    }

    pub(super) fn stream(&mut self) -> Result<()> {
        self.0.as_mut().map_or(Ok(()), Server::stream)
    }
}

/// Sees to it that nobody ends the keeper who does not mean its program: it is the last that is taken when memory is
/// short, and lives in the program's control groups, not in those of freeze, which may end as a whole (a session does).
fn settle(keeper: Pid, program: Option<Pid>) {
    let _ = fs::write(format!("/proc/{keeper}/oom_score_adj"), "-1000");
    let Some(program) = program else { return };
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let groups = |of: &str| cgroup::memberships(&read(&format!("/proc/{of}/cgroup"))).unwrap_or_default();
    let own = groups("self");
    let mut others = groups(&program.to_string());
    // To move into the group one is in takes as long as into any other: a grace period of some 20 ms.
    others.retain(|m| !own.contains(m));
    if others.is_empty() {
        return;
    }
    let mounts = cgroup::mounts(&read("/proc/self/mountinfo"));
    for m in others {
        let place = mounts
            .iter()
            .filter(|mount| mount.is(&m.hierarchy))
            .find_map(|mount| mount.place(&m.path));
        if let Some(place) = place {
            let _ = fs::write(format!("{place}/cgroup.procs"), keeper.to_string());
        }
    }
}
