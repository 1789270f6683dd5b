//! Limits that belong to a user namespace (/proc/sys/user) or to a pid namespace (pid_max, memfd_noexec), and the id that
//! was given out last in a pid namespace.

use super::Namespace;
use crate::error::{Context, Result};
use crate::nest::Nest;
use crate::nest::space::Kind;
use crate::sys::ns::{self, Step};
use nix::Result as Sys;
use std::os::fd::{AsRawFd, BorrowedFd};

const USER: &str = "/proc/sys/user";
/// Each with the first kernel, as major and minor number, in which it is not that of the whole machine.
const PID: [(&str, (u32, u32)); 2] = [
    ("/proc/sys/kernel/pid_max", (6, 14)),
    ("/proc/sys/vm/memfd_noexec", (6, 3)),
];

/// What is given out next is the one after it.
const LAST: &str = "/proc/sys/kernel/ns_last_pid";

/// Which files there are for a kind of namespace.
fn files(kind: Kind) -> Vec<String> {
    match kind {
        Kind::User => {
            let all = std::fs::read_dir(USER).into_iter().flatten().flatten();
            let names = all.filter_map(|e| e.file_name().into_string().ok());
            let mut files: Vec<String> = names.map(|n| format!("{USER}/{n}")).collect();
            files.sort();
            files
        }
        Kind::Pid => {
            let here = kernel();
            let own = PID.iter().filter(|(_, since)| here >= *since);
            own.map(|(file, _)| (*file).to_owned()).collect()
        }
        _ => Vec::new(),
    }
}

/// Major and minor number of the running kernel.
fn kernel() -> (u32, u32) {
    let release = nix::sys::utsname::uname().map(|u| u.release().to_string_lossy().into_owned());
    numbers(&release.unwrap_or_default())
}

fn numbers(release: &str) -> (u32, u32) {
    let mut words = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|w| w.parse().unwrap_or(0));
    (words.next().unwrap_or(0), words.next().unwrap_or(0))
}

/// How to get into a namespace of a kind, for who is born in it if that is a pid namespace.
fn way(kind: Kind, namespace: BorrowedFd<'_>) -> (Vec<Step>, Option<BorrowedFd<'_>>) {
    match kind {
        Kind::Pid => (Vec::new(), Some(namespace)),
        _ => (vec![Step::Enter(namespace.as_raw_fd())], None),
    }
}

fn read(kind: Kind, namespace: BorrowedFd<'_>, files: Vec<String>) -> Sys<Vec<(String, String)>> {
    if files.is_empty() {
        return Ok(Vec::new());
    }
    let (steps, born) = way(kind, namespace);
    let values = ns::read_inside(steps, born, &files)?;
    Ok(files.into_iter().zip(values).collect())
}

/// Those of a namespace; what a fresh one has too is left out.
pub(super) fn collect(kind: Kind, namespace: BorrowedFd<'_>) -> Result<Vec<(String, String)>> {
    /// The kernel's own value for everything in [`USER`].
    const NONE: &str = "2147483647";
    let mut wanted = files(kind);
    if kind == Kind::Pid {
        wanted.push(LAST.to_owned());
    }
    let mut all = read(kind, namespace, wanted).on("setns", || format!("a {} namespace", kind.name()))?;
    all.retain(|(file, value)| match kind {
        Kind::User => value != NONE && !value.is_empty(),
        _ if file == LAST => !value.is_empty(),
        _ => std::fs::read_to_string(file).is_ok_and(|own| own.trim() != value) && !value.is_empty(),
    });
    for (_, last) in all.iter_mut().filter(|(file, _)| file == LAST) {
        // That of who was born there to read it.
        *last = last.parse().map_or(0, |l: i32| (l - 1).max(0)).to_string();
    }
    Ok(all)
}

/// Sets those of namespaces that were made anew, now that nothing more is made in them.
pub(super) fn restore(namespace: &Namespace, nest: &mut Nest) {
    let kind = namespace.kind;
    if namespace.limits.is_empty() {
        return;
    }
    let Some(fd) = nest.spaces.get(kind, namespace.number) else {
        return;
    };
    let mut known = files(kind);
    known.push(LAST.to_owned());
    let mut lost = Vec::new();
    for (file, value) in &namespace.limits {
        let set = || -> Sys<()> {
            let (mut steps, born) = way(kind, fd);
            let path = format!("{file}\0").into_bytes();
            steps.push(Step::Write(path, value.clone().into_bytes()));
            ns::perform_inside(&steps, born)
        };
        // Where it is not the namespace's own it would be everybody's.
        if !known.contains(file) || set().is_err() {
            lost.push(format!(
                "{} namespace {}: {file} is not {value} as before",
                kind.name(),
                namespace.number
            ));
        }
    }
    nest.warnings.extend(lost);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn kernels_are_told_apart() {
        assert_eq!(numbers("6.18.44-some"), (6, 18));
        assert_eq!(numbers("6.1"), (6, 1));
        assert!((6, 3) > numbers("6.1.0-13-amd64") && (6, 14) <= numbers("7.0.1"));
    }

    #[test]
    fn limits_of_our_own_are_read() {
        let own = std::fs::File::open("/proc/self/ns/pid").unwrap();
        let file = "/proc/sys/kernel/pid_max".to_owned();
        let found = read(Kind::Pid, own.as_fd(), vec![file.clone()]);
        // Only root may be born there.
        if let Ok(found) = found {
            let value = std::fs::read_to_string(&file).unwrap().trim().to_owned();
            assert_eq!(found, [(file, value)]);
        }
    }
}
