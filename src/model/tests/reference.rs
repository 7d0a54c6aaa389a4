//! MiniLM against candle-transformers' BertModel, its model card's similarities, and itself in other batches.

use super::minilm;
use crate::compute::Pool;
use crate::compute::cpu::Level;
use crate::model::{Encoder, Precision, Read, Role, Sequence};
use candle_core::{DType, Device, Tensor};
use candle_transformers::models::bert::{BertModel, Config};
use std::path::Path;

fn texts() -> Vec<String> {
    let mut texts: Vec<String> = [
        "a",
        "",
        "That is a happy person",
        "That is a happy dog",
        "That is a very happy person",
        "Today is a sunny day",
        "How do I promote a standby server?",
        "[SEP] [CLS] [MASK] is plain text here [PAD]",
        "<|endoftext|> <s> </s> [UNK]",
        "Größe, naïve café, œuvre, Ωμέγα, Привет мир",
        "東京は日本の首都です。人口が多い。",
        "emoji 🙂👩‍👩‍👧 and combining e\u{301}a\u{308}",
        "x = [i ** 2 for i in range(10)]; print(x)\n\tif (a && b) { return c; }",
        "antidisestablishmentarianism supercalifragilisticexpialidocious",
        "1234567890 3.14159 1e-12 $5.00 50%",
        "\u{0}\u{1}control\u{200b}zero width",
    ]
    .map(str::to_string)
    .into();
    for words in [20, 60, 127, 200, 400] {
        let sentence = "The quick brown fox jumps over the lazy dog near the river bank every single morning .";
        texts.push(sentence.split(' ').cycle().take(words).collect::<Vec<_>>().join(" "));
    }
    texts.push("y".repeat(5000));
    texts
}

/// Vectors by candle, in f32: one sequence at a time, no padding, mean over all tokens, unit length.
fn candle(dir: &Path, batch: &[Sequence]) -> Vec<Vec<f32>> {
    let config: Config = serde_json::from_slice(&std::fs::read(dir.join("config.json")).unwrap()).unwrap();
    let device = Device::Cpu;
    let tensors = candle_core::safetensors::load(dir.join("model.safetensors"), &device).unwrap();
    let builder = candle_nn::VarBuilder::from_tensors(tensors, DType::F32, &device);
    let model = BertModel::load(builder, &config).unwrap();
    let encode = |sequence: &Sequence| {
        let ids = Tensor::new(&sequence.ids[..], &device).unwrap().unsqueeze(0).unwrap();
        let types = ids.zeros_like().unwrap();
        let states = model.forward(&ids, &types, None).unwrap();
        let rows: Vec<Vec<f32>> = states.squeeze(0).unwrap().to_vec2().unwrap();
        let mean = |i: usize| rows.iter().map(|row| row[i] as f64).sum::<f64>() / rows.len() as f64;
        let mean: Vec<f64> = (0..rows[0].len()).map(mean).collect();
        let length = mean.iter().map(|x| x * x).sum::<f64>().sqrt();
        mean.iter().map(|x| (x / length) as f32).collect()
    };
    batch.iter().map(encode).collect()
}

pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| *x as f64 * *y as f64).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

pub fn sequences(encoder: &Encoder) -> Vec<Sequence> {
    texts()
        .iter()
        .map(|text| encoder.text(Role::Passage, text).unwrap())
        .collect()
}

#[test]
fn equals_candle_on_every_level() {
    let Some(dir) = minilm() else { return };
    let pool = Pool::new(2).unwrap();
    let mut expected = None;
    for level in Level::available() {
        let encoder = Encoder::open_at(&dir, Precision::F32, level).unwrap();
        let batch = sequences(&encoder);
        let lengths: Vec<usize> = batch.iter().map(|sequence| sequence.ids.len()).collect();
        assert!(
            lengths.contains(&3) && lengths.iter().max() == Some(&256),
            "{lengths:?}"
        );
        let expected = expected.get_or_insert_with(|| candle(&dir, &batch));
        let found = encoder.encode(&pool, &batch).unwrap();
        for ((expected, found), text) in expected.iter().zip(&found).zip(texts()) {
            let error = expected
                .iter()
                .zip(found)
                .map(|(a, b)| (a - b).abs())
                .fold(0f32, f32::max);
            assert!(error <= 1e-5, "{level:?}: {error} on {text:?}");
        }
    }
}

#[test]
fn similarities_of_the_model_card() {
    let Some(dir) = minilm() else { return };
    let pool = Pool::new(1).unwrap();
    let encoder = Encoder::open(&dir).unwrap();
    let texts = [
        "That is a happy person",
        "That is a happy dog",
        "That is a very happy person",
        "Today is a sunny day",
    ];
    let batch: Vec<Sequence> = texts
        .iter()
        .map(|text| encoder.text(Role::Query, text).unwrap())
        .collect();
    let vectors = encoder.encode(&pool, &batch).unwrap();
    for (vector, expected) in vectors[1..].iter().zip([0.6946, 0.9429, 0.2569]) {
        let found = cosine(&vectors[0], vector);
        assert!((found - expected).abs() < 5e-4, "{found} {expected}");
    }
}

