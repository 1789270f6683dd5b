//! Ends outside: refused before anything is stopped, all at once, each with its holder; carried, cut, or supplied anew.

use freeze_tests::subject::{Running, freeze_checkpoint, output};
use freeze_tests::{freeze, python};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

/// Accepts what comes, greets it, and holds it.
const SERVER: &str = r#"
import socket, threading
S = socket
u = S.socket(S.AF_UNIX)
u.bind(HERE + "/u.sock")
u.listen(5)
t = S.socket()
t.bind(("127.0.0.1", 0))
t.listen(5)
with open(HERE + "/port", "w") as f:
    f.write(str(t.getsockname()[1]))
held = []
def serve(l):
    s, _ = l.accept()
    held.append(s)
    s.send(b"!")
for l in (u, t):
    threading.Thread(target=serve, args=(l,), daemon=True).start()
freeze_here()
for s in held:
    s.send(b"?")
"#;

#[test]
fn the_holder_is_named_and_nobody_notices() {
    let mut running = Running::start(&python(SERVER), "sockets_outside::the_holder_is_named");
    let port: u16 = std::fs::read_to_string(running.dir().join("port"))
        .unwrap()
        .parse()
        .unwrap();
    let mut unix = UnixStream::connect(running.dir().join("u.sock")).unwrap();
    let mut tcp = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let mut byte = [0];
    unix.read_exact(&mut byte).unwrap();
    tcp.read_exact(&mut byte).unwrap();
    // Nobody accepts a second one.
    let waiting = UnixStream::connect(running.dir().join("u.sock")).unwrap();
    let image = running.dir().join("image");
    let done = output(&mut freeze_checkpoint(&running, &image));
    let text = String::from_utf8_lossy(&done.stderr).into_owned();
    assert_eq!(done.status.code(), Some(3), "{text}");
    assert!(text.starts_with("freeze: refused, 3 reasons:\n"), "{text}");
    let me = format!("by pid {} (", std::process::id());
    assert_eq!(text.matches(&me).count(), 3, "{text}");
    for sentence in [
        "its other end is held outside the checkpoint, by pid ",
        "a connection that waits to be accepted comes from outside the checkpoint, by pid ",
        "is held outside the checkpoint, by pid ",
    ] {
        assert!(text.contains(sentence), "{sentence:?} is missing in {text}");
    }
    assert!(!image.exists());
    drop(waiting);
    // Both connections work as before, and the subject ends as if nothing had been.
    let reader = std::thread::spawn(move || {
        let mut byte = [0];
        unix.read_exact(&mut byte).unwrap();
        assert_eq!(byte, *b"?");
        tcp.read_exact(&mut byte).unwrap();
        assert_eq!(byte, *b"?");
    });
    running.verdict();
    reader.join().unwrap();
}

fn run(command: &mut std::process::Command) -> String {
    let done = output(command);
    let text = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success(), "{text}");
    text
}

fn checkpoint(running: &mut Running, more: &[&str]) {
    let image = running.dir().join("image");
    let mut command = freeze();
    command.arg("checkpoint").arg(running.pid.to_string());
    run(command.arg("--to").arg(&image).arg("--kill").args(more));
    running.wait_gone();
}

fn restore(running: &mut Running, more: &[&str]) -> String {
    let image = running.dir().join("image");
    let said = run(freeze().arg("restore").arg(&image).arg("--detach").args(more));
    running.pids();
    said
}

/// Connects to the ports it is told, and echoes what comes.
const CLIENT: &str = r#"
import socket, threading
S = socket
all = [S.create_connection((h, int(open(HERE + "/port" + h).read()))) for h in ("127.0.0.1", "::1")]
def echo(c):
    while True:
        some = c.recv(100000)
        if not some:
            break
        c.sendall(some)
threads = [threading.Thread(target=echo, args=(c,)) for c in all]
for t in threads:
    t.start()
freeze_here()
for t in threads:
    t.join()
"#;

