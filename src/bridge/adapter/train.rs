//! Training of the adapter: the contrastive loss of each query against all passages of the training documents, by hand-made
//! gradients, Adam, and early stopping on documents that are held out.
//!
//! With `o = y / |y|` and `y = x + x M`, the loss's gradient by `M` is `x^T dy`, `dy = (do - (o . do) o) / |y|`.

use super::{Adapter, KIND, Side};
use crate::bridge::BridgeError;
use crate::bridge::file::{self, Tensors};
use crate::bridge::train::adam::Adam;
use crate::bridge::train::data::{Encode, Pair, Passage, Progress, Trained, Watch};
use crate::bridge::train::loss::Candidates;
use crate::bridge::train::matrix::{product, transposed};
use crate::compute::Pool;
use crate::compute::pooling::normalize;
use crate::eval::bootstrap::{Draws, of_gain};
use crate::eval::random::Random;
use crate::eval::tasks::{Cut, Frequencies, Task, make, white_space_words};
use crate::model::Role;
use crate::text::sentences;
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// Texts that are encoded in one request.
const ENCODED_AT_ONCE: usize = 1024;
/// Epochs without a better one after which training ends.
const PATIENCE: usize = 2;
/// Steps between two reports of progress.
const REPORT_STEPS: usize = 8;
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
    pub seed: u64,
    /// Threads, 0 for the machine's.
    pub threads: usize,
}

impl Default for AdapterOptions {
    fn default() -> AdapterOptions {
        AdapterOptions {
            side: Side::Query,
            rate: 3e-4,
            tau: 0.05,
            decay: 1e-3,
            epochs: 8,
            batch: 64,
            held_out: 0.2,
            candidates: 32_768,
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
        let names = "side, rate, tau, decay, epochs, batch, held_out, candidates, seed, threads";
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
        if !(0.05..=0.8).contains(&options.held_out) {
            return Err(bad(options.held_out.to_string(), "held_out 0.05 to 0.8"));
        }
        Ok(options)
    }
}

/// Queries with the positions of their passages.
#[derive(Default)]
struct Queries {
    vectors: Vec<f32>,
    targets: Vec<u32>,
}

/// Which part of the material a document belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Training,
    Choosing,
    Judging,
}

/// By a hash of its number, so that a document's part does not depend on the others.
fn part(document: u32, options: &AdapterOptions) -> Part {
    let bits = Random::new(options.seed ^ u64::from(document).wrapping_mul(0x9e37_79b9_7f4a_7c15)).bits();
    let share = (bits >> 11) as f64 / (1u64 << 53) as f64;
    match share {
        share if share >= options.held_out => Part::Training,
        share if share >= options.held_out / 2.0 => Part::Choosing,
        _ => Part::Judging,
    }
}

/// A sentence of each passage as its query.
fn made_pairs(passages: &[Passage], seed: u64) -> Vec<Pair> {
    let spans = |text: &str| {
        let spans = sentences(text).into_iter();
        spans.map(|span| span.start as usize..span.end as usize).collect()
    };
    let cut = Cut {
        words: &white_space_words,
        sentences: &spans,
    };
    let mut random = Random::new(seed);
    let mut pairs = Vec::new();
    for (number, passage) in passages.iter().enumerate() {
        let made = make(
            Task::Sentence,
            &passage.text,
            0.0..1.0,
            &cut,
            &Frequencies::default(),
            &mut random,
        );
        pairs.extend(made.map(|query| Pair {
            query,
            passage: number as u32,
        }));
    }
    pairs
}

/// Encodes texts, looking at `watch` between requests. Every vector gets unit length.
fn embed(
    encode: &mut dyn Encode,
    watch: &mut dyn Watch,
    role: Role,
    texts: &[&str],
) -> Result<(usize, Vec<f32>), BridgeError> {
    let (mut dimensions, mut vectors) = (0, Vec::new());
    for part in texts.chunks(ENCODED_AT_ONCE) {
        let found = encode.embed(role, part)?;
        let expected = part.len() * found.dimensions;
        if found.dimensions == 0 || found.values.len() != expected || ![0, found.dimensions].contains(&dimensions) {
            return Err(BridgeError::Vectors {
                expected,
                found: found.values.len(),
            });
        }
        dimensions = found.dimensions;
        vectors.extend(found.values);
        watch.step(&Progress::default())?;
    }
    vectors.chunks_exact_mut(dimensions.max(1)).for_each(normalize);
    Ok((dimensions, vectors))
}

