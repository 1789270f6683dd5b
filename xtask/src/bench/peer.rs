//! The peer: Debian's criu, of the system if it runs on this kernel, else of a newer release in a directory of its own.
//!
//! Nothing is installed: a package list, the packages that criu needs, and their contents lie below `target/peer`,
//! and criu is started by the loader beside it.

use super::sample::Sample;
use super::small::remove;
use super::stage::{Load, PATIENCE, Shape, Stage, ms};
use crate::{output, target_dir};
use anyhow::{Context, Result, bail, ensure};
use nix::unistd::Pid;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Debian releases after 12, the oldest first.
const RELEASES: &[&str] = &["trixie", "sid"];

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A criu that can dump a process here.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    /// The words it is started with.
    command: Vec<PathBuf>,
    /// `criu 4.1.1`.
    pub(crate) name: String,
    /// What is to be said of it, a sentence each: where it is from, and which ones do not run.
    pub(crate) notes: Vec<String>,
}

/// What came of checkpoints and restores by the peer, in milliseconds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Done {
    pub(crate) dump: Option<Sample>,
    pub(crate) frozen: Option<Sample>,
    pub(crate) seen: Option<Sample>,
    pub(crate) restore: Option<Sample>,
    pub(crate) first: Option<Sample>,
    /// Why something is missing.
    pub(crate) note: Option<String>,
}

impl Peer {
    /// Looks for one that runs here; if none does, says why in words.
    pub(crate) fn find(stage: &mut Stage<'_>) -> Result<Result<Peer, Vec<String>>> {
        let mut notes = Vec::new();
        if let Some(found) = Peer::try_out(stage, vec!["criu".into()], "", &mut notes)? {
            return Ok(Ok(found));
        }
        for release in RELEASES {
            match fetch(stage, release) {
                Err(e) if e.is::<crate::brood::Interrupted>() => return Err(e),
                Err(e) => notes.push(format!("criu of Debian {release}: could not be had: {e:#}.")),
                Ok(command) => {
                    let from = format!("of Debian {release}, in a directory of its own");
                    if let Some(found) = Peer::try_out(stage, command, &from, &mut notes)? {
                        return Ok(Ok(found));
                    }
                }
            }
        }
        Ok(Err(notes))
    }

    fn try_out(
        stage: &mut Stage<'_>,
        command: Vec<PathBuf>,
        from: &str,
        notes: &mut Vec<String>,
    ) -> Result<Option<Peer>> {
        let mut asked = Command::new(&command[0]);
        asked.args(&command[1..]).arg("--version");
        let Ok((true, version)) = output(&mut asked) else {
            notes.push("criu: not installed.".into());
            return Ok(None);
        };
        let version = version.lines().next().unwrap_or_default();
        let name = format!("criu {}", version.trim_start_matches("Version:").trim());
        let mut peer = Peer {
            command,
            name,
            notes: Vec::new(),
        };
        let small = Shape {
            mib: 1,
            pages: 1.0,
            threads: 1,
            thp: false,
        };
        let load = Load::start(stage, small)?;
        let images = stage.dir.join("peer-trial");
        let dumped = peer.dump(stage, load.pid, &images);
        load.end(stage)?;
        remove(&images)?;
        match dumped {
            Ok(_) => {
                if !from.is_empty() {
                    notes.push(format!("{} is {from}.", peer.name));
                }
                peer.notes = std::mem::take(notes);
                Ok(Some(peer))
            }
            Err(e) if e.is::<crate::brood::Interrupted>() => Err(e),
            Err(e) => {
                notes.push(format!("{}: does not run on this kernel: {e:#}.", peer.name));
                Ok(None)
            }
        }
    }

    fn command(&self, action: &str, images: &Path) -> Command {
        let mut criu = Command::new(&self.command[0]);
        criu.args(&self.command[1..]).arg(action);
        criu.arg("-D").arg(images).args(["-v1", "-o", "log"]);
        criu
    }

