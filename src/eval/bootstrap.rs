//! Percentile bootstrap over queries (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13).
//!
//! Queries are drawn with replacement as often as there are, the statistic is computed on the draw, and the interval
//! lies between the quantiles of many draws. Where two runs answered the same queries, a draw takes both values of a
//! query, so that the interval of their difference or ratio knows that they belong together.

use crate::random::Random;

/// How an interval is drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Draws {
    /// Number of draws.
    pub count: usize,
    /// Share of the draws that lies inside, 0.95 for a 95 % interval.
    pub level: f64,
    /// Seed of the draws.
    pub seed: u64,
}

impl Default for Draws {
    fn default() -> Draws {
        Draws {
            count: 2000,
            level: 0.95,
            seed: 0,
        }
    }
}

/// The ends of an interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    pub low: f64,
    pub high: f64,
}

/// The interval of a statistic of `queries` queries: it is given the places of the queries of a draw, and draws for
/// which it is not defined are left out. `None` without queries or without a defined draw.
pub fn interval(queries: usize, draws: Draws, statistic: impl Fn(&[usize]) -> Option<f64>) -> Option<Interval> {
    if queries == 0 {
        return None;
    }
    let mut random = Random::new(draws.seed);
    let mut places = vec![0; queries];
    let mut found = Vec::with_capacity(draws.count);
    for _ in 0..draws.count {
        places.iter_mut().for_each(|place| *place = random.below(queries));
        found.extend(statistic(&places).filter(|value| value.is_finite()));
    }
    found.sort_by(f64::total_cmp);
    let outside = (1.0 - draws.level) / 2.0;
    Some(Interval {
        low: quantile(&found, outside)?,
        high: quantile(&found, 1.0 - outside)?,
    })
}

/// The interval of the mean of `values`.
pub fn of_mean(values: &[f64], draws: Draws) -> Option<Interval> {
    interval(values.len(), draws, |places| Some(mean_at(values, places)))
}

/// The interval of `mean(other) - mean(base)`, paired by place.
pub fn of_difference(base: &[f64], other: &[f64], draws: Draws) -> Option<Interval> {
    let differences: Vec<f64> = base.iter().zip(other).map(|(base, other)| other - base).collect();
    of_mean(&differences, draws)
}

/// The interval of the relative gain `mean(other) / mean(base) - 1`, paired by place.
pub fn of_gain(base: &[f64], other: &[f64], draws: Draws) -> Option<Interval> {
    let queries = base.len().min(other.len());
    interval(queries, draws, |places| {
        let start = mean_at(base, places);
        (start > 0.0).then(|| mean_at(other, places) / start - 1.0)
    })
}

fn mean_at(values: &[f64], places: &[usize]) -> f64 {
    places.iter().filter_map(|&place| values.get(place)).sum::<f64>() / places.len() as f64
}

/// The quantile `share` of sorted values, linear between neighbours (Hyndman and Fan 1996, type 7).
pub fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let place = share.clamp(0.0, 1.0) * last as f64;
    let (below, above) = (
        *sorted.get(place.floor() as usize)?,
        *sorted.get(place.ceil() as usize)?,
    );
    Some(below + (above - below) * place.fract())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_by_hand() {
        // numpy.quantile([1, 2, 4, 8], q) for q = 0, 0.25, 0.5, 0.9, 1.
        let sorted = [1.0, 2.0, 4.0, 8.0];
        for (share, expected) in [(0.0, 1.0), (0.25, 1.75), (0.5, 3.0), (0.9, 6.8), (1.0, 8.0)] {
            let found = quantile(&sorted, share).expect("a quantile");
            assert!((found - expected).abs() < 1e-12, "{share}: {found}");
        }
        assert_eq!(quantile(&[], 0.5), None);
    }

    #[test]
    fn the_interval_of_a_mean_is_that_of_the_normal_distribution() {
        // 400 zeros and ones, half each: the standard error is 0.5 / sqrt(400) = 0.025, 95 % lie within 1.96 of it.
        let values: Vec<f64> = (0..400).map(|n| f64::from(n % 2)).collect();
        let found = of_mean(&values, Draws::default()).expect("an interval");
        assert!((found.low - 0.451).abs() < 0.006, "{found:?}");
        assert!((found.high - 0.549).abs() < 0.006, "{found:?}");
        let wide = of_mean(
            &values,
            Draws {
                level: 0.99,
                ..Draws::default()
            },
        )
        .expect("an interval");
        assert!(wide.low < found.low && wide.high > found.high);
    }

    #[test]
    fn the_same_seed_gives_the_same_interval() {
        let values: Vec<f64> = (0..50).map(|n| f64::from(n * n % 17)).collect();
        let draws = |seed| {
            of_mean(
                &values,
                Draws {
                    seed,
                    ..Draws::default()
                },
            )
        };
        assert_eq!(draws(5), draws(5));
        assert_ne!(draws(5), draws(6));
    }

    #[test]
    fn pairs_stay_together() {
        // The values spread widely, the difference of each pair is always 1, the gain always 10 %.
        let base: Vec<f64> = (0..40).map(|n| 10.0 + f64::from(n * 37 % 40)).collect();
        let more: Vec<f64> = base.iter().map(|value| value + 1.0).collect();
        let found = of_difference(&base, &more, Draws::default()).expect("an interval");
        assert!(
            (found.low - 1.0).abs() < 1e-9 && (found.high - 1.0).abs() < 1e-9,
            "{found:?}"
        );
        let more: Vec<f64> = base.iter().map(|value| value * 1.1).collect();
        let found = of_gain(&base, &more, Draws::default()).expect("an interval");
        assert!(
            (found.low - 0.1).abs() < 1e-9 && (found.high - 0.1).abs() < 1e-9,
            "{found:?}"
        );
        assert_eq!(of_gain(&[0.0], &[1.0], Draws::default()), None);
        assert_eq!(of_mean(&[], Draws::default()), None);
    }
}
