//! The forward pass of transformers that normalise first (Qwen3, Mistral, ModernBERT) over a packed batch: sequences
//! one behind the other, no padding.
//!
//! Each layer adds attention, then a gated feed-forward block, both behind a normalisation; positions are rotary.
//! Weights are large, so every product takes a slab of [`SLAB`] rows at once and is divided by panels of
//! the weights: they come from memory once a slab, and a task is short enough that the stop hook is asked often. What
//! is only needed inside a block is kept for one slab, so memory beyond the token states does not grow with the batch.
//!
//! No sum is ever divided between tasks: a sequence's vectors are bit-equal in any batch on any number of threads.

use super::bert::Packed;
use crate::compute::ComputeError;
use crate::compute::attention::rope::{Rope, Rotate, Rotations};
use crate::compute::attention::shape::Shape;
use crate::compute::attention::{Attention, Elements, Scratch};
use crate::compute::cpu::buffer::{Buffer, Shared};
use crate::compute::cpu::level::Level;
use crate::compute::cpu::pool::Pool;
use crate::compute::matmul::gemm::Epilogue;
use crate::compute::matmul::linear::{Linear, Rows};
use crate::compute::rowwise::activation::Activation;
use crate::compute::rowwise::glu::glu;
use crate::compute::rowwise::norm::Norm;
use crate::compute::rowwise::rms_norm::RmsNorm;
use parking_lot::Mutex;
use std::ops::Range;

/// Rows that products take at once: whole tiles on every level.
const SLAB: usize = 504;
/// Rows of a task between products.
const TASK_ROWS: usize = 16;
/// Multiplications of a product's task: about a millisecond.
const TASK_PRODUCTS: usize = 50_000_000;

/// One layer.
pub struct Layer {
    /// The window of this layer's heads.
    pub window: Option<usize>,
    /// Which of [`PreNorm::ropes`] rotates its queries and keys.
    pub rope: usize,
    /// Absent where the states come normalised.
    pub attention_norm: Option<Norm>,
    /// Queries, keys and values: [`Shape::row`] outputs.
    pub qkv: Linear,
    /// Normalisations of each head of the queries and keys, where the model has them.
    pub query_norm: Option<RmsNorm>,
    pub key_norm: Option<RmsNorm>,
    pub attention_output: Linear,
    pub feed_norm: Norm,
    /// Gates, then what they gate: 2 x intermediate outputs.
    pub gate_up: Linear,
    pub down: Linear,
}

/// Everything between ids and token vectors.
pub struct PreNorm {
    pub level: Level,
    /// The heads of every layer, but for its window.
    pub shape: Shape,
    pub hidden: usize,
    pub intermediate: usize,
    /// Of the gates.
    pub activation: Activation,
    /// Rows of `hidden` elements, one an id.
    pub words: Vec<f32>,
    /// Of the words, where the model has it.
    pub embedding_norm: Option<Norm>,
    pub ropes: Vec<Rope>,
    pub layers: Vec<Layer>,
    pub norm: Norm,
}

/// The memory of a slab.
struct Slab {
    rows: Rows,
    normed: Buffer<f32>,
    gate_up: Buffer<f32>,
    gated: Buffer<f32>,
}

impl Slab {
    fn new(network: &PreNorm, rows: usize) -> Result<Slab, ComputeError> {
        let (hidden, wide) = (network.hidden, network.intermediate);
        Ok(Slab {
            rows: Rows::new(rows, hidden.max(network.shape.out_row()).max(wide))?,
            normed: Buffer::zeroed(rows * hidden)?,
            gate_up: Buffer::zeroed(rows * wide * 2)?,
            gated: Buffer::zeroed(rows * wide)?,
        })
    }
}

