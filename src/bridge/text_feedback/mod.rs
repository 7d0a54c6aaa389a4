//! Feedback of texts (ANCE-PRF): a trained copy of the encoder reads a query together with the passages that a first
//! round found; its vector is searched for in a second one. The index stays as it is.
//!
//! The file has the tensors that training changed, under the names of the model's weights file (F32); the metadata says
//! how many `passages` are read, and how many tokens of each (`passage_tokens`, 0 for all).

mod fit;
mod options;
mod train;

pub use options::TextFeedbackOptions;
pub use train::train;

use super::BridgeError;
use super::file::{self, Tensors};
use super::kind::BridgeKind;
use crate::model::overlay::Replaced;
use serde_json::{Map, Value, json};

/// This kind of bridge.
pub const KIND: BridgeKind = BridgeKind::TextFeedback;
/// Most passages that are read with a query.
pub const MOST_PASSAGES: usize = 20;

/// How a query and passages are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    pub passages: usize,
    /// Tokens of each passage, 0 for all.
    pub passage_tokens: usize,
}

impl Reading {
    /// What a bridge's metadata says.
    ///
    /// # Errors
    /// [`BridgeError::File`] where it does not.
    pub fn of(metadata: &Map<String, Value>) -> Result<Reading, BridgeError> {
        let number = |name: &str| metadata.get(name).and_then(Value::as_u64).map(|number| number as usize);
        match (number("passages"), number("passage_tokens")) {
            (Some(passages), Some(passage_tokens)) if (1..=MOST_PASSAGES).contains(&passages) => Ok(Reading {
                passages,
                passage_tokens,
            }),
            _ => Err(BridgeError::File("it does not say how passages are read".to_owned())),
        }
    }
}

/// A bridge's file, read.
#[derive(Debug)]
pub struct TextFeedback {
    pub reading: Reading,
    /// What takes the place of the model's own tensors.
    pub replaced: Replaced,
}

impl TextFeedback {
    /// Reads a bridge's bytes.
    ///
    /// # Errors
    /// [`BridgeError::File`] for bytes of another kind, and for files without tensors.
    pub fn read(bytes: &[u8]) -> Result<TextFeedback, BridgeError> {
        let tensors = Tensors::read(bytes, KIND)?;
        let reading = Reading::of(&tensors.description.metadata)?;
        let replaced: Replaced = tensors.into_all().collect();
        match replaced.is_empty() {
            true => Err(BridgeError::File("it has no tensors".to_owned())),
            false => Ok(TextFeedback { reading, replaced }),
        }
    }

    /// The bridge's bytes, for vectors of `dimensions` numbers. `more` is added to the metadata.
    ///
    /// # Errors
    /// [`BridgeError::File`] where a shape does not fit its numbers.
    pub fn write(&self, dimensions: usize, more: Map<String, Value>) -> Result<Vec<u8>, BridgeError> {
        let mut more = more;
        more.insert("passages".to_owned(), json!(self.reading.passages));
        more.insert("passage_tokens".to_owned(), json!(self.reading.passage_tokens));
        let tensors: Vec<(&str, Vec<usize>, &[f32])> = self
            .replaced
            .iter()
            .map(|(name, (shape, numbers))| (name.as_str(), shape.clone(), numbers.as_slice()))
            .collect();
        file::write(KIND, dimensions, more, &tensors)
    }
}

#[cfg(test)]
mod tests;
