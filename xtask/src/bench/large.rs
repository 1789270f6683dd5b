//! Processes of more and more memory, checkpointed again and again while they write to some of it.

use super::limits;
use super::peer::{Done, Peer};
use super::plot::Figure;
use super::sample::{Goal, Row, Sample, Section};
use super::small::{json, number};
use super::stage::{Load, PATIENCE, Shape, Stage, cpu_ns, freeze, ms, now, resident};
use super::{Agent, Asked};
use crate::release;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::process::Command;
use std::time::{Duration, Instant};

/// A gap belongs to a checkpoint if it touches its time, give or take this much, in nanoseconds.
const SLACK: u64 = 2_000_000;

/// How long memory may stream in after `freeze restore` has ended.
const ALL_IN: Duration = Duration::from_secs(60);

/// How long the load's speed is looked at without checkpoints.
const UNDISTURBED: Duration = Duration::from_secs(3);

/// The curve of our own pauses.
const COUNTED: &str = "freeze, as counted";

/// The figures that are drawn from all sizes.
#[derive(Debug)]
pub(crate) struct Figures {
    pub(crate) pause: Figure,
    pub(crate) restore: Figure,
}

/// A checkpoint of a row.
#[derive(Debug)]
struct Taken {
    id: String,
    /// In nanoseconds since 1970.
    from: u64,
    to: u64,
    pause_ms: f64,
    bytes: f64,
}

impl Taken {
    fn read(value: &Value) -> Result<Taken> {
        let to = number(&value["at_ms"])? as u64 * 1_000_000;
        Ok(Taken {
            id: value["id"].as_str().context("a checkpoint without id")?.into(),
            from: to.saturating_sub(number(&value["total_us"])? as u64 * 1000),
            to,
            pause_ms: number(&value["pause_us"])? / 1e3,
            bytes: number(&value["bytes"])?,
        })
    }
}

/// What a row of checkpoints gave.
#[derive(Debug)]
struct Series {
    taken: Vec<Taken>,
    /// Processor time of whoever made them, after the first, and over what time, in nanoseconds.
    cpu: (u64, u64),
}

