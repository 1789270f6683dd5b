//! What else a network namespace may hold that is not carried: asked for, so that it is refused by name and not lost.

use super::{Link, word};
use crate::error::Blocker;
use crate::sys::rtnl::{Netlink, attributes, put};
use nix::Result as Sys;
use nix::errno::Errno;
use std::collections::BTreeMap;

/// Where something is told of: a connection, a message, and the body of the question.
struct Question {
    what: &'static str,
    open: fn() -> Sys<Netlink>,
    kind: u16,
    /// How long the header of the question is. Where there is none, what stands in its place is no attribute, which the
    /// kernel puts into its log each time.
    head: usize,
    remedy: &'static str,
}

const QUESTIONS: [Question; 7] = [
    Question {
        what: "nexthop objects",
        open: Netlink::route,
        kind: 106,
        head: 8,
        remedy: "name the gateways in the routes (ip nexthop flush)",
    },
    Question {
        what: "IPsec states",
        open: Netlink::xfrm,
        kind: 0x12,
        head: 0,
        remedy: "delete them (ip xfrm state flush), and make them again after the restore",
    },
    Question {
        what: "IPsec policies",
        open: Netlink::xfrm,
        kind: 0x15,
        head: 0,
        remedy: "delete them (ip xfrm policy flush), and make them again after the restore",
    },
    Question {
        what: "counters of nfacct",
        open: Netlink::netfilter,
        kind: 7 << 8 | 1,
        head: 4,
        remedy: "delete them (nfacct flush), or use counters of nftables",
    },
    Question {
        what: "timeout policies of conntrack",
        open: Netlink::netfilter,
        kind: 8 << 8 | 1,
        head: 4,
        remedy: "delete them (nfct del timeout), or use those of nftables (ct timeout)",
    },
    Question {
        what: "conntrack helpers of a program",
        open: Netlink::netfilter,
        kind: 9 << 8 | 1,
        head: 4,
        remedy: "delete them (nfct del helper)",
    },
    Question {
        what: "sets of ipset",
        open: Netlink::netfilter,
        kind: 6 << 8 | 7,
        head: 4,
        remedy: "delete them (ipset destroy), or use sets of nftables",
    },
];

/// Files in /proc/PID/net, what more than their headings is, and how many lines these have.
const FILES: [(&str, &str, usize); 5] = [
    ("ip_mr_vif", "IPv4 multicast routing", 1),
    ("ip6_mr_vif", "IPv6 multicast routing", 1),
    ("ip_mr_cache", "IPv4 multicast routing", 1),
    ("ip6_mr_cache", "IPv6 multicast routing", 1),
    ("ip_vs", "IP virtual servers", 3),
];

/// Adds everything that is there.
pub(super) fn judge(links: &[Link], label: &str, out: &mut Vec<Blocker>) -> Sys<()> {
    let refuse = |what: String, remedy: &str| {
        Blocker::at(what, label)
            .why("they are not carried")
            .remedy(remedy)
    };
    for question in &QUESTIONS {
        let mut body = vec![0; question.head];
        if question.kind >> 8 == 6 {
            // IPSET_ATTR_PROTOCOL
            put(&mut body, 1, &[6]);
        }
        let answers = match (question.open)().and_then(|mut n| n.dump(question.kind, &body)) {
            // Without the part of the kernel that has them there are none.
            Err(Errno::EINVAL | Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT | Errno::ENOENT) => continue,
            answers => answers?,
        };
        if !answers.is_empty() {
            out.push(refuse(question.what.to_owned(), question.remedy));
        }
    }
    for (file, what, heading) in FILES {
        let text = std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap_or_default();
        let blocker = refuse(what.to_owned(), "let the program that does it end");
        if text.lines().count() > heading && !out.contains(&blocker) {
            out.push(blocker);
        }
    }
    barred(label, out);
    if links.iter().any(|l| l.kind == "bridge") {
        bridges(links, label, out)?;
    }
    Ok(())
}

/// IPsec may bar everything that no policy allows.
fn barred(label: &str, out: &mut Vec<Blocker>) {
    const GETDEFAULT: u16 = 0x28;
    const BLOCK: u8 = 1;
    let answers = Netlink::xfrm().and_then(|mut n| n.ask(GETDEFAULT, &[0; 4]));
    // Before Linux 5.15 there is no such thing.
    if answers.is_ok_and(|a| a.iter().any(|a| a.iter().take(3).any(|d| *d == BLOCK))) {
        out.push(
            Blocker::at("default policy of IPsec", label)
                .why("it bars what no policy allows, which is not carried")
                .remedy("allow it (ip xfrm policy setdefault in accept fwd accept out accept)"),
        );
    }
}

