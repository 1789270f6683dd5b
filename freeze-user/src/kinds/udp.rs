//! UDP, UDP-Lite, raw and ping sockets: addresses, options, groups, and for UDP what has arrived.

use super::pipe::Bytes;
use super::socket::{Base, bind, bind_probe, chosen, fetch, held_outside, inet_address, whole_queue};
use super::{FdKind, Placed, Source};
use crate::error::{Blocker, Context, Result, errno};
use crate::ids::FileId;
use crate::nest::{Nest, Options};
use crate::observe::peek::arrived::Sockets;
use crate::observe::peers::{inet_sockets, shut_halves};
use crate::observe::view::{FdView, View};
use crate::sys::datagram::{Loopback, address_of, inject};
use crate::sys::multicast::{self, Membership};
use crate::sys::{self, socket, sockopt};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

#[derive(Debug)]
pub struct Udp;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub base: Base,
    /// `AF_INET` or `AF_INET6`.
    pub domain: i32,
    /// `SOCK_DGRAM` or `SOCK_RAW`.
    pub kind: i32,
    pub protocol: i32,
    /// The address it is bound to, if any.
    pub local: Option<Bytes>,
    /// The only one it hears, and sends to if not told otherwise.
    pub remote: Option<Bytes>,
    pub groups: Vec<Membership>,
    /// The device to which it sends multicasts of IPv4, if it was given one and freeze may look; 0 for none.
    #[serde(default)]
    pub multicast_device: u32,
    /// Anycast addresses of IPv6 that it shares in, with their devices, the last first, if freeze may look.
    #[serde(default)]
    pub anycast: Vec<(u32, Ipv6Addr)>,
    pub queue: Vec<Datagram>,
    /// Halves that are shut: 1 receiving, 2 sending.
    pub shutdown: u8,
}

/// One datagram that has arrived and was not read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Datagram {
    pub from: Bytes,
    pub data: Bytes,
}

/// What of a socket's state cannot be carried.
fn obstacle(fd: &FdView, held: BorrowedFd<'_>) -> Option<Blocker> {
    const UDP_ENCAP: i32 = 100;
    let option = |name| socket::option(held, libc::IPPROTO_UDP, name).unwrap_or(0);
    if is_udp(fd) && option(UDP_ENCAP) != 0 {
        return Some(
            fd.blocker()
                .why("the kernel unpacks another protocol from it")
                .remedy("close the tunnel first"),
        );
    }
    if is_udp(fd) && corked(held) {
        return Some(
            fd.blocker()
                .why("a datagram is being put together (UDP_CORK or MSG_MORE)")
                .remedy("let the program send it first"),
        );
    }
    if let Some(blocker) = chosen(fd, held) {
        return Some(blocker);
    }
    let waits = socket::poll(held).is_ok_and(|seen| seen & libc::POLLIN != 0);
    if waits && !is_udp(fd) {
        let why = "packets wait in its queue, which cannot be put there again";
        return Some(fd.blocker().why(why).remedy("let the program read them first"));
    }
    None
}

/// Whether anything but the device, which is not told, shows that it sends to groups.
fn speaks_to_groups(held: BorrowedFd<'_>) -> bool {
    let usual = [
        (libc::IP_MULTICAST_IF, 0),
        (libc::IP_MULTICAST_TTL, 1),
        (libc::IP_MULTICAST_LOOP, 1),
    ];
    let unusual = |(name, usual)| socket::option(held, libc::IPPROTO_IP, name).is_ok_and(|v| v != usual);
    usual.into_iter().any(unusual)
}

/// Whether a datagram is being put together (UDP_CORK, MSG_MORE). What is on its way counts as unsent too, and may for
/// seconds: so long a neighbour is asked for that does not answer.
fn corked(held: BorrowedFd<'_>) -> bool {
    let unsent = || sys::ioctl_int(held, libc::TIOCOUTQ).is_ok_and(|n| n > 0);
    if !unsent() {
        return false;
    }
    let known = Sockets::get().and_then(|sockets| sockets.corked(held));
    known.unwrap_or_else(|| {
        (0..20).all(|_| {
            std::thread::sleep(Duration::from_millis(1));
            unsent()
        })
    })
}

