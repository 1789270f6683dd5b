//! TCP connections: both ends in the checkpoint, the other one closed already, or outside.

use super::super::pipe::Bytes;
use super::super::socket::{Base, fetch, inet_address};
use super::super::{Placed, Source, namespaces, netns};
use super::readable;
use crate::error::{Blocker, Context, Error, Result};
use crate::nest::Nest;
use crate::nest::space::Kind;
use crate::observe::peek::arrived::{Embryo, Sockets};
use crate::observe::peers::Nobodys;
use crate::observe::view::{FdView, View, socket_link};
use crate::sys::datagram::{FIN_ACK, RST_ACK, inject_segment};
use crate::sys::tcp::{self, Stream, state};
use crate::sys::wire;
use crate::sys::{self, socket, sockopt};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

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
    /// Whether the program has shut the half that receives, and the other end has not.
    #[serde(default)]
    pub deaf: bool,
    /// Whether nothing is left of it but what was received: both halves were shut, and all was acknowledged.
    pub over: bool,
    /// Whether the other end lies outside the checkpoint.
    #[serde(default)]
    pub outside: bool,
    /// By which name its wire is held shut.
    #[serde(default)]
    pub hold: Option<String>,
    /// Whether the other end was given up: the program is told ECONNRESET.
    #[serde(default)]
    pub cut: bool,
}

/// Connections to outside that wait for everything else to be ready.
#[derive(Default)]
struct Outside {
    /// By which name in which network namespace (by its inode), with a descriptor of that.
    holds: BTreeMap<(String, u64), OwnedFd>,
    waiting: Vec<Departure>,
    setting_out: Vec<SettingOut>,
}

/// One that was on its way: what it sends is for the packet filters, which are not there before.
struct SettingOut {
    fd: OwnedFd,
    remote: Bytes,
    name: String,
}

/// One of them, which makes no sound until then.
struct Departure {
    fd: OwnedFd,
    connection: Connection,
    base: Base,
    local: Bytes,
}

/// What is needed to go on with the connections when all descriptors are in place.
#[derive(Default)]
struct Made {
    /// The other ends of those whose peers are closed.
    ghosts: HashMap<u64, (OwnedFd, Stream)>,
}

/// Where the other end of a connection is.
enum Far {
    Inside,
    /// Closed, with nothing left to say.
    Closed,
    /// In the queue of a listening socket of the set, with so much to be read.
    Waiting(u32),
    /// Held by others, on another machine, or by nobody but still with something to say.
    Outside,
}

fn far(fd: &FdView, now: u8, remote: Option<SocketAddr>, view: &View) -> Far {
    match view.tcp_peer(fd.stat.ino) {
        Some(peer) if view.socket(peer).is_some() => return Far::Inside,
        Some(_) => return Far::Outside,
        None => {}
    }
    if let Some(waiting) = view.tcp_waiting(fd.stat.ino) {
        return Far::Waiting(waiting.unread);
    }
    match remote {
        Some(a) if state::fin_received(now) && on_this_machine(a.ip()) => Far::Closed,
        _ => Far::Outside,
    }
}

/// Whether it is a connection that has to be made anew: on its way, or not accepted yet by a socket of the set.
pub(super) fn unfinished(fd: &FdView, held: BorrowedFd<'_>, now: u8, view: &View) -> bool {
    let remote = sys::socket_name(held, true).ok().and_then(|a| inet_address(&a));
    now == state::SYN_SENT
        || matches!(now, state::ESTABLISHED | state::FIN_WAIT2)
            && matches!(far(fd, now, remote, view), Far::Waiting(_))
}

/// What was written to a connection that has to be made anew, and has arrived or not.
pub(super) fn written(fd: &FdView, held: BorrowedFd<'_>, now: u8, view: &View) -> Result<Bytes> {
    if now == state::SYN_SENT {
        return Ok(Bytes::default());
    }
    let name = || fd.label();
    let before = arrived(fd, view)?;
    let stream = tcp::read(held).on("reading a connection (TCP_REPAIR)", name)?;
    let mut all = arrived(fd, view)?;
    if before.len() != all.len() {
        // Some was on its way just then.
        return Err(Errno::EAGAIN).on("reading a connection (TCP_REPAIR)", name);
    }
    all.extend(stream.written);
    Ok(Bytes(all))
}

