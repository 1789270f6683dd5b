//! Devices that keep nothing for whoever has them open but a position: memory devices, disks, some others.

use super::path::NodeRef;
use super::{FdKind, Placed, Source};
use crate::error::{Blocker, Context, Result};
use crate::ids::FileId;
use crate::nest::{Nest, Options};
use crate::observe::peek::Peek;
use crate::observe::view::{FdView, FileStat, View};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, major, minor};
use nix::unistd::Whence;
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

#[derive(Debug)]
pub struct Device;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub path: PathBuf,
    /// Major and minor number.
    pub number: (u64, u64),
    pub flags: i32,
    /// The number of the tree of files (mount namespace) it is in.
    #[serde(default)]
    pub tree: u32,
    #[serde(default)]
    pub block: bool,
    #[serde(default)]
    pub position: i64,
    /// How the node is found or made again; images from before this was recorded have none, and its path leads there.
    #[serde(default)]
    pub node: Option<NodeRef>,
    /// Of a reader of /dev/kmsg: the number of the record it gets next.
    #[serde(default)]
    pub log: Option<u64>,
    /// What was asked of /dev/cpu_dma_latency, in microseconds.
    #[serde(default)]
    pub latency: Option<i32>,
    /// What the kernel calls it, if it is one of those that each boot numbers anew.
    #[serde(default)]
    pub name: Option<String>,
}

impl Record {
    /// Whether it is the device of this number here: by name, where both have one (/sys may not be mounted).
    fn is(&self, number: (u64, u64)) -> bool {
        match (&self.name, misc(number)) {
            (Some(then), Some(now)) => *then == now,
            _ => number == self.number,
        }
    }
}

/// Minor numbers of the memory devices (major 1) that keep nothing between two calls.
const STATELESS: [u64; 5] = [3, 5, 7, 8, 9];

/// What an open device remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Memory {
    Nothing,
    Position,
    /// The wish that holds as long as it is open.
    Latency,
    /// Its place in the kernel's log.
    Log,
}

/// Names of miscellaneous devices (major 10) that keep nothing for whoever has them open.
const PLAIN: [&str; 8] = [
    "autofs",
    "btrfs-control",
    "hw_random",
    "hwrng",
    "kvm",
    "loop-control",
    "mapper/control",
    "vsock",
];

impl FdKind for Device {
    const TAG: &'static str = "device";
    const VERSION: u16 = 1;
    const ABOUT: &'static str = "devices, and nodes that were unlinked since: /dev/null, zero, full, random, urandom, mem, \
        port, kmsg (for reading where the kernel lets freeze look at it), hwrng, kvm, loop-control, cpu_dma_latency with its wish, block devices with position \
        (not one held for somebody alone, O_EXCL, or that a loop device lets go of when it is closed)";
    type Record = Record;

    fn claims(fd: &FdView) -> bool {
        match fd.stat.kind() {
            libc::S_IFCHR => memory_of(fd.stat.rdev, fd.flags()).is_some(),
            libc::S_IFBLK => true,
            _ => false,
        }
    }

    fn verdict(fd: &FdView, _: &View, out: &mut Vec<Blocker>) {
        if let Some((why, remedy)) = super::regular::FileRef::obstacle(&fd.link, &fd.stat, &fd.at(), &fd.tree)
        {
            out.push(fd.blocker().why(why).remedy(remedy));
        }
        if fd.stat.kind() != libc::S_IFBLK {
            if memory_of(fd.stat.rdev, fd.flags()) == Some(Memory::Log) && Peek::get().is_none() {
                out.push(
                    fd.blocker()
                        .why("how far it has read is not told, and the kernel does not let freeze see it")
                        .remedy("run freeze with CAP_BPF and CAP_PERFMON, or let the program close it"),
                );
            }
            return;
        }
        let (major, minor) = (major(fd.stat.rdev), minor(fd.stat.rdev));
        let loops =
            |file: &str| std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/loop/{file}"));
        if loops("autoclear").is_ok_and(|text| text.trim() == "1") {
            out.push(
                fd.blocker()
                    .why("its loop device lets go of its file when nobody has it open")
                    .remedy("set it up without autoclear (losetup)"),
            );
        }
        if held_alone(fd) {
            out.push(
                fd.blocker()
                    .why("somebody has it to himself (O_EXCL), and the kernel does not tell whether it is this program")
                    .remedy("let the program close it before the checkpoint"),
            );
        }
    }

