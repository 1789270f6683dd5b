//! Conformance of io_uring: rings with what is in them, counters, files, eventfd, who shares it; what is refused.

use freeze_tests::subject::output;
use freeze_tests::{IntoSubject, Running, Subject, c, conformance, freeze};

/// An instance by raw system calls, in C.
const RING: &str = r#"
#include <linux/io_uring.h>
#include <sys/eventfd.h>
#ifndef IORING_SETUP_NO_SQARRAY
#define IORING_SETUP_NO_SQARRAY (1U << 16)
#endif
#define BIG(f) ((f) & IORING_SETUP_CQE32 ? 32 : 16)
#define WIDE(f) ((f) & IORING_SETUP_SQE128 ? 128 : 64)
struct ring {
    int fd;
    struct io_uring_params p;
    char *rings, *sqes;
    size_t size, wide;
};
static uint32_t *word(struct ring *r, uint32_t at) { return (uint32_t *)(r->rings + at); }
static struct ring ring(unsigned entries, unsigned flags) {
    struct ring r = { .p = { .flags = flags } };
    r.fd = OK((int)syscall(SYS_io_uring_setup, entries, &r.p));
    size_t array = r.p.sq_off.array + 4 * r.p.sq_entries, cqes = r.p.cq_off.cqes + r.p.cq_entries * BIG(flags);
    r.size = array > cqes ? array : cqes;
    r.wide = r.p.sq_entries * WIDE(flags);
    r.rings = OK((char *)mmap(0, r.size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, r.fd, IORING_OFF_SQ_RING));
    r.sqes = OK((char *)mmap(0, r.wide, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, r.fd, IORING_OFF_SQES));
    return r;
}
static struct io_uring_sqe *put(struct ring *r, int op, int fd, uint64_t data) {
    uint32_t tail = *word(r, r->p.sq_off.tail), at = tail & (r->p.sq_entries - 1);
    struct io_uring_sqe *sqe = (void *)(r->sqes + at * WIDE(r->p.flags));
    memset(sqe, 0, WIDE(r->p.flags));
    sqe->opcode = op;
    sqe->fd = fd;
    sqe->user_data = data;
    if (!(r->p.flags & IORING_SETUP_NO_SQARRAY)) word(r, r->p.sq_off.array)[at] = at;
    __atomic_store_n(word(r, r->p.sq_off.tail), tail + 1, __ATOMIC_RELEASE);
    return sqe;
}
static int enter(struct ring *r, unsigned submit, unsigned wait) {
    return OK((int)syscall(SYS_io_uring_enter, r->fd, submit, wait, wait ? IORING_ENTER_GETEVENTS : 0, 0, 0));
}
static unsigned unread(struct ring *r) {
    return __atomic_load_n(word(r, r->p.cq_off.tail), __ATOMIC_ACQUIRE) - *word(r, r->p.cq_off.head);
}
/* Takes out one completion; its result. */
static int take(struct ring *r, uint64_t data) {
    CHECK(unread(r) > 0);
    uint32_t head = *word(r, r->p.cq_off.head);
    struct io_uring_cqe *cqe = (void *)(r->rings + r->p.cq_off.cqes + (head & (r->p.cq_entries - 1)) * BIG(r->p.flags));
    SAME(cqe->user_data, data);
    int res = cqe->res;
    __atomic_store_n(word(r, r->p.cq_off.head), head + 1, __ATOMIC_RELEASE);
    return res;
}
static void nops(struct ring *r, unsigned number, uint64_t data) {
    while (number--) {
        put(r, IORING_OP_NOP, -1, data);
        SAME(enter(r, 1, 0), 1);
        SAME(take(r, data), 0);
    }
}
/* Submits what `put` has put, and wants its completion at once. */
static int done(struct ring *r, uint64_t data) {
    SAME(enter(r, 1, 1), 1);
    return take(r, data);
}
"#;

fn subject(text: &str) -> Subject {
    c(&format!("{RING}{text}")).into_subject()
}

