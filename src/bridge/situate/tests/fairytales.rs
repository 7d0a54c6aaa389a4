//! The goal of the bridge: trained on the train stories of FairytaleQA, asked the questions of the val stories. Minutes
//! of encoding, so it runs when it is asked for: `cargo test --no-default-features --lib fairytales -- --ignored
//! --nocapture`.

use crate::bridge::BridgeError;
use crate::bridge::situate::bridge::Bridge;
use crate::bridge::situate::{Situate, SituateOptions, finish, plan_chunks, train};
use crate::bridge::train::data::{Encode, Monitor, Pair, Passage, Progress, Vectors};
use crate::bridge::train::run::Run;
use crate::compute::Pool;
use crate::fixtures;
use crate::model::{Encoder, Role};
use crate::random::Random;
use crate::text::Span;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::time::Instant;

struct Model {
    encoder: Encoder,
    pool: Pool,
    /// Vectors by role and text: two trainings ask for the same.
    known: HashMap<(Role, String), Vec<f32>>,
}

impl Encode for Model {
    fn embed(&mut self, role: Role, texts: &[&str]) -> Result<Vectors, BridgeError> {
        let mut missing: Vec<&str> = texts.to_vec();
        missing.retain(|text| !self.known.contains_key(&(role, (*text).to_owned())));
        missing.sort_by_key(|text| text.len());
        for part in missing.chunks(64) {
            let sequences: Result<Vec<_>, _> = part.iter().map(|text| self.encoder.text(role, text)).collect();
            let vectors = self.encoder.encode(&self.pool, &sequences?)?;
            self.known
                .extend(part.iter().map(|text| (role, (*text).to_owned())).zip(vectors));
        }
        let values = texts
            .iter()
            .flat_map(|text| self.known[&(role, (*text).to_owned())].clone());
        Ok(Vectors {
            dimensions: self.encoder.manifest().hidden,
            values: values.collect(),
        })
    }

    fn tokens(&mut self, _texts: &[&str]) -> Result<Vec<Vec<u32>>, BridgeError> {
        Err(BridgeError::NoReading("tokens"))
    }
}

struct Silent;

impl Monitor for Silent {
    fn step(&mut self, _progress: &Progress) -> Result<(), BridgeError> {
        Ok(())
    }
    fn checkpoint(&mut self, _bytes: &[u8]) -> Result<(), BridgeError> {
        Ok(())
    }
}