fn is_udp(fd: &FdView) -> bool {
    fd.protocol.starts_with("UDP")
}

impl FdKind for Udp {
    const TAG: &'static str = "datagram-socket";
    const VERSION: u16 = 1;
    const ABOUT: &'static str = "UDP and UDP-Lite sockets (IPv4, IPv6) with addresses, options, multicast groups and the \
        datagrams in their queues; raw and ping sockets with an empty queue; errors that were not told yet are lost; refused: a \
        datagram that is being put together (UDP_CORK, MSG_MORE)";
    type Record = Record;

    fn claims(fd: &FdView) -> bool {
        matches!(
            fd.protocol.as_str(),
            "UDP" | "UDPv6" | "UDP-Lite" | "UDPLITEv6" | "RAW" | "RAWv6" | "PING" | "PINGv6"
        )
    }

    fn verdict(fd: &FdView, view: &View, out: &mut Vec<Blocker>) {
        held_outside(fd, view, out);
        if let Ok(held) = fetch(fd) {
            out.extend(obstacle(fd, held.as_fd()));
            if speaks_to_groups(held.as_fd()) {
                // To learn how to look takes a while, which the pause shall not.
                Sockets::get();
            }
        }
    }

    fn collect(fd: &FdView, from: &mut Source<'_>) -> Result<Record> {
        let held = from.process.fd(fd.fd)?;
        let held = held.as_fd();
        let name = || fd.label();
        if let Some(blocker) = obstacle(fd, held) {
            return Err(blocker.refuse());
        }
        let number = |option| socket::option(held, libc::SOL_SOCKET, option).on("getsockopt", name);
        let (domain, kind) = (number(libc::SO_DOMAIN)?, number(libc::SO_TYPE)?);
        let protocol = number(libc::SO_PROTOCOL)?;
        let mut sets = vec![&sockopt::GENERAL, &sockopt::IP, &sockopt::IP_MULTICAST];
        let remote = sys::socket_name(held, true).ok();
        let remote = remote.or_else(|| peer_without_port(fd, domain)).map(Bytes);
        if domain == libc::AF_INET6 {
            sets.extend([&sockopt::IPV6, &sockopt::IPV6_MULTICAST]);
        }
        if domain == libc::AF_INET6 && remote.is_none() {
            sets.push(&sockopt::IPV6_UNCONNECTED);
        }
        match (kind, protocol) {
            (libc::SOCK_RAW, _) if domain == libc::AF_INET => {
                sets.extend([&sockopt::RAW, &sockopt::ICMP_FILTER])
            }
            (libc::SOCK_RAW, _) => sets.extend([&sockopt::RAW_IPV6, &sockopt::ICMPV6_FILTER]),
            (_, libc::IPPROTO_UDP) => sets.extend([&sockopt::UDP, &sockopt::PROCESSOR]),
            (_, libc::IPPROTO_UDPLITE) => {
                sets.extend([&sockopt::UDP, &sockopt::UDPLITE, &sockopt::PROCESSOR])
            }
            _ => {}
        }
        let local = sys::socket_name(held, false).on("getsockname", name)?;
        let mut queue = Vec::new();
        if is_udp(fd) {
            let seen = match whole_queue(held) {
                Err(Errno::EAGAIN) => {
                    let why = "a look at its queue would take the error that it has yet to tell";
                    let remedy = "let the program be told it first";
                    return Err(fd.blocker().why(why).remedy(remedy).refuse());
                }
                seen => seen.on("recvmsg(MSG_PEEK)", name)?,
            };
            for message in seen {
                queue.push(Datagram {
                    from: Bytes(message.name),
                    data: Bytes(message.data),
                });
            }
        }
        let seen = socket::poll(held).on("poll", name)?;
        let shutdown = match (seen & libc::POLLHUP != 0, seen & libc::POLLRDHUP != 0) {
            (true, _) => 3,
            (_, true) => 1,
            _ if is_udp(fd) => shut(fd, protocol, from),
            _ => 0,
        };
        Ok(Record {
            base: Base::collect(fd, held, &sets, from)?,
            domain,
            kind,
            protocol,
            local: bound(&local, kind).then_some(Bytes(local)),
            remote,
            groups: multicast::read(held, domain == libc::AF_INET6)
                .on("looking for multicast groups", name)?,
            multicast_device: match speaks_to_groups(held) {
                true => Sockets::get().and_then(|s| s.multicast_device(held)).unwrap_or(0),
                false => 0,
            },
            anycast: match domain == libc::AF_INET6 && multicast::any_anycast() {
                true => Sockets::get().and_then(|s| s.anycast(held)).unwrap_or_default(),
                false => Vec::new(),
            },
            queue,
            shutdown,
        })
    }

