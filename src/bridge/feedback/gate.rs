//! Calibrating the gate of feedback: from what each setting gained on judged queries to the one that is safe.
//!
//! A setting is a strength, a number of rows kept in front after a sharp round, and the least sharpness of one; after
//! any other round ten rows are kept, so that no measure of the first ten changes. A setting is safe where no measure
//! falls on either half of the queries and, where it ever keeps fewer than ten rows, where the lower ends of the
//! intervals of what nDCG@10 and the reciprocal rank gain are not below 0. Of the safe ones that is taken which gains
//! most. Where none is safe, ten rows are always kept: some hundred queries say little of so small gains, and on four
//! judged sets they are gains (docs/FEEDBACK.md). Only where the whole interval of a measure lies below 0, or where
//! nothing gains, feedback is off.

use super::Gate;
use crate::eval::bootstrap::{Draws, of_mean};

/// Betas (and gammas) that are tried.
pub const STRENGTHS: [f32; 3] = [0.2, 0.3, 0.5];
/// Rows kept in front that are tried; the last is the safe number, which keeps what is measured of the first ten.
pub const KEEPS: [usize; 3] = [2, 5, 10];
/// Shares of the queries that count as not sharp.
const SHARES: [f64; 3] = [0.0, 0.25, 0.5];
/// Least mean gain of anything that is done: less is rounding.
const LEAST: f64 = 1e-9;

/// What a setting changed of one query's measures: nDCG@10, average precision, reciprocal rank, recall@100.
pub type Gains = [f64; 4];

/// One query: how sharp its first round was, and what each strength and number of kept rows gained.
#[derive(Clone, Debug)]
pub struct Observation {
    pub sharpness: f64,
    pub gains: [[Gains; KEEPS.len()]; STRENGTHS.len()],
}

/// A setting with its mean gains.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tried {
    pub gate: Gate,
    pub gains: Gains,
    /// Lower ends of the intervals of the mean gains of nDCG@10 and the reciprocal rank.
    pub low: [f64; 2],
    pub safe: bool,
    /// The interval of some measure's mean gain lies below 0.
    pub harmful: bool,
}

/// Places among [`Gains`] of what is measured of the top: nDCG@10, reciprocal rank.
const TOP: [usize; 2] = [0, 2];

fn falls(gains: &Gains) -> bool {
    gains.iter().any(|&gain| gain < -LEAST)
}

fn mean(gains: &[Gains]) -> Gains {
    std::array::from_fn(|m| gains.iter().map(|g| g[m]).sum::<f64>() / gains.len().max(1) as f64)
}

/// Every setting with its gains, and the chosen gate. The queries should come in random order: the first half and the
/// second are compared. Without queries feedback is off. `draws` says how the intervals are drawn.
pub fn calibrate(queries: &[Observation], draws: Draws) -> (Gate, Vec<Tried>) {
    let mut sharpness: Vec<f64> = queries.iter().map(|query| query.sharpness).collect();
    sharpness.sort_by(f64::total_cmp);
    let blunt = KEEPS.len() - 1;
    let mut tried = Vec::new();
    for strength in 0..STRENGTHS.len() {
        for sharp in 0..KEEPS.len() {
            for share in SHARES {
                if sharp == blunt && share > 0.0 {
                    // The same number of rows on both sides of any threshold.
                    continue;
                }
                let threshold = match sharpness.get((share * sharpness.len() as f64) as usize) {
                    Some(&threshold) if share > 0.0 => threshold,
                    _ => 0.0,
                };
                tried.push(attempt(queries, strength, sharp, threshold, draws));
            }
        }
    }
    (best_of(&tried), tried)
}

/// What a setting gained: strength and kept rows of a sharp round by their places in [`STRENGTHS`] and [`KEEPS`].
fn attempt(queries: &[Observation], strength: usize, sharp: usize, threshold: f64, draws: Draws) -> Tried {
    let blunt = KEEPS.len() - 1;
    let gains: Vec<Gains> = queries
        .iter()
        .map(|query| query.gains[strength][if query.sharpness >= threshold { sharp } else { blunt }])
        .collect();
    let (first, second) = gains.split_at(gains.len() / 2);
    let ends: [(f64, f64); 4] = std::array::from_fn(|at| {
        let gains: Vec<f64> = gains.iter().map(|gain| gain[at]).collect();
        of_mean(&gains, draws).map_or((0.0, 0.0), |interval| (interval.low, interval.high))
    });
    let low = TOP.map(|at| ends[at].0);
    Tried {
        gate: Gate {
            strength: STRENGTHS[strength],
            threshold,
            sharp: KEEPS[sharp],
            blunt: KEEPS[blunt],
            off: false,
        },
        gains: mean(&gains),
        low,
        safe: ![first, second].iter().any(|half| falls(&mean(half)))
            && (sharp == blunt || low.iter().all(|&low| low >= -LEAST)),
        harmful: ends.iter().any(|(_, high)| *high < -LEAST),
    }
}

