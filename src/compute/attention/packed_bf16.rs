//! The tasks of `packed.rs` with both products in bf16 (AVX512-BF16), for sequences whose tokens all see each other.
//!
//! Queries, keys and values come rounded: a word is two elements of a head on the way to the scores, and two tokens on the way to
//! the values. Scores and their maximum are f32; the exponentials are rounded to bf16, and their sum is that of the rounded
//! ones, so the weights of a row add up to one. Exponentials are powers of two to 3e-6.
//!
//! As there, a row depends on its place in its sequence alone: every element of a product has one sum in a fixed order,
//! whatever the tile.

use super::job::{Job, KEYS};
use crate::compute::cpu::simd::Simd;
use crate::compute::cpu::simd_x86::Avx512;
use crate::compute::matmul::gemm::even_height;
use crate::compute::matmul::gemm_bf16::Bf16;
use crate::compute::matmul::tile::{Operands, Sink, Sums, tile_into};
use std::arch::x86_64::*;
use std::ops::Range;

const LANES: usize = Avx512::LANES;
const COLUMNS: usize = Avx512::COLUMNS;
/// The score of a key that is not there: its exponential is zero.
const ABSENT: f32 = -1e30;

/// Computes a task.
///
/// # Safety
/// The processor has AVX512-BF16. `words` are the queries, keys and values, two elements a word; the job's sizes are asserted
/// as in `Job::run_on`. Its head is [`COLUMNS`] elements wide or a multiple of that, one of its own in its group, and sees the
/// whole sequence; nobody else uses its part of `out` meanwhile.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
pub(super) unsafe fn run(job: Job, words: &[u32]) {
    for state in job.scratch.states.chunks_exact_mut(2) {
        state.copy_from_slice(&[f32::NEG_INFINITY, 0.0]);
    }
    let height = even_height(job.queries.len(), Avx512::ROWS);
    // The buffers are used through these pointers alone from here on.
    let task = Task {
        words: words.as_ptr(),
        keys: job.scratch.keys.as_mut_ptr().cast(),
        values: job.scratch.values.as_mut_ptr().cast(),
        scores: job.scratch.scores.as_mut_ptr(),
        states: job.scratch.states.as_mut_ptr(),
        stride: KEYS.min(job.length.next_multiple_of(COLUMNS)),
        token_words: job.places.token / 2,
        job: &job,
    };
    for start in (0..job.length).step_by(KEYS) {
        let block = start..(start + KEYS).min(job.length);
        // SAFETY: the caller's promise.
        unsafe {
            task.pack(&block);
            for row in job.queries.clone().step_by(height) {
                let rows = row..(row + height).min(job.queries.end);
                task.scores(&block, &rows);
                let factors = task.weights(&block, &rows);
                task.mix(&block, &rows, &factors);
            }
        }
    }
}

/// A job with the addresses that it works on.
struct Task<'a, 'b> {
    job: &'a Job<'b>,
    words: *const u32,
    keys: *mut u32,
    values: *mut u32,
    scores: *mut f32,
    states: *mut f32,
    /// Elements from row to row of the scores, words from token to token.
    stride: usize,
    token_words: usize,
}

// SAFETY of the methods: what `run` was promised. The sequence lies in `words`, a block of keys fits the scratch memory, and
// rows are those of one tile of the task's.
impl Task<'_, '_> {
    /// Where a head of a token of the sequence is.
    #[inline(always)]
    unsafe fn words_of(&self, token: usize, head: usize) -> *const u32 {
        let at = (self.job.start + token) * self.job.places.token + head * self.job.places.head;
        // SAFETY: see above.
        unsafe { self.words.add(at / 2) }
    }

    /// Packs a block of keys with its values.
    #[inline(always)]
    unsafe fn pack(&self, block: &Range<usize>) {
        let (heads, width, key_head) = (self.job.shape.heads, self.job.shape.width, self.job.key_head);
        // SAFETY: see above.
        unsafe {
            let from = self.words_of(block.start, heads + key_head);
            pack_keys(from, self.token_words, block.len(), width / 2, self.keys);
            let from = self.words_of(block.start, 2 * heads + key_head);
            pack_values(from, self.token_words, block.len(), width, self.values);
        }
    }

