//! Network namespaces with devices of every kind, read and put into fresh ones.

use freeze_tests::{conformance, python, skip};
use freeze_user::kinds::netns::{Record, collect, guard, restore, try_out};
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

/// Runs a shell in a namespace; what it prints.
fn shell(netns: &File, text: &str) -> String {
    within(netns.as_fd(), libc::CLONE_NEWNET, || {
        let done = Command::new("sh").args(["-ec", text]).output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(done.status.success(), "{text}: {said}");
        String::from_utf8_lossy(&done.stdout).into_owned()
    })
    .unwrap()
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
    // In which order those of one device stand may decide which is used.
    record.addresses.sort_by(|a, b| a.0[..8].cmp(&b.0[..8]));
    for route in &mut record.routes {
        const EXPIRES: u16 = 23;
        let mut kept = route.0[..12].to_vec();
        for (kind, value) in attributes(&route.0, 12) {
            put(&mut kept, kind, if kind == EXPIRES { b"some" } else { value });
        }
        *route = Bytes(kept);
    }
    record.routes.sort_by(|a, b| a.0.cmp(&b.0));
    record
        .prefixes
        .iter_mut()
        .for_each(|all| all.sort_by(|a, b| a.0.cmp(&b.0)));
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
        link add d0 index 40 numtxqueues 4 numrxqueues 3 type veth peer name d1 index 41 numtxqueues 2
        link set d1 up
        link set d0 mtu 1400 address 02:00:00:00:00:07 txqueuelen 33 alias some_alias up
        addr add 10.5.0.1/24 dev d0
        addr add 10.5.0.2/24 dev d0
        addr add fd00:5::1/64 dev d0
        addr add fd00:5::2/64 dev d0
        addr add fd00:7::1/64 dev d0 preferred_lft 5000 valid_lft 9000
        addr add fd00:8::1/64 dev d0 preferred_lft 0
        addr add fd00:a::1/128 peer fd00:a::2 dev d0 nodad
        route add 10.6.0.0/16 via 10.5.0.9
        route add default via 10.5.0.8 metric 50
        route add fd01::/64 via fd00:5::9
        route add 10.9.0.0/16 dev d0 table 77
        route add 10.10.0.0/16 via 172.16.0.1 dev d0 onlink
        rule add from 10.9.0.0/16 table 77 priority 500
        route add fd02::/64 via fd00:5::9 expires 5000
        neigh add 10.5.0.77 lladdr 02:00:00:00:00:99 dev d0 nud permanent
        neigh add 10.5.0.78 lladdr 02:00:00:00:00:98 dev d0 nud noarp
        neigh add 10.5.0.79 lladdr 02:00:00:00:00:97 dev d0 nud stale
        neigh add fd00:5::50 lladdr 02:00:00:00:00:96 dev d0 nud stale router
        maddr add 01:00:5e:01:02:03 dev d0
        link set d0 gso_max_size 30000
        link add br0 type bridge forward_delay 300
        link add v1 index 50 type veth peer name v2 index 51
        link set v1 master br0 up
        link set br0 up
        link add br1 type bridge
        link add v3 type veth peer name v4
        link set v3 master br1 up
        link set v4 up
        link set br1 up
        link add m0 link d0 type macvlan mode bridge
        link add m1 link d0 type macvlan mode source
        link set m1 type macvlan macaddr add 02:00:00:00:00:71
        tuntap add t0 mode tap user 5
        addr add 10.7.0.1/24 dev t0
        link set t0 up
        route add 10.11.0.0/16 nexthop via 10.7.0.2 weight 3 nexthop via 10.7.0.3",
    );
    let b_path = format!("/proc/{}/fd/{}", std::process::id(), b.as_raw_fd());
    ip(
        &a,
        &format!(
            "link add w1 index 60 type veth peer name w2 index 61 netns {b_path}\nlink set w1 up\naddr add 10.8.0.1/24 dev w1"
        ),
    );
    ip(&b, "link set w2 up\naddr add 10.8.0.2/24 dev w2");
    let settings = [
        ("ipv4/conf/d0/rp_filter", "2"),
        // Nobody can read it before, and with it addresses are made up another way.
        ("ipv6/conf/d1/stable_secret", "fd00::1:2:3"),
    ];
    for (name, value) in settings {
        let path = format!("/proc/sys/net/{name}");
        within(a.as_fd(), libc::CLONE_NEWNET, || std::fs::write(path, value))
            .unwrap()
            .unwrap();
    }
    let others = [(1, a.as_fd()), (2, b.as_fd())];
    // The kernel's own route to what lies beside an address can be deleted. A rule does not forbid routes that were there before.
    ip(
        &a,
        "rule add not from 10.3.0.0/16 prohibit priority 600\n-6 route del fd00:5::/64 dev d0 proto kernel\n-6 route add fd00:5::/64 dev d0 metric 99",
    );
    let mut out = Vec::new();
    // A port passes on what arrives, and its bridge begins to take part in a spanning tree: it still does.
    shell(
        &a,
        "until ip -d link show v3 | grep -q 'state forwarding'; do sleep 0.02; done",
    );
    ip(&a, "link set br1 type bridge stp_state 1");
    // The kernel gives addresses to what was brought up, some time later.
    let mut before = 0;
    let first = loop {
        let now = collect(a.as_fd(), &others, "a", &mut out).unwrap();
        if now.addresses.len() == before {
            break now;
        }
        before = now.addresses.len();
        std::thread::sleep(std::time::Duration::from_millis(300));
    };
    let second = collect(b.as_fd(), &others, "b", &mut out).unwrap();
    assert!(out.is_empty(), "{out:?}");
    let (Some(c), Some(d)) = (fresh(), fresh()) else {
        return;
    };
    let said = restore(&[(1, &first, c.as_fd()), (2, &second, d.as_fd())]).unwrap();
    assert!(said.is_empty(), "{said:?}");
    let others = [(1, c.as_fd()), (2, d.as_fd())];
    let again = collect(c.as_fd(), &others, "c", &mut out).unwrap();
    let (mut was, mut is) = (plain(first), plain(again));
    // A kernel tells of neighbours in the order of a hash that is seeded at random.
    was.neighbours.sort_by(|a, b| a.0.cmp(&b.0));
    is.neighbours.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(was.links, is.links);
    assert!(was.links.iter().any(|l| l.name == "v3" && l.forwarding));
    assert_eq!(was.addresses, is.addresses);
    assert_eq!(was.routes, is.routes);
    assert_eq!(was.rules, is.rules);
    assert_eq!(was.neighbours, is.neighbours);
    let of_d0 = |n: &Bytes| n.0[4..8] == 40i32.to_ne_bytes();
    assert!(was.neighbours.iter().filter(|n| of_d0(n)).count() >= 4);
    assert_eq!(was.multicast, is.multicast);
    assert!(
        was.multicast.iter().any(|m| m.device == "d0"),
        "{:?}",
        was.multicast
    );
    assert_eq!(was.prefixes, is.prefixes);
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

