//! Looks at what hardly ever changes: one taken before the stop stands for the one in the pause, if one after the resume
//! finds the same.
//!
//! ```text
//! begin ─► looks are real, and kept ─► still ─► looks are those kept ─► the resume ─► confirm: looks at all that
//!                                               what is not, is looked at        counted in the pause once more
//! ```
//! The same before and after is the same in between, short of being changed and changed back within the milliseconds
//! of a checkpoint: nothing that a program does so is looked at through here. What was found different once is looked
//! at in the pause from then on.

use crate::crew;
use crate::observe::filestat::FileStat;
use crate::observe::procfile::read_all;
use std::cell::RefCell;
use std::collections::HashSet;
use std::collections::hash_map::{Entry, HashMap};
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What is looked at: how, where, and the number of something that must be the same there.
type Place = (How, Vec<u8>, u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum How {
    Text,
    Stat,
    /// Device and inode of what lies at a path itself: a directory's times change all the time.
    Identity,
    Link,
}

/// What was found, or the number of the error.
type Found = Result<Seen, i32>;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    Text(Vec<u8>),
    Stat(FileStat),
}

/// What is remembered from one checkpoint to the next.
#[derive(Clone, Debug, Default)]
pub struct Habit {
    /// What was looked at in a pause: next time that is done before.
    wanted: HashSet<Place>,
    /// What was found different after a resume.
    shifty: HashSet<Place>,
}

/// A look that is kept.
#[derive(Debug)]
struct Look {
    found: Found,
    /// It counted in the pause.
    used: bool,
}

#[derive(Debug)]
struct Looks {
    habit: Habit,
    kept: HashMap<Place, Look>,
    /// Whether the set stands still.
    still: bool,
}

impl Looks {
    /// Looks at places of which nothing is kept, by all processors.
    fn look_at(&mut self, places: Vec<Place>) {
        let found = crew::each(&places, real);
        let looks = found.into_iter().map(|found| Look {
            found,
            used: self.still,
        });
        self.kept.extend(places.into_iter().zip(looks));
    }
}

thread_local! {
    static LOOKS: RefCell<Option<Looks>> = const { RefCell::new(None) };
}

/// A checkpoint in which looks are kept, by this thread; dropping it ends that.
#[derive(Debug)]
#[must_use = "dropping it makes all looks real"]
pub struct Kept(());

/// Looks of this thread are kept from now on.
pub fn begin(habit: &Habit) -> Kept {
    LOOKS.set(Some(Looks {
        habit: habit.clone(),
        kept: HashMap::new(),
        still: false,
    }));
    Kept(())
}

impl Kept {
    /// The stop comes next: what the last pause had to look at is looked at, and from now on what was kept counts.
    pub fn still(&self) {
        LOOKS.with_borrow_mut(|looks| {
            let Some(looks) = looks else { return };
            let habit = &looks.habit;
            let wanted = habit.wanted.iter().filter(|p| !habit.shifty.contains(*p));
            let fresh: Vec<Place> = wanted.filter(|p| !looks.kept.contains_key(*p)).cloned().collect();
            looks.look_at(fresh);
            looks.still = true;
        });
    }

    /// After the resume: whether all looks that were taken for ones in the pause were right; with what to remember.
    pub fn confirm(self) -> (bool, Habit) {
        let Some(mut looks) = LOOKS.take() else {
            return (true, Habit::default());
        };
        let mut right = true;
        looks.habit.wanted.clear();
        let used: Vec<_> = looks.kept.drain().filter(|(_, look)| look.used).collect();
        let same = crew::each(&used, |(place, look)| {
            real(place) == look.found || has_ended(&place.1)
        });
        for ((place, _), same) in used.into_iter().zip(same) {
            if same {
                looks.habit.wanted.insert(place);
            } else {
                let path = String::from_utf8_lossy(&place.1);
                tracing::debug!(%path, how = ?place.0, "changed while it was trusted not to");
                looks.habit.shifty.insert(place);
                right = false;
            }
        }
        (right, looks.habit)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        LOOKS.set(None);
    }
}

/// Whether a path is that of a process that is no more, of which nothing can be told.
fn has_ended(path: &[u8]) -> bool {
    let process = path
        .strip_prefix(b"/proc/")
        .and_then(|p| p.split(|b| *b == b'/').next());
    process.is_some_and(|pid| !Path::new("/proc").join(OsStr::from_bytes(pid)).exists())
}

fn real(place: &Place) -> Found {
    let (how, path, _) = place;
    let path = Path::new(OsStr::from_bytes(path));
    let found = match how {
        How::Text => read_all(path).map(Seen::Text),
        How::Stat => std::fs::metadata(path).map(|m| Seen::Stat(FileStat::from(&m))),
        How::Identity => std::fs::symlink_metadata(path).map(|m| {
            Seen::Stat(FileStat {
                dev: m.dev(),
                ino: m.ino(),
                ..FileStat::default()
            })
        }),
        How::Link => std::fs::read_link(path).map(|p| Seen::Text(p.into_os_string().into_vec())),
    };
    found.map_err(|e| e.raw_os_error().unwrap_or(libc::EIO))
}

