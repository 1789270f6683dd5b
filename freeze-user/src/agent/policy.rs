//! What the agent decides, without doing any of it: when a checkpoint is due, what counts as a crash, when to give up, who may ask.

use crate::checkpoint::Bounds;
use crate::ids::Pid;
use crate::proc::status::Status;
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

/// What to do when a watched group dies of a crash.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnCrash {
    /// Only say so.
    #[default]
    Leave,
    /// Bring it back from its last checkpoint.
    Restore,
}

impl fmt::Display for OnCrash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            OnCrash::Leave => "leave",
            OnCrash::Restore => "restore",
        })
    }
}

/// How a group is looked after.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Milliseconds from one checkpoint to the next.
    pub every_ms: u64,
    /// How many checkpoints to keep, not counting those whose pages the kept ones need.
    pub keep: usize,
    pub on_crash: OnCrash,
}

impl Policy {
    /// One checkpoint a second, the last five of them.
    pub const DEFAULT: Policy = Policy {
        every_ms: 1000,
        keep: 5,
        on_crash: OnCrash::Leave,
    };

    /// What is wrong with it, if anything.
    pub fn fault(&self) -> Option<String> {
        if !(SHORTEST.as_millis() as u64..=LONGEST.as_millis() as u64).contains(&self.every_ms) {
            return Some(format!(
                "every {} is not between {} and {}",
                Interval(self.every()),
                Interval(SHORTEST),
                Interval(LONGEST)
            ));
        }
        if self.keep == 0 {
            return Some("keep 0 would leave nothing to restore".into());
        }
        None
    }

    /// The time from one checkpoint to the next.
    pub fn every(&self) -> Duration {
        Duration::from_millis(self.every_ms)
    }

    /// How long a checkpoint may take: as many intervals as it takes a slow disk, but not for ever.
    pub fn bounds(&self) -> Bounds {
        Bounds {
            within: Some((self.every() * 60).clamp(Duration::from_secs(120), Duration::from_secs(3600))),
            ..Bounds::default()
        }
    }
}

/// Checkpoints nearer to each other than this would leave the program no time of its own.
const SHORTEST: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);

/// A time span as one types it: `200ms`, `1s`, `5m`, `2h`; without a unit, seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interval(pub Duration);

impl FromStr for Interval {
    type Err = String;

    fn from_str(text: &str) -> Result<Interval, String> {
        let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(split);
        let factor = match unit {
            "ms" => 1,
            "" | "s" => 1000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            _ => return Err(format!("{unit:?} is none of the units ms, s, m, h")),
        };
        let number: u64 = number
            .parse()
            .map_err(|_| format!("{text:?} has no whole number before its unit"))?;
        let ms = number
            .checked_mul(factor)
            .ok_or_else(|| format!("{text} is too long"))?;
        Ok(Interval(Duration::from_millis(ms)))
    }
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_millis() as u64 {
            ms if ms > 0 && ms % 3_600_000 == 0 => write!(f, "{}h", ms / 3_600_000),
            ms if ms > 0 && ms % 60_000 == 0 => write!(f, "{}m", ms / 60_000),
            ms if ms % 1000 == 0 => write!(f, "{}s", ms / 1000),
            ms => write!(f, "{ms}ms"),
        }
    }
}

/// The next beat after `now` of those that were to be at `due`, `due + every`, …; missed ones are left out.
pub fn next_beat(due: Instant, every: Duration, now: Instant) -> Instant {
    if due > now || every.is_zero() {
        return due.max(now);
    }
    let missed = (now - due).as_nanos() / every.as_nanos();
    // The remainder, not a product: however many were missed, nothing overflows.
    let into = (now - due).as_nanos() - missed * every.as_nanos();
    now + every - Duration::from_nanos(into.min(u128::from(u64::MAX)) as u64)
}

/// How long to wait after `failures` checkpoints in a row have failed: what is refused now will mostly be refused
/// again, and looking costs some milliseconds.
pub fn after_failure(every: Duration, failures: u32) -> Duration {
    every
        .saturating_mul(1 << failures.min(6))
        .min(every.max(Duration::from_secs(30)))
}

/// How a watched group ended: what is known of its root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Code(i32),
    Signal(i32),
    /// Neither the kernel programs nor the kernel could tell.
    Unknown,
}

