//! Conformance of unix sockets: pairs, connections, names, queues, credentials, halves, those who wait.

use freeze_tests::{c, conformance, python};

/// What every subject here begins with; its working directory is the subject's own.
const BEGIN: &str = r#"
import array, signal, socket, struct
S = socket
os.chdir(HERE)
TAG = "\0freeze-test-%d-" % os.getpid()
def credentials(s):
    return struct.unpack("iII", s.getsockopt(S.SOL_SOCKET, S.SO_PEERCRED, 12))
def options(s):
    out = []
    for name in range(1, 80):
        # SO_PEERPIDFD makes a descriptor; SO_INCOMING_CPU and SO_COOKIE change by themselves.
        if name in (49, 57, 77):
            continue
        try:
            out.append((name, s.getsockopt(S.SOL_SOCKET, name, 64)))
        except OSError:
            pass
    return out
"#;

fn subject(text: &str) -> freeze_tests::Subject {
    python(&format!("{BEGIN}\n{text}"))
}

/// A pair keeps both queues, its options, its owner's mode and the credentials of who made it.
fn pair() -> freeze_tests::Subject {
    subject(
        r#"
a, b = S.socketpair()
a.send(b"to b")
b.send(b"to a" * 1000)
a.setsockopt(S.SOL_SOCKET, S.SO_SNDBUF, 50000)
a.setsockopt(S.SOL_SOCKET, S.SO_PRIORITY, 3)
b.setsockopt(S.SOL_SOCKET, S.SO_RCVTIMEO, struct.pack("ll", 3, 500000))
b.setsockopt(S.SOL_SOCKET, S.SO_LINGER, struct.pack("ii", 1, 7))
os.fchmod(b.fileno(), 0o600)
before = options(a), options(b)
freeze_here()
assert (options(a), options(b)) == before, (before, options(a), options(b))
assert b.recv(100) == b"to b" and a.recv(10000) == b"to a" * 1000
assert credentials(a) == credentials(b) == (os.getpid(), os.getuid(), os.getgid())
assert os.fstat(b.fileno()).st_mode & 0o777 == 0o600
a.send(b"x")
assert b.recv(5) == b"x"
a.close()
assert b.recv(5) == b""
"#,
    )
}

/// Datagrams and packets keep their bounds, whatever their size.
fn bounds() -> freeze_tests::Subject {
    subject(
        r#"
pairs = [S.socketpair(S.AF_UNIX, kind) for kind in (S.SOCK_DGRAM, S.SOCK_SEQPACKET)]
for a, b in pairs:
    a.send(b"one")
    a.send(b"two22")
    b.send(b"z" * 70000)
freeze_here()
for a, b in pairs:
    assert b.recv(100) == b"one" and b.recv(100) == b"two22" and a.recv(100000) == b"z" * 70000
    a.send(b"more")
    assert b.recv(9) == b"more"
"#,
    )
}

/// Descriptors travel in a queue, and come out as the descriptions they were.
fn descriptors() -> freeze_tests::Subject {
    subject(
        r#"
a, b = S.socketpair()
r, w = os.pipe()
os.write(w, b"in the pipe")
a.sendmsg([b"hi"], [(S.SOL_SOCKET, S.SCM_RIGHTS, array.array("i", [r, w]))])
a.send(b"after")
freeze_here()
data, control, _, _ = b.recvmsg(100, 1000)
fds = array.array("i")
fds.frombytes(control[0][2])
assert os.read(fds[0], 100) == b"in the pipe"
os.write(fds[1], b"m")
assert os.read(r, 10) == b"m"
assert data + (b.recv(100) if data == b"hi" else b"") == b"hiafter"
"#,
    )
}

/// Who reads just what came before descriptors gets none with it, and they wait for the next to read.
fn after_data() -> freeze_tests::Subject {
    subject(
        r#"
a, b = S.socketpair()
r, w = os.pipe()
def sent_with(fd, data):
    a.sendmsg([data], [(S.SOL_SOCKET, S.SCM_RIGHTS, array.array("i", [fd]))])
a.send(b"he")
a.send(b"ad")
sent_with(r, b"body")
sent_with(w, b"x")
a.send(b"tail")
freeze_here()
def came(data, fds):
    got, control, _, _ = b.recvmsg(len(data), 1000)
    assert (got, len(control)) == (data, fds), (got, control)
came(b"head", 0)
came(b"bo", 1)
came(b"dy", 0)
came(b"x", 1)
came(b"tail", 0)
"#,
    )
}

