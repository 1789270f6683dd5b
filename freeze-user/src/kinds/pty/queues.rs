//! What is under way between the two sides of a pseudo terminal: taken out, and put back so that all of it fits.
//!
//! What one side writes lies in the line discipline of the other, and once that is full in buffers before it. How much
//! those take depends on how they were filled, so they are filled again in the way that uses them best.

use super::{CC, IFLAG, canonical, flag, literal};
use crate::kinds::pipe::Bytes;
use crate::sys::{
    self,
    events::{Termios, ioctl_word, set_termios},
};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};
use std::os::fd::BorrowedFd;
use std::time::Duration;

/// Typed by the master, not read by the slave side yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Input {
    /// What single reads bring in canonical mode: a line each, with its newline unless it was ended otherwise.
    pub lines: Vec<Bytes>,
    /// What has no end yet; in other modes everything.
    pub rest: Bytes,
    /// What came when the line discipline was full, and which it has not looked at.
    #[serde(default)]
    pub ahead: Bytes,
}

/// What a line discipline holds at most; more waits before it, not looked at yet.
pub(super) const FULL: usize = 4095;

pub(super) fn ready(fd: BorrowedFd<'_>, wanted: PollFlags, wait: PollTimeout) -> nix::Result<bool> {
    let mut fds = [PollFd::new(fd, wanted)];
    poll(&mut fds, wait)?;
    Ok(fds[0].revents().is_some_and(|found| found.contains(wanted)))
}

/// Whether the side can be written to now.
pub(super) fn writable(fd: BorrowedFd<'_>) -> nix::Result<bool> {
    ready(fd, PollFlags::POLLOUT, PollTimeout::ZERO)
}

/// A description that does not wait, whatever its flags were, which it gets back when this is dropped.
pub(super) struct Unwaiting<'a>(BorrowedFd<'a>, i64);

impl<'a> Unwaiting<'a> {
    pub(super) fn new(fd: BorrowedFd<'a>) -> nix::Result<Unwaiting<'a>> {
        let flags = sys::fcntl(fd, libc::F_GETFL, 0)?;
        sys::fcntl(fd, libc::F_SETFL, flags as u64 | libc::O_NONBLOCK as u64)?;
        Ok(Unwaiting(fd, flags))
    }
}

impl Drop for Unwaiting<'_> {
    fn drop(&mut self) {
        let _ = sys::fcntl(self.0, libc::F_SETFL, self.1 as u64);
    }
}

