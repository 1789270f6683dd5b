//! What this kernel grants freeze, found by trying it, and what is lost where it does not.

use crate::error::errno;
use crate::ids::Pid;
use crate::observe::btf::Btf;
use crate::observe::sockets;
use crate::proc::status::Status;
use crate::sys::{self, bpf, missing, pagemap, trial, uffd};
use nix::errno::Errno;
use serde::Serialize;
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// One thing freeze would like to have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub name: &'static str,
    pub granted: bool,
    /// The kernel's answer where it is no, or what exactly was found.
    pub detail: String,
    /// What it is for.
    pub purpose: &'static str,
    /// What is lost without it.
    pub without: &'static str,
}

/// How freeze learns which pages were written, from the best to the worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Tier {
    /// Write faults logged by kernel programs, verified by scans.
    FaultLog,
    /// Asynchronous write-protection and `PAGEMAP_SCAN`.
    PagemapScan,
    /// Soft-dirty bits.
    SoftDirty,
    /// No tracking: each checkpoint reads all memory.
    Everything,
}

impl Tier {
    /// 1 is the best.
    pub fn number(self) -> u8 {
        self as u8 + 1
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self {
            Tier::FaultLog => "write faults are logged, the pause does not grow with memory",
            Tier::PagemapScan => "written pages are scanned for in the pause, about 0.7 ms per GiB",
            Tier::SoftDirty => "written pages are scanned for in the pause, about 8 ms per GiB",
            Tier::Everything => "written pages are not known, every checkpoint reads all memory",
        };
        write!(f, "{} ({what})", self.number())
    }
}

/// Everything that was tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// `uname -r`.
    pub kernel: String,
    pub findings: Vec<Finding>,
    pub tier: Tier,
}

impl Report {
    /// Whether a thing was granted; `false` also for an unknown name.
    pub fn granted(&self, name: &str) -> bool {
        self.findings.iter().any(|f| f.name == name && f.granted)
    }
}

/// What a trial found: a detail, or the kernel's answer.
type Trial = Result<String, Errno>;

/// Tries everything. Takes some milliseconds, changes nothing, and works for any user.
pub fn examine() -> Report {
    let btf = Btf::running();
    let mut findings = Vec::new();
    let mut add = |name, trial: Trial, purpose, without| {
        let (granted, detail) = match trial {
            Ok(detail) => (true, detail),
            Err(errno) => (false, format!("{} ({errno:?})", errno.desc())),
        };
        findings.push(Finding {
            name,
            granted,
            detail,
            purpose,
            without,
        });
    };
    kernel_programs(btf.as_ref().ok(), &mut add);
    memory(&mut add);
    processes(&mut add);
    capabilities(&mut add);
    for (name, families, without) in [
        (
            "unix_diag",
            &[libc::AF_UNIX][..],
            "connected unix sockets cannot be paired",
        ),
        (
            "inet_diag",
            &[libc::AF_INET, libc::AF_INET6][..],
            "states and queues of TCP are not known",
        ),
        (
            "packet_diag",
            &[libc::AF_PACKET][..],
            "packet sockets are refused",
        ),
        (
            "netlink_diag",
            &[libc::AF_NETLINK][..],
            "netlink sockets are refused",
        ),
    ] {
        let trial = families.iter().try_for_each(|&family| sockets::diagnosed(family));
        add(
            name,
            trial.map(|()| String::new()),
            "which sockets are joined, and how",
            without,
        );
    }
    drop(btf);
    bpf::trim();
    let tier = tier(&findings);
    let kernel = nix::sys::utsname::uname().map(|u| u.release().to_string_lossy().into_owned());
    Report {
        kernel: kernel.unwrap_or_default(),
        findings,
        tier,
    }
}

/// The best means of dirty tracking that what was found allows.
fn tier(findings: &[Finding]) -> Tier {
    let all = |names: &[&str]| {
        names
            .iter()
            .all(|n| findings.iter().any(|f| f.name == *n && f.granted))
    };
    let scan = all(&["PAGEMAP_SCAN", "userfaultfd WP_ASYNC"]);
    if scan && all(&["BTF", "tp_btf", "iterators", "ring buffer"]) {
        Tier::FaultLog
    } else if scan {
        Tier::PagemapScan
    } else if all(&["soft-dirty"]) {
        Tier::SoftDirty
    } else {
        Tier::Everything
    }
}

