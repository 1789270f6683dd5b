//! Netlink requests: messages with attributes, sent to the kernel and answered.

use super::{Sys, setsockopt};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

const REQUEST: u16 = 1;
const ACK: u16 = 4;
/// NLM_F_ROOT | NLM_F_MATCH.
const DUMP: u16 = 0x300;
pub const CREATE: u16 = 0x400;
pub const REPLACE: u16 = 0x100;
pub const EXCL: u16 = 0x200;
pub const APPEND: u16 = 0x800;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// NLM_F_DUMP_INTR: what is told has changed meanwhile.
const CHANGED: u16 = 0x10;
/// The type of an attribute without its flags (nested, in network order).
const TYPE: u16 = 0x3fff;

/// A message of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Without the number of the subsystem.
    pub kind: u16,
    pub flags: u16,
    /// From `struct nfgenmsg` on.
    pub body: Vec<u8>,
}

/// A connection to rtnetlink in the network namespace of the thread that made it.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    /// Opens one to rtnetlink(7).
    pub fn route() -> Sys<Netlink> {
        Netlink::new(SockProtocol::NetlinkRoute)
    }

    /// Opens one to the packet filter.
    pub fn netfilter() -> Sys<Netlink> {
        Netlink::new(SockProtocol::NetlinkNetFilter)
    }

    /// Opens one to IPsec.
    pub fn xfrm() -> Sys<Netlink> {
        const NETLINK_XFRM: i32 = 6;
        let socket = super::socket(libc::AF_NETLINK, libc::SOCK_RAW, NETLINK_XFRM)?;
        Ok(Netlink { socket, sequence: 0 })
    }

    fn new(protocol: SockProtocol) -> Sys<Netlink> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            protocol,
        )?;
        Ok(Netlink { socket, sequence: 0 })
    }

    /// Asks for everything of a kind: the bodies of the answers, as they were at one moment.
    pub fn dump(&mut self, kind: u16, body: &[u8]) -> Sys<Vec<Vec<u8>>> {
        const TIMES: usize = 100;
        for _ in 0..TIMES {
            self.send(kind, DUMP, body)?;
            match self.answers() {
                Err(Errno::EINTR) => {}
                done => return done,
            }
        }
        Err(Errno::EBUSY)
    }

    /// Takes every device down but the loopback.
    pub fn take_down(&mut self) -> Sys<()> {
        const GETLINK: u16 = 18;
        const SETLINK: u16 = 19;
        const UP: u32 = 1;
        const LOOPBACK: u32 = 8;
        for message in self.dump(GETLINK, &[0; 16])? {
            let Some(head) = message.first_chunk::<16>() else {
                continue;
            };
            let flags = u32::from_ne_bytes([head[8], head[9], head[10], head[11]]);
            if flags & LOOPBACK == 0 {
                let mut body = [0; 16];
                body[4..8].copy_from_slice(&head[4..8]);
                body[12..].copy_from_slice(&UP.to_ne_bytes());
                self.request(SETLINK, 0, &body)?;
            }
        }
        Ok(())
    }

    /// Asks one question: the bodies of the answers.
    pub fn ask(&mut self, kind: u16, body: &[u8]) -> Sys<Vec<Vec<u8>>> {
        self.send(kind, ACK, body)?;
        self.answers()
    }

    /// Has something done; `flags` are [`CREATE`] and the like.
    pub fn request(&mut self, kind: u16, flags: u16, body: &[u8]) -> Sys<()> {
        self.send(kind, flags | ACK, body)?;
        self.answers().map(drop)
    }

    /// Has messages of a subsystem of the packet filter carried out together, or none of them: then the error says which
    /// one (its place among them, or their number if it is all together) the kernel did not take.
    pub fn batch(&mut self, subsystem: u8, messages: &[Message]) -> Result<(), (usize, Errno)> {
        const BEGIN: u16 = 16;
        const END: u16 = 17;
        const GET_GENERATION: u16 = 16;
        let of = |sequence: u32| move |e| (sequence as usize, e);
        let first = self.sequence + 1;
        let mut all = Vec::new();
        let border = [0, 0, 0, subsystem];
        self.write(&mut all, BEGIN, 0, &border);
        for message in messages {
            let kind = u16::from(subsystem) << 8 | message.kind;
            self.write(&mut all, kind, message.flags, &message.body);
        }
        self.write(&mut all, END, 0, &border);
        // A batch is one datagram, however long.
        const SO_SNDBUFFORCE: i32 = 32;
        let room = i32::try_from(all.len().saturating_add(1 << 16)).unwrap_or(i32::MAX / 2);
        setsockopt(
            self.socket.as_fd(),
            libc::SOL_SOCKET,
            SO_SNDBUFFORCE,
            &room.to_ne_bytes(),
        )
        .map_err(of(messages.len() as u32))?;
        send(self.socket.as_raw_fd(), &all, MsgFlags::empty()).map_err(of(messages.len() as u32))?;
        // Only errors are told. Whoever asks something after the batch gets them before the answer.
        let last = self.sequence;
        self.send(u16::from(subsystem) << 8 | GET_GENERATION, ACK, &[0; 4])
            .map_err(of(messages.len() as u32))?;
        let mut failed = None;
        self.listen(|sequence, error| {
            if (first..=last).contains(&sequence) && failed.is_none() {
                let place = (sequence - first)
                    .checked_sub(1)
                    .map_or(messages.len(), |n| n as usize);
                failed = Some((place.min(messages.len()), error));
            }
        })
        .map_err(of(messages.len() as u32))?;
        failed.map_or(Ok(()), Err)
    }

    fn write(&mut self, to: &mut Vec<u8>, kind: u16, flags: u16, body: &[u8]) {
        self.sequence += 1;
        to.extend(((16 + body.len()) as u32).to_ne_bytes());
        to.extend(kind.to_ne_bytes());
        to.extend((REQUEST | flags).to_ne_bytes());
        to.extend(self.sequence.to_ne_bytes());
        to.extend([0; 4]);
        to.extend(body);
        to.resize(to.len().next_multiple_of(4), 0);
    }

    fn send(&mut self, kind: u16, flags: u16, body: &[u8]) -> Sys<()> {
        let mut message = Vec::new();
        self.write(&mut message, kind, flags, body);
        send(self.socket.as_raw_fd(), &message, MsgFlags::empty()).map(drop)
    }

    fn answers(&mut self) -> Sys<Vec<Vec<u8>>> {
        self.listen(|_, _| {})
    }

    /// The answers to what was asked last; `other` hears of errors of what was asked before.
    fn listen(&mut self, mut other: impl FnMut(u32, Errno)) -> Sys<Vec<Vec<u8>>> {
        let mut out = Vec::new();
        let mut changed = false;
        let mut buffer = vec![0u8; 1 << 17];
        loop {
            let length = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            let mut bytes = &buffer[..length];
            while bytes.len() >= 16 {
                let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap_or_default());
                let (length, sequence) = (word(0) as usize, word(8));
                let kind = word(4) as u16;
                let Some(body) = bytes.get(16..length) else {
                    return Err(Errno::EPROTO);
                };
                let code = || {
                    let code = body.get(..4).and_then(|b| b.try_into().ok());
                    code.map_or(-libc::EPROTO, i32::from_ne_bytes)
                };
                if sequence == self.sequence {
                    changed |= (word(4) >> 16) as u16 & CHANGED != 0;
                    match kind {
                        // What could not be told to the end.
                        NLMSG_DONE if body.len() >= 4 && code() < 0 => return Err(Errno::from_raw(-code())),
                        NLMSG_DONE if changed => return Err(Errno::EINTR),
                        NLMSG_DONE => return Ok(out),
                        NLMSG_ERROR => {
                            return match code() {
                                0 => Ok(out),
                                e => Err(Errno::from_raw(-e)),
                            };
                        }
                        _ => out.push(body.to_vec()),
                    }
                } else if kind == NLMSG_ERROR && code() != 0 {
                    other(sequence, Errno::from_raw(-code()));
                }
                bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }
}

