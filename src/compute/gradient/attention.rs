//! Causal attention of whole sequences behind a common past, and its way back.
//!
//! A sequence may follow keys and values that others share (a prompt's beginning): its queries see them, and no gradient
//! leads into them. With `P = softmax(s Q K^T)` and `O = P V`, row by row:
//! `dV = P^T dO`, `dP = dO V^T`, `dS = P (dP - sum(P dP)) s`, `dQ = dS K`, `dK = dS^T Q`.
//!
//! A task is a sequence with one head of keys and the queries that share it. Queries come in blocks of [`BLOCK`] rows, whose
//! scores are computed again on the way back, so what a thread needs grows with the sequence and not with its square.
//! `dK` and `dV` are summed transposed: that way scores are the right side of their products, as they lie, and only the
//! small blocks of queries have to be turned.

use super::super::ComputeError;
use crate::compute::attention::pack::pack_keys;
use crate::compute::attention::shape::Shape;
use crate::compute::cpu::buffer::{Buffer, Shared};
use crate::compute::cpu::level::{Kernel, Level, dispatch};
use crate::compute::cpu::pool::Pool;
use crate::compute::cpu::simd::Simd;
use crate::compute::matmul::gemm::{F32, TILE_WORDS, Tile, tile};
use crate::compute::rowwise::activation::exp;
use parking_lot::Mutex;
use std::ops::Range;

/// Query rows of a block: whole tiles with AVX-512.
const BLOCK: usize = 56;

/// A sequence among the rows of a pass.
#[derive(Clone, Copy)]
pub struct Span<'a> {
    pub first: usize,
    pub rows: usize,
    /// Rows of keys, then values, of all heads, that come before the sequence; keys are turned already.
    pub past: &'a [f32],
}

/// What a thread works in.
pub struct Memory {
    keys: Buffer<f32>,
    values: Buffer<f32>,
    keys_across: Buffer<f32>,
    values_across: Buffer<f32>,
    scores: Buffer<f32>,
    dscores: Buffer<f32>,
    queries_across: Buffer<f32>,
    dout_across: Buffer<f32>,
    dkeys_across: Buffer<f32>,
    dvalues_across: Buffer<f32>,
}

impl Memory {
    /// For sequences of up to `length` keys, those of the past included.
    pub fn new(level: Level, shape: Shape, length: usize) -> Result<Memory, ComputeError> {
        let columns = level.or_detected().panel_columns();
        let (padded, wide) = (length.next_multiple_of(columns), shape.width.next_multiple_of(columns));
        let stride = padded + columns;
        Ok(Memory {
            keys: Buffer::zeroed(length * wide)?,
            values: Buffer::zeroed(length * wide)?,
            keys_across: Buffer::zeroed(padded * shape.width)?,
            values_across: Buffer::zeroed(padded * shape.width)?,
            scores: Buffer::zeroed(BLOCK * stride)?,
            dscores: Buffer::zeroed(BLOCK * stride)?,
            queries_across: Buffer::zeroed(shape.width * BLOCK)?,
            dout_across: Buffer::zeroed(shape.width * BLOCK)?,
            dkeys_across: Buffer::zeroed(shape.width * stride)?,
            dvalues_across: Buffer::zeroed(shape.width * stride)?,
        })
    }

    /// Whether sequences of `length` keys fit.
    fn holds(&self, level: Level, shape: Shape, length: usize) -> bool {
        let columns = level.panel_columns();
        let (padded, wide) = (length.next_multiple_of(columns), shape.width.next_multiple_of(columns));
        let stride = padded + columns;
        self.keys.len() >= length * wide
            && self.values.len() >= length * wide
            && self.keys_across.len() >= padded * shape.width
            && self.values_across.len() >= padded * shape.width
            && self.scores.len().min(self.dscores.len()) >= BLOCK * stride
            && self.queries_across.len().min(self.dout_across.len()) >= shape.width * BLOCK
            && self.dkeys_across.len().min(self.dvalues_across.len()) >= shape.width * stride
    }
}

/// Attention of every head of every sequence.
pub struct Attention<'a> {
    pub level: Level,
    /// Causal.
    pub shape: Shape,
    /// Rows of [`Shape::row`] numbers, queries and keys turned.
    pub qkv: &'a [f32],
    pub spans: &'a [Span<'a>],
    /// One for each thread of the pool.
    pub memories: &'a [Mutex<Memory>],
}

