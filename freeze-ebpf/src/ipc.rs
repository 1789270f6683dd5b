//! Pipes and socket pairs made, fds received in messages.

use crate::files::{argument, result, state, user};
use crate::{note, watched_current};
use aya_ebpf::EbpfContext;
use aya_ebpf::macros::tracepoint;
use aya_ebpf::programs::TracePointContext;
use freeze_common::kind;

/// Exit of `pipe`, `pipe2` and `socketpair`: two fds, written into the caller's memory.
#[tracepoint]
fn pair_made(ctx: TracePointContext) -> u32 {
    const SOCKETPAIR: u32 = 53;
    if let (Some((tgid, tid)), Some((call, ret))) = (watched_current(), result(&ctx)) {
        let at = if call == SOCKETPAIR {
            argument(3)
        } else {
            argument(0)
        };
        pair(&ctx, tgid, tid, call, ret, at);
    }
    0
}

/// Two fds at `address`.
#[inline(always)]
pub(crate) fn pair(ctx: &impl EbpfContext, tgid: u32, tid: u32, call: u32, ret: i64, address: u64) {
    if ret == 0 {
        // Together, from memory that another thread may be changing: a wrong number only makes a record
        // about another fd, which is true as well; the audit finds the one that was meant.
        let fds: [u32; 2] = user(address);
        state(ctx, tgid, tid, call, fds[0]);
        state(ctx, tgid, tid, call, fds[1]);
    }
}

/// Exit of `recvmsg`.
#[tracepoint]
fn message_received(ctx: TracePointContext) -> u32 {
    if let (Some((tgid, tid)), Some((call, ret))) = (watched_current(), result(&ctx)) {
        message(&ctx, tgid, tid, call, ret, argument(1));
    }
    0
}

/// The beginning of a control message.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Control {
    len: u64,
    level: i32,
    kind: i32,
    fds: [u32; FEW],
}

/// So many received fds are reported one by one; for more, the table is read anew.
const FEW: usize = 2;

/// A received message: if it brought fds, what they stand for.
#[inline(always)]
pub(crate) fn message(ctx: &impl EbpfContext, tgid: u32, tid: u32, call: u32, ret: i64, header: u64) {
    const SOL_SOCKET: i32 = 1;
    const SCM_RIGHTS: i32 = 1;
    const HEADER: u64 = 16;
    if ret < 0 {
        return;
    }
    // `msg_control` and `msg_controllen` of struct msghdr; the kernel has put the received length there.
    let [control, length]: [u64; 2] = user(header + 32);
    if length <= HEADER {
        return;
    }
    let first: Control = user(control);
    let rights = first.level == SOL_SOCKET && first.kind == SCM_RIGHTS;
    // The same whether one or two fds came: the second number is then that of some fd, or of none.
    if rights && first.len <= HEADER + 4 * FEW as u64 {
        for fd in first.fds {
            state(ctx, tgid, tid, call, fd);
        }
    } else {
        note(ctx, kind::TABLE, tgid, tid, call);
    }
}
