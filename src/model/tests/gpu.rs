//! A real model on a GPU (or the emulated one) against the same model on the processor.

use super::families::{Sizes, mistral, modern_bert, qwen3};
use crate::compute::cuda::testing::bench;
use crate::compute::{ComputeError, Pool};
use crate::model::{Device, Encoder, ModelError, Precision, Read, Role, Sequence};

const TEXTS: [&str; 4] = [
    "how do I promote a standby server to be primary",
    "VACUUM",
    "A table is rewritten when a column is added with a volatile default; otherwise the catalog alone changes, and the \
     rows that are there already answer with the default that was given, until they are next updated.",
    "Der Himmel über Berlin ist blau.",
];

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[test]
fn minilm_on_a_gpu_is_close_to_f32() {
    let Some(dir) = super::minilm() else { return };
    let Some(_bench) = bench() else { return };
    let cpu = Encoder::open(&dir).unwrap();
    let cache = tempfile::tempdir().unwrap();
    let gpu = Encoder::open_on(&dir, Device::Cuda(0), Precision::F32, Some(cache.path())).unwrap();
    assert_eq!(gpu.precision(), Precision::Bf16);
    let pool = Pool::new(2).unwrap();
    let mut batch: Vec<Sequence> = TEXTS.iter().map(|text| cpu.text(Role::Plain, text).unwrap()).collect();
    let spans = Read::Spans(vec![0..3, 2..9, 1..2]);
    batch.push(Sequence {
        ids: batch[2].ids.clone(),
        read: spans,
    });
    batch.push(Sequence {
        ids: batch[0].ids.clone(),
        read: Read::Spans(Vec::new()),
    });
    let (expected, found) = (cpu.encode(&pool, &batch).unwrap(), gpu.encode(&pool, &batch).unwrap());
    assert_eq!(expected.len(), found.len());
    for (expected, found) in expected.iter().zip(&found) {
        let cosine = cosine(expected, found);
        println!("cosine to f32: {cosine:.6}");
        assert!(cosine >= 0.9995, "{cosine}");
    }
    let alone = gpu.encode(&pool, &batch[2..3]).unwrap();
    assert!(
        alone[0] == found[2],
        "a text's vector has the same bits alone and in a batch"
    );
    let missing = Encoder::open_on(&dir, Device::Cuda(99), Precision::Bf16, None);
    assert!(matches!(missing, Err(ModelError::Compute(ComputeError::Device(_)))));
}

/// Heads of 32 numbers, as the GPU's kernels need; more query heads than the hidden size holds, as Qwen3 has.
const SIZES: Sizes = Sizes {
    hidden: 64,
    heads: 4,
    key_heads: 2,
    width: 32,
    intermediate: 96,
    layers: 2,
};

fn sequences(cpu: &Encoder) -> Vec<Sequence> {
    let mut batch: Vec<Sequence> = TEXTS.iter().map(|text| cpu.text(Role::Query, text).unwrap()).collect();
    batch.push(Sequence {
        ids: batch[2].ids.clone(),
        read: Read::Spans(vec![0..3, 2..9, 1..2]),
    });
    batch
}

#[test]
fn decoders_on_a_gpu_are_close_to_f32() {
    let Some(_bench) = bench() else { return };
    let cache = tempfile::tempdir().unwrap();
    let pool = Pool::new(2).unwrap();
    let mut windowed = mistral(SIZES);
    windowed.config["sliding_window"] = 20.into();
    let mut biased = qwen3(SIZES);
    biased.config["rope_theta"] = 10_000.into();
    for (name, maker) in [
        ("qwen3", qwen3(SIZES)),
        ("qwen3 of another base", biased),
        ("mistral", mistral(SIZES)),
        ("mistral with a window", windowed),
    ] {
        let dir = maker.write();
        let cpu = Encoder::open(dir.path()).unwrap();
        let gpu = Encoder::open_on(dir.path(), Device::Cuda(0), Precision::F32, Some(cache.path())).unwrap();
        assert!(gpu.memory() > 0);
        let batch = sequences(&cpu);
        assert!(
            batch.iter().any(|sequence| sequence.ids.len() > 40),
            "longer than the window"
        );
        let (expected, found) = (cpu.encode(&pool, &batch).unwrap(), gpu.encode(&pool, &batch).unwrap());
        assert_eq!(expected.len(), found.len());
        let least = expected
            .iter()
            .zip(&found)
            .map(|(a, b)| cosine(a, b))
            .fold(1.0, f64::min);
        println!("{name}: least cosine to f32 {least:.6}");
        assert!(least >= 0.9995, "{name}: {least}");
        assert!(
            gpu.encode(&pool, &batch[1..2]).unwrap()[0] == found[1],
            "{name}: alone and in a batch"
        );
    }
}

#[test]
fn what_a_gpu_cannot_run_is_said() {
    let Some(_bench) = bench() else { return };
    let open = |dir: &std::path::Path| Encoder::open_on(dir, Device::Cuda(0), Precision::F32, None).map(drop);
    let family = open(modern_bert().write().path());
    assert!(
        matches!(&family, Err(ModelError::Unsupported { found, .. }) if found == "ModernBert"),
        "{family:?}"
    );
    let heads = open(qwen3(Sizes::SMALL).write().path());
    assert!(
        matches!(&heads, Err(ModelError::Compute(ComputeError::Shape(_)))),
        "{heads:?}"
    );
}
