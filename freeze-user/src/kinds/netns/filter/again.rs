//! A table made again, everything in it under its old number.
//!
//! ```text
//!   numbers told   1 chain   2 set   4 rule   7 rule
//!   made           1 chain   2 set   3 ·   4 rule   5 ·   6 ·   7 rule        · made and thrown away
//! ```
//!
//! Whatever names something else was made after it, and so has the higher number: the order of numbers is one in which
//! all can be made. Elements, which have no numbers, may name what is younger than their set; they come last, but for
//! sets that take none once a rule uses them.

use super::expression::{self, aim, compat, each, header, quota, update};
use super::*;
use crate::sys::rtnl::{APPEND, Message};
use std::collections::BTreeMap;

const NEW_TABLE: u16 = 0;
const NEW_CHAIN: u16 = 3;
const DELETE_CHAIN: u16 = 5;
const NEW_RULE: u16 = 6;
const NEW_SET: u16 = 9;
const NEW_ELEMENTS: u16 = 12;
const NEW_OBJECT: u16 = 18;
const NEW_FLOWTABLE: u16 = 22;

/// A chain without a name, which belongs to the rule that jumps to it.
const BINDING: u32 = 4;
const CHAIN_ID: u16 = 11;
const RULE_COMPAT: u16 = 5;
const RULE_POSITION: u16 = 6;
const RULE_CHAIN_ID: u16 = 11;
const SET_ID: u16 = 10;
const ANONYMOUS: u32 = 1;
const CONSTANT: u32 = 2;
const INTERVAL: u32 = 4;
const CONCATENATED: u32 = 0x80;

/// How many numbers may be missing: each costs a rule that is thrown away.
const MISSING: u64 = 1 << 17;

