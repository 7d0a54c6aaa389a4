//! Selection among candidates by few queries, and what the selection is worth on queries that did not make it.
//!
//! Candidates come in stages, each built on what the stage before chose; the first is plain search. A stage's best
//! candidate is taken only where the evidence says that it is better than what it is built on, so that a part that may
//! be chance is not added. Evidence is the mean difference query by query, with its standard error, and what is known
//! of a candidate before (a bridge's gain on held-out queries of its training), weighted by the inverse of their
//! variances as two measurements of one quantity (Cochran 1954; the posterior mean of a normal prior and a normal
//! likelihood).
//!
//! The figure is cross-fitted (Stone 1974): the queries are parted into folds, each fold is answered by what all other
//! queries choose, and the answers together are compared with plain search. The final selection is made by all queries;
//! the figure is that of choosing so, not of the candidate that happened to be chosen, and no query has a say in its
//! own answer.

/// Folds of [`cross_fit`].
pub const FOLDS: usize = 5;
/// Standard errors that a better candidate is ahead by: a chance of nine in ten, one-sided.
const AHEAD: f64 = 1.281_551_565_544_600_4;
/// The same of a candidate that has been found to gain before, by queries that are not asked here: three in four.
const AHEAD_KNOWN: f64 = 0.674_489_750_196_081_7;

/// What is known of a candidate before it is measured: how much it gains on what it is built on, in the measure's own
/// units, and the standard error of that.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prior {
    pub gain: f64,
    pub error: f64,
}

/// A candidate of a stage, by the caller's number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    pub candidate: usize,
    pub prior: Option<Prior>,
}

/// The candidates; number 0 is plain search.
pub trait Candidates {
    /// What can be added to candidate `base` in that stage; none after the last stage.
    fn stage(&mut self, stage: usize, base: usize) -> Option<Vec<Step>>;
    /// The candidate's values, one a query, all candidates' in the same order.
    fn values(&self, candidate: usize) -> &[f64];
}

/// How much better one candidate is believed to be than another, with the standard error.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Belief {
    pub gain: f64,
    pub error: f64,
}

impl Belief {
    /// From the values at `places`. One query that gains nothing is added to them, so that a few that agree by chance
    /// do not look certain. Without queries only the prior speaks, and without either nothing is known.
    pub fn of(base: &[f64], other: &[f64], places: &[usize], prior: Option<Prior>) -> Belief {
        let differences = places
            .iter()
            .filter_map(|&place| Some(other.get(place)? - base.get(place)?));
        let differences: Vec<f64> = differences.chain([0.0]).collect();
        let count = differences.len() as f64;
        let gain = differences.iter().sum::<f64>() / count;
        let squares: f64 = differences.iter().map(|difference| (difference - gain).powi(2)).sum();
        let measured = match differences.len() {
            1 => None,
            _ => Some((gain, squares / (count - 1.0) / count)),
        };
        let prior = prior.map(|prior| (prior.gain, prior.error.powi(2)));
        match (measured, prior) {
            (None, None) => Belief {
                gain: 0.0,
                error: f64::INFINITY,
            },
            (Some((gain, variance)), None) | (None, Some((gain, variance))) => Belief {
                gain,
                error: variance.sqrt(),
            },
            // A variance of 0 leaves no doubt: nothing else is asked.
            (Some((gain, 0.0)), Some(_)) | (Some(_), Some((gain, 0.0))) => Belief { gain, error: 0.0 },
            (Some((a, a_variance)), Some((b, b_variance))) => {
                let (a_weight, b_weight) = (1.0 / a_variance, 1.0 / b_variance);
                let weight = a_weight + b_weight;
                Belief {
                    gain: (a * a_weight + b * b_weight) / weight,
                    error: (1.0 / weight).sqrt(),
                }
            }
        }
    }

    /// Whether it is better beyond reasonable chance. `known`: it was found to be better before.
    pub fn better(&self, known: bool) -> bool {
        let ahead = if known { AHEAD_KNOWN } else { AHEAD };
        self.gain > 0.0 && self.gain >= ahead * self.error
    }
}

/// What the queries at `places` choose.
pub fn choose(candidates: &mut impl Candidates, places: &[usize]) -> usize {
    let mut chosen = 0;
    for stage in 0.. {
        let Some(steps) = candidates.stage(stage, chosen) else {
            break;
        };
        let base = candidates.values(chosen);
        let beliefs = steps.iter().map(|step| {
            (
                step,
                Belief::of(base, candidates.values(step.candidate), places, step.prior),
            )
        });
        // Of equals the first, which the caller names first because it is simpler.
        let best = beliefs.reduce(|best, next| if next.1.gain > best.1.gain { next } else { best });
        if let Some((step, belief)) = best
            && belief.better(step.prior.is_some_and(|prior| prior.gain > 0.0))
        {
            chosen = step.candidate;
        }
    }
    chosen
}

/// A selection, and what selecting so is worth.
#[derive(Clone, Debug, PartialEq)]
pub struct CrossFitted {
    /// What all queries choose.
    pub chosen: usize,
    /// What the queries outside each fold choose.
    pub folds: Vec<usize>,
    /// Each query's value by what the queries outside its fold choose.
    pub held_out: Vec<f64>,
}

