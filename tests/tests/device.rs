//! Conformance of the memory devices: null, zero, full, random, urandom.

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
