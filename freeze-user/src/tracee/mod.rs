//! A thread of another process under ptrace(2): a state is a type, a step consumes it, dropping puts it back.
//!
//! ptrace answers ESRCH to any thread but the tracer, so a [`Stopped`] can't be sent to another thread.
#![allow(unsafe_code, reason = "ptrace has its address here")]

mod arrive;
mod many;
pub mod process;
mod raw;
mod replay;
pub mod regs;
mod room;
pub mod tape;

pub use many::{LINGER, park_all, play_all, reap, release_all};

use crate::error::{Context, Error, Result};
use crate::ids::{Pid, Range};
use crate::sys::deadline;
use arrive::patience;
use nix::errno::Errno;
use raw::{get_dispatch, get_mask, get_regs, set_dispatch, set_mask, set_regs};
use regs::Regs;
pub use replay::Replay;
use std::cell::{Cell, OnceCell, RefCell};
use std::marker::PhantomData;
use std::sync::LazyLock;
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

/// Raw ptrace(2).
fn ptrace(request: u32, tid: Pid, addr: u64, data: u64) -> nix::Result<i64> {
    // SAFETY: callers below pass pointers that are valid for their request.
    Errno::result(unsafe { libc::ptrace(request, tid.0, addr, data) })
}

const NT_PRSTATUS: u64 = 1;
const NT_X86_XSTATE: u64 = 0x202;
const PEEKSIGINFO_SHARED: u32 = 1;

/// Kill the tracee when the tracer ends: for what is being built, never for what is being checkpointed.
pub const EXITKILL: u64 = libc::PTRACE_O_EXITKILL as u64;
/// Leave the thread's seccomp filters out of force while it is traced.
pub const SUSPEND_SECCOMP: u64 = 1 << 21;

/// How a thread came to a halt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Halt {
    /// On our request, between two instructions or on the way out of a system call.
    Interrupted,
    /// It was stopped by a job-control signal before we came.
    Group(i32),
    /// A signal is about to be delivered.
    Signal(i32),
    /// It is gone: status as wait(2) has it.
    Gone(i32),
}

/// Waits for one thread to halt.
pub fn wait(tid: Pid) -> Result<Halt> {
    match wait_in_time(tid)? {
        Some(halt) => Ok(halt),
        None => Err(Errno::ETIMEDOUT).on("waiting for it to stop", || format!("thread {tid}{}", stuck(tid))),
    }
}

/// For how long a halt is waited for without going to sleep: to be woken takes longer than most halts do.
const WAKEFUL: Duration = Duration::from_micros(100);

/// For how many halts not, after one that took longer: the thread may be waiting for the very processor that waits for it.
const DROWSY: u32 = 32;

thread_local! {
    /// How many halts are still to be slept for.
    static DROWSY_FOR: Cell<u32> = const { Cell::new(0) };
}

/// Until when to wait awake: not at all where the thread that is waited for has no other processor to run on.
fn wakeful_until() -> Option<Instant> {
    static OTHERS: LazyLock<bool> = LazyLock::new(|| available_parallelism().is_ok_and(|n| n.get() > 1));
    let drowsy = DROWSY_FOR.get();
    DROWSY_FOR.set(drowsy.saturating_sub(1));
    (*OTHERS && drowsy == 0).then(|| Instant::now() + WAKEFUL)
}

/// The same; `None` once this thread's deadline has passed.
fn wait_in_time(tid: Pid) -> Result<Option<Halt>> {
    match wait_awake(tid)? {
        Some(halt) => Ok(Some(halt)),
        None => wait_asleep(tid),
    }
}

/// Waits for an instant, without going to sleep; `None` if the thread has not halted by then.
fn wait_awake(tid: Pid) -> Result<Option<Halt>> {
    let Some(until) = wakeful_until() else {
        return Ok(None);
    };
    while Instant::now() < until {
        if let Some(halt) = look(tid, libc::WNOHANG)? {
            return Ok(Some(halt));
        }
        std::hint::spin_loop();
    }
    DROWSY_FOR.set(DROWSY);
    Ok(None)
}

/// Sleeps until the thread has halted; `None` once this thread's deadline has passed.
fn wait_asleep(tid: Pid) -> Result<Option<Halt>> {
    loop {
        match look(tid, 0)? {
            None if deadline::passed() => return Ok(None),
            None => {}
            halt => return Ok(halt),
        }
    }
}

