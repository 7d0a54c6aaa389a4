//! Products with weights that stay quantised: how blocks are packed, and the loop over panels.
//!
//! Sixteen outputs stand side by side in a panel. A panel's inputs are divided in groups (32, or 16 of Q6_K); in a
//! group an output's weight is `w = d (u - c) + m` with an unsigned `u`, so that with activations `x = a (q + r / 254)`
//! (`activations.rs`) and their sum `s`
//!
//! `sum(w x) = d (a (sum(u q) + sum(u r) / 254) - c s) + m s`.
//!
//! A panel holds for each group the codes, 64 bytes at a time: four inputs of sixteen outputs each, in two halves of a
//! byte where codes have four bits (the low halves are inputs 0..16, the high ones 16..32). Scales and offsets are f16,
//! sixteen a group. Q4_0, Q4_1 and Q8_0 are kept bit by bit; of the blocks of 256 the products of the two scales are
//! rounded to f16 (at most one part in 2048, where an activation is rounded to one in 254).

use super::activations::{FINE, GROUP, QuantisedActivations};
use super::ggml_blocks::{BlockKind, scale_and_minimum};
use crate::compute::ComputeError;
use crate::compute::cpu::buffer::{Buffer, Shared};
use crate::compute::cpu::pool::Pool;
use half::f16;

/// Outputs of a panel.
pub const PANEL: usize = 16;
/// Tasks for each thread, so that a thread that was interrupted leaves work to others.
const TASKS: usize = 4;

/// How codes are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Width {
    Four,
    Eight,
}

/// The weights of a linear layer without bias, packed.
pub struct Quantised {
    pub(super) outputs: usize,
    pub(super) inputs: usize,
    pub(super) width: Width,
    /// Inputs that share a scale: 32 or 16.
    pub(super) group: usize,
    /// `c`.
    pub(super) centre: f32,
    /// Codes, panel after panel.
    pub(super) words: Buffer<u32>,
    /// `d` as f16, two to a word.
    pub(super) scales: Buffer<u32>,
    /// `m` as f16; none where all are zero.
    pub(super) offsets: Option<Buffer<u32>>,
}

/// One row's group, unpacked.
struct Group {
    codes: [u8; GROUP],
    scale: [f32; 2],
    offset: [f32; 2],
}

impl Quantised {
    /// Packs rows of blocks; `bytes` holds `outputs` rows of `inputs` elements each.
    ///
    /// # Errors
    /// [`ComputeError::Shape`] where the bytes are not that many, [`ComputeError::Memory`] where there is too little.
    pub fn new(kind: BlockKind, outputs: usize, inputs: usize, bytes: &[u8]) -> Result<Quantised, ComputeError> {
        let row = kind
            .row_bytes(inputs)
            .filter(|row| *row > 0 && bytes.len() == row * outputs);
        let Some(row) = row else {
            let what = format!("{} bytes of {} for {outputs} x {inputs}", bytes.len(), kind.name());
            return Err(ComputeError::Shape(what));
        };
        let (width, group, centre) = match kind {
            BlockKind::Q4_0 => (Width::Four, 32, 8.0),
            BlockKind::Q4_1 | BlockKind::Q4_K => (Width::Four, 32, 0.0),
            BlockKind::Q6_K => (Width::Eight, 16, 128.0),
            _ => (Width::Eight, 32, 128.0),
        };
        let offsets = matches!(
            kind,
            BlockKind::Q4_1 | BlockKind::Q4_K | BlockKind::Q5_1 | BlockKind::Q5_K
        );
        let panels = outputs.div_ceil(PANEL);
        let code_words = inputs * PANEL / if width == Width::Four { 8 } else { 4 };
        let scale_words = inputs / group * PANEL / 2;
        let mut packed = Quantised {
            outputs,
            inputs,
            width,
            group,
            centre,
            words: Buffer::zeroed(panels * code_words)?,
            scales: Buffer::zeroed(panels * scale_words)?,
            offsets: offsets.then(|| Buffer::zeroed(panels * scale_words)).transpose()?,
        };
        for (output, row) in bytes.chunks_exact(row).enumerate() {
            packed.set_row(kind, output, row);
        }
        Ok(packed)
    }

