//! Many cycles in a row: two hundred restores, two hundred checkpoints of a running program, nothing left behind.

use freeze_tests::cycle::{checkpoint_now, nothing_unfinished, request, restore_now};
use freeze_tests::{Portrait, Running, python};
use freeze_user::precopy::Trackings;
use freeze_user::store::Opened;
use std::fs;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// As often as the project promises.
const CYCLES: usize = 200;

/// Threads that compute and talk over pipes, a log that grows, a queue; at the end everything must add up.
const PROGRAM: &str = r#"
import threading, queue
log = open(HERE + "/log", "w")
to, back = os.pipe(), os.pipe()
jobs = queue.Queue()
counts = [0] * 4
bad = []

def echo():
    while True:
        word = os.read(to[0], 8)
        if not word:
            break
        os.write(back[1], word)

def talk():
    n = 0
    while not gone_ahead():
        word = b"%08d" % n
        os.write(to[1], word)
        if os.read(back[0], 8) != word:
            bad.append(n)
        n += 1
        counts[0] = n
        time.sleep(0.001)

def compute():
    a, b = 0, 1
    while not gone_ahead():
        a, b = b, (a + b) % 1000000007
        counts[1] += 1
        if counts[1] % 50 == 0:
            jobs.put(a)
            time.sleep(0.001)
    jobs.put(None)

def write():
    while True:
        job = jobs.get()
        if job is None:
            break
        counts[2] += 1
        log.write("%d %d\n" % (counts[2], job))
        log.flush()

threads = [threading.Thread(target=f) for f in (echo, talk, compute, write)]
for t in threads:
    t.start()
time.sleep(0.05)
freeze_here()
for t in threads[1:]:
    t.join()
os.close(to[1])
threads[0].join()
log.close()
lines = open(HERE + "/log").read().splitlines()
assert not bad, bad
assert len(lines) == counts[2], (len(lines), counts)
a, b, expected = 0, 1, []
for n in range(1, counts[1] + 1):
    a, b = b, (a + b) % 1000000007
    if n % 50 == 0:
        expected.append(a)
assert [int(l.split()[1]) for l in lines] == expected
assert [int(l.split()[0]) for l in lines] == list(range(1, len(lines) + 1))
print("counted", counts)
"#;

/// One at a time: their descriptors are counted.
static ALONE: Mutex<()> = Mutex::new(());

/// Descriptors of this process: none may be left by a cycle. The programs that look into the kernel, which are loaded
/// when there first is something to look for, stay.
fn own_descriptors() -> usize {
    let all = fs::read_dir("/proc/self/fd")
        .expect("our own descriptors")
        .flatten();
    let links = all.filter_map(|e| Some(fs::read_link(e.path()).ok()?.display().to_string()));
    links.filter(|l| !l.starts_with("anon_inode:bpf")).count()
}

#[test]
fn two_hundred_restores() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut running = Running::start(&python(PROGRAM), "two_hundred_restores");
    running.pids();
    let began = Instant::now();
    let mut descriptors = 0;
    for n in 0..CYCLES {
        let image = running.dir().join(format!("image-{n}"));
        let request = request(running.pid, image.clone(), true);
        checkpoint_now(&request, &mut Trackings::new()).unwrap_or_else(|e| panic!("checkpoint {n}: {e}"));
        running.wait_gone();
        let restored = restore_now(&image).unwrap_or_else(|e| panic!("restore {n}: {e}"));
        assert_eq!(restored.warnings, [""; 0], "cycle {n}");
        fs::remove_dir_all(&image).expect("the image of this cycle");
        match n {
            0 => descriptors = own_descriptors(),
            _ => assert_eq!(own_descriptors(), descriptors, "cycle {n} left a descriptor open"),
        }
    }
    println!("{CYCLES} cycles in {:?}", began.elapsed());
    nothing_unfinished(running.dir());
    running.verdict();
}

#[test]
fn two_hundred_checkpoints() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut running = Running::start(&python(PROGRAM), "two_hundred_checkpoints");
    running.pids();
    let began = Instant::now();
    let mut trackings = Trackings::new();
    let mut parent: Option<Opened> = None;
    let (mut longest, mut descriptors) = (0, 0);
    for n in 0..CYCLES {
        let image = running.dir().join(format!("image-{n}"));
        let mut request = request(running.pid, image.clone(), false);
        request.track = true;
        // A new chain now and then, as a watch would begin one.
        request.parent = parent.take().filter(|_| n % 10 != 0);
        let report =
            checkpoint_now(&request, &mut trackings).unwrap_or_else(|e| panic!("checkpoint {n}: {e}"));
        longest = longest.max(report.pause_us);
        parent = Some(Opened::open(&image).unwrap_or_else(|e| panic!("opening checkpoint {n}: {e}")));
        if n == 20 {
            descriptors = own_descriptors();
        } else if n > 20 && n % 10 == 0 {
            assert_eq!(
                own_descriptors(),
                descriptors,
                "checkpoint {n} left a descriptor open"
            );
        }
    }
    println!(
        "{CYCLES} checkpoints in {:?}, the longest pause {longest} µs",
        began.elapsed()
    );
    nothing_unfinished(running.dir());
    // The last of a chain restores.
    let pid = running.pid;
    let last = running.dir().join("last");
    let mut request = request(pid, last.clone(), true);
    request.parent = parent;
    let quiet = Portrait::now(pid);
    checkpoint_now(&request, &mut trackings).unwrap_or_else(|e| panic!("the last checkpoint: {e}"));
    running.wait_gone();
    restore_now(&last).unwrap_or_else(|e| panic!("the last restore: {e}"));
    same_but_positions(&quiet, &running);
    running.verdict();
}

/// The log grows all the time; everything else is as it was.
fn same_but_positions(before: &Portrait, running: &Running) {
    let steady = |p: &Portrait| p.without(|place| place.ends_with("/fdinfo/pos") || place.contains("/maps/"));
    let differences = steady(before).differences(&steady(&Portrait::now(running.pid)));
    assert!(differences.is_empty(), "{differences:?}");
}
