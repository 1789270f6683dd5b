//! What the bench stands on: a directory in memory, commands run with the time they took, and the load.

use crate::brood::{self, Brood};
use crate::{release, target_dir};
use anyhow::{Context, Result, bail, ensure};
use nix::unistd::Pid;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant, SystemTime};

/// How often a command that is timed is looked at: what its time may be wrong by.
const LOOK: Duration = Duration::from_micros(100);

/// How long the load may take to fill a MiB, and how long to start.
const FILLING: Duration = Duration::from_millis(20);
const STARTING: Duration = Duration::from_secs(20);

/// Dropping it ends every process and removes every file.
#[derive(Debug)]
pub(crate) struct Stage<'a> {
    pub(crate) brood: &'a mut Brood,
    pub(crate) dir: PathBuf,
    /// Where images usually go, while `dir` is another.
    usual: Option<PathBuf>,
}

/// A command that was run to its end.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) status: ExitStatus,
    pub(crate) out: String,
    pub(crate) err: String,
    /// Just before it was started and just after its end was seen, in nanoseconds since 1970.
    pub(crate) from: u64,
    pub(crate) to: u64,
}

impl Ran {
    /// How long it took, in milliseconds.
    pub(crate) fn ms(&self) -> f64 {
        ms(self.to - self.from)
    }
}

impl Drop for Stage<'_> {
    fn drop(&mut self) {
        let left = self.brood.end_all();
        if !left.is_empty() {
            eprintln!("could not be killed: {left:?}");
        }
        for dir in std::iter::once(&self.dir).chain(&self.usual) {
            if let Err(e) = std::fs::remove_dir_all(dir) {
                eprintln!("{}: could not be removed: {e}", dir.display());
            }
        }
    }
}

impl<'a> Stage<'a> {
    /// A directory of its own below `above`.
    pub(crate) fn new(brood: &'a mut Brood, above: &Path) -> Result<Stage<'a>> {
        let dir = above.join(format!("freeze-bench-{}", std::process::id()));
        std::fs::create_dir(&dir).with_context(|| dir.display().to_string())?;
        Ok(Stage {
            brood,
            dir,
            usual: None,
        })
    }

    /// From now on images go to disk, until [`Stage::back`].
    pub(crate) fn use_disk(&mut self) -> Result<()> {
        let dir = target_dir().join(format!("freeze-bench-{}", std::process::id()));
        std::fs::create_dir(&dir).with_context(|| dir.display().to_string())?;
        self.usual = Some(std::mem::replace(&mut self.dir, dir));
        Ok(())
    }

    /// From now on they go where they went at first.
    pub(crate) fn back(&mut self) -> Result<()> {
        let Some(usual) = self.usual.take() else {
            return Ok(());
        };
        let disk = std::mem::replace(&mut self.dir, usual);
        std::fs::remove_dir_all(&disk).with_context(|| disk.display().to_string())
    }

    /// Runs a command to its end; `meanwhile` is called again and again until then, with its time so far.
    pub(crate) fn run_while(
        &mut self,
        command: &mut Command,
        patience: Duration,
        mut meanwhile: impl FnMut(Duration),
    ) -> Result<Ran> {
        let (out, err) = (self.dir.join("command.out"), self.dir.join("command.err"));
        command
            .stdin(Stdio::null())
            .stdout(create(&out)?)
            .stderr(create(&err)?);
        let (from, begin) = (now(), Instant::now());
        let pid = self.brood.start(command)?;
        let status = loop {
            if let Some(status) = self.brood.look(pid) {
                break status;
            }
            if begin.elapsed() > patience {
                self.brood.end_tree(pid)?;
                bail!("{command:?}: not done after {patience:?}");
            }
            self.brood.go_on()?;
            meanwhile(begin.elapsed());
            std::thread::sleep(LOOK);
        };
        Ok(Ran {
            status,
            to: now(),
            from,
            out: read(&out)?,
            err: read(&err)?,
        })
    }

    pub(crate) fn run(&mut self, command: &mut Command, patience: Duration) -> Result<Ran> {
        self.run_while(command, patience, |_| {})
    }

    /// Runs `freeze`; fails with what it said if it failed.
    pub(crate) fn freeze(&mut self, args: &[&str]) -> Result<Ran> {
        let ran = self.run(freeze().args(args), PATIENCE)?;
        ensure!(
            ran.status.success(),
            "freeze {}: {}: {}{}",
            args.join(" "),
            ran.status,
            ran.out.trim(),
            ran.err.trim()
        );
        Ok(ran)
    }

    /// Starts a program in a session of its own, with nothing that leads out of it.
    pub(crate) fn daemon(&mut self, program: &Command) -> Result<Pid> {
        // setsid keeps the pid: a process just forked leads no group.
        let mut setsid = Command::new("setsid");
        setsid.arg(program.get_program()).args(program.get_args());
        for (name, value) in program.get_envs() {
            if let Some(value) = value {
                setsid.env(name, value);
            }
        }
        self.brood.start(
            setsid
                .current_dir("/")
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null()),
        )
    }

