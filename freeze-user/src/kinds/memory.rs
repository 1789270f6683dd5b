//! Address spaces: every mapping with its contents, protection and advice, brk, the vDSO's place, the exe link.

use super::memfd::{self, MemFile, is_memfd};
use super::pipe::Bytes;
use super::regular::{FileRef, fill_from, store_contents};
use super::sysv::{self, Segment, segment_of};
use super::{Asks, ProcessKind, Source, Stage, object_space};
use crate::error::{Blocker, Context, Error, Result};
use crate::ids::{PAGE, Pid, Range, SpaceId};
use crate::nest::{Nest, Options, TASK_SIZE, free_place, is_vdso};
use crate::observe::view::{Depth, FileStat, ProcessView, View, read_vmas};
use crate::proc::maps::Vma;
use crate::store::Content;
use crate::sys::{self, SharedAnon};
use crate::tracee::tape::Tape;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};

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
    /// start_code, end_code, start_data, end_data, start_brk, brk, start_stack, arg_start, arg_end, env_start, env_end.
    pub layout: [u64; 11],
    pub auxv: Bytes,
    /// Name and range of [vvar], [vvar_vclock] and [vdso]; empty if the program unmapped them.
    pub vdso: Vec<(String, Range)>,
    /// Contents of [vdso]: another kernel's differs.
    pub vdso_code: Bytes,
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

/// VmFlags that are set by other means and must be kept: growsdown, mlock, lock on fault, noreserve, may write.
const OTHER_FLAGS: [&str; 5] = ["gd", "lo", "lf", "nr", "mw"];

/// VmFlags that mark memory freeze cannot carry, with what they mean and what to do.
pub const REFUSED_FLAGS: [(&[u8; 2], &str, &str); 6] = [
    (b"io", "device memory is mapped", "close the device first"),
    (b"pf", "device pages are mapped", "close the device first"),
    (
        b"ht",
        "huge pages (hugetlb) are not carried yet",
        "start the program without hugetlb",
    ),
    (
        b"ss",
        "a shadow stack is not carried",
        "start the program with GLIBC_TUNABLES=glibc.cpu.hwcaps=-SHSTK",
    ),
    (
        b"sl",
        "it is sealed (mseal) and could not be moved into place",
        "start the program without sealing",
    ),
    (
        b"um",
        "the program tracks it with a userfaultfd of its own",
        "let it unregister the range",
    ),
];

