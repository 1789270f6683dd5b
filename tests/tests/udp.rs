//! Conformance of UDP, UDP-Lite and raw sockets: addresses, queues with their senders, groups, options.

use freeze_tests::subject::output;
use freeze_tests::{Running, c, conformance, freeze, python};

const BEGIN: &str = r#"
import socket, struct
S = socket
def options(s):
    out = []
    for level, last in ((S.SOL_SOCKET, 80), (S.IPPROTO_IP, 55), (S.IPPROTO_IPV6, 80), (S.IPPROTO_UDP, 110), (136, 20)):
        for name in range(1, last):
            # Statistics, cookies, the processor it was last heard on, the route's MTU.
            if (level, name) in ((1, 49), (1, 55), (1, 56), (1, 57), (1, 77), (0, 14), (41, 24)):
                continue
            try:
                out.append((level, name, s.getsockopt(level, name, 64)))
            except OSError:
                pass
    return out
def differences(a, b):
    return [(x, y) for x, y in zip(a, b) if x != y]
def alone():
    """Goes into a network of its own: raw sockets hear everybody who speaks their protocol, other tests too."""
    import ctypes, fcntl
    assert ctypes.CDLL(None).unshare(0x40000000) == 0, "unshare(CLONE_NEWNET)"
    with S.socket(S.AF_INET, S.SOCK_DGRAM) as s:
        fcntl.ioctl(s, 0x8914, struct.pack("16sh", b"lo", 1))  # SIOCSIFFLAGS, IFF_UP
"#;

fn subject(text: &str) -> freeze_tests::Subject {
    python(&format!("{BEGIN}\n{text}"))
}

/// Datagrams that came over a pair of devices wait in networks whose loopback device is down, and stays so.
fn over_a_pair() -> freeze_tests::Subject {
    python(
        r#"
import ctypes, os, socket, subprocess, time
libc = ctypes.CDLL(None)
def unshare(flags):
    assert libc.unshare(flags) == 0, "unshare"
def ip(text):
    subprocess.run(["ip", *text.split()], check=True)
def listening(address):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.bind((address, 4444))
    # One waits all the time: on a busy machine a long one.
    s.settimeout(600)
    return s
def sent(s, to, text):
    for _ in range(500):
        try:
            return s.sendto(text, (to, 4444))
        except OSError:
            time.sleep(0.02)
    raise AssertionError("nothing leads there")
unshare(0x40000000)
there, told, go = os.pipe(), os.pipe(), os.pipe()
child = os.fork()
if not child:
    unshare(0x40000000)
    os.write(there[1], b"x")
    os.read(go[0], 1)
    ip("link set frzb up")
    ip("addr add 10.77.0.2/24 dev frzb")
    s = listening("10.77.0.2")
    sent(s, "10.77.0.1", b"one")
    sent(s, "10.77.0.1", b"two")
    os.write(told[1], b"x")
    for end in there + told + go:
        os.close(end)
    data, sender = s.recvfrom(99)
    s.sendto(data + b" heard", sender)
    os._exit(0)
os.read(there[0], 1)
ip("link add frza type veth peer name frzb")
ip(f"link set frzb netns {child}")
ip("link set frza up")
ip("addr add 10.77.0.1/24 dev frza")
s = listening("10.77.0.1")
os.write(go[1], b"x")
os.read(told[0], 1)
for end in there + told + go:
    os.close(end)
assert s.recv(9, socket.MSG_PEEK) == b"one"
before = subprocess.check_output(["ip", "-br", "addr", "show", "dev", "lo"])
freeze_here()
assert subprocess.check_output(["ip", "-br", "addr", "show", "dev", "lo"]) == before, before
assert [s.recvfrom(9) for _ in range(2)] == [(t, ("10.77.0.2", 4444)) for t in (b"one", b"two")]
sent(s, "10.77.0.2", b"it is")
assert s.recv(99) == b"it is heard"
assert os.waitpid(child, 0)[1] == 0
"#,
    )
}

conformance!(over_a_pair_conforms, over_a_pair());

