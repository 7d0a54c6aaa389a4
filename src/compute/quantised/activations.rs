//! Rows of activations in 16 bits, for products with quantised weights.
//!
//! Each 32 elements have a scale of their own: `x = a (q + r / 254)` with `a = max|x| / 127`, `q` the nearest integer and `r`
//! what it misses, both in -127..=127. Eight bits alone, as llama.cpp takes, move the logits of a small model by several
//! percent, because a few activations are far larger than their neighbours; the second eight make that a part in ten
//! thousand, at a second pass of integer products over weights that are in registers already. Beside the codes stand `a`
//! and, for weights with offsets, the sum of `x` as it was rounded over each 16.

use crate::compute::ComputeError;
use crate::compute::cpu::buffer::{Buffer, Shared};
use crate::compute::cpu::level::{Kernel, Level, dispatch};
use crate::compute::cpu::pool::Pool;
use crate::compute::cpu::simd::Simd;

/// Elements that share a scale.
pub const GROUP: usize = 32;
/// Steps of `r` in one of `q`.
pub const FINE: f32 = 254.0;
/// Rows of a task.
const TASK_ROWS: usize = 8;

/// Quantised rows, and room for more.
pub struct QuantisedActivations {
    pub(super) inputs: usize,
    pub(super) rows: usize,
    /// `q` as i8, four to a word, row after row.
    pub(super) words: Buffer<u32>,
    /// `r` likewise.
    pub(super) fine: Buffer<u32>,
    /// `a` of each group of a row.
    pub(super) scales: Buffer<f32>,
    /// `a sum(q + r / 254)` of each half group of a row.
    pub(super) sums: Buffer<f32>,
}

impl QuantisedActivations {
    /// Room for `rows` rows of up to `inputs` elements.
    pub fn new(rows: usize, inputs: usize) -> Result<QuantisedActivations, ComputeError> {
        let inputs = inputs.next_multiple_of(GROUP);
        let groups = rows * inputs / GROUP;
        Ok(QuantisedActivations {
            inputs,
            rows: 0,
            words: Buffer::zeroed(rows * inputs / 4)?,
            fine: Buffer::zeroed(rows * inputs / 4)?,
            scales: Buffer::zeroed(groups)?,
            sums: Buffer::zeroed(groups * 2)?,
        })
    }

    /// Quantises rows of `inputs` elements, a multiple of [`GROUP`].
    ///
    /// # Errors
    /// [`ComputeError::Shape`] where they do not fit.
    pub fn fill(&mut self, pool: &Pool, level: Level, x: &[f32], inputs: usize) -> Result<(), ComputeError> {
        if inputs == 0
            || !inputs.is_multiple_of(GROUP)
            || !x.len().is_multiple_of(inputs)
            || x.len() / 4 > self.words.len()
        {
            return Err(ComputeError::Shape(format!(
                "codes of {} numbers in rows of {inputs}",
                x.len()
            )));
        }
        (self.inputs, self.rows) = (inputs, x.len() / inputs);
        let (words, fine, scales, sums) = (
            Shared::new(&mut self.words),
            Shared::new(&mut self.fine),
            Shared::new(&mut self.scales),
            Shared::new(&mut self.sums),
        );
        let (rows, groups) = (self.rows, inputs / GROUP);
        let body = |task: usize| {
            let first = task * TASK_ROWS;
            let count = TASK_ROWS.min(rows - first);
            // SAFETY: each task has rows of its own; the slices have the lengths that the kernel's groups take.
            unsafe {
                let kernel = Quantise {
                    x: &x[first * inputs..(first + count) * inputs],
                    words: words.part(first * inputs / 4, count * inputs / 4),
                    fine: fine.part(first * inputs / 4, count * inputs / 4),
                    scales: scales.part(first * groups, count * groups),
                    sums: sums.part(first * groups * 2, count * groups * 2),
                };
                dispatch(level, kernel);
            }
        };
        match rows.div_ceil(TASK_ROWS) {
            1 => {
                body(0);
                Ok(())
            }
            tasks => pool.run(tasks, body),
        }
    }
}

struct Quantise<'a> {
    x: &'a [f32],
    words: &'a mut [u32],
    fine: &'a mut [u32],
    scales: &'a mut [f32],
    sums: &'a mut [f32],
}

impl Kernel for Quantise<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let groups = self.x.as_chunks::<GROUP>().0.iter();
        let words = self.words.as_chunks_mut::<{ GROUP / 4 }>().0.iter_mut();
        let words = words.zip(self.fine.as_chunks_mut::<{ GROUP / 4 }>().0);
        let out = words.zip(self.scales).zip(self.sums.as_chunks_mut::<2>().0);
        for (x, (((words, fine), scale), sums)) in groups.zip(out) {
            let largest = x.iter().fold(0.0f32, |most, x| most.max(x.abs()));
            let a = largest / 127.0;
            let inverse = if a > 0.0 { 1.0 / a } else { 0.0 };
            let mut codes = [[0i32; GROUP]; 2];
            let [coarse, rest] = &mut codes;
            for ((coarse, rest), x) in coarse.iter_mut().zip(rest).zip(x) {
                let scaled = x * inverse;
                let whole = scaled.round_ties_even();
                *coarse = whole as i32;
                *rest = ((scaled - whole) * FINE).round_ties_even() as i32;
            }
            for (out, codes) in [words, fine].into_iter().zip(&codes) {
                for (word, four) in out.iter_mut().zip(codes.as_chunks::<4>().0) {
                    *word = u32::from_le_bytes(four.map(|code| code as i8 as u8));
                }
            }
            *scale = a;
            let [coarse, rest] = codes.map(|codes| {
                let (first, second) = codes.split_at(GROUP / 2);
                [first.iter().sum::<i32>(), second.iter().sum::<i32>()]
            });
            for (sum, (coarse, rest)) in sums.iter_mut().zip(coarse.into_iter().zip(rest)) {
                *sum = a * (coarse as f32 + rest as f32 / FINE);
            }
        }
    }
}
