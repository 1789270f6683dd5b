//! Resource kinds: one file each, with what is recorded, what is refused, how it is collected and how it is restored.
//!
//! Adding a kind is one file here, one line in a registry below, and its twin in `tests/`.

mod asks;
pub mod bpfmap;
pub mod cgroup;
pub mod credentials;
pub mod device;
pub mod directory;
pub mod epoll;
pub mod eventfd;
pub mod fanotify;
pub mod fdtable;
pub mod fifo;
pub mod filesystem;
pub mod inotify;
pub mod io_uring;
pub mod ipcspace;
pub mod kinship;
pub mod listing;
pub mod ldt;
pub mod limits;
pub mod login;
pub mod marks;
pub mod memfd;
pub mod memory;
pub mod mqueue;
pub mod msgqueues;
pub mod namespaces;
pub mod netlink;
pub mod packet;
pub mod netns;
pub mod nsfd;
pub mod path;
pub mod pidfd;
pub mod pipe;
pub mod pty;
pub mod regular;
pub mod seccomp;
pub mod semaphores;
pub mod signalfd;
pub mod signals;
pub mod sysv;
pub mod terminal;
pub mod socket;
pub mod threads;
pub mod timerfd;
pub mod timers;
pub mod tcp;
pub mod traits;
pub mod tun;
pub mod udp;
pub mod unix;

pub use asks::{Asks, Recalling, Remembered, questions};

use crate::error::{Blocker, Context, Error, Result};
use crate::ids::{FileId, Pid, Range, SpaceId};
use crate::nest::space::Kind;
use crate::nest::{Nest, Options};
use crate::observe::view::{FdView, ProcessView, View};
use crate::store::{Draft, unpack};
use crate::sys;
use crate::tracee::process::{Question, StoppedProcess};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use regular::locks::{Lease, Locks};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Debug;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::rc::Rc;

/// A kind of open file description.
///
/// No method has a default body: a kind that forgets half of its work must not compile.
pub trait FdKind: 'static {
    /// Name in the image; never reused.
    const TAG: &'static str;
    /// Version of the record; old ones stay readable.
    const VERSION: u16;
    /// One sentence for docs/kinds.md: what is carried, and what of it is refused.
    const ABOUT: &'static str;
    type Record: Serialize + DeserializeOwned + PartialEq + Debug + 'static;

    /// Whether this kind is the one for the descriptor; exactly one kind claims each that can be carried.
    fn claims(fd: &FdView) -> bool;
    /// Adds what speaks against carrying this one, told from outside, before anything is stopped.
    fn verdict(fd: &FdView, view: &View, out: &mut Vec<Blocker>);
    /// Records it; the process stands still.
    fn collect(fd: &FdView, from: &mut Source<'_>) -> Result<Self::Record>;
    /// Adds what speaks against restoring it on this machine as it is now, before anything is built.
    fn precheck(record: &Self::Record, options: &Options, out: &mut Vec<Blocker>);
    /// The descriptions that must be there before this one can be restored.
    fn members(record: &Self::Record) -> Vec<FileId>;
    /// Makes it anew, in freeze itself.
    fn restore(record: &Self::Record, nest: &mut Nest) -> Result<OwnedFd>;
    /// Does what must wait until every descriptor is in its place.
    fn finish(record: &Self::Record, placed: Placed, nest: &mut Nest) -> Result<()>;
}

/// Something that every process has.
pub trait ProcessKind: 'static {
    const TAG: &'static str;
    const VERSION: u16;
    const ABOUT: &'static str;
    /// When its turn comes at restore.
    const STAGE: Stage;
    type Record: Serialize + DeserializeOwned + PartialEq + Debug + 'static;

    /// Adds what speaks against carrying it, told from outside, before anything is stopped.
    fn verdict(process: &ProcessView, view: &View, out: &mut Vec<Blocker>);
    /// Records it.
    fn collect(from: &mut Source<'_>) -> Result<Self::Record>;
    /// Adds what speaks against restoring it on this machine as it is now, before anything is built.
    fn precheck(record: &Self::Record, pid: Pid, options: &Options, out: &mut Vec<Blocker>);
    /// Gives it to the process `pid` of the nest.
    fn restore(record: &Self::Record, pid: Pid, nest: &mut Nest) -> Result<()>;
}

