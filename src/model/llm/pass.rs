//! A forward pass of a decoder over new tokens of several sequences, each with what it has kept.
// Heads and rows are written by several tasks at once, each into its own part of one buffer.
#![allow(unsafe_code)]

use super::cache::Cache;
use super::hooks::Hooks;
use super::matrix::{Matrix, Products};
use super::network::{Layer, Network};
use crate::compute::attention::cached::{BLOCK, Group, attend};
use crate::compute::cpu::Level;
use crate::compute::glu;
use crate::compute::memory::with_room;
use crate::compute::{Activation, Buffer, ComputeError, Pool, Shared};
use parking_lot::Mutex;

/// New tokens of a pass.
pub struct Rows<'a> {
    /// Their input vectors, `rows * hidden`; changed by the pass.
    pub vectors: &'a mut [f32],
    /// How many of them belong to each sequence, in the order of the sequences.
    pub counts: &'a [usize],
    /// Rows whose logits are wanted.
    pub wanted: &'a [usize],
}

impl Network {
    /// Runs new tokens of sequences through all layers: their keys and values are kept in the sequences' caches, and the
    /// logits of the wanted rows come out, `wanted * vocabulary`. Hooks see a pass over one sequence.
    ///
    /// # Errors
    /// [`ComputeError::Shape`] where counts and lengths do not fit, [`ComputeError::Stopped`] where `stop`, which is asked
    /// every few milliseconds, says so: the caches then hold the new tokens in part and must be cut back.
    pub fn forward(
        &self,
        pool: &Pool,
        rows: Rows<'_>,
        caches: &mut [&mut Cache],
        hooks: &mut Hooks<'_>,
        stop: &dyn Fn() -> bool,
    ) -> Result<Buffer<f32>, ComputeError> {
        let count: usize = rows.counts.iter().sum();
        let outside = |row: &usize| *row >= count;
        if count == 0
            || rows.vectors.len() != count * self.config.hidden
            || rows.counts.len() != caches.len()
            || rows.wanted.iter().any(outside)
        {
            return Err(ComputeError::Shape(
                "the rows of a pass do not fit its sequences".to_string(),
            ));
        }
        let Rows { vectors, wanted, .. } = rows;
        let mut pass = Pass::new(self, pool, rows.counts, caches, hooks, stop)?;
        for (number, layer) in self.layers.iter().enumerate() {
            pass.show_residual(number, vectors);
            pass.attention_block(number, layer, vectors)?;
            pass.feed_block(layer, vectors)?;
        }
        pass.show_residual(self.layers.len(), vectors);
        self.logits(pool, vectors, wanted, stop)
    }

    /// The logits of some rows of the last layer's states.
    fn logits(
        &self,
        pool: &Pool,
        states: &[f32],
        wanted: &[usize],
        stop: &dyn Fn() -> bool,
    ) -> Result<Buffer<f32>, ComputeError> {
        let (hidden, vocabulary) = (self.config.hidden, self.config.vocabulary);
        let mut last = Buffer::zeroed(wanted.len() * hidden)?;
        for (to, from) in last.chunks_exact_mut(hidden).zip(wanted) {
            to.copy_from_slice(&states[from * hidden..(from + 1) * hidden]);
        }
        self.norm.apply_in_place(self.level, &mut last);
        let mut logits = Buffer::zeroed(wanted.len() * vocabulary)?;
        if !wanted.is_empty() {
            let mut products = Products::new(pool, self.level, wanted.len(), hidden, vocabulary)?;
            let output = [&self.output];
            products.run(pool, &last, hidden, &output, &mut logits, vocabulary, false, stop)?;
        }
        Ok(logits)
    }
}

/// A row's place: its sequence, and the position in that.
type Place = (usize, usize);

