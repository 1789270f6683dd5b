//! Which sockets are joined: unix peers from sock_diag(7), TCP and UDP addresses from /proc/PID/net.

use crate::ids::Pid;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

/// What is known of a socket by its inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Socket {
    Unix {
        name: Option<String>,
        peer: Option<u64>,
    },
    Inet {
        protocol: &'static str,
        local: SocketAddr,
        remote: SocketAddr,
        state: u8,
    },
}

/// The sockets of the network namespace of `pid`; unix ones only if that is freeze's own.
///
/// What the kernel does not tell is left out: a map without peers is still a map.
pub(super) fn read(pid: Pid) -> HashMap<u64, Socket> {
    let mut out = HashMap::new();
    for protocol in ["tcp", "tcp6", "udp", "udp6"] {
        let text = std::fs::read_to_string(format!("/proc/{pid}/net/{protocol}")).unwrap_or_default();
        out.extend(text.lines().skip(1).filter_map(|line| inet(protocol, line)));
    }
    let namespace = |who: &str| std::fs::read_link(format!("/proc/{who}/ns/net")).ok();
    if namespace("self") == namespace(&pid.to_string()) {
        out.extend(unix().unwrap_or_default());
    }
    out
}

/// A line of /proc/net/tcp and its like.
pub(super) fn inet(protocol: &'static str, line: &str) -> Option<(u64, Socket)> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let state = u8::from_str_radix(words.get(3)?, 16).ok()?;
    let inode = words.get(9)?.parse().ok()?;
    Some((
        inode,
        Socket::Inet {
            protocol,
            local: address(words[1])?,
            remote: address(words[2])?,
            state,
        },
    ))
}

/// `0100007F:1F90`: the address as words in the order of the machine, the port as a number.
fn address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut bytes = [0u8; 16];
    if !address.is_ascii() || address.len() % 8 != 0 || address.len() > 32 {
        return None;
    }
    for (word, slot) in address.as_bytes().chunks(8).zip(bytes.chunks_mut(4)) {
        let word = u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?;
        slot.copy_from_slice(&word.to_ne_bytes());
    }
    let ip = match address.len() {
        8 => IpAddr::V4(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3])),
        32 => IpAddr::V6(Ipv6Addr::from(bytes)),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// A question to sock_diag(7) about all sockets of a family, and the socket that its answer comes to.
pub(super) fn ask(family: i32, rest: &[u8]) -> nix::Result<OwnedFd> {
    const SOCK_DIAG_BY_FAMILY: u16 = 20;
    const NLM_F_REQUEST_DUMP: u16 = 0x301;
    request(SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST_DUMP, family, rest)
}

/// Any message to sock_diag(7).
pub(super) fn request(kind: u16, flags: u16, family: i32, rest: &[u8]) -> nix::Result<OwnedFd> {
    let diag = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        Some(SockProtocol::NetlinkSockDiag),
    )?;
    // The kernel answers at once or not at all.
    setsockopt(&diag, sockopt::ReceiveTimeout, &TimeVal::seconds(1))?;
    // struct nlmsghdr, then the family's request, which begins with the family.
    let mut bytes = Vec::with_capacity(17 + rest.len());
    bytes.extend((17 + rest.len() as u32).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.push(family as u8);
    bytes.extend(rest);
    send(diag.as_raw_fd(), &bytes, MsgFlags::empty())?;
    Ok(diag)
}

