//! What may have changed what only a process itself can tell (its handlers, limits, securebits …): as long as nothing has,
//! what it answered to freeze at one stop is what it would answer at the next.

use crate::files::{ARGUMENT, bits, holds};
use crate::{WATCHED, at, watched_current};
use aya_ebpf::macros::{btf_tracepoint, map};
use aya_ebpf::maps::Array;
use aya_ebpf::programs::BtfTracePointContext;
use core::arch::asm;

/// How often, whichever process it was: one has changed such a thing of another; a watched one may have changed an option
/// of a socket.
#[map]
static COUNTS: Array<u64> = Array::with_max_entries(2, 0);
const OTHERS: u32 = 0;
const OPTIONS: u32 = 1;

const MEMBARRIER: u32 = 324;
const PRLIMIT64: u32 = 302;
const MBIND: u32 = 237;

/// The first number that nobody has looked through yet: what comes with later kernels counts, whatever it does.
const UNKNOWN: u32 = 463;

/// Whether a system call may change an answer. Its number is that of rt_sigreturn, too, which hides its own (-1).
#[inline(always)]
pub(crate) fn is_telling(number: u32) -> bool {
    const CALLS: [u32; 41] = [
        // brk, rt_sigaction, rt_sigreturn, alarm, setitimer, execve, setuid, setgid, setreuid, setregid, setgroups
        12, 13, 15, 37, 38, 59, 105, 106, 113, 114, 116,
        // setresuid, setresgid, setfsuid, setfsgid, capset, sigaltstack, personality, mlockall, munlockall, modify_ldt
        117, 119, 122, 123, 126, 131, 135, 151, 152, 154,
        // prctl, arch_prctl, setrlimit, set_tid_address, mbind, set_mempolicy, add_key, request_key, keyctl
        157, 158, 160, 218, MBIND, 238, 248, 249, 250,
        // migrate_pages, unshare, prlimit64, setns, seccomp, execveat, membarrier, pkey_alloc, pkey_free
        256, 272, PRLIMIT64, 308, 317, 322, MEMBARRIER, 330, 331,
        // io_uring_setup (an instance can be known by its registration alone from the beginning), io_uring_register
        425, 427,
    ];
    static WORDS: [u64; 8] = bits(&CALLS);
    // set_mempolicy_home_node, map_shadow_stack
    number >= UNKNOWN || holds(&WORDS, number) || number == 450 || number == 453
}

/// Whether a system call may change an option of a socket: connect(2), which undoes some if it is to nowhere, bind(2),
/// listen(2), setsockopt(2), and io_uring_enter(2), which may do all of that.
#[inline(always)]
pub(crate) fn is_tuning(number: u32) -> bool {
    matches!(number, 42 | 49 | 50 | 54 | 426)
}

/// Notes such a call of a watched process.
#[inline(always)]
pub(crate) fn tuned() {
    if let Some(count) = COUNTS.get_ptr_mut(OPTIONS) {
        grow(count);
    }
}

/// Notes a telling call at its end; `by`: the watched process that made it.
#[inline(always)]
pub(crate) fn called(number: u32, regs: u64, by: Option<u32>) {
    /// The commands of membarrier(2) that register, and do not just wait.
    const REGISTER: u64 = 1 << 2 | 1 << 4 | 1 << 6 | 1 << 8;
    let argument = |n: usize| at::<u64>(regs + ARGUMENT[n]);
    if number == PRLIMIT64 {
        // What only asks changes nothing.
        if argument(2) == 0 {
            return;
        }
    }
    // Of prlimit64, 0 stands for the caller. The policy of shared memory is that of all who have it mapped.
    if (number == PRLIMIT64 && argument(0) != 0 || number == MBIND)
        && let Some(count) = COUNTS.get_ptr_mut(OTHERS)
    {
        grow(count);
    }
    if number == MEMBARRIER && argument(0) & REGISTER == 0 {
        return;
    }
    if let Some(state) = by.and_then(|tgid| WATCHED.get_ptr_mut(&tgid)) {
        // SAFETY: only the address of a member of a live map value.
        grow(unsafe { &raw mut (*state).changes });
    }
}

/// Counts one change more.
#[inline(always)]
pub(crate) fn grow(count: *mut u64) {
    // SAFETY: a live map value of eight bytes, aligned as such, which is changed nowhere but here, and in one step; `core`
    // has no such step for this target.
    unsafe { asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) count, in(reg) 1u64) };
}

/// `signal_deliver(sig, info, ka)`: delivery can reset a handler (SA_RESETHAND) and disarm an alternate stack.
#[btf_tracepoint(function = "signal_deliver")]
fn delivered(_: BtfTracePointContext) -> i32 {
    let state = watched_current().and_then(|(tgid, _)| WATCHED.get_ptr_mut(&tgid));
    if let Some(state) = state {
        // SAFETY: only the address of a member of a live map value.
        grow(unsafe { &raw mut (*state).changes });
    }
    0
}
