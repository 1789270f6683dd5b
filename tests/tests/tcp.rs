//! Conformance of TCP sockets: listening, bound, and connected with both ends in the checkpoint.

use freeze_tests::cycle::{checkpoint_now, request, restore_now};
use freeze_tests::{Running, c, conformance, python};
use freeze_user::precopy::Trackings;
use std::net::TcpListener;

const BEGIN: &str = r#"
import signal, socket
S = socket
def connection(family=S.AF_INET, address="127.0.0.1"):
    l = S.socket(family)
    l.bind((address, 0))
    l.listen(4)
    c = S.socket(family)
    c.connect(l.getsockname()[:2])
    s, _ = l.accept()
    return l, c, s
def read(s, count):
    out = b""
    s.settimeout(30)
    while len(out) < count:
        some = s.recv(count - len(out))
        assert some, (len(out), count)
        out += some
    return out
def names(*sockets):
    return [(s.getsockname(), s.getpeername()) for s in sockets]
def fill(s, byte):
    s.setblocking(False)
    count = 0
    try:
        while True:
            count += s.send(byte * 65536)
    except BlockingIOError:
        return count
def options(s):
    out = []
    for level, last in ((S.SOL_SOCKET, 80), (S.IPPROTO_TCP, 38), (S.IPPROTO_IP, 55), (S.IPPROTO_IPV6, 80)):
        for name in range(1, last):
            # Clocks, counters, cookies and the like change by themselves.
            if (level, name) in ((1, 49), (1, 55), (1, 56), (1, 57), (1, 77), (6, 11), (6, 24)):
                continue
            try:
                out.append((level, name, s.getsockopt(level, name, 64)))
            except OSError:
                pass
    return out
"#;

fn subject(text: &str) -> freeze_tests::Subject {
    python(&format!("{BEGIN}\n{text}"))
}

/// Listening, bound and fresh sockets keep addresses, backlogs, owners and every option.
fn listening() -> freeze_tests::Subject {
    subject(
        r#"
l = S.socket()
l.setsockopt(S.SOL_SOCKET, S.SO_REUSEADDR, 1)
l.setsockopt(S.IPPROTO_TCP, S.TCP_DEFER_ACCEPT, 5)
l.bind(("127.0.0.1", 0))
l.listen(9)
port = l.getsockname()[1]
l6 = S.socket(S.AF_INET6)
l6.setsockopt(S.IPPROTO_IPV6, S.IPV6_V6ONLY, 1)
l6.bind(("::1", 0))
l6.listen(3)
group = []
shared = 0
for n in range(3):
    x = S.socket()
    x.setsockopt(S.SOL_SOCKET, S.SO_REUSEPORT, 1)
    os.fchown(x.fileno(), 1000, 1000)
    x.bind(("0.0.0.0", shared))
    shared = x.getsockname()[1]
    x.listen(2)
    # By which processor what arrives is to come, for it to be this one's.
    x.setsockopt(S.SOL_SOCKET, S.SO_INCOMING_CPU, n)
    group.append(x)
f = S.socket()
f.setsockopt(S.IPPROTO_TCP, S.TCP_NODELAY, 1)
f.setsockopt(S.SOL_SOCKET, S.SO_KEEPALIVE, 1)
f.setsockopt(S.IPPROTO_TCP, S.TCP_KEEPIDLE, 33)
for name in S.IP_MULTICAST_LOOP, 49:
    f.setsockopt(S.IPPROTO_IP, name, 0)
f6 = S.socket(S.AF_INET6)
for name in S.IPV6_MULTICAST_LOOP, 29:
    f6.setsockopt(S.IPPROTO_IPV6, name, 0)
bound = S.socket()
bound.bind(("127.0.0.1", 0))
all = [l, l6, f, f6, bound] + group
before = [(options(s), s.getsockname(), os.fstat(s.fileno()).st_uid) for s in all]
freeze_here()
for s, then in zip(all, before):
    now = options(s), s.getsockname(), os.fstat(s.fileno()).st_uid
    assert now == then, [(a, b) for a, b in zip(now[0], then[0]) if a != b] or (now[1:], then[1:])
assert [x.getsockopt(S.SOL_SOCKET, S.SO_INCOMING_CPU) for x in group] == [0, 1, 2]
c = S.socket()
c.connect(("127.0.0.1", port))
c.send(b"x")
s, _ = l.accept()
assert s.recv(4) == b"x"
S.socket(S.AF_INET6).connect(l6.getsockname()[:2])
S.socket().connect(("127.0.0.1", shared))
bound.listen(1)
"#,
    )
}

