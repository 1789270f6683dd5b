//! Conformance of pidfds: of oneself, of a child, in a child of its parent, of init, of those that have ended.

use freeze_tests::{c, conformance};

conformance!(
    relatives,
    c(r#"
int main(void) {
    int own = OK(syscall(SYS_pidfd_open, getpid(), 0));
    int child = OK(fork());
    if (!child) {
        OK(syscall(SYS_pidfd_send_signal, own, 0, 0, 0));
        while (!gone_ahead()) nap(2);
        rest(20);
        OK(syscall(SYS_pidfd_send_signal, own, SIGUSR1, 0, 0));
        _exit(7);
    }
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    OK(sigprocmask(SIG_BLOCK, &set, 0));
    int fd = OK(syscall(SYS_pidfd_open, child, 0));
    freeze_here();
    int n;
    CHECK(!sigwait(&set, &n));
    struct pollfd p = { fd, POLLIN };
    SAME(OK(poll(&p, 1, 5000)), 1);
    siginfo_t info;
    OK(waitid(P_PIDFD, fd, &info, WEXITED));
    SAME(info.si_status, 7);
}
"#)
);

conformance!(
    others,
    c(r#"
/* Of init, and two of a child that was waited for: they tell of its end, and how it came. */
#define GET_INFO _IOWR(0xff, 11, char[64])
int main(void) {
    int init = OK(syscall(SYS_pidfd_open, 1, 0));
    int child = OK(fork()), status;
    if (!child) _exit(42);
    int dead = OK(syscall(SYS_pidfd_open, child, 0)), same = OK(syscall(SYS_pidfd_open, child, O_NONBLOCK));
    SAME(OK(waitpid(child, &status, 0)), child);
    struct stat a, b;
    OK(fstat(dead, &a));
    OK(fstat(same, &b));
    int one = a.st_ino == b.st_ino;
    uint64_t was[8] = { 8 };
    int tells = ioctl(dead, GET_INFO, was) == 0;
    freeze_here();
    OK(syscall(SYS_pidfd_send_signal, init, 0, 0, 0));
    CHECK(syscall(SYS_pidfd_send_signal, dead, 0, 0, 0) == -1 && errno == ESRCH);
    struct pollfd p = { same, POLLIN };
    SAME(OK(poll(&p, 1, 0)), 1);
    OK(fstat(dead, &a));
    OK(fstat(same, &b));
    SAME(a.st_ino == b.st_ino, one);
    uint64_t now[8] = { 8 };
    if (tells) {
        OK(ioctl(dead, GET_INFO, now));
        SAME(now[0], was[0]);
        SAME(now[7] >> 32, was[7] >> 32);
    }
    SAME(fcntl(same, F_GETFL) & O_NONBLOCK, O_NONBLOCK);
}
"#)
);
