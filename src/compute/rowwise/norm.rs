//! The two kinds of normalisation of a row of states.

use super::layer_norm::LayerNorm;
use super::rms_norm::RmsNorm;
use crate::compute::cpu::level::Level;

/// A normalisation of rows.
pub enum Norm {
    /// By the root of the mean square.
    Rms(RmsNorm),
    /// By mean and variance.
    Layer(LayerNorm),
}

impl Norm {
    /// Bytes of memory.
    pub fn memory(&self) -> usize {
        match self {
            Norm::Rms(norm) => norm.memory(),
            Norm::Layer(norm) => norm.memory(),
        }
    }

    /// Writes the normalised rows of `from` to `to`, of equal length: whole rows.
    pub fn apply(&self, level: Level, from: &[f32], to: &mut [f32]) {
        match self {
            Norm::Rms(norm) => norm.apply(level, from, to),
            Norm::Layer(norm) => {
                to.copy_from_slice(from);
                norm.apply(level, to);
            }
        }
    }

    /// Normalises each row of `rows` in place.
    pub fn apply_in_place(&self, level: Level, rows: &mut [f32]) {
        match self {
            Norm::Rms(norm) => norm.apply_in_place(level, rows),
            Norm::Layer(norm) => norm.apply(level, rows),
        }
    }
}
