//! The `VmFlags` of mappings without a walk over their page tables, which is what smaps costs.
//!
//! smaps writes each vma's flags as letters and nothing else decides which; but it counts every page beside. So an eBPF
//! iterator (`iter/task_vma`) tells each vma's flags as the number they are, and smaps is read only when a number is met
//! for the first time on this machine: from it we learn what the number means. What bits there are we need not know.

use super::btf::Btf;
use super::procfile::read_all;
use super::view::malformed;
use crate::error::{Context, Result};
use crate::ids::{PAGE, Pid, TASK_SIZE};
use crate::proc::maps::{self, Letters, Vma};
use crate::sys::bpf::VmaIterator;
use nix::errno::Errno;
use std::collections::HashMap;
use std::sync::{Mutex, OnceLock, PoisonError};

/// From here on smaps takes longer than to prepare the iterator, which takes some milliseconds once.
const MANY_VMAS: usize = 2000;
const MANY_PAGES: u64 = (32 << 20) / PAGE;

/// What smaps says of a vma beside what maps does.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Meaning {
    letters: Letters,
    key: u8,
}

/// The way of this process to read flags.
#[derive(Debug)]
struct Reader {
    iterator: VmaIterator,
    /// By number; that of the kernel's own mapping, which no iterator shows, is [`GATE`].
    known: Mutex<HashMap<u64, Meaning>>,
}

/// A number that no vma has: not both growing down and up, and everything else.
const GATE: u64 = u64::MAX;

static READER: OnceLock<Option<Reader>> = OnceLock::new();

/// The vmas of a process with their flags.
pub(super) fn read(pid: Pid) -> Result<Vec<Vma>> {
    let reader = match READER.get() {
        None if !is_large(pid) => {
            let vmas = smaps(pid)?;
            if vmas.len() > MANY_VMAS {
                READER.get_or_init(Reader::start);
            }
            return Ok(vmas);
        }
        _ => READER.get_or_init(Reader::start),
    };
    let Some(reader) = reader else {
        return smaps(pid);
    };
    match reader.read(pid)? {
        Some(vmas) => Ok(vmas),
        None => reader.learn_from(pid),
    }
}

fn smaps(pid: Pid) -> Result<Vec<Vma>> {
    let path = format!("/proc/{pid}/smaps");
    let text = read_all(&path).on("read", || path.clone())?;
    maps::parse_smaps(&text).ok_or_else(|| malformed(&path))
}

fn is_large(pid: Pid) -> bool {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    let resident = statm.split(' ').nth(1).and_then(|n| n.parse::<u64>().ok());
    resident.is_some_and(|pages| pages > MANY_PAGES)
}

impl Reader {
    fn start() -> Option<Reader> {
        let btf = Btf::running().ok()?;
        let target = "bpf_iter_task_vma";
        let id = *btf.ids(true, &[target]).get(target)?;
        let member = |name| btf.offset("vm_area_struct", name);
        let offsets = [member("vm_start")?, member("vm_end")?, member("vm_flags")?];
        let iterator = VmaIterator::new(id, offsets)
            .inspect_err(|errno| tracing::debug!(%errno, "no iterator over vmas: VmFlags come from smaps"))
            .ok()?;
        let reader = Reader {
            iterator,
            known: Mutex::default(),
        };
        // We are small, and have most sorts of mappings ourselves.
        let _ = reader.learn_from(Pid(std::process::id() as i32));
        Some(reader)
    }

    /// What smaps says of a process, from which we learn.
    fn learn_from(&self, pid: Pid) -> Result<Vec<Vma>> {
        let before = self.iterator.read(pid);
        let vmas = smaps(pid)?;
        // Only what did not change meanwhile teaches anything.
        if let (Ok(before), Ok(after)) = (before, self.iterator.read(pid))
            && before == after
        {
            self.learn(&vmas, &after);
        }
        Ok(vmas)
    }

