//! A model on a CUDA card: its tensors by role, and how its vectors are read out.

use super::weights::Weights;
use super::{Family, Manifest, ModelError, Pooling, Read, Sequence, bert};
use crate::compute::ComputeError;
use crate::compute::cuda::bert::{Bert, BertShape};
use crate::compute::cuda::{Engine, Range, Request, Runner};
use std::path::Path;

/// Weights on a card, ready to run.
pub struct OnCard {
    runner: Runner,
}

impl OnCard {
    /// Copies the weights to the card of that number, layer by layer. `cache` keeps the compiled kernels.
    pub fn load(
        manifest: &Manifest,
        weights: &Weights,
        ordinal: u32,
        cache: Option<&Path>,
    ) -> Result<OnCard, ModelError> {
        if !matches!(manifest.family, Family::Bert | Family::XlmRoberta) {
            return Err(ModelError::Unsupported {
                what: "on a card, the family",
                found: format!("{:?}", manifest.family),
                supported: "Bert, XlmRoberta",
            });
        }
        let engine = Engine::shared(ordinal, cache)?;
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
        let network = Bert::new(&engine, shape, tensors.embedding()?, layers)?;
        Ok(OnCard {
            runner: Runner::new(&engine, Box::new(network))?,
        })
    }

    /// Bytes of the card's memory that the weights take.
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
