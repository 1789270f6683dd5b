//! The settings of an IPC namespace, and its POSIX message queues that nobody has open.

use crate::error::{Blocker, Context, Result};
use crate::kinds::FdKind;
use crate::kinds::mqueue::{MQueue, Record, make};
use crate::observe::peek::Peek;
use crate::observe::view::{ProcessView, View};
use crate::sys::ns::{self, Maker, Step};
use crate::sys::{dev_ino, mqueue};
use nix::Result as Sys;
use nix::errno::Errno;
use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

/// What of /proc/sys belongs to an IPC namespace.
const IPC_SETTINGS: [&str; 14] = [
    "kernel/auto_msgmni",
    "kernel/msgmax",
    "kernel/msgmnb",
    "kernel/msgmni",
    "kernel/sem",
    "kernel/shmall",
    "kernel/shmmax",
    "kernel/shmmni",
    "kernel/shm_rmid_forced",
    "fs/mqueue/queues_max",
    "fs/mqueue/msg_max",
    "fs/mqueue/msgsize_max",
    "fs/mqueue/msg_default",
    "fs/mqueue/msgsize_default",
];

/// Adds the POSIX queues that nobody of the set has open and that cannot be looked into.
///
/// Whoever keeps the namespace alive outside the set keeps them too.
pub(super) fn verdict(p: &ProcessView, view: &View, out: &mut Vec<Blocker>) {
    if Peek::get().is_some() {
        return;
    }
    let Ok(namespace) = File::open(format!("/proc/{}/ns/ipc", p.speaker)) else {
        return;
    };
    let closed = closed_queues(&OwnedFd::from(namespace), view).unwrap_or_default();
    for (name, _) in closed {
        let name = format!("/{}", String::from_utf8_lossy(&name));
        out.push(
            p.blocker(name, "a POSIX message queue in an IPC namespace of its own")
                .why("the messages in a queue can only be looked at in the kernel, and that is not allowed here")
                .remedy("run freeze with CAP_BPF and CAP_PERFMON, or remove the queue (mq_unlink)"),
        );
    }
}

/// The POSIX queues of a namespace that nobody of the set has open, by name, opened.
fn closed_queues(namespace: &OwnedFd, view: &View) -> Sys<Vec<(Vec<u8>, OwnedFd)>> {
    let open: BTreeSet<(u64, u64)> = view
        .fds()
        .filter(|f| MQueue::claims(f))
        .map(|f| (f.stat.dev, f.stat.ino))
        .collect();
    let look = || -> Sys<Vec<(Vec<u8>, OwnedFd)>> {
        let mut out = Vec::new();
        for name in mqueue::names()? {
            let queue = mqueue::open(&name, libc::O_RDONLY)?;
            if !open.contains(&dev_ino(&queue)?) {
                out.push((name, queue));
            }
        }
        Ok(out)
    };
    ns::within(&[namespace.as_fd()], look)?
}

/// The POSIX queues that nobody of the set has open: who has is asked by descriptor.
pub(super) fn queues(namespace: &OwnedFd, number: u32, view: &View) -> Result<Vec<Record>> {
    let closed = closed_queues(namespace, view).on("mq_open", || "a queue of an IPC namespace")?;
    let each = closed.into_iter().map(|(name, queue)| {
        let label = || format!("/{}", String::from_utf8_lossy(&name));
        Record::of_closed(&name, queue.as_fd(), number).on("mq_getattr", label)
    });
    each.collect()
}

/// Makes them again.
pub(super) fn fill(namespace: &OwnedFd, queues: &[Record]) -> Result<()> {
    let make = || -> Result<()> {
        for queue in queues {
            let name = || format!("/{}", String::from_utf8_lossy(&queue.name.0));
            make(queue).on("mq_open", name)?;
        }
        Ok(())
    };
    ns::within(&[namespace.as_fd()], make).on("setns", || "an IPC namespace")?
}

/// The settings as they are.
pub(super) fn settings(namespace: &OwnedFd) -> Result<Vec<(String, String)>> {
    let look = || {
        let value = |name: &&str| Some(((*name).to_owned(), read(name)?));
        IPC_SETTINGS.iter().filter_map(value).collect()
    };
    ns::within(&[namespace.as_fd()], look).on("setns", || "an IPC namespace")
}

fn read(name: &str) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/sys/{name}")).ok()?;
    Some(text.trim().to_owned())
}

/// Makes those that differ what they were; tells the one that cannot be set.
///
/// Which root may set them depends on the kernel: up to Linux 6.9 that of the first user namespace, later that of the
/// user namespace they belong to.
pub(super) fn apply(
    namespace: &OwnedFd,
    owner: Option<RawFd>,
    settings: &[(String, String)],
) -> std::result::Result<(), (String, Errno)> {
    let differ = || -> Vec<&(String, String)> {
        let differs = |(name, value): &&(String, String)| read(name).as_ref() != Some(value);
        settings.iter().filter(differs).collect()
    };
    let differing = ns::within(&[namespace.as_fd()], differ).map_err(|e| ("kernel".into(), e))?;
    for (name, value) in differing {
        let path = format!("/proc/sys/{name}\0").into_bytes();
        let write = Step::Write(path, value.clone().into_bytes());
        let inside = Step::Enter(namespace.as_raw_fd());
        let mut done = Maker::new(&[inside.clone(), write.clone()]);
        if let (Err(_), Some(owner)) = (&done, owner) {
            done = Maker::new(&[Step::Enter(owner), inside, Step::Uid(0), write]);
        }
        done.map_err(|(_, errno)| (name.clone(), errno))?;
    }
    Ok(())
}
