//! Conformance of O_PATH descriptors of links, fifos, sockets and devices.

use freeze_tests::{c, conformance};

conformance!(
    nodes,
    c(r#"
/* O_PATH of everything */
#include <sys/un.h>
int main(void){
  char buf[4096];
  OK(symlink("target",strdup(in_here("ln"))));
  int a=OK(open(in_here("ln"),O_PATH|O_NOFOLLOW));
  OK(mkfifo(in_here("ff"),0600)); int b=OK(open(in_here("ff"),O_PATH));
  int s=OK(socket(AF_UNIX,SOCK_STREAM,0)); struct sockaddr_un u={AF_UNIX}; OK(chdir(here_dir)); strcpy(u.sun_path,"sock"); OK(bind(s,(void*)&u,sizeof u));
  int c=OK(open(in_here("sock"),O_PATH));
  close(s);
  int d=OK(open("/dev/null",O_PATH)), e=OK(open(here_dir,O_PATH|O_DIRECTORY));
  int f=OK(open(in_here("reg"),O_CREAT|O_RDWR,0600)); int g=OK(open(in_here("reg"),O_PATH));
  int h=OK(open("/dev/tty",O_PATH)); 
  OK(symlink("target2",strdup(in_here("ln2"))));
  int i=OK(open(in_here("ln2"),O_PATH|O_NOFOLLOW)); OK(unlink(in_here("ln2")));
  OK(mkfifo(in_here("f2"),0610)); int j=OK(open(in_here("f2"),O_PATH)); OK(unlink(in_here("f2")));
  int fl=fcntl(a,F_GETFL), fe=fcntl(e,F_GETFL);
  freeze_here();
  SAME(readlinkat(a,"",buf,99),6); SAME(readlinkat(i,"",buf,99),7);
  struct stat st; OK(fstat(b,&st)); CHECK(S_ISFIFO(st.st_mode)); OK(fstat(c,&st)); CHECK(S_ISSOCK(st.st_mode)); OK(fstat(d,&st)); CHECK(S_ISCHR(st.st_mode));
  OK(fstat(j,&st)); CHECK(S_ISFIFO(st.st_mode)); SAME(st.st_nlink,0); 
  OK(fstat(h,&st)); CHECK(S_ISCHR(st.st_mode));
  SAME(fl,fcntl(a,F_GETFL)); SAME(fe,fcntl(e,F_GETFL)); CHECK(read(g,buf,1)==-1&&errno==EBADF);
  return 0;
}
"#)
);

conformance!(
    made_up,
    c(r#"
/* Links of /proc, and what has no path: namespaces, sockets, memfds. */
#include <sys/mman.h>
#include <sys/socket.h>
static char path[64], text[4096];
static int of(int fd) {
    sprintf(path, "/proc/self/fd/%d", fd);
    return OK(open(path, O_PATH));
}
int main(void) {
    int child = OK(fork());
    if (!child) for (;;) pause();
    int how = O_PATH | O_NOFOLLOW;
    int exe = OK(open("/proc/self/exe", how)), cwd = OK(open("/proc/self/cwd", how)), top = OK(open("/proc/self", how));
    sprintf(path, "/proc/%d/root", child);
    int root = OK(open(path, how)), null = OK(open("/dev/null", O_RDONLY));
    sprintf(path, "/proc/self/fd/%d", null);
    int link = OK(open(path, how));
    int uts = OK(open("/proc/self/ns/uts", O_PATH)), m = OK(memfd_create("some", 0)), s[2];
    SAME(write(m, "x", 1), 1);
    OK(socketpair(AF_UNIX, SOCK_STREAM, 0, s));
    int memory = of(m), socket = of(s[0]);
    struct stat a, b;
    freeze_here();
    CHECK(readlinkat(exe, "", text, sizeof text) > 1);
    CHECK(readlinkat(cwd, "", text, sizeof text) >= 1);
    SAME(readlinkat(root, "", text, sizeof text), 1);
    SAME(atoi((memset(text, 0, sizeof text), readlinkat(top, "", text, sizeof text), text)), getpid());
    memset(text, 0, sizeof text);
    CHECK(readlinkat(link, "", text, sizeof text) > 0 && !strcmp(text, "/dev/null"));
    OK(stat("/proc/self/ns/uts", &a));
    OK(fstat(uts, &b));
    SAME(a.st_ino, b.st_ino);
    OK(fstat(s[0], &a));
    OK(fstat(socket, &b));
    SAME(a.st_ino, b.st_ino);
    SAME(fcntl(socket, F_GETFL), O_PATH);
    sprintf(path, "/proc/self/fd/%d", memory);
    SAME(read(OK(open(path, O_RDONLY)), text, 9), 1);
    kill(child, SIGKILL);
    OK(waitpid(child, 0, 0));
}
"#)
);

conformance!(
    of_bound_sockets,
    c(r#"
#include <sys/un.h>
/* Through a descriptor of the file that a socket is bound to, it can be reached though it is bound anew. */
int main(void) {
    int s[2], file[2], client = OK(socket(AF_UNIX, SOCK_DGRAM, 0));
    struct sockaddr_un name[2] = { { AF_UNIX }, { AF_UNIX } };
    for (int i = 0; i < 2; i++) {
        s[i] = OK(socket(AF_UNIX, SOCK_DGRAM, 0));
        snprintf(name[i].sun_path, sizeof name[i].sun_path, "%.90s/s%d", here_dir, i);
        OK(bind(s[i], (void *)&name[i], sizeof name[i]));
        file[i] = OK(open(name[i].sun_path, O_PATH));
    }
    freeze_here();
    for (int i = 0; i < 2; i++) {
        char byte;
        snprintf(name[i].sun_path, sizeof name[i].sun_path, "/proc/self/fd/%d", file[i]);
        SAME(sendto(client, "x", 1, 0, (void *)&name[i], sizeof name[i]), 1);
        SAME(recv(s[i], &byte, 1, MSG_DONTWAIT), 1);
    }
}
"#)
);
