//! What rules consist of: looked through for what the kernel does not tell, and rewritten where it takes back another thing
//! than it gives.

use super::{LIST_ELEM, number};
use crate::kinds::netns::{text, xtables};
use crate::sys::rtnl::{attributes, nest, put};

/// Where expressions lie in a message: attributes that are one, and attributes that are a list of them.
pub(super) type Places = (&'static [u16], &'static [u16]);

pub(super) const RULE: Places = (&[], &[super::RULE_EXPRESSIONS]);
pub(super) const SET: Places = (&[17], &[18]);
pub(super) const ELEMENT: Places = (&[7], &[11]);
const NOWHERE: Places = (&[], &[]);

/// NFTA_EXPR_*.
const NAME: u16 = 1;
const DATA: u16 = 2;

/// Expressions whose state is what the kernel tells of them, or which have none.
const CARRIED: &[&str] = &[
    "bitwise",
    "byteorder",
    "cmp",
    "counter",
    "ct",
    "dup",
    "dynset",
    "exthdr",
    "fib",
    "flow_offload",
    "fwd",
    "hash",
    "immediate",
    "inner",
    "last",
    "limit",
    "log",
    "lookup",
    "masq",
    "match",
    "meta",
    "nat",
    "notrack",
    "numgen",
    "objref",
    "osf",
    "payload",
    "queue",
    "quota",
    "range",
    "redir",
    "reject",
    "rt",
    "socket",
    "synproxy",
    "target",
    "tproxy",
    "tunnel",
    "xfrm",
];

/// An attribute instead of a chain of this name, if another one is meant.
type Aim<'a> = &'a dyn Fn(&str) -> Option<(u16, Vec<u8>)>;

/// Something that is not carried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub why: String,
    pub remedy: String,
}

/// What in the expressions of a message is not carried.
pub(super) fn examine(body: &[u8], places: Places) -> Vec<Found> {
    let mut out = Vec::new();
    each(body, places, &mut |name, data| {
        if let Some((why, remedy)) = fault(name, &data) {
            out.push(Found {
                why,
                remedy: remedy.to_owned(),
            });
        }
        data
    });
    out
}

fn fault(name: &str, data: &[u8]) -> Option<(String, &'static str)> {
    let get = |kind: u16| attributes(data, 0).into_iter().find(|(k, _)| *k == kind);
    let delete = "delete it, and load it again after the restore";
    match name {
        "connlimit" => Some((
            "the kernel does not tell which connections it has counted (ct count)".into(),
            delete,
        )),
        "hash" => {
            const SEED: u16 = 5;
            const TYPE: u16 = 7;
            const SYMMETRIC: u32 = 1;
            let symmetric = get(TYPE).is_some_and(|(_, v)| number(v) == SYMMETRIC);
            (!symmetric && get(SEED).is_none()).then(|| {
                (
                    "the kernel does not tell the seed that it has chosen (jhash)".into(),
                    "name a seed in the rule",
                )
            })
        }
        "socket" => {
            const KEY: u16 = 1;
            const CGROUP: u32 = 3;
            get(KEY).is_some_and(|(_, v)| number(v) == CGROUP).then(|| {
                (
                    "it names a control group by a number that another one has after the restore (socket cgroupv2)".into(),
                    delete,
                )
            })
        }
        "match" | "target" => {
            let extension = get(1).map(|(_, v)| text(v)).unwrap_or_default();
            let known = match name {
                "match" => xtables::MATCHES,
                _ => xtables::TARGETS,
            };
            let why = format!(
                "{name} {extension} of xtables has a state that the kernel does not tell, or is not known"
            );
            (!known.contains(&extension.as_str())).then_some((why, delete))
        }
        name if CARRIED.contains(&name) => None,
        name => Some((format!("the expression {name} is not known"), delete)),
    }
}

/// A message with the data of each of its expressions as `f` wants it, given its name and data.
pub(super) fn each(
    body: &[u8],
    (single, list): Places,
    f: &mut dyn FnMut(&str, Vec<u8>) -> Vec<u8>,
) -> Vec<u8> {
    let mut out = Vec::new();
    for (kind, value) in attributes(body, 0) {
        if single.contains(&kind) {
            let one = one(value, f);
            nest(&mut out, kind, |m| m.extend(one));
        } else if list.contains(&kind) {
            let all: Vec<Vec<u8>> = attributes(value, 0).iter().map(|(_, v)| one(v, f)).collect();
            nest(&mut out, kind, |m| {
                for one in all {
                    nest(m, LIST_ELEM, |m| m.extend(one));
                }
            });
        } else {
            put(&mut out, kind, value);
        }
    }
    out
}

