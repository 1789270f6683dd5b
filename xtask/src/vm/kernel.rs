//! One of Debian's cloud kernels, unpacked: `vmlinux` to boot, and a first file system with the modules it needs.

use crate::output;
use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A kernel that is ready to boot.
#[derive(Debug)]
pub(super) struct Kernel {
    /// As `uname -r` shows it.
    pub(super) release: String,
    pub(super) vmlinux: PathBuf,
    pub(super) initrd: PathBuf,
    /// Its `lib/modules/RELEASE`.
    pub(super) modules: PathBuf,
}

/// What the machine's disk needs.
const DISK: &[&str] = &["virtio_pci", "virtio_blk", "ext4"];

impl Kernel {
    /// The newest kernel of this version that Debian has, from `home` if it was unpacked there before.
    pub(super) fn get(version: &str, home: &Path) -> Result<Kernel> {
        let package = newest(version)?;
        let release = package.trim_start_matches("linux-image-").to_owned();
        let dir = home.join(&release);
        let kernel = Kernel {
            vmlinux: dir.join("vmlinux"),
            initrd: dir.join("initrd"),
            modules: dir.join("lib/modules").join(&release),
            release,
        };
        if !kernel.initrd.exists() {
            println!("vm: getting {package}");
            fetch(&package, &dir)?;
            let (well, said) = output(
                Command::new("find")
                    .arg(&dir)
                    .args(["-name", "*.ko.xz", "-exec", "xz", "-d", "{}", "+"]),
            )?;
            if !well {
                bail!("xz: {said}");
            }
            let image = fs::read(dir.join("boot").join(format!("vmlinuz-{}", kernel.release)))?;
            unpack(&image, &kernel.vmlinux)?;
            kernel.pack_initrd(&dir)?;
        }
        Ok(kernel)
    }

    /// Packs busybox, the modules for the disk and the script that mounts it.
    fn pack_initrd(&self, dir: &Path) -> Result<()> {
        let tree = dir.join("initrd.d");
        for name in ["bin", "modules", "proc", "sys", "dev", "root"] {
            fs::create_dir_all(tree.join(name))?;
        }
        fs::copy("/bin/busybox", tree.join("bin/busybox")).context("/bin/busybox")?;
        let mut load = String::new();
        for module in self.with_dependencies(DISK)? {
            let name = module.rsplit('/').next().unwrap_or(&module).to_owned();
            fs::copy(self.modules.join(&module), tree.join("modules").join(&name))
                .with_context(|| module.clone())?;
            load += &format!("insmod /modules/{name}\n");
        }
        let init = format!(
            "#!/bin/busybox sh\n/bin/busybox --install -s /bin\nexport PATH=/bin\nmount -t proc none /proc\n\
             mount -t sysfs none /sys\nmount -t devtmpfs none /dev\n{load}\
             until [ -b /dev/vda ]; do usleep 20000; done\nmount -t ext4 /dev/vda /root\n\
             exec switch_root /root /vm/init\n"
        );
        executable(&tree.join("init"), &init)?;
        let packing = format!(
            "cd '{}' && find . | cpio --quiet -o -H newc > '{}.part'",
            tree.display(),
            self.initrd.display()
        );
        let (well, said) = output(Command::new("sh").args(["-c", &packing]))?;
        if !well {
            bail!("cpio: {said}");
        }
        fs::rename(self.initrd.with_extension("part"), &self.initrd).context("the initrd")?;
        Ok(())
    }

    /// These modules and those they need, in the order of loading; what is built in is left out.
    fn with_dependencies(&self, names: &[&str]) -> Result<Vec<String>> {
        let path = self.modules.join("modules.dep");
        if !path.exists() {
            // The package leaves this to the installation.
            let base = self.modules.ancestors().nth(3).unwrap_or(Path::new("/"));
            let (well, said) = output(
                Command::new("/sbin/depmod")
                    .arg("-b")
                    .arg(base)
                    .arg(&self.release),
            )?;
            if !well {
                bail!("depmod: {said}");
            }
        }
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let mut out: Vec<String> = Vec::new();
        for name in names {
            let wanted = format!("/{name}.ko");
            let line = text.lines().find(|l| {
                l.split(':')
                    .next()
                    .is_some_and(|m| m.replace('-', "_").ends_with(&wanted))
            });
            let Some((module, needs)) = line.and_then(|l| l.split_once(':')) else {
                continue;
            };
            // modules.dep names what must be loaded first last.
            for m in needs.split_whitespace().rev().chain([module]) {
                if !out.iter().any(|o| o == m) {
                    out.push(m.to_owned());
                }
            }
        }
        Ok(out)
    }
}

