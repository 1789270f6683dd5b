//! The trackers against the truth: an image kept up to date by their answers alone must equal the target's memory,
//! byte for byte, whatever the target does to it.

use super::*;
use crate::ids::subtract;
use crate::sys::fault;
use crate::sys::pagemap::{self, Contents};
use crate::sys::{pidfd_getfd, pidfd_open, uffd};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Mutex;

const PAGE: usize = crate::ids::PAGE as usize;

/// Python that does what it is told, a hexadecimal line at a time, and answers with the value of `r`.
const DRIVER: &str = r#"
import ctypes, os, random, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = libc.mremap.restype = libc.sbrk.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
for call in libc.munmap, libc.mlock: call.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
for call in libc.madvise, libc.mprotect: call.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.read.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
P = 4096
def check(n):
    if n in (-1, 2**64 - 1): raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return n
def mapped(pages, prot=3, flags=0x22, fd=-1, at=None): return check(libc.mmap(at, pages * P, prot, flags, fd, 0))
def store(at, page, what=None): ctypes.memmove(at + page * P + 8 * (page % 500), what or os.urandom(8), 8)
def load(at, page): return ctypes.string_at(at + page * P, 8)
def advise(at, page, pages, what): check(libc.madvise(at + page * P, pages * P, what))
r = os.getpid()
print(r, flush=True)
for line in sys.stdin:
    r = None
    try: exec(bytes.fromhex(line).decode(), globals())
    except Exception as e: r = 'failed: %r' % e
    print(r, flush=True)
"#;

struct Target {
    child: std::process::Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    pid: Pid,
    mem: File,
}

impl Target {
    fn new() -> Target {
        let mut child = Command::new("python3")
            .args(["-c", DRIVER])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 is needed for this test");
        let (to, from) = (
            child.stdin.take().unwrap(),
            BufReader::new(child.stdout.take().unwrap()),
        );
        let pid = Pid(child.id() as i32);
        let mem = File::open(format!("/proc/{pid}/mem")).unwrap();
        let mut target = Target {
            child,
            to,
            from,
            pid,
            mem,
        };
        assert_eq!(target.answer(), pid.to_string());
        // The first open may have been of a launcher that has executed python since.
        target.mem = File::open(format!("/proc/{pid}/mem")).unwrap();
        target
    }

