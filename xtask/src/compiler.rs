//! Which Rust compiler can build the kernel programs: one that has the sources of its own `core`.
//!
//! The target `bpfel-unknown-none` has no prebuilt `core`. It is built along (`-Zbuild-std=core`), from the
//! sources of exactly the compiler in use: language items differ between versions.

use std::path::Path;
use std::process::Command;

/// The newest LLVM whose bitcode the bpf-linker that [`crate::setup`] installs can read.
pub(crate) const LLVM: u32 = 22;

/// The oldest compiler that aya-ebpf builds with.
const OLDEST: (u32, u32) = (1, 87);

/// What can build the kernel programs, and from where.
#[derive(Debug, PartialEq)]
pub(crate) enum Compiler {
    /// A rustup nightly with the component rust-src.
    Nightly,
    /// The system's own rustc and cargo in /usr/bin, with their sources.
    System,
}

/// The first that fits, in this order; else the reasons why none does.
pub(crate) fn find() -> Result<Compiler, Vec<String>> {
    match (
        judge(&["rustup", "run", "nightly", "rustc"]),
        judge(&["/usr/bin/rustc"]),
    ) {
        (Ok(()), _) => Ok(Compiler::Nightly),
        (_, Ok(())) => Ok(Compiler::System),
        (Err(nightly), Err(system)) => Err(vec![
            format!("rustup's nightly: {nightly}"),
            format!("/usr/bin/rustc: {system}"),
        ]),
    }
}

/// Whether a rustc, named by the words that call it, fits.
fn judge(rustc: &[&str]) -> Result<(), String> {
    let ask = |args: &[&str]| {
        let mut command = Command::new(rustc[0]);
        // A rustup that lacks the toolchain must not begin to download it.
        command
            .args(&rustc[1..])
            .args(args)
            .env("RUSTUP_AUTO_INSTALL", "0");
        let out = command.output().ok()?;
        out.status
            .success()
            .then(|| String::from_utf8_lossy(&out.stdout).into_owned())
    };
    let (Some(version), Some(sysroot)) = (ask(&["-vV"]), ask(&["--print", "sysroot"])) else {
        return Err("not there".into());
    };
    let (version, llvm) = read(&version).ok_or("says nothing of its version")?;
    if version < OLDEST {
        return Err(format!(
            "is {}.{}, too old: {}.{} is needed",
            version.0, version.1, OLDEST.0, OLDEST.1
        ));
    }
    if llvm > LLVM {
        return Err(format!(
            "is built on LLVM {llvm}, and the linker for kernel programs reads up to {LLVM}"
        ));
    }
    if !Path::new(sysroot.trim())
        .join("lib/rustlib/src/rust/library/core/Cargo.toml")
        .exists()
    {
        return Err("has no sources (rust-src)".into());
    }
    Ok(())
}

/// The version, and LLVM's major version, from what `rustc -vV` prints.
fn read(text: &str) -> Option<((u32, u32), u32)> {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
    let mut release = field("release: ")?.split(['.', '-']);
    let version = (release.next()?.parse().ok()?, release.next()?.parse().ok()?);
    let llvm = field("LLVM version: ")?.split('.').next()?.parse().ok()?;
    Some((version, llvm))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rustc_says_who_it_is() {
        let text = "rustc 1.97.0-nightly (e50aa6fba 2026-05-19)\nbinary: rustc\n\
                    release: 1.97.0-nightly\nLLVM version: 22.1.4\n";
        assert_eq!(read(text), Some(((1, 97), 22)));
        assert_eq!(read("rustc 1.97.0\n"), None);
    }
}