impl Ending {
    /// What the kernel's wait status says.
    pub fn of_status(status: i32) -> Ending {
        match status & 0x7f {
            0 => Ending::Code(status >> 8 & 0xff),
            signal => Ending::Signal(signal),
        }
    }

    /// Whether nobody wanted it: a code other than 0, or a signal other than those by which one asks a program
    /// to end (TERM, INT, HUP). An ending that nobody saw counts as a crash.
    pub fn is_crash(self) -> bool {
        match self {
            Ending::Code(code) => code != 0,
            Ending::Signal(signal) => ![libc::SIGTERM, libc::SIGINT, libc::SIGHUP].contains(&signal),
            Ending::Unknown => true,
        }
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ending::Code(code) => write!(f, "ended with code {code}"),
            Ending::Signal(number) => match Signal::try_from(*number) {
                Ok(signal) => write!(f, "was ended by {signal}"),
                Err(_) => write!(f, "was ended by signal {number}"),
            },
            Ending::Unknown => f.write_str("ended, nobody saw how"),
        }
    }
}

/// Counts the restores of a group that did not last, and says how long to wait for the next.
#[derive(Clone, Debug, Default)]
pub struct Backoff {
    quick: u32,
}

/// Who lived as long as this after a restore has recovered.
const STEADY: Duration = Duration::from_secs(60);
/// How many restores in a row may come to nothing.
const ATTEMPTS: u32 = 8;
const LONGEST_WAIT: Duration = Duration::from_secs(60);

impl Backoff {
    /// How long to wait before the next restore of a group that lived for `lived`: nothing at first, then 1 s, 2 s,
    /// 4 s … up to a minute; `None` when it is time to give up.
    pub fn next(&mut self, lived: Duration) -> Option<Duration> {
        if lived >= STEADY {
            self.quick = 0;
        }
        self.quick += 1;
        match self.quick {
            1 => Some(Duration::ZERO),
            n if n <= ATTEMPTS => Some(Duration::from_secs(1 << (n - 2)).min(LONGEST_WAIT)),
            _ => None,
        }
    }

    /// How many restores in a row have come to nothing.
    pub fn attempts(&self) -> u32 {
        self.quick
    }
}

/// Who asks: the other end of the socket, as the kernel knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    pub uid: u32,
}

impl Caller {
    /// Whether it may have anything done with what `owner` owns: root with all, others with their own.
    pub fn may_use(self, owner: Option<u32>) -> bool {
        self.uid == 0 || owner == Some(self.uid)
    }
}

/// The user a process belongs to: nobody (but root) while its ids differ, as they do in a set-uid program.
pub fn owner(status: &Status) -> Option<u32> {
    let [real, rest @ ..] = status.uid;
    rest.iter().all(|id| *id == real).then_some(real)
}

