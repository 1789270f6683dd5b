//! What all processes of the machine have open, in one go of an eBPF iterator (`iter/task_file`).
//!
//! /proc tells of one descriptor at a time: to go through 80,000 of them for who else holds a pipe takes 0.29 s, by the
//! iterator 0.05 s. For pipes and sockets nothing else is asked. It has each file in hand for the moment in which it is
//! told, as a reader of /proc/PID/fdinfo has: who closes one just then has it closed a microsecond later.

use super::btf::Btf;
use super::index::Other;
use crate::ids::Pid;
use crate::sys::bpf::{Descriptor, FileIterator, FileOffsets};
use std::os::unix::ffi::OsStringExt;
use std::sync::OnceLock;

/// The way of this process to sweep; none where the kernel grants no such iterator.
#[derive(Debug)]
pub struct Sweep(FileIterator);

static SWEEP: OnceLock<Option<Sweep>> = OnceLock::new();

const PIPES: u32 = 0x5049_5045;
const SOCKETS: u32 = 0x534f_434b;
const NAMELESS: u32 = 0x0904_1934;
const QUEUES: u32 = 0x1980_0202;

impl Sweep {
    /// It takes some milliseconds to prepare, once.
    pub fn get() -> Option<&'static Sweep> {
        SWEEP.get_or_init(Sweep::start).as_ref()
    }

    /// The same if somebody has asked for it before.
    pub fn ready() -> Option<&'static Sweep> {
        SWEEP.get()?.as_ref()
    }

    fn start() -> Option<Sweep> {
        // It tells pids of the first pid namespace; /proc shows those of ours.
        if !in_first_pid_namespace() {
            return None;
        }
        let btf = Btf::running().ok()?;
        let target = "bpf_iter_task_file";
        let id = *btf.ids(true, &[target]).get(target)?;
        let members = [
            ("task_struct", "tgid"),
            ("file", "f_inode"),
            ("inode", "i_ino"),
            ("inode", "i_mode"),
            ("inode", "i_sb"),
            ("super_block", "s_magic"),
        ];
        let found = btf.offsets(&members);
        let at = |n: usize| found.get(&members[n]).copied();
        let offsets = FileOffsets {
            process: at(0)?,
            inode: at(1)?,
            number: at(2)?,
            mode: at(3)?,
            filesystem: at(4)?,
            magic: at(5)?,
        };
        // Those have the mode of a regular file, by the kernel: what has no name (since Linux 6.16), message queues.
        FileIterator::new(id, offsets, &[NAMELESS, QUEUES])
            .inspect_err(|errno| tracing::debug!(%errno, "no iterator over open files: they come from /proc"))
            .ok()
            .map(Sweep)
    }

    /// What is open in processes that are `wanted`, but for files and directories that have names; `None` if that could not
    /// be learned.
    pub fn read(&self, wanted: impl Fn(Pid) -> bool) -> Option<Vec<Other>> {
        let all = self
            .0
            .read()
            .inspect_err(|errno| tracing::debug!(%errno, "open files are read from /proc"));
        let mut out = Vec::new();
        let mut all = all.ok()?;
        // Of a process whose first thread has ended it is told once for each other thread.
        all.sort_unstable();
        all.dedup();
        for same in all.chunk_by(|a, b| a.process == b.process) {
            let pid = Pid(same[0].process as i32);
            if wanted(pid) {
                out.extend(same.iter().filter_map(|d| named(pid, d)));
            }
        }
        Some(out)
    }
}

/// Whether this process calls others by the numbers that eBPF programs have for them.
pub(super) fn in_first_pid_namespace() -> bool {
    const FIRST: u64 = 0xeffffffc;
    nix::sys::stat::stat("/proc/self/ns/pid").is_ok_and(|ours| ours.st_ino == FIRST)
}

/// The same with the text of its link; `None` of one that has been closed.
fn named(pid: Pid, d: &Descriptor) -> Option<Other> {
    let fd = d.fd as i32;
    let link = match d.magic {
        PIPES => format!("pipe:[{}]", d.inode).into_bytes(),
        SOCKETS => format!("socket:[{}]", d.inode).into_bytes(),
        _ => std::fs::read_link(format!("/proc/{pid}/fd/{fd}"))
            .ok()?
            .into_os_string()
            .into_vec(),
    };
    Some(Other { pid, fd, link })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::index::in_proc;

    /// All that a process of ours has open is told, as /proc has it.
    #[test]
    fn what_is_swept_is_what_proc_shows() {
        let Some(sweep) = Sweep::get() else { return };
        let mut child = std::process::Command::new("python3");
        child.args(["-c", PROGRAM]).stdin(std::process::Stdio::piped());
        child
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null());
        let mut child = child.spawn().unwrap();
        let mut said = [0; 3];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut said).unwrap();
        let pid = Pid(child.id() as i32);
        let key = |o: &Other| (o.fd, o.link.clone());
        let swept: Vec<_> = sweep.read(|p| p == pid).unwrap().iter().map(key).collect();
        let mut shown: Vec<_> = in_proc(pid).unwrap().iter().map(key).collect();
        child.kill().unwrap();
        child.wait().unwrap();
        shown.sort();
        let has_name = |link: &[u8]| link.starts_with(b"/") && !link.starts_with(b"/dev/");
        let (named, rest): (Vec<_>, Vec<_>) = shown.into_iter().partition(|(_, link)| has_name(link));
        assert_eq!(swept, rest);
        let links: Vec<_> = rest
            .iter()
            .map(|(_, link)| String::from_utf8_lossy(link).into_owned())
            .collect();
        for each in [
            "pipe:[",
            "socket:[",
            "anon_inode:[eventfd]",
            "anon_inode:[eventpoll]",
            "/dev/null",
            "/dev/pt",
        ] {
            assert!(links.iter().any(|l| l.starts_with(each)), "{each}: {links:?}");
        }
        assert_eq!(named.len(), 4);
    }

    const PROGRAM: &str = "
import os, select, socket, time
os.closerange(3, 1000)
open_ones = [os.pipe(), socket.socketpair(), os.eventfd(0), select.epoll(), os.open('/dev/null', os.O_RDWR),
    os.open('/dev/ptmx', os.O_RDWR | os.O_NOCTTY), os.open('/tmp', os.O_RDONLY), os.open('/usr/bin/python3', os.O_RDONLY),
    os.memfd_create('x'), os.open('/tmp', os.O_PATH)]
print('up', flush=True)
time.sleep(1000)
";
}