#[test]
fn the_outer_end_of_a_pair_comes_back() {
    let Some(inner) = fresh() else {
        skip!("no network namespace can be made here");
    };
    // The namespace of this thread stands for freeze's own.
    if nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).is_err() {
        skip!("no network namespace can be made here");
    }
    let own = || File::open("/proc/thread-self/ns/net").unwrap();
    let path = format!("/proc/{}/fd/{}", std::process::id(), inner.as_raw_fd());
    ip(
        &own(),
        &format!(
            "link add br0 type bridge
            link set br0 up
            link add out0 index 70 type veth peer name in0 index 7 netns {path}
            link set out0 mtu 1400 alias outer master br0 up
            addr add 10.9.0.1/24 dev out0
            route add 10.77.0.0/16 dev out0
            neigh add 10.9.0.9 lladdr 02:00:00:00:00:09 dev out0 nud permanent"
        ),
    );
    std::fs::write("/proc/sys/net/ipv4/conf/out0/proxy_arp", "1").unwrap();
    ip(&inner, "link set in0 up\naddr add 10.9.0.2/24 dev in0");
    // Once no address waits to be found unique any more.
    std::thread::sleep(std::time::Duration::from_millis(2500));
    let mut out = Vec::new();
    let others = |inner: &File| [(0, own()), (1, inner.try_clone().unwrap())];
    let collect = |inner: &File, out: &mut Vec<_>| {
        let all = others(inner);
        let all: Vec<_> = all.iter().map(|(n, f)| (*n, f.as_fd())).collect();
        collect(inner.as_fd(), &all, "inner", out).unwrap()
    };
    let record = collect(&inner, &mut out);
    assert!(out.is_empty(), "{out:?}");
    drop(inner);
    record.await_names(&mut out);
    assert!(out.is_empty(), "{out:?}");
    // Somebody has taken the number meanwhile.
    ip(&own(), "link add other index 70 type veth peer name rehto");
    let again = fresh().unwrap();
    let said = restore(&[(1, &record, again.as_fd())]).unwrap();
    assert!(said.is_empty(), "{said:?}");
    let shown = shell(
        &own(),
        "ip -d link show out0; ip addr show out0; ip route; ip neigh show dev out0 nud permanent",
    );
    for part in [
        "mtu 1400",
        "master br0",
        "alias outer",
        "state UP",
        "10.9.0.1/24",
        "10.77.0.0/16 dev out0",
        "10.9.0.9 lladdr",
    ] {
        assert!(shown.contains(part), "{part} is missing in {shown}");
    }
    assert_eq!(
        std::fs::read_to_string("/proc/sys/net/ipv4/conf/out0/proxy_arp").unwrap(),
        "1\n"
    );
    assert!(shell(&again, "ip addr show in0").contains("10.9.0.2/24"));
    // While it is there no other one of its name can be made.
    record.await_names(&mut out);
    assert!(
        out[0].to_string().contains("there is a device of this name"),
        "{out:?}"
    );
}

