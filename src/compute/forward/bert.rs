//! The forward pass of the BERT family over a packed batch: sequences one behind the other, no padding.
//!
//! A large batch runs in blocks of rows, a task each: everything from one attention to the next (output projection,
//! normalisation, feed-forward, the next layer's queries, keys and values) touches a row alone, so a block stays in its
//! core's cache. A small batch has too few rows for that and divides each product by panels of columns instead. Both
//! ways, and every size of block, give bit-equal results: no sum is ever divided between tasks.

use crate::compute::ComputeError;
use crate::compute::attention::shape::{Places, Shape};
use crate::compute::attention::{Attention, Elements, Scratch};
use crate::compute::cpu::buffer::{Buffer, Shared};
use crate::compute::cpu::level::Level;
use crate::compute::cpu::pool::Pool;
use crate::compute::matmul::gemm::Epilogue;
use crate::compute::matmul::linear::{Linear, Precision, Prepared, Rows};
use crate::compute::rowwise::activation::Activation;
use crate::compute::rowwise::layer_norm::LayerNorm;
use parking_lot::Mutex;
use std::ops::Range;

/// Rows of a block: eight tiles with AVX-512. One block's feed-forward activations fit a core's cache.
const BLOCK_ROWS: usize = 112;
/// Fewest rows of a block; below that for each thread, products are divided by columns.
const FEWEST_ROWS: usize = 28;

/// Bytes of a batch's rows that stay in a cache which all cores share, and rows of `hidden` elements a token ([`State`]).
const STATE_BYTES: usize = 8 << 20;
const STATE_ROWS: usize = 5;
/// Bytes that are kept between two passes.
const MOST_SPARE: usize = 2 * STATE_BYTES;
/// Rows that are normalised at a time.
const NORMALISED_ROWS: usize = 8;
/// Blocks for each thread that are worth a loop.
const FEWEST_BLOCKS: usize = 2;

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
    /// Of the products. Where it is not f32, those of attention are in bf16 if the processor can do it, and GELU is
    /// approximated.
    pub precision: Precision,
    pub hidden: usize,
    pub heads: usize,
    pub intermediate: usize,
    pub activation: Activation,
    /// Rows of `hidden` elements, one an id.
    pub words: Vec<f32>,
    /// Rows of `hidden` elements, one a position; the embedding of token type 0 is already added.
    pub positions: Vec<f32>,
    pub embedding_norm: LayerNorm,
    pub layers: Vec<Layer>,
    /// The memory of the last pass: the next one need not ask the system for it.
    pub spare: Spare,
}

/// Memory between two passes: queries, keys and values, and what attention makes of them.
#[derive(Default)]
pub struct Spare(Mutex<Option<[Buffer<f32>; 2]>>);

impl Spare {
    /// Memory for at least so many elements each; what they are is left over from before.
    fn take(&self, elements: [usize; 2]) -> Result<[Buffer<f32>; 2], ComputeError> {
        match self.0.lock().take() {
            Some(spare)
                if spare
                    .iter()
                    .zip(elements)
                    .all(|(buffer, number)| buffer.len() >= number) =>
            {
                Ok(spare)
            }
            _ => Ok([Buffer::zeroed(elements[0])?, Buffer::zeroed(elements[1])?]),
        }
    }

    /// Keeps memory for the next pass, unless it is that of an exceptionally large one.
    fn keep(&self, buffers: [Buffer<f32>; 2]) {
        let bytes: usize = buffers.iter().map(|buffer| buffer.len() * size_of::<f32>()).sum();
        if bytes <= MOST_SPARE {
            *self.0.lock() = Some(buffers);
        }
    }
}

/// Ids of all sequences one behind the other, and where each begins (one more than there are sequences).
pub struct Packed {
    pub ids: Vec<u32>,
    pub starts: Vec<usize>,
}

/// Scratch memory of one thread.
struct Workspace {
    /// Rows of `hidden` elements, made ready.
    rows: Rows,
    /// Rows of `intermediate` elements, made ready.
    inner: Rows,
    /// As many of the feed-forward activations as are needed at once.
    up: Buffer<f32>,
}

