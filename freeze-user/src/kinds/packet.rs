//! Packet sockets (packet(7)): device, protocol, memberships, fanout, options, rings; what was captured is not carried.

use super::pipe::Bytes;
use super::socket::{Base, fetch, held_outside};
use super::{FdKind, Placed, Source};
use crate::error::{Blocker, Context, Result};
use crate::ids::{FileId, Pid, Range};
use crate::nest::{Nest, Options};
use crate::observe::peers::{PacketSocket, Ring, packet_sockets};
use crate::observe::view::{FdView, View};
use crate::sys::{self, sockopt};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

#[derive(Debug)]
pub struct Packet;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub base: Base,
    /// `SOCK_RAW`, `SOCK_DGRAM` or `SOCK_PACKET`.
    pub kind: i32,
    /// `struct sockaddr_ll` as getsockname(2) shows it: protocol and number of the device.
    pub local: Bytes,
    /// The name of the device it is bound to.
    pub device: Option<String>,
    /// `struct packet_mreq_max` of each membership, as often as it was asked for.
    pub memberships: Vec<Bytes>,
    /// Id, kind and flags of the fanout group, as PACKET_FANOUT shows it.
    pub fanout: Option<i32>,
    pub receive_ring: Option<Ring>,
    pub send_ring: Option<Ring>,
    /// Where its rings are mapped.
    pub mappings: Vec<Mapping>,
}

/// One mapping of the rings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mapping {
    pub pid: Pid,
    pub range: Range,
    /// `PROT_*`.
    pub protection: i32,
    pub offset: u64,
}

const SOL_PACKET: i32 = 263;
const PACKET_ADD_MEMBERSHIP: i32 = 1;
const PACKET_RX_RING: i32 = 5;
const PACKET_TX_RING: i32 = 13;
const PACKET_FANOUT: i32 = 18;
const SOCK_PACKET: i32 = 10;

fn protocol(local: &[u8]) -> u16 {
    local
        .get(2..)
        .and_then(|a| a.first_chunk())
        .map_or(0, |p| u16::from_be_bytes(*p))
}

fn device(local: &[u8]) -> u32 {
    local
        .get(4..)
        .and_then(|a| a.first_chunk())
        .map_or(0, |p| u32::from_ne_bytes(*p))
}

fn device_name(number: u32) -> Option<String> {
    if number == 0 {
        return None;
    }
    nix::net::if_::if_indextoname(number)
        .ok()
        .map(|n| n.to_string_lossy().into_owned())
}

/// What the kernel tells of a packet socket.
fn told(fd: &FdView) -> std::result::Result<PacketSocket, Blocker> {
    let lacking = |why: String| {
        fd.blocker()
            .why(why)
            .remedy("load the module af_packet_diag, or use a kernel with CONFIG_PACKET_DIAG")
    };
    let all = packet_sockets().map_err(|e| {
        lacking(format!(
            "the kernel does not tell of packet sockets (packet_diag: {})",
            e.desc()
        ))
    })?;
    let one = all.get(&fd.stat.ino).cloned();
    one.ok_or_else(|| lacking("the kernel does not tell of it (packet_diag)".into()))
}

/// The mappings of its rings in the set.
fn mappings(fd: &FdView, view: &View) -> Vec<Mapping> {
    let of = |p: &crate::observe::view::ProcessView| {
        let pid = p.pid;
        let own = p.vmas.iter().filter(|v| v.name == fd.link);
        own.map(move |v| Mapping {
            pid,
            range: v.range(),
            protection: v.prot(),
            offset: v.offset,
        })
        .collect::<Vec<_>>()
    };
    view.each().flat_map(of).collect()
}

