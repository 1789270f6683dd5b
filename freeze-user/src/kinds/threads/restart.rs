//! Which call a thread is in that the kernel restarts from a memory of its own (`restart_syscall`).
//!
//! A wait that was interrupted before (by an earlier checkpoint, or by job control) goes on under that number, and what
//! it stands for dies with the process. The program still tells: by its code, or else by the arguments.

use crate::ids::Pid;
use crate::observe::peek::Peek;
use crate::tracee::regs::Regs;
use crate::tracee::{Replay, Stopped};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

/// The calls that go on by restart_syscall, on x86-64.
const RESTARTABLE: [i64; 4] = [
    libc::SYS_poll,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_futex,
];

/// The registers of a thread, with the call it is in by its own number, as far as that can be told.
pub(super) fn remembered(thread: &Stopped) -> Regs {
    recall(*thread.regs(), &memory_of(thread.tid()))
}

/// By /proc/PID/mem: process_vm_readv(2) would unshare pages that relatives share.
fn memory_of(tid: Pid) -> impl Fn(u64, u64) -> Option<Vec<u8>> {
    move |at: u64, len: u64| {
        let mut bytes = vec![0; len as usize];
        let mem = File::open(format!("/proc/{tid}/mem")).ok()?;
        mem.read_exact_at(&mut bytes, at).ok()?;
        Some(bytes)
    }
}

/// How much is left of the timeout of a call that the kernel restarts by itself, with `regs` as [`remembered`].
pub(super) fn left(process: Pid, thread: &Stopped, regs: &Regs) -> Option<Duration> {
    if !regs.restarts_by_block() {
        return None;
    }
    // Of one that was interrupted before, only the kernel knows when it began; of one that was not asleep yet a moment ago it
    // need not be asked.
    let first_time = thread.regs().syscall() != Some(libc::SYS_restart_syscall) && !thread.asleep().is_zero();
    if !first_time
        && let Some(left) = Peek::ready().and_then(|peek| peek.left(process, thread.tid(), regs.syscall()?))
    {
        return Some(left);
    }
    let whole = timeout(regs, &memory_of(thread.tid()))?;
    (!thread.asleep().is_zero()).then(|| whole.saturating_sub(thread.asleep()))
}

/// The timeout that such a call was given, if it is not a point in time.
fn timeout(regs: &Regs, read: Read<'_>) -> Option<Duration> {
    match regs.syscall()? {
        libc::SYS_poll => Some(Duration::from_millis(u64::from(
            u32::try_from(regs.rdx as i32).ok()?,
        ))),
        libc::SYS_nanosleep => time_at(regs.rdi, read),
        libc::SYS_clock_nanosleep if regs.rsi == 0 => time_at(regs.rdx, read),
        libc::SYS_futex if regs.rsi & !FUTEX_PRIVATE == 0 => time_at(regs.r10, read),
        _ => None,
    }
}

/// The same wait for what remains of it: as the kernel has told the program when it interrupted the call, or as was
/// found out.
pub(super) fn remaining(tid: Pid, regs: &Regs, left: Option<Duration>) -> Option<Replay> {
    remaining_in(regs, left, &memory_of(tid))
}

fn remaining_in(regs: &Regs, left: Option<Duration>, read: Read<'_>) -> Option<Replay> {
    if !regs.restarts_by_block() {
        return None;
    }
    let again = regs.rewound();
    let told = |regs: Regs| Some(Replay { regs, time: None });
    match regs.syscall()? {
        libc::SYS_nanosleep if regs.rsi != 0 => {
            return told(Regs {
                rdi: regs.rsi,
                ..again
            });
        }
        libc::SYS_clock_nanosleep if regs.r10 != 0 && regs.rsi == 0 => {
            return told(Regs {
                rdx: regs.r10,
                ..again
            });
        }
        _ => {}
    }
    // One that waits until a point in time is exact as it is.
    timeout(regs, read)?;
    let left = left?;
    // Below what the thread's stack may hold without telling (the red zone of the ABI).
    let at = regs.rsp.checked_sub(128 + 64)? & !15;
    read(at, 16)?;
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&left.as_secs().to_ne_bytes());
    bytes[8..].copy_from_slice(&u64::from(left.subsec_nanos()).to_ne_bytes());
    let time = Some((at, bytes));
    let (regs, time) = match regs.syscall()? {
        libc::SYS_poll => {
            let rdx = milliseconds(left);
            (Regs { rdx, ..again }, None)
        }
        libc::SYS_nanosleep => (Regs { rdi: at, ..again }, time),
        libc::SYS_clock_nanosleep => (Regs { rdx: at, ..again }, time),
        libc::SYS_futex => {
            let word = read(regs.rdi, 4)?;
            // Else it is about to be woken.
            (word[..] == (regs.rdx as u32).to_ne_bytes()).then_some(())?;
            (Regs { r10: at, ..again }, time)
        }
        _ => return None,
    };
    Some(Replay { regs, time })
}

