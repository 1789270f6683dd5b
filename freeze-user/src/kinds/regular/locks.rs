//! What is held on a file through one description: flock(2), open file description locks, leases.

use super::found::Obstacle;
use crate::error::{Context, Result};
use crate::ids::Pid;
use crate::kinds::Placed;
use crate::nest::Nest;
use crate::observe::view::FdView;
use crate::sys;
use serde::{Deserialize, Serialize};
use std::os::fd::BorrowedFd;

const F_OFD_SETLK: i32 = 37;

/// Locks that belong to an open file description.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Locks {
    /// `READ` or `WRITE` where it holds a flock(2) lock.
    pub flock: Option<String>,
    /// Who took it, whom /proc/locks names.
    #[serde(default)]
    pub flock_by: Option<Pid>,
    /// Kind, start, last byte or `None` for the end of the file.
    pub ofd: Vec<(String, u64, Option<u64>)>,
    pub lease: Option<Lease>,
}

/// A lease (F_SETLEASE).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// `F_RDLCK` or `F_WRLCK`, as it was taken.
    pub kind: i32,
    /// What it must be reduced to, `F_RDLCK` or `F_UNLCK`, where somebody waits for that.
    pub breaking: Option<i32>,
}

impl Locks {
    /// As fdinfo shows them.
    pub fn of(fd: &FdView) -> Locks {
        let of = |class: &'static str| fd.info.locks.iter().filter(move |l| l.class == class);
        let lease = of("LEASE")
            .next()
            .map(|l| match (l.mode.as_str(), l.kind.as_str()) {
                // Only one for writing can be reduced to one for reading; a reader can have taken one for reading only.
                ("BREAKING", "READ") => Lease {
                    kind: libc::F_WRLCK,
                    breaking: Some(libc::F_RDLCK),
                },
                ("BREAKING", _) => Lease {
                    kind: match fd.flags() & libc::O_ACCMODE {
                        libc::O_RDONLY => libc::F_RDLCK,
                        _ => libc::F_WRLCK,
                    },
                    breaking: Some(libc::F_UNLCK),
                },
                (_, "READ") => Lease {
                    kind: libc::F_RDLCK,
                    breaking: None,
                },
                _ => Lease {
                    kind: libc::F_WRLCK,
                    breaking: None,
                },
            });
        Locks {
            flock: of("FLOCK").next().map(|l| l.kind.clone()),
            flock_by: of("FLOCK").next().map(|l| Pid(l.pid)),
            ofd: of("OFDLCK").map(|l| (l.kind.clone(), l.start, l.end)).collect(),
            lease,
        }
    }

    /// Why the contents of a file that have to go with the checkpoint cannot be read, if they cannot, and what to do.
    pub fn obstacle(fd: &FdView) -> Option<Obstacle> {
        let travels = fd.stat.nlink == 0 || fd.tree.number != 0;
        let leased = || Locks::of(fd).lease.is_some_and(|l| l.kind == libc::F_WRLCK);
        let unread = fd.flags() & libc::O_ACCMODE == libc::O_WRONLY;
        (travels && unread && !fd.info.locks.is_empty() && leased()).then(|| {
            (
                "it has a lease (F_SETLEASE) that reading the file would break, and is not open for reading"
                    .to_owned(),
                "let the program give the lease up, or open the file for reading as well",
            )
        })
    }

    /// Takes the lock of flock(2) again, in the name of who took it if he still has the file open.
    pub fn restore_flock(&self, placed: Placed, nest: &mut Nest) -> Result<()> {
        let Some(how) = self.how() else {
            return Ok(());
        };
        let mut holders = nest.holders(placed.id).iter().copied();
        let taker = holders.find(|(pid, fd)| Some(*pid) == self.flock_by && *fd >= 0);
        let (pid, fd) = taker.unwrap_or((placed.pid, placed.fd));
        if fd < 0 {
            return sys::flock(nest.file(placed.id)?, how).on("flock", || "a restored file");
        }
        nest.process(pid)?
            .call("flock", libc::SYS_flock, &[fd as u64, how as u64])
            .map(drop)
    }

    fn how(&self) -> Option<i32> {
        let kind = match self.flock.as_deref()? {
            "WRITE" => libc::LOCK_EX,
            _ => libc::LOCK_SH,
        };
        Some(kind | libc::LOCK_NB)
    }

    /// Takes the others again; a lease is its holder's own affair.
    pub fn restore(&self, fd: BorrowedFd<'_>) -> Result<()> {
        let name = || "a restored file".to_owned();
        for (kind, start, end) in &self.ofd {
            let lock = sys::flock64(kind == "WRITE", *start, *end);
            sys::fcntl_bytes(fd, F_OFD_SETLK, &lock).on("fcntl(F_OFD_SETLK)", name)?;
        }
        Ok(())
    }
}
