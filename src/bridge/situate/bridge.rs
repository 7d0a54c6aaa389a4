//! `bridge`: a trained residual over the vectors that a frozen encoder gives to the chunks of a document.
//!
//! With `b_i` the chunk's own vector (mixed with that of its place, see `context_header.rs`) and `x_s` those of its
//! sources (three chunks before and three behind it, and the mean of the document's chunks with unit length):
//!
//! `e_s = (A b_i) . (B x_s) / sqrt(rank) + beta_s`, `a = softmax(e, 0)` over the sources that there are and an empty
//! one, `c_i = normalize(b_i + M b_i + V sum_s a_s x_s)`.
//!
//! `V = 0` is the chunk-only control, a linear map of the passage's vector; `M = V = 0` gives the normalised `b_i`. The
//! encoder runs as for chunks alone, so the cost is the encoder's and `2 d^2 + (2 + sources) rank d` products a chunk.
//! Parameters are one row of numbers, in the order of [`Shape::ranges`], matrices row-major.

use super::linear::{add_scaled, apply, dot, unit};
use crate::bridge::{BridgeError, BridgeKind, file};
use serde_json::{Map, Value};
use std::ops::Range;

/// Neighbours on either side.
const REACH: usize = 3;
/// Neighbours and the document's mean.
pub const SOURCES: usize = 2 * REACH + 1;
/// This kind of bridge.
pub const KIND: BridgeKind = BridgeKind::Situate;
const NAMES: [&str; 5] = ["map", "values", "query", "key", "bias"];

/// Dimensions of vectors, and of the space in which chunk and source meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub dimensions: usize,
    pub rank: usize,
}

impl Shape {
    /// Where `M`, `V`, `A`, `B` and `beta` lie among the parameters.
    pub fn ranges(self) -> [Range<usize>; 5] {
        let (d, r) = (self.dimensions, self.rank);
        let mut start = 0;
        [d * d, d * d, r * d, r * d, SOURCES].map(|length| {
            start += length;
            start - length..start
        })
    }

    /// How many parameters there are.
    pub fn parameters(self) -> usize {
        self.ranges()[4].end
    }
}

/// A trained bridge.
#[derive(Clone, Debug, PartialEq)]
pub struct Bridge {
    pub shape: Shape,
    pub numbers: Vec<f32>,
    /// Share of the place in the chunk's vector, see `context_header.rs`; 0 where the encoder reads the chunk alone.
    pub share: f32,
}

/// The chunks of one document and the mean behind them: everything that a chunk can look at.
pub(super) struct Document<'a> {
    pub shape: Shape,
    /// Row-major, `count + 1` rows: the last is the mean with unit length.
    pub rows: &'a [f32],
    pub count: usize,
}

/// What a forward pass leaves for the backward one, a row a chunk.
pub(super) struct Passed {
    /// `A b_i`, and `B x` for every row of the document.
    pub queries: Vec<f32>,
    pub keys: Vec<f32>,
    /// `a_s`, [`SOURCES`] a chunk; 0 where there is no source.
    pub shares: Vec<f32>,
    /// `sum_s a_s x_s`.
    pub context: Vec<f32>,
    pub norms: Vec<f32>,
    /// `c_i`.
    pub vectors: Vec<f32>,
}

/// Rows of a document with their mean behind them.
pub(super) fn with_mean(dimensions: usize, rows: &[f32]) -> Vec<f32> {
    let mut all = rows.to_vec();
    let mut mean = vec![0.0; dimensions];
    for row in rows.chunks_exact(dimensions) {
        add_scaled(&mut mean, 1.0, row);
    }
    unit(&mut mean);
    all.extend(mean);
    all
}

