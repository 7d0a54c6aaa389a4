//! Products of every precision against sums in f64, and what must have the same bits.

use super::*;

/// Numbers in -1..1 from a small generator with a fixed seed.
fn numbers(count: usize, mut seed: u64) -> Vec<f32> {
    let mut next = || {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn run(layer: &Linear, x: &[f32], epilogue: Epilogue, start: &[f32]) -> Vec<f32> {
    let mut out = start.to_vec();
    let mut rows = Rows::new(x.len() / layer.inputs(), layer.inputs()).unwrap();
    let prepared = layer.prepare(x, &mut rows);
    let outputs = layer.outputs();
    // SAFETY: one task, and `x` is another slice.
    unsafe { layer.product(prepared, 0..layer.panels(), Shared::new(&mut out), 0, outputs, epilogue) };
    out
}

/// (rows, inputs, outputs) around the borders of tiles, panels and words.
const SHAPES: [(usize, usize, usize); 8] = [
    (1, 1, 1),
    (3, 5, 7),
    (14, 32, 32),
    (15, 33, 33),
    (29, 384, 70),
    (2, 1024, 31),
    (6, 7, 16),
    (13, 130, 129),
];

#[test]
fn products_equal_sums_in_f64() {
    for level in Level::available() {
        for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
            if precision.check().is_err() {
                println!("SKIPPED: no instructions for {}", precision.name());
                continue;
            }
            for (rows, inputs, outputs) in SHAPES {
                let (x, weights) = (numbers(rows * inputs, 1), numbers(outputs * inputs, 2));
                let (bias, start) = (numbers(outputs, 3), numbers(rows * outputs, 4));
                let layer = Linear::new(level, precision, &weights, &bias, inputs).unwrap();
                let tolerance = match precision {
                    Precision::F32 => 2e-6 * inputs as f64,
                    Precision::Bf16 => 0.012 * (inputs as f64).sqrt(),
                    Precision::Int8 => 0.012 * (inputs as f64).sqrt(),
                };
                let plain = run(&layer, &x, Epilogue::Bias, &start);
                let relu = run(&layer, &x, Epilogue::Activate(crate::compute::Activation::Relu), &start);
                let added = run(&layer, &x, Epilogue::Residual, &start);
                for row in 0..rows {
                    for column in 0..outputs {
                        let products = x[row * inputs..][..inputs].iter().zip(&weights[column * inputs..]);
                        let sum: f64 = products.map(|(a, b)| *a as f64 * *b as f64).sum();
                        let expected = sum + bias[column] as f64;
                        let at = row * outputs + column;
                        let error = (plain[at] as f64 - expected).abs();
                        assert!(
                            error <= tolerance,
                            "{level:?} {precision:?} {rows} x {inputs} x {outputs}: {error}"
                        );
                        assert_eq!(relu[at], plain[at].max(0.0));
                        assert_eq!(added[at], plain[at] + start[at]);
                    }
                }
            }
        }
    }
}

#[test]
fn a_row_is_bit_equal_alone_and_among_others() {
    for level in Level::available() {
        for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
            if precision.check().is_err() {
                continue;
            }
            let (x, weights, bias) = (numbers(40 * 100, 1), numbers(50 * 100, 2), numbers(50, 3));
            let layer = Linear::new(level, precision, &weights, &bias, 100).unwrap();
            let all = run(&layer, &x, Epilogue::Bias, &vec![0.0; 40 * 50]);
            for row in 0..40 {
                let alone = run(&layer, &x[row * 100..][..100], Epilogue::Bias, &[0.0; 50]);
                assert_eq!(alone, all[row * 50..][..50], "{level:?} {precision:?} row {row}");
            }
        }
    }
}

