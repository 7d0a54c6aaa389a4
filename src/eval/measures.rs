//! Retrieval measures over one ranked list: nDCG, average precision, reciprocal rank, recall.
//!
//! A list is given as the grade of each result, best result first; 0 is not relevant. The judged grades of the query
//! (all of them, found or not) give what a perfect list would have. A query without a relevant document has no
//! defined measure: `None`. Means over queries leave such queries out (trec_eval counts them as 0).

/// Normalised discounted cumulative gain at `k` with linear gain:
/// `sum grade_i / log2(i + 1)` over the first `k` ranks i = 1.., divided by the same sum of the ideal order
/// (Järvelin and Kekäläinen 2002, as trec_eval's `ndcg_cut` computes it).
pub fn ndcg(grades: &[f64], judged: &[f64], k: usize) -> Option<f64> {
    let gain = |grades: &[f64]| -> f64 {
        grades
            .iter()
            .take(k)
            .enumerate()
            .map(|(place, grade)| grade.max(0.0) / (place as f64 + 2.0).log2())
            .sum()
    };
    let mut ideal = judged.to_vec();
    ideal.sort_by(|a, b| b.total_cmp(a));
    let ideal = gain(&ideal);
    (ideal > 0.0).then(|| gain(grades) / ideal)
}

/// Average precision: the mean, over all relevant documents, of the precision at the rank of each one found.
pub fn average_precision(grades: &[f64], judged: &[f64]) -> Option<f64> {
    let relevant = relevant(judged)?;
    let mut found = 0.0;
    let mut sum = 0.0;
    for (place, grade) in grades.iter().enumerate() {
        if *grade > 0.0 {
            found += 1.0;
            sum += found / (place as f64 + 1.0);
        }
    }
    Some(sum / relevant)
}

/// One over the rank of the first relevant result among the first `k`; 0 where there is none.
pub fn reciprocal_rank(grades: &[f64], judged: &[f64], k: usize) -> Option<f64> {
    relevant(judged)?;
    let first = grades.iter().take(k).position(|grade| *grade > 0.0);
    Some(first.map_or(0.0, |place| 1.0 / (place as f64 + 1.0)))
}

/// Share of the relevant documents that are among the first `k` results.
pub fn recall(grades: &[f64], judged: &[f64], k: usize) -> Option<f64> {
    let relevant = relevant(judged)?;
    Some(grades.iter().take(k).filter(|grade| **grade > 0.0).count() as f64 / relevant)
}

/// The mean over the queries that have the measure; `None` where none has.
pub fn mean(measures: impl IntoIterator<Item = Option<f64>>) -> Option<f64> {
    let (mut sum, mut count) = (0.0, 0u64);
    for measure in measures.into_iter().flatten() {
        sum += measure;
        count += 1;
    }
    (count > 0).then(|| sum / count as f64)
}

/// Number of relevant documents, or `None` where there is none.
fn relevant(judged: &[f64]) -> Option<f64> {
    let count = judged.iter().filter(|grade| **grade > 0.0).count();
    (count > 0).then_some(count as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: Option<f64>, expected: f64) {
        let found = found.expect("a measure");
        assert!((found - expected).abs() < 1e-9, "{found} {expected}");
    }

    /// Ranks 1 to 5 hold grades 3, 0, 2, 0, 1; judged are 3, 2, 2, 1.
    const GRADES: [f64; 5] = [3.0, 0.0, 2.0, 0.0, 1.0];
    const JUDGED: [f64; 4] = [2.0, 3.0, 1.0, 2.0];

    #[test]
    fn measures_by_hand() {
        // DCG@3 = 3 + 0 + 2/2 = 4; ideal = 3 + 2/log2(3) + 2/2 = 4 + 1.2618595071429148.
        close(ndcg(&GRADES, &JUDGED, 3), 4.0 / 5.261_859_507_142_915);
        // DCG@5 adds 1/log2(6) = 0.3868528072345416; ideal adds 1/log2(5) = 0.43067655807339306.
        close(ndcg(&GRADES, &JUDGED, 5), 4.386_852_807_234_542 / 5.692_536_065_216_308);
        // Precision at ranks 1, 3 and 5: 1, 2/3, 3/5; four are relevant.
        close(average_precision(&GRADES, &JUDGED), (1.0 + 2.0 / 3.0 + 0.6) / 4.0);
        close(reciprocal_rank(&[0.0, 0.0, 1.0], &[1.0], 10), 1.0 / 3.0);
        close(reciprocal_rank(&[0.0, 0.0, 1.0], &[1.0], 2), 0.0);
        close(recall(&GRADES, &JUDGED, 3), 0.5);
        close(recall(&GRADES, &JUDGED, 100), 0.75);
    }

    #[test]
    fn borders() {
        close(ndcg(&[1.0, 1.0], &[1.0, 1.0], 10), 1.0);
        close(ndcg(&[], &[1.0], 10), 0.0);
        close(average_precision(&[], &[1.0]), 0.0);
        assert_eq!(ndcg(&GRADES, &[], 10), None);
        assert_eq!(recall(&GRADES, &[0.0], 10), None);
        assert_eq!(reciprocal_rank(&[], &[0.0], 10), None);
        close(mean([Some(1.0), None, Some(0.0)]), 0.5);
        assert_eq!(mean([None]), None);
    }
}
