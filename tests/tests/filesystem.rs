//! Conformance of working directory, root directory and umask.

use freeze_tests::subject::{Running, output};
use freeze_tests::{c, conformance, freeze, python};

conformance!(
    places,
    c(r#"
/* Relative names, a file's mode and a child's root are as they were. */
int main(void) {
    OK(mkdir(in_here("deep"), 0755));
    OK(mkdir(in_here("deep/er"), 0700));
    OK(chdir(in_here("deep/er")));
    umask(027);
    int pid = OK(fork());
    if (!pid) {
        OK(chroot(in_here("deep")));
        OK(chdir("/er"));
        /* `go` lies outside now: the parent tells by a file that lies inside. */
        while (access("/told", F_OK)) nap(2);
        char where[64];
        CHECK(getcwd(where, sizeof where));
        if (strcmp(where, "/er")) DIE("it is in %s", where);
        OK(access("/../er", F_OK));
        _exit(0);
    }
    rest(20);
    freeze_here();
    char where[PATH_MAX];
    CHECK(getcwd(where, sizeof where) && !strcmp(where + strlen(where) - 8, "/deep/er"));
    struct stat st;
    OK(fstat(OK(open("made", O_CREAT | O_WRONLY, 0777)), &st));
    SAME(st.st_mode & 0777, 0750);
    close(OK(open("../told", O_CREAT | O_WRONLY, 0600)));
    int status;
    OK(waitpid(pid, &status, 0));
    SAME(status, 0);
}
"#)
);

conformance!(
    removed_root,
    c(r#"
/* chroot into a directory that was removed; root and cwd */
int main(void){
  OK(mkdir(in_here("jail"),0755)); OK(mkdir(in_here("jail/in"),0755));
  char *j=strdup(in_here("jail")); int meet=OK(open(outside("."),O_PATH));
  int keep=OK(open(here_dir,O_PATH));
  int pid=OK(fork());
  if(!pid){ OK(chroot(j)); OK(chdir("/in")); OK(fchdir(keep)); OK(rmdir("jail/in")); OK(rmdir("jail")); 
    while(faccessat(meet,"go",F_OK,0)) nap(2);
    CHECK(open("/x",O_CREAT|O_WRONLY,0600)==-1); struct stat st; OK(stat("/",&st)); OK(fstatat(keep,".",&st,0)); _exit(0);}
  rest(30);
  freeze_here(); int st; OK(waitpid(pid,&st,0)); SAME(st,0); return 0; }
"#)
);

// What bubblewrap gives a program for a root: part of a file system in memory, the rest of which nobody sees any more.
conformance!(
    part_for_a_root,
    c(r#"
#include <dirent.h>
#include <sys/mount.h>
int main(void) {
    OK(unshare(CLONE_NEWNS));
    OK(mount(0, "/", 0, MS_PRIVATE | MS_REC, 0));
    OK(mount("base", "/mnt", "tmpfs", 0, "mode=755"));
    OK(mkdir("/mnt/new", 0750));
    OK(mkdir("/mnt/unseen", 0755));
    OK(mount("/mnt/new", "/mnt/new", 0, MS_BIND | MS_REC, 0));
    char inside[PATH_MAX], *met = outside("");
    met[strlen(met) - 1] = 0;
    snprintf(inside, sizeof inside, "/mnt/new%s", met);
    for (char *at = inside + strlen("/mnt/new/"); at; at = strchr(at + 1, '/')) {
        char was = *at;
        if (was == '/') { *at = 0; mkdir(inside, 0755); *at = was; }
    }
    OK(mkdir(inside, 0755));
    OK(mount(met, inside, 0, MS_BIND, 0));
    OK(mkdir("/mnt/new/old", 0700));
    OK(chdir("/mnt/new"));
    OK(syscall(SYS_pivot_root, ".", "old"));
    OK(chdir("/"));
    OK(umount2("/old", MNT_DETACH));
    OK(rmdir("/old"));
    int file = OK(open("/name", O_CREAT | O_RDWR, 0640));
    SAME(write(file, "box", 3), 3);
    freeze_here();
    struct stat s;
    OK(stat("/", &s));
    SAME(s.st_mode & 07777, 0750);
    char text[9];
    SAME(pread(file, text, 9, 0), 3);
    CHECK(!memcmp(text, "box", 3));
    OK(access("/name", F_OK));
    CHECK(access("/new", F_OK) && access("/unseen", F_OK) && access("/proc", F_OK));
    return 0;
}
"#)
);

// A file is mounted on another and then removed, or another one put in its place: containers have it so with their
// resolv.conf and with what systemd-nspawn makes for them.
conformance!(
    mounted_and_removed,
    c(r#"
#include <sys/mount.h>
static void make(const char *name, const char *text) {
    int fd = OK(open(in_here(name), O_CREAT | O_WRONLY, 0640));
    SAME(write(fd, text, strlen(text)), (long)strlen(text));
    OK(close(fd));
}
static void put(const char *what, const char *on) {
    char from[PATH_MAX];
    strcpy(from, in_here(what));
    OK(mount(from, in_here(on), 0, MS_BIND, 0));
}
static void expect(const char *name, const char *text) {
    char got[64];
    int fd = OK(open(in_here(name), O_RDONLY));
    SAME(read(fd, got, sizeof got), (long)strlen(text));
    CHECK(!memcmp(got, text, strlen(text)));
    struct stat s;
    OK(fstat(fd, &s));
    SAME(s.st_mode & 0777, 0640);
    SAME(s.st_nlink, 0);
    OK(close(fd));
}
int main(void) {
    OK(unshare(CLONE_NEWNS));
    OK(mount(0, "/", 0, MS_PRIVATE | MS_REC, 0));
    OK(mkdir(in_here("m"), 0755));
    OK(mount("some", in_here("m"), "tmpfs", 0, 0));
    make("on1", ""); make("on2", ""); make("on3", "");
    make("m/f", "in memory");
    make("g", "on disk");
    OK(mkfifo(in_here("m/p"), 0600));
    put("m/f", "on1"); put("g", "on2"); put("m/p", "on3");
    OK(unlink(in_here("m/f"))); OK(unlink(in_here("g"))); OK(unlink(in_here("m/p")));
    make("g", "another");
    freeze_here();
    expect("on1", "in memory");
    expect("on2", "on disk");
    struct stat s;
    OK(stat(in_here("on3"), &s));
    CHECK(S_ISFIFO(s.st_mode));
    CHECK(access(in_here("m/f"), F_OK));
    OK(umount2(in_here("on1"), MNT_DETACH));
    OK(umount2(in_here("on2"), MNT_DETACH)); OK(umount2(in_here("on3"), MNT_DETACH));
    OK(umount2(in_here("m"), MNT_DETACH));
    return 0;
}
"#)
);

/// A path that no call takes cannot be told, so it is refused, with the object: a working directory, and an open file.
#[test]
fn a_path_longer_than_any_call_takes() {
    let deep = r#"
import os
for _ in range(25):
    os.mkdir("d" * 200)
    os.chdir("d" * 200)
file = open("file", "w")
if STAYS:
    file.close()
else:
    os.chdir("/")
freeze_here()
"#;
    for (stays, object) in [("True", "cwd"), ("False", "fd/")] {
        let mut running = Running::start(&python(&deep.replace("STAYS", stays)), "a_path_longer");
        let checked = output(freeze().arg("check").arg(running.pid.to_string()));
        let said = String::from_utf8_lossy(&checked.stderr).into_owned();
        assert_eq!(checked.status.code(), Some(3), "{said}");
        let named = format!("  /proc/{}/{object}", running.pid);
        assert!(
            said.contains(&named) && said.contains("more than 4096 bytes"),
            "{said}"
        );
        running.verdict();
    }
}
