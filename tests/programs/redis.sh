# redis with an append-only file, and a client connected over TCP with a transaction begun.
port=$(free_port)
redis-server --port "$port" --bind 127.0.0.1 --dir "$FREEZE_HERE" --appendonly yes --save '' < /dev/null > server.log 2>&1 &
server=$!
wait_for redis-cli -p "$port" ping
redis-cli -p "$port" eval 'for i = 1, 20000 do redis.call("set", "k" .. i, i * 7) end' 0 > /dev/null
cat > client.py <<'PY'
import os, socket, sys, time
here = os.environ["FREEZE_HERE"]
s = socket.create_connection(("127.0.0.1", int(sys.argv[1]))); f = s.makefile("rb")
def ask(text):
    s.sendall(text.encode() + b"\r\n"); return f.readline().strip()
assert ask("MULTI") == b"+OK" and ask("INCR n") == b"+QUEUED"
# A question whose answer nobody reads before the cut.
other = socket.create_connection(("127.0.0.1", int(sys.argv[1]))); other.sendall(b"GET k3\r\n"); time.sleep(0.1)
open(here + "/client", "w").close()
while not os.path.exists(here + "/go"): time.sleep(0.01)
assert ask("INCR n") == b"+QUEUED"
s.sendall(b"EXEC\r\n")
assert [f.readline().strip() for _ in range(3)] == [b"*2", b":1", b":2"]
assert other.recv(100) == b"$2\r\n21\r\n"
PY
python3 client.py "$port" & client=$!
wait_for test -e client
freeze_here
wait "$client" || die 'the client'
same "$(redis-cli -p "$port" get k20000)" 140000 'a value'
same "$(redis-cli -p "$port" dbsize)" 20001 'keys'
redis-cli -p "$port" bgrewriteaof > /dev/null
redis-cli -p "$port" shutdown nosave > /dev/null || true
wait "$server"
redis-check-aof appendonlydir/appendonly.aof.manifest > check.log 2>&1 || { cat check.log; exit 1; }
