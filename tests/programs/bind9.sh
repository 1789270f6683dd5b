# bind9, authoritative, with a zone that is updated while it runs, and a client on a TCP connection it keeps.
port=$(free_port)
cat > named.conf <<CONF
options { directory "$FREEZE_HERE"; listen-on port $port { 127.0.0.1; }; listen-on-v6 { none; }; recursion no; pid-file none; lock-file none;
    session-keyfile "$FREEZE_HERE/session.key"; dnssec-validation no; };
controls { };
zone "test" { type primary; file "test.zone"; allow-update { 127.0.0.1; }; };
CONF
cat > test.zone <<'ZONE'
$TTL 60
@ IN SOA ns.test. root.test. 1 60 60 60 60
@ IN NS ns.test.
ns IN A 127.0.0.1
ZONE
for n in $(seq 500); do echo "h$n IN A 10.0.$((n / 250)).$((n % 250))" >> test.zone; done
named -f -c named.conf -u root < /dev/null > server.log 2>&1 &
server=$!
ask() { dig +short +tries=1 +time=5 -p "$port" @127.0.0.1 "$@"; }
answers() { [ -n "$(ask h1.test)" ]; }
wait_for answers
update() { printf 'server 127.0.0.1 %s\nzone test\n%s\nsend\n' "$port" "$1" | nsupdate; }
may_update() { update "update add before.test 60 A 10.1.1.1"; }
wait_for may_update
cat > client.py <<'PY'
import os, socket, struct, sys, time
here = os.environ["FREEZE_HERE"]
s = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
def query(name):
    q = struct.pack(">6H", 7, 0, 1, 0, 0, 0) + b"".join(bytes([len(p)]) + p.encode() for p in name.split(".")) + b"\0" + struct.pack(">2H", 1, 1)
    return struct.pack(">H", len(q)) + q
def answer():
    f = b""
    while len(f) < 2 or len(f) < 2 + struct.unpack(">H", f[:2])[0]:
        more = s.recv(4096); assert more; f += more
    return f
s.sendall(query("h7.test")); assert bytes([10, 0, 0, 7]) in answer()
half = query("h8.test"); s.sendall(half[:9])
open(here + "/client", "w").close()
while not os.path.exists(here + "/go"): time.sleep(0.01)
s.sendall(half[9:]); assert bytes([10, 0, 0, 8]) in answer()
PY
python3 client.py "$port" & client=$!
wait_for test -e client
freeze_here
wait "$client" || die 'the client'
same "$(ask before.test)" 10.1.1.1 'what was added before'
update 'update add after.test 60 A 10.1.1.2' || die 'an update'
same "$(ask after.test)" 10.1.1.2 'what was added after'
same "$(ask +tcp h499.test)" 10.0.1.249 'a record'
kill "$server"
wait "$server" || die 'the server'
named-checkzone -j test test.zone > check.log || { cat check.log; exit 1; }
