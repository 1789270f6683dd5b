//! Conformance of control groups: where processes and threads are, and groups that are made again.

use freeze_tests::cycle::{checkpoint_now, nothing_unfinished, request};
use freeze_tests::subject::{Running, output};
use freeze_tests::{c, conformance, freeze, skip};
use freeze_user::ids::Pid;
use freeze_user::precopy::Trackings;
use freeze_user::sys::fault;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// What the subjects share: a group of their own in a hierarchy, gone with the subject.
const GROUPS: &str = r#"
static void put(const char *dir, const char *file, const char *text) {
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/%s", dir, file);
    int fd = OK(open(path, O_WRONLY));
    if (write(fd, text, strlen(text)) < 0) DIE("%s: %s", path, text);
    close(fd);
}
static void same(const char *dir, const char *file, const char *text) {
    char path[PATH_MAX], got[200] = "";
    snprintf(path, sizeof path, "%s/%s", dir, file);
    int fd = OK(open(path, O_RDONLY));
    OK(read(fd, got, sizeof got - 1));
    close(fd);
    if (strcmp(got, text)) DIE("%s: %s, not %s", path, got, text);
}
/* Whether the line of this hierarchy in /proc/WHO/cgroup ends so. */
static int is_in(const char *who, const char *hierarchy, const char *end) {
    char path[PATH_MAX], line[PATH_MAX];
    snprintf(path, sizeof path, "/proc/%s/cgroup", who);
    FILE *f = fopen(path, "r");
    int found = 0;
    while (f && fgets(line, sizeof line, f)) {
        line[strcspn(line, "\n")] = 0;
        char *first = strchr(line, ':') + 1, *second = strchr(first, ':');
        *second++ = 0;
        size_t n = strlen(second), m = strlen(end);
        if (!strcmp(first, hierarchy)) found = n >= m && !strcmp(second + n - m, end);
    }
    if (f) fclose(f);
    return found;
}
"#;

fn with(text: &str) -> freeze_tests::Subject {
    c(&format!("{GROUPS}{text}"))
}

conformance!(
    version_1,
    with(
        r#"
/* A group with a limit and one below it with a descriptor; a child elsewhere, and a thread of its own. */
#define PIDS "/sys/fs/cgroup/pids"
static char sub[100], name[60];
static void *thread(void *x) {
    char tid[20];
    snprintf(tid, sizeof tid, "%ld", syscall(SYS_gettid));
    put(sub, "tasks", tid);
    *(volatile int *)x = 1;
    while (!gone_ahead()) nap(2);
    snprintf(tid, sizeof tid, "self/task/%ld", syscall(SYS_gettid));
    snprintf(name, sizeof name, "/freeze-test-%d/sub", getpid());
    CHECK(is_in(tid, "pids", name));
    return x;
}
int main(void) {
    if (access(PIDS "/tasks", F_OK)) WITHOUT("no cgroup hierarchy of version 1 for pids");
    char dir[80], own[40];
    snprintf(dir, sizeof dir, PIDS "/freeze-test-%d", getpid());
    snprintf(sub, sizeof sub, "%s/sub", dir);
    snprintf(own, sizeof own, "/freeze-test-%d", getpid());
    OK(mkdir(dir, 0750));
    OK(mkdir(sub, 0755));
    put(dir, "pids.max", "77");
    put(dir, "cgroup.procs", "0");
    int child = OK(fork()), status;
    if (!child) {
        put(PIDS, "cgroup.procs", "0");
        while (!gone_ahead()) nap(2);
        CHECK(is_in("self", "pids", "/"));
        while (!access(dir, F_OK)) nap(2);
        _exit(0);
    }
    int fd = OK(open(sub, O_RDONLY | O_DIRECTORY));
    pthread_t t;
    volatile int moved = 0;
    CHECK(!pthread_create(&t, 0, thread, (void *)&moved));
    while (!moved) nap(1);
    freeze_here();
    CHECK(!pthread_join(t, 0));
    CHECK(is_in("self", "pids", own));
    same(dir, "pids.max", "77\n");
    struct stat st;
    OK(stat(dir, &st));
    SAME(st.st_mode & 0777, 0750);
    SAME(faccessat(fd, "pids.max", F_OK, 0), 0);
    put(PIDS, "cgroup.procs", "0");
    OK(rmdir(sub));
    OK(rmdir(dir));
    OK(waitpid(child, &status, 0));
    SAME(status, 0);
}
"#
    ),
    only: root
);

