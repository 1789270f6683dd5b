//! Page faults of followed address spaces, for the dirty tracker; attached only while it asks for them.

use crate::{BPF_F_NO_PREALLOC, BPF_RB_NO_WAKEUP, current, lose, member};
use aya_ebpf::macros::{btf_tracepoint, map};
use aya_ebpf::maps::{HashMap, RingBuf};
use aya_ebpf::programs::BtfTracePointContext;
use freeze_common::{Fault, Member};

/// Faults on their way to the dirty tracker, which reads them when it wants to and sets the size.
#[map]
static FAULTS: RingBuf = RingBuf::with_byte_size(4096, 0);

/// Followed address spaces by their `mm`. By `mm` and not by process: a vfork child writes into its
/// parent's memory, and the kernel writes for others.
#[map]
static SPACES: HashMap<u64, u32> = HashMap::with_max_entries(65536, BPF_F_NO_PREALLOC);

/// The fault was a write.
const WRITE: u64 = 2;

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
    // SAFETY: a live map value, written only from user space.
    let space = unsafe { *space };
    entry.write(Fault {
        space,
        error: error as u32,
        address: ctx.arg(0),
    });
    entry.submit(BPF_RB_NO_WAKEUP);
}
