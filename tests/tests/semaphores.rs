//! Conformance of System V semaphores: ids, values, owners, who operated last, what is taken back, who waits.

use freeze_tests::subject::output;
use freeze_tests::{Running, c, conformance, freeze};

/// Sets get ids of their own, which no other test is given while this one is down.
const MAKE: &str = r#"
#include <sys/ipc.h>
#include <sys/sem.h>
union semun { int val; struct semid_ds *buf; unsigned short *array; };
static int make(int key, int n, int mode, int id) {
    for (;;) {
        FILE *next = fopen("/proc/sys/kernel/sem_next_id", "w");
        CHECK(next);
        fprintf(next, "%d", id);
        fclose(next);
        int got = OK(semget(key, n, IPC_CREAT | IPC_EXCL | mode));
        if (got == id) return got;
        OK(semctl(got, 0, IPC_RMID));
    }
}
static int own_id(void) { return 2048 + getpid() % 14000 * 2; }
static int op(int id, int n, int by, int flags) {
    struct sembuf b = { n, by, flags };
    return semop(id, &b, 1);
}
"#;

fn with(text: &str) -> freeze_tests::Subject {
    c(&format!("{MAKE}{text}"))
}

conformance!(
    values,
    with(
        r#"
/* Key, id, mode, values and the last pid of each; a second set without a key. */
int main(void) {
    int apart = housed();
    int key = 0x5e000000 | getpid(), id = own_id();
    int a = make(key, 5, 0640, id), b = make(IPC_PRIVATE, 1, 0600, id + 1);
    OK(op(a, 0, 7, 0));
    OK(semctl(a, 2, SETVAL, 32767));
    int child = OK(fork()), status;
    if (!child) { OK(op(a, 3, 9, 0)); _exit(0); }
    OK(waitpid(child, &status, 0));
    OK(op(b, 0, 1, 0));
    freeze_here();
    SAME(semget(key, 0, 0), a);
    struct semid_ds ds;
    OK(semctl(a, 0, IPC_STAT, (union semun){ .buf = &ds }));
    SAME(ds.sem_perm.mode & 0777, 0640);
    SAME(ds.sem_nsems, 5);
    int want[5] = { 7, 0, 32767, 9, 0 };
    for (int i = 0; i < 5; i++) SAME(semctl(a, i, GETVAL), want[i]);
    SAME(semctl(a, 0, GETPID), getpid());
    SAME(semctl(a, 1, GETPID), 0);
    SAME(semctl(a, 2, GETPID), getpid());
    /* In a pid namespace of its own nobody tells freeze the number of who has ended. */
    if (!apart) SAME(semctl(a, 3, GETPID), child);
    SAME(semctl(b, 0, GETVAL), 1);
    OK(semctl(a, 0, IPC_RMID));
    OK(semctl(b, 0, IPC_RMID));
}
"#
    )
);

