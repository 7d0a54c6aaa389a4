//! Encoding on a CUDA GPU: one JSON object a line. Random weights in published shapes, so nothing has to be downloaded.
//!
//! `make bench-gpu`, or `cargo bench --no-default-features --bench gpu [MODEL ...]`. Prints one line SKIPPED where no GPU
//! is found. With `SITU_BENCH_TINY` set the shapes are cut down to what the emulated GPU of the tests can run.
//!
//! - `matmul_tflops`: bf16 product of 8192 x 8192 x 8192 random numbers by cublasLt, the GPU's rate in this run
//! - `tokens_per_second`: ids in host memory to vectors in host memory, many sequences of one length
//! - `matmul_share`: floating-point operations of the passes a second over that rate
//! - `query_ms`: one sequence of 12 tokens, median
//! - `cosine_to_f32`: the least over some sequences, against the processor's f32 pass
//! - `encode_ratio`: tokens a second over those of the peer (`gpu_peer.py`, run by `SITU_BENCH_PYTHON` or `python3`)

use half::bf16;
use serde_json::{Value, json};
use situ::compute::cpu::Level;
use situ::compute::cuda::bert::{Bert, BertShape, EmbeddingWeights, LayerWeights, LinearWeights, NormWeights};
use situ::compute::cuda::decoder::{Decoder, DecoderLayerWeights, DecoderShape, DecoderWeights, rotations};
use situ::compute::cuda::gpu::{Event, Memory, Stream};
use situ::compute::cuda::matmul::{Epilogue, Product, SCRATCH};
use situ::compute::cuda::{Engine, Range, Request, Runner, gpus};
use situ::compute::forward::bert as cpu;
use situ::compute::rowwise::pooling;
use situ::compute::{Activation, ComputeError, LayerNorm, Linear, Pool, Precision};
use situ::random::splitmix64;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

type Failure = Box<dyn std::error::Error>;

/// A published shape.
#[derive(Clone)]
struct Model {
    name: &'static str,
    layers: usize,
    hidden: usize,
    heads: usize,
    /// Heads of keys and values, and numbers of a head, of a decoder.
    decoder: Option<(usize, usize)>,
    inner: usize,
    vocabulary: usize,
    positions: usize,
    first_place: usize,
    lengths: &'static [usize],
}

const MODELS: [Model; 4] = [
    Model {
        name: "minilm",
        layers: 6,
        hidden: 384,
        heads: 12,
        decoder: None,
        inner: 1536,
        vocabulary: 30_522,
        positions: 512,
        first_place: 0,
        lengths: &[128, 512],
    },
    Model {
        name: "bge-large",
        layers: 24,
        hidden: 1024,
        heads: 16,
        decoder: None,
        inner: 4096,
        vocabulary: 30_522,
        positions: 512,
        first_place: 0,
        lengths: &[128, 512],
    },
    Model {
        name: "bge-m3",
        layers: 24,
        hidden: 1024,
        heads: 16,
        decoder: None,
        inner: 4096,
        vocabulary: 250_002,
        positions: 8194,
        first_place: 2,
        lengths: &[512, 8192],
    },
    Model {
        name: "qwen3-embedding-0.6b",
        layers: 28,
        hidden: 1024,
        heads: 16,
        decoder: Some((8, 128)),
        inner: 3072,
        vocabulary: 151_669,
        positions: 32_768,
        first_place: 0,
        lengths: &[512, 8192],
    },
];

/// Random numbers around 0 with the deviation of Hugging Face's initialisers (a uniform distribution; the weights' second
/// moment is what the pass sees).
struct Random(u64);