/// The order in which a process is put together; each stage is over for all processes before the next begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Kinship: the blank processes themselves.
    Birth,
    /// Mappings and contents, while the descriptor table is still empty: files to be mapped pass through it.
    Memory,
    /// Working directory, root and umask: before credentials, which may no longer reach them.
    Place,
    /// Descriptors, in their final numbers.
    Files,
    /// Threads, once the memory their stacks lie in is there.
    Threads,
    /// Signal dispositions: after the last child process that freeze itself dismissed.
    Signals,
    /// Limits: after everything that may need more than they grant.
    Limits,
    /// Credentials: after everything that needs root.
    Credentials,
    /// Timers and pending signals: last, since they begin to act.
    Last,
}

/// Where a description is held: by the process that was recorded first, and at which number.
#[derive(Clone, Copy, Debug)]
pub struct Placed {
    pub id: FileId,
    pub pid: Pid,
    pub fd: RawFd,
}

/// What a kind may use while it collects.
#[derive(Debug)]
pub struct Source<'a> {
    /// The process in which the object is held.
    pub process: &'a mut StoppedProcess,
    /// The whole set, as it stands still.
    pub view: &'a View,
    /// The image being written.
    pub draft: &'a mut Draft,
    /// What has been collected of objects that several descriptions share.
    pub shared: &'a mut Shared,
    /// Copies what is left to copy, of what was not taken over or copied before the stop.
    pub pages: &'a mut dyn PageSource,
}

/// Brings the private memory of a process into the image.
pub trait PageSource: Debug {
    /// Makes the image hold exactly what is populated in `private` now; the process stands still.
    fn store_private(&mut self, pid: Pid, private: &[Range], draft: &mut Draft) -> Result<()>;
    /// Takes nothing for known that was told of what the process has written.
    fn distrust(&mut self, pid: Pid);
}

/// What is shared between descriptions and processes of one checkpoint.
#[derive(Debug, Default)]
pub struct Shared {
    /// Which description each descriptor is.
    pub files: BTreeMap<(Pid, RawFd), FileId>,
    /// Files that somebody in the set can write to, by device and inode.
    pub written: BTreeSet<(u64, u64)>,
    /// Objects whose contents are in the image already, by device and inode.
    pub stored: BTreeSet<(u64, u64)>,
    /// Timers whose expiry waits to be delivered and which then go on: restored, they expire at once by themselves.
    pub expired: BTreeSet<(Pid, i32)>,
    /// TCP connections by the inode of the end: both are read at once, so that they fit each other.
    pub streams: BTreeMap<u64, sys::tcp::Stream>,
    /// Which halves are shut of datagram sockets, by inode, of each network namespace and protocol that was asked about.
    pub shut: BTreeMap<(u64, i32), HashMap<u64, u8>>,
    /// What waits in the queues of unix sockets, by inode: read once, since a look leaves a mark on what is empty.
    pub queues: BTreeMap<u64, Vec<sys::socket::Message>>,
    /// Options of sockets that are known from the last stop.
    pub options: socket::known::Known,
    /// Threads, one for each list of what is to be taken back from semaphores that has something on it.
    pub undo_lists: Vec<Pid>,
    /// System V segments that are read when the turn comes to who attached or detached one last.
    pub unread: BTreeMap<Pid, Vec<sysv::Unread>>,
    /// Whether the files of a file system are made up by the kernel, by its device number.
    pub kernels: HashMap<u64, bool>,
    /// Whether nobody but the set lives in an IPC namespace, by its number.
    pub ipc_alone: BTreeMap<Option<u64>, Rc<OnceCell<bool>>>,
}

impl Shared {
    /// Whether the object with this device and inode is seen for the first time.
    pub fn first_sight(&mut self, dev: u64, ino: u64) -> bool {
        self.stored.insert((dev, ino))
    }
}

