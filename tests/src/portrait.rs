//! A portrait of a process tree: everything /proc and kcmp(2) show of it that a restore must not change.
//!
//! It is a flat map from a readable place (`12/fd/3/fdinfo/pos`) to a value, so that a difference names itself.
//! What may lawfully change is left out, and listed here with its reason.

use crate::house;
use crate::subject::{descendants, stat_fields};
use freeze_user::ids::Pid;
use freeze_user::sys::{self, Kcmp, sched};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;

/// Lines of `status` that are no part of what a program is.
const STATUS_CHANGES: &[(&str, &str)] = &[
    ("State", "running or asleep, from one moment to the next"),
    ("VmPeak", "a high-water mark, counted from the restore"),
    ("VmHWM", "a high-water mark, counted from the restore"),
    ("VmRSS", "pages come back when they are touched"),
    ("RssAnon", "pages come back when they are touched"),
    ("RssFile", "pages come back when they are touched"),
    ("RssShmem", "pages come back when they are touched"),
    ("HugetlbPages", "pages come back when they are touched"),
    ("VmPTE", "page tables follow what is resident"),
    ("VmSwap", "where a page lies is the kernel's affair"),
    ("FDSize", "room in the kernel's table, not descriptors"),
    ("SigQ", "counts all signals queued by the user, of every process"),
    (
        "Threads",
        "they are compared one by one, without those the kernel has made for io_uring",
    ),
    ("voluntary_ctxt_switches", "a counter"),
    ("nonvoluntary_ctxt_switches", "a counter"),
];

/// Fields of `stat` that are compared, by their number in proc(5) less 3; the others are counters, or in `status`.
const STAT_KEPT: &[(usize, &str)] = &[
    (2, "pgrp"),
    (3, "session"),
    (4, "tty_nr"),
    (5, "tpgid"),
    (15, "priority"),
    (16, "nice"),
    (20, "vsize"),
    (22, "rsslim"),
    (23, "startcode"),
    (24, "endcode"),
    (25, "startstack"),
    (35, "exit_signal"),
    (37, "rt_priority"),
    (38, "policy"),
    (42, "start_data"),
    (43, "end_data"),
    (44, "start_brk"),
    (45, "arg_start"),
    (46, "arg_end"),
    (47, "env_start"),
    (48, "env_end"),
];

/// Files whose whole text must stay.
const FILES: &[&str] = &[
    "limits",
    "timers",
    "environ",
    "cmdline",
    "auxv",
    "personality",
    "oom_score_adj",
    "coredump_filter",
    "timerslack_ns",
    "loginuid",
    "uid_map",
    "gid_map",
    "setgroups",
    "cgroup",
    "timens_offsets",
    "attr/current",
];

/// Lines of `fdinfo` that may change.
const FDINFO_CHANGES: &[(&str, &str)] = &[
    (
        "ino",
        "objects without a name get a new inode; files are compared by their path",
    ),
    ("eventfd-id", "the kernel's own number"),
    ("map_id", "the kernel's own number"),
    ("it_value", "the time left runs"),
    ("ticks", "a timer that expired counts on when it is looked at"),
    ("drops", "a counter"),
];

/// Flags of a mapping that are the kernel's notes, not the program's wishes.
const VM_FLAGS_CHANGE: &[(&str, &str)] = &[
    ("sd", "soft-dirty: written since somebody asked"),
    ("uw", "write-protected to track writes"),
];

/// What a tree looks like from outside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Portrait(BTreeMap<String, String>);

impl Portrait {
    /// Of the tree below `root`, as it is now.
    pub fn now(root: Pid) -> Portrait {
        let mut portrait = Portrait::default();
        let pids = descendants(root);
        portrait.put("processes", format!("{pids:?}"));
        let mut names = Names::default();
        for &pid in &pids {
            portrait.process(pid, pid == root, &mut names);
        }
        portrait.sharing(&pids);
        portrait
    }

    /// Of a tree that has come to rest: two looks in a row show the same.
    pub fn settled(root: Pid) -> Portrait {
        let mut last = Portrait::now(root);
        for _ in 0..200 {
            std::thread::sleep(std::time::Duration::from_millis(3));
            let next = Portrait::now(root);
            if next == last && !next.has_threads_starting() {
                return next;
            }
            last = next;
        }
        last
    }

    /// Whether a thread has not begun to run its function: the C library blocks all signals until then, its own too.
    fn has_threads_starting(&self) -> bool {
        const ALL: &str = "fffffffffffbfeff";
        let is_mask = |place: &str| place.ends_with("/status/SigBlk");
        self.0.iter().any(|(place, value)| is_mask(place) && value == ALL)
    }

