//! Conformance of memfds and System V shared memory: shared by descriptor, by mapping, by both.

use freeze_tests::{c, conformance};

conformance!(
    empty_huge_pages,
    c(r#"
/* One of huge pages that has a size and no page yet, where the machine need not have any either. */
int main(void) {
    int fd = memfd_create("huge", MFD_HUGETLB);
    if (fd < 0) WITHOUT("no memfds of huge pages");
    OK(ftruncate(fd, 4 << 20));
    freeze_here();
    struct stat st;
    OK(fstat(fd, &st));
    SAME(st.st_size, 4 << 20);
    SAME(st.st_blocks, 0);
}
"#)
);

conformance!(
    files,
    c(r#"
/* Contents, name, seals, position, and that descriptor, mappings and a child's mapping are one. */
int main(void) {
    int fd = OK(memfd_create("a name", MFD_ALLOW_SEALING | MFD_CLOEXEC));
    OK(ftruncate(fd, 10 << 20));
    SAME(OK(pwrite(fd, "hello", 5, 5 << 20)), 5);
    OK(lseek(fd, 1234, SEEK_SET));
    char *shared = mmap(0, 10 << 20, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    char *copy = mmap(0, 10 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    CHECK(shared != MAP_FAILED && copy != MAP_FAILED);
    copy[5 << 20] = 'H';
    strcpy(shared, "start");
    OK(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_FUTURE_WRITE));
    int gone = OK(memfd_create("", 0));
    OK(ftruncate(gone, 4096));
    char *only = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, gone, 0);
    close(gone);
    strcpy(only, "mapped only");
    int fixed = OK(memfd_create("fixed", MFD_ALLOW_SEALING));
    SAME(OK(write(fixed, "12345", 5)), 5);
    OK(fcntl(fixed, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL));
    char *look = mmap(0, 4096, PROT_READ, MAP_PRIVATE, fixed, 0);
    CHECK(look != MAP_FAILED);
    int child = OK(fork());
    if (!child) {
        while (!gone_ahead()) nap(2);
        for (int i = 0; i < 2000 && strcmp(shared, "from the parent"); i++) nap(2);
        CHECK(!strcmp(shared, "from the parent"));
        strcpy(only, "from the child");
        _exit(0);
    }
    freeze_here();
    SAME(lseek(fd, 0, SEEK_CUR), 1234);
    SAME(fcntl(fd, F_GET_SEALS), F_SEAL_SHRINK | F_SEAL_FUTURE_WRITE);
    CHECK(!memcmp(shared + (5 << 20), "hello", 5) && !memcmp(copy + (5 << 20), "Hello", 5));
    CHECK(!strcmp(shared, "start"));
    strcpy(shared, "from the parent");
    char buf[6] = "";
    SAME(OK(pread(fd, buf, 5, 0)), 5);
    CHECK(!strcmp(buf, "from "));
    struct stat st;
    OK(fstat(fd, &st));
    SAME(st.st_size, 10 << 20);
    CHECK(st.st_blocks < 1000);
    CHECK(write(fd, "x", 1) == -1 && errno == EPERM);
    CHECK(pwrite(fixed, "x", 1, 0) == -1 && errno == EPERM);
    CHECK(!memcmp(look, "12345", 5));
    SAME(fcntl(fixed, F_GET_SEALS), F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL);
    int status;
    OK(waitpid(child, &status, 0));
    SAME(status, 0);
    CHECK(!strcmp(only, "from the child"));
}
"#)
);

conformance!(
    segments,
    c(r#"
/* Segments keep id, key and contents; one that was removed lives on with its attachments. */
#include <sys/shm.h>
/* With an id of our own: another test must not be given it while this one is down. */
static int make(int key, int size, int mode, int id) {
    for (;;) {
        FILE *next = fopen("/proc/sys/kernel/shm_next_id", "w");
        CHECK(next);
        fprintf(next, "%d", id);
        fclose(next);
        int got = OK(shmget(key, size, IPC_CREAT | IPC_EXCL | mode));
        if (got == id) return got;
        OK(shmctl(got, IPC_RMID, 0));
    }
}
int main(void) {
    int key = 0x5f000000 | getpid(), id = 2048 + getpid() % 14000 * 2;
    int kept = make(key, 3 * 4096 - 7, 0640, id);
    int removed = make(IPC_PRIVATE, 8192, 0600, id + 1);
    char *a = shmat(kept, 0, 0), *read_only = shmat(kept, 0, SHM_RDONLY), *b = shmat(removed, 0, 0);
    CHECK(a != (void *)-1 && b != (void *)-1 && read_only != (void *)-1);
    OK(shmctl(removed, IPC_RMID, 0));
    strcpy(a + 4096, "second page");
    strcpy(b, "removed");
    OK(mprotect(a + 4096, 4096, PROT_READ));
    int child = OK(fork());
    if (!child) {
        while (!gone_ahead()) nap(2);
        for (int i = 0; i < 2000 && strcmp(a, "parent"); i++) nap(2);
        CHECK(!strcmp(a, "parent") && !strcmp(read_only + 4096, "second page"));
        strcpy(b, "child");
        _exit(0);
    }
    freeze_here();
    SAME(shmget(key, 0, 0), kept);
    struct shmid_ds ds;
    OK(shmctl(kept, IPC_STAT, &ds));
    SAME(ds.shm_segsz, 3 * 4096 - 7);
    SAME(ds.shm_perm.mode & 0777, 0640);
    SAME(ds.shm_nattch, 8); /* each mapping that mprotect has cut counts */
    CHECK(!strcmp(a + 4096, "second page") && !strcmp(b, "removed"));
    strcpy(a, "parent");
    CHECK(!strcmp(read_only, "parent"));
    int status;
    OK(waitpid(child, &status, 0));
    SAME(status, 0);
    CHECK(!strcmp(b, "child"));
    OK(mprotect(a + 4096, 4096, PROT_READ | PROT_WRITE));
    OK(shmdt(a));
    OK(shmdt(read_only));
    OK(shmctl(kept, IPC_RMID, 0));
    OK(shmdt(b));
    CHECK(shmctl(removed, IPC_STAT, &ds) == -1);
}
"#)
);

conformance!(
    executed,
    c(r#"
#include <sys/mman.h>
extern char **environ;
/* A program that was executed from a memfd, sealed and not, as container runtimes do with themselves. */
int main(int argc, char **argv) {
    if (argc == 1) {
        char buf[65536];
        int from = OK(open("/proc/self/exe", O_RDONLY)), to = OK(memfd_create("own", MFD_ALLOW_SEALING | MFD_CLOEXEC));
        for (ssize_t n; (n = OK(read(from, buf, sizeof buf)));) SAME(write(to, buf, n), n);
        close(from);
        OK(fcntl(to, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE));
        char path[64];
        snprintf(path, sizeof path, "/proc/self/fd/%d", to);
        int program = OK(open(path, O_RDONLY | O_CLOEXEC));
        close(to);
        fexecve(program, (char *[]){ "own", "again", NULL }, environ);
        DIE("exec");
    }
    struct stat before, now;
    char link[64];
    OK(stat("/proc/self/exe", &before));
    freeze_here();
    ssize_t n = OK(readlink("/proc/self/exe", link, sizeof link - 1));
    link[n] = 0;
    if (strcmp(link, "/memfd:own (deleted)")) DIE("it is %s", link);
    OK(stat("/proc/self/exe", &now));
    SAME(now.st_dev, before.st_dev);
    SAME(now.st_size, before.st_size);
    SAME(now.st_nlink, 0);
    int own = OK(open("/proc/self/exe", O_RDONLY));
    SAME(fcntl(own, F_GET_SEALS), F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE);
}
"#)
);

conformance!(
    run_and_held,
    c(r#"
/* A program that runs from a memfd of which it still has the description it was made with, which can write but may not. */
int main(int argc, char **argv, char **environment) {
    char bytes[65536];
    long n;
    if (argc == 1) {
        int made = OK(memfd_create("program", 0)), self = OK(open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
        while ((n = OK(read(self, bytes, sizeof bytes))) > 0) SAME(write(made, bytes, n), n);
        OK(lseek(made, 7, SEEK_SET));
        snprintf(bytes, sizeof bytes, "%d", made);
        char *arguments[] = {argv[0], bytes, 0};
        OK(fexecve(made, arguments, environment));
    }
    int made = atoi(argv[1]), flags = OK(fcntl(made, F_GETFL));
    SAME(write(made, "x", 1), 1);
    freeze_here();
    SAME(fcntl(made, F_GETFL), flags);
    SAME(flags & O_ACCMODE, O_RDWR);
    SAME(lseek(made, 0, SEEK_CUR), 8);
    SAME(pread(made, bytes, 8, 0), 8);
    CHECK(!memcmp(bytes + 1, "ELF", 3) && bytes[7] == 'x');
    SAME(open("/proc/self/exe", O_RDWR), -1);
    SAME(errno, ETXTBSY);
    n = OK(readlink("/proc/self/exe", bytes, sizeof bytes - 1));
    bytes[n] = 0;
    CHECK(strstr(bytes, "/memfd:program"));
}
"#)
);

conformance!(
    huge_and_empty,
    c(r#"
/* Far larger than all memory, of reserved huge pages, of which one was ever written: what has no pages need not be looked at. */
int main(void) {
    enum { L = 2 << 20 };
    int empty = memfd_create("empty", MFD_HUGETLB | 21 << 26), one = memfd_create("one", MFD_HUGETLB | 21 << 26);
    if (empty < 0 || one < 0) WITHOUT("no memfds of huge pages");
    OK(ftruncate(empty, 1l << 40));
    OK(ftruncate(one, 1l << 40));
    char *page = mmap(0, L, PROT_READ | PROT_WRITE, MAP_SHARED, one, 3 * L);
    if (page == MAP_FAILED) WITHOUT("no huge pages to be had");
    strcpy(page, "here");
    munmap(page, L);
    freeze_here();
    struct stat st;
    OK(fstat(empty, &st));
    CHECK(st.st_size == 1l << 40 && st.st_blocks == 0);
    OK(fstat(one, &st));
    CHECK(st.st_size == 1l << 40 && st.st_blocks * 512 == L);
    page = OK(mmap(0, L, PROT_READ, MAP_SHARED, one, 3 * L));
    CHECK(!strcmp(page, "here"));
}
"#)
);

conformance!(
    attributes,
    c(r#"
/* Owner, mode, times and extended attributes, of one that is only mapped too. */
#include <sys/xattr.h>
static void same_times(struct stat *a, struct stat *b) {
    SAME(a->st_mtim.tv_sec, b->st_mtim.tv_sec);
    SAME(a->st_mtim.tv_nsec, b->st_mtim.tv_nsec);
    SAME(a->st_mode, b->st_mode);
}
int main(void) {
    int fd = OK(memfd_create("dated", MFD_ALLOW_SEALING)), mapped = OK(memfd_create("mapped", 0));
    struct timespec times[2] = {{1000000000, 5}, {1100000000, 6}};
    struct stat before, behind, now;
    char value[10], path[100];
    SAME(write(fd, "text", 4), 4);
    OK(ftruncate(mapped, 4096));
    char *at = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, mapped, 0);
    CHECK(at != MAP_FAILED);
    strcpy(at, "there");
    OK(fchmod(fd, 0640));
    OK(futimens(fd, times));
    OK(futimens(mapped, times));
    int known = fsetxattr(fd, "user.kind", "wanted", 6, 0) == 0;
    OK(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK));
    OK(fstat(fd, &before));
    OK(fstat(mapped, &behind));
    close(mapped);
    freeze_here();
    OK(fstat(fd, &now));
    same_times(&now, &before);
    SAME(now.st_atim.tv_sec, before.st_atim.tv_sec);
    snprintf(path, sizeof path, "/proc/self/map_files/%lx-%lx", (long)at, (long)at + 4096);
    if (!stat(path, &now)) same_times(&now, &behind);
    if (known) SAME(fgetxattr(fd, "user.kind", value, 10), 6);
    CHECK(!strcmp(at, "there"));
}
"#)
);

conformance!(
    room,
    c(r#"
/* What was given room in advance has it still, written or not, and what has holes has them: memfds and unlinked files. */
int main(void) {
    int fds[6];
    struct stat before[6], after;
    for (int i = 0; i < 6; i++) {
        if (i % 2) fds[i] = OK(open(in_here("f"), O_RDWR | O_CREAT | O_EXCL, 0600));
        else fds[i] = OK(syscall(SYS_memfd_create, "room", 0));
        if (i % 2) OK(unlink(in_here("f")));
        OK(ftruncate(fds[i], 300000));
        SAME(pwrite(fds[i], "x", 1, 200000), 1);
        /* All of it, and more than all of it. */
        if (i > 1 && fallocate(fds[i], FALLOC_FL_KEEP_SIZE, 0, i > 3 ? 500000 : 300000)) WITHOUT("room in advance");
        OK(fsync(fds[i]));
        OK(fstat(fds[i], &before[i]));
    }
    freeze_here();
    for (int i = 0; i < 6; i++) {
        OK(fsync(fds[i]));
        OK(fstat(fds[i], &after));
        SAME(after.st_blocks, before[i].st_blocks);
        SAME(after.st_size, 300000);
        char byte;
        SAME(pread(fds[i], &byte, 1, 200000), 1);
        SAME(byte, 'x');
    }
}
"#)
);
