//! Runs every test there is, each test program on its own under a time limit, and adds up.

use crate::brood::{self, Brood};
use crate::{cargo, output, root, target_dir, tidy};
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How long one test program may take.
const PROGRAM_LIMIT: Duration = Duration::from_secs(15 * 60);

/// How long all of it may take; a program that starts late gets what is left.
const WHOLE_LIMIT: Duration = Duration::from_secs(60 * 60);

/// How long processes that a test program started may outlive it.
const GRACE: Duration = Duration::from_secs(2);

/// What a test prints at the start of a line when it finds at run time that it cannot be run here.
const SKIP: &str = "SKIP: ";

/// The sum over everything that ran.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    /// Name and reason.
    skipped: Vec<(String, String)>,
    /// Name and what it said first, of those that have a name.
    broken: Vec<(String, String)>,
}

impl Tally {
    fn add(&mut self, other: Tally) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped.extend(other.skipped);
        self.broken.extend(other.broken);
    }

    /// What was skipped and why; the modes of one subject in a line.
    fn skips(&self) -> Vec<String> {
        let subject = |name: &str| {
            name.rsplit_once("::")
                .map_or(name, |(subject, _)| subject)
                .to_owned()
        };
        let mut by_reason: BTreeMap<(String, &str), Vec<&str>> = BTreeMap::new();
        for (name, reason) in &self.skipped {
            by_reason.entry((subject(name), reason)).or_default().push(name);
        }
        let line = |((subject, reason), names): ((String, &str), Vec<&str>)| match &names[..] {
            [name] => format!("{name}: {reason}"),
            names => format!("{subject}, {} tests: {reason}", names.len()),
        };
        by_reason.into_iter().map(line).collect()
    }
}

/// Checks the sources (without a filter), builds, runs the tests; true when none failed.
pub(crate) fn run(brood: &mut Brood, filter: Option<&str>) -> Result<bool> {
    let end = Instant::now() + WHOLE_LIMIT;
    let mut tally = Tally::default();
    if filter.is_none() {
        let clippy = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
        tally.add(step(
            brood,
            "formatting",
            cargo().args(["fmt", "--all", "--check"]),
        )?);
        let ebpf = root().join("freeze-ebpf/Cargo.toml");
        if ebpf.exists() {
            let mut fmt = cargo();
            fmt.args(["fmt", "--check", "--manifest-path"]).arg(ebpf);
            tally.add(step(brood, "formatting of the kernel programs", &mut fmt)?);
        }
        tally.add(step(brood, "clippy", cargo().args(clippy))?);
        let faults = tidy::check(&root())?;
        println!("{} tidy: {} faults", mark(faults.is_empty()), faults.len());
        for fault in &faults {
            println!("    {fault}");
        }
        tally.add(Tally::of(faults.is_empty()));
    }
    tally.add(step(
        brood,
        "cargo build --release",
        cargo().args(["build", "--release"]),
    )?);
    match programs(brood)? {
        None => tally.add(Tally::of(false)),
        Some(programs) => {
            for program in programs {
                tally.add(play(brood, &program, filter, end)?);
            }
            let doc = Program {
                name: "documentation".into(),
                dir: root(),
                run: Run::Documentation,
            };
            tally.add(play(brood, &doc, filter, end)?);
            if filter.is_none() {
                tally.add(kernels(brood));
            }
        }
    }
    for line in tally.skips() {
        println!("skipped: {line}");
    }
    // Once more, where whoever sees only the end of this sees it.
    for (name, why) in &tally.broken {
        println!("failed: {name}: {why}");
    }
    println!(
        "{} passed, {} failed, {} skipped",
        tally.passed,
        tally.failed,
        tally.skipped.len()
    );
    Ok(tally.failed == 0)
}

/// The short run over two kernels, which counts like any other test program.
fn kernels(brood: &mut Brood) -> Tally {
    let tally = crate::vm::run(brood, &crate::vm::VmArgs::short()).unwrap_or_else(|e| {
        println!("FAILED vm: {e:#}");
        Tally::of(false)
    });
    println!(
        "{} vm: {} passed, {} failed",
        mark(tally.failed == 0),
        tally.passed,
        tally.failed
    );
    tally
}