/// The name of a new group: the one that was asked for, or one made of the process's; or why it cannot be.
///
/// Checkpoints are kept and removed by the name of their group: what belongs to others than root begins with their
/// uid, so that nobody comes by the checkpoints of anybody else by taking a name that was in use once.
pub fn group_name(caller: Caller, asked: Option<&str>, comm: &[u8], pid: Pid) -> Result<String, String> {
    let letter = |b: u8| b.is_ascii_alphanumeric() || b"._-+".contains(&b);
    let name = match asked {
        Some(name) => {
            let fits =
                !name.is_empty() && name.len() <= 64 && name.bytes().all(|b| letter(b) || b"@:".contains(&b));
            // A name of digits would be taken for a pid.
            if !fits || name.bytes().all(|b| b.is_ascii_digit()) {
                return Err(format!("{name:?} is no name for a group"));
            }
            name.to_owned()
        }
        None => {
            let comm: String = comm
                .iter()
                .map(|&b| if letter(b) { b as char } else { '_' })
                .collect();
            // The pid tells apart what has no name of its own.
            format!("{comm}-{pid}")
        }
    };
    Ok(match caller.uid {
        0 => name,
        uid => format!("{uid}:{name}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_of_users_have_names_of_their_own() {
        let (root, user) = (Caller { uid: 0 }, Caller { uid: 1000 });
        let name = |caller, asked| group_name(caller, asked, b"a b/c", Pid(7));
        assert_eq!(name(root, Some("x")).as_deref(), Ok("x"));
        assert_eq!(name(user, Some("x")).as_deref(), Ok("1000:x"));
        assert_eq!(name(user, Some("0:x")).as_deref(), Ok("1000:0:x"));
        assert_eq!(name(root, None).as_deref(), Ok("a_b_c-7"));
        for bad in ["", "42", "a/b", "a b", "..\n", &"x".repeat(65)] {
            assert!(name(root, Some(bad)).is_err(), "{bad:?}");
        }
    }

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn beats_that_were_missed_are_left_out() {
        let start = Instant::now();
        let at = |ms: u32| start + MS * ms;
        assert_eq!(next_beat(at(100), 50 * MS, at(101)), at(150));
        assert_eq!(next_beat(at(100), 50 * MS, at(149)), at(150));
        assert_eq!(next_beat(at(100), 50 * MS, at(150)), at(200));
        assert_eq!(next_beat(at(100), 50 * MS, at(777)), at(800));
        assert_eq!(next_beat(at(900), 50 * MS, at(777)), at(900), "it is not due yet");
    }

    #[test]
    fn failing_groups_are_looked_at_less_and_less() {
        let s = Duration::from_secs;
        let waits: Vec<_> = (1..=6).map(|n| after_failure(s(1), n)).collect();
        assert_eq!(waits, [s(2), s(4), s(8), s(16), s(30), s(30)]);
        assert_eq!(
            after_failure(s(3600), 9),
            s(3600),
            "never more often than asked, never rarer either"
        );
    }

    #[test]
    fn a_crash_is_what_nobody_ordered() {
        for status in [0, libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
            assert!(!Ending::of_status(status).is_crash(), "{status}");
        }
        for status in [1 << 8, 255 << 8, libc::SIGKILL, libc::SIGSEGV | 0x80] {
            assert!(Ending::of_status(status).is_crash(), "{status}");
        }
        assert!(Ending::Unknown.is_crash());
        assert_eq!(
            Ending::of_status(libc::SIGSEGV | 0x80).to_string(),
            "was ended by SIGSEGV"
        );
        assert_eq!(Ending::of_status(3 << 8).to_string(), "ended with code 3");
    }

    #[test]
    fn restores_become_rarer_and_end() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..10).map(|_| backoff.next(MS).map(|d| d.as_secs())).collect();
        let expected = [
            Some(0),
            Some(1),
            Some(2),
            Some(4),
            Some(8),
            Some(16),
            Some(32),
            Some(60),
            None,
            None,
        ];
        assert_eq!(waits, expected);
        assert_eq!(
            backoff.next(STEADY),
            Some(Duration::ZERO),
            "who recovered starts anew"
        );
    }

    #[test]
    fn only_root_and_the_owner_may() {
        let ids = |uid| {
            owner(&Status {
                uid,
                ..Status::default()
            })
        };
        let (root, user, other) = (Caller { uid: 0 }, Caller { uid: 1000 }, Caller { uid: 1001 });
        assert!(user.may_use(ids([1000; 4])) && root.may_use(ids([1000; 4])));
        assert!(!other.may_use(ids([1000; 4])) && !user.may_use(ids([0; 4])));
        assert!(
            !user.may_use(ids([1000, 0, 0, 0])),
            "a set-uid program is not its caller's"
        );
        assert!(root.may_use(ids([1000, 0, 0, 0])));
    }

    #[test]
    fn intervals_are_read_as_typed() {
        for (text, ms) in [
            ("200ms", 200),
            ("1s", 1000),
            ("3", 3000),
            ("5m", 300_000),
            ("2h", 7_200_000),
        ] {
            assert_eq!(text.parse(), Ok(Interval(Duration::from_millis(ms))), "{text}");
        }
        for text in ["", "s", "1.5s", "-1s", "1 s", "1d", "99999999999999999999h"] {
            assert!(text.parse::<Interval>().is_err(), "{text}");
        }
        assert_eq!(Interval(Duration::from_millis(1500)).to_string(), "1500ms");
        assert_eq!(Interval(Duration::from_secs(120)).to_string(), "2m");
    }

    #[test]
    fn senseless_policies_are_named() {
        assert_eq!(Policy::DEFAULT.fault(), None);
        let fault = Policy {
            every_ms: 1,
            ..Policy::DEFAULT
        }
        .fault();
        assert_eq!(fault.as_deref(), Some("every 1ms is not between 10ms and 720h"));
        assert!(
            Policy {
                keep: 0,
                ..Policy::DEFAULT
            }
            .fault()
            .is_some()
        );
    }
}
