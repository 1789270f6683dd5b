//! What aya does not wrap: iterators over one process, and trying out what bpf(2) grants.
#![allow(unsafe_code, reason = "raw system calls have their address here")]

pub mod kin;

use super::raw;
use crate::error::errno;
use crate::ids::Pid;

use std::ffi::CStr;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

type Sys<T> = nix::Result<T>;

const BPF_PROG_TYPE_TRACING: u32 = 26;
const BPF_TRACE_ITER: u32 = 28;

fn owned(fd: i64) -> OwnedFd {
    // SAFETY: the kernel just made this descriptor for us and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd as RawFd) }
}

/// Starts an iterator program over the threads (and their files) of one process; reading runs it.
pub fn iterate_process(program: BorrowedFd<'_>, process: Pid) -> Sys<OwnedFd> {
    iterate(program, [0, process.0 as u32, 0, 0])
}

/// Starts an iterator; `task` is the member of that name of `struct bpf_iter_link_info`: tid, pid (a thread group), pid_fd.
///
/// `BPF_LINK_CREATE` with `bpf_iter_link_info.task` (Linux 6.1), then `BPF_ITER_CREATE`.
fn iterate(program: BorrowedFd<'_>, task: [u32; 4]) -> Sys<OwnedFd> {
    const BPF_LINK_CREATE: u64 = 28;
    const BPF_ITER_CREATE: u64 = 33;
    // union bpf_attr, link_create member: prog_fd, target_fd, attach_type, flags, iter_info, its length.
    let mut attr = [0u64; 6];
    attr[0] = u64::from(program.as_raw_fd() as u32);
    attr[1] = u64::from(BPF_TRACE_ITER);
    attr[2] = task.as_ptr() as u64;
    attr[3] = size_of_val(&task) as u64;
    // SAFETY: `attr` and `task` live through the call and have the lengths given.
    let link = unsafe {
        raw(
            libc::SYS_bpf,
            [
                BPF_LINK_CREATE,
                attr.as_ptr() as u64,
                size_of_val(&attr) as u64,
                0,
                0,
                0,
            ],
        )
    }
    .map(owned)?;
    // iter_create member: link_fd, flags.
    let attr: [u32; 2] = [link.as_raw_fd() as u32, 0];
    // SAFETY: as above.
    unsafe {
        raw(
            libc::SYS_bpf,
            [
                BPF_ITER_CREATE,
                attr.as_ptr() as u64,
                size_of_val(&attr) as u64,
                0,
                0,
                0,
            ],
        )
    }
    .map(owned)
}

/// A program that tells start, end and flags of every vma of a thread's address space.
#[derive(Debug)]
pub struct VmaIterator(OwnedFd);

impl VmaIterator {
    /// `target` is the number of the function `bpf_iter_task_vma` in the kernel's BTF, `offsets` those of `vm_start`,
    /// `vm_end` and `vm_flags` in `struct vm_area_struct`.
    pub fn new(target: u32, offsets: [u32; 3]) -> Sys<VmaIterator> {
        const SEQ_WRITE: i32 = 127;
        let mut code = vec![
            op(0x79, 7, 1, 16, 0), // r7 = context->vma
            op(0x15, 7, 0, 13, 0), // none: to the last two
            op(0x79, 8, 1, 0, 0),  // r8 = context->meta
            op(0x79, 8, 8, 0, 0),  // r8 = r8->seq
        ];
        for (n, offset) in offsets.into_iter().enumerate() {
            let offset = i16::try_from(offset).map_err(|_| nix::errno::Errno::ERANGE)?;
            code.push(op(0x79, 1, 7, offset, 0));
            code.push(op(0x7b, 10, 1, 8 * n as i16 - 24, 0));
        }
        code.extend([
            op(0xbf, 1, 8, 0, 0),
            op(0xbf, 2, 10, 0, 0),
            op(0x07, 2, 0, 0, -24),
            op(0xb7, 3, 0, 0, 24),
            op(0x85, 0, 0, 0, SEQ_WRITE), // what finds no room is written again when there is some
            op(0xb7, 0, 0, 0, 0),
            op(0x95, 0, 0, 0, 0),
        ]);
        load(BPF_PROG_TYPE_TRACING, &code, |attr| {
            attr[17] = BPF_TRACE_ITER;
            attr[27] = target;
        })
        .map(VmaIterator)
    }

