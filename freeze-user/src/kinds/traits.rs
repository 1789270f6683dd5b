//! Small flags of a process: personality, subreaper, transparent huge pages, machine-check policy, membarrier.

use super::{Asks, ProcessKind, Source, Stage};
use crate::error::{Blocker, Result};
use crate::ids::Pid;
use crate::nest::{Nest, Options};
use crate::observe::view::{ProcessView, View};
use crate::tracee::tape::Tape;
use serde::{Deserialize, Serialize};

#[derive(Debug)]
pub struct Traits;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub personality: u64,
    pub subreaper: bool,
    pub thp_disable: u64,
    pub mce_kill: u64,
    /// Memory-deny-write-execute bits (PR_SET_MDWE, 6.3); 0 where the kernel has none.
    pub mdwe: u64,
    /// KSM for the whole process (PR_SET_MEMORY_MERGE, 6.4).
    pub memory_merge: bool,
    /// Commands registered with membarrier(2), as MEMBARRIER_CMD_GET_REGISTRATIONS tells since 6.3.
    pub membarrier: u64,
    /// Whether it chooses the numbers of the timers that it makes (PR_TIMER_CREATE_RESTORE_IDS, 6.15).
    #[serde(default)]
    pub timer_ids: bool,
    /// How many slots its own table of futexes has (PR_FUTEX_HASH, 6.16); 0 where it uses that of all.
    #[serde(default)]
    pub futex_slots: Option<u64>,
    /// In images of before 2026-11: it comes with the securebits.
    #[serde(default, rename = "keep_caps", skip_serializing)]
    _keep_caps: bool,
}

const PR_GET_THP_DISABLE: u64 = 42;
const PR_SET_THP_DISABLE: u64 = 41;
const PR_MCE_KILL: u64 = 33;
const PR_MCE_KILL_GET: u64 = 34;
const PR_SET_MDWE: u64 = 65;
const PR_GET_MDWE: u64 = 66;
const PR_SET_MEMORY_MERGE: u64 = 67;
const PR_GET_MEMORY_MERGE: u64 = 68;
const PR_TIMER_CREATE_RESTORE_IDS: u64 = 77;
const PR_FUTEX_HASH: u64 = 78;
const PR_FUTEX_HASH_SET_SLOTS: u64 = 1;
const PR_FUTEX_HASH_GET_SLOTS: u64 = 2;
const MEMBARRIER_CMD_GET_REGISTRATIONS: u64 = 1 << 9;

impl Asks for Traits {
    /// Where the subreaper flag is, and the calls whose results matter.
    type Places = (u64, [usize; 8]);
    const EACH: bool = false;

    fn ask(t: &mut Tape<'_>, _of: &ProcessView) -> Self::Places {
        let subreaper = t.space(4);
        let args = [libc::PR_GET_CHILD_SUBREAPER as u64, subreaper];
        t.call("prctl(PR_GET_CHILD_SUBREAPER)", libc::SYS_prctl, &args);
        let get = |t: &mut Tape<'_>, option: u64| t.try_call("prctl", libc::SYS_prctl, &[option]);
        let calls = [
            t.call("personality", libc::SYS_personality, &[0xffff_ffff]),
            get(t, PR_GET_THP_DISABLE),
            get(t, PR_MCE_KILL_GET),
            get(t, PR_GET_MDWE),
            get(t, PR_GET_MEMORY_MERGE),
            t.try_call(
                "membarrier",
                libc::SYS_membarrier,
                &[MEMBARRIER_CMD_GET_REGISTRATIONS],
            ),
            // 2 asks for it.
            t.try_call(
                "prctl",
                libc::SYS_prctl,
                &[PR_TIMER_CREATE_RESTORE_IDS, 2, 0, 0, 0],
            ),
            futex_slots(t),
        ];
        (subreaper, calls)
    }
}

impl ProcessKind for Traits {
    const TAG: &'static str = "traits";
    const VERSION: u16 = 1;
    const ABOUT: &'static str = "personality, subreaper, THP-disable, machine-check policy, MDWE, KSM, membarrier registration, slots for futexes; shadow stacks are refused";
    const STAGE: Stage = Stage::Last;
    type Record = Record;

    fn verdict(p: &ProcessView, _: &View, out: &mut Vec<Blocker>) {
        if !p.status.thread_features.is_empty() {
            out.push(
                p.blocker("threads", format!("CET features: {}", p.status.thread_features))
                    .why("shadow stacks are not carried")
                    .remedy("start the program with GLIBC_TUNABLES=glibc.cpu.hwcaps=-SHSTK"),
            );
        }
    }

