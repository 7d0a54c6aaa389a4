//! A linear layer: weights packed once for the kernels, and products of some rows by some of its panels.

use super::gemm::{ALL, Epilogue, Product};
#[cfg(target_arch = "x86_64")]
use super::gemm_bf16::{product_bf16, row_to_bf16};
#[cfg(target_arch = "x86_64")]
use super::int8::{Instructions, Int8};
use crate::compute::ComputeError;
use crate::compute::cpu::buffer::{Buffer, Shared};
use crate::compute::cpu::level::{self, Level, dispatch};
use half::bf16;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// The precision of the products; everything between them is f32.
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
            Precision::Bf16 => (level::has_bf16(), "AVX512-BF16"),
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
    /// Memory for up to `rows` rows of up to `inputs` elements.
    pub fn new(rows: usize, inputs: usize) -> Result<Rows, ComputeError> {
        Ok(Rows {
            words: Buffer::zeroed(rows * (inputs + 2 * PADDING))?,
        })
    }
}

/// Inputs of a part of a bf16 layer.
#[cfg(target_arch = "x86_64")]
const BF16_PART: usize = 256;

/// Words between rows that were copied, so that rows a multiple of a page apart do not fall on one cache set.
const PADDING: usize = 16;

/// The left side of a product: where its words are.
#[derive(Clone, Copy)]
pub struct Prepared<'a> {
    words: &'a [u32],
    stride: usize,
    rows: usize,
}

/// The width of vectors, and the instructions of products in 8 bits, for a precision.
#[cfg(target_arch = "x86_64")]
fn instructions(level: Level, precision: Precision) -> (Level, Instructions) {
    match precision {
        Precision::F32 => (level.or_detected(), Instructions::Avx2),
        Precision::Bf16 => (Level::Avx512, Instructions::Avx2),
        Precision::Int8 if level == Level::Avx512 && level::has_vnni() => (level, Instructions::Avx512Vnni),
        Precision::Int8 if level::has_avx_vnni() => (Level::Avx2, Instructions::AvxVnni),
        Precision::Int8 => (Level::Avx2, Instructions::Avx2),
    }
}

/// A word of two elements, of which the second may be missing.
#[cfg(target_arch = "x86_64")]
fn bf16_word(pair: &[f32]) -> u32 {
    let half = |i: usize| {
        pair.get(i)
            .map_or(0, |element| u32::from(bf16::from_f32(*element).to_bits()))
    };
    half(0) | half(1) << 16
}