/// The attributes of a message after `head` bytes: types without flags, and values.
pub fn attributes(body: &[u8], head: usize) -> Vec<(u16, &[u8])> {
    let mut out = Vec::new();
    let mut rest = body.get(head..).unwrap_or_default();
    while rest.len() >= 4 {
        let length = usize::from(u16::from_ne_bytes([rest[0], rest[1]]));
        let kind = u16::from_ne_bytes([rest[2], rest[3]]);
        let Some(value) = rest.get(4..length) else { break };
        out.push((kind & TYPE, value));
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    out
}

/// Adds an attribute to a message.
pub fn put(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    message.extend(((4 + value.len()) as u16).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(value);
    message.resize(message.len().next_multiple_of(4), 0);
}

/// Adds an attribute that consists of others, which `fill` adds.
pub fn nest(message: &mut Vec<u8>, kind: u16, fill: impl FnOnce(&mut Vec<u8>)) {
    const NESTED: u16 = 0x8000;
    let mut inner = Vec::new();
    fill(&mut inner);
    put(message, kind | NESTED, &inner);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_is_there() {
        const RTM_GETLINK: u16 = 18;
        const IFLA_IFNAME: u16 = 3;
        let mut netlink = Netlink::route().unwrap();
        let links = netlink.dump(RTM_GETLINK, &[0; 16]).unwrap();
        let name = |l: &Vec<u8>| {
            attributes(l, 16)
                .iter()
                .any(|(k, v)| *k == IFLA_IFNAME && *v == b"lo\0")
        };
        assert!(links.iter().any(name));
        assert!(
            netlink.request(RTM_GETLINK, 0, &[0xff; 16]).is_err(),
            "an error is told"
        );
    }

    #[test]
    fn attributes_are_read_as_written() {
        let mut message = vec![1, 2, 3, 4];
        put(&mut message, 7, b"abc");
        nest(&mut message, 9, |m| put(m, 1, &[5; 4]));
        let all = attributes(&message, 4);
        assert_eq!(all[0], (7, &b"abc"[..]));
        assert_eq!(all[1].0, 9);
        assert_eq!(attributes(all[1].1, 0), [(1, &[5u8; 4][..])]);
    }
}
