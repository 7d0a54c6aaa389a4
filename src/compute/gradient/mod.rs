//! The backward pass of a decoder: attention over whole sequences, the head with its losses. Norms, rotation and gates have
//! theirs beside the forward pass (`rowwise/rms_norm.rs`, `attention/rope.rs`, `rowwise/glu.rs`).
//!
//! Weights are frozen, so the backward pass gives gradients by the inputs alone.

pub mod attention;
pub mod head;
mod loss;

use super::ComputeError;
use super::cpu::buffer::Shared;
use super::cpu::pool::Pool;

/// Blocks that each thread gets of a loop over rows, and most rows of one.
const BLOCKS: usize = 2;
const MOST_ROWS: usize = 64;

/// Calls `body(first, rows)` for blocks of whole rows of `out`, on all threads.
///
/// # Errors
/// [`ComputeError::Panicked`] where `body` does.
pub fn each_block(
    pool: &Pool,
    out: &mut [f32],
    width: usize,
    body: impl Fn(usize, &mut [f32]) + Sync,
) -> Result<(), ComputeError> {
    let rows = out.len() / width.max(1);
    let block = rows.div_ceil(pool.threads() * BLOCKS).clamp(1, MOST_ROWS);
    let shared = Shared::new(out);
    pool.run(rows.div_ceil(block), |task| {
        let first = task * block;
        let count = block.min(rows - first);
        // SAFETY: each task has rows of its own.
        body(first, unsafe { shared.part(first * width, count * width) })
    })
}