impl Attention<'_> {
    /// Writes rows of [`Shape::out_row`] numbers to `out`.
    ///
    /// # Errors
    /// [`ComputeError::Shape`] where rows, spans and memory do not fit each other.
    pub fn forward(&self, pool: &Pool, out: &mut [f32]) -> Result<(), ComputeError> {
        self.run(pool, Way::Forward(Shared::new(out)))
    }

    /// Writes the gradient by queries, keys and values to `dqkv`, from that by what comes out.
    ///
    /// # Errors
    /// As [`Attention::forward`].
    pub fn back(&self, pool: &Pool, dout: &[f32], dqkv: &mut [f32]) -> Result<(), ComputeError> {
        self.run(pool, Way::Back(dout, Shared::new(dqkv)))
    }

    fn run(&self, pool: &Pool, way: Way<'_>) -> Result<(), ComputeError> {
        let (shape, level) = (self.shape, self.level.or_detected());
        let each = 2 * shape.key_heads * shape.width;
        let rows = self.qkv.len() / shape.row().max(1);
        let fits = |span: &Span| {
            let keys = span.past.len() / each.max(1) + span.rows;
            span.first + span.rows <= rows
                && span.past.len().is_multiple_of(each)
                && self
                    .memories
                    .iter()
                    .all(|memory| memory.lock().holds(level, shape, keys))
        };
        let divides = shape.key_heads > 0 && shape.heads.is_multiple_of(shape.key_heads) && shape.width > 0;
        let gradient = match way {
            Way::Forward(_) => true,
            Way::Back(dout, _) => dout.len() >= rows * shape.out_row(),
        };
        if !(divides && gradient && self.memories.len() >= pool.threads() && self.spans.iter().all(fits)) {
            return Err(ComputeError::Shape(
                "an attention's rows do not fit its sequences".to_owned(),
            ));
        }
        pool.run_indexed(self.spans.len() * shape.key_heads, |thread, task| {
            let job = Job {
                shape,
                qkv: self.qkv,
                span: self.spans[task / shape.key_heads],
                key_head: task % shape.key_heads,
                memory: &mut self.memories[thread].lock(),
                way,
            };
            // SAFETY: sizes are checked above; each task has a sequence and a group of heads of its own.
            unsafe { dispatch(level, job) }
        })
    }
}

#[derive(Clone, Copy)]
enum Way<'a> {
    /// To what comes out.
    Forward(Shared<f32>),
    /// From the gradient by it, to that by queries, keys and values.
    Back(&'a [f32], Shared<f32>),
}

/// One sequence, one head of keys and the queries that share it.
struct Job<'a> {
    shape: Shape,
    qkv: &'a [f32],
    span: Span<'a>,
    key_head: usize,
    memory: &'a mut Memory,
    way: Way<'a>,
}

/// The right side of a product: panels of columns.
#[derive(Clone, Copy)]
struct Right {
    from: *const f32,
    /// Numbers from panel to panel, and from step to step.
    panel: usize,
    stride: usize,
}

impl Job<'_> {
    /// Keys and values of the head, those of the past first, as rows.
    fn gather(&mut self, past: usize, wide: usize) {
        let Shape {
            heads,
            key_heads,
            width,
            ..
        } = self.shape;
        let row = self.shape.row();
        for key in 0..past + self.span.rows {
            let (from, at) = match key.checked_sub(past) {
                None => (self.span.past, (key * 2 * key_heads + self.key_head) * width),
                Some(own) => (
                    self.qkv,
                    (self.span.first + own) * row + (heads + self.key_head) * width,
                ),
            };
            let value = at + key_heads * width;
            self.memory.keys[key * wide..][..width].copy_from_slice(&from[at..][..width]);
            self.memory.values[key * wide..][..width].copy_from_slice(&from[value..][..width]);
        }
    }
}

