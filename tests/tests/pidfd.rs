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

conformance!(
    of_threads,
    c(r#"
/* Of a thread that rests and of one that has ended: twice the same description, one in a queue alone, one in another process. */
#include <pthread.h>
#include <sys/epoll.h>
static volatile int tids[3], leave, leave_one;
/* PIDFD_THREAD; before Linux 6.9 there are none but of processes. */
static int flag = O_EXCL;
static int open_one(int tid, int flags) {
    int fd = syscall(SYS_pidfd_open, tid, flag | flags);
    if (fd >= 0 || errno != EINVAL) return OK(fd);
    flag = 0;
    return OK(syscall(SYS_pidfd_open, getpid(), flags));
}
static void *thread(void *n) {
    tids[(long)n] = gettid();
    while (!leave && ((long)n != 2 || !leave_one)) rest(20);
    return 0;
}
static void pass(int s, int fd) {
    char data = 'x', room[CMSG_SPACE(sizeof fd)] = { 0 };
    struct iovec iov = { &data, 1 };
    struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room };
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    *c = (struct cmsghdr){ CMSG_LEN(sizeof fd), SOL_SOCKET, SCM_RIGHTS };
    memcpy(CMSG_DATA(c), &fd, sizeof fd);
    OK(sendmsg(s, &m, 0));
}
static int taken(int s) {
    char data, room[CMSG_SPACE(sizeof(int))];
    struct iovec iov = { &data, 1 };
    struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room };
    int fd;
    OK(recvmsg(s, &m, 0));
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof fd);
    return fd;
}
static int over(int fd) {
    struct pollfd p = { fd, POLLIN };
    return OK(poll(&p, 1, 0));
}
int main(void) {
    pthread_t all[3];
    for (long n = 0; n < 3; n++) {
        CHECK(!pthread_create(&all[n], 0, thread, (void *)n));
        while (!tids[n]) nap(1);
    }
    int first = open_one(tids[1], O_NONBLOCK), ended = open_one(tids[2], 0);
    leave_one = 1;
    pthread_join(all[2], 0);
    /* Who is joined has yet to end for good. */
    struct pollfd end = { ended, POLLIN };
    if (flag) SAME(OK(poll(&end, 1, 10000)), 1);
    int second = OK(dup(first)), s[2], e = OK(epoll_create1(0));
    struct epoll_event event = { EPOLLIN };
    OK(epoll_ctl(e, EPOLL_CTL_ADD, first, &event));
    OK(socketpair(AF_UNIX, SOCK_STREAM, 0, s));
    int sent = open_one(tids[0], 0);
    pass(s[0], sent);
    OK(close(sent));
    int thread_of_parent = open_one(tids[0], 0), child = OK(fork());
    if (!child) {
        while (!gone_ahead()) nap(2);
        OK(syscall(SYS_pidfd_send_signal, thread_of_parent, 0, 0, 0));
        SAME(over(first), 0);
        _exit(7);
    }
    OK(close(thread_of_parent));
    int flags = fcntl(first, F_GETFL);
    freeze_here();
    int status;
    SAME(OK(waitpid(child, &status, 0)), child);
    SAME(status, 7 << 8);
    SAME(fcntl(first, F_GETFL), flags);
    CHECK(!syscall(SYS_kcmp, getpid(), getpid(), 0, first, second));
    SAME(over(ended), flag ? 1 : 0);
    int got = taken(s[1]);
    SAME(fcntl(got, F_GETFL) & flag, flag);
    SAME(over(got) + over(first), 0);
    OK(syscall(SYS_pidfd_send_signal, got, 0, 0, 0));
    leave = 1;
    for (int n = 0; n < 2; n++) pthread_join(all[n], 0);
    if (flag) SAME(OK(epoll_wait(e, &event, 1, 5000)), 1);
    struct pollfd both[] = { { got, POLLIN }, { first, POLLIN } };
    for (int n = 0; flag && n < 2; n++) SAME(OK(poll(&both[n], 1, 10000)), 1);
}
"#),
    only: root
);
