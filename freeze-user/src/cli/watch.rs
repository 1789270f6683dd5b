//! `freeze watch`, `unwatch`, `status` and `map`: what is asked of the agent.

use super::Cli;
use super::output::{Done, bytes, either, line, value};
use super::start::Started;
use crate::agent::client::Agent;
use crate::agent::policy::{Interval, OnCrash, Policy};
use crate::agent::wire::{Event, Group, Pauses, What, now_ms};
use crate::error::{Blocker, Error, Result};
use crate::ids::Pid;
use crate::observe::MapView;
use crate::observe::view::{all_pids, command_of, parents};
use crate::store::utc;
use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Have the agent checkpoint a process and its descendants again and again
///
/// The process is named by its pid, or by --name if only one of that name runs, or it is started: what follows -- is
/// run in a session of its own, without input, its output thrown away or in --log FILE. A process that cannot be
/// checkpointed is refused with all reasons. Root may watch every process, others their own.
///
/// With --on-crash restore the group is brought back from its last checkpoint when its first process ends by a signal
/// other than TERM, INT and HUP, or with a code other than 0, or when nobody could see how; files that it was writing
/// are cut back to the checkpoint, their tails kept. If it dies again soon, the agent waits longer and longer (1 s, 2 s,
/// 4 s …) and gives up after eight times. Any other end of the process ends the watch.
///
/// A checkpoint stores what was written since the one before, and what older ones still have to give is kept with them:
/// on disk all take two to three times the memory of the group, and what the kept ones wrote.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  freeze watch 4242
      one checkpoint a second, the last five kept
  freeze watch --name redis-server --every 200ms --keep 10 --on-crash restore
  freeze watch --on-crash restore --log /tmp/log -- python3 train.py --epochs 90")]