enum Part<'a> {
    Chain(&'a Item),
    Set(usize, &'a Set),
    Object(&'a Item),
    Flowtable(&'a Item),
    Rule(&'a Item),
}

fn parts(table: &Table) -> Vec<(u64, Part<'_>)> {
    let mut out: Vec<(u64, Part<'_>)> = Vec::new();
    out.extend(table.chains.iter().map(|c| (c.handle, Part::Chain(c))));
    let sets = table.sets.iter().enumerate();
    out.extend(sets.map(|(n, s)| (s.about.handle, Part::Set(n, s))));
    out.extend(table.objects.iter().map(|o| (o.handle, Part::Object(o))));
    out.extend(table.flowtables.iter().map(|f| (f.handle, Part::Flowtable(f))));
    out.extend(table.rules.iter().map(|r| (r.handle, Part::Rule(r))));
    out.sort_by_key(|(handle, _)| *handle);
    out
}

/// What of the numbers in a table makes it too much work, or what that is not so in its kernel.
pub(super) fn burden(table: &Table) -> Option<(String, String)> {
    let parts = parts(table);
    let missing = parts.last().map_or(0, |(last, _)| last - parts.len() as u64);
    (missing > MISSING).then(|| {
        (
            format!("so much in it was deleted ({missing} numbers) that what is left cannot be given its numbers again"),
            "load it anew (nft list ruleset > file; nft -f file), which counts from 1".to_owned(),
        )
    })
}

/// The messages that make a table, and what each is.
pub(super) fn messages(table: &Table) -> (Vec<String>, Vec<Message>) {
    let mut work = Work::new(table);
    let name = table.about.body.0.clone();
    work.say("the table itself".into(), NEW_TABLE, CREATE | EXCL, name);
    let mut next = 1;
    for (handle, part) in parts(table) {
        work.skip(handle.saturating_sub(next));
        next = handle + 1;
        match part {
            Part::Chain(chain) => work.chain(chain),
            Part::Set(n, set) => work.set(n, set),
            Part::Object(object) => {
                const TYPE: u16 = 3;
                const DATA: u16 = 4;
                const QUOTA: u32 = 2;
                let mut body = Vec::new();
                for (kind, value) in attributes(&object.body.0, 0) {
                    match kind == DATA && object.number(TYPE) == QUOTA {
                        true => put(&mut body, kind, &quota(value)),
                        false => put(&mut body, kind, value),
                    }
                }
                let what = format!("object {}", object.name(OBJECT_NAME));
                work.say(what, NEW_OBJECT, CREATE | EXCL, body);
            }
            Part::Flowtable(flowtable) => {
                let what = format!("flowtable {}", flowtable.name(FLOWTABLE_NAME));
                work.say(what, NEW_FLOWTABLE, CREATE | EXCL, flowtable.body.0.clone());
            }
            Part::Rule(rule) => work.rule(rule),
        }
    }
    for set in &table.sets {
        if !works_at_once(set) {
            work.elements(set);
        }
    }
    // Those that no rule came after.
    work.pending_elements();
    (work.names, work.messages)
}

/// Whether a set takes no more elements once a rule uses it.
fn works_at_once(set: &Set) -> bool {
    set.about.number(SET_FLAGS) & (ANONYMOUS | CONSTANT) != 0
}

struct Work<'a> {
    table: &'a Table,
    /// Numbers for the chains without a name.
    nameless: BTreeMap<String, u32>,
    /// Handles of the rules that are there, by chain and place in it.
    made: BTreeMap<String, BTreeMap<usize, u64>>,
    places: BTreeMap<u64, usize>,
    pending: Vec<&'a Set>,
    names: Vec<String>,
    messages: Vec<Message>,
    thrown: usize,
}

impl<'a> Work<'a> {
    fn new(table: &'a Table) -> Work<'a> {
        let nameless = table
            .chains
            .iter()
            .filter(|c| c.number(CHAIN_FLAGS) & BINDING != 0);
        let nameless = nameless
            .zip(1..)
            .map(|(c, id)| (c.name(CHAIN_NAME), id))
            .collect();
        let places = table.rules.iter().enumerate().map(|(n, r)| (r.handle, n));
        Work {
            table,
            nameless,
            made: BTreeMap::new(),
            places: places.collect(),
            pending: Vec::new(),
            names: Vec::new(),
            messages: Vec::new(),
            thrown: 0,
        }
    }

    fn say(&mut self, what: String, kind: u16, flags: u16, attributes: Vec<u8>) {
        let mut body = vec![self.table.family, 0, 0, 0];
        body.extend(attributes);
        self.names.push(what);
        self.messages.push(Message { kind, flags, body });
    }

    /// Uses up numbers.
    fn skip(&mut self, count: u64) {
        if count == 0 {
            return;
        }
        self.thrown += 1;
        let name = format!("freeze-thrown-away-{}\0", self.thrown);
        let of_table = |chain: u16| {
            let mut body = Vec::new();
            put(&mut body, TABLE, self.table.about.get(TABLE));
            put(&mut body, chain, name.as_bytes());
            body
        };
        let (chain, rule) = (of_table(CHAIN_NAME), of_table(RULE_CHAIN));
        let what = || "a number that is not used".to_owned();
        self.say(what(), NEW_CHAIN, CREATE | EXCL, chain.clone());
        for _ in 1..count {
            self.say(what(), NEW_RULE, CREATE | APPEND, rule.clone());
        }
        self.say(what(), DELETE_CHAIN, 0, chain);
    }

    fn chain(&mut self, chain: &Item) {
        let name = chain.name(CHAIN_NAME);
        let id = self.nameless.get(&name).copied();
        let mut body = Vec::new();
        for (kind, value) in attributes(&chain.body.0, 0) {
            // One without a name is given one that no other has.
            if kind != CHAIN_NAME || id.is_none() {
                put(&mut body, kind, value);
            }
        }
        if let Some(id) = id {
            put(&mut body, CHAIN_ID, &id.to_be_bytes());
        }
        self.say(format!("chain {name}"), NEW_CHAIN, CREATE | EXCL, body);
    }

    fn set(&mut self, n: usize, set: &'a Set) {
        let mut body = set.about.body.0.clone();
        put(&mut body, SET_ID, &(n as u32 + 1).to_be_bytes());
        body = self.accepted(&body, expression::SET);
        self.say(format!("set {}", set.name()), NEW_SET, CREATE | EXCL, body);
        if works_at_once(set) {
            self.pending.push(set);
        }
    }

    fn pending_elements(&mut self) {
        for set in std::mem::take(&mut self.pending) {
            self.elements(set);
        }
    }

    fn elements(&mut self, set: &Set) {
        /// A message of this size has room for what is around them, too.
        const SIZE: usize = 1 << 14;
        const ELEMENTS: u16 = 3;
        const KEY: u16 = 1;
        const END: u32 = 1;
        let mut all = Vec::new();
        for element in &set.elements {
            let mut remaining = 1;
            for (kind, value) in attributes(&element.0, 0) {
                if kind == ELEMENT_EXPIRATION {
                    remaining = value.first_chunk().map_or(0, |b| u64::from_be_bytes(*b));
                }
            }
            // One whose time is up at this very moment is not there any more.
            if remaining > 0 {
                all.push(self.accepted(&element.0, expression::ELEMENT));
            }
        }
        if set.about.number(SET_FLAGS) & (INTERVAL | CONCATENATED) == INTERVAL {
            // In ascending order, and the end of an interval before the beginning of the next.
            all.sort_by_cached_key(|element| {
                let get = |kind: u16| {
                    let all = attributes(element, 0);
                    all.iter().find(|(k, _)| *k == kind).map(|(_, v)| v.to_vec())
                };
                let end = get(ELEMENT_FLAGS).is_some_and(|f| number(&f) & END != 0);
                (get(KEY), !end)
            });
        }
        let mut rest = all.as_slice();
        while !rest.is_empty() {
            let mut size = 0;
            let fits = rest.iter().take_while(|e| {
                size += e.len() + 4;
                size < SIZE
            });
            let count = fits.count().max(1);
            let (now, later) = rest.split_at(count);
            rest = later;
            let mut body = Vec::new();
            put(&mut body, TABLE, self.table.about.get(TABLE));
            put(&mut body, SET_NAME, set.about.get(SET_NAME));
            nest(&mut body, ELEMENTS, |m| {
                for element in now {
                    nest(m, LIST_ELEM, |m| m.extend(element));
                }
            });
            self.say(
                format!("elements of set {}", set.name()),
                NEW_ELEMENTS,
                CREATE,
                body,
            );
        }
    }

    fn rule(&mut self, rule: &Item) {
        self.pending_elements();
        let chain = rule.name(RULE_CHAIN);
        let mut body = Vec::new();
        for (kind, value) in attributes(&self.accepted(&rule.body.0, expression::RULE), 0) {
            match self.nameless.get(&chain).filter(|_| kind == RULE_CHAIN) {
                Some(id) => put(&mut body, RULE_CHAIN_ID, &id.to_be_bytes()),
                None => put(&mut body, kind, value),
            }
        }
        if let Some((protocol, flags)) = compat(&rule.body.0) {
            nest(&mut body, RULE_COMPAT, |m| {
                put(m, 1, &protocol.to_be_bytes());
                put(m, 2, &flags.to_be_bytes());
            });
        }
        let place = self.places.get(&rule.handle).copied().unwrap_or(0);
        let there = self.made.entry(chain.clone()).or_default();
        // After the nearest before it that is there already; without one, before all.
        let before = there.range(..place).next_back().map(|(_, handle)| *handle);
        there.insert(place, rule.handle);
        let mut flags = CREATE;
        if let Some(before) = before {
            put(&mut body, RULE_POSITION, &before.to_be_bytes());
            flags |= APPEND;
        }
        let what = format!("chain {chain}, rule {}", rule.handle);
        self.say(what, NEW_RULE, flags, body);
    }

    /// Expressions as the kernel takes them.
    fn accepted(&self, body: &[u8], places: expression::Places) -> Vec<u8> {
        const VERDICT_CHAIN_ID: u16 = 3;
        each(body, places, &mut |name, data| match name {
            "quota" => quota(&data),
            "exthdr" => header(&data),
            "dynset" => update(&data),
            "immediate" if !self.nameless.is_empty() => aim(&data, &|chain| {
                let id = self.nameless.get(chain)?;
                Some((VERDICT_CHAIN_ID, id.to_be_bytes().to_vec()))
            }),
            _ => data,
        })
    }
}

/// A table in a form in which it is the same as one made from it.
pub(super) fn comparable(table: &Table) -> Table {
    let mut out = table.clone();
    // The number of a table comes from a counter of its own.
    out.about.handle = 0;
    let work = Work::new(table);
    let named = |name: &str| {
        let id = work.nameless.get(name)?;
        Some((2, format!("chain {id}\0").into_bytes()))
    };
    for chain in &mut out.chains {
        if let Some((_, name)) = named(&chain.name(CHAIN_NAME)) {
            let mut body = Vec::new();
            for (kind, value) in attributes(&chain.body.0, 0) {
                put(&mut body, kind, if kind == CHAIN_NAME { &name } else { value });
            }
            chain.body.0 = body;
        }
    }
    for rule in &mut out.rules {
        let mut body = Vec::new();
        for (kind, value) in attributes(&rule.body.0, 0) {
            match named(&super::super::text(value)).filter(|_| kind == RULE_CHAIN) {
                Some((_, name)) => put(&mut body, kind, &name),
                None => put(&mut body, kind, value),
            }
        }
        rule.body.0 = each(&body, expression::RULE, &mut |name, data| match name {
            "quota" => quota(&data),
            "immediate" => aim(&data, &named),
            "last" => without_time(&data),
            _ => data,
        });
    }
    for set in &mut out.sets {
        let plain = |body: &[u8], places| {
            Bytes(each(body, places, &mut |name, data| match name {
                "quota" => quota(&data),
                "last" => without_time(&data),
                _ => data,
            }))
        };
        set.about.body = plain(&set.about.body.0, expression::SET);
        set.elements = set
            .elements
            .iter()
            .map(|e| plain(&e.0, expression::ELEMENT))
            .collect();
        set.elements.sort_by(|a, b| a.0.cmp(&b.0));
    }
    for object in &mut out.objects {
        const DATA: u16 = 4;
        const TYPE: u16 = 3;
        const QUOTA: u32 = 2;
        if object.number(TYPE) == QUOTA {
            let mut body = Vec::new();
            for (kind, value) in attributes(&object.body.0, 0) {
                match kind {
                    DATA => put(&mut body, kind, &quota(value)),
                    _ => put(&mut body, kind, value),
                }
            }
            object.body.0 = body;
        }
    }
    out.chains.sort_by_key(|c| c.handle);
    out.objects.sort_by_key(|o| o.handle);
    out.flowtables.sort_by_key(|f| f.handle);
    out.sets.sort_by_key(|s| s.about.handle);
    out
}

/// The expression `last` without how long ago it was.
fn without_time(data: &[u8]) -> Vec<u8> {
    const MSECS: u16 = 2;
    let mut out = Vec::new();
    for (kind, value) in attributes(data, 0).into_iter().filter(|(k, _)| *k != MSECS) {
        put(&mut out, kind, value);
    }
    out
}
