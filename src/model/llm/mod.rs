//! Language models: what their files say and hold, their tokenizers and chat templates.
use super::ModelError;

pub mod cache;
pub mod chat;
pub mod config;
mod directory;
pub mod files;
pub mod hooks;
mod matrix;
pub mod network;
pub mod piece;
pub mod tokenizer;

pub use chat::{Chat, Message};
pub use config::{LlmConfig, LlmFamily};
pub use files::{BlockKind, LlmFiles, Tensor, TensorData};
pub use piece::Piece;
pub use tokenizer::{DecodeStream, LlmTokenizer};

fn unsupported(what: &'static str, found: &str, supported: &'static str) -> ModelError {
    let found = found.to_string();
    ModelError::Unsupported { what, found, supported }
}
