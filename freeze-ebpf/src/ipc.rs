//! Pipes and socket pairs made, fds received in messages.

use crate::files::{Call, state, table, user};
use aya_ebpf::EbpfContext;

/// `pipe`, `pipe2`, `socketpair`: two fds, written into the caller's memory at `address`.
#[inline(always)]
pub(crate) fn pair(ctx: &impl EbpfContext, call: &Call, address: u64) {
    if call.result == 0 {
        // From memory that another thread may be changing: a wrong number only makes a record about another
        // fd, which is true as well; the audit finds the one that was meant.
        let [a, b]: [u32; 2] = user(address);
        state(ctx, call, a);
        state(ctx, call, b);
    }
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

/// `recvmsg`: if the message brought fds, what they stand for.
#[inline(always)]
pub(crate) fn message(ctx: &impl EbpfContext, call: &Call) {
    const SOL_SOCKET: i32 = 1;
    const SCM_RIGHTS: i32 = 1;
    const HEADER: u64 = 16;
    if call.result < 0 {
        return;
    }
    // `msg_control` and `msg_controllen` of struct msghdr; the kernel has put the received length there.
    let [control, length]: [u64; 2] = user(call.argument::<1>() + 32);
    if length <= HEADER {
        return;
    }
    let first: Control = user(control);
    let rights = first.level == SOL_SOCKET && first.kind == SCM_RIGHTS;
    if !rights || first.len > HEADER + 4 * FEW as u64 {
        return table(ctx, call);
    }
    // If only one came, the second number is that of some fd, or of none: true, and no news.
    for fd in first.fds {
        state(ctx, call, fd);
    }
}