/// Completions not read and entries not submitted are still there, and the counters go on, in rings of every layout.
fn idle() -> Subject {
    subject(
        r#"
static const unsigned flags[] = { 0, IORING_SETUP_SQE128 | IORING_SETUP_CQE32, IORING_SETUP_CQE32, IORING_SETUP_CLAMP,
    IORING_SETUP_SUBMIT_ALL | IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG, IORING_SETUP_IOPOLL,
    IORING_SETUP_SINGLE_ISSUER, IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN };
#define MANY (sizeof flags / sizeof *flags)
static struct ring rings[MANY];
static uint32_t before[MANY][6];
static void look(struct ring *r, uint32_t *to) {
    to[0] = *word(r, r->p.sq_off.head); to[1] = *word(r, r->p.sq_off.tail);
    to[2] = *word(r, r->p.cq_off.head); to[3] = *word(r, r->p.cq_off.tail);
    to[4] = *word(r, r->p.sq_off.dropped); to[5] = *word(r, r->p.cq_off.overflow);
}
int main(void) {
    for (unsigned n = 0; n < MANY; n++) {
        struct ring *r = &rings[n];
        *r = ring(n == 0 ? 64 : 8, flags[n]);
        nops(r, 100 + 37 * n, 5);
        for (int i = 0; i < 6; i++) { put(r, IORING_OP_NOP, -1, 1000 + i); SAME(enter(r, 1, 0), 1); }
        for (int i = 0; i < 3; i++) put(r, IORING_OP_NOP, -1, 2000 + i);
        look(r, before[n]);
        SAME(unread(r), 6);
    }
    /* Nothing was ever done with it. */
    struct ring fresh = ring(2, 0);
    freeze_here();
    for (unsigned n = 0; n < MANY; n++) {
        struct ring *r = &rings[n];
        uint32_t now[6];
        look(r, now);
        for (int i = 0; i < 6; i++) SAME(now[i], before[n][i]);
        /* What comes next must not be written over what is not read yet. */
        SAME(enter(r, 3, 0), 3);
        SAME(unread(r), 9);
        for (int i = 0; i < 6; i++) SAME(take(r, 1000 + i), 0);
        for (int i = 0; i < 3; i++) SAME(take(r, 2000 + i), 0);
        nops(r, 100, 6);
        SAME(*word(r, r->p.cq_off.tail), before[n][3] + 103);
        /* It fills, and holds as many as it should. */
        unsigned all = r->p.cq_entries;
        for (unsigned i = 0; i < all; i++) { put(r, IORING_OP_NOP, -1, i); SAME(enter(r, 1, 0), 1); }
        SAME(unread(r), all);
        for (unsigned i = 0; i < all; i++) SAME(take(r, i), 0);
        SAME(*word(r, r->p.cq_off.overflow), 0);
    }
    int p[2];
    OK(pipe(p));
    OK(write(p[1], "abc", 3));
    char got[4] = "";
    struct io_uring_sqe *sqe = put(&fresh, IORING_OP_READ, p[0], 9);
    sqe->addr = (uintptr_t)got;
    sqe->len = 3;
    SAME(done(&fresh, 9), 3);
    SAME(strcmp(got, "abc"), 0);
    return 0;
}
"#,
    )
}

/// A ring that was never full keeps what is unread across the end of the ring.
fn wrapped() -> Subject {
    subject(
        r#"
int main(void) {
    struct ring all[16];
    for (int n = 0; n < 16; n++) {
        all[n] = ring(4, 0);
        nops(&all[n], n, 1);
        for (int i = 0; i < 7; i++) { put(&all[n], IORING_OP_NOP, -1, 100 + i); SAME(enter(&all[n], 1, 0), 1); }
    }
    freeze_here();
    for (int n = 0; n < 16; n++) {
        put(&all[n], IORING_OP_NOP, -1, 107);
        SAME(enter(&all[n], 1, 0), 1);
        SAME(unread(&all[n]), 8);
        for (int i = 0; i < 8; i++) SAME(take(&all[n], 100 + i), 0);
    }
    return 0;
}
"#,
    )
}

/// Registered files are the same descriptions, in the same places.
fn files() -> Subject {
    subject(
        r#"
int main(void) {
    struct ring r = ring(8, 0);
    int f = OK(open(in_here("file"), O_RDWR | O_CREAT | O_EXCL, 0600)), p[2];
    OK(write(f, "0123456789", 10));
    OK(pipe(p));
    OK((int)lseek(f, 4, SEEK_SET));
    int list[5] = { p[1], -1, f, p[0], -1 };
    OK((int)syscall(SYS_io_uring_register, r.fd, IORING_REGISTER_FILES, list, 5));
    nops(&r, 3, 1);
    freeze_here();
    char got[16] = "";
    struct io_uring_sqe *sqe = put(&r, IORING_OP_READ, 2, 7);
    sqe->flags = IOSQE_FIXED_FILE;
    sqe->addr = (uintptr_t)got;
    sqe->len = 3;
    sqe->off = -1;
    SAME(done(&r, 7), 3);
    SAME(strcmp(got, "456"), 0);
    /* The position is that of the descriptor. */
    SAME(lseek(f, 0, SEEK_CUR), 7);
    sqe = put(&r, IORING_OP_WRITE, 0, 8);
    sqe->flags = IOSQE_FIXED_FILE;
    sqe->addr = (uintptr_t)"xyz";
    sqe->len = 3;
    SAME(done(&r, 8), 3);
    SAME(read(p[0], got, 16), 3);
    sqe = put(&r, IORING_OP_READ, 1, 9);
    sqe->flags = IOSQE_FIXED_FILE;
    SAME(done(&r, 9), -EBADF);
    sqe = put(&r, IORING_OP_READ, 5, 9);
    sqe->flags = IOSQE_FIXED_FILE;
    SAME(done(&r, 9), -EBADF);
    int one = f;
    struct io_uring_files_update update = { .offset = 4, .fds = (uintptr_t)&one };
    SAME(syscall(SYS_io_uring_register, r.fd, IORING_REGISTER_FILES_UPDATE, &update, 1), 1);
    return 0;
}
"#,
    )
}

