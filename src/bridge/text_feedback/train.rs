//! Training of feedback of texts: the first round over the passages, the splits of the material, the figures.

use super::fit::{Fit, Searched};
use super::options::{Query, TextFeedbackOptions};
use super::{KIND, Reading};
use crate::bridge::BridgeError;
use crate::bridge::train::acceptance::{Evaluation, Verdict};
use crate::bridge::train::data::{Monitor, Pair, Passage, Progress, Trained};
use crate::bridge::train::early_stopping::{gains, mean};
use crate::bridge::train::encode::{embed, passage_directions};
use crate::bridge::train::loss::Candidates;
use crate::bridge::train::run::Run;
use crate::bridge::train::split::{SplitRule, Splits};
use crate::bridge::train::synthetic::synthetic_pairs;
use crate::compute::Pool;
use crate::compute::cpu::parallel::SignalsBlocked;
use crate::model::fine_tune::FineTuning;
use crate::model::{Encoder, Role};
use candle_core::{DType, Device, Tensor};
use serde_json::{Map, json};

/// Fewest queries of a split.
const FEWEST_PAIRS: usize = 20;
/// Passages of the first round among which negatives are drawn.
const NEGATIVES_AMONG: usize = 100;
/// Queries of a first round at once.
const ROUND_QUERIES: usize = 64;

/// Fine-tunes a copy of the encoder's upper layers. Without pairs, a sentence of each passage is its query; the figures
/// say which it was. The bridge is accepted where it raises nDCG@10 on the test queries over their own vectors by more
/// than chance ([`Verdict::of`]).
///
/// # Errors
/// [`BridgeError::Option`] for options out of range, [`BridgeError::TooLittle`] for too few pairs,
/// [`BridgeError::Model`] for an encoder that cannot be trained, and what the encoder and the monitor fail with.
pub fn train(mut run: Run<'_>) -> Result<Trained, BridgeError> {
    let options = TextFeedbackOptions::read(run.options)?;
    let synthetic = run.pairs.is_empty();
    let made = synthetic.then(|| synthetic_pairs(run.passages, run.seed));
    let pairs = made.as_deref().unwrap_or(run.pairs);
    let directory = run.encode.directory()?;
    let reader = Encoder::open(&directory)?;
    let model = FineTuning::open(&directory, reader.manifest(), options.layers)?;
    let pool = run.pool()?;
    start_threads()?;

    let material = Material::encode(&mut run, &pool, &options, pairs, &reader)?;
    let splits = material.split(run.seed)?;
    let test = material.read(&splits.test)?;
    let mut fit = Fit::new(
        model,
        &options,
        &pool,
        material.searched(),
        material.read(&splits.training)?,
        material.read(&splits.validation)?,
        mean(&material.plain(&splits.validation)),
    );
    let untrained = mean(&fit.scores(&test, run.monitor, &Progress::default())?);
    fit.resume(run.checkpoint)?;
    fit.run(run.monitor)?;
    fit.choose()?;
    let trained = fit.scores(&test, run.monitor, &Progress::default())?;
    let (gained, verdict) = verdict(
        &material.plain(&splits.test),
        &trained,
        fit.best_round,
        synthetic,
        run.seed,
    );
    let mut ndcg = gained.figures();
    ndcg["untrained"] = json!(untrained);
    let figures = json!({
        "queries": if synthetic { "synthetic" } else { "given" },
        "trained_on": fit.trained_on(), "held_out": test.len(), "passages": run.passages.len(),
        "rounds": fit.round, "best_round": fit.best_round, "ndcg@10": ndcg,
    });
    let reading = Reading {
        passages: options.passages,
        passage_tokens: options.passage_tokens,
    };
    let more = Map::from_iter([("figures".to_owned(), figures.clone())]);
    Ok(Trained {
        weights: fit.bridge(reading)?.write(material.dimensions, more)?,
        verdict,
        figures,
    })
}

/// What a training has, encoded, with the first round of every query.
struct Material<'a> {
    passages: &'a [Passage],
    pairs: &'a [Pair],
    options: &'a TextFeedbackOptions,
    reader: &'a Encoder,
    dimensions: usize,
    /// Of all passages.
    vectors: Vec<f32>,
    all: Candidates,
    /// The nearest passages of each query.
    found: Vec<Vec<u32>>,
    /// nDCG@10 of each query's own vector.
    plain: Vec<f64>,
}

