//! The loop that fine-tunes the upper layers: one query at a time, its positive passage against the index's own
//! negatives, gradients gathered over a batch, Adam with warm-up and linear decay, rounds that end in a measurement.
//!
//! `loss = -log softmax(q' [p+, p1-, .., pn-]^T / tau)[0]` with the passages' vectors frozen (Yu, Xiong, Callan 2021,
//! the sampled form of the reproducibility study arXiv 2112.06400: several negatives, none of them another query's).

use super::options::{Query, TextFeedbackOptions};
use super::{KIND, Reading, TextFeedback};
use crate::bridge::BridgeError;
use crate::bridge::file::{self, Tensors};
use crate::bridge::train::adam::Adam;
use crate::bridge::train::data::{Monitor, Progress};
use crate::bridge::train::early_stopping::{gains, mean};
use crate::bridge::train::loss::Candidates;
use crate::bridge::train::split::Epochs;
use crate::compute::Pool;
use crate::model::ModelError;
use crate::model::fine_tune::FineTuning;
use crate::model::overlay::Replaced;
use crate::random::Random;
use candle_core::{Device, Tensor};
use serde_json::{Map, Value, json};

/// Rounds without a better one after which training ends.
const PATIENCE: usize = 3;
/// Longest gradient of a step.
const CLIP: f32 = 1.0;
/// Share of the steps in which the rate rises.
const WARM_UP: f32 = 0.1;
/// Largest checkpoint that is kept; a larger model starts anew after a crash.
const MOST_CHECKPOINT: usize = 900 << 20;

fn failed(error: candle_core::Error) -> BridgeError {
    BridgeError::Model(ModelError::Tensor(error.to_string()))
}

/// The passages that queries are searched among.
#[derive(Clone, Copy)]
pub struct Searched<'a> {
    pub dimensions: usize,
    /// Of all passages, row-major.
    pub vectors: &'a [f32],
    /// The same, ready to be ranked.
    pub all: &'a Candidates,
}

/// The loop's state.
pub struct Fit<'a> {
    pub model: FineTuning,
    options: &'a TextFeedbackOptions,
    pool: &'a Pool,
    searched: Searched<'a>,
    training: Vec<Query>,
    validation: Vec<Query>,
    moments: Vec<Adam>,
    /// The trained tensors of the best round; empty where none beat the plain vectors' score.
    best: Vec<Vec<f32>>,
    pub best_score: f64,
    pub best_round: usize,
    /// Rounds that are over.
    pub round: usize,
}

