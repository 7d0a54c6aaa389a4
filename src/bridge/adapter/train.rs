//! Training of the adapter: options, the parts of the material, the stages and their figures.
//!
//! Documents are parted: most train, some choose the epoch, some judge. What was judged is then trained once more on all
//! of them for the epochs that were chosen (`refit`), and that map is stored: the figures are of the map that had not
//! seen the judging documents.

use super::fit::{Fit, Passages, Stage};
use super::{Adapter, Side};
use crate::bridge::BridgeError;
use crate::bridge::train::data::{Encode, Pair, Passage, Progress, Trained, Watch};
use crate::bridge::train::judged::{Judged, Verdict};
use crate::bridge::train::loss::Groups;
use crate::bridge::train::parts::{Part, embed, made_pairs, part, passage_directions};
use crate::bridge::whiten::Spread;
use crate::compute::Pool;
use crate::model::Role;
use crate::random::Random;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::HashSet;

/// Fewest pairs to train on, and to hold out.
const FEWEST_PAIRS: usize = 20;

/// How an adapter is trained. Unknown names are refused.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdapterOptions {
    pub side: Side,
    /// Adam's learning rate.
    pub rate: f32,
    /// The temperature of the loss.
    pub tau: f32,
    /// Pulls the map to zero.
    pub decay: f32,
    /// Most epochs.
    pub epochs: usize,
    /// Queries of a step.
    pub batch: usize,
    /// Share of the documents that is held out, half for stopping, half for the figures.
    pub held_out: f64,
    /// Most passages that a query is held against in a step.
    pub candidates: usize,
    /// On the query side the map begins as the metric `(C + ridge m I)^(-whiten)` of the passages
    /// ([`crate::bridge::whiten`]); 0 begins at the identity.
    pub whiten: f64,
    pub ridge: f64,
    /// Whether the map is trained once more on all pairs, for the epochs that the held-out ones chose.
    pub refit: bool,
    /// How far the stored map goes, above 0 to 1; without it half the way where the queries are made, else all of it.
    pub strength: Option<f32>,
    pub seed: u64,
    /// Threads, 0 for the machine's.
    pub threads: usize,
}

impl Default for AdapterOptions {
    fn default() -> AdapterOptions {
        AdapterOptions {
            side: Side::Query,
            rate: 2e-4,
            tau: 0.03,
            decay: 1e-3,
            epochs: 8,
            batch: 256,
            held_out: 0.2,
            candidates: 32_768,
            whiten: 0.25,
            ridge: 0.1,
            refit: true,
            strength: None,
            seed: 1,
            threads: 0,
        }
    }
}

impl AdapterOptions {
    fn read(options: &Value) -> Result<AdapterOptions, BridgeError> {
        let bad = |value: String, range: &'static str| BridgeError::Option {
            name: "options",
            value,
            range,
        };
        let names = "side, rate, tau, decay, epochs, batch, held_out, candidates, whiten, ridge, refit, strength, \
            seed, threads";
        let options: AdapterOptions =
            serde_json::from_value(options.clone()).map_err(|error| bad(error.to_string(), names))?;
        let numbers = [options.rate, options.tau];
        if !numbers.iter().all(|number| number.is_finite() && *number > 0.0)
            || options.decay.is_nan()
            || options.decay < 0.0
        {
            return Err(bad(format!("{options:?}"), "rate and tau above 0, decay at least 0"));
        }
        if options.epochs == 0 || !(2..=8192).contains(&options.batch) || options.candidates < 2 {
            return Err(bad(
                format!("{options:?}"),
                "epochs at least 1, batch 2 to 8192, candidates at least 2",
            ));
        }
        if options
            .strength
            .is_some_and(|strength| !(0.01..=1.0).contains(&strength))
        {
            return Err(bad(format!("{:?}", options.strength), "strength 0.01 to 1"));
        }
        if !(0.05..=0.8).contains(&options.held_out) {
            return Err(bad(options.held_out.to_string(), "held_out 0.05 to 0.8"));
        }
        if !(0.0..=2.0).contains(&options.whiten) || !(1e-6..=100.0).contains(&options.ridge) {
            return Err(bad(format!("{options:?}"), "whiten 0 to 2, ridge 1e-6 to 100"));
        }
        Ok(options)
    }
}

