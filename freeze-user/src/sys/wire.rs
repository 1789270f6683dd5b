//! Holding wires shut: packets of chosen TCP connections are dropped unseen by a table of nf_tables until it is removed.
//!
//! A table lies in the network namespace of the caller. While it is there the other ends of these connections get no
//! answer, neither data nor a reset, and send again what they have to say.

use super::rtnl::Netlink;
use super::{Sys, ns};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket, sockopt,
};
use nix::sys::stat::Mode;
use nix::sys::time::{TimeVal, TimeValLike};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// The two ends of a connection as they show in the headers of what arrives here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    pub local: SocketAddr,
    pub remote: SocketAddr,
}

const NEWTABLE: u16 = 0;
const GETTABLE: u16 = 1;
const DELTABLE: u16 = 2;
const NEWCHAIN: u16 = 3;
const NEWRULE: u16 = 6;
const NEWSET: u16 = 9;
const NEWSETELEM: u16 = 12;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;
const DUMP: u16 = 0x300;

/// The families of nf_tables that matter here (NFPROTO_IPV4 and NFPROTO_IPV6), with where addresses lie in a header.
const FAMILIES: [Family; 2] = [
    Family {
        number: 2,
        source: 12,
        target: 16,
        address: 4,
    },
    Family {
        number: 10,
        source: 8,
        target: 24,
        address: 16,
    },
];

struct Family {
    number: u8,
    source: u32,
    target: u32,
    address: u32,
}

/// Attributes of a netlink message under construction.
#[derive(Default)]
struct Attributes(Vec<u8>);

