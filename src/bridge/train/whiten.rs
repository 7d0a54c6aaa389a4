//! The metric in which a query is compared: directions in which the passages vary much count less.
//!
//! With `C` the covariance of the passages' vectors and `m` the mean of its eigenvalues, the metric is `S = (C + ridge
//! m I)^(-power)`, scaled to a largest eigenvalue of 1; a query's vector becomes `e S`, of unit length. A query that is
//! a piece of a passage differs from it mostly along the directions in which all passages differ; at power 1/2 the
//! passages' own vectors vary alike in all directions. Nothing is trained: power 0 is the identity.

use super::eigen::{self, Ask};
use crate::bridge::BridgeError;
use crate::compute::memory::zeros;
use crate::compute::rowwise::pooling::normalize;

/// Passages that the covariance is taken of, spread evenly.
const MOST_PASSAGES: usize = 20_000;
/// Most dimensions for which the metric is computed: its eigenvectors cost the third power.
pub const MOST_DIMENSIONS: usize = 1024;
/// Passages between two questions whether to stop: some ten milliseconds.
const ASKED: usize = 32;

/// The passages' spread: directions and how much they vary.
pub struct Spread {
    dimensions: usize,
    values: Vec<f64>,
    /// Columns are directions.
    directions: Vec<f64>,
}

impl Spread {
    /// Of row-major vectors. `None` for fewer than two, for more than [`MOST_DIMENSIONS`], or where they hold something
    /// that is not finite.
    ///
    /// # Errors
    /// Those of `ask`, which is called every few milliseconds.
    pub fn of(vectors: &[f32], dimensions: usize, ask: Ask<'_>) -> Result<Option<Spread>, BridgeError> {
        let count = vectors.len() / dimensions.max(1);
        if count < 2 || dimensions > MOST_DIMENSIONS {
            return Ok(None);
        }
        let step = count.div_ceil(MOST_PASSAGES);
        let rows = || vectors.chunks_exact(dimensions).step_by(step);
        let used = count.div_ceil(step) as f64;
        let mut mean = vec![0.0f64; dimensions];
        for row in rows() {
            mean.iter_mut()
                .zip(row)
                .for_each(|(sum, x)| *sum += f64::from(*x) / used);
        }
        let mut covariance = zeros::<f64>(dimensions * dimensions)?;
        let mut centred = vec![0.0f64; dimensions];
        for (number, row) in rows().enumerate() {
            if number.is_multiple_of(ASKED) {
                ask()?;
            }
            for ((to, x), mean) in centred.iter_mut().zip(row).zip(&mean) {
                *to = f64::from(*x) - mean;
            }
            for (i, line) in covariance.chunks_exact_mut(dimensions).enumerate() {
                let factor = centred[i] / used;
                let lower = line.iter_mut().zip(&centred).take(i + 1);
                lower.for_each(|(sum, x)| *sum += factor * x);
            }
        }
        for i in 0..dimensions {
            for j in 0..i {
                covariance[j * dimensions + i] = covariance[i * dimensions + j];
            }
        }
        let solved = eigen::symmetric(&covariance, dimensions, ask)?;
        Ok(solved.map(|(values, directions)| Spread {
            dimensions,
            values,
            directions,
        }))
    }

    /// The metric of vectors ([`Spread::of`], [`Spread::metric`]).
    ///
    /// # Errors
    /// Those of `ask`.
    pub fn metric_of(
        vectors: &[f32],
        dimensions: usize,
        power: f64,
        ridge: f64,
        ask: Ask<'_>,
    ) -> Result<Option<Vec<f32>>, BridgeError> {
        match Spread::of(vectors, dimensions, ask)? {
            Some(spread) => spread.metric(power, ridge, ask),
            None => Ok(None),
        }
    }

    /// `S`, row-major. `None` for power 0 or where the vectors do not vary.
    ///
    /// # Errors
    /// Those of `ask`.
    pub fn metric(&self, power: f64, ridge: f64, ask: Ask<'_>) -> Result<Option<Vec<f32>>, BridgeError> {
        let n = self.dimensions;
        let mean = self.values.iter().map(|value| value.max(0.0)).sum::<f64>() / n as f64;
        if power <= 0.0 || mean <= 0.0 {
            return Ok(None);
        }
        let factors: Vec<f64> = self
            .values
            .iter()
            .map(|value| (value.max(0.0) + ridge.max(1e-6) * mean).powf(-power))
            .collect();
        let most = factors.iter().copied().fold(0.0, f64::max);
        let mut metric = zeros::<f32>(n * n)?;
        let mut scaled = vec![0.0f64; n];
        for i in 0..n {
            ask()?;
            let row = &self.directions[i * n..(i + 1) * n];
            for ((to, x), factor) in scaled.iter_mut().zip(row).zip(&factors) {
                *to = x * factor / most;
            }
            for j in 0..=i {
                let other = &self.directions[j * n..(j + 1) * n];
                let sum: f64 = scaled.iter().zip(other).map(|(a, b)| a * b).sum();
                metric[i * n + j] = sum as f32;
                metric[j * n + i] = sum as f32;
            }
        }
        Ok(Some(metric))
    }
}

/// `vector S` with unit length.
pub fn apply(metric: &[f32], vector: &[f32]) -> Vec<f32> {
    let mut out = vec![0.0f32; vector.len()];
    for (x, row) in vector.iter().zip(metric.chunks_exact(vector.len().max(1))) {
        out.iter_mut().zip(row).for_each(|(sum, s)| *sum += x * s);
    }
    normalize(&mut out);
    out
}

/// Checks that a metric has the dimensions' shape.
pub(in crate::bridge) fn check(metric: &[f32], dimensions: usize) -> Result<(), BridgeError> {
    match metric.len() == dimensions * dimensions {
        true => Ok(()),
        false => Err(BridgeError::Vectors {
            expected: dimensions * dimensions,
            found: metric.len(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_has_a_limit_and_can_be_stopped() {
        let vectors: Vec<f32> = (0..200 * 8).map(|at| ((at * 7919) % 101) as f32).collect();
        let mut asked = 0;
        let mut count = || -> Result<(), BridgeError> {
            asked += 1;
            Ok(())
        };
        let metric = Spread::metric_of(&vectors, 8, 0.5, 0.3, &mut count).expect("nobody stops it");
        assert!(metric.is_some() && asked > 200 / ASKED);
        for most in 0..asked {
            let mut left = most;
            let mut ask = || -> Result<(), BridgeError> {
                left = usize::checked_sub(left, 1).ok_or(BridgeError::Stopped)?;
                Ok(())
            };
            let stopped = Spread::metric_of(&vectors, 8, 0.5, 0.3, &mut ask);
            assert!(matches!(stopped, Err(BridgeError::Stopped)), "{most}");
        }
        let wide = vec![1.0; 3 * (MOST_DIMENSIONS + 1)];
        let mut never = || -> Result<(), BridgeError> { Err(BridgeError::Stopped) };
        assert!(matches!(Spread::of(&wide, MOST_DIMENSIONS + 1, &mut never), Ok(None)));
    }
}
