//! A linear layer: weights packed once for the kernels, and products of some rows by some of its panels.

use super::ComputeError;
use super::buffer::{Buffer, Shared};
use super::cpu::{self, Level, dispatch};
use super::gemm::{Finish, Product};
#[cfg(target_arch = "x86_64")]
use super::gemm_x86::{product_bf16, row_to_bf16};
#[cfg(target_arch = "x86_64")]
use super::int8::{Instructions, Int8};
use half::bf16;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Numbers that the products are computed with; everything between them is f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// The reference.
    #[default]
    F32,
    /// Both sides rounded to bf16, f32 sums. Needs AVX512-BF16.
    Bf16,
    /// Both sides in 8 bits, scaled in groups, but for the inputs with the largest activations (`int8.rs`). Needs
    /// AVX512-VNNI, AVX-VNNI or AVX2.
    Int8,
}

impl Precision {
    /// The precision's name in settings and messages.
    pub fn name(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
            Precision::Int8 => "int8",
        }
    }

    /// Fails where this processor lacks the instructions.
    pub fn check(self) -> Result<(), ComputeError> {
        let (has, needs) = match self {
            Precision::F32 => (true, ""),
            Precision::Bf16 => (cpu::has_bf16(), "AVX512-BF16"),
            Precision::Int8 => (Level::detect() >= Level::Avx2, "AVX2"),
        };
        if has {
            Ok(())
        } else {
            Err(ComputeError::Unsupported {
                precision: self.name(),
                needs,
            })
        }
    }
}

/// Packed weights, in the form that the code which runs them needs.
enum Panels {
    F32(Buffer<u32>),
    #[cfg(target_arch = "x86_64")]
    Bf16(Buffer<u32>),
    #[cfg(target_arch = "x86_64")]
    Int8(Int8),
}

/// `y = x W^T + b` with W of `outputs` x `inputs`.
pub struct Linear {
    level: Level,
    inputs: usize,
    outputs: usize,
    /// Words that a prepared row has.
    words: usize,
    panel_columns: usize,
    panels: Panels,
    bias: Buffer<f32>,
    /// The largest magnitude that each input has had, while that is recorded.
    peaks: Option<Mutex<Vec<f32>>>,
}

/// Activations made ready for a layer: the same memory is used again for the next.
pub struct Rows {
    words: Buffer<u32>,
}

impl Rows {
    /// Memory for up to `rows` rows of up to `inputs` numbers.
    pub fn new(rows: usize, inputs: usize) -> Result<Rows, ComputeError> {
        Ok(Rows {
            words: Buffer::zeroed(rows * (inputs + 2 * PADDING))?,
        })
    }
}

/// Words between rows that were copied, so that rows a multiple of a page apart do not fall on one cache set.
const PADDING: usize = 16;

/// The left side of a product: where its words are.
#[derive(Clone, Copy)]
pub struct Prepared<'a> {
    words: &'a [u32],
    stride: usize,
    rows: usize,
}

impl Linear {
    /// Packs `weights` (`outputs` rows of `inputs` numbers) and `bias` for the given instructions.
    pub fn new(
        level: Level,
        precision: Precision,
        weights: &[f32],
        bias: &[f32],
        inputs: usize,
    ) -> Result<Linear, ComputeError> {
        Linear::calibrated(level, precision, weights, bias, inputs, None)
    }