/// Every sort of thing that nf_tables knows, some of it deleted again, inserted or replaced: numbers are missing, and
/// rules are not in their order.
const RULES: &str = r#"
ip link set lo up
ip link add d0 type veth peer name d1
nft -f - <<'END'
table inet filter {
    comment "what comes in"
    counter c1 { packets 5 bytes 500; comment "five"; }
    counter c2 { }
    quota some { over 10 mbytes used 5 mbytes }
    quota whole { over 1 kbytes used 1 kbytes }
    limit slow { rate 10/second burst 7 packets }
    ct helper ftp-21 { type "ftp" protocol tcp; }
    ct timeout short { protocol tcp; l3proto ip; policy = { established: 100, close: 4 }; }
    set plain { type ipv4_addr; elements = { 10.1.0.1, 10.1.0.2 comment "two" }; }
    set ranges { type ipv4_addr; flags interval; auto-merge; elements = { 10.0.0.0/8, 11.0.0.0/8, 192.168.1.1-192.168.1.9 }; }
    set ports { type inet_service; flags interval; elements = { 0-10, 20-30, 65535 }; }
    set pairs { type ipv4_addr . inet_service; flags interval; elements = { 10.0.0.0/8 . 80-90, 1.2.3.4 . 5 }; }
    set brief { type ipv4_addr; timeout 1h; elements = { 10.3.0.1 timeout 2h expires 90m, 10.3.0.2 }; }
    set counted { type ipv4_addr; counter; elements = { 10.4.0.1 counter packets 3 bytes 30, 10.4.0.2 }; }
    set seen { type ipv4_addr; size 4096; flags dynamic,timeout; timeout 1m; }
    set fixed { type mark; flags constant; elements = { 1, 7 }; }
    map marks { type ipv4_addr : mark; elements = { 10.5.0.1 : 7, * : 9 }; }
    map named { type inet_service : counter; elements = { 1 : "c1", 2 : "c2" }; }
    map decide { type ipv4_addr : verdict; elements = { 10.6.0.1 : jump later, 10.6.0.2 : drop }; }
    chain later { counter packets 9 bytes 90; ip daddr 10.9.9.9 drop comment "a rule's"; }
    chain input {
        type filter hook input priority filter; policy drop;
        comment "a chain's"
        iif lo accept
        ct state vmap { established : accept, related : accept, invalid : drop }
        ip saddr @plain drop
        ip saddr @ranges counter packets 1 bytes 2 accept
        udp dport { 5000, 5002-5005 } counter accept
        tcp dport @ports limit rate 4/minute accept
        ip saddr . tcp dport @pairs meta mark set ip saddr map @marks
        ip saddr vmap @decide
        update @seen { ip saddr limit rate 10/minute } counter name "c1"
        tcp dport 21 ct helper set "ftp-21"
        tcp dport 22 ct timeout set "short"
        meta mark @fixed quota name "some"
        quota over 100 kbytes drop
        counter name tcp dport map @named
        ip daddr 10.0.0.1 jump { counter name "c2"; tcp dport 1 drop; udp dport 1 drop; }
        log prefix "in: " level debug flags all
        meta l4proto { icmp, ipv6-icmp } reject with icmpx admin-prohibited
        ether saddr 02:00:00:00:00:01 meta skuid 1000 meta hour "10:00"-"12:00" accept
        tcp flags syn reset tcp option sack-perm
        tcp flags & (fin | syn) == syn tcp option maxseg size set 1400
        jhash ip saddr mod 4 seed 0x123 offset 1 vmap { 1 : drop, 2 : accept }
        numgen inc mod 3 vmap { 0 : drop }
        fib saddr . iif oif missing drop
        rt classid 5 drop
        socket transparent 1 mark set 1
    }
}
table ip nat {
    chain pre {
        type nat hook prerouting priority dstnat
        tcp dport 8080 dnat to 10.0.0.5:80
        tcp dport 81 redirect to :8081
    }
    chain post {
        type nat hook postrouting priority srcnat
        ip saddr 10.0.0.0/8 masquerade random
        snat to 10.0.0.1-10.0.0.9
    }
}
table ip6 raw {
    chain pre { type filter hook prerouting priority raw; udp dport 53 notrack; }
}
table ip mangle {
    chain pre { type filter hook prerouting priority mangle; tcp dport 9 tproxy to :50080 meta mark set 1 accept; }
    chain out { type route hook output priority mangle; ip dscp set cs1; }
}
table arp filter {
    chain in { type filter hook input priority 0; arp operation request counter; }
}
table bridge filter {
    chain way { type filter hook forward priority 0; ether saddr 02:00:00:00:00:01 counter; }
}
table netdev dev {
    chain in { type filter hook ingress devices = { d0, d1 } priority 0; ip saddr 10.0.0.0/8 drop; }
    chain one { type filter hook ingress device lo priority 5; udp dport 9 drop; }
}
table ip asleep {
    flags dormant
    chain in { type filter hook input priority 0; drop; }
}
END
nft delete element inet filter plain { 10.1.0.1 }
nft add chain inet filter gone
nft add rule inet filter gone accept
nft delete chain inet filter gone
nft insert rule inet filter later udp dport 77 drop
nft add rule inet filter later position $(nft -a list chain inet filter later | grep "dport 77" | sed 's/.*handle //') udp dport 78 drop
nft replace rule inet filter later handle $(nft -a list chain inet filter later | grep "dport 77" | sed 's/.*handle //') udp dport 79 drop
nft add counter inet filter late
nft add chain inet filter after
nft add element inet filter decide { 10.6.0.9 : goto after }
"#;

