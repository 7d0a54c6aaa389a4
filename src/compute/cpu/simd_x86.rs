//! [`Simd`] with AVX2 + FMA and with AVX-512.

use super::simd::Simd;
use half::bf16;
use std::arch::x86_64::*;

/// AVX2 and FMA: 8 lanes, 16 registers. A tile of 6 x 2 vectors leaves room for two of the right side and one of the left.
#[derive(Clone, Copy)]
pub struct Avx2;

/// AVX-512: 16 lanes, 32 registers. A tile of 14 x 2 vectors leaves room for two of the right side and one of the left.
#[derive(Clone, Copy)]
pub struct Avx512;

/// The mask whose first `lanes` lanes are set, for AVX2's masked loads.
#[inline(always)]
unsafe fn first8(lanes: usize) -> __m256i {
    const WINDOW: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];
    // SAFETY: the offset is at most 8, so 8 elements are left; AVX2 is the caller's promise.
    unsafe { _mm256_loadu_si256(WINDOW.as_ptr().add(8 - lanes.min(8)).cast()) }
}

#[inline(always)]
fn first16(lanes: usize) -> __mmask16 {
    if lanes >= 16 { !0 } else { (1u16 << lanes) - 1 }
}

/// Writes one method that is one intrinsic.
macro_rules! op {
    ($name:ident, $vector:ty, $intrinsic:ident, $($arg:ident),+) => {
        #[inline(always)]
        unsafe fn $name($($arg: $vector),+) -> $vector {
            // SAFETY: no memory is touched; the instructions are the caller's promise.
            unsafe { $intrinsic($($arg),+) }
        }
    };
}

impl Simd for Avx2 {
    const LANES: usize = 8;
    const ROWS: usize = 6;
    type V = __m256;

    op!(add, __m256, _mm256_add_ps, a, b);
    op!(sub, __m256, _mm256_sub_ps, a, b);
    op!(mul, __m256, _mm256_mul_ps, a, b);
    op!(div, __m256, _mm256_div_ps, a, b);
    op!(fma, __m256, _mm256_fmadd_ps, a, b, c);
    /// The instructions themselves: left to the compiler, the broadcasts of several rows are put first and sums are
    /// spilled to memory, which halves the speed.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn fma_row(base: *const f32, offset: usize, b: [__m256; 2], sums: [__m256; 2]) -> [__m256; 2] {
        let [mut first, mut second] = sums;
        let _number: __m256;
        // SAFETY: reads the one number that the caller promises; the instructions are the caller's promise too.
        unsafe {
            std::arch::asm!(
                "vbroadcastss {number}, dword ptr [{base} + 4*{offset}]",
                "vfmadd231ps {first}, {number}, {b0}",
                "vfmadd231ps {second}, {number}, {b1}",
                number = out(ymm_reg) _number,
                base = in(reg) base,
                offset = in(reg) offset,
                b0 = in(ymm_reg) b[0],
                b1 = in(ymm_reg) b[1],
                first = inout(ymm_reg) first,
                second = inout(ymm_reg) second,
                options(pure, readonly, nostack, preserves_flags),
            );
        }
        [first, second]
    }
    op!(max, __m256, _mm256_max_ps, a, b);
    op!(min, __m256, _mm256_min_ps, a, b);

    #[inline(always)]
    fn prefetch(address: *const f32) {
        // SAFETY: a hint, for any address; SSE is part of every x86-64.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> __m256 {
        // SAFETY: as in `op`.
        unsafe { _mm256_set1_ps(value) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m256 {
        // SAFETY: the caller promises 8 readable elements.
        unsafe { _mm256_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, value: __m256) {
        // SAFETY: the caller promises 8 writable elements.
        unsafe { _mm256_storeu_ps(to, value) }
    }
    #[inline(always)]
    unsafe fn load_first(from: *const f32, lanes: usize) -> __m256 {
        // SAFETY: the caller promises `lanes` readable elements; masked lanes are not read.
        unsafe { _mm256_maskload_ps(from, first8(lanes)) }
    }
    #[inline(always)]
    unsafe fn store_first(to: *mut f32, value: __m256, lanes: usize) {
        // SAFETY: the caller promises `lanes` writable elements; masked lanes are not written.
        unsafe { _mm256_maskstore_ps(to, first8(lanes), value) }
    }
    #[inline(always)]
    unsafe fn round(a: __m256) -> __m256 {
        // SAFETY: as in `op`.
        unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }
    #[inline(always)]
    unsafe fn exp2_integral(a: __m256) -> __m256 {
        // SAFETY: as in `op`.
        unsafe {
            let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(a), _mm256_set1_epi32(127));
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent))
        }
    }
    #[inline(always)]
    unsafe fn sum(a: __m256) -> f32 {
        // SAFETY: as in `op`.
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }
    #[inline(always)]
    unsafe fn largest(a: __m256) -> f32 {
        // SAFETY: as in `op`.
        unsafe {
            let four = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        }
    }
}