    /// Dumps a process, which runs on: the whole command and, as criu itself counts, the time frozen.
    fn dump(&self, stage: &mut Stage<'_>, pid: Pid, images: &Path) -> Result<(super::stage::Ran, f64)> {
        remove(images)?;
        std::fs::create_dir(images).with_context(|| images.display().to_string())?;
        let mut criu = self.command("dump", images);
        criu.args(["-t", &pid.to_string(), "--leave-running"]);
        let ran = stage.run(&mut criu, PATIENCE)?;
        ensure!(ran.status.success(), "{}", complaint(images, &ran.err));
        let statistics = images.join("stats-dump");
        let bytes = std::fs::read(&statistics).with_context(|| statistics.display().to_string())?;
        let frozen =
            frozen_us(&bytes).with_context(|| format!("{}: no frozen time", statistics.display()))?;
        Ok((ran, frozen as f64 / 1e3))
    }

    /// Dumps and restores the load so many times; it has ended afterwards.
    pub(crate) fn measure(&self, stage: &mut Stage<'_>, mut load: Load, times: usize) -> Result<Done> {
        self.take_turns(stage, load.pid, Some(&mut load), times)
    }

    /// The same with a process that is the load, or does not tell of itself.
    pub(crate) fn take_turns(
        &self,
        stage: &mut Stage<'_>,
        pid: Pid,
        mut load: Option<&mut Load>,
        times: usize,
    ) -> Result<Done> {
        let images = stage.dir.join("peer");
        let (mut dump, mut frozen, mut seen) = (Vec::new(), Vec::new(), Vec::new());
        let (mut restore, mut first) = (Vec::new(), Vec::new());
        let mut work = || -> Result<()> {
            for _ in 0..times {
                let (ran, ms) = self.dump(stage, pid, &images)?;
                dump.push(ran.ms());
                frozen.push(ms);
                if let Some(load) = &mut load {
                    seen.push(load.longest_gap(stage, ran.from, ran.to)?);
                }
                stage.brood.nap(std::time::Duration::from_millis(50))?;
            }
            for _ in 0..times {
                stage.brood.end_tree(pid)?;
                let mut criu = self.command("restore", &images);
                let ran = stage.run(criu.arg("--restore-detached"), PATIENCE)?;
                ensure!(ran.status.success(), "restore: {}", complaint(&images, &ran.err));
                restore.push(ran.ms());
                if let Some(load) = &mut load {
                    first.push(ms(load.first_instruction(stage, ran.from)? - ran.from));
                }
            }
            Ok(())
        };
        let worked = work();
        stage.brood.end_tree(pid)?;
        remove(&images)?;
        let note = match worked {
            Ok(()) => None,
            Err(e) if e.is::<crate::brood::Interrupted>() => return Err(e),
            Err(e) => Some(format!("{}: {e:#}.", self.name)),
        };
        Ok(Done {
            dump: Sample::of(dump),
            frozen: Sample::of(frozen),
            seen: Sample::of(seen),
            restore: Sample::of(restore),
            first: Sample::of(first),
            note,
        })
    }
}

/// The first error that criu tells of, without the place in its source.
fn complaint(images: &Path, err: &str) -> String {
    let log = std::fs::read_to_string(images.join("log")).unwrap_or_default();
    // That a program it tried to run has failed says nothing.
    let tells = |line: &&str| line.contains("Error (") && !line.contains("exited, status");
    let line = [&log, err].into_iter().flat_map(str::lines).find(tells);
    let line = line.or_else(|| err.lines().next()).unwrap_or("it says nothing");
    line.split_once("): ")
        .map_or(line, |(_, what)| what)
        .trim_end_matches('.')
        .to_string()
}

/// The time frozen in microseconds, from the statistics that criu leaves (criu.org/Statistics): two words of
/// magic, a length, and a protocol buffer whose first field holds those of a dump, frozen_time the second of them.
fn frozen_us(bytes: &[u8]) -> Option<u64> {
    let dump = field(bytes.get(12..)?, 1)?.1;
    Some(field(dump, 2)?.0)
}

/// A field of a protocol buffer (protobuf.dev/programming-guides/encoding): as a number, and as bytes.
fn field(mut bytes: &[u8], wanted: u64) -> Option<(u64, &[u8])> {
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        let (number, content) = match key & 7 {
            0 => (varint(&mut bytes)?, &bytes[..0]),
            2 => {
                let len = usize::try_from(varint(&mut bytes)?).ok()?;
                let content = bytes.get(..len)?;
                bytes = &bytes[len..];
                (0, content)
            }
            _ => return None,
        };
        if key >> 3 == wanted {
            return Some((number, content));
        }
    }
    None
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut out = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        out |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(out);
        }
    }
    None
}

