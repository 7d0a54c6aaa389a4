//! Products of bf16 words on x86, and the conversion of activations into such words.

use super::gemm::Product;
use super::tile::Dot;
use crate::compute::cpu::simd_x86::Avx512;
use std::arch::x86_64::*;

/// Two bf16 a word: AVX512-BF16.
pub struct Bf16;

impl Dot for Bf16 {
    type S = Avx512;
    type Word = __m512i;
    type Sum = __m512;

    #[inline(always)]
    unsafe fn zero() -> __m512 {
        // SAFETY: the instructions are the caller's promise.
        unsafe { _mm512_setzero_ps() }
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
    unsafe fn dot(a: __m512i, b: __m512i, sum: __m512) -> __m512 {
        // SAFETY: the instructions are the caller's promise; both types are 512 bits of the same lanes.
        unsafe {
            _mm512_dpbf16_ps(
                sum,
                std::mem::transmute::<__m512i, __m512bh>(a),
                std::mem::transmute::<__m512i, __m512bh>(b),
            )
        }
    }
    /// The instructions themselves, as in `simd_x86.rs`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn row(base: *const u32, offset: usize, b: [__m512i; 2], sums: [__m512; 2]) -> [__m512; 2] {
        let [mut first, mut second] = sums;
        let _word: __m512i;
        // SAFETY: reads the one word that the caller promises; the instructions are the caller's promise too.
        unsafe {
            std::arch::asm!(
                "vpbroadcastd {word}, dword ptr [{base} + 4*{offset}]",
                "vdpbf16ps {first}, {word}, {b0}",
                "vdpbf16ps {second}, {word}, {b1}",
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

/// A product of bf16 words.
///
/// # Safety
/// As [`Product::compute`]; the processor has AVX512-BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
pub unsafe fn product_bf16(product: &Product) {
    // SAFETY: the features are enabled here; the rest is the caller's promise.
    unsafe { product.compute::<Bf16>() }
}

/// Rounds a row to bf16, two elements a word; the missing half of the last word is zero.
///
/// # Safety
/// The processor has AVX512-BF16. `words` has at least half as many words as `row` has elements.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub unsafe fn row_to_bf16(row: &[f32], words: &mut [u32]) {
    assert!(words.len() >= row.len().div_ceil(2));
    for (elements, words) in row.chunks(16).zip(words.chunks_mut(8)) {
        let mask = if elements.len() == 16 {
            !0
        } else {
            (1u16 << elements.len()) - 1
        };
        // SAFETY: only the lanes of `elements` are read.
        let rounded = _mm512_cvtneps_pbh(unsafe { _mm512_maskz_loadu_ps(mask, elements.as_ptr()) });
        let valid = if words.len() >= 8 { !0 } else { (1u8 << words.len()) - 1 };
        // SAFETY: only the lanes of `words` are written; both types are 256 bits.
        unsafe {
            let rounded = std::mem::transmute::<__m256bh, __m256i>(rounded);
            _mm256_mask_storeu_epi32(words.as_mut_ptr().cast(), valid, rounded);
        }
    }
}
