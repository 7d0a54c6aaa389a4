//! Attention of new tokens over the keys and values that a sequence has kept.
//!
//! Keys and values lie in blocks of [`BLOCK`] positions. A block of keys is `[head width][BLOCK]`, so that the scores of
//! several positions come out of one vector; a block of values is `[BLOCK][head width]`.

use crate::compute::cpu::level::{Kernel, Level, dispatch};
use crate::compute::cpu::simd::Simd;
use crate::compute::rowwise::activation::exp;
use std::ops::Range;

/// Positions of a block.
pub const BLOCK: usize = 64;

/// One token's query heads that share a head of keys.
pub struct Group<'a> {
    /// `heads * width` elements; the results take their place.
    pub queries: &'a mut [f32],
    pub width: usize,
    /// Blocks of the key head, and of its values.
    pub keys: &'a [&'a [f32]],
    pub values: &'a [&'a [f32]],
    /// Positions that are seen: `from..until`.
    pub from: usize,
    pub until: usize,
    pub scale: f32,
    /// Room for `heads` times the positions of all blocks: on return the attention of each head over the positions.
    pub scores: &'a mut Vec<f32>,
}

/// Replaces the queries by the mixed values.
pub fn attend(level: Level, group: Group<'_>) {
    let (width, heads) = (group.width, group.queries.len() / group.width.max(1));
    let blocks = group.until.div_ceil(BLOCK);
    assert!(group.from < group.until && heads * width == group.queries.len());
    assert!(group.keys.len() >= blocks && group.values.len() >= blocks);
    assert!(
        group
            .keys
            .iter()
            .chain(group.values)
            .take(blocks * 2)
            .all(|block| block.len() >= BLOCK * width)
    );
    group.scores.clear();
    group.scores.resize(heads * blocks * BLOCK, 0.0);
    // SAFETY: lengths were compared above; BLOCK is a multiple of all numbers of lanes.
    unsafe { dispatch(level, group) }
}

impl Kernel for Group<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(mut self) {
        let heads = self.queries.len() / self.width;
        let blocks = self.from / BLOCK..self.until.div_ceil(BLOCK);
        // SAFETY: `attend` compared all lengths.
        unsafe {
            for block in blocks.clone() {
                for head in 0..heads {
                    self.scores::<S>(&blocks, block, head);
                }
            }
            for head in 0..heads {
                self.softmax::<S>(&blocks, head);
            }
            for head in 0..heads {
                self.mix::<S>(&blocks, head);
            }
        }
    }
}

