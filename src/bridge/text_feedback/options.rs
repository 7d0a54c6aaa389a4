//! How a copy of the encoder is trained to read passages: the options of the kind, and the queries of a training.

use super::MOST_PASSAGES;
use crate::bridge::BridgeError;
use crate::model::Sequence;
use serde::Deserialize;
use serde_json::Value;

/// How a copy of the encoder is trained. Unknown names are refused.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TextFeedbackOptions {
    /// Passages that are read with a query, the k that the bridge is bound to.
    pub passages: usize,
    /// Tokens of each passage, 0 for all.
    pub passage_tokens: usize,
    /// Layers that are trained, from the top; the model's where it has fewer.
    pub layers: usize,
    /// Adam's highest learning rate.
    pub rate: f32,
    /// The temperature of the loss.
    pub tau: f32,
    pub epochs: usize,
    /// Queries of a step.
    pub batch: usize,
    /// Steps between two measurements.
    pub round_steps: usize,
    /// Negatives of a query, drawn from the first hundred of its first round.
    pub negatives: usize,
    /// Share of the documents that is held out, half for stopping, half for the figures.
    pub held_out: f64,
    /// Most queries of validation, and of test.
    pub measured: usize,
    pub seed: u64,
    /// Threads, 0 for the machine's; those of the layers' products are the machine's in any case.
    pub threads: usize,
}

impl Default for TextFeedbackOptions {
    fn default() -> TextFeedbackOptions {
        TextFeedbackOptions {
            passages: 3,
            passage_tokens: 64,
            layers: 2,
            rate: 2e-5,
            tau: 0.05,
            epochs: 1,
            batch: 16,
            round_steps: 40,
            negatives: 20,
            held_out: 0.2,
            measured: 400,
            seed: 1,
            threads: 0,
        }
    }
}

impl TextFeedbackOptions {
    pub(super) fn read(options: &Value) -> Result<TextFeedbackOptions, BridgeError> {
        let bad = |value: String, range: &'static str| BridgeError::Option {
            name: "options",
            value,
            range,
        };
        let names = "passages, passage_tokens, layers, rate, tau, epochs, batch, round_steps, negatives, held_out, \
                     measured, seed, threads";
        let read: TextFeedbackOptions =
            serde_json::from_value(options.clone()).map_err(|error| bad(error.to_string(), names))?;
        let shown = || format!("{read:?}");
        if !(1..=MOST_PASSAGES).contains(&read.passages) || read.passage_tokens > 512 {
            return Err(bad(shown(), "passages 1 to 20, passage_tokens 0 to 512"));
        }
        if ![read.rate, read.tau]
            .iter()
            .all(|number| number.is_finite() && *number > 0.0)
        {
            return Err(bad(shown(), "rate and tau above 0"));
        }
        let counts = [
            read.layers,
            read.epochs,
            read.batch,
            read.round_steps,
            read.negatives,
            read.measured,
        ];
        if !counts.iter().all(|count| (1..=10_000).contains(count)) {
            return Err(bad(
                shown(),
                "layers, epochs, batch, round_steps, negatives and measured 1 to 10000",
            ));
        }
        if !(0.05..=0.8).contains(&read.held_out) {
            return Err(bad(shown(), "held_out 0.05 to 0.8"));
        }
        Ok(read)
    }
}

/// A query with what its first round found.
#[derive(Clone, Debug)]
pub struct Query {
    /// The query and its nearest passages.
    pub sequence: Sequence,
    /// The passage that answers it.
    pub target: u32,
    /// Passages of the first round that are not the target.
    pub negatives: Vec<u32>,
}
