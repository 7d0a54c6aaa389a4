//! Whole passes, and what the runner does when memory is short or the GPU goes away.

use super::super::bert::{Bert, BertShape, EmbeddingWeights, LayerWeights, LinearWeights, NormWeights};
use super::super::engine::Engine;
use super::super::testing::{self, Platform, bench};
use super::super::{Range, Request, Runner};
use super::{random, relative_error};
use crate::compute::cpu::level::Level;
use crate::compute::forward::bert::{Bert as Twin, Layer, Packed};
use crate::compute::rowwise::pooling;
use crate::compute::{Activation, ComputeError, LayerNorm, Linear, Pool, Precision};
use std::path::Path;
use std::sync::Arc;

const HIDDEN: usize = 128;
const HEADS: usize = 4;
const INNER: usize = 256;
const VOCABULARY: usize = 50;
const POSITIONS: usize = 300;

/// Weights that keep numbers near 1.
fn matrix(outputs: usize, inputs: usize, seed: u64) -> LinearWeights {
    let factor = (3.0 / inputs as f32).sqrt();
    LinearWeights {
        weight: random(outputs * inputs, seed).iter().map(|x| x * factor).collect(),
        bias: Some(random(outputs, seed + 1).iter().map(|x| x * 0.1).collect()),
    }
}

fn around_one(count: usize, seed: u64) -> Vec<f32> {
    random(count, seed).iter().map(|x| 1.0 + 0.2 * x).collect()
}

fn norm(seed: u64) -> NormWeights {
    NormWeights {
        scale: around_one(HIDDEN, seed),
        shift: random(HIDDEN, seed + 1).iter().map(|x| x * 0.1).collect(),
    }
}

fn layer(number: u64) -> LayerWeights {
    let seed = 1000 * (number + 1);
    LayerWeights {
        qkv: matrix(3 * HIDDEN, HIDDEN, seed),
        attention_output: matrix(HIDDEN, HIDDEN, seed + 10),
        attention_norm: norm(seed + 20),
        up: matrix(INNER, HIDDEN, seed + 30),
        down: matrix(HIDDEN, INNER, seed + 40),
        output_norm: norm(seed + 50),
    }
}

fn embedding() -> EmbeddingWeights {
    EmbeddingWeights {
        words: random(VOCABULARY * HIDDEN, 1),
        positions: random(POSITIONS * HIDDEN, 2),
        norm: norm(3),
    }
}

fn runner(engine: &Arc<Engine>, activation: Activation, exact_gelu: bool) -> Runner {
    let shape = BertShape {
        hidden: HIDDEN,
        heads: HEADS,
        intermediate: INNER,
        activation,
        epsilon: 1e-12,
        first_place: 0,
        exact_gelu,
    };
    let layers = (0..3).map(|number| Ok::<_, ComputeError>(layer(number)));
    let bert = Bert::new(engine, shape, embedding(), layers).unwrap();
    Runner::new(engine, Box::new(bert)).unwrap()
}

fn twin(activation: Activation) -> Twin {
    let level = Level::detect();
    let linear = |weights: LinearWeights, inputs: usize| {
        Linear::new(level, Precision::F32, &weights.weight, &weights.bias.unwrap(), inputs).unwrap()
    };
    let norm = |weights: NormWeights| LayerNorm::new(&weights.scale, &weights.shift, 1e-12).unwrap();
    let embedding = embedding();
    let layers = (0..3).map(|number| {
        let layer = layer(number);
        Layer {
            qkv: linear(layer.qkv, HIDDEN),
            attention_output: linear(layer.attention_output, HIDDEN),
            attention_norm: norm(layer.attention_norm),
            up: linear(layer.up, HIDDEN),
            down: linear(layer.down, INNER),
            output_norm: norm(layer.output_norm),
        }
    });
    Twin {
        level,
        precision: Precision::F32,
        hidden: HIDDEN,
        heads: HEADS,
        intermediate: INNER,
        activation,
        words: embedding.words,
        positions: embedding.positions,
        embedding_norm: norm(embedding.norm),
        layers: layers.collect(),
        spare: Default::default(),
    }
}