/// Halves that are shut stay shut, ends whose peer is closed see the end, or that it did not read all.
fn halves() -> freeze_tests::Subject {
    subject(
        r#"
a, b = S.socketpair()
a.send(b"last")
a.shutdown(S.SHUT_WR)
b.send(b"back")
c, d = S.socketpair()
c.send(b"bye")
c.close()
e, f = S.socketpair()
f.send(b"unread")
e.send(b"data")
e.close()
freeze_here()
assert b.recv(10) == b"last" and b.recv(10) == b"" and a.recv(10) == b"back"
b.send(b"ok")
assert a.recv(9) == b"ok"
try:
    a.send(b"x")
    assert False, "a half that is shut takes data"
except BrokenPipeError:
    pass
assert d.recv(9) == b"bye" and d.recv(9) == b""
assert f.recv(9) == b"data"
try:
    f.recv(9)
    assert False, "the peer's haste is forgotten"
except ConnectionResetError:
    pass
"#,
    )
}

/// Listening sockets keep names, files, backlog and those who wait; connections made by them go on.
fn listening() -> freeze_tests::Subject {
    subject(
        r#"
l = S.socket(S.AF_UNIX)
os.umask(0o027)
l.bind(HERE + "/l.sock")
os.chown(HERE + "/l.sock", 1000, 1001)
l.listen(7)
c = S.socket(S.AF_UNIX)
c.connect(HERE + "/l.sock")
s, _ = l.accept()
c.send(b"hello")
s.send(b"world")
w = S.socket(S.AF_UNIX)
w.connect(HERE + "/l.sock")
w2 = S.socket(S.AF_UNIX)
w2.bind(TAG + "client")
w2.connect(HERE + "/l.sock")
r = S.socket(S.AF_UNIX)
r.bind("relative.sock")
r.listen(1)
u = S.socket(S.AF_UNIX)
u.bind(HERE + "/gone.sock")
u.listen(3)
os.unlink(HERE + "/gone.sock")
freeze_here()
st = os.stat(HERE + "/l.sock")
assert (st.st_uid, st.st_gid, st.st_mode & 0o7777) == (1000, 1001, 0o750), st
assert c.getpeername() == HERE + "/l.sock" == s.getsockname() and s.getpeername() == ""
assert s.recv(9) == b"hello" and c.recv(9) == b"world"
assert credentials(s) == credentials(c) == (os.getpid(), os.getuid(), os.getgid())
x, _ = l.accept()
w.send(b"first")
assert x.recv(9) == b"first" and credentials(x)[0] == os.getpid()
x, address = l.accept()
assert address == (TAG + "client").encode(), address
assert r.getsockname() == "relative.sock"
n = S.socket(S.AF_UNIX)
n.connect(HERE + "/relative.sock")
r.accept()
assert u.getsockname() == HERE + "/gone.sock" and not os.path.exists(HERE + "/gone.sock")
held = []
try:
    while len(held) < 20:
        n = S.socket(S.AF_UNIX)
        n.setblocking(False)
        n.connect(HERE + "/l.sock")
        held.append(n)
except BlockingIOError:
    pass
assert len(held) == 8, len(held)
"#,
    )
}

/// Abstract names, those of the kernel's choice, and senders that are gone or whose listening socket is.
fn abstract_names() -> freeze_tests::Subject {
    subject(
        r#"
l = S.socket(S.AF_UNIX)
l.bind(TAG + "l")
l.listen(5)
c = S.socket(S.AF_UNIX)
c.connect(TAG + "l")
s, _ = l.accept()
c.send(b"hello")
auto = S.socket(S.AF_UNIX, S.SOCK_DGRAM)
auto.bind("")
name = auto.getsockname()
d = S.socket(S.AF_UNIX, S.SOCK_DGRAM)
d.connect(name)
d.send(b"nameless")
n = S.socket(S.AF_UNIX, S.SOCK_DGRAM)
n.bind(TAG + "n")
n.sendto(b"named", name)
g = S.socket(S.AF_UNIX, S.SOCK_DGRAM)
g.bind(TAG + "ghost")
g.sendto(b"gone", name)
g.close()
e = S.socket(S.AF_UNIX, S.SOCK_DGRAM)
e.bind(TAG + "e")
e.connect(TAG + "n")
n.connect(name)
lc = S.socket(S.AF_UNIX)
lc.bind(TAG + "closed")
lc.listen(1)
cc = S.socket(S.AF_UNIX)
cc.connect(TAG + "closed")
cs, _ = lc.accept()
lc.close()
freeze_here()
tag = TAG.encode()
assert s.recv(9) == b"hello" and c.getpeername() == tag + b"l" == s.getsockname()
assert auto.getsockname() == name
assert auto.recvfrom(99) == (b"nameless", None)
assert auto.recvfrom(99) == (b"named", tag + b"n")
assert auto.recvfrom(99) == (b"gone", tag + b"ghost")
d.send(b"x")
assert auto.recv(9) == b"x"
assert e.getpeername() == tag + b"n" and n.getpeername() == name
assert cc.getpeername() == tag + b"closed" == cs.getsockname()
cc.send(b"1")
assert cs.recv(1) == b"1"
n2 = S.socket(S.AF_UNIX)
n2.connect(TAG + "l")
l.accept()
"#,
    )
}