impl Kernel for Job<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(mut self) {
        let Shape {
            heads,
            key_heads,
            width,
            ..
        } = self.shape;
        let (row, out_row, group) = (self.shape.row(), self.shape.out_row(), self.shape.group());
        let Span { first, rows, past } = self.span;
        let past = past.len() / (2 * key_heads * width);
        let keys = past + rows;
        let wide = width.next_multiple_of(S::COLUMNS);
        let stride = keys.next_multiple_of(S::COLUMNS) + S::COLUMNS;
        let scale = (width as f32).sqrt().recip();
        self.gather(past, wide);
        let across = |from: *const f32| Right {
            from,
            panel: width * S::COLUMNS,
            stride: S::COLUMNS,
        };
        let along = |from: *const f32, stride: usize| Right {
            from,
            panel: S::COLUMNS,
            stride,
        };
        let memory = self.memory;
        // SAFETY: `Attention::run` has checked that the rows are there and that sequences of `keys` fit the memory; what is
        // written of `out` and `dqkv` is asserted by `Shared::address`.
        unsafe {
            pack_keys::<S>(memory.keys.as_ptr(), wide, keys, width, memory.keys_across.as_mut_ptr());
            if let Way::Back(..) = self.way {
                let to = memory.values_across.as_mut_ptr();
                pack_keys::<S>(memory.values.as_ptr(), wide, keys, width, to);
                memory.dkeys_across[..width * stride].fill(0.0);
                memory.dvalues_across[..width * stride].fill(0.0);
            }
            let (scores, dscores) = (memory.scores.as_mut_ptr(), memory.dscores.as_mut_ptr());
            for head in 0..group {
                let column = (self.key_head * group + head) * width;
                for begin in (0..rows).step_by(BLOCK) {
                    let count = (rows - begin).min(BLOCK);
                    let seen = past + begin + count;
                    let of = |place: usize| self.shape.seen(past + begin + place, keys);
                    let queries = self.qkv.as_ptr().add((first + begin) * row + column);
                    let right = across(memory.keys_across.as_ptr());
                    product::<S>([count, width, seen], (queries, row), right, (scores, stride), false);
                    for place in 0..count {
                        softmax::<S>(scores.add(place * stride), of(place), seen, scale);
                    }
                    let (dout, to) = match self.way {
                        Way::Forward(out) => {
                            let at = (first + begin) * out_row + column;
                            let to = out.address(at, (count - 1) * out_row + width);
                            let values = along(memory.values.as_ptr(), wide);
                            product::<S>([count, seen, width], (scores, stride), values, (to, out_row), false);
                            continue;
                        }
                        Way::Back(dout, to) => (dout.as_ptr().add((first + begin) * out_row + column), to),
                    };
                    let right = across(memory.values_across.as_ptr());
                    product::<S>([count, width, seen], (dout, out_row), right, (dscores, stride), false);
                    for place in 0..count {
                        let (p, dp) = (scores.add(place * stride), dscores.add(place * stride));
                        softmax_back::<S>(p, dp, of(place), seen, scale);
                    }
                    let right = along(memory.keys.as_ptr(), wide);
                    let at = (first + begin) * row + column;
                    let dqueries = to.address(at, (count - 1) * row + width);
                    product::<S>([count, seen, width], (dscores, stride), right, (dqueries, row), false);
                    // Keys of the past get no gradient.
                    let own = begin + count;
                    let left = memory.dout_across.as_mut_ptr();
                    turn_block(dout, out_row, count, width, left);
                    let right = along(scores.add(past), stride);
                    let sums = (memory.dvalues_across.as_mut_ptr(), stride);
                    product::<S>([width, count, own], (left, BLOCK), right, sums, true);
                    let left = memory.queries_across.as_mut_ptr();
                    turn_block(queries, row, count, width, left);
                    let right = along(dscores.add(past), stride);
                    let sums = (memory.dkeys_across.as_mut_ptr(), stride);
                    product::<S>([width, count, own], (left, BLOCK), right, sums, true);
                }
            }
            if let Way::Back(_, to) = self.way {
                for place in 0..rows {
                    let at = (first + place) * row + (heads + self.key_head) * width;
                    let dkeys = to.address(at, width);
                    let dvalues = to.address(at + key_heads * width, width);
                    for i in 0..width {
                        dkeys.add(i).write(memory.dkeys_across[i * stride + place]);
                        dvalues.add(i).write(memory.dvalues_across[i * stride + place]);
                    }
                }
            }
        }
    }
}