conformance!(
    version_2,
    with(
        r#"
/* The unified hierarchy, wherever it is mounted: depth, a limit of the tree, freezing left off. */
int main(void) {
    const char *top = !access("/sys/fs/cgroup/cgroup.procs", F_OK) ? "/sys/fs/cgroup" : "/sys/fs/cgroup/unified";
    char dir[100], sub[120], own[60];
    snprintf(dir, sizeof dir, "%s/freeze-test-%d", top, getpid());
    snprintf(sub, sizeof sub, "%s/a", dir);
    snprintf(own, sizeof own, "/freeze-test-%d/a", getpid());
    if (mkdir(dir, 0755)) WITHOUT("no control group can be made");
    OK(mkdir(sub, 0755));
    put(dir, "cgroup.max.descendants", "9");
    put(sub, "cgroup.procs", "0");
    char path[140];
    snprintf(path, sizeof path, "%s/cgroup.max.descendants", dir);
    int fd = OK(open(path, O_RDWR));
    freeze_here();
    CHECK(is_in("self", "", own));
    same(dir, "cgroup.max.descendants", "9\n");
    OK(pwrite(fd, "8", 1, 0));
    same(dir, "cgroup.max.descendants", "8\n");
    put(top, "cgroup.procs", "0");
    OK(rmdir(sub));
    OK(rmdir(dir));
}
"#
    )
);

conformance!(
    namespace_of_its_own,
    with(
        r#"
/* A namespace whose root is the group in which it was made, seen from a group below that. */
#define PIDS "/sys/fs/cgroup/pids"
static void is_at(const char *hierarchy, const char *path) {
    char line[PATH_MAX], wanted[PATH_MAX];
    snprintf(wanted, sizeof wanted, ":%s:%s\n", hierarchy, path);
    FILE *f = fopen("/proc/self/cgroup", "r");
    int found = 0;
    CHECK(f);
    while (fgets(line, sizeof line, f)) found |= !strcmp(strchr(line, ':'), wanted);
    fclose(f);
    if (!found) DIE("it is not at %s of %s", path, hierarchy);
}
int main(void) {
    if (access(PIDS "/tasks", F_OK)) WITHOUT("no cgroup hierarchy of version 1 for pids");
    char dir[80], sub[100];
    snprintf(dir, sizeof dir, PIDS "/freeze-own-%d", getpid());
    snprintf(sub, sizeof sub, "%s/sub", dir);
    OK(mkdir(dir, 0755));
    OK(mkdir(sub, 0755));
    int child = OK(fork()), status, told[2];
    OK(pipe(told));
    if (!child) {
        put(dir, "cgroup.procs", "0");
        OK(unshare(CLONE_NEWCGROUP));
        put(sub, "cgroup.procs", "0");
        is_at("pids", "/sub");
        while (!gone_ahead()) nap(2);
        is_at("pids", "/sub");
        put(dir, "cgroup.procs", "0");
        is_at("pids", "/");
        put(PIDS, "cgroup.procs", "0");
        _exit(0);
    }
    rest(30);
    freeze_here();
    OK(waitpid(child, &status, 0));
    OK(rmdir(sub));
    OK(rmdir(dir));
    SAME(status, 0);
}
"#
    ),
    only: root
);

/// A control group of the unified hierarchy; thawed and removed when it is dropped.
struct Group(PathBuf);