/// Everything about one size, or a note why not.
pub(crate) fn size(
    stage: &mut Stage<'_>,
    asked: &Asked,
    peer: Option<&Peer>,
    mib: u64,
    figures: &mut Figures,
) -> Result<Section> {
    let mut section = Section::new(format!(
        "{mib} MiB, {} % of it written in an interval",
        asked.percent
    ));
    // The process, its images in memory, and as much again for a peer that copies while it reads.
    if !section.has_room(mib * 5 / 2 + 512) {
        return Ok(section);
    }
    let interval = asked.every.as_secs_f64();
    let shape = Shape {
        mib,
        pages: asked.percent / 100.0 * (mib * 256) as f64 / interval,
        threads: asked.threads,
        thp: asked.thp,
    };
    let mut load = Load::start(stage, shape)?;
    let full = load.filled();
    let rest = speed(stage, &mut load, UNDISTURBED)?;
    let noise = undisturbed_gaps(stage, &mut load)?;
    let (stop, stop_seen) = limits::stop_and_go(stage, &mut load, asked.runs)?;
    let write = limits::write(stage, mib)?;

    let store = stage.dir.join("store");
    let series = if asked.library {
        by_library(stage, asked, &load)?
    } else {
        by_agent(stage, asked, &load)?
    };
    let first = series.taken.first().context("no checkpoint was made")?;
    let later = &series.taken[1..];
    let (mut counted, mut seen, mut ratio) = (Vec::new(), Vec::new(), Vec::new());
    let mut before = load.done_by(stage, first.to)?.0;
    for taken in later {
        counted.push(taken.pause_ms);
        seen.push(load.longest_gap(stage, taken.from.saturating_sub(SLACK), taken.to + SLACK)?);
        let pages = load.done_by(stage, taken.to)?.0;
        if pages > before {
            ratio.push(taken.bytes / ((pages - before) * 4096.0));
        }
        before = pages;
    }
    let last = series.taken.last().map(|t| t.id.clone()).unwrap_or_default();
    let slowed = match later {
        [a, .., z] => {
            Some((load.done_by(stage, z.to)?.1 - load.done_by(stage, a.from)?.1) / ms(z.to - a.from))
        }
        _ => None,
    };
    let again = if mib >= 2048 { 2 } else { 5 };
    let eager = restore(stage, &mut load, &store, &last, full, again, &[])?;
    let help = stage.run(freeze().args(["restore", "--help"]), PATIENCE)?.out;
    let lazy = if help.contains("--lazy") {
        Some(restore(
            stage,
            &mut load,
            &store,
            &last,
            full,
            again,
            &["--lazy"],
        )?)
    } else {
        None
    };
    std::fs::remove_dir_all(&store).with_context(|| store.display().to_string())?;
    let theirs = match peer {
        Some(peer) => peer.measure(stage, load, if mib >= 1024 { 3 } else { 10 })?,
        None => {
            load.end(stage)?;
            Done::default()
        }
    };
    let (fork, touch) = limits::fork(stage, mib, if mib >= 2048 { 5 } else { 20 })?;

    let Some((counted, seen)) = Sample::of(counted).zip(Sample::of(seen)) else {
        section.note("Only one checkpoint was made, so there is no later one.");
        return Ok(section);
    };
    let figure = &mut figures.pause;
    figure.point(COUNTED, mib, counted.median());
    figure.point("freeze, as seen", mib, seen.median());
    if let (Some(peer), Some(frozen)) = (peer, &theirs.frozen) {
        figure.point(&format!("{}, as counted", peer.name), mib, frozen.median());
    }
    figure.point("limit: stop and go", mib, stop.median());
    if let Some(fork) = &fork {
        figure.point("limit: fork", mib, fork.median());
    }
    let figure = &mut figures.restore;
    figure.point("freeze, first instruction", mib, eager.first.median());
    if let Some(lazy) = &lazy {
        figure.point("freeze --lazy, first instruction", mib, lazy.first.median());
        figure.point("freeze --lazy, all in", mib, lazy.all.median());
    }
    if let (Some(peer), Some(first)) = (peer, &theirs.first) {
        figure.point(&format!("{}, first instruction", peer.name), mib, first.median());
    }

    // What the first working version must reach at a GiB, and what every size must after it.
    let goals: &[Goal] = match mib {
        1024 => &[Goal::AtMost(15.0), Goal::AtMost(0.3), Goal::P99AtMost(1.0)],
        64.. => &[Goal::AtMost(0.3), Goal::P99AtMost(1.0)],
        _ => &[Goal::AtMost(5.0)],
    };
    let shorter = theirs
        .frozen
        .as_ref()
        .map(|frozen| frozen.median() / counted.median());
    let pause = |what: &str, s: Sample| Row::new(what, "ms", s);
    section.row(Some(
        pause("pause as counted", counted)
            .peer(theirs.frozen)
            .goals(goals),
    ));
    section.row(Some(
        pause("pause as the program sees it", seen)
            .peer(theirs.seen)
            .goals(goals),
    ));
    let shorter = shorter.and_then(|times| Sample::of([times]));
    let shorter = shorter.map(|s| Row::new("pause as counted, the peer's ÷ freeze's", "×", s));
    section.row(match mib {
        8192.. => shorter.map(|r| r.goals(&[Goal::AtLeast(20_000.0)])),
        2048.. => shorter.map(|r| r.goals(&[Goal::AtLeast(5_000.0)])),
        _ => None,
    });
    section.row(Some(pause(
        "limit: stop all threads and let go, as counted",
        stop,
    )));
    section.row(Some(pause("limit: the same, as the program sees it", stop_seen)));
    section.row(noise.map(|s| pause("limit: the longest gap in 20 ms that nobody disturbs", s)));
    section.row(fork.map(|s| pause("limit: fork of as much memory", s)));
    let ratio = Sample::of(ratio).map(|s| Row::new("bytes written ÷ bytes dirty", "×", s));
    section.row(match mib {
        // In a small process the records outweigh its pages.
        64.. => ratio.map(|r| r.goals(&[Goal::AtMost(1.1)])),
        _ => ratio,
    });
    let who = if asked.library {
        "the library's caller"
    } else {
        "the agent"
    };
    let cpu = Sample::of([series.cpu.0 as f64 / series.cpu.1.max(1) as f64 * 100.0]);
    section.row(cpu.map(|s| Row::new(format!("processor time of {who}"), "%", s)));
    let slowed = slowed.and_then(|speed| Sample::of([speed / rest]));
    section.row(slowed.map(|s| Row::new("speed of the program, with checkpoints ÷ without", "×", s)));
    let seconds = ms(first.to - first.from) / 1e3;
    let full_speed = Sample::of([first.bytes / seconds.max(1e-3) / 1e9]);
    let full_row = full_speed.map(|s| Row::new("first checkpoint, of everything", "GB/s", s));
    section.row(match mib {
        512.. => full_row.map(|r| r.goals(&[Goal::AtLeast(1.5)])),
        _ => full_row,
    });
    section.row(write.map(|s| Row::new("limit: as many bytes written to a new file there", "GB/s", s)));
    let speed_goal: &[Goal] = if mib >= 8192 { &[Goal::AtLeast(2.5)] } else { &[] };
    section.row(Some(
        Row::new("freeze restore, until the first instruction", "ms", eager.first).peer(theirs.first),
    ));
    section.row(Some(Row::new(
        "freeze restore, until all is in",
        "ms",
        eager.all.clone(),
    )));
    section.row(Some(
        Row::new("freeze restore, whole command", "ms", eager.whole).peer(theirs.restore),
    ));
    let speed = Sample::of([full as f64 / eager.all.median() / 1e6]);
    section.row(speed.map(|s| Row::new("restored", "GB/s", s).goals(speed_goal)));
    section.row(touch.map(|s| Row::new("limit: as much memory touched for the first time", "GB/s", s)));
    if let Some(lazy) = lazy {
        let goals = |limit| {
            if mib >= 8192 {
                vec![Goal::AtMost(limit)]
            } else {
                Vec::new()
            }
        };
        let (first, all) = ("until the first instruction", "until all is in");
        section.row(Some(
            Row::new(format!("freeze restore --lazy, {first}"), "ms", lazy.first).goals(&goals(20.0)),
        ));
        section.row(Some(
            Row::new(format!("freeze restore --lazy, {all}"), "ms", lazy.all).goals(&goals(5000.0)),
        ));
    }
    section.notes.extend(theirs.note);
    Ok(section)
}

