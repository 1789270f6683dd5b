//! pipe(2): both ends, what is inside, how much fits, packet mode.

use super::namespaces::autofs;
use super::{FdKind, Placed, Source};
use crate::error::{Blocker, Context, Result};
use crate::ids::{FileId, PAGE};
use crate::nest::{Nest, Options};
use crate::observe::view::{FdView, View};
use crate::sys;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

#[derive(Debug)]
pub struct Pipe;

/// One end; the ends of one pipe carry the same number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub pipe: u64,
    /// `O_RDONLY`, `O_WRONLY` or `O_RDWR`.
    pub access: i32,
    /// Whether the description was made by opening /proc/PID/fd, which shows as `O_LARGEFILE`.
    pub reopened: bool,
    /// With the first end that was seen.
    pub buffer: Option<Buffer>,
    /// Whether it only stands for the pipe (O_PATH).
    #[serde(default)]
    pub path_only: bool,
}

/// What is inside a pipe and how it is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Buffer {
    /// Capacity in bytes (F_GETPIPE_SZ).
    pub capacity: u64,
    /// What single reads would bring: more than one piece only where packets were written.
    pub pieces: Vec<Bytes>,
    /// Whether an end is in packet mode (O_DIRECT).
    pub packets: bool,
    /// Which pieces are packets, of which a read leaves nothing: the mode may have been another when they were written.
    /// Unless they are told of one by one, all are as the mode says.
    #[serde(default)]
    pub whole: Vec<bool>,
    /// How much each of its places holds, where all are taken and not all are full: nothing more fits then.
    #[serde(default)]
    pub places: Vec<u32>,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

/// Bytes that are encoded as bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bytes(pub Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Bytes, D::Error> {
        struct Visit;
        impl<'de> serde::de::Visitor<'de> for Visit {
            type Value = Bytes;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E>(self, v: &[u8]) -> Result<Bytes, E> {
                Ok(Bytes(v.to_vec()))
            }
            fn visit_byte_buf<E>(self, v: Vec<u8>) -> Result<Bytes, E> {
                Ok(Bytes(v))
            }
        }
        from.deserialize_byte_buf(Visit)
    }
}

/// The two raw ends of each pipe until somebody takes them.
#[derive(Default)]
struct Made {
    pipes: HashMap<u64, Ends>,
}

struct Ends {
    read: Option<OwnedFd>,
    write: Option<OwnedFd>,
    /// Kept until all ends are out, to open further descriptions from.
    any: OwnedFd,
}

impl FdKind for Pipe {
    const TAG: &'static str = "pipe";
    const VERSION: u16 = 1;
    const ABOUT: &'static str = "pipes: contents, capacity, packet mode, owner; every end in the checkpoint, however often it was opened";
    type Record = Record;

    fn claims(fd: &FdView) -> bool {
        fd.link.starts_with(b"pipe:[") && fd.stat.kind() == libc::S_IFIFO
    }

    fn verdict(fd: &FdView, view: &View, out: &mut Vec<Blocker>) {
        if view.ends.cut(fd) {
            return;
        }
        for holder in view.outside.get(&fd.link).map_or(&[][..], Vec::as_slice) {
            out.push(
                fd.blocker()
                    .why(format!(
                        "the pipe is also held outside the checkpoint, by pid {} ({}) as fd {}",
                        holder.pid, holder.command, holder.fd
                    ))
                    .remedy(format!(
                        "freeze that process too (--also-freeze {}), or give its end up (--cut {})",
                        holder.pid,
                        fd.label()
                    ))
                    .held_by(holder.pid),
            );
        }
    }

    fn collect(fd: &FdView, from: &mut Source<'_>) -> Result<Record> {
        let path_only = fd.flags() & libc::O_PATH != 0;
        let buffer = match !path_only && from.shared.first_sight(fd.stat.dev, fd.stat.ino) {
            true => Some(read_buffer(fd, from).on("tee", || fd.label())?),
            false => None,
        };
        Ok(Record {
            pipe: fd.stat.ino,
            access: fd.flags() & libc::O_ACCMODE,
            reopened: fd.flags() & LARGEFILE != 0,
            buffer,
            path_only,
        })
    }

    fn precheck(_: &Record, _: &Options, _: &mut Vec<Blocker>) {}

    fn members(_: &Record) -> Vec<FileId> {
        Vec::new()
    }