/// `to[i][j] = sum_s left[i][s] right[s][j]` for sizes of `[rows, steps, columns]`, or that added to what is there.
///
/// # Safety
/// All addresses hold what the sizes say, the right side whole panels; nobody else uses `to` meanwhile.
#[inline(always)]
unsafe fn product<S: Simd>(
    [rows, steps, columns]: [usize; 3],
    left: (*const f32, usize),
    right: Right,
    to: (*mut f32, usize),
    add: bool,
) {
    let mut sums = Tile([0; TILE_WORDS]);
    let sums = (&raw mut sums.0).cast::<u32>();
    // SAFETY: the caller's promise.
    unsafe {
        for panel in 0..columns.div_ceil(S::COLUMNS) {
            let b = right.from.add(panel * right.panel).cast();
            for row in (0..rows).step_by(S::ROWS) {
                let count = (rows - row).min(S::ROWS);
                let a = left.0.add(row * left.1).cast();
                tile::<F32<S>>(count, steps, a, left.1, b, right.stride, sums);
                for part in 0..2 {
                    let column = panel * S::COLUMNS + part * S::LANES;
                    let lanes = columns.saturating_sub(column).min(S::LANES);
                    if lanes == 0 {
                        continue;
                    }
                    for i in 0..count {
                        let at = to.0.add((row + i) * to.1 + column);
                        let mut x = S::load(sums.add(i * S::COLUMNS + part * S::LANES).cast());
                        if add {
                            x = S::add(x, S::load_first(at, lanes));
                        }
                        S::store_first(at, x, lanes);
                    }
                }
            }
        }
    }
}

/// Replaces the scores of `own` by `softmax(scale x)`, and the others below `until` by 0.
///
/// # Safety
/// `row` holds `until` numbers and a vector more; `own` ends at `until` or before.
#[inline(always)]
unsafe fn softmax<S: Simd>(row: *mut f32, own: Range<usize>, until: usize, scale: f32) {
    // SAFETY: a vector behind `own` may be overwritten.
    unsafe {
        S::store(row.add(own.end), S::splat(f32::NEG_INFINITY));
        let mut largest = S::splat(f32::NEG_INFINITY);
        for at in own.clone().step_by(S::LANES) {
            largest = S::max(largest, S::load(row.add(at)));
        }
        let (shift, scale) = (S::splat(S::largest(largest)), S::splat(scale));
        let mut sum = S::zero();
        for at in own.clone().step_by(S::LANES) {
            let x = exp::<S>(S::mul(S::sub(S::load(row.add(at)), shift), scale));
            S::store(row.add(at), x);
            sum = S::add(sum, x);
        }
        let inverse = S::splat(1.0 / S::sum(sum));
        for at in own.clone().step_by(S::LANES) {
            S::store(row.add(at), S::mul(S::load(row.add(at)), inverse));
        }
        (0..own.start).for_each(|at| row.add(at).write(0.0));
        (own.end..until).for_each(|at| row.add(at).write(0.0));
    }
}

/// Replaces `dp` by `p (dp - sum(p dp)) scale` in `own`, and by 0 elsewhere below `until`.
///
/// # Safety
/// Both rows hold `until` numbers.
#[inline(always)]
unsafe fn softmax_back<S: Simd>(p: *const f32, dp: *mut f32, own: Range<usize>, until: usize, scale: f32) {
    let lanes = |at: usize| (own.end - at).min(S::LANES);
    // SAFETY: no lane beyond `own` is read or written.
    unsafe {
        let mut sum = S::zero();
        for at in own.clone().step_by(S::LANES) {
            let lanes = lanes(at);
            sum = S::fma(S::load_first(p.add(at), lanes), S::load_first(dp.add(at), lanes), sum);
        }
        let (along, scale) = (S::splat(S::sum(sum)), S::splat(scale));
        for at in own.clone().step_by(S::LANES) {
            let lanes = lanes(at);
            let by = S::mul(S::sub(S::load_first(dp.add(at), lanes), along), scale);
            S::store_first(dp.add(at), S::mul(S::load_first(p.add(at), lanes), by), lanes);
        }
        (0..own.start).for_each(|at| dp.add(at).write(0.0));
        (own.end..until).for_each(|at| dp.add(at).write(0.0));
    }
}

/// `to[i][place] = from[place][i]`, rows of `to` [`BLOCK`] numbers apart.
///
/// # Safety
/// `from` has `count` rows of `width` numbers, `stride` apart; `to` holds `width` rows.
#[inline(always)]
unsafe fn turn_block(from: *const f32, stride: usize, count: usize, width: usize, to: *mut f32) {
    // SAFETY: the caller's promise.
    unsafe {
        for place in 0..count {
            let row = from.add(place * stride);
            for i in 0..width {
                to.add(i * BLOCK + place).write(row.add(i).read());
            }
        }
    }
}

#[cfg(test)]
mod tests;
