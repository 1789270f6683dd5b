//! Timers of a process: the three interval timers and its POSIX timers.

use super::pipe::Bytes;
use super::signals::timer_of;
use super::timerfd::readable;
use super::{Asks, ProcessKind, Source, Stage};
use crate::error::{Blocker, Result};
use crate::ids::Pid;
use crate::nest::{Nest, Options};
use crate::observe::view::{ProcessView, View};
use crate::tracee::tape::Tape;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};

#[derive(Debug)]
pub struct Timers;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// ITIMER_REAL, VIRTUAL, PROF: interval and what remains, each seconds and microseconds.
    pub interval: Vec<[u64; 4]>,
    pub posix: Vec<Posix>,
}

/// One timer of timer_create(2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Posix {
    pub id: i32,
    pub clock: i32,
    pub signal: i32,
    /// SIGEV_*
    pub notify: i32,
    /// The thread for SIGEV_THREAD_ID, else 0.
    pub thread: Pid,
    pub value: u64,
    /// Interval and what remains, each seconds and nanoseconds.
    pub setting: [u64; 4],
    /// Whether its last expiry has not been delivered yet, though it goes on; how often it has expired since is not told.
    #[serde(default)]
    pub expired: bool,
}

const PR_TIMER_CREATE_RESTORE_IDS: u64 = 77;

impl Asks for Timers {
    type Places = u64;
    const EACH: bool = false;

    fn ask(t: &mut Tape<'_>, _of: &ProcessView) -> u64 {
        let at = t.space(3 * 32);
        for which in 0..3 {
            t.call("getitimer", libc::SYS_getitimer, &[which, at + which * 32]);
        }
        at
    }
}

impl ProcessKind for Timers {
    const TAG: &'static str = "timers";
    const VERSION: u16 = 1;
    const ABOUT: &'static str =
        "interval timers and POSIX timers with their ids; what remained when frozen remains when restored";
    const STAGE: Stage = Stage::Last;
    type Record = Record;

    fn verdict(p: &ProcessView, view: &View, out: &mut Vec<Blocker>) {
        // Whose clocks it can name: its own threads', and those of whole processes that share its pid namespace.
        let beside = |o: &&ProcessView| view.namespace(o, "pid") == view.namespace(p, "pid");
        let others: Vec<&ProcessView> = match p.timers.is_empty() {
            true => Vec::new(),
            false => view.each().filter(beside).collect(),
        };
        for t in &p.timers {
            // Negative clocks are CPU clocks of a process or thread, by its id; 0 stands for the caller.
            let whose = Pid(!(t.clock >> 3));
            // The ids are those that the process itself goes by.
            let known = p.threads.iter().map(|t| &t.status);
            let mut known = known.chain(others.iter().filter(|o| !o.threads.is_empty()).map(|o| &o.status));
            let there = whose.0 == 0 || known.any(|s| s.ns_pid.last() == Some(&whose.0));
            if t.clock < 0 && !there {
                out.push(
                    p.blocker(format!("timer {}", t.id), format!("clock {}", t.clock))
                        .why("it runs on the CPU time of a process outside the checkpoint")
                        .remedy("freeze that process too (--also-freeze), or delete the timer before the checkpoint"),
                );
            }
        }
    }

