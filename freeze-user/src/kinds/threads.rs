//! Threads: registers, extended state, TLS, signal mask, alternate stack, robust list, rseq, name, scheduling.

mod habits;
pub(crate) mod restart;

use self::habits::Habits;
use super::io_uring::users;
use super::pipe::Bytes;
use super::{Asks, ProcessKind, Source, Stage};
use crate::error::{Blocker, Context, Result};
use crate::ids::{Pid, Range, TASK_SIZE};
use crate::nest::{Nest, Options};
use crate::observe::sharing::TABLES;
use crate::observe::view::{ProcessView, ThreadView, View};
use crate::sys::sched::{self, SchedAttr};
use crate::sys::{self, Kcmp};
use crate::tracee::regs::{Regs, USER64_CS};
use crate::tracee::tape::Tape;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

#[derive(Debug)]
pub struct Threads;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The leader first, unless it has ended.
    pub threads: Vec<Thread>,
    /// The signal by which job control had stopped the process; 0 if it ran.
    pub stopped_by: i32,
    /// Whether the parent has asked for that stop and been told.
    #[serde(default)]
    pub stop_told: bool,
    /// The status with which the leader has ended, if others go on without it.
    #[serde(default)]
    pub leader_ended: Option<i32>,
    /// The name that such a leader leaves to its process.
    #[serde(default)]
    pub leader_name: Bytes,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thread {
    pub tid: Pid,
    pub regs: Regs,
    /// NT_X86_XSTATE, as the CPU laid it out, without zeros at its end.
    pub xstate: Bytes,
    pub mask: u64,
    /// Address, flags, size of the alternate signal stack.
    pub altstack: [u64; 3],
    pub tid_address: u64,
    /// Head and length.
    pub robust_list: (u64, u64),
    /// Address, length, signature; zero where none is registered.
    pub rseq: (u64, u32, u32),
    pub name: Bytes,
    pub sched: SchedAttr,
    pub affinity: Bytes,
    pub ioprio: i32,
    pub timer_slack: u64,
    #[serde(default)]
    pub habits: Habits,
    /// How much was left of the timeout of the call it is in, in nanoseconds, where that is known.
    #[serde(default)]
    pub left: Option<u64>,
}

const PR_GET_TID_ADDRESS: u64 = 40;
const SYS_IO_PGETEVENTS: i64 = 333;

/// System calls that end with EINTR when a signal (or freeze) comes between, and are not restarted by the kernel
/// (signal(7)); what a program would see is an interruption that never was.
const NEVER_RESTARTED: [i64; 26] = [
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_semop,
    libc::SYS_semtimedop,
    libc::SYS_io_getevents,
    SYS_IO_PGETEVENTS,
    libc::SYS_io_uring_enter,
    // Of a socket with a timeout (SO_RCVTIMEO, SO_SNDTIMEO), and reading from inotify.
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwritev2,
    libc::SYS_preadv2,
    libc::SYS_sendfile,
    libc::SYS_splice,
    libc::SYS_connect,
];

impl Asks for Threads {
    /// Where the alternate stack and the tid address are, the call for the timer slack, what is asked of its habits, and of
    /// its registered io_urings.
    type Places = (u64, u64, usize, habits::Asked, Vec<usize>);
    const EACH: bool = true;

    fn ask(t: &mut Tape<'_>, of: &ProcessView) -> Self::Places {
        let stack = t.space(24);
        let address = t.space(8);
        t.call("sigaltstack", libc::SYS_sigaltstack, &[0, stack]);
        let args = [PR_GET_TID_ADDRESS, address];
        t.call("prctl(PR_GET_TID_ADDRESS)", libc::SYS_prctl, &args);
        let args = [libc::PR_GET_TIMERSLACK as u64];
        let slack = t.call("prctl(PR_GET_TIMERSLACK)", libc::SYS_prctl, &args);
        let rings = users::ask(users::hidden_places(of), t);
        (stack, address, slack, Habits::ask(t), rings)
    }
}

impl ProcessKind for Threads {
    const TAG: &'static str = "threads";
    const VERSION: u16 = 1;
    const ABOUT: &'static str = "threads with ids, registers, xsave state, TLS, mask, alternate stack, robust list, \
        rseq, name, scheduling class, nice, affinity, I/O priority, timer slack, personality, machine-check policy, \
        NUMA memory policy, TSC and CPUID faulting, speculation control, system call dispatch, job-control stops, a first thread that has \
        ended; threads with tables or namespaces of their own and core-scheduling cookies are refused";
    const STAGE: Stage = Stage::Threads;
    type Record = Record;

