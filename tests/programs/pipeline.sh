# The pipeline `cat big | gzip > out`, in the midst of it: what comes out is what an undisturbed run makes.
seq 4000000 > big
cat big | gzip -9n > zipped &
work=$!
grown() { [ "$(stat -c %s zipped)" -gt 500000 ]; }
wait_for grown
: > ready
wait "$work" || die 'gzip'
while ! gone_ahead; do sleep 0.02; done
gzip -9n < big | cmp - zipped
