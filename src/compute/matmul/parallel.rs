//! One product by itself, divided between the threads of a pool as the forward pass divides its own.

use super::gemm::Epilogue;
use super::linear::{Linear, Rows};
use crate::compute::ComputeError;
use crate::compute::cpu::buffer::Shared;
use crate::compute::cpu::memory::zeros;
use crate::compute::cpu::pool::Pool;
use parking_lot::Mutex;

/// Rows of a block; see `bert.rs`.
const BLOCK_ROWS: usize = 112;
/// Most rows of a register tile: blocks are rounded up to whole tiles.
const LARGEST_TILE: usize = 16;
/// Fewest rows of a block, below which the columns are divided instead.
const FEWEST_ROWS: usize = 28;

/// `A^T`: `columns` rows from rows of `columns` elements.
///
/// # Errors
/// [`ComputeError::Memory`] where there is too little.
pub fn transposed(a: &[f32], columns: usize) -> Result<Vec<f32>, ComputeError> {
    let rows = a.len() / columns.max(1);
    let mut out = zeros::<f32>(rows * columns)?;
    for (number, row) in a.chunks_exact(columns.max(1)).enumerate() {
        for (column, x) in row.iter().enumerate() {
            out[column * rows + number] = *x;
        }
    }
    Ok(out)
}

/// Memory for products of one size, used again and again.
pub struct Matmul {
    rows: Vec<Mutex<Rows>>,
}

impl Matmul {
    /// Memory for products of any number of rows of up to `inputs` elements on the threads of `pool`.
    pub fn new(pool: &Pool, inputs: usize) -> Result<Matmul, ComputeError> {
        // Undivided rows are prepared at once, by the caller's thread; others a block at a time.
        let rows = (BLOCK_ROWS + LARGEST_TILE).max(pool.threads() * FEWEST_ROWS);
        let each = (0..pool.threads()).map(|_| Ok(Mutex::new(Rows::new(rows, inputs)?)));
        Ok(Matmul {
            rows: each.collect::<Result<_, ComputeError>>()?,
        })
    }

    /// `out = x W^T + b`: rows of `linear.inputs()` elements to rows of `linear.outputs()`.
    pub fn run(&self, pool: &Pool, linear: &Linear, x: &[f32], out: &mut [f32]) -> Result<(), ComputeError> {
        self.with_epilogue(pool, linear, x, out, Epilogue::Bias)
    }

    /// `out = out + x W^T + b`.
    pub fn add(&self, pool: &Pool, linear: &Linear, x: &[f32], out: &mut [f32]) -> Result<(), ComputeError> {
        self.with_epilogue(pool, linear, x, out, Epilogue::Residual)
    }

    fn with_epilogue(
        &self,
        pool: &Pool,
        linear: &Linear,
        x: &[f32],
        out: &mut [f32],
        epilogue: Epilogue,
    ) -> Result<(), ComputeError> {
        let (inputs, outputs) = (linear.inputs(), linear.outputs());
        let rows = x.len() / inputs;
        if x.len() != rows * inputs || out.len() != rows * outputs || self.rows.len() < pool.threads() {
            let (from, to) = (x.len(), out.len());
            return Err(ComputeError::Shape(format!(
                "a product of {inputs} x {outputs} from {from} numbers to {to}"
            )));
        }
        let (out, panels) = (Shared::new(out), linear.panels());
        if rows < pool.threads() * FEWEST_ROWS {
            let mut memory = self.rows[0].lock();
            let input = linear.prepare(x, &mut memory);
            let tasks = (pool.threads() * 2).min(panels);
            return pool.run(tasks, |task| {
                let range = panels * task / tasks..panels * (task + 1) / tasks;
                // SAFETY: each task has columns of its own, and `x` is another slice than `out`.
                unsafe { linear.product(input, range, out, 0, outputs, epilogue) }
            });
        }
        // As many blocks for each thread, of as many rows, so that none waits long for the last one.
        let blocks = rows.div_ceil(BLOCK_ROWS).next_multiple_of(pool.threads());
        let block = rows.div_ceil(blocks).next_multiple_of(linear.tile_rows());
        pool.run_indexed(rows.div_ceil(block), |thread, task| {
            let first = task * block;
            let count = block.min(rows - first);
            let mut memory = self.rows[thread].lock();
            let input = linear.prepare(&x[first * inputs..][..count * inputs], &mut memory);
            // SAFETY: each task has rows of its own, and `x` is another slice than `out`.
            unsafe { linear.product(input, 0..panels, out, first * outputs, outputs, epilogue) }
        })
    }
}
