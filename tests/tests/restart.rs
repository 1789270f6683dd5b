//! Calls that a thread was asleep in go on after a checkpoint as if nothing had come between.

use freeze_tests::{c, conformance};

conformance!(
    blocked_calls,
    c(r#"
/* Each thread sleeps in a call of its own, none of which may fail with EINTR or return early. */
#include <sys/select.h>
#include <sys/epoll.h>
#include <linux/futex.h>
static int data[2], quiet[2], full[2];
static int word, lockfile;
static int finished;
static void done(void) { __sync_fetch_and_add(&finished, 1); }
static void *in_read(void *u) { char c; SAME(read(data[0], &c, 1), 1); SAME(c, 'r'); done(); return 0; }
static void *in_write(void *u) { static char big[200000]; 
    /* What a stop cuts short (as any signal does: pipe(7)) has been written, and the rest is the program's affair. */
    for (int n = 0; n < (int)sizeof big;) n += OK(write(full[1], big + n, sizeof big - n));
    done(); return 0; }
static void *in_poll(void *u) {
    struct pollfd p = { quiet[0], POLLIN };
    SAME(poll(&p, 1, -1), 1);
    done();
    return 0;
}
static void *in_ppoll(void *u) {
    struct pollfd p = { quiet[0], POLLIN };
    struct timespec t = { 100, 0 };
    SAME(ppoll(&p, 1, &t, 0), 1);
    done();
    return 0;
}
static void *in_select(void *u) {
    fd_set set;
    FD_ZERO(&set);
    FD_SET(quiet[0], &set);
    SAME(select(quiet[0] + 1, &set, 0, 0, 0), 1);
    done();
    return 0;
}
static void *in_futex(void *u) {
    SAME(syscall(SYS_futex, &word, FUTEX_WAIT, 0, 0, 0, 0), 0);
    done();
    return 0;
}
static void *in_futex_timed(void *u) {
    struct timespec t = { 100, 0 };
    SAME(syscall(SYS_futex, &word, FUTEX_WAIT, 0, &t, 0, 0), 0);
    done();
    return 0;
}
static void *in_sleep(void *u) {
    struct timespec t = { 0, 600000000 }, a, b;
    clock_gettime(CLOCK_MONOTONIC, &a);
    do {
        clock_gettime(CLOCK_MONOTONIC, &a);
        SAME(nanosleep(&t, 0), 0);
        clock_gettime(CLOCK_MONOTONIC, &b);
        CHECK((b.tv_sec - a.tv_sec) * 1000 + (b.tv_nsec - a.tv_nsec) / 1000000 >= 599);
    } while (!gone_ahead());
    done();
    return 0;
}
static void *in_absolute_sleep(void *u) {
    struct timespec t;
    do {
        clock_gettime(CLOCK_MONOTONIC, &t);
        t.tv_sec += 1;
        SAME(clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, 0), 0);
    } while (!gone_ahead());
    done();
    return 0;
}
static void *in_sigwait(void *u) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    struct timespec t = { 100, 0 };
    SAME(sigtimedwait(&set, 0, &t), SIGUSR1);
    done();
    return 0;
}
static void *in_flock(void *u) {
    int fd = OK(open(in_here("lock"), O_RDWR));
    SAME(flock(fd, LOCK_EX), 0);
    done();
    return 0;
}
static void *in_wait(void *child) {
    int status;
    SAME(waitpid((int)(intptr_t)child, &status, 0), (int)(intptr_t)child);
    SAME(WEXITSTATUS(status), 3);
    done();
    return 0;
}
int main(void) {
    OK(pipe(data)); OK(pipe(quiet)); OK(pipe(full));
    lockfile = OK(open(in_here("lock"), O_RDWR | O_CREAT, 0600));
    OK(flock(lockfile, LOCK_EX));
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, 0);
    int child = OK(fork());
    if (!child) { while (!gone_ahead()) nap(2); _exit(3); }
    void *(*calls[])(void *) = { in_read, in_write, in_poll, in_ppoll, in_select, in_futex, in_futex_timed, in_sleep,
                                 in_absolute_sleep, in_sigwait, in_flock, in_wait };
    enum { N = sizeof calls / sizeof *calls };
    pthread_t t[N];
    for (int i = 0; i < N; i++) CHECK(!pthread_create(&t[i], 0, calls[i], (void *)(intptr_t)child));
    rest(30);
    freeze_here();
    SAME(write(data[1], "r", 1), 1);
    SAME(write(quiet[1], "q", 1), 1);
    /* Who was halted has to run before it waits again: on a busy machine, after this one. */
    for (int woken = 0; woken < 2; nap(1)) woken += OK(syscall(SYS_futex, &word, FUTEX_WAKE, 10, 0, 0, 0));
    OK(kill(getpid(), SIGUSR1));
    OK(flock(lockfile, LOCK_UN));
    static char sink[200000];
    for (int n = 0; n < 200000;) n += OK(read(full[0], sink, sizeof sink));
    for (int i = 0; i < N; i++) CHECK(!pthread_join(t[i], 0));
    SAME(finished, N);
}
"#)
);

