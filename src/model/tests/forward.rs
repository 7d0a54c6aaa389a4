//! Forward passes of the families against candle-transformers, token by token.

use super::families::{Sizes, mistral, modern_bert, qwen3, xlm_roberta};
use super::maker::{Maker, Random};
use crate::compute::cpu::Level;
use crate::compute::forward::bert::Packed;
use crate::compute::{Pool, Precision};
use crate::model::network::Network;
use crate::model::weights::Weights;
use crate::model::{Encoder, Family, Manifest, ModelError, Read, Sequence};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models;
use safetensors::Dtype;
use serde_json::json;
use std::collections::HashMap;
use std::path::Path;

/// The largest difference that a token's number may have from candle's.
const TOLERANCE: f32 = 1e-4;

/// Token states of a batch by our own forward pass, one list of rows for each sequence.
fn states(dir: &Path, level: Level, threads: usize, batch: &[Vec<u32>]) -> Vec<Vec<Vec<f32>>> {
    let manifest = Manifest::read(dir).unwrap();
    let weights = Weights::open(dir).unwrap();
    let network = Network::load(&manifest, &weights, level, Precision::F32).unwrap();
    let mut packed = Packed {
        ids: Vec::new(),
        starts: vec![0],
    };
    for ids in batch {
        packed.ids.extend(ids);
        packed.starts.push(packed.ids.len());
    }
    let all = network
        .forward(&Pool::new(threads).unwrap(), &packed, &|| false)
        .unwrap();
    let mut rows = all.chunks(manifest.hidden).map(<[f32]>::to_vec);
    batch
        .iter()
        .map(|ids| rows.by_ref().take(ids.len()).collect())
        .collect()
}

/// The maker's tensors for candle, with the prefix that it expects in place of ours.
fn builder(maker: &Maker, ours: &str, theirs: &str) -> VarBuilder<'static> {
    let tensors: HashMap<String, Tensor> = maker
        .tensors
        .iter()
        .map(|(name, (shape, numbers))| {
            let name = match name.strip_prefix(ours) {
                Some(rest) => format!("{theirs}{rest}"),
                None => name.clone(),
            };
            (
                name,
                Tensor::from_slice(numbers, shape.as_slice(), &Device::Cpu).unwrap(),
            )
        })
        .collect();
    VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu)
}

fn ids(ids: &[u32]) -> Tensor {
    Tensor::new(ids, &Device::Cpu).unwrap().unsqueeze(0).unwrap()
}

fn xlm_roberta_states(maker: &Maker, sequence: &[u32]) -> Vec<Vec<f32>> {
    let config: models::xlm_roberta::Config = serde_json::from_value(maker.config.clone()).unwrap();
    let model = models::xlm_roberta::XLMRobertaModel::new(&config, builder(maker, "roberta.", "")).unwrap();
    let ids = ids(sequence);
    let mask = ids.ones_like().unwrap();
    let types = ids.zeros_like().unwrap();
    let states = model.forward(&ids, &mask, &types, None, None, None).unwrap();
    states.squeeze(0).unwrap().to_vec2().unwrap()
}

pub fn qwen3_states(maker: &Maker, sequence: &[u32]) -> Vec<Vec<f32>> {
    let config: models::qwen3::Config = serde_json::from_value(maker.config.clone()).unwrap();
    let mut model = models::qwen3::Model::new(&config, builder(maker, "", "model.")).unwrap();
    let states = model.forward(&ids(sequence), 0).unwrap();
    states.squeeze(0).unwrap().to_vec2().unwrap()
}

/// The state of the token at `place`: candle gives the last one of a text, so the text ends there.
fn mistral_state(maker: &Maker, sequence: &[u32], place: usize) -> Vec<f32> {
    let mut config: models::mistral::Config = serde_json::from_value(maker.config.clone()).unwrap();
    // candle's window counts the tokens before the own one.
    config.sliding_window = config.sliding_window.map(|window| window - 1);
    let mut model = models::mistral::Model::new(&config, builder(maker, "", "")).unwrap();
    let logits = model.forward(&ids(&sequence[..=place]), 0).unwrap();
    let logits: Vec<f32> = logits.flatten_all().unwrap().to_vec1().unwrap();
    logits[..config.hidden_size].to_vec()
}

fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn batch(vocabulary: usize) -> Vec<Vec<u32>> {
    let mut random = Random(99);
    [1, 17, 300, 40].map(|length| random.ids(length, vocabulary)).to_vec()
}

/// Compares our states with candle's on every level; `places` says which tokens of a sequence.
fn compare(maker: &Maker, vocabulary: usize, candle: impl Fn(&[u32], usize) -> Vec<f32>, every: usize) {
    let dir = maker.write();
    let batch = batch(vocabulary);
    let mut worst = 0f32;
    for level in Level::available() {
        let found = states(dir.path(), level, 2, &batch);
        for (sequence, rows) in batch.iter().zip(&found) {
            for place in (0..sequence.len()).filter(|place| place % every == 0 || place + 1 == sequence.len()) {
                worst = worst.max(difference(&rows[place], &candle(sequence, place)));
            }
        }
        assert!(worst <= TOLERANCE, "{level:?}: {worst}");
        // The same bits alone and on another number of threads.
        for (sequence, rows) in batch.iter().zip(&found) {
            let alone = states(dir.path(), level, 1, std::slice::from_ref(sequence));
            assert!(alone[0] == *rows, "{level:?}: {} tokens differ alone", sequence.len());
        }
    }
    println!("largest difference from candle {worst:e}");
}

#[test]
fn xlm_roberta_equals_candle() {
    let mut maker = xlm_roberta(514);
    for prefix in ["roberta.", ""] {
        let tensors = std::mem::take(&mut maker.tensors).into_iter();
        maker.tensors = tensors.map(|(name, t)| (name.replace("roberta.", prefix), t)).collect();
        let rows: HashMap<Vec<u32>, Vec<Vec<f32>>> = batch(20)
            .into_iter()
            .map(|ids| {
                (
                    without_padding(&ids),
                    xlm_roberta_states(&maker, &without_padding(&ids)),
                )
            })
            .collect();
        let dir = maker.write();
        let sequences: Vec<Vec<u32>> = rows.keys().cloned().collect();
        for level in Level::available() {
            for (ids, found) in sequences.iter().zip(states(dir.path(), level, 2, &sequences)) {
                let worst = found
                    .iter()
                    .zip(&rows[ids])
                    .map(|(a, b)| difference(a, b))
                    .fold(0.0, f32::max);
                assert!(worst <= TOLERANCE, "{level:?}: {worst}");
            }
        }
    }
    let manifest = Manifest::read(maker.write().path()).unwrap();
    assert_eq!(
        (manifest.positions, manifest.max_tokens, manifest.first_position),
        (512, 512, 2)
    );
}

/// No text holds the padding's id, whose position candle chooses differently.
fn without_padding(ids: &[u32]) -> Vec<u32> {
    ids.iter().map(|id| if *id == 1 { 5 } else { *id }).collect()
}

#[test]
fn qwen3_equals_candle() {
    let shapes = [
        Sizes::SMALL,
        Sizes {
            heads: 4,
            key_heads: 1,
            width: 20,
            ..Sizes::SMALL
        },
        Sizes {
            heads: 3,
            key_heads: 3,
            width: 32,
            layers: 2,
            ..Sizes::SMALL
        },
        Sizes {
            hidden: 64,
            heads: 8,
            key_heads: 2,
            width: 8,
            intermediate: 33,
            layers: 1,
        },
    ];
    for sizes in shapes {
        let maker = qwen3(sizes);
        let rows: HashMap<Vec<u32>, Vec<Vec<f32>>> = batch(258)
            .into_iter()
            .map(|ids| (ids.clone(), qwen3_states(&maker, &ids)))
            .collect();
        compare(&maker, 258, |ids, place| rows[ids][place].clone(), 1);
    }
}

#[test]
fn mistral_equals_candle() {
    for (key_heads, width, window) in [
        (2, 16, json!(4096)),
        (1, 12, json!(null)),
        (4, 8, json!(25)),
        (2, 8, json!(1)),
    ] {
        let mut maker = mistral(Sizes {
            key_heads,
            width,
            ..Sizes::SMALL
        });
        maker.config["sliding_window"] = window;
        compare(&maker, 290, |ids, place| mistral_state(&maker, ids, place), 53);
    }
}

