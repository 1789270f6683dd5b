//! Conformance of signals: handlers, masks, what is pending, alternate stacks in use.

use freeze_tests::cycle::{checkpoint_now, request};
use freeze_tests::subject::output;
use freeze_tests::{Running, c, conformance, freeze};
use freeze_user::ids::Pid;
use freeze_user::precopy::Trackings;
use freeze_user::sys::deadline::Deadline;
use freeze_user::sys::fault;
use freeze_user::tracee::Seized;
use nix::sched::{sched_getaffinity, sched_setaffinity};
use nix::sys::signal::{Signal, kill};
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

conformance!(
    handlers,
    c(r#"
/* Every disposition, with its mask and flags, as the kernel itself tells it. */
struct kernel_action { void *handler; unsigned long flags; void *restorer; uint64_t mask; };
static struct kernel_action before[65], after[65];
static volatile int seen;
static void handler(int n) { seen = n; }
static void handler3(int n, siginfo_t *info, void *context) { seen = info->si_value.sival_int; }
int main(void) {
    struct sigaction action = { .sa_handler = handler, .sa_flags = SA_RESTART | SA_ONSTACK };
    sigfillset(&action.sa_mask);
    OK(sigaction(SIGUSR1, &action, 0));
    action.sa_flags = SA_SIGINFO | SA_NODEFER | SA_RESETHAND;
    action.sa_sigaction = handler3;
    sigemptyset(&action.sa_mask);
    sigaddset(&action.sa_mask, 64);
    OK(sigaction(SIGRTMAX, &action, 0));
    signal(SIGPIPE, SIG_IGN);
    signal(SIGCHLD, SIG_IGN);
    sigset_t set, now;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    sigaddset(&set, 64);
    sigprocmask(SIG_BLOCK, &set, 0);
    for (int n = 1; n < 65; n++) OK(syscall(SYS_rt_sigaction, n, 0, &before[n], 8));
    freeze_here();
    for (int n = 1; n < 65; n++) {
        OK(syscall(SYS_rt_sigaction, n, 0, &after[n], 8));
        if (memcmp(&before[n], &after[n], sizeof *after)) DIE("signal %d", n);
    }
    sigprocmask(SIG_BLOCK, 0, &now);
    CHECK(sigismember(&now, SIGUSR2) && sigismember(&now, 64) && !sigismember(&now, SIGUSR1));
    raise(SIGUSR1);
    SAME(seen, SIGUSR1);
    sigprocmask(SIG_UNBLOCK, &set, 0);
    OK(sigqueue(getpid(), 64, (union sigval){ .sival_int = 4711 }));
    SAME(seen, 4711);
}
"#)
);

conformance!(
    pending,
    c(r#"
/* Signals that wait are delivered once, in their order, with everything that was sent along. */
static sigset_t set;
static volatile int thread_ready, thread_tid;
static int directed; /* what tgkill(2) says on this kernel: SI_TKILL, or SI_USER as some 6.x have it */
static void expect(int signal, int code, int value) {
    siginfo_t info;
    struct timespec zero = { 0, 0 };
    memset(&info, 0, sizeof info);
    int got = OK(sigtimedwait(&set, &info, &zero));
    SAME(got, signal);
    SAME(info.si_signo, signal);
    SAME(info.si_code, code);
    if (code == SI_QUEUE) SAME(info.si_value.sival_int, value);
    SAME(info.si_pid, getpid());
    SAME(info.si_uid, getuid());
}
static void *thread(void *unused) {
    thread_tid = gettid();
    thread_ready = 1;
    while (!gone_ahead()) nap(2);
    /* Those of the thread first, the lowest number first. */
    expect(SIGUSR2, directed, 0);
    expect(SIGRTMIN + 3, SI_QUEUE, 31);
    expect(SIGRTMIN + 3, SI_QUEUE, 32);
    return 0;
}
int main(void) {
    sigfillset(&set);
    sigprocmask(SIG_SETMASK, &set, 0);
    siginfo_t info;
    OK(syscall(SYS_tgkill, getpid(), gettid(), SIGUSR2));
    SAME(sigwaitinfo(&set, &info), SIGUSR2);
    directed = info.si_code;
    pthread_t t;
    CHECK(!pthread_create(&t, 0, thread, 0));
    while (!thread_ready) nap(1);
    for (int n = 1; n <= 3; n++) OK(sigqueue(getpid(), SIGRTMIN + 1, (union sigval){ .sival_int = n }));
    OK(kill(getpid(), SIGUSR1));
    OK(kill(getpid(), SIGUSR1));
    OK(kill(getpid(), SIGTERM));
    CHECK(!pthread_sigqueue(t, SIGRTMIN + 3, (union sigval){ .sival_int = 31 }));
    CHECK(!pthread_sigqueue(t, SIGRTMIN + 3, (union sigval){ .sival_int = 32 }));
    OK(syscall(SYS_tgkill, getpid(), thread_tid, SIGUSR2));
    freeze_here();
    CHECK(!pthread_join(t, 0));
    expect(SIGUSR1, SI_USER, 0);
    expect(SIGTERM, SI_USER, 0);
    for (int n = 1; n <= 3; n++) expect(SIGRTMIN + 1, SI_QUEUE, n);
    struct timespec zero = { 0, 0 };
    CHECK(sigtimedwait(&set, 0, &zero) == -1 && errno == EAGAIN);
}
"#)
);

conformance!(
    inside_a_handler,
    c(r#"
/* Frozen in a handler on the alternate stack, it returns to where it was interrupted. */
static char room[65536];
static volatile int inside;
static void handler(int n) {
    stack_t now;
    OK(sigaltstack(0, &now));
    CHECK(now.ss_flags & SS_ONSTACK);
    freeze_here();
    OK(sigaltstack(0, &now));
    CHECK(now.ss_flags & SS_ONSTACK);
    CHECK(now.ss_sp == room);
    inside = 1;
}
int main(void) {
    stack_t stack = { .ss_sp = room, .ss_size = sizeof room }, now;
    OK(sigaltstack(&stack, 0));
    struct sigaction action = { .sa_handler = handler, .sa_flags = SA_ONSTACK };
    OK(sigaction(SIGUSR1, &action, 0));
    register unsigned long kept __asm__("r12") = 0x123456789abcdef;
    __asm__ volatile("" : "+r"(kept));
    raise(SIGUSR1);
    __asm__ volatile("" : "+r"(kept));
    CHECK(kept == 0x123456789abcdef);
    SAME(inside, 1);
    OK(sigaltstack(0, &now));
    SAME(now.ss_flags, 0);
    sigset_t set;
    sigprocmask(SIG_BLOCK, 0, &set);
    CHECK(!sigismember(&set, SIGUSR1));
}
"#)
);

/// The kernel keeps in mind that a thread was asked to halt, however many signals come first.
#[test]
fn halts_amid_a_storm_of_signals() {
    let mut running = Running::start(
        &c(r#"
static volatile unsigned long seen;
static void handler(int n) { (void)n; seen++; }
int main(void) {
    signal(SIGUSR1, handler);
    pid_t parent = getpid(), child = OK(fork());
    /* A sleep that a signal ends begins anew, and would never be over: the storm has to end. */
    if (!child) {
        for (unsigned n = 0; n % 1000 || !gone_ahead(); n++)
            if (getppid() != parent || kill(parent, SIGUSR1)) break;
        _exit(0);
    }
    /* On a busy machine the child may only come to run when all is over. */
    while (!seen) ;
    freeze_here();
    while (!gone_ahead()) ;
    OK(kill(child, SIGKILL));
    OK(waitpid(child, 0, 0));
}
"#),
        "halts_amid_a_storm_of_signals",
    );
    running.pids();
    let pid = running.pid;
    let halted = std::thread::spawn(move || {
        for n in 0..5_000 {
            let seized = Seized::seize(pid, 0).expect("ours").expect("a thread");
            seized.interrupt();
            let limit = Deadline::new(Duration::from_secs(5)).expect("a timer");
            let stopped = seized.halted().unwrap_or_else(|e| panic!("{n}: {e}"));
            drop(limit);
            stopped.expect("it is alive").release().expect("it is alive");
        }
    });
    halted.join().expect("all halts");
    running.verdict();
}

conformance!(
    a_trap_that_waits,
    c(r#"
/* SIGTRAP, which steps and breakpoints raise too, is a signal like others to who blocks it. */
int main(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTRAP);
    sigprocmask(SIG_BLOCK, &set, 0);
    raise(SIGTRAP);
    freeze_here();
    siginfo_t info;
    struct timespec zero = { 0, 0 };
    SAME(sigtimedwait(&set, &info, &zero), SIGTRAP);
    SAME(info.si_pid, getpid());
    CHECK(sigtimedwait(&set, &info, &zero) < 0);
}
"#)
);

/// Threads that do nothing but take faults are halted just as one is about to be told: none gets lost, and none comes in
/// the way of what freeze has them do.
#[test]
fn faults_all_the_time() {
    let mut running = Running::start(
        &c(r#"
#include <ucontext.h>
static volatile long told[2], rounds[2], stop;
static volatile int wrong;
static void on_fault(int n, siginfo_t *info, void *context) {
    greg_t *rip = &((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
    if (n == SIGILL) *rip += 2; /* over the ud2; what int3 raises comes behind it */
    told[n == SIGTRAP]++;
}
static void *faults(void *traps) {
    long n = 0, mine = traps != 0;
    while (!stop && !wrong) {
        if (mine) asm volatile("int3" ::: "memory"); else asm volatile("ud2" ::: "memory");
        if (told[mine] != ++n) wrong = 1 + mine;
        rounds[mine] = n;
    }
    return 0;
}
int main(void) {
    struct sigaction action = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO };
    sigaction(SIGILL, &action, 0);
    sigaction(SIGTRAP, &action, 0);
    pthread_t t[2];
    for (long n = 0; n < 2; n++) pthread_create(&t[n], 0, faults, (void *)n);
    freeze_here();
    long before[2] = { rounds[0], rounds[1] };
    for (int n = 0; n < 2000 && !wrong && (rounds[0] == before[0] || rounds[1] == before[1]); n++) usleep(10000);
    if (wrong) DIE("told of %ld and %ld faults after %ld and %ld, %d", told[0], told[1], rounds[0], rounds[1], wrong);
    CHECK(rounds[0] != before[0] && rounds[1] != before[1]);
    stop = 1;
    for (int n = 0; n < 2; n++) pthread_join(t[n], 0);
}
"#),
        "faults_all_the_time",
    );
    running.pids();
    let checkpoint = |n: u32, kill: bool| {
        let image = running.dir().join(format!("image{n}"));
        let mut command = freeze();
        command.arg("checkpoint").arg(running.pid.to_string());
        command.arg("--to").arg(&image).args(kill.then_some("--kill"));
        let done = output(&mut command);
        assert!(
            done.status.success(),
            "{n}: {}",
            String::from_utf8_lossy(&done.stderr)
        );
        image
    };
    for n in 1..20 {
        checkpoint(n, false);
    }
    let image = checkpoint(20, true);
    running.wait_gone();
    let done = output(freeze().arg("restore").arg(&image).arg("--detach"));
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    running.pids();
    running.verdict();
}

conformance!(
    a_forged_trap,
    c(r#"
/* A SIGTRAP that was queued under the code of a breakpoint is not taken for that of a step. */
int main(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTRAP);
    sigprocmask(SIG_BLOCK, &set, 0);
    siginfo_t info = { .si_signo = SIGTRAP, .si_code = TRAP_BRKPT };
    struct timespec zero = { 0, 0 };
    info.si_pid = 4711;
    OK(syscall(SYS_rt_tgsigqueueinfo, getpid(), gettid(), SIGTRAP, &info));
    freeze_here();
    SAME(sigtimedwait(&set, &info, &zero), SIGTRAP);
    SAME(info.si_code, TRAP_BRKPT);
    SAME(info.si_pid, 4711);
    CHECK(sigtimedwait(&set, &info, &zero) < 0);
}
"#)
);

conformance!(
    none_to_spare,
    c(r#"
/* Every signal that is ignored by default is handled, and waits. */
static int seen[65];
static void note(int number) { seen[number]++; }
int main(void) {
    int all[] = {SIGURG, SIGWINCH, SIGCHLD, SIGCONT}, n = sizeof all / sizeof *all, status;
    sigset_t set;
    sigemptyset(&set);
    for (int i = 0; i < n; i++) {
        OK(sigaddset(&set, all[i]));
        CHECK(signal(all[i], note) != SIG_ERR);
    }
    OK(sigprocmask(SIG_BLOCK, &set, 0));
    for (int i = 0; i < n; i++) OK(syscall(SYS_tgkill, getpid(), gettid(), all[i]));
    freeze_here();
    OK(sigprocmask(SIG_UNBLOCK, &set, 0));
    for (int i = 0; i < n; i++) SAME(seen[all[i]], 1);
    SAME(waitpid(-1, &status, WNOHANG), -1);
}
"#)
);

/// Whom [`signal_all`] signals.
static WHOLE: AtomicI32 = AtomicI32::new(0);

fn signal_all() {
    let pid = Pid(WHOLE.load(Ordering::Relaxed));
    kill(pid.nix(), Signal::SIGUSR1).expect("it is there");
}

/// What comes for the whole process while it stands still is its first thread's, to which the kernel gives it if it runs.
#[test]
fn the_first_thread_takes_what_is_for_all() {
    const ROUNDS: usize = 40;
    let mut running = Running::start(
        &c(r#"
static volatile int seen, elsewhere;
static void hear(int n) {
    if (gettid() != getpid()) __sync_fetch_and_add(&elsewhere, 1);
    __sync_fetch_and_add(&seen, 1);
}
static void *thread(void *unused) { while (!gone_ahead()) nap(500); return 0; }
int main(void) {
    enum { OTHERS = 12, ROUNDS = 40, SOME = 15 };
    pthread_t t[OTHERS];
    cpu_set_t cpus, first;
    /* Where freeze runs too: the others, which run elsewhere, are quicker. */
    OK(sched_getaffinity(0, sizeof cpus, &cpus));
    CPU_ZERO(&first);
    for (int n = 0; !CPU_COUNT(&first); n++) if (CPU_ISSET(n, &cpus)) CPU_SET(n, &first);
    CPU_XOR(&cpus, &cpus, &first);
    struct sigaction action = { .sa_handler = hear, .sa_flags = SA_RESTART };
    OK(sigaction(SIGUSR1, &action, 0));
    for (int n = 0; n < OTHERS; n++) {
        CHECK(!pthread_create(&t[n], 0, thread, 0));
        if (CPU_COUNT(&cpus)) CHECK(!pthread_setaffinity_np(t[n], sizeof cpus, &cpus));
    }
    OK(sched_setaffinity(0, sizeof first, &first));
    rest(20);
    freeze_here();
    for (int n = 0; n < OTHERS; n++) CHECK(!pthread_join(t[n], 0));
    CHECK(seen >= ROUNDS);
    /* On a busy machine it may not come to run for a long time. */
    if (elsewhere >= SOME) DIE("%d of %d went elsewhere", elsewhere, seen);
}
"#),
        "the_first_thread_takes_what_is_for_all",
    );
    WHOLE.store(running.pid.0, Ordering::Relaxed);
    // As the subject's first thread; this is a thread of this test alone.
    let here = sched_getaffinity(running.pid.nix()).expect("it is there");
    sched_setaffinity(nix::unistd::Pid::from_raw(0), &here).expect("a processor that is there");
    for n in 0..ROUNDS {
        let image = running.dir().join(format!("image{n}"));
        let armed = fault::meddle("view", signal_all);
        let done = checkpoint_now(&request(running.pid, image, false), &mut Trackings::new());
        drop(armed);
        done.unwrap_or_else(|e| panic!("{n}: {e}"));
    }
    running.verdict();
}
