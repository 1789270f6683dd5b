//! System V shared memory, attached or not: segments with id, key, owner, permissions, contents.

use super::ipcspace::Space;
use super::regular::store_contents;
use super::{ProcessKind, Source, Stage, object_space};
use crate::error::{Blocker, Context, Result};
use crate::ids::{PAGE, Pid, SpaceId};
use crate::nest::space::Kind;
use crate::nest::{Landed, Nest, Options, free_place};
use crate::observe::view::{ProcessView, View};
use crate::proc::maps::Vma;
use crate::proc::sysvipc;
use crate::store::Content;
use crate::store::Draft;
use crate::sys;
use crate::sys::ipc::Call;
use crate::sys::quiet::Reading;
use crate::sys::shm::{ShmAttached, ShmStat, shm_lock, shm_remove, shm_set, shm_stat};
use nix::errno::Errno;
use nix::unistd::Whence;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd;

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
    /// The user and group that made it.
    #[serde(default)]
    pub cuid: u32,
    #[serde(default)]
    pub cgid: u32,
    /// Who attached or detached it last; 0 for nobody.
    #[serde(default)]
    pub last: i32,
    /// Whether it lay in another IPC namespace than freeze's.
    #[serde(default)]
    pub apart: bool,
    /// Bytes per page where they are huge ones (SHM_HUGETLB); else 0.
    #[serde(default)]
    pub huge: u64,
}

/// Segments that are attached to no process.
#[derive(Debug)]
pub struct Unattached;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub segments: Vec<Segment>,
}

const LIST: &str = "/proc/sysvipc/shm";

/// A device number for [`super::Shared::first_sight`] that no file has.
const DEVICE: u64 = u32::MAX as u64;

/// What stands for the inode of a segment: its id, which others in other namespaces have too.
fn place(id: i32, ns: &Space) -> Result<u64> {
    Ok(ns.mark()? << 32 | id as u64)
}

impl ProcessKind for Unattached {
    const TAG: &'static str = "sysv-segments";
    const VERSION: u16 = 1;
    const ABOUT: &'static str = "System V segments that nobody has attached: all of an IPC namespace of the set's own, on the host those         that a process of the set made, attached or detached last";
    const STAGE: Stage = Stage::Files;
    type Record = Record;

    fn verdict(_: &ProcessView, _: &View, _: &mut Vec<Blocker>) {}

    fn collect(from: &mut Source<'_>) -> Result<Record> {
        let space = Space::of(from.view, from.shared, from.process.pid())?;
        let mut record = Record::default();
        for unread in from.shared.unread.remove(&from.process.pid()).unwrap_or_default() {
            unread.read(true, &space, from)?;
        }
        if !space.first {
            return Ok(record);
        }
        for found in space.list(LIST, sysvipc::segments)? {
            let used = space.is_used_by([found.creator, found.last].into_iter());
            if found.attached == 0 && (used || space.whole()?) {
                record
                    .segments
                    .push(collect_unattached(found.object.id, &space, from)?);
            }
        }
        Ok(record)
    }

    fn precheck(record: &Record, _: Pid, _: &Options, out: &mut Vec<Blocker>) {
        record.segments.iter().for_each(|s| s.precheck(out));
    }

    fn restore(record: &Record, pid: Pid, nest: &mut Nest) -> Result<()> {
        for segment in &record.segments {
            segment.prepare(pid, nest)?;
        }
        // Whoever attaches one has done so by now.
        let made: Vec<(u32, i32, i32)> = nest
            .state::<Made>()
            .segments
            .iter_mut()
            .filter_map(|((number, id), kept)| kept.attached.take().map(|_| (*number, *id, kept.last)))
            .collect();
        for (number, id, last) in made {
            let there = nest.pids().contains(&Pid(last));
            if there && nest.membership(Pid(last)).of(Kind::Ipc) == number {
                let last = nest.process(Pid(last))?;
                let read_only = libc::SHM_RDONLY as u64;
                let at = last.call("shmat", libc::SYS_shmat, &[id as u64, 0, read_only])?;
                last.call("shmdt", libc::SYS_shmdt, &[at as u64])?;
            }
        }
        Ok(())
    }
}

/// Records a segment that nobody has attached; its contents come from freeze, which attaches it for a moment.
fn collect_unattached(id: i32, ns: &Space, from: &mut Source<'_>) -> Result<Segment> {
    let name = || format!("System V segment {id}");
    let stat = ns.enter(|| shm_stat(id)).on("shmctl(IPC_STAT)", name)?;
    let place = place(id, ns)?;
    if from.shared.first_sight(DEVICE, place) {
        let home = |p: &ProcessView| p.namespaces.get("ipc").copied();
        let here = home(&from.process.view);
        let living = |p: &&ProcessView| !p.is_dead() && home(p) == here;
        let order = |pid| from.view.each().filter(living).position(|p| p.pid == pid);
        let size = stat.size;
        let unread = Unread { id, place, size };
        // The kernel notes who attached it last, and that should be who it was.
        match order(Pid(stat.last)) {
            Some(later) if Some(later) > order(from.process.pid()) => {
                from.shared.unread.entry(Pid(stat.last)).or_default().push(unread);
            }
            _ => unread.read(Pid(stat.last) == from.process.pid(), ns, from)?,
        }
    }
    Ok(segment(id, &stat, object_space(DEVICE, place), ns.is_apart()))
}

