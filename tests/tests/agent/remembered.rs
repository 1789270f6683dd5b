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
    goes_on_after_crashes(TUNE);
}

/// Has a program checkpointed at short intervals, and killed and restored again and again.
fn goes_on_after_crashes(program: &str) {
    let mut stage = Stage::new();
    let pid = stage.watch_one(program, &["--every", "40ms", "--on-crash", "restore"]);
    for crash in 1..=3 {
        let before = stage.checkpoints();
        stage.until("it is checkpointed", || stage.checkpoints() >= before + 12);
        kill(pid.nix(), Signal::SIGKILL).expect("to kill it");
        let is_back = |g: Value| g["restores"] == crash && g["state"] == "watching";
        stage.until("it is restored", || stage.group().is_some_and(is_back));
        stage.counts_on("after its restore");
    }
}

/// Gives its memory policies again and again: by mapping anew in the same place, and through another process that shares it.
const BIND: &str = "
import ctypes, mmap, os, random, sys, time
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
f, SIZE, BIND, PREFERRED = open(sys.argv[1], 'w'), 8192, 2, 1
def new(address, flags):
    return libc.mmap(ctypes.c_void_p(address), ctypes.c_size_t(SIZE), 3, 0x22 | flags, -1, ctypes.c_long(0))
def bind(address, mode):
    nodes = ctypes.c_ulong(1 if mode else 0)
    assert libc.syscall(237, ctypes.c_void_p(address), ctypes.c_size_t(SIZE), mode, ctypes.byref(nodes), 64, 0) == 0
def policy(address):
    mode = ctypes.c_int(-1)
    assert libc.syscall(239, ctypes.byref(mode), None, 0, ctypes.c_void_p(address), 2) == 0
    return mode.value
own, common = new(None, 0), mmap.mmap(-1, SIZE)
shared = ctypes.addressof(ctypes.c_char.from_buffer(common))
ask, answer = os.pipe(), os.pipe()
if os.fork() == 0:
    os.close(ask[1])
    while mode := os.read(ask[0], 1):
        bind(shared, mode[0])
        os.write(answer[1], b'x')
    os._exit(0)
def by_the_other(mode):
    os.write(ask[1], bytes([mode])), os.read(answer[0], 1)
n = 0
while True:
    n += 1
    if n % 2:
        bind(own, BIND)
    else:
        assert new(own, 0x10) == own
    by_the_other((BIND, PREFERRED)[n // 2 % 2])
    for rest in (0, random.choice([0.01, 0.4])):
        time.sleep(rest)
        is_now = (policy(own), policy(shared))
        assert is_now == (BIND if n % 2 else 0, (BIND, PREFERRED)[n // 2 % 2]), (n, is_now)
    f.seek(0), f.write(f'{n}\\n'), f.flush()
";

#[test]
fn what_is_remembered_of_policies_is_what_the_memory_has() {
    if !Path::new("/proc/self/numa_maps").exists() {
        freeze_tests::skip!("this kernel has no NUMA policies (CONFIG_NUMA)");
    }
    goes_on_after_crashes(BIND);
}
