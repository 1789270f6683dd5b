//! The tape: a list of remote system calls run in one go inside a stopped thread, from a scratch mapping.
//!
//! The scratch mapping holds a position-independent loop (81 bytes), then data, then the calls. The loop ends by
//! sending its own thread a signal that is ignored by default: a traced thread stops for it, and if the tracer has
//! died meanwhile nothing happens and the code goes on into rt_sigreturn(2) with a frame that restores everything
//! the thread was found with. So freeze may be killed in the midst of a tape and the target runs on.

use super::Stopped;
use super::arrive::patience;
use super::raw::get_regs;
use super::regs::{Regs, return_frame};
use super::room::{self, Room};
use crate::error::{Context, Error, Result};
use crate::ids::{PAGE, Pid, Range};
use crate::proc::maps::Vma;
use crate::proc::status::Status;
use crate::sys;
use nix::errno::Errno;
use nix::sys::uio::{RemoteIoVec, process_vm_writev};
use std::io::IoSlice;

/// ```text
/// loop: mov eax,[rbx]; mov rdi,[rbx+8]; … mov r9,[rbx+48]; syscall; mov [rbx+56],rax
///       cmp rax,-4095; jb ok; cmp byte [rbx+7],0; je end
/// ok:   add rbx,64; dec r12; jnz loop
/// end:  mov eax,tgkill; mov edi,r14d; mov esi,r15d; mov edx,ebp; syscall
/// parked: mov rsp,r13; mov eax,rt_sigreturn; syscall; int3
/// ```
const CODE: [u8; 81] = [
    0x8b, 0x03, 0x48, 0x8b, 0x7b, 0x08, 0x48, 0x8b, 0x73, 0x10, 0x48, 0x8b, 0x53, 0x18, 0x4c, 0x8b, 0x53,
    0x20, 0x4c, 0x8b, 0x43, 0x28, 0x4c, 0x8b, 0x4b, 0x30, 0x0f, 0x05, 0x48, 0x89, 0x43, 0x38, 0x48, 0x3d,
    0x01, 0xf0, 0xff, 0xff, 0x72, 0x06, 0x80, 0x7b, 0x07, 0x00, 0x74, 0x09, 0x48, 0x83, 0xc3, 0x40, 0x49,
    0xff, 0xcc, 0x75, 0xc9, 0xb8, 0xea, 0x00, 0x00, 0x00, 0x44, 0x89, 0xf7, 0x44, 0x89, 0xfe, 0x89, 0xea,
    0x0f, 0x05, 0x4c, 0x89, 0xec, 0xb8, 0x0f, 0x00, 0x00, 0x00, 0x0f, 0x05, 0xcc,
];
/// Where the loop's `syscall` stands.
const SYSCALL_AT: u64 = 0x1a;
/// Where a finished tape stands.
const PARKED_AT: u64 = 0x46;
/// The top byte of a call's number: go on although it fails.
const MAY_FAIL: u64 = 1 << 56;
const CALL: usize = 64;
/// Room for the frame a thread returns by, at the end of the mapping: 1 KiB and the extended state (11 KiB with AMX).
const FRAME: u64 = 20 * 1024;

/// One system call of a tape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    pub name: &'static str,
    pub nr: i64,
    pub args: [u64; 6],
    pub may_fail: bool,
}

/// A mapping of freeze's inside another process: code first, then room for calls and data.
///
/// Its clones only tell where it is.
#[derive(Clone, Debug)]
pub struct Scratch {
    range: Range,
    /// The part that holds the calls, data and frame of one thread's tape; all of it but the code, unless it is divided.
    lane: Range,
    /// The process's id in its own pid namespace, for tgkill.
    tgid: i32,
    /// End of a tape: a signal that is ignored unless the thread is traced.
    signal: i32,
    /// Whether its ids inside differ from those freeze sees.
    nested: bool,
    /// Whether each thread gets a frame to return by itself, as processes that are checkpointed do.
    escape: bool,
}

