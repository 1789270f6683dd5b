//! Socket options as data: which can be read back, and how each is given to a new socket.
#![allow(unsafe_code, reason = "a filter is passed by a pointer within a structure")]

use super::{Sys, getsockopt, setsockopt};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::os::fd::{AsRawFd, BorrowedFd};

/// One option and its value, as getsockopt(2) gives it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketOption {
    pub level: i32,
    pub name: i32,
    pub value: Vec<u8>,
}

/// Options of one level: name, and how many bytes the value has at most.
#[derive(Debug)]
pub struct Options {
    level: i32,
    names: &'static [(i32, usize)],
}

const SO_SNDBUFFORCE: i32 = 32;
const SO_RCVBUFFORCE: i32 = 33;
const SO_BUF_LOCK: i32 = 72;

/// Of every socket. Set before bind(2): address reuse and the device must be known by then.
pub static GENERAL: Options = Options {
    level: libc::SOL_SOCKET,
    names: &[
        (libc::SO_REUSEADDR, 4),
        (libc::SO_REUSEPORT, 4),
        (libc::SO_BINDTODEVICE, 16),
        (libc::SO_DEBUG, 4),
        (libc::SO_DONTROUTE, 4),
        (libc::SO_BROADCAST, 4),
        (libc::SO_SNDBUF, 4),
        (libc::SO_RCVBUF, 4),
        // After the two above, which lock what they set.
        (SO_BUF_LOCK, 4),
        (libc::SO_KEEPALIVE, 4),
        (libc::SO_OOBINLINE, 4),
        (libc::SO_NO_CHECK, 4),
        (libc::SO_PRIORITY, 4),
        (libc::SO_LINGER, 8),
        (libc::SO_PASSCRED, 4),
        (libc::SO_RCVLOWAT, 4),
        (libc::SO_RCVTIMEO, 16),
        (libc::SO_SNDTIMEO, 16),
        (libc::SO_TIMESTAMP, 4),
        (libc::SO_TIMESTAMPNS, 4),
        (libc::SO_PASSSEC, 4),
        (libc::SO_MARK, 4),
        (libc::SO_TIMESTAMPING, 8),
        (libc::SO_RXQ_OVFL, 4),
        (libc::SO_WIFI_STATUS, 4),
        (libc::SO_PEEK_OFF, 4),
        (libc::SO_NOFCS, 4),
        (libc::SO_SELECT_ERR_QUEUE, 4),
        (libc::SO_BUSY_POLL, 4),
        (libc::SO_MAX_PACING_RATE, 8),
        (60, 4), // SO_ZEROCOPY
        (69, 4), // SO_PREFER_BUSY_POLL
        (74, 4), // SO_TXREHASH
        (76, 4), // SO_PASSPIDFD
        (61, 8), // SO_TXTIME
        (70, 4), // SO_BUSY_POLL_BUDGET
        (82, 4), // SO_RCVPRIORITY
        (83, 4), // SO_PASSRIGHTS
        (75, 4), // SO_RCVMARK
        // After the older forms of the same, which take these back.
        (63, 4), // SO_TIMESTAMP_NEW
        (64, 4), // SO_TIMESTAMPNS_NEW
        (65, 8), // SO_TIMESTAMPING_NEW
    ],
};

/// Of IPv4 sockets, and of IPv6 ones that may speak IPv4.
pub static IP: Options = Options {
    level: libc::IPPROTO_IP,
    names: &[
        (libc::IP_FREEBIND, 4),
        (libc::IP_TRANSPARENT, 4),
        (libc::IP_BIND_ADDRESS_NO_PORT, 4),
        (51, 4), // IP_LOCAL_PORT_RANGE
        (libc::IP_TOS, 4),
        (libc::IP_TTL, 4),
        (libc::IP_RECVOPTS, 4),
        (libc::IP_RETOPTS, 4),
        (libc::IP_PKTINFO, 4),
        (libc::IP_MTU_DISCOVER, 4),
        (libc::IP_RECVERR, 4),
        (libc::IP_RECVTTL, 4),
        (libc::IP_RECVTOS, 4),
        (18, 4), // IP_PASSSEC
        (libc::IP_RECVORIGDSTADDR, 4),
        (libc::IP_MINTTL, 4),
        (libc::IP_NODEFRAG, 4),
        (23, 4), // IP_CHECKSUM
        (25, 4), // IP_RECVFRAGSIZE
        (50, 4), // IP_UNICAST_IF
        (26, 4), // IP_RECVERR_RFC4884
        (libc::IP_OPTIONS, 40),
    ],
};