type Add<'a> = &'a mut dyn FnMut(&'static str, Trial, &'static str, &'static str);

/// Program types by their number in bpf(2).
mod program {
    pub(super) const RAW_TRACEPOINT: u32 = 17;
    pub(super) const TRACING: u32 = 26;
    pub(super) const LSM: u32 = 29;
}

/// Attach types by their number in bpf(2).
mod attach {
    pub(super) const RAW_TP: u32 = 23;
    pub(super) const FENTRY: u32 = 24;
    pub(super) const LSM: u32 = 27;
    pub(super) const ITER: u32 = 28;
}

fn kernel_programs(btf: Option<&Btf>, add: Add<'_>) {
    let missing: Vec<String> = freeze_common::Member::ALL
        .iter()
        .filter(|(_, structure, member)| btf.is_some_and(|b| b.offset(structure, member).is_none()))
        .map(|(_, structure, member)| format!("{structure}.{member}"))
        .collect();
    let found = match btf {
        None => Err(Errno::ENOENT),
        Some(_) if !missing.is_empty() => Err(Errno::ENOMSG),
        Some(_) => Ok(format!("{} members found", freeze_common::MEMBERS)),
    };
    add(
        "BTF",
        found,
        "where members of kernel structures lie",
        "no kernel programs, no live map",
    );

    let functions = btf.map(|b| b.ids(true, &["fd_install", "bpf_lsm_file_open", "bpf_iter_task_file"]));
    let typedefs = btf.map(|b| b.ids(false, &["btf_trace_sched_process_exit"]));
    let function = |name: &str| {
        functions
            .as_ref()
            .and_then(|f| f.get(name))
            .copied()
            .ok_or(Errno::ENOENT)
    };
    let typedef = |name: &str| {
        typedefs
            .as_ref()
            .and_then(|t| t.get(name))
            .copied()
            .ok_or(Errno::ENOENT)
    };
    let attached = |program: nix::Result<OwnedFd>| -> Trial {
        bpf::attach_raw(program?.as_fd(), None).map(|_| String::new())
    };

    let id = typedef("btf_trace_sched_process_exit");
    add(
        "tp_btf",
        id.and_then(|id| attached(bpf::try_program(program::TRACING, attach::RAW_TP, id))),
        "forks, execs, exits and page faults as they happen",
        "no live map, no notice of deaths, no fault log",
    );
    let id = function("fd_install");
    add(
        "fentry",
        id.and_then(|id| attached(bpf::try_program(program::TRACING, attach::FENTRY, id))),
        "fds that no system call's exit tells of (io_uring, seccomp supervisors)",
        "such fds are found by audits only",
    );
    let id = function("bpf_lsm_file_open");
    add(
        "LSM programs",
        id.and_then(|id| attached(bpf::try_program(program::LSM, attach::LSM, id))),
        "not used: shown for completeness",
        "nothing",
    );
    let raw = bpf::try_program(program::RAW_TRACEPOINT, 0, 0);
    add(
        "raw tracepoints",
        raw.and_then(|p| bpf::attach_raw(p.as_fd(), Some(c"sched_process_exit")))
            .map(|_| String::new()),
        "tracepoints where BTF has none",
        "nothing while tp_btf is granted",
    );
    let iterate = |id| -> Trial {
        let program = bpf::try_program(program::TRACING, attach::ITER, id)?;
        let own = Pid(std::process::id() as i32);
        bpf::iterate_process(program.as_fd(), own).map(|_| String::new())
    };
    add(
        "iterators",
        function("bpf_iter_task_file").and_then(iterate),
        "which fds share an open file description, read in one go",
        "no live map",
    );
    const RINGBUF: u32 = 27;
    add(
        "ring buffer",
        bpf::try_map(RINGBUF, 0, 0, 4096).map(|_| String::new()),
        "events from the kernel programs",
        "no kernel programs, no live map",
    );
}

fn memory(add: Add<'_>) {
    let own = Pid(std::process::id() as i32);
    let scans = pagemap::open(own).is_ok_and(|map| map.scans());
    add(
        "PAGEMAP_SCAN",
        if scans {
            Ok(String::new())
        } else {
            Err(Errno::ENOTTY)
        },
        "written pages, found quickly (Linux 6.7)",
        "soft-dirty bits are read instead, ten times slower",
    );
    let tracked = uffd::own().and_then(uffd::Uffd::start);
    add(
        "userfaultfd WP_ASYNC",
        tracked.map(|u| format!("features {:#x}", u.features())),
        "knowing which pages were written (Linux 6.7)",
        "soft-dirty bits, or every page in every checkpoint",
    );
    let later = missing::own().and_then(missing::Filler::start);
    add(
        "userfaultfd for missing pages",
        later.map(|_| String::new()),
        "`freeze restore --lazy`: programs run while their memory comes in",
        "all memory is filled before they run",
    );
    add(
        "soft-dirty",
        if pagemap::has_soft_dirty() {
            Ok(String::new())
        } else {
            Err(Errno::ENOSYS)
        },
        "knowing which pages were written, on kernels before 6.7",
        "nothing while WP_ASYNC is granted",
    );
    add(
        "map_files",
        map_files(),
        "the files behind mappings, also unlinked ones",
        "a mapped file is found by its path only; if that is gone it is refused",
    );
    add(
        "PROCMAP_QUERY",
        procmap_query(),
        "single mappings without reading all of them (Linux 6.11)",
        "/proc/PID/maps is read as a whole",
    );
    add(
        "PR_SET_MM_MAP",
        trial::set_mm_map_size().map(|size| format!("{size} bytes")),
        "heap, arguments and environment of a restored process where they were",
        "nothing can be restored",
    );
}

/// Opens the file behind the first mapping that has one; only with the right capability does that work.
fn map_files() -> Trial {
    let directory = std::fs::read_dir("/proc/self/map_files").map_err(errno)?;
    let first = directory.flatten().next().ok_or(Errno::ENOENT)?;
    std::fs::metadata(first.path())
        .map(|_| String::new())
        .map_err(errno)
}

/// Asks for the mapping of this function's own code.
fn procmap_query() -> Trial {
    const PROCMAP_QUERY: u64 = 0xc068_6611;
    const COVERING_OR_NEXT: u64 = 0x10;
    let maps = std::fs::File::open("/proc/self/maps").map_err(errno)?;
    // struct procmap_query: size, flags, address, then the answer.
    let mut query = [0u8; 104];
    query[..8].copy_from_slice(&104u64.to_ne_bytes());
    query[8..16].copy_from_slice(&COVERING_OR_NEXT.to_ne_bytes());
    query[16..24].copy_from_slice(&(procmap_query as fn() -> Trial as usize as u64).to_ne_bytes());
    sys::ioctl_bytes(maps.as_fd(), PROCMAP_QUERY, &mut query).map(|_| String::new())
}

fn processes(add: Add<'_>) {
    let own = Pid(std::process::id() as i32);
    let getfd = || -> Trial {
        let pidfd = sys::pidfd_open(own)?;
        let file = std::fs::File::open("/dev/null").map_err(errno)?;
        sys::pidfd_getfd(pidfd.as_fd(), file.as_raw_fd()).map(|_| String::new())
    };
    add(
        "pidfd_getfd",
        getfd(),
        "open files of a stopped process",
        "no checkpoint of open files",
    );
    add(
        "clone3 set_tid",
        trial::choose_pid().map(|()| String::new()),
        "the same pids after a restore",
        "nothing can be restored",
    );
    let kcmp = || -> Trial {
        let file = std::fs::File::open("/dev/null").map_err(errno)?;
        let fd = file.as_raw_fd();
        match sys::same_file(own, fd, own, fd)? {
            true => Ok(String::new()),
            false => Err(Errno::EIO),
        }
    };
    add(
        "kcmp",
        kcmp(),
        "which fds share an open file description",
        "sharing is lost: fds would go apart",
    );
    let now = std::fs::metadata("/proc/self/ns/time").map_err(errno);
    add(
        "time namespace",
        now.and_then(|_| trial::time_namespace()).map(|()| String::new()),
        "a monotonic clock that goes on after a reboot",
        "CLOCK_MONOTONIC jumps when restored after a reboot",
    );
    add(
        "ptrace suspend seccomp",
        trial::suspend_seccomp().map(|()| String::new()),
        "processes with seccomp filters",
        "processes with seccomp filters are refused",
    );
}

fn capabilities(add: Add<'_>) {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = Status::parse(&text).map_or(0, |s| s.cap_eff);
    for (name, bit, purpose, without) in [
        (
            "CAP_CHECKPOINT_RESTORE",
            40,
            "pids, exe links and map_files",
            "CAP_SYS_ADMIN is needed instead",
        ),
        (
            "CAP_SYS_ADMIN",
            21,
            "namespaces, seccomp, the rest of a restore",
            "most restores are refused",
        ),
        (
            "CAP_SYS_PTRACE",
            19,
            "stopping processes of others",
            "only processes of the same user",
        ),
        (
            "CAP_SYS_RESOURCE",
            24,
            "limits above one's own, PR_SET_MM field by field",
            "limits are set inside the target; raising hard limits fails",
        ),
        (
            "CAP_BPF",
            39,
            "kernel programs",
            "CAP_SYS_ADMIN is needed instead, else no live map",
        ),
        (
            "CAP_NET_ADMIN",
            12,
            "connected TCP sockets (repair mode)",
            "connected TCP sockets are refused",
        ),
    ] {
        let granted = effective >> bit & 1 == 1;
        add(
            name,
            if granted {
                Ok(String::new())
            } else {
                Err(Errno::EPERM)
            },
            purpose,
            without,
        );
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Linux {}", self.kernel)?;
        let width = self.findings.iter().map(|x| x.name.len()).max().unwrap_or(0);
        for finding in &self.findings {
            let answer = if finding.granted { "yes" } else { "no" };
            write!(f, "  {:width$}  {answer:3}  {}", finding.name, finding.purpose)?;
            match (finding.granted, finding.detail.as_str()) {
                (true, "") => writeln!(f)?,
                (true, detail) => writeln!(f, " [{detail}]")?,
                (false, detail) => {
                    writeln!(f, " [{detail}]")?;
                    writeln!(f, "  {:width$}       without: {}", "", finding.without)?;
                }
            }
        }
        writeln!(f, "dirty tracking: tier {}", self.tier)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(name: &'static str, granted: bool) -> Finding {
        Finding {
            name,
            granted,
            detail: String::new(),
            purpose: "p",
            without: "w",
        }
    }

    #[test]
    fn the_tier_is_the_best_that_is_whole() {
        let names = [
            "PAGEMAP_SCAN",
            "userfaultfd WP_ASYNC",
            "BTF",
            "tp_btf",
            "iterators",
            "ring buffer",
            "soft-dirty",
        ];
        let without = |missing: &[&str]| {
            tier(
                &names
                    .iter()
                    .map(|&n| finding(n, !missing.contains(&n)))
                    .collect::<Vec<_>>(),
            )
        };
        assert_eq!(without(&[]), Tier::FaultLog);
        assert_eq!(without(&["tp_btf"]), Tier::PagemapScan);
        assert_eq!(without(&["PAGEMAP_SCAN"]), Tier::SoftDirty);
        assert_eq!(without(&["userfaultfd WP_ASYNC", "soft-dirty"]), Tier::Everything);
        assert_eq!([Tier::FaultLog.number(), Tier::Everything.number()], [1, 4]);
    }

    #[test]
    fn trying_agrees_with_what_is_known_of_this_process() {
        let report = examine();
        let text = std::fs::read_to_string("/proc/self/status").unwrap();
        let effective = Status::parse(&text).unwrap().cap_eff;
        let may = |bit: u32| effective >> bit & 1 == 1;
        assert_eq!(report.granted("CAP_SYS_ADMIN"), may(21));
        assert_eq!(report.granted("clone3 set_tid"), may(40) || may(21));
        assert_eq!(
            report.granted("BTF"),
            std::path::Path::new("/sys/kernel/btf/vmlinux").exists()
        );
        if report.granted("tp_btf") && report.granted("iterators") && report.granted("ring buffer") {
            crate::observe::Observer::start().unwrap();
        }
        let names: std::collections::BTreeSet<_> = report.findings.iter().map(|f| f.name).collect();
        assert_eq!(names.len(), report.findings.len(), "a name is used twice");
        let shown = report.to_string();
        for f in &report.findings {
            let line = shown
                .lines()
                .find(|l| l.trim_start().starts_with(f.name))
                .unwrap();
            assert!(line.contains(if f.granted { " yes " } else { " no " }), "{line}");
        }
        eprintln!("{report}");
    }
}
