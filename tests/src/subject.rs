//! Starting a subject in a session of its own, with nothing that leads out of it, and cleaning up after it.

use crate::here::{C, HERE, Here, PYTHON};
use crate::house::{self, House};
use freeze_user::ids::Pid;
use freeze_user::sys::launch;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::{self, File};
use std::hash::{Hash, Hasher};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::time::{Duration, Instant};

/// Names the test whose subject a process is to be: it is the test's own program, started once more.
const PLAY: &str = "FREEZE_SUBJECT";

/// How long anything may take that takes milliseconds on an idle machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A program to be frozen.
pub struct Subject {
    what: What,
    alone: bool,
}

impl From<What> for Subject {
    fn from(what: What) -> Subject {
        Subject { what, alone: false }
    }
}

enum What {
    Rust(Box<dyn Fn(&Here)>),
    C(String),
    Python(String),
    Command(Vec<String>),
}

impl fmt::Debug for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.what {
            What::Rust(_) => "a function",
            What::C(_) => "a C program",
            What::Python(_) => "a Python program",
            What::Command(_) => "a command",
        })
    }
}

/// A function in Rust; its process is the test program itself, started once more, with the function on its main thread.
pub fn rust(function: impl Fn(&Here) + 'static) -> Subject {
    What::Rust(Box::new(function)).into()
}

/// A C program, whose text goes after `here.h`; it ends with status 0 if all is well.
pub fn c(text: &str) -> Subject {
    What::C(format!("{C}\n#line 1 \"subject.c\"\n{text}")).into()
}

/// A Python program, which finds `freeze_here()`, `gone_ahead()` and `HERE` defined.
pub fn python(text: &str) -> Subject {
    What::Python(format!("{PYTHON}\n{text}")).into()
}

/// Any command; it has to create `ready` in `$FREEZE_HERE` when it is, and to end when `go` appears there.
pub fn command(words: &[&str]) -> Subject {
    What::Command(words.iter().map(|w| (*w).to_owned()).collect()).into()
}

/// What [`conformance!`](crate::conformance) takes for a subject.
pub trait IntoSubject {
    fn into_subject(self) -> Subject;
}

impl IntoSubject for Subject {
    fn into_subject(self) -> Subject {
        self
    }
}

impl<F: Fn(&Here) + 'static> IntoSubject for F {
    fn into_subject(self) -> Subject {
        rust(self)
    }
}

impl Subject {
    /// The same, but never two of such at a time: what it holds has a number that is given out anew as soon as it is
    /// free, such as a pseudo terminal's, and while it is dead another test must not come by it.
    pub fn alone(self) -> Subject {
        Subject { alone: true, ..self }
    }

    /// Waits for its turn, which lasts as long as what is returned.
    pub(crate) fn turn(&self) -> Option<MutexGuard<'static, ()>> {
        static ALONE: Mutex<()> = Mutex::new(());
        // A test that failed meanwhile is no reason for the next one to.
        self.alone
            .then(|| ALONE.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Plays the subject if this process was started to be it; whether it was.
    pub(crate) fn play(&self, test: &str) -> bool {
        match (&self.what, std::env::var(PLAY)) {
            (What::Rust(function), Ok(name)) if name == test => {
                function(&Here::from_env());
                true
            }
            _ => false,
        }
    }

    /// Makes the program of a subject in C.
    pub(crate) fn prepare(&self) {
        if let What::C(text) = &self.what {
            compiled(text);
        }
    }

    fn command(&self, test: &str) -> Command {
        match &self.what {
            What::Rust(_) => {
                let mut command = Command::new(std::env::current_exe().expect("a path to this program"));
                // Without the name of the crate, which comes first in a module path.
                let inside = test.split_once("::").map_or(test, |(_, rest)| rest);
                command.args([inside, "--exact", "--nocapture", "--test-threads=1"]);
                command
            }
            What::C(text) => Command::new(compiled(text)),
            What::Python(text) => {
                let mut command = Command::new(interpreter());
                command.args(["-B", "-S", "-E", "-c", text]);
                command
            }
            What::Command(words) => {
                let mut command = Command::new(&words[0]);
                command.args(&words[1..]);
                command
            }
        }
    }
}

/// The Python that is no wrapper script.
pub fn interpreter() -> &'static str {
    ["/usr/bin/python3", "/usr/local/bin/python3"]
        .into_iter()
        .find(|p| Path::new(p).exists())
        .unwrap_or("python3")
}

