//! Objects that freeze does not carry: each is refused by name, all at once, before anything is stopped.

use freeze_tests::house::House;
use freeze_tests::subject::{freeze_checkpoint, output};
use freeze_tests::{Running, c, freeze, python};
use freeze_user::observe::peek::Peek;

/// Opens what nobody carries, and writes down which descriptor is what; what this kernel has not is left out.
const HOLDER: &str = r#"
import ctypes, socket, struct
libc = ctypes.CDLL(None, use_errno=True)
held = []
def take(word, fd):
    if fd >= 0: held.append("%d %s" % (fd, word))
take("userfaultfd", libc.syscall(323, 0))
attr = struct.pack("IIQ", 1, 112, 0) + bytes(96)   # PERF_TYPE_SOFTWARE, PERF_COUNT_SW_CPU_CLOCK
take("perf event", libc.syscall(298, attr, 0, -1, -1, 0))
take("memfd_secret", libc.syscall(447, 0))
for family, kind in ((40, socket.SOCK_STREAM), (38, socket.SOCK_SEQPACKET), (socket.AF_INET, socket.SOCK_SEQPACKET)):
    try: take("socket", socket.socket(family, kind, 132 if family == socket.AF_INET else 0).detach())
    except OSError: pass
signed = socket.socket(); signed.bind(("127.0.0.1", 0)); signed.listen()
address = struct.pack("HH4s120x", 2, 0, socket.inet_aton("127.0.0.2"))
try:
    signed.setsockopt(6, 14, address + struct.pack("BBHi80s", 0, 0, 3, 0, b"key"))
    take("TCP_MD5SIG", signed.fileno())
except OSError: pass
open(HERE + "/held", "w").write("\n".join(held))
freeze_here()
"#;

#[test]
fn all_of_them_are_named_at_once() {
    let running = Running::start(&python(HOLDER), "refused_objects");
    let held = std::fs::read_to_string(running.dir().join("held")).expect("what is held");
    assert!(
        held.contains("perf event"),
        "this kernel has nothing to refuse: {held:?}"
    );
    let done = output(freeze().arg("check").arg(running.pid.to_string()));
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert_eq!(done.status.code(), Some(3), "{said}");
    for line in held.lines() {
        let (fd, word) = line.split_once(' ').expect("a descriptor and what it is");
        let start = format!("pid {}, fd {fd}: ", running.pid);
        let reason = said.lines().find(|l| l.trim_start().starts_with(&start));
        let reason = reason.unwrap_or_else(|| panic!("nothing is said of {line}:\n{said}"));
        assert!(reason.contains(word), "{word} is not called so: {reason}");
    }
}

/// What is said against a checkpoint of a subject in namespaces of its own.
fn refusal_in(house: House, text: &str, test: &str) -> String {
    let running = Running::start_housed(&c(text), test, house);
    let done = output(freeze().arg("check").arg(running.pid.to_string()));
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert_eq!(done.status.code(), Some(3), "{said}");
    said
}

#[test]
fn tables_shared_in_a_user_namespace() {
    let text = r#"
static char stack[65536];
static int child(void *unused) { while (!gone_ahead()) nap(2); return 0; }
int main(void) {
    OK(clone(child, stack + sizeof stack, CLONE_FS | SIGCHLD, 0));
    freeze_here();
}
"#;
    let said = refusal_in(House::User, text, "tables_shared_in_a_user_namespace");
    assert!(said.contains("cannot enter a user namespace"), "{said}");
}

#[test]
fn a_landlock_domain() {
    let text = r#"
#include <linux/landlock.h>
static void *restricted(void *unused) {
    struct landlock_ruleset_attr rules = { .handled_access_fs = LANDLOCK_ACCESS_FS_MAKE_DIR };
    int fd = syscall(SYS_landlock_create_ruleset, &rules, sizeof rules.handled_access_fs, 0);
    OK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    if (fd >= 0 && !syscall(SYS_landlock_restrict_self, fd, 0)) OK(close(OK(open(in_here("in"), O_WRONLY | O_CREAT, 0600))));
    close(fd);
    while (!gone_ahead()) nap(2);
    return 0;
}
int main(void) {
    pthread_t thread;
    pthread_create(&thread, 0, restricted, 0);
    rest(50);
    freeze_here();
    pthread_join(thread, 0);
}
"#;
    let mut running = Running::start(&c(text), "a_landlock_domain");
    if !running.dir().join("in").exists() || Peek::get().is_none() {
        freeze_tests::skip!("no Landlock, or no eBPF");
    }
    let done = output(freeze().arg("check").arg(running.pid.to_string()));
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    running.verdict();
    assert_eq!(done.status.code(), Some(3), "{said}");
    assert!(said.contains("a Landlock domain"), "{said}");
}

