# A build under way, `make -j2` of a part of the zstd library: what comes out is what an undisturbed build makes.
source=$(ls -d "${CARGO_HOME:-/root/.cargo}"/registry/src/*/zstd-sys-*/zstd/lib | tail -1)
cat > Makefile <<'MK'
C := $(wildcard $(SOURCE)/common/*.c $(SOURCE)/decompress/*.c $(SOURCE)/dictBuilder/*.c)
O := $(notdir $(C:.c=.o))
VPATH := $(SOURCE)/common $(SOURCE)/decompress $(SOURCE)/dictBuilder
library.a: $(O)
	ar rcD $@ $(sort $(O))
%.o: %.c
	gcc -O1 -DZSTD_DISABLE_ASM -DXXH_NAMESPACE=ZSTD_ -I$(SOURCE) -c $< -o $@
MK
build() { mkdir "$1"; make -j2 -C "$1" -f "$FREEZE_HERE/Makefile" SOURCE="$source"; }
build disturbed > make.log 2>&1 & make=$!
objects() { [ "$(ls disturbed/*.o | wc -l)" -ge 2 ]; }
wait_for objects
: > ready
wait "$make" || { cat make.log; die 'the build'; }
while ! gone_ahead; do sleep 0.02; done
build undisturbed > /dev/null
cmp disturbed/library.a undisturbed/library.a