const LISTINGS: &str = r#"
nft -a -s list ruleset
nft list counters
nft list quotas
"#;

/// A listing, without what goes on by itself.
fn listing(netns: &File) -> Vec<String> {
    let text = shell(netns, LISTINGS);
    let word = |w: &str| w.ends_with('s') && w.starts_with(|c: char| c.is_ascii_digit());
    text.lines()
        .map(|line| {
            let mut out: Vec<&str> = Vec::new();
            for w in line.split(' ') {
                let expires = out.last() == Some(&"expires");
                out.push(if expires && word(w.trim_end_matches(',')) {
                    "soon"
                } else {
                    w
                });
            }
            out.join(" ")
        })
        .collect()
}

/// Whether a command is there.
fn is_there(command: &str) -> bool {
    Command::new(command).arg("--version").output().is_ok()
}

/// What was in one namespace, in another.
fn moved(from: &File, to: &File) -> Record {
    let mut out = Vec::new();
    let record = collect(from.as_fd(), &[(1, from.as_fd())], "a", &mut out).unwrap();
    assert!(out.is_empty(), "{out:?}");
    try_out(&record, "a", &mut out);
    assert!(out.is_empty(), "{out:?}");
    let said = restore(&[(1, &record, to.as_fd())]).unwrap();
    assert!(said.is_empty(), "{said:?}");
    let said = guard(&[(1, &record, to.as_fd())]).unwrap();
    assert!(said.is_empty(), "{said:?}");
    record
}

