//! Products of 8-bit words on x86, group by group.
//!
//! The inputs are divided in groups. A group's sum of products is exact in 32-bit integers; it is scaled by the row's
//! and by the column's scale of that group. To the first group's an f32 product of the row's `exact` words (see `int8.rs`) is
//! added while it is in registers, so offsets and inputs kept in f32 cost a step each; then come the other groups in
//! order, so an element's result does not depend on the tile that it is in.

use super::gemm::{Product, even_height};
use super::tile::{Dequantise, Dot, F32Tail, Operands, Sink, Store, TILE_WORDS, Tile, tile_into};
use crate::compute::cpu::simd::Simd;
use crate::compute::cpu::simd_x86::{Avx2, Avx512};
use std::arch::x86_64::*;

/// Integer sums that become f32.
trait Integers: Dot {
    unsafe fn convert(sum: Self::Sum) -> <Self::S as Simd>::V;
}

/// Four unsigned activations, or four signed weights, a word: AVX512-VNNI.
struct Vnni;

impl Dot for Vnni {
    type S = Avx512;
    type Word = __m512i;
    type Sum = __m512i;

    #[inline(always)]
    unsafe fn zero() -> __m512i {
        // SAFETY: the instructions are the caller's promise.
        unsafe { _mm512_setzero_si512() }
    }
    #[inline(always)]
    unsafe fn broadcast(from: *const u32) -> __m512i {
        // SAFETY: the caller promises one readable word.
        unsafe { _mm512_set1_epi32(from.cast::<i32>().read()) }
    }
    #[inline(always)]
    unsafe fn load(from: *const u32) -> __m512i {
        // SAFETY: the caller promises a vector of readable words.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }
    #[inline(always)]
    unsafe fn dot(a: __m512i, b: __m512i, sum: __m512i) -> __m512i {
        // SAFETY: the instructions are the caller's promise.
        unsafe { _mm512_dpbusd_epi32(sum, a, b) }
    }
    /// The instructions themselves, as in `simd_x86.rs`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512vnni")]
    unsafe fn row(base: *const u32, offset: usize, b: [__m512i; 2], sums: [__m512i; 2]) -> [__m512i; 2] {
        let [mut first, mut second] = sums;
        let _word: __m512i;
        // SAFETY: reads the one word that the caller promises; the instructions are the caller's promise too.
        unsafe {
            std::arch::asm!(
                "vpbroadcastd {word}, dword ptr [{base} + 4*{offset}]",
                "vpdpbusd {first}, {word}, {b0}",
                "vpdpbusd {second}, {word}, {b1}",
                word = out(zmm_reg) _word,
                base = in(reg) base,
                offset = in(reg) offset,
                b0 = in(zmm_reg) b[0],
                b1 = in(zmm_reg) b[1],
                first = inout(zmm_reg) first,
                second = inout(zmm_reg) second,
                options(pure, readonly, nostack, preserves_flags),
            );
        }
        [first, second]
    }
}

impl Integers for Vnni {
    #[inline(always)]
    unsafe fn convert(sum: __m512i) -> __m512 {
        // SAFETY: the instructions are the caller's promise.
        unsafe { _mm512_cvtepi32_ps(sum) }
    }
}

/// Four unsigned activations, or four signed weights, a word: AVX-VNNI.
struct VnniAvx;

impl Dot for VnniAvx {
    type S = Avx2;
    type Word = __m256i;
    type Sum = __m256i;

    #[inline(always)]
    unsafe fn zero() -> __m256i {
        // SAFETY: the instructions are the caller's promise.
        unsafe { _mm256_setzero_si256() }
    }
    #[inline(always)]
    unsafe fn broadcast(from: *const u32) -> __m256i {
        // SAFETY: the caller promises one readable word.
        unsafe { _mm256_set1_epi32(from.cast::<i32>().read()) }
    }
    #[inline(always)]
    unsafe fn load(from: *const u32) -> __m256i {
        // SAFETY: the caller promises a vector of readable words.
        unsafe { _mm256_loadu_si256(from.cast()) }
    }
    #[inline(always)]
    unsafe fn dot(a: __m256i, b: __m256i, sum: __m256i) -> __m256i {
        // SAFETY: the instructions are the caller's promise.
        unsafe { _mm256_dpbusd_avx_epi32(sum, a, b) }
    }
}

impl Integers for VnniAvx {
    #[inline(always)]
    unsafe fn convert(sum: __m256i) -> __m256 {
        // SAFETY: the instructions are the caller's promise.
        unsafe { _mm256_cvtepi32_ps(sum) }
    }
}

/// Four unsigned activations, or four signed weights, a word: AVX2. Exact: even and odd bytes are widened to 16 bits
/// (`maddubs` would saturate).
struct Widened;

impl Dot for Widened {
    type S = Avx2;
    type Word = __m256i;
    type Sum = __m256i;

