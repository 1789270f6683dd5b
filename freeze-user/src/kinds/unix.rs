//! Unix sockets: pairs and connections within the checkpoint with their queues, names, listening ones, credentials.

mod charge;
mod names;
mod queue;

use super::pipe::Bytes;
use super::socket::{Base, fetch, held_outside};
use super::{FdKind, Placed, Source};
use crate::error::{Blocker, Context, Error, Result};
use crate::ids::{FileId, Pid};
use crate::nest::actor::Who;
use crate::nest::{Nest, Options};
use crate::observe::peek::arrived::Sockets;
use crate::observe::peers::UnixSocket;
use crate::observe::view::{FdView, View, socket_link};
use crate::sys::unixname::{address_of, name_of};
use crate::sys::{self, socket, sockopt};
use names::Name;
use nix::errno::Errno;
use queue::Packet;
pub use queue::in_transit;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

#[derive(Debug)]
pub struct Unix;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub base: Base,
    /// `SOCK_STREAM`, `SOCK_DGRAM` or `SOCK_SEQPACKET`.
    pub kind: i32,
    /// The name it was bound to by itself; not the one that an accepted socket has of the listening one.
    pub name: Option<Name>,
    pub role: Role,
    /// Halves that are shut: 1 receiving, 2 sending.
    pub shutdown: u8,
    /// What has arrived and was not read, the oldest first.
    pub queue: Vec<Packet>,
    /// Of a stream, what that costs its peer (SIOCOUTQ); 0 if it has none.
    #[serde(default)]
    pub charge: u32,
    /// Whether the next call on it is told ECONNRESET: its peer closed before having read everything.
    pub reset: bool,
    /// Sockets to be made first, since they need its name for a moment or must be connected before it is.
    pub after: Vec<FileId>,
}

/// How it stands to others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// To nobody.
    Alone,
    Listening {
        backlog: u32,
        who: Option<Who>,
        /// Those who called connect(2) and were not accepted yet, the first first.
        waiting: Vec<Waiting>,
    },
    /// Connected by a listening socket that has yet to accept it, whose record tells of it.
    Waiting,
    /// One of two that have each other.
    Joined {
        /// The number of the other; none if that has been closed.
        peer: Option<u64>,
        peer_file: Option<FileId>,
        how: How,
    },
    /// A datagram socket with an address to send to, within the checkpoint.
    Directed { to: FileId },
    /// A datagram socket with an address to send to that belongs to somebody else: whoever has it then.
    Addressed { to: Bytes },
}

/// One that waits to be accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// None if it has been closed since.
    pub file: Option<FileId>,
    pub who: Who,
    /// What it has sent, with the bounds that it has.
    #[serde(default)]
    pub sent: Vec<Bytes>,
    /// Halves that it has shut.
    #[serde(default)]
    pub shutdown: u8,
}

/// How two sockets came together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum How {
    /// By socketpair(2); the name that the closed other had, if any.
    Pair { who: Option<Who>, peer_name: Bytes },
    /// By connect(2) to an address, and accept(2).
    Connection {
        server: Bytes,
        /// Whether this is the accepted one.
        accepted: bool,
        /// Who called listen(2).
        listener: Option<Who>,
        /// Who called connect(2).
        connector: Option<Who>,
    },
}

/// Halves of pairs that nobody took yet, and what must wait for the other half.
#[derive(Default)]
struct Made {
    /// Ends by the number of the socket they are for.
    ends: HashMap<u64, OwnedFd>,
    /// The other ends of those whose peers are closed, by the survivor's number.
    ghosts: HashMap<u64, OwnedFd>,
    /// Sockets that have their queue; those with a peer that has not are settled with that.
    filled: std::collections::HashSet<u64>,
    deferred: HashMap<u64, (FileId, Base, u8)>,
}

impl FdKind for Unix {
    const TAG: &'static str = "unix-socket";
    const VERSION: u16 = 1;
    const ABOUT: &'static str = "unix sockets (stream, datagram, seqpacket): names of every sort, pairs and connections \
        within the checkpoint with queues and descriptors in them, listening ones with those who wait and, where the kernel lets freeze \
        look at it, what they have sent (but no descriptors), out-of-band data, shut halves, peer credentials and groups, options; datagram sockets that send to a name outside; another peer outside is refused or cut";
    type Record = Record;