/// Whether anything was ever put into the rings: the kernel does not tell where in them it stands.
fn used(socket: &PacketSocket, mappings: &[Mapping]) -> bool {
    let Some(m) = mappings.iter().find(|m| m.offset == 0) else {
        return false;
    };
    let Some(ring) = socket.receive_ring.as_ref().or(socket.send_ring.as_ref()) else {
        return false;
    };
    let mut first = vec![0; (ring.frame_size as usize).clamp(64, 4096)];
    let end = m.range.start + first.len() as u64;
    if sys::vm_read(m.pid, &[Range::new(m.range.start, end)], &mut first).is_err() {
        return false;
    }
    match socket.version {
        // struct tpacket_block_desc, whose header counts packets at offset 12; the kernel fills in the rest at once.
        2 => first.get(12..16).is_some_and(|n| n.iter().any(|b| *b != 0)),
        _ => first.iter().any(|b| *b != 0),
    }
}

fn obstacle(fd: &FdView, held: BorrowedFd<'_>, view: &View) -> Option<Blocker> {
    // PACKET_FANOUT_CBPF and PACKET_FANOUT_EBPF.
    const BY_PROGRAM: [i32; 2] = [6, 7];
    let socket = match told(fd) {
        Ok(socket) => socket,
        Err(blocker) => return Some(blocker),
    };
    if used(&socket, &mappings(fd, view)) {
        let why = "packets have gone through its ring, and the kernel does not tell where it stands";
        return Some(fd.blocker().why(why).remedy("let the program make the ring anew"));
    }
    let fanout = sys::socket::option(held, SOL_PACKET, PACKET_FANOUT).unwrap_or(0);
    BY_PROGRAM.contains(&(fanout >> 16 & 0xff)).then(|| {
        fd.blocker()
            .why("a program chooses among the sockets of its group (PACKET_FANOUT_DATA), which the kernel does not hand out")
            .remedy("let the program close it first")
    })
}

impl FdKind for Packet {
    const TAG: &'static str = "packet-socket";
    const VERSION: u16 = 1;
    const ABOUT: &'static str = "packet sockets: protocol, device (by name), memberships, fanout, filter, options, rings that \
        were not used yet with their mappings; packets that were captured and not read are lost, as when the queue overflows";
    type Record = Record;

    fn claims(fd: &FdView) -> bool {
        fd.protocol == "PACKET"
    }

    fn verdict(fd: &FdView, view: &View, out: &mut Vec<Blocker>) {
        held_outside(fd, view, out);
        if let Ok(held) = fetch(fd) {
            out.extend(obstacle(fd, held.as_fd(), view));
        }
    }

    fn collect(fd: &FdView, from: &mut Source<'_>) -> Result<Record> {
        let held = from.process.fd(fd.fd)?;
        let held = held.as_fd();
        let name = || fd.label();
        if let Some(blocker) = obstacle(fd, held, from.view) {
            return Err(blocker.refuse());
        }
        let socket = told(fd).map_err(Blocker::refuse)?;
        let local = sys::socket_name(held, false).on("getsockname", name)?;
        let kind = sys::socket::option(held, libc::SOL_SOCKET, libc::SO_TYPE).on("getsockopt", name)?;
        let fanout = match socket.fanout {
            true => {
                let fanout = sys::socket::option(held, SOL_PACKET, PACKET_FANOUT);
                Some(fanout.on("getsockopt(PACKET_FANOUT)", name)?)
            }
            false => None,
        };
        Ok(Record {
            base: Base::collect(fd, held, &[&sockopt::GENERAL, &sockopt::PACKET], from)?,
            kind,
            device: device_name(device(&local)),
            local: Bytes(local),
            memberships: socket.memberships.into_iter().map(Bytes).collect(),
            fanout,
            receive_ring: socket.receive_ring,
            send_ring: socket.send_ring,
            mappings: mappings(fd, from.view),
        })
    }

    fn precheck(record: &Record, _: &Options, out: &mut Vec<Blocker>) {
        if let Err(e) = sys::socket(libc::AF_PACKET, record.kind, 0) {
            out.push(
                Blocker::at("AF_PACKET", "a packet socket")
                    .why(format!("none can be made here: {}", e.desc()))
                    .remedy("run freeze with CAP_NET_RAW, on a kernel with CONFIG_PACKET"),
            );
        }
        if let Some(device) = &record.device
            && nix::net::if_::if_nametoindex(device.as_str()).is_err()
        {
            out.push(
                Blocker::at(device.clone(), "the device a packet socket listens to")
                    .why("there is none of this name")
                    .remedy("make it (ip link add), or rename one"),
            );
        }
    }