#[test]
fn filters_come_back() {
    let (Some(a), Some(b)) = (fresh(), fresh()) else {
        skip!("no network namespace can be made here");
    };
    if !is_there("nft") {
        skip!("there is no nft(8)");
    }
    shell(&a, RULES);
    let before = listing(&a);
    let record = moved(&a, &b);
    let after = listing(&b);
    for (one, other) in before.iter().zip(&after) {
        assert_eq!(one, other);
    }
    assert_eq!(before.len(), after.len());
    let again = collect(b.as_fd(), &[(1, b.as_fd())], "b", &mut Vec::new()).unwrap();
    assert_eq!(record.filters.len(), again.filters.len());
    // What is added now has a number that nothing has yet.
    let add = "nft -a -e add rule inet filter after accept | head -n 1";
    assert_eq!(shell(&a, add), shell(&b, add));
}

#[test]
fn what_a_filter_does_not_tell_is_refused() {
    if fresh().is_none() || !is_there("nft") {
        skip!("no network namespace can be made here, or there is no nft(8)");
    }
    let cases = [
        (
            "nft add table ip t; nft add chain ip t c; nft add rule ip t c ct count over 3 drop",
            "nftables table ip t, chain c, rule 2",
            "the kernel does not tell which connections it has counted (ct count)",
        ),
        (
            "nft add table ip t; nft add set ip t s '{ type ipv4_addr; size 9; flags dynamic; }'; nft add chain ip t c; \
             nft add rule ip t c 'add @s { ip saddr ct count over 3 } drop'",
            "nftables table ip t, chain c, rule 3",
            "the kernel does not tell which connections it has counted (ct count)",
        ),
        (
            "nft add table ip t; nft add chain ip t c; nft add rule ip t c jhash ip saddr mod 2 vmap { 0 : drop }",
            "nftables table ip t, chain c, rule 3",
            "the kernel does not tell the seed that it has chosen (jhash)",
        ),
        (
            "iptables-nft -A INPUT -m quota --quota 100 -j ACCEPT",
            "nftables table ip filter, chain INPUT, rule 2",
            "match quota of xtables has a state that the kernel does not tell, or is not known",
        ),
        (
            "iptables-legacy -A INPUT -m recent --set; ip6tables-legacy -A INPUT -m hashlimit --hashlimit-upto 1/sec \
             --hashlimit-name x",
            "iptables table filter",
            "a rule uses recent, which has a state that the kernel does not tell, or is not known",
        ),
    ];
    for (text, place, why) in cases {
        let netns = fresh().unwrap();
        shell(&netns, text);
        let mut out = Vec::new();
        collect(netns.as_fd(), &[], "a", &mut out).unwrap();
        let first = out.first().unwrap_or_else(|| panic!("{text}"));
        assert_eq!((first.place.as_str(), first.why.as_str()), (place, why));
    }
}

