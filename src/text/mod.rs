//! Text without models and without Postgres: byte spans, sentences, headings, segments and chunks.

use serde::{Deserialize, Serialize};

/// A half-open range of bytes, `start..end`, on UTF-8 character borders of the text it refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Span {
    pub start: u32,
    pub end: u32,
}
