//! The one rule by which a bridge of any kind is accepted.
//!
//! - Whatever the kind has to gain lies above 0 with its whole 95 % interval, on test data that neither trained the
//!   bridge nor chose among its states: nDCG@10 over the plain vectors for adapter, lexsem, situate and feedback; for
//!   xrag the bits of a passage or answer with the passage's own vectors, against another passage's and, of answers,
//!   against what the stage began with. [`Verdict::of`] asks for all of them.
//! - What a kind must not lose is kept ([`Verdict::provided`]): a copy of the encoder that is as it began is no bridge
//!   of feedback; a lexsem bridge loses no more than its option `guard` of sentences and pairs, and nothing on
//!   documents that its training did not see.
//! - What was shown on queries that were made of the passages themselves is shown of the passages' own words alone: the
//!   state is then `accepted (synthetic queries)`, and judged questions of people can still overturn it (`situ.tune`).
//!   With given pairs it is `accepted`. Anything else is `rejected`.

use super::early_stopping::mean;
use crate::eval::bootstrap::{Draws, Interval, of_difference, of_gain};
use serde_json::{Value, json};

/// What a training's held-out data says of its bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Accepted,
    /// By queries that were made of the passages, and by nothing else.
    AcceptedSynthetic,
    Rejected,
}

impl Verdict {
    /// From the intervals of everything that has to be gained: each must lie above 0. `synthetic`: the queries were
    /// made of the passages.
    pub fn of(gains: &[Option<Interval>], synthetic: bool) -> Verdict {
        match (gains.iter().all(|gain| is_above_chance(*gain)), synthetic) {
            (false, _) => Verdict::Rejected,
            (true, true) => Verdict::AcceptedSynthetic,
            (true, false) => Verdict::Accepted,
        }
    }

    /// The verdict where `kept` holds as well; rejected where it does not.
    pub fn provided(self, kept: bool) -> Verdict {
        if kept { self } else { Verdict::Rejected }
    }

    /// As the registry writes it.
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Accepted => "accepted",
            Verdict::AcceptedSynthetic => "accepted (synthetic queries)",
            Verdict::Rejected => "rejected",
        }
    }

    /// The verdict of that name.
    pub fn from_name(name: &str) -> Option<Verdict> {
        let all = [Verdict::Accepted, Verdict::AcceptedSynthetic, Verdict::Rejected];
        all.into_iter().find(|verdict| verdict.name() == name)
    }

    /// Whether the bridge may be used.
    pub fn accepts(self) -> bool {
        self != Verdict::Rejected
    }
}

/// Whether more is gained than the choice of queries explains: the whole interval lies above 0. A mean of some hundred
/// queries is above 0 every other time for a bridge that does nothing. Without an interval nothing is known.
pub fn is_above_chance(gain: Option<Interval>) -> bool {
    gain.is_some_and(|gain| gain.low > 0.0)
}

/// What held-out queries say of a bridge: each query's value before and with it, paired by place.
pub struct Evaluation {
    pub base: f64,
    pub with: f64,
    /// `with / base - 1`; 0 where `base` is 0.
    pub gain: f64,
    /// The 95 % interval of the relative gain, where it is defined.
    pub gain_interval: Option<Interval>,
    /// The 95 % interval of `with - base`.
    pub difference: Option<Interval>,
}

impl Evaluation {
    /// From each query's value. The seed draws the intervals (percentile bootstrap over queries).
    pub fn of(base: &[f64], with: &[f64], seed: u64) -> Evaluation {
        let draws = Draws {
            seed,
            ..Draws::default()
        };
        let (before, after) = (mean(base), mean(with));
        Evaluation {
            base: before,
            with: after,
            gain: if before > 0.0 { after / before - 1.0 } else { 0.0 },
            gain_interval: of_gain(base, with, draws),
            difference: of_difference(base, with, draws),
        }
    }

    /// As figures of nDCG@10 have it.
    pub fn figures(&self) -> Value {
        json!({
            "plain": self.base, "bridge": self.with, "gain": self.gain,
            "low": self.gain_interval.map(|interval| interval.low),
            "high": self.gain_interval.map(|interval| interval.high),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bridge_helps_where_the_whole_interval_is_above_zero() {
        let base: Vec<f64> = (0..200).map(|query| f64::from(query % 5) / 4.0).collect();
        // One query in four gains 0.1: the mean 0.025, far from 0 over 200 queries.
        let better: Vec<f64> = base
            .iter()
            .zip(0..)
            .map(|(x, n)| x + f64::from(u8::from(n % 4 == 0)) / 10.0)
            .collect();
        let found = Evaluation::of(&base, &better, 1);
        assert!(is_above_chance(found.difference));
        assert!((found.with - found.base - 0.025).abs() < 1e-12 && (found.gain - 0.05).abs() < 1e-9);
        // The same mean out of gains and losses of 0.5 is within chance.
        let chance: Vec<f64> = base
            .iter()
            .zip(0..)
            .map(|(x, n)| x + if n % 40 < 21 { 0.5 } else { -0.5 })
            .collect();
        let found = Evaluation::of(&base, &chance, 1);
        assert!(found.with > found.base && !is_above_chance(found.difference));
        assert!(!is_above_chance(Evaluation::of(&better, &base, 1).difference));
        assert!(!is_above_chance(Evaluation::of(&base, &base, 1).difference));
        assert!(!is_above_chance(Evaluation::of(&[], &[], 1).difference));
    }

    #[test]
    fn every_gain_has_to_be_above_chance_and_synthetic_queries_are_named() {
        let interval = |low: f64| Some(Interval { low, high: low + 1.0 });
        let (above, at, below) = (interval(0.01), interval(0.0), interval(-0.5));
        assert_eq!(Verdict::of(&[above], false), Verdict::Accepted);
        assert_eq!(Verdict::of(&[above, above], true), Verdict::AcceptedSynthetic);
        for gains in [[above, at], [below, above], [above, None]] {
            assert_eq!(Verdict::of(&gains, false), Verdict::Rejected);
            assert_eq!(Verdict::of(&gains, true), Verdict::Rejected);
        }
        assert_eq!(Verdict::of(&[above], true).provided(false), Verdict::Rejected);
        assert_eq!(Verdict::of(&[above], true).provided(true), Verdict::AcceptedSynthetic);
        for verdict in [Verdict::Accepted, Verdict::AcceptedSynthetic, Verdict::Rejected] {
            assert_eq!(Verdict::from_name(verdict.name()), Some(verdict));
        }
        assert_eq!(Verdict::from_name("accept"), None);
        assert!(Verdict::AcceptedSynthetic.accepts() && !Verdict::Rejected.accepts());
    }
}
