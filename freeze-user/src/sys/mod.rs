//! System calls and ioctls that no crate wraps, each behind a safe function.
#![allow(unsafe_code, reason = "raw system calls have their address here")]

pub mod bpf;
pub mod bpfmap;
pub mod capabilities;
pub mod fault;
pub mod files;
pub mod landlock;
pub mod launch;
pub mod events;
pub mod pagemap;
pub mod datagram;
pub mod deadline;
pub mod ended;
pub mod fanotify;
pub mod interrupt;
pub mod keeper;
pub mod ipc;
pub mod laps;
pub mod limit;
pub mod loops;
pub mod missing;
pub mod mqueue;
pub mod multicast;
pub mod ns;
pub mod queue;
pub mod quiet;
pub mod rtnl;
pub mod sched;
pub mod shm;
pub mod socket;
pub mod sockopt;
pub mod stay;
pub mod tcp;
pub mod trial;
pub mod tun;
pub mod uffd;
pub mod unixname;
pub mod uring;
pub mod wire;
pub mod xtables;

use crate::ids::{Pid, Range};
use nix::errno::Errno;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

type Sys<T> = nix::Result<T>;

/// Makes a raw system call; the caller vouches for its arguments.
///
/// # Safety
/// Pointers among `args` must be valid for what system call `nr` does with them.
pub unsafe fn raw(nr: i64, args: [u64; 6]) -> Sys<i64> {
    let [a, b, c, d, e, f] = args;
    // SAFETY: passed on to the caller.
    Errno::result(unsafe { libc::syscall(nr, a, b, c, d, e, f) })
}

/// A system call without pointers.
fn plain(nr: i64, args: [u64; 6]) -> Sys<i64> {
    // SAFETY: private, and called below with plain numbers only.
    unsafe { raw(nr, args) }
}

fn owned(fd: i64) -> OwnedFd {
    // SAFETY: the kernel just made this descriptor for us and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd as RawFd) }
}

/// pidfd_open(2).
pub fn pidfd_open(pid: Pid) -> Sys<OwnedFd> {
    plain(libc::SYS_pidfd_open, [pid.0 as u64, 0, 0, 0, 0, 0]).map(owned)
}

/// Whether this kernel has pidfds of single threads.
pub fn has_thread_pidfds() -> bool {
    pidfd_open_thread(Pid(nix::unistd::gettid().as_raw())).is_ok()
}

/// pidfd_open(2) of one thread (Linux 6.9).
pub fn pidfd_open_thread(tid: Pid) -> Sys<OwnedFd> {
    const PIDFD_THREAD: u64 = libc::O_EXCL as u64;
    plain(libc::SYS_pidfd_open, [tid.0 as u64, PIDFD_THREAD, 0, 0, 0, 0]).map(owned)
}

/// pidfd_getfd(2): a duplicate of another process's descriptor, close-on-exec.
pub fn pidfd_getfd(pidfd: BorrowedFd<'_>, fd: RawFd) -> Sys<OwnedFd> {
    plain(
        libc::SYS_pidfd_getfd,
        [pidfd.as_raw_fd() as u64, fd as u64, 0, 0, 0, 0],
    )
    .map(owned)
}

/// pidfd_send_signal(2) with a plain signal.
pub fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> Sys<()> {
    plain(
        libc::SYS_pidfd_send_signal,
        [pidfd.as_raw_fd() as u64, signal as u64, 0, 0, 0, 0],
    )
    .map(drop)
}

/// What kcmp(2) can compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Kcmp {
    File = 0,
    Vm = 1,
    Files = 2,
    Fs = 3,
    Sighand = 4,
    Io = 5,
    Sysvsem = 6,
}

/// kcmp(2): how the kernel orders two objects; `Equal` means they are one.
pub fn kcmp(a: Pid, b: Pid, what: Kcmp, in_a: u64, in_b: u64) -> Sys<std::cmp::Ordering> {
    use std::cmp::Ordering::{Equal, Greater, Less};
    match plain(
        libc::SYS_kcmp,
        [a.0 as u64, b.0 as u64, what as u64, in_a, in_b, 0],
    )? {
        0 => Ok(Equal),
        1 => Ok(Less),
        2 => Ok(Greater),
        // 3: different, and no order can be told.
        _ => Ok(Less),
    }
}

