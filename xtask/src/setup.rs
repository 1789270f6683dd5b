//! Installs what building and testing need and this machine lacks, and says what and why; starts no daemon.

use crate::compiler::{self, Compiler, LLVM};
use crate::host::{self, Distribution};
use crate::output;
use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What a package is for.
#[derive(Clone, Copy, Debug, PartialEq)]
enum For {
    /// Building the two commands.
    Building,
    /// Building the kernel programs, when rustup has no nightly with sources.
    Compiler,
    /// Building bpf-linker, when it is not there.
    Linker,
    /// The tests and the demonstration.
    Testing,
}

/// The packages, each with the reason that is printed when it is installed.
const PACKAGES: &[(&str, For, &str)] = &[
    ("gcc", For::Building, "links Rust programs and compiles zstd"),
    ("libc6-dev", For::Building, "the C library's headers, for zstd"),
    ("pkg-config", For::Building, "finds the system's libraries"),
    (
        "rustc-web",
        For::Compiler,
        "compiles the kernel programs; leaves rustup's compiler alone",
    ),
    ("cargo-web", For::Compiler, "drives that compiler"),
    (
        "rust-web-src",
        For::Compiler,
        "the sources of core, which the kernel programs are built with",
    ),
    ("llvm-22-dev", For::Linker, "the LLVM that bpf-linker is built on"),
    ("libpolly-22-dev", For::Linker, "LLVM's static libraries name it"),
    ("libzstd-dev", For::Linker, "LLVM links to it"),
    ("zlib1g-dev", For::Linker, "LLVM links to it"),
    (
        "redis-server",
        For::Testing,
        "a real program to freeze: the demonstration and the tests",
    ),
    ("redis-tools", For::Testing, "fills and asks redis"),
    ("python3", For::Testing, "a real program to freeze, with threads"),
    (
        "postgresql",
        For::Testing,
        "a real program to freeze: many processes that share memory",
    ),
    (
        "mariadb-server",
        For::Testing,
        "a real program to freeze: very many threads, files by io_uring",
    ),
    (
        "nginx-light",
        For::Testing,
        "a real program to freeze: a server with workers",
    ),
    (
        "memcached",
        For::Testing,
        "a real program to freeze: a server with threads",
    ),
    (
        "haproxy",
        For::Testing,
        "a real program to freeze: a master whose workers follow each other",
    ),
    (
        "bind9",
        For::Testing,
        "a real program to freeze: a server with threads and a journal",
    ),
    ("bind9-dnsutils", For::Testing, "asks and updates bind9"),
    (
        "sqlite3",
        For::Testing,
        "a real program to freeze, in a transaction",
    ),
    (
        "nodejs",
        For::Testing,
        "a real program to freeze, with an event loop and threads",
    ),
    (
        "default-jdk-headless",
        For::Testing,
        "a real program to freeze, with very many threads",
    ),
    (
        "tmux",
        For::Testing,
        "a real program to freeze, with terminals of its own",
    ),
    ("less", For::Testing, "a real program to freeze, on a terminal"),
    (
        "make",
        For::Testing,
        "a real program to freeze: a build under way",
    ),
    ("ffmpeg", For::Testing, "a real program to freeze: a long job"),
    (
        "stress-ng",
        For::Testing,
        "a real program to freeze, which checks itself",
    ),
    ("gzip", For::Testing, "the pipeline of the demonstration"),
    (
        "util-linux",
        For::Testing,
        "setsid, unshare, prlimit: sessions and namespaces for tests",
    ),
    ("iproute2", For::Testing, "ip and tc: networks for tests"),
    (
        "nftables",
        For::Testing,
        "nft: packet filters of a network to freeze",
    ),
    (
        "iptables",
        For::Testing,
        "iptables, of both sorts: packet filters of a network to freeze",
    ),
    (
        "arptables",
        For::Testing,
        "arptables-legacy: packet filters of a network to freeze",
    ),
    (
        "conntrack",
        For::Testing,
        "tells which connections a network keeps track of",
    ),
    (
        "procps",
        For::Testing,
        "ps and pgrep: a second opinion on what /proc says",
    ),
    (
        "strace",
        For::Testing,
        "a tracer that is there first: such a process must be refused",
    ),
    ("criu", For::Testing, "the peer that the bench runs beside freeze"),
];

