//! Inserts, deletes and vacuums against a model, and failures in the middle of them.

use super::support::*;
use crate::index::store::PageStore;
use crate::index::*;
use std::collections::BTreeMap;

/// Every live row comes out of a full scan once, at its distance.
fn check(store: &MemoryStore, metric: Metric, model: &BTreeMap<Tid, Vec<f32>>, query: &[f32]) {
    let mut hits = scan_all(store, query);
    hits.sort_by_key(|hit| hit.tid);
    assert_eq!(
        hits.iter().map(|h| h.tid).collect::<Vec<_>>(),
        model.keys().copied().collect::<Vec<_>>()
    );
    for (hit, vector) in hits.iter().zip(model.values()) {
        assert!((hit.distance - distance(metric, query, vector)).abs() < 1e-4);
    }
    let stats = cleanup(store).unwrap();
    assert_eq!((stats.entries, stats.rows), (model.len() as u64, model.len() as u64));
}

#[test]
fn random_changes_follow_the_model() {
    for (seed, d, metric, lists) in [
        (1, 8, Metric::L2, 5),
        (2, 40, Metric::Cosine, 0),
        (3, 2100, Metric::InnerProduct, 2),
        (4, 3, Metric::L2, 3),
    ] {
        let mut random = Random(seed);
        let initial = if d > 1000 { 60 } else { 1500 };
        let vectors = random.clustered(initial, d, 10);
        let (store, _) = build(
            IndexOptions {
                lists,
                ..options(metric, d)
            },
            &vectors,
        );
        let mut model: BTreeMap<Tid, Vec<f32>> = (1..).zip(vectors).collect();
        let mut next = initial as Tid + 1;
        for round in 0..12 {
            for _ in 0..random.below(initial as u64 / 3) {
                let vector = random.vector(d);
                insert(&store, &[entry(next, &vector)]).unwrap();
                model.insert(next, vector);
                next += 1;
            }
            let share = random.below(4);
            let dead: Vec<Tid> = model.keys().copied().filter(|_| random.below(4) < share).collect();
            let stats = bulk_delete(&store, &mut |tid| dead.binary_search(&tid).is_ok()).unwrap();
            assert_eq!(stats.removed, dead.len() as u64);
            dead.iter().for_each(|tid| {
                model.remove(tid);
            });
            assert_eq!(
                (stats.entries, stats.rows),
                (model.len() as u64, model.len() as u64),
                "round {round}"
            );
            check(&store, metric, &model, &random.vector(d));
            // Tids come back in a heap after vacuum.
            if let Some(&tid) = dead.first() {
                let vector = random.vector(d);
                insert(&store, &[entry(tid, &vector)]).unwrap();
                model.insert(tid, vector);
            }
        }
    }
}

#[test]
fn space_is_used_again() {
    for (d, n) in [(16, 2000u64), (400, 300), (5000, 20)] {
        let mut random = Random(d as u64);
        let vectors = random.clustered(n as usize, d, 8);
        let (store, _) = build(
            IndexOptions {
                lists: 4,
                ..options(Metric::L2, d)
            },
            &vectors,
        );
        let mut sizes = Vec::new();
        for round in 0..12u64 {
            // Half of the rows goes, others come in its place; which half changes.
            let first = 1 + round * n;
            bulk_delete(&store, &mut |tid| tid < first || tid % 2 == round % 2).unwrap();
            let live = cleanup(&store).unwrap().entries;
            for i in 0..n - live {
                let vector = &vectors[((i * 7 + round) % n) as usize];
                insert(&store, &[entry(first + n + i, vector)]).unwrap();
            }
            assert_eq!(cleanup(&store).unwrap().entries, n);
            sizes.push(store.blocks().unwrap());
        }
        let (early, late) = (sizes[3], sizes[11]);
        assert!(f64::from(late) <= f64::from(early) * 1.1 + 8.0, "d={d}: {sizes:?}");
    }
}

#[test]
fn a_vacuum_without_dead_rows_changes_nothing() {
    let mut random = Random(1);
    let vectors = random.clustered(2500, 16, 8);
    let (store, _) = build(options(Metric::L2, 16), &vectors);
    let before = store.snapshot();
    let stats = bulk_delete(&store, &mut |_| false).unwrap();
    assert_eq!((stats.removed, stats.entries), (0, 2500));
    cleanup(&store).unwrap();
    for block in 0..store.blocks().unwrap() {
        assert!(
            *store.read(block).unwrap() == *before.read(block).unwrap(),
            "block {block} changed"
        );
    }
}

#[test]
fn a_failure_leaves_what_was_there() {
    let mut random = Random(2);
    for d in [16, 5000] {
        let vectors = random.clustered(if d > 1000 { 20 } else { 600 }, d, 8);
        let (original, _) = build(
            IndexOptions {
                lists: 3,
                ..options(Metric::L2, d)
            },
            &vectors,
        );
        for calls in 0..40 {
            let store = original.snapshot();
            let query = random.vector(d);
            store.fail_after(calls);
            let inserted = insert(&store, &[entry(100_000, &query)]);
            let mut seen = scan_all_or_retry(&store, &query);
            seen.retain(|&tid| tid == 100_000);
            if inserted.is_ok() {
                assert_eq!(seen.len(), 1);
            }
            store.fail_after(calls * 3);
            let deleted = bulk_delete(&store, &mut |tid| tid % 3 == 0);
            let left = scan_all_or_retry(&store, &query);
            assert!(
                vectors
                    .iter()
                    .zip(1..)
                    .all(|(_, tid)| tid % 3 == 0 || left.contains(&tid))
            );
            if deleted.is_ok() {
                assert!(left.iter().all(|tid| tid % 3 != 0));
            }
            bulk_delete(&store, &mut |tid| tid % 3 == 0).unwrap();
            assert!(scan_all_or_retry(&store, &query).iter().all(|tid| tid % 3 != 0));
        }
    }
}

fn scan_all_or_retry(store: &MemoryStore, query: &[f32]) -> Vec<Tid> {
    // A failure that was not used up by the call before strikes here once.
    store.fail_after(u32::MAX);
    scan_all(store, query).iter().map(|hit| hit.tid).collect()
}

#[test]
fn a_scan_survives_vacuum_and_reuse() {
    let mut random = Random(3);
    let vectors = random.clustered(3000, 24, 12);
    let (store, _) = build(options(Metric::L2, 24), &vectors);
    let mut scan = Scan::new(store.clone(), &vectors[5], ScanParams::default()).unwrap();
    let mut tids = vec![scan.next().unwrap().unwrap().tid];
    bulk_delete(&store, &mut |tid| tid % 2 == 0).unwrap();
    for i in 0..1500 {
        insert(&store, &[entry(10_000 + i, &vectors[i as usize * 2 % 3000])]).unwrap();
    }
    while let Some(hit) = scan.next().unwrap() {
        if hit.tid <= 3000 {
            let want = distance(Metric::L2, &vectors[5], &vectors[hit.tid as usize - 1]);
            assert!((hit.distance - want).abs() < 1e-4);
        }
        tids.push(hit.tid);
    }
    let all = tids.len();
    tids.sort_unstable();
    tids.dedup();
    assert_eq!(tids.len(), all, "an entry came out twice");
    assert_eq!(tids.iter().filter(|&&tid| tid <= 3000 && tid % 2 == 1).count(), 1500);
}
