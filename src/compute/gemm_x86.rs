//! Products of bf16 and of 8-bit words on x86, and the conversion of activations into such words.

use super::gemm::{Dot, Product};
use super::simd_x86::{Avx2, Avx512};
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
    #[inline(always)]
    unsafe fn store(to: *mut u32, sum: __m512) {
        // SAFETY: the caller promises a vector of writable words.
        unsafe { _mm512_storeu_ps(to.cast(), sum) }
    }
    #[inline(always)]
    unsafe fn result(sums: *const u32, _row: [f32; 2], _scale: *const f32, _sum: *const f32) -> __m512 {
        // SAFETY: the caller promises a vector of readable words.
        unsafe { _mm512_loadu_ps(sums.cast()) }
    }
}

/// Four unsigned activations, or four signed weights, a word: AVX512-VNNI.
pub struct Int8Vnni;

impl Dot for Int8Vnni {
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
    #[inline(always)]
    unsafe fn store(to: *mut u32, sum: __m512i) {
        // SAFETY: the caller promises a vector of writable words.
        unsafe { _mm512_storeu_si512(to.cast(), sum) }
    }
    #[inline(always)]
    unsafe fn result(sums: *const u32, row: [f32; 2], scale: *const f32, sum: *const f32) -> __m512 {
        // SAFETY: the caller promises vectors of readable numbers.
        unsafe {
            let x = _mm512_cvtepi32_ps(_mm512_loadu_si512(sums.cast()));
            let offset = _mm512_mul_ps(_mm512_set1_ps(row[1]), _mm512_loadu_ps(sum));
            _mm512_fmadd_ps(x, _mm512_mul_ps(_mm512_set1_ps(row[0]), _mm512_loadu_ps(scale)), offset)
        }
    }
}

/// Four unsigned activations, or four signed weights, a word: AVX2. Exact: even and odd bytes are widened to 16 bits
/// (`maddubs` would saturate).
pub struct Int8Avx2;

impl Dot for Int8Avx2 {
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
    #[inline(always)]
    unsafe fn store(to: *mut u32, sum: __m256i) {
        // SAFETY: the caller promises a vector of writable words.
        unsafe { _mm256_storeu_si256(to.cast(), sum) }
    }
    #[inline(always)]
    unsafe fn result(sums: *const u32, row: [f32; 2], scale: *const f32, sum: *const f32) -> __m256 {
        // SAFETY: the caller promises vectors of readable numbers.
        unsafe {
            let x = _mm256_cvtepi32_ps(_mm256_loadu_si256(sums.cast()));
            let offset = _mm256_mul_ps(_mm256_set1_ps(row[1]), _mm256_loadu_ps(sum));
            _mm256_fmadd_ps(x, _mm256_mul_ps(_mm256_set1_ps(row[0]), _mm256_loadu_ps(scale)), offset)
        }
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

/// A product of 8-bit words with VNNI.
///
/// # Safety
/// As [`Product::compute`]; the processor has AVX512-VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
pub unsafe fn product_vnni(product: &Product) {
    // SAFETY: the features are enabled here; the rest is the caller's promise.
    unsafe { product.compute::<Int8Vnni>() }
}

/// A product of 8-bit words with AVX2.
///
/// # Safety
/// As [`Product::compute`]; the processor has AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
pub unsafe fn product_int8_avx2(product: &Product) {
    // SAFETY: the features are enabled here; the rest is the caller's promise.
    unsafe { product.compute::<Int8Avx2>() }
}

/// Rounds a row to bf16, two numbers a word; the missing half of the last word is zero.
///
/// # Safety
/// The processor has AVX512-BF16. `words` has at least half as many words as `row` has numbers.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub unsafe fn row_to_bf16(row: &[f32], words: &mut [u32]) {
    assert!(words.len() >= row.len().div_ceil(2));
    for (numbers, words) in row.chunks(16).zip(words.chunks_mut(8)) {
        let mask = if numbers.len() == 16 {
            !0
        } else {
            (1u16 << numbers.len()) - 1
        };
        // SAFETY: only the lanes of `numbers` are read.
        let rounded = _mm512_cvtneps_pbh(unsafe { _mm512_maskz_loadu_ps(mask, numbers.as_ptr()) });
        let valid = if words.len() >= 8 { !0 } else { (1u8 << words.len()) - 1 };
        // SAFETY: only the lanes of `words` are written; both types are 256 bits.
        unsafe {
            let rounded = std::mem::transmute::<__m256bh, __m256i>(rounded);
            _mm256_mask_storeu_epi32(words.as_mut_ptr().cast(), valid, rounded);
        }
    }
}

/// Quantises a row to unsigned 8 bits, four numbers a word: `x = scale q + offset`. Returns scale and offset.
///
/// # Safety
/// The processor has AVX2. `words` has at least a quarter as many words as `row` has numbers.
#[target_feature(enable = "avx2,fma")]
pub unsafe fn row_to_int8(row: &[f32], words: &mut [u32]) -> [f32; 2] {
    assert!(words.len() >= row.len().div_ceil(4));
    let (mut low, mut high) = ([f32::INFINITY; 16], [f32::NEG_INFINITY; 16]);
    let (blocks, rest) = row.as_chunks::<16>();
    for block in blocks {
        for lane in 0..16 {
            low[lane] = if block[lane] < low[lane] {
                block[lane]
            } else {
                low[lane]
            };
            high[lane] = if block[lane] > high[lane] {
                block[lane]
            } else {
                high[lane]
            };
        }
    }
    let low = low.iter().chain(rest).fold(f32::INFINITY, |a, b| a.min(*b));
    let high = high.iter().chain(rest).fold(f32::NEG_INFINITY, |a, b| a.max(*b));
    let scale = (high - low) / 255.0;
    if !(scale > 0.0 && scale.is_finite()) {
        words.fill(0);
        return [0.0, if low.is_finite() { low } else { 0.0 }];
    }
    let inverse = 1.0 / scale;
    let quantise = |x: f32| ((x - low) * inverse + 0.5) as i32;
    // SAFETY: a word is four bytes; there is one byte a number (asserted).
    let bytes = unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast::<u8>(), words.len() * 4) };
    let (targets, _) = bytes.as_chunks_mut::<16>();
    let mut done = 0;
    for (block, target) in blocks.iter().zip(targets.iter_mut()) {
        for lane in 0..16 {
            // SAFETY: the value is finite and between 0 and 256.
            let q = unsafe { ((block[lane] - low) * inverse + 0.5).to_int_unchecked::<i32>() };
            target[lane] = q.min(255) as u8;
        }
        done += 16;
    }
    for (i, x) in rest.iter().enumerate() {
        bytes[done + i] = quantise(*x).min(255) as u8;
    }
    bytes[row.len()..].fill(0);
    [scale, low]
}