/// Messages and connections show who sent and made them, across processes and users.
fn credentials() -> freeze_tests::Subject {
    subject(
        r#"
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
a, b = S.socketpair(S.AF_UNIX, S.SOCK_DGRAM)
b.setsockopt(S.SOL_SOCKET, S.SO_PASSCRED, 1)
l = S.socket(S.AF_UNIX)
l.bind(TAG + "l")
l.listen(5)
child = os.fork()
if child == 0:
    os.setgid(1001)
    os.setuid(1000)
    c = S.socket(S.AF_UNIX)
    c.connect(TAG + "l")
    a.send(b"child")
    signal.sigwait([signal.SIGUSR1])
    a.send(b"again")
    assert credentials(c)[0] == os.getppid()
    c.send(b"hey")
    os._exit(7)
s, _ = l.accept()
assert credentials(s) == (child, 1000, 1001)
# Waits until the child's message is there, by a look that takes nothing.
b.recv(1, S.MSG_PEEK)
a.send(b"me")
freeze_here()
def message():
    data, control, _, _ = b.recvmsg(99, 999)
    return data, struct.unpack("iII", control[0][2])
me = (os.getpid(), os.getuid(), os.getgid())
assert message() == (b"child", (child, 1000, 1001))
assert message() == (b"me", me)
assert credentials(s) == (child, 1000, 1001)
os.kill(child, signal.SIGUSR1)
assert message() == (b"again", (child, 1000, 1001))
assert s.recv(9) == b"hey"
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
"#,
    )
}

/// What nobody holds any more but a queue is carried in it: files, pipes, and sockets with queues of their own.
fn only_in_queues() -> freeze_tests::Subject {
    subject(
        r#"
a, b = S.socketpair()
r, w = os.pipe()
os.write(w, b"in the pipe")
c, d = S.socketpair()
e, f = S.socketpair(S.AF_UNIX, S.SOCK_DGRAM)
e.send(b"deepest")
d.sendmsg([b"deep"], [(S.SOL_SOCKET, S.SCM_RIGHTS, array.array("i", [f.fileno()]))])
f.close()
file = os.open(HERE + "/file", os.O_RDWR | os.O_CREAT, 0o600)
os.write(file, b"abc")
a.sendmsg([b"hi"], [(S.SOL_SOCKET, S.SCM_RIGHTS, array.array("i", [r, c.fileno(), file]))])
os.close(r)
c.close()
os.close(file)
freeze_here()
def receive(s):
    data, control, _, _ = s.recvmsg(100, 1000)
    fds = array.array("i")
    fds.frombytes(control[0][2])
    return data, fds
data, (r, c, file) = receive(b)
assert data == b"hi" and os.read(r, 100) == b"in the pipe"
os.write(w, b"m")
assert os.read(r, 10) == b"m" and os.lseek(file, 0, os.SEEK_CUR) == 3
c = S.socket(fileno=c)
data, (f,) = receive(c)
assert data == b"deep"
f = S.socket(fileno=f)
assert f.recv(100) == b"deepest"
f.send(b"up")
assert e.recv(100) == b"up"
d.send(b"k")
assert c.recv(9) == b"k"
"#,
    )
}

