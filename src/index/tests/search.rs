//! Builds and scans against brute force.

use super::support::*;
use crate::index::*;
use crate::text::Span;
use std::collections::{HashMap, HashSet};

const METRICS: [Metric; 3] = [Metric::L2, Metric::InnerProduct, Metric::Cosine];

#[test]
fn a_full_scan_is_brute_force() {
    for metric in METRICS {
        for element in [Element::F32, Element::F16] {
            let mut random = Random(1);
            let mut vectors = random.clustered(3000, 48, 40);
            if element == Element::F16 {
                for x in vectors.iter_mut().flatten() {
                    *x = half::f16::from_f32(*x).to_f32();
                }
            }
            let (store, stats) = build(
                IndexOptions {
                    element,
                    ..options(metric, 48)
                },
                &vectors,
            );
            assert_eq!((stats.entries, stats.rows), (3000, 3000));
            assert!(stats.lists > 10);
            for _ in 0..5 {
                let query = random.vector(48);
                let hits = scan_all(&store, &query);
                let exact = brute_force(metric, &query, &vectors);
                assert_eq!(hits.len(), 3000);
                assert_eq!(hits.iter().map(|h| h.tid).collect::<HashSet<_>>().len(), 3000);
                for hit in &hits {
                    let want = distance(metric, &query, &vectors[hit.tid as usize - 1]);
                    assert!(
                        (hit.distance - want).abs() < 1e-4,
                        "{metric:?} {element:?} {} {want}",
                        hit.distance
                    );
                    assert_eq!(hit.hash, hit.tid ^ 0xABCD);
                }
                assert!(disorder(&hits) < 0.02, "{metric:?} {}", disorder(&hits));
                assert!(recall(&hits, &exact, 10) >= 0.9, "{metric:?} {element:?}");
            }
        }
    }
}

#[test]
fn every_dimension_works() {
    for d in [1usize, 2, 3, 50, 384, 1000, 1536, 1800, 4096, 16000] {
        for element in [Element::F32, Element::F16] {
            let n = if d > 1000 { 40 } else { 300 };
            let mut random = Random(d as u64);
            let mut vectors: Vec<Vec<f32>> = (0..n).map(|_| random.vector(d)).collect();
            for x in vectors.iter_mut().flatten() {
                *x = half::f16::from_f32(*x).to_f32();
            }
            let settings = IndexOptions {
                element,
                lists: 3,
                ..options(Metric::L2, d)
            };
            let (store, _) = build(settings, &vectors[..n / 2]);
            for (i, vector) in vectors.iter().enumerate().skip(n / 2) {
                insert(&store, &[entry(i as Tid + 1, vector)]).unwrap();
            }
            let query = random.vector(d);
            let hits = scan_all(&store, &query);
            let exact = brute_force(Metric::L2, &query, &vectors);
            assert_eq!(hits.len(), n, "d={d}");
            assert!(recall(&hits, &exact, 10) >= 0.9, "d={d}");
            assert!(disorder(&hits) < 0.05, "d={d} {}", disorder(&hits));
            let removed = bulk_delete(&store, &mut |tid| tid % 2 == 0).unwrap();
            assert_eq!(removed.removed, n as u64 / 2, "d={d}");
            assert_eq!(scan_all(&store, &query).len(), n / 2, "d={d}");
        }
    }
}

#[test]
fn an_empty_index_takes_rows() {
    for metric in METRICS {
        let (store, stats) = build(options(metric, 20), &[]);
        assert_eq!((stats.entries, stats.lists, stats.probes), (0, 1, 1));
        assert!(scan_all(&store, &[1.0; 20]).is_empty());
        let mut random = Random(3);
        let vectors: Vec<Vec<f32>> = (0..700).map(|_| random.vector(20)).collect();
        for (i, vector) in vectors.iter().enumerate() {
            insert(&store, &[entry(i as Tid + 1, vector)]).unwrap();
        }
        let query = random.vector(20);
        let hits = scan_all(&store, &query);
        let exact = brute_force(metric, &query, &vectors);
        assert_eq!(hits.len(), 700);
        assert!(recall(&hits, &exact, 10) >= 0.9);
        assert_eq!(cleanup(&store).unwrap().entries, 700);
    }
}

#[test]
fn equal_vectors_all_come_out() {
    for metric in METRICS {
        let vectors = vec![vec![0.5f32; 24]; 5000];
        let (store, _) = build(options(metric, 24), &vectors);
        let hits = scan_all(&store, &[0.25; 24]);
        assert_eq!(hits.iter().map(|h| h.tid).collect::<HashSet<_>>().len(), 5000);
    }
}

