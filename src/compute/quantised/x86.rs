//! Panels of quantised weights on x86: AVX-512 with VNNI, and AVX2. The layout is that of `quantised.rs`.

use super::activations::{Codes, FINE, GROUP};
use super::panels::{PANEL, Quantised, Width};
use std::arch::x86_64::*;

/// Rows that share the unpacked weights of a group.
const ROWS: usize = 8;

type Put<'a> = &'a mut dyn FnMut(usize, &[f32; PANEL]);

/// One panel times all rows.
///
/// # Safety
/// The processor has AVX-512 F, BW, DQ, VL and VNNI; the panel exists and `x` has the layer's inputs.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub unsafe fn vnni(layer: &Quantised, x: &Codes, panel: usize, put: Put<'_>) {
    // SAFETY: the caller's promise.
    unsafe {
        match (layer.width, layer.group, layer.offsets.is_some()) {
            (Width::Four, _, true) => vnni_rows::<true, 32, true, false>(layer, x, panel, put),
            (Width::Four, _, false) => vnni_rows::<true, 32, false, true>(layer, x, panel, put),
            (Width::Eight, 16, _) => vnni_rows::<false, 16, false, true>(layer, x, panel, put),
            (Width::Eight, _, true) => vnni_rows::<false, 32, true, true>(layer, x, panel, put),
            (Width::Eight, _, false) => vnni_rows::<false, 32, false, true>(layer, x, panel, put),
        }
    }
}

/// # Safety
/// As [`vnni`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn vnni_rows<const FOUR: bool, const SHARE: usize, const OFFSET: bool, const CENTRE: bool>(
    layer: &Quantised,
    x: &Codes,
    panel: usize,
    put: Put<'_>,
) {
    let mut row = 0;
    // SAFETY: the caller's promise; no tile reaches behind the last row.
    unsafe {
        while row + ROWS <= x.rows {
            vnni_tile::<FOUR, SHARE, OFFSET, CENTRE, ROWS>(layer, x, panel, row, put);
            row += ROWS;
        }
        while row + 4 <= x.rows {
            vnni_tile::<FOUR, SHARE, OFFSET, CENTRE, 4>(layer, x, panel, row, put);
            row += 4;
        }
        while row < x.rows {
            vnni_tile::<FOUR, SHARE, OFFSET, CENTRE, 1>(layer, x, panel, row, put);
            row += 1;
        }
    }
}

/// # Safety
/// As [`vnni`], and `row + T` rows exist.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn vnni_tile<const FOUR: bool, const SHARE: usize, const OFFSET: bool, const CENTRE: bool, const T: usize>(
    layer: &Quantised,
    x: &Codes,
    panel: usize,
    row: usize,
    put: Put<'_>,
) {
    let groups = layer.inputs / GROUP;
    let parts = GROUP / SHARE;
    let chunks = if FOUR { 4 } else { 8 };
    // SAFETY: a panel has `groups * chunks` vectors of codes and `groups * parts` of scales; a row of `x` has
    // `groups * 8` words, `groups` scales and `groups * 2` sums.
    unsafe {
        let mut codes = layer.words.as_ptr().add(panel * groups * chunks * PANEL);
        let mut scales = layer.scales.as_ptr().add(panel * groups * parts * PANEL / 2);
        let mut offsets = layer.offsets.as_ref().map_or(std::ptr::null(), |offsets| {
            offsets.as_ptr().wrapping_add(panel * groups * parts * PANEL / 2)
        });
        let words: [*const u32; T] = std::array::from_fn(|t| x.words.as_ptr().add((row + t) * layer.inputs / 4));
        let fine: [*const u32; T] = std::array::from_fn(|t| x.fine.as_ptr().add((row + t) * layer.inputs / 4));
        let steps: [*const f32; T] = std::array::from_fn(|t| x.scales.as_ptr().add((row + t) * groups));
        let sums: [*const f32; T] = std::array::from_fn(|t| x.sums.as_ptr().add((row + t) * groups * 2));
        let centre = -layer.centre;
        let (low, step) = (_mm512_set1_epi8(15), _mm512_set1_ps(1.0 / FINE));
        let mut totals = [_mm512_setzero_ps(); T];
        for group in 0..groups {
            let mut w = [_mm512_setzero_si512(); 8];
            if FOUR {
                for k in 0..4 {
                    let both = _mm512_loadu_si512(codes.add(k * PANEL).cast());
                    w[k] = _mm512_and_si512(both, low);
                    w[k + 4] = _mm512_and_si512(_mm512_srli_epi16::<4>(both), low);
                }
            } else {
                for (k, w) in w.iter_mut().enumerate() {
                    *w = _mm512_loadu_si512(codes.add(k * PANEL).cast());
                }
            }
            codes = codes.add(chunks * PANEL);
            for part in 0..parts {
                let d = _mm512_cvtph_ps(_mm256_loadu_si256(scales.cast()));
                scales = scales.add(PANEL / 2);
                let m = if OFFSET {
                    let m = _mm512_cvtph_ps(_mm256_loadu_si256(offsets.cast()));
                    offsets = offsets.add(PANEL / 2);
                    m
                } else {
                    _mm512_setzero_ps()
                };
                let first = part * SHARE / 4;
                for t in 0..T {
                    let (q, r) = (words[t].add(group * 8), fine[t].add(group * 8));
                    let mut whole = _mm512_setzero_si512();
                    let mut rest = _mm512_setzero_si512();
                    for (k, w) in w.iter().enumerate().skip(first).take(SHARE / 4) {
                        whole = _mm512_dpbusd_epi32(whole, *w, _mm512_set1_epi32(q.add(k).read() as i32));
                        rest = _mm512_dpbusd_epi32(rest, *w, _mm512_set1_epi32(r.add(k).read() as i32));
                    }
                    let dot = _mm512_fmadd_ps(_mm512_cvtepi32_ps(rest), step, _mm512_cvtepi32_ps(whole));
                    let a = _mm512_set1_ps(steps[t].add(group).read());
                    let halves = sums[t].add(group * 2);
                    let sum = match parts {
                        1 => halves.read() + halves.add(1).read(),
                        _ => halves.add(part).read(),
                    };
                    let scaled = if CENTRE {
                        _mm512_fmadd_ps(dot, a, _mm512_set1_ps(centre * sum))
                    } else {
                        _mm512_mul_ps(dot, a)
                    };
                    totals[t] = _mm512_fmadd_ps(d, scaled, totals[t]);
                    if OFFSET {
                        totals[t] = _mm512_fmadd_ps(m, _mm512_set1_ps(sum), totals[t]);
                    }
                }
            }
        }
        for (t, total) in totals.iter().enumerate() {
            let mut out = [0.0f32; PANEL];
            _mm512_storeu_ps(out.as_mut_ptr(), *total);
            put(row + t, &out);
        }
    }
}