impl Linear {
    /// Packs `weights` (`outputs` rows of `inputs` elements) and `bias` for the given instructions.
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
        let (level, instructions) = instructions(level, precision);
        #[cfg(not(target_arch = "x86_64"))]
        let level = level.or_detected();
        let columns = level.panel_columns();
        let padded = outputs.next_multiple_of(columns);
        let (panels, words) = match precision {
            #[cfg(target_arch = "x86_64")]
            Precision::Bf16 => {
                let panels = pack(weights, inputs, columns, padded, 2, bf16_word)?;
                (Panels::Bf16(panels), inputs.div_ceil(2))
            }
            #[cfg(target_arch = "x86_64")]
            Precision::Int8 => {
                let layer = Int8::new(instructions, columns, weights, inputs, peaks)?;
                let words = layer.row_words();
                (Panels::Int8(layer), words)
            }
            _ => {
                let word = |elements: &[f32]| elements.first().map_or(0, |element| element.to_bits());
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

    /// Inputs of a part, where rows can be made ready in parts ([`Linear::prepare_part`]): a multiple of every panel's
    /// columns. `None` where rows are best used as they are.
    pub fn part(&self) -> Option<usize> {
        match &self.panels {
            _ if self.peaks.is_some() => None,
            #[cfg(target_arch = "x86_64")]
            Panels::Bf16(_) => Some(BF16_PART),
            #[cfg(target_arch = "x86_64")]
            Panels::Int8(layer) if layer.group().is_multiple_of(self.panel_columns) => Some(layer.group()),
            _ => None,
        }
    }

    /// Outputs of a panel.
    pub fn panel_columns(&self) -> usize {
        self.panel_columns
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

    /// Makes rows of `inputs` elements ready: as they are, copied, rounded or quantised, whatever the layer needs.
    pub fn prepare<'a>(&self, x: &'a [f32], rows: &'a mut Rows) -> Prepared<'a> {
        self.prepare_rows(0, x, rows);
        self.ready(x, rows)
    }

    /// The rows `x`, which [`Linear::prepare_rows`] has made ready.
    pub fn ready<'a>(&self, x: &'a [f32], rows: &'a Rows) -> Prepared<'a> {
        let count = x.len() / self.inputs;
        if !self.as_they_are() {
            return self.prepared(rows, count);
        }
        // SAFETY: u32 and f32 have the same size and alignment, and every bit pattern is a u32.
        let words = unsafe { std::slice::from_raw_parts(x.as_ptr().cast::<u32>(), x.len()) };
        Prepared {
            words,
            stride: self.inputs,
            rows: count,
        }
    }

    /// Whether rows are used where they are.
    fn as_they_are(&self) -> bool {
        matches!(self.panels, Panels::F32(_)) && !(self.inputs * 4).is_multiple_of(4096)
    }

    fn note_peaks(&self, x: &[f32]) {
        if let Some(peaks) = &self.peaks {
            let mut peaks = peaks.lock();
            for row in x.chunks_exact(self.inputs) {
                peaks
                    .iter_mut()
                    .zip(row)
                    .for_each(|(peak, number)| *peak = peak.max(number.abs()));
            }
        }
    }

    /// Makes rows of `inputs` elements ready, as rows from `first` on of those that [`Linear::ready`] gives.
    pub fn prepare_rows(&self, first: usize, x: &[f32], rows: &mut Rows) {
        self.note_peaks(x);
        if !self.as_they_are() {
            self.write_rows(first, x, rows);
        }
    }

    /// Like [`Linear::prepare`], with `count` rows that begin `apart` elements from each other.
    pub fn prepare_apart<'a>(&self, x: &'a [f32], apart: usize, count: usize, rows: &'a mut Rows) -> Prepared<'a> {
        let each = || (0..count).map(|row| &x[row * apart..][..self.inputs]);
        each().for_each(|row| self.note_peaks(row));
        if matches!(self.panels, Panels::F32(_)) && !(apart * 4).is_multiple_of(4096) {
            // SAFETY: u32 and f32 have the same size and alignment, and every bit pattern is a u32.
            let words = unsafe { std::slice::from_raw_parts(x.as_ptr().cast::<u32>(), x.len()) };
            return Prepared {
                words,
                stride: apart,
                rows: count,
            };
        }
        for (number, row) in each().enumerate() {
            self.write_rows(number, row, rows);
        }
        self.prepared(rows, count)
    }

    fn write_rows(&self, first: usize, x: &[f32], rows: &mut Rows) {
        let stride = self.words + PADDING;
        let words = rows.words[first * stride..].chunks_exact_mut(stride);
        for (row, words) in x.chunks_exact(self.inputs).zip(words) {
            let words = &mut words[..self.words];
            match &self.panels {
                Panels::F32(_) => words
                    .iter_mut()
                    .zip(row)
                    .for_each(|(word, number)| *word = number.to_bits()),
                #[cfg(target_arch = "x86_64")]
                // SAFETY: `new` has checked the instructions; there is a word for two elements.
                Panels::Bf16(_) => unsafe { row_to_bf16(row, words) },
                #[cfg(target_arch = "x86_64")]
                Panels::Int8(layer) => layer.prepare(row, words),
            }
        }
    }

    /// Makes one part of the inputs of some rows ready, rows of as many elements as the part has; when all parts are,
    /// [`Linear::prepared`] has the rows. Bit for bit what [`Linear::prepare`] makes.
    pub fn prepare_part(&self, number: usize, x: &[f32], rows: &mut Rows) {
        let Some(part) = self.part() else { return };
        let width = part.min(self.inputs.saturating_sub(number * part));
        let stride = self.words + PADDING;
        for (row, words) in x.chunks_exact(width.max(1)).zip(rows.words.chunks_exact_mut(stride)) {
            let words = &mut words[..self.words];
            match &self.panels {
                Panels::F32(_) => {}
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as in `prepare`.
                Panels::Bf16(_) => unsafe { row_to_bf16(row, &mut words[number * part / 2..]) },
                #[cfg(target_arch = "x86_64")]
                Panels::Int8(layer) => layer.prepare_group(number, row, words),
            }
        }
    }

    /// The first `count` rows, all of whose parts are ready.
    pub fn prepared<'a>(&self, rows: &'a Rows, count: usize) -> Prepared<'a> {
        Prepared {
            words: &rows.words,
            stride: self.words + PADDING,
            rows: count,
        }
    }

    /// The products of the prepared rows by a range of panels as a matrix of their own: rows of as many elements as these
    /// panels have columns (but for those beyond the outputs).
    pub fn columns(&self, x: Prepared, panels: Range<usize>, out: &mut [f32], epilogue: Epilogue) {
        assert!(panels.start < panels.end && panels.end <= self.panels());
        let start = panels.start * self.panel_columns;
        let width = (panels.end * self.panel_columns).min(self.outputs) - start;
        assert!(out.len() >= x.rows * width);
        let c = out.as_mut_ptr().wrapping_sub(start);
        // SAFETY: columns from `start` on are written, `width` of them a row, which `out` has room for; nobody else has it.
        unsafe { self.compute(x, panels, c, width, [ALL, 0], epilogue) }
    }

    /// The products of the prepared rows by a range of panels, the outputs divided in planes of `width` columns, which lie one
    /// behind the other in `out` with `tokens` rows each; the rows begin at number `first`.
    ///
    /// # Safety
    /// As [`Linear::product`].
    pub unsafe fn product_planes(
        &self,
        x: Prepared,
        panels: Range<usize>,
        out: Shared<f32>,
        first: usize,
        [tokens, width]: [usize; 2],
    ) {
        assert!(width.is_multiple_of(self.panel_columns) && self.outputs.is_multiple_of(width));
        assert!(panels.end <= self.panels() && first + x.rows <= tokens);
        let all = out.address(0, self.outputs * tokens);
        // SAFETY: every plane has these rows; exclusivity is the caller's promise.
        unsafe {
            let c = all.add(first * width);
            self.compute(x, panels, c, width, [width, tokens * width], Epilogue::Bias)
        }
    }

    /// [`Linear::product_planes`] rounded to bf16, two elements in the memory of one.
    ///
    /// # Safety
    /// As [`Linear::product`].
    pub unsafe fn rounded_planes(
        &self,
        x: Prepared,
        panels: Range<usize>,
        out: Shared<f32>,
        first: usize,
        [tokens, width]: [usize; 2],
    ) {
        assert!(width.is_multiple_of(self.panel_columns) && self.outputs.is_multiple_of(width));
        assert!(panels.end <= self.panels() && first + x.rows <= tokens);
        let all: *mut bf16 = out.address(0, (self.outputs * tokens).div_ceil(2)).cast();
        // SAFETY: as above; a number of bf16 takes half the memory of one of f32.
        unsafe {
            let c = all.add(first * width).cast();
            self.compute(x, panels, c, width, [width, tokens * width], Epilogue::Round)
        }
    }

    /// The products of the prepared rows by a range of panels, written to (or added to) the same rows and columns of
    /// `out`, from number `first` on, rows of `stride` elements.
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
        epilogue: Epilogue,
    ) {
        if x.rows == 0 {
            return;
        }
        assert!(stride >= self.outputs && panels.end <= self.panels());
        let c = out.address(first, (x.rows - 1) * stride + self.outputs);
        // SAFETY: the panels' columns are inside `out`; exclusivity is the caller's promise.
        unsafe { self.compute(x, panels, c, stride, [ALL, 0], epilogue) }
    }

    /// # Safety
    /// `c` holds the panels' columns of every row, rows `stride` and planes as [`Product::planes`] says, and nobody else uses
    /// them meanwhile.
    unsafe fn compute(
        &self,
        x: Prepared,
        panels: Range<usize>,
        c: *mut f32,
        stride: usize,
        planes: [usize; 2],
        epilogue: Epilogue,
    ) {
        if x.rows == 0 {
            return;
        }
        assert!(x.words.len() >= (x.rows - 1) * x.stride + self.words);
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
            planes,
            epilogue,
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
        for (target, elements) in words.zip(row.chunks(each)) {
            *target = word(elements);
        }
    }
    Ok(panels)
}

#[cfg(test)]
mod tests;
