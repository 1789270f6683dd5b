//! Terminals: one outside the checkpoint is exchanged for the restorer's, a pseudo terminal inside it is made again.

use super::pipe::Bytes;
use super::pty::{self, Made, Pty};
use super::{FdKind, Placed, Source};
use crate::error::{Blocker, Context, Error, Result};
use crate::ids::{FileId, Pid};
use crate::nest::{Nest, Options};
use crate::observe::view::{FdView, View, all_pids, command_of, read_fd};
use crate::store::Opened;
use crate::sys::{
    self,
    events::{Termios, ioctl_word, set_termios, termios},
};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::stat::{Mode, major, minor};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::IsTerminal;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

#[derive(Debug)]
pub struct Terminal;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// A terminal whose other side lies outside the checkpoint.
    Outside(Outside),
    /// The master side of a pseudo terminal.
    Master(Box<Master>),
    /// The slave side of one whose master is in the checkpoint.
    Slave(Slave),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outside {
    pub path: PathBuf,
    pub flags: i32,
    /// `struct termios2`, which a program that draws on its terminal relies on.
    pub termios: Option<Bytes>,
    /// The foreground group, where that is in the checkpoint.
    pub foreground: Option<Pid>,
    /// The session it controls, where its leader is in the checkpoint.
    pub session: Option<Pid>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Master {
    pub path: PathBuf,
    pub flags: i32,
    pub pty: Pty,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slave {
    pub master: FileId,
    pub index: u32,
    pub path: PathBuf,
    pub flags: i32,
}

/// What a descriptor of a terminal is, by its device number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Master,
    /// With its number.
    Slave(u32),
    /// /dev/tty: the controlling terminal, whichever that is.
    Controlling,
    /// A console or serial line.
    Line,
}

fn side(fd: &FdView) -> Option<Side> {
    if fd.stat.kind() != libc::S_IFCHR {
        return None;
    }
    match (major(fd.stat.rdev), minor(fd.stat.rdev)) {
        (5, 2) => Some(Side::Master),
        (136, n) => Some(Side::Slave(n as u32)),
        (5, 0) => Some(Side::Controlling),
        (5, 1) | (4 | 229, _) => Some(Side::Line),
        _ => None,
    }
}

/// The kernel's own `O_LARGEFILE`, which open(2) adds and libc shows as 0 on x86-64.
const LARGEFILE: i32 = 0o100000;

impl FdKind for Terminal {
    const TAG: &'static str = "terminal";
    const VERSION: u16 = 1;
    const ABOUT: &'static str = "terminals: one outside the checkpoint is reattached to the restorer's (--tty) with its \
        settings; pseudo terminals inside with number, settings, size, modes, what was typed and written, stopped \
        output, session and foreground group; /dev/tty comes back as /dev/pts/N";
    type Record = Record;

    fn claims(fd: &FdView) -> bool {
        side(fd).is_some() && fd.flags() & libc::O_PATH == 0
    }

    fn verdict(fd: &FdView, view: &View, out: &mut Vec<Blocker>) {
        if side(fd) != Some(Side::Master) {
            return;
        }
        let Some(index) = master_index(fd) else {
            out.push(
                fd.blocker()
                    .why("the kernel does not show which terminal it is")
                    .remedy("close it first"),
            );
            return;
        };
        for (pid, number) in holders_outside(index, view) {
            out.push(
                fd.blocker()
                    .why(format!("/dev/pts/{index} is also held outside the checkpoint, by pid {pid} ({}) as fd {number}", command_of(pid)))
                    .remedy("checkpoint a common ancestor, or end that process"),
            );
        }
        let Ok(master) = borrow(fd) else { return };
        let slave = slave_of(index, view).and_then(|s| borrow(s).ok());
        match pty::obstacle(master.as_fd(), slave.as_ref().map(AsFd::as_fd)) {
            Ok(found) => out.extend(found.map(|(why, remedy)| fd.blocker().why(why).remedy(remedy))),
            Err(e) => out.push(
                fd.blocker()
                    .why(format!("it cannot be looked at: {e}"))
                    .remedy("close it first"),
            ),
        }
        if let Ok(session) = sys::ioctl_int(master.as_fd(), libc::TIOCGSID)
            && session > 0
            && view.get(Pid(session)).is_none()
        {
            out.push(
                fd.blocker()
                    .why(format!(
                        "/dev/pts/{index} controls session {session}, whose leader is not in the checkpoint"
                    ))
                    .remedy("checkpoint a common ancestor"),
            );
        }
    }

    fn collect(fd: &FdView, from: &mut Source<'_>) -> Result<Record> {
        let (path, flags) = (OsStr::from_bytes(&fd.link).into(), fd.flags());
        if side(fd) == Some(Side::Master) {
            let index = master_index(fd).ok_or_else(|| fd.blocker().why("it has no number").refuse())?;
            let master = from.process.fd(fd.fd)?;
            let slave = slave_of(index, from.view).map(borrow).transpose()?;
            let pty = pty::collect(index, master.as_fd(), slave.as_ref().map(AsFd::as_fd))?;
            return Ok(Record::Master(Box::new(Master { path, flags, pty })));
        }
        if let Some(index) = slave_index(fd, from.view)
            && let Some(master) = master_of(index, from.view)
            && let Some(id) = from.shared.files.get(&(master.pid, master.fd))
        {
            return Ok(Record::Slave(Slave {
                master: *id,
                index,
                path,
                flags,
            }));
        }
        let here = from.process.fd(fd.fd)?;
        let inside = |group: i32| {
            from.view
                .processes
                .iter()
                .any(|p| p.stat.pgrp == group)
                .then_some(Pid(group))
        };
        let (tty, leader) = (from.process.view.stat.tty_nr, from.process.view.stat.session);
        let controls = tty != 0 && from.view.get(Pid(leader)).is_some();
        Ok(Record::Outside(Outside {
            path,
            flags,
            // A terminal that has hung up has no settings any more.
            termios: termios(here.as_fd()).ok().map(|t| Bytes(t.to_vec())),
            foreground: inside(from.process.view.stat.tpgid).filter(|_| tty != 0),
            session: controls.then_some(Pid(leader)),
        }))
    }

    fn precheck(record: &Record, options: &Options, out: &mut Vec<Blocker>) {
        match record {
            Record::Outside(outside) => {
                let at = || Blocker::at(outside.path.display().to_string(), "a terminal");
                if !options.reattach_terminal {
                    out.push(
                        at().why("the program was on a terminal, which is not part of the checkpoint")
                            .remedy("give it the one freeze runs on: freeze restore --tty"),
                    );
                } else if own_terminal().is_none() {
                    out.push(
                        at().why("freeze itself has no terminal to give in its place")
                            .remedy("run freeze restore --tty on a terminal (ssh -t, script -c)"),
                    );
                }
            }
            Record::Master(master) => {
                let index = master.pty.index;
                // When the trees of files are looked at, the terminals have been made.
                if options.trees.is_empty() && pty::is_taken(index) {
                    out.push(pty::taken(index));
                }
            }
            Record::Slave(_) => {}
        }
    }

    fn members(record: &Record) -> Vec<FileId> {
        match record {
            Record::Slave(slave) => vec![slave.master],
            _ => Vec::new(),
        }
    }

    fn restore(record: &Record, nest: &mut Nest) -> Result<OwnedFd> {
        match record {
            Record::Outside(outside) => reattach(outside),
            Record::Master(master) => {
                let made = nest.state::<Ptys>().get_or_make(master)?;
                made.master.try_clone().on("dup", || "a pty")
            }
            Record::Slave(slave) => {
                let name = || slave.path.display().to_string();
                let Some(made) = nest.state::<Ptys>().made.get(&slave.index) else {
                    return Err(Error::kernel("open", name(), Errno::ENXIO));
                };
                if slave.flags & LARGEFILE == 0 {
                    return pty::peer(made.master.as_fd(), slave.flags).on("ioctl(TIOCGPTPEER)", name);
                }
                open(&format!("/dev/pts/{}", slave.index), slave.flags).on("open", name)
            }
        }
    }

    fn finish(record: &Record, placed: Placed, nest: &mut Nest) -> Result<()> {
        match record {
            Record::Outside(outside) => foreground(outside, placed, nest),
            Record::Slave(_) => Ok(()),
            Record::Master(master) => {
                let pty = &master.pty;
                let name = || format!("/dev/pts/{}", pty.index);
                let Some(made) = nest.state::<Ptys>().made.remove(&pty.index) else {
                    return Ok(());
                };
                if let (Some(leader), Some(group), Some(slave)) = (pty.session, pty.foreground, &made.slave) {
                    let at = nest.hand_over(leader, &[slave.as_raw_fd()])?[0];
                    let known = nest.known_as(leader, group);
                    let (ran, set) = nest.process(leader)?.tape(|t| {
                        let id = t.bytes(&known.to_ne_bytes());
                        let set = t.try_call("ioctl(TIOCSPGRP)", libc::SYS_ioctl, &[at, libc::TIOCSPGRP, id]);
                        t.call("close", libc::SYS_close, &[at]);
                        set
                    })?;
                    if let Err(e) = ran.result(set) {
                        nest.warnings.push(format!(
                            "{}: group {group} is not in its foreground any more: {e}",
                            name()
                        ));
                    }
                }
                pty::settle(pty, &made).on("ioctl", name)
            }
        }
    }
}

/// Pseudo terminals made so far, by number, until all their descriptors are where they belong.
#[derive(Debug, Default)]
pub struct Ptys {
    made: BTreeMap<u32, Made>,
}

impl Ptys {
    fn get_or_make(&mut self, master: &Master) -> Result<&Made> {
        use std::collections::btree_map::Entry;
        match self.made.entry(master.pty.index) {
            Entry::Occupied(made) => Ok(made.into_mut()),
            Entry::Vacant(free) => Ok(free.insert(pty::make(&master.pty, master.flags)?)),
        }
    }
}

/// Makes the controlling terminals of the image's sessions, which are passed on by fork: before the first process.
///
/// Returns a slave side by session.
pub fn controlling(image: &Opened) -> Result<(Ptys, BTreeMap<Pid, OwnedFd>)> {
    let mut ptys = Ptys::default();
    let mut sessions = BTreeMap::new();
    for frame in image.records().iter().filter(|f| f.tag == Terminal::TAG) {
        // What cannot be decoded is reported by whoever loads all records.
        let Ok(super::FileFrame {
            record: Record::Master(master),
            ..
        }) = rmp_serde::from_slice(&frame.payload)
        else {
            continue;
        };
        let Some(session) = master.pty.session else {
            continue;
        };
        let made = ptys.get_or_make(&master)?;
        if let Some(slave) = &made.slave {
            sessions.insert(session, slave.try_clone().on("dup", || "a pty")?);
        }
    }
    Ok((ptys, sessions))
}

fn master_index(fd: &FdView) -> Option<u32> {
    fd.info.get("tty-index")?.parse().ok()
}

/// The number of the pseudo terminal that a descriptor is the slave side of.
fn slave_index(fd: &FdView, view: &View) -> Option<u32> {
    match side(fd)? {
        Side::Slave(index) => Some(index),
        Side::Controlling => {
            // As proc(5) shows it: minor bits 7-0 and 31-20, major between.
            let device = view.get(fd.pid)?.stat.tty_nr as u32;
            (device >> 8 & 0xfff == 136).then_some(device >> 12 & 0xfff00 | device & 0xff)
        }
        _ => None,
    }
}

fn master_of(index: u32, view: &View) -> Option<&FdView> {
    view.fds()
        .find(|f| side(f) == Some(Side::Master) && master_index(f) == Some(index))
}

fn slave_of(index: u32, view: &View) -> Option<&FdView> {
    view.fds()
        .find(|f| f.flags() & libc::O_PATH == 0 && slave_index(f, view) == Some(index))
}

/// A duplicate of a descriptor of any process of the set.
fn borrow(fd: &FdView) -> Result<OwnedFd> {
    let name = || format!("fd {} of {}", fd.fd, fd.pid);
    let pidfd = sys::pidfd_open(fd.pid).on("pidfd_open", name)?;
    sys::pidfd_getfd(pidfd.as_fd(), fd.fd).on("pidfd_getfd", name)
}

/// Who outside the set holds either side of a pseudo terminal.
fn holders_outside(index: u32, view: &View) -> Vec<(Pid, RawFd)> {
    let own = std::process::id() as i32;
    let slave = format!("/dev/pts/{index}");
    let mut out = Vec::new();
    for pid in all_pids().unwrap_or_default() {
        if pid.0 == own || view.get(pid).is_some() {
            continue;
        }
        // Processes that end, or that we may not look into, hold nothing we could name.
        let Ok(dir) = std::fs::read_dir(format!("/proc/{pid}/fd")) else {
            continue;
        };
        for entry in dir.flatten() {
            let Ok(link) = std::fs::read_link(entry.path()) else {
                continue;
            };
            let Some(number) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else {
                continue;
            };
            let is_master = || {
                link.as_os_str().as_bytes().ends_with(b"ptmx")
                    && read_fd(pid, number)
                        .is_ok_and(|f| side(&f) == Some(Side::Master) && master_index(&f) == Some(index))
            };
            if link.as_os_str() == slave.as_str() || is_master() {
                out.push((pid, number));
            }
        }
    }
    out
}

/// Which of freeze's own descriptors is its terminal.
fn own_terminal() -> Option<PathBuf> {
    let standard = [
        std::io::stdin().is_terminal(),
        std::io::stdout().is_terminal(),
        std::io::stderr().is_terminal(),
    ];
    if let Some(n) = standard.iter().position(|is| *is) {
        return Some(format!("/proc/self/fd/{n}").into());
    }
    std::fs::File::open("/dev/tty").ok().map(|_| "/dev/tty".into())
}

fn open(path: &str, flags: i32) -> nix::Result<OwnedFd> {
    let flags = flags & !(libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC) | libc::O_CLOEXEC | libc::O_NOCTTY;
    nix::fcntl::open(path, OFlag::from_bits_retain(flags), Mode::empty())
}

fn reattach(outside: &Outside) -> Result<OwnedFd> {
    let name = || format!("the terminal for {}", outside.path.display());
    let path = own_terminal().ok_or_else(|| Error::kernel("open", name(), Errno::ENXIO))?;
    open(&path.display().to_string(), outside.flags).on("open", name)
}

/// Gives the restorer's terminal the program's settings, and the program the foreground it had.
fn foreground(outside: &Outside, placed: Placed, nest: &mut Nest) -> Result<()> {
    let name = || format!("the terminal for {}", outside.path.display());
    if let Some(leader) = outside.session.filter(|s| nest.pids().contains(s)) {
        nest.warnings.push(format!(
            "{}: it controlled session {leader}, which has no controlling terminal now",
            outside.path.display()
        ));
    }
    let tty = nest.file(placed.id)?.try_clone_to_owned().on("dup", name)?;
    let _quiet = Quiet::new();
    if let Some(bytes) = &outside.termios {
        let wanted = Termios::try_from(&bytes.0[..])
            .map_err(|_| Error::kernel("ioctl(TCSETS2)", name(), Errno::EINVAL))?;
        if termios(tty.as_fd()).on("ioctl(TCGETS2)", name)? != wanted {
            set_termios(tty.as_fd(), &wanted).on("ioctl(TCSETS2)", name)?;
        }
    }
    let Some(group) = outside.foreground else {
        return Ok(());
    };
    // Only a terminal that controls the session both are in has a foreground for it.
    let sid = |pid: Option<Pid>| nix::unistd::getsid(pid.map(Pid::nix)).ok();
    if sid(Some(placed.pid)) == sid(None) {
        let _ = set_foreground(tty.as_fd(), group);
    }
    Ok(())
}

/// Takes the foreground of freeze's terminal back from a program that has ended.
pub fn take_back() {
    let Some(tty) = own_terminal().and_then(|p| open(&p.display().to_string(), libc::O_RDWR).ok()) else {
        return;
    };
    let _quiet = Quiet::new();
    let own = Pid(nix::unistd::getpgrp().as_raw());
    let gone = |group: i32| crate::nest::family::group_exists(Pid(group));
    if sys::ioctl_int(tty.as_fd(), libc::TIOCGPGRP).is_ok_and(|now| now != own.0 && !gone(now)) {
        let _ = set_foreground(tty.as_fd(), own);
    }
}

fn set_foreground(tty: BorrowedFd<'_>, group: Pid) -> nix::Result<()> {
    ioctl_word(tty, libc::TIOCSPGRP, group.0 as u64)
}

/// SIGTTOU blocked while it lives: the terminal can be set although freeze may be in its background.
struct Quiet(Option<SigSet>);

impl Quiet {
    fn new() -> Quiet {
        let mut old = SigSet::empty();
        let mut set = SigSet::empty();
        set.add(Signal::SIGTTOU);
        Quiet(
            sigprocmask(SigmaskHow::SIG_BLOCK, Some(&set), Some(&mut old))
                .is_ok()
                .then_some(old),
        )
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        if let Some(old) = &self.0 {
            let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(old), None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::view::Depth;

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
        assert_eq!(master_of(index, &view), Some(master));
        assert_eq!(slave_of(index, &view), Some(slave));
        assert_eq!(holders_outside(index, &view), []);
        let nobody = View::default();
        assert_eq!(master_of(index, &nobody), None);
    }
}
