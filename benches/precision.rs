//! What the precision of the kernels costs in retrieval quality: nDCG@10 of exhaustive search on the judged sets, with
//! corpus and queries encoded in f32, bf16 and int8. One JSON object a line; `make bench-precision`.
//!
//! `cosine_to_f32` of `make bench-encode` says how far vectors move; this says whether a ranking notices: the change
//! against f32 over the same queries, its 95 % bootstrap interval and the p-value of the paired randomisation test.

use serde_json::{Value, json};
use situ::compute::Pool;
use situ::eval::{bootstrap, ndcg, significance};
use situ::model::{Encoder, Precision, Role, Sequence};
use std::collections::HashMap;
use std::error::Error;
use std::fs::read_to_string;
use std::path::{Path, PathBuf};

type Failure = Box<dyn Error>;

const DEPTH: usize = 10;
const SETS: [&str; 2] = ["fairytaleqa", "scifact"];

struct Judged {
    passages: Vec<String>,
    queries: Vec<String>,
    /// Of each query: passages by their places, with their grades.
    grades: Vec<HashMap<usize, f64>>,
}

fn lines(path: &Path) -> Result<Vec<Value>, Failure> {
    let text = read_to_string(path)?;
    Ok(text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?)
}

fn field(line: &Value, name: &str) -> String {
    line.get(name).and_then(Value::as_str).unwrap_or_default().to_string()
}

/// The set's passages, and its queries that have a judged passage.
fn judged(dir: &Path) -> Result<Judged, Failure> {
    let corpus = lines(&dir.join("corpus.jsonl"))?;
    let places: HashMap<String, usize> = corpus.iter().map(|line| field(line, "id")).zip(0..).collect();
    let mut grades: HashMap<String, HashMap<usize, f64>> = HashMap::new();
    for line in read_to_string(dir.join("qrels.tsv"))?.lines() {
        let mut fields = line.split('\t');
        if let (Some(query), Some(document), Some(grade)) = (fields.next(), fields.next(), fields.next())
            && let Some(place) = places.get(document)
        {
            grades
                .entry(query.to_string())
                .or_default()
                .insert(*place, grade.parse()?);
        }
    }
    let mut set = Judged {
        passages: corpus.iter().map(|line| field(line, "text")).collect(),
        queries: Vec::new(),
        grades: Vec::new(),
    };
    for line in lines(&dir.join("queries.jsonl"))? {
        if let Some(grades) = grades.remove(&field(&line, "id")) {
            set.queries.push(field(&line, "text"));
            set.grades.push(grades);
        }
    }
    Ok(set)
}

fn encode(encoder: &Encoder, pool: &Pool, role: Role, texts: &[String]) -> Result<Vec<Vec<f32>>, Failure> {
    let mut vectors = Vec::with_capacity(texts.len());
    for texts in texts.chunks(256) {
        let batch: Vec<Sequence> = texts
            .iter()
            .map(|text| encoder.text(role, text))
            .collect::<Result<_, _>>()?;
        vectors.extend(encoder.encode(pool, &batch)?);
    }
    Ok(vectors)
}

/// nDCG of each query by exhaustive search.
fn measure(set: &Judged, passages: &[Vec<f32>], queries: &[Vec<f32>]) -> Vec<f64> {
    let mut measured = Vec::with_capacity(queries.len());
    for (query, grades) in queries.iter().zip(&set.grades) {
        let score = |passage: &Vec<f32>| -> f32 { passage.iter().zip(query).map(|(a, b)| a * b).sum() };
        let mut ranked: Vec<(f32, usize)> = passages.iter().map(score).zip(0..).collect();
        ranked.sort_by(|a, b| b.0.total_cmp(&a.0));
        let found: Vec<f64> = ranked
            .iter()
            .take(DEPTH)
            .map(|(_, place)| grades.get(place).copied().unwrap_or(0.0))
            .collect();
        let all: Vec<f64> = grades.values().copied().collect();
        measured.push(ndcg(&found, &all, DEPTH).unwrap_or(0.0));
    }
    measured
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

fn main() -> Result<(), Failure> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let data = std::env::var_os("SITU_DATA").map_or_else(|| root.join("../shared/data"), PathBuf::from);
    let model = std::env::var_os("SITU_BENCH_MODEL").ok_or("SITU_BENCH_MODEL names no model directory")?;
    let pool = Pool::new(std::thread::available_parallelism()?.get())?;
    for name in SETS {
        let dir = data.join(name);
        if !dir.is_dir() {
            eprintln!("SKIPPED {name}: no {}", dir.display());
            continue;
        }
        let set = judged(&dir)?;
        let mut reference: Vec<f64> = Vec::new();
        for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
            let encoder = match Encoder::open_with(Path::new(&model), precision) {
                Ok(encoder) => encoder,
                Err(error) => {
                    eprintln!("SKIPPED {}: {error}", precision.name());
                    continue;
                }
            };
            let passages = encode(&encoder, &pool, Role::Passage, &set.passages)?;
            let queries = encode(&encoder, &pool, Role::Query, &set.queries)?;
            let found = measure(&set, &passages, &queries);
            let precision = precision.name();
            let line = |metric: &str, value: f64| {
                json!({"bench": "precision", "metric": metric, "value": value, "unit": "nDCG",
                    "data": name, "precision": precision, "queries": found.len(), "passages": passages.len()})
            };
            println!("{}", line("ndcg@10", mean(&found)));
            if reference.is_empty() {
                reference = found;
                continue;
            }
            let changes: Vec<f64> = found.iter().zip(&reference).map(|(found, base)| found - base).collect();
            let mut change = line("ndcg@10_change", mean(&changes));
            if let Some(interval) = bootstrap::of_difference(&reference, &found, bootstrap::Draws::default()) {
                change["low"] = json!(interval.low);
                change["high"] = json!(interval.high);
            }
            change["p"] = json!(significance::randomisation(&reference, &found, 2000, 1));
            println!("{change}");
        }
    }
    Ok(())
}
