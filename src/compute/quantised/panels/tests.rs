//! Products with quantised weights against sums in f64 over the numbers that the blocks stand for.

use super::*;
use crate::compute::cpu::level::Level;

fn bytes(count: usize, mut seed: u64) -> Vec<u8> {
    (0..count)
        .map(|_| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 40) as u8
        })
        .collect()
}

/// Random blocks with scales of a plausible size.
fn blocks(kind: BlockKind, count: usize) -> Vec<u8> {
    let mut all = bytes(count * kind.bytes(), 5);
    for (number, block) in all.chunks_exact_mut(kind.bytes()).enumerate() {
        let scale = f16::from_f32(0.01 + (number % 7) as f32 * 0.003).to_le_bytes();
        let offset = f16::from_f32((number % 5) as f32 * 0.02 - 0.03).to_le_bytes();
        let at = if kind == BlockKind::Q6_K { 208 } else { 0 };
        block[at..at + 2].copy_from_slice(&scale);
        if matches!(
            kind,
            BlockKind::Q4_1 | BlockKind::Q5_1 | BlockKind::Q4_K | BlockKind::Q5_K
        ) {
            block[2..4].copy_from_slice(&offset);
        }
    }
    all
}

fn activations(count: usize) -> Vec<f32> {
    bytes(count, 9)
        .iter()
        .enumerate()
        .map(|(i, byte)| (f32::from(*byte) - 127.0) / 40.0 * (1 + i % 3) as f32)
        .collect()
}

fn kernels() -> Vec<Kernel> {
    let all = vec![
        Kernel::Portable,
        #[cfg(target_arch = "x86_64")]
        Kernel::Avx2,
        #[cfg(target_arch = "x86_64")]
        Kernel::Vnni,
    ];
    let best = Kernel::detect();
    let count = all.iter().position(|kernel| *kernel == best).unwrap() + 1;
    all.into_iter().take(count).collect()
}

/// The activation at a place, as it was rounded.
fn rounded(codes: &QuantisedActivations, place: usize) -> f64 {
    let [q, r] = [&codes.words, &codes.fine].map(|words| f64::from(words[place / 4].to_le_bytes()[place % 4] as i8));
    f64::from(codes.scales[place / GROUP]) * (q + r / 254.0)
}

#[test]
fn products_are_sums_over_the_dequantised_numbers() {
    let pool = Pool::new(2).unwrap();
    for kind in BlockKind::ALL {
        let (outputs, inputs) = (37, 512);
        let bytes = blocks(kind, outputs * inputs / kind.length());
        let mut numbers = vec![0.0f32; outputs * inputs];
        kind.dequantise(&bytes, &mut numbers);
        let layer = Quantised::new(kind, outputs, inputs, &bytes).unwrap();
        for rows in [1, 3, 4, 13] {
            let x = activations(rows * inputs);
            let mut codes = QuantisedActivations::new(rows, inputs).unwrap();
            codes.fill(&pool, Level::detect(), &x, inputs).unwrap();
            for kernel in kernels() {
                let mut out = vec![0.0f32; rows * outputs];
                let shared = Shared::new(&mut out);
                for panel in 0..outputs.div_ceil(PANEL) {
                    // SAFETY: one thread, and the kernel is one of this processor's.
                    unsafe { kernel.panel(&layer, &codes, panel, shared, 0, outputs, false) }
                }
                for (place, found) in out.iter().enumerate() {
                    let (row, output) = (place / outputs, place % outputs);
                    let weights = &numbers[output * inputs..][..inputs];
                    // The activations as they were rounded: what is left is the kernel's own rounding.
                    let (mut sum, mut size) = (0.0f64, 0.0f64);
                    for (i, w) in weights.iter().enumerate() {
                        let q = rounded(&codes, row * inputs + i);
                        sum += q * f64::from(*w);
                        size += (q * f64::from(*w)).abs();
                    }
                    let exact = !matches!(kind, BlockKind::Q4_K | BlockKind::Q5_K | BlockKind::Q6_K);
                    let allowed = size * if exact { 3e-6 } else { 1e-3 } + 1e-5;
                    assert!(
                        (f64::from(*found) - sum).abs() <= allowed,
                        "{kind:?} {kernel:?} {found} {sum}"
                    );
                }
            }
        }
    }
}

