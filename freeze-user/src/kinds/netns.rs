//! What a network namespace holds: devices, addresses, routes, rules, neighbours, settings and packet filters.
//!
//! Devices keep their numbers, so that whatever names one by its number stays right. Everything else is told and asked
//! for in the kernel's own messages (rtnetlink(7)), which are a stable interface: the image has them as they came, less
//! what only counts or is derived.

mod alone;
pub mod conntrack;
mod elsewhere;
pub mod filter;
mod link;
mod multicast;
mod routes;
mod settings;
pub mod traffic;
pub mod xtables;

pub use alone::{device, restore_device};
pub use link::tun_flags;

use super::pipe::Bytes;
use crate::error::{Blocker, Context, Result};
use crate::sys::ipc::within;
use crate::sys::ns;
use crate::sys::rtnl::{APPEND, CREATE, EXCL, Netlink, REPLACE, attributes, nest, put};
use crate::sys::{tun, wire};
use nix::Result as Sys;
use nix::errno::Errno;
use routes::{neighbours, prefixes, routes, rules};
use serde::{Deserialize, Serialize};
use settings::{SETTINGS, apply_settings, hush_addresses, settings};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;
use std::time::{Duration, Instant};

/// What a network namespace holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub links: Vec<Link>,
    pub addresses: Vec<Bytes>,
    pub routes: Vec<Bytes>,
    pub rules: Vec<Bytes>,
    pub neighbours: Vec<Bytes>,
    /// Routes of the kernel's own to what IPv6 addresses lie beside; they come with these, and can be deleted.
    #[serde(default)]
    pub prefixes: Option<Vec<Bytes>>,
    /// What devices were told to listen to (`ip maddr add`), beside what programs and the kernel itself ask for.
    #[serde(default)]
    pub multicast: Vec<multicast::Heard>,
    /// Files under /proc/sys/net and what is in them.
    pub settings: Vec<(String, String)>,
    /// Of nf_tables.
    #[serde(default)]
    pub filters: Vec<filter::Table>,
    #[serde(default)]
    pub xtables: Vec<xtables::Table>,
    #[serde(default)]
    pub tracked: conntrack::Tracked,
    #[serde(default)]
    pub disciplines: Vec<traffic::Discipline>,
}

/// A network device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    pub index: i32,
    pub name: String,
    /// `veth`, `dummy`, `bridge` …; empty for the loopback.
    pub kind: String,
    /// IFF_* bits.
    pub flags: u32,
    pub mtu: u32,
    pub queue: u32,
    pub group: u32,
    pub address: Bytes,
    pub alias: Bytes,
    /// Other names.
    pub names: Vec<Bytes>,
    /// The device of the same namespace that it lies upon, and the one it is part of; 0 for none.
    pub lower: i32,
    pub master: i32,
    /// Of a pair, where the other end is: the number of its namespace and the device there.
    pub peer: Option<(u32, i32)>,
    /// The other end, where that is in freeze's own namespace.
    #[serde(default)]
    pub outer: Option<Box<alone::Outer>>,
    /// What is particular to its kind, and to a part of such a one.
    pub data: Bytes,
    pub part: Bytes,
    /// Whether it is the port of a bridge that passes on what arrives.
    #[serde(default)]
    pub forwarding: bool,
    /// How many queues it has for what is sent and for what arrives; 0 where nobody told.
    #[serde(default)]
    pub queues: (u32, u32),
    /// Limits of what it takes at once (`ip link set gso_max_size` …), by attribute.
    #[serde(default)]
    pub segments: Vec<(u16, u32)>,
    /// Of a tun or tap device: IFF_* flags of TUNSETIFF, owner and group (-1 for none).
    pub tun: Option<(u32, i64, i64)>,
}

const NEWLINK: u16 = 16;
const GETLINK: u16 = 18;
const SETLINK: u16 = 19;
const NEWADDR: u16 = 20;
const DELADDR: u16 = 21;
const GETADDR: u16 = 22;
const NEWROUTE: u16 = 24;
const DELROUTE: u16 = 25;
const GETROUTE: u16 = 26;
const NEWNEIGH: u16 = 28;
const GETNEIGH: u16 = 30;
const NEWRULE: u16 = 32;
const DELRULE: u16 = 33;
const GETRULE: u16 = 34;
const GETNSID: u16 = 90;
const NEWLINKPROP: u16 = 108;

