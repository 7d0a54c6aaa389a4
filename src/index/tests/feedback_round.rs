//! The second round against brute force.

use super::support::*;
use crate::index::*;
use crate::text::Span;
use std::collections::{HashMap, HashSet};

const METRICS: [Metric; 3] = [Metric::L2, Metric::InnerProduct, Metric::Cosine];

fn rest(mut scan: Scan<MemoryStore>) -> Vec<Hit> {
    let mut hits = Vec::new();
    while let Some(hit) = scan.next().unwrap() {
        hits.push(hit);
    }
    hits
}

/// Gives out the next `keep` rows.
fn give(scan: &mut Scan<MemoryStore>, keep: usize) -> Vec<RankedRow> {
    (0..keep).map(|_| scan.lead().unwrap().unwrap()).collect()
}

/// What was given out, and all rows behind it.
fn behind(front: &[RankedRow], scan: Scan<MemoryStore>) -> Vec<Hit> {
    let mut hits: Vec<Hit> = front.iter().map(|lead| lead.hit).collect();
    hits.extend(rest(scan));
    hits
}

fn tids(hits: &[Hit]) -> Vec<Tid> {
    hits.iter().map(|hit| hit.tid).collect()
}

fn each_once(hits: &[Hit], rows: usize) {
    let distinct: HashSet<Tid> = hits.iter().map(|hit| hit.tid).collect();
    assert_eq!((hits.len(), distinct.len()), (rows, rows));
}

/// `q + 0.3 mean(the first two) - 0.3 mean(the others)`.
fn moved(scan: &mut Scan<MemoryStore>, query: &[f32], leads: &[RankedRow]) -> Vec<f32> {
    let vectors = scan.vectors(leads).unwrap();
    let query = scan.mixed(query);
    let (near, far) = vectors.split_at(2);
    let mean = |part: &[Vec<f32>], i: usize| part.iter().map(|v| v[i]).sum::<f32>() / part.len() as f32;
    (0..query.len())
        .map(|i| query[i] + 0.3 * mean(near, i) - 0.3 * mean(far, i))
        .collect()
}

#[test]
fn looking_gives_nothing_out() {
    for metric in METRICS {
        let mut random = Random(21);
        let vectors = random.clustered(3000, 48, 40);
        let (store, _) = build(options(metric, 48), &vectors);
        for (certain, total) in [(0, 0), (5, 5), (3, 42), (42, 42), (0, 20), (10, 5000), (4000, 4000)] {
            let query = random.vector(48);
            let plain = scan_all(&store, &query);
            let mut scan = Scan::new(store.clone(), &query, ScanParams::default()).unwrap();
            let leads = scan.leading(certain, total).unwrap();
            assert_eq!(leads.len(), total.min(3000));
            let distinct: HashSet<Tid> = leads.iter().map(|lead| lead.hit.tid).collect();
            assert_eq!(distinct.len(), leads.len());
            for (lead, hit) in leads.iter().zip(&plain).take(certain) {
                assert_eq!(lead.hit, *hit, "{metric:?} {certain} {total}");
            }
            // The uncertain ones are near, though not all the nearest.
            let near: HashSet<Tid> = plain.iter().take(leads.len()).map(|hit| hit.tid).collect();
            let right = leads.iter().filter(|lead| near.contains(&lead.hit.tid)).count();
            assert!(2 * right >= leads.len(), "{right} of {}", leads.len());
            let hits = rest(scan);
            assert_eq!(tids(&hits)[..certain.min(3000)], tids(&plain)[..certain.min(3000)]);
            each_once(&hits, 3000);
        }
    }
}

