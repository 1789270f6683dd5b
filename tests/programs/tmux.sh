# bash with jobs inside tmux: a terminal multiplexer with the terminals it makes, job control and a client's view.
t() { tmux -S "$FREEZE_HERE/tmux" -f /dev/null "$@"; }
t -D < /dev/null > tmux.log 2>&1 & server=$!
wait_for t new-session -d -s main -x 100 -y 30 'exec bash --norc --noprofile'
screen() { t capture-pane -p -S - -t main; }
shows() { screen | grep -q "$1"; }
# A line that is typed before the program reads it is shown once by the terminal, and once more by the shell's editor.
runs() { [ "$(t display-message -p -t main '#{pane_current_command}')" = "$1" ]; }
# Once as it is typed, and once as the program repeats it.
shows_twice() { [ "$(screen | grep -c "$1")" -ge 2 ]; }
t send-keys -t main 'PS1="> "; secret=forty-two; sleep 1000 &' Enter
t send-keys -t main 'cat' Enter
wait_for runs cat
t send-keys -t main 'a line' Enter
wait_for shows_twice '^a line'
t send-keys -t main C-z
wait_for shows 'Stopped.*cat'
t send-keys -t main 'echo half-' 
freeze_here
t send-keys -t main 'typed $secret' Enter
wait_for shows '^half-typed forty-two'
t send-keys -t main 'jobs' Enter
wait_for shows 'Running.*sleep 1000'
t send-keys -t main 'fg' Enter
wait_for runs cat
t send-keys -t main 'once more' Enter
wait_for shows_twice '^once more'
t send-keys -t main C-d 'kill %1; wait; echo all $((6*7)) over' Enter
wait_for shows '^all 42 over'
t kill-server
wait "$server" || true
