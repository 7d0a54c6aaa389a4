//! Rotary position embedding of queries and keys, and the normalisation of their heads before it.
//!
//! Elements `i` and `i + d/2` of a head are rotated by the angle `position / base^(2i/d)` (Su et al., "RoFormer", 2021, in
//! the half-split layout that published decoders use). Angles are products in f32, as the models were trained with.

use super::shape::Shape;
use crate::compute::ComputeError;
use crate::compute::cpu::buffer::{Buffer, Shared};
use crate::compute::cpu::level::{Kernel, Level, dispatch};
use crate::compute::cpu::pool::Pool;
use crate::compute::cpu::simd::Simd;
use crate::compute::rowwise::rms_norm::RmsNorm;

/// Positions of a task.
const TASK_POSITIONS: usize = 256;

/// Angles' frequencies, one for each pair of a head's elements.
pub struct Rope {
    frequencies: Vec<f32>,
}

/// Cosines and sines of the first positions: for each position `width / 2` cosines, then as many sines.
pub struct Rotations {
    elements: Buffer<f32>,
    pairs: usize,
}

impl Rope {
    /// For heads of `width` elements, an even number.
    pub fn new(width: usize, base: f64) -> Result<Rope, ComputeError> {
        if width == 0 || !width.is_multiple_of(2) {
            return Err(ComputeError::Shape(format!(
                "rotary embedding of heads of {width} numbers"
            )));
        }
        let frequency = |i: usize| 1.0 / base.powf(2.0 * i as f64 / width as f64) as f32;
        Ok(Rope {
            frequencies: (0..width / 2).map(frequency).collect(),
        })
    }

    /// With the frequency of each pair of a head's elements, for models that stretch them.
    pub fn with_frequencies(frequencies: Vec<f32>) -> Rope {
        Rope { frequencies }
    }

    /// Cosines and sines of the positions below `length`. `stop` is asked between tasks.
    pub fn rotations(&self, pool: &Pool, length: usize, stop: &dyn Fn() -> bool) -> Result<Rotations, ComputeError> {
        let pairs = self.frequencies.len();
        let mut elements = Buffer::zeroed(length * pairs * 2)?;
        let shared = Shared::new(&mut elements);
        pool.run_until(length.div_ceil(TASK_POSITIONS), stop, |_, task| {
            let positions = task * TASK_POSITIONS..((task + 1) * TASK_POSITIONS).min(length);
            // SAFETY: each task has positions of its own.
            let own = unsafe { shared.part(positions.start * pairs * 2, positions.len() * pairs * 2) };
            for (row, position) in own.chunks_exact_mut(pairs * 2).zip(positions) {
                let (cosines, sines) = row.split_at_mut(pairs);
                for ((cosine, sine), frequency) in cosines.iter_mut().zip(sines).zip(&self.frequencies) {
                    (*sine, *cosine) = (position as f32 * frequency).sin_cos();
                }
            }
        })?;
        Ok(Rotations { elements, pairs })
    }
}

/// Normalises (where the model does) and rotates the queries and keys of some rows in place.
pub struct Rotate<'a> {
    pub shape: Shape,
    /// Rows of queries, keys and values.
    pub rows: &'a mut [f32],
    /// Position of each row in its sequence.
    pub positions: &'a [u32],
    pub rotations: &'a Rotations,
    pub query_norm: Option<&'a RmsNorm>,
    pub key_norm: Option<&'a RmsNorm>,
}

impl Rotate<'_> {
    /// Runs on all rows.
    pub fn run_on(self, level: Level) {
        let width = self.shape.width;
        assert_eq!(self.rotations.pairs * 2, width);
        assert!(
            [self.query_norm, self.key_norm]
                .iter()
                .flatten()
                .all(|norm| norm.width() == width)
        );
        // SAFETY: rows are whole (`chunks_exact_mut`), and widths are asserted.
        unsafe { dispatch(level, self) }
    }
}

