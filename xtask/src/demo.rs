//! The demonstration: three real programs are watched, killed, and brought back where they were.
//!
//! It uses the two commands as anybody would, and looks at the programs from outside only. Everything it
//! makes is in one temporary directory, and everything it starts is gone at its end.

use crate::brood::{self, Brood, Interrupted};
use crate::redis::Redis;
use crate::release;
use anyhow::{Context, Result, bail, ensure};
use nix::unistd::Pid;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How many keys redis holds.
const KEYS: u64 = 100_000;

/// How long the programs are watched before they are killed.
const WATCHED: Duration = Duration::from_secs(10);

/// How long gzip would take by itself; it must be busy still when it is killed.
const ZIPPING: Duration = Duration::from_secs(25);

/// How long any one command of freeze may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// How many lines the restored python must write before it is believed.
const LINES_AFTER: usize = 200;

/// Four threads that each run a chain of numbers and log every 5,000th with its place in the chain.
const PYTHON: &str = r#"
import sys, threading, time

log = open(sys.argv[1], "a", buffering=1)
lock = threading.Lock()
count = 0

def work(thread):
    global count
    x, step = thread, 0
    while True:
        for _ in range(5000):
            x = (x * 1103515245 + 12345) & 0x7FFFFFFF
        step += 1
        with lock:
            count += 1
            log.write(f"{count} {thread} {step} {x}\n")
        time.sleep(0.01)

for thread in range(4):
    threading.Thread(target=work, args=(thread,)).start()
"#;

/// Plays it; true when all three programs went on where they were.
pub(crate) fn play(brood: &mut Brood) -> Result<bool> {
    let started = Instant::now();
    let mut stage = Stage::new(brood)?;
    let verdict = stage.act();
    if verdict.is_err() {
        stage.print_agent_log();
    }
    drop(stage);
    match verdict {
        Ok(()) => {
            println!(
                "PASSED: killed with SIGKILL, restored, and none of the three programs noticed ({:.0} s)",
                started.elapsed().as_secs_f64()
            );
            Ok(true)
        }
        Err(e) if e.is::<Interrupted>() => Err(e),
        Err(e) => {
            println!("FAILED: {}", format!("{e:#}").trim_end().replace('\n', " "));
            Ok(false)
        }
    }
}

/// What the demonstration stands on. Dropping it ends every process and removes every file.
#[derive(Debug)]
struct Stage<'a> {
    brood: &'a mut Brood,
    dir: PathBuf,
    /// How many commands have been run: their output has a file each.
    commands: usize,
}

impl Drop for Stage<'_> {
    fn drop(&mut self) {
        let left = self.brood.end_all();
        if !left.is_empty() {
            println!("could not be killed: {left:?}");
        }
        if let Err(e) = std::fs::remove_dir_all(&self.dir) {
            println!("{}: could not be removed: {e}", self.dir.display());
        }
    }
}

/// A program that is watched.
#[derive(Debug)]
struct Program {
    name: &'static str,
    root: Pid,
    /// Its last committed checkpoint.
    last: Option<String>,
}

