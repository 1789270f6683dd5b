//! What no checkpoint can beat: stopping a process and letting it go, a fork of as much memory, writing as many bytes
//! where images go, and the first touch of as much memory, which on a virtual machine is the host's to give.

use super::sample::Sample;
use super::stage::{Load, PATIENCE, Stage, now};
use anyhow::{Context, Result, ensure};
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::fs::File;
use std::io::Write;
use std::process::Command;
use std::time::{Duration, Instant};

/// Touches each page of its memory, then forks again and again; prints how long each took in the parent, in nanoseconds.
const FORKS: &str = "
import mmap, os, sys, time
memory = mmap.mmap(-1, int(sys.argv[1]) << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
ones = b'\\1' * (len(memory) >> 12)
begin = time.perf_counter_ns()
memory[::4096] = ones
print(time.perf_counter_ns() - begin)
for _ in range(int(sys.argv[2])):
    begin = time.perf_counter_ns()
    child = os.fork()
    if child == 0:
        os._exit(0)
    print(time.perf_counter_ns() - begin)
    os.waitpid(child, 0)
";

/// Seizes all threads, interrupts them, waits until all stand still, and lets go; in milliseconds, as counted
/// (from the first interrupt to the last detach) and as the load saw it.
pub(crate) fn stop_and_go(stage: &mut Stage<'_>, load: &mut Load, times: usize) -> Result<(Sample, Sample)> {
    let (mut counted, mut seen) = (Vec::new(), Vec::new());
    for _ in 0..times {
        let from = now();
        counted.push(once(load.pid)?.as_secs_f64() * 1e3);
        let to = now();
        seen.push(load.longest_gap(stage, from, to)?);
    }
    let missing = "nothing was stopped";
    Ok((
        Sample::of(counted).context(missing)?,
        Sample::of(seen).context(missing)?,
    ))
}

fn once(pid: Pid) -> Result<Duration> {
    let mut threads = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let name = entry?.file_name();
        let tid = name
            .to_str()
            .and_then(|n| n.parse().ok())
            .context("a thread's number")?;
        threads.push(Pid::from_raw(tid));
    }
    // If anything fails half-way the load is lost: our end of the ptrace relation ends with this process.
    for &tid in &threads {
        ptrace::seize(tid, ptrace::Options::empty()).context("PTRACE_SEIZE")?;
    }
    let begin = Instant::now();
    for &tid in &threads {
        ptrace::interrupt(tid).context("PTRACE_INTERRUPT")?;
    }
    for &tid in &threads {
        let status = waitpid(tid, Some(WaitPidFlag::__WALL)).context("waitpid")?;
        ensure!(
            matches!(status, WaitStatus::PtraceEvent(..) | WaitStatus::Stopped(..)),
            "the load's thread {tid}: {status:?}"
        );
    }
    for &tid in &threads {
        ptrace::detach(tid, None).context("PTRACE_DETACH")?;
    }
    Ok(begin.elapsed())
}

/// How fast so many MiB go to a new file where the images go, from memory that the processor has at hand; in GB/s.
pub(crate) fn write(stage: &Stage<'_>, mib: u64) -> Result<Option<Sample>> {
    let path = stage.dir.join("limit");
    let at = || path.display().to_string();
    let bytes = vec![0x5a; 128 << 10];
    let begin = Instant::now();
    let mut file = File::create(&path).with_context(at)?;
    for _ in 0..mib * 8 {
        file.write_all(&bytes).with_context(at)?;
    }
    let took = begin.elapsed();
    drop(file);
    std::fs::remove_file(&path).with_context(at)?;
    Ok(speed(mib, took.as_nanos() as f64))
}

/// In GB/s.
fn speed(mib: u64, ns: f64) -> Option<Sample> {
    Sample::of([(mib << 20) as f64 / ns])
}

/// How long fork(2) holds up a process of so many MiB in pages of 4 KiB, in milliseconds, and how fast they were touched
/// for the first time, in GB/s.
pub(crate) fn fork(
    stage: &mut Stage<'_>,
    mib: u64,
    times: usize,
) -> Result<(Option<Sample>, Option<Sample>)> {
    // Debian's own, not whatever wrapper of that name comes first. It inherits that there are no huge pages.
    let thp = nix::sys::prctl::get_thp_disable().context("prctl(PR_GET_THP_DISABLE)")?;
    nix::sys::prctl::set_thp_disable(true).context("prctl(PR_SET_THP_DISABLE)")?;
    let mut python = Command::new("/usr/bin/python3");
    python.args(["-c", FORKS, &mib.to_string(), &times.to_string()]);
    let ran = stage.run(&mut python, PATIENCE);
    nix::sys::prctl::set_thp_disable(thp).context("prctl(PR_SET_THP_DISABLE)")?;
    let ran = ran?;
    ensure!(
        ran.status.success(),
        "python3: {}: {}",
        ran.status,
        ran.err.trim()
    );
    let mut times = ran.out.lines().filter_map(|line| line.parse::<f64>().ok());
    let touched = times.next().and_then(|ns| speed(mib, ns));
    Ok((Sample::of(times.map(|ns| ns / 1e6)), touched))
}
