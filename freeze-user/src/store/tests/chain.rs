//! Chains stay short, and neither the disk nor what is written grows with their history.

use super::*;

#[test]
fn a_chain_stays_as_short_as_asked() {
    let dir = Scratch::new("bound");
    let store = dir.store();
    let options = Options {
        chain_limit: 5,
        ..Options::default()
    };
    let mut parent: Option<Opened> = None;
    for n in 0..12u64 {
        let mut draft = store.begin(parent.as_ref(), &options).unwrap();
        if parent.is_some() {
            draft.inherit(A, &[range(0, 100)]).unwrap();
        }
        draft
            .pages(A, n * PAGE, &pages(n as u8 + 1, if n == 0 { 50 } else { 1 }))
            .unwrap();
        let done = draft.commit(About::default()).unwrap();
        // The two largest of five ancestors stay, which makes room for two more: first three of a page each are copied, then one
        // of four and two of one.
        let (depth, copied) = match n {
            0..5 => (n + 1, 0),
            5 | 8 => (3, 3),
            11 => (3, 6),
            _ => (4 + n % 3, 0),
        };
        assert_eq!(
            (u64::from(done.depth), done.counts.copied),
            (depth, copied),
            "{n}"
        );
        assert_eq!(done.counts.pages, 50);
        parent = Some(store.find(done.id.as_str()).unwrap());
    }
    let alone = Options {
        squash: true,
        ..options
    };
    let mut draft = store.begin(parent.as_ref(), &alone).unwrap();
    draft.inherit(A, &[range(0, 100)]).unwrap();
    let done = draft.commit(About::default()).unwrap();
    assert_eq!((done.depth, done.counts.own, done.counts.copied), (1, 50, 50));
    let whole = contents(&store.find(done.id.as_str()).unwrap(), A);
    assert!(whole == contents(&parent.unwrap(), A));
    for l in store.list().unwrap().iter().filter(|l| l.id != done.id) {
        std::fs::remove_dir_all(&l.path).unwrap();
    }
    assert!(whole == contents(&store.find(done.id.as_str()).unwrap(), A));
}

/// While a program stands still until its checkpoint is stored, nothing is copied for a shorter chain.
#[test]
fn who_stands_still_leaves_it_to_the_next() {
    let dir = Scratch::new("leaves-chain");
    let store = dir.store();
    let options = Options {
        chain_limit: 2,
        ..Options::default()
    };
    let mut parent: Option<Opened> = None;
    for (n, (depth, copied)) in [(1, 0), (2, 0), (3, 0), (4, 0), (2, 3)].into_iter().enumerate() {
        let mut draft = store.begin(parent.as_ref(), &options).unwrap();
        if n < 4 {
            draft.leave_chain();
        }
        if parent.is_some() {
            draft.inherit(A, &[range(0, 100)]).unwrap();
        }
        draft
            .pages(
                A,
                n as u64 * PAGE,
                &pages(n as u8 + 1, if n == 0 { 50 } else { 1 }),
            )
            .unwrap();
        let done = draft.commit(About::default()).unwrap();
        assert_eq!((done.depth, done.counts.copied), (depth, copied), "{n}");
        parent = Some(store.find(done.id.as_str()).unwrap());
    }
}

/// Pages that spaces share are stored once also when they are copied, however differently they lie in runs.
#[test]
fn what_is_shared_is_copied_once() {
    let dir = Scratch::new("copied-once");
    let store = dir.store();
    let mut draft = store.begin(None, &Options::default()).unwrap();
    draft.pages(A, 0, &pages(1, 50)).unwrap();
    draft.share(B, A, &[range(0, 50)]);
    let id = draft.commit(About::default()).unwrap().id;
    let parent = store.find(id.as_str()).unwrap();
    let squash = Options {
        squash: true,
        ..Options::default()
    };
    let mut draft = store.begin(Some(&parent), &squash).unwrap();
    draft.inherit(A, &[range(0, 50)]).unwrap();
    draft.inherit(B, &[range(0, 50)]).unwrap();
    // From here on the runs of A are others than those of B.
    draft.pages(A, 7 * PAGE, &pages(2, 1)).unwrap();
    draft.forget(B, &[range(30, 31)]).unwrap();
    let done = draft.commit(About::default()).unwrap();
    assert_eq!(done.counts.copied, 50);
    let image = store.find(done.id.as_str()).unwrap();
    let (a, b) = (contents(&image, A), contents(&image, B));
    assert_eq!((a.len(), b.len()), (50, 49));
    assert!(b.iter().all(|(n, page)| (*n == 7) == (a[n] != *page)));
    let mut places: Vec<(u32, u64)> = Vec::new();
    for space in [A, B] {
        for run in image.runs(space) {
            let Where::Stored { source, slot } = run.at else {
                panic!("{run:?}")
            };
            places.extend((0..run.range.pages()).map(|n| (source, slot + n)));
        }
    }
    places.sort_unstable();
    places.dedup();
    assert_eq!(places.len(), 51);
}

/// A program that runs for long, of which few checkpoints are kept.
#[test]
fn neither_the_disk_nor_what_is_written_grows_with_time() {
    const PAGES: u64 = 20_000;
    const ROUNDS: u64 = 200;
    for dirty in [40, 1000] {
        let dir = Scratch::new(&format!("long-{dirty}"));
        let store = dir.store();
        let mut random = Random(dirty);
        let mut model: Vec<u8> = vec![0; PAGES as usize];
        let (mut written, mut largest, mut longest, mut changed) = (0, 0, 0, 0);
        let mut parent: Option<Opened> = None;
        for n in 0..=ROUNDS {
            let mut draft = store.begin(parent.as_ref(), &Options::default()).unwrap();
            if parent.is_some() {
                draft.inherit(A, &[range(0, PAGES)]).unwrap();
            }
            let touched: Vec<u64> = match n {
                0 => (0..PAGES).collect(),
                _ => (0..dirty).map(|_| random.below(PAGES)).collect(),
            };
            for page in touched {
                let fill = random.next() as u8 | 1;
                model[page as usize] = fill;
                draft.pages(A, page * PAGE, &[fill; PAGE as usize]).unwrap();
                changed += u64::from(n > 0);
            }
            let about = About {
                group: Some("g".into()),
                ..About::default()
            };
            let done = draft.commit(about).unwrap();
            let image = store.find(done.id.as_str()).unwrap();
            written += if n > 0 {
                image.manifest().files.pages.slots
            } else {
                0
            };
            longest = longest.max(done.depth);
            parent = Some(image);
            store.prune(5, Some("g")).unwrap();
            let list = store.list().unwrap();
            let manifests = list.iter().filter_map(|l| l.manifest.as_ref());
            largest = largest.max(manifests.map(|m| m.files.pages.slots).sum::<u64>());
        }
        let image = parent.unwrap();
        for (page, bytes) in contents(&image, A) {
            assert!(bytes.iter().all(|b| *b == model[page as usize]), "page {page}");
        }
        let (times, room) = (written as f64 / changed as f64, largest as f64 / PAGES as f64);
        assert!(times < 3.0, "{dirty} pages a round: written {times} times");
        assert!(
            room < 3.5,
            "{dirty} pages a round: room for {room} times the memory"
        );
        assert!(longest <= 64, "{longest}");
    }
}
