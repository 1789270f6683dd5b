//! Files that inotify and fanotify watch: found by the handles that fdinfo shows, whatever they are called now.

use crate::error::{Blocker, Result};
use crate::ids::{FileId, Pid};
use crate::nest::{Nest, Options};
use crate::observe::tree::{Tree, parse_mounts};
use crate::observe::view::View;
use crate::sys::files::{open_by_handle_here, standing_in};
use crate::sys::ns;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// A file as fdinfo tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub ino: u64,
    /// The kernel's form of the device number: 12 bits of major, 20 of minor.
    pub sdev: u32,
    /// Type and bytes of the file handle, where the file system has them.
    pub handle: Option<(i32, Vec<u8>)>,
}

/// Where a watched file is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// By its path, in the tree of files with this number.
    Path(PathBuf, u32),
    /// It has no name any more, and a process of the set has it open as this descriptor.
    Held(Pid, RawFd),
}

/// The same, in the image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spot {
    #[serde(with = "crate::ospath")]
    pub path: PathBuf,
    #[serde(default)]
    pub tree: u32,
    /// The description by which it is reached, if no path leads to it.
    #[serde(default)]
    pub held: Option<FileId>,
}

impl Spot {
    /// What is recorded of what was found.
    pub fn new(found: Found, files: &BTreeMap<(Pid, RawFd), FileId>) -> Option<Spot> {
        Some(match found {
            Found::Path(path, tree) => Spot {
                path,
                tree,
                held: None,
            },
            Found::Held(pid, fd) => Spot {
                path: PathBuf::new(),
                tree: 0,
                held: Some(*files.get(&(pid, fd))?),
            },
        })
    }

    /// Adds what speaks against finding it again.
    pub fn precheck(&self, options: &Options, out: &mut Vec<Blocker>) {
        let here = options
            .place(self.tree, &self.path)
            .filter(|_| self.held.is_none());
        if let Some(Err(e)) = here.map(std::fs::symlink_metadata) {
            out.push(
                Blocker::at(self.path.display().to_string(), "")
                    .why(format!("the program watched it, and it is missing: {e}"))
                    .remedy("put it back where it was"),
            );
        }
    }

    /// A path to it, and whether that is a link to be followed.
    pub fn reach(&self, nest: &Nest) -> Result<(PathBuf, bool)> {
        match self.held {
            Some(id) => Ok((
                format!("/proc/self/fd/{}", nest.file(id)?.as_raw_fd()).into(),
                true,
            )),
            None => Ok((nest.options.reach(self.tree, &self.path)?, false)),
        }
    }
}

impl Target {
    /// From the words `key:value` of a line of fdinfo.
    pub fn parse(fields: &HashMap<&str, &str>) -> Option<Target> {
        let hex = |key: &str| u64::from_str_radix(fields.get(key)?, 16).ok();
        let handle = match (hex("fhandle-type"), fields.get("f_handle")) {
            (Some(kind), Some(text)) => Some((kind as u8 as i32, unhex(text)?)),
            _ => None,
        };
        Some(Target {
            ino: hex("ino")?,
            sdev: hex("sdev")? as u32,
            handle,
        })
    }

    /// Its device and inode, as stat(2) has them.
    pub fn id(&self) -> (u64, u64) {
        (stat_device(self.sdev), self.ino)
    }
}

/// The device number that stat(2) has for the kernel's form of one.
pub fn stat_device(sdev: u32) -> u64 {
    libc::makedev(sdev >> 20, sdev & 0xfffff)
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = text.chars().map(|c| c.to_digit(16).map(|d| d as u8)).collect();
    let digits = digits.filter(|d| d.len() % 2 == 0)?;
    Some(digits.chunks(2).map(|two| two[0] << 4 | two[1]).collect())
}

/// A mount, open as a path only: it must not be noticed by those who watch it.
struct Mount {
    tree: Tree,
    id: i64,
    at: PathBuf,
    dir: OwnedFd,
}

/// Every mount of a device that can be reached: a handle leads to a path below the one it is opened through.
fn mounts_of(sdev: u32, view: &View) -> Vec<Mount> {
    let wanted = format!("{}:{}", sdev >> 20, sdev & 0xfffff);
    all_mounts(view)
        .filter(|(_, _, device, _)| *device == wanted)
        .filter_map(opened)
        .collect()
}

type Line = (Tree, i64, String, Vec<u8>);

fn all_mounts(view: &View) -> impl Iterator<Item = Line> {
    let text = std::fs::read("/proc/thread-self/mountinfo").unwrap_or_default();
    let own = parse_mounts(&text)
        .into_iter()
        .map(|m| (Tree::default(), m.id, m.device, m.at));
    let trees: Vec<Tree> = view.trees.all().cloned().collect();
    let others = trees.into_iter().flat_map(|tree| {
        let there = view.trees.mounts(tree.number).to_vec();
        there
            .into_iter()
            .map(move |m| (tree.clone(), m.id, m.device, m.at))
    });
    own.chain(others)
}

fn opened((tree, id, _, at): Line) -> Option<Mount> {
    let path = tree.path(&at);
    // Where something else is mounted over it, its path leads to that.
    (ns::mount_id(&path) == Ok(id)).then_some(())?;
    let how = nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_CLOEXEC;
    Some(Mount {
        tree,
        id,
        at: std::ffi::OsStr::from_bytes(&at).into(),
        dir: nix::fcntl::open(&path, how, nix::sys::stat::Mode::empty()).ok()?,
    })
}