    /// Every difference, a line each; empty if a restore (or a checkpoint) left everything as it was.
    pub fn differences(&self, after: &Portrait) -> Vec<String> {
        let mut out = Vec::new();
        for (place, was) in &self.0 {
            match after.0.get(place) {
                None => out.push(format!("{place}: was {was}, is gone")),
                Some(is) if is != was => out.push(format!("{place}: was {was}, is {is}")),
                Some(_) => {}
            }
        }
        out.extend(
            after
                .0
                .iter()
                .filter(|(p, _)| !self.0.contains_key(*p))
                .map(|(p, is)| format!("{p}: new, {is}")),
        );
        out
    }

    /// The same without the places that change as the program runs.
    pub fn without(&self, changes: impl Fn(&str) -> bool) -> Portrait {
        let kept = self.0.iter().filter(|(place, _)| !changes(place));
        Portrait(kept.map(|(p, v)| (p.clone(), v.clone())).collect())
    }

    /// What it holds about one place, such as `12/status/Umask`.
    pub fn get(&self, place: &str) -> Option<&str> {
        self.0.get(place).map(String::as_str)
    }

    fn put(&mut self, place: impl Into<String>, value: impl Into<String>) {
        self.0.insert(place.into(), value.into());
    }

    fn process(&mut self, pid: Pid, root: bool, names: &mut Names) {
        let dir = format!("/proc/{pid}");
        if stat_fields(&format!("{dir}/stat")).is_some_and(|f| f[0] == "Z") {
            return self.zombie(pid, &dir);
        }
        self.status(&dir, &pid.to_string(), root);
        self.stat(&dir, &pid.to_string());
        for file in FILES {
            let Ok(text) = fs::read(format!("{dir}/{file}")) else {
                continue;
            };
            let separator = if *file == "environ" { b'\0' } else { b'\n' };
            for (n, line) in text
                .split(|b| *b == separator)
                .enumerate()
                .filter(|(_, l)| !l.is_empty())
            {
                let text = printable(line);
                // The id is one out here, and in a user namespace of its own a process has no say in those.
                let text = match text.split_once("/tid.") {
                    _ if *file != "timers" => text,
                    Some((before, _)) if foreign_users(&dir) => format!("{before}/tid"),
                    _ => text,
                };
                self.put(format!("{pid}/{file}/{n}"), text);
            }
        }
        for link in ["cwd", "root", "exe"] {
            self.put(format!("{pid}/{link}"), read_link(&format!("{dir}/{link}")));
        }
        for entry in fs::read_dir(format!("{dir}/ns")).into_iter().flatten().flatten() {
            let place = format!("{pid}/ns/{}", entry.file_name().display());
            // Its own ones are made anew; which of the tree are one and the same must be as it was.
            let link = read_link(&entry.path().display().to_string());
            let kind = link.split(':').next().unwrap_or_default();
            let ours = read_link(&format!("/proc/self/ns/{kind}"));
            let seen = if link == ours {
                "ours".to_owned()
            } else {
                names.canonical(&link)
            };
            self.put(place, seen);
        }
        self.threads(pid, &dir);
        self.memory(pid, &dir);
        self.files(pid, &dir, names);
    }

    /// All that anybody can still learn of a process that has ended: whose it was and how it ended.
    fn zombie(&mut self, pid: Pid, dir: &str) {
        let Some(fields) = stat_fields(&format!("{dir}/stat")) else {
            return;
        };
        for (index, name) in [
            (0, "state"),
            (1, "ppid"),
            (2, "pgrp"),
            (3, "session"),
            (49, "exit_code"),
        ] {
            if let Some(value) = fields.get(index) {
                self.put(format!("{pid}/stat/{name}"), value);
            }
        }
    }

    fn status(&mut self, dir: &str, place: &str, root: bool) {
        let text = fs::read(format!("{dir}/status")).unwrap_or_default();
        for line in String::from_utf8_lossy(&text).lines() {
            let Some((key, value)) = line.split_once(':') else {
                continue;
            };
            // The parent of the whole tree is whoever started or restored it.
            let changes = STATUS_CHANGES.iter().any(|(k, _)| *k == key) || (root && key == "PPid");
            if !changes {
                self.put(
                    format!("{place}/status/{key}"),
                    value.split_whitespace().collect::<Vec<_>>().join(" "),
                );
            }
        }
    }