/// Packages that come with a service, which setup neither starts nor leaves enabled.
const SERVICES: &[(&str, &str)] = &[
    ("redis-server", "redis-server"),
    ("postgresql", "postgresql"),
    ("mariadb-server", "mariadb"),
    ("nginx-light", "nginx"),
    ("memcached", "memcached"),
    ("haproxy", "haproxy"),
    ("bind9", "named"),
];

const BPF_LINKER: (u32, u32, u32) = (0, 13, 0);

const NO_COMPILER: &str = "no compiler that can build the kernel programs: it must come with rust-src. Either\n    \
     rustup toolchain install nightly --component rust-src\nor, on Debian 12,\n    \
     apt-get install -y rustc-web cargo-web rust-web-src";

/// Makes this machine ready for `task`; a second time, there is nothing to do.
pub(crate) fn setup(task: &str) -> Result<()> {
    if let Distribution::Kin(name) = host::check(task)? {
        println!("setup: this is {name}; the package names of Debian 12 are assumed");
    }
    let mut busy = false;
    let missing = missing(compiler::find().is_ok(), linker().is_some(), &installed()?);
    if !missing.is_empty() {
        busy = true;
        install(&missing)?;
    }
    let compiler = match compiler::find() {
        Ok(compiler) => compiler,
        Err(reasons) => bail!("{NO_COMPILER}\nWhat is here:\n    {}", reasons.join("\n    ")),
    };
    if linker().is_none() {
        busy = true;
        install_linker()?;
    }
    busy |= install_components()?;
    if task == "setup" || busy {
        let compiler = match compiler {
            Compiler::Nightly => "rustup's nightly",
            Compiler::System => "/usr/bin/rustc",
        };
        println!(
            "setup: {}; kernel programs are built with {compiler}",
            if busy { "done" } else { "nothing to do" }
        );
    }
    Ok(())
}

/// The rows of [`PACKAGES`] to install.
fn missing(compiler: bool, linker: bool, installed: &BTreeSet<String>) -> Vec<(&'static str, &'static str)> {
    let wanted = |what: For| match what {
        For::Building | For::Testing => true,
        For::Compiler => !compiler,
        For::Linker => !linker,
    };
    let rows = PACKAGES
        .iter()
        .filter(|(name, what, _)| wanted(*what) && !installed.contains(*name));
    rows.map(|&(name, _, why)| (name, why)).collect()
}

/// The names of the packages that are installed.
fn installed() -> Result<BTreeSet<String>> {
    let (_, text) =
        output(Command::new("dpkg-query").args(["-W", "-f", "${db:Status-Status} ${Package}\n"]))?;
    Ok(text
        .lines()
        .filter_map(|line| line.strip_prefix("installed "))
        .map(str::to_string)
        .collect())
}

/// Installs what of these packages is missing: for a task that needs more than the others.
pub(crate) fn install_missing(rows: &[(&'static str, &'static str)]) -> Result<()> {
    let there = installed()?;
    let missing: Vec<_> = rows
        .iter()
        .copied()
        .filter(|(name, _)| !there.contains(*name))
        .collect();
    match missing.is_empty() {
        true => Ok(()),
        false => install(&missing),
    }
}

