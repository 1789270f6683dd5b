//! NUMA policies of single mappings: get_mempolicy(2) and mbind(2). Those of threads are among their habits.

use super::super::pipe::Bytes;
use super::Record;
use crate::error::Result;
use crate::ids::Pid;
use crate::nest::Nest;
use crate::tracee::process::StoppedProcess;
use crate::tracee::tape::{Ran, Tape};
use serde::{Deserialize, Serialize};

/// Mode and nodes as get_mempolicy(2) tells them; never the default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// MPOL_* with the flags of the mode.
    pub mode: i32,
    /// A bit for each node.
    pub nodes: Bytes,
}

/// As many nodes as a kernel can be built for.
const NODES: u64 = 1024;
const MPOL_F_ADDR: u64 = 2;
/// Questions in one tape.
const BATCH: usize = 256;

/// Where on a tape the modes are, and the first of the calls.
#[derive(Clone, Copy, Debug)]
pub struct Asked(u64, usize);

/// How many addresses are asked for along with everything else.
pub const FEW: usize = 256;

/// Asks for the modes at these addresses.
pub fn ask(t: &mut Tape<'_>, at: impl ExactSizeIterator<Item = u64>) -> Asked {
    let modes = t.space(4 * at.len());
    let first = t.len();
    for (i, addr) in at.enumerate() {
        let args = [modes + 4 * i as u64, 0, 0, addr, MPOL_F_ADDR];
        t.try_call("get_mempolicy", libc::SYS_get_mempolicy, &args);
    }
    Asked(modes, first)
}

/// What was answered, without the nodes.
pub fn answers(ran: &Ran, asked: Asked, count: usize) -> Vec<Option<Policy>> {
    let Asked(modes, first) = asked;
    let answer = |i| {
        // A kernel without NUMA, or a mapping that cannot have any, has no policy.
        let told = ran.result(first + i).is_ok();
        let mode = ran.bytes(modes + 4 * i as u64, 4);
        let mode = i32::from_ne_bytes(mode.try_into().expect("four bytes"));
        (told && mode != 0).then(|| Policy {
            mode,
            nodes: Bytes::default(),
        })
    };
    (0..count).map(answer).collect()
}

/// The policy of the mapping at each of these addresses; `known`: those of the first of them, without the nodes.
pub fn collect(
    process: &mut StoppedProcess,
    at: &[u64],
    mut known: Vec<Option<Policy>>,
) -> Result<Vec<Option<Policy>>> {
    for some in at[known.len()..].chunks(BATCH) {
        let (ran, asked) = process.tape(|t| ask(t, some.iter().copied()))?;
        known.extend(answers(&ran, asked, some.len()));
    }
    for (answer, addr) in known.iter_mut().zip(at) {
        let Some(policy) = answer else { continue };
        let (ran, nodes) = process.tape(|t| {
            let (mode, nodes) = (t.space(4), t.space(NODES as usize / 8));
            t.call(
                "get_mempolicy",
                libc::SYS_get_mempolicy,
                &[mode, nodes, NODES, *addr, MPOL_F_ADDR],
            );
            nodes
        })?;
        policy.nodes = Bytes(ran.bytes(nodes, NODES as usize / 8).to_vec());
    }
    Ok(known)
}

/// Sets them again; what this machine's nodes do not allow is told and left to the default.
pub fn restore(record: &Record, pid: Pid, nest: &mut Nest) -> Result<()> {
    for m in &record.vmas {
        let (r, Some(policy)) = (m.range, &m.policy) else {
            continue;
        };
        let (ran, at) = nest.process(pid)?.tape(|t| {
            let none = policy.nodes.0.iter().all(|b| *b == 0);
            // The kernel counts the bits without the last one.
            let (nodes, count) = if none {
                (0, 0)
            } else {
                (t.bytes(&policy.nodes.0), NODES + 1)
            };
            t.try_call(
                "mbind",
                libc::SYS_mbind,
                &[r.start, r.len(), policy.mode as u64, nodes, count, 0],
            )
        })?;
        if let Err(e) = ran.result(at) {
            nest.warnings
                .push(format!("pid {pid}, {r}: the NUMA policy cannot be had here: {e}"));
        }
    }
    Ok(())
}
