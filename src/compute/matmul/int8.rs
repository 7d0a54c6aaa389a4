//! Weights and activations in 8 bits: how a layer is packed and a row is quantised.
//!
//! Inputs are divided in equal groups of at most [`GROUP`]. In a group, a row of activations is `x = s q + o` with q in
//! 0..=255, and a column of weights `w = t p` with p in -127..=127, so the sum over the group is
//! `s t sum(q p) + o t sum(p)`. The few inputs with the largest activations, which would coarsen the steps of all
//! others, are kept out of that and multiplied in f32. Which inputs these are is fixed when the layer is packed, so a
//! row's result depends on that row alone (outliers as in Dettmers et al., "LLM.int8()", 2022).
//!
//! A prepared row is: the groups' words, then the f32 elements of the kept inputs, then `o` of each group (the
//! `exact` elements: their panels hold the kept inputs' weights and `t sum(p)`), then `s` of each group.

use super::gemm::Product;
use super::gemm_int8::{Groups, product_avx_vnni, product_avx2, product_vnni, product_vnni_bf16};
use crate::compute::ComputeError;
use crate::compute::cpu::buffer::Buffer;
use crate::compute::cpu::level;
use std::arch::x86_64::*;
use std::ops::Range;

/// Most inputs of a group. Sums of 256 x 255 x 127 fit 32 bits, and the integers of a tile are scaled seldom enough.
const GROUP: usize = 256;
/// Inputs of a group are a multiple of this, but for layers with fewer: whole panels of the layer before.
const GROUP_STEP: usize = 32;
/// A step below which a group counts as constant: its inverse must be finite.
const LEAST_STEP: f32 = 1e-30;

/// The instructions of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instructions {
    Avx512Vnni,
    AvxVnni,
    Avx2,
}

/// Packed weights.
pub struct Int8 {
    instructions: Instructions,
    inputs: usize,
    columns: usize,
    groups: usize,
    /// Inputs of a group, a multiple of four (of [`GROUP_STEP`] where there are as many); the last group may have fewer.
    group: usize,
    /// Inputs kept in f32, ascending, each with another one of its group that stands in for it among the integers (or
    /// itself, where the whole group is kept).
    kept: Vec<[usize; 2]>,
    /// Which of `kept` are in each group.
    kept_of: Vec<Range<usize>>,
    /// For each group, for each 16 of its inputs, the bits of those that are quantised.
    counted: Vec<u16>,
    panels: Buffer<u32>,
    exact: Buffer<f32>,
    scales: Buffer<f32>,
}

/// Inputs of a layer that are kept in f32.
fn kept_count(inputs: usize) -> usize {
    (inputs / 192 + 2).min(inputs / 16)
}

/// The inputs with the largest peaks, ascending; ties go to the lower number.
fn choose(peaks: &[f32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..peaks.len()).collect();
    order.sort_by(|a, b| peaks[*b].total_cmp(&peaks[*a]).then(a.cmp(b)));
    order.truncate(kept_count(peaks.len()));
    order.sort_unstable();
    order
}

/// How inputs are divided in groups, and which of them are kept in f32.
struct Grouping<'a> {
    inputs: usize,
    /// Inputs of a group, and how many groups there are.
    group: usize,
    groups: usize,
    /// Ascending.
    chosen: &'a [usize],
}

impl Grouping<'_> {
    fn is_chosen(&self, input: usize) -> bool {
        self.chosen.binary_search(&input).is_ok()
    }

    /// Each input that is kept, with another of its group that stands in for it among the integers.
    fn kept(&self) -> Vec<[usize; 2]> {
        let stand_in = |input: usize| {
            let first = input / self.group * self.group;
            let mut others = first..(first + self.group).min(self.inputs);
            others.find(|other| !self.is_chosen(*other)).unwrap_or(input)
        };
        self.chosen.iter().map(|input| [*input, stand_in(*input)]).collect()
    }

    /// Which of the kept inputs belong to each group.
    fn kept_of(&self) -> Vec<Range<usize>> {
        let before = |input: usize| self.chosen.partition_point(|chosen| *chosen < input);
        let of = |number: usize| before(number * self.group)..before((number + 1) * self.group);
        (0..self.groups).map(of).collect()
    }

    /// For each 16 inputs of each group, the bits of those that are integers.
    fn masks(&self) -> Vec<u16> {
        let counted = |number: usize, lane: usize| {
            let input = number * self.group + lane;
            lane < self.group && input < self.inputs && !self.is_chosen(input)
        };
        let mut masks = Vec::new();
        for number in 0..self.groups {
            for first in (0..self.group).step_by(16) {
                let bit = |lane: usize| u16::from(counted(number, first + lane)) << lane;
                masks.push((0..16).map(bit).sum());
            }
        }
        masks
    }
}