/// Tags of registered files come as completions when these go, as they would have.
fn tags() -> Subject {
    subject(
        r#"
int main(void) {
    struct ring r = ring(8, 0);
    int f = OK(open("/dev/null", O_RDWR)), list[3] = { f, -1, f };
    uint64_t tagged[3] = { 41, 0, 43 };
    struct io_uring_rsrc_register all = { .nr = 3, .data = (uintptr_t)list, .tags = (uintptr_t)tagged };
    OK((int)syscall(SYS_io_uring_register, r.fd, IORING_REGISTER_FILES2, &all, sizeof all));
    struct io_uring_file_index_range range = { .off = 1, .len = 1 };
    OK((int)syscall(SYS_io_uring_register, r.fd, IORING_REGISTER_FILE_ALLOC_RANGE, &range, 0));
    freeze_here();
    SAME(unread(&r), 0);
    /* Only place 1 may be chosen. */
    struct io_uring_sqe *sqe = put(&r, IORING_OP_OPENAT, AT_FDCWD, 5);
    sqe->addr = (uintptr_t)"/dev/null";
    sqe->file_index = IORING_FILE_INDEX_ALLOC;
    SAME(done(&r, 5), 1);
    for (int n = 0; n < 3; n += 2) {
        int none = -1;
        struct io_uring_files_update update = { .offset = n, .fds = (uintptr_t)&none };
        SAME(syscall(SYS_io_uring_register, r.fd, IORING_REGISTER_FILES_UPDATE, &update, 1), 1);
    }
    for (int n = 0; n < 1000 && unread(&r) < 2; n++) { enter(&r, 0, 0); nap(1); }
    SAME(unread(&r), 2);
    uint64_t sum = 0;
    for (int n = 0; n < 2; n++) {
        uint32_t head = *word(&r, r.p.cq_off.head);
        sum += ((struct io_uring_cqe *)(r.rings + r.p.cq_off.cqes))[head & 15].user_data;
        *word(&r, r.p.cq_off.head) = head + 1;
    }
    SAME(sum, 84);
    return 0;
}
"#,
    )
}

/// An eventfd counts completions, one in each manner, and is not counted up by the way.
fn counted() -> Subject {
    subject(
        r#"
int main(void) {
    struct ring r = ring(8, 0), later = ring(8, 0), quiet = ring(8, 0);
    int e = OK(eventfd(0, EFD_NONBLOCK)), a = OK(eventfd(3, EFD_NONBLOCK)), q = OK(eventfd(0, EFD_NONBLOCK));
    nops(&quiet, 5, 1);
    OK((int)syscall(SYS_io_uring_register, r.fd, IORING_REGISTER_EVENTFD, &e, 1));
    OK((int)syscall(SYS_io_uring_register, later.fd, IORING_REGISTER_EVENTFD_ASYNC, &a, 1));
    OK((int)syscall(SYS_io_uring_register, quiet.fd, IORING_REGISTER_EVENTFD, &q, 1));
    *word(&quiet, quiet.p.cq_off.flags) |= IORING_CQ_EVENTFD_DISABLED;
    nops(&r, 2, 1);
    nops(&quiet, 2, 1);
    freeze_here();
    uint64_t n;
    SAME(read(e, &n, 8), 8);
    SAME(n, 2);
    nops(&r, 3, 1);
    SAME(read(e, &n, 8), 8);
    SAME(n, 3);
    /* What is done at once is not counted. */
    nops(&later, 3, 1);
    SAME(read(a, &n, 8), 8);
    SAME(n, 3);
    put(&later, IORING_OP_NOP, -1, 4)->flags = IOSQE_ASYNC;
    SAME(done(&later, 4), 0);
    struct pollfd p = { a, POLLIN, 0 };
    SAME(poll(&p, 1, 5000), 1);
    SAME(read(a, &n, 8), 8);
    SAME(n, 1);
    CHECK(*word(&quiet, quiet.p.cq_off.flags) & IORING_CQ_EVENTFD_DISABLED);
    nops(&quiet, 2, 1);
    SAME(read(q, &n, 8), -1);
    *word(&quiet, quiet.p.cq_off.flags) = 0;
    nops(&quiet, 2, 1);
    SAME(read(q, &n, 8), 8);
    SAME(n, 2);
    SAME(syscall(SYS_io_uring_register, r.fd, IORING_REGISTER_EVENTFD, &e, 1), -1);
    SAME(errno, EBUSY);
    return 0;
}
"#,
    )
}

