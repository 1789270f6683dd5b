//! Conformance of credentials: ids, groups, capability sets, securebits, no_new_privs, dumpable.

use freeze_tests::cycle::{checkpoint_now, request};
use freeze_tests::{Running, c, conformance, python};
use freeze_user::nest::Options;
use freeze_user::precopy::Trackings;
use freeze_user::restore::restore;
use freeze_user::store::Opened;

conformance!(
    ordinary_user,
    c(r#"
#include <grp.h>
/* Nobody, with groups and without a capability; what comes back has no more rights than it had. */
int main(void) {
    gid_t groups[] = { 7, 100, 4711, 65533 }, now[16];
    OK(setgroups(4, groups));
    OK(setresgid(65534, 65534, 1000));
    OK(setresuid(65534, 65534, 65534));
    freeze_here();
    uid_t r, e, s;
    OK(getresuid(&r, &e, &s));
    SAME(r, 65534); SAME(e, 65534); SAME(s, 65534);
    OK(getresgid(&r, &e, &s));
    SAME(r, 65534); SAME(e, 65534); SAME(s, 1000);
    SAME(getgroups(16, now), 4);
    CHECK(!memcmp(groups, now, sizeof groups));
    CHECK(setuid(0) == -1 && errno == EPERM);
    CHECK(open("/proc/1/environ", O_RDONLY) == -1 && errno == EACCES);
    SAME(prctl(PR_GET_DUMPABLE), 0);
}
"#)
);

conformance!(
    capabilities,
    c(r#"
#include <linux/capability.h>
#include <linux/securebits.h>
/* Every capability set different from the others, with securebits and ambient ones. */
static void set(uint32_t effective, uint32_t permitted, uint32_t inheritable) {
    struct __user_cap_header_struct head = { _LINUX_CAPABILITY_VERSION_3, 0 };
    struct __user_cap_data_struct data[2] = { { effective, permitted, inheritable }, { 0, 0, 0 } };
    OK(syscall(SYS_capset, &head, data));
}
int main(void) {
    enum { NET = 1 << CAP_NET_BIND_SERVICE, CHOWN = 1 << CAP_CHOWN, NICE = 1 << CAP_SYS_NICE };
    OK(prctl(PR_CAPBSET_DROP, CAP_SYS_MODULE, 0, 0, 0));
    OK(prctl(PR_SET_SECUREBITS, SECBIT_KEEP_CAPS | SECBIT_NOROOT));
    OK(setresuid(1000, 1001, 1002));
    set(NET, NET | CHOWN | NICE, NET | NICE);
    OK(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_SYS_NICE, 0, 0));
    OK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    OK(prctl(PR_SET_DUMPABLE, 1));
    freeze_here();
    struct __user_cap_header_struct head = { _LINUX_CAPABILITY_VERSION_3, 0 };
    struct __user_cap_data_struct data[2];
    OK(syscall(SYS_capget, &head, data));
    SAME(data[0].effective, NET);
    SAME(data[0].permitted, NET | CHOWN | NICE);
    SAME(data[0].inheritable, NET | NICE);
    SAME(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, CAP_SYS_NICE, 0, 0), 1);
    SAME(prctl(PR_CAPBSET_READ, CAP_SYS_MODULE, 0, 0, 0), 0);
    SAME(prctl(PR_CAPBSET_READ, CAP_CHOWN, 0, 0, 0), 1);
    SAME(prctl(PR_GET_SECUREBITS), SECBIT_KEEP_CAPS | SECBIT_NOROOT);
    SAME(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), 1);
    SAME(prctl(PR_GET_DUMPABLE), 1);
    uid_t r, e, s;
    OK(getresuid(&r, &e, &s));
    SAME(r, 1000); SAME(e, 1001); SAME(s, 1002);
}
"#)
);