conformance!(
    sockets_with_timeouts,
    c(r#"
/* Calls on a socket with a time limit, which the kernel ends with EINTR whoever comes between, are none the wiser. */
#include <sys/sendfile.h>
#include <sys/un.h>
#include <sys/utsname.h>
enum { LIMIT = 100 };
static int ends[8][2];
static char full[1 << 16];
static struct sockaddr_un where = { AF_UNIX };
static struct iovec word = { "word", 4 };
static int file(void) {
    int fd = OK(open(in_here("file"), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    SAME(pwrite(fd, "word", 4, 0), 4);
    return fd;
}
static void limit(int fd) {
    struct timeval most = { LIMIT };
    OK(setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &most, sizeof most));
    OK(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &most, sizeof most));
}
static void *in_call(void *which) {
    long n = (long)which;
    int fd = ends[n][0], hose[2];
    struct mmsghdr message = { { .msg_iov = &word, .msg_iovlen = 1 } };
    loff_t from = 0;
    OK(pipe(hose));
    switch (n) {
    case 0: SAME(write(fd, "word", 4), 4); break;
    case 1: SAME(writev(fd, &word, 1), 4); break;
    case 2: SAME(pwritev2(fd, &word, 1, -1, 0), 4); break;
    case 3: SAME(sendmmsg(fd, &message, 1, 0), 1); break;
    case 4: SAME(sendfile(fd, file(), &from, 4), 4); break;
    case 5: SAME(write(hose[1], "word", 4), 4); SAME(splice(hose[0], 0, fd, 0, 4, 0), 4); break;
    case 6: SAME(splice(fd, 0, hose[1], 0, 4, 0), 4); break;
    case 7: SAME(connect(fd, (void *)&where, sizeof where), 0); break;
    }
    return 0;
}
int main(void) {
    pthread_t threads[8];
    int listener = OK(socket(AF_UNIX, SOCK_STREAM, 0)), first = OK(socket(AF_UNIX, SOCK_STREAM, 0));
    snprintf(where.sun_path, sizeof where.sun_path, "%.90s", in_here("listener"));
    OK(bind(listener, (void *)&where, sizeof where));
    OK(listen(listener, 0));
    OK(connect(first, (void *)&where, sizeof where));
    for (long n = 0; n < 8; n++) {
        if (n < 7) OK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends[n]));
        else ends[n][0] = OK(socket(AF_UNIX, SOCK_STREAM, 0));
        limit(ends[n][0]);
        while (n < 6 && send(ends[n][0], full, sizeof full, MSG_DONTWAIT) > 0) {}
        while (n < 6 && send(ends[n][0], full, 1, MSG_DONTWAIT) > 0) {}
        CHECK(!pthread_create(&threads[n], 0, in_call, (void *)n));
    }
    rest(50);
    struct utsname before;
    OK(uname(&before));
    freeze_here();
    /* Another kernel may have room where the one before had none. */
    struct utsname now;
    OK(uname(&now));
    for (int n = strcmp(now.release, before.release) ? 6 : 0; n < 8; n++) CHECK(pthread_tryjoin_np(threads[n], 0) == EBUSY);
    for (int n = 0; n < 6; n++) {
        while (pthread_tryjoin_np(threads[n], 0)) { recv(ends[n][1], full, sizeof full, MSG_DONTWAIT); nap(1); }
    }
    SAME(write(ends[6][1], "word", 4), 4);
    OK(accept(listener, 0, 0));
    OK(accept(listener, 0, 0));
    for (int n = 6; n < 8; n++) CHECK(!pthread_join(threads[n], 0));
}
"#)
);

