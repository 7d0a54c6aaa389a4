//! Decoders against the formulas in f64, over weights that are bf16 already.

use super::super::bert::LinearWeights;
use super::super::decoder::{Decoder, DecoderLayerWeights, DecoderShape, DecoderWeights, rotations};
use super::super::testing::bench;
use super::super::{Range, Request, Runner};
use super::{random, relative_error};
use crate::compute::ComputeError;
use half::bf16;

const HIDDEN: usize = 64;
const HEADS: usize = 4;
const KEY_HEADS: usize = 2;
const SIZE: usize = 32;
const INNER: usize = 96;
const VOCABULARY: usize = 40;
const EPSILON: f64 = 1e-6;

fn matrix(outputs: usize, inputs: usize, seed: u64, bias: bool) -> LinearWeights {
    let factor = (3.0 / inputs as f32).sqrt();
    let round = |x: f32| bf16::from_f32(x).to_f32();
    LinearWeights {
        weight: random(outputs * inputs, seed)
            .iter()
            .map(|x| round(x * factor))
            .collect(),
        bias: bias.then(|| random(outputs, seed + 1)),
    }
}

fn around_one(count: usize, seed: u64) -> Vec<f32> {
    random(count, seed).iter().map(|x| 1.0 + 0.3 * x).collect()
}

fn layer(number: u64, head_norms: bool) -> DecoderLayerWeights {
    let seed = 100 * (number + 1);
    DecoderLayerWeights {
        attention_norm: around_one(HIDDEN, seed),
        qkv: matrix((HEADS + 2 * KEY_HEADS) * SIZE, HIDDEN, seed + 10, !head_norms),
        head_norms: head_norms.then(|| (around_one(SIZE, seed + 20), around_one(SIZE, seed + 21))),
        attention_output: matrix(HIDDEN, HEADS * SIZE, seed + 30, false),
        feed_forward_norm: around_one(HIDDEN, seed + 40),
        gate_up: matrix(2 * INNER, HIDDEN, seed + 50, false),
        down: matrix(HIDDEN, INNER, seed + 60, false),
    }
}

fn linear(weights: &LinearWeights, x: &[f64]) -> Vec<f64> {
    let rows = weights.weight.chunks(x.len()).enumerate();
    let product = |(row, weight): (usize, &[f32])| {
        let sum: f64 = weight.iter().zip(x).map(|(weight, x)| f64::from(*weight) * x).sum();
        sum + weights.bias.as_ref().map_or(0.0, |bias| f64::from(bias[row]))
    };
    rows.map(product).collect()
}

fn rms(x: &[f64], scale: &[f32]) -> Vec<f64> {
    let square = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    x.iter()
        .zip(scale)
        .map(|(x, scale)| x / (square + EPSILON).sqrt() * f64::from(*scale))
        .collect()
}

