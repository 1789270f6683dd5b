//! Namespaces by descriptor: entering them, who owns them, in which one a socket or a mount lies.

use super::{Sys, owned, plain, raw};
use crate::error::errno;
use crate::ids::Pid;
use nix::errno::Errno;
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// setns(2): moves the calling thread; `kind` is a CLONE_NEW* flag, or 0 for whatever the descriptor is.
pub fn setns(fd: BorrowedFd<'_>, kind: i32) -> Sys<()> {
    plain(libc::SYS_setns, [fd.as_raw_fd() as u64, kind as u64, 0, 0, 0, 0]).map(drop)
}

/// unshare(2) of the calling thread.
pub fn unshare(flags: i32) -> Sys<()> {
    plain(libc::SYS_unshare, [flags as u64, 0, 0, 0, 0, 0]).map(drop)
}

/// The user namespace that owns a namespace (NS_GET_USERNS, ioctl_ns(2)); EPERM if it lies outside our own.
pub fn owner(ns: BorrowedFd<'_>) -> Sys<OwnedFd> {
    plain(libc::SYS_ioctl, [ns.as_raw_fd() as u64, 0xb701, 0, 0, 0, 0]).map(owned)
}

/// Which kind of namespace it is, as CLONE_NEW* (NS_GET_NSTYPE).
pub fn kind(ns: BorrowedFd<'_>) -> Sys<i32> {
    plain(libc::SYS_ioctl, [ns.as_raw_fd() as u64, 0xb703, 0, 0, 0, 0]).map(|kind| kind as i32)
}

/// The parent of a pid or user namespace (NS_GET_PARENT); EPERM if it lies outside our own.
pub fn parent(ns: BorrowedFd<'_>) -> Sys<OwnedFd> {
    plain(libc::SYS_ioctl, [ns.as_raw_fd() as u64, 0xb702, 0, 0, 0, 0]).map(owned)
}

/// The uid of a user namespace's owner, as our user namespace sees it (NS_GET_OWNER_UID).
pub fn owner_uid(ns: BorrowedFd<'_>) -> Sys<u32> {
    let mut uid = 0u32;
    // SAFETY: the request writes one uid_t.
    unsafe {
        raw(
            libc::SYS_ioctl,
            [ns.as_raw_fd() as u64, 0xb704, &raw mut uid as u64, 0, 0, 0],
        )?
    };
    Ok(uid)
}

/// The network namespace of a socket (SIOCGSKNS).
pub fn of_socket(socket: BorrowedFd<'_>) -> Sys<OwnedFd> {
    plain(libc::SYS_ioctl, [socket.as_raw_fd() as u64, 0x894c, 0, 0, 0, 0]).map(owned)
}

/// The number of the mount that `path` leads to.
pub fn mount_id(path: &Path) -> Sys<i64> {
    const STATX_MNT_ID: u64 = 0x1000;
    let out = statx(path, STATX_MNT_ID)?;
    if out[0] & STATX_MNT_ID == 0 {
        return Err(Errno::ENOSYS);
    }
    Ok(out[18] as i64)
}

/// Of the flags of chattr(1): immutable, only to be appended to, not to be dumped; by the same bits as FS_IOC_GETFLAGS.
pub fn file_flags(path: &Path) -> Sys<u32> {
    const KEPT: u64 = 0x10 | 0x20 | 0x40;
    // What is in force stands after mask and size of a block.
    statx(path, 0).map(|out| (out[1] & KEPT) as u32)
}

/// statx(2), links followed, without having anything mounted for it (autofs): what was asked for by `mask`, in words of eight bytes.
pub(super) fn statx(path: &Path, mask: u64) -> Sys<[u64; 32]> {
    let text = CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)?;
    let mut out = [0u64; 32];
    // SAFETY: a terminated string, and a buffer of the 256 bytes of struct statx.
    unsafe {
        raw(
            libc::SYS_statx,
            [
                libc::AT_FDCWD as u64,
                text.as_ptr() as u64,
                libc::AT_NO_AUTOMOUNT as u64,
                mask,
                out.as_mut_ptr() as u64,
                0,
            ],
        )?
    };
    Ok(out)
}

