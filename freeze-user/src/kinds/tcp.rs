//! TCP sockets: listening, bound and fresh ones, and connections within the checkpoint with their queues.

mod connection;
mod failed;

use super::pipe::Bytes;
use super::socket::{Base, bind_probe, chosen, fetch, held_outside, nowhere};
use super::{FdKind, Placed, Source};
use crate::error::{Blocker, Context, Result};
use crate::ids::FileId;
use crate::nest::{Nest, Options};
use crate::observe::peek::arrived::Sockets;
use crate::observe::peers::{Nobodys, forget_tcp, tcp_leftovers};
use crate::observe::view::{FdView, View};
use crate::sys::datagram::address_of;
use crate::sys::tcp::{info, state};
use crate::sys::{self, socket, sockopt};
use connection::Connection;
pub use connection::{depart, release, set_out};
use failed::Failed;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

#[derive(Debug)]
pub struct Tcp;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub base: Base,
    /// `AF_INET` or `AF_INET6`.
    pub domain: i32,
    /// The address it is bound to, as getsockname(2) shows it.
    pub local: Option<Bytes>,
    pub state: State,
    /// Whether what connects by way of it may take several paths (MPTCP).
    #[serde(default)]
    pub multipath: bool,
}

/// What it is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// Nothing yet: fresh, or bound.
    Unconnected,
    Listening {
        backlog: u32,
        /// Those who connected, sent something, and closed before they were accepted: where from, and what.
        #[serde(default)]
        gone: Vec<(Bytes, Bytes)>,
    },
    Connected(Box<Connection>),
    /// To be made anew: on its way, or made and not accepted yet by a socket of the checkpoint.
    Connecting {
        remote: Bytes,
        made: bool,
        /// What was written and has not been read.
        written: Bytes,
        /// Whether nothing more was to be written.
        #[serde(default)]
        fin_sent: bool,
    },
    Failed(Failed),
}

/// What keeps it from being carried; `still`: whether nothing has moved since the kernel's table was read.
fn obstacle(fd: &FdView, held: BorrowedFd<'_>, view: &View, still: bool) -> Option<Blocker> {
    if is_multipath(fd) {
        return (!is_unused(held)).then(|| {
            fd.blocker()
                .why("its connection may take several paths (MPTCP)")
                .remedy("let the program close it first, or start it without (Go: GODEBUG=multipathtcp=0)")
        });
    }
    let info = info(held).ok()?;
    let mut ulp = [0; 16];
    let ulp_len = sys::getsockopt(held, libc::IPPROTO_TCP, libc::TCP_ULP, &mut ulp).unwrap_or(0);
    if ulp_len > 0 && ulp[0] != 0 {
        let name = String::from_utf8_lossy(ulp.split(|b| *b == 0).next().unwrap_or_default()).into_owned();
        return Some(
            fd.blocker()
                .why(format!("the kernel speaks {name} on it"))
                .remedy("let the program close it first"),
        );
    }
    if view.tcp_signed.contains(&fd.stat.ino) {
        return Some(
            fd.blocker()
                .why("its segments are signed (TCP_MD5SIG), and the kernel does not hand out all of the keys")
                .remedy("let the program close it first"),
        );
    }
    if info.state == state::LISTEN
        && let Some(blocker) = chosen(fd, held)
    {
        return Some(blocker);
    }
    match info.state {
        state::LISTEN if info.waiting > 0 && !view.ends.cut(fd) => {
            waiting(fd, still.then_some(info.waiting), view)
        }
        state::LISTEN => None,
        state::CLOSE => failed::obstacle(fd, held),
        now => connection::obstacle(fd, held, now, view),
    }
}

fn is_multipath(fd: &FdView) -> bool {
    fd.protocol.starts_with("MPTCP")
}

