# nginx with workers, under load from clients with kept connections.
port=$(free_port)
mkdir www logs; head -c 300000 /dev/urandom > www/page
cat > nginx.conf <<CONF
daemon off; master_process on; worker_processes 2; pid $FREEZE_HERE/nginx.pid; user root;
error_log $FREEZE_HERE/error.log;
events { worker_connections 128; }
http { access_log $FREEZE_HERE/access.log; client_body_temp_path $FREEZE_HERE/b; proxy_temp_path $FREEZE_HERE/p;
  fastcgi_temp_path $FREEZE_HERE/f; uwsgi_temp_path $FREEZE_HERE/u; scgi_temp_path $FREEZE_HERE/s;
  keepalive_requests 1000000; keepalive_timeout 300s;
  server { listen 127.0.0.1:$port; root $FREEZE_HERE/www; } }
CONF
nginx -e error.log -c "$FREEZE_HERE/nginx.conf" < /dev/null > nginx.out 2>&1 &
server=$!
wait_for python3 -c "import socket; socket.create_connection(('127.0.0.1', $port))"
cat > load.py <<'PY'
import http.client, os, sys, time
port, here = int(sys.argv[1]), os.environ["FREEZE_HERE"]
want = open(here + "/www/page", "rb").read()
conn, n, after = http.client.HTTPConnection("127.0.0.1", port, timeout=60), 0, 0
while after < 50:
    conn.request("GET", "/page")
    # Automatic reconnection would hide a connection that was lost.
    conn.auto_open = 0
    if conn.getresponse().read() != want: sys.exit("another page")
    n += 1
    after += os.path.exists(here + "/go")
    if n == 20: open(here + "/load-%d" % os.getpid(), "w").close()
PY
python3 load.py "$port" & one=$!
python3 load.py "$port" & two=$!
wait_for test -e "load-$one"; wait_for test -e "load-$two"
freeze_here
wait "$one" || die 'the first client'
wait "$two" || die 'the second client'
kill -HUP "$server"; sleep 0.3
python3 -c "
import urllib.request
assert urllib.request.urlopen('http://127.0.0.1:$port/page').read() == open('www/page', 'rb').read()"
kill -QUIT "$server"; wait "$server"
