//! Namespaces: which ones a set lives in beside freeze's own, what they hold, and how processes come back into them.
//!
//! ```text
//!   made before the nest, by children of freeze that only do that     user mnt net ipc uts cgroup time
//!   made with the process that is its init (CLONE_NEWPID)             pid
//!   entered right after the fork, by tape (setns)                     all others but user
//!   entered when the descriptors are in place, before threads         user, with the ids it has there
//! ```

pub(in crate::kinds) mod autofs;
mod binfmt;
pub mod clocks;
mod contents;
pub mod devpts;
mod disk;
mod ipc;
mod kept;
mod limits;
mod mounts;
mod moves;
mod options;
mod propagation;
mod removed;

use super::cgroup::{self, Place};
use super::credentials::set_ids;
use super::mqueue::Record as Queue;
use super::{ProcessKind, Source, Stage, netns, put};
use crate::error::{Blocker, Context, Error, Result};
use crate::ids::Pid;
use crate::nest::family::Family;
use crate::nest::space::{Kind, Spaces};
use crate::nest::{Nest, Options};
use crate::observe::foreign::socket_network;
use crate::observe::tree::Tree;
use crate::observe::view::{FdView, ProcessView, View, command_of};
use crate::store::Draft;
use crate::sys::ns::{self, Maker, Step};
pub use kept::{Bound, Outsider};
use kept::{bound, is_kept, living, outsiders};
pub(super) use kept::{ends_with, keepers, still_kept, visible};
use mounts::Mount;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

#[derive(Debug)]
pub struct Namespaces;

/// What of a process's namespaces is not kinship (see [`crate::nest::family::Family::spaces`]).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub user: u32,
    /// Its ids and groups as freeze's user namespace has them: it takes them on before it enters its own.
    pub uid: [u32; 4],
    pub gid: [u32; 4],
    pub groups: Vec<u32>,
    /// The pid namespace its children are born into, if it is not its own.
    pub pid_for_children: Option<u32>,
    /// Whether its next child is to be the init of a new one.
    pub fresh_for_children: bool,
}

/// The tag of the records of namespaces, each once.
pub const TAG: &str = "namespace";
pub const VERSION: u16 = 1;

/// One namespace other than freeze's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespace {
    pub kind: Kind,
    pub number: u32,
    /// The user namespace that owns it; of a user namespace its parent.
    pub owner: u32,
    pub what: What,
    /// Processes outside the checkpoint that were in it: while one of them lives the namespace does, and is joined.
    pub outside: Vec<Outsider>,
    /// Where freeze's own tree has it mounted (`ip netns add`): while that is there, it is joined.
    #[serde(default)]
    pub bound: Option<Bound>,
    /// Of a cgroup namespace, its root in each hierarchy.
    #[serde(default)]
    pub roots: Vec<Place>,
    /// Of a user or pid namespace, files under /proc/sys and what is in them.
    #[serde(default)]
    pub limits: Vec<(String, String)>,
}

/// What a namespace holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum What {
    User {
        /// First id inside, first id in freeze's user namespace, how many.
        uids: Vec<[u32; 3]>,
        gids: Vec<[u32; 3]>,
        deny_setgroups: bool,
        /// The uid it was made by, as freeze sees it.
        maker: u32,
    },
    Pid,
    Mount(Vec<Mount>),
    /// As it is when it is fresh.
    Net,
    Network(Box<netns::Record>),
    Ipc {
        /// Files under /proc/sys and what is in them.
        settings: Vec<(String, String)>,
        /// Message queues that nobody has open.
        #[serde(default)]
        queues: Vec<Queue>,
    },
    Uts {
        hostname: String,
        domainname: String,
    },
    Cgroup,
    Time {
        /// Lines of timens_offsets: clock, seconds, nanoseconds.
        offsets: Vec<(String, i64, i64)>,
    },
}

