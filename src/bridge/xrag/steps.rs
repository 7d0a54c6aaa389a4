//! The loop of a stage: steps over its items, a measurement after every round, the best round kept, checkpoints.

use super::fit::Trainee;
use super::options::XragOptions;
use super::pass::{Example, Factors, Given, Passed, Reader};
use super::prompts::Prompt;
use crate::bridge::BridgeError;
use crate::bridge::train::data::{Monitor, Progress};
use crate::bridge::train::early_stopping::mean;
use crate::bridge::train::split::{Epochs, Splits};
use crate::compute::Pool;
use serde_json::{Map, Value, json};
use std::cell::RefCell;

/// Rounds without a better one after which a stage ends.
const PATIENCE: usize = 4;

/// An item of a stage as it is put before the decoder.
#[derive(Clone)]
pub struct Task {
    pub prompt: Prompt,
    pub text: Vec<u32>,
    /// The prompt that the teacher reads.
    pub teacher: Option<Vec<u32>>,
}

/// What a stage trains on.
pub trait Objective {
    /// The stage's name in checkpoints and figures.
    fn name(&self) -> &'static str;
    /// The passage whose vectors an item is given.
    fn passage(&self, item: usize) -> usize;
    /// An item as it stands at a place of the training, or, without one, as it is measured.
    fn task(&self, item: usize, place: Option<usize>) -> Result<Task, BridgeError>;
    /// The highest learning rate, the epochs, the factors of the losses.
    fn plan(&self) -> (f32, usize, Factors);
}

/// What all stages have.
pub struct Training<'a> {
    pub options: &'a XragOptions,
    pub pool: &'a Pool,
    pub reader: Reader<'a>,
    pub dimensions: usize,
    /// The encoder's vectors of the passages.
    pub vectors: Vec<f32>,
}

/// The items of a step.
struct Batch {
    items: Vec<usize>,
    /// The first one's place among all of the training.
    place: usize,
    rate: f32,
}

/// Asks a monitor from inside of a pass, and keeps what it said.
struct Asking<'a, 'b> {
    monitor: RefCell<&'a mut dyn Monitor>,
    progress: &'b Progress,
    said: RefCell<Option<BridgeError>>,
}

impl Asking<'_, '_> {
    fn stop(&self) -> bool {
        match self.monitor.borrow_mut().step(self.progress) {
            Ok(()) => false,
            Err(error) => {
                *self.said.borrow_mut() = Some(error);
                true
            }
        }
    }
}

/// Runs something that asks the monitor between layers.
pub fn monitored<T>(
    monitor: &mut dyn Monitor,
    progress: &Progress,
    body: impl FnOnce(&dyn Fn() -> bool) -> Result<T, BridgeError>,
) -> Result<T, BridgeError> {
    let asking = Asking {
        monitor: RefCell::new(monitor),
        progress,
        said: RefCell::new(None),
    };
    let result = body(&|| asking.stop());
    match asking.said.into_inner() {
        Some(said) => Err(said),
        None => result,
    }
}

