//! Recording an address space: its mappings, what backs them, and what only the process itself can be asked.

use super::super::memfd::{MemFile, is_memfd};
use super::super::pipe::Bytes;
use super::super::regular::{FileRef, store_contents};
use super::super::sysv::{self, Segment, segment_of};
use super::super::{Source, object_space};
use super::{ADVICE, Backing, Mapping, Memory, OTHER_FLAGS, Object, Record, keys, policy, rings};
use super::{huge_page, is_part, is_private_anon, is_shared_anon, is_special, map_file, stat_of};
use crate::error::{Context, Result};
use crate::ids::{Pid, Range};
use crate::nest::is_vdso;
use crate::observe::looks;
use crate::observe::view::{FileStat, ProcessView};
use crate::proc::maps::Vma;
use crate::sys;
use crate::sys::pagemap::{self, Contents};
use crate::sys::quiet;
use crate::tracee::tape::Tape;
use nix::errno::Errno;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// Where the answers are that only the process itself can give.
#[derive(Debug)]
pub struct Places {
    /// The end of the heap.
    brk: usize,
    /// Whether the scratch mapping is locked into memory.
    locked: usize,
    keys: usize,
    policies: Option<policy::Asked>,
}

/// Asks for them.
pub fn ask(t: &mut Tape<'_>, of: &ProcessView) -> Places {
    let page = t.page();
    // It invalidates nothing of anonymous memory, but is refused for what is locked.
    let args = [page.start, page.len(), libc::MS_INVALIDATE as u64];
    let few = of.vmas.len() <= policy::FEW;
    Places {
        brk: t.call("brk", libc::SYS_brk, &[0]),
        locked: t.try_call("msync", libc::SYS_msync, &args),
        keys: keys::ask(t),
        policies: few.then(|| policy::ask(t, of.vmas.iter().map(|v| v.start))),
    }
}

/// Records the address space of a process, with its contents.
pub fn collect(from: &mut Source<'_>) -> Result<Record> {
    let (pid, by) = (from.process.pid(), from.process.view.speaker);
    let (ran, places) = from.answers::<Memory>()?;
    let brk = ran.value(places.brk) as u64;
    let locked = ran.result(places.locked) == Err(Errno::EBUSY);
    let pkeys = keys::allocated(ran, places.keys);
    let policies = places
        .policies
        .map(|asked| policy::answers(ran, asked, from.process.view.vmas.len()));
    if policies.iter().flatten().any(Option::is_some) {
        // Mapped anew in the same place, it has none.
        from.process.answers_pass();
    }
    let view = Arc::clone(&from.process.view);
    let mut record = Record {
        vmas: Vec::new(),
        files: Vec::new(),
        objects: Vec::new(),
        memfds: Vec::new(),
        segments: Vec::new(),
        ipc_namespace: from.view.namespace(&view, "ipc"),
        exe: from_exe(&view, from)?,
        exe_memfd: None,
        layout: layout(&view, brk),
        auxv: Bytes(looks::text(format!("/proc/{by}/auxv")).on("read", || format!("/proc/{by}/auxv"))?),
        vdso: Vec::new(),
        vdso_code: Bytes::default(),
        guards: guards(&view)?,
        pkeys,
        lock_future: if locked { lock_future(from)? } else { 0 },
        parts: view.vmas.iter().filter(|v| is_part(v)).map(Vma::range).collect(),
        rings: rings::collect(&view)?,
    };
    let asked: Vec<u64> = view.vmas.iter().map(|v| v.start).collect();
    let mut policies = policy::collect(from.process, &asked, policies.unwrap_or_default())?;
    let mut seen_files = SeenFiles::default();
    let mut seen_objects: BTreeMap<u64, usize> = BTreeMap::new();
    let mut seen_memfds: BTreeMap<(u64, u64), usize> = BTreeMap::new();
    if is_memfd(&view.exe.path) {
        let path = format!("/proc/{by}/exe");
        let memfd = memfd(&view.exe.path, path, &mut seen_memfds, &mut record.memfds, from)?;
        record.exe_memfd = Some(memfd);
    }
    let mut private = Vec::new();
    for (i, v) in view.vmas.iter().enumerate() {
        if is_vdso(&v.name) {
            record
                .vdso
                .push((String::from_utf8_lossy(&v.name).into_owned(), v.range()));
            if v.name == b"[vdso]" {
                record.vdso_code = Bytes(read_code(by, v.range())?);
            }
            continue;
        }
        if is_special(v) || rings::is_ring(v) {
            continue;
        }
        let backing = if is_private_anon(v) {
            Backing::Anonymous
        } else if is_shared_anon(v) {
            Backing::Object(object(v, by, &mut seen_objects, &mut record.objects, from)?)
        } else if let Some(id) = segment_of(v) {
            Backing::Segment(segment(id, v, by, &mut record.segments, from)?)
        } else if is_memfd(&v.name) {
            Backing::Memfd(memfd(
                &v.name,
                map_file(by, v),
                &mut seen_memfds,
                &mut record.memfds,
                from,
            )?)
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
            huge: huge_page(v),
            key: v.key,
            policy: policies[i].take(),
        });
    }
    from.pages.store_private(pid, &private, from.draft)?;
    Ok(record)
}

