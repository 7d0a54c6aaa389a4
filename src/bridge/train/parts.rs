//! What trainers do with their material before they train: parting documents, making queries, encoding texts.

use super::data::{Encode, Pair, Passage, Progress, Watch};
use crate::bridge::BridgeError;
use crate::compute::pooling::normalize;
use crate::eval::bootstrap::{Draws, Interval, of_difference, of_gain};
use crate::eval::random::Random;
use crate::eval::tasks::{Cut, Frequencies, Task, make, white_space_words};
use crate::model::Role;
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

/// What held-out queries say of a bridge: each query's value before and with it, paired by place.
pub struct Judged {
    pub base: f64,
    pub with: f64,
    /// `with / base - 1`; 0 where `base` is 0.
    pub gain: f64,
    /// The 95 % interval of the relative gain, where it is defined.
    pub gain_interval: Option<Interval>,
    /// The 95 % interval of `with - base`.
    pub difference: Option<Interval>,
}

impl Judged {
    /// From each query's value. The seed draws the intervals (percentile bootstrap over queries).
    pub fn of(base: &[f64], with: &[f64], seed: u64) -> Judged {
        let draws = Draws {
            seed,
            ..Draws::default()
        };
        let (before, after) = (mean(base), mean(with));
        Judged {
            base: before,
            with: after,
            gain: if before > 0.0 { after / before - 1.0 } else { 0.0 },
            gain_interval: of_gain(base, with, draws),
            difference: of_difference(base, with, draws),
        }
    }

    /// Whether the bridge is better by more than the choice of queries explains: the whole interval of the difference
    /// lies above 0. A mean of some hundred queries is above 0 every other time for a bridge that does nothing.
    pub fn helps(&self) -> bool {
        self.difference.is_some_and(|difference| difference.low > 0.0)
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
        vectors.extend(found.values);
        watch.step(&Progress::default())?;
    }
    Ok((dimensions, vectors))
}

/// The vectors of passages as they are: those that they came with, or the encoder's where none came with one.
///
/// # Errors
/// [`BridgeError::TooLittle`] where some came with vectors and some without, and those of [`embed_as_is`].
pub fn passage_vectors(
    encode: &mut dyn Encode,
    watch: &mut dyn Watch,
    passages: &[Passage],
) -> Result<(usize, Vec<f32>), BridgeError> {
    let given: Vec<&Vec<f32>> = passages.iter().filter_map(|passage| passage.vector.as_ref()).collect();
    let Some(first) = given.first() else {
        let texts: Vec<&str> = passages.iter().map(|passage| passage.text.as_str()).collect();
        return embed_as_is(encode, watch, Role::Passage, &texts);
    };
    let dimensions = first.len();
    if given.len() != passages.len() || dimensions == 0 {
        return Err(BridgeError::TooLittle(format!(
            "{} of {} passages have no embedding",
            passages.len() - given.len(),
            passages.len()
        )));
    }
    match given.iter().find(|vector| vector.len() != dimensions) {
        Some(other) => Err(BridgeError::Vectors {
            expected: dimensions,
            found: other.len(),
        }),
        None => Ok((dimensions, given.into_iter().flatten().copied().collect())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn a_bridge_helps_where_the_whole_interval_is_above_zero() {
        let base: Vec<f64> = (0..200).map(|query| f64::from(query % 5) / 4.0).collect();
        // One query in four gains 0.1: the mean 0.025, far from 0 over 200 queries.
        let better: Vec<f64> = base
            .iter()
            .zip(0..)
            .map(|(x, n)| x + f64::from(u8::from(n % 4 == 0)) / 10.0)
            .collect();
        let judged = Judged::of(&base, &better, 1);
        assert!(judged.helps());
        assert!((judged.with - judged.base - 0.025).abs() < 1e-12 && (judged.gain - 0.05).abs() < 1e-9);
        // The same mean out of gains and losses of 0.5 is within chance.
        let chance: Vec<f64> = base
            .iter()
            .zip(0..)
            .map(|(x, n)| x + if n % 40 < 21 { 0.5 } else { -0.5 })
            .collect();
        let judged = Judged::of(&base, &chance, 1);
        assert!(judged.with > judged.base && !judged.helps());
        assert!(!Judged::of(&better, &base, 1).helps());
        assert!(!Judged::of(&base, &base, 1).helps());
        assert!(!Judged::of(&[], &[], 1).helps());
    }
}
