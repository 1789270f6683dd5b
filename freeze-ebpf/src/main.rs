//! The kernel programs of freeze: they report facts about watched processes and decide nothing.
//!
//! Every record about an fd is **reserved before the kernel's state is read**. Records of two threads
//! racing on one fd may reach the ring in either order, but the one that is later in the ring was reserved
//! after both changes, so it holds the final state: replaying the ring always ends at the truth.
#![feature(asm_experimental_arch)]
#![no_std]
#![no_main]

mod changes;
mod files;
mod ipc;
mod memory;
mod process;

use aya_ebpf::helpers::{
    bpf_get_current_pid_tgid, bpf_get_current_task, bpf_ktime_get_ns, bpf_probe_read_kernel,
};
use aya_ebpf::macros::map;
use aya_ebpf::maps::ring_buf::RingBufEntry;
use aya_ebpf::maps::{HashMap, PerCpuArray, RingBuf};
use aya_ebpf::{EbpfContext, Global};
use freeze_common::{Head, MEMBERS, Member, Watched};

/// Facts on their way to the agent; the agent sets the size.
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(4096, 0);

/// The watched processes by process id. Not preallocated: it is nearly always almost empty.
#[map]
static WATCHED: HashMap<u32, Watched> = HashMap::with_max_entries(65536, BPF_F_NO_PREALLOC);

/// Records that found no room, by CPU.
#[map]
static LOST: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// When the agent was last woken because the ring was filling up, by CPU.
#[map]
static WOKEN: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Offsets of [`Member::ALL`] in the running kernel.
#[unsafe(no_mangle)]
static OFFSETS: [Global<u32>; MEMBERS] = [const { Global::new(0) }; MEMBERS];

const BPF_F_NO_PREALLOC: u32 = 1;
const BPF_RB_NO_WAKEUP: u64 = 1;
const BPF_RB_FORCE_WAKEUP: u64 = 2;
const BPF_RB_AVAIL_DATA: u64 = 0;
const BPF_RB_RING_SIZE: u64 = 1;

/// Reads the member of the kernel structure at `base`; 0 if the address is bad.
#[inline(always)]
fn member<T: Copy + Default>(base: u64, which: Member) -> T {
    let address = base + u64::from(OFFSETS[which as usize].load());
    at(address)
}

/// Reads kernel memory; 0 if the address is bad.
#[inline(always)]
fn at<T: Copy + Default>(address: u64) -> T {
    // SAFETY: the helper checks the address and fails instead of faulting.
    unsafe { bpf_probe_read_kernel(address as *const T) }.unwrap_or_default()
}

/// The current thread's `task_struct`.
#[inline(always)]
fn current() -> u64 {
    // SAFETY: the helper has no requirements.
    unsafe { bpf_get_current_task() }
}

/// Process and thread id of the current thread, if its process is watched and alive.
#[inline(always)]
fn watched_current() -> Option<(u32, u32)> {
    let both = bpf_get_current_pid_tgid();
    let (tgid, tid) = ((both >> 32) as u32, both as u32);
    watched(tgid).then_some((tgid, tid))
}

/// Whether a process is watched.
#[inline(always)]
fn watched(tgid: u32) -> bool {
    WATCHED.get_ptr(&tgid).is_some()
}

/// The beginning of a record made now.
#[inline(always)]
fn head(kind: u32, tgid: u32, tid: u32, call: u32) -> Head {
    // SAFETY: the helper has no requirements.
    Head {
        kind,
        tgid,
        tid,
        call,
        time: unsafe { bpf_ktime_get_ns() },
    }
}

/// Room for a record, or the loss counted: the agent answers a loss by reading everything anew.
#[inline(always)]
fn reserve<T: 'static>(ctx: &impl EbpfContext) -> Option<RingBufEntry<T>> {
    let entry = EVENTS.reserve::<T>(0);
    if entry.is_none() {
        lose(ctx);
    }
    entry
}

/// Counts a record that found no room; the first one on a CPU is said aloud.
#[inline(never)]
fn lose(ctx: &impl EbpfContext) {
    if let Some(count) = LOST.get_ptr_mut(0) {
        // SAFETY: a per-CPU value, and programs of this kind do not preempt each other on a CPU; the
        // agent only asks whether the number changed.
        let before = unsafe { *count };
        // SAFETY: as above.
        unsafe { *count = before + 1 };
        if before == 0 {
            aya_log_ebpf::warn!(
                ctx,
                "the event ring is full: events are lost, the map will be read anew"
            );
        }
    }
}

/// Hands a record over without waking the agent; if the ring is half full, it is woken now and then.
#[inline(always)]
fn submit<T: 'static>(entry: RingBufEntry<T>) {
    let half_full = EVENTS.query(BPF_RB_AVAIL_DATA) > EVENTS.query(BPF_RB_RING_SIZE) / 2;
    entry.submit(if half_full && wake_is_due() {
        BPF_RB_FORCE_WAKEUP
    } else {
        BPF_RB_NO_WAKEUP
    });
}

/// Whether this CPU has not woken the agent for a while: a wake-up costs twenty times what a record does.
#[inline(never)]
fn wake_is_due() -> bool {
    const PERIOD: u64 = 1_000_000;
    let Some(last) = WOKEN.get_ptr_mut(0) else {
        return true;
    };
    // SAFETY: the helper has no requirements.
    let now = unsafe { bpf_ktime_get_ns() };
    // SAFETY: a per-CPU value; a race with a program that interrupts costs one more wake-up.
    let due = now - unsafe { *last } > PERIOD;
    if due {
        // SAFETY: as above.
        unsafe { *last = now };
    }
    due
}

/// Reports something that needs no more than a head.
#[inline(always)]
fn note(ctx: &impl EbpfContext, kind: u32, tgid: u32, tid: u32, call: u32) {
    let Some(mut entry) = reserve::<Head>(ctx) else {
        return;
    };
    entry.write(head(kind, tgid, tid, call));
    submit(entry);
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// Some helpers are reserved for programs under the GPL; this object is offered under it as well.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