/// One waitpid(2); `None` if it was interrupted, or nothing has happened yet.
fn look(tid: Pid, flags: i32) -> Result<Option<Halt>> {
    let mut status = 0;
    // SAFETY: `status` is a live int.
    match Errno::result(unsafe { libc::waitpid(tid.0, &raw mut status, libc::__WALL | flags) }) {
        Ok(0) | Err(Errno::EINTR) => return Ok(None),
        Ok(_) => {}
        Err(Errno::ECHILD) => return Ok(Some(Halt::Gone(0))),
        Err(e) => return Err(e).on("waitpid", || format!("thread {tid}")),
    }
    if !libc::WIFSTOPPED(status) {
        return Ok(Some(Halt::Gone(status)));
    }
    let signal = libc::WSTOPSIG(status);
    Ok(Some(match status >> 16 {
        0 => Halt::Signal(signal),
        libc::PTRACE_EVENT_STOP if signal == libc::SIGTRAP => Halt::Interrupted,
        libc::PTRACE_EVENT_STOP => Halt::Group(signal),
        // No event is ever asked for; one that comes all the same is a plain halt.
        _ => Halt::Interrupted,
    }))
}

/// What /proc says of a thread that will not stop.
fn stuck(tid: Pid) -> String {
    let state = std::fs::read(format!("/proc/{tid}/stat"))
        .ok()
        .and_then(|t| crate::proc::stat::Stat::parse(&t));
    let read = |name: &str| std::fs::read_to_string(format!("/proc/{tid}/{name}")).unwrap_or_default();
    // Whether it has a processor, and for how long it had one or waited for one, in nanoseconds.
    tracing::debug!(%tid, syscall = read("syscall"), schedstat = read("schedstat"), "did not halt");
    state.map_or(String::new(), |s| {
        format!(" (state {}, in {})", s.state, read("wchan"))
    })
}

/// A thread that is seized and runs. Dropping it halts it for an instant, which is what letting it go takes.
#[derive(Debug)]
pub struct Seized {
    tid: Pid,
    _one_thread: PhantomData<*const ()>,
}

impl Seized {
    /// PTRACE_SEIZE; `None` if the thread is gone. It goes on running.
    pub fn seize(tid: Pid, options: u64) -> Result<Option<Seized>> {
        match ptrace(libc::PTRACE_SEIZE, tid, 0, options) {
            Ok(_) => Ok(Some(Seized {
                tid,
                _one_thread: PhantomData,
            })),
            Err(Errno::ESRCH) => Ok(None),
            // A thread that has ended, or is traced by somebody else, answers the same: look.
            Err(Errno::EPERM) if ended(tid) => Ok(None),
            Err(e) => Err(e).on("ptrace(SEIZE)", || format!("thread {tid}")),
        }
    }

    /// A child that a traced process made with CLONE_PTRACE: it is ours already and about to halt.
    pub fn inherited(tid: Pid) -> Seized {
        Seized {
            tid,
            _one_thread: PhantomData,
        }
    }

    /// Its thread id.
    pub fn tid(&self) -> Pid {
        self.tid
    }

    /// Asks it to halt; [`Seized::halted`] waits for that.
    pub fn interrupt(&self) {
        // ESRCH: it has ended, which the wait will tell.
        let _ = ptrace(libc::PTRACE_INTERRUPT, self.tid, 0, 0);
    }

    /// Waits until it has halted; signals that come first are delivered as they would have been. `None` if it ended.
    pub fn halted(self) -> Result<Option<Stopped>> {
        match self.halting()? {
            Halting::Stopped(stopped) => Ok(Some(stopped)),
            Halting::Gone => Ok(None),
            Halting::Late(late) => Err(Errno::ETIMEDOUT).on("waiting for it to stop", || {
                format!("thread {}{}", late.tid, stuck(late.tid))
            }),
        }
    }

    /// The same, up to this thread's deadline.
    pub fn halting(self) -> Result<Halting> {
        let tid = self.tid;
        let Some(group) = halt(tid)? else {
            return Ok(Halting::Late(self));
        };
        std::mem::forget(self);
        let stopped = group.map_or(Ok(None), |group| Stopped::take(tid, group))?;
        Ok(stopped.map_or(Halting::Gone, Halting::Stopped))
    }
}

