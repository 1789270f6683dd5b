//! Programs that never rest, drawn at random, through checkpoints and restores of every sort: after each of them nobody
//! is stuck, lost or changed, and nothing is left behind.
//!
//! `FREEZE_CHURN=1000` sets how many cycles there are, and without it there are none: what is found here is rare, and the machine
//! is good for nothing else meanwhile. `FREEZE_CHURN_SEED` sets which programs are drawn;
//! `FREEZE_CHURN_WORK=tcp,fork` has them do that alone.
//!
//! All of it is in a pid namespace of its own: such programs go through all pids of a machine in a minute, and whoever is
//! started there meanwhile may get one that an earlier state had. And in an IPC namespace, so that nothing of System V is left
//! after a failure.

use freeze_tests::cycle::{checkpoint_now, nothing_unfinished, request, restore_now};
use freeze_tests::subject::{alive, stat_fields};
use freeze_tests::{Running, c};
use freeze_user::checkpoint::Report;
use freeze_user::ids::Pid;
use freeze_user::precopy::{SharedLog, Trackings};
use freeze_user::store::Opened;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

const PROGRAM: &str = include_str!("churn/subject.c");

/// What a thread can do, and whether nothing of it is outside of the processes: so it may be put back to an earlier state.
const WORK: [(&str, bool); 18] = [
    ("fork", true),
    ("orphan", true),
    ("exec", true),
    ("spawn", true),
    ("thread", true),
    ("pipe", true),
    ("echo", true),
    ("rights", true),
    ("tcp", true),
    ("timer", true),
    ("signal", true),
    ("condition", true),
    ("memory", true),
    ("pages", true),
    ("file", false),
    ("lock", false),
    ("epoll", true),
    ("sysv", false),
];

/// How many threads a process of the subject has room for, as the program has it.
const WORKERS: usize = 16;
const PROCESSES: usize = 16;

/// How many cycles one program goes through before the next is drawn.
const BATCH: usize = 20;

/// How long nobody may get on, on a machine that others use too.
const STUCK: Duration = Duration::from_secs(60);

/// Numbers that look random and are the same every time (xorshift64*).
#[derive(Debug)]
struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Dice {
        Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % n
    }
}

/// Who there is: for each process the number of its parent and what its threads do.
#[derive(Debug)]
struct Cast {
    seed: u64,
    processes: Vec<(Option<usize>, Vec<&'static str>)>,
    /// Whether it may be put back to an earlier state.
    inward: bool,
}

impl Cast {
    fn draw(seed: u64) -> Cast {
        let mut dice = Dice::new(seed);
        let asked = std::env::var("FREEZE_CHURN_WORK").unwrap_or_default();
        let inward = dice.below(3) == 0;
        // Everything once in every second program; else what comes.
        let mut work: Vec<&'static str> = WORK
            .iter()
            .filter(|(_, i)| *i || !inward)
            .map(|(w, _)| *w)
            .collect();
        if seed.is_multiple_of(2) {
            work = (0..8 + dice.below(10))
                .map(|_| work[dice.below(work.len())])
                .collect();
        }
        if !asked.is_empty() {
            let named = WORK
                .iter()
                .map(|(w, _)| *w)
                .filter(|w| asked.split(',').any(|a| a == *w));
            let named: Vec<_> = named.collect();
            work = named.iter().cycle().take(8.max(named.len())).copied().collect();
        }
        let count = 3 + dice.below(4);
        let mut processes: Vec<_> = (0..count)
            .map(|n| (n.checked_sub(1).map(|last| dice.below(last + 1)), Vec::new()))
            .collect();
        for w in work {
            processes[dice.below(count)].1.push(w);
        }
        Cast {
            seed,
            processes,
            inward,
        }
    }

    fn plan(&self) -> String {
        let mut out = format!("{}\n", self.seed % 1_000_000);
        for (parent, work) in &self.processes {
            let parent = parent.map_or(-1, |p| p as i64);
            let _ = writeln!(out, "{parent} {}", work.join(" "));
        }
        out
    }

