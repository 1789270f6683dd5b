//! autofs (kernel: Documentation/filesystems/autofs.rst): mounts whose daemon in the checkpoint is told by a pipe what to mount.
//!
//! ```text
//!   furnish   mounted by a process of the daemon's pid namespace, given its directories, and made catatonic: nobody waits
//!   files     the pipe is there: who is in the daemon's process group gives the kernel its writing end again
//! ```

use super::mounts::Mount;
use crate::error::{Blocker, Context, Result};
use crate::ids::Pid;
use crate::kinds::pipe::Bytes;
use crate::nest::Nest;
use crate::nest::space::Kind;
use crate::observe::tree::MountLine;
use crate::observe::view::{FdView, View};
use crate::sys;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{Mode, fstatat};
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// What of a mount its options do not make again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Autofs {
    /// The pipe by which the kernel tells what to mount, and its number with who mounted it; none if it is catatonic.
    pipe: Option<(u64, i32)>,
    /// A process of the group that mounts (the daemon), if one is there.
    daemon: Option<Pid>,
    /// Seconds after which what is not used may go.
    timeout: u64,
    /// Directories with their modes, and symbolic links, from its root; directories before what is in them.
    nodes: Vec<(Bytes, u32, Option<Bytes>)>,
}

const CATATONIC: u64 = 0x9362;
const SETTIMEOUT: u64 = 0xc008_9364;
/// AUTOFS_DEV_IOCTL_SETPIPEFD of a struct autofs_dev_ioctl of 24 bytes.
const SETPIPEFD: u64 = 0xc018_9378;

fn option<'a>(line: &'a MountLine, name: &str) -> Option<&'a str> {
    let mut all = line.super_options.split(',').filter_map(|o| o.split_once('='));
    all.find(|(n, _)| *n == name).map(|(_, value)| value)
}

/// Its kind: what is mounted below it, on it, or on it as a part of something larger.
fn is_indirect(options: &str) -> bool {
    options.split(',').any(|o| o == "indirect")
}

impl Autofs {
    /// What is to be had of a mount without looking into it; or why it cannot be carried.
    pub(super) fn of(line: &MountLine, view: &View) -> std::result::Result<Autofs, String> {
        let number = |name: &str| option(line, name).and_then(|n| n.parse::<i64>().ok());
        let group = number("pgrp").unwrap_or(0) as i32;
        let daemon = view.each().find(|p| group > 0 && p.stat.pgrp == group);
        let pipe = match number("fd") {
            None | Some(..0) => None,
            Some(fd) => {
                let inode = number("pipe_ino").unwrap_or(-1) as u64;
                let end = |f: &&FdView| f.link.starts_with(b"pipe:[") && f.stat.ino == inode;
                let holds = |p: &&crate::observe::view::ProcessView| p.fds.iter().any(|f| end(&f));
                if daemon.is_none() {
                    return Err("the process group that mounts for it is not part of the checkpoint".into());
                }
                let Some(reader) = view.each().find(holds) else {
                    return Err("nobody of the checkpoint has the pipe of its daemon open".into());
                };
                let end = reader.fds.iter().find(end).map_or(-1, |f| f.fd);
                let held = File::open(format!("/proc/{}/fd/{end}", reader.pid));
                let waits = held
                    .ok()
                    .and_then(|f| sys::ioctl_int(f.as_fd(), libc::FIONREAD).ok());
                if waits.is_some_and(|n| n > 0) {
                    return Err("its daemon has not read yet what it is to mount".into());
                }
                Some((inode, fd as i32))
            }
        };
        Ok(Autofs {
            pipe,
            daemon: daemon.map(|p| p.pid),
            timeout: number("timeout").unwrap_or(0) as u64,
            nodes: Vec::new(),
        })
    }

