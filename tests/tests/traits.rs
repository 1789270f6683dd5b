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
    /* PR_TIMER_CREATE_RESTORE_IDS, since Linux 6.15 */
    int chooses = prctl(77, 1, 0, 0, 0) == 0;
    /* PR_FUTEX_HASH, since Linux 6.16 */
    int slots = prctl(78, 1, 8, 0, 0) == 0;
    freeze_here();
    if (slots) SAME(prctl(78, 2, 0, 0, 0), 8);
    if (chooses) SAME(prctl(77, 2, 0, 0, 0), 1);
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

conformance!(
    of_each_thread,
    c(r#"
#include <sys/personality.h>
#include <linux/prctl.h>
/* What a thread sets for itself alone: personality, rdtsc, speculation. */
static int before, state[3];
static void *thread(void *unused) {
    OK(personality(ADDR_NO_RANDOMIZE));
    OK(prctl(PR_SET_TSC, PR_TSC_SIGSEGV));
    prctl(PR_SET_SPECULATION_CTRL, PR_SPEC_STORE_BYPASS, PR_SPEC_DISABLE, 0, 0);
    for (int i = 0; i < 3; i++) state[i] = prctl(PR_GET_SPECULATION_CTRL, i, 0, 0, 0);
    struct timespec t = { 0, 2000000 };
    while (!gone_ahead()) syscall(SYS_nanosleep, &t, 0);
    SAME(personality(0xffffffff), ADDR_NO_RANDOMIZE);
    int tsc = 0;
    OK(prctl(PR_GET_TSC, &tsc));
    SAME(tsc, PR_TSC_SIGSEGV);
    for (int i = 0; i < 3; i++) SAME(prctl(PR_GET_SPECULATION_CTRL, i, 0, 0, 0), state[i]);
    return 0;
}
int main(void) {
    before = personality(0xffffffff);
    pthread_t t;
    CHECK(!pthread_create(&t, 0, thread, 0));
    rest(20);
    freeze_here();
    CHECK(!pthread_join(t, 0));
    SAME(personality(0xffffffff), before);
    int tsc = 0;
    OK(prctl(PR_GET_TSC, &tsc));
    SAME(tsc, PR_TSC_ENABLE);
}
"#)
);

conformance!(
    dispatch,
    c(r#"
/* System calls that the program catches itself (syscall user dispatch) are caught after a restore as well. */
#define PR_SYS_DISPATCH 59
static volatile char selector;
static volatile int caught;
static void hear(int n, siginfo_t *info, void *c) { selector = 0; caught = info->si_syscall; }
static void *thread(void *unused) {
    while (!gone_ahead()) nap(2);
    selector = 1;
    syscall(SYS_getppid);
    SAME(selector, 0);
    SAME(caught, SYS_getppid);
    return 0;
}
static void *marked(void *unused) {
    struct sigaction act = { .sa_sigaction = hear, .sa_flags = SA_SIGINFO };
    OK(sigaction(SIGSYS, &act, 0));
    if (prctl(PR_SYS_DISPATCH, 1, 0, 0, &selector)) return 0;
    return thread(0);
}
int main(void) {
    pthread_t t;
    CHECK(!pthread_create(&t, 0, marked, 0));
    rest(20);
    freeze_here();
    CHECK(!pthread_join(t, 0));
}
"#)
);

conformance!(
    memory_policy,
    c(r#"
/* On which nodes a thread wants its memory. */
static void policy(int *mode, unsigned long *nodes) { OK(syscall(SYS_get_mempolicy, mode, nodes, 1024, 0, 0)); }
static void *thread(void *unused) {
    int mode;
    unsigned long nodes[16] = { 1 };
    OK(syscall(SYS_set_mempolicy, 3, nodes, 64));
    while (!gone_ahead()) nap(2);
    policy(&mode, nodes);
    SAME(mode, 3);
    SAME(nodes[0], 1);
    return 0;
}
int main(void) {
    int mode;
    unsigned long nodes[16] = { 0 };
    /* A kernel without NUMA has none. */
    if (syscall(SYS_get_mempolicy, &mode, nodes, 1024, 0, 0)) WITHOUT("no NUMA policies");
    pthread_t t;
    CHECK(!pthread_create(&t, 0, thread, 0));
    rest(20);
    freeze_here();
    CHECK(!pthread_join(t, 0));
    policy(&mode, nodes);
    SAME(mode, 0);
}
"#)
);

conformance!(
    no_new_code,
    c(r#"
#include <sys/mman.h>
/* A program that has forsworn to execute what it can write (PR_SET_MDWE, Linux 6.3). */
int main(void) {
    if (prctl(65 /* PR_SET_MDWE */, 1, 0, 0, 0)) WITHOUT("no PR_SET_MDWE");
    freeze_here();
    SAME(prctl(66 /* PR_GET_MDWE */, 0, 0, 0, 0), 1);
    CHECK(mmap(0, 4096, PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED);
}
"#)
);

conformance!(
    local_descriptors,
    c(r#"
/* Segments of every sort, one of them loaded in a register. */
#include <asm/ldt.h>
int main(void) {
    char before[4096] = "", after[4096] = "";
    int got;
    struct user_desc desc[] = {
        { .entry_number = 2, .limit = 0xfffff, .seg_32bit = 1, .limit_in_pages = 1, .useable = 1 },
        { .entry_number = 7, .base_addr = 0x12345678, .limit = 0x1234, .contents = MODIFY_LDT_CONTENTS_CODE, .read_exec_only = 1 },
        { .entry_number = 300, .limit = 5, .contents = MODIFY_LDT_CONTENTS_STACK, .seg_not_present = 1, .useable = 1 },
    };
    /* A base has 32 bits only. */
    int *low = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
    *low = 4711;
    desc[0].base_addr = (uintptr_t)low;
    int may = 1;
    for (int i = 0; i < 3; i++) may = may && (int)syscall(SYS_modify_ldt, 0x11, &desc[i], sizeof desc[i]) == 0;
    if (may) {
        SAME(syscall(SYS_modify_ldt, 0, before, sizeof before), sizeof before);
        asm volatile("mov %0, %%gs" : : "r"(2 << 3 | 4 | 3));
    }
    freeze_here();
    if (!may) return 0;
    asm volatile("mov %%gs:0, %0" : "=r"(got));
    SAME(got, 4711);
    SAME(syscall(SYS_modify_ldt, 0, after, sizeof after), sizeof after);
    CHECK(!memcmp(before, after, sizeof before));
}
"#)
);
