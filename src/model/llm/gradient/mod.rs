//! Gradients through a frozen decoder, to its input vectors: what a projector is trained by.
//!
//! Whole sequences, packed one behind the other, run forward with what the backward pass needs kept for every layer; the way
//! back gives the gradient of the loss by the input vectors alone. Weights are packed twice, as they are and transposed.
//! The loss is the cross entropy of chosen positions, `-log softmax(logits)[id]`, and where a position has a teacher,
//! `KL(teacher || softmax(logits))` besides.
//!
//! What many sequences begin with is read once ([`Past`]): their rows see its keys and values, and no gradient leads there.

mod batch;
mod layer;
mod memory;
mod sized;

use super::config::LlmConfig;
use super::files::LlmFiles;
use crate::compute::attention::shape::Shape;
use crate::compute::cpu::Level;
use crate::compute::gradient::attention::Span;
use crate::compute::gradient::each_block;
use crate::compute::gradient::head::{Head, Losses, Wanted};
use crate::compute::matmul::parallel::{Matmul, transposed};
use crate::compute::memory::zeros;
use crate::compute::{ComputeError, Linear, Pool, Precision, RmsNorm, Rope};
use crate::model::ModelError;
pub use batch::{Batch, Loss, Past, Sequence, Target};
use layer::{Layer, Pass};
use memory::Memory;
use parking_lot::Mutex;
use sized::sized;

/// A linear layer and its transpose.
struct Both {
    forward: Linear,
    backward: Linear,
}

impl Both {
    fn new(weights: &[f32], bias: Option<&[f32]>, inputs: usize, precision: Precision) -> Result<Both, ComputeError> {
        let (level, outputs) = (Level::detect(), weights.len() / inputs.max(1));
        let none = vec![0.0; outputs.max(inputs)];
        let bias = bias.unwrap_or(&none[..outputs]);
        Ok(Both {
            forward: Linear::new(level, precision, weights, bias, inputs)?,
            backward: Linear::new(
                level,
                precision,
                &transposed(weights, inputs)?,
                &none[..inputs],
                outputs,
            )?,
        })
    }
}

/// A frozen decoder that gradients go through.
pub struct Differentiable {
    config: LlmConfig,
    shape: Shape,
    level: Level,
    embeddings: Vec<f32>,
    layers: Vec<Layer>,
    norm: RmsNorm,
    head: Head,
    rope: Rope,
    /// Memory that passes use one after another.
    memory: Mutex<Memory>,
}

impl Differentiable {
    /// Bytes that the weights of a model take, about: products twice in `precision`, embeddings in 32 bits.
    pub fn weight_bytes(config: &LlmConfig, precision: Precision) -> u64 {
        let [hidden, width, between, layers] =
            [config.hidden, config.head_width, config.intermediate, config.layers].map(|number| number as u64);
        let (heads, key_heads) = (config.heads as u64, config.key_heads as u64);
        let layer = hidden * (2 * heads * width + 2 * key_heads * width + 3 * between);
        let vocabulary = config.vocabulary as u64 * hidden;
        let number = match precision {
            Precision::F32 => 4,
            _ => 2,
        };
        2 * number * (layers * layer + vocabulary) + 4 * vocabulary
    }

    /// Reads a model's tensors, whatever they are stored as, for products in `precision`.
    ///
    /// # Errors
    /// What reading fails with.
    pub fn open(files: &LlmFiles, precision: Precision) -> Result<Differentiable, ModelError> {
        Differentiable::open_until(files, precision, &|| false)
    }

