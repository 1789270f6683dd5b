//! Address spaces: every mapping with its contents, protection and advice, brk, the vDSO's place, the exe link.

pub mod heritage;

pub mod collect;
pub mod fill;
pub mod keys;
pub mod lazy;
pub mod place;
pub mod policy;
pub mod rings;
pub mod vdso;

use super::memfd::{MemFile, is_memfd};
use super::pipe::Bytes;
use super::regular::FileRef;
use super::regular::found::Obstacle;
use super::regular::found::shut;
use super::sysv::{self, Segment, segment_of};
use super::{Asks, ProcessKind, Source, Stage};
use crate::error::{Blocker, Result};
use crate::ids::{PAGE, Pid, Range, SpaceId};
use crate::nest::{Nest, Options, is_vdso};
use crate::observe::looks;
use crate::observe::view::{FileStat, ProcessView, View};
use crate::proc::maps::Vma;
use crate::sys::files::guarded;
use crate::tracee::tape::Tape;
use policy::Policy;
use rings::Ring;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Debug)]
pub struct Memory;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// In ascending order, without the vDSO's.
    pub vmas: Vec<Mapping>,
    /// Files that are mapped, each once.
    pub files: Vec<FileRef>,
    /// Shared memory objects without a file, each once.
    pub objects: Vec<Object>,
    /// Memfds that are mapped, each once.
    #[serde(default)]
    pub memfds: Vec<MemFile>,
    /// System V segments that are attached, each once.
    #[serde(default)]
    pub segments: Vec<Segment>,
    /// The number of the IPC namespace they are in; 0 for that of freeze.
    #[serde(default)]
    pub ipc_namespace: u32,
    pub exe: FileRef,
    /// Where the program was executed from a memfd: that, as an index into the record's memfds.
    #[serde(default)]
    pub exe_memfd: Option<usize>,
    /// start_code, end_code, start_data, end_data, start_brk, brk, start_stack, arg_start, arg_end, env_start, env_end.
    pub layout: [u64; 11],
    pub auxv: Bytes,
    /// Name and range of [vvar], [vvar_vclock] and [vdso]; empty if the program unmapped them.
    pub vdso: Vec<(String, Range)>,
    /// Contents of [vdso]: another kernel's differs.
    pub vdso_code: Bytes,
    /// Guard pages (MADV_GUARD_INSTALL).
    #[serde(default)]
    pub guards: Vec<Range>,
    /// Protection keys the program has allocated, a bit each; without the kernel's own for execute-only memory.
    #[serde(default)]
    pub pkeys: u32,
    /// MCL_FUTURE and MCL_ONFAULT, where mlockall(2) has set them for what is mapped later.
    #[serde(default)]
    pub lock_future: i32,
    /// What the descriptors of the process map again.
    #[serde(default)]
    pub parts: Vec<Range>,
    /// AIO contexts, which are mappings with a queue in the kernel.
    #[serde(default)]
    pub rings: Vec<Ring>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mapping {
    pub range: Range,
    /// PROT_* bits.
    pub prot: i32,
    pub shared: bool,
    pub backing: Backing,
    /// Offset in the file or object, in bytes.
    pub offset: u64,
    /// Two-letter VmFlags of proc(5) that a program can set: see [`ADVICE`].
    pub flags: Vec<String>,
    /// The name given with PR_SET_VMA_ANON_NAME.
    pub name: Option<Bytes>,
    /// Bytes per page where they are huge ones (hugetlb); else 0.
    #[serde(default)]
    pub huge: u64,
    /// Its protection key.
    #[serde(default)]
    pub key: u8,
    /// Its own NUMA policy.
    #[serde(default)]
    pub policy: Option<Policy>,
}

impl Mapping {
    /// Whether it has the flag of proc(5), such as `gd`.
    fn has(&self, flag: &str) -> bool {
        self.flags.iter().any(|f| f == flag)
    }