/// Of IPv6 sockets.
pub static IPV6: Options = Options {
    level: libc::IPPROTO_IPV6,
    names: &[
        (libc::IPV6_FREEBIND, 4),
        (libc::IPV6_TRANSPARENT, 4),
        (libc::IPV6_UNICAST_HOPS, 4),
        (libc::IPV6_MTU_DISCOVER, 4),
        (libc::IPV6_RECVERR, 4),
        (33, 4), // IPV6_FLOWINFO_SEND
        (libc::IPV6_RECVPKTINFO, 4),
        (libc::IPV6_RECVHOPLIMIT, 4),
        (libc::IPV6_RECVRTHDR, 4),
        (libc::IPV6_RECVHOPOPTS, 4),
        (libc::IPV6_RECVDSTOPTS, 4),
        (60, 4), // IPV6_RECVPATHMTU
        (libc::IPV6_DONTFRAG, 4),
        (libc::IPV6_RECVTCLASS, 4),
        (libc::IPV6_TCLASS, 4),
        (70, 4), // IPV6_AUTOFLOWLABEL
        (libc::IPV6_ADDR_PREFERENCES, 4),
        (libc::IPV6_MINHOPCOUNT, 4),
        (libc::IPV6_RECVORIGDSTADDR, 4),
        (libc::IPV6_UNICAST_IF, 4),
        (libc::IPV6_RECVFRAGSIZE, 4),
        (31, 4), // IPV6_RECVERR_RFC4884
        (30, 4), // IPV6_ROUTER_ALERT_ISOLATE
        // The older names, by which what arrives with a datagram is asked for in an older form (RFC 2292).
        (2, 4),
        (3, 4),
        (4, 4),
        (5, 4),
        (8, 4),
        (11, 4), // IPV6_FLOWINFO
        (libc::IPV6_HOPOPTS, 256),
        (libc::IPV6_RTHDRDSTOPTS, 256),
        (libc::IPV6_RTHDR, 256),
        (libc::IPV6_DSTOPTS, 256),
    ],
};

/// Of IPv4 sockets that are no streams; what a stream shows of these is left over from its making.
pub static IP_MULTICAST: Options = Options {
    level: libc::IPPROTO_IP,
    names: &[
        (libc::IP_MULTICAST_IF, 4),
        (libc::IP_MULTICAST_TTL, 4),
        (libc::IP_MULTICAST_LOOP, 4),
        (libc::IP_MULTICAST_ALL, 4),
    ],
};

/// Of IPv6 sockets that are no streams.
pub static IPV6_MULTICAST: Options = Options {
    level: libc::IPPROTO_IPV6,
    names: &[
        (libc::IPV6_MULTICAST_IF, 4),
        (libc::IPV6_MULTICAST_HOPS, 4),
        (libc::IPV6_MULTICAST_LOOP, 4),
        (29, 4), // IPV6_MULTICAST_ALL
    ],
};

/// Of IPv4 streams, what they can be given of these: it means nothing to them, and is told all the same.
pub static IP_STREAM: Options = Options {
    level: libc::IPPROTO_IP,
    names: &[(libc::IP_MULTICAST_LOOP, 4), (libc::IP_MULTICAST_ALL, 4)],
};

/// The same of IPv6 streams.
pub static IPV6_STREAM: Options = Options {
    level: libc::IPPROTO_IPV6,
    names: &[(libc::IPV6_MULTICAST_LOOP, 4), (29, 4)],
};

/// Of TCP sockets, whatever their state.
pub static TCP: Options = Options {
    level: libc::IPPROTO_TCP,
    names: &[
        (libc::TCP_CONGESTION, 16),
        (libc::TCP_NODELAY, 4),
        (libc::TCP_CORK, 4),
        (libc::TCP_KEEPIDLE, 4),
        (libc::TCP_KEEPINTVL, 4),
        (libc::TCP_KEEPCNT, 4),
        (libc::TCP_SYNCNT, 4),
        (libc::TCP_LINGER2, 4),
        (libc::TCP_DEFER_ACCEPT, 4),
        (libc::TCP_WINDOW_CLAMP, 4),
        (libc::TCP_THIN_LINEAR_TIMEOUTS, 4),
        (libc::TCP_USER_TIMEOUT, 4),
        (libc::TCP_FASTOPEN, 4),
        (libc::TCP_NOTSENT_LOWAT, 4),
        (libc::TCP_SAVE_SYN, 4),
        (libc::TCP_FASTOPEN_CONNECT, 4),
        (TCP_FASTOPEN_NO_COOKIE, 4),
        (36, 4), // TCP_INQ
        (37, 4), // TCP_TX_DELAY
        (44, 4), // TCP_RTO_MAX_MS
        (45, 4), // TCP_RTO_MIN_US
        (46, 4), // TCP_DELACK_MAX_US
    ],
};

