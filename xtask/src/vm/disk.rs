//! The machine's disk: an ext4 file system with the test programs, what they need of this machine, and a script.

use super::Case;
use super::kernel::{Kernel, executable};
use crate::output;
use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The kernels' command lines. `no_timer_check`: the emulated timer may take seconds to convince the kernel.
pub(super) const FIRST: &str = "console=ttyS0 panic=-1 quiet mitigations=off no_timer_check vm=first";
const SECOND: &str = "console=ttyS0 panic=-1 quiet mitigations=off no_timer_check vm=second";

/// Modules that tests may want, by either kernel.
const MODULES: &[&str] = &[
    "unix_diag",
    "inet_diag",
    "tcp_diag",
    "udp_diag",
    "raw_diag",
    "af_packet_diag",
    "netlink_diag",
    "tun",
    "veth",
    "dummy",
    "overlay",
];

/// Programs that tests start.
const PROGRAMS: &[&str] = &[
    "/usr/bin/python3",
    "/usr/sbin/kexec",
    "/usr/bin/setpriv",
    "/usr/bin/nsenter",
    // Busybox's knows neither pairs nor namespaces.
    "/usr/bin/ip",
];

/// Makes the disk, in a file below `home`.
pub(super) fn make(home: &Path, cases: &[Case], first: &Kernel, second: &Kernel) -> Result<PathBuf> {
    let tree = home.join("disk.d");
    let _ = fs::remove_dir_all(&tree);
    for dir in [
        "usr/bin",
        "usr/sbin",
        "usr/lib",
        "usr/lib64",
        "proc",
        "sys",
        "dev",
        "run",
        "tmp",
        "mnt",
        "root",
        "etc",
        "vm/log",
        "var/lib",
    ] {
        fs::create_dir_all(tree.join(dir))?;
    }
    for (link, to) in [
        ("bin", "usr/bin"),
        ("sbin", "usr/sbin"),
        ("lib", "usr/lib"),
        ("lib64", "usr/lib64"),
    ] {
        std::os::unix::fs::symlink(to, tree.join(link))?;
    }
    for file in ["etc/passwd", "etc/group", "etc/ld.so.cache", "etc/nsswitch.conf"] {
        let _ = fs::copy(Path::new("/").join(file), tree.join(file));
    }
    fs::copy("/bin/busybox", tree.join("usr/bin/busybox")).context("/bin/busybox")?;
    for program in PROGRAMS {
        with_libraries(&tree, Path::new(program))?;
    }
    python(&tree)?;
    prepare(cases)?;
    let binaries: BTreeSet<&PathBuf> = cases.iter().map(|c| &c.binary).collect();
    for binary in &binaries {
        with_libraries(&tree, binary)?;
        // Debug information is most of them, and a backtrace has names without it.
        let there = below(&tree, binary);
        let _ = output(Command::new("strip").arg("--strip-debug").arg(&there))?;
    }
    if let Some(subjects) = cases
        .first()
        .and_then(|c| c.binary.ancestors().nth(2))
        .map(|t| t.join("subjects"))
        && subjects.exists()
    {
        copy(&tree, &subjects)?;
    }
    for case in cases {
        fs::create_dir_all(below(&tree, &case.dir))?;
    }
    fs::copy(&second.vmlinux, tree.join("vm/vmlinux")).context("the second kernel")?;
    fs::copy(&second.initrd, tree.join("vm/initrd")).context("its first file system")?;
    modules(&tree, &[first, second])?;
    fs::write(tree.join("vm/list"), cases.iter().map(line).collect::<String>())?;
    executable(&tree.join("vm/init"), &script())?;
    let disk = home.join("disk.ext4");
    let _ = fs::remove_file(&disk);
    let (well, said) = output(
        Command::new("mke2fs")
            .args(["-q", "-t", "ext4", "-O", "^has_journal", "-d"])
            .arg(&tree)
            .arg(&disk)
            .arg("4G"),
    )?;
    if !well {
        bail!("mke2fs: {said}");
    }
    fs::remove_dir_all(&tree)?;
    Ok(disk)
}

/// `name directory binary test`, as the script in the machine reads it.
fn line(case: &Case) -> String {
    format!(
        "{} {} {} {}\n",
        case.name,
        case.dir.display(),
        case.binary.display(),
        case.test
    )
}