#[test]
fn a_vector_is_bit_equal_alone_and_in_any_batch() {
    let Some(dir) = minilm() else { return };
    let pools = [Pool::new(1).unwrap(), Pool::new(2).unwrap(), Pool::new(3).unwrap()];
    for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
        let Ok(encoder) = Encoder::open_with(&dir, precision) else {
            continue;
        };
        let batch = sequences(&encoder);
        let together = encoder.encode(&pools[0], &batch).unwrap();
        for (number, sequence) in batch.iter().enumerate() {
            let alone = encoder
                .encode(&pools[number % 3], std::slice::from_ref(sequence))
                .unwrap();
            assert_eq!(alone[0], together[number], "{precision:?} text {number} alone");
        }
        let mut other: Vec<usize> = (0..batch.len()).rev().collect();
        other.extend(0..batch.len());
        other.rotate_left(3);
        let shuffled: Vec<Sequence> = other.iter().map(|number| batch[*number].clone()).collect();
        for pool in &pools {
            let found = encoder.encode(pool, &shuffled).unwrap();
            for (place, number) in other.iter().enumerate() {
                assert_eq!(
                    found[place], together[*number],
                    "{precision:?} text {number} in another order"
                );
            }
        }
    }
}

#[test]
fn special_tokens_in_a_text_are_plain_text() {
    let Some(dir) = minilm() else { return };
    let encoder = Encoder::open(&dir).unwrap();
    for text in ["[SEP]", "a [CLS] b", "[PAD][PAD]", "[MASK]", "x[SEP]y"] {
        let tokens = encoder.tokenize(text).unwrap();
        assert!(
            tokens.ids.iter().all(|id| ![0, 101, 102, 103].contains(id)),
            "{text}: {:?}",
            tokens.ids
        );
        assert!(tokens.ids.len() >= 3, "{text}: {:?}", tokens.ids);
        let sequence = encoder.text(Role::Passage, text).unwrap();
        assert_eq!((sequence.ids[0], *sequence.ids.last().unwrap()), (101, 102));
    }
}

#[test]
fn spans_lie_on_the_words_also_in_long_texts() {
    let Some(dir) = minilm() else { return };
    let encoder = Encoder::open(&dir).unwrap();
    let text = "Ärger über 東京 tokens. ".repeat(20_000);
    let tokens = encoder.tokenize(&text).unwrap();
    assert_eq!(tokens.ids.len(), tokens.spans.len());
    let mut last = 0;
    for span in &tokens.spans {
        assert!(span.start >= last && span.end > span.start, "{span:?} after {last}");
        let word = span.of(&text).expect("on character borders");
        assert!(!word.contains(char::is_whitespace), "{word:?}");
        last = span.end;
    }
    let first = encoder.tokenize("Ärger über 東京 tokens.").unwrap();
    assert_eq!(tokens.ids, first.ids.repeat(20_000));
}

#[test]
fn spans_are_mean_pooled_token_vectors() {
    let Some(dir) = minilm() else { return };
    let pool = Pool::new(2).unwrap();
    let encoder = Encoder::open(&dir).unwrap();
    let mut sequence = encoder
        .text(Role::Passage, "one two three four five six seven")
        .unwrap();
    let pooled = encoder.encode(&pool, std::slice::from_ref(&sequence)).unwrap();
    let all = 0..sequence.ids.len() as u32;
    sequence.read = Read::Spans(vec![all, 1..3, 3..8]);
    let spans = encoder.encode(&pool, std::slice::from_ref(&sequence)).unwrap();
    assert_eq!(spans.len(), 3);
    assert_eq!(spans[0], pooled[0], "mean pooling over everything");
    assert!(cosine(&spans[1], &spans[2]) < 0.999);
    for span in &spans {
        assert!((cosine(span, span) - 1.0).abs() < 1e-6);
        assert!((span.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-5);
    }
}

#[test]
fn a_batch_can_be_stopped() {
    let Some(dir) = minilm() else { return };
    let pool = Pool::new(2).unwrap();
    let encoder = Encoder::open(&dir).unwrap();
    let batch = sequences(&encoder);
    let asked = std::cell::Cell::new(0);
    let stop = || {
        asked.set(asked.get() + 1);
        asked.get() > 4
    };
    let error = encoder.encode_until(&pool, &batch, &stop).unwrap_err();
    assert!(matches!(error, crate::model::ModelError::Stopped), "{error}");
    assert_eq!(asked.get(), 5);
}
