//! Recall on real vectors with nothing set.

use super::support::*;
use crate::index::*;

#[test]
fn recall_on_glove() {
    let Some(folder) = data("ann_glove50_20k") else { return };
    let base = npy_f32(folder.join("base.npy"));
    let queries = npy_f32(folder.join("query.npy"));
    for metric in [Metric::L2, Metric::Cosine, Metric::InnerProduct] {
        let (store, stats) = build(options(metric, 50), &base);
        let truth = match metric {
            Metric::L2 => Some(npy(folder.join("gt_l2_top100.npy"))),
            Metric::Cosine => Some(npy(folder.join("gt_cos_top100.npy"))),
            Metric::InnerProduct => None,
        };
        let (mut sum, mut by_number, mut sum100, mut order) = (0.0, 0, 0.0, 0.0);
        for (i, query) in queries.iter().enumerate() {
            let hits = scan(&store, query, ScanParams::default(), 100);
            let exact = brute_force(metric, query, &base);
            sum += recall(&hits, &exact, 10);
            sum100 += recall(&hits, &exact, 100);
            order += disorder(&hits);
            if let Some(truth) = &truth {
                let numbers: Vec<u64> = truth[i][..10]
                    .iter()
                    .map(|&b| i32::from_le_bytes(b) as u64 + 1)
                    .collect();
                by_number += hits.iter().take(10).filter(|hit| numbers.contains(&hit.tid)).count();
            }
        }
        let n = queries.len() as f64;
        println!(
            "{metric:?}: lists {} probes {} calibrated {:.3} recall@10 {:.4} recall@100 {:.4} disorder {:.4}",
            stats.lists,
            stats.probes,
            stats.recall,
            sum / n,
            sum100 / n,
            order / n
        );
        assert!(sum / n >= 0.95, "{metric:?}: recall@10 {}", sum / n);
        if truth.is_some() {
            assert!(by_number as f64 / (10.0 * n) >= 0.95);
        }
    }
}

/// Queries that are not like the indexed vectors: halfway between two of them.
#[test]
fn recall_of_unlike_queries() {
    let Some(folder) = data("ann_glove50_20k") else { return };
    let base = npy_f32(folder.join("base.npy"));
    let mut random = Random(4);
    for metric in [Metric::L2, Metric::Cosine, Metric::InnerProduct] {
        let (store, _) = build(options(metric, 50), &base);
        let mut sum = 0.0;
        for _ in 0..100 {
            let (a, b) = (random.below(20_000) as usize, random.below(20_000) as usize);
            let query: Vec<f32> = base[a].iter().zip(&base[b]).map(|(a, b)| 0.5 * (a + b)).collect();
            let hits = scan(&store, &query, ScanParams::default(), 10);
            sum += recall(&hits, &brute_force(metric, &query, &base), 10);
        }
        println!("{metric:?}: recall@10 {:.4} of queries halfway", sum / 100.0);
        assert!(sum / 100.0 >= 0.95, "{metric:?}: {}", sum / 100.0);
    }
}