/// A connection goes on with what was in both queues; so do its listening socket and its options.
fn established() -> freeze_tests::Subject {
    subject(
        r#"
l, c, s = connection()
c.send(b"to server")
s.send(b"to client" * 100)
c.setsockopt(S.IPPROTO_TCP, S.TCP_NODELAY, 1)
s.setsockopt(S.SOL_SOCKET, S.SO_KEEPALIVE, 1)
c.setsockopt(S.SOL_SOCKET, S.SO_REUSEADDR, 1)
before = names(c, s)
freeze_here()
assert names(c, s) == before
assert read(s, 9) == b"to server" and read(c, 900) == b"to client" * 100
for n in range(100):
    c.send(b"x" * 1000)
    assert read(s, 1000) == b"x" * 1000
    s.send(b"y" * 5000)
    assert read(c, 5000) == b"y" * 5000
assert c.getsockopt(S.IPPROTO_TCP, S.TCP_NODELAY) == 1 and s.getsockopt(S.SOL_SOCKET, S.SO_KEEPALIVE) == 1
assert c.getsockopt(S.SOL_SOCKET, S.SO_REUSEADDR) == 1 and s.getsockopt(S.SOL_SOCKET, S.SO_REUSEADDR) == 0
d = S.socket()
d.connect(l.getsockname())
e, _ = l.accept()
c.close()
assert s.recv(5) == b""
"#,
    )
}

/// IPv6, and IPv4 mapped into it.
fn version_6() -> freeze_tests::Subject {
    subject(
        r#"
l, c, s = connection(S.AF_INET6, "::1")
c.send(b"to server")
l.close()
m = S.socket(S.AF_INET6)
m.bind(("::", 0))
m.listen(1)
mc = S.socket()
mc.connect(("127.0.0.1", m.getsockname()[1]))
ms, _ = m.accept()
mc.send(b"mapped")
before = names(c, s, mc, ms)
freeze_here()
assert names(c, s, mc, ms) == before
assert read(s, 9) == b"to server" and read(ms, 6) == b"mapped"
s.send(b"k")
ms.send(b"l")
assert read(c, 1) == b"k" and read(mc, 1) == b"l"
"#,
    )
}

/// Queues that are full both ways lose nothing, also when one end was shut with data still to go.
fn full_queues() -> freeze_tests::Subject {
    subject(
        r#"
l, c, s = connection()
counts = fill(c, b"1"), fill(s, b"2")
l2, c2, s2 = connection()
count = fill(c2, b"q")
c2.shutdown(S.SHUT_WR)
freeze_here()
assert read(s, counts[0]) == b"1" * counts[0]
assert read(c, counts[1]) == b"2" * counts[1]
c.setblocking(True)
c.send(b"end")
assert read(s, 3) == b"end"
assert read(s2, count) == b"q" * count and s2.recv(1) == b""
s2.send(b"ok")
assert read(c2, 2) == b"ok"
"#,
    )
}

/// Connections with one half shut, with the other end closed, and with nothing left but data.
fn closing() -> freeze_tests::Subject {
    subject(
        r#"
l, c, s = connection()
c.send(b"last")
c.shutdown(S.SHUT_WR)
s.send(b"more")
l2, c2, s2 = connection()
s2.send(b"bye")
s2.close()
l3, c3, s3 = connection()
c3.send(b"a")
s3.send(b"b")
c3.shutdown(S.SHUT_WR)
time.sleep(0.1)
s3.shutdown(S.SHUT_WR)
time.sleep(0.1)
freeze_here()
assert read(s, 4) == b"last" and s.recv(9) == b"" and read(c, 4) == b"more"
s.send(b"z")
assert read(c, 1) == b"z"
s.close()
assert c.recv(9) == b""
assert read(c2, 3) == b"bye" and c2.recv(9) == b""
c2.send(b"into the void")
assert read(s3, 1) == b"a" and s3.recv(4) == b"" and read(c3, 1) == b"b" and c3.recv(9) == b""
"#,
    )
}

