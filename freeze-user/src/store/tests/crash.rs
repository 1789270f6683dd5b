//! Writers that are killed and disks that are full leave a store that is whole.

use super::*;

/// A child of this test binary that runs one ignored test, with the scratch directory in its environment.
fn child(test: &str, dir: &Path, before: &str) -> std::process::Command {
    let exe = std::env::current_exe().unwrap();
    let mut command = std::process::Command::new("sh");
    let run = format!(
        "{before} exec '{}' --exact store::tests::crash::{test} --ignored --nocapture",
        exe.display()
    );
    command.args(["-c", &run]).env("FREEZE_TEST_DIR", dir);
    command
}

fn given_dir() -> Option<PathBuf> {
    std::env::var_os("FREEZE_TEST_DIR").map(PathBuf::from)
}

#[test]
fn a_writer_killed_anywhere_leaves_a_store_that_is_whole() {
    let dir = Scratch::new("crash");
    let store = dir.store();
    let mut random = Random(11);
    let mut swept = 0;
    for _ in 0..20 {
        let mut writer = child("writer_without_end", store.dir(), "")
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let patience = std::time::Instant::now();
        let newest = || store.list().unwrap().last().map(|l| l.id);
        let before = newest();
        while newest() == before && patience.elapsed().as_secs() < 20 {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        std::thread::sleep(std::time::Duration::from_micros(random.below(20_000)));
        writer.kill().unwrap();
        writer.wait().unwrap();
        assert!(newest() > before);
        for (listed, result) in store.verify_all().unwrap() {
            assert!(listed.damage.is_none() && result.is_ok(), "{listed}: {result:?}");
        }
        swept += store.sweep().len();
        let names = entries(store.dir()).unwrap();
        assert!(
            names.iter().all(|(n, _)| n.parse::<CheckpointId>().is_ok()),
            "{names:?}"
        );
    }
    assert!(swept > 0, "no writer was killed in the middle");
}

#[test]
#[ignore = "started, and killed, by a_writer_killed_anywhere_leaves_a_store_that_is_whole"]
fn writer_without_end() {
    let Some(dir) = given_dir() else { return };
    let store = Store::open(&dir).unwrap();
    let mut parent: Option<Opened> = None;
    for n in 0..10_000u64 {
        let form = if n % 2 == 0 {
            Form::Hot
        } else {
            Form::Cold { level: 1 }
        };
        let options = Options {
            form,
            chain_limit: 5,
            ..Options::default()
        };
        let mut draft = store.begin(parent.as_ref(), &options).unwrap();
        draft.record(&note(n as i32)).unwrap();
        if parent.is_some() {
            draft.inherit(A, &[range(0, 1000)]).unwrap();
        }
        draft.pages(A, (n % 7) * 16 * PAGE, &pages(n as u8, 64)).unwrap();
        let id = draft.commit(About::default()).unwrap().id;
        store.prune(3, None).unwrap();
        parent = Some(store.find(id.as_str()).unwrap());
    }
}

#[test]
fn a_full_disk_is_told_and_leaves_nothing() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root can mount a small file system to fill");
        return;
    }
    let dir = Scratch::new("full");
    let mount = format!(
        "mount -t tmpfs -o size=1m freeze-test '{0}' && mkdir '{0}/ro' && mount -t tmpfs -o ro freeze-test '{0}/ro' &&",
        dir.0.display()
    );
    let run = child("full_disk", &dir.0, &mount);
    let mut command = std::process::Command::new("unshare");
    command
        .arg("-m")
        .arg(run.get_program())
        .args(run.get_args())
        .env("FREEZE_TEST_DIR", &dir.0);
    let out = command.output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert!(String::from_utf8_lossy(&out.stdout).contains("full disk: told"));
}

#[test]
#[ignore = "started by a_full_disk_is_told_and_leaves_nothing, in a mount namespace"]
fn full_disk() {
    let Some(dir) = given_dir() else { return };
    let store = Store::open(&dir.join("store")).unwrap();
    let full = |e: Error, file: &str| {
        let e2 = e.to_string();
        assert!(
            matches!(
                e,
                Error::Kernel {
                    errno: Errno::ENOSPC,
                    ..
                }
            ),
            "{e2}"
        );
        assert!(e2.contains(INCOMPLETE) && e2.contains(file), "{e2}");
    };
    // In the middle, by pages.
    let mut draft = store.begin(None, &Options::default()).unwrap();
    let result = (0..4096).try_for_each(|n| draft.pages(A, n * 16 * PAGE, &pages(n as u8, 16)));
    full(result.unwrap_err(), "/pages");
    drop(draft);
    assert_eq!(entries(store.dir()).unwrap().len(), 0);
    // By records.
    let mut draft = store.begin(None, &Options::default()).unwrap();
    let big = Note {
        pid: Pid(1),
        text: String::new(),
        raw: vec![1; 300_000],
    };
    full(
        (0..9).try_for_each(|_| draft.record(&big)).unwrap_err(),
        "/records",
    );
    drop(draft);
    // Only at the very end.
    let mut draft = store.begin(None, &Options::default()).unwrap();
    draft.pages(A, 0, &pages(1, 200)).unwrap();
    std::fs::write(dir.join("ballast"), vec![1; 4 << 20]).unwrap_err();
    let e = draft.commit(About::default()).unwrap_err();
    assert!(
        matches!(
            e,
            Error::Kernel {
                errno: Errno::ENOSPC,
                ..
            }
        ),
        "{e}"
    );
    assert_eq!(entries(store.dir()).unwrap().len(), 0);
    std::fs::remove_file(dir.join("ballast")).unwrap();
    // What was there before is still good, and so is what follows.
    let mut draft = store.begin(None, &Options::default()).unwrap();
    draft.pages(A, 0, &pages(1, 16)).unwrap();
    let id = draft.commit(About::default()).unwrap().id;
    store.find(id.as_str()).unwrap().verify().unwrap();
    // A directory that cannot be written.
    let e = Store::begin_at(&dir.join("ro/x"), None, &Options::default()).unwrap_err();
    assert!(
        matches!(
            e,
            Error::Kernel {
                errno: Errno::EROFS,
                ..
            }
        ),
        "{e}"
    );
    // One that is gone in the middle.
    let draft = store.begin(None, &Options::default()).unwrap();
    std::fs::remove_dir_all(store.dir().join(format!("{INCOMPLETE}{}", draft.id()))).unwrap();
    let e = draft.commit(About::default()).unwrap_err();
    assert!(
        matches!(
            e,
            Error::Kernel {
                errno: Errno::ENOENT,
                ..
            }
        ),
        "{e}"
    );
    println!("full disk: told");
}
