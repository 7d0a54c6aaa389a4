//! Training of feedback of texts: options, the first round over the passages, the parts of the material, the figures.

use super::fit::Fit;
use super::{KIND, MOST_PASSAGES, Reading};
use crate::bridge::BridgeError;
use crate::bridge::train::data::{Encode, Pair, Passage, Progress, Trained, Watch};
use crate::bridge::train::judged::{Judged, Verdict};
use crate::bridge::train::loss::Candidates;
use crate::bridge::train::parts::{embed, gains, made_pairs, mean, parted, passage_directions};
use crate::compute::Pool;
use crate::compute::cpu::parallel::SignalsBlocked;
use crate::model::fine_tune::FineTuning;
use crate::model::{Encoder, Role, Sequence};
use candle_core::{DType, Device, Tensor};
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// Fewest queries of a part.
const FEWEST_PAIRS: usize = 20;
/// Passages of the first round among which negatives are drawn.
const NEGATIVES_AMONG: usize = 100;
/// Queries of a first round at once.
const ROUND_QUERIES: usize = 64;

/// How a copy of the encoder is trained. Unknown names are refused.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TextFeedbackOptions {
    /// Passages that are read with a query, the k that the bridge is bound to.
    pub passages: usize,
    /// Tokens of each passage, 0 for all.
    pub passage_tokens: usize,
    /// Layers that are trained, from the top; the model's where it has fewer.
    pub layers: usize,
    /// Adam's highest learning rate.
    pub rate: f32,
    /// The temperature of the loss.
    pub tau: f32,
    pub epochs: usize,
    /// Queries of a step.
    pub batch: usize,
    /// Steps between two measurements.
    pub round_steps: usize,
    /// Negatives of a query, drawn from the first hundred of its first round.
    pub negatives: usize,
    /// Share of the documents that is held out, half for stopping, half for the figures.
    pub held_out: f64,
    /// Most queries that choose, and that judge.
    pub measured: usize,
    pub seed: u64,
    /// Threads, 0 for the machine's; those of the layers' products are the machine's in any case.
    pub threads: usize,
}

impl Default for TextFeedbackOptions {
    fn default() -> TextFeedbackOptions {
        TextFeedbackOptions {
            passages: 3,
            passage_tokens: 64,
            layers: 2,
            rate: 2e-5,
            tau: 0.05,
            epochs: 1,
            batch: 16,
            round_steps: 40,
            negatives: 20,
            held_out: 0.2,
            measured: 400,
            seed: 1,
            threads: 0,
        }
    }
}

impl TextFeedbackOptions {
    fn read(options: &Value) -> Result<TextFeedbackOptions, BridgeError> {
        let bad = |value: String, range: &'static str| BridgeError::Option {
            name: "options",
            value,
            range,
        };
        let names = "passages, passage_tokens, layers, rate, tau, epochs, batch, round_steps, negatives, held_out, \
                     measured, seed, threads";
        let read: TextFeedbackOptions =
            serde_json::from_value(options.clone()).map_err(|error| bad(error.to_string(), names))?;
        let shown = || format!("{read:?}");
        if !(1..=MOST_PASSAGES).contains(&read.passages) || read.passage_tokens > 512 {
            return Err(bad(shown(), "passages 1 to 20, passage_tokens 0 to 512"));
        }
        if ![read.rate, read.tau]
            .iter()
            .all(|number| number.is_finite() && *number > 0.0)
        {
            return Err(bad(shown(), "rate and tau above 0"));
        }
        let counts = [
            read.layers,
            read.epochs,
            read.batch,
            read.round_steps,
            read.negatives,
            read.measured,
        ];
        if !counts.iter().all(|count| (1..=10_000).contains(count)) {
            return Err(bad(
                shown(),
                "layers, epochs, batch, round_steps, negatives and measured 1 to 10000",
            ));
        }
        if !(0.05..=0.8).contains(&read.held_out) {
            return Err(bad(shown(), "held_out 0.05 to 0.8"));
        }
        Ok(read)
    }
}

/// A query with what its first round found.
#[derive(Clone, Debug)]
pub struct Query {
    /// The query and its nearest passages.
    pub sequence: Sequence,
    /// The passage that answers it.
    pub target: u32,
    /// Passages of the first round that are not the target.
    pub negatives: Vec<u32>,
}

