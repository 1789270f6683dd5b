//! Network namespaces with devices of every kind, read and put into fresh ones.

use freeze_tests::skip;
use freeze_user::kinds::netns::{Record, collect, restore};
use freeze_user::kinds::pipe::Bytes;
use freeze_user::sys::ipc::within;
use freeze_user::sys::rtnl::{attributes, put};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::process::Command;

/// Up, no ARP, promiscuous, all multicast, multicast.
const FLAGS: u32 = 0x1381;

/// A fresh network namespace.
fn fresh() -> Option<File> {
    std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).ok()?;
        File::open("/proc/thread-self/ns/net").ok()
    })
    .join()
    .ok()?
}

fn ip(netns: &File, lines: &str) {
    within(netns.as_fd(), libc::CLONE_NEWNET, || {
        for line in lines.lines().map(str::trim).filter(|l| !l.is_empty()) {
            let status = Command::new("ip").args(line.split(' ')).status();
            assert!(status.is_ok_and(|s| s.success()), "ip {line}");
        }
    })
    .unwrap();
}

/// Everything but what a device's flags say of its carrier.
fn plain(mut record: Record) -> Record {
    for link in &mut record.links {
        link.flags &= FLAGS;
    }
    for address in &mut record.addresses {
        const CACHEINFO: u16 = 6;
        const FLAGS: u16 = 8;
        /// Not yet known to be nobody else's.
        const TENTATIVE: u8 = 0x40;
        let mut kept = address.0[..8].to_vec();
        kept[2] &= !TENTATIVE;
        for (kind, value) in attributes(&address.0, 8)
            .into_iter()
            .filter(|(k, _)| *k != CACHEINFO)
        {
            let mut value = value.to_vec();
            if kind == FLAGS {
                value[0] &= !TENTATIVE;
            }
            put(&mut kept, kind, &value);
        }
        *address = Bytes(kept);
    }
    record.addresses.sort_by(|a, b| a.0.cmp(&b.0));
    record.routes.sort_by(|a, b| a.0.cmp(&b.0));
    record
}

#[test]
fn a_namespace_comes_back() {
    let (Some(a), Some(b)) = (fresh(), fresh()) else {
        skip!("no network namespace can be made here");
    };
    if Command::new("ip").arg("-V").output().is_err() {
        skip!("there is no ip(8)");
    }
    ip(
        &a,
        "link set lo up
        link add d0 index 40 type veth peer name d1 index 41
        link set d1 up
        link set d0 mtu 1400 address 02:00:00:00:00:07 txqueuelen 33 alias some_alias up
        addr add 10.5.0.1/24 dev d0
        addr add 10.5.0.2/24 dev d0
        addr add fd00:5::1/64 dev d0
        route add 10.6.0.0/16 via 10.5.0.9
        route add default via 10.5.0.8 metric 50
        route add fd01::/64 via fd00:5::9
        route add 10.9.0.0/16 dev d0 table 77
        rule add from 10.9.0.0/16 table 77 priority 500
        neigh add 10.5.0.77 lladdr 02:00:00:00:00:99 dev d0 nud permanent
        link add br0 type bridge forward_delay 300
        link add v1 index 50 type veth peer name v2 index 51
        link set v1 master br0 up
        link set br0 up
        link add m0 link d0 type macvlan mode bridge
        tuntap add t0 mode tap user 5
        addr add 10.7.0.1/24 dev t0
        link set t0 up",
    );
    let b_path = format!("/proc/{}/fd/{}", std::process::id(), b.as_raw_fd());
    ip(
        &a,
        &format!(
            "link add w1 index 60 type veth peer name w2 index 61 netns {b_path}\nlink set w1 up\naddr add 10.8.0.1/24 dev w1"
        ),
    );
    ip(&b, "link set w2 up\naddr add 10.8.0.2/24 dev w2");
    let settings = || std::fs::write("/proc/sys/net/ipv4/conf/d0/rp_filter", "2");
    within(a.as_fd(), libc::CLONE_NEWNET, settings).unwrap().unwrap();
    let others = [(1, a.as_fd()), (2, b.as_fd())];
    let mut out = Vec::new();
    let first = collect(a.as_fd(), &others, "a", &mut out).unwrap();
    let second = collect(b.as_fd(), &others, "b", &mut out).unwrap();
    assert!(out.is_empty(), "{out:?}");
    let (Some(c), Some(d)) = (fresh(), fresh()) else {
        return;
    };
    let said = restore(&[(1, &first, c.as_fd()), (2, &second, d.as_fd())]).unwrap();
    assert!(said.is_empty(), "{said:?}");
    let others = [(1, c.as_fd()), (2, d.as_fd())];
    let again = collect(c.as_fd(), &others, "c", &mut out).unwrap();
    let (was, is) = (plain(first), plain(again));
    assert_eq!(was.links, is.links);
    assert_eq!(was.addresses, is.addresses);
    assert_eq!(was.routes, is.routes);
    assert_eq!(was.rules, is.rules);
    assert_eq!(was.neighbours, is.neighbours);
    for (one, other) in was.settings.iter().zip(&is.settings) {
        assert_eq!(one, other);
    }
    let again = collect(d.as_fd(), &others, "d", &mut out).unwrap();
    assert_eq!(plain(second).links, plain(again).links);
    // The ends of a pair whose other end is elsewhere cannot be had alone.
    collect(c.as_fd(), &[(1, c.as_fd())], "c", &mut out).unwrap();
    assert!(
        out[0]
            .to_string()
            .contains("its other end lies in a network namespace outside"),
        "{out:?}"
    );
}
