//! Which processes and threads there are: all of them, and those of some trees.

use crate::error::{Context, Result};
use crate::ids::Pid;
use crate::observe::procfile::read_record;
use crate::proc::stat::Stat;
use std::fs::File;
use std::io::Read;
use std::path::Path;

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
    let mut found = look(roots)?;
    // Whose parent ends goes to another, perhaps to one that was looked at already.
    for _ in 0..AGAIN {
        if !found.1 {
            break;
        }
        found = look(roots)?;
    }
    Ok(found.0)
}

/// How often it is looked again because somebody ended meanwhile.
const AGAIN: usize = 8;

/// One look at the trees, and whether somebody ended in the midst of it.
fn look(roots: &[Pid]) -> Result<(Vec<(Pid, Pid)>, bool)> {
    let mut torn = false;
    let mut out: Vec<(Pid, Pid)> = Vec::new();
    let mut queue: std::collections::VecDeque<Pid> = roots.iter().copied().collect();
    let mut everybody: Option<Vec<(Pid, Pid)>> = None;
    while let Some(pid) = queue.pop_front() {
        if out.iter().any(|(p, _)| *p == pid) {
            continue;
        }
        let Ok(dir) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
            torn |= !roots.contains(&pid);
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
            match children(&entry.path()) {
                Ok(list) => queue.extend(list),
                // The thread has ended, and its children went to another.
                Err(e) if e.raw_os_error() != Some(libc::ENOENT) || !entry.path().exists() => torn = true,
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
    Ok((out, torn))
}

/// The children of the thread with this directory.
fn children(task: &Path) -> std::io::Result<Vec<Pid>> {
    let mut file = File::open(task.join("children"))?;
    let mut text = vec![0; 4096];
    let mut len = 0;
    // Most threads have none, which one call tells.
    loop {
        match file.read(&mut text[len..])? {
            0 => break,
            n => len += n,
        }
        text.resize(len + 4096, 0);
    }
    let words = text[..len].split(|b| *b == b' ');
    Ok(words
        .filter_map(|w| std::str::from_utf8(w).ok()?.parse().ok().map(Pid))
        .collect())
}

/// Every process with its parent.
pub fn parents() -> Result<Vec<(Pid, Pid)>> {
    let pairs = all_pids()?.into_iter().filter_map(|pid| {
        let stat = Stat::parse(&read_record(&format!("/proc/{pid}/stat")).ok()?)?;
        Some((pid, Pid(stat.ppid)))
    });
    Ok(pairs.collect())
}
