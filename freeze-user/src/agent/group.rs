//! One watched group: what is known of its root, how it is looked after, and the file that remembers it.

use crate::agent::policy::{Backoff, Ending, OnCrash, Policy, owner};
use crate::agent::wire::{Group, Pauses, State, now_ms};
use crate::error::{Blocker, Context, Error, Result};
use crate::ids::Pid;
use crate::observe::view;
use crate::precopy::Trackings;
use crate::proc::stat::Stat;
use crate::proc::status::Status;
use crate::sys;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// A process that lives, and cannot be mistaken for a later one with its pid.
#[derive(Debug)]
pub(super) struct Root {
    pub(super) pid: Pid,
    /// In clock ticks after boot.
    pub(super) start_time: u64,
    /// Becomes readable when the process ends.
    pub(super) pidfd: OwnedFd,
    pub(super) born: Instant,
}

impl Root {
    /// The living process `pid`, if there is one.
    pub(super) fn find(pid: Pid) -> Option<Root> {
        let pidfd = sys::pidfd_open(pid).ok()?;
        let stat = read_stat(pid)?;
        let alive = !stat.is_zombie() || stat.threads > 1;
        alive.then(|| Root {
            pid,
            start_time: stat.start_time,
            pidfd,
            born: Instant::now(),
        })
    }

    /// Whether all of it has ended.
    pub(super) fn has_ended(&self) -> bool {
        let mut fds = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|n| n > 0)
    }

    /// How it ended, as far as the kernel still knows: while it waits for its parent, and after that on Linux ≥ 6.15.
    pub(super) fn ending(&self) -> Ending {
        if let Some(stat) = read_stat(self.pid)
            && stat.start_time == self.start_time
            && stat.is_zombie()
        {
            return Ending::of_status(stat.exit_code);
        }
        exit_status(self.pidfd.as_fd()).map_or(Ending::Unknown, Ending::of_status)
    }
}

/// `PIDFD_GET_INFO` with `PIDFD_INFO_EXIT` (linux/pidfd.h): the wait status of a process that was reaped.
fn exit_status(pidfd: BorrowedFd<'_>) -> Option<i32> {
    // _IOWR(0xff, 11, struct pidfd_info), whose first version has 64 bytes: the mask is the first eight of them,
    // the status the last four.
    const GET_INFO: u64 = 3 << 30 | 64 << 16 | 0xff << 8 | 11;
    const EXIT: u64 = 1 << 3;
    let mut info = [0u8; 64];
    info[..8].copy_from_slice(&EXIT.to_ne_bytes());
    sys::ioctl_bytes(pidfd, GET_INFO, &mut info).ok()?;
    let mask = u64::from_ne_bytes(*info.first_chunk()?);
    let status = i32::from_ne_bytes(*info.last_chunk()?);
    (mask & EXIT != 0).then_some(status)
}

/// `/proc/PID/stat`, if it is there.
pub(super) fn read_stat(pid: Pid) -> Option<Stat> {
    Stat::parse(&std::fs::read(format!("/proc/{pid}/stat")).ok()?)
}

/// The user to whom a process belongs; `None` if its ids differ, or it is gone.
pub(super) fn owner_of(pid: Pid) -> Option<u32> {
    let text = std::fs::read(format!("/proc/{pid}/status")).ok()?;
    let status = Status::parse(&text)?;
    owner(&status)
}

/// A watched group.
#[derive(Debug)]
pub(super) struct Watched {
    /// As others see it.
    pub(super) shown: Group,
    pub(super) policy: Policy,
    /// Absent while it is dead.
    pub(super) root: Option<Root>,
    pub(super) trackings: Trackings,
    /// Whether `shown.last` is of these very processes and not of those they were restored from.
    pub(super) continues: bool,
    /// When something is to be done: a checkpoint, or a restore.
    pub(super) due: Option<Instant>,
    pub(super) backoff: Backoff,
    /// Who was in the group when its root died, with start times.
    pub(super) leftovers: Vec<(Pid, u64)>,
}

impl Watched {
    /// A group that has just begun to be watched.
    pub(super) fn new(name: String, root: Root, policy: Policy) -> Watched {
        Watched {
            shown: Group {
                name,
                root: root.pid.0,
                uid: owner_of(root.pid),
                command: view::command_of(root.pid),
                state: State::Watching,
                every_ms: policy.every_ms,
                keep: policy.keep,
                on_crash: policy.on_crash,
                since_ms: now_ms(),
                checkpoints: 0,
                failures: 0,
                restores: 0,
                problem: None,
                last: None,
                pauses: Pauses::default(),
            },
            policy,
            root: Some(root),
            trackings: Trackings::new(),
            continues: false,
            due: Some(Instant::now()),
            backoff: Backoff::default(),
            leftovers: Vec::new(),
        }
    }

    /// How long its root has lived since it was last started or restored.
    pub(super) fn lived(&self) -> Duration {
        self.root.as_ref().map_or(Duration::ZERO, |r| r.born.elapsed())
    }

    /// What is remembered of it.
    fn remembered(&self) -> Remembered {
        Remembered {
            group: self.shown.clone(),
            start_time: self.root.as_ref().map(|r| r.start_time),
        }
    }
}

/// A group in the state file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Remembered {
    pub(super) group: Group,
    /// Absent if it was being restored, or had crashed.
    pub(super) start_time: Option<u64>,
}

/// The state file: what a restarted agent goes on with.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Memory {
    version: u32,
    /// Pids and start times mean nothing after a reboot.
    boot: String,
    groups: Vec<Remembered>,
}

