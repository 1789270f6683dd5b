//! Queueing disciplines that were given to devices: those without classes and filters, which are tried out in advance.

use super::{Link, text, word};
use crate::error::Blocker;
use crate::kinds::pipe::Bytes;
use crate::sys::rtnl::{CREATE, Netlink, attributes, put};
use nix::Result as Sys;
use serde::{Deserialize, Serialize};

const NEWQDISC: u16 = 36;
const DELQDISC: u16 = 37;
const GETQDISC: u16 = 38;
const GETTCLASS: u16 = 42;
const GETTFILTER: u16 = 46;
const REPLACE: u16 = 0x100;

/// struct tcmsg: where the device, the handle, the parent and what else there is lie in it.
const HEAD: usize = 20;
const INDEX: usize = 4;
const HANDLE: usize = 8;
const PARENT: usize = 12;
const INFO: usize = 16;

const ROOT: u32 = u32::MAX;
const INGRESS: u32 = 0xffff_fff1;

// TCA_*
const KIND: u16 = 1;
const OPTIONS: u16 = 2;
const STAB: u16 = 8;
const INGRESS_BLOCK: u16 = 13;
const EGRESS_BLOCK: u16 = 14;

fn at(message: &[u8], place: usize) -> u32 {
    message.get(place..).map_or(0, word)
}

fn kind(message: &[u8]) -> String {
    let all = attributes(message, HEAD);
    all.into_iter()
        .find(|(k, _)| *k == KIND)
        .map_or_else(String::new, |(_, v)| text(v))
}

/// A question about a device.
fn about(index: i32, parent: u32) -> Vec<u8> {
    let mut out = vec![0; HEAD];
    out[INDEX..INDEX + 4].copy_from_slice(&index.to_ne_bytes());
    out[PARENT..PARENT + 4].copy_from_slice(&parent.to_ne_bytes());
    out
}

/// One that was given to a device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Discipline {
    /// As the kernel tells of it, less what it counts.
    pub message: Bytes,
    /// How many classes are seen below it; one that takes none may show one of its own.
    pub classes: u32,
}

/// Those that the kernel has not chosen itself: others have no handle.
fn given(netlink: &mut Netlink) -> Sys<Vec<Discipline>> {
    let mut out = Vec::new();
    for message in netlink.dump(GETQDISC, &[0; HEAD])? {
        if at(&message, HANDLE) == 0 || message.len() < HEAD {
            continue;
        }
        let mut kept = message[..HEAD].to_vec();
        kept[INFO..].fill(0);
        let is_htb = kind(&message) == "htb";
        for (kind, value) in attributes(&message, HEAD) {
            if kind == OPTIONS && is_htb {
                put(&mut kept, kind, &as_htb_wants(value));
            } else if [KIND, OPTIONS, STAB, INGRESS_BLOCK, EGRESS_BLOCK].contains(&kind) {
                put(&mut kept, kind, value);
            }
        }
        let index = at(&message, INDEX) as i32;
        let classes = match at(&message, PARENT) {
            ROOT => netlink.dump(GETTCLASS, &about(index, 0))?.len() as u32,
            _ => 0,
        };
        out.push(Discipline {
            message: Bytes(kept),
            classes,
        });
    }
    Ok(out)
}

/// What htb tells of itself, as it wants to be told: it gives its whole version, and takes the first half alone; and how many
/// packets passed it by is counted.
fn as_htb_wants(options: &[u8]) -> Vec<u8> {
    // TCA_HTB_INIT: struct tc_htb_glob, of five words.
    const INIT: u16 = 2;
    const PASSED: std::ops::Range<usize> = 16..20;
    let mut out = Vec::new();
    for (kind, value) in attributes(options, 0) {
        let mut value = value.to_vec();
        if kind == INIT && value.len() >= PASSED.end {
            let version = word(&value) >> 16;
            value[..4].copy_from_slice(&version.to_ne_bytes());
            value[PASSED].fill(0);
        }
        put(&mut out, kind, &value);
    }
    out
}

