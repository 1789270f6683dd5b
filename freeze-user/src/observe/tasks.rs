//! Which processes and threads there are: all of them, and those of some trees.

use crate::error::{Context, Result};
use crate::ids::Pid;
use crate::proc::stat::Stat;

/// All processes of this pid namespace, in order.
pub fn all_pids() -> Result<Vec<Pid>> {
    let dir = std::fs::read_dir("/proc").on("readdir", || "/proc")?;
    let mut pids: Vec<Pid> = dir
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.parse().ok().map(Pid))
        .collect();
    pids.sort_unstable();
    Ok(pids)
}

/// From how many threads on a process's children are looked for among all processes.
const MANY: usize = 200;

/// All threads of the trees below `roots`, zombies included, each with its process; parents come before their children.
///
/// Complete only once all of them stand still: children forked meanwhile may be missed (proc_pid_task(5), `children`).
pub fn tasks(roots: &[Pid]) -> Result<Vec<(Pid, Pid)>> {
    let mut out: Vec<(Pid, Pid)> = Vec::new();
    let mut queue: std::collections::VecDeque<Pid> = roots.iter().copied().collect();
    let mut everybody: Option<Vec<(Pid, Pid)>> = None;
    while let Some(pid) = queue.pop_front() {
        if out.iter().any(|(p, _)| *p == pid) {
            continue;
        }
        let Ok(dir) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
            continue;
        };
        let entries: Vec<_> = dir.flatten().collect();
        if entries.len() > MANY {
            // One look at everybody is shorter than one at each of so many threads.
            let tids = entries
                .iter()
                .filter_map(|e| e.file_name().to_str()?.parse().ok());
            out.extend(tids.map(|tid| (pid, Pid(tid))));
            if everybody.is_none() {
                everybody = Some(parents()?);
            }
            let all = everybody.as_deref().unwrap_or_default();
            queue.extend(
                all.iter()
                    .filter(|(_, parent)| *parent == pid)
                    .map(|(child, _)| *child),
            );
            continue;
        }
        for entry in entries {
            let Some(tid) = entry.file_name().to_str().and_then(|s| s.parse().ok()).map(Pid) else {
                continue;
            };
            out.push((pid, tid));
            match std::fs::read_to_string(entry.path().join("children")) {
                Ok(list) => queue.extend(
                    list.split_ascii_whitespace()
                        .filter_map(|w| w.parse().ok())
                        .map(Pid),
                ),
                // The thread has ended, and its children went to another.
                Err(e) if e.raw_os_error() != Some(libc::ENOENT) || !entry.path().exists() => {}
                // Without CONFIG_PROC_CHILDREN: everybody's parent instead.
                Err(_) => {
                    if everybody.is_none() {
                        everybody = Some(parents()?);
                    }
                    let all = everybody.as_deref().unwrap_or_default();
                    queue.extend(
                        all.iter()
                            .filter(|(_, parent)| *parent == pid)
                            .map(|(child, _)| *child),
                    );
                }
            }
        }
    }
    Ok(out)
}

/// Every process with its parent.
pub fn parents() -> Result<Vec<(Pid, Pid)>> {
    let pairs = all_pids()?.into_iter().filter_map(|pid| {
        let stat = Stat::parse(&std::fs::read(format!("/proc/{pid}/stat")).ok()?)?;
        Some((pid, Pid(stat.ppid)))
    });
    Ok(pairs.collect())
}