/// What is put in the place of a passage where items are measured.
#[derive(Clone, Copy)]
pub enum Put<'a> {
    /// Vectors of the projector, one row for each item; the item's own, or those of the one that many behind it.
    Vectors(&'a [f32], usize),
    Ids(&'a [Vec<u32>]),
    Prompts(&'a [Vec<u32>]),
}

impl Training<'_> {
    fn rows(&self, passages: impl Iterator<Item = usize>) -> Vec<f32> {
        let row = |passage: usize| &self.vectors[passage * self.dimensions..][..self.dimensions];
        passages.flat_map(row).copied().collect()
    }

    /// The projector's vectors of items' passages, those of each one after another.
    pub fn projected(
        &self,
        objective: &dyn Objective,
        trainee: &Trainee,
        items: &[usize],
    ) -> Result<Vec<f32>, BridgeError> {
        let x = self.rows(items.iter().map(|item| objective.passage(*item)));
        Ok(trainee.forward(self.pool, &x)?.2)
    }

    /// Items as they are measured.
    pub fn tasks(&self, objective: &dyn Objective, items: &[usize], taught: bool) -> Result<Vec<Task>, BridgeError> {
        let task = |item: &usize| {
            let mut task = objective.task(*item, None)?;
            task.teacher = task.teacher.filter(|_| taught);
            Ok(task)
        };
        items.iter().map(task).collect()
    }

    /// Measures tasks with something in their passages' places.
    pub fn measure(
        &self,
        tasks: &[Task],
        put: Put<'_>,
        monitor: &mut dyn Monitor,
        progress: &Progress,
    ) -> Result<Passed, BridgeError> {
        let count = tasks.len();
        let given = |number: usize| match put {
            Put::Vectors(rows, behind) => {
                let width = rows.len() / count.max(1);
                Given::Vectors(&rows[(number + behind) % count * width..][..width])
            }
            Put::Ids(ids) => Given::Ids(&ids[number]),
            Put::Prompts(ids) => Given::Prompt(&ids[number]),
        };
        let examples: Vec<Example> = tasks
            .iter()
            .enumerate()
            .map(|(number, task)| task.example(given(number)))
            .collect();
        monitored(monitor, progress, |stop| self.reader.pass(&examples, None, stop))
    }

    fn step(
        &self,
        objective: &dyn Objective,
        trainee: &mut Trainee,
        batch: &Batch,
        monitor: &mut dyn Monitor,
        progress: &Progress,
    ) -> Result<f64, BridgeError> {
        let Batch { items, place, rate } = batch;
        let x = self.rows(items.iter().map(|item| objective.passage(*item)));
        let (_, _, out) = trainee.forward(self.pool, &x)?;
        let width = trainee.sizes.outputs;
        let tasks = items.iter().enumerate();
        let tasks = tasks.map(|(number, item)| objective.task(*item, Some(place + number)));
        let tasks = tasks.collect::<Result<Vec<_>, BridgeError>>()?;
        let examples: Vec<Example> = tasks
            .iter()
            .zip(out.chunks_exact(width))
            .map(|(task, vectors)| task.example(Given::Vectors(vectors)))
            .collect();
        let tokens: usize = tasks.iter().map(|task| task.text.len()).sum();
        let share = 1.0 / tokens.max(1) as f32;
        let (_, _, factors) = objective.plan();
        let factors = Factors {
            nll: factors.nll * share,
            kl: factors.kl * share,
        };
        let passed = monitored(monitor, progress, |stop| {
            self.reader.pass(&examples, Some(factors), stop)
        })?;
        trainee.step(self.pool, &x, &passed.gradients.concat(), *rate, self.options.decay)?;
        Ok(mean(&passed.bits))
    }
}

impl Task {
    /// With something in the passage's place.
    pub fn example<'a>(&'a self, given: Given<'a>) -> Example<'a> {
        Example {
            prompt: &self.prompt,
            given,
            text: &self.text,
            teacher: self.teacher.as_deref(),
        }
    }
}

/// Where a stage stands among all steps of a training.
#[derive(Clone, Copy)]
pub struct Place {
    /// Steps of the stages before.
    pub before: usize,
    /// Steps of all stages.
    pub all: usize,
}

/// Where a stage goes on from.
pub struct Resumed {
    pub state: Value,
    /// What the stage began with.
    pub begun: Option<[Vec<f32>; 4]>,
}

/// What a stage came to.
pub struct Fitted {
    pub rounds: usize,
    /// 0 where no round was better than the beginning.
    pub best_round: usize,
}

/// A stage to be run.
pub struct Stage<'a> {
    pub objective: &'a dyn Objective,
    /// Items of the objective.
    pub splits: &'a Splits,
    pub place: Place,
    /// What checkpoints carry for the stages behind.
    pub carried: Value,
    /// Whether the stage begins with something that is worth keeping: it is measured first, and is what is left where
    /// no round is better.
    pub keeps_beginning: bool,
}