impl PreNorm {
    /// Bytes of memory that the weights take.
    pub fn memory(&self) -> usize {
        let layer = |layer: &Layer| {
            let linear = [&layer.qkv, &layer.attention_output, &layer.gate_up, &layer.down];
            let head_norms = [layer.query_norm.as_ref(), layer.key_norm.as_ref()];
            linear.iter().map(|linear| linear.memory()).sum::<usize>()
                + head_norms.iter().flatten().map(|norm| norm.memory()).sum::<usize>()
                + layer.attention_norm.as_ref().map_or(0, Norm::memory)
                + layer.feed_norm.memory()
        };
        self.words.len() * 4
            + self.embedding_norm.as_ref().map_or(0, Norm::memory)
            + self.norm.memory()
            + self.layers.iter().map(layer).sum::<usize>()
    }

    /// Token vectors of all sequences: rows of `hidden` elements in the order of the ids. `stop` is asked between the
    /// tasks of every loop; [`ComputeError::Stopped`] where it says so.
    pub fn forward(&self, pool: &Pool, batch: &Packed, stop: &dyn Fn() -> bool) -> Result<Buffer<f32>, ComputeError> {
        let mut pass = Pass::new(self, pool, batch, stop)?;
        self.embed(pool, &batch.ids, &mut pass.x, stop)?;
        for layer in &self.layers {
            pass.project(layer)?;
            pass.attend(layer)?;
            pass.add(layer)?;
        }
        pass.finish()
    }

    /// The rows of the word table, normalised where the model does. Fails for an id outside of it.
    fn embed(&self, pool: &Pool, ids: &[u32], x: &mut [f32], stop: &dyn Fn() -> bool) -> Result<(), ComputeError> {
        let (hidden, words) = (self.hidden, self.words.len() / self.hidden);
        if let Some(id) = ids.iter().find(|id| **id as usize >= words) {
            return Err(ComputeError::Shape(format!("id {id} is outside the word table")));
        }
        let x = Shared::new(x);
        each_rows(pool, ids.len(), stop, |part| {
            // SAFETY: each task has rows of its own.
            let own = unsafe { x.part(part.start * hidden, part.len() * hidden) };
            for (row, id) in own.chunks_exact_mut(hidden).zip(&ids[part]) {
                row.copy_from_slice(&self.words[*id as usize * hidden..][..hidden]);
            }
            if let Some(norm) = &self.embedding_norm {
                norm.apply_in_place(self.level, own);
            }
        })
    }

    /// Writes the normalised rows of `from` to `to`.
    fn normalise(
        &self,
        pool: &Pool,
        norm: &Norm,
        from: &[f32],
        to: &mut [f32],
        stop: &dyn Fn() -> bool,
    ) -> Result<(), ComputeError> {
        let (width, rows) = (self.hidden, to.len() / self.hidden);
        let to = Shared::new(to);
        each_rows(pool, rows, stop, |part| {
            // SAFETY: each task has rows of its own.
            let own = unsafe { to.part(part.start * width, part.len() * width) };
            norm.apply(self.level, &from[part.start * width..part.end * width], own)
        })
    }

    /// Adds the feed-forward block to a slab of states.
    fn feed(
        &self,
        pool: &Pool,
        layer: &Layer,
        slab: &mut Slab,
        x: &mut [f32],
        stop: &dyn Fn() -> bool,
    ) -> Result<(), ComputeError> {
        let (rows, wide) = (x.len() / self.hidden, self.intermediate);
        let normed = &mut slab.normed[..x.len()];
        self.normalise(pool, &layer.feed_norm, x, normed, stop)?;
        let gate_up = &mut slab.gate_up[..rows * 2 * wide];
        product(
            pool,
            &layer.gate_up,
            &mut slab.rows,
            normed,
            Output::all(gate_up),
            Epilogue::Bias,
            stop,
        )?;
        let (gate_up, gated) = (&*gate_up, &mut slab.gated[..rows * wide]);
        let to = Shared::new(gated);
        each_rows(pool, rows, stop, |part| {
            // SAFETY: each task has rows of its own.
            let own = unsafe { to.part(part.start * wide, part.len() * wide) };
            glu(
                self.level,
                self.activation,
                &gate_up[part.start * 2 * wide..part.end * 2 * wide],
                wide,
                own,
            )
        })?;
        product(
            pool,
            &layer.down,
            &mut slab.rows,
            gated,
            Output::all(x),
            Epilogue::Residual,
            stop,
        )
    }
}