pub(super) struct WatchArgs {
    /// The process at the top of the tree
    #[arg(conflicts_with = "command", required_unless_present_any = ["name", "command"])]
    pid: Option<i32>,
    /// The name of the group; without a pid or command, also that of the process to look for
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Time from one checkpoint to the next: 200ms, 1s, 5m …
    #[arg(long, value_name = "TIME", default_value_t = Interval(Policy::DEFAULT.every()))]
    every: Interval,
    /// How many checkpoints to keep, each of which can be restored
    #[arg(long, value_name = "N", default_value_t = Policy::DEFAULT.keep)]
    keep: usize,
    /// What to do when it dies of a crash
    #[arg(long, value_enum, default_value_t = Choice::Leave)]
    on_crash: Choice,
    /// Where the output of COMMAND goes, appended
    #[arg(long, value_name = "FILE", requires = "command", conflicts_with = "pid")]
    log: Option<PathBuf>,
    /// A program to start, with its arguments
    #[arg(last = true)]
    command: Vec<OsString>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Choice {
    Leave,
    Restore,
}

/// End a watch; the processes run on and the checkpoints stay
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  freeze unwatch redis-server
  freeze unwatch 4242")]
pub(super) struct UnwatchArgs {
    /// The group's name, or the pid of its first process
    #[arg(value_name = "NAME|PID")]
    target: String,
}

/// Show what the agent watches
///
/// With --json an object {\"groups\": [{\"name\", \"root\", \"state\", \"last\": {\"id\", \"pages\", \"bytes\",
/// \"pause_us\", …}, …}]}. With --follow as well, a line for every event: {\"event\": \"checkpoint\" | \"watched\" |
/// \"unwatched\" | \"failed\" | \"crashed\" | \"restored\" | \"gave_up\" | \"ended\", \"group\", …}, after a first
/// one with {\"event\": \"status\", \"groups\": […]}.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  freeze status
  freeze status --json | jq '.groups[].last.pause_us'
  freeze status --follow --json | jq -c 'select(.event == \"crashed\")'")]
pub(super) struct StatusArgs {
    /// Go on with a line for everything that happens, until interrupted
    #[arg(long, short)]
    follow: bool,
}

/// Show what hangs on what: processes, threads, descriptors, pipes, sockets, shared memory
///
/// Of a group that the agent watches, from the map it keeps by kernel events; of any other process, from /proc.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  freeze map 4242
  freeze map redis-server --audit
      what the agent's map and /proc do not agree on; nothing, if all is well (status 1 otherwise)")]
pub(super) struct MapArgs {
    /// The group's name, or the pid of a process
    #[arg(value_name = "NAME|PID")]
    target: String,
    /// Compare the agent's map with /proc
    #[arg(long)]
    audit: bool,
}

pub(super) fn run_watch(cli: &Cli, args: &WatchArgs) -> Done {
    // Before anything is started: without an agent there is no watching.
    let mut agent = Agent::connect(&cli.socket)?;
    let started = match args.command.as_slice() {
        [] => None,
        command => Some(Started::start(command, args.log.as_deref())?),
    };
    let pid = match (&started, args.pid, &args.name) {
        (Some(started), ..) => started.pid(),
        (None, Some(pid), _) => Pid(pid),
        (None, None, Some(name)) => by_name(name)?,
        (None, None, None) => {
            return Err(Blocker::at("freeze watch", "")
                .why("nothing to watch was named")
                .refuse()
                .into());
        }
    };
    let on_crash = match args.on_crash {
        Choice::Leave => OnCrash::Leave,
        Choice::Restore => OnCrash::Restore,
    };
    let mut parameters = json!({
        "pid": pid,
        "every_ms": args.every.0.as_millis() as u64,
        "keep": args.keep,
        "on_crash": on_crash,
    });
    if let Some(name) = &args.name {
        parameters["name"] = json!(name);
    }
    let answer = agent.call("Watch", parameters)??;
    if let Some(started) = started {
        started.keep();
    }
    let group = group(&answer)?;
    match cli.json {
        true => line(&json!(group)),
        false => line(&format_args!(
            "{}: pid {} is watched, a checkpoint every {}, {} kept, on a crash: {}",
            group.name,
            group.root,
            Interval(Duration::from_millis(group.every_ms)),
            group.keep,
            group.on_crash
        )),
    };
    Ok(ExitCode::SUCCESS)
}

pub(super) fn run_unwatch(cli: &Cli, args: &UnwatchArgs) -> Done {
    let answer = Agent::connect(&cli.socket)?.call("Unwatch", json!({ "target": args.target }))??;
    let group = group(&answer)?;
    match cli.json {
        true => line(&json!(group)),
        false => line(&format_args!(
            "{}: pid {} is no longer watched, {} checkpoints made, last: {}",
            group.name,
            group.root,
            group.checkpoints,
            group.last.map_or("none".into(), |c| c.id)
        )),
    };
    Ok(ExitCode::SUCCESS)
}

pub(super) fn run_status(cli: &Cli, args: &StatusArgs) -> Done {
    let mut agent = Agent::connect(&cli.socket)?;
    if !args.follow {
        let answer = agent.call("Status", json!({}))??;
        match cli.json {
            true => line(&answer),
            false => line(&table(&groups(&answer)?).trim_end()),
        };
        return Ok(ExitCode::SUCCESS);
    }
    let mut trouble = None;
    agent.follow("Status", json!({}), |answer| {
        let shown = match show(&answer, cli.json) {
            Ok(text) => text,
            Err(e) => {
                trouble = Some(e);
                return false;
            }
        };
        line(&shown.trim_end())
    })??;
    match trouble {
        Some(e) => Err(e.into()),
        None => Ok(ExitCode::SUCCESS),
    }
}

/// One reply of many.
fn show(answer: &Value, as_json: bool) -> Result<String> {
    let Some(event) = answer.get("event").filter(|e| !e.is_null()) else {
        return Ok(match as_json {
            true => json!({ "event": "status", "groups": answer["groups"] }).to_string(),
            false => table(&groups(answer)?),
        });
    };
    if as_json {
        return Ok(event.to_string());
    }
    let event: Event = serde_json::from_value(event.clone()).map_err(|e| foreign(&e))?;
    let what = match event.event {
        What::Checkpoint => "",
        What::Watched => "watched",
        What::Unwatched => "no longer watched",
        What::Failed => "no checkpoint",
        What::Crashed => "crashed",
        What::Restored => "restored",
        What::GaveUp => "given up",
        What::Ended => "ended",
    };
    let mut text = format!("{}  {}  {what}", utc(event.at_ms), event.group);
    if let Some(c) = &event.checkpoint {
        let pause = c.pause_us as f64 / 1000.0;
        text += &format!(
            "{}  {} pages ({} new)  {}  pause {pause:.2} ms",
            c.id,
            c.pages,
            c.own_pages,
            bytes(c.bytes)
        );
    }
    if let Some(message) = &event.message {
        text += &format!(": {message}");
    }
    Ok(text)
}

pub(super) fn run_map(cli: &Cli, args: &MapArgs) -> Done {
    let pid = args.target.parse().ok().map(Pid);
    let asked = Agent::connect(&cli.socket).and_then(|mut agent| {
        let method = if args.audit { "Audit" } else { "Map" };
        agent.call(method, json!({ "target": args.target }))
    });
    match (asked, pid) {
        (Ok(Ok(answer)), _) if args.audit => {
            either(&answer, "differences", cli.json);
            let same = answer["differences"].as_array().is_some_and(Vec::is_empty);
            Ok(if same {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            })
        }
        (Ok(Ok(answer)), _) => {
            either(&answer, "map", cli.json);
            Ok(ExitCode::SUCCESS)
        }
        // Nobody watches it: /proc knows it too.
        (Ok(Err(failure)), Some(pid)) if failure.kind() == "not_watched" && !args.audit => {
            from_proc(cli, pid)
        }
        (Err(_), Some(pid)) if !args.audit => from_proc(cli, pid),
        (Ok(Err(failure)), _) => Err(failure.into()),
        (Err(e), _) => Err(e.into()),
    }
}

fn from_proc(cli: &Cli, pid: Pid) -> Done {
    let map = MapView::from_proc(pid).map_err(|e| match e {
        Error::Kernel {
            errno: nix::errno::Errno::ESRCH,
            ..
        } => no_such(pid),
        e => e,
    })?;
    value(&map, cli.json);
    Ok(ExitCode::SUCCESS)
}

fn no_such(pid: Pid) -> Error {
    Blocker::of(pid, "", "")
        .why("there is no such process")
        .remedy("check the pid")
        .refuse()
}

/// The one process of a name, with its descendants of the same name.
fn by_name(name: &str) -> Result<Pid> {
    let own = std::process::id() as i32;
    let found: Vec<Pid> = all_pids()?
        .into_iter()
        .filter(|pid| pid.0 != own && is_named(*pid, name))
        .collect();
    let parents: BTreeMap<Pid, Pid> = parents()?.into_iter().collect();
    let below_another = |pid: &Pid| {
        let mut at = *pid;
        // A process is not its own ancestor: this ends at pid 0.
        while let Some(parent) = parents.get(&at).copied().filter(|p| p.0 > 0 && *p != at) {
            if found.contains(&parent) {
                return true;
            }
            at = parent;
        }
        false
    };
    let tops: Vec<Pid> = found.iter().copied().filter(|pid| !below_another(pid)).collect();
    match tops.as_slice() {
        [one] => Ok(*one),
        [] => Err(Blocker::at(name, "")
            .why("no process of this name runs")
            .remedy("name it by its pid")
            .refuse()),
        several => {
            let reason = |pid: &Pid| {
                Blocker::of(*pid, "", command_of(*pid))
                    .why(format!("one of {} processes named {name}", several.len()))
                    .remedy("name one by its pid")
            };
            Err(Error::Refused(several.iter().map(reason).collect()))
        }
    }
}

/// Whether a process goes by this name: as the kernel has it (15 bytes), or as its first argument ends.
fn is_named(pid: Pid, name: &str) -> bool {
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let first = command.split(|b| *b == 0).next().unwrap_or_default();
    if first.is_empty() {
        // A kernel thread or a zombie.
        return false;
    }
    let base = first.rsplit(|b| *b == b'/').next().unwrap_or_default();
    let comm = std::fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    base == name.as_bytes() || comm.strip_suffix(b"\n") == Some(name.as_bytes())
}

fn foreign(e: &serde_json::Error) -> Error {
    Error::Image {
        file: "the agent's reply".into(),
        offset: None,
        expected: "what this version of freeze knows".into(),
        found: e.to_string(),
    }
}

fn group(answer: &Value) -> Result<Group> {
    serde_json::from_value(answer["group"].clone()).map_err(|e| foreign(&e))
}

fn groups(answer: &Value) -> Result<Vec<Group>> {
    serde_json::from_value(answer["groups"].clone()).map_err(|e| foreign(&e))
}

/// The groups for people.
fn table(groups: &[Group]) -> String {
    if groups.is_empty() {
        return "nothing is watched".into();
    }
    let width = groups.iter().map(|g| g.name.len()).max().unwrap_or(0).max(4);
    let mut out = format!(
        "{:width$}  {:>8}  {:9}  {:>6}  {:>7}  LAST CHECKPOINT\n",
        "NAME", "PID", "STATE", "EVERY", "MADE"
    );
    for g in groups {
        let every = Interval(Duration::from_millis(g.every_ms)).to_string();
        out += &format!(
            "{:width$}  {:>8}  {:9}  {every:>6}  {:>7}  ",
            g.name, g.root, g.state, g.checkpoints
        );
        match &g.last {
            Some(c) => {
                let age = now_ms().saturating_sub(c.at_ms) as f64 / 1000.0;
                let pause = c.pause_us as f64 / 1000.0;
                out += &format!(
                    "{}  {age:.1} s ago, {}, pause {pause:.2} ms\n",
                    c.id,
                    bytes(c.bytes)
                );
            }
            None => out += "none yet\n",
        }
        out += &histogram(&g.pauses, width);
        if let Some(problem) = &g.problem {
            out += &format!("{:width$}  {}\n", "", problem.replace('\n', "\n      "));
        }
    }
    out
}

/// How many pauses were how long, and what they were spent on.
fn histogram(pauses: &Pauses, width: usize) -> String {
    let count: u64 = pauses.counts.iter().sum();
    if count == 0 {
        return String::new();
    }
    let buckets: Vec<String> = pauses
        .buckets()
        .map(|(limit, n)| match limit {
            Some(us) if us < 1000 => format!("{n} up to {us} µs"),
            Some(us) => format!("{n} up to {:.1} ms", us as f64 / 1000.0),
            None => format!("{n} longer"),
        })
        .collect();
    let longest = pauses.longest_us as f64 / 1000.0;
    let mut out = format!(
        "{:width$}  pauses: {}; longest {longest:.2} ms\n",
        "",
        buckets.join(", ")
    );
    let mut parts: Vec<(&String, &u64)> = pauses.parts_ns.iter().collect();
    parts.sort_by_key(|(_, ns)| std::cmp::Reverse(**ns));
    let mean = |ns: u64| ns as f64 / 1000.0 / count as f64;
    let parts: Vec<String> = parts
        .iter()
        .take(5)
        .map(|(p, ns)| format!("{p} {:.0} µs", mean(**ns)))
        .collect();
    out += &format!("{:width$}  on average: {}\n", "", parts.join(", "));
    let means: Vec<String> = pauses.means.iter().map(|(m, n)| format!("{m} {n}")).collect();
    if !means.is_empty() {
        out += &format!("{:width$}  written pages by: {}\n", "", means.join(", "));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_found_by_its_name() {
        let child = std::process::Command::new("/bin/sleep").arg("300").spawn();
        let mut child = child.unwrap();
        let pid = Pid(child.id() as i32);
        // The kernel lets the parent go on a moment before the new program is set up.
        let end = std::time::Instant::now() + Duration::from_secs(10);
        while !is_named(pid, "sleep") {
            assert!(std::time::Instant::now() < end);
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(!is_named(pid, "slee") && !is_named(pid, ""));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!is_named(pid, "sleep"));
        let e = by_name("no process has this name").unwrap_err();
        assert_eq!(e.exit_code(), 3);
    }
}