impl ProcessKind for Namespaces {
    const TAG: &'static str = "namespaces";
    const VERSION: u16 = 1;
    const ABOUT: &'static str = "pid, mount, network, IPC, UTS, user, cgroup and time namespaces of its own, nested ones too, with \
        their mounts (stacked ones, parts of file systems in memory, on block and loop devices, mounted namespaces, autofs with its daemon, what is registered with binfmt_misc, and who spreads to whom), host name, id maps, offsets and settings; network devices (veth within the checkpoint, or with the outer end in freeze's own network namespace, which gets its name, addresses, \
        routes and bridge again; bridge, vlan, macvlan, macvtap, ipvlan, tun, dummy, ifb), \
        addresses, routes, rules, neighbours; packet filters with what they have counted: tables of nf_tables, everything in them under its \
        number, and of iptables, ip6tables and arptables (xtables), tried out in advance, refused where the kernel does not tell all of it \
        (ct count, jhash without a seed, socket cgroupv2, tables of a socket, ebtables-legacy, matches like recent); connections \
        they keep track of or expect, with translations, state, timeout, mark, labels, zone and helper; queueing disciplines \
        without classes and filters, which are refused, as are IPsec, nexthop objects, ipset, VLANs and fixed addresses of bridges, multicast routing; one whose other members are not part of the checkpoint is joined while one of them lives, \
        a network or UTS namespace also while freeze's own tree has it mounted (ip netns)";
    // Before threads, which cannot enter a user namespace, and after everything that needs the rights of freeze.
    const STAGE: Stage = Stage::Threads;
    type Record = Record;

    fn verdict(p: &ProcessView, view: &View, out: &mut Vec<Blocker>) {
        if p.stat.is_zombie() || view.foreign.is_empty() {
            return;
        }
        let elsewhere = view.namespace(p, "pid") != view.namespace(p, "pid_for_children")
            || !p.namespaces.contains_key("pid_for_children");
        if elsewhere && p.threads.len() > 1 {
            out.push(
                p.blocker("pid_for_children", "a pid namespace for its children only")
                    .why("the program has threads, which cannot be made once children are born elsewhere")
                    .remedy("checkpoint it before it unshares, or its children alone"),
            );
        }
        if let Some(inode) = p.namespaces.get("pid_for_children").filter(|_| elsewhere)
            && !view.each().any(|q| q.namespaces.get("pid") == Some(inode))
            && !is_kept(Kind::Pid, *inode, view)
        {
            out.push(
                p.blocker("pid_for_children", format!("pid:[{inode}]"))
                    .why("its children were to be born in a pid namespace whose first process has ended, and none can be any more")
                    .remedy("let it go back to its own (setns)"),
            );
        }
        let net = view.namespace(p, "net");
        let first = view.each().find(|q| view.namespace(q, "net") == net);
        if net != 0 && first.is_some_and(|q| q.pid == p.pid) {
            network_verdict(p, view, out);
        }
        let ipc = view.namespace(p, "ipc");
        let first = view.each().find(|q| view.namespace(q, "ipc") == ipc);
        if ipc != 0 && first.is_some_and(|q| q.pid == p.pid) {
            ipc::verdict(p, view, out);
        }
        // Once for each tree, by the first process in it.
        let tree = view.namespace(p, "mnt");
        let first = view.each().find(|q| view.namespace(q, "mnt") == tree);
        if tree != 0 && first.is_some_and(|q| q.pid == p.pid) {
            mounts::verdict(p, view, out);
        }
    }

    fn collect(from: &mut Source<'_>) -> Result<Record> {
        let p = &from.process.view;
        let other = |name: &str, own: &str| {
            let number = from.view.namespace(p, name);
            (number != from.view.namespace(p, own)).then_some(number)
        };
        Ok(Record {
            user: from.view.namespace(p, "user"),
            uid: p.status.uid,
            gid: p.status.gid,
            groups: p.status.groups.clone(),
            pid_for_children: other("pid_for_children", "pid")
                .filter(|_| p.namespaces.contains_key("pid_for_children")),
            fresh_for_children: !p.namespaces.contains_key("pid_for_children"),
        })
    }

    fn precheck(_: &Record, _: Pid, _: &Options, _: &mut Vec<Blocker>) {}

    fn restore(record: &Record, pid: Pid, nest: &mut Nest) -> Result<()> {
        if let Some(number) = record.pid_for_children
            && nest.spaces.has(Kind::Pid, number)
        {
            nest.enter(pid, &[(Kind::Pid, number)])?;
        }
        if record.fresh_for_children {
            let flag = Kind::Pid.flag() as u64;
            nest.process(pid)?.call("unshare", libc::SYS_unshare, &[flag])?;
        }
        if record.user == 0 {
            return Ok(());
        }
        let fd = nest.spaces.descriptor(Kind::User, record.user)?;
        let at = nest.hand_over(pid, &[fd])?[0];
        nest.process(pid)?.tape(|t| {
            const NO_SETUID_FIXUP: u64 = 1 << 2;
            let bits = libc::PR_SET_SECUREBITS as u64;
            t.call(
                "prctl(PR_SET_SECUREBITS)",
                libc::SYS_prctl,
                &[bits, NO_SETUID_FIXUP],
            );
            let groups: Vec<u8> = record.groups.iter().flat_map(|g| g.to_ne_bytes()).collect();
            let list = t.bytes(&groups);
            t.call(
                "setgroups",
                libc::SYS_setgroups,
                &[record.groups.len() as u64, list],
            );
            set_ids(t, record.uid, record.gid);
            t.call("setns", libc::SYS_setns, &[at, Kind::User.flag() as u64]);
            t.call("close", libc::SYS_close, &[at]);
        })?;
        nest.entered(pid, Kind::User, record.user);
        Ok(())
    }
}

