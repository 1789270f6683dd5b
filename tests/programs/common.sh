# What every program under test in a shell has: the hole in the middle, checks, and a free port.
set -eu
PATH=$PATH:/usr/sbin
cd "$FREEZE_HERE"
die() { echo "not so: $*" >&2; exit 1; }
same() { [ "$1" = "$2" ] || die "$3: '$1', not '$2'"; }
gone_ahead() { [ -e "$FREEZE_HERE/go" ]; }
freeze_here() { : > "$FREEZE_HERE/ready"; while ! gone_ahead; do sleep 0.02; done; }
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
wait_for() { for _ in $(seq 1500); do if "$@" > /dev/null 2>&1; then return 0; fi; sleep 0.02; done; die "waited for: $*"; }