/// The safe setting that gains most; without one ten rows where nothing loses beyond chance, else off.
fn best_of(tried: &[Tried]) -> Gate {
    // Recall counts little beside the others, but it decides where nothing else moves.
    let value = |tried: &Tried| tried.gains[0] + tried.gains[1] + tried.gains[2] + 0.1 * tried.gains[3];
    let best = |accept: &dyn Fn(&&Tried) -> bool| {
        let accepted = tried.iter().filter(accept);
        accepted
            .max_by(|a, b| value(a).total_cmp(&value(b)))
            .map(|tried| tried.gate)
    };
    let gains = |tried: &Tried| tried.gains.iter().any(|&gain| gain > LEAST);
    best(&|tried| tried.safe && value(tried) > LEAST)
        .or_else(|| best(&|tried| tried.gate.sharp == tried.gate.blunt && !tried.harmful && gains(tried)))
        .unwrap_or(Gate {
            off: true,
            ..Gate::default()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observation(sharpness: f64, gain: impl Fn(f32, usize) -> Gains) -> Observation {
        Observation {
            sharpness,
            gains: STRENGTHS.map(|strength| KEEPS.map(|keep| gain(strength, keep))),
        }
    }

    /// Sharp rounds gain from few kept rows, blunt ones lose: the threshold parts them.
    #[test]
    fn the_threshold_parts_sharp_from_blunt() {
        let queries: Vec<Observation> = (0..100)
            .map(|at| {
                let sharp = at % 4 != 0;
                observation(if sharp { 0.5 } else { 0.1 }, |strength, keep| match (keep, sharp) {
                    (10, _) => [0.0, 0.001, 0.0, 0.01],
                    (_, true) => [0.02 * f64::from(strength); 4],
                    (_, false) => [-0.1; 4],
                })
            })
            .collect();
        let (gate, tried) = calibrate(&queries, Draws::default());
        assert_eq!(
            (gate.strength, gate.threshold, gate.blunt, gate.off),
            (0.5, 0.5, 10, false)
        );
        assert!(gate.sharp < 10);
        assert_eq!(tried.len(), STRENGTHS.len() * (2 * SHARES.len() + 1));
        assert!(
            tried.iter().any(|tried| !tried.safe),
            "without a threshold it is not safe"
        );
    }

    #[test]
    fn what_helps_only_below_the_top_keeps_the_top() {
        let queries = vec![
            observation(0.3, |_, keep| if keep == 10 {
                [0.0, 0.001, 0.0, 0.01]
            } else {
                [-0.01, 0.1, -0.01, 0.1]
            });
            20
        ];
        let (gate, _) = calibrate(&queries, Draws::default());
        assert_eq!((gate.sharp, gate.blunt, gate.off), (10, 10, false));
    }

    /// Fewer rows that gain in the mean, on both halves, by a few queries out of many: the interval reaches below 0.
    #[test]
    fn a_gain_that_may_be_chance_keeps_ten_rows() {
        let gains = |lost: f64| {
            let queries: Vec<Observation> = (0..200)
                .map(|at| {
                    observation(0.3, move |_, keep| match (keep, at % 10) {
                        (10, _) => [0.0, 0.001, 0.0, 0.01],
                        (_, 0) => [0.5; 4],
                        (_, 1) => [lost; 4],
                        _ => [0.0; 4],
                    })
                })
                .collect();
            calibrate(&queries, Draws::default())
        };
        let (gate, tried) = gains(-0.4);
        assert_eq!((gate.sharp, gate.blunt, gate.off), (10, 10, false));
        let few = tried.iter().find(|tried| tried.gate.sharp == 2).expect("a setting");
        assert!(few.gains[0] > 0.0 && few.low[0] < 0.0 && !few.safe, "{few:?}");
        assert!(gains(-0.01).0.sharp < 10, "a gain beyond chance is taken");
    }

    /// Ten kept rows that fall in one measure by chance are kept.
    #[test]
    fn ten_rows_that_may_lose_by_chance_stay() {
        let queries: Vec<Observation> = (0..200)
            .map(|at| {
                observation(0.3, move |strength, keep| match (keep, at % 10) {
                    (10, 0) => [0.0, 0.001, -0.02, 0.2 * f64::from(strength)],
                    (10, 1) => [0.0, 0.001, 0.019, 0.0],
                    (10, _) => [0.0; 4],
                    _ => [-0.1; 4],
                })
            })
            .collect();
        let (gate, tried) = calibrate(&queries, Draws::default());
        assert_eq!((gate.strength, gate.sharp, gate.blunt, gate.off), (0.5, 10, 10, false));
        let ten = tried.iter().find(|tried| tried.gate == gate).expect("the setting");
        assert!(ten.gains[2] < 0.0 && !ten.safe && !ten.harmful, "{ten:?}");
    }

    /// Ten kept rows that lose below the top are not feedback that anybody wants.
    #[test]
    fn ten_rows_that_lose_are_off() {
        let queries = vec![
            observation(0.3, |_, keep| if keep == 10 {
                [0.0, 0.001, -0.001, 0.01]
            } else {
                [-0.1; 4]
            });
            20
        ];
        assert!(calibrate(&queries, Draws::default()).0.off);
    }

    #[test]
    fn what_helps_nowhere_is_off() {
        let (gate, _) = calibrate(&vec![observation(0.3, |_, _| [-0.01; 4]); 20], Draws::default());
        assert!(gate.off);
        assert!(calibrate(&[], Draws::default()).0.off);
    }

    /// Good on one half and bad on the other is chance.
    #[test]
    fn both_halves_have_to_agree() {
        let queries: Vec<Observation> = (0..40)
            .map(|at| {
                observation(0.3, move |_, keep| match keep {
                    10 => [0.0, 0.001, 0.0, 0.0],
                    _ if at < 20 => [0.5; 4],
                    _ => [-0.1; 4],
                })
            })
            .collect();
        assert_eq!(calibrate(&queries, Draws::default()).0.sharp, 10);
    }
}
