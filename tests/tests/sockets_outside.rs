//! Sockets whose other end lies outside: refused before anything is stopped, all at once, each with its holder.

use freeze_tests::subject::{Running, output};
use freeze_tests::{freeze, python};
use std::io::Read;
use std::net::TcpStream;
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
    let done = output(
        freeze()
            .arg("checkpoint")
            .arg(running.pid.to_string())
            .arg("--to")
            .arg(&image)
            .arg("--kill"),
    );
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
