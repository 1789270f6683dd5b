/* A tree of processes whose threads never rest. What each is and does stands in the file `plan`, which the driver writes:
 * a line for each process with the number of its parent (-1 for the first) and the names of what its threads do.
 *
 * Each piece of work checks all that it can know, and counts in the file `counts` how often it was done. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <spawn.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/timerfd.h>

#define PROCESSES 16
#define WORKERS 16
#define MIB (1UL << 20)

struct worker { int id, kind; unsigned seed; volatile uint64_t *count; uint64_t turn; void *own; };

static unsigned rnd(struct worker *w, unsigned below) { return rand_r(&w->seed) % below; }

static uint64_t mix(uint64_t n, uint64_t i) {
    uint64_t x = n * 0x9e3779b97f4a7c15 ^ i * 0xff51afd7ed558ccd;
    return x ^ x >> 29;
}
static void fill(char *at, size_t len, uint64_t n) {
    for (size_t i = 0; i < len; i++) at[i] = mix(n, i);
}
static void filled(const char *at, size_t len, uint64_t n, const char *what) {
    for (size_t i = 0; i < len; i++)
        if (at[i] != (char)mix(n, i)) DIE("%s: byte %zu of %zu is %d, round %lu", what, i, len, at[i], n);
}
static void all_written(int fd, const char *at, size_t len) {
    for (ssize_t n; len; at += n, len -= n)
        while ((n = write(fd, at, len)) < 0) if (errno != EINTR) DIE("write");
}
static void all_read(int fd, char *at, size_t len) {
    for (ssize_t n; len; at += n, len -= n) {
        while ((n = read(fd, at, len)) < 0) if (errno != EINTR) DIE("read");
        if (!n) DIE("an early end, %zu bytes before it was due", len);
    }
}
/* A child's end, which must be this one. */
static void reaped(pid_t child, int want) {
    int status;
    pid_t got;
    while ((got = waitpid(child, &status, 0)) < 0 && errno == EINTR) {}
    if (got != child) DIE("waiting for %d", child);
    if (status != want) DIE("child %d ended with %#x and not %#x", child, status, want);
}

/* Children that end at once, or are killed, or stop for a while; some stay zombies for a while. */
static void do_fork(struct worker *w) {
    pid_t kids[4];
    int status[4], n = 1 + rnd(w, 4);
    for (int i = 0; i < n; i++) {
        int how = rnd(w, 4), code = rnd(w, 100), parent = getpid();
        status[i] = how == 1 ? SIGKILL : code << 8;
        kids[i] = OK(fork());
        if (!kids[i]) {
            SAME(getppid(), parent);
            if (how == 1) kill(getpid(), SIGKILL);
            if (how == 2) raise(SIGSTOP);
            if (how == 3) nap(1);
            _exit(code);
        }
        if (how == 2) {
            int stopped;
            while (waitpid(kids[i], &stopped, WUNTRACED) < 0) if (errno != EINTR) DIE("waiting for a stop");
            SAME(stopped, SIGSTOP << 8 | 0x7f);
            OK(kill(kids[i], SIGCONT));
        }
    }
    if (rnd(w, 2)) nap(1);
    for (int i = 0; i < n; i++) reaped(kids[i], status[i]);
}
/* A child whose grandchild is orphaned and comes to it. */
static void do_orphan(struct worker *w) {
    int code = rnd(w, 100);
    pid_t child = OK(fork());
    if (!child) {
        OK(prctl(PR_SET_CHILD_SUBREAPER, 1));
        int to[2];
        OK(pipe(to));
        pid_t middle = OK(fork());
        if (!middle) {
            pid_t last = OK(fork());
            if (!last) _exit(code);
            all_written(to[1], (char *)&last, sizeof last);
            _exit(7);
        }
        pid_t last;
        all_read(to[0], (char *)&last, sizeof last);
        reaped(middle, 7 << 8);
        reaped(last, code << 8);
        _exit(code);
    }
    reaped(child, code << 8);
}
/* A child that executes itself over and over. */
static void do_exec(struct worker *w) {
    int hops = 1 + rnd(w, 3);
    char text[20], *args[] = { "hop", text, 0 };
    snprintf(text, sizeof text, "%d", hops);
    pid_t child = OK(fork());
    if (!child) { execv("/proc/self/exe", args); DIE("execv"); }
    reaped(child, 55 << 8);
}
static void do_spawn(struct worker *w) {
    char *args[] = { "hop", "0", 0 };
    pid_t child;
    SAME(posix_spawn(&child, "/proc/self/exe", 0, 0, args, environ), 0);
    reaped(child, 55 << 8);
}

