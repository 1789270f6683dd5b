//! An iterator that tells which of the things that threads of a process may share each of them has, by their addresses.

use super::{BPF_PROG_TYPE_TRACING, BPF_TRACE_ITER, Sys, iterate_process, load, op};
use crate::error::errno;
use crate::ids::Pid;
use nix::errno::Errno;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

/// Where members of `struct task_struct` lie that [`KinIterator`] goes by.
#[derive(Clone, Copy, Debug)]
pub struct TaskOffsets {
    pub pid: u32,
    pub nsproxy: u32,
    pub cgroups: u32,
    pub files: u32,
    pub fs: u32,
    /// Of kernels that have it (CONFIG_AUDIT).
    pub loginuid: Option<u32>,
}

/// What one thread has. Addresses are only good to be compared with those that the same look told, and 0 is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Task {
    /// In the first pid namespace.
    pub tid: Pid,
    /// All its namespaces but those of users and pids.
    pub nsproxy: u64,
    /// Its places in all hierarchies of control groups.
    pub cgroups: u64,
    pub files: u64,
    /// Working directory, root and umask.
    pub fs: u64,
    pub loginuid: u64,
}

/// A program that tells of each thread of a process.
#[derive(Debug)]
pub struct KinIterator(OwnedFd);

/// What is told of one: six words.
const ONE: usize = 48;

impl KinIterator {
    /// `target` is the number of the function `bpf_iter_task` in the kernel's BTF.
    pub fn new(target: u32, at: TaskOffsets) -> Sys<KinIterator> {
        const SEQ_WRITE: i32 = 127;
        let near = |offset: u32| i16::try_from(offset).map_err(|_| Errno::ERANGE);
        let place = |n: i16| 8 * n - ONE as i16;
        let mut tell = vec![
            op(0x61, 1, 6, near(at.pid)?, 0), // r1 = r6->pid
            op(0x7b, 10, 1, place(0), 0),
        ];
        for (n, offset) in (1..).zip([at.nsproxy, at.cgroups, at.files, at.fs]) {
            tell.push(op(0x79, 1, 6, near(offset)?, 0));
            tell.push(op(0x7b, 10, 1, place(n), 0));
        }
        tell.push(match at.loginuid {
            Some(offset) => op(0x61, 1, 6, near(offset)?, 0),
            None => op(0xb7, 1, 0, 0, 0),
        });
        tell.extend([
            op(0x7b, 10, 1, place(5), 0),
            op(0xbf, 1, 8, 0, 0),
            op(0xbf, 2, 10, 0, 0),
            op(0x07, 2, 0, 0, -(ONE as i32)),
            op(0xb7, 3, 0, 0, ONE as i32),
            op(0x85, 0, 0, 0, SEQ_WRITE), // what finds no room is written again when there is some
        ]);
        let mut code = vec![
            op(0x79, 6, 1, 8, 0),                 // r6 = context->task
            op(0x79, 8, 1, 0, 0),                 // r8 = context->meta
            op(0x79, 8, 8, 0, 0),                 // r8 = r8->seq
            op(0x15, 6, 0, tell.len() as i16, 0), // none: to the last two
        ];
        code.extend(tell);
        code.extend([op(0xb7, 0, 0, 0, 0), op(0x95, 0, 0, 0, 0)]);
        load(BPF_PROG_TYPE_TRACING, &code, |attr| {
            attr[17] = BPF_TRACE_ITER;
            attr[27] = target;
        })
        .map(KinIterator)
    }

    /// What it tells of the threads of a process, those that are about to end too.
    pub fn read(&self, process: Pid) -> Sys<Vec<Task>> {
        let mut bytes = Vec::new();
        let mut file = std::fs::File::from(iterate_process(self.0.as_fd(), process)?);
        file.read_to_end(&mut bytes).map_err(errno)?;
        let one = |entry: &[u8; ONE]| {
            let word = |n: usize| entry[8 * n..].first_chunk().map_or(0, |w| u64::from_ne_bytes(*w));
            Task {
                tid: Pid(word(0) as i32),
                nsproxy: word(1),
                cgroups: word(2),
                files: word(3),
                fs: word(4),
                loginuid: word(5),
            }
        };
        Ok(bytes.as_chunks().0.iter().map(one).collect())
    }
}
