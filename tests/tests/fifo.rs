//! Conformance of named fifos: contents, both ends, one end alone.

use freeze_tests::{c, conformance};

conformance!(
    fifos,
    c(r#"
/* What was written is read, an end without its other end stays without. */
int main(void) {
    char *path = strdup(in_here("fifo")), *lone = strdup(in_here("lone"));
    umask(0);
    OK(mkfifo(path, 0620));
    OK(mkfifo(lone, 0600));
    int r = OK(open(path, O_RDONLY | O_NONBLOCK)), w = OK(open(path, O_WRONLY));
    OK(fcntl(w, F_SETPIPE_SZ, 8192));
    OK(fcntl(r, F_SETFL, 0));
    SAME(OK(write(w, "inside", 6)), 6);
    int alone = OK(open(lone, O_RDONLY | O_NONBLOCK));
    int child = OK(fork());
    if (!child) {
        close(r);
        while (!gone_ahead()) nap(2);
        SAME(write(w, "child", 5), 5);
        _exit(0);
    }
    freeze_here();
    char buf[100];
    SAME(read(r, buf, 6), 6);
    CHECK(!memcmp(buf, "inside", 6));
    SAME(read(r, buf, 5), 5);
    SAME(fcntl(w, F_GETPIPE_SZ), 8192);
    int status;
    OK(waitpid(child, &status, 0));
    SAME(status, 0);
    close(w);
    SAME(read(r, buf, 1), 0);
    SAME(read(alone, buf, 1), 0);
    struct stat st;
    OK(stat(path, &st));
    SAME(st.st_mode & 0777, 0620);
    int late = OK(open(lone, O_WRONLY));
    SAME(write(late, "x", 1), 1);
    SAME(read(alone, buf, 1), 1);
}
"#)
);

conformance!(
    unlinked,
    c(r#"
/* unlinked fifo, both ends; xattrs and sparse big unlinked */
#include <sys/xattr.h>
int main(void){
  char buf[100]; umask(0);
  OK(mkfifo(in_here("f"),0610)); int r=OK(open(in_here("f"),O_RDONLY|O_NONBLOCK)), w=OK(open(in_here("f"),O_WRONLY)); OK(unlink(in_here("f")));
  SAME(write(w,"abc",3),3);
  int s=OK(open(in_here("s"),O_RDWR|O_CREAT,0644)); OK(ftruncate(s,6LL<<30)); SAME(pwrite(s,"tail",4,(5LL<<30)+7),4);
  int x=fsetxattr(s,"user.note","v",1,0); OK(unlink(in_here("s"))); OK(lseek(s,(5LL<<30)+7,SEEK_SET));
  struct stat a,b; OK(fstat(s,&a));
  int ro=OK(open(in_here("ro"),O_RDWR|O_CREAT,0000)); OK(chmod(in_here("ro"),0));
  int dd=OK(open(in_here("dir"),O_WRONLY|O_CREAT|O_DIRECT|O_SYNC|O_NOATIME|O_NOFOLLOW,0600)); int fl=fcntl(dd,F_GETFL);
  int nf=OK(open(in_here("nf"),O_RDWR|O_CREAT|O_NOFOLLOW|O_DSYNC,0600)); OK(unlink(in_here("nf"))); int fl2=fcntl(nf,F_GETFL);
  freeze_here();
  SAME(read(r,buf,9),3); struct stat st; OK(fstat(r,&st)); SAME(st.st_nlink,0); SAME(st.st_mode&0777,0610); close(w); SAME(read(r,buf,9),0);
  SAME(read(s,buf,4),4); CHECK(!memcmp(buf,"tail",4)); OK(fstat(s,&b)); SAME(a.st_size,b.st_size); if(b.st_blocks>a.st_blocks+16) DIE("blocks %ld",(long)b.st_blocks);
  SAME(a.st_mtim.tv_nsec,b.st_mtim.tv_nsec);
  if(!x) SAME(fgetxattr(s,"user.note",buf,9),1);
  SAME(fcntl(dd,F_GETFL),fl); SAME(fcntl(nf,F_GETFL),fl2);
  return 0;}
"#)
);

conformance!(
    packets,
    c(r#"
/* A fifo in packet mode, which was set after it was opened. */
int main(void) {
    char back[16];
    OK(mkfifo(in_here("fifo"), 0600));
    int both = OK(open(in_here("fifo"), O_RDWR));
    OK(fcntl(both, F_SETFL, O_DIRECT));
    SAME(write(both, "aaa", 3), 3);
    SAME(write(both, "bb", 2), 2);
    freeze_here();
    SAME(fcntl(both, F_GETFL) & O_DIRECT, O_DIRECT);
    SAME(read(both, back, 2), 2);
    SAME(read(both, back, 16), 2);
    SAME(back[0], 'b');
    SAME(write(both, "ccc", 3), 3);
    SAME(read(both, back, 1), 1);
    SAME(write(both, "d", 1), 1);
    SAME(read(both, back, 16), 1);
}
"#)
);

conformance!(
    never_written_to,
    c(r#"
/* A reader that never had a writer is not told of a hang-up, one whose writer has gone is; who asked for a signal gets it. */
static volatile int count, number;
static void note(int signal, siginfo_t *info, void *context) { count++; number = info->si_fd; }
static int hung_up(int fd) {
    struct pollfd one = {fd, POLLIN, 0};
    OK(poll(&one, 1, 0));
    return !!(one.revents & POLLHUP);
}
int main(void) {
    char byte, *calm = strdup(in_here("calm")), *left = strdup(in_here("left"));
    struct sigaction action = {.sa_sigaction = note, .sa_flags = SA_SIGINFO | SA_RESTART};
    OK(sigaction(SIGRTMIN + 1, &action, 0));
    OK(mkfifo(calm, 0600));
    OK(mkfifo(left, 0600));
    int a = OK(open(calm, O_RDONLY | O_NONBLOCK)), b = OK(open(left, O_RDONLY | O_NONBLOCK));
    OK(fcntl(a, F_SETPIPE_SZ, 8192));
    OK(fcntl(a, F_SETOWN, getpid()));
    OK(fcntl(a, F_SETSIG, SIGRTMIN + 1));
    OK(fcntl(a, F_SETFL, O_NONBLOCK | O_ASYNC));
    close(OK(open(left, O_WRONLY)));
    SAME(hung_up(a), 0);
    SAME(hung_up(b), 1);
    freeze_here();
    SAME(hung_up(a), 0);
    SAME(hung_up(b), 1);
    SAME(fcntl(a, F_GETPIPE_SZ), 8192);
    int writer = OK(open(calm, O_WRONLY));
    SAME(write(writer, "x", 1), 1);
    for (int i = 0; i < 1000 && !count; i++) nap(2);
    SAME(number, a);
    SAME(read(a, &byte, 1), 1);
    SAME(hung_up(a), 0);
    OK(close(writer));
    SAME(hung_up(a), 1);
}
"#)
);

conformance!(
    times,
    c(r#"
/* What waits in a fifo was written when it was written, whether it has its name still or not. */
int main(void) {
    struct timespec times[2] = {{1000000000, 1}, {2000000000, 2}};
    int fds[2];
    for (int i = 0; i < 2; i++) {
        OK(mkfifo(in_here("f"), 0600));
        fds[i] = OK(open(in_here("f"), O_RDWR));
        if (!i) OK(unlink(in_here("f")));
        SAME(write(fds[i], "waits", 5), 5);
        OK(futimens(fds[i], times));
    }
    freeze_here();
    for (int i = 0; i < 2; i++) {
        struct stat st;
        OK(fstat(fds[i], &st));
        SAME(st.st_atim.tv_sec, 1000000000);
        SAME(st.st_mtim.tv_sec, 2000000000);
        SAME(st.st_mtim.tv_nsec, 2);
        char text[9];
        SAME(read(fds[i], text, 9), 5);
    }
}
"#)
);
