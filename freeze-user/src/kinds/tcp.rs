//! TCP sockets: listening, bound and fresh ones, with their options.

use super::pipe::Bytes;
use super::socket::{Base, bind_probe, fetch, held_outside, nowhere};
use super::{FdKind, Placed, Source};
use crate::error::{Blocker, Context, Result};
use crate::ids::FileId;
use crate::nest::{Nest, Options};
use crate::observe::view::{FdView, View};
use crate::sys::{self, socket, sockopt};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

#[derive(Debug)]
pub struct Tcp;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub base: Base,
    /// `AF_INET` or `AF_INET6`.
    pub domain: i32,
    /// The address it is bound to, as getsockname(2) shows it.
    pub local: Option<Bytes>,
    pub state: State,
}

/// What it is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// Nothing yet: fresh, or bound.
    Unconnected,
    Listening {
        backlog: u32,
    },
}

const TCP_CLOSE: u8 = 7;
const TCP_LISTEN: u8 = 10;

/// What `struct tcp_info` begins with.
struct Info {
    state: u8,
    /// Of a listening socket: how many wait to be accepted, and how many may.
    waiting: u32,
    backlog: u32,
}

fn info(fd: BorrowedFd<'_>) -> nix::Result<Info> {
    let mut bytes = [0; 104];
    sys::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, &mut bytes)?;
    let word = |at: usize| bytes[at..].first_chunk().map_or(0, |w| u32::from_ne_bytes(*w));
    // tcpi_unacked and tcpi_sacked have a meaning of their own in a listening socket.
    Ok(Info {
        state: bytes[0],
        waiting: word(24),
        backlog: word(28),
    })
}

fn obstacle(fd: &FdView, held: BorrowedFd<'_>, view: &View) -> Option<Blocker> {
    let info = info(held).ok()?;
    let mut ulp = [0; 16];
    let ulp_len = sys::getsockopt(held, libc::IPPROTO_TCP, libc::TCP_ULP, &mut ulp).unwrap_or(0);
    if ulp_len > 0 && ulp[0] != 0 {
        let name = String::from_utf8_lossy(ulp.split(|b| *b == 0).next().unwrap_or_default()).into_owned();
        return Some(
            fd.blocker()
                .why(format!("the kernel speaks {name} on it"))
                .remedy("let the program close it first"),
        );
    }
    match info.state {
        TCP_LISTEN if info.waiting > 0 => Some(
            fd.blocker()
                .why(format!("{} connections wait to be accepted", info.waiting))
                .remedy("let the program accept them first"),
        ),
        TCP_LISTEN | TCP_CLOSE => None,
        _ => {
            let peer = sys::socket_name(held, true)
                .map(|a| readable(&a))
                .unwrap_or_default();
            let other = view.tcp_peer(fd.stat.ino);
            let holder = other.and_then(|inode| {
                let link = crate::observe::view::socket_link(inode);
                view.outside
                    .get(&link)?
                    .first()
                    .map(|h| format!(", held by pid {} ({})", h.pid, h.command))
            });
            Some(
                fd.blocker()
                    .why(format!(
                        "a TCP connection to {peer}{} is not carried",
                        holder.unwrap_or_default()
                    ))
                    .remedy("let the program close it first"),
            )
        }
    }
}

/// An address for people.
fn readable(address: &[u8]) -> String {
    super::socket::inet_address(address).map_or_else(String::new, |a| a.to_string())
}

impl FdKind for Tcp {
    const TAG: &'static str = "tcp-socket";
    const VERSION: u16 = 1;
    const ABOUT: &'static str = "TCP sockets (IPv4, IPv6): listening, bound and fresh ones with address, backlog, owner \
        and options; connections, and listening ones with connections not accepted yet, are refused";
    type Record = Record;

    fn claims(fd: &FdView) -> bool {
        matches!(fd.protocol.as_str(), "TCP" | "TCPv6")
    }

    fn verdict(fd: &FdView, view: &View, out: &mut Vec<Blocker>) {
        held_outside(fd, view, out);
        // It may be gone by now; then it is judged, or missed, once everything stands still.
        let Ok(held) = fetch(fd) else { return };
        out.extend(obstacle(fd, held.as_fd(), view));
    }

    fn collect(fd: &FdView, from: &mut Source<'_>) -> Result<Record> {
        let held = from.process.fd(fd.fd)?;
        let held = held.as_fd();
        if let Some(blocker) = obstacle(fd, held, from.view) {
            return Err(blocker.refuse());
        }
        let domain = if fd.protocol == "TCP" {
            libc::AF_INET
        } else {
            libc::AF_INET6
        };
        let info = info(held).on("getsockopt(TCP_INFO)", || fd.label())?;
        let mut sets = vec![
            &sockopt::GENERAL,
            &sockopt::IP,
            &sockopt::TCP,
            &sockopt::TCP_UNCONNECTED,
        ];
        if domain == libc::AF_INET6 {
            sets.push(&sockopt::IPV6);
        }
        let local = sys::socket_name(held, false).on("getsockname", || fd.label())?;
        Ok(Record {
            base: Base::collect(fd, held, &sets)?,
            domain,
            local: (!nowhere(&local)).then_some(Bytes(local)),
            state: match info.state {
                TCP_LISTEN => State::Listening {
                    backlog: info.backlog,
                },
                _ => State::Unconnected,
            },
        })
    }

    fn precheck(record: &Record, _: &Options, out: &mut Vec<Blocker>) {
        if let Some(local) = &record.local {
            bind_probe(
                &record.base,
                record.domain,
                libc::SOCK_STREAM,
                libc::IPPROTO_TCP,
                &local.0,
                out,
            );
        }
    }

    fn members(_: &Record) -> Vec<FileId> {
        Vec::new()
    }

    fn restore(record: &Record, _: &mut Nest) -> Result<OwnedFd> {
        let name = || record.base.label();
        let fd = sys::socket(record.domain, libc::SOCK_STREAM, libc::IPPROTO_TCP).on("socket", name)?;
        record.base.give_owner(fd.as_fd())?;
        record.base.give_options(fd.as_fd())?;
        record.base.give_filter(fd.as_fd())?;
        if let Some(local) = &record.local {
            {
                // What is left of old connections does not keep anybody from the port.
                let _reuse = socket::Meanwhile::set(fd.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR, 1);
                sys::socket_to(fd.as_fd(), false, &local.0)
                    .on("bind", || format!("{}: {}", name(), readable(&local.0)))?;
            }
        }
        if let State::Listening { backlog } = record.state {
            socket::listen(fd.as_fd(), backlog as i32).on("listen", name)?;
        }
        Ok(fd)
    }

    fn finish(_: &Record, _: Placed, _: &mut Nest) -> Result<()> {
        Ok(())
    }
}
