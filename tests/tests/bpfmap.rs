//! Conformance of eBPF maps that are plain tables.

use freeze_tests::{c, conformance};

conformance!(
    tables,
    c(r#"
/* A hash and an array with contents and names, one frozen, one held twice. */
#include <linux/bpf.h>
static long bpf(int cmd, union bpf_attr *attr) { return syscall(SYS_bpf, cmd, attr, sizeof *attr); }
static int make(int type, int key, int value, int entries, const char *name, int flags) {
    union bpf_attr attr = { .map_type = type, .key_size = key, .value_size = value, .max_entries = entries, .map_flags = flags };
    strcpy(attr.map_name, name);
    return OK(bpf(BPF_MAP_CREATE, &attr));
}
static long set(int fd, const void *key, const void *value) {
    union bpf_attr attr = { .map_fd = fd, .key = (uintptr_t)key, .value = (uintptr_t)value };
    return bpf(BPF_MAP_UPDATE_ELEM, &attr);
}
static long get(int fd, const void *key, void *value) {
    union bpf_attr attr = { .map_fd = fd, .key = (uintptr_t)key, .value = (uintptr_t)value };
    return bpf(BPF_MAP_LOOKUP_ELEM, &attr);
}
int main(void) {
    int hash = make(BPF_MAP_TYPE_HASH, 4, 8, 100, "a_hash", BPF_F_NO_PREALLOC);
    int array = make(BPF_MAP_TYPE_ARRAY, 4, 16, 50, "an_array", 0);
    int twin = OK(dup(hash));
    for (int i = 0; i < 60; i++) { int key = i * 7; long value = i * 1000003L; OK(set(hash, &key, &value)); }
    for (int i = 0; i < 50; i += 3) { char value[16]; memset(value, i + 1, 16); OK(set(array, &i, value)); }
    union bpf_attr attr = { .map_fd = array };
    OK(bpf(BPF_MAP_FREEZE, &attr));
    freeze_here();
    for (int i = 0; i < 100; i++) {
        int key = i * 7; long value;
        if (i < 60) { OK(get(hash, &key, &value)); SAME(value, i * 1000003L); }
        else CHECK(get(hash, &key, &value) == -1 && errno == ENOENT);
    }
    for (int i = 0; i < 50; i++) {
        char value[16];
        OK(get(array, &i, value));
        for (int k = 0; k < 16; k++) SAME(value[k], i % 3 ? 0 : i + 1);
    }
    int zero = 0; char value[16] = { 0 };
    CHECK(set(array, &zero, value) == -1 && errno == EPERM);
    struct bpf_map_info info = { 0 };
    union bpf_attr ask = { .info = { .bpf_fd = hash, .info_len = sizeof info, .info = (uintptr_t)&info } };
    OK(bpf(BPF_OBJ_GET_INFO_BY_FD, &ask));
    SAME(info.max_entries, 100);
    SAME(info.map_flags, BPF_F_NO_PREALLOC);
    CHECK(!strcmp(info.name, "a_hash"));
    int key = 1; long eight = 8;
    OK(set(twin, &key, &eight));
    OK(get(hash, &key, &eight));
    SAME(eight, 8);
}
"#),
    only: root
);