/// The space that holds the contents of a memory object or unlinked file.
pub fn object_space(dev: u64, ino: u64) -> SpaceId {
    // Device numbers fit 32 bits, but the sum must fit 63: fold, and let the inode (unique per device) dominate.
    SpaceId::shared((ino ^ dev.rotate_left(40)) & ((1 << 62) - 1))
}

/// A record of a description in the image.
#[derive(Serialize, Deserialize)]
struct FileFrame<R> {
    id: FileId,
    common: Common,
    record: R,
    /// What /proc/PID/fd showed, by which the user may name it.
    #[serde(default)]
    link: pipe::Bytes,
}

/// What every open file description has, whatever its kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Common {
    /// Access mode and status flags, as F_GETFL shows them.
    pub flags: i32,
    /// Who gets SIGIO: kind (0 thread, 1 process, 2 group) and id; id 0 for nobody.
    pub owner: (i32, i32),
    /// Which signal it gets instead of SIGIO; 0 for SIGIO.
    pub signal: i32,
    /// The number of the network namespace a socket belongs to; 0 for that of freeze.
    #[serde(default)]
    pub net: u32,
    /// What is locked through it.
    #[serde(default)]
    pub locks: Locks,
    /// How long what is written to the file is expected to live (F_SET_RW_HINT); 0 where nothing was said.
    #[serde(default)]
    pub write_hint: u64,
}

/// What is not asked for when a file is opened anew. With O_ASYNC it would look as if it told its owner, and could not be brought
/// to do so any more.
const NOT_AT_OPEN: i32 = libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC | libc::O_ASYNC;

/// The status flags that F_SETFL can change.
const SETTABLE: i32 = libc::O_APPEND | libc::O_ASYNC | libc::O_DIRECT | libc::O_NOATIME | libc::O_NONBLOCK;

impl Common {
    fn collect(fd: &FdView, from: &Source<'_>) -> Result<Common> {
        let flags = fd.flags();
        if flags & libc::O_PATH != 0 {
            return Ok(Common {
                flags,
                owner: (0, 0),
                signal: 0,
                net: 0,
                locks: Locks::default(),
                write_hint: 0,
            });
        }
        let here = from.process.fd(fd.fd)?;
        let name = || format!("fd {} of {}", fd.fd, fd.pid);
        let owner = sys::owner_ex(here.as_fd()).on("fcntl(F_GETOWN_EX)", name)?;
        const F_GETSIG: i32 = 11;
        let signal = sys::fcntl(here.as_fd(), F_GETSIG, 0).on("fcntl(F_GETSIG)", name)? as i32;
        let locks = Locks::of(fd);
        // Some file systems know no hints.
        let write_hint = match fd.stat.kind() {
            libc::S_IFREG => sys::files::write_hint(here.as_fd()).unwrap_or(0),
            _ => 0,
        };
        Ok(Common {
            flags,
            owner,
            signal,
            net: 0,
            locks,
            write_hint,
        })
    }

    fn restore(&self, fd: BorrowedFd<'_>) -> Result<()> {
        if self.flags & libc::O_PATH != 0 {
            return Ok(());
        }
        self.locks.restore(fd)?;
        let name = || "a restored file".to_owned();
        if self.write_hint != 0 {
            sys::files::set_write_hint(fd, self.write_hint).on("fcntl(F_SET_RW_HINT)", name)?;
        }
        const F_SETSIG: i32 = 10;
        // A thread is not there yet: see `Owned`.
        if self.owner.0 != THREAD && self.owner.1 != 0 {
            // Its owner may have ended long ago, as it may for the program that asked for it.
            match sys::set_owner_ex(fd, self.owner.0, self.owner.1) {
                Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
                Err(e) => return Err(e).on("fcntl(F_SETOWN_EX)", name),
            }
        }
        if self.signal != 0 {
            sys::fcntl(fd, F_SETSIG, self.signal as u64).on("fcntl(F_SETSIG)", name)?;
        }
        let now = sys::fcntl(fd, libc::F_GETFL, 0).on("fcntl(F_GETFL)", name)? as i32;
        // O_ASYNC waits for its owner: see `LoadedAs::finish`.
        let settable = SETTABLE & !libc::O_ASYNC;
        if (now ^ self.flags) & settable != 0 {
            sys::fcntl(fd, libc::F_SETFL, (self.flags & settable) as u64).on("fcntl(F_SETFL)", name)?;
        }
        Ok(())
    }
}

