//! timerfd_create(2): clock, setting, and the expirations that nobody has read yet.

use super::{FdKind, Placed, Source};
use crate::error::{Blocker, Context, Result};
use crate::ids::{FileId, Pid};
use crate::nest::{Nest, Options};
use crate::observe::view::{FdView, View, read_fd};
use crate::proc::fdinfo::FdInfo;
use crate::sys::{self, events::ioctl_word};
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

#[derive(Debug)]
pub struct TimerFd;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub clock: i32,
    /// Expirations not read yet.
    pub ticks: u64,
    /// TFD_TIMER_ABSTIME and TFD_TIMER_CANCEL_ON_SET, as it was set last.
    pub flags: i32,
    /// Nanoseconds to the next expiration; 0 when it is not armed.
    pub remaining: u64,
    /// When that will be on its clock, in nanoseconds, if it was set to a point in time.
    pub at: Option<u64>,
    /// Nanoseconds between expirations, 0 for a single one.
    pub interval: u64,
}

impl FdKind for TimerFd {
    const TAG: &'static str = "timerfd";
    const VERSION: u16 = 1;
    const ABOUT: &'static str = "timerfd: clock, setting, unread expirations; what remained when frozen remains when \
        restored, a point in time stays one";
    type Record = Record;

    fn claims(fd: &FdView) -> bool {
        fd.anon_inode() == Some("timerfd")
    }

    fn verdict(fd: &FdView, _: &View, out: &mut Vec<Blocker>) {
        if parse(&fd.info).is_none() {
            out.push(unseen(fd));
        }
    }

    fn collect(fd: &FdView, from: &mut Source<'_>) -> Result<Record> {
        read(from.process.fd(fd.fd)?.as_fd())?.ok_or_else(|| unseen(fd).refuse())
    }

    fn precheck(_: &Record, _: &Options, _: &mut Vec<Blocker>) {}

    fn members(_: &Record) -> Vec<FileId> {
        Vec::new()
    }

    fn restore(record: &Record, _: &mut Nest) -> Result<OwnedFd> {
        make(record)
    }

    fn finish(record: &Record, placed: Placed, nest: &mut Nest) -> Result<()> {
        // Only now does it begin to run, with everybody else's descriptors in place.
        set(nest.file(placed.id)?, record)
    }
}

fn unseen(fd: &FdView) -> Blocker {
    fd.blocker()
        .why("the kernel does not show its setting")
        .remedy("close it before the checkpoint")
}

/// What a timer is set to right now.
fn read(timer: BorrowedFd<'_>) -> Result<Option<Record>> {
    let name = || "a timerfd";
    const TRIES: u32 = 20;
    let mut tries = 0;
    let mut record = loop {
        // An expired periodic timer counts and goes on only when it is looked at; fdinfo does not do that.
        sys::timerfd_gettime(timer).on("timerfd_gettime", name)?;
        let Some(mut record) = parse(&read_fd(Pid(std::process::id() as i32), timer.as_raw_fd())?.info)
        else {
            return Ok(None);
        };
        // One that is just expiring shows nothing to wait for, as if it had been stopped; the next look tells them apart,
        // unless the interval is shorter than a look: then it is the ticks, which stopping it takes away.
        let nothing = record.remaining == 0 && record.interval != 0;
        tries += 1;
        if nothing && tries < TRIES {
            continue;
        }
        if nothing && record.ticks != 0 {
            record.remaining = 1;
        }
        break record;
    };
    if record.flags & ABSTIME != 0 && record.remaining != 0 {
        let before = now(record.clock).on("clock_gettime", name)?;
        let [.., seconds, nanos] = sys::timerfd_gettime(timer).on("timerfd_gettime", name)?;
        let after = now(record.clock).on("clock_gettime", name)?;
        // It lies between `before` and `after` plus what remains.
        let remaining = nanoseconds(seconds as u64, nanos as u64);
        record.at = Some(before + (after.saturating_sub(before)) / 2 + remaining);
    }
    Ok(Some(record))
}

fn make(record: &Record) -> Result<OwnedFd> {
    let fd = sys::timerfd_create(record.clock, libc::TFD_CLOEXEC | libc::TFD_NONBLOCK);
    fd.on("timerfd_create", || format!("clock {}", record.clock))
}

fn set(timer: BorrowedFd<'_>, record: &Record) -> Result<()> {
    let name = || "a timerfd";
    let (mut flags, mut first) = (record.flags, record.remaining);
    match record.at {
        Some(at) if is_wall_clock(record.clock) => first = at,
        // After another boot its clock may be far behind; never wait longer than was left to wait.
        Some(at) => first = at.min(now(record.clock).on("clock_gettime", name)? + record.remaining),
        // Spent or never armed: with nothing to wait for, only the flags remain to be seen.
        None if record.remaining == 0 => {}
        None => flags &= !ABSTIME,
    }
    let pair = |ns: u64| [(ns / NANOS) as i64, (ns % NANOS) as i64];
    let ([a, b], [c, d]) = (pair(record.interval), pair(first));
    sys::timerfd_settime(timer, flags, [a, b, c, d]).on("timerfd_settime", name)?;
    if record.ticks != 0 {
        ioctl_word(timer, TFD_IOC_SET_TICKS, record.ticks).on("ioctl(TFD_IOC_SET_TICKS)", name)?;
    }
    Ok(())
}