    #[inline(always)]
    unsafe fn zero() -> __m256i {
        // SAFETY: the instructions are the caller's promise.
        unsafe { _mm256_setzero_si256() }
    }
    #[inline(always)]
    unsafe fn broadcast(from: *const u32) -> __m256i {
        // SAFETY: the caller promises one readable word.
        unsafe { _mm256_set1_epi32(from.cast::<i32>().read()) }
    }
    #[inline(always)]
    unsafe fn load(from: *const u32) -> __m256i {
        // SAFETY: the caller promises a vector of readable words.
        unsafe { _mm256_loadu_si256(from.cast()) }
    }
    #[inline(always)]
    unsafe fn dot(a: __m256i, b: __m256i, sum: __m256i) -> __m256i {
        // SAFETY: the instructions are the caller's promise.
        unsafe {
            let a_even = _mm256_and_si256(a, _mm256_set1_epi16(0xff));
            let a_odd = _mm256_srli_epi16::<8>(a);
            let b_even = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(b));
            let b_odd = _mm256_srai_epi16::<8>(b);
            let products = _mm256_add_epi32(_mm256_madd_epi16(a_even, b_even), _mm256_madd_epi16(a_odd, b_odd));
            _mm256_add_epi32(sum, products)
        }
    }
}

impl Integers for Widened {
    #[inline(always)]
    unsafe fn convert(sum: __m256i) -> __m256 {
        // SAFETY: the instructions are the caller's promise.
        unsafe { _mm256_cvtepi32_ps(sum) }
    }
}

/// A product by quantised panels.
pub struct Groups {
    /// Rows, bias, result and panels. `a` has, row by row: `groups` times `steps` words of four activations, `exact` f32
    /// elements, and the scale of each group. `b` has, panel by panel, `groups` times `steps` rows of words.
    pub product: Product,
    pub groups: usize,
    pub exact: usize,
    /// The panels that the exact elements are multiplied by: `exact` rows of columns each.
    pub exact_panels: *const f32,
    /// Panel by panel, `groups` rows of columns.
    pub column_scales: *const f32,
}

/// A group's integers as f32: times the scales of the row and of the columns.
struct Scaled {
    /// The scale of the first row, the others `row_stride` apart.
    rows: *const f32,
    row_stride: usize,
    columns: *const f32,
    tail: Option<F32Tail>,
}

impl<D: Integers> Dequantise<D> for Scaled {
    #[inline(always)]
    unsafe fn elements(&self, row: usize, sums: [D::Sum; 2]) -> [<D::S as Simd>::V; 2] {
        // SAFETY: the rows' scales and the columns' scales reach as far as the tile's rows and columns.
        unsafe {
            let scale = D::S::splat(self.rows.add(row * self.row_stride).read());
            let element = |sum: D::Sum, part: usize| {
                let scale = D::S::mul(scale, D::S::load(self.columns.add(part * D::LANES)));
                D::S::mul(D::convert(sum), scale)
            };
            [element(sums[0], 0), element(sums[1], 1)]
        }
    }
    #[inline(always)]
    fn tail(&self) -> Option<F32Tail> {
        self.tail
    }
}

/// Adds a tile to one in memory.
struct Add(*mut f32);

impl<S: Simd> Sink<S> for Add {
    #[inline(always)]
    unsafe fn put(&self, row: usize, part: usize, sum: S::V) {
        // SAFETY: the caller promises that the tile has this row.
        unsafe {
            let to = self.0.add(row * S::COLUMNS + part * S::LANES);
            S::store(to, S::add(S::load(to), sum));
        }
    }
}

