//! Sockets as their messages: data with names, credentials and descriptors, read without being taken out.
#![allow(unsafe_code, reason = "control messages are built and taken apart by hand")]

use super::{Sys, getsockopt, owned, plain, raw, setsockopt};
use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// The name of the protocol of the socket behind `path` (`/proc/PID/fd/N`): `TCP`, `UNIX-STREAM` and the like.
pub fn protocol_of(path: &str) -> Sys<String> {
    let path = std::ffi::CString::new(path).map_err(|_| Errno::EINVAL)?;
    let mut name = [0u8; 64];
    let key = c"system.sockprotoname".as_ptr() as u64;
    let args = [
        path.as_ptr() as u64,
        key,
        name.as_mut_ptr() as u64,
        name.len() as u64,
        0,
        0,
    ];
    // SAFETY: two terminated strings, and a buffer with its length.
    let len = unsafe { raw(libc::SYS_getxattr, args)? } as usize;
    let name = name[..len.min(64)].split(|b| *b == 0).next().unwrap_or_default();
    Ok(String::from_utf8_lossy(name).into_owned())
}

/// Who sent something, as SO_PASSCRED shows it: pid, uid, gid.
pub type Credentials = (i32, u32, u32);

/// One message as recvmsg(2) gives it.
#[derive(Debug, Default)]
pub struct Message {
    pub data: Vec<u8>,
    /// The sender's address, empty where it has none.
    pub name: Vec<u8>,
    pub fds: Vec<OwnedFd>,
    pub credentials: Option<Credentials>,
    /// `MSG_TRUNC`, `MSG_CTRUNC`, `MSG_EOR` … of the message.
    pub flags: i32,
    /// Its whole length, also where it did not fit.
    pub whole: usize,
}

const SCM_PIDFD: i32 = 4;

/// recvmsg(2); how much it tells.
///
/// # Safety
/// What the header points to is alive and as long as it says, or nothing that the kernel could find.
pub(super) unsafe fn recvmsg(fd: BorrowedFd<'_>, header: &mut libc::msghdr, flags: i32) -> Sys<usize> {
    let args = [
        fd.as_raw_fd() as u64,
        &raw mut *header as u64,
        flags as u64,
        0,
        0,
        0,
    ];
    // SAFETY: the caller's promise.
    unsafe { raw(libc::SYS_recvmsg, args) }.map(|n| n as usize)
}

/// recvmsg(2) with room for `room` bytes of data, 253 descriptors and credentials; never waits.
pub fn receive(fd: BorrowedFd<'_>, room: usize, flags: i32) -> Sys<Message> {
    let mut data = vec![0u8; room.max(1)];
    let mut name = [0u8; 256];
    // Room for SCM_MAX_FD descriptors and for whatever else the socket's options add.
    let mut control = vec![0u64; 512];
    let mut part = libc::iovec {
        iov_base: data.as_mut_ptr().cast(),
        iov_len: room,
    };
    // SAFETY: a structure of plain numbers and pointers, for which zeros are valid.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_name = name.as_mut_ptr().cast();
    header.msg_namelen = name.len() as u32;
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = control.len() * 8;
    let flags = flags | libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC | libc::MSG_TRUNC;
    // SAFETY: the header points to live buffers with their lengths.
    let whole = unsafe { recvmsg(fd, &mut header, flags) }?;
    let mut out = Message {
        flags: header.msg_flags,
        whole,
        ..Message::default()
    };
    // SAFETY: the kernel filled the control buffer as msg_controllen tells; CMSG_* walk within it.
    unsafe {
        let mut at = libc::CMSG_FIRSTHDR(&raw const header);
        while let Some(head) = at.as_ref() {
            let body = libc::CMSG_DATA(at);
            let len = head.cmsg_len.saturating_sub(libc::CMSG_LEN(0) as usize);
            if head.cmsg_level == libc::SOL_SOCKET && head.cmsg_type == libc::SCM_RIGHTS {
                for n in 0..len / 4 {
                    out.fds
                        .push(owned(i64::from(body.cast::<RawFd>().add(n).read_unaligned())));
                }
            }
            if head.cmsg_level == libc::SOL_SOCKET && head.cmsg_type == SCM_PIDFD && len >= 4 {
                // Of who sent it, whom the credentials tell too.
                drop(owned(i64::from(body.cast::<RawFd>().read_unaligned())));
            }
            if head.cmsg_level == libc::SOL_SOCKET && head.cmsg_type == libc::SCM_CREDENTIALS && len >= 12 {
                let words = body.cast::<u32>();
                out.credentials = Some((
                    words.read_unaligned() as i32,
                    words.add(1).read_unaligned(),
                    words.add(2).read_unaligned(),
                ));
            }
            at = libc::CMSG_NXTHDR(&raw const header, at);
        }
    }
    data.truncate(whole.min(room));
    out.data = data;
    out.name = name[..(header.msg_namelen as usize).min(name.len())].to_vec();
    Ok(out)
}

