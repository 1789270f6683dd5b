//! Which processes share a table (memory, descriptors, working directory, signal handlers), as clone(2) lets them.

use crate::ids::Pid;
use crate::observe::view::{ProcessView, View, all_pids};
use crate::sys::{self, Kcmp};
use std::cell::OnceCell;
use std::cmp::Ordering;
use std::collections::BTreeMap;

/// The tables that processes may share: how kcmp(2) asks for them, the flag of clone(2), a word for people.
pub const TABLES: [(Kcmp, u64, &str); 4] = [
    (Kcmp::Vm, libc::CLONE_VM as u64, "its memory"),
    (Kcmp::Files, libc::CLONE_FILES as u64, "its descriptor table"),
    (Kcmp::Fs, libc::CLONE_FS as u64, "its working directory"),
    (Kcmp::Sighand, libc::CLONE_SIGHAND as u64, "its signal handlers"),
];

/// What a process shares with others of the set that come before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sharing {
    /// Flags of clone(2).
    pub tables: u64,
    /// The process it can be cloned from so that it shares all of them: its parent, or an elder child of the same
    /// parent. `None` if there is no such process.
    pub with: Option<Pid>,
}

/// Finds what is shared within a set.
///
/// Sharing begins with a process's birth: what was born before an earlier look, and shared nothing then, is passed over.
pub fn find(view: &View, before: Option<&View>) -> BTreeMap<Pid, Sharing> {
    let alone = |p: &ProcessView| {
        let known = before.and_then(|b| Some((b, b.get(p.pid)?)));
        known.is_some_and(|(b, old)| {
            old.stat.start_time == p.stat.start_time && !b.sharing.contains_key(&p.pid)
        })
    };
    let live: Vec<&ProcessView> = view.each().filter(|p| !p.is_dead()).collect();
    let mut out: BTreeMap<Pid, Sharing> = BTreeMap::new();
    if live.len() < 2 || live.iter().all(|p| alone(p)) {
        return out;
    }
    // By table, for each process the first in order of birth that has the same.
    let others = OnceCell::new();
    let groups: Vec<BTreeMap<Pid, Pid>> = TABLES.iter().map(|(what, ..)| same(&live, *what)).collect();
    for (n, p) in live.iter().enumerate() {
        let shared = |q: &ProcessView| {
            let one = |g: &BTreeMap<Pid, Pid>| g[&p.pid] == g[&q.pid];
            groups
                .iter()
                .zip(TABLES)
                .filter(|(g, _)| one(g))
                .fold(0, |all, (_, t)| all | t.1)
        };
        let tables = live[..n].iter().fold(0, |all, q| all | shared(q));
        if tables == 0 {
            if let Some(parent) = live[..n]
                .iter()
                .find(|q| q.pid.0 == p.stat.ppid && same_io(p, q, view, &others))
            {
                let tables = libc::CLONE_IO as u32 as u64;
                let with = Some(parent.pid);
                out.insert(p.pid, Sharing { tables, with });
            }
            continue;
        }
        let near = |q: &&&ProcessView| q.pid.0 == p.stat.ppid || q.stat.ppid == p.stat.ppid;
        let with = live[..n].iter().filter(near).find(|q| shared(q) == tables);
        let io = with
            .filter(|q| same_io(p, q, view, &others))
            .map_or(0, |_| libc::CLONE_IO as u32 as u64);
        let (tables, with) = (tables | io, with.map(|q| q.pid));
        out.insert(p.pid, Sharing { tables, with });
    }
    out
}

/// Whether two processes of the set share an I/O context, and nobody else does: most processes have none, which the kernel
/// calls the same.
fn same_io(p: &ProcessView, q: &ProcessView, view: &View, others: &OnceCell<Vec<Pid>>) -> bool {
    let same = |a: Pid, b: Pid| sys::kcmp(a, b, Kcmp::Io, 0, 0).is_ok_and(Ordering::is_eq);
    let outside = |o: Pid| view.get(o).is_none() && same(o, p.speaker);
    // freeze itself has none as a rule: others need hardly ever be asked.
    same(p.speaker, q.speaker)
        && !outside(Pid(std::process::id() as i32))
        && !others
            .get_or_init(|| all_pids().unwrap_or_default())
            .iter()
            .any(|o| outside(*o))
}

/// For each process, the first of the list with which it has a table in common; itself if there is none before it.
fn same(live: &[&ProcessView], what: Kcmp) -> BTreeMap<Pid, Pid> {
    let compare = |a: usize, b: usize| {
        sys::kcmp(live[a].speaker, live[b].speaker, what, 0, 0).unwrap_or_else(|_| a.cmp(&b))
    };
    let firsts = firsts(live.len(), compare);
    live.iter()
        .zip(firsts)
        .map(|(p, first)| (p.pid, live[first].pid))
        .collect()
}

/// For each of `count` things the first that is equal to it.
///
/// By an order, so that a few comparisons tell of all; but of programs that run the order may change while it is asked for,
/// which a sort of the standard library takes for a bug.
fn firsts(count: usize, compare: impl Fn(usize, usize) -> Ordering) -> Vec<usize> {
    let mut known: Vec<usize> = Vec::new();
    let mut out = Vec::with_capacity(count);
    for n in 0..count {
        match known.binary_search_by(|k| compare(*k, n)) {
            Ok(at) => out.push(known[at]),
            Err(at) => {
                known.insert(at, n);
                out.push(n);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::view::Depth;
    use std::cell::Cell;

    #[test]
    fn the_first_of_each_kind_is_found_and_no_order_ends_in_a_panic() {
        let kinds = [3, 1, 3, 2, 1, 1, 3];
        assert_eq!(
            firsts(kinds.len(), |a, b| kinds[a].cmp(&kinds[b])),
            [0, 1, 0, 3, 1, 1, 0]
        );
        let turn = Cell::new(0u32);
        let restless = |_, _| {
            turn.set(turn.get().wrapping_mul(1_103_515_245).wrapping_add(12_345));
            [Ordering::Less, Ordering::Equal, Ordering::Greater][(turn.get() >> 16) as usize % 3]
        };
        assert_eq!(firsts(1000, restless).len(), 1000);
    }

    #[test]
    fn a_process_shares_everything_with_itself_and_nothing_with_a_child_of_its_own() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let own = ProcessView::read(Pid(std::process::id() as i32), Depth::Maps).unwrap();
        let other = ProcessView::read(Pid(child.id() as i32), Depth::Maps).unwrap();
        let _ = child.kill();
        let groups = same(&[&own, &other], Kcmp::Files);
        assert_eq!(groups[&other.pid], other.pid);
        let view = View {
            processes: vec![own.into(), other.into()],
            ..View::default()
        };
        assert!(find(&view, None).is_empty());
        let _ = child.wait();
    }
}
