//! Datagrams and TCP segments made by hand, so that they come from whom they came before.

use super::socket::send;
use super::{Sys, ioctl_request, socket};
use nix::errno::Errno;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

/// A datagram with its headers, as it travels.
fn packet(protocol: i32, from: SocketAddr, to: SocketAddr, data: &[u8]) -> Sys<Vec<u8>> {
    let length = u16::try_from(8 + data.len()).map_err(|_| Errno::EMSGSIZE)?;
    let mut udp = Vec::with_capacity(length.into());
    udp.extend(from.port().to_be_bytes());
    udp.extend(to.port().to_be_bytes());
    // UDP-Lite has the coverage of its checksum here; 0 is all.
    udp.extend(if protocol == libc::IPPROTO_UDP {
        length.to_be_bytes()
    } else {
        [0, 0]
    });
    udp.extend([0, 0]);
    udp.extend(data);
    wrap(protocol, from.ip(), to.ip(), udp, 6)
}

/// A TCP segment without data or options, with its headers.
fn segment(from: SocketAddr, to: SocketAddr, sequence: u32, acknowledged: u32, flags: u8) -> Sys<Vec<u8>> {
    let mut tcp = Vec::with_capacity(20);
    tcp.extend(from.port().to_be_bytes());
    tcp.extend(to.port().to_be_bytes());
    tcp.extend(sequence.to_be_bytes());
    tcp.extend(acknowledged.to_be_bytes());
    // Five words of header; any window will do.
    tcp.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    wrap(libc::IPPROTO_TCP, from.ip(), to.ip(), tcp, 16)
}

/// Puts the header of IP before that of a protocol, whose checksum lies at `checksum_at`.
fn wrap(protocol: i32, from: IpAddr, to: IpAddr, mut inside: Vec<u8>, checksum_at: usize) -> Sys<Vec<u8>> {
    let length = u16::try_from(inside.len()).map_err(|_| Errno::EMSGSIZE)?;
    let (mut head, pseudo) = match (from, to) {
        (IpAddr::V4(source), IpAddr::V4(target)) => {
            // Length and checksum are the kernel's to fill in.
            let mut head = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol as u8, 0, 0];
            head.extend(source.octets());
            head.extend(target.octets());
            let pseudo = [source.octets(), target.octets()].concat();
            (head, pseudo)
        }
        (IpAddr::V6(source), IpAddr::V6(target)) => {
            let mut head = vec![0x60, 0, 0, 0];
            head.extend(length.to_be_bytes());
            head.extend([protocol as u8, 64]);
            head.extend(source.octets());
            head.extend(target.octets());
            let pseudo = [source.octets(), target.octets()].concat();
            (head, pseudo)
        }
        _ => return Err(Errno::EINVAL),
    };
    let tail = [0, protocol as u8, (length >> 8) as u8, length as u8];
    let sum = checksum(&[&pseudo, &tail, &inside]);
    inside[checksum_at..checksum_at + 2].copy_from_slice(&sum.to_be_bytes());
    head.extend(inside);
    Ok(head)
}

/// The Internet checksum (RFC 1071) of parts that are of even length, but for the last; never 0, which means none.
fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u64;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u64::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    match !(sum as u16) {
        0 => 0xffff,
        sum => sum,
    }
}

/// Sends a datagram to an address of this machine as if it came from anywhere; needs CAP_NET_RAW.
pub fn inject(protocol: i32, from: SocketAddr, to: SocketAddr, data: &[u8]) -> Sys<()> {
    deliver(&packet(protocol, from, to, data)?, to)
}

/// Flags of a TCP segment: the end of what the other side sends, or of all.
pub const FIN_ACK: u8 = 0x11;
pub const RST_ACK: u8 = 0x14;

/// Sends a TCP segment to an address of this machine as if it came from anywhere; needs CAP_NET_RAW.
pub fn inject_segment(
    from: SocketAddr,
    to: SocketAddr,
    sequence: u32,
    acknowledged: u32,
    flags: u8,
) -> Sys<()> {
    deliver(&segment(from, to, sequence, acknowledged, flags)?, to)
}