    fn answer(&mut self) -> String {
        let mut line = String::new();
        self.from.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn ask(&mut self, code: &str) {
        let hex: String = code.bytes().map(|b| format!("{b:02x}")).collect();
        writeln!(self.to, "{hex}").unwrap();
        kill(self.pid.nix(), Signal::SIGCONT).unwrap();
    }

    /// Runs `code` to its end; returns `r`. The target is at rest before and afterwards.
    fn run(&mut self, code: &str) -> String {
        self.ask(code);
        let answer = self.answer();
        assert!(!answer.starts_with("failed"), "{code}: {answer}");
        self.rest();
        answer
    }

    /// Stops it: having answered, it would still tidy up its memory.
    fn rest(&self) {
        kill(self.pid.nix(), Signal::SIGSTOP).unwrap();
        let stopped = waitpid(self.pid.nix(), Some(WaitPidFlag::WUNTRACED)).unwrap();
        assert_eq!(stopped, WaitStatus::Stopped(self.pid.nix(), Signal::SIGSTOP));
    }

    /// Runs `code`, which sets `r` to the address of `pages` pages.
    fn range(&mut self, code: &str, pages: u64) -> Range {
        let at: u64 = self.run(code).parse().unwrap();
        Range::new(at, at + pages * PAGE as u64)
    }

    fn async_wp(&mut self) -> AsyncWp {
        let fd: i32 = self
            .run(&format!("r = check(libc.syscall(323, {}))", uffd::FLAGS))
            .parse()
            .unwrap();
        let pidfd = pidfd_open(self.pid).unwrap();
        let ours = pidfd_getfd(pidfd.as_fd(), fd).unwrap();
        self.run(&format!("os.close({fd})"));
        AsyncWp::new(self.pid, ours).unwrap()
    }

    /// Its private mappings, as an engine would give them.
    fn private(&self) -> Vec<Vma> {
        let special = [&b"[vvar]"[..], b"[vvar_vclock]", b"[vdso]", b"[vsyscall]"];
        maps(self.pid)
            .unwrap()
            .into_iter()
            .filter(|v| !v.shared && !special.contains(&&v.name[..]))
            .collect()
    }

    fn page(&self, at: u64) -> Option<[u8; PAGE]> {
        let mut page = [0; PAGE];
        self.mem.read_exact_at(&mut page, at).ok().map(|()| page)
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What an engine would have on disk: each page as it was when a tracker last called it written.
#[derive(Default)]
struct Image(BTreeMap<u64, [u8; PAGE]>);

impl Image {
    /// One checkpoint.
    fn update(&mut self, target: &Target, pages: &Pages) {
        let populated = pages_of(&pages.populated);
        self.0.retain(|at, _| populated.binary_search(at).is_ok());
        for at in pages_of(&pages.written) {
            // While the target runs a page may be gone by now.
            if let Some(page) = target.page(at) {
                self.0.insert(at, page);
            }
        }
    }

    /// Compares with all private memory of the target, which must be at rest; returns how many pages it looked at.
    fn compare(&self, target: &Target, when: &str) -> usize {
        let mut seen = 0;
        for vma in target.private() {
            let file = vma
                .has_file()
                .then(|| File::open(std::ffi::OsStr::from_bytes(&vma.name)).unwrap());
            for at in (vma.start..vma.end).step_by(PAGE) {
                let Some(real) = target.page(at) else { continue };
                let mut below = [0; PAGE];
                if let Some(file) = &file {
                    let offset = vma.offset + (at - vma.start);
                    let mut done = 0;
                    while done < PAGE {
                        match file.read_at(&mut below[done..], offset + done as u64).unwrap() {
                            0 => break,
                            n => done += n,
                        }
                    }
                }
                let ours = self.0.get(&at).unwrap_or(&below);
                assert!(
                    *ours == real,
                    "{when}: page {at:x} of {} is not what the image says",
                    vma.label()
                );
                seen += 1;
            }
        }
        seen
    }
}

fn pages_of(ranges: &[Range]) -> Vec<u64> {
    ranges
        .iter()
        .flat_map(|r| (r.start..r.end).step_by(PAGE))
        .collect()
}

/// `A` is 1,024 pages of anonymous memory, `F` 64 pages of a private file mapping (file of 60), `H` 4 MiB fit
/// for huge pages.
const SETUP: &str = "
A = mapped(1024); libc.madvise(A, 1024 * P, 15)
for i in range(0, 1024, 2): store(A, i)
name = '/tmp/freeze-dirty-%d' % os.getpid()
f = os.open(name, os.O_RDWR | os.O_CREAT, 0o600); os.write(f, os.urandom(60 * P))
F = mapped(64, flags=2, fd=f)
for i in range(0, 60, 3): store(F, i)
for i in range(1, 60, 3): load(F, i)
H = mapped(1536) + 0x1fffff & ~0x1fffff; advise(H, 0, 1024, 14)
for i in range(512): store(H, i)
free = mapped(4096, prot=0)
";

/// What is done to the memory between two looks, each named.
const DEEDS: &[(&str, &str)] = &[
    ("nothing", ""),
    (
        "random stores",
        "for _ in range(200): store(A, random.randrange(1024))",
    ),
    ("one byte", "ctypes.memset(A + 77, 1, 1)"),
    ("first write to a hole", "store(A, 1); store(A, 3)"),
    ("read of a hole, later written", "load(A, 5); load(A, 7)"),
    ("… and now written", "store(A, 5)"),
    (
        "read(2) into memory",
        "z = os.open('/dev/urandom', 0); assert libc.read(z, A + 40 * P + 9, 5 * P) == 5 * P; os.close(z)",
    ),
    ("MADV_DONTNEED", "advise(A, 100, 50, 4)"),
    (
        "MADV_DONTNEED, then read",
        "advise(A, 200, 50, 4); [load(A, i) for i in range(200, 250)]",
    ),
    (
        "MADV_DONTNEED, then written",
        "advise(A, 300, 50, 4); [store(A, i) for i in range(300, 350, 3)]",
    ),
    ("MADV_DONTNEED of a private file mapping", "advise(F, 0, 20, 4)"),
    ("… read again", "[load(F, i) for i in range(10)]"),
    ("… written again", "store(F, 2); store(F, 11); store(F, 12)"),
    (
        "MADV_DONTNEED of a private file mapping, then read",
        "advise(F, 20, 20, 4); [load(F, i) for i in range(20, 40)]",
    ),
    (
        "MADV_FREE, then written",
        "advise(A, 400, 10, 8); [store(A, i) for i in range(400, 410)]",
    ),
    ("mprotect", "libc.mprotect(A + 500 * P, 20 * P, 1)"),
    (
        "… and back, written",
        "libc.mprotect(A + 500 * P, 20 * P, 3); store(A, 510)",
    ),
    ("mlock", "libc.mlock(A + 520 * P, 8 * P); store(A, 522)"),
    (
        "mremap away",
        "M = check(libc.mremap(A + 600 * P, 100 * P, 100 * P, 3, free)); store(M, 4)",
    ),
    ("… the moved one written", "store(M, 5); store(M, 6)"),
    (
        "mremap grows in place or elsewhere",
        "M = check(libc.mremap(M, 100 * P, 150 * P, 1, None)); store(M, 120)",
    ),
    (
        "mremap back",
        "M = check(libc.mremap(M, 150 * P, 100 * P, 3, A + 600 * P)); store(A, 601)",
    ),
    (
        "munmap and mmap at the same place, untouched",
        "libc.munmap(A + 700 * P, 20 * P); mapped(20, flags=0x32, at=A + 700 * P)",
    ),
    (
        "mmap over it, written",
        "mapped(20, flags=0x32, at=A + 720 * P); store(A, 725)",
    ),
    ("MAP_POPULATE over it", "mapped(20, flags=0x8032, at=A + 740 * P)"),
    (
        "a file mapped over memory",
        "mapped(10, flags=0x12, fd=f, at=A + 760 * P); load(A, 761); store(A, 762)",
    ),
    (
        "memory mapped over a file",
        "mapped(10, flags=0x32, at=F + 40 * P); store(F, 41)",
    ),
    (
        "brk grows",
        "b = check(libc.sbrk(64 * P)); store(b, 1); store(b, 63)",
    ),
    (
        "brk grows again",
        "b2 = check(libc.sbrk(64 * P)); store(b2, 0); store(b, 63)",
    ),
    ("brk shrinks", "libc.sbrk(-100 * P)"),
    ("a huge page written in one place", "store(H, 100)"),
    ("a huge hole filled", "store(H, 512 + 17)"),
    ("a huge page partly dropped", "advise(H, 50, 10, 4)"),
    (
        "fork, both write",
        "
p = os.fork()
if p == 0:
    for i in range(800, 900): store(A, i)
    os._exit(0)
for i in range(850, 900, 5): store(A, i)
os.waitpid(p, 0)
store(A, 899)",
    ),
    ("guard pages", "libc.madvise(A + 900 * P, 4 * P, 102)"),
    (
        "guard pages gone",
        "libc.madvise(A + 900 * P, 4 * P, 103); store(A, 902)",
    ),
    (
        "a thread",
        "t = threading.Thread(target=lambda: [store(A, i) for i in range(1000, 1024)]); t.start(); t.join()",
    ),
    (
        "all unmapped",
        "libc.munmap(H, 1024 * P); libc.munmap(A + 512 * P, 8 * P)",
    ),
    (
        "garbage in Python's own heap",
        "x = [bytes(random.randrange(5000)) for _ in range(3000)]",
    ),
    ("and much of it freed", "x = x[::3]"),
];

fn ranges(vmas: &[Vma]) -> Vec<Range> {
    normalize(vmas.iter().map(Vma::range).collect())
}

fn keep_an_image(target: &mut Target, tracker: &mut dyn Tracker) {
    let mut image = Image::default();
    target.run(SETUP);
    for (n, (deed, code)) in DEEDS.iter().enumerate() {
        target.run(code);
        let vmas = ranges(&target.private());
        let refused = tracker.track(&vmas).unwrap();
        assert!(refused.is_empty(), "{deed}: {refused:?}");
        let peeked = tracker.peek(&vmas).unwrap();
        // Both ways of asking must do; with the target at rest they and the peek agree.
        let pages = if n % 2 == 0 {
            tracker.survey(&vmas).unwrap()
        } else {
            let map = pagemap::open(target.pid).unwrap();
            let written = tracker.take_written(&vmas).unwrap();
            Pages {
                populated: map.populated_in(&vmas, Contents::Private).unwrap(),
                written,
            }
        };
        assert_eq!(peeked, pages, "{deed}");
        assert_eq!(subtract(&pages.written, &pages.populated), [], "{deed}");
        image.update(target, &pages);
        assert!(image.compare(target, deed) > 1000);
        if tracker.tier() != Tier::Everything {
            assert_eq!(tracker.unregistered(&vmas).unwrap(), [], "{deed}");
            let written: u64 = tracker
                .peek(&vmas)
                .unwrap()
                .written
                .iter()
                .map(|r| r.pages())
                .sum();
            assert_eq!(written, 0, "{deed}: what was just taken counts as written");
        }
    }
    target.run("os.unlink(name)");
}

#[test]
fn async_wp_keeps_an_image() {
    let mut target = Target::new();
    let mut tracker = target.async_wp();
    keep_an_image(&mut target, &mut tracker);
}

#[test]
fn everything_keeps_an_image() {
    let mut target = Target::new();
    let mut tracker = Everything::new(target.pid).unwrap();
    keep_an_image(&mut target, &mut tracker);
}

#[test]
fn soft_dirty_keeps_an_image() {
    let mut target = Target::new();
    match SoftDirty::new(target.pid) {
        Ok(mut tracker) => keep_an_image(&mut target, &mut tracker),
        Err(e) => assert!(!SoftDirty::works(), "{e}"),
    }
}

#[test]
fn exactly_what_was_written_is_told() {
    let mut target = Target::new();
    let mut tracker = target.async_wp();
    let a = target.range("A = r = mapped(1000); libc.madvise(A, 1000 * P, 15)", 1000);
    let page = |n: u64| Range::new(a.start + n * PAGE as u64, a.start + (n + 1) * PAGE as u64);
    tracker.track(&[a]).unwrap();
    assert_eq!(tracker.take_written(&[a]).unwrap(), []);
    // Never armed: populated after the registration.
    target.run("store(A, 5); store(A, 6); load(A, 9)");
    assert_eq!(
        tracker.take_written(&[a]).unwrap(),
        [Range::new(page(5).start, page(6).end)]
    );
    assert_eq!(tracker.take_written(&[a]).unwrap(), []);
    target.run("store(A, 6); store(A, 9); advise(A, 5, 1, 4)");
    assert_eq!(tracker.peek(&[a]).unwrap().written, [page(6), page(9)]);
    // Only what was asked about is taken.
    assert_eq!(tracker.take_written(&[page(6)]).unwrap(), [page(6)]);
    let both = Pages {
        populated: vec![page(6), page(9)],
        written: vec![page(9)],
    };
    assert_eq!(tracker.survey(&[a]).unwrap(), both);
    // A mapping replaced behind our back, and not yet tracked again, counts as written as long as it is not; so does
    // one that never was tracked.
    target.run("mapped(2, flags=0x32, at=A + 20 * P); store(A, 20)");
    let other = target.range("B = r = mapped(4); store(B, 2)", 4);
    let second = Range::new(other.start + 2 * PAGE as u64, other.start + 3 * PAGE as u64);
    for _ in 0..2 {
        assert_eq!(tracker.take_written(&[page(20)]).unwrap(), [page(20)]);
        assert_eq!(tracker.take_written(&[other]).unwrap(), [second]);
        assert_eq!(
            tracker.unregistered(&[a]).unwrap(),
            [Range::new(page(20).start, page(21).end)]
        );
    }
    target.run("libc.munmap(A + 20 * P, 2 * P)");
    // Holes were not armed: a huge page may still come, and nothing looks swapped.
    let map = pagemap::open(target.pid).unwrap();
    assert_eq!(map.populated(a, Contents::Any).unwrap(), [page(6), page(9)]);
}

#[test]
fn nothing_is_lost_while_it_runs() {
    let mut target = Target::new();
    let mut tracker = target.async_wp();
    target.run(SETUP);
    let deed = "
stop = time.time() + 2; n = 0
def work(seed):
    global n
    mine = random.Random(seed)
    while time.time() < stop:
        for _ in range(50): store(A, mine.randrange(1024)); store(H, mine.randrange(1024)); store(F, mine.randrange(60))
        advise(A, mine.randrange(1000), 8, 4); advise(F, mine.randrange(50), 4, 4)
        at = A + 4 * P * mine.randrange(200); mapped(4, flags=0x32, at=at); n += 1
ts = [threading.Thread(target=work, args=(i,)) for i in range(3)]
[t.start() for t in ts]; [t.join() for t in ts]
r = n";
    let mut image = Image::default();
    let round = |target: &Target, tracker: &mut AsyncWp, image: &mut Image| {
        let vmas = ranges(&target.private());
        tracker.track(&vmas).unwrap();
        let pages = tracker.survey(&vmas).unwrap();
        image.update(target, &pages);
    };
    target.ask(deed);
    let end = std::time::Instant::now() + std::time::Duration::from_millis(2100);
    let mut rounds = 0;
    while std::time::Instant::now() < end {
        round(&target, &mut tracker, &mut image);
        rounds += 1;
    }
    let done = target.answer();
    assert!(done.parse::<u64>().is_ok_and(|n| n > 10), "{done}");
    assert!(rounds > 10, "{rounds} rounds");
    target.rest();
    round(&target, &mut tracker, &mut image);
    image.compare(&target, "after it all");
    target.run("os.unlink(name)");
}

/// Memory that the target watches by a userfaultfd of its own.
const OWNED: &str = "
O = r = mapped(8)
class Api(ctypes.Structure): _fields_ = [(n, ctypes.c_uint64) for n in 'abcd']
u = check(libc.syscall(323, 1)); api = Api(0xaa, 1); check(libc.ioctl(u, ctypes.c_ulong(0xc018aa3f), ctypes.byref(api)))
reg = Api(O, 8 * P, 2); check(libc.ioctl(u, ctypes.c_ulong(0xc020aa00), ctypes.byref(reg)))";

#[test]
fn what_cannot_be_tracked_is_told() {
    let mut target = Target::new();
    let mut tracker = target.async_wp();
    let shared = target.range("S = r = mapped(8, flags=0x21)", 8);
    let owned = target.range(OWNED, 8);
    let vdso = maps(target.pid)
        .unwrap()
        .iter()
        .find(|v| v.name == b"[vdso]")
        .unwrap()
        .range();
    let mut untracked = Vec::new();
    for r in [shared, owned, vdso] {
        untracked.extend(tracker.track(&[r]).unwrap());
    }
    let why = [
        Untracked::Shared,
        Untracked::Owned,
        Untracked::Refused(Errno::EINVAL),
    ];
    assert_eq!(
        untracked,
        [shared, owned, vdso].into_iter().zip(why).collect::<Vec<_>>()
    );
    assert_eq!(tracker.unregistered(&[owned]).unwrap(), [owned]);
}

static GROWING: Mutex<Option<Target>> = Mutex::new(None);

/// Where its neighbour belongs to another, a mapping is registered by itself: also what it has grown by just then.
#[test]
fn what_grows_beside_another_owner_stays_one() {
    let mut target = Target::new();
    let mut tracker = target.async_wp();
    target.run(OWNED);
    let a = target.range(
        "W = mapped(64, prot=0); A = r = W + 16 * P
check(libc.mprotect(A, 4 * P, 3)); check(libc.munmap(A + 4 * P, 28 * P)); store(A, 1)",
        4,
    );
    *GROWING.lock().unwrap() = Some(target);
    let armed = fault::meddle("registration", || {
        let mut target = GROWING.lock().unwrap();
        target
            .as_mut()
            .unwrap()
            .run("check(libc.mremap(A, 4 * P, 8 * P, 0, None))");
    });
    assert_eq!(tracker.track(&[a]).unwrap(), []);
    drop(armed);
    let mut target = GROWING.lock().unwrap().take().unwrap();
    assert_eq!(tracker.unregistered(&[a]).unwrap(), []);
    target.run("check(libc.mremap(A, 8 * P, 16 * P, 0, None)); store(A, 12)");
}

#[test]
fn guard_pages_are_told_apart() {
    let mut target = Target::new();
    let a = target.range("A = r = mapped(16); [store(A, i) for i in range(16)]; r = (libc.madvise(A + 4 * P, 2 * P, 102) == 0) and A or 0", 16);
    if a.start == 0 {
        return; // older than 6.13
    }
    let at = |n: u64| a.start + n * PAGE as u64;
    for map in [
        pagemap::open(target.pid).unwrap(),
        pagemap::open(target.pid).unwrap().without_scan(),
    ] {
        assert_eq!(map.guards(a).unwrap(), [Range::new(at(4), at(6))]);
        let rest = [Range::new(at(0), at(4)), Range::new(at(6), at(16))];
        assert_eq!(map.populated(a, Contents::Private).unwrap(), rest);
        assert_eq!(map.populated(a, Contents::Any).unwrap(), rest);
    }
}

#[test]
fn both_ways_of_looking_agree() {
    let mut target = Target::new();
    target.run(SETUP);
    let (scan, read) = (
        pagemap::open(target.pid).unwrap(),
        pagemap::open(target.pid).unwrap().without_scan(),
    );
    for which in [Contents::Private, Contents::Any] {
        let vmas = ranges(&target.private());
        assert_eq!(
            scan.populated_in(&vmas, which).unwrap(),
            read.populated_in(&vmas, which).unwrap()
        );
    }
    target.run("os.unlink(name)");
}

#[test]
fn another_program_or_none_is_not_an_empty_one() {
    let mut target = Target::new();
    let a = target.range("A = r = mapped(4); store(A, 1)", 4);
    let mut tracker = target.async_wp();
    tracker.track(&[a]).unwrap();
    target.ask("os.execv('/bin/cat', ['cat'])");
    while std::fs::read(format!("/proc/{}/comm", target.pid)).unwrap() != b"cat\n" {
        std::thread::yield_now();
    }
    assert!(matches!(tracker.take_written(&[a]), Err(Error::Died { .. })));
    assert!(matches!(tracker.track(&[a]), Err(Error::Died { .. })));
    drop(target);
    assert!(matches!(tracker.survey(&[a]), Err(Error::Died { .. })));
}

/// A buffer that is registered with io_uring counts as written, whatever comes into it while nobody looks.
#[test]
fn registering_a_buffer_is_a_write() {
    let mut target = Target::new();
    let mut tracker = target.async_wp();
    let a = target.range("A = r = mapped(16); [store(A, n) for n in range(16)]; r = A", 16);
    let page = |n: u64| Range::new(a.start + n * PAGE as u64, a.start + (n + 1) * PAGE as u64);
    target.run("RING = libc.syscall(425, 4, ctypes.create_string_buffer(120))");
    if target.run("r = RING") == "-1" {
        return;
    }
    tracker.track(&[a]).unwrap();
    tracker.take_written(&[a]).unwrap();
    assert_eq!(tracker.take_written(&[a]).unwrap(), []);
    target.run(
        "V = (ctypes.c_uint64 * 2)(A + 3 * P, 2 * P); check(libc.syscall(427, RING, 0, V, 1)); \
         check(libc.syscall(427, RING, 1, None, 0))",
    );
    let both = Range::new(page(3).start, page(4).end);
    assert_eq!(tracker.take_written(&[a]).unwrap(), [both]);
}
