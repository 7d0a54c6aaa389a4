//! Root-mean-square normalisation of rows: `x / sqrt(mean(x^2) + epsilon) * scale` (Zhang and Sennrich 2019).

use crate::compute::ComputeError;
use crate::compute::cpu::buffer::Buffer;
use crate::compute::cpu::level::{Kernel, Level, dispatch};
use crate::compute::cpu::simd::Simd;

/// Scale and epsilon.
pub struct RmsNorm {
    scale: Buffer<f32>,
    epsilon: f32,
}

impl RmsNorm {
    /// Copies the scales, one a column.
    pub fn new(scale: &[f32], epsilon: f32) -> Result<RmsNorm, ComputeError> {
        if scale.is_empty() {
            return Err(ComputeError::Shape("normalisation of rows without numbers".to_string()));
        }
        let mut norm = RmsNorm {
            scale: Buffer::zeroed(scale.len())?,
            epsilon,
        };
        norm.scale.copy_from_slice(scale);
        Ok(norm)
    }

    /// Elements of a row.
    pub fn width(&self) -> usize {
        self.scale.len()
    }

    /// Bytes of memory.
    pub fn memory(&self) -> usize {
        self.scale.len() * 4
    }

    /// Writes the normalised rows of `from` to `to`; both hold as many whole rows as the shorter of them.
    pub fn apply(&self, level: Level, from: &[f32], to: &mut [f32]) {
        // SAFETY: the kernel's rows have the length of the scales (`chunks_exact`).
        unsafe { dispatch(level, Apply { norm: self, from, to }) }
    }

    /// Normalises each row of `rows` in place.
    pub fn apply_in_place(&self, level: Level, rows: &mut [f32]) {
        // SAFETY: the kernel's rows have the length of the scales (`chunks_exact_mut`).
        unsafe { dispatch(level, InPlace { norm: self, rows }) }
    }

    /// The backward pass: adds to the rows of `dx` the gradient by the rows of `x`, from that by what they became. With
    /// `r = 1 / sqrt(mean(x^2) + epsilon)`: `dx = r scale dy - x r^3 / n sum(x scale dy)`.
    pub fn add_backward(&self, level: Level, x: &[f32], dy: &[f32], dx: &mut [f32]) {
        // SAFETY: the kernel's rows have the length of the scales (`chunks_exact`).
        unsafe { dispatch(level, AddBack { norm: self, x, dy, dx }) }
    }

    /// The backward pass of one row: `d` becomes the gradient by `x`.
    ///
    /// # Safety
    /// Both hold [`RmsNorm::width`] elements; the processor has the instructions of `S`.
    #[inline(always)]
    pub(in crate::compute) unsafe fn row_backward<S: Simd>(&self, x: *const f32, d: *mut f32) {
        // SAFETY: promised by the caller.
        unsafe { backward::<S>(x, d, d, &self.scale, self.epsilon, false) }
    }

    /// Normalises one row in place.
    ///
    /// # Safety
    /// `row` holds [`RmsNorm::width`] elements; the processor has the instructions of `S`.
    #[inline(always)]
    pub(in crate::compute) unsafe fn row<S: Simd>(&self, row: *mut f32) {
        // SAFETY: promised by the caller.
        unsafe { normalise::<S>(row, row, &self.scale, self.epsilon) }
    }
}

struct Apply<'a> {
    norm: &'a RmsNorm,
    from: &'a [f32],
    to: &'a mut [f32],
}

impl Kernel for Apply<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let width = self.norm.width();
        for (from, to) in self.from.chunks_exact(width).zip(self.to.chunks_exact_mut(width)) {
            // SAFETY: both rows have `width` elements.
            unsafe { normalise::<S>(from.as_ptr(), to.as_mut_ptr(), &self.norm.scale, self.norm.epsilon) }
        }
    }
}

struct AddBack<'a> {
    norm: &'a RmsNorm,
    x: &'a [f32],
    dy: &'a [f32],
    dx: &'a mut [f32],
}

impl Kernel for AddBack<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let width = self.norm.width();
        let rows = self.x.chunks_exact(width).zip(self.dy.chunks_exact(width));
        for ((x, dy), dx) in rows.zip(self.dx.chunks_exact_mut(width)) {
            let (scale, epsilon) = (&self.norm.scale, self.norm.epsilon);
            // SAFETY: all three rows have `width` elements.
            unsafe { backward::<S>(x.as_ptr(), dy.as_ptr(), dx.as_mut_ptr(), scale, epsilon, true) }
        }
    }
}

struct InPlace<'a> {
    norm: &'a RmsNorm,
    rows: &'a mut [f32],
}

impl Kernel for InPlace<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for row in self.rows.chunks_exact_mut(self.norm.width()) {
            // SAFETY: the row has as many elements as there are scales.
            unsafe { self.norm.row::<S>(row.as_mut_ptr()) }
        }
    }
}

