//! What the threads of a process have in common with its first, told in one go by an eBPF iterator (`iter/task`).
//!
//! The kernel holds what threads share by its address: the same address is the same thing. /proc tells of one thread and
//! one thing at a time, so that of a thousand threads it takes ten thousand calls to learn that nothing is out of the ordinary.
//! Only that something is the same is learned here; of what is not, /proc tells what it is.

use super::btf::Btf;
use super::sweep::in_first_pid_namespace;
use crate::ids::Pid;
use crate::sys::bpf::kin::{KinIterator, Task, TaskOffsets};
use std::collections::HashMap;
use std::sync::OnceLock;

/// What a thread is known to have in common with the first of its process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Alike {
    /// All namespaces but those of users and pids.
    pub namespaces: bool,
    /// The place in every hierarchy of control groups.
    pub cgroups: bool,
    /// The descriptor table.
    pub files: bool,
    /// The working directory.
    pub directory: bool,
    /// The login uid.
    pub login: bool,
}

/// From so many threads on the iterator is worth its preparation, of some milliseconds once.
const MANY: usize = 100;

/// The way of this process to look, and whether it tells of login uids; none where the kernel grants no such iterator.
static LOOK: OnceLock<Option<(KinIterator, bool)>> = OnceLock::new();

/// What each of `threads` threads of a process, which are looked at just now, has in common with the first; nothing is
/// known of those that are not told of.
pub(super) fn look(pid: Pid, threads: usize) -> HashMap<Pid, Alike> {
    if threads < MANY {
        return HashMap::new();
    }
    let Some((iterator, login)) = LOOK.get_or_init(start) else {
        return HashMap::new();
    };
    let all = iterator
        .read(pid)
        .inspect_err(|errno| tracing::debug!(%errno, %pid, "what its threads share is read from /proc"))
        .unwrap_or_default();
    compare(pid, &all, *login)
}

fn start() -> Option<(KinIterator, bool)> {
    // It tells tids of the first pid namespace; /proc shows those of ours.
    if !in_first_pid_namespace() {
        return None;
    }
    let btf = Btf::running().ok()?;
    let target = "bpf_iter_task";
    let id = *btf.ids(true, &[target]).get(target)?;
    let members = ["pid", "nsproxy", "cgroups", "files", "fs", "loginuid"].map(|m| ("task_struct", m));
    let found = btf.offsets(&members);
    let at = |n: usize| found.get(&members[n]).copied();
    let offsets = TaskOffsets {
        pid: at(0)?,
        nsproxy: at(1)?,
        cgroups: at(2)?,
        files: at(3)?,
        fs: at(4)?,
        loginuid: at(5),
    };
    KinIterator::new(id, offsets)
        .inspect_err(
            |errno| tracing::debug!(%errno, "no iterator over threads: what they share comes from /proc"),
        )
        .ok()
        .map(|iterator| (iterator, offsets.loginuid.is_some()))
}

fn compare(pid: Pid, all: &[Task], login: bool) -> HashMap<Pid, Alike> {
    let Some(first) = all.iter().find(|t| t.tid == pid) else {
        return HashMap::new();
    };
    let same = |own: u64, other: u64| own == other && own != 0;
    let one = |t: &Task| Alike {
        namespaces: same(t.nsproxy, first.nsproxy),
        cgroups: same(t.cgroups, first.cgroups),
        files: same(t.files, first.files),
        directory: same(t.fs, first.fs),
        login: login && t.loginuid == first.loginuid,
    };
    all.iter().map(|t| (t.tid, one(t))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};

    /// A process whose threads have left it in one way each.
    #[test]
    fn what_a_thread_has_of_its_own_is_told_from_what_it_shares() {
        if LOOK.get_or_init(start).is_none() {
            return;
        }
        let mut child = Command::new("python3");
        child
            .args(["-c", PROGRAM])
            .stdout(Stdio::piped())
            .process_group(0);
        let mut child = child.spawn().unwrap();
        let mut said = String::new();
        let mut out = std::io::BufReader::new(child.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut out, &mut said).unwrap();
        let tids: Vec<i32> = said
            .split_ascii_whitespace()
            .map(|w| w.parse().unwrap())
            .collect();
        let pid = Pid(child.id() as i32);
        let alike = look(pid, MANY);
        let few = look(pid, 1);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(few.is_empty());
        let known = |n: usize| alike[&Pid(tids[n])];
        let all = known(0);
        assert!(
            all.namespaces && all.cgroups && all.files && all.directory,
            "{all:?}"
        );
        let expected = [
            Alike {
                directory: false,
                ..all
            },
            Alike { files: false, ..all },
            Alike {
                namespaces: false,
                ..all
            },
        ];
        let found = [1, 2, 3].map(known);
        assert_eq!(found, expected);
    }

    const PROGRAM: &str = "
import ctypes, threading, time
libc = ctypes.CDLL(None, use_errno=True)
tids = []
def leave(what):
    if what and libc.unshare(what): raise OSError(ctypes.get_errno())
    tids.append(threading.get_native_id())
    time.sleep(1000)
# Nothing, CLONE_FS, CLONE_FILES, CLONE_NEWUTS
for n, what in enumerate([0, 0x200, 0x400, 0x04000000]):
    threading.Thread(target=leave, args=[what], daemon=True).start()
    while len(tids) <= n: time.sleep(0.001)
print(*tids, flush=True)
time.sleep(1000)
";
}
