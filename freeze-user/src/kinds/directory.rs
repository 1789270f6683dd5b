//! Open directories: path, flags and position.

use super::regular::FileRef;
use super::{FdKind, Placed, Source};
use crate::error::{Blocker, Context, Result};
use crate::ids::FileId;
use crate::nest::{Nest, Options};
use crate::observe::tree::Tree;
use crate::observe::view::{FdView, FileStat, View};
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

#[derive(Debug)]
pub struct Directory;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub path: PathBuf,
    pub flags: i32,
    /// As the file system counts; meaningful on the same file system only.
    pub position: i64,
    /// The number of the tree of files (mount namespace) it is in.
    #[serde(default)]
    pub tree: u32,
}

impl FdKind for Directory {
    const TAG: &'static str = "directory";
    const VERSION: u16 = 1;
    const ABOUT: &'static str = "open directories: flags and position; removed ones are refused";
    type Record = Record;

    fn claims(fd: &FdView) -> bool {
        fd.stat.kind() == libc::S_IFDIR
    }

    fn verdict(fd: &FdView, _: &View, out: &mut Vec<Blocker>) {
        out.extend(
            obstacle(&fd.link, &fd.stat, &fd.tree).map(|(why, remedy)| fd.blocker().why(why).remedy(remedy)),
        );
    }

    fn collect(fd: &FdView, _: &mut Source<'_>) -> Result<Record> {
        Ok(Record {
            path: OsStr::from_bytes(&fd.link).into(),
            flags: fd.flags(),
            position: fd.info.pos,
            tree: fd.tree.number,
        })
    }

    fn precheck(record: &Record, options: &Options, out: &mut Vec<Blocker>) {
        must_be_there(record.tree, &record.path, options, out);
    }

    fn members(_: &Record) -> Vec<FileId> {
        Vec::new()
    }

    fn restore(record: &Record, nest: &mut Nest) -> Result<OwnedFd> {
        let name = || record.path.display().to_string();
        let flags = OFlag::from_bits_retain(record.flags) | OFlag::O_CLOEXEC | OFlag::O_DIRECTORY;
        let path = nest.options.reach(record.tree, &record.path)?;
        let fd = nix::fcntl::open(&path, flags, Mode::empty()).on("open", name)?;
        if record.position != 0 {
            nix::unistd::lseek64(fd.as_fd(), record.position, nix::unistd::Whence::SeekSet)
                .on("lseek", name)?;
        }
        Ok(fd)
    }

    fn finish(_: &Record, _: Placed, _: &mut Nest) -> Result<()> {
        Ok(())
    }
}

/// What speaks against carrying a directory, told by its link.
pub fn obstacle(link: &[u8], stat: &FileStat, tree: &Tree) -> Option<(String, &'static str)> {
    match link.ends_with(b" (deleted)") && stat.nlink == 0 {
        true => Some(("the directory was removed".into(), "let the program leave it")),
        false => FileRef::obstacle(link, stat, tree),
    }
}

/// Refuses a directory that is not there.
pub fn must_be_there(tree: u32, path: &std::path::Path, options: &Options, out: &mut Vec<Blocker>) {
    let Some(here) = options.place(tree, path) else {
        return;
    };
    let found = match std::fs::metadata(here) {
        Ok(m) if m.is_dir() => return,
        // Made again with the processes that are in it.
        Err(_) if super::cgroup::is_group(path) => return,
        Ok(_) => "something else lies there".to_owned(),
        Err(e) => e.to_string(),
    };
    out.push(
        Blocker::at(path.display().to_string(), "")
            .why(format!("expected a directory: {found}"))
            .remedy("create it, or mount what holds it"),
    );
}
