//! Conformance of inotify: watches with their numbers, masks and paths.

use freeze_tests::subject::{freeze_checkpoint, output};
use freeze_tests::{Running, c, conformance};

conformance!(
    watches,
    c(r#"
/* Numbers with a gap, and that only what happens afterwards is told. */
#include <sys/inotify.h>
int main(void) {
    char *sub = strdup(in_here("sub dir")), *file = strdup(in_here("sub dir/file"));
    OK(mkdir(sub, 0700));
    close(OK(open(file, O_CREAT | O_WRONLY, 0600)));
    int fd = OK(inotify_init1(IN_NONBLOCK | IN_CLOEXEC));
    SAME(OK(inotify_add_watch(fd, sub, IN_CREATE | IN_DELETE | IN_ONLYDIR)), 1);
    SAME(OK(inotify_add_watch(fd, file, IN_OPEN)), 2);
    OK(inotify_rm_watch(fd, 2));
    SAME(OK(inotify_add_watch(fd, file, IN_MODIFY | IN_ONESHOT)), 3);
    char buf[4096];
    while (read(fd, buf, sizeof buf) > 0) {}
    freeze_here();
    CHECK(read(fd, buf, sizeof buf) == -1 && errno == EAGAIN);
    int w = OK(open(file, O_WRONLY));
    SAME(write(w, "x", 1), 1);
    struct inotify_event *e = (void *)buf;
    CHECK(read(fd, buf, sizeof buf) >= (long)sizeof *e);
    SAME(e->wd, 3);
    SAME(e->mask, IN_MODIFY);
    while (read(fd, buf, sizeof buf) > 0) {}
    OK(unlink(file));
    CHECK(read(fd, buf, sizeof buf) > (long)sizeof *e);
    SAME(e->wd, 1);
    CHECK(!strcmp(e->name, "file"));
    OK(inotify_rm_watch(fd, 1));
}
"#)
);

conformance!(
    renamed_and_unlinked,
    c(r#"
/* A watch stays with its file, whatever that is called, and whether it has a name at all. */
#include <sys/inotify.h>
int main(void) {
    char *a = strdup(in_here("a")), *b = strdup(in_here("b")), *gone = strdup(in_here("gone")), *d = strdup(in_here("d"));
    int moved = OK(open(a, O_CREAT | O_RDWR, 0600)), nameless = OK(open(gone, O_CREAT | O_RDWR, 0600));
    OK(mkdir(d, 0700));
    int dir = OK(open(d, O_RDONLY | O_DIRECTORY));
    int fd = OK(inotify_init1(IN_NONBLOCK));
    SAME(OK(inotify_add_watch(fd, a, IN_MODIFY)), 1);
    SAME(OK(inotify_add_watch(fd, gone, IN_MODIFY)), 2);
    SAME(OK(inotify_add_watch(fd, d, IN_ATTRIB)), 3);
    OK(rename(a, b));
    OK(unlink(gone));
    OK(rmdir(d));
    char buf[4096];
    while (read(fd, buf, sizeof buf) > 0) {}
    freeze_here();
    CHECK(read(fd, buf, sizeof buf) == -1 && errno == EAGAIN);
    struct inotify_event *e = (void *)buf;
    SAME(write(moved, "x", 1), 1);
    SAME(read(fd, buf, sizeof buf), sizeof *e);
    SAME(e->wd, 1);
    SAME(write(nameless, "x", 1), 1);
    SAME(read(fd, buf, sizeof buf), sizeof *e);
    SAME(e->wd, 2);
    SAME(e->mask, IN_MODIFY);
    CHECK(dir > 0);
}
"#)
);

conformance!(
    queued,
    c(r#"
/* Events that wait come in their order, with their names, and only once. */
#include <sys/inotify.h>
static int fd;
static char buf[8192];
static int len, at;
static void next(int wd, uint32_t mask, const char *name) {
    if (at >= len) { len = OK(read(fd, buf, sizeof buf)); at = 0; }
    struct inotify_event *e = (void *)(buf + at);
    at += sizeof *e + e->len;
    SAME(e->wd, wd);
    SAME(e->mask, mask);
    CHECK(!strcmp(e->len ? e->name : "", name));
}
int main(void) {
    char *d = strdup(in_here("d")), *kept = strdup(in_here("d/kept")), *gone = strdup(in_here("d/gone"));
    char *file = strdup(in_here("file"));
    OK(mkdir(d, 0700));
    close(OK(open(file, O_CREAT | O_WRONLY, 0600)));
    /* It is there before it is watched: that a file was made which still is there is not told again (see again.rs). */
    close(OK(open(kept, O_CREAT | O_WRONLY, 0600)));
    fd = OK(inotify_init1(IN_NONBLOCK));
    SAME(OK(inotify_add_watch(fd, d, IN_CREATE | IN_DELETE | IN_CLOSE_WRITE)), 1);
    SAME(OK(inotify_add_watch(fd, file, IN_ALL_EVENTS)), 2);
    int w = OK(open(kept, O_WRONLY));
    SAME(write(w, "x", 1), 1);
    close(w);
    OK(mknod(gone, S_IFREG | 0600, 0));
    OK(unlink(gone));
    w = OK(open(file, O_RDWR));
    SAME(write(w, "y", 1), 1);
    SAME(pread(w, buf, 1, 0), 1);
    OK(fchmod(w, 0640));
    close(w);
    struct stat was, now;
    OK(stat(d, &was));
    freeze_here();
    OK(stat(d, &now));
    SAME(now.st_mtim.tv_nsec, was.st_mtim.tv_nsec);
    next(1, IN_CLOSE_WRITE, "kept");
    next(1, IN_CREATE, "gone");
    next(1, IN_DELETE, "gone");
    next(2, IN_OPEN, "");
    next(2, IN_MODIFY, "");
    next(2, IN_ACCESS, "");
    next(2, IN_ATTRIB, "");
    next(2, IN_CLOSE_WRITE, "");
    CHECK(read(fd, buf, sizeof buf) == -1 && errno == EAGAIN);
    OK(unlink(kept));
    len = 0;
    next(1, IN_DELETE, "kept");
    CHECK(access(gone, F_OK) == -1);
}
"#)
);

conformance!(
    queued_in_several,
    c(r#"
#include <sys/inotify.h>
/* Each instance has what it had, though several watch the same files; one of them has read all. */
static void next(int fd, int wd, uint32_t mask, const char *name) {
    char buf[sizeof(struct inotify_event) + NAME_MAX + 1] = "";
    struct inotify_event *e = (void *)buf;
    int room = sizeof *e + (*name ? 16 : 0);
    SAME(OK(read(fd, buf, room)), room);
    SAME(e->wd, wd);
    SAME(e->mask, mask);
    CHECK(!strcmp(e->len ? e->name : "", name));
}
static int none(int fd) {
    int n = -1;
    OK(ioctl(fd, FIONREAD, &n));
    return n == 0;
}
int main(void) {
    char dir[512], file[512];
    strcpy(dir, in_here("dir"));
    OK(mkdir(dir, 0700));
    strcpy(file, in_here("dir/file"));
    int f = OK(creat(file, 0600));
    int a = OK(inotify_init()), b = OK(inotify_init()), c = OK(inotify_init());
    SAME(inotify_add_watch(a, dir, IN_ATTRIB | IN_OPEN | IN_CREATE | IN_DELETE), 1);
    SAME(inotify_add_watch(b, file, IN_ATTRIB | IN_CLOSE | IN_OPEN), 1);
    SAME(inotify_add_watch(b, dir, IN_CREATE), 2);
    SAME(inotify_add_watch(c, file, IN_ALL_EVENTS), 1);
    OK(fchmod(f, 0640));
    OK(close(OK(open(file, O_RDONLY))));
    OK(close(OK(creat(in_here("dir/new"), 0600))));
    OK(unlink(in_here("dir/new")));
    char buf[4096];
    OK(read(c, buf, sizeof buf));
    freeze_here();
    next(a, 1, IN_ATTRIB, "file");
    next(a, 1, IN_OPEN, "file");
    next(a, 1, IN_CREATE, "new");
    next(a, 1, IN_OPEN, "new");
    next(a, 1, IN_DELETE, "new");
    next(b, 1, IN_ATTRIB, "");
    next(b, 1, IN_OPEN, "");
    next(b, 1, IN_CLOSE_NOWRITE, "");
    next(b, 2, IN_CREATE, "new");
    CHECK(none(a) && none(b) && none(c));
    OK(fchmod(f, 0600));
    next(a, 1, IN_ATTRIB, "file");
    next(b, 1, IN_ATTRIB, "");
    next(c, 1, IN_ATTRIB, "");
    CHECK(none(a) && none(b) && none(c));
}
"#)
);

conformance!(
    queued_of_what_is_gone,
    c(r#"
/* Events of names that nothing has any more, of moves, of files that were removed, of watches that were. */
#include <sys/inotify.h>
static int fd;
static char buf[8192];
static int len, at;
static uint32_t next(int wd, uint32_t mask, const char *name) {
    if (at >= len) { len = OK(read(fd, buf, sizeof buf)); at = 0; }
    struct inotify_event *e = (void *)(buf + at);
    at += sizeof *e + e->len;
    SAME(e->wd, wd);
    SAME(e->mask, mask);
    CHECK(!strcmp(e->len ? e->name : "", name));
    return e->cookie;
}
int main(void) {
    char *d = strdup(in_here("d")), *g = strdup(in_here("g")), *e = strdup(in_here("e")), *f = strdup(in_here("f"));
    char *a = strdup(in_here("d/a")), *b = strdup(in_here("d/b")), *s = strdup(in_here("d/s")), *t = strdup(in_here("g/t"));
    OK(mkdir(d, 0700));
    OK(mkdir(g, 0700));
    OK(mkdir(e, 0700));
    close(OK(open(f, O_CREAT | O_WRONLY, 0600)));
    fd = OK(inotify_init1(IN_NONBLOCK));
    SAME(OK(inotify_add_watch(fd, d, IN_ALL_EVENTS)), 1);
    SAME(OK(inotify_add_watch(fd, f, IN_DELETE_SELF | IN_ATTRIB)), 2);
    SAME(OK(inotify_add_watch(fd, e, IN_CREATE | IN_DELETE_SELF)), 3);
    SAME(OK(inotify_add_watch(fd, here_dir, IN_ONLYDIR | IN_MOVE)), 4);
    SAME(OK(inotify_add_watch(fd, g, IN_MOVE)), 5);
    int w = OK(open(a, O_CREAT | O_WRONLY, 0600));
    SAME(write(w, "x", 1), 1);
    close(w);
    OK(rename(a, b));
    OK(unlink(b));
    OK(unlink(f));
    OK(mkdir(strdup(in_here("e/sub")), 0700));
    OK(rmdir(in_here("e/sub")));
    OK(rmdir(e));
    OK(inotify_rm_watch(fd, 4));
    OK(mkdir(s, 0700));
    OK(rename(s, t));
    OK(rename(t, in_here("away")));
    OK(rmdir(in_here("away")));
    freeze_here();
    next(1, IN_CREATE, "a");
    next(1, IN_OPEN, "a");
    next(1, IN_MODIFY, "a");
    next(1, IN_CLOSE_WRITE, "a");
    uint32_t cookie = next(1, IN_MOVED_FROM, "a");
    SAME(next(1, IN_MOVED_TO, "b"), cookie);
    next(1, IN_DELETE, "b");
    next(2, IN_ATTRIB, "");
    next(2, IN_DELETE_SELF, "");
    next(2, IN_IGNORED, "");
    next(3, IN_CREATE | IN_ISDIR, "sub");
    next(3, IN_DELETE_SELF, "");
    next(3, IN_IGNORED, "");
    next(4, IN_IGNORED, "");
    next(1, IN_CREATE | IN_ISDIR, "s");
    uint32_t second = next(1, IN_MOVED_FROM | IN_ISDIR, "s");
    CHECK(second != cookie);
    SAME(next(5, IN_MOVED_TO | IN_ISDIR, "t"), second);
    CHECK(next(5, IN_MOVED_FROM | IN_ISDIR, "t") != second);
    CHECK(read(fd, buf, sizeof buf) == -1 && errno == EAGAIN);
    SAME(OK(inotify_add_watch(fd, here_dir, IN_CREATE)), 6);
    close(OK(open(a, O_CREAT | O_WRONLY, 0600)));
    len = 0;
    next(1, IN_CREATE, "a");
    CHECK(access(b, F_OK) == -1 && access(s, F_OK) == -1 && access(t, F_OK) == -1);
}
"#)
);

/// What a checkpoint reads is not told to who watches it, does not show in times of access, and breaks no lease.
#[test]
fn a_checkpoint_is_not_noticed() {
    let subject = c(r#"
#include <sys/inotify.h>
#include <sys/mount.h>
static int watcher, broken;
static const char *names[40];
static void on_break(int signal) { broken = signal; }
static void watch(const char *path) { names[OK(inotify_add_watch(watcher, path, IN_ALL_EVENTS))] = strdup(path); }
static void watch_open(int fd) {
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    watch(path);
}
static int file(const char *path, int flags) {
    int fd = OK(open(path, O_CREAT | flags, 0600));
    SAME(write(fd, "contents", 8), 8);
    return fd;
}
static int nothing_told(void) {
    int told = 0;
    char buffer[4096];
    for (long n; (n = read(watcher, buffer, sizeof buffer)) > 0;) {
        for (char *at = buffer; at < buffer + n;) {
            struct inotify_event *e = (void *)at;
            at += sizeof *e + e->len;
            fprintf(stderr, "%s: %#x %s\n", names[e->wd], e->mask, e->len ? e->name : "");
            told++;
        }
    }
    return !told;
}
int main(void) {
    OK(unshare(CLONE_NEWNS));
    OK(mount(0, "/", 0, MS_REC | MS_PRIVATE, 0));
    char *own = strdup(in_here("own")), *gone = strdup(in_here("gone")), *dir = strdup(in_here("dir"));
    OK(mkdir(own, 0700));
    OK(mount("own", own, "tmpfs", 0, 0));
    OK(mkdir(in_here("own/sub"), 0700));
    OK(mkdir(in_here("own/apart"), 0700));
    int kept = file(in_here("own/sub/file"), O_RDWR), leased = file(in_here("own/apart/leased"), O_RDWR), nameless = file(gone, O_RDWR);
    int lent = file(in_here("lent"), O_RDWR);
    int away = file(in_here("away"), O_RDWR);
    OK(mkdir(dir, 0700));
    int removed = OK(open(dir, O_RDONLY | O_DIRECTORY));
    OK(unlink(gone));
    OK(unlink(in_here("away")));
    OK(unlink(in_here("lent")));
    OK(rmdir(dir));
    int memory = OK(memfd_create("watched", 0));
    SAME(write(memory, "contents", 8), 8);
    OK(mkdir(in_here("seen"), 0700));
    int seen = file(in_here("seen/file"), O_RDWR);
    char *map = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, away, 0);
    CHECK(map != MAP_FAILED);
    OK(close(OK(open(in_here("own/sub"), O_RDONLY))));

    /* One that has another name than it was opened by is found by its handle. */
    int renamed = file(in_here("seen/renamed"), O_RDWR);
    char *was = strdup(in_here("seen/renamed"));
    OK(link(was, in_here("seen/other")));
    OK(unlink(in_here("seen/renamed")));

    watcher = OK(inotify_init1(IN_NONBLOCK));
    watch(own); watch(in_here("own/sub")); watch(in_here("own/sub/file"));
    watch(in_here("seen")); watch(in_here("seen/file")); watch("/proc/self/exe");
    watch_open(nameless); watch_open(memory); watch_open(removed); watch_open(away);
    signal(SIGUSR1, on_break);
    for (int n = 0; n < 2; n++) {
        int fd = n ? leased : lent;
        OK(fcntl(fd, F_SETSIG, SIGUSR1));
        OK(fcntl(fd, F_SETLEASE, F_WRLCK));
    }
    /* A time of access that reading would move. */
    struct timespec old[2] = { { 1000000 }, { 2000000 } };
    struct stat before[3], after[3];
    OK(futimens(kept, old)); OK(futimens(nameless, old)); OK(utimensat(AT_FDCWD, in_here("own/sub"), old, 0));
    OK(fstat(kept, before)); OK(fstat(nameless, before + 1)); OK(stat(in_here("own/sub"), before + 2));
    char skip[4096];
    while (read(watcher, skip, sizeof skip) > 0) {}
    freeze_here();
    CHECK(nothing_told());
    SAME(broken, 0);
    SAME(fcntl(leased, F_GETLEASE), F_WRLCK);
    SAME(fcntl(lent, F_GETLEASE), F_WRLCK);
    SAME(lseek(leased, 0, SEEK_CUR), 8);
    SAME(lseek(lent, 0, SEEK_CUR), 8);
    SAME(lseek(nameless, 0, SEEK_CUR), 8);
    SAME(lseek(seen, 0, SEEK_CUR), 8);
    SAME(lseek(renamed, 0, SEEK_CUR), 8);
    OK(fstat(kept, after)); OK(fstat(nameless, after + 1)); OK(stat(in_here("own/sub"), after + 2));
    for (int k = 0; k < 3; k++) { SAME(after[k].st_atime, before[k].st_atime); SAME(after[k].st_ctime, before[k].st_ctime); }
}
"#);
    let mut running = Running::start(&subject, "a_checkpoint_is_not_noticed");
    for image in ["first", "second"] {
        let done = output(&mut freeze_checkpoint(&running, &running.dir().join(image)));
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }
    running.verdict();
}

// What has no handle that leads to it: a terminal, the directory of all of them, a pipe.
conformance!(
    watched,
    c(r#"
#include <sys/inotify.h>
int main(void) {
    int master = OK(posix_openpt(O_RDWR | O_NOCTTY)), number, ends[2];
    OK(grantpt(master));
    OK(unlockpt(master));
    OK(ioctl(master, TIOCGPTN, &number));
    char path[64], terminal[64], events[4096];
    snprintf(terminal, sizeof terminal, "/dev/pts/%d", number);
    int slave = OK(open(terminal, O_RDWR | O_NOCTTY));
    OK(pipe(ends));
    snprintf(path, sizeof path, "/proc/self/fd/%d", ends[0]);
    int watcher = OK(inotify_init1(IN_NONBLOCK));
    SAME(inotify_add_watch(watcher, terminal, IN_MODIFY | IN_ATTRIB), 1);
    SAME(inotify_add_watch(watcher, "/dev/pts", IN_DELETE_SELF), 2);
    SAME(inotify_add_watch(watcher, path, IN_MODIFY), 3);
    freeze_here();
    CHECK(read(watcher, events, sizeof events) == -1 && errno == EAGAIN);
    OK(fchmod(slave, 0666));
    struct inotify_event *e = (void *)events;
    CHECK(read(watcher, events, sizeof events) > 0);
    SAME(e->wd, 1);
    SAME(e->mask, IN_ATTRIB);
}
"#)
    .alone()
);