impl Tally {
    fn of(well: bool) -> Tally {
        Tally {
            passed: well.into(),
            failed: (!well).into(),
            ..Tally::default()
        }
    }
}

fn mark(well: bool) -> &'static str {
    if well { "ok    " } else { "FAILED" }
}

/// A check that counts as one test, with its own output.
fn step(brood: &mut Brood, name: &str, command: &mut Command) -> Result<Tally> {
    let status = brood.foreground(command)?;
    println!("{} {name}", mark(status.success()));
    let mut tally = Tally::of(status.success());
    if !status.success() {
        tally.broken.push((name.to_owned(), status.to_string()));
    }
    Ok(tally)
}

/// Builds every test program, and tells for each its name (`tests/eventfd`), its file, and where it is to be run.
pub(crate) fn test_binaries(brood: &mut Brood) -> Result<Vec<(String, PathBuf, PathBuf)>> {
    let Some(programs) = programs(brood)? else {
        bail!("the tests do not build");
    };
    let binaries = programs.into_iter().filter_map(|p| match p.run {
        Run::Binary(binary) => Some((p.name, binary, p.dir)),
        Run::Documentation => None,
    });
    Ok(binaries.collect())
}

/// A program full of tests.
#[derive(Debug, PartialEq)]
struct Program {
    name: String,
    /// Where cargo would run it: its package's directory.
    dir: PathBuf,
    run: Run,
}

#[derive(Debug, PartialEq)]
enum Run {
    Binary(PathBuf),
    Documentation,
}

/// Builds every test program; `None` when the compiler says no.
fn programs(brood: &mut Brood) -> Result<Option<Vec<Program>>> {
    let list = target_dir().join("xtask-tests.json");
    std::fs::create_dir_all(target_dir()).with_context(|| target_dir().display().to_string())?;
    let file = File::create(&list).with_context(|| list.display().to_string())?;
    let mut build = cargo();
    build.args([
        "test",
        "--workspace",
        "--no-run",
        "--message-format=json-render-diagnostics",
    ]);
    let status = brood.foreground(build.stdout(file))?;
    if !status.success() {
        println!("{} building the tests", mark(false));
        return Ok(None);
    }
    let text = std::fs::read_to_string(&list).with_context(|| list.display().to_string())?;
    let found: Vec<Program> = text.lines().filter_map(read_program).collect();
    if found.is_empty() {
        bail!("cargo named no test program in {}", list.display());
    }
    Ok(Some(found))
}

/// One line of cargo's JSON, if it is about a test program.
fn read_program(line: &str) -> Option<Program> {
    let message: serde_json::Value = serde_json::from_str(line).ok()?;
    if message["reason"] != "compiler-artifact" || message["profile"]["test"] != true {
        return None;
    }
    let dir = Path::new(message["manifest_path"].as_str()?).parent()?;
    let package = dir.file_name()?.to_str()?;
    Some(Program {
        name: format!("{package}/{}", message["target"]["name"].as_str()?),
        dir: dir.to_path_buf(),
        run: Run::Binary(message["executable"].as_str()?.into()),
    })
}