/// Trains an adapter. Without pairs, a sentence of each passage is its query; the figures say which it was
/// (`queries`: given or made). The bridge is accepted where it raises nDCG@10 on the judged held-out queries.
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
    let texts: Vec<&str> = passages.iter().map(|passage| passage.text.as_str()).collect();
    let (dimensions, vectors) = embed(encode, watch, Role::Passage, &texts)?;
    let texts: Vec<&str> = pairs.iter().map(|pair| pair.query.as_str()).collect();
    let (_, query_vectors) = embed(encode, watch, Role::Query, &texts)?;

    let documents: Vec<Part> = passages
        .iter()
        .map(|passage| part(passage.document, &options))
        .collect();
    let of = |wanted: Part, place: &dyn Fn(u32) -> u32| {
        let mut queries = Queries::default();
        for (pair, vector) in pairs.iter().zip(query_vectors.chunks_exact(dimensions)) {
            if documents.get(pair.passage as usize) == Some(&wanted) {
                queries.vectors.extend_from_slice(vector);
                queries.targets.push(place(pair.passage));
            }
        }
        queries
    };
    let (known, places) = known(&documents, &options);
    let training = of(Part::Training, &|passage| places[passage as usize]);
    let training = training.without_strangers(dimensions);
    let (choosing, judging) = (
        of(Part::Choosing, &|passage| passage),
        of(Part::Judging, &|passage| passage),
    );
    for (what, queries) in [
        ("to train on", &training),
        ("held out", &choosing),
        ("held out", &judging),
    ] {
        let found = queries.targets.len();
        if found < FEWEST_PAIRS {
            return Err(BridgeError::TooLittle(format!(
                "{found} queries {what}, at least {FEWEST_PAIRS} are needed; pairs are held out document by document"
            )));
        }
    }
    let known: Vec<f32> = known
        .iter()
        .flat_map(|place| &vectors[place * dimensions..(place + 1) * dimensions])
        .copied()
        .collect();
    let mut fit = Fit {
        pool: &pool,
        options: &options,
        candidates: Candidates::new(&pool, known.clone(), dimensions, options.batch)?,
        known,
        all: Candidates::new(&pool, vectors.clone(), dimensions, options.batch)?,
        vectors,
        training,
        choosing,
        moments: Adam::new(dimensions * dimensions),
        adapter: Adapter::identity(options.side, dimensions),
        best: Adapter::identity(options.side, dimensions),
        best_score: 0.0,
        best_epoch: 0,
        epoch: 0,
    };
    fit.best_score = mean(&fit.scores(&fit.best, &fit.choosing)?);
    if let Some(bytes) = checkpoint {
        fit.resume(bytes)?;
    }
    fit.run(watch)?;
    let plain = fit.scores(&Adapter::identity(options.side, dimensions), &judging)?;
    let trained = fit.scores(&fit.best, &judging)?;
    let gain = mean(&trained) / mean(&plain).max(f64::MIN_POSITIVE) - 1.0;
    let draws = Draws {
        seed: options.seed,
        ..Draws::default()
    };
    let interval = of_gain(&plain, &trained, draws);
    let figures = json!({
        "queries": if made.is_some() { "made" } else { "given" },
        "trained_on": fit.training.targets.len(),
        "held_out": judging.targets.len(),
        "passages": passages.len(),
        "epochs": fit.epoch,
        "best_epoch": fit.best_epoch,
        "ndcg@10": {
            "plain": mean(&plain), "bridge": mean(&trained), "gain": gain,
            "low": interval.map(|interval| interval.low), "high": interval.map(|interval| interval.high),
        },
    });
    let more = Map::from_iter([("figures".to_owned(), figures.clone())]);
    Ok(Trained {
        weights: fit.best.write(more)?,
        accepted: gain > 0.0,
        figures,
    })
}

