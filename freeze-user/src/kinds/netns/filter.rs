//! Tables of nf_tables: read in the kernel's own messages, judged, and tried out in a namespace that nobody sees.
//!
//! What the kernel tells of a table is what it takes for one, less what only counts or is derived. Whether that is so for
//! this table under this kernel is not believed but tried: before anything is stopped, and before anything is restored, it
//! is made in an empty namespace and read from there, and must be the same.

mod again;
mod expression;

use crate::error::{Blocker, Error, Result};
use crate::kinds::pipe::Bytes;
use crate::sys::rtnl::{CREATE, EXCL, Netlink, attributes, nest, put};
use expression::{Found, examine};
use nix::Result as Sys;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// A table with all that is in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// NFPROTO_*.
    pub family: u8,
    pub about: Item,
    pub chains: Vec<Item>,
    /// Those of each chain in their order.
    pub rules: Vec<Item>,
    pub sets: Vec<Set>,
    /// Counters, quotas and the like that have a name.
    pub objects: Vec<Item>,
    pub flowtables: Vec<Item>,
}

/// Something that has a number, by which programs name it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    pub handle: u64,
    /// Its attributes.
    pub body: Bytes,
}

/// A set or map.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Set {
    pub about: Item,
    /// The attributes of each element.
    pub elements: Vec<Bytes>,
}

/// The number of nf_tables among the subsystems of nfnetlink.
const SUBSYSTEM: u8 = 10;
/// NFTA_*_TABLE, and of a table its name.
const TABLE: u16 = 1;
const TABLE_FLAGS: u16 = 2;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_FLAGS: u16 = 10;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const SET_NAME: u16 = 2;
const SET_FLAGS: u16 = 3;
const OBJECT_NAME: u16 = 2;
const FLOWTABLE_NAME: u16 = 2;
const FLOWTABLE_HOOK: u16 = 3;
const ELEMENT_FLAGS: u16 = 3;
const ELEMENT_EXPIRATION: u16 = 5;
const LIST_ELEM: u16 = 1;

/// What of a message is kept.
struct Form {
    what: &'static str,
    get: u16,
    kept: &'static [u16],
    /// What counts or is derived: who uses it, where it lies among others.
    derived: &'static [u16],
    handle: u16,
}

const TABLES: Form = Form {
    what: "table",
    get: 1,
    kept: &[TABLE, TABLE_FLAGS, 6],
    derived: &[3, 5, 7],
    handle: 4,
};
const CHAINS: Form = Form {
    what: "chain",
    get: 4,
    kept: &[TABLE, CHAIN_NAME, CHAIN_HOOK, 5, 7, 8, CHAIN_FLAGS, 12],
    derived: &[6, 9, 11],
    handle: 2,
};
const RULES: Form = Form {
    what: "rule",
    get: 7,
    kept: &[TABLE, RULE_CHAIN, RULE_EXPRESSIONS, 5, 7],
    derived: &[6, 8, 9, 10, 11],
    handle: 3,
};
const SETS: Form = Form {
    what: "set",
    get: 10,
    kept: &[
        TABLE, SET_NAME, SET_FLAGS, 4, 5, 6, 7, 8, 9, 11, 12, 13, 15, 17, 18,
    ],
    derived: &[10, 14, 19, 20],
    handle: 16,
};
const OBJECTS: Form = Form {
    what: "object",
    get: 19,
    kept: &[TABLE, OBJECT_NAME, 3, 4, 8],
    derived: &[5, 7],
    handle: 6,
};
const FLOWTABLES: Form = Form {
    what: "flowtable",
    get: 23,
    kept: &[TABLE, FLOWTABLE_NAME, FLOWTABLE_HOOK, 7],
    derived: &[4, 6],
    handle: 5,
};
const GET_ELEMENTS: u16 = 13;
const GET_GENERATION: u16 = 16;

impl Item {
    fn get(&self, kind: u16) -> &[u8] {
        let all = attributes(&self.body.0, 0);
        all.into_iter().find(|(k, _)| *k == kind).map_or(&[], |(_, v)| v)
    }

    fn name(&self, kind: u16) -> String {
        super::text(self.get(kind))
    }

    fn number(&self, kind: u16) -> u32 {
        number(self.get(kind))
    }
}

impl Set {
    fn name(&self) -> String {
        self.about.name(SET_NAME)
    }
}