fn install(rows: &[(&str, &str)]) -> Result<()> {
    println!("setup: installing with apt-get, which may take some minutes:");
    for (name, why) in rows {
        println!("    {name:16} {why}");
    }
    apt_get(&["update"])?;
    let names: Vec<&str> = rows.iter().map(|(name, _)| *name).collect();
    let policy = NoDaemons::hold(Path::new("/usr/sbin/policy-rc.d"))?;
    apt_get(&[&["install", "-y", "--no-install-recommends"], &names[..]].concat()).with_context(|| {
        let compiler = PACKAGES
            .iter()
            .any(|(name, what, _)| *what == For::Compiler && names.contains(name));
        let hint = if compiler {
            format!("\n{NO_COMPILER}")
        } else {
            String::new()
        };
        format!("these packages are needed: {}{hint}", names.join(" "))
    })?;
    drop(policy);
    for (_, service) in SERVICES.iter().filter(|(package, _)| names.contains(package)) {
        // Where there is no init system there is nothing to disable, and it may say so.
        let _ = output(Command::new("update-rc.d").args([service, "disable"]));
    }
    Ok(())
}

fn apt_get(args: &[&str]) -> Result<()> {
    let mut command = Command::new("apt-get");
    // Quiet but for errors.
    command.arg("-qq").stdout(std::process::Stdio::null());
    // Others may be installing at this moment; nobody is there to be asked.
    command
        .args(["-o", "DPkg::Lock::Timeout=120"])
        .args(args)
        .env("DEBIAN_FRONTEND", "noninteractive");
    let status = command.status().with_context(|| format!("{command:?}"))?;
    if !status.success() {
        bail!("{command:?} ended with {status}");
    }
    Ok(())
}

/// Keeps packages from starting their daemons as long as it lives: Debian asks /usr/sbin/policy-rc.d.
#[derive(Debug)]
struct NoDaemons {
    path: PathBuf,
    /// Where the policy that was there waits; `None` if there was none, or it says no by itself.
    aside: Option<PathBuf>,
    ours: bool,
}

const POLICY: &str = "#!/bin/sh\n# Put here by freeze's setup for the time of one apt-get.\nexit 101\n";

impl NoDaemons {
    fn hold(path: &Path) -> Result<NoDaemons> {
        let what = || format!("{}: to keep services from being started", path.display());
        let mut held = NoDaemons {
            path: path.to_path_buf(),
            aside: None,
            ours: false,
        };
        // An earlier setup that was killed may have left its own: it is taken over.
        if path.exists() && std::fs::read_to_string(path).ok().as_deref() != Some(POLICY) {
            let refuses = Command::new(path).args(["redis-server", "start"]).output();
            if refuses.is_ok_and(|out| out.status.code() == Some(101)) {
                return Ok(held);
            }
            let aside = path.with_extension("d.freeze-aside");
            std::fs::rename(path, &aside).with_context(what)?;
            held.aside = Some(aside);
        }
        held.ours = true;
        std::fs::write(path, POLICY).with_context(what)?;
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).with_context(what)?;
        Ok(held)
    }
}

impl Drop for NoDaemons {
    fn drop(&mut self) {
        let undone = match &self.aside {
            Some(aside) => std::fs::rename(aside, &self.path),
            None if self.ours => std::fs::remove_file(&self.path),
            None => Ok(()),
        };
        if let Err(e) = undone {
            eprintln!("{}: could not be put back: {e}", self.path.display());
        }
    }
}

/// Where bpf-linker is, if it is new enough: in PATH, or where cargo installs.
fn linker() -> Option<PathBuf> {
    let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".cargo"));
    let cargo = std::env::var_os("CARGO_HOME").map(PathBuf::from).or(home);
    let here = [
        Some("bpf-linker".into()),
        cargo.map(|dir| dir.join("bin/bpf-linker")),
    ];
    here.into_iter()
        .flatten()
        .find(|path| match output(Command::new(path).arg("--version")) {
            Ok((true, text)) => version(&text).is_some_and(|found| found >= BPF_LINKER),
            _ => false,
        })
}

