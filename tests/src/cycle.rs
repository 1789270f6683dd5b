//! The modes in which every subject is taken through checkpoint and restore.

use crate::across;
use crate::house::House;
use crate::portrait::Portrait;
use crate::subject::{PATIENCE, Running, Subject, exists, freeze, freeze_checkpoint, output};
use freeze_user::checkpoint::{Bounds, Place, Report, Request, checkpoint};
use freeze_user::ids::Pid;
use freeze_user::kinds::kinship::Kinship;
use freeze_user::kinds::{ProcessKind, peek};
use freeze_user::nest::Options as RestoreOptions;
use freeze_user::plan::Host;
use freeze_user::precopy::Trackings;
use freeze_user::restore::{Restored, restore};
use freeze_user::store::{Opened, Options};
use freeze_user::sys::fault::{self, Act};
use freeze_user::{Error, Result};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What happens in the hole of a subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Checkpointed and let go.
    Resume,
    /// Checkpointed, killed, restored.
    Restore,
    /// The same once more, from a checkpoint of the restored one.
    RestoreTwice,
    /// Three checkpoints, each on its parent; killed after the last, which is restored.
    Incremental3,
    /// Checkpointed and restored by the command, each time in a fresh process.
    OtherAgent,
    /// The engine fails at every step in turn, of a checkpoint and of a restore; then all goes well.
    FaultAtStep,
    /// Checkpointed, killed, restored, with an init of its own in namespaces of its own.
    InNamespaces,
    /// The same in a user namespace too.
    InUserNamespace,
}

impl Mode {
    fn house(self) -> Option<House> {
        match self {
            Mode::InNamespaces => Some(House::Namespaces),
            Mode::InUserNamespace => Some(House::User),
            _ => House::of_all(),
        }
    }
}

/// Takes a subject through a mode; fails, saying how, if it does not come out as it went in.
pub fn run(mode: Mode, test: &str, subject: impl FnOnce() -> Subject) {
    let subject = subject();
    if subject.play(test) {
        return;
    }
    if let Some(half) = across::half() {
        across::play(half, test, &subject);
        return;
    }
    let _turn = subject.turn();
    let mut running = match mode.house() {
        None => Running::start(&subject, test),
        Some(house) => Running::start_housed(&subject, test, house),
    };
    let before = Portrait::settled(running.pid);
    running.pids();
    match mode {
        Mode::Resume => {
            take(&running, "image", false);
            same(&before, &running, "after it was let go");
        }
        Mode::Restore | Mode::InNamespaces | Mode::InUserNamespace => {
            kill_and_restore(&mut running, &before, "image")
        }
        Mode::RestoreTwice => {
            kill_and_restore(&mut running, &before, "first");
            kill_and_restore(&mut running, &before, "second");
        }
        Mode::Incremental3 => incremental(&mut running, &before),
        Mode::OtherAgent => by_command(&mut running, &before),
        Mode::FaultAtStep => {
            let image = fail_checkpoints(&mut running, &before);
            fail_restores(&mut running, &image);
            same(&before, &running, "after a restore at last");
        }
    }
    nothing_unfinished(running.dir());
    running.verdict();
}

/// Takes a program that goes on meanwhile through a checkpoint that leaves it running, one that ends it, and a restore.
///
/// It is not compared by portrait, since it never looks the same twice: its own verdict counts.
pub fn survive(test: &str, subject: Subject) {
    let _turn = subject.turn();
    let mut running = Running::start(&subject, test);
    running.pids();
    take(&running, "left", false);
    std::thread::sleep(Duration::from_millis(50));
    running.pids();
    let image = take(&running, "ended", true);
    // A shell starts others all the time: who was there at the cut only the image knows.
    running.knew(&members(&image));
    running.wait_gone();
    restored(&mut running, &image);
    nothing_unfinished(running.dir());
    running.verdict();
}

/// What is asked of the engine.
pub fn request(pid: Pid, image: PathBuf, kill: bool) -> Request {
    Request {
        roots: vec![pid],
        place: Place::Directory(image),
        parent: None,
        kill,
        group: None,
        options: Options::default(),
        track: false,
        ends: Default::default(),
        bounds: Bounds::default(),
    }
}

/// Checkpoints by the library, in this process.
pub fn checkpoint_now(request: &Request, trackings: &mut Trackings) -> Result<Report> {
    checkpoint(request, &Host::here()?, trackings)
}

/// Restores by the library, in this process.
pub fn restore_now(image: &Path) -> Result<Restored> {
    restore(Opened::open(image)?, RestoreOptions::default())
}

fn take(running: &Running, name: &str, kill: bool) -> PathBuf {
    let image = running.dir().join(name);
    let request = request(running.pid, image.clone(), kill);
    checkpoint_now(&request, &mut Trackings::new()).unwrap_or_else(|e| panic!("checkpoint: {e}"));
    image
}

/// The processes in an image.
fn members(image: &Path) -> Vec<Pid> {
    let image = Opened::open(image).unwrap_or_else(|e| panic!("{}: {e}", image.display()));
    let families = image.records().iter().filter(|f| f.tag == Kinship::TAG);
    families
        .map(|f| peek::<Kinship>(&f.payload).expect("a record just written").1.pid)
        .collect()
}

fn kill_and_restore(running: &mut Running, before: &Portrait, name: &str) {
    let image = take(running, name, true);
    running.wait_gone();
    restored(running, &image);
    same(before, running, "after the restore");
}