impl Random {
    fn numbers(&mut self, count: usize) -> Vec<f32> {
        let width = 0.02 * 3f32.sqrt();
        (0..count)
            .map(|_| ((splitmix64(&mut self.0) >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * width)
            .collect()
    }

    fn linear(&mut self, outputs: usize, inputs: usize, bias: bool) -> LinearWeights {
        LinearWeights {
            weight: self.numbers(outputs * inputs),
            bias: bias.then(|| self.numbers(outputs)),
        }
    }
}

impl Model {
    /// Cut down to what the emulated GPU runs in seconds.
    fn tiny(self) -> Model {
        Model {
            layers: 1,
            hidden: 128,
            heads: 4,
            decoder: self.decoder.map(|_| (2, 32)),
            inner: 128,
            vocabulary: 100,
            positions: 130,
            lengths: &[64, 128],
            ..self
        }
    }

    fn embedding(&self) -> EmbeddingWeights {
        EmbeddingWeights {
            words: Random(1).numbers(self.vocabulary * self.hidden),
            positions: Random(2).numbers(self.positions * self.hidden),
            norm: self.norm(),
        }
    }

    fn norm(&self) -> NormWeights {
        NormWeights {
            scale: vec![1.0; self.hidden],
            shift: vec![0.0; self.hidden],
        }
    }

    fn layer(&self, number: usize) -> LayerWeights {
        let random = &mut Random(100 + number as u64);
        LayerWeights {
            qkv: random.linear(3 * self.hidden, self.hidden, true),
            attention_output: random.linear(self.hidden, self.hidden, true),
            attention_norm: self.norm(),
            up: random.linear(self.inner, self.hidden, true),
            down: random.linear(self.hidden, self.inner, true),
            output_norm: self.norm(),
        }
    }

    fn on_card(&self, engine: &Arc<Engine>, exact_gelu: bool) -> Result<Runner, ComputeError> {
        let Some((key_heads, head_size)) = self.decoder else {
            let shape = BertShape {
                hidden: self.hidden,
                heads: self.heads,
                intermediate: self.inner,
                activation: Activation::Gelu,
                epsilon: 1e-12,
                first_place: self.first_place,
                exact_gelu,
            };
            let layers = (0..self.layers).map(|number| Ok::<_, ComputeError>(self.layer(number)));
            return Runner::new(engine, Box::new(Bert::new(engine, shape, self.embedding(), layers)?));
        };
        let shape = DecoderShape {
            hidden: self.hidden,
            heads: self.heads,
            key_heads,
            head_size,
            intermediate: self.inner,
            epsilon: 1e-6,
            window: None,
        };
        let weights = DecoderWeights {
            words: Random(1).numbers(self.vocabulary * self.hidden),
            norm: vec![1.0; self.hidden],
            rotations: rotations(1e6, head_size, self.positions).expect("memory"),
        };
        let layers = (0..self.layers).map(|number| {
            let random = &mut Random(100 + number as u64);
            let inner = self.heads * head_size;
            Ok::<_, ComputeError>(DecoderLayerWeights {
                attention_norm: vec![1.0; self.hidden],
                qkv: random.linear(inner + 2 * key_heads * head_size, self.hidden, false),
                head_norms: Some((vec![1.0; head_size], vec![1.0; head_size])),
                attention_output: random.linear(self.hidden, inner, false),
                feed_forward_norm: vec![1.0; self.hidden],
                gate_up: random.linear(2 * self.inner, self.hidden, false),
                down: random.linear(self.hidden, self.inner, false),
            })
        });
        Runner::new(engine, Box::new(Decoder::new(engine, shape, weights, layers)?))
    }

    /// The processor's f32 pass over the same weights; none for decoders.
    fn on_cpu(&self) -> Result<Option<cpu::Bert>, ComputeError> {
        if self.decoder.is_some() {
            return Ok(None);
        }
        let level = Level::detect();
        let linear = |weights: LinearWeights, inputs: usize| {
            let bias = weights.bias.unwrap_or_default();
            Linear::new(level, Precision::F32, &weights.weight, &bias, inputs)
        };
        let norm = |weights: NormWeights| LayerNorm::new(&weights.scale, &weights.shift, 1e-12);
        let embedding = self.embedding();
        let mut layers = Vec::new();
        for number in 0..self.layers {
            let layer = self.layer(number);
            layers.push(cpu::Layer {
                qkv: linear(layer.qkv, self.hidden)?,
                attention_output: linear(layer.attention_output, self.hidden)?,
                attention_norm: norm(layer.attention_norm)?,
                up: linear(layer.up, self.hidden)?,
                down: linear(layer.down, self.inner)?,
                output_norm: norm(layer.output_norm)?,
            });
        }
        Ok(Some(cpu::Bert {
            level,
            precision: Precision::F32,
            hidden: self.hidden,
            heads: self.heads,
            intermediate: self.inner,
            activation: Activation::Gelu,
            words: embedding.words,
            positions: embedding.positions[self.first_place * self.hidden..].to_vec(),
            embedding_norm: norm(embedding.norm)?,
            layers,
            spare: cpu::Spare::default(),
        }))
    }

    /// Floating-point operations a token in a sequence of that length.
    fn operations(&self, length: usize) -> f64 {
        let (key_heads, size) = self.decoder.unwrap_or((self.heads, self.hidden / self.heads));
        let inner = self.heads * size;
        let ups = if self.decoder.is_some() { 2 } else { 1 };
        let weights =
            self.hidden * (inner + 2 * key_heads * size) + inner * self.hidden + (ups + 1) * self.hidden * self.inner;
        let seen = if self.decoder.is_some() {
            (length + 1) as f64 / 2.0
        } else {
            length as f64
        };
        self.layers as f64 * (2.0 * weights as f64 + 4.0 * seen * inner as f64)
    }

    fn sequences(&self, count: usize, length: usize) -> Vec<Vec<u32>> {
        let mut state = 7u64;
        (0..count)
            .map(|_| {
                (0..length)
                    .map(|_| (splitmix64(&mut state) % self.vocabulary as u64) as u32)
                    .collect()
            })
            .collect()
    }

    /// The pooling of the family: the mean, or a decoder's last token.
    fn requests<'a>(&self, sequences: &'a [Vec<u32>]) -> Vec<Request<'a>> {
        let request = |ids: &'a Vec<u32>| {
            let end = ids.len() as u32;
            let start = if self.decoder.is_some() { end - 1 } else { 0 };
            Request {
                ids,
                ranges: vec![Range {
                    start,
                    end,
                    largest: false,
                    unit: true,
                }],
            }
        };
        sequences.iter().map(request).collect()
    }
}

