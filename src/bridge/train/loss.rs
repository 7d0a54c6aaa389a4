//! The contrastive loss: a query against all candidate passages at once.
//!
//! `loss = -log sum over its own of softmax(q P^T / tau)`, the mean over a batch. A query's own are the candidates of
//! one group: one passage, or the chunks that it was cut in, of which the nearest is then pulled most. Every other
//! candidate is a negative, so the hardest ones are always among them.

use crate::bridge::BridgeError;
use crate::compute::cpu::Level;
use crate::compute::matmul::parallel::Matmul;
use crate::compute::memory::zeros;
use crate::compute::{Linear, Pool, Precision};
use std::ops::Range;

/// Candidate passages, packed for products with batches of queries.
pub struct Candidates {
    count: usize,
    groups: Groups,
    dimensions: usize,
    vectors: Vec<f32>,
    /// Queries to scores.
    scores: Linear,
    /// Scores to sums of passages.
    sums: Linear,
    score_memory: Matmul,
    sum_memory: Matmul,
    most: usize,
}

/// Which candidates belong together: consecutive ones. Targets are numbers of groups.
#[derive(Clone, Debug)]
pub struct Groups {
    /// Where each begins, and the end of the last.
    starts: Vec<u32>,
}

impl Groups {
    /// Each candidate for itself.
    pub fn single(count: usize) -> Groups {
        Groups {
            starts: (0..=count as u32).collect(),
        }
    }

    /// Of `count` candidates, `together(a, b)` says whether two that follow each other belong together.
    pub fn of(count: usize, together: impl Fn(usize, usize) -> bool) -> Groups {
        let mut starts: Vec<u32> = (0..count)
            .filter(|at| *at == 0 || !together(at - 1, *at))
            .map(|at| at as u32)
            .collect();
        starts.push(count as u32);
        Groups { starts }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.starts.len().saturating_sub(1)
    }

    /// The candidates of a group; none of one that does not exist.
    pub fn members(&self, group: u32) -> Range<usize> {
        match self.starts.get(group as usize..group as usize + 2) {
            Some([start, end]) => *start as usize..*end as usize,
            _ => 0..0,
        }
    }

    /// The group of each candidate.
    pub fn numbers(&self) -> Vec<u32> {
        (0..self.count() as u32)
            .flat_map(|group| self.members(group).map(move |_| group))
            .collect()
    }
}

impl Candidates {
    /// Packs row-major vectors for batches of at most `most` queries; each candidate is a group.
    pub fn new(pool: &Pool, vectors: Vec<f32>, dimensions: usize, most: usize) -> Result<Candidates, BridgeError> {
        let groups = Groups::single(vectors.len() / dimensions.max(1));
        Candidates::grouped(pool, vectors, dimensions, most, groups)
    }

    /// The same with groups, of as many candidates as there are vectors.
    pub fn grouped(
        pool: &Pool,
        vectors: Vec<f32>,
        dimensions: usize,
        most: usize,
        groups: Groups,
    ) -> Result<Candidates, BridgeError> {
        let count = vectors.len() / dimensions.max(1);
        let level = Level::detect();
        let linear = |weights: &[f32], inputs: usize, outputs: usize| {
            Linear::new(level, Precision::F32, weights, &zeros(outputs)?, inputs)
        };
        let mut transposed = zeros::<f32>(vectors.len())?;
        for (row, vector) in vectors.chunks_exact(dimensions.max(1)).enumerate() {
            for (column, number) in vector.iter().enumerate() {
                transposed[column * count + row] = *number;
            }
        }
        Ok(Candidates {
            scores: linear(&vectors, dimensions, count)?,
            sums: linear(&transposed, count, dimensions)?,
            score_memory: Matmul::new(pool, dimensions)?,
            sum_memory: Matmul::new(pool, count)?,
            count,
            groups,
            dimensions,
            vectors,
            most,
        })
    }

    /// How many candidates there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// `q P^T`, row-major: a row of one score a candidate for each query, of at most as many as were said.
    pub fn scores(&self, pool: &Pool, queries: &[f32]) -> Result<Vec<f32>, BridgeError> {
        let rows = queries.len() / self.dimensions;
        let mut scores = zeros::<f32>(rows * self.count)?;
        self.score_memory.run(pool, &self.scores, queries, &mut scores)?;
        Ok(scores)
    }

    /// The mean loss of a batch, and its gradient by the queries (row-major, as the queries). `targets` are numbers of
    /// groups: positions of candidates where each is its own.
    pub fn loss(
        &self,
        pool: &Pool,
        queries: &[f32],
        targets: &[u32],
        tau: f32,
    ) -> Result<(f64, Vec<f32>), BridgeError> {
        let rows = targets.len();
        self.check(queries, targets)?;
        let mut scores = self.scores(pool, queries)?;
        let mut loss = 0.0f64;
        // Of each query's own candidates, their shares in the softmax over those alone.
        let mut shares = Vec::with_capacity(rows);
        for (line, target) in scores.chunks_exact_mut(self.count).zip(targets) {
            let (of_line, own) = softmax_loss(line, self.groups.members(*target), tau, rows);
            loss += of_line;
            shares.push(own);
        }
        let mut gradient = zeros::<f32>(rows * self.dimensions)?;
        self.sum_memory.run(pool, &self.sums, &scores, &mut gradient)?;
        let factor = 1.0 / (tau * rows as f32);
        for ((line, target), shares) in gradient.chunks_exact_mut(self.dimensions).zip(targets).zip(&shares) {
            for (own, share) in self.groups.members(*target).zip(shares) {
                let own = &self.vectors[own * self.dimensions..][..self.dimensions];
                line.iter_mut().zip(own).for_each(|(sum, x)| *sum -= factor * share * x);
            }
        }
        Ok((loss / rows.max(1) as f64, gradient))
    }