/// The root of a mount namespace, and its mounts as mountinfo shows them from there; the caller stays where it is.
pub fn look_into(mnt: BorrowedFd<'_>) -> Sys<(OwnedFd, Vec<u8>)> {
    let look = || -> Sys<(OwnedFd, Vec<u8>)> {
        // What /proc is inside is not known; this one is held before.
        let proc = std::fs::File::open("/proc").map_err(errno)?;
        unshare(libc::CLONE_FS)?;
        setns(mnt, libc::CLONE_NEWNS)?;
        let flags = nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_DIRECTORY | nix::fcntl::OFlag::O_CLOEXEC;
        let root = nix::fcntl::open("/", flags, nix::sys::stat::Mode::empty())?;
        let read = nix::fcntl::OFlag::O_RDONLY | nix::fcntl::OFlag::O_CLOEXEC;
        let table = nix::fcntl::openat(
            proc.as_fd(),
            "thread-self/mountinfo",
            read,
            nix::sys::stat::Mode::empty(),
        )?;
        let mut text = Vec::new();
        std::io::Read::read_to_end(&mut std::fs::File::from(table), &mut text).map_err(errno)?;
        Ok((root, text))
    };
    // A thread of its own: a thread that has moved to another tree of files does not come back by itself.
    std::thread::scope(|s| s.spawn(look).join()).unwrap_or(Err(Errno::EIO))
}

/// One thing a [`Maker`] does.
#[derive(Clone, Debug)]
pub enum Step {
    /// setns(2) into what this descriptor is.
    Enter(RawFd),
    /// unshare(2) with these flags.
    Unshare(i32),
    /// Take this uid in all its forms, keeping every capability.
    Uid(u32),
    /// Take this gid in all its forms.
    Gid(u32),
    /// Make every mount of its tree private, so that none spreads to another.
    Private,
    /// Take off what is mounted last at a path, which ends in a zero, with all that is mounted on it.
    Unmount(Vec<u8>),
    /// Write to a file that is opened now, whose path ends in a zero.
    Write(Vec<u8>, Vec<u8>),
    /// Read from a file that is opened now, whose path ends in a zero, and write what is there to this descriptor; nothing
    /// if there is no such file.
    Tell(Vec<u8>, RawFd),
    /// setsockopt(2) on this socket: level, name, value.
    Option(RawFd, i32, i32, Vec<u8>),
    /// sethostname(2), setdomainname(2).
    Hostname(Vec<u8>),
    Domainname(Vec<u8>),
}

/// A child process that has made or entered namespaces and now only waits, so that they can be had from its /proc
/// entry; it ends when this is dropped.
#[derive(Debug)]
pub struct Maker {
    pid: libc::pid_t,
}

impl Maker {
    /// Does the steps in a new child; on failure, the number of the step.
    pub fn new(steps: &[Step]) -> Result<Maker, (usize, Errno)> {
        let pipe = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(|e| (0, e))?;
        // SAFETY: in the child only system calls follow, none of which needs a lock another thread may hold.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            // SAFETY: raw system calls on what was prepared before the fork.
            unsafe {
                libc::syscall(libc::SYS_prctl, libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
                let mut told = [0i32; 2];
                for (n, step) in steps.iter().enumerate() {
                    if !perform(step) {
                        told = [n as i32 + 1, *libc::__errno_location()];
                        break;
                    }
                }
                libc::write(pipe.1.as_raw_fd(), told.as_ptr().cast(), 8);
                // It holds nothing of what its parent has open: mounts that somebody wants to unmount, among others.
                libc::syscall(libc::SYS_close_range, 0, u32::MAX, 0);
                if told[0] == 0 {
                    loop {
                        libc::syscall(libc::SYS_pause);
                    }
                }
                libc::_exit(1);
            }
        }
        if pid < 0 {
            return Err((0, Errno::last()));
        }
        drop(pipe.1);
        let maker = Maker { pid };
        let mut told = [0u8; 8];
        let got = std::io::Read::read_exact(&mut std::fs::File::from(pipe.0), &mut told);
        let word = |at: usize| i32::from_ne_bytes([told[at], told[at + 1], told[at + 2], told[at + 3]]);
        match (got, word(0)) {
            (Ok(()), 0) => Ok(maker),
            (Ok(()), n) => Err((n as usize - 1, Errno::from_raw(word(4)))),
            (Err(_), _) => Err((0, Errno::ECHILD)),
        }
    }

