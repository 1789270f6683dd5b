//! Control groups: where processes and threads are in every hierarchy, and the groups themselves with their settings.

use super::{ProcessKind, Source, Stage};
use crate::error::{Blocker, Context, Error, Result};
use crate::ids::Pid;
use crate::nest::{CgroupChoice, Landed, Nest, Options};
use crate::observe::looks;
use crate::observe::view::{ProcessView, View};
use crate::proc::cgroup::{Membership, Mount, memberships, mounts};
use crate::sys::ipc::within;
use crate::sys::ns::Step;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Memberships of whole processes, and the groups they are in.
#[derive(Debug)]
pub struct Cgroups;

/// What must wait until all threads are there: those that are elsewhere than their process, and groups that are frozen.
#[derive(Debug)]
pub struct ThreadCgroups;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub places: Vec<Place>,
    /// Groups met first with this process, parents before children.
    pub groups: Vec<Group>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Place {
    /// As /proc/PID/cgroup has it: `cpu,cpuacct`, `name=systemd`, or nothing for the unified hierarchy.
    pub hierarchy: String,
    pub path: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    pub place: Place,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Every file that can be read and written, with what it says.
    pub settings: Vec<(String, String)>,
    /// Files whose owner is another one than the group's: delegated ones.
    pub owners: Vec<(String, u32, u32)>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThreadRecord {
    pub threads: Vec<(Pid, Place)>,
}

/// Files that are no settings although they can be read and written.
const NO_SETTINGS: [&str; 12] = [
    "cgroup.procs",
    "tasks",
    "cgroup.threads",
    "cgroup.event_control",
    "cgroup.pressure",
    "memory.max_usage_in_bytes",
    "memory.memsw.max_usage_in_bytes",
    "memory.kmem.max_usage_in_bytes",
    "memory.failcnt",
    "memory.peak",
    "memory.swap.peak",
    "devices.list",
];

/// Endings of such names.
const NO_ENDINGS: [&str; 4] = [".failcnt", ".max_usage_in_bytes", ".usage", ".pressure"];

/// Files that keep a group's processes from running, written when everything else is done.
const FREEZERS: [&str; 2] = ["freezer.state", "cgroup.freeze"];

/// The hierarchies as this process finds them.
#[derive(Debug)]
struct Hierarchies {
    /// Read when they are needed: for most processes it is enough that they are where this process is.
    mounts: OnceCell<Vec<Mount>>,
    /// Where this process itself is.
    own: Vec<Membership>,
}

impl Hierarchies {
    fn here() -> Result<Hierarchies> {
        Ok(Hierarchies {
            mounts: OnceCell::new(),
            own: of("self")?,
        })
    }

    fn mounts(&self) -> &[Mount] {
        self.mounts.get_or_init(|| {
            let text = looks::text("/proc/self/mountinfo").unwrap_or_default();
            mounts(&String::from_utf8_lossy(&text))
        })
    }

    /// The directory of a group; `None` where its hierarchy is not mounted or it lies outside of what is seen.
    fn dir(&self, place: &Place) -> Option<PathBuf> {
        let mounts = self.mounts().iter().filter(|m| m.is(&place.hierarchy));
        mounts
            .filter_map(|m| m.place(&place.path))
            .next()
            .map(PathBuf::from)
    }

    /// Whether this process is in the group or below it: such a one is not the set's own.
    fn is_above_own(&self, place: &Place) -> bool {
        let own = self.own.iter().find(|m| m.hierarchy == place.hierarchy);
        own.is_none_or(|own| Path::new(&own.path).starts_with(&place.path))
    }
}

/// Where a process or thread is.
fn of(who: &str) -> Result<Vec<Membership>> {
    let path = format!("/proc/{who}/cgroup");
    let text = match looks::text(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && Path::new("/proc/self").exists() => {
            // A kernel without control groups, or a process that has just gone.
            return Ok(Vec::new());
        }
        got => got.on("read", || path.clone())?,
    };
    memberships(&String::from_utf8_lossy(&text)).ok_or_else(|| {
        Blocker::at(path, "")
            .why("it is not understood")
            .remedy("report the kernel's version")
            .refuse()
    })
}

fn places(of: Vec<Membership>) -> Vec<Place> {
    let place = |m: Membership| Place {
        hierarchy: m.hierarchy,
        path: m.path,
    };
    of.into_iter().map(place).collect()
}

/// How to thaw what is in a group, if it is frozen, with a group above it or by itself.
fn frozen(dir: &Path) -> Option<&'static str> {
    let says = |dir: &Path, file: &str| looks::string(dir.join(file)).ok();
    if says(dir, "freezer.state").is_some_and(|s| s.trim() != "THAWED") {
        return Some("thaw it: write THAWED to its freezer.state");
    }
    let unified = dir.ancestors().map_while(|d| says(d, "cgroup.freeze"));
    let frozen = unified.into_iter().any(|s| s.trim() == "1");
    frozen.then_some("thaw it: write 0 to its cgroup.freeze, or to that of a group above")
}

