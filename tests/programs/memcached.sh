# memcached with its threads, and a client connected over TCP.
port=$(free_port)
memcached -u root -l 127.0.0.1 -p "$port" -U 0 -t 4 -m 32 < /dev/null > server.log 2>&1 &
server=$!
wait_for python3 -c "import socket; socket.create_connection(('127.0.0.1', $port))"
cat > client.py <<'PY'
import os, socket, sys, time
here = os.environ["FREEZE_HERE"]
s = socket.create_connection(("127.0.0.1", int(sys.argv[1]))); f = s.makefile("rb")
for n in range(2000):
    v = b"%d" % (n * n); s.sendall(b"set k%d 0 0 %d\r\n%s\r\n" % (n, len(v), v)); assert f.readline() == b"STORED\r\n"
s.sendall(b"gets k7\r\n"); f.readline(); f.readline(); f.readline()
# Half a command before the cut, the other half after it.
s.sendall(b"set late 0 0 10\r\n01234")
time.sleep(0.1)
open(here + "/client", "w").close()
while not os.path.exists(here + "/go"): time.sleep(0.01)
s.sendall(b"56789\r\n"); assert f.readline() == b"STORED\r\n"
for n in range(2000):
    s.sendall(b"get k%d\r\n" % n); f.readline(); assert f.readline().strip() == b"%d" % (n * n); f.readline()
PY
python3 client.py "$port" & client=$!
wait_for test -e client
freeze_here
wait "$client" || die 'the client'
kill "$server"; wait "$server" || true