/// Whether a socket of MPTCP has never been connected, and nobody waits at it.
fn is_unused(held: BorrowedFd<'_>) -> bool {
    const SOL_MPTCP: i32 = 284;
    const MPTCP_INFO: i32 = 1;
    const FALLBACK: u32 = 1;
    // struct mptcp_info: eight bytes of counts, flags, the token of its connection.
    let mut told = [0; 16];
    let len = sys::getsockopt(held, SOL_MPTCP, MPTCP_INFO, &mut told).unwrap_or(0);
    let word = |at: usize| u32::from_ne_bytes([told[at], told[at + 1], told[at + 2], told[at + 3]]);
    let fresh = len == told.len() && word(8) & FALLBACK == 0 && word(12) == 0;
    fresh
        && info(held).is_ok_and(|i| match i.state {
            state::LISTEN => i.waiting == 0,
            now => now == state::CLOSE,
        })
}

/// What keeps those who wait to be accepted from being carried: they connect anew, if they are of the checkpoint too.
///
/// `count`: how many there are, which a busy socket has more of than the table that was read a moment ago.
fn waiting(fd: &FdView, count: Option<u32>, view: &View) -> Option<Blocker> {
    let of_set = |n: &&Nobodys| {
        let joined = |f: &FdView| {
            let end = view.tcp.get(&f.stat.ino);
            end.is_some_and(|s| s.local == n.ends.remote && s.remote == n.ends.local)
        };
        view.fds().any(joined)
    };
    let own = view.tcp.get(&fd.stat.ino).map(|s| s.local);
    let here = |n: &&Nobodys| {
        matches!(n.ends.state, 1 | 8)
            && own.is_some_and(|l| {
                l.port() == n.ends.local.port() && (l.ip().is_unspecified() || l.ip() == n.ends.local.ip())
            })
    };
    let seen = Sockets::get().is_some();
    let ours = |n: &&Nobodys| of_set(n) || seen && has_gone(n, view);
    let all = || view.tcp_nobodys.iter().filter(here);
    let carried = all().filter(ours).count();
    let count = count.map_or_else(|| all().count(), |c| c as usize);
    (carried < count).then(|| {
        fd.blocker()
            .why(format!(
                "{} of those who connected were not accepted yet and come from outside the checkpoint, or have ended",
                count - carried
            ))
            .remedy("let the program accept them first, or give them up (--cut)")
    })
}

/// Whether the other end of one that waits to be accepted was on this machine and is held by nobody any more.
fn has_gone(waiting: &Nobodys, view: &View) -> bool {
    const CLOSE_WAIT: u8 = 8;
    let ends = &waiting.ends;
    let mut held = view.tcp.values();
    ends.state == CLOSE_WAIT
        && connection::on_this_machine(ends.remote.ip())
        && !held.any(|s| s.net == ends.net && s.local == ends.remote && s.remote == ends.local)
}

/// Those who have connected, sent something and closed, and wait at a listening socket all the same.
fn collect_gone(fd: &FdView, held: BorrowedFd<'_>, waiting: u32, view: &View) -> Result<Vec<(Bytes, Bytes)>> {
    let own = |n: &&Nobodys| {
        view.tcp
            .get(&fd.stat.ino)
            .is_some_and(|l| l.net == n.ends.net && l.local.port() == n.ends.local.port())
            && has_gone(n, view)
    };
    let gone: Vec<SocketAddr> = view
        .tcp_nobodys
        .iter()
        .filter(own)
        .map(|n| n.ends.remote)
        .collect();
    if waiting == 0 || gone.is_empty() || view.ends.cut(fd) {
        return Ok(Vec::new());
    }
    let all = Sockets::get()
        .and_then(|s| s.at_tcp(held))
        .ok_or_else(|| connection::untold(fd).refuse())?;
    let mine = all.into_iter().filter_map(|e| {
        let from = e.remote.filter(|r| gone.contains(r))?;
        let from = match (from.ip(), fd.protocol.as_str()) {
            (std::net::IpAddr::V4(ip), "TCPv6") => (ip.to_ipv6_mapped(), from.port()).into(),
            _ => from,
        };
        Some((Bytes(address_of(from, false)), Bytes(e.got.concat())))
    });
    Ok(mine.collect())
}

