//! Names of unix sockets in the file system: bound where they were, or where nobody else can see them.

use super::{Sys, socket_to};
use crate::error::errno;
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, umask};
use std::ffi::OsStr;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// The name in a `struct sockaddr_un` as getsockname(2) gives it: a path, or a zero byte and an abstract name.
pub fn name_of(address: &[u8]) -> &[u8] {
    let name = address.get(2..).unwrap_or_default();
    match name {
        [0, ..] | [] => name,
        path => path.split(|b| *b == 0).next().unwrap_or_default(),
    }
}

/// Whether it is a path.
pub fn is_path(address: &[u8]) -> bool {
    name_of(address).first().is_some_and(|b| *b != 0)
}

/// A `struct sockaddr_un` with this path, which must be shorter than 108 bytes.
pub fn address_of(path: &str) -> Vec<u8> {
    let mut address = (libc::AF_UNIX as u16).to_ne_bytes().to_vec();
    address.extend_from_slice(path.as_bytes());
    address.push(0);
    address
}

/// The directory that a relative name was bound in, given the file's full path.
pub fn directory_of(name: &[u8], file: &Path) -> Option<PathBuf> {
    let name = Path::new(OsStr::from_bytes(name));
    let mut directory = file.to_owned();
    for part in name.components().rev() {
        match part {
            Component::Normal(part) if directory.file_name() == Some(part) => {
                directory.pop();
            }
            Component::CurDir => {}
            _ => return None,
        }
    }
    Some(directory)
}

/// Runs something with a working directory, root and umask that may be changed without anybody else noticing.
fn apart<T: Send>(work: impl FnOnce() -> Sys<T> + Send) -> Sys<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_FS)?;
            work()
        });
        thread.join().unwrap_or(Err(Errno::EFAULT))
    })
}

/// Binds to a path below `root`, relative to `directory` in it if that is given; the file gets the permissions `mode`.
pub fn bind(
    fd: BorrowedFd<'_>,
    address: &[u8],
    root: Option<&Path>,
    directory: Option<&Path>,
    mode: u32,
) -> Sys<()> {
    apart(|| {
        if let Some(root) = root {
            nix::unistd::chroot(root)?;
            nix::unistd::chdir("/")?;
        }
        if let Some(directory) = directory {
            nix::unistd::chdir(directory)?;
        }
        umask(Mode::from_bits_truncate(!mode & 0o777));
        socket_to(fd, false, address)
    })
}

/// Binds to a path whose file nobody can find, as if it had been unlinked: in a directory of its own that is the root
/// while it is bound, and is removed afterwards.
pub fn bind_hidden(fd: BorrowedFd<'_>, address: &[u8], mode: u32) -> Sys<()> {
    bind_below(&std::env::temp_dir(), fd, address, mode, |_| Ok(()))
}

/// Binds to a path whose file is to lie elsewhere, at `path`, as if it had been renamed.
pub fn bind_renamed(fd: BorrowedFd<'_>, address: &[u8], path: &Path, mode: u32) -> Sys<()> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    bind_below(parent, fd, address, mode, |bound| {
        std::fs::rename(bound, path).map_err(errno)
    })
}

/// Binds in a directory made for it below `parent`, and lets `then` do something with the file before that is removed.
fn bind_below(
    parent: &Path,
    fd: BorrowedFd<'_>,
    address: &[u8],
    mode: u32,
    then: impl FnOnce(&Path) -> Sys<()>,
) -> Sys<()> {
    // It goes when this is left, however that comes about.
    let scratch = tempfile::Builder::new()
        .prefix("freeze-name-")
        .tempdir_in(parent)
        .map_err(errno)?;
    let done = apart(|| {
        nix::unistd::chroot(scratch.path())?;
        nix::unistd::chdir("/")?;
        umask(Mode::from_bits_truncate(0o022));
        let path = Path::new(OsStr::from_bytes(name_of(address)));
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(errno)?;
        }
        umask(Mode::from_bits_truncate(!mode & 0o777));
        socket_to(fd, false, address)
    });
    // By the way through `parent`: in another tree of files a rename does not cross from ours.
    let bound = below(scratch.path(), Path::new(OsStr::from_bytes(name_of(address))));
    done.and_then(|()| then(&bound))
}

/// Where a path leads from a root that has no symbolic links.
fn below(root: &Path, path: &Path) -> PathBuf {
    let mut inside = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => inside.push(name),
            Component::ParentDir => {
                inside.pop();
            }
            _ => {}
        }
    }
    root.join(inside)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::{self, socket};
    use std::os::fd::{AsFd, AsRawFd};

    #[test]
    fn a_hidden_name_can_still_be_connected_to() {
        let make = || sys::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0).unwrap();
        let (server, client) = (make(), make());
        let address = address_of("/run/nowhere/at all/x.sock");
        bind_hidden(server.as_fd(), &address, 0o640).unwrap();
        assert_eq!(sys::socket_name(server.as_fd(), false), Ok(address.clone()));
        assert!(!Path::new("/run/nowhere").exists());
        socket::listen(server.as_fd(), 1).unwrap();
        let file = socket::bound_file(server.as_fd()).unwrap();
        assert_eq!(
            std::fs::metadata(format!("/proc/self/fd/{}", file.as_raw_fd()))
                .map(|m| mode(&m))
                .unwrap(),
            0o640
        );
        let way = address_of(&format!("/proc/self/fd/{}", file.as_raw_fd()));
        sys::socket_to(client.as_fd(), true, &way).unwrap();
        assert_eq!(sys::socket_name(client.as_fd(), true), Ok(address));
    }

    fn mode(m: &std::fs::Metadata) -> u32 {
        std::os::unix::fs::MetadataExt::mode(m) & 0o777
    }

    #[test]
    fn nothing_leads_out_of_a_root() {
        let of = |path: &str| below(Path::new("/r"), Path::new(path));
        assert_eq!(of("/a/b"), Path::new("/r/a/b"));
        assert_eq!(of("./a/../../b"), Path::new("/r/b"));
    }

    #[test]
    fn a_relative_name_tells_its_directory() {
        let of = |name: &str, file: &str| directory_of(name.as_bytes(), Path::new(file));
        assert_eq!(of("x.sock", "/run/a/x.sock"), Some("/run/a".into()));
        assert_eq!(of("./a/x.sock", "/run/a/x.sock"), Some("/run".into()));
        assert_eq!(of("../x.sock", "/run/x.sock"), None);
        assert_eq!(of("y.sock", "/run/x.sock"), None);
    }
}
