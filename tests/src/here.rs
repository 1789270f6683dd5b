//! The hole in the middle of a subject: it says that it is ready, and waits to be told to go on.

use nix::errno::Errno;
use nix::sys::stat::{Mode, SFlag, mknod};
use std::path::PathBuf;
use std::time::Duration;

/// The variable that names the directory in which subject and test meet.
pub const HERE: &str = "FREEZE_HERE";

/// What a subject written in Rust is given.
#[derive(Debug)]
pub struct Here {
    dir: PathBuf,
    ready: PathBuf,
    go: PathBuf,
}

impl Here {
    /// As the environment says, in the subject.
    pub(crate) fn from_env() -> Here {
        let dir = PathBuf::from(std::env::var_os(HERE).expect("the harness names a directory"));
        Here {
            ready: dir.join("ready"),
            go: dir.join("go"),
            dir: std::env::var_os("FREEZE_OWN").map_or(dir, PathBuf::from),
        }
    }

    /// A directory of the subject's own, which is gone after the test.
    pub fn dir(&self) -> &std::path::Path {
        &self.dir
    }

    /// Says that everything is set up, and waits. The process that returns from this may be a restored one.
    pub fn freeze_here(&self) {
        // Without a descriptor, which whoever sees the file might still find open.
        let made = mknod(&self.ready, SFlag::S_IFREG, Mode::from_bits_truncate(0o666), 0);
        assert!(matches!(made, Ok(()) | Err(Errno::EEXIST)), "{made:?}");
        while !self.go.exists() {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// `here.h` for subjects in C: the hole, and checks that say what failed.
pub const C: &str = r#"
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* Ends the subject, saying where and with which errno. */
#define DIE(...) do { fprintf(stderr, "%s:%d: ", __FILE__, __LINE__); fprintf(stderr, __VA_ARGS__); \
    fprintf(stderr, " (errno %d: %s)\n", errno, strerror(errno)); fflush(stderr); _exit(99); } while (0)
/* For what this machine does not have: the test counts as skipped, for this reason. */
#define WITHOUT(what) do { fprintf(stderr, "WITHOUT %s\n", what); fflush(stderr); freeze_here(); exit(0); } while (0)
#define CHECK(x) do { if (!(x)) DIE("not so: %s", #x); } while (0)
#define SAME(a, b) do { long long _a = (long long)(a), _b = (long long)(b); \
    if (_a != _b) DIE("%s is %lld and not %lld", #a, _a, _b); } while (0)
/* A system call that must not fail; its value. */
#define OK(x) ({ __typeof__(x) _r = (x); if (_r == (__typeof__(x))-1) DIE("%s failed", #x); _r; })

static char here_ready[PATH_MAX], here_go[PATH_MAX], here_dir[PATH_MAX];

__attribute__((constructor)) static void here_start(void) {
    const char *dir = getenv("FREEZE_HERE");
    if (!dir) { fprintf(stderr, "no FREEZE_HERE\n"); _exit(98); }
    /* In a root of its own it has its files there, and meets the test where the host's are. */
    const char *own = getenv("FREEZE_OWN");
    snprintf(here_dir, sizeof here_dir, "%s", own && !access("/subject", F_OK) ? own : dir);
    snprintf(here_ready, sizeof here_ready, "%.4000s/ready", dir);
    snprintf(here_go, sizeof here_go, "%.4000s/go", dir);
}

/* Sleeps although signals come. */
static inline void nap(long ms) {
    struct timespec t = { ms / 1000, ms % 1000 * 1000000 };
    while (nanosleep(&t, &t) && errno == EINTR) {}
}

/* Whether a process, by its directory in /proc, or one that descends from it has a thread that wants to run. */
static inline int awake(const char *process, int depth) {
    char path[100], text[4096];
    snprintf(path, sizeof path, "/proc/%s/task", process);
    int is_awake = 0, dir = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dir < 0) return 0;
    for (long got; !is_awake && (got = syscall(SYS_getdents64, dir, text, sizeof text)) > 0;) {
        for (long at = 0; !is_awake && at < got;) {
            struct { uint64_t ino; int64_t off; uint16_t len; uint8_t kind; char name[]; } *entry = (void *)(text + at);
            at += entry->len;
            if (entry->name[0] == '.') continue;
            char found[2048], *end;
            snprintf(path, sizeof path, "%.20s/stat", entry->name);
            int file = openat(dir, path, O_RDONLY | O_CLOEXEC);
            ssize_t n = file < 0 ? 0 : read(file, found, sizeof found - 1);
            close(file);
            found[n > 0 ? n : 0] = 0;
            /* The one that asks runs. */
            if (atoi(entry->name) != gettid() && (end = strrchr(found, ')')) && end[1] && end[2] == 'R') is_awake = 1;
            snprintf(path, sizeof path, "%.20s/children", entry->name);
            file = openat(dir, path, O_RDONLY | O_CLOEXEC);
            n = file < 0 ? 0 : read(file, found, sizeof found - 1);
            close(file);
            found[n > 0 ? n : 0] = 0;
            for (char *kid = strtok_r(found, " \n", &end); kid && !is_awake && depth < 20; kid = strtok_r(0, " \n", &end))
                is_awake = awake(kid, depth + 1);
        }
    }
    close(dir);
    return is_awake;
}

/* Sleeps at least so long, and until all that were started have gone as far as they do by themselves: on a busy machine
 * the first steps of a thread can take a while. What never rests is waited for half a second. */
static inline void rest(long ms) {
    nap(ms);
    for (int calm = 0, looks = 0; calm < 3 && looks < 300; looks++) {
        calm = awake("self", 0) ? 0 : calm + 1;
        nap(1);
    }
}

/* Whether it lives in namespaces that the tests have made for it (house.rs): its parent is their init. */
static inline int housed(void) { return syscall(SYS_getppid) == 1; }

/* Whether the go-ahead has been given, for processes and threads beside the one that waits for it. */
static inline int gone_ahead(void) { return syscall(SYS_access, here_go, F_OK) == 0; }

static inline void freeze_here(void) {
    /* Without a descriptor, which whoever sees the file might still find open. */
    if (mknod(here_ready, S_IFREG | 0666, 0) && errno != EEXIST) DIE("mknod");
    while (!gone_ahead()) nap(2);
}

/* Whether it has a root of its own, and its files there are others after a restore. */
static inline int rooted(void) { return !access("/subject", F_OK); }

/* A file that is the host's in any case: beside what the test is met by. */
static inline char *outside(const char *name) {
    static _Thread_local char path[PATH_MAX];
    snprintf(path, sizeof path, "%.*s/%.1000s", (int)(strrchr(here_go, '/') - here_go), here_go, name);
    return path;
}

static inline char *in_here(const char *name) {
    static _Thread_local char path[PATH_MAX];
    snprintf(path, sizeof path, "%.2000s/%.1000s", here_dir, name);
    return path;
}
"#;

/// What goes before the text of a subject in Python.
pub const PYTHON: &str = r#"
import os, sys, time
MEET = os.environ["FREEZE_HERE"]
HERE = os.environ.get("FREEZE_OWN", MEET)
def gone_ahead():
    return os.path.exists(MEET + "/go")
def freeze_here():
    try:
        # Without a descriptor, which whoever sees the file might still find open.
        os.mknod(MEET + "/ready")
    except FileExistsError:
        pass
    while not gone_ahead():
        time.sleep(0.002)
"#;
