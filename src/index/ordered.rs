//! An order that never falls, over a scan whose bounds hold only probably.
//!
//! A scan by bounds can find a hit after farther ones have been given out. Whoever believes the order (merges, groups,
//! incremental sorts) must not see that. Where the caller takes the distance from the scan, as over documents, such a hit
//! comes out at once, at the distance of the last one. Where the caller computes the distance itself it is kept back
//! and comes when nothing else is left, so that no row is lost: the one place where the order falls. An exact walk
//! finds none late.

use super::IndexError;
use super::memory_limit::reserve;
use super::types::{Hit, Metric};

/// What rounding may change of a distance: a share of it, and at least so much.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rounding {
    pub share: f64,
    pub least: f64,
}

impl Rounding {
    /// What sums of as many products of 32-bit numbers lose, half a unit in the last place each to either side: four
    /// deviations of their sum. `query` is what distances of that metric are computed to.
    pub fn of(metric: Metric, query: &[f32]) -> Rounding {
        let rounding = 2.0 * (query.len() as f64).sqrt() * f64::from(f32::EPSILON) + 1e-7;
        let squared: f64 = query.iter().map(|x| f64::from(*x).powi(2)).sum();
        let (share, least) = match metric {
            Metric::L2 => (rounding, 0.0),
            Metric::Cosine => (0.0, rounding),
            Metric::InnerProduct => (rounding, rounding * squared),
        };
        Rounding { share, least }
    }

    /// Whether two distances may be equal but for rounding.
    pub fn near(&self, one: f64, other: f64) -> bool {
        (other - one).abs() <= (self.share * one.abs()).max(self.least)
    }
}

/// What is kept of a scan to give its hits out in order.
#[derive(Debug, Default)]
pub struct Ordered {
    rounding: Rounding,
    /// Distances are this scan's to say.
    raise: bool,
    last: Option<f64>,
    /// Hits that were found late, the nearest last once `ended`.
    late: Vec<Hit>,
    ended: bool,
}

impl Ordered {
    /// `raise`: hits that are found late are given out at the last distance. Otherwise a hit that is late by no more than
    /// rounding is given out as it is.
    pub fn new(raise: bool, rounding: Rounding) -> Ordered {
        Ordered {
            raise,
            rounding,
            ..Ordered::default()
        }
    }

    /// The next hit of those that `pull` brings.
    ///
    /// # Errors
    /// What `pull` fails with, and where there is no memory for the hits that are late.
    pub fn next<E: From<IndexError>>(
        &mut self,
        mut pull: impl FnMut() -> Result<Option<Hit>, E>,
    ) -> Result<Option<Hit>, E> {
        while !self.ended {
            let Some(mut hit) = pull()? else {
                self.ended = true;
                self.late.sort_unstable_by(|a, b| b.distance.total_cmp(&a.distance));
                break;
            };
            match self.last.filter(|last| hit.distance < *last) {
                Some(last) if self.raise => hit.distance = last,
                Some(last) if self.rounding.near(last, hit.distance) => {}
                Some(_) => {
                    reserve(&mut self.late, 1)?;
                    self.late.push(hit);
                    continue;
                }
                None => self.last = Some(hit.distance),
            }
            return Ok(Some(hit));
        }
        Ok(self.late.pop())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::Span;

    fn drained(raise: bool, distances: &[f64]) -> Vec<(u64, f64)> {
        let mut hits = distances.iter().enumerate().map(|(at, distance)| Hit {
            tid: at as u64,
            distance: *distance,
            ordinal: 0,
            span: Span { start: 0, end: 0 },
            hash: 0,
        });
        let mut ordered = Ordered::new(raise, Rounding::default());
        std::iter::from_fn(|| ordered.next(|| Ok::<_, IndexError>(hits.next())).ok().flatten())
            .map(|hit| (hit.tid, hit.distance))
            .collect()
    }

    #[test]
    fn a_late_hit_is_neither_lost_nor_out_of_order() {
        let found = [1.0, 3.0, 2.0, 3.0, 2.5, 4.0];
        let kept: Vec<u64> = drained(false, &found).into_iter().map(|(tid, _)| tid).collect();
        assert_eq!(kept, [0, 1, 3, 5, 2, 4], "late ones come at the end, in their order");
        let raised = drained(true, &found);
        let order: Vec<u64> = raised.iter().map(|(tid, _)| *tid).collect();
        assert_eq!(order, [0, 1, 2, 3, 4, 5]);
        assert!(raised.windows(2).all(|pair| pair[0].1 <= pair[1].1), "{raised:?}");
    }
}
