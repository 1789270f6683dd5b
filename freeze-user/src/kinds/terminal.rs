//! Terminals: one outside the checkpoint is exchanged for the restorer's, a pseudo terminal inside it is made again.

mod sides;

use self::sides::{
    Side, borrow, device_of, holders_outside, hung_of, is_below_its_directory, is_hung_up, is_shown,
    master_index, master_of, side, slave_index, slave_of,
};
use super::namespaces::Namespace;
use super::namespaces::devpts::{self, Prepared};
use super::pipe::Bytes;
use super::pty::{self, Made, Pty};
use super::regular::found::DELETED;
use super::{FdKind, NOT_AT_OPEN, Placed, Source};
use crate::error::{Blocker, Context, Error, Result};
use crate::ids::{FileId, Pid};
use crate::nest::space::Spaces;
use crate::nest::{Nest, Options};
use crate::observe::tree::Tree;
use crate::observe::view::{FdView, ProcessView, View, command_of};
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
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

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
    /// The slave side of one whose master was closed, or that was hung up while it stayed open.
    HungUp(HungUp),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outside {
    #[serde(with = "crate::ospath")]
    pub path: PathBuf,
    pub flags: i32,
    /// `struct termios2`, which a program that draws on its terminal relies on.
    pub termios: Option<Bytes>,
    /// The foreground group, where that is in the checkpoint.
    pub foreground: Option<Pid>,
    /// The session it controls, where its leader is in the checkpoint.
    pub session: Option<Pid>,
    /// Major and minor number of a console or serial line, which is opened again unless the user gives another.
    #[serde(default)]
    pub line: Option<(u64, u64)>,
    /// The number of the tree of files it is in.
    #[serde(default)]
    pub tree: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Master {
    #[serde(with = "crate::ospath")]
    pub path: PathBuf,
    pub flags: i32,
    pub pty: Pty,
    /// The number of the tree of files its path is in.
    #[serde(default)]
    pub tree: u32,
    /// Its slave sides that were hung up (vhangup), with their flags.
    #[serde(default)]
    pub hung: Vec<(FileId, i32)>,
    /// Whether its path leads into the devpts itself.
    #[serde(default)]
    pub inside: bool,
    /// Who is in its session, but has given it up (TIOCNOTTY) or was there before it.
    #[serde(default)]
    pub without: Vec<Pid>,
    /// Whether a mount shows its slave side by another name, so that it must be there before the mounts.
    #[serde(default)]
    pub shown: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HungUp {
    /// Where its slave side lay.
    #[serde(with = "crate::ospath")]
    pub node: PathBuf,
    pub index: u32,
    pub flags: i32,
    pub tree: u32,
    /// Where its master is in the checkpoint: that one, and the number under which it knows this side.
    #[serde(default)]
    pub master: Option<(FileId, FileId)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slave {
    pub master: FileId,
    pub index: u32,
    #[serde(with = "crate::ospath")]
    pub path: PathBuf,
    pub flags: i32,
    /// Where the slave sides of its master lie, and in which tree of files.
    #[serde(default = "usual_place", with = "crate::ospath")]
    pub dir: PathBuf,
    #[serde(default)]
    pub tree: u32,
    /// Where it was opened as the controlling terminal of a session, by which one.
    #[serde(default)]
    pub controlling: Option<Controlling>,
    /// Where it was opened by the name under which a mount shows it: the number of the tree of files that is in.
    #[serde(default)]
    pub shown: Option<u32>,
}

/// What was opened as /dev/tty, whichever terminal that is for who opens it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Controlling {
    pub leader: Pid,
    /// The number of the tree of files in which /dev/tty lies.
    pub tree: u32,
}

/// The master of the slave side that `fd` is or, by its path alone (O_PATH), stands for.
pub fn master_behind<'a>(fd: &FdView, view: &'a View) -> Option<&'a FdView> {
    match side(fd) {
        Some(Side::Slave(index)) => master_of(fd, index, view),
        _ => None,
    }
}

fn usual_place() -> PathBuf {
    "/dev/pts".into()
}

impl Master {
    /// Whether it is made before the first process.
    fn comes_first(&self) -> bool {
        self.pty.session.is_some() || self.shown
    }

    /// The number of its tree of files, where its slave side lies there, and its number.
    fn key(&self) -> Key {
        (self.tree, pty::directory(&self.path, self.inside), self.pty.index)
    }
}

/// What tells pseudo terminals of one number apart that belong to different instances of devpts.
type Key = (u32, PathBuf, u32);

