//! `View`: what /proc says of a set of processes, read without stopping or touching anything.

use crate::crew;
use crate::error::{Blocker, Context, Error, Result, errno};
use crate::ids::{Pid, Range};
use crate::observe::alike::{self, Alike};
use crate::observe::ends::Ends;
use crate::observe::fds::read_fds;
pub use crate::observe::fds::{FdView, read_fd};
pub use crate::observe::filestat::FileStat;
use crate::observe::index::Index;
pub use crate::observe::lasting::Lasting;
use crate::observe::peers::{InetSocket, Nobodys, TcpTable, UnixSocket, unix_sockets};
use crate::observe::procfile::{read_all, read_record, read_record_at};
use crate::observe::sharing::{self, Sharing};
pub use crate::observe::tasks::{all_pids, parents, tasks};
use crate::observe::tree::{Tree, Trees};
use crate::observe::vmflags;
use crate::proc::maps::{self, Vma};
use crate::proc::stat::Stat;
use crate::proc::status::Status;
use crate::proc::timers::{self, Timer};
use crate::sys::pagemap;
use crate::sys::{laps, ns};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, OnceLock};

/// One thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThreadView {
    pub tid: Pid,
    pub stat: Stat,
    pub status: Status,
    /// Namespaces it has left its process for; with [`Depth::Maps`] looked for where it may have gone since.
    pub own_namespaces: Vec<&'static str>,
    /// What it is known to have in common with the first thread, as long as that has not ended.
    pub alike: Alike,
}

/// Where one of a process's links (`exe`, `cwd`, `root`) leads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkView {
    pub path: Vec<u8>,
    pub stat: FileStat,
    /// The tree of files it leads through.
    pub tree: Tree,
}

/// One process with all its threads.
#[derive(Clone, Debug)]
pub struct ProcessView {
    pub pid: Pid,
    /// The thread by which its memory and tables are reached: the first, or another if that one has ended.
    pub speaker: Pid,
    pub stat: Stat,
    pub status: Status,
    /// By id.
    pub threads: Vec<ThreadView>,
    pub vmas: Vec<Vma>,
    /// Guard pages, where they were looked for: a walk over the page tables that must not be done in a pause.
    pub guards: Option<Vec<Range>>,
    pub fds: Vec<FdView>,
    pub exe: LinkView,
    pub cwd: LinkView,
    pub root: LinkView,
    /// Namespace kind (`pid`, `mnt` …) to its inode number.
    pub namespaces: Arc<BTreeMap<String, u64>>,
    pub timers: Vec<Timer>,
    pub cmdline: Vec<u8>,
    /// Whether its executable is an ELF file of class 32.
    pub exe_is_32_bit: bool,
    /// Whether it shows an io_uring: looked for when it is asked for first, which each of its threads does. Neither `fds` nor
    /// `vmas` may be changed after that.
    pub shows_ring: OnceLock<bool>,
}

impl ProcessView {
    /// Its command for people, at most 60 characters.
    pub fn command(&self) -> String {
        command_text(&self.cmdline, &self.stat.comm)
    }

    /// Its thread with this id.
    pub fn thread(&self, tid: Pid) -> Option<&ThreadView> {
        let at = self.threads.binary_search_by_key(&tid, |t| t.tid).ok()?;
        Some(&self.threads[at])
    }

    /// Whether all of it has ended; the first thread may, while others go on.
    pub fn is_dead(&self) -> bool {
        self.stat.is_dead()
    }

    /// A blocker at this process as a whole.
    pub fn blocker(&self, place: impl Into<String>, object: impl Into<String>) -> Blocker {
        Blocker {
            which: self.stat.start_time,
            ..Blocker::of(self.pid, place, object)
        }
    }

    /// What of it a process hardly ever changes, and then for good: it may be read before a stop if it is found the same
    /// after it.
    pub fn lasting(&self) -> Lasting {
        Lasting {
            exe: self.exe.clone(),
            exe_is_32_bit: self.exe_is_32_bit,
            root: self.root.clone(),
            namespaces: self.namespaces.clone(),
        }
    }

