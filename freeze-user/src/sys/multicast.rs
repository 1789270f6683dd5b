//! Which multicast groups a socket is in: the kernel tells only of whole devices, so each of their groups is tried; and
//! anycast addresses.

use super::{Sys, getsockopt, ioctl_request, setsockopt};
use crate::error::errno;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd};

const MCAST_JOIN_GROUP: i32 = 42;
const MCAST_LEAVE_GROUP: i32 = 45;
const MCAST_MSFILTER: i32 = 48;
/// `struct sockaddr_storage`.
const ADDRESS: usize = 128;

/// Has a device of the calling thread's network namespace listen to a link address, until it is told otherwise.
pub fn listen(device: &str, address: &[u8]) -> Sys<()> {
    const SIOCADDMULTI: u64 = 0x8931;
    const NAME: usize = 16;
    let socket = nix::sys::socket::socket(
        nix::sys::socket::AddressFamily::Inet,
        nix::sys::socket::SockType::Datagram,
        nix::sys::socket::SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    // struct ifreq: the name, and a struct sockaddr of no family.
    let mut request = [0u8; 40];
    let room = request.len() - NAME - 2;
    if device.len() >= NAME || address.len() > room {
        return Err(Errno::EINVAL);
    }
    request[..device.len()].copy_from_slice(device.as_bytes());
    request[NAME + 2..][..address.len()].copy_from_slice(address);
    ioctl_request(socket.as_fd(), SIOCADDMULTI, &mut request)
}

/// One group that a socket is in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// Number of the device.
    pub device: u32,
    pub group: IpAddr,
    /// Whether only these sources are heard (1), or all but these (0).
    pub mode: u32,
    pub sources: Vec<IpAddr>,
}

fn level(group: IpAddr) -> i32 {
    if group.is_ipv4() {
        libc::IPPROTO_IP
    } else {
        libc::IPPROTO_IPV6
    }
}

