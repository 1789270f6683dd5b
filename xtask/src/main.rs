//! The project's own tasks: `cargo xtask setup | run | test | bench | vm | tidy`.

mod bench;
mod brood;
mod compiler;
mod demo;
mod host;
mod redis;
mod setup;
mod test;
mod tidy;
mod vm;

use anyhow::{Context, Result, bail};
use brood::Brood;
use clap::{Parser, Subcommand};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    about = "Sets up, runs and tests freeze",
    disable_help_subcommand = true
)]
struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what building and testing need and is not there (Debian, as root)
    Setup,
    /// Set up, build, and play the demonstration; or, with arguments, run `freezed ARGS` in the foreground
    Run {
        /// Arguments for freezed
        #[arg(last = true)]
        args: Vec<String>,
    },
    /// Set up, check the sources, and run every test
    Test {
        /// Only tests whose name contains this; the source checks are then left out
        filter: Option<String>,
    },
    /// Measure freeze beside Debian's criu, on a quiet machine if the figures are to mean something
    Bench(bench::BenchArgs),
    /// Checkpoint under one kernel and restore under another, in a virtual machine with software emulation
    Vm(vm::VmArgs),
    /// Check what the compiler does not: module order, first sentences, twin files, where unsafe may be
    Tidy,
}

fn main() -> ExitCode {
    brood::close_inherited();
    match Args::parse().task.play() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) if e.is::<brood::Interrupted>() => {
            eprintln!("interrupted");
            ExitCode::from(130)
        }
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

impl Task {
    /// Whether all is well; an error is a reason why the task could not be done at all.
    fn play(self) -> Result<bool> {
        match self {
            Task::Setup => setup::setup("setup").map(|()| true),
            Task::Run { args } if args.is_empty() => {
                let mut brood = Brood::new()?;
                setup::setup("run")?;
                build(&mut brood)?;
                demo::play(&mut brood)
            }
            Task::Run { args } => {
                let mut brood = Brood::new()?;
                setup::setup("run")?;
                build(&mut brood)?;
                let freezed = release("freezed");
                let status = brood.foreground(Command::new(&freezed).args(args))?;
                if !status.success() {
                    eprintln!("freezed ended with {status}");
                }
                Ok(status.success())
            }
            Task::Test { filter } => {
                let mut brood = Brood::new()?;
                setup::setup("test")?;
                test::run(&mut brood, filter.as_deref())
            }
            Task::Bench(args) => {
                let mut brood = Brood::new()?;
                setup::setup("bench")?;
                bench::run(&mut brood, &args).map(|()| true)
            }
            Task::Vm(args) => {
                let mut brood = Brood::new()?;
                setup::setup("vm")?;
                let tally = vm::run(&mut brood, &args)?;
                println!("{} passed, {} failed", tally.passed, tally.failed);
                Ok(tally.failed == 0)
            }
            Task::Tidy => {
                let faults = tidy::check(&root())?;
                for fault in &faults {
                    println!("{fault}");
                }
                println!("tidy: {} faults", faults.len());
                Ok(faults.is_empty())
            }
        }
    }
}

/// `cargo build --release`, with its own output.
fn build(brood: &mut Brood) -> Result<()> {
    let status = brood.foreground(cargo().args(["build", "--release"]))?;
    if !status.success() {
        bail!("cargo build --release ended with {status}");
    }
    Ok(())
}

/// The cargo that runs this task, standing in the workspace's root.
fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    command.current_dir(root());
    command
}

/// The root of the workspace.
fn root() -> PathBuf {
    let here =
        std::env::var_os("CARGO_MANIFEST_DIR").map_or(env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    here.parent().map_or(here.clone(), Path::to_path_buf)
}

/// Where cargo puts what it builds.
fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or(root().join("target"), |dir| root().join(dir))
}

/// One of the built commands.
fn release(name: &str) -> PathBuf {
    target_dir().join("release").join(name)
}

/// Runs a command to its end without a word and hands over what it printed; fails when it does not exist.
fn output(command: &mut Command) -> Result<(bool, String)> {
    let what = format!("{command:?}");
    let out = command
        .stdin(std::process::Stdio::null())
        .output()
        .context(what)?;
    Ok((
        out.status.success(),
        String::from_utf8_lossy(&out.stdout).into_owned(),
    ))
}
