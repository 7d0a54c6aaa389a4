//! Text without models and without Postgres: byte spans, sentences, headings, segments and chunks.
#![forbid(unsafe_code)]

mod blocks;
mod chunks;
mod lines;
mod markdown;
mod noise;
mod rows;
mod segments;
mod sentences;

pub use chunks::chunks;
pub use segments::segments;
pub use sentences::sentences;

use serde::{Deserialize, Serialize};

/// A half-open range of bytes, `start..end`, on UTF-8 character borders of the text it refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Span {
    pub start: u32,
    pub end: u32,
}

impl Span {
    /// Bytes in the span.
    pub fn len(&self) -> usize {
        self.end.saturating_sub(self.start) as usize
    }

    /// True where the span holds no byte.
    pub fn is_empty(&self) -> bool {
        self.end <= self.start
    }

    /// The span in characters of `text` instead of bytes; `None` where it does not lie in `text` on character borders.
    pub fn characters(&self, text: &str) -> Option<Span> {
        let before = text.get(..self.start as usize)?.chars().count() as u32;
        let within = self.of(text)?.chars().count() as u32;
        Some(Span {
            start: before,
            end: before + within,
        })
    }

    /// The part of `text` that the span covers; `None` where the span does not lie in `text` on character borders.
    pub fn of<'a>(&self, text: &'a str) -> Option<&'a str> {
        text.get(self.start as usize..self.end as usize)
    }
}

/// A bounded piece of a document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Bytes of the document that the segment covers.
    pub span: Span,
    pub place: Place,
}

/// What a piece of a document has to know of what stands before it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Heading path in force at its start, outermost first.
    pub headings: Vec<String>,
    /// Whether it begins inside code, and is code to its end.
    pub code: bool,
}

/// A passage that is embedded on its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// Bytes of the text that was cut.
    pub span: Span,
    /// Tokens that begin inside the span.
    pub tokens: u32,
    /// Where what is encoded ends: with the span, but of a run of noise (base64, minified code) only the first tokens are.
    pub encoded_end: u32,
    /// Heading path in force at the chunk, outermost first.
    pub headings: Vec<String>,
}

impl Chunk {
    /// What is encoded of the chunk, which lies in `text`.
    pub fn encoded<'a>(&self, text: &'a str) -> &'a str {
        let encoded = Span {
            end: self.encoded_end,
            ..self.span
        };
        encoded.of(text).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
