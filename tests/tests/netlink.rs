//! Conformance of netlink sockets: port, groups, options, and that the kernel still answers.

use freeze_tests::{conformance, python};

fn route() -> freeze_tests::Subject {
    python(
        r#"
import socket, struct
S = socket
GROUPS = 9
fresh = S.socket(S.AF_NETLINK, S.SOCK_RAW, S.NETLINK_ROUTE)
bound = S.socket(S.AF_NETLINK, S.SOCK_DGRAM, S.NETLINK_ROUTE)
bound.bind((0, 1 | 1 << 4))
bound.setsockopt(270, 11, 1)
bound.setsockopt(270, 1, 33)
name = bound.getsockname()
groups = bound.getsockopt(270, GROUPS, 16)
freeze_here()
assert bound.getsockname() == name and bound.getsockopt(270, GROUPS, 16) == groups
assert struct.unpack("i", bound.getsockopt(270, 11, 4)) == (1,)
assert fresh.getsockname() == (0, 0)
# RTM_GETLINK of the first device.
fresh.settimeout(5)
fresh.sendto(struct.pack("IHHII", 32, 18, 1, 7, 0) + struct.pack("BxHiII", 0, 0, 1, 0, 0), (0, 0))
assert struct.unpack_from("IHHI", fresh.recv(65536))[1:4:2] == (16, 7)
"#,
    )
}

conformance!(routes, route());
