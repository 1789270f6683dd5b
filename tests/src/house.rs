//! Namespaces for a subject to live in, as a simple container has them: an init of its own, and the subject below it.

use freeze_user::ids::Pid;

/// Where a subject lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum House {
    /// pid, mount, UTS, IPC and network namespaces of its own.
    Namespaces,
    /// The same, and a user namespace whose root is an ordinary user outside.
    User,
}

impl House {
    /// Where all tests are to take place (`FREEZE_HOUSED=namespaces` or `user`), whatever their mode; those that cannot fail.
    pub(crate) fn of_all() -> Option<House> {
        match std::env::var("FREEZE_HOUSED").ok()?.as_str() {
            "namespaces" => Some(House::Namespaces),
            "user" => Some(House::User),
            other => panic!("FREEZE_HOUSED is {other}"),
        }
    }

    /// Whether it has a root of its own.
    pub(crate) fn is_rooted(self) -> bool {
        match std::env::var(ROOTED).as_deref() {
            Ok("1") => true,
            Ok("0") => false,
            _ => self == House::Namespaces,
        }
    }

    /// What the launcher takes for its first argument.
    pub(crate) fn word(self) -> &'static str {
        match self {
            House::Namespaces => "namespaces",
            House::User => "user",
        }
    }
}

/// The variable that says which houses have a root of their own, as a container has it (a tmpfs, with directories of the
/// host's): `1` for all, `0` for none. Without it those have that are not in a user namespace.
const ROOTED: &str = "FREEZE_ROOTED";

/// The variable that tells a subject in such a house where its own files go.
pub(crate) const OWN: &str = "FREEZE_OWN";

/// Where its own files are.
pub(crate) const WORK: &str = "/work";

/// A program that is at no path of the host's that it has too; in every such house there is a file of that name.
const PROGRAM: &str = "/subject";

/// Whether a file as a process sees it is of a root of its own, and so another one after a restore.
pub(crate) fn is_own(pid: Pid, path: &str) -> bool {
    let environment = || std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let is_rooted = || environment().windows(OWN.len()).any(|w| w == OWN.as_bytes());
    let is_there = path == PROGRAM
        || path.starts_with("/dev/")
        || path.strip_prefix(WORK).is_some_and(|rest| rest.starts_with('/'));
    is_there && is_rooted()
}

/// The file in which the launcher leaves the pid of the init, as seen from outside.
pub(crate) const INIT: &str = "init";