const FUTEX_PRIVATE: u64 = 128;

/// A wait for events that is about to be made anew, by what the thread had been asleep shorter than it was.
///
/// The kernel keeps no memory of such a call, so what remains must come with it.
pub(crate) fn shortened(tid: Pid, regs: &Regs, asleep: Duration) -> Regs {
    shortened_in(regs, asleep, &memory_of(tid))
}

fn shortened_in(regs: &Regs, asleep: Duration, read: Read<'_>) -> Regs {
    if asleep.is_zero() {
        return *regs;
    }
    let left = match regs.rax as i64 {
        libc::SYS_epoll_wait | libc::SYS_epoll_pwait => u32::try_from(regs.r10 as i32)
            .ok()
            .map(|ms| Duration::from_millis(u64::from(ms))),
        libc::SYS_epoll_pwait2 if regs.r10 != 0 => time_at(regs.r10, read),
        _ => None,
    };
    let Some(left) = left.map(|whole| whole.saturating_sub(asleep)) else {
        return *regs;
    };
    let rax = match regs.rax as i64 {
        // The same but that it takes milliseconds, and takes them from a register.
        libc::SYS_epoll_pwait2 => libc::SYS_epoll_pwait as u64,
        _ => regs.rax,
    };
    Regs {
        rax,
        r10: milliseconds(left),
        ..*regs
    }
}

/// Whole milliseconds, so that nobody waits less.
fn milliseconds(time: Duration) -> u64 {
    time.as_nanos().div_ceil(1_000_000).min(i32::MAX as u128) as u64
}

/// A struct timespec, if it is one.
fn time_at(at: u64, read: Read<'_>) -> Option<Duration> {
    let bytes = read(at, 16)?;
    let seconds = u64::from_ne_bytes(bytes[..8].try_into().ok()?);
    let nanoseconds = u64::from_ne_bytes(bytes[8..].try_into().ok()?);
    (seconds < 1 << 40 && nanoseconds < 1_000_000_000).then(|| Duration::new(seconds, nanoseconds as u32))
}

type Read<'a> = &'a dyn Fn(u64, u64) -> Option<Vec<u8>>;

fn recall(mut regs: Regs, read: Read<'_>) -> Regs {
    if regs.restarts_by_block()
        && regs.syscall() == Some(libc::SYS_restart_syscall)
        && let Some(number) = by_code(&regs, read).or_else(|| by_arguments(&regs, read))
    {
        regs.orig_rax = number as u64;
    }
    regs
}

/// `mov $N, %eax; syscall`, as C libraries and Go have it.
fn by_code(regs: &Regs, read: Read<'_>) -> Option<i64> {
    let code = read(regs.rip.checked_sub(7)?, 7)?;
    let [0xb8, a, b, c, d, 0x0f, 0x05] = code[..] else {
        return None;
    };
    let number = i64::from(u32::from_le_bytes([a, b, c, d]));
    RESTARTABLE.contains(&number).then_some(number)
}

