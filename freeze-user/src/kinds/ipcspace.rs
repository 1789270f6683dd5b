//! The IPC namespace of a process: entered where it is not freeze's own, and what in it belongs to the set.

use super::Shared;
use crate::error::{Blocker, Context, Error, Result, errno};
use crate::ids::Pid;
use crate::nest::Nest;
use crate::nest::family::free;
use crate::nest::space::Kind;
use crate::observe::looks;
use crate::observe::procfile::{read_all, read_record};
use crate::observe::view::{View, all_pids, speaker};
use crate::proc::stat::Stat;
use crate::proc::sysvipc::Object;
use crate::sys;
use crate::sys::ipc::{self, Call, within};
use nix::Result as Sys;
use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::Duration;

/// Where the objects of a process lie. They are not held by it: what belongs to a set is told by who used it.
#[derive(Debug)]
pub struct Space {
    /// The namespace, if it is another one than freeze's.
    apart: Option<File>,
    /// Whether nobody but the set lives in it; looked for only once there is something in it, by whoever asks first.
    whole: Rc<OnceCell<bool>>,
    /// The number of the namespace, where it may be the set's as a whole.
    inode: Option<u64>,
    /// Whether the process is the first of the set in it: with that one goes what belongs to the set.
    pub first: bool,
    /// The processes of the set.
    pids: BTreeSet<i32>,
    /// Its number in the image, for what is built.
    number: u32,
}

impl Space {
    /// That of a process of a set that stands still.
    pub fn of(view: &View, shared: &mut Shared, pid: Pid) -> Result<Space> {
        let living = || view.each().filter(|p| !p.stat.is_zombie());
        let inode = |p: Pid| view.get(p).and_then(|p| p.namespaces.get("ipc"));
        let first = living().find(|p| p.namespaces.get("ipc") == inode(pid));
        let here = view.get(pid).is_some_and(|p| view.namespace(p, "ipc") == 0);
        let inode_of = inode(pid).copied();
        Ok(Space {
            apart: if here { None } else { apart(pid)? },
            whole: shared.ipc_alone.entry(inode_of).or_default().clone(),
            inode: inode_of,
            first: first.is_some_and(|p| p.pid == pid),
            pids: view.each().map(|p| p.pid.0).collect(),
            number: 0,
        })
    }

    /// That of any process, to look at what is known to be the set's.
    pub fn at(pid: Pid) -> Result<Space> {
        Ok(Space {
            apart: apart(pid)?,
            ..Space::own()
        })
    }

    /// That of a process of the nest.
    pub fn of_nest(nest: &Nest, pid: Pid) -> Result<Space> {
        Ok(Space {
            apart: apart(pid)?,
            whole: Rc::new(OnceCell::from(false)),
            inode: None,
            first: true,
            pids: nest.pids().iter().map(|p| p.0).collect(),
            number: nest.membership(pid).of(Kind::Ipc),
        })
    }

    /// The one that freeze is in, when nothing is built yet.
    pub fn own() -> Space {
        Space {
            apart: None,
            whole: Rc::new(OnceCell::from(false)),
            inode: None,
            first: true,
            pids: BTreeSet::new(),
            number: 0,
        }
    }

    /// Whether nobody but the set lives in it, so that everything in it is the set's.
    pub fn whole(&self) -> Result<bool> {
        if let Some(known) = self.whole.get() {
            return Ok(*known);
        }
        let whole = self.is_apart() || alone(&self.pids, self.inode)?;
        Ok(*self.whole.get_or_init(|| whole))
    }

    /// Whether it is another one than freeze's.
    pub fn is_apart(&self) -> bool {
        self.apart.is_some()
    }

    /// Tells the objects of this namespace from those of others, which have the same ids; 0 in freeze's own.
    pub fn mark(&self) -> Result<u64> {
        match &self.apart {
            Some(ns) => Ok(nix::sys::stat::fstat(ns)
                .on("fstat", || "an IPC namespace")?
                .st_ino),
            None => Ok(0),
        }
    }