/// Connects from there, sends that, and closes; whether it could be from there: the port may be somebody else's by now.
fn come_and_go(domain: i32, from: &Bytes, to: BorrowedFd<'_>, data: &Bytes) -> nix::Result<bool> {
    let client = sys::socket(domain, libc::SOCK_STREAM, libc::IPPROTO_TCP)?;
    let mut way = sys::socket_name(to, false)?;
    if let Some(listens) = super::socket::inet_address(&way)
        && listens.ip().is_unspecified()
    {
        // It listens at every address: the one it came from is as good as the one it came to.
        let there = super::socket::inet_address(&from.0).ok_or(Errno::EINVAL)?;
        way = address_of((there.ip(), listens.port()).into(), false);
    }
    if let (Some(a), Some(b)) = (
        super::socket::inet_address(&from.0),
        super::socket::inet_address(&way),
    ) {
        connection::clear(a, b);
    }
    let bound = match bind_beside(client.as_fd(), &from.0) {
        Err(Errno::EADDRINUSE) => false,
        bound => bound.map(|()| true)?,
    };
    connect(client.as_fd(), &way, true)?;
    let _room = sockopt::Roomy::new(client.as_fd(), data.0.len())?;
    let sent = socket::send(client.as_fd(), &data.0, None, &[], None, 0)?;
    if sent == data.0.len() {
        Ok(bound)
    } else {
        Err(Errno::EAGAIN)
    }
}

/// Binds what is, or was, one of several who have the port: the kernel gives one port to connections to different places,
/// and what was accepted has that of who listens. Asked for by bind(2), it is in use.
fn bind_beside(fd: BorrowedFd<'_>, local: &[u8]) -> nix::Result<()> {
    let _reuse = socket::Meanwhile::set(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1);
    match super::socket::bind_at_once(fd, local) {
        Err(Errno::EADDRINUSE) => {}
        done => return done,
    }
    socket::set_option(fd, libc::IPPROTO_TCP, libc::TCP_REPAIR, 1)?;
    let bound = super::socket::bind_at_once(fd, local);
    socket::set_option(fd, libc::IPPROTO_TCP, libc::TCP_REPAIR, 0)?;
    bound
}

/// An address for people.
fn readable(address: &[u8]) -> String {
    super::socket::inet_address(address).map_or_else(String::new, |a| a.to_string())
}

/// Where a connection that is not made yet leads: getpeername(2) does not tell, the kernel's table does.
fn destination(fd: &FdView, held: BorrowedFd<'_>, view: &View) -> nix::Result<Vec<u8>> {
    match sys::socket_name(held, true) {
        Err(Errno::ENOTCONN) => {
            let remote = view.tcp.get(&fd.stat.ino).ok_or(Errno::ENOTCONN)?.remote;
            let remote = match (remote.ip(), fd.protocol.as_str()) {
                (std::net::IpAddr::V4(ip), "TCPv6") => (ip.to_ipv6_mapped(), remote.port()).into(),
                _ => remote,
            };
            Ok(address_of(remote, false))
        }
        told => told,
    }
}

/// Connects without waiting.
fn connect(fd: BorrowedFd<'_>, to: &[u8], made: bool) -> nix::Result<()> {
    let flags = sys::fcntl(fd, libc::F_GETFL, 0)? as u64;
    sys::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK as u64)?;
    let mut done = sys::socket_to(fd, true, to);
    if made && matches!(done, Ok(()) | Err(Errno::EINPROGRESS)) {
        // Once more, so that it counts as done.
        done = sys::socket_to(fd, true, to);
    }
    sys::fcntl(fd, libc::F_SETFL, flags)?;
    match done {
        Err(Errno::EINPROGRESS | Errno::EALREADY) => Ok(()),
        done => done,
    }
}

impl Record {
    fn make(&self) -> nix::Result<OwnedFd> {
        const IPPROTO_MPTCP: i32 = 262;
        let protocol = if self.multipath {
            IPPROTO_MPTCP
        } else {
            libc::IPPROTO_TCP
        };
        sys::socket(self.domain, libc::SOCK_STREAM, protocol)
    }
}

impl FdKind for Tcp {
    const TAG: &'static str = "tcp-socket";
    const VERSION: u16 = 1;
    const ABOUT: &'static str = "TCP sockets (IPv4, IPv6): listening, bound and fresh ones with address, backlog, owner \
        and options; connections with both ends in the checkpoint, or the other end closed, with both queues and in every \
        state from established to closed; connections to outside: with --kill carried, the wire held shut by nf_tables until \
        the restore, else recorded with --tcp-established; connections on their way, or made and not accepted, are made \
        anew, with what was sent before that where the kernel lets freeze look at it; those that have failed, with the error that \
        is to be told; sockets of MPTCP that are not connected; refused: out-of-band data that was not taken, a closed end with \
        more to say in a network of the checkpoint's own, TLS by the kernel, \
        connections of MPTCP";
    type Record = Record;

