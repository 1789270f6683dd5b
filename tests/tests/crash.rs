//! freeze killed at every step: the target runs on, the last checkpoint restores, nothing half-built stays.

use freeze_tests::cycle::same;
use freeze_tests::subject::{exists, freeze_checkpoint, output, stat_fields};
use freeze_tests::{Portrait, Running, c, freeze, skip};
use freeze_user::store::Opened;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use std::fs;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::Stdio;
use std::time::{Duration, Instant};

/// A program with two threads in calls that are easily disturbed, which finds out whether they were.
const SUBJECT: &str = r#"
static int data[2];
static void *reader(void *u) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    struct timespec t = { 100, 0 };
    /* Nobody is left to hide the interruption, which some calls tell (signal(7)); none may tell a lie. */
    int got;
    while ((got = sigtimedwait(&set, 0, &t)) == -1) SAME(errno, EINTR);
    SAME(got, SIGUSR1);
    char c;
    SAME(read(data[0], &c, 1), 1);
    return 0;
}
static volatile unsigned long counted;
static void *counter(void *u) { while (!gone_ahead()) for (int i = 0; i < 1000; i++) counted++; return 0; }
int main(void) {
    OK(pipe(data));
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, 0);
    pthread_t a, b;
    CHECK(!pthread_create(&a, 0, reader, 0));
    CHECK(!pthread_create(&b, 0, counter, 0));
    rest(20);
    freeze_here();
    OK(kill(getpid(), SIGUSR1));
    SAME(write(data[1], "x", 1), 1);
    CHECK(!pthread_join(a, 0));
    CHECK(!pthread_join(b, 0));
}
"#;

/// As before, but for the scratch mapping: who would remove it is dead.
fn unharmed(before: &Portrait, running: &Running, when: &str) {
    let steady = |p: &Portrait| {
        p.without(|place| {
            place.contains("/maps/") || place.contains("/status/Vm") || place.ends_with("/stat/vsize")
        })
    };
    let began = Instant::now();
    loop {
        assert!(running.is_alive(), "{when}, the subject is dead");
        let differences = steady(before).differences(&steady(&Portrait::now(running.pid)));
        if differences.is_empty() {
            return;
        }
        assert!(
            began.elapsed() < Duration::from_secs(3),
            "{when}: {differences:?}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn killed_at_every_step_of_a_checkpoint() {
    if !cfg!(debug_assertions) {
        skip!("the command was built without faults on demand");
    }
    let mut running = Running::start(&c(SUBJECT), "killed_at_every_step_of_a_checkpoint");
    running.pids();
    let before = Portrait::settled(running.pid);
    let good = running.dir().join("good");
    assert!(
        output(
            freeze()
                .arg("checkpoint")
                .arg(running.pid.to_string())
                .arg("--to")
                .arg(&good)
        )
        .status
        .success()
    );
    let mut killed = 0;
    for n in 1..=50 {
        let image = running.dir().join(format!("image-{n}"));
        let done = output(
            freeze()
                .env("FREEZE_FAULT", format!("SIGKILL:{n}"))
                .arg("checkpoint")
                .arg(running.pid.to_string())
                .arg("--to")
                .arg(&image),
        );
        killed += usize::from(done.status.signal() == Some(9));
        unharmed(&before, &running, &format!("after freeze was killed at step {n}"));
    }
    assert!(killed > 20, "only {killed} steps were reached");
    Opened::open(&good)
        .and_then(|i| i.verify())
        .expect("the last good checkpoint");
    running.verdict();
}

/// ^Z stops freeze, at whichever step, but not while the program stands still: it would until somebody has freeze go on.
#[test]
fn stopped_at_every_step_of_a_checkpoint() {
    if !cfg!(debug_assertions) {
        skip!("the command was built without faults on demand");
    }
    let mut running = Running::start(&c(SUBJECT), "stopped_at_every_step_of_a_checkpoint");
    running.pids();
    let state = || stat_fields(&format!("/proc/{}/stat", running.pid)).expect("it runs")[0].clone();
    let mut stopped = 0;
    for n in 1..=50 {
        let mut freeze = freeze_checkpoint(&running, &running.dir().join(format!("image-{n}")));
        freeze.env("FREEZE_FAULT", format!("SIGTSTP:{n}"));
        // An orphaned group is not stopped by its terminal's signals: one of our session is none.
        let child = freeze
            .process_group(0)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let child = child.expect("freeze").id();
        let pid = nix::unistd::Pid::from_raw(child as i32);
        loop {
            match waitpid(pid, Some(WaitPidFlag::WUNTRACED)).expect("our child") {
                WaitStatus::Stopped(..) => {
                    stopped += 1;
                    let state = state();
                    kill(pid, Signal::SIGCONT).expect("our child");
                    assert!(
                        state != "t" && state != "T",
                        "stopped at step {n} with its program"
                    );
                }
                status => {
                    assert_eq!(status, WaitStatus::Exited(pid, 0), "{n}");
                    break;
                }
            }
        }
    }
    assert!(stopped > 30, "only {stopped} steps were reached");
    running.verdict();
}

#[test]
fn killed_at_every_step_of_a_restore() {
    if !cfg!(debug_assertions) {
        skip!("the command was built without faults on demand");
    }
    let mut running = Running::start(&c(SUBJECT), "killed_at_every_step_of_a_restore");
    running.pids();
    let before = Portrait::settled(running.pid);
    let image = running.dir().join("image");
    let done = output(freeze_checkpoint(&running, &image).arg("--kill"));
    assert!(done.status.success());
    running.wait_gone();
    let mut killed = 0;
    for n in 1..=40 {
        let restore = ["restore", &image.display().to_string(), "--detach"].map(str::to_owned);
        let done = output(
            freeze()
                .env("FREEZE_FAULT", format!("SIGKILL:{n}"))
                .args(&restore),
        );
        if done.status.success() {
            // Past the last step.
            same(&before, &running, "after a restore that was not killed");
            assert!(killed > 10, "only {killed} steps were reached");
            running.verdict();
            return;
        }
        killed += usize::from(done.status.signal() == Some(9));
        let began = Instant::now();
        // Half-built processes die with their tracer (PTRACE_O_EXITKILL), and come to us to be reaped.
        while exists(running.pid) {
            let _ = nix::sys::wait::waitpid(running.pid.nix(), Some(nix::sys::wait::WaitPidFlag::WNOHANG));
            assert!(
                began.elapsed() < Duration::from_secs(10),
                "step {n} left {}",
                running.pid
            );
            std::thread::sleep(Duration::from_millis(1));
        }
        let left: Vec<_> = fs::read_dir(running.dir())
            .expect("its directory")
            .flatten()
            .map(|e| e.file_name())
            .collect();
        assert!(
            left.iter().all(|n| !n.display().to_string().contains("freeze-")),
            "step {n} left {left:?}"
        );
    }
    panic!("a restore has more than 40 steps");
}
