//! The front: the process that is called freezed, waits for the engine's process, and may be killed at any instant.
//!
//! While a thread makes a system call for freeze its registers are not its own, and some of these calls (the first
//! and the last of a checkpoint) are single steps that only the tracer can put right. A tracer that is killed between
//! two of its own steps would leave the thread there. So the tracer is a process of its own: when the front dies, it
//! is told by the kernel, finishes what it has in hand, puts everything back, and ends.

use crate::error::{Context, Result};
use nix::sys::prctl::{set_name, set_pdeathsig};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getppid};
use std::ffi::OsString;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::ExitStatus;
use std::task::Poll;
use tokio::signal::unix::{SignalKind, signal};

/// What the engine's process is called: not freezed, so that who ends freezed by its name ends the front.
const NAME: &std::ffi::CStr = c"freeze-engine";

/// Starts this program again with `args`, as the engine's process, passes signals on to it, and waits for its end.
pub fn stand(args: impl IntoIterator<Item = OsString>) -> Result<ExitStatus> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.on("start the runtime", || "freezed")?;
    runtime.block_on(async {
        let wanted = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];
        let mut streams = Vec::new();
        for wanted in wanted {
            let stream = signal(SignalKind::from_raw(wanted as i32)).on("sigaction", || "freezed")?;
            streams.push((wanted, stream));
        }
        let mut command = std::process::Command::new("/proc/self/exe");
        command.arg0(NAME.to_string_lossy().as_ref()).args(args);
        // systemd means the front by it, and takes messages from both.
        command.env_remove("WATCHDOG_PID");
        let name = || NAME.to_string_lossy().into_owned();
        let mut engine = tokio::process::Command::from(command).spawn().on("spawn", name)?;
        loop {
            let came = std::future::poll_fn(|context| {
                match streams
                    .iter_mut()
                    .find_map(|(s, stream)| stream.poll_recv(context).is_ready().then_some(*s))
                {
                    Some(signal) => Poll::Ready(signal),
                    None => Poll::Pending,
                }
            });
            tokio::select! {
                status = engine.wait() => return status.on("wait", name),
                signal = came => if let Some(pid) = engine.id() {
                    // Not waited for yet, so the pid is still its own.
                    let _ = kill(Pid::from_raw(pid as i32), signal);
                },
            }
        }
    })
}

/// Makes this the engine's process of the front `front`: it is asked to stop when that dies.
pub fn follow(front: i32) -> Result<()> {
    let _ = set_name(NAME);
    set_pdeathsig(Signal::SIGTERM).on("prctl(PR_SET_PDEATHSIG)", || "freezed")?;
    // It may have died before that was said.
    match getppid().as_raw() == front {
        true => Ok(()),
        false => Err(nix::errno::Errno::ESRCH).on("follow", || format!("the front, pid {front}")),
    }
}

/// The status to end with for that of the engine.
pub fn exit_code(status: ExitStatus) -> u8 {
    match (status.code(), status.signal()) {
        (Some(code), _) => code as u8,
        (None, signal) => (128 + signal.unwrap_or(0)) as u8,
    }
}
