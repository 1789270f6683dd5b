//! Conformance of pidfds: of oneself, of a child, in a child of its parent.

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
        nap(20);
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
