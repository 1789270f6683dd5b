//! Every checkpoint must be a state that existed at one instant: threads of two processes write what can be checked,
//! to all kinds of memory, while checkpoints are made; each of these is restored and goes on checking itself.
//!
//! `FREEZE_VERIFIER=5000` sets how many checkpoints are made (60 unless told otherwise).

use freeze_tests::cycle::{checkpoint_now, request, restore_now};
use freeze_tests::{Running, c};
use freeze_user::ids::{PAGE, Pid, Range, SpaceId};
use freeze_user::precopy::{SharedLog, Trackings};
use freeze_user::store::Opened;
use freeze_user::sys::{self, fault};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Each writer visits all pages in an order that its count tells, and finds in each what it wrote when it was there last.
/// So a page from before or after the cut, or one that was lost, is noticed: at once by the sweeps, which look at all.
const PROGRAM: &str = r#"
#define WRITERS 4            /* the last one is a process of its own */
#define MIB (1UL << 20)
#define REGIONS 6
#define CHAOS (4 * MIB)

struct shared { uint64_t intent[WRITERS], done[WRITERS], seen[WRITERS], sweeps[WRITERS + 1]; };
static struct shared *sh;
static char *region[REGIONS];
static size_t size[REGIONS] = { 40 * MIB, 8 * MIB, 2 * MIB, 1 * MIB, 1 * MIB, 1 * MIB };
static uint64_t pages;

static uint64_t *cell(uint64_t page, int who) {
    for (int i = 0; i < REGIONS; i++) {
        if (page < size[i] / 4096) return (uint64_t *)(region[i] + page * 4096 + who * 64);
        page -= size[i] / 4096;
    }
    DIE("page out of range");
}
static uint64_t mix(uint64_t s, uint64_t page, int who) {
    uint64_t x = s * 0x9e3779b97f4a7c15 ^ page * 0xff51afd7ed558ccd ^ who;
    return x ^ x >> 29;
}
static uint64_t place(uint64_t s, int who) { return (s * 7919 + who * 977) % pages; }
static void right(uint64_t page, int who, uint64_t s, const char *when) {
    uint64_t *at = cell(page, who), want = s ? mix(s, page, who) : 0;
    if (at[0] != s || at[1] != want)
        DIE("%s: writer %d, page %lu (%p): %lu, %lx and not %lu, %lx; done %lu", when, who, page, at, at[0], at[1], s, want,
            sh->done[who]);
}
static void sweep(int who) {
    uint64_t done = sh->done[who], first = done > pages ? done - pages + 1 : 1;
    for (uint64_t s = first; s <= done; s++) right(place(s, who), who, s, "sweep");
    __atomic_add_fetch(&sh->sweeps[who], 1, __ATOMIC_SEQ_CST);
}
static void *writer(void *arg) {
    int who = (long)arg, next = (who + 1) % WRITERS;
    uint64_t mine = sh->done[who];
    for (uint64_t turn = 0; !gone_ahead(); turn++) {
        for (int i = 0; i < 8; i++) {
            SAME(mine, sh->done[who]);
            SAME(mine, sh->intent[who]);
            CHECK(__atomic_load_n(&sh->done[next], __ATOMIC_SEQ_CST) >= sh->seen[who]);
            uint64_t s = ++mine, page = place(s, who), *at = cell(page, who);
            sh->intent[who] = s;
            right(page, who, s > pages ? s - pages : 0, "before a write");
            at[0] = s;
            at[1] = mix(s, page, who);
            __atomic_store_n(&sh->done[who], s, __ATOMIC_SEQ_CST);
            sh->seen[who] = __atomic_load_n(&sh->done[next], __ATOMIC_SEQ_CST);
        }
        if (turn % 16 == 0) sweep(who);
        nap(2);
    }
    sweep(who);
    return 0;
}