#[test]
fn a_trigger_of_pressure() {
    let text = r#"
int main(void) {
    int fd = open("/proc/pressure/memory", O_RDWR | O_NONBLOCK);
    char trigger[] = "some 150000 2000000";
    if (fd >= 0 && write(fd, trigger, sizeof trigger) > 0) OK(close(OK(open(in_here("set"), O_WRONLY | O_CREAT, 0600))));
    freeze_here();
}
"#;
    let mut running = Running::start(&c(text), "a_trigger_of_pressure");
    if !running.dir().join("set").exists() {
        freeze_tests::skip!("no pressure stall information");
    }
    let done = output(freeze().arg("check").arg(running.pid.to_string()));
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    running.verdict();
    assert_eq!(done.status.code(), Some(3), "{said}");
    assert!(said.contains("/proc/pressure/memory"), "{said}");
}

#[test]
fn a_program_that_chooses_among_the_sockets_of_a_port() {
    let text = r#"
import ctypes, socket, struct
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
s.bind(("127.0.0.1", 0))
program = ctypes.create_string_buffer(struct.pack("BBhi", 0xb7, 0, 0, 0) + struct.pack("BBhi", 0x95, 0, 0, 0))   # return 0
license = ctypes.create_string_buffer(b"GPL")
wanted = struct.pack("IIQQ", 1, 2, ctypes.addressof(program), ctypes.addressof(license))   # BPF_PROG_TYPE_SOCKET_FILTER
loaded = ctypes.CDLL(None).syscall(321, 5, ctypes.create_string_buffer(wanted, 128), 128)
s.setsockopt(socket.SOL_SOCKET, 52, loaded)   # SO_ATTACH_REUSEPORT_EBPF
os.close(loaded)
p = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
p.bind(("lo", 0x0800))
p.setsockopt(263, 18, os.getpid() & 0xffff | 6 << 16)   # PACKET_FANOUT, PACKET_FANOUT_CBPF
freeze_here()
"#;
    let running = Running::start(&python(text), "a_program_that_chooses");
    let done = output(freeze().arg("check").arg(running.pid.to_string()));
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert_eq!(done.status.code(), Some(3), "{said}");
    assert!(said.contains("SO_DETACH_REUSEPORT_BPF"), "{said}");
    assert!(said.contains("PACKET_FANOUT_DATA"), "{said}");
}

#[test]
fn a_socket_with_a_name_in_another_directory() {
    let text = r#"
import socket
s = socket.socket(socket.AF_UNIX)
s.bind(HERE + "/s")
os.mkdir(HERE + "/d")
os.link(HERE + "/s", HERE + "/d/s")
freeze_here()
"#;
    let mut running = Running::start(&python(text), "a_socket_with_a_name_in_another_directory");
    let done = output(
        freeze()
            .arg("checkpoint")
            .arg(running.pid.to_string())
            .arg("--to")
            .arg(running.dir().join("image")),
    );
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert_eq!(done.status.code(), Some(3), "{said}");
    assert!(said.contains("another name in another directory"), "{said}");
    running.verdict();
}