/// Of TCP sockets that are not connected; of a connected one it tells what was agreed on with the other side.
pub static TCP_UNCONNECTED: Options = Options {
    level: libc::IPPROTO_TCP,
    names: &[(libc::TCP_MAXSEG, 4), (TCP_FASTOPEN_KEY, 32)],
};

pub const TCP_FASTOPEN_NO_COOKIE: i32 = 34;
/// One key or two, to make cookies with; where a socket has none, that of its network is told, if there is one.
const TCP_FASTOPEN_KEY: i32 = 33;

/// Of IPv6 sockets that are not connected: binding to an address, which is how a connection is made anew, settles it.
pub static IPV6_UNCONNECTED: Options = Options {
    level: libc::IPPROTO_IPV6,
    names: &[(libc::IPV6_V6ONLY, 4)],
};

/// Of UDP sockets.
pub static UDP: Options = Options {
    level: libc::IPPROTO_UDP,
    names: &[
        (libc::UDP_CORK, 4),
        (101, 4), // UDP_NO_CHECK6_TX
        (102, 4), // UDP_NO_CHECK6_RX
        (libc::UDP_SEGMENT, 4),
        (libc::UDP_GRO, 4),
    ],
};

/// Of sockets that share a port: by which processor what arrives is to come. A connection notes there by which it did.
pub static PROCESSOR: Options = Options {
    level: libc::SOL_SOCKET,
    names: &[(libc::SO_INCOMING_CPU, 4)],
};

/// Of raw IPv4 sockets: whether headers come with the data, and whether they hear what a router has to look at.
pub static RAW: Options = Options {
    level: libc::IPPROTO_IP,
    names: &[(libc::IP_HDRINCL, 4), (libc::IP_ROUTER_ALERT, 4)],
};

/// Which ICMP messages a raw IPv4 socket is kept from.
pub static ICMP_FILTER: Options = Options {
    level: 255,
    names: &[(1, 4)],
};

/// The same for IPv6.
pub static ICMPV6_FILTER: Options = Options {
    level: libc::IPPROTO_ICMPV6,
    names: &[(1, 32)],
};

/// Where a raw IPv6 socket finds a checksum to fill in, and whether headers come with the data.
///
/// By the level of raw sockets: by that of IPv6 a checksum of ICMPv6 can be read, and not set.
pub static RAW_IPV6: Options = Options {
    level: 255,
    names: &[(7, 4), (36, 4)],
};

/// Of UDP-Lite sockets.
pub static UDPLITE: Options = Options {
    level: 136,
    names: &[(10, 4), (11, 4)],
};

/// Of packet sockets.
pub static PACKET: Options = Options {
    level: 263,
    names: &[
        (10, 4), // PACKET_VERSION, before there is a ring
        (12, 4), // PACKET_RESERVE, too
        (8, 4),  // PACKET_AUXDATA
        (9, 4),  // PACKET_ORIGDEV
        (7, 4),  // PACKET_COPY_THRESH
        (14, 4), // PACKET_LOSS
        (15, 4), // PACKET_VNET_HDR
        (17, 4), // PACKET_TIMESTAMP
        (19, 4), // PACKET_TX_HAS_OFF
        (20, 4), // PACKET_QDISC_BYPASS
        (23, 4), // PACKET_IGNORE_OUTGOING
        (24, 4), // PACKET_VNET_HDR_SZ
    ],
};

/// Of netlink sockets.
pub static NETLINK: Options = Options {
    level: 270,
    names: &[
        (3, 4),  // NETLINK_PKTINFO
        (4, 4),  // NETLINK_BROADCAST_ERROR
        (5, 4),  // NETLINK_NO_ENOBUFS
        (8, 4),  // NETLINK_LISTEN_ALL_NSID
        (10, 4), // NETLINK_CAP_ACK
        (11, 4), // NETLINK_EXT_ACK
        (12, 4), // NETLINK_GET_STRICT_CHK
    ],
};

