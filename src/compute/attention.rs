//! Attention of one head over one sequence: `softmax(Q K^T / sqrt d) V`, both products by the tiles of `gemm.rs`.
//!
//! Keys are packed transposed and values as they are, both in panels; then a tile of query rows at a time takes its
//! scores (all keys of the sequence), a two-pass softmax and the product with the values. Memory: one tile's scores
//! and the packed keys and values, linear in the sequence's length.

use super::ComputeError;
use super::buffer::{Buffer, Shared};
use super::cpu::{Kernel, Level, dispatch};
use super::gemm::{F32, TILE_WORDS, Tile, tile};
use super::simd::Simd;

/// Scratch memory of one thread.
pub struct Scratch {
    keys: Buffer<f32>,
    values: Buffer<f32>,
    scores: Buffer<f32>,
}

impl Scratch {
    /// Memory for sequences of up to `length` tokens and heads of `width` numbers.
    pub fn new(level: Level, length: usize, width: usize) -> Result<Scratch, ComputeError> {
        let columns = level.or_detected().panel_columns();
        let padded = length.next_multiple_of(columns);
        Ok(Scratch {
            keys: Buffer::zeroed(padded * width)?,
            values: Buffer::zeroed(width.next_multiple_of(columns) * length)?,
            scores: Buffer::zeroed(padded * level.or_detected().tile_rows())?,
        })
    }
}

/// One head of one sequence.
pub struct Head<'a> {
    /// Queries, keys and values of all tokens of the batch: rows of 3 x `hidden` numbers.
    pub qkv: &'a [f32],
    pub hidden: usize,
    /// First token of the sequence in the batch.
    pub start: usize,
    /// Tokens of the sequence.
    pub length: usize,
    /// Number of the head.
    pub head: usize,
    /// Numbers of a head.
    pub width: usize,
    /// Rows of `hidden` numbers, one a token of the batch: this head's part of this sequence's rows is written.
    pub out: Shared<f32>,
    pub scratch: &'a mut Scratch,
}

impl Head<'_> {
    /// Computes the head.
    ///
    /// # Safety
    /// No other task uses this head's part of this sequence's rows in `out` meanwhile.
    pub unsafe fn run_on(self, level: Level) {
        let level = level.or_detected();
        let padded = self.length.next_multiple_of(level.panel_columns());
        assert!(self.width > 0 && (self.head + 1) * self.width <= self.hidden);
        assert!(self.qkv.len() >= (self.start + self.length) * 3 * self.hidden);
        assert!(self.scratch.keys.len() >= padded * self.width);
        assert!(self.scratch.values.len() >= self.width.next_multiple_of(level.panel_columns()) * self.length);
        assert!(self.scratch.scores.len() >= padded * level.tile_rows());
        // SAFETY: sizes are asserted; exclusivity is the caller's promise.
        unsafe { dispatch(level, self) }
    }
}

impl Kernel for Head<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Head {
            qkv,
            hidden,
            start,
            length,
            head,
            width,
            out,
            scratch,
        } = self;
        let row_words = 3 * hidden;
        // SAFETY: `run_on` has asserted that the sequence lies in `qkv`.
        let queries = unsafe { qkv.as_ptr().add(start * row_words + head * width) };
        let scale = 1.0 / (width as f32).sqrt();
        let padded = length.next_multiple_of(S::COLUMNS);
        let value_panels = width.div_ceil(S::COLUMNS);
        // SAFETY: all addresses follow from the sizes that `run_on` has asserted.
        unsafe {
            let (keys, values) = (scratch.keys.as_mut_ptr(), scratch.values.as_mut_ptr());
            let scores = scratch.scores.as_mut_ptr();
            pack_keys::<S>(queries.add(hidden), row_words, length, width, keys);
            pack_values::<S>(queries.add(2 * hidden), row_words, length, width, values);
            let mut sums = Tile([0; TILE_WORDS]);
            let sums = (&raw mut sums.0).cast::<u32>();
            let mut inverse = [0f32; 16];
            let mut row = 0;
            while row < length {
                let rows = (length - row).min(S::ROWS);
                for panel in 0..padded / S::COLUMNS {
                    let q = queries.add(row * row_words).cast();
                    let k = keys.add(panel * width * S::COLUMNS).cast();
                    tile::<F32<S>>(rows, width, q, row_words, k, S::COLUMNS, sums);
                    for i in 0..rows {
                        let from = sums.add(i * S::COLUMNS).cast::<f32>();
                        let to = scores.add(i * padded + panel * S::COLUMNS);
                        S::store(to, S::load(from));
                        S::store(to.add(S::LANES), S::load(from.add(S::LANES)));
                    }
                }
                for (i, inverse) in inverse.iter_mut().enumerate().take(rows) {
                    *inverse = 1.0 / softmax_numerators::<S>(scores.add(i * padded), length, scale);
                }
                for panel in 0..value_panels {
                    let v = values.add(panel * length * S::COLUMNS).cast();
                    tile::<F32<S>>(rows, length, scores.cast(), padded, v, S::COLUMNS, sums);
                    for (i, inverse) in inverse.iter().enumerate().take(rows) {
                        for part in 0..2 {
                            let column = panel * S::COLUMNS + part * S::LANES;
                            let lanes = width.saturating_sub(column).min(S::LANES);
                            let x = S::load(sums.add(i * S::COLUMNS + part * S::LANES).cast());
                            let at = (start + row + i) * hidden + head * width + column;
                            if lanes > 0 {
                                let to = out.part(at, lanes).as_mut_ptr();
                                S::store_first(to, S::mul(x, S::splat(*inverse)), lanes);
                            }
                        }
                    }
                }
                row += rows;
            }
        }
    }
}

