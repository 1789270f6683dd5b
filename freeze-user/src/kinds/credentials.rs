//! Credentials: user and group ids, capabilities, securebits, no_new_privs, dumpable, parent-death signal.

use super::{Asks, ProcessKind, Source, Stage};
use crate::error::{Blocker, Context, Error, Result};
use crate::ids::Pid;
use crate::nest::{Nest, Options};
use crate::observe::view::{ProcessView, View};
use crate::proc::status::Status;
use crate::tracee::tape::Tape;
use serde::{Deserialize, Serialize};

#[derive(Debug)]
pub struct Credentials;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// real, effective, saved, file system
    pub uid: [u32; 4],
    pub gid: [u32; 4],
    pub groups: Vec<u32>,
    pub inheritable: u64,
    pub permitted: u64,
    pub effective: u64,
    pub bounding: u64,
    pub ambient: u64,
    pub securebits: u64,
    pub no_new_privs: bool,
    pub dumpable: u64,
    /// By thread: the leader first, in the order of the thread records.
    pub parent_death_signals: Vec<u32>,
    /// Threads with other credentials than the first, each with all of its own.
    #[serde(default)]
    pub own: Vec<(Pid, Record)>,
    /// The number of its user namespace: in another one than freeze's it is entered with the ids it has there.
    #[serde(default)]
    pub user_namespace: u32,
}

impl Record {
    fn of(s: &Status, securebits: u64, dumpable: u64) -> Record {
        Record {
            uid: s.uid,
            gid: s.gid,
            groups: s.groups.clone(),
            inheritable: s.cap_inh,
            permitted: s.cap_prm,
            effective: s.cap_eff,
            bounding: s.cap_bnd,
            ambient: s.cap_amb,
            securebits,
            no_new_privs: s.no_new_privs,
            dumpable,
            parent_death_signals: Vec::new(),
            own: Vec::new(),
            user_namespace: 0,
        }
    }

    /// The credentials of one thread.
    fn of_thread(&self, tid: Pid) -> &Record {
        self.own.iter().find(|(t, _)| *t == tid).map_or(self, |(_, r)| r)
    }
}

const CAP_SETPCAP: u64 = 1 << 8;
const SECBIT_NO_SETUID_FIXUP: u64 = 4;
const KEYCTL_GET_KEYRING_ID: u64 = 0;
const KEY_SPEC_THREAD_KEYRING: u64 = -1i64 as u64;
const KEY_SPEC_PROCESS_KEYRING: u64 = -2i64 as u64;
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

impl Asks for Credentials {
    /// Where the signal of the parent's death is; the calls for securebits, dumpable and the keyrings.
    type Places = (u64, usize, usize, [usize; 2]);
    const EACH: bool = true;

    fn ask(t: &mut Tape<'_>, _of: &ProcessView) -> Self::Places {
        let signal = t.space(4);
        let mut prctl = |name, option: i32, a: u64| t.call(name, libc::SYS_prctl, &[option as u64, a]);
        prctl("prctl(PR_GET_PDEATHSIG)", libc::PR_GET_PDEATHSIG, signal);
        let bits = prctl("prctl(PR_GET_SECUREBITS)", libc::PR_GET_SECUREBITS, 0);
        let dumpable = prctl("prctl(PR_GET_DUMPABLE)", libc::PR_GET_DUMPABLE, 0);
        let keyrings = [KEY_SPEC_THREAD_KEYRING, KEY_SPEC_PROCESS_KEYRING]
            .map(|k| t.try_call("keyctl", libc::SYS_keyctl, &[KEYCTL_GET_KEYRING_ID, k, 0]));
        (signal, bits, dumpable, keyrings)
    }
}

impl ProcessKind for Credentials {
    const TAG: &'static str = "credentials";
    const VERSION: u16 = 1;
    const ABOUT: &'static str = "user and group ids, supplementary groups, all capability sets, securebits, \
        no_new_privs, dumpable, parent-death signal, threads with credentials of their own; keyrings of a process or thread \
        are refused";
    const STAGE: Stage = Stage::Credentials;
    type Record = Record;

    fn verdict(_: &ProcessView, _: &View, _: &mut Vec<Blocker>) {}

    fn collect(from: &mut Source<'_>) -> Result<Record> {
        let mut signals = Vec::new();
        let mut bits = Vec::new();
        let mut dumpable = 0;
        for n in 0..from.process.threads().len() {
            let (ran, ask) = from.answers_of::<Credentials>(n)?;
            if ask.3.iter().any(|at| ran.result(*at).is_ok()) {
                let tid = from.process.threads()[n].tid();
                return Err(Blocker::of(
                    from.process.pid(),
                    format!("thread {tid}"),
                    "a keyring of its own",
                )
                .why("what keys hold cannot be read (keyrings(7))")
                .remedy("let the program give it up before the checkpoint")
                .refuse());
            }
            signals.push(u32::from_ne_bytes(
                ran.bytes(ask.0, 4).try_into().unwrap_or_default(),
            ));
            bits.push(ran.value(ask.1) as u64);
            dumpable = ran.value(ask.2) as u64;
        }
        let p = &from.process.view;
        let first = bits.first().copied().unwrap_or(0);
        let mut record = Record::of(&p.status, first, dumpable);
        let mut others = Vec::new();
        for (thread, bits) in from.process.threads().iter().zip(&bits) {
            let Some(view) = p.thread(thread.tid()) else {
                continue;
            };
            let own = Record::of(&view.status, *bits, dumpable);
            if own != record {
                others.push((thread.tid(), own));
            }
        }
        record.own = others;
        record.user_namespace = from.view.namespace(p, "user");
        record.parent_death_signals = signals;
        Ok(record)
    }

