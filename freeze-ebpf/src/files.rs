//! Fds: opened, duplicated, closed, received. A record says what the fd stands for **now**.

use crate::process::IterMeta;
use crate::{at, head, ipc, member, note, process, reserve, submit, watched_current};
use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::{
    bpf_get_current_task_btf, bpf_ktime_get_ns, bpf_probe_read_user, bpf_seq_write, bpf_task_pt_regs,
};
use aya_ebpf::macros::{btf_tracepoint, fexit, tracepoint};
use aya_ebpf::programs::{BtfTracePointContext, FExitContext, TracePointContext};
use core::ffi::c_void;
use freeze_common::{Fd, Head, Member, kind};

/// Offsets in `pt_regs` of the six arguments of a system call on x86-64, and of its number.
const ARGUMENT: [u64; 6] = [112, 104, 96, 56, 72, 64];
const NUMBER: u64 = 120;

/// Number and result of the system call whose exit a `syscalls:sys_exit_*` tracepoint reports.
#[inline(always)]
pub(crate) fn result(ctx: &TracePointContext) -> Option<(u32, i64)> {
    // SAFETY: the layout of these tracepoints' context is fixed: common fields, number, result.
    unsafe { Some((ctx.read_at::<u64>(8).ok()? as u32, ctx.read_at::<i64>(16).ok()?)) }
}

/// Argument `n` of the system call the current thread is in.
#[inline(always)]
pub(crate) fn argument(n: usize) -> u64 {
    // SAFETY: the helpers have no requirements beyond a valid task, which the current one is.
    let regs = unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) } as u64;
    at(regs + ARGUMENT[n])
}

/// Reads memory of the current process; 0 if the address is bad.
#[inline(always)]
pub(crate) fn user<T: Copy + Default>(address: u64) -> T {
    // SAFETY: the helper checks the address and fails instead of faulting.
    unsafe { bpf_probe_read_user(address as *const T) }.unwrap_or_default()
}

/// Reports what `fd` of the current thread stands for.
#[inline(always)]
pub(crate) fn state(ctx: &impl EbpfContext, tgid: u32, tid: u32, call: u32, fd: u32) {
    let Some(mut entry) = reserve::<Fd>(ctx) else {
        return;
    };
    // Only now: see the crate's first lines.
    let files = process::current_files();
    let table: u64 = member(files, Member::FilesFdt);
    let file = if fd < member::<u32>(table, Member::FdtMax) {
        at::<u64>(member::<u64>(table, Member::FdtFd) + u64::from(fd) * 8)
    } else {
        0
    };
    entry.write(describe(head(kind::FD, tgid, tid, call), files, file, fd));
    submit(entry);
}

/// A record of one fd.
#[inline(always)]
fn describe(head: Head, files: u64, file: u64, fd: u32) -> Fd {
    let inode: u64 = if file == 0 {
        0
    } else {
        member(file, Member::FileInode)
    };
    let (number, mode, flags) = if inode == 0 {
        (0, 0, 0)
    } else {
        (
            member(inode, Member::InodeIno),
            u32::from(member::<u16>(inode, Member::InodeMode)),
            member(file, Member::FileFlags),
        )
    };
    Fd {
        head,
        files,
        file,
        inode: number,
        fd,
        mode,
        flags,
        _pad: 0,
    }
}

/// Exit of a system call whose result is an fd: open, dup, accept, eventfd and their like.
#[tracepoint]
fn fd_returned(ctx: TracePointContext) -> u32 {
    if let (Some((tgid, tid)), Some((call, ret))) = (watched_current(), result(&ctx)) {
        returned(&ctx, tgid, tid, call, ret);
    }
    0
}

/// A result that may be an fd. If it is none, the record only repeats what is known.
#[inline(always)]
fn returned(ctx: &impl EbpfContext, tgid: u32, tid: u32, call: u32, ret: i64) {
    if ret >= 0 {
        state(ctx, tgid, tid, call, ret as u32);
    }
}

/// Exit of `close`: also after an error, since the fd is gone even then.
#[tracepoint]
fn fd_closed(ctx: TracePointContext) -> u32 {
    if let (Some((tgid, tid)), Some((call, _))) = (watched_current(), result(&ctx)) {
        state(&ctx, tgid, tid, call, argument(0) as u32);
    }
    0
}

/// Exit of `fcntl`: of interest only when it duplicates.
#[tracepoint]
fn fd_controlled(ctx: TracePointContext) -> u32 {
    if let (Some((tgid, tid)), Some((call, ret))) = (watched_current(), result(&ctx)) {
        controlled(&ctx, tgid, tid, call, ret, argument(1) as u32);
    }
    0
}

