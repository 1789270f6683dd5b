# stress-ng: memory, pipes, timers, signals, locks and futexes, each of which checks itself.
stress-ng --temp-path "$FREEZE_HERE" --verify --cpu 1 --cpu-method fft --vm 1 --vm-bytes 16m --pipe 1 --timer 1 --futex 1 --sigq 1 \
    --eventfd 1 --sem 1 --mmap 1 --mmap-bytes 8m -t 8 > stress.log 2>&1 & work=$!
sleep 1.5
freeze_here
wait "$work" || { cat stress.log; die 'what stress-ng found'; }
