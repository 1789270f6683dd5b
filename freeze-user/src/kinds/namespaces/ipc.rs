//! The settings of an IPC namespace.

use crate::error::{Context, Result};
use crate::sys::ns::{self, Maker, Step};
use nix::errno::Errno;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

/// What of /proc/sys belongs to an IPC namespace.
const IPC_SETTINGS: [&str; 13] = [
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
];

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
