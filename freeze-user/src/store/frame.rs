//! Records: checksummed frames `tag | version | length | checksum | payload`, one after the other.

use super::manifest::Sum;
use super::{create, damaged};
use crate::error::{Context, Error, Result};
use nix::errno::Errno;
use serde::Serialize;
use serde::de::{Deserialize, DeserializeOwned, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use std::fmt;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use xxhash_rust::xxh3::Xxh3;

/// Plain state that is written as one frame.
pub trait Record: Serialize + DeserializeOwned {
    /// The name in the image; never reused for something else.
    const TAG: &'static str;
    /// Counts up when the fields change; what was ever written stays readable as a type of its own.
    const VERSION: u16;
}

/// A frame whose checksum was right.
#[derive(Debug)]
pub struct Frame {
    pub tag: String,
    pub version: u16,
    /// MessagePack with field names.
    pub payload: Vec<u8>,
    /// Where in the file it begins.
    pub offset: u64,
    taken: AtomicBool,
}

impl Frame {
    /// Whether it was decoded, or set aside on purpose.
    pub fn is_taken(&self) -> bool {
        self.taken.load(Ordering::Relaxed)
    }

    /// Notes that somebody has seen to it.
    pub fn take(&self) {
        self.taken.store(true, Ordering::Relaxed);
    }

    /// The payload as JSON, whatever record it is; byte strings as hexadecimal text.
    pub fn json(&self) -> Value {
        match rmp_serde::from_slice::<Any>(&self.payload) {
            Ok(any) => any.0,
            Err(e) => Value::String(format!("not MessagePack: {e}")),
        }
    }

    /// The record in it, of exactly the version of `T`; fields that `T` does not know are an error.
    pub(crate) fn decode<T: Record>(&self, file: &Path) -> Result<T> {
        let wrong = |expected: String, found: String| damaged(file, self.offset, expected, found);
        if self.tag != T::TAG {
            return Err(wrong(
                format!("record {:?}", T::TAG),
                format!("record {:?}", self.tag),
            ));
        }
        if self.version != T::VERSION {
            let expected = format!("record {:?} of version {}", T::TAG, T::VERSION);
            return Err(wrong(expected, format!("version {}", self.version)));
        }
        let record = unpack(&self.payload).map_err(|e| wrong(format!("a record {:?}", T::TAG), e))?;
        self.take();
        Ok(record)
    }
}

/// Encodes a record, and makes sure that it can be read back: a checkpoint that cannot is worse than none.
fn pack<T: Record>(record: &T) -> Result<Vec<u8>> {
    let broken = |what: &str, e: String| {
        Error::kernel(
            what,
            format!("record {:?} (cannot be stored: {e})", T::TAG),
            Errno::EINVAL,
        )
    };
    let mut payload = Vec::new();
    let mut to = rmp_serde::Serializer::new(&mut payload)
        .with_struct_map()
        .with_bytes(rmp_serde::config::BytesMode::ForceAll);
    record
        .serialize(&mut to)
        .map_err(|e| broken("encode", e.to_string()))?;
    unpack::<T>(&payload).map_err(|e| broken("decode", e))?;
    Ok(payload)
}

/// Decodes all of `payload`; anything left over is an error: what a reader does not know would be lost.
pub(crate) fn unpack<T: DeserializeOwned>(payload: &[u8]) -> Result<T, String> {
    let mut rest = payload;
    let mut from = rmp_serde::Deserializer::new(&mut rest);
    let mut unknown = Vec::new();
    let value = serde_ignored::deserialize(&mut from, |path| unknown.push(path.to_string()))
        .map_err(|e| e.to_string())?;
    if !unknown.is_empty() {
        return Err(format!("unknown field {}", unknown.join(", ")));
    }
    if !rest.is_empty() {
        return Err(format!("{} bytes after the record", rest.len()));
    }
    Ok(value)
}

/// Writes the file of records.
#[derive(Debug)]
pub(crate) struct FrameWriter {
    path: PathBuf,
    file: BufWriter<File>,
    sum: Xxh3Writer,
    pub(crate) bytes: u64,
    pub(crate) frames: u64,
}

/// The running checksum of a file.
struct Xxh3Writer(Xxh3);

impl fmt::Debug for Xxh3Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0.digest())
    }
}

