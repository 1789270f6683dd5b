//! Conformance of threads: registers, extended state, thread-local storage, names, stacks, scheduling.

use freeze_tests::cycle::{checkpoint_now, request};
use freeze_tests::subject::descendants;
use freeze_tests::{Running, c, conformance};
use freeze_user::checkpoint::Request;
use freeze_user::precopy::Trackings;
use freeze_user::sys::fault;

conformance!(
    names,
    c(r#"
/* Threads have names of any bytes, and a first thread that has ended leaves its own to the process. */
static const char *names[] = {"a) R 1 (b", "", "new\nline", "\xff\xfe\x80", "fifteen chars..", " "};
static int begun;
static void *run(void *which) {
    const char *name = names[(long)which];
    OK(prctl(PR_SET_NAME, name));
    __sync_fetch_and_add(&begun, 1);
    while (!gone_ahead()) nap(2);
    char now[17] = {0};
    OK(prctl(PR_GET_NAME, now));
    CHECK(!strcmp(now, name));
    return 0;
}
static void *stays(void *arg) { while (!gone_ahead()) nap(2); nap(200); _exit(7); }
int main(void) {
    int child = OK(fork());
    if (!child) {
        pthread_t other;
        OK(prctl(PR_SET_NAME, "gone"));
        pthread_create(&other, 0, stays, 0);
        syscall(SYS_exit, 0);
    }
    pthread_t all[6];
    for (long i = 0; i < 6; i++) pthread_create(&all[i], 0, run, (void *)i);
    while (begun < 6) nap(1);
    rest(20);
    freeze_here();
    char path[60], name[17] = {0};
    sprintf(path, "/proc/%d/comm", child);
    int fd = OK(open(path, O_RDONLY));
    SAME(read(fd, name, 16), 5);
    CHECK(!strcmp(name, "gone\n"));
    for (int i = 0; i < 6; i++) pthread_join(all[i], 0);
    int status;
    OK(waitpid(child, &status, 0));
    SAME(WEXITSTATUS(status), 7);
}
"#)
);

conformance!(
    registers,
    c(r#"
/* A thread that never enters the kernel keeps every register, vector registers and rounding modes included. */

static volatile int flag;
static unsigned char in[16][32], out[16][32];
static unsigned long general[8];
static unsigned mxcsr;
static unsigned short control;
static void *spin(void *avx) {
    unsigned up = 0x1f80 | 2 << 13;
    unsigned short word = 0x37f | 2 << 10;
    __asm__ volatile("ldmxcsr %0\n fldcw %1" :: "m"(up), "m"(word));
    if (avx)
        __asm__ volatile(
            "vmovdqu (%1), %%ymm0\n vmovdqu 32(%1), %%ymm1\n vmovdqu 64(%1), %%ymm7\n vmovdqu 480(%1), %%ymm15\n"
            "1: pause\n cmpl $0, (%0)\n je 1b\n"
            "vmovdqu %%ymm0, (%2)\n vmovdqu %%ymm1, 32(%2)\n vmovdqu %%ymm7, 64(%2)\n vmovdqu %%ymm15, 480(%2)\n"
            :: "r"(&flag), "r"(in), "r"(out) : "memory", "xmm0", "xmm1", "xmm7", "xmm15");
    else
        __asm__ volatile("movdqu (%1), %%xmm0\n 1: pause\n cmpl $0, (%0)\n je 1b\n movdqu %%xmm0, (%2)\n"
            :: "r"(&flag), "r"(in), "r"(out) : "memory", "xmm0");
    __asm__ volatile("stmxcsr %0\n fnstcw %1" : "=m"(mxcsr), "=m"(control));
    return 0;
}
static void *spin_general(void *unused) {
    __asm__ volatile(
        "push %%rbx\n mov $0x1111, %%r8\n mov $0x2222, %%r9\n mov $0x3333, %%r10\n mov $0x4444, %%r11\n"
        "mov $0x5555, %%r12\n mov $0x6666, %%r13\n mov $0x7777, %%r14\n mov $0x8888, %%r15\n"
        "1: pause\n cmpl $0, (%0)\n je 1b\n"
        "mov %%r8, (%1)\n mov %%r9, 8(%1)\n mov %%r10, 16(%1)\n mov %%r11, 24(%1)\n"
        "mov %%r12, 32(%1)\n mov %%r13, 40(%1)\n mov %%r14, 48(%1)\n mov %%r15, 56(%1)\n pop %%rbx\n"
        :: "S"(&flag), "D"(general) : "memory", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15");
    return 0;
}
int main(void) {
    int avx = __builtin_cpu_supports("avx");
    for (int i = 0; i < 16; i++) for (int k = 0; k < 32; k++) in[i][k] = 16 * i + k + 1;
    pthread_t a, b;
    CHECK(!pthread_create(&a, 0, spin, avx ? (void *)&flag : 0));
    CHECK(!pthread_create(&b, 0, spin_general, 0));
    rest(20);
    freeze_here();
    flag = 1;
    CHECK(!pthread_join(a, 0) && !pthread_join(b, 0));
    int rows[] = { 0, 1, 2, 15 };
    for (int i = 0; i < (avx ? 4 : 1); i++) CHECK(!memcmp(in[rows[i]], out[rows[i]], avx ? 32 : 16));
    SAME(mxcsr >> 13 & 3, 2);
    SAME(control >> 10 & 3, 2);
    for (int i = 0; i < 8; i++) SAME(general[i], 0x1111 * (i + 1));
}
"#)
);

conformance!(
    belongings,
    c(r#"
/* What each thread has of its own: TLS, name, mask, alternate stack, timer slack, affinity, nice, errno. */
enum { N = 4 };
static __thread int mine;
static __thread char room[SIGSTKSZ_MAX];
static void *thread(void *arg) {
    int n = (int)(intptr_t)arg;
    char name[16];
    mine = 1000 + n;
    snprintf(name, sizeof name, "thread (%d) x", n);
    OK(prctl(PR_SET_NAME, name));
    OK(prctl(PR_SET_TIMERSLACK, 70000 + n));
    stack_t stack = { .ss_sp = room, .ss_size = sizeof room - n * 64 }, now;
    OK(sigaltstack(&stack, 0));
    sigset_t set, was;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + n);
    pthread_sigmask(SIG_SETMASK, &set, 0);
    int tid = gettid();
    OK(setpriority(PRIO_PROCESS, tid, n));
    cpu_set_t cpus, cpus_now;
    CPU_ZERO(&cpus);
    CPU_SET(0, &cpus);
    if (n == 2) OK(sched_setaffinity(0, sizeof cpus, &cpus));
    while (!gone_ahead()) nap(2);
    SAME(mine, 1000 + n);
    char is[16];
    OK(prctl(PR_GET_NAME, is));
    CHECK(!strcmp(is, name));
    SAME(prctl(PR_GET_TIMERSLACK), 70000 + n);
    OK(sigaltstack(0, &now));
    CHECK(now.ss_sp == stack.ss_sp && now.ss_size == stack.ss_size && now.ss_flags == 0);
    pthread_sigmask(SIG_SETMASK, 0, &was);
    CHECK(sigismember(&was, SIGRTMIN + n) && !sigismember(&was, SIGRTMIN + n + 1));
    SAME(gettid(), tid);
    SAME(getpriority(PRIO_PROCESS, 0), n);
    OK(sched_getaffinity(0, sizeof cpus_now, &cpus_now));
    CHECK(n != 2 || CPU_EQUAL(&cpus, &cpus_now));
    return (void *)(intptr_t)(n + 1);
}
int main(void) {
    pthread_t t[N];
    for (intptr_t n = 0; n < N; n++) CHECK(!pthread_create(&t[n], 0, thread, (void *)n));
    rest(30);
    freeze_here();
    for (intptr_t n = 0; n < N; n++) {
        void *got;
        CHECK(!pthread_join(t[n], &got));
        SAME((intptr_t)got, n + 1);
    }
    /* And new ones can be made, on the stacks of the old. */
    CHECK(!pthread_create(&t[0], 0, thread, (void *)1));
    CHECK(!pthread_join(t[0], 0));
}
"#
    .replace("SIGSTKSZ_MAX", "16384")
    .as_str())
);

conformance!(
    robust_list,
    c(r#"
/* A thread that ends holding a robust mutex is noticed: the kernel still knows its list. */
static pthread_mutex_t mutex;
static void *holder(void *unused) {
    pthread_mutex_lock(&mutex);
    while (!gone_ahead()) nap(2);
    syscall(SYS_exit, 0);
    return 0;
}
int main(void) {
    pthread_mutexattr_t attr;
    pthread_mutexattr_init(&attr);
    pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST);
    CHECK(!pthread_mutex_init(&mutex, &attr));
    pthread_t t;
    CHECK(!pthread_create(&t, 0, holder, 0));
    rest(20);
    freeze_here();
    SAME(pthread_mutex_lock(&mutex), EOWNERDEAD);
}
"#)
);

conformance!(
    waiting,
    c(r#"
/* Threads asleep in a futex: one on a mutex, one on a condition, one that joins another. */
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
static pthread_mutex_t held = PTHREAD_MUTEX_INITIALIZER;
static int woken, ready;
static void *sleeper(void *unused) {
    pthread_mutex_lock(&mutex);
    while (!ready) pthread_cond_wait(&cond, &mutex);
    woken++;
    pthread_mutex_unlock(&mutex);
    return 0;
}
static void *locker(void *unused) {
    pthread_mutex_lock(&held);
    woken += 10;
    return 0;
}
static void *joiner(void *other) { return (void *)(intptr_t)pthread_join(*(pthread_t *)other, 0); }
int main(void) {
    pthread_t a, b, c;
    pthread_mutex_lock(&held);
    CHECK(!pthread_create(&a, 0, sleeper, 0));
    CHECK(!pthread_create(&b, 0, locker, 0));
    CHECK(!pthread_create(&c, 0, joiner, &a));
    rest(20);
    freeze_here();
    pthread_mutex_lock(&mutex);
    ready = 1;
    pthread_cond_broadcast(&cond);
    pthread_mutex_unlock(&mutex);
    void *joined;
    CHECK(!pthread_join(c, &joined) && !joined);
    pthread_mutex_unlock(&held);
    CHECK(!pthread_join(b, 0));
    SAME(woken, 11);
}
"#)
);

/// A process of very many threads is taken apart and put together in a moment.
fn many(threads: usize) {
    let text = r#"
static void *thread(void *n) { while (!gone_ahead()) nap(100); return n; }
int main(void) {
    static pthread_t t[MANY];
    pthread_attr_t attr;
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, 65536);
    for (intptr_t n = 0; n < MANY; n++) CHECK(!pthread_create(&t[n], &attr, thread, (void *)n));
    freeze_here();
    void *got;
    for (intptr_t n = 0; n < MANY; n++) { CHECK(!pthread_join(t[n], &got)); SAME((intptr_t)got, n); }
}
"#;
    freeze_tests::run(freeze_tests::Mode::Restore, "many", || {
        c(&text.replace("MANY", &threads.to_string()))
    });
}

#[test]
fn a_hundred_threads() {
    many(100);
}

#[test]
fn a_thousand_threads() {
    many(1000);
}

/// The descriptor by which its written pages are told is in a process for an instant: no child is to inherit it, by whichever
/// thread it is forked, since it would keep the memory of its parent registered.
#[test]
fn a_child_forked_while_tracking_begins() {
    let forking = c(r#"
static void *forks(void *unused) {
    while (!gone_ahead()) {
        int child = fork();
        CHECK(child >= 0);
        if (!child) { nap(400); _exit(0); }
        nap(15);
    }
    return unused;
}
int main(void) {
    pthread_t thread;
    signal(SIGCHLD, SIG_IGN);
    CHECK(!pthread_create(&thread, 0, forks, 0));
    freeze_here();
    CHECK(!pthread_join(thread, 0));
    return 0;
}
"#);
    let mut running = Running::start(&forking, "a_child_forked_while_tracking_begins");
    let tracked = Request {
        track: true,
        ..request(running.pid, running.dir().join("image"), false)
    };
    let armed = fault::meddle("tracker's descriptor", || {
        std::thread::sleep(std::time::Duration::from_millis(60));
    });
    let done = checkpoint_now(&tracked, &mut Trackings::new());
    drop(armed);
    let heirs = descendants(running.pid).into_iter().filter(|pid| {
        let fds = std::fs::read_dir(format!("/proc/{pid}/fd"))
            .into_iter()
            .flatten()
            .flatten();
        let mut leads = fds.filter_map(|fd| std::fs::read_link(fd.path()).ok());
        leads.any(|to| to.to_string_lossy().contains("userfaultfd"))
    });
    assert_eq!(heirs.collect::<Vec<_>>(), []);
    done.unwrap_or_else(|e| panic!("checkpoint: {e}"));
    running.pids();
    running.verdict();
}

// What the kernel tells of a process's namespaces it tells only by a thread that has not ended.
conformance!(
    first_ended_in_namespaces,
    c(r#"
#include <pthread.h>
#include <sys/syscall.h>
static void *last(void *unused) {
    (void)unused;
    char name[64];
    while (!gone_ahead()) nap(2);
    OK(gethostname(name, sizeof name));
    exit(strcmp(name, "elsewhere") ? 9 : 7);
}
int main(void) {
    pthread_t one;
    int status, child = OK(fork());
    if (!child) {
        OK(unshare(CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWCGROUP));
        OK(sethostname("elsewhere", 9));
        CHECK(!pthread_create(&one, 0, last, 0));
        syscall(SYS_exit, 0);
    }
    char path[64], line[256] = "";
    snprintf(path, sizeof path, "/proc/%d/stat", child);
    while (!strstr(line, ") Z ")) {
        int stat = OK(open(path, O_RDONLY));
        line[OK(read(stat, line, sizeof line - 1))] = 0;
        close(stat);
    }
    freeze_here();
    SAME(waitpid(child, &status, 0), child);
    SAME(WEXITSTATUS(status), 7);
}
"#),
    only: host
);
