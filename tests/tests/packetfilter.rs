//! Conformance of packet filters in a network of a program's own: what was dropped stays dropped, what counted counts on.

use freeze_tests::{Subject, conformance, python};

/// A program in Python that has gone into a network of its own.
fn walled(text: &str) -> Subject {
    const PRELUDE: &str = r#"
import ctypes, os, shutil, socket, subprocess, sys
os.environ["PATH"] += ":/usr/sbin:/sbin"
os.environ["XTABLES_LOCKFILE"] = HERE + "/lock"
def sh(text):
    done = subprocess.run(["sh", "-ec", text], capture_output=True, text=True)
    assert done.returncode == 0, (text, done.stderr)
    return done.stdout
lacking = [p for p in ("nft", "iptables-legacy", "iptables-nft", "arptables-legacy", "conntrack") if not shutil.which(p)]
if lacking:
    # As in the machine of two kernels, which has few programs.
    print("SKIP: there is no", *lacking)
    freeze_here()
    sys.exit()
assert ctypes.CDLL(None, use_errno=True).unshare(0x40000000) == 0, "unshare(CLONE_NEWNET)"
sh("ip link set lo up")
def receiver(port, address="127.0.0.1"):
    s = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    s.bind((address, port))
    return s
def send(port, text, address="127.0.0.1", source=0):
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.bind((address, source))
        try:
            s.sendto(text, (address, port))
        except PermissionError:
            pass
def hears(s, text):
    send(s.getsockname()[1], text, s.getsockname()[0])
    s.settimeout(0.2)
    try:
        return s.recv(100) == text
    except TimeoutError:
        return False
"#;
    python(&format!("{PRELUDE}\n{text}"))
}

conformance!(
    nftables,
    walled(
        r##"
sh("""nft -f - <<'END'
table inet wall {
    comment "a table's"
    counter total { comment "all of it"; }
    quota little { over 100 bytes }
    set seen { type inet_service; size 100; flags dynamic; counter; }
    set brief { type inet_service; timeout 1h; elements = { 5009 timeout 1h expires 30m } }
    set ranges { type inet_service; flags interval; elements = { 5020-5029, 5040 } }
    map ways { type inet_service : verdict; elements = { 5004 : jump shut } }
    chain shut { counter drop comment "shut"; }
    chain in {
        type filter hook input priority filter; policy drop;
        meta l4proto != udp accept
        udp dport 5001 counter accept
        udp dport 5002 drop
        udp dport 5003 accept
        udp dport vmap @ways
        udp dport { 5005, 5006 } update @seen { udp dport } counter name "total" accept
        udp dport @brief accept
        udp dport @ranges jump { udp sport 77 drop; accept; }
        udp dport 5007 quota name "little" drop
        udp dport 5007 accept
    }
}
table ip6 wall {
    chain in { type filter hook input priority filter; udp dport 5003 drop; }
}
END""")
open_, shut, way, seen, brief, queued, ranged, little, other = map(receiver, [5001, 5002, 5004, 5005, 5009, 5010, 5025, 5007, 5030])
six = receiver(5003, "::1")
six_open = receiver(5009, "::1")
assert hears(open_, b"a") and not hears(shut, b"b") and not hears(way, b"c") and hears(seen, b"d")
assert hears(brief, b"e") and not hears(six, b"f") and hears(ranged, b"g") and hears(little, b"h") and not hears(other, b"i")
# What waits in a queue came before the wall that would keep it out now.
sh("nft insert rule inet wall in udp dport 5010 accept")
send(5010, b"waits")
handle = [l for l in sh("nft -a list chain inet wall in").splitlines() if "dport 5010" in l][0].split()[-1]
sh(f"nft delete rule inet wall in handle {handle}")
handle = [l for l in sh("nft -a list chain inet wall in").splitlines() if "dport 5002 drop" in l][0].split()[-1]
def listing():
    return [l for l in sh("nft -a list ruleset").splitlines() if "expires" not in l]
def counted(name):
    import re
    return int(re.search(name + r".*?packets (\d+)", sh("nft list ruleset"), re.S).group(1))
before = listing()
counts = [counted("dport 5001"), counted("chain shut"), counted("counter total")]
freeze_here()
assert listing() == before, "\n".join(listing()) + "\n\n" + "\n".join(before)
assert "5009 timeout 1h expires" in sh("nft list set inet wall brief") or "5009 expires" in sh("nft list set inet wall brief")
queued.settimeout(1)
assert queued.recv(100) == b"waits" and not hears(queued, b"more")
assert hears(open_, b"a") and not hears(shut, b"b") and not hears(way, b"c") and hears(seen, b"d")
assert hears(brief, b"e") and not hears(six, b"f") and hears(six_open, b"f") and hears(ranged, b"g") and not hears(other, b"i")
send(5025, b"odd", source=77)
assert hears(ranged, b"even")
assert [counted("dport 5001"), counted("chain shut"), counted("counter total")] == [n + 1 for n in counts]
assert hears(little, b"j") and hears(little, b"k") and not hears(little, b"l" * 50) and not hears(little, b"m")
# The number of a rule still names that rule, and what is added is beside what was there.
sh(f"nft delete rule inet wall in handle {handle}")
sh("nft add element inet wall ways { 5030 : accept }; nft add rule inet wall in udp dport 5002 accept")
assert hears(shut, b"n") and hears(other, b"o") and not hears(way, b"p")
"##
    )
);