    fn stat(&mut self, dir: &str, place: &str) {
        let Some(fields) = stat_fields(&format!("{dir}/stat")) else {
            return;
        };
        for (index, name) in STAT_KEPT {
            if let Some(value) = fields.get(*index) {
                self.put(format!("{place}/stat/{name}"), value);
            }
        }
    }

    fn threads(&mut self, pid: Pid, dir: &str) {
        let tids: Vec<i32> = fs::read_dir(format!("{dir}/task"))
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|e| e.file_name().to_str()?.parse().ok())
            .filter(|tid| !is_io_worker(&format!("{dir}/task/{tid}/stat")))
            .collect();
        // In a user namespace of its own a process has no say in the numbers that its threads have out here.
        let inside = foreign_users(dir);
        for tid in tids {
            let task = format!("{dir}/task/{tid}");
            let place = match inner_tid(&task).filter(|_| inside && tid != pid.0) {
                Some(inner) => format!("{pid}/task/{inner} inside"),
                None => format!("{pid}/task/{tid}"),
            };
            self.put(&place, "there");
            self.status(&task, &place, tid == pid.0);
            if inside && tid != pid.0 {
                for ids in ["Pid", "NSpid"] {
                    self.0.remove(&format!("{place}/status/{ids}"));
                }
            }
            self.stat(&task, &place);
            self.put(
                format!("{place}/comm"),
                printable(&fs::read(format!("{task}/comm")).unwrap_or_default()),
            );
            self.put(
                format!("{place}/sched"),
                format!("{:?}", sched::getattr(Pid(tid))),
            );
            self.put(
                format!("{place}/ioprio"),
                format!("{:?}", sched::ioprio(Pid(tid))),
            );
            for (what, name) in [
                (Kcmp::Vm, "memory"),
                (Kcmp::Files, "descriptors"),
                (Kcmp::Fs, "cwd"),
                (Kcmp::Sighand, "handlers"),
            ] {
                let same = sys::kcmp(Pid(tid), pid, what, 0, 0).map(std::cmp::Ordering::is_eq);
                self.put(
                    format!("{place}/shares {name} with its leader"),
                    format!("{same:?}"),
                );
            }
        }
    }

    /// The mappings, neighbours alike in everything joined: where the kernel cuts them tells nothing.
    fn memory(&mut self, pid: Pid, dir: &str) {
        let text = fs::read(format!("{dir}/smaps")).unwrap_or_default();
        let mut vmas: Vec<(u64, u64, u64, String)> = Vec::new();
        for line in String::from_utf8_lossy(&text).lines() {
            let Some((key, rest)) = line.split_once(char::is_whitespace) else {
                continue;
            };
            if let Some((start, end)) = key.split_once('-').filter(|_| !key.ends_with(':')) {
                let number = |s: &str| u64::from_str_radix(s, 16).unwrap_or(0);
                let mut words = rest.trim_start().splitn(5, ' ');
                let mut word = || words.next().unwrap_or("");
                let (perms, offset, dev, inode, name) = (word(), word(), word(), word(), word().trim());
                let nameless = !name.starts_with('/')
                    || name.ends_with(" (deleted)")
                    || name.starts_with("/memfd:")
                    || house::is_own(pid, name);
                let file = if nameless {
                    String::new()
                } else {
                    format!(" {dev} {inode}")
                };
                // A socket is numbered anew; which one it is, its descriptor tells.
                let name = match name {
                    socket if socket.starts_with("socket:[") => "a socket".to_owned(),
                    file if file.starts_with('/') => old_name(file),
                    other => other.to_owned(),
                };
                let about = format!("{perms}{file} {name}");
                vmas.push((number(start), number(end), number(offset), about));
            } else if let Some((_, _, _, about)) = vmas.last_mut() {
                match key {
                    "VmFlags:" => {
                        let flags = rest
                            .split_whitespace()
                            .filter(|f| !VM_FLAGS_CHANGE.iter().any(|(c, _)| c == f));
                        *about += &format!(" [{}]", flags.collect::<Vec<_>>().join(" "));
                    }
                    "ProtectionKey:" => *about += &format!(" key {}", rest.trim()),
                    _ => {}
                }
            }
        }
        let mut joined: Vec<(u64, u64, u64, String)> = Vec::new();
        for (start, end, offset, about) in vmas {
            match joined.last_mut() {
                Some((s, e, o, a))
                    if *e == start
                        && *a == about
                        && (*o + (start - *s) == offset || (*o == 0 && offset == 0)) =>
                {
                    *e = end;
                }
                _ => joined.push((start, end, offset, about)),
            }
        }
        for (start, end, offset, about) in joined {
            self.put(
                format!("{pid}/maps/{start:012x}-{end:012x}"),
                format!("{offset:x} {about}"),
            );
        }
    }

    fn files(&mut self, pid: Pid, dir: &str, names: &mut Names) {
        let mut fds: Vec<i32> = fs::read_dir(format!("{dir}/fd"))
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|e| e.file_name().to_str()?.parse().ok())
            .collect();
        fds.sort_unstable();
        let elsewhere = read_link(&format!("{dir}/ns/mnt")) != read_link("/proc/self/ns/mnt");
        for fd in fds {
            let place = format!("{pid}/fd/{fd}");
            let link = read_link(&format!("{dir}/fd/{fd}"));
            self.put(&place, names.canonical(&link));
            let text = fs::read_to_string(format!("{dir}/fdinfo/{fd}")).unwrap_or_default();
            let mut many: BTreeMap<String, Vec<String>> = BTreeMap::new();
            for line in text.lines() {
                let Some((key, value)) = line.split_once(':') else {
                    continue;
                };
                let key = key.trim();
                if FDINFO_CHANGES.iter().any(|(k, _)| *k == key) {
                    continue;
                }
                // Of a tree of files of its own, the mounts are new, and devices may be on those of freeze.
                if key == "mnt_id" && (elsewhere || !mounted_here(value.trim())) {
                    continue;
                }
                let value = match key {
                    "lock" => lock(value),
                    // Of a watched file, the number and the events: its inode and position are its own affair.
                    "tfd" => value
                        .split("pos:")
                        .next()
                        .unwrap_or(value)
                        .split_whitespace()
                        .collect::<Vec<_>>()
                        .join(" "),
                    // A watched file that was unlinked, or a mount of its own, is made again; which it is, events tell.
                    "inotify wd" | "fanotify ino" | "fanotify mnt_id" | "fanotify sdev" => value
                        .split_whitespace()
                        .skip(usize::from(key.starts_with("fanotify")))
                        .filter(|w| !["ino:", "sdev:", "f_handle:"].iter().any(|k| w.starts_with(k)))
                        .collect::<Vec<_>>()
                        .join(" "),
                    // A file registered with io_uring, by what it is: the inode is another.
                    _ => match value.trim().split_once(":[") {
                        Some((what @ ("pipe" | "socket"), _)) => what.to_owned(),
                        _ => value.trim().to_owned(),
                    },
                };
                many.entry(key.to_owned()).or_default().push(value);
            }
            for (key, mut values) in many {
                values.sort();
                self.put(format!("{place}/fdinfo/{key}"), values.join(" | "));
            }
        }
    }

    /// Which descriptors are one description, and which processes share a table, as kcmp(2) tells.
    fn sharing(&mut self, pids: &[Pid]) {
        let mut alike: BTreeMap<String, Vec<(Pid, i32)>> = BTreeMap::new();
        for &pid in pids {
            for entry in fs::read_dir(format!("/proc/{pid}/fd"))
                .into_iter()
                .flatten()
                .flatten()
            {
                let Some(fd) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else {
                    continue;
                };
                let link = read_link(&entry.path().display().to_string());
                alike.entry(link).or_default().push((pid, fd));
            }
        }
        for mut group in alike.into_values() {
            group.sort_unstable();
            for (n, (pid, fd)) in group.iter().enumerate() {
                let same = |(p, f): &&(Pid, i32)| sys::same_file(*pid, *fd, *p, *f).unwrap_or(false);
                if let Some((first, at)) = group[..n].iter().find(same) {
                    self.put(format!("{pid}/fd/{fd}/one with"), format!("{first}/fd/{at}"));
                }
            }
        }
        for (n, &pid) in pids.iter().enumerate() {
            for (what, name) in [
                (Kcmp::Vm, "memory"),
                (Kcmp::Files, "descriptors"),
                (Kcmp::Fs, "cwd"),
                (Kcmp::Sighand, "handlers"),
            ] {
                let same = |p: &&Pid| sys::kcmp(pid, **p, what, 0, 0).is_ok_and(std::cmp::Ordering::is_eq);
                if let Some(first) = pids[..n].iter().find(same) {
                    self.put(format!("{pid}/shares {name} with"), first.to_string());
                }
            }
        }
    }
}