/// Whether a path, which need not exist, lies in a cgroup file system.
pub fn is_group(path: &Path) -> bool {
    use nix::sys::statfs::{CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, statfs};
    let there = path.ancestors().find(|p| p.exists());
    let kind = there.and_then(|p| statfs(p).ok()).map(|fs| fs.filesystem_type());
    kind.is_some_and(|k| k == CGROUP_SUPER_MAGIC || k == CGROUP2_SUPER_MAGIC)
}

impl ProcessKind for Cgroups {
    const TAG: &'static str = "cgroups";
    const VERSION: u16 = 1;
    const ABOUT: &'static str = "control groups of version 1 and 2: where the process is in each hierarchy; groups that are gone are made \
        again with their settings and owners (`freeze restore --cgroup` chooses others); a process that is frozen with its group is refused";
    const STAGE: Stage = Stage::Memory;
    type Record = Record;

    fn verdict(p: &ProcessView, _: &View, out: &mut Vec<Blocker>) {
        if p.stat.is_zombie() {
            return;
        }
        let Ok(all) = of(&p.pid.to_string()) else { return };
        let Ok(hierarchies) = Hierarchies::here() else {
            return;
        };
        let below = all.iter().filter(|m| m.path != "/");
        for at in below.filter(|m| m.hierarchy.is_empty() || m.hierarchy.split(',').any(|c| c == "freezer")) {
            let dir = hierarchies.dir(&Place {
                hierarchy: at.hierarchy.clone(),
                path: at.path.clone(),
            });
            let Some(remedy) = dir.as_deref().and_then(frozen) else {
                continue;
            };
            out.push(
                p.blocker("cgroup", at.path.clone())
                    .why("it is frozen with its control group, where nothing can be asked of it")
                    .remedy(remedy),
            );
        }
    }

    fn collect(from: &mut Source<'_>) -> Result<Record> {
        let places = places(of(&from.process.pid().to_string())?);
        let mut record = Record {
            places,
            groups: Vec::new(),
        };
        let hierarchies = Hierarchies::here()?;
        for place in &record.places {
            if !hierarchies.is_above_own(place) {
                collect_groups(place, &hierarchies, from, &mut record.groups)?;
            }
        }
        Ok(record)
    }

    fn precheck(_: &Record, _: Pid, _: &Options, _: &mut Vec<Blocker>) {}

    fn restore(record: &Record, pid: Pid, nest: &mut Nest) -> Result<()> {
        let hierarchies = Hierarchies::here()?;
        let now = places(of(&pid.to_string())?);
        match nest.options.cgroup.clone() {
            CgroupChoice::Ignore => Ok(()),
            CgroupChoice::Path(path) => {
                let path = format!("/{}", path.trim_matches('/'));
                for place in now {
                    let wanted = Place {
                        path: path.clone(),
                        ..place
                    };
                    let Some(dir) = hierarchies.dir(&wanted) else {
                        continue;
                    };
                    make_all(&dir, nest)?;
                    join(&dir, "cgroup.procs", pid)?;
                }
                Ok(())
            }
            CgroupChoice::Keep => {
                for group in &record.groups {
                    group.make(&hierarchies, nest)?;
                }
                for place in record.places.iter().filter(|p| !now.contains(p)) {
                    if !now.iter().any(|n| n.hierarchy == place.hierarchy) {
                        nest.warnings.push(format!(
                            "pid {pid}: there is no cgroup hierarchy {:?} here",
                            place.hierarchy
                        ));
                        continue;
                    }
                    match hierarchies.dir(place) {
                        Some(dir) => {
                            make_all(&dir, nest)?;
                            join(&dir, "cgroup.procs", pid)?;
                        }
                        None => nest.warnings.push(format!(
                            "pid {pid}: its cgroup {} in hierarchy {:?} cannot be reached from here; it is in the restorer's",
                            place.path, place.hierarchy
                        )),
                    }
                }
                Ok(())
            }
        }
    }
}

