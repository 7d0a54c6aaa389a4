//! RaBitQ's 1-bit codes: what is stored of a vector's residual, and the lower bounds that a query gets from it.
//!
//! After Gao and Long, "RaBitQ: Quantizing High-Dimensional Vectors with a Theoretical Error Bound" (SIGMOD 2024), in the
//! form that needs one look-up table a query. With o the rotated vector less the origin, c its list's centroid, r = o - c,
//! s the signs of r and y = q - c, `<r, y>` is estimated by `|r|^2 / <r, s> * <s, y>` with a standard deviation of at
//! most `|r| |y| sqrt((1 - a^2) / a^2) / sqrt(D - 1)`, a = <r, s> / (|r| sqrt D). As `<s, y> = <s, q> - <s, c>` and
//! `<s, c>` is known when the code is made, a lane keeps
//! - squared distance: `add = |r|^2 + 2 f <s, c>`, `scale = -2 f`, `error = 2 e`; the list adds `|y|^2`;
//! - inner product: `add = f <s, c> - <r, c>`, `scale = -f`, `error = e`; the list adds `-<origin, q> - <c, q>`,
//!
//! with `f = |r|^2 / <r, s>`, `e` the deviation above without `|y|`. The lower bound is
//! `add + list's part + scale * <s, q> - EPSILON * error * |y|`.

use super::page::{Lane, Layout, RecordPtr};
use super::store::PageBytes;
use super::types::Metric;
use crate::compute::vectors::fastscan::{BLOCK, Slices, Table, put_block, put_row};

/// Standard deviations between an estimate and its lower bound: one bound in about 300 is too high at 2.7, and a hit may
/// then come out a place late. More makes every scan re-rank more vectors.
pub const EPSILON: f32 = 2.7;
/// The same for documents, which come out once: a bound that is too high would give a document the distance of its
/// second-best chunk. One in 30,000; beside the encoding of a question the further re-ranks cost little.
pub const DOCUMENT_EPSILON: f32 = 4.0;

/// The three factors of a lane.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Factors {
    pub add: f32,
    pub scale: f32,
    pub error: f32,
}

/// A centroid that can be stored: `scale * component`.
#[derive(Clone, Debug, Default)]
pub struct Centroid {
    pub scale: f32,
    pub components: Vec<i8>,
    /// The decoded values.
    pub values: Vec<f32>,
    pub norm_squared: f32,
}

impl Centroid {
    /// The storable centroid next to `values`.
    pub fn new(values: &[f32]) -> Centroid {
        let largest = values.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        let scale = if largest > 0.0 && largest.is_finite() {
            largest / 127.0
        } else {
            0.0
        };
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        let components: Vec<i8> = values.iter().map(|x| (x * inverse).round() as i8).collect();
        Centroid::decode(scale, components)
    }

    /// A centroid from what is stored of it.
    pub fn decode(scale: f32, components: Vec<i8>) -> Centroid {
        let values: Vec<f32> = components.iter().map(|&x| f32::from(x) * scale).collect();
        let norm_squared = values.iter().map(|x| x * x).sum();
        Centroid {
            scale,
            components,
            values,
            norm_squared,
        }
    }
}

/// Factors of the vector at `rotated` (less the origin) in the list of `centroid`; leaves the residual in `residual`.
pub fn encode(metric: Metric, rotated: &[f32], centroid: &Centroid, residual: &mut Vec<f32>) -> Factors {
    residual.clear();
    residual.extend(rotated.iter().zip(&centroid.values).map(|(o, c)| o - c));
    let (mut square, mut along, mut signs, mut product) = (0.0f64, 0.0f64, 0.0f64, 0.0f64);
    for (&r, &c) in residual.iter().zip(&centroid.values) {
        let (r, c) = (f64::from(r), f64::from(c));
        square += r * r;
        along += r.abs();
        signs += if r > 0.0 { c } else { -c };
        product += r * c;
    }
    let dimensions = residual.len() as f64;
    let (factor, deviation) = if square > 0.0 {
        let cosine_squared = (along * along / (square * dimensions)).min(1.0);
        let spread = ((1.0 - cosine_squared) / cosine_squared).sqrt();
        (
            square / along,
            square.sqrt() * spread / (dimensions - 1.0).max(1.0).sqrt(),
        )
    } else {
        (0.0, 0.0)
    };
    let factors = match metric {
        Metric::L2 | Metric::Cosine => Factors {
            add: (square + 2.0 * factor * signs) as f32,
            scale: (-2.0 * factor) as f32,
            error: (2.0 * deviation) as f32,
        },
        Metric::InnerProduct => Factors {
            add: (factor * signs - product) as f32,
            scale: -factor as f32,
            error: deviation as f32,
        },
    };
    if factors.add.is_finite() && factors.scale.is_finite() && factors.error.is_finite() {
        factors
    } else {
        // Beyond f32: a bound below everything, so that the vector is always re-ranked.
        Factors {
            add: f32::NEG_INFINITY,
            scale: 0.0,
            error: 0.0,
        }
    }
}