/// One batch on its way through the layers.
struct Pass<'a> {
    network: &'a PreNorm,
    pool: &'a Pool,
    stop: &'a dyn Fn() -> bool,
    /// Where sequences begin, and where the last one ends.
    starts: &'a [usize],
    /// The place of each token in its sequence.
    positions: Vec<u32>,
    rotations: Vec<Rotations>,
    scratches: Vec<Mutex<Scratch>>,
    slab: Slab,
    /// Token states; queries, keys and values; what attention gives.
    x: Buffer<f32>,
    qkv: Buffer<f32>,
    context: Buffer<f32>,
}

impl<'a> Pass<'a> {
    /// All memory that a batch needs.
    fn new(
        network: &'a PreNorm,
        pool: &'a Pool,
        batch: &'a Packed,
        stop: &'a dyn Fn() -> bool,
    ) -> Result<Pass<'a>, ComputeError> {
        let (shape, tokens) = (network.shape, batch.ids.len());
        let longest = longest_sequence(batch)
            .ok_or_else(|| ComputeError::Shape("the sequences do not cover the batch".to_string()))?;
        let slab = Slab::new(network, SLAB.min(tokens))?;
        let mut scratches = Vec::with_capacity(pool.threads());
        for _ in 0..pool.threads() {
            scratches.push(Mutex::new(Scratch::new(network.level, shape, longest)?));
        }
        let mut rotations = Vec::with_capacity(network.ropes.len());
        for rope in &network.ropes {
            rotations.push(rope.rotations(pool, longest, stop)?);
        }
        let sequences = batch.starts.windows(2);
        Ok(Pass {
            positions: sequences.flat_map(|pair| 0..(pair[1] - pair[0]) as u32).collect(),
            starts: &batch.starts,
            rotations,
            scratches,
            slab,
            x: Buffer::zeroed(tokens * network.hidden)?,
            qkv: Buffer::zeroed(tokens * shape.row())?,
            context: Buffer::zeroed(tokens * shape.out_row())?,
            network,
            pool,
            stop,
        })
    }

    /// Queries, keys and values of all tokens, queries and keys rotated.
    fn project(&mut self, layer: &Layer) -> Result<(), ComputeError> {
        let (network, pool, stop) = (self.network, self.pool, self.stop);
        let (hidden, row) = (network.hidden, network.shape.row());
        for rows in slabs(self.positions.len()) {
            let normed = &mut self.slab.normed[..rows.len() * hidden];
            let own = &self.x[rows.start * hidden..rows.end * hidden];
            let input: &[f32] = match &layer.attention_norm {
                Some(norm) => {
                    network.normalise(pool, norm, own, normed, stop)?;
                    normed
                }
                None => own,
            };
            let out = Output {
                elements: Shared::new(&mut self.qkv),
                first: rows.start * row,
            };
            product(pool, &layer.qkv, &mut self.slab.rows, input, out, Epilogue::Bias, stop)?;
            self.rotate(layer, rows)?;
        }
        Ok(())
    }

    /// Rotates queries and keys of some rows, after the norms of their heads.
    fn rotate(&mut self, layer: &Layer, rows: Range<usize>) -> Result<(), ComputeError> {
        let (shape, level) = (self.network.shape, self.network.level);
        let (positions, rotations) = (&self.positions[rows.clone()], &self.rotations[layer.rope]);
        let all = Shared::new(&mut self.qkv);
        each_rows(self.pool, rows.len(), self.stop, |part| {
            // SAFETY: each task has rows of its own.
            let own = unsafe { all.part((rows.start + part.start) * shape.row(), part.len() * shape.row()) };
            let rotate = Rotate {
                shape,
                rows: own,
                positions: &positions[part.start..],
                rotations,
                query_norm: layer.query_norm.as_ref(),
                key_norm: layer.key_norm.as_ref(),
            };
            rotate.run_on(level)
        })
    }

    /// The attention of all sequences.
    fn attend(&mut self, layer: &Layer) -> Result<(), ComputeError> {
        let shape = self.network.shape;
        let attention = Attention {
            level: self.network.level,
            shape: Shape {
                window: layer.window,
                ..shape
            },
            scratches: &self.scratches,
            qkv: Elements::F32(&self.qkv),
            places: shape.by_rows(),
            starts: self.starts,
        };
        attention.run(self.pool, &mut self.context, self.stop)
    }

    /// Adds what attention gave, then the feed-forward block, to the states.
    fn add(&mut self, layer: &Layer) -> Result<(), ComputeError> {
        let (network, pool, stop) = (self.network, self.pool, self.stop);
        let (hidden, out_row) = (network.hidden, network.shape.out_row());
        for rows in slabs(self.positions.len()) {
            let context = &self.context[rows.start * out_row..rows.end * out_row];
            let states = Output {
                elements: Shared::new(&mut self.x),
                first: rows.start * hidden,
            };
            let (linear, residual) = (&layer.attention_output, Epilogue::Residual);
            product(pool, linear, &mut self.slab.rows, context, states, residual, stop)?;
            let own = &mut self.x[rows.start * hidden..rows.end * hidden];
            network.feed(pool, layer, &mut self.slab, own, stop)?;
        }
        Ok(())
    }

    /// The normalised states.
    fn finish(mut self) -> Result<Buffer<f32>, ComputeError> {
        let (network, hidden) = (self.network, self.network.hidden);
        let states = Shared::new(&mut self.x);
        each_rows(self.pool, self.positions.len(), self.stop, |part| {
            // SAFETY: each task has rows of its own.
            let own = unsafe { states.part(part.start * hidden, part.len() * hidden) };
            network.norm.apply_in_place(network.level, own)
        })?;
        Ok(self.x)
    }
}

