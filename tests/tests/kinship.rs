//! Conformance of families: parents and children, sessions, process groups, orphans, zombies, stopped ones.

use freeze_tests::cycle::{checkpoint_now, request, restore_now};
use freeze_tests::subject::{Running, stat_fields};
use freeze_tests::{c, conformance, freeze, scratch};
use freeze_user::ids::Pid;
use freeze_user::precopy::Trackings;
use freeze_user::sys::fault;
use nix::sys::signal::{Signal, kill};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

conformance!(
    trees,
    c(r#"
/* Three generations, with sessions and groups of their own; each ends with a status of its own. */
static void stay(int code) { while (!gone_ahead()) nap(2); _exit(code); }
int main(void) {
    int pids[6], status;
    pids[0] = OK(fork());
    if (!pids[0]) stay(10);
    pids[1] = OK(fork());
    if (!pids[1]) { OK(setpgid(0, 0)); stay(11); }
    pids[2] = OK(fork());
    if (!pids[2]) { setpgid(0, pids[1]); while (getpgid(0) != pids[1]) { nap(1); setpgid(0, pids[1]); } stay(12); }
    pids[3] = OK(fork());
    if (!pids[3]) {
        int inner = OK(fork());
        if (!inner) {
            /* A member of the old session below a leader of a new one. */
            while (getsid(getppid()) != getppid()) nap(1);
            CHECK(getsid(0) != getppid());
            stay(20);
        }
        OK(setsid());
        int member = OK(fork());
        if (!member) { OK(setpgid(0, 0)); stay(21); }
        while (!gone_ahead()) nap(2);
        OK(waitpid(inner, &status, 0));
        SAME(WEXITSTATUS(status), 20);
        OK(waitpid(member, &status, 0));
        SAME(WEXITSTATUS(status), 21);
        _exit(13);
    }
    rest(60);
    freeze_here();
    for (int i = 0; i < 4; i++) {
        OK(waitpid(pids[i], &status, 0));
        SAME(WEXITSTATUS(status), 10 + i);
    }
    CHECK(waitpid(-1, &status, 0) == -1 && errno == ECHILD);
}
"#)
);

conformance!(
    orphans,
    c(r#"
/* A process whose parent has ended belongs to the subreaper; leaders of groups and sessions may be long gone. */
int main(void) {
    OK(prctl(PR_SET_CHILD_SUBREAPER, 1));
    int leader = OK(fork());
    if (!leader) {
        OK(setsid());
        if (!OK(fork())) { while (!gone_ahead()) nap(2); _exit(31); }
        int group = OK(fork());
        if (!group) {
            OK(setpgid(0, 0));
            if (!OK(fork())) { while (!gone_ahead()) nap(2); _exit(32); }
            _exit(0);
        }
        OK(waitpid(group, 0, 0));
        _exit(0);
    }
    OK(waitpid(leader, 0, 0));
    rest(20);
    freeze_here();
    int sum = 0, status;
    for (int pid; (pid = waitpid(-1, &status, 0)) > 0;) { sum += WEXITSTATUS(status); }
    SAME(sum, 31 + 32);
}
"#)
);

conformance!(
    zombies,
    c(r#"
/* A child that has ended and was not waited for still tells how it ended. */
int main(void) {
    int exited = OK(fork());
    if (!exited) _exit(42);
    int killed = OK(fork());
    if (!killed) { signal(SIGTERM, SIG_DFL); for (;;) pause(); }
    rest(10);
    OK(kill(killed, SIGTERM));
    siginfo_t info;
    OK(waitid(P_PID, killed, &info, WEXITED | WNOWAIT));
    OK(waitid(P_PID, exited, &info, WEXITED | WNOWAIT));
    freeze_here();
    int status;
    OK(waitpid(exited, &status, 0));
    CHECK(WIFEXITED(status));
    SAME(WEXITSTATUS(status), 42);
    OK(waitpid(killed, &status, 0));
    CHECK(WIFSIGNALED(status));
    SAME(WTERMSIG(status), SIGTERM);
}
"#)
);

conformance!(
    stopped,
    c(r#"
/* A child that job control has stopped stays stopped until it is continued. */
int main(void) {
    int pid = OK(fork()), status;
    if (!pid) { raise(SIGSTOP); _exit(5); }
    OK(waitpid(pid, &status, WUNTRACED));
    CHECK(WIFSTOPPED(status));
    freeze_here();
    rest(30);
    SAME(waitpid(pid, &status, WNOHANG), 0);
    OK(kill(pid, SIGCONT));
    OK(waitpid(pid, &status, 0));
    SAME(WEXITSTATUS(status), 5);
}
"#)
);

/// Whom [`go_on`] continues.
static STOPPED: AtomicI32 = AtomicI32::new(0);

fn go_on() {
    let pid = Pid(STOPPED.load(Ordering::Relaxed));
    kill(pid.nix(), Signal::SIGCONT).expect("it is there");
}

/// Whoever sends SIGCONT may be the last to halt: the stopped process stands still for freeze by then.
#[test]
fn a_stop_that_ends_amid_a_checkpoint_is_over() {
    let subject = c(r#"
int main(void) {
    int ends[2], pid, status;
    char byte;
    OK(pipe(ends));
    pid = OK(fork());
    if (!pid) { raise(SIGSTOP); OK(read(ends[0], &byte, 1)); _exit(5); }
    OK(waitpid(pid, &status, WUNTRACED));
    freeze_here();
    OK(waitpid(pid, &status, WCONTINUED));
    CHECK(WIFCONTINUED(status));
    SAME(write(ends[1], "x", 1), 1);
    OK(waitpid(pid, &status, 0));
    SAME(WEXITSTATUS(status), 5);
}
"#);
    for kill in [false, true] {
        let mut running = Running::start(&subject, "continued");
        let root = running.pid;
        let child = running.pids().into_iter().find(|pid| *pid != root);
        STOPPED.store(child.expect("a child").0, Ordering::Relaxed);
        let image = running.dir().join("image");
        let armed = fault::meddle("view", go_on);
        let done = checkpoint_now(&request(running.pid, image.clone(), kill), &mut Trackings::new());
        drop(armed);
        done.unwrap_or_else(|e| panic!("a checkpoint: {e}"));
        if kill {
            running.wait_gone();
            restore_now(&image).unwrap_or_else(|e| panic!("a restore: {e}"));
        }
        running.verdict();
    }
}

/// Whom [`halt`] stops.
static RUNNING: AtomicI32 = AtomicI32::new(0);

fn halt() {
    let pid = Pid(RUNNING.load(Ordering::Relaxed));
    kill(pid.nix(), Signal::SIGSTOP).expect("it is there");
}

/// SIGSTOP that waits at the cut meets whatever the process is made to do there, and is in the image all the same.
#[test]
fn a_stop_that_begins_amid_a_checkpoint_is_kept() {
    let subject = c(r#"
int main(void) {
    int pid = OK(fork()), status;
    if (!pid) for (;;) pause();
    freeze_here();
    OK(waitpid(pid, &status, WUNTRACED));
    CHECK(WIFSTOPPED(status));
    OK(kill(pid, SIGKILL));
    OK(waitpid(pid, &status, 0));
}
"#);
    for kill in [false, true] {
        let mut running = Running::start(&subject, "halted");
        let root = running.pid;
        let child = running.pids().into_iter().find(|pid| *pid != root);
        RUNNING.store(child.expect("a child").0, Ordering::Relaxed);
        let image = running.dir().join("image");
        let armed = fault::meddle("view", halt);
        let done = checkpoint_now(&request(running.pid, image.clone(), kill), &mut Trackings::new());
        drop(armed);
        done.unwrap_or_else(|e| panic!("a checkpoint: {e}"));
        if kill {
            running.wait_gone();
            restore_now(&image).unwrap_or_else(|e| panic!("a restore: {e}"));
        }
        running.verdict();
    }
}

/// Whom [`end`] ends, and when.
static ENDING: AtomicI32 = AtomicI32::new(0);
static PASSES: AtomicI32 = AtomicI32::new(0);

fn end() {
    // The first pass is its parent's.
    if PASSES.fetch_add(1, Ordering::Relaxed) == 1 {
        let pid = Pid(ENDING.load(Ordering::Relaxed));
        kill(pid.nix(), Signal::SIGKILL).expect("it is there");
        let state = || stat_fields(&format!("/proc/{pid}/stat")).map(|fields| fields[0].clone());
        while state().is_some_and(|s| s != "Z") {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// A child that ends while its memory is being copied ahead is a zombie in the image, and no reason not to make it.
#[test]
fn a_child_ends_while_it_is_copied() {
    let subject = c(r#"
int main(void) {
    size_t len = 4 << 20;
    memset(OK(mmap(0, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)), 1, len);
    int pid = OK(fork()), status;
    if (!pid) for (;;) pause();
    freeze_here();
    OK(waitpid(pid, &status, 0));
    CHECK(WIFSIGNALED(status));
    SAME(WTERMSIG(status), SIGKILL);
}
"#);
    for point in ["tracker", "registration", "pre-copy"] {
        let mut running = Running::start(&subject, "ends");
        let root = running.pid;
        let child = running.pids().into_iter().find(|pid| *pid != root);
        ENDING.store(child.expect("a child").0, Ordering::Relaxed);
        PASSES.store(0, Ordering::Relaxed);
        let image = running.dir().join("image");
        let request = freeze_user::checkpoint::Request {
            track: true,
            ..request(running.pid, image.clone(), true)
        };
        let armed = fault::meddle(point, end);
        let done = checkpoint_now(&request, &mut Trackings::new());
        drop(armed);
        done.unwrap_or_else(|e| panic!("{point}: {e}"));
        running.wait_gone();
        restore_now(&image).unwrap_or_else(|e| panic!("{point}: {e}"));
        running.verdict();
    }
}

conformance!(
    exit_signals,
    c(r#"
/* Children whose end tells their parent by another signal, or by none; and one that a child made for its parent. */
static pid_t make(unsigned long flags) { return syscall(SYS_clone, flags, 0, 0, 0, 0); }
static void stay(int code) { while (!gone_ahead()) nap(2); _exit(code); }
static volatile int told;
static void hear(int n) { told++; }
int main(void) {
    signal(SIGUSR1, hear);
    pid_t loud = OK(make(SIGUSR1));
    if (!loud) { signal(SIGUSR1, SIG_DFL); stay(1); }
    pid_t quiet = OK(make(0));
    if (!quiet) stay(2);
    pid_t plain = OK(fork());
    if (!plain) {
        if (!OK(make(CLONE_PARENT))) stay(3);
        stay(4);
    }
    rest(30);
    freeze_here();
    int status, sum = 0;
    SAME(waitpid(loud, &status, __WCLONE), loud);
    SAME(WEXITSTATUS(status), 1);
    SAME(told, 1);
    SAME(waitpid(quiet, &status, __WCLONE), quiet);
    SAME(WEXITSTATUS(status), 2);
    while (waitpid(-1, &status, __WALL) > 0) sum += WEXITSTATUS(status);
    SAME(sum, 3 + 4);
}
"#)
);

conformance!(
    shared_tables,
    c(r#"
/* Children that share descriptors, directory, or memory and handlers with their parent, or with each other. */
static pid_t make(unsigned long flags) { return syscall(SYS_clone, flags | SIGCHLD, 0, 0, 0, 0); }
static volatile int word;
static char stack[65536] __attribute__((aligned(16)));
static void handler(int n) {}
static int in_memory(void *unused) {
    while (!gone_ahead()) { struct timespec t = { 0, 2000000 }; syscall(SYS_nanosleep, &t, 0); }
    struct sigaction now = { .sa_handler = handler };
    sigaction(SIGUSR2, &now, 0);
    word = 77;
    return 5;
}
int main(void) {
    pid_t files = OK(make(CLONE_FILES));
    if (!files) {
        while (!gone_ahead()) nap(2);
        int fd = OK(open("/dev/null", O_RDONLY));
        SAME(dup2(fd, 200), 200);
        _exit(1);
    }
    pid_t fs = OK(make(CLONE_FS));
    if (!fs) {
        while (!gone_ahead()) nap(2);
        OK(chdir("/usr"));
        umask(0123);
        if (!OK(fork())) _exit(0);
        _exit(2);
    }
    pid_t memory = OK(clone(in_memory, stack + sizeof stack, CLONE_VM | CLONE_SIGHAND | SIGCHLD, 0));
    pid_t elder = OK(fork());
    if (!elder) {
        pid_t younger = OK(make(CLONE_PARENT | CLONE_FILES));
        if (!younger) {
            while (!gone_ahead()) nap(2);
            SAME(dup2(2, 201), 201);
            _exit(4);
        }
        while (!gone_ahead()) nap(2);
        while (fcntl(201, F_GETFD) < 0) nap(2);
        _exit(3);
    }
    rest(30);
    freeze_here();
    int status, sum = 0;
    SAME(waitpid(files, &status, 0), files);
    SAME(WEXITSTATUS(status), 1);
    OK(fcntl(200, F_GETFD));
    SAME(waitpid(fs, &status, 0), fs);
    SAME(WEXITSTATUS(status), 2);
    char where[100];
    CHECK(getcwd(where, sizeof where) && !strcmp(where, "/usr"));
    SAME(umask(0), 0123);
    SAME(waitpid(memory, &status, 0), memory);
    SAME(WEXITSTATUS(status), 5);
    SAME(word, 77);
    struct sigaction is;
    OK(sigaction(SIGUSR2, 0, &is));
    CHECK(is.sa_handler == handler);
    CHECK(fcntl(201, F_GETFD) == -1);
    while (waitpid(-1, &status, 0) > 0) sum += WEXITSTATUS(status);
    SAME(sum, 3 + 4);
}
"#),
    only: root
);

conformance!(
    first_thread_gone,
    c(r#"
/* A process whose first thread has ended goes on with the others, and leaves a status of its own. Its descriptors, also
   those that are asked what they are, lead through another thread. */
#include <sys/inotify.h>
#include <sys/socket.h>
#include <netinet/in.h>
static int fd, pair[2], udp, listening, watch, dir;
static void *other(void *kept) {
    char word[8] = "";
    while (!gone_ahead()) nap(2);
    SAME(pread(fd, word, 3, 0), 3);
    CHECK(!strcmp(word, "abc") && !strcmp(kept, "kept"));
    SAME(read(pair[1], word, 8), 2);
    CHECK(!memcmp(word, "hi", 2));
    struct sockaddr_in at;
    socklen_t len = sizeof at;
    OK(getsockname(udp, (void *)&at, &len));
    SAME(sendto(udp, "self", 4, 0, (void *)&at, len), 4);
    SAME(recv(udp, word, 8, 0), 4);
    len = sizeof at;
    OK(getsockname(listening, (void *)&at, &len));
    int client = OK(socket(AF_INET, SOCK_STREAM, 0));
    OK(connect(client, (void *)&at, len));
    OK(accept(listening, 0, 0));
    OK(close(OK(openat(dir, "new", O_CREAT | O_WRONLY, 0600))));
    char event[512];
    CHECK(read(watch, event, sizeof event) > 0);
    _exit(7);
}
static void open_all(void) {
    struct sockaddr_in at = { AF_INET, 0, { htonl(INADDR_LOOPBACK) } };
    OK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    SAME(write(pair[0], "hi", 2), 2);
    udp = OK(socket(AF_INET, SOCK_DGRAM, 0));
    OK(bind(udp, (void *)&at, sizeof at));
    listening = OK(socket(AF_INET, SOCK_STREAM, 0));
    OK(bind(listening, (void *)&at, sizeof at));
    OK(listen(listening, 5));
    OK(mkdir(in_here("watched"), 0700));
    watch = OK(inotify_init1(0));
    OK(inotify_add_watch(watch, in_here("watched"), IN_CREATE));
    dir = OK(open(in_here("watched"), O_RDONLY | O_DIRECTORY));
}
static void *last(void *unused) { while (!gone_ahead()) nap(2); syscall(SYS_exit, 9); return 0; }
int main(void) {
    fd = OK(open(in_here("file"), O_RDWR | O_CREAT, 0600));
    SAME(write(fd, "abc", 3), 3);
    pid_t grouped = OK(fork());
    if (!grouped) {
        pthread_t a, b;
        open_all();
        CHECK(!pthread_create(&a, 0, other, strdup("kept")));
        CHECK(!pthread_create(&b, 0, last, 0));
        pthread_detach(b);
        syscall(SYS_exit, 3);
    }
    pid_t lone = OK(fork());
    if (!lone) {
        pthread_t a;
        CHECK(!pthread_create(&a, 0, last, 0));
        syscall(SYS_exit, 4);
    }
    rest(50);
    freeze_here();
    int status;
    SAME(waitpid(grouped, &status, 0), grouped);
    SAME(WEXITSTATUS(status), 7);
    SAME(waitpid(lone, &status, 0), lone);
    /* What the last one says, or, before Linux 5.17, the first. */
    CHECK(WEXITSTATUS(status) == 9 || WEXITSTATUS(status) == 4);
}
"#)
);

conformance!(
    dead_leaders,
    c(r#"
/* Leaders of a session and of a group that have ended and were not waited for; members go on. */
static void stay(int code) { while (!gone_ahead()) nap(2); _exit(code); }
int main(void) {
    OK(prctl(PR_SET_CHILD_SUBREAPER, 1));
    pid_t session = OK(fork());
    if (!session) {
        OK(setsid());
        OK(setresuid(1000, 1000, 1000));
        if (!OK(fork())) stay(1);
        raise(SIGKILL);
    }
    pid_t group = OK(fork());
    if (!group) { OK(setpgid(0, 0)); if (!OK(fork())) stay(2); _exit(33); }
    siginfo_t info;
    OK(waitid(P_PID, session, &info, WEXITED | WNOWAIT));
    OK(waitid(P_PID, group, &info, WEXITED | WNOWAIT));
    rest(20);
    freeze_here();
    int status, sum = 0;
    OK(waitid(P_PID, session, &info, WEXITED | WNOWAIT));
    SAME(info.si_uid, 1000);
    SAME(waitpid(session, &status, 0), session);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    SAME(waitpid(group, &status, 0), group);
    SAME(WEXITSTATUS(status), 33);
    while (waitpid(-1, &status, 0) > 0) sum += WEXITSTATUS(status);
    SAME(sum, 1 + 2);
}
"#)
);

conformance!(
    stops_and_who_knows,
    c(r#"
/* A stop is told to a parent that asks once, before a restore or after, and no SIGCHLD comes out of nothing. */
static volatile int told;
static void hear(int n) { told++; }
static pid_t stopping(int signal) {
    pid_t pid = OK(fork());
    if (!pid) { raise(signal); _exit(signal); }
    siginfo_t info;
    OK(waitid(P_PID, pid, &info, WSTOPPED | WNOWAIT));
    return pid;
}
int main(void) {
    struct sigaction act = { .sa_handler = hear };
    OK(sigaction(SIGCHLD, &act, 0));
    int status;
    pid_t known = stopping(SIGSTOP), unknown = stopping(SIGSTOP);
    SAME(waitpid(known, &status, WUNTRACED), known);
    int before = told;
    freeze_here();
    SAME(told, before);
    SAME(waitpid(known, &status, WUNTRACED | WNOHANG), 0);
    SAME(waitpid(unknown, &status, WUNTRACED | WNOHANG), unknown);
    CHECK(WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
    SAME(waitpid(unknown, &status, WUNTRACED | WNOHANG), 0);
    pid_t all[] = { known, unknown };
    for (int i = 0; i < 2; i++) {
        OK(kill(all[i], SIGCONT));
        while (waitpid(all[i], &status, 0) < 0) SAME(errno, EINTR);
        SAME(WEXITSTATUS(status), SIGSTOP);
    }
}
"#)
);

conformance!(
    continued,
    c(r#"
/* That a child goes on after a stop is told to a parent that has not asked yet, and to nobody who has. */
int main(void) {
    pid_t pids[2];
    int status;
    for (int i = 0; i < 2; i++) {
        pids[i] = OK(fork());
        if (!pids[i]) for (;;) pause();
        OK(kill(pids[i], SIGSTOP));
        SAME(waitpid(pids[i], &status, WUNTRACED), pids[i]);
        OK(kill(pids[i], SIGCONT));
    }
    SAME(waitpid(pids[0], &status, WCONTINUED), pids[0]);
    siginfo_t info;
    OK(waitid(P_PID, pids[1], &info, WCONTINUED | WNOWAIT));
    freeze_here();
    for (int i = 0; i < 2; i++) {
        info.si_pid = 0;
        OK(waitid(P_PID, pids[i], &info, WCONTINUED | WNOHANG));
        SAME(info.si_pid, i ? pids[1] : 0);
        OK(kill(pids[i], SIGTERM));
        SAME(waitpid(pids[i], &status, 0), pids[i]);
        SAME(WTERMSIG(status), SIGTERM);
    }
}
"#)
);

conformance!(
    left_group,
    c(r#"
/* Whoever made a group has gone to another, and its members are still there. */
static void stay(pid_t group, int code) { while (!gone_ahead()) nap(2); _exit(getpgrp() == group ? code : 99); }
int main(void) {
    int told[2], status;
    char byte;
    OK(pipe(told));
    pid_t other = OK(fork()), maker;
    if (!other) { OK(setpgid(0, 0)); stay(getpid(), 1); }
    OK(setpgid(other, other));
    if (!(maker = OK(fork()))) {
        pid_t own = getpid(), child;
        OK(setpgid(0, 0));
        if (!(child = OK(fork()))) stay(own, 2);
        OK(setpgid(0, other));
        SAME(write(told[1], "", 1), 1);
        while (!gone_ahead()) nap(2);
        OK(waitpid(child, &status, 0));
        _exit(getpgrp() == other ? WEXITSTATUS(status) + 3 : 99);
    }
    SAME(read(told[0], &byte, 1), 1);
    rest(20);
    freeze_here();
    OK(waitpid(other, &status, 0));
    SAME(WEXITSTATUS(status), 1);
    OK(waitpid(maker, &status, 0));
    SAME(WEXITSTATUS(status), 5);
}
"#)
);

conformance!(
    next_pid,
    c(r#"
/* The id that is given out next in a pid namespace is not one that was given out lately. */
static int born(void) {
    int kid = OK(fork());
    if (!kid) _exit(0);
    SAME(waitpid(kid, 0, 0), kid);
    return kid;
}
int main(void) {
    int status, init = OK(syscall(SYS_clone, CLONE_NEWPID | SIGCHLD, 0, 0, 0, 0));
    if (!init) {
        int last = 0;
        for (int i = 0; i < 40; i++) last = born();
        CHECK(last >= 41);
        while (!gone_ahead()) nap(2);
        int next = born();
        /* Whoever looks from outside is born there too. */
        _exit(next > last && next < last + 9000 ? 0 : 1);
    }
    freeze_here();
    SAME(waitpid(init, &status, 0), init);
    SAME(status, 0);
    return 0;
}
"#)
);

conformance!(
    io_context,
    c(r#"
/* A child that shares its parent's I/O context, with its priority, and one that has its own. */
#include <sys/syscall.h>
enum { IO = 5, PRIORITY = 2 << 13 | 3 };
int main(void) {
    OK(syscall(SYS_ioprio_set, 1, 0, PRIORITY));
    int with = OK(syscall(SYS_clone, 0x80000000ul | SIGCHLD, 0, 0, 0, 0));
    if (!with) for (;;) pause();
    int without = OK(fork());
    if (!without) for (;;) pause();
    SAME(syscall(SYS_kcmp, getpid(), with, IO, 0, 0), 0);
    CHECK(syscall(SYS_kcmp, getpid(), without, IO, 0, 0) > 0);
    freeze_here();
    SAME(syscall(SYS_kcmp, getpid(), with, IO, 0, 0), 0);
    CHECK(syscall(SYS_kcmp, getpid(), without, IO, 0, 0) > 0);
    SAME(syscall(SYS_ioprio_get, 1, with), PRIORITY);
    SAME(syscall(SYS_ioprio_get, 1, 0), PRIORITY);
    for (int child = with; child; child = child == with ? without : 0) {
        OK(kill(child, SIGKILL));
        SAME(waitpid(child, 0, 0), child);
    }
}
"#)
);

/// As root of a pid namespace, which is the machine to it: a program with a thread, in a user namespace of its own and no
/// other, is checkpointed, killed and restored after the ids behind its own have been given out.
const TURNED_BACK: &str = r#"
set -e
freeze=$1 dir=$2
unshare --user --map-root-user python3 -c "
import os, sys, threading, time
os.closerange(3, 65536)
def work():
    open(sys.argv[1], 'w').write(str(threading.get_native_id()))
    time.sleep(1000)
threading.Thread(target=work).start()
" "$dir/ready" < /dev/null > /dev/null 2>&1 &
program=$!
while [ ! -s "$dir/ready" ]; do kill -0 "$program"; sleep 0.01; done
for n in $(seq 100); do (:); done
"$freeze" checkpoint --kill "$program" --to "$dir/image"
last=$(cat /proc/sys/kernel/ns_last_pid)
"$freeze" restore "$dir/image" --detach
next=$(cat /proc/sys/kernel/ns_last_pid)
ls "/proc/$program/task"
echo "the thread is $(cat "$dir/ready"), the last id was $last and is $next"
[ -d "/proc/$program/task/$(cat "$dir/ready")" ]
[ "$last" -gt "$(cat "$dir/ready")" ]
[ "$next" -ge "$last" ]
"#;

#[test]
fn the_next_id_of_the_machine_stays_where_it_was() {
    let dir = scratch();
    let mut unshare = Command::new("unshare");
    unshare.args([
        "--pid",
        "--fork",
        "--mount-proc",
        "--kill-child",
        "sh",
        "-c",
        TURNED_BACK,
        "sh",
    ]);
    let out = unshare
        .arg(freeze().get_program())
        .arg(&dir)
        .stdin(Stdio::null())
        .output();
    let out = out.expect("unshare, of util-linux");
    let _ = std::fs::remove_dir_all(&dir);
    assert!(
        out.status.success(),
        "{}{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
}
