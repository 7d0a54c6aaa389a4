//! Attention over packed sequences: `softmax(Q K^T / sqrt d) V`, both products by the tiles of `matmul/tile.rs`.
//!
//! Queries are taken in blocks of rows, a task each, and keys in blocks of [`KEYS`]: a block of keys is packed
//! transposed and its values as they are, both in panels; then a tile of query rows at a time takes its scores, their
//! exponentials relative to the largest score so far, and the product with the values, which is added to what the
//! earlier blocks gave, scaled to the new largest score. (Milakov and Gimelshein, "Online normalizer calculation for
//! softmax", 2018.) So a thread's memory does not grow with the sequence, and no task is long.
//!
//! Where queries, keys and values come in bf16, both products are in bf16 (`packed_bf16.rs`).
//!
//! The heads of a query group share keys and values (grouped-query attention) and run in one task. Where blocks of
//! queries begin has no influence on the result: a row depends on its place in its sequence alone.

use super::job::{Elements, Job, KEYS, Scratch};
use super::kv_pack::{pack_keys, pack_values};
#[cfg(target_arch = "x86_64")]
use super::packed_bf16;
use super::shape::{Places, Shape};
use crate::compute::ComputeError;
use crate::compute::cpu::buffer::Shared;
use crate::compute::cpu::level::{Kernel, Level, dispatch};
use crate::compute::cpu::pool::Pool;
use crate::compute::cpu::simd::Simd;
use crate::compute::matmul::tile::{F32, Operands, TILE_WORDS, Tile, tile};
use crate::compute::rowwise::activation::exp;
use parking_lot::Mutex;
use std::ops::Range;

/// Attention of every head over every sequence of a batch.
pub struct Attention<'a> {
    pub level: Level,
    pub shape: Shape,
    /// One for each thread of the pool.
    pub scratches: &'a [Mutex<Scratch>],
    /// Queries, keys and values of all tokens.
    pub qkv: Elements<'a>,
    pub places: Places,
    /// Sequence `i` has the rows from `starts[i]` to `starts[i + 1]`.
    pub starts: &'a [usize],
}

impl Attention<'_> {
    /// Writes rows of [`Shape::out_row`] elements to `out`. `stop` is asked between tasks.
    pub fn run(&self, pool: &Pool, out: &mut [f32], stop: &dyn Fn() -> bool) -> Result<(), ComputeError> {
        let shape = self.shape;
        let sequences = || self.starts.windows(2).map(|pair| (pair[0], pair[1] - pair[0]));
        let rows = shape.rows(sequences().map(|(_, length)| length).max().unwrap_or(0));
        // The last rows of a causal sequence see most: they come first, so that no long task is left over at the end.
        let mut blocks = Vec::new();
        for (start, length) in sequences() {
            blocks.extend((0..length.div_ceil(rows)).map(|block| (block * rows, start, length)));
        }
        blocks.sort_by_key(|(row, _, _)| std::cmp::Reverse(*row));
        let out = Shared::new(out);
        if matches!(self.qkv, Elements::Bf16(_)) && !(shape.takes_bf16() && self.level == Level::Avx512) {
            return Err(ComputeError::Shape("attention in bf16 over such heads".to_string()));
        }
        pool.run_until(blocks.len() * shape.key_heads, stop, |thread, task| {
            let (row, start, length) = blocks[task / shape.key_heads];
            let job = Job {
                shape,
                qkv: self.qkv,
                places: self.places,
                start,
                length,
                queries: row..(row + rows).min(length),
                key_head: task % shape.key_heads,
                out,
                scratch: &mut self.scratches[thread].lock(),
            };
            // SAFETY: each task has rows of a sequence and a group of heads of its own.
            unsafe { job.run_on(self.level) }
        })
    }
}