    /// The number of the namespace in the image, of one of the nest.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Does something in it.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> Sys<T> + Send) -> Sys<T> {
        match &self.apart {
            Some(ns) => within(ns.as_fd(), libc::CLONE_NEWIPC, work)?,
            None => work(),
        }
    }

    /// A file of /proc as it shows this namespace.
    pub fn read(&self, path: &'static str) -> Result<String> {
        let read = || match read_all(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            got => got.map_err(errno),
        };
        let text = self.enter(read).on("read", || path)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// Writes a file of /proc that means this namespace.
    pub fn write(&self, path: &'static str, text: &str) -> Result<()> {
        let write = || std::fs::write(path, text).map_err(errno);
        self.enter(write).on("write", || path)
    }

    /// Asks for `id` as the next one to be given (`/proc/sys/kernel/*_next_id`). The wish is the whole namespace's, so
    /// as long as the returned file lives no other freeze utters one.
    fn reserve(&self, next: &'static str, id: i32) -> Result<File> {
        let wish = || {
            let mut file = File::options().write(true).open(next).map_err(errno)?;
            sys::flock(file.as_fd(), libc::LOCK_EX)?;
            file.write_all(id.to_string().as_bytes()).map_err(errno)?;
            Ok(file)
        };
        self.enter(wish).on("write", || next)
    }

    /// Makes an object that has this id, in the name of `by` or in freeze's own.
    ///
    /// Somebody who asks for no id may be given the one that was asked for here: then once more.
    pub fn make(
        &self,
        id: i32,
        next: &'static str,
        make: &Call,
        by: Option<i32>,
        remove: impl Fn(i32) -> Sys<()> + Sync,
        nest: &mut Nest,
    ) -> Result<()> {
        const ATTEMPTS: u32 = 50;
        for _ in 0..ATTEMPTS {
            let wish = self.reserve(next, id)?;
            let made = match by {
                Some(pid) => self.call(make, pid, nest)?,
                None => self.enter(|| make.make()).on(make.name, || format!("id {id}"))?,
            };
            drop(wish);
            if made as i32 == id {
                return Ok(());
            }
            let _ = self.enter(|| remove(made as i32));
            std::thread::sleep(Duration::from_millis(1));
        }
        Err(Error::kernel(
            make.name,
            format!("id {id}"),
            nix::errno::Errno::EEXIST,
        ))
    }

    /// The objects listed there, as `parse` reads them.
    pub fn list<T>(&self, path: &'static str, parse: impl FnOnce(&str) -> Option<Vec<T>>) -> Result<Vec<T>> {
        let count = match path {
            "/proc/sysvipc/sem" => ipc::sem_count_all,
            "/proc/sysvipc/msg" => ipc::msg_count_all,
            _ => ipc::shm_count_all,
        };
        // Reading takes longer, and mostly there is nothing.
        if self.enter(count) == Ok(0) {
            return Ok(Vec::new());
        }
        parse(&self.read(path)?).ok_or_else(|| {
            Blocker::at(path, "")
                .why("it is not understood")
                .remedy("report the kernel's version")
                .refuse()
        })
    }

    /// Whether a process of the set is among these.
    pub fn is_used_by(&self, mut pids: impl Iterator<Item = i32>) -> bool {
        pids.any(|p| self.pids.contains(&p))
    }

    /// Whether a living process outside the set is among these: it must not find its object changed.
    pub fn has_outsider(&self, mut pids: impl Iterator<Item = i32>) -> bool {
        let own = std::process::id() as i32;
        pids.any(|p| p != 0 && p != own && !self.pids.contains(&p) && !self.is_apart() && lives(p))
    }

    /// Makes a call in the name of the process `pid`: one of the nest, or one that has ended and whose number is free.
    /// Where that cannot be, freeze makes it itself.
    pub fn call(&self, call: &Call, pid: i32, nest: &mut Nest) -> Result<i64> {
        let name = || format!("in the name of pid {pid}");
        if self.pids.contains(&pid) && self.admits(Pid(pid), nest)? {
            let own = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
            let (ran, at) = nest.process(Pid(pid))?.tape(|t| {
                const KEEP: u64 = u64::MAX;
                let other = call.user.filter(|u| *u != own);
                if let Some((uid, gid)) = other {
                    t.call("setresgid", libc::SYS_setresgid, &[KEEP, u64::from(gid), KEEP]);
                    t.call("setresuid", libc::SYS_setresuid, &[KEEP, u64::from(uid), KEEP]);
                }
                let args = call.args(|data| t.bytes(data));
                let at = t.try_call(call.name, call.nr, &args);
                if other.is_some() {
                    t.call("setresuid", libc::SYS_setresuid, &[KEEP, u64::from(own.0), KEEP]);
                    t.call("setresgid", libc::SYS_setresgid, &[KEEP, u64::from(own.1), KEEP]);
                }
                at
            })?;
            return ran.result(at).on(call.name, name);
        }
        if pid > 0 && !self.is_apart() && free(Pid(pid)) {
            return call.make_as(Pid(pid)).on(call.name, name);
        }
        self.enter(|| call.make()).on(call.name, || "freeze")
    }

    /// Whether a process of the nest is in this namespace. Of one that has ended nobody can tell where it was, so it comes here.
    fn admits(&self, pid: Pid, nest: &mut Nest) -> Result<bool> {
        let here = |nest: &Nest| nest.membership(pid).of(Kind::Ipc) == self.number;
        if !here(nest) && self.number != 0 && nest.has_ended(pid) {
            nest.enter(pid, &[(Kind::Ipc, self.number)])?;
        }
        Ok(here(nest))
    }
}

