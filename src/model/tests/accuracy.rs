//! The lower precisions against f32, on sentences of a made-up kind and on passages of the judged collections.

use super::minilm;
use super::reference::{cosine, sequences};
use crate::compute::Pool;
use crate::compute::cpu::Level;
use crate::fixtures;
use crate::model::{Encoder, Precision, Role, Sequence};

/// Least cosine to f32 that a precision may have.
fn least_wanted(precision: Precision) -> f64 {
    if precision == Precision::Int8 { 0.999 } else { 0.9999 }
}

/// Least and mean cosine of a precision's vectors to those of f32.
fn closeness(reference: &[Vec<f32>], encoder: &Encoder, pool: &Pool, batch: &[Sequence]) -> (f64, f64) {
    let found = encoder.encode(pool, batch).unwrap();
    let cosines: Vec<f64> = reference.iter().zip(&found).map(|(a, b)| cosine(a, b)).collect();
    let least = cosines.iter().copied().fold(1.0, f64::min);
    (least, cosines.iter().sum::<f64>() / cosines.len() as f64)
}

fn check(texts: &str, batch: impl Fn(&Encoder) -> Vec<Sequence>) {
    let Some(dir) = minilm() else { return };
    let pool = Pool::new(2).unwrap();
    let reference = Encoder::open(&dir).unwrap();
    let batch = batch(&reference);
    let expected = reference.encode(&pool, &batch).unwrap();
    for level in Level::available() {
        for precision in [Precision::Bf16, Precision::Int8] {
            let Ok(encoder) = Encoder::open_at(&dir, precision, level) else {
                println!("SKIPPED: no instructions for {} here", precision.name());
                continue;
            };
            let (least, mean) = closeness(&expected, &encoder, &pool, &batch);
            let name = precision.name();
            let count = batch.len();
            println!("{name} at {level:?}, {count} of {texts}: least cosine {least:.6}, mean {mean:.6}");
            assert!(
                least >= least_wanted(precision),
                "{name} on {texts} at {level:?}: {least}"
            );
            assert!(encoder.memory() < reference.memory());
        }
    }
}

#[test]
fn low_precisions_stay_close_on_odd_texts() {
    check("odd texts", sequences);
}

#[test]
fn low_precisions_stay_close_on_random_ids() {
    check("random sequences", |encoder| {
        let vocabulary = encoder.manifest().vocabulary;
        let mut sequences = Vec::new();
        for number in 0..40usize {
            let mut sequence = encoder.text(Role::Passage, "a").unwrap();
            let length = 3 + number * 6;
            sequence.ids = (0..length)
                .map(|i| ((number * 7919 + i * 104_729) % vocabulary) as u32)
                .collect();
            sequences.push(sequence);
        }
        sequences
    });
}

/// Texts of the judged collections, evenly taken and cut to mixed lengths; none where the data are not there.
fn passages() -> Vec<String> {
    let mut texts = Vec::new();
    for (folder, file, count) in [
        ("fairytaleqa", "corpus.jsonl", 60),
        ("scifact", "corpus.jsonl", 60),
        ("hotpotqa_small", "queries.jsonl", 40),
        ("scifact", "queries.jsonl", 40),
    ] {
        let Some(folder) = fixtures::data(folder) else { continue };
        let content = std::fs::read_to_string(folder.join(file)).unwrap();
        let lines: Vec<&str> = content.lines().collect();
        for (number, line) in lines
            .iter()
            .step_by((lines.len() / count).max(1))
            .take(count)
            .enumerate()
        {
            let row: serde_json::Value = serde_json::from_str(line).unwrap();
            let length = [60, 200, 500, 1500][number % 4];
            texts.push(row["text"].as_str().unwrap().chars().take(length).collect());
        }
    }
    texts
}

#[test]
fn low_precisions_stay_close_on_judged_texts() {
    let texts = passages();
    if texts.is_empty() {
        return;
    }
    check("judged texts", |encoder| {
        texts
            .iter()
            .map(|text| encoder.text(Role::Passage, text).unwrap())
            .collect()
    });
}