/// Beginnings of the names of mappings that freeze cannot carry, with why and what to do.
pub const REFUSED_NAMES: [(&[u8], &str, &str); 5] = [
    (
        b"/anon_hugepage",
        "huge pages (hugetlb) are not carried yet",
        "start the program without hugetlb",
    ),
    (
        b"/[aio]",
        "a Linux AIO context is not carried yet",
        "let the program end it (io_destroy)",
    ),
    (
        b"anon_inode:",
        "a mapped kernel object (io_uring, perf, eBPF) is not carried",
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

fn is_shared_anon(v: &Vma) -> bool {
    v.shared && v.name == b"/dev/zero (deleted)"
}

impl Asks for Memory {
    /// The call whose result is the end of the heap.
    type Places = usize;
    const EACH: bool = false;

    fn ask(t: &mut Tape<'_>) -> usize {
        t.call("brk", libc::SYS_brk, &[0])
    }
}

impl ProcessKind for Memory {
    const TAG: &'static str = "memory";
    const VERSION: u16 = 1;
    const ABOUT: &'static str = "private and shared anonymous memory, private and shared file mappings, memfds, System V segments, heap, stacks, \
        protections, madvise and mlock state, names, vDSO placement, brk, auxv, exe link";
    const STAGE: Stage = Stage::Memory;
    type Record = Record;

    fn verdict(p: &ProcessView, view: &View, out: &mut Vec<Blocker>) {
        if p.is_dead() {
            return;
        }
        if let Some((why, remedy)) = FileRef::obstacle(
            &p.exe.path,
            &p.exe.stat,
            &format!("/proc/{}/exe", p.speaker),
            &p.exe.tree,
        ) {
            out.push(
                p.blocker("exe", String::from_utf8_lossy(&p.exe.path))
                    .why(why)
                    .remedy(remedy),
            );
        }
        sysv::verdict(p, view, out);
        super::socket::mapped(p, view, out);
        let mut stats: BTreeMap<&[u8], Option<FileStat>> = BTreeMap::new();
        for v in p.vmas.iter().filter(|v| !is_special(v)) {
            let at = || p.blocker(v.range().to_string(), v.label());
            if let Some((_, why, remedy)) = REFUSED_FLAGS.iter().find(|(flag, ..)| v.has(flag)) {
                out.push(at().why(*why).remedy(*remedy));
                continue;
            }
            if !v.has_file() || is_shared_anon(v) || segment_of(v).is_some() {
                continue;
            }
            if is_memfd(&v.name) {
                let obstacle = memfd::obstacle(&map_file(p.speaker, v));
                out.extend(obstacle.map(|(why, remedy)| at().why(why).remedy(remedy)));
                continue;
            }
            if let Some((_, why, remedy)) = REFUSED_NAMES
                .iter()
                .find(|(prefix, ..)| v.name.starts_with(prefix))
            {
                out.push(at().why(*why).remedy(*remedy));
                continue;
            }
            // The inode behind a mapping, not what lies at its path now.
            let stat = stats
                .entry(&v.name)
                .or_insert_with(|| FileStat::of(&map_file(p.speaker, v)).ok());
            match stat {
                Some(stat) if stat.kind() == libc::S_IFREG => {
                    let tree = view.trees.at(map_file(p.pid, v));
                    out.extend(
                        FileRef::obstacle(&v.name, stat, &map_file(p.speaker, v), &tree)
                            .map(|(why, remedy)| at().why(why).remedy(remedy)),
                    );
                }
                Some(_) => out.push(at().why("a device is mapped").remedy("let the program unmap it")),
                None => out.push(
                    at().why("the file behind the mapping cannot be reached (map_files)")
                        .remedy("run freeze with CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN"),
                ),
            }
        }
    }

    fn collect(from: &mut Source<'_>) -> Result<Record> {
        let (pid, by) = (from.process.pid(), from.process.view.speaker);
        let (ran, brk) = from.answers::<Memory>()?;
        let brk = ran.value(brk) as u64;
        let view = from.process.view.clone();
        let mut record = Record {
            vmas: Vec::new(),
            files: Vec::new(),
            objects: Vec::new(),
            memfds: Vec::new(),
            segments: Vec::new(),
            ipc_namespace: from.view.namespace(&view, "ipc"),
            exe: from_exe(&view, from)?,
            layout: layout(&view, brk),
            auxv: Bytes(std::fs::read(format!("/proc/{by}/auxv")).on("read", || format!("/proc/{by}/auxv"))?),
            vdso: Vec::new(),
            vdso_code: Bytes::default(),
        };
        let mut seen_files: BTreeMap<Seen, usize> = BTreeMap::new();
        let mut seen_objects: BTreeMap<u64, usize> = BTreeMap::new();
        let mut seen_memfds: BTreeMap<(u64, u64), usize> = BTreeMap::new();
        let mut private = Vec::new();
        for v in &view.vmas {
            if is_vdso(&v.name) {
                record
                    .vdso
                    .push((String::from_utf8_lossy(&v.name).into_owned(), v.range()));
                if v.name == b"[vdso]" {
                    record.vdso_code = Bytes(read_code(by, v.range())?);
                }
                continue;
            }
            if is_special(v) {
                continue;
            }
            let backing = if !v.has_file() {
                Backing::Anonymous
            } else if is_shared_anon(v) {
                Backing::Object(object(v, by, &mut seen_objects, &mut record.objects, from)?)
            } else if let Some(id) = segment_of(v) {
                Backing::Segment(segment(id, v, by, &mut record.segments, from)?)
            } else if is_memfd(&v.name) {
                Backing::Memfd(memfd(v, by, &mut seen_memfds, &mut record.memfds, from)?)
            } else {
                Backing::File(file(v, by, &mut seen_files, &mut record.files, from)?)
            };
            if !v.shared {
                private.push(v.range());
            }
            record.vmas.push(Mapping {
                range: v.range(),
                prot: v.prot(),
                shared: v.shared,
                backing,
                offset: v.offset,
                flags: kept_flags(v),
                name: given_name(&v.name),
            });
        }
        from.pages.store_private(pid, &private, from.draft)?;
        Ok(record)
    }

    fn precheck(record: &Record, pid: Pid, options: &Options, out: &mut Vec<Blocker>) {
        for file in record.files.iter().chain([&record.exe]) {
            let mut found = Vec::new();
            file.precheck(options, &mut found);
            found.retain(|b| !out.contains(b));
            out.append(&mut found);
        }
        for segment in record.segments.iter().filter(|_| record.ipc_namespace == 0) {
            segment.precheck(out);
        }
        if !record.vdso_code.0.is_empty() && own_vdso().is_some_and(|own| own != record.vdso_code.0) {
            out.push(
                Blocker::of(pid, "[vdso]", "another kernel's")
                    .why("the vDSO of the running kernel differs from the recorded one, which is not bridged yet")
                    .remedy("restore under the kernel of the checkpoint"),
            );
        }
    }

    fn restore(record: &Record, pid: Pid, nest: &mut Nest) -> Result<()> {
        place_vdso(record, pid, nest)?;
        set_layout(record, pid, nest)?;
        let handed = hand_over_backings(record, pid, nest)?;
        let space = SpaceId::private(pid);
        let filled: Vec<Range> = crate::ids::normalize(nest.image.runs(space).map(|r| r.range).collect());
        let mut calls = Vec::with_capacity(record.vmas.len());
        let mut after = Vec::new();
        for m in &record.vmas {
            // Contents can be written while it is writable only.
            let has_contents = !m.shared && intersects(&filled, m.range);
            let interim = if has_contents {
                libc::PROT_READ | libc::PROT_WRITE
            } else {
                m.prot
            };
            let fd = match m.backing {
                Backing::Anonymous => !0,
                Backing::File(_) | Backing::Memfd(_) => handed.files[&(m.backing, needs_write(m))],
                Backing::Object(i) => handed.objects[i],
                Backing::Segment(i) => {
                    // Attached as a whole where it begins; what the program has protected apart follows.
                    if m.offset == 0 {
                        let args = [
                            record.segments[i].id as u64,
                            m.range.start,
                            attach_flags(m),
                            0,
                            0,
                            0,
                        ];
                        calls.push(("shmat", libc::SYS_shmat, args));
                    }
                    let args = [m.range.start, m.range.len(), m.prot as u64, 0, 0, 0];
                    after.push(("mprotect", libc::SYS_mprotect, args));
                    !0
                }
            };
            let (at, len) = (m.range.start, m.range.len());
            let offset = if matches!(m.backing, Backing::Anonymous) {
                0
            } else {
                m.offset
            };
            if !matches!(m.backing, Backing::Segment(_)) {
                let args = [at, len, interim as u64, mmap_flags(m) as u64, fd, offset];
                calls.push(("mmap", libc::SYS_mmap, args));
            }
            if interim != m.prot {
                after.push(("mprotect", libc::SYS_mprotect, [at, len, m.prot as u64, 0, 0, 0]));
            }
            for (flag, advice) in ADVICE {
                if m.flags.iter().any(|f| f == flag) {
                    after.push(("madvise", libc::SYS_madvise, [at, len, advice as u64, 0, 0, 0]));
                }
            }
            if m.flags.iter().any(|f| f == "lo") {
                let on_fault = u64::from(m.flags.iter().any(|f| f == "lf"));
                after.push(("mlock2", libc::SYS_mlock2, [at, len, on_fault, 0, 0, 0]));
            }
        }
        let building = nest.process(pid)?;
        building.play(&calls)?;
        let closes: Vec<_> = handed
            .all
            .iter()
            .map(|fd| ("close", libc::SYS_close, [*fd, 0, 0, 0, 0, 0]))
            .collect();
        building.play(&closes)?;
        let anonymous: Vec<Range> = crate::ids::normalize(
            record
                .vmas
                .iter()
                .filter(|m| matches!(m.backing, Backing::Anonymous))
                .map(|m| m.range)
                .collect(),
        );
        nest.image.for_each_run(space, |at, content| match content {
            Content::Bytes(bytes) => write_pages(pid, at.start, bytes),
            // Fresh anonymous memory reads as zeros; only over a file they must be written.
            Content::Zero => crate::ids::subtract(&[at], &anonymous)
                .iter()
                .try_for_each(|r| write_pages(pid, r.start, &vec![0; r.len() as usize])),
        })?;
        let building = nest.process(pid)?;
        building.play(&after)?;
        for m in &record.vmas {
            let Some(name) = &m.name else { continue };
            building.tape(|t| {
                const PR_SET_VMA: u64 = 0x5356_4d41;
                let text = t.bytes(&[&name.0[..], b"\0"].concat());
                // A kernel without CONFIG_ANON_VMA_NAME shows no names either.
                t.try_call(
                    "prctl(PR_SET_VMA)",
                    libc::SYS_prctl,
                    &[PR_SET_VMA, 0, m.range.start, m.range.len(), text],
                );
            })?;
        }
        Ok(())
    }
}

/// Every address the process will map.
pub fn occupied(record: &Record) -> impl Iterator<Item = Range> + '_ {
    record
        .vmas
        .iter()
        .map(|m| m.range)
        .chain(record.vdso.iter().map(|(_, r)| *r))
}

fn is_special(v: &Vma) -> bool {
    // What belongs to a socket is mapped by that.
    is_vdso(&v.name) || v.name == b"[vsyscall]" || v.name.starts_with(b"socket:[")
}

fn map_file(pid: Pid, v: &Vma) -> String {
    format!("/proc/{pid}/map_files/{:x}-{:x}", v.start, v.end)
}

fn kept_flags(v: &Vma) -> Vec<String> {
    let kept = ADVICE.iter().map(|(flag, _)| *flag).chain(OTHER_FLAGS);
    kept.filter(|f| <&[u8; 2]>::try_from(f.as_bytes()).is_ok_and(|two| v.has(two)))
        .map(str::to_owned)
        .collect()
}

/// `[anon:x]` and `[anon_shmem:x]` carry a name that the program gave.
fn given_name(name: &[u8]) -> Option<Bytes> {
    let inner = name
        .strip_prefix(b"[anon:")
        .or_else(|| name.strip_prefix(b"[anon_shmem:"))?;
    inner.strip_suffix(b"]").map(|n| Bytes(n.to_vec()))
}

fn layout(p: &ProcessView, brk: u64) -> [u64; 11] {
    // A first thread that has ended no longer shows the memory.
    let by = p.threads.iter().find(|t| t.tid == p.speaker);
    let s = by.map_or(&p.stat, |t| &t.stat);
    [
        s.start_code,
        s.end_code,
        s.start_data,
        s.end_data,
        s.start_brk,
        brk,
        s.start_stack,
        s.arg_start,
        s.arg_end,
        s.env_start,
        s.env_end,
    ]
}

fn from_exe(p: &ProcessView, from: &mut Source<'_>) -> Result<FileRef> {
    let path = format!("/proc/{}/exe", p.speaker);
    FileRef::collect(
        &p.exe.path,
        &p.exe.stat,
        &p.exe.tree,
        false,
        &path,
        from.shared,
        from.draft,
    )
}

fn read_code(pid: Pid, range: Range) -> Result<Vec<u8>> {
    let mut code = vec![0; range.len() as usize];
    let n = sys::vm_read(pid, &[range], &mut code).on("process_vm_readv", || format!("[vdso] of {pid}"))?;
    code.truncate(n);
    Ok(code)
}

/// What tells one mapped file from another: device and inode, and the path in case the file system numbers carelessly.
type Seen = ((u32, u32), u64, Vec<u8>);

fn file(
    v: &Vma,
    pid: Pid,
    seen: &mut BTreeMap<Seen, usize>,
    files: &mut Vec<FileRef>,
    from: &mut Source<'_>,
) -> Result<usize> {
    let written = v.shared && v.has(b"mw");
    let key = (v.dev, v.inode, v.name.clone());
    if let Some(&i) = seen.get(&key) {
        files[i].written |= written;
        return Ok(i);
    }
    let path = map_file(pid, v);
    let stat = FileStat::of(&path).on("stat", || path.clone())?;
    files.push(FileRef::collect(
        &v.name,
        &stat,
        &from.view.trees.at(&path),
        written,
        &path,
        from.shared,
        from.draft,
    )?);
    seen.insert(key, files.len() - 1);
    Ok(files.len() - 1)
}

fn object(
    v: &Vma,
    pid: Pid,
    seen: &mut BTreeMap<u64, usize>,
    objects: &mut Vec<Object>,
    from: &mut Source<'_>,
) -> Result<usize> {
    if let Some(&i) = seen.get(&v.inode) {
        return Ok(i);
    }
    let path = map_file(pid, v);
    let stat = FileStat::of(&path).on("stat", || path.clone())?;
    let space = object_space(stat.dev, stat.ino);
    if from.shared.first_sight(stat.dev, stat.ino) {
        let file = File::open(&path).on("open", || path.clone())?;
        store_contents(&file, stat.size, space, from.draft, &|| path.clone())?;
    }
    objects.push(Object {
        space,
        size: stat.size,
        noreserve: v.has(b"nr"),
    });
    seen.insert(v.inode, objects.len() - 1);
    Ok(objects.len() - 1)
}

fn memfd(
    v: &Vma,
    pid: Pid,
    seen: &mut BTreeMap<(u64, u64), usize>,
    memfds: &mut Vec<MemFile>,
    from: &mut Source<'_>,
) -> Result<usize> {
    let path = map_file(pid, v);
    let stat = FileStat::of(&path).on("stat", || path.clone())?;
    if let Some(&i) = seen.get(&(stat.dev, stat.ino)) {
        return Ok(i);
    }
    let file = File::open(&path).on("open", || path.clone())?;
    memfds.push(MemFile::collect(&v.name, &stat, &file, from.shared, from.draft)?);
    seen.insert((stat.dev, stat.ino), memfds.len() - 1);
    Ok(memfds.len() - 1)
}

fn segment(id: i32, v: &Vma, pid: Pid, segments: &mut Vec<Segment>, from: &mut Source<'_>) -> Result<usize> {
    if let Some(i) = segments.iter().position(|s| s.id == id) {
        return Ok(i);
    }
    segments.push(sysv::collect(id, v, pid, from)?);
    Ok(segments.len() - 1)
}

fn own_vdso() -> Option<Vec<u8>> {
    let own = Pid(std::process::id() as i32);
    let vmas = read_vmas(own, Depth::Maps).ok()?;
    read_code(own, vmas.iter().find(|v| v.name == b"[vdso]")?.range()).ok()
}

fn intersects(sorted: &[Range], r: Range) -> bool {
    let i = sorted.partition_point(|f| f.end <= r.start);
    sorted.get(i).is_some_and(|f| f.overlaps(r))
}

fn needs_write(m: &Mapping) -> bool {
    m.shared && m.flags.iter().any(|f| f == "mw")
}

fn attach_flags(m: &Mapping) -> u64 {
    let read_only = if needs_write(m) { 0 } else { libc::SHM_RDONLY };
    let exec = if m.prot & libc::PROT_EXEC != 0 {
        libc::SHM_EXEC
    } else {
        0
    };
    (read_only | exec) as u64
}

fn mmap_flags(m: &Mapping) -> i32 {
    let has = |flag: &str| m.flags.iter().any(|f| f == flag);
    let mut flags = libc::MAP_FIXED_NOREPLACE
        | if m.shared {
            libc::MAP_SHARED
        } else {
            libc::MAP_PRIVATE
        };
    if matches!(m.backing, Backing::Anonymous) {
        flags |= libc::MAP_ANONYMOUS;
    }
    if has("gd") {
        flags |= libc::MAP_GROWSDOWN;
    }
    if has("nr") {
        flags |= libc::MAP_NORESERVE;
    }
    flags
}

/// Moves the blank process's vDSO to the recorded place, or away if the program had none.
fn place_vdso(record: &Record, pid: Pid, nest: &mut Nest) -> Result<()> {
    let now: Vec<(Vec<u8>, Range)> = read_vmas(pid, Depth::Maps)?
        .into_iter()
        .filter(|v| is_vdso(&v.name))
        .map(|v| (v.name.clone(), v.range()))
        .collect();
    let scratch = nest.process(pid)?.scratch();
    let wanted = |name: &[u8]| {
        record
            .vdso
            .iter()
            .find(|(n, _)| n.as_bytes() == name)
            .map(|(_, r)| *r)
    };
    // Old and new places may overlap in any way, so all go through a third place.
    let mut taken: Vec<Range> = now
        .iter()
        .map(|(_, r)| *r)
        .chain(occupied(record))
        .chain([scratch])
        .collect();
    taken.push(Range::new(TASK_SIZE, TASK_SIZE));
    let total = now.iter().map(|(_, r)| r.len()).sum();
    let mut aside = free_place(crate::ids::normalize(taken), total).start;
    let remap = |from: Range, to: u64| {
        let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
        (
            "mremap",
            libc::SYS_mremap,
            [from.start, from.len(), from.len(), flags, to, 0],
        )
    };
    if now.iter().all(|(name, r)| wanted(name) == Some(*r)) && now.len() == record.vdso.len() {
        return Ok(());
    }
    let (mut away, mut home) = (Vec::new(), Vec::new());
    for (name, range) in &now {
        match wanted(name) {
            Some(to) if to.len() == range.len() => {
                away.push(remap(*range, aside));
                home.push(remap(Range::new(aside, aside + range.len()), to.start));
                aside += range.len();
            }
            _ => away.push(("munmap", libc::SYS_munmap, [range.start, range.len(), 0, 0, 0, 0])),
        }
    }
    let building = nest.process(pid)?;
    building.play(&away)?;
    building.play(&home)?;
    Ok(())
}

/// PR_SET_MM_MAP: all eleven fields, auxv and the exe link in one call.
fn set_layout(record: &Record, pid: Pid, nest: &mut Nest) -> Result<()> {
    const PR_SET_MM_MAP: u64 = 14;
    let exe = record.exe.open(libc::O_RDONLY, nest)?;
    let at = nest.hand_over(pid, &[exe.as_raw_fd()])?;
    nest.process(pid)?.tape(|t| {
        let auxv = t.bytes(&record.auxv.0);
        let mut map: Vec<u8> = record.layout.iter().flat_map(|w| w.to_ne_bytes()).collect();
        map.extend_from_slice(&auxv.to_ne_bytes());
        map.extend_from_slice(&(record.auxv.0.len() as u32).to_ne_bytes());
        map.extend_from_slice(&(at[0] as u32).to_ne_bytes());
        let len = map.len() as u64;
        let map = t.bytes(&map);
        t.call(
            "prctl(PR_SET_MM_MAP)",
            libc::SYS_prctl,
            &[libc::PR_SET_MM as u64, PR_SET_MM_MAP, map, len, 0],
        );
        t.call("close", libc::SYS_close, &[at[0]]);
    })?;
    Ok(())
}

/// Shared memory objects of the whole checkpoint, made once and handed to whoever maps them.
#[derive(Default)]
struct Objects {
    made: BTreeMap<SpaceId, File>,
}

struct Handed {
    /// By file and whether it was opened for writing.
    files: BTreeMap<(Backing, bool), u64>,
    objects: Vec<u64>,
    all: Vec<u64>,
}

fn hand_over_backings(record: &Record, pid: Pid, nest: &mut Nest) -> Result<Handed> {
    let mut open: Vec<OwnedFd> = Vec::new();
    let mut keys: Vec<(Backing, bool)> = Vec::new();
    for m in &record.vmas {
        let key = (m.backing, needs_write(m));
        if keys.contains(&key) {
            continue;
        }
        let flags = if key.1 { libc::O_RDWR } else { libc::O_RDONLY };
        match m.backing {
            Backing::File(i) => open.push(record.files[i].open(flags, nest)?),
            Backing::Memfd(i) => open.push(record.memfds[i].open(flags, nest)?),
            _ => continue,
        }
        keys.push(key);
    }
    for segment in &record.segments {
        segment.prepare(pid, nest)?;
    }
    for file in record.files.iter().filter(|f| f.written) {
        file.settle(nest)?;
    }
    for object in &record.objects {
        if !nest.state::<Objects>().made.contains_key(&object.space) {
            let anon = SharedAnon::new(object.size, object.noreserve).on("mmap", || "shared memory")?;
            let file = anon.open().on("open", || "/proc/self/map_files")?;
            fill_from(&file, object.space, object.size, nest)?;
            nest.state::<Objects>().made.insert(object.space, file);
        }
        let made = &nest.state::<Objects>().made[&object.space];
        open.push(made.try_clone().on("dup", || "shared memory")?.into());
    }
    let raw: Vec<i32> = open.iter().map(AsRawFd::as_raw_fd).collect();
    let at = nest.hand_over(pid, &raw)?;
    Ok(Handed {
        files: keys.iter().copied().zip(at.iter().copied()).collect(),
        objects: at[keys.len()..].to_vec(),
        all: at,
    })
}

fn write_pages(pid: Pid, at: u64, bytes: &[u8]) -> Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        let n = sys::vm_write(pid, at + done as u64, &bytes[done..]).on("process_vm_writev", || {
            format!("memory of {pid} at {:#x}", at + done as u64)
        })?;
        if n == 0 {
            let errno = nix::errno::Errno::EFAULT;
            return Err(Error::kernel(
                "process_vm_writev",
                format!("memory of {pid} at {:#x}", at + done as u64),
                errno,
            ));
        }
        done += n;
    }
    debug_assert!(at.is_multiple_of(PAGE));
    Ok(())
}