    /// What it tells of the address space of a thread, in order of address; nothing if there is no such thread.
    ///
    /// EAGAIN if mappings change meanwhile: the kernel shows one that has grown again, and would show one that does not
    /// cease to grow for ever.
    pub fn read(&self, thread: Pid) -> Sys<Vec<[u64; 3]>> {
        const ONE: usize = 24;
        let mut file = std::fs::File::from(iterate(self.0.as_fd(), [thread.0 as u32, 0, 0, 0])?);
        let mut out: Vec<[u64; 3]> = Vec::new();
        let (mut part, mut have) = ([0; 1024 * ONE], 0);
        loop {
            let n = file.read(&mut part[have..]).map_err(errno)?;
            if n == 0 {
                return Ok(out);
            }
            have += n;
            let whole = have / ONE * ONE;
            for entry in part[..whole].chunks_exact(ONE) {
                let word = |n: usize| entry[8 * n..].first_chunk().map_or(0, |w| u64::from_ne_bytes(*w));
                if out.last().is_some_and(|[_, end, _]| word(0) < *end) {
                    return Err(nix::errno::Errno::EAGAIN);
                }
                out.push([word(0), word(1), word(2)]);
            }
            part.copy_within(whole..have, 0);
            have -= whole;
        }
    }
}

/// A program that tells of every descriptor on the machine but those of files and directories that have names.
#[derive(Debug)]
pub struct FileIterator(OwnedFd);

/// Where members lie that [`FileIterator`] goes by.
#[derive(Clone, Copy, Debug)]
pub struct FileOffsets {
    /// `task_struct.tgid`
    pub process: u32,
    /// `file.f_inode`
    pub inode: u32,
    /// `inode.i_ino`
    pub number: u32,
    /// `inode.i_mode`
    pub mode: u32,
    /// `inode.i_sb`
    pub filesystem: u32,
    /// `super_block.s_magic`
    pub magic: u32,
}

/// One descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Descriptor {
    /// In the first pid namespace.
    pub process: u32,
    pub fd: u32,
    /// What sort of file system it is on (statfs(2), `f_type`).
    pub magic: u32,
    pub inode: u64,
}