/// F_OWNER_TID
const THREAD: i32 = 0;

/// What threads are told of, which are not there yet when files are.
#[derive(Default)]
struct Owned(Vec<(OwnedFd, i32)>);

/// Gives to threads, now that they are there, what they are told of.
pub fn give_to_threads(nest: &mut Nest) -> Result<()> {
    for (file, tid) in std::mem::take(nest.state::<Owned>()).0 {
        let live = match nest.owner_of_thread(Pid(tid)) {
            Some(owner) => nest.process(owner)?.live_tid(Pid(tid)),
            None => Pid(tid),
        };
        match sys::set_owner_ex(file.as_fd(), THREAD, live.0) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(e) => return Err(e).on("fcntl(F_SETOWN_EX)", || format!("thread {tid}")),
        }
    }
    Ok(())
}

/// Takes a lease in the name of its holder, and has it broken again if somebody waited for that.
///
/// The kernel makes the caller its owner, whom the signal of the break would reach that was sent long ago.
fn take_lease(lease: &Lease, placed: Placed, nest: &mut Nest) -> Result<()> {
    let args = [placed.fd as u64, libc::F_SETLEASE as u64, lease.kind as u64];
    nest.process(placed.pid)?
        .call("fcntl(F_SETLEASE)", libc::SYS_fcntl, &args)?;
    let Some(wanted) = lease.breaking else {
        return Ok(());
    };
    let file = nest.file(placed.id)?;
    let name = || format!("the lease of fd {} of {}", placed.fd, placed.pid);
    sys::set_owner_ex(file, 1, 0).on("fcntl(F_SETOWN_EX)", name)?;
    let how = match wanted {
        libc::F_RDLCK => OFlag::O_RDONLY,
        _ => OFlag::O_WRONLY,
    };
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    match nix::fcntl::open(
        path.as_str(),
        how | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC,
        Mode::empty(),
    ) {
        Err(Errno::EWOULDBLOCK) | Ok(_) => Ok(()),
        Err(e) => Err(e).on("open", name),
    }
}

/// A record of a process in the image.
#[derive(Serialize, Deserialize)]
struct ProcessFrame<R> {
    pid: Pid,
    record: R,
}

/// A description as read back from the image, its kind hidden.
pub trait Loaded {
    /// What /proc/PID/fd showed of it.
    fn link(&self) -> &[u8];
    /// Its access mode and status flags.
    fn flags(&self) -> i32;
    fn precheck(&self, options: &Options, out: &mut Vec<Blocker>);
    fn members(&self) -> Vec<FileId>;
    fn restore(&self, nest: &mut Nest) -> Result<OwnedFd>;
    fn finish(&self, placed: Placed, nest: &mut Nest) -> Result<()>;
}

struct LoadedAs<K: FdKind>(Common, K::Record, pipe::Bytes);

impl<K: FdKind> LoadedAs<K> {
    /// The namespaces in which it is made.
    fn surroundings(&self) -> [(Kind, u32); 1] {
        [(Kind::Net, self.0.net)]
    }
}

