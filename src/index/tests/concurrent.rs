//! Inserts, scans and a vacuum at the same time. The store asserts the locking rules and finds deadlocks.

use super::support::*;
use crate::index::*;
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};

#[test]
fn inserts_scans_and_vacuum_together() {
    for d in [12usize, 2100] {
        let mut random = Random(7);
        let n = if d > 1000 { 60 } else { 2500 };
        let vectors = random.clustered(n, d, 10);
        let (store, _) = build(
            IndexOptions {
                lists: 6,
                ..options(Metric::L2, d)
            },
            &vectors,
        );
        let each = if d > 1000 { 40 } else { 800 };
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let inserters: Vec<_> = (0..4u64)
                .map(|thread| {
                    let store = store.clone();
                    scope.spawn(move || {
                        let mut random = Random(100 + thread);
                        for i in 0..each {
                            insert(&store, &[entry(10_000 * (thread + 1) + i, &random.vector(d))]).unwrap();
                        }
                    })
                })
                .collect();
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    // Rows of the build go little by little; inserted ones stay.
                    let mut draw = Random(3);
                    bulk_delete(&store, &mut |tid| tid <= n as u64 && draw.below(5) == 0 && tid % 2 == 0).unwrap();
                    cleanup(&store).unwrap();
                }
            });
            let scanners: Vec<_> = (0..2)
                .map(|thread| {
                    let (store, done) = (&store, &done);
                    scope.spawn(move || {
                        let mut random = Random(200 + thread);
                        while !done.load(Ordering::Relaxed) {
                            let hits = scan_all(store, &random.vector(d));
                            let tids: HashSet<Tid> = hits.iter().map(|h| h.tid).collect();
                            assert_eq!(tids.len(), hits.len(), "an entry came out twice");
                            assert!((1..=n as u64).filter(|tid| tid % 2 == 1).all(|tid| tids.contains(&tid)));
                        }
                    })
                })
                .collect();
            let results: Vec<_> = inserters.into_iter().map(|t| t.join()).collect();
            done.store(true, Ordering::Relaxed);
            results
                .into_iter()
                .chain(scanners.into_iter().map(|t| t.join()))
                .for_each(|r| r.unwrap());
        });
        let tids: HashSet<Tid> = scan_all(&store, &vectors[0]).iter().map(|h| h.tid).collect();
        for thread in 1..=4u64 {
            assert!((0..each).all(|i| tids.contains(&(10_000 * thread + i))));
        }
    }
}