impl Groups {
    /// Computes the product.
    ///
    /// # Safety
    /// As [`Product::compute`]; the pointers are valid for what the fields say.
    #[inline(always)]
    unsafe fn compute<D: Integers>(&self) {
        let product = &self.product;
        let height = even_height(product.rows, D::ROWS);
        let mut sums = Tile([0; TILE_WORDS]);
        let sums = (&raw mut sums.0).cast::<f32>();
        for panel in product.panels.clone() {
            let mut row = 0;
            while row < product.rows {
                let rows = (product.rows - row).min(height);
                // SAFETY: rows `row..row + rows` of `a` with all their parts, and one panel; the tile's memory fits the
                // largest tile.
                unsafe {
                    product.expect_tile::<D::S>(row, rows, panel * D::COLUMNS);
                    self.tile::<D>(panel, row, rows, sums);
                    product.finish_tile::<D::S>(row, rows, panel * D::COLUMNS, sums);
                }
                row += rows;
            }
        }
    }

    /// The sums of all groups of one tile.
    ///
    /// # Safety
    /// As [`Groups::compute`]; panel and rows are there, and `sums` holds a tile.
    #[inline(always)]
    unsafe fn tile<D: Integers>(&self, panel: usize, row: usize, rows: usize, sums: *mut f32) {
        let (steps, a_stride) = (self.product.steps, self.product.a_stride);
        let words = self.groups * steps;
        // SAFETY: every panel and every row has these parts.
        unsafe {
            let right = self.product.b.add(panel * words * D::COLUMNS);
            let exact = self.exact_panels.add(panel * self.exact * D::COLUMNS);
            let scales = self.column_scales.add(panel * self.groups * D::COLUMNS);
            let left = self.product.a.add(row * a_stride);
            let row_scales = left.add(words + self.exact);
            for group in 0..self.groups {
                // The first group takes the exact elements along, which lie behind the groups' words.
                let tail = F32Tail {
                    skip: words - steps,
                    steps: self.exact,
                    b: exact.cast(),
                };
                let scaled = Scaled {
                    rows: row_scales.add(group).cast(),
                    row_stride: a_stride,
                    columns: scales.add(group * D::COLUMNS),
                    tail: (group == 0).then_some(tail),
                };
                let operands = Operands {
                    rows,
                    steps,
                    a: left.add(group * steps),
                    a_stride,
                    b: right.add(group * steps * D::COLUMNS),
                    b_stride: D::COLUMNS,
                };
                if group == 0 {
                    tile_into::<D, _, _>(operands, &scaled, &Store(sums));
                } else {
                    tile_into::<D, _, _>(operands, &scaled, &Add(sums));
                }
            }
        }
    }
}

/// The product with AVX512-VNNI.
///
/// # Safety
/// As [`Groups::compute`]; the processor has AVX512-VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
pub unsafe fn product_vnni(product: &Groups) {
    // SAFETY: the features are enabled here; the rest is the caller's promise.
    unsafe { product.compute::<Vnni>() }
}

/// The same, which rounds results to bf16 as well.
///
/// # Safety
/// As [`product_vnni`]; the processor has AVX512-BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,avx2,fma")]
pub unsafe fn product_vnni_bf16(product: &Groups) {
    // SAFETY: the features are enabled here; the rest is the caller's promise.
    unsafe { product.compute::<Vnni>() }
}

/// The product with AVX-VNNI.
///
/// # Safety
/// As [`Groups::compute`]; the processor has AVX-VNNI, AVX2 and FMA.
#[target_feature(enable = "avx2,fma,avxvnni")]
pub unsafe fn product_avx_vnni(product: &Groups) {
    // SAFETY: the features are enabled here; the rest is the caller's promise.
    unsafe { product.compute::<VnniAvx>() }
}

/// The product with AVX2.
///
/// # Safety
/// As [`Groups::compute`]; the processor has AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
pub unsafe fn product_avx2(product: &Groups) {
    // SAFETY: the features are enabled here; the rest is the caller's promise.
    unsafe { product.compute::<Widened>() }
}