    /// Like [`Linear::new`] with the largest magnitude that each input is known to reach ([`Linear::take_peaks`]): 8-bit
    /// layers keep the largest of them exact.
    pub fn calibrated(
        level: Level,
        precision: Precision,
        weights: &[f32],
        bias: &[f32],
        inputs: usize,
        peaks: Option<&[f32]>,
    ) -> Result<Linear, ComputeError> {
        let outputs = bias.len();
        if inputs == 0 || outputs == 0 || weights.len() != inputs * outputs {
            let found = weights.len();
            return Err(ComputeError::Shape(format!(
                "{found} weights for a layer of {outputs} x {inputs}"
            )));
        }
        precision.check()?;
        #[cfg(target_arch = "x86_64")]
        let (level, instructions) = match precision {
            Precision::F32 => (level.or_detected(), Instructions::Avx2),
            Precision::Bf16 => (Level::Avx512, Instructions::Avx2),
            Precision::Int8 if level == Level::Avx512 && cpu::has_vnni() => (level, Instructions::Avx512Vnni),
            Precision::Int8 if cpu::has_avx_vnni() => (Level::Avx2, Instructions::AvxVnni),
            Precision::Int8 => (Level::Avx2, Instructions::Avx2),
        };
        #[cfg(not(target_arch = "x86_64"))]
        let level = level.or_detected();
        let columns = level.panel_columns();
        let padded = outputs.next_multiple_of(columns);
        let (panels, words) = match precision {
            #[cfg(target_arch = "x86_64")]
            Precision::Bf16 => {
                let word = |pair: &[f32]| {
                    let half = |i: usize| {
                        pair.get(i)
                            .map_or(0, |number| u32::from(bf16::from_f32(*number).to_bits()))
                    };
                    half(0) | half(1) << 16
                };
                let steps = inputs.div_ceil(2);
                (Panels::Bf16(pack(weights, inputs, columns, padded, 2, word)?), steps)
            }
            #[cfg(target_arch = "x86_64")]
            Precision::Int8 => {
                let layer = Int8::new(instructions, columns, weights, inputs, peaks)?;
                let words = layer.row_words();
                (Panels::Int8(layer), words)
            }
            _ => {
                let word = |numbers: &[f32]| numbers.first().map_or(0, |number| number.to_bits());
                (Panels::F32(pack(weights, inputs, columns, padded, 1, word)?), inputs)
            }
        };
        let mut layer = Linear {
            level,
            inputs,
            outputs,
            words,
            panel_columns: columns,
            panels,
            bias: Buffer::zeroed(padded)?,
            peaks: None,
        };
        layer.bias[..outputs].copy_from_slice(bias);
        Ok(layer)
    }

    /// From now on, keeps the largest magnitude of each input in the rows that are prepared.
    pub fn record_peaks(&mut self) {
        self.peaks = Some(Mutex::new(vec![0.0; self.inputs]));
    }

    /// Ends what [`Linear::record_peaks`] began: a number for each input.
    pub fn take_peaks(&mut self) -> Option<Vec<f32>> {
        self.peaks.take().map(Mutex::into_inner)
    }

    pub fn inputs(&self) -> usize {
        self.inputs
    }

    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Rows of a register tile: blocks of a multiple of these rows leave no tile half empty.
    pub fn tile_rows(&self) -> usize {
        self.level.tile_rows()
    }

    /// Panels that the outputs are divided in.
    pub fn panels(&self) -> usize {
        self.outputs.div_ceil(self.panel_columns)
    }

    /// Bytes of memory.
    pub fn memory(&self) -> usize {
        let panels = match &self.panels {
            Panels::F32(panels) => panels.len() * 4,
            #[cfg(target_arch = "x86_64")]
            Panels::Bf16(panels) => panels.len() * 4,
            #[cfg(target_arch = "x86_64")]
            Panels::Int8(layer) => layer.memory(),
        };
        panels + self.bias.len() * 4
    }

    /// Makes rows of `inputs` numbers ready: as they are, copied, rounded or quantised, whatever the layer needs.
    pub fn prepare<'a>(&self, x: &'a [f32], rows: &'a mut Rows) -> Prepared<'a> {
        self.prepare_rows(x, self.inputs, x.len() / self.inputs, rows)
    }

