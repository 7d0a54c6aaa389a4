//! A task of the attention over whole sequences: one sequence, one head of keys and the queries that share it.

use super::{BLOCK, Memory, Span, Way};
use crate::compute::attention::kv_pack::pack_keys;
use crate::compute::attention::shape::Shape;
use crate::compute::cpu::buffer::Shared;
use crate::compute::cpu::level::Kernel;
use crate::compute::cpu::simd::Simd;
use crate::compute::matmul::tile::{F32, Operands, TILE_WORDS, Tile, tile};
use crate::compute::rowwise::activation::exp;
use std::ops::Range;

/// One sequence, one head of keys and the queries that share it.
pub(super) struct Job<'a> {
    pub shape: Shape,
    pub qkv: &'a [f32],
    pub span: Span<'a>,
    pub key_head: usize,
    pub memory: &'a mut Memory,
    pub way: Way<'a>,
}

/// The right side of a product: panels of columns.
#[derive(Clone, Copy)]
struct Right {
    from: *const f32,
    /// Elements from panel to panel, and from step to step.
    panel: usize,
    stride: usize,
}

impl Right {
    /// Panels that lie one behind the other, as `pack_keys` makes them.
    #[inline(always)]
    fn packed<S: Simd>(from: *const f32, steps: usize) -> Right {
        Right {
            from,
            panel: steps * S::COLUMNS,
            stride: S::COLUMNS,
        }
    }

    /// Rows of `stride` elements, of which each panel takes some columns.
    #[inline(always)]
    fn rows<S: Simd>(from: *const f32, stride: usize) -> Right {
        Right {
            from,
            panel: S::COLUMNS,
            stride,
        }
    }
}

impl Kernel for Job<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (rows, group, way) = (self.span.rows, self.shape.group(), self.way);
        // SAFETY: `Attention::run` has checked that the rows are there and that the sequence fits the memory; what is
        // written of `out` and `dqkv` is asserted by `Shared::address`.
        unsafe {
            let mut task = Task::new::<S>(self);
            task.pack::<S>();
            for head in 0..group {
                for begin in (0..rows).step_by(BLOCK) {
                    let block = task.block(head, begin);
                    task.probabilities::<S>(&block);
                    match way {
                        Way::Forward(out) => task.mix::<S>(&block, out),
                        Way::Backward(dout, to) => task.block_backward::<S>(&block, dout, to),
                    }
                }
            }
            if let Way::Backward(_, to) = way {
                task.write_key_gradients(to);
            }
        }
    }
}

/// A job with the sizes that follow from it.
struct Task<'a> {
    job: Job<'a>,
    /// Keys of the past, and with those of the sequence.
    past: usize,
    keys: usize,
    /// Elements from row to row of gathered keys and values, and of scores.
    wide: usize,
    stride: usize,
    scale: f32,
}

/// Some query rows of one head.
struct QueryBlock {
    /// First row in the sequence, and among those of the pass.
    begin: usize,
    first: usize,
    count: usize,
    /// Keys up to the last that one of the rows sees.
    seen: usize,
    /// Where the head begins in a row.
    column: usize,
}

