//! Queries read together with passages, the head of ANCE, and copies whose upper layers were trained.

use super::maker::{HIDDEN, Maker, POSITIONS, Random};
use crate::compute::Pool;
use crate::model::fine_tune::FineTuning;
use crate::model::overlay::{self, Replaced};
use crate::model::{Encoder, ModelError, Pooling, Read, Role, Sequence};
use candle_core::{Device, Tensor};
use serde_json::json;

const CLS: u32 = 2;
const SEP: u32 = 3;
const RED: u32 = 6;
const GREEN: u32 = 7;
const BLUE: u32 = 8;

fn vector(encoder: &Encoder, sequence: &Sequence) -> Vec<f32> {
    let vectors = encoder
        .encode(&Pool::new(1).unwrap(), std::slice::from_ref(sequence))
        .unwrap();
    vectors.into_iter().next().unwrap()
}

fn close(a: &[f32], b: &[f32], tolerance: f32) {
    assert_eq!(a.len(), b.len());
    for (a, b) in a.iter().zip(b) {
        assert!((a - b).abs() <= tolerance, "{a} {b}");
    }
}

/// A model with the head of ANCE: the first token's state, a linear layer, a layer norm.
fn ance() -> Maker {
    let mut maker = Maker::new();
    // As its script writes it.
    maker.listed = false;
    let mut random = Random(11);
    let mut add = |name: &str, shape: Vec<usize>, around: f32| {
        let numbers = random.numbers(shape.iter().product(), around, 0.5);
        maker.tensors.insert(name.to_owned(), (shape, numbers));
    };
    add("embeddingHead.weight", vec![HIDDEN, HIDDEN], 0.0);
    add("embeddingHead.bias", vec![HIDDEN], 0.0);
    add("norm.weight", vec![HIDDEN], 1.0);
    add("norm.bias", vec![HIDDEN], 0.0);
    maker
}

#[test]
fn pieces_are_joined_as_ids_and_the_end_is_cut() {
    let maker = Maker {
        normalize: true,
        ..Maker::new()
    };
    let dir = maker.write();
    let encoder = Encoder::open(dir.path()).unwrap();
    let read = encoder.feedback("red", &["green", "blue red"], 0).unwrap();
    assert_eq!(read.ids, [CLS, RED, SEP, GREEN, SEP, BLUE, RED, SEP]);
    // A model of the mean is read at the query.
    assert_eq!(read.read, Read::Spans(std::iter::once(1..2).collect()));
    assert_eq!(
        encoder.feedback("red", &["green blue"], 1).unwrap().ids,
        [CLS, RED, SEP, GREEN, SEP]
    );
    assert_eq!(encoder.feedback("red", &[], 0).unwrap().ids, [CLS, RED, SEP]);
    let long = "green ".repeat(POSITIONS);
    let cut = encoder.feedback("red", &[&long, "blue"], 0).unwrap();
    assert_eq!(cut.ids.len(), POSITIONS);
    assert_eq!(cut.ids[POSITIONS - 2..], [GREEN, SEP]);
    let long = encoder.feedback(&long, &["blue"], 0).unwrap();
    assert_eq!(long.ids.len(), POSITIONS);
    vector(&encoder, &long);
    // Text that looks like a separator is text.
    let other = encoder.feedback("red [SEP]", &["green"], 0).unwrap();
    assert_eq!(other.ids.iter().filter(|id| **id == SEP).count(), 2, "{other:?}");
}

#[test]
fn the_head_of_ance_is_a_layer_norm_of_a_linear_layer() {
    let maker = ance();
    let dir = maker.write();
    let encoder = Encoder::open(dir.path()).unwrap();
    assert_eq!(encoder.manifest().pooling, Pooling::Cls);
    let sequence = encoder.text(Role::Query, "red green").unwrap();
    let found = vector(&encoder, &sequence);
    let first = std::iter::once(0..1).collect();
    let state = vector(
        &encoder,
        &Sequence {
            read: Read::States(first),
            ..sequence
        },
    );
    let tensor = |name: &str| maker.tensors[name].1.clone();
    let weight = tensor("embeddingHead.weight");
    let mut out: Vec<f64> = weight
        .chunks(HIDDEN)
        .zip(tensor("embeddingHead.bias"))
        .map(|(row, bias)| row.iter().zip(&state).map(|(w, x)| f64::from(w * x)).sum::<f64>() + f64::from(bias))
        .collect();
    let mean = out.iter().sum::<f64>() / HIDDEN as f64;
    let variance = out.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / HIDDEN as f64;
    for ((x, scale), shift) in out.iter_mut().zip(tensor("norm.weight")).zip(tensor("norm.bias")) {
        *x = (*x - mean) / (variance + 1e-5).sqrt() * f64::from(scale) + f64::from(shift);
    }
    let expected: Vec<f32> = out.iter().map(|x| *x as f32).collect();
    close(&found, &expected, 1e-5);

    let mut damaged = ance();
    damaged.tensors.remove("norm.bias");
    assert!(matches!(
        Encoder::open(damaged.write().path()),
        Err(ModelError::MissingTensor(_))
    ));
    let mut normalised = ance();
    normalised.listed = true;
    normalised.pooling = Some(json!({"pooling_mode": "cls"}));
    normalised.normalize = true;
    assert!(matches!(
        Encoder::open(normalised.write().path()),
        Err(ModelError::Unsupported {
            what: "embedding head",
            ..
        })
    ));
}