/// Signals whose default action is to be ignored, least used first.
const HARMLESS: [i32; 3] = [libc::SIGURG, libc::SIGWINCH, libc::SIGCHLD];

impl Scratch {
    /// Maps `pages` + 1 pages in a process that is being checkpointed, by the `syscall` instruction of its own vDSO.
    pub fn map(thread: &mut Stopped, pid: Pid, vmas: &[Vma], status: &Status, pages: u64) -> Result<Scratch> {
        let mut map = |share: i32| Scratch::map_within(thread, pid, vmas, status, pages, share);
        match map(libc::MAP_PRIVATE) {
            Err(e) if room::is_scarce(&e) => {}
            done => return done,
        }
        // What is shared is no data in the sense of RLIMIT_DATA.
        match map(libc::MAP_SHARED) {
            Err(e) if room::is_scarce(&e) => {}
            done => return done,
        }
        let _room = Room::make(pid);
        map(libc::MAP_SHARED).map_err(|e| if room::is_scarce(&e) { room::none(pid) } else { e })
    }

    /// The same within the limits of the process.
    fn map_within(
        thread: &mut Stopped,
        pid: Pid,
        vmas: &[Vma],
        status: &Status,
        pages: u64,
        share: i32,
    ) -> Result<Scratch> {
        // By the thread: the first of the process may have ended.
        let by = thread.tid();
        let insn = find_syscall(by, vmas)?;
        let flags = share | libc::MAP_ANONYMOUS;
        let len = (pages + 1) * PAGE;
        let writable = libc::PROT_READ | libc::PROT_WRITE;
        let mut map = |prot: i32| {
            let args = [0, len, prot as u64, flags as u64, !0, 0];
            thread.step_syscall(insn, libc::SYS_mmap, args)
        };
        // Each step is some 15 µs of the pause: all rights at once, unless the program has forsworn that (PR_SET_MDWE).
        // Then what can be executed is never writable to it, and what is made writable can be executed no more.
        let all = map(writable | libc::PROT_EXEC)?;
        let at = if all < 0 {
            map(libc::PROT_READ | libc::PROT_EXEC)?
        } else {
            all
        };
        let base = check(pid, "mmap", at)? as u64;
        let busy = status.sig_cgt | status.sig_pnd | status.shd_pnd;
        let free = |s: &&i32| busy & 1 << (**s - 1) == 0;
        let unblocked = |s: &&i32| free(s) && status.sig_blk & 1 << (**s - 1) == 0;
        let signal = HARMLESS
            .iter()
            .find(unblocked)
            .or(HARMLESS.iter().find(free))
            .unwrap_or(&libc::SIGTRAP);
        let scratch = Scratch {
            range: Range::new(base, base + len),
            lane: Range::new(base + PAGE, base + len),
            tgid: *status.ns_tgid.last().unwrap_or(&pid.0),
            signal: *signal,
            nested: status.ns_pid.len() > 1,
            escape: true,
        };
        let ready = match all < 0 {
            true => {
                let args = [base + PAGE, len - PAGE, writable as u64, 0, 0, 0];
                let done = thread.step_syscall(insn, libc::SYS_mprotect, args);
                done.and_then(|n| check(pid, "mprotect", n)).map(drop)
            }
            false => Ok(()),
        };
        match ready.and_then(|()| poke(by, base, &CODE)) {
            Ok(()) => Ok(scratch),
            Err(e) => {
                let _ = thread.step_syscall(insn, libc::SYS_munmap, [base, len, 0, 0, 0, 0]);
                Err(e)
            }
        }
    }

