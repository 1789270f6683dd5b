//! What the kernel remembers of an object and tells nobody, read by an eBPF program where that is allowed.
//!
//! Only of what stands still: an address is followed step by step, and nothing keeps it from going stale meanwhile.

pub mod arrived;
pub mod landlock;
pub mod queue;
pub mod undo;
pub mod uring;

use crate::ids::Pid;
use crate::observe::btf::Btf;
use crate::sys;
use crate::sys::bpf::KernelReader;
use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::OnceLock;
use std::time::Duration;

/// A way to look.
#[derive(Debug)]
pub struct Peek {
    reader: KernelReader,
    offsets: HashMap<(&'static str, &'static str), u64>,
}

/// The members that are looked at.
const MEMBERS: [(&str, &str); 51] = [
    ("task_struct", "files"),
    ("task_struct", "pid"),
    ("task_struct", "pid_links"),
    ("task_struct", "signal"),
    ("task_struct", "thread_node"),
    ("task_struct", "restart_block"),
    ("task_struct", "cred"),
    ("cred", "security"),
    ("signal_struct", "thread_head"),
    ("files_struct", "fdt"),
    ("fdtable", "fd"),
    ("file", "f_inode"),
    ("file", "private_data"),
    ("inode", "i_private"),
    ("pid", "tasks"),
    ("pid", "numbers"),
    ("restart_block", "futex"),
    ("restart_block", "nanosleep"),
    ("restart_block", "poll"),
    ("inode", "i_fsnotify_marks"),
    ("fsnotify_mark_connector", "list"),
    ("fsnotify_mark", "obj_list"),
    ("dnotify_mark", "dn"),
    ("dnotify_struct", "dn_next"),
    ("dnotify_struct", "dn_mask"),
    ("dnotify_struct", "dn_fd"),
    ("dnotify_struct", "dn_filp"),
    ("devkmsg_user", "seq"),
    ("mqueue_inode_info", "vfs_inode"),
    ("mqueue_inode_info", "msg_tree"),
    ("mqueue_inode_info", "notify"),
    ("mqueue_inode_info", "notify_owner"),
    ("posix_msg_tree_node", "rb_node"),
    ("posix_msg_tree_node", "msg_list"),
    ("msg_msg", "m_list"),
    ("msg_msg", "m_type"),
    ("msg_msg", "m_ts"),
    ("msg_msg", "next"),
    ("fsnotify_group", "notification_list"),
    ("fsnotify_event", "list"),
    ("inotify_event_info", "fse"),
    ("inotify_event_info", "mask"),
    ("inotify_event_info", "wd"),
    ("inotify_event_info", "sync_cookie"),
    ("inotify_event_info", "name_len"),
    ("inotify_event_info", "name"),
    ("task_struct", "sysvsem"),
    ("sem_undo_list", "list_proc"),
    ("sem_undo", "list_proc"),
    ("sem_undo", "semid"),
    ("sem_undo", "semadj"),
];

/// An event of inotify: watch, mask, cookie and name.
pub type Told = (i32, u32, u32, Vec<u8>);

/// The most marks, or wishes for notification, that one directory may have before the search is given up.
const MARKS: usize = 1000;

/// A wish to be notified of what happens in a directory (F_NOTIFY).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Notify {
    /// In the kernel's bits, those of fsnotify_backend.h.
    pub mask: u32,
    /// The descriptor it was uttered through, which the signal tells.
    pub fd: i32,
}

static ONE: OnceLock<Option<Peek>> = OnceLock::new();

/// How many threads of one process are gone through in search of one.
const MANY: usize = 100_000;

