//! The local descriptor table (modify_ldt(2)): segments of their own, as Wine and emulators make them.

use super::{Asks, ProcessKind, Source, Stage};
use crate::error::{Blocker, Context, Result};
use crate::ids::{Pid, Range};
use crate::nest::{Nest, Options};
use crate::observe::view::{ProcessView, View};
use crate::sys;
use crate::tracee::tape::Tape;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};

#[derive(Debug)]
pub struct Ldt;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Number and descriptor of those that are in use, in the processor's format.
    pub entries: Vec<(u32, u64)>,
}

const READ: u64 = 0;
const WRITE: u64 = 0x11;
/// Of one descriptor, and of as many as a table can have.
const SIZE: u64 = 8;
const MOST: u64 = 8192 * SIZE;

impl Asks for Ldt {
    /// The call that reads the beginning of the table, if there is one.
    type Places = usize;
    const EACH: bool = false;

    fn ask(t: &mut Tape<'_>, _of: &ProcessView) -> usize {
        let at = t.space(SIZE as usize);
        t.try_call("modify_ldt", libc::SYS_modify_ldt, &[READ, at, SIZE])
    }
}

impl ProcessKind for Ldt {
    const TAG: &'static str = "local-descriptors";
    const VERSION: u16 = 1;
    const ABOUT: &'static str = "segments of the local descriptor table (modify_ldt)";
    // Before threads, whose registers may name them.
    const STAGE: Stage = Stage::Place;
    type Record = Record;

    fn verdict(_: &ProcessView, _: &View, _: &mut Vec<Blocker>) {}

    fn collect(from: &mut Source<'_>) -> Result<Record> {
        let (ran, asked) = from.answers::<Ldt>()?;
        // The kernel returns an int: errors are no negative words.
        if ran.result(asked).map_or(-1, |n| n as i32) <= 0 {
            return Ok(Record::default());
        }
        let pid = from.process.pid();
        let shape = (libc::PROT_READ | libc::PROT_WRITE) as u64;
        let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
        let (ran, at) = from
            .process
            .tape(|t| t.call("mmap", libc::SYS_mmap, &[0, MOST, shape, flags, !0, 0]))?;
        let room = Range::new(ran.value(at) as u64, ran.value(at) as u64 + MOST);
        let told = from
            .process
            .tape(|t| t.try_call("modify_ldt", libc::SYS_modify_ldt, &[READ, room.start, MOST]));
        let mut table = vec![0; MOST as usize];
        let name = || format!("the local descriptors of pid {pid}");
        let read = sys::vm_read(pid, &[room], &mut table).on("process_vm_readv", name);
        from.process
            .tape(|t| t.call("munmap", libc::SYS_munmap, &[room.start, MOST]))?;
        let (ran, asked) = told?;
        if ran.result(asked).map_or(-1, |n| n as i32) <= 0 {
            return Err(Errno::EIO).on("modify_ldt", name);
        }
        read?;
        let words = table
            .chunks_exact(SIZE as usize)
            .map(|b| b.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte)));
        let used = (0..).zip(words).filter(|(_, word)| *word != 0);
        Ok(Record {
            entries: used.collect(),
        })
    }

    fn precheck(_: &Record, _: Pid, _: &Options, _: &mut Vec<Blocker>) {}

    fn restore(record: &Record, pid: Pid, nest: &mut Nest) -> Result<()> {
        // As many as a tape has room for.
        for some in record.entries.chunks(200) {
            let (ran, calls) = nest.process(pid)?.tape(|t| {
                let set = |&(number, word): &(u32, u64)| {
                    let at = t.bytes(&user_desc(number, word));
                    t.call("modify_ldt", libc::SYS_modify_ldt, &[WRITE, at, 16])
                };
                some.iter().map(set).collect::<Vec<_>>()
            })?;
            let name = || format!("the local descriptors of pid {pid}");
            for call in calls {
                let done = ran.value(call) as i32;
                let done = if done < 0 {
                    Err(Errno::from_raw(-done))
                } else {
                    Ok(())
                };
                done.on("modify_ldt", name)?;
            }
        }
        Ok(())
    }
}

/// struct user_desc of a descriptor in the processor's format.
fn user_desc(number: u32, word: u64) -> [u8; 16] {
    let bits = |from: u32, count: u32| (word >> from & ((1 << count) - 1)) as u32;
    let base = bits(16, 24) | bits(56, 8) << 24;
    let limit = bits(0, 16) | bits(48, 4) << 16;
    // Of the type: accessed, writable (or readable), and two bits that Linux calls the contents.
    let seg_32bit = bits(54, 1);
    let contents = bits(42, 2);
    let read_exec_only = bits(41, 1) ^ 1;
    let limit_in_pages = bits(55, 1);
    let seg_not_present = bits(47, 1) ^ 1;
    let useable = bits(52, 1);
    let flags = seg_32bit
        | contents << 1
        | read_exec_only << 3
        | limit_in_pages << 4
        | seg_not_present << 5
        | useable << 6;
    let mut out = [0; 16];
    for (at, word) in out.chunks_exact_mut(4).zip([number, base, limit, flags]) {
        at.copy_from_slice(&word.to_ne_bytes());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_is_taken_apart() {
        // Base 0x12345678, limit 0xabcde in pages, 32 bits, data that can be written to, present, of privilege 3.
        let word = 0x12ca_f334_5678_bcde_u64 | 1 << 52;
        let desc = user_desc(5, word);
        let field = |n: usize| u32::from_ne_bytes(desc[4 * n..4 * n + 4].try_into().unwrap());
        assert_eq!([field(0), field(1), field(2)], [5, 0x1234_5678, 0xabcde]);
        assert_eq!(field(3), 1 | 1 << 4 | 1 << 6);
    }
}