/// Positions of the passages that training queries are held against, and each passage's place among them (`u32::MAX`
/// for none).
fn known(documents: &[Part], options: &AdapterOptions) -> (Vec<usize>, Vec<u32>) {
    let mut known: Vec<usize> = (0..documents.len())
        .filter(|place| documents[*place] == Part::Training)
        .collect();
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

fn mean(scores: &[f64]) -> f64 {
    scores.iter().sum::<f64>() / scores.len().max(1) as f64
}

impl Queries {
    /// Without those whose passage is no candidate.
    fn without_strangers(self, dimensions: usize) -> Queries {
        let mut queries = Queries::default();
        for (vector, target) in self.vectors.chunks_exact(dimensions).zip(self.targets) {
            if target != u32::MAX {
                queries.vectors.extend_from_slice(vector);
                queries.targets.push(target);
            }
        }
        queries
    }

    fn batch(&self, numbers: &[usize], dimensions: usize) -> Queries {
        Queries {
            vectors: numbers
                .iter()
                .flat_map(|number| &self.vectors[number * dimensions..(number + 1) * dimensions])
                .copied()
                .collect(),
            targets: numbers.iter().map(|number| self.targets[*number]).collect(),
        }
    }
}

/// Rows after `x + x M`, with unit length, and the lengths before.
pub(super) fn mapped(
    pool: &Pool,
    map: &[f32],
    rows: &[f32],
    dimensions: usize,
) -> Result<(Vec<f32>, Vec<f32>), BridgeError> {
    let mut sums = product(pool, rows, &transposed(map, dimensions), dimensions)?;
    let mut lengths = Vec::with_capacity(rows.len() / dimensions.max(1));
    for (sum, row) in sums.chunks_exact_mut(dimensions).zip(rows.chunks_exact(dimensions)) {
        sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
        let length = sum.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        normalize(sum);
        lengths.push(length as f32);
    }
    Ok((sums, lengths))
}

/// The gradient by `M`, from the gradient by the unit vectors that [`mapped`] gave.
pub(super) fn by_map(
    pool: &Pool,
    rows: &[f32],
    units: &[f32],
    lengths: &[f32],
    mut by_units: Vec<f32>,
    dimensions: usize,
) -> Result<Vec<f32>, BridgeError> {
    let lines = by_units
        .chunks_exact_mut(dimensions)
        .zip(units.chunks_exact(dimensions));
    for ((gradient, unit), length) in lines.zip(lengths) {
        let along: f32 = gradient.iter().zip(unit).map(|(g, o)| g * o).sum();
        let factor = 1.0 / length.max(f32::MIN_POSITIVE);
        for (g, o) in gradient.iter_mut().zip(unit) {
            *g = (*g - along * o) * factor;
        }
    }
    let count = rows.len() / dimensions.max(1);
    product(
        pool,
        &transposed(rows, dimensions),
        &transposed(&by_units, dimensions),
        count,
    )
}

/// The loop's state.
struct Fit<'a> {
    pool: &'a Pool,
    options: &'a AdapterOptions,
    /// Passages of the training documents, packed and as they are.
    candidates: Candidates,
    known: Vec<f32>,
    /// All passages.
    all: Candidates,
    vectors: Vec<f32>,
    training: Queries,
    choosing: Queries,
    moments: Adam,
    adapter: Adapter,
    best: Adapter,
    best_score: f64,
    best_epoch: usize,
    epoch: usize,
}

