//! `freeze checkpoint`, `freeze restore` and `freeze check`: what needs no agent.

use super::output::{Done, Trouble, bytes, line, value, warn};
use super::{Cli, open_image};
use crate::agent::client::Agent;
use crate::agent::policy::Interval;
use crate::checkpoint::{Bounds, Place, Request, checkpoint, company, verdict};
use crate::error::{Context, Error, Result};
use crate::ids::Pid;
use crate::kinds::credentials::must_be_root;
use crate::kinds::tcp;
use crate::nest::attach::Attach;
use crate::nest::{self, CgroupChoice};
use crate::observe::ends::{Ends, Object};
use crate::plan::Host;
use crate::precopy::Trackings;
use crate::restore::{Ended, prepare, wait};
use crate::store::{Form, Options, Store};
use crate::sys::interrupt;
use crate::sys::stay::{self, Back, Side};
use clap::{Args, ValueEnum};
use serde_json::json;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Write a checkpoint of a process and all its descendants
///
/// The processes run on, with their memory copied while they run and a pause that is reported; with --kill they are
/// ended once the checkpoint is safely on disk. What cannot be carried is refused before anything is stopped, all of
/// it at once. Needs root, no agent, and works inside a container on the pids seen there.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  freeze checkpoint 4242
      into the store, the process runs on
  freeze checkpoint 4242 --to /backup/one && freeze checkpoint 4242 --to /backup/two --parent /backup/one
      the second holds only what has changed since the first
  freeze checkpoint 4242 --max-pause 2ms --explain-pause
      leaves it alone if it cannot be done in a pause of 2 ms; else tells where the pause went
  freeze checkpoint 4242 --kill --json
      ends it once it is stored; prints {\"id\": …, \"pages\": …, \"pause_us\": …}
  freeze checkpoint 4242 --kill --cut 1
      its standard output is a pipe to somebody else, who sees the end of it
  freeze checkpoint 4242 --kill --also-freeze 4243
      two processes that are connected, and neither is a descendant of the other

With --kill, TCP connections to others are carried: until the restore nf_tables drops what the other ends send, so that
they wait. If there is to be no restore, `freeze release` lets them go.

A process that is watched with --on-crash restore is brought back when it is ended by --kill: `freeze unwatch` it first.")]
pub(super) struct CheckpointArgs {
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
    #[command(flatten)]
    ends: EndArgs,
    /// Compress pages with zstd at this level instead of storing them raw
    #[arg(long, value_name = "LEVEL", num_args = 0..=1, default_missing_value = "3", value_parser = clap::value_parser!(i32).range(1..=19))]
    compress: Option<i32>,
    /// List the parts of the pause and of the whole in microseconds
    #[arg(long)]
    explain_pause: bool,
    /// How long the processes may stand still at most: 5ms, 1s …
    #[arg(long, value_name = "TIME")]
    max_pause: Option<Interval>,
    /// What to do when the pause gets longer than that: give the checkpoint up and leave the processes alone (refused,
    /// status 3), or go on and say so
    #[arg(long, value_enum, default_value_t = WhenLonger::GiveUp, requires = "max_pause")]
    when_longer: WhenLonger,
    /// Give up, with everything put back, when the whole takes longer than this
    #[arg(long, value_name = "TIME")]
    within: Option<Interval>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum WhenLonger {
    GiveUp,
    GoOn,
}

/// What to do about pipes, sockets and the like whose other end is held by somebody else.
#[derive(Args, Debug)]
struct EndArgs {
    /// Freeze this process and its descendants too (can be repeated)
    #[arg(long, value_name = "PID")]
    also_freeze: Vec<i32>,
    /// Give the other end of this object up: once restored, the program finds it closed (EOF, EPIPE, ECONNRESET)
    ///
    /// OBJECT is a descriptor (PID:FD, or FD of the first process), what /proc/PID/fd shows (pipe:[123], socket:[5], a
    /// path), or "all". Can be repeated.
    #[arg(long, value_name = "OBJECT")]
    cut: Vec<Object>,
    /// Without --kill: record TCP connections to outside all the same; restored, they last if the other end still waits
    #[arg(long)]
    tcp_established: bool,
}

impl EndArgs {
    fn roots(&self, pid: i32) -> Vec<Pid> {
        std::iter::once(pid)
            .chain(self.also_freeze.iter().copied())
            .map(Pid)
            .collect()
    }

    fn ends(&self, pid: i32, kill: bool) -> Ends {
        Ends {
            kill,
            tcp: self.tcp_established,
            cut: self.cut.clone(),
            first: Some(Pid(pid)),
        }
    }
}

/// Put the processes of a checkpoint back together, with the same pids
///
/// Waits for the first process and ends with its status; signals sent to freeze are passed on to it. A file that the
/// program only read or mapped and that has changed is refused; one that it had open for writing and that has only
/// grown is kept, with a warning. If anything fails, what was built is taken down and the image stays as it was.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  freeze restore 01J5K3
      in the foreground; the beginning of an id is enough
  freeze restore /backup/two --detach --pidfile /run/program.pid
      returns as soon as the processes run
  freeze restore 01J5K3 --lazy --detach
      runs within milliseconds, however large it is; its memory comes in meanwhile
  freeze restore 01J5K3 --cgroup ignore
      in the control groups of the shell it is run from
  freeze restore 01J5K3 --attach 1=fd:1 --attach 2=/var/log/program.err
      its standard output is that of freeze, its standard error a file
  freeze restore 01J5K3 --rewind-files
      log files and the like are cut back to where they were; the tails are kept beside the image")]
pub(super) struct RestoreArgs {
    /// Directory or id (or the beginning of an id) of the checkpoint
    checkpoint: String,
    /// Return as soon as the processes run; a signal that the first one wants at its parent's death is not set then
    #[arg(long)]
    detach: bool,
    /// Let the program run at once, while its memory comes in: a page that it touches before comes first
    ///
    /// Private memory is filled by a process of freeze (with --detach one that stays behind until all is in); what is
    /// locked, shared or of a file, and what is less than 16 MiB, is filled before. If a page cannot be had, because the
    /// image is damaged or freeze is killed, the program is ended at once: it never sees anything else in its place. Until
    /// all is in it cannot be checkpointed, and the image is still needed.
    #[arg(long)]
    lazy: bool,
    /// After each MiB that comes in lazily, leave the disk to the program for this long
    #[arg(long, value_name = "TIME", requires = "lazy", hide = true)]
    lazy_rest: Option<Interval>,
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
    /// Into which control groups: `keep` makes again those they were in, `ignore` leaves them in that of freeze, or a
    /// path from the top of the hierarchies
    #[arg(long, value_name = "WHERE", default_value = "keep", value_parser = CgroupChoice::parse)]
    cgroup: CgroupChoice,
    /// Supply this object yourself: from a descriptor freeze was started with, or by opening a path (can be repeated)
    ///
    /// OBJECT is named as for `freeze checkpoint --cut`, with the pids and numbers of the time of the checkpoint. A path
    /// that is a unix socket is connected to.
    #[arg(long, value_name = "OBJECT=FD|PATH")]
    attach: Vec<Attach>,
}

/// Say whether a process and its descendants can be checkpointed, without stopping anything
///
/// Prints every reason against it, as `freeze checkpoint` would. Status 0 if there is none, else 3.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  freeze check 4242
      can be checkpointed: 3 processes, 7 threads
  freeze check 4242 --json | jq -r '.reasons[].why'")]
pub(super) struct CheckArgs {
    /// The process at the top of the tree
    pid: i32,
    /// Judge as for a checkpoint that ends the processes
    #[arg(long)]
    kill: bool,
    #[command(flatten)]
    ends: EndArgs,
}

/// What of this process and of the agent decides about others.
fn host(cli: &Cli) -> Result<Host> {
    Ok(Host {
        agent: Agent::pid(&cli.socket),
        ..Host::here()?
    })
}

pub(super) fn run_checkpoint(cli: &Cli, args: &CheckpointArgs) -> Done {
    must_be_root()?;
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
        roots: args.ends.roots(args.pid),
        place,
        parent,
        kill: args.kill,
        group: None,
        options: Options {
            form,
            ..Options::default()
        },
        track: false,
        ends: args.ends.ends(args.pid, args.kill),
        bounds: Bounds {
            within: args.within.map(|i| i.0),
            pause: args.max_pause.map(|i| i.0),
            go_on: matches!(args.when_longer, WhenLonger::GoOn),
        },
    };
    let host = host(cli)?;
    let done = checkpoint(&request, &host, &mut Trackings::new());
    let report = done.map_err(|e| alone(e, &request.roots, &host, &request.ends))?;
    value(&report, cli.json);
    if args.explain_pause && !cli.json {
        for (part, us) in &report.parts {
            line(&format_args!("  {part:<10} {us:>9} µs"));
        }
        line(&"of the pause:");
        for (part, ns) in &report.pause_parts {
            line(&format_args!("  {part:<20} {:>9.1} µs", *ns as f64 / 1e3));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What went wrong, with those who would have to be frozen too if there are several: each reason names but one.
fn alone(e: Error, roots: &[Pid], host: &Host, ends: &Ends) -> Trouble {
    let company = company(roots, host, ends, &e);
    match company.len() {
        0 | 1 => Trouble::Own(e),
        _ => Trouble::Alone(e, company),
    }
}

pub(super) fn run_restore(cli: &Cli, args: &RestoreArgs) -> Done {
    must_be_root()?;
    let back = match args.lazy && args.detach {
        true => match stay::split().on("fork", || "freeze")? {
            Side::Front(status) => return Ok(status),
            Side::Back(back) => Some(back),
        },
        false => None,
    };
    interrupt::install();
    let image = open_image(&cli.store, &args.checkpoint)?;
    let options = nest::Options {
        lazy: args.lazy,
        rest: args.lazy_rest.map(|i| i.0).unwrap_or_default(),
        rewind_files: args.rewind_files,
        accept_changed: args.accept_changed.iter().cloned().collect(),
        reattach_terminal: args.tty,
        leaves: args.detach,
        cgroup: args.cgroup.clone(),
        attach: args.attach.clone(),
        ..nest::Options::default()
    };
    let ready = prepare(image, options)?;
    let tell = |warnings: &[String]| warnings.iter().for_each(|w| warn(&format_args!("warning: {w}")));
    tell(ready.warnings());
    let told = ready.warnings().len();
    let (restored, filling) = ready.go()?;
    tell(&restored.warnings[told..]);
    let root = restored.roots.first().copied().unwrap_or(Pid(0));
    if let Some(file) = &args.pidfile {
        let written = std::fs::write(file, format!("{root}\n"));
        if let Err(e) = written {
            warn(&format_args!("warning: {}: {e}", file.display()));
        }
    }
    if args.detach {
        match cli.json {
            true => line(&json!(restored)),
            false => line(&format_args!(
                "restored pid {root}, {} process(es), {:.1} ms{}",
                restored.processes,
                restored.took_us as f64 / 1000.0,
                match restored.missing {
                    0 => String::new(),
                    missing => format!("; {} still to come in", bytes(missing)),
                }
            )),
        };
        let stderr = back.and_then(Back::done);
        return match filling.finish() {
            Ok(()) => Ok(ExitCode::SUCCESS),
            Err(e) => {
                outlived(root, &e, stderr);
                Ok(ExitCode::from(e.exit_code()))
            }
        };
    }
    let filled = std::thread::spawn(|| filling.finish());
    let ended = wait(root);
    // Others of the tree may live on, and miss pages.
    filled
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    match ended? {
        Ended::Code(code) => Ok(ExitCode::from(code as u8)),
        Ended::Signal(signal) => Ok(ExitCode::from((128 + signal) as u8)),
    }
}

/// Says that a program was ended after the command that restored it: where that said its errors, and to the kernel's log.
fn outlived(root: Pid, e: &crate::Error, stderr: Option<File>) {
    let text = format!("freeze: pid {root} was ended, its memory could not be filled: {e}\n");
    let log = File::options().write(true).open("/dev/kmsg").ok();
    for mut to in stderr.into_iter().chain(log) {
        let _ = to.write_all(text.as_bytes());
    }
}

pub(super) fn run_check(cli: &Cli, args: &CheckArgs) -> Done {
    let pid = Pid(args.pid);
    let host = host(cli)?;
    let (roots, ends) = (args.ends.roots(args.pid), args.ends.ends(args.pid, args.kill));
    let plan = verdict(&roots, &host, &ends).map_err(|e| alone(e, &roots, &host, &ends))?;
    let processes = plan.view.processes.len();
    let threads: usize = plan.view.each().map(|p| p.threads.len()).sum();
    match cli.json {
        true => line(&json!({ "pid": pid, "processes": processes, "threads": threads, "reasons": [] })),
        false => {
            let s = |n: usize, one: &str, many: &str| format!("{n} {}", if n == 1 { one } else { many });
            let all = s(processes, "process", "processes");
            line(&format_args!(
                "can be checkpointed: {all}, {}",
                s(threads, "thread", "threads")
            ))
        }
    };
    Ok(ExitCode::SUCCESS)
}

/// Let go of TCP connections that are held shut for a checkpoint that will not be restored
///
/// `freeze checkpoint --kill` keeps the other ends of connections waiting until the restore. If there is to be none, this
/// ends the wait: the other ends are told that the connection is reset as soon as they send something.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  freeze release 01J5K3
The connections are dropped by a table of nf_tables in the network namespace they were in, which is named after the
checkpoint: `nft delete table ip freeze-ID` does the same.")]
pub(super) struct ReleaseArgs {
    /// Directory or id (or the beginning of an id) of the checkpoint
    checkpoint: String,
}

pub(super) fn run_release(cli: &Cli, args: &ReleaseArgs) -> Done {
    must_be_root()?;
    let image = open_image(&cli.store, &args.checkpoint)?;
    let released = tcp::release(&image.id())?;
    match cli.json {
        true => line(&json!({ "id": image.id(), "released": released })),
        false if released => line(&format_args!(
            "{}: its connections are not held any more",
            image.id()
        )),
        false => line(&format_args!("{}: none of its connections was held", image.id())),
    };
    Ok(ExitCode::SUCCESS)
}