/// Adds everything that can be read without waiting.
pub(super) fn drain(fd: BorrowedFd<'_>, into: &mut Vec<u8>) -> nix::Result<()> {
    let mut buf = [0; 4096];
    while ready(fd, PollFlags::POLLIN, PollTimeout::ZERO)? {
        match nix::unistd::read(fd, &mut buf) {
            // The end of a master whose other side is closed.
            Ok(0) | Err(Errno::EIO | Errno::EAGAIN) => break,
            Ok(n) => into.extend_from_slice(&buf[..n]),
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Takes out what the slave side has to read, and leaves it with settings under which what comes is taken as it is.
pub(super) fn take_input(slave: BorrowedFd<'_>, found: &Termios, input: &mut Input) -> nix::Result<()> {
    // What waits before a full line discipline moves up as room is made, and must not be acted on.
    set_termios(slave, &literal(found, canonical(found)))?;
    let mut places = 0;
    if canonical(found) {
        let mut buf = [0; 4096];
        while ready(slave, PollFlags::POLLIN, PollTimeout::ZERO)? {
            let n = nix::unistd::read(slave, &mut buf)?;
            let line = &buf[..n];
            let before = places;
            // The end of a line that is no newline takes a place too.
            places += n + usize::from(line.last() != Some(&b'\n'));
            if places <= FULL {
                input.lines.push(Bytes(line.to_vec()));
            } else {
                let (here, ahead) = line.split_at(n.min(FULL.saturating_sub(before)));
                input.rest.0.extend_from_slice(here);
                input.ahead.0.extend_from_slice(ahead);
            }
        }
    }
    set_termios(slave, &literal(found, false))?;
    let mut left = Vec::new();
    let drained = drain(slave, &mut left);
    let (here, ahead) = left.split_at(left.len().min(FULL.saturating_sub(places)));
    input.rest.0.extend_from_slice(here);
    input.ahead.0.extend_from_slice(ahead);
    drained
}

/// Puts back what the slave side has to read; afterwards it has its settings.
pub(super) fn put_input(
    slave: BorrowedFd<'_>,
    master: BorrowedFd<'_>,
    found: &Termios,
    input: &Input,
) -> nix::Result<()> {
    const END: u8 = 4;
    const QUOTE: u8 = 22;
    let mut plain = literal(found, canonical(found));
    if canonical(found) {
        plain[CC + libc::VEOF] = END;
        plain[CC + libc::VLNEXT] = QUOTE;
    }
    if !input.ahead.0.is_empty() {
        set_termios(slave, &literal(found, false))?;
        level(master, slave)?;
    }
    set_termios(slave, &plain)?;
    if !canonical(found) {
        let all = [&input.rest.0[..], &input.ahead.0].concat();
        put_back(master, slave, &all)?;
        return set_termios(slave, found);
    }
    let quoted = |bytes: &[u8]| {
        bytes.iter().try_for_each(|byte| {
            if [b'\n', END, QUOTE].contains(byte) {
                type_in(slave, QUOTE)?;
            }
            type_in(slave, *byte)
        })
    };
    for line in &input.lines {
        let (body, end) = match line.0.split_last() {
            Some((b'\n', body)) => (body, b'\n'),
            _ => (&line.0[..], END),
        };
        quoted(body)?;
        type_in(slave, end)?;
    }
    quoted(&input.rest.0)?;
    if fill(master, &input.ahead.0)? < input.ahead.0.len() {
        return Err(Errno::ENOSPC);
    }
    set_termios(slave, found)
}

/// TIOCSTI: one character into the line discipline, which has dealt with it on return.
pub(super) fn type_in(side: BorrowedFd<'_>, byte: u8) -> nix::Result<()> {
    ioctl_word(side, libc::TIOCSTI, u64::from(byte))
}

/// Lets `to` have `bytes` to read as if `from` had written them; both do not wait, and take everything as it is.
///
/// All that a pty has ever held fits again. Only where the kernel has no memory at that moment it is tried again.
pub(super) fn put_back(from: BorrowedFd<'_>, to: BorrowedFd<'_>, bytes: &[u8]) -> nix::Result<()> {
    let (held, more) = bytes.split_at(bytes.len().min(FULL));
    for again in 0..10 {
        if again > 0 {
            drain(to, &mut Vec::new())?;
            stock(from, to)?;
        }
        if !more.is_empty() {
            level(from, to)?;
        }
        held.iter().try_for_each(|b| type_in(to, *b))?;
        if more.is_empty() || fill(from, more)? == more.len() {
            return Ok(());
        }
        if again > 0 {
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    Err(Errno::ENOSPC)
}

/// Lets as many of the smallest buffers be made as there can be; see `fill`. The pty is empty, and is so afterwards.
fn stock(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> nix::Result<()> {
    level(from, to)?;
    std::iter::repeat_n(b' ', FULL).try_for_each(|b| type_in(to, b))?;
    while blocks(from, &[b' '; 512], 256)? > 0 {}
    drain(to, &mut Vec::new())
}

/// Leaves the empty buffers before `to` in a known state: the last one small, and used up.
///
/// A buffer counts as taken until there is another one and it has been read to its end, so the last one stays, and
/// may be a large one of which little can be used. A buffer holds twice the size it is counted with, which is at least
/// 256: fourteen times 256 bytes go beyond any, and end in one of that size, full or half full. The first 512 bytes
/// then make a new one either way, and the next ones fill it.
fn level(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> nix::Result<()> {
    for size in [256; 14].into_iter().chain([512; 2]) {
        let written = some(from, &[b' '; 512][..size])?;
        let mut back = Vec::new();
        while back.len() < written && ready(to, PollFlags::POLLIN, PollTimeout::from(1000u16))? {
            drain(to, &mut back)?;
        }
    }
    Ok(())
}

/// Writes to the buffers before the full line discipline of the other side; tells how much they took.
///
/// A new buffer is made as long as those there are count 8192 at most, so as much as possible is in them where they
/// count exactly that, all of them full, before one of the largest is made. The smallest are different: those that
/// were used once are kept, and used again beyond every limit, which gives more room where that has happened before.
fn fill(from: BorrowedFd<'_>, bytes: &[u8]) -> nix::Result<usize> {
    const LIMIT: usize = 8192;
    let mut put = 0;
    // All but the last of those up to the limit; until the one that `level` left is given up, it counts in its place.
    put += blocks(from, &bytes[..bytes.len().min(2 * (LIMIT - 512))], 512)?;
    if put < bytes.len() {
        for _ in 0..1000 {
            if writable(from)? {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        put += blocks(from, &bytes[put..bytes.len().min(2 * LIMIT)], 512)?;
        put += blocks(from, &bytes[put..], 2048)?;
        put += blocks(from, &bytes[put..], 256)?;
    }
    Ok(put)
}

/// Writes in blocks of `size` until no more is taken; tells how much was.
fn blocks(from: BorrowedFd<'_>, bytes: &[u8], size: usize) -> nix::Result<usize> {
    let mut put = 0;
    while put < bytes.len() {
        let end = bytes.len().min(put + size);
        match some(from, &bytes[put..end])? {
            0 => break,
            n => put += n,
        }
    }
    Ok(put)
}

fn some(from: BorrowedFd<'_>, bytes: &[u8]) -> nix::Result<usize> {
    match nix::unistd::write(from, bytes) {
        Err(Errno::EAGAIN) => Ok(0),
        other => other,
    }
}

/// Whether the line discipline doubles some of what is typed (PARMRK), so that it is full before it holds most.
pub(super) fn doubles(found: &Termios) -> bool {
    flag(found, IFLAG) & libc::PARMRK != 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::events::termios;
    use std::os::fd::{AsFd, OwnedFd};

    /// Master and slave side, of which neither waits.
    fn pair(canonical: bool) -> (OwnedFd, OwnedFd, Termios) {
        let pair = nix::pty::openpty(None, None).unwrap();
        let found = termios(pair.slave.as_fd()).unwrap();
        for side in [&pair.master, &pair.slave] {
            sys::fcntl(
                side.as_fd(),
                libc::F_SETFL,
                (libc::O_RDWR | libc::O_NONBLOCK) as u64,
            )
            .unwrap();
        }
        let plain = literal(&found, canonical);
        set_termios(pair.slave.as_fd(), &plain).unwrap();
        (pair.master, pair.slave, plain)
    }

    fn held(to: &OwnedFd) -> Vec<u8> {
        let mut out = Vec::new();
        drain(to.as_fd(), &mut out).unwrap();
        out
    }

    fn write_all_that_fits(from: &OwnedFd, size: usize) {
        let text: Vec<u8> = (0..size).map(|i| (i * 7 + i / 251) as u8).collect();
        while some(from.as_fd(), &text).unwrap() > 0 {}
    }

    #[test]
    fn what_a_pty_has_held_fits_again() {
        let sizes = [1, 100, 256, 300, 512, 1000, 2048];
        let ways = sizes.iter().flat_map(|a| sizes.iter().map(move |b| (*a, *b)));
        let mut most = 0;
        for (before, now) in ways {
            let (master, slave, _) = pair(false);
            let (from, to) = if before < now {
                (&slave, &master)
            } else {
                (&master, &slave)
            };
            for _ in 0..3 {
                write_all_that_fits(from, before);
                held(to);
            }
            for size in [now, 256, 1, 1] {
                write_all_that_fits(from, size);
                std::thread::sleep(Duration::from_millis(2));
            }
            let all = held(to);
            most = most.max(all.len());
            put_back(from.as_fd(), to.as_fd(), &all).unwrap();
            assert_eq!(held(to), all, "{before} {now}");
            let (master, slave, _) = pair(false);
            let (from, to) = if before < now {
                (&slave, &master)
            } else {
                (&master, &slave)
            };
            put_back(from.as_fd(), to.as_fd(), &all).unwrap();
            assert_eq!(held(to), all, "{before} {now}, made anew");
        }
        assert!(most > FULL + 3 * 8192, "{most} is not all that can be");
    }

    #[test]
    fn lines_are_put_back_whatever_is_in_them() {
        let (master, slave, found) = pair(true);
        let every: Vec<u8> = (0..=255).collect();
        let mut input = Input {
            lines: vec![Bytes([&every[..], b"\n"].concat()), Bytes(every.clone())],
            ..Input::default()
        };
        input.lines.extend([Bytes(Vec::new()), Bytes(vec![b'x'; 3000])]);
        input.rest = Bytes(every[5..].to_vec());
        for ahead in [0, 300, 9000] {
            input.rest.0.resize(
                if ahead == 0 {
                    251
                } else {
                    4095 - 257 - 257 - 1 - 3001
                },
                b'r',
            );
            input.ahead.0 = vec![b'\n'; ahead];
            put_input(slave.as_fd(), master.as_fd(), &found, &input).unwrap();
            let mut again = Input::default();
            take_input(slave.as_fd(), &found, &mut again).unwrap();
            assert_eq!(again, input, "{ahead}");
        }
    }
}
