//! Page faults of followed address spaces, and whatever else changes their pages, for the dirty tracker; attached only
//! while it asks for them.

use crate::{BPF_F_NO_PREALLOC, BPF_RB_NO_WAKEUP, at, current, lose, member};
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::{bpf_get_current_task_btf, bpf_task_pt_regs};
use aya_ebpf::macros::{btf_tracepoint, map};
use aya_ebpf::maps::{Array, HashMap, RingBuf};
use aya_ebpf::programs::BtfTracePointContext;
use core::arch::asm;
use freeze_common::{Change, Fault, Member, UNDECODED, WRITE};

/// Faults on their way to the dirty tracker, which reads them when it wants to and sets the size.
#[map]
static FAULTS: RingBuf = RingBuf::with_byte_size(4096, 0);

/// Followed address spaces by their `mm`: the number each is followed under, and how many records there are of it. By
/// `mm` and not by process: a vfork child writes into its parent's memory, and the kernel writes for others.
#[map]
static SPACES: HashMap<u64, [u64; 2]> = HashMap::with_max_entries(65536, BPF_F_NO_PREALLOC);

/// The agent, by its process id in the initial namespace: what it does to others' memory it knows already.
#[map]
static AGENT: Array<u32> = Array::with_max_entries(1, 0);

/// `page_fault_user(address, regs, error_code)`
#[btf_tracepoint(function = "page_fault_user")]
fn user_fault(ctx: BtfTracePointContext) -> i32 {
    log(&ctx);
    0
}

/// `page_fault_kernel(address, regs, error_code)`: the kernel writing for the process, as in `read(2)`.
#[btf_tracepoint(function = "page_fault_kernel")]
fn kernel_fault(ctx: BtfTracePointContext) -> i32 {
    log(&ctx);
    0
}

/// Logs the fault if it is a write into a followed address space.
#[inline(always)]
fn log(ctx: &BtfTracePointContext) {
    let error: u64 = ctx.arg(2);
    if error & WRITE == 0 {
        return;
    }
    let mm: u64 = member(current(), Member::TaskMm);
    let Some(space) = SPACES.get_ptr(&mm) else { return };
    let Some(mut entry) = FAULTS.reserve::<Fault>(0) else {
        return lose(ctx);
    };
    let address: u64 = ctx.arg(0);
    entry.write(Fault {
        space: counted(space),
        thread: bpf_get_current_pid_tgid() as u32,
        place: address & !0xfff | error & 0xfff,
    });
    entry.submit(BPF_RB_NO_WAKEUP);
}

/// Counts a record before it is handed over, so that the agent can tell whether it has read all; returns its space.
#[inline(always)]
fn counted(space: *const [u64; 2]) -> u32 {
    // SAFETY: a live map value of two words. The second one is changed nowhere else, and in one step; `core` has no
    // such step for this target.
    unsafe { asm!("lock *(u64 *)({0} + 8) += {1}", in(reg) space, in(reg) 1u64) };
    // SAFETY: as above; the first one was written by the agent before the value could be found.
    unsafe { (*space)[0] as u32 }
}

/// `rss_stat(mm, member)`: pages came or went. For faults there is a record already; `madvise(2)` and its like have none.
#[btf_tracepoint(function = "rss_stat")]
fn pages_counted(ctx: BtfTracePointContext) -> i32 {
    change(&ctx, false);
    0
}

/// `mmap_lock_acquire_returned(mm, …)`: mappings change, or somebody reaches for pages without a fault (O_DIRECT,
/// io_uring, process_vm_writev(2), ptrace(2)).
#[btf_tracepoint(function = "mmap_lock_acquire_returned")]
fn space_locked(ctx: BtfTracePointContext) -> i32 {
    change(&ctx, true);
    0
}

mod call {
    pub(super) const MMAP: i64 = 9;
    pub(super) const MUNMAP: i64 = 11;
    pub(super) const BRK: i64 = 12;
    pub(super) const MREMAP: i64 = 25;
    pub(super) const MADVISE: i64 = 28;
    pub(super) const PROCESS_MADVISE: i64 = 440;

    /// Advice that leaves contents as they are: what access to expect, what to do at a fork or in a dump, which size of
    /// pages to prefer, which may be merged, which to swap out.
    pub(super) fn is_idle_advice(advice: u64) -> bool {
        matches!(advice, 0..=3 | 10..=12 | 14..=21)
    }

    /// What others look at an address space with: read, pread64, readv (of files in /proc), process_vm_readv.
    pub(super) fn reads(call: i64) -> bool {
        matches!(call, 0 | 17 | 19 | 310)
    }

    /// Those that can have the caller's memory written without a fault of its own: ioctl, setsockopt, getsockopt, ptrace,
    /// mlock, mlockall, io_submit, remap_file_pages, vmsplice, process_vm_writev, mlock2, io_uring_enter,
    /// process_madvise, and whatever is younger than this list. Others take the lock when the kernel faults for them,
    /// which is logged. Direct I/O is no matter of this log: whoever has a file open for it is looked at as a whole.
    pub(super) fn reaches(call: i64) -> bool {
        matches!(
            call,
            16 | 54 | 55 | 101 | 149 | 151 | 209 | 216 | 278 | 311 | 325 | 426 | 440
        ) || call > 470
    }

    /// Those by which pages of a mapped file can vanish, and the process's own copies with them: open, truncate,
    /// ftruncate, creat, openat, openat2.
    pub(super) fn cuts(call: i64) -> bool {
        matches!(call, 2 | 76 | 77 | 85 | 257 | 437)
    }
}

/// Reports what a followed address space is changed by, if it is no fault.
#[inline(always)]
fn change(ctx: &BtfTracePointContext, locked: bool) {
    let mm: u64 = ctx.arg(0);
    let Some(space) = SPACES.get_ptr(&mm) else { return };
    let own: u64 = member(current(), Member::TaskMm);
    let mut told = Change {
        space: 0,
        call: UNDECODED,
        start: 0,
        length: u64::from(own == mm),
    };
    // SAFETY: the helpers have no requirements; every task has room for registers, though a kernel thread has none.
    let regs = unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) } as u64;
    // struct pt_regs: dx at 96, si at 104, di at 112, orig_ax at 120, which is -1 outside of system calls.
    let number = at::<u64>(regs + 120) as i64;
    told.start = number as u64;
    if own != mm {
        let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
        if AGENT.get(0).is_some_and(|agent| *agent == tgid) || own != 0 && call::reads(number) {
            return;
        }
    } else {
        if number < 0 {
            return;
        }
        match number {
            // Mappings that are new or gone are found without a record.
            call::MMAP | call::MUNMAP | call::BRK => return,
            call::MREMAP | call::MADVISE => {
                let last: u64 = at(regs + 96);
                if number == call::MADVISE && call::is_idle_advice(last) {
                    return;
                }
                let length: u64 = at(regs + 104);
                told.call = number as u32;
                told.start = at(regs + 112);
                told.length = match number {
                    // The new length: a mapping that grows where it is may be populated at once.
                    call::MREMAP if last > length => last,
                    _ => length,
                };
            }
            call::PROCESS_MADVISE => {}
            _ if !locked && call::cuts(number) => {}
            // In other calls pages come and go by faults of the kernel's, which are logged.
            _ if locked && call::reaches(number) => {}
            _ => return,
        }
    }
    let Some(mut entry) = FAULTS.reserve::<Change>(0) else {
        return lose(ctx);
    };
    told.space = counted(space);
    entry.write(told);
    entry.submit(BPF_RB_NO_WAKEUP);
}
