//! Signals: the dispositions of all 64, and what is queued for the process and for each thread.

use super::pipe::Bytes;
use super::{Asks, ProcessKind, Source, Stage};
use crate::error::{Blocker, Result};
use crate::ids::Pid;
use crate::nest::{Nest, Options};
use crate::observe::view::{ProcessView, View};
use crate::tracee::tape::Tape;
use serde::{Deserialize, Serialize};

#[derive(Debug)]
pub struct Signals;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Signals 1 to 64 without SIGKILL and SIGSTOP.
    pub actions: Vec<Action>,
}

/// `struct sigaction` as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Action {
    pub signal: i32,
    /// Address, 0 for the default, 1 for ignored.
    pub handler: u64,
    pub flags: u64,
    pub restorer: u64,
    pub mask: u64,
}

fn changeable() -> impl Iterator<Item = i32> {
    (1..=64).filter(|s| *s != libc::SIGKILL && *s != libc::SIGSTOP)
}

impl Asks for Signals {
    type Places = u64;
    const EACH: bool = false;

    fn ask(t: &mut Tape<'_>, _of: &ProcessView) -> u64 {
        let at = t.space(64 * 32);
        for signal in changeable() {
            let slot = at + (signal as u64 - 1) * 32;
            let args = [signal as u64, 0, slot, 8];
            t.call("rt_sigaction", libc::SYS_rt_sigaction, &args);
        }
        at
    }
}

impl ProcessKind for Signals {
    const TAG: &'static str = "signals";
    const VERSION: u16 = 1;
    const ABOUT: &'static str = "signal dispositions with flags, masks and restorers";
    const STAGE: Stage = Stage::Signals;
    type Record = Record;

    fn verdict(_: &ProcessView, _: &View, _: &mut Vec<Blocker>) {}

    fn collect(from: &mut Source<'_>) -> Result<Record> {
        let (ran, at) = from.answers::<Signals>()?;
        let action = |signal: i32| {
            let slot = at + (signal as u64 - 1) * 32;
            Action {
                signal,
                handler: ran.word(slot),
                flags: ran.word(slot + 8),
                restorer: ran.word(slot + 16),
                mask: ran.word(slot + 24),
            }
        };
        Ok(Record {
            actions: changeable().map(action).collect(),
        })
    }

    fn precheck(_: &Record, _: Pid, _: &Options, _: &mut Vec<Blocker>) {}

    fn restore(record: &Record, pid: Pid, nest: &mut Nest) -> Result<()> {
        nest.process(pid)?.tape(|t| {
            // Ignoring them once flushes the SIGCHLDs of interim processes that freeze dismissed, and the SIGCONT of
            // one that was stopped and let go for its parent to be told.
            let ignore = t.bytes(&[&1u64.to_ne_bytes()[..], &[0; 24]].concat());
            for signal in [libc::SIGCHLD, libc::SIGCONT] {
                t.call(
                    "rt_sigaction",
                    libc::SYS_rt_sigaction,
                    &[signal as u64, ignore, 0, 8],
                );
            }
            for a in &record.actions {
                let mut bytes = Vec::with_capacity(32);
                for word in [a.handler, a.flags, a.restorer, a.mask] {
                    bytes.extend_from_slice(&word.to_ne_bytes());
                }
                let at = t.bytes(&bytes);
                t.call(
                    "rt_sigaction",
                    libc::SYS_rt_sigaction,
                    &[a.signal as u64, at, 0, 8],
                );
            }
        })?;
        Ok(())
    }
}

/// Signals that wait to be delivered, each its siginfo as the kernel lays it out.
#[derive(Debug)]
pub struct PendingSignals;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    pub process: Vec<Bytes>,
    /// By thread, those that have some.
    pub threads: Vec<(Pid, Vec<Bytes>)>,
}

impl ProcessKind for PendingSignals {
    const TAG: &'static str = "pending-signals";
    const VERSION: u16 = 1;
    const ABOUT: &'static str = "signals queued for the process and for each thread, with siginfo and order";
    const STAGE: Stage = Stage::Last;
    type Record = Pending;

    fn verdict(_: &ProcessView, _: &View, _: &mut Vec<Blocker>) {}

    fn collect(from: &mut Source<'_>) -> Result<Pending> {
        let pid = from.process.pid();
        let again = |info: &Bytes| timer_of(info).is_some_and(|id| from.shared.expired.contains(&(pid, id)));
        let bytes = |list: Vec<crate::tracee::Pending>| {
            let all = list.into_iter().map(|p| Bytes(p.0));
            all.filter(|info| !again(info)).collect::<Vec<_>>()
        };
        let mut out = Pending {
            process: Vec::new(),
            threads: Vec::new(),
        };
        for (n, thread) in from.process.threads().iter().enumerate() {
            if n == 0 {
                out.process = bytes(thread.pending(true)?);
            }
            let own = bytes(thread.pending(false)?);
            if !own.is_empty() {
                out.threads.push((thread.tid(), own));
            }
        }
        Ok(out)
    }

    fn precheck(_: &Pending, _: Pid, _: &Options, _: &mut Vec<Blocker>) {}

    fn restore(record: &Pending, pid: Pid, nest: &mut Nest) -> Result<()> {
        let building = nest.process(pid)?;
        let all = || {
            let threads = record.threads.iter().flat_map(|(_, list)| list);
            record.process.iter().chain(threads)
        };
        building.avoid_signals(all().filter_map(signal_of));
        // It came when the process stood still already, or its stop would be over. To stop it again takes all such signals
        // from the queues, so this one is sent afterwards.
        let ends_stop = |info: &Bytes| signal_of(info) == Some(libc::SIGCONT);
        building.continued = building.stopped_by != 0 && all().any(ends_stop);
        let own = building.inner as u64;
        for some in record.process.chunks(64) {
            building.tape(|t| {
                for info in some {
                    let at = t.bytes(&info.0);
                    let signal = signal_of(info).unwrap_or(0) as u64;
                    t.call("rt_sigqueueinfo", libc::SYS_rt_sigqueueinfo, &[own, signal, at]);
                }
            })?;
        }
        for (tid, list) in &record.threads {
            let Some(n) = building.thread(*tid) else {
                continue;
            };
            let inner_tid = building.inner_tid(n) as u64;
            for some in list.chunks(64) {
                building.tape_on(n, |t| {
                    for info in some {
                        let at = t.bytes(&info.0);
                        let signal = signal_of(info).unwrap_or(0) as u64;
                        let args = [own, inner_tid, signal, at];
                        t.call("rt_tgsigqueueinfo", libc::SYS_rt_tgsigqueueinfo, &args);
                    }
                })?;
            }
        }
        Ok(())
    }
}

/// Of a timer's expiry, which timer.
pub fn timer_of(info: &Bytes) -> Option<i32> {
    // struct siginfo: number, errno, code, 4 bytes of air, then the timer's id.
    const SI_TIMER: i32 = -2;
    let int = |at: usize| Some(i32::from_ne_bytes(info.0.get(at..at + 4)?.try_into().ok()?));
    (int(8)? == SI_TIMER).then(|| int(16)).flatten()
}

/// `si_signo`, the first field.
fn signal_of(info: &Bytes) -> Option<i32> {
    info.0.get(..4)?.try_into().ok().map(i32::from_ne_bytes)
}