/// Datagrams wait with their bounds and senders, whoever these were; empty ones too.
fn queues() -> freeze_tests::Subject {
    subject(
        r#"
made = []
for family, address, protocol in ((S.AF_INET, "127.0.0.1", 0), (S.AF_INET6, "::1", 0), (S.AF_INET, "127.0.0.1", 136),
                                  (S.AF_INET6, "::1", 136)):
    target = S.socket(family, S.SOCK_DGRAM, protocol)
    target.bind(("", 0))
    port = target.getsockname()[1]
    sender = S.socket(family, S.SOCK_DGRAM, protocol)
    sender.bind((address, 0))
    sender.sendto(b"one", (address, port))
    sender.sendto(b"z" * 20000, (address, port))
    gone = S.socket(family, S.SOCK_DGRAM, protocol)
    gone.sendto(b"odd", (address, port))
    name = gone.getsockname()[1]
    gone.close()
    made.append((target, sender, address, port, name))
freeze_here()
for target, sender, address, port, name in made:
    target.settimeout(5)
    data, source = target.recvfrom(100)
    assert data == b"one" and source[:2] == (address, sender.getsockname()[1]), source
    data, source = target.recvfrom(100000)
    assert data == b"z" * 20000 and source[:2] == (address, sender.getsockname()[1])
    data, source = target.recvfrom(100)
    assert data == b"odd" and source[:2] == (address, name)
    assert target.getsockname()[1] == port
    sender.sendto(b"more", (address, port))
    assert target.recv(9) == b"more"
"#,
    )
}

/// Connected ones hear and reach their peer only; fresh ones are fresh; ports are shared as they were.
fn connected() -> freeze_tests::Subject {
    subject(
        r#"
a = S.socket(S.AF_INET, S.SOCK_DGRAM)
b = S.socket(S.AF_INET, S.SOCK_DGRAM)
a.bind(("127.0.0.1", 0))
b.connect(a.getsockname())
a.connect(b.getsockname())
b.send(b"to a")
fresh = S.socket(S.AF_INET6, S.SOCK_DGRAM)
group = []
for n in range(3):
    g = S.socket(S.AF_INET, S.SOCK_DGRAM)
    g.setsockopt(S.SOL_SOCKET, S.SO_REUSEPORT, 1)
    g.bind(("127.0.0.1", group[0].getsockname()[1] if group else 0))
    group.append(g)
for n in range(20):
    x = S.socket(S.AF_INET, S.SOCK_DGRAM)
    x.sendto(b"%d" % n, group[0].getsockname())
    x.close()
def counts():
    out = []
    for g in group:
        g.setsockopt(S.SOL_SOCKET, 42, 0)
        n = 0
        try:
            while True:
                g.recv(10, S.MSG_PEEK | S.MSG_DONTWAIT)
                n += 1
        except BlockingIOError:
            pass
        g.setsockopt(S.SOL_SOCKET, 42, -1)
        out.append(n)
    return out
before = counts()
assert sum(before) == 20
names = a.getsockname(), a.getpeername(), b.getsockname(), b.getpeername(), fresh.getsockname()
freeze_here()
assert names == (a.getsockname(), a.getpeername(), b.getsockname(), b.getpeername(), fresh.getsockname())
assert a.recv(9) == b"to a"
a.send(b"to b")
assert b.recv(9) == b"to b"
assert counts() == before
S.socket(S.AF_INET, S.SOCK_DGRAM).sendto(b"stranger", a.getsockname())
try:
    a.recv(9, S.MSG_DONTWAIT)
    assert False, "a stranger is heard"
except BlockingIOError:
    pass
"#,
    )
}

