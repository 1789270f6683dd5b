//! Conformance of seccomp: strict mode, and filters of one thread, of all, and of those that were born under them.

use freeze_tests::{c, conformance};

/// What the subjects have in common: a filter that lets all pass but one call, which fails with a number of its own.
const FILTERS: &str = r#"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
static int refuse(int call, int error, int flags) {
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, call, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | error),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog prog = { sizeof code / sizeof *code, code };
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &prog);
}
static int fails(int call, int error) { return syscall(call, 0, 0, 0) == -1 && errno == error; }
"#;

fn with_filters(text: &str) -> freeze_tests::Subject {
    c(&format!("{FILTERS}\n{text}"))
}

conformance!(
    filters,
    with_filters(
        r#"
/* Three filters in a process and its child, of which the child has one more; the youngest answers first. */
int main(void) {
    OK(refuse(SYS_getpgid, 41, 0));
    OK(refuse(SYS_getsid, 42, SECCOMP_FILTER_FLAG_LOG));
    pid_t pid = OK(fork());
    if (!pid) {
        OK(refuse(SYS_getsid, 43, 0));
        while (!gone_ahead()) nap(2);
        CHECK(fails(SYS_getpgid, 41) && fails(SYS_getsid, 43));
        _exit(0);
    }
    rest(20);
    freeze_here();
    CHECK(fails(SYS_getpgid, 41) && fails(SYS_getsid, 42));
    SAME(prctl(PR_GET_SECCOMP), 2);
    int status;
    OK(waitpid(pid, &status, 0));
    SAME(status, 0);
}
"#
    )
);

conformance!(
    threads,
    with_filters(
        r#"
/* A filter for all threads at once, and one for a single thread. */
static void *plain(void *unused) {
    while (!gone_ahead()) nap(2);
    CHECK(fails(SYS_getpgid, 41));
    CHECK(!fails(SYS_getsid, 42));
    return 0;
}
static void *own(void *unused) {
    OK(refuse(SYS_getsid, 42, 0));
    while (!gone_ahead()) nap(2);
    CHECK(fails(SYS_getpgid, 41) && fails(SYS_getsid, 42));
    return 0;
}
int main(void) {
    pthread_t a, b;
    CHECK(!pthread_create(&a, 0, plain, 0));
    rest(10);
    OK(refuse(SYS_getpgid, 41, SECCOMP_FILTER_FLAG_TSYNC));
    CHECK(!pthread_create(&b, 0, own, 0));
    rest(20);
    freeze_here();
    CHECK(fails(SYS_getpgid, 41));
    CHECK(!pthread_join(a, 0) && !pthread_join(b, 0));
}
"#
    )
);

conformance!(
    all_at_once_again,
    with_filters(
        r#"
/* What threads share they share afterwards too, or none could put a filter on all of them again (TSYNC). */
static volatile int synced;
static void *thread(void *unused) {
    while (!gone_ahead() || !synced) nap(2);
    CHECK(fails(SYS_getpgid, 41) && fails(SYS_getsid, 43));
    return 0;
}
int main(void) {
    pthread_t a, b;
    OK(refuse(SYS_getpgid, 41, 0));
    OK(refuse(SYS_getpriority, 44, SECCOMP_FILTER_FLAG_LOG));
    CHECK(!pthread_create(&a, 0, thread, 0));
    CHECK(!pthread_create(&b, 0, thread, 0));
    rest(20);
    freeze_here();
    SAME(refuse(SYS_getsid, 43, SECCOMP_FILTER_FLAG_TSYNC), 0);
    CHECK(fails(SYS_getpriority, 44));
    synced = 1;
    CHECK(!pthread_join(a, 0) && !pthread_join(b, 0));
}
"#
    )
);

conformance!(
    kills,
    with_filters(
        r#"
/* In strict mode, or under a filter that kills, the first forbidden call is the end, and not before. */
int main(void) {
    volatile int *go = OK(mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    pid_t strict = OK(fork());
    if (!strict) {
        OK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT));
        go[1] = 1;
        while (!*go) __asm__ volatile("pause");
        if (*go == 1) { syscall(SYS_exit, 5); }
    }
    pid_t forbidden = OK(fork());
    if (!forbidden) {
        OK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT));
        go[2] = 1;
        while (!*go) __asm__ volatile("pause");
        syscall(SYS_getpid);
    }
    while (!go[1] || !go[2]) nap(1);
    freeze_here();
    *go = 1;
    int status;
    OK(waitpid(strict, &status, 0));
    CHECK(WIFEXITED(status));
    SAME(WEXITSTATUS(status), 5);
    OK(waitpid(forbidden, &status, 0));
    CHECK(WIFSIGNALED(status));
    SAME(WTERMSIG(status), SIGKILL);
}
"#
    )
);
