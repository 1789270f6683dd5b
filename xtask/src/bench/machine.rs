//! What the figures were measured on, and when.

use crate::output;
use serde_json::{Value, json};
use std::process::Command;

#[derive(Clone, Debug)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) memory_mib: u64,
    pub(crate) kernel: String,
    pub(crate) system: String,
    /// The load average of the last minute when the bench began: a quiet machine has next to none.
    pub(crate) load: String,
    pub(crate) date: String,
    /// The commit of the sources.
    pub(crate) commit: String,
}

/// Whether a process with so many MiB, its image and what comes with both fit into memory.
pub(crate) fn has_room_for(mib: u64) -> bool {
    memory_kib("MemAvailable") >> 10 > 3 * mib
}

impl Machine {
    pub(crate) fn look() -> Machine {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let value = |text: &str, name: &str, sign: char| {
            let line = text.lines().find(|line| line.starts_with(name));
            line.and_then(|line| Some(line.split_once(sign)?.1.trim().trim_matches('"').to_string()))
                .unwrap_or_else(|| "unknown".into())
        };
        let said = |program: &str, args: &[&str]| {
            let text = output(Command::new(program).args(args).current_dir(crate::root()));
            text.map_or_else(|_| "unknown".into(), |(_, text)| text.trim().to_string())
        };
        Machine {
            cpu: value(&read("/proc/cpuinfo"), "model name", ':'),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_mib: memory_kib("MemTotal") >> 10,
            kernel: read("/proc/sys/kernel/osrelease").trim().into(),
            system: value(&read("/etc/os-release"), "PRETTY_NAME", '='),
            load: read("/proc/loadavg").split(' ').next().unwrap_or_default().into(),
            date: said("date", &["--utc", "+%Y-%m-%d %H:%M UTC"]),
            commit: said("git", &["describe", "--always", "--dirty"]),
        }
    }

    pub(crate) fn sentence(&self) -> String {
        format!(
            "{} ({} cores, {} MiB of memory), {}, Linux {}; commit {}; {}; load average when it began: {}.",
            self.cpu,
            self.cores,
            self.memory_mib,
            self.system,
            self.kernel,
            self.commit,
            self.date,
            self.load
        )
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "cpu": self.cpu,
            "cores": self.cores,
            "memory_mib": self.memory_mib,
            "kernel": self.kernel,
            "system": self.system,
            "load_average": self.load,
            "date": self.date,
            "commit": self.commit,
        })
    }
}

/// A line of /proc/meminfo, in KiB.
pub(crate) fn memory_kib(name: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|line| line.split_ascii_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}