    /// Whether smaps was read, so that the vmas carry their flags.
    pub fn has_flags(&self) -> bool {
        self.vmas
            .iter()
            .all(|v| !v.flags.is_empty() || v.name == b"[vsyscall]")
    }
}

/// Who outside the set holds an object that is also held inside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Holder {
    pub pid: Pid,
    pub fd: i32,
    pub command: String,
}

/// What /proc says of a set of processes.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Parents before their children; the first is a root.
    pub processes: Vec<Arc<ProcessView>>,
    /// Pids of processes that were asked for; the rest descends from them.
    pub roots: Vec<Pid>,
    /// Holders outside the set of the pipes and sockets held inside, and of the sockets these are joined to, by link
    /// (`pipe:[5]`).
    pub outside: HashMap<Vec<u8>, Vec<Holder>>,
    /// Descriptions that no process holds, but queues of sockets of the set do; their descriptors are freeze's own.
    pub in_transit: Vec<FdView>,
    /// All unix sockets by inode, if the set holds one; the error where the kernel does not tell.
    pub unix: HashMap<u64, UnixSocket>,
    pub unix_untold: Option<Errno>,
    /// Which processes share tables with others.
    pub sharing: BTreeMap<Pid, Sharing>,
    /// All TCP sockets by inode, if the set holds one.
    pub tcp: HashMap<u64, InetSocket>,
    /// All TCP sockets that no process holds, if the set holds one.
    pub tcp_nobodys: Vec<Nobodys>,
    /// The inodes of TCP sockets whose segments are signed.
    pub tcp_signed: BTreeSet<u64>,
    /// What the user decided about ends outside.
    pub ends: Ends,
    /// The mount namespaces other than freeze's.
    pub trees: Trees,
    /// The namespaces of the set other than freeze's, by name in /proc/PID/ns and inode: their numbers from 1, by name.
    pub foreign: BTreeMap<(String, u64), u32>,
    /// The inode of freeze's own network namespace; 0 where that is not to be learned.
    pub own_net: u64,
    /// Whether everything stood still meanwhile.
    pub(super) standing: bool,
    /// Where in it things are.
    pub(super) index: Index,
}

/// How much of the address spaces to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Ranges and files (`maps`): some microseconds, whatever is resident.
    Maps,
    /// Flags too (`smaps`), which walks the page tables: 5–10 ms per resident GiB.
    Smaps,
}

impl View {
    /// Whether everything stood still while it was looked at.
    pub fn stands_still(&self) -> bool {
        self.standing
    }

    /// Reads the trees below `roots`.
    pub fn read(roots: &[Pid], depth: Depth) -> Result<View> {
        View::read_after(roots, depth, None, false, tasks(roots)?)
    }

