//! Mounts and moves within a tree that is being built, by tape in a process that lives in it.

use super::mounts::Mount;
use super::options::flags;
use crate::error::Result;
use crate::ids::Pid;
use crate::nest::Nest;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Mounts a file system of its own, writable for now.
pub(super) fn make(at: &Path, m: &Mount, by: Pid, nest: &mut Nest) -> Result<()> {
    let data: Vec<&str> = m
        .super_options
        .split(',')
        .filter(|o| !matches!(*o, "rw" | "ro" | "seclabel") && !o.is_empty())
        .collect();
    let data = data.join(",");
    nest.process(by)?.tape(|t| {
        let source = t.bytes(&terminated(m.source.as_bytes()));
        let to = t.bytes(&terminated(at.as_os_str().as_bytes()));
        let kind = t.bytes(&terminated(m.fs.as_bytes()));
        let data = t.bytes(&terminated(data.as_bytes()));
        let flags = flags(&m.options) & !libc::MS_RDONLY;
        t.call("mount", libc::SYS_mount, &[source, to, kind, flags, data]);
    })?;
    Ok(())
}

/// The part of its own file system that a mount shows, if it is made anew with nothing beside it.
pub(super) fn shown_part(m: &Mount) -> Option<&Path> {
    let part = m.root.strip_prefix("/").unwrap_or(&m.root);
    (matches!(m.fs.as_str(), "tmpfs" | "ramfs") && !part.as_os_str().is_empty()).then_some(part)
}

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
