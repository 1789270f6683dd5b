//! Tables of iptables, ip6tables and arptables in their old form, which are no tables of nf_tables.

use crate::error::{Blocker, Error, Result};
use crate::kinds::pipe::Bytes;
use crate::sys::xtables::{Contents, FAMILIES, Family, bridge_rules};
use nix::Result as Sys;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};

/// A table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// NFPROTO_*.
    pub family: u8,
    pub name: String,
    pub hooks: u32,
    pub entry: Vec<u32>,
    pub underflow: Vec<u32>,
    pub count: u32,
    pub entries: Bytes,
}

/// Matches and targets whose data are all there is to know of them.
pub(super) const MATCHES: &[&str] = &[
    "addrtype",
    "ah",
    "comment",
    "connbytes",
    "connlabel",
    "connmark",
    "conntrack",
    "cpu",
    "dccp",
    "devgroup",
    "dscp",
    "dst",
    "ecn",
    "esp",
    "eui64",
    "frag",
    "hbh",
    "helper",
    "hl",
    "icmp",
    "icmp6",
    "ipcomp",
    "iprange",
    "ipv6header",
    "length",
    "limit",
    "mac",
    "mark",
    "mh",
    "multiport",
    "owner",
    "physdev",
    "pkttype",
    "policy",
    "realm",
    "rpfilter",
    "rt",
    "sctp",
    "socket",
    "state",
    "statistic",
    "string",
    "tcp",
    "tcpmss",
    "time",
    "tos",
    "ttl",
    "u32",
    "udp",
    "udplite",
];
pub(super) const TARGETS: &[&str] = &[
    "",
    "AUDIT",
    "CHECKSUM",
    "CLASSIFY",
    "CONNMARK",
    "CONNSECMARK",
    "CT",
    "DNAT",
    "DNPT",
    "DSCP",
    "ECN",
    "ERROR",
    "HL",
    "HMARK",
    "LOG",
    "MARK",
    "MASQUERADE",
    "NETMAP",
    "NFLOG",
    "NFQUEUE",
    "NOTRACK",
    "REDIRECT",
    "REJECT",
    "SECMARK",
    "SNAT",
    "SNPT",
    "SYNPROXY",
    "TCPMSS",
    "TCPOPTSTRIP",
    "TOS",
    "TPROXY",
    "TRACE",
    "TTL",
    "mangle",
];

const REMEDY: &str = "delete it, and load it again after the restore";

impl Table {
    fn family(&self) -> Option<&'static Family> {
        FAMILIES.iter().find(|f| f.number == self.family)
    }

    fn label(&self) -> String {
        let command = self.family().map_or("xtables", |f| f.command);
        format!("{command} table {}", self.name)
    }

    fn contents(&self) -> Contents {
        Contents {
            hooks: self.hooks,
            entry: self.entry.clone(),
            underflow: self.underflow.clone(),
            count: self.count,
            entries: self.entries.0.clone(),
        }
    }

    fn read(family: &Family, name: &str) -> Sys<Table> {
        let contents = family.read(name)?;
        Ok(Table {
            family: family.number,
            name: name.to_owned(),
            hooks: contents.hooks,
            entry: contents.entry,
            underflow: contents.underflow,
            count: contents.count,
            entries: Bytes(contents.entries),
        })
    }

    fn make(&self) -> Sys<()> {
        self.family()
            .ok_or(Errno::EPROTO)?
            .replace(&self.name, &self.contents())
    }
}

/// Reads all tables of the namespace of the calling thread; what cannot be carried is added to `out`.
pub(super) fn read(label: &str, out: &mut Vec<Blocker>) -> Sys<Vec<Table>> {
    let mut tables = Vec::new();
    for family in &FAMILIES {
        let path = format!("/proc/thread-self/net/{}", family.names);
        // A kernel without them has no such file.
        let names = std::fs::read_to_string(path).unwrap_or_default();
        // The youngest comes first.
        for name in names.lines().rev() {
            let table = Table::read(family, name)?;
            for (matches, target) in family.extensions(&table.contents())? {
                let matches = matches.iter().filter(|m| !MATCHES.contains(&m.as_str()));
                let target = (!TARGETS.contains(&target.as_str())).then_some(&target);
                for extension in matches.chain(target) {
                    let why = format!(
                        "a rule uses {extension}, which has a state that the kernel does not tell, or is not known"
                    );
                    let blocker = Blocker::at(table.label(), label).why(why).remedy(REMEDY);
                    if !out.contains(&blocker) {
                        out.push(blocker);
                    }
                }
            }
            tables.push(table);
        }
    }
    Ok(tables)
}

/// Adds tables of ebtables in their old form in which there is something; there are none without a bridge.
pub(super) fn bridges(label: &str, out: &mut Vec<Blocker>) {
    for name in ["filter", "nat", "broute"] {
        if present(&format!("ebtable_{name}")) && bridge_rules(name) == Ok(true) {
            out.push(
                Blocker::at(format!("ebtables table {name}"), label)
                    .why("its rules are not carried")
                    .remedy(format!(
                        "flush it (ebtables-legacy -t {name} --init-table), or use ebtables-nft"
                    )),
            );
        }
    }
}

/// Whether a part of the kernel is there: asking something of it would load it.
fn present(module: &str) -> bool {
    let Ok(loaded) = std::fs::read_to_string("/proc/modules") else {
        return true;
    };
    let release = nix::sys::utsname::uname().map(|n| n.release().to_string_lossy().into_owned());
    let list = format!("/lib/modules/{}/modules.builtin", release.unwrap_or_default());
    let within = std::fs::read_to_string(list).unwrap_or_default();
    loaded.lines().any(|l| l.split(' ').next() == Some(module))
        || within.lines().any(|l| l.ends_with(&format!("/{module}.ko")))
}

/// Gives the namespace of the calling thread these tables.
pub(super) fn restore(tables: &[Table]) -> Result<()> {
    for table in tables {
        table
            .make()
            .map_err(|errno| Error::kernel("setsockopt(IPT_SO_SET_REPLACE)", table.label(), errno))?;
    }
    Ok(())
}

/// What of these tables does not come back in the namespace of the calling thread, in which there are none.
pub(super) fn trial(tables: &[Table], label: &str) -> Vec<Blocker> {
    let mut out = Vec::new();
    for table in tables {
        let again = table
            .make()
            .and_then(|()| Table::read(table.family().ok_or(Errno::EPROTO)?, &table.name));
        let why = match again {
            Ok(again) if again == *table => continue,
            Ok(_) => "made anew by this kernel it is not the same".to_owned(),
            Err(e) => format!("this kernel does not take it back: {}", e.desc()),
        };
        out.push(Blocker::at(table.label(), label).why(why).remedy(REMEDY));
    }
    out
}