/// The program made of this text; made once for all tests of a build.
fn compiled(text: &str) -> PathBuf {
    let mut hash = DefaultHasher::new();
    text.hash(&mut hash);
    let dir = target_dir().join("subjects");
    fs::create_dir_all(&dir).expect("a directory for compiled subjects");
    let program = dir.join(format!("{:016x}", hash.finish()));
    if program.exists() {
        return program;
    }
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let own = dir.join(format!(
        "{}-{}",
        std::process::id(),
        COUNT.fetch_add(1, Ordering::Relaxed)
    ));
    let source = own.with_extension("c");
    fs::write(&source, text).expect("a writable directory");
    let made = Command::new("cc")
        .args(["-O1", "-g", "-Wall", "-Wno-unused-function", "-pthread", "-o"])
        .args([&own, &source])
        .arg("-lrt")
        .output()
        .expect("cc, which rustc needs too");
    assert!(
        made.status.success(),
        "cc: {}",
        String::from_utf8_lossy(&made.stderr)
    );
    fs::remove_file(&source).expect("the source just written");
    // Whoever comes second must not take the first one's program away under its running subject.
    let _ = fs::hard_link(&own, &program);
    fs::remove_file(&own).expect("the program just made");
    program
}

/// Where cargo puts the programs of this build.
fn target_dir() -> PathBuf {
    let own = std::env::current_exe().expect("a path to this program");
    own.ancestors()
        .nth(2)
        .expect("target/debug/deps/program")
        .to_owned()
}

/// `freeze checkpoint PID --to DIR`, to be gone on with.
pub fn freeze_checkpoint(running: &Running, to: &Path) -> Command {
    let mut command = freeze();
    command
        .arg("checkpoint")
        .arg(running.pid.to_string())
        .arg("--to")
        .arg(to);
    command
}

/// The command `freeze`, as it was built beside the tests.
pub fn freeze() -> Command {
    let program = target_dir().join("freeze");
    assert!(
        program.exists(),
        "{} is not there: run cargo build --workspace",
        program.display()
    );
    Command::new(program)
}

/// Copies the command `freeze` to where everybody may go.
///
/// By another process: a child that a test beside this one forks meanwhile would keep the copy open for writing, and
/// what is being written cannot be executed (ETXTBSY).
pub fn copy_freeze(to: &Path) {
    let done = output(Command::new("cp").arg(freeze().get_program()).arg(to));
    assert!(
        done.status.success(),
        "cp: {}",
        String::from_utf8_lossy(&done.stderr)
    );
}

/// Runs a command to its end and returns what it said.
pub fn output(command: &mut Command) -> Output {
    command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"))
}

/// A new directory that everybody may write to.
pub fn scratch() -> PathBuf {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let name = format!(
        "freeze-test-{}-{}",
        std::process::id(),
        COUNT.fetch_add(1, Ordering::Relaxed)
    );
    let dir = std::env::temp_dir().join(name);
    // A test that was killed may have left one under a pid that came round again.
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir(&dir).expect("a temporary directory");
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).expect("a directory of our own");
    dir.canonicalize().expect("the directory just made")
}

/// A subject that was started, and everything that descends from it. Dropping it ends and reaps all of that.
#[derive(Debug)]
pub struct Running {
    /// The process at the top, before and after a restore.
    pub pid: Pid,
    dir: PathBuf,
    /// Every pid that was seen in the tree.
    known: BTreeSet<Pid>,
}

impl Running {
    /// Starts a subject and waits until it is ready; `test` is the full name of the test that does.
    pub fn start(subject: &Subject, test: &str) -> Running {
        let running = Running::launch(subject, test);
        running.wait_ready();
        running
    }