impl FrameWriter {
    pub(crate) fn create(path: PathBuf) -> Result<FrameWriter> {
        let file = BufWriter::with_capacity(1 << 16, create(&path)?);
        Ok(FrameWriter {
            path,
            file,
            sum: Xxh3Writer(Xxh3::new()),
            bytes: 0,
            frames: 0,
        })
    }

    pub(crate) fn record<T: Record>(&mut self, record: &T) -> Result<()> {
        self.raw(T::TAG, T::VERSION, &pack(record)?)
    }

    pub(crate) fn raw(&mut self, tag: &str, version: u16, payload: &[u8]) -> Result<()> {
        let len = u16::try_from(tag.len()).ok().filter(|&len| len > 0);
        let len = len
            .ok_or(Errno::EINVAL)
            .on("record", || format!("tag of {} bytes", tag.len()))?;
        let mut frame = Vec::with_capacity(20 + tag.len() + payload.len());
        frame.extend_from_slice(&len.to_le_bytes());
        frame.extend_from_slice(tag.as_bytes());
        frame.extend_from_slice(&version.to_le_bytes());
        frame.extend_from_slice(&(payload.len() as u64).to_le_bytes());
        let sum = checksum(&frame, payload);
        frame.extend_from_slice(&sum.0.to_le_bytes());
        frame.extend_from_slice(payload);
        self.sum.0.update(&frame);
        self.file
            .write_all(&frame)
            .on("write", || self.path.display().to_string())?;
        self.bytes += frame.len() as u64;
        self.frames += 1;
        Ok(())
    }

    /// The complete file and its checksum.
    pub(crate) fn finish(self) -> Result<(File, Sum)> {
        let file = self.file.into_inner().map_err(|e| e.into_error());
        Ok((
            file.on("write", || self.path.display().to_string())?,
            Sum(self.sum.0.digest()),
        ))
    }
}

/// The checksum of a frame: of all of it but the checksum itself.
fn checksum(head: &[u8], payload: &[u8]) -> Sum {
    let mut sum = Xxh3::new();
    sum.update(head);
    sum.update(payload);
    Sum(sum.digest())
}

/// Takes the contents of the records file apart, comparing every checksum before looking into a payload.
pub(crate) fn parse(bytes: &[u8], path: &Path) -> Result<Vec<Frame>> {
    let mut frames = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let offset = at as u64;
        let cut = || damaged(path, offset, "a whole frame", "the end of the file within it");
        let field = |from: usize, len: usize| {
            from.checked_add(len)
                .and_then(|end| bytes.get(from..end))
                .ok_or_else(cut)
        };
        let tag_len = u16::from_le_bytes(array(field(at, 2)?)) as usize;
        let head_len = 2 + tag_len + 10;
        let head = field(at, head_len)?;
        let version = u16::from_le_bytes(array(&head[head_len - 10..head_len - 8]));
        let len = u64::from_le_bytes(array(&head[head_len - 8..]));
        let expected = Sum(u64::from_le_bytes(array(field(at + head_len, 8)?)));
        let payload = field(at + head_len + 8, usize::try_from(len).map_err(|_| cut())?)?;
        let found = checksum(head, payload);
        if found != expected {
            return Err(damaged(
                path,
                offset,
                format!("a frame with checksum {expected}"),
                found.to_string(),
            ));
        }
        let tag = std::str::from_utf8(&head[2..2 + tag_len])
            .map_err(|e| damaged(path, offset + 2, "a tag in UTF-8", e.to_string()))?;
        at += head_len + 8 + payload.len();
        let taken = AtomicBool::new(false);
        frames.push(Frame {
            tag: tag.into(),
            version,
            payload: payload.into(),
            offset,
            taken,
        });
    }
    Ok(frames)
}

/// A slice as an array of the length that the caller has already made sure of.
pub(crate) fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(bytes);
    out
}

/// Any MessagePack value, as JSON.
struct Any(Value);

impl<'de> Deserialize<'de> for Any {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Any, D::Error> {
        d.deserialize_any(AnyVisitor).map(Any)
    }
}

struct AnyVisitor;