impl Group {
    fn new(name: &str) -> Option<Group> {
        let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
        let top = mounts.lines().find(|l| l.starts_with("cgroup2 "))?;
        let dir =
            Path::new(top.split(' ').nth(1)?).join(format!("freeze-test-{}-{name}", std::process::id()));
        fs::create_dir(&dir).ok()?;
        Some(Group(dir))
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(self.0.join(file), text).unwrap_or_else(|e| panic!("{file}: {e}"));
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::write(self.0.join("cgroup.freeze"), "0");
        let began = Instant::now();
        while fs::remove_dir(&self.0).is_err() && began.elapsed() < Duration::from_secs(5) {
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// What is frozen with its group would never answer: it is refused at once, and goes on when it is thawed.
#[test]
fn a_frozen_control_group_is_refused() {
    let Some(above) = Group::new("frozen") else {
        skip!("no unified hierarchy of control groups");
    };
    let own = Group(above.0.join("below"));
    fs::create_dir(&own.0).expect("a group in a group");
    let mut running = Running::start(&c("int main(void) { freeze_here(); return 0; }"), "frozen_group");
    own.write("cgroup.procs", &running.pid.to_string());
    let image = running.dir().join("image");
    for (group, how) in [(&own, "its own"), (&above, "the one above")] {
        group.write("cgroup.freeze", "1");
        let done = checkpoint(running.pid, &image);
        group.write("cgroup.freeze", "0");
        let text = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.code(), Some(3), "{how}: {text}");
        assert!(text.contains("frozen with its control group"), "{how}: {text}");
    }
    let done = checkpoint(running.pid, &image);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    running.verdict();
    drop(own);
}

/// What [`freeze_it`] writes, and to which file.
static COLD: Mutex<(PathBuf, &str)> = Mutex::new((PathBuf::new(), ""));

/// Freezes the group of a program that is being checkpointed.
fn freeze_it() {
    let cold = COLD.lock().expect("nobody has failed with it");
    fs::write(&cold.0, cold.1).expect("a group of ours");
}

/// Frozen amid a checkpoint it answers no more: the checkpoint is given up, and the program goes on when it is thawed.
fn frozen_amid_a_checkpoint(group: &Path, file: &str, [cold, warm]: [&'static str; 2], test: &str) {
    // One at a time: there is one group to be frozen.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut running = Running::start(
        &c(r#"
int main(void) {
    struct sigevent event = { .sigev_notify = SIGEV_NONE };
    timer_t timer;
    OK(timer_create(CLOCK_MONOTONIC, &event, &timer));
    freeze_here();
    return 0;
}
"#),
        test,
    );
    fs::write(group.join("cgroup.procs"), running.pid.to_string()).expect("a group of ours");
    *COLD.lock().expect("nobody has failed with it") = (group.join(file), cold);
    // The next thing after this is a tape.
    let armed = fault::meddle("timers", freeze_it);
    let refused = checkpoint_now(
        &request(running.pid, running.dir().join("given-up"), false),
        &mut Trackings::new(),
    );
    drop(armed);
    fs::write(group.join(file), warm).expect("a group of ours");
    let text = refused.expect_err("it does not answer").to_string();
    assert!(
        text.contains("as if it were frozen with its control group"),
        "{text}"
    );
    nothing_unfinished(running.dir());
    let image = running.dir().join("image");
    let request = request(running.pid, image, false);
    checkpoint_now(&request, &mut Trackings::new()).unwrap_or_else(|e| panic!("once it is thawed: {e}"));
    running.verdict();
}

#[test]
fn a_checkpoint_amid_which_the_group_is_frozen_is_given_up() {
    let Some(group) = Group::new("amid") else {
        skip!("no unified hierarchy of control groups");
    };
    frozen_amid_a_checkpoint(&group.0, "cgroup.freeze", ["1", "0"], "amid");
}

#[test]
fn a_checkpoint_amid_which_the_freezer_is_used_is_given_up() {
    let dir = Path::new("/sys/fs/cgroup/freezer").join(format!("freeze-test-{}", std::process::id()));
    if fs::create_dir(&dir).is_err() {
        skip!("no freezer of control groups of version 1");
    }
    let group = Group(dir);
    frozen_amid_a_checkpoint(&group.0, "freezer.state", ["FROZEN", "THAWED"], "amid_freezer");
}

fn checkpoint(pid: Pid, image: &Path) -> Output {
    output(
        freeze()
            .arg("checkpoint")
            .arg(pid.to_string())
            .arg("--to")
            .arg(image),
    )
}