impl Job<'_> {
    /// Computes the task.
    ///
    /// # Safety
    /// No other task uses these heads' part of these rows in `out` meanwhile.
    unsafe fn run_on(self, level: Level) {
        let level = level.or_detected();
        let (shape, columns) = (self.shape, level.panel_columns());
        let keys = KEYS.min(self.length.next_multiple_of(columns));
        assert!(shape.width > 0 && self.key_head < shape.key_heads && shape.heads % shape.key_heads == 0);
        assert!(!self.queries.is_empty() && self.queries.end <= self.length);
        let Places { token, head } = self.places;
        let last = (self.start + self.length - 1) * token + (shape.heads + 2 * shape.key_heads - 1) * head;
        assert!(self.scratch.keys.len() >= keys * shape.width);
        assert!(self.scratch.values.len() >= shape.width.next_multiple_of(columns) * keys);
        assert!(self.scratch.scores.len() >= keys * level.tile_rows());
        assert!(self.scratch.states.len() >= self.queries.len() * shape.group() * 2);
        match self.qkv {
            Elements::F32(elements) => assert!(elements.len() >= last + shape.width),
            Elements::Bf16(words) => {
                assert!(words.len() * 2 >= last + shape.width);
                // SAFETY: `Attention::run` has checked instructions and shape; the rest as below.
                #[cfg(target_arch = "x86_64")]
                unsafe {
                    packed_bf16::run(self, words)
                }
                return;
            }
        }
        // SAFETY: sizes are asserted; exclusivity is the caller's promise.
        unsafe { dispatch(level, self) }
    }
}

impl Kernel for Job<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Shape { width, .. } = self.shape;
        let (Places { token, head: apart }, group) = (self.places, self.shape.group());
        let Elements::F32(qkv) = self.qkv else { return };
        for state in self.scratch.states.chunks_exact_mut(2) {
            state.copy_from_slice(&[f32::NEG_INFINITY, 0.0]);
        }
        // The buffers are used through these pointers alone from here on.
        let packed = Packed {
            keys: self.scratch.keys.as_mut_ptr(),
            values: self.scratch.values.as_mut_ptr(),
            scores: self.scratch.scores.as_mut_ptr(),
            states: self.scratch.states.as_mut_ptr(),
        };
        let seen_by = |row: usize| self.shape.seen(row, self.length);
        let seen = seen_by(self.queries.start).start..seen_by(self.queries.end - 1).end;
        for number in seen.start / KEYS..seen.end.div_ceil(KEYS) {
            let block = number * KEYS..seen.end.min((number + 1) * KEYS);
            let key_column = (self.shape.heads + self.key_head) * apart;
            // SAFETY: `run_on` has asserted that the sequence lies in `qkv` and that a block fits the scratch memory.
            unsafe {
                let keys = qkv.as_ptr().add((self.start + block.start) * token + key_column);
                let values = keys.add(self.shape.key_heads * apart);
                pack_keys::<S>(keys, token, block.len(), width, packed.keys);
                pack_values::<S>(values, token, block.len(), width, packed.values);
            }
            for head in 0..group {
                for row in self.queries.clone().step_by(S::ROWS) {
                    let tile = QueryTile {
                        job: &self,
                        qkv: qkv.as_ptr(),
                        packed,
                        row,
                        rows: (self.queries.end - row).min(S::ROWS),
                        head,
                        block: block.clone(),
                    };
                    // SAFETY: as above.
                    unsafe { tile.run::<S>() }
                }
            }
        }
    }
}

/// Addresses of a thread's scratch memory.
#[derive(Clone, Copy)]
struct Packed {
    keys: *mut f32,
    values: *mut f32,
    scores: *mut f32,
    states: *mut f32,
}

/// A tile of query rows against a packed block of keys.
struct QueryTile<'a, 'b> {
    job: &'a Job<'b>,
    qkv: *const f32,
    packed: Packed,
    row: usize,
    rows: usize,
    /// Head in its group.
    head: usize,
    block: Range<usize>,
}