    /// Its pid.
    pub fn pid(&self) -> Pid {
        Pid(self.pid)
    }

    /// The namespace it has under this name in /proc/PID/ns.
    pub fn namespace(&self, name: &str) -> std::io::Result<OwnedFd> {
        std::fs::File::open(format!("/proc/{}/ns/{name}", self.pid)).map(OwnedFd::from)
    }
}

impl Drop for Maker {
    fn drop(&mut self) {
        // SAFETY: our own child, not yet waited for.
        unsafe {
            libc::kill(self.pid, libc::SIGKILL);
            libc::waitpid(self.pid, std::ptr::null_mut(), 0);
        }
    }
}

/// # Safety
/// Called in a child that has just been forked; makes system calls only.
unsafe fn perform(step: &Step) -> bool {
    // SAFETY: descriptors and buffers are those of the step, which the fork copied.
    unsafe {
        match step {
            Step::Enter(fd) => libc::syscall(libc::SYS_setns, *fd, 0) == 0,
            Step::Unshare(flags) => libc::syscall(libc::SYS_unshare, *flags) == 0,
            Step::Uid(uid) => {
                const NO_SETUID_FIXUP: i32 = 1 << 2;
                libc::syscall(libc::SYS_prctl, libc::PR_SET_SECUREBITS, NO_SETUID_FIXUP, 0, 0, 0) == 0
                    && libc::syscall(libc::SYS_setresuid, *uid, *uid, *uid) == 0
                    // Its /proc entry must stay ours to open: changing ids made it undumpable.
                    && libc::syscall(libc::SYS_prctl, libc::PR_SET_DUMPABLE, 1, 0, 0, 0) == 0
                    && libc::syscall(libc::SYS_prctl, libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) == 0
            }
            Step::Gid(gid) => libc::syscall(libc::SYS_setresgid, *gid, *gid, *gid) == 0,
            Step::Private => {
                libc::syscall(
                    libc::SYS_mount,
                    0,
                    c"/".as_ptr(),
                    0,
                    libc::MS_REC | libc::MS_PRIVATE,
                    0,
                ) == 0
            }
            Step::Unmount(path) => libc::syscall(libc::SYS_umount2, path.as_ptr(), libc::MNT_DETACH) == 0,
            Step::Write(path, bytes) => {
                let fd = libc::syscall(libc::SYS_open, path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC, 0);
                fd >= 0
                    && libc::syscall(libc::SYS_write, fd, bytes.as_ptr(), bytes.len()) == bytes.len() as i64
            }
            Step::Tell(path, to) => {
                let mut text = [0u8; 256];
                let fd = libc::syscall(libc::SYS_open, path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC, 0);
                let got = libc::syscall(libc::SYS_read, fd, text.as_mut_ptr(), text.len()).max(0);
                // With a line feed of its own, whatever was there.
                libc::syscall(libc::SYS_write, *to, text.as_ptr(), got) == got
                    && libc::syscall(libc::SYS_write, *to, c"\n".as_ptr(), 1) == 1
            }
            Step::Option(socket, level, name, value) => {
                let (at, room) = (value.as_ptr(), value.len());
                libc::syscall(libc::SYS_setsockopt, *socket, *level, *name, at, room) == 0
            }
            Step::Hostname(name) => libc::syscall(libc::SYS_sethostname, name.as_ptr(), name.len()) == 0,
            Step::Domainname(name) => libc::syscall(libc::SYS_setdomainname, name.as_ptr(), name.len()) == 0,
        }
    }
}

/// Sets the id that was given out last in another pid namespace, so that the next one is the one after it.
pub fn set_last_pid(pid_namespace: BorrowedFd<'_>, last: i32) -> Sys<()> {
    let path = b"/proc/sys/kernel/ns_last_pid\0".to_vec();
    // Only who lives there can do it.
    let write = Step::Write(path, last.to_string().into_bytes());
    perform_inside(&[write], Some(pid_namespace))
}

