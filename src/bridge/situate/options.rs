//! Options of the training and the random numbers that it uses.

use crate::bridge::BridgeError;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// How a bridge is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// Passes over the pairs, at most: the best one on held-out pairs is kept.
    pub epochs: u32,
    /// Step size of Adam.
    pub rate: f32,
    /// `tau` of InfoNCE.
    pub temperature: f32,
    /// Weight of the squares of `M` and `V` in the loss.
    pub decay: f32,
    /// Rank of the attention's matrices.
    pub rank: usize,
    pub seed: u64,
    /// Whether the document is looked at; without, the chunk-only control alone is trained.
    pub document: bool,
    /// Whether the chunk's vector is mixed with that of its place (`context_header.rs`), which is encoded beside it.
    pub place: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            epochs: 8,
            rate: 1e-4,
            temperature: 0.05,
            decay: 3e-3,
            rank: 64,
            seed: 1,
            document: true,
            place: false,
        }
    }
}

impl Options {
    /// From a JSON object: what is left out keeps its default.
    ///
    /// # Errors
    /// [`BridgeError::Option`] for what is unknown or out of range.
    pub fn read(options: &Value) -> Result<Options, BridgeError> {
        let options: Options = match options {
            Value::Null => Options::default(),
            given => serde_json::from_value(given.clone()).map_err(|error| BridgeError::Option {
                name: "options",
                value: error.to_string(),
                range: "epochs, rate, temperature, decay, rank, seed, document, place",
            })?,
        };
        options.check()?;
        Ok(options)
    }

    fn check(&self) -> Result<(), BridgeError> {
        let positive = |x: f32| x.is_finite() && x > 0.0;
        let wrong = |name, value: String, range| Err(BridgeError::Option { name, value, range });
        match self {
            _ if !(1..=1000).contains(&self.epochs) => wrong("epochs", self.epochs.to_string(), "1 to 1000"),
            _ if !positive(self.rate) => wrong("rate", self.rate.to_string(), "above 0"),
            _ if !positive(self.temperature) => wrong("temperature", self.temperature.to_string(), "above 0"),
            _ if !(0.0..=f32::MAX).contains(&self.decay) => wrong("decay", self.decay.to_string(), "0 or above"),
            _ if !(1..=1024).contains(&self.rank) => wrong("rank", self.rank.to_string(), "1 to 1024"),
            _ => Ok(()),
        }
    }
}
