//! Conformance of POSIX message queues: messages, priorities, sizes, notification, with a name and without.

use freeze_tests::{c, conformance};

conformance!(
    queues,
    c(r#"
/* What was sent is received in its order, and who asked to be told is told. */
#include <mqueue.h>
static volatile int told;
static void on_signal(int n, siginfo_t *info, void *u) { told = info->si_value.sival_int; }
int main(void) {
    char name[64], gone[64];
    sprintf(name, "/freeze-%d", getpid());
    sprintf(gone, "/freeze-gone-%d", getpid());
    struct mq_attr attr = { 0, 5, 6000 };
    mqd_t q = OK(mq_open(name, O_RDWR | O_CREAT | O_EXCL | O_NONBLOCK, 0640, &attr));
    mqd_t reader = OK(mq_open(name, O_RDONLY));
    attr.mq_maxmsg = 2;
    attr.mq_msgsize = 100;
    mqd_t nameless = OK(mq_open(gone, O_RDWR | O_CREAT | O_EXCL | O_NONBLOCK, 0600, &attr));
    mqd_t dup_of = OK(dup(nameless));
    OK(mq_unlink(gone));
    static char big[6000], buf[6000];
    for (int i = 0; i < (int)sizeof big; i++) big[i] = i * 7;
    OK(mq_send(q, "one", 3, 1));
    OK(mq_send(q, "two", 3, 7));
    OK(mq_send(q, big, sizeof big, 1));
    OK(mq_send(q, "", 0, 0));
    struct sigaction act = { .sa_sigaction = on_signal, .sa_flags = SA_SIGINFO };
    OK(sigaction(SIGUSR1, &act, 0));
    struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1, .sigev_value.sival_int = 4711 };
    OK(mq_notify(nameless, &event));
    freeze_here();
    unsigned priority;
    SAME(mq_receive(reader, buf, sizeof buf, &priority), 3);
    SAME(priority, 7);
    CHECK(!memcmp(buf, "two", 3));
    SAME(mq_receive(q, buf, sizeof buf, &priority), 3);
    CHECK(!memcmp(buf, "one", 3));
    SAME(mq_receive(q, buf, sizeof buf, &priority), sizeof big);
    CHECK(!memcmp(buf, big, sizeof big));
    SAME(mq_receive(q, buf, sizeof buf, &priority), 0);
    SAME(priority, 0);
    CHECK(mq_receive(q, buf, sizeof buf, 0) == -1 && errno == EAGAIN);
    OK(mq_getattr(q, &attr));
    SAME(attr.mq_maxmsg, 5);
    SAME(attr.mq_msgsize, 6000);
    OK(mq_getattr(reader, &attr));
    SAME(attr.mq_flags, 0);
    struct stat s;
    OK(fstat(q, &s));
    SAME(s.st_mode & 0777, 0640);
    OK(mq_unlink(name));
    CHECK(mq_open(gone, O_RDWR) == -1);
    SAME(told, 0);
    OK(mq_send(dup_of, "x", 1, 3));
    SAME(told, 4711);
    SAME(mq_receive(nameless, buf, sizeof buf, &priority), 1);
    SAME(priority, 3);
}
"#)
);

conformance!(
    closed,
    c(r#"
/* Queues of an IPC namespace of its own that nobody has open are there with their messages. */
#include <mqueue.h>
int main(void) {
    struct mq_attr attr = { .mq_maxmsg = 4, .mq_msgsize = 100 };
    char got[100];
    unsigned priority;
    OK(unshare(CLONE_NEWIPC));
    umask(0);
    mqd_t q = OK(mq_open("/closed", O_CREAT | O_RDWR, 0620, &attr));
    OK(mq_send(q, "low", 3, 1));
    OK(mq_send(q, "high", 4, 9));
    OK(mq_close(q));
    OK(mq_close(OK(mq_open("/empty", O_CREAT | O_RDWR, 0600, &attr))));
    freeze_here();
    struct stat s;
    q = OK(mq_open("/closed", O_RDWR | O_NONBLOCK));
    OK(fstat(q, &s));
    SAME(s.st_mode & 0777, 0620);
    SAME(s.st_uid, getuid());
    SAME(mq_receive(q, got, sizeof got, &priority), 4);
    SAME(priority, 9);
    SAME(mq_receive(q, got, sizeof got, &priority), 3);
    CHECK(!memcmp(got, "low", 3));
    q = OK(mq_open("/empty", O_RDWR | O_NONBLOCK));
    CHECK(mq_receive(q, got, sizeof got, 0) == -1 && errno == EAGAIN);
}
"#)
);

conformance!(
    one_name_after_another,
    c(r#"
/* A queue without a name, and another that has it by now, stay two: so do two that both had it. */
#include <mqueue.h>
static void holds(mqd_t q, const char *text) {
    char got[100] = "";
    SAME(mq_receive(q, got, sizeof got, 0), strlen(text));
    CHECK(!strcmp(got, text));
    CHECK(mq_receive(q, got, sizeof got, 0) == -1 && errno == EAGAIN);
}
int main(void) {
    struct mq_attr attr = { .mq_maxmsg = 4, .mq_msgsize = 100 };
    mqd_t q[3];
    char *text[] = { "first", "second", "third" };
    OK(unshare(CLONE_NEWIPC));
    for (int i = 0; i < 3; i++) {
        q[i] = OK(mq_open("/same", O_CREAT | O_EXCL | O_RDWR | O_NONBLOCK, 0600, &attr));
        OK(mq_send(q[i], text[i], strlen(text[i]), 3));
        if (i < 2) OK(mq_unlink("/same"));
    }
    freeze_here();
    holds(q[0], "first");
    holds(q[1], "second");
    OK(mq_send(OK(mq_open("/same", O_WRONLY)), "more", 4, 1));
    char got[100];
    SAME(mq_receive(q[2], got, sizeof got, 0), 5);
    CHECK(!memcmp(got, "third", 5));
    holds(q[2], "more");
}
"#)
);
