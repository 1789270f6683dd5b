//! The agent end to end: watched programs are checkpointed, crash, come back, and never notice what becomes of freezed.

#[path = "agent/remembered.rs"]
mod remembered;

use freeze_tests::subject::{copy_freeze, output};
use freeze_tests::{freeze, scratch};
use freeze_user::ids::Pid;
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Writes 1, 2, 3 … into a file, each number over the one before it.
const COUNT: &str = "
import sys, time
n, f = 0, open(sys.argv[1], 'w')
ballast = bytearray(b'x' * (8 << 20))
while True:
    n += 1
    f.seek(0)
    f.write(f'{n}\\n')
    f.flush()
    time.sleep(0.005)
";

/// How long anything may take that is to come by itself; the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(40);

/// An agent with a store and a socket of its own, and the programs it watches. Dropping it ends them all.
struct Stage {
    dir: PathBuf,
    freezed: Child,
    started: Vec<Pid>,
}

impl Drop for Stage {
    fn drop(&mut self) {
        let agents = self.agents();
        let _ = self.freezed.kill();
        let _ = self.freezed.wait();
        let end = Instant::now() + PATIENCE;
        let gone = |pids: &[Pid]| {
            while pids.iter().any(|p| running(*p)) && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(10));
            }
        };
        // First the engine: while it lives it takes what follows for a crash, and may bring them back.
        gone(&agents[1..]);
        for pid in &self.started {
            let _ = kill(pid.nix(), Signal::SIGKILL);
        }
        gone(&self.started);
        if std::thread::panicking() {
            eprintln!(
                "freezed's log:\n{}",
                fs::read_to_string(self.dir.join("log")).unwrap_or_default()
            );
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

impl Stage {
    fn new() -> Stage {
        let dir = scratch();
        let freezed = start_agent(&dir);
        let stage = Stage {
            dir,
            freezed,
            started: Vec::new(),
        };
        stage.until("freezed listens", || stage.dir.join("socket").exists());
        stage
    }

    /// A command of freeze's, told where the agent and the store are.
    fn freeze(&self, args: &[&str]) -> Output {
        output(
            freeze()
                .args(args)
                .arg("--store")
                .arg(self.dir.join("store"))
                .arg("--socket")
                .arg(self.dir.join("socket")),
        )
    }

    /// What a command that must succeed prints with --json.
    fn json(&self, args: &[&str]) -> Value {
        let out = self.freeze(&[args, &["--json"]].concat());
        assert!(
            out.status.success(),
            "freeze {args:?}: {} {}",
            text(&out.stdout),
            text(&out.stderr)
        );
        serde_json::from_slice(&out.stdout).expect("JSON")
    }

    /// Starts the program that counts, watched under the name `count`.
    fn watch(&mut self, options: &[&str]) -> Pid {
        self.watch_one(COUNT, options)
    }

    /// The same of another program that writes numbers.
    fn watch_one(&mut self, program: &str, options: &[&str]) -> Pid {
        let script = self.dir.join("count.py");
        fs::write(&script, program).expect("a script");
        let number = self.dir.join("number");
        let mut args = vec!["watch", "--name", "count", "--json"];
        args.extend(options);
        let store = self.dir.join("store").display().to_string();
        let socket = self.dir.join("socket").display().to_string();
        let (script, number) = (script.display().to_string(), number.display().to_string());
        args.extend([
            "--store",
            &store,
            "--socket",
            &socket,
            "--",
            "/usr/bin/python3",
            &script,
            &number,
        ]);
        let out = output(freeze().args(args));
        assert!(
            out.status.success(),
            "{} {}",
            text(&out.stdout),
            text(&out.stderr)
        );
        let group: Value = serde_json::from_slice(&out.stdout).expect("JSON");
        let pid = Pid(group["root"].as_i64().expect("a pid") as i32);
        self.started.push(pid);
        self.until("it counts", || self.count() > 0);
        pid
    }

    /// The group `count` as `freeze status` shows it.
    fn group(&self) -> Option<Value> {
        let status = self.json(&["status"]);
        status["groups"]
            .as_array()
            .expect("groups")
            .iter()
            .find(|g| g["name"] == "count")
            .cloned()
    }

    fn checkpoints(&self) -> u64 {
        self.group().and_then(|g| g["checkpoints"].as_u64()).unwrap_or(0)
    }

    /// What the program has counted to; 0 while it is writing.
    fn count(&self) -> u64 {
        let text = fs::read_to_string(self.dir.join("number")).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    }

    /// Fails unless the program counts on.
    fn counts_on(&self, when: &str) {
        let before = self.count();
        self.until(&format!("it counts on {when}"), || self.count() > before.max(1));
    }

    fn until(&self, what: &str, so: impl Fn() -> bool) {
        let end = Instant::now() + PATIENCE;
        while !so() {
            assert!(Instant::now() < end, "waited {PATIENCE:?} in vain until {what}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The two processes that freezed is: the front, and the engine behind it.
    fn agents(&self) -> Vec<Pid> {
        let front = self.freezed.id();
        let children = fs::read_to_string(format!("/proc/{front}/task/{front}/children")).unwrap_or_default();
        let engine = children
            .split_ascii_whitespace()
            .filter_map(|pid| pid.parse().ok());
        std::iter::once(Pid(front as i32))
            .chain(engine.map(Pid))
            .collect()
    }

    /// Kills freezed, and does not wait for what is behind it.
    fn kill_agent(&mut self) {
        self.freezed.kill().expect("to kill freezed");
        self.freezed.wait().expect("to wait for freezed");
    }

    fn restart_agent(&mut self) {
        self.freezed = start_agent(&self.dir);
        self.until("freezed answers", || self.freeze(&["status"]).status.success());
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }
}

fn start_agent(dir: &Path) -> Child {
    let log = fs::File::options()
        .append(true)
        .create(true)
        .open(dir.join("log"))
        .expect("a log");
    let program = PathBuf::from(freeze().get_program()).with_file_name("freezed");
    let mut freezed = Command::new(program);
    freezed
        .arg("--store")
        .arg(dir.join("store"))
        .arg("--socket")
        .arg(dir.join("socket"));
    freezed
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("freezed")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A line of `/proc/PID/status`.
fn status_line(pid: Pid, key: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text
        .lines()
        .find_map(|l| l.strip_prefix(key)?.strip_prefix(':'))?;
    Some(line.trim().to_owned())
}

fn running(pid: Pid) -> bool {
    status_line(pid, "State").is_some_and(|s| !s.starts_with('Z'))
}

#[test]
fn checkpoints_arrive_build_on_each_other_and_are_pruned() {
    let mut stage = Stage::new();
    let pid = stage.watch(&["--every", "200ms", "--keep", "3"]);
    stage.until("nine checkpoints are made", || stage.checkpoints() >= 9);
    let group = stage.group().expect("the group");
    assert_eq!(
        (group["root"].as_i64(), group["state"].as_str()),
        (Some(pid.0.into()), Some("watching"))
    );
    let (own, all) = (&group["last"]["own_pages"], &group["last"]["pages"]);
    assert!(
        own.as_u64() < all.as_u64().map(|n| n / 4),
        "{own} of {all} pages are new"
    );
    // Nobody prunes any more.
    let ended = stage.json(&["unwatch", "count"]);
    assert_eq!(ended["root"], json!(pid));
    let list = stage.json(&["list", "--group", "count"]);
    let list = list.as_array().expect("a list");
    // Three are kept, and at most four more that a chain of four takes.
    let made = ended["checkpoints"].as_u64().expect("a number") as usize;
    let left = list.len();
    assert!(
        (3..=7).contains(&left) && left < made,
        "{left} are left of {made}"
    );
    let verified = stage.json(&["verify", "all"]);
    assert_eq!(verified.as_array().map(Vec::len), Some(list.len()));
    stage.counts_on("when it is no longer watched");
    assert_eq!(status_line(pid, "TracerPid").as_deref(), Some("0"));
    assert_eq!(stage.json(&["status"])["groups"], json!([]));
}

#[test]
fn a_crashed_program_comes_back_and_outlives_the_agent() {
    let mut stage = Stage::new();
    let pid = stage.watch(&["--every", "100ms", "--on-crash", "restore"]);
    stage.until("five checkpoints are made", || stage.checkpoints() >= 5);
    stage.until("it counts to 100", || stage.count() >= 100);
    kill(pid.nix(), Signal::SIGKILL).expect("to kill it");
    let restored = || {
        stage
            .group()
            .is_some_and(|g| g["restores"] == 1 && g["state"] == "watching")
    };
    stage.until("it is restored", restored);
    assert!(running(pid), "the same pid");
    let from = stage.count();
    stage.counts_on("after its restore");
    assert!(
        from >= 50,
        "it went on from about {from} and not from the beginning"
    );
    let before = stage.checkpoints();
    stage.until("it is checkpointed again", || stage.checkpoints() >= before + 3);

    stage.kill_agent();
    stage.counts_on("without an agent");
    stage.restart_agent();
    let group = stage.group().expect("a restarted agent goes on watching");
    assert_eq!(
        (group["state"].as_str(), group["root"].as_i64()),
        (Some("watching"), Some(pid.0.into()))
    );
    assert!(group["last"]["id"].is_string(), "{group}");
    let before = stage.checkpoints();
    stage.until("the new agent makes checkpoints", || {
        stage.checkpoints() >= before + 3
    });

    // Whoever asks a program to end does not want it back.
    kill(pid.nix(), Signal::SIGTERM).expect("to end it");
    stage.until("its watch ends", || stage.group().is_none());
    assert!(!running(pid));
    assert!(
        stage.log().contains("was ended by SIGTERM: no longer watched"),
        "{}",
        stage.log()
    );
}

#[test]
fn a_crash_is_only_told_where_nothing_else_is_wanted() {
    let mut stage = Stage::new();
    let pid = stage.watch(&["--every", "100ms"]);
    stage.until("a checkpoint is made", || stage.checkpoints() >= 1);
    kill(pid.nix(), Signal::SIGSEGV).expect("to kill it");
    stage.until("the crash is noticed", || {
        stage.group().is_some_and(|g| g["state"] == "crashed")
    });
    let group = stage.group().expect("the group");
    assert_eq!(group["problem"], json!(format!("pid {pid} was ended by SIGSEGV")));
    assert!(!running(pid));
    // What the log recommends works.
    let id = group["last"]["id"].as_str().expect("an id").to_owned();
    stage.json(&["restore", &id, "--detach", "--rewind-files"]);
    stage.counts_on("after a restore by hand");
}

#[test]
fn an_agent_that_is_killed_harms_nobody() {
    let times = if std::env::var_os("FREEZE_LONG").is_some() {
        200
    } else {
        20
    };
    let mut stage = Stage::new();
    let pid = stage.watch(&["--every", "50ms", "--keep", "3"]);
    let mut random = std::process::id() | 1;
    for round in 0..times {
        let when = format!("after freezed was killed {round} times");
        stage.until("a checkpoint is made", || stage.checkpoints() > round);
        // xorshift32: some instant of the next three periods.
        random ^= random << 13;
        random ^= random >> 17;
        random ^= random << 5;
        std::thread::sleep(Duration::from_micros(u64::from(random % 150_000)));
        stage.kill_agent();
        stage.counts_on(&when);
        let free = || status_line(pid, "TracerPid").as_deref() == Some("0");
        stage.until(&format!("nobody traces it {when}"), free);
        let list = stage.json(&["list"]);
        let last = list.as_array().and_then(|l| l.last()).expect("a checkpoint")["id"].clone();
        stage.json(&["verify", last.as_str().expect("an id")]);
        stage.restart_agent();
    }
    assert!(!stage.log().contains("bug"), "{}", stage.log());
    let left = fs::read_dir(stage.dir.join("store"))
        .expect("the store")
        .flatten();
    let drafts: Vec<_> = left
        .filter(|e| e.file_name().to_string_lossy().starts_with(".incomplete"))
        .collect();
    // The agent that lives now may be writing one.
    assert!(drafts.len() <= 1, "{drafts:?}");

    stage.json(&["unwatch", "count"]);
    let list = stage.json(&["list"]);
    let last = list.as_array().and_then(|l| l.last()).expect("a checkpoint")["id"].clone();
    kill(pid.nix(), Signal::SIGKILL).expect("to kill it");
    stage.until("it is gone", || !running(pid));
    stage.json(&[
        "restore",
        last.as_str().expect("an id"),
        "--detach",
        "--rewind-files",
    ]);
    assert!(running(pid));
    stage.counts_on("from the last checkpoint of all");
}

#[test]
fn what_cannot_be_watched_is_refused_with_the_reason() {
    let mut stage = Stage::new();
    let refused = |args: &[&str], why: &str| {
        let out = stage.freeze(args);
        assert_eq!(out.status.code(), Some(3), "{args:?}: {}", text(&out.stderr));
        assert!(text(&out.stderr).contains(why), "{args:?}: {}", text(&out.stderr));
    };
    let agent = stage.freezed.id().to_string();
    refused(&["watch", "4194300"], "there is no such process");
    refused(&["watch", "1"], "init");
    refused(&["watch", "2"], "kernel thread");
    refused(&["watch", &agent], "freeze itself");
    refused(&["checkpoint", "1"], "init");
    refused(&["checkpoint", &agent], "the agent of freeze");
    refused(
        &["watch", "--name", "no such program"],
        "no process of this name runs",
    );
    refused(&["unwatch", "nobody"], "nobody is not watched");
    refused(&["watch", "--every", "1ms", "1"], "is not between");
    let out = output(
        freeze()
            .args(["watch", "--socket"])
            .arg(stage.dir.join("socket"))
            .args(["--", "/no/such/program"]),
    );
    assert_eq!(out.status.code(), Some(3));
    assert!(
        text(&out.stderr).contains("No such file"),
        "{}",
        text(&out.stderr)
    );
    let out = output(
        freeze()
            .args(["status", "--socket"])
            .arg(stage.dir.join("elsewhere")),
    );
    assert_eq!(out.status.code(), Some(3));
    assert!(
        text(&out.stderr).contains("no agent listens there"),
        "{}",
        text(&out.stderr)
    );

    let pid = stage.watch(&["--every", "1s"]).to_string();
    let out = stage.freeze(&["watch", &pid, "--json"]);
    assert_eq!(out.status.code(), Some(3));
    let said: Value = serde_json::from_slice(&out.stdout).expect("JSON");
    assert_eq!(
        (&said["error"], &said["reasons"][0]["why"]),
        (&json!("refused"), &json!("it is watched already, as count"))
    );

    // A second agent for the same store, or at the same socket.
    let mut second = start_agent(&stage.dir);
    assert_eq!(second.wait().expect("an end").code(), Some(3));
    assert!(
        stage.log().contains("another agent looks after this store"),
        "{}",
        stage.log()
    );
    assert!(stage.group().is_some(), "the first still answers");
}

#[test]
fn other_users_have_their_own_processes_only() {
    const NOBODY: u32 = 65534;
    let mut stage = Stage::new();
    let pid = stage.watch(&["--every", "1s"]).to_string();
    // Where this user may not go, its copy is.
    let copy = stage.dir.join("freeze");
    copy_freeze(&copy);
    let socket = stage.dir.join("socket");
    let nobody = |args: &[&str]| {
        output(
            Command::new(&copy)
                .args(args)
                .arg("--socket")
                .arg(&socket)
                .uid(NOBODY)
                .gid(NOBODY)
                .current_dir("/"),
        )
    };
    let refused = |args: &[&str], why: &str| {
        let out = nobody(args);
        assert_eq!(out.status.code(), Some(3), "{args:?}: {}", text(&out.stderr));
        assert!(text(&out.stderr).contains(why), "{args:?}: {}", text(&out.stderr));
    };
    let out = nobody(&["status", "--json"]);
    assert_eq!(
        serde_json::from_slice::<Value>(&out.stdout).ok(),
        Some(json!({ "groups": [] }))
    );
    refused(&["unwatch", "count"], "count is not watched");
    refused(&["unwatch", &pid], "is not watched");
    refused(&["map", "count"], "count is not watched");
    refused(&["watch", &pid], "does not belong to uid 65534");
    refused(&["watch", "1"], "does not belong to uid 65534");

    let out = nobody(&["watch", "--json", "--name", "count", "--log", "/dev/null", "3"]);
    assert_eq!(
        out.status.code(),
        Some(2),
        "--log is for a COMMAND: {}",
        text(&out.stderr)
    );
    let mut own = Command::new(&copy);
    own.args(["watch", "--json", "--name", "count", "--socket"])
        .arg(&socket)
        .args(["--", "sleep", "1000"]);
    let out = output(own.uid(NOBODY).gid(NOBODY).current_dir("/"));
    assert!(
        out.status.success(),
        "{} {}",
        text(&out.stdout),
        text(&out.stderr)
    );
    let group: Value = serde_json::from_slice(&out.stdout).expect("JSON");
    stage
        .started
        .push(Pid(group["root"].as_i64().expect("a pid") as i32));
    assert_eq!(
        (&group["name"], &group["uid"]),
        (&json!("65534:count"), &json!(NOBODY))
    );
    let out = nobody(&["unwatch", "65534:count"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert!(
        stage.group().is_some(),
        "root's group of nearly that name is untouched"
    );
}

/// Sends bytes and reads a reply.
fn talk(stream: &mut UnixStream, call: &[u8]) -> Option<Value> {
    stream.write_all(&[call, &[0]].concat()).ok()?;
    let mut reply = Vec::new();
    let mut byte = [0];
    loop {
        match stream.read(&mut byte) {
            Ok(1) if byte[0] == 0 => return serde_json::from_slice(&reply).ok(),
            Ok(1) => reply.push(byte[0]),
            _ => return None,
        }
    }
}

#[test]
fn any_varlink_client_is_answered_and_nonsense_is_survived() {
    let stage = Stage::new();
    let connect = || UnixStream::connect(stage.dir.join("socket")).expect("a connection");
    let mut stream = connect();
    let info = talk(&mut stream, br#"{"method":"org.varlink.service.GetInfo"}"#).expect("a reply");
    assert_eq!(
        info["parameters"]["interfaces"],
        json!(["org.varlink.service", "org.freeze.Agent"])
    );
    let call = br#"{"method":"org.varlink.service.GetInterfaceDescription","parameters":{"interface":"org.freeze.Agent"}}"#;
    let described = talk(&mut stream, call).expect("a reply");
    let description = described["parameters"]["description"]
        .as_str()
        .expect("a description");
    assert!(description.contains("interface org.freeze.Agent\n") && description.contains("method Watch("));
    for (call, error) in [
        (
            &br#"{"method":"org.freeze.Agent.Fly"}"#[..],
            "org.varlink.service.MethodNotFound",
        ),
        (br#"{"method":"a.b.c"}"#, "org.varlink.service.InterfaceNotFound"),
        (br#"{"method":""}"#, "org.varlink.service.MethodNotFound"),
        (
            br#"{"method":"org.freeze.Agent.Watch"}"#,
            "org.varlink.service.InvalidParameter",
        ),
        (
            br#"{"method":"org.freeze.Agent.Watch","parameters":{"pid":1,"x":2}}"#,
            "org.varlink.service.InvalidParameter",
        ),
        (
            br#"{"method":"org.freeze.Agent.Map","parameters":{"target":"x"}}"#,
            "org.freeze.Agent.NotWatched",
        ),
    ] {
        assert_eq!(
            talk(&mut stream, call).expect("a reply")["error"],
            error,
            "{}",
            text(call)
        );
    }
    for nonsense in [&b"{"[..], b"", b"[1]", b"\xff\xff", &vec![b'x'; 2 << 20]] {
        assert_eq!(talk(&mut connect(), nonsense), None, "{} bytes", nonsense.len());
    }
    assert!(
        talk(&mut stream, br#"{"method":"org.freeze.Agent.Status"}"#).is_some(),
        "it still answers"
    );
}

#[test]
fn status_follows_what_happens() {
    let mut stage = Stage::new();
    let mut follow = freeze();
    follow
        .args(["status", "--follow", "--json", "--socket"])
        .arg(stage.dir.join("socket"));
    let mut follow = follow
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("freeze");
    let mut lines =
        std::io::BufRead::lines(std::io::BufReader::new(follow.stdout.take().expect("its output")));
    let mut next = || -> Value {
        let line = lines.next().expect("a line").expect("a line");
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{line}: {e}"))
    };
    assert_eq!(next(), json!({ "event": "status", "groups": [] }));
    let pid = stage.watch(&["--every", "100ms"]);
    let first = next();
    assert_eq!(
        (&first["event"], &first["group"], &first["root"]),
        (&json!("watched"), &json!("count"), &json!(pid))
    );
    let second = next();
    assert_eq!(second["event"], "checkpoint");
    assert!(
        second["checkpoint"]["pause_us"].as_u64().is_some_and(|us| us > 0),
        "{second}"
    );
    kill(pid.nix(), Signal::SIGINT).expect("to end it");
    let last = loop {
        let event = next();
        if event["event"] != "checkpoint" {
            break event;
        }
    };
    // Python ends itself by the signal it got.
    assert_eq!(last["event"], "ended", "{last}");
    stage.freezed.kill().expect("to kill freezed");
    let code = follow.wait().expect("an end").code();
    assert_eq!(code, Some(4), "the connection was lost");
}

#[test]
fn the_map_is_kept_and_agrees_with_proc() {
    let mut stage = Stage::new();
    let pid = stage.watch(&["--every", "1s"]);
    let map = stage.json(&["map", "count"]);
    assert_eq!(map["root"], json!(pid));
    let number = stage.dir.join("number").display().to_string();
    let fds = map["processes"][0]["fds"].as_array().expect("fds");
    assert!(fds.iter().any(|fd| fd["target"] == json!(number)), "{map}");
    if stage.log().contains("no kernel events") {
        freeze_tests::skip!("kernel events are not granted here");
    }
    assert_eq!(map["source"], "events");
    assert_eq!(stage.json(&["map", "count", "--audit"]), json!([]));
    // What nobody watches is read from /proc.
    let own = std::process::id().to_string();
    assert_eq!(stage.json(&["map", &own])["source"], "proc");
}

#[test]
fn an_agent_at_rest_takes_no_time_and_little_memory() {
    let mut stage = Stage::new();
    let pid = stage.watch(&["--every", "100ms"]);
    stage.until("ten checkpoints are made", || stage.checkpoints() >= 10);
    let agents = stage.agents();
    assert_eq!(agents.len(), 2, "a front and an engine");
    // What it has filled itself. Its program is in memory too, which in a build for tests is several times that of a release
    // (`cargo xtask bench` measures that one, whole).
    let own = |pid: &Pid| -> u64 {
        let line = status_line(*pid, "RssAnon").expect("a size");
        line.trim_end_matches(" kB").parse().expect("a number")
    };
    let kib: u64 = agents.iter().map(own).sum();
    assert!(
        kib <= 20 << 10,
        "{kib} KiB are its own after ten checkpoints of pid {pid}"
    );
    stage.json(&["unwatch", "count"]);
    std::thread::sleep(Duration::from_millis(500));
    // Processor time in ticks, and how often a thread woke.
    let taken = || -> (u64, u64) {
        let mut sum = (0, 0);
        let threads = agents.iter().flat_map(|a| {
            fs::read_dir(format!("/proc/{a}/task"))
                .expect("its threads")
                .flatten()
        });
        for thread in threads {
            let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            let rest = stat.rsplit_once(')').map_or("", |r| r.1).split_ascii_whitespace();
            sum.0 += rest
                .skip(11)
                .take(2)
                .filter_map(|n| n.parse::<u64>().ok())
                .sum::<u64>();
            let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
            let woken = status
                .lines()
                .find_map(|l| l.strip_prefix("voluntary_ctxt_switches:"));
            sum.1 += woken.and_then(|n| n.trim().parse::<u64>().ok()).unwrap_or(0);
        }
        sum
    };
    let before = taken();
    std::thread::sleep(Duration::from_secs(3));
    let after = taken();
    assert_eq!(
        after.0, before.0,
        "ticks of processor time in three seconds of rest"
    );
    assert!(
        after.1 <= before.1 + 2,
        "woke {} times in three seconds of rest",
        after.1 - before.1
    );
}

#[test]
fn nobody_reading_is_no_bug() {
    for args in [
        &["doctor"][..],
        &["--help"],
        &["completion", "bash"],
        &["check", "1", "--json"],
    ] {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let out = freeze()
            .args(args)
            .stdin(Stdio::null())
            .stdout(writer)
            .stderr(Stdio::piped())
            .output()
            .expect("freeze");
        assert!(
            !text(&out.stderr).contains("bug"),
            "{args:?}: {}",
            text(&out.stderr)
        );
        assert!(
            matches!(out.status.code(), Some(0 | 3)),
            "{args:?}: {}",
            out.status
        );
    }
}
