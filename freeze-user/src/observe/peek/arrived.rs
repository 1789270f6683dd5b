//! What has arrived at a connection that was not accepted yet, and the error that a socket has yet to tell: no
//! descriptor leads to the one, and to ask for the other is to take it.

use super::Peek;
use crate::ids::PAGE;
use crate::observe::procfile::read_all;
use crate::sys::socket::{Credentials, Message};
use nix::unistd::{pipe, write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;

/// A way to look at sockets.
#[derive(Debug)]
pub struct Sockets {
    peek: Peek,
    /// Where the kernel keeps its descriptions of pages, and where the pages themselves; nothing where that was not found.
    pages: Option<(u64, u64)>,
}

/// A connection that waits to be accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Embryo {
    /// The other end's address, of TCP.
    pub remote: Option<SocketAddr>,
    /// What it has got, in pieces as it came; of a stream the bounds mean nothing.
    pub got: Vec<Vec<u8>>,
    /// Whether descriptors or out-of-band data are among it.
    pub more: bool,
}

/// The members that are looked at, beside those of [`super::MEMBERS`].
const MEMBERS: [(&str, &str); 42] = [
    ("socket", "sk"),
    ("sock", "sk_receive_queue"),
    ("sock", "sk_err"),
    ("sock", "sk_reuseport_cb"),
    ("sock_reuseport", "prog"),
    ("sock_reuseport", "num_socks"),
    ("sock_reuseport", "socks"),
    ("bpf_prog", "orig_prog"),
    ("sock_fprog_kern", "len"),
    ("sock_fprog_kern", "filter"),
    ("inet_sock", "mc_index"),
    ("udp_sock", "pending"),
    ("sk_buff", "len"),
    ("sk_buff", "data_len"),
    ("sk_buff", "data"),
    ("sk_buff", "head"),
    ("sk_buff", "end"),
    ("sk_buff", "sk"),
    ("sk_buff", "cb"),
    ("sk_buff", "protocol"),
    ("sk_buff", "network_header"),
    ("sk_buff", "transport_header"),
    ("udp_sock", "reader_queue"),
    ("unix_sock", "addr"),
    ("unix_address", "len"),
    ("unix_skb_parms", "fp"),
    ("unix_skb_parms", "pid"),
    ("unix_skb_parms", "uid"),
    ("unix_skb_parms", "gid"),
    ("skb_shared_info", "nr_frags"),
    ("skb_shared_info", "frags"),
    ("skb_shared_info", "frag_list"),
    ("inet_connection_sock", "icsk_accept_queue"),
    ("request_sock_queue", "rskq_accept_head"),
    ("request_sock", "dl_next"),
    ("request_sock", "sk"),
    ("sock_common", "skc_family"),
    ("sock_common", "skc_daddr"),
    ("sock_common", "skc_v6_daddr"),
    ("sock_common", "skc_dport"),
    ("pipe_inode_info", "bufs"),
    ("pipe_buffer", "page"),
];

/// The buffer with out-of-band data of a unix socket, where the kernel knows such data.
const URGENT: (&str, &str) = ("unix_sock", "oob_skb");

/// Whether a unix stream tells with each message how much more waits, where the kernel knows that.
const REST: (&str, &str) = ("unix_sock", "recvmsg_inq");

/// The anycast addresses of a socket, where the kernel knows IPv6.
const ANYCAST: [(&str, &str); 5] = [
    ("inet_sock", "pinet6"),
    ("ipv6_pinfo", "ipv6_ac_list"),
    ("ipv6_ac_socklist", "acl_addr"),
    ("ipv6_ac_socklist", "acl_ifindex"),
    ("ipv6_ac_socklist", "acl_next"),
];

/// The most connections, and pieces of one, that are believed.
const MANY: usize = 1 << 16;

/// The most bytes of a piece that are believed.
const LARGEST: u32 = 1 << 24;

/// Length of a `struct page`, and of a `skb_frag_t`: page, length, offset.
const PAGE_STRUCT: u64 = 64;
const FRAGMENT: u64 = 16;

