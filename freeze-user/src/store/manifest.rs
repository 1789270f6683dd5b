//! The manifest: what a checkpoint is and what belongs to it, readable without knowing any record.

use super::damaged;
use super::id::CheckpointId;
use super::pages::Form;
use crate::error::{Error, Result};
use crate::ids::Pid;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use xxhash_rust::xxh3::xxh3_64;

/// The version of the image format that this freeze writes, and the newest it reads.
pub const FORMAT: u32 = 2;
const MAGIC: &str = "freeze checkpoint";

/// A 64-bit XXH3 checksum, written as sixteen hexadecimal digits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Sum(pub u64);

impl Sum {
    /// The checksum of `bytes`.
    pub fn of(bytes: &[u8]) -> Sum {
        Sum(xxh3_64(bytes))
    }
}

impl fmt::Display for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl Serialize for Sum {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Sum {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Sum, D::Error> {
        let text = String::deserialize(d)?;
        u64::from_str_radix(&text, 16)
            .map(Sum)
            .map_err(serde::de::Error::custom)
    }
}

/// What the one who made a checkpoint says about it; nothing here is needed to read the image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct About {
    /// The processes at the top of the frozen trees.
    pub roots: Vec<Pid>,
    /// The watched group it belongs to; retention counts per group.
    pub group: Option<String>,
    /// How many processes are in it.
    pub processes: u32,
    /// The command line of the first root.
    pub command: Vec<String>,
    /// How long the processes stood still, in microseconds.
    pub pause_us: u64,
    /// How long the whole took, in microseconds.
    pub total_us: u64,
    /// Anything else worth showing.
    pub notes: BTreeMap<String, String>,
}

/// Another checkpoint that this one names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ancestor {
    pub id: CheckpointId,
    /// The checksum of its manifest, so that another under the same name is noticed.
    pub manifest: Sum,
    /// Where it was, relative to this checkpoint's directory; `../ID` is tried first.
    pub path: String,
}

/// The size and checksum of a file that is read as one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordsFile {
    pub bytes: u64,
    pub frames: u64,
    pub checksum: Sum,
}

/// The size and checksums of the index, whose two parts are read at different times.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IndexFile {
    pub bytes: u64,
    pub chunks: u64,
    pub spaces: u64,
    pub runs: u64,
    /// Of the chunk table, all that a descendant reads.
    pub chunks_checksum: Sum,
    /// Of the space table and the run table together.
    pub runs_checksum: Sum,
}

/// The size of the page file, whose checksums are those of the chunk table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PagesFile {
    pub bytes: u64,
    /// How many pages were written into it, dead ones included.
    pub slots: u64,
    /// How many pages make a chunk, the unit of checksums and of compression.
    pub chunk_pages: u32,
    pub form: Form,
}

/// Every file of a checkpoint beside the manifest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Files {
    pub records: RecordsFile,
    pub index: IndexFile,
    pub pages: PagesFile,
}

/// How much is in a checkpoint. Pages are of 4096 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counts {
    /// Pages that the checkpoint names altogether.
    pub pages: u64,
    /// Of these: known to be zero, stored nowhere.
    pub zero: u64,
    /// Of these: stored in its own page file.
    pub own: u64,
    /// Of these: stored in ancestors.
    pub inherited: u64,
    /// Own pages that were copied out of ancestors to keep the chain short.
    pub copied: u64,
    /// Pages in its page file that were superseded before the commit and that nothing names.
    pub dead: u64,
}

/// What is in `manifest.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub magic: String,
    pub format: u32,
    pub id: CheckpointId,
    /// Milliseconds since 1970.
    pub created_ms: u64,
    /// The version of the freeze that wrote it.
    pub writer: String,
    /// The checkpoint that this one was made on top of; it may be gone if no page of it is needed.
    pub parent: Option<Ancestor>,
    /// The checkpoints whose pages this one needs, in the order of the run table's source numbers.
    pub chain: Vec<Ancestor>,
    pub counts: Counts,
    pub files: Files,
    pub about: About,
}

/// What every version of the manifest begins with.
#[derive(Deserialize)]
struct Head {
    magic: String,
    format: u32,
}

const SEAL: &str = ",\n  \"checksum\": \"";
const SEAL_END: &str = "\"\n}\n";
const SEAL_LEN: usize = SEAL.len() + 16 + SEAL_END.len();

/// So many manifests stay decoded; one of a chain of 64 takes about 10 KiB.
const DECODED: usize = 1024;

/// Manifests by checksum and length of what precedes the seal.
type Decoded = HashMap<(Sum, usize), Arc<Manifest>>;