    /// Puts one row of blocks in its lane.
    fn set_row(&mut self, kind: BlockKind, output: usize, row: &[u8]) {
        let (panel, lane) = (output / PANEL, output % PANEL);
        let groups = self.inputs / GROUP;
        let of_block = kind.length() / GROUP;
        let parts = GROUP / self.group;
        for (number, block) in row.chunks_exact(kind.bytes()).enumerate() {
            for within in 0..of_block {
                let at = panel * groups + number * of_block + within;
                let group = unpack(kind, block, within);
                for part in 0..parts {
                    let place = (at * parts + part) * PANEL + lane;
                    put(&mut self.scales, place, f16::from_f32(group.scale[part]).to_bits());
                    if let Some(offsets) = &mut self.offsets {
                        put(offsets, place, f16::from_f32(group.offset[part]).to_bits());
                    }
                }
                match self.width {
                    Width::Eight => {
                        for (chunk, four) in group.codes.as_chunks::<4>().0.iter().enumerate() {
                            self.words[(at * 8 + chunk) * PANEL + lane] = u32::from_le_bytes(*four);
                        }
                    }
                    Width::Four => {
                        let (low, high) = group.codes.split_at(16);
                        for (chunk, (low, high)) in
                            low.as_chunks::<4>().0.iter().zip(high.as_chunks::<4>().0).enumerate()
                        {
                            let both = std::array::from_fn(|i| low[i] | high[i] << 4);
                            self.words[(at * 4 + chunk) * PANEL + lane] = u32::from_le_bytes(both);
                        }
                    }
                }
            }
        }
    }

    pub fn inputs(&self) -> usize {
        self.inputs
    }

    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Bytes of memory.
    pub fn memory(&self) -> usize {
        let offsets = self.offsets.as_ref().map_or(0, |offsets| offsets.len());
        (self.words.len() + self.scales.len() + offsets) * 4
    }

    /// The weights of one output, as elements: a row of an embedding.
    ///
    /// # Errors
    /// [`ComputeError::Shape`] for an output that there is not, or a slice of another length.
    pub fn row(&self, output: usize, out: &mut [f32]) -> Result<(), ComputeError> {
        if output >= self.outputs || out.len() != self.inputs {
            return Err(ComputeError::Shape(format!("row {output} of {}", self.outputs)));
        }
        let (panel, lane) = (output / PANEL, output % PANEL);
        let (groups, parts) = (self.inputs / GROUP, GROUP / self.group);
        for (group, out) in out.chunks_exact_mut(GROUP).enumerate() {
            let at = panel * groups + group;
            for (place, number) in out.iter_mut().enumerate() {
                let code = self.code(at, place, lane);
                let scale = (at * parts + place / self.group) * PANEL + lane;
                let offset = self.offsets.as_ref().map_or(0.0, |offsets| get(offsets, scale));
                *number = get(&self.scales, scale) * (f32::from(code) - self.centre) + offset;
            }
        }
        Ok(())
    }

    /// The code of one input of a group, for the output in `lane`.
    fn code(&self, group: usize, place: usize, lane: usize) -> u8 {
        match self.width {
            Width::Eight => self.words[(group * 8 + place / 4) * PANEL + lane].to_le_bytes()[place % 4],
            Width::Four => {
                let within = place % 16;
                let byte = self.words[(group * 4 + within / 4) * PANEL + lane].to_le_bytes()[within % 4];
                if place < 16 { byte & 15 } else { byte >> 4 }
            }
        }
    }
}

/// The f16 at a place of packed words.
pub(super) fn get(words: &[u32], place: usize) -> f32 {
    f16::from_bits((words[place / 2] >> (16 * (place % 2))) as u16).to_f32()
}

fn put(words: &mut [u32], place: usize, bits: u16) {
    words[place / 2] |= u32::from(bits) << (16 * (place % 2));
}

/// A group of 32 elements of a block, as codes above `centre`.
fn unpack(kind: BlockKind, block: &[u8], within: usize) -> Group {
    match kind {
        BlockKind::Q4_0 | BlockKind::Q4_1 | BlockKind::Q5_0 | BlockKind::Q5_1 => unpack_small(kind, block),
        BlockKind::Q8_0 => Group::even(
            std::array::from_fn(|place| block[2 + place] ^ 0x80),
            half(block, 0),
            0.0,
        ),
        BlockKind::Q4_K | BlockKind::Q5_K => unpack_k(kind, block, within),
        BlockKind::Q6_K => unpack_q6_k(block, within),
    }
}

