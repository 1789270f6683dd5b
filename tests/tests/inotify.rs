//! Conformance of inotify: watches with their numbers, masks and paths.

use freeze_tests::{c, conformance};

conformance!(
    watches,
    c(r#"
/* Numbers with a gap, and that only what happens afterwards is told. */
#include <sys/inotify.h>
int main(void) {
    char *sub = strdup(in_here("sub dir")), *file = strdup(in_here("sub dir/file"));
    OK(mkdir(sub, 0700));
    close(OK(open(file, O_CREAT | O_WRONLY, 0600)));
    int fd = OK(inotify_init1(IN_NONBLOCK | IN_CLOEXEC));
    SAME(OK(inotify_add_watch(fd, sub, IN_CREATE | IN_DELETE | IN_ONLYDIR)), 1);
    SAME(OK(inotify_add_watch(fd, file, IN_OPEN)), 2);
    OK(inotify_rm_watch(fd, 2));
    SAME(OK(inotify_add_watch(fd, file, IN_MODIFY | IN_ONESHOT)), 3);
    char buf[4096];
    while (read(fd, buf, sizeof buf) > 0) {}
    freeze_here();
    CHECK(read(fd, buf, sizeof buf) == -1 && errno == EAGAIN);
    int w = OK(open(file, O_WRONLY));
    SAME(write(w, "x", 1), 1);
    struct inotify_event *e = (void *)buf;
    CHECK(read(fd, buf, sizeof buf) >= (long)sizeof *e);
    SAME(e->wd, 3);
    SAME(e->mask, IN_MODIFY);
    while (read(fd, buf, sizeof buf) > 0) {}
    OK(unlink(file));
    CHECK(read(fd, buf, sizeof buf) > (long)sizeof *e);
    SAME(e->wd, 1);
    CHECK(!strcmp(e->name, "file"));
    OK(inotify_rm_watch(fd, 1));
}
"#)
);