#[test]
fn modern_bert_equals_candle() {
    let mut maker = modern_bert();
    let candle = |sequence: &[u32]| -> Vec<Vec<f32>> {
        let mut config: models::modernbert::Config = serde_json::from_value(modern_bert().config).unwrap();
        // candle turns all positions of its table, so it must be as long as the text.
        config.max_position_embeddings = sequence.len();
        let model = models::modernbert::ModernBert::load(builder(&modern_bert(), "", ""), &config).unwrap();
        let ids = ids(sequence);
        let states = model.forward(&ids, &ids.ones_like().unwrap()).unwrap();
        states.squeeze(0).unwrap().to_vec2().unwrap()
    };
    let rows: HashMap<Vec<u32>, Vec<Vec<f32>>> = batch(12).into_iter().map(|ids| (ids.clone(), candle(&ids))).collect();
    compare(&maker, 12, |ids, place| rows[ids][place].clone(), 1);
    maker.tensors = maker
        .tensors
        .into_iter()
        .map(|(name, tensor)| (name.trim_start_matches("model.").to_string(), tensor))
        .collect();
    compare(&maker, 12, |ids, place| rows[ids][place].clone(), 17);
    let manifest = Manifest::read(maker.write().path()).unwrap();
    assert_eq!(
        (manifest.family, manifest.max_tokens, manifest.window),
        (Family::ModernBert, 8192, Some(8))
    );
    for (field, value) in [
        ("norm_bias", json!(true)),
        // It names no base, and the defaults would be silent.
        ("rope_parameters", json!({})),
        ("hidden_activation", json!("x")),
    ] {
        let mut maker = modern_bert();
        maker.config[field] = value;
        let error = Manifest::read(maker.write().path()).expect_err("must fail");
        assert!(
            matches!(error, ModelError::Unsupported { .. } | ModelError::Invalid { .. }),
            "{error}"
        );
    }
    maker.tensors.remove("layers.3.attn_norm.weight");
    let error = Manifest::read(maker.write().path()).expect_err("must fail");
    assert!(
        matches!(&error, ModelError::MissingTensor(name) if name == "layers.3.attn_norm.weight"),
        "{error}"
    );
}

#[test]
fn biases_of_the_attention_are_read() {
    let mut maker = qwen3(Sizes::SMALL);
    maker.config["attention_bias"] = json!(true);
    let mut random = Random(5);
    for layer in 0..Sizes::SMALL.layers {
        for (name, outputs) in [("q_proj", 64), ("k_proj", 32), ("v_proj", 32), ("o_proj", 48)] {
            let name = format!("layers.{layer}.self_attn.{name}.bias");
            maker
                .tensors
                .insert(name, (vec![outputs], random.numbers(outputs, 0.0, 0.5)));
        }
    }
    let ids = random.ids(30, 258);
    let expected = qwen3_states(&maker, &ids);
    let found = states(maker.write().path(), Level::detect(), 2, &[ids]);
    let worst = found[0]
        .iter()
        .zip(&expected)
        .map(|(a, b)| difference(a, b))
        .fold(0.0, f32::max);
    assert!(worst <= TOLERANCE, "{worst}");
}

