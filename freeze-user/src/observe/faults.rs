//! The fault log: which pages of followed processes faulted for writing, and what else changed them.

use crate::error::{Context, Error, Result};
use crate::ids::{PAGE, Pid, Range, normalize};
use crate::observe::load::{FaultPrograms, failed};
use freeze_common::{Change, Fault, PRESENT, UNDECODED};
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
    /// Where each thread faulted last. Only of that fault it is not known whether it is over: the record comes
    /// before the change that it tells of, and a thread can be kept from the processor between the two for any time.
    last: HashMap<u32, Range>,
    /// How many records were read.
    records: u64,
}

/// What was logged of one address space; ranges in order, apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Pages that faulted.
    pub pages: Vec<Range>,
    /// What else a fault may have filled: where there was no page, as much as a huge one.
    pub filled: Vec<Range>,
    /// What calls emptied, moved or filled.
    pub changed: Vec<Range>,
    /// Where faults may not have been over yet when the ones before these were taken.
    pub pending: Vec<Range>,
    /// Why the log does not tell everything, if it does not.
    pub gap: Option<&'static str>,
}

/// A fault on an absent page may have filled as much as this at once.
const HUGE: u64 = 2 << 20;

/// Where the kernel's own addresses begin at the earliest.
const TASK_SIZE: u64 = 1 << 63;

/// How often the ring is read again for records that are being written.
const PATIENCE: usize = 1000;

impl Followed {
    fn fault(&mut self, fault: Fault) {
        self.records += 1;
        if fault.place >= TASK_SIZE {
            return;
        }
        let around = |size: u64| {
            let start = fault.place & !(size - 1);
            Range::new(start, start + size)
        };
        let page = around(PAGE);
        push(&mut self.seen.pages, page);
        let mut widest = page;
        if fault.place & PRESENT == 0 {
            widest = around(HUGE);
            push(&mut self.seen.filled, widest);
        }
        self.last.insert(fault.thread, widest);
    }

    fn change(&mut self, change: Change) {
        self.records += 1;
        if change.call == UNDECODED {
            tracing::debug!(?change, "the fault log has a gap");
            self.seen.gap = Some("something reached for its memory without a fault");
            return;
        }
        let start = change.start & !(PAGE - 1);
        let end = change.start.saturating_add(change.length);
        match end.checked_next_multiple_of(PAGE) {
            Some(end) if end > start && start < TASK_SIZE => {
                push(&mut self.seen.changed, Range::new(start, end))
            }
            // The call fails, or is about nothing.
            _ => {}
        }
    }

    fn take(&mut self) -> Seen {
        let mut seen = std::mem::take(&mut self.seen);
        for list in [
            &mut seen.pages,
            &mut seen.filled,
            &mut seen.changed,
            &mut seen.pending,
        ] {
            *list = normalize(std::mem::take(list));
        }
        self.seen.pending = self.last.values().copied().collect();
        seen
    }
}

impl Seen {
    /// Where pages may have been written, have vanished or come.
    pub fn places(&self) -> Vec<Range> {
        normalize([&self.pages[..], &self.filled, &self.changed, &self.pending].concat())
    }
}

/// Appends what is not the same as the last one: neighbouring records mostly are.
fn push(list: &mut Vec<Range>, range: Range) {
    if list.last() != Some(&range) {
        list.push(range);
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
        let done = self.programs.spaces.insert(mm, [pid.0 as u64, 0], 0);
        done.map_err(|e| failed("follow", &format!("for pid {pid}"), &e))?;
        let followed = Followed {
            mm,
            seen: Seen::default(),
            last: HashMap::new(),
            records: 0,
        };
        self.followed.insert(pid, followed);
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
        let unknown = || format!("pid {pid}");
        let mm = self.followed.get(&pid).map(|f| f.mm);
        let mm = mm.ok_or(Errno::ESRCH).on("take", unknown)?;
        for _ in 0..PATIENCE {
            // Records are counted before they can be read, and a reader stops at one that somebody is still writing.
            let written = self.programs.spaces.get(&mm, 0);
            let [_, written] = written.map_err(|e| failed("count", &unknown(), &e))?;
            self.drain()?;
            let followed = self.followed.get_mut(&pid);
            let followed = followed.ok_or(Errno::ESRCH).on("take", unknown)?;
            if followed.records >= written || followed.seen.gap.is_some() {
                return Ok(followed.take());
            }
            std::hint::spin_loop();
        }
        let mut seen = self
            .followed
            .get_mut(&pid)
            .map(Followed::take)
            .unwrap_or_default();
        seen.gap = Some("the log could not be read to its end");
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
                    f.change(change);
                }
            } else {
                let (fault, _) = Fault::read_from_prefix(&item).map_err(|_| malformed())?;
                if let Some(f) = followed.get_mut(&Pid(fault.space as i32)) {
                    f.fault(fault);
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
        let page = |i: u64| Range::new(base + i * PAGE, base + (i + 1) * PAGE);
        let missed = crate::ids::subtract(
            &normalize((0..256).step_by(3).map(page).collect()),
            &seen.places(),
        );
        assert!(missed.is_empty(), "{seen:?} without {missed:?}");
        let mapped = Range::new(base, base + (1 << 20));
        assert!(
            crate::ids::subtract(&[mapped], &seen.filled).is_empty(),
            "{seen:?}"
        );
        log.unfollow(python.pid());
        python.say("end");
    }
}
