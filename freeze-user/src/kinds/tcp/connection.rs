//! TCP connections: both ends in the checkpoint, or the other one closed already.

use super::super::pipe::Bytes;
use super::super::socket::{Base, fetch, inet_address};
use super::super::{Placed, Source};
use super::readable;
use crate::error::{Blocker, Context, Result};
use crate::nest::Nest;
use crate::observe::view::{FdView, View, socket_link};
use crate::sys::tcp::{self, Stream, state};
use crate::sys::{self, socket};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// One end of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    /// The other end's address, as getpeername(2) shows it.
    pub remote: Bytes,
    /// The number of the other end, unless that is closed.
    pub peer: Option<u64>,
    /// Received and not read.
    pub received: Bytes,
    pub receive_next: u32,
    /// Written and not acknowledged; the last `unsent` bytes of it not even sent.
    pub written: Bytes,
    pub unsent: u32,
    pub send_next: u32,
    pub mss: u32,
    pub scales: Option<(u8, u8)>,
    pub selective: bool,
    pub timestamp: Option<u32>,
    pub window: [u32; 5],
    pub fin_sent: bool,
    pub fin_received: bool,
    /// Whether nothing is left of it but what was received: both halves were shut, and all was acknowledged.
    pub over: bool,
}

/// What is needed to go on with the connections when all descriptors are in place.
#[derive(Default)]
struct Made {
    /// The other ends of those whose peers are closed.
    ghosts: HashMap<u64, (OwnedFd, Stream)>,
}

/// What keeps a socket in this state from being carried.
pub(super) fn obstacle(fd: &FdView, held: BorrowedFd<'_>, now: u8, view: &View) -> Option<Blocker> {
    let remote = sys::socket_name(held, true).unwrap_or_default();
    let to = readable(&remote);
    if now == state::SYN_SENT || !known(now) {
        let why = format!("a connection to {to} is just being made");
        return Some(
            fd.blocker()
                .why(why)
                .remedy("try again when it is established or has failed"),
        );
    }
    let closed = state::fin_received(now) && inet_address(&remote).is_some_and(|a| on_this_machine(a.ip()));
    match view.tcp_peer(fd.stat.ino) {
        Some(peer) if view.socket(peer).is_some() => None,
        Some(peer) => {
            let holder = view.outside.get(&socket_link(peer)).and_then(|h| h.first());
            let by = holder.map_or_else(
                || "a process that cannot be seen".to_owned(),
                |h| format!("pid {} ({}) as fd {}", h.pid, h.command, h.fd),
            );
            let remedy = holder.map_or_else(
                || "let one of the two close the connection".to_owned(),
                |h| {
                    format!(
                        "checkpoint pid {} with it, or let one of the two close the connection",
                        h.pid
                    )
                },
            );
            Some(
                fd.blocker()
                    .why(format!(
                        "its other end {to} is held outside the checkpoint, by {by}"
                    ))
                    .remedy(remedy),
            )
        }
        None if closed => None,
        None if inet_address(&remote).is_some_and(|a| on_this_machine(a.ip())) => Some(
            fd.blocker()
                .why(format!(
                    "its other end {to} is held by nobody: not accepted yet, or closed with data on the way"
                ))
                .remedy("let the program accept it, or close this end"),
        ),
        None => Some(
            fd.blocker()
                .why(format!(
                    "its other end {to} is on another machine, which would notice the gap"
                ))
                .remedy("let the program close the connection first"),
        ),
    }
}

fn known(now: u8) -> bool {
    state::fin_sent(now) || state::fin_received(now) || now == state::ESTABLISHED
}

/// Whether an address is one of this machine's own: only those can be bound to.
fn on_this_machine(address: IpAddr) -> bool {
    address.is_loopback() || std::net::UdpSocket::bind((address, 0)).is_ok()
}

impl Connection {
    /// Records one end; it goes on undisturbed, but ends in silence if the process is ended now.
    pub(super) fn collect(fd: &FdView, held: OwnedFd, from: &mut Source<'_>) -> Result<Connection> {
        let name = || fd.label();
        let remote = sys::socket_name(held.as_fd(), true).on("getpeername", name)?;
        let call = "reading a connection (TCP_REPAIR)";
        let other = from.view.tcp_peer(fd.stat.ino).and_then(|p| from.view.socket(p));
        let peer = other.map(|o| o.stat.ino);
        let stream = match (from.shared.streams.remove(&fd.stat.ino), other) {
            (Some(known), _) => known,
            (None, Some(other)) => {
                let (stream, theirs) = tcp::read_both(held.as_fd(), fetch(other)?.as_fd()).on(call, name)?;
                from.shared.streams.insert(other.stat.ino, theirs);
                stream
            }
            (None, None) => tcp::read(held.as_fd()).on(call, name)?,
        };
        from.process.silence(held);
        Ok(Connection {
            remote: Bytes(remote),
            peer,
            received: Bytes(stream.received),
            receive_next: stream.receive_next,
            written: Bytes(stream.written),
            unsent: stream.unsent,
            send_next: stream.send_next,
            mss: stream.mss,
            scales: stream.scales,
            selective: stream.selective,
            timestamp: stream.timestamp,
            window: stream.window,
            fin_sent: stream.fin_sent,
            fin_received: stream.fin_received,
            over: false,
        })
    }

