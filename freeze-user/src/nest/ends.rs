//! What has ended or stopped: zombies with all they still tell, and stops of which the parent learns nothing new.

use super::Nest;
use super::family::Family;
use crate::error::Result;
use crate::ids::Pid;
use crate::proc::stat::Stat;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// SIGCHLD in a signal set.
const SIGCHLD_BIT: u64 = 1 << (libc::SIGCHLD - 1);

/// Waits until a process that has been told to stop has also told its parent, which it does after it shows as stopped.
fn await_stop(pid: Pid) {
    const PATIENCE: Duration = Duration::from_secs(5);
    let began = Instant::now();
    let stopped = |text: Vec<u8>| Stat::parse(&text).is_none_or(|s| s.state == 'T' || s.is_zombie());
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task"));
    for task in tasks.into_iter().flatten().flatten() {
        let stat = task.path().join("stat");
        while !std::fs::read(&stat).map_or(true, stopped) && began.elapsed() < PATIENCE {
            std::thread::yield_now();
        }
        // The kernel answers when the thread is off its processor (wait_task_inactive), which is after it has told.
        let _ = std::fs::read(task.path().join("syscall"));
    }
}

impl Nest {
    /// The parent of a process, if it is still under construction.
    pub(crate) fn parent_within(&self, pid: Pid) -> Option<Pid> {
        let text = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
        Some(Pid(Stat::parse(&text)?.ppid)).filter(|p| self.processes.contains_key(p))
    }

    /// Whether SIGCHLD waits to be delivered to a process.
    pub(super) fn expects_sigchld(&mut self, pid: Pid) -> Result<bool> {
        let (ran, at) = self.process(pid)?.tape(|t| {
            let at = t.space(8);
            t.call("rt_sigpending", libc::SYS_rt_sigpending, &[at, 8]);
            at
        })?;
        Ok(ran.word(at) & SIGCHLD_BIT != 0)
    }

    /// Takes from a parent what it must not notice of a child's stop, which it learned of long ago.
    pub(super) fn hush_stop(&mut self, parent: Pid, child: Pid, told: bool) -> Result<()> {
        await_stop(child);
        let known = self.known_as(parent, child) as u64;
        self.process(parent)?.tape(|t| {
            if told {
                let args = [known, 0, (libc::WUNTRACED | libc::WNOHANG) as u64, 0];
                t.try_call("wait4", libc::SYS_wait4, &args);
            }
            let set = t.bytes(&SIGCHLD_BIT.to_ne_bytes());
            let now = t.bytes(&[0; 16]);
            t.try_call("rt_sigtimedwait", libc::SYS_rt_sigtimedwait, &[set, 0, now, 8]);
        })?;
        Ok(())
    }

    /// Ends the processes that had ended when they were recorded, and leaves them to their parents.
    pub fn end_zombies(&mut self, families: &[Family]) -> Result<()> {
        for f in families {
            let Some(status) = f.ended else { continue };
            let grave = if libc::WCOREDUMP(status) {
                Grave::new()
            } else {
                None
            };
            let at = match &grave {
                Some(grave) => self.hand_over(f.pid, &[grave.dir.as_raw_fd()])?,
                None => Vec::new(),
            };
            let building = self.process(f.pid)?;
            building.tape(|t| {
                let mut core = |soft: u64, hard: u64| {
                    let limit = t.bytes(&[soft.to_ne_bytes(), hard.to_ne_bytes()].concat());
                    let args = [0, u64::from(libc::RLIMIT_CORE), limit, 0];
                    t.try_call("prlimit64", libc::SYS_prlimit64, &args);
                };
                match at.first() {
                    // Nearly empty as it is, it leaves a small one.
                    Some(at) => {
                        core(u64::MAX, u64::MAX);
                        t.call("fchdir", libc::SYS_fchdir, &[*at]);
                    }
                    None => core(0, 0),
                }
                if let Some(remains) = &f.remains {
                    let name = t.bytes(&[&remains.name[..], b"\0"].concat());
                    t.call(
                        "prctl(PR_SET_NAME)",
                        libc::SYS_prctl,
                        &[libc::PR_SET_NAME as u64, name],
                    );
                    let three = |ids: [u32; 4]| [u64::from(ids[0]), u64::from(ids[1]), u64::from(ids[2])];
                    t.call("setresgid", libc::SYS_setresgid, &three(remains.gid));
                    t.call("setresuid", libc::SYS_setresuid, &three(remains.uid));
                    // Which a change of ids has taken away.
                    let args = [libc::PR_SET_DUMPABLE as u64, 1, 0, 0, 0];
                    t.call("prctl(PR_SET_DUMPABLE)", libc::SYS_prctl, &args);
                }
                // Handlers that freeze itself has must not run in its place.
                let default = t.bytes(&[0; 32]);
                for signal in (1..=31).filter(|s| *s != libc::SIGKILL && *s != libc::SIGSTOP) {
                    t.call(
                        "rt_sigaction",
                        libc::SYS_rt_sigaction,
                        &[signal as u64, default, 0, 8],
                    );
                }
            })?;
            if let Some(mut building) = self.processes.remove(&f.pid) {
                let insn = building.scratch.syscall_insn();
                let died = building.threads.remove(0).end(status, insn)?;
                if libc::WCOREDUMP(status) && !libc::WCOREDUMP(died) {
                    self.warnings.push(format!(
                        "pid {}: that it left a core dump when it ended is forgotten; none could be made again",
                        f.pid
                    ));
                }
            }
        }
        Ok(())
    }
}

/// An empty directory in which a zombie may leave the core dump that its status tells of; gone when dropped.
struct Grave {
    path: PathBuf,
    dir: std::fs::File,
}

impl Grave {
    /// `None` where core dumps go elsewhere (core(5)), to somebody who would take them for real.
    fn new() -> Option<Grave> {
        use std::os::unix::fs::PermissionsExt;
        let pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern").ok()?;
        if pattern.starts_with(['|', '/', '@']) || pattern.trim().is_empty() {
            return None;
        }
        let path = std::env::temp_dir().join(format!("freeze-{}-core", std::process::id()));
        std::fs::create_dir(&path).ok()?;
        let dir = std::fs::File::open(&path).ok()?;
        let grave = Grave { path, dir };
        std::fs::set_permissions(&grave.path, std::fs::Permissions::from_mode(0o777)).ok()?;
        Some(grave)
    }
}

impl Drop for Grave {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}
