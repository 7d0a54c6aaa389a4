//! Scans and builds where the system gives no more memory: an error, and what was there before goes on.

use super::support::*;
use crate::compute::memory::scarce::at_most;
use crate::index::*;

/// No allocation of a scan over few rows is as large.
const MOST: usize = 256 << 10;

fn full(error: &IndexError) -> bool {
    matches!(error, IndexError::OutOfMemory { .. })
}

/// Reads a scan to its end, or to its first error: the rows, and whether memory was short.
fn drain(store: &MemoryStore, query: &[f32], params: ScanParams) -> (usize, bool) {
    let mut scan = Scan::new(store.clone(), query, params).unwrap();
    let mut rows = 0;
    loop {
        match scan.next() {
            Ok(Some(_)) => rows += 1,
            Ok(None) => return (rows, false),
            Err(error) => {
                assert!(full(&error), "{error}");
                return (rows, true);
            }
        }
    }
}

#[test]
fn a_scan_whose_rows_find_no_memory_is_an_error() {
    let mut random = Random(3);
    let vectors = random.clustered(40_000, 8, 40);
    for documents in [false, true] {
        let (store, _) = build(
            IndexOptions {
                documents,
                ..options(Metric::L2, 8)
            },
            &vectors,
        );
        let query = random.vector(8);
        for exact in [false, true] {
            // Candidates and waiting hits fit either limit alone; the set of rows that came out grows beyond the lower one.
            for (memory_bytes, fits) in [(64 << 10, !documents), (64 << 20, false)] {
                let params = ScanParams {
                    probes: 0,
                    memory_bytes,
                    exact,
                    recall: 1.0,
                };
                let (rows, short) = at_most(MOST, || drain(&store, &query, params));
                assert_eq!(
                    short, !fits,
                    "documents {documents}, exact {exact}, {memory_bytes}: {rows} rows"
                );
                let params = ScanParams {
                    probes: 0,
                    memory_bytes,
                    exact,
                    recall: 1.0,
                };
                assert_eq!(drain(&store, &query, params), (40_000, false));
            }
        }
    }
}

#[test]
fn a_build_that_finds_no_memory_is_an_error() {
    let mut random = Random(4);
    let vectors = random.clustered(6_000, 64, 40);
    let mut failed = 0;
    for shift in 15..24 {
        let store = MemoryStore::new();
        // On one thread, as the limit is this thread's.
        let built = at_most(1 << shift, || {
            let mut build = Build::new(
                store.clone(),
                options(Metric::L2, 64),
                64 << 20,
                1,
                memory_spool(),
                Box::new(|_, _, _| {}),
            )?;
            for (i, vector) in vectors.iter().enumerate() {
                build.add(entry(i as Tid + 1, vector))?;
            }
            build.finish()
        });
        match built {
            Ok(_) => assert_eq!(scan_all(&store, &vectors[0]).len(), 6_000),
            Err(error) => {
                assert!(full(&error), "{error}");
                failed += 1;
            }
        }
    }
    assert!((4..9).contains(&failed), "{failed} failed");
}