static _Thread_local uint64_t own_word;
static void *short_lived(void *arg) {
    uint64_t n = (uintptr_t)arg;
    own_word = mix(n, 1);
    if (n % 3 == 0) nap(1); else sched_yield();
    SAME(own_word, mix(n, 1));
    return (void *)(uintptr_t)mix(n, 2);
}
static void do_thread(struct worker *w) {
    pthread_t t[5];
    int n = 1 + rnd(w, 5);
    uint64_t turn = w->turn;
    for (int i = 0; i < n; i++) SAME(pthread_create(&t[i], 0, short_lived, (void *)(uintptr_t)(turn + i)), 0);
    for (int i = 0; i < n; i++) {
        void *got;
        SAME(pthread_join(t[i], &got), 0);
        SAME((uintptr_t)got, mix(turn + i, 2));
    }
}

static void do_pipe(struct worker *w) {
    int fds[2], flags = rnd(w, 2) ? O_CLOEXEC : O_CLOEXEC | O_NONBLOCK;
    OK(pipe2(fds, flags));
    char out[5000], in[5000];
    size_t len = 1 + rnd(w, sizeof out), part = rnd(w, len);
    fill(out, len, w->turn);
    if (rnd(w, 3) == 0) OK(fcntl(fds[0], F_SETPIPE_SZ, 1 << 17));
    all_written(fds[1], out, len);
    int unread;
    OK(ioctl(fds[0], FIONREAD, &unread));
    SAME(unread, len);
    all_read(fds[0], in, part);
    if (rnd(w, 4) == 0) nap(1);
    all_read(fds[0], in + part, len - part);
    filled(in, len, w->turn, "pipe");
    close(fds[0]);
    close(fds[1]);
}
/* A child that answers over pipes, replaced now and then. */
static void do_echo(struct worker *w) {
    int to[2], back[2];
    OK(pipe(to));
    OK(pipe(back));
    pid_t child = OK(fork());
    if (!child) {
        for (uint64_t n;;) {
            all_read(to[0], (char *)&n, sizeof n);
            if (!n) _exit(9);
            n = mix(n, 3);
            all_written(back[1], (char *)&n, sizeof n);
        }
    }
    for (uint64_t i = 0, n; i < 20; i++) {
        uint64_t say = w->turn * 1000 + i + 1;
        all_written(to[1], (char *)&say, sizeof say);
        all_read(back[0], (char *)&n, sizeof n);
        SAME(n, mix(say, 3));
        if (i % 4 == 0) nap(1);
    }
    uint64_t end = 0;
    all_written(to[1], (char *)&end, sizeof end);
    reaped(child, 9 << 8);
    for (int i = 0; i < 2; i++) { close(to[i]); close(back[i]); }
}
/* Descriptors on their way through a socket. */
static void do_rights(struct worker *w) {
    static const int types[] = { SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET };
    int pair[2], sent = OK(memfd_create("sent", MFD_CLOEXEC)), got;
    OK(socketpair(AF_UNIX, types[rnd(w, 3)] | SOCK_CLOEXEC, 0, pair));
    uint64_t n = w->turn, found;
    SAME(pwrite(sent, &n, 8, 0), 8);
    char word = 'x';
    union { struct cmsghdr head; char room[CMSG_SPACE(sizeof(int))]; } control = {};
    struct iovec data = { &word, 1 };
    struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control };
    control.head = (struct cmsghdr){ CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS };
    memcpy(CMSG_DATA(&control.head), &sent, sizeof sent);
    SAME(sendmsg(pair[0], &message, 0), 1);
    close(sent);
    if (rnd(w, 2)) nap(1);
    memset(&control, 0, sizeof control);
    SAME(recvmsg(pair[1], &message, MSG_CMSG_CLOEXEC), 1);
    SAME(control.head.cmsg_type, SCM_RIGHTS);
    memcpy(&got, CMSG_DATA(&control.head), sizeof got);
    SAME(pread(got, &found, 8, 0), 8);
    SAME(found, n);
    close(got);
    close(pair[0]);
    close(pair[1]);
}
/* Connections, accepted at once or late, ended in every order. */
static void do_tcp(struct worker *w) {
    int listening = OK(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)), one = 1;
    struct sockaddr_in at = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t size = sizeof at;
    OK(bind(listening, (void *)&at, size));
    OK(listen(listening, 8));
    OK(getsockname(listening, (void *)&at, &size));
    for (int turn = 0; turn < 3; turn++) {
        uint64_t n = w->turn * 4 + turn;
        char out[3000], in[3000];
        size_t len = 1 + rnd(w, sizeof out);
        fill(out, len, n);
        int client = OK(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
        OK(setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one));
        while (connect(client, (void *)&at, sizeof at)) if (errno != EINTR && errno != EALREADY) {
            if (errno == EISCONN) break;
            DIE("connect");
        }
        int early = rnd(w, 2), half = rnd(w, 2), reset = rnd(w, 2);
        if (early) all_written(client, out, len);
        if (rnd(w, 4) == 0) nap(1);
        int server = OK(accept4(listening, 0, 0, SOCK_CLOEXEC));
        if (!early) all_written(client, out, len);
        all_read(server, in, len);
        filled(in, len, n, "TCP, there");
        all_written(server, in, len);
        memset(in, 0, len);
        all_read(client, in, len);
        filled(in, len, n, "TCP, back");
        if (half) {
            OK(shutdown(client, SHUT_WR));
            SAME(read(server, in, 1), 0);
            all_written(server, out, 1);
            all_read(client, in, 1);
            SAME(in[0], out[0]);
        }
        struct linger hard = { 1, 0 };
        if (reset) OK(setsockopt(client, SOL_SOCKET, SO_LINGER, &hard, sizeof hard));
        close(rnd(w, 2) ? client : (server ^= client, client ^= server, server ^= client, client));
        if (rnd(w, 4) == 0) nap(1);
        close(server);
    }
    close(listening);
    /* What is left of a connection keeps its port for a minute, and there are not more than 28,000. */
    nap(30);
}