const TFD_IOC_SET_TICKS: u64 = 0x4008_5400;
const ABSTIME: i32 = 1;
const NANOS: u64 = 1_000_000_000;

/// Clocks that somebody can set: CLOCK_REALTIME and CLOCK_REALTIME_ALARM.
fn is_wall_clock(clock: i32) -> bool {
    matches!(clock, libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_ALARM)
}

fn now(clock: i32) -> nix::Result<u64> {
    let t = clock_gettime(ClockId::from_raw(readable(clock)))?;
    Ok(nanoseconds(t.tv_sec() as u64, t.tv_nsec() as u64))
}

/// The clock that tells the time of one that wakes the machine: without a clock of hardware that cannot be read itself.
pub(super) fn readable(clock: i32) -> i32 {
    match clock {
        libc::CLOCK_REALTIME_ALARM => libc::CLOCK_REALTIME,
        libc::CLOCK_BOOTTIME_ALARM => libc::CLOCK_BOOTTIME,
        clock => clock,
    }
}

fn nanoseconds(seconds: u64, nanos: u64) -> u64 {
    seconds.saturating_mul(NANOS).saturating_add(nanos)
}

fn parse(info: &FdInfo) -> Option<Record> {
    let pair = |key: &str| {
        let (seconds, nanos) = info
            .get(key)?
            .strip_prefix('(')?
            .strip_suffix(')')?
            .split_once(',')?;
        Some(nanoseconds(
            seconds.trim().parse().ok()?,
            nanos.trim().parse().ok()?,
        ))
    };
    Some(Record {
        clock: info.get("clockid")?.parse().ok()?,
        ticks: info.get("ticks")?.parse().ok()?,
        flags: i32::from_str_radix(info.get("settime flags")?, 8).ok()?,
        remaining: pair("it_value")?,
        at: None,
        interval: pair("it_interval")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn again(timer: &OwnedFd) -> (Record, Record) {
        let first = read(timer.as_fd()).unwrap().unwrap();
        let new = make(&first).unwrap();
        set(new.as_fd(), &first).unwrap();
        (first.clone(), read(new.as_fd()).unwrap().unwrap())
    }

    fn close(a: u64, b: u64) -> bool {
        a.abs_diff(b) < 50_000_000
    }

    #[test]
    fn unread_expirations_are_counted_and_kept() {
        let timer = sys::timerfd_create(libc::CLOCK_MONOTONIC, 0).unwrap();
        sys::timerfd_settime(timer.as_fd(), 0, [0, 10_000_000, 0, 10_000_000]).unwrap();
        std::thread::sleep(Duration::from_millis(55));
        let (old, new) = again(&timer);
        assert!(old.ticks >= 5 && old.remaining > 0, "{old:?}");
        assert!(
            new.ticks >= old.ticks && new.ticks < old.ticks + 3 && new.interval == 10_000_000,
            "{new:?}"
        );
    }

    #[test]
    fn a_single_expiration_is_kept_once() {
        let timer = sys::timerfd_create(libc::CLOCK_BOOTTIME, 0).unwrap();
        sys::timerfd_settime(timer.as_fd(), 0, [0, 0, 0, 1]).unwrap();
        std::thread::sleep(Duration::from_millis(5));
        let (old, new) = again(&timer);
        assert_eq!((old.ticks, old.remaining, old.interval), (1, 0, 0));
        assert_eq!(old, new);
        let mut got = [0; 8];
        nix::unistd::read(timer.as_fd(), &mut got).unwrap();
        let (old, new) = again(&timer);
        assert_eq!((old.ticks, &old), (0, &new));
    }

    #[test]
    fn points_in_time_stay() {
        for clock in [libc::CLOCK_REALTIME, libc::CLOCK_MONOTONIC] {
            let timer = sys::timerfd_create(clock, 0).unwrap();
            let at = now(clock).unwrap() + 100 * NANOS;
            let flags = if clock == libc::CLOCK_REALTIME { 3 } else { 1 };
            sys::timerfd_settime(
                timer.as_fd(),
                flags,
                [7, 0, (at / NANOS) as i64, (at % NANOS) as i64],
            )
            .unwrap();
            let (old, new) = again(&timer);
            assert!(
                old.at.is_some_and(|a| close(a, at)) && new.at.is_some_and(|a| close(a, at)),
                "{old:?} {new:?}"
            );
            assert_eq!((old.flags, new.flags, new.interval), (flags, flags, 7 * NANOS));
        }
        // Of a clock that started over, the point in time may be far ahead: what remained decides.
        let far = Record {
            clock: 1,
            ticks: 0,
            flags: 1,
            remaining: 5 * NANOS,
            at: Some(u64::MAX / 4),
            interval: 0,
        };
        let timer = make(&far).unwrap();
        set(timer.as_fd(), &far).unwrap();
        assert!(close(read(timer.as_fd()).unwrap().unwrap().remaining, 5 * NANOS));
    }
}
