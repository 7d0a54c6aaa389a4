//! The forward pass of a model, whatever its family.

use super::weights::Weights;
use super::{Family, Manifest, ModelError, Precision, bert, decoder, modern_bert};
use crate::compute::cpu::Level;
use crate::compute::forward::bert::{Bert, Packed};
use crate::compute::forward::pre_norm::PreNorm;
use crate::compute::{Buffer, Pool};

/// Most tokens that run at once.
const TOKENS_AT_ONCE: usize = 8192;

/// Weights, packed for the kernels.
pub enum Network {
    /// BERT, RoBERTa and XLM-RoBERTa.
    Bert(Bert),
    /// Qwen3 and Mistral.
    Decoder(PreNorm),
    ModernBert(PreNorm),
}

/// Checks that all tensors are there in the shapes of the configuration.
pub fn check(manifest: &Manifest, weights: &Weights) -> Result<(), ModelError> {
    match manifest.family {
        Family::Bert | Family::XlmRoberta => bert::check(manifest, weights),
        Family::ModernBert => modern_bert::check(manifest, weights),
        Family::Qwen3 | Family::Mistral => decoder::check(manifest, weights),
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
        Ok(match manifest.family {
            Family::Bert | Family::XlmRoberta => Network::Bert(bert::load(manifest, weights, level, precision)?),
            Family::ModernBert => Network::ModernBert(modern_bert::load(manifest, weights, level, precision)?),
            Family::Qwen3 | Family::Mistral => Network::Decoder(decoder::load(manifest, weights, level, precision)?),
        })
    }

    /// Token vectors of all sequences, rows in the order of the ids. `stop` is asked often.
    pub fn forward(&self, pool: &Pool, batch: &Packed, stop: &dyn Fn() -> bool) -> Result<Buffer<f32>, ModelError> {
        let states = match self {
            Network::Bert(bert) => bert.forward(pool, batch, stop),
            Network::Decoder(network) | Network::ModernBert(network) => network.forward(pool, batch, stop),
        };
        Ok(states?)
    }

    /// Tokens of a batch beyond which it runs in parts, so that memory is bounded. (A text's vector does not depend on it.)
    pub fn tokens_at_once(&self, threads: usize) -> usize {
        match self {
            Network::Bert(bert) => bert.tokens_at_once(threads).min(TOKENS_AT_ONCE),
            Network::Decoder(_) | Network::ModernBert(_) => TOKENS_AT_ONCE,
        }
    }

    /// Bytes of memory that the weights take.
    pub fn memory(&self) -> usize {
        match self {
            Network::Bert(bert) => bert.memory(),
            Network::Decoder(network) | Network::ModernBert(network) => network.memory(),
        }
    }
}