/// A name whose file was renamed or lost its directory, and how far a program has peeked.
fn moved() -> freeze_tests::Subject {
    subject(
        r#"
a, b = S.socketpair()
b.setsockopt(S.SOL_SOCKET, 42, 3)
a.send(b"0123456789")
assert b.recv(2, S.MSG_PEEK) == b"34"
relative, absolute, gone = S.socket(S.AF_UNIX), S.socket(S.AF_UNIX), S.socket(S.AF_UNIX)
os.mkdir("d")
relative.bind("r1")
absolute.bind(HERE + "/a1")
gone.bind("d/x")
for s in relative, absolute, gone:
    s.listen(2)
os.rename("r1", "r2")
os.rename("a1", "d2")
os.unlink("d/x")
os.rmdir("d")
names = [s.getsockname() for s in (relative, absolute, gone)]
freeze_here()
assert names == [s.getsockname() for s in (relative, absolute, gone)]
assert not os.path.exists("r1") and not os.path.exists("a1") and not os.path.exists("d")
for path, s in ("r2", relative), ("d2", absolute):
    c = S.socket(S.AF_UNIX)
    c.connect(path)
    s.accept()
assert b.recv(2, S.MSG_PEEK) == b"56"
b.setsockopt(S.SOL_SOCKET, 42, -1)
assert b.recv(20) == b"0123456789"
"#,
    )
}