    pub(crate) fn until(
        &mut self,
        what: &str,
        limit: Duration,
        mut so: impl FnMut(&mut Self) -> Result<bool>,
    ) -> Result<()> {
        let deadline = Instant::now() + limit;
        while !so(self)? {
            ensure!(Instant::now() < deadline, "waited {limit:?} in vain until {what}");
            self.brood.nap(Duration::from_millis(20))?;
        }
        Ok(())
    }
}

/// How long any one command may take: 8 GiB are written in it many times over.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);

/// The command `freeze`.
pub(crate) fn freeze() -> Command {
    Command::new(release("freeze"))
}

/// The load: a process with so much memory that it writes so fast, and that knows its pauses.
#[derive(Debug)]
pub(crate) struct Load {
    pub(crate) pid: Pid,
    report: PathBuf,
    /// How much of the report has been read.
    read: usize,
    /// Start and length, in nanoseconds, in the order of time.
    gaps: Vec<(u64, u64)>,
    /// Time, pages written by then, turns of the clock's loop by then.
    told: Vec<(u64, u64, u64)>,
}

/// What the load is to be like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) mib: u64,
    /// Pages written a second.
    pub(crate) pages: f64,
    pub(crate) threads: usize,
    pub(crate) thp: bool,
}

impl Load {
    /// Starts it and waits until its memory is there and it runs evenly.
    pub(crate) fn start(stage: &mut Stage<'_>, shape: Shape) -> Result<Load> {
        let report = stage.dir.join("report");
        if report.exists() {
            std::fs::remove_file(&report).with_context(|| report.display().to_string())?;
        }
        let mut load = Command::new(release("load"));
        load.arg("--report").arg(&report);
        load.args(["--mib", &shape.mib.to_string()]);
        load.args(["--pages", &shape.pages.to_string()]);
        load.args(["--threads", &shape.threads.to_string()]);
        if shape.thp {
            // The C library asks for huge pages then, wherever the system lets programs ask.
            load.arg("--thp").env("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1");
        }
        let pid = stage.daemon(&load)?;
        let mut load = Load {
            pid,
            report,
            read: 0,
            gaps: Vec::new(),
            told: Vec::new(),
        };
        let limit = STARTING + FILLING * shape.mib as u32;
        stage.until("the load has its memory", limit, |stage| {
            if let Some(status) = stage.brood.look(pid) {
                bail!("the load ended: {status}");
            }
            Ok(load.report.exists() && load.look()?.told.len() > 3)
        })?;
        Ok(load)
    }

    /// Reads what is new in the report.
    fn look(&mut self) -> Result<&Load> {
        let text = read(&self.report)?;
        let new = text.get(self.read..).unwrap_or_default();
        // The last line may be half written.
        let new = &new[..new.rfind('\n').map_or(0, |n| n + 1)];
        self.read += new.len();
        for line in new.lines() {
            let mut fields = line.split(' ');
            let kind = fields.next();
            let numbers: Vec<u64> = fields.filter_map(|f| f.parse().ok()).collect();
            match (kind, &numbers[..]) {
                (Some("gap"), &[start, len]) => self.gaps.push((start, len)),
                (Some("at"), &[at, pages, turns]) => self.told.push((at, pages, turns)),
                _ => {}
            }
        }
        Ok(self)
    }

    /// Waits until the load has told everything up to a moment.
    fn settle(&mut self, stage: &mut Stage<'_>, until: u64) -> Result<()> {
        stage.until("the load reports", STARTING, |_| {
            Ok(self.look()?.told.last().is_some_and(|t| t.0 >= until))
        })
    }

    /// The longest gap that touches a time, in milliseconds: 0 if there was none long enough to be told.
    pub(crate) fn longest_gap(&mut self, stage: &mut Stage<'_>, from: u64, to: u64) -> Result<f64> {
        self.settle(stage, to)?;
        let inside = self.gaps.iter().filter(|(at, len)| *at < to && at + len > from);
        Ok(ms(inside.map(|g| g.1).max().unwrap_or(0)))
    }