impl Stage<'_> {
    /// Steps that it has.
    pub fn steps(&self, options: &XragOptions) -> usize {
        (self.splits.training.len() * self.objective.plan().1).div_ceil(options.batch)
    }

    fn chosen_by(
        &self,
        training: &Training<'_>,
        trainee: &Trainee,
        tasks: &[Task],
        monitor: &mut dyn Monitor,
        progress: &Progress,
    ) -> Result<f64, BridgeError> {
        let vectors = training.projected(self.objective, trainee, &self.splits.validation)?;
        Ok(mean(
            &training
                .measure(tasks, Put::Vectors(&vectors, 0), monitor, progress)?
                .bits,
        ))
    }

    /// Runs the stage: `trainee` becomes what the best round gave.
    pub fn run(
        &self,
        training: &Training<'_>,
        trainee: &mut Trainee,
        resumed: Option<&Resumed>,
        monitor: &mut dyn Monitor,
    ) -> Result<Fitted, BridgeError> {
        let options = training.options;
        let rounds = self.steps(options).div_ceil(options.round_steps);
        let tasks = training.tasks(self.objective, &self.splits.validation, false)?;
        let begun = match resumed {
            Some(resumed) => resumed.begun.clone(),
            None => self.keeps_beginning.then(|| trainee.parts.clone()),
        };
        // Checkpoints are kept at the ends of rounds that were better than all before, so what was best then is where
        // to go on.
        let (mut round, mut best_bits) = match resumed {
            Some(resumed) => self.read(&resumed.state)?,
            None if self.keeps_beginning => {
                let progress = self.progress(0, 0.0, f64::INFINITY);
                let bits = self.chosen_by(training, trainee, &tasks, monitor, &progress)?;
                self.keep(trainee, begun.as_ref(), 0, bits, monitor)?;
                (0, bits)
            }
            None => (0, f64::INFINITY),
        };
        let (mut best_round, mut best) = (round, trainee.parts.clone());
        let mut epochs = Epochs::new(self.splits.training.len(), options.seed);
        while round < rounds && round - best_round < PATIENCE {
            let progress = self.round(training, trainee, round, best_bits, &mut epochs, monitor)?;
            round += 1;
            let found = self.chosen_by(training, trainee, &tasks, monitor, &progress)?;
            if found < best_bits {
                (best_bits, best_round) = (found, round);
                best = trainee.parts.clone();
                self.keep(trainee, begun.as_ref(), round, best_bits, monitor)?;
            }
        }
        trainee.parts = best;
        Ok(Fitted {
            rounds: round,
            best_round,
        })
    }

    /// The steps of one round; gives where the training is behind them.
    fn round(
        &self,
        training: &Training<'_>,
        trainee: &mut Trainee,
        round: usize,
        best_bits: f64,
        epochs: &mut Epochs,
        monitor: &mut dyn Monitor,
    ) -> Result<Progress, BridgeError> {
        let options = training.options;
        let mut bits = 0.0;
        let range = round * options.round_steps..((round + 1) * options.round_steps).min(self.steps(options));
        for step in range.clone() {
            let place = step * options.batch;
            let places = place..place + options.batch;
            let batch = Batch {
                items: places.map(|place| self.splits.training[epochs.at(place)]).collect(),
                place,
                rate: self.rate(step, options),
            };
            let loss = bits / (step - range.start).max(1) as f64;
            let progress = self.progress(step, loss, best_bits);
            bits += training.step(self.objective, trainee, &batch, monitor, &progress)?;
        }
        Ok(self.progress(range.end, bits / range.len().max(1) as f64, best_bits))
    }

    /// The learning rate of a step: it rises in the first ones, and falls to the end.
    fn rate(&self, step: usize, options: &XragOptions) -> f32 {
        let (highest, _, _) = self.objective.plan();
        let (steps, now) = (self.steps(options) as f32, step as f32 + 1.0);
        let warm = (steps * options.warm_up).max(1.0);
        highest * (now / warm).min((steps - now + 1.0) / steps).min(1.0)
    }

    fn progress(&self, step: usize, loss: f64, best: f64) -> Progress {
        Progress {
            step: (self.place.before + step) as u64,
            steps: self.place.all as u64,
            loss,
            held_out: best.is_finite().then_some(best),
        }
    }

    /// Hands the state to the monitor; `begun` is what the stage began with, where that is worth keeping.
    fn keep(
        &self,
        trainee: &Trainee,
        begun: Option<&[Vec<f32>; 4]>,
        round: usize,
        best_bits: f64,
        monitor: &mut dyn Monitor,
    ) -> Result<(), BridgeError> {
        let state = json!({
            "stage": self.objective.name(), "items": self.splits.training.len(), "round": round, "best_bits": best_bits,
            "carried": self.carried,
        });
        monitor.checkpoint(&trainee.checkpoint(state, begun)?)
    }

    fn read(&self, state: &Value) -> Result<(usize, f64), BridgeError> {
        let number = |name: &str| state.get(name).and_then(Value::as_u64).map(|number| number as usize);
        let same = number("items") == Some(self.splits.training.len());
        let found = number("round").zip(state.get("best_bits").and_then(Value::as_f64));
        found
            .filter(|_| same)
            .ok_or_else(|| BridgeError::File("the checkpoint is of another training".to_owned()))
    }
}

/// Figures of a stage that every stage has.
pub fn facts(stage: &Stage<'_>, fitted: &Fitted) -> Map<String, Value> {
    Map::from_iter([
        ("trained_on".to_owned(), json!(stage.splits.training.len())),
        ("held_out".to_owned(), json!(stage.splits.test.len())),
        ("rounds".to_owned(), json!(fitted.rounds)),
        ("best_round".to_owned(), json!(fitted.best_round)),
    ])
}