/// Options and multicast groups, with the sources that are heard.
fn groups() -> freeze_tests::Subject {
    subject(
        r#"
alone()
lo = S.if_nametoindex("lo")
a = S.socket(S.AF_INET, S.SOCK_DGRAM)
a.setsockopt(S.SOL_SOCKET, S.SO_BROADCAST, 1)
a.setsockopt(S.SOL_SOCKET, S.SO_RCVBUF, 100000)
a.setsockopt(S.IPPROTO_IP, S.IP_MULTICAST_TTL, 3)
a.setsockopt(S.IPPROTO_IP, S.IP_TTL, 33)
a.setsockopt(S.IPPROTO_IP, 8, 1)
a.bind(("", 0))
member = struct.pack("4s4si", S.inet_aton("239.7.7.7"), S.inet_aton("0.0.0.0"), lo)
a.setsockopt(S.IPPROTO_IP, S.IP_ADD_MEMBERSHIP, member)
b = S.socket(S.AF_INET6, S.SOCK_DGRAM)
b.setsockopt(S.IPPROTO_IPV6, S.IPV6_V6ONLY, 1)
b.setsockopt(S.IPPROTO_IPV6, S.IPV6_MULTICAST_HOPS, 5)
b.setsockopt(S.IPPROTO_IPV6, S.IPV6_JOIN_GROUP, S.inet_pton(S.AF_INET6, "ff01::77") + struct.pack("i", lo))
PROTOCOL = 150
raw = S.socket(S.AF_INET, S.SOCK_RAW, PROTOCOL)
raw.bind(("127.0.0.1", 0))
before = [options(s) for s in (a, b, raw)]
def is_member(s, level, option, request):
    try:
        s.setsockopt(level, option, request)
    except OSError as e:
        return e.errno == 98
freeze_here()
after = [options(s) for s in (a, b, raw)]
assert after == before, [differences(x, y) for x, y in zip(after, before)]
assert is_member(a, S.IPPROTO_IP, S.IP_ADD_MEMBERSHIP, member)
assert is_member(b, S.IPPROTO_IPV6, S.IPV6_JOIN_GROUP, S.inet_pton(S.AF_INET6, "ff01::77") + struct.pack("i", lo))
assert not is_member(b, S.IPPROTO_IPV6, S.IPV6_JOIN_GROUP, S.inet_pton(S.AF_INET6, "ff01::78") + struct.pack("i", lo))
assert raw.getsockname()[0] == "127.0.0.1"
S.socket(S.AF_INET, S.SOCK_RAW, PROTOCOL).sendto(b"raw", ("127.0.0.1", 0))
raw.settimeout(5)
assert raw.recv(100).endswith(b"raw")
"#,
    )
}

conformance!(queues_conform, queues());
conformance!(connected_conform, connected());
conformance!(groups_conform, groups());