/// Runs one program, its output in a file (a pipe would stay open in whatever it leaves behind).
fn play(brood: &mut Brood, program: &Program, filter: Option<&str>, end: Instant) -> Result<Tally> {
    let logs = target_dir().join("test-logs");
    std::fs::create_dir_all(&logs).with_context(|| logs.display().to_string())?;
    let path = logs.join(format!("{}.log", program.name.replace('/', "-")));
    let log = File::create(&path).with_context(|| path.display().to_string())?;
    let mut command = match &program.run {
        Run::Binary(binary) => Command::new(binary),
        Run::Documentation => {
            let mut command = cargo();
            command.args(["test", "--workspace", "--doc", "--quiet", "--"]);
            command
        }
    };
    command
        .current_dir(&program.dir)
        .env("CARGO_MANIFEST_DIR", &program.dir);
    command.arg("--show-output").args(filter);
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0);

    let started = Instant::now();
    let before = brood.left();
    let pid = brood.start(&mut command)?;
    let status = brood.wait(pid, (started + PROGRAM_LIMIT).min(end))?;
    if status.is_none() {
        brood.end_tree(pid)?;
    }
    let patience = Instant::now() + GRACE;
    let mut left;
    loop {
        left = brood.left();
        left.retain(|pid| !before.contains(pid));
        if left.is_empty() || Instant::now() > patience {
            break;
        }
        brood.nap(Duration::from_millis(20))?;
    }
    let names: Vec<String> = left.iter().map(|&pid| brood::name(pid)).collect();
    brood.end(&left)?;

    let text = String::from_utf8_lossy(&std::fs::read(&path).with_context(|| path.display().to_string())?)
        .into_owned();
    let mut tally = read_output(&program.name, &text);
    if let Some(mut fault) = fault(status, &tally, &text, &names) {
        tally.failed += 1;
        tally.broken.push((program.name.clone(), fault.clone()));
        if let (false, Run::Binary(binary)) = (text.contains("test result: "), &program.run) {
            let (_, all) = output(
                Command::new(binary)
                    .args(["--list", "--format", "terse"])
                    .args(filter),
            )?;
            fault += &format!("; not done: {}", unfinished(&all, &text).join(", "));
        }
        let mut log = File::options().append(true).open(&path)?;
        writeln!(log, "\n{fault}")?;
        println!("{fault}");
    }
    if tally.passed + tally.failed > 0 || !tally.skipped.is_empty() {
        println!(
            "{} {}: {} passed, {} failed, {} skipped, {:.1} s",
            mark(tally.failed == 0),
            program.name,
            tally.passed,
            tally.failed,
            tally.skipped.len(),
            started.elapsed().as_secs_f64()
        );
    }
    if tally.failed > 0 {
        println!("{}\n    all of it: {}", failures(&text), path.display());
    }
    Ok(tally)
}

/// What is wrong beside single failed tests.
fn fault(status: Option<ExitStatus>, tally: &Tally, text: &str, left: &[String]) -> Option<String> {
    match status {
        None => return Some("hung, and was killed".into()),
        Some(status) => {
            if let Some(signal) = status.signal() {
                return Some(format!("killed by signal {signal}"));
            }
            if !status.success() && tally.failed == 0 {
                return Some(format!("{status}, though no test failed"));
            }
            if !text.contains("test result: ") && !text.is_empty() {
                return Some("ended before its tests did".into());
            }
        }
    }
    (!left.is_empty()).then(|| format!("left processes behind: {}", left.join(", ")))
}

/// The tests of a list, as the harness prints it, that have no result in the output.
fn unfinished<'a>(list: &'a str, text: &str) -> Vec<&'a str> {
    let names = list.lines().filter_map(|line| line.strip_suffix(": test"));
    names
        .filter(|name| !text.contains(&format!("test {name} ... ")))
        .collect()
}

/// Counts, as the test harness prints them; a test that printed [`SKIP`] did not pass.
fn read_output(program: &str, text: &str) -> Tally {
    /// How many characters of what a failed test said are repeated.
    const WHY: usize = 300;
    let mut failed = Vec::new();
    let mut tally = Tally::default();
    let mut skipped_late = 0;
    let mut test = None;
    let mut said: BTreeMap<&str, &str> = BTreeMap::new();
    let mut panicked = false;
    for line in text.lines() {
        if let (true, Some(test)) = (std::mem::take(&mut panicked), test) {
            said.entry(test).or_insert(line);
        }
        if let Some(counts) = line.strip_prefix("test result: ") {
            let count = |what: &str| -> u64 {
                let field = counts.split([';', '.']).find_map(|f| f.trim().strip_suffix(what));
                field.and_then(|n| n.trim().parse().ok()).unwrap_or(0)
            };
            tally.passed += count(" passed");
            tally.failed += count(" failed");
            test = None;
        } else if let Some(name) = line
            .strip_prefix("---- ")
            .and_then(|l| l.strip_suffix(" stdout ----"))
        {
            test = Some(name);
        } else if line.starts_with("thread '") && line.contains(" panicked at ") {
            panicked = true;
        } else if let Some(reason) = line.strip_prefix(SKIP) {
            let name = test.map_or(program.to_string(), |test| format!("{program} {test}"));
            tally.skipped.push((name, reason.to_string()));
            skipped_late += 1;
        } else if let Some((name, rest)) = line
            .strip_prefix("test ")
            .and_then(|l| l.split_once(" ... ignored"))
        {
            let reason = rest.strip_prefix(", ").unwrap_or("marked #[ignore]");
            tally
                .skipped
                .push((format!("{program} {name}"), reason.to_string()));
        } else if let Some(name) = line
            .strip_prefix("test ")
            .and_then(|l| l.strip_suffix(" ... FAILED"))
        {
            failed.push(name);
        }
    }
    let why = |name: &&str| {
        let line = said.get(name).copied().unwrap_or("see above");
        let name = format!("{program} {name}");
        (name, line.chars().take(WHY).collect())
    };
    tally.broken = failed.iter().map(why).collect();
    tally.passed = tally.passed.saturating_sub(skipped_late);
    tally
}

