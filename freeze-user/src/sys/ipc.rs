//! System V semaphores and message queues, and calls made in the name of somebody else.
#![allow(unsafe_code, reason = "raw system calls have their address here")]

use super::{CloneArgs, Sys, plain, raw};
use crate::ids::Pid;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use std::os::fd::{AsRawFd, BorrowedFd};

const GETPID: u64 = 11;
const GETALL: u64 = 13;
const SETVAL: u64 = 16;
const SETALL: u64 = 17;
const MSG_COPY: u64 = 0o40000;
const NOWAIT: u64 = libc::IPC_NOWAIT as u64;

/// One operation of semop(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SemOp {
    pub number: u16,
    pub add: i16,
    /// Whether it is taken back when the process ends (SEM_UNDO).
    pub undo: bool,
}

impl SemOp {
    /// `struct sembuf`; it never waits.
    pub fn bytes(ops: &[SemOp]) -> Vec<u8> {
        const SEM_UNDO: i16 = 0x1000;
        let one = |op: &SemOp| {
            let flags = libc::IPC_NOWAIT as i16 | if op.undo { SEM_UNDO } else { 0 };
            [op.number.to_ne_bytes(), op.add.to_ne_bytes(), flags.to_ne_bytes()].concat()
        };
        ops.iter().flat_map(one).collect()
    }
}

/// semctl(GETALL).
pub fn sem_values(id: i32) -> Sys<Vec<u16>> {
    let mut out = vec![0u16; sem_count(id)];
    // SAFETY: the call writes one short per semaphore, and a set does not change its size.
    unsafe {
        raw(
            libc::SYS_semctl,
            [id as u64, 0, GETALL, out.as_mut_ptr() as u64, 0, 0],
        )?
    };
    Ok(out)
}

/// How many semaphore sets there are in the namespace of this thread (SEM_INFO).
pub fn sem_count_all() -> Sys<i32> {
    const SEM_INFO: u64 = 19;
    // struct seminfo: ten numbers, of which the eighth (semusz) is the count.
    let mut info = [0i32; 10];
    // SAFETY: the call fills a struct seminfo.
    unsafe { raw(libc::SYS_semctl, [0, 0, SEM_INFO, info.as_mut_ptr() as u64, 0, 0])? };
    Ok(info[7])
}

/// How many message queues there are (MSG_INFO).
pub fn msg_count_all() -> Sys<i32> {
    const MSG_INFO: u64 = 12;
    // struct msginfo: seven numbers, of which the first (msgpool) is the count, and a short.
    let mut info = [0i32; 8];
    // SAFETY: the call fills a struct msginfo.
    unsafe { raw(libc::SYS_msgctl, [0, MSG_INFO, info.as_mut_ptr() as u64, 0, 0, 0])? };
    Ok(info[0])
}

/// How many segments of shared memory there are (SHM_INFO).
pub fn shm_count_all() -> Sys<i32> {
    const SHM_INFO: u64 = 14;
    // struct shm_info: a number, the count, and five longs.
    let mut info = [0u64; 6];
    // SAFETY: the call fills a struct shm_info.
    unsafe { raw(libc::SYS_shmctl, [0, SHM_INFO, info.as_mut_ptr() as u64, 0, 0, 0])? };
    Ok(info[0] as i32)
}

/// semctl(GETPID): who operated on it last.
pub fn sem_pid(id: i32, number: u16) -> Sys<i32> {
    plain(libc::SYS_semctl, [id as u64, u64::from(number), GETPID, 0, 0, 0]).map(|p| p as i32)
}

/// semctl(IPC_SET): owner and permissions.
pub fn sem_set(id: i32, uid: u32, gid: u32, mode: u32) -> Sys<()> {
    // SAFETY: all zeros are a valid semid_ds, of which the call reads three fields.
    unsafe {
        let mut ds: libc::semid_ds = std::mem::zeroed();
        (ds.sem_perm.uid, ds.sem_perm.gid) = (uid, gid);
        ds.sem_perm.mode = (mode & 0o777) as _;
        raw(
            libc::SYS_semctl,
            [id as u64, 0, libc::IPC_SET as u64, &raw const ds as u64, 0, 0],
        )
        .map(drop)
    }
}

