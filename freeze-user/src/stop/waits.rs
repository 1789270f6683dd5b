//! How long threads have been asleep in calls with a timeout, which a halt would make begin anew.
//!
//! The kernel keeps the end of such a wait where nobody can see it. But it notes when a thread was last charged for
//! running (`se.exec_start` of /proc/PID/sched), which for one that sleeps is when it fell asleep, by the clock of the
//! CPU it ran on. That clock is read by going there. A thread that slept through until it was halted has left its CPU
//! of its own will exactly once since.

use crate::crew;
use crate::ids::Pid;
use crate::observe::peek::Peek;
use crate::observe::procfile::read_record;
use crate::observe::view::tasks;
use crate::sys::sched::{affinity, set_affinity};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// The waits of a set, as they were just before it was stopped.
#[derive(Debug, Default)]
pub struct Waits(BTreeMap<Pid, Wait>);

#[derive(Clone, Copy, Debug)]
struct Wait {
    since: Instant,
    switches: u64,
}

/// What /proc/PID/sched says of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Schedule {
    /// When it was last charged, by its CPU's clock, in nanoseconds.
    charged: u64,
    /// How often it has left its CPU of its own will.
    switches: u64,
}

impl Waits {
    /// Those of all threads of the trees below `roots`, which go on running.
    pub fn look(roots: &[Pid]) -> Waits {
        let tids = tasks(roots).unwrap_or_default();
        Waits::of(tids.into_iter().map(|(_, tid)| tid))
    }

    /// Those of some threads.
    pub fn of(tids: impl Iterator<Item = Pid>) -> Waits {
        let mut by_cpu: BTreeMap<usize, Vec<(Pid, Schedule)>> = BTreeMap::new();
        let mut out = BTreeMap::new();
        let tids: Vec<Pid> = tids.collect();
        let timed = crew::each(&tids, |tid| waits_for_a_time(*tid));
        let tids = tids.into_iter().zip(timed);
        for tid in tids.filter_map(|(tid, timed)| timed.then_some(tid)) {
            if let (Some(cpu), Some(schedule)) = (cpu_of(tid), schedule(&format!("/proc/{tid}/sched"))) {
                by_cpu.entry(cpu).or_default().push((tid, schedule));
            } else {
                // The kernel itself will have to be asked.
                Peek::get();
            }
        }
        if by_cpu.is_empty() {
            return Waits(out);
        }
        let Ok(home) = affinity(Pid(0)) else {
            return Waits(out);
        };
        for (cpu, sleepers) in by_cpu {
            let Some(now) = clock_of(cpu) else { continue };
            let here = Instant::now();
            for (tid, schedule) in sleepers {
                let asleep = Duration::from_nanos(now.saturating_sub(schedule.charged));
                if let Some(since) = here.checked_sub(asleep) {
                    let switches = schedule.switches;
                    out.insert(tid, Wait { since, switches });
                }
            }
        }
        let _ = set_affinity(Pid(0), &home);
        Waits(out)
    }

    /// How long a thread that has been halted since was asleep, if it slept through until then.
    pub fn asleep(&self, tid: Pid) -> Option<Duration> {
        let wait = self.0.get(&tid)?;
        let now = schedule(&format!("/proc/{tid}/sched"))?;
        (now.switches == wait.switches + 1).then(|| wait.since.elapsed())
    }
}

/// Whether a thread sleeps in a call that ends after some time, of those in which freeze can say how much is left.
fn waits_for_a_time(tid: Pid) -> bool {
    let text = read_record(&format!("/proc/{tid}/syscall")).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let mut words = text.split_ascii_whitespace();
    let Some(Ok(call)) = words.next().map(str::parse::<i64>) else {
        return false;
    };
    let args: Vec<u64> = words
        .filter_map(|w| u64::from_str_radix(w.strip_prefix("0x")?, 16).ok())
        .collect();
    let arg = |n: usize| args.get(n).copied().unwrap_or(0);
    match call {
        libc::SYS_epoll_wait | libc::SYS_epoll_pwait => arg(3) as i32 > 0,
        libc::SYS_epoll_pwait2 | libc::SYS_futex => arg(3) != 0,
        libc::SYS_poll => arg(2) as i32 > 0,
        libc::SYS_nanosleep | libc::SYS_clock_nanosleep => true,
        libc::SYS_restart_syscall => {
            // What is left of it only the kernel knows; to be ready to look takes longer than a pause may.
            Peek::get();
            true
        }
        _ => false,
    }
}

/// The CPU a thread ran on last: field 39 of stat.
fn cpu_of(tid: Pid) -> Option<usize> {
    let text = read_record(&format!("/proc/{tid}/stat")).ok()?;
    let after = text.iter().rposition(|b| *b == b')')? + 1;
    let rest = std::str::from_utf8(&text[after..]).ok()?;
    rest.split_ascii_whitespace().nth(36)?.parse().ok()
}

fn schedule(path: &str) -> Option<Schedule> {
    parse(&String::from_utf8_lossy(&read_record(path).ok()?))
}

fn parse(text: &str) -> Option<Schedule> {
    let value = |name: &str| {
        let line = text.lines().find(|l| l.starts_with(name))?;
        Some(line.split_once(':')?.1.trim())
    };
    // Milliseconds and, after the point, nanoseconds.
    let (whole, rest) = value("se.exec_start")?.split_once('.')?;
    Some(Schedule {
        charged: whole.parse::<u64>().ok()? * 1_000_000 + rest.parse::<u64>().ok()?,
        switches: value("nr_voluntary_switches")?.parse().ok()?,
    })
}

/// The clock by which a CPU charges its threads, read there.
fn clock_of(cpu: usize) -> Option<u64> {
    let mut mask = vec![0u8; cpu / 64 * 8 + 8];
    mask[cpu / 8] |= 1 << (cpu % 8);
    set_affinity(Pid(0), &mask).ok()?;
    // Giving way makes the kernel charge us up to now.
    std::thread::yield_now();
    schedule("/proc/thread-self/sched").map(|s| s.charged)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schedule_is_read() {
        let text = "cat (1, #threads: 1)\n---\nse.exec_start                                :       3049892.045532\n\
            nr_switches                                  :                    3\n\
            nr_voluntary_switches                        :                    2\n";
        let expected = Schedule {
            charged: 3_049_892_045_532,
            switches: 2,
        };
        assert_eq!(parse(text), Some(expected));
        assert_eq!(parse(""), None);
    }

    #[test]
    fn a_sleeper_is_told_from_who_runs() {
        let (send, receive) = std::sync::mpsc::channel();
        let sleeper = std::thread::spawn(move || {
            send.send(nix::unistd::gettid()).unwrap();
            std::thread::sleep(Duration::from_millis(400));
        });
        let tid = Pid(receive.recv().unwrap().as_raw());
        std::thread::sleep(Duration::from_millis(200));
        let own = Pid(nix::unistd::gettid().as_raw());
        let waits = Waits::of([tid, own].into_iter());
        assert!(!waits.0.contains_key(&own));
        if let Some(wait) = waits.0.get(&tid) {
            let asleep = wait.since.elapsed().as_millis();
            assert!((150..400).contains(&asleep), "{asleep}");
        }
        sleeper.join().unwrap();
    }
}
