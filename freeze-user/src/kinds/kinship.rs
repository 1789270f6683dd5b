//! Kinship: pids, parents, sessions and process groups, from which the nest forks the processes.

use super::{ProcessKind, Source, Stage};
use crate::error::{Blocker, Result};
use crate::ids::Pid;
use crate::nest::family::Family;
use crate::nest::{Nest, Options};
use crate::observe::view::{ProcessView, View};
use crate::sys::{self, Kcmp};

#[derive(Debug)]
pub struct Kinship;

impl ProcessKind for Kinship {
    const TAG: &'static str = "kinship";
    const VERSION: u16 = 1;
    const ABOUT: &'static str = "process and thread ids, parent and children, session and process group";
    const STAGE: Stage = Stage::Birth;
    type Record = Family;

    fn verdict(p: &ProcessView, view: &View, out: &mut Vec<Blocker>) {
        if p.stat.is_zombie() {
            let what = if p.stat.threads > 1 { "a process whose first thread has ended" } else { "a zombie" };
            out.push(p.blocker("", what).why("there is nothing of it to carry").remedy("let its parent reap it (wait)"));
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
                (Kcmp::Vm, "its memory (vfork)"),
                (Kcmp::Files, "its descriptor table"),
                (Kcmp::Fs, "its working directory"),
                (Kcmp::Sighand, "its signal handlers"),
            ] {
                if sys::kcmp(p.pid, parent, what, 0, 0).is_ok_and(std::cmp::Ordering::is_eq) {
                    out.push(
                        p.blocker("", name)
                            .why(format!("it is shared with its parent {parent}"))
                            .remedy("try again when the program has executed another, or has stopped sharing"),
                    );
                }
            }
        }
    }

    fn collect(from: &mut Source<'_>) -> Result<Family> {
        let p = &from.process.view;
        Ok(Family {
            pid: p.pid,
            parent: Pid(p.stat.ppid),
            pgid: Pid(p.stat.pgrp),
            sid: Pid(p.stat.session),
            root: from.view.get(Pid(p.stat.ppid)).is_none(),
            tids: p.threads.iter().map(|t| t.tid).filter(|t| *t != p.pid).collect(),
        })
    }

    fn precheck(_: &Family, _: Pid, _: &Options, _: &mut Vec<Blocker>) {}

    fn restore(_: &Family, _: Pid, _: &mut Nest) -> Result<()> {
        // The nest was made from these records before any stage began.
        Ok(())
    }
}
