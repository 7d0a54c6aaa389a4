//! Scores of 1-bit codes against one query: look-up tables in registers (fast-scan) and bit-sliced popcounts.
//!
//! A code has one bit a dimension, set where the rotated residual is positive. Both kernels sum the query's components
//! at the set bits, in integers, so every instruction set gives equal results.
//!
//! Block layout (32 codes): dimensions are taken in groups of four; group `g` of a block occupies bytes
//! `16 g .. 16 g + 16`; byte `j` holds the group's 4 bits of code `j` in its low nibble and of code `j + 16` in its
//! high nibble; bit `i` of a nibble is dimension `4 g + i`. Row layout: one code is `dimensions / 8` bytes, bit `i` of
//! byte `b` is dimension `8 b + i`.

use crate::compute::cpu::level::{Level, level};

/// Codes of a block.
pub const BLOCK: usize = 32;

/// A query's tables for the block layout.
#[derive(Clone, Debug, Default)]
pub struct Table {
    bytes: Vec<u8>,
    /// `sum over set bits of q = scale * score + offset`.
    pub scale: f32,
    pub offset: f32,
    /// Sum of the query's components.
    pub total: f32,
    /// Standard deviation of the error that rounding the tables leaves in the sum.
    pub deviation: f32,
}

impl Table {
    /// Tables of `query`; the number of dimensions is a multiple of 64.
    pub fn new(query: &[f32]) -> Table {
        let groups = query.len() / 4;
        // Scores are kept in 16 bits: the largest entry shrinks as dimensions grow.
        let top = (65_535 / groups.max(1)).min(255) as f32;
        let mut widest = 0.0f32;
        let mut offset = 0.0f32;
        for group in query.chunks_exact(4) {
            let low: f32 = group.iter().map(|x| x.min(0.0)).sum();
            let high: f32 = group.iter().map(|x| x.max(0.0)).sum();
            widest = widest.max(high - low);
            offset += low;
        }
        let scale = if widest > 0.0 && widest.is_finite() {
            widest / top
        } else {
            1.0
        };
        let inverse = 1.0 / scale;
        let mut bytes = vec![0u8; groups * 16];
        for (group, table) in query.chunks_exact(4).zip(bytes.chunks_exact_mut(16)) {
            let low: f32 = group.iter().map(|x| x.min(0.0)).sum();
            let mut sums = [-low * inverse + 0.5; 16];
            for (code, sum) in sums.iter_mut().enumerate() {
                for (i, x) in group.iter().enumerate() {
                    *sum += if code >> i & 1 == 1 { x * inverse } else { 0.0 };
                }
            }
            for (byte, sum) in table.iter_mut().zip(sums) {
                *byte = sum.clamp(0.0, top) as u8;
            }
        }
        Table {
            bytes,
            scale,
            offset,
            total: query.iter().sum(),
            deviation: scale * (groups as f32 / 12.0).sqrt(),
        }
    }

    /// Scores of the 32 codes of a block of `4 * dimensions` bytes. A block of another length gives zeros.
    pub fn score(&self, block: &[u8], out: &mut [u16; BLOCK]) {
        if block.len() != self.bytes.len() {
            *out = [0; BLOCK];
            return;
        }
        match level() {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the level was detected at run time; both slices have the same length, a multiple of 64.
            Level::Avx512 => unsafe { x86::score_avx512(block, &self.bytes, out) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Level::Avx2 => unsafe { x86::score_avx2(block, &self.bytes, out) },
            _ => score_portable(block, &self.bytes, out),
        }
    }
}

/// Sets the bits of code `lane` in a block to the signs of `residual` (bit set where positive).
pub fn put_block(block: &mut [u8], lane: usize, residual: &[f32]) {
    let (byte, shift) = (lane % 16, if lane < 16 { 0 } else { 4 });
    for (group, cell) in residual.chunks_exact(4).zip(block.chunks_exact_mut(16)) {
        let bits = group
            .iter()
            .enumerate()
            .fold(0u8, |bits, (i, &x)| bits | (u8::from(x > 0.0) << i));
        cell[byte] = (cell[byte] & !(0xF << shift)) | (bits << shift);
    }
}

/// Writes the signs of `residual` as a row code.
pub fn put_row(row: &mut [u8], residual: &[f32]) {
    for (byte, group) in row.iter_mut().zip(residual.chunks_exact(8)) {
        *byte = group
            .iter()
            .enumerate()
            .fold(0u8, |bits, (i, &x)| bits | (u8::from(x > 0.0) << i));
    }
}

fn score_portable(block: &[u8], table: &[u8], out: &mut [u16; BLOCK]) {
    let mut sums = [0u16; BLOCK];
    for (codes, entries) in block.chunks_exact(16).zip(table.chunks_exact(16)) {
        for (j, &code) in codes.iter().enumerate() {
            sums[j] = sums[j].wrapping_add(entries[(code & 15) as usize] as u16);
            sums[j + 16] = sums[j + 16].wrapping_add(entries[(code >> 4) as usize] as u16);
        }
    }
    *out = sums;
}

/// Bits a component that the bit-sliced query keeps.
const SLICES: usize = 8;

/// A query cut into bit slices, for the row layout.
#[derive(Clone, Debug, Default)]
pub struct Slices {
    words: usize,
    /// `SLICES` runs of `words` 64-bit words.
    bits: Vec<u64>,
    low: f32,
    step: f32,
    /// Sum of the query's components.
    pub total: f32,
    /// Standard deviation of the rounding error in the sum over set bits.
    pub deviation: f32,
}

impl Slices {
    /// Slices of `query`; the number of dimensions is a multiple of 64.
    pub fn new(query: &[f32]) -> Slices {
        let low = query.iter().copied().fold(f32::INFINITY, f32::min);
        let high = query.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let range = high - low;
        let step = if range > 0.0 && range.is_finite() {
            range / 255.0
        } else {
            1.0
        };
        let words = query.len() / 64;
        let mut bits = vec![0u64; SLICES * words];
        for (i, &x) in query.iter().enumerate().take(words * 64) {
            let value = ((x - low) / step + 0.5).clamp(0.0, 255.0) as u64;
            for slice in 0..SLICES {
                bits[slice * words + i / 64] |= (value >> slice & 1) << (i % 64);
            }
        }
        let deviation = step * (query.len() as f32 / 24.0).sqrt();
        Slices {
            words,
            bits,
            low,
            step,
            total: query.iter().sum(),
            deviation,
        }
    }