/// How much longer the pause is with much memory than with little, if both were measured.
pub(crate) fn growth(figures: &Figures) -> Option<Section> {
    const SMALL: u64 = 64;
    const LARGE: u64 = 8192;
    let at = |mib| figures.pause.at(COUNTED, mib);
    let growth = Sample::of([at(LARGE)? / at(SMALL)?])?;
    let mut section = Section::new("Does the pause grow with memory?");
    let what = format!("pause as counted, {LARGE} MiB ÷ {SMALL} MiB");
    section.row(Some(Row::new(what, "×", growth).goals(&[Goal::AtMost(1.5)])));
    Some(section)
}

/// Turns of the load's clock loop in a millisecond.
fn speed(stage: &mut Stage<'_>, load: &mut Load, time: Duration) -> Result<f64> {
    let from = now();
    stage.brood.nap(time)?;
    let to = now();
    Ok((load.done_by(stage, to)?.1 - load.done_by(stage, from)?.1) / ms(to - from))
}

/// The longest gap in each of the last stretches of 20 ms: what this machine does to a program by itself.
fn undisturbed_gaps(stage: &mut Stage<'_>, load: &mut Load) -> Result<Option<Sample>> {
    const STRETCH: u64 = 20_000_000;
    let end = now();
    let mut gaps = Vec::new();
    for n in 1..=100 {
        let from = end - n * STRETCH;
        gaps.push(load.longest_gap(stage, from, from + STRETCH)?);
    }
    Ok(Sample::of(gaps))
}

