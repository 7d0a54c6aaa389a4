//! Attention: every head size, causal and not, grouped queries, several sequences of odd lengths, both tile sizes.

use super::super::gpu::{Memory, Stream};
use super::super::launch::Heads;
use super::super::testing::{Bench, bench};
use super::{random, relative_error, rounded};
use half::bf16;

struct Case {
    size: usize,
    heads: usize,
    key_heads: usize,
    causal: bool,
    window: Option<usize>,
    lengths: Vec<usize>,
}

/// The formula in f64, over numbers that are bf16 already.
fn expected(case: &Case, qkv: &[f32]) -> Vec<f64> {
    let Case {
        size,
        heads,
        key_heads,
        causal,
        ..
    } = *case;
    let stride = (heads + 2 * key_heads) * size;
    let mut out = Vec::new();
    let mut start = 0;
    for &length in &case.lengths {
        for q in 0..length {
            for head in 0..heads {
                let at =
                    |token: usize, place: usize, i: usize| f64::from(qkv[(start + token) * stride + place * size + i]);
                let key_head = head / (heads / key_heads);
                let seen = if causal { q + 1 } else { length };
                let first = case.window.map_or(0, |window| (q + 1).saturating_sub(window));
                let score = |k: usize| {
                    let sum: f64 = (0..size).map(|i| at(q, head, i) * at(k, heads + key_head, i)).sum();
                    sum / (size as f64).sqrt()
                };
                let scores: Vec<f64> = (first..seen).map(score).collect();
                let largest = scores.iter().copied().fold(f64::MIN, f64::max);
                let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
                let total: f64 = weights.iter().sum();
                out.extend((0..size).map(|i| {
                    let sum: f64 = (first..seen)
                        .map(|k| weights[k - first] * at(k, heads + key_heads + key_head, i))
                        .sum();
                    sum / total
                }));
            }
        }
        start += length;
    }
    out
}

fn run(bench: &Bench, case: &Case, qkv: &[f32], warps: usize) -> Vec<bf16> {
    let stream = Stream::new(&bench.engine.gpu).unwrap();
    let tokens: usize = case.lengths.iter().sum();
    let mut tiles = Vec::new();
    let mut start = 0;
    for &length in &case.lengths {
        tiles.extend(
            (0..length)
                .step_by(warps * 16)
                .map(|row| [start as u32, length as u32, row as u32, 0]),
        );
        start += length;
    }
    // A tile that means nothing, as short batches have them.
    tiles.push([0; 4]);
    let from = Memory::from_slice(&stream, &rounded(qkv)).unwrap();
    let out = Memory::<bf16>::from_slice(&stream, &vec![bf16::NAN; tokens * case.heads * case.size]).unwrap();
    let tile_list = Memory::from_slice(&stream, &tiles).unwrap();
    let heads = Heads {
        tiles: &tile_list,
        tile_count: tiles.len(),
        warps,
        heads: case.heads,
        key_heads: case.key_heads,
        size: case.size,
        causal: case.causal,
        window: case.window,
    };
    bench.engine.on(&stream).attention(&from, &out, &heads, tokens).unwrap();
    out.to_vec(&stream).unwrap()
}

#[test]
fn equals_the_formula() {
    let Some(bench) = bench() else { return };
    for size in [32, 64, 96, 128] {
        for (causal, window) in [
            (false, None),
            (true, None),
            (true, Some(1)),
            (true, Some(70)),
            (true, Some(150)),
        ] {
            if window.is_some() && !matches!(size, 64 | 96) {
                continue;
            }
            for (heads, key_heads) in [(1, 1), (4, 2)] {
                let lengths = vec![1, 65, 3, 180, 64];
                let case = Case {
                    size,
                    heads,
                    key_heads,
                    causal,
                    window,
                    lengths,
                };
                let tokens: usize = case.lengths.iter().sum();
                // Wide scores: the softmax is far from flat.
                let mut qkv = random(tokens * (heads + 2 * key_heads) * size, size as u64 + heads as u64);
                for (i, number) in qkv.iter_mut().enumerate() {
                    let place = i % ((heads + 2 * key_heads) * size) / size;
                    *number *= if place < heads { 4.0 } else { 1.0 };
                }
                let expected = expected(&case, &qkv);
                let four = run(&bench, &case, &qkv, 4);
                let error = relative_error(four.iter().map(|number| number.to_f32()), &expected);
                assert!(error < 4e-3, "{size} {causal} {window:?} {heads}/{key_heads}: {error}");
                // How many rows a block has does not touch a row's bits.
                assert!(
                    four == run(&bench, &case, &qkv, 8),
                    "{size} {causal} {window:?} {heads}/{key_heads}"
                );
            }
        }
    }
}

#[test]
fn a_sequence_has_the_same_bits_alone_and_beside_others() {
    let Some(bench) = bench() else { return };
    let (size, heads) = (64, 2);
    let lengths = vec![17, 130, 5];
    let case = Case {
        size,
        heads,
        key_heads: heads,
        causal: false,
        window: None,
        lengths,
    };
    let stride = 3 * heads * size;
    let qkv = random(152 * stride, 3);
    let all = run(&bench, &case, &qkv, 4);
    let mut start = 0;
    for &length in &case.lengths {
        let alone = Case {
            lengths: vec![length],
            ..Case {
                size,
                heads,
                key_heads: heads,
                causal: false,
                window: None,
                lengths: vec![],
            }
        };
        let found = run(&bench, &alone, &qkv[start * stride..(start + length) * stride], 8);
        assert!(found == all[start * heads * size..(start + length) * heads * size]);
        start += length;
    }
}