fn look(how: How, path: &Path, of: u64) -> io::Result<Seen> {
    let found = LOOKS.with_borrow_mut(|looks| {
        let place = (how, path.as_os_str().as_bytes().to_vec(), of);
        let Some(looks) = looks else { return real(&place) };
        if !looks.habit.shifty.is_empty() && looks.habit.shifty.contains(&place) {
            return real(&place);
        }
        let still = looks.still;
        let look = |place: &Place| Look {
            found: real(place),
            used: still,
        };
        let look = match looks.kept.entry(place) {
            Entry::Occupied(at) => at.into_mut(),
            Entry::Vacant(at) => {
                let fresh = look(at.key());
                at.insert(fresh)
            }
        };
        look.used |= still;
        look.found.clone()
    });
    found.map_err(io::Error::from_raw_os_error)
}

fn stat_by(how: How, path: &Path, of: u64) -> io::Result<FileStat> {
    match look(how, path, of)? {
        Seen::Stat(stat) => Ok(stat),
        Seen::Text(_) => Err(io::Error::from_raw_os_error(libc::EIO)),
    }
}

fn text_by(how: How, path: &Path) -> io::Result<Vec<u8>> {
    match look(how, path, 0)? {
        Seen::Text(text) => Ok(text),
        Seen::Stat(_) => Err(io::Error::from_raw_os_error(libc::EIO)),
    }
}

/// The contents of a file of /proc, /sys or a control group.
pub fn text(path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
    text_by(How::Text, path.as_ref())
}

/// Looks at what will be asked for, by all processors; tells whether looks are kept.
fn foresee(places: impl Iterator<Item = Place>) -> bool {
    LOOKS.with_borrow_mut(|looks| {
        let Some(looks) = looks else { return false };
        let known = |p: &Place| looks.kept.contains_key(p) || looks.habit.shifty.contains(p);
        let fresh = places.filter(|p| !known(p)).collect();
        looks.look_at(fresh);
        true
    })
}

/// What lies at these paths will be asked for.
pub fn foresee_identities<'a>(paths: impl Iterator<Item = &'a Path>) {
    foresee(paths.map(|p| (How::Identity, p.as_os_str().as_bytes().to_vec(), 0)));
}

/// The contents of many such files, which are read by all processors.
pub fn texts(paths: &[String]) -> Vec<io::Result<Vec<u8>>> {
    match foresee(paths.iter().map(|p| (How::Text, p.as_bytes().to_vec(), 0))) {
        true => paths.iter().map(text).collect(),
        false => crew::each(paths, |path| read_all(path)),
    }
}

/// The same of one that holds nothing but text; what is none is replaced.
pub fn string(path: impl AsRef<Path>) -> io::Result<String> {
    text(path).map(|t| String::from_utf8_lossy(&t).into_owned())
}

/// The file behind a mapping of the inode `of`, to which `path` leads.
pub fn stat_of(path: impl AsRef<Path>, of: u64) -> io::Result<FileStat> {
    stat_by(How::Stat, path.as_ref(), of)
}

/// Device and inode of what lies at a path itself.
pub fn identity(path: impl AsRef<Path>) -> io::Result<(u64, u64)> {
    stat_by(How::Identity, path.as_ref(), 0).map(|s| (s.dev, s.ino))
}

/// Where a link leads.
pub fn link(path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
    text_by(How::Link, path.as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_seen_before_counts_in_between_and_is_looked_at_again_afterwards() {
        let path = std::env::temp_dir().join(format!("freeze-looks-{}", std::process::id()));
        let write = |text: &str| std::fs::write(&path, text).unwrap();
        write("one");
        let kept = begin(&Habit::default());
        assert_eq!(text(&path).unwrap(), b"one");
        kept.still();
        write("two");
        assert_eq!(text(&path).unwrap(), b"one");
        let (right, habit) = kept.confirm();
        assert!(!right);
        assert_eq!(text(&path).unwrap(), b"two", "looks are real again");
        // It has shown that it changes.
        let kept = begin(&habit);
        assert_eq!(text(&path).unwrap(), b"two");
        kept.still();
        write("three");
        assert_eq!(text(&path).unwrap(), b"three");
        assert!(kept.confirm().0);
        let _ = std::fs::remove_file(&path);
    }

    #[test]
    fn what_a_pause_looked_at_is_looked_at_before_the_next() {
        let path = std::env::temp_dir().join(format!("freeze-habit-{}", std::process::id()));
        std::fs::write(&path, "here").unwrap();
        let kept = begin(&Habit::default());
        kept.still();
        assert_eq!(text(&path).unwrap(), b"here");
        let (right, habit) = kept.confirm();
        assert!(right);
        let kept = begin(&habit);
        kept.still();
        let _ = std::fs::remove_file(&path);
        assert_eq!(text(&path).unwrap(), b"here");
        drop(kept);
        assert!(text(&path).is_err());
    }
}
