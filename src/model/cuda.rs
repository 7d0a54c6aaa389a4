//! A model on a CUDA GPU: its tensors by role, and how its vectors are read out.

use super::weights::Weights;
use super::{Family, Manifest, ModelError, Pooling, Read, Sequence, bert, decoder};
use crate::compute::ComputeError;
use crate::compute::cuda::bert::{Bert, BertShape};
use crate::compute::cuda::decoder::{Decoder, DecoderShape};
use crate::compute::cuda::{Engine, Range, Request, Runner};
use std::path::Path;

/// Weights on a GPU, ready to run.
pub struct OnGpu {
    runner: Runner,
}

impl OnGpu {
    /// Copies the weights to the GPU of that number, layer by layer. `cache` keeps the compiled kernels.
    pub fn load(
        manifest: &Manifest,
        weights: &Weights,
        ordinal: u32,
        cache: Option<&Path>,
    ) -> Result<OnGpu, ModelError> {
        // Before the GPU is touched: what it cannot run may be run elsewhere.
        if manifest.family == Family::ModernBert {
            return Err(ModelError::Unsupported {
                what: "on a GPU, the family",
                found: "ModernBert".to_owned(),
                supported: "Bert, XlmRoberta, Qwen3, Mistral",
            });
        }
        let engine = Engine::shared(ordinal, cache)?;
        let runner = match manifest.family {
            Family::Qwen3 | Family::Mistral => {
                Runner::new(&engine, Box::new(load_decoder(&engine, manifest, weights)?))?
            }
            _ => Runner::new(&engine, Box::new(load_bert(&engine, manifest, weights)?))?,
        };
        Ok(OnGpu { runner })
    }

    /// Bytes of the GPU's memory that the weights take.
    pub fn memory(&self) -> usize {
        self.runner.memory()
    }

    /// One vector a read-out, in order. `stop` is asked before each batch. The sequences have been checked.
    pub fn encode(
        &self,
        manifest: &Manifest,
        batch: &[Sequence],
        stop: &dyn Fn() -> bool,
    ) -> Result<Vec<Vec<f32>>, ModelError> {
        let mut requests = Vec::with_capacity(batch.len());
        for sequence in batch {
            let length = u32::try_from(sequence.ids.len())
                .map_err(|_| ComputeError::Shape("a sequence beyond 32 bits".to_string()))?;
            let ranges = match &sequence.read {
                Read::Pooled | Read::Second | Read::Sum => vec![pooled(manifest.pooling, manifest.normalize, length)],
                Read::Spans(spans) => spans.iter().map(|span| mean(span.start, span.end, true)).collect(),
                Read::States(spans) => spans.iter().map(|span| mean(span.start, span.end, false)).collect(),
            };
            requests.push(Request {
                ids: &sequence.ids,
                ranges,
            });
        }
        // A sequence of which nothing is read does not have to run.
        requests.retain(|request| !request.ranges.is_empty());
        Ok(self.runner.run(&requests, stop)?)
    }
}

fn load_bert(engine: &Engine, manifest: &Manifest, weights: &Weights) -> Result<Bert, ModelError> {
    let tensors = bert::Tensors::new(manifest, weights);
    let shape = BertShape {
        hidden: manifest.hidden,
        heads: manifest.heads,
        intermediate: manifest.intermediate,
        activation: manifest.activation,
        epsilon: manifest.layer_norm_epsilon,
        first_place: 0,
        exact_gelu: false,
    };
    let layers = (0..manifest.layers).map(|layer| tensors.layer(layer));
    Bert::new(engine, shape, tensors.embedding()?, layers)
}

fn load_decoder(engine: &Engine, manifest: &Manifest, weights: &Weights) -> Result<Decoder, ModelError> {
    let tensors = decoder::Tensors::new(manifest, weights);
    let shape = DecoderShape {
        hidden: manifest.hidden,
        heads: manifest.heads,
        key_heads: manifest.key_heads,
        head_size: manifest.head_width,
        intermediate: manifest.intermediate,
        epsilon: manifest.layer_norm_epsilon,
        window: manifest.window,
    };
    let layers = (0..manifest.layers).map(|layer| tensors.layer(layer));
    Decoder::new(engine, shape, tensors.tables()?, layers)
}

fn mean(start: u32, end: u32, unit: bool) -> Range {
    Range {
        start,
        end,
        largest: false,
        unit,
    }
}

/// The tokens that the model's own pooling reads.
fn pooled(pooling: Pooling, unit: bool, length: u32) -> Range {
    match pooling {
        Pooling::Mean => mean(0, length, unit),
        Pooling::Cls => mean(0, 1, unit),
        Pooling::Last => mean(length.saturating_sub(1), length, unit),
        Pooling::Max => Range {
            largest: true,
            ..mean(0, length, unit)
        },
    }
}