/// Records all namespaces of the set that are not freeze's.
pub fn collect(view: &View, shared: &mut super::Shared, draft: &mut Draft) -> Result<()> {
    for kind in Kind::ALL {
        let mut all: Vec<(u64, u32)> = view
            .foreign
            .iter()
            .filter(|((k, _), _)| k == kind.name())
            .map(|((_, inode), number)| (*inode, *number))
            .collect();
        all.sort_by_key(|(_, number)| *number);
        for (inode, number) in all {
            let Some(Found { pid, fd, inside }) = open(view, kind, inode)? else {
                continue;
            };
            // What a namespace that nobody lives in holds is shown to those who go there.
            let visitor = match (inside, kind) {
                (false, Kind::User | Kind::Time) => Some(
                    Maker::new(&[Step::Enter(fd.as_raw_fd())])
                        .map_err(|(_, e)| e)
                        .on("setns", || format!("{} namespace held by {pid}", kind.name()))?,
                ),
                _ => None,
            };
            let pid = visitor.as_ref().map_or(pid, Maker::pid);
            let name = || format!("{} namespace of {pid}", kind.name());
            let owner = match kind {
                Kind::User => ns::parent(fd.as_fd()),
                _ => ns::owner(fd.as_fd()),
            };
            let owner = owner
                .and_then(|fd| Ok(nix::sys::stat::fstat(fd)?.st_ino))
                .map_or(0, |inode| {
                    view.foreign
                        .get(&("user".to_owned(), inode))
                        .copied()
                        .unwrap_or(0)
                });
            let what = what(kind, number, pid, &fd, view, shared, draft).map_err(|e| match e {
                Error::Kernel { call, errno, .. } => Error::kernel(call, name(), errno),
                e => e,
            })?;
            let namespace = Namespace {
                kind,
                number,
                owner,
                what,
                outside: outsiders(view, kind, inode),
                bound: bound(kind, inode),
                limits: limits::collect(kind, fd.as_fd())?,
                roots: match kind {
                    Kind::Cgroup if inside => cgroup::roots(pid, fd.as_fd())?,
                    _ => Vec::new(),
                },
            };
            put(draft, TAG, VERSION, namespace)?;
        }
    }
    Ok(())
}

