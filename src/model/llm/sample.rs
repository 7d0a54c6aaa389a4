//! Choosing a token from logits: the largest, or drawn with temperature, top-k and top-p by a seed of its own.

use crate::random::Random;

/// How an answer's tokens are chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// 0 takes the largest logit; else logits are divided by it.
    pub temperature: f32,
    /// Only so many tokens are drawn from, 0 for all.
    pub top_k: usize,
    /// Only the most probable tokens that have this share together are drawn from, 1 for all.
    pub top_p: f32,
    pub seed: u64,
}

/// Draws the tokens of one answer.
pub struct Sampler {
    sampling: Sampling,
    random: Random,
}

impl Sampler {
    pub fn new(sampling: Sampling) -> Sampler {
        Sampler {
            sampling,
            random: Random::new(sampling.seed),
        }
    }

    /// The next token; of equal logits the lowest id. Logits of minus infinity are never chosen unless all are.
    pub fn choose(&mut self, logits: &[f32]) -> u32 {
        if self.sampling.temperature <= 0.0 {
            return largest(logits);
        }
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        let by_logit = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
        if (1..order.len()).contains(&self.sampling.top_k) {
            order.select_nth_unstable_by(self.sampling.top_k - 1, by_logit);
            order.truncate(self.sampling.top_k);
        }
        order.sort_unstable_by(by_logit);
        let Some(most) = order.first().map(|id| logits[*id as usize]) else {
            return 0;
        };
        let power = |id: &u32| f64::from((logits[*id as usize] - most) / self.sampling.temperature).exp();
        let powers: Vec<f64> = order.iter().map(power).collect();
        let all: f64 = powers.iter().sum();
        let mut kept = 0.0;
        let mut count = 0;
        for power in &powers {
            kept += power;
            count += 1;
            if kept >= f64::from(self.sampling.top_p) * all {
                break;
            }
        }
        let drawn = self.random.unit() * kept;
        let mut sum = 0.0;
        for (id, power) in order.iter().zip(&powers).take(count) {
            sum += power;
            if sum > drawn {
                return *id;
            }
        }
        order.get(count.saturating_sub(1)).copied().unwrap_or_default()
    }
}

/// The id of the largest logit, the lowest of equals.
pub fn largest(logits: &[f32]) -> u32 {
    let mut best = (0u32, f32::NEG_INFINITY);
    for (id, logit) in logits.iter().enumerate() {
        if *logit > best.1 {
            best = (id as u32, *logit);
        }
    }
    best.0
}

/// The logarithm of each token's probability.
pub fn log_softmax(logits: &[f32]) -> Vec<f32> {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - most).exp()).sum();
    let whole = f64::from(most) + sum.ln();
    logits.iter().map(|logit| (f64::from(*logit) - whole) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws(sampling: Sampling, logits: &[f32]) -> Vec<usize> {
        let mut sampler = Sampler::new(sampling);
        let mut counts = vec![0; logits.len()];
        (0..20_000).for_each(|_| counts[sampler.choose(logits) as usize] += 1);
        counts
    }

    #[test]
    fn draws_follow_the_softmax_and_the_limits() {
        // Probabilities 0.5, 0.25, 0.125, 0.125.
        let logits = [0.5f32, 0.25, 0.125, 0.125].map(f32::ln);
        let plain = Sampling {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            seed: 3,
        };
        let counts = draws(plain, &logits);
        for (count, share) in counts.iter().zip([0.5, 0.25, 0.125, 0.125]) {
            assert!((*count as f64 / 20_000.0 - share).abs() < 0.015, "{counts:?}");
        }
        assert_eq!(draws(plain, &logits), counts);
        assert_ne!(draws(Sampling { seed: 4, ..plain }, &logits), counts);
        // Of the first two, two thirds to one third.
        let two = draws(Sampling { top_k: 2, ..plain }, &logits);
        assert!(
            (two[0] as f64 / 20_000.0 - 2.0 / 3.0).abs() < 0.015 && two[2] + two[3] == 0,
            "{two:?}"
        );
        assert_eq!(draws(Sampling { top_p: 0.7, ..plain }, &logits), two);
        assert_eq!(draws(Sampling { top_p: 0.5, ..plain }, &logits)[0], 20_000);
        // At half the temperature probabilities are squared: 16 : 4 : 1 : 1.
        let cold = draws(
            Sampling {
                temperature: 0.5,
                ..plain
            },
            &logits,
        );
        assert!((cold[0] as f64 / 20_000.0 - 16.0 / 22.0).abs() < 0.015, "{cold:?}");
        assert_eq!(
            draws(
                Sampling {
                    temperature: 0.0,
                    ..plain
                },
                &logits
            )[0],
            20_000
        );
        assert_eq!(largest(&[1.0, 3.0, 3.0]), 1);
    }

    #[test]
    fn probabilities_add_up() {
        let found = log_softmax(&[1.0, 2.0, 3.0]);
        // e / (e + e^2 + e^3) = 0.09003057.
        assert!((found[0].exp() - 0.090_030_57).abs() < 1e-7);
        assert!((found.iter().map(|x| x.exp()).sum::<f32>() - 1.0).abs() < 1e-6);
    }
}
