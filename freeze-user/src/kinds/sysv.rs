//! System V shared memory as it is attached to processes: segments with id, key, owner, permissions, contents.

use super::regular::store_contents;
use super::{Source, object_space};
use crate::error::{Blocker, Context, Error, Result};
use crate::ids::{PAGE, Pid, SpaceId};
use crate::nest::Nest;
use crate::observe::view::{ProcessView, View};
use crate::proc::maps::Vma;
use crate::store::Content;
use crate::sys::shm::{ShmAttached, ShmStat, shm_lock, shm_make, shm_remove, shm_set, shm_stat};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    pub id: i32,
    /// IPC_PRIVATE (0) also for one that has been removed.
    pub key: i32,
    pub size: u64,
    /// Permissions, SHM_DEST (01000) and SHM_LOCKED (02000).
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Who made it, and when it was changed last: by these it is told from another one with the same id.
    pub creator: i32,
    pub changed: i64,
    /// Where its contents are in the image.
    pub space: SpaceId,
}

const REMOVED: u32 = 0o1000;
const LOCKED: u32 = 0o2000;

/// The id of the segment that is mapped here: the kernel shows it as the inode.
pub fn segment_of(v: &Vma) -> Option<i32> {
    (v.shared && v.name.starts_with(b"/SYSV") && v.name.ends_with(b" (deleted)")).then_some(v.inode as i32)
}

/// Adds what speaks against carrying the segments attached to a process.
pub fn verdict(p: &ProcessView, view: &View, out: &mut Vec<Blocker>) {
    for (i, v) in p.vmas.iter().enumerate() {
        let Some(id) = segment_of(v) else { continue };
        let at = || p.blocker(v.range().to_string(), v.label());
        let stat = match shm_stat(id) {
            Ok(stat) => stat,
            Err(e) => {
                out.push(
                    at().why(format!("segment {id} cannot be asked for: {e}"))
                        .remedy("let the program detach it"),
                );
                continue;
            }
        };
        if !is_whole(&p.vmas, i, id, &stat) {
            out.push(
                at().why(format!("only a part of segment {id} is attached"))
                    .remedy("let the program attach it as a whole"),
            );
        }
        let inside = view
            .processes
            .iter()
            .flat_map(|p| &p.vmas)
            .filter(|v| segment_of(v) == Some(id))
            .count() as u64;
        if stat.attached > inside {
            out.push(
                at().why(format!(
                    "segment {id} is attached {} time(s) outside the checkpoint too",
                    stat.attached - inside
                ))
                .remedy("checkpoint a common ancestor (ipcs -mp names the processes)"),
            );
        }
    }
}

/// Whether the mapping number `i` is part of a run that covers its segment from the first to the last page.
fn is_whole(vmas: &[Vma], i: usize, id: i32, stat: &ShmStat) -> bool {
    let joined = |a: &Vma, b: &Vma| {
        segment_of(a) == Some(id)
            && segment_of(b) == Some(id)
            && a.end == b.start
            && a.offset + (a.end - a.start) == b.offset
    };
    let mut first = i;
    while first > 0 && vmas[first].offset != 0 && joined(&vmas[first - 1], &vmas[first]) {
        first -= 1;
    }
    let mut last = i;
    while last + 1 < vmas.len() && joined(&vmas[last], &vmas[last + 1]) {
        last += 1;
    }
    let end = vmas[last].offset + (vmas[last].end - vmas[last].start);
    vmas[first].offset == 0 && end == stat.size.next_multiple_of(PAGE)
}

/// Records the segment mapped at `v`, with its contents if it is met for the first time.
pub fn collect(id: i32, v: &Vma, pid: Pid, from: &mut Source<'_>) -> Result<Segment> {
    let name = || format!("System V segment {id}");
    let stat = shm_stat(id).on("shmctl(IPC_STAT)", name)?;
    // Its inode number is its id, which another object's on the same device may be as well: a device of its own.
    let device = u64::from(u32::MAX);
    let space = object_space(device, id as u64);
    if from.shared.first_sight(device, id as u64) {
        let path = format!("/proc/{pid}/map_files/{:x}-{:x}", v.start, v.end);
        let file = File::open(&path).on("open", || path.clone())?;
        store_contents(&file, stat.size, space, from.draft, &name)?;
    }
    Ok(Segment {
        id,
        key: stat.key,
        size: stat.size,
        mode: stat.mode & (0o777 | REMOVED | LOCKED),
        uid: stat.uid,
        gid: stat.gid,
        creator: stat.creator,
        changed: stat.changed,
        space,
    })
}

