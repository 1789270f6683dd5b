//! Everything a task starts, and whatever descends from it: waited for, timed, and ended with the task.

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How often a wait looks again. It is also how long an orphan may stay a zombie.
const TICK: Duration = Duration::from_millis(5);

/// How long the foreground program may take to end by itself after a signal.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// The error of a task that was told to stop.
#[derive(Debug)]
pub(crate) struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// The processes below this one.
///
/// This process is the reaper of all its descendants (`PR_SET_CHILD_SUBREAPER`): a daemon that detaches, or a
/// restored process whose restorer is gone, comes back here. Dropping the brood kills what is left of it, on
/// an error and on a panic as well. Nothing else in a task may wait for children while a brood is in use.
#[derive(Debug)]
pub(crate) struct Brood {
    /// The number of the signal that told us to stop, or 0.
    signal: Arc<AtomicUsize>,
    /// Who ended while somebody else was being waited for.
    ended: BTreeMap<Pid, ExitStatus>,
}

impl Brood {
    pub(crate) fn new() -> Result<Brood> {
        nix::sys::prctl::set_child_subreaper(true).context("prctl(PR_SET_CHILD_SUBREAPER)")?;
        let signal = Arc::new(AtomicUsize::new(0));
        for n in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            signal_hook::flag::register_usize(n as i32, signal.clone(), n as usize)
                .with_context(|| format!("a handler for {n}"))?;
        }
        Ok(Brood {
            signal,
            ended: BTreeMap::new(),
        })
    }

    /// Fails once somebody asked this process to stop.
    pub(crate) fn go_on(&self) -> Result<()> {
        match self.signal.load(Ordering::Relaxed) {
            0 => Ok(()),
            _ => Err(Interrupted.into()),
        }
    }

    /// Starts a program; it is known by its pid from here on.
    pub(crate) fn start(&mut self, command: &mut Command) -> Result<Pid> {
        self.go_on()?;
        let child = command.spawn().with_context(|| format!("{command:?}"))?;
        Ok(Pid::from_raw(child.id() as i32))
    }

    /// How a child ended, if it has.
    pub(crate) fn look(&mut self, pid: Pid) -> Option<ExitStatus> {
        self.reap();
        self.ended.remove(&pid)
    }

    /// Waits until a child has ended; `None` when it has not by the deadline.
    pub(crate) fn wait(&mut self, pid: Pid, deadline: Instant) -> Result<Option<ExitStatus>> {
        loop {
            if let Some(status) = self.look(pid) {
                return Ok(Some(status));
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            self.nap(TICK)?;
        }
    }

    /// Sleeps, reaping whoever ends meanwhile; fails at once when told to stop.
    pub(crate) fn nap(&mut self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        loop {
            self.go_on()?;
            self.reap();
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(TICK));
        }
    }

    /// Runs a program on our own terminal to its end.
    ///
    /// The terminal gives `^C` to it as well; other signals are passed on. It gets [`LAST_WORDS`] to end.
    pub(crate) fn foreground(&mut self, command: &mut Command) -> Result<ExitStatus> {
        let pid = self.start(command)?;
        let mut told = None;
        loop {
            if let Some(status) = self.look(pid) {
                self.go_on()?;
                return Ok(status);
            }
            match self.signal.load(Ordering::Relaxed) {
                0 => {}
                n => {
                    let since = *told.get_or_insert_with(|| {
                        if n != Signal::SIGINT as usize {
                            // It may be gone already: the next look tells.
                            let _ = kill(pid, Signal::SIGTERM);
                        }
                        Instant::now()
                    });
                    if since.elapsed() > LAST_WORDS {
                        return Err(Interrupted.into());
                    }
                }
            }
            std::thread::sleep(TICK);
        }
    }

    /// Kills `pid`, which must be ours, with everything that descends from it, and waits until all are reaped.
    pub(crate) fn end_tree(&mut self, pid: Pid) -> Result<()> {
        let tree = below(pid);
        self.end(&[vec![pid], tree].concat())
    }

    /// Kills these, which must be ours, and waits until they are reaped.
    pub(crate) fn end(&mut self, pids: &[Pid]) -> Result<()> {
        for &pid in pids {
            // Gone already is as good.
            let _ = kill(pid, Signal::SIGKILL);
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        while pids.iter().any(|&p| exists(p)) {
            anyhow::ensure!(
                Instant::now() < deadline,
                "killed, but still there after 10 s: {pids:?}"
            );
            self.nap(TICK)?;
        }
        // A restored process has the same pid: its end must not be taken for this one.
        self.ended.retain(|pid, _| !pids.contains(pid));
        Ok(())
    }

    /// Who is there below this process, zombies left out.
    pub(crate) fn left(&mut self) -> Vec<Pid> {
        self.reap();
        below(Pid::this())
    }

    /// Kills and reaps whoever is left, and says who could not be.
    pub(crate) fn end_all(&mut self) -> Vec<Pid> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            // Killing goes round until nobody is found: a process may fork while its parent is being killed.
            let left = self.left();
            if left.is_empty() || Instant::now() > deadline {
                return left;
            }
            for pid in left {
                let _ = kill(pid, Signal::SIGKILL);
            }
            std::thread::sleep(TICK);
        }
    }

    fn reap(&mut self) {
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => {
                    self.ended.insert(pid, ExitStatus::from_raw(code << 8));
                }
                Ok(WaitStatus::Signaled(pid, signal, core)) => {
                    self.ended.insert(
                        pid,
                        ExitStatus::from_raw(signal as i32 | if core { 0x80 } else { 0 }),
                    );
                }
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return,
                Ok(_) => {}
                Err(Errno::EINTR) => {}
                Err(_) => return,
            }
        }
    }
}