/// Has a child do the steps; on failure, the number of the step.
pub fn perform_steps(steps: &[Step]) -> Result<(), (usize, Errno)> {
    Maker::new(steps).map(drop)
}

/// Has a child do the steps that is born in this pid namespace, or in our own.
pub fn perform_inside(steps: &[Step], born: Option<BorrowedFd<'_>>) -> Sys<()> {
    let Some(born) = born else {
        return Maker::new(steps).map(drop).map_err(|(_, e)| e);
    };
    let own = std::fs::File::open("/proc/thread-self/ns/pid").map_err(errno)?;
    // Children of this thread are born there.
    setns(born, libc::CLONE_NEWPID)?;
    let done = Maker::new(steps);
    setns(own.as_fd(), libc::CLONE_NEWPID)?;
    done.map(drop).map_err(|(_, e)| e)
}

/// What is in files, of one line each, for a child that has done these steps and was born in this pid namespace; empty
/// for those that it cannot read.
pub fn read_inside(mut steps: Vec<Step>, born: Option<BorrowedFd<'_>>, files: &[String]) -> Sys<Vec<String>> {
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    let path = |file: &String| [file.as_bytes(), b"\0"].concat();
    steps.extend(files.iter().map(|f| Step::Tell(path(f), write.as_raw_fd())));
    perform_inside(&steps, born)?;
    drop(write);
    let mut text = String::new();
    std::io::Read::read_to_string(&mut std::fs::File::from(read), &mut text).map_err(errno)?;
    let mut lines = text.lines();
    let mut out = Vec::new();
    for _ in files {
        let value = lines.next().unwrap_or_default().to_owned();
        // Where there was something, its own line feed and one more have come.
        if !value.is_empty() {
            lines.next();
        }
        out.push(value);
    }
    Ok(out)
}

