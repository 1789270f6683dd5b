//! What has arrived at a unix socket: data with its bounds, descriptors and credentials; read, and sent again.

use super::super::kind_of;
use super::super::pipe::Bytes;
use super::super::socket::{fetch, same_in_set, whole_queue};
use super::charge;
use super::names::{bind_ghost, unreadable, way_to};
use super::{Record, Role, Source};
use crate::error::{Context, Error, Result};
use crate::ids::{FileId, Pid};
use crate::nest::Nest;
use crate::observe::view::{FdView, View};
use crate::sys;
use crate::sys::ended::StandIn;
use crate::sys::queue::peek_stream;
use crate::sys::socket::{Credentials, Message, poll, send};
use crate::sys::sockopt::Roomy;
use crate::sys::unixname::name_of;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// One message of a queue; of a stream, as much as came together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packet {
    pub data: Bytes,
    /// Descriptors that travel with it.
    pub files: Vec<FileId>,
    /// Who sent it, where the receiver has asked to be told (SO_PASSCRED).
    pub credentials: Option<Credentials>,
    pub sender: Sender,
    /// A byte of out-of-band data (MSG_OOB).
    #[serde(default)]
    pub urgent: bool,
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

/// What waits in the queues of a set, by the inode of the socket.
pub(super) type Queues = BTreeMap<u64, Vec<Message>>;

/// Reads the queues of all unix sockets of a set that stands still, and admits to it what only travels in them: those
/// descriptions are held by the descriptors that come back, with numbers that no process of the set uses.
pub fn in_transit(view: &mut View) -> Result<(Vec<OwnedFd>, Queues)> {
    let least = view.fds().map(|f| f.fd).max().unwrap_or(0) + 1;
    let (mut lent, mut queues) = (Vec::new(), Queues::new());
    loop {
        let sockets: Vec<FdView> = view
            .fds()
            .filter(|f| f.protocol.starts_with("UNIX"))
            .cloned()
            .collect();
        let mut found: Vec<FdView> = Vec::new();
        for fd in sockets {
            if queues.contains_key(&fd.stat.ino) {
                continue;
            }
            let messages = read(&fd, view)?;
            for own in messages.iter().flat_map(|m| &m.fds) {
                let Err(mut seen) = same_in_set(own, view)? else {
                    continue;
                };
                if is_among(own, &found)? {
                    continue;
                }
                admissible(&fd, &seen)?;
                let held = sys::dup_above(own.as_fd(), least).on("fcntl(F_DUPFD)", || seen.label())?;
                seen.fd = held.as_raw_fd();
                lent.push(held);
                found.push(seen);
            }
            queues.insert(fd.stat.ino, messages);
        }
        if found.is_empty() {
            break;
        }
        view.admit(found)?;
    }
    let mut out = Vec::new();
    for fd in &view.in_transit {
        if let Some(kind) = kind_of(fd) {
            (kind.verdict)(fd, view, &mut out);
        }
    }
    if out.is_empty() {
        Ok((lent, queues))
    } else {
        Err(Error::Refused(out))
    }
}

/// Reads what waits in a queue; the socket is left as it was.
fn read(fd: &FdView, view: &View) -> Result<Vec<Message>> {
    let stream = match view.unix.get(&fd.stat.ino) {
        None => return Ok(Vec::new()),
        Some(socket) if socket.listening => return Ok(Vec::new()),
        Some(socket) if socket.kind == libc::SOCK_STREAM && socket.unread == 0 => return Ok(Vec::new()),
        Some(socket) => socket.kind == libc::SOCK_STREAM,
    };
    let own = fetch(fd)?;
    let seen = if stream {
        peek_stream(own.as_fd())
    } else {
        whole_queue(own.as_fd())
    };
    let seen = seen.map_err(|e| unreadable(fd, e))?;
    let told = fd.info.get("scm_fds").and_then(|n| n.parse::<usize>().ok());
    let hidden = told.map_or(0, |all| {
        all.saturating_sub(seen.iter().map(|m| m.fds.len()).sum())
    });
    if hidden == 0 {
        return Ok(seen);
    }
    let came = match seen.iter().all(|m| m.fds.is_empty())
        && poll(own.as_fd()).is_ok_and(|e| e & libc::POLLERR != 0)
    {
        true => "cannot be seen without taking the error that it has yet to tell",
        false => {
            "came with empty messages that were looked at before (by a checkpoint or by MSG_PEEK), which the kernel shows to \
             nobody before they are the first"
        }
    };
    let why = format!("{hidden} descriptors in its queue {came}");
    let remedy = "let the program receive them first";
    Err(fd.blocker().why(why).remedy(remedy).refuse())
}

