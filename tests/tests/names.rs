//! Conformance of files whose names are no text: a name may hold any byte but 0 and `/`.

use freeze_tests::{c, conformance};

conformance!(
    no_text,
    c(r#"
#include <sys/un.h>
#include <sys/inotify.h>
#define D "\xff\xfe\n d\xc3("
static void copy(const char *from, const char *to) {
    char buf[65536];
    int a = OK(open(from, O_RDONLY)), b = OK(open(to, O_CREAT | O_WRONLY, 0755));
    for (ssize_t n; (n = OK(read(a, buf, sizeof buf)));) SAME(write(b, buf, n), n);
    close(a);
    close(b);
}
int main(int argc, char **argv) {
    char here[4096], now[4096];
    if (argc == 1) {
        /* The program itself has such a name, and runs where it lies. */
        OK(mkdir(in_here(D), 0755));
        OK(chdir(in_here(D)));
        copy("/proc/self/exe", "\xf0prog");
        execl("./\xf0prog", "\xf0prog", "again", NULL);
        DIE("exec");
    }
    CHECK(getcwd(here, sizeof here));
    int file = OK(open("\x80 file", O_CREAT | O_RDWR, 0600));
    SAME(write(file, "12345", 5), 5);
    int linked = OK(open("\x81", O_CREAT | O_RDWR, 0600));
    SAME(write(linked, "linked", 6), 6);
    OK(link("\x81", "\x82"));
    OK(unlink("\x81"));
    int gone = OK(open("\x83", O_CREAT | O_RDWR, 0600));
    SAME(write(gone, "gone", 4), 4);
    OK(unlink("\x83"));
    int map = OK(open("\x84", O_CREAT | O_RDWR, 0600));
    OK(ftruncate(map, 4096));
    char *at = OK(mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, map, 0));
    close(map);
    strcpy(at, "mapped");
    OK(mkfifo("\x85", 0600));
    int fifo = OK(open("\x85", O_RDWR));
    SAME(write(fifo, "f", 1), 1);
    OK(mkdir("\x86", 0700));
    int dir = OK(open("\x86", O_RDONLY | O_DIRECTORY));
    int path = OK(open("\x85", O_PATH));
    struct sockaddr_un name = { AF_UNIX, "\x87sock" };
    int sock = OK(socket(AF_UNIX, SOCK_DGRAM, 0));
    OK(bind(sock, (void *)&name, sizeof name));
    int watch = OK(inotify_init1(IN_NONBLOCK)), wd = OK(inotify_add_watch(watch, "\x86", IN_CREATE));
    freeze_here();
    char buf[4096];
    CHECK(getcwd(now, sizeof now));
    SAME(strcmp(here, now), 0);
    SAME(pread(file, buf, 9, 0), 5);
    SAME(lseek(file, 0, SEEK_CUR), 5);
    SAME(pread(linked, buf, 9, 0), 6);
    struct stat a, b;
    OK(fstat(linked, &a));
    OK(stat("\x82", &b));
    CHECK(a.st_ino == b.st_ino && a.st_nlink == 1);
    OK(fstat(gone, &a));
    SAME(a.st_nlink, 0);
    SAME(pread(gone, buf, 9, 0), 4);
    SAME(strcmp(at, "mapped"), 0);
    SAME(read(fifo, buf, 9), 1);
    OK(fstat(path, &a));
    OK(stat("\x85", &b));
    SAME(a.st_ino, b.st_ino);
    close(OK(openat(dir, "\x88", O_CREAT | O_WRONLY, 0600)));
    CHECK(read(watch, buf, sizeof buf) > 0 && ((struct inotify_event *)buf)->wd == wd);
    SAME(strcmp(((struct inotify_event *)buf)->name, "\x88"), 0);
    OK(unlinkat(dir, "\x88", 0));
    int other = OK(socket(AF_UNIX, SOCK_DGRAM, 0));
    SAME(sendto(other, "u", 1, 0, (void *)&name, sizeof name), 1);
    SAME(read(sock, buf, 9), 1);
    ssize_t n = OK(readlink("/proc/self/exe", buf, sizeof buf));
    CHECK(n > 5 && !memcmp(buf + n - 5, "\xf0prog", 5));
    return 0;
}
"#)
);
