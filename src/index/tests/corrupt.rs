//! Damaged pages: an error or a wrong answer, never a panic, never no end.

use super::support::*;
use crate::index::store::{CONTENT_START, PAGE_SIZE, PageStore};
use crate::index::*;

fn damage(store: &MemoryStore, random: &mut Random, flips: u64) {
    let blocks = u64::from(store.blocks().unwrap());
    for _ in 0..flips {
        let block = random.below(blocks) as u32;
        let header = random.below(2) == 0;
        let span = if header { 72 } else { PAGE_SIZE - CONTENT_START } as u64;
        let at = CONTENT_START + random.below(span) as usize;
        let value = random.below(256) as u8;
        store.corrupt(block, |page| page[at] = value);
    }
}

fn run_everything(store: &MemoryStore, d: usize, random: &mut Random) -> usize {
    let mut errors = 0;
    let query = random.vector(d);
    match Scan::new(store.clone(), &query, ScanParams::default()) {
        Ok(mut scan) => {
            let mut hits = 0;
            loop {
                match scan.next() {
                    Ok(Some(_)) => hits += 1,
                    Ok(None) => break,
                    Err(_) => {
                        errors += 1;
                        break;
                    }
                }
                assert!(hits < 100_000, "a scan without end");
            }
        }
        Err(_) => errors += 1,
    }
    for tid in 0..4 {
        errors += usize::from(insert(store, &[entry(50_000 + tid, &random.vector(d))]).is_err());
    }
    errors += usize::from(bulk_delete(store, &mut |tid| tid % 3 == 0).is_err());
    errors += usize::from(cleanup(store).is_err());
    errors += usize::from(Meta::open(store).is_err());
    errors
}

#[test]
fn random_damage() {
    let mut errors = 0;
    for (d, n, lists) in [(8usize, 900, 3), (60, 400, 9), (2200, 30, 2), (9000, 10, 2)] {
        let mut random = Random(d as u64);
        let vectors = random.clustered(n, d, 5);
        let (original, _) = build(
            IndexOptions {
                lists,
                ..options(Metric::L2, d)
            },
            &vectors,
        );
        bulk_delete(&original, &mut |tid| tid % 7 == 0).unwrap();
        for round in 0..if d > 1000 { 60 } else { 150 } {
            let store = original.snapshot();
            damage(&store, &mut random, 1 + round % 40);
            errors += run_everything(&store, d, &mut random);
        }
    }
    assert!(errors > 100, "damage went unnoticed: {errors}");
}

#[test]
fn damage_is_named() {
    let vectors = Random(1).clustered(3000, 16, 5);
    let (store, _) = build(options(Metric::L2, 16), &vectors);
    let all = store.blocks().unwrap();
    let other = store.snapshot();
    other.corrupt(0, |page| page[40] ^= 1);
    assert!(matches!(
        Meta::open(&other),
        Err(IndexError::Corrupted { block: 0, .. })
    ));
    let other = store.snapshot();
    other.corrupt(0, |page| page[32] = 9);
    assert!(matches!(
        Meta::open(&other),
        Err(IndexError::Format { found: 9, supported: 2 })
    ));
    assert!(matches!(
        Meta::open(&MemoryStore::new()),
        Err(IndexError::Corrupted { block: 0, .. })
    ));
    // A chain that runs in a circle.
    let other = store.snapshot();
    for block in 1..all {
        other.corrupt(block, |page| {
            if page[24] == 4 {
                page[36..40].copy_from_slice(&block.to_le_bytes());
            }
        });
    }
    let mut scan = Scan::new(
        other.clone(),
        &vectors[0],
        ScanParams {
            probes: 9999,
            ..ScanParams::default()
        },
    )
    .unwrap();
    let mut result = scan.next();
    for _ in 0..10_000 {
        if !matches!(result, Ok(Some(_))) {
            break;
        }
        result = scan.next();
    }
    assert!(matches!(result, Err(IndexError::Corrupted { .. })));
    assert!(bulk_delete(&other, &mut |_| false).is_err());
}
