//! The one rule by which a bridge of any kind is accepted: what it is said to gain lies above 0 with its whole 95 % interval, on
//! data that neither trained it nor chose among its states.
//!
//! What was shown on queries that were made of the passages themselves is shown of the passages' own words alone. The verdict says
//! so, and judged questions of people can still overturn it (`situ.tune`).

use super::parts::mean;
use crate::eval::bootstrap::{Draws, Interval, of_difference, of_gain};

/// What a training's held-out data says of its bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Accepted,
    /// By queries that were made of the passages, and by nothing else.
    AcceptedMade,
    Rejected,
}

impl Verdict {
    /// From the intervals of everything that has to be gained: each must lie above 0. `made`: the queries were made of the
    /// passages.
    pub fn of(gains: &[Option<Interval>], made: bool) -> Verdict {
        match (gains.iter().all(|gain| is_above_chance(*gain)), made) {
            (false, _) => Verdict::Rejected,
            (true, true) => Verdict::AcceptedMade,
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
            Verdict::AcceptedMade => "accepted (made queries)",
            Verdict::Rejected => "rejected",
        }
    }

    /// The verdict of that name.
    pub fn from_name(name: &str) -> Option<Verdict> {
        let all = [Verdict::Accepted, Verdict::AcceptedMade, Verdict::Rejected];
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
pub struct Judged {
    pub base: f64,
    pub with: f64,
    /// `with / base - 1`; 0 where `base` is 0.
    pub gain: f64,
    /// The 95 % interval of the relative gain, where it is defined.
    pub gain_interval: Option<Interval>,
    /// The 95 % interval of `with - base`.
    pub difference: Option<Interval>,
}

impl Judged {
    /// From each query's value. The seed draws the intervals (percentile bootstrap over queries).
    pub fn of(base: &[f64], with: &[f64], seed: u64) -> Judged {
        let draws = Draws {
            seed,
            ..Draws::default()
        };
        let (before, after) = (mean(base), mean(with));
        Judged {
            base: before,
            with: after,
            gain: if before > 0.0 { after / before - 1.0 } else { 0.0 },
            gain_interval: of_gain(base, with, draws),
            difference: of_difference(base, with, draws),
        }
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
        let judged = Judged::of(&base, &better, 1);
        assert!(is_above_chance(judged.difference));
        assert!((judged.with - judged.base - 0.025).abs() < 1e-12 && (judged.gain - 0.05).abs() < 1e-9);
        // The same mean out of gains and losses of 0.5 is within chance.
        let chance: Vec<f64> = base
            .iter()
            .zip(0..)
            .map(|(x, n)| x + if n % 40 < 21 { 0.5 } else { -0.5 })
            .collect();
        let judged = Judged::of(&base, &chance, 1);
        assert!(judged.with > judged.base && !is_above_chance(judged.difference));
        assert!(!is_above_chance(Judged::of(&better, &base, 1).difference));
        assert!(!is_above_chance(Judged::of(&base, &base, 1).difference));
        assert!(!is_above_chance(Judged::of(&[], &[], 1).difference));
    }

    #[test]
    fn every_gain_has_to_be_above_chance_and_made_queries_are_named() {
        let interval = |low: f64| Some(Interval { low, high: low + 1.0 });
        let (above, at, below) = (interval(0.01), interval(0.0), interval(-0.5));
        assert_eq!(Verdict::of(&[above], false), Verdict::Accepted);
        assert_eq!(Verdict::of(&[above, above], true), Verdict::AcceptedMade);
        for gains in [[above, at], [below, above], [above, None]] {
            assert_eq!(Verdict::of(&gains, false), Verdict::Rejected);
            assert_eq!(Verdict::of(&gains, true), Verdict::Rejected);
        }
        assert_eq!(Verdict::of(&[above], true).provided(false), Verdict::Rejected);
        assert_eq!(Verdict::of(&[above], true).provided(true), Verdict::AcceptedMade);
        for verdict in [Verdict::Accepted, Verdict::AcceptedMade, Verdict::Rejected] {
            assert_eq!(Verdict::from_name(verdict.name()), Some(verdict));
        }
        assert_eq!(Verdict::from_name("accept"), None);
        assert!(Verdict::AcceptedMade.accepts() && !Verdict::Rejected.accepts());
    }
}
