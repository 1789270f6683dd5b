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
