//! What the kernel tells of all sockets of freeze's network namespace: who is joined to whom, names, halves that are shut.

use super::sockets::{Socket, ask, inet, request, u16_at, u32_at};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;

/// One unix socket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnixSocket {
    /// `SOCK_STREAM`, `SOCK_DGRAM` or `SOCK_SEQPACKET`.
    pub kind: i32,
    /// Whether it listens.
    pub listening: bool,
    /// Its name as in `sun_path`: a path as it was bound, or a zero and an abstract name; empty for none.
    pub name: Vec<u8>,
    /// Inode and device of the file it is bound to; the device as the kernel keeps it (major in the upper bits).
    pub file: Option<(u64, u64)>,
    /// The inode of its peer; 0 for a peer that nobody holds: it has been closed, or was not accepted yet.
    pub peer: Option<u64>,
    /// The halves that are shut: 1 receiving, 2 sending.
    pub shutdown: u8,
    /// Of a listening one: the inodes of those who wait to be accepted, the first first (0 where it has gone).
    pub waiting: Vec<u64>,
    /// Bytes to be read; of a listening one, how many wait.
    pub unread: u32,
    /// Bytes sent and not read; of a listening one, its backlog.
    pub unsent: u32,
}

/// One TCP or UDP socket that is bound to a port; IPv4 addresses mapped into IPv6 are shown as IPv4.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InetSocket {
    pub local: SocketAddr,
    pub remote: SocketAddr,
    /// As in /proc/net/tcp: 1 established, 10 listening …
    pub state: u8,
    /// The number of its network namespace; 0 for that of freeze.
    pub net: u32,
}

/// All sockets that /proc/net shows in its table `protocol` (`tcp`, `tcp6`, `udp` …), by inode.
pub fn inet_sockets(protocol: &'static str) -> HashMap<u64, InetSocket> {
    let text = std::fs::read_to_string(format!("/proc/thread-self/net/{protocol}")).unwrap_or_default();
    let lines = text.lines().skip(1).filter_map(|line| inet(protocol, line));
    lines
        .filter_map(|(inode, socket)| match socket {
            Socket::Inet {
                local, remote, state, ..
            } if inode != 0 => Some((
                inode,
                InetSocket {
                    local: plain(local),
                    remote: plain(remote),
                    state,
                    net: 0,
                },
            )),
            _ => None,
        })
        .collect()
}

/// A TCP socket that no process holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nobodys {
    pub ends: InetSocket,
    /// Bytes that have arrived and can be read.
    pub unread: u32,
}

/// The TCP sockets of a network namespace, but for what is only kept in memory for a minute (TIME_WAIT).
#[derive(Clone, Debug, Default)]
pub struct TcpTable {
    /// By inode.
    pub held: HashMap<u64, InetSocket>,
    /// Those that no process holds: not accepted yet, or still at work after they were closed.
    pub nobodys: Vec<Nobodys>,
    /// The inodes of those whose segments are signed (TCP_MD5SIG): their keys are shown by sock_diag(7) and nowhere else.
    pub signed: BTreeSet<u64>,
}

impl TcpTable {
    /// By sock_diag(7). A busy server has tens of thousands that are over, of which /proc/net/tcp tells at length; it is read
    /// where the kernel lacks the module tcp_diag, which asking loads where it can be.
    ///
    /// One that is neither bound nor connected is in no list of the kernel's.
    pub fn read() -> TcpTable {
        TcpTable::by_diag().unwrap_or_else(|_| TcpTable::by_text())
    }