/// One row; `from` and `to` may be the same.
///
/// # Safety
/// Both hold as many elements as `scale`; the processor has the instructions of `S`.
#[inline(always)]
unsafe fn normalise<S: Simd>(from: *const f32, to: *mut f32, scale: &[f32], epsilon: f32) {
    let width = scale.len();
    // SAFETY: all lanes are below `width`; the last part is read and written with its own number of lanes.
    unsafe {
        let mut squares = S::zero();
        for at in (0..width).step_by(S::LANES) {
            let x = S::load_first(from.add(at), (width - at).min(S::LANES));
            squares = S::fma(x, x, squares);
        }
        let factor = S::splat(1.0 / (S::sum(squares) / width as f32 + epsilon).sqrt());
        for at in (0..width).step_by(S::LANES) {
            let lanes = (width - at).min(S::LANES);
            let x = S::mul(S::load_first(from.add(at), lanes), factor);
            let y = S::mul(x, S::load_first(scale.as_ptr().add(at), lanes));
            S::store_first(to.add(at), y, lanes);
        }
    }
}

/// The backward pass of one row, to `dx` or added to it; `dy` and `dx` may be the same.
///
/// # Safety
/// All hold as many elements as `scale`; the processor has the instructions of `S`.
#[inline(always)]
unsafe fn backward<S: Simd>(x: *const f32, dy: *const f32, dx: *mut f32, scale: &[f32], epsilon: f32, add: bool) {
    let width = scale.len();
    // SAFETY: all lanes are below `width`; the last part is read and written with its own number of lanes.
    unsafe {
        let (mut squares, mut along) = (S::zero(), S::zero());
        for at in (0..width).step_by(S::LANES) {
            let lanes = (width - at).min(S::LANES);
            let (x, dy) = (S::load_first(x.add(at), lanes), S::load_first(dy.add(at), lanes));
            squares = S::fma(x, x, squares);
            along = S::fma(S::mul(x, dy), S::load_first(scale.as_ptr().add(at), lanes), along);
        }
        let inverse = 1.0 / (S::sum(squares) / width as f32 + epsilon).sqrt();
        let factor = S::splat(-inverse.powi(3) * S::sum(along) / width as f32);
        let inverse = S::splat(inverse);
        for at in (0..width).step_by(S::LANES) {
            let lanes = (width - at).min(S::LANES);
            let scaled = S::mul(S::load_first(scale.as_ptr().add(at), lanes), inverse);
            let mut d = S::mul(S::load_first(x.add(at), lanes), factor);
            d = S::fma(S::load_first(dy.add(at), lanes), scaled, d);
            if add {
                d = S::add(d, S::load_first(dx.add(at), lanes));
            }
            S::store_first(dx.add(at), d, lanes);
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
                let mut y = vec![0f32; x.len()];
                let norm = RmsNorm::new(&scale, 1e-6).unwrap();
                norm.apply(level, &x, &mut y);
                let mut in_place = x.clone();
                norm.apply_in_place(level, &mut in_place);
                assert_eq!(in_place, y);
                for (x, y) in x.chunks(width).zip(y.chunks(width)) {
                    let square = x.iter().map(|v| (*v as f64).powi(2)).sum::<f64>() / width as f64;
                    for i in 0..width {
                        let expected = x[i] as f64 / (square + 1e-6).sqrt() * scale[i] as f64;
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

    #[test]
    fn the_way_back_equals_the_formula() {
        for level in Level::available() {
            for width in [1usize, 3, 16, 37, 384] {
                let number = |i: usize, by: usize| ((i * by % 101) as f32 - 40.0) / 7.0;
                let x: Vec<f32> = (0..width * 3).map(|i| number(i, 37)).collect();
                let dy: Vec<f32> = (0..width * 3).map(|i| number(i, 53) / 9.0).collect();
                let scale: Vec<f32> = (0..width).map(|i| 0.5 + i as f32 / 100.0).collect();
                let norm = RmsNorm::new(&scale, 1e-6).unwrap();
                let mut dx = vec![0.25f32; x.len()];
                norm.add_backward(level, &x, &dy, &mut dx);
                for (row, dx) in dx.chunks(width).enumerate() {
                    let (x, dy) = (&x[row * width..][..width], &dy[row * width..][..width]);
                    let square = x.iter().map(|v| (*v as f64).powi(2)).sum::<f64>() / width as f64;
                    let inverse = 1.0 / (square + 1e-6).sqrt();
                    let along: f64 = (0..width).map(|i| x[i] as f64 * dy[i] as f64 * scale[i] as f64).sum();
                    for i in 0..width {
                        let straight = inverse * scale[i] as f64 * dy[i] as f64;
                        let want = 0.25 + straight - x[i] as f64 * inverse.powi(3) * along / width as f64;
                        assert!(
                            (dx[i] as f64 - want).abs() < 1e-4,
                            "{level:?} {width}: {} {want}",
                            dx[i]
                        );
                    }
                }
            }
        }
    }
}