    /// Like [`Differentiable::open`]; `stop` is asked after every layer.
    ///
    /// # Errors
    /// [`ModelError::Stopped`] where it says so.
    pub fn open_until(
        files: &LlmFiles,
        precision: Precision,
        stop: &dyn Fn() -> bool,
    ) -> Result<Differentiable, ModelError> {
        let config = files.config().clone();
        let hidden = config.hidden;
        let read = |number| match stop() {
            true => Err(ModelError::Stopped),
            false => Layer::read(files, number, precision),
        };
        let layers = (0..config.layers).map(read).collect::<Result<_, ModelError>>()?;
        let embeddings = vector(files, "model.embed_tokens.weight", config.vocabulary * hidden)?;
        let level = Level::detect();
        let head = match config.tied {
            true => Head::new(level, precision, &embeddings, hidden)?,
            false => {
                let weights = vector(files, "lm_head.weight", config.vocabulary * hidden)?;
                Head::new(level, precision, &weights, hidden)?
            }
        };
        let norm = RmsNorm::new(&vector(files, "model.norm.weight", hidden)?, config.norm_epsilon)?;
        files.unchanged()?;
        let frequency = |pair: usize| {
            let plain = 1.0 / f64::from(config.rope_base).powf(2.0 * pair as f64 / config.head_width as f64);
            let divisor = config
                .rope_scaling
                .as_ref()
                .and_then(|scaling| scaling.get(pair))
                .copied();
            (plain / f64::from(divisor.unwrap_or(1.0))) as f32
        };
        Ok(Differentiable {
            rope: Rope::with_frequencies((0..config.head_width / 2).map(frequency).collect()),
            shape: Shape {
                heads: config.heads,
                key_heads: config.key_heads,
                width: config.head_width,
                causal: true,
                window: config.window,
            },
            level,
            embeddings,
            layers,
            norm,
            head,
            config,
            memory: Mutex::default(),
        })
    }

    pub fn config(&self) -> &LlmConfig {
        &self.config
    }

    /// The input vector of a token; zeros for one that there is not.
    pub fn embed(&self, id: u32, out: &mut [f32]) {
        let hidden = self.config.hidden;
        let row = self.embeddings.get(id as usize * hidden..(id as usize + 1) * hidden);
        out.iter_mut()
            .zip(row.unwrap_or_default())
            .for_each(|(to, from)| *to = *from);
    }

    /// The mean length of the token embeddings' numbers: `sqrt(mean(x^2))`, the scale that inputs have.
    pub fn input_scale(&self) -> f32 {
        let squares: f64 = self.embeddings.iter().map(|x| f64::from(*x).powi(2)).sum();
        (squares / self.embeddings.len().max(1) as f64).sqrt() as f32
    }

    /// The losses of a pass.
    ///
    /// # Errors
    /// [`ComputeError::Shape`] where rows, sequences and targets do not fit; [`ComputeError::Stopped`] where `stop` says so,
    /// which is asked after every layer.
    pub fn losses(&self, pool: &Pool, batch: &Batch<'_>, stop: &dyn Fn() -> bool) -> Result<Loss, ComputeError> {
        let memory = &mut *self.memory.lock();
        self.forward(pool, batch, memory, false, &mut |_, _| {}, stop)?;
        self.head(pool, batch, memory, [0.0, 0.0], false, stop)
    }

    /// The losses, and the gradient of `sum(nats * weight + divergence * pull)` by the input vectors, row by row.
    ///
    /// # Errors
    /// As [`Differentiable::losses`].
    pub fn gradient(
        &self,
        pool: &Pool,
        batch: &Batch<'_>,
        [weight, pull]: [f32; 2],
        stop: &dyn Fn() -> bool,
    ) -> Result<(Loss, Vec<f32>), ComputeError> {
        let memory = &mut *self.memory.lock();
        self.forward(pool, batch, memory, true, &mut |_, _| {}, stop)?;
        let loss = self.head(pool, batch, memory, [weight, pull], true, stop)?;
        let rows = batch.vectors.len() / self.config.hidden;
        let mut dx = std::mem::take(&mut memory.gradient);
        let places = self.places(batch);
        let rotations = self.rope.rotations(pool, batch.longest(), &|| false)?;
        let Memory {
            kept, work, attention, ..
        } = memory;
        for (number, (layer, kept)) in self.layers.iter().zip(kept).enumerate().rev() {
            let spans = self.spans(batch, number);
            let pass = self.pass(pool, &spans, &places, &rotations, attention);
            pass.backward(layer, kept, &mut dx[..rows * self.config.hidden], work)?;
            if stop() {
                return Err(ComputeError::Stopped);
            }
        }
        let gradient = dx[..rows * self.config.hidden].to_vec();
        memory.gradient = dx;
        Ok((loss, gradient))
    }