impl<K: FdKind> Loaded for LoadedAs<K> {
    fn link(&self) -> &[u8] {
        &self.2.0
    }
    fn flags(&self) -> i32 {
        self.0.flags
    }
    fn precheck(&self, options: &Options, out: &mut Vec<Blocker>) {
        // What is in the way of a socket can only be so in its own network, which is yet to be made.
        if self.0.net == 0 {
            K::precheck(&self.1, options, out);
        }
    }
    fn members(&self) -> Vec<FileId> {
        K::members(&self.1)
    }
    fn restore(&self, nest: &mut Nest) -> Result<OwnedFd> {
        nest.within(&self.surroundings(), |nest| K::restore(&self.1, nest))
    }
    fn finish(&self, placed: Placed, nest: &mut Nest) -> Result<()> {
        nest.within(&self.surroundings(), |nest| K::finish(&self.1, placed, nest))?;
        if let Some(lease) = &self.0.locks.lease {
            take_lease(lease, placed, nest)?;
        }
        self.0.locks.restore_flock(placed, nest)?;
        self.0.restore(nest.file(placed.id)?)?;
        if let (THREAD, tid @ 1..) = self.0.owner {
            let file = nest.file(placed.id)?.try_clone_to_owned();
            let file = file.on("fcntl(F_DUPFD)", || format!("fd {} of {}", placed.fd, placed.pid))?;
            nest.state::<Owned>().0.push((file, tid));
        }
        // A terminal without an owner was only opened with the flag; set, it would give it one.
        let told = |file| self.0.owner.1 != 0 || nix::unistd::isatty(file) != Ok(true);
        let asked = self.0.flags & libc::O_ASYNC != 0 && self.0.flags & libc::O_PATH == 0;
        if asked && told(nest.file(placed.id)?) {
            // By the process itself: the kernel notes the caller's descriptor number, and SIGIO tells it (si_fd).
            let args = [
                placed.fd as u64,
                libc::F_SETFL as u64,
                (self.0.flags & SETTABLE) as u64,
            ];
            nest.process(placed.pid)?
                .call("fcntl(F_SETFL)", libc::SYS_fcntl, &args)?;
        }
        Ok(())
    }
}

