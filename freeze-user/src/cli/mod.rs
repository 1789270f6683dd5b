//! The command `freeze`: its arguments, and what it prints.

mod engine;
mod images;
mod output;
mod start;
mod watch;

use crate::agent::wire::SOCKET;
use crate::error::Result;
use crate::probe;
use crate::store::{DEFAULT_DIR, Opened, Store};
use clap::{CommandFactory, Parser, Subcommand};
use output::Done;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const AFTER_HELP: &str = "\
Exit status:
  0  done
  1  freeze map --audit found differences
  2  the command line was not understood
  3  refused: freeze looked and said no, nothing was touched; every reason is listed
  4  a system call failed; the target runs on as it was found
  5  a process ended while it was being worked on
  6  an image is damaged, incomplete or of another version
  70 a bug in freeze; what it had stopped runs on as it was found
`freeze restore` in the foreground ends with the status of the restored program, or 128 + the signal that ended it.
Errors go to stderr; with --json to stdout, as {\"error\": \"refused\" | \"kernel\" | …, \"message\", \"reasons\"}.";

const EXAMPLES: &str = "\
Examples:
  freeze check 4242                            can it be checkpointed?
  freeze checkpoint 4242 --kill                store it and end it
  freeze restore 01J5K3                        bring it back, with the same pids
  freeze watch --name redis-server --on-crash restore
                                               checkpoint it every second, bring it back when it crashes
  freeze status --follow                       see it happen
";

/// Take running Linux processes apart into a checkpoint and put them back together
#[derive(Parser, Debug)]
#[command(name = "freeze", version, after_help = AFTER_HELP, arg_required_else_help = true,
    after_long_help = format!("{EXAMPLES}\n{AFTER_HELP}"))]
struct Cli {
    /// Directory of checkpoints, created with mode 0700 if there is none
    #[arg(long, global = true, default_value = DEFAULT_DIR, value_name = "DIR")]
    store: PathBuf,
    /// Where the agent freezed listens
    #[arg(long, global = true, default_value = SOCKET, value_name = "PATH")]
    socket: PathBuf,
    /// Print results and errors as JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Checkpoint(engine::CheckpointArgs),
    Restore(engine::RestoreArgs),
    Check(engine::CheckArgs),
    Release(engine::ReleaseArgs),
    Watch(watch::WatchArgs),
    Unwatch(watch::UnwatchArgs),
    Status(watch::StatusArgs),
    Map(watch::MapArgs),
    List(images::ListArgs),
    Show(images::ShowArgs),
    Verify(images::VerifyArgs),
    Prune(images::PruneArgs),
    /// Say what this kernel grants freeze, found by trying it, and what is lost where it does not
    Doctor,
    /// Print a completion script for a shell
    #[command(after_long_help = "Example:\n  freeze completion bash > /etc/bash_completion.d/freeze")]
    Completion {
        shell: clap_complete::Shell,
    },
    #[command(name = start::BECOME, hide = true)]
    Become(start::BecomeArgs),
}

/// Runs the command; what goes wrong by a bug is one line and status 70, and everything is undone all the same.
pub fn main() -> ExitCode {
    one_line_panics("freeze");
    #[cfg(debug_assertions)]
    crate::sys::fault::arm_from_env();
    std::panic::catch_unwind(run).unwrap_or(ExitCode::from(70))
}

/// From now on a panic prints one line, and unwinds.
pub fn one_line_panics(program: &'static str) {
    std::panic::set_hook(Box::new(move |info| {
        let said = info.payload_as_str().unwrap_or("no message").replace('\n', " ");
        let place = info
            .location()
            .map(|l| format!(" ({}:{})", l.file(), l.line()))
            .unwrap_or_default();
        let _ = writeln!(
            std::io::stderr(),
            "{program}: a bug, please report it: {said}{place}"
        );
    }));
}

fn run() -> ExitCode {
    let cli = Cli::parse();
    match dispatch(&cli) {
        Ok(code) => code,
        Err(trouble) => output::report(&trouble, cli.json),
    }
}

fn dispatch(cli: &Cli) -> Done {
    match &cli.command {
        Command::Checkpoint(args) => engine::run_checkpoint(cli, args),
        Command::Restore(args) => engine::run_restore(cli, args),
        Command::Check(args) => engine::run_check(cli, args),
        Command::Release(args) => engine::run_release(cli, args),
        Command::Watch(args) => watch::run_watch(cli, args),
        Command::Unwatch(args) => watch::run_unwatch(cli, args),
        Command::Status(args) => watch::run_status(cli, args),
        Command::Map(args) => watch::run_map(cli, args),
        Command::List(args) => images::run_list(cli, args),
        Command::Show(args) => images::run_show(cli, args),
        Command::Verify(args) => images::run_verify(cli, args),
        Command::Prune(args) => images::run_prune(cli, args),
        Command::Doctor => {
            output::value(&probe::examine(), cli.json);
            Ok(ExitCode::SUCCESS)
        }
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "freeze", &mut script);
            output::line(&String::from_utf8_lossy(&script).trim_end());
            Ok(ExitCode::SUCCESS)
        }
        Command::Become(args) => Ok(start::run_become(args)),
    }
}

/// A checkpoint by directory, or by id in the store.
fn open_image(store: &Path, name: &str) -> Result<Opened> {
    match Path::new(name).is_dir() {
        true => Opened::open(Path::new(name)),
        false => Store::open(store)?.find(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_watch_names_one_thing() {
        let parse = |line: &str| Cli::try_parse_from(format!("freeze {line}").split(' '));
        for good in [
            "watch 7",
            "watch --name x",
            "watch 7 --name x",
            "watch -- a -b",
            "watch --name x --log f -- a",
        ] {
            assert!(parse(good).is_ok(), "{good}");
        }
        for bad in [
            "watch",
            "watch 7 -- a",
            "watch 7 --log f",
            "watch 7 --every 1x",
            "watch 7 --on-crash jump",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
