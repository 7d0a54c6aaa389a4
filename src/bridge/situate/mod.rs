//! `situate`: each chunk encoded in its place.
//!
//! The forms of `c = (1 - rho) c_b + rho c_s`, where `c_b` is the chunk alone and `c_s` the chunk in its
//! place (SitEmb, arXiv 2508.01959, section 3). [`plan`] cuts a text and says which
//! sequences have to be encoded, [`finish`] puts their vectors together; between them the caller runs the encoder.

use super::BridgeError;
use crate::model::{Encoder, Read, Role, Sequence, Tokens};
use crate::text::{self, Chunk, Place, Span};
use serde::{Deserialize, Serialize};
use std::ops::Range;

pub mod bridge;
mod context_header;
mod gradient;
mod linear;
mod material;
mod options;
mod residual;
mod synthetic;
mod train;

pub use train::train;

/// Where a chunk's vector takes its surroundings from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Situate {
    /// The chunk alone: exactly the passage embedding of its text.
    None,
    /// Title and heading path are read before the chunk, in one sequence, pooled whole.
    Header,
    /// The chunk's tokens, pooled after the encoder has read a window of neighbouring chunks, mixed with the chunk
    /// alone.
    Late,
    /// The chunk read together with its context by a model that was trained to (SitEmb), as its template says.
    Residual,
    /// The chunk alone, changed by a trained bridge that sees the vectors of its document ([`bridge`]).
    Bridge,
}

/// How texts are cut and encoded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SituateOptions {
    pub mode: Situate,
    /// Most tokens of a chunk.
    pub chunk_tokens: u32,
    /// Tokens of a window, 0 for the model's limit.
    pub window_tokens: u32,
    /// rho: the share of the situated vector in `late` and in a mixed `residual`, of the place in `bridge`, 0 to 1; -1
    /// is the mode's default: 0.25, the template's, and 0.1.
    pub weight: f32,
}

/// Which vectors make a chunk's own: positions among the flattened read-outs.
#[derive(Clone, Copy, Debug, Default)]
struct Parts {
    alone: Option<usize>,
    situated: Option<usize>,
}

/// Chunks and the sequences to encode for them.
pub struct Plan {
    pub chunks: Vec<Chunk>,
    pub sequences: Vec<Sequence>,
    parts: Vec<Parts>,
    combine: Combine,
}

/// How the chunk alone and the situated chunk become one vector; the weight is the situated one's share.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Combine {
    /// `normalize((1 - w) c_b + w c_s)`: a text index compares by cosine, which would do the same.
    Normalized(f32),
    /// `(1 - w) c_b + w c_s`, not normalised, so that its inner product with a query is the mix of both scores.
    Mix(f32),
    /// `c_b + c_s`.
    Sum,
}

/// A chunk with its vector.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SituatedChunk {
    pub span: Span,
    pub tokens: u32,
    pub vector: Vec<f32>,
}

/// A title and headings take at most this share of the model's limit.
const HEADER_SHARE: usize = 4;
/// Bytes of a title with its headings that are looked at for each token that they may take.
const HEADER_BYTES: usize = 32;

/// Share of the situated vector in `late`.
const LATE_WEIGHT: f32 = 0.25;

/// Cuts a text and plans what has to be encoded.
///
/// `place` says what stands before `text` in its document. Chunks are at most `chunk_tokens` tokens and never more
/// than the model reads at once beside their header.
///
/// # Errors
/// [`BridgeError::Option`] for a weight above 1, no chunk tokens, or `residual` with a model that has no template;
/// [`BridgeError::Model`] where the tokenizer fails.
pub fn plan(
    encoder: &Encoder,
    title: Option<&str>,
    place: &Place,
    text: &str,
    options: &SituateOptions,
) -> Result<Plan, BridgeError> {
    check(options)?;
    let room = encoder.room(Role::Passage).max(1);
    let header = if options.mode == Situate::Header {
        room / HEADER_SHARE
    } else {
        0
    };
    let chunk_tokens = (options.chunk_tokens as usize).min(room - header).max(1);
    let tokens = encoder.tokenize(text)?;
    let chunks = text::chunks(text, place, chunk_tokens, &tokens.spans);
    plan_of(encoder, title, text, &tokens, chunks, options)
}