    fn by_diag() -> nix::Result<TcpTable> {
        // struct inet_diag_req_v2 after its first byte: protocol, what to show, padding, states, struct inet_diag_sockid.
        const INET_DIAG_INFO: u8 = 2; // keys are shown along with it only
        // From established to closing and, kept apart by the kernel, those that a listening socket has answered to; not
        // TIME_WAIT, nor what is merely bound.
        const STATES: u32 = 0x1ffe & !(1 << TIME_WAIT);
        let mut rest = vec![libc::IPPROTO_TCP as u8, 1 << (INET_DIAG_INFO - 1), 0];
        rest.extend(STATES.to_ne_bytes());
        rest.extend([0; 48]);
        let mut all = Vec::new();
        let mut buffer = vec![0u8; 1 << 16];
        for family in [libc::AF_INET, libc::AF_INET6] {
            let diag = ask(family, &rest)?;
            loop {
                let length = recv(diag.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
                if length == 0 || !messages(&buffer[..length], &mut all, diagnosed)? {
                    break;
                }
            }
        }
        let mut table = TcpTable::default();
        for (inode, (ends, unread, signed)) in all {
            if signed {
                table.signed.insert(inode);
            }
            table.add(inode, ends, unread);
        }
        Ok(table)
    }

    fn by_text() -> TcpTable {
        let mut table = TcpTable::default();
        for name in ["tcp", "tcp6"] {
            let text = std::fs::read_to_string(format!("/proc/thread-self/net/{name}")).unwrap_or_default();
            for line in text.lines().skip(1) {
                // The fifth column: bytes to be sent and to be read.
                let queues = line.split_ascii_whitespace().nth(4);
                let unread = queues.and_then(|q| u32::from_str_radix(q.split_once(':')?.1, 16).ok());
                let Some((
                    inode,
                    Socket::Inet {
                        local, remote, state, ..
                    },
                )) = inet(name, line)
                else {
                    continue;
                };
                let ends = InetSocket {
                    local: plain(local),
                    remote: plain(remote),
                    state,
                    net: 0,
                };
                if state != TIME_WAIT {
                    table.add(inode, ends, unread.unwrap_or(0));
                }
            }
        }
        table
    }

    fn add(&mut self, inode: u64, ends: InetSocket, unread: u32) {
        if inode == 0 {
            self.nobodys.push(Nobodys { ends, unread });
        } else {
            self.held.insert(inode, ends);
        }
    }
}

const TIME_WAIT: u8 = 6;

/// IPv4 addresses that are mapped into IPv6 as IPv4.
fn plain(a: SocketAddr) -> SocketAddr {
    SocketAddr::new(a.ip().to_canonical(), a.port())
}

/// struct inet_diag_msg and its attributes: the inode; the ends, what is to be read, whether it is signed.
fn diagnosed(message: &[u8]) -> Option<(u64, (InetSocket, u32, bool))> {
    const INET_DIAG_MD5SIG: u16 = 18;
    let (family, state) = (message.first()?, *message.get(1)?);
    let end = |port: usize, address: usize| -> Option<SocketAddr> {
        let port = u16::from_be_bytes(*message.get(port..)?.first_chunk()?);
        let bytes: [u8; 16] = *message.get(address..)?.first_chunk()?;
        let ip = match i32::from(*family) {
            libc::AF_INET => IpAddr::from(*bytes.first_chunk::<4>()?),
            _ => IpAddr::from(bytes),
        };
        Some(plain(SocketAddr::new(ip, port)))
    };
    let ends = InetSocket {
        local: end(4, 8)?,
        remote: end(6, 24)?,
        state,
        net: 0,
    };
    let unread = u32_at(message, 56)?;
    let signed = attribute(message, INET_DIAG_MD5SIG).is_some();
    Some((inode_of(message)?, (ends, unread, signed)))
}

/// Bytes of struct inet_diag_msg.
const LENGTH: usize = 72;

fn inode_of(message: &[u8]) -> Option<u64> {
    Some(u64::from(u32_at(message, LENGTH - 4)?))
}

/// The attribute of this kind that follows struct inet_diag_msg.
fn attribute(message: &[u8], wanted: u16) -> Option<&[u8]> {
    let mut attributes = message.get(LENGTH..)?;
    while let (Some(length), Some(kind)) = (u16_at(attributes, 0), u16_at(attributes, 2)) {
        let length = usize::from(length).max(4);
        if kind == wanted {
            return attributes.get(4..length);
        }
        attributes = attributes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    None
}

/// Which halves are shut of the datagram sockets of a protocol in this network namespace, by inode (sock_diag(7)): 1
/// receiving, 2 sending. poll(2) does not tell of the second alone.
pub fn shut_halves(protocol: i32) -> nix::Result<HashMap<u64, u8>> {
    const INET_DIAG_SHUTDOWN: u16 = 8;
    let mut rest = vec![protocol as u8, 0, 0];
    rest.extend(u32::MAX.to_ne_bytes());
    rest.extend([0; 48]);
    let mut all = Vec::new();
    let mut buffer = vec![0u8; 1 << 16];
    let parse = |message: &[u8]| {
        let halves = attribute(message, INET_DIAG_SHUTDOWN)?.first().copied()?;
        Some((inode_of(message)?, halves))
    };
    for family in [libc::AF_INET, libc::AF_INET6] {
        let diag = ask(family, &rest)?;
        loop {
            let length = recv(diag.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            if length == 0 || !messages(&buffer[..length], &mut all, parse)? {
                break;
            }
        }
    }
    Ok(all.into_iter().collect())
}

/// Connections of the local port that nobody holds and that have nothing left to say: FIN_WAIT2 and TIME_WAIT.
pub fn tcp_leftovers(port: u16) -> Vec<(SocketAddr, SocketAddr)> {
    let mut out = Vec::new();
    for table in ["tcp", "tcp6"] {
        let text = std::fs::read_to_string(format!("/proc/thread-self/net/{table}")).unwrap_or_default();
        for (inode, socket) in text.lines().skip(1).filter_map(|line| inet(table, line)) {
            if let (
                0,
                Socket::Inet {
                    local,
                    remote,
                    state: 5 | 6,
                    ..
                },
            ) = (inode, socket)
                && local.port() == port
            {
                out.push((plain(local), plain(remote)));
            }
        }
    }
    out
}

/// Removes a TCP connection that no process holds any more: what is left of it keeps its two ports for a minute.
pub fn forget_tcp(local: SocketAddr, remote: SocketAddr) -> nix::Result<()> {
    const SOCK_DIAG_BY_FAMILY: u16 = 20;
    const SOCK_DESTROY: u16 = 21;
    let family = if local.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    // struct inet_diag_req_v2 after its first byte: protocol, extensions, padding, states; then the two ends.
    let mut rest = vec![libc::IPPROTO_TCP as u8, 0, 0];
    rest.extend(u32::MAX.to_ne_bytes());
    rest.extend(local.port().to_be_bytes());
    rest.extend(remote.port().to_be_bytes());
    for address in [local, remote] {
        let mut bytes = [0u8; 16];
        match address.ip() {
            IpAddr::V4(ip) => bytes[..4].copy_from_slice(&ip.octets()),
            IpAddr::V6(ip) => bytes.copy_from_slice(&ip.octets()),
        }
        rest.extend(bytes);
    }
    // Any device, any cookie.
    rest.extend([0; 4]);
    rest.extend([0xff; 8]);
    let found = answer(SOCK_DIAG_BY_FAMILY, family, &rest)?;
    // struct inet_diag_msg: the kernel also answers with a listening socket that would take the connection.
    let ports = found.get(20..24) == rest.get(7..11);
    let inode = u32_at(&found, 84);
    let (true, Some(0), Some(cookie)) = (ports, inode, found.get(60..68)) else {
        return Err(Errno::EADDRINUSE);
    };
    let end = rest.len() - 8;
    rest[end..].copy_from_slice(cookie);
    let done = answer(SOCK_DESTROY, family, &rest)?;
    match u32_at(&done, 16) {
        Some(0) => Ok(()),
        _ => Err(Errno::EPROTO),
    }
}

/// Asks about, or for the end of, one socket; the answer with its header.
fn answer(kind: u16, family: i32, rest: &[u8]) -> nix::Result<Vec<u8>> {
    const NLMSG_ERROR: u16 = 2;
    let diag = request(kind, NLM_F_REQUEST_ACK, family, rest)?;
    let mut bytes = vec![0u8; 4096];
    let length = recv(diag.as_raw_fd(), &mut bytes, MsgFlags::empty())?;
    bytes.truncate(length);
    match (u16_at(&bytes, 4), u32_at(&bytes, 16)) {
        (Some(NLMSG_ERROR), Some(errno)) if errno != 0 => Err(Errno::from_raw((errno as i32).wrapping_neg())),
        _ => Ok(bytes),
    }
}

const NLM_F_REQUEST_ACK: u16 = 5;

/// One packet socket, as far as getsockopt(2) does not tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PacketSocket {
    /// `TPACKET_V1` to `V3` (0 to 2).
    pub version: u32,
    /// `struct packet_mreq_max` of each membership, as often as it was asked for.
    pub memberships: Vec<Vec<u8>>,
    /// Whether it shares what it hears with others of a group.
    pub fanout: bool,
    pub receive_ring: Option<Ring>,
    pub send_ring: Option<Ring>,
}

/// How a ring of packets is laid out (`struct packet_diag_ring`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ring {
    pub block_size: u32,
    pub blocks: u32,
    pub frame_size: u32,
    pub frames: u32,
    /// Of version 3 only: timeout in ms, room for the user, features.
    pub timeout: u32,
    pub private: u32,
    pub features: u32,
}

impl Ring {
    fn read(bytes: &[u8]) -> Option<Ring> {
        let word = |n: usize| u32_at(bytes, 4 * n);
        Some(Ring {
            block_size: word(0)?,
            blocks: word(1)?,
            frame_size: word(2)?,
            frames: word(3)?,
            timeout: word(4)?,
            private: word(5)?,
            features: word(6)?,
        })
    }

