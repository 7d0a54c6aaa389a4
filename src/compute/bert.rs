//! The forward pass of the BERT family over a packed batch: sequences one behind the other, no padding.
//!
//! A large batch runs in blocks of rows, a task each: everything from one attention to the next (output projection,
//! normalisation, feed-forward, the next layer's queries, keys and values) touches a row alone, so a block stays in its
//! core's cache. A small batch has too few rows for that and divides each product by panels of columns instead. Both
//! ways, and every size of block, give bit-equal results: no sum is ever divided between tasks.

use super::ComputeError;
use super::activation::Activation;
use super::attention::{Attention, Scratch};
use super::buffer::{Buffer, Shared};
use super::cpu::Level;
use super::gemm::Finish;
use super::heads::Shape;
use super::layer_norm::LayerNorm;
use super::linear::{Linear, Rows};
use super::pool::Pool;
use parking_lot::Mutex;

/// Rows of a block: eight tiles with AVX-512. One block's feed-forward activations fit a core's cache.
const BLOCK_ROWS: usize = 112;
/// Fewest rows of a block; below that for each thread, products are divided by columns.
const FEWEST_ROWS: usize = 28;

/// One layer.
pub struct Layer {
    /// Queries, keys and values: 3 x hidden outputs.
    pub qkv: Linear,
    pub attention_output: Linear,
    pub attention_norm: LayerNorm,
    pub up: Linear,
    pub down: Linear,
    pub output_norm: LayerNorm,
}

/// Everything between ids and token vectors.
pub struct Bert {
    pub level: Level,
    pub hidden: usize,
    pub heads: usize,
    pub intermediate: usize,
    pub activation: Activation,
    /// Rows of `hidden` numbers, one an id.
    pub words: Vec<f32>,
    /// Rows of `hidden` numbers, one a position; the embedding of token type 0 is already added.
    pub positions: Vec<f32>,
    pub embedding_norm: LayerNorm,
    pub layers: Vec<Layer>,
}

/// Ids of all sequences one behind the other, and where each begins (one more than there are sequences).
pub struct Packed {
    pub ids: Vec<u32>,
    pub starts: Vec<usize>,
}

/// Scratch memory of one thread.
struct Workspace {
    rows: Rows,
    up: Buffer<f32>,
}

/// The memory of one forward pass.
struct State {
    x: Buffer<f32>,
    qkv: Buffer<f32>,
    context: Buffer<f32>,
}

impl Bert {
    /// Bytes of memory.
    pub fn memory(&self) -> usize {
        let layer = |layer: &Layer| {
            let linear = [&layer.qkv, &layer.attention_output, &layer.up, &layer.down];
            linear.iter().map(|linear| linear.memory()).sum::<usize>()
                + layer.attention_norm.memory()
                + layer.output_norm.memory()
        };
        (self.words.len() + self.positions.len()) * 4
            + self.embedding_norm.memory()
            + self.layers.iter().map(layer).sum::<usize>()
    }

    /// Token vectors of all sequences: rows of `hidden` numbers in the order of the ids. `stop` is asked
    /// between the tasks of every loop; [`ComputeError::Stopped`] where it says so.
    pub fn forward(&self, pool: &Pool, batch: &Packed, stop: &dyn Fn() -> bool) -> Result<Buffer<f32>, ComputeError> {
        let tokens = batch.ids.len();
        let longest = batch
            .starts
            .windows(2)
            .map(|pair| pair[1].saturating_sub(pair[0]))
            .max()
            .unwrap_or(0);
        if batch.starts.first() != Some(&0) || batch.starts.last() != Some(&tokens) || tokens == 0 {
            return Err(ComputeError::Shape("the sequences do not cover the batch".to_string()));
        }
        let mut state = State {
            x: Buffer::zeroed(tokens * self.hidden)?,
            qkv: Buffer::zeroed(tokens * 3 * self.hidden)?,
            context: Buffer::zeroed(tokens * self.hidden)?,
        };
        self.embed(batch, &mut state.x)?;
        let threads = pool.threads();
        let small = tokens < threads * FEWEST_ROWS;
        // Several blocks a thread, so that the last ones end at about the same time, in whole tiles.
        let tile = self.level.tile_rows();
        let even = tokens.div_ceil(threads).next_multiple_of(tile);
        let block = if small {
            tokens
        } else {
            even.min(BLOCK_ROWS.next_multiple_of(tile))
        };
        let inputs = self.hidden.max(self.intermediate);
        let shape = Shape {
            heads: self.heads,
            key_heads: self.heads,
            width: self.hidden / self.heads,
            causal: false,
            window: None,
        };
        let mut scratches = Vec::with_capacity(threads);
        let mut workspaces = Vec::with_capacity(threads);
        for _ in 0..threads {
            workspaces.push(Mutex::new(Workspace {
                rows: Rows::new(block, inputs)?,
                up: Buffer::zeroed(block * self.intermediate)?,
            }));
            scratches.push(Mutex::new(Scratch::new(self.level, shape, longest)?));
        }
        let blocks = tokens.div_ceil(block);
        let first = self.layers.first();
        self.between(pool, &workspaces, &mut state, block, blocks, None, first, stop)?;
        for (index, layer) in self.layers.iter().enumerate() {
            let State { qkv, context, .. } = &mut state;
            let attention = Attention {
                level: self.level,
                shape,
                scratches: &scratches,
                qkv,
                starts: &batch.starts,
            };
            attention.run(pool, context, stop)?;
            let next = self.layers.get(index + 1);
            self.between(pool, &workspaces, &mut state, block, blocks, Some(layer), next, stop)?;
        }
        Ok(state.x)
    }