#[test]
fn constant_and_zero_rows_are_quantised() {
    if Precision::Int8.check().is_err() {
        return;
    }
    let weights = numbers(8 * 10, 2);
    let layer = Linear::new(Level::detect(), Precision::Int8, &weights, &[0.5; 8], 10).unwrap();
    assert_eq!(run(&layer, &[0.0; 10], Epilogue::Bias, &[0.0; 8]), [0.5; 8]);
    let ones = run(&layer, &[1.0; 10], Epilogue::Bias, &[0.0; 8]);
    for (column, y) in ones.into_iter().enumerate() {
        let expected: f32 = weights[column * 10..][..10].iter().sum::<f32>() + 0.5;
        assert!((y - expected).abs() < 0.05, "{y} {expected}");
    }
}

#[test]
fn wrong_shapes_are_errors() {
    assert!(matches!(
        Linear::new(Level::Portable, Precision::F32, &[0.0; 5], &[0.0; 2], 3),
        Err(ComputeError::Shape(_))
    ));
}

#[test]
fn parts_columns_and_planes_hold_the_same_numbers() {
    for level in Level::available() {
        for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
            if precision.check().is_err() {
                println!("SKIPPED: no instructions for {}", precision.name());
                continue;
            }
            for (rows, inputs, outputs) in [(17, 384, 128), (3, 1536, 64), (15, 1000, 64)] {
                let (x, weights) = (numbers(rows * inputs, 1), numbers(outputs * inputs, 2));
                let peaks = numbers(inputs, 5);
                let layer = Linear::calibrated(level, precision, &weights, &numbers(outputs, 3), inputs, Some(&peaks));
                let layer = layer.unwrap();
                let whole = run(&layer, &x, Epilogue::Bias, &vec![0.0; rows * outputs]);
                let what = format!("{level:?} {precision:?} {rows} x {inputs} x {outputs}");
                let mut memory = Rows::new(rows, inputs).unwrap();
                if let Some(part) = layer.part() {
                    for (number, first) in (0..inputs).step_by(part).enumerate() {
                        let width = part.min(inputs - first);
                        let columns = x.chunks(inputs).flat_map(|row| &row[first..first + width]);
                        layer.prepare_part(number, &columns.copied().collect::<Vec<f32>>(), &mut memory);
                    }
                } else {
                    x.chunks(5 * inputs)
                        .enumerate()
                        .for_each(|(number, some)| layer.prepare_rows(5 * number, some, &mut memory));
                }
                let input = layer.ready(&x, &memory);
                // Two panels of columns by themselves.
                let width = 2 * layer.panel_columns();
                let mut some = vec![f32::NAN; rows * width];
                layer.columns(input, 0..2, &mut some, Epilogue::Bias);
                for (some, whole) in some.chunks(width).zip(whole.chunks(outputs)) {
                    assert_eq!(*some, whole[..width], "{what}");
                }
                // Planes of 32 columns, in the midst of more rows.
                let (tokens, first) = (rows + 4, 3);
                let mut planes = vec![f32::NAN; tokens * outputs];
                // SAFETY: one task, and `x` is another slice.
                unsafe {
                    layer.product_planes(input, 0..layer.panels(), Shared::new(&mut planes), first, [tokens, 32]);
                }
                let mut rounded = vec![0f32; tokens * outputs / 2];
                if level::has_bf16() || level < Level::Avx512 {
                    // SAFETY: as above; the instructions are there where the level has some.
                    unsafe {
                        layer.rounded_planes(input, 0..layer.panels(), Shared::new(&mut rounded), first, [tokens, 32]);
                    }
                }
                for (number, whole) in whole.chunks(outputs).enumerate() {
                    for (column, whole) in whole.iter().enumerate() {
                        let at = column / 32 * tokens * 32 + (first + number) * 32 + column % 32;
                        assert_eq!(planes[at], *whole, "{what}");
                        if level::has_bf16() || level < Level::Avx512 {
                            let bits = (rounded[at / 2].to_bits() >> (at % 2 * 16)) as u16;
                            assert_eq!(bits, bf16::from_f32(*whole).to_bits(), "{what}");
                        }
                    }
                }
                assert!(
                    planes[..first * 32].iter().all(|x| x.is_nan()),
                    "rows of others are left alone"
                );
            }
        }
    }
}