    /// Sum of the query's components at the set bits of a row code of `dimensions / 8` bytes (0 for another length).
    pub fn score(&self, row: &[u8]) -> f32 {
        if row.len() != self.words * 8 {
            return 0.0;
        }
        let (ones, weighted) = match level() {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: these levels include POPCNT; plain safe code otherwise.
            Level::Avx512 | Level::Avx2 => unsafe { x86::slices_popcnt(row, &self.bits, self.words) },
            _ => slices_portable(row, &self.bits, self.words),
        };
        self.low * ones as f32 + self.step * weighted as f32
    }
}

#[inline(always)]
fn slices_portable(row: &[u8], bits: &[u64], words: usize) -> (u32, u32) {
    let mut ones = 0u32;
    let mut counts = [0u32; SLICES];
    for (w, bytes) in row.chunks_exact(8).enumerate() {
        let mut word = [0u8; 8];
        word.copy_from_slice(bytes);
        let word = u64::from_le_bytes(word);
        ones += word.count_ones();
        for (slice, count) in counts.iter_mut().enumerate() {
            *count += (word & bits[slice * words + w]).count_ones();
        }
    }
    (
        ones,
        counts.iter().enumerate().map(|(slice, &count)| count << slice).sum(),
    )
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{BLOCK, slices_portable};
    use std::arch::x86_64::*;

    /// # Safety
    /// Needs POPCNT.
    #[target_feature(enable = "popcnt,avx2")]
    pub unsafe fn slices_popcnt(row: &[u8], bits: &[u64], words: usize) -> (u32, u32) {
        slices_portable(row, bits, words)
    }

    /// # Safety
    /// Needs AVX2; `block` and `table` have the same length, a multiple of 32.
    #[target_feature(enable = "avx2")]
    pub unsafe fn score_avx2(block: &[u8], table: &[u8], out: &mut [u16; BLOCK]) {
        let mask = _mm256_set1_epi8(15);
        let mut sums = [_mm256_setzero_si256(); 4];
        for i in 0..block.len() / 32 {
            // SAFETY: both loads stay inside slices of equal length.
            let (codes, entries) = unsafe {
                (
                    _mm256_loadu_si256(block.as_ptr().add(32 * i).cast()),
                    _mm256_loadu_si256(table.as_ptr().add(32 * i).cast()),
                )
            };
            let low = _mm256_shuffle_epi8(entries, _mm256_and_si256(codes, mask));
            let high = _mm256_shuffle_epi8(entries, _mm256_and_si256(_mm256_srli_epi16(codes, 4), mask));
            // Bytes are summed as 16-bit words; the odd bytes' share in the even sums is taken off at the end.
            sums[0] = _mm256_add_epi16(sums[0], low);
            sums[1] = _mm256_add_epi16(sums[1], _mm256_srli_epi16(low, 8));
            sums[2] = _mm256_add_epi16(sums[2], high);
            sums[3] = _mm256_add_epi16(sums[3], _mm256_srli_epi16(high, 8));
        }
        let fold = |x: __m256i| _mm_add_epi16(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
        finish(fold(sums[0]), fold(sums[1]), fold(sums[2]), fold(sums[3]), out);
    }

    /// # Safety
    /// Needs AVX-512 F and BW; `block` and `table` have the same length, a multiple of 64.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx2")]
    pub unsafe fn score_avx512(block: &[u8], table: &[u8], out: &mut [u16; BLOCK]) {
        let mask = _mm512_set1_epi8(15);
        let mut sums = [_mm512_setzero_si512(); 4];
        for i in 0..block.len() / 64 {
            // SAFETY: both loads stay inside slices of equal length.
            let (codes, entries) = unsafe {
                (
                    _mm512_loadu_si512(block.as_ptr().add(64 * i).cast()),
                    _mm512_loadu_si512(table.as_ptr().add(64 * i).cast()),
                )
            };
            let low = _mm512_shuffle_epi8(entries, _mm512_and_si512(codes, mask));
            let high = _mm512_shuffle_epi8(entries, _mm512_and_si512(_mm512_srli_epi16(codes, 4), mask));
            sums[0] = _mm512_add_epi16(sums[0], low);
            sums[1] = _mm512_add_epi16(sums[1], _mm512_srli_epi16(low, 8));
            sums[2] = _mm512_add_epi16(sums[2], high);
            sums[3] = _mm512_add_epi16(sums[3], _mm512_srli_epi16(high, 8));
        }
        let fold = |x: __m512i| {
            let half = _mm256_add_epi16(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64(x, 1));
            _mm_add_epi16(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1))
        };
        finish(fold(sums[0]), fold(sums[1]), fold(sums[2]), fold(sums[3]), out);
    }

    /// Takes the odd lanes' share off the even ones and puts the lanes in order.
    #[target_feature(enable = "avx2")]
    fn finish(even_low: __m128i, odd_low: __m128i, even_high: __m128i, odd_high: __m128i, out: &mut [u16; BLOCK]) {
        let mut put = |even: __m128i, odd: __m128i, at: usize| {
            let even = _mm_sub_epi16(even, _mm_slli_epi16(odd, 8));
            // SAFETY: `at` is 0 or 16 of 32 words; the two stores fill 16 words.
            unsafe {
                let to = out.as_mut_ptr().add(at);
                _mm_storeu_si128(to.cast(), _mm_unpacklo_epi16(even, odd));
                _mm_storeu_si128(to.add(8).cast(), _mm_unpackhi_epi16(even, odd));
            }
        };
        put(even_low, odd_low, 0);
        put(even_high, odd_high, 16);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::splitmix64;

    fn random(n: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        (0..n)
            .map(|_| (splitmix64(&mut state) >> 40) as f32 / (1 << 24) as f32 - 0.5)
            .collect()
    }

    #[test]
    fn every_level_gives_equal_scores() {
        for d in [64, 128, 384, 1024, 1088, 1792] {
            let table = Table::new(&random(d, 1));
            let mut block = vec![0u8; 4 * d];
            for lane in 0..BLOCK {
                put_block(&mut block, lane, &random(d, 100 + lane as u64));
            }
            let mut portable = [0u16; BLOCK];
            score_portable(&block, &table.bytes, &mut portable);
            let mut chosen = [0u16; BLOCK];
            table.score(&block, &mut chosen);
            assert_eq!(portable, chosen, "d={d}");
            #[cfg(target_arch = "x86_64")]
            if is_x86_feature_detected!("avx2") {
                let mut avx2 = [0u16; BLOCK];
                // SAFETY: AVX2 was just detected; both slices are 4 * d bytes.
                unsafe { x86::score_avx2(&block, &table.bytes, &mut avx2) };
                assert_eq!(portable, avx2, "d={d}");
            }
        }
    }

    #[test]
    fn scores_are_the_sum_at_set_bits() {
        for d in [64, 384, 1792, 4096] {
            let query = random(d, 9);
            let code = random(d, 10);
            let exact: f32 = query.iter().zip(&code).filter(|(_, c)| **c > 0.0).map(|(q, _)| q).sum();
            if d <= 1792 {
                let table = Table::new(&query);
                let mut block = vec![0u8; 4 * d];
                put_block(&mut block, 21, &code);
                let mut out = [0u16; BLOCK];
                table.score(&block, &mut out);
                let got = table.scale * out[21] as f32 + table.offset;
                assert!(
                    (got - exact).abs() < 5.0 * table.deviation + 1e-3,
                    "d={d} {got} {exact}"
                );
            }
            let slices = Slices::new(&query);
            let mut row = vec![0u8; d / 8];
            put_row(&mut row, &code);
            let got = slices.score(&row);
            assert!(
                (got - exact).abs() < 5.0 * slices.deviation + 1e-3,
                "d={d} {got} {exact}"
            );
            #[cfg(target_arch = "x86_64")]
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("popcnt") {
                // SAFETY: the instruction sets were just detected.
                let fast = unsafe { x86::slices_popcnt(&row, &slices.bits, d / 64) };
                assert_eq!(slices_portable(&row, &slices.bits, d / 64), fast);
            }
        }
    }
}