    /// The same of a set that stands still if there is an earlier look, trusting that as to who outside the set holds what:
    /// searching all processes of the machine takes longer than everything else, and only for pipes and sockets that are new since is it done again.
    ///
    /// With `trust`, also what a process rarely changes is taken over: see [`ProcessView::lasting`]. `all`: the threads
    /// that there are.
    pub fn read_after(
        roots: &[Pid],
        depth: Depth,
        before: Option<&View>,
        trust: bool,
        all: Vec<(Pid, Pid)>,
    ) -> Result<View> {
        let trusted = before.filter(|_| trust);
        let mut set: Vec<Pid> = Vec::new();
        let mut threads: HashMap<Pid, Vec<Pid>> = HashMap::new();
        for (pid, tid) in all {
            if !set.contains(&pid) {
                set.push(pid);
            }
            threads.entry(pid).or_default().push(tid);
        }
        // A root that is not there has no tasks; reading it says so.
        set.extend(
            roots
                .iter()
                .filter(|r| !set.contains(r))
                .copied()
                .collect::<Vec<_>>(),
        );
        let mut view = View {
            roots: roots.to_vec(),
            ends: before.map(|b| b.ends.clone()).unwrap_or_default(),
            standing: before.is_some(),
            own_net: match before {
                Some(before) => before.own_net,
                None => std::fs::metadata("/proc/thread-self/ns/net").map_or(0, |m| m.ino()),
            },
            ..View::default()
        };
        for &pid in &set {
            let tids = threads.remove(&pid).unwrap_or_default();
            match ProcessView::read_after(pid, depth, trusted.and_then(|v| v.get(pid)), tids) {
                Ok(p) => view.processes.push(Arc::new(p)),
                // A descendant may end while we look; a root that is not there is what the user must hear.
                Err(Error::Died { .. }) if !roots.contains(&pid) => {}
                Err(e) => return Err(e),
            }
        }
        view.sharing = sharing::find(&view, before);
        view.look_at_trees(before)?;
        view.look_at_networks(before)?;
        laps::lap("look at /proc");
        view.look_at_sockets();
        laps::lap("look at sockets");
        view.look_outside(before)?;
        if let Some(before) = before {
            view.trust_others(before);
        }
        Ok(view)
    }

    /// The process `pid` of the set.
    pub fn get(&self, pid: Pid) -> Option<&ProcessView> {
        self.each().find(|p| p.pid == pid)
    }

    /// Its processes.
    pub fn each(&self) -> impl Iterator<Item = &ProcessView> {
        self.processes.iter().map(Arc::as_ref)
    }

    /// Its processes, to be changed as long as nobody else has them.
    pub fn each_mut(&mut self) -> impl Iterator<Item = &mut ProcessView> {
        self.processes.iter_mut().map(Arc::make_mut)
    }

    /// Every fd of every process, and those in transit between them.
    pub fn fds(&self) -> impl Iterator<Item = &FdView> {
        self.each().flat_map(|p| &p.fds).chain(&self.in_transit)
    }

    /// Takes in descriptions that were found in queues, with what they are joined to.
    pub fn admit(&mut self, mut found: Vec<FdView>) -> Result<()> {
        let before = self.clone();
        // They are held by freeze, and lead through the tree they were opened in all the same.
        for fd in &mut found {
            fd.tree = self.trees.of_mount(fd.info.mnt_id);
        }
        self.in_transit.extend(found);
        self.index = Index::default();
        self.look_at_sockets();
        self.look_outside(Some(&before))
    }

    /// The other end of a TCP connection of the set that a listening socket of the set has not accepted yet.
    pub fn tcp_waiting(&self, inode: u64) -> Option<&Nobodys> {
        const LISTEN: u8 = 10;
        let own = self.tcp.get(&inode)?;
        let other = self.tcp_nobodys.iter().find(|n| {
            matches!(n.ends.state, 1 | 3 | 8) && n.ends.local == own.remote && n.ends.remote == own.local
        })?;
        let listens = |f: &FdView| {
            let socket = self.tcp.get(&f.stat.ino);
            socket.is_some_and(|s| s.state == LISTEN && s.local.port() == other.ends.local.port())
        };
        self.fds().any(listens).then_some(other)
    }

    /// The links of the sockets that those of the set are joined to, or that wait to be.
    fn far_ends(&self) -> impl Iterator<Item = Vec<u8>> {
        let sockets = self.fds().filter(|f| !f.protocol.is_empty());
        let far = sockets.flat_map(|f| {
            let unix = self.unix.get(&f.stat.ino);
            let waiting = unix.map_or(&[][..], |u| &u.waiting).iter().copied();
            waiting
                .chain(unix.and_then(|u| u.peer))
                .chain(self.tcp_peer(f.stat.ino))
                .filter(|i| *i != 0)
        });
        far.map(socket_link)
    }