/// A namespace of the set, by a descriptor of freeze's.
struct Found {
    /// Who tells of it: a thread that runs, since one that has ended is in none.
    pid: Pid,
    fd: OwnedFd,
    /// Whether the process lives in it, or only has it open.
    inside: bool,
}

fn open(view: &View, kind: Kind, inode: u64) -> Result<Option<Found>> {
    for p in &view.processes {
        for name in [kind.name().to_owned(), format!("{}_for_children", kind.name())] {
            if p.namespaces.get(&name) == Some(&inode) {
                let path = format!("/proc/{}/ns/{name}", p.speaker);
                let fd = File::open(&path).on("open", || path)?.into();
                return Ok(Some(Found {
                    pid: p.speaker,
                    fd,
                    inside: true,
                }));
            }
        }
    }
    let holder = view.holder_of(kind.name(), inode);
    let mounted = || {
        let path = view.mounted(kind.name(), inode)?;
        // Whoever can see it will do.
        let pid = view.each().find(|p| view.namespace(p, "mnt") != 0)?.pid;
        Some((pid, path))
    };
    let Some((pid, path)) = holder.map(|h| (h.pid, h.at().into())).or_else(mounted) else {
        let by_socket = || {
            let socket = view.socket_of(inode).filter(|_| kind == Kind::Net)?;
            Some((socket.pid, socket_network(socket)?))
        };
        return Ok(by_socket().map(|(pid, fd)| Found {
            pid,
            fd,
            inside: false,
        }));
    };
    Ok(Some(Found {
        pid,
        fd: File::open(&path)
            .on("open", || path.display().to_string())?
            .into(),
        inside: false,
    }))
}

/// Adds what speaks against carrying the network namespace that a socket is of, where only sockets are left of it.
pub(super) fn left_verdict(socket: &FdView, view: &View, out: &mut Vec<Blocker>) {
    let Some(inode) = socket.net else { return };
    let first = view
        .socket_of(inode)
        .is_some_and(|s| (s.pid, s.fd) == (socket.pid, socket.fd));
    let elsewhere = || view.holder_of("net", inode).is_some() || view.mounted("net", inode).is_some();
    if first && !elsewhere() {
        held_verdict(Kind::Net, inode, &socket.blocker(), view, out);
    }
}

/// Adds what speaks against carrying a namespace that the set only holds, by `holder`.
pub(super) fn held_verdict(kind: Kind, inode: u64, holder: &Blocker, view: &View, out: &mut Vec<Blocker>) {
    let lived_in = |p: &ProcessView| p.namespaces.values().any(|i| *i == inode);
    if view.each().any(lived_in) || is_kept(kind, inode, view) {
        return;
    }
    let Ok(Some(found)) = open(view, kind, inode) else {
        return;
    };
    if kind == Kind::Net {
        made_anew(
            &found.fd,
            &format!("net namespace held by {}", found.pid),
            view,
            out,
        );
    }
    let tables = ["/proc/sysvipc/msg", "/proc/sysvipc/sem", "/proc/sysvipc/shm"];
    let lines = || tables.map(|t| std::fs::read_to_string(t).map_or(0, |text| text.lines().count()));
    // The first line is the heading.
    if kind == Kind::Ipc && ns::within(&[found.fd.as_fd()], lines).is_ok_and(|n| n.iter().any(|n| *n > 1)) {
        out.push(
            holder
                .clone()
                .why("there are System V objects in it, and no process of the checkpoint that lives there")
                .remedy("let a process of the checkpoint stay in it"),
        );
    }
}

