//! Blocks of quantised weights: their layouts, and the elements that they stand for.
//!
//! The layouts are those of llama.cpp's files. All elements are little-endian, `d` and `m` are f16; `nibbles` are 16 bytes
//! for 32 elements, the low halves being the first 16 of them. Blocks of 32 elements:
//!
//! | kind | bytes | content | number |
//! |---|---|---|---|
//! | Q4_0 | 18 | d, nibbles | d * (q - 8) |
//! | Q4_1 | 20 | d, m, nibbles | d * q + m |
//! | Q5_0 | 22 | d, fifth bits (u32), nibbles | d * (q - 16) |
//! | Q5_1 | 24 | d, m, fifth bits (u32), nibbles | d * q + m |
//! | Q8_0 | 34 | d, 32 i8 | d * q |
//!
//! Blocks of 256 elements, in groups of 32 (Q6_K: of 16) with scales of their own:
//!
//! | kind | bytes | content | number |
//! |---|---|---|---|
//! | Q4_K | 144 | d, m, 12 bytes of 8 scales and 8 minima in 6 bits, 128 bytes of nibbles | d * scale * q - m * minimum |
//! | Q5_K | 176 | d, m, the 12 bytes, 32 bytes of fifth bits, 128 bytes of nibbles | d * scale * q - m * minimum |
//! | Q6_K | 210 | 128 bytes of low nibbles, 64 bytes of high pairs, 16 scales i8, d | d * scale * (q - 32) |
//!
//! In Q4_K and Q5_K 32 bytes hold 64 elements: the low halves the first 32, the high halves the next 32.

/// How the elements of a row are stored in blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types)]
pub enum BlockKind {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4_K,
    Q5_K,
    Q6_K,
}

impl BlockKind {
    /// Every kind.
    pub const ALL: [BlockKind; 8] = [
        BlockKind::Q4_0,
        BlockKind::Q4_1,
        BlockKind::Q5_0,
        BlockKind::Q5_1,
        BlockKind::Q8_0,
        BlockKind::Q4_K,
        BlockKind::Q5_K,
        BlockKind::Q6_K,
    ];

    /// Elements in a block.
    pub const fn length(self) -> usize {
        match self {
            BlockKind::Q4_K | BlockKind::Q5_K | BlockKind::Q6_K => 256,
            _ => 32,
        }
    }

    /// Bytes of a block.
    pub const fn bytes(self) -> usize {
        match self {
            BlockKind::Q4_0 => 18,
            BlockKind::Q4_1 => 20,
            BlockKind::Q5_0 => 22,
            BlockKind::Q5_1 => 24,
            BlockKind::Q8_0 => 34,
            BlockKind::Q4_K => 144,
            BlockKind::Q5_K => 176,
            BlockKind::Q6_K => 210,
        }
    }

    /// Bytes of a row of `columns` elements; `None` where they do not fill whole blocks, or the product overflows.
    pub fn row_bytes(self, columns: usize) -> Option<usize> {
        let blocks = columns
            .is_multiple_of(self.length())
            .then_some(columns / self.length())?;
        blocks.checked_mul(self.bytes())
    }

    pub fn name(self) -> &'static str {
        match self {
            BlockKind::Q4_0 => "Q4_0",
            BlockKind::Q4_1 => "Q4_1",
            BlockKind::Q5_0 => "Q5_0",
            BlockKind::Q5_1 => "Q5_1",
            BlockKind::Q8_0 => "Q8_0",
            BlockKind::Q4_K => "Q4_K",
            BlockKind::Q5_K => "Q5_K",
            BlockKind::Q6_K => "Q6_K",
        }
    }

    /// Writes the elements of whole blocks. As many blocks are read as both slices have room for.
    pub fn dequantise(self, bytes: &[u8], elements: &mut [f32]) {
        let unpack = match self {
            BlockKind::Q4_0 => q4_0,
            BlockKind::Q4_1 => q4_1,
            BlockKind::Q5_0 => q5_0,
            BlockKind::Q5_1 => q5_1,
            BlockKind::Q8_0 => q8_0,
            BlockKind::Q4_K => q4_k,
            BlockKind::Q5_K => q5_k,
            BlockKind::Q6_K => q6_k,
        };
        let blocks = bytes.chunks_exact(self.bytes());
        for (block, out) in blocks.zip(elements.chunks_exact_mut(self.length())) {
            unpack(block, out);
        }
    }

    /// Whether the scales of all blocks are finite, and so all their elements.
    pub fn is_finite(self, bytes: &[u8]) -> bool {
        let finite = |block: &[u8], at: usize| half(block, at).is_finite();
        bytes.chunks_exact(self.bytes()).all(|block| match self {
            BlockKind::Q4_0 | BlockKind::Q5_0 | BlockKind::Q8_0 => finite(block, 0),
            BlockKind::Q4_1 | BlockKind::Q5_1 | BlockKind::Q4_K | BlockKind::Q5_K => {
                finite(block, 0) && finite(block, 2)
            }
            BlockKind::Q6_K => finite(block, 208),
        })
    }
}

/// The f16 at a byte of a block.
fn half(block: &[u8], at: usize) -> f32 {
    match block.get(at..at + 2) {
        Some(&[low, high]) => half::f16::from_le_bytes([low, high]).to_f32(),
        _ => 0.0,
    }
}

/// Part of a block, empty if the block is too short (which `chunks_exact` excludes).
fn part(block: &[u8], at: usize, length: usize) -> &[u8] {
    block.get(at..at + length).unwrap_or_default()
}

