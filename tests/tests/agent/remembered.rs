//! What the agent remembers of programs between two checkpoints is what they would answer.

use super::*;

/// Changes again and again what only a process itself can tell, and counts on only while it is as it was set.
const CHANGE: &str = "
import ctypes, random, resource, signal, sys, time
libc = ctypes.CDLL(None)
f, hard = open(sys.argv[1], 'w'), resource.getrlimit(resource.RLIMIT_NOFILE)[1]
def set(n):
    resource.setrlimit(resource.RLIMIT_NOFILE, (200 + n % 50, hard))
    signal.signal(signal.SIGUSR1, signal.SIG_IGN if n % 2 else signal.SIG_DFL)
    libc.prctl(36, n % 3 > 0)
    signal.setitimer(signal.ITIMER_VIRTUAL, 5000 if n % 4 == 0 else 0)
def look(n):
    ignored = open('/proc/self/status').read().split('SigIgn:')[1].split()[0]
    reaps = ctypes.c_int()
    libc.prctl(37, ctypes.byref(reaps))
    return (resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 200, int(ignored, 16) >> 9 & 1,
            reaps.value == (n % 3 > 0), signal.getitimer(signal.ITIMER_VIRTUAL)[0] > 0)
n = 0
while True:
    n += 1
    set(n)
    for rest in (0, random.choice([0.01, 0.4])):
        time.sleep(rest)
        is_now = look(n)
        assert is_now == (n % 50, n % 2, True, n % 4 == 0), (n, is_now)
    f.seek(0), f.write(f'{n}\\n'), f.flush()
";

#[test]
fn what_is_remembered_of_a_program_is_what_it_would_answer() {
    let mut stage = Stage::new();
    let pid = stage.watch_one(CHANGE, &["--every", "40ms", "--on-crash", "restore"]);
    for crash in 1..=4 {
        let before = stage.checkpoints();
        stage.until("it is checkpointed", || stage.checkpoints() >= before + 12);
        // Another changes it, and nothing that it does tells of that.
        let core = 4096 * (9 - crash);
        let limit = format!("--core={core}:{core}");
        let changed = output(Command::new("prlimit").args(["--pid", &pid.to_string(), &limit]));
        assert!(changed.status.success(), "{}", text(&changed.stderr));
        let (slack, slack_file) = ((1000 * crash).to_string(), format!("/proc/{pid}/timerslack_ns"));
        fs::write(&slack_file, &slack).expect("its slack");
        let before = stage.checkpoints();
        stage.until("it is checkpointed again", || stage.checkpoints() >= before + 3);
        kill(pid.nix(), Signal::SIGKILL).expect("to kill it");
        let is_back = |g: Value| g["restores"] == crash && g["state"] == "watching";
        stage.until("it is restored", || stage.group().is_some_and(is_back));
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).expect("limits");
        let is = |l: &str| l.starts_with("Max core") && l.contains(&format!(" {core} "));
        assert!(limits.lines().any(is), "{limits}");
        assert_eq!(fs::read_to_string(&slack_file).expect("its slack").trim(), slack);
        stage.counts_on("after its restore");
    }
    let parts = &stage.group().expect("the group")["pauses"]["parts_ns"];
    for part in ["ask", "recall"] {
        assert!(parts[part].is_u64(), "no pause with {part}: {parts}");
    }
}

/// Changes options of its sockets again and again, some by children that end at once, and counts on only while they are as
/// they were set.
const TUNE: &str = "
import os, random, socket, sys, time
f = open(sys.argv[1], 'w')
listening = socket.create_server(('127.0.0.1', 0))
one = socket.create_connection(listening.getsockname())
other = listening.accept()[0]
pair = socket.socketpair()
KEEP, IDLE, NODELAY = (socket.SOL_SOCKET, socket.SO_KEEPALIVE), (6, socket.TCP_KEEPIDLE), (6, socket.TCP_NODELAY)
PRIORITY, CRED = (socket.SOL_SOCKET, 12), (socket.SOL_SOCKET, socket.SO_PASSCRED)
def by_a_child(s, option, value):
    child = os.fork()
    if child == 0:
        s.setsockopt(*option, value)
        os._exit(0)
    os.waitpid(child, 0)
def itself(s, option, value):
    s.setsockopt(*option, value)
def expected(n):
    return [(one, IDLE, 100 + n), (one, NODELAY, n % 2), (other, KEEP, n // 2 % 2), (other, PRIORITY, n % 6),
            (listening, IDLE, 300 + n % 9), (pair[0], CRED, n % 2), (pair[1], CRED, n // 3 % 2)]
n = 0
while True:
    n += 1
    for s, option, value in random.sample(expected(n), 7):
        if s.getsockopt(*option) != value:
            random.choice([by_a_child, itself])(s, option, value)
    if n % 5 == 0:
        one.close(), other.close()
        one = socket.create_connection(listening.getsockname())
        other = listening.accept()[0]
        [s.setsockopt(*option, value) for s, option, value in expected(n)]
    for rest in (0, random.choice([0.01, 0.4])):
        time.sleep(rest)
        for s, option, value in expected(n):
            assert s.getsockopt(*option) == value, (n, s, option, value, s.getsockopt(*option))
        one.send(b'x'), other.recv(1)
    f.seek(0), f.write(f'{n}\\n'), f.flush()
";

#[test]
fn what_is_remembered_of_sockets_is_what_they_have() {
    let mut stage = Stage::new();
    let pid = stage.watch_one(TUNE, &["--every", "40ms", "--on-crash", "restore"]);
    for crash in 1..=6 {
        let before = stage.checkpoints();
        stage.until("it is checkpointed", || stage.checkpoints() >= before + 12);
        kill(pid.nix(), Signal::SIGKILL).expect("to kill it");
        let is_back = |g: Value| g["restores"] == crash && g["state"] == "watching";
        stage.until("it is restored", || stage.group().is_some_and(is_back));
        stage.counts_on("after its restore");
    }
}
