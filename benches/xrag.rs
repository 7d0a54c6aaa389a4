//! Passages a second of the training of a projector through a small LLM, and questions a second of its second stage.
//!
//! `SITU_BENCH_LLM` names the model's file; the encoder is not part of it: vectors are random. Passages are of made-up
//! sentences, longer than the tokens that have to be said: as many as by default, and twice as many.

use serde_json::{Value, json};
use situ::bridge::BridgeError;
use situ::bridge::train::data::{Encode, Monitor, Pair, Passage, Progress, Vectors};
use situ::bridge::train::run::Run;
use situ::bridge::xrag::train;
use situ::model::Role;
use situ::random::Random;
use std::path::PathBuf;
use std::time::Instant;

/// Numbers of a passage's vector.
const DIMENSIONS: usize = 384;
/// Questions, or passages, of a step, as by default.
const BATCH: usize = 4;
/// Stages with the tokens that are said and the words of a passage; the teacher of the second reads all of them.
const STAGES: [(&str, usize, usize); 3] = [("paraphrase", 32, 70), ("paraphrase", 64, 70), ("answers", 32, 160)];

struct Encoder {
    llm: PathBuf,
    random: Random,
}

impl Encode for Encoder {
    fn embed(&mut self, _role: Role, texts: &[&str]) -> Result<Vectors, BridgeError> {
        let numbers = 0..texts.len() * DIMENSIONS;
        let values = numbers.map(|_| (self.random.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0);
        Ok(Vectors {
            dimensions: DIMENSIONS,
            values: values.collect(),
        })
    }

    fn tokens(&mut self, _texts: &[&str]) -> Result<Vec<Vec<u32>>, BridgeError> {
        Err(BridgeError::NoReading("tokens"))
    }

    fn language_model(&mut self, _name: &str) -> Result<PathBuf, BridgeError> {
        Ok(self.llm.clone())
    }
}

/// When the first and the last step that were seen began.
#[derive(Default)]
struct Clock {
    first: Option<(u64, Instant)>,
    last: Option<(u64, Instant)>,
}

impl Monitor for Clock {
    fn step(&mut self, progress: &Progress) -> Result<(), BridgeError> {
        let now = (progress.step, Instant::now());
        if progress.steps > 0 && self.last.is_none_or(|(step, _)| step < progress.step) {
            self.first = self.first.or(Some(now));
            self.last = Some(now);
        }
        Ok(())
    }

    fn checkpoint(&mut self, _bytes: &[u8]) -> Result<(), BridgeError> {
        Ok(())
    }
}

fn passages(count: usize, words: usize) -> Vec<Passage> {
    const WORD: [&str; 24] = [
        "the",
        "harbour",
        "letters",
        "of",
        "committee",
        "a",
        "northern",
        "had",
        "been",
        "read",
        "and",
        "winter",
        "captain",
        "was",
        "by",
        "old",
        "market",
        "in",
        "stone",
        "bridge",
        "carried",
        "from",
        "morning",
        "river",
    ];
    let mut random = Random::new(7);
    let passage = |number: usize| Passage {
        key: number.to_string(),
        document: number as u32,
        ordinal: 0,
        vector: None,
        text: (0..words)
            .map(|word| match word % 12 {
                11 => ".",
                _ => WORD[random.below(WORD.len())],
            })
            .collect::<Vec<_>>()
            .join(" "),
    };
    (0..count).map(passage).collect()
}

fn main() {
    let Ok(model) = std::env::var("SITU_BENCH_LLM") else {
        println!("SKIPPED: SITU_BENCH_LLM names no model");
        return;
    };
    let count = std::env::var("SITU_BENCH_PASSAGES")
        .ok()
        .and_then(|count| count.parse().ok());
    let count = count.unwrap_or(600usize);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    for (stage, text_tokens, words) in STAGES {
        let passages = passages(count, words);
        let pairs: Vec<Pair> = (0..count)
            .map(|number| Pair {
                query: "What had been carried from the river in the morning?".to_owned(),
                passage: number as u32,
                answer: Some("the letters of the old committee".to_owned()),
            })
            .collect();
        // One round of all steps, so that no measurement is between them; the second stage with questions alone.
        let options = json!({"llm": "bench", "stage": stage, "epochs": 1, "answer_epochs": 1, "batch": BATCH, "measured": 20,
            "held_out": 0.2, "round_steps": 100_000, "text_tokens": text_tokens, "retold": 0});
        let mut clock = Clock::default();
        let mut encoder = Encoder {
            llm: PathBuf::from(&model),
            random: Random::new(3),
        };
        let begin = Instant::now();
        let trained = train(Run::new(&passages, &pairs, &options, &mut encoder, &mut clock, None)).expect("a training");
        let seconds = begin.elapsed().as_secs_f64();
        let (Some((first, begin)), Some((last, end))) = (clock.first, clock.last) else {
            println!("SKIPPED: {stage}: too few passages for two steps");
            continue;
        };
        let rate = (last - first) as f64 * BATCH as f64 / (end - begin).as_secs_f64();
        let facts = json!({"stage": stage, "threads": threads, "text_tokens": text_tokens, "words": words, "passages": count,
            "model": "smollm2-135m-q4_1", "seconds": seconds, "trained": trained.figures["trained_on"].as_u64()});
        print("passages_per_second", rate, "passages/s", &facts);
        print("minutes_of_20000", 20_000.0 / rate / 60.0, "min", &facts);
    }
}

fn print(metric: &str, value: f64, unit: &str, facts: &Value) {
    let mut line = json!({"bench": "xrag", "metric": metric, "value": value, "unit": unit});
    let all = line.as_object_mut().expect("an object");
    all.extend(facts.as_object().cloned().unwrap_or_default());
    println!("{line}");
}
