//! Pruning never takes a page away from what stays.

use super::*;

/// Commits a checkpoint of `group` that inherits page 0 and writes page `n`.
fn link(store: &Store, parent: Option<CheckpointId>, group: &str, n: u64) -> CheckpointId {
    let parent = parent.map(|p| store.find(p.as_str()).unwrap());
    let mut draft = store.begin(parent.as_ref(), &Options::default()).unwrap();
    if parent.is_some() {
        draft.inherit(A, &[range(0, 3)]).unwrap();
    }
    draft.pages(A, n * PAGE, &pages(n as u8, 1)).unwrap();
    draft
        .commit(About {
            group: Some(group.into()),
            ..About::default()
        })
        .unwrap()
        .id
}

#[test]
fn pruning_takes_no_page_from_what_stays() {
    let dir = Scratch::new("prune");
    let store = dir.store();
    let other = link(&store, None, "other", 0);
    let base = link(&store, None, "g", 0);
    let one = link(&store, Some(base), "g", 1);
    let two = link(&store, Some(one), "g", 1);
    let three = link(&store, Some(two), "g", 2);
    let model = contents(&store.find(three.as_str()).unwrap(), A);

    // A reader keeps all that it may read.
    let reader = store.find(one.as_str()).unwrap();
    let pruned = store.prune(1, Some("g")).unwrap();
    assert_eq!(pruned.removed.len(), 0);
    assert!(pruned.kept.iter().any(|k| k.id == one && k.why == Why::InUse));
    drop(reader);

    let pruned = store.prune(1, Some("g")).unwrap();
    assert_eq!(pruned.removed.iter().map(|r| r.id).collect::<Vec<_>>(), [one]);
    assert!(pruned.freed_bytes >= PAGE);
    let kept: Vec<_> = pruned.kept.iter().map(|k| (k.id, k.why)).collect();
    assert_eq!(kept, [(two, Why::NeededBy(three)), (base, Why::NeededBy(three))]);
    assert!(contents(&store.find(three.as_str()).unwrap(), A) == model);
    // Two needed base only, which is still there.
    read_all(&store.dir().join(two.as_str())).unwrap();
    assert!(store.verify_all().unwrap().iter().all(|(_, r)| r.is_ok()));

    assert_eq!(store.prune(0, Some("g")).unwrap().removed.len(), 3);
    assert_eq!(
        store.list().unwrap().iter().map(|l| l.id).collect::<Vec<_>>(),
        [other]
    );
    assert_eq!(store.newest("other").unwrap().unwrap().id(), other);
    assert_eq!(store.prune(0, None).unwrap().removed.len(), 1);
    assert_eq!(entries(store.dir()).unwrap().len(), 0);
}

#[test]
fn what_is_kept_for_its_pages_says_so() {
    let dir = Scratch::new("pages-only");
    let store = dir.store();
    let base = link(&store, None, "g", 0);
    let one = link(&store, Some(base), "g", 1);
    // Has a page of `one`, none of `base`.
    let parent = store.find(one.as_str()).unwrap();
    let mut draft = store.begin(Some(&parent), &Options::default()).unwrap();
    draft.inherit(A, &[range(1, 2)]).unwrap();
    let two = draft
        .commit(About {
            group: Some("g".into()),
            ..About::default()
        })
        .unwrap()
        .id;
    drop(parent);
    let removed = store.prune(1, None).unwrap().removed;
    assert_eq!(removed.iter().map(|r| r.id).collect::<Vec<_>>(), [base]);
    let e = store.find(one.as_str()).unwrap_err().to_string();
    assert!(e.contains("only its pages, kept by prune"), "{e}");
    assert!(store.find(two.as_str()).unwrap().verify().is_ok());
    assert!(store.verify_all().unwrap().iter().all(|(_, r)| r.is_ok()));
    assert!(
        store.list().unwrap()[0]
            .to_string()
            .contains("kept for its pages only")
    );
    assert_eq!(store.newest("g").unwrap().unwrap().id(), two);
    store.prune(0, None).unwrap();
    assert_eq!(entries(store.dir()).unwrap().len(), 0);
}

#[test]
fn what_is_being_built_upon_is_not_pruned() {
    let dir = Scratch::new("race");
    let store = dir.store();
    let base = link(&store, None, "g", 0);
    let one = link(&store, Some(base), "g", 1);
    let parent = store.find(one.as_str()).unwrap();
    let mut draft = store.begin(Some(&parent), &Options::default()).unwrap();
    drop(parent);
    draft.inherit(A, &[range(0, 3)]).unwrap();
    assert_eq!(store.prune(0, None).unwrap().removed.len(), 0);
    // Nor is the draft taken for a leftover.
    assert_eq!(store.sweep().len(), 0);
    let done = draft.commit(About::default()).unwrap();
    store.find(done.id.as_str()).unwrap().verify().unwrap();
}