fn place(message: &[u8], links: &[Link]) -> String {
    let index = at(message, INDEX) as i32;
    let name = links.iter().find(|l| l.index == index).map_or("", |l| &l.name);
    format!("network device {name}, queueing discipline {}", kind(message))
}

const REMEDY: &str = "delete it (tc qdisc del)";

/// Reads those of the namespace of the calling thread; what cannot be carried is added to `out`.
pub(super) fn read(
    netlink: &mut Netlink,
    links: &[Link],
    label: &str,
    out: &mut Vec<Blocker>,
) -> Sys<Vec<Discipline>> {
    let all = given(netlink)?;
    judge(netlink, &all, links, label, out)?;
    Ok(all)
}

/// The same of these devices alone.
pub(super) fn read_of(
    netlink: &mut Netlink,
    links: &[Link],
    label: &str,
    out: &mut Vec<Blocker>,
) -> Sys<Vec<Discipline>> {
    let mut all = given(netlink)?;
    all.retain(|one| links.iter().any(|l| l.index == at(&one.message.0, INDEX) as i32));
    judge(netlink, &all, links, label, out)?;
    Ok(all)
}

/// Adds what cannot be carried.
fn judge(
    netlink: &mut Netlink,
    all: &[Discipline],
    links: &[Link],
    label: &str,
    out: &mut Vec<Blocker>,
) -> Sys<()> {
    for one in all {
        let message = &one.message.0;
        let blocker = |why: &str| Blocker::at(place(message, links), label).why(why).remedy(REMEDY);
        let (index, parent) = (at(message, INDEX) as i32, at(message, PARENT));
        if parent != ROOT && parent != INGRESS {
            out.push(blocker("it lies below another one, which is not carried"));
            continue;
        }
        let blocks = [INGRESS_BLOCK, EGRESS_BLOCK];
        if attributes(message, HEAD).iter().any(|(k, _)| blocks.contains(k)) {
            out.push(blocker(
                "it shares its filters with others (block), which is not carried",
            ));
        }
        let parents: &[u32] = match parent {
            ROOT => &[0],
            // Of ingress, and of both sides of clsact.
            _ => &[0xffff_0000, 0xffff_fff2, 0xffff_fff3],
        };
        for parent in parents {
            // One that cannot have filters has none.
            let filters = netlink.dump(GETTFILTER, &about(index, *parent));
            if filters.is_ok_and(|f| !f.is_empty()) {
                out.push(blocker("it has filters, which are not carried"));
                break;
            }
        }
    }
    Ok(())
}

/// Gives them to the devices of the namespace of the calling thread.
pub(super) fn restore(netlink: &mut Netlink, all: &[Discipline]) -> Sys<()> {
    all.iter()
        .try_for_each(|one| netlink.request(NEWQDISC, CREATE | REPLACE, &one.message.0))
}

/// What of them does not come back in the namespace of the calling thread, in which there is nothing.
pub(super) fn trial(all: &[Discipline], links: &[Link], label: &str) -> Vec<Blocker> {
    /// The device that every namespace has.
    const LOOPBACK: i32 = 1;
    let mut out = Vec::new();
    for one in all {
        let mut own = one.clone();
        own.message.0[INDEX..INDEX + 4].copy_from_slice(&LOOPBACK.to_ne_bytes());
        let why = match Netlink::route().and_then(|mut netlink| again(&mut netlink, &own)) {
            Ok(again) if again == [own.clone()] => continue,
            Ok(again) if again.iter().any(|a| a.message == own.message) => {
                "it has classes, which are not carried".to_owned()
            }
            Ok(_) => "made anew by this kernel it is not the same".to_owned(),
            Err(e) => format!("this kernel does not take it back: {}", e.desc()),
        };
        out.push(
            Blocker::at(place(&one.message.0, links), label)
                .why(why)
                .remedy(REMEDY),
        );
    }
    out
}

/// What one looks like when it is made anew.
fn again(netlink: &mut Netlink, one: &Discipline) -> Sys<Vec<Discipline>> {
    restore(netlink, std::slice::from_ref(one))?;
    let found = given(netlink)?;
    netlink.request(DELQDISC, 0, &one.message.0)?;
    Ok(found)
}