/// The nearest passages of each query, nearest first, up to `most`.
fn first_round(
    pool: &Pool,
    all: &Candidates,
    queries: &[f32],
    dimensions: usize,
    most: usize,
    watch: &mut dyn Watch,
) -> Result<Vec<Vec<u32>>, BridgeError> {
    let mut found = Vec::new();
    for queries in queries.chunks(ROUND_QUERIES * dimensions) {
        watch.step(&Progress::default())?;
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

/// Fine-tunes a copy of the encoder's upper layers. Without pairs, a sentence of each passage is its query; the figures
/// say which it was. The bridge is accepted where it raises nDCG@10 on the judged held-out queries over their own
/// vectors by more than chance ([`Verdict::of`]).
///
/// # Errors
/// [`BridgeError::Option`] for options out of range, [`BridgeError::TooLittle`] for too few pairs,
/// [`BridgeError::Model`] for an encoder that cannot be trained, and what `encode` and `watch` fail with.
pub fn train(
    passages: &[Passage],
    pairs: &[Pair],
    options: &Value,
    encode: &mut dyn Encode,
    watch: &mut dyn Watch,
    checkpoint: Option<&[u8]>,
) -> Result<Trained, BridgeError> {
    let options = TextFeedbackOptions::read(options)?;
    let made = pairs.is_empty().then(|| made_pairs(passages, options.seed));
    let pairs = made.as_deref().unwrap_or(pairs);
    let directory = encode.directory()?;
    let reader = Encoder::open(&directory)?;
    let model = FineTuning::open(&directory, reader.manifest(), options.layers)?;
    let threads = match options.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads.min(1024),
    };
    let pool = Pool::new(threads)?;
    start_threads()?;

    let (dimensions, vectors) = passage_directions(encode, watch, passages)?;
    let queries: Vec<&str> = pairs.iter().map(|pair| pair.query.as_str()).collect();
    let (_, query_vectors) = embed(encode, watch, Role::Query, &queries)?;
    let all = Candidates::new(&pool, vectors.clone(), dimensions, ROUND_QUERIES)?;
    let found = first_round(&pool, &all, &query_vectors, dimensions, NEGATIVES_AMONG, watch)?;
    let targets: Vec<u32> = pairs.iter().map(|pair| pair.passage).collect();
    let plain = gains(&all.ranks(&pool, &query_vectors, &targets)?);

    let document = |pair: &Pair| passages.get(pair.passage as usize).map(|passage| passage.document);
    let queries = pairs.iter().enumerate();
    let queries = queries.filter_map(|(number, pair)| Some((number, document(pair)?)));
    let parts = parted(
        queries,
        "queries",
        options.held_out,
        options.measured,
        FEWEST_PAIRS,
        options.seed,
    )?;
    let read = |numbers: &[usize]| -> Result<Vec<Query>, BridgeError> {
        let one = |number: &usize| {
            let pair = &pairs[*number];
            let nearest = found[*number].iter().take(options.passages);
            let texts: Vec<&str> = nearest.map(|place| passages[*place as usize].text.as_str()).collect();
            Ok(Query {
                sequence: reader.feedback(&pair.query, &texts, options.passage_tokens)?,
                target: pair.passage,
                negatives: found[*number]
                    .iter()
                    .copied()
                    .filter(|place| *place != pair.passage)
                    .collect(),
            })
        };
        numbers.iter().map(one).collect()
    };
    let [training, choosing, judging] = &parts;
    let judged_plain: Vec<f64> = judging.iter().map(|number| plain[*number]).collect();
    let chosen_plain: Vec<f64> = choosing.iter().map(|number| plain[*number]).collect();
    let judged = read(judging)?;
    let (training, choosing) = (read(training)?, read(choosing)?);
    let mut fit = Fit::new(
        model,
        &options,
        &pool,
        dimensions,
        &vectors,
        &all,
        training,
        choosing,
        mean(&chosen_plain),
    );
    let untrained = mean(&fit.scores(&judged, watch, &Progress::default())?);
    fit.resume(checkpoint)?;
    fit.run(watch)?;
    fit.choose()?;
    let trained = fit.scores(&judged, watch, &Progress::default())?;
    let (gained, verdict) = verdict(&judged_plain, &trained, fit.best_round, made.is_some(), options.seed);
    let interval = gained.gain_interval;
    let figures = json!({
        "queries": if made.is_some() { "made" } else { "given" },
        "trained_on": fit.trained_on(), "held_out": judged.len(), "passages": passages.len(),
        "rounds": fit.round, "best_round": fit.best_round,
        "ndcg@10": {
            "plain": gained.base, "bridge": gained.with, "untrained": untrained, "gain": gained.gain,
            "low": interval.map(|interval| interval.low), "high": interval.map(|interval| interval.high),
        },
    });
    let reading = Reading {
        passages: options.passages,
        passage_tokens: options.passage_tokens,
    };
    let more = Map::from_iter([("figures".to_owned(), figures.clone())]);
    Ok(Trained {
        weights: fit.bridge(reading)?.write(dimensions, more)?,
        verdict,
        figures,
    })
}

/// What the judged queries say of a copy, from each query's value before and with it. One that is as it began is no bridge.
pub(super) fn verdict(plain: &[f64], trained: &[f64], best_round: usize, made: bool, seed: u64) -> (Judged, Verdict) {
    let gained = Judged::of(plain, trained, seed);
    let verdict = Verdict::of(&[gained.difference], made).provided(best_round > 0);
    (gained, verdict)
}

/// Starts the threads of the tensors' products with all signals blocked: those are the server's own thread's.
fn start_threads() -> Result<(), BridgeError> {
    let _blocked = SignalsBlocked::new();
    let failed = |error: candle_core::Error| BridgeError::Outside(format!("{KIND}: {error}"));
    let a = Tensor::zeros((512, 512), DType::F32, &Device::Cpu).map_err(failed)?;
    a.matmul(&a).map(|_| ()).map_err(failed)
}
