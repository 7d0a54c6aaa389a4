//! What a model directory says about itself.
use super::ModelError;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The forward pass that the weights belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    Bert,
}

/// How token vectors become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    Mean,
    Cls,
    Max,
}

/// The non-linearity between the two products of a feed-forward block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x/2 (1 + erf(x / sqrt 2))`
    Gelu,
    /// `x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`
    GeluTanh,
    Relu,
}

/// What a model directory says about itself: shapes, pooling, limits, prefixes and content.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    pub family: Family,
    /// Numbers in a vector that comes out.
    pub dimensions: usize,
    pub hidden: usize,
    pub layers: usize,
    pub heads: usize,
    pub intermediate: usize,
    pub vocabulary: usize,
    /// Rows of the position table.
    pub positions: usize,
    /// Tokens in a sequence, special tokens included.
    pub max_tokens: usize,
    pub activation: Activation,
    pub layer_norm_epsilon: f32,
    pub pooling: Pooling,
    /// Whether vectors come out with unit length.
    pub normalize: bool,
    pub query_prefix: String,
    pub passage_prefix: String,
    /// Hex SHA-256 over the content of configuration, tokenizer, pooling configuration and weights.
    pub fingerprint: String,
}

impl Manifest {
    /// Reads and checks a model directory without loading its weights.
    pub fn read(_dir: &Path) -> Result<Manifest, ModelError> {
        todo!()
    }
}