    /// The numbers of their counts, with what is counted.
    fn counted(&self) -> impl Iterator<Item = (usize, &'static str)> {
        let of = |(n, (_, work)): (usize, &(Option<usize>, Vec<&'static str>))| {
            let named = work.iter().enumerate();
            named.map(|(i, w)| (n * WORKERS + i, *w)).collect::<Vec<_>>()
        };
        self.processes.iter().enumerate().flat_map(of)
    }
}

/// A program at work, and how it is looked at.
struct Stage {
    cast: Cast,
    running: Running,
    /// The processes that stay, by their numbers in the cast.
    members: Vec<Pid>,
}

impl Stage {
    fn open(cast: Cast) -> Stage {
        let running = Running::launch(&c(PROGRAM), "churn");
        let dir = running.dir().to_owned();
        let size = PROCESSES * WORKERS * 8;
        fs::write(dir.join("counts"), vec![0; size]).expect("a directory of ours");
        fs::write(dir.join("plan.new"), cast.plan()).expect("a directory of ours");
        fs::rename(dir.join("plan.new"), dir.join("plan")).expect("the file just written");
        running.wait_ready();
        let mut stage = Stage {
            cast,
            running,
            members: Vec::new(),
        };
        stage.gets_on(&BTreeMap::new(), "before all");
        stage.members = (0..stage.cast.processes.len()).map(|n| stage.member(n)).collect();
        stage
    }

