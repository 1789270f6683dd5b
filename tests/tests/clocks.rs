//! Conformance of time namespaces: clocks that are ahead, for children and for who lives there.

use freeze_tests::{c, conformance};

conformance!(
    clocks,
    c(r#"
/* Clocks that are a day ahead, for the children of whoever unshares them. */
#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x80
#endif
static long now(int clock) { struct timespec t; OK(clock_gettime(clock, &t)); return t.tv_sec; }
int main(void) {
    long plain = now(CLOCK_MONOTONIC);
    OK(unshare(CLONE_NEWTIME));
    int fd = OK(open("/proc/self/timens_offsets", O_WRONLY));
    OK(write(fd, "monotonic 86400 0\nboottime 90000 0\n", 35));
    close(fd);
    int pid = OK(fork()), status;
    if (!pid) {
        long before = now(CLOCK_MONOTONIC);
        while (!gone_ahead()) nap(2);
        long after = now(CLOCK_MONOTONIC);
        _exit(before - plain >= 86400 && after >= before && after - before < 3600 ? 3 : 4);
    }
    rest(20);
    freeze_here();
    OK(waitpid(pid, &status, 0));
    SAME(WEXITSTATUS(status), 3);
    CHECK(now(CLOCK_MONOTONIC) - plain < 3600);
    pid = OK(fork());
    if (!pid) _exit(now(CLOCK_MONOTONIC) - plain >= 86400);
    OK(waitpid(pid, &status, 0));
    SAME(WEXITSTATUS(status), 1);
}
"#)
);

// A process that lives in a time namespace, and has its children born into another, stays in its own.
conformance!(
    clocks_in_clocks,
    c(r#"
#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x80
#endif
static long now(void) { struct timespec t; OK(clock_gettime(CLOCK_MONOTONIC, &t)); return t.tv_sec; }
static void ahead(const char *offset) {
    OK(unshare(CLONE_NEWTIME));
    int fd = OK(open("/proc/self/timens_offsets", O_WRONLY));
    OK(write(fd, offset, strlen(offset)));
    close(fd);
}
int main(void) {
    int status, own;
    long plain = now();
    ahead("monotonic 10000 0\n");
    own = OK(fork());
    if (!own) {
        ahead("monotonic 30000 0\n");
        long before = now();
        while (!gone_ahead()) nap(2);
        long after = now();
        if (before - plain < 10000 || after < before || after - before > 3600) _exit(4);
        int child = OK(fork());
        if (!child) _exit(now() - plain >= 30000 && now() - plain < 40000 ? 3 : 5);
        OK(waitpid(child, &status, 0));
        _exit(WEXITSTATUS(status));
    }
    /* Now nobody has children born where that process lives. */
    ahead("monotonic 50000 0\n");
    rest(20);
    freeze_here();
    OK(waitpid(own, &status, 0));
    SAME(WEXITSTATUS(status), 3);
    CHECK(now() - plain < 3600);
}
"#)
);
