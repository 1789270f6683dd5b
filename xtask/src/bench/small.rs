//! A process of 1 MiB: checkpoint and restore by themselves and in a row, and the agent while nothing happens.

use super::limits;
use super::peer::{Done, Peer};
use super::sample::{Goal, Row, Sample, Section};
use super::stage::{Load, Shape, Stage, cpu_of_living_ns, freeze, ms, resident};
use super::{Agent, Asked};
use anyhow::{Context, Result};
use serde_json::Value;
use std::path::Path;
use std::time::Duration;

/// What a process rests between two checkpoints.
const REST: Duration = Duration::from_millis(30);

/// How long the agent is looked at.
const AT_REST: Duration = Duration::from_secs(10);

const SMALL: Shape = Shape {
    mib: 1,
    pages: 100.0,
    threads: 1,
    thp: false,
};

/// The whole commands and the pause.
pub(crate) fn commands(stage: &mut Stage<'_>, asked: &Asked, peer: Option<&Peer>) -> Result<Vec<Section>> {
    let mut load = Load::start(stage, SMALL)?;
    let image = stage.dir.join("small");
    let path = image.display().to_string();
    let (mut whole, mut counted, mut seen) = (Vec::new(), Vec::new(), Vec::new());
    let mut parts: Vec<(String, Vec<f64>)> = Vec::new();
    for _ in 0..asked.runs {
        remove(&image)?;
        let pid = load.pid.to_string();
        let ran = stage.freeze(&["checkpoint", &pid, "--to", &path, "--json"])?;
        let report = json(&ran.out)?;
        whole.push(ran.ms());
        counted.push(number(&report["pause_us"])? / 1e3);
        seen.push(load.longest_gap(stage, ran.from, ran.to)?);
        for part in report["parts"].as_array().into_iter().flatten() {
            let name = part[0].as_str().unwrap_or_default();
            let took = number(&part[1])? / 1e3;
            match parts.iter_mut().find(|(known, _)| known == name) {
                Some((_, all)) => all.push(took),
                None => parts.push((name.into(), vec![took])),
            }
        }
        stage.brood.nap(REST)?;
    }
    let (mut restore, mut first) = (Vec::new(), Vec::new());
    for _ in 0..asked.runs {
        load.end(stage)?;
        let ran = stage.freeze(&["restore", &path, "--detach", "--json"])?;
        restore.push(ran.ms());
        first.push(ms(load.first_instruction(stage, ran.from)? - ran.from));
        stage.brood.nap(REST)?;
    }
    remove(&image)?;
    let (stop, stop_seen) = limits::stop_and_go(stage, &mut load, asked.runs)?;
    let nothing = stage.run(freeze().arg("--version"), AT_REST)?.ms();
    let theirs = match peer {
        Some(peer) => peer.measure(stage, load, asked.runs.min(20))?,
        None => {
            load.end(stage)?;
            Done::default()
        }
    };

    let row = |what: &str, values: Vec<f64>| Sample::of(values).map(|s| Row::new(what, "ms", s));
    let mut section = Section::new("A process of 1 MiB");
    let whole_goals = [Goal::AtMost(15.0), Goal::AtMost(5.0)];
    section
        .row(row("freeze checkpoint, whole command", whole).map(|r| r.peer(theirs.dump).goals(&whole_goals)));
    let counted = row("pause as counted", counted);
    section.row(counted.map(|r| r.peer(theirs.frozen).goals(&[Goal::AtMost(5.0)])));
    let seen = row("pause as the program sees it", seen);
    section.row(seen.map(|r| r.peer(theirs.seen).goals(&[Goal::AtMost(5.0)])));
    section.row(
        row("freeze restore, whole command", restore).map(|r| r.peer(theirs.restore).goals(&whole_goals)),
    );
    section.row(row("restore until the first instruction", first).map(|r| r.peer(theirs.first)));
    section.row(Some(Row::new(
        "limit: stop all threads and let go, as counted",
        "ms",
        stop,
    )));
    section.row(Some(Row::new(
        "limit: the same, as the program sees it",
        "ms",
        stop_seen,
    )));
    section.row(row("limit: freeze --version, whole command", vec![nothing]));
    section.notes.extend(theirs.note);

    let mut where_to = Section::new("Where the time of a small checkpoint goes");
    for (name, times) in parts {
        where_to.row(Sample::of(times).map(|s| Row::new(name, "ms", s)));
    }
    where_to.note("From `stop` to `resume` the process stands still.");
    Ok(vec![section, where_to])
}

