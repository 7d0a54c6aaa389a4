//! Long inputs: memory that grows with the tokens alone, the right numbers at the far end, and the stop hook.

use super::families::{Sizes, qwen3, xlm_roberta};
use super::maker::Random;
use crate::compute::cpu::Level;
use crate::compute::forward::bert::Packed;
use crate::compute::{Pool, Precision, count};
use crate::model::network::Network;
use crate::model::weights::Weights;
use crate::model::{Encoder, Manifest, ModelError, Read, Sequence};
use std::cell::Cell;
use std::time::{Duration, Instant};

const SIZES: Sizes = Sizes {
    hidden: 32,
    heads: 2,
    key_heads: 1,
    width: 16,
    intermediate: 48,
    layers: 1,
};

fn packed(ids: &[u32]) -> Packed {
    Packed {
        ids: ids.to_vec(),
        starts: vec![0, ids.len()],
    }
}

fn dot(a: &[f64], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * *b as f64).sum()
}

/// `x / sqrt(mean(x^2) + 1e-6) * scale`
fn norm(x: &[f64], scale: &[f32]) -> Vec<f64> {
    let square = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    x.iter()
        .zip(scale)
        .map(|(x, scale)| x / (square + 1e-6).sqrt() * *scale as f64)
        .collect()
}

/// The last token's state in f64: one layer, from the formulas.
fn last_state(maker: &super::maker::Maker, ids: &[u32]) -> Vec<f64> {
    let tensor = |name: &str| maker.tensors[name].1.as_slice();
    let layer = |name: &str| tensor(&format!("layers.0.{name}.weight")).to_vec();
    let Sizes {
        hidden, heads, width, ..
    } = SIZES;
    let word = |id: u32| -> Vec<f64> {
        tensor("embed_tokens.weight")[id as usize * hidden..][..hidden]
            .iter()
            .map(|x| *x as f64)
            .collect()
    };
    let times = |x: &[f64], w: &[f32]| -> Vec<f64> { w.chunks(x.len()).map(|row| dot(x, row)).collect() };
    let turn = |x: Vec<f64>, position: usize| -> Vec<f64> {
        let angle = |i: usize| {
            let frequency = (1.0 / 1e6f64.powf(2.0 * i as f64 / width as f64)) as f32;
            (position as f32 * frequency) as f64
        };
        let half = width / 2;
        let low = (0..half).map(|i| x[i] * angle(i).cos() - x[i + half] * angle(i).sin());
        let high = (0..half).map(|i| x[i + half] * angle(i).cos() + x[i] * angle(i).sin());
        low.chain(high).collect()
    };
    let (q_proj, k_proj, v_proj) = (
        layer("self_attn.q_proj"),
        layer("self_attn.k_proj"),
        layer("self_attn.v_proj"),
    );
    let (scale, q_norm, k_norm) = (
        layer("input_layernorm"),
        layer("self_attn.q_norm"),
        layer("self_attn.k_norm"),
    );
    let last = ids.len() - 1;
    let x = word(ids[last]);
    let queries = times(&norm(&x, &scale), &q_proj);
    let queries: Vec<Vec<f64>> = queries
        .chunks(width)
        .map(|head| turn(norm(head, &q_norm), last))
        .collect();
    let (mut sums, mut context) = (vec![0f64; heads], vec![0f64; heads * width]);
    for (position, id) in ids.iter().enumerate() {
        let normed = norm(&word(*id), &scale);
        let key = turn(norm(&times(&normed, &k_proj), &k_norm), position);
        let value = times(&normed, &v_proj);
        for head in 0..heads {
            let score: f64 = queries[head].iter().zip(&key).map(|(q, k)| q * k).sum::<f64>() / (width as f64).sqrt();
            sums[head] += score.exp();
            for i in 0..width {
                context[head * width + i] += score.exp() * value[i];
            }
        }
    }
    context
        .iter_mut()
        .enumerate()
        .for_each(|(i, number)| *number /= sums[i / width]);
    let x: Vec<f64> = x
        .iter()
        .zip(times(&context, &layer("self_attn.o_proj")))
        .map(|(a, b)| a + b)
        .collect();
    let normed = norm(&x, &layer("post_attention_layernorm"));
    let (gates, values) = (
        times(&normed, &layer("mlp.gate_proj")),
        times(&normed, &layer("mlp.up_proj")),
    );
    let gated: Vec<f64> = gates
        .iter()
        .zip(&values)
        .map(|(g, u)| g / (1.0 + (-g).exp()) * u)
        .collect();
    let x: Vec<f64> = x
        .iter()
        .zip(times(&gated, &layer("mlp.down_proj")))
        .map(|(a, b)| a + b)
        .collect();
    norm(&x, tensor("norm.weight"))
}

