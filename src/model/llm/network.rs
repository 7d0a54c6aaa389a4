//! The forward pass of a decoder over new tokens of several sequences, each with what it has kept.
// Heads and rows are written by several tasks at once, each into its own part of one buffer.
#![allow(unsafe_code)]

use super::cache::Cache;
use super::config::LlmConfig;
use super::files::{LlmFiles, Tensor, TensorData};
use super::hooks::Hooks;
use super::matrix::{Matrix, Packing, Products};
use crate::compute::attention::cached::{BLOCK, Group, attend};
use crate::compute::cpu::Level;
use crate::compute::gate;
use crate::compute::memory::with_room;
use crate::compute::{Activation, Buffer, ComputeError, Pool, RmsNorm, Shared};
use crate::model::ModelError;
use parking_lot::Mutex;

struct Layer {
    attention_norm: RmsNorm,
    qkv: [Matrix; 3],
    /// Biases of the three, where the model has them.
    bias: Option<Vec<f32>>,
    query_norm: Option<RmsNorm>,
    key_norm: Option<RmsNorm>,
    output: Matrix,
    feed_norm: RmsNorm,
    gate_up: [Matrix; 2],
    down: Matrix,
}

/// The weights of a language model.
pub struct Network {
    config: LlmConfig,
    level: Level,
    /// Token embeddings that are kept for themselves; none where the output's rows serve.
    embeddings: Option<Tensor>,
    layers: Vec<Layer>,
    norm: RmsNorm,
    output: Matrix,
    /// The frequency of each rotary pair.
    frequencies: Vec<f32>,
}

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
    /// Reads and packs all tensors.
    pub fn load(files: &LlmFiles, packing: Packing) -> Result<Network, ModelError> {
        let config = files.config().clone();
        let level = packing.level.or_detected();
        let packing = Packing { level, ..packing };
        let (hidden, width) = (config.hidden, config.head_width);
        let norm = |name: &str, numbers: usize| -> Result<RmsNorm, ModelError> {
            Ok(RmsNorm::new(&vector(files, name, numbers)?, config.norm_epsilon)?)
        };
        let matrix = |name: &str, rows: usize, columns: usize| Matrix::read(files, name, [rows, columns], packing);
        let mut layers = Vec::new();
        for number in 0..config.layers {
            let name = |part: &str| format!("model.layers.{number}.{part}");
            let outputs = [config.heads * width, config.key_heads * width, config.key_heads * width];
            let parts = ["q_proj", "k_proj", "v_proj"];
            let part = |at: usize| matrix(&name(&format!("self_attn.{}.weight", parts[at])), outputs[at], hidden);
            let bias = match config.qkv_bias {
                false => None,
                true => {
                    let mut all = Vec::new();
                    for (part, outputs) in parts.iter().zip(outputs) {
                        all.extend(vector(files, &name(&format!("self_attn.{part}.bias")), outputs)?);
                    }
                    Some(all)
                }
            };
            let head_norm = |part: &str| {
                let found = config
                    .head_norms
                    .then(|| norm(&name(&format!("self_attn.{part}.weight")), width));
                found.transpose()
            };
            layers.push(Layer {
                attention_norm: norm(&name("input_layernorm.weight"), hidden)?,
                qkv: [part(0)?, part(1)?, part(2)?],
                bias,
                query_norm: head_norm("q_norm")?,
                key_norm: head_norm("k_norm")?,
                output: matrix(&name("self_attn.o_proj.weight"), hidden, outputs[0])?,
                feed_norm: norm(&name("post_attention_layernorm.weight"), hidden)?,
                gate_up: [
                    matrix(&name("mlp.gate_proj.weight"), config.intermediate, hidden)?,
                    matrix(&name("mlp.up_proj.weight"), config.intermediate, hidden)?,
                ],
                down: matrix(&name("mlp.down_proj.weight"), hidden, config.intermediate)?,
            });
        }
        let table = files.tensor("model.embed_tokens.weight")?;
        if [table.rows, table.columns] != [config.vocabulary, hidden] {
            return Err(ModelError::TensorShape {
                name: "model.embed_tokens.weight".to_string(),
                expected: vec![config.vocabulary, hidden],
                found: vec![table.rows, table.columns],
            });
        }
        let output = match config.tied {
            true => Matrix::new(&table, packing)?,
            false => matrix("lm_head.weight", config.vocabulary, hidden)?,
        };
        let serves = config.tied && matches!(output, Matrix::Blocks(_));
        let pairs = width / 2;
        let frequency = |pair: usize| {
            let plain = 1.0 / f64::from(config.rope_base).powf(2.0 * pair as f64 / width as f64);
            let divisor = config
                .rope_scaling
                .as_ref()
                .and_then(|scaling| scaling.get(pair))
                .copied();
            (plain / f64::from(divisor.unwrap_or(1.0))) as f32
        };
        Ok(Network {
            level,
            embeddings: (!serves).then_some(table),
            layers,
            norm: norm("model.norm.weight", hidden)?,
            output,
            frequencies: (0..pairs).map(frequency).collect(),
            config,
        })
    }

    pub fn config(&self) -> &LlmConfig {
        &self.config
    }

    /// Bytes of the weights.
    pub fn memory(&self) -> usize {
        let layers = self.layers.iter().map(|layer| {
            let matrices = layer
                .qkv
                .iter()
                .chain(&layer.gate_up)
                .chain([&layer.output, &layer.down]);
            matrices.map(Matrix::memory).sum::<usize>()
        });
        let table = self.embeddings.as_ref().map_or(0, |table| match &table.data {
            TensorData::F32(numbers) => numbers.len() * 4,
            TensorData::Blocks { bytes, .. } => bytes.len(),
        });
        layers.sum::<usize>() + self.output.memory() + table
    }

    /// The input vector of a token.
    ///
    /// # Errors
    /// [`ComputeError::Shape`] for an id outside the vocabulary or a slice of another length.
    pub fn embed(&self, id: u32, out: &mut [f32]) -> Result<(), ComputeError> {
        let (id, hidden) = (id as usize, self.config.hidden);
        let outside = || ComputeError::Shape(format!("token {id} of {}", self.config.vocabulary));
        match (&self.embeddings, &self.output) {
            (Some(table), _) => match &table.data {
                TensorData::F32(numbers) => {
                    let row = numbers.get(id * hidden..(id + 1) * hidden).ok_or_else(outside)?;
                    out.copy_from_slice(row);
                    Ok(())
                }
                TensorData::Blocks { kind, bytes } => {
                    let row = bytes.len() / table.rows.max(1);
                    kind.dequantise(bytes.get(id * row..(id + 1) * row).ok_or_else(outside)?, out);
                    Ok(())
                }
            },
            (None, Matrix::Blocks(output)) => output.row(id, out),
            (None, Matrix::Full(_)) => Err(outside()),
        }
    }

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
        let config = &self.config;
        let (hidden, width, level) = (config.hidden, config.head_width, self.level);
        let count: usize = rows.counts.iter().sum();
        let outside = |row: &usize| *row >= count;
        if count == 0
            || rows.vectors.len() != count * hidden
            || rows.counts.len() != caches.len()
            || rows.wanted.iter().any(outside)
        {
            return Err(ComputeError::Shape(
                "the rows of a pass do not fit its sequences".to_string(),
            ));
        }
        // Each row's sequence and place in it.
        let mut places = Vec::with_capacity(count);
        for (sequence, (cache, new)) in caches.iter_mut().zip(rows.counts).enumerate() {
            let before = cache.len();
            cache.grow(*new)?;
            places.extend((before..before + new).map(|position| (sequence, position)));
        }
        let turns = self.turns(&places, hooks.positions);
        let (query_numbers, key_numbers) = (config.heads * width, config.key_heads * width);
        let row = query_numbers + 2 * key_numbers;
        let widest = hidden.max(query_numbers).max(config.intermediate);
        let mut products = Products::new(pool, level, count, widest, row.max(hidden).max(config.intermediate))?;
        let mut normed = Buffer::zeroed(count * hidden)?;
        let mut qkv = Buffer::zeroed(count * row)?;
        let mut context = Buffer::zeroed(count * query_numbers)?;
        let mut gate_up = Buffer::zeroed(count * 2 * config.intermediate)?;
        let mut gated = Buffer::zeroed(count * config.intermediate)?;
        let x = rows.vectors;
        for (number, layer) in self.layers.iter().enumerate() {
            if let Some(residual) = &mut hooks.residual {
                residual(number, x);
            }
            layer.attention_norm.apply(level, x, &mut normed);
            let parts: Vec<&Matrix> = layer.qkv.iter().collect();
            products.run(pool, &normed, hidden, &parts, &mut qkv, row, false, stop)?;
            self.turn(layer, number, &mut qkv, &turns, hooks);
            for (qkv, (sequence, position)) in qkv.chunks_exact(row).zip(&places) {
                let (keys, values) = qkv[query_numbers..].split_at(key_numbers);
                let heads = keys.chunks_exact(width).zip(values.chunks_exact(width)).enumerate();
                if let Some(cache) = caches.get_mut(*sequence) {
                    heads.for_each(|(head, (key, value))| cache.put(number, head, *position, key, value));
                }
            }
            self.attend(pool, number, &qkv, &places, caches, &mut context, hooks, stop)?;
            products.run(pool, &context, query_numbers, &[&layer.output], x, hidden, true, stop)?;
            layer.feed_norm.apply(level, x, &mut normed);
            let parts: Vec<&Matrix> = layer.gate_up.iter().collect();
            products.run(
                pool,
                &normed,
                hidden,
                &parts,
                &mut gate_up,
                2 * config.intermediate,
                false,
                stop,
            )?;
            gate_rows(pool, level, config.intermediate, &gate_up, &mut gated)?;
            products.run(pool, &gated, config.intermediate, &[&layer.down], x, hidden, true, stop)?;
        }
        if let Some(residual) = &mut hooks.residual {
            residual(self.layers.len(), x);
        }
        let mut last = Buffer::zeroed(rows.wanted.len() * hidden)?;
        for (to, from) in last.chunks_exact_mut(hidden).zip(rows.wanted) {
            to.copy_from_slice(&x[from * hidden..(from + 1) * hidden]);
        }
        self.norm.apply_in_place(level, &mut last);
        let mut logits = Buffer::zeroed(rows.wanted.len() * config.vocabulary)?;
        if !rows.wanted.is_empty() {
            let mut products = Products::new(pool, level, rows.wanted.len(), hidden, config.vocabulary)?;
            products.run(
                pool,
                &last,
                hidden,
                &[&self.output],
                &mut logits,
                config.vocabulary,
                false,
                stop,
            )?;
        }
        Ok(logits)
    }

    /// Cosines and sines of each row's position.
    fn turns(&self, places: &[(usize, usize)], positions: Option<&[u32]>) -> Vec<f32> {
        let mut turns = Vec::with_capacity(places.len() * self.frequencies.len() * 2);
        for (number, (_, position)) in places.iter().enumerate() {
            let given = positions.and_then(|positions| positions.get(number));
            let position = given.map_or(*position as f32, |given| *given as f32);
            turns.extend(self.frequencies.iter().map(|frequency| (position * frequency).cos()));
            turns.extend(self.frequencies.iter().map(|frequency| (position * frequency).sin()));
        }
        turns
    }

    /// Biases, norms of heads, and the rotation of queries and keys.
    fn turn(&self, layer: &Layer, number: usize, qkv: &mut [f32], turns: &[f32], hooks: &mut Hooks<'_>) {
        let (width, heads, key_heads) = (self.config.head_width, self.config.heads, self.config.key_heads);
        let row = (heads + 2 * key_heads) * width;
        let pairs = width / 2;
        for qkv in qkv.chunks_exact_mut(row) {
            if let Some(bias) = &layer.bias {
                qkv.iter_mut().zip(bias).for_each(|(x, b)| *x += b);
            }
            let (queries, rest) = qkv.split_at_mut(heads * width);
            if let Some(norm) = &layer.query_norm {
                norm.apply_in_place(self.level, queries);
            }
            if let (Some(norm), Some(keys)) = (&layer.key_norm, rest.get_mut(..key_heads * width)) {
                norm.apply_in_place(self.level, keys);
            }
        }
        if let Some(show) = &mut hooks.keys {
            let of_row = |row: &[f32]| row[heads * width..(heads + key_heads) * width].to_vec();
            let mut keys: Vec<f32> = qkv.chunks_exact(row).flat_map(of_row).collect();
            show(number, &mut keys);
            for (row, keys) in qkv.chunks_exact_mut(row).zip(keys.chunks_exact(key_heads * width)) {
                row[heads * width..(heads + key_heads) * width].copy_from_slice(keys);
            }
        }
        for (qkv, turns) in qkv.chunks_exact_mut(row).zip(turns.chunks_exact(2 * pairs)) {
            let (cosines, sines) = turns.split_at(pairs);
            for head in qkv[..(heads + key_heads) * width].chunks_exact_mut(width) {
                let (first, second) = head.split_at_mut(pairs);
                for (((a, b), cosine), sine) in first.iter_mut().zip(second).zip(cosines).zip(sines) {
                    (*a, *b) = (*a * cosine - *b * sine, *b * cosine + *a * sine);
                }
            }
        }
    }

    /// Attention of all rows over what their sequences have kept.
    #[allow(clippy::too_many_arguments)]
    fn attend(
        &self,
        pool: &Pool,
        layer: usize,
        qkv: &[f32],
        places: &[(usize, usize)],
        caches: &[&mut Cache],
        context: &mut [f32],
        hooks: &mut Hooks<'_>,
        stop: &dyn Fn() -> bool,
    ) -> Result<(), ComputeError> {
        let (width, heads, key_heads) = (self.config.head_width, self.config.heads, self.config.key_heads);
        let row = (heads + 2 * key_heads) * width;
        let group = heads / key_heads;
        let kept: Vec<Vec<_>> = caches
            .iter()
            .map(|cache| (0..key_heads).map(|head| cache.head(layer, head)).collect())
            .collect();
        // All that a task may need, so that none of them allocates.
        let most = places
            .iter()
            .map(|(_, position)| group * (position + 1).next_multiple_of(BLOCK));
        let most = most.max().unwrap_or_default();
        let scratch = (0..pool.threads()).map(|_| Ok(Mutex::new(with_room::<f32>(most)?)));
        let scratch = scratch.collect::<Result<Vec<_>, ComputeError>>()?;
        let shared = Shared::new(context);
        let watched = Mutex::new(Vec::new());
        let watch_last = hooks.attention.is_some();
        pool.run_until(places.len() * key_heads, stop, |thread, task| {
            let (number, head) = (task / key_heads, task % key_heads);
            let (sequence, position) = places[number];
            // SAFETY: each task has numbers of its own.
            let queries = unsafe { shared.part(number * heads * width + head * group * width, group * width) };
            queries.copy_from_slice(&qkv[number * row + head * group * width..][..group * width]);
            let (keys, values) = &kept[sequence][head];
            let until = position + 1;
            let from = self.config.window.map_or(0, |window| until.saturating_sub(window));
            let mut scores = scratch[thread].lock();
            let work = Group {
                queries,
                width,
                keys,
                values,
                from,
                until,
                scale: 1.0 / (width as f32).sqrt(),
                scores: &mut scores,
            };
            attend(self.level, work);
            if watch_last && number + 1 == places.len() {
                let length = scores.len() / group;
                for (within, row) in scores.chunks_exact(length).enumerate() {
                    watched.lock().push((head * group + within, row[from..until].to_vec()));
                }
            }
        })?;
        if let Some(show) = &mut hooks.attention {
            let mut rows = watched.into_inner();
            rows.sort_by_key(|(head, _)| *head);
            rows.iter().for_each(|(head, row)| show(layer, *head, row));
        }
        if let Some(factors) = hooks.head_factors {
            for context in context.chunks_exact_mut(heads * width) {
                for (head, context) in context.chunks_exact_mut(width).enumerate() {
                    let factor = factors.get(layer * heads + head).copied().unwrap_or(1.0);
                    context.iter_mut().for_each(|x| *x *= factor);
                }
            }
        }
        Ok(())
    }
}

