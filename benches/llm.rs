//! Tokens a second of a small LLM, beside llama.cpp on the same file and threads, in turns.
//!
//! `SITU_BENCH_LLM` names the model's file, `SITU_BENCH_LLAMA` the folder that llama-cpp-python was built into; without the
//! second only our own figures are printed. The peer makes no answer: it decodes as its own bench does, without sampling, while
//! ours chooses tokens and makes text.

use serde_json::{Value, json};
use situ::compute::Pool;
use situ::model::llm::cache::Cache;
use situ::model::llm::hooks::Hooks;
use situ::model::llm::{Batcher, Event, Llm, PREFILL_ROWS, Piece, Request};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

const PROMPT: usize = 512;
const ANSWER: usize = 128;
const ROUNDS: usize = 7;
/// Answers that are made together.
const TOGETHER: usize = 8;

struct Peer {
    _child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Peer {
    fn start(folder: &str, model: &str, threads: usize) -> Peer {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peers/llama.py");
        let arguments = [
            script,
            model,
            &threads.to_string(),
            &PROMPT.to_string(),
            &ANSWER.to_string(),
        ];
        let mut child = Command::new("python3")
            .args(arguments)
            .env("PYTHONPATH", folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 starts");
        let to = child.stdin.take().expect("its input");
        let from = BufReader::new(child.stdout.take().expect("its output"));
        let mut peer = Peer {
            _child: child,
            to,
            from,
        };
        peer.line();
        peer
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.from.read_line(&mut line).expect("a line of the peer");
        serde_json::from_str(&line).expect("JSON of the peer")
    }

    /// Seconds of a prompt and of an answer's tokens.
    fn run(&mut self, text: &str) -> [f64; 2] {
        writeln!(self.to, "{text}").expect("the peer listens");
        let line = self.line();
        assert_eq!(line["answered"], ANSWER, "the peer's answer ended early");
        ["prefill", "decode"].map(|name| line[name].as_f64().expect("seconds"))
    }
}

fn print(metric: &str, value: f64, unit: &str, peer: Option<&str>, more: Value) {
    let mut line =
        json!({"bench": "llm", "metric": metric, "value": value, "unit": unit, "model": "smollm2-135m-q4_1"});
    if let Some(peer) = peer {
        line["peer"] = json!(peer);
    }
    line.as_object_mut()
        .expect("an object")
        .extend(more.as_object().cloned().unwrap_or_default());
    println!("{line}");
}

/// Seconds of a prompt and of an answer's tokens behind the first, through the batcher.
fn ours(llm: &Arc<Llm>, batcher: &mut Batcher, text: &str, together: usize) -> [f64; 2] {
    for key in 0..together as u64 {
        let mut ids = llm.tokenizer().encode(text).expect("tokens");
        ids.truncate(PROMPT);
        let request = Request {
            prompt: llm.prompt(&[Piece::Tokens(ids)]).expect("a prompt"),
            max_tokens: ANSWER + 1,
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            seed: 0,
            stop: Vec::new(),
        };
        batcher.add(key, request).expect("added");
    }
    let begin = Instant::now();
    let (mut firsts, mut prefill, mut more) = (0, 0.0, true);
    let mut seen = vec![0usize; together];
    while more {
        more = batcher
            .step(&|| false, &mut |key, event| {
                if let Event::Token { .. } = event {
                    seen[key as usize] += 1;
                    if seen[key as usize] == 1 {
                        firsts += 1;
                        prefill = begin.elapsed().as_secs_f64();
                    }
                }
            })
            .expect("a step");
    }
    assert!(
        firsts == together && seen.iter().all(|count| *count == ANSWER + 1),
        "an answer ended early: {seen:?}"
    );
    [prefill, begin.elapsed().as_secs_f64() - prefill]
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let Ok(model) = std::env::var("SITU_BENCH_LLM") else {
        println!("SKIPPED: SITU_BENCH_LLM names no model");
        return;
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let llm = Arc::new(Llm::open(model.as_ref()).expect("a model"));
    let mut batcher = Batcher::new(llm.clone(), threads, 4 << 30).expect("a batcher");
    let text =
        "The committee met on the third day and read the letters that had come from the northern harbours. ".repeat(40);
    let text = text.trim();
    let mut peer = std::env::var("SITU_BENCH_LLAMA")
        .ok()
        .map(|folder| Peer::start(&folder, &model, threads));
    let mut seconds: [Vec<[f64; 2]>; 2] = Default::default();
    for round in 0..=ROUNDS {
        let own = ours(&llm, &mut batcher, text, 1);
        let other = peer.as_mut().map(|peer| peer.run(text));
        // The first round warms both.
        if round > 0 {
            seconds[0].push(own);
            seconds[1].extend(other);
        }
    }
    let rate = |who: usize, part: usize, tokens: usize| {
        let all: Vec<f64> = seconds[who].iter().map(|round| tokens as f64 / round[part]).collect();
        (!all.is_empty()).then(|| median(all))
    };
    let facts = json!({"threads": threads, "prompt": PROMPT, "answer": ANSWER});
    for (part, name, tokens) in [(0, "prefill", PROMPT), (1, "decode", ANSWER)] {
        let own = rate(0, part, tokens).unwrap_or_default();
        print(
            &format!("{name}_tokens_per_second"),
            own,
            "tokens/s",
            None,
            facts.clone(),
        );
        if let Some(other) = rate(1, part, tokens) {
            print(
                &format!("{name}_tokens_per_second"),
                other,
                "tokens/s",
                Some("llama_cpp"),
                facts.clone(),
            );
            let ratios = seconds[0]
                .iter()
                .zip(&seconds[1])
                .map(|(own, other)| other[part] / own[part]);
            print(
                &format!("{name}_ratio"),
                median(ratios.collect()),
                "ratio",
                Some("llama_cpp"),
                facts.clone(),
            );
        }
    }
    // What the memory has to give for a token, as a share of what it gives.
    let bytes = llm.memory() as f64;
    let decode = rate(0, 1, ANSWER).unwrap_or_default();
    print(
        "decode_bytes_per_second",
        bytes * decode / 1e9,
        "GB/s",
        None,
        facts.clone(),
    );
    print(
        "memory_bytes_per_second",
        memory_speed(threads) / 1e9,
        "GB/s",
        None,
        facts.clone(),
    );
    let many = ours(&llm, &mut batcher, text, TOGETHER);
    let more = json!({"threads": threads, "together": TOGETHER});
    print(
        "decode_tokens_per_second",
        (TOGETHER * ANSWER) as f64 / many[1],
        "tokens/s",
        None,
        more,
    );
    let pool = Pool::new(threads).expect("a pool");
    let mut ids = llm.tokenizer().encode(text).expect("tokens");
    ids.truncate(PREFILL_ROWS);
    let prompt = llm.prompt(&[Piece::Tokens(ids)]).expect("a prompt");
    let begin = Instant::now();
    let mut cache = Cache::new(llm.config());
    llm.read(&pool, &prompt, &mut cache, 1, &mut Hooks::default(), &|| false)
        .expect("read");
    print(
        "prefill_part_ms",
        begin.elapsed().as_secs_f64() * 1e3,
        "ms",
        None,
        json!({"prompt": PREFILL_ROWS}),
    );
}

/// Bytes a second that all threads read together, of a table far larger than the caches.
fn memory_speed(threads: usize) -> f64 {
    let table = vec![1u64; 64 << 20];
    let part = table.len() / threads;
    let mut best = 0.0f64;
    for _ in 0..3 {
        let begin = Instant::now();
        let sum: u64 = std::thread::scope(|scope| {
            let parts: Vec<_> = table
                .chunks(part)
                .map(|part| scope.spawn(move || part.iter().copied().fold(0u64, u64::wrapping_add)))
                .collect();
            parts
                .into_iter()
                .map(|part| part.join().expect("a sum"))
                .fold(0, u64::wrapping_add)
        });
        assert!(sum > 0);
        best = best.max(table.len() as f64 * 8.0 / begin.elapsed().as_secs_f64());
    }
    best
}