/// The part of the output that explains the failures, or its end.
fn failures(text: &str) -> String {
    const LINES: usize = 200;
    let from = text.find("\nfailures:\n").map_or(0, |at| at + 1);
    let lines: Vec<&str> = text[from..].lines().collect();
    let first = if from == 0 {
        lines.len().saturating_sub(LINES)
    } else {
        0
    };
    lines
        .iter()
        .skip(first)
        .take(LINES)
        .map(|line| format!("    {line}\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "
running 5 tests
test a ... ok
test b ... ignored, needs two machines
test c ... ignored
test d ... FAILED
test e ... ok

successes:

---- e stdout ----
SKIP: no second CPU
more

successes:
    a
    e

failures:

---- d stdout ----
working

thread 'd' (7) panicked at tests/d.rs:1:2:
no
note: run with more

failures:
    d

test result: FAILED. 2 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.00s
";

    #[test]
    fn a_skipped_test_did_not_pass() {
        let tally = read_output("x", OUTPUT);
        assert_eq!((tally.passed, tally.failed), (1, 1));
        assert_eq!(tally.broken, [("x d".to_owned(), "no".to_owned())]);
        assert_eq!(
            tally.skips(),
            [
                "x b: needs two machines",
                "x c: marked #[ignore]",
                "x e: no second CPU"
            ]
        );
        assert!(failures(OUTPUT).starts_with("    failures:"));
        let modes = ["x m::resume", "x m::restore"].map(|name| (name.to_owned(), "no disk".to_owned()));
        let tally = Tally {
            skipped: modes.into(),
            ..Tally::default()
        };
        assert_eq!(tally.skips(), ["x m, 2 tests: no disk"]);
    }

    #[test]
    fn what_no_single_test_shows_is_a_fault() {
        let exit = |code: i32| Some(ExitStatus::from_raw(code << 8));
        let good = Tally {
            passed: 1,
            ..Tally::default()
        };
        let text = "test result: ok. 1 passed";
        assert_eq!(fault(exit(0), &good, text, &[]), None);
        assert!(fault(exit(101), &good, text, &[]).is_some());
        assert!(fault(Some(ExitStatus::from_raw(9)), &good, text, &[]).is_some());
        assert!(fault(exit(0), &good, "running 2 tests", &[]).is_some());
        assert!(fault(exit(0), &good, text, &["7 (sleep)".into()]).is_some());
        assert!(fault(None, &good, text, &[]).is_some());
    }

    #[test]
    fn who_did_not_finish_is_named() {
        assert_eq!(
            unfinished("a: test\nb: test\nz: bench\n", "running 2 tests\ntest a ... ok\n"),
            ["b"]
        );
    }

    #[test]
    fn cargo_names_the_programs() {
        let line = r#"{"reason":"compiler-artifact","manifest_path":"/x/freeze-user/Cargo.toml",
            "target":{"name":"freeze"},"profile":{"test":true},"executable":"/t/freeze-1"}"#;
        let line = line.replace('\n', "");
        let expected = Program {
            name: "freeze-user/freeze".into(),
            dir: "/x/freeze-user".into(),
            run: Run::Binary("/t/freeze-1".into()),
        };
        assert_eq!(read_program(&line), Some(expected));
        assert_eq!(read_program(&line.replace("true", "false")), None);
        assert_eq!(read_program("{}"), None);
    }
}
