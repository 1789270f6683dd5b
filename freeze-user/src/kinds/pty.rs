//! The state of a pseudo terminal: settings, size, modes, and what is under way between its two sides.

mod queues;

pub use self::queues::Input;

use self::queues::{
    FULL, Unwaiting, doubles, drain, put_back, put_input, ready, take_input, type_in, writable,
};
use super::pipe::Bytes;
use crate::error::{Blocker, Context, Error, Result};
use crate::ids::{FileId, Pid};
use crate::sys::{
    self,
    events::{Termios, ioctl_word, lock_termios, locked_termios, set_termios, termios},
};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFlags, PollTimeout};
use nix::sys::stat::{Mode, major, minor};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Everything that both sides of a pseudo terminal have in common.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pty {
    /// The number N of /dev/pts/N.
    pub index: u32,
    /// `struct termios2`.
    pub termios: Bytes,
    /// Rows, columns, and pixels of both.
    pub size: [u16; 4],
    /// Whether /dev/pts/N cannot be opened until unlockpt(3).
    pub locked: bool,
    /// Packet mode of the master (TIOCPKT).
    pub packets: bool,
    /// Exclusive mode of the master and of the slave side (TIOCEXCL).
    pub exclusive: [bool; 2],
    /// Whether output is stopped.
    pub stopped: bool,
    /// Whether the slave side was closed by its last holder.
    pub hung_up: bool,
    pub input: Input,
    /// Written by the slave side, not read by the master yet.
    pub output: Bytes,
    /// The session whose controlling terminal it is, and its foreground group.
    pub session: Option<Pid>,
    pub foreground: Option<Pid>,
    /// Of the node /dev/pts/N.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Whether nobody has opened the slave side yet.
    #[serde(default)]
    pub unopened: bool,
    /// Whether output is stopped by tcflow(3), which alone starts it again, and not by its character (^S).
    #[serde(default)]
    pub stopped_by_call: bool,
    /// Whether what the master writes is stopped; it has no characters for that.
    #[serde(default)]
    pub master_stopped: bool,
    /// Where some settings are kept from being changed (TIOCSLCKTRMIOS): which, as a `struct termios`.
    #[serde(default)]
    pub fixed: Option<Bytes>,
}

const TIOCGPKT: u64 = 0x8004_5438;
const TIOCGPTLCK: u64 = 0x8004_5439;
const TIOCGEXCL: u64 = 0x8004_5440;
const TIOCGPTPEER: u64 = 0x5441;
const TIOCGPTN: u64 = 0x8004_5430;
const TIOCSPTLCK: u64 = 0x4004_5431;

/// The type of a devpts, as statfs(2) tells it.
pub const DEVPTS: i64 = 0x1cd1;

/// The ordinary line discipline.
const N_TTY: i32 = 0;

// Places in struct termios2: four words of flags, one byte of line discipline, then the control characters.
const IFLAG: usize = 0;
const OFLAG: usize = 4;
const LFLAG: usize = 12;
const CC: usize = 17;
const CONTROLS: usize = 19;

fn flag(t: &Termios, at: usize) -> u32 {
    u32::from_ne_bytes([t[at], t[at + 1], t[at + 2], t[at + 3]])
}

fn set_flag(t: &mut Termios, at: usize, value: u32) {
    t[at..at + 4].copy_from_slice(&value.to_ne_bytes());
}

fn canonical(t: &Termios) -> bool {
    flag(t, LFLAG) & libc::ICANON != 0
}

/// The same settings with nothing that reacts to a character: what is read or typed is taken as it is.
fn literal(t: &Termios, canonical: bool) -> Termios {
    let mut out = *t;
    // Taking IXON away would start output that ^S has stopped; without its characters it does nothing.
    set_flag(&mut out, IFLAG, flag(t, IFLAG) & (libc::IXON | libc::IUTF8));
    set_flag(&mut out, OFLAG, 0);
    let mode = if canonical { libc::ICANON | libc::IEXTEN } else { 0 };
    set_flag(&mut out, LFLAG, flag(t, LFLAG) & libc::EXTPROC | mode);
    out[CC..CC + CONTROLS].fill(0);
    out[CC + libc::VMIN] = u8::from(!canonical);
    out
}

