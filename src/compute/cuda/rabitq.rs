//! Index builds on a gpu: nearest centroids, the rotation, 1-bit codes. From and to host memory, in pieces.

use super::super::ComputeError;
use super::engine::Engine;
use super::gpu::{Memory, Stream};
use crate::compute::cpu::memory::{collected, with_room};
use crate::compute::vectors::rotation::Rotation;
use std::sync::Arc;

/// Elements of a piece: enough to fill a GPU, and some hundred MB with what is computed from it.
const PIECE: usize = 1 << 25;

/// A stream for the work of an index build.
pub struct Coder {
    engine: Arc<Engine>,
    stream: Stream,
}

/// Centroids on the GPU, as [`Coder::nearest`] and [`Coder::encode`] read them.
pub struct Centroids {
    values: Memory<f32>,
    half_norms: Memory<f32>,
    dimensions: usize,
}

/// What is stored of vectors in their lists.
pub struct Codes {
    /// `add`, `scale` and `error` of each vector.
    pub factors: Vec<[f32; 3]>,
    /// The signs of each vector's residual: bit `i % 32` of word `i / 32`, so little-endian bytes are a row code.
    pub words: Vec<u32>,
}

impl Coder {
    pub fn new(engine: &Arc<Engine>) -> Result<Coder, ComputeError> {
        Ok(Coder {
            engine: engine.clone(),
            stream: Stream::new(&engine.gpu)?,
        })
    }

    /// Copies centroids, row-major `[count][dimensions]`.
    pub fn centroids(&self, values: &[f32], dimensions: usize) -> Result<Centroids, ComputeError> {
        if dimensions == 0 || values.is_empty() || !values.len().is_multiple_of(dimensions) {
            let what = format!("{} numbers of centroids of {dimensions}", values.len());
            return Err(ComputeError::Shape(what));
        }
        let half_norm = |row: &[f32]| 0.5 * row.iter().map(|x| x * x).sum::<f32>();
        let half_norms: Vec<f32> = collected(values.chunks_exact(dimensions).map(half_norm))?;
        Ok(Centroids {
            values: Memory::from_slice(&self.stream, values)?,
            half_norms: Memory::from_slice(&self.stream, &half_norms)?,
            dimensions,
        })
    }

    /// Nearest centroid of every row and the squared distance to it. CPU twin: [`crate::compute::vectors::nearest_centroid::Panels::nearest`].
    pub fn nearest(&self, centroids: &Centroids, rows: &[f32]) -> Result<Vec<(u32, f32)>, ComputeError> {
        let dimensions = centroids.dimensions;
        whole(rows, dimensions)?;
        let mut found = with_room(rows.len() / dimensions)?;
        for piece in rows.chunks(PIECE.next_multiple_of(dimensions)) {
            let count = piece.len() / dimensions;
            let from = Memory::from_slice(&self.stream, piece)?;
            let places = Memory::new(&self.engine.gpu, count)?;
            let distances = Memory::new(&self.engine.gpu, count)?;
            let Centroids { values, half_norms, .. } = centroids;
            let launch = self.engine.on(&self.stream);
            launch.nearest_centroid(&from, values, half_norms, &places, &distances, count, dimensions)?;
            found.extend(
                places
                    .to_vec(&self.stream)?
                    .into_iter()
                    .zip(distances.to_vec(&self.stream)?),
            );
        }
        Ok(found)
    }

    /// Rotates vectors, row-major `[n][dimensions]`, to `[n][padded]`. CPU twin: [`Rotation::apply`].
    pub fn rotate(&self, rotation: &Rotation, vectors: &[f32], dimensions: usize) -> Result<Vec<f32>, ComputeError> {
        whole(vectors, dimensions)?;
        let padded = rotation.padded();
        let signs = Memory::from_slice(&self.stream, rotation.signs())?;
        let mut rotated = with_room(vectors.len() / dimensions * padded)?;
        for piece in vectors.chunks(PIECE.next_multiple_of(dimensions)) {
            let count = piece.len() / dimensions;
            let from = Memory::from_slice(&self.stream, piece)?;
            let out = Memory::new(&self.engine.gpu, count * padded)?;
            self.engine
                .on(&self.stream)
                .rotate(&from, &signs, &out, count, dimensions, padded)?;
            rotated.extend(out.to_vec(&self.stream)?);
        }
        Ok(rotated)
    }

    /// Codes of rotated vectors (less the origin), `lists` being the centroid of each. CPU twin: `encode` in
    /// src/index/rabitq.rs; `inner_product` is its metric.
    pub fn encode(
        &self,
        centroids: &Centroids,
        rotated: &[f32],
        lists: &[u32],
        inner_product: bool,
    ) -> Result<Codes, ComputeError> {
        let padded = centroids.dimensions;
        whole(rotated, padded)?;
        let known = centroids.half_norms.len();
        if lists.len() * padded != rotated.len() || lists.iter().any(|list| *list as usize >= known) {
            let what = format!(
                "{} lists of {known} for {} numbers of {padded}",
                lists.len(),
                rotated.len()
            );
            return Err(ComputeError::Shape(what));
        }
        let mut codes = Codes {
            factors: with_room(lists.len())?,
            words: with_room(rotated.len() / 32)?,
        };
        let rows = (PIECE / padded).max(1);
        for (piece, lists) in rotated.chunks(rows * padded).zip(lists.chunks(rows)) {
            let count = lists.len();
            let (gpu, stream) = (&self.engine.gpu, &self.stream);
            let from = Memory::from_slice(stream, piece)?;
            let places = Memory::from_slice(stream, lists)?;
            let (factors, words) = (Memory::new(gpu, count * 3)?, Memory::new(gpu, count * padded / 32)?);
            let launch = self.engine.on(stream);
            launch.encode(
                &from,
                &centroids.values,
                &places,
                &factors,
                &words,
                count,
                padded,
                inner_product,
            )?;
            codes
                .factors
                .extend_from_slice(factors.to_vec(stream)?.as_chunks::<3>().0);
            codes.words.extend(words.to_vec(stream)?);
        }
        Ok(codes)
    }
}

fn whole(elements: &[f32], width: usize) -> Result<(), ComputeError> {
    if width == 0 || !elements.len().is_multiple_of(width) {
        return Err(ComputeError::Shape(format!(
            "{} numbers in rows of {width}",
            elements.len()
        )));
    }
    Ok(())
}
