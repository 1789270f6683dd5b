# haproxy as master with a worker, in front of two servers; a kept connection through it, a reload afterwards.
port=$(free_port); one=$(free_port); two=$(free_port)
cat > back.py <<'PY'
import http.server, sys
class H(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        b = (sys.argv[2] + self.path).encode(); self.send_response(200); self.send_header("Content-Length", str(len(b))); self.end_headers(); self.wfile.write(b)
    def log_message(self, *a): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), H).serve_forever()
PY
python3 back.py "$one" a < /dev/null 2> a.log & backs=$!
python3 back.py "$two" b < /dev/null 2> b.log & backs="$backs $!"
cat > h.cfg <<CONF
global
    stats socket $FREEZE_HERE/stats level admin
    maxconn 100
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
frontend f
    bind 127.0.0.1:$port
    default_backend b
backend b
    balance roundrobin
    server a 127.0.0.1:$one check inter 200
    server b 127.0.0.1:$two check inter 200
CONF
haproxy -W -S "$FREEZE_HERE/master" -f h.cfg < /dev/null > h.log 2>&1 & server=$!
cat > client.py <<'PY'
import http.client, os, sys, time
here = os.environ["FREEZE_HERE"]
for _ in range(500):
    try:
        c = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=20); c.connect(); c.request("GET", "/x"); r = c.getresponse(); r.read()
        if r.status == 200: break
    except OSError: pass
    time.sleep(0.02)
def get(n):
    c.request("GET", "/%d" % n); r = c.getresponse(); t = r.read().decode(); assert r.status == 200 and t[1:] == "/%d" % n, (r.status, t); return t[0]
def both():
    seen = set()
    for n in range(1000):
        seen.add(get(n))
        if len(seen) == 2: return
        time.sleep(0.01)
    raise SystemExit("only " + str(seen))
both()
c.sock.sendall(b"GET /half HTTP/1.1\r\nHo")
open(here + "/client", "w").close()
while not os.path.exists(here + "/go"): time.sleep(0.01)
c.sock.sendall(b"st: x\r\n\r\n"); r = http.client.HTTPResponse(c.sock); r.begin(); assert r.read()[1:] == b"/half"
both()
PY
python3 client.py "$port" & client=$!
wait_for test -e client
freeze_here
wait "$client" || die 'the client'
say() { python3 -c 'import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.sendall(sys.argv[2].encode()+b"\n"); s.shutdown(1); print(s.makefile().read())' "$FREEZE_HERE/$1" "$2"; }
say stats 'show stat' | grep -q '^b,a,' || die 'the figures'
say master reload > /dev/null
works() { [ "$(python3 -c 'import urllib.request,sys; print(urllib.request.urlopen(sys.argv[1]).read().decode()[1:])' "http://127.0.0.1:$port/z")" = /z ]; }
wait_for works
# A master that is just starting itself anew may miss it.
ended() { ! kill -TERM "$server" 2> /dev/null; }
wait_for ended
kill $backs
