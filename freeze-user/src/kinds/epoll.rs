//! epoll(7): which files are watched, under which numbers, for what.

use super::{FdKind, Placed, Source};
use crate::error::{Blocker, Context, Result};
use crate::ids::{FileId, Pid};
use crate::nest::{Nest, Options};
use crate::observe::view::{FdView, View, read_fd};
use crate::sys::{
    self,
    events::{Watch, epoll_watch, epoll_watches},
};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

#[derive(Debug)]
pub struct Epoll;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub members: Vec<Member>,
    /// Busy polling (EPIOCSPARAMS): microseconds, budget, whether preferred; `None` for the kernel's default.
    pub busy_poll: Option<(u32, u16, u8)>,
}

/// A watched file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    pub file: FileId,
    /// The number it was added by, which may be another file's or nobody's by now.
    pub fd: RawFd,
    pub events: u32,
    pub data: u64,
}

/// A line `tfd:` of fdinfo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    fd: RawFd,
    events: u32,
    data: u64,
    ino: u64,
    /// How many lines with the same number precede it.
    nth: u32,
}

impl FdKind for Epoll {
    const TAG: &'static str = "epoll";
    const VERSION: u16 = 1;
    const ABOUT: &'static str = "epoll: watched files by file and number, also closed or duplicated since, events, data, \
        edge-triggered, exclusive, one-shot armed or spent, nested instances, busy polling; a file that is ready is \
        reported once more to an edge-triggered watch";
    type Record = Record;

    fn claims(fd: &FdView) -> bool {
        fd.anon_inode() == Some("eventpoll")
    }

    fn verdict(fd: &FdView, view: &View, out: &mut Vec<Blocker>) {
        let mut lost = unfound(fd, view);
        // While it runs, the program may add and remove files between our reading and comparing.
        for _ in 0..3 {
            if lost.is_empty() {
                return;
            }
            let Ok(now) = read_fd(fd.pid, fd.fd) else { return };
            lost = unfound(&now, view);
        }
        out.extend(lost);
    }

    fn collect(fd: &FdView, from: &mut Source<'_>) -> Result<Record> {
        let mut members = Vec::new();
        for entry in entries(fd).ok_or_else(|| unreadable(fd).refuse())? {
            let found = find(fd, &entry, from.view).and_then(|at| from.shared.files.get(&at).copied());
            let file = found.ok_or_else(|| closed(fd, &entry).refuse())?;
            members.push(Member {
                file,
                fd: entry.fd,
                events: entry.events,
                data: entry.data,
            });
        }
        members.sort_by_key(|m| (m.fd, m.file));
        let busy_poll =
            busy_poll(from.process.fd(fd.fd)?.as_fd()).on("ioctl(EPIOCGPARAMS)", || fd.label())?;
        Ok(Record { members, busy_poll })
    }

    fn precheck(_: &Record, _: &Options, _: &mut Vec<Blocker>) {}

    fn members(record: &Record) -> Vec<FileId> {
        record.members.iter().map(|m| m.file).collect()
    }

    fn restore(record: &Record, _: &mut Nest) -> Result<OwnedFd> {
        let fd = sys::epoll_create().on("epoll_create1", || "an epoll instance")?;
        if let Some((usecs, budget, prefer)) = record.busy_poll {
            let mut params = [0; 8];
            params[..4].copy_from_slice(&usecs.to_ne_bytes());
            params[4..6].copy_from_slice(&budget.to_ne_bytes());
            params[6] = prefer;
            sys::ioctl_bytes(fd.as_fd(), EPIOCSPARAMS, &mut params)
                .on("ioctl(EPIOCSPARAMS)", || "an epoll instance")?;
        }
        Ok(fd)
    }

