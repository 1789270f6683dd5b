//! Conformance of regular files: positions, flags, unlinked ones, shared descriptions, locks of every kind.

use freeze_tests::cycle::{checkpoint_now, request};
use freeze_tests::subject::output;
use freeze_tests::{Running, c, conformance, freeze};
use freeze_user::precopy::Trackings;
use freeze_user::sys::fault;
use std::time::{Duration, Instant};

conformance!(
    positions,
    c(r#"
/* Positions, append mode, read-only, write-only, with odd names. */
int main(void) {
    char back[64];
    int rw = OK(open(in_here("a name with spaces and \303\266 (deleted)"), O_RDWR | O_CREAT, 0640));
    SAME(write(rw, "0123456789", 10), 10);
    OK(lseek(rw, 4, SEEK_SET));
    int ro = OK(open(in_here("a name with spaces and \303\266 (deleted)"), O_RDONLY | O_CLOEXEC));
    OK(lseek(ro, 8, SEEK_SET));
    int app = OK(open(in_here("log"), O_WRONLY | O_CREAT | O_APPEND | O_NONBLOCK, 0600));
    SAME(write(app, "one\n", 4), 4);
    int past = OK(open(in_here("sparse"), O_RDWR | O_CREAT | O_TRUNC | O_EXCL, 0600));
    OK(lseek(past, 1LL << 40, SEEK_SET));
    int line = OK(open(in_here("new\nline"), O_RDWR | O_CREAT, 0600));
    SAME(write(line, "q", 1), 1);
    freeze_here();
    SAME(read(rw, back, 3), 3);
    CHECK(!memcmp(back, "456", 3));
    SAME(read(ro, back, 9), 2);
    SAME(fcntl(ro, F_GETFD), FD_CLOEXEC);
    CHECK(write(ro, "x", 1) == -1 && errno == EBADF);
    OK(lseek(app, 0, SEEK_SET));
    SAME(write(app, "two\n", 4), 4);
    struct stat st;
    OK(fstat(app, &st));
    SAME(st.st_size, 8);
    SAME(lseek(past, 0, SEEK_CUR), 1LL << 40);
    SAME(lseek(line, 0, SEEK_CUR), 1);
}
"#)
);

conformance!(
    unlinked,
    c(r#"
/* Files without a name keep their contents, holes, mode and times; two descriptions of one are of one file. */
int main(void) {
    char page[4096], back[4096];
    memset(page, 'u', sizeof page);
    int fd = OK(open(in_here("gone"), O_RDWR | O_CREAT, 0604));
    SAME(pwrite(fd, page, 4096, 0), 4096);
    SAME(pwrite(fd, page, 5, 1 << 20), 5);
    OK(ftruncate(fd, (1 << 21) + 3));
    OK(lseek(fd, 100, SEEK_SET));
    int second = OK(open(in_here("gone"), O_RDONLY));
    struct timespec times[2] = { { 1000000000, 5 }, { 1100000000, 7 } };
    OK(futimens(fd, times));
    OK(unlink(in_here("gone")));
    /* A new file under the old name is somebody else's. */
    int other = OK(open(in_here("gone"), O_RDWR | O_CREAT, 0600));
    SAME(write(other, "other", 5), 5);
    close(other);
    freeze_here();
    struct stat st;
    OK(fstat(fd, &st));
    SAME(st.st_size, (1 << 21) + 3);
    SAME(st.st_mode & 07777, 0604);
    SAME(st.st_mtim.tv_sec, 1100000000);
    SAME(st.st_nlink, 0);
    SAME(read(fd, back, 4096), 4096);
    CHECK(!memcmp(back, page, 3996) && !back[3996]);
    SAME(pread(fd, back, 10, 1 << 20), 10);
    CHECK(!memcmp(back, "uuuuu\0\0\0\0\0", 10));
    SAME(pwrite(fd, "new", 3, 0), 3);
    SAME(read(second, back, 3), 3);
    CHECK(!memcmp(back, "new", 3));
    other = OK(open(in_here("gone"), O_RDONLY));
    SAME(read(other, back, 9), 5);
}
"#)
);

conformance!(
    shared_positions,
    c(r#"
/* What was duplicated, in a process or over a fork, moves together; what was opened twice does not. */
int main(void) {
    int a = OK(open(in_here("f"), O_RDWR | O_CREAT, 0600));
    SAME(write(a, "abcdefghij", 10), 10);
    OK(lseek(a, 0, SEEK_SET));
    int b = OK(dup2(a, 100));
    int c = OK(open(in_here("f"), O_RDONLY));
    int pid = OK(fork());
    if (!pid) {
        char x;
        while (!gone_ahead()) nap(2);
        SAME(read(b, &x, 1), 1);
        SAME(x, 'a');
        SAME(read(c, &x, 1), 1);
        SAME(x, 'a');
        _exit(0);
    }
    freeze_here();
    int status;
    OK(waitpid(pid, &status, 0));
    SAME(status, 0);
    SAME(lseek(a, 0, SEEK_CUR), 1);
    OK(lseek(b, 7, SEEK_SET));
    SAME(lseek(a, 0, SEEK_CUR), 7);
    SAME(lseek(c, 0, SEEK_CUR), 1);
}
"#)
);

conformance!(
    locks,
    c(r#"
/* flock, POSIX and OFD locks are held as before, against others and by the same owners. */
static void must_refuse(int fd, int command, struct flock *lock) {
    CHECK(fcntl(fd, command, lock) == -1 && (errno == EAGAIN || errno == EACCES));
}
int main(void) {
    int ex = OK(open(in_here("flock"), O_RDWR | O_CREAT, 0600));
    OK(flock(ex, LOCK_EX));
    int sh = OK(open(in_here("shared"), O_RDONLY | O_CREAT, 0600));
    OK(flock(sh, LOCK_SH));
    int posix = OK(open(in_here("posix"), O_RDWR | O_CREAT, 0600));
    struct flock w = { .l_type = F_WRLCK, .l_start = 10, .l_len = 20 }, r = { .l_type = F_RDLCK, .l_start = 100, .l_len = 0 };
    OK(fcntl(posix, F_SETLK, &w));
    OK(fcntl(posix, F_SETLK, &r));
    int ofd = OK(open(in_here("ofd"), O_RDWR | O_CREAT, 0600));
    struct flock o = { .l_type = F_WRLCK, .l_start = 5, .l_len = 5 };
    OK(fcntl(ofd, F_OFD_SETLK, &o));
    freeze_here();
    int other = OK(open(in_here("flock"), O_RDWR));
    CHECK(flock(other, LOCK_SH | LOCK_NB) == -1 && errno == EWOULDBLOCK);
    OK(flock(ex, LOCK_UN));
    OK(flock(other, LOCK_SH | LOCK_NB));
    other = OK(open(in_here("shared"), O_RDWR));
    OK(flock(other, LOCK_SH | LOCK_NB));
    CHECK(flock(other, LOCK_EX | LOCK_NB) == -1 && errno == EWOULDBLOCK);
    other = OK(open(in_here("ofd"), O_RDWR));
    must_refuse(other, F_OFD_SETLK, &o);
    int pid = OK(fork());
    if (!pid) {
        struct flock ask = { .l_type = F_WRLCK, .l_start = 29, .l_len = 1 };
        must_refuse(posix, F_SETLK, &ask);
        OK(fcntl(posix, F_GETLK, &ask));
        SAME(ask.l_pid, getppid());
        SAME(ask.l_start, 10);
        SAME(ask.l_len, 20);
        struct flock free = { .l_type = F_WRLCK, .l_start = 30, .l_len = 70 };
        OK(fcntl(posix, F_SETLK, &free));
        struct flock end = { .l_type = F_WRLCK, .l_start = 5000, .l_len = 1 };
        must_refuse(posix, F_SETLK, &end);
        end.l_type = F_RDLCK;
        OK(fcntl(posix, F_SETLK, &end));
        /* The OFD lock came over the fork with its description. */
        struct flock mine = { .l_type = F_WRLCK, .l_start = 5, .l_len = 5 };
        OK(fcntl(ofd, F_OFD_SETLK, &mine));
        _exit(0);
    }
    int status;
    OK(waitpid(pid, &status, 0));
    SAME(status, 0);
}
"#)
);

conformance!(
    other_names,
    c(r#"
/* hard-linked elsewhere, several names of one inode, tmpfile */
int main(void){
  char buf[100];
  int f=OK(open(in_here("x"),O_RDWR|O_CREAT,0604)); SAME(write(f,"hello",5),5);
  OK(link(in_here("x"),strdup(in_here("y"))));
  OK(mkdir(in_here("sub"),0700));
  struct stat a,b;
  char *z=strdup(in_here("sub/z")); OK(link(in_here("x"),z));
  int g=OK(open(in_here("y"),O_RDONLY));
  OK(unlink(in_here("x")));OK(unlink(in_here("y")));
  int h=OK(open(in_here("m"),O_RDWR|O_CREAT,0604)); SAME(write(h,"mm",2),2);
  OK(link(in_here("m"),strdup(in_here("n"))));
  int i=OK(open(in_here("n"),O_RDWR|O_APPEND));
  OK(unlink(in_here("m")));OK(unlink(in_here("n")));
  int t=OK(open(here_dir,O_TMPFILE|O_RDWR,0640)); SAME(write(t,"tmp",3),3);
  char pp[64]; sprintf(pp,"/proc/self/fd/%d",t);
  int t2=OK(open(pp,O_RDONLY));
  int w=OK(open(in_here("ren"),O_RDWR|O_CREAT,0600)); OK(rename(in_here("ren"),strdup(in_here("ren (deleted)"))));
  int fl=fcntl(t,F_GETFL);
  int only=OK(open(here_dir,O_TMPFILE|O_WRONLY|O_SYNC|O_APPEND,0600)),how=fcntl(only,F_GETFL); SAME(write(only,"end",3),3);
  freeze_here();
  SAME(fcntl(only,F_GETFL),how); SAME(write(only,"!",1),1); OK(fstat(only,&a)); SAME(a.st_size,4);
  OK(fstat(f,&a)); SAME(a.st_nlink,1); OK(stat(z,&b)); SAME(a.st_ino,b.st_ino); OK(fstat(g,&b)); SAME(a.st_ino,b.st_ino);
  SAME(write(f," world",6),6); SAME(pread(g,buf,99,0),11);
  OK(fstat(h,&a)); OK(fstat(i,&b)); SAME(a.st_ino,b.st_ino); SAME(a.st_nlink,0); SAME(write(i,"zz",2),2); SAME(pread(h,buf,9,0),4);
  OK(fstat(t2,&a)); SAME(a.st_nlink,0); SAME(pread(t2,buf,9,0),3); SAME(fcntl(t,F_GETFL),fl);
  OK(linkat(AT_FDCWD,pp,AT_FDCWD,in_here("tmp"),AT_SYMLINK_FOLLOW));
  OK(fstat(t,&a)); SAME(a.st_nlink,1); SAME(a.st_mode&0777,0640);
  OK(fstat(w,&a)); OK(stat(in_here("ren (deleted)"),&b)); SAME(a.st_ino,b.st_ino);
  CHECK(access(in_here("x"),F_OK)&&access(in_here("y"),F_OK)&&access(in_here("m"),F_OK));
  return 0;
}
"#)
);

conformance!(
    leases,
    c(r#"
/* leases, flock on dir/fifo, fowner */
static volatile int got; static void h(int s, siginfo_t*i,void*u){got=s;}
int main(void){
  umask(0);
  int a=OK(open(in_here("a"),O_RDWR|O_CREAT,0600)); close(a);
  a=OK(open(in_here("a"),O_RDONLY)); OK(fcntl(a,F_SETLEASE,F_RDLCK));
  int b=OK(open(in_here("b"),O_RDWR|O_CREAT,0600)); OK(fcntl(b,F_SETLEASE,F_WRLCK)); OK(fcntl(b,F_SETSIG,SIGUSR1));
  int d=OK(open(here_dir,O_RDONLY|O_DIRECTORY)); OK(flock(d,LOCK_EX));
  struct sigaction sa={.sa_sigaction=h,.sa_flags=SA_SIGINFO}; sigaction(SIGUSR1,&sa,0); sigaction(SIGIO,&sa,0);
  /* breaking */
  int c=OK(open(in_here("c"),O_RDWR|O_CREAT,0600)); OK(fcntl(c,F_SETLEASE,F_WRLCK));
  CHECK(open(in_here("c"),O_RDONLY|O_NONBLOCK)==-1&&errno==EWOULDBLOCK); nap(5); CHECK(got==SIGIO); got=0;
  int gc=fcntl(c,F_GETLEASE);
  freeze_here();
  SAME(fcntl(a,F_GETLEASE),F_RDLCK); SAME(fcntl(b,F_GETLEASE),F_WRLCK); SAME(fcntl(c,F_GETLEASE),gc); SAME(got,0);
  CHECK(open(in_here("b"),O_RDONLY|O_NONBLOCK)==-1&&errno==EWOULDBLOCK); nap(5); SAME(got,SIGUSR1);
  int e=OK(open(here_dir,O_RDONLY)); CHECK(flock(e,LOCK_EX|LOCK_NB)==-1);
  CHECK(open(in_here("c"),O_RDONLY|O_NONBLOCK)==-1&&errno==EWOULDBLOCK); 
  OK(fcntl(c,F_SETLEASE,F_UNLCK)); OK(open(in_here("c"),O_RDONLY|O_NONBLOCK));
  return 0;
}
"#)
);

conformance!(
    waiting_for_locks,
    c(r#"
/* posix locks over processes, waiting; flock waiters */
int main(void){
  int f=OK(open(in_here("l"),O_RDWR|O_CREAT,0600)); struct flock l={.l_type=F_WRLCK,.l_start=0,.l_len=10};
  OK(fcntl(f,F_SETLK,&l)); int g=OK(open(in_here("g"),O_RDWR|O_CREAT,0600)); OK(flock(g,LOCK_EX));
  int o=OK(open(in_here("o"),O_RDWR|O_CREAT,0600)); struct flock ol={.l_type=F_WRLCK}; OK(fcntl(o,F_OFD_SETLK,&ol));
  int a=OK(fork()); if(!a){ struct flock x={.l_type=F_WRLCK,.l_start=5,.l_len=10}; OK(fcntl(f,F_SETLKW,&x)); SAME(gone_ahead(),1); _exit(0);}
  int b=OK(fork()); if(!b){ int h=OK(open(in_here("g"),O_RDWR)); OK(flock(h,LOCK_SH)); SAME(gone_ahead(),1); _exit(0);}
  int d=OK(fork()); if(!d){ struct flock x={.l_type=F_RDLCK,.l_start=20,.l_len=10}; OK(fcntl(f,F_SETLK,&x)); while(!gone_ahead())nap(2); nap(50); _exit(0);}
  int e=OK(fork()); if(!e){ int h=OK(open(in_here("o"),O_RDWR)); struct flock x={.l_type=F_RDLCK}; OK(fcntl(h,F_OFD_SETLKW,&x)); SAME(gone_ahead(),1); _exit(0);}
  rest(50);
  freeze_here();
  struct flock q={.l_type=F_WRLCK,.l_start=20,.l_len=1}; OK(fcntl(f,F_GETLK,&q)); SAME(q.l_type,F_RDLCK); SAME(q.l_pid,d);
  l.l_type=F_UNLCK; OK(fcntl(f,F_SETLK,&l)); OK(flock(g,LOCK_UN)); ol.l_type=F_UNLCK; OK(fcntl(o,F_OFD_SETLK,&ol));
  int st; for(int i=0;i<4;i++){ OK(wait(&st)); SAME(st,0);} return 0; }
"#)
);

conformance!(
    kernel_files,
    c(r#"
/* proc, sys, cgroup */
#include <dirent.h>
int main(void){
  char buf[4096];
  int a=OK(open("/proc/self/maps",O_RDONLY)), b=OK(open("/proc/self",O_RDONLY|O_DIRECTORY)), c=OK(open("/proc/self/net/tcp",O_RDONLY));
  int d=OK(open("/proc/sys/kernel/ostype",O_RDONLY)), e=OK(open("/sys/kernel/mm/transparent_hugepage/enabled",O_RDONLY));
  int f=OK(open("/proc/self/fd",O_RDONLY|O_DIRECTORY)), g=OK(open("/proc/self/status",O_RDONLY)), h=OK(open("/proc/self/mem",O_RDWR));
  int i=OK(open("/proc/meminfo",O_RDONLY)); int j=OK(open("/proc/self/cmdline",O_RDONLY));

  SAME(read(i,buf,20),20); SAME(read(j,buf,3),3); int n=read(g,buf,10);
  int hold[2]; OK(pipe(hold));
  int pid=OK(fork()); if(!pid){close(hold[1]); while(read(hold[0],buf,1)); _exit(0);}
  sprintf(buf,"/proc/%d/stat",pid); int l=OK(open(buf,O_RDONLY));
  sprintf(buf,"/proc/%d",pid); int m=OK(open(buf,O_RDONLY|O_DIRECTORY));
  int o=OK(open("/proc/self/fdinfo/1",O_RDONLY)); sprintf(buf,"/proc/%d/fdinfo/%d",pid,a); int p=OK(open(buf,O_RDONLY));
  int q=OK(open(buf,O_RDONLY)); SAME(read(q,buf,4),4);
  OK(chdir("/proc/self"));
  freeze_here();
  CHECK(read(q,buf,100)>0 && !memcmp(buf,"\t",1));
  CHECK(read(o,buf,100)>0 && !memcmp(buf,"pos:",4)); CHECK(read(p,buf,100)>0 && !memcmp(buf,"pos:",4));
  SAME(read(a,buf,10),10);
  SAME(pread(d,buf,5,0),5); CHECK(!memcmp(buf,"Linux",5));
  CHECK(read(e,buf,100)>0); CHECK(read(c,buf,100)>0); CHECK(read(g,buf,100)>0); CHECK(read(i,buf,10)==10);
  CHECK(read(l,buf,100)>0); CHECK(atoi(buf)==pid);
  OK(faccessat(m,"status",F_OK,0)); OK(faccessat(b,"status",F_OK,0));
  char x='q'; SAME(pread(h,buf,1,(off_t)(long)&x),1); SAME(buf[0],'q');
  CHECK(getcwd(buf,100)); if(atoi(buf+6)!=getpid()) DIE("%s",buf);
  close(hold[1]); int st; OK(waitpid(pid,&st,0)); return 0;
}
"#)
);

conformance!(
    write_hints,
    c(r#"
/* How long data is expected to live is said of a file, also of one without a name. */
#define GET 1035
#define SET 1036
int main(void) {
    int file = OK(open(in_here("f"), O_CREAT | O_RDWR, 0600)), gone = OK(open(in_here("g"), O_CREAT | O_RDWR, 0600));
    uint64_t hint = 3;
    OK(fcntl(gone, SET, &hint));
    hint = 5;
    OK(fcntl(file, SET, &hint));
    OK(unlink(in_here("g")));
    freeze_here();
    OK(fcntl(gone, GET, &hint));
    SAME(hint, 3);
    OK(fcntl(file, GET, &hint));
    SAME(hint, 5);
}
"#)
);

conformance!(
    two_mounts,
    c(r#"
#include <sys/mount.h>
/* An unlinked file that was opened through two mounts of its file system, and through a third that shows less of it. */
int main(void) {
    OK(unshare(CLONE_NEWNS));
    OK(mount(0, "/", 0, MS_REC | MS_PRIVATE, 0));
    for (const char **d = (const char *[]){ "disk", "a", "b", 0 }; *d; d++) OK(mkdir(in_here(*d), 0755));
    OK(mount("t", in_here("disk"), "tmpfs", 0, 0));
    OK(mkdir(in_here("disk/sub"), 0755));
    char *a = strdup(in_here("a"));
    OK(mount(in_here("disk"), a, 0, MS_BIND, 0));
    char *b = strdup(in_here("b"));
    OK(mount(in_here("disk/sub"), b, 0, MS_BIND, 0));
    int one = OK(open(in_here("disk/sub/f"), O_RDWR | O_CREAT, 0600));
    int two = OK(open(in_here("a/sub/f"), O_RDWR)), three = OK(open(in_here("b/f"), O_RDONLY));
    SAME(write(one, "written", 7), 7);
    OK(unlink(in_here("b/f")));
    freeze_here();
    char back[16];
    struct stat x, y, z;
    OK(fstat(one, &x)); OK(fstat(two, &y)); OK(fstat(three, &z));
    CHECK(x.st_ino == y.st_ino && y.st_ino == z.st_ino && x.st_dev == z.st_dev);
    SAME(x.st_nlink, 0);
    SAME(write(two, "W", 1), 1);
    SAME(read(three, back, 16), 7);
    CHECK(!memcmp(back, "Written", 7));
    CHECK(access(in_here("disk/sub/f"), F_OK) == -1);
}
"#)
);

conformance!(
    unlinked_where_no_room_is,
    c(r#"
/* Unlinked files whose directory is gone and has a file or a link in its place, and one whose name cannot be longer. */
int main(void) {
    char back[9] = "", name[256];
    struct stat before, after;
    OK(mkdir(in_here("d"), 0700));
    OK(mkdir(in_here("d/e"), 0700));
    OK(mkdir(in_here("elsewhere"), 0700));
    OK(mkdir(in_here("l"), 0700));
    int file = OK(open(in_here("d/e/f"), O_RDWR | O_CREAT, 0600)), linked = OK(open(in_here("l/f"), O_RDWR | O_CREAT, 0600));
    int dir = OK(open(in_here("d/e"), O_RDONLY | O_DIRECTORY));
    SAME(write(file, "file", 4), 4);
    SAME(write(linked, "link", 4), 4);
    OK(unlink(in_here("d/e/f")));
    OK(rmdir(in_here("d/e")));
    OK(rmdir(in_here("d")));
    OK(unlink(in_here("l/f")));
    OK(rmdir(in_here("l")));
    OK(close(OK(open(in_here("d"), O_WRONLY | O_CREAT, 0600))));
    OK(symlink("elsewhere", in_here("l")));
    OK(chdir(here_dir));
    memset(name, 'n', 255);
    name[255] = 0;
    int last = OK(open(name, O_RDWR | O_CREAT, 0600));
    SAME(write(last, "last", 4), 4);
    OK(unlink(name));
    OK(close(OK(open(name, O_WRONLY | O_CREAT, 0600))));
    OK(stat(in_here("elsewhere"), &before));
    freeze_here();
    SAME(pread(file, back, 8, 0), 4);
    CHECK(!memcmp(back, "file", 4));
    SAME(pread(linked, back, 8, 0), 4);
    CHECK(!memcmp(back, "link", 4));
    SAME(pread(last, back, 8, 0), 4);
    CHECK(!memcmp(back, "last", 4));
    OK(stat(in_here("d"), &after));
    CHECK(S_ISREG(after.st_mode) && !after.st_size);
    OK(stat(name, &after));
    SAME(after.st_size, 0);
    OK(fstat(dir, &after));
    SAME(after.st_nlink, 0);
    /* What the link leads to has nothing to do with it. */
    OK(stat(in_here("elsewhere"), &after));
    /* Of a file system that is made anew nobody can set it. */
    if (!rooted()) SAME(after.st_ctim.tv_nsec, before.st_ctim.tv_nsec);
}
"#)
);

conformance!(
    flags_of_inodes,
    c(r#"
/* What chattr(1) sets: of unlinked files it comes back, one that is immutable too. */
#include <linux/fs.h>
static int flags(int fd) { int n = 0; OK(ioctl(fd, FS_IOC_GETFLAGS, &n)); return n; }
static int set(int fd, int more) { int n = flags(fd) | more; return ioctl(fd, FS_IOC_SETFLAGS, &n); }
int main(void) {
    int mild = OK(open(in_here("mild"), O_RDWR | O_CREAT, 0600)), hard = OK(open(in_here("hard"), O_RDWR | O_CREAT, 0600));
    char path[40];
    int now, has_flags = !ioctl(mild, FS_IOC_GETFLAGS, &now) && !set(mild, FS_NODUMP_FL | FS_NOATIME_FL);
    OK(unlink(in_here("mild")));
    OK(unlink(in_here("hard")));
    int may = has_flags && !set(hard, FS_IMMUTABLE_FL);
    freeze_here();
    if (has_flags) SAME(flags(mild) & (FS_NODUMP_FL | FS_NOATIME_FL), FS_NODUMP_FL | FS_NOATIME_FL);
    if (!may) return 0;
    SAME(flags(hard) & FS_IMMUTABLE_FL, FS_IMMUTABLE_FL);
    snprintf(path, sizeof path, "/proc/self/fd/%d", hard);
    CHECK(open(path, O_RDWR) == -1 && errno == EPERM);
}
"#),
    only: host
);

conformance!(
    time_of_access,
    c(r#"
/* Neither the look at a file that is mapped nor the mapping of it again shows in its time of access. */
int main(void) {
    int fd = OK(open(in_here("f"), O_RDWR | O_CREAT, 0600));
    OK(ftruncate(fd, 4096));
    CHECK(mmap(0, 4096, PROT_READ, MAP_PRIVATE, fd, 0) != MAP_FAILED);
    CHECK(mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) != MAP_FAILED);
    struct timespec old[2] = { { 1000000, 0 }, { 1000000, 0 } };
    OK(futimens(fd, old));
    freeze_here();
    struct stat st;
    OK(fstat(fd, &st));
    SAME(st.st_atime, 1000000);
    SAME(st.st_mtime, 1000000);
}
"#)
);

conformance!(
    executed_without_a_name,
    c(r#"
/* A program whose file never had a name, and one whose name is gone and which chattr(1) has marked. */
#include <linux/fs.h>
#include <sys/sendfile.h>
static void again(int fd, int reader, char *as) {
    char path[40];
    int own = OK(open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
    while (OK(sendfile(fd, own, 0, 1 << 20)) > 0) {}
    OK(fchmod(fd, 0755));
    int mark = FS_NODUMP_FL;
    if (*as == 'm') ioctl(fd, FS_IOC_SETFLAGS, &mark);
    close(fd);
    snprintf(path, sizeof path, "/proc/self/fd/%d", reader);
    execl(path, as, (char *)0);
    DIE("execl");
}
static int reopened(int fd) {
    char path[40];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    return OK(open(path, O_RDONLY | O_CLOEXEC));
}
int main(int argc, char **argv) {
    if (*argv[0] == 'm') {
        while (!gone_ahead()) nap(2);
        return 7;
    }
    if (*argv[0] == 'n') {
        int child = OK(fork()), status;
        if (!child) {
            int fd = OK(open(in_here("program"), O_RDWR | O_CREAT | O_CLOEXEC, 0700)), reader = reopened(fd);
            OK(unlink(in_here("program")));
            again(fd, reader, "marked");
        }
        rest(50);
        freeze_here();
        OK(waitpid(child, &status, 0));
        SAME(status, 7 << 8);
        return 0;
    }
    int fd = open(here_dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0700);
    if (fd < 0) fd = OK(memfd_create("program", MFD_CLOEXEC));
    again(fd, reopened(fd), "nameless");
}
"#)
);

/// By the time a file is sought at the path that it was seen at, another is there; at the next look it is another's turn.
#[test]
fn files_that_are_renamed_all_the_time() {
    let subject = c(r#"
static volatile int over;
static void *rename_files(void *unused) {
    for (int n = 0; !over; n = (n + 1) % 8) {
        static int fds[8];
        char was[PATH_MAX], is[PATH_MAX];
        snprintf(was, sizeof was, "%.2000s/was-%d", here_dir, n);
        snprintf(is, sizeof is, "%.2000s/is-%d", here_dir, n);
        int old = fds[n];
        if (old) {
            OK(rename(was, is));
            OK(unlink(is));
        }
        /* The old one is still there, so that this one has another inode. */
        fds[n] = OK(open(was, O_CREAT | O_EXCL | O_RDWR, 0600));
        if (old) OK(close(old));
        usleep(200);
    }
    return unused;
}
int main(void) {
    pthread_t thread;
    SAME(pthread_create(&thread, NULL, rename_files, NULL), 0);
    freeze_here();
    over = 1;
    SAME(pthread_join(thread, NULL), 0);
}
"#);
    let mut running = Running::start(&subject, "renaming");
    let armed = fault::meddle("seen", || std::thread::sleep(Duration::from_millis(30)));
    let image = running.dir().join("image");
    let done = checkpoint_now(&request(running.pid, image, false), &mut Trackings::new());
    drop(armed);
    done.unwrap_or_else(|e| panic!("{e}"));
    running.verdict();
}

#[test]
fn what_is_immutable_gets_no_second_name() {
    let text = r#"
#include <linux/fs.h>
int main(void) {
    char other[PATH_MAX];
    struct stat st;
    int flag = FS_IMMUTABLE_FL;
    strcpy(other, in_here("other"));
    OK(close(OK(open(other, O_WRONLY | O_CREAT, 0600))));
    OK(link(other, in_here("two")));
    int fd = OK(open(in_here("two"), O_RDONLY));
    OK(unlink(in_here("two")));
    ioctl(fd, FS_IOC_SETFLAGS, &flag);
    freeze_here();
    OK(fstat(fd, &st));
    SAME(st.st_nlink, 1);
    flag = 0;
    ioctl(fd, FS_IOC_SETFLAGS, &flag);
}
"#;
    let mut running = Running::start(&c(text), "what_is_immutable_gets_no_second_name");
    let image = running.dir().join("image").display().to_string();
    let pid = running.pid.to_string();
    let run = |words: &[&str]| {
        let done = output(freeze().args(words));
        assert!(
            done.status.success(),
            "{words:?}: {}",
            String::from_utf8_lossy(&done.stderr)
        );
    };
    run(&["checkpoint", "--kill", &pid, "--to", &image]);
    running.wait_gone();
    run(&["restore", &image, "--detach"]);
    running.verdict();
}

#[test]
fn what_cannot_be_opened_for_writing_again() {
    let text = r#"
#include <linux/fs.h>
int main(void) {
    int flag = FS_APPEND_FL, fd = OK(open(in_here("f"), O_RDWR | O_CREAT, 0600));
    OK(ftruncate(fd, 4096));
    OK(close(OK(open(in_here("ready-flag"), O_WRONLY | O_CREAT, 0600))));
    if (ioctl(fd, FS_IOC_SETFLAGS, &flag)) OK(unlink(in_here("ready-flag")));
    freeze_here();
    flag = 0;
    ioctl(fd, FS_IOC_SETFLAGS, &flag);
}
"#;
    let mut running = Running::start(&c(text), "what_cannot_be_opened_for_writing_again");
    if !running.dir().join("ready-flag").exists() {
        freeze_tests::skip!("no CAP_LINUX_IMMUTABLE, or no file system with flags");
    }
    let done = output(freeze().arg("check").arg(running.pid.to_string()));
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    running.verdict();
    assert_eq!(done.status.code(), Some(3), "{said}");
    assert!(said.contains("append-only (chattr +a)"), "{said}");
}

/// A log is written by one and followed by another: what it has grown by since is no reason to refuse the follower.
#[test]
fn a_log_and_who_follows_it() {
    let subject = c(r#"
        int main(void) {
            int log = OK(open(in_here("log"), O_WRONLY | O_CREAT | O_APPEND, 0600));
            int pid = OK(fork()), status;
            if (!pid) {
                char line[8] = "";
                int follow = OK(open(in_here("log"), O_RDONLY));
                while (!gone_ahead()) { if (read(follow, line, 5) != 5) nap(2); }
                CHECK(!strcmp(line, "line\n"));
                _exit(0);
            }
            close(OK(open(here_ready, O_CREAT | O_WRONLY, 0600)));
            while (!gone_ahead()) { SAME(write(log, "line\n", 5), 5); nap(1); }
            OK(waitpid(pid, &status, 0));
            SAME(status, 0);
        }"#);
    let mut running = Running::start(&subject, "a_log_and_who_follows_it");
    let image = running.dir().join("image");
    let size = || {
        std::fs::metadata(running.dir().join("log"))
            .expect("the log")
            .len()
    };
    let run = |arguments: &[&str]| {
        let done = output(freeze().args(arguments));
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(done.status.success(), "{said}");
    };
    let (pid, path) = (running.pid.to_string(), image.display().to_string());
    run(&["checkpoint", &pid, "--to", &path]);
    let then = size();
    let until = Instant::now() + Duration::from_secs(10);
    while size() < then + 100 && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(size() >= then + 100, "nothing was written any more");
    running.kill();
    running.wait_gone();
    run(&["restore", &path, "--detach"]);
    running.verdict();
}

conformance!(
    mounted_over,
    c(r#"
#include <sys/mount.h>
static void fill(const char *name, const char *text) {
    int fd = OK(open(name, O_WRONLY | O_CREAT | O_TRUNC, 0644));
    SAME(write(fd, text, strlen(text)), strlen(text));
    close(fd);
}
static void holds(int fd, const char *text) {
    char back[64];
    ssize_t n = OK(pread(fd, back, sizeof back - 1, 0));
    back[n] = 0;
    if (strcmp(back, text)) DIE("%s instead of %s", back, text);
}
/* In a mount namespace of its own: files and directories that are open under what was mounted on them later, of the
 * machine's file system and of one of the program's own. */
int main(void) {
    OK(unshare(CLONE_NEWNS));
    OK(mount(0, "/", 0, MS_REC | MS_PRIVATE, 0));
    OK(chdir(here_dir));
    OK(mkdir("m", 0755));
    OK(mkdir("t", 0755));
    fill("m/f", "under");
    fill("dst", "covered");
    fill("src", "bound");
    OK(mount("t", "t", "tmpfs", 0, 0));
    OK(mkdir("t/d", 0755));
    fill("t/d/f", "own");
    int under = OK(open("m/f", O_RDWR)), dir = OK(open("m", O_RDONLY | O_DIRECTORY)), dst = OK(open("dst", O_RDONLY));
    int own = OK(open("t/d/f", O_RDWR)), owndir = OK(open("t/d", O_RDONLY | O_DIRECTORY));
    OK(mount("over", "m", "tmpfs", 0, 0));
    OK(mount("over", "t/d", "tmpfs", 0, 0));
    OK(mount("src", "dst", 0, MS_BIND, 0));
    fill("m/f", "over");
    int over = OK(open("m/f", O_RDONLY)), bound = OK(open("dst", O_RDONLY));
    freeze_here();
    holds(under, "under");
    holds(over, "over");
    holds(dst, "covered");
    holds(bound, "bound");
    holds(own, "own");
    holds(OK(openat(dir, "f", O_RDONLY)), "under");
    holds(OK(openat(owndir, "f", O_RDONLY)), "own");
    SAME(pwrite(own, "O", 1, 0), 1);
    close(over);
    OK(umount("m"));
    OK(umount("t/d"));
    holds(OK(open("m/f", O_RDONLY)), "under");
    holds(OK(open("t/d/f", O_RDONLY)), "Own");
}
"#)
);

conformance!(
    who_took_a_flock,
    c(r#"
/* /proc/locks names who took a lock, also of a descriptor that a parent has too. */
static int taker(int fd) {
    char path[60], text[1000] = "", *at;
    sprintf(path, "/proc/self/fdinfo/%d", fd);
    int file = OK(open(path, O_RDONLY)), pid = 0;
    OK(read(file, text, 999));
    close(file);
    CHECK((at = strstr(text, "FLOCK  ADVISORY  WRITE ")));
    sscanf(at, "FLOCK  ADVISORY  WRITE %d", &pid);
    return pid;
}
int main(void) {
    int own = OK(open(in_here("own"), O_RDWR | O_CREAT, 0600));
    int common = OK(open(in_here("common"), O_RDWR | O_CREAT, 0600));
    OK(flock(own, LOCK_EX));
    int child = OK(fork());
    if (!child) {
        OK(flock(common, LOCK_EX));
        while (!gone_ahead()) nap(2);
        nap(100);
        _exit(0);
    }
    rest(20);
    freeze_here();
    SAME(taker(own), getpid());
    SAME(taker(common), child);
    int status;
    OK(waitpid(child, &status, 0));
    SAME(status, 0);
}
"#)
);