/// Waits for an interrupted thread: the signal of its group stop or 0, nothing if it ended, nothing at all if it is late.
///
/// Asleep: one that was woken to halt is often to run on this very processor, and would wait for who waits for it.
fn halt(tid: Pid) -> Result<Option<Option<i32>>> {
    loop {
        match wait_asleep(tid)? {
            None => return Ok(None),
            Some(Halt::Signal(signal)) => {
                // Any halt fulfils the wish for one: where the kernel lets go of its lock between the two, as it does for the
                // signal of a timer, this was it.
                let _ = ptrace(libc::PTRACE_INTERRUPT, tid, 0, 0);
                let _ = ptrace(libc::PTRACE_CONT, tid, 0, signal as u64);
            }
            Some(Halt::Interrupted) => return Ok(Some(Some(0))),
            Some(Halt::Group(signal)) => return Ok(Some(Some(signal))),
            Some(Halt::Gone(_)) => return Ok(Some(None)),
        }
    }
}

/// What came of waiting for a halt.
#[derive(Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "it lives for an instant, and a box would be allocated in a pause"
)]
pub enum Halting {
    Stopped(Stopped),
    /// It ended.
    Gone,
    /// It runs on, or waits in the kernel for something that cannot be interrupted.
    Late(Seized),
}

impl Drop for Seized {
    /// Only a thread at a halt can be let go (ptrace(2), PTRACE_DETACH), so it halts for an instant.
    fn drop(&mut self) {
        self.interrupt();
        // What does not halt in time is let go by the kernel when the tracing thread ends.
        if let Ok(Some(Some(_))) = halt(self.tid) {
            let _ = ptrace(libc::PTRACE_DETACH, self.tid, 0, 0);
        }
    }
}

/// Whether a thread is a zombie or gone.
fn ended(tid: Pid) -> bool {
    match std::fs::read(format!("/proc/{tid}/stat")) {
        Ok(text) => crate::proc::stat::Stat::parse(&text).is_none_or(|s| s.is_zombie()),
        Err(_) => true,
    }
}

/// One pending signal, its siginfo as the kernel lays it out (128 bytes).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pending(pub Vec<u8>);

impl Pending {
    /// `si_signo`, the first field.
    fn number(&self) -> Option<i32> {
        self.0.first_chunk().copied().map(i32::from_ne_bytes)
    }
}

/// A thread that stands still. Dropping it puts its registers and signal mask back and lets it go.
#[derive(Debug)]
pub struct Stopped {
    tid: Pid,
    found: Regs,
    mask: u64,
    /// Registers, mask or the kind of stop are no longer as found.
    changed: bool,
    /// The signal of the group stop it stood in when found, and falls back into; 0 for none.
    group: i32,
    /// A signal that arrived while we worked and could not be blocked.
    withheld: i32,
    /// Its syscall user dispatch (mode, selector, offset, length), which must not catch our calls.
    dispatch: [u64; 4],
    /// Whether that is out of force for now.
    undispatched: bool,
    /// Registers by which an interrupted call is made once more, so that the kernel has a memory of it again.
    replay: Option<Replay>,
    /// It did not come back from a tape in time, and runs or is frozen: see [`Stopped::arrive_where`].
    away: bool,
    /// How long it had been asleep in the call it was found in, as far as that is known.
    asleep: Duration,
    /// Its extended state, once it was asked for.
    extended: OnceCell<Box<[u8]>>,
    _one_thread: PhantomData<*const ()>,
}

impl Stopped {
    fn take(tid: Pid, group: i32) -> Result<Option<Stopped>> {
        let look = || -> nix::Result<(Regs, u64)> { Ok((get_regs(tid)?, get_mask(tid)?)) };
        match look() {
            Ok((found, mask)) => Ok(Some(Stopped {
                tid,
                found,
                mask,
                changed: false,
                group,
                withheld: 0,
                dispatch: get_dispatch(tid),
                undispatched: false,
                replay: None,
                away: false,
                asleep: Duration::ZERO,
                extended: OnceCell::new(),
                _one_thread: PhantomData,
            })),
            Err(Errno::ESRCH) => Ok(None),
            Err(e) => Err(e).on("ptrace(GETREGSET)", || format!("thread {tid}")),
        }
    }

    /// Its thread id.
    pub fn tid(&self) -> Pid {
        self.tid
    }

    /// Its registers as they were found, or as [`Stopped::amend`] left them.
    pub fn regs(&self) -> &Regs {
        &self.found
    }