/// Checkpoint, kill, restore, again and again, with the same process.
pub(crate) fn cycles(stage: &mut Stage<'_>, asked: &Asked) -> Result<Section> {
    let load = Load::start(stage, SMALL)?;
    let (pid, image) = (load.pid.to_string(), stage.dir.join("cycle"));
    let path = image.display().to_string();
    let mut section = Section::new(format!("{} cycles of checkpoint, kill, restore", asked.cycles));
    let (mut kill, mut free, mut restore, mut all) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for cycle in 1..=asked.cycles {
        remove(&image)?;
        let begin = super::stage::now();
        let killed = stage.freeze(&["checkpoint", &pid, "--to", &path, "--kill", "--json"]);
        let done = killed.and_then(|killed| {
            // The load is our child, so that its pid is free when we have seen its end.
            load.end(stage)?;
            let restored = stage.freeze(&["restore", &path, "--detach", "--json"])?;
            Ok((killed, restored))
        });
        match done {
            Ok((killed, restored)) => {
                kill.push(killed.ms());
                free.push(ms(restored.from - killed.to));
                restore.push(restored.ms());
                all.push(ms(restored.to - begin));
            }
            Err(e) if e.is::<crate::brood::Interrupted>() => return Err(e),
            Err(e) => {
                section.note(format!("Cycle {cycle} failed: {e:#}."));
                break;
            }
        }
    }
    let alive = crate::brood::exists(load.pid);
    load.end(stage)?;
    remove(&image)?;
    let row = |what: &str, values: Vec<f64>| Sample::of(values).map(|s| Row::new(what, "ms", s));
    let count = all.len();
    section.row(row("freeze checkpoint --kill, whole command", kill));
    section.row(row("until the bench has seen its end", free));
    section.row(row("freeze restore, whole command", restore));
    section.row(row("a cycle", all));
    section.note(format!(
        "{count} of {} cycles succeeded; the process {}.",
        asked.cycles,
        if alive {
            "ran on at the end"
        } else {
            "was gone at the end"
        }
    ));
    Ok(section)
}

/// What the agent costs while it watches nothing.
pub(crate) fn agent(stage: &mut Stage<'_>) -> Result<Section> {
    let mut section = Section::new("The agent at rest");
    let agent = Agent::start(stage)?;
    stage.brood.nap(Duration::from_secs(1))?;
    let (before, begin) = (cpu_of_living_ns(agent.pid)?, super::stage::now());
    stage.brood.nap(AT_REST)?;
    let (after, end) = (cpu_of_living_ns(agent.pid)?, super::stage::now());
    let percent = (after - before) as f64 / (end - begin) as f64 * 100.0;
    let all = std::iter::once(agent.pid).chain(crate::brood::below(agent.pid));
    let memory = all.map(resident).sum::<u64>() as f64 / f64::from(1 << 20);
    agent.end(stage)?;
    // A twentieth of a percent is nothing: 0.0 in any list of processes.
    let cpu = Sample::of([percent]).map(|s| Row::new("processor time over 10 s", "%", s));
    section.row(cpu.map(|r| r.goals(&[Goal::AtMost(0.05)])));
    let rss = Sample::of([memory]).map(|s| Row::new("resident memory", "MiB", s));
    section.row(rss.map(|r| r.goals(&[Goal::AtMost(40.0)])));
    Ok(section)
}

pub(crate) fn json(text: &str) -> Result<Value> {
    serde_json::from_str(text).with_context(|| format!("not JSON: {text}"))
}

pub(crate) fn number(value: &Value) -> Result<f64> {
    value.as_f64().with_context(|| format!("no number: {value}"))
}

pub(crate) fn remove(dir: &Path) -> Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| dir.display().to_string())
        }
        _ => Ok(()),
    }
}