/// Numbers of pipes and sockets by the order in which they are met: a restore makes new ones.
#[derive(Default)]
struct Names(BTreeMap<String, usize>);

impl Names {
    fn canonical(&mut self, link: &str) -> String {
        let Some((kind, rest)) = link.split_once(":[") else {
            return link.to_owned();
        };
        if rest.trim_end_matches(']').parse::<u64>().is_err() {
            return link.to_owned();
        }
        let next = self.0.len();
        let number = *self.0.entry(link.to_owned()).or_insert(next);
        format!("{kind}:[#{number}]")
    }
}

/// Whether a mount id is one of our own tree of files.
fn mounted_here(id: &str) -> bool {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    text.lines().any(|line| line.split(' ').next() == Some(id))
}

/// A lock without its index in the kernel's list, and without the inode.
///
/// For flock and OFD locks the pid is whoever placed it, which a restorer does on the program's behalf.
fn lock(value: &str) -> String {
    let words: Vec<&str> = value.split_whitespace().skip(1).collect();
    let owned = words.first() == Some(&"POSIX");
    let keep = |n: usize| (n != 3 || owned) && n != 4;
    words
        .iter()
        .enumerate()
        .filter(|(n, _)| keep(*n))
        .map(|(_, w)| *w)
        .collect::<Vec<_>>()
        .join(" ")
}