fn what(
    kind: Kind,
    number: u32,
    pid: Pid,
    fd: &OwnedFd,
    view: &View,
    shared: &mut super::Shared,
    draft: &mut Draft,
) -> Result<What> {
    let read = |name: &str| {
        let path = format!("/proc/{pid}/{name}");
        std::fs::read_to_string(&path).on("read", || path)
    };
    Ok(match kind {
        Kind::User => What::User {
            uids: id_map(&read("uid_map")?),
            gids: id_map(&read("gid_map")?),
            deny_setgroups: read("setgroups")?.trim() == "deny",
            maker: ns::owner_uid(fd.as_fd()).on("ioctl(NS_GET_OWNER_UID)", || "a user namespace")?,
        },
        Kind::Pid => What::Pid,
        Kind::Mount => What::Mount(mounts::collect(number, view, shared, draft)?),
        Kind::Net => {
            let (others, mut out) = (networks(view), Vec::new());
            let others: Vec<_> = others.iter().map(|(n, fd)| (*n, fd.as_fd())).collect();
            let label = format!("net namespace of {pid}");
            What::Network(Box::new(netns::collect(fd.as_fd(), &others, &label, &mut out)?))
        }
        Kind::Ipc => What::Ipc {
            settings: ipc::settings(fd)?,
            queues: ipc::queues(fd, number, view)?,
        },
        Kind::Uts => {
            let names =
                ns::within(&[fd.as_fd()], nix::sys::utsname::uname).on("setns", || "a UTS namespace")?;
            let names = names.on("uname", || "a UTS namespace")?;
            What::Uts {
                hostname: names.nodename().to_string_lossy().into_owned(),
                domainname: names.domainname().to_string_lossy().into_owned(),
            }
        }
        Kind::Cgroup => What::Cgroup,
        Kind::Time => What::Time {
            offsets: offsets(&offsets_text(pid, fd)?),
        },
    })
}

/// What timens_offsets says of this time namespace, found at `pid`: the file tells of the one a process has its children
/// born into.
fn offsets_text(pid: Pid, fd: &OwnedFd) -> Result<String> {
    let read = |pid: Pid| {
        let path = format!("/proc/{pid}/timens_offsets");
        std::fs::read_to_string(&path).on("read", || path)
    };
    let told_of = std::fs::metadata(format!("/proc/{pid}/ns/time_for_children"));
    let wanted = nix::sys::stat::fstat(fd).on("fstat", || "a time namespace")?;
    if told_of.is_ok_and(|found| found.ino() == wanted.st_ino) {
        return read(pid);
    }
    let inside = Maker::new(&[Step::Enter(fd.as_raw_fd())]);
    let inside = inside.map_err(|(_, errno)| Error::kernel("setns", "a time namespace", errno))?;
    read(inside.pid())
}

/// The lines of timens_offsets: clock, seconds, nanoseconds.
fn offsets(text: &str) -> Vec<(String, i64, i64)> {
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        let clock = words.next()?.to_owned();
        Some((clock, words.next()?.parse().ok()?, words.next()?.parse().ok()?))
    };
    text.lines().filter_map(line).collect()
}

/// The network namespaces of the set by number, and freeze's own as 0.
fn networks(view: &View) -> Vec<(u32, OwnedFd)> {
    let foreign = view
        .foreign
        .iter()
        .filter(|((kind, _), _)| kind == Kind::Net.name());
    let opened =
        foreign.filter_map(|((_, inode), number)| Some((*number, open(view, Kind::Net, *inode).ok()??.fd)));
    let own = File::open("/proc/thread-self/ns/net").ok();
    opened.chain(own.map(|own| (0, own.into()))).collect()
}

/// Adds what speaks against making the network namespace of a process again, as long as nobody else keeps it alive.
fn network_verdict(p: &ProcessView, view: &View, out: &mut Vec<Blocker>) {
    let Some(inode) = p.namespaces.get(Kind::Net.name()) else {
        return;
    };
    let Ok(Some(found)) = open(view, Kind::Net, *inode) else {
        return;
    };
    if !is_kept(Kind::Net, *inode, view) {
        made_anew(&found.fd, &format!("net namespace of {}", p.pid), view, out);
    }
}

