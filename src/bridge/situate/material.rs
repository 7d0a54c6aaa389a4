//! What the training of the bridge reads: passages of documents in order with their vectors, pairs, and which part of the
//! material each document belongs to.

use super::bridge::{Shape, with_mean};
use super::options::Options;
use super::place;
use crate::bridge::BridgeError;
use crate::bridge::train::data::{Encode, Pair, Passage, Vectors};
use crate::bridge::train::parts::{Part, part};
use crate::model::Role;
use std::ops::Range;

/// Passages of a batch: documents are added while they fit, and cut where one alone is longer.
pub const BATCH_PASSAGES: usize = 400;
/// Share of the documents that is held out, half of it for choosing.
const HELD_OUT: f64 = 0.2;
/// Fewest pairs of each part.
const FEWEST_PAIRS: usize = 8;

/// A run of consecutive passages of one document: all of it, unless it is too long for a batch.
pub struct Run {
    pub passages: Range<usize>,
    /// Rows with the mean behind them: of the chunks alone for the control, mixed with their places for the bridge.
    pub rows: [Vec<f32>; 2],
    /// Indices of the pairs whose passage is one of these.
    pub pairs: Vec<usize>,
    pub part: Part,
}

/// Everything that steps read.
pub struct Material {
    pub shape: Shape,
    pub runs: Vec<Run>,
    pub queries: Vectors,
    pub pairs: Vec<Pair>,
    pub options: Options,
}

impl Material {
    /// Reads and encodes.
    ///
    /// # Errors
    /// [`BridgeError::TooLittle`] for too few pairs of a part, [`BridgeError::Outside`] for a pair without passage, and what
    /// `encode` fails with.
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
        let texts: Vec<&str> = order.iter().map(|&at| passages[at].text.as_str()).collect();
        let vectors = encode.embed(Role::Passage, &texts)?;
        let situated = match options.document && options.place {
            true => encode_places(passages, &order, encode)?,
            false => vectors.clone(),
        };
        let texts: Vec<&str> = pairs.iter().map(|pair| pair.query.as_str()).collect();
        let queries = encode.embed(Role::Query, &texts)?;
        let d = vectors.dimensions;
        for (vectors, count) in [
            (&vectors, passages.len()),
            (&situated, passages.len()),
            (&queries, pairs.len()),
        ] {
            if vectors.dimensions != d || d == 0 || vectors.values.len() != count * d {
                return Err(BridgeError::Vectors {
                    expected: count,
                    found: vectors.values.len() / d.max(1),
                });
            }
            if !vectors.values.iter().all(|number| number.is_finite()) {
                return Err(BridgeError::NotFinite {
                    what: "training vectors",
                });
            }
        }
        let mut placed = vectors.values.clone();
        if options.place {
            for (own, other) in placed.chunks_exact_mut(d).zip(situated.values.chunks_exact(d)) {
                place::mix(own, other);
            }
        }
        let shape = Shape {
            dimensions: d,
            rank: options.rank,
        };
        let mut of_passage = vec![Vec::new(); passages.len()];
        for (number, pair) in pairs.iter().enumerate() {
            of_passage[pair.passage as usize].push(number);
        }
        let mut runs: Vec<Run> = Vec::new();
        let mut start = 0;
        while start < order.len() {
            let document = passages[order[start]].document;
            let same = order[start..]
                .iter()
                .take_while(|&&at| passages[at].document == document);
            let end = start + same.take(BATCH_PASSAGES).count();
            runs.push(Run {
                rows: [&vectors.values, &placed].map(|rows| with_mean(d, &rows[start * d..end * d])),
                pairs: order[start..end]
                    .iter()
                    .flat_map(|&at| of_passage[at].iter().copied())
                    .collect(),
                passages: start..end,
                part: part(document, HELD_OUT, options.seed),
            });
            start = end;
        }
        // From here on a pair's passage is its place in the order of the runs.
        let mut place = vec![0u32; passages.len()];
        order
            .iter()
            .enumerate()
            .for_each(|(at, &passage)| place[passage] = at as u32);
        let pairs = pairs.into_iter().map(|pair| Pair {
            passage: place[pair.passage as usize],
            ..pair
        });
        let material = Material {
            shape,
            runs,
            queries,
            pairs: pairs.collect(),
            options,
        };
        for (part, what) in [
            (Part::Training, "to train on"),
            (Part::Choosing, "to choose by"),
            (Part::Judging, "to judge by"),
        ] {
            let found = material.count(part);
            if found < FEWEST_PAIRS {
                return Err(BridgeError::TooLittle(format!(
                    "{found} pairs {what}, at least {FEWEST_PAIRS} are needed; pairs are held out document by document"
                )));
            }
        }
        Ok(material)
    }

    /// Pairs of a part.
    pub fn count(&self, part: Part) -> usize {
        let runs = self.runs.iter().filter(|run| run.part == part);
        runs.map(|run| run.pairs.len()).sum()
    }

    /// A pair's query.
    pub fn query(&self, pair: usize) -> &[f32] {
        let d = self.shape.dimensions;
        &self.queries.values[pair * d..(pair + 1) * d]
    }
}

/// Vectors of the places of passages, in `order`.
fn encode_places(passages: &[Passage], order: &[usize], encode: &mut dyn Encode) -> Result<Vectors, BridgeError> {
    let mut before: Option<&Passage> = None;
    let mut places = Vec::with_capacity(order.len());
    for &at in order {
        let own = &passages[at];
        let same = before.filter(|other| other.document == own.document);
        places.push(place::text(None, same.map(|other| other.text.as_str()), &own.text));
        before = Some(own);
    }
    let places: Vec<&str> = places.iter().map(String::as_str).collect();
    encode.embed(Role::Passage, &places)
}