/// What speaks against taking a pty, as its master shows it.
pub fn obstacle(
    master: BorrowedFd<'_>,
    slave: Option<BorrowedFd<'_>>,
) -> Result<Option<(&'static str, &'static str)>> {
    let name = || "a pty";
    if ready(master, PollFlags::POLLPRI, PollTimeout::ZERO).on("poll", name)? {
        return Ok(Some((
            "a control message of its packet mode is waiting to be read",
            "try again in a moment",
        )));
    }
    if sys::ioctl_int(slave.unwrap_or(master), libc::TIOCGETD).on("ioctl(TIOCGETD)", name)? != N_TTY {
        return Ok(Some((
            "it has a line discipline of its own",
            "let the program set the ordinary one (N_TTY)",
        )));
    }
    let Some(slave) = slave else { return Ok(None) };
    // Of three places it keeps the last for one that takes them all.
    let full = sys::ioctl_int(slave, libc::FIONREAD).on("ioctl(FIONREAD)", name)? as usize >= FULL - 2;
    Ok(
        (full && doubles(&termios(slave).on("ioctl(TCGETS2)", name)?)).then_some((
            "more is typed ahead than its line discipline holds",
            "let the program read its input",
        )),
    )
}

/// Keeps a pty's settings while what it holds is taken out and put back; puts them back when dropped.
struct Opened<'a> {
    master: BorrowedFd<'a>,
    slave: BorrowedFd<'a>,
    found: Termios,
    /// What of them cannot be changed.
    fixed: Option<[u8; 36]>,
    packets: bool,
    _unwaiting: Unwaiting<'a>,
}

impl Drop for Opened<'_> {
    fn drop(&mut self) {
        let _ = set_termios(self.slave, &self.found);
        if let Some(fixed) = &self.fixed {
            let _ = lock_termios(self.slave, fixed);
        }
        if self.packets {
            let _ = ioctl_word(self.master, libc::TIOCPKT, 1);
        }
    }
}

impl Opened<'_> {
    /// The settings found, except that no character stops output; once they are set, none has.
    fn started(&self) -> Termios {
        let mut out = self.found;
        set_flag(&mut out, IFLAG, flag(&self.found, IFLAG) & !libc::IXON);
        out
    }

    /// Takes out all that lies between the two sides, and lets what was stopped go on meanwhile.
    fn take(&self, out: &mut Pty) -> nix::Result<()> {
        drain(self.master, &mut out.output.0)?;
        // Nothing is in the way of its output now, so what keeps it from writing is that it is stopped.
        out.stopped = !writable(self.slave)?;
        if out.stopped {
            // This starts what tcflow(3) has stopped, and nothing else.
            flow(self.slave, libc::TCOON)?;
            out.stopped_by_call = writable(self.slave)?;
        }
        // An echo that was stopped or had no room comes out before anything else that is written, even nothing.
        set_termios(self.slave, &self.started())?;
        nix::unistd::write(self.slave, &[])?;
        drain(self.master, &mut out.output.0)?;
        take_input(self.slave, &self.started(), &mut out.input)?;
        out.master_stopped = !writable(self.master)?;
        if out.master_stopped {
            flow(self.master, libc::TCOON)?;
        }
        Ok(())
    }

    /// Puts it back, and stops again what was stopped: as much as can be, whatever becomes of the rest.
    fn put(&self, pty: &Pty) -> Result<()> {
        let name = || format!("pty {}", pty.index);
        let plain = set_termios(self.slave, &literal(&self.started(), false));
        let output = put_back(self.slave, self.master, &pty.output.0);
        let stopped = if pty.stopped { self.stop(pty) } else { Ok(()) };
        let input = put_input(self.slave, self.master, &self.found, &pty.input);
        if pty.master_stopped {
            flow(self.master, libc::TCOOFF).on("ioctl(TCXONC)", name)?;
        }
        plain.on("ioctl(TCSETS2)", name)?;
        output.on("write", name)?;
        stopped.on("ioctl(TCXONC)", name)?;
        input.on("ioctl(TIOCSTI)", name)
    }

    /// Stops output the way it was stopped; nothing has been typed yet.
    fn stop(&self, pty: &Pty) -> nix::Result<()> {
        const STOP: u8 = 19;
        if pty.stopped_by_call || flag(&self.found, IFLAG) & libc::IXON == 0 {
            return flow(self.slave, libc::TCOOFF);
        }
        let mut reacting = literal(&self.found, false);
        set_flag(&mut reacting, LFLAG, 0);
        reacting[CC + libc::VSTOP] = STOP;
        set_termios(self.slave, &reacting)?;
        type_in(self.slave, STOP)
    }
}

