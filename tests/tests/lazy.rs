//! Restores whose memory comes in while the program runs: it sees what was there, or is ended; nothing else.

use freeze_tests::cycle::{checkpoint_now, nothing_unfinished, request, same};
use freeze_tests::subject::{alive, exists, output, stat_fields};
use freeze_tests::{Portrait, Running, Subject, c, freeze, python, skip};
use freeze_user::Error;
use freeze_user::ids::Pid;
use freeze_user::nest::Options;
use freeze_user::precopy::Trackings;
use freeze_user::restore::{Ready, prepare};
use freeze_user::store::Opened;
use freeze_user::sys::fault::{self, Act};
use freeze_user::sys::missing::{self, Filler};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::WaitStatus;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(30);

/// Whether the kernel grants what it takes.
fn granted() -> bool {
    missing::own().and_then(Filler::start).is_ok()
}

/// 64 MiB of which each page names itself, and threads of which each looks at one page after the other, with a child
/// that does the same from the restore on; who sees anything else says so in a file.
const READER: &str = r#"
enum { N = 16384, P = 4096 };
static uint64_t *m;
static void wrong(const char *who, int page, uint64_t saw) {
    char path[PATH_MAX], text[100];
    snprintf(path, sizeof path, "%s/wrong", here_dir);
    int fd = open(path, O_CREAT | O_WRONLY | O_APPEND, 0666);
    int n = snprintf(text, sizeof text, "%s: page %d is %lx\n", who, page, saw);
    if (write(fd, text, n) != n) _exit(97);
    _exit(96);
}
static void look(const char *who, unsigned seed, int rounds) {
    for (int i = 0; i < rounds; i++) {
        int page = (seed = seed * 1664525 + 1013904223) >> 8 & (N - 1);
        uint64_t saw = *(volatile uint64_t *)(m + page * (P / 8));
        if (saw != page + 1) wrong(who, page, saw);
    }
}
static void *reader(void *seed) {
    while (access(here_go, F_OK)) nap(1);
    for (;;) { look("a thread", (unsigned)(long)seed, 100); nap(1); }
}
static void bus(int s) {
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/bus", here_dir);
    close(open(path, O_CREAT | O_WRONLY, 0666));
    _exit(0);
}
int main(void) {
    m = OK(mmap(0, (size_t)N * P, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    for (int i = 0; i < N; i++) m[i * (P / 8)] = i + 1;
    pthread_t t;
    for (long i = 0; i < 3; i++) CHECK(!pthread_create(&t, 0, reader, (void *)(i + 7)));
    freeze_here();
    if (!OK(fork())) {
        signal(SIGBUS, bus);
        char path[PATH_MAX];
        snprintf(path, sizeof path, "%s/forked", here_dir);
        close(open(path, O_CREAT | O_WRONLY, 0666));
        for (int i = 0; i < 100; i++) { look("the child", 99 + i, 10); nap(20); }
        for (int i = 0; i < N; i++) if (m[i * (P / 8)] != i + 1) wrong("the child", i, m[i * (P / 8)]);
        _exit(0);
    }
    int status;
    OK(wait(&status));
    SAME(status, 0);
    for (int i = 0; i < N; i++) if (m[i * (P / 8)] != i + 1) wrong("the end", i, m[i * (P / 8)]);
}
"#;

/// Starts a subject, and ends it with a checkpoint.
fn ended(subject: &Subject, test: &str) -> (Running, PathBuf) {
    let mut running = Running::start(subject, test);
    running.pids();
    let image = running.dir().join("image");
    checkpoint_now(&request(running.pid, image.clone(), true), &mut Trackings::new())
        .unwrap_or_else(|e| panic!("checkpoint: {e}"));
    running.wait_gone();
    (running, image)
}

/// Restores by the command in the background, leaving so much time between two MiB; the process that stays behind.
fn restore_slowly(image: &Path, running: &Running, rest: &str) -> Pid {
    let mut restore = freeze();
    restore.arg("restore").arg(image);
    restore.args(["--lazy", "--detach", "--lazy-rest", rest]);
    let done = output(&mut restore);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(said.contains("still to come in"), "{said}");
    parent(running.pid)
}

fn parent(pid: Pid) -> Pid {
    let fields = stat_fields(&format!("/proc/{pid}/stat")).expect("a process");
    Pid(fields[1].parse().expect("a pid"))
}

fn until(what: &str, mut is: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is() {
        assert!(began.elapsed() < PATIENCE, "{what}: not in {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Waits until the process that stayed behind is done, and the restored one ours.
fn all_in(server: Pid) {
    until("the memory is all in", || !alive(server));
}

/// Whether any memory of a process waits to be filled.
fn misses(pid: Pid) -> bool {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap_or_default();
    smaps
        .lines()
        .any(|l| l.starts_with("VmFlags:") && l.split(' ').any(|flag| flag == "um"))
}

fn nothing_wrong(running: &Running) {
    let wrong = fs::read_to_string(running.dir().join("wrong")).unwrap_or_default();
    assert_eq!(wrong, "", "pages read as what they never were");
}

#[test]
fn it_is_as_it_was_when_all_is_in() {
    let (mut running, image, before) = {
        let subject = c(READER);
        let running = Running::start(&subject, "it_is_as_it_was_when_all_is_in");
        let before = Portrait::settled(running.pid);
        let image = running.dir().join("image");
        (running, image, before)
    };
    running.pids();
    checkpoint_now(&request(running.pid, image.clone(), true), &mut Trackings::new()).expect("a checkpoint");
    running.wait_gone();
    let options = Options {
        lazy: true,
        ..Options::default()
    };
    let (restored, filling) = prepare(Opened::open(&image).expect("the image"), options)
        .and_then(Ready::go)
        .expect("a restore");
    assert_eq!(restored.roots, [running.pid]);
    if granted() {
        assert_eq!(restored.warnings, [""; 0]);
        assert!(restored.missing > 60 << 20, "{restored:?}");
    }
    filling.finish().expect("all of it");
    assert!(!misses(running.pid));
    same(&before, &running, "when all is in");
    nothing_unfinished(running.dir());
    running.verdict();
    nothing_wrong(&running);
}

/// 64 MiB, of which every eighth page of the last quarter is written anew when it is asked to.
const LATE: &str = r#"
enum { N = 16384, P = 4096 };
static uint64_t *m;
static int is_late(int page) { return page >= N - N / 4 && page % 8 == 0; }
static void file(const char *name, void *at) {
    FILE *f = fopen(in_here(name), "w");
    fprintf(f, "%lx", (long)at);
    fclose(f);
}
static void *later(void *unused) {
    while (access(in_here("now"), F_OK)) nap(1);
    for (int i = 0; i < N; i++) if (is_late(i)) m[i * (P / 8)] = i + 1000001;
    file("written", m);
    return unused;
}
int main(void) {
    m = OK(mmap(0, (size_t)N * P, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    for (int i = 0; i < N; i++) m[i * (P / 8)] = i + 1;
    pthread_t t;
    CHECK(!pthread_create(&t, 0, later, 0));
    freeze_here();
    for (int i = 0; i < N; i++) SAME(m[i * (P / 8)], i + (is_late(i) ? 1000001 : 1));
}
"#;

#[test]
fn what_was_written_lately_comes_first() {
    if !granted() {
        skip!("no userfaultfd is granted");
    }
    const PAGES: usize = 16384;
    let late = |page: &usize| *page >= PAGES - PAGES / 4 && page.is_multiple_of(8);
    let mut running = Running::start(&c(LATE), "what_was_written_lately_comes_first");
    running.pids();
    let (first, image) = (running.dir().join("first"), running.dir().join("image"));
    let mut trackings = Trackings::new();
    let mut checkpoint = |request| checkpoint_now(&request, &mut trackings).expect("a checkpoint");
    checkpoint(request(running.pid, first.clone(), false));
    fs::write(running.dir().join("now"), "").expect("a file");
    let written = running.dir().join("written");
    until("it writes", || {
        fs::read_to_string(&written).is_ok_and(|at| !at.is_empty())
    });
    let at = fs::read_to_string(&written).expect("an address");
    let at = usize::from_str_radix(&at, 16).expect("an address") / 4096;
    checkpoint(freeze_user::checkpoint::Request {
        parent: Some(Opened::open(&first).expect("the parent")),
        ..request(running.pid, image.clone(), true)
    });
    running.wait_gone();
    let server = restore_slowly(&image, &running, "200ms");
    let map = fs::File::open(format!("/proc/{}/pagemap", running.pid)).expect("its page map");
    let mut words = vec![0; PAGES * 8];
    let mut there = |which: &dyn Fn(&usize) -> bool| {
        map.read_exact_at(&mut words, at as u64 * 8)
            .expect("its page map");
        let there = |page: &usize| words[page * 8 + 7] & 0x80 != 0;
        (0..PAGES).filter(which).filter(there).count()
    };
    until("the late pages are there", || there(&late) == PAGES / 32);
    let all = there(&|_| true);
    assert!(all < PAGES / 2, "{all} of {PAGES} pages came before those");
    all_in(server);
    running.verdict();
}

#[test]
fn it_runs_while_its_memory_comes_in() {
    if !granted() {
        skip!("no userfaultfd that tells of all changes");
    }
    let (mut running, image) = ended(&c(READER), "it_runs_while_its_memory_comes_in");
    let server = restore_slowly(&image, &running, "200ms");
    assert_ne!(server, Pid(std::process::id() as i32));
    running.go();
    until("the child", || running.dir().join("forked").exists());
    assert!(misses(running.pid), "all was in before it ran");
    all_in(server);
    assert!(!misses(running.pid), "something is still tracked");
    running.verdict();
    nothing_wrong(&running);
}

/// What a program does to its memory while pages of it are missing.
const CHANGES: &str = r#"
enum { N = 8192, P = 4096 };
static unsigned char *m;
#define HERE(at, page) SAME(*(volatile uint64_t *)(at), (page) + 1)
static void *fresh(size_t pages) { return OK(mmap(0, pages * P, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)); }
int main(void) {
    m = fresh(N);
    unsigned char *unborn = fresh(1024), *wiped = fresh(1024), *locked = fresh(256), *mixed = fresh(1024);
    unsigned char *heap = OK(sbrk(2048 * P));
    for (int i = 0; i < N; i++) *(uint64_t *)(m + (size_t)i * P) = i + 1;
    for (int i = 0; i < 2048; i++) *(uint64_t *)(heap + i * P) = i + 1;
    for (int i = 0; i < 1024; i++) *(uint64_t *)(unborn + i * P) = *(uint64_t *)(wiped + i * P) = i + 1;
    for (int i = 0; i < 1024; i += 2) *(uint64_t *)(mixed + i * P) = i + 1;
    for (int i = 0; i < 256; i++) *(uint64_t *)(locked + i * P) = i + 1;
    OK(madvise(unborn, 1024 * P, MADV_DONTFORK));
    OK(madvise(wiped, 1024 * P, MADV_WIPEONFORK));
    mlock(locked, 256 * P);
    OK(mprotect(m + 7000 * P, 100 * P, PROT_READ));
    OK(mprotect(m + 7200 * P, 100 * P, PROT_NONE));
    char name[PATH_MAX];
    snprintf(name, sizeof name, "%s/file", here_dir);
    int fd = OK(open(name, O_RDWR | O_CREAT, 0666));
    SAME(write(fd, "0123456789", 10), 10);
    freeze_here();

    /* Given up: zeros, before and after it was written to. */
    OK(madvise(m + 1000 * P, 500 * P, MADV_DONTNEED));
    for (int i = 1000; i < 1500; i++) SAME(m[(size_t)i * P], 0);
    m[1100 * P] = 5;
    /* A system call that writes into a page that is not there, and one that reads from one. */
    SAME(pread(fd, m + 2000 * P + 100, 10, 0), 10);
    HERE(m + 2000 * P, 2000);
    SAME(m[2000 * P + 100], '0');
    SAME(pwrite(fd, m + 2001 * P, 8, 0), 8);
    uint64_t word = 0;
    SAME(pread(fd, &word, 8, 0), 8);
    SAME(word, 2002);
    /* Unmapped, and something new at its place. */
    OK(munmap(m + 3000 * P, 200 * P));
    OK(mmap(m + 3000 * P, 100 * P, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0));
    for (int i = 3000; i < 3100; i++) SAME(m[(size_t)i * P], 0);
    /* Moved, grown, moved once more over something that was missing too. */
    unsigned char *to = OK(mremap(m + 4000 * P, 300 * P, 600 * P, MREMAP_MAYMOVE));
    HERE(to + 10 * P, 4010);
    SAME(to[400 * P], 0);
    OK(mremap(to, 600 * P, 600 * P, MREMAP_MAYMOVE | MREMAP_FIXED, m + 5000 * P));
    HERE(m + 5020 * P, 4020);
    SAME(m[5450 * P], 0);
    HERE(m + 5600 * P, 5600);
    /* The heap shrinks and grows. */
    OK(brk(heap + 1024 * P));
    OK(brk(heap + 2048 * P));
    for (int i = 1024; i < 2048; i++) SAME(heap[i * P], 0);
    HERE(heap + 1000 * P, 1000);
    /* Protections hold. */
    HERE(m + 7001 * P, 7001);
    OK(mprotect(m + 7210 * P, P, PROT_READ));
    HERE(m + 7210 * P, 7210);
    for (int i = 0; i < 256; i++) HERE(locked + i * P, i);
    for (int i = 0; i < 1024; i++) SAME(*(uint64_t *)(mixed + i * P), i % 2 ? 0 : i + 1);

    /* A child, and a child of that, each with changes of its own. */
    pid_t child = OK(fork());
    if (!child) {
        unsigned char vec;
        CHECK(mincore(unborn, P, &vec) == -1 && errno == ENOMEM);
        for (int i = 0; i < 1024; i++) SAME(wiped[i * P], 0);
        HERE(m + 6000 * P, 6000);
        OK(madvise(m + 6100 * P, 50 * P, MADV_DONTNEED));
        SAME(m[6110 * P], 0);
        pid_t grandchild = OK(fork());
        if (!grandchild) {
            for (int i = 6100; i < 6150; i++) SAME(m[i * P], 0);
            HERE(m + 6200 * P, 6200);
            OK(munmap(m, 100 * P));
            for (int i = 100; i < 1000; i++) HERE(m + i * P, i);
            _exit(0);
        }
        int status;
        SAME(waitpid(grandchild, &status, 0), grandchild);
        SAME(status, 0);
        for (int i = 0; i < 1000; i++) HERE(m + i * P, i);
        _exit(0);
    }
    /* One that becomes another program, one that shares all memory until it does. */
    pid_t other = OK(fork());
    if (!other) { execl("/bin/true", "true", (char *)0); _exit(1); }
    pid_t third = OK(vfork());
    if (!third) { execl("/bin/true", "true", (char *)0); _exit(1); }
    *(uint64_t *)(m + 6300 * P) = 1;
    for (int i = 0; i < 3; i++) { int status; OK(wait(&status)); SAME(status, 0); }
    HERE(m + 6110 * P, 6110);

    for (int i = 0; i < N; i++) {
        if ((i >= 1000 && i < 1500) || i == 6300 || (i >= 3000 && i < 3200) || (i >= 4000 && i < 4300)) continue;
        if ((i >= 7200 && i < 7300) || (i >= 5000 && i < 5600)) continue;
        HERE(m + (size_t)i * P, i);
    }
    for (int i = 0; i < 300; i++) HERE(m + (5000 + i) * P, 4000 + i);
    for (int i = 1000; i < 1500; i++) SAME(m[(size_t)i * P], i == 1100 ? 5 : 0);
    for (int i = 0; i < 1024; i++) { HERE(unborn + i * P, i); HERE(wiped + i * P, i); }
    for (int i = 0; i < 1024; i++) HERE(heap + i * P, i);
}
"#;

#[test]
fn changes_of_memory_while_it_comes_in() {
    if !granted() {
        skip!("no userfaultfd that tells of all changes");
    }
    // Hardly anything comes in but what is asked for; half of it; nearly all.
    for rest in ["300ms", "20ms", "1ms"] {
        let (mut running, image) = ended(&c(CHANGES), "changes_of_memory_while_it_comes_in");
        let server = restore_slowly(&image, &running, rest);
        running.pids();
        running.go();
        all_in_or_ended(server, &running);
        let status = running.wait();
        assert!(
            matches!(status, WaitStatus::Exited(_, 0)),
            "{rest}: {status:?}: {}",
            running.said()
        );
    }
}

fn all_in_or_ended(server: Pid, running: &Running) {
    all_in(server);
    until("it is ours", || {
        !exists(running.pid) || parent(running.pid) != server
    });
}

#[test]
fn whoever_fills_it_is_killed() {
    if !granted() {
        skip!("no userfaultfd that tells of all changes");
    }
    for n in 0..10 {
        let (mut running, image) = ended(&c(READER), "whoever_fills_it_is_killed");
        let server = restore_slowly(&image, &running, "1s");
        running.go();
        until("the child", || running.dir().join("forked").exists());
        running.pids();
        std::thread::sleep(Duration::from_millis(n * 7));
        kill(server.nix(), Signal::SIGKILL).expect("the process that fills it");
        until("it was ended", || !alive(running.pid));
        until("it is ours", || parent(running.pid) != server);
        let status = running.wait();
        assert!(
            matches!(status, WaitStatus::Signaled(_, Signal::SIGKILL, _)),
            "{status:?}"
        );
        // The child, of which nobody knew, has the pages that it misses poisoned.
        until("the child ended", || {
            running.pids().iter().all(|p| !alive(*p)) && running.dir().join("bus").exists()
        });
        nothing_wrong(&running);
    }
}

#[test]
fn a_damaged_page_ends_it() {
    if !granted() {
        skip!("no userfaultfd that tells of all changes");
    }
    let (mut running, image) = ended(&c(READER), "a_damaged_page_ends_it");
    let pages = fs::File::options()
        .write(true)
        .open(image.join("pages"))
        .expect("its pages");
    pages.write_all_at(b"damage", 40 << 20).expect("a writable image");
    let mut restore = freeze();
    let done = output(restore.arg("restore").arg(&image).arg("--lazy"));
    assert_eq!(done.status.code(), Some(6), "{done:?}");
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(said.contains("checksum") && said.contains("pages"), "{said}");
    running.wait_gone();
    // The same in the background: whoever asked was told that it runs, and then it does no more.
    let server = restore_slowly(&image, &running, "1ms");
    running.go();
    all_in(server);
    until("it was ended", || !alive(running.pid));
    nothing_wrong(&running);
}

/// A child that nobody knew of touches nothing until whoever filled it is long gone.
#[test]
fn who_sleeps_through_the_failure_reads_no_zeros() {
    if !granted() {
        skip!("no userfaultfd that tells of all changes");
    }
    let sleeper = READER.replace("look(\"the child\", 99 + i, 10); nap(20);", "nap(40);");
    assert_ne!(sleeper, READER);
    let (mut running, image) = ended(&c(&sleeper), "who_sleeps_through_the_failure_reads_no_zeros");
    let server = restore_slowly(&image, &running, "1s");
    running.go();
    until("the child", || running.dir().join("forked").exists());
    running.pids();
    let pages = fs::File::options()
        .write(true)
        .open(image.join("pages"))
        .expect("its pages");
    pages.write_all_at(b"damage", 40 << 20).expect("a writable image");
    all_in(server);
    assert!(!running.dir().join("bus").exists(), "it has not slept");
    let wrong = || running.dir().join("wrong").exists();
    until("the child ended", || {
        running.dir().join("bus").exists() || wrong()
    });
    nothing_wrong(&running);
}

#[test]
fn a_damaged_page_of_a_small_process_is_found_before_it_runs() {
    let small = READER.replace("N = 16384", "N = 1024");
    let (running, image) = ended(
        &c(&small),
        "a_damaged_page_of_a_small_process_is_found_before_it_runs",
    );
    let pages = fs::File::options()
        .write(true)
        .open(image.join("pages"))
        .expect("its pages");
    pages.write_all_at(b"damage", 2 << 20).expect("a writable image");
    let done = output(freeze().arg("restore").arg(&image).args(["--lazy", "--detach"]));
    assert_eq!(done.status.code(), Some(6), "{done:?}");
    assert!(!exists(running.pid));
}

#[test]
fn no_checkpoint_before_all_is_in() {
    if !granted() {
        skip!("no userfaultfd that tells of all changes");
    }
    let (mut running, image) = ended(&c(READER), "no_checkpoint_before_all_is_in");
    let server = restore_slowly(&image, &running, "200ms");
    let done = output(freeze().arg("check").arg(running.pid.to_string()));
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert_eq!(done.status.code(), Some(3), "{said}");
    assert!(
        said.contains("still being filled") && said.contains("wait until all of it is in"),
        "{said}"
    );
    all_in(server);
    checkpoint_now(
        &request(running.pid, running.dir().join("again"), false),
        &mut Trackings::new(),
    )
    .expect("a checkpoint when all is in");
    running.verdict();
    nothing_wrong(&running);
}

#[test]
fn a_fault_at_every_step() {
    let (mut running, image) = ended(&c(READER), "a_fault_at_every_step");
    for n in 1.. {
        let armed = fault::arm(n, Act::Fail);
        let options = Options {
            lazy: true,
            ..Options::default()
        };
        let outcome = prepare(Opened::open(&image).expect("the image"), options).and_then(Ready::go);
        let Some(step) = armed.fired() else {
            let (_, filling) = outcome.expect("a restore without a fault");
            filling.finish().expect("all of it");
            running.pids();
            running.verdict();
            return nothing_wrong(&running);
        };
        drop(armed);
        assert!(matches!(outcome, Err(Error::Kernel { .. })), "step {n} ({step})");
        running.wait_gone();
    }
}

#[test]
fn killed_at_every_step() {
    if !cfg!(debug_assertions) {
        skip!("the command was built without faults on demand");
    }
    let (mut running, image) = ended(&c(READER), "killed_at_every_step");
    for n in 1..=60 {
        let mut restore = freeze();
        restore.env("FREEZE_FAULT", format!("SIGKILL:{n}"));
        let done = output(restore.arg("restore").arg(&image).args(["--lazy", "--detach"]));
        if done.status.success() {
            assert!(n > 15, "only {n} steps");
            until("it is ours", || {
                parent(running.pid) == Pid(std::process::id() as i32)
            });
            running.verdict();
            return nothing_wrong(&running);
        }
        assert_eq!(done.status.code(), Some(128 + 9), "step {n}: {done:?}");
        running.wait_gone();
    }
    panic!("a lazy restore has more than 60 steps");
}

/// A redis with 200 MiB, asked while most of it is missing.
#[test]
fn redis_answers_at_once() {
    if !Path::new("/usr/bin/redis-server").exists() {
        skip!("no redis-server");
    }
    let script = r#"
import os, socket, subprocess, time
os.chdir(HERE)
server = subprocess.Popen(["/usr/bin/redis-server", "--port", "0", "--unixsocket", "s", "--save", "", "--appendonly", "no", "--enable-debug-command", "yes"],
    stdin=subprocess.DEVNULL, stdout=open("log", "w"), stderr=subprocess.STDOUT)
while not os.path.exists("s"):
    time.sleep(0.01)
s = socket.socket(socket.AF_UNIX)
s.connect("s")
f = s.makefile("rb")
def ask(line):
    s.sendall(line.encode() + b"\r\n")
    head = f.readline().strip()
    return f.read(int(head[1:]) + 2)[:-2] if head[:1] == b"$" else head
assert ask("debug populate 200000 key 1000") == b"+OK"
assert ask("set one two") == b"+OK"
freeze_here()
began = time.time()
assert ask("get one") == b"two"
print("answered after %.1f ms" % ((time.time() - began) * 1e3), flush=True)
assert ask("dbsize") == b":200001"
for i in 0, 99999, 199999, 31337, 4711:
    got = ask("get key:%d" % i)
    assert len(got) == 1000 and got.rstrip(b"\0") == b"value:%d" % i, (i, got[:20])
assert ask("set one three") == b"+OK"
assert ask("bgsave").startswith(b"+Back")
while b"rdb_bgsave_in_progress:0" not in ask("info persistence"):
    time.sleep(0.02)
assert b"rdb_last_bgsave_status:ok" in ask("info persistence")
assert os.path.getsize("dump.rdb") > 1 << 20
assert ask("get one") == b"three"
ask("shutdown nosave")
assert server.wait() == 0
"#;
    let subject = python(script);
    let (mut running, image) = ended(&subject, "redis_answers_at_once");
    let server = restore_slowly(&image, &running, "5ms");
    running.pids();
    running.go();
    all_in_or_ended(server, &running);
    let status = running.wait();
    println!("{}", running.said());
    assert!(
        matches!(status, WaitStatus::Exited(_, 0)),
        "{status:?}: {}",
        running.said()
    );
}

/// The keeper that a process of freeze has set on what it fills.
fn keeper(server: Pid) -> Option<Pid> {
    let all = freeze_tests::subject::all();
    let mut children = all.iter().filter(|(_, above)| **above == server);
    let comm = |pid: &Pid| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    children
        .find(|(pid, _)| comm(pid) == "freeze-keeper\n")
        .map(|(pid, _)| *pid)
}

#[test]
fn the_keeper_stands_where_its_program_does() {
    if !granted() {
        skip!("no userfaultfd that tells of all changes");
    }
    let (mut running, image) = ended(&c(READER), "the_keeper_stands_where_its_program_does");
    let server = restore_slowly(&image, &running, "200ms");
    let keeper = keeper(server).expect("a keeper");
    let read = |pid: Pid, what: &str| fs::read_to_string(format!("/proc/{pid}/{what}")).expect("a process");
    assert_eq!(read(keeper, "cgroup"), read(running.pid, "cgroup"));
    // Lowering it takes CAP_SYS_RESOURCE.
    if fs::write("/proc/thread-self/oom_score_adj", "-1").is_ok() {
        let _ = fs::write("/proc/thread-self/oom_score_adj", "0");
        assert_eq!(read(keeper, "oom_score_adj"), "-1000\n");
    }
    assert_eq!(read(server, "comm"), "freeze-lazy\n");
    // Told to end as one does it kindly, neither goes before its work is done.
    for pid in [server, keeper] {
        kill(pid.nix(), Signal::SIGTERM).expect("a signal");
        kill(pid.nix(), Signal::SIGHUP).expect("a signal");
    }
    std::thread::sleep(Duration::from_millis(50));
    assert!(alive(server) && alive(keeper) && misses(running.pid));
    // Without it the work goes on.
    kill(keeper.nix(), Signal::SIGKILL).expect("the keeper");
    all_in(server);
    running.verdict();
    nothing_wrong(&running);
}

#[test]
fn in_the_foreground_it_is_the_same() {
    if !granted() {
        skip!("no userfaultfd that tells of all changes");
    }
    // To its end, with the status of the program; then killed on the way.
    for killed in [false, true] {
        let (mut running, image) = ended(&c(READER), "in_the_foreground_it_is_the_same");
        let mut restore = freeze();
        restore.arg("restore").arg(&image);
        restore.args(["--lazy", "--lazy-rest", "60ms"]);
        let mut restore = restore.spawn().expect("freeze");
        until("it runs", || {
            keeper(Pid(restore.id() as i32)).is_some() && misses(running.pid)
        });
        running.go();
        until("the child", || running.dir().join("forked").exists());
        if killed {
            restore.kill().expect("freeze");
        }
        let status = restore.wait().expect("its end");
        assert_eq!(status.code(), (!killed).then_some(0), "{status:?}");
        until("it was ended", || !alive(running.pid));
        running.wait_gone();
        nothing_wrong(&running);
    }
}

/// Executes the command after it where userfaultfd(2) is refused.
const REFUSED: &str = r#"
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
# Load the number of the call; EPERM if it is userfaultfd, else allowed.
code = b"".join(struct.pack("HBBI", *i) for i in [(0x20, 0, 0, 0), (0x15, 0, 1, 323), (6, 0, 0, 0x50001), (6, 0, 0, 0x7fff0000)])
text = ctypes.create_string_buffer(code, len(code))
program = struct.pack("HxxxxxxQ", 4, ctypes.addressof(text))
assert libc.prctl(22, 2, ctypes.create_string_buffer(program, len(program)), 0, 0) == 0
os.execv(sys.argv[1], sys.argv[1:])
"#;

#[test]
fn without_userfaultfd_all_is_filled_before() {
    let (mut running, image) = ended(&c(READER), "without_userfaultfd_all_is_filled_before");
    let mut restore = std::process::Command::new(freeze_tests::subject::interpreter());
    restore.args(["-c", REFUSED]).arg(freeze().get_program());
    restore.arg("restore").arg(&image).args(["--lazy", "--detach"]);
    let done = output(&mut restore);
    let (out, err) = (
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&done.stderr),
    );
    assert!(done.status.success(), "{err}");
    assert!(err.contains("memory was filled before the program ran"), "{err}");
    assert!(!out.contains("still to come"), "{out}");
    until("it is ours", || {
        parent(running.pid) == Pid(std::process::id() as i32)
    });
    running.verdict();
    nothing_wrong(&running);
}
