//! Model directories: manifest, tokenizer, weights, forward pass.
// What tasks of the thread pool write into one buffer is allowed where it is done, and nothing else.
#![deny(unsafe_code)]

mod adapter;
mod bert;
pub mod calibrate;
mod config;
mod config_json;
mod cuda;
pub mod cut;
mod decoder;
mod device;
mod directory;
mod embedding_head;
mod encoder;
pub mod feedback;
mod feedback_sequence;
mod files;
pub mod fine_tune;
pub mod gguf;
pub mod line;
pub mod llm;
mod manifest;
mod mlm;
mod modern_bert;
mod modules;
mod network;
pub mod overlay;
mod rotary;
mod sequence;
pub mod situated;
pub mod stop;
mod tensors;
mod tokenizer;
pub mod torch_save;
mod weights;

use std::path::PathBuf;

pub use crate::compute::{Activation, Precision};
pub use device::{BadDevice, Device, GpuInfo, OpenDevice, devices};
pub use encoder::Encoder;
pub use manifest::{Family, Manifest, Pooling, Similarity};
pub use sequence::{Read, Role, Sequence};
pub use tokenizer::PIECE_BYTES;
pub use tokenizer::Tokens;

/// What can go wrong with a model directory or a batch of sequences.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The path is not a directory.
    #[error("\"{}\" is not a directory", .0.display())]
    NotADirectory(PathBuf),
    /// A file that every model directory must have.
    #[error("model file \"{}\" is missing", .0.display())]
    Missing(PathBuf),
    /// The file system refused.
    #[error("cannot read \"{}\": {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    /// A JSON file that does not parse or lacks a field.
    #[error("\"{}\" is not valid: {what}", path.display())]
    Invalid { path: PathBuf, what: String },
    /// A weights file that is cut short or whose header does not parse.
    #[error("weights file \"{}\" is truncated or corrupt: {what}", path.display())]
    Corrupt { path: PathBuf, what: String },
    /// A tensor that the configuration asks for and the weights lack.
    #[error("the weights lack tensor \"{0}\"")]
    MissingTensor(String),
    /// A tensor of another shape than the configuration says.
    #[error("tensor \"{name}\" has shape {found:?}, the configuration needs {expected:?}")]
    TensorShape {
        name: String,
        expected: Vec<usize>,
        found: Vec<usize>,
    },
    /// A tensor of a type that is not f32, f16 or bf16.
    #[error("tensor \"{name}\" has type {dtype}; F32, F16 and BF16 are supported")]
    TensorType { name: String, dtype: String },
    /// A tensor that holds NaN or infinity.
    #[error("tensor \"{0}\" holds NaN or infinity")]
    NotFinite(String),
    /// A model, pooling or option that this version does not know.
    #[error("{what} \"{found}\" is not supported (supported: {supported})")]
    Unsupported {
        what: &'static str,
        found: String,
        supported: &'static str,
    },
    /// The tokenizer cannot be loaded or failed on a text.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// An operation of a training failed.
    #[error("tensors: {0}")]
    Tensor(String),
    /// A chat template that does not parse, asks for what is not there, or loses a message.
    #[error("chat template: {0}")]
    Template(String),
    /// Messages that a chat template does not take, in its own words.
    #[error("chat template: {0}")]
    Turns(String),
    /// A part of a model in several files, opened where the first belongs.
    #[error("\"{}\" is part {part} of {count}; the first part is \"{}\"", path.display(), first.display())]
    Part {
        path: PathBuf,
        part: u64,
        count: u64,
        first: PathBuf,
    },
    /// A sequence that cannot be run: empty, too long, an id outside the vocabulary, a bad range.
    #[error("bad sequence {index}: {what}")]
    Sequence { index: usize, what: String },
    /// A file changed while the directory was loaded.
    #[error("the files of \"{}\" changed while they were read", .0.display())]
    Changed(PathBuf),
    /// A vector that holds NaN or infinity came out.
    #[error("vector {index} of the batch holds NaN or infinity")]
    Output { index: usize },
    /// The caller's stop hook answered true.
    #[error("the batch was stopped")]
    Stopped,
    /// A kernel failed.
    #[error(transparent)]
    Compute(crate::compute::ComputeError),
}

impl ModelError {
    /// [`ModelError::Unsupported`], with what was found.
    fn unsupported(what: &'static str, found: impl Into<String>, supported: &'static str) -> ModelError {
        let found = found.into();
        ModelError::Unsupported { what, found, supported }
    }
}

impl From<crate::compute::ComputeError> for ModelError {
    fn from(error: crate::compute::ComputeError) -> ModelError {
        match error {
            crate::compute::ComputeError::Stopped => ModelError::Stopped,
            other => ModelError::Compute(other),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
