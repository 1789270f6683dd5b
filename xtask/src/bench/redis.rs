//! What checkpoints cost a server under load: redis with the load generator that comes with it, and with one client that
//! waits for each answer.

use super::Agent;
use super::sample::{Goal, Row, Sample, Section};
use super::small::{json, number, remove};
use super::stage::{PATIENCE, Stage, ms, now};
use crate::redis::Redis;
use anyhow::{Context, Result, ensure};
use nix::unistd::Pid;
use std::net::TcpListener;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Bytes of each value.
const VALUE: u64 = 1000;

/// How much a server that is asked as fast as it can answer holds, and one of which each answer is timed.
const BUSY_MIB: u64 = 1024;
const TIMED_MIB: u64 = 4096;

/// How many times its memory a server takes with its images: those of two watches, each of two to three times.
const IMAGES: u64 = 6;

/// How often the throughput is measured without checkpoints, with one a second, and with twenty.
const TURNS: usize = 3;

/// How long each time.
const STRETCH: Duration = Duration::from_secs(8);

/// During how many checkpoints answers are timed.
const TIMED: usize = 20;

/// A server with so many values.
#[derive(Debug)]
struct Server {
    pid: Pid,
    port: u16,
    values: u64,
}

impl Server {
    fn start(stage: &mut Stage<'_>, mib: u64) -> Result<Server> {
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|l| l.local_addr())
            .context("a free port")?
            .port();
        let dir = stage.dir.join("redis");
        remove(&dir)?;
        std::fs::create_dir(&dir)?;
        let mut server = Command::new("redis-server");
        server.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""]);
        server
            .args(["--enable-debug-command", "local", "--dir"])
            .arg(&dir);
        let pid = stage.daemon(&server)?;
        let mut client = Redis::connect(port, Instant::now() + PATIENCE)?;
        // What each value takes with its key, as redis 7 counts it.
        const EACH: u64 = VALUE + 120;
        let values = (mib << 20) / EACH;
        client.populate(values, VALUE)?;
        Ok(Server { pid, port, values })
    }

    /// Requests answered in a second, of fifty clients that write values.
    fn throughput(&self, stage: &mut Stage<'_>, requests: u64) -> Result<f64> {
        let mut load = Command::new("redis-benchmark");
        load.args(["-p", &self.port.to_string(), "-n", &requests.to_string()]);
        load.args(["-r", &self.values.to_string(), "-d", &VALUE.to_string()]);
        load.args(["-t", "set", "-c", "50", "--csv"]);
        let ran = stage.run(&mut load, PATIENCE)?;
        // "test","rps",… and a line of figures for each test.
        let line = ran.out.lines().find(|l| l.starts_with("\"SET\""));
        let rate = line.and_then(|l| l.split(',').nth(1)?.trim_matches('"').parse().ok());
        rate.with_context(|| format!("redis-benchmark: {}: {}", ran.status, ran.err.trim()))
    }

    fn end(self, stage: &mut Stage<'_>) -> Result<()> {
        stage.brood.end_tree(self.pid)
    }
}

/// The agent's last checkpoint of a server: when it began and ended, in nanoseconds since 1970.
fn last(stage: &mut Stage<'_>, agent: &Agent, pid: Pid) -> Result<Option<(u64, u64)>> {
    let status = json(&agent.ask(stage, &["status", "--json"])?)?;
    let groups = status["groups"].as_array().into_iter().flatten();
    let mut own = groups.filter(|g| g["root"].as_i64() == Some(pid.as_raw().into()));
    let group = own.next().context("the agent does not watch redis any more")?;
    if let Some(problem) = group["problem"].as_str() {
        anyhow::bail!("the agent: {problem}");
    }
    let last = &group["last"];
    if last.is_null() {
        return Ok(None);
    }
    let to = number(&last["at_ms"])? as u64 * 1_000_000;
    Ok(Some((
        to.saturating_sub(number(&last["total_us"])? as u64 * 1000),
        to,
    )))
}

/// Watches a server, and waits for the first checkpoint, which copies everything.
fn watch(stage: &mut Stage<'_>, agent: &Agent, server: &Server, every: Duration) -> Result<()> {
    let (pid, every) = (server.pid.to_string(), format!("{}ms", every.as_millis()));
    agent.ask(stage, &["watch", &pid, "--every", &every, "--keep", "3"])?;
    stage.until("redis is checkpointed", PATIENCE, |stage| {
        Ok(last(stage, agent, server.pid)?.is_some())
    })
}

/// Both halves; redis is started anew for each.
pub(crate) fn sections(stage: &mut Stage<'_>) -> Result<Vec<Section>> {
    Ok(vec![throughput(stage)?, answers(stage)?])
}