/// tcflow(3).
fn flow(side: BorrowedFd<'_>, action: i32) -> nix::Result<()> {
    const TCXONC: u64 = 0x540a;
    sys::ioctl_number(side, TCXONC, action as u64).map(drop)
}

/// Records a pty; both sides stand still, and hold afterwards what they held before.
///
/// `slave` is one descriptor of the slave side, if anybody has one, and `node` where that side lies; `hung` says
/// whether somebody has one that was hung up.
pub fn collect(
    index: u32,
    master: BorrowedFd<'_>,
    slave: Option<BorrowedFd<'_>>,
    hung: bool,
    node: &Path,
) -> Result<Pty> {
    let name = || format!("pty {index}");
    let int = |request| sys::ioctl_int(master, request).on("ioctl", name);
    let found = termios(master).on("ioctl(TCGETS2)", name)?;
    let hung_up = slave.is_none() && ready(master, PollFlags::POLLHUP, PollTimeout::ZERO).on("poll", name)?;
    let optional = |request| match sys::ioctl_int(master, request) {
        Ok(id) if id > 0 => Ok(Some(Pid(id))),
        Ok(_) | Err(Errno::ENOTTY) => Ok(None),
        Err(e) => Err(e).on("ioctl", name),
    };
    let fixed = locked_termios(master).on("ioctl(TIOCGLCKTRMIOS)", name)?;
    let fixed = Some(fixed).filter(|f| *f != [0; 36]);
    let mut size = [0; 8];
    // The request carries no size of its own, so it is asked through the terminal's structure.
    window(master, &mut size).on("ioctl(TIOCGWINSZ)", name)?;
    let mut out = Pty {
        index,
        termios: Bytes(found.to_vec()),
        size: [0, 2, 4, 6].map(|i| u16::from_ne_bytes([size[i], size[i + 1]])),
        locked: int(TIOCGPTLCK)? != 0,
        packets: int(TIOCGPKT)? != 0,
        exclusive: [int(TIOCGEXCL)? != 0, false],
        stopped: false,
        hung_up,
        input: Input::default(),
        output: Bytes::default(),
        session: optional(libc::TIOCGSID)?,
        foreground: None,
        mode: 0,
        uid: 0,
        gid: 0,
        unopened: slave.is_none() && !hung_up && !hung,
        stopped_by_call: false,
        master_stopped: false,
        fixed: fixed.map(|f| Bytes(f.to_vec())),
    };
    if out.unopened {
        // Whatever was typed was echoed too: without an echo, and with no reader, nothing waits.
        let echo = flag(&found, LFLAG) & libc::ECHO != 0;
        if !echo || int(libc::FIONREAD)? != 0 {
            return Err(typed_unopened(index).refuse());
        }
        let node = std::fs::metadata(node).on("stat", name)?;
        (out.mode, out.uid, out.gid) = (node.mode() & 0o7777, node.uid(), node.gid());
        out.exclusive[1] = false;
        return Ok(out);
    }
    if out.session.is_some() {
        out.foreground = optional(libc::TIOCGPGRP)?;
    }
    // One of freeze's own, which can read and write and does not wait. Where all are closed it was opened and closed
    // before, so once more changes nothing.
    let _unlocked = Unlocked::new(master, out.locked).on("ioctl(TIOCSPTLCK)", name)?;
    let held = peer(master, libc::O_RDWR | libc::O_NONBLOCK).on("ioctl(TIOCGPTPEER)", name)?;
    let slave = held.as_fd();
    let node = nix::sys::stat::fstat(slave).on("fstat", name)?;
    (out.mode, out.uid, out.gid) = (node.st_mode & 0o7777, node.st_uid, node.st_gid);
    out.exclusive[1] = sys::ioctl_int(slave, TIOCGEXCL).on("ioctl(TIOCGEXCL)", name)? != 0;
    let opened = Opened {
        master,
        slave,
        found,
        fixed,
        packets: out.packets,
        _unwaiting: Unwaiting::new(master).on("fcntl(F_SETFL)", name)?,
    };
    if fixed.is_some() {
        lock_termios(slave, &[0; 36]).on("ioctl(TIOCSLCKTRMIOS)", name)?;
    }
    if opened.packets {
        ioctl_word(master, libc::TIOCPKT, 0).on("ioctl(TIOCPKT)", name)?;
    }
    let taken = opened.take(&mut out);
    let back = opened.put(&out);
    drop(opened);
    taken.on("look at", name)?;
    back?;
    Ok(out)
}

