//! Conformance of timerfds: clocks, settings, unread expirations, points in time.

use freeze_tests::{c, conformance};

conformance!(
    timers,
    c(r#"
/* What has expired is told once, what is left is left, a point in time stays one. */
#include <sys/timerfd.h>
static int make(int clock, int how, long first, long first_ns, long every_ns) {
    int fd = OK(timerfd_create(clock, TFD_NONBLOCK));
    struct itimerspec t = { { 0, every_ns }, { first, first_ns } };
    OK(timerfd_settime(fd, how, &t, 0));
    return fd;
}
static unsigned long long expired(int fd) {
    unsigned long long n;
    return read(fd, &n, 8) == 8 ? n : 0;
}
int main(void) {
    long point = time(0) + 1000;
    int ticking = make(CLOCK_MONOTONIC, 0, 0, 10000000, 10000000);
    int once = make(CLOCK_BOOTTIME, 0, 0, 1, 0);
    int read_already = make(CLOCK_MONOTONIC, 0, 0, 1, 0);
    int wall = make(CLOCK_REALTIME, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, point, 0, 0);
    int left = make(CLOCK_MONOTONIC, 0, 1000, 0, 0);
    int unset = OK(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK));
    rest(60);
    SAME(expired(read_already), 1);
    int twin = OK(dup(once));
    freeze_here();
    CHECK(expired(ticking) >= 5);
    rest(30);
    CHECK(expired(ticking) >= 2);
    SAME(expired(twin), 1);
    SAME(expired(once), 0);
    SAME(expired(read_already), 0);
    SAME(expired(unset), 0);
    struct itimerspec now;
    OK(timerfd_gettime(wall, &now));
    CHECK(labs(now.it_value.tv_sec + time(0) - point) <= 2);
    OK(timerfd_gettime(left, &now));
    CHECK(now.it_value.tv_sec >= 900 && now.it_value.tv_sec < 1000);
    OK(timerfd_gettime(unset, &now));
    CHECK(!now.it_value.tv_sec && !now.it_value.tv_nsec);
}
"#)
);
