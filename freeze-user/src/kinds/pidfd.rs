//! Pidfds: of processes and threads in the checkpoint, of others that outlast it, and of those that have ended.

use super::{FdKind, Placed, Source};
use crate::error::{Blocker, Context, Result};
use crate::ids::{FileId, Pid};
use crate::nest::{Nest, Options};
use crate::observe::view::{FdView, ProcessView, View, command_of};
use crate::proc::stat::Stat;
use crate::sys;
use crate::sys::ended::{self, Ended};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

#[derive(Debug)]
pub struct PidFd;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub pid: Pid,
    /// Whether it stands for the thread instead of the process (PIDFD_THREAD).
    pub thread: bool,
    #[serde(default)]
    pub state: State,
}

/// What has become of its process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// It is in the checkpoint, a process or a thread.
    #[default]
    Inside,
    /// It goes on outside, where it is known by when it started, in ticks after this boot.
    Outside { started: u64, boot: String },
    /// It has ended and was waited for: which one of these it was, and with what status where the kernel tells.
    Ended {
        which: u64,
        status: i32,
        /// The number of the pid namespace of who holds it: in another one it would be nobody at all.
        #[serde(default)]
        space: u32,
    },
}

impl FdKind for PidFd {
    const TAG: &'static str = "pidfd";
    const VERSION: u16 = 1;
    const ABOUT: &'static str = "pidfds of processes and threads in the checkpoint, of processes outside that live on until the \
        restore, and of those that have ended, with their status; of threads of a process in a user namespace of its \
        own they are refused";
    type Record = Record;

    fn claims(fd: &FdView) -> bool {
        // Since pidfs (Linux 6.9) the link may be `pidfd:[…]`.
        fd.anon_inode() == Some("pidfd") || fd.link.starts_with(b"pidfd:[")
    }

    fn verdict(fd: &FdView, view: &View, out: &mut Vec<Blocker>) {
        match target(fd) {
            None => out.push(nobodys(fd)),
            Some(Pid(0)) => out.push(
                fd.blocker()
                    .why("its process is in another pid namespace than freeze")
                    .remedy("run freeze in a pid namespace that sees it, or let the program close it"),
            ),
            Some(tid) => {
                let owner = owner_of(tid, view);
                if owner.is_some_and(|p| view.namespace(p, "user") != 0) {
                    out.push(
                        fd.blocker()
                            .why(format!(
                                "it stands for the thread {tid} of a process in a user namespace of its own, whose threads \
                                 can be made only after all descriptors"
                            ))
                            .remedy("let the program close it"),
                    );
                }
            }
        }
    }

    fn collect(fd: &FdView, from: &mut Source<'_>) -> Result<Record> {
        let pid = target(fd).ok_or_else(|| nobodys(fd).refuse())?;
        let state = match pid {
            Pid(..0) => {
                let here = from.process.fd(fd.fd)?;
                State::Ended {
                    which: fd.stat.ino,
                    status: ended::status(&here).unwrap_or(0),
                    space: from.view.namespace(&from.process.view, "pid"),
                }
            }
            pid if from.view.get(pid).is_some() || owner_of(pid, from.view).is_some() => State::Inside,
            pid => match started(pid) {
                Some(started) => State::Outside {
                    started,
                    boot: sys::boot_id().to_owned(),
                },
                // It has just ended, and the view is older.
                None => return Err(nobodys(fd).refuse()),
            },
        };
        Ok(Record {
            pid,
            thread: fd.flags() & libc::O_EXCL != 0,
            state,
        })
    }

    fn precheck(record: &Record, _: &Options, out: &mut Vec<Blocker>) {
        let State::Outside {
            started: then,
            boot: on,
        } = &record.state
        else {
            return;
        };
        // There is always an init, and it is always the same one to those who ask for pid 1.
        if record.pid == Pid(1) || (started(record.pid) == Some(*then) && on == sys::boot_id()) {
            return;
        }
        let now = match started(record.pid) {
            Some(_) => format!("{} has this pid now", command_of(record.pid)),
            None => "it has ended".to_owned(),
        };
        out.push(
            Blocker::at(format!("pid {}", record.pid), "a process outside the checkpoint")
                .why(format!("the program holds a pidfd of it, and {now}"))
                .remedy("checkpoint it together with the program (--also-freeze)"),
        );
    }