impl<'a> Stage<'a> {
    fn new(brood: &'a mut Brood) -> Result<Stage<'a>> {
        let dir = std::env::temp_dir().join(format!("freeze-demo-{}", std::process::id()));
        std::fs::create_dir(&dir).with_context(|| dir.display().to_string())?;
        Ok(Stage {
            brood,
            dir,
            commands: 0,
        })
    }

    fn act(&mut self) -> Result<()> {
        let letters = self.letters()?;
        let reference = self.zip_undisturbed(&letters)?;
        let agent = self.start_agent()?;
        let (mut redis, port) = self.start_redis()?;
        let run = Redis::connect(port, Instant::now() + PATIENCE)?.run_id()?;
        let log = self.dir.join("python.log");
        let mut python = self.start_python(&log)?;
        let mut pipeline = self.start_pipeline(&letters)?;

        let mut programs = [&mut redis, &mut python, &mut pipeline];
        for program in &programs {
            let pid = program.root.to_string();
            self.freeze(&["watch", &pid, "--every", "1s", "--keep", "5"])?;
        }
        println!("\nwatched, one checkpoint a second:");
        let until = Instant::now() + WATCHED;
        while Instant::now() < until {
            self.follow(&mut programs)?;
            self.brood.nap(Duration::from_millis(200))?;
        }
        for program in &programs {
            ensure!(
                brood::exists(program.root),
                "{} ended by itself while it was watched",
                program.name
            );
        }

        println!("\nkilled with SIGKILL:");
        let trees: Vec<Pid> = programs
            .iter()
            .flat_map(|p| [vec![p.root], brood::below(p.root)].concat())
            .collect();
        println!(
            "    {}",
            trees
                .iter()
                .map(|&p| brood::name(p))
                .collect::<Vec<_>>()
                .join(", ")
        );
        self.brood.end(&trees)?;
        let counted = read_log(&log)?.len();
        self.follow(&mut programs)?;
        println!("    and the agent, {}: a restore needs none", brood::name(agent));
        self.brood.end_tree(agent)?;

        println!("\nrestored:");
        // redis and gzip wrote on after their last checkpoint; their files are cut back to it. python's log
        // is left as it is, so that one can see in it where the count went on.
        self.restore(&redis, &["--rewind-files"])?;
        self.restore(&python, &[])?;
        self.restore(&pipeline, &["--rewind-files"])?;

        println!("\nlooked at:");
        self.look_at_redis(port, &run)?;
        self.look_at_python(&python, &log, counted)?;
        self.look_at_pipeline(&pipeline, reference)
    }

    /// A file that gzip is busy with for about [`ZIPPING`]: random letters of an alphabet of four.
    fn letters(&mut self) -> Result<PathBuf> {
        let sample = self.dir.join("sample");
        write_letters(&sample, 1 << 19)?;
        let mut best = PATIENCE;
        // The best of three: whatever else the machine is busy with now may end in a moment.
        for _ in 0..3 {
            let started = Instant::now();
            let (gzip, _) = self.zip(&sample)?;
            let status = self.brood.wait(gzip, started + PATIENCE)?;
            ensure!(
                status.is_some_and(|s| s.success()),
                "gzip of half a MiB: {status:?}"
            );
            best = best.min(started.elapsed());
        }
        let size = (f64::from(1 << 19) * ZIPPING.as_secs_f64() / best.as_secs_f64()) as u64;
        let letters = self.dir.join("big");
        write_letters(&letters, size.clamp(1 << 23, 1 << 30))?;
        Ok(letters)
    }

    /// Starts gzip on a file, alone and unwatched; says where the output goes.
    fn zip(&mut self, file: &Path) -> Result<(Pid, PathBuf)> {
        let out = file.with_extension("alone.gz");
        let mut gzip = Command::new("gzip");
        gzip.arg("-9nc").stdin(open(file)?).stdout(create(&out)?);
        Ok((self.brood.start(&mut gzip)?, out))
    }

    fn zip_undisturbed(&mut self, letters: &Path) -> Result<(Pid, PathBuf)> {
        let size = std::fs::metadata(letters)
            .with_context(|| letters.display().to_string())?
            .len();
        let zip = self.zip(letters)?;
        println!("undisturbed: gzip of {}, to compare with later", bytes(size));
        Ok(zip)
    }

    fn start_agent(&mut self) -> Result<Pid> {
        let log = create(&self.dir.join("freezed.log"))?;
        let mut freezed = Command::new(release("freezed"));
        freezed
            .arg("--store")
            .arg(self.dir.join("store"))
            .arg("--socket")
            .arg(self.dir.join("socket"));
        let pid = self
            .brood
            .start(freezed.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log))?;
        self.until("freezed listens", PATIENCE, |stage| {
            if let Some(status) = stage.brood.look(pid) {
                bail!("freezed ended at once: {status}");
            }
            Ok(stage.dir.join("socket").exists())
        })?;
        println!("agent: freezed, pid {pid}");
        Ok(pid)
    }