/// Keys as panels of the right side of `Q K^T`: panel, then number of the head, then key. Missing keys are zero.
///
/// # Safety
/// `from` has `length` rows of `width` numbers, `stride` apart; `to` holds `length` rounded up to panels, times `width`.
#[inline(always)]
unsafe fn pack_keys<S: Simd>(from: *const f32, stride: usize, length: usize, width: usize, to: *mut f32) {
    for panel in 0..length.div_ceil(S::COLUMNS) {
        let present = (length - panel * S::COLUMNS).min(S::COLUMNS);
        // SAFETY: inside the ranges that the caller promises.
        unsafe {
            let target = to.add(panel * width * S::COLUMNS);
            let source = from.add(panel * S::COLUMNS * stride);
            for i in 0..width {
                let line = target.add(i * S::COLUMNS);
                for key in 0..present {
                    line.add(key).write(source.add(key * stride + i).read());
                }
                for key in present..S::COLUMNS {
                    line.add(key).write(0.0);
                }
            }
        }
    }
}

/// Values as panels of the right side of `P V`: panel, then token, then number of the head. Missing numbers are zero.
///
/// # Safety
/// `from` has `length` rows of `width` numbers, `stride` apart; `to` holds `width` rounded up to panels, times `length`.
#[inline(always)]
unsafe fn pack_values<S: Simd>(from: *const f32, stride: usize, length: usize, width: usize, to: *mut f32) {
    for panel in 0..width.div_ceil(S::COLUMNS) {
        for token in 0..length {
            for part in 0..2 {
                let column = panel * S::COLUMNS + part * S::LANES;
                let lanes = width.saturating_sub(column).min(S::LANES);
                // SAFETY: inside the ranges that the caller promises; no lane beyond `width` is read.
                unsafe {
                    let x = S::load_first(from.wrapping_add(token * stride + column), lanes);
                    S::store(to.add((panel * length + token) * S::COLUMNS + part * S::LANES), x);
                }
            }
        }
    }
}

/// Replaces a row of scores by `exp(scale (x - max))` and returns their sum. The row is padded to whole vectors; what
/// stands behind `length` is overwritten and does not count (it becomes `exp` of the clamp, 1e-38, below the precision
/// of a sum of at least 1).
///
/// # Safety
/// `row` holds `length` numbers rounded up to whole vectors.
#[inline(always)]
unsafe fn softmax_numerators<S: Simd>(row: *mut f32, length: usize, scale: f32) -> f32 {
    let padded = length.next_multiple_of(S::LANES);
    // SAFETY: all addresses are below `padded`.
    unsafe {
        for i in length..padded {
            row.add(i).write(f32::NEG_INFINITY);
        }
        let mut largest = S::load(row);
        let mut at = S::LANES;
        while at < padded {
            largest = S::max(largest, S::load(row.add(at)));
            at += S::LANES;
        }
        let largest = S::splat(S::largest(largest));
        let scale = S::splat(scale);
        let mut sum = S::zero();
        at = 0;
        while at < padded {
            let x = super::activation::exp::<S>(S::mul(S::sub(S::load(row.add(at)), largest), scale));
            S::store(row.add(at), x);
            sum = S::add(sum, x);
            at += S::LANES;
        }
        S::sum(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expected(qkv: &[f32], hidden: usize, start: usize, length: usize, head: usize, width: usize) -> Vec<f64> {
        let at = |token: usize, part: usize, i: usize| {
            qkv[(start + token) * 3 * hidden + part * hidden + head * width + i] as f64
        };
        let mut out = Vec::new();
        for q in 0..length {
            let scores: Vec<f64> = (0..length)
                .map(|k| (0..width).map(|i| at(q, 0, i) * at(k, 1, i)).sum::<f64>() / (width as f64).sqrt())
                .collect();
            let largest = scores.iter().cloned().fold(f64::MIN, f64::max);
            let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
            let sum: f64 = weights.iter().sum();
            for i in 0..width {
                out.push((0..length).map(|k| weights[k] / sum * at(k, 2, i)).sum());
            }
        }
        out
    }

    #[test]
    fn equals_the_formula_in_f64() {
        for level in Level::available() {
            for (heads, width, lengths) in [
                (2, 8, vec![1, 5, 33]),
                (1, 32, vec![128, 31]),
                (3, 64, vec![17]),
                (2, 20, vec![70, 2]),
            ] {
                let hidden = heads * width;
                let tokens: usize = lengths.iter().sum();
                let qkv: Vec<f32> = (0..tokens * 3 * hidden)
                    .map(|i| ((i * 7919 % 2003) as f32 - 1001.0) / 500.0)
                    .collect();
                let mut out = vec![0f32; tokens * hidden];
                let mut scratch = Scratch::new(level, 128, width).unwrap();
                let mut start = 0;
                for length in lengths {
                    for head in 0..heads {
                        let shared = Shared::new(&mut out);
                        let scratch = &mut scratch;
                        let job = Head {
                            qkv: &qkv,
                            hidden,
                            start,
                            length,
                            head,
                            width,
                            out: shared,
                            scratch,
                        };
                        // SAFETY: one task.
                        unsafe { job.run_on(level) };
                        let want = expected(&qkv, hidden, start, length, head, width);
                        for (i, want) in want.into_iter().enumerate() {
                            let found = out[(start + i / width) * hidden + head * width + i % width];
                            assert!(
                                (found as f64 - want).abs() < 2e-5,
                                "{level:?} {width} {length}: {found} {want}"
                            );
                        }
                    }
                    start += length;
                }
            }
        }
    }
}