/// What the other end of a connection has got that was not accepted yet by a socket of the set.
fn arrived(fd: &FdView, view: &View) -> Result<Vec<u8>> {
    let Some(own) = view.tcp.get(&fd.stat.ino) else {
        return Ok(Vec::new());
    };
    if view.tcp_waiting(fd.stat.ino).is_some_and(|w| w.unread == 0) {
        return Ok(Vec::new());
    }
    let listens = |f: &&FdView| {
        let socket = view.tcp.get(&f.stat.ino);
        socket.is_some_and(|s| {
            s.net == own.net && s.state == state::LISTEN && s.local.port() == own.remote.port()
        })
    };
    for listening in view.fds().filter(listens) {
        let held = fetch(listening)?;
        let all = Sockets::get().and_then(|s| s.at_tcp(held.as_fd()));
        let mine = |e: &Embryo| e.remote == Some(own.local);
        if let Some(embryo) = all.and_then(|all| all.into_iter().find(mine)) {
            return Ok(embryo.got.concat());
        }
    }
    Err(untold(fd).refuse())
}

/// What cannot be seen where the kernel grants no look.
pub(super) fn untold(fd: &FdView) -> Blocker {
    fd.blocker()
        .why("a connection was not accepted yet and has got data already, which cannot be read")
        .remedy("let the program accept it first")
}

/// What keeps a socket in this state from being carried.
pub(super) fn obstacle(fd: &FdView, held: BorrowedFd<'_>, now: u8, view: &View) -> Option<Blocker> {
    if now == state::SYN_SENT {
        return None;
    }
    let remote = sys::socket_name(held, true).unwrap_or_default();
    let to = readable(&remote);
    if !known(now) {
        let why = format!("a connection to {to} is just being made");
        return Some(
            fd.blocker()
                .passing()
                .why(why)
                .remedy("try again when it is established or has failed"),
        );
    }
    if socket::urgent(held) {
        let why = "out-of-band data waits in it, which cannot be put there again";
        return Some(fd.blocker().why(why).remedy("let the program read it first"));
    }
    match far(fd, now, inet_address(&remote), view) {
        Far::Inside | Far::Closed => None,
        Far::Waiting(unread)
            if matches!(now, state::ESTABLISHED | state::FIN_WAIT2)
                && (unread == 0 || Sockets::get().is_some()) =>
        {
            None
        }
        // The kernel may put off the acknowledgement for some 40 ms.
        Far::Waiting(_) if !matches!(now, state::ESTABLISHED | state::FIN_WAIT2) => Some(
            fd.blocker()
                .passing()
                .why(format!(
                    "its other end {to} was not accepted yet, and has not acknowledged that this one was shut"
                ))
                .remedy("try again in a moment, or let the program accept it first"),
        ),
        Far::Waiting(_) => Some(
            fd.blocker()
                .why(format!(
                    "its other end {to} was not accepted yet and has got data already, which cannot be read"
                ))
                .remedy("let the program accept it first"),
        ),
        Far::Outside => outside(fd, held, &to, view),
    }
}

/// What keeps a connection to outside from being carried.
fn outside(fd: &FdView, held: BorrowedFd<'_>, to: &str, view: &View) -> Option<Blocker> {
    if view.ends.cut(fd) || view.ends.tcp && !view.ends.kill {
        return None;
    }
    if view.ends.kill {
        if undelivered(fd, held, view) {
            // What was on its way just then arrives in a moment, and the end of it too.
            let blocker = fd.blocker().passing().why(format!(
                "its other end {to} was closed before all that it had sent could be delivered, and nobody can read that"
            ));
            return Some(blocker.remedy("let the program read first, or give the connection up (--cut)"));
        }
        // Asking for a table tells whether there can be one.
        let e = wire::is_held("freeze").err()?;
        let why = format!(
            "its other end {to} is outside, and the wire cannot be held shut meanwhile (nf_tables: {})",
            e.desc()
        );
        return Some(
            fd.blocker()
                .why(why)
                .remedy("load the module nf_tables, or give the connection up (--cut)"),
        );
    }
    let peer = view.tcp_peer(fd.stat.ino);
    let holder = peer
        .and_then(|p| view.outside.get(&socket_link(p)))
        .and_then(|h| h.first());
    let (by, with) = match (holder, peer) {
        (Some(h), _) => (
            format!(
                "is held outside the checkpoint, by pid {} ({}) as fd {}",
                h.pid, h.command, h.fd
            ),
            format!(", or freeze that process too (--also-freeze {})", h.pid),
        ),
        (None, Some(_)) => (
            "is held outside the checkpoint, by a process that cannot be seen".to_owned(),
            String::new(),
        ),
        (None, None) => (
            "is on another machine, or held by nobody, and would notice the gap".to_owned(),
            String::new(),
        ),
    };
    Some(
        fd.blocker()
            .why(format!("its other end {to} {by}"))
            .remedy(format!(
                "end the processes with the checkpoint (--kill), which carries it; or record it all the same \
         (--tcp-established), or give it up (--cut){with}"
            )),
    )
}