    fn finish(record: &Record, placed: Placed, nest: &mut Nest) -> Result<()> {
        let name = || format!("fd {} of {}: epoll", placed.fd, placed.pid);
        let mut watches = Vec::with_capacity(record.members.len());
        let (mut own, mut deaf) = (Vec::new(), Vec::new());
        for m in &record.members {
            let file = nest.file(m.file)?;
            if is_signalfd(file) {
                match asker(m, placed, nest) {
                    Some(by) => {
                        own.push((m, by));
                        continue;
                    }
                    None => deaf.push(format!(
                        "{}: signals to come will not wake it: no process has both it and what it watches as fd {}",
                        name(),
                        m.fd
                    )),
                }
            }
            let mut watch = Watch {
                file,
                number: m.fd,
                events: m.events,
                data: m.data,
                nudge: None,
            };
            if watch.is_spent() {
                watch.nudge = writer(file);
            }
            watches.push(watch);
        }
        let stuck = match watches.is_empty() {
            true => Vec::new(),
            false => epoll_watch(nest.file(placed.id)?, &watches).on("epoll_ctl", name)?,
        };
        nest.warnings.extend(deaf);
        for (member, by) in own {
            watch_signals(member, by, nest)?;
        }
        if !stuck.is_empty() {
            let numbers = stuck.iter().map(|n| n.to_string()).collect::<Vec<_>>().join(", ");
            nest.warnings.push(format!(
                "{}: the spent one-shot watch of {numbers} will report errors and hang-up",
                name()
            ));
        }
        Ok(())
    }
}

/// Who is to have a signalfd watched: the process that does so is the one whose signals wake the instance.
#[derive(Clone, Copy, Debug)]
struct Asker {
    pid: Pid,
    epoll: RawFd,
    signalfd: RawFd,
}

/// The first process that has both, if possible the signalfd at the number it is watched by.
fn asker(member: &Member, placed: Placed, nest: &Nest) -> Option<Asker> {
    let instance = nest.holders(placed.id).iter().filter(|h| h.1 != member.fd);
    let all = instance.flat_map(|&(pid, epoll)| {
        let same = move |h: &&(Pid, RawFd)| h.0 == pid;
        let made = move |&(pid, signalfd): &(Pid, RawFd)| Asker { pid, epoll, signalfd };
        nest.holders(member.file).iter().filter(same).map(made)
    });
    let all: Vec<_> = all.collect();
    let straight = all.iter().find(|a| a.signalfd == member.fd);
    straight.or_else(|| all.first()).copied()
}

/// Has a process add a signalfd to its instance; one that has fired and was not armed again comes to report errors, which a
/// signalfd never has.
fn watch_signals(member: &Member, by: Asker, nest: &mut Nest) -> Result<()> {
    let event = [&member.events.to_ne_bytes()[..], &member.data.to_ne_bytes()].concat();
    let number = member.fd as u64;
    let process = nest.process(by.pid)?;
    let aside = match by.signalfd == member.fd {
        true => None,
        // Whatever has that number now is put out of the way for as long as it takes.
        false => {
            let call = [number, libc::F_DUPFD_CLOEXEC as u64, number + 1];
            let (ran, [kept, flags]) = process.tape(|tape| {
                [
                    tape.try_call("fcntl(F_DUPFD_CLOEXEC)", libc::SYS_fcntl, &call),
                    tape.try_call("fcntl(F_GETFD)", libc::SYS_fcntl, &[number, libc::F_GETFD as u64]),
                ]
            })?;
            let kept = match ran.result(kept) {
                Ok(fd) => Some(fd as u64),
                // It is free.
                Err(Errno::EBADF) => None,
                Err(e) => {
                    return Err(e).on("fcntl(F_DUPFD_CLOEXEC)", || format!("fd {number} of {}", by.pid));
                }
            };
            let to = [by.signalfd as u64, number, libc::O_CLOEXEC as u64];
            process.call("dup3", libc::SYS_dup3, &to)?;
            let cloexec = if ran.value(flags) > 0 { libc::O_CLOEXEC } else { 0 };
            Some(kept.map(|fd| (fd, cloexec as u64)))
        }
    };
    process.tape(|tape| {
        let event = tape.bytes(&event);
        let args = [by.epoll as u64, libc::EPOLL_CTL_ADD as u64, number, event];
        tape.call("epoll_ctl", libc::SYS_epoll_ctl, &args);
        match aside {
            None => {}
            Some(Some((kept, cloexec))) => {
                tape.call("dup3", libc::SYS_dup3, &[kept, number, cloexec]);
                tape.call("close", libc::SYS_close, &[kept]);
            }
            Some(None) => {
                tape.call("close", libc::SYS_close, &[number]);
            }
        }
    })?;
    Ok(())
}