/// sendmsg(2) of one message; never waits. Tells how many bytes went.
pub fn send(
    fd: BorrowedFd<'_>,
    data: &[u8],
    to: Option<&[u8]>,
    fds: &[RawFd],
    credentials: Option<Credentials>,
    flags: i32,
) -> Sys<usize> {
    let mut control = vec![0u64; 512];
    let mut part = libc::iovec {
        iov_base: data.as_ptr().cast_mut().cast(),
        iov_len: data.len(),
    };
    // SAFETY: a structure of plain numbers and pointers, for which zeros are valid.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    if let Some(to) = to {
        header.msg_name = to.as_ptr().cast_mut().cast();
        header.msg_namelen = to.len() as u32;
    }
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = control.len() * 8;
    let mut used = 0;
    let rights: Vec<u8> = fds.iter().flat_map(|f| f.to_ne_bytes()).collect();
    let who: Vec<u8> = credentials
        .iter()
        .flat_map(|(pid, uid, gid)| [*pid as u32, *uid, *gid])
        .flat_map(u32::to_ne_bytes)
        .collect();
    // SAFETY: at most 253 descriptors and one set of credentials fit the 4 KiB buffer; CMSG_* walk within it.
    unsafe {
        let mut at = libc::CMSG_FIRSTHDR(&raw const header);
        for (kind, body) in [(libc::SCM_RIGHTS, &rights), (libc::SCM_CREDENTIALS, &who)] {
            if body.is_empty() {
                continue;
            }
            if body.len() > 1024 || at.is_null() {
                return Err(Errno::EINVAL);
            }
            (*at).cmsg_level = libc::SOL_SOCKET;
            (*at).cmsg_type = kind;
            (*at).cmsg_len = libc::CMSG_LEN(body.len() as u32) as usize;
            std::ptr::copy_nonoverlapping(body.as_ptr(), libc::CMSG_DATA(at), body.len());
            used += libc::CMSG_SPACE(body.len() as u32) as usize;
            at = libc::CMSG_NXTHDR(&raw const header, at);
        }
    }
    header.msg_controllen = used;
    if used == 0 {
        header.msg_control = std::ptr::null_mut();
    }
    let flags = flags | libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the header points to live buffers with their lengths.
    let sent = unsafe {
        raw(
            libc::SYS_sendmsg,
            [
                fd.as_raw_fd() as u64,
                &raw const header as u64,
                flags as u64,
                0,
                0,
                0,
            ],
        )?
    };
    Ok(sent as usize)
}

/// socketpair(2), close-on-exec.
pub fn pair(domain: i32, kind: i32, protocol: i32) -> Sys<(OwnedFd, OwnedFd)> {
    let mut fds = [0i32; 2];
    let kind = kind | libc::SOCK_CLOEXEC;
    let args = [
        domain as u64,
        kind as u64,
        protocol as u64,
        fds.as_mut_ptr() as u64,
        0,
        0,
    ];
    // SAFETY: the call writes two ints.
    unsafe { raw(libc::SYS_socketpair, args)? };
    Ok((owned(i64::from(fds[0])), owned(i64::from(fds[1]))))
}

/// listen(2).
pub fn listen(fd: BorrowedFd<'_>, backlog: i32) -> Sys<()> {
    plain(
        libc::SYS_listen,
        [fd.as_raw_fd() as u64, backlog as u64, 0, 0, 0, 0],
    )
    .map(drop)
}

/// accept4(2), close-on-exec; never mind who came.
pub fn accept(fd: BorrowedFd<'_>) -> Sys<OwnedFd> {
    plain(
        libc::SYS_accept4,
        [fd.as_raw_fd() as u64, 0, 0, libc::SOCK_CLOEXEC as u64, 0, 0],
    )
    .map(owned)
}

/// shutdown(2) of the halves in a mask: 1 receiving, 2 sending.
pub fn shutdown(fd: BorrowedFd<'_>, mask: u8) -> Sys<()> {
    match mask & 3 {
        0 => Ok(()),
        mask => plain(
            libc::SYS_shutdown,
            [fd.as_raw_fd() as u64, u64::from(mask - 1), 0, 0, 0, 0],
        )
        .map(drop),
    }
}