/// Adds what speaks against making a network namespace again.
fn made_anew(fd: &OwnedFd, label: &str, view: &View, out: &mut Vec<Blocker>) {
    let (others, mut found) = (networks(view), Vec::new());
    let others: Vec<_> = others.iter().map(|(n, fd)| (*n, fd.as_fd())).collect();
    // What cannot be read is told when it is recorded.
    if let Ok(record) = netns::collect(fd.as_fd(), &others, label, &mut found) {
        if found.is_empty() {
            netns::try_out(&record, label, &mut found);
        }
        out.extend(found);
    }
}

/// The lines of uid_map or gid_map: first id inside, the same as freeze sees it, how many.
pub(super) fn id_map(text: &str) -> Vec<[u32; 3]> {
    let line = |line: &str| {
        let words: Vec<u32> = line.split_whitespace().filter_map(|w| w.parse().ok()).collect();
        words.try_into().ok()
    };
    text.lines().filter_map(line).collect()
}

/// Adds what speaks against making a namespace again here.
pub fn precheck(all: &[Namespace], out: &mut Vec<Blocker>) {
    for namespace in all {
        if let What::Mount(mounts) = &namespace.what
            && living(namespace).is_none()
        {
            mounts::precheck(namespace.number, mounts, out);
        }
        if let What::Network(record) = &namespace.what
            && living(namespace).is_none()
        {
            netns::try_out(
                record,
                &format!("net namespace {} of the image", namespace.number),
                out,
            );
        }
    }
}