impl Simd for Avx512 {
    const LANES: usize = 16;
    const ROWS: usize = 14;
    type V = __m512;

    op!(add, __m512, _mm512_add_ps, a, b);
    op!(sub, __m512, _mm512_sub_ps, a, b);
    op!(mul, __m512, _mm512_mul_ps, a, b);
    op!(div, __m512, _mm512_div_ps, a, b);
    op!(fma, __m512, _mm512_fmadd_ps, a, b, c);
    /// As for AVX2.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn fma_row(base: *const f32, offset: usize, b: [__m512; 2], sums: [__m512; 2]) -> [__m512; 2] {
        let [mut first, mut second] = sums;
        let _word: __m512;
        // SAFETY: reads the one word that the caller promises; the instructions are the caller's promise too.
        unsafe {
            std::arch::asm!(
                "vbroadcastss {word}, dword ptr [{base} + 4*{offset}]",
                "vfmadd231ps {first}, {word}, {b0}",
                "vfmadd231ps {second}, {word}, {b1}",
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
    op!(max, __m512, _mm512_max_ps, a, b);
    op!(min, __m512, _mm512_min_ps, a, b);

    /// Needs AVX512-BF16 besides, which [`crate::compute::attention::shape::Shape::takes_bf16`] has asked for.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn store_rounded(to: *mut bf16, low: __m512, high: __m512) {
        // SAFETY: the caller promises room for 32 elements; both types are 512 bits.
        unsafe {
            let both = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
            _mm512_storeu_si512(to.cast(), both)
        }
    }
    #[inline(always)]
    fn prefetch(address: *const f32) {
        // SAFETY: as for AVX2.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> __m512 {
        // SAFETY: as in `op`.
        unsafe { _mm512_set1_ps(value) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m512 {
        // SAFETY: the caller promises 16 readable elements.
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, value: __m512) {
        // SAFETY: the caller promises 16 writable elements.
        unsafe { _mm512_storeu_ps(to, value) }
    }
    #[inline(always)]
    unsafe fn load_first(from: *const f32, lanes: usize) -> __m512 {
        // SAFETY: the caller promises `lanes` readable elements; masked lanes are not read.
        unsafe { _mm512_maskz_loadu_ps(first16(lanes), from) }
    }
    #[inline(always)]
    unsafe fn store_first(to: *mut f32, value: __m512, lanes: usize) {
        // SAFETY: the caller promises `lanes` writable elements; masked lanes are not written.
        unsafe { _mm512_mask_storeu_ps(to, first16(lanes), value) }
    }
    #[inline(always)]
    unsafe fn round(a: __m512) -> __m512 {
        // SAFETY: as in `op`.
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }
    #[inline(always)]
    unsafe fn exp2_integral(a: __m512) -> __m512 {
        // SAFETY: as in `op`.
        unsafe { _mm512_scalef_ps(_mm512_set1_ps(1.0), a) }
    }
    #[inline(always)]
    unsafe fn sum(a: __m512) -> f32 {
        // SAFETY: as in `op`.
        unsafe { _mm512_reduce_add_ps(a) }
    }
    #[inline(always)]
    unsafe fn largest(a: __m512) -> f32 {
        // SAFETY: as in `op`.
        unsafe { _mm512_reduce_max_ps(a) }
    }
}