    fn collect(from: &mut Source<'_>) -> Result<Record> {
        let timers = from.process.view.timers.clone();
        let (ran, at) = from.answers::<Timers>()?;
        let four = |ran: &crate::tracee::tape::Ran, at: u64| [0, 8, 16, 24].map(|n| ran.word(at + n));
        let mut interval: Vec<[u64; 4]> = (0..3).map(|n| four(ran, at + n * 32)).collect();
        if interval.iter().flatten().any(|n| *n != 0) {
            // They run down by themselves.
            from.process.answers_pass();
        }
        // While its signal waits the real one stands still, and says that nothing is left: it goes on once the signal is
        // taken. Set so, it would be disarmed.
        let alarm = 1 << (libc::SIGALRM - 1);
        if let [real, ..] = &mut interval[..]
            && let [every, every_ns, 0, 0] = *real
            && from.process.view.status.shd_pnd & alarm != 0
        {
            *real = [every, every_ns, every, every_ns];
        }
        let mut posix = Vec::new();
        for some in timers.chunks(64) {
            let (ran, slots) = from.process.tape(|t| {
                let ask = |timer: &crate::proc::timers::Timer| {
                    let at = t.space(32);
                    t.call("timer_gettime", libc::SYS_timer_gettime, &[timer.id as u64, at]);
                    at
                };
                some.iter().map(ask).collect::<Vec<u64>>()
            })?;
            posix.extend(some.iter().zip(slots).map(|(timer, at)| Posix {
                id: timer.id,
                clock: timer.clock,
                signal: timer.signal,
                notify: match (timer.notify.as_str(), timer.to_thread) {
                    ("none", _) => libc::SIGEV_NONE,
                    ("thread", _) => libc::SIGEV_THREAD,
                    (_, true) => libc::SIGEV_THREAD_ID,
                    _ => libc::SIGEV_SIGNAL,
                },
                thread: if timer.to_thread {
                    Pid(timer.target)
                } else {
                    Pid(0)
                },
                value: timer.value,
                setting: four(&ran, at),
                expired: false,
            }));
        }
        let pid = from.process.pid();
        let waiting = undelivered(from)?;
        for timer in posix
            .iter_mut()
            .filter(|t| t.setting[..2] != [0, 0] && waiting.contains(&t.id))
        {
            timer.expired = true;
            from.shared.expired.insert((pid, timer.id));
        }
        posix.sort_by_key(|t| t.id);
        Ok(Record { interval, posix })
    }

    fn precheck(_: &Record, _: Pid, _: &Options, _: &mut Vec<Blocker>) {}

    fn restore(record: &Record, pid: Pid, nest: &mut Nest) -> Result<()> {
        // Threads go by the ids they have in the process's own pid namespace.
        let threads: Vec<i32> = record
            .posix
            .iter()
            .map(|t| nest.known_as(pid, t.thread))
            .collect();
        let building = nest.process(pid)?;
        let by_id = match record.posix.is_empty() {
            true => false,
            false => {
                let prctl = building.tape(|t| {
                    t.try_call(
                        "prctl",
                        libc::SYS_prctl,
                        &[PR_TIMER_CREATE_RESTORE_IDS, 1, 0, 0, 0],
                    )
                });
                let (ran, at) = prctl?;
                ran.result(at).is_ok()
            }
        };
        let mut next = 0;
        for (timer, thread) in record.posix.iter().zip(threads) {
            // The CPU time of a thread is that of whoever makes the timer: most likely the one it is to tell.
            let maker = building.thread(timer.thread).unwrap_or(0);
            let maker = if on_thread_time(timer.clock) { maker } else { 0 };
            // Without the prctl (Linux 6.16) ids are given out in turn: make and delete up to the wanted one.
            loop {
                let (ran, (made, slot)) = building.tape_on(maker, |t| {
                    let event = sigevent(timer, thread);
                    let event = t.bytes(&event);
                    let slot = t.bytes(&timer.id.to_ne_bytes());
                    (
                        t.try_call(
                            "timer_create",
                            libc::SYS_timer_create,
                            &[timer.clock as u64, event, slot],
                        ),
                        slot,
                    )
                })?;
                ran.result(made).map_err(|e| {
                    crate::error::Error::kernel("timer_create", format!("timer {} of {pid}", timer.id), e)
                })?;
                let got = i32::from_ne_bytes(ran.bytes(slot, 4).try_into().unwrap_or_default());
                if got == timer.id {
                    break;
                }
                if by_id || got > timer.id || got < next {
                    return Err(crate::error::Error::kernel(
                        "timer_create",
                        format!("timer {} of {pid}", timer.id),
                        Errno::EEXIST,
                    ));
                }
                next = got;
                building.call("timer_delete", libc::SYS_timer_delete, &[got as u64])?;
            }
        }
        if by_id {
            building.call(
                "prctl",
                libc::SYS_prctl,
                &[PR_TIMER_CREATE_RESTORE_IDS, 0, 0, 0, 0],
            )?;
        }
        for some in record.posix.chunks(64) {
            let (ran, clocks) = building.tape(|t| {
                let ask = |timer: &Posix| {
                    let at = t.space(16);
                    t.try_call(
                        "clock_gettime",
                        libc::SYS_clock_gettime,
                        &[readable(timer.clock) as u64, at],
                    );
                    at
                };
                some.iter().map(ask).collect::<Vec<u64>>()
            })?;
            building.tape(|t| {
                for (timer, clock) in some.iter().zip(clocks) {
                    let now = [ran.word(clock), ran.word(clock + 8)];
                    let (flags, setting) = match timer.expired {
                        true => (libc::TIMER_ABSTIME as u64, last_expiry(timer.setting, now)),
                        false => (0, timer.setting),
                    };
                    let at = t.bytes(&words(&setting));
                    t.call(
                        "timer_settime",
                        libc::SYS_timer_settime,
                        &[timer.id as u64, flags, at, 0],
                    );
                }
            })?;
        }
        building.tape(|t| {
            for (which, setting) in record.interval.iter().enumerate() {
                let at = t.bytes(&words(setting));
                t.call("setitimer", libc::SYS_setitimer, &[which as u64, at, 0]);
            }
        })?;
        Ok(())
    }
}