fn one(expression: &[u8], f: &mut dyn FnMut(&str, Vec<u8>) -> Vec<u8>) -> Vec<u8> {
    let all = attributes(expression, 0);
    let get = |kind: u16| all.iter().find(|(k, _)| *k == kind).map(|(_, v)| *v);
    let name = get(NAME).map(text).unwrap_or_default();
    let inside: Places = match name.as_str() {
        "dynset" => (&[7], &[10]),
        "inner" => (&[5], &[]),
        _ => NOWHERE,
    };
    let data = get(DATA);
    let inner = each(data.unwrap_or_default(), inside, f);
    let new = f(&name, inner);
    let mut out = Vec::new();
    put(&mut out, NAME, get(NAME).unwrap_or_default());
    if data.is_some() {
        nest(&mut out, DATA, |m| m.extend(new));
    }
    out
}

/// As the kernel takes it: that a quota is used up follows from how much was consumed.
pub(super) fn quota(data: &[u8]) -> Vec<u8> {
    const FLAGS: u16 = 2;
    const DEPLETED: u32 = 2;
    let mut out = Vec::new();
    for (kind, value) in attributes(data, 0) {
        match kind {
            FLAGS => put(&mut out, kind, &(number(value) & !DEPLETED).to_be_bytes()),
            _ => put(&mut out, kind, value),
        }
    }
    out
}

/// As the kernel takes it: of an option that is written or taken out it tells more than it wants to hear.
pub(super) fn header(data: &[u8]) -> Vec<u8> {
    const TO_REGISTER: u16 = 1;
    const OFFSET: u16 = 3;
    const LENGTH: u16 = 4;
    const FLAGS: u16 = 5;
    const FROM_REGISTER: u16 = 7;
    let all = attributes(data, 0);
    let has = |kind: u16| all.iter().any(|(k, _)| *k == kind);
    let mut out = Vec::new();
    for (kind, value) in &all {
        let wanted = match *kind {
            FLAGS => has(TO_REGISTER) || number(value) != 0,
            OFFSET | LENGTH => has(TO_REGISTER) || has(FROM_REGISTER),
            _ => true,
        };
        if wanted {
            put(&mut out, *kind, value);
        }
    }
    out
}

/// As the kernel takes it: no timeout is none, and not one of 0.
pub(super) fn update(data: &[u8]) -> Vec<u8> {
    const TIMEOUT: u16 = 6;
    let mut out = Vec::new();
    for (kind, value) in attributes(data, 0) {
        if kind != TIMEOUT || value.iter().any(|b| *b != 0) {
            put(&mut out, kind, value);
        }
    }
    out
}

/// The data of a verdict to jump or go to a chain, with that chain named by what `to` gives for its name: an attribute.
pub(super) fn aim(data: &[u8], to: Aim<'_>) -> Vec<u8> {
    const IMMEDIATE_DATA: u16 = 2;
    const VERDICT: u16 = 2;
    const CHAIN: u16 = 2;
    let mut out = Vec::new();
    for (kind, value) in attributes(data, 0) {
        if kind != IMMEDIATE_DATA {
            put(&mut out, kind, value);
            continue;
        }
        nest(&mut out, kind, |m| {
            for (kind, value) in attributes(value, 0) {
                if kind != VERDICT {
                    put(m, kind, value);
                    continue;
                }
                nest(m, kind, |m| {
                    for (kind, value) in attributes(value, 0) {
                        match to(&text(value)).filter(|_| kind == CHAIN) {
                            Some((kind, value)) => put(m, kind, &value),
                            None => put(m, kind, value),
                        }
                    }
                });
            }
        });
    }
    out
}