    /// The scores of some rows with a block of keys.
    #[inline(always)]
    unsafe fn scores(&self, block: &Range<usize>, rows: &Range<usize>) {
        let pairs_wide = self.job.shape.width / 2;
        // SAFETY: see above.
        unsafe {
            let queries = self.words_of(rows.start, self.job.key_head);
            for panel in 0..block.len().div_ceil(COLUMNS) {
                let sink = Scores {
                    to: self.scores.add(panel * COLUMNS),
                    stride: self.stride,
                };
                let operands = Operands {
                    rows: rows.len(),
                    steps: pairs_wide,
                    a: queries,
                    a_stride: self.token_words,
                    b: self.keys.add(panel * pairs_wide * COLUMNS),
                    b_stride: COLUMNS,
                };
                tile_into::<Bf16, _, _>(operands, &Sums, &sink);
            }
        }
    }

    /// Replaces the scores by exponentials; returned is what rows are multiplied with.
    #[inline(always)]
    unsafe fn weights(&self, block: &Range<usize>, rows: &Range<usize>) -> Factors {
        let scale = std::f32::consts::LOG2_E / (self.job.shape.width as f32).sqrt();
        let mut factors = Factors {
            earlier: [0.0; 16],
            inverse: [1.0; 16],
        };
        for i in 0..rows.len() {
            // SAFETY: see above.
            unsafe {
                let state = self.states.add((rows.start - self.job.queries.start + i) * 2);
                factors.earlier[i] = weights(self.scores.add(i * self.stride), block.len(), scale, state);
                if block.end == self.job.length {
                    factors.inverse[i] = 1.0 / state.add(1).read();
                }
            }
        }
        factors
    }

    /// Adds the block's part to the rows that come out.
    #[inline(always)]
    unsafe fn mix(&self, block: &Range<usize>, rows: &Range<usize>, factors: &Factors) {
        let (job, shape, pairs) = (self.job, self.job.shape, block.len().div_ceil(2));
        for panel in 0..shape.width / COLUMNS {
            let column = job.key_head * shape.width + panel * COLUMNS;
            let at = (job.start + rows.start) * shape.out_row() + column;
            // SAFETY: see above.
            unsafe {
                let sink = Mixed {
                    to: job.out.address(at, (rows.len() - 1) * shape.out_row() + COLUMNS),
                    stride: shape.out_row(),
                    opens: block.start == 0,
                    factors,
                };
                let operands = Operands {
                    rows: rows.len(),
                    steps: pairs,
                    a: self.scores.cast(),
                    a_stride: self.stride,
                    b: self.values.add(panel * pairs * COLUMNS),
                    b_stride: COLUMNS,
                };
                tile_into::<Bf16, _, _>(operands, &Sums, &sink);
            }
        }
    }
}

/// Stores scores as they are.
struct Scores {
    to: *mut f32,
    stride: usize,
}

impl Sink<Avx512> for Scores {
    #[inline(always)]
    unsafe fn put(&self, row: usize, part: usize, sum: __m512) {
        // SAFETY: the caller promises that the tile has this row; a row of scores holds whole panels.
        unsafe { _mm512_storeu_ps(self.to.add(row * self.stride + part * LANES), sum) }
    }
}

/// What rows are multiplied with: those so far, and at the end.
struct Factors {
    earlier: [f32; 16],
    inverse: [f32; 16],
}

/// Adds a block's part to the rows that come out.
struct Mixed<'a> {
    to: *mut f32,
    stride: usize,
    /// Whether the block is the first.
    opens: bool,
    factors: &'a Factors,
}

impl Sink<Avx512> for Mixed<'_> {
    #[inline(always)]
    unsafe fn put(&self, row: usize, part: usize, sum: __m512) {
        // SAFETY: the caller promises that the tile has this row, and the head all of its columns.
        unsafe {
            let to = self.to.add(row * self.stride + part * LANES);
            let factors = self.factors;
            let mut x = sum;
            if !self.opens {
                let earlier = _mm512_set1_ps(*factors.earlier.get_unchecked(row));
                x = _mm512_fmadd_ps(_mm512_loadu_ps(to), earlier, x);
            }
            x = _mm512_mul_ps(x, _mm512_set1_ps(*factors.inverse.get_unchecked(row)));
            _mm512_storeu_ps(to, x)
        }
    }
}