/// A number in network order.
fn number(bytes: &[u8]) -> u32 {
    bytes.first_chunk().map_or(0, |b| u32::from_be_bytes(*b))
}

impl Table {
    /// As nft(8) calls it.
    fn label(&self) -> String {
        let family = match self.family {
            1 => "inet",
            2 => "ip",
            3 => "arp",
            5 => "netdev",
            7 => "bridge",
            10 => "ip6",
            _ => "of an unknown family",
        };
        format!("nftables table {family} {}", self.about.name(TABLE))
    }

    /// Whether it is freeze's own, which holds the wires of connections shut (`sys/wire`).
    fn is_wire(&self) -> bool {
        self.about.name(TABLE).starts_with("freeze-") && self.sets.iter().any(|s| s.name() == "wires")
    }

    /// The devices that it names.
    fn devices(&self) -> BTreeSet<String> {
        const HOOK_DEV: u16 = 3;
        const HOOK_DEVS: u16 = 4;
        const FLOWTABLE_DEVS: u16 = 3;
        let mut out = BTreeSet::new();
        for chain in &self.chains {
            for (kind, value) in attributes(chain.get(CHAIN_HOOK), 0) {
                match kind {
                    HOOK_DEV => drop(out.insert(super::text(value))),
                    HOOK_DEVS => out.extend(attributes(value, 0).iter().map(|(_, v)| super::text(v))),
                    _ => {}
                }
            }
        }
        for flowtable in &self.flowtables {
            for (_, value) in attributes(flowtable.get(FLOWTABLE_HOOK), 0)
                .iter()
                .filter(|(k, _)| *k == FLOWTABLE_DEVS)
            {
                out.extend(attributes(value, 0).iter().map(|(_, v)| super::text(v)));
            }
        }
        out
    }
}

/// Reads all tables of the namespace of the calling thread; what cannot be carried is added to `out`.
pub(super) fn read(label: &str, out: &mut Vec<Blocker>) -> Sys<Vec<Table>> {
    let mut netlink = match Netlink::netfilter() {
        Err(Errno::EPROTONOSUPPORT) => return Ok(Vec::new()),
        netlink => netlink?,
    };
    // Each list is consistent in itself; that they fit each other shows in the number of changes.
    const TIMES: usize = 100;
    for _ in 0..TIMES {
        let before = match netlink.ask(u16::from(SUBSYSTEM) << 8 | GET_GENERATION, &[0; 4]) {
            // Without nf_tables there are no tables.
            Err(Errno::EINVAL | Errno::EOPNOTSUPP) => return Ok(Vec::new()),
            before => before?,
        };
        let mut unknown = Vec::new();
        let tables = match read_once(&mut netlink, label, &mut unknown) {
            // Gone between two questions.
            Err(Errno::ENOENT) => continue,
            tables => tables?,
        };
        if netlink.ask(u16::from(SUBSYSTEM) << 8 | GET_GENERATION, &[0; 4])? == before {
            out.extend(unknown);
            for table in &tables {
                judge(table, label, out);
            }
            return Ok(tables);
        }
    }
    Err(Errno::EBUSY)
}

fn read_once(netlink: &mut Netlink, label: &str, out: &mut Vec<Blocker>) -> Sys<Vec<Table>> {
    let mut tables: Vec<Table> = list(netlink, &TABLES, label, out)?
        .into_iter()
        .map(|(family, about)| Table {
            family,
            about,
            ..Table::default()
        })
        .collect();
    if tables.is_empty() {
        return Ok(tables);
    }
    tables.sort_by_key(|t| t.about.handle);
    for form in [&CHAINS, &RULES, &SETS, &OBJECTS, &FLOWTABLES] {
        for (family, item) in list(netlink, form, label, out)? {
            let of = |t: &&mut Table| t.family == family && t.about.get(TABLE) == item.get(TABLE);
            let table = tables.iter_mut().find(of).ok_or(Errno::ENOENT)?;
            match form.get {
                4 => table.chains.push(item),
                7 => table.rules.push(item),
                10 => table.sets.push(Set {
                    about: item,
                    elements: Vec::new(),
                }),
                19 => table.objects.push(item),
                _ => table.flowtables.push(item),
            }
        }
    }
    tables.retain(|t| !t.is_wire());
    for table in &mut tables {
        let family = table.family;
        for set in &mut table.sets {
            set.elements = elements(netlink, family, &set.about, label, out)?;
        }
    }
    Ok(tables)
}