/// A kind of description, as the registry lists it.
#[derive(Debug)]
pub struct FdEntry {
    pub tag: &'static str,
    pub version: u16,
    pub about: &'static str,
    pub claims: fn(&FdView) -> bool,
    pub verdict: fn(&FdView, &View, &mut Vec<Blocker>),
    collect: fn(FileId, &FdView, &mut Source<'_>) -> Result<()>,
    load: Load,
}

/// A record as decoded, or what is wrong with it.
pub type Decoded<T> = std::result::Result<T, String>;

/// Reads a description back.
type Load = fn(&[u8]) -> Decoded<(FileId, Box<dyn Loaded>)>;

/// Adds what speaks against restoring a record here and now.
type Precheck = fn(&[u8], &Options, &mut Vec<Blocker>) -> Decoded<()>;

const fn fd<K: FdKind>() -> FdEntry {
    FdEntry {
        tag: K::TAG,
        version: K::VERSION,
        about: K::ABOUT,
        claims: K::claims,
        verdict: |fd, view, out| {
            let done = surroundings(fd, view).and_then(|around| {
                if around.unknown {
                    out.push(
                        fd.blocker()
                            .why("it belongs to a network namespace in which nobody of the checkpoint lives")
                            .remedy(
                                "let a process of the checkpoint stay there, or hold that namespace open",
                            ),
                    );
                    return Ok(());
                }
                if around.net != 0 {
                    namespaces::left_verdict(fd, view, out);
                }
                around.within(|| {
                    K::verdict(fd, view, out);
                    Ok(())
                })
            });
            if let Err(e) = done {
                out.push(
                    fd.blocker()
                        .why(format!("its namespaces cannot be entered: {e}"))
                        .remedy("run freeze as root"),
                );
            }
        },
        collect: |id, fd, from| {
            let around = surroundings(fd, from.view)?;
            let mut common = Common::collect(fd, from)?;
            common.net = around.net;
            let record = around.within(|| K::collect(fd, from))?;
            let link = pipe::Bytes(fd.link.clone());
            let frame = FileFrame {
                id,
                common,
                record,
                link,
            };
            put(from.draft, K::TAG, K::VERSION, frame)
        },
        load: |payload| {
            let frame: FileFrame<K::Record> = unpack(payload)?;
            let loaded = LoadedAs::<K>(frame.common, frame.record, frame.link);
            Ok((frame.id, Box::new(loaded)))
        },
    }
}

/// A kind of process attribute, as the registry lists it.
#[derive(Debug)]
pub struct ProcessEntry {
    pub tag: &'static str,
    pub version: u16,
    pub about: &'static str,
    pub stage: Stage,
    pub verdict: fn(&ProcessView, &View, &mut Vec<Blocker>),
    pub collect: fn(&mut Source<'_>) -> Result<()>,
    precheck: Precheck,
    restore: fn(&[u8], &mut Nest) -> Result<Decoded<()>>,
    question: Option<Question>,
}

const fn asking<K: Asks>() -> ProcessEntry {
    ProcessEntry {
        question: Some(Question {
            tag: K::TAG,
            each: K::EACH,
            put: |tape, of| drop(K::ask(tape, of)),
        }),
        ..process::<K>()
    }
}

const fn process<K: ProcessKind>() -> ProcessEntry {
    ProcessEntry {
        tag: K::TAG,
        version: K::VERSION,
        about: K::ABOUT,
        stage: K::STAGE,
        verdict: K::verdict,
        collect: |from| {
            let pid = from.process.pid();
            let record = K::collect(from)?;
            put_process::<K>(pid, record, from.draft)
        },
        precheck: |payload, options, out| {
            let (pid, record) = peek::<K>(payload)?;
            K::precheck(&record, pid, options, out);
            Ok(())
        },
        restore: |payload, nest| {
            let frame: ProcessFrame<K::Record> = match unpack(payload) {
                Ok(frame) => frame,
                Err(e) => return Ok(Err(e)),
            };
            K::restore(&frame.record, frame.pid, nest).map(Ok)
        },
        question: None,
    }
}

/// The namespaces other than freeze's that an object is in, open to be entered while it is asked about.
#[derive(Debug, Default)]
struct Around {
    net: u32,
    open: Vec<OwnedFd>,
    /// Whether it is in one that neither the set nor freeze lives in.
    unknown: bool,
}

impl Around {
    fn within<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let open: Vec<BorrowedFd<'_>> = self.open.iter().map(AsFd::as_fd).collect();
        sys::ns::within(&open, work).on("setns", || "a namespace of the set")?
    }
}

/// The namespaces of a description: a socket's network is that in which it was made.
fn surroundings(fd: &FdView, view: &View) -> Result<Around> {
    let mut around = Around::default();
    if !fd.is_socket() || fd.net == Some(view.own_net) {
        return Ok(around);
    }
    let name = || format!("fd {} of {}", fd.fd, fd.pid);
    let socket = fd.duplicate().on("pidfd_getfd", name)?;
    let net = sys::ns::of_socket(socket.as_fd()).on("ioctl(SIOCGSKNS)", name)?;
    let inode = nix::sys::stat::fstat(net.as_fd()).on("fstat", name)?.st_ino;
    if let Some(number) = view.foreign.get(&("net".to_owned(), inode)) {
        around.net = *number;
        around.open.push(net);
    } else {
        around.unknown = inode != view.own_net;
    }
    Ok(around)
}

/// Every kind of description, in the order in which they are asked whether they claim a descriptor.
pub static FD_KINDS: &[FdEntry] = &[
    fd::<path::Node>(),
    fd::<pipe::Pipe>(),
    fd::<eventfd::EventFd>(),
    fd::<epoll::Epoll>(),
    fd::<bpfmap::BpfMap>(),
    fd::<signalfd::SignalFd>(),
    fd::<timerfd::TimerFd>(),
    fd::<terminal::Terminal>(),
    fd::<memfd::Memfd>(),
    fd::<fifo::Fifo>(),
    fd::<nsfd::NsFd>(),
    fd::<inotify::Inotify>(),
    fd::<fanotify::Fanotify>(),
    fd::<pidfd::PidFd>(),
    fd::<directory::Directory>(),
    fd::<device::Device>(),
    fd::<tun::Tun>(),
    fd::<mqueue::MQueue>(),
    fd::<regular::Regular>(),
    fd::<unix::Unix>(),
    fd::<tcp::Tcp>(),
    fd::<udp::Udp>(),
    fd::<netlink::Netlink>(),
    fd::<packet::Packet>(),
    fd::<io_uring::IoUring>(),
];

/// Every kind of process attribute, in the order in which they are collected.
pub static PROCESS_KINDS: &[ProcessEntry] = &[
    process::<kinship::Kinship>(),
    process::<cgroup::Cgroups>(),
    process::<cgroup::ThreadCgroups>(),
    process::<namespaces::Namespaces>(),
    asking::<signals::Signals>(),
    asking::<timers::Timers>(),
    asking::<traits::Traits>(),
    asking::<ldt::Ldt>(),
    asking::<limits::Limits>(),
    process::<login::Login>(),
    process::<seccomp::Seccomp>(),
    asking::<credentials::Credentials>(),
    process::<filesystem::Filesystem>(),
    process::<fdtable::FdTable>(),
    process::<semaphores::Semaphores>(),
    process::<msgqueues::MsgQueues>(),
    process::<sysv::Unattached>(),
    asking::<threads::Threads>(),
    process::<signals::PendingSignals>(),
    process::<io_uring::users::Users>(),
    asking::<memory::Memory>(),
];

impl FdEntry {
    /// Records one description.
    pub fn collect(&self, id: FileId, fd: &FdView, from: &mut Source<'_>) -> Result<()> {
        (self.collect)(id, fd, from)
    }

