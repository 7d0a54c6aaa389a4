//! Messages between backends and worker, and their bytes.
//!
//! A message is `u32 length` (of what follows), `u32 header length`, the header in postcard, and then vectors as
//! little-endian f32, concatenated. Requests carry no vectors.

use super::failure::Failure;
use crate::bridge::situate::SituateOptions;
use crate::model::Role;
use crate::text::Span;
use serde::{Deserialize, Serialize};

/// Which queue a request waits in. Before every batch the query lane goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Lane {
    Query,
    Bulk,
}

/// One unit of work.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Item {
    /// One text, one vector: answered by [`Reply::Vector`].
    Embed { role: Role, text: String },
    /// A piece of a document of at most about 32 kB: answered by [`Reply::Passages`].
    Situate {
        title: Option<String>,
        headings: Vec<String>,
        text: String,
        options: SituateOptions,
    },
    /// The chunks of such a piece without their vectors: answered by [`Reply::Passages`] with empty vectors.
    Chunks { text: String, chunk_tokens: u32 },
}

/// A chunk of a piece of text.
#[derive(Clone, Debug, PartialEq)]
pub struct Passage {
    /// Bytes of the item's text.
    pub span: Span,
    pub tokens: u32,
    /// Empty for [`Item::Chunks`].
    pub vector: Vec<f32>,
}

/// The answer to an item. An item that failed ends its whole call with `ServiceError::Failed`.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    Vector(Vec<f32>),
    Passages(Vec<Passage>),
    Failed(Failure),
}
