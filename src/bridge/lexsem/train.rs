//! Training: synthetic queries and the user's pairs against all passages, early stopping on what is held out.

use super::held_out::{self, Encoded, Measured, Reading, Task, TaskTexts};
use super::options::Options;
use super::queries::{Part, QueryMaker, SyntheticQuery};
use super::steps::{Optimiser, Steps, step};
use super::{LexSem, Scheme, file, topics, weigh};
use crate::bridge::BridgeError;
use crate::bridge::train::acceptance::{Verdict, is_above_chance};
use crate::bridge::train::data::{Encode, Monitor, Pair, Progress, Trained};
use crate::bridge::train::early_stopping::EarlyStopping;
use crate::bridge::train::encode::passage_directions;
use crate::bridge::train::loss::Candidates;
use crate::bridge::train::run::Run;
use crate::bridge::train::whiten::Spread;
use crate::compute::Pool;
use crate::model::Role;
use crate::random::Random;
use serde_json::{Map, Value, json};
use std::collections::HashMap;

/// Texts that are encoded in one request.
const ENCODED_AT_ONCE: usize = 2048;
/// Epochs that are not taken after which training ends.
const PATIENCE: usize = 3;
/// One document in this many keeps its pairs for test.
const HELD_OUT_DOCUMENTS: u32 = 5;
/// Fewest passages.
const FEWEST_PASSAGES: usize = 8;
/// Steps between two reports of progress.
const REPORT_STEPS: usize = 8;

/// What training and test take from the user's rows.
struct Material {
    dimensions: usize,
    /// Of all passages, row-major.
    passages: Vec<f32>,
    training: Encoded,
    /// Tokens that have a row, and the rarity of each.
    tokens: Vec<u32>,
    rarity: Vec<f32>,
    /// Passages that training knows, by position; all, but for those of documents that are left out.
    known: Vec<usize>,
}

impl Material {
    /// The metric of the passages that training knows.
    fn metric(&self, options: &Options, monitor: &mut dyn Monitor) -> Result<Option<Vec<f32>>, BridgeError> {
        let d = self.dimensions;
        let known: Vec<f32> = self
            .known
            .iter()
            .flat_map(|place| &self.passages[place * d..][..d])
            .copied()
            .collect();
        let mut ask = || monitor.step(&Progress::default());
        Spread::metric_of(&known, d, options.whiten, options.ridge, &mut ask)
    }
}

/// Trains a bridge. Deterministic: the same rows, options and vectors give the same bytes; so a training that goes on
/// from a checkpoint ends as if it had not been interrupted.
///
/// # Errors
/// [`BridgeError::Option`] for options out of range, [`BridgeError::TooLittle`] for too few passages,
/// [`BridgeError::File`] for a checkpoint of another training, and what the encoder and the monitor fail with.
pub fn train(mut run: Run<'_>) -> Result<Trained, BridgeError> {
    let options = Options::from_json(run.options)?;
    let passages = run.passages;
    if passages.len() < FEWEST_PASSAGES {
        return Err(BridgeError::TooLittle(format!("{} passages", passages.len())));
    }
    let pool = run.pool()?;
    let maker = QueryMaker::new(passages, options.held_out);
    let (used, kept): (Vec<Pair>, Vec<Pair>) = run.pairs.iter().cloned().partition(|pair| {
        let document = passages
            .get(pair.passage as usize)
            .map_or(0, |passage| passage.document);
        !document.is_multiple_of(HELD_OUT_DOCUMENTS)
    });
    let synthetic = kept.is_empty();
    let material = material(&mut run, &used, synthetic, &maker, &options)?;
    let candidates = Candidates::new(&pool, material.passages.clone(), material.dimensions, options.batch)?;
    let texts = task_texts(passages.len(), &kept, &maker, &material, options.seed)?;
    let mut encode =
        |queries: &[SyntheticQuery]| encode_queries(queries, material.dimensions, options.scheme, run.encode);
    let tasks = texts
        .into_iter()
        .map(|task| task.encode(&pool, &candidates, &mut encode))
        .collect::<Result<Vec<_>, _>>()?;
    let strength = options.strength(synthetic);
    let mut training = Training::new(&pool, &material, &candidates, &tasks, &options, strength, run.monitor)?;
    if let Some(bytes) = run.checkpoint {
        training.resume(bytes)?;
    }
    training.run(run.monitor)?;
    training.finish(used.len())
}