fn restored(running: &mut Running, image: &Path) {
    let restored = restore_now(image).unwrap_or_else(|e| panic!("restore: {e}"));
    assert_eq!(restored.roots, [running.pid], "{restored:?}");
    assert_eq!(
        restored.warnings, [""; 0],
        "a restore in place has nothing to warn of"
    );
    running.pids();
}

fn incremental(running: &mut Running, before: &Portrait) {
    let mut trackings = Trackings::new();
    let mut parent: Option<PathBuf> = None;
    for n in 1..=3 {
        let image = running.dir().join(format!("image-{n}"));
        let open = |p: &PathBuf| Opened::open(p).unwrap_or_else(|e| panic!("opening the parent: {e}"));
        let request = Request {
            parent: parent.as_ref().map(open),
            track: true,
            bounds: Bounds::default(),
            ..request(running.pid, image.clone(), n == 3)
        };
        let report =
            checkpoint_now(&request, &mut trackings).unwrap_or_else(|e| panic!("checkpoint {n}: {e}"));
        assert!(
            n == 1 || report.own_pages < report.pages,
            "nothing was taken over from the parent: {report}"
        );
        if n < 3 {
            same(before, running, "between two checkpoints");
        }
        parent = Some(image);
    }
    drop(trackings);
    running.wait_gone();
    restored(running, &running.dir().join("image-3"));
    same(before, running, "after the restore");
}

fn by_command(running: &mut Running, before: &Portrait) {
    let image = running.dir().join("image");
    let done = output(freeze_checkpoint(running, &image).arg("--kill"));
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    running.wait_gone();
    let done = output(freeze().arg("restore").arg(&image).arg("--detach"));
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert_eq!(
        String::from_utf8_lossy(&done.stderr),
        "",
        "a restore in place has nothing to warn of"
    );
    same(before, running, "after the restore");
}

/// Fails at every step of a checkpoint until one is not reached any more; that one is good, and kills.
fn fail_checkpoints(running: &mut Running, before: &Portrait) -> PathBuf {
    for n in 1.. {
        let image = running.dir().join("image");
        let request = Request {
            track: true,
            bounds: Bounds::default(),
            ..request(running.pid, image.clone(), true)
        };
        let armed = fault::arm(n, Act::Fail);
        let outcome = checkpoint_now(&request, &mut Trackings::new());
        let Some(step) = armed.fired() else {
            outcome.unwrap_or_else(|e| panic!("checkpoint without a fault: {e}"));
            assert!(n > 20, "a checkpoint has more than {n} steps");
            running.wait_gone();
            return image;
        };
        drop(armed);
        println!("checkpoint: step {n} ({step}) failed: {}", why(&outcome));
        match outcome {
            Err(Error::Kernel { .. }) => {}
            other => panic!("step {n} ({step}) failed, and the checkpoint ended with {other:?}"),
        }
        assert!(
            running.is_alive(),
            "step {n} ({step}) failed, and the target is dead"
        );
        assert!(
            !image.exists(),
            "step {n} ({step}) failed and left {}",
            image.display()
        );
        nothing_unfinished(running.dir());
        same(
            before,
            running,
            &format!("after step {n} ({step}) of a checkpoint failed"),
        );
    }
    unreachable!("the loop has no end of its own");
}

/// Fails at every step of a restore until one is not reached any more; that one is good.
fn fail_restores(running: &mut Running, image: &Path) {
    for n in 1.. {
        let armed = fault::arm(n, Act::Fail);
        let outcome = restore_now(image);
        let Some(step) = armed.fired() else {
            outcome.unwrap_or_else(|e| panic!("restore without a fault: {e}"));
            assert!(n > 15, "a restore has more than {n} steps");
            running.pids();
            return;
        };
        drop(armed);
        println!("restore: step {n} ({step}) failed: {}", why(&outcome));
        assert!(
            matches!(outcome, Err(Error::Kernel { .. })),
            "step {n} ({step}) failed, and the restore ended with {outcome:?}"
        );
        assert!(
            !exists(running.pid),
            "step {n} ({step}) of a restore failed, and {} is there",
            running.pid
        );
        running.wait_gone();
        Opened::open(image)
            .and_then(|i| i.verify())
            .unwrap_or_else(|e| panic!("the image after step {n} ({step}): {e}"));
    }
}

fn why<T>(outcome: &Result<T>) -> String {
    outcome.as_ref().err().map_or("no error".into(), Error::to_string)
}

/// Waits until the tree looks as before; fails with the differences if it never does.
pub fn same(before: &Portrait, running: &Running, when: &str) {
    const SHOWN: usize = 20;
    let began = Instant::now();
    loop {
        assert!(running.is_alive(), "{when}, the subject is dead");
        let differences = before.differences(&Portrait::now(running.pid));
        if differences.is_empty() {
            return;
        }
        // A thread may be between two instructions that show; a lasting difference lasts.
        if began.elapsed() > PATIENCE / 10 {
            let shown: Vec<String> = differences
                .iter()
                .take(SHOWN)
                .map(|d| d.chars().take(300).collect())
                .collect();
            panic!(
                "{when}, the subject differs in {} places:\n  {}",
                differences.len(),
                shown.join("\n  ")
            );
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// No draft may be left in the directory.
pub fn nothing_unfinished(dir: &Path) {
    for entry in std::fs::read_dir(dir).expect("the subject's directory").flatten() {
        let name = entry.file_name().display().to_string();
        assert!(!name.contains("incomplete"), "{name} was left behind");
    }
}