    fn members(_: &Record) -> Vec<FileId> {
        Vec::new()
    }

    fn restore(record: &Record, _: &mut Nest) -> Result<OwnedFd> {
        let name = || record.base.label();
        // With protocol 0 it hears nothing until it is bound, when its filter is in place.
        let early = match record.kind {
            SOCK_PACKET => protocol(&record.local.0),
            _ => 0,
        };
        let fd = sys::socket(libc::AF_PACKET, record.kind, i32::from(early.to_be())).on("socket", name)?;
        let held = fd.as_fd();
        record.base.give_owner(held)?;
        record.base.give_options(held)?;
        record.base.give_filter(held)?;
        for (option, ring) in [
            (PACKET_RX_RING, &record.receive_ring),
            (PACKET_TX_RING, &record.send_ring),
        ] {
            if let Some(ring) = ring {
                sys::setsockopt(held, SOL_PACKET, option, &ring.request())
                    .on("setsockopt(PACKET_RX_RING)", name)?;
            }
        }
        for membership in &record.memberships {
            sys::setsockopt(held, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &membership.0)
                .on("setsockopt(PACKET_ADD_MEMBERSHIP)", name)?;
        }
        Ok(fd)
    }

    /// Listening and mapping come last: what is heard before nobody has asked for.
    fn finish(record: &Record, placed: Placed, nest: &mut Nest) -> Result<()> {
        let name = || record.base.label();
        for m in &record.mappings {
            let flags = libc::MAP_SHARED | libc::MAP_FIXED_NOREPLACE;
            let args = [
                m.range.start,
                m.range.len(),
                m.protection as u64,
                flags as u64,
                placed.fd as u64,
                m.offset,
            ];
            let there = match m.pid == placed.pid {
                true => placed.fd as u64,
                false => {
                    let own = std::os::fd::AsRawFd::as_raw_fd(&nest.file(placed.id)?);
                    nest.hand_over(m.pid, &[own])?[0]
                }
            };
            let mut args = args;
            args[4] = there;
            nest.process(m.pid)?.call("mmap", libc::SYS_mmap, &args)?;
            if m.pid != placed.pid {
                nest.process(m.pid)?.call("close", libc::SYS_close, &[there])?;
            }
        }
        let fd = nest.file(placed.id)?;
        bind_to(record, fd).on("bind", name)?;
        match record.fanout {
            Some(fanout) => sys::socket::set_option(fd, SOL_PACKET, PACKET_FANOUT, fanout)
                .on("setsockopt(PACKET_FANOUT)", name),
            None => Ok(()),
        }
    }
}

/// Binds it as it was bound.
fn bind_to(record: &Record, fd: BorrowedFd<'_>) -> nix::Result<()> {
    let number = match &record.device {
        Some(name) => nix::net::if_::if_nametoindex(name.as_str())?,
        None => 0,
    };
    if record.kind == SOCK_PACKET {
        // struct sockaddr_pkt: family, and the name of the device.
        let mut address = vec![0; 18];
        address[..2].copy_from_slice(&(libc::AF_PACKET as u16).to_ne_bytes());
        let Some(name) = &record.device else { return Ok(()) };
        let name = &name.as_bytes()[..name.len().min(13)];
        address[2..2 + name.len()].copy_from_slice(name);
        return sys::socket_to(fd, false, &address);
    }
    if protocol(&record.local.0) == 0 && number == 0 {
        return Ok(());
    }
    let mut address = record.local.0.clone();
    address.resize(20, 0);
    address[4..8].copy_from_slice(&number.to_ne_bytes());
    match sys::socket_to(fd, false, &address) {
        // Bound, and told that the device is down.
        Err(Errno::ENETDOWN) => Ok(()),
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_tells_protocol_and_device() {
        let local = [17, 0, 0x08, 0x00, 3, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!((protocol(&local), device(&local)), (0x0800, 3));
        assert_eq!((protocol(&[17, 0]), device(&[])), (0, 0));
    }
}