    fn restore(record: &Record, nest: &mut Nest) -> Result<OwnedFd> {
        let name = || format!("pipe {}", record.pipe);
        use std::collections::hash_map::Entry;
        let pipes = &mut nest.state::<Made>().pipes;
        if let Entry::Vacant(vacant) = pipes.entry(record.pipe) {
            let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).on("pipe2", name)?;
            let any = reopen(read.as_fd(), libc::O_RDWR).on("open", name)?;
            let ends = Ends {
                read: Some(read),
                write: Some(write),
                any,
            };
            vacant.insert(ends);
        }
        let Some(ends) = pipes.get_mut(&record.pipe) else {
            unreachable!("made just above")
        };
        if let Some(buffer) = &record.buffer {
            fill(ends.any.as_fd(), buffer).on("write", name)?;
            own(ends.any.as_fd(), buffer).on("fchown", name)?;
        }
        if record.path_only {
            return reopen(ends.any.as_fd(), libc::O_PATH).on("open", name);
        }
        let raw = match record.access {
            libc::O_RDONLY if !record.reopened => ends.read.take(),
            libc::O_WRONLY if !record.reopened => ends.write.take(),
            _ => None,
        };
        match raw {
            Some(end) => Ok(end),
            None => reopen(ends.any.as_fd(), record.access).on("open", name),
        }
    }

    fn finish(record: &Record, _: Placed, nest: &mut Nest) -> Result<()> {
        // All ends are where they belong: what nobody took was closed in the original too.
        match nest.state::<Made>().pipes.remove(&record.pipe) {
            Some(ends) => autofs::offer(record.pipe, ends.any.as_fd(), nest),
            None => Ok(()),
        }
    }
}

/// The kernel's own `O_LARGEFILE`, which libc shows as 0 on x86-64.
const LARGEFILE: i32 = 0o100000;

/// A new description of the same pipe.
fn reopen(fd: BorrowedFd<'_>, access: i32) -> nix::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let flags = OFlag::from_bits_truncate(access) | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    nix::fcntl::open(path.as_str(), flags, Mode::empty())
}

/// What is inside a pipe or fifo, which keeps it.
pub(super) fn read_buffer(fd: &FdView, from: &Source<'_>) -> nix::Result<Buffer> {
    let held = from.process.fd(fd.fd).map_err(|_| Errno::EBADF)?;
    let capacity = sys::fcntl(held.as_fd(), libc::F_GETPIPE_SZ, 0)? as u64;
    // A further end is opened only where none can be read from: who watches a fifo is told of it (inotify(7)), and who waits for
    // a reader in open(2) would be let go.
    let reader = match fd.flags() & libc::O_ACCMODE {
        libc::O_WRONLY => reopen(held.as_fd(), libc::O_RDONLY)?,
        _ => held,
    };
    let inside = sys::ioctl_int(reader.as_fd(), libc::FIONREAD)? as usize;
    let (mut pieces, mut whole, mut places) = (Vec::new(), Vec::new(), Vec::new());
    let packets = from
        .view
        .fds()
        .any(|f| f.link == fd.link && f.flags() & libc::O_DIRECT != 0);
    if inside > 0 {
        let (copy, into) = copy(reader.as_fd(), capacity, inside)?;
        if (inside as u64) < capacity && sys::socket::poll(into.as_fd())? & libc::POLLOUT == 0 {
            let (copy, _into) = self::copy(reader.as_fd(), capacity, inside)?;
            places = read_places(copy.as_fd(), inside)?;
        }
        drop(into);
        let mut buf = vec![0; inside];
        let mut got = 0;
        while got < inside {
            match nix::unistd::read(copy.as_fd(), &mut buf)? {
                0 => return Err(Errno::EIO),
                n => {
                    pieces.push(Bytes(buf[..n].to_vec()));
                    got += n;
                }
            }
        }
        // Of what is no packet a read that is too short leaves the rest. A byte by itself is a packet if the read ended with it
        // though there was more; the last is as the mode says.
        let (copy, _) = self::copy(reader.as_fd(), capacity, inside)?;
        for (n, Bytes(piece)) in pieces.iter().enumerate() {
            let before = sys::ioctl_int(copy.as_fd(), libc::FIONREAD)? as usize;
            let short = (piece.len() - 1).max(1);
            nix::unistd::read(copy.as_fd(), &mut buf[..short])?;
            let rest = sys::ioctl_int(copy.as_fd(), libc::FIONREAD)? as usize;
            let left = rest + piece.len() > before;
            if left {
                nix::unistd::read(copy.as_fd(), &mut buf[..1])?;
            }
            let followed = n + 1 < pieces.len();
            whole.push(if piece.len() > 1 {
                !left
            } else {
                followed || packets
            });
        }
    }
    Ok(Buffer {
        capacity,
        pieces,
        packets,
        whole,
        places,
        mode: fd.stat.mode & 0o7777,
        uid: fd.stat.uid,
        gid: fd.stat.gid,
    })
}