impl Int8 {
    /// Packs rows of `inputs` weights, an output each, for panels of `columns`. `peaks` has the largest magnitude that
    /// each input is known to reach; without it no input is kept in f32.
    pub fn new(
        instructions: Instructions,
        columns: usize,
        weights: &[f32],
        inputs: usize,
        peaks: Option<&[f32]>,
    ) -> Result<Int8, ComputeError> {
        let step = if inputs < GROUP_STEP { 4 } else { GROUP_STEP };
        let group = inputs.div_ceil(inputs.div_ceil(GROUP)).next_multiple_of(step);
        let groups = inputs.div_ceil(group);
        let chosen = match peaks {
            Some(peaks) if peaks.len() == inputs => choose(peaks),
            Some(peaks) => {
                let found = peaks.len();
                return Err(ComputeError::Shape(format!("{found} peaks for {inputs} inputs")));
            }
            None => Vec::new(),
        };
        let groups_of = Grouping {
            inputs,
            group,
            groups,
            chosen: &chosen,
        };
        let (kept, kept_of, masks) = (groups_of.kept(), groups_of.kept_of(), groups_of.masks());
        let padded = (weights.len() / inputs).next_multiple_of(columns);
        let mut layer = Int8 {
            instructions,
            inputs,
            columns,
            groups,
            group,
            panels: Buffer::zeroed(padded * groups * (group / 4))?,
            exact: Buffer::zeroed(padded * (kept.len() + groups))?,
            scales: Buffer::zeroed(padded * groups)?,
            kept,
            kept_of,
            counted: masks,
        };
        let mut row = vec![0f32; inputs];
        for (column, weights) in weights.chunks_exact(inputs).enumerate() {
            row.copy_from_slice(weights);
            layer.pack_column(column, &mut row);
        }
        Ok(layer)
    }

    /// Writes one column of the panels; takes the kept inputs' weights out of `row`.
    fn pack_column(&mut self, column: usize, row: &mut [f32]) {
        let columns = self.columns;
        let (panel, place) = (column / columns, column % columns);
        let exact = self.kept.len() + self.groups;
        for (i, [input, _]) in self.kept.iter().enumerate() {
            self.exact[(panel * exact + i) * columns + place] = std::mem::take(&mut row[*input]);
        }
        for (number, weights) in row.chunks(self.group).enumerate() {
            let scale = weights.iter().fold(0f32, |largest, weight| largest.max(weight.abs())) / 127.0;
            let quantise = |weight: &f32| {
                if scale > 0.0 { (weight / scale).round() as i8 } else { 0 }
            };
            let sum: i32 = weights.iter().map(|weight| i32::from(quantise(weight))).sum();
            let at = panel * self.groups + number;
            self.scales[at * columns + place] = scale;
            self.exact[(panel * exact + self.kept.len() + number) * columns + place] = scale * sum as f32;
            let first = at * (self.group / 4);
            for (step, elements) in weights.chunks(4).enumerate() {
                let mut bytes = [0u8; 4];
                for (byte, number) in bytes.iter_mut().zip(elements) {
                    *byte = quantise(number) as u8;
                }
                self.panels[(first + step) * columns + place] = u32::from_le_bytes(bytes);
            }
        }
    }

    /// Words of a prepared row.
    pub fn row_words(&self) -> usize {
        self.groups * (self.group / 4) + self.kept.len() + 2 * self.groups
    }

    /// Bytes of memory.
    pub fn memory(&self) -> usize {
        (self.panels.len() + self.exact.len() + self.scales.len()) * 4
    }

    /// Inputs of a group: all of them but for the last group's.
    pub fn group(&self) -> usize {
        self.group
    }

    /// Quantises a row of activations. A group with a number that is not finite makes every output of the row NaN.
    pub fn prepare(&self, row: &[f32], words: &mut [u32]) {
        assert!(row.len() == self.inputs);
        for (number, part) in row.chunks(self.group).enumerate() {
            self.prepare_group(number, part, words);
        }
    }

    /// The same for the inputs of one group: its part of the row's `words`.
    pub fn prepare_group(&self, number: usize, part: &[f32], words: &mut [u32]) {
        let first = number * self.group;
        assert!(number < self.groups && part.len() == self.group.min(self.inputs - first));
        assert!(words.len() == self.row_words());
        let group_words = self.group / 4;
        let (integers, floats) = words.split_at_mut(self.groups * group_words);
        let words = &mut integers[number * group_words..][..group_words];
        let kept = self.kept_of[number].clone();
        let [step, low] = if self.instructions == Instructions::Avx512Vnni {
            let masks = self.group.div_ceil(16);
            let counted = &self.counted[number * masks..][..masks];
            // SAFETY: such a layer is only made where the processor has AVX-512.
            unsafe { quantise_avx512(part, counted, words) }
        } else {
            let mut block = [0f32; GROUP];
            let elements = &mut block[..part.len()];
            elements.copy_from_slice(part);
            for [input, other] in &self.kept[kept.clone()] {
                elements[input - first] = part[other - first];
            }
            // SAFETY: a layer is only made where the processor has at least AVX2.
            unsafe { quantise_avx2(elements, words) }
        };
        for (word, [input, _]) in floats[kept.clone()].iter_mut().zip(&self.kept[kept]) {
            *word = part[input - first].to_bits();
        }
        let offset = self.kept.len() + number;
        (floats[offset], floats[offset + self.groups]) = (low.to_bits(), step.to_bits());
    }