    fn claims(fd: &FdView) -> bool {
        fd.protocol.starts_with("UNIX")
    }

    fn verdict(fd: &FdView, view: &View, out: &mut Vec<Blocker>) {
        held_outside(fd, view, out);
        if let Some(e) = view.unix_untold {
            let why = format!(
                "the kernel does not tell what it is joined to (unix_diag: {})",
                e.desc()
            );
            out.push(
                fd.blocker()
                    .why(why)
                    .remedy("load the module unix_diag, or use a kernel with CONFIG_UNIX_DIAG"),
            );
        }
        // One that has been opened since the kernel was asked is judged once it stands still.
        let Some(socket) = view.unix.get(&fd.stat.ino) else {
            return;
        };
        if super::socket::known::has_untold() {
            Sockets::get();
        }
        if view.ends.cut(fd) || addressed(socket, view) {
            return;
        }
        let far = socket.peer.iter().map(|p| (*p, "its other end is held")).chain(
            socket
                .waiting
                .iter()
                .map(|w| (*w, "a connection that waits to be accepted comes from")),
        );
        for (inode, what) in far.filter(|(inode, _)| *inode != 0 && view.socket(*inode).is_none()) {
            for holder in view
                .outside
                .get(&socket_link(inode))
                .map_or(&[][..], Vec::as_slice)
            {
                out.push(
                    fd.blocker()
                        .why(format!(
                            "{what} outside the checkpoint, by pid {} ({}) as fd {}",
                            holder.pid, holder.command, holder.fd
                        ))
                        .remedy(format!(
                            "freeze that process too (--also-freeze {}), or give the connection up (--cut {})",
                            holder.pid,
                            fd.label()
                        ))
                        .held_by(holder.pid),
                );
            }
        }
    }

    fn collect(fd: &FdView, from: &mut Source<'_>) -> Result<Record> {
        let held = from.process.fd(fd.fd)?;
        let view = from.view;
        let gone = || {
            fd.blocker()
                .why("the kernel does not tell what it is joined to")
                .refuse()
        };
        let me = view.unix.get(&fd.stat.ino).ok_or_else(gone)?;
        let role = role(fd, held.as_fd(), me, from)?;
        let inherited = matches!(
            role,
            Role::Joined {
                how: How::Connection { accepted: true, .. },
                ..
            }
        );
        let name = if inherited {
            None
        } else {
            let number = from.view.namespace(&from.process.view, "mnt");
            Name::collect(fd, held.as_fd(), &from.view.trees, number)?
        };
        let after = match (&role, &name) {
            (Role::Directed { .. }, _) => pointing_at(fd, from),
            (_, Some(name)) if name.file.is_none() => same_name(fd, me, from)?,
            _ => Vec::new(),
        };
        let paired = matches!(role, Role::Joined { .. });
        let queue = queue::collect(fd, paired, from)?;
        let hung_up = matches!(role, Role::Joined { peer: None, .. });
        let reset = socket::poll(held.as_fd()).on("poll", || fd.label())? & libc::POLLERR != 0;
        if reset && (!hung_up || me.kind == libc::SOCK_DGRAM) {
            let why = "an error has yet to be told by it, which no socket can be given";
            let remedy = "let the program make a call on it first";
            return Err(fd.blocker().why(why).remedy(remedy).refuse());
        }
        Ok(Record {
            base: Base::collect(fd, held.as_fd(), &[&sockopt::GENERAL], from)?,
            kind: me.kind,
            name,
            role,
            shutdown: me.shutdown,
            queue,
            charge: match me.peer.and_then(|peer| from.view.unix.get(&peer)) {
                Some(peer) if me.kind == libc::SOCK_STREAM && !me.listening => peer.unsent,
                _ => 0,
            },
            reset,
            after,
        })
    }

    fn precheck(record: &Record, options: &Options, out: &mut Vec<Blocker>) {
        if let Some(name) = &record.name {
            name.precheck(record.kind, options, out);
        }
    }