fn lines(path: &std::path::Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A question and the sections that answer it.
type Question = (String, Vec<usize>);

/// Sections of a split with the title of their story, in order, and questions with the sections that answer them.
fn load(data: &std::path::Path, split: &str) -> (Vec<Passage>, Vec<String>, Vec<Question>) {
    let of_split = |row: &Value| row["split"] == split;
    let mut rows: Vec<Value> = lines(&data.join("corpus.jsonl")).into_iter().filter(of_split).collect();
    rows.sort_by_key(|row| (row["doc"].as_str().unwrap().to_owned(), row["pos"].as_u64()));
    let mut stories: HashMap<String, u32> = HashMap::new();
    let mut place = HashMap::new();
    let (mut passages, mut titles) = (Vec::new(), Vec::new());
    for (number, row) in rows.iter().enumerate() {
        let text = |field: &str| row[field].as_str().unwrap().to_owned();
        let next = stories.len() as u32;
        place.insert(text("id"), number);
        titles.push(text("title"));
        passages.push(Passage {
            key: text("id"),
            document: *stories.entry(text("doc")).or_insert(next),
            ordinal: row["pos"].as_u64().unwrap() as u32,
            text: text("text"),
            vector: None,
        });
    }
    let mut answers: HashMap<String, Vec<usize>> = HashMap::new();
    for line in std::fs::read_to_string(data.join("qrels.tsv")).unwrap().lines() {
        let mut fields = line.split('\t');
        let (query, passage) = (fields.next().unwrap(), fields.next().unwrap());
        answers.entry(query.to_owned()).or_default().extend(place.get(passage));
    }
    let questions = lines(&data.join("queries.jsonl")).into_iter().filter(of_split);
    let questions = questions.map(|row| {
        (
            row["text"].as_str().unwrap().to_owned(),
            answers[row["id"].as_str().unwrap()].clone(),
        )
    });
    (passages, titles, questions.collect())
}

/// Vectors of the passages as an index makes them, with the story's title where `titled`.
fn situated(
    model: &Model,
    passages: &[Passage],
    titles: &[String],
    bridge: Option<&Bridge>,
    titled: bool,
) -> Vec<Vec<f32>> {
    let mut all = Vec::new();
    for story in passages.chunk_by(|a, b| a.document == b.document) {
        let (mut text, mut spans) = (String::new(), Vec::new());
        for passage in story {
            let start = text.len() as u32;
            text.push_str(&passage.text);
            spans.push(Span {
                start,
                end: text.len() as u32,
            });
            text.push('\n');
        }
        let options = SituateOptions {
            mode: if bridge.is_some() {
                Situate::Bridge
            } else {
                Situate::None
            },
            chunk_tokens: 256,
            window_tokens: 0,
            weight: bridge.map_or(0.0, |bridge| bridge.share),
        };
        let title = titled.then(|| titles[all.len()].as_str());
        let plan = plan_chunks(&model.encoder, title, &text, &spans, &options).unwrap();
        let vectors = model.encoder.encode(&model.pool, &plan.sequences).unwrap();
        let chunks = finish(plan, &vectors).unwrap();
        let rows: Vec<&[f32]> = chunks.iter().map(|chunk| chunk.vector.as_slice()).collect();
        match bridge {
            Some(bridge) => all.extend(bridge.apply(&rows).unwrap()),
            None => all.extend(rows.iter().map(|row| row.to_vec())),
        }
    }
    all
}

/// nDCG@10 of each question.
fn scores(queries: &Vectors, questions: &[Question], vectors: &[Vec<f32>]) -> Vec<f64> {
    let gain = |rank: usize| 1.0 / (rank as f64 + 2.0).log2();
    let rows = queries.values.chunks_exact(queries.dimensions);
    let score = |(query, (_, right)): (&[f32], &Question)| {
        let near = |vector: &Vec<f32>| -> f32 { query.iter().zip(vector).map(|(a, b)| a * b).sum() };
        let mut order: Vec<(f32, usize)> = vectors.iter().map(near).zip(0..).collect();
        order.sort_by(|a, b| b.0.total_cmp(&a.0));
        let found = order
            .iter()
            .take(10)
            .enumerate()
            .filter(|(_, (_, at))| right.contains(at));
        found.map(|(rank, _)| gain(rank)).sum::<f64>() / (0..right.len().min(10)).map(gain).sum::<f64>()
    };
    rows.zip(questions).map(score).collect()
}

fn mean(numbers: &[f64]) -> f64 {
    numbers.iter().sum::<f64>() / numbers.len() as f64
}

/// 95 % interval of the mean difference, 2,000 resamplings.
fn interval(a: &[f64], b: &[f64]) -> (f64, f64) {
    let differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
    let mut random = Random::new(1);
    let mut means: Vec<f64> = (0..2000)
        .map(|_| {
            (0..differences.len())
                .map(|_| differences[random.below(differences.len())])
                .sum::<f64>()
        })
        .collect();
    means.sort_by(f64::total_cmp);
    let count = differences.len() as f64;
    (means[50] / count, means[1949] / count)
}

#[test]
#[ignore = "minutes"]
fn questions_of_stories_never_seen() {
    let (Some(dir), Some(data)) = (fixtures::minilm(), fixtures::data("fairytaleqa")) else {
        return;
    };
    let mut model = Model {
        encoder: Encoder::open(&dir).unwrap(),
        pool: Pool::new(2).unwrap(),
        known: HashMap::new(),
    };
    let (passages, _, questions) = load(&data, "train");
    let answered = questions
        .iter()
        .flat_map(|(query, right)| right.iter().map(move |&at| (query, at)));
    let pairs: Vec<Pair> = answered
        .map(|(query, at)| Pair {
            query: query.clone(),
            passage: at as u32,
            answer: None,
        })
        .collect();
    let (val, titles, asked) = load(&data, "val");
    let texts: Vec<&str> = asked.iter().map(|(query, _)| query.as_str()).collect();
    let queries = model.embed(Role::Query, &texts).unwrap();
    let began = Instant::now();
    let plain_vectors = situated(&model, &val, &titles, None, false);
    let plain_seconds = began.elapsed().as_secs_f64();
    let plain = scores(&queries, &asked, &plain_vectors);
    println!("plain {:.4}, {plain_seconds:.2} s", mean(&plain));
    for (name, pairs) in [("given", pairs.as_slice()), ("made", &[])] {
        let mut run = |document: bool| {
            let options = json!({ "document": document });
            let began = Instant::now();
            let trained = train(Run::new(&passages, pairs, &options, &mut model, &mut Silent, None)).unwrap();
            println!(
                "{name} {} {:.0} s with encoding",
                trained.figures,
                began.elapsed().as_secs_f64()
            );
            Bridge::read(&trained.weights).unwrap()
        };
        let (control, bridge) = (run(false), run(true));
        let control = scores(
            &queries,
            &asked,
            &situated(&model, &val, &titles, Some(&control), false),
        );
        println!(
            "{name} control {:.4}, over plain {:?}",
            mean(&control),
            interval(&control, &plain)
        );
        for titled in [false, true] {
            let began = Instant::now();
            let found = scores(
                &queries,
                &asked,
                &situated(&model, &val, &titles, Some(&bridge), titled),
            );
            println!(
                "{name} bridge (title {titled}) {:.4}, over plain {:?}, over control {:?}, cost {:.2}",
                mean(&found),
                interval(&found, &plain),
                interval(&found, &control),
                began.elapsed().as_secs_f64() / plain_seconds,
            );
        }
    }
}
