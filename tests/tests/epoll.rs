//! Conformance of epoll: numbers, files closed or duplicated since, modes, nesting, sharing.

use freeze_tests::{c, conformance, python};

conformance!(
    watches,
    python(
        r#"
# A file is watched under the number it was added by, whatever has become of that number.
import select
r, w = os.pipe()
r2, w2 = os.pipe()
e = select.epoll()
e.register(r, select.EPOLLIN)
d = os.dup(r2)
e.register(d, select.EPOLLIN | select.EPOLLET)
os.close(d)
assert os.open("/dev/null", os.O_RDONLY) == d
inner = select.epoll()
inner.register(r2, select.EPOLLIN)
e.register(inner.fileno(), select.EPOLLIN)
freeze_here()
assert e.poll(0) == []
os.write(w, b"x")
assert e.poll(0) == [(r, select.EPOLLIN)]
os.read(r, 1)
os.write(w2, b"x")
assert sorted(e.poll(0)) == sorted([(d, select.EPOLLIN), (inner.fileno(), select.EPOLLIN)])
assert e.poll(0) == [(inner.fileno(), select.EPOLLIN)], "an edge is told once"
"#
    )
);

conformance!(
    one_shots,
    python(
        r#"
# A spent one-shot watch stays silent until it is armed again; an armed one fires once.
import select
r, w = os.pipe()
spent = select.epoll()
spent.register(w, select.EPOLLOUT | select.EPOLLONESHOT)
assert spent.poll(0)
r3, w3 = os.pipe()
hushed = select.epoll()
hushed.register(r3, select.EPOLLIN | select.EPOLLONESHOT)
os.write(w3, b"x")
assert hushed.poll(0)
os.read(r3, 1)
armed = select.epoll()
armed.register(r, select.EPOLLIN | select.EPOLLONESHOT)
one = select.epoll()
one.register(r, select.EPOLLIN | select.EPOLLEXCLUSIVE)
freeze_here()
assert spent.poll(0) == [] and hushed.poll(0) == [] and armed.poll(0) == [] and one.poll(0) == []
os.close(w3)
assert hushed.poll(0) == [], "a spent watch tells no hang-up"
os.write(w, b"x")
assert armed.poll(0) == [(r, select.EPOLLIN)]
assert armed.poll(0) == []
assert one.poll(0) == [(r, select.EPOLLIN)]
spent.modify(w, select.EPOLLOUT | select.EPOLLONESHOT)
assert spent.poll(0) == [(w, select.EPOLLOUT)]
"#
    )
);

conformance!(
    shared,
    python(
        r#"
# Parent and child share an instance; the child has closed what the parent watches.
import select
r, w = os.pipe()
e = select.epoll()
e.register(r, select.EPOLLIN)
pid = os.fork()
if pid == 0:
    os.close(r)
    while not gone_ahead():
        time.sleep(0.002)
    assert e.poll(5) == [(r, select.EPOLLIN)]
    os._exit(0)
freeze_here()
os.write(w, b"x")
assert os.waitpid(pid, 0)[1] == 0
e.unregister(r)
assert e.poll(0) == []
"#
    )
);

conformance!(
    many,
    python(
        r#"
# Dozens of duplicates of one file, and a wait that is under way.
import select, threading
r, w = os.pipe()
e = select.epoll()
fds = [os.dup(r) for _ in range(60)]
for fd in fds:
    e.register(fd, select.EPOLLIN | select.EPOLLET)
got = []
waiter = threading.Thread(target=lambda: got.extend(e.poll(60, 2000)))
waiter.start()
freeze_here()
os.write(w, b"x")
waiter.join()
while len(got) < 60:
    more = e.poll(5, 2000)
    assert more
    got += more
assert sorted(fd for fd, _ in got) == fds
"#
    )
);