/// The launcher: makes the namespaces and their init, which starts the subject, reaps orphans, and ends as the subject did.
///
/// The subject's program is opened outside, since in a user namespace the way to it may be barred.
pub(crate) const LAUNCHER: &str = r#"
#include <grp.h>
#include <net/if.h>
#include <sys/mount.h>
#include <sys/sendfile.h>
static void put(const char *path, const char *text) {
    int fd = OK(open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0644));
    SAME(write(fd, text, strlen(text)), strlen(text));
    OK(close(fd));
}
static int is_in(const char *path, const char *dir) { return !strncmp(path, dir, strlen(dir)); }
static void put_dir(const char *path) {
    char part[PATH_MAX];
    for (const char *end = path; (end = strchr(end + 1, '/'));) {
        snprintf(part, sizeof part, "%.*s", (int)(end - path), path);
        if (mkdir(part, 0755) && errno != EEXIST) DIE("mkdir %s", part);
    }
    if (mkdir(path, 0755) && errno != EEXIST) DIE("mkdir %s", path);
}
/* A root of its own, as a container has it: a tmpfs with a few directories of the host's. The program to be started in it. */
static int move_out(int user, int program) {
    char at[3 * PATH_MAX], to[PATH_MAX], self[64];
    const char *own = getenv("FREEZE_OWN"), *root = strdup(in_here("root"));
#define IN_IT(path) ({ snprintf(at, sizeof at, "%s%s", root, path); at; })
    put_dir(root);
    OK(mount("root", root, "tmpfs", 0, "mode=0755"));
    const char *const dirs[] = { "/usr", "/etc", "/root", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", here_dir };
    for (int n = 0; n < sizeof dirs / sizeof *dirs; n++) {
        ssize_t len = readlink(dirs[n], to, sizeof to - 1);
        if (len > 0) { to[len] = 0; OK(symlink(to, IN_IT(dirs[n]))); }
        else if (!access(dirs[n], F_OK)) {
            put_dir(IN_IT(dirs[n]));
            OK(mount(dirs[n], at, 0, MS_BIND | (dirs[n] == here_dir ? 0 : MS_REC), 0));
        }
    }
    put_dir(IN_IT("/proc"));
    OK(mount("proc", at, "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, 0));
    put_dir(IN_IT("/sys"));
    OK(mount("sysfs", at, "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_RDONLY, 0));
    if (!access("/sys/fs/cgroup", F_OK)) OK(mount("/sys/fs/cgroup", IN_IT("/sys/fs/cgroup"), 0, MS_BIND | MS_REC, 0));
    put_dir(IN_IT("/dev/pts"));
    OK(mount("devpts", at, "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620"));
    put_dir(IN_IT("/dev/mqueue"));
    OK(mount("mqueue", at, "mqueue", MS_NOSUID | MS_NODEV | MS_NOEXEC, 0));
    put_dir(IN_IT("/dev/shm"));
    OK(mount("shm", at, "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777"));
    const struct { const char *path; int minor; } nodes[] = {
        { "/dev/null", 3 }, { "/dev/zero", 5 }, { "/dev/full", 7 }, { "/dev/random", 8 }, { "/dev/urandom", 9 },
        { "/dev/tty", 0 }, { "/dev/kmsg", 11 },
    };
    umask(0);
    for (int n = 0; n < sizeof nodes / sizeof *nodes; n++) {
        int major = nodes[n].minor ? 1 : 5;
        OK(mknod(IN_IT(nodes[n].path), user ? S_IFREG : S_IFCHR | 0666, user ? 0 : major << 8 | nodes[n].minor));
        if (user) OK(mount(nodes[n].path, at, 0, MS_BIND, 0));
    }
    struct stat tun;
    if (!stat("/dev/net/tun", &tun)) {
        put_dir(IN_IT("/dev/net"));
        OK(mknod(IN_IT("/dev/net/tun"), user ? S_IFREG : tun.st_mode, user ? 0 : tun.st_rdev));
        if (user) OK(mount("/dev/net/tun", at, 0, MS_BIND, 0));
    }
    OK(symlink("pts/ptmx", IN_IT("/dev/ptmx")));
    OK(symlink("/proc/self/fd", IN_IT("/dev/fd")));
    put_dir(IN_IT("/tmp"));
    OK(chmod(at, 01777));
    put_dir(IN_IT("/mnt"));
    put_dir(IN_IT("/run"));
    put_dir(IN_IT(own));
    OK(chmod(at, 0777));
    /* A program that is nowhere in it comes along. */
    snprintf(self, sizeof self, "/proc/self/fd/%d", program);
    to[OK(readlink(self, to, sizeof to - 1))] = 0;
    if (!is_in(to, "/usr/") && !is_in(to, "/root/")) {
        int from = OK(open(self, O_RDONLY)), copy = OK(open(IN_IT("/subject"), O_WRONLY | O_CREAT, 0755));
        while (OK(sendfile(copy, from, 0, 1 << 30))) {}
        close(from);
        close(copy);
        strcpy(to, "/subject");
    } else {
        OK(mknod(IN_IT("/subject"), S_IFREG | 0644, 0));
    }
    put_dir(IN_IT("/old"));
    OK(syscall(SYS_pivot_root, root, at));
    OK(chdir(own));
    OK(umount2("/old", MNT_DETACH));
    OK(rmdir("/old"));
    umask(022);
    int out = OK(open(in_here("out"), O_WRONLY | O_APPEND)), in = OK(open("/dev/null", O_RDONLY));
    OK(dup2(in, 0)); OK(dup2(out, 1)); OK(dup2(out, 2));
    close(in); close(out); close(program);
    return OK(open(to, O_PATH | O_CLOEXEC));
}
static int init(int user, int program, char **argv) {
    extern char **environ;
    if (user) { OK(setgroups(0, 0)); OK(setresgid(0, 0, 0)); OK(setresuid(0, 0, 0)); }
    OK(prctl(PR_SET_DUMPABLE, 1));
    OK(setsid());
    OK(mount(0, "/", 0, MS_REC | MS_PRIVATE, 0));
    if (getenv("FREEZE_OWN")) program = move_out(user, program);
    else OK(mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, 0));
    struct ifreq lo = { .ifr_name = "lo", .ifr_flags = IFF_UP };
    int socket_for_it = OK(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    OK(ioctl(socket_for_it, SIOCSIFFLAGS, &lo));
    OK(close(socket_for_it));
    int subject = OK(fork()), status = 0, pid;
    if (!subject) { OK(setsid()); OK(syscall(SYS_execveat, program, "", argv, environ, AT_EMPTY_PATH)); }
    OK(close(program));
    while ((pid = waitpid(-1, &status, 0)) != subject) {}
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
int main(int argc, char **argv) {
    int user = !strcmp(argv[1], "user"), program = OK(open(argv[2], O_PATH | O_CLOEXEC)), go[2];
    OK(pipe2(go, O_CLOEXEC));
    int flags = CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET | (user ? CLONE_NEWUSER : 0);
    int pid = OK(syscall(SYS_clone, flags | SIGCHLD, 0, 0, 0, 0));
    if (!pid) {
        char byte;
        close(go[1]);
        SAME(read(go[0], &byte, 1), 0);
        close(go[0]);
        return init(user, program, argv + 2);
    }
    char path[64], text[64];
    if (user) {
        snprintf(path, sizeof path, "/proc/%d/uid_map", pid);
        put(path, "0 100000 100000\n");
        snprintf(path, sizeof path, "/proc/%d/gid_map", pid);
        put(path, "0 200000 100000\n");
        OK(chown(here_dir, 100000, 200000));
        OK(chown(in_here("out"), 100000, 200000));
    }
    snprintf(text, sizeof text, "%d", pid);
    put(in_here("init"), text);
    return 0;
}
"#;
