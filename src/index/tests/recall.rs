//! Scans that aim at a recall: what they find, and that every row still comes out once.

use super::support::*;
use crate::index::*;
use std::collections::HashSet;

fn aiming(recall: f32) -> ScanParams {
    ScanParams {
        recall,
        ..ScanParams::default()
    }
}

/// Mean recall@10 over queries.
fn measured(store: &MemoryStore, metric: Metric, base: &[Vec<f32>], queries: &[Vec<f32>], aim: f32) -> f64 {
    let found = queries.iter().map(|query| {
        let hits = scan(store, query, aiming(aim), 10);
        assert_eq!(disorder(&hits), 0.0, "the first ten come in their order");
        recall(&hits, &brute_force(metric, query, base), 10)
    });
    found.sum::<f64>() / queries.len() as f64
}

#[test]
fn a_recall_is_reached_on_real_queries() {
    let Some(folder) = data("ann_glove50_20k") else { return };
    let base = npy_f32(folder.join("base.npy"));
    let queries = npy_f32(folder.join("query.npy"));
    for metric in [Metric::L2, Metric::Cosine, Metric::InnerProduct] {
        let (store, _) = build(options(metric, 50), &base);
        let curve = Meta::open(&store).unwrap().curve;
        let mut before = 0;
        for (aim, effort) in [0.8, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999].into_iter().zip(curve) {
            let reached = measured(&store, metric, &base, &queries, aim);
            println!("{metric:?}: aim {aim} reached {reached:.4} with {effort:?}");
            // These queries are not among the indexed vectors.
            assert!(
                reached >= f64::from(aim) - 0.02,
                "{metric:?}: {reached} for {aim} with {effort:?}"
            );
            assert!(effort.probes >= before, "more recall takes no fewer lists");
            before = effort.probes.saturating_sub(4);
        }
    }
}

#[test]
fn every_entry_comes_out_once_whatever_recall_is_aimed_at() {
    let mut random = Random(11);
    let vectors = random.clustered(12_000, 24, 60);
    for metric in [Metric::L2, Metric::InnerProduct, Metric::Cosine] {
        let (store, _) = build(options(metric, 24), &vectors);
        for (recall, memory_bytes) in [(0.8, 4 << 20), (0.95, 1 << 16), (0.999, 1), (0.9, 1 << 14)] {
            let params = ScanParams {
                memory_bytes,
                ..aiming(recall)
            };
            let hits = scan(&store, &random.vector(24), params, usize::MAX);
            let tids: HashSet<Tid> = hits.iter().map(|hit| hit.tid).collect();
            assert_eq!(tids.len(), vectors.len(), "{metric:?} {recall} {memory_bytes}");
            assert_eq!(hits.len(), vectors.len(), "{metric:?} {recall} {memory_bytes}");
        }
    }
}

#[test]
fn equal_vectors_come_out_once() {
    let mut random = Random(5);
    let one = random.vector(16);
    let vectors: Vec<Vec<f32>> = (0..9_000)
        .map(|i| if i % 3 == 0 { random.vector(16) } else { one.clone() })
        .collect();
    let (store, _) = build(options(Metric::L2, 16), &vectors);
    let hits = scan(&store, &one, aiming(0.95), usize::MAX);
    let tids: HashSet<Tid> = hits.iter().map(|hit| hit.tid).collect();
    assert_eq!((tids.len(), hits.len()), (vectors.len(), vectors.len()));
    assert!(hits[..10].iter().all(|hit| hit.distance < 1e-3));
}

#[test]
fn documents_come_out_once_at_their_best_passage() {
    let mut random = Random(21);
    let vectors = random.clustered(9_000, 32, 40);
    let store = MemoryStore::new();
    let options = IndexOptions {
        documents: true,
        ..options(Metric::Cosine, 32)
    };
    let quiet = Box::new(|_, _, _| {});
    let mut build = Build::new(store.clone(), options, 64 << 20, 2, memory_spool(), quiet).unwrap();
    for (i, vector) in vectors.iter().enumerate() {
        let chunk = Entry {
            ordinal: (i % 3) as u32,
            ..entry(i as Tid / 3 + 1, vector)
        };
        build.add(chunk).unwrap();
    }
    build.finish().unwrap();
    let (mut best, mut all) = (0, 0);
    for _ in 0..20 {
        let query = random.vector(32);
        let hits = scan(&store, &query, aiming(0.95), 10);
        let tids: HashSet<Tid> = hits.iter().map(|hit| hit.tid).collect();
        assert_eq!(tids.len(), hits.len());
        for hit in hits {
            let chunks = &vectors[(hit.tid as usize - 1) * 3..hit.tid as usize * 3];
            let nearest = chunks.iter().map(|chunk| distance(Metric::Cosine, &query, chunk));
            best += usize::from((nearest.fold(f64::INFINITY, f64::min) - hit.distance).abs() < 1e-5);
            all += 1;
        }
    }
    assert!(best * 100 >= all * 95, "{best} of {all} at their best passage");
}

#[test]
fn more_than_was_measured_is_proven() {
    let mut random = Random(3);
    let vectors = random.clustered(5_000, 20, 30);
    let (store, _) = build(options(Metric::L2, 20), &vectors);
    let meta = Meta::open(&store).unwrap();
    assert!(
        meta.curve
            .iter()
            .all(|effort| effort.probes > 0 && effort.probes <= meta.lists)
    );
    let query = random.vector(20);
    let proven = scan(&store, &query, ScanParams::default(), 50);
    assert_eq!(scan(&store, &query, aiming(0.9995), 50), proven);
    // What says nothing of recalls is searched as before: an index of one list.
    let (small, _) = build(options(Metric::L2, 20), &vectors[..500]);
    assert!(
        Meta::open(&small)
            .unwrap()
            .curve
            .iter()
            .all(|effort| effort.probes == 0)
    );
    assert_eq!(
        scan(&small, &query, aiming(0.8), 50),
        scan(&small, &query, ScanParams::default(), 50)
    );
}
