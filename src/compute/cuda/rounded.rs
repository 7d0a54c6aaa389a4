//! Weights as the products take them.

use super::super::ComputeError;
use crate::compute::cpu::memory::collected;
use half::bf16;

/// The elements rounded to bf16.
pub(super) fn rounded(elements: &[f32]) -> Result<Vec<bf16>, ComputeError> {
    collected(elements.iter().map(|number| bf16::from_f32(*number)))
}