    /// Computes a product of prepared rows. `product` says where the rows and the results are; its panels, steps and
    /// right side are this layer's.
    ///
    /// # Safety
    /// As [`Product::compute`]; `a` has prepared rows, and `panels` is inside the layer's.
    pub unsafe fn product(&self, product: Product) {
        let groups = Groups {
            product: Product {
                steps: self.group / 4,
                b: self.panels.as_ptr(),
                ..product
            },
            groups: self.groups,
            exact: self.kept.len() + self.groups,
            exact_panels: self.exact.as_ptr(),
            column_scales: self.scales.as_ptr(),
        };
        // SAFETY: whoever made the layer has checked the instructions; the rest is the caller's promise.
        unsafe {
            match self.instructions {
                Instructions::Avx512Vnni if level::has_bf16() => product_vnni_bf16(&groups),
                Instructions::Avx512Vnni => product_vnni(&groups),
                Instructions::AvxVnni => product_avx_vnni(&groups),
                Instructions::Avx2 => product_avx2(&groups),
            }
        }
    }
}

/// As [`quantise_avx2`], of the elements whose bits are set in `counted`. The others become some integer, which is
/// multiplied by zero weights.
///
/// # Safety
/// The processor has AVX-512 F, BW, DQ and VL.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn quantise_avx512(elements: &[f32], counted: &[u16], words: &mut [u32]) -> [f32; 2] {
    let bytes = words.len() * 4;
    assert!(elements.len() <= bytes && counted.len() * 16 >= bytes);
    // SAFETY: the caller's promise; lengths are asserted.
    let (low, high, is_odd) = unsafe { extent(elements, counted) };
    let step = (high * (1.0 / 255.0)) - (low * (1.0 / 255.0));
    if is_odd || step < LEAST_STEP {
        words.fill(0);
        // Where nothing is counted, `low` is above `high`.
        let low = if low > high { 0.0 } else { low };
        return [0.0, if is_odd { f32::NAN } else { low }];
    }
    // SAFETY: as above.
    unsafe { round_avx512(elements, low, 1.0 / step, words) };
    let written = (elements.len().div_ceil(16) * 4).min(words.len());
    words[written..].fill(0);
    [step, low]
}

/// The least and the largest of the elements that are counted, and whether one of them is not finite.
///
/// # Safety
/// As [`quantise_avx512`]; every number has its bit.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn extent(elements: &[f32], counted: &[u16]) -> (f32, f32, bool) {
    // Two of each, so that one does not wait for the other: the sums that follow cost less than their latency.
    let mut even = Extent::new();
    let mut uneven = Extent::new();
    let (pairs, rest) = elements.as_chunks::<32>();
    for (pair, masks) in pairs.iter().zip(counted.as_chunks::<2>().0) {
        // SAFETY: 32 elements are there.
        let [x, y] = unsafe { [0, 16].map(|at| _mm512_loadu_ps(pair.as_ptr().add(at))) };
        even.take(x, masks[0]);
        uneven.take(y, masks[1]);
    }
    for (part, mask) in rest.chunks(16).zip(&counted[pairs.len() * 2..]) {
        // SAFETY: only the lanes of `part` are read.
        let x = unsafe { _mm512_maskz_loadu_ps(first(part.len()), part.as_ptr()) };
        even.take(x, *mask);
    }
    let odd = _mm512_add_ps(even.odd, uneven.odd);
    let (low, high) = (
        _mm512_min_ps(even.low, uneven.low),
        _mm512_max_ps(even.high, uneven.high),
    );
    let is_odd = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(odd, odd) != 0;
    (_mm512_reduce_min_ps(low), _mm512_reduce_max_ps(high), is_odd)
}

