//! What the encoder service costs over the bare forward pass, and how long a query waits while bulk work runs. One JSON
//! object a line.
//!
//! `make bench-service` starts the server with the release build and runs this in release too, so that both sides run
//! the same machine code. The bare side is an encoder in this process with as many threads as the service has, on the
//! same texts at the same precision; both sides take turns, round by round, and the fastest round of each counts.
//!
//! - `bulk_overhead`: one statement that embeds all texts and counts the vectors, over the bare forward pass of their
//!   token ids in one call; a share, 0.05 is 5 %. `bulk_overhead_with_tokenizer` compares with tokenising and the
//!   forward pass one after the other.
//! - `query_overhead_ms`: median of `SELECT situ.embed(question)` less the median of a statement that gives back a
//!   stored vector (the connection, parser and executor) and less the median of tokenising and encoding it bare.
//! - `query_wait_under_bulk_ms`: median of the same query while two connections embed bulk texts, less its median alone;
//!   `query_under_bulk_ms` has its distribution.

use postgres::{Client, NoTls};
use serde_json::json;
use situ::compute::Pool;
use situ::model::{Encoder, Precision, Role, Sequence};
use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const TEXTS: usize = 1200;
const ROUNDS: usize = 5;
const QUERIES: usize = 400;
const BULK_SECONDS: u64 = 12;
const QUESTION: &str = "how do I promote a standby server to primary";
const MODEL: &str = "minilm";

type Failure = Box<dyn Error>;

fn seconds<T>(run: impl FnOnce() -> Result<T, Failure>) -> Result<f64, Failure> {
    let start = Instant::now();
    std::hint::black_box(run()?);
    Ok(start.elapsed().as_secs_f64())
}

fn quantile(times: &mut [f64], share: f64) -> f64 {
    times.sort_by(f64::total_cmp);
    let last = times.len().saturating_sub(1);
    times
        .get((last as f64 * share).round() as usize)
        .copied()
        .unwrap_or(f64::NAN)
}

/// Distinct texts of 10 to 90 words from this repository's own pages.
fn texts() -> Result<Vec<String>, Failure> {
    let mut words = Vec::new();
    for page in ["README.md", "docs/ARCHITECTURE.md", "docs/PERFORMANCE.md"] {
        let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(page))?;
        words.extend(text.split_whitespace().map(str::to_string));
    }
    let text = |number: usize| {
        let length = 10 + number * 7919 % 81;
        let start = number * 31;
        let word = |at: usize| words[(start + at) % words.len()].as_str();
        format!("{number} {}", (0..length).map(word).collect::<Vec<_>>().join(" "))
    };
    Ok((0..TEXTS).map(text).collect())
}

/// A server to measure, and the bare encoder beside it.
struct Bench {
    socket: String,
    client: Client,
    pool: Pool,
    encoder: Encoder,
    texts: Vec<String>,
    precision: Precision,
}

fn connect(socket: &str, database: &str) -> Result<Client, Failure> {
    let mut config = postgres::Config::new();
    config.host_path(socket).user("postgres").dbname(database);
    Ok(config.connect(NoTls)?)
}

impl Bench {
    fn print(&self, metric: &str, value: f64, unit: &str) {
        let line = json!({"bench": "service", "metric": metric, "value": value, "unit": unit, "peer": "bare_forward",
            "precision": self.precision.name(), "model": MODEL, "threads": self.pool.threads()});
        println!("{line}");
    }

    fn bulk(&mut self) -> Result<(), Failure> {
        let statement = self
            .client
            .prepare("SELECT cardinality(situ.embed_batch($1::text[], $2, 'passage'))")?;
        let (mut service, mut forward, mut both) = (f64::MAX, f64::MAX, f64::MAX);
        let mut tokens = 0;
        for _ in 0..ROUNDS {
            let time = seconds(|| {
                let count: i32 = self.client.query_one(&statement, &[&self.texts, &MODEL])?.get(0);
                if count as usize == self.texts.len() {
                    Ok(())
                } else {
                    Err("vectors are missing".into())
                }
            })?;
            service = service.min(time);
            let start = Instant::now();
            let mut sequences: Vec<Sequence> = Vec::new();
            for text in &self.texts {
                sequences.push(self.encoder.text(Role::Passage, text)?);
            }
            sequences.sort_by_key(|sequence| std::cmp::Reverse(sequence.ids.len()));
            tokens = sequences.iter().map(|sequence| sequence.ids.len()).sum();
            let time = seconds(|| Ok(self.encoder.encode(&self.pool, &sequences)?))?;
            forward = forward.min(time);
            both = both.min(start.elapsed().as_secs_f64());
        }
        self.print("bulk_tokens_per_second", tokens as f64 / service, "tokens/s");
        self.print("bare_tokens_per_second", tokens as f64 / forward, "tokens/s");
        self.print("bulk_overhead", service / forward - 1.0, "share");
        self.print("bulk_overhead_with_tokenizer", service / both - 1.0, "share");
        Ok(())
    }

    /// Median seconds of the query through the service.
    fn query(client: &mut Client, runs: usize) -> Result<Vec<f64>, Failure> {
        let statement = client.prepare("SELECT situ.embed($1::text, $2, 'query')::text")?;
        (0..runs)
            .map(|_| seconds(|| Ok(client.query_one(&statement, &[&QUESTION, &MODEL])?)))
            .collect()
    }

