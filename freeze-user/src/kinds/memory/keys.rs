//! Memory protection keys: which ones a process has allocated, and getting the very same ones again.

use super::{Mapping, Record};
use crate::error::{Blocker, Error, Result};
use crate::ids::{PAGE, Pid, normalize};
use crate::nest::{Nest, free_place};
use crate::tracee::tape::{Ran, Tape};
use nix::errno::Errno;

const KEYS: u32 = 16;
const SYS_PKEY_MPROTECT: i64 = 329;
const SYS_PKEY_ALLOC: i64 = 330;
const SYS_PKEY_FREE: i64 = 331;

/// An address no process maps anything at: there a key that is allocated is told from one that is not.
const NOWHERE: u64 = 0xffff_8000_0000_0000;

/// Asks for the keys that the program has allocated; returns the first call. Nothing is changed: the kernel looks at
/// the key before it looks for the mapping.
pub fn ask(t: &mut Tape<'_>) -> usize {
    let ask = |k: u32| [NOWHERE, PAGE, libc::PROT_READ as u64, u64::from(k)];
    let at = (0..KEYS).map(|k| t.try_call("pkey_mprotect", SYS_PKEY_MPROTECT, &ask(k)));
    at.min().unwrap_or(0)
}

/// What was answered, a bit for each key.
pub fn allocated(ran: &Ran, first: usize) -> u32 {
    let is = |k: &u32| ran.result(first + *k as usize) == Err(Errno::ENOMEM);
    (0..KEYS).filter(is).fold(0, |keys, k| keys | 1 << k)
}

/// Whether the mapping has a key that pkey_mprotect(2) gave it, and not the one the kernel keeps for execute-only memory.
pub fn given(record: &Record, m: &Mapping) -> bool {
    m.key != 0 && record.pkeys & 1 << m.key != 0
}

/// Adds what speaks against giving the process its keys again.
pub fn precheck(record: &Record, pid: Pid, out: &mut Vec<Blocker>) {
    let has = || std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|t| t.contains(" ospke"));
    if record.pkeys & !1 != 0 && !has() {
        out.push(
            Blocker::of(pid, "memory", "protection keys")
                .why("it uses memory protection keys, which this CPU or kernel does not have")
                .remedy("restore on a machine whose /proc/cpuinfo shows ospke"),
        );
    }
}

/// Allocates the recorded keys in a process that has mapped nothing yet.
pub fn restore(record: &Record, pid: Pid, nest: &mut Nest) -> Result<()> {
    let kernels = |m: &&Mapping| m.key != 0 && m.prot == libc::PROT_EXEC && !given(record, m);
    let own = record.vmas.iter().find(kernels).map(|m| u32::from(m.key));
    if record.pkeys & !1 == 0 && own.is_none() {
        return Ok(());
    }
    let scratch = nest.process(pid)?.scratch();
    let mut taken: Vec<_> = super::occupied(record).chain([scratch]).collect();
    taken.extend(super::place::mapped_now(pid)?);
    let spare = free_place(normalize(taken), PAGE).start;
    let mut calls = Vec::new();
    // The lowest free one is what the kernel gives, so all of them are taken, and some given back.
    for k in 1..KEYS {
        if own == Some(k) {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
            let exec = [spare, PAGE, libc::PROT_EXEC as u64, flags as u64, !0, 0];
            calls.push(("mmap", libc::SYS_mmap, exec));
        } else {
            calls.push(("pkey_alloc", SYS_PKEY_ALLOC, [0; 6]));
        }
    }
    let free = |k: &u32| record.pkeys & 1 << k == 0 && own != Some(*k);
    let given_back = (1..KEYS)
        .filter(free)
        .map(|k| ("pkey_free", SYS_PKEY_FREE, [u64::from(k), 0, 0, 0, 0, 0]));
    calls.extend(given_back);
    if own.is_some() {
        calls.push(("munmap", libc::SYS_munmap, [spare, PAGE, 0, 0, 0, 0]));
    }
    let got = nest.process(pid)?.play(&calls)?;
    let wrong = (1..KEYS).find(|k| own != Some(*k) && got[*k as usize - 1] != i64::from(*k));
    match wrong {
        None => Ok(()),
        Some(k) => Err(Error::kernel(
            "pkey_alloc",
            format!("protection key {k} of {pid}"),
            Errno::EEXIST,
        )),
    }
}
