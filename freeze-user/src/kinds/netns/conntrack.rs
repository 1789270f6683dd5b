//! Connections that the packet filter keeps track of, and those it expects (ctnetlink).
//!
//! Without them, what belongs to a connection would be taken for the beginning of one, or for nothing at all, and an
//! address that is translated would be translated otherwise.

use crate::kinds::pipe::Bytes;
use crate::sys::rtnl::{CREATE, EXCL, Netlink, attributes, nest, put};
use nix::Result as Sys;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};

/// What is kept track of, in the kernel's own messages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tracked {
    pub connections: Vec<Bytes>,
    pub expected: Vec<Bytes>,
}

/// Subsystem and message of nfnetlink.
const NEW: u16 = 1 << 8;
const GET: u16 = 1 << 8 | 1;
const NEW_EXPECTED: u16 = 2 << 8;
const GET_EXPECTED: u16 = 2 << 8 | 1;

// CTA_*
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const STATUS: u16 = 3;
const PROTOCOL: u16 = 4;
const NAT_SOURCE: u16 = 6;
const NAT_TARGET: u16 = 13;
const MASTER: u16 = 14;
/// Helper, timeout, mark, corrections of sequence numbers, zone, labels, synproxy.
const TAKEN: &[u16] = &[5, 7, 8, MASTER, 15, 16, 18, 22, 24];

// IPS_*
const EXPECTED: u32 = 1 << 0;
const CONFIRMED: u32 = 1 << 3;
const DYING: u32 = 1 << 9;
/// Whether it was looked at for translation, of source and target.
const NAT_DONE: u32 = 1 << 7 | 1 << 8;

// CTA_TUPLE_*, CTA_IP_*, CTA_PROTO_*
const ADDRESSES: u16 = 1;
const PORTS: u16 = 2;
const SOURCE_PORT: u16 = 2;
const TARGET_PORT: u16 = 3;
const ICMP_ID: u16 = 4;
const ICMPV6_ID: u16 = 7;

fn get(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes, 0)
        .into_iter()
        .find(|(k, _)| *k == kind)
        .map(|(_, v)| v)
}

fn word(bytes: &[u8]) -> u32 {
    bytes.first_chunk().map_or(0, |b| u32::from_be_bytes(*b))
}

/// Reads what is kept track of in the namespace of the calling thread.
pub(super) fn read() -> Sys<Tracked> {
    let absent = |e: &Errno| matches!(e, Errno::EINVAL | Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT);
    let all = |kind: u16| -> Sys<Vec<Bytes>> {
        match Netlink::netfilter().and_then(|mut n| n.dump(kind, &[0; 4])) {
            // Without ctnetlink nothing is told.
            Err(e) if absent(&e) => Ok(Vec::new()),
            all => Ok(all?.into_iter().map(Bytes).collect()),
        }
    };
    let dying = |c: &Bytes| status(&c.0) & DYING != 0;
    let mut connections = all(GET)?;
    connections.retain(|c| !dying(c));
    Ok(Tracked {
        connections,
        expected: all(GET_EXPECTED)?,
    })
}

fn status(message: &[u8]) -> u32 {
    get(message.get(4..).unwrap_or_default(), STATUS).map_or(0, word)
}

impl Tracked {
    /// Gives it to the namespace of the calling thread, whose filters are there; tells what is not as it was.
    pub(super) fn restore(&self) -> Sys<Vec<String>> {
        let mut warnings = Vec::new();
        if self.connections.is_empty() && self.expected.is_empty() {
            return Ok(warnings);
        }
        let mut netlink = Netlink::netfilter()?;
        // One that another one brought about comes after that one.
        let mut rest: Vec<&Bytes> = self.connections.iter().collect();
        while !rest.is_empty() {
            let before = rest.len();
            let mut last = Errno::EINVAL;
            rest.retain(|c| match netlink.request(NEW, CREATE | EXCL, &request(&c.0)) {
                Ok(()) | Err(Errno::EEXIST) => false,
                Err(e) => {
                    last = e;
                    true
                }
            });
            if rest.len() == before {
                warnings.push(format!(
                    "{before} tracked connection(s) are not there: {}",
                    last.desc()
                ));
                break;
            }
        }
        let mut failed = None;
        for expected in &self.expected {
            match netlink.request(NEW_EXPECTED, CREATE | EXCL, &expectation(&expected.0)) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(e) => failed = Some(e),
            }
        }
        if let Some(e) = failed {
            warnings.push(format!("expected connections are not there: {}", e.desc()));
        }
        Ok(warnings)
    }
}

/// The message that makes a connection: the kernel is told how it began and how it is translated, not what came of that.
fn request(message: &[u8]) -> Vec<u8> {
    let head = message.get(..4).unwrap_or_default();
    let body = message.get(4..).unwrap_or_default();
    let status = status(message);
    let original = get(body, ORIGINAL).unwrap_or_default();
    let reply = get(body, REPLY).unwrap_or_default();
    let mut out = head.to_vec();
    nest(&mut out, ORIGINAL, |m| m.extend(original));
    let translated = status & NAT_DONE != 0;
    nest(&mut out, REPLY, |m| match translated {
        true => m.extend(answer(original, reply)),
        false => m.extend(reply),
    });
    if translated {
        nest(&mut out, NAT_SOURCE, |m| m.extend(range(reply, false)));
        nest(&mut out, NAT_TARGET, |m| m.extend(range(reply, true)));
    }
    let wanted = status & !EXPECTED | CONFIRMED;
    put(&mut out, STATUS, &wanted.to_be_bytes());
    for (kind, value) in attributes(body, 0) {
        if kind == PROTOCOL {
            nest(&mut out, kind, |m| m.extend(protocol(value)));
        } else if TAKEN.contains(&kind) {
            put(&mut out, kind, value);
        }
    }
    out
}