/// The refusal of a pty whose slave side nobody has opened yet, and into which something was typed.
fn typed_unopened(index: u32) -> Blocker {
    Blocker::at(format!("/dev/pts/{index}"), "a pseudo terminal")
        .why("something may have been typed, nobody has opened its slave side yet, and to look at it would change that")
        .remedy("try again once the program uses it")
}

fn window(fd: BorrowedFd<'_>, into: &mut [u8; 8]) -> nix::Result<()> {
    // TIOCGWINSZ writes four 16-bit words; it predates requests that carry their size.
    sys::events::ioctl_eight(fd, libc::TIOCGWINSZ, into)
}

/// A new description of the slave side.
pub fn peer(master: BorrowedFd<'_>, flags: i32) -> nix::Result<OwnedFd> {
    let flags = flags & (libc::O_ACCMODE | libc::O_NONBLOCK) | libc::O_NOCTTY | libc::O_CLOEXEC;
    sys::events::ioctl_fd(master, TIOCGPTPEER, flags as u64)
}

/// A pty that is unlocked for a moment.
struct Unlocked<'a>(BorrowedFd<'a>, bool);

impl<'a> Unlocked<'a> {
    fn new(master: BorrowedFd<'a>, locked: bool) -> nix::Result<Unlocked<'a>> {
        if locked {
            ioctl_word(master, TIOCSPTLCK, 0)?;
        }
        Ok(Unlocked(master, locked))
    }
}

impl Drop for Unlocked<'_> {
    fn drop(&mut self) {
        if self.1 {
            let _ = ioctl_word(self.0, TIOCSPTLCK, 1);
        }
    }
}

/// A pty that has been made again: its master, and a descriptor of its slave side kept while others are opened.
#[derive(Debug)]
pub struct Made {
    pub master: OwnedFd,
    /// None where nobody had opened it.
    pub slave: Option<OwnedFd>,
    /// Where its slave side lies.
    pub node: PathBuf,
    /// Descriptors of its slave side that have been hung up.
    pub hung: BTreeMap<FileId, OwnedFd>,
}

/// The directory of slave sides that belongs to a multiplexer, as the kernel finds it; `ptmx` is a path that leads there.
pub fn directory_of(ptmx: &Path) -> PathBuf {
    directory(ptmx, is_inside(ptmx))
}

