//! What the user decided about pipes, sockets and the like whose other end lies outside the set.

use super::view::FdView;
use crate::ids::Pid;
use std::fmt;
use std::str::FromStr;

/// An object as a user names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// `all`: every one.
    All,
    /// `4242:7`: a descriptor of a process.
    Fd(Pid, i32),
    /// `7`: a descriptor of the first process.
    FirstFd(i32),
    /// `pipe:[123]`, `socket:[5]`, a path: what /proc/PID/fd shows.
    Link(Vec<u8>),
}

impl FromStr for Object {
    type Err = String;

    fn from_str(text: &str) -> Result<Object, String> {
        let text = text.strip_prefix("fd ").unwrap_or(text);
        if text == "all" {
            return Ok(Object::All);
        }
        if let Ok(fd) = text.parse() {
            return Ok(Object::FirstFd(fd));
        }
        if let Some((pid, fd)) = text.split_once(':')
            && let (Ok(pid), Ok(fd)) = (pid.parse(), fd.parse())
        {
            return Ok(Object::Fd(Pid(pid), fd));
        }
        if text.starts_with('/') || text.ends_with(']') && text.contains(":[") {
            return Ok(Object::Link(text.as_bytes().to_vec()));
        }
        Err("neither PID:FD, nor FD, nor pipe:[N] or socket:[N], nor a path, nor all".into())
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Object::All => f.write_str("all"),
            Object::Fd(pid, fd) => write!(f, "{pid}:{fd}"),
            Object::FirstFd(fd) => write!(f, "{fd}"),
            Object::Link(link) => f.write_str(&String::from_utf8_lossy(link)),
        }
    }
}

impl Object {
    /// Whether it is this descriptor of a set whose first process is `first`.
    pub fn is(&self, pid: Pid, fd: i32, link: &[u8], first: Pid) -> bool {
        match self {
            Object::All => true,
            Object::Fd(p, n) => (*p, *n) == (pid, fd),
            Object::FirstFd(n) => (first, *n) == (pid, fd),
            Object::Link(l) => l == link,
        }
    }
}

/// What a checkpoint does about ends outside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ends {
    /// The processes will be ended: TCP connections to outside are carried, held shut in between.
    pub kill: bool,
    /// TCP connections to outside are recorded although the processes run on with them.
    pub tcp: bool,
    /// Objects whose ends outside are given up: after a restore the program finds them closed.
    pub cut: Vec<Object>,
    /// The first process, which plain descriptor numbers mean.
    pub first: Option<Pid>,
}

impl Ends {
    /// Of a set that is watched: after a crash connections to outside are found broken, as they are without freeze.
    pub fn watched() -> Ends {
        Ends {
            tcp: true,
            ..Ends::default()
        }
    }

    /// Whether the other end of what this descriptor leads to is given up.
    pub fn cut(&self, fd: &FdView) -> bool {
        self.cut
            .iter()
            .any(|o| o.is(fd.pid, fd.fd, &fd.link, self.first.unwrap_or(Pid(0))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_named_as_they_show() {
        for (text, expected) in [
            ("all", Object::All),
            ("7", Object::FirstFd(7)),
            ("12:7", Object::Fd(Pid(12), 7)),
            ("fd 12:7", Object::Fd(Pid(12), 7)),
            ("pipe:[5]", Object::Link(b"pipe:[5]".to_vec())),
            ("/run/x", Object::Link(b"/run/x".to_vec())),
        ] {
            assert_eq!(text.parse::<Object>().as_ref(), Ok(&expected), "{text}");
        }
        assert!("pipe 5".parse::<Object>().is_err());
    }
}