    /// Reads one description back.
    pub fn load(&self, payload: &[u8]) -> std::result::Result<(FileId, Box<dyn Loaded>), String> {
        (self.load)(payload)
    }
}

impl ProcessEntry {
    /// Adds what speaks against restoring one process's record here and now.
    pub fn precheck(
        &self,
        payload: &[u8],
        options: &Options,
        out: &mut Vec<Blocker>,
    ) -> std::result::Result<(), String> {
        (self.precheck)(payload, options, out)
    }

    /// Gives one process what its record says; the inner error is one of decoding.
    pub fn restore(&self, payload: &[u8], nest: &mut Nest) -> Result<std::result::Result<(), String>> {
        (self.restore)(payload, nest)
    }
}

/// Decodes the record of a process attribute ahead of its stage.
pub fn peek<K: ProcessKind>(payload: &[u8]) -> std::result::Result<(Pid, K::Record), String> {
    let frame: ProcessFrame<K::Record> = unpack(payload)?;
    Ok((frame.pid, frame.record))
}

fn put_process<K: ProcessKind>(pid: Pid, record: K::Record, draft: &mut Draft) -> Result<()> {
    put(draft, K::TAG, K::VERSION, ProcessFrame { pid, record })
}

/// Puts a record into the image, which encodes it once the process runs again.
fn put<T: Serialize + 'static>(draft: &mut Draft, tag: &'static str, version: u16, record: T) -> Result<()> {
    draft.later(tag, version, Box::new(move || encode(tag, &record)))
}

fn encode<T: Serialize>(tag: &'static str, record: &T) -> Result<Vec<u8>> {
    let payload = rmp_serde::to_vec_named(record)
        .map_err(|e| Error::kernel(format!("encode: {e}"), tag, Errno::EINVAL))?;
    Ok(payload)
}

/// The kind that claims a descriptor.
pub fn kind_of(fd: &FdView) -> Option<&'static FdEntry> {
    // What only stands for an object without a path can be opened again for these alone.
    let reopened = || {
        let known: [&[u8]; 3] = [b"/", b"pipe:", b"socket:["];
        known.iter().any(|k| fd.link.starts_with(k)) || nsfd::NsFd::claims(fd)
    };
    if fd.flags() & libc::O_PATH != 0 && !reopened() {
        return None;
    }
    FD_KINDS.iter().find(|k| (k.claims)(fd))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_unique() {
        let mut tags: Vec<&str> = FD_KINDS
            .iter()
            .map(|k| k.tag)
            .chain(PROCESS_KINDS.iter().map(|k| k.tag))
            .collect();
        let n = tags.len();
        tags.sort_unstable();
        tags.dedup();
        assert_eq!(tags.len(), n);
    }

    /// What a later freeze has added to a record would be lost without a word.
    #[test]
    fn a_field_that_nobody_knows_is_an_error() {
        #[derive(Serialize)]
        struct Newer {
            uid: Option<u32>,
            wings: u8,
        }
        let record = Newer { uid: None, wings: 2 };
        let payload = encode("login", &ProcessFrame { pid: Pid(7), record }).unwrap();
        let e = peek::<login::Login>(&payload).unwrap_err();
        assert_eq!(e, "unknown field record.wings");
    }
}