/// Two vectors as one of bf16: `low` in the lower half.
///
/// # Safety
/// The processor has AVX512-BF16; so for all functions here.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn round(low: __m512, high: __m512) -> __m512i {
    // SAFETY: both types are 512 bits.
    unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low)) }
}

/// `2^x` to 3e-6, for x of at most about 0; far below, zero.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
unsafe fn exp2(x: __m512) -> __m512 {
    // x less its floor, in 0..1; the minimax polynomial of 2^x there.
    let r = _mm512_reduce_ps::<1>(x);
    let p = _mm512_set1_ps(1.353_416_8e-2);
    let p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.201_146_6e-2));
    let p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(2.414_427_6e-1));
    let p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(6.930_038e-1));
    let p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.000_002_6));
    // Times two to the floor of x.
    _mm512_scalef_ps(p, x)
}

/// Replaces a row's scores by bf16 words of `2^(scale (x - largest))`, where `largest` is the largest score of the row so far.
/// `state` is that score and the sum of the exponentials, and is brought up to date; returned is what exponentials before
/// have to be multiplied with.
///
/// # Safety
/// `row` holds `length` (at least one) elements rounded up to whole panels, `state` two.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512bf16")]
unsafe fn weights(row: *mut f32, length: usize, scale: f32, state: *mut f32) -> f32 {
    let padded = length.next_multiple_of(COLUMNS);
    // SAFETY: all addresses are below `padded`; words are written no further than scores were read.
    unsafe {
        (length..padded).for_each(|key| row.add(key).write(ABSENT));
        let before = state.read();
        let mut largest = [_mm512_set1_ps(before); 2];
        for at in (0..padded).step_by(COLUMNS) {
            largest[0] = _mm512_max_ps(largest[0], _mm512_loadu_ps(row.add(at)));
            largest[1] = _mm512_max_ps(largest[1], _mm512_loadu_ps(row.add(at + LANES)));
        }
        let largest = _mm512_reduce_max_ps(_mm512_max_ps(largest[0], largest[1]));
        let (factor, shift) = (_mm512_set1_ps(scale), _mm512_set1_ps(-largest * scale));
        let ones = std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi16(0x3f80));
        let mut sum = _mm512_setzero_ps();
        let words: *mut u32 = row.cast();
        for at in (0..padded).step_by(COLUMNS) {
            let low = exp2(_mm512_fmadd_ps(_mm512_loadu_ps(row.add(at)), factor, shift));
            let high = exp2(_mm512_fmadd_ps(_mm512_loadu_ps(row.add(at + LANES)), factor, shift));
            let both = round(low, high);
            sum = _mm512_dpbf16_ps(sum, std::mem::transmute::<__m512i, __m512bh>(both), ones);
            _mm512_storeu_si512(words.add(at / 2).cast(), both);
        }
        let earlier = match before == f32::NEG_INFINITY {
            true => 0.0,
            false => ((before - largest) * scale).exp2(),
        };
        state.write(largest);
        let total = state.add(1);
        total.write(total.read() * earlier + _mm512_reduce_add_ps(sum));
        earlier
    }
}

/// Keys as panels of the right side of `Q K^T`: panel, then pair of elements of the head, then key. Missing keys are zero.
///
/// # Safety
/// `from` has `length` rows of `words` words, `stride` apart, sixteen or a multiple of that; `to` holds `length` rounded up to
/// panels, times `words`.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn pack_keys(from: *const u32, stride: usize, length: usize, words: usize, to: *mut u32) {
    for key in (0..length.next_multiple_of(COLUMNS)).step_by(LANES) {
        for at in (0..words).step_by(LANES) {
            // SAFETY: inside the ranges that the caller promises.
            unsafe {
                let mut rows = [_mm512_setzero_si512(); LANES];
                for (i, row) in rows.iter_mut().enumerate().take(length.saturating_sub(key)) {
                    *row = _mm512_loadu_si512(from.add((key + i) * stride + at).cast());
                }
                let target = to.add((key / COLUMNS * words + at) * COLUMNS + key % COLUMNS);
                for (i, column) in transposed(rows).iter().enumerate() {
                    _mm512_storeu_si512(target.add(i * COLUMNS).cast(), *column);
                }
            }
        }
    }
}