impl Sockets {
    /// The one way of this process; `None` where the kernel does not let us, or is not as is known here.
    pub fn get() -> Option<&'static Sockets> {
        static ONE: OnceLock<Option<Sockets>> = OnceLock::new();
        ONE.get_or_init(|| {
            let members: Vec<_> = super::MEMBERS
                .into_iter()
                .chain(MEMBERS)
                .chain([URGENT, REST])
                .chain(ANYCAST)
                .collect();
            let peek = Peek::at_members(&members)?;
            let complete = MEMBERS.iter().all(|(of, member)| peek.has(of, member));
            let pages = pages(&peek);
            complete.then_some(Sockets { peek, pages })
        })
        .as_ref()
    }

    /// The error that the next call on a socket is told; 0 for none.
    pub fn error(&self, fd: BorrowedFd<'_>) -> Option<i32> {
        let p = &self.peek;
        Some(p.number(p.at(self.socket(fd)?, "sock", "sk_err"))? as i32)
    }

    /// The program that chooses among the sockets which share the port of this one (SO_ATTACH_REUSEPORT_CBPF), and the
    /// number that this one has for it. `None` if that cannot be read: it may be one of eBPF.
    pub fn chooser(&self, fd: BorrowedFd<'_>) -> Option<Option<(Vec<u8>, u32)>> {
        let p = &self.peek;
        let socket = self.socket(fd)?;
        let group = p.word(p.at(socket, "sock", "sk_reuseport_cb"))?;
        let program = match group {
            0 => 0,
            group => p.word(p.at(group, "sock_reuseport", "prog"))?,
        };
        if program == 0 {
            return Some(None);
        }
        // As it was handed in, which the kernel keeps beside what it has made of it.
        let kept = p
            .word(p.at(program, "bpf_prog", "orig_prog"))
            .filter(|at| *at != 0)?;
        let length = p.number(p.at(kept, "sock_fprog_kern", "len"))? as u16;
        let mut instructions = vec![0; usize::from(length) * 8];
        let at = p.word(p.at(kept, "sock_fprog_kern", "filter"))?;
        p.reader.read(at, &mut instructions).ok()?;
        let count = p.number(p.at(group, "sock_reuseport", "num_socks"))? as u16;
        let all = p.at(group, "sock_reuseport", "socks");
        let place = (0..u32::from(count)).find(|n| p.word(all + u64::from(*n) * 8) == Some(socket))?;
        Some(Some((instructions, place)))
    }

    /// The device to which an IPv4 socket sends multicasts (IP_MULTICAST_IF, which tells an address only); 0 for none.
    pub fn multicast_device(&self, fd: BorrowedFd<'_>) -> Option<u32> {
        let p = &self.peek;
        p.number(p.at(self.socket(fd)?, "inet_sock", "mc_index"))
    }

    /// Whether a unix socket tells with each message how much more waits (SO_INQ).
    pub fn tells_rest(&self, fd: BorrowedFd<'_>) -> Option<bool> {
        let p = &self.peek;
        p.has(REST.0, REST.1).then_some(())?;
        let mut told = [0];
        let at = p.at(self.socket(fd)?, REST.0, REST.1);
        p.reader.read(at, &mut told).ok()?;
        Some(told != [0])
    }

    /// The anycast addresses that an IPv6 socket shares in, with their devices, the last first.
    pub fn anycast(&self, fd: BorrowedFd<'_>) -> Option<Vec<(u32, Ipv6Addr)>> {
        let p = &self.peek;
        let own = p.word(p.at(self.socket(fd)?, "inet_sock", "pinet6"))?;
        let mut out = Vec::new();
        let mut one = p.word(p.at(own, "ipv6_pinfo", "ipv6_ac_list"))?;
        while one != 0 {
            (out.len() < MANY).then_some(())?;
            let mut address = [0; 16];
            let at = p.at(one, "ipv6_ac_socklist", "acl_addr");
            p.reader.read(at, &mut address).ok()?;
            let device = p.number(p.at(one, "ipv6_ac_socklist", "acl_ifindex"))?;
            out.push((device, address.into()));
            one = p.word(p.at(one, "ipv6_ac_socklist", "acl_next"))?;
        }
        Some(out)
    }

    /// Whether a datagram is being put together at a UDP socket (UDP_CORK, MSG_MORE).
    pub fn corked(&self, fd: BorrowedFd<'_>) -> Option<bool> {
        let p = &self.peek;
        Some(p.number(p.at(self.socket(fd)?, "udp_sock", "pending"))? != 0)
    }

    /// Those who wait at a listening unix socket, the first first.
    pub fn at_unix(&self, listening: BorrowedFd<'_>) -> Option<Vec<Embryo>> {
        let p = &self.peek;
        let mut out = Vec::new();
        for buffer in self.buffers(self.socket(listening)?)? {
            let embryo = p.word(p.at(buffer, "sk_buff", "sk"))?;
            let urgent = p.has(URGENT.0, URGENT.1) && p.word(p.at(embryo, URGENT.0, URGENT.1))? != 0;
            let (mut got, mut more) = (Vec::new(), urgent);
            for piece in self.buffers(embryo)? {
                let carried = p.at(p.at(piece, "sk_buff", "cb"), "unix_skb_parms", "fp");
                more |= p.word(carried)? != 0;
                got.push(self.contents(piece)?);
            }
            let remote = None;
            out.push(Embryo { remote, got, more });
        }
        Some(out)
    }

    /// Those who wait at a listening TCP socket, the first first.
    pub fn at_tcp(&self, listening: BorrowedFd<'_>) -> Option<Vec<Embryo>> {
        let p = &self.peek;
        let queue = p.at(
            self.socket(listening)?,
            "inet_connection_sock",
            "icsk_accept_queue",
        );
        let mut request = p.word(p.at(queue, "request_sock_queue", "rskq_accept_head"))?;
        let mut out = Vec::new();
        while request != 0 {
            (out.len() < MANY).then_some(())?;
            let embryo = p.word(p.at(request, "request_sock", "sk"))?;
            let got = self.buffers(embryo)?.into_iter().map(|b| self.contents(b));
            out.push(Embryo {
                remote: Some(self.remote(embryo)?),
                got: got.collect::<Option<_>>()?,
                more: false,
            });
            request = p.word(p.at(request, "request_sock", "dl_next"))?;
        }
        Some(out)
    }

    /// What was `seen` in the queue of a socket that keeps boundaries (unix or UDP), with the empty datagrams that the
    /// kernel shows to no second look, but for the descriptors that these came with; `None` if that does not fit together.
    pub fn with_hidden(&self, fd: BorrowedFd<'_>, seen: &mut Vec<Message>) -> Option<()> {
        let p = &self.peek;
        let (family, buffers) = self.datagrams(fd)?;
        if buffers.len() == seen.len() {
            return Some(());
        }
        let mut hidden = Vec::new();
        let mut rest = seen.iter().enumerate().peekable();
        for buffer in buffers {
            let length = p.number(p.at(buffer, "sk_buff", "len"))? as usize;
            let name = match length {
                0 => self.sender(buffer, family)?,
                _ => Vec::new(),
            };
            let known = |(_, m): &(usize, &Message)| m.whole == length && (length > 0 || m.name == name);
            match rest.next_if(known) {
                Some(_) => {}
                None if length == 0 => {
                    let message = Message {
                        name,
                        credentials: self.credentials(buffer, family),
                        ..Message::default()
                    };
                    hidden.push((rest.peek().map_or(seen.len(), |(n, _)| *n), message));
                }
                None => return None,
            }
        }
        rest.next().is_none().then_some(())?;
        // From the end, so that places before stay what they are.
        for (place, message) in hidden.into_iter().rev() {
            seen.insert(place, message);
        }
        Some(())
    }

    /// The address of who sent what is in a buffer, as the receiver is told it.
    fn sender(&self, buffer: u64, family: i32) -> Option<Vec<u8>> {
        let p = &self.peek;
        if family == libc::AF_UNIX {
            let sender = p.word(p.at(buffer, "sk_buff", "sk"))?;
            let address = p.word(p.at(sender, "unix_sock", "addr"))?;
            if address == 0 {
                return Some(Vec::new());
            }
            let at = p.at(address, "unix_address", "len");
            let mut name = vec![0; p.number(at)?.min(110) as usize];
            // The name follows its length.
            p.reader.read(at + 4, &mut name).ok()?;
            return Some(name);
        }
        let head = p.word(p.at(buffer, "sk_buff", "head"))?;
        let offset = |member| Some(u64::from(p.number(p.at(buffer, "sk_buff", member))? as u16));
        let (network, transport) = (
            head + offset("network_header")?,
            head + offset("transport_header")?,
        );
        let old = p.number(p.at(buffer, "sk_buff", "protocol"))? as u16 == 0x0800u16.to_be();
        let (mut port, mut ip) = ([0; 2], vec![0; if old { 4 } else { 16 }]);
        p.reader.read(transport, &mut port).ok()?;
        p.reader.read(network + if old { 12 } else { 8 }, &mut ip).ok()?;
        let family_bytes = (family as u16).to_ne_bytes();
        Some(match (family, old) {
            (libc::AF_INET, _) => [&family_bytes[..], &port, &ip, &[0; 8]].concat(),
            (_, true) => {
                let mapped = [&[0; 10][..], &[0xff; 2], &ip].concat();
                [&family_bytes[..], &port, &[0; 4], &mapped, &[0; 4]].concat()
            }
            (_, false) => [&family_bytes[..], &port, &[0; 4], &ip, &[0; 4]].concat(),
        })
    }

    /// What is in the queue of a socket that keeps boundaries (unix or UDP), but for descriptors: without a call on it, which
    /// would be told its error.
    pub fn queue(&self, fd: BorrowedFd<'_>) -> Option<Vec<Message>> {
        let (family, buffers) = self.datagrams(fd)?;
        let message = |buffer| {
            let data = self.contents(buffer)?;
            Some(Message {
                whole: data.len(),
                data,
                name: self.sender(buffer, family)?,
                credentials: self.credentials(buffer, family),
                ..Message::default()
            })
        };
        buffers.into_iter().map(message).collect()
    }

    /// The family of a socket that keeps boundaries, and the buffers in its queue.
    fn datagrams(&self, fd: BorrowedFd<'_>) -> Option<(i32, Vec<u64>)> {
        let socket = self.socket(fd)?;
        let family = self.family(socket)?;
        // Who reads from a UDP socket has moved what was there to a second queue.
        let mut buffers = match family {
            libc::AF_UNIX => Vec::new(),
            _ => self.list(self.peek.at(socket, "udp_sock", "reader_queue"))?,
        };
        buffers.extend(self.buffers(socket)?);
        Some((family, buffers))
    }

    /// Who sent what is in a buffer of a unix socket, if its receiver or its sender had asked for that to be told.
    fn credentials(&self, buffer: u64, family: i32) -> Option<Credentials> {
        (family == libc::AF_UNIX).then_some(())?;
        let p = &self.peek;
        let all = p.at(buffer, "sk_buff", "cb");
        let pid = p.word(p.at(all, "unix_skb_parms", "pid")).filter(|at| *at != 0)?;
        Some((
            p.number(p.at(pid, "pid", "numbers"))? as i32,
            p.number(p.at(all, "unix_skb_parms", "uid"))?,
            p.number(p.at(all, "unix_skb_parms", "gid"))?,
        ))
    }

    fn family(&self, socket: u64) -> Option<i32> {
        let p = &self.peek;
        let family = p.number(p.at(socket, "sock_common", "skc_family"))? as u16;
        Some(i32::from(family))
    }

    fn socket(&self, fd: BorrowedFd<'_>) -> Option<u64> {
        let p = &self.peek;
        let socket = p.word(p.at(p.file(fd)?, "file", "private_data"))?;
        p.word(p.at(socket, "socket", "sk")).filter(|sk| *sk != 0)
    }

    /// The buffers in a socket's receive queue.
    fn buffers(&self, socket: u64) -> Option<Vec<u64>> {
        self.list(self.peek.at(socket, "sock", "sk_receive_queue"))
    }

    fn list(&self, head: u64) -> Option<Vec<u64>> {
        let mut out = Vec::new();
        // Queue and buffers begin with where the next one is.
        let mut at = self.peek.word(head)?;
        while at != head {
            (out.len() < MANY).then_some(())?;
            out.push(at);
            at = self.peek.word(at)?;
        }
        Some(out)
    }

    /// What a buffer holds: some in one piece, the rest in parts of pages.
    fn contents(&self, buffer: u64) -> Option<Vec<u8>> {
        const MOST_PARTS: u8 = 64;
        let p = &self.peek;
        let length = p
            .number(p.at(buffer, "sk_buff", "len"))
            .filter(|n| *n <= LARGEST)?;
        let elsewhere = p.number(p.at(buffer, "sk_buff", "data_len"))?;
        let mut out = vec![0; length.checked_sub(elsewhere)? as usize];
        let data = p.word(p.at(buffer, "sk_buff", "data"))?;
        p.reader.read(data, &mut out).ok()?;
        if elsewhere == 0 {
            return Some(out);
        }
        let head = p.word(p.at(buffer, "sk_buff", "head"))?;
        let shared = head + u64::from(p.number(p.at(buffer, "sk_buff", "end"))?);
        if p.word(p.at(shared, "skb_shared_info", "frag_list"))? != 0 {
            return None;
        }
        let mut count = [0];
        p.reader
            .read(p.at(shared, "skb_shared_info", "nr_frags"), &mut count)
            .ok()?;
        let parts = p.at(shared, "skb_shared_info", "frags");
        for n in 0..u64::from(count[0].min(MOST_PARTS)) {
            let part = parts + n * FRAGMENT;
            let (page, length) = (p.word(part)?, p.number(part + 8)?);
            let offset = p.number(part + 12)?;
            let mut bytes = vec![0; length.min(LARGEST) as usize];
            p.reader
                .read(self.place(page)? + u64::from(offset), &mut bytes)
                .ok()?;
            out.extend(bytes);
        }
        (out.len() == length as usize).then_some(out)
    }

    /// Where the contents of a page are that the kernel describes there.
    fn place(&self, page: u64) -> Option<u64> {
        let (descriptions, contents) = self.pages?;
        Some(contents + page.checked_sub(descriptions)? / PAGE_STRUCT * PAGE)
    }

    fn remote(&self, socket: u64) -> Option<SocketAddr> {
        let p = &self.peek;
        let family = self.family(socket)?;
        let port = (p.number(p.at(socket, "sock_common", "skc_dport"))? as u16).swap_bytes();
        let ip: IpAddr = if family == libc::AF_INET {
            Ipv4Addr::from(p.number(p.at(socket, "sock_common", "skc_daddr"))?.to_ne_bytes()).into()
        } else {
            let mut bytes = [0; 16];
            p.reader
                .read(p.at(socket, "sock_common", "skc_v6_daddr"), &mut bytes)
                .ok()?;
            Ipv6Addr::from(bytes).to_canonical()
        };
        Some((ip, port).into())
    }
}