/// Where the number comes in a register (syscall(2), musl): each of the four has arguments that no other would have.
fn by_arguments(regs: &Regs, read: Read<'_>) -> Option<i64> {
    let word = |at: u64| Some(u64::from_le_bytes(read(at, 8)?.try_into().ok()?));
    let is_time = |at: u64| {
        word(at)
            .zip(word(at.wrapping_add(8)))
            .is_some_and(|(s, ns)| s < 1 << 40 && ns < 1_000_000_000)
    };
    const PRIVATE_OR_REALTIME: u64 = 128 | 256;
    const WAIT_OR_BITSET: [u64; 2] = [0, 9];
    // A futex wait: a timeout, and a word that still is what it was waited on to change from, or has just changed.
    let futex = WAIT_OR_BITSET.contains(&(regs.rsi & !PRIVATE_OR_REALTIME))
        && regs.rdi.is_multiple_of(4)
        && is_time(regs.r10)
        && read(regs.rdi, 4).is_some_and(|w| w[..] == (regs.rdx as u32).to_le_bytes());
    // A clock's number is no address; a number of pollfds is none either.
    const NO_ADDRESS: u64 = 4096;
    match () {
        () if regs.rdi < 16 && is_time(regs.rdx) => Some(libc::SYS_clock_nanosleep),
        () if futex => Some(libc::SYS_futex),
        () if is_time(regs.rdi) && (regs.rsi == 0 || regs.rsi >= NO_ADDRESS) => Some(libc::SYS_nanosleep),
        () if regs.rsi < NO_ADDRESS && (regs.rsi == 0 || read(regs.rdi, 8 * regs.rsi).is_some()) => {
            Some(libc::SYS_poll)
        }
        () => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMORY: u64 = 0x10_0000;

    /// A thread in restart_syscall; its code and data lie at MEMORY.
    fn in_call(code: &[u8], args: [u64; 4], data: Vec<u8>) -> Option<i64> {
        let memory = [code.to_vec(), data].concat();
        let read = move |at: u64, len: u64| {
            let from = at.checked_sub(MEMORY)? as usize;
            memory.get(from..from + len as usize).map(<[u8]>::to_vec)
        };
        let [rdi, rsi, rdx, r10] = args;
        let rip = MEMORY + code.len() as u64;
        let regs = Regs {
            rdi,
            rsi,
            rdx,
            r10,
            rip,
            rax: -516i64 as u64,
            orig_rax: 219,
            ..Regs::default()
        };
        let found = recall(regs, &read).orig_rax as i64;
        (found != libc::SYS_restart_syscall).then_some(found)
    }

    #[test]
    fn the_code_tells() {
        let poll = [0xb8, 7, 0, 0, 0, 0x0f, 5];
        assert_eq!(in_call(&poll, [0; 4], vec![]), Some(libc::SYS_poll));
        let write = [0xb8, 1, 0, 0, 0, 0x0f, 5];
        assert_eq!(
            in_call(&write, [1 << 40, 1 << 40, 0, 0], vec![]),
            None,
            "write is not restarted by block"
        );
    }

    #[test]
    fn the_arguments_tell() {
        let generic = [0x4d, 0x89, 0xc8, 0x90, 0x90, 0x0f, 5, 0];
        let at = MEMORY + 8;
        // At `at`: a time of one second; after it, a word of value 5; after that a pollfd for POLLIN.
        let data = [
            1u64.to_le_bytes(),
            0u64.to_le_bytes(),
            5u64.to_le_bytes(),
            (3u64 | 1 << 32).to_le_bytes(),
        ]
        .concat();
        let call = |args| in_call(&generic[..7], args, [vec![0], data.clone()].concat());
        assert_eq!(call([1, 0, at, 0]), Some(libc::SYS_clock_nanosleep));
        assert_eq!(call([at, 0, 0, 0]), Some(libc::SYS_nanosleep));
        assert_eq!(call([at + 16, 128, 5, at]), Some(libc::SYS_futex));
        assert_eq!(call([at + 24, 1, 1000, 0]), Some(libc::SYS_poll));
    }

    #[test]
    fn what_remains_of_a_wait_is_asked_for() {
        let memory = |at: u64, len: u64| {
            let times = [2u64.to_ne_bytes(), 500_000_000u64.to_ne_bytes()].concat();
            let at = at.checked_sub(MEMORY)? as usize;
            [times, vec![0; 496]]
                .concat()
                .get(at..at + len as usize)
                .map(<[u8]>::to_vec)
        };
        let regs = Regs {
            rip: 0x1002,
            rsp: MEMORY + 500,
            rax: -516i64 as u64,
            ..Regs::default()
        };
        let left = |regs: Regs, ms: u64| {
            let whole = timeout(&regs, &memory).unwrap();
            remaining_in(
                &regs,
                Some(whole.saturating_sub(Duration::from_millis(ms))),
                &memory,
            )
        };
        let poll = Regs {
            orig_rax: libc::SYS_poll as u64,
            rdx: 3000,
            ..regs
        };
        assert_eq!(remaining_in(&poll, None, &memory), None);
        assert_eq!(left(poll, 1999).unwrap().regs.rdx, 1001);
        assert_eq!(left(poll, 5000).unwrap().regs.rdx, 0);
        let sleep = Regs {
            orig_rax: libc::SYS_nanosleep as u64,
            rdi: MEMORY,
            ..regs
        };
        let replay = left(sleep, 600).unwrap();
        let (at, bytes) = replay.time.unwrap();
        assert_eq!((replay.regs.rdi, replay.regs.rip), (at, 0x1000));
        assert_eq!(
            bytes,
            *[1u64.to_ne_bytes(), 900_000_000u64.to_ne_bytes()].as_flattened()
        );
        let epoll = |nr: i64, r10| Regs {
            rax: nr as u64,
            r10,
            ..regs
        };
        let short = |regs: Regs, ms| shortened_in(&regs, Duration::from_millis(ms), &memory);
        assert_eq!(short(epoll(libc::SYS_epoll_wait, 3000), 1000).r10, 2000);
        let forever = epoll(libc::SYS_epoll_wait, u64::from(u32::MAX));
        assert_eq!(short(forever, 1000), forever);
        let pwait2 = short(epoll(libc::SYS_epoll_pwait2, MEMORY), 1000);
        assert_eq!((pwait2.rax as i64, pwait2.r10), (libc::SYS_epoll_pwait, 1500));
        assert_eq!(short(epoll(libc::SYS_read, 5), 1000).r10, 5);
    }
}
