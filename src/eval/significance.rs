//! Whether two runs over the same queries differ: randomisation test and t-test, both two-sided.
//!
//! Smucker, Allan and Carterette, A Comparison of Statistical Significance Tests for Information Retrieval
//! Evaluation, CIKM 2007, recommend the randomisation test; the t-test is there because its p-value is the one that
//! others report.

use crate::random::Random;
use statrs::function::beta::checked_beta_reg;

/// Up to so many queries that differ, every assignment of signs is counted instead of drawn.
const EXACT: usize = 14;

/// The p-value of the paired randomisation test: under the hypothesis that the two runs are the same, the sign of
/// each query's difference is a coin toss; p is the share of all tosses whose summed difference is at least as large
/// as the one that was seen. `draws` tosses are drawn, and p is (hits + 1) / (draws + 1) (Davison and Hinkley 1997,
/// section 4.2), unless so few queries differ that all tosses can be counted. 1 where nothing differs.
pub fn randomisation(base: &[f64], other: &[f64], draws: usize, seed: u64) -> f64 {
    let mut differences: Vec<f64> = base.iter().zip(other).map(|(base, other)| other - base).collect();
    differences.retain(|difference| *difference != 0.0);
    if differences.is_empty() {
        return 1.0;
    }
    let seen = differences.iter().sum::<f64>().abs();
    // Sums of the same numbers in another order differ in their last bits.
    let least = seen - 1e-9 * differences.iter().map(|difference| difference.abs()).sum::<f64>();
    let hit = |sum: f64| usize::from(sum.abs() >= least);
    if differences.len() <= EXACT {
        let all = 1usize << differences.len();
        let hits: usize = (0..all)
            .map(|signs| hit(tossed(&differences, |place| signs >> place & 1 == 1)))
            .sum();
        return hits as f64 / all as f64;
    }
    let mut random = Random::new(seed);
    let mut signs = vec![0u64; differences.len().div_ceil(64)];
    let mut hits = 0;
    for _ in 0..draws {
        signs.iter_mut().for_each(|word| *word = random.bits());
        hits += hit(tossed(&differences, |place| {
            signs.get(place / 64).is_some_and(|word| word >> (place % 64) & 1 == 1)
        }));
    }
    (hits + 1) as f64 / (draws + 1) as f64
}

fn tossed(differences: &[f64], negative: impl Fn(usize) -> bool) -> f64 {
    let signed = differences.iter().enumerate();
    signed
        .map(|(place, value)| if negative(place) { -value } else { *value })
        .sum()
}

