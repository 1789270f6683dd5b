//! What is in a file system that lives in memory and goes with its mount namespace: directories, files, links, nodes.

use crate::error::{Context, Result, errno};
use crate::ids::SpaceId;
use crate::kinds::pipe::Bytes;
use crate::kinds::regular::{fill_from, store_contents};
use crate::kinds::{Shared, object_space};
use crate::nest::Nest;
use crate::observe::view::FileStat;
use crate::store::Draft;
use crate::sys::quiet;
use nix::dir::Dir;
use nix::errno::Errno;
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, mknod, utimensat};
use nix::sys::time::TimeSpec;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A whole file system: directories before what is in them.
pub(super) type Contents = Vec<Node>;

/// One name in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// From its root, without a slash at the beginning; empty for the root itself.
    pub path: Bytes,
    pub stat: FileStat,
    /// Where a symbolic link leads.
    pub target: Option<Bytes>,
    /// Where a file's contents are in the image.
    pub space: Option<SpaceId>,
    /// The node (by index) that this is another name of.
    pub same_as: Option<usize>,
    pub attributes: Vec<(Bytes, Bytes)>,
    /// Of chattr(1), as FS_IOC_GETFLAGS has them: immutable, only to be appended to, not to be dumped.
    #[serde(default)]
    pub flags: u32,
    /// When it was last read, in seconds and nanoseconds; as long ago as it was written where that was not recorded.
    #[serde(default)]
    pub atime: Option<(i64, i64)>,
}

/// Records everything below the root of a mount that is attached nowhere.
pub(super) fn collect(copy: &OwnedFd, shared: &mut Shared, draft: &mut Draft) -> Result<Contents> {
    let root = PathBuf::from(format!("/proc/self/fd/{}", copy.as_raw_fd()));
    let mut out = Vec::new();
    let mut names: HashMap<(u64, u64), usize> = HashMap::new();
    let mut queue = std::collections::VecDeque::from([(Vec::new(), (0, 0))]);
    while let Some((path, above)) = queue.pop_front() {
        // The dot makes it the directory itself and not the link of /proc.
        let here = root.join(".").join(OsStr::from_bytes(&path));
        let name = || String::from_utf8_lossy(&path).into_owned();
        let seen = std::fs::symlink_metadata(&here).on("stat", name)?;
        let stat = FileStat::from(&seen);
        let id = (stat.dev, stat.ino);
        let mut node = Node {
            path: Bytes(path.clone()),
            stat,
            target: None,
            space: None,
            same_as: None,
            attributes: Vec::new(),
            flags: 0,
            atime: Some((seen.atime(), seen.atime_nsec())),
        };
        let first = out.len();
        if stat.kind() != libc::S_IFDIR && stat.nlink > 1 {
            node.same_as = Some(*names.entry((stat.dev, stat.ino)).or_insert(first)).filter(|n| *n != first);
        }
        match stat.kind() {
            libc::S_IFDIR => {
                let dir = quiet::open_one(&here, id, above).on("open", name)?;
                let dir = dir.as_fd().try_clone_to_owned().map_err(errno);
                let entries = dir.and_then(Dir::from_fd).and_then(|d| d.into_iter().collect());
                let entries: Vec<_> = entries.on("readdir", name)?;
                // The newest is told of first: made the other way about, they are told of in the same order.
                for entry in entries.into_iter().rev() {
                    let entry = entry.file_name().to_bytes().to_vec();
                    if matches!(&entry[..], b"." | b"..") {
                        continue;
                    }
                    let below = match path.is_empty() {
                        true => entry,
                        false => [&path[..], b"/", &entry].concat(),
                    };
                    queue.push_back((below, id));
                }
            }
            libc::S_IFLNK => {
                let target = std::fs::read_link(&here).on("readlink", name)?;
                node.target = Some(Bytes(target.into_os_string().into_vec()));
            }
            libc::S_IFREG if node.same_as.is_none() => {
                let space = object_space(stat.dev, stat.ino);
                node.space = Some(space);
                if shared.first_sight(stat.dev, stat.ino) {
                    let file = quiet::open_one(&here, id, above).on("open", name)?;
                    store_contents(&file, stat.size, space, draft, &name)?;
                }
            }
            _ => {}
        }
        if node.same_as.is_none() {
            node.attributes = attributes(&here);
        }
        if matches!(stat.kind(), libc::S_IFDIR | libc::S_IFREG) {
            node.flags = crate::sys::ns::file_flags(&here).on("statx", name)?;
        }
        out.push(node);
    }
    Ok(out)
}

/// Records the plain file or fifo that a mount shows which is attached nowhere, by a name that nothing else has.
pub(super) fn alone(copy: &OwnedFd, shared: &mut Shared, draft: &mut Draft) -> Result<Node> {
    let here = PathBuf::from(format!("/proc/self/fd/{}", copy.as_raw_fd()));
    let name = || "a file that is mounted".to_owned();
    let seen = std::fs::metadata(&here).on("stat", name)?;
    let stat = FileStat::from(&seen);
    let mut node = Node {
        path: Bytes(format!(".freeze-{}-{}", stat.dev, stat.ino).into_bytes()),
        stat,
        target: None,
        space: None,
        same_as: None,
        attributes: attributes(&here),
        flags: 0,
        atime: Some((seen.atime(), seen.atime_nsec())),
    };
    if stat.kind() == libc::S_IFREG {
        let space = object_space(stat.dev, stat.ino);
        node.space = Some(space);
        if shared.first_sight(stat.dev, stat.ino) {
            let file = quiet::open(&here).on("open", name)?;
            store_contents(&file, stat.size, space, draft, &name)?;
        }
    }
    Ok(node)
}

