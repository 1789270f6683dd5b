//! TCP connections taken apart and put together by repair mode (TCP_REPAIR, Linux 3.5 and later; needs CAP_NET_ADMIN).

use super::socket::{Meanwhile, option, send, set_option};
use super::sockopt::Roomy;
use super::{Sys, getsockopt, ioctl_int, setsockopt, socket_to};
use nix::errno::Errno;
use std::os::fd::BorrowedFd;

const TCP: i32 = libc::IPPROTO_TCP;
const TCP_REPAIR: i32 = 19;
const TCP_REPAIR_QUEUE: i32 = 20;
const TCP_QUEUE_SEQ: i32 = 21;
const TCP_REPAIR_OPTIONS: i32 = 22;
const TCP_TIMESTAMP: i32 = 24;
const TCP_REPAIR_WINDOW: i32 = 29;
const RECEIVE_QUEUE: i32 = 1;
const SEND_QUEUE: i32 = 2;

/// States as TCP_INFO tells them.
pub mod state {
    pub const ESTABLISHED: u8 = 1;
    pub const SYN_SENT: u8 = 2;
    pub const FIN_WAIT1: u8 = 4;
    pub const FIN_WAIT2: u8 = 5;
    pub const CLOSE: u8 = 7;
    pub const CLOSE_WAIT: u8 = 8;
    pub const LAST_ACK: u8 = 9;
    pub const LISTEN: u8 = 10;
    pub const CLOSING: u8 = 11;

    /// Whether the own half is shut in this state.
    pub fn fin_sent(state: u8) -> bool {
        matches!(state, FIN_WAIT1 | FIN_WAIT2 | LAST_ACK | CLOSING)
    }

    /// Whether the other's half is shut.
    pub fn fin_received(state: u8) -> bool {
        matches!(state, CLOSE_WAIT | LAST_ACK | CLOSING)
    }
}

/// What `struct tcp_info` begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    pub state: u8,
    /// `TCPI_OPT_*`: 1 timestamps, 2 selective acknowledgement, 4 window scaling.
    pub options: u8,
    /// By how many bits the other's, and the own, window is scaled.
    pub scales: (u8, u8),
    /// Of a listening socket: how many wait to be accepted, and how many may.
    pub waiting: u32,
    pub backlog: u32,
}

/// TCP_INFO.
pub fn info(fd: BorrowedFd<'_>) -> Sys<Info> {
    let mut bytes = [0; 104];
    getsockopt(fd, TCP, libc::TCP_INFO, &mut bytes)?;
    let word = |at: usize| bytes[at..].first_chunk().map_or(0, |w| u32::from_ne_bytes(*w));
    Ok(Info {
        state: bytes[0],
        options: bytes[5],
        scales: (bytes[6] & 15, bytes[6] >> 4),
        // tcpi_unacked and tcpi_sacked have a meaning of their own in a listening socket.
        waiting: word(24),
        backlog: word(28),
    })
}

/// A connection apart from its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stream {
    /// What was received and not read.
    pub received: Vec<u8>,
    /// The sequence number after it.
    pub receive_next: u32,
    /// What was written and not acknowledged.
    pub written: Vec<u8>,
    /// How much at its end was not even sent.
    pub unsent: u32,
    /// The sequence number after it.
    pub send_next: u32,
    pub mss: u32,
    pub scales: Option<(u8, u8)>,
    pub selective: bool,
    /// The clock of its timestamps, if it has them.
    pub timestamp: Option<u32>,
    /// snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup.
    pub window: [u32; 5],
    pub fin_sent: bool,
    pub fin_received: bool,
}

/// Puts a socket into repair mode for as long as the result lives; address reuse, which leaving it changes, is put back.
struct Repair<'a>(BorrowedFd<'a>, i32);

impl<'a> Repair<'a> {
    fn begin(fd: BorrowedFd<'a>) -> Sys<Repair<'a>> {
        let reuse = option(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR)?;
        set_option(fd, TCP, TCP_REPAIR, 1)?;
        Ok(Repair(fd, reuse))
    }
}

impl Drop for Repair<'_> {
    fn drop(&mut self) {
        // Without a probe of the other's window (-1), so that nothing shows on the wire.
        let _ = set_option(self.0, TCP, TCP_REPAIR, -1);
        let _ = set_option(self.0, libc::SOL_SOCKET, libc::SO_REUSEADDR, self.1);
    }
}

/// Makes the closing of a connected socket silent: nothing is sent, and nothing remains of it.
pub fn silence(fd: BorrowedFd<'_>) -> Sys<()> {
    set_option(fd, TCP, TCP_REPAIR, 1)
}