/// Writes each number as `(x - low) inverse`, rounded to a byte.
///
/// # Safety
/// As [`quantise_avx512`]; `words` has a byte for each number.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn round_avx512(elements: &[f32], low: f32, inverse: f32, words: &mut [u32]) {
    let bytes = words.len() * 4;
    let (lowest, inverse, half) = (_mm512_set1_ps(low), _mm512_set1_ps(inverse), _mm512_set1_ps(0.5));
    let level = |x: __m512| {
        // Above 255, and what is not a number in range at all, ends between 0 and 255: packing saturates.
        _mm512_cvttps_epi32(_mm512_fmadd_ps(_mm512_sub_ps(x, lowest), inverse, half))
    };
    // Packing goes by lanes of 128 bits: of each, four elements of every vector. This puts them in order.
    let order = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
    let (blocks, rest) = elements.as_chunks::<64>();
    for (number, block) in blocks.iter().enumerate() {
        // SAFETY: 64 elements are read; of `words`, which has a byte for each number, as many bytes are written.
        unsafe {
            let part = |i: usize| level(_mm512_loadu_ps(block.as_ptr().add(16 * i)));
            let (low, high) = (
                _mm512_packus_epi32(part(0), part(1)),
                _mm512_packus_epi32(part(2), part(3)),
            );
            let bytes = _mm512_permutexvar_epi32(order, _mm512_packus_epi16(low, high));
            _mm512_storeu_si512(words.as_mut_ptr().add(16 * number).cast(), bytes);
        }
    }
    for (number, part) in rest.chunks(16).enumerate() {
        // SAFETY: only the lanes of `part` are read.
        let x = unsafe { _mm512_maskz_loadu_ps(first(part.len()), part.as_ptr()) };
        let at = blocks.len() * 64 + number * 16;
        // SAFETY: bytes from `at` on, as many as the words have.
        unsafe {
            let to = words.as_mut_ptr().cast::<i8>().add(at);
            _mm512_mask_cvtusepi32_storeu_epi8(to, first(bytes - at), level(x));
        }
    }
}

/// The least and the largest of some elements in each lane.
struct Extent {
    low: __m512,
    high: __m512,
    /// Zero while all elements are finite: 0 x is NaN for infinities and NaN.
    odd: __m512,
}

impl Extent {
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn new() -> Extent {
        Extent {
            low: _mm512_set1_ps(f32::MAX),
            high: _mm512_set1_ps(f32::MIN),
            odd: _mm512_setzero_ps(),
        }
    }

    /// Takes the elements whose bits are set.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn take(&mut self, x: __m512, mask: __mmask16) {
        self.low = _mm512_mask_min_ps(self.low, mask, self.low, x);
        self.high = _mm512_mask_max_ps(self.high, mask, self.high, x);
        self.odd = _mm512_mask3_fmadd_ps(x, _mm512_setzero_ps(), self.odd, mask);
    }
}

/// The mask of the first `lanes` lanes.
fn first(lanes: usize) -> __mmask16 {
    if lanes >= 16 { !0 } else { (1u16 << lanes) - 1 }
}

/// Quantises elements to unsigned 8 bits, four a word: `x = step q + low`. Returns step and low.
///
/// # Safety
/// The processor has AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
unsafe fn quantise_avx2(elements: &[f32], words: &mut [u32]) -> [f32; 2] {
    const LANES: usize = 8;
    let (mut low, mut high) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES]);
    // Zero while all elements are finite: 0 x is NaN for infinities and NaN.
    let mut odd = [0f32; LANES];
    let (blocks, rest) = elements.as_chunks::<LANES>();
    for block in blocks {
        for lane in 0..LANES {
            let x = block[lane];
            low[lane] = if x < low[lane] { x } else { low[lane] };
            high[lane] = if x > high[lane] { x } else { high[lane] };
            odd[lane] += x * 0.0;
        }
    }
    let low = low.iter().chain(rest).fold(f32::INFINITY, |a, b| a.min(*b));
    let high = high.iter().chain(rest).fold(f32::NEG_INFINITY, |a, b| a.max(*b));
    let odd = odd.iter().sum::<f32>() + rest.iter().map(|x| x * 0.0).sum::<f32>();
    let step = (high * (1.0 / 255.0)) - (low * (1.0 / 255.0));
    if odd.is_nan() || step < LEAST_STEP {
        words.fill(0);
        return [0.0, if odd.is_nan() { f32::NAN } else { low }];
    }
    let inverse = 1.0 / step;
    // Clamped before it is converted: rounding, or a difference beyond the largest f32, may lead past 255.
    let level = |x: f32| ((x - low) * inverse + 0.5).clamp(0.0, 255.0);
    // SAFETY: a word is four bytes.
    let bytes = unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast::<u8>(), words.len() * 4) };
    for (block, target) in blocks.iter().zip(bytes.as_chunks_mut::<LANES>().0) {
        for lane in 0..LANES {
            // SAFETY: clamped, and not NaN because the elements are finite and the inverse is positive and finite.
            target[lane] = unsafe { level(block[lane]).to_int_unchecked::<i32>() } as u8;
        }
    }
    let done = elements.len() - rest.len();
    for (target, x) in bytes[done..].iter_mut().zip(rest) {
        *target = level(*x) as u8;
    }
    bytes[elements.len()..].fill(0);
    [step, low]
}
