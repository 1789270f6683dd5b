//! What must be refused or survived: the exact sentences, the exit statuses, and a target that never notices.

use freeze_tests::cycle::{nothing_unfinished, same};
use freeze_tests::subject::{Running, alive, all, copy_freeze, exists, output, stat_fields};
use freeze_tests::{Portrait, Subject, c, freeze, python, scratch, skip};
use freeze_user::ids::Pid;
use freeze_user::store::{Opened, Sum};
use freeze_user::sys::launch;
use freeze_user::tracee::Seized;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// A program that has a file open and memory of its own, and waits.
fn ordinary() -> Subject {
    c("static char room[100000]; int main(void) { memset(room, 1, sizeof room); freeze_here(); }")
}

fn start(test: &str) -> Running {
    Running::start(&ordinary(), test)
}

fn said(done: &Output) -> String {
    String::from_utf8_lossy(&done.stderr).trim_end().to_owned()
}

fn checkpoint(pid: Pid, image: &Path, more: &[&str]) -> Output {
    output(
        freeze()
            .arg("checkpoint")
            .arg(pid.to_string())
            .arg("--to")
            .arg(image)
            .args(more),
    )
}

fn restore(image: &Path, more: &[&str]) -> Output {
    output(freeze().arg("restore").arg(image).arg("--detach").args(more))
}

/// What freeze said when it refused, without its name.
fn refusal(done: &Output) -> String {
    let text = said(done);
    assert_eq!(done.status.code(), Some(3), "{text}");
    text.strip_prefix("freeze: ").unwrap_or(&text).to_owned()
}

/// A checkpoint that ended the subject.
fn killed(test: &str, subject: &Subject) -> (Running, PathBuf) {
    let mut running = Running::start(subject, test);
    running.pids();
    let image = running.dir().join("image");
    let done = checkpoint(running.pid, &image, &["--kill"]);
    assert!(done.status.success(), "{}", said(&done));
    running.wait_gone();
    (running, image)
}

/// Where an image would be.
fn nowhere() -> PathBuf {
    std::env::temp_dir().join(format!("freeze-test-{:?}", thread::current().name()))
}

#[test]
fn no_such_pid() {
    let mut gone = Command::new("true").spawn().expect("true");
    let pid = Pid(gone.id() as i32);
    gone.wait().expect("its end");
    let image = nowhere();
    assert_eq!(
        refusal(&checkpoint(pid, &image, &[])),
        format!(
            "refused, 1 reason:\n  pid {pid}: there is no such process; \
             check the pid; it is looked up in freeze's own pid namespace"
        )
    );
    assert!(!image.exists());
}

#[test]
fn a_kernel_thread() {
    const PF_KTHREAD: u64 = 0x0020_0000;
    let flags = |pid: &Pid| stat_fields(&format!("/proc/{pid}/stat")).and_then(|f| f[6].parse::<u64>().ok());
    let Some(pid) = all()
        .into_keys()
        .find(|p| flags(p).is_some_and(|f| f & PF_KTHREAD != 0) && p.0 != 2)
    else {
        skip!("no kernel thread is visible in this pid namespace");
    };
    let text = refusal(&checkpoint(pid, &nowhere(), &[]));
    assert!(
        text.contains(&format!("pid {pid}")) && text.contains(": it is a kernel thread; name a process"),
        "{text}"
    );
}

#[test]
fn pid_1() {
    let text = refusal(&checkpoint(Pid(1), &nowhere(), &[]));
    assert!(text.starts_with("refused, 1 reason:\n  pid 1: "), "{text}");
    assert!(
        text.ends_with(": it is the init of this pid namespace; name one of its children"),
        "{text}"
    );
}

#[test]
fn freeze_itself() {
    let program = freeze().get_program().to_owned();
    let done = output(
        Command::new("sh")
            .args(["-c", "exec \"$0\" checkpoint $$ --to \"$1\""])
            .arg(program)
            .arg(nowhere()),
    );
    let text = refusal(&done);
    assert!(
        text.ends_with("it is freeze itself, which cannot stop itself; start freeze from outside the process tree that is to be frozen"),
        "{text}"
    );
}