/// The same of any path, where it is known whether the multiplexer lies beside the slave sides.
pub fn directory(ptmx: &Path, inside: bool) -> PathBuf {
    let parent = ptmx.parent().unwrap_or(Path::new("/"));
    match parent.file_name() {
        Some(name) if inside || name == "pts" => parent.to_owned(),
        _ => parent.join("pts"),
    }
}

/// Whether a multiplexer lies in a devpts itself, which may be mounted under any name.
pub fn is_inside(ptmx: &Path) -> bool {
    let parent = ptmx.parent().unwrap_or(Path::new("/"));
    nix::sys::statfs::statfs(parent).is_ok_and(|s| s.filesystem_type().0 == DEVPTS)
}

/// The multiplexer beside a devpts, where there is one that leads to it, for one that lies in it: which of them was opened
/// shows.
pub fn beside(inside: &Path) -> Option<PathBuf> {
    let dir = inside.parent().filter(|d| d.ends_with("pts"))?;
    let node = dir.with_file_name("ptmx");
    node.exists().then_some(node)
}

/// A new master with the number asked for, by way of `ptmx`.
pub fn master_at(index: u32, flags: i32, ptmx: &Path) -> Result<OwnedFd> {
    let name = || ptmx.display().to_string();
    let _turn = turn(&directory_of(ptmx));
    let mut lower: Vec<OwnedFd> = Vec::new();
    // Numbers are given out from the lowest: those below are kept taken until ours comes up.
    loop {
        let flags = flags & (libc::O_ACCMODE | libc::O_NONBLOCK) | libc::O_NOCTTY | libc::O_CLOEXEC;
        let fd = nix::fcntl::open(ptmx, OFlag::from_bits_retain(flags), Mode::empty()).on("open", name)?;
        let got = sys::ioctl_int(fd.as_fd(), TIOCGPTN).on("ioctl(TIOCGPTN)", name)? as u32;
        match got.cmp(&index) {
            std::cmp::Ordering::Equal => return Ok(fd),
            std::cmp::Ordering::Less => lower.push(fd),
            std::cmp::Ordering::Greater => return Err(taken(index).refuse()),
        }
    }
}

/// Lets the slave side be opened.
pub fn unlock(master: BorrowedFd<'_>) -> nix::Result<()> {
    ioctl_word(master, TIOCSPTLCK, 0)
}

/// Makes a pty with its recorded number, settings and contents; it has no lock, no packet mode and no session yet.
///
/// `hung` are slave sides that were hung up, with their flags.
pub fn make(pty: &Pty, flags: i32, ptmx: &Path, hung: &[(FileId, i32)]) -> Result<Made> {
    let name = || format!("/dev/pts/{}", pty.index);
    let node = directory_of(ptmx).join(pty.index.to_string());
    let master = master_at(pty.index, flags, ptmx)?;
    let found: Termios = <[u8; 44]>::try_from(&pty.termios.0[..])
        .map_err(|_| Error::kernel("ioctl(TCSETS2)", name(), Errno::EINVAL))?;
    let size = pty
        .size
        .iter()
        .rev()
        .fold(0u64, |all, n| all << 16 | u64::from(*n));
    ioctl_word(master.as_fd(), libc::TIOCSWINSZ, size).on("ioctl(TIOCSWINSZ)", name)?;
    if pty.unopened {
        // A master's settings are those of its other side.
        set_termios(master.as_fd(), &found).on("ioctl(TCSETS2)", name)?;
        std::os::unix::fs::chown(&node, Some(pty.uid), Some(pty.gid)).on("chown", name)?;
        std::fs::set_permissions(&node, std::fs::Permissions::from_mode(pty.mode)).on("chmod", name)?;
        return Ok(Made {
            master,
            slave: None,
            node,
            hung: BTreeMap::new(),
        });
    }
    unlock(master.as_fd()).on("ioctl(TIOCSPTLCK)", name)?;
    let hung = hang_up(&node, hung).on("ioctl(TIOCVHANGUP)", name)?;
    let slave = peer(master.as_fd(), libc::O_RDWR | libc::O_NONBLOCK).on("ioctl(TIOCGPTPEER)", name)?;
    Opened {
        master: master.as_fd(),
        slave: slave.as_fd(),
        found,
        fixed: None,
        packets: false,
        _unwaiting: Unwaiting::new(master.as_fd()).on("fcntl(F_SETFL)", name)?,
    }
    .put(pty)?;
    nix::unistd::fchown(slave.as_fd(), Some(pty.uid.into()), Some(pty.gid.into())).on("fchown", name)?;
    nix::sys::stat::fchmod(slave.as_fd(), Mode::from_bits_truncate(pty.mode)).on("fchmod", name)?;
    Ok(Made {
        master,
        slave: Some(slave),
        node,
        hung,
    })
}

