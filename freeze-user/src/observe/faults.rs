//! The fault log: which pages of followed processes faulted for writing, attached only while it exists.

use crate::error::{Context, Error, Result};
use crate::ids::Pid;
use crate::observe::load::{FaultPrograms, failed};
use freeze_common::Fault;
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
    /// Address space of each followed process.
    followed: HashMap<Pid, u64>,
    lost: u64,
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
        let number = pid.0 as u32;
        let done = self.programs.spaces.insert(mm, number, 0);
        done.map_err(|e| failed("follow", &format!("for pid {pid}"), &e))?;
        self.followed.insert(pid, mm);
        Ok(())
    }

    /// Logs it no more.
    pub fn unfollow(&mut self, pid: Pid) {
        if let Some(mm) = self.followed.remove(&pid) {
            // Two processes can share an address space: the other may have taken it out.
            let _ = self.programs.spaces.remove(&mm);
        }
    }

    /// Hands over every fault logged so far: process, address, error code of the fault.
    ///
    /// Answers how many were lost since the last time: if any, the log proves nothing for that time.
    pub fn drain(&mut self, mut take: impl FnMut(Pid, u64, u32)) -> Result<u64> {
        while let Some(item) = self.programs.faults.next() {
            let (fault, _) = Fault::read_from_prefix(&item)
                .map_err(|_| Error::kernel("read", "the fault ring", Errno::EBADMSG))?;
            take(Pid(fault.space as i32), fault.address, fault.error);
        }
        let lost = self.programs.lost();
        Ok(lost - std::mem::replace(&mut self.lost, lost))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::testing::{Subject, privileged};
    use std::collections::BTreeSet;

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
        let mut pages = BTreeSet::new();
        let lost = log.drain(|pid, address, error| {
            assert_eq!((pid, error & 2), (python.pid(), 2));
            if (base..base + (1 << 20)).contains(&address) {
                pages.insert((address - base) / 4096);
            }
        });
        assert_eq!(lost.unwrap(), 0);
        assert_eq!(pages, (0..256).step_by(3).collect());
        log.unfollow(python.pid());
        python.say("end");
    }
}