    fn members(_: &Record) -> Vec<FileId> {
        Vec::new()
    }

    fn restore(record: &Record, nest: &mut Nest) -> Result<OwnedFd> {
        let open = |pid: Pid| {
            sys::events::pidfd_open_with(pid, record.thread).on("pidfd_open", || format!("pid {pid}"))
        };
        match record.state {
            // The processes exist since the nest was made, and threads of theirs that are asked for come at once.
            State::Inside => match nest.owner_of_thread(record.pid) {
                Some(owner) => open(nest.thread_ahead(owner, record.pid)?),
                None => open(record.pid),
            },
            State::Outside { .. } => open(record.pid),
            State::Ended { which, status, space } => {
                if !nest.state::<Dead>().0.contains_key(&which) {
                    let end = || Ended::new(status).on("fork", || "a process that ends at once");
                    let made = nest.born_in(space, end)?;
                    nest.state::<Dead>().0.insert(which, made);
                }
                open(nest.state::<Dead>().0[&which].pid())
            }
        }
    }

    fn finish(_: &Record, _: Placed, nest: &mut Nest) -> Result<()> {
        // All their pidfds are open: now they are waited for.
        nest.state::<Dead>().0.clear();
        Ok(())
    }
}

/// Stand-ins for processes that ended before the checkpoint.
#[derive(Debug, Default)]
struct Dead(BTreeMap<u64, Ended>);

fn target(fd: &FdView) -> Option<Pid> {
    fd.info.get("Pid")?.parse().ok().map(Pid)
}

/// The process that has this thread besides its first.
fn owner_of(tid: Pid, view: &View) -> Option<&ProcessView> {
    let has = |p: &&ProcessView| p.pid != tid && p.threads.iter().any(|t| t.tid == tid);
    view.each().find(has)
}

fn nobodys(fd: &FdView) -> Blocker {
    fd.blocker()
        .why("the kernel does not show whose it is")
        .remedy("close it before the checkpoint")
}

fn started(pid: Pid) -> Option<u64> {
    Some(Stat::parse(&std::fs::read(format!("/proc/{pid}/stat")).ok()?)?.start_time)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn it_tells_whose_it_is() {
        let own = Pid(std::process::id() as i32);
        let fd = sys::pidfd_open(own).unwrap();
        let seen = crate::observe::view::read_fd(own, fd.as_raw_fd()).unwrap();
        assert!(PidFd::claims(&seen));
        assert_eq!(target(&seen), Some(own));
        let mut out = Vec::new();
        PidFd::verdict(&seen, &View::default(), &mut out);
        assert_eq!(out, []);
        let outside = |started, pid| Record {
            pid,
            thread: false,
            state: State::Outside {
                started,
                boot: sys::boot_id().to_owned(),
            },
        };
        let options = Options::default();
        PidFd::precheck(&outside(started(own).unwrap(), own), &options, &mut out);
        PidFd::precheck(&outside(0, Pid(1)), &options, &mut out);
        assert_eq!(out, []);
        PidFd::precheck(&outside(0, own), &options, &mut out);
        assert!(out[0].why.contains("has this pid now"), "{out:?}");
    }

    #[test]
    fn one_that_has_ended_is_made_again() {
        let dead = Ended::new(libc::SIGTERM).unwrap();
        let fd = sys::pidfd_open(dead.pid()).unwrap();
        drop(dead);
        let seen = crate::observe::view::read_fd(Pid(std::process::id() as i32), fd.as_raw_fd()).unwrap();
        assert_eq!(target(&seen), Some(Pid(-1)));
        if let Ok(status) = ended::status(&fd) {
            assert_eq!(status, libc::SIGTERM);
        }
    }
}