impl Group {
    /// One scale and offset for the whole group.
    fn even(codes: [u8; GROUP], scale: f32, offset: f32) -> Group {
        Group {
            codes,
            scale: [scale; 2],
            offset: [offset; 2],
        }
    }
}

/// The f16 at a byte of a block.
fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Blocks of 32 with four or five bits.
fn unpack_small(kind: BlockKind, block: &[u8]) -> Group {
    let minimum = matches!(kind, BlockKind::Q4_1 | BlockKind::Q5_1);
    let five = matches!(kind, BlockKind::Q5_0 | BlockKind::Q5_1);
    let at = 2 + 2 * usize::from(minimum) + 4 * usize::from(five);
    let high = match five {
        true => u32::from_le_bytes([block[at - 4], block[at - 3], block[at - 2], block[at - 1]]),
        false => 0,
    };
    // Signed codes around 128, as all that have eight bits.
    let shift = match kind {
        BlockKind::Q5_0 => 128 - 16,
        BlockKind::Q5_1 => 128,
        _ => 0,
    };
    let codes = std::array::from_fn(|place| {
        let byte = block[at + place % 16];
        let nibble = if place < 16 { byte & 15 } else { byte >> 4 };
        (nibble | ((high >> place & 1) as u8) << 4) + shift
    });
    Group::even(codes, half(block, 0), if minimum { half(block, 2) } else { 0.0 })
}

/// A group of a block of 256 with four or five bits.
fn unpack_k(kind: BlockKind, block: &[u8], within: usize) -> Group {
    let mut packed = [0u8; 12];
    packed.copy_from_slice(&block[4..16]);
    let (scale, minimum) = scale_and_minimum(&packed, within);
    let five = kind == BlockKind::Q5_K;
    let nibbles = &block[if five { 48 } else { 16 } + within / 2 * 32..];
    let codes = std::array::from_fn(|place| {
        let byte = nibbles[place];
        let code = if within.is_multiple_of(2) { byte & 15 } else { byte >> 4 };
        match five {
            true => code + 128 + ((block[16 + place] >> within & 1) << 4),
            false => code,
        }
    });
    let (scale, minimum) = (f32::from(scale), f32::from(minimum));
    Group::even(codes, half(block, 0) * scale, -half(block, 2) * minimum)
}

/// A group of a block of 256 with six bits, whose halves have scales of their own.
fn unpack_q6_k(block: &[u8], within: usize) -> Group {
    let (part, quarter) = (within / 4, within % 4);
    let codes = std::array::from_fn(|place| {
        let byte = block[64 * part + 32 * (quarter % 2) + place];
        let nibble = if quarter < 2 { byte & 15 } else { byte >> 4 };
        let pair = block[128 + 32 * part + place] >> (2 * quarter) & 3;
        (nibble | pair << 4) + (128 - 32)
    });
    let scales = [0, 1].map(|half| block[192 + 2 * within + half] as i8);
    Group {
        codes,
        scale: scales.map(|scale| half(block, 208) * f32::from(scale)),
        offset: [0.0; 2],
    }
}

/// One product of a loop: `out[row stride + column + o] (+)= sum(W[o] x[row])`.
pub struct Target<'a> {
    pub layer: &'a Quantised,
    /// Where in a row of `out` the layer's outputs begin.
    pub column: usize,
}