impl Drop for Brood {
    fn drop(&mut self) {
        let left = self.end_all();
        if !left.is_empty() {
            eprintln!("could not be killed: {left:?}");
        }
    }
}

/// Closes what whoever started this process left open beyond standard error, so that no child inherits it:
/// a program that holds one end of a stranger's pipe cannot be checkpointed.
///
/// To be called before anything is opened here.
pub(crate) fn close_inherited() {
    let numbers = |entry: std::io::Result<std::fs::DirEntry>| entry.ok()?.file_name().to_str()?.parse().ok();
    let open: Vec<i32> = std::fs::read_dir("/proc/self/fd")
        .into_iter()
        .flatten()
        .filter_map(numbers)
        .collect();
    for fd in open.into_iter().filter(|fd| *fd > 2) {
        // The directory just read is among them, and closed already.
        let _ = nix::unistd::close(fd);
    }
}

/// Whether there is such a process, a zombie included.
pub(crate) fn exists(pid: Pid) -> bool {
    std::path::Path::new(&format!("/proc/{pid}")).exists()
}

/// Pid and name, for messages.
pub(crate) fn name(pid: Pid) -> String {
    let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    format!("{pid} ({})", comm.trim_end())
}

/// Everybody who descends from `top`, parents first, zombies left out.
pub(crate) fn below(top: Pid) -> Vec<Pid> {
    let mut children: BTreeMap<Pid, Vec<Pid>> = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // A process that is gone by now has no stat, and is nobody's child.
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else {
            continue;
        };
        if let Some((parent, _)) = parent_and_state(&stat).filter(|(_, state)| !matches!(*state, "Z" | "X")) {
            children.entry(parent).or_default().push(Pid::from_raw(pid));
        }
    }
    let mut found = Vec::new();
    let mut next = vec![top];
    while let Some(pid) = next.pop() {
        let below = children.remove(&pid).unwrap_or_default();
        found.extend(&below);
        next.extend(below);
    }
    found
}

/// The fourth and third field of /proc/PID/stat; the second, the name, may hold anything.
fn parent_and_state(stat: &str) -> Option<(Pid, &str)> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    Some((Pid::from_raw(fields.next()?.parse().ok()?), state))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_confuse() {
        assert_eq!(
            parent_and_state("7 (a) Z 9 (b) S 42 7 7 0"),
            Some((Pid::from_raw(42), "S"))
        );
        assert_eq!(parent_and_state("7 (a"), None);
    }

    #[test]
    fn grandchildren_are_found_and_ended() {
        // Not through a Brood: the test harness has children of its own.
        let mut shell = Command::new("sh")
            .args(["-c", "sleep 1000 & wait"])
            .spawn()
            .unwrap();
        let top = Pid::from_raw(shell.id() as i32);
        let started = Instant::now();
        let grandchild = loop {
            if let [one] = below(top)[..] {
                break one;
            }
            assert!(started.elapsed() < Duration::from_secs(10), "no grandchild");
            std::thread::sleep(TICK);
        };
        assert!(below(Pid::this()).contains(&grandchild));
        kill(grandchild, Signal::SIGKILL).unwrap();
        kill(top, Signal::SIGKILL).unwrap();
        shell.wait().unwrap();
        assert!(!below(Pid::this()).contains(&top));
    }
}
