//! Kernels that work row by row: embedding, norms, activations, rotary positions, pooling.

use super::super::decoder::rotations;
use super::super::gpu::{Memory, Plain, Stream};
use super::super::launch::{Embedding, Norm};
use super::super::testing::bench;
use super::{random, relative_error, rounded};
use crate::compute::Activation;
use crate::compute::LayerNorm;
use crate::compute::cpu::level::Level;
use crate::compute::rowwise::pooling;
use half::bf16;

/// Relative error of one rounding to bf16, with room for sums in another order.
const ROUNDING: f64 = 2.5e-3;

fn wide(numbers: &[f32]) -> Vec<f64> {
    numbers.iter().map(|number| f64::from(*number)).collect()
}

fn narrow(numbers: Vec<bf16>) -> impl Iterator<Item = f32> {
    numbers.into_iter().map(|number| number.to_f32())
}

fn upload<T: Plain>(stream: &Stream, numbers: &[T]) -> Memory<T> {
    Memory::from_slice(stream, numbers).unwrap()
}

const WIDTHS: [usize; 7] = [8, 24, 384, 512, 1024, 2048, 4096];

#[test]
fn layer_norms_equal_the_cpu() {
    let Some(bench) = bench() else { return };
    let stream = &Stream::new(&bench.engine.gpu).unwrap();
    let launch = bench.engine.on(stream);
    for width in WIDTHS {
        let rows = 7;
        let (scale, shift) = (random(width, 1), random(width, 2));
        let norm = Norm {
            scale: upload(stream, &scale),
            shift: upload(stream, &shift),
            epsilon: 1e-5,
        };
        let twin = LayerNorm::new(&scale, &shift, 1e-5).unwrap();
        let (words, positions) = (random(20 * width, 3), random(9 * width, 4));
        let ids: Vec<u32> = (0..rows as u32).map(|row| row * 11 % 20).collect();
        let places: Vec<u32> = (0..rows as u32).map(|row| 8 - row).collect();
        let mut expected = Vec::new();
        for (id, place) in ids.iter().zip(&places) {
            let (word, position) = (&words[*id as usize * width..], &positions[*place as usize * width..]);
            expected.extend((0..width).map(|i| word[i] + position[i]));
        }
        twin.apply(Level::detect(), &mut expected);
        let out = Memory::<bf16>::new(&bench.engine.gpu, rows * width).unwrap();
        let tables = [words, positions].map(|table| upload(stream, &rounded(&table)));
        let embedding = Embedding {
            ids: &upload(stream, &ids),
            places: &upload(stream, &places),
            words: &tables[0],
            positions: &tables[1],
        };
        launch.embed_layer_norm(&embedding, &norm, &out, rows, width).unwrap();
        let error = relative_error(narrow(out.to_vec(stream).unwrap()), &wide(&expected));
        assert!(error < ROUNDING, "embedding of {width}: {error}");

        let (x, y) = (random(rows * width, 5), random(rows * width, 6));
        let mut expected: Vec<f32> = x.iter().zip(&y).map(|(x, y)| x + y).collect();
        twin.apply(Level::detect(), &mut expected);
        let sum = upload(stream, &rounded(&x));
        launch
            .residual_layer_norm(&sum, &upload(stream, &rounded(&y)), &norm, rows, width)
            .unwrap();
        let error = relative_error(narrow(sum.to_vec(stream).unwrap()), &wide(&expected));
        assert!(error < ROUNDING, "residual of {width}: {error}");
    }
}

