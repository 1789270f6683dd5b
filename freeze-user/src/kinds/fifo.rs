//! Named fifos: every end of them inside the checkpoint, with what has been written and not read.

use super::path::NodeRef;
use super::pipe::{Buffer, fill, read_buffer};
use super::regular::found::way;
use super::{FdKind, Placed, Source};
use crate::error::{Blocker, Context, Result};
use crate::ids::FileId;
use crate::nest::{Nest, Options};
use crate::observe::index::Other;
use crate::observe::view::{FdView, FileStat, View, command_of};
use crate::sys;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::sys::time::TimeSpec;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

#[derive(Debug)]
pub struct Fifo;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    #[serde(with = "crate::ospath")]
    pub path: PathBuf,
    /// Device and inode, by which the ends of one fifo are told.
    pub node: (u64, u64),
    pub flags: i32,
    /// With the first end that was seen.
    pub buffer: Option<Buffer>,
    /// The number of the tree of files (mount namespace) it is in.
    #[serde(default)]
    pub tree: u32,
    /// How it is found or made again; in older images it is where its path leads.
    #[serde(default)]
    pub place: Option<NodeRef>,
    /// Whether it is a reading end that nobody has written to since it was opened, so that poll(2) tells of no hang-up.
    #[serde(default)]
    pub calm: bool,
}

impl Record {
    fn open(&self, flags: i32, nest: &mut Nest) -> Result<OwnedFd> {
        let flags = flags | libc::O_CLOEXEC | libc::O_NONBLOCK;
        if let Some(place) = &self.place {
            return place.open(&self.path, self.tree, flags, nest);
        }
        let at = nest.options.reach(self.tree, &self.path)?;
        nix::fcntl::open(&at, OFlag::from_bits_retain(flags), Mode::empty())
            .on("open", || self.path.display().to_string())
    }
}

/// Both ends of each fifo, held until all others are where they belong: so no open waits and nothing is lost.
#[derive(Default)]
struct Held {
    fifos: HashMap<(u64, u64), OwnedFd>,
}

impl FdKind for Fifo {
    const TAG: &'static str = "fifo";
    const VERSION: u16 = 1;
    const ABOUT: &'static str = "named fifos, unlinked ones too: contents, capacity, packet mode; every end that is open, in the checkpoint";
    type Record = Record;

    fn claims(fd: &FdView) -> bool {
        fd.stat.kind() == libc::S_IFIFO && fd.link.starts_with(b"/")
    }

    fn verdict(fd: &FdView, view: &View, out: &mut Vec<Blocker>) {
        if let Err((why, remedy)) = way(&fd.link, &fd.stat, &fd.at(), &fd.tree) {
            out.push(fd.blocker().why(why).remedy(remedy));
        }
        if view.ends.cut(fd) {
            return;
        }
        for (pid, number) in outside(fd, view) {
            out.push(
                fd.blocker()
                    .why(format!(
                        "the fifo is also open outside the checkpoint, by pid {pid} ({}) as fd {number}",
                        command_of(pid)
                    ))
                    .remedy(format!(
                        "freeze that process too (--also-freeze {pid}), or give its end up (--cut {})",
                        fd.label()
                    ))
                    .held_by(pid),
            );
        }
    }

    fn collect(fd: &FdView, from: &mut Source<'_>) -> Result<Record> {
        let path_only = fd.flags() & libc::O_PATH != 0;
        let buffer = match !path_only && from.shared.first_sight(fd.stat.dev, fd.stat.ino) {
            true => Some(read_buffer(fd, from).on("tee", || fd.label())?),
            false => None,
        };
        let (path, place) = NodeRef::collect(&fd.link, &fd.stat, &fd.at(), &fd.tree)?;
        Ok(Record {
            path,
            place: Some(place),
            node: (fd.stat.dev, fd.stat.ino),
            flags: fd.flags(),
            buffer,
            tree: fd.tree.number,
            calm: is_calm(fd, from)?,
        })
    }

    fn precheck(record: &Record, options: &Options, out: &mut Vec<Blocker>) {
        if record
            .place
            .as_ref()
            .is_some_and(|p| p.gone.is_some() || p.lost.is_some())
        {
            return;
        }
        let Some(here) = options.place(record.tree, &record.path) else {
            return;
        };
        let found = match std::fs::symlink_metadata(here).map(|m| FileStat::from(&m)) {
            Ok(stat) if stat.kind() == libc::S_IFIFO => return,
            Ok(_) => "something else".to_owned(),
            Err(e) => e.to_string(),
        };
        out.push(
            Blocker::at(record.path.display().to_string(), "")
                .why(format!("expected a fifo, found {found}"))
                .remedy(format!("make it again: mkfifo {}", record.path.display())),
        );
    }

