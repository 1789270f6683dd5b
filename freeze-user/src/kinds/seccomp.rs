//! seccomp(2): strict mode and filters, thread by thread, the oldest filter first.

use super::pipe::Bytes;
use super::{ProcessKind, Source, Stage};
use crate::error::{Blocker, Result};
use crate::ids::Pid;
use crate::nest::{Building, Nest, Options};
use crate::observe::peek::Peek;
use crate::observe::view::{ProcessView, View};
use crate::tracee::{EXITKILL, SUSPEND_SECCOMP};
use serde::{Deserialize, Serialize};

#[derive(Debug)]
pub struct Seccomp;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Only threads that are under seccomp.
    pub threads: Vec<Thread>,
    /// Programs, each once; 8 bytes an instruction (struct sock_filter).
    pub programs: Vec<Bytes>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thread {
    pub tid: Pid,
    pub strict: bool,
    /// Index of the program and flags of seccomp(2) that are kept (SECCOMP_FILTER_FLAG_LOG), in the order of installing.
    pub filters: Vec<(usize, u64)>,
}

const MODE_STRICT: u32 = 1;
/// A filter may answer with this to hand the decision to a supervisor, whose descriptor cannot be made again.
const RET_USER_NOTIF: u32 = 0x7fc0_0000;
const BPF_RET_K: u16 = 0x06;

impl ProcessKind for Seccomp {
    const TAG: &'static str = "seccomp";
    const VERSION: u16 = 1;
    const ABOUT: &'static str = "seccomp strict mode and filters of each thread; filters that ask a supervisor (user notification) are refused, and Landlock \
        domains, where the kernel lets freeze look at them, of who has no_new_privs";
    // After all that needs system calls of the process's own free will, while installing is still allowed.
    const STAGE: Stage = Stage::Limits;
    type Record = Record;

    fn verdict(p: &ProcessView, _: &View, out: &mut Vec<Blocker>) {
        let under = p.threads.iter().any(|t| t.status.seccomp != 0);
        if under && !super::limits::caps::has(super::limits::caps::SYS_ADMIN) {
            out.push(
                p.blocker("seccomp", "a filter")
                    .why("filters can be read with CAP_SYS_ADMIN only")
                    .remedy("run freeze with CAP_SYS_ADMIN"),
            );
        }
        // Whoever has not forsworn privileges needs CAP_SYS_ADMIN to enter one.
        let sworn = p.threads.iter().any(|t| t.status.no_new_privs);
        let locked = || Peek::get().and_then(|peek| peek.landlocked(p.pid));
        if let Some(tid) = sworn
            .then(locked)
            .flatten()
            .and_then(|tids| tids.first().copied())
        {
            out.push(
                p.blocker(format!("thread {tid}"), "a Landlock domain")
                    .why("the kernel does not tell its rules, and without them the program could do what it had forbidden itself")
                    .remedy("start the program without this sandbox (landlock(7))"),
            );
        }
    }

    fn collect(from: &mut Source<'_>) -> Result<Record> {
        let mut record = Record {
            threads: Vec::new(),
            programs: Vec::new(),
        };
        let views = from.process.view.threads.clone();
        for thread in from.process.threads() {
            let mode = views
                .iter()
                .find(|v| v.tid == thread.tid())
                .map_or(0, |v| v.status.seccomp);
            if mode == 0 {
                continue;
            }
            let mut filters = Vec::new();
            if mode != MODE_STRICT {
                for index in 0.. {
                    let Some((program, flags)) = thread.seccomp_filter(index)? else {
                        break;
                    };
                    if asks_supervisor(&program) {
                        return Err(Blocker::of(from.process.pid(), format!("thread {}", thread.tid()), "a seccomp filter")
                            .why("it asks a supervisor (SECCOMP_RET_USER_NOTIF), whose descriptor cannot be made again")
                            .remedy("start the program without that filter")
                            .refuse());
                    }
                    let program = Bytes(program);
                    let known = record.programs.iter().position(|p| *p == program);
                    let at = known.unwrap_or_else(|| {
                        record.programs.push(program);
                        record.programs.len() - 1
                    });
                    filters.push((at, flags));
                }
            }
            record.threads.push(Thread {
                tid: thread.tid(),
                strict: mode == MODE_STRICT,
                filters,
            });
        }
        Ok(record)
    }

    fn precheck(_: &Record, _: Pid, _: &Options, _: &mut Vec<Blocker>) {}