impl Peek {
    /// The one way of this process; `None` where the kernel does not let us.
    pub fn get() -> Option<&'static Peek> {
        ONE.get_or_init(|| Peek::at_members(&MEMBERS)).as_ref()
    }

    /// Gets ready to look, which takes longer than a pause may, if `when` says that there will be something to look for.
    pub fn prepare(when: impl FnOnce() -> bool) {
        if ONE.get().is_none() && when() {
            Peek::get();
        }
    }

    /// The same if somebody has asked for it before: to make it takes longer than a pause may.
    pub fn ready() -> Option<&'static Peek> {
        ONE.get()?.as_ref()
    }

    /// A way that knows where these members (or the variables of a section) lie.
    fn at_members(members: &[(&'static str, &'static str)]) -> Option<Peek> {
        let reader = KernelReader::new().ok()?;
        let btf = Btf::running().ok()?;
        let offsets = btf.offsets(members).into_iter();
        let offsets = offsets.map(|(member, at)| (member, u64::from(at))).collect();
        drop(btf);
        sys::bpf::trim();
        Some(Peek { reader, offsets })
    }

    /// Where a member lies; nowhere that could be read, if this kernel has none of that name.
    fn at(&self, base: u64, structure: &'static str, member: &'static str) -> u64 {
        const NOWHERE: u64 = 1;
        let offset = self.offsets.get(&(structure, member));
        offset.map_or(NOWHERE, |offset| base.wrapping_add(*offset))
    }

    /// Whether this kernel has a member of that name.
    fn has(&self, structure: &'static str, member: &'static str) -> bool {
        self.offsets.contains_key(&(structure, member))
    }

    fn word(&self, at: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        self.reader.read(at, &mut bytes).ok()?;
        Some(u64::from_ne_bytes(bytes))
    }

    fn number(&self, at: u64) -> Option<u32> {
        let mut bytes = [0; 4];
        self.reader.read(at, &mut bytes).ok()?;
        Some(u32::from_ne_bytes(bytes))
    }

    /// The `struct file` behind a descriptor of freeze's own.
    fn file(&self, fd: BorrowedFd<'_>) -> Option<u64> {
        let files = self.word(self.at(self.reader.current().ok()?, "task_struct", "files"))?;
        let table = self.word(self.at(files, "files_struct", "fdt"))?;
        let list = self.word(self.at(table, "fdtable", "fd"))?;
        self.word(list + 8 * fd.as_raw_fd() as u64).filter(|f| *f != 0)
    }

    /// The `task_struct` of a thread of `process`.
    fn task(&self, process: Pid, tid: Pid) -> Option<u64> {
        let mut found = None;
        self.threads(process, |this, task| {
            found = (this == tid).then_some(task);
            found.is_none()
        })?;
        found
    }

    /// Goes through the threads of a process, id and `task_struct`, as long as `each` wants more.
    fn threads(&self, process: Pid, mut each: impl FnMut(Pid, u64) -> bool) -> Option<()> {
        let pidfd = sys::pidfd_open(process).ok()?;
        let file = self.file(pidfd.as_fd())?;
        let inode = self.word(self.at(file, "file", "f_inode"))?;
        // Since pidfs (Linux 6.9) it is the inode that knows whose it is.
        let candidates = [
            self.word(self.at(inode, "inode", "i_private")),
            self.word(self.at(file, "file", "private_data")),
        ];
        let known = |pid: &u64| self.number(self.at(*pid, "pid", "numbers")) == Some(process.0 as u32);
        let pid = candidates.into_iter().flatten().find(|p| *p != 0 && known(p))?;
        let first = self.word(self.at(pid, "pid", "tasks"))?;
        let leader = first.checked_sub(self.at(0, "task_struct", "pid_links"))?;
        let signal = self.word(self.at(leader, "task_struct", "signal"))?;
        let head = self.at(signal, "signal_struct", "thread_head");
        let mut node = self.word(head)?;
        for _ in 0..MANY {
            if node == head {
                return Some(());
            }
            let task = node.checked_sub(self.at(0, "task_struct", "thread_node"))?;
            let tid = Pid(self.number(self.at(task, "task_struct", "pid"))? as i32);
            if !each(tid, task) {
                return Some(());
            }
            node = self.word(node)?;
        }
        None
    }

    /// What was asked for through the open directory behind `fd`, if anything was; `None` if that cannot be seen.
    pub fn notify(&self, fd: BorrowedFd<'_>) -> Option<Option<Notify>> {
        let file = self.file(fd)?;
        let inode = self.word(self.at(file, "file", "f_inode"))?;
        let connector = self.word(self.at(inode, "inode", "i_fsnotify_marks"))?;
        if connector == 0 {
            return Some(None);
        }
        let mut node = self.word(self.at(connector, "fsnotify_mark_connector", "list"))?;
        for _ in 0..MARKS {
            if node == 0 {
                return Some(None);
            }
            let mark = node.checked_sub(self.at(0, "fsnotify_mark", "obj_list"))?;
            // What is no mark of dnotify has something else in this place, which leads to no wish of this file.
            let mut wish = self.word(self.at(mark, "dnotify_mark", "dn"))?;
            for _ in 0..MARKS {
                let Some(of) = self.word(self.at(wish, "dnotify_struct", "dn_filp")) else {
                    break;
                };
                if of == file {
                    return Some(Some(Notify {
                        mask: self.number(self.at(wish, "dnotify_struct", "dn_mask"))?,
                        fd: self.number(self.at(wish, "dnotify_struct", "dn_fd"))? as i32,
                    }));
                }
                wish = self.word(self.at(wish, "dnotify_struct", "dn_next"))?;
            }
            node = self.word(node)?;
        }
        None
    }

    /// The events that wait in the inotify instance behind `fd`, the oldest first.
    pub fn events(&self, fd: BorrowedFd<'_>) -> Option<Vec<Told>> {
        const LONGEST: u32 = 4096;
        let group = self.word(self.at(self.file(fd)?, "file", "private_data"))?;
        let head = self.at(group, "fsnotify_group", "notification_list");
        let mut out = Vec::new();
        let mut at = self.word(head)?;
        while at != head {
            (out.len() < MANY).then_some(())?;
            let event = at.checked_sub(self.at(0, "fsnotify_event", "list"))?;
            let event = event.checked_sub(self.at(0, "inotify_event_info", "fse"))?;
            let number = |member| self.number(self.at(event, "inotify_event_info", member));
            let length = number("name_len").filter(|n| *n <= LONGEST)?;
            let mut name = vec![0; length as usize];
            self.reader
                .read(self.at(event, "inotify_event_info", "name"), &mut name)
                .ok()?;
            out.push((
                number("wd")? as i32,
                number("mask")?,
                number("sync_cookie")?,
                name,
            ));
            at = self.word(at)?;
        }
        Some(out)
    }

    /// Which record of the kernel's log a reader of /dev/kmsg gets next.
    pub fn log_position(&self, fd: BorrowedFd<'_>) -> Option<u64> {
        let user = self.word(self.at(self.file(fd)?, "file", "private_data"))?;
        self.word(self.at(user, "devkmsg_user", "seq"))
    }

    /// When the call that a halted thread is in will end by itself (its restart block), as time left from now.
    ///
    /// `call` is one of those that the kernel restarts by itself: poll, nanosleep, clock_nanosleep, futex.
    pub fn left(&self, process: Pid, tid: Pid, call: i64) -> Option<Duration> {
        let block = self.at(self.task(process, tid)?, "task_struct", "restart_block");
        let (clock, end) = match call {
            libc::SYS_poll => {
                // Address, number, whether there is an end at all; then the end: seconds, nanoseconds.
                let poll = self.at(block, "restart_block", "poll");
                (self.number(poll + 12)? != 0).then_some(())?;
                let end = Duration::new(self.word(poll + 16)?, u32::try_from(self.word(poll + 24)?).ok()?);
                (libc::CLOCK_MONOTONIC, end)
            }
            libc::SYS_nanosleep | libc::SYS_clock_nanosleep => {
                // Clock, kind of what remains, where to tell that; then the end.
                let sleep = self.at(block, "restart_block", "nanosleep");
                let clock = self.number(sleep)? as i32;
                (clock, Duration::from_nanos(self.word(sleep + 16)?))
            }
            libc::SYS_futex => {
                // Address, value, flags, bits; then the end.
                let futex = self.at(block, "restart_block", "futex");
                (
                    libc::CLOCK_MONOTONIC,
                    Duration::from_nanos(self.word(futex + 24)?),
                )
            }
            _ => return None,
        };
        let known = [libc::CLOCK_MONOTONIC, libc::CLOCK_BOOTTIME, libc::CLOCK_REALTIME];
        known.contains(&clock).then_some(())?;
        let now = nix::time::clock_gettime(nix::time::ClockId::from_raw(clock)).ok()?;
        Some(end.saturating_sub(Duration::from(now)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_threads_are_found() {
        let Some(peek) = Peek::get() else { return };
        let (send, receive) = std::sync::mpsc::channel();
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || {
            send.send(nix::unistd::gettid()).unwrap();
            let _ = wait.recv();
        });
        let process = Pid(std::process::id() as i32);
        let tid = Pid(receive.recv().unwrap().as_raw());
        let own = Pid(nix::unistd::gettid().as_raw());
        assert_eq!(peek.task(process, own), peek.reader.current().ok());
        let task = peek.task(process, tid).unwrap();
        assert_eq!(
            peek.number(peek.at(task, "task_struct", "pid")),
            Some(tid.0 as u32)
        );
        assert_eq!(peek.task(process, Pid(0x3fff_ffff)), None);
        drop(go);
        other.join().unwrap();
    }
}