/// Does something in other namespaces of the kinds a thread can enter alone (net, ipc, uts), and comes back.
///
/// Comes back also when `work` panics; a thread that cannot come back must not go on, so that ends the process.
pub fn within<T>(namespaces: &[BorrowedFd<'_>], work: impl FnOnce() -> T) -> Sys<T> {
    struct Back(Vec<OwnedFd>);
    impl Drop for Back {
        fn drop(&mut self) {
            for fd in &self.0 {
                if setns(fd.as_fd(), 0).is_err() {
                    std::process::abort();
                }
            }
        }
    }
    if namespaces.is_empty() {
        return Ok(work());
    }
    let own = |name: &str| {
        let file = std::fs::File::open(format!("/proc/thread-self/ns/{name}"));
        file.map(OwnedFd::from).map_err(errno)
    };
    let back = Back(vec![own("net")?, own("ipc")?, own("uts")?]);
    for fd in namespaces {
        setns(*fd, 0)?;
    }
    let done = work();
    drop(back);
    Ok(done)
}

/// Opens a copy of the mount at `path` in the mount namespace `tree`, attached nowhere, with nothing that is mounted on
/// it; `None` for our own namespace.
pub fn mount_copy(tree: Option<BorrowedFd<'_>>, path: &[u8]) -> Sys<OwnedFd> {
    let text = CString::new(path).map_err(|_| Errno::EINVAL)?;
    in_tree(tree, || open_tree(libc::AT_FDCWD, &text))
}

/// The same of a mount that others are mounted over: in a copy of the namespace these are taken off, from each of the
/// places so many. EINVAL if they cannot be, since the tree was made where more was allowed (mount_namespaces(7)).
pub fn covered_mount_copy(tree: BorrowedFd<'_>, path: &[u8], covers: &[(PathBuf, usize)]) -> Sys<OwnedFd> {
    let (owner, own) = (
        owner(tree)?,
        std::fs::File::open("/proc/thread-self/ns/user").map_err(errno)?,
    );
    let mut steps = Vec::new();
    // A copy that is made in another user namespace is one in which nothing can be taken off.
    if super::dev_ino(&owner)? != super::dev_ino(&own)? {
        steps.push(Step::Enter(owner.as_raw_fd()));
    }
    steps.extend([
        Step::Enter(tree.as_raw_fd()),
        Step::Unshare(libc::CLONE_NEWNS),
        Step::Private,
    ]);
    for (place, count) in covers {
        let place = [place.as_os_str().as_bytes(), b"\0"].concat();
        steps.extend(std::iter::repeat_n(Step::Unmount(place), *count));
    }
    let maker = Maker::new(&steps).map_err(|(_, e)| e)?;
    let copy = maker.namespace("mnt").map_err(errno)?;
    mount_copy(Some(copy.as_fd()), path)
}

/// Opens a copy of what the mount `of`, which is in the mount namespace `tree`, shows at the path `below` its root.
pub fn mount_copy_of(tree: BorrowedFd<'_>, of: BorrowedFd<'_>, below: &[u8]) -> Sys<OwnedFd> {
    let text = CString::new(below).map_err(|_| Errno::EINVAL)?;
    in_tree(Some(tree), || open_tree(of.as_raw_fd(), &text))
}

/// Does something by a thread that is in the mount namespace `tree`, or in our own.
fn in_tree<T: Send>(tree: Option<BorrowedFd<'_>>, work: impl FnOnce() -> Sys<T> + Send) -> Sys<T> {
    let there = || -> Sys<T> {
        if let Some(tree) = tree {
            unshare(libc::CLONE_FS)?;
            setns(tree, libc::CLONE_NEWNS)?;
        }
        work()
    };
    std::thread::scope(|s| s.spawn(there).join()).unwrap_or(Err(Errno::EIO))
}

const OPEN_TREE_CLONE: u64 = 1;
const AT_EMPTY_PATH: u64 = 0x1000;

fn open_tree(at: i32, path: &CString) -> Sys<OwnedFd> {
    // What is to be mounted when somebody goes there (autofs) is not.
    let quietly = AT_EMPTY_PATH | libc::AT_NO_AUTOMOUNT as u64;
    let flags = OPEN_TREE_CLONE | quietly | libc::O_CLOEXEC as u64;
    // SAFETY: a terminated string.
    unsafe {
        raw(
            libc::SYS_open_tree,
            [at as u64, path.as_ptr() as u64, flags, 0, 0, 0],
        )
    }
    .map(owned)
}

/// A new mount of the file system on `source` with these options of it (`name` or `name=value`), attached nowhere.
pub fn new_mount(fs: &str, source: &Path, options: &[&str]) -> Sys<OwnedFd> {
    const SET_FLAG: u64 = 0;
    const SET_STRING: u64 = 1;
    const CREATE: u64 = 6;
    const CLOEXEC: u64 = 1;
    let string = |text: &str| CString::new(text).map_err(|_| Errno::EINVAL);
    let fs = string(fs)?;
    // SAFETY: a terminated string.
    let context = unsafe { raw(libc::SYS_fsopen, [fs.as_ptr() as u64, CLOEXEC, 0, 0, 0, 0]) }.map(owned)?;
    let set = |command: u64, key: Option<&CString>, value: Option<&CString>| {
        let pointer = |text: Option<&CString>| text.map_or(0, |t| t.as_ptr() as u64);
        let args = [
            context.as_raw_fd() as u64,
            command,
            pointer(key),
            pointer(value),
            0,
            0,
        ];
        // SAFETY: terminated strings, or none where the command takes none.
        unsafe { raw(libc::SYS_fsconfig, args) }.map(drop)
    };
    set(SET_STRING, Some(&string("source")?), Some(&text(source)?))?;
    for option in options {
        match option.split_once('=') {
            Some((key, value)) => set(SET_STRING, Some(&string(key)?), Some(&string(value)?))?,
            None => set(SET_FLAG, Some(&string(option)?), None)?,
        }
    }
    set(CREATE, None, None)?;
    super::plain(
        libc::SYS_fsmount,
        [context.as_raw_fd() as u64, CLOEXEC, 0, 0, 0, 0],
    )
    .map(owned)
}

/// Gives the file system of a mount options (fspick(2)); ids are those of our user namespace.
pub fn set_super_options(mount: BorrowedFd<'_>, options: &[&str]) -> Sys<()> {
    const SET_FLAG: u64 = 0;
    const SET_STRING: u64 = 1;
    const RECONFIGURE: u64 = 7;
    const CLOEXEC: u64 = 1;
    const EMPTY_PATH: u64 = 8;
    let none = c"".as_ptr() as u64;
    let args = [mount.as_raw_fd() as u64, none, CLOEXEC | EMPTY_PATH, 0, 0, 0];
    // SAFETY: a terminated string.
    let context = unsafe { raw(libc::SYS_fspick, args) }.map(owned)?;
    let set = |command: u64, key: Option<&CString>, value: Option<&CString>| {
        let pointer = |text: Option<&CString>| text.map_or(0, |t| t.as_ptr() as u64);
        let at = context.as_raw_fd() as u64;
        // SAFETY: terminated strings, or none where the command takes none.
        unsafe {
            raw(
                libc::SYS_fsconfig,
                [at, command, pointer(key), pointer(value), 0, 0],
            )
        }
        .map(drop)
    };
    let string = |text: &str| CString::new(text).map_err(|_| Errno::EINVAL);
    for option in options {
        match option.split_once('=') {
            Some((key, value)) => set(SET_STRING, Some(&string(key)?), Some(&string(value)?))?,
            None => set(SET_FLAG, Some(&string(option)?), None)?,
        }
    }
    set(RECONFIGURE, None, None)
}

/// A new mount, attached nowhere, of a file system without options, made by who has entered these namespaces: it belongs
/// to the user namespace among them.
pub fn new_mount_by(namespaces: &[RawFd], fs: &str, source: &str) -> Sys<OwnedFd> {
    const SET_STRING: i32 = 1;
    const CREATE: i32 = 6;
    const CLOEXEC: i32 = 1;
    let string = |text: &str| CString::new(text).map_err(|_| Errno::EINVAL);
    let (fs, source) = (string(fs)?, string(source)?);
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    let flags = libc::CLONE_FILES | libc::SIGCHLD;
    // SAFETY: the child has a copy of the memory and our own table of descriptors, and makes only system calls.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    if pid == 0 {
        // SAFETY: raw system calls on what was prepared before; what it opens is closed again, or handed to its parent.
        unsafe {
            let entered = namespaces
                .iter()
                .all(|fd| libc::syscall(libc::SYS_setns, *fd, 0) == 0);
            let mut mount = -1;
            if entered {
                let context = libc::syscall(libc::SYS_fsopen, fs.as_ptr(), CLOEXEC);
                let set = |command: i32, key: *const i8, value: *const i8| {
                    libc::syscall(libc::SYS_fsconfig, context, command, key, value, 0) == 0
                };
                if context >= 0
                    && set(SET_STRING, c"source".as_ptr(), source.as_ptr())
                    && set(CREATE, std::ptr::null(), std::ptr::null())
                {
                    mount = libc::syscall(libc::SYS_fsmount, context, CLOEXEC, 0) as i32;
                }
                let failed = *libc::__errno_location();
                libc::syscall(libc::SYS_close, context);
                *libc::__errno_location() = failed;
            }
            let told = if mount < 0 {
                -*libc::__errno_location()
            } else {
                mount
            };
            libc::write(write.as_raw_fd(), (&raw const told).cast(), 4);
            libc::_exit(0);
        }
    }
    if pid < 0 {
        return Err(Errno::last());
    }
    // The other end is in the same table: it is ended by its message, not by its end.
    nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid as i32), None)?;
    drop(write);
    let mut told = [0u8; 4];
    std::io::Read::read_exact(&mut std::fs::File::from(read), &mut told).map_err(|_| Errno::ECHILD)?;
    match i32::from_ne_bytes(told) {
        mount @ 0.. => Ok(owned(i64::from(mount))),
        failed => Err(Errno::from_raw(-failed)),
    }
}