/// Everything of a sort in all tables, with its family.
fn list(netlink: &mut Netlink, form: &Form, label: &str, out: &mut Vec<Blocker>) -> Sys<Vec<(u8, Item)>> {
    let mut all = Vec::new();
    for message in netlink.dump(u16::from(SUBSYSTEM) << 8 | form.get, &[0; 4])? {
        let family = *message.first().ok_or(Errno::EPROTO)?;
        let (mut item, mut unknown) = (Item::default(), None);
        for (kind, value) in attributes(&message, 4) {
            if kind == form.handle {
                let handle = value.first_chunk().ok_or(Errno::EPROTO)?;
                item.handle = u64::from_be_bytes(*handle);
            } else if form.kept.contains(&kind) {
                put(&mut item.body.0, kind, value);
            } else if !form.derived.contains(&kind) {
                unknown = Some(kind);
            }
        }
        if let Some(kind) = unknown {
            out.push(unknown_attribute(form.what, item.handle, kind, label));
        }
        all.push((family, item));
    }
    Ok(all)
}

fn unknown_attribute(what: &str, handle: u64, kind: u16, label: &str) -> Blocker {
    Blocker::at(format!("nftables {what} {handle}"), label)
        .why(format!(
            "the kernel tells something of it (attribute {kind}) that freeze does not know"
        ))
        .remedy("delete it, and load it again after the restore")
}

fn elements(
    netlink: &mut Netlink,
    family: u8,
    set: &Item,
    label: &str,
    out: &mut Vec<Blocker>,
) -> Sys<Vec<Bytes>> {
    const ELEMENTS: u16 = 3;
    const PAD: u16 = 8;
    const KNOWN: u16 = 11;
    let mut ask = vec![family, 0, 0, 0];
    put(&mut ask, TABLE, set.get(TABLE));
    put(&mut ask, SET_NAME, set.get(SET_NAME));
    let mut all = Vec::new();
    for message in netlink.dump(u16::from(SUBSYSTEM) << 8 | GET_ELEMENTS, &ask)? {
        let lists = attributes(&message, 4)
            .into_iter()
            .filter(|(k, _)| *k == ELEMENTS);
        for (_, element) in lists.flat_map(|(_, list)| attributes(list, 0)) {
            let mut body = Vec::new();
            for (kind, value) in attributes(element, 0) {
                if kind > KNOWN {
                    out.push(unknown_attribute("element of set", set.handle, kind, label));
                } else if kind != PAD {
                    put(&mut body, kind, value);
                }
            }
            all.push(Bytes(body));
        }
    }
    Ok(all)
}

/// Adds what is known not to come back as it is.
fn judge(table: &Table, label: &str, out: &mut Vec<Blocker>) {
    const OWNER: u32 = 2;
    const PERSIST: u32 = 4;
    let at = |what: String| Blocker::at(what, label);
    if table.about.number(TABLE_FLAGS) & (OWNER | PERSIST) != 0 {
        out.push(
            at(table.label())
                .why("it belongs to a netlink socket, with which it goes")
                .remedy("let the program delete it, or make it without an owner"),
        );
    }
    if let Some((why, remedy)) = again::burden(table) {
        out.push(at(table.label()).why(why).remedy(remedy));
    }
    let mut found = |what: String, found: Vec<Found>| {
        for Found { why, remedy } in found {
            out.push(at(format!("{}, {what}", table.label())).why(why).remedy(remedy));
        }
    };
    for rule in &table.rules {
        let place = format!("chain {}, rule {}", rule.name(RULE_CHAIN), rule.handle);
        found(place, examine(&rule.body.0, expression::RULE));
    }
    for set in &table.sets {
        let mut all = examine(&set.about.body.0, expression::SET);
        for element in &set.elements {
            for one in examine(&element.0, expression::ELEMENT) {
                if !all.contains(&one) {
                    all.push(one);
                }
            }
        }
        found(format!("set {}", set.name()), all);
    }
}

/// Gives the namespace of the calling thread, in which there are none, these tables.
pub(super) fn restore(tables: &[Table]) -> Result<()> {
    make(tables).map_err(|(what, errno)| Error::kernel("nf_tables", what, errno))
}