/// The answer to what began a connection if nothing is translated: its addresses and ports, the other way round.
fn answer(original: &[u8], reply: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for (kind, value) in attributes(reply, 0) {
        let own = get(original, kind).unwrap_or_default();
        match kind {
            ADDRESSES => nest(&mut out, kind, |m| {
                for (kind, value) in attributes(own, 0) {
                    // CTA_IP_V4_SRC and _DST, CTA_IP_V6_SRC and _DST.
                    let other = [0, 2, 1, 4, 3].get(usize::from(kind)).copied().unwrap_or(kind);
                    put(m, other, value);
                }
            }),
            PORTS => nest(&mut out, kind, |m| {
                for (kind, value) in attributes(value, 0) {
                    let from = match kind {
                        SOURCE_PORT => TARGET_PORT,
                        TARGET_PORT => SOURCE_PORT,
                        ICMP_ID | ICMPV6_ID => kind,
                        // The type of an answer is another one than that of the question.
                        _ => {
                            put(m, kind, value);
                            continue;
                        }
                    };
                    put(m, kind, get(own, from).unwrap_or(value));
                }
            }),
            _ => put(&mut out, kind, value),
        }
    }
    out
}

/// To what the source (or the target) is translated: what answers go to (or come from), and nothing else.
fn range(reply: &[u8], target: bool) -> Vec<u8> {
    // CTA_NAT_*, CTA_PROTONAT_PORT_*.
    const V4: [u16; 2] = [1, 2];
    const V6: [u16; 2] = [4, 5];
    const PORTS_OF: u16 = 3;
    let addresses = get(reply, ADDRESSES).unwrap_or_default();
    let ports = get(reply, PORTS).unwrap_or_default();
    let (kinds, port) = match target {
        true => ([1, 3], SOURCE_PORT),
        false => ([2, 4], TARGET_PORT),
    };
    let mut out = Vec::new();
    for (kind, names) in kinds.into_iter().zip([V4, V6]) {
        if let Some(address) = get(addresses, kind) {
            names.iter().for_each(|name| put(&mut out, *name, address));
        }
    }
    let port = get(ports, port)
        .or_else(|| get(ports, ICMP_ID))
        .or_else(|| get(ports, ICMPV6_ID));
    if let Some(port) = port {
        nest(&mut out, PORTS_OF, |m| {
            [1, 2].iter().for_each(|name| put(m, *name, port))
        });
    }
    out
}

/// What is particular to TCP and others; flags of TCP are told with a mask, which is empty when the kernel tells them.
fn protocol(value: &[u8]) -> Vec<u8> {
    const TCP: u16 = 1;
    const FLAGS: [u16; 2] = [4, 5];
    let mut out = Vec::new();
    for (kind, value) in attributes(value, 0) {
        nest(&mut out, kind, |m| {
            for (inner, value) in attributes(value, 0) {
                match (kind, value) {
                    (TCP, [flags, _]) if FLAGS.contains(&inner) => put(m, inner, &[*flags, 0xff]),
                    _ => put(m, inner, value),
                }
            }
        });
    }
    out
}

/// The message that makes an expectation.
fn expectation(message: &[u8]) -> Vec<u8> {
    const ID: u16 = 5;
    let mut out = message.get(..4).unwrap_or_default().to_vec();
    for (kind, value) in attributes(message, 4).into_iter().filter(|(k, _)| *k != ID) {
        put(&mut out, kind, value);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn tuple(source: [u8; 4], target: [u8; 4], ports: [u16; 2]) -> Vec<u8> {
        let mut out = Vec::new();
        nest(&mut out, ADDRESSES, |m| {
            put(m, 1, &source);
            put(m, 2, &target);
        });
        nest(&mut out, PORTS, |m| {
            put(m, 1, &[17]);
            put(m, SOURCE_PORT, &ports[0].to_be_bytes());
            put(m, TARGET_PORT, &ports[1].to_be_bytes());
        });
        out
    }

    #[test]
    fn a_translation_is_told_as_one() {
        let (a, b, c) = ([10, 0, 0, 1], [10, 0, 0, 2], [10, 0, 0, 3]);
        let original = tuple(a, b, [1000, 80]);
        let reply = tuple(c, a, [8080, 1000]);
        let (answer, wanted) = (answer(&original, &reply), tuple(b, a, [80, 1000]));
        for part in [ADDRESSES, PORTS] {
            let sorted = |tuple: &[u8]| {
                let all = attributes(get(tuple, part).unwrap(), 0);
                all.into_iter()
                    .map(|(k, v)| (k, v.to_vec()))
                    .collect::<BTreeMap<_, _>>()
            };
            assert_eq!(sorted(&answer), sorted(&wanted));
        }
        let target = range(&reply, true);
        assert_eq!(get(&target, 1), Some(&c[..]));
        let ports = get(&target, 3).unwrap();
        assert_eq!(get(ports, 1), Some(&8080u16.to_be_bytes()[..]));
        let source = range(&reply, false);
        assert_eq!(get(&source, 1), Some(&a[..]));
    }
}