fn deliver(packet: &[u8], to: SocketAddr) -> Sys<()> {
    let domain = if to.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    let raw = socket(domain, libc::SOCK_RAW, libc::IPPROTO_RAW)?;
    super::socket::set_option(raw.as_fd(), libc::SOL_SOCKET, 32, 1 << 20)?;
    send(raw.as_fd(), packet, Some(&address_of(to, true)), &[], None, 0).map(drop)
}

/// The loopback device of this thread's network namespace, which is up as long as this is there: what comes from nowhere
/// comes by way of it.
#[derive(Debug)]
pub struct Loopback(Option<Down>);

/// How it was found.
#[derive(Debug)]
struct Down {
    socket: OwnedFd,
    flags: u16,
    /// It has no address, and the kernel gives it one as it comes up.
    bare: bool,
}

const SIOCSIFFLAGS: u64 = 0x8914;

/// `struct ifreq` of the loopback device with these flags.
fn loopback(flags: u16) -> [u8; 40] {
    let mut request = [0; 40];
    request[..2].copy_from_slice(b"lo");
    request[16..18].copy_from_slice(&flags.to_ne_bytes());
    request
}

impl Loopback {
    /// Brings it up, if it is down.
    pub fn up() -> Sys<Loopback> {
        const SIOCGIFFLAGS: u64 = 0x8913;
        const SIOCGIFADDR: u64 = 0x8915;
        let socket = socket(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
        let mut found = loopback(0);
        ioctl_request(socket.as_fd(), SIOCGIFFLAGS, &mut found)?;
        let flags = u16::from_ne_bytes([found[16], found[17]]);
        if flags & libc::IFF_UP as u16 != 0 {
            return Ok(Loopback(None));
        }
        let bare = ioctl_request(socket.as_fd(), SIOCGIFADDR, &mut loopback(0)).is_err();
        ioctl_request(
            socket.as_fd(),
            SIOCSIFFLAGS,
            &mut loopback(flags | libc::IFF_UP as u16),
        )?;
        Ok(Loopback(Some(Down { socket, flags, bare })))
    }
}

impl Drop for Loopback {
    fn drop(&mut self) {
        const SIOCSIFADDR: u64 = 0x8916;
        let Some(Down { socket, flags, bare }) = &self.0 else {
            return;
        };
        let _ = ioctl_request(socket.as_fd(), SIOCSIFFLAGS, &mut loopback(*flags));
        if *bare {
            // 0.0.0.0 takes away what is there.
            let _ = ioctl_request(socket.as_fd(), SIOCSIFADDR, &mut loopback(libc::AF_INET as u16));
        }
    }
}

/// `struct sockaddr_in` or `sockaddr_in6`; raw sockets want no port.
pub fn address_of(address: SocketAddr, portless: bool) -> Vec<u8> {
    let port = if portless { 0 } else { address.port() };
    let mut out = Vec::with_capacity(28);
    match address {
        SocketAddr::V4(a) => {
            out.extend((libc::AF_INET as u16).to_ne_bytes());
            out.extend(port.to_be_bytes());
            out.extend(a.ip().octets());
            out.extend([0; 8]);
        }
        SocketAddr::V6(a) => {
            out.extend((libc::AF_INET6 as u16).to_ne_bytes());
            out.extend(port.to_be_bytes());
            out.extend(a.flowinfo().to_be_bytes());
            out.extend(a.ip().octets());
            out.extend(a.scope_id().to_ne_bytes());
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::time::Duration;

    #[test]
    fn a_datagram_comes_from_where_it_never_was() {
        for (here, there) in [("127.0.0.1:0", "192.0.2.7:53"), ("[::1]:0", "[2001:db8::7]:53")] {
            let target = UdpSocket::bind(here).unwrap();
            target.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            let from: SocketAddr = there.parse().unwrap();
            for data in [b"".as_slice(), b"odd", &[7; 60000]] {
                inject(libc::IPPROTO_UDP, from, target.local_addr().unwrap(), data).unwrap();
                let mut buffer = vec![0; 65536];
                let (length, seen) = target.recv_from(&mut buffer).unwrap();
                assert_eq!((&buffer[..length], seen), (data, from));
            }
        }
    }
}