impl Kernel for Rotate<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Shape {
            heads,
            key_heads,
            width,
            ..
        } = self.shape;
        let pairs = width / 2;
        for (row, position) in self.rows.chunks_exact_mut(self.shape.row()).zip(self.positions) {
            let at = *position as usize * width;
            let (cosines, sines) = self.rotations.elements[at..at + width].split_at(pairs);
            for (number, head) in row.chunks_exact_mut(width).take(heads + key_heads).enumerate() {
                let norm = if number < heads { self.query_norm } else { self.key_norm };
                // SAFETY: the head has `width` elements, cosines and sines half as many; every part is read and written
                // with its own number of lanes.
                unsafe {
                    let low = head.as_mut_ptr();
                    if let Some(norm) = norm {
                        norm.row::<S>(low);
                    }
                    let high = low.add(pairs);
                    for i in (0..pairs).step_by(S::LANES) {
                        let lanes = (pairs - i).min(S::LANES);
                        let (x, y) = (S::load_first(low.add(i), lanes), S::load_first(high.add(i), lanes));
                        let cosine = S::load_first(cosines.as_ptr().add(i), lanes);
                        let sine = S::load_first(sines.as_ptr().add(i), lanes);
                        S::store_first(low.add(i), S::sub(S::mul(x, cosine), S::mul(y, sine)), lanes);
                        S::store_first(high.add(i), S::fma(y, cosine, S::mul(x, sine)), lanes);
                    }
                }
            }
        }
    }
}

/// The backward pass of [`Rotate`]: gradients of some rows by queries and keys before they were normalised and rotated, in
/// place of those behind.
pub struct RotateBackward<'a> {
    pub shape: Shape,
    /// Gradients by rows of queries, keys and values.
    pub rows: &'a mut [f32],
    pub positions: &'a [u32],
    pub rotations: &'a Rotations,
    /// The same rows as they were before, and the norms, where the model has them.
    pub norms: Option<(&'a [f32], &'a RmsNorm, &'a RmsNorm)>,
}

impl RotateBackward<'_> {
    /// Runs on all rows.
    pub fn run_on(self, level: Level) {
        let width = self.shape.width;
        assert_eq!(self.rotations.pairs * 2, width);
        if let Some((before, query, key)) = &self.norms {
            assert!(before.len() >= self.rows.len() && query.width() == width && key.width() == width);
        }
        // SAFETY: rows are whole (`chunks_exact_mut`), and lengths are asserted.
        unsafe { dispatch(level, self) }
    }
}

