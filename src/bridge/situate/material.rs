//! What the training of the bridge reads: passages of documents in order with their vectors, pairs, and which split of
//! the material each document belongs to.

use super::bridge::{Shape, with_mean};
use super::context_header;
use super::options::Options;
use crate::bridge::BridgeError;
use crate::bridge::train::data::{Encode, Pair, Passage, Vectors};
use crate::bridge::train::split::Split;
use crate::model::Role;
use std::ops::Range;

/// Passages of a batch: documents are added while they fit, and cut where one alone is longer.
pub const BATCH_PASSAGES: usize = 400;
/// Share of the documents that is held out, half of it for validation.
const HELD_OUT: f64 = 0.2;
/// Fewest pairs of each split.
const FEWEST_PAIRS: usize = 8;

/// Consecutive passages of one document: all of it, unless it is too long for a batch.
pub struct Segment {
    pub passages: Range<usize>,
    /// Rows with the mean behind them: of the chunks alone for the control, mixed with their places for the bridge.
    pub rows: [Vec<f32>; 2],
    /// Indices of the pairs whose passage is one of these.
    pub pairs: Vec<usize>,
    pub split: Split,
}

/// Everything that steps read.
pub struct Material {
    pub shape: Shape,
    pub segments: Vec<Segment>,
    pub queries: Vectors,
    pub pairs: Vec<Pair>,
    pub options: Options,
}

impl Material {
    /// Reads and encodes.
    ///
    /// # Errors
    /// [`BridgeError::TooLittle`] for too few pairs of a split, [`BridgeError::Outside`] for a pair without passage,
    /// and what `encode` fails with.
    pub fn gather(
        passages: &[Passage],
        pairs: Vec<Pair>,
        options: Options,
        encode: &mut dyn Encode,
    ) -> Result<Material, BridgeError> {
        let outside = pairs.iter().find(|pair| pair.passage as usize >= passages.len());
        if let Some(pair) = outside {
            return Err(BridgeError::Outside(format!(
                "passage {} of a pair does not exist",
                pair.passage
            )));
        }
        let mut order: Vec<usize> = (0..passages.len()).collect();
        order.sort_by_key(|&at| (passages[at].document, passages[at].ordinal));
        let vectors = Encoded::of(passages, &order, &pairs, &options, encode)?;
        let (segments, pairs) = segments(passages, &order, pairs, &vectors, options.seed);
        let material = Material {
            shape: Shape {
                dimensions: vectors.queries.dimensions,
                rank: options.rank,
            },
            segments,
            queries: vectors.queries,
            pairs,
            options,
        };
        material.check()?;
        Ok(material)
    }

    /// Fails where a split has too few pairs.
    fn check(&self) -> Result<(), BridgeError> {
        for (split, what) in [
            (Split::Training, "to train on"),
            (Split::Validation, "to choose by"),
            (Split::Test, "to test by"),
        ] {
            let found = self.count(split);
            if found < FEWEST_PAIRS {
                return Err(BridgeError::TooLittle(format!(
                    "{found} pairs {what}, at least {FEWEST_PAIRS} are needed; pairs are held out document by document"
                )));
            }
        }
        Ok(())
    }

    /// Pairs of a split.
    pub fn count(&self, split: Split) -> usize {
        let segments = self.segments.iter().filter(|segment| segment.split == split);
        segments.map(|segment| segment.pairs.len()).sum()
    }

    /// A pair's query.
    pub fn query(&self, pair: usize) -> &[f32] {
        let d = self.shape.dimensions;
        &self.queries.values[pair * d..(pair + 1) * d]
    }
}

/// What the encoder gives, checked.
struct Encoded {
    /// Of the passages alone, in order.
    alone: Vec<f32>,
    /// Of the passages mixed with their places, or alone.
    placed: Vec<f32>,
    queries: Vectors,
}

