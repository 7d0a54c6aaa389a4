//! Gradients against finite differences, and the losses against the runtime's own probabilities.

use super::*;
use crate::compute::cpu::Level;
use crate::compute::{Pool, Precision};
use crate::model::llm::files::LlmFiles;
use crate::model::llm::gradient::{Differentiable, Target};
use crate::model::llm::{Packing, Piece};
use crate::model::tests::families::{Sizes, mistral};
use crate::model::tests::maker::{Maker, Random};
use serde_json::json;

fn maker() -> Maker {
    let mut maker = mistral(Sizes::SMALL);
    maker.config["sliding_window"] = json!(6);
    // A head whose logits differ, unlike that of the fixture.
    let (_, head) = maker.tensors.get_mut("lm_head.weight").unwrap();
    *head = Random(9).numbers(head.len(), 0.0, 0.4);
    maker
}

#[test]
fn gradients_are_those_of_finite_differences() {
    let dir = maker().write();
    let model = Differentiable::open(&LlmFiles::open(dir.path()).unwrap(), Precision::F32).unwrap();
    let (hidden, vocabulary) = (model.config().hidden, model.config().vocabulary);
    let pool = Pool::new(2).unwrap();
    let starts = [0, 9, 13];
    let mut random = Random(4);
    let vectors = random.numbers(13 * hidden, 0.0, 0.8);
    let mut teacher: Vec<f32> = random.numbers(vocabulary, 1.0, 0.9);
    let sum: f32 = teacher.iter().sum();
    teacher.iter_mut().for_each(|p| *p /= sum);
    let target = |row: usize, id: u32, teacher: Option<Vec<f32>>| Target { row, id, teacher };
    let targets = [target(8, 7, None), target(4, 30, Some(teacher)), target(12, 100, None)];
    let (weight, pull) = (0.7f32, 2.0f32);
    let value = |vectors: &[f32]| -> f64 {
        let (loss, _) = model
            .pass(&pool, vectors, &starts, &targets, weight, pull, false, &|| false)
            .unwrap();
        let sums = loss.nats.iter().zip(&loss.divergence);
        sums.map(|(nats, divergence)| f64::from(nats * weight) + f64::from(divergence * pull))
            .sum()
    };
    let (_, gradient) = model
        .pass(&pool, &vectors, &starts, &targets, weight, pull, true, &|| false)
        .unwrap();
    assert_eq!(gradient.len(), vectors.len());
    for place in (0..vectors.len()).step_by(29) {
        let step = 2e-2;
        let moved = |by: f32| {
            let mut vectors = vectors.clone();
            vectors[place] += by;
            value(&vectors)
        };
        let expected = (moved(step) - moved(-step)) / f64::from(2.0 * step);
        let found = f64::from(gradient[place]);
        assert!(
            (found - expected).abs() < 2e-3 + 2e-2 * expected.abs(),
            "{place}: {found} {expected}"
        );
    }
    // Later rows do not matter to earlier targets, nor does the other sequence.
    let (_, first) = model
        .pass(&pool, &vectors, &starts, &targets[1..2], 1.0, 0.0, true, &|| false)
        .unwrap();
    assert!(first[5 * hidden..].iter().all(|x| *x == 0.0) && first[..hidden].iter().any(|x| *x != 0.0));
    assert!(
        model
            .pass(&pool, &vectors, &[0, 9], &targets, 1.0, 0.0, true, &|| false)
            .is_err()
    );
    let stopped = model.pass(&pool, &vectors, &starts, &targets, 1.0, 0.0, true, &|| true);
    assert!(matches!(stopped, Err(crate::compute::ComputeError::Stopped)));
}

#[test]
fn losses_are_those_of_the_runtime() {
    let dir = maker().write();
    let packing = Packing {
        level: Level::detect(),
        precision: Precision::F32,
        unpack: false,
    };
    let llm = Llm::open_with(dir.path(), packing).unwrap();
    let model = Differentiable::open(&LlmFiles::open(dir.path()).unwrap(), Precision::F32).unwrap();
    let pool = Pool::new(2).unwrap();
    let mut ids = Random(6).ids(20, 200);
    // What a prompt of this model begins with.
    ids[0] = 1;
    let hidden = model.config().hidden;
    let mut vectors = vec![0.0f32; ids.len() * hidden];
    for (id, out) in ids.iter().zip(vectors.chunks_exact_mut(hidden)) {
        model.embed(*id, out);
    }
    let targets: Vec<Target> = (9..19)
        .map(|row| Target {
            row,
            id: ids[row + 1],
            teacher: None,
        })
        .collect();
    let (loss, _) = model
        .pass(&pool, &vectors, &[0, 20], &targets, 1.0, 0.0, false, &|| false)
        .unwrap();
    let prompt = llm.prompt(&[Piece::Tokens(ids[..10].to_vec())]).unwrap();
    let scores = llm.score(&pool, &prompt, &ids[10..]).unwrap();
    assert_eq!(scores.len(), loss.nats.len());
    for (nats, score) in loss.nats.iter().zip(&scores) {
        assert!((nats + score).abs() < 1e-3, "{nats} {score}");
    }
    assert!(model.input_scale() > 0.0);
}
