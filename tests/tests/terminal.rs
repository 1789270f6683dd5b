//! Conformance of pseudo terminals: settings, queues, sessions and foreground; a terminal outside is exchanged.

use freeze_tests::{conformance, python};

conformance!(
    pairs,
    python(
        r#"
# A shell-like session on a pty of its parent's: what was typed, what was printed, who is in front.
import fcntl, pty, signal, struct, termios
master, slave = pty.openpty()
pid = os.fork()
if pid == 0:
    os.setsid()
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    os.close(master)
    job = os.fork()
    if job == 0:
        os.setpgid(0, 0)
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        os.tcsetpgrp(slave, os.getpgrp())
        open(HERE + "/job", "w").close()
        while not gone_ahead():
            time.sleep(0.002)
        assert os.tcgetpgrp(slave) == os.getpgrp()
        tty = os.open("/dev/tty", os.O_RDWR)
        assert struct.unpack("i", fcntl.ioctl(tty, 0x5429, b"0000"))[0] == os.getsid(0)
        assert os.read(slave, 100) == b"line\n"
        assert os.read(slave, 100) == b"eof"
        assert os.read(tty, 100) == b"partial\n"
        os.write(slave, b"bye\n")
        os._exit(0)
    os._exit(os.waitpid(job, 0)[1])
while not os.path.exists(HERE + "/job"):
    time.sleep(0.002)
fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 99, 1, 2))
os.write(master, b"line\neof\x04part")
time.sleep(0.05)
fcntl.ioctl(master, termios.TIOCPKT, struct.pack("i", 1))
settings = termios.tcgetattr(master)
freeze_here()
assert termios.tcgetattr(master) == settings
assert struct.unpack("HHHH", fcntl.ioctl(master, termios.TIOCGWINSZ, b"\0" * 8)) == (33, 99, 1, 2)
assert os.read(master, 100) == b"\0line\r\neofpart"
os.write(master, b"ial\n")
status = os.waitpid(pid, 0)[1]
assert status == 0, status
said = b""
while not said.endswith(b"bye\r\n"):
    said += os.read(master, 100)[1:]
assert said == b"ial\r\nbye\r\n"
"#
    )
    .alone()
);