/// semctl(IPC_RMID).
pub fn sem_remove(id: i32) -> Sys<()> {
    plain(libc::SYS_semctl, [id as u64, 0, libc::IPC_RMID as u64, 0, 0, 0]).map(drop)
}

/// How many bytes a queue may hold (msg_qbytes).
pub fn msg_limit(id: i32) -> Sys<u64> {
    // SAFETY: all zeros are a valid msqid_ds, which the call fills.
    unsafe {
        let mut ds: libc::msqid_ds = std::mem::zeroed();
        raw(
            libc::SYS_msgctl,
            [id as u64, libc::IPC_STAT as u64, &raw mut ds as u64, 0, 0, 0],
        )?;
        Ok(ds.msg_qbytes)
    }
}

/// msgctl(IPC_SET): owner, permissions, how many bytes it may hold.
pub fn msg_set(id: i32, uid: u32, gid: u32, mode: u32, limit: u64) -> Sys<()> {
    // SAFETY: all zeros are a valid msqid_ds, of which the call reads four fields.
    unsafe {
        let mut ds: libc::msqid_ds = std::mem::zeroed();
        (ds.msg_perm.uid, ds.msg_perm.gid) = (uid, gid);
        ds.msg_perm.mode = (mode & 0o777) as _;
        ds.msg_qbytes = limit;
        raw(
            libc::SYS_msgctl,
            [id as u64, libc::IPC_SET as u64, &raw const ds as u64, 0, 0, 0],
        )
        .map(drop)
    }
}

/// msgctl(IPC_RMID).
pub fn msg_remove(id: i32) -> Sys<()> {
    plain(libc::SYS_msgctl, [id as u64, libc::IPC_RMID as u64, 0, 0, 0, 0]).map(drop)
}

/// The message number `index` of a queue, which stays there: its type and text, of which at most `room` bytes.
pub fn msg_peek(id: i32, index: usize, room: usize) -> Sys<(i64, Vec<u8>)> {
    receive(id, room, index as u64, NOWAIT | MSG_COPY)
}

/// Takes the first message of type `kind`, or of any if that is 0.
pub fn msg_take(id: i32, room: usize, kind: i64) -> Sys<(i64, Vec<u8>)> {
    receive(id, room, kind as u64, NOWAIT)
}

fn receive(id: i32, room: usize, kind: u64, flags: u64) -> Sys<(i64, Vec<u8>)> {
    let mut out = vec![0u64; 1 + room.div_ceil(8)];
    // SAFETY: a word for the type and room for the text, as the call is told.
    let length = unsafe {
        raw(
            libc::SYS_msgrcv,
            [id as u64, out.as_mut_ptr() as u64, room as u64, kind, flags, 0],
        )?
    };
    let text = out[1..].iter().flat_map(|w| w.to_ne_bytes());
    Ok((out[0] as i64, text.take(length as usize).collect()))
}

/// A call that leaves the pid or the user of its caller on an object, so that it matters who makes it.
#[derive(Clone, Debug)]
pub struct Call {
    pub name: &'static str,
    pub nr: i64,
    args: [u64; 6],
    /// What the argument of this number points to.
    data: Option<(usize, Vec<u8>)>,
    /// Effective user and group to make it with.
    pub user: Option<(u32, u32)>,
}

impl Call {
    fn new(name: &'static str, nr: i64, args: [u64; 6], data: Option<(usize, Vec<u8>)>) -> Call {
        Call {
            name,
            nr,
            args,
            data,
            user: None,
        }
    }

    /// semget(2) of a new set.
    pub fn sem_make(key: i32, count: u32, mode: u32) -> Call {
        let args = [key as u64, u64::from(count), u64::from(fresh(mode)), 0, 0, 0];
        Call::new("semget", libc::SYS_semget, args, None)
    }

    /// semctl(SETVAL).
    pub fn sem_set(id: i32, number: u16, value: u16) -> Call {
        let args = [id as u64, u64::from(number), SETVAL, u64::from(value), 0, 0];
        Call::new("semctl(SETVAL)", libc::SYS_semctl, args, None)
    }