/// Reads texts out: vectors, tokens and what else the scheme needs.
fn encode_queries(
    queries: &[SyntheticQuery],
    dimensions: usize,
    scheme: Scheme,
    encode: &mut dyn Encode,
) -> Result<Encoded, BridgeError> {
    let mut encoded = Encoded::default();
    for part in queries.chunks(ENCODED_AT_ONCE) {
        let texts: Vec<&str> = part.iter().map(|query| query.text.as_str()).collect();
        let vectors = encode.embed(Role::Query, &texts)?;
        let ids = encode.tokens(&texts)?;
        if vectors.dimensions != dimensions
            || vectors.values.len() != dimensions * texts.len()
            || ids.len() != texts.len()
        {
            return Err(BridgeError::Vectors {
                expected: texts.len() * dimensions,
                found: vectors.values.len(),
            });
        }
        encoded.vectors.extend(vectors.values);
        let readings = readings(&texts, ids, scheme, encode)?;
        encoded.readings.extend(readings);
        encoded.targets.extend(part.iter().map(|query| query.passage));
    }
    Ok(encoded)
}

fn readings(
    texts: &[&str],
    ids: Vec<Vec<u32>>,
    scheme: Scheme,
    encode: &mut dyn Encode,
) -> Result<Vec<Reading>, BridgeError> {
    let mut readings: Vec<Reading> = ids
        .into_iter()
        .map(|ids| Reading {
            ids,
            ..Reading::default()
        })
        .collect();
    match scheme {
        Scheme::Llr => {
            for (reading, state) in readings.iter_mut().zip(encode.states(texts)?) {
                reading.ids = state.ids;
                reading.states = state.values;
            }
        }
        Scheme::Clr => {
            for (reading, vocabulary) in readings.iter_mut().zip(encode.vocabulary(texts)?) {
                reading.vocabulary = vocabulary;
            }
        }
        _ => {}
    }
    Ok(readings)
}

fn material(
    run: &mut Run<'_>,
    pairs: &[Pair],
    synthetic: bool,
    maker: &QueryMaker<'_>,
    options: &Options,
) -> Result<Material, BridgeError> {
    let passages = run.passages;
    // A passage's length says nothing here: the index compares by angle.
    let (dimensions, vectors) = passage_directions(run.encode, run.monitor, passages)?;
    let mut random = Random::new(options.seed);
    let share = options.unseen(synthetic);
    let left_out = topics::left_out(passages, &vectors, dimensions, share, options.seed);
    let known: Vec<usize> = (0..passages.len()).filter(|place| !left_out[*place]).collect();
    let mut queries = maker.training(options.spans, options.keywords, &mut random);
    queries.extend(pairs.iter().map(|pair| SyntheticQuery {
        passage: pair.passage,
        text: pair.query.clone(),
    }));
    queries.retain(|query| left_out.get(query.passage as usize) == Some(&false));
    random.shuffle(&mut queries);
    queries.truncate(options.most_queries);
    let mut training = Encoded::default();
    for part in queries.chunks(ENCODED_AT_ONCE) {
        let found = encode_queries(part, dimensions, options.scheme, run.encode)?;
        training.vectors.extend(found.vectors);
        training.readings.extend(found.readings);
        training.targets.extend(found.targets);
        run.monitor.step(&Progress::default())?;
    }
    if training.targets.is_empty() {
        return Err(BridgeError::TooLittle(
            "no query could be made of the passages".to_owned(),
        ));
    }
    let (tokens, rarity) = vocabulary(maker, &known, &training, options.scheme, run.encode)?;
    Ok(Material {
        dimensions,
        passages: vectors,
        training,
        tokens,
        rarity,
        known,
    })
}

/// Tokens that the training's queries use, and how rare each is in the passages' trained parts.
fn vocabulary(
    maker: &QueryMaker<'_>,
    known: &[usize],
    training: &Encoded,
    scheme: Scheme,
    encode: &mut dyn Encode,
) -> Result<(Vec<u32>, Vec<f32>), BridgeError> {
    let used = training.readings.iter().flat_map(|reading| {
        let ids = reading.ids.iter().copied().filter(|_| scheme != Scheme::Clr);
        ids.chain(reading.vocabulary.iter().map(|entry| entry.0))
    });
    let mut tokens: Vec<u32> = used.collect();
    tokens.sort_unstable();
    tokens.dedup();
    let mut holding: HashMap<u32, u32> = HashMap::new();
    for part in known.chunks(ENCODED_AT_ONCE) {
        let texts: Vec<&str> = part
            .iter()
            .map(|place| maker.part_text(*place, Part::Trained))
            .collect();
        for ids in encode.tokens(&texts)? {
            for id in weigh::present(&ids) {
                *holding.entry(id).or_default() += 1;
            }
        }
    }
    let count = |token: &u32| holding.get(token).copied().unwrap_or(0);
    let rarity = tokens
        .iter()
        .map(|token| weigh::rarity(known.len(), count(token)))
        .collect();
    Ok((tokens, rarity))
}

