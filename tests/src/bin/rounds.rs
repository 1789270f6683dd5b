//! Checkpoints a process again and again by the library, as the agent does, and tells of each in a line of JSON.
//!
//! `rounds PID STORE EVERY_MS COUNT`. Beside the library's own report a line holds `at_ms`, the end in
//! milliseconds since 1970, `cpu_us`, the processor time of this process since its start, and `means`, how often written
//! pages were found by which means.

use anyhow::{Context, Result};
use freeze_user::checkpoint::{Bounds, Place, Request, checkpoint};
use freeze_user::ids::Pid;
use freeze_user::plan::Host;
use freeze_user::precopy::{SharedLog, Trackings};
use freeze_user::store::{Opened, Options, Store};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [pid, store, every, count] = args.as_slice() else {
        anyhow::bail!("usage: rounds PID STORE EVERY_MS COUNT");
    };
    let pid = Pid(pid.parse().context("PID")?);
    let every = Duration::from_millis(every.parse().context("EVERY_MS")?);
    let count: u32 = count.parse().context("COUNT")?;
    freeze_user::sys::interrupt::install();
    let store = Store::open(Path::new(store))?;
    let (host, mut trackings) = (Host::here()?, Trackings::new());
    trackings.log = Some(SharedLog::default());
    let mut parent: Option<Opened> = None;
    let mut next = Instant::now();
    for _ in 0..count {
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
        next += every;
        let request = Request {
            roots: vec![pid],
            place: Place::Store(store.clone()),
            parent: parent.take(),
            kill: false,
            group: None,
            options: Options::default(),
            track: true,
            ends: Default::default(),
            bounds: Bounds::default(),
        };
        let report = checkpoint(&request, &host, &mut trackings)?;
        parent = Some(Opened::open(&report.path)?);
        let usage = getrusage(UsageWho::RUSAGE_SELF)?;
        let cpu = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
        let mut line = serde_json::to_value(&report)?;
        line["at_ms"] = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)?
            .as_millis()
            .try_into()
            .unwrap_or(u64::MAX)
            .into();
        line["cpu_us"] = cpu.into();
        line["means"] = serde_json::to_value(&trackings.means)?;
        println!("{line}");
    }
    Ok(())
}