    /// Whether it is private anonymous memory of ordinary pages, taken from where the process runs.
    fn is_plain(&self) -> bool {
        !self.shared && self.huge == 0 && self.policy.is_none() && matches!(self.backing, Backing::Anonymous)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Backing {
    Anonymous,
    /// Index into the record's files.
    File(usize),
    /// Index into the record's objects.
    Object(usize),
    /// Index into the record's memfds.
    Memfd(usize),
    /// Index into the record's segments.
    Segment(usize),
}

/// Shared anonymous memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Object {
    pub space: SpaceId,
    pub size: u64,
    pub noreserve: bool,
    /// Bytes per page where they are huge ones; else 0.
    #[serde(default)]
    pub huge: u64,
}

/// VmFlags that madvise(2) sets, and the advice that sets them again.
const ADVICE: [(&str, i32); 8] = [
    ("dc", libc::MADV_DONTFORK),
    ("dd", libc::MADV_DONTDUMP),
    ("wf", libc::MADV_WIPEONFORK),
    ("hg", libc::MADV_HUGEPAGE),
    ("nh", libc::MADV_NOHUGEPAGE),
    ("mg", libc::MADV_MERGEABLE),
    ("sr", libc::MADV_SEQUENTIAL),
    ("rr", libc::MADV_RANDOM),
];

/// VmFlags that are set by other means and must be kept: growsdown, mlock, lock on fault, noreserve, may write, droppable,
/// sealed.
const OTHER_FLAGS: [&str; 7] = ["gd", "lo", "lf", "nr", "mw", "dp", "sl"];

/// VmFlags that mark memory freeze cannot carry, with what they mean and what to do.
pub const REFUSED_FLAGS: [(&[u8; 2], &str, &str); 4] = [
    (b"io", "device memory is mapped", "close the device first"),
    (b"pf", "device pages are mapped", "close the device first"),
    (
        b"ss",
        "a shadow stack is not carried",
        "start the program with GLIBC_TUNABLES=glibc.cpu.hwcaps=-SHSTK",
    ),
    (
        b"um",
        "the program tracks it with a userfaultfd of its own",
        "let it unregister the range",
    ),
];

/// What the flag `um` means of a process that holds no userfaultfd.
const FILLED: (&str, &str) = (
    "its memory is still being filled, by `freeze restore --lazy` or another program",
    "wait until all of it is in: `freeze-keeper` is gone then, and a restore in the background has ended",
);

/// Beginnings of the names of mappings that freeze cannot carry, with why and what to do.
pub const REFUSED_NAMES: [(&[u8], &str, &str); 3] = [
    (
        b"anon_inode:",
        "a mapped kernel object (perf, eBPF) is not carried",
        "let the program unmap it",
    ),
    (
        b"/secretmem",
        "memfd_secret memory cannot be read",
        "let the program unmap it",
    ),
    (
        b"[uprobes]",
        "a uprobe was set on it",
        "remove the probe and restart the program",
    ),
];

/// The name of anonymous memory of huge pages.
const ANON_HUGE: &[u8] = b"/anon_hugepage (deleted)";

/// What can be told of the file behind a mapping.
enum Mapped {
    /// A regular file, and what keeps it from being found again.
    File(Option<Obstacle>),
    /// A device; only one that is all zeros can be mapped privately.
    Device {
        zero: bool,
    },
    NoMore,
    Hidden,
}

impl Mapped {
    fn of(v: &Vma, p: &ProcessView, view: &View) -> Mapped {
        match stat_of(v, p.speaker) {
            Ok(stat) if stat.kind() == libc::S_IFREG => {
                let at = map_file(p.speaker, v);
                // A mapping that could be written to needs a file that is open for it.
                let how = match v.shared && v.has(b"mw") {
                    true => libc::O_RDWR,
                    false => libc::O_RDONLY,
                };
                let (tree, name) = view.trees.place(view.namespace(p, "mnt"), &at, &v.name, &stat);
                let obstacle = FileRef::obstacle(&name, &stat, &at, &tree);
                Mapped::File(obstacle.or_else(|| shut(&stat, || guarded(at.as_ref()), &at, how, &tree)))
            }
            Ok(stat) => Mapped::Device {
                zero: is_zero_device(&stat),
            },
            // Unmapped since it was looked at; while the process stands still that cannot be.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Mapped::NoMore,
            Err(_) => Mapped::Hidden,
        }
    }
}

fn is_shared_anon(v: &Vma) -> bool {
    v.shared && (v.name == b"/dev/zero (deleted)" || v.name == ANON_HUGE)
}

/// Whether it is private anonymous memory, of pages of any size.
fn is_private_anon(v: &Vma) -> bool {
    !v.shared && (!v.has_file() || v.name == ANON_HUGE)
}

/// Whether this is the device that reads as zeros, whose private mappings are anonymous memory with another name.
fn is_zero_device(stat: &FileStat) -> bool {
    stat.kind() == libc::S_IFCHR && stat.rdev == nix::sys::stat::makedev(1, 5)
}

impl Asks for Memory {
    type Places = collect::Places;
    const EACH: bool = false;

    fn ask(t: &mut Tape<'_>, of: &ProcessView) -> collect::Places {
        collect::ask(t, of)
    }
}

impl ProcessKind for Memory {
    const TAG: &'static str = "memory";
    const VERSION: u16 = 1;
    const ABOUT: &'static str = "private and shared anonymous memory, private and shared file mappings, memfds, System V segments, heap, stacks, \
        protections and protection keys, huge pages (hugetlb), madvise, mlock and mlockall state, seals (mseal), guard pages, NUMA policies, names, \
        Linux AIO contexts with what has completed (requests in flight get 20 ms to do so), vDSO placement, brk, auxv, exe \
        link; pages that relatives share since fork(2) stay shared";
    const STAGE: Stage = Stage::Memory;
    type Record = Record;