/// Extended attributes that a program can set; file systems without them have none.
fn attributes(path: &Path) -> Vec<(Bytes, Bytes)> {
    let names = crate::sys::ns::list_attributes(path).unwrap_or_default();
    let kept = names.into_iter().filter(|n| {
        [
            &b"user."[..],
            b"trusted.",
            b"security.capability",
            b"system.posix_acl",
        ]
        .iter()
        .any(|p| n.starts_with(p))
    });
    kept.filter_map(|n| {
        let value = crate::sys::ns::attribute(path, &n).ok()?;
        Some((Bytes(n), Bytes(value)))
    })
    .collect()
}

/// Files that are to have flags.
#[derive(Debug, Default)]
struct Flagged(Vec<(File, u32)>);

/// Gives files the flags they had, now that nothing more is made or opened.
pub(super) fn flag(nest: &mut Nest) {
    const SETFLAGS: u64 = 0x4008_6602;
    for (file, flags) in std::mem::take(&mut nest.state::<Flagged>().0) {
        // The kernel reads an int, though the number says a long.
        let mut word = u64::from(flags).to_ne_bytes();
        if let Err(e) = crate::sys::ioctl_bytes(file.as_fd(), SETFLAGS, &mut word) {
            let name = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap_or_default();
            nest.warnings.push(format!(
                "{}: its flags (chattr) cannot be set: {}",
                name.display(),
                e.desc()
            ));
        }
    }
}

/// Fills an empty file system.
pub(super) fn fill(root: &Path, contents: &Contents, nest: &mut Nest) -> Result<()> {
    let at = |node: &Node| match node.path.0.is_empty() {
        true => root.join("."),
        false => root.join(OsStr::from_bytes(&node.path.0)),
    };
    for node in contents {
        let path = at(node);
        let name = || path.display().to_string();
        let mode = Mode::from_bits_truncate(node.stat.mode & 0o7777);
        if let Some(other) = node.same_as.and_then(|n| contents.get(n)) {
            std::fs::hard_link(at(other), &path).on("link", name)?;
            continue;
        }
        match node.stat.kind() {
            libc::S_IFDIR if node.path.0.is_empty() => {}
            libc::S_IFDIR => nix::unistd::mkdir(&path, Mode::S_IRWXU).on("mkdir", name)?,
            libc::S_IFLNK => {
                let target = node.target.as_ref().map_or(&b""[..], |t| &t.0);
                std::os::unix::fs::symlink(OsStr::from_bytes(target), &path).on("symlink", name)?;
            }
            libc::S_IFREG => {
                // Huge pages are filled by way of a mapping, which must be readable.
                let file = File::options()
                    .read(true)
                    .write(true)
                    .create_new(true)
                    .mode(0o600)
                    .open(&path)
                    .on("open(O_CREAT)", name)?;
                file.set_len(node.stat.size).on("ftruncate", name)?;
                if let Some(space) = node.space {
                    fill_from(&file, space, node.stat.size, nest)?;
                }
            }
            kind => {
                let kind = SFlag::from_bits_truncate(kind);
                mknod(&path, kind, Mode::S_IRUSR | Mode::S_IWUSR, node.stat.rdev).on("mknod", name)?;
            }
        }
        let (uid, gid) = (node.stat.uid, node.stat.gid);
        std::os::unix::fs::lchown(&path, Some(uid), Some(gid)).on("lchown", name)?;
        if node.stat.kind() != libc::S_IFLNK {
            let follow = nix::sys::stat::FchmodatFlags::FollowSymlink;
            nix::sys::stat::fchmodat(nix::fcntl::AT_FDCWD, &path, mode, follow).on("chmod", name)?;
        }
        if node.flags != 0 {
            // Until everything is open that was, nothing may be in the way.
            let file = File::options()
                .read(true)
                .custom_flags(libc::O_NONBLOCK)
                .open(&path)
                .on("open", name)?;
            nest.state::<Flagged>().0.push((file, node.flags));
        }
        for (attribute, value) in &node.attributes {
            match crate::sys::ns::set_attribute(&path, &attribute.0, &value.0) {
                Ok(()) => {}
                Err(Errno::EOPNOTSUPP | Errno::EPERM) => nest.warnings.push(format!(
                    "{}: its attribute {} cannot be set",
                    path.display(),
                    String::from_utf8_lossy(&attribute.0)
                )),
                Err(e) => return Err(e).on("setxattr", name),
            }
        }
    }
    // Times last, and the innermost first: everything that is made in a directory changes its time.
    for node in contents.iter().rev() {
        let path = at(node);
        let time = |(seconds, nanoseconds)| TimeSpec::new(seconds, nanoseconds);
        utimensat(
            nix::fcntl::AT_FDCWD,
            &path,
            &time(node.atime.unwrap_or(node.stat.mtime)),
            &time(node.stat.mtime),
            UtimensatFlags::NoFollowSymlink,
        )
        .on("utimensat", || path.display().to_string())?;
    }
    Ok(())
}