    /// Maps the scratch of a process that is being built, at a given place.
    ///
    /// `insn` is the address of a `syscall` instruction in the blank process.
    pub fn map_at(thread: &mut Stopped, pid: Pid, inner: i32, insn: u64, range: Range) -> Result<Scratch> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        let prot = (libc::PROT_READ | libc::PROT_WRITE) as u64;
        let args = [range.start, range.len(), prot, flags as u64, !0, 0];
        check(pid, "mmap", thread.step_syscall(insn, libc::SYS_mmap, args)?)?;
        let args = [
            range.start,
            PAGE,
            (libc::PROT_READ | libc::PROT_EXEC) as u64,
            0,
            0,
            0,
        ];
        check(
            pid,
            "mprotect",
            thread.step_syscall(insn, libc::SYS_mprotect, args)?,
        )?;
        poke(pid, range.start, &CODE)?;
        Ok(Scratch {
            range,
            lane: Range::new(range.start + PAGE, range.end),
            tgid: inner,
            signal: libc::SIGURG,
            nested: inner != pid.0,
            escape: false,
        })
    }

    /// The same mapping in a child that was forked with it, which calls itself `inner` in its own pid namespace.
    pub fn inherited(&self, pid: Pid, inner: i32) -> Scratch {
        Scratch {
            range: self.range,
            lane: self.lane,
            tgid: inner,
            signal: self.signal,
            nested: inner != pid.0,
            escape: self.escape,
        }
    }

    /// Parts of `pages` pages each, in which as many threads can play at the same time.
    pub fn lanes(&self, pages: u64) -> Vec<Scratch> {
        let len = pages * PAGE;
        let part = |n| Scratch {
            lane: Range::new(self.lane.start + n * len, self.lane.start + (n + 1) * len),
            nested: self.nested,
            ..self.inherited(Pid(self.tgid), self.tgid)
        };
        (0..(self.lane.len() / len).max(1)).map(part).collect()
    }

    /// Ends the tapes to come by a signal that is none of `queued`. In a process that is being built it may be any that
    /// neither stops nor continues.
    pub fn avoid(&mut self, queued: &[i32]) {
        let job = [
            libc::SIGKILL,
            libc::SIGCONT,
            libc::SIGSTOP,
            libc::SIGTSTP,
            libc::SIGTTIN,
            libc::SIGTTOU,
        ];
        let others = (1..libc::SIGSYS).filter(|s| !job.contains(s));
        let mut all = HARMLESS.into_iter().chain([libc::SIGTRAP]).chain(others);
        if let Some(other) = all.find(|s| !queued.contains(s)) {
            self.signal = other;
        }
    }

    /// The address of its `syscall` instruction.
    pub fn syscall_insn(&self) -> u64 {
        self.range.start + SYSCALL_AT
    }

    /// Where it lies.
    pub fn range(&self) -> Range {
        self.range
    }

    /// A tape to be filled with many calls.
    pub fn long_tape(&self) -> Tape<'_> {
        Tape {
            calls: Vec::with_capacity(64),
            data: Vec::with_capacity(4096),
            ..self.tape()
        }
    }

    /// A tape to be filled.
    pub fn tape(&self) -> Tape<'_> {
        Tape {
            scratch: self,
            calls: Vec::new(),
            data: Vec::new(),
            skipped: Mark::default(),
        }
    }

    /// Removes the mapping by a single step of its own last system call.
    pub fn unmap(self, thread: &mut Stopped) -> Result<()> {
        let args = [self.range.start, self.range.len(), 0, 0, 0, 0];
        let n = thread.step_syscall(self.range.start + SYSCALL_AT, libc::SYS_munmap, args)?;
        check(thread.tid(), "munmap", n).map(drop)
    }
}

/// What a tape is: calls, and the data they point to.
#[derive(Debug)]
pub struct Tape<'a> {
    scratch: &'a Scratch,
    calls: Vec<Call>,
    data: Vec<u8>,
    /// What another tape in the same place has before these: see [`Tape::again`].
    skipped: Mark,
}

