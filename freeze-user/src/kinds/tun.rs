//! Tun and tap: descriptors of /dev/net/tun with the device each is attached to.

use super::{FdKind, Placed, Source, netns};
use crate::error::{Blocker, Context, Result};
use crate::ids::{FileId, Pid};
use crate::nest::{Nest, Options};
use crate::observe::view::{FdView, View};
use crate::sys::ipc::within;
use crate::sys::tun::{self, DETACH_QUEUE, NO_PI, PERSIST};
use nix::errno::Errno;
use nix::sys::stat::{major, minor};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

#[derive(Debug)]
pub struct Tun;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub flags: i32,
    /// A process that holds it: in its network namespace it is made again.
    pub holder: Pid,
    pub device: Option<Device>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    pub name: String,
    /// IFF_* of TUNSETIFF.
    pub flags: u32,
    /// Length of the virtio header, and how much may wait to be sent.
    pub header: i32,
    pub room: i32,
    /// Whether its queue was taken off the device for the time being.
    #[serde(default)]
    pub detached: bool,
    /// What the device is like, if it lies in the network namespace of freeze: it is no other record's.
    pub alone: Option<netns::Record>,
}

impl FdKind for Tun {
    const TAG: &'static str = "tun";
    const VERSION: u16 = 1;
    const ABOUT: &'static str = "/dev/net/tun with the tun or tap device it is attached to, its flags, addresses and routes, queues that \
        are taken off for the time being too; not packets that wait to be read, nor what the kernel does not tell \
        (offloads, filters)";
    type Record = Record;

    fn claims(fd: &FdView) -> bool {
        fd.stat.kind() == libc::S_IFCHR && (major(fd.stat.rdev), minor(fd.stat.rdev)) == (10, 200)
    }

    fn verdict(fd: &FdView, _: &View, out: &mut Vec<Blocker>) {
        if fd.flags() & libc::O_PATH != 0 {
            out.push(
                fd.blocker()
                    .why("a path to /dev/net/tun alone is not carried")
                    .remedy("let the program close it before the checkpoint"),
            );
        }
    }

    fn collect(fd: &FdView, from: &mut Source<'_>) -> Result<Record> {
        let name = || fd.label();
        let here = from.process.fd(fd.fd)?;
        let device = match tun::attached(here.as_fd()) {
            Ok((device, flags)) => {
                let there = tun::netns(here.as_fd()).on("ioctl(TUNGETDEVNETNS)", name)?;
                // Whether packets have a header of their own only the device says.
                let told = within(there.as_fd(), libc::CLONE_NEWNET, || netns::tun_flags(&device));
                let told = told.and_then(|told| told).on("rtnetlink", name)?;
                let header = told.map_or(flags & NO_PI, |own| own & NO_PI);
                Some(Device {
                    alone: alone(&device, there)?,
                    detached: flags & DETACH_QUEUE != 0,
                    header: tun::header(here.as_fd()).on("ioctl(TUNGETVNETHDRSZ)", name)?,
                    room: tun::room(here.as_fd()).on("ioctl(TUNGETSNDBUF)", name)?,
                    name: device,
                    flags: flags & !(DETACH_QUEUE | NO_PI) | header,
                })
            }
            // Attached to none.
            Err(Errno::EBADFD) => None,
            Err(e) => return Err(e).on("ioctl(TUNGETIFF)", name),
        };
        Ok(Record {
            flags: fd.flags(),
            holder: if fd.pid == from.process.pid() {
                fd.pid
            } else {
                from.process.pid()
            },
            device,
        })
    }

    fn precheck(_: &Record, _: &Options, out: &mut Vec<Blocker>) {
        if std::fs::metadata("/dev/net/tun").is_err() {
            out.push(
                Blocker::at("/dev/net/tun", "")
                    .why("it is not there")
                    .remedy("create the device node (mknod /dev/net/tun c 10 200)"),
            );
        }
    }

    fn members(_: &Record) -> Vec<FileId> {
        Vec::new()
    }

    fn restore(record: &Record, nest: &mut Nest) -> Result<OwnedFd> {
        let name = || "/dev/net/tun";
        let Some(device) = &record.device else {
            return in_place(record, nest, tun::open).on("open", name);
        };
        if let Some(alone) = &device.alone {
            let said = netns::restore_device(alone)?;
            nest.warnings.extend(said);
        }
        // Somebody who is about to end may still hold it.
        const PATIENCE: Duration = Duration::from_secs(2);
        let began = Instant::now();
        in_place(record, nest, || {
            let tun = tun::open()?;
            while let Err(e) = tun::attach(tun.as_fd(), &device.name, device.flags, None) {
                if e != Errno::EBUSY || began.elapsed() >= PATIENCE {
                    return Err(e);
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            tun::set(tun.as_fd(), device.flags & PERSIST, -1, -1)?;
            match device.detached {
                true => tun::detach(tun.as_fd())?,
                false => tun::set_sizes(tun.as_fd(), device.header, device.room)?,
            }
            Ok(tun)
        })
        .on("ioctl(TUNSETIFF)", || format!("device {}", device.name))
    }

    fn finish(_: &Record, _: Placed, _: &mut Nest) -> Result<()> {
        Ok(())
    }
}

/// What a device is like that lies in the network namespace of freeze.
fn alone(device: &str, there: OwnedFd) -> Result<Option<netns::Record>> {
    let name = || device.to_owned();
    let there = File::from(there).metadata().on("stat", name)?.ino();
    let own = std::fs::metadata("/proc/thread-self/ns/net")
        .on("stat", name)?
        .ino();
    (there == own).then(|| netns::device(device)).transpose()
}

/// Does something in the network namespace of the holder.
fn in_place(
    record: &Record,
    nest: &mut Nest,
    work: impl FnOnce() -> nix::Result<OwnedFd> + Send,
) -> nix::Result<OwnedFd> {
    let holder = nest.process(record.holder).map_or(record.holder, |p| p.pid);
    match File::open(format!("/proc/{holder}/ns/net")) {
        Ok(ns) => within(ns.as_fd(), libc::CLONE_NEWNET, work)?,
        Err(_) => work(),
    }
}
