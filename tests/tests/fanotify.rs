//! Conformance of fanotify: classes, flags, marks on files, mounts and file systems, what they ignore.

use freeze_tests::subject::{freeze_checkpoint, output};
use freeze_tests::{Running, c, conformance};
use std::path::Path;

conformance!(
    marks,
    c(r#"
/* Each group tells of what it asked for, and of nothing that happened for the sake of a restore. */
#include <sys/fanotify.h>
#include <sys/mount.h>
static char buf[4096];
static struct fanotify_event_metadata *event(int group) {
    CHECK(read(group, buf, sizeof buf) >= (long)FAN_EVENT_METADATA_LEN);
    return (void *)buf;
}
static void nothing(int group) { CHECK(read(group, buf, sizeof buf) == -1 && errno == EAGAIN); }
int main(void) {
    /* A file system of its own, on which nobody else works. */
    OK(unshare(CLONE_NEWNS));
    OK(mount(0, "/", 0, MS_REC | MS_PRIVATE, 0));
    char *d = strdup(in_here("d"));
    OK(mkdir(d, 0700));
    OK(mount("t", d, "tmpfs", 0, 0));
    char *a = strdup(in_here("d/a")), *b = strdup(in_here("d/b"));
    int fa = OK(open(a, O_CREAT | O_RDWR, 0600)), fb = OK(open(b, O_CREAT | O_RDWR, 0600));
    int file = OK(fanotify_init(FAN_CLASS_NOTIF | FAN_NONBLOCK | FAN_CLOEXEC, O_RDONLY | O_CLOEXEC | O_LARGEFILE));
    OK(fanotify_mark(file, FAN_MARK_ADD, FAN_MODIFY | FAN_CLOSE_WRITE, AT_FDCWD, a));
    OK(fanotify_mark(file, FAN_MARK_ADD, FAN_MODIFY, AT_FDCWD, b));
    int mnt = OK(fanotify_init(FAN_CLASS_CONTENT | FAN_NONBLOCK | FAN_UNLIMITED_QUEUE, O_RDWR));
    OK(fanotify_mark(mnt, FAN_MARK_ADD | FAN_MARK_MOUNT, FAN_MODIFY, AT_FDCWD, d));
    OK(fanotify_mark(mnt, FAN_MARK_ADD | FAN_MARK_IGNORED_MASK | FAN_MARK_IGNORED_SURV_MODIFY, FAN_MODIFY, AT_FDCWD, b));
    int fs = OK(fanotify_init(FAN_CLASS_NOTIF | FAN_NONBLOCK, O_RDONLY));
    OK(fanotify_mark(fs, FAN_MARK_ADD | FAN_MARK_FILESYSTEM, FAN_CLOSE_WRITE, AT_FDCWD, d));
    freeze_here();
    nothing(file), nothing(mnt), nothing(fs);
    SAME(write(fa, "x", 1), 1);
    struct fanotify_event_metadata *e = event(file);
    SAME(e->mask, FAN_MODIFY);
    SAME(e->pid, getpid());
    SAME(fcntl(e->fd, F_GETFL) & O_ACCMODE, O_RDONLY);
    SAME(fcntl(e->fd, F_GETFD), FD_CLOEXEC);
    SAME(event(mnt)->mask, FAN_MODIFY);
    SAME(fcntl(((struct fanotify_event_metadata *)buf)->fd, F_GETFL) & O_ACCMODE, O_RDWR);
    SAME(write(fb, "x", 1), 1);
    SAME(event(file)->mask, FAN_MODIFY);
    nothing(mnt);
    close(fa);
    SAME(event(file)->mask, FAN_CLOSE_WRITE);
    SAME(event(fs)->mask, FAN_CLOSE_WRITE);
    SAME(fcntl(file, F_GETFD), FD_CLOEXEC);
}
"#),
    only: root
);

conformance!(
    by_name,
    c(r#"
/* A group that tells names instead of descriptors, one that needs no rights, and a marked file without a name. */
#include <sys/fanotify.h>
int main(void) {
    char *d = strdup(in_here("d")), *gone = strdup(in_here("gone"));
    OK(mkdir(d, 0700));
    int file = OK(open(gone, O_CREAT | O_RDWR, 0600));
    int names = OK(fanotify_init(FAN_CLASS_NOTIF | FAN_NONBLOCK | FAN_REPORT_DFID_NAME, 0));
    OK(fanotify_mark(names, FAN_MARK_ADD | FAN_MARK_ONLYDIR, FAN_CREATE | FAN_DELETE | FAN_ONDIR, AT_FDCWD, d));
    int fid = OK(fanotify_init(FAN_CLASS_NOTIF | FAN_NONBLOCK | FAN_REPORT_FID, 0));
    OK(fanotify_mark(fid, FAN_MARK_ADD, FAN_MODIFY, AT_FDCWD, gone));
    OK(unlink(gone));
    freeze_here();
    char buf[4096];
    struct fanotify_event_metadata *e = (void *)buf;
    CHECK(read(names, buf, sizeof buf) == -1 && errno == EAGAIN);
    CHECK(read(fid, buf, sizeof buf) == -1 && errno == EAGAIN);
    OK(mkdir(in_here("d/made"), 0700));
    CHECK(read(names, buf, sizeof buf) > 0);
    SAME(e->mask, FAN_CREATE | FAN_ONDIR);
    struct fanotify_event_info_fid *info = (void *)(e + 1);
    struct file_handle *handle = (void *)info->handle;
    CHECK(!strcmp((char *)handle->f_handle + handle->handle_bytes, "made"));
    SAME(write(file, "x", 1), 1);
    CHECK(read(fid, buf, sizeof buf) > 0);
    SAME(e->mask, FAN_MODIFY);
}
"#)
);

// Of a file that a group marks which tells the directory, the kernel shows more than may be asked for.
conformance!(
    with_target,
    c(r#"
#include <sys/fanotify.h>
#ifndef FAN_REPORT_TARGET_FID
#define FAN_REPORT_TARGET_FID 0x1000
#endif
#ifndef FAN_MARK_IGNORE
#define FAN_MARK_IGNORE 0x400
#endif
static char buf[4096];
static unsigned long long told(int group) {
    unsigned long long mask = 0;
    long n = read(group, buf, sizeof buf);
    for (struct fanotify_event_metadata *e = (void *)buf; FAN_EVENT_OK(e, n); e = FAN_EVENT_NEXT(e, n)) mask |= e->mask;
    return mask;
}
/* What the group asks for, in order. */
static void asked(int group, char *out) {
    char path[64], line[512];
    snprintf(path, sizeof path, "/proc/self/fdinfo/%d", group);
    FILE *f = fopen(path, "r");
    CHECK(f);
    *out = 0;
    while (fgets(line, sizeof line, f)) {
        char *asked = strstr(line, "mflags"), *handle = strstr(line, "fhandle");
        /* In a file system that is made anew a file has another. */
        if (handle && rooted()) *handle = 0;
        if (asked) strcat(out, asked);
    }
    fclose(f);
}
int main(void) {
    static char before[4096], after[4096];
    char *d = strdup(in_here("d")), *a = strdup(in_here("d/a")), *b = strdup(in_here("d/b"));
    OK(mkdir(d, 0700));
    int fa = OK(open(a, O_CREAT | O_RDWR, 0600));
    int group = OK(fanotify_init(FAN_CLASS_NOTIF | FAN_REPORT_FID | FAN_REPORT_DIR_FID | FAN_REPORT_NAME | FAN_REPORT_TARGET_FID | FAN_NONBLOCK, O_RDONLY));
    OK(fanotify_mark(group, FAN_MARK_ADD, FAN_CREATE | FAN_ONDIR | FAN_EVENT_ON_CHILD, AT_FDCWD, d));
    OK(fanotify_mark(group, FAN_MARK_ADD, FAN_OPEN, AT_FDCWD, a));
    OK(fanotify_mark(group, FAN_MARK_ADD | FAN_MARK_IGNORE | FAN_MARK_IGNORED_SURV_MODIFY, FAN_MODIFY, AT_FDCWD, a));
    asked(group, before);
    freeze_here();
    asked(group, after);
    CHECK(!strcmp(before, after));
    CHECK(told(group) == 0);
    SAME(write(fa, "x", 1), 1);
    close(OK(open(a, O_RDONLY)));
    SAME(told(group), FAN_OPEN);
    close(OK(open(b, O_CREAT | O_RDWR, 0600)));
    SAME(told(group), FAN_CREATE);
}
"#),
    only: root
);

/// Who decides what may be opened stands still, and freeze reads a file that it decides about all the same.
#[test]
fn who_gives_permission_stands_still() {
    const TEXT: &str = r#"
#include <sys/fanotify.h>
#include <sys/mount.h>
static void *decide(void *group) {
    for (;;) {
        struct fanotify_event_metadata e[8];
        long n = read((int)(long)group, e, sizeof e);
        for (struct fanotify_event_metadata *at = e; FAN_EVENT_OK(at, n); at = FAN_EVENT_NEXT(at, n)) {
            struct fanotify_response yes = { at->fd, FAN_ALLOW };
            SAME(write((int)(long)group, &yes, sizeof yes), sizeof yes);
            close(at->fd);
        }
    }
}
int main(void) {
    OK(unshare(CLONE_NEWNS));
    OK(mount(0, "/", 0, MS_REC | MS_PRIVATE, 0));
    char *own = strdup(in_here("own"));
    OK(mkdir(own, 0700));
    OK(mount(own, own, 0, MS_BIND, 0));
    int file = OK(open(in_here("own/file"), O_CREAT | O_RDWR, 0600));
    SAME(write(file, "contents", 8), 8);
    OK(unlink(in_here("own/file")));
    long group = OK(fanotify_init(CLASS, O_RDONLY));
    OK(fanotify_mark(group, FAN_MARK_ADD | FAN_MARK_MOUNT, FAN_OPEN_PERM | FAN_ACCESS_PERM, AT_FDCWD, own));
    pthread_t t;
    CHECK(!pthread_create(&t, 0, decide, (void *)group));
    freeze_here();
    close(OK(open(in_here("own/new"), O_CREAT | O_RDWR, 0600)));
}
"#;
    for class in ["FAN_CLASS_CONTENT", "FAN_CLASS_PRE_CONTENT"] {
        let subject = c(&format!("#define CLASS {class}\n{TEXT}"));
        let mut running = Running::start(&subject, "who_gives_permission_stands_still");
        let done = output(&mut freeze_checkpoint(&running, &running.dir().join("image")));
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        // Of two of the highest class anyone may be asked first.
        let asked_first = class == "FAN_CLASS_PRE_CONTENT" && said.contains("ETIMEDOUT");
        assert!(done.status.success() || asked_first, "{said}");
        running.verdict();
    }
}

/// Nobody could write an image past who stands still and is asked about it.
#[test]
fn who_decides_about_the_image() {
    for how in ["FAN_MARK_MOUNT", "FAN_MARK_FILESYSTEM", "FAN_MARK_INODE"] {
        let subject = c(&format!(
            r#"
#include <sys/fanotify.h>
#include <sys/mount.h>
int main(void) {{
    OK(mkdir(in_here("mount"), 0700));
    OK(mount("image", in_here("mount"), "tmpfs", 0, 0));
    int group = OK(fanotify_init(FAN_CLASS_CONTENT, O_RDONLY));
    OK(fanotify_mark(group, FAN_MARK_ADD | {how}, FAN_OPEN_PERM, AT_FDCWD, in_here("mount")));
    freeze_here();
}}
"#
        ));
        let mut running = Running::start(&subject, "who_decides_about_the_image");
        let dir = running.dir().to_owned();
        let mount = dir.join("mount");
        let refused = output(freeze_checkpoint(&running, &mount.join("image")).arg("--kill"));
        let mut by_name = freeze_checkpoint(&running, Path::new("image"));
        let again = output(by_name.arg("--kill").current_dir(&mount));
        let elsewhere = output(&mut freeze_checkpoint(&running, &dir.join("image")));
        running.verdict();
        nix::mount::umount2(&mount, nix::mount::MntFlags::MNT_DETACH).unwrap();
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(3), "{said}");
        assert_eq!(again.stderr, refused.stderr);
        assert!(said.contains("where the image would go"), "{said}");
        assert!(elsewhere.status.success(), "{elsewhere:?}");
    }
}