impl ProcessKind for ThreadCgroups {
    const TAG: &'static str = "thread-cgroups";
    const VERSION: u16 = 1;
    const ABOUT: &'static str =
        "threads in other control groups than their process (version 1, and threaded ones of version 2)";
    const STAGE: Stage = Stage::Last;
    type Record = ThreadRecord;

    fn verdict(_: &ProcessView, _: &View, _: &mut Vec<Blocker>) {}

    fn collect(from: &mut Source<'_>) -> Result<ThreadRecord> {
        let pid = from.process.pid();
        let mut record = ThreadRecord::default();
        let path = |tid: Pid| format!("/proc/{pid}/task/{tid}/cgroup");
        let leader = looks::text(path(pid)).unwrap_or_default();
        let threads = from.process.view.threads.iter();
        let others = threads.filter(|t| t.tid != pid && !t.alike.cgroups);
        let others: Vec<Pid> = others.map(|t| t.tid).collect();
        let paths: Vec<String> = others.iter().map(|tid| path(*tid)).collect();
        for (tid, text) in others.iter().zip(looks::texts(&paths)) {
            if text.unwrap_or_default() == leader {
                continue;
            }
            let whole = places(of(&pid.to_string())?);
            let own = places(of(&format!("{pid}/task/{tid}"))?);
            let elsewhere = own.into_iter().filter(|p| !whole.contains(p));
            record.threads.extend(elsewhere.map(|p| (*tid, p)));
        }
        Ok(record)
    }

    fn precheck(_: &ThreadRecord, _: Pid, _: &Options, _: &mut Vec<Blocker>) {}

    fn restore(record: &ThreadRecord, pid: Pid, nest: &mut Nest) -> Result<()> {
        if nest.options.cgroup == CgroupChoice::Keep && !record.threads.is_empty() {
            let hierarchies = Hierarchies::here()?;
            for (tid, place) in &record.threads {
                let Some(dir) = hierarchies.dir(place) else {
                    continue;
                };
                make_all(&dir, nest)?;
                let file = if place.hierarchy.is_empty() {
                    "cgroup.threads"
                } else {
                    "tasks"
                };
                join(&dir, file, nest.process(pid)?.live_tid(*tid))?;
            }
        }
        for (file, state) in std::mem::take(&mut nest.state::<Made>().frozen) {
            std::fs::write(&file, state).on("write", || file.display().to_string())?;
        }
        Ok(())
    }
}

/// Records a group with those above it and those below.
fn collect_groups(
    place: &Place,
    hierarchies: &Hierarchies,
    from: &mut Source<'_>,
    out: &mut Vec<Group>,
) -> Result<()> {
    let mut chain: Vec<&Path> = Path::new(&place.path).ancestors().collect();
    chain.reverse();
    for path in chain {
        let at = Place {
            hierarchy: place.hierarchy.clone(),
            path: path.to_string_lossy().into_owned(),
        };
        if at.path == "/" || hierarchies.is_above_own(&at) {
            continue;
        }
        if let Some(dir) = hierarchies.dir(&at) {
            collect_group(at, &dir, from, out)?;
        }
    }
    let Some(dir) = hierarchies.dir(place) else {
        return Ok(());
    };
    collect_below(place, &dir, from, out)
}

fn collect_below(place: &Place, dir: &Path, from: &mut Source<'_>, out: &mut Vec<Group>) -> Result<()> {
    let Ok(list) = std::fs::read_dir(dir) else {
        return Ok(());
    };
    for entry in list.flatten().filter(|e| e.path().is_dir()) {
        let at = Place {
            hierarchy: place.hierarchy.clone(),
            path: format!("{}/{}", place.path, entry.file_name().to_string_lossy()),
        };
        if collect_group(at.clone(), &entry.path(), from, out)? {
            collect_below(&at, &entry.path(), from, out)?;
        }
    }
    Ok(())
}

/// Records one, unless it has been already.
fn collect_group(at: Place, dir: &Path, from: &mut Source<'_>, out: &mut Vec<Group>) -> Result<bool> {
    let Ok(meta) = std::fs::metadata(dir) else {
        return Ok(false);
    };
    // Every hierarchy is a device of its own.
    if !from.shared.first_sight(meta.dev(), meta.ino()) {
        return Ok(false);
    }
    let mut group = Group {
        place: at,
        mode: meta.mode() & 0o7777,
        uid: meta.uid(),
        gid: meta.gid(),
        settings: Vec::new(),
        owners: Vec::new(),
    };
    let list = std::fs::read_dir(dir).on("readdir", || dir.display().to_string())?;
    for entry in list.flatten() {
        let (Ok(meta), name) = (entry.metadata(), entry.file_name().to_string_lossy().into_owned()) else {
            continue;
        };
        if !meta.is_file() {
            continue;
        }
        if (meta.uid(), meta.gid()) != (group.uid, group.gid) {
            group.owners.push((name.clone(), meta.uid(), meta.gid()));
        }
        let setting = meta.mode() & 0o600 == 0o600
            && !NO_SETTINGS.contains(&name.as_str())
            && !NO_ENDINGS.iter().any(|e| name.ends_with(e));
        // Some say that they cannot be asked in this group.
        if setting && let Ok(text) = looks::string(entry.path()) {
            group.settings.push((name, text));
        }
    }
    if let Ok(text) = looks::string(dir.join("devices.list")) {
        group.settings.push(("devices.list".into(), text));
    }
    group.settings.sort();
    out.push(group);
    Ok(true)
}