    fn look_at_sockets(&mut self) {
        let unix = self.fds().any(|f| f.protocol.starts_with("UNIX"));
        let tcp = self.fds().any(|f| f.protocol.starts_with("TCP"));
        let own = std::iter::once((0, None));
        let others = self
            .foreign_nets()
            .into_iter()
            .map(|(number, fd)| (number, Some(fd)));
        self.tcp_nobodys.clear();
        for (number, fd) in own.chain(others) {
            let look = || {
                let unix = unix.then(unix_sockets);
                let tcp = tcp.then(TcpTable::read);
                (unix, tcp)
            };
            let inside: Vec<_> = fd.iter().map(std::os::fd::AsFd::as_fd).collect();
            let Ok((unix, tcp)) = ns::within(&inside, look) else {
                continue;
            };
            match unix {
                Some(Ok(all)) => self.unix.extend(all),
                Some(Err(e)) => self.unix_untold = Some(e),
                None => {}
            }
            let table = tcp.unwrap_or_default();
            self.tcp_signed.extend(table.signed);
            self.tcp_nobodys.extend(table.nobodys.into_iter().map(|mut n| {
                n.ends.net = number;
                n
            }));
            let held = table.held.into_iter();
            self.tcp
                .extend(held.map(|(inode, s)| (inode, InetSocket { net: number, ..s })));
        }
    }

    /// Finds who else on the machine holds the pipes and sockets of the set.
    fn look_outside(&mut self, before: Option<&View>) -> Result<()> {
        let joint = |v: &View| -> BTreeSet<Vec<u8>> {
            let shared = v
                .fds()
                .filter(|f| f.link.starts_with(b"pipe:[") || f.link.starts_with(b"socket:["));
            shared.map(|f| f.link.clone()).chain(v.far_ends()).collect()
        };
        let mut joint_now = joint(self);
        if let Some(before) = before {
            self.outside = before.outside.clone();
            let known = joint(before);
            joint_now.retain(|link| !known.contains(link));
        }
        let joint = joint_now;
        if joint.is_empty() {
            return Ok(());
        }
        self.look_at_others()?;
        let mut found: Vec<(Vec<u8>, Holder)> = Vec::new();
        for other in self.others(|other| joint.contains(&other.link)) {
            let (pid, fd) = (other.pid, other.fd);
            let command = command_of(pid);
            found.push((other.link.clone(), Holder { pid, fd, command }));
        }
        for (link, holder) in found {
            self.outside.entry(link).or_default().push(holder);
        }
        Ok(())
    }
}

impl ProcessView {
    /// Reads one process; [`Error::Died`] if it is not there (any more), a zombie is read as far as it has state.
    pub fn read(pid: Pid, depth: Depth) -> Result<ProcessView> {
        let own = tasks(&[pid])?.into_iter().filter(|(p, _)| *p == pid);
        ProcessView::read_after(pid, depth, None, own.map(|(_, tid)| tid).collect())
    }