impl Fit<'_> {
    /// nDCG@10 of each query against all passages.
    fn scores(&self, adapter: &Adapter, queries: &Queries) -> Result<Vec<f64>, BridgeError> {
        let d = adapter.dimensions;
        let ranks = match adapter.side {
            Side::Query => {
                let (mapped, _) = mapped(self.pool, &adapter.map, &queries.vectors, d)?;
                self.all.ranks(self.pool, &mapped, &queries.targets)?
            }
            Side::Passage => {
                let (mapped, _) = mapped(self.pool, &adapter.map, &self.vectors, d)?;
                let all = Candidates::new(self.pool, mapped, d, self.options.batch)?;
                all.ranks(self.pool, &queries.vectors, &queries.targets)?
            }
        };
        let score = |rank: &u32| {
            if *rank < 10 {
                1.0 / f64::from(rank + 2).log2()
            } else {
                0.0
            }
        };
        Ok(ranks.iter().map(score).collect())
    }

    fn step(&mut self, batch: &Queries) -> Result<f64, BridgeError> {
        let d = self.adapter.dimensions;
        let (loss, gradient) = match self.adapter.side {
            Side::Query => {
                let (units, lengths) = mapped(self.pool, &self.adapter.map, &batch.vectors, d)?;
                let (loss, by_units) = self
                    .candidates
                    .loss(self.pool, &units, &batch.targets, self.options.tau)?;
                (loss, by_map(self.pool, &batch.vectors, &units, &lengths, by_units, d)?)
            }
            Side::Passage => {
                let (units, lengths) = mapped(self.pool, &self.adapter.map, &self.known, d)?;
                let (loss, by_units) =
                    passage_loss(self.pool, &batch.vectors, &units, &batch.targets, self.options.tau, d)?;
                (loss, by_map(self.pool, &self.known, &units, &lengths, by_units, d)?)
            }
        };
        self.moments.begin();
        self.moments.update(
            &mut self.adapter.map,
            0,
            &gradient,
            self.options.rate,
            self.options.decay,
        );
        Ok(loss)
    }

    fn run(&mut self, watch: &mut dyn Watch) -> Result<(), BridgeError> {
        let (count, d) = (self.training.targets.len(), self.adapter.dimensions);
        let batches = count.div_ceil(self.options.batch);
        while self.epoch < self.options.epochs && self.epoch - self.best_epoch < PATIENCE {
            let mut order: Vec<usize> = (0..count).collect();
            Random::new(self.options.seed.wrapping_add(1 + self.epoch as u64)).shuffle(&mut order);
            let mut loss = 0.0;
            for (number, numbers) in order.chunks(self.options.batch).enumerate() {
                let batch = self.training.batch(numbers, d);
                loss += self.step(&batch)?;
                if number % REPORT_STEPS == 0 {
                    watch.step(&Progress {
                        step: (self.epoch * batches + number + 1) as u64,
                        steps: (self.options.epochs * batches) as u64,
                        loss: loss / (number + 1) as f64,
                        held_out: Some(self.best_score),
                    })?;
                }
            }
            self.epoch += 1;
            let score = mean(&self.scores(&self.adapter, &self.choosing)?);
            if score > self.best_score {
                (self.best, self.best_score, self.best_epoch) = (self.adapter.clone(), score, self.epoch);
            }
            watch.checkpoint(&self.checkpoint()?)?;
        }
        Ok(())
    }

    /// The state between two epochs.
    fn checkpoint(&self) -> Result<Vec<u8>, BridgeError> {
        let d = self.adapter.dimensions;
        let state = json!({"epoch": self.epoch, "best_epoch": self.best_epoch, "best_score": self.best_score,
            "steps": self.moments.steps, "training": self.training.targets.len()});
        let more = Map::from_iter([
            ("state".to_owned(), state),
            ("side".to_owned(), json!(self.adapter.side)),
        ]);
        let shape = || vec![d, d];
        let tensors = [
            ("map", shape(), &self.adapter.map[..]),
            ("best", shape(), &self.best.map),
            ("first", shape(), &self.moments.first),
            ("second", shape(), &self.moments.second),
        ];
        file::write(KIND, d, more, &tensors)
    }

    fn resume(&mut self, bytes: &[u8]) -> Result<(), BridgeError> {
        let mut tensors = Tensors::read(bytes, KIND)?;
        let state = tensors.description.metadata.get("state").cloned().unwrap_or_default();
        let number = |name: &str| state.get(name).and_then(Value::as_u64);
        let score = state.get("best_score").and_then(Value::as_f64);
        let damaged = || BridgeError::File("the checkpoint is of another training".to_owned());
        let (Some(epoch), Some(best), Some(score)) = (number("epoch"), number("best_epoch"), score) else {
            return Err(damaged());
        };
        let steps = number("steps").and_then(|steps| u32::try_from(steps).ok());
        let (Some(steps), Some(trained)) = (steps, number("training")) else {
            return Err(damaged());
        };
        if trained != self.training.targets.len() as u64 || best > epoch {
            return Err(damaged());
        }
        let d = self.adapter.dimensions;
        self.adapter.map = tensors.take("map", &[d, d])?;
        self.best.map = tensors.take("best", &[d, d])?;
        self.moments.first = tensors.take("first", &[d, d])?;
        self.moments.second = tensors.take("second", &[d, d])?;
        self.moments.steps = steps;
        (self.epoch, self.best_epoch, self.best_score) = (epoch as usize, best as usize, score);
        Ok(())
    }
}

/// The mean loss of a batch of queries against unit vectors of passages, and its gradient by the passages.
pub(super) fn passage_loss(
    pool: &Pool,
    queries: &[f32],
    passages: &[f32],
    targets: &[u32],
    tau: f32,
    dimensions: usize,
) -> Result<(f64, Vec<f32>), BridgeError> {
    let count = passages.len() / dimensions.max(1);
    let mut scores = product(pool, queries, passages, dimensions)?;
    let rows = targets.len();
    let mut loss = 0.0;
    for (line, target) in scores.chunks_exact_mut(count.max(1)).zip(targets) {
        let most = line.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let own = line.get(*target as usize).copied().unwrap_or(most);
        let mut sum = 0.0f64;
        for score in line.iter_mut() {
            *score = ((*score - most) / tau).exp();
            sum += f64::from(*score);
        }
        loss += sum.ln() - f64::from((own - most) / tau);
        let factor = 1.0 / (sum as f32 * tau * rows as f32);
        line.iter_mut().for_each(|score| *score *= factor);
        if let Some(score) = line.get_mut(*target as usize) {
            *score -= 1.0 / (tau * rows as f32);
        }
    }
    let gradient = product(
        pool,
        &transposed(&scores, count),
        &transposed(queries, dimensions),
        rows,
    )?;
    Ok((loss / rows.max(1) as f64, gradient))
}