/// Who connected and was not accepted yet, and who still tries, is accepted afterwards; corked data stays corked.
fn waiting() -> freeze_tests::Subject {
    subject(
        r#"
import select
l = S.socket()
l.bind(("127.0.0.1", 0))
l.listen(5)
c = S.socket()
c.connect(l.getsockname())
l6 = S.socket(S.AF_INET6)
l6.bind(("::", 0))
l6.listen(5)
c6 = S.socket(S.AF_INET6)
c6.connect(("::1", l6.getsockname()[1]))
full = S.socket()
full.bind(("127.0.0.1", 0))
full.listen(0)
tries = [S.socket() for n in range(2)]
for t in tries:
    t.setblocking(False)
    t.connect_ex(full.getsockname())
k, kc, ks = connection()
kc.setsockopt(S.IPPROTO_TCP, S.TCP_CORK, 1)
kc.send(b"corked")
names = c.getsockname(), c6.getsockname()
freeze_here()
s, name = l.accept()
s6, name6 = l6.accept()
assert (name, name6) == names == (c.getsockname(), c6.getsockname())
c.send(b"x")
s6.send(b"y")
assert s.recv(5) == b"x" and c6.recv(5) == b"y"
full.settimeout(300)
accepted = [full.accept() for t in tries]
for t in tries:
    p = select.poll()
    p.register(t, select.POLLOUT)
    assert p.poll(300000) and t.getsockopt(S.SOL_SOCKET, S.SO_ERROR) == 0
kc.setsockopt(S.IPPROTO_TCP, S.TCP_CORK, 0)
assert read(ks, 6) == b"corked"
"#,
    )
}