#[test]
fn a_connection_to_outside_survives_while_the_program_is_gone() {
    let listeners = ["127.0.0.1", "::1"].map(|h| (h, TcpListener::bind((h, 0)).unwrap()));
    let ports: String = listeners
        .iter()
        .map(|(h, l)| {
            format!(
                "open(HERE + '/port{h}', 'w').write('{}')\n",
                l.local_addr().unwrap().port()
            )
        })
        .collect();
    let subject = python(&format!("{ports}{CLIENT}"));
    let mut running = Running::start(&subject, "sockets_outside::a_connection_to_outside");
    let mut servers: Vec<TcpStream> = listeners.iter().map(|(_, l)| l.accept().unwrap().0).collect();
    let mut echo = |n: usize| {
        for s in &mut servers {
            s.set_read_timeout(Some(std::time::Duration::from_secs(20)))
                .unwrap();
            let data = vec![n as u8; 50_000];
            s.write_all(&data).unwrap();
            let mut back = vec![0; data.len()];
            s.read_exact(&mut back).unwrap();
            assert_eq!(back, data);
        }
    };
    echo(1);
    checkpoint(&mut running, &[]);
    for s in &mut servers {
        // Nobody is there, and nobody says so.
        s.write_all(b"meanwhile").unwrap();
        s.set_read_timeout(Some(std::time::Duration::from_millis(300)))
            .unwrap();
        let met = s.read(&mut [0; 1]).unwrap_err().kind();
        assert_eq!(met, std::io::ErrorKind::WouldBlock);
    }
    assert_eq!(restore(&mut running, &[]), "");
    for s in &mut servers {
        s.set_read_timeout(Some(std::time::Duration::from_secs(20)))
            .unwrap();
        let mut back = [0; 9];
        s.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"meanwhile");
    }
    let mut echo = |n: usize| {
        for s in &mut servers {
            let data = vec![n as u8; 50_000];
            s.write_all(&data).unwrap();
            let mut back = vec![0; data.len()];
            s.read_exact(&mut back).unwrap();
            assert_eq!(back, data);
        }
    };
    echo(2);
    drop(servers);
    running.verdict();
}

#[test]
fn a_connection_is_let_go_when_there_is_no_restore() {
    let mut running = Running::start(&python(SERVER), "sockets_outside::a_connection_is_let_go");
    let port = std::fs::read_to_string(running.dir().join("port")).unwrap();
    let mut tcp = TcpStream::connect(("127.0.0.1", port.parse().unwrap())).unwrap();
    tcp.read_exact(&mut [0]).unwrap();
    checkpoint(&mut running, &["--cut", "socket:[0]"]);
    run(freeze().arg("release").arg(running.dir().join("image")));
    tcp.write_all(b"x").unwrap();
    tcp.set_read_timeout(Some(std::time::Duration::from_secs(20)))
        .unwrap();
    let met = tcp.read(&mut [0; 1]).unwrap_err().kind();
    assert_eq!(met, std::io::ErrorKind::ConnectionReset);
}

#[test]
fn what_is_cut_is_found_closed() {
    let text = r#"
import socket
S = socket
u = S.socket(S.AF_UNIX)
u.bind(HERE + "/u.sock")
u.listen(5)
t = S.socket()
t.bind(("127.0.0.1", 0))
t.listen(5)
with open(HERE + "/port.new", "w") as f:
    f.write(str(t.getsockname()[1]))
os.rename(HERE + "/port.new", HERE + "/port")
us, ts = u.accept()[0], t.accept()[0]
for s in us, ts:
    while len(s.recv(9, S.MSG_PEEK)) < 4:
        pass
freeze_here()
assert us.recv(9) == b"data" and us.recv(9) == b""
assert ts.recv(9) == b"data"
try:
    ts.recv(9)
    assert False, "the end of a wire that was cut"
except ConnectionResetError:
    pass
"#;
    let mut running = Running::launch(&python(text), "sockets_outside::what_is_cut");
    let port = loop {
        match std::fs::read_to_string(running.dir().join("port")) {
            Ok(port) => break port,
            Err(_) => std::thread::sleep(std::time::Duration::from_millis(5)),
        }
    };
    let mut unix = UnixStream::connect(running.dir().join("u.sock")).unwrap();
    let mut tcp = TcpStream::connect(("127.0.0.1", port.parse().unwrap())).unwrap();
    unix.write_all(b"data").unwrap();
    tcp.write_all(b"data").unwrap();
    running.wait_ready();
    checkpoint(&mut running, &["--cut", "all"]);
    restore(&mut running, &[]);
    running.verdict();
}