conformance!(
    in_a_queue,
    c(r#"
/* An instance that travels and what it watches, which nobody holds any more; an inotify instance too. */
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
int main(void) {
    int s[2], fds[3] = { OK(epoll_create1(0)), OK(eventfd(1, 0)), OK(inotify_init1(IN_NONBLOCK)) };
    struct epoll_event event = { EPOLLIN, { .u64 = 77 } };
    OK(epoll_ctl(fds[0], EPOLL_CTL_ADD, fds[1], &event));
    OK(mkdir(strdup(in_here("d")), 0700));
    SAME(OK(inotify_add_watch(fds[2], in_here("d"), IN_CREATE)), 1);
    OK(socketpair(AF_UNIX, SOCK_STREAM, 0, s));
    char data = 'x', room[CMSG_SPACE(sizeof fds)] = { 0 };
    struct iovec iov = { &data, 1 };
    struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room };
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    *c = (struct cmsghdr){ CMSG_LEN(sizeof fds), SOL_SOCKET, SCM_RIGHTS };
    memcpy(CMSG_DATA(c), fds, sizeof fds);
    OK(sendmsg(s[0], &m, 0));
    for (int n = 0; n < 3; n++) OK(close(fds[n]));
    freeze_here();
    m.msg_controllen = sizeof room;
    OK(recvmsg(s[1], &m, 0));
    memcpy(fds, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof fds);
    event.data.u64 = 0;
    SAME(OK(epoll_wait(fds[0], &event, 1, 0)), 1);
    SAME(event.data.u64, 77);
    uint64_t n;
    SAME(OK(read(fds[1], &n, sizeof n)), sizeof n);
    SAME(OK(epoll_wait(fds[0], &event, 1, 0)), 0);
    char text[4096];
    close(OK(open(in_here("d/new"), O_CREAT | O_WRONLY, 0600)));
    CHECK(read(fds[2], text, sizeof text) > 0);
    SAME(((struct inotify_event *)text)->wd, 1);
}
"#)
);

conformance!(
    signals,
    c(r#"
#include <sys/epoll.h>
#include <sys/signalfd.h>
/* Signals wake an instance that watches a signalfd: one that is still where it was added, one whose number is free now,
 * one whose number is another file's. */
int main(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    OK(sigprocmask(SIG_BLOCK, &set, 0));
    int epoll = OK(epoll_create1(0)), outer = OK(epoll_create1(0)), fds[4], status;
    OK(fds[0] = signalfd(-1, &set, SFD_NONBLOCK));
    for (int i = 1; i < 4; i++) fds[i] = OK(dup(fds[0]));
    struct epoll_event event = {.events = EPOLLIN}, got[9];
    for (int i = 0; i < 3; i++) {
        event.data.u64 = 1 << i;
        OK(epoll_ctl(epoll, EPOLL_CTL_ADD, fds[i], &event));
    }
    OK(epoll_ctl(outer, EPOLL_CTL_ADD, epoll, &event));
    OK(close(fds[1]));
    OK(dup3(fds[3], 300, O_CLOEXEC));
    /* It is locked, which no descriptor of it may be closed for. */
    int locked = OK(open(in_here("locked"), O_RDWR | O_CREAT, 0600));
    OK(dup3(locked, fds[2], O_CLOEXEC));
    OK(close(locked));
    struct flock lock = {.l_type = F_WRLCK};
    OK(fcntl(fds[2], F_SETLK, &lock));
    int child = OK(fork());
    if (!child) {
        while (!gone_ahead()) nap(2);
        OK(fcntl(fds[2], F_GETLK, &lock));
        SAME(lock.l_type, F_WRLCK);
        SAME(lock.l_pid, getppid());
        _exit(0);
    }
    freeze_here();
    struct stat named, taken;
    OK(stat(in_here("locked"), &named));
    OK(fstat(fds[2], &taken));
    SAME(named.st_ino, taken.st_ino);
    SAME(fcntl(fds[2], F_GETFD), FD_CLOEXEC);
    SAME(fcntl(fds[1], F_GETFD), -1);
    SAME(epoll_wait(epoll, got, 9, 0), 0);
    OK(kill(getpid(), SIGUSR1));
    SAME(epoll_wait(outer, got, 9, 10000), 1);
    SAME(epoll_wait(epoll, got, 9, 0), 3);
    SAME(got[0].data.u64 | got[1].data.u64 | got[2].data.u64, 7);
    OK(waitpid(child, &status, 0));
    SAME(status, 0);
}
"#)
);
