//! `cargo xtask bench`: what freeze costs, beside Debian's criu and beside what nobody can beat, in the same run.
//!
//! It fails when something cannot be measured at all, and never on how long something took.

mod bystander;
mod large;
mod limits;
mod machine;
mod many;
mod peer;
mod plot;
mod redis;
mod sample;
mod small;
mod stage;

use crate::brood::{Brood, Interrupted};
use crate::{cargo, release, root};
use anyhow::{Context, Result, bail, ensure};
use large::Figures;
use machine::Machine;
use nix::unistd::Pid;
use peer::Peer;
use plot::Figure;
use sample::Section;
use serde_json::json;
use stage::{PATIENCE, Stage, freeze};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Sizes and rounds of a quick run (two minutes), of an ordinary one (ten) and of a full one (forty).
const QUICK: (&[u64], usize) = (&[1, 64], 10);
const ORDINARY: (&[u64], usize) = (&[1, 64, 1024], 20);
const FULL: (&[u64], usize) = (&[1, 64, 512, 2048, 8192], 100);

#[derive(clap::Args, Debug)]
pub(crate) struct BenchArgs {
    /// All sizes of memory up to 8 GiB and 100 checkpoints of each, which takes forty minutes; with --write, the figures
    /// of docs/bench.md
    #[arg(long)]
    full: bool,
    /// 1 and 64 MiB, ten checkpoints of each, fewer restores, no peer: two minutes
    #[arg(long, conflicts_with = "full")]
    quick: bool,
    /// Sizes of memory in MiB, instead of 1,64,1024
    #[arg(long, value_delimiter = ',', value_name = "MIB")]
    sizes: Vec<u64>,
    /// Leave out what is larger
    #[arg(long, value_name = "MIB")]
    max_mib: Option<u64>,
    /// Checkpoints of each size after the first
    #[arg(long)]
    rounds: Option<usize>,
    /// Milliseconds between two checkpoints
    #[arg(long, default_value_t = 1000)]
    every_ms: u64,
    /// How much of its memory the load writes between two checkpoints, in percent
    #[arg(long, default_value_t = 1.0)]
    percent: f64,
    /// Threads of the load that write
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Let the load's memory be huge pages
    #[arg(long)]
    thp: bool,
    /// How often a small process is checkpointed and restored
    #[arg(long, default_value_t = 50)]
    runs: usize,
    /// Cycles of checkpoint, kill, restore
    #[arg(long, default_value_t = 200)]
    cycles: usize,
    /// Checkpoint by the library and not by the agent, which is done anyway while there is no agent
    #[arg(long)]
    library: bool,
    /// Leave the peer out
    #[arg(long)]
    no_peer: bool,
    /// Where the images go while it runs [default: in memory]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Write docs/bench.md and its figures
    #[arg(long)]
    write: bool,
}

/// What is asked for, with everything decided.
#[derive(Debug)]
struct Asked {
    sizes: Vec<u64>,
    rounds: usize,
    every: Duration,
    percent: f64,
    threads: usize,
    thp: bool,
    runs: usize,
    cycles: usize,
    library: bool,
    /// redis under load, and what other programs lose meanwhile.
    programs: bool,
    /// Where the images go was said, and holds for all of them.
    dir_is_given: bool,
}

/// Everything that was found out.
#[derive(Debug)]
struct Results {
    machine: Machine,
    command: String,
    peer: Result<Peer, Vec<String>>,
    sections: Vec<Section>,
    figures: Figures,
}

/// Builds, measures, prints.
pub(crate) fn run(brood: &mut Brood, args: &BenchArgs) -> Result<()> {
    let build = [
        "build",
        "--release",
        "-p",
        "freeze-user",
        "-p",
        "freeze-tests",
        "--bins",
    ];
    let status = brood.foreground(cargo().args(build))?;
    ensure!(status.success(), "cargo build --release ended with {status}");
    stage::check_built()?;
    let machine = Machine::look();
    let above = match &args.dir {
        Some(dir) => std::path::absolute(dir)?,
        None if std::path::Path::new("/dev/shm").is_dir() => "/dev/shm".into(),
        None => std::env::temp_dir(),
    };
    let mut stage = Stage::new(brood, &above)?;
    let mut asked = decide(args)?;
    if !asked.library && !has_agent(&mut stage)? {
        asked.library = true;
        eprintln!("this build of freeze has no `watch`: checkpoints are made by the library");
    }
    let peer = if args.no_peer || args.quick {
        Err(vec!["The peer was left out.".into()])
    } else {
        eprintln!("looking for a criu that runs here");
        Peer::find(&mut stage)?
    };
    let results = measure(&mut stage, &asked, machine, peer)?;
    drop(stage);
    match args.json {
        true => println!("{:#}", results.json()),
        false => print!("{}", results.text()),
    }
    if args.write {
        results.write()?;
    }
    Ok(())
}