/// Median seconds of the runs that fit into `limit` seconds, at least three, after one that does not count.
fn median(limit: f64, mut run: impl FnMut() -> Result<(), ComputeError>) -> Result<f64, ComputeError> {
    run()?;
    run()?;
    let start = Instant::now();
    let mut times = Vec::new();
    while times.len() < 3 || (start.elapsed().as_secs_f64() < limit && times.len() < 1000) {
        let begin = Instant::now();
        run()?;
        times.push(begin.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

/// Operations a second of a large bf16 product, timed on the GPU.
fn matmul_rate(engine: &Arc<Engine>, size: usize) -> Result<f64, ComputeError> {
    let stream = Stream::new(&engine.gpu)?;
    let mut random = Random(5);
    let product = Product::new(
        &engine.matmul,
        &stream,
        &random.numbers(size * size),
        None,
        size,
        Epilogue::Bias,
    )?;
    let numbers: Vec<bf16> = random.numbers(size * size).into_iter().map(bf16::from_f32).collect();
    let x = Memory::from_slice(&stream, &numbers)?;
    let out = Memory::<bf16>::new(&engine.gpu, size * size)?;
    let scratch = Memory::<u8>::new(&engine.gpu, SCRATCH)?;
    let (before, after) = (Event::new(&engine.gpu)?, Event::new(&engine.gpu)?);
    let mut times = Vec::new();
    for round in 0..8 {
        const REPEATS: usize = 5;
        before.record(&stream)?;
        for _ in 0..REPEATS {
            product.run(&stream, &x, &out, size, &scratch)?;
        }
        after.record(&stream)?;
        stream.wait()?;
        if round > 1 {
            times.push(after.seconds_since(&before)? / REPEATS as f64);
        }
    }
    times.sort_by(f64::total_cmp);
    Ok(2.0 * (size as f64).powi(3) / times[times.len() / 2])
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// The least cosine between a GPU's vectors and the processor's.
fn least_cosine(model: &Model, runner: &Runner, twin: &cpu::Bert) -> Result<f64, ComputeError> {
    let pool = Pool::new(std::thread::available_parallelism().map_or(1, usize::from))?;
    let mut least = 1.0f64;
    for length in [1, 33, 128] {
        let sequences = model.sequences(2, length);
        let found = runner.run(&model.requests(&sequences), &|| false)?;
        for (ids, found) in sequences.into_iter().zip(&found) {
            let packed = cpu::Packed {
                starts: vec![0, ids.len()],
                ids,
            };
            let states = twin.forward(&pool, &packed, &|| false)?;
            least = least.min(cosine(&pooling::mean(&states, model.hidden), found));
        }
    }
    Ok(least)
}

/// Tokens a second of the peer, or `None` with a line that says why.
fn peer(model: &Model, length: usize) -> Option<f64> {
    let script = std::env::var_os("SITU_BENCH_PEER").map(PathBuf::from);
    let script = script.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("benches/gpu_peer.py"));
    let python = std::env::var_os("SITU_BENCH_PYTHON").unwrap_or_else(|| "python3".into());
    let shape = json!({"layers": model.layers, "hidden": model.hidden, "heads": model.heads, "inner": model.inner,
        "decoder": model.decoder, "vocabulary": model.vocabulary, "positions": model.positions,
        "first_place": model.first_place, "length": length});
    let output = Command::new(python)
        .arg(script)
        .arg(shape.to_string())
        .stderr(Stdio::inherit())
        .output();
    let answer = output
        .ok()
        .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_string())
        .unwrap_or_default();
    let last = answer.lines().last().unwrap_or_default();
    let rate = serde_json::from_str::<Value>(last)
        .ok()
        .and_then(|value| value["tokens_per_second"].as_f64());
    if rate.is_none() {
        println!(
            "SKIPPED: sentence_transformers {} {length}: {}",
            model.name,
            if last.is_empty() { "no answer" } else { last }
        );
    }
    rate
}

fn measure(engine: &Arc<Engine>, model: &Model, rate: f64, tiny: bool) -> Result<(), Failure> {
    let gpu = &engine.gpu.info.name;
    let print = |metric: &str, value: f64, length: usize, more: Value| {
        let mut line = json!({"bench": "gpu", "metric": metric, "value": value, "model": model.name, "length": length,
            "precision": "bf16", "card": gpu});
        if let (Some(line), Some(more)) = (line.as_object_mut(), more.as_object()) {
            line.extend(more.clone());
        }
        println!("{line}");
    };
    let (tokens, limit) = if tiny { (512, 0.0) } else { (131_072, 3.0) };
    let runner = model.on_card(engine, false)?;
    for &length in model.lengths {
        let sequences = model.sequences((tokens / length).max(1), length);
        let requests = model.requests(&sequences);
        let seconds = median(limit, || runner.run(&requests, &|| false).map(drop))?;
        let speed = (sequences.len() * length) as f64 / seconds;
        print(
            "tokens_per_second",
            speed,
            length,
            json!({"sequences": sequences.len()}),
        );
        print(
            "matmul_share",
            speed * model.operations(length) / rate,
            length,
            json!({"matmul_tflops": rate / 1e12}),
        );
        if let Some(other) = (!tiny).then(|| peer(model, length)).flatten() {
            let more = json!({"peer": "sentence_transformers", "peer_tokens_per_second": other});
            print("encode_ratio", speed / other, length, more);
        }
    }
    let query = model.sequences(1, 12);
    let seconds = median(limit / 3.0, || runner.run(&model.requests(&query), &|| false).map(drop))?;
    print("query_ms", seconds * 1e3, 12, json!({}));
    if let Some(twin) = model.on_cpu()? {
        print("cosine_to_f32", least_cosine(model, &runner, &twin)?, 128, json!({}));
        let exact = model.on_card(engine, true)?;
        let length = *model.lengths.last().unwrap_or(&128);
        let sequences = model.sequences((tokens / length).max(1), length);
        let seconds = median(limit, || exact.run(&model.requests(&sequences), &|| false).map(drop))?;
        let speed = (sequences.len() * length) as f64 / seconds;
        print("tokens_per_second", speed, length, json!({"gelu": "exact"}));
        print(
            "cosine_to_f32",
            least_cosine(model, &exact, &twin)?,
            128,
            json!({"gelu": "exact"}),
        );
    }
    Ok(())
}

fn main() -> Result<(), Failure> {
    if gpus().is_empty() {
        println!("SKIPPED: gpu: no CUDA card on this machine");
        return Ok(());
    }
    let tiny = std::env::var_os("SITU_BENCH_TINY").is_some();
    let begin = Instant::now();
    let engine = match Engine::open(0, None) {
        Ok(engine) => engine,
        Err(error @ ComputeError::Library { .. }) => {
            println!("SKIPPED: gpu: {error}");
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    let gpu = engine.gpu.info.name.clone();
    let seconds = begin.elapsed().as_secs_f64();
    println!(
        "{}",
        json!({"bench": "gpu", "metric": "compile_seconds", "value": seconds, "card": gpu})
    );
    let rate = matmul_rate(&engine, if tiny { 64 } else { 8192 })?;
    println!(
        "{}",
        json!({"bench": "gpu", "metric": "matmul_tflops", "value": rate / 1e12, "card": gpu})
    );
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    for model in MODELS {
        if wanted.is_empty() || wanted.iter().any(|name| name == model.name) {
            let model = if tiny { model.tiny() } else { model };
            measure(&engine, &model, rate, tiny)?;
        }
    }
    Ok(())
}
