//! The vDSO: moved to where the program has it, and bridged where the running kernel's is another than the recorded one.
//!
//! A program calls the vDSO by addresses it looked up when it started. Under another kernel the recorded code stays
//! mapped where it was, with every entry overwritten by a jump to the function of that name in the running kernel's
//! vDSO, which lies elsewhere; a function that this one lacks becomes the system call. Where the old data pages were are
//! pages of zeros: they make old code that a thread stands in fall back to system calls, until it is stepped out of it.

use super::{Record, collect, occupied};
use crate::error::{Blocker, Context, Result};
use crate::ids::{Pid, Range, TASK_SIZE, intersect, normalize};
use crate::nest::{Nest, free_place, is_vdso};
use crate::observe::view::{Depth, read_vmas};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// `jmp [rip]`, and where to.
const JUMP: usize = 14;

/// Adds what speaks against giving the process the running kernel's vDSO.
pub fn precheck(record: &Record, pid: Pid, out: &mut Vec<Blocker>) {
    if is_foreign(record) && functions(&record.vdso_code.0).is_none() {
        out.push(
            Blocker::of(pid, "[vdso]", "another kernel's")
                .why("the recorded vDSO is no ELF file with symbols, so that its callers cannot be led to the running kernel's")
                .remedy("restore under the kernel of the checkpoint"),
        );
    }
}

/// Whether the program calls a vDSO that is not the running kernel's.
fn is_foreign(record: &Record) -> bool {
    !record.vdso_code.0.is_empty() && own().is_some_and(|own| own != record.vdso_code.0)
}

fn own() -> Option<Vec<u8>> {
    let own = Pid(std::process::id() as i32);
    let vmas = read_vmas(own, Depth::Maps).ok()?;
    collect::read_code(own, vmas.iter().find(|v| v.name == b"[vdso]")?.range()).ok()
}

/// Old code that still is to be overwritten, by process.
#[derive(Debug, Default)]
struct Bridges(Vec<(Pid, Range, Vec<u8>)>);

/// Puts the blank process's vDSO in its place, or away if the program had none; `staged` is what is mapped already.
pub fn place(record: &Record, pid: Pid, staged: &[Range], nest: &mut Nest) -> Result<()> {
    let now: Vec<(Vec<u8>, Range)> = read_vmas(pid, Depth::Maps)?
        .into_iter()
        .filter(|v| is_vdso(&v.name))
        .map(|v| (v.name.clone(), v.range()))
        .collect();
    let scratch = nest.process(pid)?.scratch();
    let mut taken: Vec<Range> = now
        .iter()
        .map(|(_, r)| *r)
        .chain(occupied(record))
        .chain(staged.iter().copied())
        .chain([scratch])
        .collect();
    taken.push(Range::new(TASK_SIZE, TASK_SIZE));
    let total = now.iter().map(|(_, r)| r.len()).sum();
    let aside = free_place(normalize(taken), total).start;
    if is_foreign(record) {
        return bridge(record, pid, &now, aside, nest);
    }
    let wanted = |name: &[u8]| {
        record
            .vdso
            .iter()
            .find(|(n, _)| n.as_bytes() == name)
            .map(|(_, r)| *r)
    };
    if now.iter().all(|(name, r)| wanted(name) == Some(*r)) && now.len() == record.vdso.len() {
        return Ok(());
    }
    // Old and new places may overlap in any way, so all go through a third place.
    let (mut away, mut home) = (Vec::new(), Vec::new());
    let mut at = aside;
    for (name, range) in &now {
        match wanted(name) {
            Some(to) if to.len() == range.len() => {
                away.push(remap(*range, at));
                home.push(remap(Range::new(at, at + range.len()), to.start));
                at += range.len();
            }
            _ => away.push(("munmap", libc::SYS_munmap, [range.start, range.len(), 0, 0, 0, 0])),
        }
    }
    let building = nest.process(pid)?;
    building.play(&away)?;
    building.play(&home)?;
    Ok(())
}

