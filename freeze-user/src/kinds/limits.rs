//! Resource limits and what the kernel weighs a process by: rlimits, oom_score_adj, coredump_filter.

use super::{Asks, ProcessKind, Source, Stage};
use crate::error::{Blocker, Context, Result};
use crate::ids::Pid;
use crate::nest::space::Kind;
use crate::nest::{Nest, Options};
use crate::observe::looks;
use crate::observe::view::{ProcessView, View};
use crate::sys;
use crate::tracee::tape::Tape;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};

#[derive(Debug)]
pub struct Limits;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Soft and hard limit by resource number; the largest number is "unlimited".
    pub rlimits: Vec<(u64, u64)>,
    pub oom_score_adj: i32,
    /// Bits of core(5).
    pub coredump_filter: u64,
    /// Of the leader of a session, the nice value of its autogroup (sched(7)).
    #[serde(default)]
    pub autogroup_nice: Option<i32>,
}

/// The nice value of a session's autogroup, told of its leader.
fn autogroup_nice(pid: Pid) -> Option<i32> {
    let sid = nix::unistd::getsid(Some(pid.nix())).ok()?;
    let text = looks::string(format!("/proc/{pid}/autogroup")).ok()?;
    let nice = text.trim().rsplit_once(' ')?.1.parse().ok()?;
    (sid.as_raw() == pid.0).then_some(nice)
}

/// RLIMIT_CPU … RLIMIT_RTTIME.
const RESOURCES: u64 = 16;

impl Asks for Limits {
    type Places = u64;
    const EACH: bool = false;

    fn ask(t: &mut Tape<'_>, _of: &ProcessView) -> u64 {
        let at = t.space(RESOURCES as usize * 16);
        for n in 0..RESOURCES {
            t.call("prlimit64", libc::SYS_prlimit64, &[0, n, 0, at + n * 16]);
        }
        at
    }
}

impl ProcessKind for Limits {
    const TAG: &'static str = "limits";
    const VERSION: u16 = 1;
    const ABOUT: &'static str = "all resource limits, oom_score_adj, coredump_filter, autogroup nice";
    const STAGE: Stage = Stage::Limits;
    type Record = Record;

    fn verdict(_: &ProcessView, _: &View, _: &mut Vec<Blocker>) {}

    fn collect(from: &mut Source<'_>) -> Result<Record> {
        let (pid, by) = (from.process.pid(), from.process.view.speaker);
        // Asked from inside: from outside another uid's limits want CAP_SYS_RESOURCE.
        let (ran, at) = from.answers::<Limits>()?;
        let rlimits = (0..RESOURCES)
            .map(|n| (ran.word(at + n * 16), ran.word(at + n * 16 + 8)))
            .collect();
        let number = |name: &str| {
            let path = format!("/proc/{by}/{name}");
            looks::string(&path).on("read", || path)
        };
        Ok(Record {
            rlimits,
            oom_score_adj: number("oom_score_adj")?.trim().parse().unwrap_or(0),
            coredump_filter: u64::from_str_radix(number("coredump_filter")?.trim(), 16).unwrap_or(0x33),
            autogroup_nice: autogroup_nice(pid),
        })
    }

    fn precheck(record: &Record, pid: Pid, _: &Options, out: &mut Vec<Blocker>) {
        if caps::has(caps::SYS_RESOURCE) {
            return;
        }
        for (n, (_, hard)) in record.rlimits.iter().enumerate() {
            let Some((_, own)) = own_limit(n) else { continue };
            if *hard > own {
                out.push(
                    Blocker::of(pid, format!("limit {}", name(n)), format!("hard limit {hard}"))
                        .why(format!(
                            "freeze's own is {own}, and raising it needs CAP_SYS_RESOURCE"
                        ))
                        .remedy("raise it in the shell that starts freeze (ulimit -H)"),
                );
            }
        }
    }