fn decide(args: &BenchArgs) -> Result<Asked> {
    let (sizes, rounds) = match (args.full, args.quick) {
        (true, _) => FULL,
        (_, true) => QUICK,
        _ => ORDINARY,
    };
    // A quick run repeats everything less often.
    let fewer = |n: usize| if args.quick { n.min(10) } else { n };
    let mut sizes = if args.sizes.is_empty() {
        sizes.to_vec()
    } else {
        args.sizes.clone()
    };
    sizes.retain(|mib| *mib > 0 && args.max_mib.is_none_or(|max| *mib <= max));
    sizes.sort_unstable();
    sizes.dedup();
    ensure!(
        args.every_ms > 0,
        "--every-ms 0: there is no time between two checkpoints"
    );
    ensure!(args.runs > 0, "--runs 0: nothing would be measured");
    ensure!(args.threads > 0, "--threads 0: nobody would write");
    ensure!(
        args.percent > 0.0 && args.percent <= 100.0,
        "--percent {}: not between 0 and 100",
        args.percent
    );
    Ok(Asked {
        sizes,
        rounds: args.rounds.unwrap_or(rounds).max(1),
        every: Duration::from_millis(args.every_ms),
        percent: args.percent,
        threads: args.threads,
        thp: args.thp,
        runs: fewer(args.runs),
        cycles: fewer(args.cycles),
        library: args.library,
        programs: !args.quick && !args.library,
        dir_is_given: args.dir.is_some(),
    })
}

fn measure(
    stage: &mut Stage<'_>,
    asked: &Asked,
    machine: Machine,
    peer: Result<Peer, Vec<String>>,
) -> Result<Results> {
    let there = peer.as_ref().ok();
    let mut sections = Vec::new();
    let mut figures = Figures {
        pause: Figure::new("How long the program stands still (median)", "milliseconds"),
        restore: Figure::new("How long a restore takes (median)", "milliseconds"),
    };
    eprintln!("a small process: {} checkpoints and restores", asked.runs);
    match small::commands(stage, asked, there) {
        Ok(two) => sections.extend(two),
        Err(e) => sections.push(failed("A process of 1 MiB", e, stage)?),
    }
    eprintln!("a thousand of something");
    match many::thousands(stage, asked, there) {
        Ok(three) => sections.extend(three),
        Err(e) => sections.push(failed("A thousand of something", e, stage)?),
    }
    for &mib in &asked.sizes {
        eprintln!(
            "{mib} MiB: {} checkpoints, one each {:?}",
            asked.rounds + 1,
            asked.every
        );
        let in_memory = asked.dir_is_given || machine::has_room_for(mib);
        if !in_memory {
            stage.use_disk()?;
        }
        let mut section = match large::size(stage, asked, there, mib, &mut figures) {
            Ok(section) => section,
            Err(e) => failed(&format!("{mib} MiB"), e, stage)?,
        };
        if !in_memory {
            stage.back()?;
            section.note("The images are on disk: beside the process they do not fit into memory.");
        }
        sections.push(section);
    }
    sections.extend(large::growth(&figures));
    if asked.programs {
        eprintln!("redis under load");
        match redis::sections(stage) {
            Ok(two) => sections.extend(two),
            Err(e) => sections.push(failed("redis under load", e, stage)?),
        }
        eprintln!("programs that are not watched");
        sections.push(match bystander::section(stage) {
            Ok(section) => section,
            Err(e) => failed("Programs that are not watched", e, stage)?,
        });
    }
    if asked.cycles > 0 {
        eprintln!("{} cycles", asked.cycles);
        sections.push(match small::cycles(stage, asked) {
            Ok(section) => section,
            Err(e) => failed("Cycles of checkpoint, kill, restore", e, stage)?,
        });
    }
    eprintln!("the agent at rest");
    sections.push(match small::agent(stage) {
        Ok(section) => section,
        Err(e) => failed("The agent at rest", e, stage)?,
    });
    Ok(Results {
        machine,
        command: command_line(),
        peer,
        sections,
        figures,
    })
}

/// A section that says why there are no figures; only being told to stop ends the whole bench.
fn failed(title: &str, e: anyhow::Error, stage: &mut Stage<'_>) -> Result<Section> {
    if e.is::<Interrupted>() {
        return Err(e);
    }
    eprintln!("{title}: {e:#}");
    // Whatever it had started and stored is of no use to what comes next.
    let left = stage.brood.end_all();
    ensure!(left.is_empty(), "could not be killed: {left:?}");
    std::fs::remove_dir_all(&stage.dir).and_then(|()| std::fs::create_dir(&stage.dir))?;
    let mut section = Section::new(title);
    section.note(format!("Not measured: {e:#}"));
    Ok(section)
}