/// Makes the namespaces, or joins those that others have kept alive; those of pids come with their inits. `groups`:
/// whether processes go back into their control groups.
pub fn make(all: &[Namespace], families: &[Family], groups: bool) -> Result<Spaces> {
    let mut taken = Vec::new();
    for namespace in all.iter().filter(|n| living(n).is_none()) {
        if let What::Network(record) = &namespace.what {
            record.await_names(&mut taken);
        }
    }
    if !taken.is_empty() {
        return Err(Error::Refused(taken));
    }
    let mut spaces = Spaces::default();
    let mut maps: BTreeMap<u32, Vec<Vec<[u32; 3]>>> = BTreeMap::new();
    for namespace in all {
        let (kind, number) = (namespace.kind, namespace.number);
        let name = || format!("{} namespace {number} of the image", kind.name());
        if let What::User { uids, gids, .. } = &namespace.what {
            maps.insert(number, vec![uids.clone(), gids.clone()]);
        }
        if let Some(path) = living(namespace) {
            let file = File::open(&path).on("open", || path.display().to_string())?;
            spaces.put(kind, number, file.into());
            continue;
        }
        let apart = |f: &Family| kind == Kind::Time && f.time_for_children == Some(number);
        if let What::Time { offsets } = &namespace.what
            && families.iter().any(apart)
        {
            spaces.offsets.insert(number, offsets.clone());
            continue;
        }
        if kind == Kind::Pid {
            continue;
        }
        let mut steps = Vec::new();
        if let What::User { maker, .. } = &namespace.what {
            if let Some([_, first, _]) = maps.get(&namespace.owner).and_then(|m| m[1].first()) {
                // Who makes one must have ids in the one around it.
                steps.push(Step::Gid(*first));
            }
            steps.push(Step::Uid(*maker));
        }
        if namespace.owner != 0 {
            steps.push(Step::Enter(spaces.descriptor(Kind::User, namespace.owner)?));
        }
        // Its root is where its maker is.
        if groups {
            steps.splice(0..0, cgroup::steps_into(&namespace.roots, &mut spaces.groups.0)?);
        }
        steps.push(Step::Unshare(kind.flag()));
        match &namespace.what {
            What::Mount(_) => steps.push(Step::Private),
            What::Uts { hostname, domainname } => {
                steps.push(Step::Hostname(hostname.clone().into_bytes()));
                // "(none)" is how the kernel shows that there is none.
                steps.push(Step::Domainname(domainname.clone().into_bytes()));
            }
            _ => {}
        }
        let maker = Maker::new(&steps).map_err(|(n, errno)| {
            let step = steps.get(n).map_or("fork".to_owned(), |s| format!("{s:?}"));
            Error::kernel(step, name(), errno)
        })?;
        let entry = match kind {
            Kind::Time => "time_for_children",
            _ => kind.name(),
        };
        let fd = maker.namespace(entry).on("open", name)?;
        match &namespace.what {
            What::User {
                uids,
                gids,
                deny_setgroups,
                ..
            } => {
                let outer = maps.get(&namespace.owner);
                let lines = |own: &[[u32; 3]], n: usize| map_text(own, outer.map(|o| &o[n][..]));
                let mut write = Vec::new();
                if *deny_setgroups {
                    write.push(("setgroups", "deny".to_owned()));
                }
                write.push(("gid_map", lines(gids, 1)));
                write.push(("uid_map", lines(uids, 0)));
                let mut steps = Vec::new();
                if namespace.owner != 0 {
                    // A map is written from the parent: freeze's own /proc shows it, but freeze may be too far out.
                    steps.push(Step::Enter(spaces.descriptor(Kind::User, namespace.owner)?));
                }
                for (file, text) in write.into_iter().filter(|(_, text)| !text.is_empty()) {
                    let path = format!("/proc/{}/{file}\0", maker.pid());
                    steps.push(Step::Write(path.into_bytes(), text.into_bytes()));
                }
                Maker::new(&steps)
                    .map_err(|(_, errno)| Error::kernel("write", format!("id maps of {}", name()), errno))?;
            }
            What::Time { offsets } => {
                for (clock, seconds, nanoseconds) in offsets {
                    let path = format!("/proc/{}/timens_offsets", maker.pid());
                    std::fs::write(&path, format!("{clock} {seconds} {nanoseconds}\n"))
                        .on("write", || path)?;
                }
            }
            _ => {}
        }
        if let What::Ipc { settings, queues } = &namespace.what {
            let owner = match namespace.owner {
                0 => None,
                owner => Some(spaces.descriptor(Kind::User, owner)?),
            };
            ipc::apply(&fd, owner, settings).map_err(|(file, errno)| {
                Error::kernel("write", format!("/proc/sys/{file} of {}", name()), errno)
            })?;
            ipc::fill(&fd, queues)?;
        }
        spaces.put(kind, number, fd);
    }
    Ok(spaces)
}

/// The lines to write to an id map, given with ids as freeze sees them; `outer` is the map of the parent, if it is not
/// freeze's own namespace.
fn map_text(own: &[[u32; 3]], outer: Option<&[[u32; 3]]>) -> String {
    let translate = |id: u32| match outer {
        None => Some(id),
        Some(outer) => outer
            .iter()
            .find(|[_, first, n]| id >= *first && id - first < *n)
            .map(|[inside, first, _]| inside + (id - first)),
    };
    own.iter()
        .filter_map(|[inside, first, n]| Some(format!("{inside} {} {n}\n", translate(*first)?)))
        .collect()
}

/// Closes the trees of files: called when everything in them is open.
pub fn seal(nest: &mut Nest) -> Result<()> {
    mounts::seal(nest)
}