#[test]
fn mounts_that_map_ids() {
    let text = r#"
#include <sys/mount.h>
int main(void) {
    struct { uint64_t set, clear, propagation, userns; } attr = { 0x00100000 /* MOUNT_ATTR_IDMAP */ };
    int pid = OK(syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0)), fd;
    char path[64];
    if (!pid) { nap(20000); _exit(0); }
    for (int n = 0; n < 2; n++) {
        snprintf(path, sizeof path, "/proc/%d/%s_map", pid, n ? "gid" : "uid");
        fd = OK(open(path, O_WRONLY));
        SAME(write(fd, "0 1000 1", 8), 8);
        OK(close(fd));
    }
    snprintf(path, sizeof path, "/proc/%d/ns/user", pid);
    attr.userns = fd = OK(open(path, O_RDONLY));
    OK(mkdir(in_here("from"), 0755));
    OK(mkdir(in_here("to"), 0755));
    OK(mount("t", in_here("from"), "tmpfs", 0, 0));
    int tree = OK(syscall(428 /* open_tree */, AT_FDCWD, in_here("from"), 1 /* OPEN_TREE_CLONE */));
    /* Where file systems in memory cannot do that yet (before Linux 6.3) there is nothing to refuse. */
    if (syscall(442 /* mount_setattr */, tree, "", AT_EMPTY_PATH, &attr, sizeof attr) == -1)
        OK(close(OK(open(in_here("cannot"), O_CREAT | O_WRONLY, 0600))));
    OK(syscall(429 /* move_mount */, tree, "", AT_FDCWD, in_here("to"), 4 /* MOVE_MOUNT_F_EMPTY_PATH */));
    OK(close(tree));
    OK(close(fd));
    OK(kill(pid, SIGKILL));
    SAME(waitpid(pid, 0, 0), pid);
    freeze_here();
}
"#;
    let running = Running::start_housed(&c(text), "mounts_that_map_ids", House::Namespaces);
    if running.dir().join("cannot").exists() {
        return;
    }
    let done = output(freeze().arg("check").arg(running.pid.to_string()));
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert_eq!(done.status.code(), Some(3), "{said}");
    assert!(said.contains("it maps ids (mount_setattr)"), "{said}");
}

#[test]
fn a_file_without_a_name_on_a_mount_that_is_gone() {
    let text = r#"
#include <sys/mount.h>
int main(void) {
    OK(unshare(CLONE_NEWNS));
    OK(mount(0, "/", 0, MS_REC | MS_PRIVATE, 0));
    OK(mkdir(in_here("at"), 0755));
    OK(mount("t", in_here("at"), "tmpfs", 0, 0));
    OK(open(in_here("at/f"), O_CREAT | O_RDWR, 0600));
    OK(unlink(in_here("at/f")));
    OK(umount2(in_here("at"), MNT_DETACH));
    freeze_here();
}
"#;
    let running = Running::start(&c(text), "a_file_without_a_name_on_a_mount_that_is_gone");
    let done = output(freeze().arg("check").arg(running.pid.to_string()));
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert_eq!(done.status.code(), Some(3), "{said}");
    assert!(said.contains("a mount that is in no tree of files"), "{said}");
}

#[test]
fn overlays_of_relative_paths() {
    let text = r#"
#include <sys/mount.h>
int main(void) {
    OK(mkdir(in_here("base"), 0755));
    OK(mount("t", in_here("base"), "tmpfs", 0, 0));
    OK(chdir(in_here("base")));
    OK(mkdir("a", 0755));
    OK(mkdir("b", 0755));
    OK(mkdir("over", 0755));
    OK(mount("overlay", "over", "overlay", 0, "lowerdir=a:b"));
    OK(chdir("/"));
    freeze_here();
}
"#;
    let said = refusal_in(House::Namespaces, text, "overlays_of_relative_paths");
    assert!(said.contains("its layers are named by relative paths"), "{said}");
}

#[test]
fn a_program_that_nobody_may_execute_any_more() {
    let text = r#"
int main(int argc, char **argv) {
    char from[64], copy[PATH_MAX], command[PATH_MAX + 100];
    snprintf(from, sizeof from, "/proc/%d/exe", getpid());
    snprintf(copy, sizeof copy, "%.4000s/copy", here_dir);
    snprintf(command, sizeof command, "cp %s %s", from, copy);
    if (argc == 1) {
        SAME(system(command), 0);
        OK(execl(copy, copy, "again", (char *)0));
    }
    OK(chmod(copy, 0600));
    freeze_here();
}
"#;
    let said = refusal_in(
        House::Namespaces,
        text,
        "a_program_that_nobody_may_execute_any_more",
    );
    assert!(said.contains("nobody may execute it any more"), "{said}");
}

#[test]
fn out_of_band_data_of_a_connection_that_was_not_accepted() {
    let text = r#"
import socket
s = socket.socket(socket.AF_UNIX)
s.bind("\0out-of-band-%d" % os.getpid())
s.listen()
c = socket.socket(socket.AF_UNIX)
c.connect(s.getsockname())
c.send(b"ab", socket.MSG_OOB)
freeze_here()
"#;
    let mut running = Running::start(&python(text), "out_of_band_data");
    let image = running.dir().join("image");
    let done = output(&mut freeze_checkpoint(&running, &image));
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert_eq!(done.status.code(), Some(3), "{said}");
    assert!(said.contains("waits to be accepted"), "{said}");
    running.verdict();
}

