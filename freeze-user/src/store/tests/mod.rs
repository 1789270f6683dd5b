//! What holds for the store as a whole.

mod chain;
mod crash;
mod prune;

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

/// What one space takes from another is stored once, also through a parent, and when the chain is cut.
#[test]
fn shared_pages_are_stored_once() {
    let dir = Scratch::new("shared");
    let store = dir.store();
    let all = |from: u64, to: u64| [Range::new(from * PAGE, to * PAGE)];
    let mut draft = store.begin(None, &Options::default()).unwrap();
    draft.pages(A, 0, &pages(1, 50)).unwrap();
    draft.pages(B, 0, &pages(2, 10)).unwrap();
    assert_eq!(draft.share(B, A, &all(5, 60)), all(5, 50));
    let first = draft.commit(About::default()).unwrap();
    assert_eq!((first.counts.pages, first.counts.dead), (100, 5));
    let first = store.find(first.id.as_str()).unwrap();
    assert_eq!(
        first.runs(B).last().unwrap().at,
        Where::Stored { source: 0, slot: 5 }
    );

    for squash in [false, true] {
        let options = Options {
            squash,
            ..Options::default()
        };
        let mut draft = store.begin(Some(&first), &options).unwrap();
        let third = SpaceId::private(Pid(77));
        draft.inherit(A, &all(0, 50)).unwrap();
        draft.inherit(B, &all(0, 50)).unwrap();
        draft.pages(A, 3 * PAGE, &pages(9, 1)).unwrap();
        draft.space(third);
        assert_eq!(draft.share(third, A, &all(0, 40)), all(0, 40));
        let done = draft.commit(About::default()).unwrap();
        let image = store.find(done.id.as_str()).unwrap();
        let read = |space, page: u64| {
            let mut out = vec![0; PAGE as usize];
            image
                .read(space, Range::new(page * PAGE, (page + 1) * PAGE), &mut out)
                .unwrap();
            out
        };
        for page in 0..40 {
            assert_eq!(read(third, page), read(A, page), "page {page}");
        }
        assert_eq!(read(A, 3), pages(9, 1));
        assert_eq!(read(B, 7), read(A, 7));
        image.verify().unwrap();
    }
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

/// A checkpoint and one on top of it, small.
fn couple(store: &Store, form: Form) -> (CheckpointId, CheckpointId) {
    let options = Options {
        form,
        ..Options::default()
    };
    let mut draft = store.begin(None, &options).unwrap();
    draft.record(&note(1)).unwrap();
    draft.pages(A, 0x10000, &pages(1, 3)).unwrap();
    let base = draft.commit(About::default()).unwrap().id;
    let parent = store.find(base.as_str()).unwrap();
    let mut draft = store.begin(Some(&parent), &options).unwrap();
    draft.record(&note(2)).unwrap();
    draft.inherit(A, &[range(0, 1000)]).unwrap();
    draft.pages(A, 0x11000, &pages(2, 1)).unwrap();
    (base, draft.commit(About::default()).unwrap().id)
}

/// Opens a checkpoint and reads all of it.
fn read_all(dir: &Path) -> Result<()> {
    Opened::open(dir)?.verify().map(|_| ())
}

/// The error for a damaged `file` names it and a place in it.
fn assert_named(result: Result<()>, file: &Path, what: &str) {
    match result {
        Err(Error::Image {
            file: named,
            offset: Some(_),
            ..
        }) if named == file => {}
        other => panic!("{what} of {}: {other:?}", file.display()),
    }
}

#[test]
fn every_damage_is_found_and_named() {
    for form in [Form::Hot, Form::Cold { level: 1 }] {
        let dir = Scratch::new("damage");
        let store = dir.store();
        let (base, child) = couple(&store, form);
        let mut random = Random(9);
        for id in [base, child] {
            let place = store.dir().join(id.as_str());
            for name in [MANIFEST, RECORDS, INDEX, PAGES] {
                let file = place.join(name);
                let whole = std::fs::read(&file).unwrap();
                let mut points: Vec<usize> = (0..whole.len()).collect();
                if whole.len() > 1000 {
                    points = (0..500)
                        .map(|_| random.below(whole.len() as u64) as usize)
                        .collect();
                }
                for &at in &points {
                    let mut hurt = whole.clone();
                    hurt[at] ^= 1 << random.below(8);
                    std::fs::write(&file, &hurt).unwrap();
                    assert_named(read_all(&place), &file, &format!("flip at {at}"));
                    std::fs::write(&file, &whole[..at]).unwrap();
                    assert_named(read_all(&place), &file, &format!("cut at {at}"));
                }
                std::fs::write(&file, [&whole[..], b"x"].concat()).unwrap();
                assert_named(read_all(&place), &file, "a byte more");
                std::fs::remove_file(&file).unwrap();
                let e = read_all(&place).unwrap_err().to_string();
                assert!(e.starts_with(&file.display().to_string()), "{e}");
                std::fs::write(&file, &whole).unwrap();
                read_all(&place).unwrap();
            }
            std::fs::write(place.join("extra"), "").unwrap();
            let e = read_all(&place).unwrap_err().to_string();
            assert!(e.ends_with(
                "extra: expected nothing but the files of a checkpoint, found a file of another kind"
            ));
            std::fs::remove_file(place.join("extra")).unwrap();
        }
        // Damage in the parent is damage of the child, as far as it needs the parent.
        let (place, file) = (
            store.dir().join(child.as_str()),
            store.dir().join(base.as_str()).join(PAGES),
        );
        let mut hurt = std::fs::read(&file).unwrap();
        hurt[5] ^= 1;
        std::fs::write(&file, hurt).unwrap();
        assert_named(read_all(&place), &file, "flip in the parent");
        let broken: Vec<bool> = store
            .verify_all()
            .unwrap()
            .iter()
            .map(|(_, r)| r.is_err())
            .collect();
        assert_eq!(broken, [true, false]);
        let mut page = [0; PAGE as usize];
        let image = Opened::open(&place).unwrap();
        assert!(image.read(A, range(16, 17), &mut page).is_err() && page == [0; PAGE as usize]);
        let run = image.runs(A).next().unwrap();
        assert!(form != Form::Hot || image.mappable(&run).is_err());
    }
}

#[test]
fn a_missing_or_exchanged_parent_is_named() {
    let dir = Scratch::new("parent");
    let store = dir.store();
    let (base, child) = couple(&store, Form::Hot);
    let (parent, place) = (store.dir().join(base.as_str()), store.dir().join(child.as_str()));
    let away = store.dir().join("away");
    std::fs::rename(&parent, &away).unwrap();
    let e = store.find(child.as_str()).unwrap_err();
    assert_eq!(e.kind(), "image");
    let e = e.to_string();
    assert!(
        e.starts_with(&parent.display().to_string()) && e.contains("expected checkpoint"),
        "{e}"
    );

    // Another checkpoint under the parent's name is not the parent.
    let draft = Draft::beside(base, 5, store.dir(), &parent, None, &Options::default()).unwrap();
    draft.commit(About::default()).unwrap();
    let e = read_all(&place).unwrap_err().to_string();
    assert!(e.contains("with manifest checksum"), "{e}");
    std::fs::remove_dir_all(&parent).unwrap();
    std::fs::rename(&away, &parent).unwrap();
    read_all(&place).unwrap();

    // A pair in directories of other names, moved together.
    let (one, two) = (dir.0.join("one"), dir.0.join("x/two"));
    let mut draft = Store::begin_at(&one, None, &Options::default()).unwrap();
    draft.pages(A, 0, &pages(1, 1)).unwrap();
    draft.commit(About::default()).unwrap();
    std::fs::create_dir_all(&two).unwrap();
    let mut draft = Store::begin_at(&two, Some(&Opened::open(&one).unwrap()), &Options::default()).unwrap();
    draft.inherit(A, &[range(0, 1)]).unwrap();
    assert!(
        draft
            .inherit(B, &[range(0, 1)])
            .unwrap_err()
            .to_string()
            .contains("memory of pid 2")
    );
    draft.commit(About::default()).unwrap();
    read_all(&two).unwrap();
    std::fs::create_dir(dir.0.join("moved")).unwrap();
    std::fs::rename(&one, dir.0.join("moved/one")).unwrap();
    assert!(read_all(&two).is_err());
    std::fs::rename(dir.0.join("x"), dir.0.join("moved/x")).unwrap();
    read_all(&dir.0.join("moved/x/two")).unwrap();
}

#[test]
fn a_directory_of_ones_own_must_be_empty_and_is_left_as_it_was() {
    let dir = Scratch::new("own");
    let options = Options::default();
    let there = dir.0.join("there");
    std::fs::create_dir(&there).unwrap();
    for place in [there.clone(), dir.0.join("new")] {
        let was = place.exists();
        let mut draft = Store::begin_at(&place, None, &options).unwrap();
        draft.pages(A, 0, &pages(1, 1)).unwrap();
        assert!(Opened::open(&place).is_err());
        drop(draft);
        assert_eq!(place.exists(), was);
        assert_eq!(entries(&dir.0).unwrap().len(), usize::from(was));
        let mut draft = Store::begin_at(&place, None, &options).unwrap();
        draft.pages(A, 0, &pages(1, 1)).unwrap();
        let done = draft.commit(About::default()).unwrap();
        assert_eq!(done.path, place.canonicalize().unwrap());
        read_all(&place).unwrap();
        let e = Store::begin_at(&place, None, &options).unwrap_err().to_string();
        assert!(e.contains("not empty"), "{e}");
        std::fs::remove_dir_all(&place).unwrap();
        if was {
            std::fs::create_dir(&place).unwrap();
        }
        if was {
            let two = Store::begin_at(&place, None, &options).unwrap();
            // The second finds the files of the first.
            assert!(Store::begin_at(&place, None, &options).is_err());
            drop(two);
            std::fs::remove_dir(&place).unwrap();
        }
    }
}

#[test]
fn an_unknown_record_is_not_passed_over() {
    let dir = Scratch::new("unknown");
    let store = dir.store();
    let mut draft = store.begin(None, &Options::default()).unwrap();
    draft.record(&note(1)).unwrap();
    draft.raw_record("teleporter", 9, &[0xc0]).unwrap();
    let id = draft.commit(About::default()).unwrap().id;
    let image = store.find(id.as_str()).unwrap();
    assert_eq!(image.one::<Note>().unwrap(), note(1));
    let e = image.leftovers().unwrap_err().to_string();
    assert!(e.ends_with("found a record \"teleporter\" of version 9"), "{e}");
}

#[test]
fn records_that_waited_are_in_order_with_the_others() {
    let dir = Scratch::new("later");
    let store = dir.store();
    let mut draft = store.begin(None, &Options::default()).unwrap();
    // More than may wait.
    let tags = ["seven", "eleven", "thirteen"];
    let expected: Vec<&str> = tags
        .into_iter()
        .cycle()
        .take(700)
        .chain(["note", "last"])
        .collect();
    for tag in tags.into_iter().cycle().take(700) {
        let payload = move || Ok(vec![tag.len() as u8]);
        draft.later(tag, 1, Box::new(payload)).unwrap();
    }
    draft.record(&note(1)).unwrap();
    draft.later("last", 1, Box::new(|| Ok(vec![4]))).unwrap();
    let id = draft.commit(About::default()).unwrap().id;
    let image = store.find(id.as_str()).unwrap();
    let found: Vec<&str> = image.records().iter().map(|f| f.tag.as_str()).collect();
    assert_eq!(found, expected);
    let own = image.records().iter().filter(|f| f.tag != "note");
    assert!(own.into_iter().all(|f| f.payload == [f.tag.len() as u8]));

    let mut draft = store.begin(None, &Options::default()).unwrap();
    let fails = || Err(Error::kernel("encode", "a record", Errno::EINVAL));
    draft.later("bad", 1, Box::new(fails)).unwrap();
    assert_eq!(draft.commit(About::default()).unwrap_err().kind(), "kernel");
    assert_eq!(store.list().unwrap().len(), 1);
}

/// The images of a format that stay readable for good: a hot one and a cold one on top of it.
fn golden(format: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../tests/golden/format-{format}"))
}

fn golden_ids() -> [CheckpointId; 2] {
    [
        CheckpointId::of(1_785_542_399_000, 1),
        CheckpointId::of(1_785_542_400_000, 2),
    ]
}

#[test]
fn golden_images_are_still_read() {
    (1..=FORMAT).for_each(golden_images_of);
}

fn golden_images_of(format: u32) {
    let store = Store::open(&golden(format)).unwrap();
    let [hot, cold] = golden_ids().map(|id| store.find(id.as_str()).unwrap());
    assert_eq!(
        (hot.all::<Note>().unwrap(), cold.one::<Note>().unwrap()),
        (vec![note(1), note(2)], note(3))
    );
    let page = |n: u64, fill: u64| (0..PAGE).map(|i| ((i + n) * fill) as u8).collect::<Vec<u8>>();
    let mut expected: BTreeMap<u64, Vec<u8>> = (16..19).map(|n| (n, page(n, 1))).collect();
    expected.insert(19, vec![0; PAGE as usize]);
    assert!(contents(&hot, A) == expected);
    assert_eq!(hot.manifest().about.command, ["sleep", "1000"]);
    assert_eq!(hot.manifest().format, format);
    expected.insert(17, page(17, 3));
    assert!(contents(&cold, A) == expected);
    assert!(cold.has_space(SpaceId::shared(7)) && cold.depth() == 2);
    cold.verify().unwrap();
}

#[test]
#[ignore = "writes the golden images anew: only for a new version of the format"]
fn write_golden_images() {
    let dir = golden(FORMAT);
    std::fs::create_dir_all(&dir).unwrap();
    let [hot, cold] = golden_ids();
    let page = |n: u64, fill: u64| (0..PAGE).map(|i| ((i + n) * fill) as u8).collect::<Vec<u8>>();
    let begin = |id: CheckpointId, parent: Option<&Opened>, form| {
        let options = Options {
            form,
            ..Options::default()
        };
        Draft::beside(id, id.millis(), &dir, &dir.join(id.as_str()), parent, &options).unwrap()
    };
    let mut draft = begin(hot, None, Form::Hot);
    draft.record(&note(1)).unwrap();
    draft.record(&note(2)).unwrap();
    (16..19).for_each(|n| draft.pages(A, n * PAGE, &page(n, 1)).unwrap());
    draft.zero(A, &[range(19, 20)]).unwrap();
    let about = About {
        roots: vec![Pid(1)],
        group: Some("golden".into()),
        processes: 1,
        command: vec!["sleep".into(), "1000".into()],
        pause_us: 900,
        total_us: 4000,
        notes: BTreeMap::from([("host".into(), "example".into())]),
    };
    draft.commit(about.clone()).unwrap();
    let parent = Opened::open(&dir.join(hot.as_str())).unwrap();
    let mut draft = begin(cold, Some(&parent), Form::Cold { level: 3 });
    draft.record(&note(3)).unwrap();
    draft.inherit(A, &[range(0, 100)]).unwrap();
    draft.pages(A, 17 * PAGE, &page(17, 3)).unwrap();
    draft.space(SpaceId::shared(7));
    draft.commit(about).unwrap();
}
