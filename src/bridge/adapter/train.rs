//! Training of the adapter: the splits of the material, the stages and their figures.
//!
//! Documents are split: most train, some choose the epoch, some test. What was tested is then trained once more on all
//! of them for the epochs that were chosen (`refit`), and that map is stored: the figures are of the map that had not
//! seen the test documents.

use super::fit::{Fit, Given, Passages, Stage};
use super::options::{AdapterOptions, Queries};
use super::{Adapter, Side};
use crate::bridge::BridgeError;
use crate::bridge::train::acceptance::{Evaluation, Verdict};
use crate::bridge::train::data::{Monitor, Pair, Passage, Progress, Trained};
use crate::bridge::train::encode::{embed, passage_directions};
use crate::bridge::train::loss::Groups;
use crate::bridge::train::run::Run;
use crate::bridge::train::split::Split;
use crate::bridge::train::synthetic::synthetic_pairs;
use crate::bridge::train::whiten::Spread;
use crate::compute::Pool;
use crate::model::Role;
use crate::random::Random;
use serde_json::{Map, Value, json};
use std::collections::HashSet;

/// Fewest pairs to train on, and to hold out.
const FEWEST_PAIRS: usize = 20;
/// How far a map goes that synthetic queries alone have tested: of what they gain half is believed (`bridge/prior.rs`).
const STRENGTH_OF_SYNTHETIC: f32 = 0.5;

/// Trains an adapter. Without pairs, a sentence of each passage is its query; the figures say which it was
/// (`queries`: given or synthetic). The bridge is accepted where it raises nDCG@10 on the test queries by more than
/// chance ([`Verdict::of`]).
///
/// # Errors
/// [`BridgeError::Option`] for options out of range, [`BridgeError::TooLittle`] for too few pairs,
/// [`BridgeError::File`] for a checkpoint of another training, and what the encoder and the monitor fail with.
pub fn train(mut run: Run<'_>) -> Result<Trained, BridgeError> {
    let options = AdapterOptions::read(run.options)?;
    let synthetic = run.pairs.is_empty();
    let made = synthetic.then(|| synthetic_pairs(run.passages, run.seed));
    let pairs = made.as_deref().unwrap_or(run.pairs);
    let pool = run.pool()?;
    let material = Material::encode(&mut run, &pool, &options, pairs)?;
    let [validation, test] = material.held_out()?;

    let mut fit = material.fit(Stage::Evaluation, validation, run.monitor)?;
    fit.resume(run.checkpoint)?;
    fit.run(run.monitor)?;
    let usual = if synthetic { STRENGTH_OF_SYNTHETIC } else { 1.0 };
    let strength = options.strength.unwrap_or(usual);
    let plain = fit.scores(&Adapter::identity(options.side, material.dimensions), &test)?;
    let mapped = fit.scores(&fit.best.clone().weakened(strength), &test)?;
    let gained = Evaluation::of(&plain, &mapped, run.seed);
    let verdict = Verdict::of(&[gained.difference], synthetic);
    let mut figures = json!({
        "queries": if synthetic { "synthetic" } else { "given" },
        "trained_on": fit.trained_on(), "held_out": test.targets.len(), "passages": run.passages.len(),
        "epochs": fit.epoch, "best_epoch": fit.best_epoch, "strength": strength,
    });
    let stored = match options.refit && verdict.accepts() && fit.best_epoch > 0 {
        true => material.refit(fit, &mut run, &mut figures)?,
        false => fit.best,
    };
    figures["ndcg@10"] = gained.figures();
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
    documents: Vec<Split>,
    groups: Vec<u32>,
}

