//! When a training ends: which epoch is kept, by scores of the validation queries that chance moves.

use serde::{Deserialize, Serialize};

/// The mean; 0 of nothing.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// The standard error of the mean difference of paired values; 0 of fewer than two.
pub fn standard_error(base: &[f64], with: &[f64]) -> f64 {
    let differences: Vec<f64> = base.iter().zip(with).map(|(base, with)| with - base).collect();
    let (count, middle) = (differences.len() as f64, mean(&differences));
    if differences.len() < 2 {
        return 0.0;
    }
    let squares: f64 = differences.iter().map(|difference| (difference - middle).powi(2)).sum();
    (squares / (count - 1.0) / count).sqrt()
}

/// Which epoch of a training is kept: the last one whose score is within one standard error of the largest so far, and
/// above that of the start. Scores of some hundred queries tell neighbouring epochs apart by chance, so that the
/// largest one is mostly too early; a training that has learned too much falls by more than that.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct EarlyStopping {
    /// Before anything was trained.
    pub first: f64,
    /// The largest so far.
    pub most: f64,
}

impl EarlyStopping {
    pub fn new(first: f64) -> EarlyStopping {
        EarlyStopping { first, most: first }
    }

    /// Whether the epoch of this score is to be kept.
    pub fn keeps(&mut self, score: f64, standard_error: f64) -> bool {
        self.most = self.most.max(score);
        score > self.first && score >= self.most - standard_error
    }
}

/// nDCG@10 of one relevant passage at each rank from 0.
pub fn gains(ranks: &[u32]) -> Vec<f64> {
    let gain = |rank: &u32| match rank {
        0..10 => 1.0 / f64::from(rank + 2).log2(),
        _ => 0.0,
    };
    ranks.iter().map(gain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_epoch_within_an_error_of_the_best_is_kept() {
        // Differences 0.1, 0.3: mean 0.2, variance 0.02, over two 0.01.
        assert!((standard_error(&[1.0, 1.0], &[1.1, 1.3]) - 0.1).abs() < 1e-12);
        assert_eq!(standard_error(&[1.0], &[2.0]), 0.0);
        let mut stopping = EarlyStopping::new(0.5);
        let scores = [0.49, 0.55, 0.60, 0.585, 0.57, 0.59];
        let kept: Vec<bool> = scores.into_iter().map(|score| stopping.keeps(score, 0.02)).collect();
        assert_eq!(kept, [false, true, true, true, false, true]);
        assert_eq!(stopping.most, 0.60);
        assert!(
            !EarlyStopping::new(0.5).keeps(0.5, 1.0),
            "what changes nothing is not kept"
        );
    }
}