impl Group {
    /// Makes it with its settings, if it is not there.
    fn make(&self, hierarchies: &Hierarchies, nest: &mut Nest) -> Result<()> {
        let Some(dir) = hierarchies.dir(&self.place) else {
            return Ok(());
        };
        let fresh = nest.state::<Made>().fresh.remove(&dir);
        if !fresh && (dir.is_dir() || !make_all(&dir, nest)?) {
            return Ok(());
        }
        let name = || dir.display().to_string();
        let mut failed = Vec::new();
        // Some can be set only after others: limits of memory with and without swap, say.
        let mut rest: Vec<&(String, String)> = self.settings.iter().collect();
        for _ in 0..3 {
            failed.clear();
            for setting in std::mem::take(&mut rest) {
                if let Err(e) = self.set(&dir, &setting.0, &setting.1, nest) {
                    failed.push(format!("{}: {e}", setting.0));
                    rest.push(setting);
                }
            }
            if rest.is_empty() {
                break;
            }
        }
        if !failed.is_empty() {
            nest.warnings.push(format!(
                "cgroup {}: not everything could be set as it was: {}",
                self.place.path,
                failed.join(", ")
            ));
        }
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(self.mode)).on("chmod", name)?;
        std::os::unix::fs::chown(&dir, Some(self.uid), Some(self.gid)).on("chown", name)?;
        if (self.uid, self.gid) != (0, 0) {
            for entry in std::fs::read_dir(&dir).on("readdir", name)?.flatten() {
                let _ = std::os::unix::fs::chown(entry.path(), Some(self.uid), Some(self.gid));
            }
        }
        for (file, uid, gid) in &self.owners {
            let _ = std::os::unix::fs::chown(dir.join(file), Some(*uid), Some(*gid));
        }
        Ok(())
    }

    fn set(&self, dir: &Path, file: &str, text: &str, nest: &mut Nest) -> std::io::Result<()> {
        let path = dir.join(file);
        let now = std::fs::read_to_string(&path).unwrap_or_default();
        if now == text {
            return Ok(());
        }
        if FREEZERS.contains(&file) {
            nest.state::<Made>().frozen.insert(path, text.trim().to_owned());
            return Ok(());
        }
        match file {
            "cgroup.subtree_control" => text
                .split_whitespace()
                .try_for_each(|c| std::fs::write(&path, format!("+{c}"))),
            // `domain threaded` comes by itself, with the first child that is.
            "cgroup.type" if text.trim() != "threaded" => Ok(()),
            "devices.list" => {
                std::fs::write(dir.join("devices.deny"), "a")?;
                text.lines()
                    .try_for_each(|l| std::fs::write(dir.join("devices.allow"), l))
            }
            "memory.oom_control" => {
                let first = text.lines().find_map(|l| l.strip_prefix("oom_kill_disable "));
                first.map_or(Ok(()), |v| std::fs::write(&path, v))
            }
            // A line a device, a group or a size: each is written by itself.
            _ => match text.lines().count() {
                0 => std::fs::write(&path, "\n"),
                _ => text
                    .lines()
                    .filter(|l| !now.lines().any(|n| n == *l))
                    .try_for_each(|l| std::fs::write(&path, l)),
            },
        }
    }
}

/// Makes a directory with those above it; whether the last was not there.
fn make_all(dir: &Path, nest: &mut Nest) -> Result<bool> {
    let mut made = Vec::new();
    let done = create_all(dir, &mut made);
    let fresh = !made.is_empty();
    // Also those above one that could not be made.
    for dir in made {
        let landed = nest.landed();
        nest.state::<Made>().dirs.push(Kept { dir, landed });
    }
    done.map_err(|e| refused(dir, "made", &e))?;
    Ok(fresh)
}