impl<'a> Material<'a> {
    /// Encodes passages and queries, and says which split each passage is of.
    fn encode(
        run: &mut Run<'_>,
        pool: &'a Pool,
        options: &'a AdapterOptions,
        pairs: &'a [Pair],
    ) -> Result<Material<'a>, BridgeError> {
        let passages = run.passages;
        let (dimensions, vectors) = passage_directions(run.encode, run.monitor, passages)?;
        let texts: Vec<&str> = pairs.iter().map(|pair| pair.query.as_str()).collect();
        let (_, query_vectors) = embed(run.encode, run.monitor, Role::Query, &texts)?;
        // A document without pairs chooses and tests nothing: its passages are negatives of the training.
        let asked: HashSet<u32> = pairs
            .iter()
            .filter_map(|pair| passages.get(pair.passage as usize))
            .map(|passage| passage.document)
            .collect();
        let split_of = |passage: &Passage| match asked.contains(&passage.document) {
            true => Split::of(passage.document, options.held_out, run.seed),
            false => Split::Training,
        };
        // A passage that was cut in chunks is found at the nearest of them.
        let together =
            |a: usize, b: usize| passages[a].document == passages[b].document && passages[a].key == passages[b].key;
        Ok(Material {
            groups: Groups::of(passages.len(), together).numbers(),
            pool,
            options,
            pairs,
            dimensions,
            vectors,
            query_vectors,
            documents: passages.iter().map(split_of).collect(),
        })
    }

    /// The queries of the passages of which `wanted` says so, with `place` of their passages as targets; those whose
    /// place is [`u32::MAX`] are left out.
    fn queries_of(&self, wanted: &dyn Fn(Split) -> bool, place: &dyn Fn(u32) -> u32) -> Queries {
        let mut queries = Queries::default();
        for (pair, vector) in self.pairs.iter().zip(self.query_vectors.chunks_exact(self.dimensions)) {
            let Some(split) = self.documents.get(pair.passage as usize) else {
                continue;
            };
            let target = place(pair.passage);
            if wanted(*split) && target != u32::MAX {
                queries.vectors.extend_from_slice(vector);
                queries.targets.push(target);
            }
        }
        queries
    }

    /// The queries of a split, with the groups of their passages as targets.
    fn queries(&self, split: Split) -> Queries {
        let group = |passage: u32| self.groups.get(passage as usize).copied().unwrap_or(u32::MAX);
        self.queries_of(&|found| found == split, &group)
    }

    /// The queries of validation and of test.
    fn held_out(&self) -> Result<[Queries; 2], BridgeError> {
        let held_out = [Split::Validation, Split::Test].map(|split| self.queries(split));
        let training = self.queries(Split::Training).targets.len();
        let [validation, test] = held_out.each_ref().map(|queries| queries.targets.len());
        for (what, found) in [("to train on", training), ("held out", validation), ("held out", test)] {
            if found < FEWEST_PAIRS {
                return Err(BridgeError::TooLittle(format!(
                    "{found} queries {what}, at least {FEWEST_PAIRS} are needed; pairs are held out document by document"
                )));
            }
        }
        Ok(held_out)
    }

    /// The map that is trained on all pairs, for the epochs that `fit` chose.
    fn refit(&self, fit: Fit<'_>, run: &mut Run<'_>, figures: &mut Value) -> Result<Adapter, BridgeError> {
        let mut all = self.fit(Stage::Refit, Queries::default(), run.monitor)?;
        all.follow(&fit);
        drop(fit);
        all.resume(run.checkpoint)?;
        all.run(run.monitor)?;
        figures["refitted_on"] = json!(all.trained_on());
        all.whole()
    }

    /// A training that has not begun.
    fn fit(&self, stage: Stage, validation: Queries, monitor: &mut dyn Monitor) -> Result<Fit<'a>, BridgeError> {
        let wanted = |split: Split| stage == Stage::Refit || split == Split::Training;
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
        let mut ask = || monitor.step(&Progress::default());
        let start = match whitened {
            true => Spread::metric_of(&known.vectors, d, self.options.whiten, self.options.ridge, &mut ask)?,
            false => None,
        };
        let passages = Passages {
            vectors: self.vectors.clone(),
            groups: Groups::of(self.groups.len(), |a, b| self.groups[a] == self.groups[b]),
        };
        let given = Given {
            start,
            known,
            passages,
            training,
            validation,
        };
        Fit::new(self.pool, self.options, stage, given)
    }
}

/// Positions of the passages that training queries are held against, and each passage's place among them (`u32::MAX`
/// for none).
fn known(documents: &[Split], wanted: &dyn Fn(Split) -> bool, options: &AdapterOptions) -> (Vec<usize>, Vec<u32>) {
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
