//! Which descriptors are terminals, which of their sides, and which belong together.

use crate::error::{Context, Result};
use crate::ids::{FileId, Pid};
use crate::kinds::{Source, pty};
use crate::observe::index::Other;
use crate::observe::view::{FdView, View, read_fd};
use crate::sys::{self, events::termios};
use nix::errno::Errno;
use nix::sys::stat::{major, minor};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What a descriptor of a terminal is, by its device number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Master,
    /// With its number.
    Slave(u32),
    /// /dev/tty: the controlling terminal, whichever that is.
    Controlling,
    /// A console or serial line.
    Line,
}

pub(super) fn side(fd: &FdView) -> Option<Side> {
    if fd.stat.kind() != libc::S_IFCHR {
        return None;
    }
    match (major(fd.stat.rdev), minor(fd.stat.rdev)) {
        (5, 2) => Some(Side::Master),
        (136, n) => Some(Side::Slave(n as u32)),
        (5, 0) => Some(Side::Controlling),
        (5, 1) | (4 | 204 | 229, _) => Some(Side::Line),
        _ => None,
    }
}

/// Whether a slave side does nothing any more.
pub(super) fn is_hung_up(fd: &FdView) -> bool {
    // What a hung-up terminal answers to every request.
    borrow(fd).is_ok_and(|here| termios(here.as_fd()) == Err(Errno::EIO))
}

/// The hung-up slave sides of the master `fd`, which has the number `index`, with their flags.
pub(super) fn hung_of(fd: &FdView, index: u32, from: &Source<'_>) -> Vec<(FileId, i32)> {
    let own = instance_inside(fd);
    let hung = from.view.fds().filter(|f| {
        f.flags() & libc::O_PATH == 0
            && side(f) == Some(Side::Slave(index))
            && instance_inside(f) == own
            && is_hung_up(f)
    });
    let each: BTreeMap<FileId, i32> = hung
        .filter_map(|f| Some((*from.shared.files.get(&(f.pid, f.fd))?, f.flags())))
        .collect();
    each.into_iter().collect()
}

/// The device number of the devpts that a descriptor of either side belongs to.
///
/// A multiplexer outside of one belongs to that beside it; `tree` is where its path leads through.
pub(super) fn instance(fd: &FdView, root: &dyn Fn(&[u8]) -> PathBuf) -> Option<u64> {
    if fd.filesystem == pty::DEVPTS {
        return Some(fd.stat.dev);
    }
    let dir = pty::directory(Path::new(OsStr::from_bytes(&fd.link)), false);
    std::fs::metadata(root(dir.as_os_str().as_bytes()))
        .ok()
        .map(|m| m.dev())
}

/// Whether the slave side of a master is where its path says.
pub(super) fn is_below_its_directory(fd: &FdView) -> bool {
    let dir = pty::directory_of(&fd.tree.path(&fd.link));
    std::fs::metadata(dir).map(|m| m.dev()).ok() == instance_inside(fd)
}

pub(super) fn master_index(fd: &FdView) -> Option<u32> {
    fd.info.get("tty-index")?.parse().ok()
}

/// The number of the pseudo terminal that a descriptor is the slave side of.
pub(super) fn slave_index(fd: &FdView, view: &View) -> Option<u32> {
    match side(fd)? {
        Side::Slave(index) => Some(index),
        Side::Controlling => {
            // Who has it may have left the session since; one that has hung up answers no more.
            let device = match borrow(fd).ok().and_then(|here| device_of(&here)) {
                Some(device) => device,
                None => view.get(fd.pid)?.stat.tty_nr,
            } as u32;
            // As proc(5) shows it: minor bits 7-0 and 31-20, major between.
            (device >> 8 & 0xfff == 136).then_some(device >> 12 & 0xfff00 | device & 0xff)
        }
        _ => None,
    }
}

pub(super) fn instance_inside(fd: &FdView) -> Option<u64> {
    instance(fd, &|path| fd.tree.path(path))
}