    /// Records the directories below the root of one, held by a copy of the mount; only of an indirect one they are its own.
    pub(super) fn look(
        &mut self,
        line: &MountLine,
        copy: impl FnOnce() -> nix::Result<OwnedFd>,
    ) -> Result<()> {
        if !is_indirect(&line.super_options) {
            return Ok(());
        }
        let name = || format!("mount {}", String::from_utf8_lossy(&line.at));
        let root = copy().on("open_tree", name)?;
        let mut queue = std::collections::VecDeque::from([PathBuf::new()]);
        while let Some(dir) = queue.pop_front() {
            let here = PathBuf::from(format!("/proc/self/fd/{}", root.as_raw_fd()));
            let here = here.join(".").join(&dir);
            let names: std::io::Result<Vec<_>> = std::fs::read_dir(&here).and_then(|all| all.collect());
            for entry in names.on("readdir", name)?.into_iter().rev() {
                let path = dir.join(entry.file_name());
                // Not as std does, which would have it mounted.
                let at = here.join(entry.file_name());
                let stat =
                    fstatat(nix::fcntl::AT_FDCWD, &at, AtFlags::AT_SYMLINK_NOFOLLOW).on("stat", name)?;
                let target = match stat.st_mode & libc::S_IFMT {
                    libc::S_IFLNK => Some(std::fs::read_link(&at).on("readlink", name)?),
                    _ => None,
                };
                let text = |path: PathBuf| Bytes(path.into_os_string().into_vec());
                self.nodes
                    .push((text(path.clone()), stat.st_mode & 0o7777, target.map(text)));
                // One that is empty is to be mounted on: whoever opens it would wait for that.
                if stat.st_mode & libc::S_IFMT == libc::S_IFDIR && stat.st_nlink > 2 {
                    queue.push_back(path);
                }
            }
        }
        Ok(())
    }

    /// Mounts it again at `at` with its directories; nothing is asked of anybody until its pipe is there.
    pub(super) fn mount(&self, at: &Path, m: &Mount, members: &[Pid], nest: &mut Nest) -> Result<()> {
        let name = || format!("mount {}", m.at.display());
        let space = |nest: &Nest, p: Pid| nest.membership(p).of(Kind::Pid);
        let wanted = self.daemon.map(|d| space(nest, d));
        let mut able = members.iter().copied();
        let by = able.find(|p| Some(space(nest, *p)) == wanted || wanted.is_none());
        let by = by.ok_or(Errno::ESRCH).on("mount", name)?;
        let (_read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC).on("pipe2", name)?;
        let pipe = nest.hand_over(by, &[write.as_raw_fd()])?[0];
        let left_out = ["fd", "pipe_ino", "pgrp", "timeout"];
        let kept = m.super_options.split(',').filter(|o| {
            let name = o.split('=').next().unwrap_or_default();
            !matches!(name, "rw" | "ro" | "seclabel") && !left_out.contains(&name)
        });
        let options = std::iter::once(format!("fd={pipe}")).chain(kept.map(str::to_owned));
        let options = options.collect::<Vec<_>>().join(",");
        let ended = |bytes: &[u8]| [bytes, b"\0"].concat();
        let here = ended(at.as_os_str().as_bytes());
        nest.process(by)?.tape(|t| {
            let (source, to) = (t.bytes(&ended(m.source.as_bytes())), t.bytes(&here));
            let (kind, data) = (t.bytes(b"autofs\0"), t.bytes(&ended(options.as_bytes())));
            let flags = super::options::flags(&m.options) & !libc::MS_RDONLY;
            t.call("mount", libc::SYS_mount, &[source, to, kind, flags, data]);
            t.call("close", libc::SYS_close, &[pipe]);
        })?;
        for (path, mode, target) in &self.nodes {
            let path = ended(at.join(OsStr::from_bytes(&path.0)).as_os_str().as_bytes());
            nest.process(by)?.tape(|t| {
                let path = t.bytes(&path);
                match target {
                    Some(target) => {
                        let target = t.bytes(&ended(&target.0));
                        t.call("symlink", libc::SYS_symlink, &[target, path])
                    }
                    None => t.call("mkdir", libc::SYS_mkdir, &[path, u64::from(*mode)]),
                }
            })?;
        }
        let (ran, opened) = nest.process(by)?.tape(|t| {
            let (to, flags) = (t.bytes(&here), libc::O_RDONLY | libc::O_DIRECTORY);
            t.call("open", libc::SYS_open, &[to, flags as u64])
        })?;
        let root = ran.value(opened) as u64;
        nest.process(by)?.tape(|t| {
            let timeout = t.bytes(&self.timeout.to_ne_bytes());
            t.call(
                "ioctl(AUTOFS_IOC_SETTIMEOUT)",
                libc::SYS_ioctl,
                &[root, SETTIMEOUT, timeout],
            );
            t.call("ioctl(AUTOFS_IOC_CATATONIC)", libc::SYS_ioctl, &[root, CATATONIC]);
            t.call("close", libc::SYS_close, &[root]);
        })?;
        Ok(())
    }