fn throughput(stage: &mut Stage<'_>) -> Result<Section> {
    let mut section = Section::new(format!("redis, {BUSY_MIB} MiB, under redis-benchmark"));
    // Each of the watches leaves its checkpoints.
    if !section.has_room(BUSY_MIB * TURNS as u64 * IMAGES) {
        return Ok(section);
    }
    let server = Server::start(stage, BUSY_MIB)?;
    let agent = Agent::start(stage)?;
    // A short one tells how many requests last as long as wanted.
    let rate = server.throughput(stage, 100_000)?;
    let requests = (rate * STRETCH.as_secs_f64()) as u64;
    let every = [Duration::from_secs(1), Duration::from_millis(50)];
    let (mut rates, mut shares) = (Vec::new(), [Vec::new(), Vec::new()]);
    for _ in 0..TURNS {
        for (every, shares) in every.iter().zip(&mut shares) {
            let without = server.throughput(stage, requests)?;
            watch(stage, &agent, &server, *every)?;
            let with = server.throughput(stage, requests)?;
            agent.ask(stage, &["unwatch", &server.pid.to_string()])?;
            rates.push(without / 1e3);
            shares.push(with / without);
        }
    }
    agent.end(stage)?;
    server.end(stage)?;
    remove(&stage.dir.join("store"))?;
    let [one, twenty] = shares;
    let share = |what: &str, values: Vec<f64>| Sample::of(values).map(|s| Row::new(what, "×", s));
    section.row(Sample::of(rates).map(|s| Row::new("requests without checkpoints", "1000/s", s)));
    section
        .row(share("with one checkpoint a second ÷ without", one).map(|r| r.goals(&[Goal::AtLeast(0.95)])));
    section.row(
        share("with twenty checkpoints a second ÷ without", twenty).map(|r| r.goals(&[Goal::AtLeast(0.85)])),
    );
    Ok(section)
}

fn answers(stage: &mut Stage<'_>) -> Result<Section> {
    let mut section = Section::new(format!("redis, {TIMED_MIB} MiB, one client"));
    if !section.has_room(TIMED_MIB * IMAGES) {
        return Ok(section);
    }
    let server = Server::start(stage, TIMED_MIB)?;
    let agent = Agent::start(stage)?;
    let stop = AtomicBool::new(false);
    let (port, values) = (server.port, server.values);
    let (asked, whole) = std::thread::scope(|scope| {
        let client = scope.spawn(|| client(port, values, &stop));
        let seen = checkpoints(stage, &agent, &server);
        stop.store(true, Ordering::Relaxed);
        let asked = client
            .join()
            .map_err(|_| anyhow::anyhow!("the client panicked"))?;
        Ok::<_, anyhow::Error>((asked?, seen?))
    })?;
    agent.ask(stage, &["unwatch", &server.pid.to_string()])?;
    agent.end(stage)?;
    server.end(stage)?;
    remove(&stage.dir.join("store"))?;
    let during = |(from, to): &(u64, u64)| {
        let touching = asked.iter().filter(|(at, took)| at < to && at + took > *from);
        Sample::of(touching.map(|(_, took)| ms(*took)))
    };
    let each: Vec<Sample> = whole.iter().filter_map(during).collect();
    ensure!(!each.is_empty(), "no request was made during a checkpoint");
    let undisturbed = asked
        .iter()
        .filter(|(at, took)| whole.iter().all(|(from, to)| at >= to || at + took <= *from));
    let row = |what: &str, values: Option<Sample>| values.map(|s| Row::new(what, "ms", s));
    let goals = [Goal::AtMost(2.0)];
    section.row(row(
        "an answer, between two checkpoints",
        Sample::of(undisturbed.map(|(_, took)| ms(*took))),
    ));
    section.row(
        row(
            "p99 of the answers during a checkpoint",
            Sample::of(each.iter().map(Sample::p99)),
        )
        .map(|r| r.goals(&goals)),
    );
    section.row(row(
        "the slowest answer during a checkpoint",
        Sample::of(each.iter().map(Sample::max)),
    ));
    Ok(section)
}

/// When checkpoints began and ended, after the first.
fn checkpoints(stage: &mut Stage<'_>, agent: &Agent, server: &Server) -> Result<Vec<(u64, u64)>> {
    watch(stage, agent, server, Duration::from_secs(1))?;
    let first = last(stage, agent, server.pid)?;
    let mut seen: Vec<(u64, u64)> = Vec::new();
    stage.until("there are enough checkpoints", PATIENCE, |stage| {
        let now = last(stage, agent, server.pid)?;
        if now != first && now.as_ref() != seen.last() {
            seen.extend(now);
        }
        Ok(seen.len() >= TIMED)
    })?;
    Ok(seen)
}

/// Writes values one after the other until told to stop: when each was asked for, and how long the answer took, in
/// nanoseconds.
fn client(port: u16, values: u64, stop: &AtomicBool) -> Result<Vec<(u64, u64)>> {
    let mut redis = Redis::connect(port, Instant::now() + PATIENCE)?;
    let mut asked = Vec::new();
    let mut n: u64 = 0;
    while !stop.load(Ordering::Relaxed) {
        n = n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let at = now();
        redis.set((n >> 33) % values, VALUE)?;
        asked.push((at, now() - at));
    }
    Ok(asked)
}