/// What runs as the machine's init, under either kernel.
fn script() -> String {
    let modules = MODULES.join(" ");
    format!(
        r#"#!/bin/busybox sh
/bin/busybox --install -s /usr/bin 2> /dev/null
export PATH=/usr/sbin:/usr/bin HOME=/root LANG=C.UTF-8
mount -t proc none /proc; mount -t sysfs none /sys; mount -t devtmpfs none /dev 2> /dev/null
mkdir -p /dev/pts /dev/shm; mount -t devpts -o ptmxmode=666 none /dev/pts; mount -t tmpfs none /dev/shm
ln -sf /dev/pts/ptmx /dev/ptmx; ln -sf /proc/self/fd /dev/fd
mount -t tmpfs none /run; mount -t cgroup2 none /sys/fs/cgroup; mount -t bpf none /sys/fs/bpf
ip link set lo up
for m in {modules}; do modprobe -q $m; done
half=$(sed 's/.*vm=\([a-z]*\).*/\1/' /proc/cmdline)
export FREEZE_HALF=$half FREEZE_HALF_DIR=/vm/halves RUST_BACKTRACE=0
mkdir -p /vm/halves
# High numbers, which the second kernel's own start does not use.
[ $half = first ] && echo 20000 > /proc/sys/kernel/ns_last_pid
while read -r name dir binary test; do
    cd $dir
    timeout {limit} $binary --exact $test --nocapture --test-threads=1 < /dev/null > /vm/log/$half 2>&1
    status=$?
    [ $status = 0 ] || cat /vm/log/$half
    echo "VM $half $name $status"
done < /vm/list
if [ $half = first ]; then
    kexec -l /vm/vmlinux --args-linux --initrd=/vm/initrd --no-checks --command-line="{SECOND}"
    sync; mount -o remount,ro /
    kexec -e
fi
sync
poweroff -f
"#,
        limit = super::HALF.as_secs(),
    )
}

/// Where a file of this machine lies in the tree.
fn below(tree: &Path, file: &Path) -> PathBuf {
    tree.join(file.strip_prefix("/").unwrap_or(file))
}

/// Copies a file or directory to the same place in the tree; links as links.
fn copy(tree: &Path, file: &Path) -> Result<()> {
    let there = below(tree, file);
    let beside = there.parent().unwrap_or(tree);
    fs::create_dir_all(beside)?;
    let (well, said) = output(
        Command::new("cp")
            .args(["-a", "--reflink=auto"])
            .arg(file)
            .arg(beside),
    )?;
    if !well {
        bail!("cp {}: {said}", file.display());
    }
    Ok(())
}

/// Copies a program with every library it is linked to.
fn with_libraries(tree: &Path, program: &Path) -> Result<()> {
    let real = fs::canonicalize(program).with_context(|| program.display().to_string())?;
    let (_, list) = output(Command::new("ldd").arg(&real))?;
    let libraries = list
        .split_whitespace()
        .filter(|w| w.starts_with('/'))
        .map(PathBuf::from);
    for file in libraries.chain([real.clone()]) {
        let there = below(tree, &merged(&file));
        if there.exists() {
            continue;
        }
        fs::create_dir_all(there.parent().unwrap_or(tree))?;
        fs::copy(&file, &there).with_context(|| file.display().to_string())?;
    }
    if real != program {
        let link = below(tree, program);
        fs::create_dir_all(link.parent().unwrap_or(tree))?;
        let _ = std::os::unix::fs::symlink(&real, link);
    }
    Ok(())
}

/// /lib is /usr/lib, as everywhere in Debian 12.
fn merged(file: &Path) -> PathBuf {
    let text = file.display().to_string();
    match ["/lib/", "/lib64/", "/bin/", "/sbin/"]
        .iter()
        .any(|p| text.starts_with(p))
    {
        true => PathBuf::from(format!("/usr{text}")),
        false => file.to_owned(),
    }
}

/// Python's own library, with the libraries of its extensions.
fn python(tree: &Path) -> Result<()> {
    let ask = "import sysconfig; print(sysconfig.get_path('stdlib'))";
    let (well, dir) = output(Command::new("/usr/bin/python3").args(["-c", ask]))?;
    if !well {
        bail!("python3 does not tell where its library is");
    }
    let dir = PathBuf::from(dir.trim());
    copy(tree, &dir)?;
    for entry in fs::read_dir(dir.join("lib-dynload"))
        .into_iter()
        .flatten()
        .flatten()
    {
        let (_, list) = output(Command::new("ldd").arg(entry.path()))?;
        for library in list.split_whitespace().filter(|w| w.starts_with('/')) {
            let there = below(tree, &merged(Path::new(library)));
            if !there.exists() {
                fs::create_dir_all(there.parent().unwrap_or(tree))?;
                fs::copy(library, &there).with_context(|| library.to_owned())?;
            }
        }
    }
    Ok(())
}

/// The modules of both kernels.
fn modules(tree: &Path, kernels: &[&Kernel]) -> Result<()> {
    let all = tree.join("usr/lib/modules");
    fs::create_dir_all(&all)?;
    for kernel in kernels {
        let (well, said) = output(Command::new("cp").arg("-a").arg(&kernel.modules).arg(&all))?;
        if !well {
            bail!("cp {}: {said}", kernel.modules.display());
        }
    }
    Ok(())
}

/// Has the programs of subjects made here: there is no compiler in the machine.
fn prepare(cases: &[Case]) -> Result<()> {
    let binaries: BTreeSet<(&PathBuf, &PathBuf)> = cases.iter().map(|c| (&c.binary, &c.dir)).collect();
    for (binary, dir) in binaries {
        let (well, said) = output(
            Command::new(binary)
                .args(["--test-threads=2", "::restore"])
                .current_dir(dir)
                .env("FREEZE_HALF", "prepare"),
        )?;
        if !well {
            bail!("{}: {said}", binary.display());
        }
    }
    Ok(())
}