/// The name of the newest package: old ones vanish from the archive.
fn newest(version: &str) -> Result<String> {
    let pattern = format!("^linux-image-{}[.].*cloud-amd64$", version.replace('.', "[.]"));
    let search = |_: ()| output(Command::new("apt-cache").args(["search", "--names-only", &pattern]));
    let (_, mut list) = search(())?;
    if list.is_empty() {
        let _ = output(Command::new("apt-get").args(["-qq", "update"]))?;
        list = search(())?.1;
    }
    let names: BTreeSet<(Vec<u64>, &str)> = list
        .lines()
        .filter_map(|l| l.split_whitespace().next())
        .map(|name| {
            let numbers = name
                .split(|c: char| !c.is_ascii_digit())
                .filter_map(|n| n.parse().ok());
            (numbers.collect(), name)
        })
        .collect();
    match names.last() {
        Some((_, name)) => Ok((*name).to_owned()),
        None => bail!("Debian has no kernel {pattern} here; is bookworm-backports among the sources?"),
    }
}

/// Downloads a package and unpacks it into `dir`, without installing it.
fn fetch(package: &str, dir: &Path) -> Result<()> {
    let _ = fs::remove_dir_all(dir);
    fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    let (well, said) = output(
        Command::new("apt-get")
            .args(["-qq", "-o", "APT::Sandbox::User=root", "download", package])
            .current_dir(dir),
    )?;
    if !well {
        bail!("apt-get download {package}: {said}");
    }
    for entry in fs::read_dir(dir)?.flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|e| e == "deb") {
            let (well, said) = output(Command::new("dpkg-deb").arg("-x").arg(&path).arg(dir))?;
            if !well {
                bail!("dpkg-deb: {said}");
            }
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// Takes the ELF file out of a bzImage (Documentation/arch/x86/boot.rst: payload_offset, payload_length).
fn unpack(image: &[u8], to: &Path) -> Result<()> {
    let word = |at: usize| -> Result<usize> {
        let bytes = image.get(at..at + 4).context("a truncated bzImage")?;
        Ok(u32::from_le_bytes(bytes.try_into()?) as usize)
    };
    let setup = (usize::from(*image.get(0x1f1).context("a truncated bzImage")?) + 1) * 512;
    let start = setup + word(0x248)?;
    let payload = image
        .get(start..start + word(0x24c)?)
        .context("a truncated bzImage")?;
    let tool: &[&str] = match payload {
        [0x02, 0x21, 0x4c, 0x18, ..] => &["lz4", "-d", "-c"],
        [0x28, 0xb5, 0x2f, 0xfd, ..] => &["zstd", "-d", "-c", "-q"],
        [0xfd, b'7', b'z', ..] => &["xz", "-d", "-c", "--single-stream"],
        [0x1f, 0x8b, ..] => &["gzip", "-d", "-c"],
        other => bail!(
            "a kernel packed in a way this does not know: {:02x?}",
            &other[..4]
        ),
    };
    // The last four bytes are the size of what comes out; tools may complain of them, and what counts is the result.
    let size = u32::from_le_bytes(payload[payload.len() - 4..].try_into()?) as u64;
    let file = fs::File::create(to).with_context(|| to.display().to_string())?;
    let mut child = Command::new(tool[0])
        .args(&tool[1..])
        .stdin(Stdio::piped())
        .stdout(file)
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| tool[0].to_owned())?;
    if let Some(mut input) = child.stdin.take() {
        let _ = input.write_all(&payload[..payload.len() - 4]);
    }
    let _ = child.wait()?;
    let got = fs::metadata(to)?.len();
    if got != size {
        bail!("{} made {got} bytes of a kernel of {size}", tool[0]);
    }
    Ok(())
}

/// Writes a script that can be executed.
pub(super) fn executable(path: &Path, text: &str) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::write(path, text).with_context(|| path.display().to_string())?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    Ok(())
}