#[test]
fn a_filter_gets_its_rows() {
    let mut random = Random(9);
    let vectors = random.clustered(6000, 32, 60);
    let (store, stats) = build(options(Metric::L2, 32), &vectors);
    assert!(stats.probes < stats.lists);
    // Only the farthest tenth matches, so the first lists hold next to none of it.
    let query = vectors[0].clone();
    let exact = brute_force(Metric::L2, &query, &vectors);
    let matches: HashSet<Tid> = exact[5400..].iter().map(|(tid, _)| *tid).collect();
    let mut scan = Scan::new(store, &query, ScanParams::default()).unwrap();
    let mut found = Vec::new();
    while found.len() < 600 {
        let hit = scan.next().unwrap().expect("ended before the filter had its rows");
        if matches.contains(&hit.tid) {
            found.push(hit);
        }
    }
    assert!(scan.next().is_ok());
}

#[test]
fn a_document_comes_out_once_at_its_best_chunk() {
    let mut random = Random(4);
    let chunks = random.clustered(6000, 32, 80);
    let store = MemoryStore::new();
    let settings = IndexOptions {
        documents: true,
        model: Some("print".into()),
        extra: vec![7; 9000],
        ..options(Metric::Cosine, 32)
    };
    let mut build = Build::new(
        store.clone(),
        settings.clone(),
        32 << 20,
        2,
        memory_spool(),
        Box::new(|_, _, _| {}),
    )
    .unwrap();
    for (i, vector) in chunks.iter().enumerate() {
        let (tid, ordinal) = (i as u64 / 4 + 1, i as u32 % 4);
        let span = Span {
            start: ordinal * 10,
            end: ordinal * 10 + 9,
        };
        build
            .add(Entry {
                tid,
                ordinal,
                span,
                hash: tid * 3,
                vector,
            })
            .unwrap();
    }
    let stats = build.finish().unwrap();
    assert_eq!((stats.entries, stats.rows), (6000, 1500));
    let meta = Meta::open(&store).unwrap();
    assert_eq!((&meta.options, meta.rows), (&settings, 1500));
    let mut right = 0;
    for _ in 0..10 {
        let query = random.vector(32);
        let mut best: HashMap<Tid, (f64, u32)> = HashMap::new();
        for (i, vector) in chunks.iter().enumerate() {
            let d = distance(Metric::Cosine, &query, vector);
            let slot = best.entry(i as u64 / 4 + 1).or_insert((f64::INFINITY, 0));
            if d < slot.0 {
                *slot = (d, i as u32 % 4);
            }
        }
        let hits = scan_all(&store, &query);
        assert_eq!(hits.len(), 1500);
        assert_eq!(hits.iter().map(|h| h.tid).collect::<HashSet<_>>().len(), 1500);
        let mut nearest: Vec<f64> = best.values().map(|b| b.0).collect();
        nearest.sort_by(f64::total_cmp);
        for (hit, want) in hits.iter().zip(&nearest).take(10) {
            right += usize::from((hit.distance - want).abs() < 1e-5);
            assert_eq!(hit.span.start, hit.ordinal * 10);
            assert_eq!(hit.hash, hit.tid * 3);
        }
    }
    assert!(right >= 95, "{right} of 100 best documents");
    assert_eq!(cleanup(&store).unwrap().rows, 1500);
}

#[test]
fn little_memory_loses_no_rows() {
    let mut random = Random(5);
    let vectors = random.clustered(8000, 32, 30);
    let query = random.vector(32);
    let exact = brute_force(Metric::L2, &query, &vectors);
    let cases = [
        (0, 0, 0),
        (0, 1000, 0),
        (0, 1000, 100_000),
        (0, 1000, 2 << 20),
        (1, 0, 0),
        (3, 0, 100_000),
    ];
    for (lists, probes, memory) in cases {
        let store = MemoryStore::new();
        let settings = IndexOptions {
            lists,
            ..options(Metric::L2, 32)
        };
        assert_eq!(build_with(&store, settings, &vectors, 1 << 20).unwrap().entries, 8000);
        let params = ScanParams {
            probes,
            memory_bytes: memory,
            ..ScanParams::default()
        };
        let hits = scan(&store, &query, params, usize::MAX);
        assert_eq!(hits.len(), 8000, "{lists} {probes} {memory}");
        assert_eq!(hits.iter().map(|h| h.tid).collect::<HashSet<_>>().len(), 8000);
        assert!(recall(&hits, &exact, 10) >= 0.9, "{lists} {probes} {memory}");
        // Rows that fit the memory are in order; with less, hits may have to go before they are proven.
        assert!(memory < 2 << 20 || disorder(&hits) < 0.01, "{}", disorder(&hits));
    }
}

#[test]
fn a_build_through_scratch_files_equals_one_in_memory() {
    let mut random = Random(6);
    let vectors = random.clustered(5000, 100, 30);
    for lists in [1, 7] {
        let settings = IndexOptions {
            lists,
            ..options(Metric::L2, 100)
        };
        let (large, small) = (MemoryStore::new(), MemoryStore::new());
        build_with(&large, settings.clone(), &vectors, 64 << 20).unwrap();
        build_with(&small, settings, &vectors, 1 << 20).unwrap();
        let query = random.vector(100);
        let (a, b) = (scan_all(&large, &query), scan_all(&small, &query));
        assert_eq!(b.len(), 5000);
        for (a, b) in a.iter().zip(&b).take(10) {
            assert_eq!((a.tid, a.distance), (b.tid, b.distance));
        }
    }
}