/* Two areas: of one the mappings are replaced, and one is moved, which takes a single mapping. */
static uint64_t gens[2][CHAOS / 4096];
static char *areas[2], *other;
static unsigned seed = 1;
static void whole(void) {
    for (size_t i = 0; i < 2 * CHAOS / 4096; i++) {
        int which = i >= CHAOS / 4096;
        size_t page = i % (CHAOS / 4096);
        uint64_t *p = (uint64_t *)(areas[which] + page * 4096), want = gens[which][page];
        if (p[0] != want || p[511] != want)
            DIE("chaos %d: page %zu (%p) holds %lu, %lu and not %lu", which, page, p, p[0], p[511], want);
    }
}
/* Empties, fills, moves, replaces, and has the kernel write. */
static void *chaotic(void *arg) {
    uint64_t count = 1;
    for (uint64_t turn = 0; !gone_ahead(); turn++) {
        size_t from = rand_r(&seed) % (CHAOS / 4096 - 64), n = 1 + rand_r(&seed) % 64, to = 0;
        int op = turn % 6, which = op == 4 ? 1 : op == 3 ? 0 : rand_r(&seed) % 2;
        char *at = areas[which] + from * 4096;
        uint64_t g = 0;
        switch (op) {
        case 0: OK(madvise(at, n * 4096, MADV_DONTNEED)); break;
        case 1: case 2:
            g = ++count;
            for (size_t i = 0; i < n; i++) *(uint64_t *)(at + i * 4096) = *(uint64_t *)(at + i * 4096 + 4088) = g;
            break;
        case 3: {
            char *old = areas[0];
            CHECK(mremap(old, CHAOS, CHAOS, MREMAP_MAYMOVE | MREMAP_FIXED, other) == other);
            areas[0] = other;
            other = mmap(old, CHAOS, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
            CHECK(other == old);
            n = 0;
            break; }
        case 4:
            CHECK(mmap(at, n * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == at);
            break;
        case 5: {
            /* Without a fault. */
            uint64_t page[512];
            n = 1;
            g = ++count;
            for (int i = 0; i < 512; i++) page[i] = g;
            struct iovec a = { page, 4096 }, b = { at, 4096 };
            if (turn % 12 == 5) SAME(process_vm_writev(getpid(), &a, 1, &b, 1, 0), 4096);
            else memcpy(at, page, 4096);
            break; }
        }
        for (to = 0; to < n; to++) gens[which][from + to] = g;
        if (turn % 8 == 0) { whole(); sh->sweeps[WRITERS]++; }
        nap(5);
    }
    whole();
    return 0;
}

static char *file(const char *name, size_t size, int flags, int gone) {
    int fd = OK(open(in_here(name), O_RDWR | O_CREAT, 0600));
    OK(ftruncate(fd, size));
    char *at = OK(mmap(0, size, PROT_READ | PROT_WRITE, flags, fd, 0));
    if (gone) OK(unlink(in_here(name)));
    close(fd);
    return at;
}

int main(void) {
    int anon = MAP_PRIVATE | MAP_ANONYMOUS;
    sh = OK(mmap(0, sizeof *sh, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    region[0] = OK(mmap(0, size[0], PROT_READ | PROT_WRITE, anon, -1, 0));
    OK(madvise(region[0], size[0], MADV_NOHUGEPAGE));
    char *huge = OK(mmap(0, size[1] + 2 * MIB, PROT_READ | PROT_WRITE, anon, -1, 0));
    region[1] = (char *)(((uintptr_t)huge + 2 * MIB - 1) & ~(2 * MIB - 1));
    OK(madvise(region[1], size[1], MADV_HUGEPAGE));
    region[2] = OK(mmap(0, size[2], PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    int fd = OK(memfd_create("pattern", MFD_CLOEXEC));
    OK(ftruncate(fd, size[3]));
    region[3] = OK(mmap(0, size[3], PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
    region[4] = file("private", size[4], MAP_PRIVATE, 0);
    region[5] = file("unlinked", size[5], MAP_SHARED, 1);
    for (int i = 0; i < REGIONS; i++) pages += size[i] / 4096;
    CHECK(pages % 7919);
    for (int i = 0; i < 2; i++) areas[i] = OK(mmap(0, CHAOS, PROT_READ | PROT_WRITE, anon, -1, 0));
    other = OK(mmap(0, CHAOS, PROT_NONE, anon | MAP_NORESERVE, -1, 0));
    FILE *where = fopen(in_here("where"), "w");
    fprintf(where, "%lu %d", (unsigned long)sh->sweeps, WRITERS + 1);
    fclose(where);
    /* Resident, so that it is large enough for all means to be used. */
    for (size_t i = 0; i < size[0]; i += 4096) ((volatile char *)region[0])[i + 4000] = 1;

    pid_t child = OK(fork());
    if (!child) {
        /* Private memory is its own from here on: what it has not written is zero, as for a writer that begins. */
        writer((void *)(long)(WRITERS - 1));
        _exit(0);
    }
    pthread_t t[WRITERS];
    for (long i = 0; i < WRITERS - 1; i++) CHECK(!pthread_create(&t[i], 0, writer, (void *)i));
    CHECK(!pthread_create(&t[WRITERS - 1], 0, chaotic, 0));
    freeze_here();
    for (int i = 0; i < WRITERS; i++) pthread_join(t[i], 0);
    int status;
    OK(waitpid(child, &status, 0));
    SAME(status, 0);
    return 0;
}
"#;

/// How many checkpoints are restored one after another, before the last of them goes on.
const BATCH: usize = 10;

fn count() -> usize {
    let asked = std::env::var("FREEZE_VERIFIER").ok();
    asked.and_then(|n| n.parse().ok()).unwrap_or(60)
}

#[test]
fn every_checkpoint_is_one_instant_by_the_fault_log() {
    let mut trackings = Trackings::new();
    trackings.log = Some(SharedLog::default());
    verify("fault_log", count(), trackings);
}

#[test]
fn every_checkpoint_is_one_instant_by_scans() {
    verify("scans", count() / 3, Trackings::new());
}

/// Where [`unheard_of`] writes: the process and the address.
static VICTIM: (AtomicI32, AtomicU64) = (AtomicI32::new(0), AtomicU64::new(0));

/// Writes into a process as nobody may do unnoticed: the log takes this process for the one that makes checkpoints, whose
/// own doings it does not tell.
fn unheard_of() {
    let (pid, at) = (Pid(VICTIM.0.load(Relaxed)), VICTIM.1.load(Relaxed));
    sys::vm_write(pid, at, &[7; PAGE as usize]).expect("memory of our own child");
}

#[test]
fn what_the_log_was_not_told_of_is_found_after_the_resume() {
    let mut running = Running::start(
        &c(r#"
int main(void) {
    size_t size = 64 << 20;
    char *at = OK(mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    OK(madvise(at, size, MADV_NOHUGEPAGE));
    memset(at, 1, size);
    FILE *where = fopen(in_here("where"), "w");
    fprintf(where, "%lu", (unsigned long)at);
    fclose(where);
    freeze_here();
    for (int i = 0; i < 4096; i++) SAME(at[4096 * 1000 + i], 7);
    return 0;
}
"#),
        "unheard_of",
    );
    let text = fs::read_to_string(running.dir().join("where")).expect("where the memory is");
    let at = text.parse::<u64>().expect("an address") + 1000 * PAGE;
    VICTIM.0.store(running.pid.0, Relaxed);
    VICTIM.1.store(at, Relaxed);
    let mut trackings = Trackings::new();
    trackings.log = Some(SharedLog::default());
    let mut take = |name: &str, parent: Option<Opened>| {
        let mut request = request(running.pid, running.dir().join(name), false);
        (request.track, request.parent) = (true, parent);
        checkpoint_now(&request, &mut trackings).unwrap_or_else(|e| panic!("{name}: {e}"));
        let image = Opened::open(&running.dir().join(name)).expect("a checkpoint");
        (image, trackings.means.clone())
    };
    let (first, means) = take("first", None);
    if !means.contains_key("fault log") {
        println!("SKIP: this kernel has no fault log: {means:?}");
        unheard_of();
        return running.verdict();
    }
    let armed = fault::meddle("stop", unheard_of);
    let (second, means) = take("second", Some(first));
    drop(armed);
    assert_eq!(means.get("the log missed pages"), Some(&1), "{means:?}");
    assert_eq!(means.get("scan"), Some(&1), "{means:?}");
    let mut page = [0; PAGE as usize];
    let space = SpaceId::private(running.pid);
    second
        .read(space, Range::new(at, at + PAGE), &mut page)
        .expect("the page is in the image");
    assert!(page == [7; PAGE as usize], "the checkpoint has an old page");
    running.verdict();
}

/// Where the program lives that [`replace`] tells what to do, and how often that was asked for.
static STAGE: Mutex<(PathBuf, usize)> = Mutex::new((PathBuf::new(), 0));

/// Has that program replace a mapping, when something is registered after everything was looked at.
fn replace() {
    let mut stage = STAGE.lock().expect("a stage");
    let (dir, n) = &mut *stage;
    *n += 1;
    if *n != 2 {
        return;
    }
    fs::write(dir.join("replace"), "").expect("a file of ours");
    let began = Instant::now();
    while !dir.join("replaced").exists() {
        assert!(began.elapsed() < Duration::from_secs(20), "it replaces nothing");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// What was tracked and is replaced while its neighbour comes to be tracked is not what was tracked.
#[test]
fn a_mapping_replaced_while_another_is_registered_is_not_taken_for_the_old_one() {
    let mut running = Running::start(
        &c(r#"
enum { P = 4096 };
int main(void) {
    int anon = MAP_PRIVATE | MAP_ANONYMOUS, rw = PROT_READ | PROT_WRITE, done = 0;
    size_t size = 64 << 20;
    char *at = OK(mmap(0, size + P, rw, anon, -1, 0)), *old = at + 1000 * P, *next = at + size;
    OK(madvise(at, size, MADV_NOHUGEPAGE));
    memset(at, 7, size);
    FILE *where = fopen(in_here("where"), "w");
    fprintf(where, "%lu", (unsigned long)old);
    fclose(where);
    close(OK(open(here_ready, O_CREAT | O_WRONLY | O_CLOEXEC, 0666)));
    while (!gone_ahead()) {
        /* So that there is something to register, and another round of copying. */
        CHECK(mmap(next, P, rw, anon | MAP_FIXED, -1, 0) == next);
        *next = 8;
        memset(at + 2000 * P, 6, 1000 * P);
        if (!done && !access(in_here("replace"), F_OK)) {
            done = 1;
            CHECK(mmap(old, P, rw, anon | MAP_FIXED, -1, 0) == old);
            close(OK(open(in_here("replaced"), O_CREAT | O_WRONLY, 0600)));
        }
        nap(1);
    }
    SAME(*old, done ? 0 : 7);
    SAME(*next, 8);
    return 0;
}
"#),
        "replaced",
    );
    let dir = running.dir().to_owned();
    let text = fs::read_to_string(dir.join("where")).expect("where the memory is");
    let at = text.parse::<u64>().expect("an address");
    *STAGE.lock().expect("a stage") = (dir.clone(), 0);
    let mut trackings = Trackings::new();
    trackings.log = Some(SharedLog::default());
    let mut take = |name: &str, parent: Option<Opened>| {
        let mut request = request(running.pid, dir.join(name), false);
        (request.track, request.parent) = (true, parent);
        checkpoint_now(&request, &mut trackings).unwrap_or_else(|e| panic!("{name}: {e}"));
        let image = Opened::open(&dir.join(name)).expect("a checkpoint");
        (image, trackings.means.clone())
    };
    let (first, means) = take("first", None);
    if !means.contains_key("fault log") {
        println!("SKIP: this kernel has no fault log: {means:?}");
        return running.verdict();
    }
    let armed = fault::meddle("registration", replace);
    let (second, means) = take("second", Some(first));
    drop(armed);
    assert!(STAGE.lock().expect("a stage").1 >= 2, "{means:?}");
    let mut runs = second.runs(SpaceId::private(running.pid));
    let stored = runs.any(|run| run.range.contains(at));
    assert!(!stored, "the checkpoint has a page that was gone: {means:?}");
    assert_eq!(means.get("the log missed pages"), None, "{means:?}");
    running.verdict();
}

/// mremap(2) wants one mapping: none may become two by being tracked while it grows, nor fail to become one again.
#[test]
fn mappings_that_grow_meanwhile_stay_one() {
    let mut running = Running::start(
        &c(r#"
enum { N = 64, P = 4096 };
static char *at[N];
static size_t size[N];
static unsigned char what[N];
static unsigned next(unsigned below) {
    static unsigned seed = 1;
    return (seed = seed * 1103515245 + 12345) / 65536 % below;
}
static void fill(int i, size_t from) {
    for (size_t k = from; k < size[i]; k += P) at[i][k] = what[i] + k / P;
}
static void *churn(void *arg) {
    (void)arg;
    while (!gone_ahead()) {
        for (int turn = 0; turn < 200; turn++) {
            int i = next(N), anon = MAP_PRIVATE | MAP_ANONYMOUS;
            size_t before = size[i];
            size[i] = P * (1 + next(64));
            if (!at[i]) {
                at[i] = OK(mmap(0, size[i], PROT_READ | PROT_WRITE, anon, -1, 0));
                what[i] = next(256);
                fill(i, 0);
                continue;
            }
            for (size_t k = 0; k < before; k += P) SAME((unsigned char)at[i][k], (unsigned char)(what[i] + k / P));
            if (next(3)) {
                at[i] = OK(mremap(at[i], before, size[i], MREMAP_MAYMOVE));
                fill(i, before);
            } else {
                OK(munmap(at[i], before));
                at[i] = 0;
            }
        }
    }
    return 0;
}
int main(void) {
    /* Large enough to be tracked. */
    size_t much = 40 << 20;
    memset(OK(mmap(0, much, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)), 1, much);
    pthread_t t;
    CHECK(!pthread_create(&t, 0, churn, 0));
    freeze_here();
    pthread_join(t, 0);
    return 0;
}
"#),
        "growing",
    );
    let mut trackings = Trackings::new();
    let image = running.dir().join("image");
    for n in 0..30 {
        // Tracked from now on, tracked already, and for a single checkpoint.
        if n % 3 == 0 {
            trackings.clear();
        }
        let mut request = request(running.pid, image.clone(), false);
        request.track = n % 3 != 2;
        checkpoint_now(&request, &mut trackings).unwrap_or_else(|e| panic!("{n}: {e}\n{}", running.said()));
        fs::remove_dir_all(&image).expect("an image of ours");
    }
    drop(trackings);
    running.verdict();
}

fn verify(test: &str, count: usize, mut trackings: Trackings) {
    let mut running = Running::start(&c(PROGRAM), test);
    let (mut made, mut restored) = (0, 0);
    let mut pauses = Vec::new();
    let mut parts: BTreeMap<&str, u64> = BTreeMap::new();
    while made < count {
        running.pids();
        trackings.clear();
        let mut parent: Option<Opened> = None;
        let mut images = Vec::new();
        for n in 0..BATCH.min(count - made) {
            let image = running.dir().join(format!("image-{made}"));
            let mut request = request(running.pid, image.clone(), false);
            (request.track, request.parent) = (true, parent.take());
            let report = checkpoint_now(&request, &mut trackings);
            let report = report.unwrap_or_else(|e| panic!("checkpoint {made}: {e}\n{}", running.said()));
            pauses.push(report.pause_us);
            for (part, ns) in &report.pause_parts {
                *parts.entry(*part).or_default() += ns / 1000;
            }
            parent = Some(Opened::open(&image).unwrap_or_else(|e| panic!("opening checkpoint {made}: {e}")));
            images.push(image);
            made += 1;
            // From 50 a second down to ten.
            std::thread::sleep(Duration::from_millis(10 + 30 * (n as u64 % 3)));
        }
        drop(parent);
        for image in &images {
            kill(&mut running);
            restore_now(image).unwrap_or_else(|e| panic!("restoring {}: {e}", image.display()));
            running.pids();
            checked(&running, image.display());
            restored += 1;
        }
        images
            .iter()
            .for_each(|i| fs::remove_dir_all(i).expect("an image of ours"));
    }
    pauses.sort_unstable();
    println!(
        "{made} checkpoints, {restored} restored and checked; pause {} µs median, {} longest; {:?}; µs in all: {parts:?}",
        pauses[pauses.len() / 2],
        pauses[pauses.len() - 1],
        trackings.means
    );
    running.verdict();
}

fn kill(running: &mut Running) {
    for pid in running.pids() {
        let _ = nix::sys::signal::kill(pid.nix(), nix::sys::signal::Signal::SIGKILL);
    }
    running.wait_gone();
}

/// Waits until every writer has looked at everything, twice: the first time may have begun before the cut.
fn checked(running: &Running, image: impl std::fmt::Display) {
    let text = fs::read_to_string(running.dir().join("where")).expect("where the counts are");
    let (at, count) = text.split_once(' ').expect("an address and a number");
    let (at, count): (u64, usize) = (at.parse().expect("an address"), count.parse().expect("a number"));
    let counts = || -> Option<Vec<u64>> {
        let mem = File::open(format!("/proc/{}/mem", running.pid)).ok()?;
        let mut bytes = vec![0; count * 8];
        mem.read_exact_at(&mut bytes, at).ok()?;
        Some(
            bytes
                .chunks(8)
                .map(|w| u64::from_ne_bytes(w.try_into().unwrap_or_default()))
                .collect(),
        )
    };
    let began = Instant::now();
    let first = counts();
    loop {
        let now = counts();
        if let (Some(first), Some(now)) = (&first, &now)
            && first.iter().zip(now).all(|(a, b)| *b >= a + 2)
        {
            return;
        }
        assert!(
            running.is_alive() && !running.said().contains("subject.c"),
            "{image} is no state that ever was:\n{}",
            running.said()
        );
        assert!(
            began.elapsed() < Duration::from_secs(30),
            "{image}: nobody checks: {first:?}, {now:?}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}
