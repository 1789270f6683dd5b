//! What crosses from the kernel programs to the agent: fixed layouts, no policy.
#![no_std]

#[cfg(feature = "read")]
use zerocopy::{FromBytes, Immutable, KnownLayout};

/// Gives a record its layout, its reader's traits and the size both sides were built with.
macro_rules! record {
    ($(#[$doc:meta])* $name:ident, $size:literal { $($(#[$fdoc:meta])* $field:ident: $ty:ty,)* }) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[cfg_attr(feature = "read", derive(FromBytes, Immutable, KnownLayout))]
        pub struct $name { $($(#[$fdoc])* pub $field: $ty,)* }
        const _: () = assert!(size_of::<$name>() == $size && align_of::<$name>() <= 8);
    };
}

/// What a record in the ring is about; the first word of its [`Head`].
pub mod kind {
    /// A process or thread was made: [`super::Fork`].
    pub const FORK: u32 = 1;
    /// A program was executed: [`super::Exec`].
    pub const EXEC: u32 = 2;
    /// A thread is ending: [`super::Exit`].
    pub const EXIT: u32 = 3;
    /// The last of a process is gone, it has been waited for: [`super::Head`] alone.
    pub const FREED: u32 = 4;
    /// A thread has a new name: [`super::Exec`].
    pub const RENAME: u32 = 5;
    /// Process group or session may have changed: [`super::Head`] alone.
    pub const IDS: u32 = 6;
    /// What an fd now stands for: [`super::Fd`].
    pub const FD: u32 = 7;
    /// The fd table changed in a way that is cheaper to read anew: [`super::Head`] alone.
    pub const TABLE: u32 = 8;
    /// Iterator: one thread, [`super::Task`].
    pub const TASK: u32 = 9;
}

record! {
    /// The beginning of every record.
    Head, 24 {
        kind: u32,
        /// Process id in the initial pid namespace.
        tgid: u32,
        /// Thread id in the initial pid namespace.
        tid: u32,
        /// The system call that led to it, or 0.
        call: u32,
        /// Nanoseconds of `bpf_ktime_get_ns`: comparable only with each other.
        time: u64,
    }
}

record! {
    /// A new process or thread; the head names the thread that made it.
    Fork, 72 {
        head: Head,
        child_tgid: u32,
        child_tid: u32,
        /// Process id of the child's parent (not always the maker: `CLONE_PARENT`).
        ppid: u32,
        /// Threads of the maker's process: with more than one, the fd table may have changed meanwhile.
        threads: u32,
        /// The maker's fd table, as an address that is only compared.
        parent_files: u64,
        files: u64,
        comm: [u8; 16],
    }
}

record! {
    /// The name of a thread after exec or a change of name.
    Exec, 40 {
        head: Head,
        comm: [u8; 16],
    }
}

record! {
    /// The end of a thread.
    Exit, 32 {
        head: Head,
        /// As `wait` gives it: low 7 bits the signal, bit 7 core dumped, next byte the exit code.
        status: u32,
        /// Nonzero if no other thread of the process is left.
        last: u32,
    }
}

record! {
    /// What an fd stands for, read after the change that it reports.
    Fd, 64 {
        head: Head,
        /// The fd table, as an address that is only compared.
        files: u64,
        /// The open file description, as an address that is only compared; 0: the fd is closed.
        file: u64,
        inode: u64,
        fd: u32,
        /// File type and permissions of the inode.
        mode: u32,
        /// `f_flags`.
        flags: u32,
        _pad: u32,
    }
}

record! {
    /// One thread as an iterator found it.
    Task, 64 {
        head: Head,
        ppid: u32,
        /// Nonzero once no thread of the process is alive.
        dead: u32,
        files: u64,
        /// The address space, as an address that is only compared; 0: none.
        mm: u64,
        comm: [u8; 16],
    }
}

record! {
    /// A page fault for writing.
    Fault, 16 {
        /// The number its address space was followed under.
        space: u32,
        /// The thread that met it, by its number in the initial namespace: it is done with it when it meets the next one.
        thread: u32,
        /// The address of the page; in its lowest bits the error code of the fault ([`PRESENT`], bit 1 write, …).
        place: u64,
    }
}

/// Of a fault's error code: there was a page.
pub const PRESENT: u64 = 1;
/// Of a fault's error code: it was a write.
pub const WRITE: u64 = 2;

record! {
    /// Something other than a fault that may have changed a followed address space.
    Change, 24 {
        /// The number its address space was followed under.
        space: u32,
        /// The system call that is doing it, or [`UNDECODED`].
        call: u32,
        /// What it is about; where it is not decoded, the number of the call, and 1 if the process made it itself.
        start: u64,
        length: u64,
    }
}

/// Somebody else, or a call whose effect on memory is not told by its arguments.
pub const UNDECODED: u32 = u32::MAX;

record! {
    /// What the kernel programs keep about a watched process.
    Watched, 16 {
        /// The root it is watched for; children inherit it.
        root: u32,
        /// Nonzero after its last thread ended, until it is freed.
        dead: u32,
        /// Grows with each call and signal that may change what only the process itself can tell; it begins with the time,
        /// so that no two watches ever meet at one number.
        changes: u64,
    }
}

/// Members of kernel structures whose offsets the programs are told when they are loaded.
///
/// Programs written in Rust carry no CO-RE relocations, so the agent looks these up in the running
/// kernel's BTF.
#[repr(usize)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Member {
    TaskTgid,
    TaskPid,
    TaskFiles,
    TaskMm,
    TaskSignal,
    TaskExitCode,
    TaskGroupLeader,
    TaskRealParent,
    TaskComm,
    SignalLive,
    SignalExitCode,
    SignalFlags,
    SignalThreads,
    FilesFdt,
    FdtMax,
    FdtFd,
    FileInode,
    FileFlags,
    InodeIno,
    InodeMode,
}

/// How many members there are.
pub const MEMBERS: usize = Member::InodeMode as usize + 1;

impl Member {
    /// Every member with the structure it is in and its name there, in the order of the enum.
    pub const ALL: [(Member, &'static str, &'static str); MEMBERS] = [
        (Member::TaskTgid, "task_struct", "tgid"),
        (Member::TaskPid, "task_struct", "pid"),
        (Member::TaskFiles, "task_struct", "files"),
        (Member::TaskMm, "task_struct", "mm"),
        (Member::TaskSignal, "task_struct", "signal"),
        (Member::TaskExitCode, "task_struct", "exit_code"),
        (Member::TaskGroupLeader, "task_struct", "group_leader"),
        (Member::TaskRealParent, "task_struct", "real_parent"),
        (Member::TaskComm, "task_struct", "comm"),
        (Member::SignalLive, "signal_struct", "live"),
        (Member::SignalExitCode, "signal_struct", "group_exit_code"),
        (Member::SignalFlags, "signal_struct", "flags"),
        (Member::SignalThreads, "signal_struct", "nr_threads"),
        (Member::FilesFdt, "files_struct", "fdt"),
        (Member::FdtMax, "fdtable", "max_fds"),
        (Member::FdtFd, "fdtable", "fd"),
        (Member::FileInode, "file", "f_inode"),
        (Member::FileFlags, "file", "f_flags"),
        (Member::InodeIno, "inode", "i_ino"),
        (Member::InodeMode, "inode", "i_mode"),
    ];
}

const _: () = {
    let mut i = 0;
    while i < MEMBERS {
        assert!(Member::ALL[i].0 as usize == i);
        i += 1;
    }
};
