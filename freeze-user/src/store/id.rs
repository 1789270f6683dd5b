//! Names of checkpoints: short, sortable by age, and unique across hosts.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

/// Crockford's digits in lower case: no i, l, o, u, and in the order of their bytes.
const DIGITS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
/// Nine digits of milliseconds since 1970 last until the year 3084.
const TIME: usize = 9;
/// Twenty-five random bits tell apart what begins within one millisecond.
const RANDOM: usize = 5;

/// The name of a checkpoint: nine base-32 digits of time (ms since 1970), five random ones.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CheckpointId([u8; TIME + RANDOM]);

impl CheckpointId {
    /// A new one, later than `after`, even if the clock went back.
    pub(crate) fn fresh(after: Option<CheckpointId>) -> CheckpointId {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let ms = (now.as_millis() as u64).max(after.map_or(0, |a| a.millis() + 1));
        let mut hash = RandomState::new().build_hasher();
        hash.write_u128(now.as_nanos());
        hash.write_u32(std::process::id());
        CheckpointId::of(ms, hash.finish())
    }

    /// The name for a time and the low bits of a random number.
    pub(crate) fn of(ms: u64, random: u64) -> CheckpointId {
        let mut id = [0; TIME + RANDOM];
        let value = ((ms as u128) << (5 * RANDOM)) | (random as u128 & ((1 << (5 * RANDOM)) - 1));
        for (i, digit) in id.iter_mut().rev().enumerate() {
            *digit = DIGITS[(value >> (5 * i)) as usize & 31];
        }
        CheckpointId(id)
    }

    /// When it was begun, in milliseconds since 1970.
    pub fn millis(self) -> u64 {
        self.0[..TIME].iter().fold(0, |ms, d| {
            ms << 5 | DIGITS.iter().position(|x| x == d).unwrap_or(0) as u64
        })
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl FromStr for CheckpointId {
    type Err = String;

    fn from_str(text: &str) -> Result<CheckpointId, String> {
        match <[u8; TIME + RANDOM]>::try_from(text.as_bytes()) {
            Ok(bytes) if bytes.iter().all(|b| DIGITS.contains(b)) => Ok(CheckpointId(bytes)),
            _ => Err(format!(
                "{text:?} is not the name of a checkpoint ({} base-32 digits)",
                TIME + RANDOM
            )),
        }
    }
}

impl fmt::Display for CheckpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for CheckpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for CheckpointId {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for CheckpointId {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<CheckpointId, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_sort_by_age_and_read_back() {
        let old = CheckpointId::of(1_000, u64::MAX);
        let new = CheckpointId::of(1_001, 0);
        assert!(old < new && old.as_str() < new.as_str());
        assert_eq!(new.as_str().parse(), Ok(new));
        assert_eq!(new.millis(), 1_001);
        assert!("0000000000000".parse::<CheckpointId>().is_err());
        assert!("0000000000000u".parse::<CheckpointId>().is_err());
    }

    #[test]
    fn a_clock_that_went_back_does_not_reorder() {
        let future = CheckpointId::of(CheckpointId::fresh(None).millis() + 1_000_000, 7);
        assert!(CheckpointId::fresh(Some(future)) > future);
    }
}
