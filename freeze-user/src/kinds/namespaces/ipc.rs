//! The settings of an IPC namespace.

use crate::error::{Blocker, Context, Result};
use crate::kinds::FdKind;
use crate::kinds::mqueue::MQueue;
use crate::observe::view::{ProcessView, View};
use crate::sys::mqueue;
use crate::sys::ns::{self, Maker, Step};
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

/// Adds the POSIX queues that nobody of the set has open: there is no descriptor to look into them by.
///
/// Whoever keeps the namespace alive outside the set keeps them too.
pub(super) fn verdict(p: &ProcessView, view: &View, out: &mut Vec<Blocker>) {
    let Ok(namespace) = File::open(format!("/proc/{}/ns/ipc", p.speaker)) else {
        return;
    };
    let Ok(Ok(names)) = ns::within(&[namespace.as_fd()], mqueue::names) else {
        return;
    };
    let open: BTreeSet<&[u8]> = view
        .fds()
        .filter(|f| MQueue::claims(f))
        .filter_map(|f| f.link.rsplit(|b| *b == b'/').next())
        .collect();
    for name in names.iter().filter(|n| !open.contains(&n[..])) {
        let name = format!("/{}", String::from_utf8_lossy(name));
        out.push(
            p.blocker(name, "a POSIX message queue in an IPC namespace of its own")
                .why("nobody has it open, so that its messages cannot be looked at")
                .remedy("remove it (mq_unlink), or let a process of the checkpoint keep it open"),
        );
    }
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
