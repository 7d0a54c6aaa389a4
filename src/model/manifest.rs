//! What a model directory says about itself: family, shapes, pooling, limits, prefixes and fingerprint. `directory.rs` reads it.

use crate::compute::Activation;
use serde::{Deserialize, Serialize};

/// The forward pass that the weights belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// BERT: every token sees every other.
    Bert,
    /// RoBERTa and XLM-RoBERTa: BERT whose positions begin behind the padding's.
    XlmRoberta,
    /// Qwen3: a decoder with normalised heads.
    Qwen3,
    /// Mistral: a decoder, with a sliding window where the configuration has one.
    Mistral,
    /// ModernBERT: every token sees every other on some layers, its neighbours on the rest; rotary positions.
    ModernBert,
}

impl Family {
    /// Whether a token sees only what stands to its left.
    pub fn is_decoder(self) -> bool {
        matches!(self, Family::Qwen3 | Family::Mistral)
    }
}

/// How token vectors become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// The mean over all tokens, special tokens included.
    Mean,
    /// The first token.
    Cls,
    /// The largest number of each dimension over all tokens.
    Max,
    /// The last token: the one that the tokenizer puts behind the text.
    Last,
}

/// How vectors of a model are compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Similarity {
    /// By direction.
    #[default]
    Cosine,
    /// By inner product: a longer passage vector is nearer.
    Dot,
}

/// What a model directory says about itself: shapes, pooling, limits, prefixes and content.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    pub family: Family,
    /// Numbers in a vector that comes out.
    pub dimensions: usize,
    pub hidden: usize,
    pub layers: usize,
    /// Heads of the queries.
    pub heads: usize,
    /// Heads of keys and values: as many, or a divisor.
    pub key_heads: usize,
    /// Numbers of a head.
    pub head_width: usize,
    pub intermediate: usize,
    /// Rows of the word table.
    pub vocabulary: usize,
    /// Positions that a sequence may have.
    pub positions: usize,
    /// Row of the position table that the first token has; the table has `first_position + positions` rows.
    pub first_position: usize,
    /// Rows of the token type table; 0 without one.
    pub token_types: usize,
    /// Tokens in a sequence, special tokens included.
    pub max_tokens: usize,
    pub activation: Activation,
    /// Epsilon of all normalisations.
    pub layer_norm_epsilon: f32,
    /// Base of the rotary embedding's angles; 0 without one.
    pub rope_base: f64,
    /// The base on layers with a window, where it is another.
    pub window_rope_base: Option<f64>,
    /// Tokens that a token of a decoder sees to its left, itself included, where they are limited; of another model
    /// those that it sees on either side.
    pub window: Option<usize>,
    /// Layers from one without a window to the next; 0 where all are alike.
    pub full_attention_every: usize,
    /// Whether the projections of the attention have a bias.
    pub attention_bias: bool,
    pub pooling: Pooling,
    /// Whether vectors come out with unit length.
    pub normalize: bool,
    pub similarity: Similarity,
    /// Read before a query.
    pub query_prefix: String,
    /// Read before a passage.
    pub passage_prefix: String,
    /// Hex SHA-256 over the content of configuration, tokenizer, pooling configuration and weights.
    pub fingerprint: String,
}
