//! Language models: what their files say and hold, their tokenizers and chat templates.

mod batcher;
pub mod cache;
pub mod chat;
pub mod config;
mod directory;
pub mod files;
mod gguf_config;
pub mod gradient;
pub mod hooks;
#[allow(clippy::module_inception)] // the model itself, among what it consists of
mod llm;
mod matrix;
pub mod network;
mod pass;
pub mod piece;
pub mod sample;
mod template;
pub mod tokenizer;

pub use batcher::{Batcher, Event, Finish, Request};
pub use chat::{Chat, Message};
pub use config::{LlmConfig, LlmFamily};
pub use files::{BlockKind, LlmFiles, Tensor, TensorData};
pub use llm::{Description, Llm, PREFILL_ROWS, Prompt, describe};
pub use matrix::Packing;
pub use piece::Piece;
pub use tokenizer::{DecodeStream, LlmTokenizer};

#[cfg(test)]
mod tests;
