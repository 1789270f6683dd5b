//! Loads the kernel programs, attaches them, and reads from them.

use crate::error::{Context, Error, Result};
use crate::ids::Pid;
use crate::observe::btf;
use crate::observe::changes::Changes;
use crate::observe::events::Record;
use crate::sys;
use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray, RingBuf};
use aya::programs::tp_btf::BtfTracePointLinkId;
use aya::programs::{BtfTracePoint, FExit, Iter, Program, ProgramFd};
use aya::{Btf, Ebpf, EbpfLoader};
use aya_log::EbpfLogger;
use freeze_common::{MEMBERS, Member};
use nix::errno::Errno;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/freeze-ebpf"));

/// Tracepoints of the kernel itself that are attached as long as the programs are loaded.
const ALWAYS: [(&str, &str); 5] = [
    ("forked", "sched_process_fork"),
    ("execed", "sched_process_exec"),
    ("exited", "sched_process_exit"),
    ("freed", "sched_process_free"),
    ("renamed", "task_rename"),
];

/// The programs at the exit of every system call and at the delivery of every signal, attached while something is watched.
const CALLS: [(&str, &str); 2] = [("call_ended", "sys_exit"), ("delivered", "signal_deliver")];

/// An error of aya's as one of ours: the kernel's errno, if it comes from there.
pub(crate) fn failed(call: &str, object: &str, e: &(dyn std::error::Error + 'static)) -> Error {
    // With the verifier's own account, which is for a developer.
    tracing::debug!("{call} {object}: {e}");
    let mut cause = Some(e);
    let mut errno = Errno::EINVAL;
    let mut said = e.to_string();
    while let Some(this) = cause {
        if let Some(io) = this.downcast_ref::<std::io::Error>()
            && let Some(raw) = io.raw_os_error()
        {
            errno = Errno::from_raw(raw);
        }
        said = this.to_string();
        cause = this.source();
    }
    Error::kernel(
        format!("{call} ({said})"),
        format!("eBPF program {object}"),
        errno,
    )
}

/// The offsets the programs need, from the running kernel's BTF.
fn offsets() -> Result<[u32; MEMBERS]> {
    let btf = btf::Btf::running()?;
    let mut out = [0; MEMBERS];
    for (slot, (_, structure, member)) in out.iter_mut().zip(Member::ALL) {
        *slot = btf.offset(structure, member).ok_or_else(|| Error::Image {
            file: "/sys/kernel/btf/vmlinux".into(),
            offset: None,
            expected: format!("{structure}.{member}"),
            found: "no such member".into(),
        })?;
    }
    Ok(out)
}

/// Loads the object: its maps exist afterwards, its programs only on demand.
fn load_object(maps: &[(&'static str, u32)]) -> Result<(Ebpf, Btf)> {
    let offsets = offsets()?;
    let btf = Btf::from_sys_fs().map_err(|e| failed("read BTF", "loader", &e))?;
    let mut loader = EbpfLoader::new();
    loader
        .btf(Some(&btf))
        .override_global("OFFSETS", &offsets[..], true);
    for &(name, size) in maps {
        loader.map_max_entries(name, size);
    }
    let ebpf = loader.load(OBJECT).map_err(|e| failed("load", "object", &e))?;
    Ok((ebpf, btf))
}

/// Takes a map out of the object as what it is.
fn take<T: TryFrom<Map>>(ebpf: &mut Ebpf, name: &str) -> Result<T> {
    let map = ebpf.take_map(name).ok_or_else(|| none(name))?;
    T::try_from(map).map_err(|_| none(name))
}

fn none(map: &str) -> Error {
    Error::kernel("find map", format!("eBPF map {map}"), Errno::ENOENT)
}

/// Nanoseconds since the boot, as the kernel programs count them.
fn now() -> u64 {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
    time.map_or(0, |t| t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64)
}

/// A program of the object as what it is.
fn program<'a, T>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut T>
where
    &'a mut T: TryFrom<&'a mut Program>,
{
    let none = || Error::kernel("find", format!("eBPF program {name}"), Errno::ENOENT);
    <&mut T>::try_from(ebpf.program_mut(name).ok_or_else(none)?).map_err(|_| none())
}

/// Loads a program and attaches it to a tracepoint by the kernel's BTF.
fn attach_btf(ebpf: &mut Ebpf, btf: &Btf, name: &str, tracepoint: &str) -> Result<()> {
    let program: &mut BtfTracePoint = program(ebpf, name)?;
    program
        .load(tracepoint, btf)
        .map_err(|e| failed("load", name, &e))?;
    program.attach().map_err(|e| failed("attach", name, &e))?;
    Ok(())
}

/// Loads an iterator.
fn load_iter(ebpf: &mut Ebpf, btf: &Btf, name: &str, over: &str) -> Result<ProgramFd> {
    let program: &mut Iter = program(ebpf, name)?;
    program.load(over, btf).map_err(|e| failed("load", name, &e))?;
    let fd = program.fd().map_err(|e| failed("load", name, &e))?;
    fd.try_clone().on("dup", || "eBPF iterator")
}

/// Runs an iterator over one process.
fn iterate(program: &ProgramFd, process: Pid) -> Result<Vec<Record>> {
    let object = || format!("iterator over pid {process}");
    let mut bytes = Vec::new();
    match sys::bpf::iterate_process(program.as_fd(), process) {
        Ok(fd) => File::from(fd).read_to_end(&mut bytes).on("read", object)?,
        Err(Errno::ESRCH) => 0,
        Err(errno) => return Err(Error::kernel("bpf", object(), errno)),
    };
    Ok(Record::parse_all(&bytes))
}

/// The programs that keep the map, loaded; the system-call tracepoints come and go.
pub(crate) struct Programs {
    /// Owns the links: dropped, everything is detached.
    ebpf: Ebpf,
    events: RingBuf<MapData>,
    /// Value: the root in the low half, dead or not in the high half; then the count of changes.
    watched: HashMap<MapData, u32, [u64; 2]>,
    changes: Changes,
    lost: PerCpuArray<MapData, u64>,
    tasks: ProgramFd,
    files: ProgramFd,
    log: Option<Log>,
    /// Present while system calls and signals are seen.
    calls: Vec<(&'static str, BtfTracePointLinkId)>,
}

impl Programs {
    /// Loads everything; `ring` is the size of the ring in bytes, a power of two and at least a page.
    pub(crate) fn load(ring: u32) -> Result<Programs> {
        let (mut ebpf, btf) = load_object(&[("EVENTS", ring)])?;
        let log = Log::of(&mut ebpf);
        for (name, tracepoint) in ALWAYS {
            attach_btf(&mut ebpf, &btf, name, tracepoint)?;
        }
        for (name, tracepoint) in CALLS {
            let program: &mut BtfTracePoint = program(&mut ebpf, name)?;
            program
                .load(tracepoint, &btf)
                .map_err(|e| failed("load", name, &e))?;
        }
        // Sees more where it is granted; where not, audits find what it would have seen.
        let installed: &mut FExit = program(&mut ebpf, "fd_installed")?;
        let granted = installed.load("fd_install", &btf).is_ok() && installed.attach().is_ok();
        tracing::debug!(granted, "fexit on fd_install");
        let watched: Map = ebpf.take_map("WATCHED").ok_or_else(|| none("WATCHED"))?;
        let counts: Map = ebpf.take_map("COUNTS").ok_or_else(|| none("COUNTS"))?;
        let changes = Changes::new(&watched, &counts)?;
        let programs = Programs {
            events: take(&mut ebpf, "EVENTS")?,
            watched: HashMap::try_from(watched).map_err(|_| none("WATCHED"))?,
            changes,
            lost: take(&mut ebpf, "LOST")?,
            tasks: load_iter(&mut ebpf, &btf, "read_tasks", "task")?,
            files: load_iter(&mut ebpf, &btf, "read_files", "task_file")?,
            log,
            calls: Vec::new(),
            ebpf,
        };
        drop(btf);
        sys::bpf::trim();
        Ok(programs)
    }

    /// Begins to see system calls, at a cost to every one on the machine (some 20 ns).
    ///
    /// One program at every call's exit, and not a tracepoint for each call that matters: those would cost
    /// others half of that, but taking fifty of them down takes 3.6 s, and that long a killed agent would
    /// still hold what it had stopped.
    pub(crate) fn attach(&mut self) -> Result<()> {
        for (name, _) in CALLS {
            if self.calls.iter().all(|(attached, _)| *attached != name) {
                let program: &mut BtfTracePoint = program(&mut self.ebpf, name)?;
                let link = program.attach().map_err(|e| failed("attach", name, &e))?;
                self.calls.push((name, link));
            }
        }
        Ok(())
    }

    /// Stops seeing system calls.
    pub(crate) fn detach(&mut self) {
        for (name, link) in std::mem::take(&mut self.calls) {
            let detached = program::<BtfTracePoint>(&mut self.ebpf, name).map(|program| program.detach(link));
            if !matches!(detached, Ok(Ok(()))) {
                tracing::warn!("{name} could not be detached: {detached:?}");
            }
        }
    }

    /// Has the programs report a process, for `root`; nothing changes if they do already.
    pub(crate) fn watch(&mut self, pid: Pid, root: Pid) -> Result<()> {
        const BPF_NOEXIST: u64 = 1;
        if self.is_dead(pid).is_some() {
            return Ok(());
        }
        let done = self
            .watched
            .insert(pid.0 as u32, [u64::from(root.0 as u32), now()], BPF_NOEXIST);
        // The process may have been born into the map just now.
        if self.is_dead(pid).is_some() {
            return Ok(());
        }
        done.map_err(|e| failed("watch", &format!("for pid {pid}"), &e))
    }

    /// Whether the programs hold a process they report for dead.
    pub(crate) fn is_dead(&self, pid: Pid) -> Option<bool> {
        self.watched
            .get(&(pid.0 as u32), 0)
            .ok()
            .map(|[state, _]| state >> 32 != 0)
    }

    /// Corrects what the programs hold of a process.
    pub(crate) fn set_dead(&mut self, pid: Pid, root: Pid, dead: bool) -> Result<()> {
        let state = u64::from(root.0 as u32) | u64::from(dead) << 32;
        self.watched
            .insert(pid.0 as u32, [state, now()], 0)
            .map_err(|e| failed("watch", &format!("for pid {pid}"), &e))
    }

    /// Has the programs leave a process out.
    pub(crate) fn unwatch(&mut self, pid: Pid) {
        // Gone already if the process is.
        let _ = self.watched.remove(&(pid.0 as u32));
    }

    /// The processes that are reported, each with the root it is reported for.
    pub(crate) fn watched(&self) -> Vec<(Pid, Pid)> {
        let entries = self.watched.iter().filter_map(|e| e.ok());
        entries
            .map(|(pid, [state, _])| (Pid(pid as i32), Pid(state as u32 as i32)))
            .collect()
    }

    /// The counts of changes, to be read by whoever stops a process.
    pub(crate) fn changes(&self) -> Changes {
        self.changes.clone()
    }

    /// The next record, if one is there.
    pub(crate) fn next(&mut self) -> Option<Record> {
        loop {
            let item = self.events.next()?;
            match Record::parse(&item) {
                Some((record, _)) => return Some(record),
                None => tracing::warn!(
                    length = item.len(),
                    "a record of unknown form from a kernel program"
                ),
            }
        }
    }

    /// How many records found no room since the programs were loaded.
    pub(crate) fn lost(&self) -> u64 {
        self.lost
            .get(&0, 0)
            .map_or(u64::MAX, |by_cpu| by_cpu.iter().sum())
    }

    /// Hands what the programs logged to the agent's log.
    pub(crate) fn flush_log(&mut self) {
        if let Some(log) = &mut self.log {
            log.0.flush();
        }
    }

    /// The threads of a process as the kernel has them now.
    pub(crate) fn tasks(&self, pid: Pid) -> Result<Vec<Record>> {
        iterate(&self.tasks, pid)
    }

    /// The fds of a process as the kernel has them now.
    pub(crate) fn files(&self, pid: Pid) -> Result<Vec<Record>> {
        iterate(&self.files, pid)
    }
}

impl std::fmt::Debug for Programs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Programs {{ calls: {} }}", !self.calls.is_empty())
    }
}

impl std::fmt::Debug for FaultPrograms {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FaultPrograms")
    }
}

impl AsFd for Programs {
    /// Readable when a process died or much has gathered.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

/// The programs that log page faults, loaded and attached.
pub(crate) struct FaultPrograms {
    /// Owns the links: dropped, everything is detached.
    _ebpf: Ebpf,
    pub(crate) faults: RingBuf<MapData>,
    pub(crate) spaces: HashMap<MapData, u64, [u64; 2]>,
    lost: PerCpuArray<MapData, u64>,
    tasks: ProgramFd,
}

impl FaultPrograms {
    /// Loads and attaches them; `ring` is the size of the ring in bytes, a power of two and at least a page.
    pub(crate) fn load(ring: u32) -> Result<FaultPrograms> {
        let (mut ebpf, btf) = load_object(&[("FAULTS", ring)])?;
        attach_btf(&mut ebpf, &btf, "user_fault", "page_fault_user")?;
        attach_btf(&mut ebpf, &btf, "kernel_fault", "page_fault_kernel")?;
        attach_btf(&mut ebpf, &btf, "pages_counted", "rss_stat")?;
        attach_btf(&mut ebpf, &btf, "space_locked", "mmap_lock_acquire_returned")?;
        let mut programs = FaultPrograms {
            faults: take(&mut ebpf, "FAULTS")?,
            spaces: take(&mut ebpf, "SPACES")?,
            lost: take(&mut ebpf, "LOST")?,
            tasks: load_iter(&mut ebpf, &btf, "read_tasks", "task")?,
            _ebpf: ebpf,
        };
        drop(btf);
        sys::bpf::trim();
        let mut agent: Array<MapData, u32> = take(&mut programs._ebpf, "AGENT")?;
        let own = iterate(&programs.tasks, Pid(std::process::id() as i32))?;
        let number = own.iter().find_map(|r| match r {
            Record::Task(t) => Some(t.head.tgid),
            _ => None,
        });
        let done = agent.set(0, number.unwrap_or(0), 0);
        done.map_err(|e| failed("set", "AGENT", &e))?;
        Ok(programs)
    }

    /// How many faults found no room since the programs were loaded.
    pub(crate) fn lost(&self) -> u64 {
        self.lost
            .get(&0, 0)
            .map_or(u64::MAX, |by_cpu| by_cpu.iter().sum())
    }

    /// The address space of a process, as the number the programs compare.
    pub(crate) fn mm(&self, pid: Pid) -> Result<Option<u64>> {
        let records = iterate(&self.tasks, pid)?;
        Ok(records.iter().find_map(|r| match r {
            Record::Task(t) if t.mm != 0 => Some(t.mm),
            _ => None,
        }))
    }
}

/// The logger of the kernel programs.
struct Log(EbpfLogger<ToTracing>);

impl Log {
    /// None if the object logs nothing.
    fn of(ebpf: &mut Ebpf) -> Option<Log> {
        EbpfLogger::init_with_logger(ebpf, ToTracing).ok().map(Log)
    }
}

/// Passes on what kernel programs log.
struct ToTracing;

impl log::Log for ToTracing {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let said = record.args();
        match record.level() {
            log::Level::Error => tracing::error!(target: "freeze::ebpf", "{said}"),
            log::Level::Warn => tracing::warn!(target: "freeze::ebpf", "{said}"),
            log::Level::Info => tracing::info!(target: "freeze::ebpf", "{said}"),
            log::Level::Debug => tracing::debug!(target: "freeze::ebpf", "{said}"),
            log::Level::Trace => tracing::trace!(target: "freeze::ebpf", "{said}"),
        }
    }

    fn flush(&self) {}
}