    /// The sum of word and position embeddings (not yet normalised). Fails for an id or a position outside its table.
    fn embed(&self, batch: &Packed, x: &mut [f32]) -> Result<(), ComputeError> {
        let hidden = self.hidden;
        let mut rows = x.chunks_exact_mut(hidden).zip(&batch.ids);
        for pair in batch.starts.windows(2) {
            for (place, (row, id)) in rows.by_ref().take(pair[1].saturating_sub(pair[0])).enumerate() {
                let word = self.words.chunks_exact(hidden).nth(*id as usize);
                let position = self.positions.chunks_exact(hidden).nth(place);
                let (Some(word), Some(position)) = (word, position) else {
                    return Err(ComputeError::Shape(format!(
                        "id {id} at position {place} is outside the tables"
                    )));
                };
                for ((out, word), position) in row.iter_mut().zip(word).zip(position) {
                    *out = word + position;
                }
            }
        }
        Ok(())
    }

    /// Everything between two attentions: what follows the attention of `done` (or the embedding), then the queries,
    /// keys and values of `next`.
    #[allow(clippy::too_many_arguments)]
    fn between(
        &self,
        pool: &Pool,
        workspaces: &[Mutex<Workspace>],
        state: &mut State,
        block: usize,
        blocks: usize,
        done: Option<&Layer>,
        next: Option<&Layer>,
        stop: &dyn Fn() -> bool,
    ) -> Result<(), ComputeError> {
        let hidden = self.hidden;
        let tokens = state.x.len() / hidden;
        let (x, qkv) = (Shared::new(&mut state.x), Shared::new(&mut state.qkv));
        let context = &state.context;
        if blocks == 1 && pool.threads() > 1 {
            if stop() {
                return Err(ComputeError::Stopped);
            }
            let mut workspace = workspaces[0].lock();
            let Workspace { rows, up, .. } = &mut *workspace;
            return self.between_by_columns(pool, rows, up, x, context, qkv, tokens, done, next);
        }
        pool.run_until(blocks, stop, |thread, task| {
            let first = task * block;
            let count = block.min(tokens - first);
            let mut workspace = workspaces[thread].lock();
            let Workspace { rows, up, .. } = &mut *workspace;
            // SAFETY: each task has rows of its own in `x` and `qkv`, `up` and `rows` are this thread's, and no
            // product's input overlaps its output.
            unsafe {
                let own = |length: usize| x.part(first * hidden, length * hidden);
                match done {
                    None => self.embedding_norm.apply(self.level, own(count)),
                    Some(layer) => {
                        let input = &context[first * hidden..][..count * hidden];
                        let linear = &layer.attention_output;
                        let input = linear.prepare(input, rows);
                        linear.product(input, 0..linear.panels(), x, first * hidden, hidden, Finish::Residual);
                        layer.attention_norm.apply(self.level, own(count));
                        let input = layer.up.prepare(own(count), rows);
                        let up = &mut up[..count * self.intermediate];
                        let finish = Finish::Activate(self.activation);
                        let to = Shared::new(up);
                        layer
                            .up
                            .product(input, 0..layer.up.panels(), to, 0, self.intermediate, finish);
                        let input = layer.down.prepare(up, rows);
                        let panels = 0..layer.down.panels();
                        layer
                            .down
                            .product(input, panels, x, first * hidden, hidden, Finish::Residual);
                        layer.output_norm.apply(self.level, own(count));
                    }
                }
                if let Some(layer) = next {
                    let input = layer.qkv.prepare(own(count), rows);
                    let panels = 0..layer.qkv.panels();
                    layer
                        .qkv
                        .product(input, panels, qkv, first * 3 * hidden, 3 * hidden, Finish::Bias);
                }
            }
        })
    }

    /// The same as [`Bert::between`] for few rows: each product divided by panels.
    #[allow(clippy::too_many_arguments)]
    fn between_by_columns(
        &self,
        pool: &Pool,
        rows: &mut Rows,
        up: &mut [f32],
        x: Shared<f32>,
        context: &[f32],
        qkv: Shared<f32>,
        tokens: usize,
        done: Option<&Layer>,
        next: Option<&Layer>,
    ) -> Result<(), ComputeError> {
        let hidden = self.hidden;
        // SAFETY: between the loops below only this thread uses `x`.
        let own = || unsafe { x.part(0, tokens * hidden) };
        match done {
            None => self.embedding_norm.apply(self.level, own()),
            Some(layer) => {
                by_columns(pool, &layer.attention_output, rows, context, x, Finish::Residual)?;
                layer.attention_norm.apply(self.level, own());
                let up = &mut up[..tokens * self.intermediate];
                by_columns(
                    pool,
                    &layer.up,
                    rows,
                    own(),
                    Shared::new(up),
                    Finish::Activate(self.activation),
                )?;
                by_columns(pool, &layer.down, rows, up, x, Finish::Residual)?;
                layer.output_norm.apply(self.level, own());
            }
        }
        match next {
            Some(layer) => by_columns(pool, &layer.qkv, rows, own(), qkv, Finish::Bias),
            None => Ok(()),
        }
    }
}

/// A product of all rows of `input`, its panels divided between the threads. `out` does not overlap `input`.
fn by_columns(
    pool: &Pool,
    linear: &Linear,
    rows: &mut Rows,
    input: &[f32],
    out: Shared<f32>,
    finish: Finish,
) -> Result<(), ComputeError> {
    let input = linear.prepare(input, rows);
    let panels = linear.panels();
    // Two tasks a thread: enough to even out a thread that comes late.
    let tasks = (pool.threads() * 2).min(panels);
    pool.run(tasks, |task| {
        let range = panels * task / tasks..panels * (task + 1) / tasks;
        // SAFETY: each task has columns of its own.
        unsafe { linear.product(input, range, out, 0, linear.outputs(), finish) }
    })
}
