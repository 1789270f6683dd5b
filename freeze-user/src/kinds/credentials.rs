//! Credentials: user and group ids, capabilities, securebits, no_new_privs, dumpable, parent-death signal.

use super::{ProcessKind, Source, Stage};
use crate::error::{Blocker, Error, Result};
use crate::ids::Pid;
use crate::nest::{Nest, Options};
use crate::observe::view::{ProcessView, View};
use crate::proc::status::Status;
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
}

/// What of a thread's status must be the same for all.
fn identity(s: &Status) -> impl PartialEq {
    let caps = [s.cap_inh, s.cap_prm, s.cap_eff, s.cap_bnd, s.cap_amb];
    (s.uid, s.gid, s.groups.clone(), caps, s.no_new_privs)
}

const CAP_SETPCAP: u64 = 1 << 8;
const SECBIT_NO_SETUID_FIXUP: u64 = 4;
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

impl ProcessKind for Credentials {
    const TAG: &'static str = "credentials";
    const VERSION: u16 = 1;
    const ABOUT: &'static str = "user and group ids, supplementary groups, all capability sets, securebits, \
        no_new_privs, dumpable, parent-death signal; threads with different credentials are refused";
    const STAGE: Stage = Stage::Credentials;
    type Record = Record;

    fn verdict(p: &ProcessView, _: &View, out: &mut Vec<Blocker>) {
        for thread in &p.threads {
            if identity(&thread.status) != identity(&p.status) {
                out.push(
                    Blocker::of(p.pid, format!("thread {}", thread.tid), "credentials of its own")
                        .why("its user, groups or capabilities differ from those of its process")
                        .remedy("let the thread take the process's credentials back first"),
                );
            }
        }
    }

    fn collect(from: &mut Source<'_>) -> Result<Record> {
        let mut signals = Vec::new();
        for n in 0..from.process.threads().len() {
            let (ran, at) = from.process.tape_on(n, |t| {
                let at = t.space(4);
                t.call(
                    "prctl(PR_GET_PDEATHSIG)",
                    libc::SYS_prctl,
                    &[libc::PR_GET_PDEATHSIG as u64, at],
                );
                at
            })?;
            signals.push(u32::from_ne_bytes(
                ran.bytes(at, 4).try_into().unwrap_or_default(),
            ));
        }
        let (ran, (dumpable, bits)) = from.process.tape(|t| {
            (
                t.call(
                    "prctl(PR_GET_DUMPABLE)",
                    libc::SYS_prctl,
                    &[libc::PR_GET_DUMPABLE as u64],
                ),
                t.call(
                    "prctl(PR_GET_SECUREBITS)",
                    libc::SYS_prctl,
                    &[libc::PR_GET_SECUREBITS as u64],
                ),
            )
        })?;
        let s = &from.process.view.status;
        Ok(Record {
            uid: s.uid,
            gid: s.gid,
            groups: s.groups.clone(),
            inheritable: s.cap_inh,
            permitted: s.cap_prm,
            effective: s.cap_eff,
            bounding: s.cap_bnd,
            ambient: s.cap_amb,
            securebits: ran.value(bits) as u64,
            no_new_privs: s.no_new_privs,
            dumpable: ran.value(dumpable) as u64,
            parent_death_signals: signals,
        })
    }

    fn precheck(record: &Record, pid: Pid, _: &Options, out: &mut Vec<Blocker>) {
        let text = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
        let Some(own) = Status::parse(&text) else { return };
        let lacks = record.permitted & !own.cap_prm;
        if lacks != 0 {
            out.push(
                Blocker::of(pid, "capabilities", format!("{:#x}", record.permitted))
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
        let building = nest.process(pid)?;
        for n in 0..building.threads.len() {
            building.tape_on(n, |t| {
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
                let groups: Vec<u8> = record.groups.iter().flat_map(|g| g.to_ne_bytes()).collect();
                let at = t.bytes(&groups);
                t.call(
                    "setgroups",
                    libc::SYS_setgroups,
                    &[record.groups.len() as u64, at],
                );
                let id = u64::from;
                let [r, e, s, f] = record.gid;
                t.call("setresgid", libc::SYS_setresgid, &[id(r), id(e), id(s)]);
                t.call("setfsgid", libc::SYS_setfsgid, &[id(f)]);
                let [r, e, s, f] = record.uid;
                t.call("setresuid", libc::SYS_setresuid, &[id(r), id(e), id(s)]);
                t.call("setfsuid", libc::SYS_setfsuid, &[id(f)]);
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
                // Changing ids clears both of these, so they come last.
                let signal = record.parent_death_signals.get(n).copied().unwrap_or(0);
                prctl(
                    t,
                    "prctl(PR_SET_PDEATHSIG)",
                    libc::PR_SET_PDEATHSIG,
                    u64::from(signal),
                );
                if n == 0 && record.dumpable < 2 {
                    prctl(
                        t,
                        "prctl(PR_SET_DUMPABLE)",
                        libc::PR_SET_DUMPABLE,
                        record.dumpable,
                    );
                }
            })?;
        }
        Ok(())
    }
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
