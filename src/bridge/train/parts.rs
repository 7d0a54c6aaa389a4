//! What trainers do with their material before they train: parting documents, making queries, encoding texts.

use super::data::{Encode, Pair, Passage, Progress, Watch};
use crate::bridge::BridgeError;
use crate::compute::pooling::normalize;
use crate::eval::random::Random;
use crate::eval::tasks::{Cut, Frequencies, Task, make, white_space_words};
use crate::model::Role;
use crate::text::sentences;

/// Texts that are encoded in one request.
const ENCODED_AT_ONCE: usize = 1024;

/// Which part of the material a document belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Training,
    /// Chooses when training ends.
    Choosing,
    /// Gives the figures.
    Judging,
}

/// By a hash of the document's number, so that its part does not depend on the others. `held_out` is the share of the
/// documents that are not trained on, half of it for choosing.
pub fn part(document: u32, held_out: f64, seed: u64) -> Part {
    let bits = Random::new(seed ^ u64::from(document).wrapping_mul(0x9e37_79b9_7f4a_7c15)).bits();
    let share = (bits >> 11) as f64 / (1u64 << 53) as f64;
    match share {
        share if share >= held_out => Part::Training,
        share if share >= held_out / 2.0 => Part::Choosing,
        _ => Part::Judging,
    }
}

/// A sentence of each passage as its query.
pub fn made_pairs(passages: &[Passage], seed: u64) -> Vec<Pair> {
    let spans = |text: &str| {
        let spans = sentences(text).into_iter();
        spans.map(|span| span.start as usize..span.end as usize).collect()
    };
    let cut = Cut {
        words: &white_space_words,
        sentences: &spans,
    };
    let mut random = Random::new(seed);
    let mut pairs = Vec::new();
    for (number, passage) in passages.iter().enumerate() {
        let made = make(
            Task::Sentence,
            &passage.text,
            0.0..1.0,
            &cut,
            &Frequencies::default(),
            &mut random,
        );
        pairs.extend(made.map(|query| Pair {
            query,
            passage: number as u32,
        }));
    }
    pairs
}

/// Encodes texts, looking at `watch` between requests: dimensions, and the vectors row-major with unit length.
pub fn embed(
    encode: &mut dyn Encode,
    watch: &mut dyn Watch,
    role: Role,
    texts: &[&str],
) -> Result<(usize, Vec<f32>), BridgeError> {
    let (mut dimensions, mut vectors) = (0, Vec::new());
    for part in texts.chunks(ENCODED_AT_ONCE) {
        let found = encode.embed(role, part)?;
        let expected = part.len() * found.dimensions;
        if found.dimensions == 0 || found.values.len() != expected || ![0, found.dimensions].contains(&dimensions) {
            return Err(BridgeError::Vectors {
                expected,
                found: found.values.len(),
            });
        }
        dimensions = found.dimensions;
        vectors.extend(found.values);
        watch.step(&Progress::default())?;
    }
    vectors.chunks_exact_mut(dimensions.max(1)).for_each(normalize);
    Ok((dimensions, vectors))
}
