//! Conformance of pipes: contents, size, modes, ends across processes.

use freeze_tests::{c, conformance};

conformance!(
    contents,
    c(r#"
/* What lies in a pipe stays in it, byte for byte; empty, partly filled, resized and full ones. */
static char big[1 << 20], back[1 << 20];
int main(void) {
    int empty[2], some[2], full[2], sized[2];
    OK(pipe(empty)); OK(pipe(some)); OK(pipe(full)); OK(pipe2(sized, O_NONBLOCK | O_CLOEXEC));
    for (unsigned i = 0; i < sizeof big; i++) big[i] = i * 7 + i / 4096;
    SAME(write(some[1], "hello", 5), 5);
    SAME(write(some[1], "world", 5), 5);
    SAME(read(some[0], back, 3), 3);
    OK(fcntl(full[1], F_SETFL, O_NONBLOCK));
    int held = OK(write(full[1], big, sizeof big));
    SAME(held, 65536);
    OK(fcntl(sized[0], F_SETPIPE_SZ, 1 << 18));
    SAME(write(sized[1], big, 200001), 200001);
    freeze_here();
    struct pollfd p = { empty[0], POLLIN };
    SAME(poll(&p, 1, 0), 0);
    SAME(write(empty[1], "x", 1), 1);
    SAME(read(empty[0], back, 9), 1);
    SAME(read(some[0], back, 100), 7);
    CHECK(!memcmp(back, "loworld", 7));
    CHECK(write(full[1], "x", 1) == -1 && errno == EAGAIN);
    for (int n = 0; n < held;) n += OK(read(full[0], back + n, held - n));
    CHECK(!memcmp(back, big, held));
    SAME(fcntl(sized[1], F_GETPIPE_SZ), 1 << 18);
    SAME(fcntl(sized[0], F_GETFL) & O_NONBLOCK, O_NONBLOCK);
    SAME(fcntl(sized[0], F_GETFD), FD_CLOEXEC);
    int n = 0;
    for (int r; (r = read(sized[0], back + n, sizeof back - n)) > 0;) n += r;
    SAME(n, 200001);
    CHECK(!memcmp(back, big, n));
}
"#)
);

conformance!(
    packets,
    c(r#"
/* In packet mode every read gives one packet, whatever its length. */
int main(void) {
    int p[2];
    char back[8192];
    OK(pipe2(p, O_DIRECT));
    SAME(write(p[1], "one", 3), 3);
    SAME(write(p[1], "three", 5), 5);
    memset(back, 'p', 4096);
    SAME(write(p[1], back, 4096), 4096);
    SAME(write(p[1], "x", 1), 1);
    freeze_here();
    SAME(read(p[0], back, sizeof back), 3);
    SAME(read(p[0], back, 2), 2); /* the rest of the packet is lost */
    SAME(read(p[0], back, sizeof back), 4096);
    SAME(read(p[0], back, sizeof back), 1);
    SAME(fcntl(p[1], F_GETFL) & O_DIRECT, O_DIRECT);
}
"#)
);

conformance!(
    across_a_fork,
    c(r#"
/* Two processes talk both ways; ends that are closed are closed: end of file and EPIPE come as they should. */
int main(void) {
    int down[2], up[2], orphan[2], deaf[2];
    char back[100];
    OK(pipe(down)); OK(pipe(up)); OK(pipe(orphan)); OK(pipe(deaf));
    int pid = OK(fork());
    if (!pid) {
        close(down[1]); close(up[0]); close(orphan[1]); close(deaf[0]);
        while (read(down[0], back, 1) == 1) SAME(write(up[1], back, 1), 1);
        _exit(7);
    }
    close(down[0]); close(up[1]); close(orphan[0]); close(deaf[1]);
    SAME(write(down[1], "a", 1), 1);
    SAME(read(up[0], back, 1), 1);
    int lonely[2], spilt[2];
    OK(pipe(lonely)); OK(pipe(spilt));
    SAME(write(lonely[1], "last words", 10), 10);
    close(lonely[1]);
    close(spilt[0]);
    signal(SIGPIPE, SIG_IGN);
    freeze_here();
    SAME(read(lonely[0], back, 100), 10);
    SAME(read(lonely[0], back, 100), 0);
    CHECK(write(spilt[1], "x", 1) == -1 && errno == EPIPE);
    for (int i = 0; i < 50; i++) {
        char c = 'A' + i % 26;
        SAME(write(down[1], &c, 1), 1);
        SAME(read(up[0], back, 1), 1);
        SAME(back[0], c);
    }
    close(down[1]);
    SAME(read(up[0], back, 1), 0);
    int status;
    OK(waitpid(pid, &status, 0));
    SAME(WEXITSTATUS(status), 7);
}
"#)
);

conformance!(
    shared_ends,
    c(r#"
/* A duplicate is the same description, another open of the same pipe is not. */
int main(void) {
    int p[2];
    char back[8], path[64];
    OK(pipe(p));
    int dup1 = OK(dup(p[0]));
    snprintf(path, sizeof path, "/proc/self/fd/%d", p[0]);
    int other = OK(open(path, O_RDONLY | O_NONBLOCK));
    SAME(write(p[1], "xyz", 3), 3);
    freeze_here();
    OK(fcntl(dup1, F_SETFL, O_NONBLOCK));
    SAME(fcntl(p[0], F_GETFL) & O_NONBLOCK, O_NONBLOCK);
    OK(fcntl(dup1, F_SETFL, 0));
    SAME(fcntl(other, F_GETFL) & O_NONBLOCK, O_NONBLOCK);
    SAME(read(other, back, 1), 1);
    SAME(read(dup1, back, 1), 1);
    SAME(back[0], 'y');
    SAME(read(p[0], back, 1), 1);
    CHECK(read(other, back, 1) == -1 && errno == EAGAIN);
}
"#)
);

conformance!(
    changed_modes,
    c(r#"
/* Packets that were written before the mode was left are still packets, and what was written before it was entered is none. */
int main(void) {
    int packets[2], stream[2], one[2], bytes[2];
    char back[16];
    OK(pipe2(packets, O_DIRECT)); OK(pipe2(one, O_DIRECT)); OK(pipe(stream)); OK(pipe2(bytes, O_DIRECT));
    for (int i = 1; i < 4; i++) SAME(write(bytes[1], "abc", i), i);
    OK(fcntl(bytes[0], F_SETFL, 0)); OK(fcntl(bytes[1], F_SETFL, 0));
    SAME(write(packets[1], "aaa", 3), 3);
    SAME(write(packets[1], "bb", 2), 2);
    SAME(write(one[1], "aaa", 3), 3);
    SAME(write(stream[1], "stream", 6), 6);
    OK(fcntl(packets[1], F_SETFL, 0)); OK(fcntl(one[1], F_SETFL, 0)); OK(fcntl(stream[1], F_SETFL, O_DIRECT));
    freeze_here();
    SAME(read(packets[0], back, 2), 2);
    SAME(read(packets[0], back, 16), 2);
    SAME(back[0], 'b');
    for (int i = 1; i < 4; i++) SAME(read(bytes[0], back, 16), i);
    SAME(read(one[0], back, 2), 2);
    SAME(write(one[1], "zz", 2), 2);
    SAME(read(one[0], back, 16), 2);
    SAME(back[0], 'z');
    SAME(read(stream[0], back, 2), 2);
    SAME(read(stream[0], back, 16), 4);
    SAME(back[0], 'r');
}
"#)
);

conformance!(
    full,
    c(r#"
/* A pipe is full when all its places are taken, however little each of them holds; so it stays. */
int main(void) {
    int p[3][2], total[3] = {};
    char text[4096];
    for (int i = 0; i < 3; i++) {
        OK(pipe2(p[i], O_NONBLOCK | (i == 2 ? O_DIRECT : 0)));
        memset(text, 'a' + i, sizeof text);
        for (int n; (n = write(p[i][1], text, i ? 2500 : 4096)) > 0;) total[i] += n;
        /* The last place of one has room for a little. */
        if (i == 1) { SAME(write(p[1][1], "z", 1), 1); total[1]++; }
    }
    freeze_here();
    for (int i = 0; i < 3; i++) {
        struct pollfd can = {p[i][1], POLLOUT, 0};
        SAME(poll(&can, 1, 0), 0);
        CHECK(write(p[i][1], text, 2500) == -1 && errno == EAGAIN);
    }
    SAME(write(p[1][1], "z", 1), 1);
    for (int i = 0, n; i < 3; i++) {
        for (int got = 0; (n = read(p[i][0], text, sizeof text)) > 0; got += n)
            if (got + n < total[i]) SAME(text[n - 1], 'a' + i);
            else SAME(got + n, total[i] + (i == 1));
        CHECK(n == -1 && errno == EAGAIN);
    }
}
"#)
);