/// A segment whose contents are still to be stored.
#[derive(Debug)]
pub struct Unread {
    id: i32,
    place: u64,
    size: u64,
}

impl Unread {
    /// Stores them; `touch`: the process attaches it after freeze has.
    fn read(&self, touch: bool, ns: &Space, from: &mut Source<'_>) -> Result<()> {
        let Unread { id, place, size } = *self;
        let name = || format!("System V segment {id}");
        let len = size.next_multiple_of(PAGE);
        let attached = ns.enter(|| ShmAttached::new(id, len)).on("shmat", name)?;
        let file = attached.open().on("open", name)?;
        store(file, size, object_space(DEVICE, place), from.draft, &name)?;
        drop(attached);
        if touch {
            let taken = from.process.view.vmas.iter().map(|v| v.range()).collect();
            let at = free_place(crate::ids::normalize(taken), len).start;
            from.process.tape(|t| {
                let read_only = libc::SHM_RDONLY as u64;
                t.try_call("shmat", libc::SYS_shmat, &[id as u64, at, read_only]);
                t.try_call("shmdt", libc::SYS_shmdt, &[at]);
            })?;
        }
        Ok(())
    }
}

/// Copies the contents of a segment into the image, up to the end of its last page, which who attaches it has too.
fn store(file: File, size: u64, space: SpaceId, draft: &mut Draft, name: &dyn Fn() -> String) -> Result<()> {
    let file = &Reading::from(file);
    let last = size / PAGE * PAGE;
    if last == size || sys::huge_page_of(file.as_fd()) != 0 {
        return store_contents(file, size, space, draft, name);
    }
    store_contents(file, last, space, draft, name)?;
    // ENXIO: nobody ever had that page.
    if nix::unistd::lseek64(file, last as i64, Whence::SeekData).is_ok() {
        let mapped = sys::SharedAnon::of(file.as_fd(), 0, last + PAGE).on("mmap", name)?;
        let page = mapped.read(last, PAGE as usize).on("read", name)?;
        draft.pages(space, last, &page)?;
    }
    Ok(())
}

fn segment(id: i32, stat: &ShmStat, space: SpaceId, apart: bool) -> Segment {
    Segment {
        id,
        key: stat.key,
        size: stat.size,
        mode: stat.mode & (0o777 | REMOVED | LOCKED),
        uid: stat.uid,
        gid: stat.gid,
        creator: stat.creator,
        changed: stat.changed,
        space,
        cuid: stat.cuid,
        cgid: stat.cgid,
        last: stat.last,
        apart,
        huge: 0,
    }
}

const REMOVED: u32 = 0o1000;
const LOCKED: u32 = 0o2000;

/// The id of the segment that is mapped here: the kernel shows it as the inode.
pub fn segment_of(v: &Vma) -> Option<i32> {
    (v.shared && v.name.starts_with(b"/SYSV") && v.name.ends_with(b" (deleted)")).then_some(v.inode as i32)
}

/// Adds what speaks against carrying the segments attached to a process.
pub fn verdict(p: &ProcessView, view: &View, out: &mut Vec<Blocker>) {
    let mut space = None;
    for v in &p.vmas {
        let Some(id) = segment_of(v) else { continue };
        let at = || p.blocker(v.range().to_string(), v.label());
        if space.is_none() {
            space = Space::at(p.pid).ok();
        }
        let stat = match space
            .as_ref()
            .map_or(Err(Errno::ESRCH), |s| s.enter(|| shm_stat(id)))
        {
            Ok(stat) => stat,
            Err(e) => {
                out.push(
                    at().why(format!("segment {id} cannot be asked for: {e}"))
                        .remedy("let the program detach it"),
                );
                continue;
            }
        };
        // Another namespace may have another segment of this id. Who shares memory has not attached it once more.
        let shares = |other: &ProcessView| {
            let tables = view.sharing.get(&other.pid).map_or(0, |s| s.tables);
            tables & libc::CLONE_VM as u64 != 0
        };
        let inside = view
            .each()
            .filter(|other| other.namespaces.get("ipc") == p.namespaces.get("ipc") && !shares(other))
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
        } else if stat.attached < inside && !shares(p) {
            out.push(
                at().why("it was attached in another IPC namespace than the process is in now, which has another of this id")
                    .remedy("let the program detach it"),
            );
        }
    }
}

