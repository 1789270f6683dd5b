//! Conformance of descriptors of namespaces: of freeze's own, of one that is lived in, of one that is only held open.

use freeze_tests::cycle::{checkpoint_now, request};
use freeze_tests::subject::Running;
use freeze_tests::{c, conformance};
use freeze_user::ids::Pid;
use freeze_user::precopy::Trackings;
use freeze_user::sys::fault;
use nix::sys::signal::{Signal, kill};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

conformance!(
    own_and_left,
    c(r#"
/* The way back into the namespaces a program came from, and into one that it has left. */
int main(void) {
    static const char *const kinds[] = { "net", "uts", "ipc", "mnt", "pid", "user", "cgroup", "time" };
    int fds[8];
    struct stat was[8], now;
    for (int i = 0; i < 8; i++) {
        char path[64];
        sprintf(path, "/proc/self/ns/%s", kinds[i]);
        fds[i] = OK(open(path, O_RDONLY | O_CLOEXEC));
    }
    OK(unshare(CLONE_NEWUTS));
    OK(sethostname("left", 4));
    int left = OK(open("/proc/self/ns/uts", O_RDONLY)), again = OK(dup(left));
    OK(unshare(CLONE_NEWUTS | CLONE_NEWNET));
    OK(sethostname("lived-in", 8));
    int lived = OK(open("/proc/self/ns/uts", O_RDONLY)), net = OK(open("/proc/self/ns/net", O_RDONLY));
    freeze_here();
    char name[65], other[65];
    struct stat a, b;
    for (int i = 0; i < 8; i++) {
        OK(fstat(fds[i], &now));
        if (i > 1) {
            char path[64];
            sprintf(path, "/proc/self/ns/%s", kinds[i]);
            OK(stat(path, was + i));
            SAME(now.st_ino, was[i].st_ino);
        }
    }
    OK(fstat(net, &a));
    OK(stat("/proc/self/ns/net", &b));
    SAME(a.st_ino, b.st_ino);
    OK(fstat(fds[0], &b));
    CHECK(a.st_ino != b.st_ino);
    OK(setns(fds[1], CLONE_NEWUTS));
    OK(gethostname(other, sizeof other));
    CHECK(strcmp(other, "left") && strcmp(other, "lived-in"));
    OK(setns(again, CLONE_NEWUTS));
    OK(gethostname(name, sizeof name));
    CHECK(!strcmp(name, "left"));
    OK(setns(lived, 0));
    OK(gethostname(name, sizeof name));
    CHECK(!strcmp(name, "lived-in"));
    SAME(fcntl(fds[3], F_GETFD), FD_CLOEXEC);
}
"#),
    only: host
);

conformance!(
    user_and_time,
    c(r#"
/* Namespaces in which a child lived that is gone: only their descriptors keep them. */
int main(void) {
    int made[2], go[2];
    OK(pipe(made));
    OK(pipe(go));
    int child = OK(fork());
    if (!child) {
        char x;
        OK(unshare(CLONE_NEWUSER));
        SAME(write(made[1], "x", 1), 1);
        SAME(read(go[0], &x, 1), 1);
        _exit(0);
    }
    char x, path[64];
    SAME(read(made[0], &x, 1), 1);
    sprintf(path, "/proc/%d/uid_map", child);
    int map = OK(open(path, O_WRONLY));
    SAME(write(map, "0 4321 1\n", 9), 9);
    close(map);
    sprintf(path, "/proc/%d/ns/user", child);
    int user = OK(open(path, O_RDONLY));
    SAME(write(go[1], "x", 1), 1);
    OK(waitpid(child, 0, 0));
    freeze_here();
    child = OK(fork());
    if (!child) {
        char text[64] = "";
        unsigned first, outside, n;
        OK(setns(user, CLONE_NEWUSER));
        FILE *f = fopen("/proc/self/uid_map", "r");
        CHECK(f && fgets(text, sizeof text, f) && sscanf(text, "%u %u %u", &first, &outside, &n) == 3);
        SAME(first, 0);
        SAME(n, 1);
        _exit(0);
    }
    int status;
    OK(waitpid(child, &status, 0));
    SAME(status, 0);
}
"#)
);

conformance!(
    mounted,
    c(r#"
/* Namespaces that only a mount keeps, as `ip netns add` does, and the one that the subject lives in; open by those names too. */
#include <net/if.h>
#include <sys/mount.h>
static const char *const kinds[] = { "net", "uts", "ipc" };
static char *at(const char *kind) { char name[16]; sprintf(name, "m/%s", kind); return strdup(in_here(name)); }
int main(void) {
    char name[65];
    OK(unshare(CLONE_NEWNS | CLONE_NEWUTS));
    OK(mount(0, "/", 0, MS_REC | MS_PRIVATE, 0));
    OK(sethostname("lived-in", 8));
    OK(mkdir(in_here("m"), 0755));
    OK(mount("names", in_here("m"), "tmpfs", 0, ""));
    OK(close(OK(open(at("own"), O_CREAT | O_WRONLY, 0600))));
    OK(mount("/proc/self/ns/uts", at("own"), 0, MS_BIND, 0));
    int kid = OK(fork()), status;
    if (!kid) {
        OK(unshare(CLONE_NEWNET | CLONE_NEWUTS | CLONE_NEWIPC));
        OK(sethostname("mounted", 7));
        struct ifreq lo = { .ifr_name = "lo", .ifr_flags = IFF_UP };
        OK(ioctl(OK(socket(AF_INET, SOCK_DGRAM, 0)), SIOCSIFFLAGS, &lo));
        for (int i = 0; i < 3; i++) {
            char own[32];
            sprintf(own, "/proc/self/ns/%s", kinds[i]);
            OK(close(OK(open(at(kinds[i]), O_CREAT | O_WRONLY, 0600))));
            OK(mount(own, at(kinds[i]), 0, MS_BIND, 0));
        }
        _exit(0);
    }
    OK(waitpid(kid, &status, 0));
    SAME(status, 0);
    int held[3], lived = OK(open(at("own"), O_RDONLY));
    for (int i = 0; i < 3; i++) held[i] = OK(open(at(kinds[i]), i ? O_RDONLY : O_PATH));
    freeze_here();
    struct stat a, b;
    OK(stat(at("own"), &a));
    OK(stat("/proc/self/ns/uts", &b));
    SAME(a.st_ino, b.st_ino);
    OK(fstat(lived, &a));
    SAME(a.st_ino, b.st_ino);
    for (int i = 0; i < 3; i++) {
        char own[32];
        sprintf(own, "/proc/self/ns/%s", kinds[i]);
        int fd = OK(open(at(kinds[i]), O_RDONLY));
        OK(setns(fd, 0));
        OK(close(fd));
        OK(stat(at(kinds[i]), &a));
        OK(stat(own, &b));
        SAME(a.st_ino, b.st_ino);
        OK(fstat(held[i], &a));
        SAME(a.st_ino, b.st_ino);
    }
    OK(gethostname(name, sizeof name));
    CHECK(!strcmp(name, "mounted"));
    struct ifreq lo = { .ifr_name = "lo" };
    OK(ioctl(OK(socket(AF_INET, SOCK_DGRAM, 0)), SIOCGIFFLAGS, &lo));
    CHECK(lo.ifr_flags & IFF_UP);
    return 0;
}
"#)
);

conformance!(
    left_but_for_sockets,
    c(r#"
/* A network that a program has left, and of which it has only sockets: two of one, and one of another that hears itself. */
#include <arpa/inet.h>
#include <net/if.h>
#ifndef SIOCGSKNS
#define SIOCGSKNS 0x894C
#endif
static int own(void) { return OK(open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC)); }
static void up(void) {
    struct ifreq lo = { .ifr_name = "lo", .ifr_flags = IFF_UP };
    int s = OK(socket(AF_INET, SOCK_DGRAM, 0));
    OK(ioctl(s, SIOCSIFFLAGS, &lo));
    OK(close(s));
}
int main(void) {
    struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(5000), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    char got[8];
    int back = own();
    OK(unshare(CLONE_NEWNET));
    up();
    int listening = OK(socket(AF_INET, SOCK_STREAM, 0)), fresh = OK(socket(AF_INET, SOCK_STREAM, 0));
    OK(bind(listening, (void *)&to, sizeof to));
    OK(listen(listening, 3));
    OK(unshare(CLONE_NEWNET));
    up();
    int hears = OK(socket(AF_INET, SOCK_DGRAM, 0));
    OK(bind(hears, (void *)&to, sizeof to));
    OK(setns(back, CLONE_NEWNET));
    OK(close(back));
    freeze_here();
    OK(connect(fresh, (void *)&to, sizeof to));
    int server = OK(accept(listening, 0, 0));
    SAME(send(fresh, "x", 1, 0), 1);
    SAME(recv(server, got, sizeof got, 0), 1);
    SAME(sendto(hears, "abc", 3, 0, (void *)&to, sizeof to), 3);
    SAME(recv(hears, got, sizeof got, 0), 3);
    struct stat a, b, c;
    OK(fstat(OK(ioctl(listening, SIOCGSKNS)), &a));
    OK(fstat(OK(ioctl(fresh, SIOCGSKNS)), &b));
    OK(fstat(OK(ioctl(hears, SIOCGSKNS)), &c));
    SAME(a.st_ino, b.st_ino);
    CHECK(a.st_ino != c.st_ino);
}
"#)
);

/// Whom [`send_away`] tells to go.
static TRAVELLER: AtomicI32 = AtomicI32::new(0);

/// Has a thread of the traveller go to another network, and waits until it is there.
fn send_away() {
    let pid = TRAVELLER.load(Ordering::Relaxed);
    kill(Pid(pid).nix(), Signal::SIGUSR1).expect("it is there");
    let network = |of: &Path| fs::read_link(of.join("ns/net")).ok();
    let home = network(Path::new("/proc/self"));
    let tasks = || fs::read_dir(format!("/proc/{pid}/task")).expect("it lives");
    let away = || {
        tasks()
            .flatten()
            .any(|t| network(&t.path()).is_some_and(|n| Some(n) != home))
    };
    let began = Instant::now();
    while !away() {
        assert!(began.elapsed() < Duration::from_secs(20), "nobody goes");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A thread may go after everything was looked at, and be back before anybody looks again.
#[test]
fn who_goes_away_just_before_the_stop_is_noticed() {
    let subject = c(r#"
static volatile sig_atomic_t go;
static void told(int n) { go = 1; }
static void *worker(void *unused) {
    while (!go) nap(1);
    OK(unshare(CLONE_NEWNET));
    while (!gone_ahead()) nap(1);
    return 0;
}
int main(void) {
    pthread_t thread;
    signal(SIGUSR1, told);
    pthread_create(&thread, 0, worker, 0);
    freeze_here();
    pthread_join(thread, 0);
}
"#);
    let mut running = Running::start(&subject, "who_goes_away");
    TRAVELLER.store(running.pid.0, Ordering::Relaxed);
    let armed = fault::meddle("stop", send_away);
    let done = checkpoint_now(
        &request(running.pid, running.dir().join("image"), false),
        &mut Trackings::new(),
    );
    drop(armed);
    let said = done.expect_err("a thread is elsewhere").to_string();
    assert!(said.contains("net namespace"), "{said}");
    running.verdict();
}

conformance!(
    one_name_in_two_networks,
    c(r#"
/* An abstract name is somebody else's in each network, and each has what was sent to it there, from where it came. */
#include <sys/un.h>
int main(void) {
    struct sockaddr_un name = {AF_UNIX, "\0one-name-in-two"}, from;
    socklen_t length = sizeof(sa_family_t) + 16, got;
    int s[3];
    for (int n = 0; n < 3; n++) {
        OK(unshare(CLONE_NEWNET));
        s[n] = OK(socket(AF_UNIX, SOCK_DGRAM, 0));
        OK(bind(s[n], (void *)&name, length));
        SAME(sendto(s[n], "abc", n + 1, 0, (void *)&name, length), n + 1);
    }
    freeze_here();
    for (int n = 0; n < 3; n++) {
        char text[9];
        got = sizeof from;
        SAME(recvfrom(s[n], text, sizeof text, MSG_DONTWAIT, (void *)&from, &got), n + 1);
        SAME(got, length);
        CHECK(!memcmp(&from, &name, length));
        CHECK(recv(s[n], text, sizeof text, MSG_DONTWAIT) == -1 && errno == EAGAIN);
    }
}
"#)
);