    /// Its blocked signals as they were found.
    pub fn mask(&self) -> u64 {
        self.mask
    }

    /// Its syscall user dispatch: mode, selector, offset, length.
    pub fn dispatch(&self) -> [u64; 4] {
        self.dispatch
    }

    /// Gives it a syscall user dispatch, in force once it is let go.
    pub fn set_dispatch(&mut self, dispatch: [u64; 4]) {
        self.dispatch = dispatch;
        self.undispatched = dispatch[0] != 0;
    }

    /// The job-control signal that had stopped it before we came; 0 if none had.
    pub fn group_stop(&self) -> i32 {
        self.group
    }

    /// Changes what it will go on with: registers and mask of a thread being built, or a call to be made anew.
    pub fn amend(&mut self, regs: Regs, mask: u64) {
        self.changed |= regs != self.found || mask != self.mask;
        self.found = regs;
        self.mask = mask;
    }

    /// Its extended state (NT_X86_XSTATE), as many bytes as this CPU has.
    pub fn xstate(&self) -> Result<&[u8]> {
        if self.extended.get().is_none() {
            let _ = self.extended.set(self.read_xstate()?);
        }
        Ok(self.extended.get().map_or(&[], |state| state))
    }

    fn read_xstate(&self) -> Result<Box<[u8]>> {
        thread_local! {
            // Of a thousand threads each would take four new pages for a state that fits one.
            static ROOM: RefCell<Vec<u8>> = RefCell::new(vec![0; 16384]);
        }
        ROOM.with_borrow_mut(|room| self.read_xstate_by(room))
    }

    fn read_xstate_by(&self, buf: &mut Vec<u8>) -> Result<Box<[u8]>> {
        loop {
            let mut iov = libc::iovec {
                iov_base: buf.as_mut_ptr().cast(),
                iov_len: buf.len(),
            };
            ptrace(
                libc::PTRACE_GETREGSET,
                self.tid,
                NT_X86_XSTATE,
                &raw mut iov as u64,
            )
            .on("ptrace(GETREGSET, X86_XSTATE)", || format!("thread {}", self.tid))?;
            if iov.iov_len < buf.len() {
                return Ok(buf[..iov.iov_len].into());
            }
            buf.resize(buf.len() * 2, 0);
        }
    }

    /// Sets its extended state; one from a kernel or CPU with fewer features is taken for what this one has at the start.
    pub fn set_xstate(&mut self, state: &[u8]) -> Result<()> {
        // The kernel takes its own size only.
        let mut state = state.to_vec();
        state.resize(self.xstate()?.len().max(state.len()), 0);
        self.extended = OnceCell::new();
        let iov = libc::iovec {
            iov_base: state.as_ptr().cast_mut().cast(),
            iov_len: state.len(),
        };
        ptrace(
            libc::PTRACE_SETREGSET,
            self.tid,
            NT_X86_XSTATE,
            &raw const iov as u64,
        )
        .on("ptrace(SETREGSET, X86_XSTATE)", || format!("thread {}", self.tid))
        .map(drop)
    }

    /// The signals in its queue (`shared` false) or that of its whole process, in order.
    fn queued(&self, shared: bool) -> Result<Vec<Pending>> {
        #[repr(C)]
        struct Args {
            off: u64,
            flags: u32,
            nr: i32,
        }
        let mut out = Vec::new();
        loop {
            let mut buf = [[0u8; 128]; 32];
            let args = Args {
                off: out.len() as u64,
                flags: if shared { PEEKSIGINFO_SHARED } else { 0 },
                nr: buf.len() as i32,
            };
            let n = ptrace(
                libc::PTRACE_PEEKSIGINFO,
                self.tid,
                &raw const args as u64,
                buf.as_mut_ptr() as u64,
            )
            .on("ptrace(PEEKSIGINFO)", || format!("thread {}", self.tid))?;
            if n == 0 {
                return Ok(out);
            }
            out.extend(buf[..n as usize].iter().map(|b| Pending(b.to_vec())));
        }
    }