fn storage(address: IpAddr) -> [u8; ADDRESS] {
    let mut out = [0; ADDRESS];
    match address {
        IpAddr::V4(ip) => {
            out[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
            out[4..8].copy_from_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            out[..2].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
            out[8..24].copy_from_slice(&ip.octets());
        }
    }
    out
}

fn address(storage: &[u8]) -> Option<IpAddr> {
    match i32::from(u16::from_ne_bytes(*storage.first_chunk()?)) {
        libc::AF_INET => Some(Ipv4Addr::from(*storage.get(4..)?.first_chunk::<4>()?).into()),
        libc::AF_INET6 => Some(Ipv6Addr::from(*storage.get(8..)?.first_chunk::<16>()?).into()),
        _ => None,
    }
}

/// `struct group_req`, or the head of `struct group_filter`: device, padding, group.
fn request(device: u32, group: IpAddr) -> Vec<u8> {
    let mut out = device.to_ne_bytes().to_vec();
    out.extend([0; 4]);
    out.extend(storage(group));
    out
}

/// The groups that any device of this thread's network namespace listens to.
fn groups() -> Sys<Vec<(u32, IpAddr)>> {
    // "self" is the first thread, which stays in the namespace where freeze was started.
    let read = |name| match std::fs::read_to_string(format!("/proc/thread-self/net/{name}")) {
        // A kernel without IPv6, or without multicast.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        done => done.map_err(errno),
    };
    let mut out = Vec::new();
    let mut device = 0;
    for line in read("igmp")?.lines().skip(1) {
        let mut words = line.split_ascii_whitespace();
        let Some(first) = words.next() else { continue };
        match u32::from_str_radix(first, 16) {
            // The group's bytes as a word in the order of the machine.
            Ok(word) if line.starts_with(['\t', ' ']) => {
                out.push((device, Ipv4Addr::from(word.to_ne_bytes()).into()));
            }
            _ => device = first.parse().unwrap_or(0),
        }
    }
    for line in read("igmp6")?.lines() {
        let mut words = line.split_ascii_whitespace();
        let device = words.next().and_then(|w| w.parse().ok());
        let group = words.nth(1).and_then(|w| u128::from_str_radix(w, 16).ok());
        if let (Some(device), Some(group)) = (device, group) {
            out.push((device, Ipv6Addr::from(group).into()));
        }
    }
    Ok(out)
}

/// The groups a socket is in. Those it is not in are joined and left again, which a device that listens to them
/// anyway does not notice.
pub fn read(fd: BorrowedFd<'_>, ipv6: bool) -> Sys<Vec<Membership>> {
    let mut out = Vec::new();
    for (device, group) in groups()?.into_iter().filter(|(_, g)| g.is_ipv4() || ipv6) {
        let bytes = request(device, group);
        match setsockopt(fd, level(group), MCAST_JOIN_GROUP, &bytes) {
            Ok(()) => setsockopt(fd, level(group), MCAST_LEAVE_GROUP, &bytes)?,
            Err(Errno::EADDRINUSE) => out.push(filter(fd, device, group)?),
            Err(Errno::ENOMEM) => return Err(Errno::ENOMEM),
            // It is not in this one, and may not or cannot be: one too many, a device that is down.
            Err(_) => {}
        }
    }
    Ok(out)
}

/// `struct group_filter` of a group that the socket is in: device, group, mode, number of sources, sources.
fn filter(fd: BorrowedFd<'_>, device: u32, group: IpAddr) -> Sys<Membership> {
    let head = 8 + ADDRESS;
    let mut room = 0usize;
    loop {
        let mut bytes = request(device, group);
        bytes.extend([0; 4]);
        bytes.extend((room as u32).to_ne_bytes());
        bytes.resize(head + 8 + room * ADDRESS, 0);
        getsockopt(fd, level(group), MCAST_MSFILTER, &mut bytes)?;
        let word = |at: usize| bytes[at..].first_chunk().map_or(0, |w| u32::from_ne_bytes(*w));
        let (mode, count) = (word(head), word(head + 4) as usize);
        if count > room {
            room = count;
            continue;
        }
        let sources = bytes[head + 8..]
            .chunks_exact(ADDRESS)
            .take(count)
            .filter_map(address)
            .collect();
        return Ok(Membership {
            device,
            group,
            mode,
            sources,
        });
    }
}

/// Joins a socket to a group as it was.
pub fn join(fd: BorrowedFd<'_>, m: &Membership) -> Sys<()> {
    let mut bytes = request(m.device, m.group);
    setsockopt(fd, level(m.group), MCAST_JOIN_GROUP, &bytes)?;
    if m.mode == 0 && m.sources.is_empty() {
        return Ok(());
    }
    bytes.extend(m.mode.to_ne_bytes());
    bytes.extend((m.sources.len() as u32).to_ne_bytes());
    bytes.extend(m.sources.iter().flat_map(|s| storage(*s)));
    setsockopt(fd, level(m.group), MCAST_MSFILTER, &bytes)
}

/// Whether any socket, or the kernel, shares in an anycast address of this thread's network namespace.
pub fn any_anycast() -> bool {
    std::fs::read("/proc/thread-self/net/anycast6").is_ok_and(|all| !all.is_empty())
}

/// Has a socket share in an anycast address of a device.
pub fn share(fd: BorrowedFd<'_>, device: u32, address: Ipv6Addr) -> Sys<()> {
    const IPV6_JOIN_ANYCAST: i32 = 27;
    let request = [&address.octets()[..], &device.to_ne_bytes()].concat();
    setsockopt(fd, libc::IPPROTO_IPV6, IPV6_JOIN_ANYCAST, &request)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn memberships_are_told_and_made_anew() {
        let make = || crate::sys::socket(libc::AF_INET, libc::SOCK_DGRAM, 0).unwrap();
        let (a, b) = (make(), make());
        let lo = nix::net::if_::if_nametoindex("lo").unwrap();
        let group: IpAddr = "239.1.2.3".parse().unwrap();
        assert_eq!(read(a.as_fd(), false), Ok(Vec::new()));
        let all = Membership {
            device: lo,
            group,
            mode: 0,
            sources: Vec::new(),
        };
        let some = Membership {
            mode: 1,
            sources: vec!["127.0.0.1".parse().unwrap()],
            ..all.clone()
        };
        join(a.as_fd(), &all).unwrap();
        join(b.as_fd(), &some).unwrap();
        assert_eq!(read(a.as_fd(), false), Ok(vec![all]));
        assert_eq!(read(b.as_fd(), false), Ok(vec![some]));
    }
}