/// Plans what has to be encoded for the chunks that the caller has cut: spans of `text`, ascending, without overlap.
///
/// # Errors
/// Those of [`plan`]; [`BridgeError::Option`] for spans that are not of the text, overlap or hold no words.
pub fn plan_chunks(
    encoder: &Encoder,
    title: Option<&str>,
    text: &str,
    spans: &[Span],
    options: &SituateOptions,
) -> Result<Plan, BridgeError> {
    check(options)?;
    let tokens = encoder.tokenize(text)?;
    let mut end = 0;
    let mut chunks = Vec::with_capacity(spans.len());
    for span in spans {
        let first = tokens.spans.partition_point(|token| token.start < span.start);
        let last = tokens.spans.partition_point(|token| token.start < span.end);
        if span.start < end || span.of(text).is_none() || first >= last {
            return Err(BridgeError::Option {
                name: "chunks",
                value: format!("{}..{}", span.start, span.end),
                range: "consecutive pieces of the text that hold words",
            });
        }
        end = span.end;
        chunks.push(Chunk {
            span: *span,
            tokens: (last - first) as u32,
            encoded_end: span.end,
            headings: Vec::new(),
        });
    }
    plan_of(encoder, title, text, &tokens, chunks, options)
}

fn plan_of(
    encoder: &Encoder,
    title: Option<&str>,
    text: &str,
    tokens: &Tokens,
    chunks: Vec<Chunk>,
    options: &SituateOptions,
) -> Result<Plan, BridgeError> {
    let room = encoder.room(Role::Passage).max(1);
    let weight = if options.weight < 0.0 {
        LATE_WEIGHT
    } else {
        options.weight
    };
    let mut plan = Plan {
        parts: vec![Parts::default(); chunks.len()],
        sequences: Vec::with_capacity(chunks.len()),
        combine: Combine::Normalized(weight),
        chunks,
    };
    match options.mode {
        Situate::None => plan.alone(encoder, text)?,
        Situate::Bridge => {
            let share = if options.weight < 0.0 {
                context_header::SHARE
            } else {
                options.weight
            };
            plan.combine = Combine::Normalized(share);
            plan.alone(encoder, text)?;
            if share > 0.0 {
                plan.in_places(encoder, title, text)?;
            }
        }
        Situate::Header => plan.with_header(encoder, title, text, room / HEADER_SHARE)?,
        Situate::Late => {
            if weight < 1.0 {
                plan.alone(encoder, text)?;
            }
            if weight > 0.0 {
                let window = match options.window_tokens {
                    0 => room,
                    tokens => room.min(tokens as usize),
                };
                plan.in_windows(encoder, &tokens.ids, &tokens.spans, window)?;
            }
        }
        Situate::Residual => plan.residual(encoder, text, tokens, options.weight)?,
    }
    Ok(plan)
}

fn check(options: &SituateOptions) -> Result<(), BridgeError> {
    if options.weight != -1.0 && !(0.0..=1.0).contains(&options.weight) {
        return Err(BridgeError::Option {
            name: "situate_weight",
            value: options.weight.to_string(),
            range: "0 to 1",
        });
    }
    if options.chunk_tokens == 0 {
        return Err(BridgeError::Option {
            name: "chunk_tokens",
            value: "0".to_owned(),
            range: "at least 1",
        });
    }
    Ok(())
}

/// Title and path as they are read before a chunk; words that repeat what stands before them are left out.
fn header(title: Option<&str>, headings: &[String]) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in title
        .into_iter()
        .chain(headings.iter().map(String::as_str))
        .map(str::trim)
    {
        if !part.is_empty() && parts.last() != Some(&part) {
            parts.push(part);
        }
    }
    parts.join(" > ")
}

impl Plan {
    /// Read-outs so far.
    fn reads(&self) -> usize {
        self.sequences.iter().map(Sequence::vectors).sum()
    }

    /// One sequence a chunk: the chunk as a passage.
    fn alone(&mut self, encoder: &Encoder, text: &str) -> Result<(), BridgeError> {
        let first = self.reads();
        for (number, chunk) in self.chunks.iter().enumerate() {
            self.sequences.push(encoder.text(Role::Passage, chunk.encoded(text))?);
            self.parts[number].alone = Some(first + number);
        }
        Ok(())
    }

    /// One short sequence a chunk: the title, the end of the chunk before it, and its beginning.
    fn in_places(&mut self, encoder: &Encoder, title: Option<&str>, text: &str) -> Result<(), BridgeError> {
        let first = self.reads();
        let mut before = None;
        for (number, chunk) in self.chunks.iter().enumerate() {
            let own = chunk.encoded(text);
            self.sequences
                .push(encoder.text(Role::Passage, &context_header::text(title, before, own))?);
            self.parts[number].situated = Some(first + number);
            before = Some(own);
        }
        Ok(())
    }