fn read_link(path: &str) -> String {
    match fs::read_link(path) {
        Ok(to) => old_name(&printable(to.as_os_str().as_bytes())),
        Err(e) => e.to_string(),
    }
}

/// An unlinked file, or a removed directory above it, whose name somebody else has by now comes back under one with
/// `.freeze-PID-N` added, before which a long one is cut off.
fn old_name(path: &str) -> String {
    let Some(name) = path.strip_suffix(" (deleted)") else {
        return path.to_owned();
    };
    // Files of /proc/PID/net look deleted whenever nobody has looked them up for a while.
    if name.starts_with("/proc/") {
        return name.to_owned();
    }
    // What never had a name is called by its inode.
    let nameless = |part: &str| {
        part.strip_prefix('#')
            .is_some_and(|n| !n.is_empty() && n.bytes().all(|c| c.is_ascii_digit()))
    };
    let old = |part: &str| match part.rsplit_once(".freeze-") {
        _ if nameless(part) => "#".to_owned(),
        Some((old, added)) if added.chars().all(|c| c.is_ascii_digit() || c == '-') => old.to_owned(),
        _ => part.to_owned(),
    };
    let short = |part: String| part.chars().take(100).collect::<String>();
    let parts: Vec<String> = name.split('/').map(old).map(short).collect();
    parts.join("/") + " (deleted)"
}

/// Whether a process is in another user namespace.
fn foreign_users(dir: &str) -> bool {
    read_link(&format!("{dir}/ns/user")) != read_link("/proc/self/ns/user")
}

/// Whether a thread is one that the kernel has made to work for io_uring, and that comes and goes.
fn is_io_worker(stat: &str) -> bool {
    const PF_IO_WORKER: u64 = 0x10;
    let flags = stat_fields(stat).and_then(|fields| fields.get(6)?.parse().ok());
    flags.is_some_and(|flags: u64| flags & PF_IO_WORKER != 0)
}

/// The id by which a thread goes where it lives.
fn inner_tid(task: &str) -> Option<String> {
    let text = fs::read(format!("{task}/status")).ok()?;
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().find_map(|l| l.strip_prefix("NSpid:"))?;
    line.split_whitespace().last().map(str::to_owned)
}

fn printable(bytes: &[u8]) -> String {
    bytes.trim_ascii_end().escape_ascii().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_portrait_of_ourselves_has_a_face_and_sees_a_change() {
        let own = Pid(std::process::id() as i32);
        let before = Portrait::now(own);
        assert!(before.get(&format!("{own}/status/Umask")).is_some());
        assert!(before.0.keys().any(|k| k.contains("/maps/")));
        let file = fs::File::open("/dev/null").expect("/dev/null");
        let changed = before.differences(&Portrait::now(own));
        assert!(
            changed
                .iter()
                .any(|d| d.contains("/fd/") && d.contains("/dev/null")),
            "{changed:?}"
        );
        drop(file);
    }

    #[test]
    fn locks_are_told_without_numbers_of_the_kernel() {
        assert_eq!(
            lock("\t1: POSIX  ADVISORY  WRITE 77 fe:00:123 0 EOF"),
            "POSIX ADVISORY WRITE 77 0 EOF"
        );
        assert_eq!(
            lock("\t1: FLOCK  ADVISORY  READ 77 fe:00:123 0 EOF"),
            "FLOCK ADVISORY READ 0 EOF"
        );
    }
}