/// One instance in two processes and under two numbers; one that is mapped nowhere; one that has not begun.
fn shared() -> Subject {
    subject(
        r#"
int main(void) {
    struct ring r = ring(8, 0), bare = ring(8, 0), waiting = ring(8, IORING_SETUP_R_DISABLED);
    int twin = OK(dup(r.fd));
    nops(&r, 11, 1);
    nops(&bare, 5, 1);
    OK(munmap(bare.rings, bare.size));
    OK(munmap(bare.sqes, bare.wide));
    pid_t child = OK(fork());
    if (!child) {
        while (!gone_ahead()) nap(2);
        nops(&r, 3, 2);
        put(&r, IORING_OP_NOP, -1, 77);
        SAME(enter(&r, 1, 0), 1);
        _exit(0);
    }
    freeze_here();
    int status;
    SAME(waitpid(child, &status, 0), child);
    SAME(status, 0);
    SAME(*word(&r, r.p.sq_off.head), 15);
    SAME(take(&r, 77), 0);
    r.fd = twin;
    nops(&r, 2, 3);
    bare.rings = OK((char *)mmap(0, bare.size, PROT_READ | PROT_WRITE, MAP_SHARED, bare.fd, IORING_OFF_CQ_RING));
    bare.sqes = OK((char *)mmap(0, bare.wide, PROT_READ | PROT_WRITE, MAP_SHARED, bare.fd, IORING_OFF_SQES));
    SAME(*word(&bare, bare.p.cq_off.tail), 5);
    nops(&bare, 4, 1);
    put(&waiting, IORING_OP_NOP, -1, 8);
    SAME(syscall(SYS_io_uring_enter, waiting.fd, 1, 0, 0, 0, 0), -1);
    SAME(errno, EBADFD);
    OK((int)syscall(SYS_io_uring_register, waiting.fd, IORING_REGISTER_ENABLE_RINGS, 0, 0));
    SAME(enter(&waiting, 1, 0), 1);
    SAME(take(&waiting, 8), 0);
    return 0;
}
"#,
    )
}

/// Each of several threads has an instance that only it may use, registered for itself.
fn of_threads() -> Subject {
    subject(
        r#"
static pthread_barrier_t ready;
static void *work(void *arg) {
    long n = (long)arg;
    struct ring r = ring(8, IORING_SETUP_SINGLE_ISSUER | (n & 1 ? IORING_SETUP_DEFER_TASKRUN : 0));
    struct io_uring_rsrc_update own = { .offset = n, .data = r.fd };
    SAME(syscall(SYS_io_uring_register, r.fd, IORING_REGISTER_RING_FDS, &own, 1), 1);
    nops(&r, 50 * n, 1);
    put(&r, IORING_OP_NOP, -1, 4);
    SAME(enter(&r, 1, 0), 1);
    pthread_barrier_wait(&ready);
    while (!gone_ahead()) nap(2);
    SAME(take(&r, 4), 0);
    nops(&r, 10, 2);
    put(&r, IORING_OP_NOP, -1, 3);
    SAME(syscall(SYS_io_uring_enter, n, 1, 0, IORING_ENTER_REGISTERED_RING, 0, 0), 1);
    SAME(take(&r, 3), 0);
    SAME(syscall(SYS_io_uring_enter, n + 1, 0, 0, IORING_ENTER_REGISTERED_RING, 0, 0), -1);
    return (void *)(long)r.fd;
}
int main(void) {
    pthread_t threads[4];
    pthread_barrier_init(&ready, 0, 5);
    for (long n = 0; n < 4; n++) SAME(pthread_create(&threads[n], 0, work, (void *)n), 0);
    pthread_barrier_wait(&ready);
    freeze_here();
    for (int n = 0; n < 4; n++) {
        void *fd;
        SAME(pthread_join(threads[n], &fd), 0);
        SAME(syscall(SYS_io_uring_enter, (int)(long)fd, 1, 0, 0, 0, 0), -1);
        SAME(errno, EEXIST);
    }
    return 0;
}
"#,
    )
}