    fn precheck(record: &Record, _: &Options, out: &mut Vec<Blocker>) {
        if let Some(local) = &record.local {
            let made = sys::socket(record.domain, record.kind, record.protocol);
            if made.as_ref().err() == Some(&Errno::EACCES) && record.echo() {
                // The machine would have to allow it for the trial, and others with it.
                return;
            }
            bind_probe(&record.base, made, record.kind, &local.0, out);
        }
    }

    fn members(_: &Record) -> Vec<FileId> {
        Vec::new()
    }

    fn restore(record: &Record, nest: &mut Nest) -> Result<OwnedFd> {
        let name = || record.base.label();
        let fd = make(record).on("socket", name)?;
        record.base.give_owner(fd.as_fd())?;
        record.base.give_early_options(fd.as_fd())?;
        let apart = record.shares_port() && !record.queue.is_empty();
        if apart {
            fill_apart(record, fd.as_fd(), nest)?;
        }
        if let Some(local) = &record.local {
            bind(fd.as_fd(), &local.0).on("bind", name)?;
            record.base.give_chooser(fd.as_fd(), &mut nest.warnings)?;
        }
        if !record.queue.is_empty() && !apart {
            fill(record, fd.as_fd(), nest)?;
        }
        if let Some(remote) = &record.remote {
            sys::socket_to(fd.as_fd(), true, &remote.0).on("connect", name)?;
        }
        record.base.give_options(fd.as_fd())?;
        record.give_multicast_device(fd.as_fd())?;
        for group in &record.groups {
            multicast::join(fd.as_fd(), group).on("setsockopt(MCAST_JOIN_GROUP)", || {
                format!("{}: {}", name(), group.group)
            })?;
        }
        for (device, address) in record.anycast.iter().rev() {
            multicast::share(fd.as_fd(), *device, *address).on("setsockopt(IPV6_JOIN_ANYCAST)", || {
                format!("{}: {address}", name())
            })?;
        }
        record.base.give_filter(fd.as_fd())?;
        match socket::shutdown(fd.as_fd(), record.shutdown) {
            // Only what is connected can be shut down without a complaint; it is done all the same.
            Ok(()) | Err(Errno::ENOTCONN) => Ok(fd),
            Err(e) => Err(e).on("shutdown", name),
        }
    }

    fn finish(_: &Record, _: Placed, _: &mut Nest) -> Result<()> {
        Ok(())
    }
}

/// Which halves are shut, as far as the kernel tells: asked once for all sockets of a network and protocol.
fn shut(fd: &FdView, protocol: i32, from: &mut Source<'_>) -> u8 {
    let network = std::fs::metadata("/proc/thread-self/ns/net").map_or(0, |n| n.ino());
    let known = from.shared.shut.entry((network, protocol));
    let known = known.or_insert_with(|| shut_halves(protocol).unwrap_or_default());
    known.get(&fd.stat.ino).copied().unwrap_or(0)
}

/// The peer of a raw or ping socket, which getpeername(2) does not tell since it has no port.
fn peer_without_port(fd: &FdView, domain: i32) -> Option<Vec<u8>> {
    let table = match fd.protocol.as_str() {
        "RAW" => "raw",
        "RAWv6" => "raw6",
        "PING" => "icmp",
        "PINGv6" => "icmp6",
        _ => return None,
    };
    let remote = inet_sockets(table).get(&fd.stat.ino)?.remote;
    let remote = match remote.ip() {
        IpAddr::V4(ip) if domain == libc::AF_INET6 => SocketAddr::new(ip.to_ipv6_mapped().into(), 0),
        _ => SocketAddr::new(remote.ip(), 0),
    };
    (!remote.ip().is_unspecified()).then(|| address_of(remote, false))
}