#[test]
fn the_restorer_supplies_an_end() {
    let text = r#"
os.write(7, b"before ")
freeze_here()
os.write(7, b"after")
os.close(7)
"#;
    let (mut from, to) = std::io::pipe().unwrap();
    // The subject gets it by the number 7.
    let subject = python(&format!(
        "import os\nos.dup2(os.open('/proc/{}/fd/{}', os.O_WRONLY), 7)\nos.closerange(3, 7)\n{text}",
        std::process::id(),
        to.as_raw_fd()
    ));
    let mut running = Running::start(&subject, "sockets_outside::the_restorer_supplies_an_end");
    drop(to);
    let mut before = [0; 7];
    from.read_exact(&mut before).unwrap();
    checkpoint(&mut running, &["--cut", "7"]);
    assert_eq!(from.read(&mut [0; 1]).unwrap(), 0);
    let path = running.dir().join("output");
    std::fs::write(&path, "").unwrap();
    let image = running.dir().join("image");
    let nothing = output(
        freeze()
            .arg("restore")
            .arg(&image)
            .args(["--attach", "99=/dev/null"]),
    );
    assert_eq!(nothing.status.code(), Some(3));
    let end = format!("{}:7={}", running.pid, path.display());
    restore(&mut running, &["--attach", &end]);
    running.verdict();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "after");
}

/// Byte `n` of a stream that repeats itself only after long.
fn byte_of_stream(n: usize) -> u8 {
    (n * 7 + n / 251) as u8
}

/// Reads from a stream, in order, from where `at` is.
fn follow(from: &mut TcpStream, at: &mut usize, count: usize) {
    let mut some = vec![0; 1 << 16];
    let until = *at + count;
    while *at < until {
        let most = some.len().min(until - *at);
        let n = from.read(&mut some[..most]).unwrap();
        assert_ne!(n, 0, "it ends after {at}");
        for byte in &some[..n] {
            assert_eq!(*byte, byte_of_stream(*at), "byte {at}");
            *at += 1;
        }
    }
}