    /// Notes that the kernel is to have its end of the pipe again.
    pub(super) fn await_pipe(&self, mount: &OwnedFd, nest: &mut Nest) -> Result<()> {
        if let (Some((inode, number)), Some(daemon)) = (self.pipe, self.daemon) {
            let mount = mount.try_clone().map_err(|_| Errno::EMFILE);
            let mount = mount.on("dup", || "a mount")?;
            let waiting = Waiting {
                inode,
                number,
                daemon,
                mount,
            };
            nest.state::<Awaited>().0.push(waiting);
        }
        Ok(())
    }
}

/// Mounts that want a pipe.
#[derive(Debug, Default)]
struct Awaited(Vec<Waiting>);

#[derive(Debug)]
struct Waiting {
    inode: u64,
    number: i32,
    daemon: Pid,
    mount: OwnedFd,
}

/// A pipe is there again: those who had it have it again.
pub(in crate::kinds) fn offer(pipe: u64, end: BorrowedFd<'_>, nest: &mut Nest) -> Result<()> {
    let all = std::mem::take(&mut nest.state::<Awaited>().0);
    let (now, later) = all.into_iter().partition(|w| w.inode == pipe);
    nest.state::<Awaited>().0 = later;
    for Waiting {
        number,
        daemon,
        mount,
        ..
    } in now
    {
        let name = || format!("pipe {pipe} of an autofs mount");
        let open = |path: &str, flags| nix::fcntl::open(path, flags | OFlag::O_CLOEXEC, Mode::empty());
        let writing =
            open(&format!("/proc/self/fd/{}", end.as_raw_fd()), OFlag::O_WRONLY).on("open", name)?;
        let control = open("/dev/autofs", OFlag::O_RDONLY).on("open", || "/dev/autofs")?;
        let root = format!("/proc/self/fd/{}/.", mount.as_raw_fd());
        let root = open(&root, OFlag::O_RDONLY | OFlag::O_DIRECTORY).on("open", name)?;
        let given = [writing.as_raw_fd(), control.as_raw_fd(), root.as_raw_fd()];
        let given = nest.hand_over(daemon, &given)?;
        let free = !Path::new(&format!("/proc/{daemon}/fd/{number}")).exists();
        nest.process(daemon)?.tape(|t| {
            // The number is what the options tell.
            let number = if free { number as u64 } else { given[0] };
            let words = [1, 1, 24, given[2] as u32, number as u32, 0];
            let structure = t.bytes(&words.map(u32::to_ne_bytes).concat());
            if free {
                t.call("dup2", libc::SYS_dup2, &[given[0], number]);
            }
            let what = "ioctl(AUTOFS_DEV_IOCTL_SETPIPEFD)";
            t.call(what, libc::SYS_ioctl, &[given[1], SETPIPEFD, structure]);
            for fd in given.into_iter().chain(free.then_some(number)) {
                t.call("close", libc::SYS_close, &[fd]);
            }
        })?;
    }
    Ok(())
}

/// Adds what is not there for mounts of this kind.
pub(super) fn precheck(m: &Mount, tree: u32, out: &mut Vec<Blocker>) {
    if m.autofs.as_ref().is_some_and(|a| a.pipe.is_some()) && !Path::new("/dev/autofs").exists() {
        out.push(
            Blocker::at(
                format!("mount {} of mount namespace {tree}", m.at.display()),
                "autofs",
            )
            .why("its daemon is told what to mount by /dev/autofs, which is not there")
            .remedy("load the module autofs4"),
        );
    }
}
