# MariaDB: very many threads, InnoDB with io_uring where the kernel grants it. A transaction that is open across the cut commits.
as="setpriv --reuid=mysql --regid=mysql --clear-groups"
chmod 755 "$FREEZE_HERE"
mkdir data; chown mysql data
mariadb-install-db --no-defaults --user=mysql --datadir="$FREEZE_HERE/data" --skip-test-db \
    --auth-root-authentication-method=normal > install.log 2>&1 || { cat install.log; exit 1; }
$as mariadbd --no-defaults --datadir="$FREEZE_HERE/data" --socket="$FREEZE_HERE/data/sock" --skip-networking \
    --tmpdir="$FREEZE_HERE/data" --innodb-buffer-pool-size=16M < /dev/null > server.log 2>&1 &
server=$!
sql() { mariadb --no-defaults -u root -S "$FREEZE_HERE/data/sock" -N -B "$@"; }
wait_for sql -e 'select 1'
sql -e 'create database d; create table d.t (n int primary key, s text) engine=innodb;
    insert into d.t with recursive c(n) as (select 1 union all select n + 1 from c where n < 900) select n, md5(n) from c'
coproc CLIENT { sql --unbuffered d 2>&1; }
client=$CLIENT_PID
from=${CLIENT[0]} to=${CLIENT[1]}
echo "begin; update t set s = 'open' where n <= 100; select count(*) from t where s = 'open';" >&"$to"
read -r -u "$from" line; same "$line" 100 'rows in the open transaction'
same "$(sql -e "select count(*) from d.t where s = 'open'")" 0 'rows seen from outside the transaction'
freeze_here
same "$(sql -e "select count(*) from d.t where s = 'open'")" 0 'rows seen from outside before the commit'
echo "insert into t values (901, 'late'); commit; select 'done';" >&"$to"
read -r -u "$from" line; same "$line" done 'the commit'
eval "exec $to>&-"; wait "$client"
same "$(sql -e "select count(*) from d.t where s = 'open'")" 100 'rows after the commit'
same "$(sql -e 'select count(*), min(n), max(n) from d.t')" "$(printf '901\t1\t901')" 'all rows'
same "$(sql -e 'check table d.t extended' | cut -f 4)" OK 'the check of the table'
kill "$server"; wait "$server" || true
grep -q 'Shutdown complete' server.log || { cat server.log; die 'a clean shutdown'; }
