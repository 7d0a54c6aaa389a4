//! What a model reads: token ids, and which vectors are read out of them.

use serde::{Deserialize, Serialize};
use std::ops::Range;

/// What a text is to the model: it chooses the prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    Query,
    Passage,
    /// No prefix.
    Plain,
}

/// What is read out of a sequence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Read {
    /// One vector: the model's own pooling and normalisation.
    Pooled,
    /// One vector a range of `ids`: the mean over the range's tokens with unit length.
    Spans(Vec<Range<u32>>),
    /// One vector, pooled by the second encoder of a model of two.
    Second,
    /// One vector: the sum of what both encoders of a model of two pool.
    Sum,
    /// One vector a range of `ids`: the mean of the last layer's states over the range's tokens, as long as it is.
    States(Vec<Range<u32>>),
}

/// Token ids, special tokens included, and what is read out of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sequence {
    pub ids: Vec<u32>,
    pub read: Read,
}

impl Sequence {
    /// Vectors that the sequence gives.
    pub fn vectors(&self) -> usize {
        match &self.read {
            Read::Pooled | Read::Second | Read::Sum => 1,
            Read::Spans(spans) | Read::States(spans) => spans.len(),
        }
    }
}