/// Queries with the groups of their passages.
#[derive(Default)]
pub(super) struct Queries {
    pub vectors: Vec<f32>,
    pub targets: Vec<u32>,
}

/// Trains an adapter. Without pairs, a sentence of each passage is its query; the figures say which it was
/// (`queries`: given or made). The bridge is accepted where it raises nDCG@10 on the judged held-out queries by more than
/// chance ([`Verdict::of`]).
///
/// # Errors
/// [`BridgeError::Option`] for options out of range, [`BridgeError::TooLittle`] for too few pairs,
/// [`BridgeError::File`] for a checkpoint of another training, and what `encode` and `watch` fail with.
pub fn train(
    passages: &[Passage],
    pairs: &[Pair],
    options: &Value,
    encode: &mut dyn Encode,
    watch: &mut dyn Watch,
    checkpoint: Option<&[u8]>,
) -> Result<Trained, BridgeError> {
    let options = AdapterOptions::read(options)?;
    let made = pairs.is_empty().then(|| made_pairs(passages, options.seed));
    let pairs = made.as_deref().unwrap_or(pairs);
    let threads = match options.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads.min(1024),
    };
    let pool = Pool::new(threads)?;
    let (dimensions, vectors) = passage_directions(encode, watch, passages)?;
    let texts: Vec<&str> = pairs.iter().map(|pair| pair.query.as_str()).collect();
    let (_, query_vectors) = embed(encode, watch, Role::Query, &texts)?;

    // A document without pairs chooses and judges nothing: its passages are negatives of the training.
    let asked: HashSet<u32> = pairs
        .iter()
        .filter_map(|pair| passages.get(pair.passage as usize))
        .map(|passage| passage.document)
        .collect();
    let part_of = |passage: &Passage| match asked.contains(&passage.document) {
        true => part(passage.document, options.held_out, options.seed),
        false => Part::Training,
    };
    // A passage that was cut in chunks is found at the nearest of them.
    let together =
        |a: usize, b: usize| passages[a].document == passages[b].document && passages[a].key == passages[b].key;
    let material = Material {
        groups: Groups::of(passages.len(), together).numbers(),
        pool: &pool,
        options: &options,
        pairs,
        dimensions,
        vectors,
        query_vectors,
        documents: passages.iter().map(part_of).collect(),
    };
    let groups = |passage: u32| material.groups.get(passage as usize).copied().unwrap_or(u32::MAX);
    let [choosing, judging] = [Part::Choosing, Part::Judging].map(|part| material.queries(part, &groups));
    for (what, found) in [
        ("to train on", material.queries(Part::Training, &groups).targets.len()),
        ("held out", choosing.targets.len()),
        ("held out", judging.targets.len()),
    ] {
        if found < FEWEST_PAIRS {
            return Err(BridgeError::TooLittle(format!(
                "{found} queries {what}, at least {FEWEST_PAIRS} are needed; pairs are held out document by document"
            )));
        }
    }
    let identity = Adapter::identity(options.side, dimensions);
    let mut judged = material.fit(Stage::Judged, choosing, watch)?;
    judged.resume(checkpoint)?;
    judged.run(watch)?;
    let plain = judged.scores(&identity, &judging)?;
    // Of what made queries gain half is believed (`bridge/evidence.rs`), so half the way is gone.
    let usual = if made.is_some() { 0.5 } else { 1.0 };
    let strength = options.strength.unwrap_or(usual);
    let trained = judged.scores(&judged.best.clone().weakened(strength), &judging)?;
    let gained = Judged::of(&plain, &trained, options.seed);
    let verdict = Verdict::of(&[gained.difference], made.is_some());
    let trained_on = judged.trained_on();
    let mut figures = json!({
        "queries": if made.is_some() { "made" } else { "given" },
        "trained_on": trained_on,
        "held_out": judging.targets.len(),
        "passages": passages.len(),
        "epochs": judged.epoch,
        "best_epoch": judged.best_epoch,
        "strength": strength,
    });
    let refit = options.refit && verdict.accepts() && judged.best_epoch > 0;
    let stored = match refit {
        false => judged.best,
        true => {
            let mut all = material.fit(Stage::Refit, Queries::default(), watch)?;
            all.follow(&judged);
            drop(judged);
            all.resume(checkpoint)?;
            all.run(watch)?;
            figures["refitted_on"] = json!(all.trained_on());
            all.whole()?
        }
    };
    let interval = gained.gain_interval;
    figures["ndcg@10"] = json!({
        "plain": gained.base, "bridge": gained.with, "gain": gained.gain,
        "low": interval.map(|interval| interval.low), "high": interval.map(|interval| interval.high),
    });
    let more = Map::from_iter([("figures".to_owned(), figures.clone())]);
    Ok(Trained {
        weights: stored.weakened(strength).write(more)?,
        verdict,
        figures,
    })
}