fn sequences(lengths: &[usize]) -> Vec<Vec<u32>> {
    let ids = |(number, length): (usize, &usize)| {
        (0..*length)
            .map(|i| ((i * 7 + number * 13) % VOCABULARY) as u32)
            .collect()
    };
    lengths.iter().enumerate().map(ids).collect()
}

/// The mean of all tokens, and of the second half, to unit length.
fn requests(sequences: &[Vec<u32>]) -> Vec<Request<'_>> {
    sequences
        .iter()
        .map(|ids| {
            let length = ids.len() as u32;
            let range = |start| Range {
                start,
                end: length,
                largest: false,
                unit: true,
            };
            Request {
                ids,
                ranges: vec![range(0), range(length / 2)],
            }
        })
        .collect()
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

const LENGTHS: [usize; 6] = [1, 64, 17, 300, 2, 129];

#[test]
fn bert_equals_its_twin() {
    let Some(bench) = bench() else { return };
    let sequences = sequences(&LENGTHS);
    for (activation, exact) in [
        (Activation::Gelu, false),
        (Activation::Gelu, true),
        (Activation::GeluTanh, false),
        (Activation::Relu, false),
    ] {
        let runner = runner(&bench.engine, activation, exact);
        let found = runner.run(&requests(&sequences), &|| false).unwrap();
        let mut packed = Packed {
            ids: Vec::new(),
            starts: vec![0],
        };
        for ids in &sequences {
            packed.ids.extend(ids);
            packed.starts.push(packed.ids.len());
        }
        let states = twin(activation)
            .forward(&Pool::new(1).unwrap(), &packed, &|| false)
            .unwrap();
        let mut found = found.iter();
        for (ids, start) in sequences.iter().zip(&packed.starts) {
            for first in [0, ids.len() / 2] {
                let rows = &states[(start + first) * HIDDEN..(start + ids.len()) * HIDDEN];
                let mut expected = pooling::mean(rows, HIDDEN);
                pooling::normalize(&mut expected);
                let found = found.next().unwrap();
                let cosine = cosine(found, &expected);
                assert!(cosine > 0.9998, "{activation:?} {exact} {} tokens: {cosine}", ids.len());
                assert!(
                    relative_error(
                        found.iter().copied(),
                        &expected.iter().map(|x| f64::from(*x)).collect::<Vec<_>>()
                    ) < 0.02
                );
            }
        }
        assert!(found.next().is_none());
    }
}

#[test]
fn vectors_have_the_same_bits_alone_in_batches_and_from_graphs() {
    let Some(bench) = bench() else { return };
    let runner = runner(&bench.engine, Activation::Gelu, false);
    let sequences = sequences(&LENGTHS);
    let together = runner.run(&requests(&sequences), &|| false).unwrap();
    // Each shape three times: at once, recorded, replayed.
    for round in 0..3 {
        for (ids, expected) in sequences.iter().zip(together.chunks(2)) {
            let alone = runner.run(&requests(std::slice::from_ref(ids)), &|| false).unwrap();
            assert!(alone == expected, "round {round}, {} tokens", ids.len());
        }
    }
    if bench.platform == Platform::Emulated {
        assert!(testing::counter(c"emulate_graph_launches") > 0);
    }
    // Large batches beside each other on both streams, in the order of the sequences.
    let many: Vec<Vec<u32>> = (0..130)
        .map(|i| sequences[i % 6].iter().map(|id| (id + i as u32) % 50).collect())
        .collect();
    let all = runner.run(&requests(&many), &|| false).unwrap();
    for i in [0, 3, 64, 127, 129] {
        let alone = runner.run(&requests(&many[i..i + 1]), &|| false).unwrap();
        assert!(alone == all[2 * i..2 * i + 2], "{i}");
    }
}