// IFLA_*
const ADDRESS: u16 = 1;
/// `::1`.
const LOOPBACK: [u8; 16] = 1u128.to_be_bytes();
const IFNAME: u16 = 3;
const MTU: u16 = 4;
const TX_QUEUES: u16 = 31;
const RX_QUEUES: u16 = 32;
const LINK: u16 = 5;
const MASTER: u16 = 10;
const TXQLEN: u16 = 13;
const LINKINFO: u16 = 18;
const IFALIAS: u16 = 20;
const GROUP: u16 = 27;
const NET_NS_FD: u16 = 28;
const LINK_NETNSID: u16 = 37;
const XDP: u16 = 43;
const PROP_LIST: u16 = 52;
/// Of segments: their number and size for sending, size for receiving, and the same two sizes of IPv4 alone.
const SEGMENTS: [u16; 5] = [40, 41, 58, 63, 64];
const ALT_IFNAME: u16 = 53;
// IFLA_INFO_*
const INFO_KIND: u16 = 1;
const INFO_DATA: u16 = 2;
const INFO_SLAVE_KIND: u16 = 4;
const INFO_SLAVE_DATA: u16 = 5;
const VETH_PEER: u16 = 1;

const UP: u32 = 1;
/// Flags that a program sets, beside UP: no ARP, promiscuous, all multicast, multicast.
const FLAGS: u32 = UP | 0x80 | 0x100 | 0x200 | 0x1000;

/// Kinds of devices that are made again, and of their particular attributes those that can be set.
const KINDS: [(&str, &[std::ops::RangeInclusive<u16>]); 9] = [
    ("dummy", &[]),
    ("bridge", &[1..=9, 22..=39, 41..=46]),
    ("veth", &[]),
    ("vlan", &[1..=5]),
    ("macvlan", &[1..=5, 7..=7]),
    ("macvtap", &[1..=5, 7..=7]),
    ("ifb", &[]),
    ("ipvlan", &[1..=2]),
    ("tun", &[]),
];
const PART: &[std::ops::RangeInclusive<u16>] = &[2..=11];

/// Devices that come with every namespace where the kernel has their kind.
fn comes_by_itself(link: &Link) -> bool {
    link.kind.is_empty()
        || matches!(
            link.name.as_str(),
            "sit0"
                | "tunl0"
                | "gre0"
                | "gretap0"
                | "erspan0"
                | "ip_vti0"
                | "ip6_vti0"
                | "ip6tnl0"
                | "ip6gre0"
        )
}

