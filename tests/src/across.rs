//! A test in two halves: what is checkpointed under one kernel is restored and judged under another.
//!
//! `cargo xtask vm` sets [`HALF`] and [`DIR`], and runs the same test program once for each half; without them
//! nothing here is used. Only what the subject itself says counts: two kernels do not show it alike in /proc.

use crate::cycle::{checkpoint_now, request, restore_now};
use crate::subject::{Running, Subject};
use freeze_user::ids::Pid;
use freeze_user::precopy::Trackings;
use std::fs;
use std::path::PathBuf;

/// Which half is to be played: `prepare` (make the subject's program and nothing else), `first` or `second`.
pub const HALF: &str = "FREEZE_HALF";

/// The directory in which both halves find what lies between them.
pub const DIR: &str = "FREEZE_HALF_DIR";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Half {
    Prepare,
    First,
    Second,
}

/// The half that is asked for, if this is no ordinary run.
pub(crate) fn half() -> Option<Half> {
    match std::env::var(HALF).ok()?.as_str() {
        "prepare" => Some(Half::Prepare),
        "first" => Some(Half::First),
        "second" => Some(Half::Second),
        other => panic!("{HALF}={other}"),
    }
}

/// Plays one half of a test.
pub(crate) fn play(half: Half, test: &str, subject: &Subject) {
    let dir = || {
        let all = PathBuf::from(std::env::var_os(DIR).unwrap_or_else(|| panic!("{DIR} is not set")));
        all.join(test.replace("::", "."))
    };
    match half {
        Half::Prepare => subject.prepare(),
        Half::First => {
            let dir = dir();
            fs::create_dir_all(&dir).expect("a directory between the halves");
            let mut running = Running::start_in(subject, test, dir.clone());
            running.pids();
            fs::write(dir.join("pid"), running.pid.to_string()).expect("a writable directory");
            let image = request(running.pid, dir.join("image"), true);
            checkpoint_now(&image, &mut Trackings::new()).unwrap_or_else(|e| panic!("checkpoint: {e}"));
            running.wait_gone();
            running.leave();
        }
        Half::Second => {
            let dir = dir();
            let pid = fs::read_to_string(dir.join("pid")).expect("what the first half left");
            let pid = Pid(pid.parse().expect("a pid"));
            let mut running = Running::known_in(pid, dir.clone());
            // Warnings are in order here: the kernel is another one.
            let restored = match restore_now(&dir.join("image")) {
                Err(e) if unlike(&e.to_string()) => return println!("SKIP: {e}"),
                Err(e) => panic!("restore: {e}"),
                Ok(restored) => restored,
            };
            assert_eq!(restored.roots, [pid], "{restored:?}");
            running.verdict();
        }
    }
}

/// Whether what was refused is what no kernel but one like the first can hold.
fn unlike(refusal: &str) -> bool {
    // The rings of io_uring have another layout since Linux 6.6.
    refusal.contains("this kernel lays its rings out differently")
}
