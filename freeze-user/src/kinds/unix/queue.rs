//! What has arrived at a unix socket: data with its bounds, descriptors and credentials; read, and sent again.

use super::super::pipe::Bytes;
use super::super::socket::known_file;
use super::names::{bind_ghost, unreadable, way_to};
use super::{Record, Role, Source};
use crate::error::{Context, Result};
use crate::ids::FileId;
use crate::nest::Nest;
use crate::observe::view::FdView;
use crate::sys;
use crate::sys::queue::{peek_packets, peek_stream};
use crate::sys::socket::{Credentials, Message, send};
use crate::sys::sockopt::Roomy;
use crate::sys::unixname::name_of;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// One message of a queue; of a stream, as much as came together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packet {
    pub data: Bytes,
    /// Descriptors that travel with it.
    pub files: Vec<FileId>,
    /// Who sent it, where the receiver has asked to be told (SO_PASSCRED).
    pub credentials: Option<Credentials>,
    pub sender: Sender,
}

/// Which socket it came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sender {
    /// The peer.
    Peer,
    /// Another one of the checkpoint.
    File(FileId),
    /// One that is not there any more, or outside, with this address.
    Named(Bytes),
    /// One without a name.
    Nameless,
}

/// Reads what waits in a queue; the socket is left as it was.
pub(super) fn collect(
    fd: &FdView,
    held: BorrowedFd<'_>,
    kind: i32,
    paired: bool,
    from: &mut Source<'_>,
) -> Result<Vec<Packet>> {
    let seen = if kind == libc::SOCK_STREAM {
        peek_stream(held)
    } else {
        peek_packets(held)
    };
    let seen = seen.map_err(|e| unreadable(fd, e))?;
    seen.into_iter()
        .map(|message| packet(fd, message, paired, from))
        .collect()
}

fn packet(fd: &FdView, message: Message, paired: bool, from: &mut Source<'_>) -> Result<Packet> {
    let mut files = Vec::with_capacity(message.fds.len());
    for own in &message.fds {
        match known_file(own, from)? {
            Ok(id) => files.push(id),
            Err(seen) => {
                let why = format!(
                    "{} travels in its queue, and no process of the checkpoint holds it",
                    seen.label()
                );
                return Err(fd
                    .blocker()
                    .why(why)
                    .remedy("let the program receive it first")
                    .refuse());
            }
        }
    }
    let sender = match name_of(&message.name) {
        _ if paired => Sender::Peer,
        [] => Sender::Nameless,
        _ => {
            let datagram = |u: &crate::observe::peers::UnixSocket| {
                u.kind == libc::SOCK_DGRAM && u.name == message.name[2..]
            };
            let same = |f: &&FdView| from.view.unix.get(&f.stat.ino).is_some_and(datagram);
            match from
                .view
                .fds()
                .find(same)
                .and_then(|f| from.shared.files.get(&(f.pid, f.fd)))
            {
                Some(id) => Sender::File(*id),
                None => Sender::Named(Bytes(message.name)),
            }
        }
    };
    // Credentials without a pid are those of a message that was sent before anybody asked for any.
    let credentials = message.credentials.filter(|(pid, ..)| *pid != 0);
    Ok(Packet {
        data: Bytes(message.data),
        files,
        credentials,
        sender,
    })
}

/// Sends everything again that waited in the queue of `id`; `ghost` is its peer, if that is closed afterwards.
pub(super) fn fill(record: &Record, id: FileId, ghost: Option<&OwnedFd>, nest: &mut Nest) -> Result<()> {
    let name = || record.base.label();
    for packet in &record.queue {
        let strangers = match &packet.sender {
            Sender::Named(address) => Some(stranger(record.kind, Some(&address.0), nest)?),
            Sender::Nameless => Some(stranger(record.kind, None, nest)?),
            _ => None,
        };
        let peer = match (&record.role, ghost) {
            (_, Some(ghost)) => Some(ghost.as_fd()),
            (
                Role::Joined {
                    peer_file: Some(peer),
                    ..
                },
                _,
            ) => Some(nest.file(*peer)?),
            _ => None,
        };
        let (sender, way) = match (&packet.sender, &strangers, peer) {
            (Sender::Peer, _, Some(peer)) => (peer, None),
            (Sender::File(from), ..) => (
                nest.file(*from)?,
                Some(way_to(nest.file(id)?).on("getsockname", name)?),
            ),
            (_, Some(stranger), _) => (
                stranger.as_fd(),
                Some(way_to(nest.file(id)?).on("getsockname", name)?),
            ),
            (Sender::Peer, _, None) | (_, None, _) => return Err(Errno::ENOTCONN).on("send", name),
        };
        let mut files = Vec::with_capacity(packet.files.len());
        for file in &packet.files {
            files.push(nest.file(*file)?.as_raw_fd());
        }
        let to = way.as_ref().map(|w| w.address.as_slice());
        let _room = Roomy::new(sender, packet.data.0.len()).on("setsockopt(SO_SNDBUFFORCE)", name)?;
        let data = &packet.data.0;
        let mut sent = match send(sender, data, to, &files, packet.credentials, 0) {
            // Its sender has ended, and its pid names nobody now.
            Err(Errno::ESRCH) => send(sender, data, to, &files, None, 0),
            sent => sent,
        }
        .on("sendmsg", name)?;
        while sent < data.len() && record.kind == libc::SOCK_STREAM {
            sent += send(sender, &data[sent..], to, &[], packet.credentials, 0).on("sendmsg", name)?;
        }
        if sent != data.len() {
            return Err(Errno::EMSGSIZE).on("sendmsg", name);
        }
    }
    Ok(())
}

/// A socket that sends one message and is gone.
fn stranger(kind: i32, address: Option<&[u8]>, nest: &mut Nest) -> Result<OwnedFd> {
    let fd = sys::socket(libc::AF_UNIX, kind, 0).on("socket", || "the sender of a message")?;
    if let Some(address) = address {
        bind_ghost(fd.as_fd(), address, nest)?;
    }
    Ok(fd)
}
