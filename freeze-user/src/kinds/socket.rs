//! What all sockets have in common: owner, options, and who else holds them. No kind of its own.

pub mod known;

use super::Source;
use crate::error::{Blocker, Context, Error, Result};
use crate::ids::Pid;
use crate::observe::peek::arrived::Sockets;
use crate::observe::peers::{inet_sockets, tcp_leftovers};
use crate::observe::view::{FdView, ProcessView, View, all_pids, command_of, socket_link};
use crate::sys;
use crate::sys::queue::peek_packets;
use crate::sys::socket::{Meanwhile, Message, poll};
use crate::sys::sockopt::{self, Options, SocketOption};
use nix::errno::Errno;
use nix::sys::stat::Mode;
use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::time::{Duration, Instant};

/// What every socket has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// Names the socket within the checkpoint.
    pub number: u64,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub options: Vec<SocketOption>,
    /// The classic BPF program attached, and whether it is locked.
    pub filter: super::pipe::Bytes,
    pub filter_locked: bool,
    #[serde(default)]
    pub chooser: Option<Chooser>,
}

/// A classic BPF program that chooses among the sockets of one port (SO_ATTACH_REUSEPORT_CBPF).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chooser {
    pub program: super::pipe::Bytes,
    /// Which of them this one is: the program names them by number.
    pub place: u32,
}