// SAFETY of the methods: those that are unsafe need what `Attention::run` has checked, the instructions of `S`, and that
// nobody else uses the task's part of what is written.
impl<'a> Task<'a> {
    #[inline(always)]
    fn new<S: Simd>(job: Job<'a>) -> Task<'a> {
        let Shape { key_heads, width, .. } = job.shape;
        let past = job.span.past.len() / (2 * key_heads * width);
        let keys = past + job.span.rows;
        Task {
            past,
            keys,
            wide: width.next_multiple_of(S::COLUMNS),
            stride: keys.next_multiple_of(S::COLUMNS) + S::COLUMNS,
            scale: (width as f32).sqrt().recip(),
            job,
        }
    }

    /// Keys and values of the head, those of the past first, as rows.
    fn gather(&mut self) {
        let (past, wide, job) = (self.past, self.wide, &mut self.job);
        let Shape {
            heads,
            key_heads,
            width,
            ..
        } = job.shape;
        let row = job.shape.row();
        for key in 0..self.keys {
            let (from, at) = match key.checked_sub(past) {
                None => (job.span.past, (key * 2 * key_heads + job.key_head) * width),
                Some(own) => (job.qkv, (job.span.first + own) * row + (heads + job.key_head) * width),
            };
            let value = at + key_heads * width;
            job.memory.keys[key * wide..][..width].copy_from_slice(&from[at..][..width]);
            job.memory.values[key * wide..][..width].copy_from_slice(&from[value..][..width]);
        }
    }

    /// Prepares the right sides that all blocks share, and the sums of the backward pass.
    #[inline(always)]
    unsafe fn pack<S: Simd>(&mut self) {
        self.gather();
        let (keys, wide, width) = (self.keys, self.wide, self.job.shape.width);
        let memory = &mut *self.job.memory;
        // SAFETY: see above.
        unsafe {
            pack_keys::<S>(memory.keys.as_ptr(), wide, keys, width, memory.keys_across.as_mut_ptr());
            if let Way::Backward(..) = self.job.way {
                let to = memory.values_across.as_mut_ptr();
                pack_keys::<S>(memory.values.as_ptr(), wide, keys, width, to);
                memory.dkeys_across[..width * self.stride].fill(0.0);
                memory.dvalues_across[..width * self.stride].fill(0.0);
            }
        }
    }

    /// The block of a head of the group that begins at a row of the sequence.
    #[inline(always)]
    fn block(&self, head: usize, begin: usize) -> QueryBlock {
        let job = &self.job;
        let count = (job.span.rows - begin).min(BLOCK);
        QueryBlock {
            begin,
            first: job.span.first + begin,
            count,
            seen: self.past + begin + count,
            column: (job.key_head * job.shape.group() + head) * job.shape.width,
        }
    }

    /// Keys that a row of a block sees.
    #[inline(always)]
    fn seen_by(&self, block: &QueryBlock, row: usize) -> Range<usize> {
        self.job.shape.seen(self.past + block.begin + row, self.keys)
    }

    /// Where a block's queries are, and the distance of their rows.
    #[inline(always)]
    fn queries(&self, block: &QueryBlock) -> (*const f32, usize) {
        let row = self.job.shape.row();
        (
            self.job.qkv.as_ptr().wrapping_add(block.first * row + block.column),
            row,
        )
    }

    /// `P = softmax(s Q K^T)`, left in the scores.
    #[inline(always)]
    unsafe fn probabilities<S: Simd>(&mut self, block: &QueryBlock) {
        let (width, stride) = (self.job.shape.width, self.stride);
        let scores = self.job.memory.scores.as_mut_ptr();
        let keys = Right::packed::<S>(self.job.memory.keys_across.as_ptr(), width);
        let sizes = [block.count, width, block.seen];
        // SAFETY: see above.
        unsafe {
            product::<S>(sizes, self.queries(block), keys, (scores, stride), false);
            for row in 0..block.count {
                let to = scores.add(row * stride);
                softmax::<S>(to, self.seen_by(block, row), block.seen, self.scale);
            }
        }
    }

    /// `O = P V`.
    #[inline(always)]
    unsafe fn mix<S: Simd>(&mut self, block: &QueryBlock, out: Shared<f32>) {
        let (width, out_row) = (self.job.shape.width, self.job.shape.out_row());
        let memory = &*self.job.memory;
        let values = Right::rows::<S>(memory.values.as_ptr(), self.wide);
        let sizes = [block.count, block.seen, width];
        // SAFETY: see above.
        unsafe {
            let at = block.first * out_row + block.column;
            let to = out.address(at, (block.count - 1) * out_row + width);
            let scores = (memory.scores.as_ptr(), self.stride);
            product::<S>(sizes, scores, values, (to, out_row), false);
        }
    }

    /// All gradients of a block whose probabilities are there.
    #[inline(always)]
    unsafe fn block_backward<S: Simd>(&mut self, block: &QueryBlock, dout: &[f32], to: Shared<f32>) {
        let out_row = self.job.shape.out_row();
        // SAFETY: see above; `dout` has as many rows as the pass.
        unsafe {
            let dout = (dout.as_ptr().add(block.first * out_row + block.column), out_row);
            self.score_gradients::<S>(block, dout);
            self.query_gradients::<S>(block, to);
            self.add_key_gradients::<S>(block, dout);
        }
    }

    /// `dP = dO V^T` and `dS = P (dP - sum(P dP)) s`.
    #[inline(always)]
    unsafe fn score_gradients<S: Simd>(&mut self, block: &QueryBlock, dout: (*const f32, usize)) {
        let (width, stride) = (self.job.shape.width, self.stride);
        let (scores, dscores) = (self.job.memory.scores.as_ptr(), self.job.memory.dscores.as_mut_ptr());
        let values = Right::packed::<S>(self.job.memory.values_across.as_ptr(), width);
        // SAFETY: see above.
        unsafe {
            product::<S>([block.count, width, block.seen], dout, values, (dscores, stride), false);
            for row in 0..block.count {
                let (p, dp) = (scores.add(row * stride), dscores.add(row * stride));
                softmax_backward::<S>(p, dp, self.seen_by(block, row), block.seen, self.scale);
            }
        }
    }

    /// `dQ = dS K`.
    #[inline(always)]
    unsafe fn query_gradients<S: Simd>(&mut self, block: &QueryBlock, to: Shared<f32>) {
        let (width, row) = (self.job.shape.width, self.job.shape.row());
        let memory = &*self.job.memory;
        let keys = Right::rows::<S>(memory.keys.as_ptr(), self.wide);
        let sizes = [block.count, block.seen, width];
        // SAFETY: see above.
        unsafe {
            let at = block.first * row + block.column;
            let dqueries = to.address(at, (block.count - 1) * row + width);
            let dscores = (memory.dscores.as_ptr(), self.stride);
            product::<S>(sizes, dscores, keys, (dqueries, row), false);
        }
    }

    /// Adds a block's part of `dV = P^T dO` and `dK = dS^T Q`, both transposed. Keys of the past get no gradient.
    #[inline(always)]
    unsafe fn add_key_gradients<S: Simd>(&mut self, block: &QueryBlock, dout: (*const f32, usize)) {
        let (width, stride, past) = (self.job.shape.width, self.stride, self.past);
        let queries = self.queries(block);
        let memory = &mut *self.job.memory;
        let sizes = [width, block.count, block.begin + block.count];
        // SAFETY: see above.
        unsafe {
            let left = memory.dout_across.as_mut_ptr();
            transpose_block(dout, block.count, width, left);
            let right = Right::rows::<S>(memory.scores.as_ptr().add(past), stride);
            let sums = (memory.dvalues_across.as_mut_ptr(), stride);
            product::<S>(sizes, (left, BLOCK), right, sums, true);
            let left = memory.queries_across.as_mut_ptr();
            transpose_block(queries, block.count, width, left);
            let right = Right::rows::<S>(memory.dscores.as_ptr().add(past), stride);
            let sums = (memory.dkeys_across.as_mut_ptr(), stride);
            product::<S>(sizes, (left, BLOCK), right, sums, true);
        }
    }

    /// Writes the summed gradients by keys and values to their rows.
    #[inline(always)]
    unsafe fn write_key_gradients(&self, to: Shared<f32>) {
        let Job {
            shape,
            span,
            key_head,
            memory,
            ..
        } = &self.job;
        let (width, stride) = (shape.width, self.stride);
        for place in 0..span.rows {
            let at = (span.first + place) * shape.row() + (shape.heads + key_head) * width;
            // SAFETY: see above.
            unsafe {
                let dkeys = to.address(at, width);
                let dvalues = to.address(at + shape.key_heads * width, width);
                for i in 0..width {
                    dkeys.add(i).write(memory.dkeys_across[i * stride + place]);
                    dvalues.add(i).write(memory.dvalues_across[i * stride + place]);
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
                let operands = Operands {
                    rows: count,
                    steps,
                    a: left.0.add(row * left.1).cast(),
                    a_stride: left.1,
                    b,
                    b_stride: right.stride,
                };
                tile::<F32<S>>(operands, sums);
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
/// `row` holds `until` elements and a vector more; `own` ends at `until` or before.
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
/// Both rows hold `until` elements.
#[inline(always)]
unsafe fn softmax_backward<S: Simd>(p: *const f32, dp: *mut f32, own: Range<usize>, until: usize, scale: f32) {
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

/// `to[i][place] = from[place][i]`, rows of `to` [`BLOCK`] elements apart.
///
/// # Safety
/// `from` has `count` rows of `width` elements, as far apart as it says; `to` holds `width` rows.
#[inline(always)]
unsafe fn transpose_block((from, stride): (*const f32, usize), count: usize, width: usize, to: *mut f32) {
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