/// One panel times all rows. Codes of eight bits are taken as signed numbers here, because sums of two products of a
/// byte above 127 do not fit 16 bits; the centre is then nothing.
///
/// # Safety
/// The processor has AVX2, FMA and F16C; the panel exists and `x` has the layer's inputs.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn avx2(layer: &Quantised, x: &Codes, panel: usize, put: Put<'_>) {
    let four = layer.width == Width::Four;
    let (groups, parts) = (layer.inputs / GROUP, GROUP / layer.group);
    let chunks = if four { 4 } else { 8 };
    let centre = if four { layer.centre } else { 0.0 };
    // SAFETY: as in `vnni_tile`; a vector of 64 bytes is read in two halves of eight outputs.
    unsafe {
        let (low, ones, top) = (_mm256_set1_epi8(15), _mm256_set1_epi16(1), _mm256_set1_epi8(-128));
        for row in 0..x.rows {
            let mut totals = [_mm256_setzero_ps(); 2];
            for group in 0..groups {
                let at = panel * groups + group;
                let codes = layer.words.as_ptr().add(at * chunks * PANEL);
                let place = (row * layer.inputs + group * GROUP) / 4;
                let planes = [x.words.as_ptr().add(place), x.fine.as_ptr().add(place)];
                let a = x.scales[row * groups + group];
                let halves = [
                    x.sums[(row * groups + group) * 2],
                    x.sums[(row * groups + group) * 2 + 1],
                ];
                for part in 0..parts {
                    let sum = if parts == 1 {
                        halves[0] + halves[1]
                    } else {
                        halves[part]
                    };
                    let place = (at * parts + part) * PANEL / 2;
                    for (side, total) in totals.iter_mut().enumerate() {
                        let mut dots = [_mm256_setzero_si256(); 2];
                        for k in part * layer.group / 4..(part + 1) * layer.group / 4 {
                            let chunk = if four { k % 4 } else { k };
                            let bytes = _mm256_loadu_si256(codes.add(chunk * PANEL + side * 8).cast());
                            for (dot, words) in dots.iter_mut().zip(planes) {
                                let q = _mm256_set1_epi32(words.add(k).read() as i32);
                                let pairs = match (four, k < 4) {
                                    (true, true) => _mm256_maddubs_epi16(_mm256_and_si256(bytes, low), q),
                                    (true, false) => {
                                        let high = _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), low);
                                        _mm256_maddubs_epi16(high, q)
                                    }
                                    (false, _) => {
                                        let signed = _mm256_xor_si256(bytes, top);
                                        _mm256_maddubs_epi16(_mm256_abs_epi8(signed), _mm256_sign_epi8(q, signed))
                                    }
                                };
                                *dot = _mm256_add_epi32(*dot, _mm256_madd_epi16(pairs, ones));
                            }
                        }
                        let [whole, rest] = dots.map(|dot| _mm256_cvtepi32_ps(dot));
                        let dot = _mm256_fmadd_ps(rest, _mm256_set1_ps(1.0 / FINE), whole);
                        let f16s = |words: &[u32]| {
                            _mm256_cvtph_ps(_mm_loadu_si128(words.as_ptr().add(place + side * 4).cast()))
                        };
                        let scaled = _mm256_fmadd_ps(dot, _mm256_set1_ps(a), _mm256_set1_ps(-centre * sum));
                        *total = _mm256_fmadd_ps(f16s(&layer.scales), scaled, *total);
                        if let Some(offsets) = &layer.offsets {
                            *total = _mm256_fmadd_ps(f16s(offsets), _mm256_set1_ps(sum), *total);
                        }
                    }
                }
            }
            let mut out = [0.0f32; PANEL];
            for (side, total) in totals.iter().enumerate() {
                _mm256_storeu_ps(out.as_mut_ptr().add(side * 8), *total);
            }
            put(row, &out);
        }
    }
}
