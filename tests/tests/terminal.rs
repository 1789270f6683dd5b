//! Conformance of pseudo terminals: settings, queues, sessions and foreground; a terminal outside is exchanged.

use freeze_tests::{c, conformance, python};

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

conformance!(
    hung_up,
    c(r#"
/* The slave side of a terminal whose master is closed, in two descriptions; a session that has lost its terminal. */
#include <sys/mount.h>
#include <termios.h>
int main(void) {
    /* A devpts of its own, so that nobody else takes the number meanwhile. */
    OK(unshare(CLONE_NEWNS));
    OK(mount(0, "/", 0, MS_REC | MS_PRIVATE, 0));
    OK(mount("devpts", "/dev/pts", "devpts", 0, "newinstance,ptmxmode=0666"));
    int master = OK(posix_openpt(O_RDWR | O_NOCTTY));
    OK(grantpt(master));
    OK(unlockpt(master));
    char *name = strdup(ptsname(master));
    int a = OK(open(name, O_RDWR | O_NOCTTY)), b = OK(open(name, O_RDONLY | O_NONBLOCK | O_NOCTTY));
    struct stat was, now;
    OK(fstat(a, &was));
    int child = OK(fork()), status;
    if (!child) {
        close(master);
        OK(setsid());
        signal(SIGHUP, SIG_IGN);
        int own = OK(open(name, O_RDWR));
        char x;
        CHECK(read(own, &x, 1) <= 0);
        while (!gone_ahead()) nap(2);
        SAME(read(own, &x, 1), 0);
        CHECK(open("/dev/tty", O_RDWR) == -1);
        _exit(0);
    }
    rest(50);
    close(master);
    rest(20);
    freeze_here();
    char x;
    SAME(read(a, &x, 1), 0);
    SAME(read(b, &x, 1), 0);
    CHECK(write(a, "x", 1) == -1 && errno == EIO);
    struct pollfd p = { a, POLLIN };
    SAME(OK(poll(&p, 1, 0)), 1);
    CHECK(p.revents & POLLHUP);
    OK(fstat(a, &now));
    SAME(now.st_rdev, was.st_rdev);
    SAME(fcntl(b, F_GETFL) & (O_ACCMODE | O_NONBLOCK), O_RDONLY | O_NONBLOCK);
    OK(waitpid(child, &status, 0));
    SAME(status, 0);
}
"#)
);

conformance!(
    instances,
    c(r#"
/* Two instances of devpts, in which two terminals have one number. */
#include <sys/mount.h>
#include <termios.h>
int main(void) {
    OK(unshare(CLONE_NEWNS));
    OK(mount(0, "/", 0, MS_REC | MS_PRIVATE, 0));
    char *d = strdup(in_here("pts"));
    OK(mkdir(d, 0755));
    OK(mount("devpts", d, "devpts", 0, "newinstance,ptmxmode=0666"));
    OK(mount("devpts", "/dev/pts", "devpts", 0, "newinstance,ptmxmode=0666"));
    int master[2] = { OK(open(in_here("pts/ptmx"), O_RDWR | O_NOCTTY)), OK(posix_openpt(O_RDWR | O_NOCTTY)) };
    OK(unlockpt(master[0]));
    OK(unlockpt(master[1]));
    int slave[2] = { OK(open(in_here("pts/0"), O_RDWR | O_NOCTTY)), OK(open("/dev/pts/0", O_RDWR | O_NOCTTY)) };
    freeze_here();
    struct stat s[2];
    OK(fstat(slave[0], s));
    OK(fstat(slave[1], s + 1));
    CHECK(s[0].st_dev != s[1].st_dev);
    OK(stat(in_here("pts/0"), s + 1));
    SAME(s[0].st_dev, s[1].st_dev);
    char x[8];
    SAME(write(master[0], "a\n", 2), 2);
    struct pollfd p = { slave[1], POLLIN };
    SAME(OK(poll(&p, 1, 50)), 0);
    SAME(read(slave[0], x, 8), 2);
    SAME(write(master[1], "b\n", 2), 2);
    SAME(read(slave[1], x, 8), 2);
    CHECK(x[0] == 'b');
}
"#)
);

conformance!(
    console,
    c(r#"
/* A virtual console as a session's terminal; another one that is only open. */
int main(void) {
    int other = open("/dev/tty11", O_RDWR | O_NOCTTY);
    if (other < 0) { freeze_here(); return 0; }
    int child = OK(fork()), status;
    if (!child) {
        OK(setsid());
        int own = -1;
        /* One that no other session has. */
        for (int n = getpid() % 50; own < 0; n = (n + 1) % 50) {
            char path[64];
            sprintf(path, "/dev/tty%d", 13 + n);
            own = OK(open(path, O_RDWR | O_NOCTTY));
            if (ioctl(own, TIOCSCTTY, 0)) { close(own); own = -1; }
        }
        SAME(tcgetpgrp(own), getpid());
        close(OK(open(in_here("up"), O_CREAT | O_WRONLY, 0600)));
        while (!gone_ahead()) nap(2);
        SAME(tcgetpgrp(own), getpid());
        CHECK(open("/dev/tty", O_RDWR) >= 0);
        _exit(0);
    }
    while (access(in_here("up"), F_OK)) nap(2);
    freeze_here();
    CHECK(isatty(other) && !strcmp(ttyname(other), "/dev/tty11"));
    OK(waitpid(child, &status, 0));
    SAME(status, 0);
}
"#)
);