/// The values of all options of these sets that the socket has.
pub fn read(fd: BorrowedFd<'_>, sets: &[&Options]) -> Vec<SocketOption> {
    let all = sets
        .iter()
        .flat_map(|set| set.names.iter().map(|(name, room)| (set.level, *name, *room)));
    all.filter_map(|(level, name, room)| {
        let mut value = vec![0; room];
        // A kernel or protocol without the option has no value of it to lose.
        let len = getsockopt(fd, level, name, &mut value).ok()?;
        value.truncate(len);
        let no_key = (level, name) == (libc::IPPROTO_TCP, TCP_FASTOPEN_KEY) && len == 0;
        (!no_key).then_some(SocketOption { level, name, value })
    })
    .collect()
}

/// Reads one option again.
pub fn refresh(fd: BorrowedFd<'_>, option: &mut SocketOption) {
    let mut value = [0; 256];
    if let Ok(len) = getsockopt(fd, option.level, option.name, &mut value) {
        option.value = value[..len.min(value.len())].to_vec();
    }
}

/// Gives a socket the recorded values, in order; those it has already are left alone. Fails with the first that
/// cannot be set.
pub fn write(fd: BorrowedFd<'_>, options: &[SocketOption]) -> Result<(), (SocketOption, Errno)> {
    for option in options {
        let mut now = vec![0; option.value.len().max(4)];
        let len = getsockopt(fd, option.level, option.name, &mut now).unwrap_or(0);
        if now[..len.min(now.len())] != option.value[..] {
            set(fd, option).map_err(|e| (option.clone(), e))?;
        }
    }
    Ok(())
}

fn set(fd: BorrowedFd<'_>, option: &SocketOption) -> Sys<()> {
    let SocketOption { level, name, value } = option;
    let force = match (*level, *name) {
        (libc::SOL_SOCKET, libc::SO_SNDBUF) => SO_SNDBUFFORCE,
        (libc::SOL_SOCKET, libc::SO_RCVBUF) => SO_RCVBUFFORCE,
        (libc::IPPROTO_IP, libc::IP_TOS) => {
            // It sets the priority too, which may have been chosen since.
            let mut priority = [0; 4];
            let known = getsockopt(fd, libc::SOL_SOCKET, libc::SO_PRIORITY, &mut priority);
            setsockopt(fd, *level, *name, value)?;
            return known.and_then(|_| setsockopt(fd, libc::SOL_SOCKET, libc::SO_PRIORITY, &priority));
        }
        _ => return setsockopt(fd, *level, *name, value),
    };
    // The kernel shows twice what it was asked for.
    let half = value
        .first_chunk()
        .map_or(0, |v| i32::from_ne_bytes(*v) / 2)
        .to_ne_bytes();
    match setsockopt(fd, *level, force, &half) {
        Err(Errno::EPERM) => setsockopt(fd, *level, *name, &half),
        done => done,
    }
}

/// The classic BPF program that filters what arrives, 8 bytes an instruction; empty for none. EACCES for an eBPF one.
pub fn filter(fd: BorrowedFd<'_>) -> Sys<Vec<u8>> {
    const SO_GET_FILTER: i32 = 26;
    let mut program = vec![0; getsockopt(fd, libc::SOL_SOCKET, SO_GET_FILTER, &mut [])? * 8];
    if !program.is_empty() {
        // The call counts in instructions, of which there are as many as there were just before.
        getsockopt(fd, libc::SOL_SOCKET, SO_GET_FILTER, &mut program)?;
    }
    Ok(program)
}

/// Attaches such a program, and locks it against being changed if `lock`.
pub fn attach_filter(fd: BorrowedFd<'_>, program: &[u8], lock: bool) -> Sys<()> {
    if !program.is_empty() {
        attach(fd, libc::SO_ATTACH_FILTER, program)?;
    }
    if lock {
        setsockopt(fd, libc::SOL_SOCKET, libc::SO_LOCK_FILTER, &1i32.to_ne_bytes())
    } else {
        Ok(())
    }
}

