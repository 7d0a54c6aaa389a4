//! What trainers do with their material before they train: parting documents, making queries, encoding texts.

use super::data::{Encode, Pair, Passage, Progress, Watch};
use crate::bridge::BridgeError;
use crate::compute::memory::{reserve, with_room};
use crate::compute::rowwise::pooling::normalize;
use crate::eval::tasks::{Cut, Frequencies, Task, make, white_space_words};
use crate::model::Role;
use crate::random::Random;
use crate::text::sentences;
use serde::{Deserialize, Serialize};

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

/// Numbers of what is trained on, of what chooses and of what judges; of the last two at most `measured`, drawn by the seed.
/// `items` are numbers with their documents.
///
/// # Errors
/// [`BridgeError::TooLittle`] where a part has fewer than `fewest`; `what` names the items.
pub fn parted(
    items: impl Iterator<Item = (usize, u32)>,
    what: &str,
    held_out: f64,
    measured: usize,
    fewest: usize,
    seed: u64,
) -> Result<[Vec<usize>; 3], BridgeError> {
    let [mut training, mut choosing, mut judging]: [Vec<usize>; 3] = Default::default();
    for (number, document) in items {
        match part(document, held_out, seed) {
            Part::Training => training.push(number),
            Part::Choosing => choosing.push(number),
            Part::Judging => judging.push(number),
        }
    }
    for held_out in [&mut choosing, &mut judging] {
        Random::new(seed).shuffle(held_out);
        held_out.truncate(measured);
    }
    let parts = [training, choosing, judging];
    match parts.iter().map(Vec::len).find(|count| *count < fewest) {
        Some(few) => Err(BridgeError::TooLittle(format!(
            "a part of the {what} has {few}, at least {fewest} are needed to train, to choose and to judge; they are held \
             out document by document"
        ))),
        None => Ok(parts),
    }
}

/// The order in which epochs go through `count` items, each shuffled by the seed; the last one asked for is kept.
pub struct Epochs {
    count: usize,
    seed: u64,
    epoch: usize,
    order: Vec<usize>,
}

impl Epochs {
    pub fn new(count: usize, seed: u64) -> Epochs {
        Epochs {
            count,
            seed,
            epoch: usize::MAX,
            order: Vec::new(),
        }
    }

    /// The item at a place, counted through all epochs. There is one item at least.
    pub fn at(&mut self, place: usize) -> usize {
        let (epoch, within) = (place / self.count, place % self.count);
        if epoch != self.epoch {
            self.order = (0..self.count).collect();
            Random::new(self.seed.wrapping_add(1 + epoch as u64)).shuffle(&mut self.order);
            self.epoch = epoch;
        }
        self.order[within]
    }
}

/// The mean; 0 of nothing.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// The standard error of the mean difference of paired values; 0 of fewer than two.
pub fn standard_error(base: &[f64], with: &[f64]) -> f64 {
    let differences: Vec<f64> = base.iter().zip(with).map(|(base, with)| with - base).collect();
    let (count, middle) = (differences.len() as f64, mean(&differences));
    if differences.len() < 2 {
        return 0.0;
    }
    let squares: f64 = differences.iter().map(|difference| (difference - middle).powi(2)).sum();
    (squares / (count - 1.0) / count).sqrt()
}

/// Which epoch of a training is kept: the last one whose score is within one standard error of the largest so far, and above
/// that of the start. Scores of some hundred queries tell neighbouring epochs apart by chance, so that the largest one is
/// mostly too early; a training that has learned too much falls by more than that.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// Before anything was trained.
    pub first: f64,
    /// The largest so far.
    pub most: f64,
}

impl Choice {
    pub fn new(first: f64) -> Choice {
        Choice { first, most: first }
    }

    /// Whether the epoch of this score is to be kept.
    pub fn keeps(&mut self, score: f64, standard_error: f64) -> bool {
        self.most = self.most.max(score);
        score > self.first && score >= self.most - standard_error
    }
}

/// nDCG@10 of one relevant passage at each rank from 0.
pub fn gains(ranks: &[u32]) -> Vec<f64> {
    let gain = |rank: &u32| match rank {
        0..10 => 1.0 / f64::from(rank + 2).log2(),
        _ => 0.0,
    };
    ranks.iter().map(gain).collect()
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
            answer: None,
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
    let (dimensions, mut vectors) = embed_as_is(encode, watch, role, texts)?;
    vectors.chunks_exact_mut(dimensions.max(1)).for_each(normalize);
    Ok((dimensions, vectors))
}

/// Like [`embed`], with the vectors as the encoder gives them.
pub fn embed_as_is(
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
        reserve(&mut vectors, found.values.len())?;
        vectors.extend(found.values);
        watch.step(&Progress::default())?;
    }
    Ok((dimensions, vectors))
}