impl Record {
    fn give_multicast_device(&self, fd: BorrowedFd<'_>) -> Result<()> {
        if self.multicast_device == 0 {
            return Ok(());
        }
        let mut address = [0; 4];
        let name = || format!("{}: device {}", self.base.label(), self.multicast_device);
        sys::getsockopt(fd, libc::IPPROTO_IP, libc::IP_MULTICAST_IF, &mut address)
            .on("getsockopt(IP_MULTICAST_IF)", name)?;
        // struct ip_mreqn: no group, the address as it is, the device.
        let request = [[0; 4], address, self.multicast_device.to_ne_bytes()].concat();
        sys::setsockopt(fd, libc::IPPROTO_IP, libc::IP_MULTICAST_IF, &request)
            .on("setsockopt(IP_MULTICAST_IF)", name)
    }

    /// Whether it may be one of several that share a port and what comes to it (SO_REUSEPORT).
    fn shares_port(&self) -> bool {
        let shared = |o: &sockopt::SocketOption| (o.level, o.name) == (libc::SOL_SOCKET, libc::SO_REUSEPORT);
        let mut set = self.base.options.iter().filter(|o| shared(o));
        self.local.is_some() && set.any(|o| o.value.first().is_some_and(|b| *b != 0))
    }

    /// Whether it asks for echoes.
    fn echo(&self) -> bool {
        self.kind == libc::SOCK_DGRAM && matches!(self.protocol, libc::IPPROTO_ICMP | libc::IPPROTO_ICMPV6)
    }
}

/// A socket of this sort. Who may ask for echoes without being root is up to the machine (`ping_group_range`), and may
/// have been decided otherwise when this one was made: then freeze lets itself for as long as that takes.
fn make(record: &Record) -> nix::Result<OwnedFd> {
    const RANGE: &str = "/proc/sys/net/ipv4/ping_group_range";
    let make = || sys::socket(record.domain, record.kind, record.protocol);
    let made = make();
    if made.as_ref().err() != Some(&Errno::EACCES) || !record.echo() {
        return made;
    }
    let group = nix::unistd::getegid();
    // Two at once would each take the other's for what it was.
    let alone = std::fs::File::open(RANGE).map_err(errno)?;
    sys::flock(alone.as_fd(), libc::LOCK_EX)?;
    let before = std::fs::read_to_string(RANGE).map_err(errno)?;
    std::fs::write(RANGE, format!("{group} {group}")).map_err(errno)?;
    let made = make();
    std::fs::write(RANGE, before).map_err(errno)?;
    made
}

/// Whether an address was bound to. A raw socket shows its protocol where others have the port.
fn bound(local: &[u8], kind: i32) -> bool {
    inet_address(local).is_some_and(|a| !a.ip().is_unspecified() || a.port() != 0 && kind != libc::SOCK_RAW)
}

/// The same before it is bound to a port that it shares: whoever connects leaves those that share it, and does not come back
/// (since Linux 6.13). So it has one of its own meanwhile, which it loses with its last peer.
fn fill_apart(record: &Record, fd: BorrowedFd<'_>, nest: &mut Nest) -> Result<()> {
    let name = || record.base.label();
    let alone = [libc::SO_REUSEPORT, libc::SO_REUSEADDR]
        .map(|option| socket::Meanwhile::set(fd, libc::SOL_SOCKET, option, 0).on("setsockopt", name));
    let mut local = record.local.clone().unwrap_or_default();
    if let Some(port) = local.0.get_mut(2..4) {
        port.fill(0);
    }
    sys::socket_to(fd, false, &local.0).on("bind", name)?;
    fill(record, fd, nest)?;
    drop(alone);
    Ok(())
}