#[test]
fn tables_of_the_old_form_come_back() {
    let (Some(a), Some(b)) = (fresh(), fresh()) else {
        skip!("no network namespace can be made here");
    };
    if !is_there("iptables-legacy") {
        skip!("there is no iptables-legacy(8)");
    }
    shell(
        &a,
        "iptables-legacy -N mine; iptables-legacy -A INPUT -p tcp --dport 5 -c 3 400 -j mine; iptables-legacy -P FORWARD DROP
         iptables-legacy -A mine -m conntrack --ctstate NEW -m mark --mark 7/9 -j LOG --log-prefix x
         iptables-legacy -t nat -A PREROUTING -p tcp --dport 9 -j DNAT --to 10.0.0.1:4-9
         iptables-legacy -t raw -A OUTPUT -j CT --notrack; iptables-legacy -t mangle -A POSTROUTING -j DSCP --set-dscp 9
         ip6tables-legacy -A OUTPUT -s fd00::/8 -p udp -m udp --sport 1:9 -c 1 2 -j REJECT
         arptables-legacy -A OUTPUT -d 10.0.0.9 -j mangle --mangle-ip-s 10.0.0.8",
    );
    let listing =
        "for c in iptables ip6tables; do $c-legacy-save -c | grep -v '^#'; done; arptables-legacy-save";
    let record = moved(&a, &b);
    assert_eq!(record.xtables.len(), 6);
    assert_eq!(shell(&a, listing), shell(&b, listing));
}

/// Connections as conntrack(8) tells of them, without what goes on by itself.
fn tracked(netns: &File) -> Vec<String> {
    let text = shell(netns, "conntrack -L 2> /dev/null");
    let mut all: Vec<String> = text
        .lines()
        .map(|line| {
            let mut words: Vec<&str> = line.split_whitespace().collect();
            // The timeout.
            words.remove(2);
            words.join(" ")
        })
        .collect();
    all.sort();
    all
}

#[test]
fn tracked_connections_come_back() {
    let (Some(a), Some(b)) = (fresh(), fresh()) else {
        skip!("no network namespace can be made here");
    };
    if !is_there("conntrack") || !is_there("nft") {
        skip!("there is no conntrack(8) or nft(8)");
    }
    shell(
        &a,
        r#"ip link set lo up
nft -f - <<'END'
table inet t { ct helper ftp { type "ftp" protocol tcp; }; chain in { type filter hook input priority 0; ct state new; }; }
END
conntrack -I -p tcp -s 10.0.0.1 -d 10.0.0.2 --sport 1000 --dport 21 --state ESTABLISHED -u ASSURED,SEEN_REPLY -t 600 --mark 7
conntrack -I -p tcp -s 10.0.0.1 -d 10.0.0.2 --sport 1001 --dport 80 --state SYN_SENT -t 60 --dst-nat 10.0.0.9:8080
conntrack -I -p udp -s 10.0.0.3 -d 10.0.0.4 --sport 5 --dport 6 -t 60 --src-nat 10.0.0.8:55 -u SEEN_REPLY
conntrack -I -p udp -s fd00::1 -d fd00::2 --sport 5 --dport 6 -t 60 --zone 3
conntrack -I -p icmp -s 10.0.0.1 -d 10.0.0.2 --icmp-type 8 --icmp-code 0 --icmp-id 99 -t 30
conntrack -I -p icmpv6 -s fd00::1 -d fd00::2 --icmpv6-type 128 --icmpv6-code 0 --icmpv6-id 98 -t 30
conntrack -I -p sctp -s 10.0.0.1 -d 10.0.0.2 --sport 1 --dport 2 --state ESTABLISHED --orig-vtag 5 --reply-vtag 6 -t 60
conntrack -I -p gre -s 10.0.0.1 -d 10.0.0.2 --srckey 1 --dstkey 2 -t 60
conntrack -I -p 99 -s 10.0.0.1 -d 10.0.0.2 -t 60
"#,
    );
    moved(&a, &b);
    assert_eq!(tracked(&a), tracked(&b));
    assert!(tracked(&a).len() >= 9);
}