/// `TCP_MIN_MSS`, `TCP_MSS_DEFAULT`, `MAX_TCP_WINDOW`.
const LEAST_MSS: u32 = 88;
const DEFAULT_MSS: u32 = 536;
const MAX_TCP_WINDOW: u32 = 32767;

/// How often a connection is read again that changes while it is read: what is on its way arrives in the meantime.
const LOOKS: usize = 200;

/// Reads a connection, which goes on undisturbed.
pub fn read(fd: BorrowedFd<'_>) -> Sys<Stream> {
    for _ in 0..LOOKS {
        match read_once(fd) {
            Err(Errno::EIO) => std::thread::sleep(std::time::Duration::from_micros(200)),
            done => return done,
        }
    }
    Err(Errno::EAGAIN)
}

/// Reads both ends of a connection so that they fit each other: neither has what the other did not send, and neither
/// was told that something arrived which the other does not have. The one is unchanged from before to after the
/// other is read, so all that it had been told then, the other had said.
pub fn read_both(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> Sys<(Stream, Stream)> {
    let counters = |s: &Stream| {
        (
            s.receive_next,
            s.send_next,
            s.received.len(),
            s.written.len(),
            s.unsent,
            s.fin_sent,
            s.fin_received,
        )
    };
    let mut before = read(one)?;
    for _ in 0..LOOKS {
        let theirs = read(other)?;
        let after = read(one)?;
        if counters(&before) == counters(&after) {
            return Ok((after, theirs));
        }
        before = after;
        std::thread::sleep(std::time::Duration::from_micros(200));
    }
    Err(Errno::EAGAIN)
}

fn read_once(fd: BorrowedFd<'_>) -> Sys<Stream> {
    const SIOCOUTQNSD: u64 = 0x894b;
    let info = info(fd)?;
    let repair = Repair::begin(fd)?;
    let count = |request| ioctl_int(fd, request).map(|n| n.max(0) as u32);
    let (mut outstanding, mut unsent) = (count(libc::TIOCOUTQ)?, count(SIOCOUTQNSD)?);
    let queue = |which| -> Sys<u32> {
        set_option(fd, TCP, TCP_REPAIR_QUEUE, which)?;
        option(fd, TCP, TCP_QUEUE_SEQ).map(|n| n as u32)
    };
    let mut receive_next = queue(RECEIVE_QUEUE)?;
    let announced = count(libc::FIONREAD)?;
    let received = peek_all(fd, announced as usize)?;
    let mut send_next = queue(SEND_QUEUE)?;
    let (receive_then, outstanding_then, unsent_then) = (receive_next, outstanding, unsent);
    let (fin_sent, fin_received) = (state::fin_sent(info.state), state::fin_received(info.state));
    // Either FIN has a sequence number of its own, which is no data.
    if fin_received {
        receive_next = receive_next.wrapping_sub(1);
    }
    if fin_sent {
        send_next = send_next.wrapping_sub(1);
        outstanding = outstanding.saturating_sub(1);
        unsent = unsent.saturating_sub(1);
    }
    let written = if outstanding == 0 {
        Vec::new()
    } else {
        receive_plain(fd, outstanding as usize)?
    };
    if written.len() != outstanding as usize {
        return Err(Errno::EIO);
    }
    let mss = option(fd, TCP, libc::TCP_MAXSEG)? as u32;
    let timestamp = if info.options & 1 == 0 {
        None
    } else {
        Some(option(fd, TCP, TCP_TIMESTAMP)? as u32)
    };
    let mut bytes = [0; 20];
    getsockopt(fd, TCP, TCP_REPAIR_WINDOW, &mut bytes)?;
    let mut window = [0u32; 5];
    for (to, from) in window.iter_mut().zip(bytes.chunks_exact(4)) {
        *to = from.first_chunk().map_or(0, |w| u32::from_ne_bytes(*w));
    }
    if fin_received {
        window[4] = window[4].wrapping_sub(1);
        window[3] += 1;
    }
    let changed = count(libc::TIOCOUTQ)? != outstanding_then
        || count(SIOCOUTQNSD)? != unsent_then
        || count(libc::FIONREAD)? != announced
        || queue(RECEIVE_QUEUE)? != receive_then;
    drop(repair);
    if changed {
        return Err(Errno::EIO);
    }
    Ok(Stream {
        received,
        receive_next,
        written,
        unsent,
        send_next,
        mss,
        scales: (info.options & 4 != 0).then_some(info.scales),
        selective: info.options & 2 != 0,
        timestamp,
        window,
        fin_sent,
        fin_received,
    })
}

/// What waits to be read; the offset for peeking, if the program set one, does not get in the way.
pub fn peek(fd: BorrowedFd<'_>, len: usize) -> Sys<Vec<u8>> {
    if len == 0 {
        return Ok(Vec::new());
    }
    let _offset = match option(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF) {
        Ok(0..) => Some(Meanwhile::set(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF, -1)?),
        _ => None,
    };
    let got = receive_plain(fd, len)?;
    if got.len() == len {
        Ok(got)
    } else {
        Err(Errno::EIO)
    }
}

/// All that waits to be read, of which `announced` is what the kernel tells of (FIONREAD): that ends at the mark of
/// out-of-band data, as every read does, though the byte itself was taken or lies in line. ENODATA where a kernel before Linux
/// 6.9 lets nobody look past it.
fn peek_all(fd: BorrowedFd<'_>, announced: usize) -> Sys<Vec<u8>> {
    let before = match option(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF) {
        Ok(before) => before,
        Err(_) => {
            let all = peek(fd, announced)?;
            // In line, nothing ends at a mark.
            let _in_line = Meanwhile::set(fd, libc::SOL_SOCKET, libc::SO_OOBINLINE, 1)?;
            return match ioctl_int(fd, libc::FIONREAD)? as usize == announced {
                true => Ok(all),
                false => Err(Errno::ENODATA),
            };
        }
    };
    let look = |from: usize, most: usize| {
        set_option(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF, from as i32)?;
        match receive_plain(fd, most) {
            Err(Errno::EAGAIN) => Ok(Vec::new()),
            seen => seen,
        }
    };
    let whole = || {
        let mut all = match announced {
            0 => Vec::new(),
            some => look(0, some)?,
        };
        let mark = all.len();
        if !look(mark, 1)?.is_empty() {
            // Every buffer costs at least its bytes.
            let most = received_memory(fd)? + (1 << 16);
            let rest = look(mark, most)?;
            // At the mark a byte that was taken is skipped, one that lies in line is not.
            let taken = look(mark + 1, most)?.len() == rest.len();
            if !look(mark + usize::from(taken) + rest.len(), 1)?.is_empty() {
                return Err(Errno::EIO);
            }
            all.extend(rest);
        }
        match all.len() < announced {
            true => Err(Errno::EIO),
            false => Ok(all),
        }
    };
    let all = whole();
    set_option(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF, before)?;
    all
}

/// Bytes of memory that the receive queue takes.
fn received_memory(fd: BorrowedFd<'_>) -> Sys<usize> {
    const SO_MEMINFO: i32 = 55;
    let mut bytes = [0; 36];
    getsockopt(fd, libc::SOL_SOCKET, SO_MEMINFO, &mut bytes)?;
    Ok(u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize)
}

/// What waits to be read in a socket whose connection is over; ENOTCONN if there never was one.
pub fn peek_over(fd: BorrowedFd<'_>) -> Sys<Vec<u8>> {
    let waiting = ioctl_int(fd, libc::FIONREAD)?.max(0) as usize;
    if waiting == 0 {
        receive_plain(fd, 1)
    } else {
        peek(fd, waiting)
    }
}

/// recv(2) without MSG_TRUNC, which makes TCP throw the data away.
fn receive_plain(fd: BorrowedFd<'_>, len: usize) -> Sys<Vec<u8>> {
    use std::os::fd::AsRawFd;
    let mut data = vec![0; len];
    let flags = nix::sys::socket::MsgFlags::MSG_PEEK | nix::sys::socket::MsgFlags::MSG_DONTWAIT;
    let got = nix::sys::socket::recv(fd.as_raw_fd(), &mut data, flags)?;
    data.truncate(got);
    Ok(data)
}

/// Makes a new socket, bound already or not, the local end of a connection. It stays in repair mode, sending nothing.
pub fn write(fd: BorrowedFd<'_>, local: &[u8], remote: &[u8], stream: &Stream) -> Sys<()> {
    const SO_SNDBUFFORCE: i32 = 32;
    const SO_RCVBUFFORCE: i32 = 33;
    set_option(fd, TCP, TCP_REPAIR, 1)?;
    // Room for the queues; the recorded sizes are set when all is done.
    let room = |len: usize| (len.saturating_mul(4) + (1 << 20)).min(i32::MAX as usize / 4) as i32;
    set_option(fd, libc::SOL_SOCKET, SO_SNDBUFFORCE, room(stream.written.len()))?;
    set_option(fd, libc::SOL_SOCKET, SO_RCVBUFFORCE, room(stream.received.len()))?;
    socket_to(fd, false, local)?;
    let from = |next: u32, len: usize| next.wrapping_sub(len as u32) as i32;
    set_option(fd, TCP, TCP_REPAIR_QUEUE, RECEIVE_QUEUE)?;
    set_option(
        fd,
        TCP,
        TCP_QUEUE_SEQ,
        from(stream.receive_next, stream.received.len()),
    )?;
    set_option(fd, TCP, TCP_REPAIR_QUEUE, SEND_QUEUE)?;
    set_option(
        fd,
        TCP,
        TCP_QUEUE_SEQ,
        from(stream.send_next, stream.written.len()),
    )?;
    // How much it sends at once is settled when it is connected, and again only when the other's window is larger than it ever
    // was: half of that at most, without which it would wait for room that never is.
    let largest = stream.window[2];
    let half = if largest > DEFAULT_MSS {
        largest / 2
    } else {
        largest
    };
    let mss = stream.mss.min(half).clamp(LEAST_MSS, MAX_TCP_WINDOW) as i32;
    set_option(fd, TCP, libc::TCP_MAXSEG, mss)?;
    if stream.scales.is_none() {
        // Else it would scale by what this network allows, and the other side not know of it: no more than what needs no scale.
        set_option(fd, TCP, libc::TCP_WINDOW_CLAMP, i32::from(u16::MAX))?;
    }
    socket_to(fd, true, remote)?;
    set_option(fd, TCP, libc::TCP_MAXSEG, 0)?;
    // struct tcp_repair_opt: TCPOPT_MSS 2, TCPOPT_WINDOW 3, TCPOPT_SACK_PERM 4, TCPOPT_TIMESTAMP 8.
    let mut options = vec![(2u32, stream.mss)];
    options.extend(
        stream
            .scales
            .map(|(theirs, own)| (3, u32::from(theirs) | u32::from(own) << 16)),
    );
    options.extend(stream.selective.then_some((4, 0)));
    options.extend(stream.timestamp.map(|_| (8, 0)));
    let bytes: Vec<u8> = options
        .iter()
        .flat_map(|(code, value)| [*code, *value])
        .flat_map(u32::to_ne_bytes)
        .collect();
    setsockopt(fd, TCP, TCP_REPAIR_OPTIONS, &bytes)?;
    if let Some(clock) = stream.timestamp {
        set_option(fd, TCP, TCP_TIMESTAMP, clock as i32)?;
    }
    let window: Vec<u8> = stream.window.iter().flat_map(|w| w.to_ne_bytes()).collect();
    set_option(fd, TCP, TCP_REPAIR_QUEUE, RECEIVE_QUEUE)?;
    put(fd, &stream.received)?;
    setsockopt(fd, TCP, TCP_REPAIR_WINDOW, &window)?;
    set_option(fd, TCP, TCP_REPAIR_QUEUE, SEND_QUEUE)?;
    let sent = stream.written.len() - stream.unsent as usize;
    put(fd, &stream.written[..sent])
}

/// Fills the queue that was chosen; one packet a call, so not too much at once.
fn put(fd: BorrowedFd<'_>, mut data: &[u8]) -> Sys<()> {
    while !data.is_empty() {
        let some = &data[..data.len().min(16 << 10)];
        match send(fd, some, None, &[], None, 0)? {
            0 => return Err(Errno::EIO),
            n => data = &data[n..],
        }
    }
    Ok(())
}

/// Lets a connection made by [`write`] go: the other end must be there to answer. What had not been sent is sent now,
/// unless it was `corked` and still is.
pub fn start(fd: BorrowedFd<'_>, stream: &Stream, corked: bool) -> Sys<()> {
    set_option(fd, TCP, TCP_REPAIR, 0)?;
    if corked {
        set_option(fd, TCP, libc::TCP_CORK, 1)?;
    }
    let unsent = &stream.written[stream.written.len() - stream.unsent as usize..];
    if unsent.is_empty() {
        return Ok(());
    }
    // Its size may have been given to the buffer already, which held all this once and may not do so again.
    let _room = Roomy::new(fd, unsent.len())?;
    put(fd, unsent)
}

/// Takes a connection made by [`write`] out of repair mode without a sign of it on the wire.
pub fn start_mute(fd: BorrowedFd<'_>) -> Sys<()> {
    set_option(fd, TCP, TCP_REPAIR, -1)
}