/// Whether two descriptors, each in its process, are one open file description.
pub fn same_file(a: Pid, fd_a: RawFd, b: Pid, fd_b: RawFd) -> Sys<bool> {
    kcmp(a, b, Kcmp::File, fd_a as u64, fd_b as u64).map(std::cmp::Ordering::is_eq)
}

/// get_robust_list(2) of another thread: head and length.
pub fn get_robust_list(tid: Pid) -> Sys<(u64, u64)> {
    let (mut head, mut len) = (0u64, 0u64);
    // SAFETY: both pointers are to live u64s, which is what the call writes on x86-64.
    unsafe {
        raw(
            libc::SYS_get_robust_list,
            [tid.0 as u64, &raw mut head as u64, &raw mut len as u64, 0, 0, 0],
        )?;
    }
    Ok((head, len))
}

/// Sends `signal` to one thread; used on freeze's own children only.
pub fn tgkill(tgid: Pid, tid: Pid, signal: i32) -> Sys<()> {
    plain(
        libc::SYS_tgkill,
        [tgid.0 as u64, tid.0 as u64, signal as u64, 0, 0, 0],
    )
    .map(drop)
}

/// process_vm_readv(2) of scattered ranges into one buffer, which must be as long as they are together.
///
/// Returns how many bytes came over; fewer than asked means the next one is not readable.
pub fn vm_read(pid: Pid, from: &[Range], into: &mut [u8]) -> Sys<usize> {
    let remote: Vec<nix::sys::uio::RemoteIoVec> = from
        .iter()
        .map(|r| nix::sys::uio::RemoteIoVec {
            base: r.start as usize,
            len: r.len() as usize,
        })
        .collect();
    nix::sys::uio::process_vm_readv(pid.nix(), &mut [IoSliceMut::new(into)], &remote)
}

/// process_vm_writev(2) of one buffer to one address; pages must be writable.
pub fn vm_write(pid: Pid, to: u64, from: &[u8]) -> Sys<usize> {
    let remote = [nix::sys::uio::RemoteIoVec {
        base: to as usize,
        len: from.len(),
    }];
    nix::sys::uio::process_vm_writev(pid.nix(), &[IoSlice::new(from)], &remote)
}

/// `struct clone_args` of clone3(2), first published size and the fields up to `set_tid` (88 bytes).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct CloneArgs {
    pub flags: u64,
    pub pidfd: u64,
    pub child_tid: u64,
    pub parent_tid: u64,
    pub exit_signal: u64,
    pub stack: u64,
    pub stack_size: u64,
    pub tls: u64,
    pub set_tid: u64,
    pub set_tid_size: u64,
    pub cgroup: u64,
}
const _: () = assert!(size_of::<CloneArgs>() == 88);

impl CloneArgs {
    /// Its bytes, to be written into another process.
    pub fn bytes(&self) -> [u8; 88] {
        let words = [
            self.flags,
            self.pidfd,
            self.child_tid,
            self.parent_tid,
            self.exit_signal,
            self.stack,
            self.stack_size,
            self.tls,
            self.set_tid,
            self.set_tid_size,
            self.cgroup,
        ];
        let mut out = [0; 88];
        for (to, word) in out.chunks_exact_mut(8).zip(words) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        out
    }
}

