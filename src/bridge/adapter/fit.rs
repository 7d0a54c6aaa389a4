//! The loop that trains an adapter's map: the contrastive loss of each query against all passages of the training
//! documents, by hand-made gradients, Adam, early stopping, checkpoints.
//!
//! With `o = y / |y|` and `y = x + x M`, the loss's gradient by `M` is `x^T dy`, `dy = (do - (o . do) o) / |y|`.

use super::options::{AdapterOptions, Queries};
use super::{Adapter, KIND, Side};
use crate::bridge::BridgeError;
use crate::bridge::file::{self, Tensors};
use crate::bridge::train::adam::Adam;
use crate::bridge::train::data::{Monitor, Progress};
use crate::bridge::train::early_stopping::{EarlyStopping, gains, mean, standard_error};
use crate::bridge::train::loss::{Candidates, Groups, softmax_loss};
use crate::bridge::train::matrix::{product, transposed};
use crate::compute::Pool;
use crate::compute::rowwise::pooling::normalize;
use crate::random::Random;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// Epochs that are not kept after which training ends.
const PATIENCE: usize = 4;
/// Fewest steps of an epoch: few pairs are gone through several times before they are measured.
const LEAST_STEPS: usize = 64;
/// Steps between two reports of progress.
const REPORT_STEPS: usize = 8;

impl Queries {
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
    let mut sums = product(pool, rows, &transposed(map, dimensions)?, dimensions)?;
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
        &transposed(rows, dimensions)?,
        &transposed(&by_units, dimensions)?,
        count,
    )
}

/// Vectors of passages; those that one was cut in are a group.
#[derive(Clone)]
pub(super) struct Passages {
    pub vectors: Vec<f32>,
    pub groups: Groups,
}

impl Passages {
    fn candidates(&self, pool: &Pool, dimensions: usize, most: usize) -> Result<Candidates, BridgeError> {
        Candidates::grouped(pool, self.vectors.clone(), dimensions, most, self.groups.clone())
    }
}

/// Which of the two trainings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Stage {
    /// On the training documents; validation chooses the epoch, and test gives the figures.
    Evaluation,
    /// On all documents, for as many epochs.
    Refit,
}

/// What a training is given.
pub(super) struct Given {
    /// The metric that the map begins with, where it does not begin at the identity.
    pub start: Option<Vec<f32>>,
    /// What queries are trained against, and measured against.
    pub known: Passages,
    pub passages: Passages,
    pub training: Queries,
    pub validation: Queries,
}

/// The loop's state. On the query side the map is `S (I + F) - I`: `S` the metric that it begins with, `F` trained over
/// the vectors `q S` of unit length.
pub(super) struct Fit<'a> {
    pool: &'a Pool,
    options: &'a AdapterOptions,
    stage: Stage,
    /// `S`, where the map does not begin at the identity.
    start: Option<Vec<f32>>,
    /// Passages of the training documents, packed and as they are.
    candidates: Candidates,
    known: Passages,
    /// All passages.
    all: Candidates,
    passages: Passages,
    /// With vectors `q S`.
    training: Queries,
    validation: Queries,
    moments: Adam,
    /// `F`.
    adapter: Adapter,
    /// The whole map that chose best.
    pub best: Adapter,
    best_score: f64,
    pub best_epoch: usize,
    /// Epochs that are over, of this stage and of the evaluated one.
    pub epoch: usize,
    evaluated_epochs: usize,
    /// Values of the validation queries before anything was trained.
    plain: Vec<f64>,
    stopping: EarlyStopping,
}