    fn precheck(record: &Record, pid: Pid, _: &Options, out: &mut Vec<Blocker>) {
        let text = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
        let Some(own) = Status::parse(&text) else { return };
        let permitted = record
            .own
            .iter()
            .fold(record.permitted, |all, (_, r)| all | r.permitted);
        // In a user namespace of its own it has capabilities that freeze need not have.
        let granted = if record.user_namespace == 0 {
            own.cap_prm
        } else {
            !0
        };
        let lacks = permitted & !granted;
        if lacks != 0 {
            out.push(
                Blocker::of(pid, "capabilities", format!("{permitted:#x}"))
                    .why(format!(
                        "freeze itself lacks {lacks:#x} of them and cannot give them"
                    ))
                    .remedy("run freeze with all capabilities of the program"),
            );
        }
        if own.no_new_privs && !record.no_new_privs {
            out.push(
                Blocker::of(pid, "no_new_privs", "")
                    .why("freeze itself runs under it, and it cannot be taken off again")
                    .remedy("start freeze without no_new_privs"),
            );
        }
    }

    fn restore(record: &Record, pid: Pid, nest: &mut Nest) -> Result<()> {
        // Sent when freeze ends, it would be about a parent that the process never had.
        let orphan = nest.options.leaves && nest.roots().contains(&pid);
        if orphan && record.parent_death_signals.iter().any(|s| *s != 0) {
            nest.warnings.push(format!(
                "pid {pid}: the signal it wants at its parent's death is not set (a restore without --detach sets it)"
            ));
        }
        // The first thread of its parent, which has forked it here, is yet to end as it had.
        let later = match nest.parent_within(pid) {
            Some(parent) => nest.process(parent)?.leader_ended.is_some(),
            None => false,
        };
        let building = nest.process(pid)?;
        // A first thread that has ended has no signal of its own.
        let first = usize::from(building.leader_ended.is_some());
        let signals = &record.parent_death_signals;
        if later {
            building.death_signals.clone_from(signals);
        }
        let text = std::fs::read(format!("/proc/{pid}/status")).unwrap_or_default();
        let here = Status::parse(&text).unwrap_or_default().groups;
        let all = record;
        let tids: Vec<Pid> = (0..building.threads.len())
            .map(|n| building.recorded_tid(n))
            .collect();
        // A process enters its user namespace with its ids; a thread with others takes them there.
        let maps = (record.user_namespace != 0).then(|| Maps::of(pid)).transpose()?;
        building.tape_each(0, |n, t| {
            let record = all.of_thread(tids[n]);
            let prctl = |t: &mut crate::tracee::tape::Tape<'_>, name, option: i32, a: u64| {
                t.call(name, libc::SYS_prctl, &[option as u64, a, 0, 0, 0])
            };
            // The order matters: nothing may take capabilities away before the last id is set.
            prctl(
                t,
                "prctl(PR_SET_SECUREBITS)",
                libc::PR_SET_SECUREBITS,
                SECBIT_NO_SETUID_FIXUP,
            );
            let inside = all.user_namespace != 0;
            if let (Some(maps), true) = (&maps, record != all) {
                if record.groups != all.groups {
                    let groups = record.groups.iter().map(|g| maps.gid(*g));
                    let groups: Vec<u8> = groups.flat_map(u32::to_ne_bytes).collect();
                    let at = t.bytes(&groups);
                    let args = [record.groups.len() as u64, at];
                    t.call("setgroups", libc::SYS_setgroups, &args);
                }
                set_ids(
                    t,
                    record.uid.map(|i| maps.uid(i)),
                    record.gid.map(|i| maps.gid(i)),
                );
            }
            // In a user namespace it may be forbidden, and then there is nothing to change.
            if record.groups != here && !inside {
                let groups: Vec<u8> = record.groups.iter().flat_map(|g| g.to_ne_bytes()).collect();
                let at = t.bytes(&groups);
                t.call(
                    "setgroups",
                    libc::SYS_setgroups,
                    &[record.groups.len() as u64, at],
                );
            }
            if !inside {
                set_ids(t, record.uid, record.gid);
            }
            for cap in (0..64).filter(|c| record.bounding & 1 << c == 0) {
                // EINVAL past the last capability this kernel knows.
                let args = [libc::PR_CAPBSET_DROP as u64, cap, 0, 0, 0];
                t.try_call("prctl(PR_CAPBSET_DROP)", libc::SYS_prctl, &args);
            }
            capset(
                t,
                record.effective | CAP_SETPCAP,
                record.permitted | CAP_SETPCAP,
                record.inheritable,
            );
            prctl(
                t,
                "prctl(PR_CAP_AMBIENT)",
                libc::PR_CAP_AMBIENT,
                libc::PR_CAP_AMBIENT_CLEAR_ALL as u64,
            );
            for cap in (0..64u64).filter(|c| record.ambient & 1 << c != 0) {
                let args = [
                    libc::PR_CAP_AMBIENT as u64,
                    libc::PR_CAP_AMBIENT_RAISE as u64,
                    cap,
                    0,
                    0,
                ];
                t.call("prctl(PR_CAP_AMBIENT_RAISE)", libc::SYS_prctl, &args);
            }
            prctl(
                t,
                "prctl(PR_SET_SECUREBITS)",
                libc::PR_SET_SECUREBITS,
                record.securebits,
            );
            capset(t, record.effective, record.permitted, record.inheritable);
            if record.no_new_privs {
                prctl(t, "prctl(PR_SET_NO_NEW_PRIVS)", libc::PR_SET_NO_NEW_PRIVS, 1);
            }
            // Changing ids clears this one, so it comes last.
            let signal = n
                .checked_sub(first)
                .and_then(|n| signals.get(n))
                .filter(|_| !orphan && !later)
                .copied()
                .unwrap_or(0);
            prctl(
                t,
                "prctl(PR_SET_PDEATHSIG)",
                libc::PR_SET_PDEATHSIG,
                u64::from(signal),
            );
        })?;
        if record.dumpable < 2 {
            // It belongs to the memory of all threads, and is cleared whenever one of them changes its ids.
            let args = [libc::PR_SET_DUMPABLE as u64, record.dumpable, 0, 0, 0];
            building.call("prctl(PR_SET_DUMPABLE)", libc::SYS_prctl, &args)?;
        }
        Ok(())
    }
}