/// A row of checkpoints by the agent.
fn by_agent(stage: &mut Stage<'_>, asked: &Asked, load: &Load) -> Result<Series> {
    let agent = Agent::start(stage)?;
    let every = format!("{}ms", asked.every.as_millis());
    let keep = asked.rounds.max(2).to_string();
    let pid = load.pid.to_string();
    agent.ask(stage, &["watch", &pid, "--every", &every, "--keep", &keep])?;
    let mut taken: Vec<Taken> = Vec::new();
    let mut begun = None;
    let patience = PATIENCE + asked.every * 2 * asked.rounds as u32;
    let deadline = Instant::now() + patience;
    while taken.len() <= asked.rounds {
        ensure!(
            Instant::now() < deadline,
            "{} of {} checkpoints after {patience:?}",
            taken.len(),
            asked.rounds + 1
        );
        stage
            .brood
            .nap((asked.every / 5).max(Duration::from_millis(20)))?;
        let status = json(&agent.ask(stage, &["status", "--json"])?)?;
        let groups = status["groups"].as_array().into_iter().flatten();
        let group = groups
            .into_iter()
            .find(|g| g["root"].as_i64() == Some(load.pid.as_raw().into()));
        let group = group.context("the agent does not watch the load any more")?;
        if let Some(problem) = group["problem"].as_str() {
            anyhow::bail!("the agent: {problem}");
        }
        let last = &group["last"];
        if !last.is_null() && taken.last().is_none_or(|t| last["id"].as_str() != Some(&t.id)) {
            taken.push(Taken::read(last)?);
            if begun.is_none() {
                begun = Some((cpu_ns(agent.pid)?, now()));
            }
        }
    }
    let (cpu, at) = begun.context("no checkpoint was made")?;
    let cpu = (cpu_ns(agent.pid)?.saturating_sub(cpu), now() - at);
    agent.ask(stage, &["unwatch", &pid])?;
    agent.end(stage)?;
    Ok(Series { taken, cpu })
}

/// The same by the library, without an agent.
fn by_library(stage: &mut Stage<'_>, asked: &Asked, load: &Load) -> Result<Series> {
    let mut rounds = Command::new(release("rounds"));
    rounds.arg(load.pid.to_string()).arg(stage.dir.join("store"));
    rounds.arg(asked.every.as_millis().to_string());
    rounds.arg((asked.rounds + 1).to_string());
    let patience = PATIENCE + asked.every * 2 * asked.rounds as u32;
    let ran = stage.run(&mut rounds, patience)?;
    ensure!(ran.status.success(), "rounds: {}: {}", ran.status, ran.err.trim());
    let lines: Vec<Value> = ran.out.lines().map(json).collect::<Result<_>>()?;
    let cpu = |line: Option<&Value>| number(&line.context("no checkpoint was made")?["cpu_us"]);
    let cpu = cpu(lines.last())? - cpu(lines.first())?;
    let taken: Vec<Taken> = lines.iter().map(Taken::read).collect::<Result<_>>()?;
    let time = match &taken[..] {
        [first, .., last] => last.to - first.to,
        _ => 1,
    };
    Ok(Series {
        taken,
        cpu: ((cpu * 1e3) as u64, time),
    })
}

/// Times of restores, in milliseconds since the command was started.
#[derive(Debug)]
struct Restores {
    whole: Sample,
    first: Sample,
    all: Sample,
}

/// Ends the load and restores it, so many times; it runs afterwards.
fn restore(
    stage: &mut Stage<'_>,
    load: &mut Load,
    store: &std::path::Path,
    id: &str,
    full: u64,
    times: usize,
    options: &[&str],
) -> Result<Restores> {
    let (mut whole, mut first, mut all) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..times {
        load.end(stage)?;
        let pid = load.pid;
        // The pages of its libraries come back as it needs them; what it filled itself may come out of the image's file.
        let is_in = || resident(pid) >= full - full / 50;
        let mut complete = None;
        let mut command = freeze();
        command
            .args(["restore", id, "--detach", "--store"])
            .arg(store)
            .args(options);
        let ran = stage.run_while(&mut command, PATIENCE, |so_far| {
            if complete.is_none() && is_in() {
                complete = Some(so_far);
            }
        })?;
        ensure!(
            ran.status.success(),
            "freeze restore {}: {}: {}",
            options.join(" "),
            ran.status,
            ran.err.trim()
        );
        let begin = Instant::now();
        while complete.is_none() {
            ensure!(
                begin.elapsed() < ALL_IN,
                "the memory is not all in after {ALL_IN:?}"
            );
            stage.brood.go_on()?;
            if is_in() {
                complete = Some(Duration::from_nanos(now() - ran.from));
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        whole.push(ran.ms());
        let began = ms(load.first_instruction(stage, ran.from)? - ran.from);
        first.push(began);
        // Eagerly, all is in before anything runs.
        all.extend(complete.map(|c| (c.as_secs_f64() * 1e3).max(began)));
    }
    let missing = "nothing was restored";
    Ok(Restores {
        whole: Sample::of(whole).context(missing)?,
        first: Sample::of(first).context(missing)?,
        all: Sample::of(all).context(missing)?,
    })
}
