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

conformance!(
    clocks_that_wake_the_machine,
    c(r#"
#include <sys/timerfd.h>
/* Set to a point in time; in a user namespace none may be made. */
int main(void) {
    int fds[2] = { timerfd_create(CLOCK_REALTIME_ALARM, 0), timerfd_create(CLOCK_BOOTTIME_ALARM, 0) };
    int made = fds[0] >= 0 && fds[1] >= 0;
    clockid_t plain[2] = { CLOCK_REALTIME, CLOCK_BOOTTIME };
    for (int i = 0; made && i < 2; i++) {
        struct itimerspec at = { { 7, 0 } };
        OK(clock_gettime(plain[i], &at.it_value));
        at.it_value.tv_sec += 1000;
        OK(timerfd_settime(fds[i], TFD_TIMER_ABSTIME, &at, 0));
    }
    freeze_here();
    for (int i = 0; made && i < 2; i++) {
        struct itimerspec left;
        OK(timerfd_gettime(fds[i], &left));
        SAME(left.it_interval.tv_sec, 7);
        CHECK(left.it_value.tv_sec > 900 && left.it_value.tv_sec <= 1000);
    }
}
"#)
);