    /// Like [`Linear::prepare`], with `count` rows that begin `apart` numbers from each other.
    pub fn prepare_rows<'a>(&self, x: &'a [f32], apart: usize, count: usize, rows: &'a mut Rows) -> Prepared<'a> {
        let each = || (0..count).map(|row| &x[row * apart..][..self.inputs]);
        if let Some(peaks) = &self.peaks {
            let mut peaks = peaks.lock();
            for row in each() {
                peaks
                    .iter_mut()
                    .zip(row)
                    .for_each(|(peak, number)| *peak = peak.max(number.abs()));
            }
        }
        if matches!(self.panels, Panels::F32(_)) && !(apart * 4).is_multiple_of(4096) {
            // SAFETY: u32 and f32 have the same size and alignment, and every bit pattern is a u32.
            let words = unsafe { std::slice::from_raw_parts(x.as_ptr().cast::<u32>(), x.len()) };
            return Prepared {
                words,
                stride: apart,
                rows: count,
            };
        }
        let stride = self.words + PADDING;
        for (row, words) in each().zip(rows.words.chunks_exact_mut(stride)) {
            let words = &mut words[..self.words];
            match &self.panels {
                Panels::F32(_) => words
                    .iter_mut()
                    .zip(row)
                    .for_each(|(word, number)| *word = number.to_bits()),
                #[cfg(target_arch = "x86_64")]
                // SAFETY: `new` has checked the instructions; there is a word for two numbers.
                Panels::Bf16(_) => unsafe { row_to_bf16(row, words) },
                #[cfg(target_arch = "x86_64")]
                Panels::Int8(layer) => layer.prepare(row, words),
            }
        }
        let rows: &'a Rows = rows;
        Prepared {
            words: &rows.words,
            stride,
            rows: count,
        }
    }

    /// The products of the prepared rows by a range of panels, written to (or added to) the same rows and columns of
    /// `out`, from number `first` on, rows of `stride` numbers.
    ///
    /// # Safety
    /// No other task uses those rows and columns of `out` meanwhile, and `x` does not overlap them.
    pub unsafe fn product(
        &self,
        x: Prepared,
        panels: Range<usize>,
        out: Shared<f32>,
        first: usize,
        stride: usize,
        finish: Finish,
    ) {
        if x.rows == 0 {
            return;
        }
        assert!(stride >= self.outputs && panels.end <= self.panels());
        assert!(x.words.len() >= (x.rows - 1) * x.stride + self.words);
        let c = out.address(first, (x.rows - 1) * stride + self.outputs);
        let product = |b: *const u32| Product {
            rows: x.rows,
            steps: self.words,
            a: x.words.as_ptr(),
            a_stride: x.stride,
            b,
            columns: self.outputs,
            panels,
            bias: self.bias.as_ptr(),
            c,
            c_stride: stride,
            finish,
        };
        // SAFETY: sizes are asserted above, `new` has checked the instructions, exclusivity is the caller's promise.
        unsafe {
            match &self.panels {
                Panels::F32(right) => dispatch(self.level, product(right.as_ptr())),
                #[cfg(target_arch = "x86_64")]
                Panels::Bf16(right) => product_bf16(&product(right.as_ptr())),
                #[cfg(target_arch = "x86_64")]
                Panels::Int8(layer) => layer.product(product(std::ptr::null())),
            }
        }
    }
}