    /// The same, taking over from an earlier look what is [lasting](ProcessView::lasting).
    fn read_after(
        pid: Pid,
        depth: Depth,
        before: Option<&ProcessView>,
        tids: Vec<Pid>,
    ) -> Result<ProcessView> {
        let dir = format!("/proc/{pid}");
        let gone = |e: Error| match e {
            Error::Kernel {
                errno: Errno::ENOENT | Errno::ESRCH,
                ..
            } => Error::Died {
                pid,
                how: "does not exist".into(),
            },
            e => e,
        };
        let stat = read_stat(&dir).map_err(gone)?;
        let status = read_status(&dir).map_err(gone)?;
        if status.tgid != pid.0 {
            return Err(Blocker::of(pid, "", "a thread")
                .why(format!("it is a thread of process {}", status.tgid))
                .remedy("name the process")
                .refuse());
        }
        let mut p = ProcessView {
            pid,
            speaker: pid,
            stat,
            status,
            threads: Vec::new(),
            vmas: Vec::new(),
            guards: None,
            fds: Vec::new(),
            exe: LinkView::default(),
            cwd: LinkView::default(),
            root: LinkView::default(),
            namespaces: Arc::default(),
            timers: Vec::new(),
            cmdline: Vec::new(),
            exe_is_32_bit: false,
            shows_ring: OnceLock::new(),
        };
        let before = before.filter(|b| b.stat.start_time == p.stat.start_time && !b.namespaces.is_empty());
        p.cmdline = match before {
            Some(before) => before.cmdline.clone(),
            None => std::fs::read(format!("{dir}/cmdline")).unwrap_or_default(),
        };
        if p.is_dead() || p.stat.is_kernel_thread() {
            return Ok(p);
        }
        let dir = match p.stat.is_zombie() {
            true => {
                p.speaker = speaker(pid);
                let dir = format!("/proc/{}", p.speaker);
                // It goes by its first thread's ids all the same.
                let ids = std::mem::take(&mut p.status.ns_pid);
                p.status = read_status(&dir).map_err(gone)?;
                p.status.ns_pid = ids;
                if before.is_none() {
                    p.cmdline = std::fs::read(format!("{dir}/cmdline")).unwrap_or_default();
                }
                dir
            }
            false => dir,
        };
        let fill = |p: &mut ProcessView| -> Result<()> {
            p.cwd = read_link(&dir, "cwd", before.is_some())?;
            let lasting = match before {
                Some(before) => before.lasting(),
                None => Lasting::read(&dir)?,
            };
            if before.is_some()
                && roams(&p.status)
                && let Some(kind) = left_for(&dir, &lasting.namespaces).first()
            {
                return Err(p
                    .blocker("", format!("its {kind} namespace"))
                    .passing()
                    .why("it has just gone into it")
                    .remedy("try again")
                    .refuse());
            }
            p.exe = lasting.exe;
            p.exe_is_32_bit = lasting.exe_is_32_bit;
            p.root = lasting.root;
            p.namespaces = lasting.namespaces;
            p.threads = read_threads(p, depth, &tids)?;
            p.timers = read_timers(&dir)?;
            p.vmas = read_vmas(p.speaker, depth)?;
            if depth == Depth::Smaps {
                p.guards = pagemap::guards_of(p.speaker, p.vmas.iter().map(Vma::range)).ok();
            }
            p.fds = read_fds(pid, p.speaker, before.map(|b| &b.fds[..]))?;
            Ok(())
        };
        match fill(&mut p) {
            Ok(()) => Ok(p),
            // Links and maps vanish with the process: the second look decides which of the two it was.
            Err(e) => match read_stat(&format!("/proc/{pid}")).map_err(gone) {
                Ok(now) if now.is_dead() => {
                    p.stat = now;
                    Ok(p)
                }
                // Its memory goes first, and of a large one that takes a while.
                Ok(now) if now.is_exiting() => Err(Error::Died {
                    pid,
                    how: "is about to end".into(),
                }),
                Ok(_) => Err(e),
                Err(dead) => Err(dead),
            },
        }
    }
}

/// The thread by which a process's memory and tables are reached: its first, or another if that one has ended.
pub fn speaker(pid: Pid) -> Pid {
    let runs = |tid: &Pid| {
        let stat = read_record(&format!("/proc/{tid}/stat")).ok();
        stat.and_then(|t| Stat::parse(&t)).is_some_and(|s| !s.is_zombie())
    };
    if runs(&pid) {
        return pid;
    }
    threads(pid).into_iter().find(runs).unwrap_or(pid)
}

/// The threads that a process has just now, first the one it began with; none if it is gone.
pub fn threads(pid: Pid) -> Vec<Pid> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten();
    tasks
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.parse().ok().map(Pid))
        .collect()
}

/// Reads the vmas of a process at the given depth.
pub fn read_vmas(pid: Pid, depth: Depth) -> Result<Vec<Vma>> {
    match depth {
        Depth::Maps => {
            let path = format!("/proc/{pid}/maps");
            let text = read_all(&path).on("read", || path.clone())?;
            maps::parse_maps(&text).ok_or_else(|| malformed(&path))
        }
        Depth::Smaps => vmflags::read(pid),
    }
}