/// Sets all ids, of users as freeze's user namespace has them unless the process is in another.
pub fn set_ids(t: &mut crate::tracee::tape::Tape<'_>, uid: [u32; 4], gid: [u32; 4]) {
    let id = u64::from;
    let [r, e, s, f] = gid;
    t.call("setresgid", libc::SYS_setresgid, &[id(r), id(e), id(s)]);
    t.call("setfsgid", libc::SYS_setfsgid, &[id(f)]);
    let [r, e, s, f] = uid;
    t.call("setresuid", libc::SYS_setresuid, &[id(r), id(e), id(s)]);
    t.call("setfsuid", libc::SYS_setfsuid, &[id(f)]);
}

/// The ids of a user namespace, with those that freeze knows them by.
struct Maps {
    uids: Vec<[u32; 3]>,
    gids: Vec<[u32; 3]>,
}

impl Maps {
    /// Of the one a process is in.
    fn of(pid: Pid) -> Result<Maps> {
        let read = |file: &str| {
            let path = format!("/proc/{pid}/{file}");
            let text = std::fs::read_to_string(&path).on("read", || path)?;
            Ok(super::namespaces::id_map(&text))
        };
        Ok(Maps {
            uids: read("uid_map")?,
            gids: read("gid_map")?,
        })
    }

    fn uid(&self, id: u32) -> u32 {
        inside(&self.uids, id)
    }

    fn gid(&self, id: u32) -> u32 {
        inside(&self.gids, id)
    }
}

/// What an id is called inside; what has no name there stays, and the kernel refuses it.
fn inside(map: &[[u32; 3]], id: u32) -> u32 {
    let line = map.iter().find(|[_, first, n]| id >= *first && id - first < *n);
    line.map_or(id, |[inside, first, _]| inside + (id - first))
}

fn capset(t: &mut crate::tracee::tape::Tape<'_>, effective: u64, permitted: u64, inheritable: u64) {
    let mut header = CAPABILITY_VERSION_3.to_ne_bytes().to_vec();
    header.extend_from_slice(&[0; 4]);
    let header = t.bytes(&header);
    let mut data = Vec::with_capacity(24);
    for half in [0, 32] {
        for set in [effective, permitted, inheritable] {
            data.extend_from_slice(&((set >> half) as u32).to_ne_bytes());
        }
    }
    let data = t.bytes(&data);
    t.call("capset", libc::SYS_capset, &[header, data]);
}

/// Whether freeze is root in its user namespace, as nearly everything here needs.
pub fn must_be_root() -> Result<(), Error> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    Err(Blocker::at("freeze", "")
        .why(format!(
            "it runs as uid {}, and taking processes apart needs root",
            nix::unistd::geteuid()
        ))
        .remedy("run it with sudo")
        .refuse())
}
