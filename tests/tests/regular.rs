//! Conformance of regular files: positions, flags, unlinked ones, shared descriptions, locks of every kind.

use freeze_tests::{c, conformance};

conformance!(
    positions,
    c(r#"
/* Positions, append mode, read-only, write-only, with odd names. */
int main(void) {
    char back[64];
    int rw = OK(open(in_here("a name with spaces and \303\266 (deleted)"), O_RDWR | O_CREAT, 0640));
    SAME(write(rw, "0123456789", 10), 10);
    OK(lseek(rw, 4, SEEK_SET));
    int ro = OK(open(in_here("a name with spaces and \303\266 (deleted)"), O_RDONLY | O_CLOEXEC));
    OK(lseek(ro, 8, SEEK_SET));
    int app = OK(open(in_here("log"), O_WRONLY | O_CREAT | O_APPEND | O_NONBLOCK, 0600));
    SAME(write(app, "one\n", 4), 4);
    int past = OK(open(in_here("sparse"), O_RDWR | O_CREAT | O_TRUNC | O_EXCL, 0600));
    OK(lseek(past, 1LL << 40, SEEK_SET));
    int line = OK(open(in_here("new\nline"), O_RDWR | O_CREAT, 0600));
    SAME(write(line, "q", 1), 1);
    freeze_here();
    SAME(read(rw, back, 3), 3);
    CHECK(!memcmp(back, "456", 3));
    SAME(read(ro, back, 9), 2);
    SAME(fcntl(ro, F_GETFD), FD_CLOEXEC);
    CHECK(write(ro, "x", 1) == -1 && errno == EBADF);
    OK(lseek(app, 0, SEEK_SET));
    SAME(write(app, "two\n", 4), 4);
    struct stat st;
    OK(fstat(app, &st));
    SAME(st.st_size, 8);
    SAME(lseek(past, 0, SEEK_CUR), 1LL << 40);
    SAME(lseek(line, 0, SEEK_CUR), 1);
}
"#)
);

conformance!(
    unlinked,
    c(r#"
/* Files without a name keep their contents, holes, mode and times; two descriptions of one are of one file. */
int main(void) {
    char page[4096], back[4096];
    memset(page, 'u', sizeof page);
    int fd = OK(open(in_here("gone"), O_RDWR | O_CREAT, 0604));
    SAME(pwrite(fd, page, 4096, 0), 4096);
    SAME(pwrite(fd, page, 5, 1 << 20), 5);
    OK(ftruncate(fd, (1 << 21) + 3));
    OK(lseek(fd, 100, SEEK_SET));
    int second = OK(open(in_here("gone"), O_RDONLY));
    struct timespec times[2] = { { 1000000000, 5 }, { 1100000000, 7 } };
    OK(futimens(fd, times));
    OK(unlink(in_here("gone")));
    /* A new file under the old name is somebody else's. */
    int other = OK(open(in_here("gone"), O_RDWR | O_CREAT, 0600));
    SAME(write(other, "other", 5), 5);
    close(other);
    freeze_here();
    struct stat st;
    OK(fstat(fd, &st));
    SAME(st.st_size, (1 << 21) + 3);
    SAME(st.st_mode & 07777, 0604);
    SAME(st.st_mtim.tv_sec, 1100000000);
    SAME(st.st_nlink, 0);
    SAME(read(fd, back, 4096), 4096);
    CHECK(!memcmp(back, page, 3996) && !back[3996]);
    SAME(pread(fd, back, 10, 1 << 20), 10);
    CHECK(!memcmp(back, "uuuuu\0\0\0\0\0", 10));
    SAME(pwrite(fd, "new", 3, 0), 3);
    SAME(read(second, back, 3), 3);
    CHECK(!memcmp(back, "new", 3));
    other = OK(open(in_here("gone"), O_RDONLY));
    SAME(read(other, back, 9), 5);
}
"#)
);

conformance!(
    shared_positions,
    c(r#"
/* What was duplicated, in a process or over a fork, moves together; what was opened twice does not. */
int main(void) {
    int a = OK(open(in_here("f"), O_RDWR | O_CREAT, 0600));
    SAME(write(a, "abcdefghij", 10), 10);
    OK(lseek(a, 0, SEEK_SET));
    int b = OK(dup2(a, 100));
    int c = OK(open(in_here("f"), O_RDONLY));
    int pid = OK(fork());
    if (!pid) {
        char x;
        while (!gone_ahead()) nap(2);
        SAME(read(b, &x, 1), 1);
        SAME(x, 'a');
        SAME(read(c, &x, 1), 1);
        SAME(x, 'a');
        _exit(0);
    }
    freeze_here();
    int status;
    OK(waitpid(pid, &status, 0));
    SAME(status, 0);
    SAME(lseek(a, 0, SEEK_CUR), 1);
    OK(lseek(b, 7, SEEK_SET));
    SAME(lseek(a, 0, SEEK_CUR), 7);
    SAME(lseek(c, 0, SEEK_CUR), 1);
}
"#)
);

conformance!(
    locks,
    c(r#"
/* flock, POSIX and OFD locks are held as before, against others and by the same owners. */
static void must_refuse(int fd, int command, struct flock *lock) {
    CHECK(fcntl(fd, command, lock) == -1 && (errno == EAGAIN || errno == EACCES));
}
int main(void) {
    int ex = OK(open(in_here("flock"), O_RDWR | O_CREAT, 0600));
    OK(flock(ex, LOCK_EX));
    int sh = OK(open(in_here("shared"), O_RDONLY | O_CREAT, 0600));
    OK(flock(sh, LOCK_SH));
    int posix = OK(open(in_here("posix"), O_RDWR | O_CREAT, 0600));
    struct flock w = { .l_type = F_WRLCK, .l_start = 10, .l_len = 20 }, r = { .l_type = F_RDLCK, .l_start = 100, .l_len = 0 };
    OK(fcntl(posix, F_SETLK, &w));
    OK(fcntl(posix, F_SETLK, &r));
    int ofd = OK(open(in_here("ofd"), O_RDWR | O_CREAT, 0600));
    struct flock o = { .l_type = F_WRLCK, .l_start = 5, .l_len = 5 };
    OK(fcntl(ofd, F_OFD_SETLK, &o));
    freeze_here();
    int other = OK(open(in_here("flock"), O_RDWR));
    CHECK(flock(other, LOCK_SH | LOCK_NB) == -1 && errno == EWOULDBLOCK);
    OK(flock(ex, LOCK_UN));
    OK(flock(other, LOCK_SH | LOCK_NB));
    other = OK(open(in_here("shared"), O_RDWR));
    OK(flock(other, LOCK_SH | LOCK_NB));
    CHECK(flock(other, LOCK_EX | LOCK_NB) == -1 && errno == EWOULDBLOCK);
    other = OK(open(in_here("ofd"), O_RDWR));
    must_refuse(other, F_OFD_SETLK, &o);
    int pid = OK(fork());
    if (!pid) {
        struct flock ask = { .l_type = F_WRLCK, .l_start = 29, .l_len = 1 };
        must_refuse(posix, F_SETLK, &ask);
        OK(fcntl(posix, F_GETLK, &ask));
        SAME(ask.l_pid, getppid());
        SAME(ask.l_start, 10);
        SAME(ask.l_len, 20);
        struct flock free = { .l_type = F_WRLCK, .l_start = 30, .l_len = 70 };
        OK(fcntl(posix, F_SETLK, &free));
        struct flock end = { .l_type = F_WRLCK, .l_start = 5000, .l_len = 1 };
        must_refuse(posix, F_SETLK, &end);
        end.l_type = F_RDLCK;
        OK(fcntl(posix, F_SETLK, &end));
        /* The OFD lock came over the fork with its description. */
        struct flock mine = { .l_type = F_WRLCK, .l_start = 5, .l_len = 5 };
        OK(fcntl(ofd, F_OFD_SETLK, &mine));
        _exit(0);
    }
    int status;
    OK(waitpid(pid, &status, 0));
    SAME(status, 0);
}
"#)
);
