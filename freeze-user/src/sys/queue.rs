//! What waits in the receive queue of a socket, read without taking it out.

use super::socket::{Meanwhile, Message, receive};
use super::{Sys, ioctl_int};
use nix::errno::Errno;
use std::os::fd::BorrowedFd;

/// Whether what is read next is a byte of out-of-band data, or comes after one.
const SIOCATMARK: u64 = 0x8905;

/// Bytes to be read (SIOCINQ); of datagrams the first one's, except with unix seqpacket sockets.
fn unread(fd: BorrowedFd<'_>) -> Sys<usize> {
    ioctl_int(fd, libc::FIONREAD).map(|n| n.max(0) as usize)
}

/// Everything in the queue of a unix stream socket; more than one message only where descriptors, credentials or a byte of
/// out-of-band data part them. ENODATA if something in it cannot be read this way.
pub fn peek_stream(fd: BorrowedFd<'_>) -> Sys<Vec<Message>> {
    let whole = unread(fd)?;
    if whole == 0 {
        return Ok(Vec::new());
    }
    if super::socket::urgent(fd) {
        return peek_around_urgent(fd, whole);
    }
    let _credentials = match wants_pidfds(fd) {
        true => Some(Meanwhile::set(fd, libc::SOL_SOCKET, libc::SO_PASSCRED, 1)?),
        false => None,
    };
    // A look moves the program's own offset, if it has set one: it is put back.
    let _offset = Meanwhile::set(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF, 0)?;
    let mut out: Vec<Message> = Vec::new();
    let mut got = 0;
    while got < whole {
        match receive(fd, whole - got, libc::MSG_PEEK) {
            Ok(mut m) if !m.data.is_empty() => {
                let start = got;
                got += m.data.len();
                if !m.fds.is_empty() {
                    let before = before_descriptors(fd, start, m.data.len())?;
                    super::socket::set_option(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF, got as i32)?;
                    if before > 0 {
                        out.push(Message {
                            data: m.data.drain(..before).collect(),
                            whole: before,
                            credentials: m.credentials,
                            ..Message::default()
                        });
                    }
                }
                out.push(m);
            }
            Ok(_) | Err(Errno::EAGAIN) => return Err(Errno::ENODATA),
            Err(e) => return Err(e),
        }
    }
    Ok(out)
}

/// The same with a byte of out-of-band data in it, which is told by MSG_OOB in the flags of its message.
///
/// A look from the beginning ends before that byte, or passes over it if it is the first; one that begins at it takes it for
/// any other. Where descriptors or credentials end a look too, it is not known which of the bounds it is.
fn peek_around_urgent(fd: BorrowedFd<'_>, whole: usize) -> Sys<Vec<Message>> {
    let mut urgent = receive(fd, 1, libc::MSG_PEEK | libc::MSG_OOB)?;
    urgent.flags |= libc::MSG_OOB;
    let first = ioctl_int(fd, SIOCATMARK)? != 0;
    let _offset = Meanwhile::set(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF, 0)?;
    let look = |room: usize| match receive(fd, room, libc::MSG_PEEK) {
        Err(Errno::EAGAIN) => Ok(None),
        Ok(m) if m.data.is_empty() => Ok(None),
        Ok(m) if m.fds.is_empty() => Ok(Some(m)),
        Ok(_) => Err(Errno::ENODATA),
        Err(e) => Err(e),
    };
    let mut out = Vec::new();
    if !first {
        out.extend(look(whole)?);
        // The byte itself, as any other.
        let same = look(1)?.is_some_and(|m| m.data == urgent.data);
        same.then_some(()).ok_or(Errno::ENODATA)?;
    }
    out.push(urgent);
    let seen = |out: &[Message]| out.iter().map(|m| m.data.len()).sum::<usize>();
    while seen(&out) < whole {
        out.push(look(whole - seen(&out))?.ok_or(Errno::ENODATA)?);
    }
    let known = out.iter().all(|m| m.fds.is_empty() && m.credentials.is_none());
    (known && seen(&out) == whole)
        .then_some(out)
        .ok_or(Errno::ENODATA)
}

/// How much of what is seen at `start` came before what the descriptors came with.
///
/// One look goes on from data without descriptors into data with them, but who reads no further than the first gets none.
/// A look that has no place for its last byte ends before the buffer which that is in: the one with the descriptors.
fn before_descriptors(fd: BorrowedFd<'_>, start: usize, len: usize) -> Sys<usize> {
    super::socket::set_option(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF, start as i32)?;
    let mut data = vec![0u8; len];
    let mut parts = [
        libc::iovec {
            iov_base: data.as_mut_ptr().cast(),
            iov_len: len - 1,
        },
        libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 1,
        },
    ];
    // SAFETY: a structure of plain numbers and pointers, for which zeros are valid.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = parts.as_mut_ptr();
    header.msg_iovlen = parts.len();
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    // SAFETY: the header points to live buffers with their lengths, and to nothing where the kernel is to find nothing.
    match unsafe { super::socket::recvmsg(fd, &mut header, flags) } {
        Err(Errno::EFAULT) => Ok(0),
        got => got,
    }
}

/// The most a datagram on one machine has: what the largest send buffer can hold is asked for in steps.
const FIRST_ROOM: usize = 1 << 16;