    /// One sequence a chunk: title and path, then the chunk.
    fn with_header(
        &mut self,
        encoder: &Encoder,
        title: Option<&str>,
        text: &str,
        room: usize,
    ) -> Result<(), BridgeError> {
        let mut last: Option<(String, Vec<u32>)> = None;
        for (number, chunk) in self.chunks.iter().enumerate() {
            let mut words = header(title, &chunk.headings);
            words.truncate(words.floor_char_boundary(room * HEADER_BYTES));
            // Neighbouring chunks mostly share their header.
            let mut ids = match &last {
                Some((known, ids)) if *known == words => ids.clone(),
                _ => {
                    let mut ids = encoder.tokenize_up_to(&words, room)?.ids;
                    ids.truncate(room);
                    last = Some((words, ids.clone()));
                    ids
                }
            };
            ids.extend(encoder.tokenize(chunk.encoded(text))?.ids);
            let (sequence, _) = encoder.assemble(Role::Passage, &ids)?;
            self.sequences.push(sequence);
            self.parts[number].alone = Some(number);
        }
        Ok(())
    }

    /// One sequence a window, with the tokens of the chunks that lie best in it as read-outs.
    fn in_windows(
        &mut self,
        encoder: &Encoder,
        ids: &[u32],
        spans: &[Span],
        window_tokens: usize,
    ) -> Result<(), BridgeError> {
        let ranges: Vec<Range<usize>> = self
            .chunks
            .iter()
            .map(|chunk| {
                let first = spans.partition_point(|token| token.start < chunk.span.start);
                let end = spans.partition_point(|token| token.start < chunk.encoded_end);
                // A chunk that the caller cut may be longer than any window: its tail is not read, as when it is alone.
                first..end.min(first + window_tokens.max(1))
            })
            .collect();
        let windows = windows(&ranges, window_tokens);
        let mut members: Vec<Vec<usize>> = vec![Vec::new(); windows.len()];
        for (number, range) in ranges.iter().enumerate() {
            members[best_window(&windows, &ranges, number, range)].push(number);
        }
        let mut next = self.reads();
        for (window, members) in windows.iter().zip(members) {
            if members.is_empty() {
                continue;
            }
            let tokens = ranges[window.start].start..ranges[window.end - 1].end;
            let (mut sequence, offset) = encoder.assemble(Role::Passage, &ids[tokens.clone()])?;
            let mut read = Vec::with_capacity(members.len());
            for number in members {
                let range = &ranges[number];
                let from = offset + range.start - tokens.start;
                read.push(from as u32..(from + range.len()) as u32);
                self.parts[number].situated = Some(next);
                next += 1;
            }
            sequence.read = Read::Spans(read);
            self.sequences.push(sequence);
        }
        Ok(())
    }
}

/// Overlapping runs of chunks of at most `window_tokens` tokens (at least one chunk each). A window starts about half
/// a window after the one before, so that all of them together are read about twice.
fn windows(chunks: &[Range<usize>], window_tokens: usize) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut first = 0;
    while first < chunks.len() {
        let start = chunks[first].start;
        let mut end = first + 1;
        while end < chunks.len() && chunks[end].end - start <= window_tokens {
            end += 1;
        }
        found.push(first..end);
        if end == chunks.len() {
            break;
        }
        let half = start + (chunks[end - 1].end - start) / 2;
        let mut next = first + 1;
        while next < end && chunks[next].start < half {
            next += 1;
        }
        first = next;
    }
    found
}

/// The window that gives a chunk the most context on its poorer side.
fn best_window(windows: &[Range<usize>], ranges: &[Range<usize>], number: usize, range: &Range<usize>) -> usize {
    let context = |window: &Range<usize>| {
        let before = range.start - ranges[window.start].start;
        let after = ranges[window.end - 1].end - range.end;
        // At the borders of the text one side is empty in every window: then the other side decides.
        (before.min(after), before.max(after))
    };
    let first = windows.partition_point(|window| window.end <= number);
    let last = windows.partition_point(|window| window.start <= number);
    (first..last)
        .max_by_key(|&window| context(&windows[window]))
        .unwrap_or(first)
}