/// Records the segment mapped at `v`, with its contents if it is met for the first time.
pub fn collect(id: i32, v: &Vma, pid: Pid, from: &mut Source<'_>) -> Result<Segment> {
    let name = || format!("System V segment {id}");
    let ns = Space::at(pid)?;
    let stat = ns.enter(|| shm_stat(id)).on("shmctl(IPC_STAT)", name)?;
    let place = place(id, &ns)?;
    let space = object_space(DEVICE, place);
    if from.shared.first_sight(DEVICE, place) {
        let path = format!("/proc/{pid}/map_files/{:x}-{:x}", v.start, v.end);
        let file = File::options().read(true).write(true).open(&path);
        let file = file.on("open", || path.clone())?;
        store(file, stat.size, space, from.draft, &name)?;
    }
    let mut found = segment(id, &stat, space, ns.is_apart());
    found.huge = super::memory::huge_page(v);
    Ok(found)
}

impl Segment {
    /// Adds what speaks against making it again.
    pub fn precheck(&self, out: &mut Vec<Blocker>) {
        if self.apart {
            return;
        }
        let at = || Blocker::at(format!("System V segment {}", self.id), "");
        let there = Space::own().list(LIST, sysvipc::segments).unwrap_or_default();
        let other = |s: &&sysvipc::Segment| s.object.key == self.key && s.object.id != self.id;
        if self.key != 0
            && let Some(other) = there.iter().find(other)
        {
            out.push(
                at().why(format!("its key {:#x} is taken by another one", self.key))
                    .remedy(format!("remove that one: ipcrm -m {}", other.object.id)),
            );
        }
        let Ok(now) = shm_stat(self.id) else { return };
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
        (now.key, now.size, now.creator) == (self.key, self.size, self.creator)
    }

    /// Makes it, once for all processes that attach it; what is left of the old one is replaced.
    pub fn prepare(&self, pid: Pid, nest: &mut Nest) -> Result<()> {
        let id = self.id;
        let name = || format!("System V segment {id}");
        let space = Space::of_nest(nest, pid)?;
        let key = (space.number(), id);
        if nest.state::<Made>().segments.contains_key(&key) {
            return Ok(());
        }
        let stat = || space.enter(|| shm_stat(id));
        if stat().is_ok_and(|now| self.is(&now) && now.attached == 0) {
            space.enter(|| shm_remove(id)).on("shmctl(IPC_RMID)", name)?;
        }
        let mut make = Call::shm_make(self.key, self.size, self.mode, self.huge);
        make.user = Some((self.cuid, self.cgid));
        let next = "/proc/sys/kernel/shm_next_id";
        space.make(id, next, &make, Some(self.creator), shm_remove, nest)?;
        let kept = Kept {
            id,
            last: self.last,
            attached: None,
            landed: nest.landed(),
            apart: space.is_apart(),
        };
        nest.state::<Made>().segments.insert(key, kept);
        let set = || shm_set(id, self.uid, self.gid, self.mode);
        space.enter(set).on("shmctl(IPC_SET)", name)?;
        let attach = || ShmAttached::new(id, self.size.next_multiple_of(self.huge.max(PAGE)));
        let attached = space.enter(attach).on("shmat", name)?;
        nest.image.for_each_run(self.space, |at, content| match content {
            Content::Bytes(bytes) => attached.write(at.start, bytes).on("write", name),
            Content::Zero => Ok(()),
        })?;
        if self.mode & LOCKED != 0 {
            space.enter(|| shm_lock(id)).on("shmctl(SHM_LOCK)", name)?;
        }
        // One that was removed can still be attached by its id, as long as it is attached here.
        if self.mode & REMOVED != 0 {
            space.enter(|| shm_remove(id)).on("shmctl(IPC_RMID)", name)?;
        }
        if let Some(kept) = nest.state::<Made>().segments.get_mut(&key) {
            kept.attached = Some(attached);
        }
        Ok(())
    }
}

/// A segment made here, attached to freeze while others attach it; removed if the restore does not come to its end.
#[derive(Debug)]
struct Kept {
    id: i32,
    last: i32,
    attached: Option<ShmAttached>,
    landed: Landed,
    apart: bool,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.attached = None;
        // A namespace of its own goes with its processes.
        if !self.landed.is() && !self.apart && shm_stat(self.id).is_ok_and(|now| now.attached == 0) {
            let _ = shm_remove(self.id);
        }
    }
}

/// By the number of their namespace and their id.
#[derive(Debug, Default)]
struct Made {
    segments: BTreeMap<(u32, i32), Kept>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_is_known_by_its_inode() {
        let line = b"1000-2000 rw-s 00000000 00:01 7 /SYSV00000000 (deleted)\n";
        let vma = crate::proc::maps::parse_maps(line).unwrap().remove(0);
        assert_eq!(segment_of(&vma), Some(7));
    }
}