impl Base {
    /// Records it, with the options of these sets.
    pub fn collect(
        fd: &FdView,
        held: BorrowedFd<'_>,
        sets: &[&'static Options],
        from: &mut Source<'_>,
    ) -> Result<Base> {
        let filter = sockopt::filter(held).map_err(|_| {
            fd.blocker()
                .why("an eBPF program filters what arrives")
                .remedy("let the program detach it first")
                .refuse()
        })?;
        let locked = sys::socket::option(held, libc::SOL_SOCKET, libc::SO_LOCK_FILTER);
        Ok(Base {
            number: fd.stat.ino,
            mode: fd.stat.mode & 0o7777,
            uid: fd.stat.uid,
            gid: fd.stat.gid,
            options: from.shared.options.read(fd, held, sets, from.view),
            filter: super::pipe::Bytes(filter),
            filter_locked: locked == Ok(1),
            chooser: chooser(held).flatten().map(|(program, place)| Chooser {
                program: super::pipe::Bytes(program),
                place,
            }),
        })
    }

    /// Gives a new socket its owner, which decides about ports shared by SO_REUSEPORT: before it is bound.
    pub fn give_owner(&self, fd: BorrowedFd<'_>) -> Result<()> {
        let name = || self.label();
        let now = nix::sys::stat::fstat(fd).on("fstat", name)?;
        if now.st_mode & 0o7777 != self.mode {
            nix::sys::stat::fchmod(fd, Mode::from_bits_truncate(self.mode)).on("fchmod", name)?;
        }
        if (now.st_uid, now.st_gid) != (self.uid, self.gid) {
            nix::unistd::fchown(fd, Some(self.uid.into()), Some(self.gid.into())).on("fchown", name)?;
        }
        Ok(())
    }

    /// Those that decide about addresses, and so must be set before bind(2).
    fn early_options(&self) -> Vec<SocketOption> {
        let early = |o: &&SocketOption| match o.level {
            libc::SOL_SOCKET => matches!(
                o.name,
                libc::SO_REUSEADDR | libc::SO_REUSEPORT | libc::SO_BINDTODEVICE
            ),
            libc::IPPROTO_IPV6 => matches!(
                o.name,
                // The last one lets connect(2) take the label and class of the address.
                libc::IPV6_V6ONLY | libc::IPV6_FREEBIND | libc::IPV6_TRANSPARENT | libc::IPV6_FLOWINFO_SEND
            ),
            libc::IPPROTO_IP => matches!(o.name, libc::IP_FREEBIND | libc::IP_TRANSPARENT),
            // Of fast open a connection tells, and takes nothing.
            libc::IPPROTO_TCP => matches!(o.name, libc::TCP_FASTOPEN | sockopt::TCP_FASTOPEN_NO_COOKIE),
            _ => false,
        };
        self.options.iter().filter(early).cloned().collect()
    }

    /// Sets the options that decide about addresses.
    pub fn give_early_options(&self, fd: BorrowedFd<'_>) -> Result<()> {
        self.set(fd, &self.early_options())
    }

    /// Sets how much a TCP socket has room for, and lets the other end send: what it was told it may send is never taken back.
    pub fn give_window(&self, fd: BorrowedFd<'_>) -> Result<()> {
        let window = |o: &&SocketOption| {
            matches!(
                (o.level, o.name),
                (libc::SOL_SOCKET, libc::SO_RCVBUF) | (libc::IPPROTO_TCP, libc::TCP_WINDOW_CLAMP)
            )
        };
        let all: Vec<_> = self.options.iter().filter(window).cloned().collect();
        self.set(fd, &all)
    }

    /// Sets its options.
    pub fn give_options(&self, fd: BorrowedFd<'_>) -> Result<()> {
        self.set(fd, &self.options)
    }

    /// Sets those that a TCP socket takes when it is connected.
    pub fn give_connected_options(&self, fd: BorrowedFd<'_>) -> Result<()> {
        let taken = |o: &&SocketOption| (o.level, o.name) != (libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT);
        let all: Vec<_> = self.options.iter().filter(taken).cloned().collect();
        self.set(fd, &all)
    }

    /// Whether its connect(2) was to wait for what is written first (TCP_FASTOPEN_CONNECT).
    pub fn connects_late(&self) -> bool {
        self.is_on(libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT)
    }

    fn set(&self, fd: BorrowedFd<'_>, options: &[SocketOption]) -> Result<()> {
        sockopt::write(fd, options).map_err(|(option, errno)| {
            let what = format!(
                "{}: option {} of level {} to {:?}",
                self.label(),
                option.name,
                option.level,
                option.value
            );
            Error::kernel("setsockopt", what, errno)
        })
    }

    /// Has the program choose among those of its port, once it is one of them (whoever has one before cannot join) and before
    /// its filter is locked. All bring it along, and one gives it to the others.
    ///
    /// Tells if it got another number than the one by which the program chose it, as where others had closed.
    pub fn give_chooser(&self, fd: BorrowedFd<'_>, warnings: &mut Vec<String>) -> Result<()> {
        let Some(chooser) = &self.chooser else {
            return Ok(());
        };
        sockopt::attach(fd, libc::SO_ATTACH_REUSEPORT_CBPF, &chooser.program.0)
            .on("setsockopt(SO_ATTACH_REUSEPORT_CBPF)", || self.label())?;
        let place = Sockets::get().and_then(|s| s.chooser(fd)).flatten();
        if place.is_some_and(|(_, place)| place != chooser.place) {
            warnings.push(format!(
                "{}: the program that chooses among the sockets of its port finds it under another number than {}",
                self.label(),
                chooser.place
            ));
        }
        Ok(())
    }

    /// Lets its filter loose on it: what has arrived until then was not filtered.
    pub fn give_filter(&self, fd: BorrowedFd<'_>) -> Result<()> {
        sockopt::attach_filter(fd, &self.filter.0, self.filter_locked)
            .on("setsockopt(SO_ATTACH_FILTER)", || self.label())
    }

    /// Whether what is written waits for more (TCP_CORK).
    pub fn corked(&self) -> bool {
        self.is_on(libc::IPPROTO_TCP, libc::TCP_CORK)
    }

    fn is_on(&self, level: i32, name: i32) -> bool {
        let this = |o: &SocketOption| (o.level, o.name) == (level, name);
        let on = |o: &SocketOption| o.value.first().is_some_and(|b| *b != 0);
        self.options.iter().any(|o| this(o) && on(o))
    }

    /// For people.
    pub fn label(&self) -> String {
        format!("socket {}", self.number)
    }
}

/// Adds that the very socket is held outside too.
pub fn held_outside(fd: &FdView, view: &View, out: &mut Vec<Blocker>) {
    if view.ends.cut(fd) {
        return;
    }
    for holder in view.outside.get(&fd.link).map_or(&[][..], Vec::as_slice) {
        out.push(
            fd.blocker()
                .why(format!(
                    "the socket is also held outside the checkpoint, by pid {} ({}) as fd {}",
                    holder.pid, holder.command, holder.fd
                ))
                .remedy(format!(
                    "freeze that process too (--also-freeze {}), or leave its descriptor behind (--cut {})",
                    holder.pid,
                    fd.label()
                ))
                .held_by(holder.pid),
        );
    }
}

/// What is in the way if a program of eBPF chooses among the sockets that share its port: no kernel hands it out.
pub fn chosen(fd: &FdView, held: BorrowedFd<'_>) -> Option<Blocker> {
    chooser(held).is_none().then(|| {
        fd.blocker()
            .why("a program chooses among the sockets of its port (SO_ATTACH_REUSEPORT_EBPF), which the kernel does not hand out")
            .remedy("let the program detach it first (SO_DETACH_REUSEPORT_BPF)")
    })
}

/// See [`Sockets::chooser`]; none where freeze may not look.
fn chooser(held: BorrowedFd<'_>) -> Option<Option<(Vec<u8>, u32)>> {
    let shared = sys::socket::option(held, libc::SOL_SOCKET, libc::SO_REUSEPORT).is_ok_and(|v| v != 0);
    match Sockets::get().filter(|_| shared) {
        Some(sockets) => sockets.chooser(held),
        None => Some(None),
    }
}

/// Adds the mappings of sockets whose kind does not map them again.
pub fn mapped(p: &ProcessView, view: &View, out: &mut Vec<Blocker>) {
    for v in p.vmas.iter().filter(|v| v.name.starts_with(b"socket:[")) {
        if !view.fds().any(|f| f.link == v.name && f.protocol == "PACKET") {
            out.push(
                p.blocker(v.range().to_string(), v.label())
                    .why("memory of a socket is mapped that is closed, or no packet socket")
                    .remedy("let the program unmap it"),
            );
        }
    }
}

/// Which descriptor of the set a descriptor of freeze's own is the same as, found by kcmp(2); what it is, if none.
pub fn same_in_set<'v>(own: &OwnedFd, view: &'v View) -> Result<std::result::Result<&'v FdView, FdView>> {
    let own_pid = Pid(std::process::id() as i32);
    let seen = crate::observe::view::read_fd(own_pid, own.as_raw_fd())?;
    let key = |f: &FdView| (f.stat.dev, f.stat.ino, f.flags());
    for fd in view.fds().filter(|f| key(f) == key(&seen)) {
        let same = sys::same_file(own_pid, own.as_raw_fd(), fd.pid, fd.fd);
        if same.on("kcmp", || format!("fd {} of {}", fd.fd, fd.pid))? {
            return Ok(Ok(fd));
        }
    }
    Ok(Err(seen))
}