    fn collect(from: &mut Source<'_>) -> Result<Record> {
        let (ran, (subreaper, calls)) = from.answers::<Traits>()?;
        let [
            personality,
            thp_disable,
            mce_kill,
            mdwe,
            memory_merge,
            membarrier,
            timer_ids,
            slots,
        ] = calls;
        let or_none = |index| ran.result(index).unwrap_or(0) as u64;
        let registered = ran.result(membarrier);
        let record = Record {
            personality: ran.value(personality) as u64,
            subreaper: ran.bytes(subreaper, 1)[0] != 0,
            thp_disable: or_none(thp_disable),
            mce_kill: ran.result(mce_kill).unwrap_or(2) as u64,
            mdwe: or_none(mdwe),
            memory_merge: or_none(memory_merge) != 0,
            membarrier: or_none(membarrier),
            timer_ids: or_none(timer_ids) == 1,
            futex_slots: ran.result(slots).ok().map(|n| n as u64),
            _keep_caps: false,
        };
        Ok(match registered {
            Ok(_) => record,
            Err(_) => Record {
                membarrier: tried_barriers(from)?,
                ..record
            },
        })
    }

    fn precheck(_: &Record, _: Pid, _: &Options, _: &mut Vec<Blocker>) {}

    fn restore(record: &Record, pid: Pid, nest: &mut Nest) -> Result<()> {
        let (ran, slots) = nest.process(pid)?.tape(|t| {
            t.call("personality", libc::SYS_personality, &[record.personality]);
            let mut set =
                |option: u64, a: u64, b: u64| t.call("prctl", libc::SYS_prctl, &[option, a, b, 0, 0]);
            set(
                libc::PR_SET_CHILD_SUBREAPER as u64,
                u64::from(record.subreaper),
                0,
            );
            // 1, or 3 where what asks for huge pages still gets them (Linux 6.18): that bit is the flag to set it by.
            set(
                PR_SET_THP_DISABLE,
                u64::from(record.thp_disable != 0),
                record.thp_disable & !1,
            );
            // 1 = set, with the policy that the query named (0 late, 1 early, 2 default).
            set(PR_MCE_KILL, 1, record.mce_kill);
            if record.mdwe != 0 {
                set(PR_SET_MDWE, record.mdwe, 0);
            }
            if record.memory_merge {
                set(PR_SET_MEMORY_MERGE, 1, 0);
            }
            if record.timer_ids {
                set(PR_TIMER_CREATE_RESTORE_IDS, 1, 0);
            }
            for bit in (0..32).filter(|b| record.membarrier & 1 << b != 0) {
                t.call("membarrier", libc::SYS_membarrier, &[1 << bit]);
            }
            futex_slots(t)
        })?;
        // By its threads alone it may have them already, and goes on to get more with more threads.
        if let (Some(wanted), Ok(has)) = (record.futex_slots, ran.result(slots))
            && wanted != has as u64
        {
            let args = [PR_FUTEX_HASH, PR_FUTEX_HASH_SET_SLOTS, wanted, 0, 0];
            nest.process(pid)?
                .tape(|t| t.try_call("prctl(PR_FUTEX_HASH)", libc::SYS_prctl, &args))?;
        }
        Ok(())
    }
}

fn futex_slots(t: &mut Tape<'_>) -> usize {
    t.try_call(
        "prctl",
        libc::SYS_prctl,
        &[PR_FUTEX_HASH, PR_FUTEX_HASH_GET_SLOTS, 0, 0, 0],
    )
}

/// What must be registered, by the barriers that are granted: before Linux 6.3 nothing tells.
///
/// Who is in for barriers of others cannot be found out; to be in for them without need is harmless.
fn tried_barriers(from: &mut Source<'_>) -> Result<u64> {
    const REGISTER_GLOBAL: u64 = 1 << 2;
    // A barrier of a kind, and the command that registers for it.
    const PRIVATE: [(u64, u64); 3] = [(1 << 3, 1 << 4), (1 << 5, 1 << 6), (1 << 7, 1 << 8)];
    let (ran, (known, granted)) = from.process.tape(|t| {
        let mut ask = |command| t.try_call("membarrier", libc::SYS_membarrier, &[command, 0, 0]);
        (ask(0), PRIVATE.map(|(barrier, _)| ask(barrier)))
    })?;
    let known = ran.result(known).unwrap_or(0) as u64;
    let registered = PRIVATE.iter().zip(granted);
    let registered = registered.filter(|(_, at)| ran.result(*at).is_ok());
    Ok(registered.fold(known & REGISTER_GLOBAL, |all, ((_, register), _)| all | register))
}