#[test]
fn the_second_round_is_brute_force_by_the_moved_query_behind_what_is_kept() {
    for metric in METRICS {
        let mut random = Random(22);
        let vectors = random.clustered(4000, 32, 40);
        let (store, _) = build(options(metric, 32), &vectors);
        let (mut found, mut asked) = (0.0, 0.0);
        for keep in [0usize, 1, 3, 10, 10] {
            let query = random.clustered(1, 32, 40).remove(0);
            let plain = scan_all(&store, &query);
            let mut scan = Scan::new(store.clone(), &query, ScanParams::default()).unwrap();
            let leads = scan.leading(keep.max(2), 42).unwrap();
            let target = moved(&mut scan, &query, &leads);
            let front = give(&mut scan, keep);
            scan.follow(&query, &target, &front).unwrap();
            let hits = behind(&front, scan);
            each_once(&hits, 4000);
            assert_eq!(hits[..keep], plain[..keep], "{metric:?}: what is kept stays in front");
            let kept: HashSet<Tid> = tids(&hits[..keep]).into_iter().collect();
            let mut exact = brute_force(metric, &target, &vectors);
            exact.retain(|(tid, _)| !kept.contains(tid));
            // Every row behind is raised by as much as the first.
            let want = |hit: &Hit| distance(metric, &target, &vectors[hit.tid as usize - 1]);
            let last = front
                .iter()
                .map(|lead| lead.hit.distance)
                .fold(f64::NEG_INFINITY, f64::max);
            let raise = (last - want(&hits[keep])).max(0.0);
            let behind: Vec<Hit> = hits[keep..]
                .iter()
                .map(|hit| Hit {
                    distance: want(hit),
                    ..*hit
                })
                .collect();
            found += recall(&behind, &exact, 10);
            asked += 1.0;
            for hit in &hits[keep..] {
                let want = want(hit) + raise;
                assert!(
                    (hit.distance - want).abs() < 1e-4 * want.abs().max(1.0),
                    "{} {want}",
                    hit.distance
                );
                assert!(hit.distance > last, "{metric:?} {hit:?} {last}");
            }
            if let Some(step) = hits[..=keep]
                .windows(2)
                .find(|pair| pair[0].distance >= pair[1].distance)
            {
                panic!("{metric:?} {step:?}");
            }
            assert!(disorder(&hits) < 0.02, "{metric:?} {}", disorder(&hits));
        }
        assert!(found / asked >= 0.9, "{metric:?}: recall {}", found / asked);
    }
}

/// A row that the first round misses, because it lies where its list says nothing of it, is not pushed behind the rows
/// in front: it is reported where a search that found it in time would have it.
#[test]
fn a_row_found_late_is_reported_at_its_distance_to_the_first_query() {
    let mut random = Random(26);
    let vectors = random.clustered(4000, 32, 40);
    let (store, _) = build(options(Metric::L2, 32), &vectors);
    let query = random.clustered(1, 32, 40).remove(0);
    let plain = scan_all(&store, &query);
    let mut scan = Scan::new(store.clone(), &query, ScanParams::default()).unwrap();
    let leads = scan.leading(10, 42).unwrap();
    let target = moved(&mut scan, &query, &leads);
    // As if the second and third row had been missed.
    let front: Vec<RankedRow> = give(&mut scan, 10)
        .into_iter()
        .enumerate()
        .filter(|(at, _)| ![1, 2].contains(at))
        .map(|(_, lead)| lead)
        .collect();
    scan.follow(&query, &target, &front).unwrap();
    let mut hits = behind(&front, scan);
    each_once(&hits, 4000);
    assert!(hits[8..].iter().any(|hit| *hit == plain[1]) && hits[8..].iter().any(|hit| *hit == plain[2]));
    hits.sort_by(|a, b| a.distance.total_cmp(&b.distance));
    assert_eq!(
        hits[..10],
        plain[..10],
        "sorted, the front is that of a search that missed nothing"
    );
}