/// The timers of which an expiry is queued.
fn undelivered(from: &Source<'_>) -> Result<Vec<i32>> {
    let mut out = Vec::new();
    for (n, thread) in from.process.threads().iter().enumerate() {
        let mut list = thread.pending(false)?;
        if n == 0 {
            list.extend(thread.pending(true)?);
        }
        out.extend(list.into_iter().filter_map(|p| timer_of(&Bytes(p.0))));
    }
    Ok(out)
}

/// The setting that makes a timer expire at once and then when it would have: since its last expiry, on its clock.
fn last_expiry([every, every_ns, left, left_ns]: [u64; 4], now: [u64; 2]) -> [u64; 4] {
    const SECOND: i128 = 1_000_000_000;
    let nanos = |s: u64, ns: u64| i128::from(s) * SECOND + i128::from(ns);
    let at = nanos(now[0], now[1]) + nanos(left, left_ns) - nanos(every, every_ns);
    // Zero would disarm it.
    let at = at.max(1);
    [every, every_ns, (at / SECOND) as u64, (at % SECOND) as u64]
}

/// Whether a clock is the CPU time of the calling thread.
fn on_thread_time(clock: i32) -> bool {
    const PER_THREAD: i32 = 4;
    clock == libc::CLOCK_THREAD_CPUTIME_ID || clock < 0 && !(clock >> 3) == 0 && clock & PER_THREAD != 0
}

fn words(list: &[u64; 4]) -> Vec<u8> {
    list.iter().flat_map(|w| w.to_ne_bytes()).collect()
}

/// `struct sigevent`: value, signal, how, thread; 64 bytes.
fn sigevent(timer: &Posix, thread: i32) -> Vec<u8> {
    let mut out = timer.value.to_ne_bytes().to_vec();
    out.extend_from_slice(&timer.signal.to_ne_bytes());
    out.extend_from_slice(&timer.notify.to_ne_bytes());
    out.extend_from_slice(&thread.to_ne_bytes());
    out.resize(64, 0);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expired_timer_keeps_its_phase() {
        // Every 3 s, 1 s left: it last expired 2 s ago.
        assert_eq!(last_expiry([3, 0, 1, 5], [100, 0]), [3, 0, 98, 5]);
        assert_eq!(last_expiry([3, 0, 1, 0], [1, 0]), [3, 0, 0, 1]);
    }
}
