//! What is registered in a binfmt_misc file system (kernel: Documentation/admin-guide/binfmt-misc.rst): kinds of programs
//! with their interpreters. Each user namespace has one of its own, which goes with its last mount (since Linux 6.7).

use super::mounts::Mount;
use crate::error::{Context, Error, Result};
use crate::nest::Nest;
use crate::nest::space::Kind;
use crate::observe::view::View;
use crate::sys::ns::{self, Step};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// What is told by the files of one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binfmt {
    /// The user namespace whose it is.
    owner: u32,
    enabled: bool,
    /// The newest first, as it is looked at first.
    entries: Vec<Entry>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    name: String,
    enabled: bool,
    interpreter: String,
    flags: String,
    extension: Option<String>,
    offset: u32,
    magic: Vec<u8>,
    mask: Vec<u8>,
}

/// The files that are in each.
const OWN: [&str; 2] = ["register", "status"];

impl Binfmt {
    /// What is registered below `root`, where one of the user namespace `owner` is mounted; or why that cannot be told.
    pub(super) fn read(root: &Path, owner: u32) -> std::result::Result<Binfmt, String> {
        let text = |name: &str| {
            fs::read_to_string(root.join(name)).map_err(|e| format!("{name} in it cannot be read: {e}"))
        };
        let mut entries = Vec::new();
        for found in fs::read_dir(root).map_err(|e| format!("it cannot be read: {e}"))? {
            let name = found.map_err(|e| format!("it cannot be read: {e}"))?.file_name();
            let name = name.into_string().map_err(|_| "a name in it is no text")?;
            if !OWN.contains(&name.as_str()) {
                let told = text(&name)?;
                let entry = Entry::parse(&name, &told).filter(|e| e.registration().is_some());
                entries.push(entry.ok_or_else(|| format!("what it tells of {name} is not understood"))?);
            }
        }
        Ok(Binfmt {
            owner,
            enabled: text("status")?.trim() == "enabled",
            entries,
        })
    }

    /// A new mount of an empty one of the same user namespace, to be put into the tree `number`; none if it is freeze's
    /// own, which any process may mount.
    pub(super) fn mount(&self, m: &Mount, number: u32, nest: &mut Nest) -> Result<Option<OwnedFd>> {
        if self.owner == 0 {
            return Ok(None);
        }
        let name = || format!("mount {}", m.at.display());
        let user = nest.spaces.descriptor(Kind::User, self.owner)?;
        let tree = nest.spaces.descriptor(Kind::Mount, number)?;
        let made = ns::new_mount_by(&[user, tree], &m.fs, &m.source);
        made.map(Some).on("fsmount", name)
    }

    /// Registers everything again; what is there already stays.
    pub(super) fn restore(&self, at: &Path, number: u32, nest: &mut Nest) -> Result<()> {
        let here = nest.options.reach(number, at)?;
        let path = |name: &str| [at.join(name).as_os_str().as_bytes(), b"\0"].concat();
        let mut into = Vec::new();
        if self.owner != 0 {
            into.push(Step::Enter(nest.spaces.descriptor(Kind::User, self.owner)?));
        }
        into.push(Step::Enter(nest.spaces.descriptor(Kind::Mount, number)?));
        let mut steps = into.clone();
        let before = Binfmt::read(&here, self.owner).ok();
        for entry in self.entries.iter().rev() {
            if before.as_ref().is_some_and(|b| b.entries.contains(entry)) {
                continue;
            }
            let text = entry.registration().unwrap_or_default();
            steps.push(Step::Write(path("register"), text));
            if !entry.enabled {
                steps.push(Step::Write(path(&entry.name), b"0".to_vec()));
            }
        }
        if !self.enabled {
            steps.push(Step::Write(path("status"), b"0".to_vec()));
        }
        ns::perform_steps(&steps).map_err(|(n, errno)| {
            let what = steps.get(n).map_or(String::new(), |step| match step {
                Step::Write(to, text) => format!(
                    "{} to {}",
                    String::from_utf8_lossy(text),
                    String::from_utf8_lossy(to).trim_end_matches('\0')
                ),
                step => format!("{step:?}"),
            });
            Error::kernel("write", what, errno)
        })
    }
}

