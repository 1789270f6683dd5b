//! The command `freezed`: the agent, in the foreground.

use clap::Parser;
use freeze_user::agent::{self, Config, front, notify, wire};
use freeze_user::cli::one_line_panics;
use freeze_user::store::DEFAULT_DIR;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Watch processes, checkpoint them on a schedule, and bring them back when they crash
///
/// Runs in the foreground until SIGTERM, SIGINT or SIGHUP, and is asked for everything by `freeze watch`, `unwatch`,
/// `status` and `map`, or by any varlink client (org.freeze.Agent). It may be killed at any instant: what it watches
/// runs on, the last committed checkpoint is whole, and when it is started again it goes on watching.
#[derive(Parser, Debug)]
#[command(
    name = "freezed",
    version,
    after_long_help = "\
Exit status: 0 asked to stop; 2 the command line was not understood; 3 refused; 4 a system call failed; 70 a bug.

Examples:
  systemctl enable --now freezed
  freezed --store /srv/checkpoints --log debug
  varlinkctl introspect /run/freeze/freezed.sock org.freeze.Agent"
)]
struct Args {
    /// Directory of checkpoints, created with mode 0700 if there is none
    #[arg(long, default_value = DEFAULT_DIR, value_name = "DIR")]
    store: PathBuf,
    /// Where to listen
    #[arg(long, default_value = wire::SOCKET, value_name = "PATH")]
    socket: PathBuf,
    /// What to log on stderr: error, warn, info, debug, trace or off
    #[arg(long, default_value = "info", value_name = "LEVEL")]
    log: LevelFilter,
    /// Be the engine of the freezed with this pid; used by freezed itself
    #[arg(long, hide = true, value_name = "PID")]
    engine_of: Option<i32>,
}

fn main() -> ExitCode {
    one_line_panics("freezed");
    std::panic::catch_unwind(run).unwrap_or(ExitCode::from(70))
}

fn run() -> ExitCode {
    let args = Args::parse();
    let done = match args.engine_of {
        None => {
            let own = std::process::id().to_string();
            let same = std::env::args_os().skip(1);
            front::stand(same.chain(["--engine-of".into(), own.into()])).map(front::exit_code)
        }
        Some(front) => {
            log_to_stderr(args.log);
            let config = Config {
                store: args.store,
                socket: args.socket,
                freeze: beside_us("freeze"),
            };
            front::follow(front)
                .and_then(|()| agent::run(&config))
                .map(|()| 0)
        }
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(e) => {
            notify::tell(&format!("STATUS={}", e.to_string().replace('\n', " ")));
            let _ = writeln!(std::io::stderr(), "freezed: {e}");
            ExitCode::from(e.exit_code())
        }
    }
}

/// The journal adds the time itself.
fn log_to_stderr(level: LevelFilter) {
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal());
    // What the libraries have to say of themselves is of interest only where something is wrong.
    let ours = Targets::new()
        .with_default(level.min(LevelFilter::WARN))
        .with_target("freeze", level);
    let all = tracing_subscriber::registry().with(ours);
    let set = match std::env::var_os("JOURNAL_STREAM") {
        Some(_) => all.with(lines.without_time()).try_init(),
        None => all.with(lines).try_init(),
    };
    if let Err(e) = set {
        let _ = writeln!(std::io::stderr(), "freezed: no log: {e}");
    }
}

/// A command in the same directory as this one.
fn beside_us(name: &str) -> PathBuf {
    let own = std::env::current_exe().ok();
    own.and_then(|path| Some(path.parent()?.join(name)))
        .unwrap_or_else(|| name.into())
}