/// The vectors of passages as they are: those that they came with, the encoder's of those that came without.
///
/// # Errors
/// [`BridgeError::Vectors`] where they are not of one length, and what [`embed_as_is`] fails with.
pub fn passage_vectors(
    encode: &mut dyn Encode,
    watch: &mut dyn Watch,
    passages: &[Passage],
) -> Result<(usize, Vec<f32>), BridgeError> {
    let without = passages.iter().filter(|passage| passage.vector.is_none());
    let texts: Vec<&str> = without.map(|passage| passage.text.as_str()).collect();
    let (mut dimensions, encoded) = embed_as_is(encode, watch, Role::Passage, &texts)?;
    if texts.len() == passages.len() {
        return Ok((dimensions, encoded));
    }
    let given = passages.iter().find_map(|passage| passage.vector.as_ref());
    if texts.is_empty() {
        dimensions = given.map_or(0, Vec::len);
    }
    let mut encoded = encoded.chunks_exact(dimensions.max(1));
    let mut vectors = with_room(passages.len() * dimensions)?;
    for passage in passages {
        let vector = passage.vector.as_deref().or_else(|| encoded.next()).unwrap_or_default();
        if vector.len() != dimensions || dimensions == 0 {
            return Err(BridgeError::Vectors {
                expected: dimensions,
                found: vector.len(),
            });
        }
        vectors.extend_from_slice(vector);
    }
    Ok((dimensions, vectors))
}

/// Like [`passage_vectors`], with unit length: an index under cosine compares directions.
pub fn passage_directions(
    encode: &mut dyn Encode,
    watch: &mut dyn Watch,
    passages: &[Passage],
) -> Result<(usize, Vec<f32>), BridgeError> {
    let (dimensions, mut vectors) = passage_vectors(encode, watch, passages)?;
    vectors.chunks_exact_mut(dimensions.max(1)).for_each(normalize);
    Ok((dimensions, vectors))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bridge::train::data::Vectors;

    /// Encodes a text as its length and one.
    struct Lengths;

    impl Encode for Lengths {
        fn embed(&mut self, _role: Role, texts: &[&str]) -> Result<Vectors, BridgeError> {
            Ok(Vectors {
                dimensions: 2,
                values: texts.iter().flat_map(|text| [text.len() as f32, 1.0]).collect(),
            })
        }

        fn tokens(&mut self, _texts: &[&str]) -> Result<Vec<Vec<u32>>, BridgeError> {
            Err(BridgeError::NoReading("tokens"))
        }
    }

    struct Nobody;

    impl Watch for Nobody {
        fn step(&mut self, _progress: &Progress) -> Result<(), BridgeError> {
            Ok(())
        }

        fn checkpoint(&mut self, _bytes: &[u8]) -> Result<(), BridgeError> {
            Ok(())
        }
    }

    #[test]
    fn a_passage_with_a_vector_is_that_vector() {
        let passage = |text: &str, vector: Option<Vec<f32>>| Passage {
            key: text.to_owned(),
            document: 0,
            ordinal: 0,
            text: text.to_owned(),
            vector,
        };
        let found = |passages: &[Passage]| passage_vectors(&mut Lengths, &mut Nobody, passages);
        let given = [
            passage("abc", None),
            passage("b", Some(vec![0.0, 7.0])),
            passage("abcd", None),
        ];
        assert_eq!(found(&given).unwrap(), (2, vec![3.0, 1.0, 0.0, 7.0, 4.0, 1.0]));
        assert_eq!(found(&given[1..2]).unwrap(), (2, vec![0.0, 7.0]));
        assert_eq!(found(&given[..1]).unwrap(), (2, vec![3.0, 1.0]));
        let directions = passage_directions(&mut Lengths, &mut Nobody, &given[1..2]).unwrap();
        assert_eq!(directions, (2, vec![0.0, 1.0]));
        for other in [vec![1.0], vec![]] {
            let odd = [passage("abc", None), passage("b", Some(other))];
            assert!(matches!(found(&odd), Err(BridgeError::Vectors { .. })));
        }
    }

    #[test]
    fn the_last_epoch_within_an_error_of_the_best_is_kept() {
        // Differences 0.1, 0.3: mean 0.2, variance 0.02, over two 0.01.
        assert!((standard_error(&[1.0, 1.0], &[1.1, 1.3]) - 0.1).abs() < 1e-12);
        assert_eq!(standard_error(&[1.0], &[2.0]), 0.0);
        let mut choice = Choice::new(0.5);
        let scores = [0.49, 0.55, 0.60, 0.585, 0.57, 0.59];
        let kept: Vec<bool> = scores.into_iter().map(|score| choice.keeps(score, 0.02)).collect();
        assert_eq!(kept, [false, true, true, true, false, true]);
        assert_eq!(choice.most, 0.60);
        assert!(!Choice::new(0.5).keeps(0.5, 1.0), "what changes nothing is not kept");
    }
}