/// What rows are multiplied with: those so far, and at the end.
struct Factors {
    earlier: [f32; 16],
    inverse: [f32; 16],
}

// SAFETY of the unsafe methods: the job's sizes are asserted, all addresses follow from them, and nobody else uses the
// job's scratch memory and its part of `out`. `sums` holds a tile.
impl QueryTile<'_, '_> {
    /// Adds the block's part to the rows that come out.
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (first, last) = (self.seen_by(0), self.seen_by(self.rows - 1));
        let seen = self.inside(first.start..last.end);
        if seen.is_empty() {
            return;
        }
        let (opens, closes) = (first.start >= self.block.start, last.end <= self.block.end);
        let mut sums = Tile([0; TILE_WORDS]);
        let sums = (&raw mut sums.0).cast::<u32>();
        // SAFETY: see above.
        unsafe {
            self.scores::<S>(&seen, sums);
            let factors = self.weights::<S>(&seen, closes);
            self.mix::<S>(&seen, opens, &factors, sums);
        }
    }

    /// Keys of the sequence that a row of the tile sees.
    #[inline(always)]
    fn seen_by(&self, row: usize) -> Range<usize> {
        self.job.shape.seen(self.row + row, self.job.length)
    }

    /// The part of some keys that is in the block, counted from its first one.
    #[inline(always)]
    fn inside(&self, keys: Range<usize>) -> Range<usize> {
        let start = keys.start.max(self.block.start);
        start - self.block.start..keys.end.min(self.block.end).max(start) - self.block.start
    }

    /// Elements from row to row of the scores.
    #[inline(always)]
    fn stride<S: Simd>(&self) -> usize {
        KEYS.min(self.job.length.next_multiple_of(S::COLUMNS))
    }

    /// The head among all query heads.
    #[inline(always)]
    fn query_head(&self) -> usize {
        self.job.key_head * self.job.shape.group() + self.head
    }

    /// The scores of all rows with the keys that one of them sees.
    #[inline(always)]
    unsafe fn scores<S: Simd>(&self, seen: &Range<usize>, sums: *mut u32) {
        let (width, stride) = (self.job.shape.width, self.stride::<S>());
        let Places { token, head: apart } = self.job.places;
        // SAFETY: see above.
        unsafe {
            let queries = self
                .qkv
                .add((self.job.start + self.row) * token + self.query_head() * apart);
            for panel in seen.start / S::COLUMNS..seen.end.div_ceil(S::COLUMNS) {
                let operands = Operands {
                    rows: self.rows,
                    steps: width,
                    a: queries.cast(),
                    a_stride: token,
                    b: self.packed.keys.add(panel * width * S::COLUMNS).cast(),
                    b_stride: S::COLUMNS,
                };
                tile::<F32<S>>(operands, sums);
                for i in 0..self.rows {
                    let from = sums.add(i * S::COLUMNS).cast::<f32>();
                    let to = self.packed.scores.add(i * stride + panel * S::COLUMNS);
                    S::store(to, S::load(from));
                    S::store(to.add(S::LANES), S::load(from.add(S::LANES)));
                }
            }
        }
    }

    /// Replaces the scores by exponentials, and by 0 where a row does not see a key.
    #[inline(always)]
    unsafe fn weights<S: Simd>(&self, seen: &Range<usize>, closes: bool) -> Factors {
        let (job, stride) = (self.job, self.stride::<S>());
        let scale = (job.shape.width as f32).sqrt().recip();
        let mut factors = Factors {
            earlier: [0.0; 16],
            inverse: [1.0; 16],
        };
        // SAFETY: see above.
        unsafe {
            let first = self.head * job.queries.len() + self.row - job.queries.start;
            let states = self.packed.states.add(first * 2);
            for i in 0..self.rows {
                let (scores, state) = (self.packed.scores.add(i * stride), states.add(2 * i));
                let own = self.inside(self.seen_by(i));
                factors.earlier[i] = softmax_numerators::<S>(scores, own.clone(), scale, state);
                (seen.start..own.start.min(seen.end)).for_each(|key| scores.add(key).write(0.0));
                (own.end.max(seen.start)..seen.end).for_each(|key| scores.add(key).write(0.0));
                if closes {
                    factors.inverse[i] = 1.0 / state.add(1).read();
                }
            }
        }
        factors
    }

    /// Adds the values, times the exponentials, to the rows that come out.
    #[inline(always)]
    unsafe fn mix<S: Simd>(&self, seen: &Range<usize>, opens: bool, factors: &Factors, sums: *mut u32) {
        let (job, width) = (self.job, self.job.shape.width);
        for panel in 0..width.div_ceil(S::COLUMNS) {
            // SAFETY: see above.
            unsafe {
                let values = self
                    .packed
                    .values
                    .add((panel * self.block.len() + seen.start) * S::COLUMNS);
                let operands = Operands {
                    rows: self.rows,
                    steps: seen.len(),
                    a: self.packed.scores.add(seen.start).cast(),
                    a_stride: self.stride::<S>(),
                    b: values.cast(),
                    b_stride: S::COLUMNS,
                };
                tile::<F32<S>>(operands, sums);
                for i in 0..self.rows {
                    let row = (job.start + self.row + i) * job.shape.out_row() + self.query_head() * width;
                    for part in 0..2 {
                        let column = panel * S::COLUMNS + part * S::LANES;
                        let lanes = width.saturating_sub(column).min(S::LANES);
                        if lanes == 0 {
                            continue;
                        }
                        let mut x = S::load(sums.add(i * S::COLUMNS + part * S::LANES).cast());
                        let to = job.out.address(row + column, lanes);
                        if !opens {
                            x = S::fma(S::load_first(to, lanes), S::splat(factors.earlier[i]), x);
                        }
                        S::store_first(to, S::mul(x, S::splat(factors.inverse[i])), lanes);
                    }
                }
            }
        }
    }
}

