//! Conformance of devices: null, zero, full, random, urandom; unlinked nodes; the kernel's log, a disk, a latency wish.

use freeze_tests::{c, conformance};

conformance!(
    devices,
    c(r#"
/* Each goes on to be what it was, with its flags. */
int main(void) {
    int null = OK(open("/dev/null", O_RDWR | O_APPEND)), zero = OK(open("/dev/zero", O_RDONLY));
    int full = OK(open("/dev/full", O_WRONLY | O_CLOEXEC)), random = OK(open("/dev/random", O_RDONLY | O_NONBLOCK));
    int urandom = OK(open("/dev/urandom", O_RDONLY));
    int again = OK(dup(zero));
    freeze_here();
    char a[32] = "x", b[32];
    SAME(write(null, a, 9), 9);
    SAME(read(null, a, 9), 0);
    SAME(read(zero, a, 32), 32);
    for (int i = 0; i < 32; i++) SAME(a[i], 0);
    CHECK(write(full, a, 1) == -1 && errno == ENOSPC);
    SAME(read(random, a, 32), 32);
    SAME(read(urandom, b, 32), 32);
    CHECK(memcmp(a, b, 32));
    SAME(fcntl(null, F_GETFL) & (O_ACCMODE | O_APPEND), O_RDWR | O_APPEND);
    SAME(fcntl(full, F_GETFD), FD_CLOEXEC);
    SAME(read(again, b, 1), 1);
}
"#)
);

conformance!(
    unlinked,
    c(r#"
/* A node of one's own that is gone, and a descriptor that only stands for one. */
#include <sys/sysmacros.h>
int main(void) {
    char *path = strdup(in_here("node"));
    OK(mknod(path, S_IFCHR | 0640, makedev(1, 5)));
    int fd = OK(open(path, O_RDWR));
    OK(unlink(path));
    freeze_here();
    char a[4] = "abc";
    SAME(read(fd, a, 4), 4);
    SAME(a[0], 0);
    struct stat s;
    OK(fstat(fd, &s));
    SAME(s.st_rdev, makedev(1, 5));
    SAME(s.st_nlink, 0);
    SAME(s.st_mode, S_IFCHR | 0640);
    CHECK(access(path, F_OK) == -1);
}
"#),
    only: root
);

conformance!(
    others,
    c(r#"
/* What this machine has of them. */
int main(void) {
    int log = OK(open("/dev/kmsg", O_WRONLY)), disk = open("/dev/loop7", O_RDONLY);
    int latency = open("/dev/cpu_dma_latency", O_RDWR), random = open("/dev/hwrng", O_RDONLY);
    int32_t wish = 654321;
    if (latency >= 0) SAME(write(latency, &wish, 4), 4);
    long end = disk >= 0 ? OK(lseek(disk, 0, SEEK_END)) : 0;
    freeze_here();
    SAME(write(log, "<7>freeze was here\n", 19), 19);
    if (disk >= 0) SAME(lseek(disk, 0, SEEK_CUR), end);
    wish = 0;
    if (latency >= 0) SAME(pread(latency, &wish, 4, 0), 4);
    if (latency >= 0) SAME(wish, 654321);
    if (random >= 0) CHECK(fcntl(random, F_GETFD) == 0);
}
"#),
    only: root
);

conformance!(
    log,
    c(r#"
/* A reader of the kernel's log goes on with the record that comes next. */
static long number(int fd) {
    char text[8192];
    int n = OK(read(fd, text, sizeof text - 1));
    text[n] = 0;
    return atol(strchr(text, ',') + 1);
}
int main(void) {
    int fd = OK(open("/dev/kmsg", O_RDONLY | O_NONBLOCK)), end = OK(open("/dev/kmsg", O_RDWR | O_NONBLOCK));
    /* The oldest records make room for others at any time: these are the newest. */
    OK(lseek(fd, 0, SEEK_END));
    for (int i = 0; i < 3; i++) SAME(write(end, "<7>freeze was there\n", 20), 20);
    OK(lseek(end, 0, SEEK_END));
    number(fd);
    long last = number(fd);
    freeze_here();
    SAME(number(fd), last + 1);
    SAME(write(end, "<7>freeze was here\n", 19), 19);
    CHECK(number(end) > last);
    SAME(fcntl(fd, F_GETFL) & O_NONBLOCK, O_NONBLOCK);
}
"#),
    only: root
);
