//! The login uid: under which name somebody logged in, for the kernel's audit (pam_loginuid(8)).

use super::{ProcessKind, Source, Stage};
use crate::error::{Blocker, Context, Result};
use crate::ids::Pid;
use crate::nest::{Nest, Options};
use crate::observe::looks;
use crate::observe::view::{ProcessView, View};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::os::fd::AsRawFd;

#[derive(Debug)]
pub struct Login;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// As freeze's user namespace has it, the largest number for nobody; none where the kernel has no audit.
    pub uid: Option<u32>,
}

/// That of a process.
fn uid_of(pid: Pid) -> Option<u32> {
    number(&looks::text(format!("/proc/{pid}/loginuid")).ok()?)
}

fn number(text: &[u8]) -> Option<u32> {
    std::str::from_utf8(text).ok()?.trim().parse().ok()
}

impl ProcessKind for Login {
    const TAG: &'static str = "login";
    const VERSION: u16 = 1;
    const ABOUT: &'static str =
        "the login uid (audit); where it is not the restorer's, the session id is a new one for each process";
    // Before threads, which get that of their process.
    const STAGE: Stage = Stage::Place;
    type Record = Record;

    fn verdict(p: &ProcessView, _: &View, out: &mut Vec<Blocker>) {
        let own = uid_of(p.pid);
        let others = p.threads.iter().filter(|t| t.tid != p.pid && !t.alike.login);
        let others: Vec<Pid> = others.map(|t| t.tid).collect();
        let paths: Vec<String> = others
            .iter()
            .map(|tid| format!("/proc/{}/task/{tid}/loginuid", p.pid))
            .collect();
        for (tid, text) in others.iter().zip(looks::texts(&paths)) {
            let uid = text.ok().and_then(|t| number(&t));
            if uid.is_some() && own.is_some() && uid != own {
                out.push(
                    p.blocker(format!("thread {tid}"), "its own login uid")
                        .why("threads of one process with different login uids are not carried")
                        .remedy("let the program set it before it starts threads"),
                );
            }
        }
    }

    fn collect(from: &mut Source<'_>) -> Result<Record> {
        let by = from.process.view.speaker;
        Ok(Record { uid: uid_of(by) })
    }

    fn precheck(_: &Record, _: Pid, _: &Options, _: &mut Vec<Blocker>) {}

    fn restore(record: &Record, pid: Pid, nest: &mut Nest) -> Result<()> {
        let Some(uid) = record.uid else {
            return Ok(());
        };
        match uid_of(pid) {
            Some(now) if now != uid => {}
            Some(_) => return Ok(()),
            None => {
                if uid != u32::MAX {
                    nest.warnings.push(format!(
                        "pid {pid}: login uid {uid} is lost: this kernel has none"
                    ));
                }
                return Ok(());
            }
        }
        let path = format!("/proc/{pid}/loginuid");
        let file = File::options().write(true).open(&path).on("open", || path)?;
        // Only a task itself may write it.
        let at = nest.hand_over(pid, &[file.as_raw_fd()])?[0];
        let text = uid.to_string();
        let (ran, written) = nest.process(pid)?.tape(|t| {
            let bytes = t.bytes(text.as_bytes());
            let written = t.try_call("write", libc::SYS_write, &[at, bytes, text.len() as u64]);
            t.call("close", libc::SYS_close, &[at]);
            written
        })?;
        if let Err(e) = ran.result(written) {
            nest.warnings.push(format!(
                "pid {pid}: login uid {uid} could not be set (this wants CAP_AUDIT_CONTROL, and that it is not immutable): {}",
                e.desc()
            ));
        }
        Ok(())
    }
}