    /// The rseq registration (address, length, signature); all zero where there is none.
    pub fn rseq(&self) -> Result<(u64, u32, u32)> {
        #[repr(C)]
        struct Conf {
            pointer: u64,
            size: u32,
            signature: u32,
            flags: u32,
            pad: u32,
        }
        const PTRACE_GET_RSEQ_CONFIGURATION: u32 = 0x420f;
        let mut conf = Conf {
            pointer: 0,
            size: 0,
            signature: 0,
            flags: 0,
            pad: 0,
        };
        match ptrace(
            PTRACE_GET_RSEQ_CONFIGURATION,
            self.tid,
            size_of::<Conf>() as u64,
            &raw mut conf as u64,
        ) {
            Ok(_) => Ok((conf.pointer, conf.size, conf.signature)),
            // A kernel without CONFIG_RSEQ knows no registrations.
            Err(Errno::EIO | Errno::EINVAL) => Ok((0, 0, 0)),
            Err(e) => Err(e).on("ptrace(GET_RSEQ_CONFIGURATION)", || {
                format!("thread {}", self.tid)
            }),
        }
    }

    /// Turns ptrace options on, such as [`SUSPEND_SECCOMP`].
    pub fn options(&self, options: u64) -> Result<()> {
        ptrace(libc::PTRACE_SETOPTIONS, self.tid, 0, options)
            .on("ptrace(SETOPTIONS)", || format!("thread {}", self.tid))
            .map(drop)
    }

    /// Its seccomp filter number `index`, counted from the oldest: raw instructions of 8 bytes, and the flags it was
    /// installed with. `None` past the newest.
    pub fn seccomp_filter(&self, index: u64) -> Result<Option<(Vec<u8>, u64)>> {
        const PTRACE_SECCOMP_GET_FILTER: u32 = 0x420c;
        const PTRACE_SECCOMP_GET_METADATA: u32 = 0x420d;
        let n = match ptrace(PTRACE_SECCOMP_GET_FILTER, self.tid, index, 0) {
            Ok(n) => n as usize,
            Err(Errno::ENOENT) => return Ok(None),
            Err(e) => return Err(e).on("ptrace(SECCOMP_GET_FILTER)", || format!("thread {}", self.tid)),
        };
        let mut out = vec![0u8; n * 8];
        ptrace(
            PTRACE_SECCOMP_GET_FILTER,
            self.tid,
            index,
            out.as_mut_ptr() as u64,
        )
        .on("ptrace(SECCOMP_GET_FILTER)", || format!("thread {}", self.tid))?;
        // struct seccomp_metadata: which filter (in), its flags (out).
        let mut metadata = [index, 0u64];
        ptrace(
            PTRACE_SECCOMP_GET_METADATA,
            self.tid,
            16,
            metadata.as_mut_ptr() as u64,
        )
        .on("ptrace(SECCOMP_GET_METADATA)", || format!("thread {}", self.tid))?;
        Ok(Some((out, metadata[1])))
    }

    /// Sets raw registers without remembering them: for what is run in its place, which no signal but those that `mask` leaves
    /// out may meet.
    fn drive(&mut self, regs: &Regs, mask: u64) -> Result<()> {
        // First: nothing that is queued may act while other code runs in its place.
        set_mask(self.tid, mask).map_err(|e| self.lost("ptrace(SETSIGMASK)", e))?;
        self.changed = true;
        if self.dispatch[0] != 0 && !self.undispatched {
            set_dispatch(self.tid, [0; 4]).map_err(|e| self.lost("ptrace(SET_SYSCALL_USER_DISPATCH)", e))?;
            self.undispatched = true;
        }
        set_regs(self.tid, regs).map_err(|e| self.lost("ptrace(SETREGSET)", e))
    }

    fn lost(&self, call: &str, errno: Errno) -> Error {
        match errno {
            Errno::ESRCH => Error::Died {
                pid: self.tid,
                how: "ended while it was stopped".into(),
            },
            e => Error::kernel(call, format!("thread {}", self.tid), e),
        }
    }

    /// Makes one system call at the address of a `syscall` instruction.
    pub fn step_syscall(&mut self, insn: u64, nr: i64, args: [u64; 6]) -> Result<i64> {
        let [rdi, rsi, rdx, r10, r8, r9] = args;
        let regs = Regs {
            rip: insn,
            rax: nr as u64,
            rdi,
            rsi,
            rdx,
            r10,
            r8,
            r9,
            orig_rax: !0,
            ..self.found
        };
        self.drive(&regs, !(1 << (libc::SIGTRAP - 1)))?;
        self.resume(true)?;
        let now = self.arrive(true, libc::SIGTRAP, insn + 2, Some(patience()))?;
        set_mask(self.tid, !0).map_err(|e| self.lost("ptrace(SETSIGMASK)", e))?;
        Ok(now.rax as i64)
    }

