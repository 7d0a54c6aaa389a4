//! Adding a product of two thin matrices to a matrix: how a low-rank adapter is merged into weights.

use super::gemm::Epilogue;
use super::linear::{Linear, Precision, Rows};
use crate::compute::ComputeError;
use crate::compute::cpu::buffer::Shared;
use crate::compute::cpu::level::Level;

/// Adds `scale B A` to `weights` (rows of `inputs` elements) in f32: `a` has `rank` rows of `inputs` elements, `b` for
/// each row of the weights `rank` elements.
pub fn add_low_rank(
    level: Level,
    weights: &mut [f32],
    inputs: usize,
    a: &[f32],
    b: &[f32],
    scale: f32,
) -> Result<(), ComputeError> {
    let rank = a.len() / inputs.max(1);
    let outputs = weights.len() / inputs.max(1);
    if rank == 0 || a.len() != rank * inputs || weights.len() != outputs * inputs || b.len() != outputs * rank {
        let (w, a, b) = (weights.len(), a.len(), b.len());
        return Err(ComputeError::Shape(format!(
            "a product of {b} and {a} numbers for {w} weights of {inputs} inputs"
        )));
    }
    let transposed: Vec<f32> = (0..inputs)
        .flat_map(|i| (0..rank).map(move |k| a[k * inputs + i]))
        .collect();
    let right = Linear::new(level, Precision::F32, &transposed, &vec![0.0; inputs], rank)?;
    let left: Vec<f32> = b.iter().map(|number| number * scale).collect();
    let mut rows = Rows::new(outputs, rank)?;
    let left = right.prepare(&left, &mut rows);
    // SAFETY: one task; the weights overlap neither side.
    unsafe {
        right.product(
            left,
            0..right.panels(),
            Shared::new(weights),
            0,
            inputs,
            Epilogue::Residual,
        )
    };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equals_the_formula() {
        let elements = |count: usize, step: usize| -> Vec<f32> {
            (0..count).map(|i| ((i * step % 101) as f32 - 50.0) / 40.0).collect()
        };
        for (outputs, inputs, rank) in [(3usize, 5usize, 1usize), (40, 24, 4), (17, 70, 9)] {
            let (a, b) = (elements(rank * inputs, 37), elements(outputs * rank, 53));
            let before = elements(outputs * inputs, 29);
            for level in Level::available() {
                let mut weights = before.clone();
                add_low_rank(level, &mut weights, inputs, &a, &b, 0.5).unwrap();
                for (at, found) in weights.iter().enumerate() {
                    let (o, i) = (at / inputs, at % inputs);
                    let product: f64 = (0..rank)
                        .map(|k| b[o * rank + k] as f64 * a[k * inputs + i] as f64)
                        .sum();
                    let want = before[at] as f64 + 0.5 * product;
                    assert!((*found as f64 - want).abs() < 1e-5, "{level:?} {found} {want}");
                }
            }
        }
        assert!(add_low_rank(Level::Portable, &mut [0.0; 6], 3, &[1.0; 3], &[1.0; 3], 1.0).is_err());
    }
}
