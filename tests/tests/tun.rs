//! Conformance of tun and tap: the device a descriptor is attached to, with its address, route and state.

use freeze_tests::{c, conformance};

conformance!(
    attached,
    c(r#"
/* A tun that goes with its descriptor, and a descriptor that is attached to none. */
#include <linux/if.h>
#include <linux/if_tun.h>
#include <arpa/inet.h>
static int control(int s, const char *name, int request, int flags) {
    struct ifreq r = { 0 };
    strcpy(r.ifr_name, name);
    r.ifr_flags = flags;
    return ioctl(s, request, &r);
}
int main(void) {
    int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK), bare = open("/dev/net/tun", O_RDWR);
    if (fd < 0) WITHOUT("no /dev/net/tun");
    struct ifreq r = { 0 };
    snprintf(r.ifr_name, IFNAMSIZ, "fz%d", getpid());
    r.ifr_flags = IFF_TUN | IFF_NO_PI;
    OK(ioctl(fd, TUNSETIFF, &r));
    char name[IFNAMSIZ];
    strcpy(name, r.ifr_name);
    int s = OK(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    struct sockaddr_in *a = (void *)&r.ifr_addr;
    a->sin_family = AF_INET;
    a->sin_addr.s_addr = htonl(0x0a400000 + getpid() % 0xffff * 4 + 1);
    OK(ioctl(s, SIOCSIFADDR, &r));
    struct sockaddr_in own = *a;
    a->sin_addr.s_addr = htonl(0xfffffffc);
    OK(ioctl(s, SIOCSIFNETMASK, &r));
    OK(control(s, name, SIOCSIFFLAGS, IFF_UP | IFF_RUNNING));
    close(s);
    freeze_here();
    s = OK(socket(AF_INET, SOCK_DGRAM, 0));
    memset(&r, 0, sizeof r);
    OK(ioctl(fd, TUNGETIFF, &r));
    CHECK(!strcmp(r.ifr_name, name));
    SAME(r.ifr_flags & (IFF_TUN | IFF_NO_PI | IFF_PERSIST), IFF_TUN | IFF_NO_PI);
    CHECK(ioctl(bare, TUNGETIFF, &r) == -1 && errno == EBADFD);
    strcpy(r.ifr_name, name);
    OK(ioctl(s, SIOCGIFADDR, &r));
    a = (void *)&r.ifr_addr;
    SAME(a->sin_addr.s_addr, own.sin_addr.s_addr);
    OK(ioctl(s, SIOCGIFFLAGS, &r));
    CHECK(r.ifr_flags & IFF_UP);
    /* A datagram to the neighbour comes out of the descriptor. */
    unsigned char packet[2000];
    while (read(fd, packet, sizeof packet) > 0) {}
    own.sin_addr.s_addr = htonl(ntohl(own.sin_addr.s_addr) + 1);
    own.sin_port = htons(9);
    SAME(sendto(s, "hello", 5, 0, (void *)&own, sizeof own), 5);
    int n = OK(read(fd, packet, sizeof packet));
    SAME(n, 33);
    CHECK(!memcmp(packet + 28, "hello", 5));
}
"#)
);

conformance!(
    queues,
    c(r#"
/* Several queues of a device, of which one is taken off it for the time being. */
#include <linux/if.h>
#include <linux/if_tun.h>
int main(void) {
    int fds[3];
    struct ifreq r = { 0 }, now;
    snprintf(r.ifr_name, IFNAMSIZ, "fq%d", getpid());
    for (int i = 0; i < 3; i++) {
        fds[i] = open("/dev/net/tun", O_RDWR);
        if (fds[i] < 0) WITHOUT("no /dev/net/tun");
        r.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_MULTI_QUEUE;
        OK(ioctl(fds[i], TUNSETIFF, &r));
    }
    struct ifreq off = { .ifr_flags = IFF_DETACH_QUEUE }, on = { .ifr_flags = IFF_ATTACH_QUEUE };
    OK(ioctl(fds[1], TUNSETQUEUE, &off));
    int plain = OK(open("/dev/net/tun", O_RDWR));
    struct ifreq with = { .ifr_flags = IFF_TAP };
    snprintf(with.ifr_name, IFNAMSIZ, "fp%d", getpid());
    OK(ioctl(plain, TUNSETIFF, &with));
    freeze_here();
    OK(ioctl(fds[1], TUNGETIFF, &now));
    CHECK(now.ifr_flags & IFF_DETACH_QUEUE);
    OK(ioctl(fds[1], TUNSETQUEUE, &on));
    for (int i = 0; i < 3; i++) {
        OK(ioctl(fds[i], TUNGETIFF, &now));
        CHECK(!strcmp(now.ifr_name, r.ifr_name));
        SAME(now.ifr_flags & (IFF_MULTI_QUEUE | IFF_PERSIST | IFF_DETACH_QUEUE), IFF_MULTI_QUEUE);
    }
    /* Packets have a header before them, which no flag of TUNGETIFF tells of: less than that cannot be written. */
    struct ifreq up = with;
    int s = OK(socket(AF_INET, SOCK_DGRAM, 0));
    up.ifr_flags = IFF_UP;
    OK(ioctl(s, SIOCSIFFLAGS, &up));
    char packet[4 + 13] = { 0 };
    CHECK(write(plain, packet, 3) == -1 && errno == EINVAL);
    CHECK(write(plain, packet, sizeof packet) == -1 && errno == EINVAL);
}
"#)
);