/// The command of a process for people.
pub fn command_of(pid: Pid) -> String {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let comm = std::fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    command_text(&line, comm.strip_suffix(b"\n").unwrap_or(&comm))
}

fn command_text(cmdline: &[u8], comm: &[u8]) -> String {
    if cmdline.is_empty() {
        return String::from_utf8_lossy(comm).into_owned();
    }
    let text = String::from_utf8_lossy(cmdline.strip_suffix(b"\0").unwrap_or(cmdline)).replace('\0', " ");
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(60)
        .collect()
}

pub(super) fn malformed(path: &str) -> Error {
    Error::kernel("parse", path, Errno::EPROTO)
}

fn read_stat(dir: &str) -> Result<Stat> {
    let path = format!("{dir}/stat");
    Stat::parse(&read_record(&path).on("read", || path.clone())?).ok_or_else(|| malformed(&path))
}

fn read_status(dir: &str) -> Result<Status> {
    let path = format!("{dir}/status");
    let text = read_record(&path).on("read", || path.clone())?;
    Status::parse(&text).ok_or_else(|| malformed(&path))
}

/// Where a link of a process leads; `still`: whether that cannot change meanwhile, or does not matter.
pub(super) fn read_link(dir: &str, name: &str, still: bool) -> Result<LinkView> {
    let path = format!("{dir}/{name}");
    let read = || -> Result<LinkView> {
        let stat = FileStat::of(&path).on("stat", || path.clone())?;
        Ok(LinkView {
            path: link_at(&path)?,
            stat,
            tree: Tree::default(),
        })
    };
    let mut link = read()?;
    let more = if still { 0 } else { SAME_LOOKS };
    for _ in 0..more {
        let again = read()?;
        if (&again.path, again.stat.dev, again.stat.ino) == (&link.path, link.stat.dev, link.stat.ino) {
            break;
        }
        link = again;
    }
    Ok(link)
}

/// How often what a running program changes meanwhile is looked at until two looks agree.
pub(super) const SAME_LOOKS: usize = 100;

fn link_at(path: &str) -> Result<Vec<u8>> {
    let link = std::fs::read_link(path).map_err(|e| unreadable_link(errno(e), path))?;
    Ok(link.into_os_string().into_vec())
}

/// Why it is not told where a link of /proc leads: by a path that is longer than any call takes it is not told at all.
pub(super) fn unreadable_link(e: Errno, path: &str) -> Error {
    match e {
        Errno::ENAMETOOLONG => Blocker::at(path, "")
            .why("it leads to a path of more than 4096 bytes, which the kernel does not tell")
            .remedy("let the program go to a directory, or open a file, nearer to the root")
            .refuse(),
        e => Error::kernel("readlink", path, e),
    }
}

