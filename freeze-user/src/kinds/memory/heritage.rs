//! Pages that relatives share since fork(2): written into an ancestor before its children are forked, so that they are
//! shared again.
//!
//! The image tells which they are: pages of several processes at one address that lie at one place of it. For each such
//! group its members' nearest common ancestor is the home. A process needs from its parent, when it is forked, every
//! page whose home lies above it and of which it or a descendant is a member. Before each fork the parent is given what
//! the child needs and it does not hold; what was there before, other children keep. In the end every process is given
//! its own pages where what it holds is something else, which unshares just these.

use super::super::pipe::Bytes;
use super::{Backing, Mapping, Record, fill, place, vdso};
use crate::error::Result;
use crate::ids::{EVERYWHERE, Pid, Range, SpaceId, intersect, normalize, subtract};
use crate::nest::family::Family;
use crate::nest::{Bequest, Nest};
use crate::store::{Content, Opened, Where};
use crate::sys::fault;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Pages of a process, and which version of them it is: the same at the same address only if all of it is equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    range: Range,
    version: (u32, u64),
    /// A process whose space in the image has them.
    of: Pid,
}

/// Pieces in order of address that do not overlap.
type Layer = Vec<Piece>;

/// What backs a private mapping, and how it was made: only into an equal one pages can be inherited.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Make {
    Anonymous,
    File(FileName),
    Memfd(SpaceId),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct FileName {
    path: Bytes,
    device_and_inode: (u64, u64),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Key {
    make: Make,
    /// Offset less address.
    shift: u64,
    grows_down: bool,
    no_reserve: bool,
}

/// What a blank process has mapped and holds already.
#[derive(Clone, Debug, Default)]
pub struct Estate {
    mapped: Vec<(Range, Key)>,
    held: Layer,
}

#[derive(Debug, Default)]
struct Estates(BTreeMap<Pid, Estate>);

/// Who needs what, for the time the blank processes are forked.
#[derive(Debug)]
pub struct Heritage {
    image: Opened,
    /// Parent in the checkpoint, and how many ancestors it has there.
    kin: BTreeMap<Pid, (Option<Pid>, usize)>,
    records: BTreeMap<Pid, Record>,
    needs: BTreeMap<Pid, Layer>,
}

impl Heritage {
    /// Finds out what is shared by whom.
    pub fn new(image: &Opened, families: &[Family], records: BTreeMap<Pid, Record>) -> Heritage {
        let mut kin: BTreeMap<Pid, (Option<Pid>, usize)> = BTreeMap::new();
        for f in families {
            let above = (!f.root).then(|| kin.get(&f.parent)).flatten().map(|k| k.1 + 1);
            kin.insert(f.pid, (above.map(|_| f.parent), above.unwrap_or(0)));
        }
        let mut heritage = Heritage {
            image: image.clone(),
            kin,
            records,
            needs: BTreeMap::new(),
        };
        heritage.find_needs();
        heritage
    }

    fn find_needs(&mut self) {
        if self.records.len() < 2 {
            return;
        }
        let mut by_version: HashMap<(u32, u64), Vec<(Range, Pid)>> = HashMap::new();
        for &pid in self.records.keys().filter(|p| self.kin.contains_key(p)) {
            for piece in layer(&self.image, pid) {
                by_version
                    .entry(piece.version)
                    .or_default()
                    .push((piece.range, pid));
            }
        }
        let mut needs: BTreeMap<Pid, Vec<Piece>> = BTreeMap::new();
        for (version, mut runs) in by_version {
            if runs.iter().all(|(_, pid)| *pid == runs[0].1) {
                continue;
            }
            runs.sort_unstable();
            let mut cuts: Vec<u64> = runs.iter().flat_map(|(r, _)| [r.start, r.end]).collect();
            cuts.sort_unstable();
            cuts.dedup();
            let (mut next, mut over): (usize, Vec<(u64, Pid)>) = (0, Vec::new());
            for cut in cuts.windows(2) {
                over.retain(|(end, _)| *end > cut[0]);
                while next < runs.len() && runs[next].0.start <= cut[0] {
                    over.push((runs[next].0.end, runs[next].1));
                    next += 1;
                }
                let members: BTreeSet<Pid> = over.iter().map(|(_, pid)| *pid).collect();
                for (heir, of) in self.heirs(&members) {
                    needs.entry(heir).or_default().push(Piece {
                        range: Range::new(cut[0], cut[1]),
                        version,
                        of,
                    });
                }
            }
        }
        self.needs = needs
            .into_iter()
            .map(|(pid, pieces)| (pid, ordered(pieces)))
            .collect();
    }

    /// Everybody between a member and the members' common ancestor, with a member; that one is none of them.
    fn heirs(&self, members: &BTreeSet<Pid>) -> BTreeMap<Pid, Pid> {
        let mut heirs = BTreeMap::new();
        let mut by_root: BTreeMap<Pid, Vec<Pid>> = BTreeMap::new();
        for m in members {
            by_root.entry(self.root(*m)).or_default().push(*m);
        }
        for relatives in by_root.values().filter(|r| r.len() > 1) {
            let home = relatives[1..]
                .iter()
                .fold(relatives[0], |a, b| self.common(a, *b));
            for &member in relatives {
                let mut at = member;
                while at != home {
                    heirs.insert(at, member);
                    let Some(above) = self.parent(at) else { break };
                    at = above;
                }
            }
        }
        heirs
    }

    fn parent(&self, pid: Pid) -> Option<Pid> {
        self.kin.get(&pid).and_then(|k| k.0)
    }

    fn root(&self, pid: Pid) -> Pid {
        std::iter::successors(Some(pid), |p| self.parent(*p))
            .last()
            .unwrap_or(pid)
    }

    fn common(&self, mut a: Pid, mut b: Pid) -> Pid {
        let depth = |p: Pid| self.kin.get(&p).map_or(0, |k| k.1);
        while a != b {
            let (deeper, other) = if depth(a) >= depth(b) { (a, b) } else { (b, a) };
            let Some(above) = self.parent(deeper) else {
                return other;
            };
            (a, b) = (above, other);
        }
        a
    }

    fn descends(&self, pid: Pid, from: Pid) -> bool {
        std::iter::successors(Some(pid), |p| self.parent(*p)).any(|p| p == from)
    }

    /// Gives a process what it lacks, mapping what is not mapped yet.
    fn give(&self, pid: Pid, lacking: &[Piece], estate: &mut Estate, nest: &mut Nest) -> Result<()> {
        fault::point("what children inherit")?;
        let ranges = normalize(lacking.iter().map(|p| p.range).collect());
        let mapped = |estate: &Estate| normalize(estate.mapped.iter().map(|(r, _)| *r).collect());
        let mut bare = subtract(&ranges, &mapped(estate));
        if !bare.is_empty() {
            if let (true, None, Some(record)) =
                (estate.mapped.is_empty(), self.parent(pid), self.records.get(&pid))
            {
                // Its children have it where their parent has, as a rule.
                vdso::place(record, pid, &[], nest)?;
            }
            let top = if self.kin.contains_key(&pid) {
                pid
            } else {
                lacking[0].of
            };
            let heirs: Vec<(Pid, &Record)> = self
                .records
                .iter()
                .filter(|(p, _)| self.descends(**p, top))
                .map(|(p, r)| (*p, r))
                .collect();
            // Who has executed another program may have anything at these addresses, a reservation of terabytes even.
            let shared: BTreeMap<Pid, Vec<Range>> = heirs
                .iter()
                .map(|(p, _)| {
                    let need = self.needs.get(p).into_iter().flatten();
                    let need = normalize(need.map(|piece| piece.range).collect());
                    (*p, intersect(&need, &ranges))
                })
                .collect();
            let shares = |p: &Pid, range: Range| *p == top || !intersect(&shared[p], &[range]).is_empty();
            let mut taken = mapped(estate);
            taken.extend(place::mapped_now(pid)?);
            let mut taken = normalize(taken);
            for (p, record) in &heirs {
                for m in &record.vmas {
                    if intersect(&[m.range], &bare).is_empty() || !shares(p, m.range) {
                        continue;
                    }
                    let Some(key) = key(record, m) else { continue };
                    // As large as any of them has it, so that nobody's is in two pieces.
                    let same = heirs.iter().flat_map(|(p, r)| {
                        let first = r.vmas.partition_point(|v| v.range.end <= m.range.start);
                        let near = r.vmas[first..].iter().take_while(|v| v.range.start < m.range.end);
                        near.filter(|v| shares(p, v.range)).map(move |v| (*r, v))
                    });
                    let same = same.filter(|(r, v)| self::key(r, v).as_ref() == Some(&key));
                    let whole = same.fold(m.range, |w, (_, v)| {
                        Range::new(w.start.min(v.range.start), w.end.max(v.range.end))
                    });
                    for part in subtract(&[whole], &taken) {
                        place::map_private(record, m, part, pid, nest)?;
                        estate.mapped.push((part, key.clone()));
                        taken = normalize([taken, vec![part]].concat());
                    }
                    bare = subtract(&bare, &taken);
                }
            }
            join(&mut estate.mapped);
        }
        let there = mapped(estate);
        let mut given = Vec::new();
        let mut reader = self.image.reader();
        for piece in lacking {
            for part in intersect(&[piece.range], &there) {
                reader.for_each_in(SpaceId::private(piece.of), part, |at, content| match content {
                    Content::Bytes(bytes) => fill::write_pages(pid, at.start, bytes),
                    Content::Zero => Ok(()),
                })?;
                given.push(Piece {
                    range: part,
                    ..*piece
                });
            }
        }
        estate.held = overlaid(given, &estate.held);
        Ok(())
    }
}

impl Bequest for Heritage {
    fn before_fork(&mut self, parent: Pid, child: Pid, nest: &mut Nest) -> Result<()> {
        let mut estate = nest
            .state::<Estates>()
            .0
            .get(&parent)
            .cloned()
            .unwrap_or_default();
        if let Some(need) = self.needs.get(&child) {
            let lacking = differing(need, &estate.held);
            if !lacking.is_empty() {
                self.give(parent, &lacking, &mut estate, nest)?;
            }
        }
        let estates = &mut nest.state::<Estates>().0;
        estates.insert(parent, estate.clone());
        estates.insert(child, estate);
        Ok(())
    }
}

/// What of its inheritance a process keeps, and what is left to do.
#[derive(Debug, Default)]
pub struct Kept {
    /// Everything that it inherited.
    pub mapped: Vec<Range>,
    /// Mappings of its record, by number, that are there already, readable and writable.
    pub mappings: BTreeSet<usize>,
    /// Pages in them that are not its own.
    pub stale: Vec<Range>,
    /// Its own pages that it has to be given.
    pub todo: Vec<Range>,
}

/// Settles what a process does with its inheritance.
pub fn settle(record: &Record, pid: Pid, nest: &mut Nest) -> Kept {
    let estate = nest.state::<Estates>().0.remove(&pid).unwrap_or_default();
    let all = nest.image.ranges(SpaceId::private(pid), EVERYWHERE, true);
    let mapped = normalize(estate.mapped.iter().map(|(r, _)| *r).collect());
    if estate.held.is_empty() {
        return Kept {
            mapped,
            todo: all,
            ..Kept::default()
        };
    }
    let own = layer(&nest.image, pid);
    // What both have at one place.
    let other: Vec<Range> = differing(&own, &estate.held).iter().map(|p| p.range).collect();
    let ranges = |layer: &[Piece]| normalize(layer.iter().map(|p| p.range).collect());
    let common = subtract(&ranges(&own), &normalize(other));
    let mut kept = Kept {
        mapped,
        ..Kept::default()
    };
    let (mut inside, mut has) = (Vec::new(), Vec::new());
    for (i, m) in record.vmas.iter().enumerate() {
        let Some(key) = key(record, m) else { continue };
        let covers = |(r, k): &(Range, Key)| r.start <= m.range.start && m.range.end <= r.end && *k == key;
        let useful = intersect(&[m.range], &common);
        if !useful.is_empty() && estate.mapped.iter().any(covers) {
            kept.mappings.insert(i);
            inside.push(m.range);
            has.extend(useful);
        }
    }
    let has = normalize(has);
    kept.stale = subtract(&intersect(&ranges(&estate.held), &normalize(inside)), &has);
    kept.todo = subtract(&all, &has);
    kept
}

/// The pages of a process that have contents, as the image has them.
fn layer(image: &Opened, pid: Pid) -> Layer {
    let runs = image.runs(SpaceId::private(pid));
    let stored = runs.filter_map(|run| match run.at {
        Where::Stored { source, slot } => Some(Piece {
            range: run.range,
            version: (source, slot.wrapping_sub(run.range.start / crate::ids::PAGE)),
            of: pid,
        }),
        Where::Zero => None,
    });
    stored.collect()
}

/// In order and apart; of what overlaps, what begins first counts.
fn ordered(mut pieces: Vec<Piece>) -> Layer {
    pieces.sort_by_key(|p| p.range);
    let mut out: Layer = Vec::with_capacity(pieces.len());
    for mut p in pieces {
        let end = out.last().map_or(0, |l| l.range.end);
        if p.range.end <= end {
            continue;
        }
        p.range.start = p.range.start.max(end);
        match out.last_mut() {
            Some(l) if l.range.end == p.range.start && (l.version, l.of) == (p.version, p.of) => {
                l.range.end = p.range.end;
            }
            _ => out.push(p),
        }
    }
    out
}

/// The parts of `a` that `b` does not have in the same version.
fn differing(a: &[Piece], b: &[Piece]) -> Layer {
    let mut out = Vec::new();
    for p in a {
        let mut at = p.range.start;
        let first = b.partition_point(|q| q.range.end <= p.range.start);
        for q in b[first..].iter().take_while(|q| q.range.start < p.range.end) {
            if q.version != p.version {
                continue;
            }
            if q.range.start > at {
                out.push(Piece {
                    range: Range::new(at, q.range.start),
                    ..*p
                });
            }
            at = q.range.end.min(p.range.end);
        }
        if at < p.range.end {
            out.push(Piece {
                range: Range::new(at, p.range.end),
                ..*p
            });
        }
    }
    out
}

/// `top`, and what it leaves of `below`.
fn overlaid(top: Vec<Piece>, below: &[Piece]) -> Layer {
    let covered = normalize(top.iter().map(|p| p.range).collect());
    let mut all = top;
    for q in below {
        let parts = subtract(&[q.range], &covered);
        all.extend(parts.into_iter().map(|range| Piece { range, ..*q }));
    }
    ordered(all)
}

/// Joins neighbours that are one mapping.
fn join(mapped: &mut Vec<(Range, Key)>) {
    mapped.sort_by_key(|(r, _)| *r);
    let mut out: Vec<(Range, Key)> = Vec::with_capacity(mapped.len());
    for (r, key) in mapped.drain(..) {
        match out.last_mut() {
            Some((last, k)) if last.end == r.start && *k == key => last.end = r.end,
            _ => out.push((r, key)),
        }
    }
    *mapped = out;
}

/// How a mapping is made; `None` if it cannot be made ahead.
fn key(record: &Record, m: &Mapping) -> Option<Key> {
    if m.shared || m.huge != 0 || m.has("dp") {
        return None;
    }
    let (make, shift) = match m.backing {
        Backing::Anonymous => (Make::Anonymous, 0),
        Backing::File(i) => {
            let f = &record.files[i];
            // The tree it is in is built when all processes are there.
            if f.tree != 0 {
                return None;
            }
            use std::os::unix::ffi::OsStrExt;
            let name = FileName {
                path: Bytes(f.path.as_os_str().as_bytes().to_vec()),
                device_and_inode: (f.stat.dev, f.stat.ino),
            };
            (Make::File(name), m.offset.wrapping_sub(m.range.start))
        }
        Backing::Memfd(i) => (
            Make::Memfd(record.memfds[i].space),
            m.offset.wrapping_sub(m.range.start),
        ),
        Backing::Object(_) | Backing::Segment(_) => return None,
    };
    Some(Key {
        make,
        shift,
        grows_down: m.has("gd"),
        no_reserve: m.has("nr"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(start: u64, end: u64, version: u32) -> Piece {
        Piece {
            range: Range::new(start, end),
            version: (version, 0),
            of: Pid(1),
        }
    }

    #[test]
    fn what_differs_is_what_is_not_held_in_the_same_version() {
        let a = [piece(0, 10, 1), piece(20, 30, 1)];
        let b = [piece(2, 4, 1), piece(4, 6, 2), piece(8, 25, 1)];
        let want = [piece(0, 2, 1), piece(4, 8, 1), piece(25, 30, 1)];
        assert_eq!(differing(&a, &b), want);
        assert_eq!(differing(&a, &[]), a);
        assert_eq!(differing(&a, &a), []);
    }

    #[test]
    fn the_upper_layer_counts() {
        let over = overlaid(vec![piece(4, 6, 2)], &[piece(0, 10, 1), piece(12, 14, 1)]);
        assert_eq!(
            over,
            [piece(0, 4, 1), piece(4, 6, 2), piece(6, 10, 1), piece(12, 14, 1)]
        );
        assert_eq!(
            ordered(vec![piece(5, 9, 1), piece(0, 6, 2)]),
            [piece(0, 6, 2), piece(6, 9, 1)]
        );
    }
}