impl<'a> Document<'a> {
    pub fn row(&self, number: usize) -> &'a [f32] {
        let d = self.shape.dimensions;
        &self.rows[number * d..(number + 1) * d]
    }

    /// The row that source `s` of chunk `i` is, if there is one.
    pub fn source(&self, i: usize, s: usize) -> Option<usize> {
        match s {
            s if s < REACH => i.checked_sub(s + 1),
            s if s < 2 * REACH => Some(i + s - REACH + 1).filter(|&at| at < self.count),
            // The mean of a document of one chunk is that chunk.
            _ => (self.count > 1).then_some(self.count),
        }
    }

    pub fn forward(&self, numbers: &[f32], context: bool) -> Passed {
        let (d, r) = (self.shape.dimensions, self.shape.rank);
        let [map, values, query, key, bias] = self.shape.ranges();
        let n = self.count;
        let mut passed = Passed {
            queries: vec![0.0; n * r],
            keys: vec![0.0; (n + 1) * r],
            shares: vec![0.0; n * SOURCES],
            context: vec![0.0; n * d],
            norms: vec![0.0; n],
            vectors: vec![0.0; n * d],
        };
        if context {
            for row in 0..=n {
                apply(
                    &numbers[key.clone()],
                    self.row(row),
                    &mut passed.keys[row * r..(row + 1) * r],
                );
            }
        }
        let mut mapped = vec![0.0; d];
        for i in 0..n {
            let own = self.row(i);
            let out = &mut passed.vectors[i * d..(i + 1) * d];
            out.copy_from_slice(own);
            apply(&numbers[map.clone()], own, &mut mapped);
            add_scaled(out, 1.0, &mapped);
            if context {
                apply(&numbers[query.clone()], own, &mut passed.queries[i * r..(i + 1) * r]);
                self.attend(i, &numbers[bias.clone()], &mut passed);
                apply(
                    &numbers[values.clone()],
                    &passed.context[i * d..(i + 1) * d],
                    &mut mapped,
                );
                add_scaled(&mut passed.vectors[i * d..(i + 1) * d], 1.0, &mapped);
            }
            passed.norms[i] = unit(&mut passed.vectors[i * d..(i + 1) * d]);
        }
        passed
    }

    /// The shares of chunk `i`'s sources, and their sum weighted by them.
    fn attend(&self, i: usize, bias: &[f32], passed: &mut Passed) {
        let (d, r) = (self.shape.dimensions, self.shape.rank);
        let at = &passed.queries[i * r..(i + 1) * r];
        let shares = &mut passed.shares[i * SOURCES..(i + 1) * SOURCES];
        let mut largest = 0.0f32;
        for (s, share) in shares.iter_mut().enumerate() {
            if let Some(row) = self.source(i, s) {
                let score = dot(at, &passed.keys[row * r..(row + 1) * r]) / (r as f32).sqrt();
                *share = score + bias[s];
                largest = largest.max(*share);
            }
        }
        let mut sum = (-largest).exp();
        for (s, share) in shares.iter_mut().enumerate() {
            if self.source(i, s).is_some() {
                *share = (*share - largest).exp();
                sum += *share;
            }
        }
        let context = &mut passed.context[i * d..(i + 1) * d];
        for (s, share) in shares.iter_mut().enumerate() {
            if let Some(row) = self.source(i, s) {
                *share /= sum;
                add_scaled(context, *share, self.row(row));
            }
        }
    }
}

impl Bridge {
    /// The situated vectors of a document, from those of all its chunks in order, each of the bridge's dimensions.
    ///
    /// # Errors
    /// [`BridgeError::Vectors`] for another number of dimensions.
    pub fn apply(&self, chunks: &[&[f32]]) -> Result<Vec<Vec<f32>>, BridgeError> {
        let d = self.shape.dimensions;
        if let Some(other) = chunks.iter().find(|chunk| chunk.len() != d) {
            return Err(BridgeError::Vectors {
                expected: d,
                found: other.len(),
            });
        }
        let document = Document {
            shape: self.shape,
            rows: &with_mean(d, &chunks.concat()),
            count: chunks.len(),
        };
        let passed = document.forward(&self.numbers, true);
        match passed.vectors.iter().all(|number| number.is_finite()) {
            true => Ok(passed.vectors.chunks_exact(d).map(<[f32]>::to_vec).collect()),
            false => Err(BridgeError::NotFinite {
                what: "situated vector",
            }),
        }
    }

    /// The bytes of a bridge, see [`file`]. `more` is added to the metadata's JSON object.
    ///
    /// # Errors
    /// [`BridgeError::File`] where numbers and shape do not fit each other.
    pub fn write(&self, more: Map<String, Value>) -> Result<Vec<u8>, BridgeError> {
        let (d, r) = (self.shape.dimensions, self.shape.rank);
        let shapes = [vec![d, d], vec![d, d], vec![r, d], vec![r, d], vec![SOURCES]];
        let mut tensors = Vec::with_capacity(NAMES.len());
        for ((name, shape), range) in NAMES.iter().zip(shapes).zip(self.shape.ranges()) {
            tensors.push((*name, shape, self.numbers.get(range).unwrap_or_default()));
        }
        tensors.push(("share", vec![1], std::slice::from_ref(&self.share)));
        file::write(KIND, d, more, &tensors)
    }

    /// Reads what [`Bridge::write`] wrote.
    ///
    /// # Errors
    /// [`BridgeError::File`] for other bytes and for numbers that are none.
    pub fn read(bytes: &[u8]) -> Result<Bridge, BridgeError> {
        let mut tensors = file::Tensors::read(bytes, KIND)?;
        let dimensions = tensors.description.dimensions;
        let query = tensors.take_any("query");
        let Some(([rank, _], _)) = query.as_ref().map(|(shape, numbers)| (shape.as_slice(), numbers)) else {
            return Err(BridgeError::File(
                "tensor \"query\" is missing or not a matrix".to_owned(),
            ));
        };
        let rank = *rank;
        if rank == 0 || query.as_ref().is_none_or(|(shape, _)| shape != &[rank, dimensions]) {
            return Err(BridgeError::File("tensor \"query\" has another shape".to_owned()));
        }
        let d = dimensions;
        let mut numbers = tensors.take("map", &[d, d])?;
        numbers.extend(tensors.take("values", &[d, d])?);
        numbers.extend(query.into_iter().flat_map(|(_, numbers)| numbers));
        numbers.extend(tensors.take("key", &[rank, d])?);
        numbers.extend(tensors.take("bias", &[SOURCES])?);
        let share = tensors.take("share", &[1])?.first().copied().unwrap_or_default();
        if !(0.0..=1.0).contains(&share) {
            return Err(BridgeError::File(format!("share {share} is not in 0 to 1")));
        }
        Ok(Bridge {
            shape: Shape { dimensions, rank },
            numbers,
            share,
        })
    }
}