    fn verdict(p: &ProcessView, view: &View, out: &mut Vec<Blocker>) {
        if p.is_dead() {
            return;
        }
        let obstacle = FileRef::obstacle(
            &p.exe.path,
            &p.exe.stat,
            &format!("/proc/{}/exe", p.speaker),
            &p.exe.tree,
        );
        if let Some((why, remedy)) = obstacle.filter(|_| !is_memfd(&p.exe.path)) {
            out.push(
                p.blocker("exe", String::from_utf8_lossy(&p.exe.path))
                    .why(why)
                    .remedy(remedy),
            );
        }
        if p.exe.stat.kind() == libc::S_IFREG && p.exe.stat.mode & 0o111 == 0 {
            out.push(
                p.blocker("exe", String::from_utf8_lossy(&p.exe.path))
                    .why("nobody may execute it any more, so that a restored process could not show it")
                    .remedy("let somebody execute it again (chmod u+x)"),
            );
        }
        sysv::verdict(p, view, out);
        super::socket::mapped(p, view, out);
        super::io_uring::mapped(p, view, out);
        let mut files = BTreeMap::new();
        for v in p.vmas.iter().filter(|v| !is_special(v)) {
            let at = || p.blocker(v.range().to_string(), v.label());
            if let Some((_, why, remedy)) = REFUSED_FLAGS.iter().find(|(flag, ..)| v.has(flag)) {
                let (mut why, mut remedy) = (*why, *remedy);
                if v.has(b"um")
                    && !p
                        .fds
                        .iter()
                        .any(|f| f.anon_inode().is_some_and(|n| n.contains("userfaultfd")))
                {
                    (why, remedy) = FILLED;
                }
                out.push(at().why(why).remedy(remedy));
                continue;
            }
            let own = is_private_anon(v) || is_shared_anon(v) || rings::is_ring(v);
            if own || segment_of(v).is_some() {
                continue;
            }
            if is_memfd(&v.name) {
                continue;
            }
            if let Some((_, why, remedy)) = REFUSED_NAMES
                .iter()
                .find(|(prefix, ..)| v.name.starts_with(prefix))
            {
                out.push(at().why(*why).remedy(*remedy));
                continue;
            }
            // The inode behind a mapping, not what lies at its path now; once for all mappings of it.
            let file = (v.dev, v.inode, v.shared, v.name.as_slice());
            match files.entry(file).or_insert_with(|| Mapped::of(v, p, view)) {
                Mapped::NoMore | Mapped::File(None) => {}
                Mapped::File(Some((why, remedy))) => out.push(at().why(why.clone()).remedy(*remedy)),
                Mapped::Device { zero: true } if !v.shared => {}
                Mapped::Device { .. } => {
                    out.push(at().why("a device is mapped").remedy("let the program unmap it"))
                }
                Mapped::Hidden => out.push(
                    at().why("the file behind the mapping cannot be reached (map_files)")
                        .remedy("run freeze with CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN"),
                ),
            }
        }
    }

    fn collect(from: &mut Source<'_>) -> Result<Record> {
        collect::collect(from)
    }

    fn precheck(record: &Record, pid: Pid, options: &Options, out: &mut Vec<Blocker>) {
        let exe = record.exe_memfd.is_none().then_some(&record.exe);
        for file in record.files.iter().chain(exe) {
            let mut found = Vec::new();
            file.precheck(options, &mut found);
            found.retain(|b| !out.contains(b));
            out.append(&mut found);
        }
        for segment in record.segments.iter().filter(|_| record.ipc_namespace == 0) {
            segment.precheck(out);
        }
        place::precheck(record, pid, out);
        keys::precheck(record, pid, out);
        vdso::precheck(record, pid, out);
    }

    fn restore(record: &Record, pid: Pid, nest: &mut Nest) -> Result<()> {
        place::restore(record, pid, nest)
    }
}

/// Every address the process will map.
pub fn occupied(record: &Record) -> impl Iterator<Item = Range> + '_ {
    record
        .vmas
        .iter()
        .map(|m| m.range)
        .chain(record.vdso.iter().map(|(_, r)| *r))
        .chain(record.parts.iter().copied())
        .chain(record.rings.iter().map(|r| r.range))
        .chain(place::attachments(record).map(|a| a.whole))
}

fn is_special(v: &Vma) -> bool {
    is_vdso(&v.name) || v.name == b"[vsyscall]" || is_part(v)
}

/// Whether it belongs to a descriptor, which maps it again.
fn is_part(v: &Vma) -> bool {
    v.name.starts_with(b"socket:[") || super::io_uring::is_part(&v.name)
}

/// The file behind a mapping. What is mapped to be written by others as well changes all the time.
fn stat_of(v: &Vma, pid: Pid) -> std::io::Result<FileStat> {
    let path = map_file(pid, v);
    match v.shared {
        true => FileStat::of(&path),
        false => looks::stat_of(path, v.inode),
    }
}

fn map_file(pid: Pid, v: &Vma) -> String {
    format!("/proc/{pid}/map_files/{:x}-{:x}", v.start, v.end)
}

/// Flags of mmap(2), memfd_create(2) and shmget(2) alike that ask for huge pages of this many bytes; none for 0.
pub fn huge_flags(huge: u64) -> u64 {
    const SHIFT: u32 = 26;
    u64::from(huge.checked_ilog2().unwrap_or(0)) << SHIFT
}

/// The size of its pages if they are huge ones, else 0.
pub fn huge_page(v: &Vma) -> u64 {
    if v.has(b"ht") && v.page > PAGE { v.page } else { 0 }
}