/// What waits in the queue of a socket that keeps boundaries, which keeps it; empty datagrams that were looked at before
/// only where the kernel lets freeze look at it.
///
/// An error that it has yet to tell would be taken by a look: then it is read in place, or fails with EAGAIN.
pub(super) fn whole_queue(fd: BorrowedFd<'_>) -> nix::Result<Vec<Message>> {
    if poll(fd)? & (libc::POLLIN | libc::POLLERR) == libc::POLLIN | libc::POLLERR {
        let sockets = Sockets::get().ok_or(Errno::EAGAIN)?;
        if sockets.error(fd).ok_or(Errno::EAGAIN)? != 0 {
            return sockets.queue(fd).ok_or(Errno::EAGAIN);
        }
    }
    let mut seen = peek_packets(fd)?;
    if poll(fd)? & libc::POLLIN != 0 {
        let _ = Sockets::get().and_then(|s| s.with_hidden(fd, &mut seen));
    }
    Ok(seen)
}

/// A duplicate of any descriptor of the set.
pub fn fetch(fd: &FdView) -> Result<OwnedFd> {
    fd.duplicate()
        .on("pidfd_getfd", || format!("fd {} of {}", fd.fd, fd.pid))
}

/// bind(2), tried again for a moment while the name is in use: when two sets are restored at once, the processes born
/// for the one have, until they are emptied, what freeze holds for the other.
pub fn bind(fd: BorrowedFd<'_>, address: &[u8]) -> nix::Result<()> {
    let began = Instant::now();
    loop {
        match bind_at_once(fd, address) {
            Err(Errno::EADDRINUSE) if began.elapsed() < Duration::from_millis(300) => {
                std::thread::sleep(Duration::from_millis(5));
            }
            done => return done,
        }
    }
}