/// Replaces the scores of `keys` by `exp(scale (x - largest))`, where `largest` is the largest of them and of those
/// before. `state` is that largest score and the sum of exponentials, and is brought up to date; returned is what
/// exponentials before have to be multiplied with. Whole vectors around `keys` are overwritten; what stands outside of
/// `keys` does not count (it becomes `exp` of the clamp, 1e-38, below the precision of a sum of at least 1).
///
/// # Safety
/// `row` holds `keys.end` elements rounded up to whole vectors, `state` two.
#[inline(always)]
unsafe fn softmax_numerators<S: Simd>(row: *mut f32, keys: Range<usize>, scale: f32, state: *mut f32) -> f32 {
    if keys.is_empty() {
        return 1.0;
    }
    let start = keys.start / S::LANES * S::LANES;
    let padded = keys.end.next_multiple_of(S::LANES);
    // SAFETY: all addresses are below `padded`.
    unsafe {
        (start..keys.start).for_each(|i| row.add(i).write(f32::NEG_INFINITY));
        (keys.end..padded).for_each(|i| row.add(i).write(f32::NEG_INFINITY));
        let before = state.read();
        let mut largest = S::splat(before);
        for at in (start..padded).step_by(S::LANES) {
            largest = S::max(largest, S::load(row.add(at)));
        }
        let largest = S::largest(largest);
        let shift = S::splat(largest);
        let scale_all = S::splat(scale);
        let mut sum = S::zero();
        for at in (start..padded).step_by(S::LANES) {
            let x = exp::<S>(S::mul(S::sub(S::load(row.add(at)), shift), scale_all));
            S::store(row.add(at), x);
            sum = S::add(sum, x);
        }
        let earlier = S::largest(exp::<S>(S::splat((before - largest) * scale)));
        state.write(largest);
        let total = state.add(1);
        total.write(total.read() * earlier + S::sum(sum));
        earlier
    }
}

#[cfg(test)]
pub(super) mod tests;
