//! What holds for the store as a whole.

/// A small generator of numbers, the same in every run.
#[derive(Debug)]
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

use super::*;
use crate::ids::{PAGE, Pid, Range, SpaceId};
use std::collections::BTreeMap;

/// A directory that is gone after the test.
#[derive(Debug)]
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let dir = std::env::temp_dir().join(format!("freeze-store-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        Scratch(dir)
    }

    fn store(&self) -> Store {
        Store::open(&self.0.join("store")).unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
struct Note {
    pid: Pid,
    text: String,
    raw: Vec<u8>,
}

impl Record for Note {
    const TAG: &'static str = "note";
    const VERSION: u16 = 1;
}

fn note(n: i32) -> Note {
    Note {
        pid: Pid(n),
        text: format!("note {n}"),
        raw: vec![n as u8; 5],
    }
}

const A: SpaceId = SpaceId(1);
const B: SpaceId = SpaceId(2);

fn pages(fill: u8, count: usize) -> Vec<u8> {
    let mut random = Random(u64::from(fill));
    (0..count * PAGE as usize)
        .map(|i| if i % 3 == 0 { random.next() as u8 } else { fill })
        .collect()
}

fn range(first: u64, end: u64) -> Range {
    Range::new(first * PAGE, end * PAGE)
}

/// Every page of a space that has one.
fn contents(image: &Opened, space: SpaceId) -> BTreeMap<u64, Vec<u8>> {
    let mut out = BTreeMap::new();
    image
        .for_each_run(space, |range, content| {
            for n in 0..range.pages() {
                let page = match content {
                    Content::Zero => vec![0; PAGE as usize],
                    Content::Bytes(b) => b[(n * PAGE) as usize..((n + 1) * PAGE) as usize].to_vec(),
                };
                assert!(out.insert(range.start / PAGE + n, page).is_none());
            }
            Ok(())
        })
        .unwrap();
    out
}

#[test]
fn what_is_written_is_read_again() {
    for form in [Form::Hot, Form::Cold { level: 1 }] {
        let dir = Scratch::new("round-trip");
        let store = dir.store();
        let mut draft = store
            .begin(
                None,
                &Options {
                    form,
                    ..Options::default()
                },
            )
            .unwrap();
        draft.record(&note(1)).unwrap();
        draft.record(&note(2)).unwrap();
        draft.pages(A, 0x10000, &pages(1, 100)).unwrap();
        draft
            .pages(
                A,
                0x10000 + 100 * PAGE,
                &pages(0, 1).iter().map(|_| 0).collect::<Vec<_>>(),
            )
            .unwrap();
        draft.pages(A, 0x12000, &pages(2, 3)).unwrap();
        draft.space(B);
        let about = About {
            command: vec!["x".into()],
            processes: 1,
            ..About::default()
        };
        let done = draft.commit(about).unwrap();
        assert_eq!(
            (
                done.counts.pages,
                done.counts.zero,
                done.counts.own,
                done.counts.dead
            ),
            (101, 1, 100, 3)
        );

        let image = store.find(&done.id.as_str()[..8]).unwrap();
        assert_eq!(image.all::<Note>().unwrap(), [note(1), note(2)]);
        image.leftovers().unwrap();
        assert!(image.one::<Note>().is_err());
        let mut expected = pages(1, 101);
        expected[2 * PAGE as usize..5 * PAGE as usize].copy_from_slice(&pages(2, 3));
        expected[100 * PAGE as usize..].fill(0);
        let mut out = vec![1; 101 * PAGE as usize];
        image.read(A, range(16, 117), &mut out).unwrap();
        assert!(out == expected);
        assert!(image.read(A, range(15, 116), &mut out).is_err());
        assert!(image.has_space(B) && image.runs(B).count() == 0);
        for run in image.runs(A) {
            let Some((file, offset)) = image.mappable(&run).unwrap() else {
                assert!(run.at == Where::Zero || form != Form::Hot);
                continue;
            };
            let mut there = vec![0; run.range.len() as usize];
            std::os::unix::fs::FileExt::read_exact_at(file, &mut there, offset).unwrap();
            let mut read = there.clone();
            image.read(A, run.range, &mut read).unwrap();
            assert!(there == read);
        }
        assert_eq!(image.verify().unwrap().records, 2);
        let shown = image.show();
        assert_eq!(shown.records[1].record["raw"], "0202020202");
        assert!(
            shown.to_string().contains("memory of pid 1: 101 pages"),
            "{shown}"
        );
        use std::os::unix::fs::MetadataExt;
        assert_eq!(std::fs::metadata(image.path()).unwrap().mode() & 0o777, 0o700);
        assert_eq!(
            std::fs::metadata(image.path().join(PAGES)).unwrap().mode() & 0o777,
            0o600
        );
        assert_eq!(store.list().unwrap().len(), 1);
    }
}

#[test]
fn a_dropped_draft_leaves_nothing() {
    let dir = Scratch::new("drop");
    let store = dir.store();
    let mut draft = store.begin(None, &Options::default()).unwrap();
    draft.pages(A, 0, &pages(1, 100)).unwrap();
    assert_eq!(entries(store.dir()).unwrap().len(), 1);
    drop(draft);
    assert_eq!(entries(store.dir()).unwrap().len(), 0);
}

/// Random drafts over a chain, against a map of pages for each checkpoint.
#[test]
fn chains_hold_what_a_plain_map_holds() {
    for (seed, form) in [
        (1, Form::Hot),
        (2, Form::Cold { level: 1 }),
        (3, Form::Hot),
        (4, Form::Hot),
    ] {
        let dir = Scratch::new(&format!("chain-{seed}"));
        let store = dir.store();
        let mut random = Random(seed);
        let options = Options {
            form,
            chain_limit: 4,
            ..Options::default()
        };
        type Model = BTreeMap<SpaceId, BTreeMap<u64, Vec<u8>>>;
        let mut models: Vec<(CheckpointId, Model)> = Vec::new();
        for _ in 0..12 {
            let base = models.last().filter(|_| random.below(8) > 0).cloned();
            let parent = base.as_ref().map(|(id, _)| store.find(id.as_str()).unwrap());
            let mut draft = store.begin(parent.as_ref(), &options).unwrap();
            let mut model = Model::new();
            for _ in 0..random.below(40) + 1 {
                let space = SpaceId(random.below(3));
                let start = random.below(300);
                let end = start + 1 + random.below(100);
                let there = model.entry(space).or_default();
                draft.space(space);
                match random.below(5) {
                    0 => {
                        draft.forget(space, &[range(start, end)]).unwrap();
                        there.retain(|page, _| !(start..end).contains(page));
                    }
                    1 | 2 => {
                        let above = base.as_ref().and_then(|(_, m)| m.get(&space));
                        let result = draft.inherit(space, &[range(start, end)]);
                        assert_eq!(result.is_ok(), above.is_some());
                        if let Some(above) = above {
                            there.retain(|page, _| !(start..end).contains(page));
                            there.extend(above.range(start..end).map(|(n, page)| (*n, page.clone())));
                        }
                    }
                    _ => {
                        let mut bytes = pages(random.next() as u8, (end - start) as usize);
                        for page in bytes.chunks_mut(PAGE as usize) {
                            if random.below(4) == 0 {
                                page.fill(0);
                            }
                        }
                        draft.pages(space, start * PAGE, &bytes).unwrap();
                        let new = bytes.chunks(PAGE as usize).map(<[u8]>::to_vec);
                        there.extend((start..end).zip(new));
                    }
                }
            }
            let done = draft.commit(About::default()).unwrap();
            assert!(done.depth <= 4);
            models.push((done.id, model));
        }
        for (id, model) in &models {
            let image = store.find(id.as_str()).unwrap();
            assert_eq!(
                image.spaces().collect::<Vec<_>>(),
                model.keys().copied().collect::<Vec<_>>()
            );
            for (space, expected) in model {
                assert!(
                    contents(&image, *space) == *expected,
                    "seed {seed}, {id}, {space}"
                );
            }
            image.verify().unwrap();
        }
        let all = store.verify_all().unwrap();
        assert!(all.len() == models.len() && all.iter().all(|(_, r)| r.is_ok()));
    }
}