    /// None if something is met that is not known, or the mappings change.
    fn read(&self, pid: Pid) -> Result<Option<Vec<Vma>>> {
        let path = format!("/proc/{pid}/maps");
        let text = read_all(&path).on("read", || path.clone())?;
        let mut vmas = maps::parse_maps(&text).ok_or_else(|| malformed(&path))?;
        let numbers = match self.iterator.read(pid) {
            Ok(numbers) => numbers,
            // Changing, gone, or before Linux 6.1.
            Err(Errno::EAGAIN | Errno::ESRCH | Errno::EINVAL) => return Ok(None),
            Err(e) => return Err(e).on("bpf", || format!("iterator over the mappings of {pid}")),
        };
        let Some(pairs) = paired(&vmas, &numbers) else {
            return Ok(None);
        };
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let meanings: Option<Vec<Meaning>> = pairs.iter().map(|n| known.get(n).cloned()).collect();
        drop(known);
        let Some(meanings) = meanings else {
            return Ok(None);
        };
        for (vma, meaning) in vmas.iter_mut().zip(meanings) {
            (vma.flags, vma.key, vma.page) = (meaning.letters, meaning.key, PAGE);
        }
        Ok(Some(vmas))
    }

    fn learn(&self, vmas: &[Vma], numbers: &[[u64; 3]]) {
        let Some(pairs) = paired(vmas, numbers) else {
            return;
        };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        // The size of other pages is no matter of the flags: processes that have such are always read in smaps.
        for (vma, number) in vmas.iter().zip(pairs).filter(|(vma, _)| vma.page == PAGE) {
            let meaning = Meaning {
                letters: vma.flags.clone(),
                key: vma.key,
            };
            known.insert(number, meaning);
        }
    }
}

/// The number of each vma; none if the two lists are not of the same mappings.
fn paired(vmas: &[Vma], numbers: &[[u64; 3]]) -> Option<Vec<u64>> {
    let mut left = numbers.iter();
    let pairs = vmas.iter().map(|vma| match vma.start > TASK_SIZE {
        true => Some(GATE),
        false => left
            .next()
            .filter(|[start, end, _]| (*start, *end) == (vma.start, vma.end))
            .map(|[.., number]| *number),
    });
    let pairs: Option<Vec<u64>> = pairs.collect();
    pairs.filter(|_| left.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Twice: the first time it learns, the second it knows.
    #[test]
    fn what_is_learned_is_what_smaps_says() {
        let btf = Btf::running().unwrap();
        let id = btf.ids(true, &["bpf_iter_task_vma"])["bpf_iter_task_vma"];
        if crate::sys::bpf::try_program(26, 28, id).is_err() {
            return; // no iterators here at all
        }
        let reader = Reader::start().unwrap();
        // A thread that does nothing but wait, in a process whose mappings do not change: a child of ours.
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let pid = Pid(child.id() as i32);
        std::thread::sleep(std::time::Duration::from_millis(100));
        reader.known.lock().unwrap().clear();
        assert_eq!(reader.read(pid).unwrap(), None);
        let told = reader.learn_from(pid).unwrap();
        assert_eq!(reader.read(pid).unwrap(), Some(told));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(reader.iterator.read(Pid(0x3fff_ffff)), Ok(Vec::new()));
    }

    #[test]
    fn lists_of_different_mappings_are_no_pair() {
        let vma = |start, end| Vma {
            start,
            end,
            ..Vma::default()
        };
        let vmas = [vma(1, 2), vma(3, 4), vma(u64::MAX - 5, u64::MAX)];
        assert_eq!(paired(&vmas, &[[1, 2, 7], [3, 4, 8]]), Some(vec![7, 8, GATE]));
        assert_eq!(paired(&vmas, &[[1, 2, 7]]), None);
        assert_eq!(paired(&vmas, &[[1, 2, 7], [3, 5, 8]]), None);
        assert_eq!(paired(&vmas, &[[1, 2, 7], [3, 4, 8], [5, 6, 9]]), None);
    }
}