    fn restore(record: &Record, pid: Pid, nest: &mut Nest) -> Result<()> {
        let building = nest.process(pid)?;
        let installed = record.shared(building.threads.len());
        if let Some(first) = record.threads.first().filter(|_| installed > 0)
            && let Some(n) = building.thread(first.tid)
        {
            // The tapes still to come must pass; all of it bites again once the thread is let go.
            for thread in &mut building.threads {
                thread.options(EXITKILL | SUSPEND_SECCOMP)?;
            }
            // Where one cannot have it, that is an error then, and not the number of that thread.
            let all = libc::SECCOMP_FILTER_FLAG_TSYNC | libc::SECCOMP_FILTER_FLAG_TSYNC_ESRCH;
            record.install(&first.filters[..installed], all, building, n)?;
        }
        for thread in &record.threads {
            let Some(n) = building.thread(thread.tid) else {
                continue;
            };
            building.threads[n].options(EXITKILL | SUSPEND_SECCOMP)?;
            record.install(
                thread.filters.get(installed..).unwrap_or_default(),
                0,
                building,
                n,
            )?;
            if thread.strict {
                building.tape_on(n, |t| {
                    let args = [libc::PR_SET_SECCOMP as u64, u64::from(MODE_STRICT), 0, 0, 0];
                    t.call("prctl(PR_SET_SECCOMP)", libc::SYS_prctl, &args);
                })?;
            }
        }
        Ok(())
    }
}

impl Record {
    /// How many filters, from the oldest, all threads of a process have in common; none if it has no others.
    ///
    /// The kernel puts a filter on all threads (SECCOMP_FILTER_FLAG_TSYNC) only where they share what is there before, and not
    /// where each has its own of the same text.
    fn shared(&self, threads: usize) -> usize {
        let Some((first, others)) = self.threads.split_first() else {
            return 0;
        };
        if others.is_empty() || self.threads.len() != threads {
            return 0;
        }
        let same = |t: &Thread| {
            let both = first.filters.iter().zip(&t.filters);
            both.take_while(|(a, b)| a == b).count()
        };
        others.iter().map(same).min().unwrap_or(0)
    }

    /// Has a thread install these, with a flag more.
    fn install(&self, filters: &[(usize, u64)], flag: u64, building: &mut Building, n: usize) -> Result<()> {
        for (program, flags) in filters {
            let Some(program) = self.programs.get(*program) else {
                continue;
            };
            building.tape_on(n, |t| {
                let code = t.bytes(&program.0);
                // struct sock_fprog: length in instructions, pointer.
                let mut prog = (program.0.len() as u64 / 8).to_ne_bytes().to_vec();
                prog.extend_from_slice(&code.to_ne_bytes());
                let prog = t.bytes(&prog);
                let install = u64::from(libc::SECCOMP_SET_MODE_FILTER);
                t.call("seccomp", libc::SYS_seccomp, &[install, *flags | flag, prog]);
            })?;
        }
        Ok(())
    }
}

/// Whether some `RET k` of a program returns SECCOMP_RET_USER_NOTIF.
fn asks_supervisor(program: &[u8]) -> bool {
    program.chunks_exact(8).any(|insn| {
        let code = u16::from_ne_bytes([insn[0], insn[1]]);
        let k = u32::from_ne_bytes([insn[4], insn[5], insn[6], insn[7]]);
        code == BPF_RET_K && k & 0xffff_0000 == RET_USER_NOTIF
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_all_threads_have_is_shared() {
        let with = |stacks: &[&[usize]]| {
            let thread = |filters: &&[usize]| Thread {
                tid: Pid(1),
                strict: false,
                filters: filters.iter().map(|n| (*n, 0)).collect(),
            };
            let threads = stacks.iter().map(thread).collect();
            Record {
                threads,
                programs: Vec::new(),
            }
        };
        assert_eq!(with(&[&[0, 1], &[0, 1, 2], &[0, 2]]).shared(3), 1);
        assert_eq!(with(&[&[0, 1], &[0, 1, 2]]).shared(2), 2);
        assert_eq!(with(&[&[0, 1], &[0, 1]]).shared(3), 0, "a third has none");
        assert_eq!(with(&[&[0, 1]]).shared(1), 0);
        assert_eq!(with(&[&[0], &[]]).shared(2), 0);
        assert_eq!(with(&[]).shared(0), 0);
    }

    #[test]
    fn a_supervised_filter_is_told_apart() {
        let ret = |k: u32| [&BPF_RET_K.to_ne_bytes()[..], &[0, 0], &k.to_ne_bytes()[..]].concat();
        assert!(asks_supervisor(&ret(RET_USER_NOTIF)));
        assert!(!asks_supervisor(&ret(0x7fff_0000)));
        assert!(!asks_supervisor(&[ret(0x0005_0001), ret(0)].concat()));
    }
}