/// The IPC namespace of a process, if it is not freeze's own.
fn apart(pid: Pid) -> Result<Option<File>> {
    let theirs = format!("/proc/{}/ns/ipc", speaker(pid));
    let own = "/proc/thread-self/ns/ipc";
    if std::fs::read_link(&theirs).on("readlink", || theirs.clone())?
        == std::fs::read_link(own).on("readlink", || own)?
    {
        return Ok(None);
    }
    File::open(&theirs).on("open", || theirs.clone()).map(Some)
}

fn stat(pid: Pid) -> Option<Stat> {
    Stat::parse(&read_record(&format!("/proc/{pid}/stat")).ok()?)
}

fn lives(pid: i32) -> bool {
    stat(Pid(pid)).is_some_and(|s| !s.is_zombie())
}

/// Whether nobody lives in the namespace but the set, freeze, and those that started freeze.
fn alone(set: &BTreeSet<i32>, inode: Option<u64>) -> Result<bool> {
    let Some(inode) = inode else { return Ok(false) };
    let there = format!("ipc:[{inode}]").into_bytes();
    let link = |p: Pid| looks::link(format!("/proc/{p}/ns/ipc"));
    let mut known: BTreeSet<Pid> = set.iter().copied().map(Pid).collect();
    let mut above = Pid(std::process::id() as i32);
    while above.0 > 0 && known.insert(above) {
        above = stat(above).map_or(Pid(0), |s| Pid(s.ppid));
    }
    // The kernel's own threads live in the first namespace of all; to go through all processes takes long where there are
    // many. In a container it is a process like any other.
    const KTHREADD: Pid = Pid(2);
    if !known.contains(&KTHREADD) && link(KTHREADD).is_ok_and(|link| link == there) {
        return Ok(false);
    }
    let elsewhere = |p: &Pid| link(*p).is_ok_and(|link| link != there);
    Ok(all_pids()?.iter().all(|p| known.contains(p) || elsewhere(p)))
}

/// Adds what speaks against making these again in freeze's own namespace; `command` is ipcrm's option.
pub fn precheck<'a>(
    what: &str,
    option: &str,
    wanted: impl Iterator<Item = &'a Object>,
    there: &[Object],
    out: &mut Vec<Blocker>,
) {
    for object in wanted {
        let at = || Blocker::at(format!("{what} {}", object.id), "");
        let by_id = there.iter().find(|t| t.id == object.id);
        let by_key = there
            .iter()
            .find(|t| t.key == object.key && t.key != 0 && t.id != object.id);
        if by_id.is_some_and(|now| !same(now, object)) {
            out.push(
                at().why("its id is taken by another one")
                    .remedy(format!("remove that one: ipcrm {option} {}", object.id)),
            );
        } else if let Some(other) = by_key {
            out.push(
                at().why(format!("its key {:#x} is taken by another one", object.key))
                    .remedy(format!("remove that one: ipcrm {option} {}", other.id)),
            );
        }
    }
}

/// Whether it is the same object: its key, and who made it.
pub fn same(a: &Object, b: &Object) -> bool {
    (a.id, a.key, a.cuid, a.cgid) == (b.id, b.key, b.cuid, b.cgid)
}