/// `struct mount_attr` of mount_setattr(2).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct MountAttr {
    pub set: u64,
    pub clear: u64,
    pub propagation: u64,
    pub userns: u64,
}

/// What is read by way of this copy of a mount keeps its time of access. Not where the copy may not change that (a mount
/// of a less privileged namespace, mount_namespaces(7)).
pub fn leave_access_times(copy: BorrowedFd<'_>) {
    const NOATIME: u64 = 0x10;
    const ATIME: u64 = 0x70;
    let attr = MountAttr {
        set: NOATIME,
        clear: ATIME,
        ..MountAttr::default()
    };
    let _ = set_mount(copy, attr);
}

/// mount_setattr(2) of one mount, given by a descriptor of its root.
pub fn set_mount(mount: BorrowedFd<'_>, attr: MountAttr) -> Sys<()> {
    // SAFETY: an empty string, and the structure with its size.
    unsafe {
        raw(
            libc::SYS_mount_setattr,
            [
                mount.as_raw_fd() as u64,
                c"".as_ptr() as u64,
                AT_EMPTY_PATH,
                &raw const attr as u64,
                size_of::<MountAttr>() as u64,
                0,
            ],
        )
    }
    .map(drop)
}

/// The same of one that is attached in the mount namespace `tree`.
pub fn set_mount_in(tree: BorrowedFd<'_>, mount: BorrowedFd<'_>, attr: MountAttr) -> Sys<()> {
    in_tree(Some(tree), || set_mount(mount, attr))
}