impl<'a> Fit<'a> {
    /// A training that has not begun.
    pub fn new(
        pool: &'a Pool,
        options: &'a AdapterOptions,
        stage: Stage,
        given: Given,
    ) -> Result<Fit<'a>, BridgeError> {
        let Given {
            start,
            known,
            passages,
            mut training,
            validation,
        } = given;
        let count = training.targets.len().max(1);
        let d = training.vectors.len() / count;
        if let Some(start) = &start {
            training.vectors = product(pool, &training.vectors, &transposed(start, d)?, d)?;
            training.vectors.chunks_exact_mut(d.max(1)).for_each(normalize);
        }
        let mut fit = Fit {
            pool,
            options,
            stage,
            start,
            candidates: known.candidates(pool, d, options.batch)?,
            known,
            all: passages.candidates(pool, d, options.batch)?,
            passages,
            training,
            validation,
            moments: Adam::new(d * d),
            adapter: Adapter::identity(options.side, d),
            best: Adapter::identity(options.side, d),
            best_score: 0.0,
            best_epoch: 0,
            epoch: 0,
            evaluated_epochs: 0,
            plain: Vec::new(),
            stopping: EarlyStopping::new(0.0),
        };
        if stage == Stage::Evaluation {
            fit.plain = fit.scores(&fit.best, &fit.validation)?;
            fit.best_score = mean(&fit.plain);
            fit.stopping = EarlyStopping::new(fit.best_score);
        }
        Ok(fit)
    }

    /// Pairs of the training.
    pub fn trained_on(&self) -> usize {
        self.training.targets.len()
    }

    /// Takes over what the evaluated training chose.
    pub fn follow(&mut self, evaluated: &Fit) {
        self.best = evaluated.best.clone();
        (self.best_score, self.best_epoch) = (evaluated.best_score, evaluated.best_epoch);
        self.evaluated_epochs = evaluated.epoch;
    }

    /// The map over the vectors as they come from the encoder: `S (I + F) - I`.
    pub fn whole(&self) -> Result<Adapter, BridgeError> {
        let d = self.adapter.dimensions;
        let mut whole = self.adapter.clone();
        if let Some(start) = &self.start {
            whole.map = product(self.pool, start, &transposed(&self.adapter.map, d)?, d)?;
            whole.map.iter_mut().zip(start).for_each(|(sum, s)| *sum += s);
            whole
                .map
                .iter_mut()
                .step_by(d + 1)
                .for_each(|diagonal| *diagonal -= 1.0);
        }
        Ok(whole)
    }

    /// nDCG@10 of each query against all passages.
    pub fn scores(&self, adapter: &Adapter, queries: &Queries) -> Result<Vec<f64>, BridgeError> {
        let d = adapter.dimensions;
        let ranks = match adapter.side {
            Side::Query => {
                let (mapped, _) = mapped(self.pool, &adapter.map, &queries.vectors, d)?;
                self.all.ranks(self.pool, &mapped, &queries.targets)?
            }
            Side::Passage => {
                let (mapped, _) = mapped(self.pool, &adapter.map, &self.passages.vectors, d)?;
                let groups = self.passages.groups.clone();
                let all = Candidates::grouped(self.pool, mapped, d, self.options.batch, groups)?;
                all.ranks(self.pool, &queries.vectors, &queries.targets)?
            }
        };
        Ok(gains(&ranks))
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
                let Passages { vectors, groups } = &self.known;
                let (units, lengths) = mapped(self.pool, &self.adapter.map, vectors, d)?;
                let (loss, by_units) = passage_loss(self.pool, batch, &units, groups, self.options.tau, d)?;
                (loss, by_map(self.pool, vectors, &units, &lengths, by_units, d)?)
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

    /// Whether another epoch is to be trained.
    fn goes_on(&self) -> bool {
        match self.stage {
            Stage::Evaluation => self.epoch < self.options.epochs && self.epoch - self.best_epoch < PATIENCE,
            Stage::Refit => self.epoch < self.best_epoch,
        }
    }

    /// Trains to the end; `monitor` sees every few steps and the state after every epoch.
    pub fn run(&mut self, monitor: &mut dyn Monitor) -> Result<(), BridgeError> {
        let (count, d) = (self.training.targets.len(), self.adapter.dimensions);
        let once = count.div_ceil(self.options.batch).max(1);
        let rounds = LEAST_STEPS.div_ceil(once).max(1);
        let batches = once * rounds;
        let epochs = match self.stage {
            Stage::Evaluation => self.options.epochs,
            Stage::Refit => self.best_epoch,
        };
        while self.goes_on() {
            let mut random = Random::new(self.options.seed.wrapping_add(1 + self.epoch as u64));
            let mut order: Vec<usize> = (0..count).collect();
            let orders: Vec<Vec<usize>> = (0..rounds)
                .map(|_| {
                    random.shuffle(&mut order);
                    order.clone()
                })
                .collect();
            let mut loss = 0.0;
            let batches_of_epoch = orders.iter().flat_map(|order| order.chunks(self.options.batch));
            for (number, numbers) in batches_of_epoch.enumerate() {
                let batch = self.training.batch(numbers, d);
                loss += self.step(&batch)?;
                if number % REPORT_STEPS == 0 {
                    monitor.step(&Progress {
                        step: (self.epoch * batches + number + 1) as u64,
                        steps: (epochs * batches) as u64,
                        loss: loss / (number + 1) as f64,
                        held_out: Some(self.best_score),
                    })?;
                }
            }
            self.epoch += 1;
            if self.stage == Stage::Evaluation {
                let whole = self.whole()?;
                let values = self.scores(&whole, &self.validation)?;
                let score = mean(&values);
                if self.stopping.keeps(score, standard_error(&self.plain, &values)) {
                    (self.best, self.best_score, self.best_epoch) = (whole, score, self.epoch);
                }
            }
            monitor.checkpoint(&self.checkpoint()?)?;
        }
        Ok(())
    }

    /// The state between two epochs.
    fn checkpoint(&self) -> Result<Vec<u8>, BridgeError> {
        let d = self.adapter.dimensions;
        let state = json!({"epoch": self.epoch, "best_epoch": self.best_epoch, "best_score": self.best_score,
            "steps": self.moments.steps, "training": self.training.targets.len(), "stage": self.stage,
            "evaluated_epochs": self.evaluated_epochs, "stopping": self.stopping});
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

    /// Goes on where a checkpoint of the same training ended. A checkpoint of the second stage says that the first is
    /// over and what it chose.
    pub fn resume(&mut self, checkpoint: Option<&[u8]>) -> Result<(), BridgeError> {
        let Some(bytes) = checkpoint else { return Ok(()) };
        let damaged = || BridgeError::File("the checkpoint is of another training".to_owned());
        let mut tensors = Tensors::read(bytes, KIND)?;
        let state = tensors.description.metadata.get("state").cloned().unwrap_or_default();
        let number = |name: &str| state.get(name).and_then(Value::as_u64);
        let stage: Stage = state
            .get("stage")
            .and_then(|stage| Stage::deserialize(stage).ok())
            .ok_or_else(damaged)?;
        let score = state.get("best_score").and_then(Value::as_f64);
        let (Some(epoch), Some(best), Some(score)) = (number("epoch"), number("best_epoch"), score) else {
            return Err(damaged());
        };
        let steps = number("steps").and_then(|steps| u32::try_from(steps).ok());
        let (Some(steps), Some(trained)) = (steps, number("training")) else {
            return Err(damaged());
        };
        if stage == Stage::Evaluation && self.stage == Stage::Refit {
            return Ok(());
        }
        let d = self.adapter.dimensions;
        self.best.map = tensors.take("best", &[d, d])?;
        (self.best_score, self.best_epoch) = (score, best as usize);
        if stage != self.stage {
            let epochs = number("evaluated_epochs")
                .filter(|epochs| *epochs >= best)
                .ok_or_else(damaged)?;
            self.epoch = epochs as usize;
            return Ok(());
        }
        let most = match stage {
            Stage::Evaluation => self.options.epochs as u64,
            Stage::Refit => best,
        };
        if trained != self.training.targets.len() as u64 || epoch > most || (stage == Stage::Evaluation && best > epoch)
        {
            return Err(damaged());
        }
        let stopping = state.get("stopping").cloned().unwrap_or_default();
        self.stopping = serde_json::from_value(stopping).map_err(|_| damaged())?;
        self.adapter.map = tensors.take("map", &[d, d])?;
        self.moments.first = tensors.take("first", &[d, d])?;
        self.moments.second = tensors.take("second", &[d, d])?;
        self.moments.steps = steps;
        self.epoch = epoch as usize;
        Ok(())
    }
}

/// The mean loss of a batch of queries against unit vectors of passages, and its gradient by the passages.
pub(super) fn passage_loss(
    pool: &Pool,
    queries: &Queries,
    passages: &[f32],
    groups: &Groups,
    tau: f32,
    dimensions: usize,
) -> Result<(f64, Vec<f32>), BridgeError> {
    let count = passages.len() / dimensions.max(1);
    let mut scores = product(pool, &queries.vectors, passages, dimensions)?;
    let rows = queries.targets.len();
    let mut loss = 0.0;
    for (line, target) in scores.chunks_exact_mut(count.max(1)).zip(&queries.targets) {
        let own = groups.members(*target);
        let (of_line, shares) = softmax_loss(line, own.clone(), tau, rows);
        loss += of_line;
        for (score, share) in line[own].iter_mut().zip(&shares) {
            *score -= share / (tau * rows as f32);
        }
    }
    let gradient = product(
        pool,
        &transposed(&scores, count)?,
        &transposed(&queries.vectors, dimensions)?,
        rows,
    )?;
    Ok((loss / rows.max(1) as f64, gradient))
}