conformance!(
    xtables,
    walled(
        r##"
sh("""
iptables-legacy -N mine
iptables-legacy -A INPUT -p udp --dport 5001
iptables-legacy -A INPUT -p udp --dport 5002 -m comment --comment "shut" -j DROP
iptables-legacy -A INPUT -p udp -m multiport --dports 5003,5004 -j mine
iptables-legacy -A mine -m limit --limit 4/minute --limit-burst 2 -j ACCEPT
iptables-legacy -A mine -j DROP
iptables-legacy -A OUTPUT -p udp --dport 5009 -m owner --uid-owner 5 -j DROP
iptables-legacy -P FORWARD DROP
iptables-legacy -t nat -A OUTPUT -p udp --dport 6001 -j REDIRECT --to-ports 5001
iptables-legacy -t mangle -A OUTPUT -p udp --dport 6002 -j MARK --set-mark 7
ip6tables-legacy -A INPUT -p udp --dport 5002 -j DROP
ip6tables-legacy -A INPUT -p ipv6-icmp -m icmp6 --icmpv6-type 128 -j ACCEPT
arptables-legacy -A INPUT -s 10.0.0.1 -j DROP
""")
open_, shut, limited = map(receiver, [5001, 5002, 5003])
six = receiver(5002, "::1")
assert hears(open_, b"a") and not hears(shut, b"b") and hears(limited, b"c") and not hears(six, b"d")
COMMANDS = ["iptables", "ip6tables", "arptables"]
def listing():
    text = "".join(sh(f"{c}-legacy-save -c") for c in COMMANDS)
    # Groups of hosts are told of neighbours now and then by IPv6 itself.
    return [l for l in text.splitlines() if not l.startswith(("#", ":"))]
before = listing()
def counted(what):
    return [int(l[1:].split(":")[0]) for l in listing() if what in l][0]
count = counted("dport 5001")
freeze_here()
assert listing() == before, "\n".join(listing()) + "\n\n" + "\n".join(before)
assert ":FORWARD DROP" in sh("iptables-legacy-save")
assert hears(open_, b"a") and not hears(shut, b"b") and hears(limited, b"c") and not hears(six, b"d")
send(6001, b"redirected")
assert open_.recv(100) == b"redirected"
assert counted("dport 5001") == count + 2
sh("iptables-legacy -D INPUT -p udp --dport 5002 -m comment --comment shut -j DROP")
assert hears(shut, b"e")
"##
    )
);

conformance!(
    xtables_over_nftables,
    walled(
        r##"
sh("""
iptables-nft -A INPUT -p udp --dport 5001 -m comment --comment "counted"
iptables-nft -A INPUT -p udp --dport 5002 -j DROP
iptables-nft -A INPUT -p udp -m multiport --dports 5003,5004 -m statistic --mode nth --every 2 --packet 1 -j REJECT
iptables-nft -A INPUT -p tcp ! --dport 9 -m tcp --tcp-flags SYN,FIN SYN,FIN -j LOG --log-prefix "odd: "
iptables-nft -A OUTPUT -p tcp --syn -j TCPMSS --set-mss 1400
iptables-nft -t nat -A OUTPUT -p udp --dport 6001 -j REDIRECT --to-ports 5001
ip6tables-nft -A INPUT -p udp --dport 5002 -j DROP
""")
open_, shut = map(receiver, [5001, 5002])
assert hears(open_, b"a") and not hears(shut, b"b")
def listing():
    text = sh("iptables-nft-save -c") + sh("ip6tables-nft-save -c")
    return [l for l in text.splitlines() if not l.startswith("#")]
before = listing()
freeze_here()
assert listing() == before, "\n".join(listing()) + "\n\n" + "\n".join(before)
assert hears(open_, b"a") and not hears(shut, b"b")
send(6001, b"redirected")
assert open_.recv(100) == b"redirected"
count = lambda lines: [int(l[1:].split(":")[0]) for l in lines if "counted" in l][0]
assert count(listing()) == count(before) + 2
"##
    )
);