    fn collect(fd: &FdView, from: &mut Source<'_>) -> Result<Record> {
        let number = (major(fd.stat.rdev), minor(fd.stat.rdev));
        let (path, node) = NodeRef::collect(&fd.link, &fd.stat, &fd.at(), &fd.tree)?;
        let block = fd.stat.kind() == libc::S_IFBLK;
        let memory = if block {
            Some(Memory::Position)
        } else {
            memory_of(fd.stat.rdev, fd.flags())
        };
        let latency = match memory {
            Some(Memory::Latency) => {
                let here = from.process.fd(fd.fd)?;
                let mut word = [0; 4];
                let n = nix::sys::uio::pread(&here, &mut word, 0).on("read", || fd.label())?;
                (n == 4).then(|| i32::from_ne_bytes(word))
            }
            _ => None,
        };
        let log = match memory {
            Some(Memory::Log) => {
                let here = from.process.fd(fd.fd)?;
                Peek::get().and_then(|peek| peek.log_position(here.as_fd()))
            }
            _ => None,
        };
        Ok(Record {
            path,
            number,
            flags: fd.flags(),
            tree: fd.tree.number,
            log,
            block,
            position: match memory {
                Some(Memory::Position) => fd.info.pos,
                _ => 0,
            },
            node: Some(node),
            latency,
            name: (!block).then(|| misc(number)).flatten(),
        })
    }

    fn precheck(record: &Record, options: &Options, out: &mut Vec<Blocker>) {
        let Some(here) = options.place(record.tree, &record.path) else {
            return;
        };
        let at = || Blocker::at(record.path.display().to_string(), "");
        if let Some(node) = record
            .node
            .as_ref()
            .filter(|n| n.gone.is_some() || n.lost.is_some())
        {
            // What is gone is made by its number.
            if node.gone.is_some() && !record.is(record.number) {
                let why = format!(
                    "its node is gone, and {}:{} is another device now",
                    record.number.0, record.number.1
                );
                out.push(
                    at().why(why)
                        .remedy("restore it under the boot that it was checkpointed under"),
                );
            }
            return;
        }
        let kind = if record.block {
            libc::S_IFBLK
        } else {
            libc::S_IFCHR
        };
        let found = match std::fs::metadata(here).map(|m| FileStat::from(&m)) {
            Ok(s) if s.kind() == kind && record.is((major(s.rdev), minor(s.rdev))) => return,
            Ok(_) => "something else".to_owned(),
            Err(e) => e.to_string(),
        };
        out.push(
            at().why(format!(
                "expected the device {}:{}, found {found}",
                record.number.0, record.number.1
            ))
            .remedy("create the device node"),
        );
    }

    fn members(_: &Record) -> Vec<FileId> {
        Vec::new()
    }

    fn restore(record: &Record, nest: &mut Nest) -> Result<OwnedFd> {
        let name = || record.path.display().to_string();
        let fd = match &record.node {
            Some(node) => node.open(&record.path, record.tree, record.flags, nest)?,
            None => open(&nest.options.reach(record.tree, &record.path)?, record.flags)?,
        };
        if record.position != 0 {
            nix::unistd::lseek64(&fd, record.position, Whence::SeekSet).on("lseek", name)?;
        }
        if let Some(next) = record.log {
            read_up_to(next, &fd).on("read", name)?;
        }
        if let Some(latency) = record.latency {
            nix::unistd::write(&fd, &latency.to_ne_bytes()).on("write", name)?;
        }
        Ok(fd)
    }

    fn finish(_: &Record, _: Placed, _: &mut Nest) -> Result<()> {
        Ok(())
    }
}

/// Reads the kernel's log up to before the record with this number; that of another boot has lower ones, and ends.
fn read_up_to(next: u64, log: &OwnedFd) -> nix::Result<()> {
    let reopened = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let ahead = nix::fcntl::open(
        format!("/proc/self/fd/{}", log.as_raw_fd()).as_str(),
        reopened,
        Mode::empty(),
    )?;
    // Another reader tells which record comes next, so that this one goes as far and no farther.
    let number = |fd: &OwnedFd| -> nix::Result<Option<u64>> {
        let mut text = [0; 8192];
        loop {
            return match nix::unistd::read(fd, &mut text) {
                Ok(n) => {
                    let head = text[..n].split(|b| *b == b',').nth(1);
                    let head = head.and_then(|h| std::str::from_utf8(h).ok());
                    Ok(head.and_then(|h| h.parse().ok()))
                }
                // What was overwritten meanwhile is skipped.
                Err(Errno::EPIPE) => continue,
                Err(Errno::EAGAIN) => Ok(None),
                Err(e) => Err(e),
            };
        }
    };
    let flags = nix::fcntl::fcntl(log, nix::fcntl::FcntlArg::F_GETFL)?;
    let set = |flags| nix::fcntl::fcntl(log, nix::fcntl::FcntlArg::F_SETFL(flags)).map(drop);
    let flags = OFlag::from_bits_retain(flags);
    set(flags | OFlag::O_NONBLOCK)?;
    while number(&ahead)?.is_some_and(|n| n < next) {
        number(log)?;
    }
    set(flags)
}

