//! Panels of quantised weights on x86: AVX-512 with VNNI, and AVX2. The layout is that of `panels.rs`.

use super::activations::{FINE, GROUP, QuantisedActivations};
use super::panels::{PANEL, Quantised, Width};
use std::arch::x86_64::*;
use std::ops::Range;

/// Rows that share the unpacked weights of a group.
const ROWS: usize = 8;

type Put<'a> = &'a mut dyn FnMut(usize, &[f32; PANEL]);

/// One panel times all rows.
///
/// # Safety
/// The processor has AVX-512 F, BW, DQ, VL and VNNI; the panel exists and `x` has the layer's inputs.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub unsafe fn vnni(layer: &Quantised, x: &QuantisedActivations, panel: usize, put: Put<'_>) {
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
    x: &QuantisedActivations,
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

/// Where the activations of a tile's rows are.
struct TileRows<const T: usize> {
    words: [*const u32; T],
    fine: [*const u32; T],
    scales: [*const f32; T],
    sums: [*const f32; T],
}

// The methods need the instructions of `vnni`; addresses are inside what `TileRows::new` was promised.
impl<const T: usize> TileRows<T> {
    /// # Safety
    /// `row + T` rows exist.
    #[inline(always)]
    unsafe fn new(x: &QuantisedActivations, row: usize) -> TileRows<T> {
        let (inputs, groups) = (x.inputs, x.inputs / GROUP);
        // SAFETY: a row has `groups * 8` words, `groups` scales and `groups * 2` sums.
        unsafe {
            TileRows {
                words: std::array::from_fn(|t| x.words.as_ptr().add((row + t) * inputs / 4)),
                fine: std::array::from_fn(|t| x.fine.as_ptr().add((row + t) * inputs / 4)),
                scales: std::array::from_fn(|t| x.scales.as_ptr().add((row + t) * groups)),
                sums: std::array::from_fn(|t| x.sums.as_ptr().add((row + t) * groups * 2)),
            }
        }
    }

    /// `sum(u q) + sum(u r) / 254` of a part of a group, in row `t`.
    #[inline(always)]
    unsafe fn dot<const SHARE: usize>(&self, t: usize, group: usize, part: usize, codes: &[__m512i; 8]) -> __m512 {
        // SAFETY: see above.
        unsafe {
            let (q, r) = (self.words[t].add(group * 8), self.fine[t].add(group * 8));
            let mut whole = _mm512_setzero_si512();
            let mut rest = _mm512_setzero_si512();
            for (k, w) in codes.iter().enumerate().skip(part * SHARE / 4).take(SHARE / 4) {
                whole = _mm512_dpbusd_epi32(whole, *w, _mm512_set1_epi32(q.add(k).read() as i32));
                rest = _mm512_dpbusd_epi32(rest, *w, _mm512_set1_epi32(r.add(k).read() as i32));
            }
            let step = _mm512_set1_ps(1.0 / FINE);
            _mm512_fmadd_ps(_mm512_cvtepi32_ps(rest), step, _mm512_cvtepi32_ps(whole))
        }
    }

    /// The sum of the activations of a part of a group, in row `t`.
    #[inline(always)]
    unsafe fn sum<const SHARE: usize>(&self, t: usize, group: usize, part: usize) -> f32 {
        // SAFETY: see above.
        unsafe {
            let halves = self.sums[t].add(group * 2);
            match GROUP / SHARE {
                1 => halves.read() + halves.add(1).read(),
                _ => halves.add(part).read(),
            }
        }
    }
}

/// A group's codes: four inputs of sixteen outputs a vector.
///
/// # Safety
/// As [`vnni`]; the group has four vectors where codes have four bits, else eight.
#[inline(always)]
unsafe fn group_codes<const FOUR: bool>(from: *const u32) -> [__m512i; 8] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut codes = [_mm512_setzero_si512(); 8];
        if FOUR {
            let low = _mm512_set1_epi8(15);
            for k in 0..4 {
                let both = _mm512_loadu_si512(from.add(k * PANEL).cast());
                codes[k] = _mm512_and_si512(both, low);
                codes[k + 4] = _mm512_and_si512(_mm512_srli_epi16::<4>(both), low);
            }
        } else {
            for (k, codes) in codes.iter_mut().enumerate() {
                *codes = _mm512_loadu_si512(from.add(k * PANEL).cast());
            }
        }
        codes
    }
}