/// Sends everything again that waited. What cannot be had again is lost as datagrams may be, but not in silence.
fn fill(record: &Record, fd: BorrowedFd<'_>, nest: &mut Nest) -> Result<()> {
    const SO_RCVBUFFORCE: i32 = 33;
    let all: usize = record.queue.iter().map(|d| d.data.0.len() + 4096).sum();
    let room = i32::try_from(all.saturating_mul(2)).unwrap_or(i32::MAX / 2);
    let before = socket::option(fd, libc::SOL_SOCKET, libc::SO_RCVBUF)
        .on("getsockopt(SO_RCVBUF)", || record.base.label())?;
    if room > before {
        socket::set_option(fd, libc::SOL_SOCKET, SO_RCVBUFFORCE, room)
            .on("setsockopt(SO_RCVBUFFORCE)", || record.base.label())?;
    }
    // Where it cannot be brought up, what is lost is told of.
    let _up = Loopback::up();
    let mut lost: Vec<(SocketAddr, Errno)> = Vec::new();
    for datagram in &record.queue {
        let Some(from) = inet_address(&datagram.from.0) else {
            continue;
        };
        // Where one did not come, others hardly will.
        let patience = Duration::from_millis(if lost.is_empty() { 2000 } else { 20 });
        let put = put_again(record, datagram, from, fd, patience).and_then(|()| disconnect(fd));
        lost.extend(put.err().map(|e| (from, e)));
    }
    if let Some((from, e)) = lost.first() {
        nest.warnings.push(format!(
            "{}: {} datagram(s) that waited to be read are lost, the first from {from}: {}",
            record.base.label(),
            lost.len(),
            e.desc()
        ));
    }
    disconnect(fd).on("connect(AF_UNSPEC)", || record.base.label())
}

/// Sends one datagram while the socket hears nobody but its sender, so that no other socket of the same port gets it, and
/// nothing comes between.
fn put_again(
    record: &Record,
    datagram: &Datagram,
    from: SocketAddr,
    fd: BorrowedFd<'_>,
    patience: Duration,
) -> nix::Result<()> {
    // One of IPv6 that was connected to an address of IPv4 never hears any other again.
    let foreign = record.domain == libc::AF_INET6 && plain(from).is_ipv4();
    if !foreign {
        sys::socket_to(fd, true, &datagram.from.0)?;
    }
    let mut own = sys::socket_name(fd, false)?;
    if inet_address(&own).is_some_and(|a| a.port() == 0) {
        // Lost with the last peer.
        sys::socket_to(fd, false, &own)?;
        own = sys::socket_name(fd, false)?;
    }
    let mut to = inet_address(&own).ok_or(Errno::EINVAL)?;
    if foreign && to.ip().is_unspecified() {
        to.set_ip(Ipv4Addr::LOCALHOST.into());
    }
    let waiting = memory(fd)?;
    inject(record.protocol, plain(from), plain(to), &datagram.data.0)?;
    // It comes by way of the loopback device, as a rule before the call is over.
    let began = Instant::now();
    while memory(fd)? <= waiting {
        if began.elapsed() > patience {
            return Err(Errno::ETIMEDOUT);
        }
        std::thread::sleep(Duration::from_micros(100));
    }
    Ok(())
}

/// Connects it to nobody: `struct sockaddr` with AF_UNSPEC.
fn disconnect(fd: BorrowedFd<'_>) -> nix::Result<()> {
    sys::socket_to(fd, true, &[0; 16])
}

/// Bytes of memory that the receive queue takes (SK_MEMINFO_RMEM_ALLOC).
fn memory(fd: BorrowedFd<'_>) -> nix::Result<u32> {
    const SO_MEMINFO: i32 = 55;
    let mut bytes = [0; 36];
    sys::getsockopt(fd, libc::SOL_SOCKET, SO_MEMINFO, &mut bytes)?;
    Ok(u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}

/// The address as it shows on the wire.
fn plain(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        IpAddr::V4(ip) => SocketAddr::new(ip.into(), address.port()),
        IpAddr::V6(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_raw_socket_is_not_bound_by_its_protocol() {
        let of = |text: &str| crate::sys::datagram::address_of(text.parse().unwrap(), false);
        assert!(!bound(&of("0.0.0.0:1"), libc::SOCK_RAW));
        assert!(bound(&of("127.0.0.1:1"), libc::SOCK_RAW));
        assert!(bound(&of("0.0.0.0:53"), libc::SOCK_DGRAM));
        assert!(!bound(&of("[::]:0"), libc::SOCK_DGRAM));
    }
}
