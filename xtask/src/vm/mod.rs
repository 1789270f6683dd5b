//! Two of Debian's kernels in one virtual machine: what is checkpointed under the first is restored under the second.
//!
//! QEMU with software emulation boots the first kernel; every test plays its first half there (`FREEZE_HALF`, see
//! `tests/src/across.rs`) and leaves its image on the machine's disk; kexec(8) jumps into the second kernel, where the
//! second halves restore and judge. Nothing is installed into /boot, nothing outlives the virtual machine.

mod disk;
mod kernel;

use crate::brood::Brood;
use crate::test::{Tally, test_binaries};
use crate::{host, output, setup, target_dir};
use anyhow::{Context, Result, bail};
use kernel::Kernel;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What only this task needs, with the reason.
const PACKAGES: &[(&str, &str)] = &[
    ("qemu-system-x86", "the virtual machine"),
    ("kexec-tools", "jumps from one kernel into the other inside of it"),
    ("busybox-static", "the machine's shell and tools"),
    ("e2fsprogs", "makes its disk"),
    ("cpio", "packs its first file system"),
    ("kmod", "tells which modules need which"),
    ("lz4", "unpacks kernels"),
    ("zstd", "unpacks kernels"),
    ("xz-utils", "unpacks kernels"),
];

/// How long the boots may take that a run is made of, and how long each half of a test.
const BOOTS: Duration = Duration::from_secs(240);
const HALF: Duration = Duration::from_secs(60);

/// Arguments of `cargo xtask vm`.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct VmArgs {
    /// The kernel to checkpoint under, as Debian 12 has it
    #[arg(long, default_value = "6.1", value_name = "VERSION")]
    from: String,
    /// The kernel to restore under; the same version is possible: another boot of it
    #[arg(long, default_value = "6.12", value_name = "VERSION")]
    to: String,
    /// Only tests whose name contains one of these, such as `eventfd` or `threads::signals`
    tests: Vec<String>,
}

impl VmArgs {
    /// The short run that is part of `cargo xtask test`.
    pub(crate) fn short() -> VmArgs {
        let tests = [
            "eventfd::",
            "restart::",
            "signals::pending",
            "pipe::contents",
            "epoll::watches",
            "threads::registers",
            "memory::shared_since_fork",
            "regular::positions",
            "tcp::established_conforms",
            "clocks::clocks::",
        ];
        VmArgs {
            from: "6.1".into(),
            to: "6.12".into(),
            tests: tests.map(str::to_owned).to_vec(),
        }
    }
}

/// One test in one of the test programs.
#[derive(Clone, Debug)]
struct Case {
    /// `program::test`, which is also how it is asked for.
    name: String,
    binary: PathBuf,
    /// Where cargo would run it.
    dir: PathBuf,
    /// Its name inside the program.
    test: String,
}

/// Runs the tests over two kernels; prints a line each and returns how they went.
pub(crate) fn run(brood: &mut Brood, args: &VmArgs) -> Result<Tally> {
    host::check("vm")?;
    setup::install_missing(PACKAGES)?;
    let home = target_dir().join("vm");
    std::fs::create_dir_all(&home).with_context(|| home.display().to_string())?;
    let (from, to) = (Kernel::get(&args.from, &home)?, Kernel::get(&args.to, &home)?);
    let cases = cases(brood, &args.tests)?;
    // One that was renamed must not be passed over in silence.
    let none = |name: &&String| !cases.iter().any(|case| case.name.contains(*name));
    if let Some(name) = args.tests.iter().find(none) {
        bail!("no test of another kernel matches {name:?}");
    }
    if cases.is_empty() {
        bail!("there is no test of another kernel");
    }
    let disk = disk::make(&home, &cases, &from, &to)?;
    println!(
        "vm: {} tests, checkpointed under {}, restored under {}",
        cases.len(),
        from.release,
        to.release
    );
    let started = Instant::now();
    let log = home.join(format!("{}-to-{}.log", from.release, to.release));
    boot(brood, &from, &disk, &log, BOOTS + HALF * 2 * cases.len() as u32)?;
    std::fs::remove_file(&disk).with_context(|| disk.display().to_string())?;
    let said = String::from_utf8_lossy(&std::fs::read(&log)?).into_owned();
    let tally = judge(&cases, &said, &log);
    println!("vm: {:.0} s", started.elapsed().as_secs_f64());
    Ok(tally)
}