#[test]
fn queueing_disciplines_come_back() {
    let (Some(a), Some(b)) = (fresh(), fresh()) else {
        skip!("no network namespace can be made here");
    };
    if Command::new("tc").arg("-V").output().is_err() {
        skip!("there is no tc(8)");
    }
    shell(
        &a,
        "ip link set lo up; ip link add d0 type veth peer name d1; ip link set d0 up
         tc qdisc add dev d0 root handle 7: tbf rate 1mbit burst 32kbit latency 400ms
         tc qdisc add dev d0 clsact
         tc qdisc add dev d1 root handle 9: pfifo limit 77
         tc qdisc add dev lo root bfifo limit 9000
         tc qdisc add dev d1 ingress
         ip link add d2 type veth peer name d3; tc qdisc add dev d2 root handle 8: htb default 5",
    );
    moved(&a, &b);
    let listing = "tc qdisc show | sed 's/ refcnt [0-9]*//' | sort";
    assert_eq!(shell(&a, listing), shell(&b, listing));
}

#[test]
fn what_is_elsewhere_in_the_network_is_refused() {
    if fresh().is_none() || Command::new("tc").arg("-V").output().is_err() {
        skip!("no network namespace can be made here, or there is no tc(8)");
    }
    let cases = [
        (
            "tc qdisc add dev lo root handle 1: htb; tc class add dev lo parent 1: classid 1:1 htb rate 1mbit",
            "network device lo, queueing discipline htb",
            "it has classes, which are not carried",
        ),
        (
            "tc qdisc add dev lo ingress; tc filter add dev lo parent ffff: u32 match u32 0 0 classid 1:1",
            "network device lo, queueing discipline ingress",
            "it has filters, which are not carried",
        ),
        (
            "tc qdisc add dev lo clsact; tc filter add dev lo egress u32 match u32 0 0 classid 1:1",
            "network device lo, queueing discipline clsact",
            "it has filters, which are not carried",
        ),
        (
            "tc qdisc add dev lo root handle 1: htb; tc filter add dev lo parent 1: u32 match u32 0 0 classid 1:1",
            "network device lo, queueing discipline htb",
            "it has filters, which are not carried",
        ),
        (
            "ip xfrm state allocspi src 10.0.0.1 dst 10.0.0.2 proto esp min 256 max 300",
            "IPsec states",
            "they are not carried",
        ),
        (
            "ip xfrm policy add src 10.0.0.0/8 dst 10.0.0.0/8 dir out action block",
            "IPsec policies",
            "they are not carried",
        ),
        (
            "ip xfrm policy setdefault in block",
            "default policy of IPsec",
            "it bars what no policy allows, which is not carried",
        ),
        (
            "ip link set lo up; ip nexthop add id 5 dev lo",
            "nexthop objects",
            "they are not carried",
        ),
        (
            "ip link add br0 type bridge; ip link add d0 type veth peer name d1; ip link set d0 master br0
             bridge fdb add 02:00:00:00:00:09 dev d0 master static",
            "network device d0",
            "addresses that were entered for it by hand are not carried",
        ),
        (
            "ip link add br0 type bridge; ip link add d0 type veth peer name d1; ip link set d0 master br0; ip link set br0 up
             bridge mdb add dev br0 port d0 grp 239.1.1.1 permanent",
            "network device br0",
            "groups that were entered for it by hand are not carried",
        ),
    ];
    for (text, place, why) in cases {
        let netns = fresh().unwrap();
        shell(&netns, text);
        let mut out = Vec::new();
        let record = collect(netns.as_fd(), &[(1, netns.as_fd())], "a", &mut out).unwrap();
        if out.is_empty() {
            try_out(&record, "a", &mut out);
        }
        let first = out.first().unwrap_or_else(|| panic!("{text}"));
        assert_eq!(
            (first.place.as_str(), first.why.as_str()),
            (place, why),
            "{out:?}"
        );
    }
}

