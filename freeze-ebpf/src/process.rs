//! Processes and threads: made, executing, ending, renamed, moved to another group.

use crate::files::{Call, table, user};
use crate::{WATCHED, changes, head, member, note, reserve, submit, watched};
use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::{bpf_ktime_get_ns, bpf_seq_write};
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use core::ffi::c_void;
use freeze_common::{Exec, Exit, Fork, Head, Member, Task, Watched, kind};

/// `signal_struct.flags`: the exit status is the group's, not the leader's.
const SIGNAL_GROUP_EXIT: u32 = 4;

/// `sched_process_fork(parent, child)`: runs before the child does, for threads too.
#[btf_tracepoint(function = "sched_process_fork")]
fn forked(ctx: BtfTracePointContext) -> i32 {
    let parent: u64 = ctx.arg(0);
    let child: u64 = ctx.arg(1);
    let tgid: u32 = member(parent, Member::TaskTgid);
    let Some(maker) = WATCHED.get_ptr_mut(&tgid) else {
        return 0;
    };
    let child_tgid: u32 = member(child, Member::TaskTgid);
    if child_tgid != tgid && member::<u64>(child, Member::TaskMm) == member(parent, Member::TaskMm) {
        // What it does to the memory that it was lent (vfork) is done to its maker's.
        // SAFETY: only the address of a member of a live map value.
        changes::grow(unsafe { &raw mut (*maker).changes });
    }
    // SAFETY: a live map value, whose root never changes.
    let own = Watched {
        root: unsafe { (*maker).root },
        dead: 0,
        // SAFETY: the helper has no requirements.
        changes: unsafe { bpf_ktime_get_ns() },
    };
    if child_tgid != tgid && WATCHED.insert(&child_tgid, &own, 0).is_err() {
        // Its events will be missing: the agent must look for itself.
        crate::lose(&ctx);
    }
    let Some(mut entry) = reserve::<Fork>(&ctx) else {
        return 0;
    };
    entry.write(Fork {
        head: head(kind::FORK, tgid, member(parent, Member::TaskPid), 0),
        child_tgid,
        child_tid: member(child, Member::TaskPid),
        ppid: member(member(child, Member::TaskRealParent), Member::TaskTgid),
        threads: member(member(parent, Member::TaskSignal), Member::SignalThreads),
        parent_files: member(parent, Member::TaskFiles),
        files: member(child, Member::TaskFiles),
        comm: member(child, Member::TaskComm),
    });
    submit(entry);
    0
}

/// `sched_process_exec(task, old_pid, bprm)`: after close-on-exec was carried out.
#[btf_tracepoint(function = "sched_process_exec")]
fn execed(ctx: BtfTracePointContext) -> i32 {
    let task: u64 = ctx.arg(0);
    let tgid: u32 = member(task, Member::TaskTgid);
    if !watched(tgid) {
        return 0;
    }
    let Some(mut entry) = reserve::<Exec>(&ctx) else {
        return 0;
    };
    entry.write(Exec {
        head: head(kind::EXEC, tgid, member(task, Member::TaskPid), 0),
        comm: member(task, Member::TaskComm),
    });
    submit(entry);
    0
}

/// `sched_process_exit(task)`: runs for each thread, after it was counted out of the live ones.
#[btf_tracepoint(function = "sched_process_exit")]
fn exited(ctx: BtfTracePointContext) -> i32 {
    let task: u64 = ctx.arg(0);
    let tgid: u32 = member(task, Member::TaskTgid);
    let Some(state) = WATCHED.get_ptr_mut(&tgid) else {
        return 0;
    };
    let signal: u64 = member(task, Member::TaskSignal);
    let last = member::<u32>(signal, Member::SignalLive) == 0;
    if last {
        // SAFETY: a live map value; only ever set from 0 to 1 here.
        unsafe { (*state).dead = 1 };
    }
    let status = if member::<u32>(signal, Member::SignalFlags) & SIGNAL_GROUP_EXIT != 0 {
        member(signal, Member::SignalExitCode)
    } else {
        member(member(task, Member::TaskGroupLeader), Member::TaskExitCode)
    };
    let Some(mut entry) = reserve::<Exit>(&ctx) else {
        return 0;
    };
    entry.write(Exit {
        head: head(kind::EXIT, tgid, member(task, Member::TaskPid), 0),
        status,
        last: u32::from(last),
    });
    // Somebody may have to act on a death at once; all else can wait until the agent looks.
    if last {
        entry.submit(crate::BPF_RB_FORCE_WAKEUP)
    } else {
        submit(entry)
    }
    0
}

