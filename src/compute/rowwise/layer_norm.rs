//! Layer normalisation of rows in place: `(x - mean) / sqrt(variance + epsilon) * scale + shift`.

use crate::compute::ComputeError;
use crate::compute::cpu::buffer::Buffer;
use crate::compute::cpu::level::{Kernel, Level, dispatch};
use crate::compute::cpu::simd::Simd;

/// Scale, shift and epsilon.
pub struct LayerNorm {
    scale: Buffer<f32>,
    shift: Buffer<f32>,
    epsilon: f32,
}

impl LayerNorm {
    /// Copies scale and shift, of equal length.
    pub fn new(scale: &[f32], shift: &[f32], epsilon: f32) -> Result<LayerNorm, ComputeError> {
        if scale.len() != shift.len() || scale.is_empty() {
            let (a, b) = (scale.len(), shift.len());
            return Err(ComputeError::Shape(format!(
                "layer norm with {a} scales and {b} shifts"
            )));
        }
        let mut norm = LayerNorm {
            scale: Buffer::zeroed(scale.len())?,
            shift: Buffer::zeroed(shift.len())?,
            epsilon,
        };
        norm.scale.copy_from_slice(scale);
        norm.shift.copy_from_slice(shift);
        Ok(norm)
    }

    /// Bytes of memory.
    pub fn memory(&self) -> usize {
        (self.scale.len() + self.shift.len()) * 4
    }

    /// Normalises each row of `rows`, whose length is a multiple of the number of scales.
    pub fn apply(&self, level: Level, rows: &mut [f32]) {
        // SAFETY: the kernel's rows are of the length of scale and shift (`chunks_exact_mut`).
        unsafe { dispatch(level, Apply { norm: self, rows }) }
    }
}

struct Apply<'a> {
    norm: &'a LayerNorm,
    rows: &'a mut [f32],
}

impl Kernel for Apply<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let width = self.norm.scale.len();
        let whole = width / S::LANES * S::LANES;
        let rest = width - whole;
        for row in self.rows.chunks_exact_mut(width) {
            // SAFETY: all addresses are below `width`, in the row as in scale and shift; the rest is read and written
            // with its own number of lanes.
            unsafe {
                let x = row.as_mut_ptr();
                // Two sums each, so that one does not wait for the other.
                let mut sums = [S::load_first(x.add(whole), rest), S::zero()];
                let mut at = 0;
                while at + S::LANES < whole {
                    sums[0] = S::add(sums[0], S::load(x.add(at)));
                    sums[1] = S::add(sums[1], S::load(x.add(at + S::LANES)));
                    at += 2 * S::LANES;
                }
                if at < whole {
                    sums[0] = S::add(sums[0], S::load(x.add(at)));
                }
                let mean = S::splat(S::sum(S::add(sums[0], sums[1])) / width as f32);
                let mut squares = [S::zero(); 2];
                at = 0;
                while at + S::LANES < whole {
                    let d = [0, S::LANES].map(|next| S::sub(S::load(x.add(at + next)), mean));
                    squares = [S::fma(d[0], d[0], squares[0]), S::fma(d[1], d[1], squares[1])];
                    at += 2 * S::LANES;
                }
                if at < whole {
                    let d = S::sub(S::load(x.add(at)), mean);
                    squares[0] = S::fma(d, d, squares[0]);
                }
                let mut square = S::sum(S::add(squares[0], squares[1]));
                for number in &row[whole..] {
                    let d = number - S::largest(mean);
                    square += d * d;
                }
                let factor = S::splat(1.0 / (square / width as f32 + self.norm.epsilon).sqrt());
                let x = row.as_mut_ptr();
                let (scale, shift) = (self.norm.scale.as_ptr(), self.norm.shift.as_ptr());
                at = 0;
                while at < whole {
                    let d = S::mul(S::sub(S::load(x.add(at)), mean), factor);
                    S::store(x.add(at), S::fma(d, S::load(scale.add(at)), S::load(shift.add(at))));
                    at += S::LANES;
                }
                if rest > 0 {
                    let d = S::mul(S::sub(S::load_first(x.add(whole), rest), mean), factor);
                    let scale = S::load_first(scale.add(whole), rest);
                    let y = S::fma(d, scale, S::load_first(shift.add(whole), rest));
                    S::store_first(x.add(whole), y, rest);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equals_the_formula() {
        for level in Level::available() {
            for width in [1usize, 3, 16, 37, 384] {
                let x: Vec<f32> = (0..width * 3).map(|i| ((i * 37 % 101) as f32 - 40.0) / 7.0).collect();
                let scale: Vec<f32> = (0..width).map(|i| 0.5 + i as f32 / 100.0).collect();
                let shift: Vec<f32> = (0..width).map(|i| i as f32 / 50.0 - 1.0).collect();
                let mut y = x.clone();
                LayerNorm::new(&scale, &shift, 1e-5).unwrap().apply(level, &mut y);
                for (x, y) in x.chunks(width).zip(y.chunks(width)) {
                    let mean = x.iter().map(|v| *v as f64).sum::<f64>() / width as f64;
                    let variance = x.iter().map(|v| (*v as f64 - mean).powi(2)).sum::<f64>() / width as f64;
                    for i in 0..width {
                        let normal = (x[i] as f64 - mean) / (variance + 1e-5).sqrt();
                        let expected = normal * scale[i] as f64 + shift[i] as f64;
                        assert!(
                            (y[i] as f64 - expected).abs() < 1e-4,
                            "{level:?} {width}: {} {expected}",
                            y[i]
                        );
                    }
                }
            }
        }
    }
}
