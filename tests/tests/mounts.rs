//! Conformance of mounts that are more than their options tell: automounters, kinds of programs, moved ones.

use freeze_tests::{c, conformance};

conformance!(
    autofs_indirect,
    c(r#"
#include <sys/mount.h>
#include <linux/auto_fs.h>
/* An automounter goes on: what it had mounted, its timeout, a name that is asked for after. */
static char root[PATH_MAX];
static void serve(int requests, int dir) {
    struct autofs_v5_packet m;
    for (;;) {
        if (read(requests, &m, sizeof m) <= 0) _exit(3);
        if (m.hdr.type != autofs_ptype_missing_indirect) _exit(4);
        char path[PATH_MAX + 300];
        snprintf(path, sizeof path, "%s/%.*s", root, (int)m.len, m.name);
        if (mkdir(path, 0755) && errno != EEXIST) _exit(5);
        if (mount("made", path, "tmpfs", 0, "size=64k")) _exit(6);
        strcat(path, "/f");
        close(open(path, O_CREAT | O_WRONLY, 0600));
        if (ioctl(dir, AUTOFS_IOC_READY, m.wait_queue_token)) _exit(7);
    }
}
/* What mountinfo tells but for the number of the pipe; the process group. */
static int options(char *out) {
    static char text[60000];
    int fd = OK(open("/proc/self/mountinfo", O_RDONLY)), n = 0, r;
    while ((r = read(fd, text + n, sizeof text - n - 1)) > 0) n += r;
    text[n] = 0;
    close(fd);
    char *at = strstr(text, " - autofs ");
    CHECK(at);
    sscanf(at, " - autofs %*s %300s", out);
    int group = atoi(strstr(out, "pgrp=") + 5);
    char *pipe = strstr(out, "pipe_ino="), *end = pipe + strcspn(pipe, ",");
    memmove(pipe, end, strlen(end) + 1);
    /* Its number is that which it had for whoever mounted it. */
    memset(strstr(out, "fd="), '-', 4);
    return group;
}
int main(void) {
    OK(unshare(CLONE_NEWNS));
    OK(mount(0, "/", 0, MS_REC | MS_PRIVATE, 0));
    strcpy(root, in_here("auto"));
    OK(mkdir(root, 0755));
    int up[2];
    OK(pipe(up));
    int daemon = OK(fork());
    if (!daemon) {
        OK(setsid());
        int p[2];
        char text[200], path[PATH_MAX + 10];
        OK(pipe(p));
        snprintf(text, 200, "fd=%d,pgrp=%d,minproto=5,maxproto=5,indirect", p[1], getpgrp());
        if (mount("automounter", root, "autofs", 0, text)) { OK(write(up[1], "-", 1)); _exit(0); }
        close(p[1]);
        int dir = OK(open(root, O_RDONLY | O_DIRECTORY));
        unsigned long timeout = 77;
        OK(ioctl(dir, AUTOFS_IOC_SETTIMEOUT, &timeout));
        snprintf(path, sizeof path, "%s/one", root);
        OK(mkdir(path, 0755));
        OK(mount("in", path, "tmpfs", 0, "size=64k"));
        strcat(path, "/x");
        close(OK(open(path, O_CREAT | O_WRONLY, 0600)));
        snprintf(path, sizeof path, "%s/empty", root);
        OK(mkdir(path, 0755));
        OK(write(up[1], "u", 1));
        close(up[0]);
        close(up[1]);
        serve(p[0], dir);
    }
    char byte, before[400], after[400];
    OK(read(up[0], &byte, 1));
    close(up[0]);
    close(up[1]);
    if (byte == '-') WITHOUT("no autofs can be mounted");
    SAME(options(before), daemon);
    rest(20);
    freeze_here();
    SAME(options(after), daemon);
    if (strcmp(before, after)) DIE("%s, before %s", after, before);
    struct stat s;
    OK(stat(in_here("auto/one/x"), &s));
    close(OK(open(in_here("auto/two/f"), O_RDONLY)));
    close(OK(open(in_here("auto/empty/f"), O_RDONLY)));
    int status;
    OK(kill(daemon, SIGKILL));
    OK(waitpid(daemon, &status, 0));
    SAME(WTERMSIG(status), SIGKILL);
}
"#),
    only: root
);

conformance!(
    autofs_direct,
    c(r#"
#include <sys/mount.h>
#include <linux/auto_fs.h>
/* Triggers: one with nothing on it, one that is mounted on, one whose daemon has given it up. */
static char at[3][PATH_MAX];
int main(void) {
    OK(unshare(CLONE_NEWNS));
    OK(mount(0, "/", 0, MS_REC | MS_PRIVATE, 0));
    const char *names[] = {"bare", "used", "dead"};
    for (int i = 0; i < 3; i++) {
        strcpy(at[i], in_here(names[i]));
        OK(mkdir(at[i], 0755));
    }
    int up[2];
    OK(pipe(up));
    int daemon = OK(fork());
    if (!daemon) {
        OK(setpgid(0, 0));
        int p[2], dir[3];
        char text[PATH_MAX + 10];
        OK(pipe(p));
        for (int i = 0; i < 3; i++) {
            const char *kind = i == 1 ? "offset" : "direct";
            snprintf(text, 200, "fd=%d,pgrp=%d,minproto=5,maxproto=5,%s", p[1], getpgrp(), kind);
            if (mount("automounter", at[i], "autofs", 0, text)) { OK(write(up[1], "-", 1)); _exit(0); }
            dir[i] = OK(open(at[i], O_RDONLY | O_DIRECTORY));
        }
        OK(mount("on", at[1], "tmpfs", 0, "size=64k"));
        OK(ioctl(dir[2], AUTOFS_IOC_CATATONIC, 0));
        OK(write(up[1], "u", 1));
        close(up[0]);
        close(up[1]);
        struct autofs_v5_packet m;
        if (read(p[0], &m, sizeof m) <= 0) _exit(3);
        if (m.hdr.type != autofs_ptype_missing_direct) _exit(4);
        if (mount("made", at[0], "tmpfs", 0, "size=64k")) _exit(6);
        sprintf(text, "%s/f", at[0]);
        close(open(text, O_CREAT | O_WRONLY, 0600));
        if (ioctl(dir[0], AUTOFS_IOC_READY, m.wait_queue_token)) _exit(7);
        _exit(0);
    }
    char byte, path[PATH_MAX + 10];
    OK(read(up[0], &byte, 1));
    close(up[0]);
    close(up[1]);
    if (byte == '-') WITHOUT("no autofs can be mounted");
    rest(20);
    freeze_here();
    sprintf(path, "%s/new", at[1]);
    close(OK(open(path, O_CREAT | O_WRONLY, 0600)));
    sprintf(path, "%s/x", at[2]);
    CHECK(open(path, O_RDONLY) == -1 && errno == ENOENT);
    sprintf(path, "%s/f", at[0]);
    close(OK(open(path, O_RDONLY)));
    int status;
    OK(waitpid(daemon, &status, 0));
    SAME(status, 0);
}
"#),
    only: root
);

conformance!(
    binfmt_misc,
    c(r#"
#include <sys/mount.h>
/* Kinds of programs that are registered in a user namespace, for which only it has its own: flags, order, one switched off. */
static void put(const char *dir, const char *name, const char *text) {
    char path[PATH_MAX + 20];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    int fd = OK(open(path, O_WRONLY));
    SAME(write(fd, text, strlen(text)), strlen(text));
    close(fd);
}
static void get(const char *dir, const char *name, char *text) {
    char path[PATH_MAX + 20];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    int fd = OK(open(path, O_RDONLY)), n = OK(read(fd, text, 999));
    text[n] = 0;
    close(fd);
}
int main(void) {
    char map[100] = "";
    int fd = OK(open("/proc/self/uid_map", O_RDONLY));
    OK(read(fd, map, 99));
    close(fd);
    if (strstr(map, "4294967295")) WITHOUT("not every user id is mapped");
    char dir[PATH_MAX];
    OK(unshare(CLONE_NEWNS));
    OK(mount(0, "/", 0, MS_REC | MS_PRIVATE, 0));
    strcpy(dir, in_here("b"));
    OK(mkdir(dir, 0755));
    if (mount("kinds", dir, "binfmt_misc", 0, 0)) WITHOUT("no binfmt_misc of its own can be mounted");
    put(dir, "register", ":magic:M:3:\\x7fz\\xff:\\xff\\x0f\\xff:/bin/true:OC");
    put(dir, "register", "|name|E||own1||/bin/true|");
    put(dir, "register", ":held:E::own2::/bin/cat:F");
    put(dir, "register", ":off:E::own3::/bin/true:P");
    put(dir, "off", "0");
    const char *names[] = {"magic", "name", "held", "off", "status"};
    char before[5][1000], after[1000];
    for (int i = 0; i < 5; i++) get(dir, names[i], before[i]);
    freeze_here();
    for (int i = 0; i < 5; i++) {
        get(dir, names[i], after);
        if (strcmp(after, before[i])) DIE("%s: %s, before %s", names[i], after, before[i]);
    }
    fd = OK(open(in_here("program.own1"), O_CREAT | O_WRONLY, 0755));
    OK(write(fd, "text", 4));
    close(fd);
    int child = OK(fork()), status;
    if (!child) { execl(in_here("program.own1"), "x", (char *)0); _exit(9); }
    OK(waitpid(child, &status, 0));
    SAME(status, 0);
}
"#)
);

conformance!(
    moved_mounts,
    c(r#"
#include <sys/mount.h>
/* A mount that was made before the one that it has been moved onto. */
int main(void) {
    OK(unshare(CLONE_NEWNS));
    OK(mount(0, "/", 0, MS_REC | MS_PRIVATE, 0));
    char early[PATH_MAX], late[PATH_MAX];
    strcpy(early, in_here("early"));
    strcpy(late, in_here("late"));
    OK(mkdir(early, 0755));
    OK(mkdir(late, 0755));
    OK(mount("early", early, "tmpfs", 0, "size=64k"));
    close(OK(open(in_here("early/f"), O_CREAT | O_WRONLY, 0600)));
    OK(mount("late", late, "tmpfs", 0, "size=64k"));
    OK(mkdir(in_here("late/d"), 0755));
    OK(mount(early, in_here("late/d"), 0, MS_MOVE, 0));
    int fd = OK(open(in_here("late/d/g"), O_CREAT | O_RDWR, 0600));
    OK(write(fd, "x", 1));
    freeze_here();
    struct stat s, t;
    OK(stat(in_here("late/d/f"), &s));
    OK(stat(in_here("late/d/g"), &s));
    SAME(s.st_size, 1);
    OK(fstat(fd, &t));
    SAME(s.st_ino, t.st_ino);
    CHECK(access(in_here("early/f"), F_OK) == -1);
}
"#)
);

/// Not compared by portrait: what lay on mounts of no tree lies in that of its program afterwards.
#[test]
fn what_was_opened_in_a_tree_that_is_left() {
    freeze_tests::cycle::survive(
        "what_was_opened_in_a_tree_that_is_left",
        c(r#"
/* Who alone lives in a tree of files and goes into a copy of it has everything that is open on mounts of no tree. */
#include <sys/mount.h>
#include <sys/un.h>
static int fifo(const char *name) {
    OK(mkfifo(in_here(name), 0600));
    int fd = OK(open(in_here(name), O_RDWR));
    SAME(write(fd, "q", 1), 1);
    return fd;
}
static int file(const char *name, const char *text) {
    int fd = OK(open(in_here(name), O_RDWR | O_CREAT, 0600));
    SAME(write(fd, text, strlen(text)), strlen(text));
    return fd;
}
int main(void) {
    char got[16];
    struct sockaddr_un to = { .sun_family = AF_UNIX, .sun_path = "t/socket" };
    OK(unshare(CLONE_NEWNS));
    OK(mount(0, "/", 0, MS_REC | MS_PRIVATE, 0));
    OK(mkdir(in_here("t"), 0755));
    OK(mount("mine", in_here("t"), "tmpfs", 0, ""));
    OK(chdir(here_dir));
    int null = OK(open("/dev/null", O_RDWR)), zero = OK(open("/dev/zero", O_RDWR)), text = OK(open("/proc/self/comm", O_RDONLY));
    int fifos[] = { fifo("fifo"), fifo("t/fifo") }, in_memory = file("t/file", "abc"), gone[] = { file("gone", "g"), file("t/gone", "g") };
    int directory = OK(open("t", O_RDONLY | O_DIRECTORY)), place = OK(open("t/file", O_PATH)), listening = OK(socket(AF_UNIX, SOCK_STREAM, 0));
    char *mapped = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, in_memory, 0);
    CHECK(mapped != MAP_FAILED);
    OK(unlink("gone"));
    OK(unlink("t/gone"));
    OK(bind(listening, (void *)&to, sizeof to));
    OK(listen(listening, 3));
    OK(unshare(CLONE_NEWNS));
    OK(mount(0, "/", 0, MS_REC | MS_PRIVATE, 0));
    freeze_here();
    struct stat a, b;
    SAME(write(null, "x", 1), 1);
    SAME(read(zero, got, 5), 5);
    CHECK(pread(text, got, 5, 0) > 0);
    for (int i = 0; i < 2; i++) {
        SAME(read(fifos[i], got, sizeof got), 1);
        SAME(pread(gone[i], got, sizeof got, 0), 1);
        OK(fstat(gone[i], &a));
        SAME(a.st_nlink, 0);
    }
    mapped[0] = 'x';
    SAME(pread(in_memory, got, sizeof got, 0), 3);
    SAME(got[0], 'x');
    OK(close(OK(openat(directory, "file", O_RDONLY))));
    OK(fstat(place, &a));
    OK(stat("t/file", &b));
    SAME(a.st_ino, b.st_ino);
    OK(connect(OK(socket(AF_UNIX, SOCK_STREAM, 0)), (void *)&to, sizeof to));
    OK(accept(listening, 0, 0));
}
"#),
    );
}

conformance!(
    times,
    c(r#"
#include <sys/mount.h>
#include <sys/xattr.h>
/* In a file system in memory every name has the times it was given, and what was noted with links and fifos: whoever looks
   for a checkpoint leaves no trace. */
static char *at(const char *name) {
    static _Thread_local char path[PATH_MAX];
    snprintf(path, sizeof path, "%.2000s/m/%.1000s", here_dir, name);
    return path;
}
int main(void) {
    const char *names[] = {"dir", "dir/file", "dir/link", "fifo"};
    OK(unshare(CLONE_NEWNS));
    OK(mount(0, "/", 0, MS_REC | MS_PRIVATE, 0));
    OK(mkdir(in_here("m"), 0755));
    OK(mount("m", in_here("m"), "tmpfs", MS_STRICTATIME, ""));
    OK(mkdir(at("dir"), 0755));
    close(OK(creat(at("dir/file"), 0600)));
    OK(symlink("file", at("dir/link")));
    OK(mkfifo(at("fifo"), 0600));
    int noted = !lsetxattr(at("fifo"), "trusted.note", "of a fifo", 9, 0);
    for (int i = 3; i >= 0; i--) {
        struct timespec times[2] = {{1000 + i, 11}, {2000 + i, 22}};
        OK(utimensat(AT_FDCWD, at(names[i]), times, AT_SYMLINK_NOFOLLOW));
    }
    freeze_here();
    for (int i = 0; i < 4; i++) {
        struct stat seen;
        OK(lstat(at(names[i]), &seen));
        SAME(seen.st_atim.tv_sec, 1000 + i);
        SAME(seen.st_atim.tv_nsec, 11);
        SAME(seen.st_mtim.tv_sec, 2000 + i);
        SAME(seen.st_mtim.tv_nsec, 22);
    }
    char note[20];
    if (noted) SAME(lgetxattr(at("fifo"), "trusted.note", note, 20), 9);
}
"#)
);

conformance!(
    other_names,
    c(r#"
#include <sys/mount.h>
/* In a tree of the program's own: a file whose name is gone and that has another, and one that something is mounted over,
   which a process has open that lives in another mount namespace by now. */
static char *at(const char *name) {
    static char path[4][PATH_MAX];
    static int next;
    char *out = path[next++ % 4];
    snprintf(out, PATH_MAX, "%.2000s/m/%.1000s", here_dir, name);
    return out;
}
static void holds(int fd, const char *text) {
    char got[20] = "";
    CHECK(pread(fd, got, sizeof got, 0) >= 0);
    CHECK(!strcmp(got, text));
}
int main(void) {
    OK(unshare(CLONE_NEWNS));
    OK(mount(0, "/", 0, MS_REC | MS_PRIVATE, 0));
    OK(mkdir(in_here("m"), 0755));
    OK(mount("m", in_here("m"), "tmpfs", 0, ""));
    OK(mkdir(at("a"), 0755));
    OK(mkdir(at("b"), 0755));
    OK(mkdir(at("under"), 0755));
    int moved = OK(open(at("a/one"), O_CREAT | O_RDWR, 0600)), top = OK(open(at("top"), O_CREAT | O_RDWR, 0600));
    SAME(write(moved, "two names", 9), 9);
    SAME(write(top, "deeper", 6), 6);
    OK(link(at("a/one"), at("b/two")));
    OK(unlink(at("a/one")));
    OK(rmdir(at("a")));
    OK(link(at("top"), at("b/top")));
    OK(unlink(at("top")));
    int covered = OK(open(at("under/file"), O_CREAT | O_RDWR, 0600));
    SAME(write(covered, "covered", 7), 7);
    OK(mount("over", at("under"), "tmpfs", 0, "size=64k"));
    int up[2], go[2], status;
    char x;
    OK(pipe(up));
    OK(pipe(go));
    int kid = OK(fork());
    if (!kid) {
        OK(close(go[1]));
        OK(unshare(CLONE_NEWNS));
        SAME(write(up[1], "x", 1), 1);
        SAME(read(go[0], &x, 1), 0);
        holds(covered, "covered");
        _exit(0);
    }
    SAME(read(up[0], &x, 1), 1);
    freeze_here();
    OK(close(go[1]));
    OK(waitpid(kid, &status, 0));
    SAME(status, 0);
    struct stat held, named;
    OK(fstat(moved, &held));
    OK(stat(at("b/two"), &named));
    SAME(held.st_ino, named.st_ino);
    SAME(held.st_nlink, 1);
    holds(moved, "two names");
    CHECK(access(at("a"), F_OK) && errno == ENOENT);
    OK(fstat(top, &held));
    OK(stat(at("b/top"), &named));
    SAME(held.st_ino, named.st_ino);
    holds(top, "deeper");
    OK(umount(at("under")));
    OK(fstat(covered, &held));
    OK(stat(at("under/file"), &named));
    SAME(held.st_ino, named.st_ino);
    holds(covered, "covered");
}
"#)
);

conformance!(
    socket_under_another_mount,
    c(r#"
#include <sys/mount.h>
#include <sys/un.h>
/* The name of a listening socket lies in a directory that something is mounted over by now: uncovered, it leads there. */
int main(void) {
    OK(unshare(CLONE_NEWNS));
    OK(mount(0, "/", 0, MS_REC | MS_PRIVATE, 0));
    OK(mkdir(in_here("m"), 0755));
    OK(mount("m", in_here("m"), "tmpfs", 0, ""));
    OK(mkdir(in_here("m/under"), 0755));
    struct sockaddr_un name = { AF_UNIX, "s" }, got;
    socklen_t length = sizeof got;
    OK(chdir(in_here("m/under")));
    int s = OK(socket(AF_UNIX, SOCK_STREAM, 0));
    OK(bind(s, (void *)&name, sizeof name));
    OK(listen(s, 5));
    OK(chmod("s", 0640));
    OK(chdir(in_here("m")));
    OK(mount("over", "under", "tmpfs", 0, "size=64k"));
    freeze_here();
    struct stat st;
    OK(getsockname(s, (void *)&got, &length));
    CHECK(!strcmp(got.sun_path, "s"));
    CHECK(access("under/s", F_OK) && errno == ENOENT);
    OK(umount("under"));
    OK(chdir("under"));
    OK(lstat("s", &st));
    SAME(st.st_mode, S_IFSOCK | 0640);
    OK(connect(OK(socket(AF_UNIX, SOCK_STREAM, 0)), (void *)&name, sizeof name));
    OK(accept(s, 0, 0));
}
"#)
);

conformance!(
    nodes_under_another_mount,
    c(r#"
#include <sys/mount.h>
#include <sys/sysmacros.h>
/* Fifos, a device and a link in a directory that something is mounted over by now, a fifo that a file is mounted over. */
static char *at(const char *name) {
    static char path[4][PATH_MAX];
    static int next;
    char *out = path[next++ % 4];
    snprintf(out, PATH_MAX, "%.2000s/m/%.1000s", here_dir, name);
    return out;
}
int main(void) {
    OK(unshare(CLONE_NEWNS));
    OK(mount(0, "/", 0, MS_REC | MS_PRIVATE, 0));
    OK(mkdir(in_here("m"), 0755));
    OK(mount("m", in_here("m"), "tmpfs", 0, ""));
    OK(mkdir(at("d"), 0755));
    OK(mkfifo(at("d/fifo"), 0600));
    OK(mkfifo(at("d/calm"), 0600));
    OK(mkfifo(at("over"), 0600));
    OK(symlink("away", at("d/link")));
    int both = OK(open(at("d/fifo"), O_RDWR)), reads = OK(open(at("d/fifo"), O_RDONLY | O_NONBLOCK));
    int calm = OK(open(at("d/calm"), O_RDONLY | O_NONBLOCK)), over = OK(open(at("over"), O_RDWR));
    int link = OK(open(at("d/link"), O_PATH | O_NOFOLLOW)), path = OK(open(at("d/fifo"), O_PATH));
    int device = mknod(at("d/zero"), S_IFCHR | 0600, makedev(1, 5)) ? -1 : OK(open(at("d/zero"), O_RDWR));
    SAME(write(both, "abc", 3), 3);
    SAME(write(over, "de", 2), 2);
    OK(close(OK(open(at("file"), O_CREAT | O_RDWR, 0600))));
    OK(mount(at("file"), at("over"), 0, MS_BIND, 0));
    OK(mount("cover", at("d"), "tmpfs", 0, "size=64k"));
    freeze_here();
    char text[9] = "";
    struct stat held, named;
    CHECK(access(at("d/fifo"), F_OK) && errno == ENOENT);
    SAME(read(reads, text, sizeof text), 3);
    SAME(read(over, text, sizeof text), 2);
    SAME(read(calm, text, sizeof text), 0);
    SAME(readlinkat(link, "", text, sizeof text), 4);
    if (device >= 0) SAME(read(device, text, 2), 2);
    OK(umount(at("d")));
    OK(umount(at("over")));
    int w = OK(open(at("d/calm"), O_WRONLY | O_NONBLOCK));
    SAME(write(w, "f", 1), 1);
    SAME(read(calm, text, sizeof text), 1);
    w = OK(open(at("over"), O_WRONLY | O_NONBLOCK));
    SAME(write(w, "gh", 2), 2);
    SAME(read(over, text, sizeof text), 2);
    OK(fstat(path, &held));
    OK(stat(at("d/fifo"), &named));
    SAME(held.st_ino, named.st_ino);
}
"#)
);

conformance!(
    in_a_queue,
    c(r#"
#include <sys/mount.h>
/* Files of a tree of the program's own, named and not, that only a queue holds. */
int main(void) {
    OK(unshare(CLONE_NEWNS));
    OK(mount(0, "/", 0, MS_REC | MS_PRIVATE, 0));
    OK(mkdir(in_here("m"), 0755));
    OK(mount("m", in_here("m"), "tmpfs", 0, ""));
    OK(chdir(in_here("m")));
    enum { N = 5 };
    const char *texts[N] = { "gone", "named", "nameless", "beneath", "fifo" };
    OK(mkdir("d", 0755));
    OK(mkfifo("fifo", 0600));
    int fds[N] = { OK(open("gone", O_CREAT | O_RDWR, 0600)), OK(open("named", O_CREAT | O_RDWR, 0600)),
                   OK(open(".", O_TMPFILE | O_RDWR, 0600)), OK(open("d/beneath", O_CREAT | O_RDWR, 0600)),
                   OK(open("fifo", O_RDWR)) };
    for (int i = 0; i < N; i++) SAME(write(fds[i], texts[i], strlen(texts[i])), (long)strlen(texts[i]));
    OK(unlink("gone"));
    OK(mount("cover", "d", "tmpfs", 0, "size=64k"));
    int pair[2];
    OK(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair));
    char byte = 'x', control[CMSG_SPACE(sizeof fds)] = { 0 };
    struct iovec data = { &byte, 1 };
    struct msghdr m = { .msg_iov = &data, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control };
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    *c = (struct cmsghdr) { .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof fds) };
    memcpy(CMSG_DATA(c), fds, sizeof fds);
    SAME(sendmsg(pair[0], &m, 0), 1);
    for (int i = 0; i < N; i++) OK(close(fds[i]));
    freeze_here();
    SAME(recvmsg(pair[1], &m, 0), 1);
    memcpy(fds, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof fds);
    OK(umount("d"));
    for (int i = 0; i < N; i++) {
        char got[20] = "";
        struct stat held, named;
        if (i < 4) OK(lseek(fds[i], 0, SEEK_SET));
        SAME(read(fds[i], got, sizeof got), (long)strlen(texts[i]));
        CHECK(!strcmp(got, texts[i]));
        OK(fstat(fds[i], &held));
        SAME(held.st_nlink, i != 0 && i != 2);
        if (!held.st_nlink) continue;
        OK(stat(i == 3 ? "d/beneath" : texts[i], &named));
        SAME(held.st_ino, named.st_ino);
    }
}
"#)
);

conformance!(
    nameless_under_another_mount,
    c(r#"
#include <sys/mount.h>
/* What has no name any more was in a directory that something is mounted over by now: it stays on the file system it was on,
   and what covers it knows nothing of it. So too on a mount that is covered as a whole. */
static dev_t device(const char *path) { struct stat s; OK(stat(path, &s)); return s.st_dev; }
static void holds(int fd, dev_t on, const char *text) {
    char got[20] = "";
    struct stat s;
    OK(fstat(fd, &s));
    SAME(s.st_dev, on);
    SAME(s.st_nlink, 0);
    CHECK(pread(fd, got, sizeof got, 0) >= 0);
    CHECK(!strcmp(got, text));
}
static int nameless(const char *path, const char *text) {
    int fd = OK(open(path, O_CREAT | O_RDWR, 0640));
    SAME(write(fd, text, strlen(text)), strlen(text));
    OK(unlink(path));
    return fd;
}
int main(void) {
    OK(unshare(CLONE_NEWNS));
    OK(mount(0, "/", 0, MS_REC | MS_PRIVATE, 0));
    OK(chdir(here_dir));
    OK(mkdir("m", 0755));
    OK(mkdir("d", 0755));
    OK(mkdir("d/gone", 0755));
    OK(mount("m", "m", "tmpfs", 0, ""));
    OK(mkdir("m/sub", 0755));
    int plain = nameless("d/f", "plain"), deep = nameless("d/gone/f", "deep");
    int top = nameless("m/f", "top"), sub = nameless("m/sub/f", "sub");
    int dir = OK(open("d/gone", O_RDONLY | O_DIRECTORY)), fifo;
    OK(mkfifo("d/fifo", 0600));
    fifo = OK(open("d/fifo", O_RDWR));
    SAME(write(fifo, "in it", 5), 5);
    OK(unlink("d/fifo"));
    OK(rmdir("d/gone"));
    char *mapped = OK(mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, plain, 0));
    /* Some that may be given a name. */
    int fresh = OK(open("d", O_TMPFILE | O_RDWR, 0600));
    struct timespec past[2] = { { 1000, 0 }, { 2000, 0 } };
    OK(utimensat(AT_FDCWD, "d", past, 0));
    OK(mount("over d", "d", "tmpfs", 0, ""));
    OK(mount("over sub", "m/sub", "tmpfs", 0, ""));
    OK(mount("over m", "m", "tmpfs", 0, ""));
    static char shown[6][2][PATH_MAX];
    int all[] = { plain, deep, dir, fifo, top, sub };
    char link[64];
    for (int after = 0; after < 2; after++) {
        for (int i = 0; i < 6; i++) {
            sprintf(link, "/proc/self/fd/%d", all[i]);
            OK(readlink(link, shown[i][after], PATH_MAX - 1));
            if (after && strcmp(shown[i][0], shown[i][1])) DIE("%s is %s", shown[i][0], shown[i][1]);
        }
        if (!after) freeze_here();
    }
    struct stat s;
    dev_t root = device(".");
    holds(plain, root, "plain");
    holds(deep, root, "deep");
    CHECK(!memcmp(mapped, "plain", 5));
    mapped[0] = 'P';
    holds(plain, root, "Plain");
    OK(fstat(dir, &s));
    SAME(s.st_dev, root);
    OK(fstat(fifo, &s));
    SAME(s.st_dev, root);
    char got[8] = "";
    SAME(read(fifo, got, 5), 5);
    CHECK(!strcmp(got, "in it"));
    sprintf(link, "/proc/self/fd/%d", fresh);
    OK(linkat(AT_FDCWD, link, AT_FDCWD, "named", AT_SYMLINK_FOLLOW));
    OK(unlink("named"));
    /* Nothing holds what lies over them. */
    OK(umount("d"));
    OK(stat("d", &s));
    SAME(s.st_mtim.tv_sec, past[1].tv_sec);
    OK(umount("m"));
    holds(top, device("m"), "top");
    OK(umount("m/sub"));
    holds(sub, device("m"), "sub");
    OK(rmdir("d"));
    OK(rmdir("m/sub"));
    close(top);
    close(sub);
    OK(umount("m"));
}
"#)
);
