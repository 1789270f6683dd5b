//! Conformance of limits and scheduling: rlimits, nice, policy, I/O priority, the OOM killer's score.

use freeze_tests::{c, conformance};

conformance!(
    rlimits,
    c(r#"
/* All sixteen, soft and hard, are compared from outside; three of them are tried. */
int main(void) {
    struct { int what; rlim_t soft, hard; } set[] = {
        { RLIMIT_NOFILE, 100, 200 }, { RLIMIT_CORE, 0, 0 }, { RLIMIT_STACK, 1 << 20, 1 << 21 }, { RLIMIT_FSIZE, 5000, 6000 },
        { RLIMIT_CPU, 1000, 2000 }, { RLIMIT_AS, 1LL << 40, 1LL << 41 }, { RLIMIT_DATA, 1LL << 39, RLIM_INFINITY },
        { RLIMIT_NPROC, 5000, 6000 }, { RLIMIT_MEMLOCK, 4096, 8192 }, { RLIMIT_SIGPENDING, 50, 60 }, { RLIMIT_NICE, 5, 10 },
        { RLIMIT_RTPRIO, 1, 2 }, { RLIMIT_MSGQUEUE, 1000, 2000 },
    };
    int n = sizeof set / sizeof *set;
    for (int i = 0; i < n; i++) {
        struct rlimit now, limit = { set[i].soft, set[i].hard };
        OK(getrlimit(set[i].what, &now));
        /* Raising a hard limit takes CAP_SYS_RESOURCE, which not every machine grants. */
        if (limit.rlim_max > now.rlim_max) limit.rlim_max = now.rlim_max;
        if (limit.rlim_cur > limit.rlim_max) limit.rlim_cur = limit.rlim_max;
        set[i].soft = limit.rlim_cur; set[i].hard = limit.rlim_max;
        OK(setrlimit(set[i].what, &limit));
    }
    freeze_here();
    for (int i = 0; i < n; i++) {
        struct rlimit now;
        OK(getrlimit(set[i].what, &now));
        CHECK(now.rlim_cur == set[i].soft && now.rlim_max == set[i].hard);
    }
    signal(SIGXFSZ, SIG_IGN);
    int fd = OK(open(in_here("f"), O_RDWR | O_CREAT, 0600));
    CHECK(pwrite(fd, "x", 1, 5001) == -1 && errno == EFBIG);
    CHECK(fcntl(fd, F_DUPFD, 100) == -1 && errno == EINVAL);
}
"#)
);

conformance!(
    scheduling,
    c(r#"
/* Nice, batch and idle classes, real-time priority, I/O priority, affinity, the OOM score. */
int main(void) {
    int fd = OK(open("/proc/self/oom_score_adj", O_WRONLY));
    OK(write(fd, "123", 3));
    close(fd);
    OK(setpriority(PRIO_PROCESS, 0, 7));
    OK(syscall(SYS_ioprio_set, 1, 0, 2 << 13 | 5));
    int pid = OK(fork()), rt = 0;
    if (!pid) {
        struct sched_param none = { 0 };
        OK(sched_setscheduler(0, SCHED_BATCH, &none));
        while (!gone_ahead()) nap(2);
        SAME(sched_getscheduler(0), SCHED_BATCH);
        SAME(getpriority(PRIO_PROCESS, 0), 7);
        _exit(0);
    }
    rt = OK(fork());
    if (!rt) {
        struct sched_param param = { 3 }, now;
        int may = !sched_setscheduler(0, SCHED_RR | SCHED_RESET_ON_FORK, &param);
        while (!gone_ahead()) nap(2);
        OK(sched_getparam(0, &now));
        if (may) { SAME(sched_getscheduler(0), SCHED_RR | SCHED_RESET_ON_FORK); SAME(now.sched_priority, 3); }
        _exit(0);
    }
    rest(20);
    freeze_here();
    SAME(getpriority(PRIO_PROCESS, 0), 7);
    SAME(syscall(SYS_ioprio_get, 1, 0), 2 << 13 | 5);
    char text[16] = "";
    fd = OK(open("/proc/self/oom_score_adj", O_RDONLY));
    OK(read(fd, text, 15));
    SAME(atoi(text), 123);
    int status;
    OK(waitpid(pid, &status, 0));
    SAME(status, 0);
    OK(waitpid(rt, &status, 0));
    SAME(status, 0);
}
"#)
);

conformance!(
    below_what_is_in_use,
    c(r#"
/* Limits that were lowered below what there is already: descriptors, data, stack, queued signals, timers. */
int main(void) {
    enum { MANY = 30 };
    char *data = mmap(0, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(data, 'd', 1 << 20);
    int fd = OK(dup2(OK(open("/dev/null", O_RDONLY)), 300));
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 1);
    OK(sigprocmask(SIG_BLOCK, &set, 0));
    timer_t timers[MANY];
    struct itimerspec hour = { .it_value = { 3600, 0 } }, left;
    for (int i = 0; i < MANY; i++) {
        OK(sigqueue(getpid(), SIGRTMIN + 1, (union sigval){ .sival_int = i }));
        OK(timer_create(CLOCK_MONOTONIC, 0, &timers[i]));
        OK(timer_settime(timers[i], 0, &hour, 0));
    }
    int what[] = { RLIMIT_NOFILE, RLIMIT_DATA, RLIMIT_STACK, RLIMIT_SIGPENDING };
    for (int i = 0; i < 4; i++) OK(setrlimit(what[i], &(struct rlimit){ 8, 8 }));
    freeze_here();
    for (int i = 0; i < 4; i++) {
        struct rlimit now;
        OK(getrlimit(what[i], &now));
        CHECK(now.rlim_cur == 8 && now.rlim_max == 8);
    }
    SAME(fcntl(fd, F_GETFD), 0);
    SAME(data[99999], 'd');
    for (int i = 0; i < MANY; i++) {
        siginfo_t info;
        SAME(sigwaitinfo(&set, &info), SIGRTMIN + 1);
        SAME(info.si_value.sival_int, i);
        OK(timer_gettime(timers[i], &left));
        CHECK(left.it_value.tv_sec > 3000);
    }
}
"#)
);

conformance!(
    no_room_at_all,
    c(r#"
/* Address space beyond its soft limit: freeze makes room for itself, and leaves the limit as it was. */
int main(void) {
    struct rlimit limit;
    OK(getrlimit(RLIMIT_AS, &limit));
    limit.rlim_cur = 4096;
    OK(setrlimit(RLIMIT_AS, &limit));
    freeze_here();
    struct rlimit now;
    OK(getrlimit(RLIMIT_AS, &now));
    CHECK(now.rlim_cur == 4096 && now.rlim_max == limit.rlim_max);
    CHECK(mmap(0, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED && errno == ENOMEM);
}
"#)
);
