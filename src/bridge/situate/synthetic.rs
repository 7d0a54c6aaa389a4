//! Synthetic pairs, made from the passages, where a user has none: sentences as the questions that their passage
//! answers.
//!
//! A sentence asks for its own passage among its neighbours, so it teaches what tells a passage from the rest of its
//! document. It is not a question that a person asks: a gain on synthetic pairs need not carry over.

use crate::bridge::train::data::{Pair, Passage};
use crate::random::Random;
use crate::text::sentences;

/// Pairs a passage, at most.
const EACH: usize = 2;
/// Words of a sentence that can be asked.
const WORDS: std::ops::RangeInclusive<usize> = 5..=40;

/// Up to two sentences of each passage of more than one sentence.
pub fn pairs(passages: &[Passage], seed: u64) -> Vec<Pair> {
    let mut random = Random::new(seed);
    let mut pairs = Vec::new();
    for (number, passage) in passages.iter().enumerate() {
        let all = sentences(&passage.text);
        let fit = all.iter().filter_map(|span| span.of(&passage.text));
        let mut fit: Vec<&str> = fit
            .filter(|text| WORDS.contains(&text.split_whitespace().count()))
            .collect();
        if all.len() < 2 {
            continue;
        }
        for _ in 0..EACH.min(fit.len()) {
            let query = fit.swap_remove(random.below(fit.len())).to_owned();
            pairs.push(Pair {
                query,
                passage: number as u32,
                answer: None,
            });
        }
    }
    pairs
}
