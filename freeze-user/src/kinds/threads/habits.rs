//! What prctl(2), arch_prctl(2) and personality(2) set for a thread alone.

use crate::tracee::Stopped;
use crate::tracee::tape::{Ran, Tape};
use serde::{Deserialize, Serialize};

/// `None` and 0 where the kernel has no such thing, or where an older image does not tell.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Habits {
    pub personality: Option<u64>,
    /// What happens to it when memory fails (PR_MCE_KILL_GET).
    pub mce_kill: Option<u64>,
    /// Whether rdtsc ends in SIGSEGV (PR_SET_TSC).
    pub tsc_faults: bool,
    /// Whether cpuid ends in SIGSEGV (ARCH_SET_CPUID).
    pub cpuid_faults: bool,
    pub io_flusher: bool,
    /// By kind of speculation, the state as PR_GET_SPECULATION_CTRL tells.
    pub speculation: Vec<u64>,
    /// NUMA memory policy: mode with its flags, and the set of nodes in 64-bit words.
    #[serde(default)]
    pub memory_policy: Option<(u64, Vec<u64>)>,
    /// Syscall user dispatch: mode, selector, offset, length.
    pub dispatch: [u64; 4],
}

const PR_MCE_KILL: u64 = 33;
const PR_MCE_KILL_GET: u64 = 34;
const PR_GET_TSC: u64 = 25;
const PR_SET_TSC: u64 = 26;
const PR_TSC_SIGSEGV: u32 = 2;
const PR_GET_SPECULATION_CTRL: u64 = 52;
const PR_SET_SPECULATION_CTRL: u64 = 53;
/// Set by prctl(2) at all, and the state every thread is born with.
const PR_SPEC_PRCTL: u64 = 1;
const PR_SPEC_ENABLE: u64 = 2;
/// PR_SPEC_STORE_BYPASS, PR_SPEC_INDIRECT_BRANCH, PR_SPEC_L1D_FLUSH.
const SPECULATION: u64 = 3;
const PR_SET_IO_FLUSHER: u64 = 57;
const PR_GET_IO_FLUSHER: u64 = 58;
const ARCH_GET_CPUID: u64 = 0x1011;
const ARCH_SET_CPUID: u64 = 0x1012;

/// Where the answers of a tape will be.
#[derive(Debug)]
pub struct Asked {
    personality: usize,
    mce_kill: usize,
    tsc: (usize, u64),
    cpuid: usize,
    io_flusher: usize,
    speculation: Vec<usize>,
    policy: (usize, u64),
}

/// As many words of nodes as any kernel has (CONFIG_NODES_SHIFT is at most 10).
const NODE_WORDS: usize = 16;

impl Habits {
    /// Puts the questions on a tape.
    pub(super) fn ask(t: &mut Tape<'_>) -> Asked {
        let tsc = t.space(4);
        let policy = t.space(8 + NODE_WORDS * 8);
        let args = [policy, policy + 8, NODE_WORDS as u64 * 64, 0, 0];
        let policy = (
            t.try_call("get_mempolicy", libc::SYS_get_mempolicy, &args),
            policy,
        );
        let mut prctl = |option: u64, a: u64| t.try_call("prctl", libc::SYS_prctl, &[option, a, 0, 0, 0]);
        let mce_kill = prctl(PR_MCE_KILL_GET, 0);
        let tsc = (prctl(PR_GET_TSC, tsc), tsc);
        let io_flusher = prctl(PR_GET_IO_FLUSHER, 0);
        let speculation = (0..SPECULATION)
            .map(|n| prctl(PR_GET_SPECULATION_CTRL, n))
            .collect();
        Asked {
            personality: t.try_call("personality", libc::SYS_personality, &[0xffff_ffff]),
            mce_kill,
            tsc,
            cpuid: t.try_call("arch_prctl", libc::SYS_arch_prctl, &[ARCH_GET_CPUID, 0]),
            io_flusher,
            speculation,
            policy,
        }
    }

    /// Reads the answers.
    pub(super) fn told(ran: &Ran, asked: &Asked, thread: &Stopped) -> Habits {
        let value = |at| ran.result(at).ok().map(|n| n as u64);
        let tsc = ran.bytes(asked.tsc.1, 4).try_into().map_or(0, u32::from_ne_bytes);
        Habits {
            personality: value(asked.personality),
            mce_kill: value(asked.mce_kill),
            tsc_faults: ran.result(asked.tsc.0).is_ok() && tsc == PR_TSC_SIGSEGV,
            cpuid_faults: value(asked.cpuid) == Some(0),
            io_flusher: value(asked.io_flusher) == Some(1),
            speculation: asked
                .speculation
                .iter()
                .map(|at| value(*at).unwrap_or(0))
                .collect(),
            memory_policy: memory_policy(ran, asked.policy),
            dispatch: thread.dispatch(),
        }
    }

    /// Sets all of it for the thread that plays the tape, but the dispatch, which would catch the tape itself.
    pub(super) fn take_up(&self, t: &mut Tape<'_>) {
        if let Some(personality) = self.personality {
            t.call("personality", libc::SYS_personality, &[personality]);
        }
        let mut prctl =
            |name, option: u64, a: u64, b: u64| t.call(name, libc::SYS_prctl, &[option, a, b, 0, 0]);
        if let Some(policy) = self.mce_kill {
            // 1 = set, with the policy that the query named (0 late, 1 early, 2 default).
            prctl("prctl(PR_MCE_KILL)", PR_MCE_KILL, 1, policy);
        }
        if self.tsc_faults {
            prctl("prctl(PR_SET_TSC)", PR_SET_TSC, u64::from(PR_TSC_SIGSEGV), 0);
        }
        if self.io_flusher {
            prctl("prctl(PR_SET_IO_FLUSHER)", PR_SET_IO_FLUSHER, 1, 0);
        }
        for (kind, state) in (0..).zip(&self.speculation) {
            if state & PR_SPEC_PRCTL != 0 && state & !PR_SPEC_PRCTL != PR_SPEC_ENABLE {
                let args = [PR_SET_SPECULATION_CTRL, kind, state & !PR_SPEC_PRCTL, 0, 0];
                t.call("prctl(PR_SET_SPECULATION_CTRL)", libc::SYS_prctl, &args);
            }
        }
        if let Some((mode, nodes)) = &self.memory_policy {
            let words: Vec<u8> = nodes.iter().flat_map(|w| w.to_ne_bytes()).collect();
            let at = t.bytes(&words);
            // The kernel takes the number of bits less one.
            let args = [*mode, at, nodes.len() as u64 * 64 + 1];
            t.call("set_mempolicy", libc::SYS_set_mempolicy, &args);
        }
        if self.cpuid_faults {
            t.call(
                "arch_prctl(ARCH_SET_CPUID)",
                libc::SYS_arch_prctl,
                &[ARCH_SET_CPUID, 0],
            );
        }
    }
}

/// The policy that get_mempolicy(2) told of, unless it is the default.
fn memory_policy(ran: &Ran, (call, at): (usize, u64)) -> Option<(u64, Vec<u64>)> {
    ran.result(call).ok()?;
    let mode = ran.word(at) & 0xffff_ffff;
    let nodes = (0..NODE_WORDS as u64).map(|n| ran.word(at + 8 + n * 8)).collect();
    (mode != 0).then_some((mode, nodes))
}