static _Thread_local volatile unsigned ticks;
static void tick(int signal) { ticks++; }
static void do_timer(struct worker *w) {
    struct sigevent event = { .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGRTMIN + 2 };
    event._sigev_un._tid = gettid();
    timer_t timer;
    OK(timer_create(rnd(w, 2) ? CLOCK_MONOTONIC : CLOCK_REALTIME, &event, &timer));
    struct itimerspec setting = { { 0, 1000000 }, { 0, 500000 } };
    unsigned from = ticks;
    OK(timer_settime(timer, 0, &setting, 0));
    while (ticks - from < 3) nap(1);
    OK(timer_delete(timer));
}
/* Real-time signals come in order, each with its value. */
static void do_signal(struct worker *w) {
    int n = 1 + rnd(w, 8), base = rnd(w, 1000);
    for (int i = 0; i < n; i++) SAME(pthread_sigqueue(pthread_self(), SIGRTMIN + 3, (union sigval){ base + i }), 0);
    if (rnd(w, 2)) nap(1);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 3);
    for (int i = 0; i < n; i++) {
        siginfo_t info;
        while (sigwaitinfo(&set, &info) < 0) if (errno != EINTR) DIE("sigwaitinfo");
        SAME(info.si_value.sival_int, base + i);
        SAME(info.si_pid, getpid());
    }
}

struct ball { pthread_mutex_t lock; pthread_cond_t turned; uint64_t turn, end; };
static void *partner(void *arg) {
    struct ball *b = arg;
    pthread_mutex_lock(&b->lock);
    for (;;) {
        while (b->turn % 2 == 0 && !b->end) pthread_cond_wait(&b->turned, &b->lock);
        if (b->end) break;
        b->turn++;
        pthread_cond_signal(&b->turned);
    }
    pthread_mutex_unlock(&b->lock);
    return 0;
}
static void do_condition(struct worker *w) {
    struct ball b = { PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER };
    pthread_t other;
    SAME(pthread_create(&other, 0, partner, &b), 0);
    pthread_mutex_lock(&b.lock);
    for (int i = 0; i < 30; i++) {
        SAME(b.turn, 2 * i);
        b.turn++;
        pthread_cond_signal(&b.turned);
        while (b.turn % 2) {
            struct timespec until;
            clock_gettime(CLOCK_REALTIME, &until);
            until.tv_sec += 100;
            int e = pthread_cond_timedwait(&b.turned, &b.lock, &until);
            if (e) { errno = e; DIE("pthread_cond_timedwait"); }
        }
    }
    b.end = 1;
    pthread_cond_signal(&b.turned);
    pthread_mutex_unlock(&b.lock);
    pthread_join(other, 0);
}

