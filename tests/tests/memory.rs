//! Conformance of address spaces: contents, protections, advice, sharing, brk and stacks.

use freeze_tests::{c, conformance};

conformance!(
    anonymous,
    c(r#"
/* Written pages, holes, pages behind PROT_NONE, read-only ones, and what comes after them. */
enum { N = 64, P = 4096 };
int main(void) {
    unsigned char *m = OK(mmap(0, N * P, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    for (int i = 0; i < N; i += 3) memset(m + i * P, i + 1, P);
    OK(mprotect(m + 6 * P, P, PROT_NONE));
    OK(mprotect(m + 9 * P, 2 * P, PROT_READ));
    OK(mprotect(m + 12 * P, P, PROT_READ | PROT_EXEC));
    OK(munmap(m + 21 * P, P));
    char *none = OK(mmap(0, 5 * P, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    freeze_here();
    OK(mprotect(m + 6 * P, P, PROT_READ));
    for (int i = 0; i < N; i++) {
        if (i == 21) continue;
        for (int k = 0; k < P; k++) SAME(m[i * P + k], i % 3 ? 0 : i + 1);
    }
    unsigned char vec;
    CHECK(mincore(m + 21 * P, P, &vec) == -1 && errno == ENOMEM);
    OK(mprotect(none, P, PROT_WRITE));
    none[0] = 1;
    m[0] = 77;
    SAME(m[0], 77);
}
"#)
);

conformance!(
    large,
    c(r#"
/* More than is copied at the cut alone, with zero pages that were written, and some given back. */
enum { N = 6000, P = 4096 };
int main(void) {
    unsigned *m = OK(mmap(0, N * P, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    for (int i = 0; i < N; i++) m[i * (P / 4) + i % 1024] = i % 5 ? i * 2654435761u : 0;
    OK(madvise((char *)m + 100 * P, 200 * P, MADV_DONTNEED));
    freeze_here();
    for (int i = 0; i < N; i++) {
        unsigned want = i % 5 && (i < 100 || i >= 300) ? i * 2654435761u : 0;
        if (m[i * (P / 4) + i % 1024] != want) DIE("page %d", i);
    }
}
"#)
);

conformance!(
    advice,
    c(r#"
/* What madvise, mlock and prctl made of mappings; the flags are compared from outside. */
enum { P = 4096 };
static char *area(void) {
    char *m = OK(mmap(0, 4 * P, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    /* Apart from its neighbours, with which the kernel would join it. */
    OK(mmap(0, P, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    memset(m, 5, 2 * P);
    return m;
}
int main(void) {
    int advice[] = { MADV_DONTFORK, MADV_DONTDUMP, MADV_WIPEONFORK, MADV_NOHUGEPAGE, MADV_HUGEPAGE, MADV_SEQUENTIAL,
                     MADV_RANDOM, MADV_MERGEABLE };
    char *m[16];
    int n = 0;
    for (unsigned i = 0; i < sizeof advice / sizeof *advice; i++, n++) {
        m[n] = area();
        if (madvise(m[n], 4 * P, advice[i])) CHECK(errno == EINVAL);
    }
    m[n] = area();
    OK(mlock(m[n++], 4 * P));
    m[n] = area();
    OK(syscall(SYS_mlock2, m[n++], 4 * P, 1));
    m[n] = area();
    prctl(0x53564d41, 0, m[n], 4 * P, "a name of its own");
    m[n++][0] = 5;
    char *down = OK(mmap(0, 16 * P, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN, -1, 0));
    down[15 * P] = 9;
    freeze_here();
    for (int i = 0; i < n; i++) { SAME(m[i][0], 5); SAME(m[i][3 * P], 0); }
    SAME(down[15 * P], 9);
    int pid = OK(fork());
    if (!pid) { for (int i = 0; i < 4 * P; i += P) if (m[2][i]) _exit(1); _exit(0); }
    int status;
    OK(waitpid(pid, &status, 0));
    SAME(status, 0);
}
"#)
);

conformance!(
    shared,
    c(r#"
/* Shared anonymous memory is shared with the child afterwards too, also what was never touched before. */
enum { P = 4096 };
int main(void) {
    volatile int *m = OK(mmap(0, 8 * P, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    m[0] = 1;
    m[3 * P / 4] = 3;
    int pid = OK(fork());
    if (!pid) {
        CHECK(mprotect((void *)m, P, PROT_READ) == 0);
        while (!gone_ahead()) nap(2);
        while (m[5 * P / 4] != 55) nap(1);
        CHECK(m[0] == 10 && m[3 * P / 4] == 3);
        m[6 * P / 4] = 66;
        _exit(0);
    }
    /* The second mapping of the same object, at another offset. */
    volatile int *again = mremap((void *)m, 0, 4 * P, MREMAP_MAYMOVE);
    CHECK(again != MAP_FAILED);
    nap(20);
    freeze_here();
    m[0] = 10;
    SAME(again[0], 10);
    m[5 * P / 4] = 55;
    int status;
    OK(waitpid(pid, &status, 0));
    SAME(status, 0);
    SAME(m[6 * P / 4], 66);
}
"#)
);

conformance!(
    files,
    c(r#"
/* Private and shared mappings of files: clean pages, pages copied on write, writes that reach the file. */
enum { P = 4096 };
static char *map(int fd, int prot, int flags, off_t at) { return OK(mmap(0, 3 * P, prot, flags, fd, at)); }
int main(void) {
    int fd = OK(open(in_here("mapped"), O_RDWR | O_CREAT, 0600));
    char page[P];
    for (int i = 0; i < 6; i++) { memset(page, 'a' + i, P); SAME(write(fd, page, P), P); }
    char *private = map(fd, PROT_READ | PROT_WRITE, MAP_PRIVATE, 0);
    char *shared = map(fd, PROT_READ | PROT_WRITE, MAP_SHARED, 3 * P);
    char *readonly = map(fd, PROT_READ, MAP_SHARED, P);
    close(fd);
    private[P] = 'X';
    /* Of an unlinked file, which exists in this mapping only. */
    int gone = OK(open(in_here("gone"), O_RDWR | O_CREAT, 0600));
    OK(ftruncate(gone, 3 * P));
    char *ghost = map(gone, PROT_READ | PROT_WRITE, MAP_SHARED, 0);
    ghost[P] = 'g';
    char *ghost2 = map(gone, PROT_READ | PROT_WRITE, MAP_PRIVATE, 0);
    ghost2[0] = 'p';
    close(gone);
    OK(unlink(in_here("gone")));
    freeze_here();
    SAME(private[0], 'a'); SAME(private[P], 'X'); SAME(private[P + 1], 'b'); SAME(private[2 * P], 'c');
    SAME(shared[0], 'd'); SAME(shared[2 * P], 'f');
    SAME(readonly[0], 'b'); SAME(readonly[P], 'c');
    shared[0] = 'S';
    SAME(readonly[2 * P], 'S');
    fd = OK(open(in_here("mapped"), O_RDONLY));
    SAME(pread(fd, page, 1, 3 * P), 1);
    SAME(page[0], 'S');
    SAME(pread(fd, page, 1, P), 1);
    SAME(page[0], 'b');
    SAME(ghost[P], 'g'); SAME(ghost2[P], 'g'); SAME(ghost2[0], 'p'); SAME(ghost[0], 0);
    ghost[2 * P] = 'h';
    SAME(ghost2[2 * P], 'h');
}
"#)
);

conformance!(
    heap_and_stack,
    c(r#"
/* The heap grows on from where it was, and so does the stack. */
static int deep(int n) { volatile char room[4096]; room[0] = n; return n ? deep(n - 1) + room[0] * 0 : 7; }
int main(void) {
    char *start = sbrk(0);
    OK(brk(start + 300000));
    memset(start, 'h', 300000);
    char *end = sbrk(0);
    CHECK(deep(20) == 7);
    freeze_here();
    CHECK(sbrk(0) == end);
    for (int i = 0; i < 300000; i++) SAME(start[i], 'h');
    OK(brk(end + 100000));
    memset(end, 'i', 100000);
    CHECK(deep(1000) == 7);
    char *more = malloc(1 << 20);
    CHECK(more);
    memset(more, 1, 1 << 20);
    struct timespec t;
    OK(clock_gettime(CLOCK_MONOTONIC, &t)); /* in the vDSO, wherever that is */
}
"#)
);

conformance!(
    replaced_program,
    c(r#"
/* A program whose file is gone, as after an upgrade of its package: it travels in the image. */
static int table[30000] = { 1, 2, 3 };
int main(int argc, char **argv) {
    if (argc == 1) {
        char buffer[1 << 16];
        int from = OK(open("/proc/self/exe", O_RDONLY)), to = OK(open(in_here("copy"), O_WRONLY | O_CREAT, 0755));
        for (int n; (n = OK(read(from, buffer, sizeof buffer))) > 0;) SAME(write(to, buffer, n), n);
        close(from);
        close(to);
        execl(in_here("copy"), "copy", "again", NULL);
        DIE("execl");
    }
    OK(unlink(in_here("copy")));
    table[10] = 11;
    freeze_here();
    SAME(table[2], 3);
    SAME(table[10], 11);
    SAME(table[29999], 0);
    char link[PATH_MAX] = "";
    OK(readlink("/proc/self/exe", link, sizeof link - 1));
    CHECK(strstr(link, "/copy (deleted)"));
}
"#)
);