    fn members(_: &Record) -> Vec<FileId> {
        Vec::new()
    }

    fn restore(record: &Record, nest: &mut Nest) -> Result<OwnedFd> {
        let name = || record.path.display().to_string();
        // Packet mode is set with the other flags: where the file system does no direct I/O, it is not opened with that.
        let flags = record.flags & !(super::NOT_AT_OPEN | libc::O_DIRECT);
        if record.calm {
            // Without the other end, which would be missed once it is gone.
            let end = record.open(flags, nest)?;
            if let Some(buffer) = &record.buffer {
                sys::fcntl(end.as_fd(), libc::F_SETPIPE_SZ, buffer.capacity)
                    .on("fcntl(F_SETPIPE_SZ)", name)?;
            }
            return Ok(end);
        }
        if record.flags & libc::O_PATH == 0 {
            if !nest.state::<Held>().fifos.contains_key(&record.node) {
                let both = record.open(libc::O_RDWR, nest)?;
                nest.state::<Held>().fifos.insert(record.node, both);
            }
            let held = &nest.state::<Held>().fifos[&record.node];
            if let Some(buffer) = &record.buffer {
                // What waits in it was written when it was written.
                let before = nix::sys::stat::fstat(held).on("fstat", name)?;
                fill(held.as_fd(), buffer).on("write", name)?;
                let atime = TimeSpec::new(before.st_atime, before.st_atime_nsec);
                let mtime = TimeSpec::new(before.st_mtime, before.st_mtime_nsec);
                nix::sys::stat::futimens(held, &atime, &mtime).on("futimens", name)?;
            }
        }
        record.open(flags, nest)
    }

    fn finish(record: &Record, _: Placed, nest: &mut Nest) -> Result<()> {
        nest.state::<Held>().fifos.remove(&record.node);
        Ok(())
    }
}

/// Whether an end reads, has nobody who writes, and nothing tells that there ever was one.
fn is_calm(fd: &FdView, from: &mut Source<'_>) -> Result<bool> {
    let reads = |f: &FdView| f.flags() & libc::O_PATH == 0 && f.flags() & libc::O_ACCMODE == libc::O_RDONLY;
    let mut all = from
        .view
        .fds_of(fd.stat.ino)
        .filter(|f| f.stat.dev == fd.stat.dev && f.flags() & libc::O_PATH == 0);
    // Whoever is cut off from a writer outside is to hear of it.
    if from.view.ends.cut(fd) || !reads(fd) || !all.all(reads) {
        return Ok(false);
    }
    let seen = sys::socket::poll(from.process.fd(fd.fd)?.as_fd()).on("poll", || fd.label())?;
    Ok(seen & (libc::POLLHUP | libc::POLLIN) == 0)
}

/// Who outside the set has the fifo open.
fn outside(fd: &FdView, view: &View) -> Vec<(crate::ids::Pid, i32)> {
    // The link is cheap and tells nearly all apart; its target decides.
    let alike = view.others(|other| other.link == fd.link);
    let same = |other: &&Other| {
        let target = std::fs::metadata(format!("/proc/{}/fd/{}", other.pid, other.fd));
        target.is_ok_and(|m| (m.dev(), m.ino()) == (fd.stat.dev, fd.stat.ino))
    };
    alike.filter(same).map(|other| (other.pid, other.fd)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::view::read_fd;
    use std::os::fd::AsRawFd;

    #[test]
    fn a_fifo_is_no_pipe() {
        let path = std::env::temp_dir().join(format!("freeze-fifo-{}", std::process::id()));
        nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
        let fd = nix::fcntl::open(&path, OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty()).unwrap();
        let own = crate::ids::Pid(std::process::id() as i32);
        let seen = read_fd(own, fd.as_raw_fd()).unwrap();
        assert!(Fifo::claims(&seen) && !super::super::pipe::Pipe::claims(&seen));
        let mut blockers = Vec::new();
        Fifo::verdict(&seen, &View::default(), &mut blockers);
        assert_eq!(blockers, []);
        std::fs::remove_file(&path).unwrap();
        let seen = read_fd(own, fd.as_raw_fd()).unwrap();
        Fifo::verdict(&seen, &View::default(), &mut blockers);
        assert_eq!(blockers, [], "its name is gone, and can be had again");
    }
}
