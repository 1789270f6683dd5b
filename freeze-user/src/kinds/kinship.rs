//! Kinship: pids, parents, sessions and process groups, from which the nest forks the processes.

use super::{ProcessKind, Source, Stage};
use crate::error::{Blocker, Result};
use crate::ids::Pid;
use crate::nest::family::Family;
use crate::nest::{Nest, Options};
use crate::observe::view::{ProcessView, View};
use crate::store::Draft;
use crate::sys::{self, Kcmp};

#[derive(Debug)]
pub struct Kinship;

/// The place that a refusal for memory shared between processes names; a vfork is over in a moment.
pub const SHARED_MEMORY: &str = "its memory (vfork)";

impl ProcessKind for Kinship {
    const TAG: &'static str = "kinship";
    const VERSION: u16 = 1;
    const ABOUT: &'static str = "process and thread ids, parent and children, session and process group";
    const STAGE: Stage = Stage::Birth;
    type Record = Family;

    fn verdict(p: &ProcessView, view: &View, out: &mut Vec<Blocker>) {
        if p.stat.is_zombie() && p.stat.threads > 1 {
            out.push(
                p.blocker("", "a process whose first thread has ended")
                    .why("it is not carried yet")
                    .remedy("let the main thread wait for the others"),
            );
        } else if p.stat.is_zombie() && view.get(Pid(p.stat.ppid)).is_none() {
            let why =
                "it is a zombie whose parent is not part of the checkpoint: there is nothing of it to carry";
            out.push(
                p.blocker("", "a zombie")
                    .why(why)
                    .remedy("let its parent reap it (wait)"),
            );
        }
        if p.stat.exit_signal != libc::SIGCHLD && !view.roots.contains(&p.pid) {
            out.push(
                p.blocker("", "a process forked with another exit signal than SIGCHLD")
                    .why(format!("its exit signal is {}", p.stat.exit_signal))
                    .remedy("checkpoint it alone"),
            );
        }
        // Two processes that share a table (vfork, CLONE_FILES …) must get it back shared.
        let parent = Pid(p.stat.ppid);
        if view.get(parent).is_some() && !p.stat.is_zombie() {
            for (what, name) in [
                (Kcmp::Vm, SHARED_MEMORY),
                (Kcmp::Files, "its descriptor table"),
                (Kcmp::Fs, "its working directory"),
                (Kcmp::Sighand, "its signal handlers"),
            ] {
                if sys::kcmp(p.pid, parent, what, 0, 0).is_ok_and(std::cmp::Ordering::is_eq) {
                    out.push(
                        p.blocker("", name)
                            .why(format!("it is shared with its parent {parent}"))
                            .remedy(
                                "try again when the program has executed another, or has stopped sharing",
                            ),
                    );
                }
            }
        }
    }

    fn collect(from: &mut Source<'_>) -> Result<Family> {
        Ok(family(&from.process.view, from.view))
    }

    fn precheck(_: &Family, _: Pid, _: &Options, _: &mut Vec<Blocker>) {}

    fn restore(_: &Family, _: Pid, _: &mut Nest) -> Result<()> {
        // The nest was made from these records before any stage began.
        Ok(())
    }
}

fn family(p: &ProcessView, view: &View) -> Family {
    Family {
        pid: p.pid,
        parent: Pid(p.stat.ppid),
        pgid: Pid(p.stat.pgrp),
        sid: Pid(p.stat.session),
        root: view.get(Pid(p.stat.ppid)).is_none(),
        tids: p.threads.iter().map(|t| t.tid).filter(|t| *t != p.pid).collect(),
        ended: p.stat.is_zombie().then_some(p.stat.exit_code),
    }
}

/// Records the processes that have ended and wait for their parents: of them there is kinship and nothing else.
pub fn collect_zombies(view: &View, draft: &mut Draft) -> Result<()> {
    for p in view.processes.iter().filter(|p| p.stat.is_zombie()) {
        super::put_process::<Kinship>(p.pid, family(p, view), draft)?;
    }
    Ok(())
}