/// Fills a free lane of a code page and sets it live.
pub fn put(layout: &Layout, page: &mut PageBytes, lane: usize, value: &Lane, residual: &[f32]) {
    layout.put_lane(page, lane, value);
    let codes = layout.codes_mut(page);
    if layout.blocks {
        let size = 4 * layout.padded;
        put_block(
            &mut codes[lane / BLOCK * size..(lane / BLOCK + 1) * size],
            lane % BLOCK,
            residual,
        );
    } else {
        let size = layout.padded / 8;
        put_row(&mut codes[lane * size..(lane + 1) * size], residual);
    }
    layout.set_live(page, lane, true);
}

/// A lane from its parts.
pub fn lane(factors: Factors, tid: u64, ordinal: u32, place: RecordPtr) -> Lane {
    Lane {
        add: factors.add,
        scale: factors.scale,
        error: factors.error,
        tid,
        ordinal,
        place,
    }
}

/// A list's part of every bound in it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ListTerms {
    /// Added to every estimate; also the list's rank.
    pub add: f32,
    /// Deviations of the bound times `|q - c|`.
    pub error: f32,
}

/// A query, rotated and tabulated.
pub struct Prepared {
    metric: Metric,
    pub rotated: Vec<f32>,
    norm_squared: f32,
    epsilon: f32,
    /// Inner product: `-<origin, q>`.
    constant: f32,
    scan: Tables,
}

enum Tables {
    Blocks(Table),
    Rows(Slices),
}

impl Prepared {
    /// `rotated` is the rotated query (its direction under cosine), from which the origin is taken here.
    pub fn new(metric: Metric, mut rotated: Vec<f32>, origin: &[f32], layout: &Layout) -> Prepared {
        let mut constant = 0.0;
        match metric {
            Metric::L2 | Metric::Cosine => rotated.iter_mut().zip(origin).for_each(|(q, o)| *q -= o),
            Metric::InnerProduct => constant = -rotated.iter().zip(origin).map(|(q, o)| q * o).sum::<f32>(),
        }
        let norm_squared = rotated.iter().map(|x| x * x).sum();
        let scan = if layout.blocks {
            Tables::Blocks(Table::new(&rotated))
        } else {
            Tables::Rows(Slices::new(&rotated))
        };
        Prepared {
            metric,
            rotated,
            norm_squared,
            epsilon: if layout.documents { DOCUMENT_EPSILON } else { EPSILON },
            constant,
            scan,
        }
    }

    /// With another number of standard deviations between estimates and their bounds.
    pub fn with_deviations(self, epsilon: f32) -> Prepared {
        Prepared { epsilon, ..self }
    }

    /// Norm of the rotated query.
    pub fn norm(&self) -> f32 {
        self.norm_squared.sqrt()
    }

    /// A list's terms from `<q, c>` and `|c|^2`.
    #[inline]
    pub fn list(&self, product: f32, norm_squared: f32) -> ListTerms {
        let squared = (self.norm_squared + norm_squared - 2.0 * product).max(0.0);
        let add = match self.metric {
            Metric::L2 | Metric::Cosine => squared,
            Metric::InnerProduct => self.constant - product,
        };
        ListTerms {
            add,
            error: self.epsilon * squared.sqrt(),
        }
    }