impl Tape<'_> {
    /// Adds a call whose failure ends the tape; returns its index.
    pub fn call(&mut self, name: &'static str, nr: i64, args: &[u64]) -> usize {
        self.push(name, nr, args, false)
    }

    /// Adds a call that may fail.
    pub fn try_call(&mut self, name: &'static str, nr: i64, args: &[u64]) -> usize {
        self.push(name, nr, args, true)
    }

    fn push(&mut self, name: &'static str, nr: i64, args: &[u64], may_fail: bool) -> usize {
        let mut all = [0; 6];
        all[..args.len()].copy_from_slice(args);
        self.calls.push(Call {
            name,
            nr,
            args: all,
            may_fail,
        });
        self.skipped.calls + self.calls.len() - 1
    }

    /// Puts bytes into the target and tells where, aligned to 64.
    pub fn bytes(&mut self, bytes: &[u8]) -> u64 {
        self.space_for(bytes.len(), |data| data.extend_from_slice(bytes))
    }

    /// Room for a result of `len` bytes, zeroed.
    pub fn space(&mut self, len: usize) -> u64 {
        self.space_for(len, |data| data.resize(data.len() + len, 0))
    }

    fn space_for(&mut self, len: usize, put: impl FnOnce(&mut Vec<u8>)) -> u64 {
        let end = self.skipped.data + self.data.len();
        let at = end.next_multiple_of(64);
        self.data.reserve(at - end + len);
        self.data.resize(at - self.skipped.data, 0);
        put(&mut self.data);
        self.data_base() + at as u64
    }

    /// A page of the mapping that it is played from, which the process has only for that.
    pub fn page(&self) -> Range {
        Range::new(self.scratch.lane.start, self.scratch.lane.start + PAGE)
    }

    fn data_base(&self) -> u64 {
        self.scratch.lane.start
    }

    /// How many bytes of calls (64 each) and data still fit; the escape frame is accounted for.
    pub fn room(&self) -> usize {
        let all = (self.scratch.lane.len() - FRAME) as usize;
        let held = self.mark();
        all.saturating_sub(128 + held.data + held.calls * CALL)
    }

    /// The calls it holds.
    pub fn calls(&self) -> &[Call] {
        &self.calls
    }

    /// How many calls it holds.
    pub fn len(&self) -> usize {
        self.calls.len()
    }

    /// Whether it holds no call.
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// How much it holds, for [`Tape::again`].
    pub fn mark(&self) -> Mark {
        Mark {
            data: self.skipped.data + self.data.len(),
            calls: self.skipped.calls + self.calls.len(),
        }
    }

    /// An empty tape in the same place that is filled from `mark` on: whoever filled this one from there finds
    /// the same addresses and numbers once more.
    pub fn again(self, mark: Mark) -> Self {
        Tape {
            skipped: mark,
            ..self
        }
    }

    /// Plays it on one thread.
    pub fn run(self, thread: &mut Stopped) -> Result<Ran> {
        let started = self.start(thread)?;
        started.go(thread)?;
        started.finish(thread)
    }

    /// Writes it and sets the thread's registers on it.
    pub(crate) fn start(self, thread: &mut Stopped) -> Result<Started> {
        let pid = thread.tid();
        let calls_at = self.data.len().next_multiple_of(64);
        let mut image = self.data;
        image.resize(calls_at, 0);
        for call in &self.calls {
            let nr = call.nr as u64 & 0xffff_ffff | if call.may_fail { MAY_FAIL } else { 0 };
            for word in std::iter::once(nr).chain(call.args).chain([NOT_RUN]) {
                image.extend_from_slice(&word.to_ne_bytes());
            }
        }
        let base = self.scratch.lane.start;
        let frame_at = self.scratch.lane.end - FRAME;
        let room = (frame_at - base) as usize;
        let data_len = image.len();
        let too_long = |what: &str, len: usize| {
            Error::kernel(
                "tape",
                format!("pid {pid}: {len} bytes of {what}"),
                Errno::ENOBUFS,
            )
        };
        if image.len() > room {
            return Err(too_long("calls", image.len()));
        }
        if self.scratch.escape {
            // Always at the same place with the same contents: a thread that stands at the end of its last tape
            // has its frame intact whatever is written before it.
            let frame = return_frame(&thread.found, thread.mask, thread.xstate()?, frame_at);
            if frame.len() as u64 > FRAME {
                return Err(too_long("registers", frame.len()));
            }
            poke_two(pid, (frame_at, &frame), (base, &image))?;
        } else {
            poke(pid, base, &image)?;
        }
        let regs = Regs {
            rip: self.scratch.range.start,
            rbx: base + calls_at as u64,
            r12: self.calls.len() as u64,
            r13: frame_at + 8,
            r14: self.scratch.tgid as u64,
            r15: if self.scratch.nested {
                inner_tid(pid, self.scratch.tgid)
            } else {
                pid.0 as u64
            },
            rbp: self.scratch.signal as u64,
            orig_rax: !0,
            // The loop counts upwards, and a trap flag would end it at once.
            eflags: thread.found.eflags & !(1 << 10 | 1 << 8),
            ..thread.found
        };
        thread.drive(&regs, !(1 << (self.scratch.signal - 1)))?;
        Ok(Started {
            calls: self.calls,
            base,
            calls_at,
            data_len,
            signal: self.scratch.signal,
            end: self.scratch.range.start + PARKED_AT,
            escape: self.scratch.escape,
        })
    }
}