/// move_mount(2), MOVE_MOUNT_SET_GROUP: the mount `to`, which is private, becomes a peer of `from`, and takes over from
/// the same master. Both are of one file system, and `from` shows all of it that `to` shows. Since Linux 5.15.
pub fn join_group(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Sys<()> {
    const F_EMPTY_PATH: u64 = 4;
    const T_EMPTY_PATH: u64 = 0x40;
    const SET_GROUP: u64 = 0x100;
    let empty = c"".as_ptr() as u64;
    let flags = F_EMPTY_PATH | T_EMPTY_PATH | SET_GROUP;
    let args = [
        from.as_raw_fd() as u64,
        empty,
        to.as_raw_fd() as u64,
        empty,
        flags,
        0,
    ];
    // SAFETY: two empty strings.
    unsafe { raw(libc::SYS_move_mount, args) }.map(drop)
}

fn text(path: &Path) -> Sys<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)
}

/// llistxattr(2): the names of a file's extended attributes.
pub fn list_attributes(path: &Path) -> Sys<Vec<Vec<u8>>> {
    let path = text(path)?;
    let mut names = vec![0u8; 1 << 16];
    // SAFETY: a terminated string, and a buffer with its length.
    let n = unsafe {
        raw(
            libc::SYS_llistxattr,
            [
                path.as_ptr() as u64,
                names.as_mut_ptr() as u64,
                names.len() as u64,
                0,
                0,
                0,
            ],
        )?
    };
    names.truncate(n as usize);
    Ok(names
        .split(|b| *b == 0)
        .filter(|n| !n.is_empty())
        .map(<[u8]>::to_vec)
        .collect())
}

/// lgetxattr(2).
pub fn attribute(path: &Path, name: &[u8]) -> Sys<Vec<u8>> {
    let (path, name) = (text(path)?, CString::new(name).map_err(|_| Errno::EINVAL)?);
    let mut value = vec![0u8; 1 << 16];
    // SAFETY: terminated strings, and a buffer with its length.
    let n = unsafe {
        let at = value.as_mut_ptr() as u64;
        raw(
            libc::SYS_lgetxattr,
            [
                path.as_ptr() as u64,
                name.as_ptr() as u64,
                at,
                value.len() as u64,
                0,
                0,
            ],
        )?
    };
    value.truncate(n as usize);
    Ok(value)
}

/// lsetxattr(2).
pub fn set_attribute(path: &Path, name: &[u8], value: &[u8]) -> Sys<()> {
    let (path, name) = (text(path)?, CString::new(name).map_err(|_| Errno::EINVAL)?);
    // SAFETY: terminated strings, and a buffer with its length.
    unsafe {
        let at = value.as_ptr() as u64;
        raw(
            libc::SYS_lsetxattr,
            [
                path.as_ptr() as u64,
                name.as_ptr() as u64,
                at,
                value.len() as u64,
                0,
                0,
            ],
        )
    }
    .map(drop)
}