/// `sched_process_free(task)`: the process has been waited for and nothing of it is left.
///
/// It runs late (after a grace period): a new process may have the pid by then, which `dead` tells apart.
#[btf_tracepoint(function = "sched_process_free")]
fn freed(ctx: BtfTracePointContext) -> i32 {
    let task: u64 = ctx.arg(0);
    let tgid: u32 = member(task, Member::TaskTgid);
    let tid: u32 = member(task, Member::TaskPid);
    if tgid != tid {
        return 0;
    }
    let Some(state) = WATCHED.get_ptr(&tgid) else {
        return 0;
    };
    // SAFETY: a live map value.
    if unsafe { (*state).dead } == 0 {
        return 0;
    }
    note(&ctx, kind::FREED, tgid, tid, 0);
    let _ = WATCHED.remove(&tgid);
    0
}

/// `task_rename(task, comm)`: by exec, prctl, or a write to its `comm` file.
#[btf_tracepoint(function = "task_rename")]
fn renamed(ctx: BtfTracePointContext) -> i32 {
    let task: u64 = ctx.arg(0);
    let comm: u64 = ctx.arg(1);
    let tgid: u32 = member(task, Member::TaskTgid);
    if !watched(tgid) {
        return 0;
    }
    let Some(mut entry) = reserve::<Exec>(&ctx) else {
        return 0;
    };
    // The caller's buffer may be shorter than a name; what follows its NUL means nothing.
    let mut name = [0u8; 16];
    // SAFETY: the helper checks the address and stops at the NUL.
    let _ = unsafe { aya_ebpf::helpers::bpf_probe_read_kernel_str_bytes(comm as *const u8, &mut name) };
    entry.write(Exec {
        head: head(kind::RENAME, tgid, member(task, Member::TaskPid), 0),
        comm: name,
    });
    submit(entry);
    0
}

/// `setpgid`, `setsid`: the ids of the caller, or of the process that was named, may have changed.
#[inline(always)]
pub(crate) fn ids(ctx: &impl EbpfContext, call: &Call) {
    const SETPGID: u32 = 109;
    if call.result >= 0 {
        let named = call.argument::<0>() as u32;
        let subject = if call.number == SETPGID && named != 0 {
            named
        } else {
            call.tgid
        };
        note(ctx, kind::IDS, subject, subject, call.number);
    }
}

/// `clone`, `clone3`: the pidfd that they may have made is reported by no other call.
#[inline(always)]
pub(crate) fn pidfd_made(ctx: &impl EbpfContext, call: &Call) {
    const CLONE3: u32 = 435;
    const CLONE_PIDFD: u64 = 0x1000;
    let first = call.argument::<0>();
    let flags: u64 = if call.number == CLONE3 { user(first) } else { first };
    if call.result > 0 && flags & CLONE_PIDFD != 0 {
        table(ctx, call);
    }
}

/// What the kernel hands to an iterator over threads.
#[repr(C)]
struct TaskIter {
    meta: *const IterMeta,
    task: *const c_void,
}

/// The beginning of `struct bpf_iter_meta`, laid down by the kernel's interface to iterators.
#[repr(C)]
pub(crate) struct IterMeta {
    pub(crate) seq: *mut c_void,
}

/// Iterator over the threads of a process.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
fn read_tasks(ctx: *mut c_void) -> i32 {
    let ctx: *const TaskIter = ctx.cast();
    // SAFETY: the verifier knows the context of this program type and its fields.
    let (meta, task) = unsafe { ((*ctx).meta, (*ctx).task) };
    if task.is_null() {
        return 0;
    }
    let task = task as u64;
    let tgid: u32 = member(task, Member::TaskTgid);
    let signal: u64 = member(task, Member::TaskSignal);
    let record = Task {
        head: Head {
            kind: kind::TASK,
            tgid,
            tid: member(task, Member::TaskPid),
            call: 0,
            // SAFETY: the helper has no requirements.
            time: unsafe { bpf_ktime_get_ns() },
        },
        ppid: member(member(task, Member::TaskRealParent), Member::TaskTgid),
        dead: u32::from(member::<u32>(signal, Member::SignalLive) == 0),
        files: member(task, Member::TaskFiles),
        mm: member(task, Member::TaskMm),
        comm: member(task, Member::TaskComm),
    };
    // SAFETY: `meta` and its `seq` are valid while the iterator runs; the length is the record's.
    unsafe {
        bpf_seq_write(
            (*meta).seq.cast(),
            (&raw const record).cast(),
            size_of::<Task>() as u32,
        )
    };
    0
}