/// `bpf-linker 0.13.0` as numbers.
fn version(text: &str) -> Option<(u32, u32, u32)> {
    let mut numbers = text.split_whitespace().nth(1)?.split('.').map(|n| n.parse().ok());
    Some((numbers.next()??, numbers.next()??, numbers.next()??))
}

fn install_linker() -> Result<()> {
    let (a, b, c) = BPF_LINKER;
    println!("setup: installing bpf-linker {a}.{b}.{c}, which links the kernel programs");
    let mut command = crate::cargo();
    command.args([
        "install",
        "bpf-linker",
        "--version",
        &format!("{a}.{b}.{c}"),
        "--locked",
        "--force",
    ]);
    command.args(["--no-default-features", "--features", &format!("llvm-{LLVM}")]);
    command.env("LLVM_PREFIX", format!("/usr/lib/llvm-{LLVM}"));
    let status = command.status().with_context(|| format!("{command:?}"))?;
    if !status.success() {
        bail!("{command:?} ended with {status}");
    }
    Ok(())
}

/// Adds rustup's formatter and linter for `cargo xtask test` if they are missing; says whether it had to.
fn install_components() -> Result<bool> {
    let there = |tool: &str| matches!(output(crate::cargo().args([tool, "--version"])), Ok((true, _)));
    let missing: Vec<&str> = ["clippy", "fmt"]
        .into_iter()
        .filter(|tool| !there(tool))
        .collect();
    if missing.is_empty() {
        return Ok(false);
    }
    println!("setup: adding rustup's clippy and rustfmt, which check the sources");
    let added = Command::new("rustup")
        .args(["component", "add", "clippy", "rustfmt"])
        .status();
    if !added.is_ok_and(|status| status.success()) {
        bail!(
            "cargo {} is missing; with rustup it comes by\n    rustup component add clippy rustfmt",
            missing.join(" and cargo ")
        );
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_needed_is_installed() {
        let all: BTreeSet<String> = PACKAGES.iter().map(|(name, ..)| name.to_string()).collect();
        assert_eq!(missing(false, false, &all), []);
        let names = |compiler, linker, installed: &BTreeSet<String>| -> Vec<&str> {
            missing(compiler, linker, installed)
                .into_iter()
                .map(|(name, _)| name)
                .collect()
        };
        let nothing = BTreeSet::new();
        assert!(!names(true, false, &nothing).contains(&"rustc-web"));
        assert!(names(true, false, &nothing).contains(&"llvm-22-dev"));
        assert!(!names(false, true, &nothing).contains(&"llvm-22-dev"));
        assert!(names(false, true, &nothing).contains(&"rust-web-src"));
        let mut but_gzip = all;
        but_gzip.remove("gzip");
        assert_eq!(names(false, false, &but_gzip), ["gzip"]);
    }

    #[test]
    fn versions_are_read() {
        assert_eq!(version("bpf-linker 0.13.0\n"), Some((0, 13, 0)));
        assert!(version("bpf-linker 0.9.14\n") < Some(BPF_LINKER));
        assert_eq!(version("bpf-linker"), None);
    }

    #[test]
    fn daemons_are_kept_from_starting_only_for_a_while() {
        let dir = std::env::temp_dir().join(format!("freeze-xtask-policy-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let path = dir.join("policy-rc.d");
        let answer = || Command::new(&path).status().unwrap().code();

        let held = NoDaemons::hold(&path).unwrap();
        assert_eq!(answer(), Some(101));
        drop(held);
        assert!(!path.exists());

        for own in [0, 101] {
            let text = format!("#!/bin/sh\nexit {own}\n");
            std::fs::write(&path, &text).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
            let held = NoDaemons::hold(&path).unwrap();
            assert_eq!(answer(), Some(101));
            drop(held);
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }

        std::fs::write(&path, POLICY).unwrap();
        drop(NoDaemons::hold(&path).unwrap());
        assert!(!path.exists(), "the remains of a setup that was killed stay");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
