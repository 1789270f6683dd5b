//! Conformance of address spaces: contents, protections, advice, sharing, brk and stacks.

use freeze_tests::cycle::{checkpoint_now, request, restore_now};
use freeze_tests::{Running, Subject, c, conformance};
use freeze_user::precopy::Trackings;

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
    rest(20);
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

/// A program in C that can tell how much memory it and its relatives take.
fn sharing(text: &str) -> Subject {
    const PSS: &str = r#"
/* The kilobytes of memory that a process and its share of what it shares take. */
static long pss(int pid) {
    char path[64], line[256]; long n = 0;
    snprintf(path, sizeof path, "/proc/%d/smaps_rollup", pid);
    FILE *f = fopen(path, "r"); CHECK(f);
    while (fgets(line, sizeof line, f)) if (sscanf(line, "Pss_Anon: %ld", &n) == 1) break;
    fclose(f);
    return n;
}
"#;
    c(&format!("{PSS}{text}"))
}

conformance!(
    shared_since_fork,
    sharing(
        r#"
/* What relatives share since fork: between parent and child, and between children whose parent has written since. */
enum { N = 2000, P = 4096 };
int main(void) {
    char *m = OK(mmap(0, N * P, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    for (int i = 0; i < N; i++) memset(m + i * P, i % 250 + 1, P);
    OK(mprotect(m, 100 * P, PROT_READ));
    /* The children stay until their memory was measured. */
    volatile int *measured = OK(mmap(0, P, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    int pids[4];
    for (int k = 1; k < 4; k++) {
        if (k == 3) for (int i = 1000; i < 1500; i++) m[i * P] = 'p';
        if ((pids[k] = OK(fork()))) continue;
        OK(munmap(m + 200 * P, 10 * P * k));
        OK(mprotect(m + 300 * P, 10 * P, PROT_NONE));
        for (int i = 400; i < 420; i++) m[i * P + k] = 200 + k;
        OK(madvise(m + 500 * P, 7 * P, MADV_DONTNEED));
        if (k == 2) {
            int below = OK(fork());
            if (!below) { m[600 * P] = 'b'; while (!*measured) nap(2); _exit(m[600 * P] != 'b' || m[601 * P] != 601 % 250 + 1); }
            while (!*measured) nap(2);
            int status;
            OK(waitpid(below, &status, 0));
            if (status) _exit(9);
        }
        while (!*measured) nap(2);
        for (int i = 0; i < N; i++) {
            if ((i >= 200 && i < 200 + 10 * k) || (i >= 300 && i < 310)) continue;
            char want = i % 250 + 1;
            if (i >= 500 && i < 507) want = 0;
            if (k == 3 && i >= 1000 && i < 1500) want = 'p';
            if (m[i * P] != want || (i >= 400 && i < 420 && m[i * P + k] != (char)(200 + k))) _exit(1 + k);
        }
        _exit(0);
    }
    for (int i = 700; i < 720; i++) m[i * P] = 'q';
    rest(50);
    long before = pss(getpid()), after;
    for (int k = 1; k < 4; k++) before += pss(pids[k]);
    freeze_here();
    after = pss(getpid());
    for (int k = 1; k < 4; k++) after += pss(pids[k]);
    *measured = 1;
    if (after > before + before / 50 + 512) DIE("the tree has grown from %ld to %ld kB", before, after);
    for (int i = 0; i < N; i++) SAME(m[i * P], i >= 700 && i < 720 ? 'q' : i >= 1000 && i < 1500 ? 'p' : (char)(i % 250 + 1));
    for (int k = 1; k < 4; k++) { int status; OK(waitpid(pids[k], &status, 0)); SAME(status, 0); }
}
"#
    )
);

/// With many processes not every pair of them is compared.
#[test]
fn shared_by_many() {
    let subject = sharing(
        r#"
/* Families beside each other, each of which shares what nobody else has. */
enum { N = 500, P = 4096, FAMILIES = 4 };
static void whole(const char *m, int family, int own) {
    for (int i = 0; i < N; i++) SAME(m[i * P], i < 20 ? own : i < 50 ? 'r' : (char)(i % 100 + family));
}
int main(void) {
    char *m = OK(mmap(0, N * P, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    for (int i = 0; i < N; i++) memset(m + i * P, 'r', P);
    volatile int *all = OK(mmap(0, P, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    int *pids = (int *)all + 2;
    for (int k = 0; k < FAMILIES; k++) {
        int child = OK(fork());
        if (child) { pids[2 * k] = child; continue; }
        for (int i = 50; i < N; i++) m[i * P] = i % 100 + k;
        int below = OK(fork()), status = 0;
        char own = below ? 'a' : 'b';
        for (int i = 0; i < 20; i++) m[i * P] = own;
        if (below) pids[2 * k + 1] = below;
        __sync_fetch_and_add(all, 1);
        while (!all[1]) nap(2);
        whole(m, k, own);
        if (below) OK(waitpid(below, &status, 0));
        _exit(status != 0);
    }
    while (all[0] != 2 * FAMILIES) nap(2);
    rest(50);
    long before = pss(getpid()), after;
    for (int k = 0; k < 2 * FAMILIES; k++) before += pss(pids[k]);
    freeze_here();
    after = pss(getpid());
    for (int k = 0; k < 2 * FAMILIES; k++) after += pss(pids[k]);
    all[1] = 1;
    if (after > before + before / 50 + 1024) DIE("the tree has grown from %ld to %ld kB", before, after);
    for (int k = 0; k < FAMILIES; k++) { int status; OK(waitpid(pids[2 * k], &status, 0)); SAME(status, 0); }
}
"#,
    );
    let mut running = Running::start(&subject, "many");
    // Whom it must wait for the end of.
    running.pids();
    let image = running.dir().join("image");
    checkpoint_now(&request(running.pid, image.clone(), true), &mut Trackings::new())
        .unwrap_or_else(|e| panic!("{e}"));
    running.wait_gone();
    restore_now(&image).unwrap_or_else(|e| panic!("{e}"));
    running.verdict();
}

conformance!(
    guards,
    c(r#"
/* Guard pages (Linux 6.13) fault as before, in anonymous memory and in a file's, and can be taken away. */
#include <setjmp.h>
enum { P = 4096 };
static sigjmp_buf back;
static void fault(int signal) { siglongjmp(back, 1); }
static int faults(volatile char *at) { if (sigsetjmp(back, 1)) return 1; (void)*at; return 0; }
int main(void) {
    char *m = OK(mmap(0, 16 * P, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    memset(m, 7, 16 * P);
    int has = madvise(m + 4 * P, 3 * P, 102) == 0;
    int fd = OK(open(in_here("file"), O_RDWR | O_CREAT, 0600));
    OK(ftruncate(fd, 8 * P));
    char *f = OK(mmap(0, 8 * P, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
    int file_has = madvise(f + 2 * P, P, 102) == 0;
    freeze_here();
    signal(SIGSEGV, fault);
    signal(SIGBUS, fault);
    for (int i = 0; i < 16; i++) SAME(faults(m + i * P), has && i >= 4 && i < 7);
    for (int i = 0; i < 8; i++) SAME(faults(f + i * P), file_has && i == 2);
    if (has) { OK(madvise(m + 4 * P, 3 * P, 103)); SAME(m[4 * P], 0); }
    SAME(m[7 * P], 7);
}
"#)
);

conformance!(
    protection_keys,
    c(r#"
/* Keys are as allocated as they were, on the mappings they were on, and each thread's rights are its own. */
enum { P = 4096 };
int main(void) {
    int first = pkey_alloc(0, 0), second = pkey_alloc(0, PKEY_DISABLE_ACCESS), third = pkey_alloc(0, 0);
    if (first < 0) WITHOUT("no protection keys");
    char *m = OK(mmap(0, 4 * P, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    memset(m, 7, 4 * P);
    OK(pkey_mprotect(m + P, 2 * P, PROT_READ | PROT_WRITE, third));
    OK(pkey_set(third, PKEY_DISABLE_WRITE));
    OK(pkey_free(second));
    /* The kernel takes a key of its own for this. */
    char *x = OK(mmap(0, P, PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    (void)x;
    freeze_here();
    SAME(pkey_get(third), PKEY_DISABLE_WRITE);
    SAME(m[P], 7);
    OK(pkey_set(third, 0));
    m[P] = 8;
    OK(pkey_free(third));
    SAME(pkey_alloc(0, 0), third);
    SAME(pkey_free(first), 0);
    CHECK(pkey_alloc(0, 0) == first);
}
"#)
);

conformance!(
    locked_from_now_on,
    c(r#"
/* mlockall for what is mapped later, on fault in the child. */
enum { P = 4096 };
static int flags(char *at, const char *flag) {
    char line[600];
    unsigned long a, b;
    int in = 0, has = -1;
    FILE *f = fopen("/proc/self/smaps", "r");
    CHECK(f);
    while (fgets(line, sizeof line, f)) {
        if (sscanf(line, "%lx-%lx ", &a, &b) == 2) in = a <= (unsigned long)at && (unsigned long)at < b;
        if (in && !strncmp(line, "VmFlags:", 8)) has = strstr(line, flag) != 0;
    }
    fclose(f);
    return has;
}
static void check(int on_fault) {
    char *m = OK(mmap(0, 64 * P, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    SAME(flags(m, " lo"), 1);
    SAME(flags(m, " lf"), on_fault);
}
int main(void) {
    int pid = OK(fork());
    if (!pid) {
        OK(mlockall(MCL_FUTURE | 4));
        while (!gone_ahead()) nap(2);
        check(1);
        _exit(0);
    }
    OK(mlockall(MCL_CURRENT | MCL_FUTURE));
    freeze_here();
    check(0);
    int status;
    OK(waitpid(pid, &status, 0));
    SAME(status, 0);
}
"#)
);

conformance!(
    numa,
    c(r#"
/* Memory policies of the process and of a mapping. */
enum { P = 4096, PREFERRED = 1, BIND = 2, ADDR = 2 };
int main(void) {
    unsigned long mask[16] = { 1 };
    char *m = OK(mmap(0, 8 * P, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (syscall(SYS_mbind, m, 4 * P, BIND, mask, 64, 0)) WITHOUT("no NUMA policies");
    m[0] = 1;
    OK(syscall(SYS_set_mempolicy, PREFERRED, mask, 64));
    freeze_here();
    int mode = -1;
    mask[0] = 0;
    OK(syscall(SYS_get_mempolicy, &mode, mask, 1024, m, ADDR));
    SAME(mode, BIND); SAME(mask[0], 1);
    OK(syscall(SYS_get_mempolicy, &mode, NULL, 0, m + 5 * P, ADDR));
    SAME(mode, 0);
    OK(syscall(SYS_get_mempolicy, &mode, mask, 1024, NULL, 0));
    SAME(mode, PREFERRED); SAME(mask[0], 1);
}
"#)
);

conformance!(
    hugetlb,
    c(r#"
/* Huge pages: private ones, shared ones with a child, those of a memfd. */
enum { L = 2 << 20 };
static void reserve(void) {
    FILE *f = fopen("/proc/sys/vm/nr_hugepages", "r+");
    int n = 0;
    if (!f || fscanf(f, "%d", &n) != 1) return;
    rewind(f);
    if (n < 24) fprintf(f, "24");
    fclose(f);
}
int main(void) {
    reserve();
    int kind = MAP_ANONYMOUS | MAP_HUGETLB, rw = PROT_READ | PROT_WRITE;
    char *own = mmap(0, 2 * L, rw, MAP_PRIVATE | kind, -1, 0), *both = mmap(0, 2 * L, rw, MAP_SHARED | kind, -1, 0);
    int fd = memfd_create("huge", MFD_HUGETLB);
    char *shared = MAP_FAILED, *copied = MAP_FAILED;
    if (fd >= 0 && !ftruncate(fd, 2 * L)) {
        shared = mmap(0, 2 * L, rw, MAP_SHARED, fd, 0);
        copied = mmap(0, L, rw, MAP_PRIVATE, fd, 0);
    }
    if (own == MAP_FAILED || both == MAP_FAILED || shared == MAP_FAILED || copied == MAP_FAILED) {
        WITHOUT("no huge pages to be had");
    }
    own[5] = 1;
    own[L + 70000] = 2;
    both[L - 1] = 3;
    shared[L + 5] = 4;
    copied[1] = 5;
    int pid = OK(fork());
    if (!pid) { while (!gone_ahead()) nap(2); while (!both[9]) nap(1); both[10] = both[9] + 1; _exit(own[L + 70000] != 2); }
    freeze_here();
    SAME(own[5], 1); SAME(own[L + 70000], 2); SAME(own[L + 70001], 0);
    own[L] = 9;
    SAME(both[L - 1], 3);
    both[9] = 9;
    int status;
    OK(waitpid(pid, &status, 0));
    SAME(status, 0); SAME(both[10], 10);
    SAME(shared[L + 5], 4); SAME(shared[1], 0); SAME(copied[1], 5);
    SAME(lseek(fd, 0, SEEK_END), 2 * L);
}
"#)
);

conformance!(
    zero_device,
    c(r#"
/* Mappings of /dev/zero, and memory the kernel may drop. */
enum { P = 4096 };
int main(void) {
    int fd = OK(open("/dev/zero", O_RDWR));
    char *own = OK(mmap(0, 4 * P, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0));
    char *other = OK(mmap(0, 4 * P, PROT_READ, MAP_PRIVATE, fd, P));
    char *shared = OK(mmap(0, 4 * P, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
    close(fd);
    own[0] = 5;
    shared[P] = 6;
    char *drop = mmap(0, 8 * P, PROT_READ | PROT_WRITE, 0x08 | MAP_ANONYMOUS, -1, 0);
    if (drop != MAP_FAILED) memset(drop, 3, 8 * P);
    freeze_here();
    SAME(own[0], 5); SAME(own[P], 0); SAME(other[0], 0); SAME(shared[P], 6);
    if (drop != MAP_FAILED) CHECK(drop[0] == 3 || drop[0] == 0);
    int pid = OK(fork());
    if (!pid) { shared[2 * P] = 7; _exit(drop != MAP_FAILED && drop[P]); }
    int status;
    OK(waitpid(pid, &status, 0));
    SAME(status, 0); SAME(shared[2 * P], 7);
}
"#)
);

conformance!(
    aio,
    c(r#"
/* AIO contexts keep their name, their room, and what has completed; the ring has gone round before. */
#include <linux/aio_abi.h>
int main(void) {
    aio_context_t one = 0, two = 0;
    OK(syscall(SYS_io_setup, 64, &one));
    OK(syscall(SYS_io_setup, 1000, &two));
    int fd = OK(open(in_here("file"), O_RDWR | O_CREAT, 0600));
    struct iocb io = { 0 }, *list[1] = { &io };
    struct io_event got[4];
    io.aio_fildes = fd;
    io.aio_lio_opcode = IOCB_CMD_PWRITE;
    io.aio_buf = (long)"hello";
    io.aio_nbytes = 5;
    for (int i = 0; i < 300; i++) {
        io.aio_data = i;
        SAME(syscall(SYS_io_submit, one, 1, list), 1);
        if (i >= 3) { SAME(syscall(SYS_io_getevents, one, 1, 1, got, NULL), 1); SAME(got[0].data, i - 3); }
    }
    rest(20);
    freeze_here();
    SAME(syscall(SYS_io_getevents, one, 3, 4, got, &(struct timespec){ 0 }), 3);
    for (int i = 0; i < 3; i++) { SAME(got[i].data, 297 + i); SAME(got[i].res, 5); SAME(got[i].obj, (long)&io); }
    for (int i = 0; i < 500; i++) {
        io.aio_data = i;
        SAME(syscall(SYS_io_submit, one, 1, list), 1);
        SAME(syscall(SYS_io_getevents, one, 1, 4, got, NULL), 1);
        SAME(got[0].data, i);
    }
    SAME(syscall(SYS_io_submit, two, 1, list), 1);
    SAME(syscall(SYS_io_getevents, two, 1, 4, got, NULL), 1);
    OK(syscall(SYS_io_destroy, one));
    OK(syscall(SYS_io_destroy, two));
}
"#)
);

conformance!(
    posix_shared,
    c(r#"
/* shm_open: a name that stays, and one that is gone. */
enum { P = 4096 };
int main(void) {
    char kept[64], gone[64];
    /* /dev/shm is everybody's, and in a pid namespace everybody has the same pid. */
    snprintf(kept, sizeof kept, "/kept-%.50s", strrchr(here_dir, '/') + 1);
    snprintf(gone, sizeof gone, "/gone-%.50s", strrchr(here_dir, '/') + 1);
    int fd = OK(shm_open(gone, O_RDWR | O_CREAT | O_EXCL, 0600));
    OK(ftruncate(fd, 5 * P));
    char *m = OK(mmap(0, 5 * P, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
    m[3 * P] = 3;
    OK(shm_unlink(gone));
    int other = OK(shm_open(kept, O_RDWR | O_CREAT, 0600));
    OK(ftruncate(other, 5 * P));
    char *k = OK(mmap(0, 5 * P, PROT_READ | PROT_WRITE, MAP_SHARED, other, 0));
    k[0] = 2;
    close(other);
    int pid = OK(fork());
    if (!pid) { while (!gone_ahead()) nap(2); while (m[0] != 9) nap(1); m[1] = m[3 * P] + 1; _exit(0); }
    freeze_here();
    SAME(m[3 * P], 3); SAME(k[0], 2);
    m[0] = 9;
    int status;
    OK(waitpid(pid, &status, 0));
    SAME(m[1], 4);
    char c;
    SAME(pread(fd, &c, 1, 3 * P), 1);
    SAME(c, 3);
    OK(shm_unlink(kept));
}
"#)
);

conformance!(
    formed_huge_pages,
    c(r#"
/* What was in huge pages (THP) is in huge pages again; single pages beside them keep their contents. */
enum { L = 2 << 20, P = 4096 };
static long number(char *at, const char *what) {
    char line[600];
    unsigned long a, b;
    int in = 0;
    long kb = -1;
    FILE *f = fopen("/proc/self/smaps", "r");
    CHECK(f);
    while (fgets(line, sizeof line, f)) {
        if (sscanf(line, "%lx-%lx ", &a, &b) == 2) in = a <= (unsigned long)at && (unsigned long)at < b;
        if (in && !strncmp(line, what, strlen(what))) kb = atol(line + strlen(what));
    }
    fclose(f);
    return kb;
}
int main(void) {
    char *m = OK(mmap(0, 9 * L, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    m = (char *)(((long)m + L - 1) / L * L);
    /* Single pages, before huge ones are allowed. */
    for (int i = 4; i < 8; i++) m[i * L + 5 * P] = i;
    if (madvise(m, 8 * L, MADV_HUGEPAGE)) WITHOUT("no transparent huge pages");
    memset(m, 5, 4 * L);
    long huge = number(m, "AnonHugePages:");
    freeze_here();
    if (number(m, "AnonHugePages:") < huge) DIE("%ld kB of %ld", number(m, "AnonHugePages:"), huge);
    for (int i = 0; i < 4 * L; i += P) SAME(m[i], 5);
    for (int i = 4; i < 8; i++) SAME(m[i * L + 5 * P], i);
}
"#)
);

conformance!(
    more_than_there_is,
    c(r#"
/* Mappings that follow each other and together are larger than all memory: the kernel would not grant them at once. */
int main(void) {
    enum { PARTS = 7 };
    long page = sysconf(_SC_PAGESIZE), quarter = sysconf(_SC_PHYS_PAGES) / 4 * page;
    char *all = OK(mmap(0, PARTS * quarter, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    int may = 1;
    for (int i = 0; i < PARTS; i++) {
        char *part = mmap(all + i * quarter, quarter, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        may = may && part != MAP_FAILED;
        if (may) part[i * page] = i + 1;
    }
    freeze_here();
    for (int i = 0; may && i < PARTS; i++) SAME(all[i * quarter + i * page], i + 1);
}
"#)
);

conformance!(
    sealed,
    c(r#"
/* What is sealed is whole, and stays as it is: nobody unmaps, moves, protects or empties it. */
int main(void) {
    long P = sysconf(_SC_PAGESIZE);
    char *data = OK(mmap(0, 4 * P, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    memset(data, 7, 4 * P);
    OK(mprotect(data + 2 * P, P, PROT_READ));
    if (syscall(462, data + P, 2 * P, 0)) WITHOUT("no mseal");
    freeze_here();
    for (long i = 0; i < 4 * P; i++) SAME(data[i], 7);
    CHECK(munmap(data + P, P) == -1 && errno == EPERM);
    CHECK(mprotect(data + 2 * P, P, PROT_READ | PROT_WRITE) == -1 && errno == EPERM);
    data[P] = 8;
    OK(munmap(data, P));
    OK(mprotect(data + 3 * P, P, PROT_READ));
}
"#)
);

conformance!(
    locked_without_pages,
    c(r#"
/* What mlock has marked though there can be no page: without access, and behind the end of a file that was cut since. */
static long locked(void) {
    char text[4096] = "";
    int fd = OK(open("/proc/self/status", O_RDONLY));
    OK(read(fd, text, sizeof text - 1));
    close(fd);
    return atol(strstr(text, "VmLck:") + 6);
}
int main(void) {
    int fd = OK(open(in_here("cut"), O_RDWR | O_CREAT, 0666));
    OK(ftruncate(fd, 1 << 14));
    char *none = mmap(0, 1 << 14, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *cut = mmap(0, 1 << 14, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    char *whole = mmap(0, 1 << 14, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(none != MAP_FAILED && cut != MAP_FAILED && whole != MAP_FAILED);
    CHECK(mlock(none, 1 << 14) && errno == ENOMEM);
    OK(mlock(cut, 1 << 14));
    OK(ftruncate(fd, 4096));
    OK(mlock(whole, 1 << 14));
    long before = locked();
    SAME(before, 48);
    freeze_here();
    SAME(locked(), before);
    unsigned char there[4];
    OK(mincore(whole, 1 << 14, there));
    SAME(there[3] & 1, 1);
    cut[0] = 1;
}
"#)
);

// What a relative has at the same addresses, and shares with nobody, is none of the inheritance: least of all terabytes.
conformance!(
    reserved_where_relatives_share,
    c(r#"
static char *const PLACE = (char *)0x200000000000, *const AROUND = (char *)0x1f0000000000;
static const size_t SIZE = 1 << 16, TERABYTES = 1L << 41;
static int child(int reserves) {
    int pid = OK(fork());
    if (pid) return pid;
    if (reserves) {
        OK(munmap(PLACE, SIZE));
        CHECK(mmap(AROUND, TERABYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == AROUND);
    }
    while (!gone_ahead()) nap(2);
    if (reserves) OK(mprotect(PLACE, SIZE, PROT_READ | PROT_WRITE));
    for (size_t n = 0; n < SIZE; n += 4096) SAME(PLACE[n], reserves ? 0 : 7);
    _exit(5);
}
int main(void) {
    CHECK(mmap(PLACE, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == PLACE);
    memset(PLACE, 7, SIZE);
    int status, children[] = { child(0), child(1), child(0) };
    nap(100);
    freeze_here();
    for (int n = 0; n < 3; n++) {
        SAME(waitpid(children[n], &status, 0), children[n]);
        SAME(status, 5 << 8);
    }
    return 0;
}
"#)
);