/// Reads what is in a namespace; `others` are those in which the other end of a pair may be, by number (freeze's own is
/// 0). What speaks against carrying it is added to `out`.
pub fn collect(
    netns: BorrowedFd<'_>,
    others: &[(u32, BorrowedFd<'_>)],
    label: &str,
    out: &mut Vec<Blocker>,
) -> Result<Record> {
    let others: Vec<(u32, i32)> = others.iter().map(|(n, fd)| (*n, fd.as_raw_fd())).collect();
    let read = || read(&others, label);
    let (mut record, blockers) = within(netns, libc::CLONE_NEWNET, read)
        .and_then(|r| r)
        .on("netlink", || label.to_owned())?;
    out.extend(blockers);
    for link in &mut record.links {
        if let Some((0, index)) = link.peer {
            link.outer = Some(Box::new(alone::outer(index, label, out)?));
        }
    }
    Ok(record)
}

/// Puts into fresh namespaces what was in those of these numbers; tells what is not as it was.
pub fn restore(all: &[(u32, &Record, BorrowedFd<'_>)]) -> Result<Vec<String>> {
    let mut warnings = Vec::new();
    let own = std::fs::File::open("/proc/thread-self/ns/net").on("open", || "/proc/thread-self/ns/net")?;
    let places = all.iter().map(|(n, _, fd)| (*n, fd.as_raw_fd()));
    let places: BTreeMap<u32, i32> = places.chain([(0, own.as_raw_fd())]).collect();
    // All devices first: one may be half of a pair whose other half lies elsewhere.
    for (number, record, netns) in all {
        let name = || format!("network namespace {number} of the image");
        within(*netns, libc::CLONE_NEWNET, || {
            record.make_links(*number, all, &places)
        })
        .and_then(|r| r)
        .on("netlink", name)?;
    }
    for (_, record, netns) in all {
        let pairs = record.links.iter().filter(|l| l.outer.is_some());
        let pairs: Vec<u32> = pairs.map(|l| l.index as u32).collect();
        // Without such tables no connection to outside could be recorded that must not be answered.
        if !pairs.is_empty() {
            let _ = within(*netns, libc::CLONE_NEWNET, || wire::shut(SHUT, &pairs));
        }
    }
    let mut dark = Vec::new();
    for (number, record, netns) in all {
        let name = || format!("network namespace {number} of the image");
        let (said, without) = within(*netns, libc::CLONE_NEWNET, || record.settle())
            .and_then(|r| r)
            .on("netlink", name)?;
        dark.push(without);
        warnings.extend(said.into_iter().map(|w| format!("{}: {w}", name())));
    }
    for outer in all.iter().flat_map(|(_, record, _)| record.outers()) {
        warnings.extend(outer.settle()?);
    }
    for ((number, record, netns), dark) in all.iter().zip(&dark) {
        let name = || format!("network namespace {number} of the image");
        let said = within(*netns, libc::CLONE_NEWNET, || record.lead(dark))
            .and_then(|r| r)
            .on("netlink", name)?;
        warnings.extend(said.into_iter().map(|w| format!("{}: {w}", name())));
    }
    Ok(warnings)
}

/// The table of nf_tables that lets nothing into a namespace that is not ready yet.
pub(super) const SHUT: &str = "freeze-shut";

/// Lets into a namespace what is sent to it.
pub(super) fn let_in(netns: BorrowedFd<'_>) {
    let _ = within(netns, libc::CLONE_NEWNET, || wire::release(SHUT));
}

/// Adds what of packet filters and traffic control would not come back as it is; `label` says where it was.
///
/// It is made anew in a namespace that nobody sees, by this kernel.
pub fn try_out(record: &Record, label: &str, out: &mut Vec<Blocker>) {
    let mut outers = record.outers();
    let plain = record.disciplines.is_empty() && outers.all(|o| o.device.disciplines.is_empty());
    if record.filters.is_empty() && record.xtables.is_empty() && plain {
        return;
    }
    let tried = || -> Sys<Vec<Blocker>> {
        ns::unshare(libc::CLONE_NEWNET)?;
        let mut out = traffic::trial(&record.disciplines, &record.links, label);
        for outer in record.outers() {
            out.extend(traffic::trial(
                &outer.device.disciplines,
                &outer.device.links,
                label,
            ));
        }
        out.extend(xtables::trial(&record.xtables, label));
        out.extend(filter::trial(&record.filters, label));
        Ok(out)
    };
    match std::thread::scope(|s| s.spawn(tried).join()).unwrap_or(Err(Errno::EIO)) {
        Ok(found) => out.extend(found),
        // Who may not make a namespace may not restore one either, which is told elsewhere.
        Err(Errno::EPERM) => {}
        Err(e) => out.push(
            Blocker::at("packet filters", label)
                .why(format!(
                    "there can be no network namespace to try them in: {}",
                    e.desc()
                ))
                .remedy("raise the limit (sysctl user.max_net_namespaces), or delete them"),
        ),
    }
}

/// Gives the namespaces of these numbers their packet filters and what these keep track of, when nothing is to be sent
/// there any more but by programs; tells what is not as it was.
pub fn guard(all: &[(u32, &Record, BorrowedFd<'_>)]) -> Result<Vec<String>> {
    let mut warnings = Vec::new();
    for (number, record, netns) in all {
        let name = || format!("network namespace {number} of the image");
        let work = || {
            xtables::restore(&record.xtables)?;
            filter::restore(&record.filters)?;
            record.tracked.restore().on("ctnetlink", name)
        };
        let said = within(*netns, libc::CLONE_NEWNET, work).on("setns", name)??;
        warnings.extend(said.into_iter().map(|w| format!("{}: {w}", name())));
    }
    Ok(warnings)
}

/// IFF_RUNNING.
const RUNNING: u32 = 0x40;

/// The index and the flags of a device, of its `struct ifinfomsg`.
fn state(message: &[u8]) -> (i32, u32) {
    let field = |at: usize| message.get(at..at + 4).map_or(0, word);
    (field(4) as i32, field(8))
}

fn word(bytes: &[u8]) -> u32 {
    bytes
        .get(..4)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u32::from_ne_bytes)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.split(|b| *b == 0).next().unwrap_or_default()).into_owned()
}

/// The attributes whose types lie in `kept`, one after another as they came.
fn filtered(bytes: &[u8], kept: &[std::ops::RangeInclusive<u16>]) -> Bytes {
    let mut out = Vec::new();
    for (kind, value) in attributes(bytes, 0) {
        if kept.iter().any(|k| k.contains(&kind)) {
            put(&mut out, kind, value);
        }
    }
    Bytes(out)
}

fn read(others: &[(u32, i32)], label: &str) -> Sys<(Record, Vec<Blocker>)> {
    let mut netlink = Netlink::route()?;
    let mut out = Vec::new();
    let mut record = Record::default();
    let numbers = namespace_ids(&mut netlink, others);
    for message in netlink.dump(GETLINK, &[0; 16])? {
        let link = Link::read(&message, &numbers, label, &mut out);
        record.links.extend(link);
    }
    record.links.sort_by_key(|l| l.index);
    let indexes: BTreeSet<i32> = record.links.iter().map(|l| l.index).collect();
    for link in &record.links {
        if link.lower != 0 && !indexes.contains(&link.lower) {
            out.push(
                Blocker::at(format!("network device {}", link.name), label)
                    .why("it lies upon a device of another network namespace")
                    .remedy("checkpoint both namespaces, or remove the device"),
            );
        }
    }
    record.addresses = netlink.dump(GETADDR, &[0; 8])?.into_iter().map(Bytes).collect();
    record.routes = routes(&mut netlink)?;
    record.prefixes = Some(prefixes(&mut netlink)?);
    record.rules = rules(&mut netlink)?;
    record.neighbours = neighbours(&mut netlink, &record.links)?;
    record.multicast = multicast::read();
    record.settings = settings();
    record.disciplines = traffic::read(&mut netlink, &record.links, label, &mut out)?;
    elsewhere::judge(&record.links, label, &mut out)?;
    record.filters = filter::read(label, &mut out)?;
    record.xtables = xtables::read(label, &mut out)?;
    record.tracked = conntrack::read()?;
    if record.links.iter().any(|l| l.kind == "bridge") {
        xtables::bridges(label, &mut out);
    }
    Ok((record, out))
}

/// The ids by which this namespace knows others.
fn namespace_ids(netlink: &mut Netlink, others: &[(u32, i32)]) -> BTreeMap<i32, u32> {
    const NETNSA_NSID: u16 = 1;
    const NETNSA_FD: u16 = 3;
    let mut out = BTreeMap::new();
    for (number, fd) in others {
        let mut body = vec![0; 4];
        put(&mut body, NETNSA_FD, &fd.to_ne_bytes());
        let Ok(answers) = netlink.ask(GETNSID, &body) else {
            continue;
        };
        for answer in answers {
            for (kind, value) in attributes(&answer, 4) {
                if kind == NETNSA_NSID && word(value) as i32 >= 0 {
                    out.insert(word(value) as i32, *number);
                }
            }
        }
    }
    out
}

impl Record {
    fn outers(&self) -> impl Iterator<Item = &alone::Outer> {
        self.links.iter().filter_map(|l| l.outer.as_deref())
    }

    /// Waits for the names of the outer ends of its pairs, and adds those that are taken by something else.
    pub fn await_names(&self, out: &mut Vec<Blocker>) {
        self.outers().for_each(|outer| outer.await_name(out));
    }

    fn make_links(
        &self,
        number: u32,
        all: &[(u32, &Record, BorrowedFd<'_>)],
        places: &BTreeMap<u32, i32>,
    ) -> Sys<()> {
        let mut netlink = Netlink::route()?;
        let there: BTreeSet<i32> = netlink
            .dump(GETLINK, &[0; 16])?
            .iter()
            .filter_map(|m| m.get(4..8).map(|b| word(b) as i32))
            .collect();
        let mut made = there;
        // What lies upon another comes after it.
        let mut rest: Vec<&Link> = self.links.iter().filter(|l| !comes_by_itself(l)).collect();
        while !rest.is_empty() {
            let (ready, waiting): (Vec<&Link>, Vec<&Link>) =
                rest.iter().partition(|l| l.lower == 0 || made.contains(&l.lower));
            if ready.is_empty() {
                return Err(Errno::ENODEV);
            }
            for link in ready {
                if made.contains(&link.index) {
                    continue;
                }
                match (link.kind.as_str(), link.peer) {
                    // Such a one is carried only while somebody else keeps the namespace.
                    ("veth", None) => return Err(Errno::ENODEV),
                    (kind, _) if !KINDS.iter().any(|(k, _)| *k == kind) => return Err(Errno::ENODEV),
                    ("tun", _) => link.make_tun()?,
                    (_, Some((0, _))) => {
                        let (outer, own) = link.outer.as_ref().zip(places.get(&0)).ok_or(Errno::ENODEV)?;
                        outer.make_with(link, &mut netlink, *own)?;
                    }
                    (_, Some((to, index))) => {
                        let to = if to == u32::MAX { number } else { to };
                        let peer = all
                            .iter()
                            .find(|(n, ..)| *n == to)
                            .and_then(|(_, r, _)| r.links.iter().find(|l| l.index == index));
                        let peer = peer.ok_or(Errno::ENODEV)?;
                        let elsewhere = places.get(&to).copied().filter(|_| to != number);
                        link.make(&mut netlink, Some((peer, elsewhere)))?;
                        if to == number {
                            made.insert(index);
                        }
                    }
                    _ => link.make(&mut netlink, None)?,
                }
                made.insert(link.index);
            }
            rest = waiting;
        }
        Ok(())
    }

    fn settle(&self) -> Sys<(Vec<String>, BTreeSet<i32>)> {
        let mut netlink = Netlink::route()?;
        let mut warnings = Vec::new();
        for bridge in self.bridges().filter(|b| !self.is_grown(b)) {
            bridge.grow_tree(&mut netlink)?;
        }
        for link in &self.links {
            link.settle(&mut netlink)?;
        }
        apply_settings(&self.settings);
        hush_addresses(&self.settings);
        // New addresses are not asked about on the wire: they were in use already.
        let asking: Vec<&(String, String)> = self
            .settings
            .iter()
            .filter(|(path, _)| path.starts_with("ipv6/conf/") && path.ends_with("/accept_dad"))
            .collect();
        for (path, _) in &asking {
            let _ = std::fs::write(Path::new(SETTINGS).join(path), "0");
        }
        self.set_addresses(&mut netlink, true, &mut warnings)?;
        for link in &self.links {
            let body = link.head(link.flags & FLAGS, FLAGS);
            netlink.request(SETLINK, 0, &body)?;
        }
        let dark = self.dark(&mut netlink)?;
        // What came by itself with the devices going up is not wanted; what went with it is.
        self.set_addresses(&mut netlink, false, &mut warnings)?;
        for (path, value) in &asking {
            let _ = std::fs::write(Path::new(SETTINGS).join(path), value);
        }
        multicast::restore(&self.multicast)?;
        Ok((warnings, dark))
    }

    /// What can be said once all devices of all namespaces are up, each of which brings along routes.
    fn lead(&self, dark: &BTreeSet<i32>) -> Sys<Vec<String>> {
        let mut netlink = Netlink::route()?;
        let mut warnings = Vec::new();
        if !dark.is_empty() {
            Record::await_devices(dark, &mut netlink)?;
        }
        // A port that comes up where there is such a tree only listens for twice the delay, half a minute.
        for bridge in self.bridges().filter(|b| b.has_tree() && self.is_grown(b)) {
            self.await_ports(bridge, &mut netlink)?;
            bridge.grow_tree(&mut netlink)?;
        }
        let now = neighbours(&mut netlink, &self.links)?;
        for wanted in self.neighbours.iter().filter(|n| !now.contains(n)) {
            netlink.request(NEWNEIGH, CREATE, &wanted.0)?;
        }
        self.set_routes(&mut netlink, &mut warnings)?;
        traffic::restore(&mut netlink, &self.disciplines)?;
        apply_settings(&self.settings);
        self.await_addresses(&mut netlink)?;
        // What the kernel makes up by a setting that was changed after the device came up was not there.
        self.set_addresses(&mut netlink, false, &mut warnings)?;
        Ok(warnings)
    }

    /// The devices that were in use and are up by now, but had no carrier when they came up: their other end is still down.
    fn dark(&self, netlink: &mut Netlink) -> Sys<BTreeSet<i32>> {
        const LOWER_UP: u32 = 0x10000;
        let used = self.links.iter().filter(|l| l.flags & RUNNING != 0);
        let used: BTreeSet<i32> = used.filter(|l| !self.is_on_tun(l)).map(|l| l.index).collect();
        let all = netlink.dump(GETLINK, &[0; 16])?.into_iter().map(|m| state(&m));
        let dark = all.filter(|(index, flags)| used.contains(index) && flags & LOWER_UP == 0);
        Ok(dark.map(|(index, _)| index).collect())
    }

    /// Waits until these can be used, which they are a moment after their other end is up: what is sent by one before that is
    /// lost, and nobody is told. Those that had a carrier from the beginning can, whether they are said to run by now or not.
    fn await_devices(dark: &BTreeSet<i32>, netlink: &mut Netlink) -> Sys<()> {
        const PATIENCE: Duration = Duration::from_secs(1);
        let began = Instant::now();
        let waits = |m: &Vec<u8>| {
            let (index, flags) = state(m);
            dark.contains(&index) && flags & RUNNING == 0
        };
        while netlink.dump(GETLINK, &[0; 16])?.iter().any(waits) && began.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Whether what a device can be used for depends on a program that is yet to be attached to it, or to one below it.
    fn is_on_tun(&self, link: &Link) -> bool {
        let below = |l: &&Link| l.index == link.lower || l.master == link.index;
        link.kind == "tun" || self.links.iter().filter(below).any(|l| self.is_on_tun(l))
    }

    fn bridges(&self) -> impl Iterator<Item = &Link> {
        self.links.iter().filter(|l| l.kind == "bridge")
    }

    /// Whether the spanning tree of a bridge had settled on using all of its ports.
    fn is_grown(&self, bridge: &Link) -> bool {
        let mut ports = self.links.iter().filter(|l| l.master == bridge.index);
        ports.all(|l| l.forwarding)
    }

    /// Waits until the ports of a bridge pass on what arrives, which they do a moment after they are up.
    fn await_ports(&self, bridge: &Link, netlink: &mut Netlink) -> Sys<()> {
        const PATIENCE: Duration = Duration::from_secs(1);
        let began = Instant::now();
        for port in self.links.iter().filter(|l| l.master == bridge.index) {
            while !port.forwards_now(netlink)? && began.elapsed() < PATIENCE {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        Ok(())
    }

    /// Waits until addresses that were in use can be used, which the kernel makes them a moment after the device is up.
    fn await_addresses(&self, netlink: &mut Netlink) -> Sys<()> {
        const PATIENCE: Duration = Duration::from_secs(2);
        let tentative = |a: &[u8]| a.get(2).is_some_and(|flags| flags & 0x40 != 0);
        let used = self.addresses.iter().filter(|a| !tentative(&a.0));
        let used: Vec<_> = used.map(|a| address_key(&a.0)).collect();
        let began = Instant::now();
        let waits = |a: &Vec<u8>| tentative(a) && used.contains(&address_key(a));
        while netlink.dump(GETADDR, &[0; 8])?.iter().any(waits) && began.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// `ahead`: before the devices are up.
    fn set_addresses(&self, netlink: &mut Netlink, ahead: bool, warnings: &mut Vec<String>) -> Sys<()> {
        let key = |m: &[u8]| address_key(m);
        let now: Vec<Vec<u8>> = netlink.dump(GETADDR, &[0; 8])?;
        let wanted: Vec<_> = self.addresses.iter().map(|a| key(&a.0)).collect();
        for extra in now.iter().filter(|a| !wanted.contains(&key(a))) {
            let _ = netlink.request(DELADDR, 0, extra);
        }
        let there = |a: &Bytes| now.iter().any(|n| key(n) == key(&a.0));
        // That of the loopback device comes with it, and without the route that another would have.
        let comes = |a: &Bytes| ahead && attributes(&a.0, 8).contains(&(ADDRESS, &LOOPBACK[..]));
        // Of one that is to expire the route goes as the device comes up, and comes back when it is set once more.
        let lacking = |a: &&Bytes| there(a) && !ahead && is_new(&a.0) && !is_permanent(&a.0);
        for address in self.addresses.iter().filter(lacking) {
            let _ = netlink.request(NEWADDR, REPLACE, &address_request(&address.0));
        }
        let missing: Vec<_> = self.addresses.iter().filter(|a| !comes(a) && !there(a)).collect();
        let (new, old): (Vec<_>, Vec<_>) = missing.into_iter().partition(|a| is_new(&a.0));
        // They are to come to stand as they did, since which one is used may depend on it. Of IPv6 the kernel puts one before
        // those of its sort; later ones may put it behind them.
        set_all(
            netlink,
            old.into_iter().chain(new.iter().rev().copied()),
            warnings,
        );
        let now = netlink.dump(GETADDR, &[0; 8])?;
        let standing: Vec<_> = now
            .iter()
            .map(|a| key(a))
            .filter(|a| wanted.contains(a))
            .collect();
        if ahead && !standing.iter().eq(wanted.iter().filter(|w| standing.contains(w))) {
            for address in &new {
                let _ = netlink.request(DELADDR, 0, &address.0);
            }
            set_all(netlink, new.into_iter(), warnings);
        }
        Ok(())
    }
}

/// Sets addresses, and tells of those that cannot be set.
fn set_all<'a>(netlink: &mut Netlink, all: impl Iterator<Item = &'a Bytes>, warnings: &mut Vec<String>) {
    for address in all {
        match netlink.request(NEWADDR, CREATE | EXCL, &address_request(&address.0)) {
            // A device that has IPv6 switched off takes none.
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(e) => {
                let said = format!("an address of device {} is not there: {e}", word(&address.0[4..]));
                if !warnings.contains(&said) {
                    warnings.push(said);
                }
            }
        }
    }
}

/// Whether an address is one of IPv6.
fn is_new(message: &[u8]) -> bool {
    message.first().map(|family| i32::from(*family)) == Some(libc::AF_INET6)
}

/// What tells addresses apart: family, prefix, device, and the addresses themselves.
fn address_key(message: &[u8]) -> (Vec<u8>, Vec<(u16, Vec<u8>)>) {
    let mut head = message.get(..8).unwrap_or_default().to_vec();
    if let Some(flags) = head.get_mut(2) {
        *flags = 0;
    }
    let own = attributes(message, 8).into_iter().filter(|(k, _)| *k <= 2);
    (head, own.map(|(k, v)| (k, v.to_vec())).collect())
}

const IFA_FLAGS: u16 = 8;

/// Whether an address does not expire.
fn is_permanent(message: &[u8]) -> bool {
    const PERMANENT: u32 = 0x80;
    let all = attributes(message, 8);
    all.iter()
        .any(|(k, v)| *k == IFA_FLAGS && word(v) & PERMANENT != 0)
}

/// The message that sets an address again: without what only counts.
fn address_request(message: &[u8]) -> Vec<u8> {
    const CACHEINFO: u16 = 6;
    /// Secondary, tentative, failed, optimistic: found out by the kernel itself.
    const FOUND: u32 = 0x01 | 0x40 | 0x08 | 0x04 | 0x2000;
    let mut out = message.get(..8).unwrap_or_default().to_vec();
    out[2] &= !(FOUND as u8);
    let permanent = is_permanent(message);
    // One that stays for ever may all the same be one that is not to be used for anything new, now or soon.
    let preferred = |cache: &[u8]| cache.get(..4).is_some_and(|p| word(p) == u32::MAX);
    for (kind, value) in attributes(message, 8) {
        match kind {
            CACHEINFO if permanent && preferred(value) => {}
            IFA_FLAGS => put(&mut out, kind, &(word(value) & !FOUND).to_ne_bytes()),
            _ => put(&mut out, kind, value),
        }
    }
    out
}