impl Encoded {
    fn of(
        passages: &[Passage],
        order: &[usize],
        pairs: &[Pair],
        options: &Options,
        encode: &mut dyn Encode,
    ) -> Result<Encoded, BridgeError> {
        let texts: Vec<&str> = order.iter().map(|&at| passages[at].text.as_str()).collect();
        let vectors = encode.embed(Role::Passage, &texts)?;
        let situated = match options.document && options.place {
            true => encode_places(passages, order, encode)?,
            false => vectors.clone(),
        };
        let texts: Vec<&str> = pairs.iter().map(|pair| pair.query.as_str()).collect();
        let queries = encode.embed(Role::Query, &texts)?;
        let d = vectors.dimensions;
        check(&vectors, d, passages.len())?;
        check(&situated, d, passages.len())?;
        check(&queries, d, pairs.len())?;
        let mut placed = vectors.values.clone();
        if options.place {
            for (own, other) in placed.chunks_exact_mut(d).zip(situated.values.chunks_exact(d)) {
                context_header::mix(own, other);
            }
        }
        Ok(Encoded {
            alone: vectors.values,
            placed,
            queries,
        })
    }
}

/// Fails unless these are `count` vectors of `dimensions` finite numbers.
fn check(vectors: &Vectors, dimensions: usize, count: usize) -> Result<(), BridgeError> {
    if vectors.dimensions != dimensions || dimensions == 0 || vectors.values.len() != count * dimensions {
        return Err(BridgeError::Vectors {
            expected: count,
            found: vectors.values.len() / dimensions.max(1),
        });
    }
    match vectors.values.iter().all(|number| number.is_finite()) {
        true => Ok(()),
        false => Err(BridgeError::NotFinite {
            what: "training vectors",
        }),
    }
}

/// The documents cut into segments, and the pairs with their passages' places in the order of the segments.
fn segments(
    passages: &[Passage],
    order: &[usize],
    pairs: Vec<Pair>,
    vectors: &Encoded,
    seed: u64,
) -> (Vec<Segment>, Vec<Pair>) {
    let d = vectors.queries.dimensions;
    let mut of_passage = vec![Vec::new(); passages.len()];
    for (number, pair) in pairs.iter().enumerate() {
        of_passage[pair.passage as usize].push(number);
    }
    let mut segments: Vec<Segment> = Vec::new();
    let mut start = 0;
    while start < order.len() {
        let document = passages[order[start]].document;
        let same = order[start..]
            .iter()
            .take_while(|&&at| passages[at].document == document);
        let end = start + same.take(BATCH_PASSAGES).count();
        let asked = order[start..end].iter().flat_map(|&at| of_passage[at].iter().copied());
        segments.push(Segment {
            rows: [&vectors.alone, &vectors.placed].map(|rows| with_mean(d, &rows[start * d..end * d])),
            pairs: asked.collect(),
            passages: start..end,
            split: Split::of(document, HELD_OUT, seed),
        });
        start = end;
    }
    let mut place = vec![0u32; passages.len()];
    order
        .iter()
        .enumerate()
        .for_each(|(at, &passage)| place[passage] = at as u32);
    let pairs = pairs.into_iter().map(|pair| Pair {
        passage: place[pair.passage as usize],
        ..pair
    });
    (segments, pairs.collect())
}

/// Vectors of the places of passages, in `order`.
fn encode_places(passages: &[Passage], order: &[usize], encode: &mut dyn Encode) -> Result<Vectors, BridgeError> {
    let mut before: Option<&Passage> = None;
    let mut places = Vec::with_capacity(order.len());
    for &at in order {
        let own = &passages[at];
        let same = before.filter(|other| other.document == own.document);
        places.push(context_header::text(
            None,
            same.map(|other| other.text.as_str()),
            &own.text,
        ));
        before = Some(own);
    }
    let places: Vec<&str> = places.iter().map(String::as_str).collect();
    encode.embed(Role::Passage, &places)
}