    /// Records what was received over a connection that is over; nothing if there never was one.
    pub(super) fn collect_over(fd: &FdView, held: BorrowedFd<'_>) -> Result<Option<Connection>> {
        let name = || fd.label();
        // A socket that never was connected says so; one that was gives its data, or their end.
        let received = match tcp::peek_over(held) {
            Ok(received) => received,
            Err(Errno::ENOTCONN) => return Ok(None),
            Err(e) => return Err(e).on("recv(MSG_PEEK)", name),
        };
        Ok(Some(Connection {
            remote: Bytes::default(),
            peer: None,
            receive_next: received.len() as u32 + 1,
            received: Bytes(received),
            written: Bytes::default(),
            unsent: 0,
            send_next: 1,
            mss: 1460,
            scales: None,
            selective: false,
            timestamp: None,
            window: [0, 65535, 65535, 65535, 1],
            fin_sent: true,
            fin_received: true,
            over: true,
        }))
    }

    fn stream(&self) -> Stream {
        Stream {
            received: self.received.0.clone(),
            receive_next: self.receive_next,
            written: self.written.0.clone(),
            unsent: self.unsent,
            send_next: self.send_next,
            mss: self.mss,
            scales: self.scales,
            selective: self.selective,
            timestamp: self.timestamp,
            window: self.window,
            fin_sent: self.fin_sent,
            fin_received: self.fin_received,
        }
    }

    /// How the other end saw it: for an end that is made for a moment only.
    fn mirrored(&self) -> Stream {
        let [_, _, _, window, _] = self.window;
        let acknowledged = self.send_next.wrapping_sub(self.written.0.len() as u32);
        Stream {
            received: Vec::new(),
            receive_next: acknowledged,
            written: Vec::new(),
            unsent: 0,
            send_next: self.receive_next,
            mss: self.mss,
            scales: self.scales.map(|(theirs, own)| (own, theirs)),
            selective: self.selective,
            timestamp: self.timestamp,
            window: [
                acknowledged,
                window.max(1 << 16),
                window.max(1 << 16),
                1 << 16,
                acknowledged,
            ],
            fin_sent: false,
            fin_received: false,
        }
    }

    /// Makes this end in a new socket; it sends nothing yet.
    pub(super) fn restore(
        &self,
        fd: BorrowedFd<'_>,
        base: &Base,
        local: &[u8],
        nest: &mut Nest,
    ) -> Result<()> {
        let name = || {
            format!(
                "{}: {} to {}",
                base.label(),
                readable(local),
                readable(&self.remote.0)
            )
        };
        let remote = if self.over {
            some_port(local).on("bind", name)?
        } else {
            self.remote.0.clone()
        };
        if let (Some(a), Some(b)) = (inet_address(local), inet_address(&remote)) {
            clear(a, b);
        }
        tcp::write(fd, local, &remote, &self.stream()).on("making a connection (TCP_REPAIR)", name)?;
        if self.peer.is_none() {
            let domain = i32::from(u16::from_ne_bytes(*local.first_chunk().unwrap_or(&[0, 0])));
            let ghost = sys::socket(domain, libc::SOCK_STREAM, libc::IPPROTO_TCP).on("socket", name)?;
            let mirrored = self.mirrored();
            tcp::write(ghost.as_fd(), &remote, local, &mirrored)
                .on("making the closed end of a connection", name)?;
            nest.state::<Made>().ghosts.insert(base.number, (ghost, mirrored));
        }
        Ok(())
    }

    /// Lets it go on, now that the other end is there.
    pub(super) fn finish(&self, base: &Base, placed: Placed, nest: &mut Nest) -> Result<()> {
        let name = || base.label();
        let ghost = nest.state::<Made>().ghosts.remove(&base.number);
        let fd = nest.file(placed.id)?;
        tcp::start(fd, &self.stream()).on("starting a connection (TCP_REPAIR)", name)?;
        base.give_options(fd)?;
        base.give_filter(fd)?;
        if let Some((ghost, stream)) = ghost {
            tcp::start(ghost.as_fd(), &stream).on("starting a connection (TCP_REPAIR)", name)?;
            // It closes as the other end did, and lingers as that did.
            drop(ghost);
        }
        if self.fin_sent {
            socket::shutdown(fd, 2).on("shutdown", name)?;
        }
        Ok(())
    }
}

/// An address on the same machine as `local`, with a port that is free just now.
fn some_port(local: &[u8]) -> nix::Result<Vec<u8>> {
    let domain = i32::from(u16::from_ne_bytes(*local.first_chunk().unwrap_or(&[0, 0])));
    let probe = sys::socket(domain, libc::SOCK_STREAM, libc::IPPROTO_TCP)?;
    let mut address = local.to_vec();
    if let Some(port) = address.get_mut(2..4) {
        port.fill(0);
    }
    sys::socket_to(probe.as_fd(), false, &address)?;
    sys::socket_name(probe.as_fd(), false)
}

/// Removes what the kernel still remembers of an earlier connection between the same two ports, if nobody holds it.
fn clear(local: SocketAddr, remote: SocketAddr) {
    let plain = |a: SocketAddr| SocketAddr::new(a.ip().to_canonical(), a.port());
    let (local, remote) = (plain(local), plain(remote));
    for (a, b) in [(local, remote), (remote, local)] {
        // If there is none, or it cannot be removed, connecting tells.
        let _ = crate::observe::peers::forget_tcp(a, b);
    }
}