// SAFETY of the methods: lengths are those that `attend` compares; `blocks` are the blocks of the positions that are seen.
impl Group<'_> {
    /// The scores of a head with the positions of a block.
    #[inline(always)]
    unsafe fn scores<S: Simd>(&mut self, blocks: &Range<usize>, block: usize, head: usize) {
        let width = self.width;
        // SAFETY: see above.
        unsafe {
            let keys = self.keys.get_unchecked(block).as_ptr();
            let query = self.queries.as_ptr().add(head * width);
            let scores = self.scores.as_mut_ptr().add(head * blocks.end * BLOCK + block * BLOCK);
            for at in (0..BLOCK).step_by(2 * S::LANES) {
                let mut sums = [S::zero(); 2];
                // A second pair of sums hides the latency of the first.
                let mut others = [S::zero(); 2];
                let mut i = 0;
                while i + 2 <= width {
                    let key = keys.add(i * BLOCK + at);
                    sums = S::fma_row(query, i, [S::load(key), S::load(key.add(S::LANES))], sums);
                    let key = keys.add((i + 1) * BLOCK + at);
                    others = S::fma_row(query, i + 1, [S::load(key), S::load(key.add(S::LANES))], others);
                    i += 2;
                }
                S::store(scores.add(at), S::add(sums[0], others[0]));
                S::store(scores.add(at + S::LANES), S::add(sums[1], others[1]));
            }
        }
    }

    /// Replaces a head's scores by their softmax over the positions that are seen.
    #[inline(always)]
    unsafe fn softmax<S: Simd>(&mut self, blocks: &Range<usize>, head: usize) {
        let (start, row) = (blocks.start * BLOCK, blocks.end * BLOCK);
        // SAFETY: see above.
        unsafe {
            let scores = self.scores.as_mut_ptr().add(head * row);
            (start..self.from).for_each(|i| scores.add(i).write(f32::NEG_INFINITY));
            (self.until..row).for_each(|i| scores.add(i).write(f32::NEG_INFINITY));
            let mut largest = S::splat(f32::NEG_INFINITY);
            for at in (start..row).step_by(S::LANES) {
                largest = S::max(largest, S::load(scores.add(at)));
            }
            let (shift, scale) = (S::splat(S::largest(largest)), S::splat(self.scale));
            let mut sum = S::zero();
            for at in (start..row).step_by(S::LANES) {
                let x = exp::<S>(S::mul(S::sub(S::load(scores.add(at)), shift), scale));
                S::store(scores.add(at), x);
                sum = S::add(sum, x);
            }
            let inverse = S::splat(1.0 / S::sum(sum));
            for at in (start..row).step_by(S::LANES) {
                S::store(scores.add(at), S::mul(S::load(scores.add(at)), inverse));
            }
        }
    }

    /// Replaces a head's query by the values, mixed by its scores.
    #[inline(always)]
    unsafe fn mix<S: Simd>(&mut self, blocks: &Range<usize>, head: usize) {
        let width = self.width;
        // SAFETY: see above.
        unsafe {
            let scores = self.scores.as_ptr().add(head * blocks.end * BLOCK);
            let out = self.queries.as_mut_ptr().add(head * width);
            for at in (0..width).step_by(2 * S::LANES) {
                let left = width - at;
                let lanes = [S::LANES.min(left), S::LANES.min(left.saturating_sub(S::LANES))];
                let mut sums = [S::zero(); 2];
                for position in self.from..self.until {
                    let block = self.values.get_unchecked(position / BLOCK).as_ptr();
                    let values = block.add(position % BLOCK * width + at);
                    let pair = if lanes[1] == S::LANES {
                        [S::load(values), S::load(values.add(S::LANES))]
                    } else {
                        [
                            S::load_first(values, lanes[0]),
                            S::load_first(values.wrapping_add(S::LANES), lanes[1]),
                        ]
                    };
                    sums = S::fma_row(scores, position, pair, sums);
                }
                S::store_first(out.add(at), sums[0], lanes[0]);
                S::store_first(out.wrapping_add(at + S::LANES), sums[1], lanes[1]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equals_the_formula_in_f64() {
        let number = |i: usize| ((i * 37 % 101) as f32 - 50.0) / 30.0;
        for level in Level::available() {
            for (width, heads, from, until) in [
                (64usize, 3usize, 0usize, 1usize),
                (64, 3, 5, 200),
                (24, 2, 64, 65),
                (128, 1, 0, 64),
                (6, 4, 3, 130),
            ] {
                let blocks = until.div_ceil(BLOCK);
                let key = |position: usize, i: usize| number(position * 7 + i * 3);
                let value = |position: usize, i: usize| number(position * 5 + i * 11 + 1);
                let mut keys = vec![vec![9.0f32; BLOCK * width]; blocks];
                let mut values = keys.clone();
                for position in 0..until {
                    for i in 0..width {
                        keys[position / BLOCK][i * BLOCK + position % BLOCK] = key(position, i);
                        values[position / BLOCK][position % BLOCK * width + i] = value(position, i);
                    }
                }
                let queries: Vec<f32> = (0..heads * width).map(|i| number(i * 13 + 4)).collect();
                let mut out = queries.clone();
                let (mut scores, scale) = (Vec::new(), 0.2f32);
                let (keys, values): (Vec<&[f32]>, Vec<&[f32]>) = (
                    keys.iter().map(|k| &k[..]).collect(),
                    values.iter().map(|v| &v[..]).collect(),
                );
                attend(
                    level,
                    Group {
                        queries: &mut out,
                        width,
                        keys: &keys,
                        values: &values,
                        from,
                        until,
                        scale,
                        scores: &mut scores,
                    },
                );
                for head in 0..heads {
                    let query = &queries[head * width..][..width];
                    let score = |position: usize| -> f64 {
                        query
                            .iter()
                            .enumerate()
                            .map(|(i, q)| f64::from(*q) * f64::from(key(position, i)))
                            .sum::<f64>()
                            * f64::from(scale)
                    };
                    let powers: Vec<f64> = (from..until).map(|position| score(position).exp()).collect();
                    let sum: f64 = powers.iter().sum();
                    for i in 0..width {
                        let expected: f64 = powers
                            .iter()
                            .zip(from..until)
                            .map(|(p, position)| p / sum * f64::from(value(position, i)))
                            .sum();
                        let found = f64::from(out[head * width + i]);
                        assert!((found - expected).abs() < 1e-4, "{level:?} {width} {found} {expected}");
                    }
                    let row = blocks * BLOCK;
                    let attention = &scores[head * row..][from..until];
                    assert!((attention.iter().sum::<f32>() - 1.0).abs() < 1e-5);
                    assert!((f64::from(attention[0]) - powers[0] / sum).abs() < 1e-5);
                }
            }
        }
    }
}