/// Multiplies the same rows with several layers, in one loop. `out` has rows of `stride` elements; `add` adds to what
/// stands there. `stop` is asked between tasks.
///
/// # Errors
/// [`ComputeError::Shape`] where a layer does not fit the codes or `out`; [`ComputeError::Stopped`].
pub fn products(
    pool: &Pool,
    x: &QuantisedActivations,
    targets: &[Target<'_>],
    out: &mut [f32],
    stride: usize,
    add: bool,
    stop: &dyn Fn() -> bool,
) -> Result<(), ComputeError> {
    let fits = |target: &Target| target.layer.inputs == x.inputs && target.column + target.layer.outputs <= stride;
    if !targets.iter().all(fits) || out.len() < x.rows * stride {
        return Err(ComputeError::Shape(format!(
            "products of {} rows of {}",
            x.rows, x.inputs
        )));
    }
    let shared = Shared::new(out);
    let total: usize = targets.iter().map(|target| target.layer.outputs.div_ceil(PANEL)).sum();
    let tasks = (pool.threads() * TASKS).min(total);
    let kernel = Kernel::detect();
    pool.run_until(tasks, stop, |_, task| {
        let mut range = total * task / tasks..total * (task + 1) / tasks;
        for target in targets {
            let panels = target.layer.outputs.div_ceil(PANEL);
            let own = range.start.min(panels)..range.end.min(panels);
            for panel in own {
                // SAFETY: each panel has columns of its own, and shapes were compared above.
                unsafe { kernel.panel(target.layer, x, panel, shared, target.column, stride, add) }
            }
            range = range.start.saturating_sub(panels)..range.end.saturating_sub(panels);
        }
    })
}

/// The instructions of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kernel {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Vnni,
}

impl Kernel {
    /// The strongest of this processor.
    pub fn detect() -> Kernel {
        #[cfg(target_arch = "x86_64")]
        {
            use crate::compute::cpu::level::{Level, has_vnni, level};
            if has_vnni() {
                return Kernel::Vnni;
            }
            if level() >= Level::Avx2 {
                return Kernel::Avx2;
            }
        }
        Kernel::Portable
    }

    /// One panel times all rows.
    ///
    /// # Safety
    /// The processor has the instructions; the panel exists, `x` has the layer's inputs, `out` all rows, and no other task
    /// touches the panel's columns.
    #[allow(clippy::too_many_arguments)]
    unsafe fn panel(
        self,
        layer: &Quantised,
        x: &QuantisedActivations,
        panel: usize,
        out: Shared<f32>,
        column: usize,
        stride: usize,
        add: bool,
    ) {
        let lanes = PANEL.min(layer.outputs - panel * PANEL);
        let mut put = |row: usize, sums: &[f32; PANEL]| {
            // SAFETY: these columns of the row are this task's.
            let to = unsafe { out.part(row * stride + column + panel * PANEL, lanes) };
            for (to, sum) in to.iter_mut().zip(sums) {
                *to = if add { *to + sum } else { *sum };
            }
        };
        match self {
            Kernel::Portable => portable(layer, x, panel, &mut put),
            // SAFETY: the caller's promise.
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx2 => unsafe { super::x86::avx2(layer, x, panel, &mut put) },
            // SAFETY: the caller's promise.
            #[cfg(target_arch = "x86_64")]
            Kernel::Vnni => unsafe { super::x86::vnni(layer, x, panel, &mut put) },
        }
    }
}

/// The formula in plain Rust.
fn portable(layer: &Quantised, x: &QuantisedActivations, panel: usize, put: &mut dyn FnMut(usize, &[f32; PANEL])) {
    let (groups, parts) = (layer.inputs / GROUP, GROUP / layer.group);
    for row in 0..x.rows {
        let mut sums = [0.0f32; PANEL];
        for group in 0..groups {
            let at = panel * groups + group;
            let a = x.scales[row * groups + group];
            for part in 0..parts {
                let halves = &x.sums[(row * groups + group) * 2..][..2];
                let sum = if parts == 1 {
                    halves[0] + halves[1]
                } else {
                    halves[part]
                };
                for (lane, out) in sums.iter_mut().enumerate() {
                    let mut dots = [0i32; 2];
                    for place in part * layer.group..(part + 1) * layer.group {
                        let code = i32::from(layer.code(at, place, lane));
                        let word = (row * layer.inputs + group * GROUP + place) / 4;
                        for (dot, words) in dots.iter_mut().zip([&x.words, &x.fine]) {
                            *dot += code * i32::from(words[word].to_le_bytes()[place % 4] as i8);
                        }
                    }
                    let dot = dots[0] as f32 + dots[1] as f32 / FINE;
                    let scale = (at * parts + part) * PANEL + lane;
                    *out += get(&layer.scales, scale) * (dot * a - layer.centre * sum);
                    if let Some(offsets) = &layer.offsets {
                        *out += get(offsets, scale) * sum;
                    }
                }
            }
        }
        put(row, &sums);
    }
}

#[cfg(test)]
mod tests;