impl Kernel for RotateBackward<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Shape {
            heads,
            key_heads,
            width,
            ..
        } = self.shape;
        let (pairs, row_elements) = (width / 2, self.shape.row());
        for (place, (row, position)) in self.rows.chunks_exact_mut(row_elements).zip(self.positions).enumerate() {
            let at = *position as usize * width;
            let (cosines, sines) = self.rotations.elements[at..at + width].split_at(pairs);
            for (number, head) in row.chunks_exact_mut(width).take(heads + key_heads).enumerate() {
                // SAFETY: the head has `width` elements, cosines and sines half as many; every part is read and written
                // with its own number of lanes.
                unsafe {
                    let low = head.as_mut_ptr();
                    let high = low.add(pairs);
                    for i in (0..pairs).step_by(S::LANES) {
                        let lanes = (pairs - i).min(S::LANES);
                        let (x, y) = (S::load_first(low.add(i), lanes), S::load_first(high.add(i), lanes));
                        let cosine = S::load_first(cosines.as_ptr().add(i), lanes);
                        let sine = S::load_first(sines.as_ptr().add(i), lanes);
                        S::store_first(low.add(i), S::fma(x, cosine, S::mul(y, sine)), lanes);
                        S::store_first(high.add(i), S::sub(S::mul(y, cosine), S::mul(x, sine)), lanes);
                    }
                    if let Some((before, query, key)) = self.norms {
                        let norm = if number < heads { query } else { key };
                        norm.row_backward::<S>(before[place * row_elements + number * width..][..width].as_ptr(), low);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The backward pass is the transpose of the derivative: `d/dt sum(w f(x + t v)) = sum(backward(w) v)`.
    #[test]
    fn the_backward_pass_is_the_derivative() {
        let shape = Shape {
            heads: 3,
            key_heads: 1,
            width: 34,
            causal: true,
            window: None,
        };
        let scale: Vec<f32> = (0..34).map(|i| 0.5 + i as f32 / 50.0).collect();
        let (query, key) = (
            RmsNorm::new(&scale, 1e-6).unwrap(),
            RmsNorm::new(&scale[..34], 1e-2).unwrap(),
        );
        let number = |i: usize, by: usize| ((i * by % 101) as f32 - 40.0) / 20.0;
        let rows: Vec<f32> = (0..2 * shape.row()).map(|i| number(i, 37)).collect();
        let weights: Vec<f32> = (0..rows.len()).map(|i| number(i, 29)).collect();
        let positions = [3u32, 90];
        let rotations = Rope::new(34, 1e4)
            .unwrap()
            .rotations(&Pool::new(1).unwrap(), 100, &|| false)
            .unwrap();
        for level in Level::available() {
            for norms in [false, true] {
                let value = |rows: &[f32]| -> f64 {
                    let mut rotated = rows.to_vec();
                    Rotate {
                        shape,
                        rows: &mut rotated,
                        positions: &positions,
                        rotations: &rotations,
                        query_norm: norms.then_some(&query),
                        key_norm: norms.then_some(&key),
                    }
                    .run_on(level);
                    rotated
                        .iter()
                        .zip(&weights)
                        .map(|(x, w)| f64::from(*x) * f64::from(*w))
                        .sum()
                };
                let mut gradient = weights.clone();
                RotateBackward {
                    shape,
                    rows: &mut gradient,
                    positions: &positions,
                    rotations: &rotations,
                    norms: norms.then_some((rows.as_slice(), &query, &key)),
                }
                .run_on(level);
                for place in (0..rows.len()).step_by(7) {
                    let moved = |by: f32| {
                        let mut rows = rows.clone();
                        rows[place] += by;
                        value(&rows)
                    };
                    let want = (moved(1e-2) - moved(-1e-2)) / 2e-2;
                    let found = f64::from(gradient[place]);
                    assert!((found - want).abs() < 2e-3, "{level:?} {norms} {place}: {found} {want}");
                }
            }
        }
    }

    #[test]
    fn equals_the_formula_and_leaves_values_alone() {
        for (heads, key_heads, width) in [(2usize, 1usize, 2usize), (4, 2, 8), (3, 3, 34), (2, 1, 128)] {
            let shape = Shape {
                heads,
                key_heads,
                width,
                causal: true,
                window: None,
            };
            let scale: Vec<f32> = (0..width).map(|i| 0.5 + i as f32 / 50.0).collect();
            let norm = RmsNorm::new(&scale, 1e-6).unwrap();
            let rows: Vec<f32> = (0..3 * shape.row())
                .map(|i| ((i * 37 % 101) as f32 - 40.0) / 20.0)
                .collect();
            let positions = [0u32, 5, 299];
            for level in Level::available() {
                let mut rotated = rows.clone();
                let rope = Rope::new(width, 10_000.0).unwrap();
                let rotations = rope.rotations(&Pool::new(2).unwrap(), 300, &|| false).unwrap();
                let rotate = Rotate {
                    shape,
                    rows: &mut rotated,
                    positions: &positions,
                    rotations: &rotations,
                    query_norm: Some(&norm),
                    key_norm: None,
                };
                rotate.run_on(level);
                for (place, position) in positions.iter().enumerate() {
                    let row = place * shape.row();
                    let values = (heads + key_heads) * width..shape.row();
                    assert_eq!(rotated[row..][values.clone()], rows[row..][values]);
                    for head in 0..heads + key_heads {
                        let x = &rows[row + head * width..][..width];
                        let square = x.iter().map(|x| (*x as f64).powi(2)).sum::<f64>() / width as f64;
                        let x: Vec<f64> = match head < heads {
                            true => (0..width)
                                .map(|i| x[i] as f64 * scale[i] as f64 / (square + 1e-6).sqrt())
                                .collect(),
                            false => x.iter().map(|x| *x as f64).collect(),
                        };
                        for i in 0..width / 2 {
                            let angle = *position as f64 / 10_000f64.powf(2.0 * i as f64 / width as f64);
                            let (a, b) = (x[i], x[i + width / 2]);
                            let found = &rotated[row + head * width..];
                            let (low, high) = (a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin());
                            assert!((found[i] as f64 - low).abs() < 1e-4, "{level:?} {width} {head} {i}");
                            assert!(
                                (found[i + width / 2] as f64 - high).abs() < 1e-4,
                                "{level:?} {width} {head} {i}"
                            );
                        }
                    }
                }
            }
        }
        assert!(Rope::new(7, 1e4).is_err());
    }
}