    fn claims(fd: &FdView) -> bool {
        matches!(fd.protocol.as_str(), "TCP" | "TCPv6") || is_multipath(fd)
    }

    fn verdict(fd: &FdView, view: &View, out: &mut Vec<Blocker>) {
        held_outside(fd, view, out);
        // It may be gone by now; then it is judged, or missed, once everything stands still.
        let Ok(held) = fetch(fd) else { return };
        out.extend(obstacle(fd, held.as_fd(), view, false));
    }

    fn collect(fd: &FdView, from: &mut Source<'_>) -> Result<Record> {
        let own = from.process.fd(fd.fd)?;
        let held = own.as_fd();
        if let Some(blocker) = obstacle(fd, held, from.view, true) {
            return Err(blocker.refuse());
        }
        // It may have become another since it was made (IPV6_ADDRFORM).
        let domain = socket::option(held, libc::SOL_SOCKET, libc::SO_DOMAIN)
            .on("getsockopt(SO_DOMAIN)", || fd.label())?;
        let info = info(held).on("getsockopt(TCP_INFO)", || fd.label())?;
        let local = sys::socket_name(held, false).on("getsockname", || fd.label())?;
        let multipath = is_multipath(fd);
        let failed = match info.state {
            _ if multipath => None,
            state::CLOSE => failed::collect(fd, held)?,
            _ => None,
        };
        let over = match info.state {
            _ if multipath => None,
            state::CLOSE if failed.is_none() => Connection::collect_over(fd, held)?,
            _ => None,
        };
        let mut sets = vec![
            &sockopt::GENERAL,
            &sockopt::IP,
            &sockopt::IP_STREAM,
            &sockopt::TCP,
        ];
        if domain == libc::AF_INET6 {
            sets.extend([&sockopt::IPV6, &sockopt::IPV6_STREAM]);
        }
        if over.is_none() && failed.is_none() && matches!(info.state, state::LISTEN | state::CLOSE) {
            sets.extend([
                &sockopt::TCP_UNCONNECTED,
                &sockopt::IPV6_UNCONNECTED,
                &sockopt::PROCESSOR,
            ]);
        }
        let base = Base::collect(fd, held, &sets, from)?;
        let state = match over {
            _ if failed.is_some() => failed.map_or(State::Unconnected, State::Failed),
            Some(over) => State::Connected(Box::new(over)),
            None if info.state == state::LISTEN => State::Listening {
                backlog: info.backlog,
                gone: collect_gone(fd, held, info.waiting, from.view)?,
            },
            None if info.state == state::CLOSE => State::Unconnected,
            None if connection::unfinished(fd, held, info.state, from.view) => State::Connecting {
                remote: Bytes(destination(fd, held, from.view).on("getpeername", || fd.label())?),
                made: info.state != state::SYN_SENT,
                written: connection::written(fd, held, info.state, from.view)?,
                fin_sent: state::fin_sent(info.state),
            },
            None => State::Connected(Box::new(Connection::collect(fd, own, from)?)),
        };
        Ok(Record {
            base,
            domain,
            local: (!nowhere(&local)).then_some(Bytes(local)),
            state,
            multipath,
        })
    }

    fn precheck(record: &Record, _: &Options, out: &mut Vec<Blocker>) {
        if let (Some(local), State::Connected(connection)) = (&record.local, &record.state) {
            connection.precheck(&local.0, out);
        }
        if let (Some(local), State::Unconnected | State::Listening { .. }) = (&record.local, &record.state) {
            let made = record.make();
            bind_probe(&record.base, made, libc::SOCK_STREAM, &local.0, out);
        }
    }

    fn members(_: &Record) -> Vec<FileId> {
        Vec::new()
    }