#[test]
fn the_agent() {
    let running = start("the_agent");
    let host = freeze_user::plan::Host {
        agent: Some(running.pid),
        ..freeze_user::plan::Host::here().expect("what freeze itself is")
    };
    let request = freeze_tests::cycle::request(running.pid, running.dir().join("image"), true);
    let refused = freeze_user::checkpoint::checkpoint(&request, &host, &mut Default::default());
    let text = refused.expect_err("the agent must not freeze itself").to_string();
    assert!(
        text.contains("it is the agent of freeze, which cannot stop itself"),
        "{text}"
    );
    assert!(running.is_alive());
}

#[test]
fn traced_already() {
    let running = start("traced_already");
    let tracer = Seized::seize(running.pid, 0)
        .expect("ptrace")
        .expect("a live process");
    let own = Pid(nix::unistd::gettid().as_raw());
    let text = refusal(&checkpoint(running.pid, &running.dir().join("image"), &[]));
    assert_eq!(
        text,
        format!(
            "refused, 1 reason:\n  pid {0}, thread {0}: it is being traced already, by pid {own}; \
             end the debugger or tracer first",
            running.pid
        )
    );
    assert!(running.is_alive());
    drop(tracer);
}

#[test]
fn thirty_two_bit() {
    let dir = scratch();
    let program = dir.join("tiny");
    fs::write(&program, tiny_elf()).expect("a file");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("our own file");
    let mut command = Command::new(&program);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut child = match launch::apart(&mut command).spawn() {
        Ok(child) => child,
        Err(e) => skip!("this kernel runs no 32-bit programs: {e}"),
    };
    let pid = Pid(child.id() as i32);
    let done = checkpoint(pid, &dir.join("image"), &[]);
    let lives = alive(pid);
    child.kill().expect("our own child");
    child.wait().expect("our own child");
    let text = refusal(&done);
    assert!(
        text.ends_with("it is a 32-bit program, and only 64-bit ones are carried; use its 64-bit build"),
        "{text}"
    );
    assert!(lives);
    let _ = fs::remove_dir_all(dir);
}

