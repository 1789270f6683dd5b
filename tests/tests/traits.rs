//! Conformance of a process's small flags: personality, subreaper, huge pages, membarrier.

use freeze_tests::{c, conformance};

conformance!(
    flags,
    c(r#"
#include <sys/personality.h>
#include <linux/membarrier.h>
/* Set before, asked after. */
int main(void) {
    OK(personality(ADDR_NO_RANDOMIZE | UNAME26));
    OK(prctl(PR_SET_CHILD_SUBREAPER, 1));
    OK(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0));
    OK(prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_EARLY, 0, 0));
    OK(prctl(PR_SET_TIMERSLACK, 123456));
    OK(prctl(PR_SET_NAME, "nom de guerre"));
    int fd = OK(open("/proc/self/coredump_filter", O_WRONLY));
    OK(write(fd, "0x23", 4));
    close(fd);
    OK(syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0));
    freeze_here();
    SAME(personality(0xffffffff), ADDR_NO_RANDOMIZE | UNAME26);
    int reaper = 0;
    OK(prctl(PR_GET_CHILD_SUBREAPER, &reaper));
    SAME(reaper, 1);
    SAME(prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0), 1);
    SAME(prctl(PR_MCE_KILL_GET, 0, 0, 0, 0), PR_MCE_KILL_EARLY);
    SAME(prctl(PR_GET_TIMERSLACK), 123456);
    char name[16];
    OK(prctl(PR_GET_NAME, name));
    CHECK(!strcmp(name, "nom de guerre"));
    OK(syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0));
    char filter[16] = "";
    fd = OK(open("/proc/self/coredump_filter", O_RDONLY));
    OK(read(fd, filter, 15));
    SAME(strtol(filter, 0, 16), 0x23);
}
"#)
);