/// The master of the slave side `fd`, which has the number `index`.
pub(super) fn master_of<'a>(fd: &FdView, index: u32, view: &'a View) -> Option<&'a FdView> {
    // /dev/tty does not tell in which devpts its terminal lies.
    let known = (side(fd) != Some(Side::Controlling)).then(|| instance_inside(fd));
    view.fds().find(|f| {
        side(f) == Some(Side::Master)
            && master_index(f) == Some(index)
            && known.is_none_or(|dev| instance_inside(f) == dev)
    })
}

/// A slave side of the master `fd`, which has the number `index`.
pub(super) fn slave_of<'a>(fd: &FdView, index: u32, view: &'a View) -> Option<&'a FdView> {
    let own = instance_inside(fd);
    view.fds().find(|f| {
        f.flags() & libc::O_PATH == 0
            && slave_index(f, view) == Some(index)
            && (side(f) == Some(Side::Controlling) || instance_inside(f) == own)
            && !is_hung_up(f)
    })
}

/// Whether a mount shows the slave side of the master `fd`, which has the number `index`, by another name.
pub(super) fn is_shown(fd: &FdView, index: u32, view: &View) -> bool {
    let Some(dev) = instance_inside(fd) else {
        return false;
    };
    let (device, root) = (format!("{}:{}", major(dev), minor(dev)), format!("/{index}"));
    let mut mounts = view.trees.all().flat_map(|t| view.trees.mounts(t.number));
    mounts.any(|m| m.device == device && m.root == root.as_bytes())
}

/// The device number of the terminal behind a descriptor, also of /dev/tty; None of one that has hung up.
pub(super) fn device_of(terminal: &OwnedFd) -> Option<i32> {
    const TIOCGDEV: u64 = 0x8004_5432;
    sys::ioctl_int(terminal.as_fd(), TIOCGDEV).ok()
}

/// A duplicate of a descriptor of any process of the set.
pub(super) fn borrow(fd: &FdView) -> Result<OwnedFd> {
    fd.duplicate()
        .on("pidfd_getfd", || format!("fd {} of {}", fd.fd, fd.pid))
}

/// Who outside the set holds either side of the pseudo terminal whose master is `fd`.
pub(super) fn holders_outside(fd: &FdView, index: u32, view: &View) -> Vec<(Pid, RawFd)> {
    let devpts = instance_inside(fd);
    let slave = format!("/{index}");
    let alike = view.others(|other| other.link.ends_with(b"ptmx") || other.link.ends_with(slave.as_bytes()));
    let joined = |other: &&Other| {
        let Ok(seen) = read_fd(other.pid, other.fd) else {
            return false;
        };
        let joined = match side(&seen) {
            Some(Side::Master) => master_index(&seen) == Some(index),
            Some(Side::Slave(n)) => n == index,
            _ => false,
        };
        let theirs = |path: &[u8]| {
            let root = format!("/proc/{}/root", other.pid).into_bytes();
            PathBuf::from(OsStr::from_bytes(&[&root, path].concat()))
        };
        joined && instance(&seen, &theirs) == devpts
    };
    alike.filter(joined).map(|other| (other.pid, other.fd)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::view::Depth;
    use std::os::fd::AsRawFd;

    #[test]
    fn both_sides_are_told_and_found() {
        let pair = nix::pty::openpty(None, None).unwrap();
        let own = Pid(std::process::id() as i32);
        let view = View::read(&[own], Depth::Maps).unwrap();
        let at = |fd: &OwnedFd| view.fds().find(|f| f.fd == fd.as_raw_fd()).unwrap();
        let (master, slave) = (at(&pair.master), at(&pair.slave));
        assert_eq!(side(master), Some(Side::Master));
        let index = master_index(master).unwrap();
        assert_eq!(side(slave), Some(Side::Slave(index)));
        assert_eq!(instance_inside(master), instance_inside(slave));
        assert_eq!(master_of(slave, index, &view), Some(master));
        assert_eq!(slave_of(master, index, &view), Some(slave));
        assert_eq!(holders_outside(master, index, &view), []);
        let nobody = View::default();
        assert_eq!(master_of(slave, index, &nobody), None);
        assert!(!is_hung_up(slave));
        drop(pair.master);
        // A child that another test has forked meanwhile has the master too, until it ends.
        let began = std::time::Instant::now();
        while !is_hung_up(slave) && began.elapsed().as_secs() < 20 {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        assert!(is_hung_up(slave));
    }
}