    /// Lets it run on from its registers, an instruction at a time, until it is outside of `code`.
    pub fn step_out(&mut self, code: Range) -> Result<()> {
        if !code.contains(self.found.rip) {
            return Ok(());
        }
        let from = self.found;
        self.drive(&from, !(1 << (libc::SIGTRAP - 1)))?;
        self.resume(true)?;
        let now = self.arrive_where(true, libc::SIGTRAP, |rip| !code.contains(rip), None)?;
        set_mask(self.tid, !0).map_err(|e| self.lost("ptrace(SETSIGMASK)", e))?;
        self.found = now;
        Ok(())
    }

    /// Puts registers and mask back where it stands, at the end of a tape: if we die it takes the tape's last signal,
    /// which is ignored, and goes on as found.
    fn settle(&mut self) -> Result<()> {
        if self.away {
            // It goes on as found by itself, once the kernel has let go of it for us.
            return Ok(());
        }
        if self.changed {
            set_regs(self.tid, &self.found).map_err(|e| self.lost("ptrace(SETREGSET)", e))?;
            set_mask(self.tid, self.mask).map_err(|e| self.lost("ptrace(SETSIGMASK)", e))?;
            self.changed = false;
        }
        self.dispatch_again()
    }

    /// Puts registers and mask back and brings it into an event stop, from which it goes on by itself if we die.
    pub fn park(&mut self) -> Result<()> {
        self.begin_park()?;
        self.end_park()
    }

    /// The first half of [`Stopped::park`], so that many can be on their way at the same time.
    fn begin_park(&mut self) -> Result<()> {
        if !self.changed {
            return Ok(());
        }
        set_regs(self.tid, &self.found).map_err(|e| self.lost("ptrace(SETREGSET)", e))?;
        // A tape leaves open by what signal it ends.
        set_mask(self.tid, !0).map_err(|e| self.lost("ptrace(SETSIGMASK)", e))?;
        ptrace(libc::PTRACE_INTERRUPT, self.tid, 0, 0).map_err(|e| self.lost("ptrace(INTERRUPT)", e))?;
        self.resume(false)
    }

    fn end_park(&mut self) -> Result<()> {
        if !self.changed {
            return Ok(());
        }
        loop {
            match wait(self.tid)? {
                Halt::Interrupted | Halt::Group(_) => break,
                Halt::Signal(signal) => self.withheld = signal,
                Halt::Gone(_) => return Err(self.lost("wait", Errno::ESRCH)),
            }
            self.resume(false)?;
        }
        // The event stop lies before the kernel restarts an interrupted call: make sure nothing has moved.
        set_regs(self.tid, &self.found).map_err(|e| self.lost("ptrace(SETREGSET)", e))?;
        set_mask(self.tid, self.mask).map_err(|e| self.lost("ptrace(SETSIGMASK)", e))?;
        self.dispatch_again()?;
        self.changed = false;
        Ok(())
    }

    fn dispatch_again(&mut self) -> Result<()> {
        if self.undispatched {
            set_dispatch(self.tid, self.dispatch)
                .map_err(|e| self.lost("ptrace(SET_SYSCALL_USER_DISPATCH)", e))?;
            self.undispatched = false;
        }
        Ok(())
    }

    /// Ends the process of a thread that has just played a tape, so that its parent will get the wait status `status`.
    ///
    /// `insn` is the address of a `syscall` instruction. Returns the status it has ended with: whether there was a core
    /// dump is not ours to say.
    pub fn end(mut self, status: i32, insn: u64) -> Result<i32> {
        let signal = libc::WTERMSIG(status);
        if libc::WIFSIGNALED(status) {
            set_mask(self.tid, 0).map_err(|e| self.lost("ptrace(SETSIGMASK)", e))?;
            // Standing before the delivery of a tape's last signal, it takes this one in its place.
            ptrace(libc::PTRACE_CONT, self.tid, 0, signal as u64)
                .map_err(|e| self.lost("ptrace(CONT)", e))?;
        } else {
            let code = libc::WEXITSTATUS(status) as u64;
            let regs = Regs {
                rip: insn,
                rax: libc::SYS_exit_group as u64,
                rdi: code,
                orig_rax: !0,
                ..self.found
            };
            self.drive(&regs, !0)?;
            ptrace(libc::PTRACE_CONT, self.tid, 0, 0).map_err(|e| self.lost("ptrace(CONT)", e))?;
        }
        let tid = self.tid;
        std::mem::forget(self);
        // The tracer hears of it first; then the zombie stays for its parent.
        loop {
            if let Halt::Gone(status) = wait(tid)? {
                return Ok(status);
            }
            let _ = ptrace(libc::PTRACE_CONT, tid, 0, signal as u64);
        }
    }

