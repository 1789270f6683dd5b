//! Conformance of working directory, root directory and umask.

use freeze_tests::{c, conformance};

conformance!(
    places,
    c(r#"
/* Relative names, a file's mode and a child's root are as they were. */
int main(void) {
    OK(mkdir(in_here("deep"), 0755));
    OK(mkdir(in_here("deep/er"), 0700));
    OK(chdir(in_here("deep/er")));
    umask(027);
    int pid = OK(fork());
    if (!pid) {
        OK(chroot(in_here("deep")));
        OK(chdir("/er"));
        /* `go` lies outside now: the parent tells by a file that lies inside. */
        while (access("/told", F_OK)) nap(2);
        char where[64];
        CHECK(getcwd(where, sizeof where));
        if (strcmp(where, "/er")) DIE("it is in %s", where);
        OK(access("/../er", F_OK));
        _exit(0);
    }
    nap(20);
    freeze_here();
    char where[PATH_MAX];
    CHECK(getcwd(where, sizeof where) && !strcmp(where + strlen(where) - 8, "/deep/er"));
    struct stat st;
    OK(fstat(OK(open("made", O_CREAT | O_WRONLY, 0777)), &st));
    SAME(st.st_mode & 0777, 0750);
    close(OK(open("../told", O_CREAT | O_WRONLY, 0600)));
    int status;
    OK(waitpid(pid, &status, 0));
    SAME(status, 0);
}
"#)
);