/// bind(2). An address without a port gets none: it is of a socket that gave its port up when it let go of its peer, or that
/// waits for one.
pub fn bind_at_once(fd: BorrowedFd<'_>, address: &[u8]) -> nix::Result<()> {
    let portless = inet_address(address).is_some_and(|a| a.port() == 0);
    let without = || Meanwhile::set(fd, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1);
    let _without = portless.then(without).transpose()?;
    sys::socket_to(fd, false, address)
}

/// Whether a `struct sockaddr_in` or `sockaddr_in6` names neither an address nor a port.
pub fn nowhere(address: &[u8]) -> bool {
    inet_address(address).is_none_or(|a| a.ip().is_unspecified() && a.port() == 0)
}

/// A `struct sockaddr_in` or `sockaddr_in6` as Rust has it.
pub fn inet_address(address: &[u8]) -> Option<SocketAddr> {
    let family = i32::from(u16::from_ne_bytes(*address.first_chunk()?));
    let port = u16::from_be_bytes(*address.get(2..)?.first_chunk()?);
    match family {
        libc::AF_INET => Some((Ipv4Addr::from(*address.get(4..)?.first_chunk::<4>()?), port).into()),
        libc::AF_INET6 => Some((Ipv6Addr::from(*address.get(8..)?.first_chunk::<16>()?), port).into()),
        _ => None,
    }
}

/// Tries whether an address can be bound to, with the options that decide about sharing it; adds what is in the way.
///
/// `made`: a new socket like the one that was recorded.
pub fn bind_probe(
    base: &Base,
    made: nix::Result<OwnedFd>,
    kind: i32,
    address: &[u8],
    out: &mut Vec<Blocker>,
) {
    let options = base.early_options();
    let tried = made.and_then(|fd| {
        nix::unistd::fchown(&fd, Some(base.uid.into()), Some(base.gid.into()))?;
        sockopt::write(fd.as_fd(), &options).map_err(|(_, e)| e)?;
        if kind == libc::SOCK_STREAM {
            sys::socket::set_option(fd.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
        }
        bind(fd.as_fd(), address)
    });
    let shown = inet_address(address).map_or_else(String::new, |a| a.to_string());
    let at = || Blocker::at(shown.clone(), "the address of a socket");
    match tried {
        Ok(()) => {}
        Err(Errno::EADDRINUSE) => {
            let port = inet_address(address).map_or(0, |a| a.port());
            let by = port_holder(port, kind);
            if by.is_empty() && kind == libc::SOCK_STREAM && !tcp_leftovers(port).is_empty() {
                // Removed when it is bound in earnest.
                return;
            }
            out.push(
                at().why(format!("the port is in use{by}"))
                    .remedy("end the program that uses it"),
            );
        }
        Err(Errno::EADDRNOTAVAIL) => {
            out.push(
                at().why("this machine does not have the address")
                    .remedy("give it the address (ip address add)"),
            );
        }
        Err(e) => out.push(
            at().why(format!("it cannot be bound to: {}", e.desc()))
                .remedy("restore where it can be"),
        ),
    }
}

/// ` by pid 5 (command)`, of who holds a socket with this port; empty if nobody can be seen.
fn port_holder(port: u16, kind: i32) -> String {
    let tables: [&'static str; 2] = if kind == libc::SOCK_STREAM {
        ["tcp", "tcp6"]
    } else {
        ["udp", "udp6"]
    };
    let all = tables.into_iter().flat_map(inet_sockets);
    let links: Vec<Vec<u8>> = all
        .filter(|(_, s)| s.local.port() == port)
        .map(|(inode, _)| socket_link(inode))
        .collect();
    holder_of(&links).map_or_else(String::new, |(pid, command)| format!(" by pid {pid} ({command})"))
}

/// The first process found that holds one of these sockets, with its command.
pub fn holder_of(links: &[Vec<u8>]) -> Option<(Pid, String)> {
    if links.is_empty() {
        return None;
    }
    for pid in all_pids().unwrap_or_default() {
        let Ok(dir) = std::fs::read_dir(format!("/proc/{pid}/fd")) else {
            continue;
        };
        for entry in dir.flatten() {
            let link = std::fs::read_link(entry.path()).map(|l| l.into_os_string().into_vec());
            if link.is_ok_and(|l| links.contains(&l)) {
                return Some((pid, command_of(pid)));
            }
        }
    }
    None
}
