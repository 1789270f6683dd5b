//! Conformance of UDP, UDP-Lite and raw sockets: addresses, queues with their senders, groups, options.

use freeze_tests::{conformance, python};

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
"#;

fn subject(text: &str) -> freeze_tests::Subject {
    python(&format!("{BEGIN}\n{text}"))
}

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
# One that nothing else on the machine speaks: raw sockets hear everybody.
PROTOCOL = 150 + os.getpid() % 100
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