#[test]
fn the_trained_forward_pass_is_the_kernels() {
    let pooling = |mode: &str| Some(json!({"word_embedding_dimension": HIDDEN, format!("pooling_mode_{mode}"): true}));
    let of = |mode: &str, normalize: bool| Maker {
        pooling: pooling(mode),
        normalize,
        ..Maker::new()
    };
    let makers = [
        of("mean_tokens", true),
        of("mean_tokens", false),
        of("cls_token", true),
        of("lasttoken", false),
        ance(),
    ];
    for maker in makers {
        let dir = maker.write();
        let encoder = Encoder::open(dir.path()).unwrap();
        let tuning = FineTuning::open(dir.path(), encoder.manifest(), 1).unwrap();
        for sequence in [
            encoder
                .feedback("red greens", &["blue green", "a red passage"], 0)
                .unwrap(),
            encoder.text(Role::Query, "blue").unwrap(),
        ] {
            let found = tuning.vector(&sequence).unwrap().to_vec1::<f32>().unwrap();
            close(&found, &vector(&encoder, &sequence), 1e-5);
        }
    }
    let max = of("max_tokens", false).write();
    let encoder = Encoder::open(max.path()).unwrap();
    assert!(matches!(
        FineTuning::open(max.path(), encoder.manifest(), 1),
        Err(ModelError::Unsupported {
            what: "fine-tuning",
            ..
        })
    ));
}

#[test]
fn the_real_model_is_computed_alike() {
    let Some(dir) = super::minilm() else { return };
    let encoder = Encoder::open(&dir).unwrap();
    let tuning = FineTuning::open(&dir, encoder.manifest(), 2).unwrap();
    let passages = [
        "The fox said that the grapes were sour.",
        "A crow sat on a branch with a piece of cheese.",
    ];
    let sequence = encoder.feedback("Who wanted the grapes?", &passages, 0).unwrap();
    let found = tuning.vector(&sequence).unwrap().to_vec1::<f32>().unwrap();
    close(&found, &vector(&encoder, &sequence), 1e-4);
    assert_eq!(tuning.variables().len(), 2 * 16);
}

#[test]
fn gradients_are_those_of_finite_differences() {
    let maker = ance();
    let dir = maker.write();
    let encoder = Encoder::open(dir.path()).unwrap();
    let tuning = FineTuning::open(dir.path(), encoder.manifest(), 2).unwrap();
    let sequence = encoder.feedback("red", &["green blue"], 0).unwrap();
    let direction = Tensor::from_vec(Random(3).numbers(HIDDEN, 0.0, 1.0), HIDDEN, &Device::Cpu).unwrap();
    let value = || {
        (tuning.vector(&sequence).unwrap() * &direction)
            .unwrap()
            .sum_all()
            .unwrap()
    };
    let gradients = value().backward().unwrap();
    assert_eq!(tuning.variables().len(), 2 * 16 + 4);
    for (name, variable) in tuning.variables() {
        let numbers = variable.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let gradient = gradients.get(variable.as_tensor()).expect(name);
        let gradient = gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        // A key's bias shifts all scores of a row alike: its gradient is nothing.
        for place in [0, numbers.len() / 2] {
            let moved = |step: f32| {
                let mut numbers = numbers.clone();
                numbers[place] += step;
                variable
                    .set(&Tensor::from_vec(numbers, variable.dims(), &Device::Cpu).unwrap())
                    .unwrap();
                f64::from(value().to_scalar::<f32>().unwrap())
            };
            let step = 4e-3;
            let expected = (moved(step) - moved(-step)) / f64::from(2.0 * step);
            moved(0.0);
            let found = f64::from(gradient[place]);
            assert!(
                (found - expected).abs() < 2e-3 + 2e-2 * expected.abs(),
                "{name}: {found} {expected}"
            );
        }
    }
}

#[test]
fn a_trained_copy_on_disk_gives_the_trained_vectors() {
    let dir = ance().write();
    let encoder = Encoder::open(dir.path()).unwrap();
    let tuning = FineTuning::open(dir.path(), encoder.manifest(), 1).unwrap();
    let sequence = encoder.feedback("red", &["green blue"], 0).unwrap();
    let before = vector(&encoder, &sequence);
    let mut replaced = Replaced::new();
    for (name, variable) in tuning.variables() {
        let numbers = variable.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let numbers: Vec<f32> = numbers.iter().map(|x| x * 1.25 + 0.01).collect();
        let tensor = Tensor::from_vec(numbers.clone(), variable.dims(), &Device::Cpu).unwrap();
        variable.set(&tensor).unwrap();
        replaced.insert(name.clone(), (variable.dims().to_vec(), numbers));
    }
    let to = tempfile::tempdir().unwrap();
    overlay::write(dir.path(), &replaced, to.path()).unwrap();
    let copy = Encoder::open(to.path()).unwrap();
    let found = vector(&copy, &sequence);
    close(
        &found,
        &tuning.vector(&sequence).unwrap().to_vec1::<f32>().unwrap(),
        1e-5,
    );
    assert!(found.iter().zip(&before).any(|(a, b)| (a - b).abs() > 0.01));
    assert_ne!(copy.manifest().fingerprint, encoder.manifest().fingerprint);

    let other = Replaced::from([("nothing".to_owned(), (vec![1], vec![1.0]))]);
    let empty = tempfile::tempdir().unwrap();
    assert!(matches!(
        overlay::write(dir.path(), &other, empty.path()),
        Err(ModelError::MissingTensor(_))
    ));
}