static void do_memory(struct worker *w) {
    size_t pages = 8 + rnd(w, 56), len = pages * 4096, half = pages / 2 * 4096;
    uint64_t n = w->turn;
    char *at = OK(mmap(0, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    for (size_t p = 0; p < pages; p++) fill(at + p * 4096, 64, n + p);
    char *old = at;
    OK(at = mremap(at, len, len + half, MREMAP_MAYMOVE));
    for (size_t p = 0; p < pages; p++) filled(at + p * 4096, 64, n + p, at == old ? "grown" : "moved");
    for (size_t p = 0; p < half / 4096; p++) SAME(at[len + p * 4096], 0);
    OK(mprotect(at, half, PROT_READ));
    if (rnd(w, 2)) nap(1);
    OK(mprotect(at, half, PROT_READ | PROT_WRITE));
    size_t hole = rnd(w, pages - 4);
    OK(madvise(at + hole * 4096, 4 * 4096, MADV_DONTNEED));
    for (size_t p = 0; p < pages; p++)
        if (p < hole || p >= hole + 4) filled(at + p * 4096, 64, n + p, "after MADV_DONTNEED");
        else for (int i = 0; i < 4096; i += 8) SAME(*(uint64_t *)(at + p * 4096 + i), 0);
    OK(munmap(at + hole * 4096, 4 * 4096));
    for (size_t p = 0; p < pages; p++) if (p < hole || p >= hole + 4) filled(at + p * 4096, 64, n + p, "beside a hole");
    /* The hole may be somebody else's by now. */
    if (hole) OK(munmap(at, hole * 4096));
    OK(munmap(at + (hole + 4) * 4096, len + half - (hole + 4) * 4096));
}
/* Enough memory for all means of tracking: each page remembers when it was written last. */
#define BIG (36 * MIB / 4096)
static void do_pages(struct worker *w) {
    struct { char *at; uint32_t turn[BIG]; } *big = w->own;
    if (!big) {
        w->own = big = OK(mmap(0, sizeof *big, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        big->at = OK(mmap(0, BIG * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        OK(madvise(big->at, BIG * 4096, MADV_NOHUGEPAGE));
        for (size_t p = 0; p < BIG; p++) big->at[p * 4096 + 8] = 1;
    }
    for (int i = 0; i < 16; i++) {
        size_t p = rnd(w, BIG);
        uint64_t *page = (uint64_t *)(big->at + p * 4096);
        SAME(*page, big->turn[p]);
        *page = ++big->turn[p];
    }
    if (w->turn % 64 == 0) for (size_t p = 0; p < BIG; p++) SAME(*(uint64_t *)(big->at + p * 4096), big->turn[p]);
}

static char *name_of(struct worker *w, char *name, const char *what) {
    snprintf(name, PATH_MAX, "%.2000s/%s-%d", here_dir, what, w->id);
    return name;
}
static void do_file(struct worker *w) {
    char first[PATH_MAX], second[PATH_MAX], out[3000], in[3000];
    name_of(w, first, "first");
    name_of(w, second, "second");
    size_t len = 1 + rnd(w, sizeof out);
    uint64_t n = w->turn;
    fill(out, len, n);
    int fd = OK(open(first, O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0600));
    all_written(fd, out, len);
    if (rnd(w, 2)) nap(1);
    OK(rename(first, second));
    SAME(lseek(fd, 0, SEEK_CUR), len);
    SAME(pread(fd, in, len, 0), len);
    filled(in, len, n, "renamed");
    if (rnd(w, 2)) OK(link(second, first));
    int again = OK(open(second, O_RDONLY | O_CLOEXEC));
    OK(unlink(second));
    unlink(first);
    if (rnd(w, 2)) nap(1);
    SAME(pread(again, in, len, 0), len);
    filled(in, len, n, "unlinked");
    OK(ftruncate(fd, len / 2));
    struct stat s;
    OK(fstat(again, &s));
    SAME(s.st_size, len / 2);
    SAME(s.st_nlink, 0);
    close(fd);
    close(again);
}
static void do_lock(struct worker *w) {
    char name[PATH_MAX];
    name_of(w, name, "locked");
    int a = OK(open(name, O_CREAT | O_RDWR | O_CLOEXEC, 0600)), b = OK(open(name, O_RDWR | O_CLOEXEC));
    int kind = rnd(w, 2);
    OK(flock(a, LOCK_EX));
    if (rnd(w, 2)) nap(1);
    SAME(flock(b, LOCK_EX | LOCK_NB), -1);
    SAME(errno, EWOULDBLOCK);
    OK(flock(a, LOCK_UN));
    OK(flock(b, LOCK_SH | LOCK_NB));
    struct flock l = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = rnd(w, 10), .l_len = 5 };
    OK(fcntl(a, kind ? F_OFD_SETLK : F_SETLK, &l));
    if (rnd(w, 2)) nap(1);
    struct flock see = l;
    see.l_pid = 0;
    OK(fcntl(b, F_OFD_GETLK, &see));
    SAME(see.l_type, F_WRLCK);
    SAME(see.l_start, l.l_start);
    OK(flock(b, LOCK_UN));
    /* A child of another thread may have inherited the descriptions: give up what they hold. */
    l.l_type = F_UNLCK;
    OK(fcntl(a, kind ? F_OFD_SETLK : F_SETLK, &l));
    close(a);
    close(b);
}
static void do_epoll(struct worker *w) {
    int epoll = OK(epoll_create1(EPOLL_CLOEXEC)), n = 1 + rnd(w, 5), fds[6];
    uint64_t base = w->turn * 16, seen = 0;
    for (int i = 0; i < n; i++) {
        fds[i] = OK(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
        struct epoll_event e = { EPOLLIN, { .u64 = base + i } };
        OK(epoll_ctl(epoll, EPOLL_CTL_ADD, fds[i], &e));
    }
    fds[n] = OK(timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK));
    struct itimerspec setting = { { 0, 0 }, { 0, 1 + rnd(w, 2000000) } };
    OK(timerfd_settime(fds[n], 0, &setting, 0));
    struct epoll_event e = { EPOLLIN, { .u64 = base + n } };
    OK(epoll_ctl(epoll, EPOLL_CTL_ADD, fds[n], &e));
    for (int i = 0; i < n; i++) SAME(write(fds[i], &(uint64_t){ base + i + 1 }, 8), 8);
    while (seen != (2u << n) - 1) {
        struct epoll_event events[6];
        int got = epoll_wait(epoll, events, 6, 20000);
        if (got < 0 && errno == EINTR) continue;
        if (got < 1) DIE("epoll_wait brought %d, seen %#lx of %d", got, seen, n);
        for (int i = 0; i < got; i++) {
            uint64_t which = events[i].data.u64 - base, value;
            CHECK(which <= (uint64_t)n);
            SAME(read(fds[which], &value, 8), 8);
            SAME(value, which == (uint64_t)n ? 1 : base + which + 1);
            seen |= 1 << which;
        }
    }
    for (int i = 0; i <= n; i++) close(fds[i]);
    close(epoll);
}
static void do_sysv(struct worker *w) {
    uint64_t n = w->turn;
    int shm = OK(shmget(IPC_PRIVATE, 8192, 0600));
    char *at = OK(shmat(shm, 0, 0));
    OK(shmctl(shm, IPC_RMID, 0));
    fill(at, 8192, n);
    int sem = OK(semget(IPC_PRIVATE, 2, 0600));
    struct sembuf up = { 1, 3, 0 }, down = { 1, -2, IPC_NOWAIT };
    OK(semop(sem, &up, 1));
    int queue = OK(msgget(IPC_PRIVATE, 0600));
    struct { long type; uint64_t n; } message = { 5, n }, got;
    OK(msgsnd(queue, &message, 8, 0));
    if (rnd(w, 2)) nap(1);
    filled(at, 8192, n, "System V segment");
    OK(semop(sem, &down, 1));
    SAME(semctl(sem, 1, GETVAL), 1);
    SAME(msgrcv(queue, &got, 8, 5, IPC_NOWAIT), 8);
    SAME(got.n, n);
    OK(msgctl(queue, IPC_RMID, 0));
    OK(semctl(sem, 0, IPC_RMID));
    OK(shmdt(at));
}

static const struct { const char *name; void (*work)(struct worker *); } kinds[] = {
    { "fork", do_fork }, { "orphan", do_orphan }, { "exec", do_exec }, { "spawn", do_spawn }, { "thread", do_thread },
    { "pipe", do_pipe }, { "echo", do_echo }, { "rights", do_rights }, { "tcp", do_tcp }, { "timer", do_timer },
    { "signal", do_signal }, { "condition", do_condition }, { "memory", do_memory }, { "pages", do_pages },
    { "file", do_file }, { "lock", do_lock }, { "epoll", do_epoll }, { "sysv", do_sysv },
};

static void *works(void *arg) {
    struct worker *w = arg;
    while (!gone_ahead()) {
        kinds[w->kind].work(w);
        ++w->turn;
        ++*w->count;
        if (rnd(w, 8)) nap(1 + rnd(w, 2));
    }
    return 0;
}

static int processes, parents[PROCESSES];
static struct worker workers[PROCESSES][WORKERS + 1];

static void read_plan(void) {
    char line[1000], *rest;
    while (access(in_here("plan"), F_OK)) nap(1);
    FILE *plan = fopen(in_here("plan"), "r");
    CHECK(plan);
    unsigned seed;
    SAME(fscanf(plan, "%u\n", &seed), 1);
    int fd = OK(open(in_here("counts"), O_RDWR));
    volatile uint64_t *counts =
        OK(mmap(0, PROCESSES * WORKERS * 8, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
    close(fd);
    for (; fgets(line, sizeof line, plan); processes++) {
        CHECK(processes < PROCESSES);
        parents[processes] = atoi(strtok_r(line, " \n", &rest));
        int n = 0;
        for (char *word; (word = strtok_r(0, " \n", &rest)); n++) {
            CHECK(n < WORKERS);
            int id = processes * WORKERS + n, kind = 0;
            while (strcmp(kinds[kind].name, word)) CHECK(++kind < (int)(sizeof kinds / sizeof *kinds));
            workers[processes][n] = (struct worker){ id, kind, seed + id, counts + id, 0, 0 };
        }
        workers[processes][n].count = 0;
    }
    fclose(plan);
}
static int be(int self) {
    pid_t children[PROCESSES] = {};
    for (int i = self + 1; i < processes; i++) {
        if (parents[i] != self) continue;
        children[i] = OK(fork());
        if (!children[i]) _exit(be(i));
    }
    char name[40], *mine;
    snprintf(name, sizeof name, "member-%d", self);
    FILE *member = fopen(mine = in_here(name), "w");
    if (!member) DIE("%s", mine);
    fprintf(member, "%d\n", getpid());
    fclose(member);
    pthread_t threads[WORKERS];
    int n = 0;
    for (; workers[self][n].count; n++) SAME(pthread_create(&threads[n], 0, works, &workers[self][n]), 0);
    /* Nobody may be left to tell it to end: a driver that was killed. */
    alarm(1800);
    if (self == 0) freeze_here();
    while (!gone_ahead()) nap(2);
    while (n) pthread_join(threads[--n], 0);
    for (int i = 0; i < processes; i++) if (children[i]) reaped(children[i], 0);
    return 0;
}
int main(int argc, char **argv) {
    if (!strcmp(argv[0], "hop")) {
        int left = atoi(argv[1]);
        if (!left) return 55;
        char text[20], *args[] = { "hop", text, 0 };
        snprintf(text, sizeof text, "%d", left - 1);
        execv("/proc/self/exe", args);
        DIE("execv");
    }
    struct sigaction action = { .sa_handler = tick };
    OK(sigaction(SIGRTMIN + 2, &action, 0));
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 3);
    SAME(pthread_sigmask(SIG_BLOCK, &set, 0), 0);
    read_plan();
    return be(0);
}