#[test]
fn rms_norms_equal_the_formula() {
    let Some(bench) = bench() else { return };
    let stream = &Stream::new(&bench.engine.gpu).unwrap();
    let launch = bench.engine.on(stream);
    for width in WIDTHS {
        let rows = 6;
        let (x, y, scale) = (random(rows * width, 1), random(rows * width, 2), random(width, 3));
        let norm = |sums: &[f64]| -> Vec<f64> {
            let normed = sums.chunks(width).flat_map(|row| {
                let square = row.iter().map(|x| x * x).sum::<f64>() / width as f64;
                let scale = &scale;
                row.iter()
                    .enumerate()
                    .map(move |(i, x)| x / (square + 1e-6).sqrt() * f64::from(scale[i]))
            });
            normed.collect()
        };
        let (residual, summand) = (upload(stream, &x), upload(stream, &rounded(&y)));
        let out = Memory::<bf16>::new(&bench.engine.gpu, rows * width).unwrap();
        let scales = upload(stream, &scale);
        launch
            .residual_rms_norm(&residual, None, &scales, 1e-6, &out, rows, width)
            .unwrap();
        let error = relative_error(narrow(out.to_vec(stream).unwrap()), &norm(&wide(&x)));
        assert!(error < ROUNDING, "{width}: {error}");
        assert!(residual.to_vec(stream).unwrap() == x, "{width}: the residual changed");
        launch
            .residual_rms_norm(&residual, Some(&summand), &scales, 1e-6, &out, rows, width)
            .unwrap();
        let sums: Vec<f64> = x.iter().zip(&y).map(|(x, y)| f64::from(*x) + f64::from(*y)).collect();
        let error = relative_error(narrow(out.to_vec(stream).unwrap()), &norm(&sums));
        assert!(error < ROUNDING, "{width}: {error}");
        let error = relative_error(residual.to_vec(stream).unwrap(), &sums);
        assert!(error < 1e-6, "{width}: residual {error}");

        let words = random(5 * width, 4);
        let table = upload(stream, &rounded(&words));
        launch
            .embed_tokens(&upload(stream, &[3u32, 0, 4, 4, 1, 2]), &table, &residual, rows, width)
            .unwrap();
        let expected: Vec<f32> = [3, 0, 4, 4, 1, 2]
            .iter()
            .flat_map(|id| &words[id * width..][..width])
            .copied()
            .collect();
        assert!(residual.to_vec(stream).unwrap() == expected, "{width}: tokens");
    }
}

/// erf by its series and continued fraction would be long; the integral of its derivative by Simpson's rule is exact to
/// 1e-12 with this many steps.
fn erf(x: f64) -> f64 {
    let steps = 2000;
    let width = x / f64::from(steps);
    let f = |t: f64| (-t * t).exp();
    let inner = |i: i32| f(f64::from(i) * width) * if i % 2 == 1 { 4.0 } else { 2.0 };
    let sum = f(0.0) + f(x) + (1..steps).map(inner).sum::<f64>();
    sum * width / 3.0 * 2.0 / std::f64::consts::PI.sqrt()
}

#[test]
fn activations_equal_the_formula() {
    let Some(bench) = bench() else { return };
    let stream = &Stream::new(&bench.engine.gpu).unwrap();
    let launch = bench.engine.on(stream);
    let (rows, width) = (9, 104);
    let x: Vec<f32> = random(rows * width, 1).iter().map(|x| x * 6.0).collect();
    let x: Vec<f32> = rounded(&x).into_iter().map(f32::from).collect();
    let bias = random(width, 2);
    for activation in [Activation::Gelu, Activation::GeluTanh, Activation::Relu] {
        for biased in [false, true] {
            let f = |(i, x): (usize, &f32)| {
                let x = f64::from(*x) + if biased { f64::from(bias[i % width]) } else { 0.0 };
                match activation {
                    Activation::Gelu => x / 2.0 * (1.0 + erf(x / 2f64.sqrt())),
                    Activation::GeluTanh => {
                        x / 2.0 * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
                    }
                    Activation::Relu => x.max(0.0),
                    Activation::Silu => x / (1.0 + (-x).exp()),
                }
            };
            let expected: Vec<f64> = x.iter().enumerate().map(f).collect();
            let out = upload(stream, &rounded(&x));
            let shift = upload(stream, &rounded(&bias));
            launch
                .bias_activation(&out, biased.then_some(&shift), activation, rows, width)
                .unwrap();
            let error = relative_error(narrow(out.to_vec(stream).unwrap()), &expected);
            assert!(error < ROUNDING, "{activation:?} {biased}: {error}");
        }
    }
    let gate_up: Vec<f32> = random(rows * 2 * width, 3).iter().map(|x| x * 8.0).collect();
    let expected: Vec<f64> = (0..rows * width)
        .map(|i| {
            let row = &gate_up[i / width * 2 * width..];
            let (gate, up) = (f64::from(row[i % width]), f64::from(row[width + i % width]));
            gate / (1.0 + (-gate).exp()) * up
        })
        .collect();
    let out = Memory::<bf16>::new(&bench.engine.gpu, rows * width).unwrap();
    launch
        .swiglu(&upload(stream, &rounded(&gate_up)), &out, rows, width)
        .unwrap();
    let error = relative_error(narrow(out.to_vec(stream).unwrap()), &expected);
    assert!(error < ROUNDING, "SwiGLU: {error}");
}