conformance!(
    tracked,
    walled(
        r##"
sh("""
nft -f - <<'END'
table inet wall {
    ct helper ftp { type "ftp" protocol tcp; }
    chain in {
        type filter hook input priority filter; policy drop;
        tcp dport 21 accept
        ct state established accept
        tcp dport 7000 tcp flags syn ct mark set 9 accept
        udp dport 5001 accept
    }
    chain out { type filter hook output priority filter; tcp dport 21 ct helper set "ftp"; }
}
table ip moved {
    chain out { type nat hook output priority -100; udp dport 6001 redirect to :5001; }
}
END
# Of a connection whose beginning it has not seen it wants to know nothing.
echo 0 > /proc/sys/net/netfilter/nf_conntrack_tcp_loose
""")
listener = socket.create_server(("127.0.0.1", 7000))
client = socket.create_connection(("127.0.0.1", 7000))
server, _ = listener.accept()
client.sendall(b"before")
assert server.recv(100) == b"before"
rx = receiver(5001)
tx = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
tx.connect(("127.0.0.1", 6001))
tx.send(b"one")
data, back = rx.recvfrom(100)
rx.sendto(b"two", back)
assert data == b"one" and tx.recv(100) == b"two"
# A transfer that is announced is expected.
control = socket.create_server(("127.0.0.1", 21))
transfer = socket.create_server(("127.0.0.1", 8000))
ftp = socket.create_connection(("127.0.0.1", 21))
ftp_server, _ = control.accept()
for command in b"USER me\r\n", b"PORT 127,0,0,1,31,64\r\n":
    ftp.sendall(command)
    assert ftp_server.recv(100) == command
# What is translated stays so, and what is established too, although nothing new is let in.
sh("nft flush chain ip moved out; nft flush chain inet wall in; nft add rule inet wall in ct state established,related accept")
def listing():
    lines = sh("conntrack -L 2> /dev/null; conntrack -L expect 2> /dev/null").splitlines()
    assert any("helper=ftp" in l and "mask-src" in l for l in lines), lines
    return sorted(" ".join(w for w in l.split()[1:] if not w.isdigit()) for l in lines)
before = listing()
freeze_here()
assert listing() == before, "\n".join(listing()) + "\n\n" + "\n".join(before)
assert any("mark=9" in l and "ESTABLISHED" in l for l in before)
for one, other in (client, server), (server, client):
    one.sendall(b"after")
    other.settimeout(5)
    assert other.recv(100) == b"after"
tx.send(b"three")
rx.settimeout(5)
data, back = rx.recvfrom(100)
rx.sendto(b"four", back)
tx.settimeout(5)
assert data == b"three" and tx.recv(100) == b"four"
assert not hears(rx, b"five")
with socket.create_connection(("127.0.0.1", 8000), 5) as related:
    related.sendall(b"file")
    assert transfer.accept()[0].recv(100) == b"file"
with socket.socket() as unrelated:
    unrelated.settimeout(0.3)
    try:
        unrelated.connect(("127.0.0.1", 8000))
        assert False, "nobody announced this one"
    except TimeoutError:
        pass
"##
    )
);

// What it sends is for the filters, as before; and nobody hears of it while the restore is under way.
conformance!(
    a_connection_that_is_dropped_on_its_way,
    walled(
        r##"
import select
# It tries each second and does not give up, where that can be had; else after one, two, four seconds and so on.
sh("""cd /proc/sys/net/ipv4; echo 120 > tcp_syn_retries
if [ -e tcp_syn_linear_timeouts ]; then echo 120 > tcp_syn_linear_timeouts; fi""")
sh("iptables-legacy -A INPUT -p tcp --syn --dport 8001 -j DROP; iptables-legacy -A OUTPUT -p tcp --syn --dport 8002 -j DROP")
SYN_SENT, ESTABLISHED = 2, 1
def state(s):
    return s.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)[0]
pairs = []
for port in 8001, 8002:
    listening = socket.create_server(("127.0.0.1", port))
    connecting = socket.socket()
    connecting.setblocking(False)
    try:
        connecting.connect(("127.0.0.1", port))
    except BlockingIOError:
        pass
    pairs.append((listening, connecting))
assert [state(c) for _, c in pairs] == [SYN_SENT] * 2
freeze_here()
assert [state(c) for _, c in pairs] == [SYN_SENT] * 2, "it got through"
assert not select.select([l for l, _ in pairs], [], [], 0)[0]
sh("iptables-legacy -F")
for listening, connecting in pairs:
    assert select.select([], [connecting], [], 100)[1]
    assert connecting.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    accepted, _ = listening.accept()
    connecting.setblocking(True)
    connecting.sendall(b"here")
    assert accepted.recv(100) == b"here"
"##
    )
);