    fn verdict(p: &ProcessView, _: &View, out: &mut Vec<Blocker>) {
        let cookies = sched::core_cookie(p.speaker).is_ok();
        for t in &p.threads {
            // Once it stands still the tracer is freeze itself.
            let own = nix::unistd::gettid().as_raw();
            let ours = |tracer| tracer == own || Path::new(&format!("/proc/self/task/{tracer}")).exists();
            if t.status.tracer != 0 && !ours(t.status.tracer) {
                out.push(
                    Blocker::of(p.pid, format!("thread {}", t.tid), "")
                        .why(format!("it is being traced already, by pid {}", t.status.tracer))
                        .remedy("end the debugger or tracer first"),
                );
            }
            if t.stat.is_zombie() {
                continue;
            }
            let of_its_own = |(what, ..): &&(Kcmp, u64, &str)| {
                t.tid != p.speaker && sys::kcmp(t.tid, p.speaker, *what, 0, 0).is_ok_and(Ordering::is_ne)
            };
            // Memory and handlers are the same for all threads whatever they do.
            let tables = TABLES[1..3].iter().zip([t.alike.files, t.alike.directory]);
            let asked = tables.filter_map(|(table, alike)| (!alike).then_some(table));
            for (.., name) in asked.filter(of_its_own) {
                out.push(
                    Blocker::of(p.pid, format!("thread {}", t.tid), *name)
                        .why("the thread has made it its own (unshare), and only processes can be carried so")
                        .remedy("checkpoint it when that thread has ended"),
                );
            }
            for kind in &t.own_namespaces {
                out.push(
                    Blocker::of(
                        p.pid,
                        format!("thread {}", t.tid),
                        format!("its {kind} namespace"),
                    )
                    .why("it is another than that of its process")
                    .remedy("checkpoint it when that thread has ended or gone back (setns)"),
                );
            }
            if cookies && sched::core_cookie(t.tid).is_ok_and(|cookie| cookie != 0) {
                out.push(
                    Blocker::of(p.pid, format!("thread {}", t.tid), "a core-scheduling cookie")
                        .why("cookies cannot be made again as they were (PR_SCHED_CORE)")
                        .remedy("start the program without core scheduling"),
                );
            }
        }
    }

    fn collect(from: &mut Source<'_>) -> Result<Record> {
        let mut threads = Vec::new();
        let view = Arc::clone(&from.process.view);
        let by_tid: HashMap<Pid, &ThreadView> = view.threads.iter().map(|t| (t.tid, t)).collect();
        for n in 0..from.process.threads().len() {
            let (ran, (stack, address, slack, asked, rings)) = from.answers_of::<Threads>(n)?;
            let tid = from.process.threads()[n].tid();
            users::told(from.process.pid(), tid, ran, &rings)?;
            let name = || format!("thread {tid}");
            let stat = by_tid.get(&tid).map(|t| &t.stat);
            let thread = &from.process.threads()[n];
            let regs = restart::remembered(thread);
            let left = restart::left(from.process.pid(), thread, &regs);
            threads.push(Thread {
                tid,
                regs,
                xstate: Bytes(used(thread.xstate()?).to_vec()),
                mask: thread.mask(),
                // SS_ONSTACK is where the stack pointer is, not a setting.
                altstack: [
                    ran.word(stack),
                    ran.word(stack + 8) & 0xffff_ffff & !1,
                    ran.word(stack + 16),
                ],
                tid_address: ran.word(address),
                robust_list: crate::sys::get_robust_list(tid).on("get_robust_list", name)?,
                rseq: thread.rseq()?,
                name: Bytes(stat.map_or_else(Vec::new, |s| s.comm.clone())),
                sched: SchedAttr {
                    // Told only of ordinary classes, but kept for the day when a real-time thread becomes one.
                    nice: stat.map_or(0, |s| s.nice) as i32,
                    ..sched::getattr(tid).on("sched_getattr", name)?
                },
                affinity: Bytes(sched::affinity(tid).on("sched_getaffinity", name)?),
                ioprio: sched::ioprio(tid).on("ioprio_get", name)?,
                timer_slack: ran.value(slack) as u64,
                habits: Habits::told(ran, &asked, thread),
                left: left.map(|time| time.as_nanos() as u64),
            });
        }
        if threads.iter().any(|t| t.habits.memory_policy.is_some()) {
            // Whoever changes its cpuset has the kernel bind it to other nodes.
            from.process.answers_pass();
        }
        let stopped_by = from.process.threads().first().map_or(0, |t| t.group_stop());
        let stat = &from.process.view.stat;
        Ok(Record {
            threads,
            stopped_by,
            // A stop that nobody has asked for yet shows as an exit code.
            stop_told: stopped_by != 0 && stat.exit_code == 0,
            leader_ended: stat.is_zombie().then_some(stat.exit_code),
            leader_name: match stat.is_zombie() {
                true => Bytes(stat.comm.clone()),
                false => Bytes::default(),
            },
        })
    }

