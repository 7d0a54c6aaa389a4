//! Synthetic pairs, made from the passages, where a user has none.

use super::data::{Pair, Passage};
use crate::eval::tasks::{Cut, Frequencies, Task, make, white_space_words};
use crate::random::Random;
use crate::text::sentences;

/// A sentence of each passage as its query.
pub fn synthetic_pairs(passages: &[Passage], seed: u64) -> Vec<Pair> {
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
            answer: None,
        }));
    }
    pairs
}
