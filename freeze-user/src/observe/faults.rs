//! The fault log: which pages of followed processes faulted for writing, and what else changed them.

use crate::error::{Context, Error, Result};
use crate::ids::{PAGE, Pid, Range, normalize};
use crate::observe::load::{FaultPrograms, failed};
use freeze_common::{Change, Fault, UNDECODED};
use nix::errno::Errno;
use std::collections::HashMap;
use zerocopy::FromBytes;

/// Write faults of followed address spaces, as they happen; dropped, nothing is attached any more.
///
/// Only faults are seen: writing again to a page that is writable makes none. Each record costs the
/// program about 100 ns; every other process pays less for a look-up at each of its faults.
#[derive(Debug)]
pub struct FaultLog {
    programs: FaultPrograms,
    followed: HashMap<Pid, Followed>,
    lost: u64,
}

#[derive(Debug)]
struct Followed {
    /// Its address space.
    mm: u64,
    /// What was logged and not taken yet.
    seen: Seen,
}

/// What was logged of one address space.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Where pages may have been written or vanished: in order, apart.
    pub touched: Vec<Range>,
    /// How many faults that were.
    pub faults: u64,
    /// Why the log does not tell everything, if it does not.
    pub gap: Option<&'static str>,
}

/// A fault on an absent page may have filled as much as this at once.
const HUGE: u64 = 2 << 20;

/// Where the kernel's own addresses begin at the earliest.
const TASK_SIZE: u64 = 1 << 63;

/// The fault found a page there.
const PRESENT: u32 = 1;

impl Seen {
    fn fault(&mut self, fault: Fault) {
        self.faults += 1;
        if fault.address >= TASK_SIZE {
            return;
        }
        let size = if fault.error & PRESENT == 0 { HUGE } else { PAGE };
        let start = fault.address & !(size - 1);
        self.touch(Range::new(start, start + size));
    }

    fn change(&mut self, change: Change) {
        const MUNMAP: u32 = libc::SYS_munmap as u32;
        const MREMAP: u32 = libc::SYS_mremap as u32;
        const MADVISE: u32 = libc::SYS_madvise as u32;
        match change.call {
            UNDECODED => {
                tracing::debug!(?change, "the fault log has a gap");
                self.gap = Some("something reached for its memory without a fault");
            }
            MUNMAP | MREMAP | MADVISE => {
                if change.start >= TASK_SIZE {
                    return;
                }
                let start = change.start & !(PAGE - 1);
                let end = change.start.saturating_add(change.length);
                match end.checked_next_multiple_of(PAGE) {
                    Some(end) if end > start => self.touch(Range::new(start, end)),
                    // The call fails, or is about nothing.
                    _ => {}
                }
            }
            // What mmap(2) and brk(2) make is a mapping that nobody has registered.
            _ => {}
        }
    }

    fn touch(&mut self, range: Range) {
        match self.touched.last_mut() {
            Some(last) if last.start <= range.start && range.end <= last.end => {}
            _ => self.touched.push(range),
        }
    }
}

impl FaultLog {
    /// Loads and attaches the programs. `bytes`: the ring's size, a power of two and at least a page;
    /// a record takes 24 bytes.
    pub fn start(bytes: u32) -> Result<FaultLog> {
        let programs = FaultPrograms::load(bytes)?;
        let lost = programs.lost();
        Ok(FaultLog {
            programs,
            followed: HashMap::new(),
            lost,
        })
    }

    /// Logs the address space that the process has now; after an exec it must be followed anew.
    pub fn follow(&mut self, pid: Pid) -> Result<()> {
        let mm = self
            .programs
            .mm(pid)?
            .ok_or(Errno::ESRCH)
            .on("follow", || format!("pid {pid}"))?;
        self.unfollow(pid);
        if self.followed.values().any(|other| other.mm == mm) {
            return Err(Errno::EBUSY).on("follow", || format!("pid {pid}: it shares its memory"));
        }
        let number = pid.0 as u32;
        let done = self.programs.spaces.insert(mm, number, 0);
        done.map_err(|e| failed("follow", &format!("for pid {pid}"), &e))?;
        let seen = Seen::default();
        self.followed.insert(pid, Followed { mm, seen });
        Ok(())
    }

    /// Logs it no more.
    pub fn unfollow(&mut self, pid: Pid) {
        if let Some(followed) = self.followed.remove(&pid) {
            let _ = self.programs.spaces.remove(&followed.mm);
        }
    }

    /// What was logged of a process since it was followed or last taken.
    pub fn take(&mut self, pid: Pid) -> Result<Seen> {
        self.drain()?;
        let followed = self.followed.get_mut(&pid);
        let followed = followed.ok_or(Errno::ESRCH).on("take", || format!("pid {pid}"))?;
        let mut seen = std::mem::take(&mut followed.seen);
        seen.touched = normalize(seen.touched);
        Ok(seen)
    }

    fn drain(&mut self) -> Result<()> {
        let FaultLog {
            programs, followed, ..
        } = self;
        let malformed = || Error::kernel("read", "the fault ring", Errno::EBADMSG);
        while let Some(item) = programs.faults.next() {
            if item.len() >= size_of::<Change>() {
                let (change, _) = Change::read_from_prefix(&item).map_err(|_| malformed())?;
                if let Some(f) = followed.get_mut(&Pid(change.space as i32)) {
                    f.seen.change(change);
                }
            } else {
                let (fault, _) = Fault::read_from_prefix(&item).map_err(|_| malformed())?;
                if let Some(f) = followed.get_mut(&Pid(fault.space as i32)) {
                    f.seen.fault(fault);
                }
            }
        }
        let lost = programs.lost();
        if std::mem::replace(&mut self.lost, lost) != lost {
            for f in self.followed.values_mut() {
                f.seen.gap = Some("the log was full");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::testing::{Subject, privileged};

    #[test]
    fn every_first_write_is_logged_with_its_address() {
        if !privileged() {
            return;
        }
        let mut log = FaultLog::start(1 << 20).unwrap();
        let mut python = Subject::start(
            "python3",
            &[
                "-uc",
                "import mmap,sys,ctypes\nm=mmap.mmap(-1,1<<20)\nprint(ctypes.addressof(ctypes.c_char.from_buffer(m)))\nsys.stdin.readline()\nfor i in range(0,256,3): m[i*4096]=1\nprint('written')\nsys.stdin.readline()",
            ],
        );
        let base: u64 = python.line().parse().unwrap();
        log.follow(python.pid()).unwrap();
        python.say("go");
        assert_eq!(python.line(), "written");
        let seen = log.take(python.pid()).unwrap();
        assert_eq!(seen.gap, None);
        // Fresh memory: every page, rounded to what one fault may fill.
        assert!(seen.faults >= 86, "{seen:?}");
        let mapped = Range::new(base, base + (1 << 20));
        let missed = crate::ids::subtract(&[mapped], &seen.touched);
        assert!(missed.is_empty(), "{seen:?} without {missed:?}");
        log.unfollow(python.pid());
        python.say("end");
    }
}