/// Fills the trees of files, and tells freeze how to reach them; the processes that live in them are there, blank.
pub fn furnish(nest: &mut Nest, all: &[Namespace]) -> Result<()> {
    let mut built = mounts::Built::default();
    for namespace in all.iter().filter(|n| n.kind == Kind::Mount) {
        let number = namespace.number;
        if let What::Mount(mounts) = &namespace.what
            && living(namespace).is_none()
        {
            mounts::build(number, mounts, nest, &mut built)?;
        }
        let fd = nest.spaces.get(Kind::Mount, number);
        let fd = fd
            .ok_or(Errno::ENOENT)
            .on("setns", || "a mount namespace of the image")?;
        let (root, _) = ns::look_into(fd).on("setns", || "a mount namespace of the image")?;
        nest.options.trees.insert(number, Tree::new(number, root));
        if let What::Mount(mounts) = &namespace.what
            && living(namespace).is_none()
        {
            for (binfmt, at) in mounts.iter().filter_map(|m| Some((m.binfmt.as_ref()?, &m.at))) {
                binfmt.restore(at, number, nest)?;
            }
        }
    }
    propagation::restore(&built, nest)?;
    for (number, index, at, root) in built.by_itself()? {
        let tree = Tree::of_mount(number, index, &at, root);
        let shown = nest.options.reach(number, &at)?;
        // Whoever asks by path finds all others in the tree they are in.
        if ns::mount_id(&shown).ok() != ns::mount_id(&tree.path(b"")).ok() {
            nest.options.trees.insert(tree.number, tree);
        }
    }
    let networks = fresh_networks(nest, all)?;
    let networks: Vec<_> = networks.iter().map(|(n, r, fd)| (*n, *r, fd.as_fd())).collect();
    let said = netns::restore(&networks)?;
    nest.warnings.extend(said);
    Ok(())
}

/// Puts packet filters into their places, now that all sockets are there: what a restore itself sends is not for them.
pub fn guard(nest: &mut Nest, all: &[Namespace]) -> Result<()> {
    // The inner ones first: who is born there to set something is given an id further out too.
    for namespace in all.iter().rev().filter(|n| living(n).is_none()) {
        limits::restore(namespace, nest);
    }
    let networks = fresh_networks(nest, all)?;
    let networks: Vec<_> = networks.iter().map(|(n, r, fd)| (*n, *r, fd.as_fd())).collect();
    let said = netns::guard(&networks)?;
    nest.warnings.extend(said);
    Ok(())
}

/// Lets into networks what is sent to them, now that everything that may hear it is there.
pub fn let_in(nest: &mut Nest, all: &[Namespace]) -> Result<()> {
    for (_, _, net) in fresh_networks(nest, all)? {
        netns::let_in(net.as_fd());
    }
    Ok(())
}

/// The network namespaces that are made anew: number, what was in them, and a descriptor.
fn fresh_networks<'a>(nest: &Nest, all: &'a [Namespace]) -> Result<Vec<(u32, &'a netns::Record, OwnedFd)>> {
    let mut networks = Vec::new();
    for namespace in all {
        if let What::Network(record) = &namespace.what
            && living(namespace).is_none()
        {
            let fd = nest.spaces.get(Kind::Net, namespace.number).ok_or(Errno::ENOENT);
            let fd = fd.and_then(|fd| fd.try_clone_to_owned().map_err(|_| Errno::EMFILE));
            let fd = fd.on("open", || "a network namespace of the image")?;
            networks.push((namespace.number, &**record, fd));
        }
    }
    Ok(networks)
}

/// A process of the nest for the user's eyes.
fn described(pid: Pid) -> String {
    format!("{pid} ({})", command_of(pid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inner_map_is_written_as_its_parent_counts() {
        let text = id_map("         0       1000          1\n");
        assert_eq!(text, [[0, 1000, 1]]);
        assert_eq!(map_text(&text, None), "0 1000 1\n");
        // The parent maps its 5..15 to 1000..1010.
        assert_eq!(map_text(&text, Some(&[[5, 1000, 10]])), "0 5 1\n");
        assert_eq!(
            map_text(&text, Some(&[[0, 1, 10]])),
            "",
            "the parent has no such id"
        );
    }
}
