//! Conformance of open directories: where reading them stood, O_PATH, and what is relative to them.

use freeze_tests::{c, conformance};

conformance!(
    directories,
    c(r#"
#include <dirent.h>
/* A listing goes on where it was, and names are found relative to what was open. */
int main(void) {
    char name[32];
    OK(mkdir(in_here("d"), 0700));
    for (int i = 0; i < 20; i++) { snprintf(name, sizeof name, "d/%d", i); close(OK(open(in_here(name), O_CREAT | O_WRONLY, 0600))); }
    int fd = OK(open(in_here("d"), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    DIR *dir = fdopendir(OK(dup(fd)));
    CHECK(dir);
    int seen = 0;
    struct dirent *e;
    for (int i = 0; i < 7; i++) { e = readdir(dir); CHECK(e); seen += e->d_name[0] != '.'; }
    int raw = OK(open(in_here("d"), O_RDONLY | O_DIRECTORY));
    long position = OK(lseek(raw, 0, SEEK_CUR));
    int path = OK(open(in_here("d"), O_PATH | O_DIRECTORY));
    int root = OK(open("/", O_RDONLY | O_DIRECTORY));
    freeze_here();
    while ((e = readdir(dir))) seen += e->d_name[0] != '.';
    SAME(seen, 20);
    SAME(lseek(raw, 0, SEEK_CUR), position);
    close(OK(openat(fd, "7", O_RDONLY)));
    close(OK(openat(path, "8", O_RDONLY)));
    close(OK(openat(root, "proc", O_RDONLY)));
    SAME(fcntl(fd, F_GETFD), FD_CLOEXEC);
}
"#)
);