    fn restore(record: &Record, nest: &mut Nest) -> Result<OwnedFd> {
        let name = || record.base.label();
        let fd = record.make().on("socket", name)?;
        record.base.give_owner(fd.as_fd())?;
        if let State::Connected(connection) = &record.state {
            record.base.give_early_options(fd.as_fd())?;
            let local = record.local.as_ref().map_or(&[][..], |l| &l.0);
            connection.restore(fd.as_fd(), &record.base, local, nest)?;
            return Ok(fd);
        }
        record.base.give_options(fd.as_fd())?;
        // A filter may be locked, which nothing can be added to.
        let filtered_late = record.base.chooser.is_some();
        if !filtered_late {
            record.base.give_filter(fd.as_fd())?;
        }
        // One that has failed is bound when all who listen do: it may show the address of one of these.
        let failed = matches!(record.state, State::Failed(_));
        // What is left of old connections does not keep anybody from the port, neither at bind(2) nor at listen(2).
        let reuse = socket::Meanwhile::set(fd.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR, 1);
        let forget = || {
            let local = record
                .local
                .as_ref()
                .and_then(|l| super::socket::inet_address(&l.0));
            for (local, remote) in tcp_leftovers(local.map_or(0, |a| a.port())) {
                // One that has gone by itself meanwhile is no loss.
                let _ = forget_tcp(local, remote);
            }
        };
        if let Some(local) = record.local.as_ref().filter(|_| !failed) {
            let mut bound = super::socket::bind_at_once(fd.as_fd(), &local.0);
            if bound == Err(Errno::EADDRINUSE) {
                forget();
                bound = match record.state {
                    State::Connecting { .. } => bind_beside(fd.as_fd(), &local.0),
                    _ => super::socket::bind(fd.as_fd(), &local.0),
                };
            }
            bound.on("bind", || format!("{}: {}", name(), readable(&local.0)))?;
        }
        if let State::Listening { backlog, .. } = &record.state {
            let mut listening = socket::listen(fd.as_fd(), *backlog as i32);
            if listening == Err(Errno::EADDRINUSE) {
                forget();
                listening = socket::listen(fd.as_fd(), *backlog as i32);
            }
            listening.on("listen", name)?;
            record.base.give_chooser(fd.as_fd(), &mut nest.warnings)?;
        }
        if filtered_late {
            record.base.give_filter(fd.as_fd())?;
        }
        drop(reuse);
        Ok(fd)
    }

    fn finish(record: &Record, placed: Placed, nest: &mut Nest) -> Result<()> {
        match &record.state {
            State::Connected(connection) => {
                let local = record.local.clone().unwrap_or_default();
                connection.finish(&record.base, &local, placed, nest)
            }
            State::Connecting {
                remote,
                made,
                written,
                fin_sent,
            } => {
                let name = || format!("{}: to {}", record.base.label(), readable(&remote.0));
                if !*made {
                    let fd = nest.file(placed.id)?.try_clone_to_owned();
                    let fd = fd.on("fcntl(F_DUPFD)", name)?;
                    connection::later(fd, remote, name(), nest);
                    return Ok(());
                }
                let fd = nest.file(placed.id)?;
                connect(fd, &remote.0, true).on("connect", name)?;
                if !written.0.is_empty() {
                    let _room =
                        sockopt::Roomy::new(fd, written.0.len()).on("setsockopt(SO_SNDBUFFORCE)", name)?;
                    let sent = socket::send(fd, &written.0, None, &[], None, 0).on("send", name)?;
                    if sent != written.0.len() {
                        return Err(Errno::EAGAIN).on("send", name);
                    }
                }
                if *fin_sent {
                    socket::shutdown(fd, 2).on("shutdown", name)?;
                }
                Ok(())
            }
            State::Failed(failed) => {
                let fd = nest.file(placed.id)?;
                failed::restore(failed, fd, record.domain, record.local.as_ref())
                    .on("failing again", || record.base.label())
            }
            State::Listening { gone, .. } => {
                for (from, data) in gone {
                    let name = || format!("{}: a connection from {}", record.base.label(), readable(&from.0));
                    let there = come_and_go(record.domain, from, nest.file(placed.id)?, data)
                        .on("connecting it again", name)?;
                    if !there {
                        let what = format!("{}, which somebody else has now: it shows another", name());
                        nest.warnings.push(what);
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