conformance!(
    in_two_namespaces,
    c(r#"
/* Each IPC namespace has a set of the same id, with other values, and something to take back. */
#include <sched.h>
#include <sys/mman.h>
#include <sys/sem.h>
int main(void) {
    int *ids = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int children[2], status;
    for (int n = 0; n < 2; n++) {
        children[n] = OK(fork());
        if (children[n]) continue;
        OK(unshare(CLONE_NEWIPC));
        int id = OK(semget(0x52, 3 + n, IPC_CREAT | 0600));
        struct sembuf plain = {0, 5 + n, 0}, undone = {1, 7 + n, SEM_UNDO};
        OK(semop(id, &plain, 1));
        OK(semop(id, &undone, 1));
        ids[n] = id;
        __atomic_store_n(&ids[8 + n], 1, __ATOMIC_SEQ_CST);
        while (!gone_ahead()) nap(2);
        SAME(semget(0x52, 3 + n, 0), id);
        SAME(semctl(id, 0, GETVAL), 5 + n);
        SAME(semctl(id, 1, GETVAL), 7 + n);
        int child = OK(fork()), status;
        if (!child) _exit(0);
        SAME(waitpid(child, &status, 0), child);
        SAME(semctl(id, 1, GETPID), getpid());
        _exit(0);
    }
    while (!__atomic_load_n(&ids[8], __ATOMIC_SEQ_CST) || !__atomic_load_n(&ids[9], __ATOMIC_SEQ_CST)) nap(2);
    SAME(ids[0], ids[1]);
    freeze_here();
    for (int n = 0; n < 2; n++) {
        SAME(waitpid(children[n], &status, 0), children[n]);
        SAME(status, 0);
    }
}
"#)
);

conformance!(
    by_who_has_left,
    with(
        r#"
/* Last operated on by one that has ended and is not waited for yet, and by one that lives in another IPC namespace now. */
int main(void) {
    int a = make(IPC_PRIVATE, 3, 0600, own_id()), status;
    OK(op(a, 0, 1, 0));
    int ended = OK(fork());
    if (!ended) { OK(op(a, 1, 4, 0)); _exit(0); }
    siginfo_t info;
    OK(waitid(P_PID, ended, &info, WEXITED | WNOWAIT));
    int moved = OK(fork());
    if (!moved) {
        OK(op(a, 2, 5, 0));
        OK(unshare(CLONE_NEWIPC));
        while (!gone_ahead()) nap(2);
        _exit(0);
    }
    while (semctl(a, 2, GETVAL) != 5) nap(2);
    rest(20);
    freeze_here();
    SAME(semctl(a, 0, GETVAL), 1);
    SAME(semctl(a, 1, GETVAL), 4);
    SAME(semctl(a, 2, GETVAL), 5);
    SAME(semctl(a, 1, GETPID), ended);
    OK(waitpid(ended, &status, 0));
    OK(waitpid(moved, &status, 0));
    SAME(status, 0);
    OK(semctl(a, 0, IPC_RMID));
}
"#
    )
);

conformance!(
    undo,
    with(
        r#"
/* What is taken back at the end of processes, up and down, at the bounds too. */
int main(void) {
    int id = own_id(), a = make(IPC_PRIVATE, 4, 0600, id);
    OK(op(a, 0, 10, 0));
    OK(op(a, 2, 32767, 0));
    int child = OK(fork());
    if (!child) {
        OK(op(a, 0, -3, SEM_UNDO));
        OK(op(a, 1, 5, SEM_UNDO));
        OK(op(a, 2, -32767, SEM_UNDO));
        OK(op(a, 2, 32767, 0));
        OK(op(a, 3, 1, 0));
        while (!gone_ahead()) nap(2);
        rest(50);
        _exit(0);
    }
    while (semctl(a, 3, GETVAL) != 1) nap(1);
    OK(op(a, 0, -2, SEM_UNDO));
    freeze_here();
    SAME(semctl(a, 0, GETVAL), 5);
    SAME(semctl(a, 1, GETVAL), 5);
    SAME(semctl(a, 2, GETVAL), 32767);
    OK(op(a, 2, -32760, 0));
    int status;
    OK(waitpid(child, &status, 0));
    SAME(status, 0);
    SAME(semctl(a, 0, GETVAL), 8);
    SAME(semctl(a, 1, GETVAL), 0);
    SAME(semctl(a, 2, GETVAL), 32767);
    child = OK(fork());
    if (!child) { OK(op(a, 0, -8, SEM_UNDO)); _exit(0); }
    OK(waitpid(child, &status, 0));
    SAME(semctl(a, 0, GETVAL), 8);
    OK(op(a, 0, 2, SEM_UNDO)); /* back where it was: nothing is left to be taken back */
    OK(semctl(a, 0, IPC_RMID));
}
"#
    )
);

conformance!(
    waiting,
    with(
        r#"
/* A process and a thread wait, one for more, one for zero. */
static int a;
static void *thread(void *x) { OK(op(a, 1, 0, 0)); return x; }
int main(void) {
    a = make(IPC_PRIVATE, 2, 0600, own_id());
    OK(op(a, 1, 1, 0));
    int child = OK(fork()), status;
    if (!child) { OK(op(a, 0, -2, 0)); _exit(7); }
    pthread_t t;
    CHECK(!pthread_create(&t, 0, thread, &a));
    while (semctl(a, 0, GETNCNT) != 1 || semctl(a, 1, GETZCNT) != 1) nap(1);
    freeze_here();
    for (int i = 0; i < 1000 && semctl(a, 0, GETNCNT) != 1; i++) nap(2);
    OK(op(a, 0, 2, 0));
    OK(waitpid(child, &status, 0));
    SAME(WEXITSTATUS(status), 7);
    OK(op(a, 1, -1, 0));
    CHECK(!pthread_join(t, 0));
    OK(semctl(a, 0, IPC_RMID));
}
"#
    )
);

conformance!(
    undo_of_who_may_not_operate_any_more,
    with(
        r#"
#include <sys/prctl.h>
/* What is taken back was given while it could be. */
int main(void) {
    int a = make(IPC_PRIVATE, 2, 0600, own_id());
    OK(op(a, 0, 10, 0));
    OK(op(a, 1, 1, 0));
    int child = OK(fork()), status;
    if (!child) {
        OK(op(a, 0, -3, SEM_UNDO));
        OK(setresuid(4711, 4711, 4711));
        OK(prctl(PR_SET_DUMPABLE, 1));
        CHECK(op(a, 0, 1, 0) == -1 && errno == EACCES);
        while (!gone_ahead()) nap(2);
        _exit(0);
    }
    while (semctl(a, 0, GETVAL) != 7) nap(1);
    freeze_here();
    OK(waitpid(child, &status, 0));
    SAME(status, 0);
    SAME(semctl(a, 0, GETVAL), 10);
    OK(semctl(a, 0, IPC_RMID));
}
"#
    )
);

/// What freeze says against a checkpoint of a subject, which runs on.
fn refused(text: &str, test: &str) -> String {
    let mut running = Running::start(&with(text), test);
    let image = running.dir().join("image");
    let mut checkpoint = freeze();
    checkpoint.args(["checkpoint", &running.pid.to_string(), "--to"]);
    let done = output(checkpoint.arg(&image));
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert_eq!(done.status.code(), Some(3), "{said}");
    assert!(!image.exists());
    running.verdict();
    said
}

/// Where the kernel lets freeze look, it asks nobody, and the set does not show that it was there.
#[test]
fn a_checkpoint_leaves_the_time_of_the_last_operation() {
    let text = r#"
int main(void) {
    int a = make(IPC_PRIVATE, 1, 0600, own_id());
    OK(op(a, 0, 5, SEM_UNDO));
    struct semid_ds before, after;
    OK(semctl(a, 0, IPC_STAT, (union semun){ .buf = &before }));
    rest(1100);
    freeze_here();
    OK(semctl(a, 0, IPC_STAT, (union semun){ .buf = &after }));
    SAME(after.sem_otime, before.sem_otime);
    OK(semctl(a, 0, IPC_RMID));
}
"#;
    let mut running = Running::start(&with(text), "a_checkpoint_leaves_the_time_of_the_last_operation");
    let mut checkpoint = freeze();
    checkpoint.args(["checkpoint", &running.pid.to_string(), "--to"]);
    let done = output(checkpoint.arg(running.dir().join("image")));
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    running.verdict();
}

/// A restored process has one list of them for all its threads.
#[test]
fn what_a_thread_alone_takes_back_is_refused() {
    let text = r#"
static char stack[65536];
static int a;
static int thread(void *unused) {
    if (op(a, 0, 2, SEM_UNDO)) return 1;
    while (!gone_ahead()) nap(2);
    syscall(SYS_exit, 0);
    return 0;
}
int main(void) {
    a = make(IPC_PRIVATE, 1, 0600, own_id());
    OK(op(a, 0, 5, SEM_UNDO));
    OK(clone(thread, stack + sizeof stack, CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD, 0));
    while (semctl(a, 0, GETVAL) != 7) nap(1);
    freeze_here();
    while (semctl(a, 0, GETVAL) != 5) nap(1);
    OK(semctl(a, 0, IPC_RMID));
}
"#;
    let said = refused(text, "what_a_thread_alone_takes_back_is_refused");
    assert!(said.contains("the thread's own"), "{said}");
}

#[test]
fn what_two_processes_take_back_together_is_refused() {
    let text = r#"
static char stack[65536];
static int child(void *unused) { while (!gone_ahead()) nap(2); return 0; }
int main(void) {
    int a = make(IPC_PRIVATE, 1, 0600, own_id()), status;
    OK(op(a, 0, 5, SEM_UNDO));
    int pid = OK(clone(child, stack + sizeof stack, CLONE_SYSVSEM | SIGCHLD, 0));
    freeze_here();
    OK(waitpid(pid, &status, 0));
    SAME(semctl(a, 0, GETVAL), 5);
    OK(semctl(a, 0, IPC_RMID));
}
"#;
    let said = refused(text, "what_two_processes_take_back_together_is_refused");
    assert!(said.contains("is shared with process"), "{said}");
}
