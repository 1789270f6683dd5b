//! What of a process hardly ever changes, and then for good: it may be read before a stop if it is the same after it.

use super::looks;
use super::procfile::read_all;
use super::view::{LinkView, read_link};
use crate::error::{Context, Result};
use crate::ids::Pid;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What of a process is [lasting](crate::observe::view::ProcessView::lasting).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lasting {
    pub(super) exe: LinkView,
    pub(super) exe_is_32_bit: bool,
    pub(super) root: LinkView,
    pub(super) namespaces: Arc<BTreeMap<String, u64>>,
}

impl Lasting {
    /// That of a living process.
    pub fn of(pid: Pid) -> Result<Lasting> {
        Lasting::read(&format!("/proc/{pid}"))
    }

    pub(super) fn read(dir: &str) -> Result<Lasting> {
        Ok(Lasting {
            exe: read_link(dir, "exe", false)?,
            exe_is_32_bit: is_32_bit(dir)?,
            root: read_link(dir, "root", false)?,
            namespaces: read_namespaces(dir)?.into(),
        })
    }

    /// Whether two looks agree: a root directory or program file may have been written to.
    pub fn agrees(&self, other: &Lasting) -> bool {
        let place = |l: &LinkView| (l.path.clone(), l.stat.dev, l.stat.ino);
        self.namespaces == other.namespaces
            && place(&self.exe) == place(&other.exe)
            && place(&self.root) == place(&other.root)
    }
}

/// Byte 4 of an ELF file is its class: 1 for 32 bits. To open it is an event for who watches it (inotify(7)), so that it is
/// done only where the auxiliary vector does not tell of program headers as long as they are with 64.
fn is_32_bit(dir: &str) -> Result<bool> {
    use std::io::Read;
    const AT_PHENT: u64 = 4;
    const LENGTH: u64 = 56;
    let vector = read_all(format!("{dir}/auxv")).unwrap_or_default();
    let entry = [AT_PHENT, LENGTH].map(u64::to_ne_bytes).concat();
    if vector.chunks_exact(entry.len()).any(|e| e == entry) {
        return Ok(false);
    }
    let path = format!("{dir}/exe");
    let mut head = [0; 5];
    let mut file = std::fs::File::open(&path).on("open", || path.clone())?;
    Ok(file.read_exact(&mut head).is_ok() && head == [0x7f, b'E', b'L', b'F', 1])
}

pub(super) fn read_namespaces(dir: &str) -> Result<BTreeMap<String, u64>> {
    let mut out = BTreeMap::new();
    for kind in [
        "cgroup",
        "ipc",
        "mnt",
        "net",
        "pid",
        "pid_for_children",
        "time",
        "time_for_children",
        "user",
        "uts",
    ] {
        let Ok(link) = looks::link(format!("{dir}/ns/{kind}")) else {
            continue;
        };
        let text = String::from_utf8_lossy(&link);
        let inode = text
            .split_once('[')
            .and_then(|(_, n)| n.strip_suffix(']')?.parse().ok());
        if let Some(inode) = inode {
            out.insert(kind.to_owned(), inode);
        }
    }
    Ok(out)
}