    fn queries(&mut self) -> Result<f64, Failure> {
        self.client
            .batch_execute("CREATE TEMP TABLE IF NOT EXISTS stored (v vector); TRUNCATE stored")?;
        self.client.execute(
            "INSERT INTO stored SELECT situ.embed($1::text, $2, 'query')",
            &[&QUESTION, &MODEL],
        )?;
        let stored = self
            .client
            .prepare("SELECT v::text FROM stored WHERE $1::text IS NOT NULL AND $2::text IS NOT NULL")?;
        let (mut alone, mut trivial, mut bare) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            alone.extend(Bench::query(&mut self.client, QUERIES)?);
            for _ in 0..QUERIES {
                trivial.push(seconds(|| Ok(self.client.query_one(&stored, &[&QUESTION, &MODEL])?))?);
            }
            for _ in 0..QUERIES {
                bare.push(seconds(|| {
                    let sequence = self.encoder.text(Role::Query, QUESTION)?;
                    Ok(self.encoder.encode(&self.pool, &[sequence])?)
                })?);
            }
        }
        let [alone, trivial, bare] = [&mut alone, &mut trivial, &mut bare].map(|times| quantile(times, 0.5));
        self.print("query_ms", alone * 1e3, "ms");
        self.print("bare_query_ms", bare * 1e3, "ms");
        self.print("trivial_statement_ms", trivial * 1e3, "ms");
        self.print("query_overhead_ms", (alone - trivial - bare) * 1e3, "ms");
        Ok(alone)
    }

    fn under_bulk(&mut self, alone: f64) -> Result<(), Failure> {
        let stop = AtomicBool::new(false);
        let mut times = std::thread::scope(|scope| -> Result<Vec<f64>, Failure> {
            for _ in 0..2 {
                let (socket, texts, stop) = (&self.socket, &self.texts, &stop);
                scope.spawn(move || {
                    let bulk = || -> Result<(), Failure> {
                        let mut client = connect(socket, "bench_service")?;
                        let statement =
                            client.prepare("SELECT cardinality(situ.embed_batch($1::text[], $2, 'passage'))")?;
                        while !stop.load(Ordering::Relaxed) {
                            client.query_one(&statement, &[texts, &MODEL])?;
                        }
                        Ok(())
                    };
                    if let Err(error) = bulk() {
                        eprintln!("bulk connection: {error}");
                    }
                });
            }
            std::thread::sleep(Duration::from_secs(1));
            let start = Instant::now();
            let mut run = || -> Result<Vec<f64>, Failure> {
                let mut times = Vec::new();
                while start.elapsed() < Duration::from_secs(BULK_SECONDS) {
                    times.extend(Bench::query(&mut self.client, 1)?);
                    std::thread::sleep(Duration::from_millis(13));
                }
                Ok(times)
            };
            let times = run();
            stop.store(true, Ordering::Relaxed);
            times
        })?;
        for (name, share) in [("p50", 0.5), ("p95", 0.95), ("p99", 0.99)] {
            let line = json!({"bench": "service", "metric": "query_under_bulk_ms", "quantile": name, "unit": "ms",
                "value": quantile(&mut times, share) * 1e3, "precision": self.precision.name(), "model": MODEL,
                "queries": times.len()});
            println!("{line}");
        }
        self.print(
            "query_wait_under_bulk_ms",
            (quantile(&mut times, 0.5) - alone) * 1e3,
            "ms",
        );
        Ok(())
    }
}

fn main() -> Result<(), Failure> {
    let (Ok(socket), Ok(models)) = (std::env::var("SITU_BENCH_SOCKET"), std::env::var("SITU_BENCH_MODELS")) else {
        println!("SKIPPED: no server; run `make bench-service`");
        return Ok(());
    };
    let mut admin = connect(&socket, "postgres")?;
    admin.batch_execute("DROP DATABASE IF EXISTS bench_service WITH (FORCE)")?;
    admin.batch_execute("CREATE DATABASE bench_service")?;
    let mut client = connect(&socket, "bench_service")?;
    client.batch_execute("CREATE EXTENSION situ CASCADE")?;
    client.execute("SELECT situ.register_model($1, $1)", &[&MODEL])?;
    let threads = match client
        .query_one("SELECT current_setting('situ.cpu_threads')::int", &[])?
        .get::<_, i32>(0)
    {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads as usize,
    };
    drop(client);
    for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
        let encoder = match Encoder::open_with(&PathBuf::from(&models).join(MODEL), precision) {
            Ok(encoder) => encoder,
            Err(error) => {
                println!("SKIPPED: {}: {error}", precision.name());
                continue;
            }
        };
        admin.batch_execute(&format!("ALTER SYSTEM SET situ.cpu_precision = '{}'", precision.name()))?;
        admin.batch_execute("SELECT pg_reload_conf()")?;
        std::thread::sleep(Duration::from_secs(1));
        let mut bench = Bench {
            client: connect(&socket, "bench_service")?,
            socket: socket.clone(),
            pool: Pool::new(threads)?,
            encoder,
            texts: texts()?,
            precision,
        };
        bench.bulk()?;
        let alone = bench.queries()?;
        bench.under_bulk(alone)?;
    }
    admin.batch_execute("ALTER SYSTEM RESET situ.cpu_precision")?;
    admin.batch_execute("SELECT pg_reload_conf()")?;
    admin.batch_execute("DROP DATABASE bench_service WITH (FORCE)")?;
    Ok(())
}