/// What the bridge is measured by, before it is encoded: queries from words that training does not see, the same of
/// documents that it does not see, and the user's pairs that were kept back.
fn task_texts(
    passages: usize,
    pairs: &[Pair],
    maker: &QueryMaker<'_>,
    material: &Material,
    seed: u64,
) -> Result<Vec<TaskTexts>, BridgeError> {
    let mut random = Random::new(seed ^ 0x5eed);
    let names = ["span16", "span8", "keyword", "sentence", "sentence_common"];
    let mut texts = held_out::synthetic(maker, &material.known, names, &mut random);
    let unseen: Vec<usize> = (0..passages)
        .filter(|place| material.known.binary_search(place).is_err())
        .collect();
    if !unseen.is_empty() {
        let names = [
            "unseen_span16",
            "unseen_span8",
            "unseen_keyword",
            "unseen_sentence",
            "unseen_sentence_common",
        ];
        texts.extend(held_out::synthetic(maker, &unseen, names, &mut random));
    }
    texts.extend(held_out::pairs(pairs, &mut random));
    match texts.is_empty() {
        true => Err(BridgeError::TooLittle("no query could be held out".to_owned())),
        false => Ok(texts),
    }
}

/// The loop's state.
struct Training<'a> {
    pool: &'a Pool,
    material: &'a Material,
    candidates: &'a Candidates,
    tasks: &'a [Task],
    options: &'a Options,
    bridge: LexSem,
    optimiser: Optimiser,
    /// Training queries after the metric, row-major.
    starts: Vec<f32>,
    epoch: usize,
    loss: f64,
    best: LexSem,
    best_epoch: usize,
    /// Of the best.
    measured: Measured,
    /// Of gains on the validation queries.
    stopping: EarlyStopping,
}