/// The length of the longest sequence; none where sequences do not cover the batch.
fn longest_sequence(batch: &Packed) -> Option<usize> {
    let covered = batch.starts.first() == Some(&0) && batch.starts.last() == Some(&batch.ids.len());
    if !covered || batch.ids.is_empty() {
        return None;
    }
    let lengths = batch.starts.windows(2).map(|pair| pair[1].checked_sub(pair[0]));
    lengths.collect::<Option<Vec<_>>>()?.into_iter().max()
}

/// The slabs of so many rows.
fn slabs(rows: usize) -> impl Iterator<Item = Range<usize>> {
    (0..rows)
        .step_by(SLAB)
        .map(move |start| start..(start + SLAB).min(rows))
}

/// Runs `body` on parts of `0..rows`, a task each.
fn each_rows(
    pool: &Pool,
    rows: usize,
    stop: &dyn Fn() -> bool,
    body: impl Fn(Range<usize>) + Sync,
) -> Result<(), ComputeError> {
    pool.run_until(rows.div_ceil(TASK_ROWS), stop, |_, task| {
        body(task * TASK_ROWS..((task + 1) * TASK_ROWS).min(rows))
    })
}

/// Where a product's rows begin in shared elements.
struct Output {
    elements: Shared<f32>,
    first: usize,
}

impl Output {
    fn all(elements: &mut [f32]) -> Output {
        Output {
            elements: Shared::new(elements),
            first: 0,
        }
    }
}

/// A product of all rows of `input`, its panels divided between tasks. `out` does not overlap `input`.
fn product(
    pool: &Pool,
    linear: &Linear,
    rows: &mut Rows,
    input: &[f32],
    out: Output,
    epilogue: Epilogue,
    stop: &dyn Fn() -> bool,
) -> Result<(), ComputeError> {
    let products = input.len() * linear.outputs();
    let input = linear.prepare(input, rows);
    let panels = linear.panels();
    // At least two tasks a thread: enough to even out a thread that comes late.
    let tasks = (products / TASK_PRODUCTS).max(pool.threads() * 2).min(panels);
    pool.run_until(tasks, stop, |_, task| {
        let range = panels * task / tasks..panels * (task + 1) / tasks;
        // SAFETY: each task has columns of its own.
        unsafe { linear.product(input, range, out.elements, out.first, linear.outputs(), epilogue) }
    })
}
