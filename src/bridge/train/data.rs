//! What every kind's trainer is given.

use super::acceptance::Verdict;
use crate::bridge::BridgeError;
use crate::model::Role;
use std::path::PathBuf;

/// A passage of a document.
#[derive(Clone, Debug, PartialEq)]
pub struct Passage {
    pub key: String,
    /// Passages of one document share it, in order of ordinal.
    pub document: u32,
    pub ordinal: u32,
    pub text: String,
    /// The vector that stands for it, where the caller has given one.
    pub vector: Option<Vec<f32>>,
}

/// A query and a passage that answers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    pub query: String,
    /// Index into passages.
    pub passage: u32,
    /// The answer in words, where it is known.
    pub answer: Option<String>,
}

/// Row-major vectors.
#[derive(Clone, Debug, PartialEq)]
pub struct Vectors {
    pub dimensions: usize,
    pub values: Vec<f32>,
}

/// The encoder, for a trainer.
pub trait Encode {
    /// One vector a text, in order.
    fn embed(&mut self, role: Role, texts: &[&str]) -> Result<Vectors, BridgeError>;
    /// Token ids of each text, without special tokens.
    fn tokens(&mut self, texts: &[&str]) -> Result<Vec<Vec<u32>>, BridgeError>;
    /// Token ids of each text and the last layer's state of each token, read as a query; without special tokens.
    fn states(&mut self, _texts: &[&str]) -> Result<Vec<TokenStates>, BridgeError> {
        Err(BridgeError::NoReading("token states"))
    }
    /// Vocabulary weights of each text (`lexsem::weigh::clr`), from the masked language model that the training names.
    fn vocabulary(&mut self, _texts: &[&str]) -> Result<Vec<Vec<(u32, f32)>>, BridgeError> {
        Err(BridgeError::NoReading("vocabulary weights"))
    }
    /// The directory of the model's files, for trainings that change a copy of them.
    fn directory(&mut self) -> Result<PathBuf, BridgeError> {
        Err(BridgeError::NoReading("files"))
    }
    /// Where the files of a language model are, by the name that it is registered with.
    fn language_model(&mut self, _name: &str) -> Result<PathBuf, BridgeError> {
        Err(BridgeError::NoReading("language model"))
    }
    /// The bytes of the bridge that the options name as the training's start.
    fn start(&mut self, _name: &str) -> Result<Vec<u8>, BridgeError> {
        Err(BridgeError::NoReading("bridge to start from"))
    }
}

/// The tokens of a text and their states.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenStates {
    pub ids: Vec<u32>,
    /// A row for each of `ids`.
    pub values: Vec<f32>,
}

/// Where training is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Progress {
    pub step: u64,
    /// Steps of the whole training; 0 where it has not begun to count.
    pub steps: u64,
    pub loss: f64,
    /// The best score of the validation items, where there is one.
    pub held_out: Option<f64>,
}

/// Told of progress; ends the training by an error.
pub trait Monitor {
    /// Every few milliseconds.
    fn step(&mut self, progress: &Progress) -> Result<(), BridgeError>;
    /// A state to go on from.
    fn checkpoint(&mut self, bytes: &[u8]) -> Result<(), BridgeError>;
}

/// What came of a training.
#[derive(Clone, Debug)]
pub struct Trained {
    pub weights: Vec<u8>,
    pub figures: serde_json::Value,
    pub verdict: Verdict,
}