/// A result slot that no system call has filled.
const NOT_RUN: u64 = i64::MIN as u64;

/// The thread's id in its own pid namespace.
fn inner_tid(tid: Pid, tgid_inner: i32) -> u64 {
    // The name of a thread may be any bytes.
    let text = std::fs::read(format!("/proc/{tid}/status"));
    let inner = text
        .ok()
        .and_then(|t| Status::parse(&t))
        .and_then(|s| s.ns_pid.last().copied());
    inner.unwrap_or(tgid_inner) as u64
}

/// How far a tape was filled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    data: usize,
    calls: usize,
}

/// A tape under way.
#[derive(Debug)]
pub(crate) struct Started {
    calls: Vec<Call>,
    base: u64,
    calls_at: usize,
    data_len: usize,
    signal: i32,
    end: u64,
    /// Whether it returns without us, so that it need not be waited for.
    escape: bool,
}

impl Started {
    /// Sets it going.
    pub(crate) fn go(&self, thread: &mut Stopped) -> Result<()> {
        match self.calls.is_empty() {
            true => Ok(()),
            false => thread.resume(false),
        }
    }

    /// Waits for its end.
    pub(crate) fn finish(self, thread: &mut Stopped) -> Result<Ran> {
        if self.calls.is_empty() {
            return Ok(Ran {
                results: Vec::new(),
                data: Vec::new(),
                base: self.base,
            });
        }
        let within = self.escape.then(patience);
        thread.arrive(false, self.signal, self.end, within)?;
        // It stands before the delivery of that signal, with a mask that lets it pass: whatever runs next sets another.
        let mut image = vec![0; self.data_len];
        let from = [Range::new(self.base, self.base + self.data_len as u64)];
        let n =
            sys::vm_read(thread.tid(), &from, &mut image).map_err(|e| thread.lost("process_vm_readv", e))?;
        if n != image.len() {
            return Err(Error::kernel(
                "process_vm_readv",
                format!("scratch of thread {}", thread.tid()),
                Errno::EFAULT,
            ));
        }
        let mut results = Vec::with_capacity(self.calls.len());
        for (i, call) in self.calls.iter().enumerate() {
            let at = self.calls_at + i * CALL + 56;
            let value = u64::from_ne_bytes(image[at..at + 8].try_into().unwrap_or_default()) as i64;
            if (-4095..0).contains(&value) && !call.may_fail {
                let args = call.args.map(|a| format!("{a:#x}")).join(", ");
                return Err(Error::kernel(
                    call.name,
                    format!("pid {}: remote {}({args})", thread.tid(), call.name),
                    Errno::from_raw(-value as i32),
                ));
            }
            results.push(value);
        }
        image.truncate(self.calls_at);
        Ok(Ran {
            results,
            data: image,
            base: self.base,
        })
    }
}

