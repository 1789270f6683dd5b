//! Where a process stands in the file system: working directory, root, umask.

use super::directory::{DirRef, OffPath};
use super::regular::found::{Lost, stand_in};
use super::{ProcessKind, Source, Stage};
use crate::error::{Blocker, Context, Result};
use crate::ids::Pid;
use crate::nest::{Nest, Options};
use crate::observe::view::{ProcessView, View};
use crate::sys::ended::StandIn;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

#[derive(Debug)]
pub struct Filesystem;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    #[serde(with = "crate::ospath")]
    pub cwd: PathBuf,
    #[serde(with = "crate::ospath")]
    pub root: PathBuf,
    pub umask: u32,
    /// The numbers of the trees of files (mount namespaces) that they are in.
    #[serde(default)]
    pub cwd_tree: u32,
    #[serde(default)]
    pub root_tree: u32,
    /// If the path of the working directory does not lead to it.
    #[serde(default)]
    pub cwd_off_path: Option<OffPath>,
    #[serde(default)]
    pub root_off_path: Option<OffPath>,
}

impl Record {
    fn cwd(&self) -> DirRef {
        DirRef {
            tree: self.cwd_tree,
            path: self.cwd.clone(),
            off_path: self.cwd_off_path.clone(),
        }
    }

    fn root(&self) -> DirRef {
        DirRef {
            tree: self.root_tree,
            path: self.root.clone(),
            off_path: self.root_off_path.clone(),
        }
    }
}

/// Opens a directory that a process is to go to. What tells of a process that has ended (browsers make it the root of what
/// they lock up) can be opened and gone to only while somebody has that number.
fn place(dir: &DirRef, flags: i32, alive: &mut BTreeMap<Pid, StandIn>, nest: &mut Nest) -> Result<OwnedFd> {
    let Some(OffPath::Lost(Lost::Dead { pid, inside })) = &dir.off_path else {
        return dir.open(flags, nest);
    };
    let name = || dir.path.display().to_string();
    if !alive.contains_key(pid) {
        alive.insert(*pid, stand_in(*pid, inside.as_ref(), nest)?);
    }
    let path = nest.options.reach(dir.tree, &dir.path)?;
    let flags = OFlag::from_bits_retain(flags | libc::O_CLOEXEC);
    nix::fcntl::open(&path, flags, Mode::empty()).on("open", name)
}

impl ProcessKind for Filesystem {
    const TAG: &'static str = "filesystem";
    const VERSION: u16 = 1;
    const ABOUT: &'static str = "working directory, root directory (removed ones too), umask";
    const STAGE: Stage = Stage::Place;
    type Record = Record;

    fn verdict(p: &ProcessView, _: &View, out: &mut Vec<Blocker>) {
        if p.is_dead() {
            return;
        }
        for (place, link) in [("cwd", &p.cwd), ("root", &p.root)] {
            let path = String::from_utf8_lossy(&link.path).into_owned();
            let at = format!("/proc/{}/{place}", p.speaker);
            out.extend(
                DirRef::obstacle(&link.path, &link.stat, &at, &link.tree)
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
        let at = |place: &str| format!("/proc/{}/{place}", p.speaker);
        let cwd = DirRef::collect(&p.cwd.path, &p.cwd.stat, &at("cwd"), &p.cwd.tree)?;
        let root = DirRef::collect(&p.root.path, &p.root.stat, &at("root"), &p.root.tree)?;
        Ok(Record {
            cwd: cwd.path,
            root: root.path,
            umask: p.status.umask.unwrap_or(0o022),
            cwd_tree: p.cwd.tree.number,
            root_tree: p.root.tree.number,
            cwd_off_path: cwd.off_path,
            root_off_path: root.off_path,
        })
    }

    fn precheck(record: &Record, _: Pid, options: &Options, out: &mut Vec<Blocker>) {
        record.cwd().precheck(options, out);
        if record.root != record.cwd {
            record.root().precheck(options, out);
        }
    }

    fn restore(record: &Record, pid: Pid, nest: &mut Nest) -> Result<()> {
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        let mut alive = BTreeMap::new();
        let root = place(&record.root(), flags, &mut alive, nest)?;
        let cwd = place(&record.cwd(), flags, &mut alive, nest)?;
        let at = nest.hand_over(pid, &[root.as_raw_fd(), cwd.as_raw_fd()])?;
        nest.process(pid)?.tape(|t| {
            t.call("fchdir", libc::SYS_fchdir, &[at[0]]);
            if record.root.as_os_str() != "/" || record.root_tree != 0 || record.root_off_path.is_some() {
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