    /// `struct tpacket_req3`, whose beginning is `struct tpacket_req`.
    pub fn request(&self) -> Vec<u8> {
        let words = [
            self.block_size,
            self.blocks,
            self.frame_size,
            self.frames,
            self.timeout,
            self.private,
            self.features,
        ];
        words.into_iter().flat_map(u32::to_ne_bytes).collect()
    }
}

/// All packet sockets by inode; an error where the kernel has no packet_diag.
pub fn packet_sockets() -> nix::Result<HashMap<u64, PacketSocket>> {
    // Information, memberships, rings, fanout.
    const SHOW: u32 = 1 | 2 | 4 | 8;
    // struct packet_diag_req after its first byte: protocol, padding, inode, what to show, cookie.
    let mut rest = vec![0; 3];
    rest.extend(0u32.to_ne_bytes());
    rest.extend(SHOW.to_ne_bytes());
    rest.extend([0; 8]);
    let diag = ask(libc::AF_PACKET, &rest)?;
    let mut out = HashMap::new();
    let mut buffer = vec![0u8; 1 << 16];
    loop {
        let length = recv(diag.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        if length == 0 || !messages(&buffer[..length], &mut out, packet_socket)? {
            return Ok(out);
        }
    }
}

/// struct packet_diag_msg and its attributes.
fn packet_socket(message: &[u8]) -> Option<(u64, PacketSocket)> {
    let inode = u64::from(u32_at(message, 4)?);
    let mut socket = PacketSocket::default();
    let mut rest = message.get(16..)?;
    while let (Some(length), Some(kind)) = (u16_at(rest, 0), u16_at(rest, 2)) {
        let Some(value) = rest.get(4..length as usize) else {
            break;
        };
        // PACKET_DIAG_INFO, MCLIST, RX_RING, TX_RING, FANOUT.
        match kind {
            0 => socket.version = u32_at(value, 4)?,
            1 => {
                // struct packet_diag_mclist: device, count, kind, length of the address, address.
                for one in value.chunks_exact(44) {
                    let request = [&one[..4], &one[8..44]].concat();
                    let count = u32_at(one, 4)? as usize;
                    socket.memberships.extend(std::iter::repeat_n(request, count));
                }
            }
            2 => socket.receive_ring = Ring::read(value),
            3 => socket.send_ring = Ring::read(value),
            4 => socket.fanout = true,
            _ => {}
        }
        rest = rest
            .get((length as usize).next_multiple_of(4)..)
            .unwrap_or_default();
    }
    Some((inode, socket))
}

/// All unix sockets by inode; an error where the kernel has no unix_diag.
pub fn unix_sockets() -> nix::Result<HashMap<u64, UnixSocket>> {
    // Name, file, peer, those waiting, lengths; what the kernel shows of shutdown it shows unasked.
    const SHOW: u32 = 1 | 2 | 4 | 8 | 16;
    let mut rest = vec![0; 3];
    rest.extend(u32::MAX.to_ne_bytes());
    rest.extend(0u32.to_ne_bytes());
    rest.extend(SHOW.to_ne_bytes());
    rest.extend([0; 8]);
    let diag = ask(libc::AF_UNIX, &rest)?;
    let mut out = HashMap::new();
    let mut buffer = vec![0u8; 1 << 16];
    loop {
        let length = recv(diag.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        if length == 0 || !messages(&buffer[..length], &mut out, unix_socket)? {
            return Ok(out);
        }
    }
}

/// Takes the sockets out of one datagram; `false` after the last one.
fn messages<T>(
    mut bytes: &[u8],
    out: &mut impl Extend<(u64, T)>,
    read: impl Fn(&[u8]) -> Option<(u64, T)>,
) -> nix::Result<bool> {
    const NLMSG_ERROR: u16 = 2;
    const NLMSG_DONE: u16 = 3;
    while let (Some(length), Some(kind)) = (u32_at(bytes, 0), u16_at(bytes, 4)) {
        let Some(message) = bytes.get(16..length as usize) else {
            return Err(Errno::EPROTO);
        };
        match kind {
            NLMSG_DONE => return Ok(false),
            NLMSG_ERROR => {
                let errno = u32_at(message, 0).map_or(libc::EPROTO, |e| (e as i32).wrapping_neg());
                return Err(Errno::from_raw(errno));
            }
            _ => out.extend(read(message)),
        }
        bytes = bytes
            .get((length as usize).next_multiple_of(4)..)
            .unwrap_or_default();
    }
    Ok(true)
}

/// struct unix_diag_msg and its attributes.
fn unix_socket(message: &[u8]) -> Option<(u64, UnixSocket)> {
    const TCP_LISTEN: u8 = 10;
    let inode = u64::from(u32_at(message, 4)?);
    let mut socket = UnixSocket {
        kind: i32::from(message[1]),
        listening: message[2] == TCP_LISTEN,
        ..UnixSocket::default()
    };
    let mut rest = message.get(16..)?;
    while let (Some(length), Some(kind)) = (u16_at(rest, 0), u16_at(rest, 2)) {
        let Some(value) = rest.get(4..length as usize) else {
            break;
        };
        // UNIX_DIAG_NAME, VFS, PEER, ICONS, RQLEN, MEMINFO, SHUTDOWN.
        match kind {
            0 => socket.name = value.to_vec(),
            1 => socket.file = Some((u64::from(u32_at(value, 0)?), u64::from(u32_at(value, 4)?))),
            2 => socket.peer = u32_at(value, 0).map(u64::from),
            3 => {
                socket.waiting = value
                    .chunks_exact(4)
                    .filter_map(|w| u32_at(w, 0))
                    .map(u64::from)
                    .collect()
            }
            4 => (socket.unread, socket.unsent) = (u32_at(value, 0)?, u32_at(value, 4)?),
            6 => socket.shutdown = *value.first()?,
            _ => {}
        }
        rest = rest
            .get((length as usize).next_multiple_of(4)..)
            .unwrap_or_default();
    }
    Some((inode, socket))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::{UnixListener, UnixStream};

    fn inode(fd: &impl AsRawFd) -> u64 {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(format!("/proc/self/fd/{}", fd.as_raw_fd()))
            .unwrap()
            .ino()
    }

    #[test]
    fn only_what_nobody_holds_is_forgotten() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap();
        let client = std::net::TcpStream::connect(server).unwrap();
        let (accepted, from) = listener.accept().unwrap();
        assert_eq!(forget_tcp(from, server), Err(Errno::EADDRINUSE));
        assert_eq!(
            forget_tcp("127.0.0.1:1".parse().unwrap(), server),
            Err(Errno::ENOENT)
        );
        // The first to close keeps the ports for a minute.
        drop(client);
        drop(accepted);
        assert_eq!(forget_tcp(from, server), Ok(()));
        assert_eq!(
            forget_tcp(server, from),
            Err(Errno::EADDRINUSE),
            "what listens must not be found for it"
        );
        drop(std::net::TcpStream::connect(server).unwrap());
    }

    #[test]
    fn both_ways_tell_the_same_of_tcp() {
        use std::io::Write;
        use std::net::{Shutdown, TcpListener, TcpStream};
        let mut ports = Vec::new();
        let mut kept = Vec::new();
        for (at, from) in [
            ("127.0.0.1:0", "127.0.0.1"),
            ("[::1]:0", "::1"),
            ("[::]:0", "127.0.0.1"),
        ] {
            let Ok(listener) = TcpListener::bind(at) else {
                continue;
            };
            let port = listener.local_addr().unwrap().port();
            let to = SocketAddr::new(from.parse().unwrap(), port);
            let client = TcpStream::connect(to).unwrap();
            let (server, _) = listener.accept().unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            // This one waits to be accepted, with something to read.
            let mut waiting = TcpStream::connect(to).unwrap();
            waiting.write_all(b"12345").unwrap();
            ports.push(port);
            kept.push((listener, client, server, waiting));
        }
        let ours =
            |ends: &InetSocket| ports.contains(&ends.local.port()) || ports.contains(&ends.remote.port());
        let mut text = TcpTable::default();
        // An end that was shut moves on when the other has said that it heard of it.
        while text.held.is_empty() || text.held.values().any(|ends| ends.state == 4) {
            text = TcpTable::by_text();
            text.held.retain(|_, ends| ours(ends));
        }
        text.nobodys.retain(|n| ours(&n.ends));
        let Ok(mut diag) = TcpTable::by_diag() else { return };
        diag.held.retain(|_, ends| ours(ends));
        diag.nobodys.retain(|n| ours(&n.ends));
        assert_eq!(text.held.len(), 4 * kept.len());
        assert_eq!(text.nobodys.len(), kept.len());
        assert!(text.nobodys.iter().all(|n| n.unread == 5));
        assert_eq!(diag.held, text.held);
        let by_port = |n: &Nobodys| n.ends.local.port();
        text.nobodys.sort_by_key(by_port);
        diag.nobodys.sort_by_key(by_port);
        assert_eq!(diag.nobodys, text.nobodys);
    }

    #[test]
    fn peers_halves_and_waiting_ones_are_told() {
        let path = std::env::temp_dir().join(format!("freeze-peers-{}", std::process::id()));
        let (a, b) = UnixStream::pair().unwrap();
        a.shutdown(std::net::Shutdown::Write).unwrap();
        let listener = UnixListener::bind(&path).unwrap();
        let client = UnixStream::connect(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let all = unix_sockets().unwrap();
        let a_seen = &all[&inode(&a)];
        assert_eq!(
            (a_seen.kind, a_seen.peer, a_seen.shutdown),
            (libc::SOCK_STREAM, Some(inode(&b)), 2)
        );
        assert_eq!(all[&inode(&b)].shutdown, 1);
        let l = &all[&inode(&listener)];
        assert!(l.listening && l.file.is_some());
        assert_eq!(l.waiting, [inode(&client)]);
        assert_eq!(all[&inode(&client)].peer, Some(0));
    }
}