    /// semctl(SETALL); refused by the set if there are not as many `values` as it has semaphores.
    pub fn sem_set_all(id: i32, values: &[u16]) -> Call {
        // Room for the largest set there is: the call reads as many as the set has.
        let mut bytes: Vec<u8> = values.iter().flat_map(|v| v.to_ne_bytes()).collect();
        bytes.resize(bytes.len().max(2 * sem_count(id)), 0);
        Call::new(
            "semctl(SETALL)",
            libc::SYS_semctl,
            [id as u64, 0, SETALL, 0, 0, 0],
            Some((3, bytes)),
        )
    }

    /// semop(2), without waiting.
    pub fn sem_op(id: i32, ops: &[SemOp]) -> Call {
        let args = [id as u64, 0, ops.len() as u64, 0, 0, 0];
        Call::new("semop", libc::SYS_semop, args, Some((1, SemOp::bytes(ops))))
    }

    /// msgget(2) of a new queue.
    pub fn msg_make(key: i32, mode: u32) -> Call {
        let args = [key as u64, u64::from(fresh(mode)), 0, 0, 0, 0];
        Call::new("msgget", libc::SYS_msgget, args, None)
    }

    /// msgsnd(2), without waiting.
    pub fn msg_send(id: i32, kind: i64, text: &[u8]) -> Call {
        let message = [&kind.to_ne_bytes()[..], text].concat();
        let args = [id as u64, 0, text.len() as u64, NOWAIT, 0, 0];
        Call::new("msgsnd", libc::SYS_msgsnd, args, Some((1, message)))
    }

    /// msgrcv(2) of the first message of type `kind`, whose text is empty, without waiting.
    pub fn msg_take_empty(id: i32, kind: i64) -> Call {
        let args = [id as u64, 0, 0, kind as u64, NOWAIT, 0];
        Call::new("msgrcv", libc::SYS_msgrcv, args, Some((1, vec![0; 8])))
    }

    /// shmget(2) of a new segment.
    pub fn shm_make(key: i32, size: u64, mode: u32, huge: u64) -> Call {
        const SHIFT: u32 = 26;
        let pages = match huge.checked_ilog2() {
            None => 0,
            Some(log) => libc::SHM_HUGETLB as u32 | log << SHIFT,
        };
        let args = [key as u64, size, u64::from(fresh(mode) | pages), 0, 0, 0];
        Call::new("shmget", libc::SYS_shmget, args, None)
    }

    /// The arguments, with the data at the address that `place` gives it.
    pub fn args(&self, place: impl FnOnce(&[u8]) -> u64) -> [u64; 6] {
        let mut args = self.args;
        if let Some((at, bytes)) = &self.data {
            args[*at] = place(bytes);
        }
        args
    }

    /// Makes it here.
    pub fn make(&self) -> Sys<i64> {
        let mut data = self.data.clone().map(|(_, bytes)| bytes).unwrap_or_default();
        let args = self.args(|_| data.as_mut_ptr() as u64);
        // SAFETY: the constructors above give each call the data it reads or writes.
        let call = || unsafe { raw(self.nr, args) };
        match self.user {
            Some((uid, gid)) => as_user(uid, gid, call),
            None => call(),
        }
    }