impl Attributes {
    fn bytes(mut self, kind: u16, value: &[u8]) -> Attributes {
        self.0.extend((4 + value.len() as u16).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    fn text(self, kind: u16, value: &str) -> Attributes {
        self.bytes(kind, &[value.as_bytes(), &[0]].concat())
    }

    fn word(self, kind: u16, value: u32) -> Attributes {
        self.bytes(kind, &value.to_be_bytes())
    }

    fn nest(self, kind: u16, inside: Attributes) -> Attributes {
        const NESTED: u16 = 0x8000;
        self.bytes(kind | NESTED, &inside.0)
    }
}

/// A message of nf_tables, or (kind 16 and 17) the begin or end of a batch of them.
fn message(out: &mut Vec<u8>, kind: u16, flags: u16, family: u8, attributes: Attributes) {
    const NF_TABLES: u16 = 10;
    let batch = kind >= 16;
    let (kind, resource) = if batch {
        (kind, NF_TABLES)
    } else {
        (NF_TABLES << 8 | kind, 0)
    };
    out.extend((20 + attributes.0.len() as u32).to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend((REQUEST | flags).to_ne_bytes());
    out.extend([0; 8]);
    out.extend([family, 0]);
    out.extend(resource.to_be_bytes());
    out.extend(attributes.0);
}

/// One step of a rule.
fn expression(name: &str, data: Attributes) -> Attributes {
    const LIST_ELEM: u16 = 1;
    Attributes::default().nest(LIST_ELEM, Attributes::default().text(1, name).nest(2, data))
}

/// Registers of 4 bytes, into which what a set is asked for is loaded one after the other.
const FIRST_REGISTER: u32 = 8;

/// Loads bytes of a header into registers; base 1 is the network header, 2 the one after it.
fn load(register: u32, base: u32, offset: u32, len: u32) -> Attributes {
    let data = Attributes::default()
        .word(1, register)
        .word(2, base)
        .word(3, offset)
        .word(4, len);
    expression("payload", data)
}

/// The rule: what is TCP and has its four numbers in the set is dropped, those of the other end first.
fn rule(family: &Family, outgoing: bool) -> Attributes {
    let (theirs, own) = match outgoing {
        true => ((family.target, 2), (family.source, 0)),
        false => ((family.source, 0), (family.target, 2)),
    };
    const META_L4PROTO: u32 = 16;
    let words = family.address / 4;
    let protocol = Attributes::default()
        .word(2, META_L4PROTO)
        .word(1, FIRST_REGISTER);
    let is_tcp = Attributes::default()
        .word(1, FIRST_REGISTER)
        .word(2, 0)
        .nest(3, Attributes::default().bytes(1, &[libc::IPPROTO_TCP as u8]));
    let lookup = Attributes::default().text(1, SET).word(2, FIRST_REGISTER);
    let steps = [
        expression("meta", protocol),
        expression("cmp", is_tcp),
        load(FIRST_REGISTER, 1, theirs.0, family.address),
        load(FIRST_REGISTER + words, 1, own.0, family.address),
        load(FIRST_REGISTER + 2 * words, 2, theirs.1, 2),
        load(FIRST_REGISTER + 2 * words + 1, 2, own.1, 2),
        expression("lookup", lookup),
        expression("immediate", dropped()),
    ];
    Attributes(steps.into_iter().flat_map(|s| s.0).collect())
}

const SET: &str = "wires";
/// What arrives, and what is sent: until its process is ended a socket goes on by itself, and tells the other end more
/// than was recorded.
const CHAINS: [(&str, u32, bool); 2] = [("held", LOCAL_IN, false), ("silent", LOCAL_OUT, true)];
const LOCAL_IN: u32 = 1;
const LOCAL_OUT: u32 = 3;

/// The element of the set for a connection, and the number of its family.
fn element(ends: &Ends) -> Sys<(u8, Vec<u8>)> {
    let address = |ip: IpAddr| match ip.to_canonical() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let (from, to) = (address(ends.remote.ip()), address(ends.local.ip()));
    if from.len() != to.len() {
        return Err(Errno::EINVAL);
    }
    let family = if from.len() == 4 { 2 } else { 10 };
    let port = |p: u16| [p.to_be_bytes()[0], p.to_be_bytes()[1], 0, 0];
    let key = [
        from.as_slice(),
        &to,
        &port(ends.remote.port()),
        &port(ends.local.port()),
    ]
    .concat();
    Ok((family, key))
}

/// Holds connections shut, in the table `name`, which is made if it is not there and stays until it is released.
pub fn hold(name: &str, all: &[Ends]) -> Sys<()> {
    hold_by(&open()?, name, 0, all)
}

/// Connections held shut for as long as this lives: the kernel removes the table also when its owner is killed.
#[derive(Debug)]
pub struct Held {
    netlink: OwnedFd,
    /// The network namespace in which they are.
    net: OwnedFd,
    table: String,
    flags: u32,
    all: Vec<Ends>,
}

impl Held {
    /// Nothing yet; `table` must be a name that nobody else uses.
    pub fn new(table: String) -> Sys<Held> {
        /// NFT_TABLE_F_OWNER, Linux 5.12.
        const OWNER: u32 = 2;
        Ok(Held {
            netlink: open()?,
            net: own_net()?,
            table,
            flags: OWNER,
            all: Vec::new(),
        })
    }

    /// Holds one more.
    pub fn add(&mut self, ends: Ends) -> Sys<()> {
        match hold_by(&self.netlink, &self.table, self.flags, &[ends]) {
            // An older kernel, which leaves removing it to us alone.
            Err(Errno::EOPNOTSUPP | Errno::EINVAL) if self.flags != 0 && self.all.is_empty() => {
                self.flags = 0;
                hold_by(&self.netlink, &self.table, 0, &[ends])?;
            }
            done => done?,
        }
        self.all.push(ends);
        Ok(())
    }

    /// Holds them for good, in the table `name`. A namespace that goes away with the program, `dying`, takes its table
    /// along, and then answers for a moment: there every device is taken down.
    pub fn keep(&self, name: &str, dying: bool) -> Sys<()> {
        ns::within(&[self.net.as_fd()], || {
            hold(name, &self.all)?;
            match dying {
                true => Netlink::route()?.take_down(),
                false => Ok(()),
            }
        })?
    }

    /// Whether it holds what is in the network namespace of the caller.
    pub fn is_here(&self) -> bool {
        own_net().and_then(|net| super::dev_ino(&net)).ok() == super::dev_ino(&self.net).ok()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.flags == 0 {
            let _ = release(&self.table);
        }
    }
}

fn own_net() -> Sys<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    nix::fcntl::open("/proc/thread-self/ns/net", flags, Mode::empty())
}

/// Lets nothing in by way of these devices of the caller's network namespace until the table `name` is released: who
/// sends meanwhile is not told that nobody is there.
pub fn shut(name: &str, devices: &[u32]) -> Sys<()> {
    const META_IIF: u32 = 4;
    let table = || Attributes::default().text(1, name);
    let flags = CREATE | ACK;
    batch(&open()?, |out| {
        message(out, NEWTABLE, flags, INET, table().word(2, 0));
        let hook = Attributes::default().word(1, LOCAL_IN).word(2, PRIORITY as u32);
        let chain = table().text(3, SHUT).nest(4, hook).text(7, "filter");
        message(out, NEWCHAIN, flags, INET, chain);
        for device in devices {
            let came_by = Attributes::default().word(2, META_IIF).word(1, FIRST_REGISTER);
            let number = Attributes::default().bytes(1, &device.to_ne_bytes());
            let is_it = Attributes::default()
                .word(1, FIRST_REGISTER)
                .word(2, 0)
                .nest(3, number);
            let steps = [
                expression("meta", came_by),
                expression("cmp", is_it),
                expression("immediate", dropped()),
            ];
            let steps = Attributes(steps.into_iter().flat_map(|s| s.0).collect());
            message(
                out,
                NEWRULE,
                flags | APPEND,
                INET,
                table().text(2, SHUT).nest(4, steps),
            );
        }
    })
}

/// The family of both (NFPROTO_INET), and the name of its chain.
const INET: u8 = 1;
const SHUT: &str = "shut";
/// Before everything else, connection tracking included.
const PRIORITY: i32 = -400;

/// What an immediate verdict says: drop.
fn dropped() -> Attributes {
    Attributes::default()
        .word(1, 0)
        .nest(2, Attributes::default().nest(2, Attributes::default().word(1, 0)))
}

fn hold_by(netlink: &OwnedFd, name: &str, flags: u32, all: &[Ends]) -> Sys<()> {
    for family in &FAMILIES {
        let mut keys = Vec::new();
        for ends in all {
            let (number, key) = element(ends)?;
            if number == family.number {
                keys.push(key);
            }
        }
        if keys.is_empty() {
            continue;
        }
        if !has(family.number, name)? {
            batch(netlink, |out| make(out, family, name, flags))?;
        }
        // A message holds 64 KiB at most, and its attributes too.
        for some in keys.chunks(200) {
            let elements = some.iter().flat_map(|key| {
                let key = Attributes::default().nest(1, Attributes::default().bytes(1, key));
                Attributes::default().nest(1, key).0
            });
            let list = Attributes::default()
                .text(1, name)
                .text(2, SET)
                .nest(3, Attributes(elements.collect()));
            batch(netlink, |out| {
                message(out, NEWSETELEM, CREATE | ACK, family.number, list)
            })?;
        }
    }
    Ok(())
}

fn make(out: &mut Vec<u8>, family: &Family, name: &str, owned: u32) {
    let table = || Attributes::default().text(1, name);
    let flags = CREATE | ACK;
    message(out, NEWTABLE, flags, family.number, table().word(2, owned));
    let set = table()
        .text(2, SET)
        .word(3, 0)
        .word(4, 0)
        .word(5, 2 * family.address + 8)
        .word(10, 1);
    message(out, NEWSET, flags, family.number, set);
    for (name, hook, outgoing) in CHAINS {
        let hook = Attributes::default().word(1, hook).word(2, PRIORITY as u32);
        let chain = table().text(3, name).nest(4, hook).text(7, "filter");
        message(out, NEWCHAIN, flags, family.number, chain);
        let steps = table().text(2, name).nest(4, rule(family, outgoing));
        message(out, NEWRULE, flags | APPEND, family.number, steps);
    }
}

/// Lets the connections of a table go; tells whether there was one.
pub fn release(name: &str) -> Sys<bool> {
    let mut found = false;
    for family in FAMILIES.iter().map(|f| f.number).chain([INET]) {
        let table = Attributes::default().text(1, name);
        match batch(&open()?, |out| message(out, DELTABLE, ACK, family, table)) {
            Ok(()) => found = true,
            Err(Errno::ENOENT) => {}
            // A kernel without that family has no such table.
            Err(Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT) if family == INET => {}
            Err(e) => return Err(e),
        }
    }
    Ok(found)
}

/// Whether connections are held in a table of this name.
pub fn is_held(name: &str) -> Sys<bool> {
    Ok(has(FAMILIES[0].number, name)? || has(FAMILIES[1].number, name)?)
}

/// The names of all tables that begin like this.
pub fn held(prefix: &str) -> Sys<Vec<String>> {
    let mut out = Vec::new();
    for family in &FAMILIES {
        let netlink = open()?;
        let mut ask = Vec::new();
        message(&mut ask, GETTABLE, DUMP, family.number, Attributes::default());
        send(netlink.as_raw_fd(), &ask, MsgFlags::empty())?;
        let mut buffer = vec![0u8; 1 << 16];
        'more: loop {
            let length = recv(netlink.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            for (kind, body) in messages(&buffer[..length]) {
                match kind {
                    2 | 3 => break 'more,
                    _ => out.extend(table_name(body).filter(|n| n.starts_with(prefix))),
                }
            }
        }
    }
    out.sort();
    out.dedup();
    Ok(out)
}

fn has(family: u8, name: &str) -> Sys<bool> {
    let netlink = open()?;
    let mut ask = Vec::new();
    message(&mut ask, GETTABLE, 0, family, Attributes::default().text(1, name));
    send(netlink.as_raw_fd(), &ask, MsgFlags::empty())?;
    let mut buffer = vec![0u8; 1 << 13];
    let length = recv(netlink.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
    match messages(&buffer[..length]).next() {
        Some((2, body)) => match error(body) {
            Errno::ENOENT => Ok(false),
            e => Err(e),
        },
        Some(_) => Ok(true),
        None => Err(Errno::EPROTO),
    }
}

fn open() -> Sys<OwnedFd> {
    let netlink = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        Some(SockProtocol::NetlinkNetFilter),
    )?;
    // The kernel answers at once or not at all.
    setsockopt(&netlink, sockopt::ReceiveTimeout, &TimeVal::seconds(5))?;
    Ok(netlink)
}

/// Has some messages carried out together; the first error is that of all.
fn batch(netlink: &OwnedFd, fill: impl FnOnce(&mut Vec<u8>)) -> Sys<()> {
    const BEGIN: u16 = 16;
    const END: u16 = 17;
    let mut inside = Vec::new();
    fill(&mut inside);
    let count = messages(&inside).count();
    let mut all = Vec::new();
    message(&mut all, BEGIN, 0, 0, Attributes::default());
    all.extend(inside);
    message(&mut all, END, 0, 0, Attributes::default());
    send(netlink.as_raw_fd(), &all, MsgFlags::empty())?;
    let mut buffer = vec![0u8; 1 << 16];
    let mut answered = 0;
    while answered < count {
        let length = recv(netlink.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        for (kind, body) in messages(&buffer[..length]) {
            if kind == 2 && error(body) != Errno::from_raw(0) {
                return Err(error(body));
            }
            answered += 1;
        }
    }
    Ok(())
}

/// The messages of a datagram: kind, and what follows the header.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
        let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
        let body = bytes.get(16..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, body))
    })
}