fn is_signalfd(file: BorrowedFd<'_>) -> bool {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()));
    link.is_ok_and(|l| l.as_os_str() == "anon_inode:[signalfd]")
}

const EPIOCSPARAMS: u64 = 0x4008_8a01;
const EPIOCGPARAMS: u64 = 0x8008_8a02;

fn busy_poll(fd: BorrowedFd<'_>) -> nix::Result<Option<(u32, u16, u8)>> {
    let mut params = [0; 8];
    match sys::ioctl_bytes(fd, EPIOCGPARAMS, &mut params) {
        // Before Linux 6.9 there was nothing to set; without the network's busy polling there is nothing either.
        Err(Errno::ENOTTY | Errno::EINVAL | Errno::EOPNOTSUPP) => Ok(None),
        Err(e) => Err(e),
        Ok(_) if params == [0; 8] => Ok(None),
        Ok(_) => {
            let [a, b, c, d, e, f, prefer, _] = params;
            Ok(Some((
                u32::from_ne_bytes([a, b, c, d]),
                u16::from_ne_bytes([e, f]),
                prefer,
            )))
        }
    }
}

/// A writer to the pipe behind `file`, if that is an empty pipe's reading end.
fn writer(file: BorrowedFd<'_>) -> Option<OwnedFd> {
    let stat = nix::sys::stat::fstat(file).ok()?;
    let inside = sys::ioctl_int(file, libc::FIONREAD).ok()?;
    if stat.st_mode & libc::S_IFMT != libc::S_IFIFO || inside != 0 {
        return None;
    }
    let flags = sys::fcntl(file, libc::F_GETFL, 0).ok()? as i32;
    if flags & libc::O_ACCMODE == libc::O_WRONLY {
        return None;
    }
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    nix::fcntl::open(
        path.as_str(),
        OFlag::O_WRONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
    .ok()
}

/// The entries of an instance, or `None` if fdinfo has another form than expected.
fn entries(fd: &FdView) -> Option<Vec<Entry>> {
    let mut seen: HashMap<RawFd, u32> = HashMap::new();
    let mut out = Vec::new();
    for line in fd.info.all("tfd") {
        let mut entry = entry(line)?;
        let count = seen.entry(entry.fd).or_default();
        entry.nth = *count;
        *count += 1;
        out.push(entry);
    }
    Some(out)
}

/// `       5 events:       19 data:                5  pos:0 ino:61 sdev:7`.
fn entry(line: &str) -> Option<Entry> {
    let spaced = line.replace(':', " ");
    let mut words = spaced.split_ascii_whitespace();
    let fd = words.next()?.parse().ok()?;
    let rest: Vec<&str> = words.collect();
    let hex = |key: &str| {
        let at = rest.iter().step_by(2).position(|w| *w == key)?;
        u64::from_str_radix(rest.get(at * 2 + 1)?, 16).ok()
    };
    Some(Entry {
        fd,
        events: hex("events")? as u32,
        data: hex("data")?,
        ino: hex("ino")?,
        nth: 0,
    })
}

fn unfound(fd: &FdView, view: &View) -> Vec<Blocker> {
    match entries(fd) {
        None => vec![unreadable(fd)],
        Some(list) => list
            .iter()
            .filter(|e| find(fd, e, view).is_none())
            .map(|e| closed(fd, e))
            .collect(),
    }
}

fn unreadable(fd: &FdView) -> Blocker {
    fd.blocker()
        .why("the kernel does not show what it watches")
        .remedy("close it before the checkpoint")
}

fn closed(fd: &FdView, entry: &Entry) -> Blocker {
    fd.blocker()
        .why(format!(
            "it watches, as fd {}, a file that no process of the checkpoint has open any more but that still lives elsewhere",
            entry.fd
        ))
        .remedy("let the program remove it from the epoll instance before closing it")
}

/// A descriptor in the set that is the watched file.
fn find(fd: &FdView, entry: &Entry, view: &View) -> Option<(Pid, RawFd)> {
    let is_it = |c: &FdView| epoll_watches(fd.pid, fd.fd, entry.fd, entry.nth, c.pid, c.fd) == Ok(true);
    let alike = || view.fds_of(entry.ino);
    // Nearly always it is what the number says.
    let straight = alike().find(|c| c.pid == fd.pid && c.fd == entry.fd && is_it(c));
    let found = straight
        .or_else(|| alike().find(|c| c.fd == entry.fd && c.pid != fd.pid && is_it(c)))
        .or_else(|| alike().find(|c| c.fd != entry.fd && is_it(c)));
    found.map(|c| (c.pid, c.fd))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> Pid {
        Pid(std::process::id() as i32)
    }

    #[test]
    fn lines_of_fdinfo_are_read() {
        let e = entry("       5 events: 80002019 data: ffffffff00000007  pos:0 ino:3f1 sdev:e").unwrap();
        assert_eq!(
            (e.fd, e.events, e.data, e.ino),
            (5, 0x8000_2019, 0xffff_ffff_0000_0007, 0x3f1)
        );
        assert_eq!(entry("5 events: x data: 1 pos:0 ino:1 sdev:1"), None);
        assert_eq!(entry(""), None);
    }

    /// Numbers that collide with each other, with the instance and with nothing at all; one spent.
    #[test]
    fn watches_get_the_numbers_they_are_given() {
        let (read, write) = nix::unistd::pipe().unwrap();
        let epoll = sys::epoll_create().unwrap();
        let (r, w, e) = (read.as_raw_fd(), write.as_raw_fd(), epoll.as_raw_fd());
        let spent = libc::EPOLLONESHOT as u32;
        let watch = |file: BorrowedFd<'_>| (file.as_raw_fd() == r).then(|| writer(file)).flatten();
        let one = |file, number, events, data| Watch {
            file,
            number,
            events,
            data,
            nudge: watch(file),
        };
        let list = [
            one(read.as_fd(), w, (libc::EPOLLIN | libc::EPOLLET) as u32, 1),
            one(write.as_fd(), r, libc::EPOLLOUT as u32, 2),
            one(write.as_fd(), e, libc::EPOLLOUT as u32, 3),
            one(read.as_fd(), 900, spent, u64::MAX),
            one(write.as_fd(), 901, spent, 5),
        ];
        assert_eq!(epoll_watch(epoll.as_fd(), &list), Ok(vec![]));
        let view = View::read(&[own()], crate::observe::view::Depth::Maps).unwrap();
        let fd = read_fd(own(), e).unwrap();
        let mut got = entries(&fd).unwrap();
        got.sort_by_key(|e| e.data);
        let both = (libc::EPOLLERR | libc::EPOLLHUP) as u32;
        let expected = [
            (w, (libc::EPOLLIN | libc::EPOLLET) as u32 | both, 1),
            (r, libc::EPOLLOUT as u32 | both, 2),
            (e, libc::EPOLLOUT as u32 | both, 3),
            (901, spent, 5),
            (900, spent, u64::MAX),
        ];
        assert_eq!(
            got.iter().map(|e| (e.fd, e.events, e.data)).collect::<Vec<_>>(),
            expected
        );
        // The numbers in this table are what they were, and the files are found although the numbers are others'.
        assert_eq!(find(&fd, &got[0], &view), Some((own(), r)));
        assert_eq!(find(&fd, &got[4], &view), Some((own(), r)));
        assert_eq!(find(&fd, &got[3], &view), Some((own(), w)));
        drop(write);
        let view = View::read(&[own()], crate::observe::view::Depth::Maps).unwrap();
        let fd = read_fd(own(), e).unwrap();
        assert_eq!(
            entries(&fd).unwrap().len(),
            2,
            "watches of a file that is gone went with it"
        );
        assert!(unfound(&fd, &view).is_empty());
        drop(read);
    }
}