/// What was sent before the connection was accepted is there after it, whether the sender goes on, has shut its half or is gone.
fn early() -> freeze_tests::Subject {
    subject(
        r#"
l = S.socket()
l.bind(("127.0.0.1", 0))
l.listen(8)
def client(*data, family=S.AF_INET, to=l):
    c = S.socket(family)
    c.connect(to.getsockname())
    for d in data:
        c.sendall(d)
    return c
LONG = bytes(n // 7 & 255 for n in range(60000))
c, quiet, long, shut, gone = client(b"hel", b"lo"), client(), client(LONG), client(b"end"), client(b"gone")
shut.shutdown(S.SHUT_WR)
name = gone.getsockname()
gone.close()
l6 = S.socket(S.AF_INET6)
l6.bind(("::", 0))
l6.listen(8)
c6 = client(b"six", family=S.AF_INET6, to=l6)
c4 = S.socket()
c4.connect(("127.0.0.1", l6.getsockname()[1]))
c4.send(b"four")
time.sleep(0.1)
freeze_here()
got = {}
for n in range(5):
    s, who = l.accept()
    got[who] = s
def ends(s, expected):
    assert read(s, len(expected)) == expected
ends(got[c.getsockname()], b"hello")
ends(got[long.getsockname()], LONG)
ends(got[shut.getsockname()], b"end")
assert got[shut.getsockname()].recv(1) == b""
ends(got[name], b"gone")
assert got[name].recv(1) == b""
for a in c, quiet, long:
    b = got[a.getsockname()]
    a.send(b"ping")
    ends(b, b"ping")
    b.send(b"pong")
    ends(a, b"pong")
got[shut.getsockname()].send(b"back")
ends(shut, b"back")
got = {}
for n in range(2):
    s, who = l6.accept()
    got[who[1]] = s
ends(got[c6.getsockname()[1]], b"six")
ends(got[c4.getsockname()[1]], b"four")
"#,
    )
}

/// One port can belong to several sockets: what waits to be accepted keeps its own, whoever else has that by now.
#[test]
fn a_port_that_somebody_else_has_meanwhile() {
    let test = "a_port_that_somebody_else_has_meanwhile";
    let own = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = own.local_addr().expect("a name").port();
    drop(own);
    let early = format!(
        r#"
l, gone = S.socket(), S.socket()
l.bind(("127.0.0.1", 0))
l.listen(8)
c = S.socket()
c.bind(("127.0.0.1", {port}))
c.connect(l.getsockname())
c.send(b"early")
time.sleep(0.1)
freeze_here()
s, who = l.accept()
assert who == c.getsockname() == ("127.0.0.1", {port}), who
assert read(s, 5) == b"early"
s.send(b"late")
assert read(c, 4) == b"late"
"#
    );
    let mut running = Running::start(&subject(&early), test);
    let image = running.dir().join("image");
    let ended = request(running.pid, image.clone(), true);
    checkpoint_now(&ended, &mut Trackings::new()).unwrap_or_else(|e| panic!("checkpoint: {e}"));
    running.wait_gone();
    let other = TcpListener::bind(("127.0.0.1", port)).expect("the port, which is free");
    restore_now(&image).unwrap_or_else(|e| panic!("restore: {e}"));
    running.pids();
    running.verdict();
    drop(other);
}

/// A connection that was reset or refused says so once, after what had arrived before, and a look does not take it.
fn failed() -> freeze_tests::Subject {
    subject(
        r#"
import errno, select, struct
def reset(s):
    s.setsockopt(S.SOL_SOCKET, S.SO_LINGER, struct.pack("ii", 1, 0))
    s.close()
l, c, s = connection()
reset(s)
l2, c2, s2 = connection()
s2.send(b"last words")
time.sleep(0.1)
reset(s2)
l3, c3, s3 = connection()
s3.shutdown(S.SHUT_WR)
time.sleep(0.1)
reset(s3)
closed = S.socket()
closed.bind(("127.0.0.1", 0))
refused = S.socket()
refused.setblocking(False)
refused.connect_ex(closed.getsockname())
time.sleep(0.1)
def events(s):
    p = select.poll()
    p.register(s, select.POLLIN | select.POLLOUT)
    return p.poll(0)[0][1]
all = c, c2, c3, refused
before = [events(x) for x in all]
freeze_here()
assert [events(x) for x in all] == before, [events(x) for x in all]
def error(s):
    return s.getsockopt(S.SOL_SOCKET, S.SO_ERROR)
assert error(c) == errno.ECONNRESET and error(c) == 0 and c.recv(1) == b""
assert read(c2, 10) == b"last words" and error(c2) == errno.ECONNRESET
assert error(c3) == errno.EPIPE
assert error(refused) == errno.ECONNREFUSED
"#,
    )
}

/// What was accepted and reset shows the port of who listens, without having it.
fn reset_beside_listening() -> freeze_tests::Subject {
    c(r#"
#include <netinet/in.h>
int main(void) {
    int listening = OK(socket(AF_INET, SOCK_STREAM, 0)), client = OK(socket(AF_INET, SOCK_STREAM, 0)), error;
    struct sockaddr_in at = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) }, own;
    socklen_t size = sizeof at, len = sizeof error;
    OK(bind(listening, (void *)&at, size));
    OK(listen(listening, 1));
    OK(getsockname(listening, (void *)&at, &size));
    OK(connect(client, (void *)&at, size));
    int server = OK(accept(listening, 0, 0));
    struct linger hard = { 1, 0 };
    OK(setsockopt(client, SOL_SOCKET, SO_LINGER, &hard, sizeof hard));
    close(client);
    struct pollfd failed = { server, POLLIN };
    SAME(poll(&failed, 1, 20000), 1);
    CHECK(failed.revents & POLLERR);
    freeze_here();
    OK(getsockname(server, (void *)&own, &size));
    SAME(own.sin_port, at.sin_port);
    OK(getsockopt(server, SOL_SOCKET, SO_ERROR, &error, &len));
    SAME(error, ECONNRESET);
    OK(client = socket(AF_INET, SOCK_STREAM, 0));
    OK(connect(client, (void *)&at, sizeof at));
    close(OK(accept(listening, 0, 0)));
    return 0;
}
"#)
}