/// Token vectors of one sequence.
fn expected(ids: &[u32], head_norms: bool, window: Option<usize>, layers: u64) -> Vec<Vec<f64>> {
    let words = random(VOCABULARY * HIDDEN, 1);
    let row = |id: &u32| {
        words[*id as usize * HIDDEN..][..HIDDEN]
            .iter()
            .map(|x| f64::from(*x))
            .collect()
    };
    let mut x: Vec<Vec<f64>> = ids.iter().map(row).collect();
    for number in 0..layers {
        let layer = layer(number, head_norms);
        let mut qkv: Vec<Vec<f64>> = x
            .iter()
            .map(|x| linear(&layer.qkv, &rms(x, &layer.attention_norm)))
            .collect();
        for (position, row) in qkv.iter_mut().enumerate() {
            for head in 0..HEADS + KEY_HEADS {
                let numbers = &mut row[head * SIZE..(head + 1) * SIZE];
                if let Some((query, key)) = &layer.head_norms {
                    let normed = rms(numbers, if head < HEADS { query } else { key });
                    numbers.copy_from_slice(&normed);
                }
                for i in 0..SIZE / 2 {
                    let angle = position as f64 / 1e6f64.powf(2.0 * i as f64 / SIZE as f64);
                    let (a, b) = (numbers[i], numbers[i + SIZE / 2]);
                    numbers[i] = a * angle.cos() - b * angle.sin();
                    numbers[i + SIZE / 2] = b * angle.cos() + a * angle.sin();
                }
            }
        }
        for (position, x) in x.iter_mut().enumerate() {
            let mut context = Vec::new();
            for head in 0..HEADS {
                let key_head = head / (HEADS / KEY_HEADS);
                let part = |token: usize, place: usize| &qkv[token][place * SIZE..(place + 1) * SIZE];
                let first = window.map_or(0, |window| (position + 1).saturating_sub(window));
                let weights: Vec<f64> = (first..=position)
                    .map(|token| {
                        let pairs = part(position, head).iter().zip(part(token, HEADS + key_head));
                        (pairs.map(|(q, k)| q * k).sum::<f64>() / (SIZE as f64).sqrt()).exp()
                    })
                    .collect();
                let total: f64 = weights.iter().sum();
                let value = |token: usize, i: usize| part(token, HEADS + KEY_HEADS + key_head)[i];
                context.extend((0..SIZE).map(|i| {
                    (first..=position)
                        .map(|token| weights[token - first] * value(token, i))
                        .sum::<f64>()
                        / total
                }));
            }
            let attended = linear(&layer.attention_output, &context);
            x.iter_mut().zip(attended).for_each(|(x, y)| *x += y);
            let gate_up = linear(&layer.gate_up, &rms(x, &layer.feed_forward_norm));
            let (gate, up) = gate_up.split_at(INNER);
            let gated: Vec<f64> = gate
                .iter()
                .zip(up)
                .map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up)
                .collect();
            x.iter_mut().zip(linear(&layer.down, &gated)).for_each(|(x, y)| *x += y);
        }
    }
    let scale = around_one(HIDDEN, 2);
    x.iter().map(|x| rms(x, &scale)).collect()
}

#[test]
fn decoders_equal_the_formula() {
    let Some(bench) = bench() else { return };
    let lengths = [1usize, 90, 33, 130];
    let sequences: Vec<Vec<u32>> = lengths
        .iter()
        .map(|length| (0..*length).map(|i| ((i * 11 + length) % VOCABULARY) as u32).collect())
        .collect();
    for (head_norms, window, layers) in [(true, None, 3), (false, Some(20), 2), (false, None, 0)] {
        let shape = DecoderShape {
            hidden: HIDDEN,
            heads: HEADS,
            key_heads: KEY_HEADS,
            head_size: SIZE,
            intermediate: INNER,
            epsilon: EPSILON as f32,
            window,
        };
        let weights = DecoderWeights {
            words: random(VOCABULARY * HIDDEN, 1),
            norm: around_one(HIDDEN, 2),
            rotations: rotations(1e6, SIZE, 200).unwrap(),
        };
        let given = (0..layers).map(|number| Ok::<_, ComputeError>(layer(number, head_norms)));
        let decoder = Decoder::new(&bench.engine, shape, weights, given).unwrap();
        let runner = Runner::new(&bench.engine, Box::new(decoder)).unwrap();
        // The last token, and the mean.
        let requests: Vec<Request> = sequences
            .iter()
            .map(|ids| {
                let end = ids.len() as u32;
                let range = |start| Range {
                    start,
                    end,
                    largest: false,
                    unit: false,
                };
                Request {
                    ids,
                    ranges: vec![range(end - 1), range(0)],
                }
            })
            .collect();
        let found = runner.run(&requests, &|| false).unwrap();
        for (ids, found) in sequences.iter().zip(found.chunks(2)) {
            let states = expected(ids, head_norms, window, layers);
            let count = states.len() as f64;
            let mean: Vec<f64> = (0..HIDDEN)
                .map(|i| states.iter().map(|row| row[i]).sum::<f64>() / count)
                .collect();
            for (found, expected) in found.iter().zip([&states[ids.len() - 1], &mean]) {
                let error = relative_error(found.iter().copied(), expected);
                assert!(error < 0.02, "{head_norms} {window:?} {} tokens: {error}", ids.len());
            }
        }
    }
}
