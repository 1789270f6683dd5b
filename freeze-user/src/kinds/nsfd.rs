//! Open descriptors of namespaces (`net:[…]`), of those the set lives in and of others.

use super::namespaces::{Outsider, held_verdict, keepers, still_kept};
use super::{FdKind, Placed, Source};
use crate::error::{Blocker, Context, Error, Result};
use crate::ids::FileId;
use crate::nest::space::Kind;
use crate::nest::{Nest, Options};
use crate::observe::foreign::namespace_of;
use crate::observe::view::{FdView, View};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

#[derive(Debug)]
pub struct NsFd;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub kind: Kind,
    pub which: Which,
    pub flags: i32,
    /// Where it was mounted and was opened, in the tree with this number.
    #[serde(default)]
    pub place: Option<Place>,
}

/// A path in a tree of files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    pub tree: u32,
    #[serde(with = "crate::ospath")]
    pub path: PathBuf,
}

/// Which namespace it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Which {
    /// One of the image, by its number; 0 is freeze's own.
    Numbered(u32),
    /// One that none of the set lives in, by those who do.
    Theirs(Vec<Outsider>),
}

impl FdKind for NsFd {
    const TAG: &'static str = "namespace-fd";
    const VERSION: u16 = 1;
    const ABOUT: &'static str = "descriptors of namespaces: of those that processes of the checkpoint live in, that freeze \
        lives in, or that others keep alive; UTS, network, IPC, user, time and cgroup namespaces that are only held open \
        are made again; refused: a pid or mount namespace that is only held open";
    type Record = Record;

    fn claims(fd: &FdView) -> bool {
        namespace_of(&fd.link).is_some()
    }

    fn verdict(fd: &FdView, view: &View, out: &mut Vec<Blocker>) {
        let Some((kind, inode)) = told(fd) else { return };
        match which(kind, inode, view) {
            Some(Which::Numbered(0) | Which::Theirs(_)) => {}
            Some(Which::Numbered(_)) => held_verdict(kind, inode, &fd.blocker(), view, out),
            None => out.push(nobodys(fd)),
        }
    }

    fn collect(fd: &FdView, from: &mut Source<'_>) -> Result<Record> {
        let (kind, inode) = told(fd).ok_or_else(|| nobodys(fd).refuse())?;
        Ok(Record {
            kind,
            which: which(kind, inode, from.view).ok_or_else(|| nobodys(fd).refuse())?,
            flags: fd.flags(),
            place: std::fs::read_link(fd.at())
                .ok()
                .filter(|path| path.is_absolute())
                .map(|path| Place {
                    tree: fd.tree.number,
                    path,
                }),
        })
    }

    fn precheck(record: &Record, _: &Options, out: &mut Vec<Blocker>) {
        if let Which::Theirs(keepers) = &record.which
            && still_kept(record.kind, keepers).is_none()
        {
            out.push(
                Blocker::at(format!("a {} namespace", record.kind.name()), "")
                    .why("the program holds it open, and those who lived in it have left or ended")
                    .remedy("checkpoint them together with the program"),
            );
        }
    }

    fn members(_: &Record) -> Vec<FileId> {
        Vec::new()
    }

    fn restore(record: &Record, nest: &mut Nest) -> Result<OwnedFd> {
        let name = || format!("a {} namespace", record.kind.name());
        let path = match &record.which {
            Which::Numbered(n) => format!("/proc/self/fd/{}", nest.spaces.descriptor(record.kind, *n)?),
            Which::Theirs(keepers) => {
                let pid = still_kept(record.kind, keepers)
                    .ok_or_else(|| Error::kernel("open", name(), Errno::ESRCH))?;
                format!("/proc/{pid}/ns/{}", record.kind.name())
            }
        };
        let flags =
            OFlag::from_bits_retain(record.flags & (libc::O_ACCMODE | libc::O_NONBLOCK | libc::O_PATH));
        // By the name it was opened by, if it is there again: that is what the descriptor shows.
        if let Some(Place { tree, path: named }) = &record.place
            && let Ok(named) = nest.options.reach(*tree, named)
            && is_same(&named, path.as_ref())
        {
            return nix::fcntl::open(&named, flags | OFlag::O_CLOEXEC, Mode::empty()).on("open", name);
        }
        nix::fcntl::open(path.as_str(), flags | OFlag::O_CLOEXEC, Mode::empty()).on("open", name)
    }

    fn finish(_: &Record, _: Placed, _: &mut Nest) -> Result<()> {
        Ok(())
    }
}

fn is_same(one: &Path, other: &Path) -> bool {
    let identity = |path: &Path| std::fs::metadata(path).map(|m| (m.dev(), m.ino())).ok();
    identity(one).is_some_and(|found| identity(other) == Some(found))
}

fn told(fd: &FdView) -> Option<(Kind, u64)> {
    let (name, inode) = namespace_of(&fd.link)?;
    let kind = Kind::ALL.into_iter().find(|k| k.name() == name)?;
    Some((kind, inode))
}

fn which(kind: Kind, inode: u64, view: &View) -> Option<Which> {
    let own = std::fs::metadata(format!("/proc/thread-self/ns/{}", kind.name()));
    if own.is_ok_and(|m| m.ino() == inode) {
        return Some(Which::Numbered(0));
    }
    if let Some(number) = view.foreign.get(&(kind.name().to_owned(), inode)) {
        return Some(Which::Numbered(*number));
    }
    let keepers = keepers(view, kind, inode);
    (!keepers.is_empty()).then_some(Which::Theirs(keepers))
}

fn nobodys(fd: &FdView) -> Blocker {
    fd.blocker()
        .why("nobody that freeze can see lives in this namespace, and it cannot be made again empty")
        .remedy("let the program close it")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Pid;
    use crate::observe::view::read_fd;
    use std::os::fd::AsRawFd;

    #[test]
    fn our_own_is_number_0() {
        let file = std::fs::File::open("/proc/self/ns/uts").unwrap();
        let seen = read_fd(Pid(std::process::id() as i32), file.as_raw_fd()).unwrap();
        assert!(NsFd::claims(&seen));
        let (kind, inode) = told(&seen).unwrap();
        assert_eq!(kind, Kind::Uts);
        assert_eq!(which(kind, inode, &View::default()), Some(Which::Numbered(0)));
    }

    #[test]
    fn what_nobody_has_is_nobodys() {
        assert_eq!(which(Kind::Net, 1, &View::default()), None);
    }
}
