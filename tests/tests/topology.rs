//! Topologies of up to four processes and three pipes, who holds which end of which pipe, verified by data flow: all small
//! ones, and of the millions of large ones a sample.
//!
//! A topology is a tree of processes and, for each pipe, the set of processes that read it and the set that write it.
//! Two that differ in the order of pipes or of processes alike are one. Many are set up in one subject, each in a small tree of
//! its own, so that all of them are frozen and restored at once; afterwards every process tells over every pipe which ends
//! it holds, and what it read must be what the others wrote.

use freeze_tests::{Mode, run};
use freeze_tests::{Subject, c};
use std::collections::BTreeSet;

/// One pipe: bits of the processes that hold its reading and its writing end.
type Pipe = (u8, u8);

/// The parent of each process after the first, then the pipes in order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Topology {
    parents: Vec<usize>,
    pipes: Vec<Pipe>,
}

/// Every tree of `n` processes, the parent of each before it.
fn trees(n: usize) -> Vec<Vec<usize>> {
    let mut out = vec![Vec::new()];
    for child in 1..n {
        out = out
            .into_iter()
            .flat_map(|t: Vec<usize>| (0..child).map(move |p| [&t[..], &[p]].concat()))
            .collect();
    }
    out
}

/// All ways to hand `n` elements round that leave the tree the same.
fn symmetries(parents: &[usize]) -> Vec<Vec<usize>> {
    let n = parents.len() + 1;
    let mut out = Vec::new();
    let mut order: Vec<usize> = (0..n).collect();
    permute(&mut order, 1, &mut |p| {
        if (1..n).all(|c| p[parents[c - 1]] == parent_of(parents, p[c])) {
            out.push(p.to_vec());
        }
    });
    out
}

fn parent_of(parents: &[usize], child: usize) -> usize {
    if child == 0 {
        usize::MAX
    } else {
        parents[child - 1]
    }
}

fn permute(order: &mut Vec<usize>, from: usize, found: &mut dyn FnMut(&[usize])) {
    if from >= order.len() {
        return found(order);
    }
    for i in from..order.len() {
        order.swap(from, i);
        permute(order, from + 1, found);
        order.swap(from, i);
    }
}

fn moved(set: u8, by: &[usize]) -> u8 {
    by.iter()
        .enumerate()
        .filter(|(i, _)| set & 1 << i != 0)
        .fold(0, |all, (_, to)| all | 1 << to)
}

/// Every topology of exactly `n` processes and `k` pipes, of those alike one. A pipe has at least one end held.
fn topologies(n: usize, k: usize) -> BTreeSet<Topology> {
    let all = 1u8 << n;
    let mut pipes: Vec<Pipe> = Vec::new();
    for readers in 0..all {
        pipes.extend(
            (0..all)
                .map(|writers| (readers, writers))
                .filter(|p| *p != (0, 0)),
        );
    }
    let mut out = BTreeSet::new();
    for parents in trees(n) {
        let same = symmetries(&parents);
        let mut chosen = vec![0; k];
        loop {
            let set: Vec<Pipe> = chosen.iter().map(|i| pipes[*i]).collect();
            let least = same
                .iter()
                .map(|by| {
                    let mut set: Vec<Pipe> =
                        set.iter().map(|(r, w)| (moved(*r, by), moved(*w, by))).collect();
                    set.sort_unstable();
                    set
                })
                .min();
            if least.as_ref() == Some(&set) {
                out.insert(Topology {
                    parents: parents.clone(),
                    pipes: set,
                });
            }
            // The next choice in ascending order: pipes have no names.
            let Some(at) = (0..k).rev().find(|i| chosen[*i] + 1 < pipes.len()) else {
                break;
            };
            let next = chosen[at] + 1;
            chosen[at..].fill(next);
        }
        if k == 0 {
            out.insert(Topology {
                parents,
                pipes: Vec::new(),
            });
        }
    }
    out
}

/// Some of many, evenly spread, so that each run sees every sort.
fn sample(all: Vec<Topology>, most: usize) -> Vec<Topology> {
    let step = all.len().div_ceil(most).max(1);
    all.into_iter().step_by(step).collect()
}

