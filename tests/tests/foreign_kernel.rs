//! Restoring under another kernel: what the image recorded of its own, such as the vDSO, is not what is running now.

use freeze_tests::cycle::{checkpoint_now, request, restore_now};
use freeze_tests::{Running, c};
use freeze_user::precopy::Trackings;
use freeze_user::store::{Content, Opened, Options, Store};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Calls everything the vDSO has by the addresses it looked up before; a thread may stand inside it.
const PROGRAM: &str = r#"
#include <dlfcn.h>
#include <sys/auxv.h>
#include <sys/random.h>
static volatile int stop;
static volatile long rounds;
static void *loop(void *arg) {
    struct timespec t, last = { 0 };
    while (!stop) {
        clock_gettime(CLOCK_REALTIME, &t);
        if (t.tv_sec < last.tv_sec) DIE("the clock went back");
        last = t;
        rounds++;
    }
    return NULL;
}
int main(void) {
    int looping = LOOPING;
    pthread_t thread;
    struct timespec a, b;
    struct timeval v;
    OK(clock_gettime(CLOCK_REALTIME, &a));
    unsigned long header = getauxval(AT_SYSINFO_EHDR);
    if (looping) pthread_create(&thread, NULL, loop, NULL);
    freeze_here();
    long before = rounds;
    for (int i = 0; i < 1000; i++) {
        OK(clock_gettime(CLOCK_REALTIME, &b));
        OK(gettimeofday(&v, NULL));
        time_t now = time(NULL);
        CHECK(b.tv_sec >= a.tv_sec && b.tv_sec - a.tv_sec < 1000);
        CHECK(now - b.tv_sec < 2 && b.tv_sec - now < 2);
        CHECK(v.tv_sec - b.tv_sec < 2 && v.tv_sec >= b.tv_sec);
        OK(clock_getres(CLOCK_MONOTONIC, &b));
        unsigned cpu = 12345;
        OK(getcpu(&cpu, NULL));
        CHECK(cpu < 10000);
        long random = 0;
        SAME(getrandom(&random, sizeof random, 0), sizeof random);
        CHECK(random);
    }
    CHECK(getauxval(AT_SYSINFO_EHDR) == header);
    if (looping) {
        rest(20);
        CHECK(rounds > before);
        stop = 1;
        pthread_join(thread, NULL);
    }
}
"#;

/// The vDSO of this kernel.
fn vdso() -> Vec<u8> {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let line = maps.lines().find(|l| l.ends_with("[vdso]")).unwrap();
    let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
    let [start, end] = [start, end].map(|n| u64::from_str_radix(n, 16).unwrap());
    let mut code = vec![0; (end - start) as usize];
    File::open("/proc/self/mem")
        .unwrap()
        .read_exact_at(&mut code, start)
        .unwrap();
    code
}

/// Writes an image anew as if its vDSO had been another one.
fn with_another_vdso(image: &Path, to: &Path, alter: impl Fn(&mut [u8])) {
    let (image, own) = (Opened::open(image).unwrap(), vdso());
    let mut other = own.clone();
    alter(&mut other);
    let mut draft = Store::begin_at(to, None, &Options::default()).unwrap();
    let mut altered = 0;
    for frame in image.records() {
        let mut payload = frame.payload.clone();
        if let Some(at) = payload.windows(own.len()).position(|w| w == own) {
            payload[at..at + own.len()].copy_from_slice(&other);
            altered += 1;
        }
        draft.raw_record(&frame.tag, frame.version, &payload).unwrap();
    }
    assert!(altered > 0, "no record has the vDSO");
    for space in image.spaces() {
        draft.space(space);
        image
            .for_each_run(space, |at, content| match content {
                Content::Bytes(bytes) => draft.pages(space, at.start, bytes),
                Content::Zero => draft.zero(space, &[at]),
            })
            .unwrap();
    }
    draft.commit(image.manifest().about.clone()).unwrap();
}

/// Where the code of an ELF file lies in it: what a section that is allocated and executable says.
fn text(elf: &[u8]) -> std::ops::Range<usize> {
    let word = |at: usize| u64::from_le_bytes(elf[at..at + 8].try_into().unwrap()) as usize;
    let short = |at: usize| usize::from(u16::from_le_bytes(elf[at..at + 2].try_into().unwrap()));
    let (headers, size, count) = (word(40), short(58), short(60));
    let sections = (0..count).map(|i| headers + i * size);
    let code = sections
        .filter(|at| word(at + 8) & 4 != 0)
        .map(|at| (word(at + 24), word(at + 32)));
    let (from, len) = code.max_by_key(|(_, len)| *len).unwrap();
    from..from + len
}

fn bridged(test: &str, looping: bool, alter: impl Fn(&mut [u8])) {
    let program = PROGRAM.replace("LOOPING", if looping { "1" } else { "0" });
    let mut running = Running::start(&c(&program), test);
    let (image, foreign) = (running.dir().join("image"), running.dir().join("foreign"));
    checkpoint_now(&request(running.pid, image.clone(), true), &mut Trackings::new()).unwrap();
    running.wait_gone();
    with_another_vdso(&image, &foreign, alter);
    let restored = restore_now(&foreign).unwrap();
    assert!(
        restored.warnings.iter().any(|w| w.contains("vDSO")),
        "{:?}",
        restored.warnings
    );
    // What was bridged once is carried on as it is.
    let again = running.dir().join("again");
    running.pids();
    checkpoint_now(&request(running.pid, again.clone(), true), &mut Trackings::new()).unwrap();
    running.wait_gone();
    restore_now(&again).unwrap();
    running.pids();
    running.verdict();
}

#[test]
fn old_addresses_lead_to_the_running_kernels_vdso() {
    // Nothing of the old code may be run any more.
    bridged("foreign_kernel::vdso", false, |code| {
        let keep = text(code);
        code[keep].fill(0xcc);
    });
}

#[test]
fn a_thread_that_stands_in_the_old_vdso_gets_out_of_it() {
    for _ in 0..3 {
        // Only the padding of the ELF header differs.
        bridged("foreign_kernel::inside", true, |code| code[9] = 1);
    }
}
