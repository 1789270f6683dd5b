//! Paths in records: text where they are UTF-8, bytes where they are not, since a path may hold any byte but 0.
//!
//! For `#[serde(with = "crate::ospath")]`, which reads what was written as a plain path, too.

use serde::de::{Error, Visitor};
use serde::{Deserializer, Serializer};
use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// Encodes it.
pub fn serialize<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
    match path.to_str() {
        Some(text) => to.serialize_str(text),
        None => to.serialize_bytes(path.as_os_str().as_bytes()),
    }
}

/// Decodes it.
pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
    struct Visit;
    impl Visitor<'_> for Visit {
        type Value = PathBuf;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a path, as text or as bytes")
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<PathBuf, E> {
            Ok(PathBuf::from(text))
        }

        fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<PathBuf, E> {
            Ok(PathBuf::from(OsString::from_vec(bytes.to_vec())))
        }
    }
    from.deserialize_any(Visit)
}

/// The same for a path that may be missing.
pub mod option {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use std::path::PathBuf;

    #[derive(Deserialize, Serialize)]
    struct There(#[serde(with = "super")] PathBuf);

    /// Encodes it.
    pub fn serialize<S: Serializer>(path: &Option<PathBuf>, to: S) -> Result<S::Ok, S::Error> {
        path.clone().map(There).serialize(to)
    }

    /// Decodes it.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<PathBuf>, D::Error> {
        Ok(Option::<There>::deserialize(from)?.map(|there| there.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::{Deserialize, Serialize};

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Named {
        #[serde(with = "super")]
        at: PathBuf,
        #[serde(with = "super::option", default)]
        other: Option<PathBuf>,
    }

    #[derive(Serialize)]
    struct Plain {
        at: PathBuf,
        other: Option<PathBuf>,
    }

    fn path(bytes: &[u8]) -> PathBuf {
        PathBuf::from(OsString::from_vec(bytes.to_vec()))
    }

    #[test]
    fn any_bytes_come_back() {
        for (at, other) in [
            (path(b"/tmp/\xff\xfe"), Some(path(b"\xc3("))),
            (path(b"/tmp/\xc3\xa4"), None),
            (path(b""), Some(path(b"/"))),
        ] {
            let named = Named { at, other };
            let bytes = rmp_serde::to_vec_named(&named).unwrap();
            assert_eq!(rmp_serde::from_slice::<Named>(&bytes).unwrap(), named);
        }
    }

    #[test]
    fn text_is_encoded_as_a_plain_path_is() {
        let (at, other) = (path(b"/a b"), Some(path(b"/c")));
        let plain = Plain {
            at: at.clone(),
            other: other.clone(),
        };
        let named = Named { at, other };
        assert_eq!(
            rmp_serde::to_vec_named(&named).unwrap(),
            rmp_serde::to_vec_named(&plain).unwrap()
        );
    }
}