/// Its name in the store.
const FILE: &str = "agent.json";
const VERSION: u32 = 1;

/// Writes down all groups, whole or not at all.
pub(super) fn remember<'a>(dir: &Path, groups: impl Iterator<Item = &'a Watched>) -> Result<()> {
    let memory = Memory {
        version: VERSION,
        boot: sys::boot_id().to_owned(),
        groups: groups.map(Watched::remembered).collect(),
    };
    let (file, fresh) = (dir.join(FILE), dir.join(format!("{FILE}.new")));
    let name = || file.display().to_string();
    let text = serde_json::to_vec_pretty(&memory)
        .map_err(|e| Error::io("encode", name(), &std::io::Error::from(e)))?;
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    // Not fsynced: the groups are of this boot only, and what the rename replaces is whole either way.
    options
        .open(&fresh)
        .and_then(|mut f| f.write_all(&text))
        .on("write", name)?;
    std::fs::rename(&fresh, &file).on("rename", name)
}

/// The groups of the agent before this one, and whether the machine has been booted since.
pub(super) fn recall(dir: &Path) -> Result<(Vec<Remembered>, bool)> {
    let file = dir.join(FILE);
    let bytes = match std::fs::read(&file) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok((Vec::new(), false)),
        read => read.on("read", || file.display().to_string())?,
    };
    let wrong = |found: String| Error::Image {
        file: file.clone(),
        offset: None,
        expected: format!("what an agent wrote down, version {VERSION}"),
        found,
    };
    let memory: Memory = serde_json::from_slice(&bytes).map_err(|e| wrong(e.to_string()))?;
    if memory.version != VERSION {
        return Err(wrong(format!("version {}", memory.version)));
    }
    Ok((memory.groups, memory.boot != sys::boot_id()))
}

/// Makes sure that this is the only agent of a store; the lock lives as long as what is returned.
pub(super) fn lock(dir: &Path) -> Result<nix::fcntl::Flock<File>> {
    let path = dir.join("agent.lock");
    let mut options = OpenOptions::new();
    let file = options
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path);
    let file = file.on("open", || path.display().to_string())?;
    let attempt = |file| nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock);
    // The engine of a freezed that was killed needs a moment to put back what it has in hand.
    let end = Instant::now() + Duration::from_secs(5);
    let mut locked = attempt(file);
    while Instant::now() < end
        && let Err((file, nix::errno::Errno::EWOULDBLOCK)) = locked
    {
        std::thread::sleep(Duration::from_millis(10));
        locked = attempt(file);
    }
    locked.map_err(|(_, errno)| match errno {
        nix::errno::Errno::EWOULDBLOCK => Blocker::at(dir.display().to_string(), "")
            .why("another agent looks after this store")
            .remedy("use that one, or another --store and --socket")
            .refuse(),
        errno => Error::kernel("flock", path.display().to_string(), errno),
    })
}

/// The policy of a remembered group.
pub(super) fn policy_of(group: &Group) -> Policy {
    Policy {
        every_ms: group.every_ms,
        keep: group.keep,
        on_crash: group.on_crash,
    }
}

impl Watched {
    /// A remembered group, as it goes on: with its root, or without one that is to be restored.
    pub(super) fn resumed(group: Group, root: Option<Root>) -> Watched {
        let policy = policy_of(&group);
        let state = if root.is_some() {
            State::Watching
        } else {
            State::Restoring
        };
        Watched {
            shown: Group {
                state,
                failures: 0,
                ..group
            },
            policy,
            root,
            trackings: Trackings::new(),
            continues: false,
            due: Some(Instant::now()),
            backoff: Backoff::default(),
            leftovers: Vec::new(),
        }
    }

    /// Whether a crash is answered by a restore, and there is something to restore.
    pub(super) fn restorable(&self) -> bool {
        self.policy.on_crash == OnCrash::Restore && self.shown.last.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// Waits until a pidfd says that its process has ended.
    fn ended(root: &Root) {
        let mut fds = [nix::poll::PollFd::new(
            root.pidfd.as_fd(),
            nix::poll::PollFlags::POLLIN,
        )];
        assert_eq!(nix::poll::poll(&mut fds, 10_000u16), Ok(1));
    }

    #[test]
    fn a_zombie_tells_how_it_ended() {
        let mut child = Command::new("sh")
            .args(["-c", "read x; exit 3"])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let pid = Pid(child.id() as i32);
        let root = Root::find(pid).unwrap();
        drop(child.stdin.take());
        ended(&root);
        assert_eq!(root.ending(), Ending::Code(3));
        assert!(Root::find(pid).is_none(), "a zombie is no living process");
        child.wait().unwrap();
        // Reaped: only newer kernels still know, and none may say anything else.
        assert!([Ending::Code(3), Ending::Unknown].contains(&root.ending()));
    }

    #[test]
    fn what_is_written_down_is_recalled() {
        let dir = std::env::temp_dir().join(format!("freeze-agent-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        assert!(recall(&dir).unwrap().0.is_empty());
        let here = Root::find(Pid(std::process::id() as i32)).unwrap();
        let start = here.start_time;
        let watched = Watched::new("me".into(), here, Policy::DEFAULT);
        remember(&dir, [&watched].into_iter()).unwrap();
        let (groups, rebooted) = recall(&dir).unwrap();
        assert!(!rebooted);
        assert_eq!(
            (groups[0].group.clone(), groups[0].start_time),
            (watched.shown.clone(), Some(start))
        );
        std::fs::write(dir.join(FILE), "{").unwrap();
        assert_eq!(recall(&dir).unwrap_err().kind(), "image");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