#[test]
fn names_shards_and_half_numbers_are_read() {
    let mut random = Random(3);
    let ids = vec![random.ids(30, 258)];
    let run = |maker: &Maker| states(maker.write().path(), Level::detect(), 2, &ids);
    let plain = qwen3(Sizes::SMALL);
    let expected = run(&plain);
    let mut renamed = qwen3(Sizes::SMALL);
    renamed.tensors = renamed
        .tensors
        .into_iter()
        .map(|(name, t)| (format!("model.{name}"), t))
        .collect();
    renamed.shards = 3;
    assert!(run(&renamed) == expected);
    for (dtype, round) in [
        (Dtype::BF16, (|x| half::bf16::from_f32(x).to_f32()) as fn(f32) -> f32),
        (Dtype::F16, |x| half::f16::from_f32(x).to_f32()),
    ] {
        let mut halves = qwen3(Sizes::SMALL);
        (halves.dtype, halves.shards) = (dtype, 2);
        let mut rounded = qwen3(Sizes::SMALL);
        for number in rounded.tensors.values_mut().flat_map(|tensor| &mut tensor.1) {
            *number = round(*number);
        }
        assert!(run(&halves) == run(&rounded) && run(&halves) != expected);
    }
    let (mut xlm, mut shards) = (xlm_roberta(60), xlm_roberta(60));
    (xlm.dtype, shards.dtype, shards.shards) = (Dtype::BF16, Dtype::BF16, 4);
    let ids = vec![without_padding(&random.ids(30, 20))];
    let run = |maker: &Maker| states(maker.write().path(), Level::detect(), 2, &ids);
    assert!(run(&xlm) == run(&shards));
}

#[test]
fn the_last_token_and_spans_are_read_out() {
    let maker = qwen3(Sizes::SMALL);
    let dir = maker.write();
    let ids = Random(8).ids(25, 258);
    let rows = qwen3_states(&maker, &ids);
    let unit = |vector: Vec<f32>| -> Vec<f32> {
        let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
        vector.iter().map(|x| x / length).collect()
    };
    let mean = |range: std::ops::Range<usize>| -> Vec<f32> {
        let count = range.len() as f32;
        (0..48)
            .map(|i| rows[range.clone()].iter().map(|row| row[i]).sum::<f32>() / count)
            .collect()
    };
    let read = |read: Read| Sequence { ids: ids.clone(), read };
    let spans = Read::Spans(vec![0..1, 3..20, 24..25]);
    let pool = Pool::new(2).unwrap();
    for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
        let Ok(encoder) = Encoder::open_with(dir.path(), precision) else {
            println!(
                "SKIPPED: this processor lacks the instructions for {}",
                precision.name()
            );
            continue;
        };
        let found = encoder
            .encode(&pool, &[read(Read::Pooled), read(spans.clone())])
            .unwrap();
        let expected = [rows[24].clone(), mean(0..1), mean(3..20), rows[24].clone()].map(unit);
        for (found, expected) in found.iter().zip(&expected) {
            let cosine: f32 = found.iter().zip(expected).map(|(a, b)| a * b).sum();
            let least = if precision == Precision::F32 { 0.999_999 } else { 0.99 };
            assert!(cosine >= least, "{precision:?}: {cosine}");
            if precision == Precision::F32 {
                assert!(difference(found, expected) <= TOLERANCE);
            }
        }
        assert_eq!(found[0], found[3]);
        // What follows a token has no influence on it: a prefix read alone has the same bits.
        let prefix = Sequence {
            ids: ids[..20].to_vec(),
            read: Read::Spans(std::iter::once(3..20).collect()),
        };
        assert_eq!(encoder.encode(&pool, &[prefix]).unwrap()[0], found[2]);
    }
}

#[test]
fn a_vector_is_bit_equal_alone_and_in_any_batch() {
    let sizes = Sizes {
        layers: 2,
        ..Sizes::SMALL
    };
    let mut random = Random(17);
    for maker in [qwen3(sizes), mistral(sizes), modern_bert(), xlm_roberta(514)] {
        let dir = maker.write();
        let sequence = |ids: Vec<u32>| Sequence {
            ids,
            read: Read::Pooled,
        };
        let lengths = [1, 2, 100, 511, 13, 512, 40, 300];
        let batch: Vec<Sequence> = lengths.map(|length| sequence(random.ids(length, 12))).to_vec();
        for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
            let Ok(encoder) = Encoder::open_with(dir.path(), precision) else {
                continue;
            };
            let together = encoder.encode(&Pool::new(3).unwrap(), &batch).unwrap();
            for (number, sequence) in batch.iter().enumerate() {
                let pool = Pool::new(1 + number % 3).unwrap();
                let alone = encoder.encode(&pool, std::slice::from_ref(sequence)).unwrap();
                assert!(
                    alone[0] == together[number],
                    "{precision:?}: {} tokens",
                    sequence.ids.len()
                );
            }
        }
    }
}
