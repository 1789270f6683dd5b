//! Conformance of packet sockets: device, protocol, memberships, fanout, options, rings.

use freeze_tests::{c, conformance, python};

/// Bound, fresh and grouped ones are what they were, and hear again.
fn sockets() -> freeze_tests::Subject {
    python(
        r#"
import socket, struct
S = socket
P = 263
lo = S.if_nametoindex("lo")
# Types that nobody else speaks here.
TYPE = 0x9000 + os.getpid() % 0x2000 * 2
fresh = S.socket(S.AF_PACKET, S.SOCK_DGRAM, 0)
raw = S.socket(S.AF_PACKET, S.SOCK_RAW, S.htons(TYPE))
raw.bind(("lo", TYPE))
raw.setsockopt(P, 8, 1)
raw.setsockopt(P, 9, 1)
raw.setsockopt(P, 1, struct.pack("iHH8s", lo, 1, 0, b""))
raw.setsockopt(P, 1, struct.pack("iHH8s", lo, 0, 6, b"\1\0\x5e\1\2\3"))
cooked = S.socket(S.AF_PACKET, S.SOCK_DGRAM, S.htons(TYPE))
cooked.setsockopt(S.SOL_SOCKET, S.SO_RCVBUF, 100000)
group = []
for n in range(2):
    g = S.socket(S.AF_PACKET, S.SOCK_RAW, S.htons(TYPE + 1))
    g.bind(("lo", TYPE + 1))
    g.setsockopt(P, 18, os.getpid() & 0xffff | 1 << 16)
    group.append(g)
everything = [fresh, raw, cooked] + group
def members():
    return open("/proc/net/dev_mcast").read().count("01005e010203")
def look():
    options = [(n, s.getsockopt(P, n, 64)) for s in everything for n in (7, 8, 9, 10, 12, 14, 15, 18, 20)]
    return options, [s.getsockname() for s in everything], [s.getsockopt(S.SOL_SOCKET, S.SO_RCVBUF) for s in everything]
before = look()
freeze_here()
assert look() == before, (look(), before)
sender = S.socket(S.AF_PACKET, S.SOCK_DGRAM, 0)
sender.sendto(b"hello", ("lo", TYPE, 0, 0, b"\0" * 6))
raw.settimeout(5)
cooked.settimeout(5)
assert raw.recv(100).endswith(b"hello") and cooked.recv(100) == b"hello"
sender.sendto(b"group", ("lo", TYPE + 1, 0, 0, b"\0" * 6))
import select
heard, _, _ = select.select(group, [], [], 5)
assert len(heard) == 1 and heard[0].recv(100).endswith(b"group")
"#,
    )
}

/// Rings of all versions are mapped again where they were, and fill.
fn rings() -> freeze_tests::Subject {
    c(r#"
#include <arpa/inet.h>
#include <linux/if_packet.h>
#include <net/if.h>
#define TYPE (0x9000 + getpid() % 0x2000 * 2)
static int make(int version, struct tpacket_req3 *req, int with_tx, char **map) {
    int fd = OK(socket(AF_PACKET, SOCK_RAW, 0));
    OK(setsockopt(fd, SOL_PACKET, PACKET_VERSION, &version, sizeof version));
    size_t len = version == TPACKET_V3 ? sizeof *req : sizeof(struct tpacket_req);
    OK(setsockopt(fd, SOL_PACKET, PACKET_RX_RING, req, len));
    size_t size = (size_t)req->tp_block_size * req->tp_block_nr;
    if (with_tx) { OK(setsockopt(fd, SOL_PACKET, PACKET_TX_RING, req, len)); size *= 2; }
    *map = OK(mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
    struct sockaddr_ll to = { .sll_family = AF_PACKET, .sll_protocol = htons(TYPE), .sll_ifindex = if_nametoindex("lo") };
    OK(bind(fd, (void *)&to, sizeof to));
    return fd;
}
int main(void) {
    struct tpacket_req3 req = { .tp_block_size = 8192, .tp_block_nr = 4, .tp_frame_size = 2048, .tp_frame_nr = 16 };
    struct tpacket_req3 req3 = req;
    req3.tp_retire_blk_tov = 10;
    char *map[3];
    int fds[3];
    for (int v = 0; v < 3; v++) fds[v] = make(v, v == 2 ? &req3 : &req, v == 1, &map[v]);
    freeze_here();
    int out = OK(socket(AF_PACKET, SOCK_DGRAM, 0));
    struct sockaddr_ll to = { .sll_family = AF_PACKET, .sll_protocol = htons(TYPE), .sll_ifindex = if_nametoindex("lo"),
        .sll_halen = 6 };
    OK(sendto(out, "hello", 5, 0, (void *)&to, sizeof to));
    for (int v = 0; v < 3; v++) {
        struct pollfd p = { fds[v], POLLIN, 0 };
        SAME(poll(&p, 1, 5000), 1);
        if (v == 0) CHECK(((struct tpacket_hdr *)map[v])->tp_status & TP_STATUS_USER);
        if (v == 1) CHECK(((struct tpacket2_hdr *)map[v])->tp_status & TP_STATUS_USER);
        if (v == 2) CHECK(((struct tpacket_block_desc *)map[v])->hdr.bh1.block_status & TP_STATUS_USER);
    }
    return 0;
}
"#)
}

conformance!(sockets_conform, sockets());
conformance!(rings_conform, rings());