/// 32 elements of 16 bytes: `number(q, place)` for the halves of the bytes.
fn nibbles(bytes: &[u8], out: &mut [f32], number: impl Fn(u8, usize) -> f32) {
    let middle = out.len() / 2;
    let (low, high) = out.split_at_mut(middle);
    for (place, ((byte, low), high)) in bytes.iter().zip(low).zip(high).enumerate() {
        *low = number(byte & 15, place);
        *high = number(byte >> 4, place + middle);
    }
}

fn q4_0(block: &[u8], out: &mut [f32]) {
    let d = half(block, 0);
    nibbles(part(block, 2, 16), out, |q, _| d * (f32::from(q) - 8.0));
}

fn q4_1(block: &[u8], out: &mut [f32]) {
    let (d, m) = (half(block, 0), half(block, 2));
    nibbles(part(block, 4, 16), out, |q, _| d * f32::from(q) + m);
}

/// The fifth bits of 32 elements.
fn fifth(block: &[u8], at: usize) -> u32 {
    match block.get(at..at + 4) {
        Some(&[a, b, c, d]) => u32::from_le_bytes([a, b, c, d]),
        _ => 0,
    }
}

fn q5_0(block: &[u8], out: &mut [f32]) {
    let (d, high) = (half(block, 0), fifth(block, 2));
    let five = |q: u8, place: usize| f32::from(q | ((high >> place) as u8 & 1) << 4);
    nibbles(part(block, 6, 16), out, |q, place| d * (five(q, place) - 16.0));
}

fn q5_1(block: &[u8], out: &mut [f32]) {
    let (d, m, high) = (half(block, 0), half(block, 2), fifth(block, 4));
    let five = |q: u8, place: usize| f32::from(q | ((high >> place) as u8 & 1) << 4);
    nibbles(part(block, 8, 16), out, |q, place| d * five(q, place) + m);
}

fn q8_0(block: &[u8], out: &mut [f32]) {
    let d = half(block, 0);
    for (number, byte) in out.iter_mut().zip(part(block, 2, 32)) {
        *number = d * f32::from(*byte as i8);
    }
}

/// Scale and minimum, of 6 bits each, of one of the 8 groups of a Q4_K or Q5_K block.
pub fn scale_and_minimum(packed: &[u8; 12], group: usize) -> (u8, u8) {
    let at = |place: usize| packed.get(place).copied().unwrap_or_default();
    if group < 4 {
        (at(group) & 63, at(group + 4) & 63)
    } else {
        let both = at(group + 4);
        (both & 15 | at(group - 4) >> 6 << 4, both >> 4 | at(group) >> 6 << 4)
    }
}

/// Groups of Q4_K and Q5_K: `high(place, group)` is the fifth bit, times 16.
fn k_groups(block: &[u8], packed: &[u8], out: &mut [f32], high: impl Fn(usize, usize) -> u8) {
    let (d, m) = (half(block, 0), half(block, 2));
    let mut scales = [0u8; 12];
    for (scale, byte) in scales.iter_mut().zip(part(block, 4, 12)) {
        *scale = *byte;
    }
    for (pair, (bytes, out)) in packed.chunks_exact(32).zip(out.chunks_exact_mut(64)).enumerate() {
        let factors = [2 * pair, 2 * pair + 1].map(|group| {
            let (scale, minimum) = scale_and_minimum(&scales, group);
            (d * f32::from(scale), m * f32::from(minimum))
        });
        let [(low_scale, low_minimum), (high_scale, high_minimum)] = factors;
        let (first, second) = out.split_at_mut(32);
        for (place, ((byte, first), second)) in bytes.iter().zip(first).zip(second).enumerate() {
            *first = low_scale * f32::from((byte & 15) + high(place, 2 * pair)) - low_minimum;
            *second = high_scale * f32::from((byte >> 4) + high(place, 2 * pair + 1)) - high_minimum;
        }
    }
}

fn q4_k(block: &[u8], out: &mut [f32]) {
    k_groups(block, part(block, 16, 128), out, |_, _| 0);
}

fn q5_k(block: &[u8], out: &mut [f32]) {
    let bits = part(block, 16, 32);
    let high = |place: usize, group: usize| bits.get(place).map_or(0, |byte| (byte >> group & 1) << 4);
    k_groups(block, part(block, 48, 128), out, high);
}

fn q6_k(block: &[u8], out: &mut [f32]) {
    let d = half(block, 208);
    let halves = part(block, 0, 128)
        .chunks_exact(64)
        .zip(part(block, 128, 64).chunks_exact(32));
    let halves = halves.zip(part(block, 192, 16).chunks_exact(8));
    for (((low, high), scales), out) in halves.zip(out.chunks_exact_mut(128)) {
        for (place, number) in out.iter_mut().enumerate() {
            // Elements 0..64 are the low halves of the 64 bytes, the rest the high halves; four elements share a byte of pairs.
            let (quarter, column) = (place / 32, place % 32);
            let byte = low.get(place % 64).copied().unwrap_or_default();
            let nibble = if quarter < 2 { byte & 15 } else { byte >> 4 };
            let pair = high.get(column).map_or(0, |byte| byte >> (2 * quarter) & 3);
            let scale = scales.get(place / 16).map_or(0.0, |scale| f32::from(*scale as i8));
            *number = d * scale * (f32::from(nibble | pair << 4) - 32.0);
        }
    }
}
