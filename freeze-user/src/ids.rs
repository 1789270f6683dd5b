//! Numbers that must not be mistaken for each other, each as a type of its own.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The size of a page on every machine freeze runs on (x86-64), in bytes.
pub const PAGE: u64 = 4096;

/// End of the addresses a process may map (with four-level page tables).
pub const TASK_SIZE: u64 = 0x7fff_ffff_f000;

/// A process or thread id as seen in the pid namespace in which freeze itself runs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Pid(pub i32);

impl Pid {
    /// The same id for nix's calls.
    pub fn nix(self) -> nix::unistd::Pid {
        nix::unistd::Pid::from_raw(self.0)
    }
}

impl fmt::Display for Pid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Pid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pid {}", self.0)
    }
}

/// An open file description, numbered within one checkpoint from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FileId(pub u32);

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "file {}", self.0)
    }
}

/// A set of page contents in the image: one private address space, or one shared memory object.
///
/// The number is stable over a chain of checkpoints, so that a child can take over pages of its parent.
/// Private spaces are named by the pid that owns them, shared objects by what [`SpaceId::shared`] is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SpaceId(pub u64);

impl SpaceId {
    const SHARED: u64 = 1 << 63;

    /// The private address space of the process `pid`.
    pub fn private(pid: Pid) -> SpaceId {
        SpaceId(pid.0 as u64)
    }

    /// The contents of a memory object (shmem, memfd, unlinked file), named by a number of the collector's.
    pub fn shared(number: u64) -> SpaceId {
        SpaceId(Self::SHARED | number)
    }
}

impl fmt::Display for SpaceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 & Self::SHARED {
            0 => write!(f, "memory of pid {}", self.0),
            _ => write!(f, "memory object {}", self.0 & !Self::SHARED),
        }
    }
}

/// Half-open range of addresses or offsets `[start, end)`, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Range {
    pub start: u64,
    pub end: u64,
}

/// Every address and offset.
pub const EVERYWHERE: Range = Range {
    start: 0,
    end: u64::MAX,
};

impl Range {
    /// The range from `start` to `end`; `start ≤ end` must hold.
    pub fn new(start: u64, end: u64) -> Range {
        assert!(start <= end, "range {start:#x}..{end:#x} runs backwards");
        Range { start, end }
    }

    /// Its length in bytes.
    pub fn len(self) -> u64 {
        self.end - self.start
    }

    /// Whether it covers nothing.
    pub fn is_empty(self) -> bool {
        self.start == self.end
    }

    /// How many pages it covers; both ends must be page-aligned.
    pub fn pages(self) -> u64 {
        self.len() / PAGE
    }

    /// Whether `addr` lies inside.
    pub fn contains(self, addr: u64) -> bool {
        self.start <= addr && addr < self.end
    }

    /// Whether the two share at least one byte.
    pub fn overlaps(self, other: Range) -> bool {
        self.start < other.end && other.start < self.end
    }

    /// The part that both cover, if any.
    pub fn intersect(self, other: Range) -> Option<Range> {
        let (start, end) = (self.start.max(other.start), self.end.min(other.end));
        (start < end).then_some(Range { start, end })
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}-{:x}", self.start, self.end)
    }
}

impl fmt::Debug for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Sorts ranges and joins those that touch or overlap.
pub fn normalize(mut ranges: Vec<Range>) -> Vec<Range> {
    ranges.retain(|r| !r.is_empty());
    ranges.sort_unstable();
    let mut out: Vec<Range> = Vec::with_capacity(ranges.len());
    for r in ranges {
        match out.last_mut() {
            Some(last) if r.start <= last.end => last.end = last.end.max(r.end),
            _ => out.push(r),
        }
    }
    out
}

/// The ranges of `list` from the first to the last that may overlap one of `with`: a single mapping is looked for among
/// those of a process that has 65,000.
fn near<'a>(list: &'a [Range], with: &[Range]) -> &'a [Range] {
    let (Some(first), Some(last)) = (with.first(), with.last()) else {
        return &[];
    };
    let from = list.partition_point(|r| r.end <= first.start);
    let to = list.partition_point(|r| r.start < last.end);
    &list[from..to.max(from)]
}

/// The parts of `a` that `b` covers too; both normalized.
pub fn intersect(a: &[Range], b: &[Range]) -> Vec<Range> {
    let mut out = Vec::new();
    let (a, b) = (near(a, b), near(b, a));
    let mut first = 0;
    for &r in a {
        while first < b.len() && b[first].end <= r.start {
            first += 1;
        }
        out.extend(
            b[first..]
                .iter()
                .take_while(|c| c.start < r.end)
                .filter_map(|&c| r.intersect(c)),
        );
    }
    out
}

/// The parts of `a` that no range of `b` covers; both must be normalized.
pub fn subtract(a: &[Range], b: &[Range]) -> Vec<Range> {
    let mut out = Vec::new();
    let b = near(b, a);
    let mut first = 0;
    for &r in a {
        let mut at = r.start;
        while first < b.len() && b[first].end <= r.start {
            first += 1;
        }
        for cut in b[first..].iter().take_while(|c| c.start < r.end) {
            if cut.start > at {
                out.push(Range::new(at, cut.start));
            }
            at = at.max(cut.end);
        }
        if at < r.end {
            out.push(Range::new(at, r.end));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn r(list: &[(u64, u64)]) -> Vec<Range> {
        list.iter().map(|&(a, b)| Range::new(a, b)).collect()
    }

    #[test]
    fn normalizing_joins_neighbours() {
        assert_eq!(
            normalize(r(&[(5, 7), (1, 3), (3, 5), (9, 9), (10, 12)])),
            r(&[(1, 7), (10, 12)])
        );
    }

    #[test]
    fn subtraction_leaves_the_rest() {
        assert_eq!(
            subtract(&r(&[(0, 10), (20, 30)]), &r(&[(2, 4), (8, 22), (25, 26)])),
            r(&[(0, 2), (4, 8), (22, 25), (26, 30)])
        );
        assert_eq!(subtract(&r(&[(0, 10)]), &[]), r(&[(0, 10)]));
        assert_eq!(subtract(&r(&[(0, 10), (10, 20)]), &r(&[(0, 20)])), r(&[]));
    }

    #[test]
    fn common_parts() {
        assert_eq!(
            intersect(&r(&[(0, 10), (20, 30)]), &r(&[(5, 22), (25, 26), (29, 40)])),
            r(&[(5, 10), (20, 22), (25, 26), (29, 30)])
        );
        assert_eq!(intersect(&r(&[(0, 10)]), &r(&[(10, 20)])), r(&[]));
    }
}