#[test]
fn rotary_positions_equal_the_formula() {
    let Some(bench) = bench() else { return };
    let stream = &Stream::new(&bench.engine.gpu).unwrap();
    let launch = bench.engine.on(stream);
    for (size, normed) in [(32, true), (64, false), (96, true), (128, true), (128, false)] {
        let (heads, key_heads, rows, epsilon) = (4, 2, 5, 1e-6f32);
        let stride = (heads + 2 * key_heads) * size;
        let x = random(rows * stride, size as u64);
        let scales = [random(size, 8), random(size, 9)];
        let places = [0u32, 3, 100, 7, 1];
        let mut expected = wide(&x);
        for row in 0..rows {
            for head in 0..heads + key_heads {
                let numbers = &mut expected[row * stride + head * size..][..size];
                if normed {
                    let square = numbers.iter().map(|x| x * x).sum::<f64>() / size as f64;
                    let scale = &scales[usize::from(head >= heads)];
                    for (number, scale) in numbers.iter_mut().zip(scale) {
                        *number *= f64::from(*scale) / (square + f64::from(epsilon)).sqrt();
                    }
                }
                for i in 0..size / 2 {
                    let angle = f64::from(places[row]) / 1e4f64.powf(2.0 * i as f64 / size as f64);
                    let (a, b) = (numbers[i], numbers[i + size / 2]);
                    numbers[i] = a * angle.cos() - b * angle.sin();
                    numbers[i + size / 2] = b * angle.cos() + a * angle.sin();
                }
            }
        }
        let qkv = upload(stream, &rounded(&x));
        let table = upload(stream, &rotations(1e4, size, 101).unwrap());
        let scales = scales.map(|scale| upload(stream, &scale));
        let pair = normed.then_some((&scales[0], &scales[1]));
        let places = upload(stream, &places);
        launch
            .rope(&qkv, &places, &table, pair, epsilon, rows, (heads, key_heads), size)
            .unwrap();
        let error = relative_error(narrow(qkv.to_vec(stream).unwrap()), &expected);
        assert!(error < ROUNDING, "{size} {normed}: {error}");
    }
}

#[test]
fn pooling_equals_the_cpu() {
    let Some(bench) = bench() else { return };
    let stream = &Stream::new(&bench.engine.gpu).unwrap();
    for width in [8, 384, 1024] {
        let x = random(50 * width, 1);
        let spans = [(0, 50), (3, 4), (10, 27), (49, 50)];
        let flags = [(false, false), (false, true), (true, false), (true, true)];
        let list: Vec<[u32; 4]> = flags
            .iter()
            .flat_map(|(largest, unit)| spans.map(|(start, end)| [start, end, u32::from(*largest), u32::from(*unit)]))
            .collect();
        let out = Memory::<f32>::new(&bench.engine.gpu, list.len() * width).unwrap();
        let from = upload(stream, &rounded(&x));
        bench
            .engine
            .on(stream)
            .pool_spans(&from, &upload(stream, &list), list.len(), &out, width)
            .unwrap();
        let found = out.to_vec(stream).unwrap();
        for (span, found) in list.iter().zip(found.chunks(width)) {
            let rows = &x[span[0] as usize * width..span[1] as usize * width];
            let mut expected = if span[2] == 1 {
                pooling::max(rows, width)
            } else {
                pooling::mean(rows, width)
            };
            if span[3] == 1 {
                pooling::normalize(&mut expected);
            }
            let error = relative_error(found.iter().copied(), &wide(&expected));
            assert!(error < 1e-6, "{width} {span:?}: {error}");
        }
    }
}
