//! Tables of iptables, ip6tables and arptables in their old form: read and replaced by socket options.

use super::ns::{self, Step};
use super::{Sys, getsockopt, setsockopt, socket};
use crate::error::errno;
use nix::errno::Errno;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// One of the three, and how its structures are laid out (`linux/netfilter_*/*_tables.h`).
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// NFPROTO_*.
    pub number: u8,
    /// As its command is called.
    pub command: &'static str,
    /// The file in /proc/PID/net that names its tables.
    pub names: &'static str,
    domain: i32,
    level: i32,
    /// The option that tells of a table and replaces it; the next one gives its entries and sets counters.
    option: i32,
    hooks: usize,
    /// Offsets in an entry.
    target: usize,
    comefrom: usize,
    counters: usize,
    matches: usize,
}

pub const FAMILIES: [Family; 3] = [
    Family {
        number: 2,
        command: "iptables",
        names: "ip_tables_names",
        domain: libc::AF_INET,
        level: libc::SOL_IP,
        option: 64,
        hooks: 5,
        target: 88,
        comefrom: 92,
        counters: 96,
        matches: 112,
    },
    Family {
        number: 10,
        command: "ip6tables",
        names: "ip6_tables_names",
        domain: libc::AF_INET6,
        level: libc::SOL_IPV6,
        option: 64,
        hooks: 5,
        target: 140,
        comefrom: 144,
        counters: 152,
        matches: 168,
    },
    Family {
        number: 3,
        command: "arptables",
        names: "arp_tables_names",
        domain: libc::AF_INET,
        level: libc::SOL_IP,
        option: 96,
        hooks: 3,
        target: 164,
        comefrom: 168,
        counters: 176,
        matches: 192,
    },
];

/// What a table consists of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Which hooks it has, as bits; where the entries of each begin, and its policy.
    pub hooks: u32,
    pub entry: Vec<u32>,
    pub underflow: Vec<u32>,
    pub count: u32,
    /// With what they have counted.
    pub entries: Vec<u8>,
}

/// Packets and bytes.
const COUNTERS: usize = 16;
/// `char name[XT_TABLE_MAXNAMELEN]`.
const NAME: usize = 32;
/// What comes before the entries and before the counters, when these are told: a name, a number, and room.
const HEAD: usize = 40;

fn named(name: &str, size: usize) -> Vec<u8> {
    let mut out = vec![0; size.max(HEAD)];
    let name = name.as_bytes();
    let length = name.len().min(NAME - 1);
    out[..length].copy_from_slice(&name[..length]);
    out
}

fn word(bytes: &[u8], at: usize) -> Sys<u32> {
    let word = bytes
        .get(at..)
        .and_then(|b| b.first_chunk())
        .ok_or(Errno::EPROTO)?;
    Ok(u32::from_ne_bytes(*word))
}

fn half(bytes: &[u8], at: usize) -> Sys<usize> {
    let half = bytes
        .get(at..)
        .and_then(|b| b.first_chunk())
        .ok_or(Errno::EPROTO)?;
    Ok(usize::from(u16::from_ne_bytes(*half)))
}

impl Family {
    fn open(&self) -> Sys<OwnedFd> {
        socket(self.domain, libc::SOCK_RAW, libc::IPPROTO_RAW)
    }

    fn info(&self, fd: &OwnedFd, name: &str) -> Sys<Contents> {
        // struct ipt_getinfo: name, hooks, where they begin, policies, count and size.
        let mut info = named(name, NAME + 4 + 8 * self.hooks + 8);
        getsockopt(fd.as_fd(), self.level, self.option, &mut info)?;
        let words =
            |from: usize| -> Sys<Vec<u32>> { (0..self.hooks).map(|n| word(&info, from + 4 * n)).collect() };
        let end = NAME + 4 + 8 * self.hooks;
        Ok(Contents {
            hooks: word(&info, NAME)?,
            entry: words(NAME + 4)?,
            underflow: words(NAME + 4 + 4 * self.hooks)?,
            count: word(&info, end)?,
            entries: vec![0; word(&info, end + 4)? as usize],
        })
    }

    /// Reads a table of the namespace of the calling thread; makes it, empty, if it was not used yet.
    pub fn read(&self, name: &str) -> Sys<Contents> {
        let fd = self.open()?;
        const TIMES: usize = 100;
        for _ in 0..TIMES {
            let mut contents = self.info(&fd, name)?;
            let size = contents.entries.len();
            let mut all = named(name, HEAD + size);
            all[NAME..NAME + 4].copy_from_slice(&(size as u32).to_ne_bytes());
            match getsockopt(fd.as_fd(), self.level, self.option + 1, &mut all) {
                // It has been replaced between the two.
                Err(Errno::EAGAIN) => continue,
                done => done?,
            };
            contents.entries = all.split_off(HEAD);
            for at in self.places(&contents.entries)? {
                // Which hooks lead there: the kernel finds that out anew.
                contents.entries[at + self.comefrom..at + self.comefrom + 4].fill(0);
            }
            return Ok(contents);
        }
        Err(Errno::EAGAIN)
    }