impl<'a> Fit<'a> {
    /// `plain` is the validation queries' score without feedback.
    pub fn new(
        model: FineTuning,
        options: &'a TextFeedbackOptions,
        pool: &'a Pool,
        searched: Searched<'a>,
        training: Vec<Query>,
        validation: Vec<Query>,
        plain: f64,
    ) -> Fit<'a> {
        let numbers = |variable: &candle_core::Var| variable.elem_count();
        let moments = model
            .variables()
            .iter()
            .map(|(_, variable)| Adam::new(numbers(variable)))
            .collect();
        Fit {
            moments,
            model,
            options,
            pool,
            searched,
            training,
            validation,
            best: Vec::new(),
            best_score: plain,
            best_round: 0,
            round: 0,
        }
    }

    /// Queries that are trained on, once each an epoch.
    pub fn trained_on(&self) -> usize {
        self.training.len()
    }

    fn steps(&self) -> usize {
        (self.training.len() * self.options.epochs).div_ceil(self.options.batch)
    }

    /// Positive and drawn negatives of a query, `[1 + negatives, dimensions]`.
    fn passages(&self, query: &Query, place: usize) -> Result<Tensor, BridgeError> {
        let mut negatives = query.negatives.clone();
        Random::new(self.options.seed ^ (place as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)).shuffle(&mut negatives);
        negatives.truncate(self.options.negatives);
        let d = self.searched.dimensions;
        let chosen = std::iter::once(query.target).chain(negatives.iter().copied());
        let rows: Vec<f32> = chosen
            .flat_map(|passage| &self.searched.vectors[passage as usize * d..][..d])
            .copied()
            .collect();
        Tensor::from_vec(rows, (negatives.len() + 1, d), &Device::Cpu).map_err(failed)
    }

    /// The loss of one query, and its gradient added to `sums`.
    fn backward(&self, query: &Query, place: usize, sums: &mut [Vec<f32>]) -> Result<f64, BridgeError> {
        let passages = self.passages(query, place)?;
        let vector = self.model.vector(&query.sequence)?;
        let forward = || -> candle_core::Result<Tensor> {
            let scores = (passages.matmul(&vector.unsqueeze(1)?)?.squeeze(1)? / f64::from(self.options.tau))?;
            let most = scores.detach().max(0)?;
            let sum = scores.broadcast_sub(&most)?.exp()?.sum_all()?.log()?;
            sum + most - scores.get(0)?
        };
        let loss = forward().map_err(failed)?;
        let gradients = (loss.clone() / self.options.batch as f64)
            .and_then(|loss| loss.backward())
            .map_err(failed)?;
        for ((_, variable), sum) in self.model.variables().iter().zip(sums) {
            if let Some(gradient) = gradients.get(variable.as_tensor()) {
                let gradient = gradient
                    .flatten_all()
                    .and_then(|flat| flat.to_vec1::<f32>())
                    .map_err(failed)?;
                sum.iter_mut().zip(gradient).for_each(|(sum, x)| *sum += x);
            }
        }
        Ok(f64::from(loss.to_scalar::<f32>().map_err(failed)?))
    }

    fn update(&mut self, sums: &mut [Vec<f32>], step: usize) -> Result<(), BridgeError> {
        let square: f64 = sums.iter().flatten().map(|x| f64::from(*x).powi(2)).sum();
        let scale = (CLIP / square.sqrt().max(1e-12) as f32).min(1.0);
        let all = self.steps() as f32;
        let (now, rise) = (step as f32 + 1.0, (all * WARM_UP).max(1.0));
        let rate = self.options.rate
            * (now / rise)
                .min((all - now + 1.0) / (all - rise + 1.0).max(1.0))
                .min(1.0);
        for (((_, variable), moments), sum) in self.model.variables().iter().zip(&mut self.moments).zip(sums) {
            sum.iter_mut().for_each(|x| *x *= scale);
            let mut numbers = flat(variable.as_tensor())?;
            moments.begin();
            moments.update(&mut numbers, 0, sum, rate, 0.0);
            set(variable, numbers)?;
            sum.fill(0.0);
        }
        Ok(())
    }

    /// nDCG@10 of each query's vector against all passages.
    pub fn scores(
        &self,
        queries: &[Query],
        monitor: &mut dyn Monitor,
        progress: &Progress,
    ) -> Result<Vec<f64>, BridgeError> {
        let mut ranks = Vec::with_capacity(queries.len());
        for query in queries {
            monitor.step(progress)?;
            let vector = self.model.vector(&query.sequence)?.to_vec1::<f32>().map_err(failed)?;
            ranks.extend(self.searched.all.ranks(self.pool, &vector, &[query.target])?);
        }
        Ok(gains(&ranks))
    }

    /// Trains to the end; `monitor` is asked between queries and sees the state after every round.
    pub fn run(&mut self, monitor: &mut dyn Monitor) -> Result<(), BridgeError> {
        let (steps, batch, of_round) = (self.steps(), self.options.batch, self.options.round_steps);
        let rounds = steps.div_ceil(of_round);
        let numbers = |(_, variable): &(String, candle_core::Var)| vec![0.0f32; variable.elem_count()];
        let mut sums: Vec<Vec<f32>> = self.model.variables().iter().map(numbers).collect();
        let mut epochs = Epochs::new(self.training.len(), self.options.seed);
        while self.round < rounds && self.round - self.best_round < PATIENCE {
            let (mut loss, mut seen) = (0.0, 0);
            for step in self.round * of_round..((self.round + 1) * of_round).min(steps) {
                for within in 0..batch {
                    let place = step * batch + within;
                    let query = epochs.at(place);
                    loss += self.backward(&self.training[query], place, &mut sums)?;
                    seen += 1;
                    monitor.step(&self.progress(step, loss / f64::from(seen)))?;
                }
                self.update(&mut sums, step)?;
            }
            self.round += 1;
            let progress = self.progress((self.round * of_round).min(steps), loss / f64::from(seen.max(1)));
            let score = mean(&self.scores(&self.validation, monitor, &progress)?);
            if score > self.best_score {
                (self.best_score, self.best_round) = (score, self.round);
                self.best = self.numbers()?;
            }
            let checkpoint = self.checkpoint()?;
            if checkpoint.len() <= MOST_CHECKPOINT {
                monitor.checkpoint(&checkpoint)?;
            }
        }
        Ok(())
    }

    fn progress(&self, step: usize, loss: f64) -> Progress {
        Progress {
            step: step as u64,
            steps: self.steps() as u64,
            loss,
            held_out: Some(self.best_score),
        }
    }

    fn numbers(&self) -> Result<Vec<Vec<f32>>, BridgeError> {
        self.model
            .variables()
            .iter()
            .map(|(_, variable)| flat(variable.as_tensor()))
            .collect()
    }

    /// Puts the best round's numbers in place. Without one the model is as it began.
    pub fn choose(&mut self) -> Result<(), BridgeError> {
        for ((_, variable), numbers) in self.model.variables().iter().zip(&self.best) {
            set(variable, numbers.clone())?;
        }
        Ok(())
    }

    /// The bridge of what is in place.
    pub fn bridge(&self, reading: Reading) -> Result<TextFeedback, BridgeError> {
        let numbers = self.numbers()?.into_iter();
        let named = self.model.variables().iter().zip(numbers);
        let replaced: Replaced = named
            .map(|((name, variable), numbers)| (name.clone(), (variable.dims().to_vec(), numbers)))
            .collect();
        Ok(TextFeedback { reading, replaced })
    }

    /// The state between two rounds.
    fn checkpoint(&self) -> Result<Vec<u8>, BridgeError> {
        let state = json!({"round": self.round, "best_round": self.best_round, "best_score": self.best_score,
            "steps": self.moments.first().map(|moments| moments.steps), "training": self.training.len()});
        let numbers = self.numbers()?;
        let mut tensors = Vec::new();
        for (place, (name, _)) in self.model.variables().iter().enumerate() {
            tensors.push((format!("now.{name}"), &numbers[place]));
            tensors.push((format!("first.{name}"), &self.moments[place].first));
            tensors.push((format!("second.{name}"), &self.moments[place].second));
            if let Some(best) = self.best.get(place) {
                tensors.push((format!("best.{name}"), best));
            }
        }
        let views: Vec<(&str, Vec<usize>, &[f32])> = tensors
            .iter()
            .map(|(name, numbers)| (name.as_str(), vec![numbers.len()], numbers.as_slice()))
            .collect();
        file::write(
            KIND,
            self.searched.dimensions,
            Map::from_iter([("state".to_owned(), state)]),
            &views,
        )
    }

    /// Goes on where a checkpoint of the same training ended.
    pub fn resume(&mut self, checkpoint: Option<&[u8]>) -> Result<(), BridgeError> {
        let Some(bytes) = checkpoint else { return Ok(()) };
        let damaged = || BridgeError::File("the checkpoint is of another training".to_owned());
        let mut tensors = Tensors::read(bytes, KIND)?;
        let state = tensors.description.metadata.get("state").cloned().unwrap_or_default();
        let number = |name: &str| state.get(name).and_then(Value::as_u64).ok_or_else(damaged);
        let (round, best, steps) = (number("round")?, number("best_round")?, number("steps")?);
        let score = state.get("best_score").and_then(Value::as_f64).ok_or_else(damaged)?;
        if number("training")? != self.training.len() as u64 || best > round {
            return Err(damaged());
        }
        let mut kept = Vec::new();
        for ((name, variable), moments) in self.model.variables().iter().zip(&mut self.moments) {
            let count = variable.elem_count();
            let mut take = |what: &str| tensors.take(&format!("{what}.{name}"), &[count]);
            set(variable, take("now")?)?;
            moments.first = take("first")?;
            moments.second = take("second")?;
            moments.steps = u32::try_from(steps).map_err(|_| damaged())?;
            if best > 0 {
                kept.push(take("best")?);
            }
        }
        (self.round, self.best_round, self.best_score, self.best) = (round as usize, best as usize, score, kept);
        Ok(())
    }
}

fn flat(tensor: &Tensor) -> Result<Vec<f32>, BridgeError> {
    tensor
        .flatten_all()
        .and_then(|flat| flat.to_vec1::<f32>())
        .map_err(failed)
}

fn set(variable: &candle_core::Var, numbers: Vec<f32>) -> Result<(), BridgeError> {
    let tensor = Tensor::from_vec(numbers, variable.dims(), &Device::Cpu).map_err(failed)?;
    variable.set(&tensor).map_err(failed)
}
