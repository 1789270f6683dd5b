//! `freeze list`, `show`, `verify` and `prune`: looking after the images.

use super::output::{Done, Trouble, line, progress, report, value, warn};
use super::{Cli, open_image};
use crate::error::Result;
use crate::kinds::tcp;
use crate::store::{Listed, Store, Verified};
use clap::Args;
use serde_json::json;
use std::process::ExitCode;

/// List all checkpoints in the store, the newest last
///
/// A line each: id, time, processes, how much memory it stands for and how much of it lies here, how many checkpoints
/// reading it takes, the pause, the group it was made for, the command. Damaged ones are listed with what is wrong.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  freeze list --group redis
  freeze list --json | jq -r '.[-1].id'
      the newest checkpoint")]
pub(super) struct ListArgs {
    /// Only those made for this watched group
    #[arg(long, value_name = "NAME")]
    group: Option<String>,
}

/// Show everything that is in a checkpoint
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  freeze show 01J5K3
  freeze show /backup/one --json | jq '.records[] | select(.tag == \"pipe\")'")]
pub(super) struct ShowArgs {
    /// Directory or id (or the beginning of an id) of the checkpoint
    checkpoint: String,
}

/// Read a checkpoint, or all of them, and compare every checksum
///
/// Status 6 if anything is damaged, with the file and the offset.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  freeze verify 01J5K3
  freeze verify all || echo 'the disk lies'")]
pub(super) struct VerifyArgs {
    /// Directory or id (or the beginning of an id) of the checkpoint, or `all`
    checkpoint: String,
}

/// Remove old checkpoints
///
/// Keeps the newest of each group (those without a group count as one), and those whose pages the kept ones need.
/// What is being restored or built upon is left alone, and so is what is damaged: that is for you to decide.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  freeze prune --keep 3
  freeze prune --group redis --keep 1")]
pub(super) struct PruneArgs {
    /// How many to keep of each group
    #[arg(long, value_name = "N", default_value_t = 5)]
    keep: usize,
    /// Only this group's
    #[arg(long, value_name = "NAME")]
    group: Option<String>,
}

pub(super) fn run_list(cli: &Cli, args: &ListArgs) -> Done {
    let mut list = Store::open(&cli.store)?.list()?;
    if let Some(group) = &args.group {
        let of_group = |l: &Listed| {
            l.manifest
                .as_ref()
                .is_some_and(|m| m.about.group.as_ref() == Some(group))
        };
        list.retain(of_group);
    }
    if cli.json {
        line(&json!(list));
        return Ok(ExitCode::SUCCESS);
    }
    for listed in &list {
        if !line(listed) {
            break;
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn run_show(cli: &Cli, args: &ShowArgs) -> Done {
    value(&open_image(&cli.store, &args.checkpoint)?.show(), cli.json);
    Ok(ExitCode::SUCCESS)
}

pub(super) fn run_verify(cli: &Cli, args: &VerifyArgs) -> Done {
    if args.checkpoint != "all" {
        let image = open_image(&cli.store, &args.checkpoint)?;
        progress(&format_args!("reading {}", image.path().display()));
        let verified = image.verify()?;
        match cli.json {
            true => line(&json!({ "id": image.id(), "path": image.path(), "verified": verified })),
            false => line(&format_args!("{}  {verified}", image.id())),
        };
        return Ok(ExitCode::SUCCESS);
    }
    let store = Store::open(&cli.store)?;
    progress(&format_args!("reading everything in {}", store.dir().display()));
    let found = store.verify_all()?;
    let code = found
        .iter()
        .find_map(|(_, r)| r.as_ref().err())
        .map_or(0, |e| e.exit_code());
    if cli.json {
        let row = |(l, r): &(Listed, Result<Verified>)| match r {
            Ok(v) => json!({ "id": l.id, "path": l.path, "verified": v }),
            Err(e) => json!({ "id": l.id, "path": l.path, "error": e.kind(), "message": e.to_string() }),
        };
        line(&json!(found.iter().map(row).collect::<Vec<_>>()));
        return Ok(ExitCode::from(code));
    }
    for (listed, result) in found {
        match result {
            Ok(verified) => drop(line(&format_args!("{}  {verified}", listed.id))),
            Err(e) => drop(report(&Trouble::Own(e), false)),
        }
    }
    Ok(ExitCode::from(code))
}

pub(super) fn run_prune(cli: &Cli, args: &PruneArgs) -> Done {
    let pruned = Store::open(&cli.store)?.prune(args.keep, args.group.as_deref())?;
    value(&pruned, cli.json);
    // What cannot be restored any more must not keep its connections waiting either.
    for removed in &pruned.removed {
        if let Err(e) = tcp::release(&removed.id) {
            warn(&format_args!("warning: {}: {e}", removed.id));
        }
    }
    Ok(ExitCode::SUCCESS)
}
