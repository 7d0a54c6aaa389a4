//! Causal attention of whole sequences behind a common past, and its backward pass.
//!
//! A sequence may follow keys and values that others share (a prompt's beginning): its queries see them, and no gradient
//! leads into them. With `P = softmax(s Q K^T)` and `O = P V`, row by row:
//! `dV = P^T dO`, `dP = dO V^T`, `dS = P (dP - sum(P dP)) s`, `dQ = dS K`, `dK = dS^T Q`.
//!
//! A task is a sequence with one head of keys and the queries that share it. Queries come in blocks of [`BLOCK`] rows, whose
//! scores are computed again in the backward pass, so what a thread needs grows with the sequence and not with its square.
//! `dK` and `dV` are summed transposed: that way scores are the right side of their products, as they lie, and only the
//! small blocks of queries have to be transposed.

mod task;

use super::super::ComputeError;
use crate::compute::attention::shape::Shape;
use crate::compute::cpu::buffer::{Buffer, Shared};
use crate::compute::cpu::level::{Level, dispatch};
use crate::compute::cpu::pool::Pool;
use parking_lot::Mutex;
use task::Job;

/// Query rows of a block: whole tiles with AVX-512.
const BLOCK: usize = 56;

/// A sequence among the rows of a pass.
#[derive(Clone, Copy)]
pub struct Span<'a> {
    pub first: usize,
    pub rows: usize,
    /// Rows of keys, then values, of all heads, that come before the sequence; keys are rotated already.
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
    /// Rows of [`Shape::row`] elements, queries and keys rotated.
    pub qkv: &'a [f32],
    pub spans: &'a [Span<'a>],
    /// One for each thread of the pool.
    pub memories: &'a [Mutex<Memory>],
}

impl Attention<'_> {
    /// Writes rows of [`Shape::out_row`] elements to `out`.
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
    pub fn backward(&self, pool: &Pool, dout: &[f32], dqkv: &mut [f32]) -> Result<(), ComputeError> {
        self.run(pool, Way::Backward(dout, Shared::new(dqkv)))
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
            Way::Backward(dout, _) => dout.len() >= rows * shape.out_row(),
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
    Backward(&'a [f32], Shared<f32>),
}

#[cfg(test)]
mod tests;