/// Values as panels of the right side of `P V`: panel, then pair of tokens, then number of the head. A missing token is zero.
///
/// # Safety
/// `from` has `length` rows of `width` elements, two a word, `stride` words apart; `to` holds `width` times half of `length`,
/// rounded up.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn pack_values(from: *const u32, stride: usize, length: usize, width: usize, to: *mut u32) {
    let pairs = length.div_ceil(2);
    // A number of the first token, the same number of the second, and so on: of elements 0 to 15, and 16 to 31.
    let order: [u16; 64] = std::array::from_fn(|i| (i / 2 + i % 2 * COLUMNS) as u16);
    // SAFETY: twice 32 elements of 16 bits.
    let order = unsafe { [0, 32].map(|first| _mm512_loadu_si512(order.as_ptr().add(first).cast())) };
    for panel in 0..width / COLUMNS {
        for pair in 0..pairs {
            // SAFETY: inside the ranges that the caller promises; no row beyond `length` is read.
            unsafe {
                let row = from.add(2 * pair * stride + panel * LANES);
                let low = _mm512_loadu_si512(row.cast());
                let high = match 2 * pair + 1 < length {
                    true => _mm512_loadu_si512(row.add(stride).cast()),
                    false => _mm512_setzero_si512(),
                };
                let target = to.add((panel * pairs + pair) * COLUMNS);
                for (part, order) in order.iter().enumerate() {
                    let words = _mm512_permutex2var_epi16(low, *order, high);
                    _mm512_storeu_si512(target.add(part * LANES).cast(), words);
                }
            }
        }
    }
}

