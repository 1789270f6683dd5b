//! Conformance of families: parents and children, sessions, process groups, orphans, zombies, stopped ones.

use freeze_tests::{c, conformance};

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
    nap(60);
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
    nap(20);
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
    nap(10);
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
    nap(30);
    SAME(waitpid(pid, &status, WNOHANG), 0);
    OK(kill(pid, SIGCONT));
    OK(waitpid(pid, &status, 0));
    SAME(WEXITSTATUS(status), 5);
}
"#)
);