/// What the body of an error message says; 0 is success.
fn error(body: &[u8]) -> Errno {
    let number = body
        .first_chunk()
        .map_or(-libc::EPROTO, |e| i32::from_ne_bytes(*e));
    Errno::from_raw(number.wrapping_neg())
}

/// The name in the description of a table, which follows its `struct nfgenmsg`.
fn table_name(body: &[u8]) -> Option<String> {
    let mut rest = body.get(4..)?;
    loop {
        let length = usize::from(u16::from_ne_bytes(*rest.first_chunk()?));
        let kind = u16::from_ne_bytes(*rest.get(2..)?.first_chunk()?);
        let value = rest.get(4..length)?;
        if kind == 1 {
            let name = value.split(|b| *b == 0).next()?;
            return Some(String::from_utf8_lossy(name).into_owned());
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    #[test]
    fn what_is_held_waits_and_comes_later() {
        let name = format!("freeze-test-{}", std::process::id());
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let mut other = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (mut server, remote) = listener.accept().unwrap();
            let (mut others, _) = listener.accept().unwrap();
            let ends = Ends {
                local: listener.local_addr().unwrap(),
                remote,
            };
            hold(&name, &[ends]).unwrap();
            assert!(is_held(&name).unwrap() && held("freeze-test-").unwrap().contains(&name));
            client.write_all(b"later").unwrap();
            server.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
            let mut buffer = [0; 5];
            assert!(server.read(&mut buffer).is_err());
            other.write_all(b"clear").unwrap();
            others.read_exact(&mut buffer).unwrap();
            assert_eq!(&buffer, b"clear");
            assert!(release(&name).unwrap());
            assert!(!release(&name).unwrap() && !is_held(&name).unwrap());
            server.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            server.read_exact(&mut buffer).unwrap();
            assert_eq!(&buffer, b"later");
            let mut held = Held::new(format!("{name}-now")).unwrap();
            held.add(ends).unwrap();
            assert!(is_held(&format!("{name}-now")).unwrap());
            held.keep(&name, false).unwrap();
            drop(held);
            assert!(!is_held(&format!("{name}-now")).unwrap() && release(&name).unwrap());
        }
    }
}