impl FileIterator {
    /// `target` is the number of the function `bpf_iter_task_file` in the kernel's BTF. Regular files are told of if they are
    /// on a file system of one of the sorts `beside`.
    pub fn new(target: u32, at: FileOffsets, beside: &[u32]) -> Sys<FileIterator> {
        const SEQ_WRITE: i32 = 127;
        let near = |offset: u32| i16::try_from(offset).map_err(|_| nix::errno::Errno::ERANGE);
        let mut code = vec![
            op(0x79, 7, 1, 24, 0), // r7 = context->file
            op(0x79, 6, 1, 8, 0),  // r6 = context->task
            op(0x61, 9, 1, 16, 0), // r9 = context->fd
            op(0x79, 8, 1, 0, 0),  // r8 = context->meta
            op(0x79, 8, 8, 0, 0),  // r8 = r8->seq
        ];
        // What is told is put together on the stack, 24 bytes: process, descriptor, mode, sort, number.
        let look = [
            op(0x61, 1, 6, near(at.process)?, 0),
            op(0x63, 10, 1, -24, 0),
            op(0x63, 10, 9, -20, 0),
            op(0x79, 7, 7, near(at.inode)?, 0), // r7 = r7->f_inode
            op(0x79, 1, 7, near(at.number)?, 0),
            op(0x7b, 10, 1, -8, 0),
            op(0x69, 2, 7, near(at.mode)?, 0), // r2 = r7->i_mode
            op(0x63, 10, 2, -16, 0),
            op(0x79, 3, 7, near(at.filesystem)?, 0),
            op(0x79, 3, 3, near(at.magic)?, 0), // r3 = r7->i_sb->s_magic
            op(0x63, 10, 3, -12, 0),
            op(0x57, 2, 0, 0, libc::S_IFMT as i32), // r2 &= S_IFMT
        ];
        let tell = [
            op(0xbf, 1, 8, 0, 0),
            op(0xbf, 2, 10, 0, 0),
            op(0x07, 2, 0, 0, -24),
            op(0xb7, 3, 0, 0, 24),
            op(0x85, 0, 0, 0, SEQ_WRITE),
        ];
        let unwanted = [libc::S_IFDIR, libc::S_IFLNK, libc::S_IFBLK];
        // Where the instructions that tell begin, and where they end; a jump counts from the one behind it.
        let telling = code.len() + 2 + look.len() + unwanted.len() + 1 + beside.len() + 1;
        let end = telling + tell.len();
        let from = |at: usize, to: usize| (to - at - 1) as i16;
        code.push(op(0x15, 7, 0, from(code.len(), end), 0));
        code.push(op(0x15, 6, 0, from(code.len(), end), 0));
        code.extend(look);
        for kind in unwanted {
            code.push(op(0x15, 2, 0, from(code.len(), end), kind as i32));
        }
        code.push(op(0x55, 2, 0, from(code.len(), telling), libc::S_IFREG as i32));
        for magic in beside {
            code.push(op(0x15, 3, 0, from(code.len(), telling), *magic as i32));
        }
        code.push(op(0x05, 0, 0, from(code.len(), end), 0));
        code.extend(tell);
        code.extend([op(0xb7, 0, 0, 0, 0), op(0x95, 0, 0, 0, 0)]);
        load(BPF_PROG_TYPE_TRACING, &code, |attr| {
            attr[17] = BPF_TRACE_ITER;
            attr[27] = target;
        })
        .map(FileIterator)
    }

    /// Those of all processes, by process.
    pub fn read(&self) -> Sys<Vec<Descriptor>> {
        let mut bytes = Vec::new();
        let mut file = std::fs::File::from(iterate(self.0.as_fd(), [0; 4])?);
        file.read_to_end(&mut bytes).map_err(errno)?;
        let one = |entry: &[u8; 24]| {
            let number = |n: usize| entry[4 * n..].first_chunk().map_or(0, |w| u32::from_ne_bytes(*w));
            Descriptor {
                process: number(0),
                fd: number(1),
                magic: number(3),
                inode: u64::from(number(4)) | u64::from(number(5)) << 32,
            }
        };
        Ok(bytes.as_chunks().0.iter().map(one).collect())
    }
}

/// A file that never changes, mapped for reading.
#[derive(Debug)]
pub struct Constant {
    at: usize,
    len: usize,
}

impl Constant {
    /// The types of the running kernel, without a copy of them (Linux 6.16).
    pub fn kernel_types(path: &str) -> Sys<Constant> {
        let file = std::fs::File::open(path).map_err(errno)?;
        let len = file.metadata().map_err(errno)?.len();
        let (prot, flags) = (libc::PROT_READ as u64, libc::MAP_PRIVATE as u64);
        // SAFETY: a new mapping at a place of the kernel's choice.
        let at = unsafe { raw(libc::SYS_mmap, [0, len, prot, flags, file.as_raw_fd() as u64, 0])? };
        Ok(Constant {
            at: at as usize,
            len: len as usize,
        })
    }
}

impl std::ops::Deref for Constant {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: a mapping of ours of that length, of memory that the kernel wrote when it was built.
        unsafe { std::slice::from_raw_parts(self.at as *const u8, self.len) }
    }
}

impl Drop for Constant {
    fn drop(&mut self) {
        // SAFETY: this mapping is ours alone, and whoever borrowed from it has let go.
        let _ = unsafe { raw(libc::SYS_munmap, [self.at as u64, self.len as u64, 0, 0, 0, 0]) };
    }
}

/// Gives memory that was freed back to the system (the kernel's BTF is large and read once).
pub fn trim() {
    // SAFETY: no requirements.
    unsafe { libc::malloc_trim(0) };
}