#[test]
fn ranking_anew_is_brute_force_over_the_rows_looked_at() {
    for metric in METRICS {
        let mut random = Random(23);
        let vectors = random.clustered(2000, 32, 20);
        let (store, _) = build(options(metric, 32), &vectors);
        let query = random.vector(32);
        let plain = scan_all(&store, &query);
        let mut scan = Scan::new(store.clone(), &query, ScanParams::default()).unwrap();
        let leads = scan.leading(100, 100).unwrap();
        let target = moved(&mut scan, &query, &leads);
        let front = give(&mut scan, 5);
        scan.reorder(&target, &front, &leads[5..], &[]).unwrap();
        let hits = behind(&front, scan);
        each_once(&hits, 2000);
        assert_eq!(hits[..5], plain[..5]);
        let mut expected: Vec<(Tid, f64)> = plain[5..100]
            .iter()
            .map(|hit| (hit.tid, distance(metric, &target, &vectors[hit.tid as usize - 1])))
            .collect();
        expected.sort_by(|a, b| a.1.total_cmp(&b.1));
        let raise = (hits[4].distance - expected[0].1).max(0.0);
        for (hit, (_, want)) in hits[5..100].iter().zip(&expected) {
            let want = want + raise;
            assert!((hit.distance - want).abs() < 1e-4 * want.abs().max(1.0));
        }
        let (a, b): (HashSet<Tid>, HashSet<Tid>) = (
            tids(&hits[..100]).into_iter().collect(),
            tids(&plain[..100]).into_iter().collect(),
        );
        assert_eq!(a, b, "the same hundred rows");
        assert!(hits[..120].windows(2).all(|pair| pair[0].distance <= pair[1].distance));
    }
}

#[test]
fn a_document_comes_out_once_in_both_rounds() {
    let mut random = Random(24);
    let chunks = random.clustered(6000, 32, 80);
    let store = MemoryStore::new();
    let settings = IndexOptions {
        documents: true,
        ..options(Metric::Cosine, 32)
    };
    let mut build = Build::new(
        store.clone(),
        settings,
        32 << 20,
        2,
        memory_spool(),
        Box::new(|_, _, _| {}),
    )
    .unwrap();
    for (i, vector) in chunks.iter().enumerate() {
        let span = Span { start: 0, end: 1 };
        build
            .add(Entry {
                tid: i as u64 / 4 + 1,
                ordinal: i as u32 % 4,
                span,
                hash: 0,
                vector,
            })
            .unwrap();
    }
    build.finish().unwrap();
    for keep in [0, 3, 10] {
        let query = random.vector(32);
        let mut scan = Scan::new(store.clone(), &query, ScanParams::default()).unwrap();
        let leads = scan.leading(10, 42).unwrap();
        assert_eq!(leads.iter().map(|lead| lead.hit.tid).collect::<HashSet<_>>().len(), 42);
        let target = moved(&mut scan, &query, &leads);
        let front = give(&mut scan, keep);
        scan.follow(&query, &target, &front).unwrap();
        let hits = behind(&front, scan);
        each_once(&hits, 1500);
        let mut best: HashMap<Tid, f64> = HashMap::new();
        for (i, vector) in chunks.iter().enumerate() {
            let slot = best.entry(i as u64 / 4 + 1).or_insert(f64::INFINITY);
            *slot = slot.min(distance(Metric::Cosine, &target, vector));
        }
        let last = front
            .iter()
            .map(|lead| lead.hit.distance)
            .fold(f64::NEG_INFINITY, f64::max);
        let raise = (last - best[&hits[keep].tid]).max(0.0);
        let right = hits[keep..keep + 100]
            .iter()
            .filter(|hit| (hit.distance - best[&hit.tid] - raise).abs() < 1e-5)
            .count();
        assert!(right >= 95, "{right} of 100 documents at their best chunk");
    }
}

#[test]
fn several_rounds_and_little_memory_lose_no_rows() {
    let mut random = Random(25);
    let vectors = random.clustered(6000, 32, 30);
    let (store, _) = build(options(Metric::L2, 32), &vectors);
    for memory in [0, 100_000, 4 << 20] {
        let params = ScanParams {
            probes: 0,
            memory_bytes: memory,
            ..ScanParams::default()
        };
        let query = random.vector(32);
        let mut scan = Scan::new(store.clone(), &query, params).unwrap();
        let first = scan.leading(10, 42).unwrap();
        let once = moved(&mut scan, &query, &first);
        let front = give(&mut scan, 10);
        scan.again(&once).unwrap();
        let again = scan.leading(2, 42).unwrap();
        let twice = moved(&mut scan, &once, &again);
        scan.follow(&query, &twice, &front).unwrap();
        each_once(&behind(&front, scan), 6000);
    }
    let mut scan = Scan::new(store, &[0.0; 32], ScanParams::default()).unwrap();
    assert!(
        scan.follow(&[0.0; 32], &[0.0; 31], &[]).is_err(),
        "a moved query of another length is an error"
    );
}
