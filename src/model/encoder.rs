//! A loaded model: text in, vectors out.
use super::{Manifest, ModelError};
use crate::compute::Pool;
use crate::text::Span;
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::path::Path;

/// What a text is to the model: it chooses the prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    Query,
    Passage,
    /// No prefix.
    Plain,
}

/// Numbers that the kernels compute with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    #[default]
    F32,
    Bf16,
    Int8,
}

/// The tokens of a text, without special tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tokens {
    pub ids: Vec<u32>,
    /// Bytes of the text that each token came from, ascending.
    pub spans: Vec<Span>,
}

/// What is read out of a sequence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Read {
    /// One vector: the model's own pooling and normalisation.
    Pooled,
    /// One vector a range of `ids`: the mean over the range's tokens with unit length.
    Spans(Vec<Range<u32>>),
}

/// Token ids, special tokens included, and what is read out of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sequence {
    pub ids: Vec<u32>,
    pub read: Read,
}

/// A loaded model. Immutable: shared between threads freely.
pub struct Encoder {
    manifest: Manifest,
}

impl Encoder {
    /// Loads a model directory in f32. The weights are copied: the files may change afterwards.
    pub fn open(dir: &Path) -> Result<Encoder, ModelError> {
        Encoder::open_with(dir, Precision::F32)
    }

    /// Loads a model directory for kernels of the given precision.
    pub fn open_with(dir: &Path, _precision: Precision) -> Result<Encoder, ModelError> {
        Ok(Encoder {
            manifest: Manifest::read(dir)?,
        })
    }

    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Bytes of memory that the model holds.
    pub fn memory(&self) -> usize {
        todo!()
    }

    /// Ids and spans of a text: no special tokens, no limit.
    pub fn tokenize(&self, _text: &str) -> Result<Tokens, ModelError> {
        todo!()
    }

    /// The sequence of a text: special tokens and the role's prefix around it, cut at the model's limit.
    pub fn text(&self, _role: Role, _text: &str) -> Result<Sequence, ModelError> {
        todo!()
    }

    /// The sequence of token ids that are put together from pieces: special tokens and the role's prefix around `ids`,
    /// cut at the model's limit; with it, the position of `ids[0]` in the sequence. What is read out is the pooled
    /// vector; callers may replace it.
    pub fn assemble(&self, _role: Role, _ids: &[u32]) -> Result<(Sequence, usize), ModelError> {
        todo!()
    }

    /// Tokens that [`Encoder::assemble`] leaves for a text of that role: the model's limit without special tokens and
    /// prefix.
    pub fn room(&self, _role: Role) -> usize {
        todo!()
    }

    /// One vector a read-out, in order. A text's vector is bit-equal alone and in any batch.
    pub fn encode(&self, pool: &Pool, batch: &[Sequence]) -> Result<Vec<Vec<f32>>, ModelError> {
        self.encode_until(pool, batch, &|| false)
    }

    /// Like [`Encoder::encode`], but asks `stop` between layers and fails with [`ModelError::Stopped`] when it says so.
    pub fn encode_until(
        &self,
        _pool: &Pool,
        _batch: &[Sequence],
        _stop: &dyn Fn() -> bool,
    ) -> Result<Vec<Vec<f32>>, ModelError> {
        todo!()
    }
}
