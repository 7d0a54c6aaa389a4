//! Attention over packed sequences: `softmax(Q K^T / sqrt d) V`, both products by the tiles of `gemm.rs`.
//!
//! Queries are taken in blocks of rows, a task each, and keys in blocks of [`KEYS`]: a block of keys is packed
//! transposed and its values as they are, both in panels; then a tile of query rows at a time takes its scores, their
//! exponentials relative to the largest score so far, and the product with the values, which is added to what the
//! earlier blocks gave, scaled to the new largest score. (Milakov and Gimelshein, "Online normalizer calculation for
//! softmax", 2018.) So a thread's memory does not grow with the sequence, and no task is long.
//!
//! Where queries, keys and values come in bf16, both products are in bf16 (`attention_bf16.rs`).
//!
//! The heads of a query group share keys and values (grouped-query attention) and run in one task. Where blocks of
//! queries begin has no influence on the result: a row depends on its place in its sequence alone.

use super::pack::{pack_keys, pack_values};
#[cfg(target_arch = "x86_64")]
use super::packed_bf16;
pub use super::shape::Places;
use super::shape::{MOST_ROWS, ROW_STEP, Shape};
use crate::compute::ComputeError;
use crate::compute::cpu::buffer::{Buffer, Shared};
use crate::compute::cpu::level::{Kernel, Level, dispatch};
use crate::compute::cpu::pool::Pool;
use crate::compute::cpu::simd::Simd;
use crate::compute::matmul::gemm::{F32, TILE_WORDS, Tile, tile};
use crate::compute::rowwise::activation::exp;
use parking_lot::Mutex;
use std::ops::Range;

/// Keys of a block: a multiple of every level's panel.
pub(super) const KEYS: usize = 512;
/// Scratch memory of one thread.
pub struct Scratch {
    pub(super) keys: Buffer<f32>,
    pub(super) values: Buffer<f32>,
    pub(super) scores: Buffer<f32>,
    /// For each row of the task and each head of its group the largest score so far, and the sum of exponentials.
    pub(super) states: Buffer<f32>,
}

impl Scratch {
    /// Memory for sequences of up to `length` tokens; beyond a block of keys it does not grow any more.
    pub fn new(level: Level, shape: Shape, length: usize) -> Result<Scratch, ComputeError> {
        let level = level.or_detected();
        let columns = level.panel_columns();
        let keys = KEYS.min(length.next_multiple_of(columns));
        Ok(Scratch {
            keys: Buffer::zeroed(keys * shape.width)?,
            values: Buffer::zeroed(shape.width.next_multiple_of(columns) * keys)?,
            scores: Buffer::zeroed(keys * level.tile_rows())?,
            // A task has at most that many rows, or those of the sequence.
            states: Buffer::zeroed(MOST_ROWS.max(ROW_STEP * shape.group()).min(length * shape.group()) * 2)?,
        })
    }
}

/// The numbers that attention reads.
#[derive(Clone, Copy)]
pub enum Numbers<'a> {
    F32(&'a [f32]),
    /// Two a word, the first in its lower half: for shapes that say so ([`Shape::takes_bf16`]).
    Bf16(&'a [u32]),
}

/// Attention of every head over every sequence of a batch.
pub struct Attention<'a> {
    pub level: Level,
    pub shape: Shape,
    /// One for each thread of the pool.
    pub scratches: &'a [Mutex<Scratch>],
    /// Queries, keys and values of all tokens.
    pub qkv: Numbers<'a>,
    pub places: Places,
    /// Sequence `i` has the rows from `starts[i]` to `starts[i + 1]`.
    pub starts: &'a [usize],
}