/// What a training has, encoded.
struct Material<'a> {
    pool: &'a Pool,
    options: &'a AdapterOptions,
    pairs: &'a [Pair],
    dimensions: usize,
    /// Of all passages.
    vectors: Vec<f32>,
    /// Of all pairs' queries.
    query_vectors: Vec<f32>,
    /// Of each passage.
    documents: Vec<Part>,
    groups: Vec<u32>,
}

impl<'a> Material<'a> {
    /// The queries of the passages of which `wanted` says so, with `place` of their passages as targets; those whose
    /// place is [`u32::MAX`] are left out.
    fn queries_of(&self, wanted: &dyn Fn(Part) -> bool, place: &dyn Fn(u32) -> u32) -> Queries {
        let mut queries = Queries::default();
        for (pair, vector) in self.pairs.iter().zip(self.query_vectors.chunks_exact(self.dimensions)) {
            let Some(part) = self.documents.get(pair.passage as usize) else {
                continue;
            };
            let target = place(pair.passage);
            if wanted(*part) && target != u32::MAX {
                queries.vectors.extend_from_slice(vector);
                queries.targets.push(target);
            }
        }
        queries
    }

    fn queries(&self, part: Part, place: &dyn Fn(u32) -> u32) -> Queries {
        self.queries_of(&|found| found == part, place)
    }

    /// A training that has not begun.
    fn fit(&self, stage: Stage, choosing: Queries, watch: &mut dyn Watch) -> Result<Fit<'a>, BridgeError> {
        let wanted = |part: Part| stage == Stage::Refit || part == Part::Training;
        let (known, places) = known(&self.documents, &wanted, self.options);
        let d = self.dimensions;
        let rows = known.iter().flat_map(|place| &self.vectors[place * d..(place + 1) * d]);
        let groups = Groups::of(known.len(), |a, b| self.groups[known[a]] == self.groups[known[b]]);
        let numbers = groups.numbers();
        let training = self.queries_of(&wanted, &|passage| {
            let place = places.get(passage as usize).copied().unwrap_or(u32::MAX);
            numbers.get(place as usize).copied().unwrap_or(u32::MAX)
        });
        let known = Passages {
            vectors: rows.copied().collect(),
            groups,
        };
        let whitened = self.options.side == Side::Query && self.options.whiten > 0.0;
        let mut ask = || watch.step(&Progress::default());
        let start = match whitened {
            true => Spread::metric_of(&known.vectors, d, self.options.whiten, self.options.ridge, &mut ask)?,
            false => None,
        };
        Fit::new(
            self.pool,
            self.options,
            stage,
            start,
            known,
            Passages {
                vectors: self.vectors.clone(),
                groups: Groups::of(self.groups.len(), |a, b| self.groups[a] == self.groups[b]),
            },
            training,
            choosing,
        )
    }
}

/// Positions of the passages that training queries are held against, and each passage's place among them (`u32::MAX`
/// for none).
fn known(documents: &[Part], wanted: &dyn Fn(Part) -> bool, options: &AdapterOptions) -> (Vec<usize>, Vec<u32>) {
    let places = documents.iter().zip(0..).filter(|(part, _)| wanted(**part));
    let mut known: Vec<usize> = places.map(|(_, place)| place).collect();
    if known.len() > options.candidates {
        Random::new(options.seed).shuffle(&mut known);
        known.truncate(options.candidates);
        known.sort_unstable();
    }
    let mut places = vec![u32::MAX; documents.len()];
    for (place, passage) in known.iter().enumerate() {
        places[*passage] = place as u32;
    }
    (known, places)
}