impl Entry {
    /// Parses what its file says.
    fn parse(name: &str, text: &str) -> Option<Entry> {
        let mut entry = Entry {
            name: name.to_owned(),
            ..Entry::default()
        };
        for (n, line) in text.lines().enumerate() {
            match line.split_once(' ') {
                None if n == 0 => entry.enabled = line == "enabled",
                Some(("interpreter", path)) => path.clone_into(&mut entry.interpreter),
                Some(("flags:", flags)) => flags.clone_into(&mut entry.flags),
                Some(("extension", found)) => {
                    entry.extension = Some(found.strip_prefix('.')?.to_owned());
                }
                Some(("offset", n)) => entry.offset = n.parse().ok()?,
                Some(("magic", bytes)) => entry.magic = hex(bytes)?,
                Some(("mask", bytes)) => entry.mask = hex(bytes)?,
                None if line == "flags:" => {}
                _ => return None,
            }
        }
        Some(entry)
    }

    /// What registers it; none if there is no character to set its parts apart.
    fn registration(&self) -> Option<Vec<u8>> {
        let escaped = |bytes: &[u8]| -> String { bytes.iter().map(|b| format!("\\x{b:02x}")).collect() };
        let (kind, offset, what) = match &self.extension {
            Some(extension) => ('E', String::new(), extension.clone()),
            None => ('M', self.offset.to_string(), escaped(&self.magic)),
        };
        let parts = [
            self.name.clone(),
            kind.to_string(),
            offset,
            what,
            escaped(&self.mask),
            self.interpreter.clone(),
            self.flags.clone(),
        ];
        let apart = ":|,;!#%&+=~^\u{1}\u{2}\u{3}".chars();
        let mut apart = apart.filter(|c| !parts.iter().any(|p| p.contains(*c)));
        let apart = apart.next()?.to_string();
        Some([&*apart, &parts.join(&apart)].concat().into_bytes())
    }
}

fn hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes().chunks(2);
    digits
        .map(|two| u8::from_str_radix(std::str::from_utf8(two).ok()?, 16).ok())
        .collect()
}

/// The number of the user namespace whose binfmt_misc is mounted in the tree `number`: the one that owns the tree.
pub(super) fn owner(number: u32, view: &View) -> u32 {
    let member = view.each().find(|p| view.namespace(p, "mnt") == number);
    let tree = member.and_then(|p| File::open(format!("/proc/{}/ns/mnt", p.speaker)).ok());
    let owner = tree.and_then(|tree| ns::owner(tree.as_fd()).ok());
    let inode = owner.and_then(|owner| nix::sys::stat::fstat(owner).ok());
    let number = inode.and_then(|s| view.foreign.get(&("user".to_owned(), s.st_ino)));
    number.copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_registers_it_again() {
        let text = "enabled\ninterpreter /bin/a:b\nflags: OC\noffset 2\nmagic 7f3a00\nmask ffff0f\n";
        let entry = Entry::parse("x", text).unwrap();
        assert_eq!(
            entry.registration().unwrap(),
            b"|x|M|2|\\x7f\\x3a\\x00|\\xff\\xff\\x0f|/bin/a:b|OC"
        );
        let text = "disabled\ninterpreter /usr/bin/x\nflags: \nextension .foo\n";
        let entry = Entry::parse("y", text).unwrap();
        assert!(!entry.enabled);
        assert_eq!(entry.registration().unwrap(), b":y:E::foo::/usr/bin/x:");
        assert_eq!(Entry::parse("z", "enabled\nsomething new\n"), None);
    }
}
