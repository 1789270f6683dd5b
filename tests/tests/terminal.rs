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
/* Two instances of devpts, in which two terminals have one number; one is mounted under another name than usual. */
#include <sys/mount.h>
#include <termios.h>
int main(void) {
    OK(unshare(CLONE_NEWNS));
    OK(mount(0, "/", 0, MS_REC | MS_PRIVATE, 0));
    char *d = strdup(in_here("terms"));
    OK(mkdir(d, 0755));
    OK(mount("devpts", d, "devpts", 0, "newinstance,ptmxmode=0666"));
    OK(mount("devpts", "/dev/pts", "devpts", 0, "newinstance,ptmxmode=0666"));
    int master[2] = { OK(open(in_here("terms/ptmx"), O_RDWR | O_NOCTTY)), OK(posix_openpt(O_RDWR | O_NOCTTY)) };
    OK(unlockpt(master[0]));
    OK(unlockpt(master[1]));
    int slave[2] = { OK(open(in_here("terms/0"), O_RDWR | O_NOCTTY)), OK(open("/dev/pts/0", O_RDWR | O_NOCTTY)) };
    freeze_here();
    struct stat s[2];
    OK(fstat(slave[0], s));
    OK(fstat(slave[1], s + 1));
    CHECK(s[0].st_dev != s[1].st_dev);
    OK(stat(in_here("terms/0"), s + 1));
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
    if (other < 0) WITHOUT("no virtual consoles");
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

conformance!(
    full,
    c(r#"
/* Ptys that hold all they can, in both directions, however that came about; a writer that waits for room. */
#include <termios.h>
static char text(int i) { return 'a' + (i * 7 + i / 251) % 26; }
static int pty(int *slave, int raw) {
    struct termios t;
    int m = OK(posix_openpt(O_RDWR | O_NOCTTY | O_NONBLOCK));
    OK(unlockpt(m));
    *slave = OK(open(ptsname(m), O_RDWR | O_NOCTTY | O_NONBLOCK));
    OK(tcgetattr(*slave, &t));
    if (raw) cfmakeraw(&t);
    t.c_lflag &= ~ECHO;
    OK(tcsetattr(*slave, TCSANOW, &t));
    return m;
}
/* Writes on from `at` until there is no room. */
static int fill(int fd, int at, int block) {
    char x[2048];
    for (;;) {
        for (int i = 0; i < block; i++) x[i] = text(at + i);
        int n = write(fd, x, block);
        if (n <= 0) return at;
        at += n;
    }
}
static int all(int fd) {
    char x[4096];
    int n, sum = 0;
    for (int quiet = 0; quiet < 10; quiet++, nap(1))
        for (; (n = read(fd, x, sizeof x)) > 0; quiet = 0)
            for (int i = 0; i < n; i++) if (x[i] != text(sum++)) return -1;
    return sum;
}
static int full(int from, int to, int how) {
    static const int block[] = { 100, 1, 2048, 512, 2048 };
    /* Small buffers that were used once are used again beyond the limit. */
    if (how == 4) for (int i = 0; i < 5; i++) {
        fill(from, 0, 256);
        CHECK(all(to) > 0);
    }
    int at = fill(from, 0, block[how]);
    /* What a line discipline has taken makes room. */
    for (int i = 0; i < 5; i++, nap(2)) at = fill(from, fill(from, at, 256), 1);
    return at;
}
int main(void) {
    int m[20], s[20], n[20], lines = 0, stuck, wait, x;
    for (int i = 0; i < 15; i++) {
        m[i] = pty(s + i, i >= 5);
        n[i] = i < 10 ? full(s[i], m[i], i % 5) : full(m[i], s[i], i % 5);
        CHECK(n[i] > 4095 + 4096);
    }
    int typed = pty(&x, 0);
    while (write(typed, "a line\n", 7) == 7) { lines++; if (lines % 100 == 0) nap(1); }
    CHECK(lines * 7 > 4095 + 4096);
    stuck = pty(&wait, 0);
    int child = OK(fork()), status;
    if (!child) {
        OK(fcntl(wait, F_SETFL, 0));
        char w[100];
        for (int at = 0, n; at < 40000; at += n) {
            for (int i = 0; i < 100; i++) w[i] = text(at + i);
            n = OK(write(wait, w, 100));
        }
        _exit(0);
    }
    OK(fcntl(stuck, F_SETFL, 0));
    rest(50);
    freeze_here();
    SAME(fcntl(stuck, F_GETFL) & O_NONBLOCK, 0);
    for (int i = 0; i < 15; i++) {
        SAME(all(i < 10 ? m[i] : s[i]), n[i]);
        char c = text(0);
        SAME(write(i < 10 ? s[i] : m[i], &c, 1), 1);
        SAME(all(i < 10 ? m[i] : s[i]), 1);
    }
    char line[100];
    for (int i = 0; i < lines; i++) {
        int n;
        while ((n = read(x, line, sizeof line)) < 0 && errno == EAGAIN) nap(1);
        SAME(n, 7);
        CHECK(!memcmp(line, "a line\n", 7));
    }
    OK(fcntl(stuck, F_SETFL, O_NONBLOCK));
    SAME(all(stuck), 40000);
    OK(waitpid(child, &status, 0));
    SAME(status, 0);
}
"#)
    .alone()
);

conformance!(
    stopped,
    c(r#"
/* Output that is stopped by tcflow(), by ^S, and with as much written before as there is room for. */
#include <termios.h>
static int pty(int *slave) {
    int m = OK(posix_openpt(O_RDWR | O_NOCTTY | O_NONBLOCK));
    OK(unlockpt(m));
    *slave = OK(open(ptsname(m), O_RDWR | O_NOCTTY | O_NONBLOCK));
    return m;
}
static int says(int master, const char *expected) {
    char x[100] = "";
    nap(5);
    int n = read(master, x, sizeof x - 1);
    return n == (int)strlen(expected) && !strcmp(x, expected);
}
static int fill(int slave) {
    int n = 0;
    while (write(slave, "w", 1) == 1) n++;
    return n;
}
static int all(int fd) {
    char x[4096];
    int n, sum = 0;
    for (int quiet = 0; quiet < 10; quiet++, nap(1)) while ((n = read(fd, x, sizeof x)) > 0) sum += n, quiet = 0;
    return sum;
}
int main(void) {
    int call, character, typed, fast, slow, silent;
    int m1 = pty(&call), m2 = pty(&character), m3 = pty(&typed), m4 = pty(&fast), m5 = pty(&slow), m6 = pty(&silent);
    OK(tcflow(call, TCOOFF));
    SAME(write(m2, "\x13", 1), 1);
    SAME(write(m3, "\x13", 1), 1);
    nap(20);
    SAME(write(m3, "ab", 2), 2);
    int n4 = fill(fast), n5 = fill(slow);
    OK(tcflow(fast, TCOOFF));
    SAME(write(m5, "\x13", 1), 1);
    OK(tcflow(m6, TCOOFF));
    rest(20);
    freeze_here();
    CHECK(write(call, "a", 1) == -1 && errno == EAGAIN);
    SAME(write(m1, "\x11", 1), 1);
    nap(5);
    CHECK(write(call, "a", 1) == -1 && errno == EAGAIN);
    OK(tcflow(call, TCOON));
    SAME(write(call, "a", 1), 1);
    CHECK(says(m1, "a"));
    CHECK(write(character, "a", 1) == -1 && errno == EAGAIN);
    OK(tcflow(character, TCOON));
    CHECK(write(character, "a", 1) == -1 && errno == EAGAIN);
    SAME(write(m2, "\x11", 1), 1);
    nap(5);
    SAME(write(character, "b", 1), 1);
    CHECK(says(m2, "b"));
    CHECK(write(typed, "a", 1) == -1 && errno == EAGAIN);
    SAME(write(m3, "\x11", 1), 1);
    CHECK(says(m3, "ab"));
    SAME(all(m4), n4);
    CHECK(write(fast, "a", 1) == -1 && errno == EAGAIN);
    OK(tcflow(fast, TCOON));
    SAME(write(fast, "a", 1), 1);
    SAME(all(m5), n5);
    CHECK(write(slow, "a", 1) == -1 && errno == EAGAIN);
    SAME(write(m5, "\x11", 1), 1);
    /* Who types is not waited for. */
    for (int tries = 0; write(slow, "a", 1) != 1; tries++) { CHECK(errno == EAGAIN && tries < 1000); nap(5); }
    CHECK(write(m6, "a", 1) == -1 && errno == EAGAIN);
    OK(tcflow(m6, TCOON));
    SAME(write(m6, "\n", 1), 1);
    nap(5);
    char x;
    SAME(read(silent, &x, 1), 1);
}
"#)
    .alone()
);

conformance!(
    controlling,
    c(r#"
/* /dev/tty, open in the session it is of, in a child that shares it, and in one that has left the session. */
#include <sys/sysmacros.h>
static void is_tty(int t) {
    struct stat s;
    char link[100] = "", path[100];
    OK(fstat(t, &s));
    SAME(s.st_rdev, makedev(5, 0));
    sprintf(path, "/proc/self/fd/%d", t);
    OK(readlink(path, link, sizeof link - 1));
    CHECK(!strcmp(link, "/dev/tty"));
}
int main(void) {
    int master = OK(posix_openpt(O_RDWR | O_NOCTTY)), up[2], status;
    OK(unlockpt(master));
    OK(pipe(up));
    int child = OK(fork());
    if (!child) {
        OK(setsid());
        int slave = OK(open(ptsname(master), O_RDWR));
        int t = OK(open("/dev/tty", O_RDWR | O_NONBLOCK)), other = OK(open("/dev/tty", O_WRONLY));
        close(slave);
        close(master);
        for (int i = 0; i < 2; i++) if (!OK(fork())) {
            if (i) OK(setsid());
            SAME(write(up[1], "u", 1), 1);
            while (!gone_ahead()) nap(2);
            is_tty(t);
            if (i) CHECK(open("/dev/tty", O_RDWR) == -1 && errno == ENXIO);
            else OK(fcntl(t, F_SETFL, 0));
            SAME(write(t, "x", 1), 1);
            _exit(0);
        }
        while (!gone_ahead()) nap(2);
        for (int i = 0; i < 2; i++) { OK(wait(&status)); SAME(status, 0); }
        is_tty(t);
        is_tty(other);
        SAME(fcntl(t, F_GETFL) & (O_ACCMODE | O_NONBLOCK), O_RDWR);
        SAME(fcntl(other, F_GETFL) & (O_ACCMODE | O_NONBLOCK), O_WRONLY);
        SAME(write(other, "y", 1), 1);
        SAME(tcgetsid(t), getpid());
        _exit(0);
    }
    char x[8];
    for (int i = 0; i < 2; i++) SAME(read(up[0], x, 1), 1);
    rest(20);
    freeze_here();
    for (int i = 0; i < 3; i++) SAME(read(master, x, 1), 1);
    CHECK(*x == 'y');
    OK(waitpid(child, &status, 0));
    SAME(status, 0);
}
"#)
    .alone()
);

/// Runs a program on a terminal, checkpoints it from outside, and restores it on another terminal.
const EXCHANGE: &str = r#"
import fcntl, os, pty, struct, subprocess, sys
freeze, image, go = sys.argv[1:]
program = """
import os, time
tty = os.open("/dev/tty", os.O_RDWR)
print("up", flush=True)
while not os.path.exists(%r):
    time.sleep(0.002)
print(os.readlink("/proc/self/fd/%%d" %% tty), hex(os.fstat(tty).st_rdev), os.ttyname(0), flush=True)
""" % go
def on_terminal(*command):
    pid, master = pty.fork()
    if pid == 0:
        os.closerange(3, 1000)
        os.execv(command[0], command)
    return pid, master
def rest(master):
    said = b""
    try:
        while more := os.read(master, 1000):
            said += more
    except OSError:
        pass
    return said.decode()
pid, first = on_terminal(sys.executable, "-c", program)
assert b"up" in os.read(first, 100)
subprocess.run([freeze, "checkpoint", str(pid), "--to", image, "--kill"], check=True)
os.waitpid(pid, 0)
open(go, "w").close()
pid, second = on_terminal(freeze, "restore", image, "--tty")
said = rest(second)
assert os.waitpid(pid, 0)[1] == 0, said
number = struct.unpack("i", fcntl.ioctl(second, 0x80045430, b"0000"))[0]
# What it wrote stands whole, behind what freeze had to say.
assert said.endswith("/dev/tty 0x500 /dev/pts/%d\r\n" % number), said
assert "warning: /dev/tty: it controlled session" in said, said
"#;

#[test]
fn one_outside_is_exchanged_also_as_dev_tty() {
    let dir = freeze_tests::scratch();
    let program = freeze_tests::freeze();
    let done = std::process::Command::new("/usr/bin/python3")
        .args(["-c", EXCHANGE])
        .arg(program.get_program())
        .args([dir.join("image"), dir.join("go")])
        .output()
        .expect("python3");
    std::fs::remove_dir_all(&dir).expect("a directory of our own");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

conformance!(
    hung_while_in_use,
    c(r#"
/* Slave sides that were hung up (vhangup) while the master stayed open, beside one that was opened afterwards. */
static int pty(char *name) {
    int m = OK(posix_openpt(O_RDWR | O_NOCTTY | O_NONBLOCK));
    OK(unlockpt(m));
    strcpy(name, ptsname(m));
    return m;
}
static void is_dead(int fd) {
    char x;
    SAME(read(fd, &x, 1), 0);
    CHECK(write(fd, "x", 1) == -1 && errno == EIO);
}
int main(void) {
    char one[100], two[100], x[8];
    int m = pty(one), n = pty(two), status;
    int a = OK(open(one, O_RDWR | O_NOCTTY)), b = OK(open(one, O_RDONLY | O_NONBLOCK | O_NOCTTY));
    int only = OK(open(two, O_RDWR | O_NOCTTY));
    int child = OK(fork());
    if (!child) {
        OK(setsid());
        signal(SIGHUP, SIG_IGN);
        OK(open(one, O_RDWR));
        OK(vhangup());
        close(OK(open(in_here("hung"), O_CREAT | O_WRONLY, 0600)));
        while (!gone_ahead()) nap(2);
        is_dead(a);
        CHECK(open("/dev/tty", O_RDWR) == -1 && errno == ENXIO);
        _exit(0);
    }
    while (access(in_here("hung"), F_OK)) nap(2);
    OK(ioctl(only, TIOCVHANGUP));
    int live = OK(open(one, O_RDWR | O_NOCTTY));
    SAME(write(live, "out", 3), 3);
    SAME(write(m, "line\n", 5), 5);
    rest(20);
    freeze_here();
    is_dead(a);
    is_dead(only);
    SAME(read(b, x, 1), 0);
    SAME(fcntl(b, F_GETFL) & (O_ACCMODE | O_NONBLOCK), O_RDONLY | O_NONBLOCK);
    SAME(read(live, x, 8), 5);
    SAME(read(m, x, 3), 3);
    CHECK(!memcmp(x, "out", 3));
    int again = OK(open(two, O_RDWR | O_NOCTTY));
    SAME(write(again, "y", 1), 1);
    nap(5);
    SAME(read(n, x, 1), 1);
    OK(waitpid(child, &status, 0));
    SAME(status, 0);
}
"#)
    .alone(),
    only: root
);

conformance!(
    instance_of_a_session,
    c(r#"
#include <sys/mount.h>
/* A session is controlled by a terminal of a devpts of its own tree: it comes back there, with its name and number. */
int main(void) {
    OK(unshare(CLONE_NEWNS));
    OK(mount(0, "/", 0, MS_REC | MS_PRIVATE, 0));
    char dir[PATH_MAX - 50], slave[PATH_MAX], link[PATH_MAX] = "", path[50];
    strcpy(dir, in_here("p"));
    OK(mkdir(dir, 0755));
    OK(mount("devpts", dir, "devpts", 0, "newinstance,ptmxmode=0666,mode=620"));
    /* And one that is nobody's yet. Root may open what nobody may, and give it options: they are its user namespace's. */
    OK(mkdir(in_here("q"), 0755));
    OK(mount("devpts", in_here("q"), "devpts", 0, "newinstance,ptmxmode=0,mode=620"));
    struct stat was[2];
    OK(stat(in_here("p/ptmx"), &was[0]));
    OK(stat(in_here("q/ptmx"), &was[1]));
    int master = OK(open(in_here("p/ptmx"), O_RDWR | O_NOCTTY)), unlocked = 0, number;
    OK(ioctl(master, TIOCSPTLCK, &unlocked));
    OK(ioctl(master, TIOCGPTN, &number));
    snprintf(slave, sizeof slave, "%s/%d", dir, number);
    int child = OK(fork());
    if (!child) {
        OK(setsid());
        int terminal = OK(open(slave, O_RDWR)), session;
        close(master);
        char text[10];
        int n = read(terminal, text, 10);
        OK(ioctl(terminal, TIOCGSID, &session));
        _exit(n == 3 && session == getpid() ? 0 : 1);
    }
    rest(30);
    freeze_here();
    sprintf(path, "/proc/%d/fd/%d", child, master + 1);
    OK(readlink(path, link, sizeof link - 1));
    if (strcmp(link, slave)) DIE("%s, before %s", link, slave);
    struct stat s, t;
    OK(stat(path, &s));
    OK(stat(slave, &t));
    SAME(s.st_dev, t.st_dev);
    SAME(s.st_ino, t.st_ino);
    for (int i = 0; i < 2; i++) {
        char *ptmx = in_here(i ? "q/ptmx" : "p/ptmx");
        OK(stat(ptmx, &s));
        SAME(s.st_uid, was[i].st_uid);
        SAME(s.st_gid, was[i].st_gid);
        SAME(s.st_mode, was[i].st_mode);
        OK(close(OK(open(ptmx, O_RDWR | O_NOCTTY))));
        OK(mount(0, i ? in_here("q") : dir, 0, MS_REMOUNT, "mode=600"));
    }
    OK(write(master, "ab\n", 3));
    int status;
    OK(waitpid(child, &status, 0));
    SAME(status, 0);
}
"#)
);

conformance!(
    told_by_signal,
    c(r#"
/* A slave side whose owner is told of what comes by a signal (O_ASYNC), which says of which descriptor. */
static volatile int count, number;
static void note(int signal, siginfo_t *info, void *context) { count++; number = info->si_fd; }
int main(void) {
    struct sigaction action = {.sa_sigaction = note, .sa_flags = SA_SIGINFO | SA_RESTART};
    OK(sigaction(SIGRTMIN + 2, &action, 0));
    int master = OK(posix_openpt(O_RDWR | O_NOCTTY));
    OK(unlockpt(master));
    int slave = OK(open(ptsname(master), O_RDWR | O_NOCTTY));
    OK(fcntl(slave, F_SETOWN, getpid()));
    OK(fcntl(slave, F_SETSIG, SIGRTMIN + 2));
    OK(fcntl(slave, F_SETFL, O_RDWR | O_ASYNC));
    int flags = OK(fcntl(slave, F_GETFL));
    freeze_here();
    SAME(fcntl(slave, F_GETFL), flags);
    SAME(write(master, "x\n", 2), 2);
    for (int i = 0; i < 1000 && !count; i++) nap(2);
    SAME(count, 1);
    SAME(number, slave);
    OK(fcntl(slave, F_SETFL, O_RDWR));
    SAME(fcntl(slave, F_GETFL), flags & ~O_ASYNC);
}
"#)
    .alone()
);

conformance!(
    without_it,
    c(r#"
/* Of a session with a terminal one was there before it had one, and one has given it up (TIOCNOTTY). */
#include <termios.h>
static int in_session(int has) {
    int tty = open("/dev/tty", O_RDWR);
    if (has) return OK(tty);
    CHECK(tty == -1 && errno == ENXIO);
    return tty;
}
int main(void) {
    int master = OK(posix_openpt(O_RDWR | O_NOCTTY)), status;
    OK(unlockpt(master));
    int leader = OK(fork());
    if (!leader) {
        OK(setsid());
        int before = OK(fork());
        if (!before) {
            freeze_here();
            in_session(0);
            _exit(0);
        }
        int slave = OK(open(ptsname(master), O_RDWR));
        int left = OK(fork());
        if (!left) {
            OK(ioctl(slave, TIOCNOTTY));
            int own = OK(fork());
            if (!own) {
                freeze_here();
                in_session(0);
                _exit(0);
            }
            freeze_here();
            in_session(0);
            OK(waitpid(own, &status, 0));
            CHECK(write(slave, "left", 4) == 4);
            _exit(status != 0);
        }
        freeze_here();
        SAME(tcgetsid(in_session(1)), getpid());
        OK(waitpid(before, &status, 0));
        SAME(status, 0);
        OK(waitpid(left, &status, 0));
        SAME(status, 0);
        _exit(0);
    }
    rest(50);
    freeze_here();
    OK(waitpid(leader, &status, 0));
    SAME(status, 0);
    char text[10];
    SAME(read(master, text, 10), 4);
}
"#)
    .alone()
);

conformance!(
    kept_from_change,
    c(r#"
/* Settings that are kept from being changed (TIOCSLCKTRMIOS), with something typed and something written. */
#include <termios.h>
struct kernels { tcflag_t flags[4]; cc_t line, cc[19]; };
int main(void) {
    int master = OK(posix_openpt(O_RDWR | O_NOCTTY));
    OK(unlockpt(master));
    int slave = OK(open(ptsname(master), O_RDWR | O_NOCTTY));
    struct kernels fixed = {.flags = {IXON, OPOST, 0, ICANON | ECHO}}, now;
    fixed.cc[VERASE] = 1;
    if (ioctl(slave, TIOCSLCKTRMIOS, &fixed)) WITHOUT("the right to lock settings");
    SAME(write(slave, "out\n", 4), 4);
    SAME(write(master, "line\nhalf", 9), 9);
    rest(30);
    freeze_here();
    OK(ioctl(master, TIOCGLCKTRMIOS, &now));
    CHECK(!memcmp(&now, &fixed, sizeof now));
    struct termios t;
    OK(tcgetattr(slave, &t));
    t.c_lflag &= ~(ICANON | ECHO | ISIG);
    t.c_cc[VERASE] = 5;
    OK(tcsetattr(slave, TCSANOW, &t));
    OK(tcgetattr(slave, &t));
    SAME(t.c_lflag & (ICANON | ECHO | ISIG), ICANON | ECHO);
    CHECK(t.c_cc[VERASE] == 0177);
    char text[50];
    SAME(read(slave, text, 50), 5);
    SAME(write(master, "\n", 1), 1);
    SAME(read(slave, text, 50), 5);
    CHECK(!memcmp(text, "half\n", 5));
    int n = read(master, text, 50);
    CHECK(n >= 5 && !memcmp(text, "out\r\n", 5));
}
"#)
    .alone()
);

conformance!(
    shown_elsewhere,
    c(r#"
/* Slave sides that a mount shows by another name, as a container's console: one controls a session, the other none. */
#include <sys/mount.h>
#include <termios.h>
static int master_of(char *name, const char *shown) {
    int master = OK(posix_openpt(O_RDWR | O_NOCTTY)), made;
    OK(unlockpt(master));
    strcpy(name, in_here(shown));
    made = OK(open(name, O_RDWR | O_CREAT, 0600));
    close(made);
    OK(mount(ptsname(master), name, 0, MS_BIND, 0));
    return master;
}
int main(void) {
    char console[PATH_MAX], other[PATH_MAX], path[50], link[PATH_MAX] = {0};
    OK(unshare(CLONE_NEWNS));
    OK(mount(0, "/", 0, MS_REC | MS_PRIVATE, 0));
    int master = master_of(console, "console"), second = master_of(other, "other");
    int slave = OK(open(other, O_RDWR | O_NOCTTY)), child = OK(fork()), status;
    if (!child) {
        OK(setsid());
        int tty = OK(open(console, O_RDWR));
        freeze_here();
        char text[10];
        SAME(read(tty, text, 10), 3);
        SAME(tcgetsid(tty), getpid());
        _exit(0);
    }
    rest(30);
    freeze_here();
    OK(write(master, "ab\n", 3));
    OK(write(slave, "x", 1));
    SAME(read(second, path, 10), 1);
    snprintf(path, sizeof path, "/proc/self/fd/%d", slave);
    OK(readlink(path, link, sizeof link - 1));
    CHECK(!strcmp(link, other));
    close(OK(open(other, O_RDWR | O_NOCTTY)));
    OK(waitpid(child, &status, 0));
    SAME(status, 0);
    OK(umount2(console, MNT_DETACH));
    OK(umount2(other, MNT_DETACH));
}
"#)
    .alone()
);

conformance!(
    by_path_alone,
    c(r#"
/* O_PATH descriptors of the slave side of a pseudo terminal that somebody has open, and of one that nobody has opened yet. */
int main(void) {
    int masters[2], paths[2];
    struct stat before[2], now;
    for (int i = 0; i < 2; i++) {
        masters[i] = OK(posix_openpt(O_RDWR | O_NOCTTY));
        OK(unlockpt(masters[i]));
        paths[i] = OK(open(ptsname(masters[i]), O_PATH));
        OK(fstat(paths[i], &before[i]));
    }
    int slave = OK(open(ptsname(masters[0]), O_RDWR | O_NOCTTY));
    freeze_here();
    for (int i = 0; i < 2; i++) {
        OK(fstat(paths[i], &now));
        SAME(now.st_rdev, before[i].st_rdev);
        SAME(fcntl(paths[i], F_GETFL) & O_PATH, O_PATH);
        char name[50];
        snprintf(name, sizeof name, "/proc/self/fd/%d", paths[i]);
        int again = OK(open(name, O_RDWR | O_NOCTTY));
        OK(write(again, "x", 1));
        SAME(read(masters[i], name, 50), 1);
        close(again);
    }
    OK(write(slave, "y", 1));
}
"#)
    .alone()
);