/// Where the kernel describes page 0 and where that is, found by a page in a pipe of freeze's own.
///
/// Its contents lie in the mapping of all memory, which begins somewhere at a multiple of 1 GiB below everything that the
/// kernel has allocated.
fn pages(p: &Peek) -> Option<(u64, u64)> {
    const STEP: u64 = 1 << 30;
    const STEPS: u64 = 1 << 14;
    let (reader, writer) = pipe().ok()?;
    // A pipe's page is described in the pipe; which page it is, the contents must tell.
    let mark = read_all("/proc/sys/kernel/random/uuid").ok()?;
    write(&writer, &mark).ok()?;
    let info = p.word(p.at(p.file(reader.as_fd())?, "file", "private_data"))?;
    let buffer = p.word(p.at(info, "pipe_inode_info", "bufs"))?;
    let page = p.word(p.at(buffer, "pipe_buffer", "page"))?;
    // The descriptions begin at a multiple of 1 GiB too. Where there are more than fit into one, what is found is not page 0
    // but another with its place, which is as good.
    let descriptions = page & !(STEP - 1);
    let at = (page - descriptions) / PAGE_STRUCT * PAGE;
    let last = (buffer & !(STEP - 1)).checked_add(STEP / PAGE_STRUCT * PAGE)?;
    (0..STEPS).find_map(|n| {
        let contents = last.checked_sub(n * STEP)?;
        let mut seen = vec![0; mark.len()];
        // A place that is none fails, which costs a microsecond.
        p.reader.read(contents + at, &mut seen).ok()?;
        (seen == mark).then_some((descriptions, contents))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn what_is_being_put_together_is_seen() {
        let Some(sockets) = Sockets::get() else { return };
        let socket = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
        socket.connect(socket.local_addr().unwrap()).unwrap();
        let seen = || sockets.corked(socket.as_fd()).unwrap();
        assert!(!seen());
        for (flags, corked) in [(libc::MSG_MORE, true), (0, false)] {
            crate::sys::socket::send(socket.as_fd(), b"half", None, &[], None, flags).unwrap();
            assert_eq!(seen(), corked);
        }
    }

    #[test]
    fn what_has_arrived_is_seen_and_stays() {
        let Some(sockets) = Sockets::get() else { return };
        let long: Vec<u8> = (0..100_000u32).map(|n| (n / 7) as u8).collect();
        let server = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = server.local_addr().unwrap();
        let mut clients = [(); 2].map(|()| TcpStream::connect(address).unwrap());
        clients[0].write_all(b"hello").unwrap();
        clients[1].write_all(&long).unwrap();
        for _ in 0..2 {
            let seen = sockets.at_tcp(server.as_fd()).unwrap();
            let got: Vec<_> = seen.iter().map(|e| (e.remote, e.got.concat())).collect();
            let name = |n: usize| clients[n].local_addr().ok();
            assert!(got == [(name(0), b"hello".to_vec()), (name(1), long.clone())]);
        }
        let path = std::env::temp_dir().join(format!("freeze-arrived-{}", std::process::id()));
        let server = UnixListener::bind(&path).unwrap();
        let mut client = UnixStream::connect(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        client.write_all(b"one").unwrap();
        client.write_all(&long).unwrap();
        let seen = sockets.at_unix(server.as_fd()).unwrap();
        assert!(seen.len() == 1 && !seen[0].more);
        assert!(seen[0].got.concat() == [b"one", &long[..]].concat());
    }

    #[test]
    fn an_empty_datagram_is_seen_again_and_again() {
        use crate::sys::queue::peek_packets;
        let Some(sockets) = Sockets::get() else { return };
        let server = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let clients = [(); 2].map(|()| std::net::UdpSocket::bind("127.0.0.1:0").unwrap());
        let to = server.local_addr().unwrap();
        let sent: [(usize, &[u8]); 6] = [(0, b""), (1, b""), (0, b"abc"), (1, b""), (1, b"d"), (0, b"")];
        for (from, what) in sent {
            clients[from].send_to(what, to).unwrap();
        }
        let mut looks = Vec::new();
        for _ in 0..3 {
            let mut seen = peek_packets(server.as_fd()).unwrap();
            sockets.with_hidden(server.as_fd(), &mut seen).unwrap();
            looks.push(seen.into_iter().map(|m| (m.name, m.data)).collect::<Vec<_>>());
        }
        assert_eq!(
            looks[0].iter().map(|m| m.1.len()).collect::<Vec<_>>(),
            [0, 0, 3, 0, 1, 0]
        );
        assert!(looks.iter().all(|l| *l == looks[0]), "{looks:?}");
        let mut room = [0; 9];
        for (from, what) in sent {
            let address = clients[from].local_addr().unwrap();
            assert_eq!(server.recv_from(&mut room).unwrap(), (what.len(), address));
        }
    }
}