/// More completions than entries (multishot), and fewer (skipped): both counters are what they were.
fn uneven() -> Subject {
    subject(
        r#"
static struct ring many(unsigned flags) {
    struct ring r = ring(8, flags);
    int e = OK(eventfd(0, 0));
    struct io_uring_sqe *sqe = put(&r, IORING_OP_POLL_ADD, e, 1);
    sqe->len = IORING_POLL_ADD_MULTI;
    sqe->poll32_events = POLLIN;
    SAME(enter(&r, 1, 0), 1);
    for (int n = 0; n < 200; n++) {
        uint64_t one = 1;
        OK(write(e, &one, 8));
        SAME(enter(&r, 0, 1), 0);
        if (n < 195) CHECK(take(&r, 1) >= 0);
    }
    sqe = put(&r, IORING_OP_POLL_REMOVE, -1, 2);
    sqe->addr = 1;
    SAME(enter(&r, 1, 1), 1);
    OK(close(e));
    return r;
}
int main(void) {
    struct ring more[2] = { many(0), many(IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN) }, less = ring(8, 0);
    for (int n = 0; n < 100; n++) {
        put(&less, IORING_OP_NOP, -1, 3)->flags = n % 10 ? IOSQE_CQE_SKIP_SUCCESS : 0;
        SAME(enter(&less, 1, 0), 1);
        if (n % 10 == 0) SAME(take(&less, 3), 0);
    }
    freeze_here();
    for (int n = 0; n < 2; n++) {
        SAME(*word(&more[n], more[n].p.sq_off.head), 2);
        CHECK(*word(&more[n], more[n].p.cq_off.tail) >= 201);
        CHECK(unread(&more[n]) >= 6 && unread(&more[n]) <= 8);
        for (int i = 0; i < 5; i++) CHECK(take(&more[n], 1) >= 0);
        while (unread(&more[n])) *word(&more[n], more[n].p.cq_off.head) += 1;
        nops(&more[n], 40, 2);
    }
    SAME(*word(&less, less.p.sq_off.head), 100);
    SAME(*word(&less, less.p.cq_off.tail), 10);
    nops(&less, 40, 2);
    return 0;
}
"#,
    )
}

/// Workers are as many as they were, and run where they did.
fn workers() -> Subject {
    subject(
        r#"
#include <dirent.h>
static void where(char *to) {
    /* A worker is there as long as its request is: a read of an empty pipe. */
    struct ring r = ring(4, 0);
    int p[2];
    char got, path[64] = "", line[256];
    OK(pipe(p));
    struct io_uring_sqe *sqe = put(&r, IORING_OP_READ, p[0], 1);
    sqe->flags = IOSQE_ASYNC;
    sqe->addr = (uintptr_t)&got;
    sqe->len = 1;
    SAME(enter(&r, 1, 0), 1);
    *to = 0;
    for (int n = 0; n < 2000 && !*to; n++) {
        DIR *tasks = opendir("/proc/self/task");
        for (struct dirent *e; (e = readdir(tasks));) {
            if (atoi(e->d_name) == getpid() || *e->d_name == '.') continue;
            snprintf(path, sizeof path, "/proc/self/task/%.20s/status", e->d_name);
            FILE *f = fopen(path, "r");
            while (f && fgets(line, sizeof line, f)) if (!strncmp(line, "Cpus_allowed_list", 17)) strcpy(to, line);
            if (f) fclose(f);
        }
        closedir(tasks);
        nap(1);
    }
    OK(write(p[1], "x", 1));
    SAME(enter(&r, 0, 1), 0);
    SAME(take(&r, 1), 1);
    OK(munmap(r.rings, r.size));
    OK(munmap(r.sqes, r.wide));
    close(r.fd);
}
int main(void) {
    struct ring r = ring(8, 0);
    unsigned most[2] = { 3, 5 };
    unsigned long first = 1;
    OK((int)syscall(SYS_io_uring_register, r.fd, IORING_REGISTER_IOWQ_MAX_WORKERS, most, 2));
    OK((int)syscall(SYS_io_uring_register, r.fd, IORING_REGISTER_IOWQ_AFF, &first, sizeof first));
    char before[256], after[256];
    where(before);
    freeze_here();
    memset(most, 0, sizeof most);
    OK((int)syscall(SYS_io_uring_register, r.fd, IORING_REGISTER_IOWQ_MAX_WORKERS, most, 2));
    SAME(most[0], 3);
    SAME(most[1], 5);
    where(after);
    if (!*before || strcmp(before, after)) DIE("%s and not %s", after, before);
    return 0;
}
"#,
    )
}

