//! A process that holds a thousand of something: descriptors, mappings, threads.

use super::Asked;
use super::peer::{Done, Peer};
use super::sample::{Goal, Row, Sample, Section};
use super::small::{json, number, remove};
use super::stage::{PATIENCE, Stage};
use crate::brood::exists;
use anyhow::{Result, ensure};
use std::process::Command;
use std::time::Duration;

/// One of them.
struct Thousand {
    title: &'static str,
    /// What python3 is to have done before it waits; `here` is a directory of its own.
    program: &'static str,
    /// What goals there are for a checkpoint and a restore, in milliseconds.
    goals: (f64, f64),
}

const ALL: [Thousand; 3] = [
    Thousand {
        title: "1,000 descriptors",
        program: "held = [open(f'{here}/{n}', 'w+') for n in range(1000)]",
        goals: (30.0, 60.0),
    },
    Thousand {
        title: "1,000 mappings",
        // What may be read and what may be written take turns, since the kernel would make one of two that are alike.
        program: "held = [mmap.mmap(-1, 8192, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, 1 + n % 2 * 2) for n in range(1000)]\n\
            for m in held[1::2]: m[0] = 1",
        goals: (30.0, 60.0),
    },
    Thousand {
        title: "1,000 threads",
        program: "threading.stack_size(65536)\n\
            for n in range(1000): threading.Thread(target=threading.Event().wait, daemon=True).start()",
        goals: (150.0, 150.0),
    },
];

/// Rounds of each: it is the same work every time.
const ROUNDS: usize = 10;

/// What a process rests between two commands.
const REST: Duration = Duration::from_millis(100);

/// Checkpoints of each that leave it running, and such that end it with a restore behind them.
pub(crate) fn thousands(stage: &mut Stage<'_>, asked: &Asked, peer: Option<&Peer>) -> Result<Vec<Section>> {
    ALL.iter().map(|one| one.measure(stage, asked, peer)).collect()
}

impl Thousand {
    fn measure(&self, stage: &mut Stage<'_>, asked: &Asked, peer: Option<&Peer>) -> Result<Section> {
        let here = stage.dir.join("thousand");
        remove(&here)?;
        std::fs::create_dir(&here)?;
        let text = format!(
            "import mmap, threading, time\nhere = {here:?}\n{}\nopen(f'{{here}}/ready', 'w').close()\ntime.sleep(10000)",
            self.program
        );
        let mut python = Command::new("python3");
        let pid = stage.daemon(python.args(["-c", &text]))?;
        stage.until("python3 holds a thousand", PATIENCE, |_| {
            ensure!(exists(pid), "python3 has ended");
            Ok(here.join("ready").exists())
        })?;
        let image = stage.dir.join("thousand.image");
        let (path, number_of) = (image.display().to_string(), pid.to_string());
        let (mut whole, mut counted) = (Vec::new(), Vec::new());
        let (mut killed, mut restored) = (Vec::new(), Vec::new());
        let rounds = asked.runs.min(ROUNDS);
        for _ in 0..rounds {
            stage.brood.nap(REST)?;
            let ran = stage.freeze(&["checkpoint", &number_of, "--to", &path, "--json"])?;
            whole.push(ran.ms());
            counted.push(number(&json(&ran.out)?["pause_us"])? / 1e3);
            remove(&image)?;
        }
        for _ in 0..rounds {
            stage.brood.nap(REST)?;
            let ran = stage.freeze(&["checkpoint", &number_of, "--to", &path, "--kill", "--json"])?;
            killed.push(ran.ms());
            stage.brood.end_tree(pid)?;
            restored.push(stage.freeze(&["restore", &path, "--detach", "--json"])?.ms());
            remove(&image)?;
        }
        let theirs = match peer {
            Some(peer) => peer.take_turns(stage, pid, None, rounds)?,
            None => Done::default(),
        };
        stage.brood.end_tree(pid)?;
        remove(&here)?;
        let row = |what: &str, values: Vec<f64>| Sample::of(values).map(|s| Row::new(what, "ms", s));
        let (dump, back) = self.goals;
        let mut section = Section::new(self.title);
        let kept = row("freeze checkpoint, left running, whole command", whole);
        section.row(kept.map(|r| r.peer(theirs.dump).goals(&[Goal::AtMost(dump)])));
        section.row(row("of it standing still, as counted", counted).map(|r| r.peer(theirs.frozen)));
        section.row(
            row("freeze checkpoint --kill, whole command", killed).map(|r| r.goals(&[Goal::AtMost(dump)])),
        );
        section.row(
            row("freeze restore, whole command", restored)
                .map(|r| r.peer(theirs.restore).goals(&[Goal::AtMost(back)])),
        );
        section.notes.extend(theirs.note);
        Ok(section)
    }
}
