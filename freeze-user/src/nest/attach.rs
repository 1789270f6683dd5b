//! Ends that the restorer supplies in place of what was recorded: descriptors of its own, or paths.

use crate::error::{Blocker, Context, Result};
use crate::observe::ends::Object;
use crate::sys;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::str::FromStr;

/// What is given in place of an object of the checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attach {
    pub object: Object,
    pub to: To,
}

/// Where it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum To {
    /// A descriptor of freeze itself.
    Fd(RawFd),
    /// Opened as the recorded one was; a unix socket's name is connected to.
    Path(PathBuf),
}

impl FromStr for Attach {
    type Err = String;

    fn from_str(text: &str) -> Result<Attach, String> {
        let (object, to) = text
            .rsplit_once('=')
            .ok_or("not of the form OBJECT=FD or OBJECT=PATH")?;
        let to = match to.strip_prefix("fd:").unwrap_or(to).parse() {
            Ok(fd) => To::Fd(fd),
            Err(_) if to.starts_with('/') || to.starts_with('.') => To::Path(to.into()),
            Err(_) => return Err(format!("{to:?} is neither a descriptor nor a path")),
        };
        Ok(Attach {
            object: object.parse()?,
            to,
        })
    }
}

impl Attach {
    /// Makes the descriptor; `flags` are those of the recorded one.
    pub fn open(&self, flags: i32) -> Result<OwnedFd> {
        let path = match &self.to {
            To::Fd(fd) => {
                return duplicate(*fd).on("fcntl(F_DUPFD)", || format!("descriptor {fd} of freeze"));
            }
            To::Path(path) => path,
        };
        let name = || path.display().to_string();
        use std::os::unix::fs::FileTypeExt;
        if std::fs::metadata(path).is_ok_and(|m| m.file_type().is_socket()) {
            let fd = sys::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0).on("socket", name)?;
            let address = sys::unixname::address_of(&path.to_string_lossy());
            sys::socket_to(fd.as_fd(), true, &address).on("connect", name)?;
            return Ok(fd);
        }
        let keep = libc::O_ACCMODE | libc::O_APPEND;
        // A fifo without its other end must not make us wait.
        let wanted = OFlag::from_bits_truncate(flags & keep) | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
        let fd = nix::fcntl::open(path, wanted | OFlag::O_NONBLOCK, Mode::empty()).on("open", name)?;
        sys::fcntl(
            fd.as_fd(),
            libc::F_SETFL,
            (flags & (keep | libc::O_NONBLOCK)) as u64,
        )
        .on("fcntl(F_SETFL)", name)?;
        Ok(fd)
    }

    /// Adds what is in the way, before anything is built.
    pub fn precheck(&self, out: &mut Vec<Blocker>) {
        let missing = match &self.to {
            To::Fd(fd) => duplicate(*fd)
                .is_err()
                .then(|| format!("freeze has no descriptor {fd}")),
            To::Path(path) => std::fs::metadata(path)
                .err()
                .map(|e| format!("{} cannot be looked at: {e}", path.display())),
        };
        if let Some(why) = missing {
            out.push(
                Blocker::at(self.object.to_string(), "what is to be attached")
                    .why(why)
                    .remedy("name one that is there"),
            );
        }
    }
}

/// A duplicate of a descriptor that freeze was started with.
fn duplicate(fd: RawFd) -> nix::Result<OwnedFd> {
    sys::inherited(fd, |fd: BorrowedFd<'_>| sys::dup_above(fd, 3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Pid;

    #[test]
    fn ends_are_named_on_both_sides() {
        let of = |text: &str| text.parse::<Attach>();
        let expected = |object, to| Ok(Attach { object, to });
        assert_eq!(of("1=1"), expected(Object::FirstFd(1), To::Fd(1)));
        assert_eq!(
            of("7:1=/dev/null"),
            expected(Object::Fd(Pid(7), 1), To::Path("/dev/null".into()))
        );
        assert_eq!(
            of("pipe:[5]=fd:3"),
            expected(Object::Link(b"pipe:[5]".to_vec()), To::Fd(3))
        );
        assert!(of("1").is_err() && of("1=out").is_err());
    }
}
