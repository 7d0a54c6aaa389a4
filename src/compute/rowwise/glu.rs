//! The gate of a feed-forward block: `f(g) u` with an activation `f` (Shazeer, "GLU Variants Improve Transformer", 2020).

use super::activation::{Activation, activate, exp};
use crate::compute::cpu::level::{Kernel, Level, dispatch};
use crate::compute::cpu::simd::Simd;

/// Rows of `2 width` elements, gates before what they gate, become rows of `width` elements.
pub fn glu(level: Level, activation: Activation, rows: &[f32], width: usize, out: &mut [f32]) {
    // SAFETY: the kernel's rows are whole (`chunks_exact`).
    unsafe {
        dispatch(
            level,
            Glu {
                activation,
                rows,
                width,
                out,
            },
        )
    }
}

/// The backward pass of [`glu`] with SiLU: rows of gates and what they gate become the gradients by them, from the rows `by`
/// of the gradient by what came out. With `s = 1 / (1 + e^-g)`: `dg = d u s (1 + g (1 - s))`, `du = d g s`.
pub fn glu_backward(level: Level, rows: &mut [f32], width: usize, by: &[f32]) {
    // SAFETY: the kernel's rows are whole (`chunks_exact`).
    unsafe { dispatch(level, GluBackward { rows, width, by }) }
}

struct GluBackward<'a> {
    rows: &'a mut [f32],
    width: usize,
    by: &'a [f32],
}

impl Kernel for GluBackward<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let width = self.width;
        for (row, by) in self.rows.chunks_exact_mut(2 * width).zip(self.by.chunks_exact(width)) {
            let (gates, values) = row.split_at_mut(width);
            for at in (0..width).step_by(S::LANES) {
                let lanes = (width - at).min(S::LANES);
                // SAFETY: `lanes` elements follow in all three rows.
                unsafe {
                    let (gates, values) = (gates.as_mut_ptr().add(at), values.as_mut_ptr().add(at));
                    let (gate, value) = (S::load_first(gates, lanes), S::load_first(values, lanes));
                    let by = S::load_first(by.as_ptr().add(at), lanes);
                    let one = S::splat(1.0);
                    let share = S::div(one, S::add(exp::<S>(S::sub(S::zero(), gate)), one));
                    let part = S::mul(by, share);
                    let slope = S::fma(gate, S::sub(one, share), one);
                    S::store_first(gates, S::mul(S::mul(part, value), slope), lanes);
                    S::store_first(values, S::mul(part, gate), lanes);
                }
            }
        }
    }
}

struct Glu<'a> {
    activation: Activation,
    rows: &'a [f32],
    width: usize,
    out: &'a mut [f32],
}

impl Kernel for Glu<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let width = self.width;
        for (row, out) in self.rows.chunks_exact(2 * width).zip(self.out.chunks_exact_mut(width)) {
            let (gates, values) = row.split_at(width);
            for at in (0..width).step_by(S::LANES) {
                let lanes = (width - at).min(S::LANES);
                // SAFETY: `lanes` elements follow in all three rows.
                unsafe {
                    let gate = S::load_first(gates.as_ptr().add(at), lanes);
                    let value = S::load_first(values.as_ptr().add(at), lanes);
                    let y = S::mul(activate::<S>(self.activation, gate), value);
                    S::store_first(out.as_mut_ptr().add(at), y, lanes);
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
            for width in [1usize, 7, 64, 100] {
                let rows: Vec<f32> = (0..2 * 2 * width)
                    .map(|i| ((i * 53 % 211) as f32 - 100.0) / 8.0)
                    .collect();
                let mut out = vec![0f32; 2 * width];
                glu(level, Activation::Silu, &rows, width, &mut out);
                for (row, out) in rows.chunks(2 * width).zip(out.chunks(width)) {
                    for i in 0..width {
                        let (gate, value) = (row[i] as f64, row[width + i] as f64);
                        let expected = gate / (1.0 + (-gate).exp()) * value;
                        assert!(
                            (out[i] as f64 - expected).abs() < 2e-5,
                            "{level:?} {} {expected}",
                            out[i]
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn the_backward_pass_equals_the_formula() {
        for level in Level::available() {
            for width in [1usize, 7, 64, 100] {
                let rows: Vec<f32> = (0..2 * 2 * width)
                    .map(|i| ((i * 53 % 211) as f32 - 100.0) / 8.0)
                    .collect();
                let by: Vec<f32> = (0..2 * width).map(|i| ((i * 31 % 17) as f32 - 8.0) / 4.0).collect();
                let mut found = rows.clone();
                glu_backward(level, &mut found, width, &by);
                for (number, (row, found)) in rows.chunks(2 * width).zip(found.chunks(2 * width)).enumerate() {
                    for i in 0..width {
                        let (gate, value) = (row[i] as f64, row[width + i] as f64);
                        let d = by[number * width + i] as f64;
                        let share = 1.0 / (1.0 + (-gate).exp());
                        let want = [d * value * share * (1.0 + gate * (1.0 - share)), d * gate * share];
                        for (found, want) in [found[i], found[width + i]].into_iter().zip(want) {
                            assert!((found as f64 - want).abs() < 5e-5, "{level:?} {gate}: {found} {want}");
                        }
                    }
                }
            }
        }
    }
}