conformance!(
    locked_securebits,
    c(r#"
#include <linux/securebits.h>
/* A bit that is locked is set with its lock, and nobody may ask for it again. */
int main(void) {
    enum { BITS = SECBIT_KEEP_CAPS | SECBIT_KEEP_CAPS_LOCKED | SECBIT_NOROOT | SECBIT_NOROOT_LOCKED };
    OK(prctl(PR_SET_SECUREBITS, BITS));
    freeze_here();
    SAME(prctl(PR_GET_SECUREBITS), BITS);
    SAME(prctl(PR_GET_KEEPCAPS), 1);
}
"#)
);

conformance!(
    death_signal,
    c(r#"
/* A child that asked to be told of its parent's end is told, after a restore as well. */
int main(void) {
    int pid = OK(fork());
    if (!pid) {
        sigset_t set;
        sigemptyset(&set);
        sigaddset(&set, SIGUSR1);
        sigprocmask(SIG_BLOCK, &set, 0);
        int child = OK(fork());
        if (!child) {
            OK(prctl(PR_SET_PDEATHSIG, SIGUSR1));
            OK(setresuid(65534, 65534, 65534));
            OK(prctl(PR_SET_PDEATHSIG, SIGUSR1));
            struct timespec limit = { 20, 0 };
            int got = sigtimedwait(&set, 0, &limit);
            int fd = OK(open(in_here("told"), O_CREAT | O_WRONLY, 0600));
            write(fd, got == SIGUSR1 ? "y" : "n", 1);
            _exit(0);
        }
        while (!gone_ahead()) nap(2);
        _exit(0);
    }
    rest(30);
    freeze_here();
    OK(waitpid(pid, 0, 0));
    for (int i = 0; i < 2000; i++) {
        char answer = 0;
        int fd = open(in_here("told"), O_RDONLY);
        if (fd >= 0 && read(fd, &answer, 1) == 1) { SAME(answer, 'y'); return 0; }
        if (fd >= 0) close(fd);
        nap(5);
    }
    DIE("the grandchild was not told");
}
"#)
);

conformance!(
    a_parent_without_its_first_thread,
    c(r#"
/* A child that is to be told of its parent's end is not told of that of a first thread which had ended long before. */
static int *asked;
static void *thread(void *unused) {
    int status, child = OK(fork());
    if (!child) {
        OK(prctl(PR_SET_PDEATHSIG, SIGTERM));
        *asked = 1;
        while (!gone_ahead()) nap(2);
        int signal = 0;
        OK(prctl(PR_GET_PDEATHSIG, &signal));
        SAME(signal, SIGTERM);
        _exit(3);
    }
    OK(waitpid(child, &status, 0));
    SAME(status, 3 << 8);
    _exit(4);
}
int main(void) {
    asked = OK(mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    int parent = OK(fork()), status;
    if (!parent) {
        pthread_t t;
        CHECK(!pthread_create(&t, 0, thread, 0));
        syscall(SYS_exit, 0);
    }
    while (!*asked) nap(1);
    rest(20);
    freeze_here();
    OK(waitpid(parent, &status, 0));
    SAME(status, 4 << 8);
}
"#)
);

conformance!(
    own_of_threads,
    c(r#"
#include <grp.h>
/* Threads that are other users than their process, with other groups and capabilities; hundreds of groups. */
static int want[3][2] = { { 0, 0 }, { 1000, 1001 }, { 2000, 2001 } };
static volatile int begun;
static void *thread(void *arg) {
    int n = (int)(intptr_t)arg;
    gid_t groups[300], now[400];
    for (int i = 0; i < 300; i++) groups[i] = 5000 + 10 * i + n;
    OK(syscall(SYS_setgroups, 300, groups));
    OK(syscall(SYS_setresgid, want[n][1], want[n][1], want[n][1]));
    OK(syscall(SYS_setresuid, want[n][0], want[n][0], want[n][0]));
    __sync_fetch_and_add(&begun, 1);
    while (!gone_ahead()) nap(2);
    SAME(syscall(SYS_getuid), want[n][0]);
    SAME(syscall(SYS_getgid), want[n][1]);
    SAME(syscall(SYS_getgroups, 400, now), 300);
    CHECK(!memcmp(groups, now, sizeof groups));
    CHECK(syscall(SYS_setresuid, 0, 0, 0) == -1);
    return 0;
}
int main(void) {
    pthread_t t[2];
    for (intptr_t n = 0; n < 2; n++) CHECK(!pthread_create(&t[n], 0, thread, (void *)(n + 1)));
    while (begun < 2) nap(1);
    OK(prctl(PR_SET_DUMPABLE, 1));
    freeze_here();
    SAME(getuid(), 0);
    SAME(prctl(PR_GET_DUMPABLE), 1);
    for (int n = 0; n < 2; n++) CHECK(!pthread_join(t[n], 0));
    OK(setuid(1));
}
"#)
);

/// A restorer that leaves at once is no parent whose death the program asked to be told of.
#[test]
fn a_restorer_that_leaves_does_not_end_what_it_restored() {
    let text = "import ctypes\nassert ctypes.CDLL(None).prctl(1, 9) == 0\nfreeze_here()";
    let mut running = Running::start(&python(text), "a_restorer_that_leaves");
    let image = running.dir().join("image");
    checkpoint_now(&request(running.pid, image.clone(), true), &mut Trackings::new()).unwrap();
    running.wait_gone();
    let options = Options {
        leaves: true,
        ..Options::default()
    };
    // A thread that ends is as good as a process that does (prctl(2), PR_SET_PDEATHSIG).
    let leave = || restore(Opened::open(&image).unwrap(), options).unwrap();
    let restored = std::thread::scope(|s| s.spawn(leave).join().unwrap());
    assert!(
        restored.warnings.iter().any(|w| w.contains("parent's death")),
        "{restored:?}"
    );
    running.pids();
    running.verdict();
}