/// Whether the other end is held by nobody, still has something to send, and ends with the network that it is in.
fn undelivered(fd: &FdView, held: BorrowedFd<'_>, view: &View) -> bool {
    let Some(own) = view.tcp.get(&fd.stat.ino) else {
        return false;
    };
    let other =
        |n: &Nobodys| n.ends.net == own.net && n.ends.local == own.remote && n.ends.remote == own.local;
    let dying = |net: OwnedFd| namespaces::ends_with(Kind::Net, &net, view);
    view.tcp_nobodys.iter().any(other) && sys::ns::of_socket(held).is_ok_and(dying)
}

fn known(now: u8) -> bool {
    state::fin_sent(now) || state::fin_received(now) || now == state::ESTABLISHED
}

/// Whether an address is one of this machine's own: only those can be bound to.
pub(super) fn on_this_machine(address: IpAddr) -> bool {
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
        let now = tcp::info(held.as_fd()).on("getsockopt(TCP_INFO)", name)?.state;
        let outside = matches!(far(fd, now, inet_address(&remote), from.view), Far::Outside);
        let cut = outside && from.view.ends.cut(fd);
        let local = sys::socket_name(held.as_fd(), false).on("getsockname", name)?;
        let mut hold = None;
        if let (true, Some(local), Some(remote)) = (
            outside && !cut && from.view.ends.kill,
            inet_address(&local),
            inet_address(&remote),
        ) {
            // Before it is read: what arrives later must come again after the restore, so it must not be answered.
            let name = hold_name(from.draft.id());
            let (view, net) = (from.view, sys::ns::of_socket(held.as_fd()));
            let dying = || net.is_ok_and(|net| namespaces::ends_with(Kind::Net, &net, view));
            from.process.hold(&name, wire::Ends { local, remote }, dying)?;
            hold = Some(name);
        }
        let told = |e: Errno| {
            match e {
            Errno::ENODATA => fd
                .blocker()
                .why("out-of-band data was taken from the midst of what waits, and the kernel lets nobody look past it (Linux 6.9)")
                .remedy("let the program read it first")
                .refuse(),
            e => Error::kernel(call, name(), e),
        }
        };
        let stream = match (from.shared.streams.remove(&fd.stat.ino), other) {
            (Some(known), _) => known,
            (None, Some(other)) => {
                let (stream, theirs) = tcp::read_both(held.as_fd(), fetch(other)?.as_fd()).map_err(told)?;
                from.shared.streams.insert(other.stat.ino, theirs);
                stream
            }
            (None, None) => tcp::read(held.as_fd()).map_err(told)?,
        };
        let seen = socket::poll(held.as_fd()).on("poll", name)?;
        if !cut {
            from.process.silence(held);
        }
        Ok(Connection {
            deaf: seen & libc::POLLRDHUP != 0 && !stream.fin_received,
            outside,
            hold,
            cut,
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
            deaf: false,
            outside: false,
            hold: None,
            cut: false,
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

    /// Adds what is in its way.
    pub(super) fn precheck(&self, local: &[u8], out: &mut Vec<Blocker>) {
        let missing = inet_address(local).filter(|a| self.outside && !on_this_machine(a.ip()));
        if let Some(address) = missing {
            out.push(
                Blocker::at(address.to_string(), "the local end of a connection")
                    .why("this machine does not have the address")
                    .remedy("give it the address (ip address add)"),
            );
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
            if self.outside {
                // The other end may be on this machine, closed, and still at work on what it has to say.
                forget(a, b);
            } else {
                clear(a, b);
            }
        }
        if base.connects_late() && !put_off(fd, &remote).on("trying TCP_FASTOPEN_CONNECT", name)? {
            socket::set_option(fd, libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT, 1)
                .on("setsockopt(TCP_FASTOPEN_CONNECT)", name)?;
        }
        tcp::write(fd, local, &remote, &self.stream()).on("making a connection (TCP_REPAIR)", name)?;
        // Before the first segment arrives: it would be answered as the room for the queues allows.
        base.give_window(fd)?;
        if self.peer.is_none() && !self.outside {
            let domain = i32::from(u16::from_ne_bytes(*local.first_chunk().unwrap_or(&[0, 0])));
            let ghost = sys::socket(domain, libc::SOCK_STREAM, libc::IPPROTO_TCP).on("socket", name)?;
            let mirrored = self.mirrored();
            tcp::write(ghost.as_fd(), &remote, local, &mirrored)
                .on("making the closed end of a connection", name)?;
            nest.state::<Made>().ghosts.insert(base.number, (ghost, mirrored));
        }
        Ok(())
    }

    /// Lets it go on, now that the other end is there; one to outside only gets ready.
    pub(super) fn finish(&self, base: &Base, local: &Bytes, placed: Placed, nest: &mut Nest) -> Result<()> {
        let name = || base.label();
        let ghost = nest.state::<Made>().ghosts.remove(&base.number);
        let fd = nest.file(placed.id)?;
        if self.outside {
            base.give_connected_options(fd)?;
            base.give_filter(fd)?;
            let fd = fd.try_clone_to_owned().on("fcntl(F_DUPFD)", name)?;
            let all = nest.state::<Outside>();
            if let Some(name) = &self.hold {
                let net = sys::ns::of_socket(fd.as_fd()).on("ioctl(SIOCGSKNS)", || base.label())?;
                let inode = sys::dev_ino(&net).on("fstat", || base.label())?.1;
                all.holds.insert((name.clone(), inode), net);
            }
            all.waiting.push(Departure {
                fd,
                connection: self.clone(),
                base: base.clone(),
                local: local.clone(),
            });
            return Ok(());
        }
        tcp::start(fd, &self.stream(), base.corked()).on("starting a connection (TCP_REPAIR)", name)?;
        base.give_connected_options(fd)?;
        base.give_filter(fd)?;
        if let Some((ghost, stream)) = ghost {
            tcp::start(ghost.as_fd(), &stream, false).on("starting a connection (TCP_REPAIR)", name)?;
            // It closes as the other end did, and lingers as that did.
            drop(ghost);
        }
        socket::shutdown(fd, self.shut()).on("shutdown", name)?;
        Ok(())
    }

    /// The halves that the program has shut.
    fn shut(&self) -> u8 {
        u8::from(self.deaf) | u8::from(self.fin_sent) << 1
    }

    /// Goes on with a connection to outside, whose wire is open again.
    fn depart(&self, fd: BorrowedFd<'_>, base: &Base, local: &[u8]) -> nix::Result<()> {
        let plain = |a: &[u8]| inet_address(a).map(|a| SocketAddr::new(a.ip().to_canonical(), a.port()));
        let (Some(to), Some(from)) = (plain(local), plain(&self.remote.0)) else {
            return Err(Errno::EINVAL);
        };
        let acknowledged = self.send_next.wrapping_sub(self.written.0.len() as u32);
        if self.cut {
            tcp::start_mute(fd)?;
            inject_segment(from, to, self.receive_next, acknowledged, RST_ACK)?;
            return until(fd, |now| now == state::CLOSE);
        }
        tcp::start(fd, &self.stream(), base.corked())?;
        // Leaving repair mode has changed SO_REUSEADDR.
        base.give_connected_options(fd).map_err(|_| Errno::EINVAL)?;
        socket::shutdown(fd, self.shut())?;
        if self.fin_received {
            // The other end has sent it, and was told that it arrived.
            inject_segment(from, to, self.receive_next, acknowledged, FIN_ACK)?;
            return until(fd, |now| state::fin_received(now) || now == state::CLOSE);
        }
        Ok(())
    }
}

/// Whether connect(2) to there would wait for what is written first, as it does where the kernel knows what to show
/// (TCP_FASTOPEN_CONNECT): then no connection can be made that has this option.
fn put_off(like: BorrowedFd<'_>, remote: &[u8]) -> nix::Result<bool> {
    let domain = socket::option(like, libc::SOL_SOCKET, libc::SO_DOMAIN)?;
    let alone = socket::option(like, libc::IPPROTO_TCP, sockopt::TCP_FASTOPEN_NO_COOKIE)?;
    let trial = sys::socket(domain, libc::SOCK_STREAM, libc::IPPROTO_TCP)?;
    let trial = trial.as_fd();
    // Nothing is sent in this mode.
    socket::set_option(trial, libc::IPPROTO_TCP, libc::TCP_REPAIR, 1)?;
    socket::set_option(trial, libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT, 1)?;
    socket::set_option(trial, libc::IPPROTO_TCP, sockopt::TCP_FASTOPEN_NO_COOKIE, alone)?;
    let done = sys::socket_to(trial, true, remote);
    Ok(done.is_err() || tcp::info(trial)?.state != state::ESTABLISHED)
}

/// Waits until a segment that was put into the way has arrived.
fn until(fd: BorrowedFd<'_>, arrived: impl Fn(u8) -> bool) -> nix::Result<()> {
    let began = Instant::now();
    while !arrived(tcp::info(fd)?.state) {
        if began.elapsed() > Duration::from_secs(2) {
            return Err(Errno::ETIMEDOUT);
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}

/// By which name nf_tables holds the wires of a checkpoint shut.
pub(super) fn hold_name(id: &crate::store::CheckpointId) -> String {
    format!("freeze-{id}")
}

/// Lets go of the connections that are held shut for a checkpoint; tells whether there were any.
pub fn release(id: &crate::store::CheckpointId) -> Result<bool> {
    let name = hold_name(id);
    let mut found = wire::release(&name).on("deleting a table of nf_tables", || name.clone())?;
    for net in namespaces::visible(Kind::Net) {
        let release = || wire::release(&name);
        found |= sys::ns::within(&[net.as_fd()], release)
            .and_then(|r| r)
            .unwrap_or(false);
    }
    Ok(found)
}

/// The last step of a restore: the wires to outside are opened, and their connections go on.
pub fn depart(nest: &mut Nest) {
    let Outside { holds, waiting, .. } = nest.state::<Outside>();
    let (holds, waiting) = (std::mem::take(holds), std::mem::take(waiting));
    for ((name, _), net) in holds {
        // One that was made anew has let in nothing so far.
        let open = || Ok(wire::release(&name)? | wire::release(netns::SHUT)?);
        match sys::ns::within(&[net.as_fd()], open).and_then(|r| r) {
            Ok(true) => {}
            Ok(false) => nest.warnings.push(format!(
                "connections to outside were not held shut since the checkpoint ({name} is gone): the other ends may have \
                 given up"
            )),
            Err(e) => nest
                .warnings
                .push(format!("connections to outside are still held shut ({name}): {}", e.desc())),
        }
    }
    for one in waiting {
        let go = || one.connection.depart(one.fd.as_fd(), &one.base, &one.local.0);
        let net = sys::ns::of_socket(one.fd.as_fd());
        if let Err(e) = net
            .and_then(|net| sys::ns::within(&[net.as_fd()], go))
            .and_then(|r| r)
        {
            let to = readable(&one.connection.remote.0);
            nest.warnings.push(format!(
                "{}: the connection to {to} does not go on: {}",
                one.base.label(),
                e.desc()
            ));
        }
    }
}

/// Has a connection that was on its way set out again by [`set_out`].
pub(super) fn later(fd: OwnedFd, remote: &Bytes, name: String, nest: &mut Nest) {
    let remote = remote.clone();
    nest.state::<Outside>()
        .setting_out
        .push(SettingOut { fd, remote, name });
}

/// Connections that were on their way set out again, now that networks let in what answers them.
pub fn set_out(nest: &mut Nest) {
    for one in std::mem::take(&mut nest.state::<Outside>().setting_out) {
        if let Err(e) = super::connect(one.fd.as_fd(), &one.remote.0, false) {
            nest.warnings
                .push(format!("{}: it cannot be made any more: {}", one.name, e.desc()));
        }
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
pub(super) fn clear(local: SocketAddr, remote: SocketAddr) {
    forget(local, remote);
    forget(remote, local);
}

/// The same of one of its ends.
fn forget(local: SocketAddr, remote: SocketAddr) {
    let plain = |a: SocketAddr| SocketAddr::new(a.ip().to_canonical(), a.port());
    // If there is none, or it cannot be removed, connecting tells.
    let _ = crate::observe::peers::forget_tcp(plain(local), plain(remote));
}