    fn start_redis(&mut self) -> Result<(Program, u16)> {
        // The port is free now; should somebody take it in this moment, redis says so and the demonstration fails.
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|l| l.local_addr())
            .context("a free port")?
            .port();
        let dir = self.dir.join("redis");
        std::fs::create_dir(&dir)?;
        let number = port.to_string();
        let options = [
            "--port",
            &number,
            "--bind",
            "127.0.0.1",
            "--appendonly",
            "yes",
            "--save",
            "",
        ];
        let root = self.daemon(
            "redis",
            Command::new("redis-server").args(options).arg("--dir").arg(&dir),
        )?;
        let mut redis = Redis::connect(port, Instant::now() + PATIENCE)?;
        let started = Instant::now();
        redis.fill(KEYS)?;
        let seconds = started.elapsed().as_secs_f64();
        println!("redis: pid {root}, {KEYS} keys and an append-only file (filled in {seconds:.1} s)");
        Ok((
            Program {
                name: "redis",
                root,
                last: None,
            },
            port,
        ))
    }

    fn start_python(&mut self, log: &Path) -> Result<Program> {
        let script = self.dir.join("count.py");
        std::fs::write(&script, PYTHON)?;
        // Debian's own, not whatever wrapper of that name comes first.
        let root = self.daemon("python", Command::new("/usr/bin/python3").arg(&script).arg(log))?;
        self.until("python counts", PATIENCE, |_| {
            Ok(log.exists() && !read_log(log)?.is_empty())
        })?;
        println!("python: pid {root}, four threads that compute and write a log");
        Ok(Program {
            name: "python",
            root,
            last: None,
        })
    }

    fn start_pipeline(&mut self, letters: &Path) -> Result<Program> {
        let line = "cat \"$1\" | gzip -9n > \"$2\"";
        let mut sh = Command::new("sh");
        sh.args(["-c", line, "sh"]).arg(letters).arg(self.dir.join("out"));
        let root = self.daemon("pipeline", &sh)?;
        println!("pipeline: pid {root}, cat big | gzip > out");
        Ok(Program {
            name: "pipeline",
            root,
            last: None,
        })
    }

    /// Starts a program in a session of its own, with nothing that leads out of it.
    fn daemon(&mut self, name: &str, program: &Command) -> Result<Pid> {
        let output = create(&self.dir.join(format!("{name}.out")))?;
        // setsid keeps the pid: a process just forked leads no group.
        let mut setsid = Command::new("setsid");
        setsid
            .arg(program.get_program())
            .args(program.get_args())
            .current_dir(&self.dir);
        self.brood.start(
            setsid
                .stdin(Stdio::null())
                .stdout(output.try_clone()?)
                .stderr(output),
        )
    }

    /// Runs `freeze` and hands over what it printed; fails with what it said if it failed.
    fn freeze(&mut self, args: &[&str]) -> Result<String> {
        self.commands += 1;
        let file = |kind: &str| self.dir.join(format!("freeze-{}.{kind}", self.commands));
        let (out, err) = (file("out"), file("err"));
        let mut freeze = Command::new(release("freeze"));
        freeze.args(args).arg("--store").arg(self.dir.join("store"));
        if !matches!(args, ["restore", ..]) {
            freeze.arg("--socket").arg(self.dir.join("socket"));
        }
        let pid = self.brood.start(
            freeze
                .stdin(Stdio::null())
                .stdout(create(&out)?)
                .stderr(create(&err)?),
        )?;
        let status = self.brood.wait(pid, Instant::now() + PATIENCE)?;
        let read = |path: &Path| std::fs::read_to_string(path).with_context(|| path.display().to_string());
        match status {
            Some(status) if status.success() => read(&out),
            Some(status) => bail!("freeze {}: {status}: {}", args.join(" "), read(&err)?.trim_end()),
            None => {
                self.brood.end_tree(pid)?;
                bail!("freeze {}: not done after {PATIENCE:?}", args.join(" "))
            }
        }
    }

    /// Asks the agent, and prints a line for every checkpoint that is new.
    fn follow(&mut self, programs: &mut [&mut Program]) -> Result<()> {
        let status = self.freeze(&["status", "--json"])?;
        let status: Value =
            serde_json::from_str(&status).with_context(|| format!("freeze status --json: {status}"))?;
        for group in status["groups"].as_array().into_iter().flatten() {
            let root = group["root"].as_i64();
            let Some(program) = programs.iter_mut().find(|p| root == Some(p.root.as_raw().into())) else {
                continue;
            };
            let last = &group["last"];
            let id = text(&last["id"]);
            if last.is_null() || program.last.as_deref() == Some(&id) {
                continue;
            }
            println!(
                "    {:9} {id:>14} {:>8} pages {:>10}   pause {:>8.2} ms",
                program.name,
                last["pages"].as_u64().unwrap_or(0),
                bytes(last["bytes"].as_u64().unwrap_or(0)),
                last["pause_us"].as_f64().unwrap_or(f64::NAN) / 1000.0,
            );
            program.last = Some(id);
        }
        Ok(())
    }

    fn restore(&mut self, program: &Program, options: &[&str]) -> Result<()> {
        let name = program.name;
        let id = program
            .last
            .as_deref()
            .with_context(|| format!("{name}: no checkpoint in {WATCHED:?}"))?;
        let pidfile = self.dir.join(format!("{name}.pid"));
        let path = pidfile.display().to_string();
        let started = Instant::now();
        self.freeze(&[&["restore", id, "--detach", "--pidfile", &path], options].concat())?;
        let took = started.elapsed();
        let pid = std::fs::read_to_string(&pidfile).with_context(|| path.clone())?;
        ensure!(
            pid.trim() == program.root.to_string(),
            "{name}: pid {} before, {} after",
            program.root,
            pid.trim()
        );
        println!(
            "    {name:9} {id:>14} as pid {}, in {:.1} ms",
            program.root,
            took.as_secs_f64() * 1000.0
        );
        Ok(())
    }

    fn look_at_redis(&mut self, port: u16, run: &str) -> Result<()> {
        let mut redis = Redis::connect(port, Instant::now() + PATIENCE)?;
        let now = redis.run_id()?;
        ensure!(
            now == run,
            "redis: another server answers: run {run} before, {now} after"
        );
        redis.compare(KEYS)?;
        redis.write_and_read_back()?;
        println!("    redis     the same server answers with the same {KEYS} values, and takes new ones");
        Ok(())
    }

    fn look_at_python(&mut self, python: &Program, log: &Path, counted: usize) -> Result<()> {
        self.until("the restored python counts", PATIENCE, |stage| {
            if let Some(status) = stage.brood.look(python.root) {
                bail!("python ended: {status}");
            }
            Ok(read_log(log)?.len() >= counted + LINES_AFTER)
        })?;
        let from = judge_log(&read_log(log)?, counted)?;
        println!("    python    had counted to {counted} when it was killed, and went on from {from}");
        Ok(())
    }

    fn look_at_pipeline(&mut self, pipeline: &Program, reference: (Pid, PathBuf)) -> Result<()> {
        let long = ZIPPING * 10;
        let status = self.brood.wait(reference.0, Instant::now() + long)?;
        ensure!(
            status.is_some_and(|s| s.success()),
            "the undisturbed gzip: {status:?}"
        );
        let mut ended: Option<ExitStatus> = None;
        self.until("the restored pipeline ends", long, |stage| {
            ended = stage.brood.look(pipeline.root);
            Ok(ended.is_some() || !brood::exists(pipeline.root))
        })?;
        if let Some(status) = ended {
            ensure!(status.success(), "the restored pipeline ended with {status}");
        }
        let read = |path: &Path| std::fs::read(path).with_context(|| path.display().to_string());
        let (out, expected) = (read(&self.dir.join("out"))?, read(&reference.1)?);
        let same = out.iter().zip(&expected).take_while(|(a, b)| a == b).count();
        ensure!(
            out == expected,
            "the pipeline's output ({} bytes) differs from the undisturbed run's ({} bytes) at offset {same}",
            out.len(),
            expected.len()
        );
        println!(
            "    pipeline  ended; its {} are those of the undisturbed run, byte for byte",
            bytes(same as u64)
        );
        Ok(())
    }

    /// Asks again and again until it is so.
    fn until(
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

    fn print_agent_log(&self) {
        let text = std::fs::read(self.dir.join("freezed.log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        if !lines.is_empty() {
            println!("\nthe end of freezed's log:");
        }
        for line in &lines[lines.len().saturating_sub(20)..] {
            println!("    {}", line.chars().take(300).collect::<String>());
        }
    }
}

/// One line of python's log: the count, the thread, its step, its number.
type Line = (u64, u64, u64, u64);

/// The whole lines of the log.
fn read_log(path: &Path) -> Result<Vec<Line>> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole
        .lines()
        .map(|line| {
            let numbers: Vec<u64> = line.split(' ').map_while(|n| n.parse().ok()).collect();
            match numbers[..] {
                [count, thread, step, x] => Ok((count, thread, step, x)),
                _ => bail!("{}: not a line of the program's: {line:?}", path.display()),
            }
        })
        .collect()
}

