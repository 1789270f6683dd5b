//! Which call a thread is in that the kernel restarts from a memory of its own (`restart_syscall`).
//!
//! A wait that was interrupted before (by an earlier checkpoint, or by job control) goes on under that number, and what
//! it stands for dies with the process. The program still tells: by its code, or else by the arguments.

use crate::ids::Range;
use crate::sys;
use crate::tracee::Stopped;
use crate::tracee::regs::Regs;

/// The calls that go on by restart_syscall, on x86-64.
const RESTARTABLE: [i64; 4] = [
    libc::SYS_poll,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_futex,
];

/// The registers of a thread, with the call it is in by its own number, as far as that can be told.
pub(super) fn remembered(thread: &Stopped) -> Regs {
    let read = |at: u64, len: u64| {
        let mut bytes = vec![0; len as usize];
        let range = Range::new(at, at.checked_add(len)?);
        (sys::vm_read(thread.tid(), &[range], &mut bytes) == Ok(len as usize)).then_some(bytes)
    };
    recall(*thread.regs(), &read)
}

/// The same sleep for what remains of it, where the kernel has told that to the program: when it interrupted the call.
pub(super) fn remaining(regs: &Regs) -> Option<Regs> {
    if !regs.restarts_by_block() {
        return None;
    }
    let again = regs.rewound();
    match regs.syscall()? {
        libc::SYS_nanosleep if regs.rsi != 0 => Some(Regs {
            rdi: regs.rsi,
            ..again
        }),
        libc::SYS_clock_nanosleep if regs.r10 != 0 && regs.rsi == 0 => Some(Regs {
            rdx: regs.r10,
            ..again
        }),
        _ => None,
    }
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
}
