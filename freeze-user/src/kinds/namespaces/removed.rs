//! A file that is mounted on another and was removed since: nothing but the mount leads to it. It is made again beside
//! where it was, mounted, and removed again.

use super::contents::{self, Contents};
use crate::error::Result;
use crate::kinds::Shared;
use crate::nest::Nest;
use crate::observe::tree::MountLine;
use crate::observe::view::View;
use crate::store::Draft;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Which directory or file of its file system a mount shows, if that was removed.
pub(super) fn removed_root(line: &MountLine) -> Option<&[u8]> {
    line.root.strip_suffix(b"//deleted")
}

/// What a mount shows, if that is a plain file or a fifo.
pub(super) fn file(tree: u32, index: usize, view: &View) -> Option<OwnedFd> {
    let copy = view.trees.copy(tree, index).ok()?;
    let kind = nix::sys::stat::fstat(&copy).ok()?.st_mode & libc::S_IFMT;
    matches!(kind, libc::S_IFREG | libc::S_IFIFO).then_some(copy)
}

/// Records it.
pub(super) fn collect(copy: &OwnedFd, shared: &mut Shared, draft: &mut Draft) -> Result<Contents> {
    Ok(vec![contents::alone(copy, shared, draft)?])
}

/// One that was made again, until it is mounted.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) path: PathBuf,
}

impl Made {
    /// Makes it in the directory where it was, if there is anything to make.
    pub(super) fn again(was: &Path, file: &Contents, nest: &mut Nest) -> Result<Option<Made>> {
        let Some(node) = file.first() else {
            return Ok(None);
        };
        let directory = was.parent().unwrap_or(Path::new("/"));
        let path = directory.join(OsStr::from_bytes(&node.path.0));
        // What a restore has left that was killed.
        let _ = std::fs::remove_file(&path);
        let made = Made { path };
        contents::fill(directory, file, nest)?;
        Ok(Some(made))
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