/// Compares with what four undisturbed threads would have written, the first `counted` lines before the kill.
/// Returns the count from which it went on.
fn judge_log(lines: &[Line], counted: usize) -> Result<u64> {
    let (before, after) = lines.split_at(counted.min(lines.len()));
    let from = after.first().context("python wrote nothing after the restore")?.0 - 1;
    ensure!(from > 0, "python began at zero again");
    ensure!(
        from <= counted as u64,
        "python went on from {from}, and had counted to {counted} only"
    );
    for (part, start) in [(before, 0), (after, from)] {
        for (i, line) in part.iter().enumerate() {
            let expected = start + 1 + i as u64;
            ensure!(
                line.0 == expected,
                "python counted {} where {expected} comes next",
                line.0
            );
        }
    }
    // Every thread's number must be the one that its step has in an undisturbed run.
    let mut chains: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    for &(count, thread, step, x) in lines {
        let chain = chains.entry(thread).or_insert_with(|| vec![thread]);
        while (chain.len() as u64) <= step {
            let last = chain[chain.len() - 1];
            chain.push((0..5000).fold(last, |x, _| (x * 1_103_515_245 + 12345) & 0x7fff_ffff));
        }
        ensure!(
            chain[step as usize] == x,
            "python's count {count}: thread {thread} computed {x} in step {step}"
        );
    }
    ensure!(
        chains.len() == 4,
        "{} of python's four threads wrote",
        chains.len()
    );
    let alive = after
        .iter()
        .map(|line| line.1)
        .collect::<std::collections::BTreeSet<_>>()
        .len();
    ensure!(alive == 4, "{alive} of python's four threads went on");
    Ok(from)
}