fn make(tables: &[Table]) -> Result<(), (String, Errno)> {
    if tables.is_empty() {
        return Ok(());
    }
    let mut netlink = Netlink::netfilter().map_err(|e| ("socket(NETLINK_NETFILTER)".to_owned(), e))?;
    for table in tables {
        let (names, messages) = again::messages(table);
        netlink.batch(SUBSYSTEM, &messages).map_err(|(n, errno)| {
            let what = names.get(n).map_or("all together", String::as_str);
            (format!("{}: {what}", table.label()), errno)
        })?;
    }
    Ok(())
}

/// What of these tables does not come back in the namespace of the calling thread, in which there is nothing.
pub(super) fn trial(tables: &[Table], label: &str) -> Vec<Blocker> {
    let at = |what: String| Blocker::at(what, label);
    let remedy = "delete it, and load it again after the restore";
    let mut out = Vec::new();
    let devices = tables.iter().flat_map(Table::devices).collect();
    if let Err(e) = stand_ins(&devices) {
        out.push(
            at("nftables".into())
                .why(format!(
                    "devices to try the rules with cannot be made: {}",
                    e.desc()
                ))
                .remedy(remedy),
        );
        return out;
    }
    let tables: Vec<Table> = tables.iter().map(timeless).collect();
    if let Err((what, errno)) = make(&tables) {
        out.push(
            at(what)
                .why(format!("this kernel does not take it back: {}", errno.desc()))
                .remedy(remedy),
        );
        return out;
    }
    let there = match read(label, &mut Vec::new()) {
        Ok(there) => there,
        Err(e) => {
            let why = format!("it cannot be read again when it is made anew: {}", e.desc());
            out.push(at("nftables".into()).why(why).remedy(remedy));
            return out;
        }
    };
    for table in &tables {
        let of = |t: &&Table| t.family == table.family && t.about.get(TABLE) == table.about.get(TABLE);
        let found = there.iter().find(of).map(timeless);
        let differs = match &found {
            None => Some("it is not there at all".to_owned()),
            Some(found) => difference(&again::comparable(table), &again::comparable(found)),
        };
        if let Some(differs) = differs {
            let why = format!("made anew by this kernel it is not the same: {differs}");
            out.push(at(table.label()).why(why).remedy(remedy));
        }
    }
    out
}

/// Without what goes away by itself.
fn timeless(table: &Table) -> Table {
    let mut out = table.clone();
    for set in &mut out.sets {
        set.elements
            .retain(|e| !attributes(&e.0, 0).iter().any(|(k, _)| *k == ELEMENT_EXPIRATION));
    }
    out
}

/// In what two tables differ.
fn difference(one: &Table, other: &Table) -> Option<String> {
    if one.about.body != other.about.body {
        return Some("the table itself".into());
    }
    let lists = [
        (&CHAINS, &one.chains, &other.chains, CHAIN_NAME),
        (&RULES, &one.rules, &other.rules, RULE_CHAIN),
        (&OBJECTS, &one.objects, &other.objects, OBJECT_NAME),
        (&FLOWTABLES, &one.flowtables, &other.flowtables, FLOWTABLE_NAME),
    ];
    for (form, these, those, name) in lists {
        if let Some((this, _)) = these.iter().zip(those).find(|(a, b)| a != b) {
            return Some(format!("{} {} ({})", form.what, this.handle, this.name(name)));
        }
        if these.len() != those.len() {
            return Some(format!("the number of {}s", form.what));
        }
    }
    if let Some((this, _)) = one.sets.iter().zip(&other.sets).find(|(a, b)| a != b) {
        return Some(format!("set {}", this.name()));
    }
    (one.sets.len() != other.sets.len()).then(|| "the number of sets".into())
}

/// Devices of these names, which do nothing.
fn stand_ins(names: &BTreeSet<String>) -> Sys<()> {
    let mut netlink = Netlink::route()?;
    for name in names.iter().filter(|n| *n != "lo") {
        let of_kind = |netlink: &mut Netlink, kind: &[u8]| {
            let mut body = vec![0; 16];
            put(&mut body, super::IFNAME, &[name.as_bytes(), b"\0"].concat());
            nest(&mut body, super::LINKINFO, |m| put(m, super::INFO_KIND, kind));
            netlink.request(super::NEWLINK, CREATE | EXCL, &body)
        };
        of_kind(&mut netlink, b"dummy")
            .or_else(|_| of_kind(&mut netlink, b"bridge"))
            .or_else(|_| of_kind(&mut netlink, b"veth"))?;
    }
    Ok(())
}
