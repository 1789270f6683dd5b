//! The four ways in which freeze can fail, each naming the object and the target's fate.

use crate::ids::Pid;
use nix::errno::Errno;
use serde::Serialize;
use std::fmt;
use std::path::PathBuf;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What became of the processes freeze was working on when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// Nothing was stopped or changed.
    Untouched,
    /// It was stopped, and runs on exactly as it was found.
    PutBack,
    /// A half-built restore was taken down again; the image is intact.
    TakenDown,
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Fate::Untouched => "nothing was touched",
            Fate::PutBack => "the target runs on as it was found",
            Fate::TakenDown => "what was built of it was taken down, the image is intact",
        })
    }
}

/// One reason why something cannot be checkpointed or restored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Blocker {
    /// The process it belongs to, if one.
    pub pid: Option<Pid>,
    /// Where in that process: `fd 7`, `7f00-7f10`, `timer 3`, or a path.
    pub place: String,
    /// What it is: `io_uring`, `socket:[1234]`, `/var/log/x`.
    pub object: String,
    /// Why freeze does not carry it.
    pub why: String,
    /// What the user can do about it.
    pub remedy: String,
    /// Who outside the checkpoint holds it: it would be no reason if that were frozen too. 0 for nobody.
    #[serde(skip_serializing_if = "is_nobody")]
    pub holder: Pid,
    /// Tells one object from another that is called the same: a program may make such all the time. 0 if there is no such number.
    #[serde(skip)]
    pub which: u64,
    /// It is over by itself in a moment: worth another look a little later.
    #[serde(skip)]
    pub passing: bool,
}

impl Blocker {
    /// A blocker inside the process `pid`.
    pub fn of(pid: Pid, place: impl Into<String>, object: impl Into<String>) -> Blocker {
        Blocker {
            pid: Some(pid),
            place: place.into(),
            object: object.into(),
            why: String::new(),
            remedy: String::new(),
            holder: Pid(0),
            which: 0,
            passing: false,
        }
    }

    /// A blocker that belongs to no single process (a path, the host).
    pub fn at(place: impl Into<String>, object: impl Into<String>) -> Blocker {
        Blocker {
            pid: None,
            place: place.into(),
            object: object.into(),
            why: String::new(),
            remedy: String::new(),
            holder: Pid(0),
            which: 0,
            passing: false,
        }
    }

    /// It is over by itself in a moment.
    pub fn passing(mut self) -> Blocker {
        self.passing = true;
        self
    }

    pub fn why(mut self, why: impl Into<String>) -> Blocker {
        self.why = why.into();
        self
    }

    pub fn remedy(mut self, remedy: impl Into<String>) -> Blocker {
        self.remedy = remedy.into();
        self
    }

    pub fn held_by(mut self, holder: Pid) -> Blocker {
        self.holder = holder;
        self
    }

    /// It alone, as an error.
    pub fn refuse(self) -> Error {
        Error::Refused(vec![self])
    }
}

fn is_nobody(pid: &Pid) -> bool {
    pid.0 == 0
}

impl fmt::Display for Blocker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(pid) = self.pid {
            write!(f, "pid {pid}")?;
            if !self.place.is_empty() {
                f.write_str(", ")?;
            }
        }
        f.write_str(&self.place)?;
        if !self.object.is_empty() {
            write!(f, ": {}", self.object)?;
        }
        if !self.why.is_empty() {
            write!(f, ": {}", self.why)?;
        }
        if !self.remedy.is_empty() {
            write!(f, "; {}", self.remedy)?;
        }
        Ok(())
    }
}

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub enum Error {
    /// freeze looked and said no: all reasons at once, the target untouched.
    Refused(Vec<Blocker>),
    /// A system call failed.
    Kernel {
        call: String,
        object: String,
        errno: Errno,
        fate: Fate,
    },
    /// A process ended while it was being worked on.
    Died { pid: Pid, how: String },
    /// An image is damaged, incomplete or from another version.
    Image {
        file: PathBuf,
        offset: Option<u64>,
        expected: String,
        found: String,
    },
}