/// Makes a directory with those above it; adds those that were not there to `made`.
fn create_all(dir: &Path, made: &mut Vec<PathBuf>) -> std::io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    if let Some(above) = dir.parent() {
        create_all(above, made)?;
    }
    match std::fs::create_dir(dir) {
        Ok(()) => {
            // A set of processors is empty at first, and nobody can join it.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                let above = dir.parent().map(|d| std::fs::read_to_string(d.join(file)));
                if let (Some(Ok(all)), Ok("\n")) = (above, std::fs::read_to_string(dir.join(file)).as_deref())
                    && !dir.join("cgroup.controllers").exists()
                {
                    let _ = std::fs::write(dir.join(file), all);
                }
            }
            made.push(dir.to_owned());
            Ok(())
        }
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(e),
    }
}

/// Which group of each hierarchy a namespace has for its root, as a process that lives in it and below that tells.
pub(super) fn roots(pid: Pid, namespace: BorrowedFd<'_>) -> Result<Vec<Place>> {
    let name = || format!("/proc/{pid}/cgroup");
    let read = || std::fs::read_to_string(name()).map(|text| memberships(&text).unwrap_or_default());
    let outside = read().on("read", name)?;
    let inside = within(namespace, libc::CLONE_NEWCGROUP, read).on("setns", || "a cgroup namespace")?;
    let inside = inside.on("read", name)?;
    let root = |seen: Membership| {
        let inner = inside.iter().find(|m| m.hierarchy == seen.hierarchy)?;
        let path = match inner.path.as_str() {
            "/" => &seen.path,
            inner => seen.path.strip_suffix(inner)?,
        };
        let path = if path.is_empty() { "/" } else { path }.to_owned();
        Some(Place {
            hierarchy: seen.hierarchy,
            path,
        })
    };
    Ok(outside.into_iter().filter_map(root).collect())
}

/// Steps by which somebody goes into these groups, which are made if they are gone; those are added to `made`.
pub(super) fn steps_into(roots: &[Place], made: &mut Vec<PathBuf>) -> Result<Vec<Step>> {
    let hierarchies = Hierarchies::here()?;
    let mut steps = Vec::new();
    for root in roots {
        let own = hierarchies.own.iter().find(|m| m.hierarchy == root.hierarchy);
        if own.is_none_or(|own| own.path == root.path) {
            continue;
        }
        let Some(dir) = hierarchies.dir(root) else {
            continue;
        };
        create_all(&dir, made).map_err(|e| refused(&dir, "made", &e))?;
        let file = [dir.join("cgroup.procs").as_os_str().as_bytes(), b"\0"].concat();
        steps.push(Step::Write(file, b"0".to_vec()));
    }
    Ok(steps)
}

/// Takes over groups that were made before there was a nest; they are given their settings as others are.
pub fn take_over(nest: &mut Nest) {
    for dir in std::mem::take(&mut nest.spaces.groups.0) {
        let landed = nest.landed();
        let made = nest.state::<Made>();
        made.fresh.insert(dir.clone());
        made.dirs.push(Kept { dir, landed });
    }
}

fn join(dir: &Path, file: &str, id: Pid) -> Result<()> {
    let path = dir.join(file);
    match std::fs::write(&path, id.to_string()) {
        Ok(()) => Ok(()),
        Err(e) if e.raw_os_error() == Some(Errno::ESRCH as i32) => {
            Err(Error::kernel("write", path.display().to_string(), Errno::ESRCH))
        }
        Err(e) => Err(refused(dir, "joined", &e)),
    }
}

fn refused(dir: &Path, what: &str, e: &std::io::Error) -> Error {
    Blocker::at(format!("cgroup {}", dir.display()), "")
        .why(format!("it cannot be {what}: {e}"))
        .remedy("leave the processes in the group of the restorer (--cgroup ignore), or name another one (--cgroup PATH)")
        .refuse()
}

/// A group that was made here; removed if the restore does not come to its end.
#[derive(Debug)]
struct Kept {
    dir: PathBuf,
    landed: Landed,
}

#[derive(Debug, Default)]
struct Made {
    dirs: Vec<Kept>,
    /// Those that were made ahead, and have no settings yet.
    fresh: BTreeSet<PathBuf>,
    /// What is written in the end: it stops the processes.
    frozen: BTreeMap<PathBuf, String>,
}

impl Drop for Made {
    fn drop(&mut self) {
        for kept in self.dirs.iter().rev().filter(|k| !k.landed.is()) {
            let _ = std::fs::remove_dir(&kept.dir);
        }
    }
}