/// One pass, and the memory of a layer.
pub(super) struct Pass<'a, 'c, 'h> {
    network: &'a Network,
    pool: &'a Pool,
    caches: &'a mut [&'c mut Cache],
    hooks: &'a mut Hooks<'h>,
    stop: &'a dyn Fn() -> bool,
    places: Vec<Place>,
    /// For each row the cosines of its position, then the sines.
    rotations: Vec<f32>,
    products: Products,
    normed: Buffer<f32>,
    qkv: Buffer<f32>,
    context: Buffer<f32>,
    gate_up: Buffer<f32>,
    gated: Buffer<f32>,
}

impl<'a, 'c, 'h> Pass<'a, 'c, 'h> {
    /// Makes room for `counts` new tokens in the caches, and for what a layer computes.
    pub fn new(
        network: &'a Network,
        pool: &'a Pool,
        counts: &[usize],
        caches: &'a mut [&'c mut Cache],
        hooks: &'a mut Hooks<'h>,
        stop: &'a dyn Fn() -> bool,
    ) -> Result<Pass<'a, 'c, 'h>, ComputeError> {
        let config = &network.config;
        let count: usize = counts.iter().sum();
        let mut places = Vec::with_capacity(count);
        for (sequence, (cache, new)) in caches.iter_mut().zip(counts).enumerate() {
            let before = cache.len();
            cache.grow(*new)?;
            places.extend((before..before + new).map(|position| (sequence, position)));
        }
        let queries = config.heads * config.head_width;
        let row = queries + 2 * config.key_heads * config.head_width;
        let inputs = config.hidden.max(queries).max(config.intermediate);
        let outputs = row.max(config.hidden).max(config.intermediate);
        Ok(Pass {
            rotations: rotations(&network.frequencies, &places, hooks.positions),
            products: Products::new(pool, network.level, count, inputs, outputs)?,
            normed: Buffer::zeroed(count * config.hidden)?,
            qkv: Buffer::zeroed(count * row)?,
            context: Buffer::zeroed(count * queries)?,
            gate_up: Buffer::zeroed(count * 2 * config.intermediate)?,
            gated: Buffer::zeroed(count * config.intermediate)?,
            network,
            pool,
            caches,
            hooks,
            stop,
            places,
        })
    }

    /// Shows the residual stream before a layer to the hook.
    pub fn show_residual(&mut self, layer: usize, x: &mut [f32]) {
        if let Some(residual) = &mut self.hooks.residual {
            residual(layer, x);
        }
    }

    /// Adds a layer's attention to the states.
    pub fn attention_block(&mut self, number: usize, layer: &Layer, x: &mut [f32]) -> Result<(), ComputeError> {
        let (hidden, queries, row) = (self.network.config.hidden, self.queries(), self.row());
        layer.attention_norm.apply(self.network.level, x, &mut self.normed);
        let parts: Vec<&Matrix> = layer.qkv.iter().collect();
        let (pool, stop, qkv) = (self.pool, self.stop, &mut self.qkv);
        self.products
            .run(pool, &self.normed, hidden, &parts, qkv, row, false, stop)?;
        self.normalise_heads(layer);
        self.show_keys(number);
        self.rotate();
        self.keep(number);
        self.attend(number)?;
        self.scale_heads(number);
        let output = [&layer.output];
        self.products
            .run(pool, &self.context, queries, &output, x, hidden, true, stop)
    }

    /// Adds a layer's feed-forward block to the states.
    pub fn feed_block(&mut self, layer: &Layer, x: &mut [f32]) -> Result<(), ComputeError> {
        let (hidden, wide, level) = (
            self.network.config.hidden,
            self.network.config.intermediate,
            self.network.level,
        );
        let (pool, stop) = (self.pool, self.stop);
        layer.feed_norm.apply(level, x, &mut self.normed);
        let parts: Vec<&Matrix> = layer.gate_up.iter().collect();
        let gate_up = &mut self.gate_up;
        self.products
            .run(pool, &self.normed, hidden, &parts, gate_up, 2 * wide, false, stop)?;
        glu_rows(pool, level, wide, &self.gate_up, &mut self.gated)?;
        self.products
            .run(pool, &self.gated, wide, &[&layer.down], x, hidden, true, stop)
    }

    /// Elements of a row's queries, of its keys, and of both with the values.
    fn queries(&self) -> usize {
        self.network.config.heads * self.network.config.head_width
    }

    fn keys(&self) -> usize {
        self.network.config.key_heads * self.network.config.head_width
    }

    fn row(&self) -> usize {
        self.queries() + 2 * self.keys()
    }

    /// Adds the biases and normalises the heads of queries and keys, where the model does.
    fn normalise_heads(&mut self, layer: &Layer) {
        let (row, queries, keys, level) = (self.row(), self.queries(), self.keys(), self.network.level);
        for qkv in self.qkv.chunks_exact_mut(row) {
            if let Some(bias) = &layer.bias {
                qkv.iter_mut().zip(bias).for_each(|(x, b)| *x += b);
            }
            let (queries, rest) = qkv.split_at_mut(queries);
            if let Some(norm) = &layer.query_norm {
                norm.apply_in_place(level, queries);
            }
            if let (Some(norm), Some(keys)) = (&layer.key_norm, rest.get_mut(..keys)) {
                norm.apply_in_place(level, keys);
            }
        }
    }

    /// Shows the keys before rotation to the hook, and takes what it makes of them.
    fn show_keys(&mut self, layer: usize) {
        let (row, queries, keys) = (self.row(), self.queries(), self.keys());
        if let Some(show) = &mut self.hooks.keys {
            let of_row = |row: &[f32]| row[queries..queries + keys].to_vec();
            let mut shown: Vec<f32> = self.qkv.chunks_exact(row).flat_map(of_row).collect();
            show(layer, &mut shown);
            for (row, shown) in self.qkv.chunks_exact_mut(row).zip(shown.chunks_exact(keys)) {
                row[queries..queries + keys].copy_from_slice(shown);
            }
        }
    }

    /// Rotates queries and keys.
    fn rotate(&mut self) {
        let (row, width) = (self.row(), self.network.config.head_width);
        let (heads, pairs) = (self.queries() + self.keys(), width / 2);
        let rows = self.qkv.chunks_exact_mut(row);
        for (qkv, rotations) in rows.zip(self.rotations.chunks_exact(2 * pairs)) {
            let (cosines, sines) = rotations.split_at(pairs);
            for head in qkv[..heads].chunks_exact_mut(width) {
                let (first, second) = head.split_at_mut(pairs);
                for (((a, b), cosine), sine) in first.iter_mut().zip(second).zip(cosines).zip(sines) {
                    (*a, *b) = (*a * cosine - *b * sine, *b * cosine + *a * sine);
                }
            }
        }
    }

    /// Puts keys and values of all rows into their sequences' caches.
    fn keep(&mut self, layer: usize) {
        let (row, queries, keys, width) = (self.row(), self.queries(), self.keys(), self.network.config.head_width);
        for (qkv, (sequence, position)) in self.qkv.chunks_exact(row).zip(&self.places) {
            let (keys, values) = qkv[queries..].split_at(keys);
            let heads = keys.chunks_exact(width).zip(values.chunks_exact(width)).enumerate();
            if let Some(cache) = self.caches.get_mut(*sequence) {
                heads.for_each(|(head, (key, value))| cache.put(layer, head, *position, key, value));
            }
        }
    }

    /// Attention of all rows over what their sequences have kept.
    fn attend(&mut self, layer: usize) -> Result<(), ComputeError> {
        let config = &self.network.config;
        let (width, heads, key_heads) = (config.head_width, config.heads, config.key_heads);
        let (row, group, scale) = (self.row(), heads / key_heads, 1.0 / (width as f32).sqrt());
        let kept: Vec<Vec<_>> = self
            .caches
            .iter()
            .map(|cache| (0..key_heads).map(|head| cache.head(layer, head)).collect())
            .collect();
        let scratch = scores_memory(self.pool, &self.places, group)?;
        let shared = Shared::new(&mut self.context);
        let watched = Mutex::new(Vec::new());
        let watch_last = self.hooks.attention.is_some();
        let (places, qkv, level) = (&self.places, &self.qkv, self.network.level);
        self.pool
            .run_until(places.len() * key_heads, self.stop, |thread, task| {
                let (number, head) = (task / key_heads, task % key_heads);
                let (sequence, position) = places[number];
                // SAFETY: each task has elements of its own.
                let queries = unsafe { shared.part(number * heads * width + head * group * width, group * width) };
                queries.copy_from_slice(&qkv[number * row + head * group * width..][..group * width]);
                let (keys, values) = &kept[sequence][head];
                let until = position + 1;
                let from = config.window.map_or(0, |window| until.saturating_sub(window));
                let mut scores = scratch[thread].lock();
                let work = Group {
                    queries,
                    width,
                    keys,
                    values,
                    from,
                    until,
                    scale,
                    scores: &mut scores,
                };
                attend(level, work);
                if watch_last && number + 1 == places.len() {
                    let length = scores.len() / group;
                    for (within, row) in scores.chunks_exact(length).enumerate() {
                        watched.lock().push((head * group + within, row[from..until].to_vec()));
                    }
                }
            })?;
        self.show_attention(layer, watched.into_inner());
        Ok(())
    }

    /// Shows the attention of the last row to the hook, head by head.
    fn show_attention(&mut self, layer: usize, mut rows: Vec<(usize, Vec<f32>)>) {
        if let Some(show) = &mut self.hooks.attention {
            rows.sort_by_key(|(head, _)| *head);
            rows.iter().for_each(|(head, row)| show(layer, *head, row));
        }
    }

    /// Multiplies what heads give by the hook's factors.
    fn scale_heads(&mut self, layer: usize) {
        let (width, heads) = (self.network.config.head_width, self.network.config.heads);
        if let Some(factors) = self.hooks.head_factors {
            for context in self.context.chunks_exact_mut(heads * width) {
                for (head, context) in context.chunks_exact_mut(width).enumerate() {
                    let factor = factors.get(layer * heads + head).copied().unwrap_or(1.0);
                    context.iter_mut().for_each(|x| *x *= factor);
                }
            }
        }
    }
}