/// Fetches a release's criu with all it needs, once, and says how to start it.
fn fetch(stage: &mut Stage<'_>, release: &str) -> Result<Vec<PathBuf>> {
    let dir = target_dir().join("peer").join(release);
    let root = dir.join("root");
    let libraries = root.join("usr/lib/x86_64-linux-gnu");
    let command = vec![
        libraries.join("ld-linux-x86-64.so.2"),
        "--library-path".into(),
        libraries,
        root.join("usr/sbin/criu"),
    ];
    let complete = dir.join("complete");
    if complete.exists() {
        return Ok(command);
    }
    eprintln!("fetching criu of Debian {release} into {}", dir.display());
    let site = archive()?;
    let (status, sources) = (dir.join("status"), dir.join("sources.list"));
    for part in ["state/lists/partial", "cache/archives/partial", "root"] {
        std::fs::create_dir_all(dir.join(part)).with_context(|| dir.display().to_string())?;
    }
    std::fs::write(&status, "")?;
    std::fs::write(
        &sources,
        format!("deb [signed-by={KEYRING}] {site} {release} main\n"),
    )?;
    // Nothing is installed as far as this apt knows, so it fetches everything, and it knows of one release only.
    let options: Vec<String> = [
        ("Dir::State", dir.join("state")),
        ("Dir::State::status", status),
        ("Dir::Cache", dir.join("cache")),
        ("Dir::Etc::SourceList", sources),
        ("Dir::Etc::SourceParts", "/dev/null".into()),
        ("Dir::Etc::Preferences", "/dev/null".into()),
        ("Dir::Etc::PreferencesParts", "/dev/null".into()),
        ("APT::Install-Recommends", "false".into()),
        ("APT::Sandbox::User", "root".into()),
        ("Acquire::Languages", "none".into()),
        (
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled",
            "false".into(),
        ),
    ]
    .iter()
    .flat_map(|(name, value)| ["-o".to_string(), format!("{name}={}", value.display())])
    .collect();
    for action in [&["update"][..], &["--yes", "--download-only", "install", "criu"]] {
        let ran = stage.run(Command::new("apt-get").args(&options).args(action), PATIENCE)?;
        let said = ran.err.lines().next().unwrap_or_default();
        ensure!(ran.status.success(), "apt-get {}: {said}", action.join(" "));
    }
    for entry in std::fs::read_dir(dir.join("cache/archives"))? {
        let package = entry?.path();
        if package.extension().is_some_and(|e| e == "deb") {
            let ran = stage.run(
                Command::new("dpkg-deb").arg("--extract").arg(&package).arg(&root),
                PATIENCE,
            )?;
            ensure!(ran.status.success(), "{}: {}", package.display(), ran.err.trim());
        }
    }
    ensure!(command[3].exists(), "the packages hold no criu");
    std::fs::write(complete, "")?;
    Ok(command)
}

/// Where this machine gets its Debian packages from.
fn archive() -> Result<String> {
    let mut apt = Command::new("apt-get");
    apt.args([
        "indextargets",
        "--format",
        "$(ORIGIN) $(LABEL) $(COMPONENT) $(SITE)",
    ]);
    apt.arg("Created-By: Packages");
    let (_, text) = output(&mut apt)?;
    match text
        .lines()
        .find_map(|line| line.strip_prefix("Debian Debian main "))
    {
        Some(site) => Ok(site.to_string()),
        None => bail!("apt knows no archive of Debian; apt-get update may help"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_frozen_time_is_found_behind_other_fields() {
        // freezing_time 300, frozen_time 4821, memdump_time 7.
        let inner = [0x08, 0xac, 0x02, 0x10, 0xd5, 0x25, 0x18, 0x07];
        let bytes = [&[0; 12][..], &[0x0a, inner.len() as u8], &inner].concat();
        assert_eq!(frozen_us(&bytes), Some(4821));
        assert_eq!(frozen_us(&bytes[..bytes.len() - 5]), None, "cut short");
        assert_eq!(frozen_us(&[]), None);
    }

    #[test]
    fn an_error_is_told_without_its_place() {
        let err = "Error (criu/util.c:642): exited, status=1\nError (criu/vdso.c:381): vdso: Unexpected rt vDSO area bounds\nError (x.c:1): later\n";
        assert_eq!(
            complaint(Path::new("/nonexistent"), err),
            "vdso: Unexpected rt vDSO area bounds"
        );
    }
}