/// Opens the slave side for each of `hung` and hangs all up, which also would what is opened before and is not meant.
fn hang_up(node: &Path, hung: &[(FileId, i32)]) -> nix::Result<BTreeMap<FileId, OwnedFd>> {
    const TIOCVHANGUP: u64 = 0x5437;
    let open = |flags: i32| {
        let flags = flags & (libc::O_ACCMODE | libc::O_NONBLOCK) | libc::O_NOCTTY | libc::O_CLOEXEC;
        nix::fcntl::open(node, OFlag::from_bits_retain(flags), Mode::empty())
    };
    let opened = hung.iter().map(|(id, flags)| Ok((*id, open(*flags)?)));
    let opened: BTreeMap<FileId, OwnedFd> = opened.collect::<nix::Result<_>>()?;
    if let Some(any) = opened.values().next() {
        sys::ioctl_number(any.as_fd(), TIOCVHANGUP, 0)?;
    }
    Ok(opened)
}

/// Does what must wait until both sides have been opened by everybody.
pub fn settle(pty: &Pty, made: &Made) -> nix::Result<()> {
    let sides = [
        (Some(&made.master), pty.exclusive[0]),
        (made.slave.as_ref(), pty.exclusive[1]),
    ];
    for (fd, exclusive) in sides {
        if let (Some(fd), true) = (fd, exclusive) {
            sys::ioctl_number(fd.as_fd(), libc::TIOCEXCL, 0)?;
        }
    }
    if let Some(fixed) = &pty.fixed {
        let fixed = <[u8; 36]>::try_from(&fixed.0[..]).map_err(|_| Errno::EINVAL)?;
        lock_termios(made.master.as_fd(), &fixed)?;
    }
    if pty.packets {
        ioctl_word(made.master.as_fd(), libc::TIOCPKT, 1)?;
    }
    if pty.locked != (sys::ioctl_int(made.master.as_fd(), TIOCGPTLCK)? != 0) {
        ioctl_word(made.master.as_fd(), TIOCSPTLCK, u64::from(pty.locked))?;
    }
    Ok(())
}

/// Whether the slave side with this number lies at `path`, by whichever name.
pub fn is_slave(path: &Path, index: u32) -> bool {
    let device = std::fs::symlink_metadata(path).map(|m| m.rdev());
    let devpts = nix::sys::statfs::statfs(path).is_ok_and(|s| s.filesystem_type().0 == DEVPTS);
    devpts && device.is_ok_and(|d| major(d) == 136 && minor(d) == u64::from(index))
}

/// Whether somebody has this slave side; not who only looks for another number for himself.
pub fn is_taken(node: &Path) -> bool {
    let _turn = node.parent().map(turn);
    node.exists()
}

/// Keeps other restores from taking numbers for the moment in which they look for theirs.
fn turn(directory: &Path) -> Option<std::fs::File> {
    let directory = std::fs::File::open(directory).ok()?;
    sys::flock(directory.as_fd(), libc::LOCK_EX).ok()?;
    Some(directory)
}