/// Sixteen rows of sixteen words, transposed.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn transposed(rows: [__m512i; 16]) -> [__m512i; 16] {
    let mut pairs = rows;
    for i in 0..8 {
        pairs[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
        pairs[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
    }
    // Number 4 i + j has in its lane l of 128 bits the column 4 l + j of the rows 4 i to 4 i + 3.
    let mut fours = pairs;
    for i in 0..4 {
        let [a, b, c, d] = [pairs[4 * i], pairs[4 * i + 1], pairs[4 * i + 2], pairs[4 * i + 3]];
        fours[4 * i] = _mm512_unpacklo_epi64(a, c);
        fours[4 * i + 1] = _mm512_unpackhi_epi64(a, c);
        fours[4 * i + 2] = _mm512_unpacklo_epi64(b, d);
        fours[4 * i + 3] = _mm512_unpackhi_epi64(b, d);
    }
    let mut columns = fours;
    for j in 0..4 {
        let even = [
            _mm512_shuffle_i32x4::<0x88>(fours[j], fours[4 + j]),
            _mm512_shuffle_i32x4::<0x88>(fours[8 + j], fours[12 + j]),
        ];
        let odd = [
            _mm512_shuffle_i32x4::<0xdd>(fours[j], fours[4 + j]),
            _mm512_shuffle_i32x4::<0xdd>(fours[8 + j], fours[12 + j]),
        ];
        columns[j] = _mm512_shuffle_i32x4::<0x88>(even[0], even[1]);
        columns[4 + j] = _mm512_shuffle_i32x4::<0x88>(odd[0], odd[1]);
        columns[8 + j] = _mm512_shuffle_i32x4::<0xdd>(even[0], even[1]);
        columns[12 + j] = _mm512_shuffle_i32x4::<0xdd>(odd[0], odd[1]);
    }
    columns
}

#[cfg(test)]
mod tests {
    use super::super::job::Elements;
    use super::super::packed::tests::{elements, expected, run_in, shape};
    use super::super::shape::Places;
    use super::super::shape::Shape;
    use crate::compute::cpu::level::{self, Level};
    use half::bf16;

    fn rounded(elements: &[f32]) -> Vec<u32> {
        let bits = |x: f32| u32::from(bf16::from_f32(x).to_bits());
        elements
            .chunks(2)
            .map(|pair| bits(pair[0]) | bits(pair[1]) << 16)
            .collect()
    }

    /// Attention over rows of elements, rounded.
    fn run(threads: usize, shape: Shape, qkv: &[f32], starts: &[usize]) -> Vec<f32> {
        let elements = Elements::Bf16(&rounded(qkv));
        run_in(Level::Avx512, threads, shape, elements, shape.by_rows(), starts)
    }

    fn starts(lengths: &[usize]) -> Vec<usize> {
        let mut starts = vec![0];
        lengths
            .iter()
            .for_each(|length| starts.push(starts[starts.len() - 1] + length));
        starts
    }

    #[test]
    fn equals_the_formula_over_rounded_elements() {
        if !level::has_bf16() {
            println!("SKIPPED: no AVX512-BF16");
            return;
        }
        let cases = [
            (2, 32, vec![1, 5, 33, 128, 31, 15, 16, 14]),
            (3, 64, vec![17, 29, 70]),
            (1, 96, vec![40, 43]),
            (1, 32, vec![1300, 511, 513]),
        ];
        for (heads, width, lengths) in cases {
            let (shape, starts) = (shape(heads, heads, width, false, None), starts(&lengths));
            let qkv = elements(starts[lengths.len()] * shape.row());
            let exact: Vec<f32> = qkv.iter().map(|x| bf16::from_f32(*x).to_f32()).collect();
            let out = run(2, shape, &qkv, &starts);
            for (start, length) in starts.iter().zip(&lengths) {
                for row in (0..*length).filter(|row| *length < 200 || row % 83 == 1 || row + 1 == *length) {
                    for head in 0..heads {
                        let want = expected(shape, &exact, *start, *length, head, row);
                        let at = (start + row) * shape.out_row() + head * width;
                        for (found, want) in out[at..].iter().zip(want) {
                            // Elements of at most 2, weights rounded by at most 1 in 512.
                            let error = (*found as f64 - want).abs();
                            assert!(error < 4.1e-3, "{width} {length} {row}: {found} {want}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_row_depends_on_its_sequence_alone() {
        if !level::has_bf16() {
            println!("SKIPPED: no AVX512-BF16");
            return;
        }
        let shape = shape(3, 3, 32, false, None);
        let lengths = [3usize, 61, 15, 200, 1, 700];
        let starts = starts(&lengths);
        let qkv = elements(starts[lengths.len()] * shape.row());
        let together = run(3, shape, &qkv, &starts);
        for (start, length) in starts.iter().zip(lengths) {
            let alone = run(1, shape, &qkv[start * shape.row()..], &[0, length]);
            assert_eq!(alone, together[start * shape.out_row()..][..length * shape.out_row()]);
        }
        // Head by head.
        let tokens = starts[lengths.len()];
        let places @ Places { token, head } = shape.by_heads(tokens);
        let mut apart = vec![0f32; qkv.len()];
        for (number, row) in qkv.chunks(shape.row()).enumerate() {
            for (column, x) in row.iter().enumerate() {
                apart[column / 32 * head + number * token + column % 32] = *x;
            }
        }
        let elements = Elements::Bf16(&rounded(&apart));
        assert_eq!(run_in(Level::Avx512, 2, shape, elements, places, &starts), together);
    }

    #[test]
    fn a_number_that_is_not_finite_is_not_hidden() {
        if !level::has_bf16() {
            println!("SKIPPED: no AVX512-BF16");
            return;
        }
        let shape = shape(1, 1, 32, false, None);
        for place in [0, 40, 70] {
            for odd in [f32::NAN, f32::INFINITY] {
                let mut qkv = elements(20 * shape.row());
                qkv[7 * shape.row() + place] = odd;
                let out = run(1, shape, &qkv, &[0, 20]);
                assert!(out.iter().any(|x| !x.is_finite()), "{odd} at {place}");
            }
        }
    }
}