#[test]
fn activations_are_rounded_to_a_part_in_60000_of_the_largest_of_a_group() {
    let pool = Pool::new(1).unwrap();
    let x: Vec<f32> = activations(64 * 20);
    for level in Level::available() {
        let mut codes = QuantisedActivations::new(20, 64).unwrap();
        codes.fill(&pool, level, &x, 64).unwrap();
        for (i, x) in x.iter().enumerate() {
            let a = f64::from(codes.scales[i / GROUP]);
            assert!(
                (rounded(&codes, i) - f64::from(*x)).abs() <= a * 0.5001 / 254.0 + 1e-6,
                "{x}"
            );
        }
    }
    let mut codes = QuantisedActivations::new(1, 32).unwrap();
    codes.fill(&pool, Level::detect(), &[0.0; 32], 32).unwrap();
    assert!(codes.words.iter().all(|word| *word == 0) && codes.scales[0] == 0.0);
    assert!(codes.fill(&pool, Level::detect(), &[0.0; 33], 33).is_err());
    assert!(codes.fill(&pool, Level::detect(), &[0.0; 64], 32).is_err());
}

#[test]
fn several_layers_share_a_loop_and_add() {
    let pool = Pool::new(2).unwrap();
    let (kind, inputs) = (BlockKind::Q4_1, 64);
    let layers = [20, 16, 1].map(|outputs| Quantised::new(kind, outputs, inputs, &blocks(kind, outputs * 2)).unwrap());
    let x = activations(5 * inputs);
    let mut codes = QuantisedActivations::new(5, inputs).unwrap();
    codes.fill(&pool, Level::detect(), &x, inputs).unwrap();
    let stride = 40;
    let targets = [(0, 1), (1, 21), (2, 39)].map(|(layer, column)| Target {
        layer: &layers[layer],
        column,
    });
    let mut out = vec![1.0f32; 5 * stride];
    products(&pool, &codes, &targets, &mut out, stride, true, &|| false).unwrap();
    for target in &targets {
        let mut alone = vec![0.0f32; 5 * target.layer.outputs];
        let own = [Target { column: 0, ..*target }];
        products(&pool, &codes, &own, &mut alone, target.layer.outputs, false, &|| false).unwrap();
        for (row, alone) in alone.chunks_exact(target.layer.outputs).enumerate() {
            for (o, alone) in alone.iter().enumerate() {
                assert_eq!(out[row * stride + target.column + o], 1.0 + alone);
            }
        }
    }
    // Columns that are nobody's stay as they were.
    assert!(
        out.chunks_exact(stride)
            .all(|row| row[0] == 1.0 && row[37..39] == [1.0, 1.0])
    );
    assert!(products(&pool, &codes, &targets, &mut out, 39, false, &|| false).is_err());
}

#[test]
fn rows_are_read_back_and_wrong_sizes_are_errors() {
    for kind in [
        BlockKind::Q4_0,
        BlockKind::Q4_1,
        BlockKind::Q8_0,
        BlockKind::Q5_0,
        BlockKind::Q5_1,
    ] {
        let bytes = blocks(kind, 18 * 2);
        let layer = Quantised::new(kind, 18, 64, &bytes).unwrap();
        let mut numbers = vec![0.0f32; 18 * 64];
        kind.dequantise(&bytes, &mut numbers);
        let mut row = vec![0.0f32; 64];
        for output in [0, 15, 16, 17] {
            layer.row(output, &mut row).unwrap();
            for (found, expected) in row.iter().zip(&numbers[output * 64..]) {
                assert!((found - expected).abs() < 1e-6, "{kind:?} {found} {expected}");
            }
        }
        assert!(layer.row(18, &mut row).is_err());
        assert!(Quantised::new(kind, 18, 64, &bytes[1..]).is_err());
    }
}
