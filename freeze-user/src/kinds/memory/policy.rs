//! NUMA policies of single mappings: get_mempolicy(2) and mbind(2). Those of threads are among their habits.

use super::super::pipe::Bytes;
use super::Record;
use crate::error::Result;
use crate::ids::Pid;
use crate::nest::Nest;
use crate::tracee::process::StoppedProcess;
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

/// The policy of the mapping at each of these addresses.
pub fn ask(process: &mut StoppedProcess, at: &[u64]) -> Result<Vec<Option<Policy>>> {
    let mut answers: Vec<Option<Policy>> = Vec::with_capacity(at.len());
    for some in at.chunks(BATCH) {
        let (ran, (modes, first)) = process.tape(|t| {
            let modes = t.space(4 * some.len());
            let mut first = None;
            for (i, addr) in some.iter().enumerate() {
                let args = [modes + 4 * i as u64, 0, 0, *addr, MPOL_F_ADDR];
                let index = t.try_call("get_mempolicy", libc::SYS_get_mempolicy, &args);
                first.get_or_insert(index);
            }
            (modes, first.unwrap_or(0))
        })?;
        for i in 0..some.len() {
            // A kernel without NUMA, or a mapping that cannot have any, has no policy.
            let told = ran.result(first + i).is_ok();
            let mode = ran.bytes(modes + 4 * i as u64, 4);
            let mode = i32::from_ne_bytes(mode.try_into().expect("four bytes"));
            answers.push((told && mode != 0).then(|| Policy {
                mode,
                nodes: Bytes::default(),
            }));
        }
    }
    for (answer, addr) in answers.iter_mut().zip(at) {
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
    Ok(answers)
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