/// Whether a device number is one of the stateless memory devices.
pub fn is_stateless(rdev: u64) -> bool {
    major(rdev) == 1 && STATELESS.contains(&minor(rdev))
}

/// What a character device remembers for whoever has it open, if that is known.
fn memory_of(rdev: u64, flags: i32) -> Option<Memory> {
    if is_stateless(rdev) {
        return Some(Memory::Nothing);
    }
    match (major(rdev), minor(rdev)) {
        // mem, port; those of processor registers.
        (1, 1 | 4) | (202 | 203, _) => Some(Memory::Position),
        (1, 11) if flags & libc::O_ACCMODE == libc::O_WRONLY => Some(Memory::Nothing),
        (1, 11) => Some(Memory::Log),
        number @ (10, _) => match misc(number)?.as_str() {
            "cpu_dma_latency" => Some(Memory::Latency),
            name if PLAIN.contains(&name) => Some(Memory::Nothing),
            _ => None,
        },
        _ => None,
    }
}

/// The name of a miscellaneous device, whose number is a different one on every machine.
fn misc((major, minor): (u64, u64)) -> Option<String> {
    let text = (major == 10)
        .then(|| std::fs::read_to_string(format!("/sys/dev/char/10:{minor}/uevent")))?
        .ok()?;
    let name = text.lines().find_map(|l| l.strip_prefix("DEVNAME="))?;
    Some(name.to_owned())
}

/// Whether somebody has a block device to himself who is neither a mounted file system nor the like.
fn held_alone(fd: &FdView) -> bool {
    let alone = OFlag::O_RDONLY | OFlag::O_EXCL | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let Err(Errno::EBUSY) = nix::fcntl::open(fd.at().as_str(), alone, Mode::empty()) else {
        return false;
    };
    // What the kernel itself holds a device for, no program can hold it for too.
    let number = format!("{}:{}", major(fd.stat.rdev), minor(fd.stat.rdev));
    let mounted = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let swaps = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
    let swaps = swaps.lines().skip(1).filter_map(|l| l.split_whitespace().next());
    let rdev = |path: &str| std::fs::metadata(path).map(|m| FileStat::from(&m).rdev);
    let holders = std::fs::read_dir(format!("/sys/dev/block/{number}/holders"));
    !mounted.lines().any(|l| l.split(' ').nth(2) == Some(&number))
        && !swaps
            .into_iter()
            .any(|p| rdev(p).is_ok_and(|r| r == fd.stat.rdev))
        && !holders.is_ok_and(|mut d| d.next().is_some())
}

fn open(path: &Path, flags: i32) -> Result<OwnedFd> {
    let flags = OFlag::from_bits_retain(flags & !super::NOT_AT_OPEN);
    let flags = flags | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
    nix::fcntl::open(path, flags, Mode::empty()).on("open", || path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Pid;
    use crate::observe::view::read_fd;

    #[test]
    fn devices_are_told_by_what_they_remember() {
        let at = |major, minor, flags| memory_of(libc::makedev(major, minor), flags);
        assert_eq!(at(1, 3, libc::O_RDWR), Some(Memory::Nothing));
        assert_eq!(at(1, 1, libc::O_RDONLY), Some(Memory::Position));
        assert_eq!(at(1, 11, libc::O_WRONLY), Some(Memory::Nothing));
        assert_eq!(at(1, 11, libc::O_RDONLY), Some(Memory::Log));
        assert_eq!(at(10, 200, libc::O_RDWR), None, "tun is a kind of its own");
        assert_eq!(at(13, 64, libc::O_RDONLY), None, "an input device has a queue");
    }

    #[test]
    fn an_unlinked_node_is_recorded() {
        let path = std::env::temp_dir().join(format!("freeze-node-{}", std::process::id()));
        let made = nix::sys::stat::mknod(
            &path,
            nix::sys::stat::SFlag::S_IFCHR,
            Mode::S_IRUSR | Mode::S_IWUSR,
            libc::makedev(1, 3),
        );
        if made.is_err() {
            return;
        }
        let fd = open(&path, libc::O_RDWR).unwrap();
        std::fs::remove_file(&path).unwrap();
        let seen = read_fd(Pid(std::process::id() as i32), fd.as_raw_fd()).unwrap();
        assert!(Device::claims(&seen));
        let (found, node) = NodeRef::collect(&seen.link, &seen.stat, &seen.at(), &seen.tree).unwrap();
        assert_eq!(found, path);
        assert!(node.gone.is_some());
    }
}