    /// Reads what sequences begin with.
    ///
    /// # Errors
    /// As [`Differentiable::losses`].
    pub fn past(&self, pool: &Pool, vectors: &[f32], stop: &dyn Fn() -> bool) -> Result<Past, ComputeError> {
        let rows = vectors.len() / self.config.hidden;
        if rows == 0 {
            return Ok(Past {
                rows,
                layers: vec![Vec::new(); self.layers.len()],
            });
        }
        let sequences = [Sequence { rows, past: None }];
        let batch = Batch {
            vectors,
            sequences: &sequences,
            targets: &[],
        };
        let (row, queries) = (self.shape.row(), self.shape.out_row());
        let mut layers = Vec::with_capacity(self.layers.len());
        let mut keep = |_: usize, qkv: &[f32]| {
            let rows = qkv.chunks_exact(row);
            layers.push(rows.flat_map(|row| &row[queries..]).copied().collect());
        };
        self.forward(pool, &batch, &mut self.memory.lock(), false, &mut keep, stop)?;
        Ok(Past { rows, layers })
    }

    /// The logarithms of the probabilities that the rows of the targets give, a row of the vocabulary each: what they are
    /// as teachers.
    ///
    /// # Errors
    /// As [`Differentiable::losses`].
    pub fn log_probabilities(
        &self,
        pool: &Pool,
        batch: &Batch<'_>,
        stop: &dyn Fn() -> bool,
    ) -> Result<Vec<f32>, ComputeError> {
        let memory = &mut *self.memory.lock();
        self.forward(pool, batch, memory, false, &mut |_, _| {}, stop)?;
        let vocabulary = self.config.vocabulary;
        let mut out = zeros::<f32>(batch.targets.len() * vocabulary)?;
        let rows = self.head.rows(pool);
        for (targets, out) in batch.targets.chunks(rows).zip(out.chunks_mut(rows * vocabulary)) {
            let (_, normed) = self.states(&memory.x, targets);
            let heads = memory.heads(&self.head, pool)?;
            self.head.log_probabilities(pool, heads, &normed, out)?;
            if stop() {
                return Err(ComputeError::Stopped);
            }
        }
        Ok(out)
    }

    /// Position of each row in its sequence.
    fn places(&self, batch: &Batch<'_>) -> Vec<u32> {
        let of = |sequence: &Sequence| (sequence.before()..sequence.before() + sequence.rows).map(|place| place as u32);
        batch.sequences.iter().flat_map(of).collect()
    }