impl<'a> Material<'a> {
    fn encode<'b: 'a>(
        run: &mut Run<'b>,
        pool: &Pool,
        options: &'a TextFeedbackOptions,
        pairs: &'a [Pair],
        reader: &'a Encoder,
    ) -> Result<Material<'a>, BridgeError> {
        let (dimensions, vectors) = passage_directions(run.encode, run.monitor, run.passages)?;
        let queries: Vec<&str> = pairs.iter().map(|pair| pair.query.as_str()).collect();
        let (_, queries) = embed(run.encode, run.monitor, Role::Query, &queries)?;
        let all = Candidates::new(pool, vectors.clone(), dimensions, ROUND_QUERIES)?;
        let found = first_round(pool, &all, &queries, dimensions, NEGATIVES_AMONG, run.monitor)?;
        let targets: Vec<u32> = pairs.iter().map(|pair| pair.passage).collect();
        let plain = gains(&all.ranks(pool, &queries, &targets)?);
        Ok(Material {
            passages: run.passages,
            pairs,
            options,
            reader,
            dimensions,
            vectors,
            all,
            found,
            plain,
        })
    }

    /// Numbers of the queries that train, choose and test.
    fn split(&self, seed: u64) -> Result<Splits, BridgeError> {
        let document = |pair: &Pair| Some(self.passages.get(pair.passage as usize)?.document);
        let queries = self.pairs.iter().enumerate();
        let rule = SplitRule {
            held_out: self.options.held_out,
            measured: self.options.measured,
            fewest: FEWEST_PAIRS,
            seed,
        };
        rule.split(
            queries.filter_map(|(number, pair)| Some((number, document(pair)?))),
            "queries",
        )
    }

    fn searched(&self) -> Searched<'_> {
        Searched {
            dimensions: self.dimensions,
            vectors: &self.vectors,
            all: &self.all,
        }
    }

    /// What the queries of these numbers score by their own vectors.
    fn plain(&self, numbers: &[usize]) -> Vec<f64> {
        numbers.iter().map(|number| self.plain[*number]).collect()
    }

    /// The queries of these numbers, each read together with its nearest passages.
    fn read(&self, numbers: &[usize]) -> Result<Vec<Query>, BridgeError> {
        let one = |number: &usize| {
            let (pair, found) = (&self.pairs[*number], &self.found[*number]);
            let nearest = found.iter().take(self.options.passages);
            let texts: Vec<&str> = nearest
                .map(|place| self.passages[*place as usize].text.as_str())
                .collect();
            let negatives = found.iter().copied().filter(|place| *place != pair.passage);
            Ok(Query {
                sequence: self.reader.feedback(&pair.query, &texts, self.options.passage_tokens)?,
                target: pair.passage,
                negatives: negatives.collect(),
            })
        };
        numbers.iter().map(one).collect()
    }
}

/// The nearest passages of each query, nearest first, up to `most`.
fn first_round(
    pool: &Pool,
    all: &Candidates,
    queries: &[f32],
    dimensions: usize,
    most: usize,
    monitor: &mut dyn Monitor,
) -> Result<Vec<Vec<u32>>, BridgeError> {
    let mut found = Vec::new();
    for queries in queries.chunks(ROUND_QUERIES * dimensions) {
        monitor.step(&Progress::default())?;
        for line in all.scores(pool, queries)?.chunks_exact(all.count().max(1)) {
            let mut places: Vec<u32> = (0..line.len() as u32).collect();
            let nearer = |a: &u32, b: &u32| line[*b as usize].total_cmp(&line[*a as usize]).then(a.cmp(b));
            if places.len() > most {
                places.select_nth_unstable_by(most - 1, nearer);
                places.truncate(most);
            }
            places.sort_unstable_by(nearer);
            found.push(places);
        }
    }
    Ok(found)
}

/// What the test queries say of a copy, from each query's value before and with it. One that is as it began is no
/// bridge.
pub(super) fn verdict(
    plain: &[f64],
    trained: &[f64],
    best_round: usize,
    synthetic: bool,
    seed: u64,
) -> (Evaluation, Verdict) {
    let gained = Evaluation::of(plain, trained, seed);
    let verdict = Verdict::of(&[gained.difference], synthetic).provided(best_round > 0);
    (gained, verdict)
}

/// Starts the threads of the tensors' products with all signals blocked: those are the server's own thread's.
fn start_threads() -> Result<(), BridgeError> {
    let _blocked = SignalsBlocked::new();
    let failed = |error: candle_core::Error| BridgeError::Outside(format!("{KIND}: {error}"));
    let a = Tensor::zeros((512, 512), DType::F32, &Device::Cpu).map_err(failed)?;
    a.matmul(&a).map(|_| ()).map_err(failed)
}
