//! Conformance of sockets that keep boundaries and have an error to tell, which any look at their queue would take.

use freeze_tests::cycle::{checkpoint_now, request};
use freeze_tests::subject::{freeze_checkpoint, output};
use freeze_tests::{Running, conformance, python, skip};
use freeze_user::observe::peek::arrived::Sockets;
use freeze_user::precopy::Trackings;

// Whose peer went without reading everything hears of it first, and then gets what that had sent.
conformance!(
    reset,
    python(
        r#"
import socket as S
def pair(*sent):
    a, b = S.socketpair(S.AF_UNIX, S.SOCK_SEQPACKET)
    b.setsockopt(S.SOL_SOCKET, S.SO_PASSCRED, 1)
    b.send(b"never read")
    for data in sent: a.send(data)
    a.close()
    return sent, b
pairs = [pair(), pair(b"one", b"", b"three" * 20000)]
freeze_here()
me = os.getpid().to_bytes(4, sys.byteorder)
for sent, b in pairs:
    try:
        b.recv(9)
        assert False, "nothing is told"
    except ConnectionResetError:
        pass
    for data in sent:
        got, control, _, _ = b.recvmsg(200000, 99)
        assert got == data and control[0][2][:4] == me, (got, control)
    assert b.recv(9) == b""
"#
    )
);

#[test]
fn a_checkpoint_takes_no_error() {
    if Sockets::get().is_none() {
        skip!("freeze may not look into the kernel");
    }
    let text = r#"
import socket as S
def made(family, address, data):
    a, b = S.socket(family, S.SOCK_DGRAM), S.socket(family, S.SOCK_DGRAM)
    for s in a, b: s.bind((address, 0))
    peer = b.getsockname()
    a.connect(peer)
    for one in data: b.sendto(one, a.getsockname())
    b.close()
    # Nobody is there any more, which the kernel says at once on the same machine.
    a.send(b"x")
    return a, peer, data
all = [made(S.AF_INET, "127.0.0.1", [b"waits", b"", b"long" * 10000]), made(S.AF_INET6, "::1", [b"", b"six"])]
freeze_here()
for a, peer, data in all:
    try:
        a.recv(9)
        assert False, "nothing is told"
    except ConnectionRefusedError:
        pass
    for one in data:
        assert a.recvfrom(100000) == (one, peer)
"#;
    let mut running = Running::start(&python(text), "a_checkpoint_takes_no_error");
    for name in ["first", "second"] {
        let request = request(running.pid, running.dir().join(name), false);
        checkpoint_now(&request, &mut Trackings::new()).unwrap();
    }
    running.verdict();
}

#[test]
fn what_no_socket_can_be_given_is_refused() {
    let text = r#"
import ctypes, socket as S
names = ["\0pending-%d-%d" % (os.getpid(), n) for n in (1, 2)]
a, b = [S.socket(S.AF_UNIX, S.SOCK_DGRAM) for _ in names]
a.bind(names[0])
b.bind(names[1])
a.connect(names[1])
b.connect(names[0])
b.send(b"never read")
# Who lets go of its peer without having read everything has it told so.
assert ctypes.CDLL(None).connect(a.fileno(), bytes(2), 2) == 0
freeze_here()
try:
    b.recv(9)
    assert False, "nothing is told"
except ConnectionResetError:
    pass
"#;
    let mut running = Running::start(&python(text), "what_no_socket_can_be_given_is_refused");
    let done = output(&mut freeze_checkpoint(&running, &running.dir().join("image")));
    running.verdict();
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert_eq!(done.status.code(), Some(3), "{said}");
    assert!(said.contains("an error has yet to be told by it"), "{said}");
}