/// Forks a blank process: a copy of this one that does nothing but wait to be taken over.
///
/// `ids` are its pids as clone3(2) wants them in `set_tid`, the innermost namespace first; `flags` may be CLONE_NEWPID.
///
/// All its signals are blocked, so nothing that is queued for it acts before it is seized. It dies with this process
/// (PR_SET_PDEATHSIG) until it is told otherwise. Its pid is told as this process knows it.
pub fn spawn_blank(ids: &[i32], flags: u64) -> Sys<Pid> {
    let args = CloneArgs {
        flags,
        exit_signal: libc::SIGCHLD as u64,
        set_tid: ids.as_ptr() as u64,
        set_tid_size: ids.len() as u64,
        ..CloneArgs::default()
    };
    // Its other end is closed when this process ends, and not before: who asks for the signal too late sees it by this.
    static ALIVE: std::sync::OnceLock<(OwnedFd, OwnedFd)> = std::sync::OnceLock::new();
    let pipe = match ALIVE.get() {
        Some(pipe) => pipe,
        None => {
            let pipe = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
            ALIVE.get_or_init(|| pipe)
        }
    };
    let (alive, here) = (&pipe.0, &pipe.1);
    let mut hung_up = libc::pollfd {
        fd: alive.as_raw_fd(),
        events: 0,
        revents: 0,
    };
    let all = !0u64;
    let mut old = 0u64;
    // SAFETY: the masks are 8 bytes, as the call is told; it touches nothing else.
    unsafe {
        let set = libc::SIG_SETMASK as u64;
        raw(
            libc::SYS_rt_sigprocmask,
            [set, &raw const all as u64, &raw mut old as u64, 8, 0, 0],
        )?;
    }
    // SAFETY: without CLONE_VM the child has its own copy of everything; in it only system calls
    // follow, none of which needs a lock that another thread of this process may hold.
    let made = unsafe {
        raw(
            libc::SYS_clone3,
            [&raw const args as u64, size_of::<CloneArgs>() as u64, 0, 0, 0, 0],
        )
    };
    if made == Ok(0) {
        // SAFETY: raw system calls with plain numbers, and one structure of the child's own.
        unsafe {
            libc::syscall(libc::SYS_prctl, libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
            libc::syscall(libc::SYS_close, here.as_raw_fd());
            if libc::syscall(libc::SYS_poll, &raw mut hung_up, 1, 0) != 0 {
                libc::_exit(1);
            }
            loop {
                libc::syscall(libc::SYS_pause);
            }
        }
    }
    // SAFETY: as above.
    unsafe {
        let set = libc::SIG_SETMASK as u64;
        raw(libc::SYS_rt_sigprocmask, [set, &raw const old as u64, 0, 8, 0, 0])?;
    }
    made.map(|pid| Pid(pid as i32))
}

/// getpgid(2) of another process.
pub fn getpgid(pid: Pid) -> Sys<Pid> {
    nix::unistd::getpgid(Some(pid.nix())).map(|p| Pid(p.as_raw()))
}

/// setpgid(2) of a child of this process.
pub fn setpgid(pid: Pid, group: Pid) -> Sys<()> {
    nix::unistd::setpgid(pid.nix(), group.nix())
}

/// Duplicates a descriptor to a number of at least `least`, close-on-exec.
pub fn dup_above(fd: BorrowedFd<'_>, least: RawFd) -> Sys<OwnedFd> {
    plain(
        libc::SYS_fcntl,
        [
            fd.as_raw_fd() as u64,
            libc::F_DUPFD_CLOEXEC as u64,
            least as u64,
            0,
            0,
            0,
        ],
    )
    .map(owned)
}

/// Borrows a descriptor that this process was started with; EBADF if there is none of this number.
pub fn inherited<T>(fd: RawFd, work: impl FnOnce(BorrowedFd<'_>) -> Sys<T>) -> Sys<T> {
    if fd < 0 || plain(libc::SYS_fcntl, [fd as u64, libc::F_GETFD as u64, 0, 0, 0, 0]).is_err() {
        return Err(Errno::EBADF);
    }
    // SAFETY: it is open, as was just seen, and borrowed for the time of the call only.
    work(unsafe { BorrowedFd::borrow_raw(fd) })
}

/// close_range(2) with `CLOSE_RANGE_CLOEXEC`: every descriptor from `first` on is closed by the next exec.
pub fn cloexec_from(first: u32) -> Sys<()> {
    const CLOEXEC: u64 = 1 << 2;
    plain(
        libc::SYS_close_range,
        [u64::from(first), u64::from(u32::MAX), CLOEXEC, 0, 0, 0],
    )
    .map(drop)
}

/// fcntl(2) with a number as argument, for the commands nix does not know.
pub fn fcntl(fd: BorrowedFd<'_>, command: i32, arg: u64) -> Sys<i64> {
    plain(
        libc::SYS_fcntl,
        [fd.as_raw_fd() as u64, command as u64, arg, 0, 0, 0],
    )
}

/// fcntl(2) with `F_GETOWN_EX` or `F_SETOWN_EX`: kind (0 thread, 1 process, 2 group) and id.
pub fn owner_ex(fd: BorrowedFd<'_>) -> Sys<(i32, i32)> {
    const F_GETOWN_EX: u64 = 16;
    let mut owner = [0i32; 2];
    // SAFETY: the call writes two ints.
    unsafe {
        raw(
            libc::SYS_fcntl,
            [
                fd.as_raw_fd() as u64,
                F_GETOWN_EX,
                owner.as_mut_ptr() as u64,
                0,
                0,
                0,
            ],
        )?
    };
    Ok((owner[0], owner[1]))
}

/// Sets who gets SIGIO for a description: kind (0 thread, 1 process, 2 group) and id.
pub fn set_owner_ex(fd: BorrowedFd<'_>, kind: i32, id: i32) -> Sys<()> {
    const F_SETOWN_EX: u64 = 15;
    let owner = [kind, id];
    // SAFETY: the call reads two ints.
    unsafe {
        raw(
            libc::SYS_fcntl,
            [fd.as_raw_fd() as u64, F_SETOWN_EX, owner.as_ptr() as u64, 0, 0, 0],
        )
        .map(drop)
    }
}

/// ioctl(2) that writes one int.
pub fn ioctl_int(fd: BorrowedFd<'_>, request: u64) -> Sys<i32> {
    let mut out = 0i32;
    // SAFETY: used with requests documented to write one int.
    unsafe {
        raw(
            libc::SYS_ioctl,
            [fd.as_raw_fd() as u64, request, &raw mut out as u64, 0, 0, 0],
        )?
    };
    Ok(out)
}

/// ioctl(2) with a structure passed as bytes, read and written by the kernel; its size is in the request.
pub fn ioctl_bytes(fd: BorrowedFd<'_>, request: u64, bytes: &mut [u8]) -> Sys<i64> {
    let size = (request >> 16 & 0x3fff) as usize;
    if size > bytes.len() {
        return Err(Errno::EINVAL);
    }
    // SAFETY: the request carries the size of its structure, and the buffer is at least that long.
    unsafe {
        raw(
            libc::SYS_ioctl,
            [fd.as_raw_fd() as u64, request, bytes.as_mut_ptr() as u64, 0, 0, 0],
        )
    }
}

/// ioctl(2) of a network device with its `struct ifreq`, whose requests do not carry their size.
pub fn ioctl_request(fd: BorrowedFd<'_>, request: u64, ifreq: &mut [u8; 40]) -> Sys<()> {
    // SAFETY: `struct ifreq` is 40 bytes long, which is what netdevice(7) requests read and write.
    unsafe {
        raw(
            libc::SYS_ioctl,
            [fd.as_raw_fd() as u64, request, ifreq.as_mut_ptr() as u64, 0, 0, 0],
        )
        .map(drop)
    }
}

/// ioctl(2) with a number as argument.
pub fn ioctl_number(fd: BorrowedFd<'_>, request: u64, arg: u64) -> Sys<i64> {
    plain(libc::SYS_ioctl, [fd.as_raw_fd() as u64, request, arg, 0, 0, 0])
}

/// getsockopt(2) as raw bytes.
pub fn getsockopt(fd: BorrowedFd<'_>, level: i32, name: i32, into: &mut [u8]) -> Sys<usize> {
    let mut len = into.len() as u32;
    // SAFETY: buffer and length belong together.
    unsafe {
        let args = [
            fd.as_raw_fd() as u64,
            level as u64,
            name as u64,
            into.as_mut_ptr() as u64,
            &raw mut len as u64,
            0,
        ];
        raw(libc::SYS_getsockopt, args)?;
    }
    Ok(len as usize)
}

/// setsockopt(2) with raw bytes.
pub fn setsockopt(fd: BorrowedFd<'_>, level: i32, name: i32, value: &[u8]) -> Sys<()> {
    // SAFETY: pointer and length belong together.
    unsafe {
        let args = [
            fd.as_raw_fd() as u64,
            level as u64,
            name as u64,
            value.as_ptr() as u64,
            value.len() as u64,
            0,
        ];
        raw(libc::SYS_setsockopt, args).map(drop)
    }
}

/// The raw bytes of a socket's own (`peer` false) or peer address.
pub fn socket_name(fd: BorrowedFd<'_>, peer: bool) -> Sys<Vec<u8>> {
    let nr = if peer {
        libc::SYS_getpeername
    } else {
        libc::SYS_getsockname
    };
    let mut buf = vec![0u8; 256];
    let mut len = buf.len() as u32;
    // SAFETY: buffer and length belong together.
    unsafe {
        raw(
            nr,
            [
                fd.as_raw_fd() as u64,
                buf.as_mut_ptr() as u64,
                &raw mut len as u64,
                0,
                0,
                0,
            ],
        )?
    };
    buf.truncate(len as usize);
    Ok(buf)
}

/// bind(2) (`connect` false) or connect(2) with a raw address.
pub fn socket_to(fd: BorrowedFd<'_>, connect: bool, address: &[u8]) -> Sys<()> {
    // Of a path that fills it, getsockname(2) gives a zero byte more than fits.
    let most = match address.first_chunk() {
        Some(family) if i32::from(u16::from_ne_bytes(*family)) == libc::AF_UNIX => {
            size_of::<libc::sockaddr_un>()
        }
        _ => address.len(),
    };
    let address = &address[..address.len().min(most)];
    let nr = if connect {
        libc::SYS_connect
    } else {
        libc::SYS_bind
    };
    // SAFETY: pointer and length belong together.
    unsafe {
        raw(
            nr,
            [
                fd.as_raw_fd() as u64,
                address.as_ptr() as u64,
                address.len() as u64,
                0,
                0,
                0,
            ],
        )
        .map(drop)
    }
}

/// socket(2) with any numbers, close-on-exec.
pub fn socket(domain: i32, kind: i32, protocol: i32) -> Sys<OwnedFd> {
    let kind = kind | libc::SOCK_CLOEXEC;
    plain(
        libc::SYS_socket,
        [domain as u64, kind as u64, protocol as u64, 0, 0, 0],
    )
    .map(owned)
}

/// eventfd2(2) with a counter that may need more than 32 bits set afterwards by a write.
pub fn eventfd(flags: i32) -> Sys<OwnedFd> {
    plain(libc::SYS_eventfd2, [0, flags as u64, 0, 0, 0, 0]).map(owned)
}

/// signalfd4(2) with a mask of 64 signals.
pub fn signalfd(mask: u64, flags: i32) -> Sys<OwnedFd> {
    // SAFETY: the mask is 8 bytes, as the call is told.
    unsafe {
        raw(
            libc::SYS_signalfd4,
            [!0, &raw const mask as u64, 8, flags as u64, 0, 0],
        )
        .map(owned)
    }
}

/// timerfd_create(2).
pub fn timerfd_create(clock: i32, flags: i32) -> Sys<OwnedFd> {
    plain(libc::SYS_timerfd_create, [clock as u64, flags as u64, 0, 0, 0, 0]).map(owned)
}

/// timerfd_settime(2): interval and first expiry, each seconds and nanoseconds.
pub fn timerfd_settime(fd: BorrowedFd<'_>, flags: i32, spec: [i64; 4]) -> Sys<()> {
    let args = [fd.as_raw_fd() as u64, flags as u64, spec.as_ptr() as u64, 0, 0, 0];
    // SAFETY: `spec` is a struct itimerspec.
    unsafe { raw(libc::SYS_timerfd_settime, args).map(drop) }
}

/// timerfd_gettime(2): interval and what remains.
pub fn timerfd_gettime(fd: BorrowedFd<'_>) -> Sys<[i64; 4]> {
    let mut spec = [0i64; 4];
    // SAFETY: `spec` is a struct itimerspec.
    unsafe {
        raw(
            libc::SYS_timerfd_gettime,
            [fd.as_raw_fd() as u64, spec.as_mut_ptr() as u64, 0, 0, 0, 0],
        )?
    };
    Ok(spec)
}

/// epoll_create1(2).
pub fn epoll_create() -> Sys<OwnedFd> {
    plain(
        libc::SYS_epoll_create1,
        [libc::EPOLL_CLOEXEC as u64, 0, 0, 0, 0, 0],
    )
    .map(owned)
}

/// memfd_create(2) with a name of at most 249 bytes.
pub fn memfd_create(name: &[u8], flags: u32) -> Sys<OwnedFd> {
    let name = std::ffi::CString::new(name).map_err(|_| Errno::EINVAL)?;
    // SAFETY: a terminated string.
    unsafe {
        raw(
            libc::SYS_memfd_create,
            [name.as_ptr() as u64, u64::from(flags), 0, 0, 0, 0],
        )
        .map(owned)
    }
}

/// tee(2): copies what is in one pipe into another without taking it out.
pub fn tee(from: BorrowedFd<'_>, to: BorrowedFd<'_>, len: usize) -> Sys<usize> {
    let flags = libc::SPLICE_F_NONBLOCK as u64;
    plain(
        libc::SYS_tee,
        [
            from.as_raw_fd() as u64,
            to.as_raw_fd() as u64,
            len as u64,
            flags,
            0,
            0,
        ],
    )
    .map(|n| n as usize)
}

/// A shared anonymous mapping of this process, made to be handed to others through map_files; gone when dropped.
#[derive(Debug)]
pub struct SharedAnon {
    at: usize,
    len: usize,
}

impl SharedAnon {
    /// mmap(MAP_SHARED | MAP_ANONYMOUS) of `len` bytes (whole pages), of huge pages of `huge` bytes unless that is 0.
    pub fn new(len: u64, noreserve: bool, huge: u64) -> Sys<SharedAnon> {
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | if noreserve { libc::MAP_NORESERVE } else { 0 };
        const SHIFT: u32 = 26;
        let size = (huge.checked_ilog2().unwrap_or(0) << SHIFT) as i32;
        let flags = flags | if huge == 0 { 0 } else { libc::MAP_HUGETLB | size };
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at a place of the kernel's choice.
        let at = unsafe { raw(libc::SYS_mmap, [0, len, prot as u64, flags as u64, !0, 0])? };
        Ok(SharedAnon {
            at: at as usize,
            len: len as usize,
        })
    }

    /// mmap(MAP_SHARED) of `len` bytes of a file, from `offset` on.
    pub fn of(file: BorrowedFd<'_>, offset: u64, len: u64) -> Sys<SharedAnon> {
        let prot = (libc::PROT_READ | libc::PROT_WRITE) as u64;
        let fd = file.as_raw_fd() as u64;
        let args = [0, len, prot, libc::MAP_SHARED as u64, fd, offset];
        // SAFETY: a new mapping at a place of the kernel's choice.
        let at = unsafe { raw(libc::SYS_mmap, args)? };
        Ok(SharedAnon {
            at: at as usize,
            len: len as usize,
        })
    }

    /// Writes into it.
    pub fn write(&self, at: u64, bytes: &[u8]) -> Sys<()> {
        if at
            .checked_add(bytes.len() as u64)
            .is_none_or(|end| end > self.len as u64)
        {
            return Err(Errno::EFAULT);
        }
        // SAFETY: inside a mapping of ours, checked just above, to which no reference exists.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), (self.at as *mut u8).add(at as usize), bytes.len())
        };
        Ok(())
    }

    /// Reads from it.
    pub fn read(&self, at: u64, len: usize) -> Sys<Vec<u8>> {
        if at.checked_add(len as u64).is_none_or(|end| end > self.len as u64) {
            return Err(Errno::EFAULT);
        }
        let mut out = vec![0; len];
        // SAFETY: inside a mapping of ours, checked just above, into memory of ours that is as long.
        unsafe {
            std::ptr::copy_nonoverlapping((self.at as *const u8).add(at as usize), out.as_mut_ptr(), len)
        };
        Ok(out)
    }

    /// A descriptor of the object behind it (needs CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN).
    pub fn open(&self) -> std::io::Result<std::fs::File> {
        let path = format!("/proc/self/map_files/{:x}-{:x}", self.at, self.at + self.len);
        std::fs::File::options().read(true).write(true).open(path)
    }
}

impl Drop for SharedAnon {
    fn drop(&mut self) {
        // SAFETY: this mapping is ours alone and nobody borrowed from it.
        let _ = unsafe { raw(libc::SYS_munmap, [self.at as u64, self.len as u64, 0, 0, 0, 0]) };
    }
}

/// Bytes per page of a file on hugetlbfs; 0 for any other file.
pub fn huge_page_of(fd: BorrowedFd<'_>) -> u64 {
    match nix::sys::statfs::fstatfs(fd) {
        Ok(fs) if fs.filesystem_type() == nix::sys::statfs::HUGETLBFS_MAGIC => fs.block_size() as u64,
        _ => 0,
    }
}

/// The 64-bit identity of an open file for stat-like comparison: device and inode.
pub fn dev_ino(fd: impl AsFd) -> Sys<(u64, u64)> {
    let s = nix::sys::stat::fstat(fd)?;
    Ok((s.st_dev, s.st_ino))
}

/// flock(2).
pub fn flock(fd: BorrowedFd<'_>, how: i32) -> Sys<()> {
    plain(libc::SYS_flock, [fd.as_raw_fd() as u64, how as u64, 0, 0, 0, 0]).map(drop)
}

/// `struct flock64` of fcntl(2) for a lock from `start` to the byte `end`, or to the end of the file.
pub fn flock64(write: bool, start: u64, end: Option<u64>) -> [u8; 32] {
    let mut out = [0; 32];
    let kind = if write { libc::F_WRLCK } else { libc::F_RDLCK } as i16;
    out[..2].copy_from_slice(&kind.to_ne_bytes());
    out[8..16].copy_from_slice(&start.to_ne_bytes());
    out[16..24].copy_from_slice(&end.map_or(0, |e| e - start + 1).to_ne_bytes());
    out
}
const _: () = assert!(size_of::<libc::flock64>() == 32);

/// fcntl(2) with a structure of lock commands, given as the 32 bytes of [`flock64`].
pub fn fcntl_bytes(fd: BorrowedFd<'_>, command: i32, arg: &[u8; 32]) -> Sys<()> {
    // SAFETY: lock commands read a struct flock64, which the bytes are.
    unsafe {
        raw(
            libc::SYS_fcntl,
            [
                fd.as_raw_fd() as u64,
                command as u64,
                arg.as_ptr() as u64,
                0,
                0,
                0,
            ],
        )
        .map(drop)
    }
}

/// getrlimit(2) of this process: soft and hard.
pub fn own_rlimit(resource: u32) -> Sys<(u64, u64)> {
    rlimit(Pid(0), resource)
}

/// prlimit(2) of a process, 0 is this one: soft and hard.
pub fn rlimit(pid: Pid, resource: u32) -> Sys<(u64, u64)> {
    let mut pair = [0u64; 2];
    // SAFETY: the call writes two u64.
    unsafe {
        raw(
            libc::SYS_prlimit64,
            [
                pid.0 as u64,
                u64::from(resource),
                0,
                pair.as_mut_ptr() as u64,
                0,
                0,
            ],
        )?
    };
    Ok((pair[0], pair[1]))
}

/// /proc/sys/kernel/random/boot_id: which boot this is; read once, and empty where it is not told.
pub fn boot_id() -> &'static str {
    static BOOT: std::sync::LazyLock<String> = std::sync::LazyLock::new(|| {
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        text.trim().to_owned()
    });
    &BOOT
}