/// The p-value of the paired t-test (Student 1908): t = mean(d) / (s / sqrt(n)) of the differences d with n - 1
/// degrees of freedom. `None` below two queries; 1 where nothing differs, 0 where all differ by the same amount.
pub fn t_test(base: &[f64], other: &[f64]) -> Option<f64> {
    let differences: Vec<f64> = base.iter().zip(other).map(|(base, other)| other - base).collect();
    let count = differences.len() as f64;
    if count < 2.0 {
        return None;
    }
    let mean = differences.iter().sum::<f64>() / count;
    let variance = differences.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (count - 1.0);
    if variance == 0.0 {
        return Some(if mean == 0.0 { 1.0 } else { 0.0 });
    }
    let freedom = count - 1.0;
    let t = mean / (variance / count).sqrt();
    // With v degrees of freedom the two-sided p is I_{v/(v+t^2)}(v/2, 1/2), the regularised incomplete beta function.
    let p = checked_beta_reg(freedom / 2.0, 0.5, freedom / (freedom + t * t));
    Some(p.unwrap_or(f64::NAN))
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: [f64; 8] = [0.30, 0.50, 0.20, 0.70, 0.10, 0.90, 0.40, 0.60];
    const B: [f64; 8] = [0.35, 0.55, 0.40, 0.65, 0.30, 0.95, 0.60, 0.80];

    #[test]
    fn the_t_test_by_hand() {
        // d = 0.05, 0.05, 0.2, -0.05, 0.2, 0.05, 0.2, 0.2: mean 0.1125, variance (sum d^2 - n mean^2) / 7 =
        // (0.17 - 0.10125) / 7 = 0.0098214, t = 0.1125 / sqrt(0.0098214 / 8) = 3.21079; Student's distribution with 7
        // degrees of freedom has the two-sided p 0.0148420605 (scipy.stats.ttest_rel).
        let p = t_test(&A, &B).expect("eight queries");
        assert!((p - 0.014_842_060_499_958_417).abs() < 1e-12, "{p}");
        // scipy.stats.t.sf(t, freedom) * 2.
        for (t, freedom, expected) in [
            (0.3, 3.0, 0.783_763_292_039_919),
            (2.5, 24.0, 0.019_654_175_116_578_784),
            (1.0, 199.0, 0.318_524_912_319_773_87),
            (8.0, 1000.0, 3.426_661_482_391_497_8e-15),
        ] {
            let p = checked_beta_reg(freedom / 2.0, 0.5, freedom / (freedom + t * t)).expect("in range");
            assert!((p / expected - 1.0).abs() < 1e-9, "{t} {freedom}: {p}");
        }
        // One degree of freedom is Cauchy's distribution: p = 1 - 2 atan(t) / pi. d = 0, 2: mean 1, t = 1: p = 0.5.
        let p = t_test(&[0.0, 0.0], &[0.0, 2.0]).expect("two queries");
        assert!((p - 0.5).abs() < 1e-12, "{p}");
        // Two degrees of freedom: p = 1 - t / sqrt(2 + t^2). d = 1, 2, 3: t = 2 sqrt(3), p = 1 - sqrt(12 / 14).
        let p = t_test(&[0.0; 3], &[1.0, 2.0, 3.0]).expect("three queries");
        assert!((p - (1.0 - (12.0f64 / 14.0).sqrt())).abs() < 1e-12, "{p}");
        assert_eq!(t_test(&[1.0], &[2.0]), None);
        assert_eq!(t_test(&A, &A), Some(1.0));
        assert_eq!(t_test(&[0.0; 2], &[1.0; 2]), Some(0.0));
    }

    #[test]
    fn the_randomisation_test_by_hand() {
        // Three differences 1, 2, 3 of one sign: only all-plus and all-minus reach |6|: p = 2 / 8.
        assert_eq!(randomisation(&[0.0; 3], &[1.0, 2.0, 3.0], 100, 0), 0.25);
        // 1, 2, -3 sums to 0: every toss reaches it.
        assert_eq!(randomisation(&[0.0; 3], &[1.0, 2.0, -3.0], 100, 0), 1.0);
        // Eight queries in units of 0.05: 1, 1, 4, -1, 4, 1, 4, 4, sum 18. Of 2^8 signs those with |sum| >= 18: the
        // fours at +16 and the four ones at 2 or 4 (4 + 1 of 16 tosses), and the mirror image: 10 / 256.
        let p = randomisation(&A, &B, 100, 0);
        assert!((p - 10.0 / 256.0).abs() < 1e-12, "{p}");
        assert_eq!(randomisation(&A, &A, 100, 0), 1.0);
    }

    #[test]
    fn drawn_tosses_agree_with_the_t_test_on_many_queries() {
        let base: Vec<f64> = (0..200).map(|n| f64::from(n * 7919 % 101) / 101.0).collect();
        let other: Vec<f64> = (0..200).map(|n| f64::from(n * 104_729 % 97) / 97.0 + 0.03).collect();
        let (drawn, student) = (
            randomisation(&base, &other, 20_000, 1),
            t_test(&base, &other).expect("p"),
        );
        assert!((drawn - student).abs() < 0.02, "{drawn} {student}");
        let far: Vec<f64> = base.iter().map(|value| value + 1.0).collect();
        assert_eq!(randomisation(&base, &far, 9_999, 1), 1e-4);
    }
}
