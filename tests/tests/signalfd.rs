//! Conformance of signalfds: the mask, and signals that wait to be read through it.

use freeze_tests::{c, conformance};

conformance!(
    masks,
    c(r#"
/* A signal that was pending is read through the descriptor, one outside the mask is not. */
#include <sys/signalfd.h>
int main(void) {
    sigset_t set, all;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGRTMIN + 3);
    sigfillset(&all);
    OK(sigprocmask(SIG_BLOCK, &all, 0));
    int fd = OK(signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC));
    OK(kill(getpid(), SIGUSR1));
    OK(kill(getpid(), SIGUSR2));
    union sigval v = { .sival_int = 77 };
    OK(sigqueue(getpid(), SIGRTMIN + 3, v));
    freeze_here();
    struct signalfd_siginfo info;
    SAME(read(fd, &info, sizeof info), sizeof info);
    SAME(info.ssi_signo, SIGUSR1);
    SAME(read(fd, &info, sizeof info), sizeof info);
    SAME(info.ssi_signo, SIGRTMIN + 3);
    SAME(info.ssi_int, 77);
    CHECK(read(fd, &info, sizeof info) == -1 && errno == EAGAIN);
}
"#)
);
