//! Conformance of System V segments that nobody has attached when the set is frozen.

use freeze_tests::subject::output;
use freeze_tests::{c, conformance, freeze, scratch};
use freeze_user::kinds::sysv::Unattached;
use freeze_user::kinds::{ProcessKind, peek};
use freeze_user::store::Opened;

conformance!(
    unattached,
    c(r#"
/* Contents, holes, owner and maker of segments that lie there for somebody to attach them. */
#include <sys/shm.h>
static int make(int key, int size, int mode, int id) {
    for (;;) {
        FILE *next = fopen("/proc/sys/kernel/shm_next_id", "w");
        CHECK(next);
        fprintf(next, "%d", id);
        fclose(next);
        int got = OK(shmget(key, size, IPC_CREAT | IPC_EXCL | mode));
        if (got == id) return got;
        OK(shmctl(got, IPC_RMID, 0));
    }
}
int main(void) {
    int key = 0x6f000000 | getpid(), id = 2048 + getpid() % 14000 * 2;
    int a = make(key, 5 * 4096 - 100, 0640, id), b = make(IPC_PRIVATE, 4096, 0600, id + 1);
    char *m = shmat(a, 0, 0);
    CHECK(m != (void *)-1);
    strcpy(m, "first");
    strcpy(m + 3 * 4096, "fourth");
    OK(shmdt(m));
    if (shmctl(b, SHM_LOCK, 0)) CHECK(errno == EPERM);
    struct shmid_ds ds, now;
    OK(shmctl(b, IPC_STAT, &ds));
    freeze_here();
    SAME(shmget(key, 0, 0), a);
    OK(shmctl(a, IPC_STAT, &now));
    SAME(now.shm_segsz, 5 * 4096 - 100);
    SAME(now.shm_perm.mode, 0640);
    SAME(now.shm_cpid, getpid());
    SAME(now.shm_lpid, getpid());
    SAME(now.shm_nattch, 0);
    OK(shmctl(b, IPC_STAT, &now));
    SAME(now.shm_perm.mode, ds.shm_perm.mode);
    m = shmat(a, 0, 0);
    CHECK(!strcmp(m, "first") && !m[4096] && !strcmp(m + 3 * 4096, "fourth"));
    OK(shmctl(a, IPC_RMID, 0));
    OK(shmctl(b, IPC_RMID, 0));
}
"#)
);

// Who attached it last is not who the checkpoint begins with.
conformance!(
    unattached_of_a_child,
    c(r#"
#include <sys/shm.h>
int main(void) {
    int a = OK(shmget(IPC_PRIVATE, 8192, IPC_CREAT | 0600)), child = OK(fork()), status;
    if (!child) {
        char *m = shmat(a, 0, 0);
        CHECK(m != (void *)-1);
        strcpy(m, "contents");
        OK(shmdt(m));
        while (!gone_ahead()) nap(2);
        _exit(0);
    }
    struct shmid_ds ds;
    do OK(shmctl(a, IPC_STAT, &ds)); while (ds.shm_lpid != child || ds.shm_nattch);
    freeze_here();
    OK(shmctl(a, IPC_STAT, &ds));
    SAME(ds.shm_lpid, child);
    SAME(ds.shm_nattch, 0);
    OK(waitpid(child, &status, 0));
    SAME(status, 0);
    char *m = shmat(a, 0, 0);
    CHECK(!strcmp(m, "contents"));
    OK(shmctl(a, IPC_RMID, 0));
}
"#)
);

conformance!(
    in_two_namespaces,
    c(r#"
/* Each IPC namespace has a segment of the same id and key, attached and not, with other contents. */
#include <sched.h>
#include <sys/mman.h>
#include <sys/shm.h>
int main(void) {
    enum { KEY = 0x51 };
    int *ids = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int children[2], status;
    for (int n = 0; n < 2; n++) {
        children[n] = OK(fork());
        if (children[n]) continue;
        OK(unshare(CLONE_NEWIPC));
        int held = OK(shmget(KEY, 3 * 4096, IPC_CREAT | 0600)), free = OK(shmget(KEY + 1, 4096, IPC_CREAT | 0600));
        char *m = shmat(held, 0, 0), *other = shmat(free, 0, 0);
        CHECK(m != (void *)-1 && other != (void *)-1);
        sprintf(m, "held in %d", n);
        sprintf(m + 2 * 4096, "further in %d", n);
        sprintf(other, "free in %d", n);
        OK(shmdt(other));
        ids[2 * n] = held;
        ids[2 * n + 1] = free;
        __atomic_store_n(&ids[8 + n], 1, __ATOMIC_SEQ_CST);
        while (!gone_ahead()) nap(2);
        SAME(shmget(KEY, 0, 0), held);
        SAME(shmget(KEY + 1, 0, 0), free);
        char want[40];
        sprintf(want, "held in %d", n);
        CHECK(!strcmp(m, want));
        sprintf(want, "further in %d", n);
        CHECK(!strcmp(m + 2 * 4096, want));
        other = shmat(free, 0, 0);
        CHECK(other != (void *)-1);
        sprintf(want, "free in %d", n);
        CHECK(!strcmp(other, want));
        _exit(0);
    }
    while (!__atomic_load_n(&ids[8], __ATOMIC_SEQ_CST) || !__atomic_load_n(&ids[9], __ATOMIC_SEQ_CST)) nap(2);
    SAME(ids[0], ids[2]);
    SAME(ids[1], ids[3]);
    freeze_here();
    for (int n = 0; n < 2; n++) {
        SAME(waitpid(children[n], &status, 0), children[n]);
        SAME(status, 0);
    }
}
"#)
);

conformance!(
    the_rest_of_the_last_page,
    c(r#"
/* A segment of 5000 bytes has two pages for who attaches it, and all of both is there. */
#include <sys/shm.h>
int main(void) {
    int id = OK(shmget(IPC_PRIVATE, 5000, IPC_CREAT | 0600)), other = OK(shmget(IPC_PRIVATE, 100, IPC_CREAT | 0600));
    char *at = OK(shmat(id, 0, 0)), *ro = OK(shmat(id, 0, SHM_RDONLY)), *small = OK(shmat(other, 0, 0));
    at[4999] = 'i';
    at[8191] = 'o';
    small[4095] = 's';
    OK(shmdt(small));
    freeze_here();
    SAME(ro[4999], 'i');
    SAME(ro[8191], 'o');
    small = OK(shmat(other, 0, 0));
    SAME(small[4095], 's');
    OK(shmctl(id, IPC_RMID, 0));
    OK(shmctl(other, IPC_RMID, 0));
}
"#)
);

/// In a container of its own pid 2 is no thread of the kernel's, but who started freeze: what nobody has attached is the
/// set's all the same.
#[test]
fn started_by_pid_2_of_a_container() {
    const SCRIPT: &str = r#"
python3 -c 'import ctypes; assert ctypes.CDLL(None).shmget(0, 4096, 0o1600) >= 0'
python3 -c '
import os, time
os.closerange(3, 1024)
os.setsid()
open(os.environ["DIR"] + "/made", "w").close()
time.sleep(60)' < /dev/null > /dev/null 2>&1 &
while ! [ -e "$DIR/made" ]; do sleep 0.02; done
echo "pid $$"
"$FREEZE" checkpoint $! --to "$DIR/image" --kill
"#;
    let dir = scratch();
    let program = freeze().get_program().to_owned();
    let done = output(
        std::process::Command::new("unshare")
            .args(["-pfi", "--mount-proc", "sh", "-c", "sh -c \"$SCRIPT\"; true"])
            .env("SCRIPT", SCRIPT)
            .env("DIR", &dir)
            .env("FREEZE", program),
    );
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(
        said.starts_with("pid 2\n"),
        "{said}{}",
        String::from_utf8_lossy(&done.stderr)
    );
    let image = Opened::open(&dir.join("image")).unwrap_or_else(|e| panic!("{e}"));
    let records = image.records().iter().filter(|f| f.tag == Unattached::TAG);
    let found: usize = records
        .map(|f| peek::<Unattached>(&f.payload).expect("a record").1.segments.len())
        .sum();
    assert_eq!(found, 1);
    std::fs::remove_dir_all(&dir).expect("to remove it");
}