/// Puts the encoder's vectors, in the order of the plan's sequences and their read-outs, together to one vector a
/// chunk.
///
/// Of `late`, the mix is normalised again: the text index compares by cosine, which would do the same. That of
/// `residual` is not.
///
/// # Errors
/// [`BridgeError::Vectors`] where their number does not fit the plan.
pub fn finish(plan: Plan, vectors: &[Vec<f32>]) -> Result<Vec<SituatedChunk>, BridgeError> {
    let expected = plan.reads();
    if vectors.len() != expected {
        return Err(BridgeError::Vectors {
            expected,
            found: vectors.len(),
        });
    }
    let combine = plan.combine;
    let chunks = plan.chunks.into_iter().zip(plan.parts).map(|(chunk, parts)| {
        let vector = match (parts.alone, parts.situated) {
            (Some(alone), Some(situated)) => combined(&vectors[alone], &vectors[situated], combine),
            (Some(only), None) | (None, Some(only)) => vectors[only].clone(),
            (None, None) => return Err(BridgeError::Vectors { expected, found: 0 }),
        };
        Ok(SituatedChunk {
            span: chunk.span,
            tokens: chunk.tokens,
            vector,
        })
    });
    chunks.collect()
}

fn combined(alone: &[f32], situated: &[f32], combine: Combine) -> Vec<f32> {
    let (own, other) = match combine {
        Combine::Normalized(weight) | Combine::Mix(weight) => (1.0 - weight, weight),
        Combine::Sum => (1.0, 1.0),
    };
    let mut mixed: Vec<f32> = alone.iter().zip(situated).map(|(&b, &s)| own * b + other * s).collect();
    if matches!(combine, Combine::Normalized(_)) {
        let norm = mixed.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt() as f32;
        if norm > 0.0 {
            mixed.iter_mut().for_each(|x| *x /= norm);
        }
    }
    mixed
}

#[cfg(test)]
#[path = "tests/mod.rs"]
mod forms;
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mix_is_the_formula() {
        // papers: q = (1, 0), c_s = (0.6, 0.8), c_b = (1, 0): the plain mix at 0.5 is (0.8, 0.4), of norm sqrt 0.8.
        let mixed = combined(&[1.0, 0.0], &[0.6, 0.8], Combine::Normalized(0.5));
        assert!((mixed[0] - 0.8 / 0.8f32.sqrt()).abs() < 1e-6);
        assert!((mixed[1] - 0.4 / 0.8f32.sqrt()).abs() < 1e-6);
        let identity = combined(&[1.0, 0.0], &[0.6, 0.8], Combine::Normalized(0.0));
        assert_eq!(identity, [1.0, 0.0]);
        // The residual's mix is not normalised: its inner product with q is the mix of the two scores, 0.5 + 0.5 * 0.6.
        assert_eq!(combined(&[1.0, 0.0], &[0.6, 0.8], Combine::Mix(0.5))[0], 0.8);
        assert_eq!(combined(&[1.0, 0.0], &[0.5, 0.75], Combine::Sum), [1.5, 0.75]);
    }

    #[test]
    fn windows_overlap_by_half_and_hold_every_chunk() {
        let ranges: Vec<Range<usize>> = (0..20).map(|chunk| chunk * 10..chunk * 10 + 10).collect();
        let found = windows(&ranges, 60);
        let read: usize = found.iter().map(|window| window.len() * 10).sum();
        assert!(read <= 2 * 200 + 60, "{read} tokens read");
        for (number, range) in ranges.iter().enumerate() {
            let window = &found[best_window(&found, &ranges, number, range)];
            assert!(window.contains(&number));
            assert!(window.len() * 10 <= 60);
            // In the middle of the text, every chunk has context on both sides.
            if (2..18).contains(&number) {
                assert!(
                    number > window.start && number + 1 < window.end,
                    "chunk {number} in {window:?}"
                );
            }
        }
    }

    #[test]
    fn a_chunk_larger_than_the_window_stands_alone() {
        let ranges = vec![0..100, 100..110, 110..300];
        let found = windows(&ranges, 50);
        assert_eq!(found.len(), 3);
        for (number, range) in ranges.iter().enumerate() {
            assert!(found[best_window(&found, &ranges, number, range)].contains(&number));
        }
    }

    #[test]
    fn header_leaves_repeated_words_out() {
        assert_eq!(header(Some("A"), &["A".into(), "B".into()]), "A > B");
        assert_eq!(header(None, &[]), "");
        assert_eq!(header(Some(" "), &["B".into()]), "B");
    }
}
