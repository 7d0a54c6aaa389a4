//! The contrastive loss: a query against all candidate passages at once.
//!
//! `loss = -log softmax(q P^T / tau)[its passage]`, the mean over a batch. Every candidate that is not the query's own is
//! a negative, so the hardest ones are always among them.

use crate::bridge::BridgeError;
use crate::compute::apply::Apply;
use crate::compute::cpu::Level;
use crate::compute::{Linear, Pool, Precision};

/// Candidate passages, packed for products with batches of queries.
pub struct Candidates {
    count: usize,
    dimensions: usize,
    vectors: Vec<f32>,
    /// Queries to scores.
    scores: Linear,
    /// Scores to sums of passages.
    sums: Linear,
    score_memory: Apply,
    sum_memory: Apply,
    most: usize,
}

impl Candidates {
    /// Packs row-major vectors for batches of at most `most` queries.
    pub fn new(pool: &Pool, vectors: Vec<f32>, dimensions: usize, most: usize) -> Result<Candidates, BridgeError> {
        let count = vectors.len() / dimensions.max(1);
        let level = Level::detect();
        let linear = |weights: &[f32], inputs: usize, outputs: usize| {
            Linear::new(level, Precision::F32, weights, &vec![0.0; outputs], inputs)
        };
        let mut transposed = vec![0.0f32; vectors.len()];
        for (row, vector) in vectors.chunks_exact(dimensions.max(1)).enumerate() {
            for (column, number) in vector.iter().enumerate() {
                transposed[column * count + row] = *number;
            }
        }
        Ok(Candidates {
            scores: linear(&vectors, dimensions, count)?,
            sums: linear(&transposed, count, dimensions)?,
            score_memory: Apply::new(pool, dimensions)?,
            sum_memory: Apply::new(pool, count)?,
            count,
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
        let mut scores = vec![0.0f32; rows * self.count];
        self.score_memory.run(pool, &self.scores, queries, &mut scores)?;
        Ok(scores)
    }

    /// The mean loss of a batch, and its gradient by the queries (row-major, as the queries). `targets` are positions of
    /// candidates.
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
        for (line, target) in scores.chunks_exact_mut(self.count).zip(targets) {
            let most = line.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let own = line[*target as usize];
            let mut sum = 0.0f64;
            for score in line.iter_mut() {
                *score = ((*score - most) / tau).exp();
                sum += f64::from(*score);
            }
            loss += sum.ln() - f64::from((own - most) / tau);
            let factor = 1.0 / (sum as f32 * tau * rows as f32);
            line.iter_mut().for_each(|score| *score *= factor);
        }
        let mut gradient = vec![0.0f32; rows * self.dimensions];
        self.sum_memory.run(pool, &self.sums, &scores, &mut gradient)?;
        let factor = 1.0 / (tau * rows as f32);
        for (line, target) in gradient.chunks_exact_mut(self.dimensions).zip(targets) {
            let own = &self.vectors[*target as usize * self.dimensions..][..self.dimensions];
            line.iter_mut().zip(own).for_each(|(sum, x)| *sum -= factor * x);
        }
        Ok((loss / rows.max(1) as f64, gradient))
    }

    /// Candidates that score higher than each query's own: 0 where it comes first.
    pub fn ranks(&self, pool: &Pool, queries: &[f32], targets: &[u32]) -> Result<Vec<u32>, BridgeError> {
        let mut ranks = Vec::with_capacity(targets.len());
        for (queries, targets) in queries
            .chunks(self.most * self.dimensions)
            .zip(targets.chunks(self.most))
        {
            self.check(queries, targets)?;
            let scores = self.scores(pool, queries)?;
            for (line, target) in scores.chunks_exact(self.count).zip(targets) {
                let own = line[*target as usize];
                ranks.push(line.iter().filter(|score| **score > own).count() as u32);
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
        match targets.iter().find(|target| **target as usize >= self.count) {
            Some(target) => Err(BridgeError::Vectors {
                expected: self.count,
                found: *target as usize,
            }),
            None => Ok(()),
        }
    }
}
