//! Conformance of descriptor tables: numbers, gaps, close-on-exec, signal-driven input.

use freeze_tests::{c, conformance};

conformance!(
    numbers,
    c(r#"
/* High numbers and gaps stay; the next descriptor is the lowest free one. */
int main(void) {
    struct rlimit limit = { 1024, 4096 };
    OK(setrlimit(RLIMIT_NOFILE, &limit));
    int null = OK(open("/dev/null", O_RDWR));
    SAME(dup2(null, 1023), 1023);
    SAME(dup3(null, 500, O_CLOEXEC), 500);
    SAME(dup2(null, 7), 7);
    /* Above the limit that came later. */
    limit.rlim_cur = 256;
    OK(setrlimit(RLIMIT_NOFILE, &limit));
    close(null);
    freeze_here();
    SAME(fcntl(1023, F_GETFD), 0);
    SAME(fcntl(500, F_GETFD), FD_CLOEXEC);
    SAME(fcntl(7, F_GETFD), 0);
    CHECK(fcntl(499, F_GETFD) == -1 && errno == EBADF);
    SAME(open("/dev/null", O_RDONLY), 3);
    SAME(write(1023, "x", 1), 1);
}
"#)
);

conformance!(
    threads_are_owners,
    c(r#"
/* A thread that is told of input is told still, of a pipe, a socket and a directory. */
static volatile int tid, told[80];
static void tell(int sig, siginfo_t *info, void *context) { if (gettid() == tid) told[info->si_fd]++; }
static void *wait_for_it(void *arg) { tid = gettid(); for (;;) pause(); return 0; }
int main(void) {
    struct sigaction action = { .sa_sigaction = tell, .sa_flags = SA_SIGINFO | SA_RESTART };
    OK(sigaction(SIGRTMIN + 5, &action, 0));
    pthread_t thread;
    pthread_create(&thread, 0, wait_for_it, 0);
    while (!tid) usleep(1000);
    int p[2], s[2], dir = OK(open(here_dir, O_RDONLY));
    OK(pipe(p)); OK(socketpair(AF_UNIX, SOCK_STREAM, 0, s));
    int all[] = { p[0], s[0], dir };
    struct f_owner_ex owner = { F_OWNER_TID, tid }, now;
    for (int i = 0; i < 3; i++) {
        OK(fcntl(all[i], F_SETOWN_EX, &owner));
        OK(fcntl(all[i], F_SETSIG, SIGRTMIN + 5));
        if (i < 2) OK(fcntl(all[i], F_SETFL, O_ASYNC | O_RDWR));
    }
    freeze_here();
    OK(fcntl(dir, F_NOTIFY, DN_CREATE));
    for (int i = 0; i < 3; i++) {
        OK(fcntl(all[i], F_GETOWN_EX, &now));
        SAME(now.type, F_OWNER_TID);
        SAME(now.pid, tid);
    }
    SAME(write(p[1], "x", 1), 1);
    SAME(write(s[1], "x", 1), 1);
    OK(mkdirat(dir, "made", 0700)); OK(unlinkat(dir, "made", AT_REMOVEDIR));
    for (int i = 0; i < 3; i++) {
        for (int n = 0; n < 1000 && !told[all[i]]; n++) usleep(1000);
        CHECK(told[all[i]]);
    }
}
"#)
);

conformance!(
    owners,
    c(r#"
/* Who is told of input, and by which signal. */
int main(void) {
    int p[2];
    OK(pipe(p));
    struct f_owner_ex owner = { F_OWNER_PID, getpid() }, now;
    OK(fcntl(p[0], F_SETOWN_EX, &owner));
    OK(fcntl(p[0], F_SETSIG, SIGRTMIN + 5));
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 5);
    sigprocmask(SIG_BLOCK, &set, 0);
    OK(fcntl(p[0], F_SETFL, O_ASYNC | O_NONBLOCK));
    freeze_here();
    OK(fcntl(p[0], F_GETOWN_EX, &now));
    SAME(now.type, F_OWNER_PID);
    SAME(now.pid, getpid());
    SAME(fcntl(p[0], F_GETSIG), SIGRTMIN + 5);
    SAME(write(p[1], "x", 1), 1);
    siginfo_t info;
    struct timespec second = { 1, 0 };
    SAME(sigtimedwait(&set, &info, &second), SIGRTMIN + 5);
    SAME(info.si_fd, p[0]);
}
"#)
);

conformance!(
    record_locks,
    c(r#"
/* Locks of fcntl(F_SETLK): each is shown by the one description through which it was taken, and all are the process's. */
static struct flock lock(int kind, long start, long len) {
    return (struct flock){ .l_type = kind, .l_whence = SEEK_SET, .l_start = start, .l_len = len };
}
int main(void) {
    char byte;
    int go[2], ends[2], first = OK(open(in_here("locked"), O_RDWR | O_CREAT, 0600)), second = OK(open(in_here("locked"), O_RDWR));
    struct flock mine = lock(F_WRLCK, 0, 1), more = lock(F_RDLCK, 5, 3), hers = lock(F_RDLCK, 20, 4);
    OK(fcntl(first, F_SETLK, &mine));
    OK(fcntl(second, F_SETLK, &more));
    OK(pipe(ends));
    OK(pipe(go));
    pid_t child = OK(fork());
    if (!child) {
        int third = OK(open(in_here("locked"), O_RDWR));
        OK(fcntl(third, F_SETLK, &hers));
        OK(dup(third));
        SAME(write(ends[1], "x", 1), 1);
        SAME(read(go[0], &byte, 1), 1);
        struct flock ask = lock(F_WRLCK, 0, 1), again = lock(F_WRLCK, 4, 3);
        OK(fcntl(third, F_GETLK, &ask));
        SAME(ask.l_pid, getppid());
        OK(fcntl(third, F_GETLK, &again));
        SAME(again.l_type, F_RDLCK);
        SAME(again.l_start, 5);
        _exit(0);
    }
    int status;
    SAME(read(ends[0], &byte, 1), 1);
    freeze_here();
    struct flock ask = lock(F_WRLCK, 18, 20);
    int seen = fcntl(first, F_GETLK, &ask);
    SAME(write(go[1], "x", 1), 1);
    OK(waitpid(child, &status, 0));
    OK(seen);
    SAME(ask.l_type, F_RDLCK);
    SAME(ask.l_pid, child);
    SAME(ask.l_start, 20);
    SAME(ask.l_len, 4);
    SAME(status, 0);
}
"#)
);