    fn member(&self, n: usize) -> Pid {
        let path = self.running.dir().join(format!("member-{n}"));
        let began = Instant::now();
        loop {
            // A line that has its end is whole.
            let text = fs::read_to_string(&path).unwrap_or_default();
            if let Some(pid) = text.strip_suffix('\n').and_then(|t| t.parse().ok()) {
                return Pid(pid);
            }
            assert!(began.elapsed() < STUCK, "process {n} does not begin");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn counts(&self) -> BTreeMap<usize, u64> {
        let bytes = fs::read(self.running.dir().join("counts")).expect("a file of ours");
        let words = bytes.chunks_exact(8);
        let counts: Vec<u64> = words
            .map(|w| u64::from_ne_bytes(w.try_into().expect("8 bytes")))
            .collect();
        self.cast.counted().map(|(at, _)| (at, counts[at])).collect()
    }

    /// Waits until everyone has got on since `before`.
    fn gets_on(&self, before: &BTreeMap<usize, u64>, when: &str) {
        let began = Instant::now();
        loop {
            self.nothing_said(when);
            let now = self.counts();
            let mut still = self.cast.counted();
            let still = still.find(|(at, _)| now[at] == before.get(at).copied().unwrap_or(0));
            let Some((at, what)) = still else { return };
            let process = at / WORKERS;
            if began.elapsed() > STUCK {
                panic!(
                    "{when}: {what} of process {process} is stuck:\n{}",
                    states(&freeze_tests::subject::descendants(self.running.pid))
                );
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn nothing_said(&self, when: &str) {
        let said = self.running.said();
        assert!(said.is_empty(), "{when}, the subject said: {said}");
        if !self.running.is_alive() {
            let status = waitpid(self.running.pid.nix(), Some(WaitPidFlag::WNOHANG));
            panic!("{when}, the subject is dead: {status:?}");
        }
    }

    /// Whoever stays is there, runs, is traced by nobody, and has no memory that freeze has left.
    fn is_sound(&self, when: &str) {
        self.nothing_said(when);
        for pid in &self.members {
            assert!(alive(*pid), "{when}: {pid} is lost");
            for task in fs::read_dir(format!("/proc/{pid}/task"))
                .into_iter()
                .flatten()
                .flatten()
            {
                let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
                let has = |line: &str| status.lines().any(|l| l.starts_with(line));
                let gone = status.is_empty();
                assert!(gone || has("TracerPid:\t0"), "{when}: {pid} is traced:\n{status}");
                assert!(
                    !has("State:\tT") && !has("State:\tt"),
                    "{when}: {pid} is stopped:\n{status}"
                );
            }
            let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
            let left = maps
                .lines()
                .find(|l| l.contains(" rwxp ") || l.contains(" rwxs "));
            assert_eq!(left, None, "{when}: {pid} was left a mapping");
        }
        nothing_unfinished(self.running.dir());
    }

    /// Ends everyone, and nobody notices of another.
    fn kill(&mut self) {
        let mut stopped = BTreeSet::new();
        loop {
            let all: BTreeSet<Pid> = self.running.pids().into_iter().collect();
            if all == stopped {
                break;
            }
            for pid in &all {
                // It may have ended.
                let _ = kill(pid.nix(), Signal::SIGSTOP);
            }
            stopped = all;
        }
        self.running.kill();
        // Whoever was born between the last look and its parent's end has come to us.
        let began = Instant::now();
        while waitpid(None, Some(WaitPidFlag::WNOHANG)) != Err(Errno::ECHILD) {
            for pid in offspring() {
                let _ = kill(pid.nix(), Signal::SIGKILL);
            }
            assert!(began.elapsed() < STUCK, "{:?} do not end", self.running.pids());
        }
    }

    /// Reaps all that was killed with a checkpoint; nothing of it may be left, not even a zombie in a group of it.
    fn reap(&self, when: &str) {
        let began = Instant::now();
        loop {
            let left = loop {
                match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                    Err(Errno::ECHILD) => return,
                    Ok(WaitStatus::StillAlive) => break offspring(),
                    _ => {}
                }
            };
            let states = || states(&left);
            assert!(began.elapsed() < STUCK, "{when}: still there:\n{}", states());
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// All who descend from this process.
fn offspring() -> Vec<Pid> {
    let own = Pid(std::process::id() as i32);
    let mut all = freeze_tests::subject::descendants(own);
    all.retain(|p| *p != own);
    all
}

/// What the threads of processes are about.
fn states(pids: &[Pid]) -> String {
    let mut out = String::new();
    for pid in pids {
        let tasks = fs::read_dir(format!("/proc/{pid}/task"));
        for task in tasks.into_iter().flatten().flatten() {
            let read = |what: &str| fs::read_to_string(task.path().join(what)).unwrap_or_default();
            let stat = stat_fields(&task.path().join("stat").display().to_string()).unwrap_or_default();
            let state = stat.get(..2).map_or(String::new(), |f| f.join(" "));
            let (tid, call, channel) = (task.file_name(), read("syscall"), read("wchan"));
            let status = read("status");
            let signals = status
                .lines()
                .filter(|l| l.contains("Pnd") || l.starts_with("TracerPid"));
            let signals: Vec<&str> = signals.collect();
            let _ = writeln!(
                out,
                "{pid}/{} {state} {} {channel} {signals:?}",
                tid.display(),
                call.trim()
            );
        }
    }
    out
}

/// What is done in one cycle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Checkpointed while it runs.
    Live,
    /// The same, on top of the last one, with its pages tracked.
    Incremental,
    /// Checkpointed, ended, and restored.
    Ended,
    /// The same, on top of the last one.
    EndedIncremental,
    /// Checkpointed while it runs, ended by others a while later, and put back to where it was.
    Back,
}

/// One program through some cycles.
fn play(seed: u64, cycles: usize, tally: &mut BTreeMap<String, usize>) {
    let cast = Cast::draw(seed);
    println!("seed {seed}, {cycles} cycles:\n{}", cast.plan());
    let mut dice = Dice::new(seed ^ 0x5eed);
    let mut stage = Stage::open(cast);
    let mut trackings = Trackings::new();
    trackings.log = Some(SharedLog::default());
    let mut last: Option<PathBuf> = None;
    for n in 0..cycles {
        let way = match dice.below(6) {
            0 => Way::Live,
            1 | 2 => Way::Incremental,
            3 => Way::Ended,
            4 => Way::EndedIncremental,
            _ if stage.cast.inward => Way::Back,
            _ => Way::Incremental,
        };
        let when = format!("seed {seed}, cycle {n} ({way:?})");
        let before = stage.counts();
        let image = stage.running.dir().join(format!("image-{n}"));
        let kill = matches!(way, Way::Ended | Way::EndedIncremental);
        let mut request = request(stage.running.pid, image.clone(), kill);
        request.track = matches!(way, Way::Incremental | Way::EndedIncremental);
        if request.track && dice.below(8) > 0 {
            let open = |p: &PathBuf| Opened::open(p).unwrap_or_else(|e| panic!("{when}: {e}"));
            request.parent = last.as_ref().map(open);
        }
        let began = Instant::now();
        let report: Report = checkpoint_now(&request, &mut trackings).unwrap_or_else(|e| {
            stage.nothing_said(&when);
            panic!("{when}: checkpoint: {e}")
        });
        drop(request);
        println!("{when}: {report}");
        *tally.entry(format!("{way:?}")).or_default() += 1;
        if way == Way::Back {
            stage.gets_on(&before, &when);
            stage.kill();
        }
        let mut restored_in = Duration::ZERO;
        if kill || way == Way::Back {
            stage.reap(&when);
            let began = Instant::now();
            let restored = restore_now(&image).unwrap_or_else(|e| panic!("{when}: restore: {e}"));
            restored_in = began.elapsed();
            // The counts alone are not put back.
            let counts = |w: &&String| way == Way::Back && w.contains("/counts: written since");
            let warnings: Vec<_> = restored.warnings.iter().filter(|w| !counts(w)).collect();
            assert_eq!(warnings, [""; 0], "{when}");
            let log = trackings.log.take();
            trackings = Trackings::new();
            trackings.log = log;
        }
        let after = stage.counts();
        stage.is_sound(&when);
        stage.gets_on(&after, &when);
        stage.is_sound(&when);
        let mut parts = report.pause_parts.clone();
        parts.sort_by_key(|(_, ns)| std::cmp::Reverse(*ns));
        parts.truncate(4);
        println!(
            "{when}: the longest in ns {parts:?}, restored in {restored_in:?}, {:?} in all",
            began.elapsed()
        );
        // A chain of its own begins where there are no parents any more.
        let chained = matches!(way, Way::Incremental) && n % BATCH != BATCH - 1;
        match chained {
            true => last = Some(image),
            false => {
                last = None;
                clear(&stage);
            }
        }
    }
    let mut running = stage.running;
    running.verdict();
}

/// Removes the images of the cycles so far.
fn clear(stage: &Stage) {
    for entry in fs::read_dir(stage.running.dir())
        .expect("a directory of ours")
        .flatten()
    {
        if entry.file_name().display().to_string().starts_with("image-") {
            fs::remove_dir_all(entry.path()).expect("an image of ours");
        }
    }
}

#[test]
fn cycles_of_programs_that_never_rest() {
    let number = |name: &str| std::env::var(name).ok().and_then(|n| n.parse::<u64>().ok());
    let Some(cycles) = number("FREEZE_CHURN") else {
        freeze_tests::skip!("FREEZE_CHURN=1000 has it make a thousand cycles");
    };
    const INSIDE: &str = "FREEZE_CHURN_INSIDE";
    if std::env::var_os(INSIDE).is_none() {
        // A shell reaps whoever is left to it.
        let own = std::env::current_exe().expect("this program");
        // By their pids in there, two of these would have the same directories.
        let dir = std::env::temp_dir().join(format!("freeze-churn-{}", std::process::id()));
        fs::create_dir(&dir).expect("a directory of ours");
        let status = Command::new("unshare")
            .args([
                "--pid",
                "--ipc",
                "--fork",
                "--kill-child",
                "--mount-proc",
                "bash",
                "-c",
            ])
            .args([r#""$0" --exact cycles_of_programs_that_never_rest --nocapture; exit $?"#])
            .arg(own)
            .env(INSIDE, "yes")
            .env("TMPDIR", &dir)
            .status()
            .expect("unshare, of util-linux");
        assert!(status.success(), "{status}; its files are in {}", dir.display());
        fs::remove_dir_all(&dir).expect("a directory of ours");
        return;
    }
    let cycles = cycles as usize;
    let first = number("FREEZE_CHURN_SEED").unwrap_or(1);
    let began = Instant::now();
    let mut tally = BTreeMap::new();
    let mut done = 0;
    for seed in first.. {
        if done == cycles {
            break;
        }
        let now = BATCH.min(cycles - done);
        play(seed, now, &mut tally);
        done += now;
    }
    println!(
        "{done} cycles from seed {first} in {:?}: {tally:?}",
        began.elapsed()
    );
}