    /// Where sequences are, with a layer's keys and values of what they go on from.
    fn spans<'b>(&self, batch: &Batch<'b>, layer: usize) -> Vec<Span<'b>> {
        let each = 2 * self.shape.key_heads * self.shape.width;
        let mut first = 0;
        let span = |sequence: &Sequence<'b>| {
            let past = sequence
                .past
                .and_then(|(past, rows)| past.layers.get(layer)?.get(..rows * each));
            let span = Span {
                first,
                rows: sequence.rows,
                past: past.unwrap_or_default(),
            };
            first += sequence.rows;
            span
        };
        batch.sequences.iter().map(span).collect()
    }

    fn pass<'p>(
        &'p self,
        pool: &'p Pool,
        spans: &'p [Span<'p>],
        places: &'p [u32],
        rotations: &'p crate::compute::Rotations,
        attention: &'p [Mutex<crate::compute::gradient::attention::Memory>],
    ) -> Pass<'p> {
        Pass {
            pool,
            level: self.level,
            shape: self.shape,
            spans,
            places,
            rotations,
            attention,
        }
    }

    fn check(&self, batch: &Batch<'_>) -> Result<usize, ComputeError> {
        let hidden = self.config.hidden;
        let rows = batch.vectors.len() / hidden;
        let known = |target: &Target| {
            let teacher = target
                .teacher
                .is_none_or(|teacher| teacher.len() == self.config.vocabulary);
            target.row < rows && (target.id as usize) < self.config.vocabulary && teacher
        };
        let behind = |sequence: &Sequence| {
            sequence.rows > 0
                && sequence
                    .past
                    .is_none_or(|(past, rows)| rows <= past.rows && past.layers.len() == self.layers.len())
        };
        let counted: usize = batch.sequences.iter().map(|sequence| sequence.rows).sum();
        let fits = batch.vectors.len() == rows * hidden && counted == rows && batch.sequences.iter().all(behind);
        match fits && batch.targets.iter().all(known) {
            true => Ok(rows),
            false => Err(ComputeError::Shape(
                "the rows of a pass do not fit its sequences".to_owned(),
            )),
        }
    }

    /// Runs all layers; the last one's states are then in `memory.x`. Every layer's part is kept with `keep`; `see` is given
    /// queries, keys and values of each.
    fn forward(
        &self,
        pool: &Pool,
        batch: &Batch<'_>,
        memory: &mut Memory,
        keep: bool,
        see: &mut dyn FnMut(usize, &[f32]),
        stop: &dyn Fn() -> bool,
    ) -> Result<(), ComputeError> {
        let rows = self.check(batch)?;
        let widest = self
            .config
            .hidden
            .max(self.config.intermediate * 2)
            .max(self.shape.row());
        memory.prepare(pool, widest, self.level, self.shape, batch.longest())?;
        let kept_layers = if keep { self.layers.len() } else { 1 };
        memory
            .kept
            .resize_with(kept_layers.max(memory.kept.len()), Default::default);
        let places = self.places(batch);
        let rotations = self.rope.rotations(pool, batch.longest(), &|| false)?;
        let Memory {
            x,
            kept,
            work,
            attention,
            ..
        } = memory;
        let x = sized(x, rows * self.config.hidden);
        x.copy_from_slice(batch.vectors);
        for (number, layer) in self.layers.iter().enumerate() {
            let spans = self.spans(batch, number);
            let kept = &mut kept[if keep { number } else { 0 }];
            self.pass(pool, &spans, &places, &rotations, attention)
                .forward(layer, kept, x, work)?;
            see(number, &kept.qkv[..rows * self.shape.row()]);
            if stop() {
                return Err(ComputeError::Stopped);
            }
        }
        Ok(())
    }

    /// The states of targets, and what the last norm makes of them.
    fn states(&self, x: &[f32], targets: &[Target<'_>]) -> (Vec<f32>, Vec<f32>) {
        let hidden = self.config.hidden;
        let mut states = Vec::with_capacity(targets.len() * hidden);
        targets
            .iter()
            .for_each(|target| states.extend_from_slice(&x[target.row * hidden..][..hidden]));
        let mut normed = vec![0.0f32; states.len()];
        self.norm.apply(self.level, &states, &mut normed);
        (states, normed)
    }

    /// The losses of the targets; with `backward` the gradient by the last layer's states is left in `memory.gradient`.
    fn head(
        &self,
        pool: &Pool,
        batch: &Batch<'_>,
        memory: &mut Memory,
        [weight, pull]: [f32; 2],
        backward: bool,
        stop: &dyn Fn() -> bool,
    ) -> Result<Loss, ComputeError> {
        let hidden = self.config.hidden;
        let mut loss = Loss::default();
        sized(&mut memory.gradient, if backward { batch.vectors.len() } else { 0 }).fill(0.0);
        for targets in batch.targets.chunks(self.head.rows(pool)) {
            let (states, normed) = self.states(&memory.x, targets);
            let wanted: Vec<Wanted> = targets
                .iter()
                .map(|target| Wanted {
                    id: target.id,
                    teacher: target.teacher,
                })
                .collect();
            let losses = Losses {
                wanted: &wanted,
                weight,
                pull,
            };
            let mut found = vec![0.0f32; targets.len() * 2];
            let mut dnormed = vec![0.0f32; if backward { states.len() } else { 0 }];
            let heads = memory.heads(&self.head, pool)?;
            self.head
                .losses(pool, heads, &normed, &losses, &mut found, &mut dnormed)?;
            for pair in found.chunks_exact(2) {
                loss.nats.push(pair[0]);
                loss.divergence.push(pair[1]);
            }
            if backward {
                let mut dstates = vec![0.0f32; states.len()];
                each_block(pool, &mut dstates, hidden, |first, d| {
                    let (x, dy) = (&states[first * hidden..], &dnormed[first * hidden..]);
                    self.norm.add_backward(self.level, x, dy, d);
                })?;
                for (target, from) in targets.iter().zip(dstates.chunks_exact(hidden)) {
                    let to = &mut memory.gradient[target.row * hidden..][..hidden];
                    to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
                }
            }
            if stop() {
                return Err(ComputeError::Stopped);
            }
        }
        Ok(loss)
    }
}

/// A tensor of that many numbers.
fn vector(files: &LlmFiles, name: &str, count: usize) -> Result<Vec<f32>, ModelError> {
    let tensor = files.tensor(name)?;
    match tensor.rows * tensor.columns == count {
        true => tensor.to_f32(),
        false => Err(ModelError::TensorShape {
            name: name.to_owned(),
            expected: vec![count],
            found: vec![tensor.rows, tensor.columns],
        }),
    }
}