/// An executable for i386 that sleeps in pause(2) for ever, byte by byte.
fn tiny_elf() -> Vec<u8> {
    const BASE: u32 = 0x0804_8000;
    // mov eax, 29 (pause); int 0x80; jmp back
    let code = [0xb8, 29, 0, 0, 0, 0xcd, 0x80, 0xeb, 0xf7];
    let mut out = vec![0x7f, b'E', b'L', b'F', 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let half = |out: &mut Vec<u8>, n: u16| out.extend(n.to_le_bytes());
    let word = |out: &mut Vec<u8>, n: u32| out.extend(n.to_le_bytes());
    half(&mut out, 2); // ET_EXEC
    half(&mut out, 3); // EM_386
    for n in [1, BASE + 84, 52, 0, 0] {
        word(&mut out, n); // version, entry, program headers, no section headers, flags
    }
    for n in [52, 32, 1, 0, 0, 0] {
        half(&mut out, n);
    }
    let size = 84 + code.len() as u32;
    for n in [1, 0, BASE, BASE, size, size, 5, 0x1000] {
        word(&mut out, n); // one PT_LOAD of the whole file, readable and executable
    }
    out.extend(code);
    out
}

#[test]
fn a_zombie() {
    let mut child = Command::new("true").spawn().expect("true");
    let pid = Pid(child.id() as i32);
    let began = Instant::now();
    while alive(pid) && began.elapsed() < Duration::from_secs(10) {
        thread::sleep(Duration::from_millis(1));
    }
    let text = refusal(&checkpoint(pid, &nowhere(), &[]));
    assert!(
        text.contains(&format!("pid {pid}"))
            && text.contains("a zombie: it is a zombie whose parent is not part of the checkpoint: there is nothing of it to carry"),
        "{text}"
    );
    child.wait().expect("our own child");
}

/// Checkpoints a busy program again and again: whatever comes of it, it comes soon and the program goes on.
fn harass(running: &Running, times: usize) -> usize {
    let mut good = 0;
    for n in 0..times {
        let image = running.dir().join(format!("image-{n}"));
        let done = checkpoint(running.pid, &image, &[]);
        let text = said(&done);
        match done.status.code() {
            Some(0) => {
                let opened = Opened::open(&image).and_then(|i| i.verify());
                opened.unwrap_or_else(|e| panic!("a checkpoint that was called good: {e}"));
                good += 1;
            }
            // Refused as it was at that instant (vfork, a pipe to a process not seen …), or gone.
            Some(3 | 5) => {}
            code => panic!("status {code:?}: {text}"),
        }
        assert!(image.exists() == done.status.success(), "{text}");
        assert!(
            running.is_alive(),
            "checkpoint {n} ended the target: {text}; {}",
            running.said()
        );
        let _ = fs::remove_dir_all(&image);
    }
    nothing_unfinished(running.dir());
    good
}

#[test]
fn a_target_that_forks() {
    let subject = c(r#"
        int main(void) {
            close(OK(open(here_ready, O_CREAT | O_WRONLY, 0600)));
            while (!gone_ahead()) {
                int status, pid = OK(fork());
                if (!pid) { if (OK(fork()) == 0) _exit(1); OK(wait(&status)); _exit(WEXITSTATUS(status) + 1); }
                OK(waitpid(pid, &status, 0));
                SAME(WEXITSTATUS(status), 2);
            }
        }"#);
    let mut running = Running::start(&subject, "a_target_that_forks");
    let good = harass(&running, 30);
    assert!(good > 0, "not one of 30 checkpoints was good");
    running.verdict();
}

/// The parent does not halt, and cannot be made to.
#[test]
fn a_vfork_under_way_is_refused() {
    let subject = c(r#"
        int main(void) {
            close(OK(open(here_ready, O_CREAT | O_WRONLY, 0600)));
            pid_t pid = OK(vfork());
            if (!pid) { struct timespec t = { 2, 0 }; _exit(nanosleep(&t, 0) ? 1 : 3); }
            int status;
            OK(waitpid(pid, &status, 0));
            SAME(WEXITSTATUS(status), 3);
        }"#);
    let mut running = Running::start(&subject, "a_vfork_under_way_is_refused");
    let text = refusal(&checkpoint(running.pid, &running.dir().join("image"), &[]));
    assert!(text.contains("waits in vfork(2) until it executes"), "{text}");
    nothing_unfinished(running.dir());
    running.verdict();
}

#[test]
fn a_target_that_makes_threads() {
    let subject = c(r#"
        static void *thread(void *n) { return n; }
        int main(void) {
            close(OK(open(here_ready, O_CREAT | O_WRONLY, 0600)));
            while (!gone_ahead()) {
                pthread_t t[4];
                for (intptr_t i = 0; i < 4; i++) CHECK(!pthread_create(&t[i], 0, thread, (void *)i));
                for (intptr_t i = 0; i < 4; i++) { void *got; CHECK(!pthread_join(t[i], &got)); SAME((intptr_t)got, i); }
            }
        }"#);
    let mut running = Running::start(&subject, "a_target_that_makes_threads");
    let good = harass(&running, 30);
    assert!(good > 0, "not one of 30 checkpoints was good");
    running.verdict();
}

#[test]
fn a_target_that_execs() {
    let subject = c(r#"
        int main(int argc, char **argv) {
            if (argc == 1) close(OK(open(here_ready, O_CREAT | O_WRONLY, 0600)));
            char n[16];
            snprintf(n, sizeof n, "%d", argc > 1 ? atoi(argv[1]) + 1 : 0);
            if (gone_ahead()) return 0;
            execl("/proc/self/exe", "again", n, NULL);
            DIE("execl");
        }"#);
    let mut running = Running::start(&subject, "a_target_that_execs");
    harass(&running, 30);
    running.verdict();
}

#[test]
fn a_target_that_opens_files() {
    let subject = c(r#"
        int main(void) {
            close(OK(open(here_ready, O_CREAT | O_WRONLY, 0600)));
            for (unsigned n = 0; !gone_ahead(); n++) {
                int p[2], fd = OK(open("/dev/null", O_RDWR));
                OK(pipe(p));
                SAME(write(p[1], &n, sizeof n), sizeof n);
                unsigned back;
                SAME(read(p[0], &back, sizeof back), sizeof back);
                SAME(back, n);
                char *m = OK(mmap(0, 1 << 16, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
                m[5000] = n;
                OK(munmap(m, 1 << 16));
                close(fd); close(p[0]); close(p[1]);
            }
        }"#);
    let mut running = Running::start(&subject, "a_target_that_opens_files");
    let good = harass(&running, 30);
    assert!(good > 0, "not one of 30 checkpoints was good");
    running.verdict();
}

#[test]
fn a_target_that_exits() {
    for n in 0..30u64 {
        let dir = scratch();
        let mut child = Command::new("sleep")
            .arg(format!("0.{:03}", n % 12))
            .spawn()
            .expect("sleep");
        let pid = Pid(child.id() as i32);
        let image = dir.join("image");
        let done = checkpoint(pid, &image, &[]);
        assert!(
            matches!(done.status.code(), Some(0 | 3 | 5)),
            "{:?}: {}",
            done.status,
            said(&done)
        );
        assert_eq!(image.exists(), done.status.success());
        nothing_unfinished(&dir);
        assert_eq!(
            child.wait().expect("our own child").code(),
            Some(0),
            "it was not left to end by itself"
        );
        let _ = fs::remove_dir_all(dir);
    }
}

/// A small file system, unmounted when dropped.
struct Small(PathBuf);

impl Small {
    fn new(options: &str) -> Option<Small> {
        let dir = scratch();
        let mounted = mount(
            Some("freeze-test"),
            &dir,
            Some("tmpfs"),
            MsFlags::empty(),
            Some(options),
        );
        mounted.is_ok().then(|| Small(dir))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn a_full_disk() {
    let Some(small) = Small::new("size=3m") else {
        skip!("no tmpfs can be mounted here")
    };
    let subject = c(r#"
        static unsigned room[2000000];
        int main(void) { for (unsigned i = 0; i < 2000000; i++) room[i] = i * 2654435761u; freeze_here(); SAME(room[77], 77 * 2654435761u); }"#);
    let mut running = Running::start(&subject, "a_full_disk");
    let before = Portrait::settled(running.pid);
    for more in [&["--kill"][..], &[][..], &["--kill", "--compress"][..]] {
        let image = small.0.join("image");
        let done = checkpoint(running.pid, &image, more);
        let text = said(&done);
        assert_eq!(done.status.code(), Some(4), "{text}");
        // The first pages are copied before anything is stopped.
        let fates = ["nothing was touched", "the target runs on as it was found"];
        let whole = |fate: &&str| text.ends_with(&format!("write: No space left on device (ENOSPC); {fate}"));
        assert!(fates.iter().any(whole), "{text}");
        assert!(!image.exists());
        nothing_unfinished(&small.0);
        same(&before, &running, "after the disk was full");
    }
    running.verdict();
}

#[test]
fn an_unwritable_directory() {
    let Some(small) = Small::new("size=8m") else {
        skip!("no tmpfs can be mounted here")
    };
    let mut running = start("an_unwritable_directory");
    let before = Portrait::settled(running.pid);
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(None::<&str>, &small.0, None::<&str>, flags, None::<&str>).expect("a remount of our own");
    let done = checkpoint(running.pid, &small.0.join("image"), &["--kill"]);
    let text = said(&done);
    assert_eq!(done.status.code(), Some(4), "{text}");
    assert!(text.contains("Read-only file system (EROFS)"), "{text}");
    same(&before, &running, "after the directory could not be written");
    running.verdict();
}

#[test]
fn a_newer_version() {
    let (running, image) = killed("a_newer_version", &ordinary());
    let manifest = image.join("manifest.json");
    let text = fs::read_to_string(&manifest).expect("the manifest");
    let (body, _) = text.split_once(",\n  \"checksum\"").expect("a seal");
    let newer = body.replace("\"format\": 2,", "\"format\": 9,");
    assert_ne!(newer, body);
    let sealed = format!(
        "{newer},\n  \"checksum\": \"{}\"\n}}\n",
        Sum::of(newer.as_bytes())
    );
    fs::write(&manifest, sealed).expect("our own file");
    let done = restore(&image, &[]);
    assert_eq!(done.status.code(), Some(6), "{}", said(&done));
    assert_eq!(
        said(&done),
        format!(
            "freeze: {}, offset 0: expected image format 1 to 2, which this freeze reads, found image format 9",
            manifest.display()
        )
    );
    assert!(!exists(running.pid));
}

#[test]
fn a_missing_parent() {
    let mut running = start("a_missing_parent");
    running.pids();
    let (first, second) = (running.dir().join("first"), running.dir().join("second"));
    assert!(checkpoint(running.pid, &first, &[]).status.success());
    let parent = first.display().to_string();
    let done = checkpoint(running.pid, &second, &["--parent", &parent, "--kill"]);
    assert!(done.status.success(), "{}", said(&done));
    running.wait_gone();
    let away = running.dir().join("elsewhere");
    fs::create_dir(&away).expect("a directory");
    fs::rename(&first, away.join("first")).expect("our own directory");
    let done = restore(&second, &[]);
    assert_eq!(done.status.code(), Some(6), "{}", said(&done));
    let id = Opened::open(&away.join("first"))
        .expect("the parent is whole")
        .id();
    assert!(
        said(&done).contains(&id.to_string()),
        "the parent is not named: {}",
        said(&done)
    );
    assert!(!exists(running.pid));
    fs::rename(away.join("first"), &first).expect("back again");
    let done = restore(&second, &[]);
    assert!(done.status.success(), "{}", said(&done));
    running.verdict();
}

#[test]
fn a_pid_that_is_taken() {
    let mut running = start("a_pid_that_is_taken");
    let image = running.dir().join("image");
    assert!(checkpoint(running.pid, &image, &[]).status.success());
    let before = Portrait::settled(running.pid);
    let text = refusal(&restore(&image, &[]));
    let who = fs::read_to_string(format!("/proc/{}/cmdline", running.pid)).expect("it is there");
    let who: String = who.trim_end_matches('\0').chars().take(60).collect();
    assert_eq!(
        text,
        format!(
            "refused, 1 reason:\n  pid {}: {who}: the pid is taken; end it, or restore inside a pid namespace of its own \
             (unshare --pid --fork --mount-proc)",
            running.pid
        )
    );
    same(&before, &running, "after somebody wanted its pid");
    running.verdict();
}

#[test]
fn a_pid_held_by_a_zombie_is_waited_for() {
    let mut running = start("a_pid_held_by_a_zombie_is_waited_for");
    let image = running.dir().join("image");
    let done = checkpoint(running.pid, &image, &["--kill"]);
    assert!(done.status.success(), "{}", said(&done));
    // Killed, and not yet reaped by its parent, which are we.
    assert!(exists(running.pid) && !alive(running.pid));
    let pid = running.pid;
    let reaper = thread::spawn(move || {
        thread::sleep(Duration::from_millis(400));
        waitpid(pid.nix(), Some(WaitPidFlag::WNOHANG))
    });
    let done = restore(&image, &[]);
    reaper.join().expect("the reaper").expect("the zombie was ours");
    assert!(done.status.success(), "{}", said(&done));
    running.verdict();
}

/// Takes a subject to its end, changes a file in its directory, and expects to hear of it; then puts it back.
fn changed(test: &str, what: impl FnOnce(&Path), why: &str) {
    let subject = c(r#"
        static char page[4096];
        int main(void) {
            for (int i = 0; i < 2; i++) {
                int fd = OK(open(in_here(i ? "mapped" : "read"), O_RDWR | O_CREAT, 0600));
                SAME(write(fd, page, 4096), 4096);
                SAME(write(fd, page, 4096), 4096);
                close(fd);
            }
            char *m = OK(mmap(0, 8192, PROT_READ, MAP_PRIVATE, OK(open(in_here("mapped"), O_RDONLY)), 0));
            close(3);
            int fd = OK(open(in_here("read"), O_RDONLY));
            int out = OK(open(in_here("written"), O_WRONLY | O_CREAT, 0600));
            SAME(write(out, page, 4096), 4096);
            freeze_here();
            SAME(m[8191], 0);
            SAME(read(fd, page, 4096), 4096);
            SAME(write(out, page, 1), 1);
        }"#);
    let (mut running, image) = killed(test, &subject);
    let kept = running.dir().join("kept");
    fs::create_dir(&kept).expect("a directory");
    for name in ["read", "mapped", "written"] {
        let copied = output(
            Command::new("cp")
                .arg("-p")
                .arg(running.dir().join(name))
                .arg(&kept),
        );
        assert!(copied.status.success());
    }
    what(running.dir());
    let text = refusal(&restore(&image, &[]));
    let expected = why.replace("DIR", &running.dir().display().to_string());
    assert!(text.contains(&expected), "expected {expected:?} in:\n{text}");
    assert!(!exists(running.pid));
    // Put back as it was (another inode, the same bytes and times), the files that are only read are accepted.
    for name in ["read", "mapped"] {
        let copied = output(
            Command::new("cp")
                .arg("-p")
                .arg(kept.join(name))
                .arg(running.dir()),
        );
        assert!(copied.status.success());
    }
    if !why.contains("written") {
        let done = restore(&image, &[]);
        assert!(done.status.success(), "{}", said(&done));
        running.verdict();
    }
}

#[test]
fn an_open_file_that_is_missing() {
    changed(
        "missing",
        |d| fs::remove_file(d.join("read")).expect("a file"),
        "DIR/read: the file is missing: ",
    );
}

#[test]
fn a_mapped_file_that_is_missing() {
    changed(
        "missing",
        |d| fs::remove_file(d.join("mapped")).expect("a file"),
        "DIR/mapped: the file is missing: ",
    );
}

#[test]
fn a_mapped_file_that_was_shortened() {
    let shorten = |d: &Path| fs::write(d.join("mapped"), "short").expect("a file");
    changed(
        "shortened",
        shorten,
        "DIR/mapped: the file was only read or mapped and has changed: expected 8192 bytes of ",
    );
}

#[test]
fn an_open_file_that_was_changed() {
    let change = |d: &Path| fs::write(d.join("read"), vec![1; 8192]).expect("a file");
    changed(
        "changed",
        change,
        "DIR/read: the file was only read or mapped and has changed: expected 8192 bytes of ",
    );
}

#[test]
fn a_written_file_that_was_shortened() {
    let shorten = |d: &Path| {
        fs::File::options()
            .write(true)
            .open(d.join("written"))
            .and_then(|f| f.set_len(9))
            .expect("a file")
    };
    changed(
        "written",
        shorten,
        "DIR/written: the file was shortened: expected 4096 bytes or more, found 9",
    );
}

#[test]
fn not_root() {
    let dir = scratch();
    // Where the tests lie, nobody may be able to look.
    let program = dir.join("freeze");
    copy_freeze(&program);
    for words in [
        &["checkpoint", "1", "--to", "image"][..],
        &["restore", "image"][..],
    ] {
        let done = output(
            Command::new(&program)
                .args(words)
                .current_dir(&dir)
                .uid(65534)
                .gid(65534),
        );
        let text = refusal(&done);
        assert!(
            text.contains(
                "freeze: it runs as uid 65534, and taking processes apart needs root; run it with sudo"
            ),
            "{text}"
        );
    }
    let _ = fs::remove_dir_all(dir);
}

#[test]
fn two_checkpoints_at_once() {
    let mut running = Running::start(
        &python("import threading\nfor n in range(3): threading.Thread(target=freeze_here).start()"),
        "two_checkpoints_at_once",
    );
    let before = Portrait::settled(running.pid);
    let mut good = 0;
    for round in 0..8 {
        let images = ["a", "b"].map(|n| running.dir().join(format!("{n}-{round}")));
        let pid = running.pid;
        let both = images
            .clone()
            .map(|image| thread::spawn(move || checkpoint(pid, &image, &[])));
        for (done, image) in both.into_iter().map(|t| t.join().expect("a thread")).zip(images) {
            match done.status.code() {
                Some(0) => good += 1,
                Some(3) => assert!(
                    said(&done).contains("it is being traced already"),
                    "{}",
                    said(&done)
                ),
                code => panic!("status {code:?}: {}", said(&done)),
            }
            assert_eq!(image.exists(), done.status.success());
        }
        same(&before, &running, "after two checkpoints at once");
    }
    assert!(good >= 8, "of two at once, one must be good: {good} of 16");
    nothing_unfinished(running.dir());
    running.verdict();
}

/// Whether faults can be asked of the command: it listens to FREEZE_FAULT in debug builds only.
fn faults() -> bool {
    cfg!(debug_assertions)
}

#[test]
fn an_interrupt_at_every_stage_of_a_checkpoint() {
    if !faults() {
        skip!("the command was built without faults on demand");
    }
    let mut running = start("an_interrupt_at_every_stage_of_a_checkpoint");
    let before = Portrait::settled(running.pid);
    let mut refused = 0;
    for n in 1..=45 {
        let image = running.dir().join("image");
        let done = output(
            freeze()
                .env("FREEZE_FAULT", format!("SIGINT:{n}"))
                .arg("checkpoint")
                .arg(running.pid.to_string())
                .arg("--to")
                .arg(&image),
        );
        match done.status.code() {
            // It came after the last question, when finishing is as quick as giving up; or there are no more stages.
            Some(0) => drop(fs::remove_dir_all(&image)),
            Some(3) => {
                refused += 1;
                assert_eq!(
                    refusal(&done),
                    "refused, 1 reason:\n  freeze: it was interrupted by SIGINT"
                );
                assert!(!image.exists());
            }
            code => panic!("stage {n}: status {code:?}: {}", said(&done)),
        }
        nothing_unfinished(running.dir());
        same(&before, &running, &format!("after an interrupt at stage {n}"));
    }
    assert!(refused > 10, "only {refused} stages could be interrupted");
    running.verdict();
}

#[test]
fn an_interrupt_at_every_stage_of_a_restore() {
    if !faults() {
        skip!("the command was built without faults on demand");
    }
    let (mut running, image) = killed("an_interrupt_at_every_stage_of_a_restore", &ordinary());
    let mut refused = 0;
    for n in 1..=30 {
        let done = output(
            freeze()
                .env("FREEZE_FAULT", format!("SIGINT:{n}"))
                .arg("restore")
                .arg(&image)
                .arg("--detach"),
        );
        match done.status.code() {
            Some(0) => {
                kill(running.pid.nix(), Signal::SIGKILL).expect("the restored process");
                running.wait_gone();
            }
            Some(3) => {
                refused += 1;
                assert_eq!(
                    refusal(&done),
                    "refused, 1 reason:\n  freeze: it was interrupted by SIGINT"
                );
            }
            code => panic!("stage {n}: status {code:?}: {}", said(&done)),
        }
        assert!(!exists(running.pid), "stage {n} left {}", running.pid);
    }
    assert!(refused > 10, "only {refused} stages could be interrupted");
    let done = restore(&image, &[]);
    assert!(done.status.success(), "{}", said(&done));
    running.verdict();
}