/// The kernel's own `O_LARGEFILE`, which open(2) adds and libc shows as 0 on x86-64.
const LARGEFILE: i32 = 0o100000;

impl FdKind for Terminal {
    const TAG: &'static str = "terminal";
    const VERSION: u16 = 1;
    const ABOUT: &'static str = "terminals: one outside the checkpoint is reattached to the restorer's (--tty) with its \
        settings; pseudo terminals inside with number, settings, size, modes, what was typed and written, stopped \
        output, session and foreground group, in whichever devpts; a slave side whose master was closed, or that was hung up (vhangup); consoles and \
        serial lines are opened again; /dev/tty of a pseudo terminal that has lost its session comes back as /dev/pts/N";
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
        if !is_below_its_directory(fd) {
            out.push(
                fd.blocker()
                    .why("its multiplexer is mounted away from its devpts, in which freeze does not find the slave side")
                    .remedy("mount that devpts as pts beside it"),
            );
        }
        for (pid, number) in holders_outside(fd, index, view) {
            out.push(
                fd.blocker()
                    .why(format!("/dev/pts/{index} is also held outside the checkpoint, by pid {pid} ({}) as fd {number}", command_of(pid)))
                    .remedy("checkpoint a common ancestor, or end that process"),
            );
        }
        let Ok(master) = borrow(fd) else { return };
        let slave = slave_of(fd, index, view).and_then(|s| borrow(s).ok());
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
            let slave = slave_of(fd, index, from.view).map(borrow).transpose()?;
            let node = pty::directory_of(&fd.tree.path(&fd.link)).join(index.to_string());
            let hung = hung_of(fd, index, from);
            let slave = slave.as_ref().map(AsFd::as_fd);
            let pty = pty::collect(index, master.as_fd(), slave, !hung.is_empty(), &node)?;
            let tree = fd.tree.number;
            let member = |p: &&ProcessView| pty.session == Some(Pid(p.stat.session)) && !p.stat.is_dead();
            let without = from.view.each().filter(member).filter(|p| p.stat.tty_nr == 0);
            return Ok(Record::Master(Box::new(Master {
                path,
                flags,
                without: without.map(|p| p.pid).collect(),
                shown: is_shown(fd, index, from.view),
                pty,
                tree,
                hung,
                inside: pty::is_inside(&fd.tree.path(&fd.link)),
            })));
        }
        if let Some(Side::Slave(index)) = side(fd)
            && is_hung_up(fd)
        {
            let node = fd.link.strip_suffix(DELETED).unwrap_or(&fd.link);
            let number = |f: &FdView| from.shared.files.get(&(f.pid, f.fd)).copied();
            let master = master_of(fd, index, from.view).and_then(number);
            return Ok(Record::HungUp(HungUp {
                node: OsStr::from_bytes(node).into(),
                index,
                flags,
                tree: fd.tree.number,
                master: master.zip(number(fd)),
            }));
        }
        if let Some(index) = slave_index(fd, from.view)
            && let Some(master) = master_of(fd, index, from.view)
            && let Some(id) = from.shared.files.get(&(master.pid, master.fd))
        {
            let leader = sys::ioctl_int(borrow(master)?.as_fd(), libc::TIOCGSID).unwrap_or(0);
            let is_leader = side(fd) == Some(Side::Controlling) && from.view.get(Pid(leader)).is_some();
            let dir = pty::directory(
                Path::new(OsStr::from_bytes(&master.link)),
                pty::is_inside(&master.tree.path(&master.link)),
            );
            let shown = side(fd) != Some(Side::Controlling)
                && path != dir.join(index.to_string())
                && is_shown(master, index, from.view);
            return Ok(Record::Slave(Slave {
                master: *id,
                index,
                shown: shown.then_some(fd.tree.number),
                path,
                flags,
                dir,
                tree: master.tree.number,
                controlling: is_leader.then_some(Controlling {
                    leader: Pid(leader),
                    tree: fd.tree.number,
                }),
            }));
        }
        let here = from.process.fd(fd.fd)?;
        let inside = |group: i32| {
            from.view
                .each()
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
            line: (side(fd) == Some(Side::Line)).then_some((major(fd.stat.rdev), minor(fd.stat.rdev))),
            tree: fd.tree.number,
        }))
    }

    fn precheck(record: &Record, options: &Options, out: &mut Vec<Blocker>) {
        match record {
            Record::Outside(outside) => {
                let at = || Blocker::at(outside.path.display().to_string(), "a terminal");
                if let (Some(number), false) = (outside.line, options.reattach_terminal) {
                    let Some(here) = options.place(outside.tree, &outside.path) else {
                        return;
                    };
                    if !is_node(&here, number) {
                        out.push(no_line(&outside.path, number));
                    }
                } else if !options.reattach_terminal {
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
                let ptmx = options.place(master.tree, &master.path);
                let node = ptmx.map(|p| pty::directory_of(&p).join(index.to_string()));
                // When the trees of files are looked at, these have been made.
                let is_made = master.comes_first() && !options.trees.is_empty();
                if node.is_some_and(|n| !is_made && pty::is_taken(&n)) {
                    out.push(pty::taken(index));
                }
            }
            Record::HungUp(hung) => {
                let node = options.place(hung.tree, &hung.node);
                if hung.master.is_none() && node.is_some_and(|n| pty::is_taken(&n)) {
                    out.push(pty::taken(hung.index));
                }
            }
            Record::Slave(_) => {}
        }
    }

    fn members(record: &Record) -> Vec<FileId> {
        match record {
            Record::Slave(slave) => vec![slave.master],
            Record::HungUp(hung) => hung.master.iter().map(|(master, _)| *master).collect(),
            _ => Vec::new(),
        }
    }

    fn restore(record: &Record, nest: &mut Nest) -> Result<OwnedFd> {
        match record {
            Record::Outside(outside) if outside.line.is_some() && !nest.options.reattach_terminal => {
                let here = nest.options.reach(outside.tree, &outside.path)?;
                open(&here, outside.flags).on("open", || outside.path.display().to_string())
            }
            Record::Outside(outside) => reattach(outside),
            Record::Master(master) => {
                let ptmx = nest.options.reach(master.tree, &master.path)?;
                let made = nest.state::<Ptys>().get_or_make(master, &ptmx)?;
                made.master.try_clone().on("dup", || "a pty")
            }
            Record::Slave(slave) => {
                let name = || slave.path.display().to_string();
                if let Some(controlling) = &slave.controlling
                    && let Some(tty) = open_as(controlling, slave, nest)?
                {
                    return Ok(tty);
                }
                if let Some(tree) = slave.shown {
                    let here = nest.options.reach(tree, &slave.path)?;
                    // Nothing else may be opened, which could do something then.
                    if pty::is_slave(&here, slave.index) {
                        return open(&here, slave.flags).on("open", name);
                    }
                }
                let master = nest.file(slave.master)?;
                if slave.flags & LARGEFILE == 0 {
                    return pty::peer(master, slave.flags).on("ioctl(TIOCGPTPEER)", name);
                }
                let key = (slave.tree, slave.dir.clone(), slave.index);
                let Some(made) = nest.state::<Ptys>().made.get(&key) else {
                    return Err(Error::kernel("open", name(), Errno::ENXIO));
                };
                open(&made.node, slave.flags).on("open", name)
            }
            Record::HungUp(HungUp {
                master: Some((_, own)),
                node,
                ..
            }) => {
                let name = || node.display().to_string();
                let mut made = nest.state::<Ptys>().made.values();
                match made.find_map(|made| made.hung.get(own)) {
                    Some(tty) => tty.try_clone().on("dup", name),
                    None => Err(Error::kernel("open", name(), Errno::ENXIO)),
                }
            }
            Record::HungUp(hung) => {
                let ptmx = ptmx_beside(&nest.options.reach(hung.tree, &hung.node)?);
                let key = (hung.tree, hung.node.clone(), hung.index);
                let ptys = nest.state::<Ptys>();
                if !ptys.doomed.contains_key(&key) {
                    let master = pty::master_at(hung.index, libc::O_RDWR, &ptmx)?;
                    pty::unlock(master.as_fd()).on("ioctl(TIOCSPTLCK)", || "a pty")?;
                    ptys.doomed.insert(key.clone(), master);
                }
                let node = pty::directory_of(&ptmx).join(hung.index.to_string());
                open(&node, hung.flags).on("open", || hung.node.display().to_string())
            }
        }
    }

    fn finish(record: &Record, placed: Placed, nest: &mut Nest) -> Result<()> {
        match record {
            Record::Outside(outside) => foreground(outside, placed, nest),
            Record::Slave(_) => Ok(()),
            Record::HungUp(_) => {
                // All slave sides are open: with their masters they hang up.
                nest.state::<Ptys>().doomed.clear();
                Ok(())
            }
            Record::Master(master) => {
                let pty = &master.pty;
                let name = || format!("/dev/pts/{}", pty.index);
                let Some(made) = nest.state::<Ptys>().made.remove(&master.key()) else {
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
                if let Some(slave) = &made.slave {
                    for pid in &master.without {
                        let at = nest.hand_over(*pid, &[slave.as_raw_fd()])?[0];
                        nest.process(*pid)?.play(&[
                            (
                                "ioctl(TIOCNOTTY)",
                                libc::SYS_ioctl,
                                [at, libc::TIOCNOTTY, 0, 0, 0, 0],
                            ),
                            ("close", libc::SYS_close, [at, 0, 0, 0, 0, 0]),
                        ])?;
                    }
                }
                pty::settle(pty, &made).on("ioctl", name)
            }
        }
    }
}

/// Pseudo terminals made so far, until all their descriptors are where they belong.
#[derive(Debug, Default)]
pub struct Ptys {
    made: BTreeMap<Key, Made>,
    /// Masters of those that are hung up, by where the slave side lay.
    doomed: BTreeMap<Key, OwnedFd>,
    /// Consoles and lines that control a session, which they would no more if nobody had them open meanwhile.
    lines: Vec<OwnedFd>,
}

impl Ptys {
    fn get_or_make(&mut self, master: &Master, ptmx: &Path) -> Result<&Made> {
        use std::collections::btree_map::Entry;
        match self.made.entry(master.key()) {
            Entry::Occupied(made) => Ok(made.into_mut()),
            Entry::Vacant(free) => Ok(free.insert(pty::make(&master.pty, master.flags, ptmx, &master.hung)?)),
        }
    }
}

/// Makes the controlling terminals of the image's sessions, which are passed on by fork: before the first process. Those
/// that mounts show by another name, too.
///
/// Returns a slave side by session, and the devpts that were made for them.
pub fn controlling(
    image: &Opened,
    options: &Options,
    namespaces: &[Namespace],
    spaces: &Spaces,
) -> Result<(Ptys, BTreeMap<Pid, OwnedFd>, Prepared)> {
    let mut ptys = Ptys::default();
    let mut prepared = Prepared::default();
    let mut sessions = BTreeMap::new();
    for frame in image.records().iter().filter(|f| f.tag == Terminal::TAG) {
        // What cannot be decoded is reported by whoever loads all records.
        let Ok(super::FileFrame { record, .. }) = rmp_serde::from_slice(&frame.payload) else {
            continue;
        };
        match record {
            Record::Master(master) => {
                if !master.comes_first() {
                    continue;
                }
                // A tree of the image is built after the first process.
                let dir = pty::directory(&master.path, master.inside);
                let ptmx = match options.place(master.tree, &master.path) {
                    None => {
                        let found = prepared.multiplexer(
                            namespaces,
                            spaces,
                            Tree::namespace_of(master.tree),
                            &dir,
                        )?;
                        found.map(|inside| pty::beside(&inside).filter(|_| !master.inside).unwrap_or(inside))
                    }
                    found => found,
                };
                let made = ptys.get_or_make(&master, &ptmx.unwrap_or_else(|| "/dev/ptmx".into()))?;
                if let (Some(session), Some(slave)) = (master.pty.session, &made.slave) {
                    sessions.insert(session, slave.try_clone().on("dup", || "a pty")?);
                }
            }
            Record::Outside(outside) => {
                // Whichever node leads to it: the device is one, in every tree of files.
                let here = options
                    .place(outside.tree, &outside.path)
                    .unwrap_or_else(|| outside.path.clone());
                if let (Some(session), Some(number), false) =
                    (outside.session, outside.line, options.reattach_terminal)
                    && !sessions.contains_key(&session)
                {
                    if !is_node(&here, number) {
                        return Err(no_line(&outside.path, number).refuse());
                    }
                    let name = || here.display().to_string();
                    let line = open(&here, libc::O_RDWR | libc::O_NONBLOCK).on("open", name)?;
                    ptys.lines.push(line.try_clone().on("dup", name)?);
                    sessions.insert(session, line);
                }
            }
            Record::Slave(_) | Record::HungUp(_) => {}
        }
    }
    devpts::check_shown(namespaces)?;
    Ok((ptys, sessions, prepared))
}

fn no_line(path: &Path, number: (u64, u64)) -> Blocker {
    Blocker::at(path.display().to_string(), "a terminal")
        .why(format!("there is no device {}:{} any more", number.0, number.1))
        .remedy("create the device node, or give the terminal freeze runs on: freeze restore --tty")
}

/// Whether a character device with this major and minor number lies at `path`.
fn is_node(path: &Path, number: (u64, u64)) -> bool {
    std::fs::metadata(path).is_ok_and(|m| {
        m.mode() & libc::S_IFMT == libc::S_IFCHR && (major(m.rdev()), minor(m.rdev())) == number
    })
}

/// The multiplexer of the devpts in which a slave side lies: its own, or else the one beside it.
fn ptmx_beside(node: &Path) -> PathBuf {
    let own = node.with_file_name("ptmx");
    let usable = own.metadata().is_ok_and(|m| m.mode() & 0o666 != 0);
    match node.parent().and_then(Path::parent) {
        Some(above) if !usable => above.join("ptmx"),
        _ => own,
    }
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

fn open(path: &Path, flags: i32) -> nix::Result<OwnedFd> {
    let flags = flags & !NOT_AT_OPEN | libc::O_CLOEXEC | libc::O_NOCTTY;
    nix::fcntl::open(path, OFlag::from_bits_retain(flags), Mode::empty())
}

/// Has the leader of a session open its terminal as /dev/tty, if that is there; nobody has descriptors of his own yet.
fn open_as(controlling: &Controlling, slave: &Slave, nest: &mut Nest) -> Result<Option<OwnedFd>> {
    let (Some(dir), Some(file)) = (slave.path.parent(), slave.path.file_name()) else {
        return Ok(None);
    };
    let here = nest.options.reach(controlling.tree, dir)?;
    if !is_node(&here.join(file), (5, 0)) {
        return Ok(None);
    }
    let name = || slave.path.display().to_string();
    let dir = open(&here, libc::O_PATH | libc::O_DIRECTORY).on("open", name)?;
    let leader = controlling.leader;
    let at = nest.hand_over(leader, &[dir.as_raw_fd()])?[0];
    let process = nest.process(leader)?;
    let (ran, opened) = process.tape(|t| {
        let file = t.bytes(&[file.as_bytes(), b"\0"].concat());
        let flags = slave.flags & !NOT_AT_OPEN | libc::O_CLOEXEC;
        let opened = t.try_call("openat", libc::SYS_openat, &[at, file, flags as u64, 0]);
        t.call("close", libc::SYS_close, &[at]);
        opened
    })?;
    let number = match ran.result(opened) {
        Ok(number) => number,
        Err(e) => return Err(e).on("open", name),
    };
    let tty = sys::pidfd_open(leader).and_then(|p| sys::pidfd_getfd(p.as_fd(), number as i32));
    process.call("close", libc::SYS_close, &[number as u64])?;
    tty.on("pidfd_getfd", name).map(Some)
}

fn reattach(outside: &Outside) -> Result<OwnedFd> {
    let name = || format!("the terminal for {}", outside.path.display());
    let path = own_terminal().ok_or_else(|| Error::kernel("open", name(), Errno::ENXIO))?;
    let terminal = open(&path, outside.flags).on("open", name)?;
    if outside.path == Path::new("/dev/tty") {
        // By its name again, where that leads to the same one.
        let named = open(&outside.path, outside.flags).ok();
        let same = |tty: &OwnedFd| device_of(tty) == device_of(&terminal);
        return Ok(named.filter(same).unwrap_or(terminal));
    }
    Ok(terminal)
}

/// Gives the restorer's terminal the program's settings, and the program the foreground it had.
fn foreground(outside: &Outside, placed: Placed, nest: &mut Nest) -> Result<()> {
    let name = || format!("the terminal for {}", outside.path.display());
    if outside.line.is_some() && !nest.options.reattach_terminal {
        nest.state::<Ptys>().lines.clear();
        // It is the same device with the same settings; only who is in front has to be said again.
        let controls = outside.session.is_some_and(|s| nest.pids().contains(&s));
        if let (true, Some(group)) = (controls, outside.foreground) {
            let known = nest.known_as(placed.pid, group);
            nest.process(placed.pid)?.tape(|t| {
                let id = t.bytes(&known.to_ne_bytes());
                t.try_call(
                    "ioctl(TIOCSPGRP)",
                    libc::SYS_ioctl,
                    &[placed.fd as u64, libc::TIOCSPGRP, id],
                )
            })?;
        }
        return Ok(());
    }
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
    let Some(tty) = own_terminal().and_then(|p| open(&p, libc::O_RDWR).ok()) else {
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
