//! Fds: opened, duplicated, closed, received. A record says what the fd stands for **now**.

use crate::process::IterMeta;
use crate::{at, changes, current, head, ipc, member, note, process, reserve, submit, watched_current};
use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::{bpf_ktime_get_ns, bpf_probe_read_user, bpf_seq_write};
use aya_ebpf::macros::{btf_tracepoint, fexit};
use aya_ebpf::programs::{BtfTracePointContext, FExitContext};
use core::ffi::c_void;
use freeze_common::{Fd, Head, Member, kind};

/// Offsets in `pt_regs` of the six arguments of a system call on x86-64, and of its number.
pub(crate) const ARGUMENT: [u64; 6] = [112, 104, 96, 56, 72, 64];
const NUMBER: usize = 120;

/// A system call of a watched process, at its exit.
#[derive(Clone, Copy)]
pub(crate) struct Call {
    pub(crate) tgid: u32,
    pub(crate) tid: u32,
    pub(crate) number: u32,
    pub(crate) result: i64,
    /// `struct pt_regs`
    regs: u64,
}

impl Call {
    /// Argument `N`, from 0.
    #[inline(always)]
    pub(crate) fn argument<const N: usize>(&self) -> u64 {
        at(self.regs + const { ARGUMENT[N] })
    }
}

/// Reads memory of the current process; 0 if the address is bad.
#[inline(always)]
pub(crate) fn user<T: Copy + Default>(address: u64) -> T {
    // SAFETY: the helper checks the address and fails instead of faulting.
    unsafe { bpf_probe_read_user(address as *const T) }.unwrap_or_default()
}

/// Reports what `fd` of the current thread stands for.
#[inline(always)]
pub(crate) fn state(ctx: &impl EbpfContext, call: &Call, fd: u32) {
    let Some(mut entry) = reserve::<Fd>(ctx) else {
        return;
    };
    // Only now: see the crate's first lines.
    let files: u64 = member(current(), Member::TaskFiles);
    let table: u64 = member(files, Member::FilesFdt);
    let file = if fd < member::<u32>(table, Member::FdtMax) {
        at::<u64>(member::<u64>(table, Member::FdtFd) + u64::from(fd) * 8)
    } else {
        0
    };
    entry.write(describe(
        head(kind::FD, call.tgid, call.tid, call.number),
        files,
        file,
        fd,
    ));
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

/// `sys_exit(regs, ret)`: runs at the end of every system call on the machine, so its first question is
/// whether the call is of any interest, and only the second who made it.
#[btf_tracepoint(function = "sys_exit")]
fn call_ended(ctx: BtfTracePointContext) -> i32 {
    let regs: *const c_void = ctx.arg(0);
    // SAFETY: the verifier knows the argument as a `struct pt_regs` and allows reading its members.
    let number = unsafe { *regs.byte_add(NUMBER).cast::<u64>() } as u32;
    let telling = changes::is_telling(number);
    let tuning = changes::is_tuning(number);
    if !telling && !tuning && !is_of_interest(number) {
        return 0;
    }
    let watched = watched_current();
    if tuning && watched.is_some() {
        changes::tuned();
    }
    if telling {
        changes::called(number, regs as u64, watched.map(|(tgid, _)| tgid));
    }
    let Some((tgid, tid)) = watched.filter(|_| is_of_interest(number)) else {
        return 0;
    };
    let call = Call {
        tgid,
        tid,
        number,
        result: ctx.arg(1),
        regs: regs as u64,
    };
    match number {
        // close: also after an error, since the fd is gone even then.
        3 => state(&ctx, &call, call.argument::<0>() as u32),
        72 => controlled(&ctx, &call),
        22 | 293 => ipc::pair(&ctx, &call, call.argument::<0>()),
        53 => ipc::pair(&ctx, &call, call.argument::<3>()),
        47 => ipc::message(&ctx, &call),
        56 | 435 => process::pidfd_made(&ctx, &call),
        109 | 112 => process::ids(&ctx, &call),
        // unshare, recvmmsg, close_range: reading the whole table is cheaper.
        272 | 299 | 436 => table(&ctx, &call),
        // The rest returns an fd, or may.
        _ => returned(&ctx, &call),
    }
    0
}

/// A result that may be an fd. If it is none, the record only repeats what is known.
#[inline(always)]
fn returned(ctx: &impl EbpfContext, call: &Call) {
    if call.result >= 0 {
        state(ctx, call, call.result as u32);
    }
}

/// `fcntl`: of interest only when it duplicates.
#[inline(always)]
fn controlled(ctx: &impl EbpfContext, call: &Call) {
    const F_DUPFD: u64 = 0;
    const F_DUPFD_CLOEXEC: u64 = 1030;
    let command = call.argument::<1>();
    if command == F_DUPFD || command == F_DUPFD_CLOEXEC {
        returned(ctx, call);
    }
}

/// Something that may have changed any number of fds.
#[inline(always)]
pub(crate) fn table(ctx: &impl EbpfContext, call: &Call) {
    if call.result >= 0 {
        note(ctx, kind::TABLE, call.tgid, call.tid, call.number);
    }
}

/// `fd_install(fd, file)`, where fexit is granted: sees the fds that no system call's exit tells of
/// (io_uring, a seccomp supervisor).
#[fexit(function = "fd_install")]
fn fd_installed(ctx: FExitContext) -> i32 {
    if let Some((tgid, tid)) = watched_current() {
        let call = Call {
            tgid,
            tid,
            number: 0,
            result: 0,
            regs: 0,
        };
        state(&ctx, &call, ctx.arg::<u32>(0));
    }
    0
}

/// One bit for each number of a system call.
pub(crate) const fn bits(calls: &[u32]) -> [u64; 8] {
    let mut words = [0; 8];
    let mut i = 0;
    while i < calls.len() {
        words[calls[i] as usize / 64] |= 1 << (calls[i] % 64);
        i += 1;
    }
    words
}

/// Whether the bit of a number is set.
#[inline(always)]
pub(crate) fn holds(words: &'static [u64; 8], number: u32) -> bool {
    // The mask spares a bounds check, which kernel programs cannot fail.
    number < 512 && words[(number / 64 & 7) as usize] >> (number % 64) & 1 == 1
}

/// Whether a system call can change what is kept of a process.
#[inline(always)]
fn is_of_interest(number: u32) -> bool {
    const CALLS: [u32; 50] = [
        // open, close, ioctl, pipe, dup, dup2, socket, accept, recvmsg, socketpair, clone, fcntl, creat
        2, 3, 16, 22, 32, 33, 41, 43, 47, 53, 56, 72, 85,
        // setpgid, setsid, epoll_create, mq_open, inotify_init, openat, unshare, signalfd, timerfd_create
        109, 112, 213, 240, 253, 257, 272, 282, 283,
        // eventfd, accept4, signalfd4, eventfd2, epoll_create1, dup3, pipe2, inotify_init1
        284, 288, 289, 290, 291, 292, 293, 294,
        // perf_event_open, recvmmsg, fanotify_init, open_by_handle_at, seccomp, memfd_create, bpf
        298, 299, 300, 304, 317, 319, 321,
        // userfaultfd, io_uring_setup, open_tree, fsopen, fsmount, fspick, pidfd_open, clone3
        323, 425, 428, 430, 432, 433, 434, 435,
        // close_range, openat2, pidfd_getfd, landlock_create_ruleset, memfd_secret
        436, 437, 438, 444, 447,
    ];
    static WORDS: [u64; 8] = bits(&CALLS);
    holds(&WORDS, number)
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