    /// When it ran again after a restore that began at `from`: the end of the gap that ends first after it.
    pub(crate) fn first_instruction(&mut self, stage: &mut Stage<'_>, from: u64) -> Result<u64> {
        let find = |load: &Load| {
            load.gaps
                .iter()
                .map(|g| g.0 + g.1)
                .filter(|end| *end >= from)
                .min()
        };
        let report = self.report.display().to_string();
        stage.until("the restored load reports", STARTING, |_| {
            Ok(find(self.look()?).is_some())
        })?;
        find(self).with_context(|| report)
    }

    /// How many pages were written, and turns made, by a moment.
    pub(crate) fn done_by(&mut self, stage: &mut Stage<'_>, at: u64) -> Result<(f64, f64)> {
        self.settle(stage, at)?;
        let after = self.told.partition_point(|t| t.0 < at).max(1);
        let (a, b) = (self.told[after - 1], self.told[after.min(self.told.len() - 1)]);
        let part = if b.0 > a.0 {
            (at.saturating_sub(a.0)) as f64 / (b.0 - a.0) as f64
        } else {
            0.0
        };
        let between = |a: u64, b: u64| a as f64 + (b.saturating_sub(a)) as f64 * part.min(1.0);
        Ok((between(a.1, b.1), between(a.2, b.2)))
    }

    /// Bytes that it filled itself and that are resident now; 0 if it is not there.
    pub(crate) fn filled(&self) -> u64 {
        memory(self.pid).map_or(0, |(all, files)| all.saturating_sub(files))
    }

    /// Ends it and waits until its pid is free.
    pub(crate) fn end(&self, stage: &mut Stage<'_>) -> Result<()> {
        stage.brood.end_tree(self.pid)
    }
}

/// Resident bytes of a process; 0 if it is not there.
pub(crate) fn resident(pid: Pid) -> u64 {
    memory(pid).map_or(0, |(all, _)| all)
}

/// Resident bytes, and those of them that are pages of files.
fn memory(pid: Pid) -> Option<(u64, u64)> {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let mut pages = statm.split(' ').skip(1).map(|n| n.parse::<u64>().ok());
    Some((pages.next()?? * 4096, pages.next()?? * 4096))
}

/// Processor time of a process and all below it, threads and children that have ended included, in nanoseconds; it is
/// told in hundredths of a second (proc_pid_stat(5)).
pub(crate) fn cpu_ns(pid: Pid) -> Result<u64> {
    const TICK: u64 = 10_000_000;
    let ticks = |pid: Pid| -> Option<u64> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let fields = stat.rsplit_once(") ")?.1.split(' ');
        // utime, stime, cutime, cstime, after the state and ten others.
        fields.skip(11).take(4).map(|n| n.parse::<u64>().ok()).sum()
    };
    let own = ticks(pid).with_context(|| format!("{pid} is gone"))?;
    let others: u64 = brood::below(pid).into_iter().filter_map(ticks).sum();
    Ok((own + others) * TICK)
}

/// Processor time of the threads of a process and of all below it that are there now, in nanoseconds.
pub(crate) fn cpu_of_living_ns(pid: Pid) -> Result<u64> {
    ensure!(brood::exists(pid), "{pid} is gone");
    let mut sum = 0;
    for pid in std::iter::once(pid).chain(brood::below(pid)) {
        for entry in std::fs::read_dir(format!("/proc/{pid}/task"))? {
            // A thread that is gone by now has left its time out: it is short.
            let text = std::fs::read_to_string(entry?.path().join("schedstat")).unwrap_or_default();
            sum += text
                .split(' ')
                .next()
                .and_then(|n| n.parse::<u64>().ok())
                .unwrap_or(0);
        }
    }
    Ok(sum)
}

/// Whether the programs of the bench itself have been built.
pub(crate) fn check_built() -> Result<()> {
    for name in ["freeze", "freezed", "load", "rounds"] {
        ensure!(
            release(name).exists(),
            "{} is not in {}",
            name,
            target_dir().display()
        );
    }
    Ok(())
}

pub(crate) fn ms(ns: u64) -> f64 {
    ns as f64 / 1e6
}

/// Nanoseconds since 1970, by the clock that the load reads.
pub(crate) fn now() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |d| d.as_nanos() as u64)
}

fn create(path: &Path) -> Result<File> {
    File::create(path).with_context(|| path.display().to_string())
}

fn read(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
