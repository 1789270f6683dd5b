//! Conformance of the login uid.

use freeze_tests::{c, conformance};

conformance!(
    login_uid,
    c(r#"
/* Somebody has logged in: a child has the same one, another one logs in as somebody else. */
static void say(const char *text) {
    int fd = OK(open("/proc/self/loginuid", O_WRONLY | O_CLOEXEC));
    SAME(write(fd, text, strlen(text)), strlen(text));
    OK(close(fd));
}
static long told(void) {
    char text[32] = "";
    int fd = OK(open("/proc/thread-self/loginuid", O_RDONLY | O_CLOEXEC));
    CHECK(read(fd, text, sizeof text - 1) > 0);
    OK(close(fd));
    return atol(text);
}
static void *thread(void *unused) {
    while (!gone_ahead()) nap(2);
    SAME(told(), 1234);
    return unused;
}
int main(void) {
    if (access("/proc/self/loginuid", W_OK)) WITHOUT("no login uid can be set");
    int other = OK(fork());
    if (!other) {
        say("77");
        OK(close(OK(open(in_here("said"), O_CREAT | O_WRONLY, 0600))));
        while (!gone_ahead()) nap(2);
        SAME(told(), 77);
        return 0;
    }
    while (access(in_here("said"), F_OK)) nap(2);
    say("1234");
    int same = OK(fork());
    if (!same) {
        while (!gone_ahead()) nap(2);
        SAME(told(), 1234);
        return 0;
    }
    pthread_t id;
    SAME(pthread_create(&id, 0, thread, 0), 0);
    freeze_here();
    SAME(told(), 1234);
    SAME(pthread_join(id, 0), 0);
    for (int n = 0; n < 2; n++) {
        int status;
        OK(wait(&status));
        SAME(status, 0);
    }
}
"#)
);