    fn members(record: &Record) -> Vec<FileId> {
        record.after.clone()
    }

    fn restore(record: &Record, nest: &mut Nest) -> Result<OwnedFd> {
        let fd = match &record.role {
            Role::Joined { peer, how, .. } => joined(record, *peer, how, nest)?,
            _ => sys::socket(libc::AF_UNIX, record.kind, 0).on("socket", || record.base.label())?,
        };
        record.base.give_owner(fd.as_fd())?;
        if let Some(name) = &record.name {
            name.bind(fd.as_fd(), nest)?;
        }
        if let Role::Listening { backlog, who, .. } = &record.role {
            listen(fd.as_fd(), *backlog, who.as_ref(), nest)?;
        }
        Ok(fd)
    }

    fn finish(record: &Record, placed: Placed, nest: &mut Nest) -> Result<()> {
        let number = record.base.number;
        let ghost = nest.state::<Made>().ghosts.remove(&number);
        queue::fill(record, placed.id, ghost.as_ref(), nest)?;
        nest.state::<Made>().filled.insert(number);
        let name = || record.base.label();
        match &record.role {
            Role::Directed { to } => {
                let way = names::way_to(nest.file(*to)?).on("getsockname", name)?;
                sys::socket_to(nest.file(placed.id)?, true, &way.address).on("connect", name)?;
            }
            Role::Addressed { to } => {
                let sent = sys::socket_to(nest.file(placed.id)?, true, &to.0);
                if let Err(e) = sent {
                    let to = names::readable(&to.0);
                    nest.warnings
                        .push(format!("{}: nobody receives at {to} now: {}", name(), e.desc()));
                }
            }
            Role::Listening { waiting, .. } => {
                for one in waiting {
                    connect(one, record.kind, placed.id, nest)?;
                }
            }
            Role::Joined { peer: Some(peer), .. } if !nest.state::<Made>().filled.contains(peer) => {
                // A half that is shut takes no more data, and the other's queue comes through it.
                let rest = (placed.id, record.base.clone(), record.shutdown);
                nest.state::<Made>().deferred.insert(*peer, rest);
                return Ok(());
            }
            _ => {}
        }
        if let Some(ghost) = ghost {
            if record.reset {
                socket::send(nest.file(placed.id)?, b"x", None, &[], None, 0).on("send", name)?;
            }
            drop(ghost);
        }
        let shutdown = match record.role {
            // That comes when it has been connected.
            Role::Waiting => 0,
            _ => record.shutdown,
        };
        settle(placed.id, &record.base, shutdown, nest)?;
        match nest.state::<Made>().deferred.remove(&number) {
            Some((id, base, shutdown)) => settle(id, &base, shutdown, nest),
            None => Ok(()),
        }
    }
}

/// The last of it: options and halves that are shut.
fn settle(id: FileId, base: &Base, shutdown: u8, nest: &Nest) -> Result<()> {
    let fd = nest.file(id)?;
    base.give_options(fd)?;
    base.give_filter(fd)?;
    match socket::shutdown(fd, shutdown) {
        // Where the peer has gone they are shut already.
        Ok(()) | Err(Errno::ENOTCONN) => Ok(()),
        Err(e) => Err(e).on("shutdown", || base.label()),
    }
}

/// Whether it is a datagram socket that sends to a name which somebody outside has, and anybody may have later.
fn addressed(me: &UnixSocket, view: &View) -> bool {
    let Some(peer) = me.peer.filter(|p| me.kind == libc::SOCK_DGRAM && *p != 0) else {
        return false;
    };
    let theirs = view.unix.get(&peer);
    view.socket(peer).is_none() && theirs.is_some_and(|t| matches!(t.name.first(), Some(b'/' | 0)))
}