impl Error {
    /// A failed system call on an object; the fate is set by whoever undoes.
    pub fn kernel(call: impl Into<String>, object: impl Into<String>, errno: Errno) -> Error {
        Error::Kernel {
            call: call.into(),
            object: object.into(),
            errno,
            fate: Fate::Untouched,
        }
    }

    /// A failed std::io operation on an object.
    pub fn io(call: impl Into<String>, object: impl Into<String>, e: &std::io::Error) -> Error {
        Error::kernel(call, object, errno(e))
    }

    /// The same error, telling what became of the target.
    pub fn fate(self, fate: Fate) -> Error {
        match self {
            Error::Kernel {
                call, object, errno, ..
            } => Error::Kernel {
                call,
                object,
                errno,
                fate,
            },
            other => other,
        }
    }

    /// Whether something did not answer in time: this thread may trace it still, and cannot try again.
    pub fn is_late(&self) -> bool {
        matches!(
            self,
            Error::Kernel {
                errno: Errno::ETIMEDOUT,
                ..
            }
        )
    }

    /// The exit status of the commands for this error: 3 refused, 4 kernel, 5 died, 6 image.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Refused(_) => 3,
            Error::Kernel { .. } => 4,
            Error::Died { .. } => 5,
            Error::Image { .. } => 6,
        }
    }

    /// One word for machines: `refused`, `kernel`, `died` or `image`.
    pub fn kind(&self) -> &'static str {
        match self {
            Error::Refused(_) => "refused",
            Error::Kernel { .. } => "kernel",
            Error::Died { .. } => "died",
            Error::Image { .. } => "image",
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Refused(list) => {
                let s = if list.len() == 1 { "" } else { "s" };
                write!(f, "refused, {} reason{s}:", list.len())?;
                for b in list {
                    write!(f, "\n  {b}")?;
                }
                Ok(())
            }
            Error::Kernel {
                call,
                object,
                errno,
                fate,
            } => {
                write!(f, "{object}: {call}: {} ({errno:?}); {fate}", errno.desc())
            }
            Error::Died { pid, how } => write!(f, "pid {pid} {how}"),
            Error::Image {
                file,
                offset,
                expected,
                found,
            } => {
                write!(f, "{}", file.display())?;
                if let Some(offset) = offset {
                    write!(f, ", offset {offset}")?;
                }
                write!(f, ": expected {expected}, found {found}")
            }
        }
    }
}

impl std::error::Error for Error {}

/// What the kernel said; EIO for what was not the kernel's.
pub fn errno(e: impl std::borrow::Borrow<std::io::Error>) -> Errno {
    Errno::from_raw(e.borrow().raw_os_error().unwrap_or(libc::EIO))
}

/// Turns the result of a nix or std call into one of ours, naming the object.
pub trait Context<T> {
    /// Names the call and the object it was made on; the object is built only on failure.
    fn on<S: Into<String>>(self, call: &str, object: impl FnOnce() -> S) -> Result<T>;
}

impl<T> Context<T> for nix::Result<T> {
    fn on<S: Into<String>>(self, call: &str, object: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|errno| Error::kernel(call, object(), errno))
    }
}

impl<T> Context<T> for std::io::Result<T> {
    fn on<S: Into<String>>(self, call: &str, object: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|e| Error::io(call, object(), &e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_lists_every_reason() {
        let e = Error::Refused(vec![
            Blocker::of(Pid(42), "fd 7", "io_uring")
                .why("requests in flight")
                .remedy("wait for them"),
            Blocker::at("/tmp/x", "").why("is gone"),
        ]);
        assert_eq!(
            e.to_string(),
            "refused, 2 reasons:\n  pid 42, fd 7: io_uring: requests in flight; wait for them\n  /tmp/x: is gone"
        );
        assert_eq!(e.exit_code(), 3);
    }

    #[test]
    fn a_failed_call_tells_the_fate() {
        let e = Error::kernel("openat", "/x", Errno::ENOSPC).fate(Fate::PutBack);
        assert_eq!(
            e.to_string(),
            "/x: openat: No space left on device (ENOSPC); the target runs on as it was found"
        );
    }
}
