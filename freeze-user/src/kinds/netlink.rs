//! Netlink sockets: protocol, port, groups, options; nothing may wait in them.

use super::pipe::Bytes;
use super::socket::{Base, bind, fetch, held_outside};
use super::{FdKind, Placed, Source};
use crate::error::{Blocker, Context, Result};
use crate::ids::FileId;
use crate::nest::{Nest, Options};
use crate::observe::view::{FdView, View};
use crate::sys::{self, socket, sockopt};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

#[derive(Debug)]
pub struct Netlink;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub base: Base,
    /// `SOCK_RAW` or `SOCK_DGRAM`, which are the same here but for being told.
    pub kind: i32,
    /// `NETLINK_ROUTE` and the like.
    pub protocol: i32,
    /// `struct sockaddr_nl` with its port, if it has one.
    pub local: Option<Bytes>,
    /// To whom it sends if not told otherwise, unless that is the kernel.
    pub remote: Option<Bytes>,
    /// Numbers of the multicast groups it is in.
    pub groups: Vec<u32>,
}

const SOL_NETLINK: i32 = 270;
const NETLINK_ADD_MEMBERSHIP: i32 = 1;
const NETLINK_LIST_MEMBERSHIPS: i32 = 9;

/// The port in a `struct sockaddr_nl`.
fn port(address: &[u8]) -> u32 {
    address
        .get(4..)
        .and_then(|a| a.first_chunk())
        .map_or(0, |p| u32::from_ne_bytes(*p))
}

fn obstacle(fd: &FdView, held: BorrowedFd<'_>) -> Option<Blocker> {
    let waits = socket::poll(held).is_ok_and(|seen| seen & (libc::POLLIN | libc::POLLERR) != 0);
    waits.then(|| {
        fd.blocker()
            .why("messages of the kernel wait in its queue, which only the kernel could send again")
            .remedy("let the program read them first")
    })
}

fn groups(fd: BorrowedFd<'_>) -> nix::Result<Vec<u32>> {
    let mut room = vec![0u8; 4];
    loop {
        let wanted = sys::getsockopt(fd, SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS, &mut room)?;
        if wanted <= room.len() {
            break;
        }
        room.resize(wanted, 0);
    }
    let bits = room.iter().enumerate().flat_map(|(byte, bits)| {
        (0..8)
            .filter(move |b| bits >> b & 1 == 1)
            .map(move |b| byte * 8 + b)
    });
    Ok(bits.map(|bit| bit as u32 + 1).collect())
}

impl FdKind for Netlink {
    const TAG: &'static str = "netlink-socket";
    const VERSION: u16 = 1;
    const ABOUT: &'static str =
        "netlink sockets: protocol, port, groups, options; refused while messages wait in them";
    type Record = Record;

    fn claims(fd: &FdView) -> bool {
        fd.protocol == "NETLINK"
    }

    fn verdict(fd: &FdView, view: &View, out: &mut Vec<Blocker>) {
        held_outside(fd, view, out);
        if let Ok(held) = fetch(fd) {
            out.extend(obstacle(fd, held.as_fd()));
        }
    }

    fn collect(fd: &FdView, from: &mut Source<'_>) -> Result<Record> {
        let held = from.process.fd(fd.fd)?;
        let held = held.as_fd();
        let name = || fd.label();
        if let Some(blocker) = obstacle(fd, held) {
            return Err(blocker.refuse());
        }
        let number = |option| socket::option(held, libc::SOL_SOCKET, option).on("getsockopt", name);
        let local = sys::socket_name(held, false).on("getsockname", name)?;
        let remote = sys::socket_name(held, true).on("getpeername", name)?;
        Ok(Record {
            base: Base::collect(fd, held, &[&sockopt::GENERAL, &sockopt::NETLINK], from)?,
            kind: number(libc::SO_TYPE)?,
            protocol: number(libc::SO_PROTOCOL)?,
            local: (port(&local) != 0).then_some(Bytes(local)),
            remote: remote.iter().skip(4).any(|b| *b != 0).then_some(Bytes(remote)),
            groups: groups(held).on("getsockopt(NETLINK_LIST_MEMBERSHIPS)", name)?,
        })
    }

    fn precheck(record: &Record, _: &Options, out: &mut Vec<Blocker>) {
        let at = || {
            Blocker::at(
                format!("netlink protocol {}", record.protocol),
                "a netlink socket",
            )
        };
        let tried =
            sys::socket(libc::AF_NETLINK, record.kind, record.protocol).and_then(|fd| match &record.local {
                Some(local) => bind(fd.as_fd(), &local.0),
                None => Ok(()),
            });
        match tried {
            Ok(()) => {}
            Err(Errno::EADDRINUSE) => {
                let port = record.local.as_ref().map_or(0, |l| port(&l.0));
                out.push(
                    at().why(format!("its port {port} is in use"))
                        .remedy("end the program that uses it"),
                );
            }
            Err(e) => {
                let why = format!("this kernel does not have it: {}", e.desc());
                out.push(at().why(why).remedy("load the kernel module for it"));
            }
        }
    }

    fn members(_: &Record) -> Vec<FileId> {
        Vec::new()
    }

    fn restore(record: &Record, _: &mut Nest) -> Result<OwnedFd> {
        let name = || record.base.label();
        let fd = sys::socket(libc::AF_NETLINK, record.kind, record.protocol).on("socket", name)?;
        record.base.give_owner(fd.as_fd())?;
        if let Some(local) = &record.local {
            bind(fd.as_fd(), &local.0).on("bind", name)?;
        }
        if let Some(remote) = &record.remote {
            sys::socket_to(fd.as_fd(), true, &remote.0).on("connect", name)?;
        }
        record.base.give_options(fd.as_fd())?;
        record.base.give_filter(fd.as_fd())?;
        Ok(fd)
    }

    /// Groups come last: what they bring now, the program would have been told then.
    fn finish(record: &Record, placed: Placed, nest: &mut Nest) -> Result<()> {
        let fd = nest.file(placed.id)?;
        for group in &record.groups {
            socket::set_option(fd, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, *group as i32)
                .on("setsockopt(NETLINK_ADD_MEMBERSHIP)", || {
                    format!("{}: group {group}", record.base.label())
                })?;
        }
        Ok(())
    }
}
