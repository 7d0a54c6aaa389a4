//! The forward pass that a language model's files ask for.
//!
//! `gguf_config.rs` reads it from the metadata of a GGUF file, `directory.rs` from config.json and generation_config.json.

use super::super::ModelError;
use super::super::config_json::MAX_SHAPE;
use serde::Serialize;

/// Most layers that are believed.
const MAX_LAYERS: usize = 1024;

/// Decoders that differ in biases and norms of heads, and in nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LlmFamily {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
}

impl LlmFamily {
    /// The family of a name in a file, where `what` stands for its field.
    pub(super) fn named(what: &'static str, name: &str) -> Result<LlmFamily, ModelError> {
        match name {
            "llama" => Ok(LlmFamily::Llama),
            "mistral" => Ok(LlmFamily::Mistral),
            "qwen2" => Ok(LlmFamily::Qwen2),
            "qwen3" => Ok(LlmFamily::Qwen3),
            other => Err(ModelError::unsupported(what, other, "llama, mistral, qwen2, qwen3")),
        }
    }
}

/// The shapes and constants of a decoder.
#[derive(Clone, Debug, PartialEq)]
pub struct LlmConfig {
    pub family: LlmFamily,
    /// Rows of the token embeddings.
    pub vocabulary: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    pub layers: usize,
    /// Query heads, and heads of keys and values; the first is a multiple of the second.
    pub heads: usize,
    pub key_heads: usize,
    /// Elements of one head; even.
    pub head_width: usize,
    /// Width between the two products of the feed-forward part.
    pub intermediate: usize,
    /// Base of the rotary angles: pair j of a head is rotated by position / base^(2 j / head_width).
    pub rope_base: f32,
    /// What the frequency of each pair (`head_width / 2` of them) is divided by, where the model stretches them.
    pub rope_scaling: Option<Vec<f32>>,
    /// Added to the mean square in RMS norms.
    pub norm_epsilon: f32,
    /// Whether the token embeddings are the output's weights too.
    pub tied: bool,
    /// Whether the products for queries, keys and values add a bias.
    pub qkv_bias: bool,
    /// Whether every head of queries and keys has an RMS norm of its own before the rotary angles.
    pub head_norms: bool,
    /// Tokens that a token sees to its left, itself included, where they are limited.
    pub window: Option<usize>,
    /// Tokens that the model was made for.
    pub positions: usize,
    /// The token that begins a text, where there is one.
    pub bos: Option<u32>,
    /// Every id that ends an answer, ascending.
    pub end: Vec<u32>,
    /// Whether a prompt begins with `bos`.
    pub add_bos: bool,
}

impl LlmConfig {
    /// Checks what no container checks by itself: products, parity, ids.
    pub(super) fn checked(self, invalid: impl Fn(String) -> ModelError) -> Result<LlmConfig, ModelError> {
        let LlmConfig {
            heads,
            key_heads,
            head_width,
            ..
        } = self;
        if !heads.is_multiple_of(key_heads) {
            return Err(invalid(format!(
                "{heads} heads are not a multiple of {key_heads} heads of keys"
            )));
        }
        if !head_width.is_multiple_of(2) {
            return Err(invalid(format!(
                "heads of {head_width} numbers cannot be turned in pairs"
            )));
        }
        if self.layers > MAX_LAYERS || heads * head_width > MAX_SHAPE as usize {
            return Err(invalid(format!(
                "{} layers of {heads} heads of {head_width} numbers",
                self.layers
            )));
        }
        if !(self.rope_base.is_finite() && self.rope_base >= 1.0) {
            return Err(invalid(format!("the base of rotary angles is {}", self.rope_base)));
        }
        if !(self.norm_epsilon.is_finite() && self.norm_epsilon >= 0.0) {
            return Err(invalid(format!("the epsilon of norms is {}", self.norm_epsilon)));
        }
        let scaling = self.rope_scaling.as_deref().unwrap_or_default();
        if scaling.iter().any(|divisor| !(divisor.is_finite() && *divisor > 0.0)) {
            return Err(invalid("a divisor of rotary frequencies is not positive".to_string()));
        }
        if self.rope_scaling.is_some() && scaling.len() != head_width / 2 {
            return Err(invalid(format!("{} divisors of rotary frequencies", scaling.len())));
        }
        let ids = self.bos.iter().chain(&self.end);
        if let Some(id) = ids.copied().find(|id| *id as usize >= self.vocabulary) {
            return Err(invalid(format!(
                "the special id {id} lies outside the vocabulary of {}",
                self.vocabulary
            )));
        }
        Ok(self)
    }
}