/// Everything in the queue of a socket that keeps boundaries.
///
/// The kernel marks an empty datagram that was looked at, and shows it to no second look from an offset, the first of the
/// queue only to one without; the program still gets it (see `Sockets::with_hidden`).
pub fn peek_packets(fd: BorrowedFd<'_>) -> Sys<Vec<Message>> {
    if super::socket::poll(fd)? & libc::POLLIN == 0 {
        return Ok(Vec::new());
    }
    let mut out = Vec::new();
    let mut room = FIRST_ROOM;
    let mut offset = 0usize;
    let ended = ended(fd)?;
    // Only unix sockets have it; others do not tell the end this way.
    let _credentials = match ended || wants_pidfds(fd) {
        true => Meanwhile::set(fd, libc::SOL_SOCKET, libc::SO_PASSCRED, 1).ok(),
        false => None,
    };
    let _offset = Meanwhile::set(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF, -1)?;
    let look_from = |offset: i32| super::socket::set_option(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF, offset);
    loop {
        match receive(fd, room, libc::MSG_PEEK) {
            Ok(m) if m.whole > m.data.len() => {
                // Too long for the room: the same again with enough of it.
                room = m.whole;
                look_from(offset as i32)?;
            }
            // The end of a connection, which comes again and again; a packet has a sender.
            Ok(m) if m.whole == 0 && ended && m.credentials.is_none() => return Ok(out),
            Ok(m) => {
                offset += m.whole;
                if out.is_empty() {
                    look_from(offset as i32)?;
                }
                out.push(m);
            }
            Err(Errno::EAGAIN) => return Ok(out),
            Err(e) => return Err(e),
        }
    }
}

/// Whether the program is handed a pidfd of who sent something: whose, only the credentials tell.
fn wants_pidfds(fd: BorrowedFd<'_>) -> bool {
    const SO_PASSPIDFD: i32 = 76;
    super::socket::option(fd, libc::SOL_SOCKET, SO_PASSPIDFD).is_ok_and(|v| v != 0)
}

/// Whether nothing will ever come any more.
fn ended(fd: BorrowedFd<'_>) -> Sys<bool> {
    super::socket::poll(fd).map(|seen| seen & libc::POLLRDHUP != 0 || seen & libc::POLLHUP != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::socket::{pair, send};
    use std::os::fd::{AsFd, AsRawFd};

    #[test]
    fn a_stream_is_seen_whole_with_its_descriptors() {
        let (a, b) = pair(libc::AF_UNIX, libc::SOCK_STREAM, 0).unwrap();
        assert!(peek_stream(b.as_fd()).unwrap().is_empty());
        send(a.as_fd(), b"one", None, &[], None, 0).unwrap();
        send(a.as_fd(), b"two", None, &[a.as_raw_fd()], None, 0).unwrap();
        send(a.as_fd(), b"three", None, &[], None, 0).unwrap();
        for _ in 0..2 {
            let seen = peek_stream(b.as_fd()).unwrap();
            let parts: Vec<_> = seen.iter().map(|m| (m.data.as_slice(), m.fds.len())).collect();
            assert_eq!(
                parts.iter().flat_map(|p| p.0).copied().collect::<Vec<u8>>(),
                b"onetwothree"
            );
            let bounds: Vec<_> = parts.iter().map(|p| (p.0.len(), p.1)).collect();
            assert_eq!(bounds, [(3, 0), (3, 1), (5, 0)]);
        }
        assert_eq!(receive(b.as_fd(), 100, 0).unwrap().data, b"onetwo");
    }

    #[test]
    fn a_byte_of_out_of_band_data_is_seen_in_its_place() {
        let parts = |b: BorrowedFd<'_>| -> Vec<(Vec<u8>, bool)> {
            let seen = peek_stream(b).unwrap();
            seen.into_iter()
                .map(|m| (m.data, m.flags & libc::MSG_OOB != 0))
                .collect()
        };
        for (before, after) in [("ab", "cd"), ("", "cd"), ("ab", ""), ("", "")] {
            let (a, b) = pair(libc::AF_UNIX, libc::SOCK_STREAM, 0).unwrap();
            let send = |data: &str, flags| send(a.as_fd(), data.as_bytes(), None, &[], None, flags).unwrap();
            if !before.is_empty() {
                send(before, 0);
            }
            send("!", libc::MSG_OOB);
            if !after.is_empty() {
                send(after, 0);
            }
            let all = [(before, false), ("!", true), (after, false)].map(|(d, u)| (d.as_bytes().to_vec(), u));
            let expected: Vec<_> = all.into_iter().filter(|(d, _)| !d.is_empty()).collect();
            for _ in 0..2 {
                assert_eq!(parts(b.as_fd()), expected);
            }
            assert_eq!(receive(b.as_fd(), 9, libc::MSG_OOB).unwrap().data, b"!");
        }
    }

    #[test]
    fn packets_keep_their_bounds() {
        for kind in [libc::SOCK_DGRAM, libc::SOCK_SEQPACKET] {
            let (a, b) = pair(libc::AF_UNIX, kind, 0).unwrap();
            let big = vec![7; 100_000];
            for data in [b"one".as_slice(), &big, b"three"] {
                send(a.as_fd(), data, None, &[], None, 0).unwrap();
            }
            for _ in 0..2 {
                let seen = peek_packets(b.as_fd()).unwrap();
                assert_eq!(
                    seen.iter().map(|m| m.data.len()).collect::<Vec<_>>(),
                    [3, 100_000, 5]
                );
            }
            assert_eq!(receive(b.as_fd(), 100, 0).unwrap().data, b"one");
            send(a.as_fd(), b"", None, &[], None, 0).unwrap();
            drop(a);
            let seen = peek_packets(b.as_fd()).unwrap();
            assert_eq!(
                seen.iter().map(|m| m.data.len()).collect::<Vec<_>>(),
                [100_000, 5, 0]
            );
        }
    }
}