/// Panels of `columns` columns: `word` makes a word of `each` weights of one column.
fn pack(
    weights: &[f32],
    inputs: usize,
    columns: usize,
    padded: usize,
    each: usize,
    word: impl Fn(&[f32]) -> u32,
) -> Result<Buffer<u32>, ComputeError> {
    let steps = inputs.div_ceil(each);
    let mut panels = Buffer::zeroed(padded * steps)?;
    for (column, row) in weights.chunks_exact(inputs).enumerate() {
        let start = column / columns * columns * steps + column % columns;
        let words = panels[start..].iter_mut().step_by(columns);
        for (target, numbers) in words.zip(row.chunks(each)) {
            *target = word(numbers);
        }
    }
    Ok(panels)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers in -1..1 from a small generator with a fixed seed.
    fn numbers(count: usize, mut seed: u64) -> Vec<f32> {
        let mut next = || {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    fn run(layer: &Linear, x: &[f32], finish: Finish, start: &[f32]) -> Vec<f32> {
        let mut out = start.to_vec();
        let mut rows = Rows::new(x.len() / layer.inputs(), layer.inputs()).unwrap();
        let prepared = layer.prepare(x, &mut rows);
        let outputs = layer.outputs();
        // SAFETY: one task, and `x` is another slice.
        unsafe { layer.product(prepared, 0..layer.panels(), Shared::new(&mut out), 0, outputs, finish) };
        out
    }

    /// (rows, inputs, outputs) around the borders of tiles, panels and words.
    const SHAPES: [(usize, usize, usize); 8] = [
        (1, 1, 1),
        (3, 5, 7),
        (14, 32, 32),
        (15, 33, 33),
        (29, 384, 70),
        (2, 1024, 31),
        (6, 7, 16),
        (13, 130, 129),
    ];

    #[test]
    fn products_equal_sums_in_f64() {
        for level in Level::available() {
            for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
                if precision.check().is_err() {
                    println!("SKIPPED: no instructions for {}", precision.name());
                    continue;
                }
                for (rows, inputs, outputs) in SHAPES {
                    let (x, weights) = (numbers(rows * inputs, 1), numbers(outputs * inputs, 2));
                    let (bias, start) = (numbers(outputs, 3), numbers(rows * outputs, 4));
                    let layer = Linear::new(level, precision, &weights, &bias, inputs).unwrap();
                    let tolerance = match precision {
                        Precision::F32 => 2e-6 * inputs as f64,
                        Precision::Bf16 => 0.012 * (inputs as f64).sqrt(),
                        Precision::Int8 => 0.012 * (inputs as f64).sqrt(),
                    };
                    let plain = run(&layer, &x, Finish::Bias, &start);
                    let relu = run(&layer, &x, Finish::Activate(crate::compute::Activation::Relu), &start);
                    let added = run(&layer, &x, Finish::Residual, &start);
                    for row in 0..rows {
                        for column in 0..outputs {
                            let products = x[row * inputs..][..inputs].iter().zip(&weights[column * inputs..]);
                            let sum: f64 = products.map(|(a, b)| *a as f64 * *b as f64).sum();
                            let expected = sum + bias[column] as f64;
                            let at = row * outputs + column;
                            let error = (plain[at] as f64 - expected).abs();
                            assert!(
                                error <= tolerance,
                                "{level:?} {precision:?} {rows} x {inputs} x {outputs}: {error}"
                            );
                            assert_eq!(relu[at], plain[at].max(0.0));
                            assert_eq!(added[at], plain[at] + start[at]);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_row_is_bit_equal_alone_and_among_others() {
        for level in Level::available() {
            for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
                if precision.check().is_err() {
                    continue;
                }
                let (x, weights, bias) = (numbers(40 * 100, 1), numbers(50 * 100, 2), numbers(50, 3));
                let layer = Linear::new(level, precision, &weights, &bias, 100).unwrap();
                let all = run(&layer, &x, Finish::Bias, &vec![0.0; 40 * 50]);
                for row in 0..40 {
                    let alone = run(&layer, &x[row * 100..][..100], Finish::Bias, &[0.0; 50]);
                    assert_eq!(alone, all[row * 50..][..50], "{level:?} {precision:?} row {row}");
                }
            }
        }
    }

    #[test]
    fn constant_and_zero_rows_are_quantised() {
        if Precision::Int8.check().is_err() {
            return;
        }
        let weights = numbers(8 * 10, 2);
        let layer = Linear::new(Level::detect(), Precision::Int8, &weights, &[0.5; 8], 10).unwrap();
        assert_eq!(run(&layer, &[0.0; 10], Finish::Bias, &[0.0; 8]), [0.5; 8]);
        let ones = run(&layer, &[1.0; 10], Finish::Bias, &[0.0; 8]);
        for (column, y) in ones.into_iter().enumerate() {
            let expected: f32 = weights[column * 10..][..10].iter().sum::<f32>() + 0.5;
            assert!((y - expected).abs() < 0.05, "{y} {expected}");
        }
    }

    #[test]
    fn wrong_shapes_are_errors() {
        assert!(matches!(
            Linear::new(Level::Portable, Precision::F32, &[0.0; 5], &[0.0; 2], 3),
            Err(ComputeError::Shape(_))
        ));
    }
}