    fn precheck(record: &Record, pid: Pid, _: &Options, out: &mut Vec<Blocker>) {
        let here = crate::tracee::xstate_size();
        for t in record.threads.iter().filter(|t| t.xstate.0.len() > here) {
            out.push(
                Blocker::of(pid, format!("thread {}", t.tid), "extended registers")
                    .why(format!(
                        "they take {} bytes, and this CPU has {here}: it lacks features the program uses",
                        t.xstate.0.len()
                    ))
                    .remedy("restore on a CPU with all features of the first one"),
            );
        }
    }

    fn restore(record: &Record, pid: Pid, nest: &mut Nest) -> Result<()> {
        // One that has ended stands for itself until all is done, and needs nothing of its own.
        let first = usize::from(record.leader_ended.is_some());
        let others: Vec<Pid> = record.threads[1 - first..].iter().map(|t| t.tid).collect();
        nest.spawn_threads(pid, &others)?;
        let lazy = nest.options.lazy;
        let building = nest.process(pid)?;
        building.stopped_by = record.stopped_by;
        building.stop_told = record.stop_told;
        building.leader_ended = record.leader_ended;
        if !record.leader_name.0.is_empty() {
            building.tape(|t| take_name(&record.leader_name, t))?;
        }
        building.tape_each(first, |n, t| {
            let thread = &record.threads[n - first];
            thread.habits.take_up(t);
            if thread.robust_list.1 != 0 {
                let (head, len) = thread.robust_list;
                t.call("set_robust_list", libc::SYS_set_robust_list, &[head, len]);
            }
            t.call(
                "set_tid_address",
                libc::SYS_set_tid_address,
                &[thread.tid_address],
            );
            let stack: Vec<u8> = thread.altstack.iter().flat_map(|w| w.to_ne_bytes()).collect();
            let stack = t.bytes(&stack);
            t.call("sigaltstack", libc::SYS_sigaltstack, &[stack, 0]);
            take_name(&thread.name, t);
            t.call(
                "prctl(PR_SET_TIMERSLACK)",
                libc::SYS_prctl,
                &[libc::PR_SET_TIMERSLACK as u64, thread.timer_slack],
            );
            // Last: from here on the kernel writes into the area on every way back.
            let (address, len, signature) = thread.rseq;
            if address != 0 {
                t.call(
                    "rseq",
                    libc::SYS_rseq,
                    &[address, u64::from(len), 0, u64::from(signature)],
                );
            }
        })?;
        if lazy {
            record.threads.iter().for_each(|thread| bring_in(pid, thread));
        }
        for (n, thread) in (first..).zip(&record.threads) {
            let name = || format!("thread {}", thread.tid);
            let stopped = &mut building.threads[n];
            stopped.set_xstate(&thread.xstate.0)?;
            stopped.set_dispatch(thread.habits.dispatch);
            let left = thread.left.map(Duration::from_nanos);
            match restart::remaining(stopped.tid(), &thread.regs, left) {
                Some(call) => {
                    stopped.amend(thread.regs, thread.mask);
                    stopped.set_replay(call);
                }
                None => stopped.amend(resumed(&thread.regs), thread.mask),
            }
            let live = stopped.tid();
            schedule(thread, live).on("sched_setattr", name)?;
        }
        Ok(())
    }
}

/// What of extended registers says something: the zeros that follow are taken for granted, ten kilobytes of them where there
/// are tiles (AMX) that nobody uses. The header, which says what is in use, always does.
fn used(xstate: &[u8]) -> &[u8] {
    const HEADER_END: usize = 576;
    const BLOCK: usize = 64;
    let zeros = xstate
        .rchunks(BLOCK)
        .take_while(|block| *block == &[0; BLOCK][..block.len()]);
    let rest = &xstate[..xstate.len().saturating_sub(zeros.count() * BLOCK)];
    let last = rest.iter().rposition(|b| *b != 0).map_or(0, |n| n + 1);
    &xstate[..last.max(HEADER_END).min(xstate.len())]
}

fn take_name(name: &Bytes, t: &mut Tape<'_>) {
    let name = t.bytes(&[&name.0[..], b"\0"].concat());
    t.call(
        "prctl(PR_SET_NAME)",
        libc::SYS_prctl,
        &[libc::PR_SET_NAME as u64, name],
    );
}

/// Touches what the kernel writes at the end of a thread, when it does not wait for a page that is still missing.
fn bring_in(pid: Pid, thread: &Thread) {
    let words = [thread.tid_address, thread.robust_list.0, thread.rseq.0];
    for at in words.into_iter().filter(|at| *at != 0 && *at < TASK_SIZE) {
        // Whoever gave a wrong address will be told by nobody, as before.
        let _ = crate::sys::vm_read(pid, &[Range::new(at, at + 1)], &mut [0]);
    }
}