/// Loads a program of `kind` that only returns 0, to learn whether the kernel grants that kind.
///
/// `attach` is the expected attach type, `btf_id` what it would attach to in the kernel's BTF, 0 for none.
pub fn try_program(kind: u32, attach: u32, btf_id: u32) -> Sys<OwnedFd> {
    // r0 = 0; exit
    load(kind, &[0xb7, 0x95], |attr| {
        attr[17] = attach;
        attr[27] = btf_id;
    })
}

/// Loads a program of `kind`; `more` adds what else is to be said, in the part of union bpf_attr for BPF_PROG_LOAD, as
/// 32-bit words.
fn load(kind: u32, code: &[u64], more: impl FnOnce(&mut [u32; 32])) -> Sys<OwnedFd> {
    const BPF_PROG_LOAD: u64 = 5;
    let license = c"GPL";
    let (at, text) = (code.as_ptr() as u64, license.as_ptr() as u64);
    let mut attr = [0u32; 32];
    attr[..2].copy_from_slice(&[kind, code.len() as u32]);
    attr[2..6].copy_from_slice(&[at as u32, (at >> 32) as u32, text as u32, (text >> 32) as u32]);
    more(&mut attr);
    // SAFETY: `attr`, `code` and `license` live through the call and have the lengths given.
    unsafe {
        let len = size_of_val(&attr) as u64;
        raw(libc::SYS_bpf, [BPF_PROG_LOAD, attr.as_ptr() as u64, len, 0, 0, 0])
    }
    .map(owned)
}

/// Attaches a raw-tracepoint program (also a BTF one, with an empty name) until the fd is closed.
pub fn attach_raw(program: BorrowedFd<'_>, name: Option<&CStr>) -> Sys<OwnedFd> {
    const BPF_RAW_TRACEPOINT_OPEN: u64 = 17;
    let attr: [u64; 2] = [name.map_or(0, |n| n.as_ptr() as u64), program.as_raw_fd() as u64];
    // SAFETY: `attr` and the name live through the call.
    unsafe {
        raw(
            libc::SYS_bpf,
            [
                BPF_RAW_TRACEPOINT_OPEN,
                attr.as_ptr() as u64,
                size_of_val(&attr) as u64,
                0,
                0,
                0,
            ],
        )
    }
    .map(owned)
}

/// Reads the value of a key of 32 bits from a map whose values are `N` words of 64.
pub fn lookup<const N: usize>(map: BorrowedFd<'_>, key: u32) -> Sys<[u64; N]> {
    const BPF_MAP_LOOKUP_ELEM: u64 = 1;
    let mut value = [0u64; N];
    // union bpf_attr, member of the map commands: map_fd, key, value, flags.
    let attr: [u64; 4] = [
        u64::from(map.as_raw_fd() as u32),
        &raw const key as u64,
        value.as_mut_ptr() as u64,
        0,
    ];
    // SAFETY: key and value live through the call; that the map's have these sizes is what the caller says.
    unsafe {
        let len = size_of_val(&attr) as u64;
        raw(
            libc::SYS_bpf,
            [BPF_MAP_LOOKUP_ELEM, attr.as_ptr() as u64, len, 0, 0, 0],
        )?;
    }
    Ok(value)
}

/// Makes a map, to learn whether the kernel grants its kind.
pub fn try_map(kind: u32, key: u32, value: u32, entries: u32) -> Sys<OwnedFd> {
    let attr: [u32; 5] = [kind, key, value, entries, 0];
    // SAFETY: `attr` lives through the call.
    unsafe {
        raw(
            libc::SYS_bpf,
            [0, attr.as_ptr() as u64, size_of_val(&attr) as u64, 0, 0, 0],
        )
    }
    .map(owned)
}

/// The most that [`KernelReader::read`] brings at once.
const AT_ONCE: usize = 256;

/// A program that reads kernel memory for us, and nothing else; it looks, and cannot change anything.
#[derive(Debug)]
pub struct KernelReader(OwnedFd);