    /// Where the entries begin.
    fn places(&self, entries: &[u8]) -> Sys<Vec<usize>> {
        let (mut at, mut out) = (0, Vec::new());
        while at < entries.len() {
            let length = half(entries, at + self.target + 2)?;
            if length < self.matches || at + length > entries.len() {
                return Err(Errno::EPROTO);
            }
            out.push(at);
            at += length;
        }
        Ok(out)
    }

    /// The extensions of each entry: the names of its matches, and that of its target (empty for a verdict or a jump).
    pub fn extensions(&self, contents: &Contents) -> Sys<Vec<(Vec<String>, String)>> {
        let entries = &contents.entries;
        let name = |at: usize| {
            // struct xt_entry_match: size, name, revision.
            let name = entries.get(at + 2..at + 31).ok_or(Errno::EPROTO)?;
            let name = name.split(|b| *b == 0).next().unwrap_or_default();
            Ok(String::from_utf8_lossy(name).into_owned())
        };
        let mut out = Vec::new();
        for at in self.places(entries)? {
            let target = at + half(entries, at + self.target)?;
            let (mut matches, mut next) = (Vec::new(), at + self.matches);
            while next < target {
                matches.push(name(next)?);
                next += half(entries, next)?.max(4);
            }
            out.push((matches, name(target)?));
        }
        Ok(out)
    }

    /// Replaces a table of the namespace of the calling thread.
    pub fn replace(&self, name: &str, new: &Contents) -> Sys<()> {
        let fd = self.open()?;
        let old = self.info(&fd, name)?;
        // The kernel hands out what the old entries have counted.
        let mut counted = vec![0u8; old.count as usize * COUNTERS];
        let mut replace = named(name, NAME);
        replace.truncate(NAME);
        for word in [new.hooks, new.count, new.entries.len() as u32] {
            replace.extend(word.to_ne_bytes());
        }
        if new.entry.len() != self.hooks || new.underflow.len() != self.hooks {
            return Err(Errno::EINVAL);
        }
        for word in new.entry.iter().chain(&new.underflow) {
            replace.extend(word.to_ne_bytes());
        }
        replace.extend(old.count.to_ne_bytes());
        replace.resize(replace.len().next_multiple_of(8), 0);
        replace.extend((counted.as_mut_ptr() as u64).to_ne_bytes());
        replace.extend(&new.entries);
        // The pointer in it is to memory that holds as many counters as it says, and lives through the call, in which
        // alone the kernel writes there.
        setsockopt(fd.as_fd(), self.level, self.option, &replace).or_else(|e| match e {
            Errno::EINVAL => self.by_the_owner(&fd, replace),
            e => Err(e),
        })?;
        drop(counted);
        let places = self.places(&new.entries)?;
        let mut counters = named(name, HEAD);
        counters[NAME..NAME + 4].copy_from_slice(&(places.len() as u32).to_ne_bytes());
        for at in places {
            counters.extend(&new.entries[at + self.counters..at + self.counters + COUNTERS]);
        }
        setsockopt(fd.as_fd(), self.level, self.option + 1, &counters)
    }
}

impl Family {
    /// The same by who lives in the user namespace that owns the network: what tells users apart is taken from nobody else.
    fn by_the_owner(&self, fd: &OwnedFd, replace: Vec<u8>) -> Sys<()> {
        let owner = ns::owner(ns::of_socket(fd.as_fd())?.as_fd())?;
        let own = std::fs::File::open("/proc/thread-self/ns/user").map_err(errno)?;
        if super::dev_ino(&owner)? == super::dev_ino(&own)? {
            return Err(Errno::EINVAL);
        }
        let steps = [
            Step::Enter(owner.as_raw_fd()),
            Step::Option(fd.as_raw_fd(), self.level, self.option, replace),
        ];
        ns::perform_steps(&steps).map_err(|(_, e)| e)
    }
}

/// Whether a table of ebtables has anything in it but chains that are there from the beginning and accept everything.
pub fn bridge_rules(name: &str) -> Sys<bool> {
    const OPTION: i32 = 128;
    /// struct ebt_replace, and struct ebt_entries, which is all that an empty chain consists of.
    const SIZE: usize = 120;
    const CHAIN: usize = 48;
    const POLICY: usize = 40;
    const ACCEPT: i32 = -1;
    let fd = socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_RAW)?;
    let mut table = named(name, SIZE);
    getsockopt(fd.as_fd(), libc::SOL_IP, OPTION, &mut table)?;
    let (hooks, count, size) = (word(&table, 32)?, word(&table, 36)?, word(&table, 40)? as usize);
    if count != 0 || size != hooks.count_ones() as usize * CHAIN {
        return Ok(true);
    }
    let mut entries = vec![0u8; size];
    table[96..100].fill(0);
    table[112..120].copy_from_slice(&(entries.as_mut_ptr() as u64).to_ne_bytes());
    // The pointer in it is to as many bytes as it says, which live through the call.
    getsockopt(fd.as_fd(), libc::SOL_IP, OPTION + 1, &mut table)?;
    let policies = entries.chunks(CHAIN).map(|c| word(c, POLICY));
    let policies = policies.collect::<Sys<Vec<u32>>>()?;
    Ok(policies.iter().any(|p| *p as i32 != ACCEPT))
}
