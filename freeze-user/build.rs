//! Builds the kernel programs for the BPF target and leaves the object in OUT_DIR to be embedded.
//!
//! The BPF target has no prebuilt `core`, so it takes a compiler that has its own sources beside it and
//! accepts `-Zbuild-std`. The stable compiler that builds everything else cannot do it; there are two ways,
//! tried in this order, and no silent third: an agent without its programs is another product.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::{env, fs};

const HELP: &str = "freeze's kernel programs cannot be built on this machine. It needs bpf-linker and one of:
  1. a nightly compiler of rustup's with its sources:
       rustup toolchain install nightly --component rust-src
  2. Debian's compiler with its sources:
       apt-get install -y rustc-web cargo-web rust-web-src
bpf-linker is had by:
       apt-get install -y llvm-22-dev libpolly-22-dev libzstd-dev zlib1g-dev
       LLVM_PREFIX=/usr/lib/llvm-22 cargo install bpf-linker --version 0.13.0 --locked --no-default-features --features llvm-22
`cargo xtask setup` does all of this.";

const FLAGS: &str = "--cfg=bpf_target_arch=\"x86_64\" -Cdebuginfo=2 -Clink-arg=--btf";
/// The newest LLVM whose output the linker of HELP reads.
const LLVM: u32 = 22;
const LIBRARY: &str = "lib/rustlib/src/rust/library/core/src/lib.rs";

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            for line in why.lines() {
                println!("cargo::error={line}");
            }
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), String> {
    let here = PathBuf::from(var("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(var("OUT_DIR")?);
    let top = here.parent().ok_or("freeze-user has no parent directory")?;
    for source in [
        "freeze-ebpf/src",
        "freeze-ebpf/Cargo.toml",
        "freeze-ebpf/Cargo.lock",
    ] {
        println!("cargo::rerun-if-changed={}", top.join(source).display());
    }
    for source in ["freeze-common/src", "freeze-common/Cargo.toml"] {
        println!("cargo::rerun-if-changed={}", top.join(source).display());
    }
    let linker =
        in_path("bpf-linker").ok_or_else(|| format!("no bpf-linker in PATH or ~/.cargo/bin\n{HELP}"))?;
    let tools = tools_directory(&out, &linker)?;
    let mut cargo = compiler(&tools).ok_or_else(|| format!("no compiler with its sources\n{HELP}"))?;
    cargo
        .current_dir(top.join("freeze-ebpf"))
        .args([
            "build",
            "--release",
            "--locked",
            "--target",
            "bpfel-unknown-none",
            "-Zbuild-std=core",
        ])
        .arg("--target-dir")
        .arg(out.join("ebpf"))
        .env("RUSTFLAGS", FLAGS);
    let done = cargo.output().map_err(|e| format!("{cargo:?}: {e}"))?;
    if !done.status.success() {
        return Err(format!(
            "{cargo:?}: {}\n{}",
            done.status,
            String::from_utf8_lossy(&done.stderr)
        ));
    }
    let object = out.join("ebpf/bpfel-unknown-none/release/freeze-ebpf");
    fs::copy(&object, out.join("freeze-ebpf")).map_err(|e| format!("{}: {e}", object.display()))?;
    Ok(())
}

/// The first compiler that has its own sources, as a cargo command that is ready but for its arguments.
fn compiler(tools: &Path) -> Option<Command> {
    nightly(tools).or_else(|| debian(tools))
}

/// rustup's nightly.
fn nightly(tools: &Path) -> Option<Command> {
    let rustup = in_path("rustup")?;
    fits(&rustup, &["run", "nightly", "rustc"]).then(|| {
        let mut path = OsString::from(tools);
        path.push(":");
        path.push(env::var_os("PATH").unwrap_or_default());
        let mut cargo = clean(Command::new(rustup));
        cargo.env("PATH", path).args(["run", "nightly", "cargo"]);
        cargo
    })
}

/// The distribution's stable compiler, which takes unstable options only when told that it may. rustup is
/// kept out of its PATH, where a `rustc` of another version would be found first.
fn debian(tools: &Path) -> Option<Command> {
    let cargo = Path::new("/usr/bin/cargo");
    (fits(Path::new("/usr/bin/rustc"), &[]) && cargo.exists()).then(|| {
        let mut path = OsString::from(tools);
        path.push(":/usr/bin:/bin");
        let mut cargo = clean(Command::new(cargo));
        cargo.env("PATH", path).env("RUSTC_BOOTSTRAP", "1");
        cargo
    })
}

/// Whether a rustc has its sources, and an LLVM no newer than the linker's.
fn fits(program: &Path, args: &[&str]) -> bool {
    let ask = |more: &[&str]| {
        let mut command = clean(Command::new(program));
        // A rustup that lacks the toolchain must not begin to download it.
        command.args(args).args(more).env("RUSTUP_AUTO_INSTALL", "0");
        let done = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
        done.status
            .success()
            .then(|| String::from_utf8_lossy(&done.stdout).into_owned())
    };
    let sources =
        ask(&["--print", "sysroot"]).is_some_and(|root| Path::new(root.trim()).join(LIBRARY).exists());
    let llvm = ask(&["-vV"]).and_then(|text| {
        let version = text
            .lines()
            .find_map(|line| line.strip_prefix("LLVM version: "))?
            .to_owned();
        version.split('.').next()?.parse::<u32>().ok()
    });
    sources && llvm.is_some_and(|llvm| llvm <= LLVM)
}

/// Takes out of the environment what the outer cargo put there for *this* crate and compiler.
fn clean(mut command: Command) -> Command {
    const KEPT: [&str; 6] = [
        "CARGO_HOME",
        "CARGO_NET_",
        "CARGO_HTTP_",
        "CARGO_REGISTR",
        "CARGO_SOURCE_",
        "CARGO_TERM_",
    ];
    const OTHERS: [&str; 9] = [
        "TARGET",
        "HOST",
        "OUT_DIR",
        "OPT_LEVEL",
        "PROFILE",
        "DEBUG",
        "LD_LIBRARY_PATH",
        "MAKEFLAGS",
        "LINKER",
    ];
    for (name, _) in env::vars_os() {
        let Some(text) = name.to_str() else { continue };
        let foreign = text.starts_with("CARGO") && !KEPT.iter().any(|k| text.starts_with(k));
        if foreign || text.starts_with("RUST") && text != "RUSTUP_HOME" || OTHERS.contains(&text) {
            command.env_remove(&name);
        }
    }
    command
}

/// A directory with nothing but the linker: the one it lives in has rustup's compilers beside it.
fn tools_directory(out: &Path, linker: &Path) -> Result<PathBuf, String> {
    let tools = out.join("tools");
    let link = tools.join("bpf-linker");
    fs::create_dir_all(&tools).map_err(|e| format!("{}: {e}", tools.display()))?;
    let _ = fs::remove_file(&link);
    std::os::unix::fs::symlink(linker, &link).map_err(|e| format!("{}: {e}", link.display()))?;
    Ok(tools)
}

/// A program of this name in PATH or in cargo's own directory.
fn in_path(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let own = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")));
    env::split_paths(&path)
        .chain(own.map(|dir| dir.join("bin")))
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

fn var(name: &str) -> Result<String, String> {
    env::var(name).map_err(|e| format!("{name}: {e}"))
}
