//! What the kernel tells of all sockets of freeze's network namespace: who is joined to whom, names, halves that are shut.

use super::sockets::{Socket, ask, inet, u16_at, u32_at};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use std::collections::HashMap;
use std::net::SocketAddr;
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
}

/// All sockets that /proc/net shows in its table `protocol` (`tcp`, `tcp6`, `udp` …), by inode.
pub fn inet_sockets(protocol: &'static str) -> HashMap<u64, InetSocket> {
    let text = std::fs::read_to_string(format!("/proc/self/net/{protocol}")).unwrap_or_default();
    let plain = |a: SocketAddr| SocketAddr::new(a.ip().to_canonical(), a.port());
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
                },
            )),
            _ => None,
        })
        .collect()
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
        if length == 0 || !messages(&buffer[..length], &mut out)? {
            return Ok(out);
        }
    }
}

/// Takes the sockets out of one datagram; `false` after the last one.
fn messages(mut bytes: &[u8], out: &mut HashMap<u64, UnixSocket>) -> nix::Result<bool> {
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
            _ => out.extend(unix_socket(message)),
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