    fn restore(record: &Record, pid: Pid, nest: &mut Nest) -> Result<()> {
        let write = |name: &str, text: String| {
            let path = format!("/proc/{pid}/{name}");
            // Lowering a score below the inherited one wants CAP_SYS_RESOURCE; the same value never does.
            match std::fs::read_to_string(&path) {
                Ok(now) if now.trim() == text => Ok(()),
                _ => std::fs::write(&path, &text).on("write", || path),
            }
        };
        if let Err(e) = write("oom_score_adj", record.oom_score_adj.to_string()) {
            nest.warnings.push(format!(
                "pid {pid}: oom_score_adj {} could not be set: {e}",
                record.oom_score_adj
            ));
        }
        std::fs::write(
            format!("/proc/{pid}/coredump_filter"),
            format!("{:#x}", record.coredump_filter),
        )
        .on("write", || format!("/proc/{pid}/coredump_filter"))?;
        if let Some(nice) = record.autogroup_nice
            && autogroup_nice(pid).is_some_and(|now| now != nice)
            && let Err(e) = std::fs::write(format!("/proc/{pid}/autogroup"), nice.to_string())
        {
            nest.warnings.push(format!(
                "pid {pid}: nice {nice} of its autogroup could not be set: {e}"
            ));
        }
        let all = record.rlimits.iter().enumerate();
        let mut own: Vec<(usize, &(u64, u64))> = all.collect();
        own.retain(|(n, _)| *n as u32 != libc::RLIMIT_SIGPENDING);
        if let Some((soft, hard)) = record.rlimits.get(libc::RLIMIT_SIGPENDING as usize) {
            // What is queued already may be more than it grants, and so may timers: it follows when they are there.
            nest.state::<Pending>().0.push((pid, *soft, *hard));
            let _ = sys::set_rlimit(
                pid,
                libc::RLIMIT_SIGPENDING,
                libc::RLIM_INFINITY,
                libc::RLIM_INFINITY,
            );
        }
        if nest.membership(pid).of(Kind::User) != 0 {
            // Its rights in its own user namespace do not reach to raising a limit. Freeze may have none over it, and need
            // none for what it has been born with, or for less.
            let mut left = Vec::new();
            for (n, limit) in own {
                match sys::set_rlimit(pid, n as u32, limit.0, limit.1) {
                    Err(Errno::EPERM) => left.push((n, limit)),
                    set => set.on("prlimit64", || format!("limit {} of pid {pid}", name(n)))?,
                }
            }
            own = left;
        }
        nest.process(pid)?.tape(|t| {
            for (n, (soft, hard)) in own {
                let mut bytes = soft.to_ne_bytes().to_vec();
                bytes.extend_from_slice(&hard.to_ne_bytes());
                let at = t.bytes(&bytes);
                t.call("prlimit64", libc::SYS_prlimit64, &[0, n as u64, at, 0]);
            }
        })?;
        Ok(())
    }
}

/// Limits on queued signals that are yet to be set.
#[derive(Debug, Default)]
struct Pending(Vec<(Pid, u64, u64)>);

/// Sets what has to wait until all signals are queued and all timers made.
pub fn settle(nest: &mut Nest) -> Result<()> {
    for (pid, soft, hard) in std::mem::take(&mut nest.state::<Pending>().0) {
        let set = sys::set_rlimit(pid, libc::RLIMIT_SIGPENDING, soft, hard);
        if set == Err(Errno::EPERM) {
            nest.process(pid)?.tape(|t| {
                let at = t.bytes(&[soft.to_ne_bytes(), hard.to_ne_bytes()].concat());
                t.call(
                    "prlimit64",
                    libc::SYS_prlimit64,
                    &[0, libc::RLIMIT_SIGPENDING.into(), at, 0],
                );
            })?;
            continue;
        }
        set.on("prlimit64", || format!("limit sigpending of pid {pid}"))?;
    }
    Ok(())
}

fn name(resource: usize) -> &'static str {
    const NAMES: [&str; RESOURCES as usize] = [
        "cpu",
        "fsize",
        "data",
        "stack",
        "core",
        "rss",
        "nproc",
        "nofile",
        "memlock",
        "as",
        "locks",
        "sigpending",
        "msgqueue",
        "nice",
        "rtprio",
        "rttime",
    ];
    NAMES.get(resource).copied().unwrap_or("unknown")
}

/// Soft and hard limit of freeze itself.
fn own_limit(resource: usize) -> Option<(u64, u64)> {
    crate::sys::own_rlimit(resource as u32).ok()
}

/// Capabilities of freeze itself, by number (capabilities(7)).
pub mod caps {
    pub const SYS_ADMIN: u32 = 21;
    pub const SYS_RESOURCE: u32 = 24;

    /// Whether freeze has this capability in effect.
    pub fn has(capability: u32) -> bool {
        let text = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
        crate::proc::status::Status::parse(&text).is_some_and(|s| s.cap_eff & 1 << capability != 0)
    }
}
