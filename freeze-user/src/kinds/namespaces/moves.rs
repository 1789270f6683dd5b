//! Moves within a tree of mounts that is being built, by tape in a process that lives in it.

use crate::error::Result;
use crate::ids::Pid;
use crate::nest::Nest;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Puts a part of the file system that is mounted at `at` in the place of the whole.
pub(super) fn narrow(at: &Path, part: &Path, by: Pid, nest: &mut Nest) -> Result<()> {
    const OPEN_TREE_CLONE: u64 = 1;
    const MOVE_MOUNT_F_EMPTY_PATH: u64 = 4;
    let here = libc::AT_FDCWD as u64;
    let mut open = |path: &Path| {
        nest.process(by)?.tape(|t| {
            let path = t.bytes(&terminated(path.as_os_str().as_bytes()));
            t.call("open_tree", libc::SYS_open_tree, &[here, path, OPEN_TREE_CLONE])
        })
    };
    let (ran, call) = open(&at.join(part))?;
    let there = ran.value(call) as u64;
    nest.process(by)?.tape(|t| {
        let at = t.bytes(&terminated(at.as_os_str().as_bytes()));
        let none = t.bytes(b"\0");
        t.call("umount2", libc::SYS_umount2, &[at, libc::MNT_DETACH as u64]);
        let args = [there, none, here, at, MOVE_MOUNT_F_EMPTY_PATH];
        t.call("move_mount", libc::SYS_move_mount, &args);
        t.call("close", libc::SYS_close, &[there]);
    })?;
    Ok(())
}

/// Makes what is mounted at `aside` the root; the old one lies on top of it, where no path leads.
pub(super) fn become_root(aside: &str, by: Pid, nest: &mut Nest) -> Result<()> {
    nest.process(by)?.tape(|t| {
        let aside = t.bytes(&terminated(aside.as_bytes()));
        let dot = t.bytes(b".\0");
        let root = t.bytes(b"/\0");
        t.call("chdir", libc::SYS_chdir, &[aside]);
        t.call("pivot_root", libc::SYS_pivot_root, &[dot, dot]);
        t.call("chdir", libc::SYS_chdir, &[root]);
    })?;
    Ok(())
}

/// Drops everything that was there before.
pub(super) fn drop_old_root(by: Pid, nest: &mut Nest) -> Result<()> {
    nest.process(by)?.tape(|t| {
        let dot = t.bytes(b".\0");
        let root = t.bytes(b"/\0");
        t.call("chdir", libc::SYS_chdir, &[root]);
        t.call("umount2", libc::SYS_umount2, &[dot, libc::MNT_DETACH as u64]);
        t.call("chdir", libc::SYS_chdir, &[root]);
    })?;
    Ok(())
}

pub(super) fn terminated(bytes: &[u8]) -> Vec<u8> {
    [bytes, b"\0"].concat()
}
