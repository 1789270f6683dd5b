//! A TCP socket whose connection has failed, which the program was not told yet: the error, and what had come before it.

use super::super::pipe::Bytes;
use super::super::socket::inet_address;
use crate::error::{Blocker, Context, Result};
use crate::observe::peek::arrived::Sockets;
use crate::observe::view::FdView;
use crate::sys::datagram::address_of;
use crate::sys::tcp::peek_over;
use crate::sys::{self, ioctl_int, setsockopt, socket};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// What the next call that finds nothing to read is told.
    pub error: i32,
    pub received: Bytes,
    /// Whether the program itself gave the connection up (connect(2) with AF_UNSPEC): it may make another.
    #[serde(default)]
    pub given_up: bool,
}

/// The errors that can be brought about again.
const KNOWN: [i32; 3] = [libc::ECONNRESET, libc::EPIPE, libc::ECONNREFUSED];

/// What keeps a closed socket from being carried: an error that cannot be seen, since to ask for it is to take it.
pub(super) fn obstacle(fd: &FdView, held: BorrowedFd<'_>) -> Option<Blocker> {
    if !pending(held) {
        return None;
    }
    let why = match Sockets::get().and_then(|s| s.error(held)) {
        Some(error) if KNOWN.contains(&error) => return None,
        Some(error) => format!(
            "it has failed ({}), and the program was not told yet",
            Errno::from_raw(error).desc()
        ),
        None => {
            "it has failed, and the program was not told yet why; freeze is not allowed to look".to_owned()
        }
    };
    Some(
        fd.blocker()
            .why(why)
            .remedy("let the program ask for the error first"),
    )
}

/// Whether the next call is told of an error.
fn pending(held: BorrowedFd<'_>) -> bool {
    socket::poll(held).is_ok_and(|seen| seen & libc::POLLERR != 0)
}

/// Records a closed socket that has failed; nothing if it has not.
pub(super) fn collect(fd: &FdView, held: BorrowedFd<'_>) -> Result<Option<Failed>> {
    if !pending(held) {
        return Ok(None);
    }
    let name = || fd.label();
    if let Some(blocker) = obstacle(fd, held) {
        return Err(blocker.refuse());
    }
    let error = Sockets::get().and_then(|s| s.error(held)).unwrap_or(0);
    // With nothing to read, even a look would take the error.
    let received = match ioctl_int(held, libc::FIONREAD).on("ioctl(FIONREAD)", name)? {
        n if n > 0 => peek_over(held).on("recv(MSG_PEEK)", name)?,
        _ => Vec::new(),
    };
    // What was given up is as new but for the error; of everything else that fails both halves are shut.
    let seen = socket::poll(held).on("poll", name)?;
    Ok(Some(Failed {
        given_up: seen & libc::POLLRDHUP == 0,
        error,
        received: Bytes(received),
    }))
}

/// Lets a new socket fail as that one did, by another end that lives just for it.
pub(super) fn restore(
    failed: &Failed,
    fd: BorrowedFd<'_>,
    domain: i32,
    local: Option<&Bytes>,
) -> nix::Result<()> {
    // What failed before it was connected, and had not been bound by itself, has no port any more.
    let named = local.filter(|l| inet_address(&l.0).is_some_and(|a| a.port() != 0));
    if let Some(local) = named {
        super::bind_beside(fd, &local.0)?;
    }
    let make = || sys::socket(domain, libc::SOCK_STREAM, libc::IPPROTO_TCP);
    let server = make()?;
    let own = local.and_then(|l| inet_address(&l.0));
    let ip = own.map(|a| a.ip()).filter(|ip| !ip.is_unspecified());
    let ip = ip.unwrap_or(match domain {
        libc::AF_INET => std::net::Ipv4Addr::LOCALHOST.into(),
        _ => std::net::Ipv6Addr::LOCALHOST.into(),
    });
    sys::socket_to(server.as_fd(), false, &address_of((ip, 0).into(), false))?;
    let way = sys::socket_name(server.as_fd(), false)?;
    if failed.error == libc::ECONNREFUSED {
        super::connect(fd, &way, false)?;
        return until_failed(fd);
    }
    socket::listen(server.as_fd(), 1)?;
    super::connect(fd, &way, true)?;
    let other = socket::accept(server.as_fd())?;
    if failed.given_up {
        sys::socket_to(fd, true, &[0; 16])?;
        return until_failed(fd);
    }
    if !failed.received.0.is_empty() {
        let _room = sys::sockopt::Roomy::new(other.as_fd(), failed.received.0.len())?;
        let sent = socket::send(other.as_fd(), &failed.received.0, None, &[], None, 0)?;
        if sent != failed.received.0.len() {
            return Err(Errno::EAGAIN);
        }
    }
    if failed.error == libc::EPIPE {
        // It had been told of the end before.
        socket::shutdown(other.as_fd(), 2)?;
    }
    let began = Instant::now();
    while ioctl_int(other.as_fd(), libc::TIOCOUTQ)? > 0 && began.elapsed() < Duration::from_secs(2) {
        std::thread::sleep(Duration::from_micros(200));
    }
    // Closed with SO_LINGER of no time, a connection is reset.
    let mut linger = [0; 8];
    linger[..4].copy_from_slice(&1i32.to_ne_bytes());
    setsockopt(other.as_fd(), libc::SOL_SOCKET, libc::SO_LINGER, &linger)?;
    drop(other);
    until_failed(fd)
}

fn until_failed(fd: BorrowedFd<'_>) -> nix::Result<()> {
    let began = Instant::now();
    while !pending(fd) {
        if began.elapsed() > Duration::from_secs(2) {
            return Err(Errno::ETIMEDOUT);
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}