fn decoded() -> MutexGuard<'static, Decoded> {
    static DECODED: LazyLock<Mutex<Decoded>> = LazyLock::new(Mutex::default);
    // Whoever panicked with it left whole entries.
    DECODED.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Manifest {
    pub(crate) fn new(id: CheckpointId, created_ms: u64) -> Manifest {
        Manifest {
            magic: MAGIC.into(),
            format: FORMAT,
            id,
            created_ms,
            writer: env!("CARGO_PKG_VERSION").into(),
            parent: None,
            chain: Vec::new(),
            counts: Counts::default(),
            files: Files::default(),
            about: About::default(),
        }
    }

    /// The file's contents and its checksum.
    pub(crate) fn seal(&self) -> Result<(Vec<u8>, Sum)> {
        let mut text = serde_json::to_string_pretty(self)
            .map_err(|e| Error::io("encode", "the manifest", &std::io::Error::from(e)))?;
        text.truncate(text.len() - "\n}".len());
        let sum = Sum::of(text.as_bytes());
        text += &format!("{SEAL}{sum}{SEAL_END}");
        Ok((text.into_bytes(), sum))
    }

    /// Reads the contents of `file`: checksum, then version, then the rest.
    ///
    /// An agent reads those of a whole chain for each checkpoint, and each names all of its own chain: what was decoded
    /// once is not decoded again.
    pub(crate) fn unseal(bytes: &[u8], file: &Path) -> Result<(Arc<Manifest>, Sum)> {
        let at = bytes.len().saturating_sub(SEAL_LEN);
        let (body, seal) = bytes.split_at(at);
        let sum = Sum::of(body);
        let right = format!("{SEAL}{sum}{SEAL_END}");
        if seal != right.as_bytes() {
            let found = match seal.strip_prefix(SEAL.as_bytes()).and_then(|s| s.get(..16)) {
                Some(digits) => format!("{}, which names {}", Shown(seal), String::from_utf8_lossy(digits)),
                None => format!("{}", Shown(seal)),
            };
            let expected = format!("a last line with the checksum {sum} of what precedes it");
            return Err(damaged(file, at as u64, expected, found));
        }
        let key = (sum, body.len());
        if let Some(known) = decoded().get(&key) {
            return Ok((known.clone(), sum));
        }
        let body = [body, b"\n}"].concat();
        let broken = |e: serde_json::Error| damaged(file, 0, "a manifest", e.to_string());
        let head: Head = serde_json::from_slice(&body).map_err(broken)?;
        if head.magic != MAGIC {
            return Err(damaged(
                file,
                0,
                format!("magic {MAGIC:?}"),
                format!("{:?}", head.magic),
            ));
        }
        if head.format == 0 || head.format > FORMAT {
            let expected = format!("image format 1 to {FORMAT}, which this freeze reads");
            return Err(damaged(
                file,
                0,
                expected,
                format!("image format {}", head.format),
            ));
        }
        let manifest: Arc<Manifest> = Arc::new(serde_json::from_slice(&body).map_err(broken)?);
        let mut decoded = decoded();
        if decoded.len() == DECODED {
            decoded.clear();
        }
        decoded.insert(key, manifest.clone());
        Ok((manifest, sum))
    }

    /// How many checkpoints reading this one takes, itself included.
    pub fn depth(&self) -> u32 {
        1 + self.chain.len() as u32
    }

    /// The bytes of its files, the manifest not counted.
    pub fn bytes(&self) -> u64 {
        self.files.records.bytes + self.files.index.bytes + self.files.pages.bytes
    }
}

/// Foreign bytes in an error message.
struct Shown<'a>(&'a [u8]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

/// A time in milliseconds since 1970 as `2026-05-04 03:02:01Z`.
pub fn utc(ms: u64) -> String {
    let (days, second) = (ms / 86_400_000, ms / 1000 % 86_400);
    // Howard Hinnant's days-to-civil, for days after 1970: years run from March.
    let shifted = days + 719_468;
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (month, day) = (
        if month < 10 { month + 3 } else { month - 9 },
        day - (153 * month + 2) / 5 + 1,
    );
    let year = era * 400 + year + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}Z",
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_reads_back_and_is_json() {
        let mut m = Manifest::new(CheckpointId::of(5, 5), 5);
        m.about.command = vec!["sleep \"1\"".into()];
        let (bytes, sum) = m.seal().unwrap();
        assert_eq!(
            Manifest::unseal(&bytes, Path::new("m")).unwrap(),
            (Arc::new(m), sum)
        );
        let json: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(json["checksum"], sum.to_string());
        assert_eq!(json["format"], 2);
    }

    #[test]
    fn a_newer_format_names_both_versions() {
        let mut m = Manifest::new(CheckpointId::of(5, 5), 5);
        m.format = 7;
        let e = Manifest::unseal(&m.seal().unwrap().0, Path::new("/s/m")).unwrap_err();
        assert_eq!(
            e.to_string(),
            "/s/m, offset 0: expected image format 1 to 2, which this freeze reads, found image format 7"
        );
    }

    #[test]
    fn days_are_counted_right() {
        assert_eq!(utc(0), "1970-01-01 00:00:00Z");
        assert_eq!(utc(951_782_400_000), "2000-02-29 00:00:00Z");
        assert_eq!(utc(1_785_542_399_000), "2026-07-31 23:59:59Z");
    }
}