    /// Lower bounds of all lanes of a code page, dead ones included.
    pub fn bounds(&self, layout: &Layout, page: &PageBytes, terms: ListTerms, out: &mut Vec<f32>) {
        out.clear();
        let [add, scale, error] = layout.factors(page);
        let codes = layout.codes(page);
        // <s, q> = 2 * (sum at set bits) - (sum of all). Scales are negative: adding deviations to it lowers the bound.
        match &self.scan {
            Tables::Blocks(table) => {
                let factor = 2.0 * table.scale;
                let offset = 2.0 * (table.offset + 3.0 * table.deviation) - table.total;
                let mut scores = [0u16; BLOCK];
                let part = 4 * BLOCK;
                let factors = add
                    .chunks_exact(part)
                    .zip(scale.chunks_exact(part))
                    .zip(error.chunks_exact(part));
                for (block, ((add, scale), error)) in codes.chunks_exact(4 * layout.padded).zip(factors) {
                    table.score(block, &mut scores);
                    let (add, scale, error) = (floats(add), floats(scale), floats(error));
                    let mut bounds = [0.0f32; BLOCK];
                    for i in 0..BLOCK {
                        let sum = factor * f32::from(scores[i]) + offset;
                        bounds[i] = add[i] + terms.add + scale[i] * sum - error[i] * terms.error;
                    }
                    out.extend_from_slice(&bounds);
                }
            }
            Tables::Rows(slices) => {
                let offset = 6.0 * slices.deviation - slices.total;
                let factors = add
                    .chunks_exact(4)
                    .zip(scale.chunks_exact(4))
                    .zip(error.chunks_exact(4));
                for (row, ((add, scale), error)) in codes.chunks_exact(layout.padded / 8).zip(factors) {
                    let get = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                    let sum = 2.0 * slices.score(row) + offset;
                    out.push(get(add) + terms.add + get(scale) * sum - get(error) * terms.error);
                }
            }
        }
    }
}

/// The little-endian floats of a block's lanes.
#[inline]
fn floats(bytes: &[u8]) -> [f32; BLOCK] {
    let mut out = [0.0; BLOCK];
    for (x, b) in out.iter_mut().zip(bytes.chunks_exact(4)) {
        *x = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::page::new_page;
    use super::super::types::{Element, IndexOptions};
    use super::*;
    use crate::compute::vectors::rotation::Rotation;
    use crate::random::splitmix64;

    /// Bounds lie below the exact distances as often as EPSILON promises, and not far below.
    #[test]
    fn bounds_hold() {
        for metric in [Metric::L2, Metric::InnerProduct] {
            for d in [50u32, 384, 2000] {
                let options = IndexOptions {
                    metric,
                    element: Element::F32,
                    dimensions: d,
                    lists: 0,
                    documents: false,
                    model: None,
                    extra: Vec::new(),
                };
                let layout = Layout::new(&options);
                let rotation = Rotation::new(d as usize, 11);
                let mut state = u64::from(d);
                let mut random = |n: u32| -> Vec<f32> {
                    (0..n)
                        .map(|_| (splitmix64(&mut state) >> 40) as f32 / (1 << 24) as f32)
                        .collect()
                };
                let rotate = |v: &[f32]| {
                    let mut out = Vec::new();
                    rotation.apply(v, &mut out);
                    out
                };
                let center = random(d);
                let origin = rotate(&random(d));
                let shifted = |v: Vec<f32>| v.iter().zip(&origin).map(|(a, b)| a - b).collect::<Vec<f32>>();
                let centroid = Centroid::new(&shifted(rotate(&center)));
                let (mut above, mut total, mut gap) = (0, 0, 0.0f64);
                for _ in 0..20 {
                    let query = random(d);
                    let prepared = Prepared::new(metric, rotate(&query), &origin, &layout);
                    let product = prepared.rotated.iter().zip(&centroid.values).map(|(a, b)| a * b).sum();
                    let terms = prepared.list(product, centroid.norm_squared);
                    let mut page = new_page();
                    layout.begin_codes(&mut page, 0, 1);
                    let mut residual = Vec::new();
                    let vectors: Vec<Vec<f32>> = (0..layout.lanes).map(|_| random(d)).collect();
                    for (i, v) in vectors.iter().enumerate() {
                        let factors = encode(metric, &shifted(rotate(v)), &centroid, &mut residual);
                        put(
                            &layout,
                            &mut page,
                            i,
                            &lane(factors, 1, 0, RecordPtr { block: 1, slot: 0 }),
                            &residual,
                        );
                    }
                    let mut bounds = Vec::new();
                    prepared.bounds(&layout, &page, terms, &mut bounds);
                    for (v, &bound) in vectors.iter().zip(&bounds) {
                        let pairs = v.iter().zip(&query).map(|(&a, &b)| (f64::from(a), f64::from(b)));
                        let exact: f64 = match metric {
                            Metric::InnerProduct => -pairs.map(|(a, b)| a * b).sum::<f64>(),
                            _ => pairs.map(|(a, b)| (a - b) * (a - b)).sum(),
                        };
                        total += 1;
                        above += usize::from(f64::from(bound) > exact + 1e-4);
                        gap += (exact - f64::from(bound)) / f64::from(d);
                    }
                }
                assert!(
                    above * 100 <= total,
                    "{metric:?} d={d}: {above} of {total} bounds too high"
                );
                assert!(
                    gap / (total as f64) < 0.15,
                    "{metric:?} d={d}: mean gap {}",
                    gap / total as f64
                );
            }
        }
    }
}