conformance!(
    shut_halves,
    c(r#"
#include <netinet/in.h>
/* Halves that are shut, of which poll(2) tells one; nothing is sent through the other. */
int main(void) {
    struct sockaddr_in to = { AF_INET, 0, { htonl(INADDR_LOOPBACK) } };
    socklen_t len = sizeof to;
    int server = OK(socket(AF_INET, SOCK_DGRAM, 0)), s[3];
    OK(bind(server, (void *)&to, sizeof to));
    OK(getsockname(server, (void *)&to, &len));
    for (int how = 0; how < 3; how++) {
        s[how] = OK(socket(AF_INET, SOCK_DGRAM, 0));
        OK(connect(s[how], (void *)&to, sizeof to));
        OK(shutdown(s[how], how));
    }
    freeze_here();
    char byte;
    for (int how = 0; how < 3; how++) {
        ssize_t sent = send(s[how], "x", 1, MSG_NOSIGNAL);
        if (how == SHUT_RD) SAME(sent, 1);
        else CHECK(sent == -1 && errno == EPIPE);
        /* Who does not want to wait is told to try again all the same. */
        ssize_t got = recv(s[how], &byte, 1, how == SHUT_WR ? MSG_DONTWAIT : 0);
        if (how == SHUT_WR) CHECK(got == -1 && errno == EAGAIN);
        else SAME(got, 0);
    }
}
"#)
);

conformance!(
    from_both_families,
    c(r#"
#include <netinet/in.h>
/* What waits in one socket came by IPv4 and by IPv6, and the options of the newer sort are there. */
int main(void) {
    struct sockaddr_in6 any = { AF_INET6 }, from;
    socklen_t len = sizeof any;
    int s = OK(socket(AF_INET6, SOCK_DGRAM, 0)), options[][2] = {
        { 31 /* IPV6_RECVERR_RFC4884 */, 1 }, { 2 /* IPV6_2292PKTINFO */, 1 }, { 8 /* IPV6_2292HOPLIMIT */, 1 },
    };
    OK(bind(s, (void *)&any, sizeof any));
    OK(getsockname(s, (void *)&any, &len));
    for (int i = 0; i < 3; i++) setsockopt(s, IPPROTO_IPV6, options[i][0], &options[i][1], sizeof(int));
    for (int i = 0; i < 3; i++) { socklen_t n = sizeof(int); OK(getsockopt(s, IPPROTO_IPV6, options[i][0], &options[i][1], &n)); }
    struct sockaddr_in four = { AF_INET, any.sin6_port, { htonl(INADDR_LOOPBACK) } };
    struct sockaddr_in6 six = { AF_INET6, any.sin6_port, 0, IN6ADDR_LOOPBACK_INIT };
    int a = OK(socket(AF_INET, SOCK_DGRAM, 0)), b = OK(socket(AF_INET6, SOCK_DGRAM, 0));
    for (int i = 0; i < 2; i++) {
        SAME(sendto(a, "four", 4, 0, (void *)&four, sizeof four), 4);
        SAME(sendto(b, "sixes", 5, 0, (void *)&six, sizeof six), 5);
    }
    freeze_here();
    char data[16];
    for (int i = 0; i < 4; i++) {
        len = sizeof from;
        SAME(recvfrom(s, data, sizeof data, MSG_DONTWAIT, (void *)&from, &len), i % 2 ? 5 : 4);
        SAME(!!IN6_IS_ADDR_V4MAPPED(&from.sin6_addr), i % 2 ? 0 : 1);
    }
    for (int i = 0; i < 3; i++) {
        int now;
        socklen_t n = sizeof now;
        OK(getsockopt(s, IPPROTO_IPV6, options[i][0], &now, &n));
        SAME(now, options[i][1]);
    }
}
"#)
);

conformance!(
    echo_of_another_time,
    c(r#"
#include <netinet/in.h>
/* A ping socket that was made while the machine allowed it. */
int main(void) {
    char range[64];
    int f = open("/proc/sys/net/ipv4/ping_group_range", O_RDWR);
    ssize_t n = f < 0 ? 0 : OK(read(f, range, sizeof range));
    if (f >= 0) pwrite(f, "0 2147483647", 12, 0);
    int s = socket(AF_INET, SOCK_DGRAM, IPPROTO_ICMP);
    if (f >= 0) pwrite(f, range, n, 0);
    if (f >= 0) close(f);
    struct sockaddr_in own = { AF_INET, htons(1024 + getpid() % 60000), { htonl(INADDR_LOOPBACK) } };
    if (s >= 0) OK(bind(s, (void *)&own, sizeof own));
    freeze_here();
    if (s < 0) return 0;
    char echo[8] = { 8 }, back[16];
    own.sin_port = 0;
    SAME(sendto(s, echo, 8, 0, (void *)&own, sizeof own), 8);
    SAME(recv(s, back, sizeof back, 0), 8);
    SAME(back[0], 0);
}
"#)
);

conformance!(
    without_a_port,
    subject(
        r#"
# A raw socket has a peer that has no port, of which getpeername(2) says nothing.
alone()
PROTOCOL = 150
r = S.socket(S.AF_INET, S.SOCK_RAW, PROTOCOL)
r.bind(("127.0.0.1", 0))
r.connect(("127.0.0.5", 0))
r6 = S.socket(S.AF_INET6, S.SOCK_RAW, PROTOCOL)
r6.connect(("::1", 0))
peer = S.socket(S.AF_INET, S.SOCK_RAW, PROTOCOL)
peer.bind(("127.0.0.5", 0))
freeze_here()
r.send(b"raw")
peer.settimeout(20)
assert peer.recv(100).endswith(b"raw")
r6.send(b"raw")
r6.settimeout(20)
assert r6.recv(100).endswith(b"raw")
"#
    )
);

conformance!(
    nobody_answers,
    subject(
        r#"
# A neighbour is asked for that is not there: what is sent to it waits for seconds, but is not being put together.
import fcntl, subprocess, termios, threading, time
alone()
for line in ("link add d0 type veth peer name d1", "link set d1 up", "link set d0 up", "address add 10.9.0.1/24 dev d0"):
    subprocess.run(["ip", *line.split()], check=True)
s = S.socket(S.AF_INET, S.SOCK_DGRAM)
s.connect(("10.9.0.2", 9))
def send():
    while True:
        try:
            s.send(b"who hears me?")
        except OSError:
            pass
        time.sleep(0.02)
def waits():
    return struct.unpack("i", fcntl.ioctl(s, termios.TIOCOUTQ, bytes(4)))[0] > 0
def until_it_waits():
    end = time.monotonic() + 20
    while not waits():
        assert time.monotonic() < end
        time.sleep(0.01)
threading.Thread(target=send, daemon=True).start()
until_it_waits()
freeze_here()
until_it_waits()
"#
    )
);

#[test]
fn datagrams_that_cannot_be_had_again_are_told_of() {
    let text = r#"
import ctypes, socket, subprocess
S = socket
assert ctypes.CDLL(None).unshare(0x40000000) == 0
def ip(*words):
    subprocess.run(["ip"] + list(words), check=True)
ip("link", "set", "lo", "up")
ip("address", "add", "10.99.0.1/32", "dev", "lo")
s = S.socket(S.AF_INET, S.SOCK_DGRAM)
s.bind(("0.0.0.0", 0))
to = "127.0.0.1", s.getsockname()[1]
def send(data, host):
    x = S.socket(S.AF_INET, S.SOCK_DGRAM)
    x.bind((host, 0))
    x.sendto(data, to)
send(b"one", "127.0.0.1")
send(b"lost", "10.99.0.1")
send(b"two", "127.0.0.1")
ip("address", "delete", "10.99.0.1/32", "dev", "lo")
freeze_here()
assert [s.recv(9, S.MSG_DONTWAIT) for n in range(2)] == [b"one", b"two"]
send(b"more", "127.0.0.1")
assert s.recv(9) == b"more"
"#;
    let mut running = Running::start(&python(text), "udp::datagrams_that_cannot_be_had_again");
    let image = running.dir().join("image");
    let mut command = freeze();
    command.arg("checkpoint").arg(running.pid.to_string());
    let done = output(command.arg("--to").arg(&image).arg("--kill"));
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    running.wait_gone();
    let done = output(freeze().arg("restore").arg(&image).arg("--detach"));
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success(), "{said}");
    running.pids();
    let told = "1 datagram(s) that waited to be read are lost, the first from 10.99.0.1:";
    assert!(said.contains(told), "{said}");
    running.verdict();
}

conformance!(
    by_another_device,
    c(r#"
#include <net/if.h>
#include <netinet/in.h>
/* What goes to a group goes by the device that was chosen, of which getsockopt(2) tells the address only. */
int main(void) {
    struct ip_mreqn by = { .imr_ifindex = OK(if_nametoindex("lo")) }, group = by;
    struct sockaddr_in to = { AF_INET, 0, { htonl(0xefff4242 /* 239.255.66.66 */) } };
    socklen_t len = sizeof to;
    int hears = OK(socket(AF_INET, SOCK_DGRAM, 0)), s = OK(socket(AF_INET, SOCK_DGRAM, 0));
    OK(bind(hears, (void *)&to, sizeof to));
    OK(getsockname(hears, (void *)&to, &len));
    group.imr_multiaddr = to.sin_addr;
    OK(setsockopt(hears, IPPROTO_IP, IP_ADD_MEMBERSHIP, &group, sizeof group));
    OK(setsockopt(s, IPPROTO_IP, IP_MULTICAST_IF, &by, sizeof by));
    int few = 3;
    OK(setsockopt(s, IPPROTO_IP, IP_MULTICAST_TTL, &few, sizeof few));
    freeze_here();
    char byte;
    SAME(sendto(s, "x", 1, 0, (void *)&to, sizeof to), 1);
    struct pollfd one = { hears, POLLIN };
    SAME(poll(&one, 1, 10000), 1);
    SAME(recv(hears, &byte, 1, 0), 1);
}
"#)
);

conformance!(
    newer_options,
    c(r#"
#include <netinet/in.h>
/* Options that not every kernel has, and one that is told by a level by which it cannot be set. */
int main(void) {
    struct { int socket, level, name, value; } all[] = {
        { 0, SOL_SOCKET, 63 /* SO_TIMESTAMP_NEW */, 1 }, { 1, SOL_SOCKET, 64 /* SO_TIMESTAMPNS_NEW */, 1 },
        { 2, SOL_SOCKET, 65 /* SO_TIMESTAMPING_NEW */, 2 }, { 0, SOL_SOCKET, 75 /* SO_RCVMARK */, 1 },
        { 2, IPPROTO_IP, IP_ROUTER_ALERT, 1 }, { 3, SOL_RAW, 7 /* IPV6_CHECKSUM */, 4 },
    };
    OK(unshare(CLONE_NEWNET)); /* raw sockets hear everybody */
    int s[4] = { OK(socket(AF_INET, SOCK_DGRAM, 0)), OK(socket(AF_UNIX, SOCK_DGRAM, 0)), OK(socket(AF_INET, SOCK_RAW, 99)),
                 OK(socket(AF_INET6, SOCK_RAW, IPPROTO_ICMPV6)) };
    int n = sizeof all / sizeof *all, now[2];
    for (int i = 0; i < n; i++) {
        socklen_t len = sizeof now;
        if (setsockopt(s[all[i].socket], all[i].level, all[i].name, &all[i].value, sizeof(int)) == -1) all[i].value = -1;
        if (getsockopt(s[all[i].socket], all[i].level, all[i].name, now, &len) == -1) all[i].value = -1;
    }
    freeze_here();
    for (int i = 0; i < n; i++) {
        socklen_t len = sizeof now;
        if (all[i].value == -1) continue;
        OK(getsockopt(s[all[i].socket], all[i].level, all[i].name, now, &len));
        SAME(now[0], all[i].value);
    }
}
"#)
);

conformance!(
    empty_datagrams,
    c(r#"
#include <netinet/in.h>
/* Empty datagrams of several senders are there however often the queue was looked at. */
int main(void) {
    int receiver = OK(socket(AF_INET, SOCK_DGRAM, 0)), senders[3];
    struct sockaddr_in name = {AF_INET, 0, {htonl(INADDR_LOOPBACK)}};
    socklen_t len = sizeof name;
    OK(bind(receiver, (void *)&name, len));
    OK(getsockname(receiver, (void *)&name, &len));
    for (int i = 0; i < 3; i++) {
        senders[i] = OK(socket(AF_INET, SOCK_DGRAM, 0));
        OK(connect(senders[i], (void *)&name, len));
    }
    for (int i = 0; i < 9; i++) OK(send(senders[i % 3], "abcdef", i / 3 * 2 % 4, 0));
    freeze_here();
    for (int i = 0; i < 9; i++) {
        struct sockaddr_in from, own;
        char room[9];
        len = sizeof from;
        SAME(recvfrom(receiver, room, 9, 0, (void *)&from, &len), i / 3 * 2 % 4);
        len = sizeof own;
        OK(getsockname(senders[i % 3], (void *)&own, &len));
        SAME(from.sin_port, own.sin_port);
    }
}
"#)
);

conformance!(
    port_to_come,
    c(r#"
#include <netinet/in.h>
/* One that was bound to an address, and is to have a port only when it is connected (IP_BIND_ADDRESS_NO_PORT), and one that
   gave up a port that was not of its choice when it let go of its peer. */
int main(void) {
    int on = 1, fds[3], sorts[3] = {SOCK_DGRAM, SOCK_STREAM, SOCK_DGRAM};
    struct sockaddr_in to = {AF_INET, htons(9), {htonl(INADDR_LOOPBACK)}}, nowhere = {AF_UNSPEC};
    struct sockaddr_in name = {AF_INET, 0, {htonl(INADDR_LOOPBACK)}};
    socklen_t len = sizeof name;
    for (int i = 0; i < 3; i++) {
        fds[i] = OK(socket(AF_INET, sorts[i], 0));
        if (i < 2) OK(setsockopt(fds[i], IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on));
        OK(bind(fds[i], (void *)&name, sizeof name));
        if (i < 2) continue;
        OK(connect(fds[i], (void *)&to, sizeof to));
        OK(connect(fds[i], (void *)&nowhere, sizeof nowhere));
    }
    freeze_here();
    for (int i = 0; i < 3; i++) {
        int without;
        OK(getsockopt(fds[i], IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &without, &len));
        SAME(without, i < 2);
        len = sizeof name;
        memset(&name, 0, sizeof name);
        OK(getsockname(fds[i], (void *)&name, &len));
        SAME(ntohl(name.sin_addr.s_addr), INADDR_LOOPBACK);
        SAME(name.sin_port, 0);
    }
}
"#)
);

// A program may choose among those that share a port by what comes; whoever has something to read already stays one of them.
conformance!(
    chosen_among,
    python(
        r#"
import ctypes, socket as S, struct
REUSEPORT_CBPF, LOCK_FILTER = 51, 44
def group(kind, address=("127.0.0.1", 0)):
    out = []
    for n in range(3):
        s = S.socket(S.AF_INET, kind)
        s.setsockopt(S.SOL_SOCKET, S.SO_REUSEPORT, 1)
        s.bind(address)
        s.settimeout(5)
        address = s.getsockname()
        if kind == S.SOCK_STREAM:
            s.listen(9)
        out.append(s)
    return out
# The number that the first byte is; for connections, which come without any, always the last.
by_byte = struct.pack("HBBI", 0x30, 0, 0, 0) + struct.pack("HBBI", 0x16, 0, 0, 0)
last = struct.pack("HBBI", 0x06, 0, 0, 2)
def choose(s, program):
    held = ctypes.create_string_buffer(program, len(program))
    s.setsockopt(S.SOL_SOCKET, REUSEPORT_CBPF, struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(held)))
datagrams, listening = group(S.SOCK_DGRAM), group(S.SOCK_STREAM)
choose(datagrams[0], by_byte)
choose(listening[1], last)
for s in (datagrams[1], listening[0]):
    s.setsockopt(S.SOL_SOCKET, LOCK_FILTER, 1)
client = S.socket(S.AF_INET, S.SOCK_DGRAM)
def say(words):
    for n in range(3):
        client.sendto(bytes([n]) + words, datagrams[0].getsockname())
say(b"before")
freeze_here()
say(b"after")
for n, s in enumerate(datagrams):
    assert s.recv(9) == bytes([n]) + b"before"
    assert s.recv(9) == bytes([n]) + b"after"
for _ in range(4):
    S.create_connection(listening[0].getsockname())
    listening[2].accept()
"#
    )
);

conformance!(
    flow_of_a_peer,
    c(r#"
#include <netinet/in.h>
#define FLOWINFO_SEND 33
/* What the address of the peer said of class and label is in every packet, and told with the address. */
int main(void) {
    struct sockaddr_in6 to = { .sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT }, now;
    socklen_t len = sizeof to;
    int listener = OK(socket(AF_INET6, SOCK_STREAM, 0)), on = 1;
    OK(bind(listener, (void *)&to, sizeof to)); OK(listen(listener, 4));
    OK(getsockname(listener, (void *)&to, &len));
    int s[2] = { OK(socket(AF_INET6, SOCK_STREAM, 0)), OK(socket(AF_INET6, SOCK_DGRAM, 0)) };
    to.sin6_flowinfo = htonl(0x12345);
    for (int i = 0; i < 2; i++) {
        OK(setsockopt(s[i], IPPROTO_IPV6, FLOWINFO_SEND, &on, sizeof on));
        OK(connect(s[i], (void *)&to, sizeof to));
    }
    int there = OK(accept(listener, 0, 0));
    freeze_here();
    for (int i = 0; i < 2; i++) {
        OK(getpeername(s[i], (void *)&now, &len));
        SAME(ntohl(now.sin6_flowinfo), 0x12345);
        SAME(now.sin6_port, to.sin6_port);
    }
    SAME(write(s[0], "x", 1), 1);
    SAME(read(there, &on, 1), 1);
}
"#)
);

conformance!(
    anycast,
    python(
        r#"
import ctypes, socket as S, struct, subprocess
# Several may answer for such an address, and a socket says that its host is one of them.
assert ctypes.CDLL(None).unshare(0x40000000) == 0   # CLONE_NEWNET
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
subprocess.run(["ip", "addr", "add", "fd00::1/64", "dev", "lo", "nodad"], check=True)
lo = struct.pack("I", S.if_nametoindex("lo"))
sockets = [S.socket(S.AF_INET6, S.SOCK_DGRAM) for _ in range(3)]
for n, s in enumerate(sockets):
    for address in range(n):
        s.setsockopt(S.IPPROTO_IPV6, 27, S.inet_pton(S.AF_INET6, "fd00::a%d" % address) + lo)   # IPV6_JOIN_ANYCAST
def shared():
    return sorted(line.split()[2:] for line in open("/proc/thread-self/net/anycast6"))
before = shared()
assert len(before) == 2
freeze_here()
assert shared() == before, (before, shared())
for n, s in enumerate(sockets):
    for address in range(n):
        s.setsockopt(S.IPPROTO_IPV6, 28, S.inet_pton(S.AF_INET6, "fd00::a%d" % address) + lo)   # IPV6_LEAVE_ANYCAST
assert shared() == []
"#
    )
);