conformance!(reset_beside_listening_conforms, reset_beside_listening());
conformance!(early_conforms, early());
conformance!(failed_conforms, failed());
conformance!(waiting_conforms, waiting());
conformance!(listening_conforms, listening());
conformance!(established_conforms, established());
conformance!(version_6_conforms, version_6());
conformance!(full_queues_conforms, full_queues());
conformance!(closing_conforms, closing());

conformance!(
    shut_for_reading,
    c(r#"
#include <netinet/in.h>
/* The half that receives is shut, which the other end knows nothing of; what had arrived can still be read. */
int main(void) {
    struct sockaddr_in to = { AF_INET, 0, { htonl(INADDR_LOOPBACK) } };
    socklen_t len = sizeof to;
    int listener = OK(socket(AF_INET, SOCK_STREAM, 0)), a = OK(socket(AF_INET, SOCK_STREAM, 0)), b;
    OK(bind(listener, (void *)&to, sizeof to));
    OK(listen(listener, 1));
    OK(getsockname(listener, (void *)&to, &len));
    OK(connect(a, (void *)&to, sizeof to));
    b = OK(accept(listener, 0, 0));
    SAME(send(b, "q", 1, 0), 1);
    rest(20);
    OK(shutdown(a, SHUT_RD));
    freeze_here();
    char byte;
    SAME(recv(a, &byte, 1, MSG_DONTWAIT), 1);
    SAME(byte, 'q');
    SAME(recv(a, &byte, 1, MSG_DONTWAIT), 0);
    SAME(send(a, "x", 1, 0), 1);
    SAME(recv(b, &byte, 1, 0), 1);
    SAME(byte, 'x');
}
"#)
);

conformance!(
    marks,
    subject(
        r#"
# A byte of out-of-band data that was taken leaves a gap, before which every read stops; what lies behind it is there too,
# and so is a byte that lies in line.
def marked():
    l, c, s = connection()
    c.send(b"ab")
    c.send(b"!", S.MSG_OOB)
    c.send(b"cd")
    while s.recv(9, S.MSG_PEEK | S.MSG_DONTWAIT) != b"ab" or s.recv(1, S.MSG_OOB | S.MSG_PEEK) != b"!":
        time.sleep(0.002)
    return c, s
c, taken = marked()
assert taken.recv(1, S.MSG_OOB) == b"!"
d, at_mark = marked()
assert at_mark.recv(1, S.MSG_OOB) == b"!" and at_mark.recv(2) == b"ab"
e, in_line = marked()
in_line.setsockopt(S.SOL_SOCKET, S.SO_OOBINLINE, 1)
def all_is_there():
    assert read(taken, 4) == b"abcd" and read(at_mark, 2) == b"cd" and read(in_line, 5) == b"ab!cd"
try:
    taken.setsockopt(S.SOL_SOCKET, 42, -1)   # SO_PEEK_OFF
    seen = True
except OSError:
    # Before Linux 6.9 nobody can look behind it.
    seen = False
    all_is_there()
freeze_here()
if seen:
    all_is_there()
for a, b in ((c, taken), (d, at_mark), (e, in_line)):
    a.send(b"x")
    assert read(b, 1) == b"x"
    b.send(b"y")
    assert read(a, 1) == b"y"
"#
    )
);

conformance!(
    given_up,
    subject(
        r#"
# A program that gives a connection up itself (connect(2) to nowhere) may make another with the same socket.
import ctypes
libc = ctypes.CDLL(None)
l, c, s = connection()
assert libc.connect(c.fileno(), bytes(16), 16) == 0
bound = S.socket()
bound.bind(("127.0.0.1", 0))
bound.connect(l.getsockname())
t, _ = l.accept()
assert libc.connect(bound.fileno(), bytes(16), 16) == 0
before = c.getsockname(), bound.getsockname()
freeze_here()
assert (c.getsockname(), bound.getsockname()) == before
assert c.getsockopt(S.SOL_SOCKET, S.SO_ERROR) == 104 == bound.getsockopt(S.SOL_SOCKET, S.SO_ERROR)
for x in c, bound:
    x.connect(l.getsockname())
    t, _ = l.accept()
    x.send(b"again")
    assert read(t, 5) == b"again"
"#
    )
);

conformance!(
    segments,
    subject(
        r#"
# What is sent at once is as large as the other end takes, from the first segment on.
l, c, s = connection()
m, d, t = connection(S.AF_INET6, "::1")
def sizes():
    return [x.getsockopt(S.IPPROTO_TCP, S.TCP_MAXSEG) for x in (c, s, d, t)]
before = sizes()
freeze_here()
assert all(now > then // 2 for now, then in zip(sizes(), before)), (sizes(), before)
"#
    )
);

conformance!(
    little_room,
    subject(
        r#"
# Who has little room is never sent more than that, and so never has to throw any away, for which the other would wait.
def little(family, address):
    l = S.socket(family)
    l.setsockopt(S.SOL_SOCKET, S.SO_RCVBUF, 3000)
    l.bind((address, 0))
    l.listen(1)
    c = S.socket(family)
    c.setsockopt(S.SOL_SOCKET, S.SO_SNDBUF, 100000)
    c.connect(l.getsockname()[:2])
    return c, l.accept()[0]
all = [little(*a) for a in ((S.AF_INET, "127.0.0.1"), (S.AF_INET6, "::1")) for n in range(2)]
counts = [fill(all[n][0], b"x") for n in (0, 2)]
freeze_here()
began = time.monotonic()
for n, count in zip((0, 2), counts):
    assert read(all[n][1], count) == b"x" * count
for c, s in all:
    count = fill(c, b"y")
    assert read(s, count) == b"y" * count
assert time.monotonic() - began < 4, time.monotonic() - began
"#
    )
);

conformance!(
    of_another_family,
    subject(
        r#"
# A connected socket of IPv6 may be turned into one of IPv4 (IPV6_ADDRFORM).
l = S.socket()
l.bind(("127.0.0.1", 0))
l.listen(1)
c = S.socket(S.AF_INET6)
c.connect(("::ffff:127.0.0.1", l.getsockname()[1]))
s, _ = l.accept()
c.setsockopt(S.IPPROTO_IPV6, 1, S.AF_INET)
c = S.socket(fileno=c.detach())
assert c.family == S.AF_INET
c.send(b"x")
before = names(c, s)
freeze_here()
assert names(c, s) == before and c.getsockopt(S.SOL_SOCKET, S.SO_DOMAIN) == S.AF_INET
assert read(s, 1) == b"x"
s.send(b"y")
assert read(c, 1) == b"y"
"#
    )
);

conformance!(
    priority_and_service,
    subject(
        r#"
# The type of service sets a priority, which may be chosen anew afterwards.
s = S.socket()
s.setsockopt(S.IPPROTO_IP, S.IP_TOS, 0x10)
t = S.socket()
t.setsockopt(S.IPPROTO_IP, S.IP_TOS, 0x10)
t.setsockopt(S.SOL_SOCKET, S.SO_PRIORITY, 5)
def both(x):
    return x.getsockopt(S.IPPROTO_IP, S.IP_TOS), x.getsockopt(S.SOL_SOCKET, S.SO_PRIORITY)
before = both(s), both(t)
assert before[1] == (0x10, 5), before
freeze_here()
assert (both(s), both(t)) == before, (both(s), both(t))
"#
    )
);

conformance!(
    multipath,
    c(r#"
#include <netinet/in.h>
#ifndef IPPROTO_MPTCP
#define IPPROTO_MPTCP 262
#endif
/* A server that would speak MPTCP, and a client that does not: what they have is a connection of TCP. */
static int protocol(int fd) {
    int value = 0;
    socklen_t len = sizeof value;
    OK(getsockopt(fd, SOL_SOCKET, SO_PROTOCOL, &value, &len));
    return value;
}
static int client(struct sockaddr_in6 *to) {
    int fd = OK(socket(AF_INET6, SOCK_STREAM, 0));
    OK(connect(fd, (void *)to, sizeof *to));
    return fd;
}
int main(void) {
    int server = socket(AF_INET6, SOCK_STREAM, IPPROTO_MPTCP);
    if (server < 0) WITHOUT("no MPTCP");
    struct sockaddr_in6 name = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    socklen_t len = sizeof name;
    OK(bind(server, (void *)&name, sizeof name));
    OK(listen(server, 7));
    OK(getsockname(server, (void *)&name, &len));
    int one = client(&name), accepted = OK(accept(server, 0, 0));
    int fresh = OK(socket(AF_INET, SOCK_STREAM, IPPROTO_MPTCP));
    SAME(write(one, "queued", 6), 6);
    freeze_here();
    char got[9];
    SAME(read(accepted, got, 9), 6);
    SAME(write(accepted, "back", 4), 4);
    SAME(read(one, got, 9), 4);
    int two = client(&name), also = OK(accept(server, 0, 0));
    SAME(write(two, "new", 3), 3);
    SAME(read(also, got, 9), 3);
    SAME(protocol(server), IPPROTO_MPTCP);
    SAME(protocol(fresh), IPPROTO_MPTCP);
    SAME(protocol(accepted), IPPROTO_TCP);
}
"#)
);

conformance!(
    fast_open,
    subject(
        r#"
# Whatever a connection has to do with fast open it keeps, though none of it can be told to one that is made.
FASTOPEN, FASTOPEN_CONNECT, FASTOPEN_KEY, NO_COOKIE = 23, 30, 33, 34
T = S.IPPROTO_TCP
l = S.socket()
l.bind(("127.0.0.1", 0))
l.setsockopt(T, FASTOPEN_KEY, bytes(range(32)))
l.setsockopt(T, FASTOPEN, 7)
l.listen(4)
made = []
for number in range(3):
    c = S.socket()
    c.setsockopt(T, [FASTOPEN_CONNECT, FASTOPEN, NO_COOKIE][number], 1)
    c.connect(l.getsockname())
    assert c.send(b"one") == 3
    made += [(c, l.accept()[0])]
def told():
    return [s.getsockopt(T, o) for c, s in made for s in (c, s) for o in (FASTOPEN, FASTOPEN_CONNECT, NO_COOKIE)]
before = told()
assert before[1] == 1 and before[6] == 1 and before[14] == 1, before
freeze_here()
assert told() == before, (told(), before)
assert l.getsockopt(T, FASTOPEN_KEY, 32) == bytes(range(32)) and l.getsockopt(T, FASTOPEN) == 7
for c, s in made:
    assert c.send(b"two") == 3 and read(s, 6) == b"onetwo"
"#
    )
);

// Where scaling of windows was not agreed on, a window means what it says, though the network allows it by now.
conformance!(
    without_scaling,
    subject(
        r#"
import ctypes, fcntl, struct
assert ctypes.CDLL(None).unshare(0x40000000) == 0   # CLONE_NEWNET
lo = S.socket(S.AF_INET, S.SOCK_DGRAM)
fcntl.ioctl(lo, 0x8914, struct.pack("16sh14x", b"lo", 1))   # SIOCSIFFLAGS: up
def scaling(allowed):
    with open("/proc/sys/net/ipv4/tcp_window_scaling", "w") as setting: setting.write(allowed)
scaling("0")
l, c, s = connection()
scaling("1")
l2, c2, s2 = connection()
def windows():
    out = []
    for a, b in (c, s), (s, c), (c2, s2), (s2, c2):
        a.send(b"x")
        read(b, 1)
        # What it may send, as the other side last told it (tcpi_snd_wnd).
        out.append(struct.unpack_from("I", b.getsockopt(S.IPPROTO_TCP, S.TCP_INFO, 300), 228)[0])
    return out
windows()
freeze_here()
now = windows()
assert all(w > 20000 for w in now), now
"#
    )
);
