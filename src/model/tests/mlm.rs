//! Vocabulary logits against candle's BertForMaskedLM: of a made-up model, and of the one that `SITU_TEST_MLM` names.

use super::maker::{HIDDEN, Maker, Random, VOCABULARY};
use crate::compute::Pool;
use crate::model::{Encoder, ModelError, Read, Role, Sequence};
use candle_core::{DType, Device, Tensor};
use candle_transformers::models::bert::{BertForMaskedLM, Config};
use std::path::Path;

/// A made-up BERT with a head, its names as BertForMaskedLM has them.
fn with_head() -> Maker {
    let mut maker = Maker::new();
    let tensors = std::mem::take(&mut maker.tensors);
    maker.tensors = tensors
        .into_iter()
        .map(|(name, tensor)| (format!("bert.{name}"), tensor))
        .collect();
    let mut random = Random(21);
    for (name, shape, around) in [
        ("transform.dense.weight", vec![HIDDEN, HIDDEN], 0.0),
        ("transform.dense.bias", vec![HIDDEN], 0.0),
        ("transform.LayerNorm.weight", vec![HIDDEN], 1.0),
        ("transform.LayerNorm.bias", vec![HIDDEN], 0.0),
        ("bias", vec![VOCABULARY], 0.0),
    ] {
        let numbers = random.numbers(shape.iter().product(), around, 0.5);
        maker
            .tensors
            .insert(format!("cls.predictions.{name}"), (shape, numbers));
    }
    maker
}

/// Logits at every position, by candle.
fn candle(dir: &Path, ids: &[u32]) -> Vec<Vec<f32>> {
    let config: Config = serde_json::from_slice(&std::fs::read(dir.join("config.json")).unwrap()).unwrap();
    let device = Device::Cpu;
    let mut tensors = candle_core::safetensors::load(dir.join("model.safetensors"), &device).unwrap();
    // Tied in the files, asked for by candle.
    let tied = [
        (
            "cls.predictions.decoder.weight",
            "bert.embeddings.word_embeddings.weight",
        ),
        ("cls.predictions.decoder.bias", "cls.predictions.bias"),
    ];
    for (name, source) in tied {
        let tensor = tensors[source].clone();
        tensors.entry(name.to_owned()).or_insert(tensor);
    }
    let builder = candle_nn::VarBuilder::from_tensors(tensors, DType::F32, &device);
    let model = BertForMaskedLM::load(builder, &config).unwrap();
    let ids = Tensor::new(ids, &device).unwrap().unsqueeze(0).unwrap();
    let logits = model.forward(&ids, &ids.zeros_like().unwrap(), None).unwrap();
    logits.squeeze(0).unwrap().to_vec2().unwrap()
}

fn compare(dir: &Path, texts: &[&str]) {
    let encoder = Encoder::open(dir).unwrap();
    let pool = Pool::new(2).unwrap();
    for text in texts {
        let ids = encoder.text(Role::Query, text).unwrap().ids;
        let positions: Vec<_> = (0..ids.len() as u32).map(|place| place..place + 1).collect();
        let sequence = Sequence {
            read: Read::States(positions),
            ids: ids.clone(),
        };
        let states = encoder.encode(&pool, &[sequence]).unwrap();
        for (state, wanted) in states.iter().zip(candle(dir, &ids)) {
            let logits = encoder.vocabulary_logits(&pool, state).unwrap().unwrap();
            assert_eq!(logits.len(), wanted.len());
            let size = wanted.iter().fold(1.0f32, |most, x| most.max(x.abs()));
            let error = logits
                .iter()
                .zip(&wanted)
                .fold(0.0f32, |most, (a, b)| most.max((a - b).abs()));
            assert!(error < 1e-4 * size, "{text}: {error} of {size}");
        }
    }
}

#[test]
fn logits_are_candles() {
    let dir = with_head().write();
    compare(dir.path(), &["red green", "blue", "a query : red blues"]);
}

#[test]
fn a_decoder_of_its_own_is_used() {
    let mut maker = with_head();
    let words = Random(5).numbers(VOCABULARY * HIDDEN, 0.0, 0.5);
    let name = "cls.predictions.decoder.weight".to_owned();
    maker.tensors.insert(name, (vec![VOCABULARY, HIDDEN], words));
    compare(maker.write().path(), &["red green"]);
}

#[test]
fn a_model_without_a_head_says_so_and_a_broken_head_is_refused() {
    let plain = Maker::new().write();
    let encoder = Encoder::open(plain.path()).unwrap();
    let pool = Pool::new(1).unwrap();
    assert!(encoder.vocabulary_logits(&pool, &[0.0; HIDDEN]).unwrap().is_none());
    let mut maker = with_head();
    maker.tensors.remove("cls.predictions.bias");
    let broken = Encoder::open(maker.write().path());
    assert!(matches!(broken, Err(ModelError::MissingTensor(_))));
    let whole = with_head().write();
    let encoder = Encoder::open(whole.path()).unwrap();
    assert!(encoder.vocabulary_logits(&pool, &[0.0; 3]).is_err());
    assert!(encoder.memory() > Encoder::open(plain.path()).unwrap().memory());
}

#[test]
fn states_are_as_long_as_they_are() {
    let dir = Maker::new().write();
    let encoder = Encoder::open(dir.path()).unwrap();
    let pool = Pool::new(1).unwrap();
    let read = |read: Read| {
        let mut sequence = encoder.text(Role::Query, "red green blue").unwrap();
        sequence.read = read;
        encoder.encode(&pool, &[sequence]).unwrap()
    };
    let ranges = || (0..3).map(|place| place..place + 2).collect();
    for (state, span) in read(Read::States(ranges())).iter().zip(read(Read::Spans(ranges()))) {
        let length = state.iter().map(|x| x * x).sum::<f32>().sqrt();
        assert!((length - 1.0).abs() > 1e-3);
        assert!(state.iter().zip(&span).all(|(a, b)| (a / length - b).abs() < 1e-5));
    }
}

#[test]
fn a_published_head_is_candles() {
    let Some(dir) = crate::fixtures::masked_language_model() else {
        return;
    };
    compare(&dir, &["What does aspirin do?", "a standby server follows its primary"]);
}