/// What the subjects below begin with: one connection to the test, and the stream.
const STREAM: &str = r#"
import socket, threading
S = socket
c = S.create_connection(("127.0.0.1", PORT))
PERIOD = bytes((n * 7 + n // 251) & 255 for n in range(251 * 256))
def stream(at, count):
    at %= len(PERIOD)
    return (PERIOD[at:] + PERIOD * (count // len(PERIOD) + 1))[:count]
"#;

fn streaming(text: &str) -> (freeze_tests::Subject, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (python(&format!("PORT = {port}\n{STREAM}\n{text}")), listener)
}

#[test]
fn what_was_not_sent_yet_follows_without_a_gap() {
    let (subject, listener) = streaming(
        r#"
c.setblocking(False)
sent = 0
try:
    while True:
        sent += c.send(stream(sent, 65536))
except BlockingIOError:
    open(HERE + "/sent", "w").write(str(sent))
freeze_here()
c.setblocking(True)
c.sendall(stream(sent, 1 << 20))
"#,
    );
    let mut running = Running::start(&subject, "sockets_outside::what_was_not_sent_yet");
    let mut peer = listener.accept().unwrap().0;
    peer.set_read_timeout(Some(std::time::Duration::from_secs(20)))
        .unwrap();
    let sent: usize = std::fs::read_to_string(running.dir().join("sent"))
        .unwrap()
        .parse()
        .unwrap();
    for _ in 0..2 {
        checkpoint(&mut running, &[]);
        assert_eq!(restore(&mut running, &[]), "");
        std::fs::remove_dir_all(running.dir().join("image")).unwrap();
    }
    running.go();
    let mut at = 0;
    follow(&mut peer, &mut at, sent + (1 << 20));
    assert_eq!(peer.read(&mut [0]).unwrap(), 0);
    running.verdict();
}

#[test]
fn neither_direction_loses_a_byte_while_both_are_busy() {
    let (subject, listener) = streaming(
        r#"
ends = []
def send():
    sent = 0
    while not gone_ahead():
        c.sendall(stream(sent, 20000))
        sent += 20000
    c.shutdown(S.SHUT_WR)
    ends.append(sent)
def receive():
    at = 0
    while True:
        some = c.recv(30000)
        if not some:
            break
        assert some == stream(at, len(some)), at
        at += len(some)
    ends.append(at)
threads = [threading.Thread(target=t) for t in (send, receive)]
for t in threads:
    t.start()
freeze_here()
for t in threads:
    t.join()
assert len(ends) == 2
"#,
    );
    let mut running = Running::start(&subject, "sockets_outside::neither_direction");
    let mut peer = listener.accept().unwrap().0;
    peer.set_read_timeout(Some(std::time::Duration::from_secs(20)))
        .unwrap();
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let mut writes = peer.try_clone().unwrap();
        let over = &over;
        scope.spawn(move || {
            let mut at = 0;
            while !over.load(std::sync::atomic::Ordering::Relaxed) {
                let some: Vec<u8> = (at..at + 10_000).map(byte_of_stream).collect();
                writes.write_all(&some).unwrap();
                at += some.len();
            }
            writes.shutdown(std::net::Shutdown::Write).unwrap();
        });
        let reader = scope.spawn(move || {
            let (mut at, mut some) = (0, vec![0; 1 << 16]);
            loop {
                let n = peer.read(&mut some).unwrap();
                if n == 0 {
                    return;
                }
                for byte in &some[..n] {
                    assert_eq!(*byte, byte_of_stream(at), "byte {at}");
                    at += 1;
                }
            }
        });
        for _ in 0..3 {
            std::thread::sleep(std::time::Duration::from_millis(50));
            checkpoint(&mut running, &[]);
            assert_eq!(restore(&mut running, &[]), "");
            std::fs::remove_dir_all(running.dir().join("image")).unwrap();
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        running.go();
        reader.join().unwrap();
    });
    running.verdict();
}

#[test]
fn an_end_that_was_closed_says_all_that_it_had_to_say() {
    let (subject, listener) = streaming(
        r#"
freeze_here()
at = 0
while True:
    some = c.recv(100000)
    if not some:
        break
    assert some == stream(at, len(some)), at
    at += len(some)
assert at == int(open(HERE + "/written").read()), at
"#,
    );
    let mut running = Running::start(&subject, "sockets_outside::an_end_that_was_closed");
    let mut peer = listener.accept().unwrap().0;
    peer.set_nonblocking(true).unwrap();
    let mut written = 0;
    // More than the subject's side takes: the rest waits on this one, which nobody holds any more.
    loop {
        let some: Vec<u8> = (written..written + 50_000).map(byte_of_stream).collect();
        match peer.write(&some) {
            Ok(n) => written += n,
            Err(e) => {
                assert_eq!(e.kind(), std::io::ErrorKind::WouldBlock);
                break;
            }
        }
    }
    std::fs::write(running.dir().join("written"), written.to_string()).unwrap();
    drop(peer);
    checkpoint(&mut running, &[]);
    assert_eq!(restore(&mut running, &[]), "");
    running.verdict();
}

/// In a network of its own, joined to the test's by a pair of devices; what comes is counted up.
const APART: &str = r#"
import ctypes, socket, subprocess, time
libc, host = ctypes.CDLL(None), os.open("/proc/self/ns/net", os.O_RDONLY)
def ip(line, before=None):
    subprocess.run(["ip"] + line.split(), check=True, preexec_fn=before)
def outside():
    assert libc.setns(host, 0) == 0
assert libc.unshare(0x40000000) == 0
ip("link add in0 type veth peer name fz-outer netns %d" % os.getppid())
ip("addr add 10.213.47.2/30 dev in0")
ip("link set in0 up")
ip("addr add 10.213.47.1/30 dev fz-outer", outside)
ip("link set fz-outer up", outside)
os.close(host)
s = socket.create_connection(("10.213.47.1", PORT), 10)
s.settimeout(20)
def more(n):
    got = b""
    while len(got) < n:
        some = s.recv(n - len(got))
        assert some, "the other end has closed it"
        got += some
    return got
first = more(3)[-1]
freeze_here()
for i in range(60):
    first = (first + 1) % 256
    assert more(1)[0] == first
"#;

/// Whoever goes on sending gets no answer between the checkpoint and the restore, neither from the network that goes nor
/// from the one that comes, where nobody listens yet.
#[test]
fn a_connection_out_of_a_network_of_its_own_lasts() {
    if !std::process::Command::new("ip")
        .arg("-V")
        .output()
        .is_ok_and(|o| o.status.success())
    {
        freeze_tests::skip!("there is no ip(8)");
    }
    let listener = TcpListener::bind(("0.0.0.0", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut n = 0u8;
        while stream.write_all(&[n]).is_ok() {
            n = n.wrapping_add(1);
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    });
    let subject = python(&format!("import os\nPORT = {port}\n{APART}"));
    let mut running = Running::start(&subject, "sockets_outside::a_network_of_its_own");
    checkpoint(&mut running, &[]);
    std::thread::sleep(std::time::Duration::from_millis(500));
    restore(&mut running, &[]);
    running.verdict();
}

/// An end in the network that goes with the checkpoint, which nobody holds and which has more to say: nobody can say it later.
#[test]
fn what_an_end_in_the_same_network_has_not_delivered_is_not_lost() {
    let subject = python(
        r#"
import ctypes, socket, subprocess
assert ctypes.CDLL(None).unshare(0x40000000) == 0
subprocess.run("ip link set lo up".split(), check=True)
listener = socket.create_server(("127.0.0.1", 0))
far = socket.create_connection(listener.getsockname())
s, _ = listener.accept()
listener.close()
far.setblocking(False)
sent = 0
try:
    while True:
        sent += far.send(bytes(60000))
except BlockingIOError:
    pass
far.close()
freeze_here()
s.settimeout(20)
while sent:
    some = s.recv(1 << 20)
    assert some, sent
    sent -= len(some)
"#,
    );
    let mut running = Running::start(&subject, "sockets_outside::not_delivered");
    let mut command = freeze();
    command.arg("checkpoint").arg(running.pid.to_string());
    let done = output(command.arg("--to").arg(running.dir().join("image")).arg("--kill"));
    let text = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(3), "{text}");
    let why = "was closed before all that it had sent could be delivered";
    assert!(text.contains(why), "{text}");
    running.verdict();
}

/// Three processes in a row, each joined to the next: whoever asks for the first is told of all that belong to it.
const ROW: &str = r#"
import os, socket, sys, time
S = socket
a, b = S.socketpair()
c, d = S.socketpair()
row = []
for ends in ((a,), (b, c), (d,)):
    pid = os.fork()
    if not pid:
        os.setsid()
        null = os.open("/dev/null", os.O_RDWR)
        for n in range(3):
            os.dup2(null, n)
        for n in map(int, os.listdir("/proc/self/fd")):
            if n > 2 and n not in [s.fileno() for s in ends]:
                try:
                    os.close(n)
                except OSError:
                    pass
        time.sleep(300)
        os._exit(0)
    row.append(pid)
print(*row)
"#;

#[test]
fn all_who_belong_together_are_named_at_once() {
    let made = output(std::process::Command::new("python3").args(["-c", ROW]));
    let row: Vec<i32> = String::from_utf8_lossy(&made.stdout)
        .split_whitespace()
        .map(|pid| pid.parse().expect("a pid"))
        .collect();
    assert_eq!(row.len(), 3, "{}", String::from_utf8_lossy(&made.stderr));
    let check = |more: &[String]| output(freeze().arg("check").arg(row[0].to_string()).args(more));
    let (text, json) = (check(&[]), check(&["--json".into()]));
    let with = |pids: &[i32]| -> Vec<String> {
        let words = |pid: &i32| ["--also-freeze".to_owned(), pid.to_string()];
        pids.iter().flat_map(words).collect()
    };
    let (part, whole) = (check(&with(&row[1..2])), check(&with(&row[1..])));
    for pid in &row {
        let _ = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(*pid),
            nix::sys::signal::Signal::SIGKILL,
        );
    }
    let said = String::from_utf8_lossy(&text.stderr).into_owned();
    assert_eq!(text.status.code(), Some(3), "{said}");
    assert!(said.starts_with("freeze: refused, 1 reason:\n"), "{said}");
    let hint = format!(
        "\nfreeze: nothing would be held outside any more with --also-freeze {} --also-freeze {}\n",
        row[1], row[2]
    );
    assert!(said.ends_with(&hint), "{said}");
    let told: serde_json::Value = serde_json::from_slice(&json.stdout).expect("JSON");
    assert_eq!(told["also_freeze"], serde_json::json!(row[1..]), "{told}");
    assert_eq!(told["reasons"][0]["holder"], serde_json::json!(row[1]), "{told}");
    let one_left = String::from_utf8_lossy(&part.stderr).into_owned();
    assert_eq!(part.status.code(), Some(3), "{one_left}");
    assert!(
        !one_left.contains("\nfreeze: "),
        "the reason names it: {one_left}"
    );
    assert!(
        whole.status.success(),
        "{}",
        String::from_utf8_lossy(&whole.stderr)
    );
}
