//! Namespaces for a subject to live in, as a simple container has them: an init of its own, and the subject below it.

/// Where a subject lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum House {
    /// pid, mount, UTS, IPC and network namespaces of its own.
    Namespaces,
    /// The same, and a user namespace whose root is an ordinary user outside.
    User,
}

impl House {
    /// What the launcher takes for its first argument.
    pub(crate) fn word(self) -> &'static str {
        match self {
            House::Namespaces => "namespaces",
            House::User => "user",
        }
    }
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
static void put(const char *path, const char *text) {
    int fd = OK(open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0644));
    SAME(write(fd, text, strlen(text)), strlen(text));
    OK(close(fd));
}
static int init(int user, int program, char **argv) {
    extern char **environ;
    if (user) { OK(setgroups(0, 0)); OK(setresgid(0, 0, 0)); OK(setresuid(0, 0, 0)); }
    OK(prctl(PR_SET_DUMPABLE, 1));
    OK(setsid());
    OK(mount(0, "/", 0, MS_REC | MS_PRIVATE, 0));
    OK(mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, 0));
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