fn schedule(thread: &Thread, tid: Pid) -> nix::Result<()> {
    let now = sched::getattr(tid)?;
    if now != thread.sched {
        if thread.sched.nice != now.nice {
            // As an ordinary thread first: the classes above ignore the value, and keep the one there is.
            let ordinary = SchedAttr {
                size: thread.sched.size,
                nice: thread.sched.nice,
                ..SchedAttr::default()
            };
            sched::setattr(tid, &ordinary)?;
        }
        let mut wanted = thread.sched;
        if (wanted.util_min, wanted.util_max) != (now.util_min, now.util_max) {
            wanted.flags |= sched::UTIL_CLAMP;
        }
        sched::setattr(tid, &wanted)?;
    }
    if sched::affinity(tid)? != thread.affinity.0 {
        match sched::set_affinity(tid, &thread.affinity.0) {
            // None of its CPUs is here: it may run on all that are, as when they are unplugged.
            Ok(()) | Err(Errno::EINVAL) => {}
            Err(e) => return Err(e),
        }
    }
    if sched::ioprio(tid)? != thread.ioprio {
        sched::set_ioprio(tid, thread.ioprio)?;
    }
    Ok(())
}

/// The registers to go on with in a new process.
///
/// A call that the kernel restarts by itself goes on verbatim, except where its memory of the call (the restart
/// block) is gone: it is made anew. An absolute wait is exact then, and so is one of which it is known what remains
/// ([`restart::remaining`]); another relative wait may last longer, never less.
fn resumed(regs: &Regs) -> Regs {
    if regs.restarts_by_block() {
        regs.rewound()
    } else {
        *regs
    }
}

/// What a stopped thread's registers must be amended to, so that it sees no interruption; called right after the stop.
///
/// - An interrupted wait that the kernel would end with EINTR is made anew, unless a signal is about to be handled.
/// - Inside an rseq critical section the program must be sent to its abort handler, as after a preemption:
///   the tape's own way back to user mode would make the kernel forget the section.
pub fn undisturbed(regs: &Regs, mask: u64, pending: u64, section: Option<(u64, u64, u64)>) -> Regs {
    let mut regs = *regs;
    let interrupted = regs.rax as i64 == -i64::from(libc::EINTR);
    if interrupted && pending & !mask == 0 && regs.syscall().is_some_and(|nr| NEVER_RESTARTED.contains(&nr)) {
        regs = regs.rewound();
    }
    if let Some((start, len, abort)) = section
        && (start..start + len).contains(&regs.rip)
    {
        regs.rip = abort;
    }
    regs
}

/// Whether a thread runs 64-bit code.
pub fn is_64_bit(regs: &Regs) -> bool {
    regs.cs == USER64_CS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(nr: i64, result: i64) -> Regs {
        Regs {
            rip: 0x1002,
            orig_rax: nr as u64,
            rax: result as u64,
            ..Regs::default()
        }
    }

    #[test]
    fn a_wait_is_made_anew_unless_a_signal_waits() {
        let r = waiting(libc::SYS_epoll_wait, -4);
        let anew = undisturbed(&r, 0, 0, None);
        assert_eq!(
            (anew.rip, anew.rax, anew.orig_rax),
            (0x1000, libc::SYS_epoll_wait as u64, !0)
        );
        assert_eq!(
            undisturbed(&r, 0, 1 << 14, None),
            r,
            "SIGTERM is about to be handled"
        );
        assert_eq!(undisturbed(&r, 1 << 14, 1 << 14, None), anew, "it is blocked");
        let close = waiting(libc::SYS_close, -4);
        assert_eq!(undisturbed(&close, 0, 0, None), close);
    }

    #[test]
    fn zeros_at_the_end_of_extended_registers_go_without_saying() {
        let mut state = vec![0; 11008];
        assert_eq!(used(&state).len(), 576);
        state[700] = 1;
        assert_eq!(used(&state), &state[..701]);
        state[11007] = 1;
        assert_eq!(used(&state), state);
        assert_eq!(used(&[1; 512]), [1; 512]);
    }

    #[test]
    fn a_critical_section_is_aborted() {
        let r = Regs {
            rip: 0x105,
            orig_rax: !0,
            ..Regs::default()
        };
        assert_eq!(undisturbed(&r, 0, 0, Some((0x100, 0x10, 0x900))).rip, 0x900);
        assert_eq!(undisturbed(&r, 0, 0, Some((0x106, 0x10, 0x900))).rip, 0x105);
    }

    #[test]
    fn only_a_lost_restart_block_is_replaced() {
        let nanosleep = waiting(libc::SYS_nanosleep, -516);
        assert_eq!(resumed(&nanosleep).rip, 0x1000);
        let read = waiting(libc::SYS_read, -512);
        assert_eq!(resumed(&read), read);
    }
}