#[test]
fn bad_input_is_refused() {
    let store = MemoryStore::new();
    let build = |settings: IndexOptions| {
        Build::new(
            MemoryStore::new(),
            settings,
            0,
            1,
            memory_spool(),
            Box::new(|_, _, _| {}),
        )
    };
    assert!(matches!(
        build(options(Metric::L2, 0)),
        Err(IndexError::Dimensions { .. })
    ));
    assert!(matches!(
        build(options(Metric::L2, 16_001)),
        Err(IndexError::Dimensions { .. })
    ));
    build_with(
        &store,
        options(Metric::Cosine, 4),
        &[vec![1.0, 0.0, 0.0, 0.0], vec![0.0; 4]],
        0,
    )
    .unwrap();
    assert_eq!(scan_all(&store, &[1.0, 1.0, 0.0, 0.0]).len(), 1);
    insert(&store, &[entry(9, &[0.0; 4])]).unwrap();
    assert_eq!(scan_all(&store, &[1.0, 1.0, 0.0, 0.0]).len(), 1);
    for bad in [f32::NAN, f32::INFINITY] {
        assert!(matches!(
            insert(&store, &[entry(9, &[0.0, bad, 0.0, 1.0])]),
            Err(IndexError::NotFinite)
        ));
        let params = ScanParams::default();
        assert!(matches!(
            Scan::new(store.clone(), &[bad, 0.0, 0.0, 0.0], params),
            Err(IndexError::NotFinite)
        ));
    }
    assert!(matches!(
        insert(&store, &[entry(9, &[0.0; 3])]),
        Err(IndexError::Dimensions { expected: 4, found: 3 })
    ));
    assert_eq!(scan_all(&store, &[0.0; 4]).len(), 1);
    let half = IndexOptions {
        element: Element::F16,
        ..options(Metric::L2, 2)
    };
    assert!(matches!(
        build_with(&MemoryStore::new(), half, &[vec![1e6, 0.0]], 0),
        Err(IndexError::NotFinite)
    ));
    let huge = vec![vec![3e38f32, -3e38], vec![1.0, 1.0]];
    let (store, _) = super::support::build(options(Metric::L2, 2), &huge);
    assert_eq!(scan_all(&store, &[0.0, 0.0]).len(), 2);
}

#[test]
fn a_cancel_ends_every_operation() {
    let mut random = Random(8);
    let vectors = random.clustered(3000, 32, 10);
    let mut cancelled = 0;
    for after in [0, 3, 10, 20, 40, 60] {
        let store = MemoryStore::new();
        store.cancel_after(after);
        let result = build_with(&store, options(Metric::L2, 32), &vectors, 1 << 20);
        cancelled += usize::from(matches!(result, Err(IndexError::Cancelled)));
    }
    assert_eq!(cancelled, 6);
    let (store, _) = build(options(Metric::L2, 32), &vectors);
    let mut scan = Scan::new(store.clone(), &vectors[0], ScanParams::default()).unwrap();
    store.cancel_after(0);
    assert!(matches!(scan.next(), Err(IndexError::Cancelled)));
    store.cancel_after(0);
    assert!(matches!(
        insert(&store, &[entry(1, &vectors[0])]),
        Err(IndexError::Cancelled)
    ));
    store.cancel_after(5);
    assert!(matches!(bulk_delete(&store, &mut |_| true), Err(IndexError::Cancelled)));
    store.cancel_after(5);
    assert!(matches!(cleanup(&store), Err(IndexError::Cancelled)));
    assert!(scan_all(&store, &vectors[0]).len() <= 3000);
}

#[test]
fn an_exact_scan_is_sorted_whatever_the_memory() {
    for metric in METRICS {
        let mut random = Random(77);
        let mut vectors = random.clustered(2500, 24, 30);
        vectors.extend_from_within(..500);
        let (store, stats) = build(options(metric, 24), &vectors);
        assert!(stats.lists > 10);
        for memory_bytes in [1, 100_000, 64 << 20] {
            let params = ScanParams {
                memory_bytes,
                exact: true,
                ..ScanParams::default()
            };
            let query = random.vector(24);
            let hits = scan(&store, &query, params, usize::MAX);
            assert_eq!(hits.len(), 3000);
            assert_eq!(hits.iter().map(|hit| hit.tid).collect::<HashSet<_>>().len(), 3000);
            assert!(
                hits.windows(2).all(|pair| pair[0].distance <= pair[1].distance),
                "{metric:?}"
            );
            let exact = brute_force(metric, &query, &vectors);
            assert!(recall(&hits, &exact, 100) > 0.999, "{metric:?}");
        }
    }
}