/// `size` bytes that are the same each time and hard work for gzip.
fn write_letters(path: &Path, size: u64) -> Result<()> {
    let mut file = BufWriter::new(create(path)?);
    let mut x: u64 = 0x9e37_79b9_7f4a_7c15;
    for _ in 0..size / 8 {
        // xorshift64: each byte gives a letter.
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        let letters = x.to_le_bytes().map(|byte| b"ACGT"[usize::from(byte >> 6)]);
        file.write_all(&letters)
            .with_context(|| path.display().to_string())?;
    }
    file.flush().with_context(|| path.display().to_string())
}

fn open(path: &Path) -> Result<File> {
    File::open(path).with_context(|| path.display().to_string())
}

fn create(path: &Path) -> Result<File> {
    File::create(path).with_context(|| path.display().to_string())
}

/// A string as it is, anything else as JSON.
fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_string)
}

/// A number of bytes for people.
fn bytes(n: u64) -> String {
    match n {
        0..10_240 => format!("{n} B"),
        10_240..10_485_760 => format!("{} KiB", n >> 10),
        _ => format!("{} MiB", n >> 20),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(x: u64) -> u64 {
        (0..5000).fold(x, |x, _| (x * 1_103_515_245 + 12345) & 0x7fff_ffff)
    }

    /// What the program writes when its threads take turns, from one count to another.
    fn log(counts: std::ops::RangeInclusive<u64>) -> Vec<Line> {
        let line = |count: u64| {
            let (thread, steps) = ((count - 1) % 4, (count - 1) / 4 + 1);
            (count, thread, steps, (0..steps).fold(thread, |x, _| step(x)))
        };
        counts.map(line).collect()
    }

    #[test]
    fn python_must_go_on_where_it_was() {
        assert_eq!(judge_log(&[log(1..=40), log(31..=60)].concat(), 40).unwrap(), 30);
        assert!(
            judge_log(&[log(1..=40), log(1..=60)].concat(), 40).is_err(),
            "began again"
        );
        assert!(
            judge_log(&[log(1..=40), log(43..=60)].concat(), 40).is_err(),
            "skipped two"
        );
        assert!(judge_log(&log(1..=40), 40).is_err(), "wrote nothing");
        let mut wrong = [log(1..=40), log(31..=60)].concat();
        wrong[50].3 += 1;
        assert!(judge_log(&wrong, 40).is_err(), "computed something else");
        let three: Vec<Line> = log(31..=33);
        assert!(
            judge_log(&[log(1..=40), three].concat(), 40).is_err(),
            "lost a thread"
        );
    }
}