/// Cosines and sines of each row's position, or of the position that is given for it.
fn rotations(frequencies: &[f32], places: &[Place], positions: Option<&[u32]>) -> Vec<f32> {
    let mut rotations = Vec::with_capacity(places.len() * frequencies.len() * 2);
    for (number, (_, position)) in places.iter().enumerate() {
        let given = positions.and_then(|positions| positions.get(number));
        let position = given.map_or(*position as f32, |given| *given as f32);
        rotations.extend(frequencies.iter().map(|frequency| (position * frequency).cos()));
        rotations.extend(frequencies.iter().map(|frequency| (position * frequency).sin()));
    }
    rotations
}

/// For each thread all that a task may need, so that none of them allocates.
fn scores_memory(pool: &Pool, places: &[Place], group: usize) -> Result<Vec<Mutex<Vec<f32>>>, ComputeError> {
    let needs = places
        .iter()
        .map(|(_, position)| group * (position + 1).next_multiple_of(BLOCK));
    let most = needs.max().unwrap_or_default();
    let memory = (0..pool.threads()).map(|_| Ok(Mutex::new(with_room::<f32>(most)?)));
    memory.collect()
}

/// `silu(gate) * up` of all rows.
fn glu_rows(pool: &Pool, level: Level, width: usize, rows: &[f32], out: &mut [f32]) -> Result<(), ComputeError> {
    const TASK_ROWS: usize = 16;
    let count = rows.len() / (2 * width).max(1);
    if count <= TASK_ROWS {
        glu(level, Activation::Silu, rows, width, out);
        return Ok(());
    }
    let shared = Shared::new(out);
    pool.run(count.div_ceil(TASK_ROWS), |task| {
        let first = task * TASK_ROWS;
        let own = TASK_ROWS.min(count - first);
        // SAFETY: each task has rows of its own.
        let out = unsafe { shared.part(first * width, own * width) };
        glu(
            level,
            Activation::Silu,
            &rows[first * 2 * width..(first + own) * 2 * width],
            width,
            out,
        );
    })
}