impl<'de> Visitor<'de> for AnyVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_bytes<E>(self, v: &[u8]) -> Result<Value, E> {
        Ok(Value::String(v.iter().map(|b| format!("{b:02x}")).collect()))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, d: D) -> Result<Value, D::Error> {
        d.deserialize_any(AnyVisitor)
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, d: D) -> Result<Value, D::Error> {
        d.deserialize_any(AnyVisitor)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut out = Vec::new();
        while let Some(Any(v)) = seq.next_element()? {
            out.push(v);
        }
        Ok(Value::Array(out))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut out = serde_json::Map::new();
        while let Some((Any(key), Any(v))) = map.next_entry()? {
            let key = match key {
                Value::String(s) => s,
                other => other.to_string(),
            };
            out.insert(key, v);
        }
        Ok(Value::Object(out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::{Deserialize, Serialize};
    use std::collections::BTreeMap;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    enum Kind {
        Pipe { queued: Vec<u8> },
        Null,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Old {
        pid: i32,
        bytes: Vec<u8>,
        empty: Vec<u8>,
        block: [u8; 16],
        mixed: Vec<u16>,
        lists: Vec<Vec<u8>>,
        pair: (u8, u8),
        kind: Kind,
        other: Kind,
        none: Option<Vec<u8>>,
        map: BTreeMap<u32, i64>,
        float: f64,
        big: u64,
    }

    impl Record for Old {
        const TAG: &'static str = "test";
        const VERSION: u16 = 1;
    }

    fn sample() -> Old {
        Old {
            pid: -4,
            bytes: (0..=255).collect(),
            empty: vec![],
            block: [7; 16],
            mixed: vec![1, 2, 300],
            lists: vec![vec![], vec![1], vec![255; 300]],
            pair: (1, 200),
            kind: Kind::Pipe { queued: vec![0, 255] },
            other: Kind::Null,
            none: None,
            map: BTreeMap::from([(7, -8)]),
            float: 0.5,
            big: u64::MAX,
        }
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Shorter {
        pid: i32,
    }

    impl Record for Shorter {
        const TAG: &'static str = "test";
        const VERSION: u16 = 1;
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Newer {
        pid: i32,
    }

    impl Record for Newer {
        const TAG: &'static str = "test";
        const VERSION: u16 = 2;
    }

    fn frame(payload: Vec<u8>) -> Frame {
        Frame {
            tag: "test".into(),
            version: 1,
            payload,
            offset: 9,
            taken: AtomicBool::new(false),
        }
    }

    #[test]
    fn every_shape_of_field_comes_back() {
        let f = frame(pack(&sample()).unwrap());
        assert!(!f.is_taken());
        assert_eq!(f.decode::<Old>(Path::new("r")).unwrap(), sample());
        assert!(f.is_taken());
        // Byte strings are stored as such, not as one number after the other.
        assert!(f.payload.len() < 256 + 16 + 300 + 200, "{}", f.payload.len());
    }

    #[test]
    fn any_record_can_be_shown() {
        let json = frame(pack(&sample()).unwrap()).json();
        assert_eq!(json["pid"], -4);
        assert_eq!(json["kind"]["Pipe"]["queued"], "00ff");
        assert_eq!(json["other"], "Null");
        assert_eq!(json["map"]["7"], -8);
        assert_eq!(json["mixed"], serde_json::json!([1, 2, 300]));
        assert_eq!(json["none"], Value::Null);
    }

    #[test]
    fn leftovers_and_other_versions_are_errors() {
        let f = frame(pack(&sample()).unwrap());
        let e = f.decode::<Shorter>(Path::new("r")).unwrap_err().to_string();
        assert!(
            e.starts_with("r, offset 9: expected a record \"test\", found unknown field bytes"),
            "{e}"
        );
        let e = f.decode::<Newer>(Path::new("r")).unwrap_err().to_string();
        assert_eq!(
            e,
            "r, offset 9: expected record \"test\" of version 2, found version 1"
        );
        assert!(!f.is_taken());
        let mut long = f.payload.clone();
        long.push(0xc0);
        let e = frame(long).decode::<Old>(Path::new("r")).unwrap_err().to_string();
        assert!(e.contains("1 bytes after the record"), "{e}");
    }

    /// Serde buffers an untagged enum and then cannot take a list out of a byte string.
    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    enum OneWay {
        Bytes(Vec<u8>),
    }

    impl Record for OneWay {
        const TAG: &'static str = "one way";
        const VERSION: u16 = 1;
    }

    #[test]
    fn what_cannot_be_read_back_is_not_written() {
        let e = pack(&OneWay::Bytes(vec![1])).unwrap_err().to_string();
        assert!(e.contains("one way"), "{e}");
    }
}