/// The protocol that the extensions of xtables in a rule are told, and whether it is every other one (NFTA_RULE_COMPAT):
/// what the rule itself compares.
pub(super) fn compat(rule: &[u8]) -> Option<(u32, u32)> {
    const META_L4PROTO: u32 = 16;
    const NOT: u32 = 2;
    let (mut register, mut found, mut extensions) = (None, None, false);
    each(rule, RULE, &mut |name, data| {
        let get = |kind: u16| {
            let all = attributes(&data, 0);
            all.iter().find(|(k, _)| *k == kind).map(|(_, v)| v.to_vec())
        };
        let word = |kind: u16| get(kind).map(|v| number(&v));
        match name {
            // Key 2, register 1.
            "meta" if word(2) == Some(META_L4PROTO) => register = word(1),
            // Register 1, base 2, offset 3, length 4.
            "payload" if word(2) == Some(1) && matches!(word(3), Some(9 | 6)) && word(4) == Some(1) => {
                register = word(1)
            }
            // Register 1, operation 2, data 3.
            "cmp" if register.is_some() && word(1) == register && found.is_none() => {
                let data = get(3).unwrap_or_default();
                let value = attributes(&data, 0).first().and_then(|(_, v)| v.first().copied());
                let flags = if word(2) == Some(0) { 0 } else { NOT };
                found = value.map(|v| (u32::from(v), flags));
            }
            "match" | "target" => extensions = true,
            _ => {}
        }
        data
    });
    found.filter(|_| extensions)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An expression: its name, and its attributes.
    type One<'a> = (&'a str, &'a [(u16, &'a [u8])]);

    /// A rule of expressions.
    fn rule(all: &[One<'_>]) -> Vec<u8> {
        let mut out = Vec::new();
        nest(&mut out, super::super::RULE_EXPRESSIONS, |m| {
            for (name, data) in all {
                nest(m, LIST_ELEM, |m| {
                    put(m, NAME, &[name.as_bytes(), b"\0"].concat());
                    nest(m, DATA, |m| data.iter().for_each(|(k, v)| put(m, *k, v)));
                });
            }
        });
        out
    }

    #[test]
    fn what_the_kernel_hides_is_found() {
        assert_eq!(examine(&rule(&[("counter", &[])]), RULE), []);
        let found = |r: &[u8]| examine(r, RULE).into_iter().map(|f| f.why).collect::<Vec<_>>();
        assert!(found(&rule(&[("connlimit", &[])]))[0].contains("ct count"));
        assert!(found(&rule(&[("unheard_of", &[])]))[0].contains("not known"));
        assert!(found(&rule(&[("match", &[(1, b"recent\0")])]))[0].contains("recent"));
        assert!(found(&rule(&[("hash", &[])]))[0].contains("seed"));
        assert!(found(&rule(&[("hash", &[(5, &[0, 0, 0, 1])])])).is_empty());
        // Within another one.
        let inner = rule(&[("connlimit", &[])]);
        let (_, list) = attributes(&inner, 0)[0];
        let (_, limit) = attributes(list, 0)[0];
        assert!(found(&rule(&[("dynset", &[(7, limit)])]))[0].contains("ct count"));
    }

    #[test]
    fn the_protocol_of_a_rule_is_what_it_compares() {
        let mut six = Vec::new();
        put(&mut six, 1, &[6]);
        let l4: One<'_> = ("meta", &[(2, &[0, 0, 0, 16]), (1, &[0, 0, 0, 1])]);
        let is: &[(u16, &[u8])] = &[(1, &[0, 0, 0, 1]), (2, &[0, 0, 0, 0]), (3, &six)];
        let extension: One<'_> = ("match", &[(1, b"tcp\0")]);
        assert_eq!(compat(&rule(&[l4, ("cmp", is), extension])), Some((6, 0)));
        assert_eq!(compat(&rule(&[l4, ("cmp", is)])), None);
        assert_eq!(compat(&rule(&[extension])), None);
    }

    #[test]
    fn a_jump_is_aimed_anew() {
        let mut data = Vec::new();
        nest(&mut data, 2, |m| {
            nest(m, 2, |m| {
                put(m, 1, &[0xff; 4]);
                put(m, 2, b"__chain7\0");
            });
        });
        let aimed = aim(&data, &|name| (name == "__chain7").then(|| (3, vec![0, 0, 0, 1])));
        let (_, inner) = attributes(&aimed, 0)[0];
        let (_, verdict) = attributes(inner, 0)[0];
        assert_eq!(
            attributes(verdict, 0),
            [(1, &[0xff; 4][..]), (3, &[0, 0, 0, 1][..])]
        );
    }
}
