//! Where a process stands in the file system: working directory, root, umask.

use super::directory::{must_be_there, obstacle};
use super::{ProcessKind, Source, Stage};
use crate::error::{Blocker, Context, Result};
use crate::ids::Pid;
use crate::nest::{Nest, Options};
use crate::observe::view::{ProcessView, View};
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

#[derive(Debug)]
pub struct Filesystem;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub cwd: PathBuf,
    pub root: PathBuf,
    pub umask: u32,
    /// The numbers of the trees of files (mount namespaces) that they are in.
    #[serde(default)]
    pub cwd_tree: u32,
    #[serde(default)]
    pub root_tree: u32,
}

impl ProcessKind for Filesystem {
    const TAG: &'static str = "filesystem";
    const VERSION: u16 = 1;
    const ABOUT: &'static str = "working directory, root directory, umask; removed directories are refused";
    const STAGE: Stage = Stage::Place;
    type Record = Record;

    fn verdict(p: &ProcessView, _: &View, out: &mut Vec<Blocker>) {
        if p.is_dead() {
            return;
        }
        for (place, link) in [("cwd", &p.cwd), ("root", &p.root)] {
            let path = String::from_utf8_lossy(&link.path).into_owned();
            out.extend(
                obstacle(&link.path, &link.stat, &link.tree)
                    .map(|(why, remedy)| p.blocker(place, path).why(why).remedy(remedy)),
            );
        }
        if p.status.umask.is_none() {
            out.push(
                p.blocker("umask", "")
                    .why("this kernel does not show it")
                    .remedy("use Linux 4.7 or newer"),
            );
        }
    }

    fn collect(from: &mut Source<'_>) -> Result<Record> {
        let p = &from.process.view;
        Ok(Record {
            cwd: OsStr::from_bytes(&p.cwd.path).into(),
            root: OsStr::from_bytes(&p.root.path).into(),
            umask: p.status.umask.unwrap_or(0o022),
            cwd_tree: p.cwd.tree.number,
            root_tree: p.root.tree.number,
        })
    }

    fn precheck(record: &Record, _: Pid, options: &Options, out: &mut Vec<Blocker>) {
        must_be_there(record.cwd_tree, &record.cwd, options, out);
        if record.root != record.cwd {
            must_be_there(record.root_tree, &record.root, options, out);
        }
    }

    fn restore(record: &Record, pid: Pid, nest: &mut Nest) -> Result<()> {
        let open = |tree: u32, path: &PathBuf| {
            let here = nest.options.reach(tree, path)?;
            File::open(here).on("open", || path.display().to_string())
        };
        let (root, cwd) = (
            open(record.root_tree, &record.root)?,
            open(record.cwd_tree, &record.cwd)?,
        );
        let at = nest.hand_over(pid, &[root.as_raw_fd(), cwd.as_raw_fd()])?;
        nest.process(pid)?.tape(|t| {
            t.call("fchdir", libc::SYS_fchdir, &[at[0]]);
            if record.root.as_os_str() != "/" || record.root_tree != 0 {
                let dot = t.bytes(b".\0");
                t.call("chroot", libc::SYS_chroot, &[dot]);
            }
            t.call("fchdir", libc::SYS_fchdir, &[at[1]]);
            t.call("umask", libc::SYS_umask, &[u64::from(record.umask)]);
            t.call("close", libc::SYS_close, &[at[0]]);
            t.call("close", libc::SYS_close, &[at[1]]);
        })?;
        Ok(())
    }
}
