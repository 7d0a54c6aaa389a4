//! The launches of index builds: nearest centroids, rotation, codes. Like `launch.rs`, which has those of the passes.

use super::super::ComputeError;
use super::gpu::Memory;
use super::launch::{Launch, count, fits, number, parameters};
use super::shared_memory::ROTATED;

impl Launch<'_> {
    /// The nearest of `half_norms.len()` centroids of each row, and the squared distance to it.
    #[allow(clippy::too_many_arguments)]
    pub fn nearest_centroid(
        &self,
        rows: &Memory<f32>,
        centroids: &Memory<f32>,
        half_norms: &Memory<f32>,
        nearest: &Memory<u32>,
        distances: &Memory<f32>,
        row_count: usize,
        dimensions: usize,
    ) -> Result<(), ComputeError> {
        let kernel = self.kernels.get("nearest_centroid")?;
        let centroid_count = half_norms.len();
        fits(
            "nearest_centroid",
            &[
                count(rows, row_count * dimensions),
                count(centroids, centroid_count * dimensions),
                count(nearest, row_count),
                count(distances, row_count),
            ],
        )?;
        let (rows32, centroids32, dimensions32) = (number(row_count)?, number(centroid_count)?, number(dimensions)?);
        self.run(
            kernel,
            (row_count.div_ceil(64), 1),
            256,
            2 * 16 * 68 * 4,
            parameters![
                rows.address(),
                centroids.address(),
                half_norms.address(),
                nearest.address(),
                distances.address(),
                rows32,
                centroids32,
                dimensions32,
            ],
        )
    }

    /// Vectors of `dimensions` elements to rotated ones of `padded`; `signs` are those of the rotation.
    pub fn rotate(
        &self,
        vectors: &Memory<f32>,
        signs: &Memory<f32>,
        out: &Memory<f32>,
        vector_count: usize,
        dimensions: usize,
        padded: usize,
    ) -> Result<(), ComputeError> {
        let limit = ROTATED.min(self.stream.gpu.shared_memory / size_of::<f32>());
        if padded == 0 || dimensions > padded || padded > limit {
            return Err(ComputeError::Shape(format!(
                "rotation of {dimensions} in {padded} numbers, at most {limit}"
            )));
        }
        let kernel = self.kernels.get("rotate")?;
        fits(
            "rotate",
            &[
                count(vectors, vector_count * dimensions),
                count(signs, 4 * padded),
                count(out, vector_count * padded),
            ],
        )?;
        let power = 1usize << padded.ilog2();
        let scale = 1.0 / (power as f32).sqrt();
        let (dimensions32, padded32, power32) = (number(dimensions)?, number(padded)?, number(power)?);
        self.run(
            kernel,
            (vector_count, 1),
            256,
            padded * size_of::<f32>(),
            parameters![
                vectors.address(),
                signs.address(),
                out.address(),
                dimensions32,
                padded32,
                power32,
                scale,
            ],
        )
    }

    /// Factors (3 a vector) and code (`padded / 32` words a vector) of rotated vectors in their lists.
    #[allow(clippy::too_many_arguments)]
    pub fn encode(
        &self,
        rotated: &Memory<f32>,
        centroids: &Memory<f32>,
        lists: &Memory<u32>,
        factors: &Memory<f32>,
        codes: &Memory<u32>,
        vector_count: usize,
        padded: usize,
        inner_product: bool,
    ) -> Result<(), ComputeError> {
        if padded == 0 || !padded.is_multiple_of(32) {
            return Err(ComputeError::Shape(format!("codes of {padded} numbers")));
        }
        let kernel = self.kernels.get("encode")?;
        fits(
            "encode",
            &[
                count(rotated, vector_count * padded),
                count(centroids, padded),
                count(lists, vector_count),
                count(factors, vector_count * 3),
                count(codes, vector_count * padded / 32),
            ],
        )?;
        let (count32, padded32, inner32) = (number(vector_count)?, number(padded)?, u32::from(inner_product));
        self.run(
            kernel,
            (vector_count.div_ceil(8), 1),
            256,
            0,
            parameters![
                rotated.address(),
                centroids.address(),
                lists.address(),
                factors.address(),
                codes.address(),
                count32,
                padded32,
                inner32,
            ],
        )
    }
}
