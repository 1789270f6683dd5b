//! Conformance of socket options that the kernel takes and does not tell.

use freeze_tests::{c, conformance};

conformance!(
    how_much_more_waits,
    c(r#"
#define INQ 84
/* A unix stream that was asked to tells with each message how much more waits; one that was not does not. */
int main(void) {
    int pairs[2][2], on = 1;
    for (int i = 0; i < 2; i++) {
        OK(socketpair(AF_UNIX, SOCK_STREAM, 0, pairs[i]));
        SAME(send(pairs[i][0], "abcdefg", 7, 0), 7);
    }
    if (setsockopt(pairs[1][1], SOL_SOCKET, INQ, &on, sizeof on)) WITHOUT("SO_INQ of unix sockets");
    freeze_here();
    for (int i = 0; i < 2; i++) {
        char text[3], control[100];
        struct iovec to = {text, sizeof text};
        struct msghdr m = {.msg_iov = &to, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
        SAME(recvmsg(pairs[i][1], &m, 0), 3);
        struct cmsghdr *told = CMSG_FIRSTHDR(&m);
        SAME(told != 0, i);
        if (!told) continue;
        SAME(told->cmsg_type, INQ);
        SAME(*(int *)CMSG_DATA(told), 4);
    }
}
"#)
);