/// A descriptor (`O_PATH`) of the file that a unix socket is bound to, even when it has no name any more; needs
/// CAP_NET_ADMIN. ENOENT for a socket that is bound to none.
pub fn bound_file(fd: BorrowedFd<'_>) -> Sys<OwnedFd> {
    const SIOCUNIXFILE: u64 = 0x89e0;
    plain(libc::SYS_ioctl, [fd.as_raw_fd() as u64, SIOCUNIXFILE, 0, 0, 0, 0]).map(owned)
}

/// What poll(2) reports at once.
pub fn poll(fd: BorrowedFd<'_>) -> Sys<i16> {
    let mut one = libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLIN | libc::POLLOUT | libc::POLLRDHUP,
        revents: 0,
    };
    // SAFETY: one live structure.
    unsafe { raw(libc::SYS_poll, [&raw mut one as u64, 1, 0, 0, 0, 0])? };
    Ok(one.revents)
}

/// Whether out-of-band data waits to be read, which peeking at the rest would lose.
pub fn urgent(fd: BorrowedFd<'_>) -> bool {
    let flags = nix::sys::socket::MsgFlags::MSG_OOB | nix::sys::socket::MsgFlags::MSG_PEEK;
    let flags = flags | nix::sys::socket::MsgFlags::MSG_DONTWAIT;
    match nix::sys::socket::recv(fd.as_raw_fd(), &mut [0], flags) {
        // It has been announced, and is on its way.
        Err(Errno::EAGAIN) => true,
        Ok(n) => n > 0,
        Err(_) => false,
    }
}

/// An option that is an int.
pub fn option(fd: BorrowedFd<'_>, level: i32, name: i32) -> Sys<i32> {
    let mut bytes = [0; 4];
    getsockopt(fd, level, name, &mut bytes)?;
    Ok(i32::from_ne_bytes(bytes))
}

/// Sets an option that is an int.
pub fn set_option(fd: BorrowedFd<'_>, level: i32, name: i32, value: i32) -> Sys<()> {
    setsockopt(fd, level, name, &value.to_ne_bytes())
}

/// Puts an int option back to what it was when dropped.
#[derive(Debug)]
pub struct Meanwhile<'a> {
    fd: BorrowedFd<'a>,
    option: (i32, i32),
    before: i32,
}

impl<'a> Meanwhile<'a> {
    /// Sets the option for as long as the result lives.
    pub fn set(fd: BorrowedFd<'a>, level: i32, name: i32, value: i32) -> Sys<Meanwhile<'a>> {
        let before = option(fd, level, name)?;
        set_option(fd, level, name, value)?;
        Ok(Meanwhile {
            fd,
            option: (level, name),
            before,
        })
    }
}

impl Drop for Meanwhile<'_> {
    fn drop(&mut self) {
        // It took this value before, and takes it again.
        let _ = set_option(self.fd, self.option.0, self.option.1, self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_message_comes_with_all_that_was_sent() {
        let (a, b) = pair(libc::AF_UNIX, libc::SOCK_DGRAM, 0).unwrap();
        set_option(b.as_fd(), libc::SOL_SOCKET, libc::SO_PASSCRED, 1).unwrap();
        let me = (
            std::process::id() as i32,
            nix::unistd::getuid().as_raw(),
            nix::unistd::getgid().as_raw(),
        );
        send(
            a.as_fd(),
            b"hello",
            None,
            &[a.as_raw_fd(), b.as_raw_fd()],
            Some(me),
            0,
        )
        .unwrap();
        for flags in [libc::MSG_PEEK, 0] {
            let got = receive(b.as_fd(), 3, flags).unwrap();
            assert_eq!(
                (got.data.as_slice(), got.whole, got.fds.len()),
                (b"hel".as_slice(), 5, 2)
            );
            assert_eq!(got.credentials, Some(me));
        }
        assert_eq!(receive(b.as_fd(), 3, 0).unwrap_err(), Errno::EAGAIN);
    }

    #[test]
    fn protocols_are_told_by_name() {
        let (a, _b) = pair(libc::AF_UNIX, libc::SOCK_STREAM, 0).unwrap();
        let path = format!("/proc/self/fd/{}", a.as_raw_fd());
        assert!(protocol_of(&path).unwrap().starts_with("UNIX"));
    }
}