    /// Starts a subject in this directory, and waits until it is ready.
    pub(crate) fn start_in(subject: &Subject, test: &str, dir: PathBuf) -> Running {
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).expect("a directory of our own");
        let running = Running::launch_in(subject, test, dir);
        running.wait_ready();
        running
    }

    /// A subject that was started elsewhere, is not running now, and is about to be restored.
    pub(crate) fn known_in(pid: Pid, dir: PathBuf) -> Running {
        Running {
            pid,
            dir,
            known: BTreeSet::from([pid]),
        }
    }

    /// Leaves its directory to somebody else; nothing of it runs any more.
    pub(crate) fn leave(self) {
        std::mem::forget(self);
    }

    /// Starts a subject that need not say that it is ready.
    pub fn launch(subject: &Subject, test: &str) -> Running {
        Running::launch_in(subject, test, scratch())
    }

    /// Starts a subject in namespaces; the process at the top is their init.
    pub fn start_housed(subject: &Subject, test: &str, house: House) -> Running {
        let mut running = Running::launch_as(subject, test, scratch(), Some(house));
        let launcher = waitpid(running.pid.nix(), None).expect("the launcher is our child");
        assert!(
            matches!(launcher, WaitStatus::Exited(_, 0)),
            "no namespaces: {launcher:?}; {}",
            running.said()
        );
        let init = fs::read_to_string(running.dir.join(house::INIT)).expect("the launcher wrote it");
        running.pid = Pid(init.parse().expect("a pid"));
        running.known = BTreeSet::from([running.pid]);
        running.wait_ready();
        running
    }

    fn launch_in(subject: &Subject, test: &str, dir: PathBuf) -> Running {
        Running::launch_as(subject, test, dir, None)
    }

    fn launch_as(subject: &Subject, test: &str, dir: PathBuf, house: Option<House>) -> Running {
        static REAPER: Once = Once::new();
        // Orphans of a subject, and what a `freeze restore --detach` left, come to us and are reaped here.
        REAPER
            .call_once(|| nix::sys::prctl::set_child_subreaper(true).expect("prctl(PR_SET_CHILD_SUBREAPER)"));
        let out = File::options()
            .create(true)
            .append(true)
            .open(dir.join("out"))
            .expect("a file for its output");
        let mut command = subject.command(test);
        if let Some(house) = house {
            let mut housed = Command::new(compiled(&format!(
                "{C}\n#line 1 \"house.c\"\n{}",
                house::LAUNCHER
            )));
            housed
                .arg(house.word())
                .arg(command.get_program())
                .args(command.get_args());
            command = housed;
        }
        // What the environment of the tests holds is nobody's business, an image's least of all.
        command
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("LANG", "C.UTF-8")
            .env(HERE, &dir)
            .current_dir(&dir);
        if house.is_some_and(House::is_rooted) {
            command.env(house::OWN, house::WORK);
        }
        if let What::Rust(_) = subject.what {
            command.env(PLAY, test);
        }
        command
            .stdin(Stdio::null())
            .stdout(out.try_clone().expect("a second descriptor"))
            .stderr(out);
        #[allow(
            clippy::zombie_processes,
            reason = "it is reaped by pid: after a restore it is no child of this `Child`"
        )]
        let child = launch::apart(&mut command)
            .spawn()
            .unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let pid = Pid(child.id() as i32);
        Running {
            pid,
            dir,
            known: BTreeSet::from([pid]),
        }
    }

    /// Waits until it says that it is ready.
    pub fn wait_ready(&self) {
        let ready = self.dir.join("ready");
        let began = Instant::now();
        while !ready.exists() {
            assert!(
                self.is_alive(),
                "the subject ended before it was ready:\n{}",
                self.said()
            );
            assert!(
                began.elapsed() < PATIENCE,
                "the subject is not ready:\n{}",
                self.said()
            );
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Its private directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What it has written to its standard output and error.
    pub fn said(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.dir.join("out")).unwrap_or_default()).into_owned()
    }

    /// Whether the process at the top runs, and is no zombie.
    pub fn is_alive(&self) -> bool {
        alive(self.pid)
    }

    /// All processes of the tree, as they are now.
    pub fn pids(&mut self) -> Vec<Pid> {
        let tree = descendants(self.pid);
        self.known.extend(&tree);
        tree
    }

    /// Takes these for processes of the tree too.
    pub(crate) fn knew(&mut self, pids: &[Pid]) {
        self.known.extend(pids);
    }

    /// Waits until nothing is left of the tree, reaping what came to us.
    pub fn wait_gone(&mut self) {
        let began = Instant::now();
        loop {
            for pid in &self.known {
                let _ = waitpid(pid.nix(), Some(WaitPidFlag::WNOHANG));
            }
            let left: Vec<_> = self.known.iter().filter(|p| exists(**p)).collect();
            if left.is_empty() {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "still there: {left:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Tells it to go on.
    pub fn go(&self) {
        File::create(self.dir.join("go")).expect("a writable directory");
    }

    /// Waits for the process at the top, a child of ours, to end; some subjects have work to do until then.
    pub fn wait(&mut self) -> WaitStatus {
        let began = Instant::now();
        loop {
            match waitpid(self.pid.nix(), Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) => {}
                Ok(status) => return status,
                Err(e) => panic!("waiting for {}: {e}; it said:\n{}", self.pid, self.said()),
            }
            assert!(
                began.elapsed() < 5 * PATIENCE,
                "the subject does not end; it said:\n{}",
                self.said()
            );
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Tells it to go on and reads its verdict from its exit status.
    pub fn verdict(&mut self) {
        self.pids();
        self.go();
        let status = self.wait();
        assert!(
            matches!(status, WaitStatus::Exited(_, 0)),
            "{status:?}; the subject said:\n{}",
            self.said()
        );
        if let Some(what) = self.said().lines().find_map(|line| line.strip_prefix("WITHOUT ")) {
            println!("SKIP: {what}");
        }
        self.end();
    }

    /// Ends whatever there is of it, as somebody else would.
    pub fn kill(&mut self) {
        self.pids();
        self.end();
    }

    /// Ends whatever is left of it.
    fn end(&mut self) {
        let began = Instant::now();
        // Whoever carries the name of our directory in its environment is of this tree, wherever it has moved to.
        let mark = format!("{HERE}={}\0", self.dir.display());
        loop {
            let mut left: BTreeSet<Pid> = self
                .known
                .iter()
                .copied()
                .filter(|p| exists(*p) && marked(*p, &mark))
                .collect();
            left.extend(all().into_keys().filter(|p| marked(*p, &mark)));
            for pid in &left {
                let _ = nix::sys::signal::kill(pid.nix(), Signal::SIGKILL);
            }
            self.known.extend(left.iter());
            for pid in &self.known {
                let _ = waitpid(pid.nix(), Some(WaitPidFlag::WNOHANG));
            }
            if left.is_empty() || began.elapsed() > PATIENCE {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
        if std::thread::panicking() {
            println!("the subject said: {}", self.said());
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Whether a process, a zombie too, has this pid.
pub fn exists(pid: Pid) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// Whether a process that is no zombie has this pid.
pub fn alive(pid: Pid) -> bool {
    stat_fields(&format!("/proc/{pid}/stat")).is_some_and(|f| !matches!(f[0].as_str(), "Z" | "X"))
}

fn marked(pid: Pid, mark: &str) -> bool {
    let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    environ.windows(mark.len()).any(|w| w == mark.as_bytes())
}

/// The fields of a stat file after the name: state first.
pub fn stat_fields(path: &str) -> Option<Vec<String>> {
    let text = String::from_utf8_lossy(&fs::read(path).ok()?).into_owned();
    let rest = text.get(text.rfind(')')? + 2..)?;
    Some(rest.split_ascii_whitespace().map(str::to_owned).collect())
}

/// Every process with its parent.
pub fn all() -> BTreeMap<Pid, Pid> {
    let mut out = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else {
            continue;
        };
        if let Some(fields) = stat_fields(&format!("/proc/{pid}/stat")) {
            out.insert(Pid(pid), Pid(fields[1].parse().unwrap_or(0)));
        }
    }
    out
}

/// `root` and everything that descends from it, in the order of pids.
pub fn descendants(root: Pid) -> Vec<Pid> {
    let parents = all();
    let mut set = BTreeSet::from([root]);
    loop {
        let more: Vec<Pid> = parents
            .iter()
            .filter(|(p, parent)| set.contains(parent) && !set.contains(p))
            .map(|(p, _)| *p)
            .collect();
        if more.is_empty() {
            return set.into_iter().collect();
        }
        set.extend(more);
    }
}
