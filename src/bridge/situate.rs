//! `situate`: each chunk encoded in its place.
use super::BridgeError;
use crate::model::{Encoder, Sequence};
use crate::text::{Chunk, Span};
use serde::{Deserialize, Serialize};

/// Where a chunk's vector takes its surroundings from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Situate {
    None,
    Header,
    Late,
}

/// How texts are cut and encoded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SituateOptions {
    pub mode: Situate,
    /// Most tokens of a chunk.
    pub chunk_tokens: u32,
    /// Tokens of a window, 0 for the model's limit.
    pub window_tokens: u32,
    /// rho: the share of the situated vector, 0 to 1.
    pub weight: f32,
}

/// Chunks and the sequences to encode for them.
pub struct Plan {
    pub chunks: Vec<Chunk>,
    pub sequences: Vec<Sequence>,
}

/// A chunk with its vector.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SituatedChunk {
    pub span: Span,
    pub tokens: u32,
    pub vector: Vec<f32>,
}

/// Cuts a text and plans what has to be encoded.
pub fn plan(
    _encoder: &Encoder,
    _title: Option<&str>,
    _headings: &[String],
    _text: &str,
    _options: &SituateOptions,
) -> Result<Plan, BridgeError> {
    todo!()
}

/// Puts the encoder's vectors, in the order of the plan's sequences, together to one vector a chunk.
pub fn finish(_plan: Plan, _vectors: &[Vec<f32>]) -> Result<Vec<SituatedChunk>, BridgeError> {
    todo!()
}