/// SO_PEERCRED, if the socket has any.
fn peer_credentials(fd: BorrowedFd<'_>) -> Result<Option<Who>> {
    let mut bytes = [0; 12];
    sys::getsockopt(fd, libc::SOL_SOCKET, libc::SO_PEERCRED, &mut bytes)
        .on("getsockopt(SO_PEERCRED)", || "a socket")?;
    let word = |at: usize| bytes[at..].first_chunk().map_or(0, |w| u32::from_ne_bytes(*w));
    let who = Who {
        pid: Pid(word(0) as i32),
        uid: word(4),
        gid: word(8),
        groups: peer_groups(fd),
    };
    Ok((who.uid != u32::MAX).then_some(who))
}

/// SO_PEERGROUPS, where the kernel tells (Linux 4.13).
fn peer_groups(fd: BorrowedFd<'_>) -> Option<Vec<u32>> {
    const SO_PEERGROUPS: i32 = 59;
    const MOST: usize = 65536;
    let mut bytes = vec![0; 64 * 4];
    let told = match sys::getsockopt(fd, libc::SOL_SOCKET, SO_PEERGROUPS, &mut bytes) {
        Err(Errno::ERANGE) => {
            bytes = vec![0; MOST * 4];
            sys::getsockopt(fd, libc::SOL_SOCKET, SO_PEERGROUPS, &mut bytes)
        }
        told => told,
    };
    let words = bytes.get(..told.ok()?)?.chunks_exact(4);
    Some(
        words
            .filter_map(|w| w.first_chunk().map(|w| u32::from_ne_bytes(*w)))
            .collect(),
    )
}

