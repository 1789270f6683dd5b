//! Conformance of namespaces: host names, mounts, pids, users, networks and clocks of a program's own, alone and nested.

use freeze_tests::{c, conformance, python};

conformance!(
    names_and_ipc,
    c(r#"
#include <sys/utsname.h>
int main(void) {
    OK(unshare(CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET));
    OK(sethostname("elsewhere", 9));
    OK(setdomainname("far", 3));
    freeze_here();
    struct utsname u;
    OK(uname(&u));
    CHECK(!strcmp(u.nodename, "elsewhere") && !strcmp(u.domainname, "far"));
}
"#)
);

conformance!(
    mounts,
    c(r#"
/* A tree of its own with a file system in memory: files of every kind, open ones, unlinked ones, a bind of one file. */
#include <sys/mount.h>
static char *at(const char *name) { return in_here(name); }
int main(void) {
    OK(unshare(CLONE_NEWNS));
    OK(mount(0, "/", 0, MS_REC | MS_PRIVATE, 0));
    OK(mkdir(at("m"), 0755));
    OK(mount("mine", at("m"), "tmpfs", MS_NOSUID | MS_NODEV, "mode=750,size=1m"));
    OK(mkdir(at("m/dir"), 0711));
    int fd = OK(open(at("m/dir/file"), O_CREAT | O_RDWR, 0640));
    SAME(write(fd, "contents", 8), 8);
    char *again = strdup(at("m/again"));
    OK(link(at("m/dir/file"), again));
    OK(symlink("dir/file", at("m/soft")));
    OK(mkfifo(at("m/fifo"), 0600));
    int gone = OK(open(at("m/gone"), O_CREAT | O_RDWR, 0600));
    SAME(write(gone, "still", 5), 5);
    OK(unlink(at("m/gone")));
    OK(mkdir(at("m/sub"), 0755));
    OK(mount("other", at("m/sub"), "tmpfs", 0, ""));
    OK(close(OK(open(at("m/sub/deep"), O_CREAT | O_WRONLY, 0600))));
    OK(close(OK(open(at("m/target"), O_CREAT | O_WRONLY, 0600))));
    char *file = strdup(at("m/dir/file"));
    OK(mount(file, at("m/target"), 0, MS_BIND, 0));
    int last = OK(open(at("m/sub/last"), O_CREAT | O_WRONLY, 0600));
    SAME(write(last, "read", 4), 4);
    OK(close(last));
    last = OK(open(at("m/sub/last"), O_RDONLY));
    OK(unlink(at("m/sub/last")));
    OK(mount("other", at("m/sub"), 0, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID, 0));
    OK(chdir(at("m/dir")));
    freeze_here();
    char buf[16] = "";
    SAME(lseek(fd, 0, SEEK_CUR), 8);
    SAME(pread(fd, buf, 8, 0), 8);
    CHECK(!memcmp(buf, "contents", 8));
    SAME(pread(gone, buf, 5, 0), 5);
    CHECK(!memcmp(buf, "still", 5));
    SAME(pread(last, buf, 5, 0), 4);
    CHECK(!memcmp(buf, "read", 4));
    OK(close(last));
    struct stat a, b;
    OK(stat("file", &a));
    OK(stat(at("m/again"), &b));
    CHECK(a.st_ino == b.st_ino && a.st_nlink == 2 && (a.st_mode & 07777) == 0640);
    OK(stat(at("m/target"), &b));
    SAME(a.st_ino, b.st_ino);
    OK(stat(at("m/soft"), &b));
    SAME(a.st_ino, b.st_ino);
    OK(stat(at("m/fifo"), &b));
    CHECK(S_ISFIFO(b.st_mode));
    OK(stat(at("m"), &b));
    SAME(b.st_mode & 07777, 0750);
    OK(stat(at("m/sub/deep"), &b));
    CHECK(open(at("m/sub/new"), O_CREAT | O_WRONLY, 0600) == -1 && errno == EROFS);
    OK(umount(at("m/sub")));
    CHECK(stat(at("m/sub/deep"), &b) == -1);
}
"#)
);

conformance!(
    propagation,
    c(r#"
/* Mounts that spread: peers that show less, one that takes over, one that does both, and a second tree with peers. */
#include <sys/mount.h>
static char *at(const char *name) { return strdup(in_here(name)); }
static int is_mount(const char *name) {
    struct stat a, b;
    OK(stat(in_here(name), &a));
    OK(stat(in_here("m"), &b));
    return a.st_dev != b.st_dev;
}
int main(void) {
    const char *names[] = { "m/d/s", "peer/s", "after/d/s", "both/d/s", "third/d/s" };
    int ask[2], answer[2], changed;
    char byte;
    OK(unshare(CLONE_NEWNS));
    OK(mount(0, "/", 0, MS_REC | MS_PRIVATE, 0));
    const char *dirs[] = { "m", "peer", "after", "both", "third", "apart", "alone" };
    for (unsigned i = 0; i < 7; i++) OK(mkdir(in_here(dirs[i]), 0755));
    OK(mount("mine", at("m"), "tmpfs", 0, ""));
    OK(mount(0, at("m"), 0, MS_SHARED, 0));
    OK(mkdir(in_here("m/d"), 0755));
    OK(mkdir(in_here("m/d/s"), 0755));
    OK(mount(at("m/d"), at("peer"), 0, MS_BIND, 0));
    OK(mount(at("m"), at("after"), 0, MS_BIND, 0));
    OK(mount(0, at("after"), 0, MS_SLAVE, 0));
    OK(mount(at("m"), at("both"), 0, MS_BIND, 0));
    OK(mount(0, at("both"), 0, MS_SLAVE, 0));
    OK(mount(0, at("both"), 0, MS_SHARED, 0));
    OK(mount(at("both"), at("third"), 0, MS_BIND, 0));
    OK(mount(at("m"), at("apart"), 0, MS_BIND, 0));
    OK(mount(0, at("apart"), 0, MS_UNBINDABLE, 0));
    OK(mount("alone", at("alone"), "tmpfs", 0, "")); /* its contents are shown by no other */
    OK(close(OK(open(in_here("alone/file"), O_CREAT | O_WRONLY, 0600))));
    OK(mount(0, at("alone"), 0, MS_UNBINDABLE, 0));
    OK(pipe(ask));
    OK(pipe(answer));
    int kid = OK(fork());
    if (!kid) {
        OK(unshare(CLONE_NEWNS));
        SAME(write(answer[1], "r", 1), 1);
        SAME(read(ask[0], &byte, 1), 1);
        changed = is_mount("m/d/s") + 2 * is_mount("after/d/s");
        /* And the other way: what takes over hands nothing back. */
        OK(umount(in_here("m/d/s")));
        _exit(changed);
    }
    SAME(read(answer[0], &byte, 1), 1);
    freeze_here();
    for (unsigned i = 0; i < 5; i++) CHECK(!is_mount(names[i]));
    CHECK(mount(at("apart"), at("after/d"), 0, MS_BIND, 0) == -1 && errno == EINVAL);
    CHECK(mount(at("alone"), at("after/d"), 0, MS_BIND, 0) == -1 && errno == EINVAL);
    CHECK(!access(in_here("alone/file"), F_OK));
    OK(mount("more", at("peer/s"), "tmpfs", 0, ""));
    for (unsigned i = 0; i < 5; i++) if (!is_mount(names[i])) DIE("not %s", names[i]);
    CHECK(!is_mount("apart/d/s"));
    SAME(write(ask[1], "g", 1), 1);
    OK(waitpid(kid, &changed, 0));
    SAME(WEXITSTATUS(changed), 3);
    for (unsigned i = 0; i < 5; i++) if (is_mount(names[i])) DIE("still %s", names[i]);
    OK(mount("more", at("both/d/s"), "tmpfs", 0, ""));
    CHECK(is_mount("third/d/s") && is_mount("both/d/s"));
    CHECK(!is_mount("m/d/s") && !is_mount("after/d/s") && !is_mount("peer/s"));
}
"#)
);

conformance!(
    stacked,
    c(r#"
/* File systems in memory, one mounted on another, at the same place and above. */
#include <sys/mount.h>
static void put(const char *name, const char *text) {
    int fd = OK(open(in_here(name), O_CREAT | O_WRONLY, 0644));
    SAME(write(fd, text, strlen(text)), strlen(text));
    OK(close(fd));
}
static void has(const char *name, const char *text) {
    char found[16] = "";
    int fd = open(in_here(name), O_RDONLY);
    if (fd < 0) DIE("no %s", name);
    OK(read(fd, found, sizeof found - 1));
    OK(close(fd));
    if (strcmp(found, text)) DIE("%s holds %s", name, found);
}
/* Whoever forks beside the restorer has what that holds until it executes something. */
static void off(const char *name) {
    for (int tries = 0; umount(in_here(name)); tries++) {
        if (errno != EBUSY || tries > 1000) DIE("umount %s", name);
        nap(2);
    }
}
int main(void) {
    OK(unshare(CLONE_NEWNS));
    OK(mount(0, "/", 0, MS_REC | MS_PRIVATE, 0));
    OK(mkdir(in_here("m"), 0755));
    OK(mount("one", in_here("m"), "tmpfs", 0, ""));
    put("m/x", "first");
    OK(mkdir(in_here("m/sub"), 0755));
    OK(mount("below", in_here("m/sub"), "tmpfs", 0, ""));
    put("m/sub/y", "below");
    OK(mkdir(in_here("part"), 0755));
    OK(mkdir(in_here("m/shown"), 0755));
    put("m/shown/z", "part");
    char *shown = strdup(in_here("m/shown"));
    OK(mount(shown, in_here("part"), 0, MS_BIND, 0));
    OK(mkfifo(in_here("m/fifo"), 0600));
    int file = OK(open(in_here("m/x"), O_RDWR)), fifo = OK(open(in_here("m/fifo"), O_RDWR));
    int dir = OK(open(in_here("m"), O_RDONLY | O_DIRECTORY)), gone = OK(open(in_here("m/gone"), O_CREAT | O_RDWR, 0600));
    SAME(write(fifo, "piped", 5), 5);
    SAME(write(gone, "nameless", 8), 8);
    OK(unlink(in_here("m/gone")));
    OK(chdir(in_here("m/sub")));
    OK(mount("two", in_here("m"), "tmpfs", 0, ""));
    put("m/x", "second");
    OK(mount("three", in_here("m"), "tmpfs", 0, ""));
    put("m/x", "third");
    freeze_here();
    char text[16] = "";
    SAME(pread(file, text, 16, 0), 5);
    CHECK(!memcmp(text, "first", 5));
    SAME(read(fifo, text, 16), 5);
    CHECK(!memcmp(text, "piped", 5));
    SAME(pread(gone, text, 16, 0), 8);
    CHECK(!memcmp(text, "nameless", 8));
    SAME(pwrite(file, "F", 1, 0), 1);
    SAME(read(OK(openat(dir, "x", O_RDONLY)), text, 16), 5);
    CHECK(!memcmp(text, "First", 5));
    CHECK(access("y", F_OK) == 0);
    OK(chdir("/"));
    SAME(pwrite(file, "f", 1, 0), 1);
    has("m/x", "third");
    has("part/z", "part");
    off("m");
    has("m/x", "second");
    off("m");
    has("m/x", "first");
    has("m/sub/y", "below");
    off("m/sub");
    CHECK(access(in_here("m/sub/y"), F_OK) == -1);
    has("m/shown/z", "part");
    put("part/more", "one");
    has("m/shown/more", "one");
}
"#)
);

conformance!(
    removed_roots,
    c(r#"
/* Directories that are mounted elsewhere, and were removed where they lay: on a disk, and in memory. */
#include <sys/mount.h>
int main(void) {
    struct stat before[2], after;
    const char *at[] = { "shown", "m/shown" }, *from[] = { "dir", "m/dir" };
    OK(unshare(CLONE_NEWNS));
    OK(mount(0, "/", 0, MS_REC | MS_PRIVATE, 0));
    OK(mkdir(in_here("m"), 0755));
    OK(mount("memory", in_here("m"), "tmpfs", 0, ""));
    for (int i = 0; i < 2; i++) {
        char *source = strdup(in_here(from[i]));
        OK(mkdir(source, 0751));
        OK(mkdir(in_here(at[i]), 0755));
        OK(mount(source, in_here(at[i]), 0, MS_BIND, 0));
        OK(rmdir(source));
        OK(stat(in_here(at[i]), &before[i]));
        SAME(before[i].st_mode & 07777, 0751);
    }
    freeze_here();
    for (int i = 0; i < 2; i++) {
        OK(stat(in_here(at[i]), &after));
        CHECK(after.st_mode == before[i].st_mode && after.st_uid == before[i].st_uid);
        CHECK(access(in_here(from[i]), F_OK) == -1 && errno == ENOENT);
        char inside[200];
        snprintf(inside, sizeof inside, "%s/x", in_here(at[i]));
        CHECK(mkdir(inside, 0700) == -1 && errno == ENOENT);
        OK(umount2(in_here(at[i]), MNT_DETACH));
        OK(stat(in_here(at[i]), &after));
        SAME(after.st_mode & 07777, 0755);
    }
}
"#)
);

conformance!(
    kernel_mounts,
    c(r#"
/* File systems of the kernel's own, in a tree of its own, with a file open in each. */
#include <sys/mount.h>
int main(void) {
    struct { const char *kind, *file; int fd; } all[] = {
        { "sysfs", "kernel/ostype", -1 }, { "debugfs", "", -1 }, { "tracefs", "trace_clock", -1 }, { "bpf", "", -1 },
        { "hugetlbfs", "", -1 }, { "cgroup2", "cgroup.controllers", -1 }, { "binfmt_misc", "status", -1 },
        { "devtmpfs", "null", -1 }, { "securityfs", "", -1 }, { "mqueue", "", -1 },
    };
    unsigned n = sizeof all / sizeof *all, made = 0;
    char path[300], text[4096], *info = calloc(1, 1 << 20);
    OK(unshare(CLONE_NEWNS));
    OK(mount(0, "/", 0, MS_REC | MS_PRIVATE, 0));
    for (unsigned i = 0; i < n; i++) {
        OK(mkdir(in_here(all[i].kind), 0755));
        /* Not every kernel has every one of them. */
        if (mount(all[i].kind, in_here(all[i].kind), all[i].kind, 0, "")) { all[i].kind = 0; continue; }
        snprintf(path, sizeof path, "%s/%s", in_here(all[i].kind), all[i].file);
        all[i].fd = open(path, O_RDONLY);
        made++;
    }
    CHECK(made > 3);
    freeze_here();
    int mounts = OK(open("/proc/self/mountinfo", O_RDONLY));
    for (int got, at = 0; (got = OK(read(mounts, info + at, (1 << 20) - 1 - at))) > 0; at += got) {}
    for (unsigned i = 0; i < n; i++) {
        if (!all[i].kind) continue;
        snprintf(path, sizeof path, " %s ", in_here(all[i].kind));
        if (!strstr(info, path)) DIE("no %s", all[i].kind);
        if (all[i].fd >= 0 && all[i].file[0] && strcmp(all[i].file, "null")) OK(read(all[i].fd, text, sizeof text));
        OK(umount2(in_here(all[i].kind), MNT_DETACH));
    }
}
"#),
    only: root
);

conformance!(
    overlay,
    c(r#"
/* A union of directories: files of either part, changed, new ones, and one of the lower part whose name is gone. */
#include <sys/mount.h>
static int put(const char *name, const char *text) {
    int fd = OK(open(in_here(name), O_CREAT | O_RDWR, 0644));
    SAME(write(fd, text, strlen(text)), strlen(text));
    return fd;
}
int main(void) {
    char options[1000], text[16] = "";
    OK(unshare(CLONE_NEWNS));
    OK(mount(0, "/", 0, MS_REC | MS_PRIVATE, 0));
    OK(mkdir(in_here("lower"), 0755));
    OK(mkdir(in_here("over"), 0755));
    OK(mkdir(in_here("u"), 0755));
    close(put("lower/changed", "low"));
    close(put("lower/gone", "lost?"));
    OK(mount("upper", in_here("u"), "tmpfs", 0, ""));
    OK(mkdir(in_here("u/up"), 0755));
    OK(mkdir(in_here("u/work"), 0755));
    snprintf(options, sizeof options, "lowerdir=%s,upperdir=%s,workdir=%s", strdup(in_here("lower")), strdup(in_here("u/up")), strdup(in_here("u/work")));
    OK(mount("union", in_here("over"), "overlay", 0, options));
    int changed = put("over/changed", "HI"), gone = OK(open(in_here("over/gone"), O_RDONLY)), fresh = put("over/fresh", "new");
    OK(unlink(in_here("over/gone")));
    freeze_here();
    SAME(pread(gone, text, 16, 0), 5);
    CHECK(!memcmp(text, "lost?", 5));
    CHECK(access(in_here("over/gone"), F_OK) == -1 && errno == ENOENT);
    SAME(write(changed, "!", 1), 1);
    SAME(write(fresh, "er", 2), 2);
    SAME(pread(OK(open(in_here("over/changed"), O_RDONLY)), text, 16, 0), 3);
    CHECK(!memcmp(text, "HI!", 3));
    SAME(pread(OK(open(in_here("over/fresh"), O_RDONLY)), text, 16, 0), 5);
    CHECK(!memcmp(text, "newer", 5));
    struct stat low;
    OK(stat(in_here("lower/changed"), &low));
    SAME(low.st_size, 3);
}
"#),
    only: root
);

conformance!(
    volatile_overlay,
    c(r#"
/* One that forgoes writing to the disk, which by itself can be mounted only once. */
#include <sys/mount.h>
int main(void) {
    char options[1000], text[9] = "";
    OK(unshare(CLONE_NEWNS));
    OK(mount(0, "/", 0, MS_REC | MS_PRIVATE, 0));
    const char *dirs[] = { "low", "over", "u" };
    for (int i = 0; i < 3; i++) OK(mkdir(in_here(dirs[i]), 0755));
    OK(mount("upper", in_here("u"), "tmpfs", 0, ""));
    OK(mkdir(in_here("u/up"), 0755));
    OK(mkdir(in_here("u/work"), 0755));
    snprintf(options, sizeof options, "volatile,lowerdir=%s,upperdir=%s,workdir=%s", strdup(in_here("low")), strdup(in_here("u/up")), strdup(in_here("u/work")));
    if (mount("union", in_here("over"), "overlay", 0, options)) WITHOUT("no overlay can be mounted");
    int fd = OK(open(in_here("over/f"), O_CREAT | O_RDWR, 0644));
    SAME(write(fd, "written", 7), 7);
    freeze_here();
    SAME(pread(OK(open(in_here("over/f"), O_RDONLY)), text, 9, 0), 7);
    CHECK(!memcmp(text, "written", 7));
    return 0;
}
"#),
    only: root
);

conformance!(
    odd_names,
    c(r#"
/* Mounts at names with blanks, line feeds, backslashes, and bytes that are no text; so are the files in them. */
#include <sys/mount.h>
int main(void) {
    static const char *const names[] = { "a b", "line\nfeed", "back\\slash", "tab\there", "no\377text", "1#,x=2:3" };
    char text[9], inside[64];
    OK(unshare(CLONE_NEWNS));
    OK(mount(0, "/", 0, MS_REC | MS_PRIVATE, 0));
    for (int i = 0; i < 6; i++) {
        OK(mkdir(in_here(names[i]), 0755));
        OK(mount("some, source #", in_here(names[i]), "tmpfs", 0, ""));
        snprintf(inside, sizeof inside, "%s/%s", names[i], names[5 - i]);
        int fd = OK(open(in_here(inside), O_CREAT | O_RDWR, 0644));
        SAME(write(fd, names[i], strlen(names[i])), strlen(names[i]));
        OK(close(fd));
    }
    freeze_here();
    for (int i = 0; i < 6; i++) {
        snprintf(inside, sizeof inside, "%s/%s", names[i], names[5 - i]);
        int fd = OK(open(in_here(inside), O_RDONLY));
        SAME(read(fd, text, 3), 3);
        CHECK(!memcmp(text, names[i], 3));
        OK(close(fd));
        OK(umount(in_here(names[i])));
    }
    return 0;
}
"#)
);

conformance!(
    limits,
    c(r#"
/* Limits of a user namespace, and of a pid namespace in it where the kernel has them. */
static long value(const char *path) {
    char text[32] = "";
    int fd = OK(open(path, O_RDONLY));
    OK(read(fd, text, 31));
    OK(close(fd));
    return atol(text);
}
static int set(const char *path, const char *text) {
    int fd = open(path, O_WRONLY);
    if (fd < 0) return -1;
    int done = write(fd, text, strlen(text));
    OK(close(fd));
    return done;
}
int main(void) {
    OK(unshare(CLONE_NEWUSER));
    SAME(set("/proc/sys/user/max_inotify_watches", "999"), 3);
    SAME(set("/proc/sys/user/max_mnt_namespaces", "0"), 1);
    freeze_here();
    SAME(value("/proc/sys/user/max_inotify_watches"), 999);
    SAME(value("/proc/sys/user/max_mnt_namespaces"), 0);
    CHECK(unshare(CLONE_NEWNS) == -1 && errno == ENOSPC);
    return 0;
}
"#)
);

conformance!(
    file_flags,
    c(r#"
/* Files in memory that are immutable, or only to be appended to, and are open all the same. */
#include <linux/fs.h>
#include <sys/mount.h>
static int flag(const char *name, int flags) {
    int fd = OK(open(in_here(name), O_RDONLY)), done = ioctl(fd, FS_IOC_SETFLAGS, &flags);
    OK(close(fd));
    return done;
}
int main(void) {
    OK(unshare(CLONE_NEWNS));
    OK(mount(0, "/", 0, MS_REC | MS_PRIVATE, 0));
    OK(mkdir(in_here("m"), 0755));
    OK(mount("some", in_here("m"), "tmpfs", 0, ""));
    OK(mkdir(in_here("m/dir"), 0755));
    int fixed = OK(open(in_here("m/fixed"), O_CREAT | O_RDWR, 0600)), log = OK(open(in_here("m/log"), O_CREAT | O_RDWR | O_APPEND, 0600));
    OK(close(OK(open(in_here("m/dir/in"), O_CREAT | O_RDWR, 0600))));
    int has = !flag("m/fixed", FS_IMMUTABLE_FL) && !flag("m/log", FS_APPEND_FL) && !flag("m/dir", FS_IMMUTABLE_FL);
    if (!has) WITHOUT("no flags on files in memory (chattr)");
    freeze_here();
    SAME(write(fixed, "x", 1), 1);
    CHECK(open(in_here("m/fixed"), O_WRONLY) == -1 && errno == EPERM);
    SAME(write(log, "x", 1), 1);
    CHECK(open(in_here("m/log"), O_WRONLY) == -1 && errno == EPERM);
    CHECK(unlink(in_here("m/dir/in")) == -1 && errno == EPERM);
    OK(flag("m/fixed", 0)); OK(flag("m/log", 0)); OK(flag("m/dir", 0));
    OK(unlink(in_here("m/dir/in")));
    return 0;
}
"#)
);

conformance!(
    loop_device,
    c(r#"
/* A file system in a file, whose loop device goes with its only mount; the node of it is nowhere in the tree. */
#include <linux/loop.h>
#include <sys/mount.h>
int main(void) {
    char command[PATH_MAX + 64], path[64], text[9] = "";
    snprintf(command, sizeof command, "truncate -s 8M '%s/disk' && mkfs.ext4 -q '%s/disk' 2>/dev/null", here_dir, here_dir);
    int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
    if (control < 0 || system(command)) WITHOUT("no loop devices, or no mkfs.ext4");
    OK(unshare(CLONE_NEWNS));
    OK(mount(0, "/", 0, MS_REC | MS_PRIVATE, 0));
    OK(mkdir(in_here("m"), 0755));
    int file = OK(open(in_here("disk"), O_RDWR | O_CLOEXEC)), device, done;
    do {
        sprintf(path, "/dev/loop%d", OK(ioctl(control, LOOP_CTL_GET_FREE)));
        device = OK(open(path, O_RDWR | O_CLOEXEC));
        struct loop_config config = { .fd = file, .info = { .lo_flags = LO_FLAGS_AUTOCLEAR } };
        done = ioctl(device, LOOP_CONFIGURE, &config);
        if (!done) OK(mount(path, in_here("m"), "ext4", MS_NOATIME, "errors=remount-ro"));
        OK(close(device));
    } while (done);
    OK(close(control));
    OK(close(file));
    OK(mkdir(in_here("m/dir"), 0755));
    OK(mkdir(in_here("part"), 0755));
    OK(mount(strdup(in_here("m/dir")), strdup(in_here("part")), 0, MS_BIND, 0));
    int fd = OK(open(in_here("part/f"), O_CREAT | O_RDWR, 0600)), gone = OK(open(in_here("m/gone"), O_CREAT | O_RDWR, 0600));
    SAME(write(fd, "on disk", 7), 7);
    SAME(write(gone, "still", 5), 5);
    OK(unlink(in_here("m/gone")));
    OK(mount("none", "/dev", "tmpfs", 0, ""));
    freeze_here();
    SAME(pread(fd, text, 9, 0), 7);
    CHECK(!memcmp(text, "on disk", 7));
    SAME(pread(gone, text, 9, 0), 5);
    CHECK(!memcmp(text, "still", 5));
    OK(access(in_here("m/dir/f"), F_OK));
    OK(close(fd));
    OK(close(gone));
    OK(umount(in_here("part")));
    OK(umount(in_here("m")));
    return 0;
}
"#),
    only: host
);

conformance!(
    container,
    c(r#"
/* What a simple container is: pids, mounts, network and names of its own, and a root in memory with its own /proc. */
#include <sys/mount.h>
#include <sys/sysmacros.h>
static volatile int *word;
static void inside(void) {
    OK(mount(0, "/", 0, MS_REC | MS_PRIVATE, 0));
    OK(mount("root", "/mnt", "tmpfs", 0, "mode=755"));
    OK(mkdir("/mnt/old", 0700));
    OK(mkdir("/mnt/proc", 0755));
    OK(mkdir("/mnt/dev", 0755));
    OK(mkdir("/mnt/tmp", 01777));
    OK(chdir("/mnt"));
    OK(syscall(SYS_pivot_root, ".", "old"));
    OK(chdir("/"));
    OK(mount("proc", "/proc", "proc", 0, 0));
    OK(mount("dev", "/dev", "tmpfs", 0, "mode=755"));
    OK(mkdir("/dev/pts", 0755));
    OK(mount("devpts", "/dev/pts", "devpts", 0, "newinstance,ptmxmode=0666"));
    OK(mknod("/dev/null", S_IFCHR | 0666, makedev(1, 3)));
    OK(umount2("/old", MNT_DETACH));
    OK(rmdir("/old"));
    OK(sethostname("box", 3));
    int null = OK(open("/dev/null", O_RDWR)), file = OK(open("/tmp/x", O_CREAT | O_RDWR, 0600));
    int self = OK(open("/proc/self/status", O_RDONLY));
    int kid = OK(fork());
    if (!kid) {
        SAME(getppid(), 1);
        OK(setsid());
        *word = 1;
        while (*word != 2) nap(1);
        _exit(getppid() == 1 && getsid(0) == getpid() ? 7 : 8);
    }
    SAME(kid, 2);
    while (*word != 1) nap(1);
    *word = 10;
    while (*word != 11) nap(1);
    SAME(getpid(), 1);
    char name[64], line[64] = "";
    OK(gethostname(name, sizeof name));
    CHECK(!strcmp(name, "box"));
    SAME(readlink("/proc/self", name, sizeof name), 1);
    SAME(name[0], '1');
    SAME(write(file, "abc", 3), 3);
    SAME(write(null, "abc", 3), 3);
    CHECK(pread(self, line, 20, 0) > 0);
    CHECK(access("/etc", F_OK) == -1);
    OK(access("/proc/2/stat", F_OK));
    int status;
    *word = 2;
    SAME(OK(waitpid(2, &status, 0)), 2);
    SAME(WEXITSTATUS(status), 7);
    _exit(5);
}
int main(void) {
    word = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int flags = CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET;
    int pid = OK(syscall(SYS_clone, flags | SIGCHLD, 0, 0, 0, 0)), status;
    if (!pid) inside();
    while (*word != 10) {
        nap(1);
        if (waitpid(pid, &status, WNOHANG) == pid) DIE("the container ended with %x", status);
    }
    freeze_here();
    *word = 11;
    OK(waitpid(pid, &status, 0));
    CHECK(WIFEXITED(status));
    SAME(WEXITSTATUS(status), 5);
}
"#),
    only: root
);

conformance!(
    users,
    c(r#"
/* Root in a user namespace of its own, and what it owns there; a thread. Its ids are its own as well: those of the machine
   would have to be turned back for the thread, into those that other tests want back. */
static void put(const char *path, const char *text) {
    int fd = OK(open(path, O_WRONLY));
    SAME(write(fd, text, strlen(text)), (long)strlen(text));
    close(fd);
}
static void *other(void *p) { (void)p; while (!gone_ahead()) nap(2); return (void *)(long)getuid(); }
int main(void) {
    OK(unshare(CLONE_NEWUSER));
    put("/proc/self/setgroups", "deny");
    put("/proc/self/uid_map", "7 0 1\n");
    put("/proc/self/gid_map", "8 0 1\n");
    OK(unshare(CLONE_NEWUTS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWPID));
    OK(sethostname("mine", 4));
    int init = OK(fork()), status;
    if (init) {
        SAME(waitpid(init, &status, 0), init);
        SAME(status, 0);
        return 0;
    }
    pthread_t t;
    SAME(pthread_create(&t, 0, other, 0), 0);
    freeze_here();
    void *uid;
    SAME(pthread_join(t, &uid), 0);
    SAME((long)uid, 7);
    SAME(getuid(), 7);
    SAME(getegid(), 8);
    OK(sethostname("still", 5));
    CHECK(setgroups(0, 0) == -1);
    int fd = OK(open("/proc/self/uid_map", O_RDONLY));
    char map[64] = "";
    CHECK(read(fd, map, 63) > 0);
    unsigned a, b, c;
    SAME(sscanf(map, "%u %u %u", &a, &b, &c), 3);
    CHECK(a == 7 && b == 0 && c == 1);
}
"#)
);

// Parts of a file system in memory that is mounted nowhere as a whole are parts of one, with what is in them and no more.
conformance!(
    parts_of_a_file_system,
    c(r#"
#include <sys/mount.h>
/* What of a file system each mount of the subject's shows. */
static void shown(char *out) {
    char line[4096];
    FILE *f = fopen("/proc/self/mountinfo", "r");
    CHECK(f);
    *out = 0;
    while (fgets(line, sizeof line, f)) {
        char root[1024], at[1024];
        if (sscanf(line, "%*d %*d %*s %1000s %1000s", root, at) == 2 && strstr(at, here_dir)) {
            strcat(out, root); strcat(out, " "); strcat(out, at); strcat(out, "\n");
        }
    }
    fclose(f);
}
int main(void) {
    static char before[65536], after[65536], got[9];
    OK(unshare(CLONE_NEWNS));
    OK(mount(0, "/", 0, MS_PRIVATE | MS_REC, 0));
    OK(mkdir(in_here("whole"), 0755)); OK(mkdir(in_here("part"), 0755)); OK(mkdir(in_here("inner"), 0755));
    char whole[PATH_MAX], part[PATH_MAX];
    strcpy(whole, in_here("whole")); strcpy(part, in_here("part"));
    OK(mount("some", whole, "tmpfs", 0, "size=1m"));
    OK(mkdir(in_here("whole/a"), 0755)); OK(mkdir(in_here("whole/a/b"), 0710)); OK(mkdir(in_here("whole/a/b/c"), 0700));
    OK(mount(strdup(in_here("whole/a/b")), part, 0, MS_BIND, 0));
    OK(mount(strdup(in_here("part/c")), strdup(in_here("inner")), 0, MS_BIND, 0));
    OK(umount2(whole, MNT_DETACH));
    int open_one = OK(open(in_here("inner/f"), O_RDWR | O_CREAT, 0600)), gone = OK(open(in_here("part/g"), O_RDWR | O_CREAT, 0600));
    SAME(write(open_one, "deep", 4), 4);
    SAME(write(gone, "gone", 4), 4);
    OK(unlink(in_here("part/g")));
    shown(before);
    CHECK(*before);
    freeze_here();
    shown(after);
    CHECK(!strcmp(before, after));
    SAME(pread(open_one, got, 9, 0), 4); CHECK(!memcmp(got, "deep", 4));
    SAME(pread(gone, got, 9, 0), 4); CHECK(!memcmp(got, "gone", 4));
    /* They are parts of one. */
    OK(close(OK(open(in_here("part/c/new"), O_WRONLY | O_CREAT, 0600))));
    OK(access(in_here("inner/new"), F_OK));
    struct stat s;
    OK(stat(part, &s));
    SAME(s.st_mode & 07777, 0710);
    OK(umount2(in_here("inner"), MNT_DETACH));
    OK(umount2(part, MNT_DETACH));
    return 0;
}
"#)
);

conformance!(
    huge_files,
    c(r#"
#include <sys/mount.h>
/* Files of a hugetlbfs of the program's own: open, and only there. */
int main(void) {
    size_t huge = 2 << 20;
    char *shared = MAP_FAILED, back[8];
    OK(unshare(CLONE_NEWNS));
    OK(mount(0, "/", 0, MS_REC | MS_PRIVATE, 0));
    OK(chdir(here_dir));
    OK(mkdir("h", 0755));
    if (!mount("h", "h", "hugetlbfs", 0, "pagesize=2M")) {
        int f = OK(open("h/shared", O_RDWR | O_CREAT, 0640));
        OK(ftruncate(f, 3 * huge));
        shared = mmap(0, 3 * huge, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, f, 0);
    }
    if (shared == MAP_FAILED) {
        /* None may be mounted in a user namespace, and a machine need not have any. */
        WITHOUT("no huge pages to be had");
    }
    int f = OK(open("h/shared", O_RDWR)), g = OK(open("h/kept", O_RDWR | O_CREAT, 0600));
    OK(ftruncate(g, huge));
    char *kept = OK(mmap(0, huge, PROT_READ | PROT_WRITE, MAP_SHARED, g, 0));
    strcpy(shared + 5, "first");
    strcpy(shared + 2 * huge, "third");
    strcpy(kept, "kept");
    OK(munmap(kept, huge));
    OK(munmap(shared, 3 * huge));
    close(g);
    freeze_here();
    struct stat st;
    OK(fstat(f, &st));
    SAME(st.st_size, 3 * huge);
    SAME(st.st_mode & 0777, 0640);
    SAME(st.st_blocks * 512, 2 * huge);
    shared = OK(mmap(0, 3 * huge, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, f, 0));
    CHECK(!strcmp(shared + 5, "first") && !strcmp(shared + 2 * huge, "third"));
    g = OK(open("h/kept", O_RDONLY));
    SAME(read(g, back, 5), 5);
    CHECK(!strcmp(back, "kept"));
}
"#)
);

conformance!(
    settings_of_ipc,
    python(
        r#"
# What /proc/sys says of an IPC namespace, as far as it can be set in it.
import ctypes
assert ctypes.CDLL(None).unshare(0x08000000) == 0
SETTINGS = {"fs/mqueue/msg_default": 7, "fs/mqueue/msgsize_default": 4000, "fs/mqueue/msg_max": 9, "fs/mqueue/msgsize_max": 5000,
            "fs/mqueue/queues_max": 77, "kernel/msgmax": 4000, "kernel/msgmnb": 9999, "kernel/msgmni": 333, "kernel/shmmni": 222,
            "kernel/shmall": 100000, "kernel/shmmax": 1 << 30, "kernel/sem": "100 2000 30 40", "kernel/shm_rmid_forced": 1}
def read(name):
    try:
        return open("/proc/sys/" + name).read().split()
    except FileNotFoundError:
        return None
if not os.path.isdir("/proc/sys/fs/mqueue"):
    SETTINGS = {}
for name, value in SETTINGS.items():
    try:
        open("/proc/sys/" + name, "w").write(str(value))
    except OSError:
        pass
before = {name: read(name) for name in SETTINGS}
freeze_here()
assert {name: read(name) for name in SETTINGS} == before
"#
    )
);