/// Some of those of which there are millions, the same ones every time.
fn drawn(n: usize, k: usize, many: usize) -> Vec<Topology> {
    // Knuth's multiplier; the upper bits are the random ones.
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut below = |limit: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % limit
    };
    let all = 1usize << n;
    let pipe = |both: usize| ((both / all) as u8, (both % all) as u8);
    (0..many)
        .map(|_| Topology {
            parents: (1..n).map(&mut below).collect(),
            pipes: (0..k).map(|_| pipe(below(all * all - 1) + 1)).collect(),
        })
        .collect()
}

/// The subject: a table of topologies, and a process that sets each up.
fn subject(list: &[Topology]) -> Subject {
    let mut table = String::new();
    for t in list {
        let mut parents = t.parents.clone();
        parents.resize(3, 0);
        let mut pipes = t.pipes.clone();
        pipes.resize(3, (0, 0));
        let pipes: Vec<String> = pipes.iter().map(|(r, w)| format!("{{{r},{w}}}")).collect();
        table += &format!(
            "{{{},{},{{0,{},{},{}}},{{{}}}}},\n",
            t.parents.len() + 1,
            t.pipes.len(),
            parents[0],
            parents[1],
            parents[2],
            pipes.join(",")
        );
    }
    c(&SUBJECT.replace("TABLE", &table))
}

const SUBJECT: &str = r#"
#include <linux/kcmp.h>
struct topology { int processes, pipes, parent[4]; struct { int readers, writers; } pipe[3]; };
static const struct topology all[] = {
TABLE};
enum { COUNT = sizeof all / sizeof *all, FIRST = 20 };
/* What the processes of one topology share: their ids, and steps that all have taken. */
static struct shared { volatile int pid[4], step[4], failed; } *shared;

/* Waits until every process of a topology has taken the step before. */
static void together(const struct topology *t, struct shared *s, int own, int step) {
    s->step[own] = step;
    for (int i = 0; i < t->processes; i++) while (s->step[i] < step) { if (s->failed) _exit(1); nap(1); }
}

static int holds(const struct topology *t, int pipe, int end, int process) {
    return (end ? t->pipe[pipe].writers : t->pipe[pipe].readers) >> process & 1;
}

static int number(int pipe, int end) { return FIRST + 2 * pipe + end; }

/* Each writer writes its own letter; what comes out of a pipe is one of each. */
static void flow(const struct topology *t, struct shared *s, int own) {
    for (int p = 0; p < t->pipes; p++) {
        int readers = t->pipe[p].readers, writers = t->pipe[p].writers;
        char letter = 'a' + own;
        if (holds(t, p, 1, own)) {
            ssize_t n = write(number(p, 1), &letter, 1);
            if (readers) SAME(n, 1);
            else CHECK(n == -1 && errno == EPIPE);
        }
        together(t, s, own, 10 + 10 * p);
        /* The first that reads takes everything. */
        if (readers && own == __builtin_ctz(readers)) {
            char got[32];
            int seen = 0, want = 1 + __builtin_popcount(writers);
            ssize_t n = read(number(p, 0), got, sizeof got);
            /* One byte was in the pipe from before, if anybody could write it. */
            if (!writers) want = s->step[own] < 0 ? 0 : 1;
            SAME(n, want);
            SAME(got[0], 'A' + p);
            for (int i = 1; i < n; i++) seen |= 1 << (got[i] - 'a');
            SAME(seen, writers);
        }
        together(t, s, own, 11 + 10 * p);
        /* Without a writer there is an end, else there is more to come. */
        if (holds(t, p, 0, own)) {
            char x;
            ssize_t n = read(number(p, 0), &x, 1);
            if (writers) CHECK(n == -1 && errno == EAGAIN);
            else SAME(n, 0);
        }
        together(t, s, own, 12 + 10 * p);
    }
    /* One end is one description, whoever holds it. */
    for (int p = 0; p < t->pipes; p++) for (int end = 0; end < 2; end++) for (int i = 0; i < t->processes; i++) {
        int open = fcntl(number(p, end), F_GETFD) >= 0;
        SAME(open, holds(t, p, end, own));
        if (open && holds(t, p, end, i))
            SAME(syscall(SYS_kcmp, getpid(), s->pid[i], KCMP_FILE, number(p, end), number(p, end)), 0);
    }
    together(t, s, own, 100);
}

