//! Conformance of files of /proc: of oneself, of others in the checkpoint, of init, of those that have ended; and of /proc mounted anew.

use freeze_tests::{c, conformance};

conformance!(
    files,
    c(r#"
/* They go on to tell of the same process, from where they were read. */
int main(void) {
    int child = OK(fork());
    if (!child) for (;;) pause();
    char path[64], buf[4096];
    int status = OK(open("/proc/self/status", O_RDONLY)), mem = OK(open("/proc/self/mem", O_RDWR));
    int maps = OK(open("/proc/self/maps", O_RDONLY)), init = OK(open("/proc/1/stat", O_RDONLY));
    int tasks = OK(open("/proc/self/task", O_RDONLY | O_DIRECTORY)), top = OK(open("/proc", O_RDONLY | O_DIRECTORY));
    sprintf(path, "/proc/%d/stat", child);
    int stat = OK(open(path, O_RDONLY));
    sprintf(path, "/proc/%d", child);
    int dir = OK(open(path, O_RDONLY | O_DIRECTORY));
    int sys = OK(open("/sys/kernel", O_RDONLY | O_DIRECTORY));
    SAME(read(status, buf, 10), 10);
    freeze_here();
    SAME(lseek(status, 0, SEEK_CUR), 10);
    CHECK(read(status, buf, sizeof buf) > 0);
    volatile int here = 5;
    int copy = 0;
    SAME(pread(mem, &copy, sizeof copy, (long)&here), sizeof copy);
    SAME(copy, 5);
    CHECK(read(maps, buf, sizeof buf) > 0);
    CHECK(read(init, buf, sizeof buf) > 0);
    SAME(atoi(buf), 1);
    CHECK(read(stat, buf, sizeof buf) > 0);
    SAME(atoi(buf), child);
    CHECK(openat(dir, "comm", O_RDONLY) >= 0);
    sprintf(path, "%d/comm", getpid());
    CHECK(openat(tasks, path, O_RDONLY) >= 0);
    CHECK(openat(top, "self/comm", O_RDONLY) >= 0);
    CHECK(faccessat(sys, ".", R_OK, 0) == 0);
    kill(child, SIGKILL);
    OK(waitpid(child, 0, 0));
}
"#)
);

conformance!(
    of_the_dead,
    c(r#"
/* What told of a process that was waited for tells nothing any more. */
int main(void) {
    int child = OK(fork());
    if (!child) for (;;) pause();
    char path[64], buf[64];
    sprintf(path, "/proc/%d/stat", child);
    int stat = OK(open(path, O_RDONLY));
    sprintf(path, "/proc/%d/task/%d/comm", child, child);
    int comm = OK(open(path, O_RDONLY));
    sprintf(path, "/proc/%d", child);
    int dir = OK(open(path, O_RDONLY | O_DIRECTORY));
    OK(kill(child, SIGKILL));
    OK(waitpid(child, 0, 0));
    freeze_here();
    CHECK(read(stat, buf, sizeof buf) == -1 && errno == ESRCH);
    CHECK(read(comm, buf, sizeof buf) <= 0);
    CHECK(openat(dir, "stat", O_RDONLY) == -1);
    CHECK(kill(child, 0) == -1);
}
"#)
);

conformance!(
    of_threads,
    c(r#"
/* What tells of a thread: a file, a directory, a link. */
#include <pthread.h>
static volatile int tid, leave;
static void *thread(void *unused) {
    (void)unused;
    tid = gettid();
    while (!leave) rest(20);
    return 0;
}
int main(void) {
    pthread_t one;
    CHECK(!pthread_create(&one, 0, thread, 0));
    while (!tid) nap(1);
    char path[64], buf[64];
    sprintf(path, "/proc/self/task/%d/stat", tid);
    int stat = OK(open(path, O_RDONLY));
    sprintf(path, "/proc/self/task/%d", tid);
    int dir = OK(open(path, O_RDONLY | O_DIRECTORY));
    sprintf(path, "/proc/self/task/%d/exe", tid);
    int link = OK(open(path, O_PATH | O_NOFOLLOW));
    freeze_here();
    CHECK(read(stat, buf, sizeof buf) > 0);
    SAME(atoi(buf), tid);
    CHECK(openat(dir, "comm", O_RDONLY) >= 0);
    CHECK(readlinkat(link, "", buf, sizeof buf) > 0);
    leave = 1;
    pthread_join(one, 0);
    /* Who is joined has yet to end for good. */
    int fd;
    while ((fd = openat(dir, "comm", O_RDONLY)) >= 0) { OK(close(fd)); nap(1); }
}
"#),
    only: root
);

conformance!(
    proc_in_a_user_namespace,
    c(r#"
/* A /proc that was mounted anew in a user namespace, and limits below those that the namespace came with. */
#include <sys/mount.h>
int main(void) {
    struct rlimit now, limit = { 111, 222 };
    char path[64], *at = in_here("proc");
    if (!housed()) OK(unshare(CLONE_NEWUSER | CLONE_NEWNS));
    else OK(unshare(CLONE_NEWNS));
    OK(setrlimit(RLIMIT_NOFILE, &limit));
    OK(mkdir(at, 0755));
    /* Only who has a pid namespace of its own may mount one. */
    int mounted = mount("proc", at, "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, 0) == 0;
    CHECK(mounted || !housed());
    freeze_here();
    OK(getrlimit(RLIMIT_NOFILE, &now));
    CHECK(now.rlim_cur == 111 && now.rlim_max == 222);
    if (!mounted) return 0;
    snprintf(path, sizeof path, "proc/%d/stat", getpid());
    SAME(access(in_here(path), F_OK), 0);
    return 0;
}
"#)
);

// What browsers lock their children up in: the directory of a process that has ended since, which has nothing in it.
conformance!(
    at_the_dead,
    c(r#"
int main(void) {
    int child = OK(fork());
    if (!child) for (;;) pause();
    char path[64], before[128] = "", after[128] = "";
    sprintf(path, "/proc/%d/fdinfo", child);
    int locked = OK(fork());
    if (!locked) {
        OK(chdir(path));
        OK(chroot("."));
        OK(chdir("/"));
        for (;;) pause();
    }
    OK(chdir(path));
    char root[64];
    sprintf(root, "/proc/%d/root", locked);
    while (readlink(root, before, sizeof before - 1) < 2) nap(1);
    OK(kill(child, SIGKILL));
    OK(waitpid(child, 0, 0));
    OK(readlink(root, before, sizeof before - 1));
    freeze_here();
    OK(readlink(root, after, sizeof after - 1));
    CHECK(!strcmp(before, after));
    CHECK(open("1", O_RDONLY) == -1);
    CHECK(kill(child, 0) == -1);
    OK(kill(locked, SIGKILL));
    OK(waitpid(locked, 0, 0));
}
"#),
    only: root
);