/// Finds out how a socket stands to others.
fn role(fd: &FdView, held: BorrowedFd<'_>, me: &UnixSocket, from: &Source<'_>) -> Result<Role> {
    let view = from.view;
    let file_of = |inode: u64| {
        let other = view.socket(inode)?;
        from.shared
            .files
            .get(&(other.pid, other.fd))
            .map(|id| (*id, other))
    };
    let lost = || {
        fd.blocker()
            .why("its other end is held by no process that freeze can see (it may travel in another socket's queue)")
            .remedy("let the program receive or close it first")
            .refuse()
    };
    if me.listening {
        let mut waiting = Vec::new();
        let seen = Sockets::get().and_then(|s| s.at_unix(held));
        let mut seen = seen
            .filter(|all| all.len() == me.waiting.len())
            .map(Vec::into_iter);
        for inode in &me.waiting {
            let embryo = seen.as_mut().and_then(Iterator::next);
            let known = file_of(*inode);
            if known.is_none() && view.ends.cut(fd) {
                continue;
            }
            let theirs = view.unix.get(inode);
            // One that has gone may have left something behind.
            let silent = theirs.is_some_and(|u| u.unsent == 0);
            let sent = match embryo {
                Some(e) if !e.more && (*inode == 0 || known.is_some()) => {
                    e.got.into_iter().map(Bytes).collect()
                }
                None if silent && known.is_some() => Vec::new(),
                _ if *inode != 0 && known.is_none() => return Err(lost()),
                embryo => {
                    let why = match embryo.is_some_and(|e| e.more) {
                        true => {
                            "a connection that waits to be accepted has sent descriptors or out-of-band data already, which cannot be seen"
                        }
                        false => {
                            "a connection that waits to be accepted has sent data already, which cannot be read"
                        }
                    };
                    return Err(fd
                        .blocker()
                        .why(why)
                        .remedy("let the program accept it first")
                        .refuse());
                }
            };
            // Of one that has gone nothing is known but what it has sent.
            let pid = known.map_or(fd.pid, |(_, other)| other.pid);
            let holder = view.get(pid);
            let who = Who {
                pid,
                uid: holder.map_or(0, |p| p.status.uid[1]),
                gid: holder.map_or(0, |p| p.status.gid[1]),
                groups: holder.map(|p| p.status.groups.clone()),
            };
            waiting.push(Waiting {
                file: known.map(|(file, _)| file),
                who,
                sent,
                shutdown: theirs.map_or(0, |u| u.shutdown),
            });
        }
        return Ok(Role::Listening {
            backlog: me.unsent,
            who: peer_credentials(held)?,
            waiting,
        });
    }
    let Some(peer) = me.peer else {
        return Ok(Role::Alone);
    };
    let credentials = peer_credentials(held)?;
    let far = sys::socket_name(held, true).unwrap_or_default();
    if addressed(me, view) {
        return Ok(Role::Addressed { to: Bytes(far) });
    }
    let given_up = peer != 0 && view.socket(peer).is_none() && view.ends.cut(fd);
    if peer == 0 || given_up {
        if let Some((listener, _)) = view.unix.iter().find(|(_, u)| u.waiting.contains(&fd.stat.ino)) {
            return match file_of(*listener) {
                Some(_) => Ok(Role::Waiting),
                None => Err(lost()),
            };
        }
        let served = |name: &[u8]| view.unix.values().any(|u| u.listening && u.name == name);
        let own = &me.name;
        let how = if me.kind == libc::SOCK_DGRAM || name_of(&far).is_empty() && own.is_empty() {
            How::Pair {
                who: credentials,
                peer_name: Bytes(far),
            }
        } else if name_of(&far).is_empty() || !own.is_empty() && served(own) {
            let address = sys::socket_name(held, false).on("getsockname", || fd.label())?;
            How::Connection {
                server: Bytes(address),
                accepted: true,
                listener: None,
                connector: credentials,
            }
        } else {
            How::Connection {
                server: Bytes(far),
                accepted: false,
                listener: credentials,
                connector: None,
            }
        };
        return Ok(Role::Joined {
            peer: None,
            peer_file: None,
            how,
        });
    }
    let (file, other) = file_of(peer).ok_or_else(lost)?;
    let theirs = view.unix.get(&peer).ok_or_else(lost)?;
    let mutual = theirs.peer == Some(fd.stat.ino);
    if me.kind == libc::SOCK_DGRAM && !theirs.name.is_empty() && (!mutual || !me.name.is_empty()) {
        return Ok(Role::Directed { to: file });
    }
    if !mutual {
        let why = "it sends to a datagram socket without a name that sends to another";
        return Err(fd
            .blocker()
            .why(why)
            .remedy("let the program connect them anew, or close one")
            .refuse());
    }
    let peer_fd = fetch(other)?;
    let their_credentials = peer_credentials(peer_fd.as_fd())?;
    let how = if me.kind == libc::SOCK_DGRAM || me.name.is_empty() && theirs.name.is_empty() {
        How::Pair {
            who: credentials,
            peer_name: Bytes::default(),
        }
    } else {
        let accepted = is_accepted(fd.stat.ino, me, peer, theirs, view);
        let (listener, connector) = if accepted {
            (their_credentials, credentials)
        } else {
            (credentials, their_credentials)
        };
        let server = if accepted {
            sys::socket_name(held, false).on("getsockname", || fd.label())?
        } else {
            far
        };
        How::Connection {
            server: Bytes(server),
            accepted,
            listener,
            connector,
        }
    };
    Ok(Role::Joined {
        peer: Some(peer),
        peer_file: Some(file),
        how,
    })
}

/// Which of two connected sockets has its name from the listening one. Both ends must come to the same answer.
fn is_accepted(inode: u64, me: &UnixSocket, peer: u64, theirs: &UnixSocket, view: &View) -> bool {
    if me.name.is_empty() || theirs.name.is_empty() {
        return theirs.name.is_empty();
    }
    let served = |name: &[u8]| view.unix.values().any(|u| u.listening && u.name == name);
    match (served(&me.name), served(&theirs.name)) {
        (true, false) => true,
        (false, true) => false,
        // Both are bound for all that anybody can see: any order will do, as long as it is one.
        _ => inode > peer,
    }
}

/// The sockets that send to this one without it sending to them: they must be connected while it is not.
fn pointing_at(fd: &FdView, from: &Source<'_>) -> Vec<FileId> {
    let me = fd.stat.ino;
    let my_peer = from.view.unix.get(&me).and_then(|u| u.peer);
    from.view
        .pointing_at(me)
        .filter(|f| f.stat.ino != me && Some(f.stat.ino) != my_peer)
        .filter_map(|f| from.shared.files.get(&(f.pid, f.fd)).copied())
        .collect()
}