/// setrlimit(2) of this process.
pub fn set_own_rlimit(resource: u32, soft: u64, hard: u64) -> Sys<()> {
    set_rlimit(Pid(0), resource, soft, hard)
}

/// Lets this process have as many descriptors as the kernel grants: a checkpoint takes some for each file of its programs.
pub fn raise_descriptor_limit() {
    const PLENTY: u64 = 1 << 20;
    if let Ok((_, hard)) = own_rlimit(libc::RLIMIT_NOFILE) {
        // Raising the hard limit takes CAP_SYS_RESOURCE; what is allowed already does not.
        let _ = set_own_rlimit(libc::RLIMIT_NOFILE, hard.max(PLENTY), hard.max(PLENTY))
            .or_else(|_| set_own_rlimit(libc::RLIMIT_NOFILE, hard, hard));
    }
}

/// prlimit(2) of a process; 0 is this one.
pub fn set_rlimit(pid: Pid, resource: u32, soft: u64, hard: u64) -> Sys<()> {
    let pair = [soft, hard];
    // SAFETY: the call reads two u64.
    unsafe {
        raw(
            libc::SYS_prlimit64,
            [pid.0 as u64, u64::from(resource), pair.as_ptr() as u64, 0, 0, 0],
        )
        .map(drop)
    }
}