#[test]
fn descriptors_that_no_look_shows_again() {
    let text = r#"
import array, socket
pairs = [socket.socketpair(socket.AF_UNIX, kind) for kind in (socket.SOCK_DGRAM, socket.SOCK_SEQPACKET)]
for a, b in pairs:
    # The first of a queue can be looked at again and again.
    for data in (b"", b"text", b""):
        r, w = os.pipe()
        fds = array.array("i", [r, w])
        a.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
        os.close(r)
        os.close(w)
freeze_here()
for a, b in pairs:
    for data in (b"", b"text", b""):
        got, control, _, _ = b.recvmsg(9, 99)
        assert got == data and len(control[0][2]) == 8, (got, control)
"#;
    let mut running = Running::start(&python(text), "descriptors_that_no_look_shows_again");
    let checkpoint = |name: &str| {
        let done = output(&mut freeze_checkpoint(&running, &running.dir().join(name)));
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        (done.status.code(), said)
    };
    let (status, said) = checkpoint("first");
    assert_eq!(status, Some(0), "{said}");
    let (status, said) = checkpoint("second");
    assert_eq!(status, Some(3), "{said}");
    let why = "2 descriptors in its queue came with empty messages that were looked at before";
    assert_eq!(said.matches(why).count(), 1, "{said}");
    running.verdict();
}

#[test]
fn a_socket_whose_directory_lets_no_name_go() {
    let text = r#"
#include <linux/fs.h>
#include <sys/un.h>
int main(void) {
    struct sockaddr_un name = {AF_UNIX};
    OK(mkdir(in_here("d"), 0700));
    OK(chdir(in_here("d")));
    int s = OK(socket(AF_UNIX, SOCK_STREAM, 0)), flag = FS_IMMUTABLE_FL;
    strcpy(name.sun_path, "s");
    OK(bind(s, (void *)&name, sizeof name));
    int dir = OK(open(".", O_RDONLY));
    OK(chdir("/"));
    if (ioctl(dir, FS_IOC_SETFLAGS, &flag)) OK(mkdir(in_here("cannot"), 0700));
    freeze_here();
    flag = 0;
    ioctl(dir, FS_IOC_SETFLAGS, &flag);
}
"#;
    let mut running = Running::start(&c(text), "a_socket_whose_directory_lets_no_name_go");
    let cannot = running.dir().join("cannot").exists();
    let image = running.dir().join("image");
    let done = output(&mut freeze_checkpoint(&running, &image));
    running.verdict();
    if cannot {
        freeze_tests::skip!("no CAP_LINUX_IMMUTABLE, or no file system with flags");
    }
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert_eq!(done.status.code(), Some(3), "{said}");
    assert!(said.contains("socket:["), "{said}");
    assert!(
        said.contains("no name can be made and taken away again"),
        "{said}"
    );
}

#[test]
fn nobody_can_be_born_there() {
    let text = r#"
/* Children would be born in a pid namespace whose first process has ended. */
int main(void) {
    OK(unshare(CLONE_NEWPID));
    int status, first = OK(fork());
    if (!first) _exit(0);
    SAME(waitpid(first, &status, 0), first);
    CHECK(fork() == -1 && errno == ENOMEM);
    freeze_here();
}
"#;
    for house in [House::Namespaces, House::User] {
        let said = refusal_in(house, text, "nobody_can_be_born_there");
        assert!(said.contains("whose first process has ended"), "{said}");
    }
}

/// To read it would break the lease; nobody hears of the attempt.
#[test]
fn a_lease_on_what_cannot_be_read() {
    let subject = c(r#"
static int broken;
static void on_break(int signal) { broken = signal; }
int main(void) {
    int fd = OK(open(in_here("gone"), O_CREAT | O_WRONLY, 0600));
    OK(unlink(in_here("gone")));
    signal(SIGUSR1, on_break);
    OK(fcntl(fd, F_SETSIG, SIGUSR1));
    OK(fcntl(fd, F_SETLEASE, F_WRLCK));
    freeze_here();
    SAME(broken, 0);
    SAME(fcntl(fd, F_GETLEASE), F_WRLCK);
}
"#);
    let mut running = Running::start(&subject, "a_lease_on_what_cannot_be_read");
    let done = output(&mut freeze_checkpoint(&running, &running.dir().join("image")));
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert_eq!(done.status.code(), Some(3), "{said}");
    assert!(
        said.contains("a lease (F_SETLEASE) that reading the file would break"),
        "{said}"
    );
    running.verdict();
}
