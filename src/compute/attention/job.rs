//! A task of an attention over packed sequences, in f32 (`packed.rs`) or bf16 (`packed_bf16.rs`), and a thread's memory for it.

use super::shape::{MOST_ROWS, Places, ROW_STEP, Shape};
use crate::compute::ComputeError;
use crate::compute::cpu::buffer::{Buffer, Shared};
use crate::compute::cpu::level::Level;
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

/// The elements that attention reads.
#[derive(Clone, Copy)]
pub enum Elements<'a> {
    F32(&'a [f32]),
    /// Two a word, the first in its lower half: for shapes that say so ([`Shape::takes_bf16`]).
    Bf16(&'a [u32]),
}

/// Some query rows of one sequence, and the heads that share one head of keys.
pub(super) struct Job<'a> {
    pub(super) shape: Shape,
    pub(super) qkv: Elements<'a>,
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
