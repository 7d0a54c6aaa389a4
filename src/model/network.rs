//! The forward pass of a model, whatever its family.

use super::weights::Weights;
use super::{Manifest, ModelError, Precision, bert, decoder};
use crate::compute::bert::{Bert, Packed};
use crate::compute::cpu::Level;
use crate::compute::decoder::Decoder;
use crate::compute::{Buffer, Pool};

/// Weights, packed for the kernels.
pub enum Network {
    /// BERT, RoBERTa and XLM-RoBERTa.
    Bert(Bert),
    /// Qwen3 and Mistral.
    Decoder(Decoder),
}

/// Checks that all tensors are there in the shapes of the configuration.
pub fn check(manifest: &Manifest, weights: &Weights) -> Result<(), ModelError> {
    if manifest.family.is_decoder() {
        decoder::check(manifest, weights)
    } else {
        bert::check(manifest, weights)
    }
}

impl Network {
    /// Reads the weights and packs them for kernels of at most `level`.
    pub fn load(
        manifest: &Manifest,
        weights: &Weights,
        level: Level,
        precision: Precision,
    ) -> Result<Network, ModelError> {
        if manifest.family.is_decoder() {
            Ok(Network::Decoder(decoder::load(manifest, weights, level, precision)?))
        } else {
            Ok(Network::Bert(bert::load(manifest, weights, level, precision)?))
        }
    }

    /// Token vectors of all sequences, rows in the order of the ids. `stop` is asked often.
    pub fn forward(&self, pool: &Pool, batch: &Packed, stop: &dyn Fn() -> bool) -> Result<Buffer<f32>, ModelError> {
        let states = match self {
            Network::Bert(bert) => bert.forward(pool, batch, stop),
            Network::Decoder(decoder) => decoder.forward(pool, batch, stop),
        };
        Ok(states?)
    }

    /// Bytes of memory that the weights take.
    pub fn memory(&self) -> usize {
        match self {
            Network::Bert(bert) => bert.memory(),
            Network::Decoder(decoder) => decoder.memory(),
        }
    }
}
