//! Conformance of open directories: where reading them stood, O_PATH, and what is relative to them.

use freeze_tests::{c, conformance};

conformance!(
    directories,
    c(r#"
#include <dirent.h>
/* A listing goes on where it was, and names are found relative to what was open. */
int main(void) {
    char name[32];
    OK(mkdir(in_here("d"), 0700));
    for (int i = 0; i < 20; i++) { snprintf(name, sizeof name, "d/%d", i); close(OK(open(in_here(name), O_CREAT | O_WRONLY, 0600))); }
    int fd = OK(open(in_here("d"), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    DIR *dir = fdopendir(OK(dup(fd)));
    CHECK(dir);
    int seen = 0;
    struct dirent *e;
    for (int i = 0; i < 7; i++) { e = readdir(dir); CHECK(e); seen += e->d_name[0] != '.'; }
    int raw = OK(open(in_here("d"), O_RDONLY | O_DIRECTORY));
    long position = OK(lseek(raw, 0, SEEK_CUR));
    int path = OK(open(in_here("d"), O_PATH | O_DIRECTORY));
    int root = OK(open("/", O_RDONLY | O_DIRECTORY));
    freeze_here();
    while ((e = readdir(dir))) seen += e->d_name[0] != '.';
    SAME(seen, 20);
    SAME(lseek(raw, 0, SEEK_CUR), position);
    close(OK(openat(fd, "7", O_RDONLY)));
    close(OK(openat(path, "8", O_RDONLY)));
    close(OK(openat(root, "proc", O_RDONLY)));
    SAME(fcntl(fd, F_GETFD), FD_CLOEXEC);
}
"#)
);

conformance!(
    removed,
    c(r#"
/* removed dirs: open, cwd, nested, with files */
int main(void){
  umask(0);
  char *a=strdup(in_here("a")),*b=strdup(in_here("a/b"));
  OK(mkdir(a,0751)); OK(mkdir(b,0705));
  int fa=OK(open(a,O_RDONLY|O_DIRECTORY)), fb=OK(open(b,O_PATH));
  int f=OK(open(in_here("a/b/file"),O_RDWR|O_CREAT,0604)); SAME(write(f,"hello",5),5);
  OK(unlink(in_here("a/b/file")));
  OK(chdir(b)); OK(rmdir(b)); OK(rmdir(a));
  struct stat pa,pb; OK(fstat(fa,&pa)); OK(fstat(fb,&pb));
  /* re-created */
  OK(mkdir(a,0700));
  freeze_here();
  struct stat st,s2; char buf[100];
  OK(fstat(fa,&st)); SAME(st.st_nlink,pa.st_nlink); SAME(st.st_mode&07777,0751); SAME(st.st_mtim.tv_sec,pa.st_mtim.tv_sec);
  OK(fstat(fb,&st)); SAME(st.st_mode&07777,0705);
  OK(stat(".",&s2)); SAME(s2.st_ino,st.st_ino);
  CHECK(!getcwd(buf,100)&&errno==ENOENT);
  CHECK(open("x",O_CREAT|O_WRONLY,0600)==-1&&errno==ENOENT);
  SAME(pread(f,buf,100,0),5); OK(fstat(f,&st)); SAME(st.st_nlink,0);
  OK(fstatat(fb,"..",&st,0)); OK(fstat(fa,&s2)); SAME(st.st_ino,s2.st_ino);
  OK(rmdir(a));
  return 0;
}
"#)
);

conformance!(
    notified,
    c(r#"
/* Signals for what happens in a directory (F_NOTIFY), again and again, and with the descriptor's number. */
static volatile int count, through;
static void on_signal(int n, siginfo_t *info, void *u) { count++; through = info->si_fd; }
int main(void) {
    char *d = strdup(in_here("d"));
    OK(mkdir(d, 0700));
    int dir = OK(open(d, O_RDONLY | O_DIRECTORY)), plain = OK(open(d, O_RDONLY | O_DIRECTORY));
    struct sigaction act = { .sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_RESTART };
    OK(sigaction(SIGRTMIN + 4, &act, 0));
    OK(fcntl(dir, F_SETSIG, SIGRTMIN + 4));
    OK(fcntl(dir, F_NOTIFY, DN_CREATE | DN_RENAME | DN_MULTISHOT));
    OK(fcntl(plain, F_SETOWN, getpid()));
    freeze_here();
    SAME(count, 0);
    close(OK(open(in_here("d/a"), O_CREAT | O_WRONLY, 0600)));
    SAME(count, 1);
    SAME(through, dir);
    char *a = strdup(in_here("d/a")), *b = strdup(in_here("d/b"));
    OK(rename(a, b));
    int after = count;
    CHECK(after > 1);
    OK(chmod(b, 0644));
    OK(unlink(b));
    SAME(count, after);
    SAME(fcntl(plain, F_GETOWN), getpid());
}
"#)
);

conformance!(
    unmounted_meanwhile,
    c(r#"
#include <sys/mount.h>
/* A file, a directory and the working directory on a mount that was taken off while it was in use (umount -l). */
int main(void) {
    OK(unshare(CLONE_NEWNS));
    OK(mount(0, "/", 0, MS_REC | MS_PRIVATE, 0));
    char source[PATH_MAX], at[PATH_MAX], text[5] = "";
    strcpy(source, outside("source"));
    strcpy(at, outside("at"));
    OK(mkdir(source, 0755));
    OK(mkdir(at, 0755));
    OK(mkdir(outside("source/d"), 0755));
    OK(mount(source, at, 0, MS_BIND, 0));
    int file = OK(open(outside("at/f"), O_CREAT | O_RDWR, 0600));
    OK(write(file, "data", 4));
    OK(chdir(outside("at/d")));
    int dir = OK(open(outside("at/d"), O_RDONLY | O_DIRECTORY));
    OK(umount2(at, MNT_DETACH));
    freeze_here();
    SAME(pread(file, text, 4, 0), 4);
    CHECK(!strcmp(text, "data"));
    struct stat s, t;
    OK(stat(".", &s));
    OK(stat(outside("source/d"), &t));
    SAME(s.st_ino, t.st_ino);
    OK(fstat(dir, &s));
    SAME(s.st_ino, t.st_ino);
    close(OK(open("new", O_CREAT | O_WRONLY, 0600)));
    OK(stat(outside("source/d/new"), &s));
}
"#),
    only: root
);