#[test]
fn memory_grows_with_the_tokens_and_the_far_end_is_right() {
    let maker = qwen3(SIZES);
    let dir = maker.write();
    let manifest = Manifest::read(dir.path()).unwrap();
    let weights = Weights::open(dir.path()).unwrap();
    let network = Network::load(&manifest, &weights, Level::detect(), Precision::F32).unwrap();
    let ids = Random(1).ids(32_768, 258);
    let pool = Pool::new(2).unwrap();
    let run = |length: usize| {
        let batch = packed(&ids[..length]);
        let start = Instant::now();
        let (states, peak) = count::peak(|| network.forward(&pool, &batch, &|| false).unwrap());
        println!("{length} tokens: {peak} bytes, {:?}", start.elapsed());
        (states.to_vec(), peak)
    };
    let ((short, small), (long, large)) = (run(8192), run(32_768));
    // States, queries with keys and values, contexts, and the cosines and sines of each position.
    let row = 4 * (32 + (2 + 2) * 16 + 2 * 16 + 16);
    let fixed = small - 8192 * row;
    assert_eq!(large, 32_768 * row + fixed);
    assert!(fixed < 2 << 20, "{fixed} bytes beside the tokens' own");
    // What a token sees to its left does not depend on what follows.
    assert!(long[..8192 * 32] == short[..]);
    for (states, length) in [(&short, 8192), (&long, 32_768)] {
        let expected = last_state(&maker, &ids[..length]);
        for (found, expected) in states[(length - 1) * 32..].iter().zip(expected) {
            assert!((*found as f64 - expected).abs() < 1e-4, "{length}: {found} {expected}");
        }
    }
}

#[test]
fn bidirectional_models_run_to_their_limit_in_bounded_memory() {
    let dir = xlm_roberta(8194).write();
    let encoder = Encoder::open(dir.path()).unwrap();
    assert_eq!(encoder.manifest().max_tokens, 8192);
    let sequence = |length: usize| Sequence {
        ids: Random(2).ids(length, 20).iter().map(|id| (*id).max(4)).collect(),
        read: Read::Pooled,
    };
    let pool = Pool::new(2).unwrap();
    let peak = |length: usize| count::peak(|| encoder.encode(&pool, &[sequence(length)]).unwrap());
    let ((_, small), (vectors, large)) = (peak(4096), peak(8192));
    assert!(large < 2 * small && large < 8192 * 8192, "{small} {large}");
    let both = encoder
        .encode(&Pool::new(1).unwrap(), &[sequence(30), sequence(8192), sequence(700)])
        .unwrap();
    assert_eq!(both[1], vectors[0]);
    let error = encoder.encode(&pool, &[sequence(8193)]).unwrap_err();
    assert!(
        matches!(&error, ModelError::Sequence { what, .. } if what.contains("8192")),
        "{error}"
    );
}

#[test]
fn a_long_attention_is_stopped_soon() {
    let sizes = Sizes {
        heads: 8,
        key_heads: 1,
        width: 64,
        ..SIZES
    };
    let encoder = Encoder::open(qwen3(sizes).write().path()).unwrap();
    let sequence = Sequence {
        ids: Random(1).ids(32_768, 258),
        read: Read::Pooled,
    };
    let pool = Pool::new(2).unwrap();
    let start = Instant::now();
    let (asked, longest, last) = (Cell::new(0), Cell::new(Duration::ZERO), Cell::new(start));
    let stop = || {
        asked.set(asked.get() + 1);
        longest.set(longest.get().max(last.get().elapsed()));
        last.set(Instant::now());
        start.elapsed() > Duration::from_millis(1500)
    };
    let error = encoder.encode_until(&pool, &[sequence], &stop).unwrap_err();
    let after = last.get().elapsed();
    assert!(matches!(error, ModelError::Stopped), "{error}");
    println!(
        "asked {} times, at most {:?} apart; over {after:?} after the answer",
        asked.get(),
        longest.get()
    );
    // Generous, for a machine that is busy: a task of this attention takes some 20 ms.
    assert!(longest.get() < Duration::from_millis(500) && after < Duration::from_millis(500));
    assert!(asked.get() > 20, "{}", asked.get());
}