/// The refusal of a pty whose number somebody else has.
pub fn taken(index: u32) -> Blocker {
    Blocker::at(format!("/dev/pts/{index}"), "a pseudo terminal")
        .why("its number is taken by another terminal")
        .remedy("close that one, or restore in a mount namespace with a devpts of its own (mount -t devpts -o newinstance)")
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr};

    fn cycle(prepare: impl Fn(BorrowedFd<'_>, BorrowedFd<'_>)) -> (Pty, Pty, Made) {
        let pair = nix::pty::openpty(None, None).unwrap();
        let (master, slave) = (pair.master, pair.slave);
        prepare(master.as_fd(), slave.as_fd());
        let index = sys::ioctl_int(master.as_fd(), TIOCGPTN).unwrap() as u32;
        let node = Path::new("/dev/pts").join(index.to_string());
        let first = collect(index, master.as_fd(), Some(slave.as_fd()), false, &node).unwrap();
        let second = collect(index, master.as_fd(), Some(slave.as_fd()), false, &node).unwrap();
        assert_eq!(first, second, "what was looked at has changed");
        drop((master, slave));
        let made = make(&first, libc::O_RDWR, Path::new("/dev/ptmx"), &[]).unwrap();
        settle(&first, &made).unwrap();
        assert_eq!(made.node, node);
        let slave = made.slave.as_ref().map(AsFd::as_fd);
        let again = collect(index, made.master.as_fd(), slave, false, &node).unwrap();
        (first, again, made)
    }

    fn write(fd: BorrowedFd<'_>, text: &[u8]) {
        assert_eq!(nix::unistd::write(fd, text), Ok(text.len()));
        // Reading what is there makes the kernel pass on what is under way.
        let _ = ready(fd, PollFlags::POLLIN, PollTimeout::from(20u8));
    }

    /// In one test, since each wants the lowest free numbers.
    #[test]
    fn ptys_are_made_again_as_they_were() {
        let (old, new, made) = cycle(|master, slave| {
            write(master, b"one\ntwo\x04\x04half");
            write(slave, b"out\n");
            ioctl_word(master, libc::TIOCPKT, 1).unwrap();
            ioctl_word(master, libc::TIOCSWINSZ, 80 << 16 | 25).unwrap();
        });
        let lines: Vec<&[u8]> = old.input.lines.iter().map(|l| &l.0[..]).collect();
        assert_eq!(lines, [&b"one\n"[..], b"two", b""]);
        assert_eq!(
            (&old.input.rest.0[..], old.size, old.packets),
            (&b"half"[..], [25, 80, 0, 0], true)
        );
        assert!(
            old.output.0.ends_with(b"out\r\n") && old.output.0.starts_with(b"one\r\ntwo"),
            "{:?}",
            old.output
        );
        assert_eq!(old, new);
        write(made.master.as_fd(), b"\x7f\x7flo\n");
        let mut buf = [0; 100];
        for expected in [&b"one\n"[..], b"two", b"", b"halo\n"] {
            let n = nix::unistd::read(made.slave.as_ref().unwrap(), &mut buf).unwrap();
            assert_eq!(&buf[..n], expected);
        }
        drop(made);
        let (old, new, _made) = cycle(|master, slave| {
            let mut raw = tcgetattr(slave).unwrap();
            raw.local_flags -= LocalFlags::ICANON | LocalFlags::ECHO;
            tcsetattr(slave, SetArg::TCSANOW, &raw).unwrap();
            write(master, b"all\x00of it\x13");
            write(master, b"");
        });
        assert_eq!((&old.input.rest.0[..], old.stopped), (&b"all\x00of it"[..], true));
        assert_eq!(old, new);
        let (old, new, _made) = cycle(|master, slave| {
            let big = vec![b'x'; 9000];
            write(slave, &big);
            let _ = ready(master, PollFlags::POLLIN, PollTimeout::ZERO);
        });
        assert_eq!(old.output.0.len(), 9000);
        assert_eq!(old, new);
        let (old, new, _made) = cycle(|_, slave| {
            flow(slave, libc::TCOOFF).unwrap();
        });
        assert!(old.stopped && old.stopped_by_call);
        assert_eq!(old, new);
    }
}