/// Memory that is large enough to be copied ahead, and that was read into by way of registered buffers.
fn large() -> Subject {
    subject(
        r#"
#define SIZE (16 << 20)
/* As much as may be pinned without rights. */
#define PART (2 << 20)
int main(void) {
    struct ring r = ring(8, 0);
    char *all = OK((char *)mmap(0, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    int f = OK(open(in_here("file"), O_RDWR | O_CREAT, 0600));
    for (int n = 0; n < SIZE; n += 4096) *(int *)(all + n) = n;
    SAME(write(f, all, SIZE), SIZE);
    memset(all, 7, PART);
    struct iovec whole = { all, PART };
    OK((int)syscall(SYS_io_uring_register, r.fd, IORING_REGISTER_BUFFERS, &whole, 1));
    struct io_uring_sqe *sqe = put(&r, IORING_OP_READ_FIXED, f, 3);
    sqe->addr = (uintptr_t)all;
    sqe->len = PART;
    SAME(done(&r, 3), PART);
    OK((int)syscall(SYS_io_uring_register, r.fd, IORING_UNREGISTER_BUFFERS, 0, 0));
    freeze_here();
    for (int n = 0; n < SIZE; n += 4096) SAME(*(int *)(all + n), n);
    nops(&r, 3, 1);
    return 0;
}
"#,
    )
}

/// Registered buffers keep their places, empty ones too, and are what they were: the program's own memory.
fn buffers() -> Subject {
    subject(
        r#"
static char own[8192], shared[4096];
int main(void) {
    struct ring r = ring(8, 0);
    int p[2];
    char *seen = OK((char *)mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    struct iovec all[4] = { { own + 100, 5000 }, { 0, 0 }, { seen, 4096 }, { shared, 10 } };
    struct io_uring_rsrc_register what = { .nr = 4, .data = (uintptr_t)all };
    OK((int)syscall(SYS_io_uring_register, r.fd, IORING_REGISTER_BUFFERS2, &what, sizeof what));
    strcpy(own + 200, "before");
    OK(pipe(p)); freeze_here();
    struct { int place; char *at; unsigned len; int result; } tries[] = { { 0, own + 100, 5000, 5000 },
        { 0, own + 99, 10, -EFAULT }, { 0, own + 5099, 2, -EFAULT }, { 1, own, 1, -EFAULT }, { 2, seen, 4096, 4096 },
        { 3, shared, 10, 10 }, { 3, shared, 11, -EFAULT } };
    for (unsigned n = 0; n < sizeof tries / sizeof *tries; n++) {
        static char sent[5000], got[5000];
        for (int i = 0; i < 5000; i++) sent[i] = i / 7 + n;
        unsigned len = tries[n].len;
        for (int way = 0; way < 2; way++) {
            if (!way) SAME(write(p[1], sent, len), len);
            struct io_uring_sqe *sqe = put(&r, way ? IORING_OP_WRITE_FIXED : IORING_OP_READ_FIXED, p[!!way], n);
            sqe->addr = (uintptr_t)tries[n].at; sqe->len = len;
            sqe->buf_index = tries[n].place;
            SAME(done(&r, n), tries[n].result);
            if (way && tries[n].result < 0) continue;
            if (!way && tries[n].result > 0) CHECK(!memcmp(tries[n].at, sent, len));
            if (way || tries[n].result < 0) { SAME(read(p[0], got, sizeof got), len); CHECK(!memcmp(got, sent, len)); }
        }
    }
    return (int)syscall(SYS_io_uring_register, r.fd, IORING_UNREGISTER_BUFFERS, 0, 0);
}
"#,
    )
}

conformance!(buffers_conform, buffers());
conformance!(large_conforms, large());
conformance!(workers_conform, workers());
conformance!(idle_conforms, idle());
conformance!(wrapped_conforms, wrapped());
conformance!(files_conform, files());
conformance!(tags_conform, tags());
conformance!(eventfd_conforms, counted());
conformance!(shared_conforms, shared());
conformance!(threads_conform, of_threads());
conformance!(uneven_conforms, uneven());

/// What is said against a checkpoint of a program that goes on with its instance `r` as it likes.
fn refusal(name: &str, text: &str) -> String {
    let text =
        format!("int main(void) {{ struct ring r = ring(8, 0); (void)r; {text} freeze_here(); return 0; }}");
    let running = Running::start(&subject(&text), name);
    let done = output(freeze().arg("check").arg(running.pid.to_string()));
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert_eq!(done.status.code(), Some(3), "{said}");
    said
}

/// An instance that never had a descriptor, in memory of the program's own, shows nowhere.
#[test]
fn an_instance_that_nothing_tells_of() {
    let text = r#"
int main(void) {
    struct io_uring_params p = { .flags = 3 << 14 /* NO_MMAP, REGISTERED_FD_ONLY */ };
    char *own = OK((char *)mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    memcpy((char *)&p.cq_off + 32, &own, 8);
    own += 4096;
    memcpy((char *)&p.sq_off + 32, &own, 8);
    int made = syscall(SYS_io_uring_setup, 4, &p);
    if (made < 0) CHECK(errno == EINVAL || errno == EFAULT);
    OK(close(open(in_here(made < 0 ? "none" : "one"), O_CREAT | O_WRONLY, 0600)));
    freeze_here();
    return 0;
}
"#;
    let running = Running::start(&subject(text), "an_instance_that_nothing_tells_of");
    if running.dir().join("none").exists() {
        freeze_tests::skip!("this kernel has no IORING_SETUP_REGISTERED_FD_ONLY (Linux 6.5)");
    }
    let said = late_refusal(&running);
    assert!(said.contains("io_uring registered as number 0"), "{said}");
}

/// What is said when a checkpoint is tried of what shows only when its threads are asked.
fn late_refusal(running: &Running) -> String {
    let mut command = freeze();
    let pid = running.pid.to_string();
    command
        .args(["checkpoint", &pid, "--to"])
        .arg(running.dir().join("image"));
    let done = output(&mut command);
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert_eq!(done.status.code(), Some(3), "{said}");
    said
}

#[test]
fn an_instance_that_is_only_registered() {
    let text = r#"
int main(void) {
    struct ring r = ring(8, 0);
    struct io_uring_rsrc_update own = { .offset = 3, .data = r.fd };
    SAME(syscall(SYS_io_uring_register, r.fd, IORING_REGISTER_RING_FDS, &own, 1), 1);
    OK(munmap(r.rings, r.size));
    OK(munmap(r.sqes, r.wide));
    OK(close(r.fd));
    freeze_here();
    return 0;
}
"#;
    let running = Running::start(&subject(text), "an_instance_that_is_only_registered");
    let said = late_refusal(&running);
    assert!(
        said.contains("io_uring registered as number 3: the process has it open in no other way"),
        "{said}"
    );
}

/// A test that such a program is refused, in these words.
macro_rules! refused {
    ($name:ident, $words:expr, $text:expr) => {
        #[test]
        fn $name() {
            let said = refusal(stringify!($name), $text);
            assert!(said.contains($words), "{said}");
        }
    };
}

refused!(
    a_read_that_waits,
    "[io_uring]: a request of its threads is in flight",
    r#"int p[2]; static char got[4]; OK(pipe(p));
    struct io_uring_sqe *sqe = put(&r, IORING_OP_READ, p[0], 1);
    sqe->addr = (uintptr_t)got; sqe->len = 4;
    SAME(enter(&r, 1, 0), 1);"#
);

refused!(
    a_read_that_a_worker_waits_in,
    "in flight",
    r#"int p[2]; static char got[4]; OK(pipe(p));
    struct io_uring_sqe *sqe = put(&r, IORING_OP_READ, p[0], 1);
    sqe->addr = (uintptr_t)got; sqe->len = 4; sqe->flags = IOSQE_ASYNC;
    SAME(enter(&r, 1, 0), 1);"#
);

refused!(
    a_poll,
    "[io_uring]: a request of its threads is in flight",
    r#"int p[2]; OK(pipe(p)); nops(&r, 100, 1);
    put(&r, IORING_OP_POLL_ADD, p[0], 1)->poll32_events = POLLIN;
    SAME(enter(&r, 1, 0), 1);"#
);

refused!(
    a_timeout,
    "[io_uring]: a request of its threads is in flight",
    r#"static struct { int64_t sec, nsec; } far = { 1000, 0 };
    struct io_uring_sqe *sqe = put(&r, IORING_OP_TIMEOUT, -1, 1);
    sqe->addr = (uintptr_t)&far; sqe->len = 1;
    SAME(enter(&r, 1, 0), 1);"#
);

refused!(
    requests_of_a_child,
    "[io_uring]: 2 requests of its threads are in flight",
    r#"int p[2]; OK(pipe(p));
    if (!OK(fork())) {
        for (int n = 0; n < 2; n++) {
            put(&r, IORING_OP_POLL_ADD, p[0], 1)->poll32_events = POLLIN;
            SAME(enter(&r, 1, 0), 1);
        }
        OK(close(open(in_here("waits"), O_CREAT | O_WRONLY, 0600)));
        for (;;) pause();
    }
    while (access(in_here("waits"), F_OK)) nap(1);"#
);

refused!(
    completions_that_overflowed,
    "completions wait for room in the ring",
    "for (int n = 0; n < 20; n++) { put(&r, IORING_OP_NOP, -1, 1); SAME(enter(&r, 1, 0), 1); }"
);

refused!(
    a_personality,
    "it has personalities",
    "CHECK(syscall(SYS_io_uring_register, r.fd, IORING_REGISTER_PERSONALITY, 0, 0) > 0);"
);

refused!(
    provided_buffers,
    "it has provided buffers",
    r#"static char some[4096];
    struct io_uring_sqe *sqe = put(&r, IORING_OP_PROVIDE_BUFFERS, 4, 1);
    sqe->addr = (uintptr_t)some; sqe->len = 1024; sqe->buf_group = 100;
    done(&r, 1);"#
);

refused!(
    a_ring_of_provided_buffers,
    "it has provided buffers",
    r#"struct io_uring_buf_reg ring = { .ring_entries = 8, .bgid = 3,
        .ring_addr = (uintptr_t)OK(mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)) };
    OK((int)syscall(SYS_io_uring_register, r.fd, IORING_REGISTER_PBUF_RING, &ring, 1));"#
);

refused!(
    a_buffer_that_is_not_mapped_any_more,
    "a buffer is registered with it that is not mapped any more",
    r#"struct iovec one = { OK(mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)), 4096 };
    OK((int)syscall(SYS_io_uring_register, r.fd, IORING_REGISTER_BUFFERS, &one, 1));
    OK(munmap(one.iov_base, 4096));"#
);

refused!(
    buffers_of_an_instance_that_two_have,
    "buffers are registered with it, and several processes have it open",
    r#"static char some[4096]; struct iovec one = { some, sizeof some };
    OK((int)syscall(SYS_io_uring_register, r.fd, IORING_REGISTER_BUFFERS, &one, 1));
    if (!OK(fork())) for (;;) pause();"#
);

refused!(
    a_ring_that_is_polled,
    "a thread of the kernel submits for it (IORING_SETUP_SQPOLL)",
    "struct ring s = ring(8, IORING_SETUP_SQPOLL); (void)s;"
);

refused!(
    restrictions,
    "it has restrictions",
    r#"struct ring s = ring(8, IORING_SETUP_R_DISABLED);
    struct io_uring_restriction only = { .opcode = IORING_RESTRICTION_SQE_OP, .sqe_op = IORING_OP_NOP };
    OK((int)syscall(SYS_io_uring_register, s.fd, IORING_REGISTER_RESTRICTIONS, &only, 1));"#
);

refused!(
    a_file_that_is_only_registered,
    "no process of the checkpoint has the file open that is registered as number 1",
    r#"int f = OK(open("/dev/null", O_RDWR)), list[2] = { -1, f };
    OK((int)syscall(SYS_io_uring_register, r.fd, IORING_REGISTER_FILES, list, 2));
    OK(close(f)); f = OK(open("/dev/null", O_RDWR));"#
);

refused!(
    an_eventfd_that_is_only_registered,
    "counted by an eventfd that no process of the checkpoint has open",
    r#"int e = OK(eventfd(0, 0));
    OK((int)syscall(SYS_io_uring_register, r.fd, IORING_REGISTER_EVENTFD, &e, 1));
    OK(close(e)); e = OK(eventfd(0, 0));"#
);

refused!(
    an_instance_that_is_only_mapped,
    "is mapped that no process of the checkpoint has open",
    "OK(close(r.fd));"
);

refused!(
    an_instance_of_a_thread_that_has_ended,
    "may submit, which is none of a process that has it open",
    r#"static struct ring s;
    void *make(void *to) { *(struct ring *)to = ring(8, IORING_SETUP_SINGLE_ISSUER); return 0; }
    pthread_t t; SAME(pthread_create(&t, 0, make, &s), 0); SAME(pthread_join(t, 0), 0);"#
);

#[test]
fn an_instance_that_is_held_outside() {
    let text = "int main(void) { struct ring r = ring(8, 0); if (!OK(fork())) { freeze_here(); _exit(0); } nops(&r, 1, 1);
        for (;;) pause(); }";
    let running = Running::start(&subject(text), "an_instance_that_is_held_outside");
    let path = format!("/proc/{0}/task/{0}/children", running.pid);
    let child = std::fs::read_to_string(path).expect("its children");
    let done = output(freeze().arg("check").arg(child.trim()));
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert_eq!(done.status.code(), Some(3), "{said}");
    assert!(
        said.contains(&format!(
            "it is also held outside the checkpoint, by pid {}",
            running.pid
        )),
        "{said}"
    );
}
