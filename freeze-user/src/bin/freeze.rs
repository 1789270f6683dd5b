//! The command `freeze`: checkpoints and restores processes, and looks after the images.

use clap::{Args, Parser, Subcommand};
use freeze_user::checkpoint::{Place, Request, checkpoint};
use freeze_user::ids::Pid;
use freeze_user::nest::Options as RestoreOptions;
use freeze_user::plan::Host;
use freeze_user::restore::{Ended, restore, wait};
use freeze_user::store::{DEFAULT_DIR, Form, Opened, Options, Store};
use freeze_user::sys::interrupt;
use freeze_user::{Error, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const AFTER_HELP: &str = "\
Exit status:
  0  done
  2  the command line was not understood
  3  refused: freeze looked and said no, nothing was touched; every reason is listed
  4  a system call failed; the target runs on as it was found
  5  a process ended while it was being worked on
  6  an image is damaged, incomplete or of another version
`freeze restore` in the foreground ends with the status of the restored program, or 128 + the signal that ended it.";

/// Take running Linux processes apart into a checkpoint and put them back together.
#[derive(Parser, Debug)]
#[command(name = "freeze", version, after_help = AFTER_HELP, arg_required_else_help = true)]
struct Cli {
    /// Directory of checkpoints, created with mode 0700 if there is none
    #[arg(long, global = true, default_value = DEFAULT_DIR, value_name = "DIR")]
    store: PathBuf,
    /// Print results and errors as JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Checkpoint(CheckpointArgs),
    Restore(RestoreArgs),
}

/// Write a checkpoint of a process and all its descendants.
///
/// The processes run on, with their memory copied while they run and a pause that is reported; with --kill they are
/// ended once the checkpoint is safely on disk. What cannot be carried is refused before anything is stopped, all of it at once.
#[derive(Args, Debug)]
struct CheckpointArgs {
    /// The process at the top of the tree
    pid: i32,
    /// Make this directory the checkpoint, instead of a new one in the store
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
    /// Store only what differs from this earlier checkpoint (directory or id)
    #[arg(long, value_name = "DIR|ID")]
    parent: Option<String>,
    /// End the processes once the checkpoint is committed
    #[arg(long)]
    kill: bool,
    /// Compress pages with zstd at this level instead of storing them raw
    #[arg(long, value_name = "LEVEL", num_args = 0..=1, default_missing_value = "3", value_parser = clap::value_parser!(i32).range(1..=19))]
    compress: Option<i32>,
    /// List the parts of the pause and of the whole in microseconds
    #[arg(long)]
    explain_pause: bool,
}

/// Put the processes of a checkpoint back together, with the same pids.
///
/// Waits for the first process and ends with its status; signals sent to freeze are passed on to it. A file that the
/// program only read or mapped and that has changed is refused; one that it had open for writing and that has only
/// grown is kept, with a warning. If anything fails, what was built is taken down and the image stays as it was.
#[derive(Args, Debug)]
struct RestoreArgs {
    /// Directory or id (or the beginning of an id) of the checkpoint
    checkpoint: String,
    /// Return as soon as the processes run
    #[arg(long)]
    detach: bool,
    /// Write the pid of the first process to this file
    #[arg(long, value_name = "FILE")]
    pidfile: Option<PathBuf>,
    /// Cut files that the program was writing back to their recorded size; the tails are kept beside the image
    #[arg(long)]
    rewind_files: bool,
    /// Accept this file as it is, though it has changed (can be repeated)
    #[arg(long, value_name = "PATH")]
    accept_changed: Vec<PathBuf>,
    /// Give descriptors that were on a terminal the terminal freeze runs on
    #[arg(long)]
    tty: bool,
}

fn main() -> ExitCode {
    #[cfg(debug_assertions)]
    freeze_user::sys::fault::arm_from_env();
    let cli = Cli::parse();
    let outcome = match &cli.command {
        Command::Checkpoint(args) => run_checkpoint(&cli, args),
        Command::Restore(args) => run_restore(&cli, args),
    };
    match outcome {
        Ok(code) => code,
        Err(e) => report(&e, cli.json),
    }
}

fn report(e: &Error, json: bool) -> ExitCode {
    if json {
        let blockers = if let Error::Refused(list) = e {
            list.as_slice()
        } else {
            &[]
        };
        let value = serde_json::json!({ "error": e.kind(), "message": e.to_string(), "reasons": blockers });
        println!("{value}");
    } else {
        eprintln!("freeze: {e}");
    }
    ExitCode::from(e.exit_code())
}

fn print<T: serde::Serialize + std::fmt::Display>(value: &T, json: bool) {
    match serde_json::to_string(value) {
        Ok(text) if json => println!("{text}"),
        _ => println!("{value}"),
    }
}

/// A checkpoint by directory, or by id in the store.
fn open_image(store: &Path, name: &str) -> Result<Opened> {
    match Path::new(name).is_dir() {
        true => Opened::open(Path::new(name)),
        false => Store::open(store)?.find(name),
    }
}

fn run_checkpoint(cli: &Cli, args: &CheckpointArgs) -> Result<ExitCode> {
    freeze_user::kinds::credentials::must_be_root()?;
    interrupt::install();
    let parent = args
        .parent
        .as_deref()
        .map(|p| open_image(&cli.store, p))
        .transpose()?;
    let place = match &args.to {
        Some(dir) => Place::Directory(dir.clone()),
        None => Place::Store(Store::open(&cli.store)?),
    };
    let form = args.compress.map_or(Form::Hot, |level| Form::Cold { level });
    let request = Request {
        roots: vec![Pid(args.pid)],
        place,
        parent,
        kill: args.kill,
        group: None,
        options: Options {
            form,
            ..Options::default()
        },
        track: false,
    };
    let report = checkpoint(&request, &Host::here()?, &mut BTreeMap::new())?;
    print(&report, cli.json);
    if args.explain_pause && !cli.json {
        for (part, us) in &report.parts {
            println!("  {part:<10} {us:>9} µs");
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn run_restore(cli: &Cli, args: &RestoreArgs) -> Result<ExitCode> {
    freeze_user::kinds::credentials::must_be_root()?;
    interrupt::install();
    let image = open_image(&cli.store, &args.checkpoint)?;
    let options = RestoreOptions {
        rewind_files: args.rewind_files,
        accept_changed: args.accept_changed.iter().cloned().collect(),
        reattach_terminal: args.tty,
    };
    let restored = restore(image, options)?;
    let root = restored.roots.first().copied().unwrap_or(Pid(0));
    for warning in &restored.warnings {
        eprintln!("freeze: warning: {warning}");
    }
    if let Some(file) = &args.pidfile {
        let written = std::fs::write(file, format!("{root}\n"));
        if let Err(e) = written {
            eprintln!("freeze: warning: {}: {e}", file.display());
        }
    }
    if args.detach {
        match cli.json {
            true => println!("{}", serde_json::to_string(&restored).unwrap_or_default()),
            false => println!(
                "restored pid {root}, {} process(es), {:.1} ms",
                restored.processes,
                restored.took_us as f64 / 1000.0
            ),
        }
        return Ok(ExitCode::SUCCESS);
    }
    match wait(root)? {
        Ended::Code(code) => Ok(ExitCode::from(code as u8)),
        Ended::Signal(signal) => Ok(ExitCode::from((128 + signal) as u8)),
    }
}