impl<'a> Training<'a> {
    fn new(
        pool: &'a Pool,
        material: &'a Material,
        candidates: &'a Candidates,
        tasks: &'a [Task],
        options: &'a Options,
        strength: f32,
        monitor: &mut dyn Monitor,
    ) -> Result<Training<'a>, BridgeError> {
        let mut bridge = LexSem::identity(
            options.scheme,
            options.fusion,
            material.dimensions,
            material.tokens.clone(),
            material.rarity.clone(),
        );
        bridge.strength = strength;
        let measure = |bridge: &LexSem| held_out::measure(pool, candidates, bridge, tasks, false, options.seed);
        let mut measured = measure(&bridge)?;
        if options.map_rate > 0.0 {
            bridge.map = Some(vec![0.0; material.dimensions * material.dimensions]);
        }
        if options.whiten > 0.0 {
            bridge.metric = material.metric(options, monitor)?;
            let whitened = measure(&bridge)?;
            // Without the rows it need not be better yet, but it must not lose what is to be kept.
            if whitened.guard >= -options.guard {
                measured = whitened;
            } else {
                bridge.metric = None;
            }
        }
        let mut starts = Vec::with_capacity(material.training.vectors.len());
        for vector in material.training.vectors.chunks_exact(material.dimensions) {
            starts.extend(bridge.start(vector)?);
        }
        Ok(Training {
            optimiser: Optimiser::new(&bridge),
            best: bridge.clone(),
            pool,
            material,
            candidates,
            tasks,
            options,
            bridge,
            starts,
            epoch: 0,
            loss: 0.0,
            best_epoch: 0,
            stopping: EarlyStopping::new(measured.gain),
            measured,
        })
    }

    fn run(&mut self, monitor: &mut dyn Monitor) -> Result<(), BridgeError> {
        let count = self.material.training.targets.len();
        let batches = count.div_ceil(self.options.batch);
        while self.epoch < self.options.epochs && self.epoch - self.best_epoch <= PATIENCE {
            let mut random = Random::new(self.options.seed.wrapping_add(1 + self.epoch as u64));
            let mut order: Vec<usize> = (0..count).collect();
            random.shuffle(&mut order);
            let mut loss = 0.0;
            for (number, batch) in order.chunks(self.options.batch).enumerate() {
                let steps = Steps {
                    pool: self.pool,
                    candidates: self.candidates,
                    queries: &self.material.training,
                    starts: &self.starts,
                    options: self.options,
                };
                loss += step(steps, &mut self.bridge, &mut self.optimiser, batch, &mut random)?;
                if number % REPORT_STEPS == 0 {
                    monitor.step(&Progress {
                        step: (self.epoch * batches + number + 1) as u64,
                        steps: (self.options.epochs * batches) as u64,
                        loss: loss / (number + 1) as f64,
                        held_out: Some(self.measured.gain),
                    })?;
                }
            }
            self.epoch += 1;
            self.loss = loss / batches.max(1) as f64;
            let seed = self.options.seed;
            let measured = held_out::measure(self.pool, self.candidates, &self.bridge, self.tasks, false, seed)?;
            let within = self.stopping.keeps(measured.gain, measured.standard_error());
            if measured.guard >= -self.options.guard && within {
                self.best = self.bridge.clone();
                self.best_epoch = self.epoch;
                self.measured = measured;
            }
            monitor.checkpoint(&self.checkpoint()?)?;
        }
        Ok(())
    }

    /// The state between two epochs.
    fn checkpoint(&self) -> Result<Vec<u8>, BridgeError> {
        let state = json!({
            "epoch": self.epoch, "loss": self.loss, "best_epoch": self.best_epoch,
            "gain": self.measured.gain, "guard": self.measured.guard, "most_gain": self.stopping.most,
        });
        let entry = |name: &str, value: Value| Map::from_iter([(name.to_owned(), value)]);
        let bridge = file::write(&self.bridge, entry("training", state))?;
        let best = file::write(&self.best, Map::new())?;
        let moments = self.optimiser.bytes();
        let mut bytes = Vec::with_capacity(bridge.len() + best.len() + moments.len() + 16);
        for part in [&bridge, &best] {
            bytes.extend((part.len() as u64).to_le_bytes());
            bytes.extend(part);
        }
        bytes.extend(moments);
        Ok(bytes)
    }

    fn resume(&mut self, bytes: &[u8]) -> Result<(), BridgeError> {
        let damaged = || BridgeError::File("the checkpoint is of another training, or damaged".to_owned());
        let mut rest = bytes;
        let mut next = || -> Option<&[u8]> {
            let (length, behind) = rest.split_first_chunk::<8>()?;
            let (part, behind) = behind.split_at_checked(u64::from_le_bytes(*length) as usize)?;
            rest = behind;
            Some(part)
        };
        let (bridge, best) = (next().ok_or_else(damaged)?, next().ok_or_else(damaged)?);
        let layout = file::Layout::parse(bridge)?;
        let state = layout.metadata.get("training").ok_or_else(damaged)?;
        let number = |name: &str| state.get(name).and_then(Value::as_f64).ok_or_else(damaged);
        let (bridge, best) = (file::read(bridge)?, file::read(best)?);
        let same = |other: &LexSem| {
            other.tokens == self.bridge.tokens
                && other.scheme == self.bridge.scheme
                && other.metric == self.bridge.metric
                && other.map.is_some() == self.bridge.map.is_some()
        };
        if !same(&bridge) || !same(&best) || !self.optimiser.restore(rest) {
            return Err(damaged());
        }
        (self.bridge, self.best) = (bridge, best);
        self.epoch = number("epoch")? as usize;
        self.best_epoch = number("best_epoch")? as usize;
        self.loss = number("loss")?;
        self.measured.gain = number("gain")?;
        self.measured.guard = number("guard")?;
        self.stopping.most = number("most_gain")?;
        Ok(())
    }

    /// Judges the best epoch on queries that chose nothing.
    fn finish(self, pairs: usize) -> Result<Trained, BridgeError> {
        let seed = self.options.seed;
        let measured = held_out::measure(self.pool, self.candidates, &self.best, self.tasks, true, seed)?;
        // Synthetic queries test it alone, where the user's pairs do not show a gain themselves.
        let synthetic = !is_above_chance(measured.pairs);
        let loses_unseen = measured.unseen.is_some_and(|ends| ends.high < 0.0);
        let kept = measured.guard >= -self.options.guard && !loses_unseen;
        let verdict = Verdict::of(&[measured.difference], synthetic).provided(kept);
        let figures = json!({
            "tasks": measured.figures,
            "gain": measured.gain,
            "low": measured.interval.map(|interval| interval.low),
            "high": measured.interval.map(|interval| interval.high),
            "guard": measured.guard,
            "epoch": self.best_epoch,
            "epochs": self.epoch,
            "loss": self.loss,
            "passages": self.material.known.len(),
            "queries": self.material.training.targets.len(),
            "pairs": pairs,
            "rows": self.best.tokens.len(),
            "whiten": self.best.metric.is_some(),
            "held_out": self.options.held_out,
            "strength": self.best.strength,
        });
        let more = Map::from_iter([
            ("options".to_owned(), json!(self.options)),
            ("figures".to_owned(), figures.clone()),
        ]);
        Ok(Trained {
            weights: file::write(&self.best, more)?,
            figures,
            verdict,
        })
    }
}
