# ffmpeg in the midst of an encoding: the film is byte for byte that of an undisturbed run.
film() { ffmpeg -nostdin -v error -y -f lavfi -i "testsrc2=size=320x240:rate=25:duration=$2" -threads 2 -c:v mpeg4 -q:v 5 -bitexact "$1"; }
film disturbed.avi 40 & work=$!
grown() { [ "$(stat -c %s disturbed.avi)" -gt 100000 ]; }
wait_for grown
: > ready
wait "$work" || die 'the encoding'
while ! gone_ahead; do sleep 0.02; done
film undisturbed.avi 40
cmp disturbed.avi undisturbed.avi