/// A mount by its number, as a path and the tree that is in.
pub fn mount_by_id(id: i64, view: &View) -> Option<(PathBuf, u32)> {
    let line = all_mounts(view).find(|(_, i, ..)| *i == id)?;
    opened(line).map(|m| (m.at, m.tree.number))
}

/// Any mount of a file system, as a path and the tree that is in.
pub fn mount_of_device(sdev: u32, view: &View) -> Option<(PathBuf, u32)> {
    let mut all = mounts_of(sdev, view);
    all.sort_by_key(|m| (m.tree.number, m.id));
    all.into_iter().next().map(|m| (m.at, m.tree.number))
}

/// Where each of the files is, or why it is not found.
pub fn find_all(targets: &[Target], view: &View) -> Vec<Result<Found, String>> {
    let none = || "no mount of its file system is in sight".to_owned();
    let mut out: Vec<Result<Found, String>> = targets.iter().map(|_| Err(none())).collect();
    let mut devices: Vec<u32> = targets.iter().map(|t| t.sdev).collect();
    devices.sort_unstable();
    devices.dedup();
    for sdev in devices {
        for mount in mounts_of(sdev, view) {
            let open: Vec<usize> = (0..targets.len())
                .filter(|i| targets[*i].sdev == sdev && out[*i].is_err())
                .collect();
            if open.is_empty() {
                break;
            }
            let look = || {
                open.iter()
                    .map(|i| find(&targets[*i], &mount))
                    .collect::<Vec<_>>()
            };
            // A handle is opened from the directory one stands in: to open that itself would be noticed.
            match standing_in(mount.dir.as_fd(), look) {
                Ok(found) => open.into_iter().zip(found).for_each(|(i, f)| out[i] = f),
                Err(e) => open
                    .into_iter()
                    .for_each(|i| out[i] = Err(format!("{}: {e}", mount.at.display()))),
            }
        }
    }
    for (target, found) in targets.iter().zip(&mut out) {
        if found.is_err()
            && let Some(fd) = view.fds().find(|f| {
                let kinds = [libc::S_IFREG, libc::S_IFDIR, libc::S_IFIFO, libc::S_IFCHR];
                (f.stat.dev, f.stat.ino) == target.id() && kinds.contains(&f.stat.kind())
            })
        {
            *found = Ok(Found::Held(fd.pid, fd.fd));
        }
    }
    out
}

fn find(target: &Target, mount: &Mount) -> Result<Found, String> {
    let Some((kind, handle)) = &target.handle else {
        return Err("its file system has no file handles by which the file could be found".into());
    };
    let file = match open_by_handle_here(*kind, handle, libc::O_PATH) {
        Ok(file) => file,
        Err(e) => {
            let unfound = || format!("its file cannot be found by its handle: {e}");
            return root_of(target, mount).ok_or_else(unfound);
        }
    };
    let link = format!("/proc/thread-self/fd/{}", file.as_raw_fd());
    let path = std::fs::read_link(link).map_err(|e| e.to_string())?;
    match std::fs::symlink_metadata(mount.tree.path(path.as_os_str().as_bytes())) {
        Ok(m) if m.ino() == target.ino => Ok(Found::Path(path, mount.tree.number)),
        _ => Err(format!("no path leads to its file any more ({})", path.display())),
    }
}

/// The root of a mount: devpts, for one, has handles that lead nowhere.
fn root_of(target: &Target, mount: &Mount) -> Option<Found> {
    let there = std::fs::symlink_metadata(mount.tree.path(mount.at.as_os_str().as_bytes()));
    let is_it = there.is_ok_and(|m| (m.dev(), m.ino()) == target.id());
    is_it.then(|| Found::Path(mount.at.clone(), mount.tree.number))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::view::Depth;
    use std::fs::File;
    use std::path::Path;

    fn target_of(path: &Path) -> Option<Target> {
        let stat = std::fs::metadata(path).unwrap();
        let (kind, bytes, _) = crate::sys::files::handle_of(path).ok()?;
        Some(Target {
            ino: stat.ino(),
            sdev: libc::major(stat.dev()) << 20 | libc::minor(stat.dev()),
            handle: Some((kind, bytes)),
        })
    }

    #[test]
    fn renamed_and_unlinked_files_are_found() {
        let path = std::env::temp_dir().join(format!("freeze-marks-{}", std::process::id()));
        let file = File::create(&path).unwrap();
        let Some(target) = target_of(&path) else { return };
        let other = path.with_extension("renamed");
        std::fs::rename(&path, &other).unwrap();
        let own = Pid(std::process::id() as i32);
        let view = View::read(&[own], Depth::Maps).unwrap();
        let found = find_all(std::slice::from_ref(&target), &view);
        assert_eq!(found, [Ok(Found::Path(other.clone(), 0))]);
        std::fs::remove_file(&other).unwrap();
        let found = find_all(&[target], &view);
        assert_eq!(found, [Ok(Found::Held(own, file.as_raw_fd()))]);
    }

    #[test]
    fn mounts_are_found_by_number_and_device() {
        let view = View::default();
        let id = ns::mount_id(Path::new("/proc")).unwrap();
        assert_eq!(mount_by_id(id, &view), Some(("/proc".into(), 0)));
        let dev = std::fs::metadata("/proc").unwrap().dev();
        let sdev = libc::major(dev) << 20 | libc::minor(dev);
        assert_eq!(mount_of_device(sdev, &view), Some(("/proc".into(), 0)));
        assert_eq!(mount_by_id(-5, &view), None);
    }
}
