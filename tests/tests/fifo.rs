//! Conformance of named fifos: contents, both ends, one end alone.

use freeze_tests::{c, conformance};

conformance!(
    fifos,
    c(r#"
/* What was written is read, an end without its other end stays without. */
int main(void) {
    char *path = strdup(in_here("fifo")), *lone = strdup(in_here("lone"));
    umask(0);
    OK(mkfifo(path, 0620));
    OK(mkfifo(lone, 0600));
    int r = OK(open(path, O_RDONLY | O_NONBLOCK)), w = OK(open(path, O_WRONLY));
    OK(fcntl(w, F_SETPIPE_SZ, 8192));
    OK(fcntl(r, F_SETFL, 0));
    SAME(OK(write(w, "inside", 6)), 6);
    int alone = OK(open(lone, O_RDONLY | O_NONBLOCK));
    int child = OK(fork());
    if (!child) {
        close(r);
        while (!gone_ahead()) nap(2);
        SAME(write(w, "child", 5), 5);
        _exit(0);
    }
    freeze_here();
    char buf[100];
    SAME(read(r, buf, 6), 6);
    CHECK(!memcmp(buf, "inside", 6));
    SAME(read(r, buf, 5), 5);
    SAME(fcntl(w, F_GETPIPE_SZ), 8192);
    int status;
    OK(waitpid(child, &status, 0));
    SAME(status, 0);
    close(w);
    SAME(read(r, buf, 1), 0);
    SAME(read(alone, buf, 1), 0);
    struct stat st;
    OK(stat(path, &st));
    SAME(st.st_mode & 0777, 0620);
    int late = OK(open(lone, O_WRONLY));
    SAME(write(late, "x", 1), 1);
    SAME(read(alone, buf, 1), 1);
}
"#)
);