impl Attention<'_> {
    /// Writes rows of [`Shape::out_row`] numbers to `out`. `stop` is asked between tasks.
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
        if matches!(self.qkv, Numbers::Bf16(_)) && !(shape.takes_bf16() && self.level == Level::Avx512) {
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

/// Some query rows of one sequence, and the heads that share one head of keys.
pub(super) struct Job<'a> {
    pub(super) shape: Shape,
    qkv: Numbers<'a>,
    pub(super) places: Places,
    /// First token of the sequence in the batch.
    pub(super) start: usize,
    /// Tokens of the sequence.
    pub(super) length: usize,
    /// Rows of the sequence.
    pub(super) queries: Range<usize>,
    pub(super) key_head: usize,
    pub(super) out: Shared<f32>,
    pub(super) scratch: &'a mut Scratch,
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
            Numbers::F32(numbers) => assert!(numbers.len() >= last + shape.width),
            Numbers::Bf16(words) => {
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
        let Numbers::F32(qkv) = self.qkv else { return };
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

impl QueryTile<'_, '_> {
    /// Adds the block's part to the rows that come out.
    ///
    /// # Safety
    /// The job's sizes are asserted and nobody else uses its scratch memory and its part of `out`.
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let QueryTile {
            job,
            qkv,
            packed,
            row,
            rows,
            head,
            block,
        } = self;
        let (shape, width) = (job.shape, job.shape.width);
        let (first, last) = (shape.seen(row, job.length), shape.seen(row + rows - 1, job.length));
        let (opens, closes) = (first.start >= block.start, last.end <= block.end);
        let inside = |seen: Range<usize>| {
            let start = seen.start.max(block.start);
            start - block.start..seen.end.min(block.end).max(start) - block.start
        };
        let seen = inside(first.start..last.end);
        if seen.is_empty() {
            return;
        }
        let stride = KEYS.min(job.length.next_multiple_of(S::COLUMNS));
        let number = job.key_head * shape.group() + head;
        let mut sums = Tile([0; TILE_WORDS]);
        let sums = (&raw mut sums.0).cast::<u32>();
        // What the rows so far are multiplied with, and the rows that come out at the end.
        let (mut earlier, mut inverse) = ([0f32; 16], [1f32; 16]);
        // SAFETY: all addresses follow from the sizes that `run_on` has asserted.
        unsafe {
            let Places { token, head: apart } = job.places;
            let queries = qkv.add((job.start + row) * token + number * apart);
            let scores = packed.scores;
            let states = packed
                .states
                .add((head * job.queries.len() + row - job.queries.start) * 2);
            for panel in seen.start / S::COLUMNS..seen.end.div_ceil(S::COLUMNS) {
                let k = packed.keys.add(panel * width * S::COLUMNS).cast();
                tile::<F32<S>>(rows, width, queries.cast(), token, k, S::COLUMNS, sums);
                for i in 0..rows {
                    let from = sums.add(i * S::COLUMNS).cast::<f32>();
                    let to = scores.add(i * stride + panel * S::COLUMNS);
                    S::store(to, S::load(from));
                    S::store(to.add(S::LANES), S::load(from.add(S::LANES)));
                }
            }
            for i in 0..rows {
                let (line, state) = (scores.add(i * stride), states.add(2 * i));
                let own = inside(shape.seen(row + i, job.length));
                earlier[i] = softmax_numerators::<S>(line, own.clone(), (width as f32).sqrt().recip(), state);
                (seen.start..own.start.min(seen.end)).for_each(|key| line.add(key).write(0.0));
                (own.end.max(seen.start)..seen.end).for_each(|key| line.add(key).write(0.0));
                if closes {
                    inverse[i] = 1.0 / state.add(1).read();
                }
            }
            for panel in 0..width.div_ceil(S::COLUMNS) {
                let v = packed
                    .values
                    .add((panel * block.len() + seen.start) * S::COLUMNS)
                    .cast();
                tile::<F32<S>>(
                    rows,
                    seen.len(),
                    scores.add(seen.start).cast(),
                    stride,
                    v,
                    S::COLUMNS,
                    sums,
                );
                for i in 0..rows {
                    for part in 0..2 {
                        let column = panel * S::COLUMNS + part * S::LANES;
                        let lanes = width.saturating_sub(column).min(S::LANES);
                        if lanes == 0 {
                            continue;
                        }
                        let mut x = S::load(sums.add(i * S::COLUMNS + part * S::LANES).cast());
                        let at = (job.start + row + i) * shape.out_row() + number * width + column;
                        let to = job.out.address(at, lanes);
                        if !opens {
                            x = S::fma(S::load_first(to, lanes), S::splat(earlier[i]), x);
                        }
                        S::store_first(to, S::mul(x, S::splat(inverse[i])), lanes);
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
/// `row` holds `keys.end` numbers rounded up to whole vectors, `state` two.
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