conformance!(
    infinite_pauses,
    c(r#"
/* pause and sigsuspend end by a signal only, and sigsuspend gives the old mask back. */
static volatile int hits;
static void hit(int n) { __sync_fetch_and_add(&hits, 1); }
static int word2;
static void *pauser(void *u) { pause(); __sync_fetch_and_add(&word2, 1); return 0; }
static void *suspender(void *u) {
    sigset_t none, now;
    sigemptyset(&none);
    sigaddset(&none, SIGTERM);
    sigsuspend(&none);
    pthread_sigmask(SIG_BLOCK, 0, &now);
    CHECK(sigismember(&now, SIGUSR2) && !sigismember(&now, SIGTERM));
    __sync_fetch_and_add(&word2, 1);
    return 0;
}
int main(void) {
    signal(SIGUSR1, hit);
    signal(SIGUSR2, hit);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    sigprocmask(SIG_BLOCK, &set, 0);
    pthread_t a, b;
    CHECK(!pthread_create(&a, 0, pauser, 0));
    CHECK(!pthread_create(&b, 0, suspender, 0));
    rest(20);
    freeze_here();
    rest(20);
    SAME(word2, 0);
    CHECK(!pthread_kill(a, SIGUSR1));
    CHECK(!pthread_kill(b, SIGUSR2));
    CHECK(!pthread_join(a, 0));
    CHECK(!pthread_join(b, 0));
    SAME(word2, 2);
    SAME(hits, 2);
}
"#)
);

conformance!(
    rest_of_a_sleep,
    c(r#"
/* A sleep that tells what remains goes on for just that, and is not told that it was interrupted. */
static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + t.tv_nsec / 1e9; }
static void *sleeper(void *flags) {
    struct timespec all = { 3, 0 }, rest = { 0, 0 };
    double began = now();
    if (flags) SAME(clock_nanosleep(CLOCK_MONOTONIC, 0, &all, &rest), 0);
    else OK(nanosleep(&all, &rest));
    CHECK(now() - began > 2.99);
    return 0;
}
int main(void) {
    pthread_t t[2];
    for (intptr_t i = 0; i < 2; i++) CHECK(!pthread_create(&t[i], 0, sleeper, (void *)i));
    rest(100);
    freeze_here();
    for (int i = 0; i < 2; i++) CHECK(!pthread_join(t[i], 0));
}
"#)
);

conformance!(
    timeouts,
    c(r#"
/* Waits of every sort that begin together and last as long end together, however often they are interrupted. */
#include <linux/futex.h>
#include <sys/epoll.h>
#include <sys/select.h>
enum { SORTS = 7, MS = 3000 };
static pthread_barrier_t start, end, next;
static double ended[SORTS];
static volatile int over;
static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}
static void *waiter(void *arg) {
    long sort = (long)arg;
    int word = 0, e = OK(epoll_create1(0));
    struct epoll_event event;
    while (!over) {
        struct timespec t = { MS / 1000, MS % 1000 * 1000000 };
        struct timeval v = { MS / 1000, MS % 1000 * 1000 };
        pthread_barrier_wait(&start);
        switch (sort) {
        case 0: SAME(nanosleep(&t, 0), 0); break;
        case 1: SAME(poll(0, 0, MS), 0); break;
        case 2: SAME(select(0, 0, 0, 0, &v), 0); break;
        case 3: SAME(epoll_wait(e, &event, 1, MS), 0); break;
        case 4: CHECK(syscall(SYS_futex, &word, FUTEX_WAIT, 0, &t, 0, 0) == -1 && errno == ETIMEDOUT); break;
        case 5: SAME(clock_nanosleep(CLOCK_BOOTTIME, 0, &t, 0), 0); break;
        case 6: SAME(epoll_pwait(e, &event, 1, MS, 0), 0); break;
        }
        ended[sort] = now();
        pthread_barrier_wait(&end);
        pthread_barrier_wait(&next);
    }
    return 0;
}
static void *judge(void *arg) {
    while (!over) {
        pthread_barrier_wait(&start);
        double began = now(), first = 1e18, last = 0;
        pthread_barrier_wait(&end);
        for (int i = 0; i < SORTS; i++) {
            if (ended[i] < first) first = ended[i];
            if (ended[i] > last) last = ended[i];
        }
        if (first - began < MS / 1e3 - 0.05 || last - first > 1.2) {
            for (int i = 0; i < SORTS; i++) fprintf(stderr, "sort %d ended after %.3f\n", i, ended[i] - began);
            DIE("they did not end together");
        }
        if (gone_ahead()) over = 1;
        pthread_barrier_wait(&next);
    }
    return 0;
}
int main(void) {
    pthread_t threads[SORTS + 1];
    pthread_barrier_init(&start, 0, SORTS + 1);
    pthread_barrier_init(&end, 0, SORTS + 1);
    pthread_barrier_init(&next, 0, SORTS + 1);
    for (long i = 0; i < SORTS; i++) pthread_create(threads + i, 0, waiter, (void *)i);
    pthread_create(threads + SORTS, 0, judge, 0);
    nap(1900);
    freeze_here();
    for (int i = 0; i <= SORTS; i++) pthread_join(threads[i], 0);
}
"#)
);
