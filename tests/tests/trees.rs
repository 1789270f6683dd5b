//! Random families: sessions, groups, threads, orphans and zombies of every shape come back as they were.

use freeze_tests::{Mode, Subject, c, run};

/// Grows a tree from a number; the same number gives the same tree.
const GROW: &str = r#"
static struct { int born, settled; } *count;
static unsigned long state;
static unsigned draw(unsigned below) {
    state = state * 6364136223846793005ul + 1442695040888963407ul;
    return (state >> 33) % below;
}
/* A stopped group that loses its last relative outside is hung up by the kernel: nobody may end by that uncounted. */
static void settle(void) { __sync_fetch_and_add(&count->settled, 1); signal(SIGHUP, SIG_DFL); }
static void *idle(void *unused) { while (!gone_ahead()) nap(5); return 0; }
static void grow(int depth, int root) {
    pid_t last = 0;
    for (int kids = root ? 3 : depth ? draw(4) : 0; kids; kids--) {
        unsigned long seed = state ^ (unsigned long)draw(1 << 30) << 20;
        __sync_fetch_and_add(&count->born, 1);
        pid_t pid = OK(fork());
        if (pid) { last = pid; continue; }
        state = seed;
        switch (draw(5)) {
        case 0: OK(setsid()); break;
        case 1: OK(setpgid(0, 0)); break;
        case 2: if (last) setpgid(0, last); break;
        }
        grow(depth - 1, 0);
        for (int threads = draw(3); threads; threads--) { pthread_t t; CHECK(!pthread_create(&t, 0, idle, 0)); }
        switch (draw(6)) {
        case 0: settle(); _exit(draw(200));
        case 1: settle(); raise(SIGKILL);
        case 2: if (getpid() != getsid(0)) { settle(); raise(SIGSTOP); idle(0); _exit(0); }
        }
        settle();
        idle(0);
        _exit(0);
    }
}
int main(void) {
    count = OK(mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    OK(prctl(PR_SET_CHILD_SUBREAPER, 1));
    state = SEED;
    signal(SIGHUP, SIG_IGN);
    grow(3, 1);
    while (count->settled < count->born) nap(5);
    signal(SIGHUP, SIG_DFL);
    rest(60);
    freeze_here();
}
"#;

fn tree(seed: u64) -> Subject {
    c(&GROW.replace("SEED", &format!("{seed}ul")))
}

/// Seeds that are always tried, and one more from `FREEZE_SEED`.
fn seeds() -> Vec<u64> {
    let more = std::env::var("FREEZE_SEED").ok().and_then(|s| s.parse().ok());
    (1..=8).chain(more).collect()
}

#[test]
fn random_trees_are_restored() {
    for seed in seeds() {
        println!("seed {seed}");
        run(Mode::Restore, "trees", || tree(seed));
    }
}

#[test]
fn random_trees_survive_a_checkpoint_and_two_restores() {
    for seed in seeds() {
        println!("seed {seed}");
        run(Mode::Resume, "trees", || tree(seed ^ 0x1000));
        run(Mode::RestoreTwice, "trees", || tree(seed ^ 0x2000));
    }
}