    /// Groups with a candidate that scores higher than each query's best own: 0 where its group comes first.
    pub fn ranks(&self, pool: &Pool, queries: &[f32], targets: &[u32]) -> Result<Vec<u32>, BridgeError> {
        let mut ranks = Vec::with_capacity(targets.len());
        for (queries, targets) in queries
            .chunks(self.most * self.dimensions)
            .zip(targets.chunks(self.most))
        {
            self.check(queries, targets)?;
            let scores = self.scores(pool, queries)?;
            for (line, target) in scores.chunks_exact(self.count).zip(targets) {
                let own = self.groups.members(*target);
                let best = line[own].iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let higher = |ends: &&[u32]| {
                    let members = line.get(ends[0] as usize..ends[1] as usize).unwrap_or_default();
                    members.iter().any(|score| *score > best)
                };
                ranks.push(self.groups.starts.windows(2).filter(higher).count() as u32);
            }
        }
        Ok(ranks)
    }

    fn check(&self, queries: &[f32], targets: &[u32]) -> Result<(), BridgeError> {
        let expected = targets.len() * self.dimensions;
        if queries.len() != expected || targets.len() > self.most {
            let found = queries.len();
            return Err(BridgeError::Vectors { expected, found });
        }
        match targets.iter().find(|target| **target as usize >= self.groups.count()) {
            Some(target) => Err(BridgeError::Vectors {
                expected: self.groups.count(),
                found: *target as usize,
            }),
            None => Ok(()),
        }
    }
}

/// `-log sum over own of softmax(line / tau)`, and the shares of `own` in the softmax over them alone. Turns the line
/// into `softmax(line / tau) / (tau rows)`, the gradient of the mean loss by the scores but for the own ones' part.
pub fn softmax_loss(line: &mut [f32], own: Range<usize>, tau: f32, rows: usize) -> (f64, Vec<f32>) {
    let most = line.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let best = line[own.clone()].iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut shares: Vec<f32> = line[own].iter().map(|score| ((score - best) / tau).exp()).collect();
    let all: f32 = shares.iter().sum();
    shares.iter_mut().for_each(|share| *share /= all);
    let mut sum = 0.0f64;
    for score in line.iter_mut() {
        *score = ((*score - most) / tau).exp();
        sum += f64::from(*score);
    }
    let factor = 1.0 / (sum as f32 * tau * rows as f32);
    line.iter_mut().for_each(|score| *score *= factor);
    let loss = sum.ln() - f64::from((best - most) / tau) - f64::from(all).ln();
    (loss, shares)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Six candidates in the groups 0..1, 1..4, 4..6, against the formula in f64 and the slopes of the loss.
    #[test]
    fn the_loss_of_groups_by_hand() {
        let (pool, tau) = (Pool::new(1).unwrap(), 0.5f32);
        let groups = Groups::of(6, |_, next| ![1, 4].contains(&next));
        assert_eq!(
            (0..3).map(|group| groups.members(group)).collect::<Vec<_>>(),
            [0..1, 1..4, 4..6]
        );
        assert_eq!(groups.numbers(), [0, 1, 1, 1, 2, 2]);
        assert_eq!(groups.members(3), 0..0);
        let passages = vec![1.0, 0.0, 0.6, 0.8, 0.0, 1.0, -1.0, 0.0, 0.8, -0.6, 0.0, -1.0];
        let candidates = Candidates::grouped(&pool, passages.clone(), 2, 4, groups.clone()).unwrap();
        let queries = [0.8f32, 0.6, 0.0, -1.0];
        let targets = [1u32, 2];
        let (loss, gradient) = candidates.loss(&pool, &queries, &targets, tau).unwrap();
        let by_hand = |queries: &[f32]| -> f64 {
            let each = queries.chunks(2).zip(targets).map(|(query, target)| {
                let powers: Vec<f64> = passages
                    .chunks(2)
                    .map(|p| f64::from((p[0] * query[0] + p[1] * query[1]) / tau).exp())
                    .collect();
                let own: f64 = powers[groups.members(target)].iter().sum();
                -(own / powers.iter().sum::<f64>()).ln()
            });
            each.sum::<f64>() / 2.0
        };
        assert!((loss - by_hand(&queries)).abs() < 1e-6);
        for place in 0..queries.len() {
            let at = |change: f32| {
                let mut queries = queries;
                queries[place] += change;
                by_hand(&queries)
            };
            let slope = (at(1e-2) - at(-1e-2)) / 2e-2;
            assert!(
                (slope - f64::from(gradient[place])).abs() < 1e-3,
                "{place}: {slope} {gradient:?}"
            );
        }
        // The first query's best is (0.6, 0.8) of its own group: 0.96 over 0.8. The second's own comes first with (0,
        // -1).
        assert_eq!(candidates.ranks(&pool, &queries, &targets).unwrap(), [0, 0]);
        // For group 0 (score 0.8) only group 1 is higher, though two of its candidates may be.
        assert_eq!(candidates.ranks(&pool, &[0.6, 0.8], &[0]).unwrap(), [1]);
        assert!(candidates.loss(&pool, &queries, &[1, 3], tau).is_err());
    }
}