/// `silu(gate) * up` of all rows.
fn gate_rows(pool: &Pool, level: Level, width: usize, rows: &[f32], out: &mut [f32]) -> Result<(), ComputeError> {
    const TASK_ROWS: usize = 16;
    let count = rows.len() / (2 * width).max(1);
    if count <= TASK_ROWS {
        gate(level, Activation::Silu, rows, width, out);
        return Ok(());
    }
    let shared = Shared::new(out);
    pool.run(count.div_ceil(TASK_ROWS), |task| {
        let first = task * TASK_ROWS;
        let own = TASK_ROWS.min(count - first);
        // SAFETY: each task has rows of its own.
        let out = unsafe { shared.part(first * width, own * width) };
        gate(
            level,
            Activation::Silu,
            &rows[first * 2 * width..(first + own) * 2 * width],
            width,
            out,
        );
    })
}

/// A vector of that many numbers.
fn vector(files: &LlmFiles, name: &str, numbers: usize) -> Result<Vec<f32>, ModelError> {
    let tensor = files.tensor(name)?;
    if tensor.rows * tensor.columns != numbers {
        return Err(ModelError::TensorShape {
            name: name.to_string(),
            expected: vec![numbers],
            found: vec![tensor.rows, tensor.columns],
        });
    }
    tensor.to_f32()
}
