//! Conformance of System V message queues: ids, messages in order, limits, who sent and received, who waits.

use freeze_tests::{c, conformance};

/// Queues get ids of their own, which no other test is given while this one is down.
const MAKE: &str = r#"
#include <sys/ipc.h>
#include <sys/msg.h>
struct message { long type; char text[9000]; };
static int make(int key, int mode, int id) {
    for (;;) {
        FILE *next = fopen("/proc/sys/kernel/msg_next_id", "w");
        CHECK(next);
        fprintf(next, "%d", id);
        fclose(next);
        int got = OK(msgget(key, IPC_CREAT | IPC_EXCL | mode));
        if (got == id) return got;
        OK(msgctl(got, IPC_RMID, 0));
    }
}
static int own_id(void) { return 2048 + getpid() % 14000 * 2; }
static void put(int q, long type, const char *text) {
    struct message m = { type };
    strcpy(m.text, text);
    OK(msgsnd(q, &m, strlen(text), 0));
}
static void take(int q, long type, long got, const char *text) {
    struct message m = { 0 };
    SAME(msgrcv(q, &m, 9000, type, IPC_NOWAIT), strlen(text));
    SAME(m.type, got);
    CHECK(!memcmp(m.text, text, strlen(text)));
}
"#;

fn with(text: &str) -> freeze_tests::Subject {
    c(&format!("{MAKE}{text}"))
}

conformance!(
    messages,
    with(
        r#"
/* Types, order, an empty one and a large one; the last sender has ended. */
int main(void) {
    int apart = housed();
    int key = 0x3e000000 | getpid(), id = own_id(), q = make(key, 0644, id), other = make(IPC_PRIVATE, 0600, id + 1);
    put(q, 9, "gone");
    put(q, 5, "five");
    put(q, 3, "three");
    put(q, 5, "five again");
    put(q, 1, "");
    struct message large = { 77 };
    memset(large.text, 'x', 8000);
    OK(msgsnd(q, &large, 8000, 0));
    take(q, 9, 9, "gone");
    int child = OK(fork()), status;
    if (!child) { put(q, 3, "from the child"); _exit(0); }
    OK(waitpid(child, &status, 0));
    put(other, 1, "once");
    take(other, 0, 1, "once");
    struct msqid_ds ds;
    OK(msgctl(q, IPC_STAT, &ds));
    ds.msg_qbytes = 8100;
    OK(msgctl(q, IPC_SET, &ds));
    freeze_here();
    SAME(msgget(key, 0), q);
    OK(msgctl(q, IPC_STAT, &ds));
    SAME(ds.msg_qnum, 6);
    SAME(ds.msg_qbytes, 8100);
    SAME(ds.msg_perm.mode & 0777, 0644);
    /* In a pid namespace of its own nobody tells freeze the number of who has ended. */
    if (!apart) SAME(ds.msg_lspid, child);
    SAME(ds.msg_lrpid, getpid());
    take(q, 3, 3, "three");
    take(q, -3, 1, "");
    take(q, 0, 5, "five");
    take(q, 3, 3, "from the child");
    take(q, 5, 5, "five again");
    SAME(msgrcv(q, &large, 9000, 0, IPC_NOWAIT), 8000);
    SAME(large.text[7999], 'x');
    CHECK(msgrcv(q, &large, 9000, 0, IPC_NOWAIT) == -1 && errno == ENOMSG);
    OK(msgctl(other, IPC_STAT, &ds));
    SAME(ds.msg_qnum, 0);
    SAME(ds.msg_lrpid, getpid());
    OK(msgctl(q, IPC_RMID, 0));
    OK(msgctl(other, IPC_RMID, 0));
}
"#
    )
);

conformance!(
    waiting,
    with(
        r#"
/* One waits for a message, another for room. */
int main(void) {
    int id = own_id(), q = make(IPC_PRIVATE, 0600, id), full = make(IPC_PRIVATE, 0600, id + 1), status;
    put(q, 2, "for nobody");
    int child = OK(fork());
    if (!child) {
        struct message m = { 0 };
        SAME(msgrcv(q, &m, 9000, 1, 0), 5);
        _exit(m.text[0]);
    }
    struct message large = { 1 };
    OK(msgsnd(full, &large, 8192, 0));
    OK(msgsnd(full, &large, 8192, 0));
    int sender = OK(fork());
    if (!sender) { OK(msgsnd(full, &large, 100, 0)); _exit(0); }
    rest(30);
    freeze_here();
    put(q, 1, "hello");
    OK(waitpid(child, &status, 0));
    SAME(WEXITSTATUS(status), 'h');
    SAME(msgrcv(full, &large, 9000, 0, IPC_NOWAIT), 8192);
    OK(waitpid(sender, &status, 0));
    SAME(status, 0);
    SAME(msgrcv(full, &large, 9000, 0, IPC_NOWAIT), 8192);
    SAME(msgrcv(full, &large, 9000, 0, IPC_NOWAIT), 100);
    take(q, 0, 2, "for nobody");
    OK(msgctl(q, IPC_RMID, 0));
    OK(msgctl(full, IPC_RMID, 0));
}
"#
    )
);