/// Attaches a classic BPF program by this option of SOL_SOCKET.
pub fn attach(fd: BorrowedFd<'_>, option: i32, program: &[u8]) -> Sys<()> {
    // The kernel wants whole instructions, which a buffer of words aligns.
    let words: Vec<u64> = program
        .chunks_exact(8)
        .filter_map(|c| c.first_chunk().copied())
        .map(u64::from_ne_bytes)
        .collect();
    let len = u16::try_from(words.len()).map_err(|_| Errno::EINVAL)?;
    let header = libc::sock_fprog {
        len,
        filter: words.as_ptr().cast_mut().cast(),
    };
    let at = (&raw const header) as u64;
    let args = [
        fd.as_raw_fd() as u64,
        libc::SOL_SOCKET as u64,
        option as u64,
        at,
        16,
        0,
    ];
    // SAFETY: the structure names `len` live instructions, which the call only reads.
    unsafe { super::raw(libc::SYS_setsockopt, args) }.map(drop)
}
const _: () = assert!(size_of::<libc::sock_fprog>() == 16 && size_of::<libc::sock_filter>() == 8);

/// Makes room for sending `len` bytes at once for as long as the result lives; undone when dropped.
#[derive(Debug)]
pub struct Roomy<'a>(BorrowedFd<'a>, Vec<SocketOption>);

impl<'a> Roomy<'a> {
    pub fn new(fd: BorrowedFd<'a>, len: usize) -> Sys<Roomy<'a>> {
        let names = Options {
            level: libc::SOL_SOCKET,
            names: &[(libc::SO_SNDBUF, 4), (SO_BUF_LOCK, 4)],
        };
        let before = read(fd, &[&names]);
        // Every buffer costs more than its bytes.
        let wanted = (len.saturating_mul(4) + (1 << 20)).min(i32::MAX as usize / 4) as i32;
        setsockopt(fd, libc::SOL_SOCKET, SO_SNDBUFFORCE, &wanted.to_ne_bytes())?;
        Ok(Roomy(fd, before))
    }
}

impl Drop for Roomy<'_> {
    fn drop(&mut self) {
        // Values that it had.
        let _ = write(self.0, &self.1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::socket::{option, set_option};
    use std::os::fd::AsFd;

    #[test]
    fn what_was_read_can_be_given_to_another() {
        let make = || crate::sys::socket(libc::AF_INET6, libc::SOCK_STREAM, 0).unwrap();
        let (a, b) = (make(), make());
        let sets = [&GENERAL, &IPV6, &IPV6_UNCONNECTED, &IP, &TCP, &TCP_UNCONNECTED];
        for (level, name, value) in [
            (libc::SOL_SOCKET, libc::SO_REUSEPORT, 1),
            (libc::SOL_SOCKET, libc::SO_RCVBUF, 100_000),
            (libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1),
            (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1),
            (libc::IPPROTO_IPV6, libc::IPV6_TCLASS, 32),
            (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, 77),
            (libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, 5),
            (libc::IPPROTO_TCP, libc::TCP_MAXSEG, 1000),
        ] {
            set_option(a.as_fd(), level, name, value).unwrap();
        }
        let all = read(a.as_fd(), &sets);
        assert_ne!(all, read(b.as_fd(), &sets));
        write(b.as_fd(), &all).unwrap();
        assert_eq!(all, read(b.as_fd(), &sets));
    }

    #[test]
    fn a_filter_is_read_and_attached() {
        let make = || crate::sys::socket(libc::AF_INET, libc::SOCK_DGRAM, 0).unwrap();
        let (a, b) = (make(), make());
        // BPF_RET | BPF_K with 0xffff, after BPF_LD | BPF_IMM: two instructions.
        let program = [0, 0, 0, 0, 5, 0, 0, 0, 6, 0, 0, 0, 0xff, 0xff, 0, 0];
        assert_eq!(filter(a.as_fd()), Ok(Vec::new()));
        attach_filter(a.as_fd(), &program, true).unwrap();
        let seen = filter(a.as_fd()).unwrap();
        assert_eq!(seen, program);
        attach_filter(b.as_fd(), &seen, false).unwrap();
        assert_eq!(filter(b.as_fd()).unwrap(), program);
    }

    #[test]
    fn room_is_made_and_taken_back() {
        let (a, b) = crate::sys::socket::pair(libc::AF_UNIX, libc::SOCK_STREAM, 0).unwrap();
        let size = || option(a.as_fd(), libc::SOL_SOCKET, libc::SO_SNDBUF).unwrap();
        let before = size();
        let room = Roomy::new(a.as_fd(), 8 << 20).unwrap();
        let sent = crate::sys::socket::send(a.as_fd(), &vec![1; 8 << 20], None, &[], None, 0).unwrap();
        assert_eq!(sent, 8 << 20);
        drop(room);
        assert_eq!(size(), before);
        drop(b);
    }
}