/// What was sent before a connection was accepted is there after it, with its bounds, also from one that has gone.
fn early() -> freeze_tests::Subject {
    subject(
        r#"
l = S.socket(S.AF_UNIX)
l.bind("early")
l.listen(8)
def client(*data, kind=S.SOCK_STREAM, to=l):
    c = S.socket(S.AF_UNIX, kind)
    c.connect(to.getsockname())
    for d in data:
        c.sendall(d)
    return c
LONG = bytes(n // 7 & 255 for n in range(100000))
a, quiet, long, shut, gone = client(b"hel", b"lo"), client(), client(LONG), client(b"end"), client(b"gone")
shut.shutdown(S.SHUT_WR)
gone.close()
q = S.socket(S.AF_UNIX, S.SOCK_SEQPACKET)
q.bind(TAG + "early")
q.listen(3)
b = client(b"one", b"", b"three", kind=S.SOCK_SEQPACKET, to=q)
freeze_here()
def ends(s, expected):
    got = b""
    while len(got) < len(expected):
        some = s.recv(len(expected) - len(got))
        assert some
        got += some
    assert got == expected
served = [l.accept()[0] for n in range(5)]
for s, expected in zip(served, (b"hello", b"", LONG, b"end", b"gone")):
    ends(s, expected)
assert served[3].recv(1) == b"" and served[4].recv(1) == b""
for c, s in (a, served[0]), (quiet, served[1]), (long, served[2]):
    assert credentials(s)[0] == os.getpid()
    c.send(b"ping")
    ends(s, b"ping")
    s.send(b"pong")
    ends(c, b"pong")
served[3].send(b"back")
ends(shut, b"back")
s, _ = q.accept()
assert [s.recv(9) for n in range(3)] == [b"one", b"", b"three"]
"#,
    )
}

/// A timer, a fifo, a pidfd of a child and one of a process that has ended are what they were, though only a queue has them.
fn handles_only_in_queues() -> freeze_tests::Subject {
    subject(
        r#"
import ctypes, select
libc = ctypes.CDLL(None)
a, b = S.socketpair()
child = os.fork()
if not child:
    while True:
        signal.pause()
short = os.fork()
if not short:
    os._exit(7)
of_child, of_short = os.pidfd_open(child), os.pidfd_open(short)
os.waitpid(short, 0)
timer = libc.timerfd_create(1, 0)
assert libc.timerfd_settime(timer, 0, struct.pack("4q", 0, 0, 500, 0), None) == 0
mask = libc.signalfd(-1, struct.pack("Q", 1 << 11), 0)
os.mkfifo(HERE + "/fifo")
fifo = os.open(HERE + "/fifo", os.O_RDWR)
os.write(fifo, b"inside")
all = [of_child, of_short, timer, mask, fifo]
a.sendmsg([b"hi"], [(S.SOL_SOCKET, S.SCM_RIGHTS, array.array("i", all))])
for fd in all:
    os.close(fd)
freeze_here()
data, control, _, _ = b.recvmsg(100, 1000)
fds = array.array("i")
fds.frombytes(control[0][2])
of_child, of_short, timer, mask, fifo = fds
assert os.read(fifo, 9) == b"inside"
def readable(fd):
    p = select.poll()
    p.register(fd, select.POLLIN)
    return bool(p.poll(0))
assert readable(of_short) and not readable(of_child)
left = ctypes.create_string_buffer(32)
assert libc.timerfd_gettime(timer, left) == 0
assert 300 < struct.unpack("4q", left.raw)[2] <= 500
text = open("/proc/self/fdinfo/%d" % mask).read()
assert "sigmask:\t%016x" % (1 << 11) in text, text
signal.pidfd_send_signal(of_child, signal.SIGKILL)
assert os.waitpid(child, 0)[1] == signal.SIGKILL
"#,
    )
}

conformance!(handles_only_in_queues_conform, handles_only_in_queues());
conformance!(early_conforms, early());
conformance!(moved_conform, moved());
conformance!(pair_conforms, pair());
conformance!(bounds_conforms, bounds());
conformance!(descriptors_conforms, descriptors());
conformance!(after_data_conforms, after_data());
conformance!(halves_conforms, halves());
conformance!(listening_conforms, listening());
conformance!(abstract_names_conforms, abstract_names());
conformance!(credentials_conforms, credentials());
conformance!(only_in_queues_conforms, only_in_queues());

conformance!(
    a_name_as_long_as_can_be,
    c(r#"
#include <sys/un.h>
/* A path that fills the address has no zero byte at its end. */
int main(void) {
    struct sockaddr_un name = { AF_UNIX }, now;
    socklen_t len = sizeof now;
    OK(chdir(here_dir));
    memset(name.sun_path, 'n', sizeof name.sun_path);
    int s = OK(socket(AF_UNIX, SOCK_DGRAM, 0)), c = OK(socket(AF_UNIX, SOCK_DGRAM, 0));
    OK(bind(s, (void *)&name, sizeof name));
    freeze_here();
    char byte;
    OK(getsockname(s, (void *)&now, &len));
    SAME(memcmp(&now, &name, sizeof name), 0);
    SAME(sendto(c, "x", 1, 0, (void *)&name, sizeof name), 1);
    SAME(recv(s, &byte, 1, MSG_DONTWAIT), 1);
}
"#)
);

conformance!(
    the_dead_who_wrote,
    c(r#"
/* Who sent what waits has ended since: its credentials are still those of the message. */
int main(void) {
    int p[2], on = 1, status;
    OK(socketpair(AF_UNIX, SOCK_DGRAM, 0, p));
    OK(setsockopt(p[1], SOL_SOCKET, SO_PASSCRED, &on, sizeof on));
    pid_t child = OK(fork());
    if (!child) { SAME(send(p[0], "c", 1, 0), 1); _exit(0); }
    OK(waitpid(child, &status, 0));
    freeze_here();
    char byte, room[CMSG_SPACE(sizeof(struct ucred))];
    struct iovec data = { &byte, 1 };
    struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room };
    SAME(recvmsg(p[1], &message, MSG_DONTWAIT), 1);
    struct cmsghdr *c = CMSG_FIRSTHDR(&message);
    CHECK(c && c->cmsg_type == SCM_CREDENTIALS);
    struct ucred who;
    memcpy(&who, CMSG_DATA(c), sizeof who);
    SAME(who.uid, getuid());
    /* In a pid namespace of its own nobody tells freeze the number of who has ended. */
    if (!housed()) SAME(who.pid, child);
}
"#)
);

conformance!(
    groups_of_a_peer,
    subject(
        r#"
# SO_PEERGROUPS: the groups that the other side was in when it made the connection.
try:
    os.setgroups([5, 6, 7])
except OSError:
    pass
a, b = S.socketpair()
l = S.socket(S.AF_UNIX)
l.bind(HERE + "/listens")
l.listen(3)
c = S.socket(S.AF_UNIX)
c.connect(HERE + "/listens")
s, _ = l.accept()
w = S.socket(S.AF_UNIX)
w.connect(HERE + "/listens")
def groups():
    return [x.getsockopt(S.SOL_SOCKET, 59, 64) for x in (a, b, c, s, w)]
before = groups()
freeze_here()
assert groups() == before, (groups(), before)
t, _ = l.accept()
assert t.getsockopt(S.SOL_SOCKET, 59, 64) == before[0]
"#
    )
);

conformance!(
    several_names,
    subject(
        r#"
# The file of a socket has several names, or another one than it was bound by.
def bound(name, kind=S.SOCK_DGRAM):
    s = S.socket(S.AF_UNIX, kind)
    s.bind(HERE + name)
    return s
a, b = bound("/a"), bound("/b")
os.link(HERE + "/a", HERE + "/a2")
os.link(HERE + "/b", HERE + "/b2")
os.link(HERE + "/b", HERE + "/b3")
os.unlink(HERE + "/b")
freeze_here()
c = S.socket(S.AF_UNIX, S.SOCK_DGRAM)
for name, s in (("/a", a), ("/a2", a), ("/b2", b), ("/b3", b)):
    c.sendto(name.encode(), HERE + name)
    assert s.recv(9, S.MSG_DONTWAIT) == name.encode()
assert a.getsockname() == HERE + "/a" and b.getsockname() == HERE + "/b"
assert os.stat(HERE + "/a").st_nlink == 2 and not os.path.exists(HERE + "/b")
"#
    )
);

conformance!(
    pidfds_of_senders,
    subject(
        r#"
# SO_PASSPIDFD: with what waits comes a pidfd of who sent it.
a, b = S.socketpair(S.AF_UNIX, S.SOCK_DGRAM)
c, d = S.socketpair()
try:
    for x in b, d:
        x.setsockopt(S.SOL_SOCKET, 76, 1)
    known = True
except OSError:
    known = False   # before Linux 6.5
child = os.fork()
if not child:
    a.send(b"child")
    c.send(b"child")
    while True:
        signal.pause()
while len(d.recv(9, S.MSG_PEEK)) < 5 or len(b.recv(9, S.MSG_PEEK)) < 5:
    pass
freeze_here()
for x in b, d:
    data, control, _, _ = x.recvmsg(9, 1000)
    assert data == b"child"
    found = [struct.unpack("i", value)[0] for level, kind, value in control if kind == 4]
    assert len(found) == known, control
    for fd in found:
        assert "Pid:\t%d\n" % child in open("/proc/self/fdinfo/%d" % fd).read()
os.kill(child, signal.SIGKILL)
os.waitpid(child, 0)
"#
    )
);

conformance!(
    empty_packets,
    c(r#"
#include <sys/un.h>
/* Empty packets among others, of several senders, are there however often the queue was looked at. */
int main(void) {
    int pair[2];
    char room[9];
    OK(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair));
    for (int i = 0; i < 6; i++) OK(send(pair[0], "abcdef", i % 3, 0));
    int receiver = OK(socket(AF_UNIX, SOCK_DGRAM, 0)), senders[3];
    struct sockaddr_un name = {AF_UNIX};
    socklen_t len = sizeof name;
    OK(bind(receiver, (void *)&name, 2));
    OK(getsockname(receiver, (void *)&name, &len));
    for (int i = 0; i < 3; i++) {
        senders[i] = OK(socket(AF_UNIX, SOCK_DGRAM, 0));
        struct sockaddr_un own = {AF_UNIX};
        if (i) OK(bind(senders[i], (void *)&own, 2));
        OK(sendto(senders[i], "", 0, 0, (void *)&name, len));
    }
    OK(sendto(senders[1], "tail", 4, 0, (void *)&name, len));
    freeze_here();
    for (int i = 0; i < 6; i++) SAME(recv(pair[1], room, 9, 0), i % 3);
    for (int i = 0; i < 3; i++) {
        struct sockaddr_un from, own;
        socklen_t from_len = sizeof from, own_len = sizeof own;
        SAME(recvfrom(receiver, room, 9, 0, (void *)&from, &from_len), 0);
        OK(getsockname(senders[i], (void *)&own, &own_len));
        SAME(from_len, i ? own_len : 0);
        if (i) CHECK(!memcmp(&from, &own, own_len));
    }
    SAME(recv(receiver, room, 9, 0), 4);
}
"#)
);

// Who sent an empty packet is told, however often the queue was looked at.
conformance!(
    senders_of_nothing,
    subject(
        r#"
pairs = [S.socketpair(S.AF_UNIX, kind) for kind in (S.SOCK_DGRAM, S.SOCK_SEQPACKET)]
for a, b in pairs:
    b.setsockopt(S.SOL_SOCKET, S.SO_PASSCRED, 1)
    [a.send(data) for data in (b"x", b"", b"", b"y")]
freeze_here()
me = struct.pack("iII", os.getpid(), os.getuid(), os.getgid())
for a, b in pairs:
    for data in (b"x", b"", b"", b"y"):
        got, control, _, _ = b.recvmsg(9, 99)
        assert (got, control) == (data, [(S.SOL_SOCKET, S.SCM_CREDENTIALS, me)]), (got, control)
"#
    )
);

// The file of a name keeps its times and attributes, and its directory keeps its times.
conformance!(
    file_of_a_name,
    subject(
        r#"
os.mkdir("d")
s = S.socket(S.AF_UNIX)
s.bind("d/s")
every = (1, 7, -1), (2, 6, 5), (4, 5, -1), (16, 7, -1), (32, 0, -1)
try:
    # Another user may write, by an access control list.
    os.setxattr("d/s", "system.posix_acl_access", struct.pack("I", 2) + b"".join(struct.pack("HHi", *e) for e in every))
except OSError:
    pass
os.utime("d/s", ns=(10**18, 2 * 10**18 + 1))
os.utime("d", ns=(10**18 + 2, 2 * 10**18 + 3))
def look():
    return [(s.st_mode, s.st_mtime_ns) for s in map(os.lstat, ("d", "d/s"))], os.lstat("d/s").st_atime_ns, [(n, os.getxattr("d/s", n)) for n in os.listxattr("d/s")]
before = look()
freeze_here()
assert look() == before, look()
"#
    )
);

conformance!(
    full,
    c(r#"
/* Who waits because a stream is full still waits, and goes on as before when it is read. */
static int pair[2];
static volatile int waits;
static void *writer(void *unused) {
    char text[100];
    memset(text, 'w', 100);
    waits = 1;
    SAME(write(pair[0], text, 100), 100);
    waits = 2;
    return 0;
}
int main(void) {
    int size = 8192, total = 0, n;
    char text[1000];
    OK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    OK(setsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &size, 4));
    OK(fcntl(pair[0], F_SETFL, O_NONBLOCK));
    memset(text, 'a', 1000);
    while ((n = write(pair[0], text, 1000)) > 0) total += n;
    OK(fcntl(pair[0], F_SETFL, 0));
    pthread_t thread;
    pthread_create(&thread, 0, writer, 0);
    while (!waits) nap(1);
    rest(20);
    freeze_here();
    nap(20);
    SAME(waits, 1);
    struct pollfd p = {pair[0], POLLOUT, 0};
    SAME(poll(&p, 1, 0), 0);
    for (int left = total + 100; left > 0; left -= n) n = OK(read(pair[1], text, left < 1000 ? left : 1000));
    pthread_join(thread, 0);
}
"#)
);

conformance!(
    connected_to_what_has_gone,
    c(r#"
#include <sys/un.h>
/* A datagram socket that was connected to one that has been closed has no credentials of a peer. */
int main(void) {
    struct sockaddr_un name = {AF_UNIX};
    snprintf(name.sun_path, sizeof name.sun_path, "%.100s", in_here("s"));
    int gone = OK(socket(AF_UNIX, SOCK_DGRAM, 0)), left = OK(socket(AF_UNIX, SOCK_DGRAM, 0));
    OK(bind(gone, (void *)&name, sizeof name));
    OK(connect(left, (void *)&name, sizeof name));
    close(gone);
    struct ucred before, after;
    socklen_t len = sizeof before;
    OK(getsockopt(left, SOL_SOCKET, SO_PEERCRED, &before, &len));
    freeze_here();
    OK(getsockopt(left, SOL_SOCKET, SO_PEERCRED, &after, &len));
    SAME(after.pid, before.pid);
    SAME(after.uid, before.uid);
    CHECK(send(left, "x", 1, 0) == -1 && errno == ECONNREFUSED);
}
"#)
);

// One byte at a time can be out of band; what comes before it, after it, or alone stays where it was.
conformance!(
    out_of_band,
    python(
        r#"
import socket as S
def pair(before, after):
    a, b = S.socketpair()
    if before: a.send(before)
    a.send(b"!", S.MSG_OOB)
    if after: a.send(after)
    return a, b
all = [(before, after, *pair(before, after)) for before in (b"", b"ab") for after in (b"", b"cd")]
freeze_here()
for before, after, a, b in all:
    if before: assert b.recv(9) == before
    assert b.recv(1, S.MSG_OOB) == b"!"
    if after: assert b.recv(9) == after
    b.setblocking(False)
    try:
        b.recv(9)
        assert False
    except BlockingIOError:
        pass
"#
    )
);