static void play(const struct topology *t, struct shared *s, int own) {
    s->pid[own] = getpid();
    int child[4] = { 0 };
    for (int i = own + 1; i < t->processes; i++) if (t->parent[i] == own) {
        child[i] = OK(fork());
        if (!child[i]) { play(t, s, i); _exit(0); }
    }
    for (int p = 0; p < t->pipes; p++) for (int end = 0; end < 2; end++)
        if (!holds(t, p, end, own)) close(number(p, end));
    together(t, s, own, 1);
    while (!gone_ahead()) nap(20);
    flow(t, s, own);
    for (int i = 0; i < t->processes; i++) if (child[i]) {
        int status;
        OK(waitpid(child[i], &status, 0));
        if (status) s->failed = 1;
    }
}

int main(void) {
    signal(SIGPIPE, SIG_IGN);
    int top[COUNT];
    shared = mmap(0, COUNT * sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(shared != MAP_FAILED);
    for (int n = 0; n < COUNT; n++) {
        const struct topology *t = all + n;
        top[n] = OK(fork());
        if (top[n]) continue;
        for (int p = 0; p < t->pipes; p++) {
            int fds[2];
            char letter = 'A' + p;
            OK(pipe2(fds, O_NONBLOCK));
            SAME(write(fds[1], &letter, 1), 1);
            for (int end = 0; end < 2; end++) {
                OK(dup2(fds[end], number(p, end)));
                close(fds[end]);
            }
        }
        play(t, shared + n, 0);
        _exit(shared[n].failed);
    }
    for (int n = 0; n < COUNT; n++) for (int i = 0; i < all[n].processes; i++) while (shared[n].step[i] < 1) nap(1);
    freeze_here();
    for (int n = 0; n < COUNT; n++) {
        int status;
        OK(waitpid(top[n], &status, 0));
        if (status) DIE("topology %d failed: %d", n, status);
    }
}
"#;

fn play(mode: Mode, name: &str, list: Vec<Topology>) {
    assert!(!list.is_empty());
    for (n, part) in list.chunks(PART).enumerate() {
        let name = format!("topology::{name}::{n}");
        run(mode, &name, || subject(part));
    }
}

/// How many are frozen at once.
const PART: usize = 48;

fn up_to(processes: usize, pipes: usize) -> Vec<Topology> {
    let sizes = (1..=processes).flat_map(|n| (1..=pipes).map(move |k| (n, k)));
    sizes.flat_map(|(n, k)| topologies(n, k)).collect()
}

#[test]
fn every_one_is_counted_once() {
    // One process and one pipe: it holds the reading end, the writing one, or both.
    assert_eq!(topologies(1, 1).len(), 3);
    assert_eq!(topologies(2, 1).len(), 15);
    // Fifteen pipes, of which two are chosen with repetition.
    assert_eq!(topologies(2, 2).len(), 15 * 16 / 2);
    // A chain and a fork of three: 63 pipes; the fork's two children are alike.
    assert_eq!(topologies(3, 1).len(), 63 + (63 + 15) / 2);
    assert_eq!(trees(4).len(), 6);
}

#[test]
fn small_ones_are_restored() {
    play(Mode::Restore, "small", up_to(2, 2));
}

#[test]
fn one_pipe_among_many_is_restored() {
    let all: Vec<Topology> = topologies(3, 1).into_iter().chain(topologies(4, 1)).collect();
    play(Mode::Restore, "one_pipe", sample(all, 60));
}

#[test]
fn large_ones_are_restored() {
    let mut all = sample((2..=3).flat_map(|k| topologies(3, k)).collect(), 30);
    all.extend(drawn(4, 2, 20));
    all.extend(drawn(4, 3, 30));
    play(Mode::Restore, "large", all);
}

#[test]
fn some_go_on_undisturbed() {
    play(Mode::Resume, "resume", sample(up_to(3, 1), 30));
}