/// What bridges were told of VLANs, addresses and groups.
fn bridges(links: &[Link], label: &str, out: &mut Vec<Blocker>) -> Sys<()> {
    const AF_BRIDGE: u8 = 7;
    const GETLINK: u16 = 18;
    const GETNEIGH: u16 = 30;
    const GETMDB: u16 = 86;
    let names: BTreeMap<i32, &Link> = links.iter().map(|l| (l.index, l)).collect();
    let mut found = |index: i32, why: &str, remedy: &str| {
        let name = names.get(&index).map_or("", |l| &l.name);
        let blocker = Blocker::at(format!("network device {name}"), label)
            .why(why)
            .remedy(remedy);
        if !out.contains(&blocker) {
            out.push(blocker);
        }
    };
    let mut netlink = Netlink::route()?;
    let mut ask = vec![0; 16];
    ask[0] = AF_BRIDGE;
    // IFLA_EXT_MASK: RTEXT_FILTER_BRVLAN.
    put(&mut ask, 29, &2u32.to_ne_bytes());
    for message in netlink.dump(GETLINK, &ask)? {
        let index = message.get(4..).map_or(0, word) as i32;
        let usual = usual_vlan(index, &names);
        if vlans(&message).is_some_and(|v| v != usual) {
            found(
                index,
                "its VLANs on the bridge are not carried",
                "leave it those it has by itself (bridge vlan)",
            );
        }
    }
    let mut ask = vec![0; 12];
    ask[0] = AF_BRIDGE;
    for message in netlink.dump(GETNEIGH, &ask)? {
        // NUD_NOARP, as what was entered by hand has it; the kernel's own and what it has learned have not.
        const NOARP: u16 = 0x40;
        let state = message.get(8..10).map_or(0, |s| u16::from_ne_bytes([s[0], s[1]]));
        if state & NOARP != 0 {
            let index = message.get(4..).map_or(0, word) as i32;
            found(
                index,
                "addresses that were entered for it by hand are not carried",
                "delete them (bridge fdb)",
            );
        }
    }
    let mut ask = vec![0; 8];
    ask[0] = AF_BRIDGE;
    // A kernel without groups has no such table.
    for message in netlink.dump(GETMDB, &ask).unwrap_or_default() {
        let index = message.get(4..).map_or(0, word) as i32;
        if has_permanent_group(&message) {
            found(
                index,
                "groups that were entered for it by hand are not carried",
                "delete them (bridge mdb)",
            );
        }
    }
    Ok(())
}

/// The VLANs of a device on a bridge or of a bridge, as flags and number; none where the kernel has no such filter.
fn vlans(message: &[u8]) -> Option<Vec<(u16, u16)>> {
    const AF_SPEC: u16 = 26;
    const VLAN_INFO: u16 = 2;
    let all = attributes(message, 16);
    let (_, spec) = all.into_iter().find(|(k, _)| *k == AF_SPEC)?;
    let infos = attributes(spec, 0).into_iter().filter(|(k, _)| *k == VLAN_INFO);
    Some(
        infos
            .filter_map(|(_, v)| {
                let half = |at: usize| v.get(at..at + 2).map(|b| u16::from_ne_bytes([b[0], b[1]]));
                Some((half(0)?, half(2)?))
            })
            .collect(),
    )
}

/// What a device gets when it joins a bridge: the default VLAN of that one, untagged.
fn usual_vlan(index: i32, links: &BTreeMap<i32, &Link>) -> Vec<(u16, u16)> {
    const DEFAULT: u16 = 39;
    const UNTAGGED: u16 = 6;
    let bridge = links.get(&index).map(|l| match l.kind.as_str() {
        "bridge" => l,
        _ => links.get(&l.master).unwrap_or(l),
    });
    let default = bridge.and_then(|b| {
        let all = attributes(&b.data.0, 0);
        let (_, value) = all.into_iter().find(|(k, _)| *k == DEFAULT)?;
        Some(u16::from_ne_bytes([*value.first()?, *value.get(1)?]))
    });
    default
        .filter(|id| *id != 0)
        .map(|id| (UNTAGGED, id))
        .into_iter()
        .collect()
}

/// Whether a message of a bridge's groups has one that does not go away by itself.
fn has_permanent_group(message: &[u8]) -> bool {
    // MDBA_MDB, MDBA_MDB_ENTRY, MDBA_MDB_ENTRY_INFO: struct br_mdb_entry, whose state follows the device.
    let inside = |bytes: &[u8], head: usize| -> Vec<Vec<u8>> {
        let all = attributes(bytes, head).into_iter().filter(|(k, _)| *k == 1);
        all.map(|(_, v)| v.to_vec()).collect()
    };
    let lists = inside(message, 8).into_iter().flat_map(|m| inside(&m, 0));
    let mut entries = lists.flat_map(|m| inside(&m, 0));
    entries.any(|e| e.get(4) == Some(&1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::rtnl::nest;

    #[test]
    fn vlans_are_told_apart() {
        let mut message = vec![0; 16];
        assert_eq!(vlans(&message), None);
        nest(&mut message, 26, |m| {
            put(m, 2, &[6, 0, 1, 0]);
            put(m, 2, &[0, 0, 7, 0]);
        });
        assert_eq!(vlans(&message), Some(vec![(6, 1), (0, 7)]));
        let mut bridge = Link {
            index: 4,
            kind: "bridge".into(),
            ..Link::default()
        };
        put(&mut bridge.data.0, 39, &[1, 0]);
        let port = Link {
            index: 5,
            master: 4,
            ..Link::default()
        };
        let links = BTreeMap::from([(4, &bridge), (5, &port)]);
        assert_eq!(usual_vlan(5, &links), [(6, 1)]);
        assert_eq!(usual_vlan(4, &links), [(6, 1)]);
    }

    #[test]
    fn a_group_entered_by_hand_is_seen() {
        let mut message = vec![0; 8];
        let entry = |state: u8| [&[5, 0, 0, 0, state][..], &[0; 23]].concat();
        nest(&mut message, 1, |m| nest(m, 1, |m| put(m, 1, &entry(0))));
        assert!(!has_permanent_group(&message));
        nest(&mut message, 1, |m| nest(m, 1, |m| put(m, 1, &entry(1))));
        assert!(has_permanent_group(&message));
    }
}
