//! File systems on block devices that are mounted in the set's own trees only: what they lie on, and mounting them again.
//!
//! They are mounted by freeze, where the node of the device is, and then put into the tree, in which it need not be. A loop
//! device that was let go of with its last mount (`mount -o loop`) is attached to its file again.

use super::mounts::Mount;
use crate::error::{Blocker, Context, Error, Result};
use crate::observe::tree::MountLine;
use crate::sys::loops::{self, Shown};
use crate::sys::ns;
use nix::Result as Sys;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, major, minor};
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// The block device that a file system lies on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    #[serde(with = "crate::ospath")]
    pub node: PathBuf,
    pub shows: Option<Loop>,
}

/// What a loop device shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loop {
    #[serde(with = "crate::ospath")]
    pub file: PathBuf,
    pub offset: u64,
    /// 0 for none.
    pub limit: u64,
    /// LO_FLAGS_*
    pub flags: u32,
    /// Bytes.
    pub block: u32,
}

/// The major number of loop devices.
const LOOP: u64 = 7;

fn open(path: &Path, flags: OFlag) -> Sys<OwnedFd> {
    nix::fcntl::open(path, flags | OFlag::O_CLOEXEC, Mode::empty())
}

impl Disk {
    /// What a mount lies on, as freeze reaches it; in its place, why it cannot be had again.
    pub(super) fn of(line: &MountLine) -> std::result::Result<Disk, String> {
        let node = PathBuf::from(OsStr::from_bytes(&line.source));
        let shown = node.display().to_string();
        let meta = std::fs::metadata(&node).map_err(|e| format!("freeze does not find {shown}: {e}"))?;
        let number = format!("{}:{}", major(meta.rdev()), minor(meta.rdev()));
        // One that lies on several devices has a number of its own.
        let own = !line.device.starts_with("0:");
        if !meta.file_type().is_block_device() || own && number != line.device {
            return Err(format!("{shown} is another device for freeze"));
        }
        let shows = match major(meta.rdev()) {
            LOOP => Some(Loop::of(&node, &number)?),
            _ => None,
        };
        Ok(Disk { node, shows })
    }

    /// Adds what keeps it from being mounted again here; `at` says where.
    pub(super) fn precheck(&self, at: &str, out: &mut Vec<Blocker>) {
        let (what, path) = match &self.shows {
            Some(shown) => ("the file of its loop device", &shown.file),
            None => ("its device", &self.node),
        };
        if let Err(e) = std::fs::metadata(path) {
            out.push(
                Blocker::at(at.to_owned(), path.display().to_string())
                    .why(format!("{what} is not there: {e}"))
                    .remedy("put it back"),
            );
        }
    }

    /// Mounts it, attached nowhere yet.
    pub(super) fn mount(&self, m: &Mount) -> Result<OwnedFd> {
        let name = || format!("{} on {}", m.fs, self.node.display());
        let options = m
            .super_options
            .split(',')
            .filter(|o| !matches!(*o, "rw" | "seclabel" | ""));
        let options: Vec<&str> = options.collect();
        let Some(shown) = &self.shows else {
            return ns::new_mount(&m.fs, &self.node, &options).on("mount", name);
        };
        // Held until it is mounted: then the mount keeps it.
        let (node, _held) = shown
            .attach(&self.node)
            .on("ioctl(LOOP_CONFIGURE)", || shown.file.display().to_string())?;
        ns::new_mount(&m.fs, &node, &options).on("mount", name)
    }
}

impl Loop {
    /// What the loop device with this number, open at `node`, shows.
    fn of(node: &Path, number: &str) -> std::result::Result<Loop, String> {
        let failed = |e: &dyn std::fmt::Display| format!("its loop device cannot be looked at: {e}");
        let device = open(node, OFlag::O_RDONLY).map_err(|e| failed(&e))?;
        let shown = loops::shown(device.as_fd()).map_err(|e| failed(&e))?;
        let read = |file: &str| std::fs::read(format!("/sys/dev/block/{number}/{file}"));
        let mut file = read("loop/backing_file").map_err(|e| failed(&e))?;
        while file.last() == Some(&b'\n') {
            file.pop();
        }
        let file = PathBuf::from(std::ffi::OsString::from_vec(file));
        let found = std::fs::metadata(&file).map(|m| (m.dev(), m.ino()));
        if found.ok() != Some((shown.device, shown.inode)) {
            return Err(format!(
                "the file of its loop device is not at {} for freeze",
                file.display()
            ));
        }
        let block = read("queue/logical_block_size").unwrap_or_default();
        Ok(Loop {
            file,
            offset: shown.offset,
            limit: shown.limit,
            flags: shown.flags,
            block: String::from_utf8_lossy(&block).trim().parse().unwrap_or(512),
        })
    }

    /// A loop device that shows this, that at `node` if it does or can; with a descriptor that keeps it.
    fn attach(&self, node: &Path) -> Sys<(PathBuf, OwnedFd)> {
        const TIMES: usize = 100;
        let writable = self.flags & loops::READ_ONLY == 0;
        let access = if writable { OFlag::O_RDWR } else { OFlag::O_RDONLY };
        let file = open(&self.file, access)?;
        let stat = nix::sys::stat::fstat(&file)?;
        let wanted = Shown {
            device: stat.st_dev,
            inode: stat.st_ino,
            offset: self.offset,
            limit: self.limit,
            flags: self.flags,
        };
        let mut node = node.to_owned();
        for _ in 0..TIMES {
            if let Ok(device) = open(&node, access) {
                if loops::shown(device.as_fd()) == Ok(wanted) {
                    return Ok((node, device));
                }
                let name = self.file.as_os_str().as_bytes();
                match loops::configure(device.as_fd(), file.as_fd(), name, self.block, wanted) {
                    Ok(()) => return Ok((node, device)),
                    Err(Errno::EBUSY) => {}
                    Err(e) => return Err(e),
                }
            }
            // Somebody else has it, or it is gone.
            node = PathBuf::from(format!("/dev/loop{}", loops::free()?));
        }
        Err(Errno::EBUSY)
    }
}

/// What a volatile overlay leaves behind keeps it from being mounted again until it is removed, since its files might not
/// have been written in a crash (the kernel's overlayfs.rst); here they were seen by the program.
pub(super) fn forgive_volatile(root: &Path, m: &Mount) -> Result<()> {
    let options = || m.super_options.split(',');
    let Some(work) = options().find_map(|o| o.strip_prefix("workdir=")) else {
        return Ok(());
    };
    if m.fs != "overlay" || !options().any(|o| o == "volatile" || o == "fsync=volatile") {
        return Ok(());
    }
    let left = root.join(work.trim_start_matches('/')).join("work/incompat");
    let name = || left.display().to_string();
    for dir in [left.join("volatile"), left.clone()] {
        match std::fs::remove_dir_all(&dir) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::kernel("rmdir", name(), crate::error::errno(e)));
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_device_is_told() {
        let line = |source: &str, device: &str| {
            let text = format!("1 1 {device} / /mnt rw - ext4 {source} rw\n");
            crate::observe::tree::parse_mounts(text.as_bytes()).remove(0)
        };
        let why = |source: &str, device: &str| Disk::of(&line(source, device)).unwrap_err();
        assert!(why("/dev/null", "8:1").contains("another device"));
        assert!(why("/dev/there-is-none", "8:1").contains("does not find"));
    }
}
