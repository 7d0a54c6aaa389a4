//! Random rotation in O(d log d): rounds of random signs, Hadamard transforms and a Kac mixing step.
//!
//! A vector of `d` components is padded with zeros to a multiple of 64. Each of four rounds flips signs, applies an
//! orthonormal Walsh-Hadamard transform to the longest power-of-two prefix (odd rounds: suffix) and, where the length
//! is no power of two, mixes the two halves by (x+y)/sqrt2, (x-y)/sqrt2. Every step is orthogonal, so distances and
//! inner products are kept. The signs come from a seed alone: the rotation is never stored.

use crate::random::splitmix64;

/// Rounds of signs and transform; fewer leave sparse inputs visibly structured.
const ROUNDS: usize = 4;

/// A rotation of vectors with a fixed number of dimensions.
#[derive(Clone, Debug)]
pub struct Rotation {
    dimensions: usize,
    padded: usize,
    signs: Vec<f32>,
}

/// The number of dimensions after padding: the next multiple of 64.
pub fn padded_dimensions(dimensions: usize) -> usize {
    dimensions.max(1).div_ceil(64) * 64
}

impl Rotation {
    /// The rotation of `dimensions` components that belongs to `seed`.
    pub fn new(dimensions: usize, seed: u64) -> Self {
        let padded = padded_dimensions(dimensions);
        let mut state = seed;
        let mut signs = Vec::with_capacity(ROUNDS * padded);
        for _ in 0..ROUNDS * padded / 64 {
            let bits = splitmix64(&mut state);
            signs.extend((0..64).map(|i| if bits >> i & 1 == 1 { -1.0f32 } else { 1.0 }));
        }
        Rotation {
            dimensions,
            padded,
            signs,
        }
    }

    /// Components of a rotated vector.
    pub fn padded(&self) -> usize {
        self.padded
    }

    /// The signs of all rounds, one round behind the other: what a GPU needs to rotate alike.
    pub fn signs(&self) -> &[f32] {
        &self.signs
    }

    /// Rotates `vector` (at most `dimensions` components are read) into `out` (resized to [`Rotation::padded`]).
    pub fn apply(&self, vector: &[f32], out: &mut Vec<f32>) {
        out.clear();
        out.extend_from_slice(&vector[..vector.len().min(self.dimensions)]);
        out.resize(self.padded, 0.0);
        let power = 1usize << self.padded.ilog2();
        let half = self.padded / 2;
        for round in 0..ROUNDS {
            let signs = &self.signs[round * self.padded..(round + 1) * self.padded];
            out.iter_mut().zip(signs).for_each(|(x, s)| *x *= s);
            let part = if round % 2 == 0 {
                &mut out[..power]
            } else {
                &mut out[self.padded - power..]
            };
            hadamard(part);
            if power != self.padded {
                let (low, high) = out.split_at_mut(half);
                for (x, y) in low.iter_mut().zip(high) {
                    let (a, b) = (*x, *y);
                    *x = (a + b) * std::f32::consts::FRAC_1_SQRT_2;
                    *y = (a - b) * std::f32::consts::FRAC_1_SQRT_2;
                }
            }
        }
    }
}

/// In-place orthonormal Walsh-Hadamard transform; the length is a power of two.
fn hadamard(x: &mut [f32]) {
    let n = x.len();
    let mut width = 1;
    // The narrow steps are written out so that they become shuffles, not scalar code.
    while width < n {
        if width < 8 {
            for pair in x.chunks_exact_mut(2 * width) {
                let (low, high) = pair.split_at_mut(width);
                for (a, b) in low.iter_mut().zip(high) {
                    (*a, *b) = (*a + *b, *a - *b);
                }
            }
        } else {
            for pair in x.chunks_exact_mut(2 * width) {
                let (low, high) = pair.split_at_mut(width);
                for (a, b) in low.chunks_exact_mut(8).zip(high.chunks_exact_mut(8)) {
                    for i in 0..8 {
                        (a[i], b[i]) = (a[i] + b[i], a[i] - b[i]);
                    }
                }
            }
        }
        width *= 2;
    }
    let scale = 1.0 / (n as f32).sqrt();
    x.iter_mut().for_each(|v| *v *= scale);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_inner_products() {
        for d in [1, 2, 3, 50, 64, 100, 384, 1000, 1536, 4096, 16000] {
            let rotation = Rotation::new(d, 7);
            let mut state = d as u64;
            let mut random = || (splitmix64(&mut state) >> 40) as f32 / (1 << 24) as f32 - 0.5;
            let a: Vec<f32> = (0..d).map(|_| random()).collect();
            let b: Vec<f32> = (0..d).map(|_| random()).collect();
            let (mut ra, mut rb) = (Vec::new(), Vec::new());
            rotation.apply(&a, &mut ra);
            rotation.apply(&b, &mut rb);
            let dot = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(&x, &y)| x as f64 * y as f64).sum::<f64>();
            assert!(
                (dot(&a, &b) - dot(&ra, &rb)).abs() < 1e-4 * (1.0 + dot(&a, &a)),
                "d={d}"
            );
            assert_eq!(ra.len() % 64, 0);
        }
    }

    #[test]
    fn spreads_a_single_component() {
        let rotation = Rotation::new(384, 3);
        let mut unit = vec![0.0; 384];
        unit[5] = 1.0;
        let mut out = Vec::new();
        rotation.apply(&unit, &mut out);
        let largest = out.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        assert!(largest < 0.3, "{largest}");
    }
}