/// The connections that were made to an abstract name: their making needs the name, so it must be free still.
fn same_name(fd: &FdView, me: &UnixSocket, from: &Source<'_>) -> Result<Vec<FileId>> {
    let mut out = Vec::new();
    for other in from.view.fds().filter(|f| f.stat.ino != fd.stat.ino) {
        let Some(socket) = from.view.unix.get(&other.stat.ino) else {
            continue;
        };
        if socket.listening || socket.peer.is_none() || socket.kind == libc::SOCK_DGRAM {
            continue;
        }
        let named = socket.name == me.name
            || sys::socket_name(fetch(other)?.as_fd(), true).is_ok_and(|far| name_of(&far) == me.name);
        let waits = me.waiting.contains(&other.stat.ino);
        if named && !waits {
            out.extend(from.shared.files.get(&(other.pid, other.fd)));
        }
    }
    out.sort_unstable();
    out.dedup();
    Ok(out)
}

/// Takes the end that was made with the other one, or makes both.
fn joined(record: &Record, peer: Option<u64>, how: &How, nest: &mut Nest) -> Result<OwnedFd> {
    let number = record.base.number;
    if let Some(end) = nest.state::<Made>().ends.remove(&number) {
        return Ok(end);
    }
    let (mine, other) = match how {
        // One that was connected to a name that has gone: by socketpair(2) it would have credentials.
        How::Pair { who: None, peer_name }
            if record.kind == libc::SOCK_DGRAM
                && record.queue.is_empty()
                && !name_of(&peer_name.0).is_empty() =>
        {
            let make = || sys::socket(libc::AF_UNIX, record.kind, 0).on("socket", || record.base.label());
            let (mine, other) = (make()?, make()?);
            names::bind_ghost(other.as_fd(), &peer_name.0, nest)?;
            connect_by(mine.as_fd(), other.as_fd(), None, nest)?;
            (mine, other)
        }
        How::Pair { who, peer_name } => {
            let (mine, other) = nest.pair_by(who.as_ref(), libc::AF_UNIX, record.kind)?;
            if !name_of(&peer_name.0).is_empty() {
                names::bind_ghost(other.as_fd(), &peer_name.0, nest)?;
            }
            (mine, other)
        }
        How::Connection {
            server,
            accepted,
            listener,
            connector,
        } => {
            let (client, server) = connection(
                record.kind,
                &server.0,
                listener.as_ref(),
                connector.as_ref(),
                nest,
            )?;
            if *accepted {
                (server, client)
            } else {
                (client, server)
            }
        }
    };
    match peer {
        Some(peer) => nest.state::<Made>().ends.insert(peer, other),
        None => nest.state::<Made>().ghosts.insert(number, other),
    };
    Ok(mine)
}

/// Makes a connection through a listening socket that lives just for it: the connecting end, and the accepted one.
fn connection(
    kind: i32,
    address: &[u8],
    listener: Option<&Who>,
    connector: Option<&Who>,
    nest: &mut Nest,
) -> Result<(OwnedFd, OwnedFd)> {
    let name = || format!("a connection to {}", names::readable(address));
    let make = || sys::socket(libc::AF_UNIX, kind, 0).on("socket", name);
    let (server, client) = (make()?, make()?);
    names::bind_ghost(server.as_fd(), address, nest)?;
    listen(server.as_fd(), 1, listener, nest)?;
    connect_by(client.as_fd(), server.as_fd(), connector, nest)?;
    let accepted = socket::accept(server.as_fd()).on("accept4", name)?;
    Ok((client, accepted))
}

fn listen(fd: BorrowedFd<'_>, backlog: u32, who: Option<&Who>, nest: &mut Nest) -> Result<()> {
    match who {
        None => socket::listen(fd, backlog as i32).on("listen", || "a unix socket"),
        Some(who) => nest
            .act(who, &[fd.as_raw_fd()], |t, there| {
                t.call("listen", libc::SYS_listen, &[there[0], u64::from(backlog)]);
            })
            .map(drop),
    }
}