    /// Ends this thread alone, the first of a process whose others go on, by the `syscall` instruction at `insn`.
    pub fn exit(mut self, code: i32, insn: u64) -> Result<()> {
        let regs = Regs {
            rip: insn,
            rax: libc::SYS_exit as u64,
            rdi: code as u64,
            orig_rax: !0,
            ..self.found
        };
        self.drive(&regs, !0)?;
        let tid = self.tid;
        std::mem::forget(self);
        ptrace(libc::PTRACE_DETACH, tid, 0, 0).on("ptrace(DETACH)", || format!("thread {tid}"))?;
        while !ended(tid) {
            std::thread::yield_now();
        }
        Ok(())
    }

    /// Stops a blank process of one thread and lets it go on, which leaves its parent something to be told (WCONTINUED).
    ///
    /// A SIGCONT stays pending.
    pub fn stop_and_go(&mut self, pid: Pid) -> Result<()> {
        self.drive(&self.found.clone(), !0)?;
        crate::sys::tgkill(pid, self.tid, libc::SIGSTOP).map_err(|e| self.lost("tgkill", e))?;
        let mut deliver = 0;
        loop {
            ptrace(libc::PTRACE_CONT, self.tid, 0, deliver).map_err(|e| self.lost("ptrace(CONT)", e))?;
            match wait(self.tid)? {
                Halt::Signal(signal) => deliver = signal as u64,
                Halt::Group(_) => break,
                Halt::Interrupted => deliver = 0,
                Halt::Gone(_) => return Err(self.lost("wait", Errno::ESRCH)),
            }
        }
        crate::sys::tgkill(pid, self.tid, libc::SIGCONT).map_err(|e| self.lost("tgkill", e))?;
        self.park()
    }

    /// Lets it go on as found, and leaves it a job-control stop if one is due.
    pub fn release(mut self) -> Result<()> {
        self.let_go()?;
        std::mem::forget(self);
        Ok(())
    }

    /// Lets a parked thread go into a stop by `signal`, for a process that was stopped when it was recorded.
    ///
    /// The whole group stops with it: the others may be let go once this returns, and run no instruction.
    pub fn release_stopped(mut self, pid: Pid, signal: i32) -> Result<()> {
        crate::sys::tgkill(pid, self.tid, libc::SIGSTOP).map_err(|e| self.lost("tgkill", e))?;
        loop {
            ptrace(libc::PTRACE_CONT, self.tid, 0, 0).map_err(|e| self.lost("ptrace(CONT)", e))?;
            match wait(self.tid)? {
                Halt::Signal(libc::SIGSTOP) => break,
                Halt::Gone(_) => return Err(self.lost("wait", Errno::ESRCH)),
                _ => {}
            }
        }
        self.changed = true;
        // Any stopping signal has the same effect once it is delivered; the one recorded is what wait(2) will tell.
        self.withheld = signal;
        let tid = self.tid;
        self.release()?;
        let stopped = |text: Vec<u8>| crate::proc::stat::Stat::parse(&text).is_none_or(|s| s.state != 'T');
        while std::fs::read(format!("/proc/{tid}/stat")).is_ok_and(stopped) {
            std::thread::yield_now();
        }
        Ok(())
    }

    fn let_go(&mut self) -> Result<()> {
        self.settle()?;
        ptrace(libc::PTRACE_DETACH, self.tid, 0, self.due()? as u64)
            .map_err(|e| self.lost("ptrace(DETACH)", e))
            .map(drop)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // A thread that ended meanwhile needs nothing put back.
        let _ = self.let_go();
    }
}

/// How many bytes NT_X86_XSTATE has on this CPU (CPUID leaf 0xD: the size for all features the kernel enabled).
pub fn xstate_size() -> usize {
    std::arch::x86_64::__cpuid_count(0xd, 0).ebx as usize
}
