//! Options of sockets as they were read at an earlier stop: some ninety calls for each, which need not be made again while
//! nobody can have changed any.

use crate::observe::peek::arrived::Sockets;
use crate::observe::view::{FdView, View};
use crate::sys::getsockopt;
use crate::sys::socket::set_option;
use crate::sys::sockopt::{self, Options, SocketOption};
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;

/// What changes without a call that sets it: room that grows with the traffic, by which processor that comes, how far a look
/// ahead has come, and the name of a device.
const LIVE: [(i32, i32); 6] = [
    (libc::SOL_SOCKET, libc::SO_INCOMING_CPU),
    (libc::SOL_SOCKET, libc::SO_SNDBUF),
    (libc::SOL_SOCKET, libc::SO_RCVBUF),
    (libc::SOL_SOCKET, libc::SO_BINDTODEVICE),
    (libc::SOL_SOCKET, libc::SO_PEEK_OFF),
    (libc::IPPROTO_TCP, libc::TCP_WINDOW_CLAMP),
];

/// The options that are known.
#[derive(Debug, Default)]
pub struct Known {
    /// How often options had been changed when they were read; `None` if nothing tells.
    since: Option<u64>,
    /// By cookie (SO_COOKIE), which no other socket will ever have.
    earlier: HashMap<u64, Tuned>,
    now: HashMap<u64, Tuned>,
}

#[derive(Debug)]
struct Tuned {
    /// Which options were asked for.
    sets: Vec<&'static Options>,
    options: Vec<SocketOption>,
}

impl Known {
    /// Another stop begins, at which options had been changed so often. Nothing that the last one did not need is kept.
    pub fn at(mut self, count: Option<u64>) -> Known {
        let holds = count.is_some() && count == self.since;
        Known {
            since: count,
            earlier: match holds {
                true => std::mem::take(&mut self.now),
                false => HashMap::new(),
            },
            now: HashMap::new(),
        }
    }

    /// The options of a socket, which its process has as `fd`.
    pub fn read(
        &mut self,
        fd: &FdView,
        held: BorrowedFd<'_>,
        sets: &[&'static Options],
        view: &View,
    ) -> Vec<SocketOption> {
        // Whoever else holds it is not watched.
        let alone = self.since.is_some() && !view.outside.contains_key(&fd.link);
        let Some(cookie) = alone.then(|| cookie(held)).flatten() else {
            return read_all(fd, held, sets);
        };
        let same = |t: &Tuned| {
            let mut pairs = t.sets.iter().zip(sets);
            t.sets.len() == sets.len() && pairs.all(|(a, b)| std::ptr::eq(*a, *b))
        };
        let known = self.earlier.remove(&cookie).filter(same);
        let options = match known {
            Some(Tuned { mut options, .. }) => {
                for option in options.iter_mut().filter(|o| LIVE.contains(&(o.level, o.name))) {
                    sockopt::refresh(held, option);
                }
                options
            }
            None => read_all(fd, held, sets),
        };
        let tuned = Tuned {
            sets: sets.to_vec(),
            options: options.clone(),
        };
        self.now.insert(cookie, tuned);
        options
    }
}

/// The options that a socket has, with one that the kernel takes from a unix socket and tells nobody.
fn read_all(fd: &FdView, held: BorrowedFd<'_>, sets: &[&'static Options]) -> Vec<SocketOption> {
    let mut all = sockopt::read(held, sets);
    let unix = fd.protocol.starts_with("UNIX") && has_untold();
    if unix && Sockets::get().and_then(|s| s.tells_rest(held)) == Some(true) {
        all.push(SocketOption {
            level: libc::SOL_SOCKET,
            name: SO_INQ,
            value: 1i32.to_ne_bytes().to_vec(),
        });
    }
    all
}

/// Tells how much more waits in a unix stream with each message (since Linux 6.17), and whether it does to nobody.
const SO_INQ: i32 = 84;

/// Whether this kernel has that option, for which unix sockets must be looked into: to learn how takes a while, which the
/// pause shall not and other kernels need not.
pub fn has_untold() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| {
        let pair = UnixStream::pair();
        pair.is_ok_and(|(one, _)| set_option(one.as_fd(), libc::SOL_SOCKET, SO_INQ, 1).is_ok())
    })
}

fn cookie(held: BorrowedFd<'_>) -> Option<u64> {
    const SO_COOKIE: i32 = 57;
    let mut cookie = [0; 8];
    getsockopt(held, libc::SOL_SOCKET, SO_COOKIE, &mut cookie).ok()?;
    Some(u64::from_ne_bytes(cookie))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Pid;
    use crate::observe::view::read_fd;
    use crate::sys::socket::set_option;
    use std::os::fd::{AsFd, AsRawFd};

    #[test]
    fn what_is_known_is_read_again_only_if_something_may_have_changed() {
        let socket = crate::sys::socket(libc::AF_INET, libc::SOCK_STREAM, 0).unwrap();
        let held = socket.as_fd();
        let fd = read_fd(Pid(std::process::id() as i32), socket.as_raw_fd()).unwrap();
        let view = View::default();
        let sets = [&sockopt::GENERAL, &sockopt::TCP];
        let truth = || sockopt::read(held, &sets);
        let set = |option, value| set_option(held, libc::SOL_SOCKET, option, value).unwrap();

        let mut known = Known::default().at(Some(1));
        let first = known.read(&fd, held, &sets, &view);
        assert_eq!(first, truth());
        set(libc::SO_KEEPALIVE, 1);
        // Nobody told.
        let mut known = known.at(Some(1));
        assert_eq!(known.read(&fd, held, &sets, &view), first);
        // What changes by itself is looked at all the same.
        set(libc::SO_KEEPALIVE, 0);
        set(libc::SO_RCVBUF, 20_000);
        let mut known = known.at(Some(1));
        let room = |all: &[SocketOption]| {
            let mut all = all.iter();
            all.find(|o| o.name == libc::SO_RCVBUF).cloned()
        };
        assert_eq!(room(&known.read(&fd, held, &sets, &view)), room(&truth()));
        set(libc::SO_KEEPALIVE, 1);
        for count in [Some(2), None, Some(2)] {
            known = known.at(count);
            assert_eq!(known.read(&fd, held, &sets, &view), truth());
        }
        // Other options are asked for.
        let mut known = known.at(Some(2));
        let sets = [&sockopt::GENERAL];
        assert_eq!(known.read(&fd, held, &sets, &view), sockopt::read(held, &sets));
    }
}