impl Segment {
    /// Adds what speaks against making it again.
    pub fn precheck(&self, out: &mut Vec<Blocker>) {
        let Ok(now) = shm_stat(self.id) else { return };
        let at = || Blocker::at(format!("System V segment {}", self.id), "");
        if !self.is(&now) {
            out.push(
                at().why("its id is taken by another segment")
                    .remedy(format!("remove that one: ipcrm -m {}", self.id)),
            );
        } else if now.attached > 0 {
            out.push(
                at().why("it is still attached to other processes")
                    .remedy("end them (ipcs -mp names them)"),
            );
        }
    }

    fn is(&self, now: &ShmStat) -> bool {
        (now.key, now.size, now.creator, now.changed) == (self.key, self.size, self.creator, self.changed)
    }

    /// Makes it, once for all processes that attach it; what is left of the old one is replaced.
    pub fn prepare(&self, nest: &mut Nest) -> Result<()> {
        if nest.state::<Made>().segments.contains_key(&self.id) {
            return Ok(());
        }
        let name = || format!("System V segment {}", self.id);
        if shm_stat(self.id).is_ok_and(|now| self.is(&now) && now.attached == 0) {
            shm_remove(self.id).on("shmctl(IPC_RMID)", name)?;
        }
        let next = "/proc/sys/kernel/shm_next_id";
        std::fs::write(next, self.id.to_string()).on("write", || next)?;
        let made = Kept {
            id: shm_make(self.key, self.size, self.mode).on("shmget", name)?,
            attached: None,
        };
        if made.id != self.id {
            return Err(Error::kernel("shmget", name(), Errno::EEXIST));
        }
        shm_set(self.id, self.uid, self.gid, self.mode).on("shmctl(IPC_SET)", name)?;
        let attached = ShmAttached::new(self.id, self.size.next_multiple_of(PAGE)).on("shmat", name)?;
        nest.image.for_each_run(self.space, |at, content| match content {
            Content::Bytes(bytes) => attached.write(at.start, bytes).on("write", name),
            Content::Zero => Ok(()),
        })?;
        if self.mode & LOCKED != 0 {
            shm_lock(self.id).on("shmctl(SHM_LOCK)", name)?;
        }
        // One that was removed can still be attached by its id, as long as it is attached here.
        if self.mode & REMOVED != 0 {
            shm_remove(self.id).on("shmctl(IPC_RMID)", name)?;
        }
        let mut made = made;
        made.attached = Some(attached);
        nest.state::<Made>().segments.insert(self.id, made);
        Ok(())
    }
}

/// A segment made here, attached to freeze until the nest is done; removed then if nobody else is attached to it.
#[derive(Debug)]
struct Kept {
    id: i32,
    attached: Option<ShmAttached>,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.attached = None;
        if shm_stat(self.id).is_ok_and(|now| now.attached == 0) {
            let _ = shm_remove(self.id);
        }
    }
}

#[derive(Debug, Default)]
struct Made {
    segments: BTreeMap<i32, Kept>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vma(start: u64, end: u64, offset: u64) -> Vma {
        let line = format!("{start:x}-{end:x} rw-s {offset:08x} 00:01 7 /SYSV00000000 (deleted)\n");
        crate::proc::maps::parse_maps(line.as_bytes()).unwrap().remove(0)
    }

    #[test]
    fn parts_are_told_from_the_whole() {
        let stat = ShmStat {
            key: 0,
            uid: 0,
            gid: 0,
            mode: 0,
            size: 0x2ffe,
            changed: 0,
            creator: 0,
            attached: 1,
        };
        let whole = [vma(0x1000, 0x2000, 0), vma(0x2000, 0x4000, 0x1000)];
        assert_eq!(segment_of(&whole[0]), Some(7));
        assert!(is_whole(&whole, 0, 7, &stat) && is_whole(&whole, 1, 7, &stat));
        assert!(!is_whole(&whole[..1], 0, 7, &stat) && !is_whole(&whole[1..], 0, 7, &stat));
        let twice = [vma(0x1000, 0x4000, 0), vma(0x4000, 0x7000, 0)];
        assert!(is_whole(&twice, 0, 7, &stat) && is_whole(&twice, 1, 7, &stat));
    }
}
