//! Which pages of an address space are still missing, and where in the image each belongs.

use crate::ids::Range;
use std::collections::BTreeMap;

/// Missing memory that is one stretch in the process and in the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Where it is missing.
    pub at: Range,
    /// The address it had at the checkpoint.
    pub from: u64,
}

impl Part {
    /// What of it lies in `range`.
    fn within(self, range: Range) -> Option<Part> {
        let at = self.at.intersect(range)?;
        let from = self.from + (at.start - self.at.start);
        Some(Part { at, from })
    }

    /// Where it was at the checkpoint.
    pub fn source(self) -> Range {
        Range::new(self.from, self.from + self.at.len())
    }
}

/// Missing pages by their address: end, and address at the checkpoint.
#[derive(Clone, Debug, Default)]
pub struct Missing(BTreeMap<u64, (u64, u64)>);

impl Missing {
    /// These, each where it was.
    pub fn new(ranges: &[Range]) -> Missing {
        Missing(ranges.iter().map(|r| (r.start, (r.end, r.start))).collect())
    }

    /// Whether nothing is missing any more.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many bytes are missing.
    pub fn bytes(&self) -> u64 {
        self.0.iter().map(|(start, (end, _))| end - start).sum()
    }

    /// What of `range` is missing, in order.
    pub fn within(&self, range: Range) -> Vec<Part> {
        let before = self.0.range(..range.start).next_back();
        let inside = self.0.range(range.start..range.end);
        let all = before.into_iter().chain(inside);
        all.filter_map(|(start, (end, from))| part(*start, *end, *from).within(range))
            .collect()
    }

    /// Takes `range` out, and tells what of it was missing.
    pub fn cut(&mut self, range: Range) -> Vec<Part> {
        let out = self.within(range);
        for p in &out {
            let Some((start, (end, from))) = self.0.range(..=p.at.start).next_back() else {
                continue;
            };
            let (start, end, from) = (*start, *end, *from);
            self.0.remove(&start);
            if start < p.at.start {
                self.0.insert(start, (p.at.start, from));
            }
            if p.at.end < end {
                self.0.insert(p.at.end, (end, from + (p.at.end - start)));
            }
        }
        out
    }

    /// Mappings were moved: what was missing in them is missing elsewhere.
    pub fn moved(&mut self, from: Range, to: u64) {
        let parts = self.cut(from);
        self.cut(Range::new(to, to + from.len()));
        for p in parts {
            let start = to + (p.at.start - from.start);
            self.0.insert(start, (start + p.at.len(), p.from));
        }
    }

    /// Where something is missing from `address` on: of at most as many bytes, ending at a multiple of that.
    pub fn next(&self, address: u64, bytes: u64) -> Option<Range> {
        let rest = Range::new(address, u64::MAX);
        let before = self.0.range(..address).next_back();
        let all = before.into_iter().chain(self.0.range(address..).take(1));
        let mut all = all.filter_map(|(start, (end, from))| part(*start, *end, *from).within(rest));
        let first = all.next()?.at.start;
        Some(Range::new(first, first / bytes * bytes + bytes))
    }
}

fn part(start: u64, end: u64, from: u64) -> Part {
    Part {
        at: Range::new(start, end),
        from,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(missing: &Missing) -> Vec<(u64, u64, u64)> {
        let all = missing.within(Range::new(0, u64::MAX));
        all.iter().map(|p| (p.at.start, p.at.end, p.from)).collect()
    }

    #[test]
    fn what_is_cut_out_of_the_middle_leaves_both_ends() {
        let mut missing = Missing::new(&[Range::new(10, 20), Range::new(30, 40)]);
        let cut = missing.cut(Range::new(15, 32));
        assert_eq!(cut, [part(15, 20, 15), part(30, 32, 30)]);
        assert_eq!(list(&missing), [(10, 15, 10), (32, 40, 32)]);
        missing.cut(Range::new(11, 12));
        assert_eq!(list(&missing), [(10, 11, 10), (12, 15, 12), (32, 40, 32)]);
        assert_eq!(missing.bytes(), 12);
        missing.cut(Range::new(0, 100));
        assert!(missing.is_empty());
    }

    #[test]
    fn what_is_moved_keeps_its_place_in_the_image() {
        let mut missing = Missing::new(&[Range::new(10, 20), Range::new(100, 110)]);
        missing.moved(Range::new(12, 18), 104);
        assert_eq!(
            list(&missing),
            [(10, 12, 10), (18, 20, 18), (100, 104, 100), (104, 110, 12)]
        );
    }

    #[test]
    fn the_next_share_ends_at_a_round_number() {
        let missing = Missing::new(&[Range::new(10, 35), Range::new(50, 60)]);
        for (address, start, end) in [
            (0, 10, 16),
            (16, 16, 32),
            (32, 32, 48),
            (35, 50, 64),
            (50, 50, 64),
        ] {
            assert_eq!(missing.next(address, 16), Some(Range::new(start, end)));
        }
        assert_eq!(missing.next(60, 16), None);
    }
}