/// Chooses by all of `queries` queries, and fold by fold. The queries should come in random order.
pub fn cross_fit(candidates: &mut impl Candidates, queries: usize) -> CrossFitted {
    let folds = FOLDS.min(queries).max(1);
    let chosen = choose(candidates, &(0..queries).collect::<Vec<_>>());
    let by_fold: Vec<usize> = (0..folds)
        .map(|fold| {
            let others: Vec<usize> = (0..queries).filter(|place| place % folds != fold).collect();
            choose(candidates, &others)
        })
        .collect();
    let value = |place: usize| {
        let chosen = by_fold.get(place % folds).copied().unwrap_or(0);
        candidates.values(chosen).get(place).copied().unwrap_or_default()
    };
    CrossFitted {
        held_out: (0..queries).map(value).collect(),
        chosen,
        folds: by_fold,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Stages of candidates, each built on anything.
    struct Fixed {
        values: Vec<Vec<f64>>,
        stages: Vec<Vec<Step>>,
    }

    impl Candidates for Fixed {
        fn stage(&mut self, stage: usize, _: usize) -> Option<Vec<Step>> {
            self.stages.get(stage).cloned()
        }

        fn values(&self, candidate: usize) -> &[f64] {
            &self.values[candidate]
        }
    }

    fn step(candidate: usize) -> Step {
        Step { candidate, prior: None }
    }

    /// Differences that spread by `noise` around `gain`, half above and half below.
    fn around(gain: f64, noise: f64, queries: usize) -> Vec<f64> {
        (0..queries)
            .map(|at| 0.5 + gain + if at % 2 == 0 { noise } else { -noise })
            .collect()
    }

    #[test]
    fn beliefs_by_hand() {
        let close = |belief: Belief, gain: f64, error: f64| {
            assert!(
                (belief.gain - gain).abs() < 1e-12 && (belief.error - error).abs() < 1e-12,
                "{belief:?}"
            );
        };
        // Differences 0.1, 0.3, 0.2 and the added 0: mean 0.15, squares 0.0025 + 0.0225 + 0.0025 + 0.0225 = 0.05.
        let (base, other) = ([0.0; 4], [0.1, 0.3, 0.2, 9.0]);
        let error = (0.05f64 / 3.0 / 4.0).sqrt();
        close(Belief::of(&base, &other, &[0, 1, 2], None), 0.15, error);
        let prior = Prior { gain: 0.05, error };
        close(
            Belief::of(&base, &other, &[0, 1, 2], Some(prior)),
            0.1,
            error / 2f64.sqrt(),
        );
        close(Belief::of(&base, &other, &[], Some(prior)), 0.05, error);
        let nothing = Belief::of(&base, &other, &[], None);
        assert!(nothing.gain == 0.0 && !nothing.better(true));
        assert!(!Belief::of(&base, &base, &[0, 1, 2], None).better(true));
        close(Belief::of(&base, &base, &[0, 1, 2], Some(prior)), 0.0, 0.0);
        // One query: 0.1 and the added 0, mean and standard error 0.05.
        let one = Belief::of(&[0.0; 2], &[0.1, 0.1], &[0], None);
        assert!(!one.better(false) && one.better(true), "{one:?}");
        assert!(Belief::of(&[0.0; 2], &[0.1, 0.1], &[0, 1], None).better(false));
    }

    #[test]
    fn a_part_is_added_only_where_it_is_better_beyond_chance() {
        // Plain; two bridges, the second better; the same with another part that gains less than its noise.
        let mut fixed = Fixed {
            values: vec![
                vec![0.5; 100],
                around(0.03, 0.1, 100),
                around(0.06, 0.1, 100),
                around(0.065, 0.2, 100),
            ],
            stages: vec![vec![step(1), step(2)], vec![step(3)]],
        };
        let found = cross_fit(&mut fixed, 100);
        assert_eq!((found.chosen, &found.folds[..]), (2, &[2usize; 5][..]));
        assert_eq!(found.held_out, fixed.values[2]);
        fixed.values[3] = around(0.09, 0.1, 100);
        assert_eq!(cross_fit(&mut fixed, 100).chosen, 3);
        fixed.values[2] = around(0.01, 0.3, 100);
        fixed.values[1] = fixed.values[2].clone();
        fixed.stages.pop();
        assert_eq!(cross_fit(&mut fixed, 100).chosen, 0, "may be chance");
    }

    #[test]
    fn what_is_known_before_speaks_where_queries_are_few() {
        let mut fixed = Fixed {
            values: vec![vec![0.5; 40], around(0.02, 0.15, 40), around(0.02, 0.15, 40)],
            stages: vec![vec![step(1), step(2)]],
        };
        assert_eq!(cross_fit(&mut fixed, 40).chosen, 0);
        fixed.stages[0][1].prior = Some(Prior {
            gain: 0.03,
            error: 0.01,
        });
        assert_eq!(cross_fit(&mut fixed, 40).chosen, 2);
        fixed.values[2] = around(-0.2, 0.15, 40);
        assert_eq!(cross_fit(&mut fixed, 40).chosen, 0, "what is seen outweighs it");
    }

    /// Each candidate is good on the queries of one fold alone, by chance: the folds do not choose what is good on
    /// themselves, and the figure is that of plain search or worse, though the best mean over all queries is above it.
    #[test]
    fn no_query_has_a_say_in_its_own_answer() {
        let mut values = vec![vec![0.5; 100]];
        for fold in 0..FOLDS {
            values.push((0..100).map(|at| if at % FOLDS == fold { 1.0 } else { 0.45 }).collect());
        }
        let stages = vec![(1..=FOLDS).map(step).collect()];
        let found = cross_fit(&mut Fixed { values, stages }, 100);
        assert_ne!(found.chosen, 0);
        let mean = found.held_out.iter().sum::<f64>() / 100.0;
        assert!(mean <= 0.5, "{mean}");
        for (fold, chosen) in found.folds.iter().enumerate() {
            assert_ne!(*chosen, fold + 1, "chosen by its own queries");
        }
    }
}