#[test]
fn the_runner_checks_stops_and_answers_errors() {
    let Some(bench) = bench() else { return };
    let runner = runner(&bench.engine, Activation::Gelu, false);
    let ids = vec![1, 2, 3];
    let range = |start, end| Range {
        start,
        end,
        largest: false,
        unit: false,
    };
    let run = |ids: &[u32], range: Range| {
        runner.run(
            &[Request {
                ids,
                ranges: vec![range],
            }],
            &|| false,
        )
    };
    for (ids, range) in [
        (vec![1, 50], range(0, 1)),
        (vec![], range(0, 0)),
        (vec![0; 301], range(0, 1)),
        (ids.clone(), range(1, 4)),
        (ids.clone(), range(2, 2)),
    ] {
        assert!(matches!(run(&ids, range), Err(ComputeError::Shape(_))), "{ids:?}");
    }
    let stopped = runner.run(
        &[Request {
            ids: &ids,
            ranges: vec![range(0, 1)],
        }],
        &|| true,
    );
    assert!(matches!(stopped, Err(ComputeError::Stopped)));
    assert!(run(&ids, range(0, 3)).is_ok());
    assert!(matches!(Engine::open(99, None), Err(ComputeError::Device(_))));
}

#[test]
fn short_memory_halves_the_batch_and_a_lost_gpu_is_an_error() {
    let Some(bench) = bench() else { return };
    if bench.platform == Platform::Gpu {
        println!("SKIPPED on a card: its memory cannot be taken away");
        return;
    }
    let sequences: Vec<Vec<u32>> = (0..60).map(|i| vec![i % 50; 100]).collect();
    let expected = self::runner(&bench.engine, Activation::Gelu, false)
        .run(&requests(&sequences), &|| false)
        .unwrap();
    let runner = self::runner(&bench.engine, Activation::Gelu, false);
    // Its streams have no memory yet.
    let fresh = self::runner(&bench.engine, Activation::Gelu, false);
    // One stream's scratch memory, and room for about 4,000 tokens.
    let used = testing::counter(c"emulate_used_memory") as usize;
    testing::set_memory(used + (32 << 20) + 4_000 * 2_200);
    let found = runner.run(&requests(&sequences), &|| false);
    let limit = runner.tokens_at_once();
    testing::set_memory(used + (1 << 20));
    let small = fresh.run(&requests(&sequences[..1]), &|| false);
    testing::set_memory(4 << 30);
    assert!(found.unwrap() == expected);
    assert!(limit < 6000, "{limit}");
    assert!(matches!(small, Err(ComputeError::DeviceMemory { .. })));
    testing::lose(true);
    let lost = runner.run(&requests(&sequences), &|| false);
    testing::lose(false);
    assert!(matches!(lost, Err(ComputeError::DeviceLost(_))));
    // Nothing was left half done.
    assert!(runner.run(&requests(&sequences), &|| false).unwrap() == expected);
    drop(runner);
}

#[test]
fn kept_kernels_are_used_and_altered_ones_are_not() {
    let Some(bench) = bench() else { return };
    let folder = tempfile::tempdir().unwrap();
    let cache: &Path = &folder.path().join("kernels");
    let files = || -> Vec<_> {
        let mut files: Vec<_> = std::fs::read_dir(cache)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        files.sort();
        files
    };
    let compiled = || match bench.platform {
        Platform::Gpu => 0,
        Platform::Emulated => testing::counter(c"emulate_compilations"),
    };
    let start = compiled();
    Engine::open(0, Some(cache)).unwrap();
    let kept = files();
    assert!(kept.len() >= 6, "{kept:?}");
    let each = compiled() - start;
    Engine::open(0, Some(cache)).unwrap();
    assert_eq!(compiled() - start, each, "nothing is compiled twice");
    let whole = std::fs::read(&kept[0]).unwrap();
    let cut = &whole[..whole.len() - 1];
    let mut altered = whole.clone();
    *altered.last_mut().unwrap() ^= 1;
    for (number, content) in [cut, &altered, b""].into_iter().enumerate() {
        std::fs::write(&kept[0], content).unwrap();
        Engine::open(0, Some(cache)).unwrap();
        assert!(std::fs::read(&kept[0]).unwrap() == whole, "{number}: written again");
        assert_eq!(files(), kept);
    }
    // A directory that cannot be written is no error.
    Engine::open(0, Some(Path::new("/proc/none"))).unwrap();
}
