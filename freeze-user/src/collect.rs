//! `&mut Frozen → Draft`: every record of a set that stands still.

use crate::error::{Context, Error, Result};
use crate::ids::{FileId, Pid};
use crate::kinds::fanotify::Fanotify;
use crate::kinds::fdtable::FdTable;
use crate::kinds::filesystem::Filesystem;
use crate::kinds::inotify::{self, Inotify};
use crate::kinds::kinship::collect_zombies;
use crate::kinds::ldt::Ldt;
use crate::kinds::memory::Memory;
use crate::kinds::namespaces::{self, clocks::Clocks};
use crate::kinds::regular::locks::Locks;
use crate::kinds::signals::Signals;
use crate::kinds::unix::in_transit;
use crate::kinds::{
    FdKind, PROCESS_KINDS, PageSource, ProcessKind, Remembered, Shared, Source, kind_of, questions,
};
use crate::observe::view::{FdView, View};
use crate::stop::Frozen;
use crate::store::Draft;
use crate::sys::quiet::{Leased, Silence, Watched};
use crate::sys::{self, Kcmp, fault, laps, limit};
use crate::tracee::process::StoppedProcess;
use nix::errno::Errno;
use nix::sys::stat::makedev;
use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::RawFd;

/// Records everything of the set in `draft`; `pages` copies the memory.
pub fn collect(
    frozen: &mut Frozen,
    draft: &mut Draft,
    pages: &mut dyn PageSource,
    remembered: &mut Remembered,
) -> Result<()> {
    let Frozen {
        processes,
        view,
        recalling,
        ..
    } = frozen;
    let questions = questions();
    *recalling = remembered.begin();
    for process in processes.iter_mut() {
        // What tables it shares with others these can change for it.
        let alone = view.sharing.get(&process.pid()).map_or(0, |s| s.tables) == 0;
        let known = match recalling {
            Some(now) if alone => remembered.recall(process, &questions, now),
            _ => false,
        };
        if known {
            laps::lap("recall");
        } else {
            // They answer while other things are looked at.
            process.ask(&questions)?;
            laps::lap("ask");
        }
    }
    let watched = |p: &StoppedProcess| recalling.as_ref().is_some_and(|now| now.count(p.pid()).is_some());
    let whole = processes.iter().all(watched);
    let options = remembered.options(recalling.as_ref(), whole);
    let (lent, queues) = in_transit(view)?;
    if let Some(first) = processes.first_mut() {
        lent.into_iter().for_each(|own| first.lend(own));
    }
    let (files, firsts) = descriptions(view)?;
    laps::lap("shared descriptors");
    let writes = |fd: &&FdView| {
        let access = fd.flags() & libc::O_ACCMODE;
        access != libc::O_RDONLY && fd.flags() & libc::O_PATH == 0
    };
    let vmas = view.each().flat_map(|p| &p.vmas);
    let mapped = vmas
        .filter(|v| v.shared && v.has(b"mw"))
        .map(|v| (makedev(v.dev.0.into(), v.dev.1.into()), v.inode));
    let mut shared = Shared {
        files,
        queues,
        options,
        written: view
            .fds()
            .filter(writes)
            .map(|fd| (fd.stat.dev, fd.stat.ino))
            .chain(mapped)
            .collect(),
        ..Shared::default()
    };
    let _silence = silence(view);
    let eldest = processes.first().map(|p| p.pid());
    let own = Pid(std::process::id() as i32);
    collect_zombies(view, draft)?;
    namespaces::collect(view, &mut shared, draft)?;
    Clocks::collect(draft)?;
    laps::lap("zombies, namespaces");
    for process in processes.iter_mut() {
        let pid = process.pid();
        let mut source = Source {
            process,
            view,
            draft,
            shared: &mut shared,
            pages,
        };
        // What no process holds goes with the eldest.
        let here = |fd: &FdView| fd.pid == pid || fd.pid == own && Some(pid) == eldest;
        for (id, fd) in firsts.iter().filter(|(_, fd)| here(fd)) {
            fault::point("a file")?;
            limit::check()?;
            let refused = || fd.blocker().why("no kind claims it").refuse();
            kind_of(fd).ok_or_else(refused)?.collect(*id, fd, &mut source)?;
            laps::lap("descriptors");
        }
        source.process.finish_asking()?;
        laps::lap("answers");
        // Of a table that is shared there is one record, with whoever was there first.
        let tables = view.sharing.get(&pid).map_or(0, |s| s.tables);
        for kind in PROCESS_KINDS.iter().filter(|k| table_of(k.tag) & tables == 0) {
            fault::point(kind.tag)?;
            limit::check()?;
            (kind.collect)(&mut source)?;
            laps::lap(kind.tag);
        }
    }
    if let Some((pid, _)) = shared.unread.first_key_value() {
        return Err(Error::kernel(
            "shmat",
            format!("in the name of {pid}"),
            Errno::ESRCH,
        ));
    }
    remembered.keep_options(shared.options);
    Ok(())
}

