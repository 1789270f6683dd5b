//! NUMA policies of a process and of single mappings: get_mempolicy(2), set_mempolicy(2) and mbind(2).

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

/// The policy of the first thread, and that of the mapping at each of these addresses.
pub fn ask(process: &mut StoppedProcess, at: &[u64]) -> Result<(Option<Policy>, Vec<Option<Policy>>)> {
    // Without an address it is the thread that is asked about.
    let questions: Vec<[u64; 2]> = std::iter::once([0, 0])
        .chain(at.iter().map(|at| [*at, MPOL_F_ADDR]))
        .collect();
    let mut answers: Vec<Option<Policy>> = Vec::with_capacity(questions.len());
    for some in questions.chunks(BATCH) {
        let (ran, (modes, first)) = process.tape(|t| {
            let modes = t.space(4 * some.len());
            let mut first = None;
            for (i, [addr, flags]) in some.iter().enumerate() {
                let args = [modes + 4 * i as u64, 0, 0, *addr, *flags];
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
    for (answer, [addr, flags]) in answers.iter_mut().zip(&questions) {
        let Some(policy) = answer else { continue };
        let (ran, nodes) = process.tape(|t| {
            let (mode, nodes) = (t.space(4), t.space(NODES as usize / 8));
            t.call(
                "get_mempolicy",
                libc::SYS_get_mempolicy,
                &[mode, nodes, NODES, *addr, *flags],
            );
            nodes
        })?;
        policy.nodes = Bytes(ran.bytes(nodes, NODES as usize / 8).to_vec());
    }
    let rest = answers.split_off(1);
    Ok((answers.pop().flatten(), rest))
}

/// Sets them again; what this machine's nodes do not allow is told and left to the default.
pub fn restore(record: &Record, pid: Pid, nest: &mut Nest) -> Result<()> {
    let own = record.policy.iter().map(|p| (None, p));
    let of_mappings = record
        .vmas
        .iter()
        .filter_map(|m| m.policy.as_ref().map(|p| (Some(m.range), p)));
    for (range, policy) in own.chain(of_mappings) {
        let (ran, at) = nest.process(pid)?.tape(|t| {
            let none = policy.nodes.0.iter().all(|b| *b == 0);
            // The kernel counts the bits without the last one.
            let (nodes, count) = if none {
                (0, 0)
            } else {
                (t.bytes(&policy.nodes.0), NODES + 1)
            };
            match range {
                None => t.try_call(
                    "set_mempolicy",
                    libc::SYS_set_mempolicy,
                    &[policy.mode as u64, nodes, count],
                ),
                Some(r) => t.try_call(
                    "mbind",
                    libc::SYS_mbind,
                    &[r.start, r.len(), policy.mode as u64, nodes, count, 0],
                ),
            }
        })?;
        if let Err(e) = ran.result(at) {
            let what = range.map_or("its".to_owned(), |r| format!("{r}: the"));
            nest.warnings
                .push(format!("pid {pid}, {what} NUMA policy cannot be had here: {e}"));
        }
    }
    Ok(())
}