/// Connects by the hand of `who`, so that the other side sees its credentials.
fn connect_by(fd: BorrowedFd<'_>, to: BorrowedFd<'_>, who: Option<&Who>, nest: &mut Nest) -> Result<()> {
    let name = || "a unix socket";
    let way = names::way_to(to).on("getsockname", name)?;
    let direct = |address: &[u8]| sys::socket_to(fd, true, address).on("connect", name);
    let Some(who) = who else {
        return direct(&way.address);
    };
    let mut hand = vec![fd.as_raw_fd()];
    hand.extend(way.file.as_ref().map(AsRawFd::as_raw_fd));
    let (ran, at) = nest.act(who, &hand, |t, there| {
        let address = match there.get(1) {
            Some(file) => address_of(&format!("/proc/self/fd/{file}")),
            None => way.address.clone(),
        };
        let at = t.bytes(&address);
        t.try_call(
            "connect",
            libc::SYS_connect,
            &[there[0], at, address.len() as u64],
        )
    })?;
    match ran.result(at) {
        Ok(_) => Ok(()),
        // In a root of its own without /proc.
        Err(Errno::ENOENT | Errno::EACCES) => {
            nest.warnings.push(format!(
                "pid {}: a connection of its shows the credentials of freeze",
                who.pid
            ));
            direct(&way.address)
        }
        Err(e) => Err(Error::kernel(
            "connect",
            format!("a unix socket of pid {}", who.pid),
            e,
        )),
    }
}

/// Connects one that is to wait for being accepted.
fn connect(one: &Waiting, kind: i32, to: FileId, nest: &mut Nest) -> Result<()> {
    let name = || "a socket that waits to be accepted";
    let dup = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().on("fcntl(F_DUPFD)", name);
    let server = dup(nest.file(to)?)?;
    let client = match one.file {
        Some(file) => dup(nest.file(file)?)?,
        None => sys::socket(libc::AF_UNIX, kind, 0).on("socket", name)?,
    };
    // A backlog that is full must not make us wait.
    let flags = sys::fcntl(client.as_fd(), libc::F_GETFL, 0).on("fcntl(F_GETFL)", name)? as u64;
    sys::fcntl(client.as_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK as u64).on("fcntl(F_SETFL)", name)?;
    let done = connect_by(client.as_fd(), server.as_fd(), Some(&one.who), nest);
    let sent = done.and_then(|()| send_again(client.as_fd(), &one.sent, kind));
    sys::fcntl(client.as_fd(), libc::F_SETFL, flags).on("fcntl(F_SETFL)", name)?;
    sent?;
    match one.shutdown {
        0 => Ok(()),
        halves => socket::shutdown(client.as_fd(), halves).on("shutdown", name),
    }
}

/// Sends what a socket that was not accepted yet had sent.
fn send_again(client: BorrowedFd<'_>, all: &[Bytes], kind: i32) -> Result<()> {
    let name = || "what a socket had sent that waits to be accepted";
    let total = all.iter().map(|b| b.0.len()).sum();
    let _room = sockopt::Roomy::new(client, total).on("setsockopt(SO_SNDBUFFORCE)", name)?;
    for Bytes(data) in all {
        let mut sent = socket::send(client, data, None, &[], None, 0).on("sendmsg", name)?;
        while sent < data.len() && kind == libc::SOCK_STREAM {
            sent += socket::send(client, &data[sent..], None, &[], None, 0).on("sendmsg", name)?;
        }
        if sent != data.len() {
            return Err(Errno::EMSGSIZE).on("sendmsg", name);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str, listening: bool) -> UnixSocket {
        UnixSocket {
            name: name.as_bytes().to_vec(),
            listening,
            ..UnixSocket::default()
        }
    }

    #[test]
    fn both_ends_agree_which_was_accepted() {
        let cases = [
            (named("s", false), named("", false), Some(true)),
            (named("s", false), named("c", false), Some(true)),
            (named("c", false), named("d", false), None),
        ];
        let mut view = View::default();
        view.unix.insert(1, named("s", true));
        for (a, b, expected) in cases {
            let (first, second) = (is_accepted(5, &a, 6, &b, &view), is_accepted(6, &b, 5, &a, &view));
            assert_ne!(first, second);
            assert!(expected.is_none_or(|e| e == first));
        }
    }
}