/// What a tape brought back.
#[derive(Debug, Default)]
pub struct Ran {
    results: Vec<i64>,
    data: Vec<u8>,
    base: u64,
}

impl Ran {
    /// The result of call `index`: a value ≥ 0, or a negative errno for a call that might fail.
    pub fn value(&self, index: usize) -> i64 {
        self.results[index]
    }

    /// The result as nix has it.
    pub fn result(&self, index: usize) -> nix::Result<i64> {
        match self.results[index] {
            n @ -4095..0 => Err(Errno::from_raw(-n as i32)),
            n => Ok(n),
        }
    }

    /// The bytes at an address that [`Tape::bytes`] or [`Tape::space`] gave.
    pub fn bytes(&self, at: u64, len: usize) -> &[u8] {
        let from = (at - self.base) as usize;
        &self.data[from..from + len]
    }

    /// One 64-bit word at such an address.
    pub fn word(&self, at: u64) -> u64 {
        u64::from_ne_bytes(self.bytes(at, 8).try_into().unwrap_or_default())
    }
}

fn check(pid: Pid, call: &'static str, result: i64) -> Result<i64> {
    match result {
        n @ -4095..0 => Err(Error::kernel(
            call,
            format!("pid {pid}: remote {call}"),
            Errno::from_raw(-n as i32),
        )),
        n => Ok(n),
    }
}

/// Writes to two places of a process, the first before the second.
fn poke_two(pid: Pid, first: (u64, &[u8]), second: (u64, &[u8])) -> Result<()> {
    let remote = [first, second].map(|(at, bytes)| RemoteIoVec {
        base: at as usize,
        len: bytes.len(),
    });
    let local = [IoSlice::new(first.1), IoSlice::new(second.1)];
    if process_vm_writev(pid.nix(), &local, &remote) == Ok(first.1.len() + second.1.len()) {
        return Ok(());
    }
    poke(pid, first.0, first.1)?;
    poke(pid, second.0, second.1)
}

/// Writes to a process regardless of protection, through /proc/PID/mem where the direct way is refused.
pub fn poke(pid: Pid, at: u64, bytes: &[u8]) -> Result<()> {
    if sys::vm_write(pid, at, bytes) == Ok(bytes.len()) {
        return Ok(());
    }
    use std::os::unix::fs::FileExt;
    let path = format!("/proc/{pid}/mem");
    let mem = std::fs::File::options()
        .write(true)
        .open(&path)
        .on("open", || path.clone())?;
    mem.write_all_at(bytes, at)
        .on("write", || format!("{path} at {at:#x}"))
}

/// The address of a `syscall` instruction in a process: in its vDSO, else in any code that it maps.
pub fn find_syscall(pid: Pid, vmas: &[Vma]) -> Result<u64> {
    let vdso = vmas.iter().filter(|v| v.name == b"[vdso]");
    let other = vmas
        .iter()
        .filter(|v| v.exec && v.read && v.name != b"[vdso]" && v.name != b"[vsyscall]");
    for vma in vdso.chain(other) {
        let mut at = vma.start;
        while at < vma.end {
            let len = (vma.end - at).min(1 << 20);
            let mut text = vec![0u8; len as usize];
            let n = match sys::vm_read(pid, &[Range::new(at, at + len)], &mut text) {
                Err(Errno::ESRCH) => {
                    return Err(Error::Died {
                        pid,
                        how: "has no memory any more".into(),
                    });
                }
                done => done.unwrap_or(0),
            };
            if let Some(i) = text[..n].windows(2).position(|w| w == [0x0f, 0x05]) {
                return Ok(at + i as u64);
            }
            at += len;
        }
    }
    Err(Error::kernel(
        "ptrace",
        format!("pid {pid}: no syscall instruction in its mappings"),
        Errno::ENOEXEC,
    ))
}