/// The f16 of sixteen outputs.
///
/// # Safety
/// As [`vnni`]; eight words are there.
#[inline(always)]
unsafe fn sixteen(from: *const u32) -> __m512 {
    // SAFETY: the caller's promise.
    unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
}

/// # Safety
/// As [`vnni`], and `row + T` rows exist.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn vnni_tile<const FOUR: bool, const SHARE: usize, const OFFSET: bool, const CENTRE: bool, const T: usize>(
    layer: &Quantised,
    x: &QuantisedActivations,
    panel: usize,
    row: usize,
    put: Put<'_>,
) {
    let groups = layer.inputs / GROUP;
    let parts = GROUP / SHARE;
    let chunks = if FOUR { 4 } else { 8 };
    // SAFETY: a panel has `groups * chunks` vectors of codes and `groups * parts` of scales; the rest is the caller's
    // promise.
    unsafe {
        let mut codes = layer.words.as_ptr().add(panel * groups * chunks * PANEL);
        let mut scales = layer.scales.as_ptr().add(panel * groups * parts * PANEL / 2);
        let mut offsets = layer.offsets.as_ref().map_or(std::ptr::null(), |offsets| {
            offsets.as_ptr().wrapping_add(panel * groups * parts * PANEL / 2)
        });
        let rows = TileRows::<T>::new(x, row);
        let centre = -layer.centre;
        let mut totals = [_mm512_setzero_ps(); T];
        for group in 0..groups {
            let w = group_codes::<FOUR>(codes);
            codes = codes.add(chunks * PANEL);
            for part in 0..parts {
                let d = sixteen(scales);
                scales = scales.add(PANEL / 2);
                let m = if OFFSET {
                    let m = sixteen(offsets);
                    offsets = offsets.add(PANEL / 2);
                    m
                } else {
                    _mm512_setzero_ps()
                };
                for (t, total) in totals.iter_mut().enumerate() {
                    let dot = rows.dot::<SHARE>(t, group, part, &w);
                    let a = _mm512_set1_ps(rows.scales[t].add(group).read());
                    let sum = rows.sum::<SHARE>(t, group, part);
                    let scaled = if CENTRE {
                        _mm512_fmadd_ps(dot, a, _mm512_set1_ps(centre * sum))
                    } else {
                        _mm512_mul_ps(dot, a)
                    };
                    *total = _mm512_fmadd_ps(d, scaled, *total);
                    if OFFSET {
                        *total = _mm512_fmadd_ps(m, _mm512_set1_ps(sum), *total);
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

/// One panel times all rows. Codes of eight bits are taken as signed elements here, because sums of two products of a
/// byte above 127 do not fit 16 bits; the centre is then nothing.
///
/// # Safety
/// The processor has AVX2, FMA and F16C; the panel exists and `x` has the layer's inputs.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn avx2(layer: &Quantised, x: &QuantisedActivations, panel: usize, put: Put<'_>) {
    for row in 0..x.rows {
        // SAFETY: the caller's promise.
        let out = unsafe {
            match layer.width {
                Width::Four => avx2_row::<true>(layer, x, panel, row),
                Width::Eight => avx2_row::<false>(layer, x, panel, row),
            }
        };
        put(row, &out);
    }
}

/// One panel times one row.
///
/// # Safety
/// As [`avx2`], and the row exists.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn avx2_row<const FOUR: bool>(
    layer: &Quantised,
    x: &QuantisedActivations,
    panel: usize,
    row: usize,
) -> [f32; PANEL] {
    let (groups, parts, share) = (layer.inputs / GROUP, GROUP / layer.group, layer.group);
    let chunks = if FOUR { 4 } else { 8 };
    let centre = if FOUR { layer.centre } else { 0.0 };
    // SAFETY: as in `vnni_tile`; a vector of 64 bytes is read in two halves of eight outputs.
    unsafe {
        let mut totals = [_mm256_setzero_ps(); 2];
        for group in 0..groups {
            let at = panel * groups + group;
            let codes = layer.words.as_ptr().add(at * chunks * PANEL);
            let place = (row * layer.inputs + group * GROUP) / 4;
            let planes = [x.words.as_ptr().add(place), x.fine.as_ptr().add(place)];
            let a = _mm256_set1_ps(x.scales[row * groups + group]);
            let first = (row * groups + group) * 2;
            let halves = [x.sums[first], x.sums[first + 1]];
            for part in 0..parts {
                let sum = if parts == 1 {
                    halves[0] + halves[1]
                } else {
                    halves[part]
                };
                let inputs = part * share / 4..(part + 1) * share / 4;
                for (side, total) in totals.iter_mut().enumerate() {
                    let place = (at * parts + part) * PANEL / 2 + side * 4;
                    let dot = avx2_dot::<FOUR>(codes.add(side * 8), planes, inputs.clone());
                    let scaled = _mm256_fmadd_ps(dot, a, _mm256_set1_ps(-centre * sum));
                    *total = _mm256_fmadd_ps(eight(layer.scales.as_ptr().add(place)), scaled, *total);
                    if let Some(offsets) = &layer.offsets {
                        *total = _mm256_fmadd_ps(eight(offsets.as_ptr().add(place)), _mm256_set1_ps(sum), *total);
                    }
                }
            }
        }
        let mut out = [0.0f32; PANEL];
        for (side, total) in totals.iter().enumerate() {
            _mm256_storeu_ps(out.as_mut_ptr().add(side * 8), *total);
        }
        out
    }
}

/// `sum(u q) + sum(u r) / 254` of eight outputs over some words of a group; `planes` are the words of `q` and of `r`.
///
/// # Safety
/// As [`avx2`]; the words exist.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn avx2_dot<const FOUR: bool>(codes: *const u32, planes: [*const u32; 2], words: Range<usize>) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe {
        let ones = _mm256_set1_epi16(1);
        let mut dots = [_mm256_setzero_si256(); 2];
        for k in words {
            let chunk = if FOUR { k % 4 } else { k };
            let bytes = _mm256_loadu_si256(codes.add(chunk * PANEL).cast());
            for (dot, plane) in dots.iter_mut().zip(planes) {
                let q = _mm256_set1_epi32(plane.add(k).read() as i32);
                let pairs = byte_products::<FOUR>(bytes, q, k >= 4);
                *dot = _mm256_add_epi32(*dot, _mm256_madd_epi16(pairs, ones));
            }
        }
        let [whole, rest] = dots.map(|dot| _mm256_cvtepi32_ps(dot));
        _mm256_fmadd_ps(rest, _mm256_set1_ps(1.0 / FINE), whole)
    }
}

/// Sums of two products each of codes and activations, in 16 bits. `high` says which half of a byte holds codes of four
/// bits.
///
/// # Safety
/// As [`avx2`].
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn byte_products<const FOUR: bool>(bytes: __m256i, q: __m256i, high: bool) -> __m256i {
    if FOUR {
        let bytes = if high { _mm256_srli_epi16::<4>(bytes) } else { bytes };
        _mm256_maddubs_epi16(_mm256_and_si256(bytes, _mm256_set1_epi8(15)), q)
    } else {
        let signed = _mm256_xor_si256(bytes, _mm256_set1_epi8(-128));
        _mm256_maddubs_epi16(_mm256_abs_epi8(signed), _mm256_sign_epi8(q, signed))
    }
}

/// The f16 of eight outputs.
///
/// # Safety
/// As [`avx2`]; four words are there.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn eight(from: *const u32) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
}