/// The guard pages, from before the stop where the caller vouches for them.
fn guards(view: &ProcessView) -> Result<Vec<Range>> {
    if let Some(known) = &view.guards {
        return Ok(known.clone());
    }
    pagemap::guards_of(
        view.speaker,
        view.vmas.iter().filter(|v| !is_special(v)).map(Vma::range),
    )
}

/// What mlockall(2) has set for later mappings, of which the scratch mapping is one that is locked.
fn lock_future(from: &mut Source<'_>) -> Result<i32> {
    const MCL_ONFAULT: i32 = 4;
    let pid = from.process.view.speaker;
    let Some(scratch) = from.process.scratch() else {
        return Ok(0);
    };
    let there: u64 = pagemap::open(pid)?
        .populated(scratch, Contents::Any)?
        .iter()
        .map(|r| r.len())
        .sum();
    Ok(libc::MCL_FUTURE | if there < scratch.len() { MCL_ONFAULT } else { 0 })
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

pub fn read_code(pid: Pid, range: Range) -> Result<Vec<u8>> {
    let mut code = vec![0; range.len() as usize];
    let n = sys::vm_read(pid, &[range], &mut code).on("process_vm_readv", || format!("[vdso] of {pid}"))?;
    code.truncate(n);
    Ok(code)
}

/// Where the files are that were recorded: by what maps says of them, and by what stat(2) does, which on some file
/// systems are not the same numbers.
type SeenFiles = (BTreeMap<((u32, u32), u64), usize>, BTreeMap<(u64, u64), usize>);

fn file(
    v: &Vma,
    pid: Pid,
    seen: &mut SeenFiles,
    files: &mut Vec<FileRef>,
    from: &mut Source<'_>,
) -> Result<usize> {
    let written = v.shared && v.has(b"mw");
    let (by_line, seen) = seen;
    // A program has several mappings of each of its libraries, and they follow each other.
    if let Some(&i) = by_line.get(&(v.dev, v.inode)) {
        files[i].written |= written;
        return Ok(i);
    }
    let path = map_file(pid, v);
    let stat = stat_of(v, pid).on("stat", || path.clone())?;
    let written = written || from.shared.written.contains(&(stat.dev, stat.ino));
    if let Some(&i) = seen.get(&(stat.dev, stat.ino)) {
        files[i].written |= written;
        by_line.insert((v.dev, v.inode), i);
        return Ok(i);
    }
    let number = from.view.namespace(&from.process.view, "mnt");
    let (tree, name) = from.view.trees.place(number, &path, &v.name, &stat);
    let mut file = FileRef::collect(&name, &stat, &tree, written, &path, from.shared, from.draft)?;
    // A device has no size or time of change to compare.
    file.virtual_file |= stat.kind() == libc::S_IFCHR;
    files.push(file);
    by_line.insert((v.dev, v.inode), files.len() - 1);
    seen.insert((stat.dev, stat.ino), files.len() - 1);
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
    let id = (stat.dev, stat.ino);
    if from.shared.first_sight(stat.dev, stat.ino) {
        let file = quiet::open_one(path.as_ref(), id, id).on("open", || path.clone())?;
        store_contents(&file, stat.size, space, from.draft, &|| path.clone())?;
    }
    objects.push(Object {
        space,
        size: stat.size,
        noreserve: v.has(b"nr"),
        huge: huge_page(v),
    });
    seen.insert(v.inode, objects.len() - 1);
    Ok(objects.len() - 1)
}

/// The memfd of this name to which `path` leads.
fn memfd(
    name: &[u8],
    path: String,
    seen: &mut BTreeMap<(u64, u64), usize>,
    memfds: &mut Vec<MemFile>,
    from: &mut Source<'_>,
) -> Result<usize> {
    let stat = FileStat::of(&path).on("stat", || path.clone())?;
    if let Some(&i) = seen.get(&(stat.dev, stat.ino)) {
        return Ok(i);
    }
    let id = (stat.dev, stat.ino);
    let file = quiet::open_one(Path::new(&path), id, id).on("open", || path.clone())?;
    memfds.push(MemFile::collect(name, &stat, &file, from.shared, from.draft)?);
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