/// A `fcntl` that made an fd.
#[inline(always)]
fn controlled(ctx: &impl EbpfContext, tgid: u32, tid: u32, call: u32, ret: i64, command: u32) {
    const F_DUPFD: u32 = 0;
    const F_DUPFD_CLOEXEC: u32 = 1030;
    if command == F_DUPFD || command == F_DUPFD_CLOEXEC {
        returned(ctx, tgid, tid, call, ret);
    }
}

/// Exit of a system call after which reading the whole table is cheaper: close_range, unshare.
#[tracepoint]
fn table_changed(ctx: TracePointContext) -> u32 {
    if let (Some((tgid, tid)), Some((call, ret))) = (watched_current(), result(&ctx))
        && ret >= 0
    {
        note(&ctx, kind::TABLE, tgid, tid, call);
    }
    0
}

/// `fd_install(fd, file)`, where fexit is granted: sees the fds that no system call's exit tells of
/// (io_uring, a seccomp supervisor).
#[fexit(function = "fd_install")]
fn fd_installed(ctx: FExitContext) -> i32 {
    if let Some((tgid, tid)) = watched_current() {
        state(&ctx, tgid, tid, 0, ctx.arg::<u32>(0));
    }
    0
}

/// `sys_exit(regs, ret)`: does the work of all the tracepoints above and of those for pipes and sockets on
/// kernels that have no tracepoint for each system call. It costs every system call on the machine more.
#[btf_tracepoint(function = "sys_exit")]
fn any_exit(ctx: BtfTracePointContext) -> i32 {
    let Some((tgid, tid)) = watched_current() else {
        return 0;
    };
    let regs: u64 = ctx.arg(0);
    let ret: i64 = ctx.arg(1);
    let call = at::<u64>(regs + NUMBER) as u32;
    let arg = |n: usize| at::<u64>(regs + ARGUMENT[n]);
    match call {
        3 => state(&ctx, tgid, tid, call, arg(0) as u32),
        72 => controlled(&ctx, tgid, tid, call, ret, arg(1) as u32),
        22 | 293 => ipc::pair(&ctx, tgid, tid, call, ret, arg(0)),
        53 => ipc::pair(&ctx, tgid, tid, call, ret, arg(3)),
        47 => ipc::message(&ctx, tgid, tid, call, ret, arg(1)),
        56 | 435 => process::pidfd_made(&ctx, tgid, tid, call, ret, arg(0)),
        109 | 112 => process::ids(&ctx, tgid, call, ret, arg(0) as u32),
        272 | 299 | 436 if ret >= 0 => note(&ctx, kind::TABLE, tgid, tid, call),
        // Keep in step with FD_RETURNED in freeze-user/src/observe/load.rs.
        2
        | 16
        | 32
        | 33
        | 41
        | 43
        | 85
        | 213
        | 240
        | 253
        | 257
        | 282..=284
        | 288..=292
        | 294
        | 298
        | 300
        | 304
        | 317
        | 319
        | 321
        | 323
        | 425
        | 428
        | 430
        | 432
        | 433
        | 434
        | 437
        | 438
        | 444
        | 447 => returned(&ctx, tgid, tid, call, ret),
        _ => {}
    }
    0
}

/// What the kernel hands to an iterator over open files.
#[repr(C)]
struct FileIter {
    meta: *const IterMeta,
    task: *const c_void,
    fd: u32,
    file: *const c_void,
}

/// Iterator over the fds of a process.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
fn read_files(ctx: *mut c_void) -> i32 {
    let ctx: *const FileIter = ctx.cast();
    // SAFETY: the verifier knows the context of this program type and its fields.
    let (meta, task, fd, file) = unsafe { ((*ctx).meta, (*ctx).task, (*ctx).fd, (*ctx).file) };
    if task.is_null() || file.is_null() {
        return 0;
    }
    let task = task as u64;
    let head = Head {
        kind: kind::FD,
        tgid: member(task, Member::TaskTgid),
        tid: member(task, Member::TaskPid),
        call: 0,
        // SAFETY: the helper has no requirements.
        time: unsafe { bpf_ktime_get_ns() },
    };
    let record = describe(head, member(task, Member::TaskFiles), file as u64, fd);
    // SAFETY: `meta` and its `seq` are valid while the iterator runs; the length is the record's.
    unsafe {
        bpf_seq_write(
            (*meta).seq.cast(),
            (&raw const record).cast(),
            size_of::<Fd>() as u32,
        )
    };
    0
}