/// What was typed, without the path of the program.
fn command_line() -> String {
    let args = std::env::args().skip(1).collect::<Vec<_>>();
    format!("cargo xtask {}", args.join(" "))
}

impl Results {
    fn peer_name(&self) -> &str {
        self.peer.as_ref().map_or("criu", |peer| &peer.name)
    }

    fn text(&self) -> String {
        let mut out = format!("`{}`, {}\n\n", self.command, self.machine.sentence());
        let notes = match &self.peer {
            Ok(peer) => &peer.notes,
            Err(why) => why,
        };
        for note in notes {
            out += &format!("{note}\n\n");
        }
        for section in &self.sections {
            out += &section.markdown(self.peer_name());
        }
        let missed: Vec<String> = self.sections.iter().flat_map(Section::missed).collect();
        out += "## Not reached\n\n";
        if missed.is_empty() {
            out += "Every goal of what was measured here is reached.\n";
        }
        for line in missed {
            out += &format!("- {line}\n");
        }
        out
    }

    fn json(&self) -> serde_json::Value {
        json!({
            "command": self.command,
            "machine": self.machine.json(),
            "peer": self.peer.as_ref().ok().map(|p| &p.name),
            "peer_notes": self.peer.as_ref().map_or_else(|why| why, |p| &p.notes),
            "sections": self.sections.iter().map(Section::json).collect::<Vec<_>>(),
        })
    }

    fn write(&self) -> Result<()> {
        let docs = root().join("docs");
        let mut text = format!("{}\n", include_str!("head.md").trim_end());
        for (name, figure) in [("pause", &self.figures.pause), ("restore", &self.figures.restore)] {
            let path = docs.join(format!("bench-{name}.svg"));
            if let Some(svg) = figure.svg() {
                std::fs::write(&path, svg).with_context(|| path.display().to_string())?;
                text += &format!("\n![{name} over memory](bench-{name}.svg)\n");
            } else if path.exists() {
                // An older figure would be taken for one of these.
                std::fs::remove_file(&path).with_context(|| path.display().to_string())?;
            }
        }
        text += &format!("\n{}", self.text());
        let path = docs.join("bench.md");
        std::fs::write(&path, text).with_context(|| path.display().to_string())?;
        eprintln!("written: docs/bench.md");
        Ok(())
    }
}

/// Whether this build of freeze can watch.
fn has_agent(stage: &mut Stage<'_>) -> Result<bool> {
    Ok(stage
        .run(freeze().args(["watch", "--help"]), PATIENCE)?
        .status
        .success())
}

/// `freezed`, with its store and its socket in the stage's directory.
#[derive(Debug)]
struct Agent {
    pid: Pid,
}

impl Agent {
    fn start(stage: &mut Stage<'_>) -> Result<Agent> {
        let log = std::fs::File::create(stage.dir.join("freezed.log")).context("freezed.log")?;
        let socket = stage.dir.join("socket");
        let mut freezed = Command::new(release("freezed"));
        freezed
            .arg("--store")
            .arg(stage.dir.join("store"))
            .arg("--socket")
            .arg(&socket);
        freezed.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let pid = stage.brood.start(&mut freezed)?;
        stage.until("freezed listens", PATIENCE, |stage| {
            if let Some(status) = stage.brood.look(pid) {
                let log = std::fs::read_to_string(stage.dir.join("freezed.log")).unwrap_or_default();
                bail!("freezed ended at once: {status} {}", log.trim_end());
            }
            Ok(socket.exists())
        })?;
        Ok(Agent { pid })
    }

    /// Runs `freeze` against it and hands over what it printed.
    fn ask(&self, stage: &mut Stage<'_>, args: &[&str]) -> Result<String> {
        let (socket, store) = (stage.dir.join("socket"), stage.dir.join("store"));
        let (socket, store) = (socket.display().to_string(), store.display().to_string());
        let ran = stage.freeze(&[args, &["--socket", &socket, "--store", &store]].concat())?;
        Ok(ran.out)
    }

    fn end(self, stage: &mut Stage<'_>) -> Result<()> {
        nix::sys::signal::kill(self.pid, nix::sys::signal::Signal::SIGTERM).context("kill")?;
        let pid = self.pid;
        let limit = Duration::from_secs(20);
        stage.until("freezed has ended", limit, |stage| {
            Ok(stage.brood.look(pid).is_some())
        })?;
        let socket = stage.dir.join("socket");
        match std::fs::remove_file(&socket) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e).context("socket"),
            _ => Ok(()),
        }
    }
}
