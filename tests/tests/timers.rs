//! Conformance of timers: interval timers and POSIX timers of every way to notify.

use freeze_tests::subject::Running;
use freeze_tests::{c, conformance};
use freeze_user::sys::deadline::Deadline;
use freeze_user::tracee::Seized;
use std::time::{Duration, Instant};

conformance!(
    intervals,
    c(r#"
/* What was left is left, less what has passed while it ran. */
int main(void) {
    struct itimerval real = { { 7, 500000 }, { 1000, 0 } }, virtual = { { 0, 0 }, { 50, 0 } }, prof = { { 3, 0 }, { 60, 0 } };
    OK(setitimer(ITIMER_REAL, &real, 0));
    OK(setitimer(ITIMER_VIRTUAL, &virtual, 0));
    OK(setitimer(ITIMER_PROF, &prof, 0));
    freeze_here();
    struct itimerval now;
    OK(getitimer(ITIMER_REAL, &now));
    SAME(now.it_interval.tv_sec, 7); SAME(now.it_interval.tv_usec, 500000);
    CHECK(now.it_value.tv_sec >= 900 && now.it_value.tv_sec <= 1000);
    OK(getitimer(ITIMER_VIRTUAL, &now));
    SAME(now.it_interval.tv_sec, 0);
    CHECK(now.it_value.tv_sec >= 45 && now.it_value.tv_sec <= 50);
    OK(getitimer(ITIMER_PROF, &now));
    SAME(now.it_interval.tv_sec, 3);
    CHECK(now.it_value.tv_sec >= 50 && now.it_value.tv_sec <= 60);
}
"#)
);

conformance!(
    posix,
    c(r#"
/* Timers keep their ids (with a gap), their clocks, their ways to notify, and go on. */
#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif
static volatile int ticks, value, threads, directed;
static void tick(int n, siginfo_t *info, void *context) { ticks++; value = info->si_value.sival_int; }
static void direct(int n, siginfo_t *info, void *context) { directed = gettid(); }
static void in_thread(union sigval v) { threads += v.sival_int; }
static int other_tid;
static void *other(void *unused) { other_tid = gettid(); while (!gone_ahead() || !directed) nap(2); return 0; }
static timer_t make(int clock, struct sigevent event) { timer_t t; OK(timer_create(clock, &event, &t)); return t; }
int main(void) {
    struct sigaction action = { .sa_sigaction = tick, .sa_flags = SA_SIGINFO | SA_RESTART };
    OK(sigaction(SIGRTMIN + 1, &action, 0));
    action.sa_sigaction = direct;
    OK(sigaction(SIGRTMIN + 2, &action, 0));
    pthread_t o;
    CHECK(!pthread_create(&o, 0, other, 0));
    while (!other_tid) nap(1);
    timer_t a = make(CLOCK_MONOTONIC, (struct sigevent){ .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 1, .sigev_value.sival_int = 99 });
    timer_t gap = make(CLOCK_REALTIME, (struct sigevent){ .sigev_notify = SIGEV_NONE });
    timer_t none = make(CLOCK_BOOTTIME, (struct sigevent){ .sigev_notify = SIGEV_NONE });
    struct sigevent to_thread = { .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGRTMIN + 2 };
    to_thread.sigev_notify_thread_id = other_tid;
    timer_t t = make(CLOCK_REALTIME, to_thread);
    timer_t called = make(CLOCK_MONOTONIC, (struct sigevent){ .sigev_notify = SIGEV_THREAD, .sigev_notify_function = in_thread, .sigev_value.sival_int = 5 });
    timer_t cpu = make(CLOCK_PROCESS_CPUTIME_ID, (struct sigevent){ .sigev_notify = SIGEV_NONE });
    OK(timer_delete(gap));
    struct itimerspec fast = { { 0, 10000000 }, { 0, 10000000 } }, slow = { { 5, 6 }, { 1000, 0 } }, now;
    OK(timer_settime(a, 0, &fast, 0));
    OK(timer_settime(none, 0, &slow, 0));
    OK(timer_settime(cpu, 0, &slow, 0));
    rest(30);
    freeze_here();
    OK(timer_gettime(none, &now));
    SAME(now.it_interval.tv_sec, 5); SAME(now.it_interval.tv_nsec, 6);
    CHECK(now.it_value.tv_sec >= 900 && now.it_value.tv_sec <= 1000);
    OK(timer_gettime(cpu, &now));
    CHECK(now.it_value.tv_sec >= 990 && now.it_value.tv_sec <= 1000);
    int had = ticks;
    for (int i = 0; i < 200 && ticks < had + 3; i++) nap(5);
    CHECK(ticks >= had + 3);
    SAME(value, 99);
    struct itimerspec once = { { 0, 0 }, { 0, 1000000 } };
    OK(timer_settime(t, 0, &once, 0));
    OK(timer_settime(called, 0, &once, 0));
    CHECK(!pthread_join(o, 0));
    SAME(directed, other_tid);
    for (int i = 0; i < 400 && !threads; i++) nap(5);
    SAME(threads, 5);
}
"#)
);

conformance!(
    undelivered,
    c(r#"
/* An expiry that is blocked waits, once, with what was sent along; the timer then goes on. */
int main(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN);
    sigprocmask(SIG_BLOCK, &set, 0);
    timer_t often, once;
    struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN, .sigev_value.sival_int = 5 };
    OK(timer_create(CLOCK_MONOTONIC, &event, &often));
    event.sigev_value.sival_int = 6;
    OK(timer_create(CLOCK_BOOTTIME, &event, &once));
    struct itimerspec fast = { { 0, 50000000 }, { 0, 50000000 } }, single = { { 0, 0 }, { 0, 1000000 } };
    OK(timer_settime(often, 0, &fast, 0));
    OK(timer_settime(once, 0, &single, 0));
    rest(70);
    freeze_here();
    siginfo_t info;
    struct timespec none = { 0, 0 }, long_enough = { 10, 0 };
    int seen[7] = { 0 };
    while (sigtimedwait(&set, &info, &none) == SIGRTMIN) {
        SAME(info.si_code, SI_TIMER);
        seen[info.si_value.sival_int]++;
    }
    SAME(seen[6], 1);
    SAME(seen[5], 1);
    SAME(sigtimedwait(&set, &info, &long_enough), SIGRTMIN);
    SAME(info.si_value.sival_int, 5);
}
"#)
);

conformance!(
    clocks,
    c(r#"
/* Timers on every clock go on, the CPU time of the process and its threads by number included. */
static volatile int hits[7];
static void hear(int n, siginfo_t *info, void *c) { hits[info->si_value.sival_int]++; }
int main(void) {
    struct sigaction act = { .sa_sigaction = hear, .sa_flags = SA_SIGINFO | SA_RESTART };
    OK(sigaction(SIGRTMIN, &act, 0));
    clockid_t clocks[7] = { CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_TAI, CLOCK_PROCESS_CPUTIME_ID };
    OK(clock_getcpuclockid(getpid(), &clocks[5]));
    CHECK(!pthread_getcpuclockid(pthread_self(), &clocks[6]));
    for (int i = 0; i < 7; i++) {
        timer_t timer;
        struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN, .sigev_value.sival_int = i };
        OK(timer_create(clocks[i], &event, &timer));
        struct itimerspec every = { { 0, 10000000 }, { 0, 10000000 } };
        OK(timer_settime(timer, 0, &every, 0));
    }
    freeze_here();
    int before[7], ready = 0;
    for (int i = 0; i < 7; i++) before[i] = hits[i];
    struct timespec start, now;
    clock_gettime(CLOCK_MONOTONIC, &start);
    while (ready < 7) {
        for (ready = 0; ready < 7 && hits[ready] > before[ready] + 1;) ready++;
        clock_gettime(CLOCK_MONOTONIC, &now);
        if (now.tv_sec > start.tv_sec + 25) DIE("clock %d stands still", (int)clocks[ready]);
    }
}
"#)
);

conformance!(
    alarm_that_waits,
    c(r#"
/* A periodic alarm whose signal is blocked and waits: the kernel shows that nothing is left, and goes on once it is taken. */
static volatile int ticks;
static void tick(int s) { ticks++; }
int main(void) {
    struct sigaction action = { .sa_handler = tick };
    sigset_t alarm;
    sigemptyset(&alarm);
    sigaddset(&alarm, SIGALRM);
    OK(sigaction(SIGALRM, &action, 0));
    OK(sigprocmask(SIG_BLOCK, &alarm, 0));
    OK(setitimer(ITIMER_REAL, &(struct itimerval){ { 0, 50000 }, { 0, 1000 } }, 0));
    for (sigset_t waits; OK(sigpending(&waits)), !sigismember(&waits, SIGALRM);) nap(1);
    freeze_here();
    SAME(ticks, 0);
    OK(sigprocmask(SIG_UNBLOCK, &alarm, 0));
    struct itimerval now;
    OK(getitimer(ITIMER_REAL, &now));
    SAME(now.it_interval.tv_usec, 50000);
    for (int i = 0; ticks < 4; i++) { if (i > 2000) DIE("%d ticks", ticks); nap(5); }
}
"#)
);

conformance!(
    clock_of_another,
    c(r#"
/* A timer on the CPU time of another process goes on by what that one uses. */
int main(void) {
    pid_t child = OK(fork());
    if (!child) {
        while (!gone_ahead()) nap(2);
        for (;;) {}
    }
    clockid_t clock;
    timer_t timer;
    CHECK(!clock_getcpuclockid(child, &clock));
    struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN };
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN);
    sigprocmask(SIG_BLOCK, &set, 0);
    OK(timer_create(clock, &event, &timer));
    struct itimerspec once = { { 0, 7 }, { 0, 50000000 } }, now;
    OK(timer_settime(timer, 0, &once, 0));
    freeze_here();
    OK(timer_gettime(timer, &now));
    SAME(now.it_interval.tv_nsec, 7);
    CHECK(now.it_value.tv_sec == 0 && now.it_value.tv_nsec <= 50000000);
    struct timespec patience = { 25, 0 };
    siginfo_t info;
    SAME(sigtimedwait(&set, &info, &patience), SIGRTMIN);
    SAME(info.si_code, SI_TIMER);
    OK(kill(child, SIGKILL));
    OK(waitpid(child, 0, 0));
}
"#)
);

/// The kernel lets go of its lock while it takes the signal of a timer from the queue: who is asked to halt just then halts
/// for that signal, and for nothing else after it.
#[test]
fn no_halt_is_lost_among_the_signals_of_a_timer() {
    let mut running = Running::start(
        &c(r#"
static timer_t timer;
/* A sleep that a signal ends begins anew, and would never be over: the storm has to end. */
static void tick(int n) {
    static unsigned ticks;
    static struct itimerspec never;
    if (++ticks % 1000 == 0 && gone_ahead()) timer_settime(timer, 0, &never, 0);
}
int main(void) {
    struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1 };
    struct itimerspec often = { { 0, 20000 }, { 0, 20000 } };
    signal(SIGUSR1, tick);
    OK(timer_create(CLOCK_MONOTONIC, &event, &timer));
    OK(timer_settime(timer, 0, &often, 0));
    freeze_here();
    OK(timer_delete(timer));
}
"#),
        "halts",
    );
    let end = Instant::now() + Duration::from_secs(5);
    while Instant::now() < end {
        let seized = Seized::seize(running.pid, 0).expect("ours").expect("a thread");
        let _limit = Deadline::new(Duration::from_secs(2)).expect("a timer");
        seized.interrupt();
        let stopped = seized.halted().expect("a halt").expect("a thread");
        stopped.release().expect("to let it go");
    }
    running.verdict();
}