/// All unix sockets of freeze's own network namespace.
fn unix() -> nix::Result<Vec<(u64, Socket)>> {
    const UDIAG_SHOW_NAME_AND_PEER: u32 = 1 | 4;
    // struct unix_diag_req after its first byte: states, inode, what to show, cookie.
    let mut rest = vec![0; 3];
    rest.extend(u32::MAX.to_ne_bytes());
    rest.extend(0u32.to_ne_bytes());
    rest.extend(UDIAG_SHOW_NAME_AND_PEER.to_ne_bytes());
    rest.extend([0; 8]);
    let diag = ask(libc::AF_UNIX, &rest)?;
    let mut out = Vec::new();
    let mut buffer = vec![0u8; 1 << 16];
    loop {
        let length = recv(diag.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        if length == 0 || !messages(&buffer[..length], &mut out) {
            return Ok(out);
        }
    }
}

/// Whether sock_diag(7) knows a family: unix, internet, packet or netlink.
pub(crate) fn diagnosed(family: i32) -> nix::Result<()> {
    const NLMSG_ERROR: u16 = 2;
    let length = match family {
        libc::AF_UNIX => 24,
        // struct inet_diag_req_v2, of which the second byte is the protocol.
        libc::AF_INET | libc::AF_INET6 => 56,
        _ => 20,
    };
    let mut rest = vec![0; length - 1];
    if length == 56 {
        rest[0] = libc::IPPROTO_TCP as u8;
    }
    let diag = ask(family, &rest)?;
    let mut answer = vec![0u8; 1 << 16];
    let length = recv(diag.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    let errno = u32_at(&answer[..length], 16).map(|e| (e as i32).wrapping_neg());
    match (u16_at(&answer, 4), errno) {
        (Some(NLMSG_ERROR), Some(errno)) if errno != 0 => Err(Errno::from_raw(errno)),
        _ => Ok(()),
    }
}

/// Takes the sockets out of one datagram; `false` after the last one.
fn messages(mut bytes: &[u8], out: &mut Vec<(u64, Socket)>) -> bool {
    const NLMSG_ERROR: u16 = 2;
    const NLMSG_DONE: u16 = 3;
    while let (Some(length), Some(kind)) = (u32_at(bytes, 0), u16_at(bytes, 4)) {
        let Some(message) = bytes.get(16..length as usize) else {
            return false;
        };
        if kind == NLMSG_DONE || kind == NLMSG_ERROR {
            return false;
        }
        out.extend(unix_socket(message));
        bytes = bytes
            .get((length as usize).next_multiple_of(4)..)
            .unwrap_or_default();
    }
    true
}

/// struct unix_diag_msg and its attributes.
fn unix_socket(message: &[u8]) -> Option<(u64, Socket)> {
    const UNIX_DIAG_NAME: u16 = 0;
    const UNIX_DIAG_PEER: u16 = 2;
    let inode = u64::from(u32_at(message, 4)?);
    let (mut name, mut peer) = (None, None);
    let mut rest = message.get(16..)?;
    while let (Some(length), Some(kind)) = (u16_at(rest, 0), u16_at(rest, 2)) {
        let Some(value) = rest.get(4..length as usize) else {
            break;
        };
        match kind {
            UNIX_DIAG_NAME => name = Some(String::from_utf8_lossy(value).replace('\0', "@")),
            UNIX_DIAG_PEER => peer = u32_at(value, 0).map(u64::from).filter(|&p| p != 0),
            _ => {}
        }
        rest = rest
            .get((length as usize).next_multiple_of(4)..)
            .unwrap_or_default();
    }
    Some((inode, Socket::Unix { name, peer }))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::os::linux::fs::MetadataExt;

    fn inode(fd: &impl AsRawFd) -> u64 {
        std::fs::metadata(format!("/proc/self/fd/{}", fd.as_raw_fd()))
            .unwrap()
            .st_ino()
    }

    #[test]
    fn an_address_is_read_in_the_machines_order() {
        assert_eq!(address("0100007F:1F90"), Some("127.0.0.1:8080".parse().unwrap()));
        assert_eq!(
            address("00000000000000000000000001000000:0016"),
            Some("[::1]:22".parse().unwrap())
        );
        assert_eq!(
            (address("0100007F"), address("01:1"), address("0100007é:1F90")),
            (None, None, None)
        );
    }

    #[test]
    fn joined_sockets_are_seen_joined() {
        let (a, b) = std::os::unix::net::UnixStream::pair().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let all = read(Pid(std::process::id() as i32));
        let Some(Socket::Inet {
            local, remote, state, ..
        }) = all.get(&inode(&client))
        else {
            panic!("the client is not listed")
        };
        assert_eq!(
            (*local, *remote, *state),
            (client.local_addr().unwrap(), client.peer_addr().unwrap(), 1)
        );
        // A kernel without unix_diag tells nothing, and then of none.
        if all.values().any(|s| matches!(s, Socket::Unix { .. })) {
            assert_eq!(
                all[&inode(&a)],
                Socket::Unix {
                    name: None,
                    peer: Some(inode(&b))
                }
            );
        }
    }
}