fn is_among(own: &OwnedFd, found: &[FdView]) -> Result<bool> {
    let pid = Pid(std::process::id() as i32);
    for fd in found {
        if sys::same_file(pid, own.as_raw_fd(), fd.pid, fd.fd).on("kcmp", || fd.label())? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Refuses what cannot be put together without a process that holds it.
fn admissible(fd: &FdView, seen: &FdView) -> Result<()> {
    const WITHOUT_HOLDER: [&str; 17] = [
        "pipe",
        "fifo",
        "eventfd",
        "timerfd",
        "signalfd",
        "pidfd",
        "epoll",
        "inotify",
        "path",
        "namespace-fd",
        "directory",
        "device",
        "regular-file",
        "memfd",
        "unix-socket",
        "tcp-socket",
        "datagram-socket",
    ];
    let carried = kind_of(seen).is_some_and(|kind| WITHOUT_HOLDER.contains(&kind.tag));
    if carried && seen.flags() & libc::O_ASYNC == 0 {
        return Ok(());
    }
    let why = format!(
        "{} travels in its queue, and no process of the checkpoint holds it",
        seen.label()
    );
    Err(fd
        .blocker()
        .why(why)
        .remedy("let the program receive it first")
        .refuse())
}

/// Records what waits in a queue.
pub(super) fn collect(fd: &FdView, paired: bool, from: &mut Source<'_>) -> Result<Vec<Packet>> {
    let messages = from.shared.queues.remove(&fd.stat.ino).unwrap_or_default();
    messages
        .into_iter()
        .map(|message| packet(fd, message, paired, from))
        .collect()
}

fn packet(fd: &FdView, message: Message, paired: bool, from: &mut Source<'_>) -> Result<Packet> {
    let mut files = Vec::with_capacity(message.fds.len());
    for own in &message.fds {
        let known = match same_in_set(own, from.view)? {
            Ok(known) => from.shared.files.get(&(known.pid, known.fd)),
            Err(_) => None,
        };
        let lost = || {
            fd.blocker()
                .why("its queue changed while it was looked at")
                .remedy("try again")
                .refuse()
        };
        files.push(*known.ok_or_else(lost)?);
    }
    let sender = match name_of(&message.name) {
        _ if paired => Sender::Peer,
        [] => Sender::Nameless,
        _ => {
            match sender_in_set(fd, &message.name[2..], from.view)
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
        urgent: message.flags & libc::MSG_OOB != 0,
        data: Bytes(message.data),
        files,
        credentials,
        sender,
    })
}

/// The datagram socket of the set that has this name. An abstract one may be somebody else's in another network, and leads
/// to nobody outside of its own.
fn sender_in_set<'a>(receiver: &FdView, name: &[u8], view: &'a View) -> Option<&'a FdView> {
    let named = |f: &&FdView| {
        view.unix
            .get(&f.stat.ino)
            .is_some_and(|u| u.kind == libc::SOCK_DGRAM && u.name == name)
    };
    let near = view.fds().find(|f| f.net == receiver.net && named(f));
    let abstract_only = view
        .unix
        .get(&receiver.stat.ino)
        .is_some_and(|u| u.name.first() == Some(&0));
    near.or_else(|| view.fds().find(named).filter(|_| !abstract_only))
}

/// Sends everything again that waited in the queue of `id`; `ghost` is its peer, if that is closed afterwards.
pub(super) fn fill(record: &Record, id: FileId, ghost: Option<&OwnedFd>, nest: &mut Nest) -> Result<()> {
    let name = || record.base.label();
    let mut warnings = Vec::new();
    let piece = match record.kind {
        libc::SOCK_STREAM => {
            let all = record.queue.iter().map(|p| p.data.0.len()).sum();
            charge::piece(all, record.charge)
        }
        _ => usize::MAX,
    };
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
        let mut credentials = packet.credentials;
        let next = |sent: usize| &data[sent..data.len().min(sent.saturating_add(piece))];
        let how = if packet.urgent { libc::MSG_OOB } else { 0 };
        let mut sent = send(sender, next(0), to, &files, credentials, how);
        // Its sender has ended, and its pid names nobody now: somebody has it for as long as it takes to send this.
        let mut stand_in = None;
        if let (Err(Errno::ESRCH), Some((pid, ..))) = (sent, credentials) {
            stand_in = StandIn::new(Pid(pid)).ok();
            if stand_in.is_none() {
                credentials = None;
                warnings.push(format!(
                    "{}: a message that waits in it was sent by pid {pid}, which has ended, and names nobody now",
                    record.base.label()
                ));
            }
            sent = send(sender, next(0), to, &files, credentials, 0);
        }
        let mut sent = sent.on("sendmsg", name)?;
        while sent < data.len() && record.kind == libc::SOCK_STREAM {
            sent += send(sender, next(sent), to, &[], credentials, 0).on("sendmsg", name)?;
        }
        drop(stand_in);
        if sent != data.len() {
            return Err(Errno::EMSGSIZE).on("sendmsg", name);
        }
    }
    nest.warnings.append(&mut warnings);
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