impl KernelReader {
    /// Needs CAP_BPF and CAP_PERFMON, Linux 5.14, and a lockdown below "confidentiality".
    pub fn new() -> Sys<KernelReader> {
        const BPF_PROG_TYPE_SYSCALL: u32 = 31;
        const BPF_F_SLEEPABLE: u32 = 1 << 4;
        load(BPF_PROG_TYPE_SYSCALL, &program(), |attr| {
            attr[11] = BPF_F_SLEEPABLE
        })
        .map(KernelReader)
    }

    /// The `task_struct` of the calling thread.
    pub fn current(&self) -> Sys<u64> {
        self.run(0, 0).map(|context| context[1])
    }

    /// Fills `into` from a kernel address; EFAULT if there is nothing.
    pub fn read(&self, at: u64, into: &mut [u8]) -> Sys<()> {
        for (n, part) in into.chunks_mut(AT_ONCE).enumerate() {
            let from = at.wrapping_add((n * AT_ONCE) as u64);
            if from == 0 {
                return Err(nix::errno::Errno::EFAULT);
            }
            let context = self.run(from, part.len() as u64)?;
            if context[1] != 0 {
                return Err(nix::errno::Errno::EFAULT);
            }
            let bytes = context[2..].iter().flat_map(|w| w.to_ne_bytes());
            part.iter_mut().zip(bytes).for_each(|(to, b)| *to = b);
        }
        Ok(())
    }

    fn run(&self, address: u64, length: u64) -> Sys<[u64; 2 + AT_ONCE / 8]> {
        const BPF_PROG_TEST_RUN: u64 = 10;
        let mut context = [0u64; 2 + AT_ONCE / 8];
        context[0] = address;
        context[1] = length;
        // union bpf_attr, test member: prog_fd at 0, ctx_size_in at 40, ctx_in at 48.
        let mut attr = [0u64; 10];
        attr[0] = u64::from(self.0.as_raw_fd() as u32);
        attr[5] = size_of_val(&context) as u64;
        attr[6] = context.as_mut_ptr() as u64;
        // SAFETY: `attr` and `context`, into which the program writes, live through the call.
        unsafe {
            let len = size_of_val(&attr) as u64;
            raw(
                libc::SYS_bpf,
                [BPF_PROG_TEST_RUN, attr.as_ptr() as u64, len, 0, 0, 0],
            )?;
        }
        Ok(context)
    }
}

/// One instruction: code, registers, offset and immediate value.
fn op(code: u64, to: u64, from: u64, offset: i16, value: i32) -> u64 {
    code | to << 8 | from << 12 | u64::from(offset as u16) << 16 | u64::from(value as u32) << 32
}

/// With an address of 0 it tells the current task; else it reads as many bytes from there, onto its stack first.
fn program() -> Vec<u64> {
    const GET_CURRENT_TASK: i32 = 35;
    const PROBE_READ_KERNEL: i32 = 113;
    let copies = (AT_ONCE / 8) as i16;
    let mut code = vec![
        op(0xbf, 6, 1, 0, 0), // r6 = context
        op(0x79, 3, 6, 0, 0), // r3 = address
        op(0x55, 3, 0, 3, 0), // if r3 != 0 go on below
        op(0x85, 0, 0, 0, GET_CURRENT_TASK),
        op(0x7b, 6, 0, 8, 0), // context[1] = r0
        op(0x05, 0, 0, 6 + 2 * copies, 0),
        op(0x79, 2, 6, 8, 0), // r2 = length
        op(0x25, 2, 0, 4 + 2 * copies, AT_ONCE as i32),
        op(0xbf, 1, 10, 0, 0), // r1 = frame
        op(0x07, 1, 0, 0, -(AT_ONCE as i32)),
        op(0x85, 0, 0, 0, PROBE_READ_KERNEL),
        op(0x7b, 6, 0, 8, 0),
    ];
    for n in 0..copies {
        code.push(op(0x79, 1, 10, 8 * n - AT_ONCE as i16, 0));
        code.push(op(0x7b, 6, 1, 16 + 8 * n, 0));
    }
    code.push(op(0xb7, 0, 0, 0, 0)); // r0 = 0
    code.push(op(0x95, 0, 0, 0, 0)); // exit
    code
}
