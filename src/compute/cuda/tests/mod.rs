//! Kernels against their CPU twins or the formula in f64, and whole passes, on a GPU or the emulated one.

mod attention;
mod decoder;
mod passes;
mod rows;

use half::bf16;

/// Numbers between -1 and 1 that look random, rounded to bf16; each seed gives others.
fn random(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) + 1;
    let numbers = (0..count).map(|_| {
        let word = crate::random::splitmix64(&mut state);
        bf16::from_f32((word >> 40) as f32 / (1u64 << 23) as f32 - 1.0).to_f32()
    });
    numbers.collect()
}

fn rounded(numbers: &[f32]) -> Vec<bf16> {
    numbers.iter().map(|number| bf16::from_f32(*number)).collect()
}

/// `|a - b| / |b|` over all numbers; NaN where one is.
fn relative_error(found: impl IntoIterator<Item = f32>, expected: &[f64]) -> f64 {
    let (mut difference, mut size, mut count) = (0.0, 0.0, 0);
    for (found, expected) in found.into_iter().zip(expected) {
        difference += (f64::from(found) - expected).powi(2);
        size += expected.powi(2);
        count += 1;
    }
    assert_eq!(count, expected.len());
    (difference / size).sqrt()
}
