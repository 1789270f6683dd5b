# PostgreSQL: many processes, shared memory, semaphores. A transaction that is open across the cut commits.
bin=$(ls -d /usr/lib/postgresql/*/bin | tail -1)
as="setpriv --reuid=postgres --regid=postgres --clear-groups"
chmod 755 "$FREEZE_HERE"
mkdir data; chown postgres data
$as "$bin/initdb" -D "$FREEZE_HERE/data" -A trust -N > initdb.log 2>&1 || { cat initdb.log; exit 1; }
mkdir sock; chown postgres sock
$as "$bin/postgres" -D "$FREEZE_HERE/data" -k "$FREEZE_HERE/sock" -c listen_addresses= -c fsync=off \
    < /dev/null > server.log 2>&1 &
server=$!
sql() { psql -X -q -t -A -h "$FREEZE_HERE/sock" -U postgres -v ON_ERROR_STOP=1 "$@"; }
wait_for sql -c 'select 1'
sql -c 'create table t (n int primary key, s text); insert into t select n, md5(n::text) from generate_series(1, 20000) n'
coproc CLIENT { psql -X -q -t -A -h "$FREEZE_HERE/sock" -U postgres -v ON_ERROR_STOP=1 2>&1; }
client=$CLIENT_PID
from=${CLIENT[0]} to=${CLIENT[1]}
echo "begin; update t set s = 'open' where n <= 100; select count(*) from t where s = 'open';" >&"$to"
read -r -u "$from" line; same "$line" 100 'rows in the open transaction'
same "$(sql -c "select count(*) from t where s = 'open'")" 0 'rows seen from outside the transaction'
freeze_here
same "$(sql -c "select count(*) from t where s = 'open'")" 0 'rows seen from outside before the commit'
echo "insert into t values (20001, 'late'); commit; select 'done';" >&"$to"
read -r -u "$from" line; same "$line" done 'the commit'
eval "exec $to>&-"; wait "$client"
same "$(sql -c "select count(*) from t where s = 'open'")" 100 'rows after the commit'
same "$(sql -c 'select count(*), min(n), max(n) from t')" '20001|1|20001' 'all rows'
sql -c 'vacuum full t' -c 'reindex table t'
kill -INT "$server"; wait "$server" || true
$as "$bin/pg_controldata" "$FREEZE_HERE/data" | grep -q 'shut down$' || die 'a clean shutdown'
