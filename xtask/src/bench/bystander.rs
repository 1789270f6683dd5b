//! What programs that nobody watches lose while the agent watches another.

use super::Agent;
use super::sample::{Goal, Row, Sample, Section};
use super::stage::{Load, PATIENCE, Shape, Stage, ms};
use anyhow::{Result, ensure};
use std::process::Command;
use std::time::Instant;

/// How often each is measured without and with.
const TURNS: usize = 15;

/// System calls of a turn.
const CALLS: u32 = 2_000_000;

/// A program that does nothing but make system calls, and one that does nothing but start others.
const PROGRAMS: [(&str, &[&str]); 2] = [
    (
        "dd, a system call for each 512 bytes",
        &[
            "dd",
            "if=/dev/zero",
            "of=/dev/null",
            "bs=512",
            "count=1000000",
            "status=none",
        ],
    ),
    (
        "sh, which starts 300 programs",
        &[
            "sh",
            "-c",
            "n=0; while [ $n -lt 300 ]; do /bin/true; n=$((n + 1)); done",
        ],
    ),
];

/// What is watched meanwhile.
const WATCHED: Shape = Shape {
    mib: 64,
    pages: 160.0,
    threads: 1,
    thp: false,
};

/// Measures in turns, so that what else happens on the machine meets both.
pub(crate) fn section(stage: &mut Stage<'_>) -> Result<Section> {
    let mut section = Section::new("Programs that are not watched, while another is");
    let load = Load::start(stage, WATCHED)?;
    let pid = load.pid.to_string();
    let agent = Agent::start(stage)?;
    let (mut calls, mut more, mut programs) = (Vec::new(), Vec::new(), [Vec::new(), Vec::new()]);
    for _ in 0..TURNS {
        let without = getppid();
        let alone = programs_take(stage)?;
        // No checkpoint is made meanwhile: it is the watching that they may feel.
        agent.ask(stage, &["watch", &pid, "--every", "1h"])?;
        stage.until("the load is checkpointed", PATIENCE, |stage| {
            let status = super::small::json(&agent.ask(stage, &["status", "--json"])?)?;
            let mut groups = status["groups"].as_array().into_iter().flatten();
            Ok(groups.any(|g| !g["last"].is_null()))
        })?;
        let with = getppid();
        let beside = programs_take(stage)?;
        agent.ask(stage, &["unwatch", &pid])?;
        calls.push(without);
        more.push(with - without);
        for ((shares, alone), beside) in programs.iter_mut().zip(alone).zip(beside) {
            shares.push(alone / beside);
        }
    }
    agent.end(stage)?;
    load.end(stage)?;
    super::small::remove(&stage.dir.join("store"))?;
    section.row(Sample::of(calls).map(|s| Row::new("getppid(2), while nothing is watched", "ns", s)));
    section.row(
        Sample::of(more).map(|s| {
            Row::new("what it takes longer while something is", "ns", s).goals(&[Goal::AtMost(5.0)])
        }),
    );
    for ((name, _), shares) in PROGRAMS.iter().zip(programs) {
        section.row(Sample::of(shares).map(|s| {
            let what = format!("{name}: time without ÷ with");
            Row::new(what, "×", s).goals(&[Goal::AtLeast(0.98)])
        }));
    }
    Ok(section)
}

/// How long a system call takes that does nothing, in nanoseconds.
fn getppid() -> f64 {
    let begin = Instant::now();
    for _ in 0..CALLS {
        std::hint::black_box(nix::unistd::getppid());
    }
    begin.elapsed().as_nanos() as f64 / f64::from(CALLS)
}

/// How long each program takes, in milliseconds.
fn programs_take(stage: &mut Stage<'_>) -> Result<[f64; 2]> {
    let mut times = [0.0; 2];
    for (time, (name, words)) in times.iter_mut().zip(PROGRAMS) {
        let ran = stage.run(Command::new(words[0]).args(&words[1..]), PATIENCE)?;
        ensure!(ran.status.success(), "{name}: {}", ran.status);
        *time = ms(ran.to - ran.from);
    }
    Ok(times)
}