/// How the rows between two attentions are divided.
struct Blocks<'a> {
    pool: &'a Pool,
    stop: &'a dyn Fn() -> bool,
    /// One for each thread.
    workspaces: Vec<Mutex<Workspace>>,
    /// Rows of a block.
    block: usize,
}

/// The memory of one forward pass.
struct State<'a> {
    ids: &'a [u32],
    /// Positions of the tokens in their sequences.
    places: Vec<u32>,
    x: Buffer<f32>,
    /// In bf16 where attention takes that: half as many elements of memory then.
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

    /// Tokens from which on a batch is faster in parts: their rows stay in the cache that all cores share, and there are
    /// blocks enough for all threads.
    pub fn tokens_at_once(&self, threads: usize) -> usize {
        let row = STATE_ROWS * self.hidden * size_of::<f32>();
        (STATE_BYTES / row.max(1)).max(threads * FEWEST_BLOCKS * BLOCK_ROWS)
    }

    /// Token vectors of all sequences: rows of `hidden` elements in the order of the ids. `stop` is asked
    /// between the tasks of every loop; [`ComputeError::Stopped`] where it says so.
    pub fn forward(&self, pool: &Pool, batch: &Packed, stop: &dyn Fn() -> bool) -> Result<Buffer<f32>, ComputeError> {
        let tokens = batch.ids.len();
        if batch.starts.first() != Some(&0) || batch.starts.last() != Some(&tokens) || tokens == 0 {
            return Err(ComputeError::Shape("the sequences do not cover the batch".to_string()));
        }
        let mut state = self.state(batch)?;
        let threads = pool.threads();
        let small = tokens < threads * FEWEST_ROWS;
        // As many blocks for each thread, all of one size: the tiles of a block are about equally high, however many rows.
        let each = tokens.div_ceil(threads * BLOCK_ROWS);
        let block = match small {
            true => tokens,
            false => tokens.div_ceil(threads * each),
        };
        let blocks = Blocks {
            pool,
            stop,
            workspaces: self.workspaces(threads, block, small)?,
            block,
        };
        let scratches = self.scratches(threads, batch)?;
        self.between(&blocks, &mut state, None, self.layers.first())?;
        for (index, layer) in self.layers.iter().enumerate() {
            let State { qkv, context, .. } = &mut state;
            let attention = Attention {
                level: self.level,
                shape: self.shape(),
                scratches: &scratches,
                qkv: match self.rounded() {
                    true => Elements::Bf16(qkv.words()),
                    false => Elements::F32(qkv),
                },
                places: self.places(tokens),
                starts: &batch.starts,
            };
            attention.run(pool, context, stop)?;
            self.between(&blocks, &mut state, Some(layer), self.layers.get(index + 1))?;
        }
        self.spare.keep([state.qkv, state.context]);
        Ok(state.x)
    }

    /// The memory of a pass over a batch.
    fn state<'a>(&self, batch: &'a Packed) -> Result<State<'a>, ComputeError> {
        let length = batch.ids.len() * self.hidden;
        let qkv = if self.rounded() { 3 * length / 2 } else { 3 * length };
        let [qkv, context] = self.spare.take([qkv, length])?;
        Ok(State {
            ids: &batch.ids,
            places: self.positions(batch)?,
            x: Buffer::zeroed(length)?,
            qkv,
            context,
        })
    }

    /// Memory of each thread for blocks of so many rows; of a `small` batch the feed-forward activations are computed whole.
    fn workspaces(&self, threads: usize, block: usize, small: bool) -> Result<Vec<Mutex<Workspace>>, ComputeError> {
        let parts = self.layers.iter().map(|layer| match small {
            true => self.intermediate,
            false => part(layer).unwrap_or(self.intermediate).min(self.intermediate),
        });
        let at_once = parts.max().unwrap_or(0);
        let mut workspaces = Vec::with_capacity(threads);
        for _ in 0..threads {
            workspaces.push(Mutex::new(Workspace {
                rows: Rows::new(block, self.hidden)?,
                inner: Rows::new(block, self.intermediate)?,
                up: Buffer::zeroed(block * at_once)?,
            }));
        }
        Ok(workspaces)
    }

    /// Memory of each thread for the attention over a batch's sequences.
    fn scratches(&self, threads: usize, batch: &Packed) -> Result<Vec<Mutex<Scratch>>, ComputeError> {
        let lengths = batch.starts.windows(2).map(|pair| pair[1].saturating_sub(pair[0]));
        let longest = lengths.max().unwrap_or(0);
        let scratch = |_| Ok(Mutex::new(Scratch::new(self.level, self.shape(), longest)?));
        (0..threads).map(scratch).collect()
    }

    /// The position of every token in its sequence. Fails for an id or a position outside its table.
    fn positions(&self, batch: &Packed) -> Result<Vec<u32>, ComputeError> {
        let rows = |table: &[f32]| table.len() / self.hidden;
        let (words, longest) = (rows(&self.words), rows(&self.positions));
        let lengths = batch.starts.windows(2).map(|pair| pair[1].saturating_sub(pair[0]));
        let places: Vec<u32> = lengths.flat_map(|length| 0..length as u32).collect();
        let outside = |(id, place): &(&u32, &u32)| **id as usize >= words || **place as usize >= longest;
        match batch.ids.iter().zip(&places).find(outside) {
            Some((id, place)) => Err(ComputeError::Shape(format!(
                "id {id} at position {place} is outside the tables"
            ))),
            None => Ok(places),
        }
    }

    /// The sums of word and position embeddings of some tokens (not yet normalised), whose ids and positions are in the tables.
    fn embed(&self, ids: &[u32], places: &[u32], x: &mut [f32]) {
        let hidden = self.hidden;
        for (row, (id, place)) in x.chunks_exact_mut(hidden).zip(ids.iter().zip(places)) {
            let word = &self.words[*id as usize * hidden..][..hidden];
            let position = &self.positions[*place as usize * hidden..][..hidden];
            for ((out, word), position) in row.iter_mut().zip(word).zip(position) {
                *out = word + position;
            }
        }
    }

    /// Everything between two attentions: what follows the attention of `done` (or the embedding), then the queries,
    /// keys and values of `next`.
    fn between(
        &self,
        blocks: &Blocks,
        state: &mut State,
        done: Option<&Layer>,
        next: Option<&Layer>,
    ) -> Result<(), ComputeError> {
        let Blocks {
            pool,
            stop,
            ref workspaces,
            block,
        } = *blocks;
        let hidden = self.hidden;
        let tokens = state.x.len() / hidden;
        let (x, qkv) = (Shared::new(&mut state.x), Shared::new(&mut state.qkv));
        let (ids, places) = (state.ids, &state.places);
        let context = &state.context[..tokens * hidden];
        if tokens <= block && pool.threads() > 1 {
            if stop() {
                return Err(ComputeError::Stopped);
            }
            let mut workspace = workspaces[0].lock();
            if done.is_none() {
                // SAFETY: only this thread uses `x` so far.
                self.embed(ids, places, unsafe { x.part(0, tokens * hidden) });
            }
            return self.between_by_columns(pool, &mut workspace, x, context, qkv, tokens, done, next);
        }
        pool.run_until(tokens.div_ceil(block), stop, |thread, task| {
            let first = task * block;
            let count = block.min(tokens - first);
            let mut workspace = workspaces[thread].lock();
            // SAFETY: each task has rows of its own in `x` and `qkv`, the workspace is this thread's, and no product's
            // input overlaps its output.
            unsafe {
                let own = |length: usize| x.part(first * hidden, length * hidden);
                match done {
                    None => self.embed(&ids[first..][..count], &places[first..][..count], own(count)),
                    Some(layer) => {
                        let context = &context[first * hidden..][..count * hidden];
                        self.add_block(layer, &mut workspace, context, x, first, count);
                    }
                }
                let norm = done.map_or(&self.embedding_norm, |layer| &layer.output_norm);
                if let Some(layer) = next {
                    let input = self.normalised(norm, own(count), &layer.qkv, &mut workspace.rows);
                    self.project(&layer.qkv, input, 0..layer.qkv.panels(), qkv, first, tokens);
                } else {
                    norm.apply(self.level, own(count));
                }
            }
        })
    }

    /// Adds what attention gave, then the feed-forward block, to `count` rows of `x` from `first` on.
    ///
    /// # Safety
    /// Nobody else uses these rows meanwhile.
    unsafe fn add_block(
        &self,
        layer: &Layer,
        workspace: &mut Workspace,
        context: &[f32],
        x: Shared<f32>,
        first: usize,
        count: usize,
    ) {
        let Workspace { rows, inner, up } = workspace;
        let (hidden, at, output) = (self.hidden, first * self.hidden, &layer.attention_output);
        // SAFETY: the caller's promise; no product's input overlaps its output.
        unsafe {
            let input = output.prepare(context, rows);
            output.product(input, 0..output.panels(), x, at, hidden, Epilogue::Residual);
            let own = x.part(at, count * hidden);
            let input = self.normalised(&layer.attention_norm, own, &layer.up, rows);
            let input = self.activations(layer, input, up, inner, count);
            let panels = 0..layer.down.panels();
            layer.down.product(input, panels, x, at, hidden, Epilogue::Residual);
        }
    }

    /// Normalises rows and makes them ready for the product behind that: some at a time, which stay in the nearest cache.
    fn normalised<'a>(&self, norm: &LayerNorm, x: &'a mut [f32], linear: &Linear, rows: &'a mut Rows) -> Prepared<'a> {
        for (number, part) in x.chunks_mut(NORMALISED_ROWS * self.hidden).enumerate() {
            norm.apply(self.level, part);
            linear.prepare_rows(number * NORMALISED_ROWS, part, rows);
        }
        linear.ready(x, rows)
    }

    /// The feed-forward activations of `count` rows, made ready for the product behind them: group by group where rows are
    /// made ready in parts, so that what is not rounded yet stays in the nearest cache.
    fn activations<'a>(
        &self,
        layer: &Layer,
        input: Prepared,
        up: &'a mut [f32],
        inner: &'a mut Rows,
        count: usize,
    ) -> Prepared<'a> {
        let (epilogue, columns) = (self.epilogue(), layer.up.panel_columns());
        let Some(part) = part(layer) else {
            let up = &mut up[..count * self.intermediate];
            layer.up.columns(input, 0..layer.up.panels(), up, epilogue);
            return layer.down.prepare(up, inner);
        };
        let panels = layer.up.panels();
        for (number, first) in (0..panels).step_by(part / columns).enumerate() {
            let last = (first + part / columns).min(panels);
            let width = (last * columns).min(self.intermediate) - first * columns;
            let up = &mut up[..count * width];
            layer.up.columns(input, first..last, up, epilogue);
            layer.down.prepare_part(number, up, inner);
        }
        layer.down.prepared(inner, count)
    }

    /// Some columns of queries, keys and values of the rows from number `first` on.
    ///
    /// # Safety
    /// As [`Linear::product`].
    unsafe fn project(
        &self,
        linear: &Linear,
        input: Prepared,
        panels: Range<usize>,
        qkv: Shared<f32>,
        first: usize,
        tokens: usize,
    ) {
        let (row, width) = (3 * self.hidden, self.hidden / self.heads);
        // SAFETY: the caller's promise.
        unsafe {
            match self.heads_apart() {
                true if self.rounded() => linear.rounded_planes(input, panels, qkv, first, [tokens, width]),
                true => linear.product_planes(input, panels, qkv, first, [tokens, width]),
                false => linear.product(input, panels, qkv, first * row, row, Epilogue::Bias),
            }
        }
    }

    /// Whether queries, keys and values lie head by head: attention then reads memory in order.
    fn heads_apart(&self) -> bool {
        let width = self.hidden / self.heads;
        self.layers
            .iter()
            .all(|layer| width.is_multiple_of(layer.qkv.panel_columns()))
    }

    /// Whether attention is in bf16.
    fn rounded(&self) -> bool {
        let computes = self.level == Level::Avx512 && self.precision != Precision::F32;
        computes && self.shape().takes_bf16() && self.heads_apart()
    }

    fn places(&self, tokens: usize) -> Places {
        let shape = self.shape();
        match self.heads_apart() {
            true => shape.by_heads(tokens),
            false => shape.by_rows(),
        }
    }

    fn shape(&self) -> Shape {
        Shape {
            heads: self.heads,
            key_heads: self.heads,
            width: self.hidden / self.heads,
            causal: false,
            window: None,
        }
    }

    /// How the first product of a feed-forward block ends.
    fn epilogue(&self) -> Epilogue {
        match self.precision {
            Precision::F32 => Epilogue::Activate(self.activation),
            Precision::Bf16 | Precision::Int8 => Epilogue::Approximate(self.activation),
        }
    }

    /// The same as [`Bert::between`] for few rows: each product divided by panels.
    #[allow(clippy::too_many_arguments)]
    fn between_by_columns(
        &self,
        pool: &Pool,
        workspace: &mut Workspace,
        x: Shared<f32>,
        context: &[f32],
        qkv: Shared<f32>,
        tokens: usize,
        done: Option<&Layer>,
        next: Option<&Layer>,
    ) -> Result<(), ComputeError> {
        let hidden = self.hidden;
        let Workspace { rows, inner, up } = workspace;
        // SAFETY: between the loops below only this thread uses `x`.
        let own = || unsafe { x.part(0, tokens * hidden) };
        match done {
            None => self.embedding_norm.apply(self.level, own()),
            Some(layer) => {
                by_columns(pool, &layer.attention_output, rows, context, x, Epilogue::Residual)?;
                layer.attention_norm.apply(self.level, own());
                let up = &mut up[..tokens * self.intermediate];
                by_columns(pool, &layer.up, rows, own(), Shared::new(up), self.epilogue())?;
                by_columns(pool, &layer.down, inner, up, x, Epilogue::Residual)?;
                layer.output_norm.apply(self.level, own());
            }
        }
        match next {
            Some(layer) => {
                let input = layer.qkv.prepare(own(), rows);
                each_panels(pool, &layer.qkv, |panels| {
                    // SAFETY: each task has columns of its own.
                    unsafe { self.project(&layer.qkv, input, panels, qkv, 0, tokens) }
                })
            }
            None => Ok(()),
        }
    }
}

/// Feed-forward activations that are made and rounded together; `None` where all of a row are needed at once.
fn part(layer: &Layer) -> Option<usize> {
    let columns = layer.up.panel_columns();
    layer.down.part().filter(|part| part.is_multiple_of(columns))
}

/// A product of all rows of `input`, its panels divided between the threads. `out` does not overlap `input`.
fn by_columns(
    pool: &Pool,
    linear: &Linear,
    rows: &mut Rows,
    input: &[f32],
    out: Shared<f32>,
    epilogue: Epilogue,
) -> Result<(), ComputeError> {
    let input = linear.prepare(input, rows);
    each_panels(pool, linear, |panels| {
        // SAFETY: each task has columns of its own.
        unsafe { linear.product(input, panels, out, 0, linear.outputs(), epilogue) }
    })
}

/// Calls `body` with all panels of a layer, divided between the threads.
fn each_panels(pool: &Pool, linear: &Linear, body: impl Fn(Range<usize>) + Sync) -> Result<(), ComputeError> {
    let panels = linear.panels();
    // Two tasks a thread: enough to even out a thread that comes late.
    let tasks = (pool.threads() * 2).min(panels);
    pool.run(tasks, |task| body(panels * task / tasks..panels * (task + 1) / tasks))
}