    /// Makes it in a child process that has the pid `pid`, which must be free.
    ///
    /// The kernel notes the pid of who operated on an object last, also where that process has ended long ago.
    pub fn make_as(&self, pid: Pid) -> Sys<i64> {
        let mut data = self.data.clone().map(|(_, bytes)| bytes).unwrap_or_default();
        let args = self.args(|_| data.as_mut_ptr() as u64);
        let tid = pid.0;
        let (told, tell) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        let clone = CloneArgs {
            exit_signal: libc::SIGCHLD as u64,
            set_tid: &raw const tid as u64,
            set_tid_size: 1,
            ..CloneArgs::default()
        };
        // SAFETY: without CLONE_VM the child has its own copy of everything; in it only raw system calls follow.
        // What `args` point to is in the copy too.
        let made = unsafe {
            raw(
                libc::SYS_clone3,
                [&raw const clone as u64, size_of::<CloneArgs>() as u64, 0, 0, 0, 0],
            )
        };
        if made == Ok(0) {
            const KEEP: i64 = -1;
            // SAFETY: as above; the exit status carries the error.
            unsafe {
                let mut failed = 0;
                if let Some((uid, gid)) = self.user {
                    failed |= libc::syscall(libc::SYS_setresgid, KEEP, i64::from(gid), KEEP);
                    failed |= libc::syscall(libc::SYS_setresuid, KEEP, i64::from(uid), KEEP);
                }
                let [a, b, c, d, e, f] = args;
                let result = if failed == -1 {
                    -1
                } else {
                    libc::syscall(self.nr, a, b, c, d, e, f)
                };
                let status = if result == -1 {
                    *libc::__errno_location()
                } else {
                    0
                };
                libc::syscall(
                    libc::SYS_write,
                    tell.as_raw_fd(),
                    &raw const result,
                    size_of::<i64>(),
                );
                loop {
                    libc::syscall(libc::SYS_exit_group, i64::from(status & 0xff));
                }
            }
        }
        made?;
        use nix::sys::wait::{WaitStatus, waitpid};
        loop {
            match waitpid(pid.nix(), None) {
                Ok(WaitStatus::Exited(_, 0)) => {
                    let mut result = [0; size_of::<i64>()];
                    nix::unistd::read(&told, &mut result)?;
                    return Ok(i64::from_ne_bytes(result));
                }
                Ok(WaitStatus::Exited(_, status)) => return Err(Errno::from_raw(status)),
                Err(Errno::EINTR) => {}
                Ok(_) => return Err(Errno::ECHILD),
                Err(e) => return Err(e),
            }
        }
    }
}

fn fresh(mode: u32) -> u32 {
    mode & 0o777 | (libc::IPC_CREAT | libc::IPC_EXCL) as u32
}

/// How many semaphores a set has; 0 if it cannot be asked.
fn sem_count(id: i32) -> usize {
    // SAFETY: all zeros are a valid semid_ds, which the call fills.
    unsafe {
        let mut ds: libc::semid_ds = std::mem::zeroed();
        let asked = raw(
            libc::SYS_semctl,
            [id as u64, 0, libc::IPC_STAT as u64, &raw mut ds as u64, 0, 0],
        );
        asked.map_or(0, |_| ds.sem_nsems as usize)
    }
}

/// Runs `work` on a thread whose effective ids are these: what it makes is theirs.
fn as_user<T: Send>(uid: u32, gid: u32, work: impl FnOnce() -> Sys<T> + Send) -> Sys<T> {
    let own = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    if own == (uid, gid) {
        return work();
    }
    let become_user = || {
        const KEEP: u64 = u64::MAX;
        // Of this thread alone: the C library's wrappers would change them all.
        plain(libc::SYS_setresgid, [KEEP, u64::from(gid), KEEP, 0, 0, 0])?;
        plain(libc::SYS_setresuid, [KEEP, u64::from(uid), KEEP, 0, 0, 0])?;
        work()
    };
    std::thread::scope(|s| s.spawn(become_user).join()).unwrap_or(Err(Errno::EIO))
}

/// Runs `work` on a thread that is in the namespace `ns`, of the kind `kind` (CLONE_NEW*).
pub fn within<T: Send>(ns: BorrowedFd<'_>, kind: i32, work: impl FnOnce() -> T + Send) -> Sys<T> {
    let inside = || {
        plain(libc::SYS_setns, [ns.as_raw_fd() as u64, kind as u64, 0, 0, 0, 0])?;
        Ok(work())
    };
    std::thread::scope(|s| s.spawn(inside).join()).unwrap_or(Err(Errno::EIO))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A queue that is removed in the end.
    struct Queue(i32);
    impl Drop for Queue {
        fn drop(&mut self) {
            let _ = msg_remove(self.0);
        }
    }

    #[test]
    fn a_message_can_be_looked_at_and_stays() {
        let q = Queue(Call::msg_make(0, 0o600).make().unwrap() as i32);
        Call::msg_send(q.0, 5, b"one").make().unwrap();
        Call::msg_send(q.0, 3, b"").make().unwrap();
        assert_eq!(msg_peek(q.0, 1, 10), Ok((3, vec![])));
        assert_eq!(msg_peek(q.0, 0, 10), Ok((5, b"one".to_vec())));
        assert_eq!(msg_peek(q.0, 2, 10), Err(Errno::ENOMSG));
        Call::msg_take_empty(q.0, 3).make().unwrap();
        assert_eq!(msg_take(q.0, 10, 0), Ok((5, b"one".to_vec())));
    }
}