type Step = (&'static str, i64, [u64; 6]);

fn remap(from: Range, to: u64) -> Step {
    let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
    (
        "mremap",
        libc::SYS_mremap,
        [from.start, from.len(), from.len(), flags, to, 0],
    )
}

/// Moves the running kernel's vDSO out of the way as it is, and maps the recorded one where it was.
fn bridge(record: &Record, pid: Pid, now: &[(Vec<u8>, Range)], aside: u64, nest: &mut Nest) -> Result<()> {
    // A child has its parent's copy, and may have something of its own where its parent put the running kernel's.
    let old = record.vdso.iter().find(|(n, _)| n == "[vdso]").map(|(_, r)| *r);
    let is_copied = old.is_some_and(|r| holds(pid, r, &record.vdso_code.0));
    let own_ranges: Vec<Range> = now.iter().map(|(_, r)| *r).collect();
    let in_the_way = !intersect(&own_ranges, &normalize(occupied(record).collect())).is_empty();
    let (mut calls, mut at, mut code_at) = (Vec::new(), aside, 0);
    // Its code finds its data by distance: the pieces stay beside each other, in their order.
    for (name, range) in now {
        let stays = is_copied && !in_the_way;
        if !stays {
            calls.push(remap(*range, at));
        }
        if name == b"[vdso]" {
            code_at = if stays { range.start } else { at };
        }
        at += range.len();
    }
    for (name, range) in record.vdso.iter().filter(|_| !is_copied) {
        let prot = match name.as_str() {
            "[vdso]" => libc::PROT_READ | libc::PROT_WRITE,
            _ => libc::PROT_READ,
        };
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        let args = [range.start, range.len(), prot as u64, flags as u64, !0, 0];
        calls.push(("mmap", libc::SYS_mmap, args));
    }
    nest.process(pid)?.play(&calls)?;
    let (Some(old), Some(own)) = (old, own()) else {
        return Ok(());
    };
    if !is_copied {
        super::fill::write_pages(pid, old.start, &record.vdso_code.0)?;
        let prot = (libc::PROT_READ | libc::PROT_EXEC) as u64;
        nest.process(pid)?.play(&[(
            "mprotect",
            libc::SYS_mprotect,
            [old.start, old.len(), prot, 0, 0, 0],
        )])?;
    }
    let bridges = &mut nest.state::<Bridges>().0;
    bridges.retain(|(other, ..)| *other != pid);
    if let Some(code) = bridged(&record.vdso_code.0, &own, code_at) {
        bridges.push((pid, old, code));
    }
    Ok(())
}

/// Whether a process has this code there.
fn holds(pid: Pid, range: Range, code: &[u8]) -> bool {
    let mut there = vec![0; code.len().min(range.len() as usize)];
    let read = |mem: File| mem.read_exact_at(&mut there, range.start);
    File::open(format!("/proc/{pid}/mem")).and_then(read).is_ok() && there == code
}

/// The last step of bridging, once every thread has its registers: none may stand in code that is overwritten.
pub fn settle(nest: &mut Nest) -> Result<()> {
    for (pid, old, code) in std::mem::take(&mut nest.state::<Bridges>().0) {
        let building = nest.process(pid)?;
        for thread in &mut building.threads {
            thread.step_out(old)?;
        }
        let path = format!("/proc/{pid}/mem");
        let name = || format!("the recorded vDSO of {pid}");
        let mem = File::options().write(true).open(&path).on("open", || path)?;
        mem.write_all_at(&code, old.start).on("write", name)?;
        nest.warnings.push(format!(
            "pid {pid}: the kernel is another than that of the checkpoint; calls of its vDSO are led to the running kernel's"
        ));
    }
    Ok(())
}

/// The old code with its functions led to those of `new`, which lies at `new_at`.
fn bridged(old: &[u8], new: &[u8], new_at: u64) -> Option<Vec<u8>> {
    let (theirs, mut code) = (functions(new)?, old.to_vec());
    for (name, at) in functions(old)? {
        let patch = match theirs.get(&name) {
            Some(to) => [&[0xff, 0x25, 0, 0, 0, 0], &(new_at + to).to_ne_bytes()[..]].concat(),
            None => stub(&name),
        };
        let at = at as usize;
        code.get_mut(at..at + patch.len())?.copy_from_slice(&patch);
    }
    Some(code)
}

/// What stands in for a function that the running kernel's vDSO does not have: the system call, or "no such call".
fn stub(name: &str) -> Vec<u8> {
    let call = match name.trim_start_matches("__vdso_") {
        "clock_gettime" => Some(libc::SYS_clock_gettime),
        "clock_getres" => Some(libc::SYS_clock_getres),
        "gettimeofday" => Some(libc::SYS_gettimeofday),
        "time" => Some(libc::SYS_time),
        "getcpu" => Some(libc::SYS_getcpu),
        "getrandom" => Some(libc::SYS_getrandom),
        _ => None,
    };
    // mov eax, number; syscall; ret
    let number = call.map_or(-libc::ENOSYS, |nr| nr as i32);
    let mut code = [&[0xb8], &number.to_ne_bytes()[..]].concat();
    code.extend_from_slice(if call.is_some() {
        &[0x0f, 0x05, 0xc3]
    } else {
        &[0xc3]
    });
    debug_assert!(code.len() <= JUMP);
    code
}

/// The functions of a vDSO by name, with their offsets; `None` if it is no such file.
fn functions(code: &[u8]) -> Option<BTreeMap<String, u64>> {
    let word = |at: usize| Some(u64::from_le_bytes(code.get(at..at + 8)?.try_into().ok()?));
    let half = |at: usize| Some(u32::from_le_bytes(code.get(at..at + 4)?.try_into().ok()?) as usize);
    let short = |at: usize| {
        Some(usize::from(u16::from_le_bytes(
            code.get(at..at + 2)?.try_into().ok()?,
        )))
    };
    if code.get(..5)? != b"\x7fELF\x02" {
        return None;
    }
    let (headers, size, count) = (word(32)? as usize, short(54)?, short(56)?);
    const PT_DYNAMIC: usize = 2;
    let dynamic = (0..count)
        .map(|i| headers + i * size)
        .find(|at| half(*at) == Some(PT_DYNAMIC))?;
    let (mut at, end) = (
        word(dynamic + 8)? as usize,
        (word(dynamic + 8)? + word(dynamic + 32)?) as usize,
    );
    let (mut symbols, mut strings, mut strings_len) = (0, 0, 0);
    while at < end {
        let value = word(at + 8)? as usize;
        match word(at)? {
            5 => strings = value,
            6 => symbols = value,
            10 => strings_len = value,
            _ => {}
        }
        at += 16;
    }
    if symbols == 0 || strings == 0 {
        return None;
    }
    let text = code.get(strings..strings.checked_add(strings_len)?)?;
    let mut out = BTreeMap::new();
    const SYMBOL: usize = 24;
    // Nothing tells their number but a hash table of one kind or the other; they end where what follows is no symbol.
    for n in 1.. {
        let at = symbols + n * SYMBOL;
        let (Some(name), Some(info), Some(section)) = (half(at), code.get(at + 4), short(at + 6)) else {
            break;
        };
        let Some(name) = text.get(name..).and_then(|t| t.split(|b| *b == 0).next()) else {
            break;
        };
        if at == strings || name.is_empty() {
            break;
        }
        let offset = word(at + 8)?;
        const FUNC: u8 = 2;
        if info & 0xf == FUNC && section != 0 && offset < code.len() as u64 {
            out.insert(String::from_utf8_lossy(name).into_owned(), offset);
        }
    }
    (!out.is_empty()).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_leads_to_the_function_of_its_name() {
        let own = own().unwrap();
        let known = functions(&own).unwrap();
        for name in ["clock_gettime", "gettimeofday", "time", "getcpu"] {
            assert!(known.contains_key(&format!("__vdso_{name}")), "{known:?}");
        }
        let code = bridged(&own, &own, 0x7000_0000).unwrap();
        for (name, at) in known {
            let at = at as usize;
            assert_eq!(code[at..at + 2], [0xff, 0x25], "{name}");
            let to = u64::from_ne_bytes(code[at + 6..at + JUMP].try_into().unwrap());
            assert_eq!(to, 0x7000_0000 + at as u64, "{name}");
        }
        assert_eq!(stub("__vdso_time"), [0xb8, 201, 0, 0, 0, 0x0f, 0x05, 0xc3]);
    }

    #[test]
    fn no_damage_panics() {
        let own = own().unwrap();
        for n in (0..own.len()).step_by(7) {
            let _ = functions(&own[..n]);
        }
        for n in 0..400 {
            let mut bad = own.clone();
            bad[n] ^= 0x55;
            let _ = functions(&bad);
        }
    }
}