/// Keeps what is read from those of the set who would be told of it, if there may be any.
fn silence(view: &View) -> Option<Silence> {
    let mut watched = HashSet::new();
    for fd in view.fds() {
        if Fanotify::claims(fd) {
            return Some(Silence::begin(leased_of(view), Watched::Everything));
        }
        if Inotify::claims(fd) {
            watched.extend(inotify::watched(fd));
        }
        // Wishes for F_NOTIFY are nowhere to be seen.
        if fd.stat.kind() == libc::S_IFDIR && fd.flags() & libc::O_PATH == 0 {
            watched.insert((fd.stat.dev, fd.stat.ino));
        }
    }
    let leased = leased_of(view);
    (!leased.is_empty() || !watched.is_empty()).then(|| Silence::begin(leased, Watched::These(watched)))
}

/// Which files nobody can open without breaking the lease of one of the set.
fn leased_of(view: &View) -> Leased {
    // One for reading is not broken by who reads.
    let writes = |fd: &FdView| Locks::of(fd).lease.is_some_and(|l| l.kind == libc::F_WRLCK);
    let can_read = |fd: &FdView| fd.flags() & libc::O_ACCMODE != libc::O_WRONLY;
    view.fds()
        .filter(|fd| !fd.info.locks.is_empty() && writes(fd) && can_read(fd))
        .map(|fd| ((fd.stat.dev, fd.stat.ino), (fd.pid, fd.fd)))
        .collect()
}

/// The table whose contents a kind records, as a flag of clone(2); 0 for what every process has of its own.
fn table_of(tag: &str) -> u64 {
    let flag = match tag {
        Memory::TAG | Ldt::TAG => libc::CLONE_VM,
        FdTable::TAG => libc::CLONE_FILES,
        Filesystem::TAG => libc::CLONE_FS,
        Signals::TAG => libc::CLONE_SIGHAND,
        _ => 0,
    };
    flag as u64
}

/// What two descriptors of one description have in common: link, device, inode, flags, position.
type Look<'a> = (&'a [u8], u64, u64, i32, i64);

type Descriptions<'a> = (BTreeMap<(Pid, RawFd), FileId>, Vec<(FileId, &'a FdView)>);

/// Finds out which descriptors are one open file description, and numbers the descriptions.
///
/// kcmp(2) decides; only descriptors that look alike in every respect /proc shows are compared.
fn descriptions(view: &View) -> Result<Descriptions<'_>> {
    let mut files = BTreeMap::new();
    let mut firsts: Vec<(FileId, &FdView)> = Vec::new();
    let mut alike: HashMap<Look<'_>, Vec<(FileId, &FdView)>> = HashMap::new();
    let speaker = |pid: Pid| view.get(pid).map_or(pid, |p| p.speaker);
    for fd in view.fds() {
        let known = alike
            .entry((&fd.link, fd.stat.dev, fd.stat.ino, fd.flags(), fd.info.pos))
            .or_default();
        // The kernel orders descriptions, so that a thousand alike need ten comparisons each.
        let (mut low, mut high, mut found) = (0, known.len(), None);
        while low < high && found.is_none() {
            let mid = low.midpoint(high);
            let (id, other) = known[mid];
            let order = sys::kcmp(
                speaker(fd.pid),
                speaker(other.pid),
                Kcmp::File,
                fd.fd as u64,
                other.fd as u64,
            );
            match order.on("kcmp", || {
                format!("fd {} of {} and fd {} of {}", fd.fd, fd.pid, other.fd, other.pid)
            })? {
                Ordering::Equal => found = Some(id),
                Ordering::Less => high = mid,
                Ordering::Greater => low = mid + 1,
            }
        }
        let id = found.unwrap_or_else(|| {
            let id = FileId(firsts.len() as u32);
            firsts.push((id, fd));
            known.insert(low, (id, fd));
            id
        });
        files.insert((fd.pid, fd.fd), id);
    }
    Ok((files, firsts))
}