/// The registers a thread stands with right now, for tests and messages.
pub fn current_regs(thread: &Stopped) -> nix::Result<Regs> {
    get_regs(thread.tid())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::view::{Depth, ProcessView, read_vmas};
    use crate::tracee::Seized;
    use std::process::{Child, Command, Stdio};

    struct Subject(Child);

    impl Drop for Subject {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    /// python3 in a sleep, which it reports the length of.
    fn sleeper() -> (Subject, Pid) {
        let script = "import time,sys\nt=time.monotonic()\nprint('up',flush=True)\ntime.sleep(1)\nd=time.monotonic()-t\nsys.exit(0 if 0.99<d<1.3 else 1)";
        let mut child = Command::new("python3")
            .args(["-c", script])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        use std::io::Read;
        child.stdout.as_mut().unwrap().read_exact(&mut [0; 3]).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(100));
        let pid = Pid(child.id() as i32);
        (Subject(child), pid)
    }

    fn stop(pid: Pid) -> Stopped {
        let seized = Seized::seize(pid, 0).unwrap().unwrap();
        seized.interrupt();
        seized.halted().unwrap().unwrap()
    }

    #[test]
    fn calls_run_and_nothing_is_left() {
        let (mut subject, pid) = sleeper();
        let before = read_vmas(pid, Depth::Maps).unwrap();
        let view = ProcessView::read(pid, Depth::Maps).unwrap();
        let mut thread = stop(pid);
        let found = *thread.regs();
        let scratch = Scratch::map(&mut thread, pid, &view.vmas, &view.status, 15).unwrap();
        let mut tape = scratch.tape();
        let room = tape.space(400);
        let getpid = tape.call("getpid", libc::SYS_getpid, &[]);
        let bad = tape.try_call("close", libc::SYS_close, &[9999]);
        tape.call("uname", libc::SYS_uname, &[room]);
        let ran = tape.run(&mut thread).unwrap();
        assert_eq!(ran.value(getpid), i64::from(pid.0));
        assert_eq!(ran.result(bad), Err(Errno::EBADF));
        assert_eq!(ran.bytes(room, 5), b"Linux");
        let mut tape = scratch.tape();
        tape.call("close", libc::SYS_close, &[9999]);
        let failed = tape.run(&mut thread).unwrap_err();
        assert!(failed.to_string().contains("remote close(0x270f"), "{failed}");
        scratch.unmap(&mut thread).unwrap();
        thread.park().unwrap();
        assert_eq!(current_regs(&thread).unwrap(), found);
        thread.release().unwrap();
        assert_eq!(read_vmas(pid, Depth::Maps).unwrap(), before);
        assert!(
            subject.0.wait().unwrap().success(),
            "the interrupted sleep was not exact"
        );
    }

    #[test]
    fn a_tape_whose_tracer_is_gone_returns_by_itself() {
        let (mut subject, pid) = sleeper();
        // The tracer is a thread of this test that ends in the midst of a tape: the kernel detaches its tracees.
        std::thread::spawn(move || {
            let view = ProcessView::read(pid, Depth::Maps).unwrap();
            let mut thread = stop(pid);
            let scratch = Scratch::map(&mut thread, pid, &view.vmas, &view.status, 15).unwrap();
            let mut tape = scratch.tape();
            tape.call("getpid", libc::SYS_getpid, &[]);
            // Started and never finished: whatever instant the tracer dies at, this is what the target is left in.
            let started = tape.start(&mut thread).unwrap();
            crate::tracee::ptrace(libc::PTRACE_CONT, pid, 0, 0).unwrap();
            std::mem::forget((thread, scratch, started));
        })
        .join()
        .unwrap();
        // A thread can be joined an instant before the kernel has detached what it traced.
        while ProcessView::read(pid, Depth::Maps).is_ok_and(|v| v.status.tracer != 0) {
            std::thread::yield_now();
        }
        // Python sleeps until an absolute time, so even a call that is begun anew ends when it should.
        let status = subject.0.wait().unwrap();
        assert_eq!(
            status.code(),
            Some(0),
            "python did not survive its tracer: {status}"
        );
    }
}