/// The tests that have two halves and match a filter.
fn cases(brood: &mut Brood, filters: &[String]) -> Result<Vec<Case>> {
    let mut out = Vec::new();
    for (name, binary, dir) in test_binaries(brood)? {
        let Some(program) = name.strip_prefix("tests/") else {
            continue;
        };
        let (well, list) = output(Command::new(&binary).args(["--list", "--format", "terse"]))?;
        if !well {
            bail!("{} does not list its tests", binary.display());
        }
        for test in list.lines().filter_map(|l| l.strip_suffix(": test")) {
            let name = format!("{program}::{test}");
            let wanted = filters.is_empty() || filters.iter().any(|f| name.contains(f.as_str()));
            if test.ends_with("::restore") && wanted {
                out.push(Case {
                    name,
                    binary: binary.clone(),
                    dir: dir.clone(),
                    test: test.to_owned(),
                });
            }
        }
    }
    Ok(out)
}

/// Boots the machine and waits until it powers itself off.
fn boot(brood: &mut Brood, kernel: &Kernel, disk: &Path, log: &Path, limit: Duration) -> Result<()> {
    let file = File::create(log).with_context(|| log.display().to_string())?;
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args([
        "-accel",
        "tcg,thread=multi",
        "-cpu",
        "max",
        "-smp",
        "1",
        "-m",
        "1536",
        "-M",
        "q35",
    ])
    .args([
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-serial",
        "stdio",
        "-no-reboot",
    ])
    .arg("-drive")
    // The machine's writes go to a file that QEMU has unlinked; they live across kexec and end with it.
    .arg(format!(
        "file={},format=raw,id=d0,if=none,snapshot=on,cache=unsafe",
        disk.display()
    ))
    .args(["-device", "virtio-blk-pci,drive=d0"])
    .arg("-kernel")
    .arg(&kernel.vmlinux)
    .arg("-initrd")
    .arg(&kernel.initrd)
    .args(["-append", disk::FIRST])
    .stdin(Stdio::null())
    .stdout(file.try_clone()?)
    .stderr(file)
    // ^C reaches this task first.
    .process_group(0);
    let pid = brood.start(&mut qemu)?;
    let status = brood.wait(pid, Instant::now() + limit)?;
    match status {
        Some(s) if s.success() => Ok(()),
        Some(s) => bail!("qemu ended with {s}: {}", log.display()),
        None => {
            brood.end_tree(pid)?;
            bail!(
                "the machine did not power itself off in {limit:?}: {}",
                log.display()
            )
        }
    }
}

/// Reads the verdicts off the serial port: `VM first NAME STATUS` and `VM second NAME STATUS`.
fn judge(cases: &[Case], said: &str, log: &Path) -> Tally {
    let status = |half: &str, name: &str| {
        let start = format!("VM {half} {name} ");
        let line = said
            .lines()
            .find_map(|l| l.trim_end().strip_prefix(&start).map(str::to_owned))?;
        line.parse::<i32>().ok()
    };
    let mut tally = Tally::default();
    for case in cases {
        match (status("first", &case.name), status("second", &case.name)) {
            (Some(0), Some(0)) => tally.passed += 1,
            (first, second) => {
                tally.failed += 1;
                let how = |s: Option<i32>| s.map_or("never ended".into(), |s| format!("ended with {s}"));
                println!(
                    "FAILED vm {}: first half {}, second half {}",
                    case.name,
                    how(first),
                    how(second)
                );
            }
        }
    }
    if tally.failed > 0 {
        println!("    all of it: {}", log.display());
    }
    tally
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_two_good_halves_pass() {
        let case = |name: &str| Case {
            name: name.into(),
            binary: PathBuf::new(),
            dir: PathBuf::new(),
            test: String::new(),
        };
        let said = "VM first a 0\r\nVM second a 0\r\nVM first b 0\r\nVM second b 101\r\nVM first c 0\r\n";
        let tally = judge(&[case("a"), case("b"), case("c")], said, Path::new("log"));
        assert_eq!((tally.passed, tally.failed), (1, 2));
    }
}
