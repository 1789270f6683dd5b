# sqlite3 in a transaction, with its locks, and a second one that waits for it.
sqlite3 db 'pragma journal_mode = wal; create table t (n integer primary key, s text);' > /dev/null
coproc CLIENT { sqlite3 -batch db 2>&1; }
client=$CLIENT_PID
from=${CLIENT[0]} to=${CLIENT[1]}
echo "begin immediate; insert into t select value, hex(value) from generate_series(1, 5000); select count(*) from t;" >&"$to"
read -r -u "$from" line; same "$line" 5000 'rows inside the transaction'
same "$(sqlite3 db 'select count(*) from t')" 0 'rows outside of it'
sqlite3 -cmd '.timeout 60000' db "insert into t values (9999, 'second')" & second=$!
sleep 0.2
freeze_here
same "$(sqlite3 db 'select count(*) from t')" 0 'rows outside of it, after the cut'
kill -0 "$second" || die 'the second one still waits'
echo "commit; select 'done';" >&"$to"
read -r -u "$from" line; same "$line" done 'the commit'
eval "exec $to>&-"; wait "$client"; wait "$second" || die 'the second one'
same "$(sqlite3 db 'select count(*) from t')" 5001 'all rows'
same "$(sqlite3 db 'pragma integrity_check')" ok 'integrity'