fn read_threads(p: &ProcessView, depth: Depth, tids: &[Pid]) -> Result<Vec<ThreadView>> {
    let path = format!("/proc/{}/task", p.pid);
    let mut tids: Vec<i32> = tids.iter().map(|t| t.0).collect();
    tids.sort_unstable();
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let task = nix::fcntl::open(path.as_str(), flags, Mode::empty()).on("open", || path.clone())?;
    let record = |tid: i32, name: &str| {
        let name = format!("{tid}/{name}");
        let text = read_record_at(task.as_fd(), &name).on("read", || format!("{path}/{name}"))?;
        Ok((text, name))
    };
    let stat_of = |tid: i32| -> Result<Stat> {
        let (text, name) = record(tid, "stat")?;
        Stat::parse(&text).ok_or_else(|| malformed(&format!("{path}/{name}")))
    };
    let status_of = |tid: i32| -> Result<Status> {
        let (text, name) = record(tid, "status")?;
        Status::parse(&text).ok_or_else(|| malformed(&format!("{path}/{name}")))
    };
    let known = match p.stat.is_zombie() {
        true => HashMap::new(),
        false => alike::look(p.pid, tids.len()),
    };
    let read = |tid: &i32| -> Result<Option<ThreadView>> {
        if *tid == p.pid.0 {
            // The process's own stat sums over the threads; state and masks are the leader's either way. One that has
            // ended before the others goes with the process.
            return Ok((!p.stat.is_zombie()).then(|| ThreadView {
                tid: p.pid,
                stat: p.stat.clone(),
                status: p.status.clone(),
                own_namespaces: Vec::new(),
                alike: Alike::default(),
            }));
        }
        let alike = known.get(&Pid(*tid)).copied().unwrap_or_default();
        match stat_of(*tid).and_then(|stat| Ok((stat, status_of(*tid)?))) {
            Ok((stat, _)) if stat.is_io_worker() => Ok(None),
            Ok((stat, status)) => Ok(Some(ThreadView {
                tid: Pid(*tid),
                own_namespaces: match depth {
                    Depth::Maps if !roams(&status) => Vec::new(),
                    _ if alike.namespaces => Vec::new(),
                    _ => left_for(&format!("{path}/{tid}"), &p.namespaces),
                },
                alike,
                stat,
                status,
            })),
            Err(Error::Kernel {
                errno: Errno::ENOENT | Errno::ESRCH,
                ..
            }) => Ok(None),
            Err(e) => Err(e),
        }
    };
    crew::each(&tids, read)
        .into_iter()
        .filter_map(Result::transpose)
        .collect()
}

/// Whether a thread may go to other namespaces, and so be back before anybody looks again.
fn roams(status: &Status) -> bool {
    const CAP_SYS_ADMIN: u64 = 1 << 21;
    status.cap_prm & CAP_SYS_ADMIN != 0
}

/// The kinds of namespace in which a thread is elsewhere than `home`, of those that it can leave alone.
fn left_for(dir: &str, home: &BTreeMap<String, u64>) -> Vec<&'static str> {
    let mut out = vec!["net", "uts", "ipc", "mnt"];
    out.retain(|kind| {
        let now = std::fs::read_link(format!("{dir}/ns/{kind}")).ok();
        let inode = now.and_then(|l| {
            l.to_string_lossy()
                .split_once('[')?
                .1
                .strip_suffix(']')?
                .parse()
                .ok()
        });
        inode.is_some_and(|i: u64| home.get(*kind).is_some_and(|own| *own != i))
    });
    out
}

fn read_timers(dir: &str) -> Result<Vec<Timer>> {
    let path = format!("{dir}/timers");
    // Without CONFIG_CHECKPOINT_RESTORE there is no such file; `plan` refuses then.
    // Never one that was kept: a program may well make a timer and delete it within the milliseconds between two looks.
    let text = read_all(&path).on("read", || path.clone())?;
    timers::parse(&String::from_utf8_lossy(&text)).ok_or_else(|| malformed(&path))
}

/// The link of the socket with this inode.
pub fn socket_link(inode: u64) -> Vec<u8> {
    format!("socket:[{inode}]").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sees_itself() {
        let (read, _write) = nix::unistd::pipe().unwrap();
        let pid = Pid(std::process::id() as i32);
        let v = View::read(&[pid], Depth::Maps).unwrap();
        let p = v.get(pid).unwrap();
        assert!(!p.vmas.is_empty() && !p.threads.is_empty() && p.namespaces.contains_key("pid"));
        let fd = p
            .fds
            .iter()
            .find(|f| f.fd == std::os::fd::AsRawFd::as_raw_fd(&read))
            .unwrap();
        assert!(fd.link.starts_with(b"pipe:["));
    }

    #[test]
    fn a_pid_that_is_not_there_is_named() {
        let e = View::read(&[Pid(0x3fff_ffff)], Depth::Maps).unwrap_err();
        assert!(
            matches!(
                e,
                Error::Died {
                    pid: Pid(0x3fff_ffff),
                    ..
                }
            ),
            "{e}"
        );
    }
}