/// Another pipe with the same inside: both ends.
fn copy(reader: BorrowedFd<'_>, capacity: u64, inside: usize) -> nix::Result<(OwnedFd, OwnedFd)> {
    let (copy, into) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    sys::fcntl(into.as_fd(), libc::F_SETPIPE_SZ, capacity)?;
    match sys::tee(reader, into.as_fd(), inside)? == inside {
        true => Ok((copy, into)),
        false => Err(Errno::EIO),
    }
}

/// A pipe with one place.
fn narrow() -> nix::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    sys::fcntl(write.as_fd(), libc::F_SETPIPE_SZ, PAGE)?;
    Ok((read, write))
}

/// How much each place of a pipe holds, which is read to its end; nothing if one holds more than can be written into one.
fn read_places(pipe: BorrowedFd<'_>, inside: usize) -> nix::Result<Vec<u32>> {
    let (read, write) = narrow()?;
    let (mut out, mut left) = (Vec::new(), inside);
    let mut buf = vec![0; PAGE as usize];
    while left > 0 {
        // No more fits than what one place holds.
        let held = sys::tee(pipe, write.as_fd(), left)?;
        if held > buf.len() {
            return Ok(Vec::new());
        }
        for end in [pipe, read.as_fd()] {
            let some = buf.get_mut(..held).filter(|b| !b.is_empty()).ok_or(Errno::EIO)?;
            if nix::unistd::read(end, some)? != held {
                return Err(Errno::EIO);
            }
        }
        out.push(held as u32);
        left = left.checked_sub(held).ok_or(Errno::EIO)?;
    }
    Ok(out)
}

/// Puts back what was inside, and the capacity.
pub(super) fn fill(pipe: BorrowedFd<'_>, buffer: &Buffer) -> nix::Result<()> {
    sys::fcntl(pipe, libc::F_SETPIPE_SZ, buffer.capacity)?;
    let writer = reopen(pipe, libc::O_WRONLY)?;
    let mut places = buffer.places.iter().copied();
    for (n, piece) in buffer.pieces.iter().enumerate() {
        let packet = *buffer.whole.get(n).unwrap_or(&buffer.packets);
        let direct = if packet { libc::O_DIRECT } else { 0 };
        let mut rest = &piece.0[..];
        if packet {
            places.next();
        } else {
            while let Some(held) = places.next().map(|held| held as usize)
                && held < rest.len()
            {
                put_apart(writer.as_fd(), &rest[..held])?;
                rest = &rest[held..];
            }
        }
        sys::fcntl(writer.as_fd(), libc::F_SETFL, (libc::O_NONBLOCK | direct) as u64)?;
        if nix::unistd::write(writer.as_fd(), rest)? != rest.len() {
            return Err(Errno::ENOSPC);
        }
    }
    Ok(())
}

/// Puts something into a place of a pipe that nothing is added to when more is written.
fn put_apart(into: BorrowedFd<'_>, data: &[u8]) -> nix::Result<()> {
    let (read, write) = narrow()?;
    let done = nix::unistd::write(&write, data)? == data.len()
        && sys::tee(read.as_fd(), into, data.len())? == data.len();
    done.then_some(()).ok_or(Errno::ENOSPC)
}

/// Gives a pipe, which has no name that somebody else could have set these for, its mode and owner.
fn own(pipe: BorrowedFd<'_>, buffer: &Buffer) -> nix::Result<()> {
    nix::sys::stat::fchmod(pipe, Mode::from_bits_truncate(buffer.mode))?;
    nix::unistd::fchown(pipe, Some(buffer.uid.into()), Some(buffer.gid.into()))
}