conformance!(
    loopback,
    python(
        r#"
# Addresses and routes of the loopback device, which come by themselves when it goes up, are those that were there.
import ctypes, socket
if os.getppid() != 1:
    assert ctypes.CDLL(None).unshare(0x40000000) == 0
    import fcntl, struct
    fcntl.ioctl(socket.socket(), 0x8914, struct.pack("16sH14x", b"lo", 0x49))
def table():
    # Without counters of references and use.
    routes = [line.split() for line in open("/proc/net/ipv6_route")]
    routes = sorted((r[0], r[1], r[4], r[5], r[8], r[9]) for r in routes)
    return routes, open("/proc/net/if_inet6").read(), open("/proc/net/route").read()
l = socket.socket(socket.AF_INET6)
l.bind(("::1", 0))
l.listen()
c = socket.create_connection(l.getsockname()[:2])
before = table()
freeze_here()
assert table() == before, (table(), before)
s, _ = l.accept()
c.send(b"x")
assert s.recv(1) == b"x"
socket.create_connection(l.getsockname()[:2])
"#
    )
);

conformance!(
    across,
    python(
        r#"
# A connection from one network of the checkpoint into another has both its ends in it, also when it is left running.
import ctypes, shutil, socket, subprocess, threading
libc = ctypes.CDLL(None, use_errno=True)
def apart():
    assert libc.unshare(0x40000000) == 0, ctypes.get_errno()
if not shutil.which("ip", path="/usr/sbin:/sbin:/usr/bin:/bin"):
    print("WITHOUT ip(8)", flush=True)
    freeze_here()
    sys.exit(0)
apart()
r, w = os.pipe()
go, told = os.pipe()
kid = os.fork()
if not kid:
    apart()
    os.write(w, b"x")
    os.read(go, 1)
    c = socket.create_connection(("10.20.0.1", 5000))
    c.send(b"hello")
    os.write(w, b"y")
    got = c.recv(3, socket.MSG_WAITALL)
    c.send(got * 2)
    os._exit(0)
os.read(r, 1)
path = "/usr/sbin:/sbin:/usr/bin:/bin"
def sh(text):
    subprocess.run(["sh", "-ec", text], check=True, env={"PATH": path})
sh(f"""ip link set lo up
ip link add up0 type veth peer name down0 netns {kid}
ip addr add 10.20.0.1/24 dev up0
ip link set up0 up
nsenter -t {kid} -n ip addr add 10.20.0.2/24 dev down0
nsenter -t {kid} -n ip link set down0 up""")
l = socket.create_server(("", 5000))
os.write(told, b"x")
s, _ = l.accept()
os.read(r, 1)
freeze_here()
assert s.recv(5, socket.MSG_WAITALL) == b"hello"
s.send(b"abc")
assert s.recv(6, socket.MSG_WAITALL) == b"abcabc"
assert os.waitpid(kid, 0)[1] == 0
"#
    )
);

/// Kinds of devices that not every kernel has come back as they were.
#[test]
fn rarer_kinds() {
    for line in [
        "link add i0 type ifb",
        "link add p0 link d0 type macvtap mode private",
    ] {
        let (Some(a), Some(b)) = (fresh(), fresh()) else {
            skip!("no network namespaces");
        };
        ip(&a, "link add d0 type veth peer name d1\nlink set d0 up");
        let make = || Command::new("ip").args(line.split(' ')).output();
        let made = within(a.as_fd(), libc::CLONE_NEWNET, make).unwrap().unwrap();
        if !made.status.success() {
            continue;
        }
        let mut out = Vec::new();
        let before = collect(a.as_fd(), &[(1, a.as_fd())], "a", &mut out).unwrap();
        assert!(out.is_empty(), "{line}: {out:?}");
        let said = restore(&[(1, &before, b.as_fd())]).unwrap();
        assert!(said.is_empty(), "{line}: {said:?}");
        let after = collect(b.as_fd(), &[(1, b.as_fd())], "b", &mut out).unwrap();
        assert_eq!(plain(before).links, plain(after).links, "{line}");
    }
}
